//! Carries out a [`Gather`]: reads any k shards of a stripe, each whole and each verified against its own
//! digest and length from the stripe's row. Used by rebuilding reads and by repair.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use holdfast_protocol::NodeId;
use holdfast_protocol::record::{Shard, Stripe};
use tokio::time::Instant;

use super::plan::{Gather, GatherStep, SlotKind};
use super::read::{VerifiedBytes, VerifiedReader};
use super::{ReadFault, ShardReason, ShardReasons};
use crate::block::BlockRef;
use crate::code::ShardPiece;

/// What a gather brought.
#[derive(Debug)]
pub(crate) struct Gathered {
    /// At least k pieces, virtual ones included.
    pub(crate) pieces: Vec<ShardPiece>,
    /// What went wrong on the way.
    pub(crate) faults: Vec<ShardReason>,
    /// Verified bytes read.
    pub(crate) bytes_read: u64,
}

/// A gather that came short.
#[derive(Debug)]
pub(crate) struct Short {
    /// Shards that did not fail, virtual ones included.
    pub(crate) have: usize,
    /// Why not more.
    pub(crate) reasons: ShardReasons,
}

/// The shard's name and length.
pub(crate) fn block_of(shard: &Shard) -> BlockRef {
    BlockRef { digest: shard.digest, len: shard.len }
}

type ShardRead<'a> = Pin<Box<dyn Future<Output = (usize, Result<VerifiedBytes, ReadFault>)> + Send + 'a>>;

/// Where a gather gets its shards from.
pub(crate) trait ShardSource: Sync {
    /// The whole shard from the node that holds it, verified.
    fn shard(&self, node: NodeId, block: BlockRef) -> BoxFuture<'_, Result<VerifiedBytes, ReadFault>>;
}

impl ShardSource for VerifiedReader {
    fn shard(&self, node: NodeId, block: BlockRef) -> BoxFuture<'_, Result<VerifiedBytes, ReadFault>> {
        Box::pin(self.whole(node, block, None))
    }
}

/// One gather under way.
pub(crate) struct Gatherer<'a> {
    source: &'a dyn ShardSource,
    stripe: &'a Stripe,
    /// Slots whose shards are not asked for: those to rebuild.
    missing: &'a [usize],
    /// When a read counts as slow.
    patience: &'a (dyn Fn(NodeId) -> Duration + Sync),
    reads: FuturesUnordered<ShardRead<'a>>,
    overdue_at: Option<Instant>,
    got: Gathered,
}

impl<'a> Gatherer<'a> {
    pub(crate) fn new(
        source: &'a dyn ShardSource,
        stripe: &'a Stripe,
        missing: &'a [usize],
        patience: &'a (dyn Fn(NodeId) -> Duration + Sync),
    ) -> Self {
        let got = Gathered { pieces: Vec::new(), faults: Vec::new(), bytes_read: 0 };
        Self { source, stripe, missing, patience, reads: FuturesUnordered::new(), overdue_at: None, got }
    }

    /// Reads until k shards are at hand. `order` lists slots, the quickest first.
    ///
    /// # Cancel safety
    /// Cancel safe: reads under way are dropped.
    pub(crate) async fn run(mut self, order: &[usize]) -> Result<Gathered, Short> {
        let kinds = self.kinds();
        let mut plan = Gather::new(usize::from(self.stripe.k), &kinds, order);
        for (slot, kind) in kinds.iter().enumerate() {
            if *kind == SlotKind::Zeros {
                self.got.pieces.push(ShardPiece { slot, bytes: bytes::Bytes::new() });
            }
        }
        let mut step = plan.begin();
        loop {
            let asked = match step {
                GatherStep::Decode => return Ok(self.got),
                GatherStep::GiveUp { have } => {
                    return Err(Short { have, reasons: self.reasons(&kinds) });
                }
                GatherStep::Read(slots) => slots,
            };
            self.ask(&asked);
            step = self.next_event(&mut plan).await;
        }
    }

    fn kinds(&self) -> Vec<SlotKind> {
        let k = usize::from(self.stripe.k);
        let kind = |(slot, shard): (usize, &Option<Shard>)| match shard {
            // A data slot that the stripe does not use. A parity slot is never virtual.
            None if slot < k && !self.missing.contains(&slot) => SlotKind::Zeros,
            Some(shard) if shard.node.is_some() && !self.missing.contains(&slot) => SlotKind::Placed,
            _ => SlotKind::Absent,
        };
        self.stripe.shards.iter().enumerate().map(kind).collect()
    }

    /// Starts the reads, and the time after which one more is worth asking.
    fn ask(&mut self, slots: &[usize]) {
        let mut patience = None;
        for &slot in slots {
            let Some(shard) = self.stripe.shards.get(slot).copied().flatten() else { continue };
            let Some(node) = shard.node else { continue };
            patience = patience.max(Some((self.patience)(node)));
            let read = self.source.shard(node, block_of(&shard));
            self.reads.push(Box::pin(async move { (slot, read.await) }));
        }
        if let Some(patience) = patience {
            self.overdue_at = Some(Instant::now() + patience);
        }
    }

    async fn next_event(&mut self, plan: &mut Gather) -> GatherStep {
        let finished = match self.overdue_at {
            Some(at) => match tokio::time::timeout_at(at, self.reads.next()).await {
                Err(_) => {
                    // Asking again sets the next time; without anything left to ask, each read's own
                    // deadline ends the wait.
                    self.overdue_at = None;
                    return plan.overdue();
                }
                Ok(finished) => finished,
            },
            None => self.reads.next().await,
        };
        // The plan never waits while nothing is under way; were it to, giving up is right.
        let Some((slot, result)) = finished else {
            return GatherStep::GiveUp { have: plan.have() };
        };
        match result {
            Ok(bytes) => {
                self.got.bytes_read += bytes.len() as u64;
                self.got.pieces.push(ShardPiece { slot, bytes: bytes.into_bytes() });
                plan.verified(slot)
            }
            Err(fault) => {
                let again = fault.is_retryable();
                let node = self.stripe.shards.get(slot).and_then(|shard| shard.as_ref()?.node);
                self.got.faults.push(ShardReason { slot, node, fault: Some(fault) });
                plan.failed(slot, again)
            }
        }
    }

    /// The last fault of every slot that could not be used, and the slots without a node.
    fn reasons(&mut self, kinds: &[SlotKind]) -> ShardReasons {
        let mut reasons = std::mem::take(&mut self.got.faults);
        let mut seen = Vec::new();
        reasons.reverse();
        reasons.retain(|reason| {
            let first = !seen.contains(&reason.slot);
            seen.push(reason.slot);
            first
        });
        for (slot, shard) in self.stripe.shards.iter().enumerate() {
            let unplaced = shard.is_some_and(|shard| shard.node.is_none());
            if kinds[slot] == SlotKind::Absent && unplaced {
                reasons.push(ShardReason { slot, node: None, fault: None });
            }
        }
        reasons.sort_by_key(|reason| reason.slot);
        ShardReasons(reasons)
    }
}
