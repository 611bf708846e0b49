//! The tier on the local disk: a directory of segments with one owner.
//!
//! Reads may run on any thread. All writes run on one thread of the tier's own, behind a queue that is bounded
//! in bytes: a reader never waits for the cache to be written, and what does not fit is simply not cached.
//! A slot is in the index only while its bytes are whole. What a reader still reads while its slot is given to
//! another block fails its sums and is a miss.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use bytes::Bytes;
use holdfast_protocol::limits::GROUP_LEN;
use holdfast_protocol::message::ByteRange;
use holdfast_protocol::{BlockLen, Digest};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::counters::Counters;
use super::error::CacheError;
use super::order::EpochOrder;
use super::segment::{Entry, Segment, Shape};
use slots::Slots;

mod slots;

/// The smallest disk tier: a few segments of a few blocks.
pub const DISK_BYTES_MIN: u64 = 32 << 20;
/// Segments that a tier is cut into, so that each class of lengths finds some.
const SEGMENTS_WANTED: u64 = 64;
const SEGMENT_BYTES_MIN: u64 = 4 << 20;
/// The largest segment: a table of 20 KiB for whole blocks.
const SEGMENT_BYTES_MAX: u64 = 64 << 20;
/// Bytes of blocks that may wait to be written: a fifth of a second of a fast disk.
pub(super) const WRITE_QUEUE_BYTES: usize = 256 << 20;

const LOCK_FILE: &str = "lock";
const ID_FILE: &str = "id";

/// What the tier knows of a block.
pub(super) enum Lookup {
    /// Exactly the range.
    Hit(Bytes),
    /// Here, but the disk must be asked: [`Pending::read`] does, and may take a while.
    Pending(Pending),
    /// Not here.
    Miss,
}

/// A read that needs the disk.
pub(super) struct Pending {
    shared: Arc<Shared>,
    digest: Digest,
    found: Held,
    range: ByteRange,
}

/// The disk tier.
pub(super) struct DiskTier {
    shared: Arc<Shared>,
    /// `None` only while being dropped.
    jobs: Option<Sender<Job>>,
    writer: Option<JoinHandle<()>>,
    /// Locked while the tier lives.
    _lock: File,
}

struct Shared {
    dir: PathBuf,
    id: [u8; 16],
    segment_bytes: u64,
    slots: Mutex<Slots>,
    queued_bytes: AtomicUsize,
    stopping: AtomicBool,
    counters: Arc<Counters>,
}

/// Where a block lies.
#[derive(Clone, Debug)]
pub(super) struct Held {
    segment: Arc<Segment>,
    slot: u32,
    entry: Arc<Entry>,
}

enum Job {
    Put { digest: Digest, bytes: Bytes, next_use: Option<u64> },
    Flush(oneshot::Sender<()>),
}

impl DiskTier {
    /// Opens or makes the tier in `dir`, at most `bytes` large. Blocks.
    pub(super) fn open(dir: &Path, bytes: u64, counters: Arc<Counters>) -> Result<Self, CacheError> {
        if bytes < DISK_BYTES_MIN {
            return Err(CacheError::TooSmall { bytes, least: DISK_BYTES_MIN });
        }
        let failed = |source| CacheError::Disk { path: dir.to_path_buf(), source };
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)?;
        let lock = lock(dir)?;
        let id = identity(dir).map_err(failed)?;
        let segment_bytes = segment_bytes(bytes);
        let slots = load(dir, id, segment_bytes, bytes / segment_bytes).map_err(failed)?;
        let shared = Arc::new(Shared {
            dir: dir.to_path_buf(),
            id,
            segment_bytes,
            slots: Mutex::new(slots),
            queued_bytes: AtomicUsize::new(0),
            stopping: AtomicBool::new(false),
            counters,
        });
        let (jobs, queue) = channel();
        let owner = Arc::clone(&shared);
        let writer = std::thread::Builder::new()
            .name("holdfast-cache".to_owned())
            .spawn(move || owner.write_jobs(&queue))
            .map_err(failed)?;
        Ok(Self { shared, jobs: Some(jobs), writer: Some(writer), _lock: lock })
    }

    /// Looks a range up. What the page cache holds is answered at once.
    pub(super) fn get(&self, digest: &Digest, range: ByteRange, next_use: Option<u64>) -> Lookup {
        let Some(found) = self.shared.slots.lock().find(digest, next_use) else { return Lookup::Miss };
        if range.end() > found.entry.len.bytes() {
            return Lookup::Miss;
        }
        match found.read(range, true) {
            Ok(Some(bytes)) => Lookup::Hit(bytes),
            Ok(None) => {
                self.shared.damaged(digest, &found);
                Lookup::Miss
            }
            Err(_) => {
                Lookup::Pending(Pending { shared: Arc::clone(&self.shared), digest: *digest, found, range })
            }
        }
    }

    /// Whether the block is here.
    pub(super) fn holds(&self, digest: &Digest) -> bool {
        self.shared.slots.lock().contains(digest)
    }

    /// Hands a block to the writer, unless it is here or too much waits.
    pub(super) fn put(&self, digest: Digest, bytes: Bytes, next_use: Option<u64>) {
        let Some(jobs) = &self.jobs else { return };
        if self.shared.slots.lock().contains(&digest) {
            return;
        }
        let len = bytes.len();
        let queued = &self.shared.queued_bytes;
        if queued.fetch_add(len, Ordering::AcqRel) + len > WRITE_QUEUE_BYTES {
            queued.fetch_sub(len, Ordering::AcqRel);
            self.shared.counters.skipped.add();
            return;
        }
        if jobs.send(Job::Put { digest, bytes, next_use }).is_err() {
            queued.fetch_sub(len, Ordering::AcqRel);
        }
    }

    /// Returns when all that was put before is on its way to the disk, readable by whoever opens the directory.
    pub(super) async fn flush(&self) {
        let (done, flushed) = oneshot::channel();
        if let Some(jobs) = &self.jobs
            && jobs.send(Job::Flush(done)).is_ok()
        {
            // The writer only ends when the tier does.
            let _ = flushed.await;
        }
    }

    /// A new order is known.
    pub(super) fn replan(&self, order: &EpochOrder) {
        self.shared.slots.lock().replan(order);
    }

    /// Bytes of segments on the disk, and blocks in them.
    pub(super) fn usage(&self) -> (u64, usize) {
        let slots = self.shared.slots.lock();
        (slots.segment_count() * self.shared.segment_bytes, slots.len())
    }
}

impl Drop for DiskTier {
    /// What waits is not written: a cache owes nobody anything.
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::Release);
        drop(self.jobs.take());
        if let Some(writer) = self.writer.take() {
            let _panicked = writer.join();
        }
    }
}

impl Pending {
    /// Reads; `None` when the bytes are no longer what was put. Blocks on the disk.
    pub(super) fn read(self) -> Option<Bytes> {
        match self.found.read(self.range, false) {
            Ok(Some(bytes)) => Some(bytes),
            Ok(None) | Err(_) => {
                self.shared.damaged(&self.digest, &self.found);
                None
            }
        }
    }
}

impl Held {
    /// Exactly the range, or `None` when a sum does not hold.
    fn read(&self, range: ByteRange, only_memory: bool) -> io::Result<Option<Bytes>> {
        let first = range.start / GROUP_LEN;
        let start = first * GROUP_LEN;
        let end = range.end().next_multiple_of(GROUP_LEN).min(self.entry.len.bytes());
        let mut bytes = vec![0u8; (end - start) as usize];
        self.segment.read(self.slot, start, &mut bytes, only_memory)?;
        if !self.entry.holds(first as usize, &bytes) {
            return Ok(None);
        }
        let from = (range.start - start) as usize;
        Ok(Some(Bytes::from(bytes).slice(from..from + range.len as usize)))
    }
}

impl Shared {
    /// The bytes read are not what was put. If the slot was given to another block meanwhile, that is why; else
    /// the disk has changed them, and the block is dropped.
    fn damaged(&self, digest: &Digest, found: &Held) {
        if self.slots.lock().drop_if_same(digest, found) {
            self.counters.damaged.add();
            tracing::warn!(block = %digest, dir = %self.dir.display(), "a cached block is damaged and was dropped");
            // Without it the entry would come back at the next start, to be found damaged again.
            let _ = found.segment.clear(found.slot);
        }
    }

    fn write_jobs(&self, queue: &Receiver<Job>) {
        let mut failing = false;
        while let Ok(job) = queue.recv() {
            match job {
                Job::Flush(done) => drop(done.send(())),
                Job::Put { digest, bytes, next_use } => {
                    let len = bytes.len();
                    if !self.stopping.load(Ordering::Acquire) {
                        let outcome = self.write(digest, &bytes, next_use);
                        self.judge(outcome, &mut failing);
                    }
                    self.queued_bytes.fetch_sub(len, Ordering::AcqRel);
                }
            }
        }
    }

    /// Counts failures and names the first of a row.
    fn judge(&self, outcome: io::Result<()>, failing: &mut bool) {
        if let Err(error) = &outcome {
            self.counters.write_errors.add();
            if !*failing {
                tracing::warn!(%error, dir = %self.dir.display(), "the cache cannot be written; reads go on without it");
            }
        }
        *failing = outcome.is_err();
    }

    fn write(&self, digest: Digest, bytes: &Bytes, next_use: Option<u64>) -> io::Result<()> {
        let Ok(len) = BlockLen::of(bytes) else { return Ok(()) };
        if self.slots.lock().contains(&digest) {
            return Ok(());
        }
        let Some((segment, slot)) = self.place_for(len, next_use)? else { return Ok(()) };
        let entry = Entry::of(digest, len, bytes);
        if let Err(error) = segment.write(slot, &entry, bytes) {
            self.slots.lock().give_back(segment.number, slot);
            return Err(error);
        }
        self.counters.written.add();
        self.slots.lock().enter(digest, Held { segment, slot, entry: Arc::new(entry) }, next_use);
        Ok(())
    }

    /// A slot for a block of this length. Only the writer asks, so nobody else takes what it is about to make.
    fn place_for(&self, len: BlockLen, next_use: Option<u64>) -> io::Result<Option<(Arc<Segment>, u32)>> {
        let decision = self.slots.lock().decide(len, next_use);
        match decision {
            slots::Decision::Use(segment, slot) => Ok(Some((segment, slot))),
            slots::Decision::Refuse => Ok(None),
            slots::Decision::Make { class, number, instead_of } => {
                if let Some(old) = instead_of {
                    std::fs::remove_file(self.dir.join(Segment::name(old)))?;
                }
                let shape = Shape::new(class, self.segment_bytes);
                let file = open_file(&self.dir.join(Segment::name(number)))?;
                let segment = Arc::new(Segment::format(file, self.id, number, shape)?);
                Ok(self.slots.lock().add(class, segment))
            }
        }
    }
}

fn segment_bytes(bytes: u64) -> u64 {
    (bytes / SEGMENTS_WANTED).clamp(SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX)
}

fn open_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).truncate(false).read(true).write(true).mode(0o600).open(path)
}

fn lock(dir: &Path) -> Result<File, CacheError> {
    let path = dir.join(LOCK_FILE);
    let file = open_file(&path).map_err(|source| CacheError::Disk { path: path.clone(), source })?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(CacheError::InUse { path: dir.to_path_buf() }),
        Err(std::fs::TryLockError::Error(source)) => Err(CacheError::Disk { path, source }),
    }
}

/// The directory's id; made when there is none. A damaged one is replaced, and what it named is forgotten.
fn identity(dir: &Path) -> io::Result<[u8; 16]> {
    let path = dir.join(ID_FILE);
    match std::fs::read(&path) {
        Ok(bytes) if bytes.len() == 16 => {
            let mut id = [0; 16];
            id.copy_from_slice(&bytes);
            return Ok(id);
        }
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let mut id = [0; 16];
    getrandom::fill(&mut id).map_err(|_| io::Error::other("the system's random source failed"))?;
    let partial = dir.join("id.partial");
    std::fs::write(&partial, id)?;
    std::fs::rename(&partial, &path)?;
    Ok(id)
}

/// Takes over the segments that are there; deletes what is none of ours, damaged, or too much.
fn load(dir: &Path, id: [u8; 16], segment_bytes: u64, segments_max: u64) -> io::Result<Slots> {
    let mut slots = Slots::new(segments_max);
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let name = entry?.file_name();
        numbers.extend(name.to_str().and_then(Segment::number_of));
    }
    numbers.sort_unstable();
    for number in numbers {
        let path = dir.join(Segment::name(number));
        let opened = if slots.segment_count() < segments_max {
            Segment::open(open_file(&path)?, id, number, segment_bytes)?
        } else {
            None
        };
        match opened {
            Some((segment, entries)) => slots.take_over(Arc::new(segment), entries),
            None => std::fs::remove_file(&path)?,
        }
        slots.skip_number(number);
    }
    Ok(slots)
}
