//! The disk beneath the store, behind a small trait so that tests can own its faults.
//!
//! Reads, writes and syncs are submitted and complete later ([`Disk::submit`]); the rare rest (open, allocate,
//! punch, unlink) blocks its caller. Nothing here knows what the bytes mean.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Condvar, Mutex};
use rustix::fs::{FallocateFlags, OFlags};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

pub mod buffer;
pub mod fault;
mod raw;
pub mod threads;
pub mod uring;

pub use buffer::{AlignedBuf, BufferPool, PAGE};
pub use fault::{FaultDisk, FaultPlan};
pub use threads::ThreadDisk;
pub use uring::UringDisk;

/// Requests that may wait in front of a disk. The store admits fewer: this is the backstop.
pub const REQUESTS_MAX: usize = 4096;

/// What is asked of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Fill the buffer's first `len` bytes.
    Read,
    /// Write the buffer's first `len` bytes.
    Write,
    /// Make all completed writes of the file durable (fdatasync).
    Sync,
}

/// One request. Offsets and lengths are whole pages.
pub struct Request {
    /// Which file.
    pub file: Arc<DiskFile>,
    /// What to do.
    pub action: Action,
    /// Where.
    pub offset: u64,
    /// How many bytes; 0 for a sync.
    pub len: usize,
    /// The memory; `None` for a sync. Comes back with the completion.
    pub buffer: Option<AlignedBuf>,
    /// Held until completion, so that a cancelled caller still counts.
    pub permit: Option<OwnedSemaphorePermit>,
    /// Told when done.
    pub done: Done,
}

/// Who is told that a request is done.
#[derive(Debug)]
pub enum Done {
    /// One caller, who gets the memory back.
    One(oneshot::Sender<Completion>),
    /// Whoever waits for all writes of a group, and only for the last.
    Tally(Arc<WriteTally>),
}

/// Counts the writes of a group that are under way.
#[derive(Debug, Default)]
pub struct WriteTally {
    state: Mutex<(usize, Option<io::Error>)>,
    settled: Condvar,
}

impl WriteTally {
    /// One more write begins.
    pub(crate) fn begin(&self) {
        self.state.lock().0 += 1;
    }

    fn end(&self, result: io::Result<()>) {
        let mut state = self.state.lock();
        state.0 = state.0.saturating_sub(1);
        if let Err(error) = result {
            state.1.get_or_insert(error);
        }
        if state.0 == 0 {
            self.settled.notify_all();
        }
    }

    /// Waits until none is under way; the first error of them.
    pub(crate) fn wait(&self) -> io::Result<()> {
        let mut state = self.state.lock();
        while state.0 > 0 {
            self.settled.wait(&mut state);
        }
        state.1.take().map_or(Ok(()), Err)
    }
}

/// How a request ended.
#[derive(Debug)]
pub struct Completion {
    /// All bytes moved, or the first error.
    pub result: io::Result<()>,
    /// The request's memory.
    pub buffer: Option<AlignedBuf>,
}

impl Request {
    /// Answers the request. A caller that has gone away is none of the disk's business.
    pub fn complete(self, result: io::Result<()>) {
        match self.done {
            Done::One(done) => drop(done.send(Completion { result, buffer: self.buffer })),
            Done::Tally(tally) => {
                // Its memory is free before anybody hears of it.
                drop(self.buffer);
                tally.end(result);
            }
        }
    }
}

/// An open file of the store.
#[derive(Debug)]
pub struct DiskFile {
    /// The file.
    pub file: File,
    /// Where it is.
    pub path: PathBuf,
    /// Whether it bypasses the page cache.
    pub direct: bool,
}

impl DiskFile {
    /// The file's length in bytes.
    pub fn size(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }
}

/// A disk. The methods with bodies are the real file system's; a fault-injecting disk overrides them.
pub trait Disk: Send + Sync + 'static {
    /// For logs and status.
    fn name(&self) -> &'static str;

    /// Starts `request`; never blocks. It completes through [`Request::done`], with an error at once when
    /// [`REQUESTS_MAX`] wait already or the disk has stopped.
    fn submit(&self, request: Request);

    /// Makes what was written to `file` durable, on the caller's thread: whoever syncs waits for it anyway, and a
    /// sync through the ring costs four changes of thread more.
    fn sync(&self, file: &Arc<DiskFile>) -> io::Result<()> {
        file.file.sync_data()
    }

    /// Opens `path` for reading and writing, past the page cache where the file system permits it.
    fn open(&self, path: &Path, create: bool) -> io::Result<Arc<DiskFile>> {
        open_direct(path, create).map(Arc::new)
    }

    /// Reserves `start..start + len` and extends the file to its end.
    fn allocate(&self, file: &DiskFile, start: u64, len: u64) -> io::Result<()> {
        match rustix::fs::fallocate(&file.file, FallocateFlags::empty(), start, len) {
            // A file system without fallocate still stores; it merely cannot promise the room.
            Err(rustix::io::Errno::OPNOTSUPP) => {
                let size = file.size()?;
                file.file.set_len(size.max(start + len))
            }
            other => Ok(other?),
        }
    }

    /// Gives `start..start + len` back to the file system; the range then reads as zeros.
    fn punch(&self, file: &DiskFile, start: u64, len: u64) -> io::Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(rustix::fs::fallocate(&file.file, flags, start, len)?)
    }

    /// Cuts the file at `len` bytes, durably.
    fn truncate(&self, file: &DiskFile, len: u64) -> io::Result<()> {
        file.file.set_len(len)?;
        file.file.sync_all()
    }

    /// Makes data and length of `file` durable and, when the page cache holds it, forgets what it holds, so
    /// that the next read sees the disk.
    fn settle(&self, file: &DiskFile) -> io::Result<()> {
        file.file.sync_all()?;
        if !file.direct {
            rustix::fs::fadvise(&file.file, 0, None, rustix::fs::Advice::DontNeed)?;
        }
        Ok(())
    }

    /// Bytes free for us, and bytes in all, of the file system that `dir` is on.
    fn room(&self, dir: &Path) -> io::Result<(u64, u64)> {
        let found = rustix::fs::statvfs(dir)?;
        let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
        Ok((bytes(found.f_bavail), bytes(found.f_blocks)))
    }

    /// Bytes of buffers that are registered with the kernel.
    fn registered_bytes(&self) -> u64 {
        0
    }

    /// Unlinks `path`.
    fn remove(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    /// Makes the names in `dir` durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }
}

/// Said once per process: a buffered store works, but costs more memory and CPU.
static BUFFERED_NOTED: AtomicBool = AtomicBool::new(false);

fn open_direct(path: &Path, create: bool) -> io::Result<DiskFile> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(create);
    let flags = i32::try_from(OFlags::DIRECT.bits()).unwrap_or(0);
    let mut opened = options.clone().custom_flags(flags).open(path);
    if opened.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::ReadOnlyFilesystem) && !create {
        // What can still be read is still served.
        options = OpenOptions::new();
        options.read(true);
        opened = options.clone().custom_flags(flags).open(path);
    }
    match opened {
        Ok(file) => Ok(DiskFile { file, path: path.to_owned(), direct: true }),
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::INVAL.raw_os_error()) => {
            if !BUFFERED_NOTED.swap(true, Ordering::Relaxed) {
                tracing::warn!(path = %path.display(), "the file system refuses O_DIRECT; using its page cache");
            }
            // A refused create_new may still have made the file.
            options.create_new(false).create(create).truncate(false);
            let file = options.open(path)?;
            Ok(DiskFile { file, path: path.to_owned(), direct: false })
        }
        Err(error) => Err(error),
    }
}

/// Submits one request and waits for it on this thread.
pub(crate) fn run_blocking(
    disk: &dyn Disk,
    file: &Arc<DiskFile>,
    action: Action,
    offset: u64,
    transfer: (Option<AlignedBuf>, usize),
) -> (io::Result<()>, Option<AlignedBuf>) {
    let (done, completed) = oneshot::channel();
    let (buffer, len) = transfer;
    disk.submit(Request {
        file: Arc::clone(file),
        action,
        offset,
        len,
        buffer,
        permit: None,
        done: Done::One(done),
    });
    match completed.blocking_recv() {
        Ok(completion) => (completion.result, completion.buffer),
        Err(_) => (Err(stopped()), None),
    }
}

/// The error of a disk whose thread has ended.
pub(crate) fn stopped() -> io::Error {
    io::Error::other("the disk's thread has stopped")
}
