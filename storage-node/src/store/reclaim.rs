//! Giving room back: trash that is due ends, holes are punched, dead extents are unlinked.
//!
//! Order matters: rows go before bytes (a reader that finds the row still there after its read has read the
//! block), a dying extent's last words are carried on before its file goes, the index is durable before
//! that, and the file goes before its row (an index never forgets a file that exists).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::{mpsc, oneshot};

use super::command::{Command, Reply};
use super::engine::Shared;
use super::error::{IndexError, StoreError};
use super::format::{Cause, Entry, PAGE_BYTES, Place, RecordPage, Standing};
use super::index::rows::{self, ExtentRow};
use super::types::ReclaimReport;
use super::walk::Walk;

/// Claims that one group ends.
const EXPIRE_PER_GROUP: usize = 256;
/// Holes punched between two reports to the index.
const HOLES_PER_GROUP: usize = 256;
/// Entries that one group carries on.
const CARRY_PER_GROUP: usize = 1024;
/// An extent with more last words than this stays; it costs only its pages of small records.
const CARRY_MAX: usize = 100_000;

/// One pass. Passes exclude each other.
pub(crate) async fn reclaim(
    shared: &Arc<Shared>,
    commands: &mpsc::Sender<Command>,
    now_ms: u64,
) -> Result<ReclaimReport, StoreError> {
    let pass = Pass { shared: Arc::clone(shared), commands: commands.clone() };
    let work = tokio::task::spawn_blocking(move || pass.run(now_ms));
    work.await.map_err(|_| StoreError::Closing)?
}

struct Pass {
    shared: Arc<Shared>,
    commands: mpsc::Sender<Command>,
}

impl Pass {
    fn run(&self, now_ms: u64) -> Result<ReclaimReport, StoreError> {
        let _alone = self.shared.reclaiming.lock();
        let mut report = ReclaimReport::default();
        loop {
            let max = EXPIRE_PER_GROUP;
            let expired = self.ask(|reply| Command::Expire { now_ms, max, reply })?;
            report.claims += expired.claims;
            report.blocks += expired.blocks;
            if expired.claims == 0 {
                break;
            }
        }
        let extents = self.shared.index.view().extents().map_err(|error| failed(&error))?;
        for (extent, row) in extents {
            if row.sealed && row.held == 0 {
                self.end_extent(extent, &row, &mut report)?;
            }
        }
        self.punch(&mut report)?;
        Ok(report)
    }

    fn ask<T>(&self, command: impl FnOnce(Reply<Result<T, StoreError>>) -> Command) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.commands.blocking_send(command(reply)).map_err(|_| StoreError::Closing)?;
        answer.blocking_recv().map_err(|_| StoreError::Closing)?
    }

    fn end_extent(&self, extent: u64, row: &ExtentRow, report: &mut ReclaimReport) -> Result<(), StoreError> {
        let Some(last_words) = self.last_words(extent, row)? else { return Ok(()) };
        for entries in last_words.chunks(CARRY_PER_GROUP) {
            let entries = entries.to_vec();
            report.carried += self.ask(|reply| Command::Carry { entries, reply })?;
        }
        self.ask(|reply| Command::Flush { reply })?;
        self.shared.punched.fetch_add(1, Ordering::AcqRel);
        self.shared.files.lock().pop(&extent);
        let path = self.shared.path(extent);
        let removed = match self.shared.disk.remove(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            other => other,
        };
        if let Err(error) = removed.and_then(|()| self.shared.disk.sync_dir(&self.shared.extents)) {
            tracing::warn!(%error, path = %path.display(), "a dead extent could not be unlinked; trying again later");
            return Ok(());
        }
        self.ask(|reply| Command::Bury { extent, reply })?;
        report.extents += 1;
        Ok(())
    }

    /// The entries in a dying extent that are still the newest word on something that is held; `None` when
    /// carrying them on would not pay.
    fn last_words(&self, extent: u64, row: &ExtentRow) -> Result<Option<Vec<Entry>>, StoreError> {
        let unreadable = |error: std::io::Error| {
            tracing::warn!(%error, extent, "a dead extent could not be read; it stays");
            None::<Vec<Entry>>
        };
        let mut words = Vec::new();
        let opened = self.shared.file(extent).and_then(|file| Walk::new(&self.shared, file, extent));
        let mut walk = match opened {
            Ok(walk) => walk,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Some(words)),
            Err(error) => return Ok(unreadable(error)),
        };
        let mut at = PAGE_BYTES;
        while at < row.synced.min(walk.size()) {
            match walk.record(at) {
                Err(error) => return Ok(unreadable(error)),
                Ok(Some(Ok((_, record)))) => {
                    at += record.record_bytes();
                    let RecordPage::Entries(entries) = record else { continue };
                    for entry in entries {
                        if self.still_counts(&entry, extent).map_err(|error| failed(&error))? {
                            words.push(entry);
                        }
                    }
                    if words.len() > CARRY_MAX {
                        return Ok(None);
                    }
                }
                // Damage: what is behind it is found page by page.
                Ok(_) => at += PAGE_BYTES,
            }
        }
        // Carrying on must give back more than it takes.
        let pages = words.len().div_ceil(super::format::ENTRIES_PER_PAGE) as u64;
        Ok((pages * PAGE_BYTES * 2 <= row.garbage.max(2 * PAGE_BYTES)).then_some(words))
    }

    fn still_counts(&self, entry: &Entry, dying: u64) -> Result<bool, IndexError> {
        let view = self.shared.index.view();
        match entry {
            Entry::Claim(claim) => {
                let key = rows::ClaimKey::of(claim).row();
                let newest = view.row(&key, |value| rows::decode_claim(&key, value))?;
                if claim.standing == Standing::Gone {
                    // Without the word of its end, a rebuild would bring the claim back by an older one that lives
                    // with the block: its header page, or a commit in an extent that stays.
                    let block = view.block(&claim.digest)?;
                    return Ok(newest.is_none() && block.is_some_and(|block| block.record == claim.target));
                }
                Ok(newest.is_some_and(|newest| newest.sequence == claim.sequence))
            }
            Entry::Tombstone(tombstone) => {
                if tombstone.cause == Cause::Lost {
                    let lost = view.row(&rows::lost_key(&tombstone.digest), rows::LostRow::decode)?;
                    if lost.is_some_and(|lost| lost.sequence == tombstone.sequence) {
                        return Ok(true);
                    }
                }
                let target = tombstone.place.extent;
                Ok(target != dying && view.get(&ExtentRow::key(target))?.is_some())
            }
        }
    }

    fn punch(&self, report: &mut ReclaimReport) -> Result<(), StoreError> {
        loop {
            let rows =
                self.shared.index.view().scan(b"p", HOLES_PER_GROUP).map_err(|error| failed(&error))?;
            let holes: Vec<(Place, u64)> = rows
                .iter()
                .filter_map(|(key, value)| Some((rows::decode_hole_key(key)?, rows::decode_number(value)?)))
                .collect();
            if holes.is_empty() {
                return Ok(());
            }
            self.shared.punched.fetch_add(1, Ordering::AcqRel);
            let mut done = Vec::with_capacity(holes.len());
            for (hole, bytes) in &holes {
                let punched = self
                    .shared
                    .file(hole.extent)
                    .and_then(|file| self.shared.disk.punch(&file, hole.offset, *bytes));
                match punched {
                    Ok(()) => done.push(*hole),
                    // No such file: no such bytes.
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => done.push(*hole),
                    Err(error) => {
                        tracing::warn!(%error, extent = hole.extent, "punching failed; trying again later");
                        return self.report_punched(done, report);
                    }
                }
            }
            self.report_punched(done, report)?;
        }
    }

    fn report_punched(&self, holes: Vec<Place>, report: &mut ReclaimReport) -> Result<(), StoreError> {
        report.punched_bytes += self.ask(|reply| Command::Punched { holes, reply })?;
        Ok(())
    }
}

fn failed(error: &IndexError) -> StoreError {
    StoreError::Failed { detail: error.to_string() }
}
