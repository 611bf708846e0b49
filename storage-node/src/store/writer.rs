//! The writer: one thread owns the tail of the open extent.
//!
//! It takes whatever commands are ready, decides them against the index and each other, writes their records
//! side by side, syncs once, applies all index changes in one batch, and answers. So an answer always comes
//! after the sync, and a group's records are on disk before the first byte of the next group is written:
//! that order is what replay relies on.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::sync::{mpsc, oneshot};

use super::command::Command;
use super::engine::Shared;
use super::error::StoreError;
use super::format::{self, ENTRIES_PER_PAGE, Entry, PAGE_BYTES, Place, RecordPage, Stamp};
use super::index::Txn;
use super::index::rows::MetaRow;
use super::types::CommitGroupId;
use crate::disk::{Action, AlignedBuf, Completion, DiskFile, PAGE, Request};

mod extent;
mod plan;

/// Commands of one group.
const GROUP_COMMANDS_MAX: usize = 512;
/// Bytes of one group: at 3 GB/s, a hundredth of a second.
const GROUP_BYTES_MAX: u64 = 32 << 20;
/// Entries of one group.
const GROUP_ENTRIES_MAX: usize = 4096;
/// Pages of entries that go out in one write.
const ENTRY_PAGES_PER_WRITE: usize = 16;
/// What an entry counts for towards the next flush of the index: applying one costs about as much as
/// reading this many bytes.
const ENTRY_REPLAY_COST: u64 = 4096;

/// At most this much of the capacity is kept free of blocks for small records.
const CAPACITY_SPARE_MAX: u64 = 1 << 20;

/// What is kept free of blocks for small records: a 64th of the capacity, up to 1 MiB.
pub(crate) fn spare_bytes(capacity: u64) -> u64 {
    (capacity / 64).min(CAPACITY_SPARE_MAX)
}

/// The extent being appended to.
pub(crate) struct OpenExtent {
    pub(crate) id: u64,
    pub(crate) file: Arc<DiskFile>,
    /// Everything before is written and synced.
    pub(crate) tail: u64,
    /// Room reserved in the file.
    pub(crate) allocated: u64,
}

/// Where replay left off.
pub(crate) struct Recovered {
    pub(crate) open: Option<OpenExtent>,
    pub(crate) next_record: u64,
    pub(crate) next_group: u64,
    pub(crate) newest_extent: u64,
}

/// The writer's own state.
pub(crate) struct Writer {
    shared: Arc<Shared>,
    open: Option<OpenExtent>,
    next_record: u64,
    /// Number of the next group that writes anything; consecutive on disk.
    next_group: u64,
    newest_extent: u64,
    /// Number of the next commit group as callers see them: every answered group has its own.
    next_commit: u64,
    replay_cost: u64,
}

/// What is to be told once a group is durable.
type Answer = Box<dyn FnOnce(Result<CommitGroupId, StoreError>) + Send>;

/// A group under construction.
struct Group<'a> {
    txn: Txn<'a>,
    /// Record writes, by offset.
    writes: Vec<(u64, AlignedBuf, usize)>,
    entries: Vec<Entry>,
    /// Where the next record goes.
    tail: u64,
    bytes: u64,
    commands: usize,
    /// Records from this one on are this group's.
    first_record: u64,
    answers: Vec<Answer>,
    /// A sealed extent or another change that has no record of its own.
    index_only: bool,
}

/// What became of a command that a group was offered.
enum Planned {
    /// It is in the group, or already answered.
    Done,
    /// It belongs in the next group.
    Later(Command),
}

impl Writer {
    /// Starts the writer's thread. It ends when the store closes or is dropped.
    pub(crate) fn start(
        shared: Arc<Shared>,
        recovered: Recovered,
        commands: mpsc::Receiver<Command>,
    ) -> io::Result<JoinHandle<()>> {
        let writer = Self {
            shared,
            open: recovered.open,
            next_record: recovered.next_record,
            next_group: recovered.next_group,
            newest_extent: recovered.newest_extent,
            next_commit: 1,
            replay_cost: 0,
        };
        std::thread::Builder::new().name("store-writer".to_owned()).spawn(move || writer.run(commands))
    }

    fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        let shared = Arc::clone(&self.shared);
        let mut carried: Option<Command> = None;
        while let Some(first) = carried.take().or_else(|| commands.blocking_recv()) {
            let first = match first {
                Command::Close { reply } => {
                    let _gone = reply.send(self.close());
                    return;
                }
                Command::Flush { reply } => {
                    let _gone = reply.send(self.flush());
                    continue;
                }
                other => other,
            };
            if let Some(error) = self.failed() {
                plan::refuse(first, &error);
                continue;
            }
            let mut group = self.begin(&shared);
            let mut next = Some(first);
            while let Some(command) = next.take() {
                match self.plan(&mut group, command) {
                    Planned::Later(command) => {
                        carried = Some(command);
                        break;
                    }
                    Planned::Done if group.is_full() => break,
                    Planned::Done => next = commands.try_recv().ok(),
                }
            }
            self.finish(group);
        }
    }

    fn begin<'a>(&self, shared: &'a Shared) -> Group<'a> {
        Group {
            txn: Txn::new(&shared.index, *shared.accounts.lock()),
            writes: Vec::new(),
            entries: Vec::new(),
            tail: self.open.as_ref().map_or(0, |open| open.tail),
            bytes: 0,
            commands: 0,
            first_record: self.next_record,
            answers: Vec::new(),
            index_only: false,
        }
    }

    fn failed(&self) -> Option<StoreError> {
        self.shared.failure().map(|detail| StoreError::Failed { detail })
    }

    /// Remembers the first failure: from here on nothing is written until the store is opened again, because
    /// after a failed write or sync nobody knows what the disk holds past the last good group.
    fn fail(&self, detail: String) -> StoreError {
        self.shared.fail(detail.clone());
        StoreError::Failed { detail }
    }

    fn finish(&mut self, mut group: Group<'_>) {
        let commit = CommitGroupId(self.next_commit);
        self.next_commit += 1;
        let answers = std::mem::take(&mut group.answers);
        let result = self.make_durable(group).map(|()| commit);
        for answer in answers {
            answer(result.clone());
        }
    }

    fn make_durable(&mut self, mut group: Group<'_>) -> Result<(), StoreError> {
        if let Some(error) = self.failed() {
            return Err(error);
        }
        let entries = group.entries.len() as u64;
        if let Some(open) = &self.open {
            let (id, file) = (open.id, Arc::clone(&open.file));
            self.add_entry_pages(&mut group, id)?;
            if !group.writes.is_empty() {
                self.write_and_sync(&file, std::mem::take(&mut group.writes))
                    .map_err(|error| self.fail(format!("{}: {error}", file.path.display())))?;
                self.next_group += 1;
                let tail = group.tail;
                group
                    .txn
                    .change_extent(id, |row| row.synced = tail)
                    .map_err(|error| self.fail(error.to_string()))?;
            } else if !group.index_only {
                return Ok(());
            }
        }
        let Group { txn, tail, bytes, .. } = group;
        let accounts = txn.commit(&self.meta()).map_err(|error| self.fail(error.to_string()))?;
        *self.shared.accounts.lock() = accounts;
        if let Some(open) = &mut self.open {
            open.tail = tail;
        }
        self.replay_cost += bytes + entries * ENTRY_REPLAY_COST;
        if self.replay_cost >= self.shared.index_flush_bytes {
            self.replay_cost = 0;
            self.shared.index.flush(false).map_err(|error| self.fail(error.to_string()))?;
        }
        Ok(())
    }

    fn meta(&self) -> MetaRow {
        MetaRow {
            store: self.shared.id,
            next_record: self.next_record,
            next_group: self.next_group,
            newest_extent: self.newest_extent,
        }
    }

    /// Packs the group's entries into pages behind its blocks, so that an entry follows the block it is about.
    fn add_entry_pages(&mut self, group: &mut Group<'_>, extent: u64) -> Result<(), StoreError> {
        let entries = std::mem::take(&mut group.entries);
        for run in entries.chunks(ENTRY_PAGES_PER_WRITE * ENTRIES_PER_PAGE) {
            let pages = run.len().div_ceil(ENTRIES_PER_PAGE);
            let mut buffer = self.shared.write_pool.take_unbounded(pages * PAGE).ok_or(StoreError::Full)?;
            let start = group.tail;
            for (page, entries) in buffer.chunks_exact_mut(PAGE).zip(run.chunks(ENTRIES_PER_PAGE)) {
                let place = Place { extent, offset: group.tail };
                let stamp = self.stamp(place);
                format::write_record(
                    page,
                    &stamp,
                    &RecordPage::Entries(entries.to_vec()),
                    &self.shared.secret,
                );
                group.txn.apply_entries_page(extent).map_err(|error| self.fail(error.to_string()))?;
                group.tail += PAGE_BYTES;
                group.bytes += PAGE_BYTES;
            }
            group.writes.push((start, buffer, pages * PAGE));
        }
        Ok(())
    }

    fn stamp(&mut self, place: Place) -> Stamp {
        Stamp {
            record: self.take_record(),
            group: self.next_group,
            place,
            written_ms: self.shared.clock.now_ms(),
        }
    }

    fn take_record(&mut self) -> u64 {
        let record = self.next_record;
        self.next_record += 1;
        record
    }

    /// All writes of a group at once, then one sync.
    fn write_and_sync(&self, file: &Arc<DiskFile>, writes: Vec<(u64, AlignedBuf, usize)>) -> io::Result<()> {
        let disk = &self.shared.disk;
        let mut pending: Vec<oneshot::Receiver<Completion>> = Vec::with_capacity(writes.len());
        for (offset, buffer, len) in writes {
            let (done, completed) = oneshot::channel();
            disk.submit(Request {
                file: Arc::clone(file),
                action: Action::Write,
                offset,
                len,
                buffer: Some(buffer),
                permit: None,
                done,
            });
            pending.push(completed);
        }
        let mut first_error = None;
        for completed in pending {
            // Every write is awaited, even after an error: none may still be under way afterwards.
            let result = completed
                .blocking_recv()
                .map_or_else(|_| Err(crate::disk::stopped()), |completion| completion.result);
            if let Err(error) = result {
                first_error.get_or_insert(error);
            }
        }
        match first_error {
            Some(error) => Err(error),
            None => disk.sync(file),
        }
    }

    fn flush(&mut self) -> Result<(), StoreError> {
        if let Some(error) = self.failed() {
            return Err(error);
        }
        self.replay_cost = 0;
        self.shared.index.flush(true).map_err(|error| self.fail(error.to_string()))
    }

    fn close(&mut self) -> Result<(), StoreError> {
        self.flush()?;
        let Some(open) = self.open.take() else { return Ok(()) };
        // Give back the reserved room; the next start then has no tail to look at.
        self.shared
            .disk
            .truncate(&open.file, open.tail)
            .map_err(|error| self.fail(format!("{}: {error}", open.file.path.display())))
    }
}

impl Group<'_> {
    fn is_full(&self) -> bool {
        self.commands >= GROUP_COMMANDS_MAX
            || self.bytes >= GROUP_BYTES_MAX
            || self.entries.len() >= GROUP_ENTRIES_MAX
    }

    fn is_empty(&self) -> bool {
        self.commands == 0
    }
}
