//! Blocks that were rebuilt a moment ago, and rebuilds under way.
//!
//! A rebuild reads k blocks to give one, so readers of neighbouring ranges must share it: whoever asks for a
//! block that is being rebuilt waits for the same result, and a few megabytes of results are kept.

use std::collections::HashMap;
use std::sync::Arc;

use futures::FutureExt;
use futures::future::{BoxFuture, Shared, WeakShared};
use holdfast_protocol::Digest;
use lru::LruCache;
use parking_lot::Mutex;

use super::FetchError;
use super::read::VerifiedBytes;

pub(crate) type RebuildResult = Result<VerifiedBytes, FetchError>;
type Running = BoxFuture<'static, RebuildResult>;

/// Dead entries of the table of running rebuilds are swept when it passes this size.
const RUNNING_SWEEP: usize = 64;

/// The cache and the table of running rebuilds.
pub(crate) struct Rebuilt {
    state: Mutex<State>,
    max_bytes: usize,
}

struct State {
    blocks: LruCache<Digest, VerifiedBytes>,
    bytes: usize,
    running: HashMap<Digest, WeakShared<Running>>,
}

impl Rebuilt {
    /// A cache of at most `max_bytes`.
    pub(crate) fn new(max_bytes: usize) -> Arc<Self> {
        let state = State { blocks: LruCache::unbounded(), bytes: 0, running: HashMap::new() };
        Arc::new(Self { state: Mutex::new(state), max_bytes })
    }

    /// The block, if it was rebuilt lately.
    pub(crate) fn get(&self, digest: &Digest) -> Option<VerifiedBytes> {
        self.state.lock().blocks.get(digest).cloned()
    }

    /// Joins the rebuild of this block, or starts the one that `make` gives.
    ///
    /// The rebuild runs while anybody waits for it, and stops when nobody does.
    pub(crate) fn join(self: &Arc<Self>, digest: Digest, make: impl FnOnce() -> Running) -> Shared<Running> {
        let mut state = self.state.lock();
        if let Some(running) = state.running.get(&digest).and_then(WeakShared::upgrade) {
            return running;
        }
        let rebuild = make();
        let cache = Arc::clone(self);
        let kept = async move {
            let result = rebuild.await;
            cache.finished(digest, result.as_ref().ok());
            result
        };
        let shared = kept.boxed().shared();
        if state.running.len() >= RUNNING_SWEEP {
            state.running.retain(|_, running| running.upgrade().is_some());
        }
        if let Some(weak) = shared.downgrade() {
            state.running.insert(digest, weak);
        }
        shared
    }

    fn finished(&self, digest: Digest, bytes: Option<&VerifiedBytes>) {
        self.state.lock().running.remove(&digest);
        if let Some(bytes) = bytes {
            self.keep(digest, bytes);
        }
    }

    /// Keeps a whole block for whoever wants it next.
    pub(crate) fn keep(&self, digest: Digest, bytes: &VerifiedBytes) {
        if bytes.len() > self.max_bytes {
            return;
        }
        let mut state = self.state.lock();
        state.bytes += bytes.len();
        if let Some(old) = state.blocks.put(digest, bytes.clone()) {
            state.bytes -= old.len();
        }
        while state.bytes > self.max_bytes {
            let Some((_, oldest)) = state.blocks.pop_lru() else { break };
            state.bytes -= oldest.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use bytes::Bytes;
    use holdfast_protocol::BlockLen;

    use super::*;
    use crate::block::BlockRef;

    fn verified(byte: u8, len: usize) -> (Digest, VerifiedBytes) {
        let bytes = Bytes::from(vec![byte; len]);
        let digest = Digest::of(&bytes);
        let block = BlockRef { digest, len: BlockLen::of(&bytes).unwrap() };
        (digest, VerifiedBytes::whole(block, bytes).unwrap())
    }

    #[tokio::test]
    async fn readers_of_one_block_share_its_rebuild() {
        let cache = Rebuilt::new(100);
        let (digest, bytes) = verified(1, 60);
        let runs = Arc::new(AtomicUsize::new(0));
        let make = || {
            let (runs, bytes) = (Arc::clone(&runs), bytes.clone());
            async move {
                runs.fetch_add(1, Ordering::Relaxed);
                tokio::task::yield_now().await;
                Ok(bytes)
            }
            .boxed()
        };
        let (first, second) = (cache.join(digest, make), cache.join(digest, make));
        let (first, second) = tokio::join!(first, second);
        assert_eq!(first.unwrap().len() + second.unwrap().len(), 120);
        assert_eq!(runs.load(Ordering::Relaxed), 1);
        assert_eq!(cache.get(&digest).unwrap().len(), 60);
    }

    #[tokio::test]
    async fn the_cache_stays_within_its_bytes() {
        let cache = Rebuilt::new(100);
        let (one, bytes_one) = verified(1, 60);
        let (two, bytes_two) = verified(2, 60);
        cache.join(one, || async move { Ok(bytes_one) }.boxed()).await.unwrap();
        cache.join(two, || async move { Ok(bytes_two) }.boxed()).await.unwrap();
        assert!(cache.get(&one).is_none());
        assert!(cache.get(&two).is_some());
    }

    #[tokio::test]
    async fn an_abandoned_rebuild_does_not_block_the_next() {
        let cache = Rebuilt::new(100);
        let (digest, bytes) = verified(1, 10);
        drop(cache.join(digest, || futures::future::pending().boxed()));
        cache.join(digest, || async move { Ok(bytes) }.boxed()).await.unwrap();
        assert!(cache.get(&digest).is_some());
    }
}
