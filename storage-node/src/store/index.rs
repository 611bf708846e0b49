//! The index: RocksDB in front of the extents. It can always be rebuilt from them, so it has no write-ahead
//! log; each batch carries the extents' synced offsets that it describes.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::Path;
use std::sync::Arc;

use holdfast_protocol::digest::Digest;
use holdfast_protocol::record::{AgreementId, Claim, ClaimRef};
use parking_lot::Mutex;
use rocksdb::{
    BlockBasedOptions, Cache, DB, ErrorKind, FlushOptions, Options, ReadOptions, ReadTier, WriteBatch,
    WriteOptions,
};

use super::error::IndexError;
use super::types::{AgreementUsage, CLAIMS_PER_BLOCK_MAX, Loss};

mod changed;
mod inventory;
mod overlay;
pub(crate) mod rows;
mod txn;
pub(crate) mod upgrade;

pub(crate) use changed::bucket_of;

pub(crate) use txn::{Changes, Sealed, Txn};

use changed::Changed;
use rows::{BlockRow, ClaimKey, ExtentRow, LostRow};

/// A key and its value.
pub(crate) type Row = (Vec<u8>, Vec<u8>);

/// Memory for changes not yet in a file; two of these at most.
const WRITE_BUFFER_BYTES: usize = 16 << 20;
/// Table files that RocksDB keeps open.
const OPEN_FILES_MAX: i32 = 256;

/// The open index.
pub(crate) struct Index {
    db: DB,
    /// Buckets of the inventory that changed since their reader last looked.
    changed: Mutex<Changed>,
    /// On a read-only disk: what replay adds to the index, in memory. `None` where the index is written.
    overlay: Option<Mutex<Arc<Changes>>>,
}

impl Index {
    /// Opens or makes the index in `dir`.
    pub(crate) fn open(dir: &Path, cache_bytes: usize) -> Result<Self, rocksdb::Error> {
        let mut options = table_options(cache_bytes);
        options.create_if_missing(true);
        let db = DB::open(&options, dir)?;
        Ok(Self { db, changed: Mutex::new(Changed::default()), overlay: None })
    }

    /// Opens the index of a disk that cannot be written. Changes are kept in memory: those of one unflushed stretch.
    pub(crate) fn open_read_only(dir: &Path, cache_bytes: usize) -> Result<Self, rocksdb::Error> {
        let db = DB::open_for_read_only(&table_options(cache_bytes), dir, false)?;
        Ok(Self { db, changed: Mutex::new(Changed::default()), overlay: Some(Mutex::default()) })
    }

    /// Whether changes stay in memory.
    pub(crate) fn is_read_only(&self) -> bool {
        self.overlay.is_some()
    }

    /// Applies `batch` at once, without a log of its own. On a read-only disk nothing is kept: whoever calls this can
    /// make it anew.
    pub(crate) fn write(&self, batch: WriteBatch) -> Result<(), IndexError> {
        if self.is_read_only() {
            return Ok(());
        }
        let mut options = WriteOptions::default();
        options.disable_wal(true);
        Ok(self.db.write_opt(batch, &options)?)
    }

    /// Applies `batch` and notes that the inventory's `buckets` changed, so that a reader of the notes sees either
    /// both or neither.
    fn write_marking(&self, mut batch: WriteBatch, buckets: &BTreeSet<u16>) -> Result<(), IndexError> {
        let mut changed = self.changed.lock();
        for bucket in buckets {
            if let Some(mark) = changed.mark(*bucket) {
                batch.put(rows::bucket_key(*bucket), mark.to_le_bytes());
            }
        }
        self.write(batch)
    }

    /// Makes everything applied so far durable; without `wait`, soon.
    pub(crate) fn flush(&self, wait: bool) -> Result<(), IndexError> {
        if self.is_read_only() {
            return Ok(());
        }
        let mut options = FlushOptions::default();
        options.set_wait(wait);
        Ok(self.db.flush_opt(&options)?)
    }

    /// Everything there is to see.
    pub(crate) fn view(&self) -> View<'_> {
        View { db: &self.db, memory_only: false, overlay: self.overlay_now() }
    }

    /// Only what is in memory; the rest answers [`is_incomplete`].
    pub(crate) fn view_in_memory(&self) -> View<'_> {
        View { db: &self.db, memory_only: true, overlay: self.overlay_now() }
    }
}

/// Whether a view limited to memory would have had to read the disk.
pub(crate) fn is_incomplete(error: &IndexError) -> bool {
    matches!(error, IndexError::Rocks { source } if source.kind() == ErrorKind::Incomplete)
}

fn table_options(cache_bytes: usize) -> Options {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(&Cache::new_lru_cache(cache_bytes));
    table.set_cache_index_and_filter_blocks(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(true);
    // New blocks dominate: a filter answers "not held" without touching the disk.
    table.set_bloom_filter(10.0, false);
    let mut options = Options::default();
    options.set_block_based_table_factory(&table);
    options.set_write_buffer_size(WRITE_BUFFER_BYTES);
    options.set_max_write_buffer_number(2);
    options.set_max_open_files(OPEN_FILES_MAX);
    options.set_max_background_jobs(2);
    // Reading every table's statistics at open would make the start a walk.
    options.set_skip_stats_update_on_db_open(true);
    // One log file is enough to look at after a failure, and they must not grow without bound.
    options.set_keep_log_file_num(2);
    options.set_max_log_file_size(4 << 20);
    options
}

/// Reads of the index.
pub(crate) struct View<'a> {
    db: &'a DB,
    memory_only: bool,
    overlay: Option<Arc<Changes>>,
}

impl View<'_> {
    fn options(&self) -> ReadOptions {
        let mut options = ReadOptions::default();
        if self.memory_only {
            options.set_read_tier(ReadTier::BlockCache);
        }
        options
    }

    pub(crate) fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, IndexError> {
        if let Some(changed) = self.overlay.as_ref().and_then(|overlay| overlay.get(key)) {
            return Ok(changed.clone());
        }
        Ok(self.db.get_opt(key, &self.options())?)
    }

    /// Rows whose key starts with `prefix`, in order, at most `max`.
    pub(crate) fn scan(&self, prefix: &[u8], max: usize) -> Result<Vec<Row>, IndexError> {
        self.rows(prefix, None).take(max).collect()
    }

    /// Rows whose key starts with `prefix` and comes behind `after`, in order, at most `max`.
    pub(crate) fn scan_after(
        &self,
        prefix: &[u8],
        after: Option<Vec<u8>>,
        max: usize,
    ) -> Result<Vec<Row>, IndexError> {
        let behind = |row: &Result<Row, IndexError>| {
            !row.as_ref().is_ok_and(|(key, _)| after.as_deref() == Some(&key[..]))
        };
        self.rows(prefix, after.as_deref()).filter(behind).take(max).collect()
    }

    /// A row read and decoded by `decode`.
    pub(crate) fn row<T>(
        &self,
        key: &[u8],
        decode: impl FnOnce(&[u8]) -> Option<T>,
    ) -> Result<Option<T>, IndexError> {
        self.get(key)?.map(|value| decode(&value).ok_or_else(|| bad_row(key))).transpose()
    }

    pub(crate) fn block(&self, digest: &Digest) -> Result<Option<BlockRow>, IndexError> {
        self.row(&BlockRow::key(digest), BlockRow::decode)
    }

    pub(crate) fn claims(&self, digest: &Digest) -> Result<Vec<Claim>, IndexError> {
        let prefix = ClaimKey::rows_of(digest);
        let mut claims = Vec::new();
        for (key, value) in self.scan(&prefix, CLAIMS_PER_BLOCK_MAX as usize)? {
            let entry = rows::decode_claim(&key, &value).ok_or_else(|| bad_row(&key))?;
            claims.extend(entry.claim());
        }
        Ok(claims)
    }

    pub(crate) fn claim(
        &self,
        agreement: &AgreementId,
        claim: &ClaimRef,
    ) -> Result<Option<Claim>, IndexError> {
        let key = ClaimKey::new(*agreement, claim).row();
        let entry = self.row(&key, |value| rows::decode_claim(&key, value))?;
        Ok(entry.and_then(|entry| entry.claim()))
    }

    pub(crate) fn is_lost(&self, digest: &Digest) -> Result<bool, IndexError> {
        Ok(self.get(&rows::lost_key(digest))?.is_some())
    }

    /// Declared losses behind `after`, by digest.
    pub(crate) fn losses(&self, after: Option<&Digest>, max: usize) -> Result<Vec<Loss>, IndexError> {
        let mut losses = Vec::new();
        for (key, value) in self.scan_after(b"n", after.map(rows::lost_key), max)? {
            let digest = LostRow::digest(&key).ok_or_else(|| bad_row(&key))?;
            let LostRow { declared_ms, len, .. } = LostRow::decode(&value).ok_or_else(|| bad_row(&key))?;
            let len = u32::try_from(len).unwrap_or(0);
            losses.push(Loss { digest, len, declared_ms });
        }
        Ok(losses)
    }

    pub(crate) fn agreement_usage(&self, agreement: &AgreementId) -> Result<AgreementUsage, IndexError> {
        Ok(self.row(&rows::usage_key(agreement), rows::decode_usage)?.unwrap_or_default())
    }

    /// Provisional claims whose lease ended at or before `now_ms`, oldest first, without those of `skipped` agreements:
    /// a namespace that never answers must not stand before all others for ever.
    pub(crate) fn expired_leases(
        &self,
        now_ms: u64,
        max: usize,
        skipped: &HashSet<AgreementId>,
    ) -> Result<Vec<(AgreementId, ClaimRef)>, IndexError> {
        let mut expired = Vec::new();
        for row in self.rows(b"l", None) {
            let (key, _) = row?;
            let (ms, claim) = ClaimKey::decode_timed(&key).ok_or_else(|| bad_row(&key))?;
            if ms > now_ms || expired.len() >= max {
                break;
            }
            if !skipped.contains(&claim.agreement) {
                expired.push((claim.agreement, claim.claim_ref()));
            }
        }
        Ok(expired)
    }

    /// Claims of the time-ordered table whose time is `until_ms` or before, oldest first.
    pub(crate) fn due(&self, table: u8, until_ms: u64, max: usize) -> Result<Vec<ClaimKey>, IndexError> {
        let mut due = Vec::new();
        for (key, _) in self.scan(&[table], max)? {
            let (ms, claim) = ClaimKey::decode_timed(&key).ok_or_else(|| bad_row(&key))?;
            if ms > until_ms {
                break;
            }
            due.push(claim);
        }
        Ok(due)
    }

    /// The first extent from `id` on.
    pub(crate) fn extent_from(&self, id: u64) -> Result<Option<(u64, ExtentRow)>, IndexError> {
        let Some(row) = self.rows(b"x", Some(&ExtentRow::key(id))).next() else { return Ok(None) };
        let (key, value) = row?;
        let id = ExtentRow::id(&key).ok_or_else(|| bad_row(&key))?;
        Ok(Some((id, ExtentRow::decode(&value).ok_or_else(|| bad_row(&key))?)))
    }

    /// Held blocks behind `after`, by digest.
    pub(crate) fn blocks_after(
        &self,
        after: Option<&Digest>,
        max: usize,
    ) -> Result<Vec<(Digest, BlockRow)>, IndexError> {
        let rows = self.scan_after(b"b", after.map(BlockRow::key), max)?;
        let decode = |(key, value): &Row| {
            let digest = BlockRow::digest(key).ok_or_else(|| bad_row(key))?;
            Ok((digest, BlockRow::decode(value).ok_or_else(|| bad_row(key))?))
        };
        rows.iter().map(decode).collect()
    }

    /// Every extent, by id. Their number is bounded by the disk: 10,240 for 10 TiB.
    pub(crate) fn extents(&self) -> Result<BTreeMap<u64, ExtentRow>, IndexError> {
        let mut extents = BTreeMap::new();
        for (key, value) in self.scan(b"x", usize::MAX)? {
            let id = ExtentRow::id(&key).ok_or_else(|| bad_row(&key))?;
            extents.insert(id, ExtentRow::decode(&value).ok_or_else(|| bad_row(&key))?);
        }
        Ok(extents)
    }
}

/// The error of a row that does not have its shape.
pub(crate) fn bad_row(key: &[u8]) -> IndexError {
    IndexError::Row { table: char::from(key.first().copied().unwrap_or(b'?')) }
}
