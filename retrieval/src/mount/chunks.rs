//! Chunks of object versions in memory: what was fetched ahead of the kernel's reads.
//!
//! One table for the whole mount, bounded in bytes. A chunk being fetched is there already, so that a second reader
//! waits instead of fetching it again. The kernel's page cache is the long memory; this one is a doorstep: a chunk
//! that was handed over whole is let go at once, so that its buffer is filled again while it is warm.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use lru::LruCache;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::backend::BackendError;
use super::pattern::CHUNK_LEN;

/// A chunk of a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct ChunkId {
    /// [`super::tree::Version::id`].
    pub(super) version: u64,
    /// Which chunk.
    pub(super) index: u64,
}

/// A chunk on its way.
#[derive(Debug, Default)]
pub(super) struct Load {
    result: OnceLock<Result<Bytes, BackendError>>,
    done: Notify,
    /// Bytes that those who wait for it will take.
    promised: AtomicU64,
}

impl Load {
    /// The chunk, once it is there.
    pub(super) async fn wait(&self) -> Result<Bytes, BackendError> {
        loop {
            let done = self.done.notified();
            tokio::pin!(done);
            done.as_mut().enable();
            if let Some(result) = self.result.get() {
                return result.clone();
            }
            done.await;
        }
    }

    /// It has come, or will not. The first word counts.
    pub(super) fn finish(&self, result: Result<Bytes, BackendError>) {
        let _ = self.result.set(result);
        self.done.notify_waiters();
    }
}

/// What the table knows of a chunk.
#[derive(Debug)]
pub(super) enum Found {
    Ready(Bytes),
    Loading(Arc<Load>),
}

/// A chunk that is there.
#[derive(Debug)]
struct Kept {
    bytes: Bytes,
    /// Bytes of it handed over.
    served: u64,
}

impl Kept {
    fn is_used_up(&self) -> bool {
        self.served >= self.bytes.len() as u64
    }
}

#[derive(Debug)]
struct Inner {
    ready: LruCache<ChunkId, Kept>,
    ready_bytes: u64,
    loading: HashMap<ChunkId, Arc<Load>>,
}

/// The table.
#[derive(Debug)]
pub(super) struct Chunks {
    capacity: u64,
    inner: Mutex<Inner>,
}

impl Chunks {
    pub(super) fn new(capacity: u64) -> Self {
        let inner = Inner { ready: LruCache::unbounded(), ready_bytes: 0, loading: HashMap::new() };
        Self { capacity, inner: Mutex::new(inner) }
    }

    /// The chunk, there or on its way, for a reader who takes `len` bytes of it.
    pub(super) fn find(&self, id: ChunkId, len: u64) -> Option<Found> {
        let mut inner = self.inner.lock();
        if let Some(kept) = inner.ready.get_mut(&id) {
            kept.served += len;
            let bytes = kept.bytes.clone();
            if kept.is_used_up() {
                inner.ready.pop(&id);
                inner.ready_bytes -= bytes.len() as u64;
            }
            return Some(Found::Ready(bytes));
        }
        let load = inner.loading.get(&id)?;
        load.promised.fetch_add(len, Ordering::Relaxed);
        Some(Found::Loading(Arc::clone(load)))
    }

    /// Takes on the fetching of the chunks in `indexes` that nobody has or fetches, in runs of neighbours. What is
    /// not `urgent` is left out once half the capacity is on its way.
    pub(super) fn claim(&self, version: u64, indexes: std::ops::Range<u64>, urgent: bool) -> Vec<Claim> {
        let mut inner = self.inner.lock();
        let mut claims: Vec<Claim> = Vec::new();
        for index in indexes {
            let id = ChunkId { version, index };
            if inner.ready.contains(&id) || inner.loading.contains_key(&id) {
                continue;
            }
            let on_the_way = (inner.loading.len() as u64 + 1) * CHUNK_LEN;
            if !urgent && on_the_way > self.capacity / 2 {
                break;
            }
            let load = Arc::new(Load::default());
            inner.loading.insert(id, Arc::clone(&load));
            match claims.last_mut() {
                Some(claim) if claim.first + claim.loads.len() as u64 == index => claim.loads.push(load),
                _ => claims.push(Claim { version, first: index, loads: vec![load] }),
            }
        }
        claims
    }

    /// A claimed chunk has come, or will not.
    pub(super) fn settle(&self, id: ChunkId, load: &Load, result: Result<Bytes, BackendError>) {
        {
            let mut inner = self.inner.lock();
            inner.loading.remove(&id);
            if let Ok(bytes) = &result {
                let kept = Kept { bytes: bytes.clone(), served: load.promised.load(Ordering::Relaxed) };
                if !kept.is_used_up() {
                    inner.keep(id, kept, self.capacity);
                }
            }
        }
        load.finish(result);
    }

    /// Forgets what is kept of a version.
    pub(super) fn forget(&self, version: u64, chunks: u64) {
        let mut inner = self.inner.lock();
        for index in 0..chunks {
            if let Some(kept) = inner.ready.pop(&ChunkId { version, index }) {
                inner.ready_bytes -= kept.bytes.len() as u64;
            }
        }
    }
}

impl Inner {
    fn keep(&mut self, id: ChunkId, kept: Kept, capacity: u64) {
        self.ready_bytes += kept.bytes.len() as u64;
        if let Some(old) = self.ready.put(id, kept) {
            self.ready_bytes -= old.bytes.len() as u64;
        }
        while self.ready_bytes > capacity {
            let Some((_, evicted)) = self.ready.pop_lru() else { break };
            self.ready_bytes -= evicted.bytes.len() as u64;
        }
    }
}

/// Neighbouring chunks that one task fetches.
#[derive(Debug)]
pub(super) struct Claim {
    pub(super) version: u64,
    pub(super) first: u64,
    pub(super) loads: Vec<Arc<Load>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk() -> Bytes {
        Bytes::from(vec![7; usize::try_from(CHUNK_LEN).expect("fits")])
    }

    #[test]
    fn a_chunk_is_claimed_once_and_waited_for_by_all() {
        let chunks = Chunks::new(64 * CHUNK_LEN);
        let claims = chunks.claim(1, 0..4, true);
        assert_eq!((claims.len(), claims[0].loads.len()), (1, 4));
        assert!(chunks.claim(1, 1..3, true).is_empty());
        assert_eq!(chunks.claim(1, 2..6, true)[0].first, 4);
        assert!(matches!(chunks.find(ChunkId { version: 1, index: 0 }, 1), Some(Found::Loading(_))));
        chunks.settle(ChunkId { version: 1, index: 0 }, &claims[0].loads[0], Ok(chunk()));
        assert!(matches!(chunks.find(ChunkId { version: 1, index: 0 }, 1), Some(Found::Ready(_))));
    }

    #[tokio::test]
    async fn a_failed_chunk_tells_its_waiters_and_may_be_claimed_again() {
        let chunks = Chunks::new(64 * CHUNK_LEN);
        let claims = chunks.claim(1, 0..1, true);
        let down = BackendError::Unreachable { why: "down".to_owned() };
        let load = Arc::clone(&claims[0].loads[0]);
        let waiter = tokio::spawn(async move { load.wait().await });
        chunks.settle(ChunkId { version: 1, index: 0 }, &claims[0].loads[0], Err(down));
        assert!(waiter.await.expect("no panic").is_err());
        assert_eq!(chunks.claim(1, 0..1, true).len(), 1);
    }

    #[test]
    fn what_was_handed_over_whole_is_let_go() {
        let chunks = Chunks::new(64 * CHUNK_LEN);
        let id = |index| ChunkId { version: 1, index };
        let claims = chunks.claim(1, 0..2, true);
        // One is waited for by readers of both halves, the other is read when it is there.
        for _ in 0..2 {
            assert!(matches!(chunks.find(id(0), CHUNK_LEN / 2), Some(Found::Loading(_))));
        }
        for (index, load) in (0..).zip(&claims[0].loads) {
            chunks.settle(id(index), load, Ok(chunk()));
        }
        assert!(chunks.find(id(0), 1).is_none());
        assert!(matches!(chunks.find(id(1), CHUNK_LEN - 1), Some(Found::Ready(_))));
        assert!(matches!(chunks.find(id(1), 1), Some(Found::Ready(_))));
        assert!(chunks.find(id(1), 1).is_none());
        assert_eq!(chunks.inner.lock().ready_bytes, 0);
    }

    #[test]
    fn memory_stays_within_the_capacity() {
        let chunks = Chunks::new(8 * CHUNK_LEN);
        assert_eq!(chunks.claim(1, 0..100, false)[0].loads.len(), 4, "half the capacity may be on its way");
        for index in 0..40 {
            for claim in chunks.claim(2, index..index + 1, true) {
                chunks.settle(ChunkId { version: 2, index }, &claim.loads[0], Ok(chunk()));
            }
        }
        assert_eq!(chunks.inner.lock().ready_bytes, 8 * CHUNK_LEN);
        chunks.forget(2, 40);
        assert_eq!(chunks.inner.lock().ready_bytes, 0);
    }
}
