//! How a store is set up: sizes, periods, bounds. Owns no behaviour.

use std::path::PathBuf;
use std::sync::Arc;

use holdfast_protocol::time::{Clock, SystemClock};

use super::types::Replayed;
use crate::disk::{BufferPool, Disk};

/// One GiB, the usual length of an extent file.
pub const EXTENT_BYTES_DEFAULT: u64 = 1 << 30;
/// The shortest extent that can hold a head, one record of the longest block and some small records.
pub const EXTENT_BYTES_MIN: u64 = 2 << 20;
/// The longest extent; offsets stay far below what a file system can address.
pub const EXTENT_BYTES_MAX: u64 = 64 << 30;
/// How long released blocks can be restored: a week.
pub const TRASH_PERIOD_DEFAULT_MS: u64 = 7 * 24 * 3600 * 1000;

/// RocksDB's block cache. Half of it is for filters and for the indexes of tables, which take 50 MiB at 10 million blocks: with
/// less, every put of a new block would read them from the disk again. It fills as an index grows.
pub const INDEX_CACHE_DEFAULT_BYTES: usize = 128 << 20;

/// Room of the file system that blocks leave free, at most; a 32nd of a small one.
pub const RESERVE_BYTES_DEFAULT: u64 = 256 << 20;
/// How long a held block that was read or written whole counts as looked at: a put of the same bytes within this
/// time does not read them again.
pub const VERIFIED_FRESH_DEFAULT_MS: u64 = 24 * 3600 * 1000;
/// How long a scrub takes over everything, by default: 30 days, 4 MB/s for 10 TB.
pub const SCRUB_PERIOD_DEFAULT_MS: u64 = 30 * 24 * 3600 * 1000;

/// Which store a directory must hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Expect {
    /// Whichever is there; made when there is none.
    #[default]
    Any,
    /// This one: an empty or another directory is a mount that vanished or was swapped, and is left alone.
    Store([u8; 16]),
}

/// Memory for blocks on their way in and out; stores of one node share it.
#[derive(Clone)]
pub struct Pools {
    /// For blocks on their way in.
    pub write: Arc<BufferPool>,
    /// For blocks on their way out.
    pub read: Arc<BufferPool>,
}

impl Pools {
    /// Pools of these many bytes.
    pub fn new(write_bytes: usize, read_bytes: usize) -> Self {
        Self { write: BufferPool::new(write_bytes), read: BufferPool::new(read_bytes) }
    }
}

/// Told how far a replay has come.
pub type Progress = Arc<dyn Fn(Replayed) + Send + Sync>;

/// Which way bytes reach the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IoMode {
    /// io_uring when the system permits it, else threads.
    #[default]
    Auto,
    /// io_uring, or fail to open.
    Uring,
    /// A bounded pool of threads with pread and pwrite.
    Threads,
}

/// Everything that [`super::Store::open`] needs.
#[derive(Clone)]
pub struct StoreConfig {
    /// The store's directory; made when absent.
    pub dir: PathBuf,
    /// Bytes the store may occupy, headers and small records included.
    pub capacity_bytes: u64,
    /// How to do I/O.
    pub io: IoMode,
    /// How long a claim stays in trash before its bytes go.
    pub trash_period_ms: u64,
    /// Length of an extent file.
    pub extent_bytes: u64,
    /// Extents grow on disk in steps of this many bytes, so that small stores stay small.
    pub preallocate_bytes: u64,
    /// RocksDB's block cache.
    pub index_cache_bytes: usize,
    /// The index is made durable after this many appended bytes: it bounds what a restart replays.
    pub index_flush_bytes: u64,
    /// Bytes of buffers for blocks on their way in.
    pub write_buffer_bytes: usize,
    /// Bytes of buffers for blocks on their way out.
    pub read_buffer_bytes: usize,
    /// Group trees kept in memory, about 2 KiB each.
    pub tree_cache_entries: usize,
    /// Instead of pools of its own of the sizes above.
    pub pools: Option<Pools>,
    /// Which store it must be.
    pub expect: Expect,
    /// Room of the file system that blocks leave free.
    pub reserve_bytes: u64,
    /// For how long a block counts as looked at.
    pub verified_fresh_ms: u64,
    /// In which time every block is verified; 0 for never.
    pub scrub_period_ms: u64,
    /// Told how far opening has come.
    pub progress: Option<Progress>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Replaces the disk that `io` would choose: for fault injection and simulation.
    pub disk: Option<Arc<dyn Disk>>,
}

impl StoreConfig {
    /// The defaults for a store of `capacity_bytes` in `dir`.
    pub fn new(dir: impl Into<PathBuf>, capacity_bytes: u64) -> Self {
        Self {
            dir: dir.into(),
            capacity_bytes,
            io: IoMode::Auto,
            trash_period_ms: TRASH_PERIOD_DEFAULT_MS,
            extent_bytes: EXTENT_BYTES_DEFAULT,
            preallocate_bytes: 64 << 20,
            index_cache_bytes: INDEX_CACHE_DEFAULT_BYTES,
            index_flush_bytes: 256 << 20,
            write_buffer_bytes: 128 << 20,
            read_buffer_bytes: 128 << 20,
            tree_cache_entries: 4096,
            pools: None,
            expect: Expect::Any,
            reserve_bytes: RESERVE_BYTES_DEFAULT,
            verified_fresh_ms: VERIFIED_FRESH_DEFAULT_MS,
            scrub_period_ms: SCRUB_PERIOD_DEFAULT_MS,
            progress: None,
            clock: Arc::new(SystemClock),
            disk: None,
        }
    }
}
