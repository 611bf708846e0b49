//! What a cache did, in numbers.

use crate::fetch::Counter;

/// What a cache did since its start, and what it holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheCounts {
    /// Look-ups answered from memory.
    pub memory_hits: u64,
    /// Look-ups answered from the disk.
    pub disk_hits: u64,
    /// Look-ups not answered.
    pub misses: u64,
    /// Blocks written to the disk.
    pub written: u64,
    /// Blocks not written because too many waited.
    pub skipped: u64,
    /// Blocks dropped because the disk had changed them.
    pub damaged: u64,
    /// Writes that failed.
    pub write_errors: u64,
    /// Bytes of blocks in memory.
    pub memory_bytes: u64,
    /// Bytes of files on the disk.
    pub disk_bytes: u64,
    /// Blocks on the disk.
    pub disk_blocks: u64,
}

/// The counters behind [`CacheCounts`].
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) memory_hits: Counter,
    pub(super) disk_hits: Counter,
    pub(super) misses: Counter,
    pub(super) written: Counter,
    pub(super) skipped: Counter,
    pub(super) damaged: Counter,
    pub(super) write_errors: Counter,
}

impl Counters {
    pub(super) fn snapshot(&self) -> CacheCounts {
        CacheCounts {
            memory_hits: self.memory_hits.read(),
            disk_hits: self.disk_hits.read(),
            misses: self.misses.read(),
            written: self.written.read(),
            skipped: self.skipped.read(),
            damaged: self.damaged.read(),
            write_errors: self.write_errors.read(),
            ..CacheCounts::default()
        }
    }
}
