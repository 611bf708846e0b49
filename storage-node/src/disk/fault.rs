//! A disk that fails on purpose: lost unsynced writes, torn writes, EIO, ENOSPC, failing syncs.
//!
//! Unsynced writes live in memory and reach the real file only with a sync, so that [`FaultDisk::crash`] can
//! lose or tear them as a power cut may. For tests and simulations.

use std::collections::{BTreeMap, HashMap};
use std::io;
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
        Ok(())
    }
}

impl State {
    fn perform(&mut self, request: &mut Request) -> io::Result<()> {
        let eio = || io::Error::from(rustix::io::Errno::IO);
        if self.crashed {
            return Err(eio());
        }
        let (len, offset) = (request.len, request.offset);
        let bytes = request.buffer.as_deref_mut().and_then(|buffer| buffer.get_mut(..len));
        let path = &request.file.path;
        match (request.action, bytes) {
            (Action::Read, _) if self.plan.fail_reads => Err(eio()),
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
        // Buffered, because pages are written one by one from plain memory.
        let file = std::fs::OpenOptions::new().read(true).write(true).create_new(create).open(path)?;
        Ok(Arc::new(DiskFile { file, path: path.to_owned(), direct: false }))
    }

    fn allocate(&self, file: &DiskFile, start: u64, len: u64) -> io::Result<()> {
        let state = self.state.lock();
        if state.crashed {
            return Err(rustix::io::Errno::IO.into());
        }
        if state.plan.full {
            return Err(rustix::io::Errno::NOSPC.into());
        }
        file.file.set_len(file.size()?.max(start + len))
    }

    fn truncate(&self, file: &DiskFile, len: u64) -> io::Result<()> {
        let mut state = self.state.lock();
        if state.crashed {
            return Err(rustix::io::Errno::IO.into());
        }
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
        if state.crashed {
            return Err(rustix::io::Errno::IO.into());
        }
        state.unsynced.remove(path);
        std::fs::remove_file(path)
    }
}
