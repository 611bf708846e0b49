//! Opening after a crash: what the extents say beyond the index's checkpoint is applied to it.
//!
//! A group's records are all synced before the first byte of the group after the next is written, all of an extent is
//! synced before the next extent is made, and nothing is answered before its sync. Hence, in the newest extent:
//! - a page that fails its checksum, with no record behind it that proves its group synced, is where one of the last
//!   two groups was torn, neither answered: replay ends there, and the rest of the file is cut off so that its pages
//!   never come back;
//! - a header page may have reached the disk without its data, but only in the last two groups: there, and only
//!   there, data are hashed before their record counts;
//! - a failing page with such a record behind it is damage, not a torn tail: it is stepped over and reported, and what
//!   lies behind it still counts.
//!
//! Extents fill one after another, so ascending ids are the order of history. Records carry ids and
//! sequences, so applying one twice changes nothing.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::engine::{Shared, list_extents};
use super::error::{IndexError, OpenError};
use super::format::{self, PAGE_BYTES, PageFault, RecordPage, Stamp};
use super::identity::{self, FORMAT};
use super::index::rows::{AccountsRow, ExtentRow, MetaRow};
use super::index::{Index, Txn};
use super::types::Replayed;
use super::walk::Walk;
use super::writer::{OpenExtent, Recovered};
use crate::disk::DiskFile;

/// Changed rows after which what was replayed is written to the index.
const ROWS_PER_BATCH: usize = 20_000;
/// Groups that may be on their way to the disk at a time. A record of group `g` proves that all of group `g - 2` was
/// synced.
const GROUPS_UNDER_WAY: u64 = 2;
/// Records between two reports of progress.
const RECORDS_PER_REPORT: u64 = 1_000;

/// Whether the index was made for another store.
pub(crate) fn belongs_elsewhere(index: &Index, store: &[u8; 16]) -> Result<bool, OpenError> {
    let meta = index.view().row(MetaRow::KEY, MetaRow::decode).map_err(index_failed)?;
    Ok(meta.is_some_and(|meta| meta.store != *store))
}

/// Brings the index up to date with the extents and finds where to go on.
pub(crate) fn replay(
    shared: &Shared,
    progress: Option<&(dyn Fn(Replayed) + Send + Sync)>,
) -> Result<Recovered, OpenError> {
    let view = shared.index.view();
    let meta = view.row(MetaRow::KEY, MetaRow::decode).map_err(index_failed)?;
    let accounts = view.row(AccountsRow::KEY, AccountsRow::decode).map_err(index_failed)?;
    let rows = view.extents().map_err(index_failed)?;
    let files = list_extents(&shared.extents)?;
    let newest_file = files.keys().next_back().copied();
    let mut replayer = Replayer {
        shared,
        txn: Txn::new(&shared.index, accounts.unwrap_or_default()),
        meta: MetaRow {
            store: shared.id,
            next_record: meta.map_or(1, |meta| meta.next_record),
            next_group: meta.map_or(1, |meta| meta.next_group),
            newest_extent: meta.map_or(0, |meta| meta.newest_extent).max(newest_file.unwrap_or(0)),
        },
        done: Replayed::default(),
        progress,
    };
    replayer.done.extents = files.len() as u64;
    for (id, path) in &files {
        let row = rows.get(id);
        if !row.is_some_and(|row| row.sealed) {
            let len = std::fs::metadata(path).map_or(0, |found| found.len());
            replayer.done.bytes += len.saturating_sub(row.map_or(0, |row| row.synced));
        }
    }
    let mut open = None;
    for (&id, path) in &files {
        let row = rows.get(&id);
        replayer.done.extents_done += 1;
        if row.is_some_and(|row| row.sealed) {
            continue;
        }
        let newest = Some(id) == newest_file;
        let tail = replayer.extent(id, row, newest, path)?;
        if newest {
            open = tail;
        }
    }
    replayer.bury_missing(&rows, &files)?;
    replayer.tell();
    let Replayer { txn, meta, done, .. } = replayer;
    let records = done.records;
    let accounts = txn.commit(&meta).map_err(index_failed)?;
    *shared.accounts.lock() = accounts;
    if records > 0 {
        tracing::info!(records, "replayed what the index did not know yet");
        shared.index.flush(true).map_err(index_failed)?;
    }
    let MetaRow { next_record, next_group, newest_extent, .. } = meta;
    Ok(Recovered { open, next_record, next_group, newest_extent })
}

struct Replayer<'a> {
    shared: &'a Shared,
    txn: Txn<'a>,
    meta: MetaRow,
    done: Replayed,
    progress: Option<&'a (dyn Fn(Replayed) + Send + Sync)>,
}

/// Records of one group, with the group's number.
type Pending = Vec<(Stamp, RecordPage)>;

impl Replayer<'_> {
    /// Replays one extent; answers its tail if it can be gone on with.
    fn extent(
        &mut self,
        id: u64,
        row: Option<&ExtentRow>,
        newest: bool,
        path: &Path,
    ) -> Result<Option<OpenExtent>, OpenError> {
        let failed = |action| move |source: io::Error| identity::failed(path, action, source);
        let disk = &self.shared.disk;
        let file = disk.open(path, false).map_err(failed("opening"))?;
        if !self.shared.read_only {
            // What this process reads from here on is what the disk holds.
            disk.settle(&file).map_err(failed("syncing"))?;
        }
        let mut walk = Walk::new(self.shared, Arc::clone(&file), id).map_err(failed("reading"))?;
        let start = match row {
            Some(row) => row.synced,
            None => match self.head(id, newest, &mut walk, path)? {
                Some(start) => start,
                None => {
                    // Its creation was interrupted before anything could have been written to it.
                    if self.shared.read_only {
                        return Ok(None);
                    }
                    disk.remove(path).map_err(failed("removing"))?;
                    disk.sync_dir(&self.shared.extents).map_err(failed("syncing"))?;
                    return Ok(None);
                }
            },
        };
        let tail = self.walk(&mut walk, start, newest, path)?;
        if !self.shared.read_only && file.size().map_err(failed("reading"))? > tail {
            disk.truncate(&file, tail).map_err(failed("cutting"))?;
        }
        self.txn
            .change_extent(id, |row| {
                row.synced = tail;
                row.sealed = !newest;
            })
            .map_err(index_failed)?;
        Ok(newest.then(|| self.open_extent(id, file, tail)))
    }

    fn open_extent(&self, id: u64, file: Arc<DiskFile>, tail: u64) -> OpenExtent {
        self.shared.files.lock().put(id, Arc::clone(&file));
        OpenExtent { id, file, tail, allocated: tail }
    }

    /// Checks the head of an extent that the index does not know; `None` when there is nothing in it.
    fn head(
        &mut self,
        id: u64,
        newest: bool,
        walk: &mut Walk<'_>,
        path: &Path,
    ) -> Result<Option<u64>, OpenError> {
        let failed = |source: io::Error| identity::failed(path, "reading", source);
        let page = walk.page(0).map_err(failed)?;
        let fault = match page.map(|page| format::read_head(page, id, &self.shared.secret)) {
            Some(Ok(head)) if head.store == self.shared.id => None,
            Some(Ok(_)) => Some(PageFault::Damaged),
            Some(Err(fault)) => Some(fault),
            None => Some(PageFault::Blank),
        };
        match fault {
            None => {}
            Some(PageFault::Newer) => return Err(newer(path)),
            Some(fault) => {
                if newest && walk.next_record(0, 0).map_err(failed)?.is_none() {
                    return Ok(None);
                }
                tracing::error!(?fault, path = %path.display(), "the extent's head is damaged; reading its records");
            }
        }
        self.txn.apply_head(id).map_err(index_failed)?;
        Ok(Some(PAGE_BYTES))
    }

    /// Applies records from `start` on; answers where the log ends.
    fn walk(&mut self, walk: &mut Walk<'_>, start: u64, newest: bool, path: &Path) -> Result<u64, OpenError> {
        let failed = |source: io::Error| identity::failed(path, "reading", source);
        let mut at = start;
        let mut pending = Pending::new();
        let mut group = self.meta.next_group.saturating_sub(1);
        while let Some(read) = walk.record(at).map_err(failed)? {
            match read {
                Ok((stamp, record)) if stamp.group >= group => {
                    if stamp.group > group {
                        // A later group has begun, so those before the last were synced.
                        self.apply_synced(&mut pending, stamp.group)?;
                    }
                    group = stamp.group;
                    at += record.record_bytes();
                    pending.push((stamp, record));
                }
                Err(PageFault::Newer) => return Err(newer(path)),
                Ok(_) | Err(_) => {
                    let Some((next, at_most)) = walk.next_record(at, group).map_err(failed)? else { break };
                    // In the newest extent the page, of the group at hand or of the next one, is torn unless a record
                    // behind it proves its group synced.
                    let synced = at_most.min(group + 1) + GROUPS_UNDER_WAY;
                    if newest && at_most < synced && walk.next_record(next, synced).map_err(failed)?.is_none()
                    {
                        break;
                    }
                    tracing::error!(path = %path.display(), from = at, to = next, "damage between good records");
                    self.apply_all(&mut pending)?;
                    let extent = self.extent_of(path);
                    self.txn.change_extent(extent, |row| row.garbage += next - at).map_err(index_failed)?;
                    at = next;
                }
            }
        }
        if newest {
            at = self.keep_untorn(walk, &mut pending, at, path)?;
        }
        self.apply_all(&mut pending)?;
        Ok(at)
    }

    fn extent_of(&self, path: &Path) -> u64 {
        path.file_stem()
            .and_then(|stem| stem.to_str())
            .and_then(|stem| u64::from_str_radix(stem, 16).ok())
            .unwrap_or(0)
    }

    /// Of the last groups, keeps the records before the first whose data did not all reach the disk.
    fn keep_untorn(
        &self,
        walk: &Walk<'_>,
        pending: &mut Pending,
        end: u64,
        path: &Path,
    ) -> Result<u64, OpenError> {
        for (index, (stamp, record)) in pending.iter().enumerate() {
            let holds =
                walk.data_holds(stamp, record).map_err(|source| identity::failed(path, "reading", source))?;
            if !holds {
                let torn = stamp.place.offset;
                tracing::warn!(path = %path.display(), at = torn, "the last writes before the stop were torn");
                pending.truncate(index);
                return Ok(torn);
            }
        }
        Ok(end)
    }

    /// Applies what a record of group `seen` proves to be synced.
    fn apply_synced(&mut self, pending: &mut Pending, seen: u64) -> Result<(), OpenError> {
        let synced = pending.partition_point(|(stamp, _)| stamp.group + GROUPS_UNDER_WAY <= seen);
        let later = pending.split_off(synced);
        self.apply_all(pending)?;
        *pending = later;
        Ok(())
    }

    fn apply_all(&mut self, pending: &mut Pending) -> Result<(), OpenError> {
        for (stamp, record) in pending.drain(..) {
            self.txn.apply(&stamp, &record).map_err(index_failed)?;
            let end = stamp.place.offset + record.record_bytes();
            self.txn.change_extent(stamp.place.extent, |row| row.synced = end).map_err(index_failed)?;
            self.meta.next_record = self.meta.next_record.max(stamp.record + 1);
            self.meta.next_group = self.meta.next_group.max(stamp.group + 1);
            self.done.records += 1;
            self.done.bytes_done += record.record_bytes();
            if self.done.records.is_multiple_of(RECORDS_PER_REPORT) {
                self.tell();
            }
        }
        if self.txn.len() >= ROWS_PER_BATCH {
            let txn = std::mem::replace(&mut self.txn, Txn::new(&self.shared.index, AccountsRow::default()));
            self.txn.accounts = txn.commit(&self.meta).map_err(index_failed)?;
        }
        Ok(())
    }

    fn tell(&self) {
        if let Some(progress) = self.progress {
            progress(self.done);
        }
    }

    /// Extents that the index knows and the disk does not: dead ones whose end was interrupted, or losses.
    fn bury_missing(
        &mut self,
        rows: &BTreeMap<u64, ExtentRow>,
        files: &BTreeMap<u64, PathBuf>,
    ) -> Result<(), OpenError> {
        for id in rows.keys().filter(|id| !files.contains_key(id)) {
            let held = self.txn.extent(*id).map_err(index_failed)?.map_or(0, |row| row.held);
            if held == 0 {
                self.txn.bury_extent(*id).map_err(index_failed)?;
            } else {
                tracing::error!(extent = id, held, "an extent file is missing; its blocks cannot be read");
            }
        }
        Ok(())
    }
}

fn newer(path: &Path) -> OpenError {
    OpenError::NewerFormat { dir: path.to_owned(), found: FORMAT + 1, newest: FORMAT }
}

fn index_failed(source: IndexError) -> OpenError {
    OpenError::Index { source }
}
