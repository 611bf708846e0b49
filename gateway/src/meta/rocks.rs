//! The embedded back-end: RocksDB with one committer thread.
//!
//! Durable on return *and* fast needs group commit: a sync costs 0.2 to 4 ms, however many rows it covers. All
//! transactions that wait are taken together, each is checked in turn against the database and what the ones
//! before it in the group wrote, the survivors go into one synced write batch, and then all are answered. One
//! thread is also what makes transactions serializable.
//!
//! Point reads run where they are called: from the block cache they take microseconds, less than a hop to
//! another thread. Longer scans go to the blocking pool.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use rocksdb::{BlockBasedOptions, Cache, DB, DBCompressionType, IteratorMode, Options, ReadOptions};
use tokio::sync::{mpsc, oneshot};

use super::store::{
    KEY_LEN_MAX, MetaStore, PAGE_ROWS_MAX, Row, StoreError, TransactError, Transaction, VALUE_LEN_MAX, Write,
};

mod commit;

/// Transactions that may wait for the committer; more wait in their callers.
const QUEUE_MAX: usize = 4096;
/// Pages of at most this many rows are read in place.
const INLINE_ROWS_MAX: usize = 8;

/// Where and how big.
#[derive(Clone, Debug)]
pub struct RocksConfig {
    /// The database's directory; made when it is not there.
    pub path: PathBuf,
    /// Bytes of blocks kept in memory.
    pub cache_bytes: usize,
    /// Bytes of a write buffer; there are two at most.
    pub write_buffer_bytes: usize,
}

impl RocksConfig {
    /// The defaults at `path`: 48 MiB of cache and twice 16 MiB of buffers, inside the gateway's 512.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), cache_bytes: 48 << 20, write_buffer_bytes: 16 << 20 }
    }
}

/// A [`MetaStore`] in a directory.
pub struct RocksStore {
    db: Arc<DB>,
    queue: Mutex<Option<mpsc::Sender<Waiting>>>,
    committer: Mutex<Option<std::thread::JoinHandle<()>>>,
}

/// A transaction and who waits for it.
struct Waiting {
    transaction: Transaction,
    answer: oneshot::Sender<Result<(), TransactError>>,
}

impl RocksStore {
    /// Opens the database, or makes an empty one.
    pub fn open(config: &RocksConfig) -> Result<Arc<Self>, StoreError> {
        let db = DB::open(&options(config), &config.path).map_err(|error| open_error(config, &error))?;
        let db = Arc::new(db);
        let (sender, receiver) = mpsc::channel(QUEUE_MAX);
        let committer = std::thread::Builder::new()
            .name("meta-commit".to_owned())
            .spawn({
                let db = Arc::clone(&db);
                move || commit::run(&db, receiver)
            })
            .map_err(|error| StoreError::Backend {
                operation: "start its committer",
                detail: error.to_string(),
                retryable: true,
            })?;
        Ok(Arc::new(Self { db, queue: Mutex::new(Some(sender)), committer: Mutex::new(Some(committer)) }))
    }
}

fn options(config: &RocksConfig) -> Options {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(&Cache::new_lru_cache(config.cache_bytes));
    // Most look-ups of a PUT are for blocks that are not there.
    table.set_bloom_filter(10.0, false);
    table.set_cache_index_and_filter_blocks(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(true);
    table.set_format_version(6);
    let mut options = Options::default();
    options.create_if_missing(true);
    options.set_block_based_table_factory(&table);
    options.set_write_buffer_size(config.write_buffer_bytes);
    options.set_max_write_buffer_number(2);
    options.set_max_background_jobs(2);
    // Digests do not compress.
    options.set_compression_type(DBCompressionType::None);
    options.set_max_open_files(512);
    options.set_keep_log_file_num(2);
    options.set_max_total_wal_size(64 << 20);
    options
}

fn open_error(config: &RocksConfig, error: &rocksdb::Error) -> StoreError {
    if error.as_ref().contains("lock") {
        return StoreError::InUse { path: config.path.display().to_string() };
    }
    backend("open", error)
}

fn backend(operation: &'static str, error: &rocksdb::Error) -> StoreError {
    use rocksdb::ErrorKind::{Busy, TimedOut, TryAgain};
    let retryable = matches!(error.kind(), Busy | TimedOut | TryAgain);
    StoreError::Backend { operation, detail: error.as_ref().chars().take(400).collect(), retryable }
}

fn check_bounds(transaction: &Transaction) -> Result<(), StoreError> {
    for write in &transaction.writes {
        let (key, value) = match write {
            Write::Put(key, value) | Write::PutIfAbsent(key, value) => (key, value.len()),
            Write::Delete(key) => (key, 0),
            Write::Add(key, deltas) => (key, deltas.len() * 8),
        };
        if key.len() > KEY_LEN_MAX {
            return Err(StoreError::TooLarge { what: "key", len: key.len() });
        }
        if value > VALUE_LEN_MAX {
            return Err(StoreError::TooLarge { what: "value", len: value });
        }
    }
    Ok(())
}

fn scan(db: &DB, start: &[u8], end: &[u8], limit: usize) -> Result<Vec<Row>, StoreError> {
    let mut options = ReadOptions::default();
    options.set_iterate_upper_bound(end.to_vec());
    let mut rows = Vec::new();
    let from = IteratorMode::From(start, rocksdb::Direction::Forward);
    for row in db.iterator_opt(from, options).take(limit.min(PAGE_ROWS_MAX)) {
        let (key, value) = row.map_err(|error| backend("scan", &error))?;
        rows.push(Row { key: key.into_vec(), value: Bytes::from(value.into_vec()) });
    }
    Ok(rows)
}

#[async_trait]
impl MetaStore for RocksStore {
    async fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        let value = self.db.get(key).map_err(|error| backend("read", &error))?;
        Ok(value.map(Bytes::from))
    }

    async fn get_many(&self, keys: &[Vec<u8>]) -> Result<Vec<Option<Bytes>>, StoreError> {
        let values = self.db.multi_get(keys).into_iter();
        values.map(|value| Ok(value.map_err(|error| backend("read", &error))?.map(Bytes::from))).collect()
    }

    async fn page(&self, start: &[u8], end: &[u8], limit: usize) -> Result<Vec<Row>, StoreError> {
        if start >= end || limit == 0 {
            return Ok(Vec::new());
        }
        if limit <= INLINE_ROWS_MAX {
            return scan(&self.db, start, end, limit);
        }
        let (db, start, end) = (Arc::clone(&self.db), start.to_vec(), end.to_vec());
        tokio::task::spawn_blocking(move || scan(&db, &start, &end, limit))
            .await
            .unwrap_or(Err(StoreError::Closed))
    }

    async fn transact(&self, transaction: Transaction) -> Result<(), TransactError> {
        check_bounds(&transaction)?;
        let queue = self.queue.lock().clone().ok_or(StoreError::Closed)?;
        let (answer, answered) = oneshot::channel();
        queue.send(Waiting { transaction, answer }).await.map_err(|_| StoreError::Closed)?;
        answered.await.unwrap_or(Err(TransactError::Store(StoreError::Closed)))
    }

    async fn close(&self) -> Result<(), StoreError> {
        drop(self.queue.lock().take());
        let committer = self.committer.lock().take();
        let db = Arc::clone(&self.db);
        let closing = tokio::task::spawn_blocking(move || {
            // The committer ends when the last sender is gone, after it has answered everybody.
            if committer.is_some_and(|thread| thread.join().is_err()) {
                return Err(StoreError::Closed);
            }
            db.flush().map_err(|error| backend("flush", &error))
        });
        closing.await.unwrap_or(Err(StoreError::Closed))
    }
}

impl Drop for RocksStore {
    fn drop(&mut self) {
        drop(self.queue.lock().take());
        if let Some(committer) = self.committer.lock().take()
            && committer.join().is_err()
        {
            tracing::error!("the metadata committer panicked");
        }
    }
}

#[cfg(test)]
mod tests;
