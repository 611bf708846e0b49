//! Page-aligned memory, bounded in bytes: what O_DIRECT reads into and writes from.
//!
//! Buffers come in a few sizes and are kept for reuse, because allocating and faulting in a megabyte costs
//! as much as hashing it. Whoever holds a buffer holds permits for its bytes.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Weak};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::raw::{Pages, Slab};

/// The unit of everything on disk: header pages, padding, alignment. Every disk's logical block divides it.
pub const PAGE: usize = 4096;

/// Sizes, in pages, that buffers come in: a header page alone, then 16 KiB, 64 KiB, 256 KiB and 1 MiB of
/// data behind one.
const CLASSES: [usize; 5] = [1, 5, 17, 65, 257];
/// Pages of the largest buffer.
pub const BUFFER_PAGES_MAX: usize = CLASSES[CLASSES.len() - 1];

/// How many buffers of each size a slab is cut into: 4 MiB together.
const SLAB_RUNS: [usize; CLASSES.len()] = [13, 5, 5, 2, 3];
/// Slabs of a pool.
const SLABS: usize = 2;

/// Hands out buffers and takes them back.
pub struct BufferPool {
    permits: Arc<Semaphore>,
    /// Memory that a ring may have registered: used before any other.
    slabs: Vec<Arc<Slab>>,
    idle: Mutex<Idle>,
    pages_max: usize,
}

/// Buffers that nobody has, by size.
#[derive(Default)]
struct Idle {
    /// Cut from slabs: handed out first, and never given up.
    lent: [Vec<Pages>; CLASSES.len()],
    own: [Vec<Pages>; CLASSES.len()],
}

impl BufferPool {
    /// A pool that has at most `bytes` handed out at a time, and keeps at most as much idle.
    pub fn new(bytes: usize) -> Arc<Self> {
        let pages_max = (bytes / PAGE).max(2 * BUFFER_PAGES_MAX);
        let mut idle = Idle::default();
        let runs = CLASSES.iter().zip(SLAB_RUNS);
        let sizes: Vec<usize> = runs.flat_map(|(pages, runs)| std::iter::repeat_n(*pages, runs)).collect();
        let mut slabs = Vec::with_capacity(SLABS);
        for _ in 0..SLABS {
            let (slab, cut) = Slab::cut(&sizes);
            for pages in cut {
                if let Some(class) = class_of(pages.len()) {
                    idle.lent[class].push(pages);
                }
            }
            slabs.push(slab);
        }
        Arc::new(Self {
            permits: Arc::new(Semaphore::new(pages_max)),
            slabs,
            idle: Mutex::new(idle),
            pages_max,
        })
    }

    /// A buffer of at least `len` bytes, waiting until the bound permits. `None` past the largest size.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn take(self: &Arc<Self>, len: usize) -> Option<AlignedBuf> {
        let class = class_of(len)?;
        let count = u32::try_from(CLASSES[class]).ok()?;
        let permit = Arc::clone(&self.permits).acquire_many_owned(count).await.ok()?;
        Some(self.lend(class, Some(permit)))
    }

    /// A buffer outside the bound, for the store's own pages, of which it holds a bounded number itself.
    pub fn take_unbounded(self: &Arc<Self>, len: usize) -> Option<AlignedBuf> {
        class_of(len).map(|class| self.lend(class, None))
    }

    /// Memory to register with a ring.
    pub(crate) fn slabs(&self) -> &[Arc<Slab>] {
        &self.slabs
    }

    fn lend(self: &Arc<Self>, class: usize, permit: Option<OwnedSemaphorePermit>) -> AlignedBuf {
        let reused = {
            let mut idle = self.idle.lock();
            idle.lent[class].pop().or_else(|| idle.own[class].pop())
        };
        let pages = reused.unwrap_or_else(|| Pages::zeroed(CLASSES[class]));
        AlignedBuf { pages: Some(pages), home: Arc::downgrade(self), _permit: permit }
    }

    fn give_back(&self, pages: Pages) {
        let Some(class) = class_of(pages.len()) else { return };
        let mut idle = self.idle.lock();
        if pages.is_lent() {
            idle.lent[class].push(pages);
            return;
        }
        let held: usize = idle.own.iter().zip(CLASSES).map(|(list, size)| list.len() * size).sum();
        if held + CLASSES[class] <= self.pages_max {
            idle.own[class].push(pages);
        }
    }
}

fn class_of(len: usize) -> Option<usize> {
    CLASSES.iter().position(|pages| pages * PAGE >= len)
}

/// Memory aligned to [`PAGE`], whole pages long. Contents are whatever its last user left.
pub struct AlignedBuf {
    /// `None` only while being dropped.
    pages: Option<Pages>,
    home: Weak<BufferPool>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl AlignedBuf {
    /// `start..end` of the buffer as [`Bytes`], without copying; the memory returns to its pool when the last
    /// slice is dropped.
    pub fn into_bytes(self, start: usize, end: usize) -> Bytes {
        Bytes::from_owner(self).slice(start..end)
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.pages.as_ref().map_or(&[], |pages| pages)
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.pages.as_mut().map_or(&mut [], |pages| pages)
    }
}

impl AsRef<[u8]> for AlignedBuf {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        if let Some(pages) = self.pages.take()
            && let Some(home) = self.home.upgrade()
        {
            home.give_back(pages);
        }
    }
}

impl std::fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AlignedBuf({} bytes)", self.len())
    }
}
