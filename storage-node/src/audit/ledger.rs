//! The inventory as it was last committed to: RocksDB for the blocks of each bucket, 5 MB of memory for the tree above.
//!
//! It is a copy on purpose. The store goes on taking and releasing blocks after a commitment; what a draw opens is
//! what was committed to. Only buckets that changed are read and hashed again.
//!
//! ```text
//! key            value
//! m              format u32, generation u64, epoch u64 + 1 (0: none)
//! a index u16    agreement, 32 bytes
//! b bucket u16   blocks, ascending: digest 32, length u32 LE, agreements u8, index u16 LE each
//! h bucket u16   hash 32, bytes u64 LE, blocks u32 LE
//! ```
//! Keys are big-endian. Everything can be made anew from the store, so a damaged copy is thrown away.

use std::collections::HashMap;
use std::path::Path;

use holdfast_proofs::draw::{Draw, Randomness};
use holdfast_proofs::inventory::{BUCKETS, Entry, Inventory, Sum, bucket_of, bucket_sum, owner_of};
use holdfast_protocol::record::{AgreementId, Epoch, InventoryEntry, InventoryHash};
use holdfast_protocol::{BlockLen, Digest, NodeId};
use rocksdb::{DB, IteratorMode, Options, WriteBatch, WriteOptions};

use super::epochs::OpenedDraw;
use super::source::SourceEntry;
use super::{AuditError, InventorySource};

const FORMAT: u32 = 1;
/// Buckets written in one batch: some MB at 10 million blocks.
const BUCKETS_PER_BATCH: usize = 512;
/// Agreements that an inventory can tell apart; a node keeps fewer (`AGREEMENTS_MAX`).
const AGREEMENTS_MAX: usize = u16::MAX as usize;
/// Agreements that are listed for one block.
const KEEPERS_MAX: usize = u8::MAX as usize;
/// Memory for changes that are not in a file yet; two of these.
const WRITE_BUFFER_BYTES: usize = 8 << 20;

/// A block of a bucket, with the numbers of its agreements.
struct Row {
    digest: Digest,
    len: BlockLen,
    keepers: Vec<u16>,
}

pub(super) struct Ledger {
    db: DB,
    secret: [u8; 32],
    tree: Inventory,
    counts: Vec<u32>,
    agreements: Vec<AgreementId>,
    numbers: HashMap<AgreementId, u16>,
    /// Of the store that the copy was made from.
    generation: Option<u64>,
    epoch: Option<Epoch>,
}

impl Ledger {
    pub(super) fn open(dir: &Path, secret: [u8; 32]) -> Result<Self, AuditError> {
        match Self::load(dir, secret) {
            Ok(ledger) => Ok(ledger),
            Err(error) => {
                tracing::warn!(dir = %dir.display(), %error, "the committed inventory is unusable and is made anew");
                std::fs::remove_dir_all(dir).map_err(|error| files(&error))?;
                Self::load(dir, secret)
            }
        }
    }

    fn load(dir: &Path, secret: [u8; 32]) -> Result<Self, AuditError> {
        std::fs::create_dir_all(dir).map_err(|error| files(&error))?;
        let mut options = Options::default();
        options.create_if_missing(true);
        options.set_write_buffer_size(WRITE_BUFFER_BYTES);
        options.set_max_write_buffer_number(2);
        options.set_max_open_files(64);
        options.set_keep_log_file_num(2);
        options.set_max_log_file_size(1 << 20);
        let db = DB::open(&options, dir).map_err(|error| files(&error))?;
        let mut ledger = Self {
            db,
            secret,
            tree: Inventory::new(),
            counts: vec![0; BUCKETS],
            agreements: Vec::new(),
            numbers: HashMap::new(),
            generation: None,
            epoch: None,
        };
        ledger.read_rows()?;
        Ok(ledger)
    }

    fn read_rows(&mut self) -> Result<(), AuditError> {
        let mut sums = Vec::new();
        // The blocks of buckets lie between, and are read one by one when they are needed.
        let mut rows = Vec::new();
        for (from, to) in [(b"a", b"b"), (b"h", b"n")] {
            let direction = rocksdb::Direction::Forward;
            for row in self.db.iterator(IteratorMode::From(from, direction)) {
                let (key, value) = row.map_err(|error| files(&error))?;
                if key[..] >= to[..] {
                    break;
                }
                rows.push((key, value));
            }
        }
        for (key, value) in rows {
            match (&key[..], &value[..]) {
                ([b'a', rest @ ..], value) => {
                    let at = rest.try_into().map(u16::from_be_bytes).map_err(|_| damaged())?;
                    let agreement = AgreementId(value.try_into().map_err(|_| damaged())?);
                    if usize::from(at) != self.agreements.len() {
                        return Err(damaged());
                    }
                    self.agreements.push(agreement);
                    self.numbers.insert(agreement, at);
                }
                ([b'h', rest @ ..], value) => {
                    let bucket = rest.try_into().map(u16::from_be_bytes).map_err(|_| damaged())?;
                    let (hash, rest) = value.split_first_chunk::<32>().ok_or_else(damaged)?;
                    let (bytes, rest) = rest.split_first_chunk::<8>().ok_or_else(damaged)?;
                    let count = rest.try_into().map(u32::from_le_bytes).map_err(|_| damaged())?;
                    self.counts[usize::from(bucket)] = count;
                    sums.push((
                        bucket,
                        Sum { hash: InventoryHash(*hash), bytes: u64::from_le_bytes(*bytes) },
                    ));
                }
                ([b'm'], value) => self.read_meta(value)?,
                _ => return Err(damaged()),
            }
        }
        self.tree.update(&sums)?;
        Ok(())
    }

    fn read_meta(&mut self, value: &[u8]) -> Result<(), AuditError> {
        let (format, rest) = value.split_first_chunk::<4>().ok_or_else(damaged)?;
        let (generation, rest) = rest.split_first_chunk::<8>().ok_or_else(damaged)?;
        let epoch: [u8; 8] = rest.try_into().map_err(|_| damaged())?;
        if u32::from_le_bytes(*format) != FORMAT {
            return Err(damaged());
        }
        self.generation = Some(u64::from_le_bytes(*generation));
        self.epoch = u64::from_le_bytes(epoch).checked_sub(1);
        Ok(())
    }

    /// Brings the copy up to the store: reads and hashes what changed. Returns how many buckets that were.
    pub(super) async fn refresh(&mut self, source: &dyn InventorySource) -> Result<usize, AuditError> {
        let generation = source.generation();
        let seen = source.changed();
        let all: Vec<u16>;
        let buckets = if self.generation == Some(generation) {
            &seen.buckets
        } else {
            all = (0..=u16::MAX).collect();
            &all
        };
        if !buckets.is_empty() {
            // From here on the copy is of no epoch: a crash in the middle must not pass for one.
            self.write_meta(self.generation.unwrap_or_default(), None)?;
        }
        let mut sums = Vec::with_capacity(buckets.len());
        for some in buckets.chunks(BUCKETS_PER_BATCH) {
            let mut batch = WriteBatch::default();
            for bucket in some {
                let entries = source.entries(*bucket).await?;
                if entries.is_empty() && self.counts[usize::from(*bucket)] == 0 {
                    continue;
                }
                let rows = self.rows_of(&entries, &mut batch)?;
                sums.push((*bucket, self.put_bucket(*bucket, &rows, &mut batch)?));
            }
            self.db.write_opt(batch, &unsynced()).map_err(|error| files(&error))?;
        }
        self.tree.update(&sums)?;
        self.write_meta(generation, None)?;
        self.generation = Some(generation);
        source.forget(seen).await?;
        Ok(sums.len())
    }

    fn rows_of(&mut self, entries: &[SourceEntry], batch: &mut WriteBatch) -> Result<Vec<Row>, AuditError> {
        let mut rows: Vec<Row> = Vec::with_capacity(entries.len());
        for entry in entries {
            let number = self.number(entry.agreement, batch)?;
            match rows.last_mut() {
                Some(row) if row.digest == entry.digest => {
                    if row.keepers.len() < KEEPERS_MAX && !row.keepers.contains(&number) {
                        row.keepers.push(number);
                    }
                }
                _ => rows.push(Row { digest: entry.digest, len: entry.len, keepers: vec![number] }),
            }
        }
        Ok(rows)
    }

    fn number(&mut self, agreement: AgreementId, batch: &mut WriteBatch) -> Result<u16, AuditError> {
        if let Some(number) = self.numbers.get(&agreement) {
            return Ok(*number);
        }
        let number =
            u16::try_from(self.agreements.len()).ok().filter(|_| self.agreements.len() < AGREEMENTS_MAX);
        let number = number.ok_or_else(|| AuditError::Files { detail: "too many agreements".into() })?;
        self.agreements.push(agreement);
        self.numbers.insert(agreement, number);
        batch.put(key(b'a', number), agreement.0);
        Ok(number)
    }

    fn put_bucket(&mut self, bucket: u16, rows: &[Row], batch: &mut WriteBatch) -> Result<Sum, AuditError> {
        let entries: Vec<Entry> = rows.iter().map(|row| self.entry(row)).collect();
        let sum = bucket_sum(bucket, &entries)?;
        let count = u32::try_from(rows.len()).unwrap_or(u32::MAX);
        self.counts[usize::from(bucket)] = count;
        if rows.is_empty() {
            batch.delete(key(b'b', bucket));
            batch.delete(key(b'h', bucket));
            return Ok(sum);
        }
        let mut value = Vec::with_capacity(rows.len() * 39);
        for row in rows {
            value.extend_from_slice(&row.digest.0);
            value.extend_from_slice(&row.len.bytes().to_le_bytes());
            value.push(u8::try_from(row.keepers.len()).unwrap_or(u8::MAX));
            row.keepers.iter().for_each(|number| value.extend_from_slice(&number.to_le_bytes()));
        }
        batch.put(key(b'b', bucket), value);
        let bytes = sum.bytes.to_le_bytes();
        batch.put(key(b'h', bucket), [&sum.hash.0[..], &bytes, &count.to_le_bytes()].concat());
        Ok(sum)
    }

    fn entry(&self, row: &Row) -> Entry {
        let agreements: Vec<AgreementId> = row
            .keepers
            .iter()
            .filter_map(|number| self.agreements.get(usize::from(*number)).copied())
            .collect();
        Entry { digest: row.digest, len: row.len, owner: owner_of(&self.secret, &row.digest, &agreements) }
    }

    fn bucket(&self, bucket: u16) -> Result<Vec<Row>, AuditError> {
        let value = self.db.get(key(b'b', bucket)).map_err(|error| files(&error))?;
        rows(&value.unwrap_or_default()).ok_or_else(damaged)
    }

    /// Says that the copy is what was committed to in `epoch`, durably.
    pub(super) fn committed(&mut self, epoch: Epoch) -> Result<(), AuditError> {
        self.write_meta(self.generation.unwrap_or_default(), Some(epoch))
    }

    fn write_meta(&mut self, generation: u64, epoch: Option<Epoch>) -> Result<(), AuditError> {
        let epoch_plus_one = epoch.map_or(0, |epoch| epoch + 1);
        let mut value = FORMAT.to_le_bytes().to_vec();
        value.extend_from_slice(&generation.to_le_bytes());
        value.extend_from_slice(&epoch_plus_one.to_le_bytes());
        let mut options = WriteOptions::default();
        options.set_sync(epoch.is_some());
        self.db.put_opt(b"m", value, &options).map_err(|error| files(&error))?;
        self.epoch = epoch;
        Ok(())
    }

    pub(super) fn root(&self) -> Sum {
        self.tree.root()
    }

    pub(super) fn count(&self) -> u64 {
        self.counts.iter().map(|count| u64::from(*count)).sum()
    }

    /// The epoch whose commitment the copy is.
    pub(super) const fn epoch(&self) -> Option<Epoch> {
        self.epoch
    }

    /// Opens the leaves that a draw asks for.
    pub(super) fn open_draw(
        &self,
        randomness: &Randomness,
        node: NodeId,
        epoch: Epoch,
        chunks: u32,
    ) -> Result<Vec<OpenedDraw>, AuditError> {
        let draw = Draw::new(randomness, node, epoch, self.tree.root().bytes);
        let mut opened = Vec::new();
        for index in 0..chunks {
            let Some((bucket, within)) = draw.position(index).and_then(|position| self.tree.find(position))
            else {
                break;
            };
            let entries: Vec<Entry> = self.bucket(bucket)?.iter().map(|row| self.entry(row)).collect();
            let (leaf, offset) = self.tree.open(bucket, &entries, within).ok_or_else(damaged)?;
            opened.push(OpenedDraw { draw: index, leaf, offset });
        }
        Ok(opened)
    }

    /// The blocks of an agreement above `after`, at most `max`, and whether these are the last.
    pub(super) fn page(
        &self,
        agreement: &AgreementId,
        after: Option<&Digest>,
        max: usize,
    ) -> Result<(Vec<InventoryEntry>, bool), AuditError> {
        let mut page = Vec::new();
        let Some(number) = self.numbers.get(agreement) else { return Ok((page, true)) };
        let first = after.map_or(0, bucket_of);
        for bucket in first..=u16::MAX {
            if self.counts[usize::from(bucket)] == 0 {
                continue;
            }
            for row in self.bucket(bucket)? {
                let is_wanted = row.keepers.contains(number) && after.is_none_or(|after| row.digest > *after);
                if is_wanted && page.len() == max {
                    return Ok((page, false));
                }
                if is_wanted {
                    page.push(InventoryEntry(row.digest, row.len));
                }
            }
        }
        Ok((page, true))
    }
}

fn rows(mut value: &[u8]) -> Option<Vec<Row>> {
    let mut rows = Vec::new();
    while !value.is_empty() {
        let (digest, rest) = value.split_first_chunk::<32>()?;
        let (len, rest) = rest.split_first_chunk::<4>()?;
        let (count, rest) = rest.split_first()?;
        let (numbers, rest) = rest.split_at_checked(2 * usize::from(*count))?;
        let keepers = numbers.as_chunks::<2>().0.iter().map(|number| u16::from_le_bytes(*number)).collect();
        let len = BlockLen::new(u32::from_le_bytes(*len)).ok()?;
        rows.push(Row { digest: Digest(*digest), len, keepers });
        value = rest;
    }
    Some(rows)
}

fn key(table: u8, number: u16) -> [u8; 3] {
    let [high, low] = number.to_be_bytes();
    [table, high, low]
}

fn unsynced() -> WriteOptions {
    WriteOptions::default()
}

fn files(error: &dyn std::fmt::Display) -> AuditError {
    AuditError::Files { detail: error.to_string() }
}

fn damaged() -> AuditError {
    AuditError::Files { detail: "a row of the committed inventory is damaged".into() }
}
