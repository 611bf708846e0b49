//! The writer: one thread owns the tail of the open extent.
//!
//! It takes whatever commands are ready, decides them against the index and each other, and starts the writes of their
//! records side by side. A second thread ([`pipe`]) waits for these, syncs once, applies all index changes in one batch,
//! and answers; meanwhile the writer gathers the next group. So an answer always comes after the sync, and a group's
//! records are on disk before the first byte of the group after the next is written: that order is what replay relies
//! on.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::sync::mpsc;

use super::command::Command;
use super::engine::Shared;
use super::error::StoreError;
use super::format::{self, ENTRIES_PER_PAGE, Entry, PAGE_BYTES, Place, RecordPage, Stamp};
use super::index::rows::{AccountsRow, MetaRow};
use super::index::{Changes, Sealed, Txn};
use super::types::CommitGroupId;
use crate::disk::{Action, AlignedBuf, DiskFile, Done, PAGE, Request, WriteTally};

mod extent;
mod pipe;
mod plan;

use pipe::{Job, Pipe};

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
    /// Everything before is written, or belongs to a group that is being written.
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
    /// Where groups go once their writes have been started.
    pipe: Pipe,
    /// Changes of the last group that was handed over, which may not be in the index yet.
    below: Option<Arc<Changes>>,
    /// The accounts behind that group.
    accounts: AccountsRow,
    /// Records from this one on belong to groups that may not be synced yet.
    first_unsynced: u64,
}

/// What is to be told once a group is durable.
type Answer = Box<dyn FnOnce(Result<CommitGroupId, StoreError>) + Send>;

/// A group under construction.
struct Group<'a> {
    txn: Txn<'a>,
    /// Writes that were started.
    tally: Arc<WriteTally>,
    has_written: bool,
    entries: Vec<Entry>,
    /// Where the next record goes.
    tail: u64,
    bytes: u64,
    commands: usize,
    /// Records from this one on are this group's.
    first_record: u64,
    /// Records from this one on are this group's or those of the one before: whoever put them hashed them just now.
    first_recent: u64,
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
        let accounts = *shared.accounts.lock();
        let writer = Self {
            pipe: Pipe::start(Arc::clone(&shared))?,
            below: None,
            accounts,
            first_unsynced: recovered.next_record,
            shared,
            open: recovered.open,
            next_record: recovered.next_record,
            next_group: recovered.next_group,
            newest_extent: recovered.newest_extent,
            next_commit: 1,
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
            carried = self.gather(&mut group, first, &mut commands);
            self.finish(group);
        }
    }

    /// Plans commands into the group until none is ready and the group before is finished. Answers a command that
    /// belongs in the next group.
    fn gather(
        &mut self,
        group: &mut Group<'_>,
        first: Command,
        commands: &mut mpsc::Receiver<Command>,
    ) -> Option<Command> {
        let mut next = Some(first);
        while let Some(command) = next {
            match self.plan(group, command) {
                Planned::Later(command) => return Some(command),
                Planned::Done if group.is_full() => return None,
                Planned::Done => {}
            }
            next = commands.try_recv().ok().or_else(|| self.pipe.command_or_idle(commands));
        }
        None
    }

    fn begin<'a>(&mut self, shared: &'a Shared) -> Group<'a> {
        if self.pipe.is_idle() {
            self.below = None;
            self.first_unsynced = self.next_record;
        }
        Group {
            txn: Txn::over(&shared.index, self.below.clone(), self.accounts),
            tally: Arc::default(),
            has_written: false,
            entries: Vec::new(),
            tail: self.open.as_ref().map_or(0, |open| open.tail),
            bytes: 0,
            commands: 0,
            first_record: self.next_record,
            first_recent: self.first_unsynced,
            answers: Vec::new(),
            index_only: false,
        }
    }

    fn failed(&self) -> Option<StoreError> {
        self.shared.refusal()
    }

    /// Remembers the first failure: from here on nothing is written until the store is opened again, because
    /// after a failed write or sync nobody knows what the disk holds past the last good group.
    fn fail(&self, detail: String) -> StoreError {
        self.shared.fail(detail.clone());
        StoreError::Failed { detail }
    }

    /// Hands the group over to be made durable and answered.
    fn finish(&mut self, mut group: Group<'_>) {
        let commit = CommitGroupId(self.next_commit);
        self.next_commit += 1;
        let (tally, answers) = (Arc::clone(&group.tally), std::mem::take(&mut group.answers));
        let first_record = group.first_record;
        let replay_cost = group.bytes + group.entries.len() as u64 * ENTRY_REPLAY_COST;
        let sealed = self.seal(group);
        let (written, changes) = sealed.unwrap_or_else(|error| {
            // The store's from here on; the job tells it to whoever waits.
            self.fail(error.to_string());
            (None, None)
        });
        if let Some(sealed) = &changes {
            self.below = Some(Arc::clone(&sealed.changes));
            self.accounts = sealed.accounts;
        }
        self.pipe.hand_over(Job { commit, written, tally, changes, answers, replay_cost });
        // The group before it is finished by now.
        self.first_unsynced = first_record;
    }

    /// Ends the planning of a group: the file that it wrote to, and what it changes in the index.
    fn seal(&mut self, mut group: Group<'_>) -> Result<(Option<Arc<DiskFile>>, Option<Sealed>), StoreError> {
        let mut written = None;
        if let Some(open) = &self.open {
            let (id, file) = (open.id, Arc::clone(&open.file));
            self.add_entry_pages(&mut group, id)?;
            if group.has_written {
                self.next_group += 1;
                let tail = group.tail;
                group
                    .txn
                    .change_extent(id, |row| row.synced = tail)
                    .map_err(|error| self.fail(error.to_string()))?;
                written = Some(file);
            }
        }
        if written.is_none() && !group.index_only {
            return Ok((None, None));
        }
        if let Some(open) = &mut self.open {
            open.tail = group.tail;
        }
        Ok((written, Some(group.txn.seal(&self.meta()))))
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
            self.push_write(group, start, buffer, pages * PAGE);
        }
        Ok(())
    }

    /// Starts a write of the group.
    fn push_write(&self, group: &mut Group<'_>, offset: u64, pages: AlignedBuf, len: usize) {
        let Some(open) = &self.open else { return };
        group.has_written = true;
        group.tally.begin();
        self.shared.disk.submit(Request {
            file: Arc::clone(&open.file),
            action: Action::Write,
            offset,
            len,
            buffer: Some(pages),
            permit: None,
            done: Done::Tally(Arc::clone(&group.tally)),
        });
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

    fn flush(&mut self) -> Result<(), StoreError> {
        self.pipe.wait_idle();
        if self.shared.read_only {
            // All there is has been made durable long ago.
            return Ok(());
        }
        if let Some(error) = self.failed() {
            return Err(error);
        }
        self.shared.index.flush(true).map_err(|error| self.fail(error.to_string()))
    }

    fn close(&mut self) -> Result<(), StoreError> {
        if self.shared.read_only {
            return Ok(());
        }
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
