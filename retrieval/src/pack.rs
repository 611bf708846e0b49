//! Packing: merges half-empty stripes by rewriting parity only, and rewrites stripes that are mostly dead.
//!
//! Small objects arrive a few at a time and make stripes of one or two blocks, which cost as much parity as
//! full ones. Placement puts their data on different nodes in turn, so their blocks can later share one stripe
//! without moving: the packer reads them, computes the parity of all, puts it on nodes that hold none of
//! them, and changes the rows in one transaction.
//!
//! The order of one merge, and what a crash leaves behind at each step:
//! 1. the intent is written: which claims will be made under the merged stripe's tag;
//! 2. the nodes make those claims, on blocks that they hold already (a crash: the intent lets them go again);
//! 3. the blocks are read and hashed, the parity is computed and put under leases (a crash: the leases end);
//! 4. one transaction changes every row and queues the commits and releases that follow.
//!
//! So no block is ever without a claim, a stripe's old parity is let go only after the new one stands, and what
//! cannot be finished is undone. Nothing here deletes: releases are rows that delivery works through.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use futures::StreamExt;
use holdfast_protocol::record::{Stripe, StripeId};
use holdfast_protocol::time::UnixMs;
use holdfast_protocol::{Digest, NodeId};
use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::Semaphore;

mod merge;
mod plan;
#[cfg(test)]
mod tests;

pub use plan::{Merge, PackRules, plan};

use crate::fetch::{FetchConfig, VerifiedReader};
use crate::placement::Chooser;
use crate::pool::NodePool;
use crate::repair::{Pace, RepairStoreError, Replaced, ShardTerms};
use crate::tag::TagKey;

/// Candidates held in memory for one plan: at 250 bytes each, 2 MB.
pub const CANDIDATES_MAX: usize = 8192;
/// Candidates read at a time.
const PAGE: usize = 512;
/// Merges under way at the same time, whatever their size.
const MERGES_AT_ONCE: usize = 8;
/// Stripes remembered as not to be tried again for a while.
const RESTING_MAX: usize = 16_384;
/// The first rest after a merge that failed, doubled each time up to the last.
const REST_FIRST_MS: u64 = 30_000;
const REST_MAX_MS: u64 = 3_600_000;

/// A stripe that is short of data blocks, or has dead ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackCandidate {
    /// Its row.
    pub stripe: Stripe,
    /// For each data slot: whether a manifest refers to its block. Virtual slots are not alive.
    pub live: Vec<bool>,
    /// Since when it is queued.
    pub since_ms: UnixMs,
}

/// What one merge changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackChange {
    /// The merged stripe's new row.
    pub packed: Stripe,
    /// The row that it replaces, as it was read; `None` when its id is new.
    pub survivor: Option<Stripe>,
    /// Stripes whose live blocks pass into it, as they were read.
    pub absorbed: Vec<Stripe>,
}

/// Where stripes' rows are kept, as the packer needs them.
#[async_trait]
pub trait PackStore: Send + Sync + 'static {
    /// At most `limit` queued stripes in the order of their ids, after `after`; empty at the end. Stripes that
    /// turn out to be full and alive leave the queue on the way, so a page may be short of `limit`; the second
    /// value is where to go on, `None` at the end.
    async fn pack_candidates(
        &self,
        after: Option<StripeId>,
        limit: usize,
    ) -> Result<(Vec<PackCandidate>, Option<StripeId>), RepairStoreError>;

    /// The terms of parity over these stripes' live blocks.
    async fn parity_terms(&self, sources: &[Stripe]) -> Result<ShardTerms, RepairStoreError>;

    /// Remembers that claims on these blocks will be made for the stripe, so that they are let go unless
    /// its row holds them in the end. False when one of them is still being let go: then nothing is done.
    async fn intend(&self, packed: StripeId, claims: &[(NodeId, Digest)]) -> Result<bool, RepairStoreError>;

    /// One transaction: the new row, the rows of blocks that passed into it, the removal of the absorbed
    /// stripes, the commits and releases that follow, and the end of the intent.
    async fn pack(&self, change: &PackChange) -> Result<Replaced, RepairStoreError>;

    /// Lets go what an intent names and its stripe's row does not hold, and forgets the intent.
    async fn abandon(&self, packed: StripeId) -> Result<(), RepairStoreError>;

    /// Intents that nobody finished: those of a process that ended. Asked once, at the start.
    async fn intents(&self, limit: usize) -> Result<Vec<StripeId>, RepairStoreError>;
}

/// How a run goes.
#[derive(Clone, Debug)]
pub struct PackOptions {
    /// Which stripes are merged when.
    pub rules: PackRules,
    /// Bytes of blocks held at the same time.
    pub concurrent_bytes: usize,
    /// Bytes read and written a second; unlimited when absent.
    pub bytes_per_second: Option<u64>,
}

impl Default for PackOptions {
    fn default() -> Self {
        Self { rules: PackRules::default(), concurrent_bytes: 32 * 1024 * 1024, bytes_per_second: None }
    }
}

/// What a run did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PackReport {
    /// Queued stripes looked at.
    pub candidates: u64,
    /// Merges done.
    pub merges: u64,
    /// Stripes that are no more.
    pub stripes_absorbed: u64,
    /// Bytes of blocks read.
    pub bytes_read: u64,
    /// Bytes of parity written.
    pub bytes_written: u64,
    /// Bytes of parity and dead blocks let go.
    pub bytes_released: u64,
    /// Merges that could not be finished; they are tried again later.
    pub failed: u64,
}

impl PackReport {
    /// Adds what another run did; the candidates are the latest run's.
    pub fn add(&mut self, other: &Self) {
        self.candidates = other.candidates;
        self.merges += other.merges;
        self.stripes_absorbed += other.stripes_absorbed;
        self.bytes_read += other.bytes_read;
        self.bytes_written += other.bytes_written;
        self.bytes_released += other.bytes_released;
        self.failed += other.failed;
    }
}

/// Packs the stripes of one namespace.
pub struct Packer {
    pool: Arc<NodePool>,
    store: Arc<dyn PackStore>,
    tags: TagKey,
    reader: VerifiedReader,
    chooser: Mutex<Chooser>,
    /// Stripes of merges that failed, with when they may be tried again and the rest after that.
    resting: Mutex<HashMap<StripeId, (UnixMs, u64)>>,
}

impl Packer {
    /// A packer over the nodes of `pool` and the rows of `store`.
    pub fn new(pool: Arc<NodePool>, store: Arc<dyn PackStore>, tags: TagKey) -> Self {
        let reader = VerifiedReader::new(Arc::clone(&pool), FetchConfig::default().read_timeout);
        let seed = u64::from_le_bytes(pool.local_id().as_bytes()[8..16].try_into().unwrap_or_default());
        let resting = Mutex::new(HashMap::new());
        Self { pool, store, tags, reader, chooser: Mutex::new(Chooser::new(seed)), resting }
    }

    /// Undoes what a process that ended had begun.
    pub async fn recover(&self) -> Result<usize, RepairStoreError> {
        let mut undone = 0;
        loop {
            let intents = self.store.intents(PAGE).await?;
            if intents.is_empty() {
                return Ok(undone);
            }
            for packed in intents {
                self.store.abandon(packed).await?;
                undone += 1;
            }
        }
    }

    /// Looks through the queue once and merges what can be merged now.
    ///
    /// # Cancel safety
    /// Cancel safe: what was begun is undone by the next [`Packer::recover`], or its leases end.
    pub async fn run(&self, options: &PackOptions) -> Result<PackReport, RepairStoreError> {
        let candidates = self.candidates().await?;
        let nodes = self.readable();
        let now_ms = self.pool.clock().now_ms();
        let merges = plan(&candidates, &nodes, now_ms, &options.rules);
        let mut report = PackReport { candidates: candidates.len() as u64, ..PackReport::default() };
        let room = Semaphore::new(options.concurrent_bytes);
        let pace = Pace::new(options.bytes_per_second);
        let mut under_way = futures::stream::iter(merges)
            .map(|merge| self.one(merge, options, &room, &pace))
            .buffer_unordered(MERGES_AT_ONCE);
        while let Some(outcome) = under_way.next().await {
            report.add(&PackReport { candidates: report.candidates, ..outcome? });
        }
        drop(under_way);
        Ok(report)
    }

    /// The nodes as the plan needs them: live means that they answer. Blocks do not move, so a node that takes no
    /// new ones will do.
    fn readable(&self) -> Vec<crate::placement::Candidate> {
        let mut nodes = crate::write::stripe::candidates(&self.pool);
        for node in &mut nodes {
            node.live = self.pool.node(node.id).is_some_and(|view| !view.state.is_down());
        }
        nodes
    }

    /// The queue, as much of it as one plan holds, without what rests.
    async fn candidates(&self) -> Result<Vec<PackCandidate>, RepairStoreError> {
        let now_ms = self.pool.clock().now_ms();
        let mut found = Vec::new();
        let mut after = None;
        while found.len() < CANDIDATES_MAX {
            let (page, next) = self.store.pack_candidates(after, PAGE).await?;
            {
                let resting = self.resting.lock();
                let rests = |id| resting.get(&id).is_some_and(|(until_ms, _)| *until_ms > now_ms);
                found.extend(page.into_iter().filter(|candidate| !rests(candidate.stripe.id)));
            }
            match next {
                Some(next) => after = Some(next),
                None => break,
            }
        }
        Ok(found)
    }

    async fn one(
        &self,
        merge: Merge,
        options: &PackOptions,
        room: &Semaphore,
        pace: &Pace,
    ) -> Result<PackReport, RepairStoreError> {
        let bytes = merge.bytes_held().min(options.concurrent_bytes);
        let Ok(_room) = room.acquire_many(u32::try_from(bytes).unwrap_or(u32::MAX)).await else {
            return Ok(PackReport::default());
        };
        match self.carry_out(&merge, pace).await? {
            Ok(done) => {
                let mut resting = self.resting.lock();
                for stripe in merge.sources() {
                    resting.remove(&stripe.id);
                }
                Ok(done)
            }
            Err(why) => {
                tracing::debug!(stripe = %merge.packed_id(), why, "a merge was given up for now");
                self.let_rest(&merge);
                Ok(PackReport { failed: 1, ..PackReport::default() })
            }
        }
    }

    fn let_rest(&self, merge: &Merge) {
        let now_ms = self.pool.clock().now_ms();
        let mut resting = self.resting.lock();
        if resting.len() >= RESTING_MAX {
            resting.retain(|_, (until_ms, _)| *until_ms > now_ms);
        }
        for stripe in merge.sources() {
            if resting.len() >= RESTING_MAX {
                return;
            }
            let rest_ms =
                resting.get(&stripe.id).map_or(REST_FIRST_MS, |(_, rest)| (rest * 2).min(REST_MAX_MS));
            resting.insert(stripe.id, (now_ms.saturating_add(rest_ms), rest_ms));
        }
    }
}
