//! The state that readers and the writer share, and how a store is opened.

use std::collections::BTreeMap;
use std::fs::File;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::thread::JoinHandle;

use holdfast_protocol::digest::Digest;
use holdfast_protocol::time::Clock;
use lru::LruCache;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, mpsc};

use super::command::{COMMANDS_MAX, Command};
use super::config::Pools;
use super::config::{EXTENT_BYTES_MAX, EXTENT_BYTES_MIN, IoMode, StoreConfig};
use super::error::{IndexError, OpenError, StoreError};
use super::format::{PAGE_BYTES, Secret};
use super::health::{Checks, Presence};
use super::identity;
use super::index::rows::AccountsRow;
use super::index::{Index, upgrade};
use super::replay;
use super::scrub::ScrubState;
use super::types::{Accounts, SharedTree};
use super::verify::Verified;
use super::writer::Writer;
use crate::disk::{BufferPool, Disk, DiskFile, PAGE, ThreadDisk, UringDisk};

/// Extent files kept open; others are opened again when read.
const OPEN_EXTENTS_MAX: usize = 256;
/// Reads under way at a time; more wait. A disk gains nothing beyond this depth.
const READS_MAX: usize = 256;

/// What readers and the writer share.
pub(crate) struct Shared {
    pub(crate) id: [u8; 16],
    pub(crate) secret: Secret,
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) index: Index,
    pub(crate) write_pool: Arc<BufferPool>,
    pub(crate) read_pool: Arc<BufferPool>,
    pub(crate) reads: Arc<Semaphore>,
    pub(crate) extents: PathBuf,
    pub(crate) files: Mutex<LruCache<u64, Arc<DiskFile>>>,
    pub(crate) trees: Mutex<LruCache<Digest, SharedTree>>,
    pub(crate) accounts: Mutex<AccountsRow>,
    pub(crate) failure: Mutex<Option<String>>,
    /// Tells whether the directory is still the store's.
    pub(crate) presence: Presence,
    /// What was seen of the disk beneath.
    pub(crate) checks: Checks,
    /// Held blocks that were read or written whole not long ago.
    pub(crate) verified: Verified,
    pub(crate) scrub: ScrubState,
    /// Drawn when the index was made.
    pub(crate) generation: u64,
    pub(crate) dir: PathBuf,
    pub(crate) reserve_bytes: u64,
    /// The disk was read-only when it was opened: nothing is written.
    pub(crate) read_only: bool,
    pub(crate) scrub_period_ms: u64,
    /// Counts passes that punch: a read that no pass overlapped saw the bytes that it looked up.
    pub(crate) punched: AtomicU64,
    /// Held by the pass that gives room back.
    pub(crate) reclaiming: Mutex<()>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) capacity: u64,
    pub(crate) trash_period_ms: u64,
    pub(crate) extent_bytes: u64,
    pub(crate) preallocate_bytes: u64,
    pub(crate) index_flush_bytes: u64,
    /// Held for its lock.
    pub(crate) _lock: File,
}

impl Shared {
    pub(crate) fn accounts(&self) -> Accounts {
        self.accounts.lock().accounts(self.capacity)
    }

    pub(crate) fn failure(&self) -> Option<String> {
        if self.read_only {
            return Some("its file system is read-only".to_owned());
        }
        self.failure.lock().clone()
    }

    /// Why nothing is written any more, if it is not.
    pub(crate) fn refusal(&self) -> Option<StoreError> {
        if self.read_only {
            return Some(StoreError::ReadOnly { dir: self.dir.clone() });
        }
        self.failure.lock().clone().map(|detail| StoreError::Failed { detail })
    }

    /// Remembers the first failure: nothing is written until the store is opened again.
    pub(crate) fn fail(&self, detail: String) {
        let mut failure = self.failure.lock();
        if failure.is_none() {
            tracing::error!(%detail, dir = %self.dir.display(), "the store takes no more writes until it is opened again");
            *failure = Some(detail);
        }
    }

    pub(crate) fn path(&self, extent: u64) -> PathBuf {
        extent_path(&self.extents, extent)
    }

    /// The open file of an extent.
    pub(crate) fn file(&self, extent: u64) -> std::io::Result<Arc<DiskFile>> {
        if let Some(file) = self.files.lock().get(&extent) {
            return Ok(Arc::clone(file));
        }
        // A path that leads elsewhere now must not make a held block look like a lost one.
        self.presence.check().map_err(|gone| std::io::Error::other(gone.to_string()))?;
        let file = self.disk.open(&self.path(extent), false)?;
        self.files.lock().put(extent, Arc::clone(&file));
        Ok(file)
    }
}

/// Where an extent is.
pub(crate) fn extent_path(dir: &Path, extent: u64) -> PathBuf {
    dir.join(format!("{extent:016x}.extent"))
}

/// The extent files of a directory.
pub(crate) fn list_extents(dir: &Path) -> Result<BTreeMap<u64, PathBuf>, OpenError> {
    let failed = |source| identity::failed(dir, "listing", source);
    let mut extents = BTreeMap::new();
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let id = path
            .extension()
            .is_some_and(|extension| extension == "extent")
            .then(|| path.file_stem().and_then(|stem| stem.to_str()))
            .flatten()
            .and_then(|stem| u64::from_str_radix(stem, 16).ok());
        match id {
            Some(id) if extent_path(dir, id) == path => {
                extents.insert(id, path);
            }
            _ => tracing::warn!(path = %path.display(), "a file among the extents is none; leaving it alone"),
        }
    }
    Ok(extents)
}

/// An open store: its state, the way to its writer, and the writer.
pub(crate) type Opened = (Arc<Shared>, mpsc::Sender<Command>, JoinHandle<()>);

/// Opens a store, replays what its index does not know yet, and starts its writer.
pub(crate) fn open(config: StoreConfig) -> Result<Opened, OpenError> {
    check(&config)?;
    let identity = identity::open(&config.dir, config.expect, config.clock.now_ms())?;
    let pools = match &config.pools {
        Some(pools) => pools.clone(),
        None => Pools::new(config.write_buffer_bytes, config.read_buffer_bytes),
    };
    let disk = match &config.disk {
        Some(disk) => Arc::clone(disk),
        None => choose_disk(config.io, &pools)?,
    };
    let index = open_index(&identity.index, config.index_cache_bytes, identity.read_only)?;
    let entries = NonZeroUsize::new(config.tree_cache_entries).unwrap_or(NonZeroUsize::MIN);
    let open_files = NonZeroUsize::new(OPEN_EXTENTS_MAX).unwrap_or(NonZeroUsize::MIN);
    let mut shared = Shared {
        id: identity.id,
        secret: identity.secret,
        disk,
        index,
        write_pool: pools.write,
        read_pool: pools.read,
        reads: Arc::new(Semaphore::new(READS_MAX)),
        extents: identity.extents,
        files: Mutex::new(LruCache::new(open_files)),
        trees: Mutex::new(LruCache::new(entries)),
        accounts: Mutex::new(AccountsRow::default()),
        failure: Mutex::new(None),
        presence: Presence::of(&config.dir, &identity.lock)?,
        checks: Checks::default(),
        verified: Verified::new(Arc::clone(&config.clock), config.verified_fresh_ms),
        scrub: ScrubState::load(&config.dir),
        generation: 0,
        reserve_bytes: config.reserve_bytes,
        read_only: identity.read_only,
        // What a scrub finds is written down: it waits until that can be done.
        scrub_period_ms: if identity.read_only { 0 } else { config.scrub_period_ms },
        dir: config.dir.clone(),
        punched: AtomicU64::new(0),
        reclaiming: Mutex::new(()),
        clock: config.clock,
        capacity: config.capacity_bytes,
        trash_period_ms: config.trash_period_ms,
        extent_bytes: config.extent_bytes,
        preallocate_bytes: config.preallocate_bytes,
        index_flush_bytes: config.index_flush_bytes,
        _lock: identity.lock,
    };
    if shared.read_only && replay::belongs_elsewhere(&shared.index, &shared.id)? {
        let detail =
            "the index belongs to another store, and cannot be rebuilt on a read-only disk".to_owned();
        return Err(OpenError::Identity { dir: shared.dir.clone(), detail });
    }
    if replay::belongs_elsewhere(&shared.index, &shared.id)? {
        tracing::warn!("the index belongs to another store; rebuilding it from the extents");
        let cache_bytes = config.index_cache_bytes;
        drop(shared.index);
        set_aside(&identity.index)?;
        shared.index = open_index(&identity.index, cache_bytes, false)?;
    }
    let index_failed = |source| OpenError::Index { source };
    shared.index.load_changed().map_err(index_failed)?;
    shared.generation = upgrade::upgrade(&shared.index).map_err(index_failed)?;
    let recovered = replay::replay(&shared, config.progress.as_deref())?;
    let shared = Arc::new(shared);
    let (commands, queue) = mpsc::channel(COMMANDS_MAX);
    let writer = Writer::start(Arc::clone(&shared), recovered, queue)
        .map_err(|source| identity::failed(&shared.extents, "starting the writer's thread", source))?;
    Ok((shared, commands, writer))
}

fn check(config: &StoreConfig) -> Result<(), OpenError> {
    let out = |setting, detail: String| Err(OpenError::Config { setting, detail });
    if !(EXTENT_BYTES_MIN..=EXTENT_BYTES_MAX).contains(&config.extent_bytes)
        || !config.extent_bytes.is_multiple_of(PAGE_BYTES)
    {
        let detail = format!("whole pages, from {EXTENT_BYTES_MIN} to {EXTENT_BYTES_MAX}");
        return out("extent_bytes", detail);
    }
    if config.preallocate_bytes == 0 || !config.preallocate_bytes.is_multiple_of(PAGE_BYTES) {
        return out("preallocate_bytes", format!("whole pages of {PAGE} bytes"));
    }
    Ok(())
}

fn choose_disk(io: IoMode, pools: &Pools) -> Result<Arc<dyn Disk>, OpenError> {
    let threads = || match ThreadDisk::start() {
        Ok(disk) => Ok(Arc::new(disk) as Arc<dyn Disk>),
        Err(source) => Err(OpenError::Uring { source }),
    };
    let ring = || UringDisk::start_with(&[&pools.write, &pools.read]);
    match io {
        IoMode::Threads => threads(),
        IoMode::Uring => match ring() {
            Ok(disk) => Ok(Arc::new(disk)),
            Err(source) => Err(OpenError::Uring { source }),
        },
        IoMode::Auto => match ring() {
            Ok(disk) => Ok(Arc::new(disk)),
            Err(error) => {
                static NOTED: std::sync::Once = std::sync::Once::new();
                NOTED.call_once(|| {
                    tracing::warn!(%error, "io_uring is not permitted here; using threads instead");
                });
                threads()
            }
        },
    }
}

fn open_index(dir: &Path, cache_bytes: usize, read_only: bool) -> Result<Index, OpenError> {
    let index_error = |source| OpenError::Index { source: IndexError::Rocks { source } };
    if read_only {
        tracing::error!(dir = %dir.display(), "the disk is read-only: its blocks are served, nothing is taken");
        return Index::open_read_only(dir, cache_bytes).map_err(index_error);
    }
    match Index::open(dir, cache_bytes) {
        Ok(index) => Ok(index),
        Err(error) if error.kind() == rocksdb::ErrorKind::Corruption => {
            tracing::error!(%error, dir = %dir.display(), "the index is damaged; rebuilding it from the extents");
            set_aside(dir)?;
            Index::open(dir, cache_bytes).map_err(index_error)
        }
        Err(error) => Err(index_error(error)),
    }
}

/// Keeps one damaged index for whoever wants to look.
pub(crate) fn set_aside(dir: &Path) -> Result<(), OpenError> {
    let aside = dir.with_extension("damaged");
    if aside.exists() {
        std::fs::remove_dir_all(&aside).map_err(|source| identity::failed(&aside, "removing", source))?;
    }
    std::fs::rename(dir, &aside).map_err(|source| identity::failed(dir, "setting aside", source))
}
