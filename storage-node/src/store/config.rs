//! How a store is set up: sizes, periods, bounds. Owns no behaviour.

use std::path::PathBuf;
use std::sync::Arc;

use holdfast_protocol::time::{Clock, SystemClock};

use crate::disk::Disk;

/// One GiB, the usual length of an extent file.
pub const EXTENT_BYTES_DEFAULT: u64 = 1 << 30;
/// The shortest extent that can hold a head, one record of the longest block and some small records.
pub const EXTENT_BYTES_MIN: u64 = 2 << 20;
/// The longest extent; offsets stay far below what a file system can address.
pub const EXTENT_BYTES_MAX: u64 = 64 << 30;
/// How long released blocks can be restored: a week.
pub const TRASH_PERIOD_DEFAULT_MS: u64 = 7 * 24 * 3600 * 1000;

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
            index_cache_bytes: 32 << 20,
            index_flush_bytes: 256 << 20,
            write_buffer_bytes: 128 << 20,
            read_buffer_bytes: 128 << 20,
            tree_cache_entries: 4096,
            clock: Arc::new(SystemClock),
            disk: None,
        }
    }
}
