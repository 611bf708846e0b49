//! Verified blocks kept close: in memory, and on a local disk that outlives the process.
//!
//! What goes in was hashed against its digest ([`Block`] cannot be made otherwise); what comes out of the disk
//! is checked by the sums that were taken then, so that a disk that forgets or flips bits costs a miss and
//! never a wrong byte. Blocks are kept as they are named: of private objects that is ciphertext, and no key
//! ever comes here.
//!
//! One process owns a directory. A cache owes nobody anything: nothing is synced, whatever a crash leaves is
//! sorted out when the directory is opened, and no read waits for a write.
//!
//! When the order of an epoch is known ([`BlockCache::follow`]), the block whose next use lies farthest ahead
//! goes first and one that is wanted later than all others is not taken in; no other choice reads less.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use holdfast_protocol::Digest;
use holdfast_protocol::message::ByteRange;
use parking_lot::Mutex;

use crate::block::{Block, BlockRef};

mod counters;
mod disk;
mod error;
mod evict;
mod memory;
mod order;
mod segment;

pub use counters::CacheCounts;
pub use disk::DISK_BYTES_MIN;
pub use error::CacheError;
pub use order::EPOCH_ORDER_MAX;

use counters::Counters;
use disk::{DiskTier, Lookup};
use memory::MemoryTier;
use order::EpochOrder;

/// Which blocks the memory takes in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Admission {
    /// Every block: right for a reader that comes back.
    #[default]
    All,
    /// Blocks that came by before, or have a planned use: right for a gateway, where most bytes pass once.
    SecondSighting,
}

/// How large a cache may be, and where.
#[derive(Clone, Debug, Default)]
pub struct CacheConfig {
    /// Bytes of blocks in memory.
    pub memory_bytes: usize,
    /// Which blocks the memory takes in.
    pub admission: Admission,
    /// The part on the local disk, if there is one.
    pub disk: Option<DiskConfig>,
}

/// The part of a cache on a local disk.
#[derive(Clone, Debug)]
pub struct DiskConfig {
    /// Its directory; nobody else may use it meanwhile.
    pub dir: PathBuf,
    /// Bytes of all its files, at least [`DISK_BYTES_MIN`].
    pub bytes: u64,
}

/// A cache of verified blocks. Shared as an `Arc`; all methods may be called from everywhere at once.
pub struct BlockCache {
    memory: MemoryTier,
    disk: Option<DiskTier>,
    order: Mutex<EpochOrder>,
    counters: Arc<Counters>,
}

impl BlockCache {
    /// Opens a cache; what its directory holds from before is found again.
    pub async fn open(config: CacheConfig) -> Result<Arc<Self>, CacheError> {
        let opening = tokio::task::spawn_blocking(move || Self::open_now(config));
        opening.await.map_err(|_| CacheError::Stopping)?
    }

    /// [`BlockCache::open`] for threads that may block.
    pub fn open_now(config: CacheConfig) -> Result<Arc<Self>, CacheError> {
        let counters = Arc::new(Counters::default());
        let disk = match &config.disk {
            Some(disk) => Some(DiskTier::open(&disk.dir, disk.bytes, Arc::clone(&counters))?),
            None => None,
        };
        let memory = MemoryTier::new(config.memory_bytes, config.admission);
        Ok(Arc::new(Self { memory, disk, order: Mutex::default(), counters }))
    }

    /// A cache in memory alone.
    pub fn in_memory(bytes: usize) -> Arc<Self> {
        let memory = MemoryTier::new(bytes, Admission::All);
        Arc::new(Self { memory, disk: None, order: Mutex::default(), counters: Arc::default() })
    }

    /// Exactly `range` of the block, if it is here.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn get(&self, block: &BlockRef, range: ByteRange) -> Option<Bytes> {
        if range.len == 0 || range.end() > block.len.bytes() {
            return None;
        }
        let next_use = self.used(&block.digest);
        if let Some(bytes) = self.memory.get(&block.digest, next_use) {
            // Digest and length come from one trusted record, and the bytes hash to the digest.
            if range.end() as usize <= bytes.len() {
                self.counters.memory_hits.add();
                return Some(bytes.slice(range.start as usize..range.end() as usize));
            }
        }
        let found = match &self.disk {
            None => None,
            Some(disk) => match disk.get(&block.digest, range, next_use) {
                Lookup::Hit(bytes) => Some(bytes),
                Lookup::Miss => None,
                Lookup::Pending(pending) => {
                    tokio::task::spawn_blocking(move || pending.read()).await.ok().flatten()
                }
            },
        };
        let counter = if found.is_some() { &self.counters.disk_hits } else { &self.counters.misses };
        counter.add();
        found
    }

    /// Keeps a block, if it deserves its place. Never waits.
    pub fn put(&self, block: &Block) {
        let next_use = self.order.lock().next_use(&block.digest());
        self.memory.put(block.digest(), block.bytes(), next_use);
        if let Some(disk) = &self.disk {
            disk.put(block.digest(), block.bytes().clone(), next_use);
        }
    }

    /// Whether the block is here, as far as known without reading it. Does not count as a use.
    pub fn holds(&self, digest: &Digest) -> bool {
        self.memory.holds(digest) || self.disk.as_ref().is_some_and(|disk| disk.holds(digest))
    }

    /// The order in which blocks will be read from now on: the rest of this epoch, and the next one as far as
    /// it is known. Replaces the order given before; an empty one ends it. At most [`EPOCH_ORDER_MAX`] count.
    pub fn follow(&self, order: impl IntoIterator<Item = Digest>) {
        let mut held = self.order.lock();
        *held = EpochOrder::new(order);
        self.memory.replan(&held);
        if let Some(disk) = &self.disk {
            disk.replan(&held);
        }
    }

    /// Returns when all that was put before can be found on the disk by the next owner of the directory.
    pub async fn flush(&self) {
        if let Some(disk) = &self.disk {
            disk.flush().await;
        }
    }

    /// What it did and what it holds.
    pub fn counts(&self) -> CacheCounts {
        let (disk_bytes, disk_blocks) = self.disk.as_ref().map_or((0, 0), DiskTier::usage);
        CacheCounts {
            memory_bytes: self.memory.bytes() as u64,
            disk_bytes,
            disk_blocks: disk_blocks as u64,
            ..self.counters.snapshot()
        }
    }

    fn used(&self, digest: &Digest) -> Option<u64> {
        let mut order = self.order.lock();
        if order.is_over() {
            return None;
        }
        order.used(digest);
        order.next_use(digest)
    }
}

impl std::fmt::Debug for BlockCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BlockCache").field("counts", &self.counts()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
