//! Memory of uploads: admitted in bytes, a stripe at a time, and used again.
//!
//! A lease covers all blocks of one stripe and is taken before the first of them is filled. Were blocks admitted one
//! by one, uploads could each hold a part of a stripe and wait for each other forever. The lease ends when the last
//! block made under it is dropped, so what is in flight to nodes counts too. Buffers of whole blocks are kept for the
//! next upload: fresh pages from the kernel cost more than hashing what is put in them.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use bytes::Bytes;
use holdfast_protocol::limits::BLOCK_LEN_MAX;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::s3::session::tenant;

const BLOCK_BYTES: usize = BLOCK_LEN_MAX as usize;
/// Idle buffers kept; about what two stripes of 10+4 need.
const IDLE_BUFFERS_MAX: usize = 24;
/// A tenant that is not the owner holds at most this fraction of the memory: whoever leaves uploads hanging leaves the
/// greater part to others.
const TENANT_SHARE: usize = 4;

/// The memory that all uploads share.
pub(crate) struct UploadMemory {
    budget: Arc<Semaphore>,
    budget_bytes: usize,
    /// What each tenant may hold, while it holds any; permits keep their semaphores alive.
    shares: Mutex<HashMap<String, Weak<Semaphore>>>,
    idle: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl UploadMemory {
    /// A budget of `bytes` for bodies and the parity made of them.
    pub(crate) fn new(bytes: usize) -> Self {
        let budget_bytes = bytes.clamp(1, Semaphore::MAX_PERMITS >> 3);
        Self {
            budget: Arc::new(Semaphore::new(budget_bytes)),
            budget_bytes,
            shares: Mutex::default(),
            idle: Arc::default(),
        }
    }

    /// Waits until `bytes` of a stripe, parity included, fit into the budget. More than the whole budget counts as
    /// the whole budget, so that a small one slows uploads down and never stops them.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(crate) async fn lease(&self, bytes: usize) -> Lease {
        // A tenant waits for its own share first, so that its uploads in waiting stand in nobody else's way.
        let share = match tenant() {
            Some(tenant) => Some(self.lease_share(&tenant, bytes).await),
            None => None,
        };
        let bytes = bytes.min(self.budget_bytes).max(1);
        let permits = u32::try_from(bytes).unwrap_or(u32::MAX);
        let permit = Arc::clone(&self.budget)
            .acquire_many_owned(permits)
            .await
            .expect("the budget's semaphore is never closed");
        Lease { _permit: Arc::new((share, permit)), idle: Arc::clone(&self.idle) }
    }

    async fn lease_share(&self, tenant: &str, bytes: usize) -> OwnedSemaphorePermit {
        let share_bytes = (self.budget_bytes / TENANT_SHARE).max(1);
        let share = {
            let mut shares = self.shares.lock();
            shares.retain(|_, share| share.strong_count() > 0);
            let share = shares.get(tenant).and_then(std::sync::Weak::upgrade);
            share.unwrap_or_else(|| {
                let share = Arc::new(Semaphore::new(share_bytes));
                shares.insert(tenant.to_owned(), Arc::downgrade(&share));
                share
            })
        };
        let permits = u32::try_from(bytes.min(share_bytes).max(1)).unwrap_or(u32::MAX);
        share.acquire_many_owned(permits).await.expect("a share's semaphore is never closed")
    }

    /// Bytes not leased.
    pub(crate) fn free_bytes(&self) -> usize {
        self.budget.available_permits()
    }

    /// Bytes in all.
    pub(crate) fn budget_bytes(&self) -> usize {
        self.budget_bytes
    }
}

/// Memory for the blocks of one stripe.
#[derive(Clone)]
pub(crate) struct Lease {
    _permit: Arc<(Option<OwnedSemaphorePermit>, OwnedSemaphorePermit)>,
    idle: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Lease {
    /// An empty buffer for a block of `len` bytes.
    pub(crate) fn buffer(&self, len: usize) -> Buffer {
        let bytes = if len > BLOCK_BYTES / 2 {
            self.idle.lock().pop().unwrap_or_else(|| Vec::with_capacity(BLOCK_BYTES))
        } else {
            Vec::with_capacity(len)
        };
        Buffer { bytes, len, lease: self.clone() }
    }
}

/// A block being filled.
pub(crate) struct Buffer {
    bytes: Vec<u8>,
    len: usize,
    lease: Lease,
}

impl Buffer {
    /// Takes as much of `source` as fits, and says how much that was.
    pub(crate) fn fill(&mut self, source: &[u8]) -> usize {
        let taken = source.len().min(self.len - self.bytes.len());
        self.bytes.extend_from_slice(&source[..taken]);
        taken
    }

    /// Whether nothing fits any more.
    pub(crate) fn is_full(&self) -> bool {
        self.bytes.len() == self.len
    }

    /// What was filled in, for enciphering in place.
    pub(crate) fn filled_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    /// The bytes, immutable; the lease and the buffer go with them.
    pub(crate) fn freeze(self) -> Bytes {
        Bytes::from_owner(Frozen { bytes: self.bytes, lease: self.lease })
    }
}

struct Frozen {
    bytes: Vec<u8>,
    lease: Lease,
}

impl AsRef<[u8]> for Frozen {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        if self.bytes.capacity() == BLOCK_BYTES {
            let mut bytes = std::mem::take(&mut self.bytes);
            bytes.clear();
            let mut idle = self.lease.idle.lock();
            if idle.len() < IDLE_BUFFERS_MAX {
                idle.push(bytes);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_lease_ends_with_the_last_block_made_under_it() {
        let memory = UploadMemory::new(100);
        let lease = memory.lease(60).await;
        let (mut first, second) = (lease.buffer(30), lease.buffer(30));
        assert_eq!(first.fill(&[7; 40]), 30);
        assert!(first.is_full());
        drop((lease, second));
        let bytes = first.freeze();
        assert_eq!(memory.free_bytes(), 40);
        assert_eq!(&bytes[..], &[7; 30]);
        let slice = bytes.slice(3..5);
        drop(bytes);
        assert_eq!(memory.free_bytes(), 40);
        drop(slice);
        assert_eq!(memory.free_bytes(), 100);
    }

    #[tokio::test]
    async fn more_than_the_budget_waits_for_all_of_it_and_then_goes_on() {
        let memory = UploadMemory::new(100);
        let small = memory.lease(1).await;
        let mut large = Box::pin(memory.lease(1_000_000));
        assert!(futures::poll!(large.as_mut()).is_pending());
        drop(small);
        let large = large.await;
        assert_eq!(memory.free_bytes(), 0);
        drop(large);
        assert_eq!(memory.free_bytes(), memory.budget_bytes());
    }

    #[tokio::test]
    async fn whole_block_buffers_are_used_again() {
        let memory = UploadMemory::new(10 * BLOCK_BYTES);
        let lease = memory.lease(BLOCK_BYTES).await;
        let mut buffer = lease.buffer(BLOCK_BYTES);
        buffer.fill(b"old");
        drop(buffer.freeze());
        assert_eq!(memory.idle.lock().len(), 1);
        let again = lease.buffer(BLOCK_BYTES);
        assert!(again.bytes.is_empty());
        assert!(memory.idle.lock().is_empty());
    }
}
