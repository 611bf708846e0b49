//! Repair: gives stripes back the shards that no node, or a lost node, holds.
//!
//! One stripe at a time: choose nodes under the placement rules beside the shards that are well, read exactly
//! k of those, verified, rebuild exactly what is missing, check it against the digests of the stripe's row,
//! put it on the new nodes under a lease, check their receipts, then change the row by compare-and-put, then
//! commit the claims. A crash between any two steps leaves at worst provisional blocks that lapse; the next
//! run begins again at the row. Nothing is ever deleted here, and a row is never changed for a shard that no
//! receipt covers. Virtual zero blocks stay virtual.
//!
//! Where too few failure domains are left, the stripe waits, and the report says for how many nodes.

use std::collections::HashSet;
use std::sync::Arc;

use async_trait::async_trait;
use futures::StreamExt;
use holdfast_protocol::record::{ScopeId, Stripe, StripeId};
use holdfast_protocol::{Digest, NodeId};
use parking_lot::Mutex;
use tokio::sync::Semaphore;

mod judge;
mod pace;
mod place;
mod plan;
mod put;
mod relocate;
mod report;
mod stripe;

pub use judge::{LOSSES_PER_YEAR, Patience, Urgency};
pub use relocate::Relocated;
pub use report::{RepairProgress, RepairReport, StripeTrouble};

pub(crate) use pace::Pace;
pub(crate) use place::candidates;
pub(crate) use plan::policy_of;
pub(crate) use put::{Putter, ShardPut, TIMEOUT};

use crate::fetch::{FetchConfig, VerifiedReader};
use crate::placement::Chooser;
use crate::pool::NodePool;
use crate::tag::TagKey;
use judge::Judge;
use report::Tally;

/// Rows of the stripe table read at a time.
const PAGE: usize = 256;

/// The read permission and retention that a shard's claim carries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShardTerms {
    /// Who may read; `None` is public.
    pub scope: Option<ScopeId>,
    /// Deletion is refused before then; 0 for never.
    pub retain_until_ms: u64,
}

/// How a compare-and-put of a stripe's row ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replaced {
    /// The row is in place, and the CommitBlocks of its newly placed shards are queued with it.
    Done,
    /// Somebody changed the row meanwhile.
    Conflict,
    /// The stripe is no longer kept.
    Gone,
}

/// Where stripes' rows are kept. Implemented by whoever keeps the placement tables.
#[async_trait]
pub trait RepairStore: Send + Sync + 'static {
    /// At most `limit` rows in the order of their ids, after `after`; empty at the end.
    async fn stripes(&self, after: Option<StripeId>, limit: usize) -> Result<Vec<Stripe>, RepairStoreError>;

    /// One row as it is now.
    async fn stripe(&self, id: StripeId) -> Result<Option<Stripe>, RepairStoreError>;

    /// The terms of new claims on the stripe's shards, one per slot.
    async fn terms(&self, stripe: &Stripe) -> Result<Vec<ShardTerms>, RepairStoreError>;

    /// Whether a node must not be given a shard of the stripe now: it has yet to let go a claim of it, and a
    /// late DeleteBlocks would hit the new one.
    async fn is_barred(&self, _stripe: StripeId, _node: NodeId) -> Result<bool, RepairStoreError> {
        Ok(false)
    }

    /// Puts `stripe`, whose version is `expected_version + 1`, in the place of the row of that version; in
    /// the same transaction queues CommitBlocks for the shards whose nodes changed and releases of the claims
    /// that their former nodes keep, and takes the stripe off the list of incomplete ones when every shard now
    /// has a node.
    async fn replace(&self, stripe: &Stripe, expected_version: u64) -> Result<Replaced, RepairStoreError>;

    /// The claims of these blocks of a stripe on a node are committed: their queued CommitBlocks may go.
    /// Doing nothing is right too; a CommitBlocks may be repeated.
    async fn committed(
        &self,
        node: NodeId,
        stripe: StripeId,
        digests: &[Digest],
    ) -> Result<(), RepairStoreError>;
}

/// The placement tables failed.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the stripe table cannot be used")]
pub struct RepairStoreError {
    /// What the store said.
    #[source]
    pub source: Arc<dyn std::error::Error + Send + Sync>,
    /// Whether the same call can succeed later.
    pub retryable: bool,
}

impl RepairStoreError {
    /// Wraps what a store said.
    pub fn new(source: impl std::error::Error + Send + Sync + 'static, retryable: bool) -> Self {
        Self { source: Arc::new(source), retryable }
    }

    /// Whether the same call can succeed later.
    pub fn is_retryable(&self) -> bool {
        self.retryable
    }
}

/// Which nodes' shards count as missing. Shards without a node always do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lost {
    /// None: only complete what was written short.
    Nobody,
    /// Nodes that do not answer now and have not for this long, and nodes that the pool no longer knows.
    Down {
        /// Milliseconds without an answer. 0 repairs at once; a patient owner lets short outages pass.
        for_ms: u64,
    },
    /// These, whether they answer or not (one that answers may still be read from), and those that
    /// `Down { for_ms: 0 }` names.
    Listed(HashSet<NodeId>),
    /// Silent nodes, the sooner the thinner a stripe's margin is, and nodes that the pool no longer knows.
    Patient(Patience),
}

/// How a run goes.
#[derive(Clone, Debug)]
pub struct RepairOptions {
    /// Which nodes' shards count as missing.
    pub lost: Lost,
    /// Only these stripes; all when absent.
    pub only: Option<Vec<StripeId>>,
    /// Bytes of shards held at the same time.
    pub concurrent_bytes: usize,
    /// Bytes read and written a second; unlimited when absent.
    pub bytes_per_second: Option<u64>,
    /// How often each node is lost, for the order of the work.
    pub urgency: Urgency,
    /// Stripes attended to in this run, the most urgent ones; the others are counted as remaining.
    pub stripes_max: usize,
}

impl Default for RepairOptions {
    fn default() -> Self {
        Self {
            lost: Lost::Down { for_ms: 0 },
            only: None,
            concurrent_bytes: 64 * 1024 * 1024,
            bytes_per_second: None,
            urgency: Urgency::default(),
            stripes_max: STRIPES_PER_RUN_MAX,
        }
    }
}

/// Whether one pass over a stripe was the last.
enum Repaired {
    Finished,
    /// The row changed meanwhile.
    Again,
}

/// Stripes of one run: at 24 bytes each, 24 MB. What is beyond waits for the next run.
pub const STRIPES_PER_RUN_MAX: usize = 1_000_000;
/// Stripes under way at the same time, whatever their size.
const STRIPES_AT_ONCE: usize = 32;

/// Why a run ended early. What it did until then stays done.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RepairError {
    /// The stripe table failed.
    #[error("repair stopped after {stripes_scanned} stripes: {source}")]
    Store {
        /// Stripes looked at before.
        stripes_scanned: u64,
        /// What the store said.
        source: RepairStoreError,
    },
}

impl RepairError {
    /// Whether running again can help.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Store { source, .. } => source.is_retryable(),
        }
    }
}

/// Repairs the stripes of one namespace.
pub struct Repairer {
    pool: Arc<NodePool>,
    store: Arc<dyn RepairStore>,
    tags: TagKey,
    reader: VerifiedReader,
    chooser: Mutex<Chooser>,
}

impl Repairer {
    /// A repairer over the nodes of `pool` and the rows of `store`.
    pub fn new(pool: Arc<NodePool>, store: Arc<dyn RepairStore>, tags: TagKey) -> Self {
        let reader = VerifiedReader::new(Arc::clone(&pool), FetchConfig::default().read_timeout);
        // The order of equally loaded nodes; any seed will do.
        let seed = u64::from_le_bytes(pool.local_id().as_bytes()[..8].try_into().unwrap_or_default());
        Self { pool, store, tags, reader, chooser: Mutex::new(Chooser::new(seed)) }
    }

    /// Looks through all stripes and repairs what can be repaired. `progress` hears of every stripe that
    /// needed something.
    ///
    /// # Cancel safety
    /// Cancel safe: each stripe is either repaired or untouched; blocks put for an unfinished one lapse.
    pub async fn run(
        &self,
        options: RepairOptions,
        progress: impl Fn(RepairProgress) + Send + Sync,
    ) -> Result<RepairReport, RepairError> {
        // The decision who is lost must rest on fresh answers.
        self.pool.check_all().await;
        let tally = Tally::default();
        let stopped = |tally: &Tally, source| RepairError::Store { stripes_scanned: tally.scanned(), source };
        let judge = Judge::of(&self.pool, &options.lost);
        let work = self.survey(&options, &judge, &tally).await.map_err(|source| stopped(&tally, source))?;
        progress(tally.progress());
        let room = Semaphore::new(options.concurrent_bytes);
        let pace = Pace::new(options.bytes_per_second);
        let mut finished = futures::stream::iter(work)
            .map(|id| self.one(id, &options, &judge, &room, &pace))
            .buffer_unordered(STRIPES_AT_ONCE);
        while let Some((id, outcome)) = finished.next().await {
            let outcome = outcome.map_err(|source| stopped(&tally, source))?;
            tally.add(id, outcome);
            progress(tally.progress());
        }
        Ok(tally.report())
    }

    /// The ids of the stripes that miss something, the most urgent first: those whose remaining margin, times how
    /// long their nodes last, is smallest.
    async fn survey(
        &self,
        options: &RepairOptions,
        judge: &Judge,
        tally: &Tally,
    ) -> Result<Vec<StripeId>, RepairStoreError> {
        let mut work = judge::Worklist::new(options.stripes_max.min(STRIPES_PER_RUN_MAX));
        let mut look = |stripe: &Stripe| {
            let damage = judge.damage(stripe);
            tally.surveyed(&damage);
            if !damage.is_none() {
                work.add(options.urgency.rank(stripe, &damage), stripe.id);
            }
        };
        if let Some(only) = &options.only {
            for id in only {
                if let Some(stripe) = self.store.stripe(*id).await? {
                    look(&stripe);
                }
            }
            return Ok(work.into_order());
        }
        let mut after = None;
        loop {
            let page = self.store.stripes(after, PAGE).await?;
            let Some(last) = page.last() else { return Ok(work.into_order()) };
            after = Some(last.id);
            page.iter().for_each(&mut look);
        }
    }
}

#[cfg(test)]
mod tests;
