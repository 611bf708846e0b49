//! The scale-out back-end: a database that speaks the PostgreSQL protocol, shared by several gateways.
//!
//! One table, `holdfast_kv (k, i, v)`: key, instance, value. Ordinary rows have instance 0. What a gateway adds to a
//! counter goes into the row of its own instance, so that two gateways that count never touch one row; whoever reads the
//! counter sums over the instances. Bytes compare as bytes, so the table's order is the schema's.
//!
//! The SQL is kept inside what CockroachDB and YugabyteDB run too: SERIALIZABLE with retry, no advisory locks, no
//! extension, no trigger. Settings that only PostgreSQL knows are asked for and may be refused.
//!
//! Reads are single statements outside of any transaction: each sees all that was committed before it began, by whichever
//! gateway. Writes go through one committer per gateway ([`commit`]), which groups what waits, as the embedded back-end
//! does: one gateway's transactions never conflict with each other, and share their syncs.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Row as SqlRow, Statement};

use super::store::{
    KEY_LEN_MAX, MetaStore, PAGE_ROWS_MAX, Row, StoreError, TransactError, Transaction, VALUE_LEN_MAX, Write,
};
use connection::{Connector, Session, Slot};

mod address;
mod commit;
mod connection;
mod group;

/// Connections that reads share. Each runs one statement at a time and takes the next ones meanwhile.
const READERS: usize = 4;
/// Transactions that may wait for the committer; more wait in their callers.
const QUEUE_MAX: usize = 4096;
/// A read whose connection breaks is repeated on a new one this often: a database that restarts goes unnoticed.
const READ_ATTEMPTS: usize = 3;
/// A failover of a managed database takes about as long.
const PATIENCE: Duration = Duration::from_secs(15);
/// Rows asked for beyond a page, for counters that several gateways have added to.
const PAGE_SLACK: usize = 16;

/// Which database, and who asks.
#[derive(Clone)]
pub struct PostgresConfig {
    /// `postgres://USER:PASSWORD@HOST:PORT/DATABASE`, with several hosts if there are; `sslmode=verify-full` for TLS,
    /// verified against the system's certificates or those of `sslrootcert`.
    pub url: String,
    /// This gateway among those of the namespace: never 0, the same at every start.
    pub instance: i64,
    /// How long a caller waits for a database that restarts or fails over before it hears of it.
    pub patience: Duration,
}

impl PostgresConfig {
    /// The database at `url`, for the gateway of this id.
    pub fn new(url: impl Into<String>, gateway: &holdfast_protocol::NodeId) -> Self {
        let bytes = gateway.as_bytes().first_chunk::<8>().copied().unwrap_or_default();
        // Clearing the sign and setting the lowest bit leaves 62 random bits, and never 0.
        Self::of_instance(url, (i64::from_be_bytes(bytes) & i64::MAX) | 1)
    }

    /// The database at `url`, for the gateway of this number.
    pub fn of_instance(url: impl Into<String>, instance: i64) -> Self {
        Self { url: url.into(), instance, patience: PATIENCE }
    }
}

impl fmt::Debug for PostgresConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The URL may hold a password.
        f.debug_struct("PostgresConfig").field("instance", &self.instance).finish_non_exhaustive()
    }
}

/// A [`MetaStore`] in a database on the network.
pub struct PostgresStore {
    readers: Vec<Slot>,
    next_reader: AtomicUsize,
    queue: Mutex<Option<mpsc::Sender<Waiting>>>,
    committer: Mutex<Option<JoinHandle<()>>>,
}

/// A transaction and who waits for it.
struct Waiting {
    transaction: Transaction,
    answer: oneshot::Sender<Result<(), TransactError>>,
}

impl PostgresStore {
    /// Connects, and makes the table when there is none.
    pub async fn open(config: &PostgresConfig) -> Result<Arc<Self>, StoreError> {
        let connector = Arc::new(Connector::new(config)?);
        connector.prepare_database().await?;
        let (sender, receiver) = mpsc::channel(QUEUE_MAX);
        let committer = commit::Committer::new(Slot::new(Arc::clone(&connector)), config.instance);
        let committer = tokio::spawn(committer.run(receiver));
        Ok(Arc::new(Self {
            readers: (0..READERS).map(|_| Slot::new(Arc::clone(&connector))).collect(),
            next_reader: AtomicUsize::new(0),
            queue: Mutex::new(Some(sender)),
            committer: Mutex::new(Some(committer)),
        }))
    }

    async fn read(
        &self,
        statement: fn(&Session) -> &Statement,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<SqlRow>, StoreError> {
        if self.queue.lock().is_none() {
            return Err(StoreError::Closed);
        }
        let mut attempt = 0;
        loop {
            attempt += 1;
            let turn = self.next_reader.fetch_add(1, Ordering::Relaxed);
            let session = self.readers[turn % READERS].session().await?;
            match session.client.query(statement(&session), parameters).await {
                Ok(rows) => return Ok(rows),
                Err(error) if attempt < READ_ATTEMPTS && connection::is_lost(&error) => {}
                Err(error) => return Err(connection::backend("read", &error)),
            }
        }
    }
}

/// Values of one key's rows, summed if instances have added to it.
#[derive(Default)]
struct Summed {
    base: Option<Bytes>,
    added: Option<Vec<i64>>,
}

impl Summed {
    fn take(&mut self, instance: i64, value: &[u8]) {
        if instance == 0 {
            self.base = Some(Bytes::copy_from_slice(value));
        } else {
            group::add(self.added.get_or_insert_default(), &super::store::counters(value));
        }
    }

    fn value(self) -> Option<Bytes> {
        group::sum(self.base, [self.added.as_deref(), None])
    }
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

#[async_trait]
impl MetaStore for PostgresStore {
    async fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        let mut found = Summed::default();
        for row in self.read(|session| &session.get, &[&key]).await? {
            found.take(row.get(0), row.get(1));
        }
        Ok(found.value())
    }

    async fn get_many(&self, keys: &[Vec<u8>]) -> Result<Vec<Option<Bytes>>, StoreError> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let rows = self.read(|session| &session.many, &[&keys]).await?;
        let mut found: HashMap<&[u8], Summed> = HashMap::with_capacity(rows.len());
        for row in &rows {
            found.entry(row.get(0)).or_default().take(row.get(1), row.get(2));
        }
        let mut values: HashMap<&[u8], Option<Bytes>> =
            found.into_iter().map(|(key, summed)| (key, summed.value())).collect();
        // A key that was asked for twice is answered twice.
        Ok(keys.iter().map(|key| values.get_mut(&key[..]).cloned().flatten()).collect())
    }

    async fn page(&self, start: &[u8], end: &[u8], limit: usize) -> Result<Vec<Row>, StoreError> {
        let limit = limit.min(PAGE_ROWS_MAX);
        if start >= end || limit == 0 {
            return Ok(Vec::new());
        }
        // The committers' marks lie under the empty key, which is nobody's.
        let start = if start.is_empty() { &[0][..] } else { start };
        let mut ask = limit.saturating_add(PAGE_SLACK);
        loop {
            let count = i64::try_from(ask).unwrap_or(i64::MAX);
            let found = self.read(|session| &session.page, &[&start, &end, &count]).await?;
            let is_all = found.len() < ask;
            let mut rows = merge(&found);
            if !is_all {
                // More instances' rows of the last key may follow.
                rows.pop();
            }
            if is_all || rows.len() >= limit {
                rows.truncate(limit);
                return Ok(rows);
            }
            // So many instances have added to these counters that a page fell short; the next try is one snapshot too.
            ask = ask.saturating_mul(4);
        }
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
        if let Some(committer) = committer {
            // It ends when the last sender is gone, after it has answered everybody.
            committer.await.map_err(|_| StoreError::Closed)?;
        }
        for reader in &self.readers {
            reader.close().await;
        }
        Ok(())
    }
}

/// Rows of one key, next to each other, made one.
fn merge(found: &[SqlRow]) -> Vec<Row> {
    let mut rows = Vec::with_capacity(found.len());
    for same in found.chunk_by(|a, b| a.get::<_, &[u8]>(0) == b.get::<_, &[u8]>(0)) {
        let mut summed = Summed::default();
        for row in same {
            summed.take(row.get(1), row.get(2));
        }
        if let (Some(first), Some(value)) = (same.first(), summed.value()) {
            rows.push(Row { key: first.get(0), value });
        }
    }
    rows
}

#[cfg(test)]
pub(super) mod tests;
