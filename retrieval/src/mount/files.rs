//! The file system: look-ups, attributes, opening, reading, closing. Writing is in `changes`, uploading in `upload`,
//! directory streams in `listing`.

use std::collections::HashMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::backend::{Backend, BackendError, ListRequest, Stat};
use super::content::Content;
use super::error::FsError;
use super::listing::Lister;
use super::names;
use super::patience::Patience;
use super::pattern::Pattern;
use super::reading::{Reading, Ready, Source};
use super::staged::{self, Leftover, Staged};
use super::tree::{Body, ROOT, Tree, Version};
use super::upload::PART_LEN;

/// Open files and directories together. Each costs about 300 bytes.
const HANDLES_MAX: usize = 1 << 18;
/// Staged files up to this are removed by whoever lets them go, longer ones on a thread that may wait.
const REMOVED_AT_ONCE_MAX: u64 = 16 << 20;

/// How a mount behaves.
#[derive(Clone, Debug)]
pub struct MountConfig {
    /// What every key begins with: empty, or ending in `/`.
    pub prefix: String,
    /// Refuse every change with EROFS.
    pub read_only: bool,
    /// What is mounted never changes (a snapshot): nothing is asked twice.
    pub immutable: bool,
    /// How long a look-up is believed. Opening always asks again.
    pub ttl: Duration,
    /// Where files being written lie.
    pub staging: PathBuf,
    /// Memory for the bytes of files: half of it for reading, half for uploads.
    pub memory_bytes: u64,
    /// How long operations wait for a network that is gone.
    pub patience: Duration,
}

/// File or directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A file.
    File,
}

/// What `stat` shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    /// The inode's number.
    pub ino: u64,
    /// What it is.
    pub kind: Kind,
    /// Bytes.
    pub size: u64,
    /// Milliseconds since 1970.
    pub modified_ms: u64,
    /// Whether a name still leads to it.
    pub linked: bool,
}

/// A line of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry {
    /// Its name.
    pub name: Box<str>,
    /// What it is.
    pub kind: Kind,
    /// Its inode's number, where there is one.
    pub ino: Option<u64>,
    /// All of it, where it was asked for.
    pub attr: Option<Attr>,
    /// Where the stream goes on behind it.
    pub next: u64,
}

/// An open file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// Its handle.
    pub handle: u64,
    /// Whether the kernel's pages are still those of this version.
    pub keep_pages: bool,
}

/// How a file is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenMode {
    /// May write.
    pub write: bool,
    /// Loses what is in it.
    pub truncate: bool,
}

#[derive(Debug)]
pub(super) struct Handle {
    pub(super) ino: u64,
    pub(super) write: bool,
    pub(super) content: Arc<Content>,
    pub(super) pattern: Mutex<Pattern>,
}

#[derive(Debug)]
pub(super) enum Open {
    File(Arc<Handle>),
    Directory(Arc<tokio::sync::Mutex<Lister>>),
}

/// A mounted bucket, prefix or snapshot.
pub struct FileSystem {
    pub(super) config: MountConfig,
    pub(super) backend: Arc<dyn Backend>,
    pub(super) patience: Arc<Patience>,
    pub(super) reading: Arc<Reading>,
    tree: Mutex<Tree>,
    handles: Mutex<HashMap<u64, Open>>,
    next_handle: AtomicU64,
    pub(super) next_staged: AtomicU64,
    /// Bytes that uploads may hold, in MiB.
    pub(super) upload_mib: Semaphore,
    runtime: tokio::runtime::Handle,
    started_ms: u64,
}

impl std::fmt::Debug for FileSystem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileSystem").field("config", &self.config).finish_non_exhaustive()
    }
}

/// A read that has begun.
#[derive(Debug)]
pub enum ReadStart {
    /// Done.
    Ready(Bytes),
    /// To be waited for with [`FileSystem::finish_read`].
    Wait(ReadWait),
}

/// What a read waits for.
#[derive(Debug)]
pub struct ReadWait {
    handle: Arc<Handle>,
    source: Option<Source>,
    range: Range<u64>,
    ready: Option<Ready>,
}

impl FileSystem {
    /// A file system over `backend`, and what an earlier one with the same staging directory left unsaved.
    ///
    /// Must be called within a tokio runtime: fetches run there.
    pub fn new(
        config: MountConfig,
        backend: Arc<dyn Backend>,
    ) -> std::io::Result<(Arc<Self>, Vec<Leftover>)> {
        std::fs::create_dir_all(&config.staging)?;
        let leftovers = staged::rescue(&config.staging)?;
        let patience = Arc::new(Patience::new(config.patience));
        let runtime = tokio::runtime::Handle::current();
        let half = config.memory_bytes / 2;
        let reading = Reading::new(Arc::clone(&backend), Arc::clone(&patience), half, runtime.clone());
        let ttl = (!config.immutable).then_some(config.ttl);
        let upload_mib = usize::try_from(upload_room_mib(&config)).unwrap_or(usize::MAX >> 3);
        let files = Self {
            tree: Mutex::new(Tree::new(&config.prefix, ttl)),
            config,
            backend,
            patience,
            reading,
            handles: Mutex::default(),
            next_handle: AtomicU64::new(1),
            next_staged: AtomicU64::new(1),
            upload_mib: Semaphore::new(upload_mib),
            runtime,
            started_ms: now_ms(),
        };
        Ok((Arc::new(files), leftovers))
    }

    /// How the mount behaves.
    pub fn config(&self) -> &MountConfig {
        &self.config
    }

    /// Where its tasks run.
    pub fn runtime(&self) -> &tokio::runtime::Handle {
        &self.runtime
    }

    pub(super) fn tree(&self) -> MutexGuard<'_, Tree> {
        self.tree.lock()
    }

    /// EROFS on a read-only mount.
    pub fn writable(&self) -> Result<(), FsError> {
        if self.config.read_only { Err(FsError::ReadOnly) } else { Ok(()) }
    }

    /// What is known of an inode, without asking.
    pub(super) fn attr_in(&self, tree: &Tree, ino: u64) -> Result<Attr, FsError> {
        let node = tree.node(ino)?;
        let (kind, size, modified_ms) = match &node.body {
            Body::Directory(_) => (Kind::Directory, 0, self.started_ms),
            Body::File(file) => (Kind::File, file.size, file.modified_ms),
        };
        Ok(Attr { ino, kind, size, modified_ms, linked: node.linked })
    }

    /// What is known of an inode, without asking.
    pub fn known_attr(&self, ino: u64) -> Result<Attr, FsError> {
        let tree = self.tree();
        self.attr_in(&tree, ino)
    }

    /// Whether a handle was opened for writing.
    pub fn may_write(&self, handle: u64) -> bool {
        self.handle(handle).is_ok_and(|handle| handle.write)
    }

    /// Finds `name` in a directory and counts the look-up.
    pub async fn lookup(&self, parent: u64, name: &[u8]) -> Result<Attr, FsError> {
        let name = names::checked(name).map_err(|error| match error {
            // There is no such file, and never will be.
            FsError::Invalid | FsError::BadName => FsError::NotFound,
            error => error,
        })?;
        let key = {
            let mut tree = self.tree();
            if let Some(ino) = tree.child(parent, name) {
                let node = tree.node(ino)?;
                let is_known = match &node.body {
                    Body::File(file) => file.is_local() || tree.is_fresh(file.checked, Instant::now()),
                    Body::Directory(directory) => {
                        directory.sticky || tree.is_fresh(directory.checked, Instant::now())
                    }
                };
                if is_known {
                    let attr = self.attr_in(&tree, ino)?;
                    tree.looked_up(ino);
                    return Ok(attr);
                }
            }
            tree.key_in(parent, name)?
        };
        let found = self.probe(&key).await?;
        let now = Instant::now();
        let mut tree = self.tree();
        let ino = match found {
            Some(Probe::Directory) => tree.see_directory(parent, name, now),
            Some(Probe::File(stat)) => tree.see_file(parent, name, &stat, now),
            None => match tree.child(parent, name) {
                // Made here while we asked.
                Some(ino) if tree.node(ino)?.file().is_ok_and(|file| file.is_local()) => ino,
                _ => {
                    tree.unlink(parent, name);
                    return Err(FsError::NotFound);
                }
            },
        };
        tree.looked_up(ino);
        self.attr_in(&tree, ino)
    }

    /// What is at a key: a directory wins over an object of the same name.
    async fn probe(&self, key: &str) -> Result<Option<Probe>, FsError> {
        let below = format!("{key}/");
        let (stat, list) = tokio::join!(
            self.patience.run(|_| self.backend.stat(key)),
            self.patience.run(|_| self.backend.list(ListRequest {
                prefix: &below,
                one_level: false,
                after: None,
                max: 1
            }))
        );
        let list = list?;
        if !list.objects.is_empty() || !list.prefixes.is_empty() {
            return Ok(Some(Probe::Directory));
        }
        match stat {
            Ok(stat) => Ok(Some(Probe::File(stat))),
            Err(BackendError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The attributes of an inode; asked for again when what is known is old.
    pub async fn getattr(&self, ino: u64) -> Result<Attr, FsError> {
        let (attr, key) = {
            let tree = self.tree();
            let attr = self.attr_in(&tree, ino)?;
            let node = tree.node(ino)?;
            let is_known = match &node.body {
                Body::Directory(_) => true,
                Body::File(file) => {
                    !node.linked || file.is_local() || tree.is_fresh(file.checked, Instant::now())
                }
            };
            if is_known {
                return Ok(attr);
            }
            (attr, tree.path(ino)?)
        };
        match self.patience.run(|_| self.backend.stat(&key)).await {
            Ok(stat) => {
                let mut tree = self.tree();
                if !tree.refresh(ino, &stat, Instant::now()) {
                    self.supersede(&mut tree, ino);
                    return Ok(attr);
                }
                self.attr_in(&tree, ino)
            }
            Err(BackendError::NotFound { .. }) => {
                let mut tree = self.tree();
                let is_open = tree.node(ino)?.file().is_ok_and(|file| file.opens > 0);
                self.supersede(&mut tree, ino);
                if is_open { Ok(Attr { linked: false, ..attr }) } else { Err(FsError::Stale) }
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The name leads to something else now.
    fn supersede(&self, tree: &mut Tree, ino: u64) {
        if let Ok(node) = tree.node(ino)
            && node.linked
        {
            let (parent, name) = (node.parent, node.name.clone());
            tree.unlink(parent, &name);
        }
    }

    /// Opens a file: what is at the key now, or ESTALE (which makes the kernel look the name up again).
    pub async fn open(&self, ino: u64, mode: OpenMode) -> Result<Opened, FsError> {
        if mode.write || mode.truncate {
            self.writable()?;
        }
        let key = {
            let tree = self.tree();
            let node = tree.node(ino)?;
            let file = node.file()?;
            let is_known = file.is_local() || self.config.immutable || mode.truncate || !node.linked;
            if is_known { None } else { Some(tree.path(ino)?) }
        };
        if let Some(key) = key {
            self.check_version(ino, &key).await?;
        }
        let opened = self.open_now(ino, mode.write)?;
        if mode.truncate {
            let done = self.truncate(ino, 0).await;
            if let Err(error) = done {
                self.release(opened.handle).await;
                return Err(error);
            }
        }
        Ok(opened)
    }

    /// ESTALE unless the inode stands for what is at the key.
    async fn check_version(&self, ino: u64, key: &str) -> Result<(), FsError> {
        let stat = match self.patience.run(|_| self.backend.stat(key)).await {
            Ok(stat) => stat,
            Err(BackendError::NotFound { .. }) => {
                self.supersede(&mut self.tree(), ino);
                return Err(FsError::Stale);
            }
            Err(error) => return Err(error.into()),
        };
        let mut tree = self.tree();
        let before = tree.node(ino)?.file()?.version.clone();
        let stands = tree.refresh(ino, &stat, Instant::now());
        let after = tree.node(ino)?.file()?.version.clone();
        if stands && before == after {
            return Ok(());
        }
        if !stands {
            self.supersede(&mut tree, ino);
        }
        Err(FsError::Stale)
    }

    pub(super) fn open_now(&self, ino: u64, write: bool) -> Result<Opened, FsError> {
        let mut tree = self.tree();
        let file = tree.file_mut(ino)?;
        let mut handles = self.handles.lock();
        if handles.len() >= HANDLES_MAX {
            return Err(FsError::TooManyOpen);
        }
        let content = Arc::clone(file.content.get_or_insert_with(Content::new));
        let version = file.version.as_ref().map_or(0, |version| version.id);
        let keep_pages = file.is_local() || (version != 0 && file.paged == version);
        file.paged = version;
        file.opens += 1;
        file.writers += u32::from(write);
        let handle = self.next_handle.fetch_add(1, Ordering::Relaxed);
        let open = Handle { ino, write, content, pattern: Mutex::default() };
        handles.insert(handle, Open::File(Arc::new(open)));
        Ok(Opened { handle, keep_pages })
    }

    pub(super) fn handle(&self, handle: u64) -> Result<Arc<Handle>, FsError> {
        match self.handles.lock().get(&handle) {
            Some(Open::File(open)) => Ok(Arc::clone(open)),
            _ => Err(FsError::BadHandle),
        }
    }

    pub(super) fn directory(&self, handle: u64) -> Result<Arc<tokio::sync::Mutex<Lister>>, FsError> {
        match self.handles.lock().get(&handle) {
            Some(Open::Directory(lister)) => Ok(Arc::clone(lister)),
            _ => Err(FsError::BadHandle),
        }
    }

    pub(super) fn insert_directory(&self, lister: Lister) -> Result<u64, FsError> {
        let mut handles = self.handles.lock();
        if handles.len() >= HANDLES_MAX {
            return Err(FsError::TooManyOpen);
        }
        let handle = self.next_handle.fetch_add(1, Ordering::Relaxed);
        handles.insert(handle, Open::Directory(Arc::new(tokio::sync::Mutex::new(lister))));
        Ok(handle)
    }

    /// Closes a directory.
    pub fn release_directory(&self, handle: u64) {
        self.handles.lock().remove(&handle);
    }

    /// Begins a read of up to `len` bytes; never waits.
    pub fn begin_read(&self, handle: u64, offset: u64, len: u32) -> Result<ReadStart, FsError> {
        let handle = self.handle(handle)?;
        let wanted = offset..offset.saturating_add(u64::from(len));
        if handle.content.is_staged() {
            return Ok(ReadStart::Wait(ReadWait { handle, source: None, range: wanted, ready: None }));
        }
        let Some(source) = self.source(handle.ino)? else { return Ok(ReadStart::Ready(Bytes::new())) };
        let range = wanted.start.min(source.version.size)..wanted.end.min(source.version.size);
        if range.is_empty() {
            return Ok(ReadStart::Ready(Bytes::new()));
        }
        match self.reading.begin(&source, &handle.pattern, &range) {
            Ready::Bytes(bytes) => Ok(ReadStart::Ready(bytes)),
            ready => {
                Ok(ReadStart::Wait(ReadWait { handle, source: Some(source), range, ready: Some(ready) }))
            }
        }
    }

    /// Waits for a read that has begun.
    pub async fn finish_read(&self, wait: ReadWait) -> Result<Bytes, FsError> {
        if let (Some(source), Some(ready)) = (wait.source, wait.ready) {
            let read = self.reading.finish(&source, wait.range.clone(), ready).await;
            if !matches!(read, Err(BackendError::Changed { .. })) {
                return Ok(read?);
            }
            // Renamed here while we read? A rename holds this lock until the new name is known.
            drop(wait.handle.content.staged.read().await);
            return match self.source(wait.handle.ino)? {
                Some(now) if now.key != source.key && now.version == source.version => {
                    Ok(self.reading.exact(&now, wait.range).await?)
                }
                _ => Err(FsError::Stale),
            };
        }
        let guard = wait.handle.content.staged.read().await;
        let Some(staged) = &*guard else {
            // Uploaded and dropped since: as it is at the key.
            let Some(source) = self.source(wait.handle.ino)? else { return Ok(Bytes::new()) };
            let end = wait.range.end.min(source.version.size);
            return Ok(self.reading.exact(&source, wait.range.start.min(end)..end).await?);
        };
        let range = wait.range.start.min(staged.size)..wait.range.end.min(staged.size);
        let mut bytes = staged.read(range.clone())?;
        if let Some(base) = &staged.base {
            let key = self.tree().path(wait.handle.ino)?;
            let source = Source { key: key.into(), version: Arc::clone(&base.version) };
            for gap in staged.missing(range.clone()) {
                let at = usize::try_from(gap.start - range.start).unwrap_or(usize::MAX);
                let piece = self.reading.exact(&source, gap).await?;
                bytes[at..at + piece.len()].copy_from_slice(&piece);
            }
        }
        Ok(bytes.into())
    }

    /// Reads to the end of what was asked for: both halves at once.
    pub async fn read(&self, handle: u64, offset: u64, len: u32) -> Result<Bytes, FsError> {
        match self.begin_read(handle, offset, len)? {
            ReadStart::Ready(bytes) => Ok(bytes),
            ReadStart::Wait(wait) => self.finish_read(wait).await,
        }
    }

    /// What is at the key of an inode, as far as known.
    pub(super) fn source(&self, ino: u64) -> Result<Option<Source>, FsError> {
        let tree = self.tree();
        let Some(version) = tree.node(ino)?.file()?.version.clone() else { return Ok(None) };
        Ok(Some(Source { key: tree.path(ino)?.into(), version }))
    }

    /// The last close of a handle. What remains to be done, and may take long, is returned: the inode to be
    /// handed to [`FileSystem::settle_closed`].
    ///
    /// It counts at once, so that an open that follows on this machine finds the file closed.
    pub fn close(&self, handle: u64) -> Option<u64> {
        let open = match self.handles.lock().remove(&handle) {
            Some(Open::File(open)) => open,
            Some(Open::Directory(_)) | None => return None,
        };
        if open.pattern.lock().is_sequential() {
            self.reading.sequential.fetch_sub(1, Ordering::Relaxed);
        }
        let writers = {
            let mut tree = self.tree();
            let Ok(file) = tree.file_mut(open.ino) else { return None };
            file.opens = file.opens.saturating_sub(1);
            file.writers = file.writers.saturating_sub(u32::from(open.write));
            file.writers
        };
        if open.write {
            // Mostly the flush before has uploaded it, and nobody else writes: then it is let go here and now.
            let is_clean = open.content.staged.try_write().is_ok_and(|mut guard| {
                let is_clean = guard.as_ref().is_none_or(|staged| !staged.dirty);
                if is_clean && writers == 0 {
                    self.let_go(&open.content, &mut guard);
                }
                is_clean
            });
            if !is_clean {
                return Some(open.ino);
            }
        }
        self.forget_closed(open.ino);
        None
    }

    /// Nobody writes any more, and nothing waits: reads go to what is at the key.
    pub(super) fn let_go(&self, content: &Content, guard: &mut Option<Staged>) {
        content.set_staged(false);
        let staged = guard.take();
        if staged.as_ref().is_some_and(|staged| staged.size > REMOVED_AT_ONCE_MAX) {
            // Removing a large file takes its time.
            self.runtime.spawn_blocking(move || drop(staged));
        }
    }

    fn forget_closed(&self, ino: u64) {
        let mut tree = self.tree();
        if let Ok(file) = tree.file_mut(ino)
            && file.opens == 0
            && file.content.as_ref().is_some_and(|content| !content.is_staged())
        {
            file.content = None;
        }
        tree.drop_unused(ino);
    }

    /// Uploads what a closed file left. A failure is logged, and tried again at the next close, fsync or unmount.
    pub async fn settle_closed(&self, ino: u64) {
        if let Err(error) = self.upload(ino).await {
            let key = self.tree().path(ino).unwrap_or_default();
            tracing::error!(%error, key, "a closed file is not uploaded yet; it is tried again at the unmount");
        }
        self.forget_closed(ino);
    }

    /// Closes a handle and waits until what it left is uploaded, or is known not to be.
    pub async fn release(&self, handle: u64) {
        if let Some(ino) = self.close(handle) {
            self.settle_closed(ino).await;
        }
    }

    /// The kernel forgets look-ups of an inode.
    pub fn forget(&self, ino: u64, lookups: u64) {
        self.tree().forget(ino, lookups);
    }

    /// The names of a file's extended attributes.
    pub fn attribute_names(&self, ino: u64) -> Result<Vec<&'static str>, FsError> {
        let tree = self.tree();
        Ok(if tree.node(ino)?.is_directory() { Vec::new() } else { vec![ETAG_ATTRIBUTE, CID_ATTRIBUTE] })
    }

    /// An extended attribute: the tag and the root CID of what is at the key.
    pub async fn attribute(&self, ino: u64, name: &[u8]) -> Result<String, FsError> {
        let wants_cid = match name {
            name if name == CID_ATTRIBUTE.as_bytes() => true,
            name if name == ETAG_ATTRIBUTE.as_bytes() => false,
            _ => return Err(FsError::NoAttribute),
        };
        let content = {
            let tree = self.tree();
            let node = tree.node(ino)?;
            if node.is_directory() {
                return Err(FsError::NoAttribute);
            }
            node.file()?.content.clone()
        };
        if let Some(content) = content {
            // What was not uploaded has neither. A file may be uploaded and still open for writing: after close()
            // the kernel lets go of it in its own time. An upload under way is waited for.
            if content.staged.read().await.as_ref().is_some_and(|staged| staged.dirty) {
                return Err(FsError::NoAttribute);
            }
        }
        let key = {
            let tree = self.tree();
            tree.node(ino)?.file()?.version.as_ref().ok_or(FsError::NoAttribute)?;
            tree.path(ino)?
        };
        let stat = self.patience.run(|_| self.backend.stat(&key)).await?;
        let text = if wants_cid { stat.cid } else { Some(stat.etag) };
        text.map(String::from).ok_or(FsError::NoAttribute)
    }

    /// Open files, and inodes, for tests and metrics.
    pub fn counts(&self) -> (usize, usize) {
        (self.handles.lock().len(), self.tree().len())
    }

    pub(super) fn forget_version(&self, version: Option<&Arc<Version>>) {
        if let Some(version) = version {
            self.reading.forget(version);
        }
    }

    /// The number of the root directory.
    pub const ROOT: u64 = ROOT;
}

/// Names of the extended attributes.
const ETAG_ATTRIBUTE: &str = "user.holdfast.etag";
const CID_ATTRIBUTE: &str = "user.holdfast.cid";

enum Probe {
    Directory,
    File(Stat),
}

/// What uploads may hold at once: at least one part.
pub(super) fn upload_room_mib(config: &MountConfig) -> u64 {
    (config.memory_bytes >> 21).max(PART_LEN >> 20)
}

/// The wall clock, for times that people see.
pub(super) fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
