//! A group's changes to the index, seen by the group itself and written in one batch once its records are
//! synced.
//!
//! Every change is the application of something that is on disk as a record: a put and its replay run the
//! same lines. Applying is idempotent, by record ids and sequences.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use holdfast_protocol::digest::Digest;
use holdfast_protocol::record::AgreementId;
use rocksdb::WriteBatch;

use super::rows::{self, AccountsRow, BlockRow, ClaimKey, ExtentRow, LostRow, MetaRow, OrderRow};
use super::{Index, Row, bad_row, bucket_of};
use crate::store::error::IndexError;
use crate::store::format::{
    BlockPage, Cause, ClaimEntry, Entry, OrderPage, PAGE_BYTES, Place, RecordPage, Stamp, Standing,
    Tombstone, record_bytes,
};

/// Changed rows by key; `None` deletes.
pub(crate) type Changes = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

/// Changes over an index.
pub(crate) struct Txn<'a> {
    index: &'a Index,
    /// Changes of the group before, which may not be in the index yet.
    below: Option<Arc<Changes>>,
    changed: Changes,
    /// Buckets of the inventory whose entries may have changed.
    buckets: BTreeSet<u16>,
    pub(crate) accounts: AccountsRow,
}

/// All changes of a group, decided but not in the index yet.
pub(crate) struct Sealed {
    pub(crate) changes: Arc<Changes>,
    buckets: BTreeSet<u16>,
    pub(crate) accounts: AccountsRow,
}

impl Index {
    /// Writes a group's changes at once.
    pub(crate) fn apply(&self, sealed: &Sealed) -> Result<(), IndexError> {
        if self.keep_in_memory(&sealed.changes) {
            return Ok(());
        }
        let mut batch = WriteBatch::default();
        for (key, value) in &*sealed.changes {
            match value {
                Some(value) => batch.put(key, value),
                None => batch.delete(key),
            }
        }
        self.write_marking(batch, &sealed.buckets)
    }
}

impl<'a> Txn<'a> {
    pub(crate) fn new(index: &'a Index, accounts: AccountsRow) -> Self {
        Self::over(index, None, accounts)
    }

    /// Changes over an index to which `below` may still have to be applied.
    pub(crate) fn over(index: &'a Index, below: Option<Arc<Changes>>, accounts: AccountsRow) -> Self {
        Self { index, below, changed: BTreeMap::new(), buckets: BTreeSet::new(), accounts }
    }

    /// Rows changed so far.
    pub(crate) fn len(&self) -> usize {
        self.changed.len()
    }

    /// Writes all changes at once; returns the accounts as they are then.
    pub(crate) fn commit(self, meta: &MetaRow) -> Result<AccountsRow, IndexError> {
        let index = self.index;
        let sealed = self.seal(meta);
        index.apply(&sealed)?;
        Ok(sealed.accounts)
    }

    /// Ends the collecting of changes; [`Index::apply`] writes them.
    pub(crate) fn seal(mut self, meta: &MetaRow) -> Sealed {
        self.put(MetaRow::KEY.to_vec(), meta.encode());
        self.put(AccountsRow::KEY.to_vec(), self.accounts.encode());
        Sealed { changes: Arc::new(self.changed), buckets: self.buckets, accounts: self.accounts }
    }

    fn row<T>(&self, key: &[u8], decode: impl FnOnce(&[u8]) -> Option<T>) -> Result<Option<T>, IndexError> {
        let before = || self.below.as_ref().and_then(|below| below.get(key));
        let value = match self.changed.get(key).or_else(before) {
            Some(changed) => changed.clone(),
            None => self.index.view().get(key)?,
        };
        value.map(|value| decode(&value).ok_or_else(|| bad_row(key))).transpose()
    }

    /// Rows of a prefix as this transaction sees them.
    pub(crate) fn scan(&self, prefix: &[u8], max: usize) -> Result<Vec<Row>, IndexError> {
        let layers = || self.below.as_deref().into_iter().chain([&self.changed]);
        let pending: usize = layers().map(BTreeMap::len).sum();
        let stored = self.index.view().scan(prefix, max.saturating_add(pending))?;
        let mut merged: BTreeMap<Vec<u8>, Vec<u8>> = stored.into_iter().collect();
        for layer in layers() {
            let later = layer.range(prefix.to_vec()..).take_while(|(key, _)| key.starts_with(prefix));
            for (key, value) in later {
                match value {
                    Some(value) => merged.insert(key.clone(), value.clone()),
                    None => merged.remove(key),
                };
            }
        }
        Ok(merged.into_iter().take(max).collect())
    }

    fn put(&mut self, key: Vec<u8>, value: Vec<u8>) {
        self.changed.insert(key, Some(value));
    }

    fn delete(&mut self, key: Vec<u8>) {
        self.changed.insert(key, None);
    }

    pub(crate) fn block(&self, digest: &Digest) -> Result<Option<BlockRow>, IndexError> {
        self.row(&BlockRow::key(digest), BlockRow::decode)
    }

    pub(crate) fn claim(&self, key: &ClaimKey) -> Result<Option<ClaimEntry>, IndexError> {
        let row = key.row();
        self.row(&row, |value| rows::decode_claim(&row, value))
    }

    /// All claims on a block.
    pub(crate) fn claims(&self, digest: &Digest) -> Result<Vec<ClaimEntry>, IndexError> {
        let rows = self.scan(&ClaimKey::rows_of(digest), usize::MAX)?;
        rows.iter().map(|(key, value)| rows::decode_claim(key, value).ok_or_else(|| bad_row(key))).collect()
    }

    /// A claim of the same agreement that keeps the same block: provisional or live, not in trash.
    pub(crate) fn sibling(
        &self,
        digest: &Digest,
        agreement: &AgreementId,
    ) -> Result<Option<ClaimEntry>, IndexError> {
        for (key, value) in self.scan(&ClaimKey::rows_of_agreement(digest, agreement), usize::MAX)? {
            let claim = rows::decode_claim(&key, &value).ok_or_else(|| bad_row(&key))?;
            if matches!(claim.standing, Standing::Provisional | Standing::Live) {
                return Ok(Some(claim));
            }
        }
        Ok(None)
    }

    /// The sequence of a declared loss.
    pub(crate) fn lost(&self, digest: &Digest) -> Result<Option<u64>, IndexError> {
        Ok(self.row(&rows::lost_key(digest), LostRow::decode)?.map(|lost| lost.sequence))
    }

    fn put_lost(&mut self, tombstone: &Tombstone) {
        let row = LostRow {
            sequence: tombstone.sequence,
            declared_ms: tombstone.changed_ms,
            len: u64::from(tombstone.len),
        };
        self.put(rows::lost_key(&tombstone.digest), row.encode());
    }

    pub(crate) fn extent(&self, extent: u64) -> Result<Option<ExtentRow>, IndexError> {
        self.row(&ExtentRow::key(extent), ExtentRow::decode)
    }

    /// Changes an extent's row. A missing one begins empty.
    pub(crate) fn change_extent(
        &mut self,
        extent: u64,
        change: impl FnOnce(&mut ExtentRow),
    ) -> Result<(), IndexError> {
        let mut row = self.extent(extent)?.unwrap_or_default();
        let before = row.garbage;
        change(&mut row);
        // The store's garbage is the sum of its extents'.
        self.accounts.garbage = (self.accounts.garbage + row.garbage).saturating_sub(before);
        self.put(ExtentRow::key(extent), row.encode());
        Ok(())
    }

    /// Applies a record as its page describes it.
    pub(crate) fn apply(&mut self, stamp: &Stamp, record: &RecordPage) -> Result<(), IndexError> {
        match record {
            RecordPage::Block(page) => self.apply_block(stamp, page),
            RecordPage::Order(page) => self.apply_order(stamp, page),
            RecordPage::Entries(entries) => {
                self.apply_entries_page(stamp.place.extent)?;
                entries.iter().try_for_each(|entry| self.apply_entry(entry))
            }
        }
    }

    /// The head page of a new extent.
    pub(crate) fn apply_head(&mut self, extent: u64) -> Result<(), IndexError> {
        self.change_extent(extent, |row| {
            row.garbage += PAGE_BYTES;
            row.synced = PAGE_BYTES;
        })
    }

    /// The room that one page of entries takes.
    pub(crate) fn apply_entries_page(&mut self, extent: u64) -> Result<(), IndexError> {
        self.change_extent(extent, |row| row.garbage += PAGE_BYTES)
    }

    pub(crate) fn apply_entry(&mut self, entry: &Entry) -> Result<(), IndexError> {
        match entry {
            Entry::Claim(claim) => self.apply_claim(claim),
            Entry::Tombstone(tombstone) => self.apply_tombstone(tombstone),
        }
    }

    pub(crate) fn apply_block(&mut self, stamp: &Stamp, page: &BlockPage) -> Result<(), IndexError> {
        match self.block(&page.digest)? {
            // The tombstone between the two is damaged, or was carried to behind the second when its extent
            // died: a second record is written only once the first has ended.
            Some(held) if held.record < stamp.record => self.end_block(&page.digest, held)?,
            Some(held) if held.record > stamp.record => {
                let extent = stamp.place.extent;
                self.change_extent(extent, |row| row.garbage += record_bytes(page.len.bytes()))?;
                self.add_hole(stamp.place, page.len.bytes());
                return Ok(());
            }
            Some(_) => return Ok(()),
            None => {}
        }
        let row = BlockRow {
            place: stamp.place,
            record: stamp.record,
            len: page.len.bytes(),
            provisional: 0,
            live: 0,
            trash: 0,
        };
        self.set_block(&page.digest, None, Some(row));
        self.change_extent(stamp.place.extent, |extent| extent.held += 1)?;
        self.delete(rows::lost_key(&page.digest));
        self.apply_claim(&page.claim)
    }

    pub(crate) fn apply_order(&mut self, stamp: &Stamp, page: &OrderPage) -> Result<(), IndexError> {
        let key = OrderRow::key(&page.agreement, stamp.record);
        if self.row(&key, OrderRow::decode)?.is_some() {
            return Ok(());
        }
        let row = OrderRow { place: stamp.place, kept_ms: stamp.written_ms, len: page.len };
        self.put(key, row.encode());
        self.change_extent(stamp.place.extent, |extent| {
            extent.held += 1;
            extent.garbage += record_bytes(page.len);
        })
    }

    pub(crate) fn apply_claim(&mut self, entry: &ClaimEntry) -> Result<(), IndexError> {
        let Some(before) = self.block(&entry.digest)?.filter(|block| block.record == entry.target) else {
            // About a record that is gone, or not this one.
            return Ok(());
        };
        let key = ClaimKey::of(entry);
        let old = self.claim(&key)?;
        if old.is_some_and(|old| old.sequence >= entry.sequence) {
            return Ok(());
        }
        let mut after = before;
        if let Some(old) = &old {
            self.forget_standing(&key, old, &mut after)?;
        }
        if let Some(count) = after.count_mut(entry.standing) {
            *count += 1;
        }
        match entry.standing {
            Standing::Provisional => self.put(key.timed(b'l', entry.lease_until_ms), Vec::new()),
            Standing::Trash => self.put(key.timed(b't', entry.changed_ms), Vec::new()),
            Standing::Live | Standing::Gone => {}
        }
        if matches!(entry.standing, Standing::Provisional | Standing::Live) {
            self.change_usage(&entry.agreement, before.len)?;
        }
        match entry.standing {
            Standing::Gone => self.delete(key.row()),
            _ => self.put(key.row(), rows::encode_claim(entry)),
        }
        self.set_block(&entry.digest, Some(before), Some(after));
        Ok(())
    }

    fn forget_standing(
        &mut self,
        key: &ClaimKey,
        old: &ClaimEntry,
        block: &mut BlockRow,
    ) -> Result<(), IndexError> {
        if let Some(count) = block.count_mut(old.standing) {
            *count = count.saturating_sub(1);
        }
        match old.standing {
            Standing::Provisional => self.delete(key.timed(b'l', old.lease_until_ms)),
            Standing::Trash => self.delete(key.timed(b't', old.changed_ms)),
            Standing::Live | Standing::Gone => {}
        }
        if matches!(old.standing, Standing::Provisional | Standing::Live) {
            let usage_key = rows::usage_key(&old.agreement);
            let mut usage = self.row(&usage_key, rows::decode_usage)?.unwrap_or_default();
            usage.claims = usage.claims.saturating_sub(1);
            usage.bytes = usage.bytes.saturating_sub(u64::from(block.len));
            usage.page_bytes = usage.page_bytes.saturating_sub(record_bytes(block.len));
            self.put(usage_key, rows::encode_usage(&usage));
        }
        Ok(())
    }

    /// One more claim of the agreement on a block of `len` bytes.
    fn change_usage(&mut self, agreement: &AgreementId, len: u32) -> Result<(), IndexError> {
        let key = rows::usage_key(agreement);
        let mut usage = self.row(&key, rows::decode_usage)?.unwrap_or_default();
        usage.claims += 1;
        usage.bytes += u64::from(len);
        usage.page_bytes += record_bytes(len);
        self.put(key, rows::encode_usage(&usage));
        Ok(())
    }

    pub(crate) fn apply_tombstone(&mut self, tombstone: &Tombstone) -> Result<(), IndexError> {
        if let Cause::OrderDropped(agreement) = tombstone.cause {
            let key = OrderRow::key(&agreement, tombstone.target);
            if self.row(&key, OrderRow::decode)?.is_some() {
                self.delete(key);
                self.change_extent(tombstone.place.extent, |row| row.held = row.held.saturating_sub(1))?;
                self.add_hole(tombstone.place, tombstone.len);
            }
            return Ok(());
        }
        let held = self.block(&tombstone.digest)?;
        let Some(block) = held.filter(|block| block.record == tombstone.target) else {
            if tombstone.cause == Cause::Lost && held.is_none() {
                // Told again, from an extent that lives on.
                self.put_lost(tombstone);
            }
            return Ok(());
        };
        self.end_block(&tombstone.digest, block)?;
        if tombstone.cause == Cause::Lost {
            self.put_lost(tombstone);
        }
        Ok(())
    }

    /// Ends a held record with all its claims; its data are a hole to punch.
    fn end_block(&mut self, digest: &Digest, block: BlockRow) -> Result<(), IndexError> {
        let mut last = block;
        for (key, value) in self.scan(&ClaimKey::rows_of(digest), usize::MAX)? {
            let claim = rows::decode_claim(&key, &value).ok_or_else(|| bad_row(&key))?;
            self.forget_standing(&ClaimKey::of(&claim), &claim, &mut last)?;
            self.delete(key);
        }
        self.set_block(digest, Some(block), None);
        self.change_extent(block.place.extent, |row| {
            row.held = row.held.saturating_sub(1);
            row.garbage += record_bytes(block.len);
        })?;
        self.add_hole(block.place, block.len);
        Ok(())
    }

    /// The data pages of the record at `place` are to be punched; its header page stays.
    fn add_hole(&mut self, place: Place, len: u32) {
        let hole = Place { offset: place.offset + PAGE_BYTES, ..place };
        let bytes = record_bytes(len) - PAGE_BYTES;
        self.put(rows::hole_key(hole), bytes.to_le_bytes().to_vec());
    }

    /// A hole that was punched.
    pub(crate) fn close_hole(&mut self, hole: Place) -> Result<u64, IndexError> {
        let key = rows::hole_key(hole);
        let Some(bytes) = self.row(&key, rows::decode_number)? else { return Ok(0) };
        self.delete(key);
        self.change_extent(hole.extent, |row| row.garbage = row.garbage.saturating_sub(bytes))?;
        Ok(bytes)
    }

    /// An extent whose file is gone.
    pub(crate) fn bury_extent(&mut self, extent: u64) -> Result<(), IndexError> {
        for (key, _) in self.scan(&rows::holes_of(extent), usize::MAX)? {
            self.delete(key);
        }
        self.change_extent(extent, |row| row.garbage = 0)?;
        self.delete(ExtentRow::key(extent));
        Ok(())
    }

    /// Replaces a block's row and moves its pages between the accounts.
    fn set_block(&mut self, digest: &Digest, before: Option<BlockRow>, after: Option<BlockRow>) {
        self.buckets.insert(bucket_of(digest));
        let accounts = &mut self.accounts;
        if let Some(row) = before {
            let share = Share::of(&row);
            accounts.used = accounts.used.saturating_sub(share.used);
            accounts.trash = accounts.trash.saturating_sub(share.trash);
            accounts.paid = accounts.paid.saturating_sub(share.paid);
            accounts.blocks = accounts.blocks.saturating_sub(share.blocks);
            accounts.claims = accounts.claims.saturating_sub(share.claims);
        }
        if let Some(row) = after {
            let share = Share::of(&row);
            accounts.used += share.used;
            accounts.trash += share.trash;
            accounts.paid += share.paid;
            accounts.blocks += share.blocks;
            accounts.claims += share.claims;
        }
        match after {
            Some(row) => self.put(BlockRow::key(digest), row.encode()),
            None => self.delete(BlockRow::key(digest)),
        }
    }
}

/// What one block adds to the accounts.
struct Share {
    used: u64,
    trash: u64,
    paid: u64,
    blocks: u64,
    claims: u64,
}

impl Share {
    fn of(row: &BlockRow) -> Self {
        let pages = record_bytes(row.len);
        let kept = row.kept();
        Self {
            used: if kept { pages } else { 0 },
            trash: if kept { 0 } else { pages },
            paid: if row.live > 0 { u64::from(row.len) } else { 0 },
            blocks: u64::from(kept),
            claims: u64::from(row.provisional) + u64::from(row.live),
        }
    }
}
