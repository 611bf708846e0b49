//! Whole blocks on their way from a node: whoever wants one that is under way already waits for the same bytes.
//!
//! Reading a whole stripe of which some nodes are down asks for the same shards twice: once for their own
//! sake, once to rebuild those that are missing. Shared, a stripe costs k shards whatever is missing of it.

use std::collections::HashMap;
use std::sync::Arc;

use futures::FutureExt;
use futures::future::{BoxFuture, Shared, WeakShared};
use holdfast_protocol::{Digest, NodeId};
use parking_lot::Mutex;

use super::ReadFault;
use super::read::VerifiedBytes;

type Running = BoxFuture<'static, Result<VerifiedBytes, ReadFault>>;

/// Entries whose flights were abandoned are swept when the table passes this size.
const SWEEP: usize = 1024;

/// The table of whole blocks under way.
#[derive(Default)]
pub(crate) struct Flights {
    running: Mutex<HashMap<(Digest, NodeId), WeakShared<Running>>>,
}

impl Flights {
    /// Joins the flight of this block from this node, or starts the one that `make` gives. It goes on while
    /// anybody waits for it.
    pub(crate) fn join(
        self: &Arc<Self>,
        digest: Digest,
        node: NodeId,
        make: impl FnOnce() -> Running,
    ) -> Shared<Running> {
        let key = (digest, node);
        let mut running = self.running.lock();
        if let Some(shared) = running.get(&key).and_then(WeakShared::upgrade) {
            return shared;
        }
        let (flight, table) = (make(), Arc::clone(self));
        let shared = async move {
            let result = flight.await;
            table.running.lock().remove(&key);
            result
        }
        .boxed()
        .shared();
        if running.len() >= SWEEP {
            running.retain(|_, shared| shared.upgrade().is_some());
        }
        if let Some(weak) = shared.downgrade() {
            running.insert(key, weak);
        }
        shared
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use holdfast_protocol::PublicKey;

    use super::*;

    #[tokio::test]
    async fn two_readers_of_a_block_cause_one_read_and_a_third_later_another() {
        let flights = Arc::new(Flights::default());
        let (digest, node) = (Digest([1; 32]), NodeId(PublicKey([2; 32])));
        let runs = Arc::new(AtomicUsize::new(0));
        let make = || {
            let runs = Arc::clone(&runs);
            async move {
                runs.fetch_add(1, Ordering::Relaxed);
                tokio::task::yield_now().await;
                Err(ReadFault::Timeout { after_ms: 1 })
            }
            .boxed()
        };
        let (first, second) = (flights.join(digest, node, make), flights.join(digest, node, make));
        let _ = tokio::join!(first, second);
        assert_eq!(runs.load(Ordering::Relaxed), 1);
        let _ = flights.join(digest, node, make).await;
        assert_eq!(runs.load(Ordering::Relaxed), 2);
        drop(flights.join(digest, node, make));
        let _ = flights.join(digest, node, make).await;
        assert_eq!(runs.load(Ordering::Relaxed), 3, "an abandoned flight does not block the next");
    }
}
