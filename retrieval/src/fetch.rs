//! Verified reading: blocks, ranges of blocks, and streams of them, whatever single nodes do.
//!
//! A healthy read is one request to the one node that holds the block: the whole block, which is hashed, or
//! the 16 KiB groups that cover a range, each proved by its path. Parity is not touched. Only when that node
//! is down, refuses, lies or lingers is the block rebuilt from any k other shards of its stripe.
//!
//! *Nothing leaves unverified.* A rebuilt range could not be checked against its block's digest by itself
//! (that takes the chaining values of the rest of the block), and a stripe row that mixes two codings would
//! then yield wrong bytes from shards that are each right. So a rebuild always makes the *whole* block, checks
//! its digest, and cuts the range out. The cost: a lone range of 64 KiB on a lost node reads k blocks (4 MiB
//! for 4+2) instead of k ranges; a small cache of rebuilt blocks makes that once per block for neighbours.
//!
//! Choices are made in [`plan`], which does no I/O; [`read`] is the only place that talks to a node.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::Fuse;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use holdfast_protocol::message::ByteRange;
use holdfast_protocol::record::Stripe;
use holdfast_protocol::{Digest, NodeId};
use tokio::sync::Semaphore;
use tokio::time::Instant;

mod counters;
mod error;
pub(crate) mod gather;
pub(crate) mod plan;
pub mod read;
mod rebuild;
mod rebuilt;
mod stream;
mod window;

pub use counters::FetchCounts;
pub use error::{FetchError, PlacementError, ReadFault, ShardReason, ShardReasons};
pub use read::{VerifiedBytes, VerifiedReader, reads_whole};
pub(crate) use rebuild::quickest_first;
pub use stream::FetchStream;

use crate::block::BlockRef;
use crate::pool::{NodePool, Outcome};
use counters::Counters;
use plan::{Route, RouteStep};
use rebuilt::Rebuilt;
use window::Window;

/// Where blocks are. Implemented by whoever keeps the placement tables.
#[async_trait]
pub trait Placement: Send + Sync + 'static {
    /// The stripe that holds the block, and in which slot; `None` when no stripe does.
    async fn locate(&self, digest: &Digest) -> Result<Option<Slot>, PlacementError>;
}

/// One shard of one stripe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// The stripe.
    pub stripe: Arc<Stripe>,
    /// Index into its shards.
    pub slot: usize,
}

/// Times and bounds of a [`Fetcher`].
#[derive(Clone, Debug)]
pub struct FetchConfig {
    /// One request to one node ends after this time, whatever it has sent.
    pub read_timeout: Duration,
    /// A read is never called slow before this time. Above a quiet node's worst disk and queue times.
    pub hedge_floor: Duration,
    /// A read is called slow after this time at the latest, and while a node's times are not known.
    pub hedge_ceiling: Duration,
    /// Bytes that one stream reads ahead when it starts.
    pub window_start_bytes: u64,
    /// Bytes that one stream reads ahead at most: 16 blocks keep six nodes busy at 1 ms a block.
    pub window_bytes: u64,
    /// Bytes that all streams read ahead together, besides the one block at each stream's head.
    pub ahead_bytes: usize,
    /// Bytes of shards that all rebuilds hold together.
    pub rebuild_bytes: usize,
    /// Bytes of rebuilt blocks kept for readers of their other ranges.
    pub rebuilt_bytes: usize,
}

impl Default for FetchConfig {
    fn default() -> Self {
        const MIB: usize = 1024 * 1024;
        Self {
            read_timeout: Duration::from_secs(10),
            hedge_floor: Duration::from_millis(50),
            hedge_ceiling: Duration::from_secs(1),
            window_start_bytes: 4 * MIB as u64,
            window_bytes: 16 * MIB as u64,
            // With 16 streams, rebuilds and their cache: 304 MiB at most, within a gateway's 512.
            ahead_bytes: 192 * MIB,
            rebuild_bytes: 64 * MIB,
            rebuilt_bytes: 32 * MIB,
        }
    }
}

/// Reads verified bytes. Cheap to clone.
#[derive(Clone)]
pub struct Fetcher {
    inner: Arc<Inner>,
}

struct Inner {
    reader: VerifiedReader,
    placement: Arc<dyn Placement>,
    config: FetchConfig,
    ahead: Arc<Semaphore>,
    rebuilding: Arc<Semaphore>,
    rebuilt: Arc<Rebuilt>,
    counters: Counters,
}

impl Fetcher {
    /// A fetcher that finds blocks by `placement` and nodes in `pool`.
    pub fn new(pool: Arc<NodePool>, placement: Arc<dyn Placement>, config: FetchConfig) -> Self {
        let inner = Inner {
            reader: VerifiedReader::new(pool, config.read_timeout),
            placement,
            ahead: Arc::new(Semaphore::new(config.ahead_bytes)),
            rebuilding: Arc::new(Semaphore::new(config.rebuild_bytes)),
            rebuilt: Rebuilt::new(config.rebuilt_bytes),
            counters: Counters::default(),
            config,
        };
        Self { inner: Arc::new(inner) }
    }

    /// The whole block.
    ///
    /// # Cancel safety
    /// Cancel safe: requests under way are dropped.
    pub async fn block(&self, block: BlockRef) -> Result<Bytes, FetchError> {
        self.range(block, ByteRange { start: 0, len: block.len.bytes() }).await
    }

    /// Exactly the bytes `range` of the block.
    ///
    /// # Cancel safety
    /// Cancel safe: requests under way are dropped.
    pub async fn range(&self, block: BlockRef, range: ByteRange) -> Result<Bytes, FetchError> {
        check_range(block, range)?;
        let inner = &self.inner;
        if let Some(bytes) = inner.rebuilt.get(&block.digest) {
            inner.counters.cached.add();
            return Ok(bytes.slice(range).into_bytes());
        }
        let slot = inner.locate(block).await?;
        let error = match inner.read(block, range, &slot).await {
            Ok(bytes) => return Ok(bytes.into_bytes()),
            Err(error) => error,
        };
        // Repair may have moved shards since the row was read; a newer row deserves one more try.
        let moved = inner.locate(block).await?;
        if moved == slot {
            return Err(error);
        }
        inner.read(block, range, &moved).await.map(VerifiedBytes::into_bytes)
    }

    /// The ranges in order, read ahead within bounds (see [`FetchStream`]).
    pub fn stream<I>(&self, wanted: I) -> FetchStream
    where
        I: IntoIterator<Item = (BlockRef, ByteRange)>,
        I::IntoIter: Send + 'static,
    {
        let config = &self.inner.config;
        let window = Window::new(config.window_start_bytes, config.window_bytes);
        let budget = Arc::clone(&self.inner.ahead);
        FetchStream::new(self.clone(), Box::new(wanted.into_iter()), window, budget)
    }

    /// What was read how, since the start.
    pub fn counts(&self) -> FetchCounts {
        self.inner.counters.snapshot()
    }

    /// The verified-read primitive beneath.
    pub fn reader(&self) -> &VerifiedReader {
        &self.inner.reader
    }
}

fn check_range(block: BlockRef, range: ByteRange) -> Result<(), FetchError> {
    let len = block.len.bytes();
    if range.len == 0 || range.start >= len || range.len > len - range.start {
        let end = range.end();
        return Err(FetchError::Range { digest: block.digest, len, start: range.start, end });
    }
    Ok(())
}

type Direct<'a> = futures::future::BoxFuture<'a, (usize, NodeId, Result<VerifiedBytes, ReadFault>)>;

impl Inner {
    async fn locate(&self, block: BlockRef) -> Result<Slot, FetchError> {
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
    async fn read(
        self: &Arc<Self>,
        block: BlockRef,
        range: ByteRange,
        at: &Slot,
    ) -> Result<VerifiedBytes, FetchError> {
        let (live, down) = self.copies(at);
        let mut route = Route::new(live, down);
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
                RouteStep::GiveUp => return Err(self.failure(block, at, failure, faults)),
            }
            step = tokio::select! {
                biased;
                Some((slot, node, result)) = reads.next(), if !reads.is_empty() => match result {
                    Ok(bytes) => {
                        self.counters.direct.add();
                        slow.answered(node);
                        slow.lost(self.reader.pool(), block.digest);
                        return Ok(bytes);
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
                        return Ok(bytes.slice(range));
                    }
                    Err(error) => {
                        failure = Some(error);
                        route.rebuild_failed()
                    }
                },
                () = slow.overdue() => {
                    self.counters.hedged.add();
                    route.overdue()
                }
            };
        }
    }

    async fn direct(
        &self,
        slot: usize,
        node: NodeId,
        block: BlockRef,
        range: ByteRange,
    ) -> (usize, NodeId, Result<VerifiedBytes, ReadFault>) {
        (slot, node, self.reader.range(node, block, range).await)
    }

    /// Slots that hold the wanted bytes (its own first; replicas and repeated blocks are others): those whose
    /// nodes answer, and those whose nodes are down and are asked only when all else failed.
    fn copies(&self, at: &Slot) -> (Vec<usize>, Vec<usize>) {
        let wanted = at.stripe.shards[at.slot].map(|shard| shard.digest);
        let is_down = |slot: &usize| {
            node_at(&at.stripe, *slot)
                .and_then(|node| self.reader.pool().node(node))
                .is_none_or(|view| view.state.is_down())
        };
        std::iter::once(at.slot)
            .chain((0..at.stripe.shards.len()).filter(|slot| *slot != at.slot))
            .filter(|slot| at.stripe.shards[*slot].map(|shard| shard.digest) == wanted)
            .filter(|slot| node_at(&at.stripe, *slot).is_some())
            .partition(|slot| !is_down(slot))
    }

    /// How long a read may take before it counts as slow: twice the time that 95 of 100 stay below.
    fn patience(&self, node: NodeId, bytes: usize) -> Duration {
        let FetchConfig { hedge_floor, hedge_ceiling, .. } = self.config;
        let p95 = self.reader.pool().latency(node, bytes).p95_or(hedge_ceiling);
        p95.saturating_mul(2).clamp(hedge_floor, hedge_ceiling.max(hedge_floor))
    }

    /// One error for the whole read: the rebuild's, with the faults of the direct reads beside.
    fn failure(
        &self,
        block: BlockRef,
        at: &Slot,
        failure: Option<FetchError>,
        faults: Vec<ShardReason>,
    ) -> FetchError {
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
}

fn node_at(stripe: &Stripe, slot: usize) -> Option<NodeId> {
    stripe.shards.get(slot).and_then(|shard| shard.as_ref()?.node)
}

/// Watches the newest direct read, and remembers who was slow.
#[derive(Default)]
struct SlowWatch {
    due: Option<Instant>,
    asked: Vec<NodeId>,
}

impl SlowWatch {
    fn watch(&mut self, node: NodeId, patience: Duration) {
        self.asked.push(node);
        self.due = Some(Instant::now() + patience);
    }

    fn answered(&mut self, node: NodeId) {
        self.asked.retain(|asked| *asked != node);
    }

    /// Returns once when the newest read is overdue, and never again until another is watched.
    async fn overdue(&mut self) {
        match self.due {
            Some(at) => {
                tokio::time::sleep_until(at).await;
                self.due = None;
            }
            None => std::future::pending().await,
        }
    }

    /// Somebody else was quicker than all that are still awaited.
    fn lost(&self, pool: &NodePool, digest: Digest) {
        for node in &self.asked {
            pool.report(*node, Outcome::Overtaken { digest: Some(digest) });
        }
    }
}

#[cfg(test)]
mod tests;
