//! The scrub: every held block is read and hashed once per period, in the order of the disk, whenever readers leave
//! room for it.
//!
//! It walks the extents record by record. A block with wrong bytes is declared lost at once, an unreadable one when it
//! is still unreadable later, a block whose header page alone is bad is written again. Pages that are no record hide
//! which blocks they belonged to: those are found by one pass over the index behind the extent. When more fails than a
//! disk loses by itself, the scrub stops and says so instead of declaring it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use holdfast_protocol::digest::Digest;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use super::command::{Command, Reply, Rewritten};
use super::engine::Shared;
use super::error::{ReadError, StoreError};
use super::format::{PAGE_BYTES, Place, RecordPage, record_bytes};
use super::index::rows::{BlockRow, ExtentRow};
use super::types::{Accounts, BlockBuffer};
use super::verify::{Look, tree_of};
use crate::disk::PAGE;

pub mod pace;

/// Small records passed in one step.
const PAGES_PER_STEP: usize = 64;
/// Bytes searched for the next record in one step.
const SEARCH_BYTES: u64 = 1 << 20;
/// Index rows looked at in one step of the search for blocks behind damaged pages.
const ROWS_PER_STEP: usize = 4_096;
/// Stretches of damage remembered per extent; further ones are merged into the last.
const GAPS_MAX: usize = 256;
/// Unreadable blocks waiting for their second look.
const SUSPECTS_MAX: usize = 1_024;
/// How long an unreadable block waits for it: a cable or a controller may come back.
const SUSPECT_WAIT_MS: u64 = 10 * 60 * 1000;
/// Blocks that may fail in one pass before the scrub stops and calls for a person.
pub const FAILED_PER_PASS_MAX: u64 = 1_000;
/// The cursor is written down after this many bytes; a restart repeats at most as much.
const SAVE_BYTES: u64 = 256 << 20;
/// A cursor file is a line of JSON; more is something else.
const FILE_LEN_MAX: u64 = 4_096;
const FORMAT: u32 = 1;

/// How far the scrub of a disk is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ScrubProgress {
    /// Which pass this is, from 1.
    pub pass: u64,
    /// When it began.
    pub began_ms: u64,
    /// Blocks verified in it.
    pub verified_blocks: u64,
    /// Their bytes on disk.
    pub verified_bytes: u64,
    /// Bytes on disk of all blocks, those in trash too.
    pub total_bytes: u64,
    /// In which time a pass is meant to go over everything; 0 when the scrub is off.
    pub period_ms: u64,
    /// Blocks of this pass that were declared lost.
    pub lost: u64,
    /// Blocks of this pass that were written again because their header page was bad.
    pub rewritten: u64,
    /// Unreadable blocks waiting for their second look.
    pub suspects: u64,
    /// When the last whole pass ended; 0 before there was one.
    pub last_ended_ms: u64,
}

/// What one step did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScrubStep {
    /// Blocks found good.
    pub verified: u64,
    /// Bytes read for them.
    pub bytes: u64,
    /// Blocks declared lost.
    pub lost: Vec<Digest>,
    /// Blocks written again.
    pub rewritten: u64,
    /// Whether this step ended a pass.
    pub ended: bool,
}

/// What is kept in `scrub.json` between starts.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
struct Saved {
    format: u32,
    pass: u64,
    began_ms: u64,
    extent: u64,
    offset: u64,
    verified_blocks: u64,
    verified_bytes: u64,
    lost: u64,
    rewritten: u64,
    last_ended_ms: u64,
}

/// Pages of an extent that are no records.
#[derive(Clone, Copy, Debug)]
struct Gap {
    from: u64,
    to: u64,
}

/// A search of the index for blocks whose pages lie in gaps.
struct Search {
    extent: u64,
    gaps: Vec<Gap>,
    after: Option<Digest>,
}

#[derive(Clone, Copy)]
struct Suspect {
    digest: Digest,
    record: u64,
    since_ms: u64,
}

#[derive(Default)]
struct Inner {
    saved: Saved,
    unsaved_bytes: u64,
    gaps: Vec<Gap>,
    search: Option<Search>,
    suspects: Vec<Suspect>,
    failed: u64,
    stopped: bool,
}

/// Where the scrub is.
pub(crate) struct ScrubState {
    path: PathBuf,
    inner: Mutex<Inner>,
    /// Held by the step that runs.
    stepping: tokio::sync::Mutex<()>,
}

impl ScrubState {
    /// Takes up the cursor of an earlier run; without one, a pass begins.
    pub(crate) fn load(dir: &Path) -> Self {
        let path = dir.join("scrub.json");
        let small = std::fs::metadata(&path).is_ok_and(|found| found.len() <= FILE_LEN_MAX);
        let text = if small { std::fs::read(&path).unwrap_or_default() } else { Vec::new() };
        let saved = serde_json::from_slice::<Saved>(&text).ok().filter(|saved| saved.format == FORMAT);
        let inner = Inner { saved: saved.unwrap_or_default(), ..Inner::default() };
        Self { path, inner: Mutex::new(inner), stepping: tokio::sync::Mutex::new(()) }
    }

    pub(crate) fn progress(&self, accounts: Accounts, period_ms: u64) -> ScrubProgress {
        let inner = self.inner.lock();
        let saved = inner.saved;
        ScrubProgress {
            pass: saved.pass,
            began_ms: saved.began_ms,
            verified_blocks: saved.verified_blocks,
            verified_bytes: saved.verified_bytes,
            total_bytes: accounts.used_bytes + accounts.trash_bytes,
            period_ms,
            lost: saved.lost,
            rewritten: saved.rewritten,
            suspects: inner.suspects.len() as u64,
            last_ended_ms: saved.last_ended_ms,
        }
    }

    /// How many blocks failed when the scrub stopped, if it did.
    pub(crate) fn stopped(&self) -> Option<u64> {
        let inner = self.inner.lock();
        inner.stopped.then_some(inner.failed)
    }

    /// Written beside and renamed; not synced, because losing it costs only a repeated stretch.
    fn save(&self) {
        let saved = self.inner.lock().saved;
        let text = serde_json::to_vec(&saved).unwrap_or_default();
        let beside = self.path.with_extension("partial");
        let written = std::fs::write(&beside, text).and_then(|()| std::fs::rename(&beside, &self.path));
        if let Err(error) = written {
            tracing::debug!(%error, "the scrub's cursor was not written");
        }
    }
}

/// The scrub of one store.
pub(crate) struct Scrub {
    pub(crate) shared: Arc<Shared>,
    pub(crate) commands: mpsc::Sender<Command>,
    pub(crate) now_ms: u64,
}

impl Scrub {
    /// One step: a block, a few small records, or a piece of a search.
    pub(crate) async fn step(&self) -> Result<ScrubStep, ReadError> {
        let state = &self.shared.scrub;
        let _alone = state.stepping.lock().await;
        if !self.shared.look_for_presence() {
            return Err(ReadError::Away { dir: self.shared.dir.clone() });
        }
        if state.inner.lock().stopped {
            return Ok(ScrubStep::default());
        }
        if let Some(suspect) = self.due_suspect() {
            return self.look_again(suspect).await;
        }
        let search = state.inner.lock().search.take();
        if let Some(search) = search {
            return self.search(search).await;
        }
        self.walk().await
    }

    async fn walk(&self) -> Result<ScrubStep, ReadError> {
        let state = &self.shared.scrub;
        let mut step = ScrubStep::default();
        for _page in 0..PAGES_PER_STEP {
            let (extent, offset) = self.cursor();
            let found = self.shared.lookup(move |view| view.extent_from(extent)).await?;
            let Some((id, row)) = found else {
                self.end_pass();
                step.ended = true;
                return Ok(step);
            };
            let offset = if id == extent { offset.max(PAGE_BYTES) } else { PAGE_BYTES };
            if offset >= row.synced {
                self.end_extent(id);
                continue;
            }
            self.move_to(id, offset);
            let place = Place { extent: id, offset };
            match self.shared.page_at(place).await {
                Ok(Ok((stamp, record))) => {
                    self.move_to(id, offset + record.record_bytes());
                    let RecordPage::Block(block) = record else { continue };
                    let digest = block.digest;
                    let held = self.shared.lookup(move |view| view.block(&digest)).await?;
                    let Some(held) = held.filter(|held| held.record == stamp.record) else { continue };
                    self.judge(digest, held, &mut step).await?;
                    return Ok(step);
                }
                Ok(Err(_)) => return self.skip_damage(place, &row).await.map(|()| step),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    let now = self.shared.lookup(move |view| view.extent_from(id)).await?;
                    // A dead one may have gone meanwhile.
                    if now.is_some_and(|(now, _)| now == id) {
                        tracing::error!(extent = id, "an extent file is missing");
                        self.add_gap(Gap { from: 0, to: row.synced });
                    }
                    self.move_to(id, row.synced);
                }
                Err(error) => {
                    self.shared.note_read_error(place, &error);
                    if !self.shared.look_for_presence() {
                        return Err(ReadError::Away { dir: self.shared.dir.clone() });
                    }
                    self.add_gap(Gap { from: offset, to: offset + PAGE_BYTES });
                    self.move_to(id, offset + PAGE_BYTES);
                    return Ok(step);
                }
            }
        }
        state.save();
        Ok(step)
    }

    /// Steps over pages that are no record, to the next that is one.
    async fn skip_damage(&self, place: Place, row: &ExtentRow) -> Result<(), ReadError> {
        let from = place.offset + PAGE_BYTES;
        let span = SEARCH_BYTES.min(row.synced.saturating_sub(from));
        let found = match span {
            0 => None,
            span => self.shared.page_within(Place { offset: from, ..place }, span).await.ok().flatten(),
        };
        let to = found.unwrap_or(from + span);
        tracing::error!(extent = place.extent, from = place.offset, to, "pages that are no record");
        self.add_gap(Gap { from: place.offset, to });
        self.move_to(place.extent, to);
        Ok(())
    }

    /// Looks at a held block and draws the consequences.
    async fn judge(&self, digest: Digest, held: BlockRow, step: &mut ScrubStep) -> Result<(), ReadError> {
        step.bytes += record_bytes(held.len);
        match self.shared.look_at(&digest, &held).await? {
            Look::Good => {
                step.verified += 1;
                let mut inner = self.shared.scrub.inner.lock();
                inner.saved.verified_blocks += 1;
                inner.saved.verified_bytes += record_bytes(held.len);
                inner.unsaved_bytes += record_bytes(held.len);
                let due = inner.unsaved_bytes >= SAVE_BYTES;
                if due {
                    inner.unsaved_bytes = 0;
                }
                drop(inner);
                if due {
                    self.shared.scrub.save();
                }
            }
            Look::BadHeader(buffer) => self.write_again(digest, held.record, buffer, step).await,
            Look::WrongBytes => self.lose(digest, held.record, step).await,
            Look::Unreadable(error) => {
                self.shared.note_read_error(held.place, &error);
                if !self.shared.look_for_presence() {
                    return Err(ReadError::Away { dir: self.shared.dir.clone() });
                }
                self.suspect(digest, held.record);
            }
            Look::Ended => {}
        }
        Ok(())
    }

    async fn write_again(&self, digest: Digest, record: u64, buffer: BlockBuffer, step: &mut ScrubStep) {
        let tree = tree_of(buffer.data());
        let block = Box::new(Rewritten { digest, tree, buffer });
        match self.ask(|reply| Command::Rewrite { block, record, reply }).await {
            Ok(Ok(Some(_))) => {
                tracing::warn!(%digest, "the header page of a block was bad; the block is written again");
                step.rewritten += 1;
                self.shared.scrub.inner.lock().saved.rewritten += 1;
            }
            Ok(Ok(None)) => {}
            Ok(Err(error)) => {
                tracing::warn!(%digest, %error, "a block with a bad header page was not written again")
            }
            Err(error) => tracing::debug!(%error, "the store closed under the scrub"),
        }
    }

    async fn lose(&self, digest: Digest, record: u64, step: &mut ScrubStep) {
        {
            let mut inner = self.shared.scrub.inner.lock();
            inner.failed += 1;
            if inner.failed > FAILED_PER_PASS_MAX {
                if !inner.stopped {
                    tracing::error!(
                        failed = inner.failed,
                        "more blocks fail than a disk loses by itself; the scrub stops"
                    );
                }
                inner.stopped = true;
                return;
            }
        }
        let record = Some(record);
        match self.ask(|reply| Command::DeclareLost { digest, record, reply }).await {
            Ok(Ok(true)) => {
                tracing::error!(%digest, "the disk has lost a block; the loss is declared");
                self.shared.scrub.inner.lock().saved.lost += 1;
                step.lost.push(digest);
            }
            Ok(Ok(false)) => {}
            Ok(Err(error)) => {
                tracing::warn!(%digest, %error, "a lost block was not declared; the next pass will")
            }
            Err(error) => tracing::debug!(%error, "the store closed under the scrub"),
        }
    }

    fn suspect(&self, digest: Digest, record: u64) {
        let mut inner = self.shared.scrub.inner.lock();
        if inner.suspects.len() < SUSPECTS_MAX {
            inner.suspects.push(Suspect { digest, record, since_ms: self.now_ms });
        } else {
            inner.failed = inner.suspects.len() as u64;
            inner.stopped = true;
        }
    }

    fn due_suspect(&self) -> Option<Suspect> {
        let mut inner = self.shared.scrub.inner.lock();
        let due = |suspect: &Suspect| self.now_ms >= suspect.since_ms.saturating_add(SUSPECT_WAIT_MS);
        let at = inner.suspects.iter().position(due)?;
        Some(inner.suspects.swap_remove(at))
    }

    async fn look_again(&self, suspect: Suspect) -> Result<ScrubStep, ReadError> {
        let mut step = ScrubStep::default();
        let digest = suspect.digest;
        let held = self.shared.lookup(move |view| view.block(&digest)).await?;
        let Some(held) = held.filter(|held| held.record == suspect.record) else { return Ok(step) };
        step.bytes += record_bytes(held.len);
        match self.shared.look_at(&digest, &held).await? {
            Look::Good | Look::Ended => {}
            Look::BadHeader(buffer) => self.write_again(digest, held.record, buffer, &mut step).await,
            Look::WrongBytes | Look::Unreadable(_) => self.lose(digest, held.record, &mut step).await,
        }
        Ok(step)
    }

    /// Looks through the index for blocks whose header page lies in a gap.
    async fn search(&self, mut search: Search) -> Result<ScrubStep, ReadError> {
        let mut step = ScrubStep::default();
        let after = search.after;
        let rows = self.shared.lookup(move |view| view.blocks_after(after.as_ref(), ROWS_PER_STEP)).await?;
        let last = rows.last().map(|(digest, _)| *digest);
        for (digest, held) in rows {
            let hidden = held.place.extent == search.extent
                && search.gaps.iter().any(|gap| (gap.from..gap.to).contains(&held.place.offset));
            if hidden {
                let judged = self.judge(digest, held, &mut step).await;
                if judged.is_err() {
                    // Looked through again when the disk is back.
                    self.shared.scrub.inner.lock().search = Some(search);
                    return judged.map(|()| step);
                }
            }
        }
        if let Some(last) = last {
            search.after = Some(last);
            self.shared.scrub.inner.lock().search = Some(search);
        }
        Ok(step)
    }

    fn cursor(&self) -> (u64, u64) {
        let mut inner = self.shared.scrub.inner.lock();
        let saved = &mut inner.saved;
        if saved.pass == 0 {
            *saved = Saved { format: FORMAT, pass: 1, began_ms: self.now_ms, ..Saved::default() };
        }
        (saved.extent, saved.offset)
    }

    fn move_to(&self, extent: u64, offset: u64) {
        let mut inner = self.shared.scrub.inner.lock();
        (inner.saved.extent, inner.saved.offset) = (extent, offset);
    }

    fn add_gap(&self, gap: Gap) {
        let mut inner = self.shared.scrub.inner.lock();
        let full = inner.gaps.len() >= GAPS_MAX;
        match inner.gaps.last_mut() {
            Some(last) if full || last.to == gap.from => last.to = gap.to,
            _ => inner.gaps.push(gap),
        }
    }

    fn end_extent(&self, extent: u64) {
        {
            let mut inner = self.shared.scrub.inner.lock();
            let gaps = std::mem::take(&mut inner.gaps);
            if !gaps.is_empty() {
                inner.search = Some(Search { extent, gaps, after: None });
            }
            (inner.saved.extent, inner.saved.offset) = (extent + 1, 0);
        }
        self.shared.scrub.save();
    }

    fn end_pass(&self) {
        {
            let mut inner = self.shared.scrub.inner.lock();
            let pass = inner.saved.pass + 1;
            tracing::info!(
                pass = pass - 1,
                blocks = inner.saved.verified_blocks,
                lost = inner.saved.lost,
                "scrubbed everything"
            );
            // A pass that was done early leaves the rest of its period alone.
            let began_ms = inner.saved.began_ms.saturating_add(self.shared.scrub_period_ms).max(self.now_ms);
            inner.saved =
                Saved { format: FORMAT, pass, began_ms, last_ended_ms: self.now_ms, ..Saved::default() };
            inner.failed = 0;
        }
        self.shared.scrub.save();
    }

    async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.map_err(|_| StoreError::Closing)?;
        answer.await.map_err(|_| StoreError::Closing)
    }
}

const _: () = assert!(SEARCH_BYTES <= (crate::disk::buffer::BUFFER_PAGES_MAX * PAGE) as u64);
