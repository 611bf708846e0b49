//! A disk that fails on purpose: lost unsynced writes, torn writes, EIO, ENOSPC, failing syncs.
//!
//! Unsynced writes live in memory and reach the real file only with a sync, so that [`FaultDisk::crash`] can
//! lose or tear them as a power cut may. For tests and simulations.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{Action, Disk, DiskFile, PAGE, Request, run_blocking};

/// Which requests fail.
#[derive(Clone, Copy, Debug, Default)]
pub struct FaultPlan {
    /// Syncs fail with EIO, and what they should have synced is lost.
    pub fail_syncs: bool,
    /// Writes fail with EIO.
    pub fail_writes: bool,
    /// Reads fail with EIO.
    pub fail_reads: bool,
    /// Allocation fails with ENOSPC.
    pub full: bool,
    /// Every page that is read comes back with a wrong bit.
    pub spoil_reads: bool,
    /// What the file system says it has free; `None` tells the truth.
    pub free_bytes: Option<u64>,
}

/// A disk with a plan of faults and a memory of what is not synced.
#[derive(Default)]
pub struct FaultDisk {
    state: Mutex<State>,
    held: Notify,
}

#[derive(Default)]
struct State {
    plan: FaultPlan,
    crashed: bool,
    /// Unsynced pages by file and offset.
    unsynced: HashMap<PathBuf, BTreeMap<u64, Box<[u8]>>>,
    syncs: u64,
    hold_syncs: bool,
    held: Vec<Request>,
    /// Changes of the disk until the power goes.
    fuse: Option<u64>,
    /// Bytes of every file that the disk cannot read.
    unreadable: Range<u64>,
    /// Files that were synced.
    written: BTreeSet<PathBuf>,
    /// Files whose name is not durable yet.
    new_names: BTreeSet<PathBuf>,
    /// Files whose name is gone, but not durably.
    old_names: BTreeSet<PathBuf>,
}

impl FaultDisk {
    /// A disk without faults.
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// Replaces the plan.
    pub fn plan(&self, plan: FaultPlan) {
        self.state.lock().plan = plan;
    }

    /// Completed syncs so far.
    pub fn syncs(&self) -> u64 {
        self.state.lock().syncs
    }

    /// The power goes after this many more changes of the disk: writes, syncs, new and lost names, cuts and holes.
    /// From then on everything fails; [`FaultDisk::crash`] decides what is left.
    pub fn blow_after(&self, changes: u64) {
        self.state.lock().fuse = Some(changes);
    }

    /// Whether the power is gone.
    pub fn is_blown(&self) -> bool {
        self.state.lock().crashed
    }

    /// Reads that touch these bytes of any file fail.
    pub fn unreadable(&self, bytes: Range<u64>) {
        self.state.lock().unreadable = bytes;
    }

    /// Turns bits wherever these bytes begin a page of a file that was ever synced here.
    pub fn rot(&self, bytes: &[u8]) -> io::Result<()> {
        let state = self.state.lock();
        let mut page = [0; PAGE];
        for (slot, byte) in page.iter_mut().zip(bytes) {
            *slot = *byte;
        }
        for path in &state.written {
            let image = match std::fs::read(path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                other => other?,
            };
            let file = std::fs::OpenOptions::new().write(true).open(path)?;
            for (at, found) in (0u64..).step_by(PAGE).zip(image.chunks(PAGE)) {
                if found == page {
                    let turned: Vec<u8> = page.iter().take(8).map(|byte| byte ^ 0x55).collect();
                    file.write_all_at(&turned, at)?;
                }
            }
        }
        Ok(())
    }

    /// From here on no sync comes back until the crash.
    pub fn hold_syncs(&self) {
        self.state.lock().hold_syncs = true;
    }

    /// Lets the syncs held so far through; later ones are still held.
    pub fn release_held(&self) {
        let mut state = self.state.lock();
        for mut request in std::mem::take(&mut state.held) {
            let result = state.perform(&mut request);
            request.complete(result);
        }
    }

    /// Returns when a sync is held back.
    pub async fn held(&self) {
        self.held.notified().await;
    }

    /// A power cut: of the pages not synced, those for which `survives` says so reach the disk, in the order
    /// of file and offset; the rest is lost. Every later request fails.
    pub fn crash(&self, mut survives: impl FnMut(&Path, u64) -> bool) -> io::Result<()> {
        let mut state = self.state.lock();
        state.crashed = true;
        for request in std::mem::take(&mut state.held) {
            request.complete(Err(rustix::io::Errno::IO.into()));
        }
        let mut lost: Vec<_> = state.unsynced.drain().collect();
        lost.sort_by(|a, b| a.0.cmp(&b.0));
        for (path, pages) in lost {
            let file = std::fs::OpenOptions::new().write(true).open(&path)?;
            for (offset, page) in pages {
                if survives(&path, offset) {
                    file.write_all_at(&page, offset)?;
                }
            }
            file.sync_all()?;
        }
        for path in std::mem::take(&mut state.new_names) {
            if !survives(&path, 0)
                && let Err(error) = std::fs::remove_file(&path)
                && error.kind() != io::ErrorKind::NotFound
            {
                return Err(error);
            }
        }
        for path in std::mem::take(&mut state.old_names) {
            if survives(&path, 0) {
                std::fs::remove_file(unlinked(&path))?;
            } else {
                std::fs::rename(unlinked(&path), &path)?;
            }
        }
        Ok(())
    }
}

/// Where a file is kept whose name is gone, but not durably.
fn unlinked(path: &Path) -> PathBuf {
    path.with_extension("unlinked")
}

impl State {
    /// One change of the disk. The power may go with it.
    fn spend(&mut self) -> io::Result<()> {
        match &mut self.fuse {
            _ if self.crashed => return Err(rustix::io::Errno::IO.into()),
            Some(0) => {
                self.crashed = true;
                return Err(rustix::io::Errno::IO.into());
            }
            Some(left) => *left -= 1,
            None => {}
        }
        Ok(())
    }

    fn perform(&mut self, request: &mut Request) -> io::Result<()> {
        let eio = || io::Error::from(rustix::io::Errno::IO);
        if self.crashed {
            return Err(eio());
        }
        if request.action != Action::Read {
            self.spend()?;
        }
        let (len, offset) = (request.len, request.offset);
        let bytes = request.buffer.as_deref_mut().and_then(|buffer| buffer.get_mut(..len));
        let path = &request.file.path;
        match (request.action, bytes) {
            (Action::Read, _) if self.plan.fail_reads => Err(eio()),
            (Action::Read, _)
                if offset < self.unreadable.end && self.unreadable.start < offset + len as u64 =>
            {
                Err(eio())
            }
            (Action::Write, _) if self.plan.fail_writes => Err(eio()),
            (Action::Sync, _) if self.plan.fail_syncs => {
                self.unsynced.remove(path);
                Err(eio())
            }
            (Action::Sync, _) => {
                for (offset, page) in self.unsynced.remove(path).unwrap_or_default() {
                    request.file.file.write_all_at(&page, offset)?;
                }
                self.syncs += 1;
                self.written.insert(path.clone());
                request.file.file.sync_data()
            }
            (Action::Write, Some(bytes)) => {
                let pages = self.unsynced.entry(path.clone()).or_default();
                for (at, page) in (offset..).step_by(PAGE).zip(bytes.chunks(PAGE)) {
                    pages.insert(at, page.into());
                }
                Ok(())
            }
            (Action::Read, Some(bytes)) => {
                request.file.file.read_exact_at(bytes, offset)?;
                if let Some(pages) = self.unsynced.get(path) {
                    for (at, page) in pages.range(offset..offset + len as u64) {
                        let start = usize::try_from(at - offset).unwrap_or(usize::MAX);
                        if let Some(target) = bytes.get_mut(start..start + page.len()) {
                            target.copy_from_slice(page);
                        }
                    }
                }
                if self.plan.spoil_reads {
                    bytes.chunks_mut(PAGE).filter_map(<[u8]>::first_mut).for_each(|byte| *byte ^= 1);
                }
                Ok(())
            }
            (Action::Read | Action::Write, None) => Err(io::ErrorKind::InvalidInput.into()),
        }
    }
}

impl Disk for FaultDisk {
    fn name(&self) -> &'static str {
        "fault"
    }

    fn submit(&self, mut request: Request) {
        let mut state = self.state.lock();
        if request.action == Action::Sync && state.hold_syncs && !state.crashed {
            state.held.push(request);
            self.held.notify_one();
            return;
        }
        let result = state.perform(&mut request);
        drop(state);
        request.complete(result);
    }

    fn sync(&self, file: &Arc<DiskFile>) -> io::Result<()> {
        // As a request, so that a test can hold or fail it.
        run_blocking(self, file, Action::Sync, 0, (None, 0)).0
    }

    fn open(&self, path: &Path, create: bool) -> io::Result<Arc<DiskFile>> {
        let mut state = self.state.lock();
        state.written.insert(path.to_owned());
        if create {
            state.spend()?;
            state.new_names.insert(path.to_owned());
        }
        drop(state);
        // Buffered, because pages are written one by one from plain memory.
        let file = std::fs::OpenOptions::new().read(true).write(true).create_new(create).open(path)?;
        Ok(Arc::new(DiskFile { file, path: path.to_owned(), direct: false }))
    }

    fn allocate(&self, file: &DiskFile, start: u64, len: u64) -> io::Result<()> {
        let mut state = self.state.lock();
        state.spend()?;
        if state.plan.full {
            return Err(rustix::io::Errno::NOSPC.into());
        }
        file.file.set_len(file.size()?.max(start + len))
    }

    fn room(&self, dir: &Path) -> io::Result<(u64, u64)> {
        let found = rustix::fs::statvfs(dir)?;
        let total = found.f_blocks.saturating_mul(found.f_frsize);
        let free = found.f_bavail.saturating_mul(found.f_frsize);
        Ok((self.state.lock().plan.free_bytes.unwrap_or(free), total))
    }

    fn truncate(&self, file: &DiskFile, len: u64) -> io::Result<()> {
        let mut state = self.state.lock();
        state.spend()?;
        if let Some(pages) = state.unsynced.get_mut(&file.path) {
            pages.split_off(&len);
        }
        file.file.set_len(len)
    }

    fn settle(&self, file: &DiskFile) -> io::Result<()> {
        file.file.sync_all()
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.spend()?;
        state.unsynced.remove(path);
        if state.new_names.remove(path) {
            return std::fs::remove_file(path);
        }
        std::fs::rename(path, unlinked(path))?;
        state.old_names.insert(path.to_owned());
        Ok(())
    }

    fn punch(&self, file: &DiskFile, start: u64, len: u64) -> io::Result<()> {
        self.state.lock().spend()?;
        let flags = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
        Ok(rustix::fs::fallocate(&file.file, flags, start, len)?)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.spend()?;
        let state = &mut *state;
        state.new_names.retain(|path| path.parent() != Some(dir));
        for path in std::mem::take(&mut state.old_names) {
            std::fs::remove_file(unlinked(&path))?;
        }
        Ok(())
    }
}
