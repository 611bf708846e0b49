//! Upkeep: asks quiet nodes for their counters, so that a node that died is noticed before a write needs it,
//! one that came back is connected again, and placement knows who has room.

use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::StreamExt;

use super::entry::Entry;
use super::{NodePool, PoolError};

/// How often the nodes are looked through.
const ROUND_EVERY: Duration = Duration::from_secs(2);
/// A node that answered something within this time is not asked.
const QUIET_AFTER: Duration = Duration::from_secs(2);
/// Counters are asked of busy nodes too this often (every so many rounds), for their free bytes.
const COUNTERS_EVERY_ROUNDS: u64 = 15;
/// How long an answer may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);
/// Nodes asked at the same time.
const ASKED_AT_ONCE: usize = 32;

/// Keeps the upkeep running while it lives.
#[must_use = "dropping it stops the upkeep"]
pub struct Upkeep {
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Upkeep {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl NodePool {
    /// Starts the upkeep on the current tokio runtime. It ends with the returned guard or with the pool.
    pub fn start_upkeep(self: &Arc<Self>) -> Upkeep {
        Upkeep { task: tokio::spawn(run(Arc::downgrade(self))) }
    }

    /// One round of upkeep over all nodes, quiet or not.
    pub async fn check_all(&self) {
        futures::stream::iter(self.entries())
            .for_each_concurrent(ASKED_AT_ONCE, |entry| async move { self.check(&entry).await })
            .await;
    }

    async fn check_quiet(&self) {
        let quiet = self
            .entries()
            .into_iter()
            .filter(|entry| entry.silent_for().is_none_or(|silence| silence >= QUIET_AFTER));
        futures::stream::iter(quiet)
            .for_each_concurrent(ASKED_AT_ONCE, |entry| async move { self.check(&entry).await })
            .await;
    }

    async fn check(&self, entry: &Entry) {
        let id = entry.id();
        let ask = async {
            let peer = self.peer(id).await?;
            peer.status().await.map_err(|source| PoolError::Call { node: id, source })
        };
        match tokio::time::timeout(ANSWER_WITHIN, ask).await {
            Ok(Ok(status)) => {
                entry.update_known(|known| {
                    known.capacity_bytes = status.capacity_bytes;
                    known.free_bytes = status.free_bytes;
                    known.accepts_writes = status.refusing_writes.is_empty();
                });
                entry.alive();
            }
            Ok(Err(PoolError::BackingOff { .. } | PoolError::Unknown { .. })) => {}
            Ok(Err(error)) => {
                tracing::debug!(node = %id, %error, "a node does not answer");
                entry.failed(self.now_ms());
            }
            Err(_) => {
                tracing::debug!(node = %id, within = ?ANSWER_WITHIN, "a node does not answer in time");
                entry.failed(self.now_ms());
                // The peer may have vanished without a word; a fresh connection tells.
                entry.disconnect("no answer to Status");
            }
        }
    }
}

async fn run(pool: Weak<NodePool>) {
    let mut ticks = tokio::time::interval(ROUND_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut round = 0u64;
    loop {
        ticks.tick().await;
        let Some(pool) = pool.upgrade() else { return };
        if round.is_multiple_of(COUNTERS_EVERY_ROUNDS) {
            pool.check_all().await;
        } else {
            pool.check_quiet().await;
        }
        round += 1;
    }
}
