//! Room in the open extent: growing it, sealing it, beginning the next.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Group, OpenExtent, Writer};
use crate::disk::{Action, PAGE, run_blocking};
use crate::store::error::{IndexError, StoreError};
use crate::store::format::{self, ENTRIES_PER_PAGE, ExtentHead, PAGE_BYTES};

/// Room that blocks leave for small records, so that a full disk can still be told to delete.
pub(super) const SPARE_BYTES: u64 = 256 << 10;

/// Whether what was asked for fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    /// It does.
    Ready,
    /// In the next extent, which needs a group of its own to begin with.
    NextGroup,
    /// The disk is full.
    Full,
}

impl Writer {
    /// Makes room in the open extent for `record_bytes` more of records and `entries` more entries, leaving
    /// `spare` untouched.
    pub(super) fn make_room(
        &mut self,
        group: &mut Group<'_>,
        record_bytes: u64,
        entries: usize,
        spare: u64,
    ) -> Result<Room, StoreError> {
        let pages = (group.entries.len() + entries).div_ceil(ENTRIES_PER_PAGE) as u64;
        let needed = record_bytes + pages * PAGE_BYTES;
        let limit = self.shared.extent_bytes;
        if self.open.is_none() || group.tail + needed > limit {
            if !group.is_empty() {
                return Ok(Room::NextGroup);
            }
            // An extent that is not the newest is synced whole, and its length final.
            self.pipe.wait_idle();
            if let Some(error) = self.failed() {
                return Err(error);
            }
            if spare > 0 && !self.shared.has_room_for(self.shared.preallocate_bytes.min(limit)) {
                self.shared.checks.full.store(true, Ordering::Relaxed);
                return Ok(Room::Full);
            }
            match self.begin_extent() {
                Ok(extent) => self.replace_extent(group, extent)?,
                Err(error) if is_full(&error) => return Ok(Room::Full),
                Err(error) => return Err(self.fail(format!("a new extent: {error}"))),
            }
        }
        let Some(open) = &mut self.open else { return Ok(Room::Full) };
        let wanted = (group.tail + needed + spare).min(limit);
        if wanted <= open.allocated {
            return Ok(Room::Ready);
        }
        let step = wanted.next_multiple_of(self.shared.preallocate_bytes).min(limit);
        for target in [step, wanted] {
            // Blocks stop before the disk is full: what is left is for small records, the index, and others.
            if spare > 0 && !self.shared.has_room_for(target - open.allocated) {
                continue;
            }
            match self.shared.disk.allocate(&open.file, open.allocated, target - open.allocated) {
                Ok(()) => {
                    open.allocated = target;
                    self.shared.checks.full.store(false, Ordering::Relaxed);
                    return Ok(Room::Ready);
                }
                Err(error) if is_full(&error) => {}
                Err(error) => return Err(self.fail(format!("reserving room: {error}"))),
            }
        }
        if spare > 0 {
            self.shared.checks.full.store(true, Ordering::Relaxed);
        }
        // The spare room is there for whoever asks for no more of it.
        Ok(if spare == 0 && group.tail + needed <= open.allocated { Room::Ready } else { Room::Full })
    }

    /// Makes the next extent's file, with its head and its name durable.
    fn begin_extent(&mut self) -> io::Result<OpenExtent> {
        let shared = &self.shared;
        // A new name must not land beneath an empty mount point, or on somebody else's disk.
        shared.presence.check().map_err(|gone| io::Error::other(gone.to_string()))?;
        let id = self.newest_extent + 1;
        let path = shared.path(id);
        let file = shared.disk.open(&path, true)?;
        let made = (|| {
            let allocated = self.reserve_first(&file)?;
            let no_memory = || io::Error::from(io::ErrorKind::OutOfMemory);
            let mut page = shared.write_pool.take_unbounded(PAGE).ok_or_else(no_memory)?;
            let created_ms = shared.clock.now_ms();
            let head = ExtentHead { extent: id, store: shared.id, created_ms, limit: shared.extent_bytes };
            format::write_head(&mut page, &head, &shared.secret);
            run_blocking(&*shared.disk, &file, Action::Write, 0, (Some(page), PAGE)).0?;
            shared.disk.sync(&file)?;
            shared.disk.sync_dir(&shared.extents)?;
            Ok(allocated)
        })();
        match made {
            Ok(allocated) => Ok(OpenExtent { id, file, tail: PAGE_BYTES, allocated }),
            Err(error) => {
                if let Err(error) = shared.disk.remove(&path) {
                    tracing::warn!(%error, path = %path.display(), "an unfinished extent stays behind");
                }
                Err(error)
            }
        }
    }

    fn reserve_first(&self, file: &crate::disk::DiskFile) -> io::Result<u64> {
        let limit = self.shared.extent_bytes;
        let step = self.shared.preallocate_bytes.min(limit).max(PAGE_BYTES);
        match self.shared.disk.allocate(file, 0, step) {
            Err(error) if is_full(&error) && step > SPARE_BYTES => {
                self.shared.disk.allocate(file, 0, SPARE_BYTES).map(|()| SPARE_BYTES)
            }
            other => other.map(|()| step),
        }
    }

    /// Seals the old extent and goes on in `extent`. The group is empty, so all of the old one is synced.
    fn replace_extent(&mut self, group: &mut Group<'_>, extent: OpenExtent) -> Result<(), StoreError> {
        let index_failed = |writer: &Self, error: IndexError| writer.fail(error.to_string());
        if let Some(old) = self.open.take() {
            self.shared
                .disk
                .truncate(&old.file, old.tail)
                .map_err(|error| self.fail(format!("{}: {error}", old.file.path.display())))?;
            group
                .txn
                .change_extent(old.id, |row| row.sealed = true)
                .map_err(|error| index_failed(self, error))?;
        }
        group.txn.apply_head(extent.id).map_err(|error| index_failed(self, error))?;
        group.tail = extent.tail;
        group.index_only = true;
        self.newest_extent = extent.id;
        self.shared.files.lock().put(extent.id, Arc::clone(&extent.file));
        self.open = Some(extent);
        Ok(())
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
    )
}
