//! The runner: carries out what [`super::plan`] decides for one read of one block.

use std::sync::Arc;
use std::time::Duration;

use futures::future::Fuse;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use holdfast_protocol::message::ByteRange;
use holdfast_protocol::record::Stripe;
use holdfast_protocol::{Digest, NodeId};
use tokio::time::Instant;

use super::plan::{Route, RouteStep};
use super::read::{VerifiedBytes, reads_whole};
use super::{
    FetchConfig, FetchError, Inner, PlacementError, ReadFault, ServedBy, ShardReason, ShardReasons, Slot,
};
use crate::block::{Block, BlockRef};
use crate::pool::{NodePool, Outcome};

type Direct<'a> = futures::future::BoxFuture<'a, (usize, NodeId, Result<VerifiedBytes, ReadFault>)>;

/// A node whose large answers take this much longer than those of the k best others is passed over at once,
/// while the hedge budget lasts: waiting for it and then for the others would cost both times.
const SLOWER_BY: u32 = 4;

/// What a node gets whose times are not known: a handshake over a long way and an answer.
const UNKNOWN_FLOOR: Duration = Duration::from_millis(250);

impl Inner {
    pub(super) async fn locate(&self, block: BlockRef) -> Result<Slot, FetchError> {
        let digest = block.digest;
        let found = self.placement.locate(&digest).await;
        let slot = found
            .map_err(|source| FetchError::Placement { digest, source })?
            .ok_or(FetchError::NotPlaced { digest })?;
        let fits = slot
            .stripe
            .shards
            .get(slot.slot)
            .and_then(Option::as_ref)
            .is_some_and(|shard| shard.digest == digest && shard.len == block.len);
        if !fits {
            let detail = format!("slot {} of stripe {} holds something else", slot.slot, slot.stripe.id);
            let source = PlacementError::Damaged { digest, detail };
            return Err(FetchError::Placement { digest, source });
        }
        Ok(slot)
    }

    /// Reads where the block lies, or rebuilds it; the first verified result wins and the rest is dropped.
    pub(super) async fn read(
        self: &Arc<Self>,
        block: BlockRef,
        range: ByteRange,
        at: &Slot,
    ) -> Result<(VerifiedBytes, ServedBy), FetchError> {
        let (live, down) = self.copies(at);
        let mut route = Route::new(live, down);
        if self.rebuild_is_quicker(at, range) {
            route.prefer_rebuild();
        }
        let mut reads: FuturesUnordered<Direct<'_>> = FuturesUnordered::new();
        let mut rebuild = Fuse::terminated();
        let mut faults: Vec<ShardReason> = Vec::new();
        let mut failure: Option<FetchError> = None;
        let mut slow = SlowWatch::default();
        let mut step = route.begin();
        loop {
            match step {
                RouteStep::Read(slot) => {
                    if let Some(node) = node_at(&at.stripe, slot) {
                        slow.watch(node, self.patience(node, range.len as usize));
                        reads.push(self.direct(slot, node, block, range).boxed());
                    }
                }
                RouteStep::Rebuild => rebuild = self.join_rebuild(block, at).fuse(),
                RouteStep::Wait => {}
                RouteStep::GiveUp => {
                    return Err(failed(block, at, failure, faults));
                }
            }
            step = tokio::select! {
                biased;
                Some((slot, node, result)) = reads.next(), if !reads.is_empty() => match result {
                    Ok(bytes) => {
                        self.counters.direct.add();
                        self.hedges.lock().earn(bytes.len() as u64);
                        slow.answered(node);
                        slow.lost(self.reader.pool(), block.digest);
                        return Ok((bytes, ServedBy::Node(node)));
                    }
                    Err(fault) => {
                        slow.answered(node);
                        faults.push(ShardReason { slot, node: Some(node), fault: Some(fault) });
                        route.read_failed()
                    }
                },
                result = &mut rebuild => match result {
                    Ok(bytes) => {
                        slow.lost(self.reader.pool(), block.digest);
                        return Ok((bytes.slice(range), ServedBy::Rebuilt));
                    }
                    Err(error) => {
                        failure = Some(error);
                        route.rebuild_failed()
                    }
                },
                late = slow.overdue(self.reader.pool()) => self.late(late, &mut slow, &mut route, at),
            };
        }
    }

    /// A read is late: another way is tried beside it, when its node is known to be down or the budget allows.
    fn late(&self, late: Late, slow: &mut SlowWatch, route: &mut Route, at: &Slot) -> RouteStep {
        let cost = u64::from(at.stripe.k) * u64::from(at.stripe.block_len.bytes());
        if late.is_down || late.is_last || self.hedges.lock().spend(cost) {
            let step = route.overdue();
            if step != RouteStep::Wait && !late.is_down {
                self.counters.hedged.add();
            }
            return step;
        }
        slow.wait_until_ceiling(self.config.hedge_ceiling);
        RouteStep::Wait
    }

    async fn direct(
        self: &Arc<Self>,
        slot: usize,
        node: NodeId,
        block: BlockRef,
        range: ByteRange,
    ) -> (usize, NodeId, Result<VerifiedBytes, ReadFault>) {
        if reads_whole(block, range) {
            return (slot, node, self.whole(node, block).await.map(|bytes| bytes.slice(range)));
        }
        let read = self.reader.range(node, block, range).await;
        if let Ok(bytes) = &read {
            self.counters.node_bytes.add_many(bytes.len() as u64);
        }
        (slot, node, read)
    }

    /// The whole block from `node`, together with whoever else wants it now; the cache gets it.
    pub(super) async fn whole(
        self: &Arc<Self>,
        node: NodeId,
        block: BlockRef,
    ) -> Result<VerifiedBytes, ReadFault> {
        let inner = Arc::clone(self);
        let make = || {
            async move {
                let bytes = inner.reader.whole(node, block, None).await?;
                inner.counters.node_bytes.add_many(bytes.len() as u64);
                Ok(bytes)
            }
            .boxed()
        };
        let bytes = self.flights.join(block.digest, node, make).await?;
        self.keep(block, &bytes);
        Ok(bytes)
    }

    /// Gives a verified whole block to the cache.
    pub(super) fn keep(&self, block: BlockRef, bytes: &VerifiedBytes) {
        if let Some(cache) = &self.cache {
            cache.put(&Block::of_verified(block, bytes));
        }
    }

    /// Slots that hold the wanted bytes (its own first; replicas and repeated blocks are others): those whose
    /// nodes answer, and those whose nodes are down and are asked only when all else failed. Now and then a
    /// node that is down gets a chance to show that it is not.
    fn copies(&self, at: &Slot) -> (Vec<usize>, Vec<usize>) {
        let wanted = at.stripe.shards[at.slot].map(|shard| shard.digest);
        let pool = self.reader.pool();
        let is_down = |slot: &usize| node_at(&at.stripe, *slot).is_none_or(|node| pool.is_avoided(node));
        std::iter::once(at.slot)
            .chain((0..at.stripe.shards.len()).filter(|slot| *slot != at.slot))
            .filter(|slot| at.stripe.shards[*slot].map(|shard| shard.digest) == wanted)
            .filter(|slot| node_at(&at.stripe, *slot).is_some())
            .partition(|slot| !is_down(slot))
    }

    /// How long a read may take before it counts as slow: twice the time that 95 of 100 stay below, or that the node's
    /// rate needs for all that is under way from it. The ceiling rises with what all nodes take: where the line itself
    /// is slow, asking the others as well makes it slower.
    pub(super) fn patience(&self, node: NodeId, bytes: usize) -> Duration {
        let FetchConfig { hedge_floor, hedge_ceiling, .. } = self.config;
        let pool = self.reader.pool();
        let mut ceiling = hedge_ceiling.max(hedge_floor);
        let own = pool.latency(node, bytes);
        if own.samples < 8 {
            // Dialling may be a part of it, so a node that is not known gets more time than the others take.
            let typical = pool.typical_p95(bytes).map(|p95| p95.saturating_mul(4).max(UNKNOWN_FLOOR));
            return typical.unwrap_or(ceiling).min(ceiling);
        }
        let rate = pool.expects(node, bytes).unwrap_or_default();
        let twice = own.p95.max(rate).saturating_mul(2).max(hedge_floor);
        if twice > ceiling {
            let typical = pool.typical_p95(bytes).unwrap_or_default();
            ceiling = ceiling.max(typical.saturating_mul(2));
        }
        twice.min(ceiling)
    }

    /// Whether k others together are expected to answer long before the node that holds the block, and the
    /// budget allows to ask them. Only for reads of most of a block: for less, a rebuild moves too much.
    fn rebuild_is_quicker(&self, at: &Slot, range: ByteRange) -> bool {
        let Some(node) = node_at(&at.stripe, at.slot) else { return false };
        let (len, k) = (at.stripe.block_len.bytes(), usize::from(at.stripe.k));
        if range.len < len / 2 || k < 2 {
            return false;
        }
        let pool = self.reader.pool();
        let own = pool.latency(node, len as usize);
        // What it usually takes, or what is under way already lets expect.
        let expected = pool.expects(node, len as usize).unwrap_or_default().max(own.average);
        if own.samples < 8 || expected < self.config.hedge_floor {
            return false;
        }
        let worst = |other: NodeId| {
            let p95 = pool.latency(other, len as usize).p95_or(Duration::MAX);
            p95.max(pool.expects(other, len as usize).unwrap_or_default())
        };
        let mut others: Vec<Duration> = (0..at.stripe.shards.len())
            .filter(|slot| *slot != at.slot)
            .filter_map(|slot| node_at(&at.stripe, slot))
            .filter(|other| !pool.is_down(*other))
            .map(worst)
            .collect();
        others.sort_unstable();
        let quicker = others.get(k - 1).is_some_and(|slowest| expected > slowest.saturating_mul(SLOWER_BY));
        quicker && self.hedges.lock().spend((k as u64 - 1) * u64::from(len))
    }
}

/// One error for the whole read: the rebuild's, with the faults of the direct reads beside.
fn failed(block: BlockRef, at: &Slot, failure: Option<FetchError>, faults: Vec<ShardReason>) -> FetchError {
    match failure {
        Some(FetchError::Unrecoverable { digest, stripe, have, need, mut reasons }) => {
            reasons.0.retain(|reason| !faults.iter().any(|fault| fault.slot == reason.slot));
            reasons.0.extend(faults);
            reasons.0.sort_by_key(|reason| reason.slot);
            FetchError::Unrecoverable { digest, stripe, have, need, reasons }
        }
        Some(error) => error,
        None => FetchError::Unrecoverable {
            digest: block.digest,
            stripe: at.stripe.id,
            have: 0,
            need: usize::from(at.stripe.k),
            reasons: ShardReasons(faults),
        },
    }
}

pub(super) fn node_at(stripe: &Stripe, slot: usize) -> Option<NodeId> {
    stripe.shards.get(slot).and_then(|shard| shard.as_ref()?.node)
}

/// Why a read is late.
struct Late {
    /// Its node has been found to be down.
    is_down: bool,
    /// It was given all the time that any read is given.
    is_last: bool,
}

/// Watches the newest direct read, and remembers who was slow.
#[derive(Default)]
struct SlowWatch {
    due: Option<Due>,
    /// The newest read, also when it was found overdue already.
    last: Option<Due>,
    asked: Vec<NodeId>,
}

#[derive(Clone, Copy)]
struct Due {
    node: NodeId,
    since: Instant,
    at: Instant,
    is_last: bool,
}

impl SlowWatch {
    fn watch(&mut self, node: NodeId, patience: Duration) {
        self.asked.push(node);
        let since = Instant::now();
        self.due = Some(Due { node, since, at: since + patience, is_last: false });
        self.last = self.due;
    }

    fn answered(&mut self, node: NodeId) {
        self.asked.retain(|asked| *asked != node);
    }

    /// Returns once when the newest read is overdue or its node is found to be down, and never again until
    /// another is watched or more time was given.
    async fn overdue(&mut self, pool: &NodePool) -> Late {
        let Some(due) = self.due else { return std::future::pending().await };
        let is_down = tokio::select! {
            () = tokio::time::sleep_until(due.at) => false,
            () = pool.until_down(due.node) => true,
        };
        self.due = None;
        Late { is_down, is_last: due.is_last }
    }

    /// The hedge cannot be paid: the read gets the longest time that any gets.
    fn wait_until_ceiling(&mut self, ceiling: Duration) {
        if let Some(last) = self.last {
            self.due = Some(Due { at: last.since + ceiling, is_last: true, ..last });
        }
    }

    /// Somebody else was quicker than all that are still awaited.
    fn lost(&self, pool: &NodePool, digest: Digest) {
        for node in &self.asked {
            pool.report(*node, Outcome::Overtaken { digest: Some(digest) });
        }
    }
}
