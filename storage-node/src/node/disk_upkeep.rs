//! What a running node does for its disks by itself: it watches whether they are there, scrubs them, and drops deletion
//! orders that no receipt needs any longer.

use std::sync::Arc;
use std::time::Duration;

use super::Node;
use holdfast_protocol::time::UnixMs;

/// How often the node looks whether its disks are there.
const TEND_INTERVAL: Duration = Duration::from_secs(5);
/// How often agreements that have ended are looked for.
const ORDERS_INTERVAL: Duration = Duration::from_secs(6 * 3600);
/// How soon after the start that happens first.
const ORDERS_FIRST: Duration = Duration::from_secs(60);
/// How long an order is kept after the end of the last receipt's term: time for a dispute about its last day.
pub const ORDERS_KEPT_MS: u64 = 30 * 24 * 3600 * 1000;

impl Node {
    /// Starts watching, scrubbing and tidying, until the node stops.
    pub(super) fn start_disk_upkeep(self: &Arc<Self>) {
        let node = self.clone();
        self.tasks.spawn(async move {
            while node.pause(TEND_INTERVAL).await {
                node.store.tend().await;
            }
        });
        for disk in 0..self.store.count() {
            self.tasks.spawn(self.store.clone().scrub(disk, self.stopping.clone()));
        }
        let node = self.clone();
        self.tasks.spawn(async move {
            let mut pause = ORDERS_FIRST;
            while node.pause(pause).await {
                pause = ORDERS_INTERVAL;
                node.drop_ended_orders(node.now_ms()).await;
            }
        });
    }

    /// Drops the deletion orders of agreements that ended [`ORDERS_KEPT_MS`] ago or earlier: no receipt binds the node
    /// to what they released. Answers how many.
    pub async fn drop_ended_orders(&self, now_ms: UnixMs) -> u64 {
        let mut dropped = 0;
        for agreement in self.ledger.agreements() {
            if agreement.terms().end_ms.saturating_add(ORDERS_KEPT_MS) > now_ms {
                continue;
            }
            loop {
                match self.store.drop_orders(agreement.id()).await {
                    Ok(0) => break,
                    Ok(count) => dropped += count,
                    Err(error) => {
                        tracing::warn!(%error, "deletion orders were not dropped; it is tried again later");
                        return dropped;
                    }
                }
            }
        }
        if dropped > 0 {
            tracing::info!(dropped, "dropped deletion orders of agreements that ended long ago");
        }
        dropped
    }
}
