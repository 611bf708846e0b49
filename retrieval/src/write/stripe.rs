//! One stripe: parity, fan-out to n nodes, receipts of at least the write quorum.
//!
//! Data shards leave while parity is still being computed. A node that fails is replaced by another one in
//! an unused failure domain, if there is one. The write is answered when the quorum has signed and either
//! all others have answered or a short grace has passed: the stragglers' shards then have no node, which
//! the caller queues for completion. Requests still running at that moment are cancelled; what a straggler
//! stored anyway lapses with its lease.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use holdfast_protocol::NodeId;
use holdfast_protocol::record::Record;
use holdfast_protocol::record::{Policy, ScopeId, Shard, Stripe, StripeId};
use parking_lot::Mutex;

use super::cpu::CpuPool;
use super::receipt::ReceiptChecker;
use super::{DraftBlock, StripeDraft, WriteError, WrittenStripe};
use crate::block::Block;
use crate::code::Code;
use crate::placement::{Candidate, Chooser, Plan};
use crate::pool::NodePool;
use crate::tag::TagKey;

mod fan_out;

use fan_out::{FanOut, ShardJob};

/// The times of a write.
#[derive(Clone, Copy, Debug)]
pub struct WriteConfig {
    /// A write without its quorum fails after this time.
    pub deadline: Duration,
    /// How long stragglers are waited for after the quorum, at least.
    pub grace_min: Duration,
    /// The same, at most; between the two, twice the 95th percentile of the straggler's own times.
    pub grace_max: Duration,
    /// How long nodes keep shards without a CommitBlocks.
    pub lease: Duration,
}

impl Default for WriteConfig {
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(10),
            grace_min: Duration::from_millis(250),
            grace_max: Duration::from_secs(2),
            lease: Duration::from_secs(3600),
        }
    }
}

/// Writes stripes. Cheap to clone.
#[derive(Clone)]
pub struct StripeWriter {
    shared: Arc<Shared>,
}

pub(super) struct Shared {
    pub(super) pool: Arc<NodePool>,
    pub(super) tags: TagKey,
    pub(super) config: WriteConfig,
    pub(super) receipts: ReceiptChecker,
    chooser: Mutex<Chooser>,
    cpu: CpuPool,
}

impl StripeWriter {
    /// A writer over `pool`, whose claims are tagged by `tags`. `seed` decides where its turns start: any
    /// number that differs between the gateways of a namespace.
    pub fn new(pool: Arc<NodePool>, tags: TagKey, cpu: CpuPool, seed: u64, config: WriteConfig) -> Self {
        let receipts = ReceiptChecker::default();
        let chooser = Mutex::new(Chooser::new(seed));
        Self { shared: Arc::new(Shared { pool, tags, config, receipts, chooser, cpu }) }
    }

    /// The nodes written to.
    pub fn pool(&self) -> &Arc<NodePool> {
        &self.shared.pool
    }

    /// The secret behind the claims' tags.
    pub fn tags(&self) -> &TagKey {
        &self.shared.tags
    }

    /// Writes one stripe and answers when enough nodes hold it durably.
    ///
    /// # Errors
    /// [`WriteError::Quorum`] and [`WriteError::Placement`] with too few nodes up are worth trying again.
    ///
    /// # Cancel safety
    /// Cancel safe: all requests are cancelled, and what was stored lapses with its lease.
    pub async fn write(&self, draft: StripeDraft) -> Result<WrittenStripe, WriteError> {
        let policy = draft.policy;
        let blocks = distinct(draft)?;
        let id = StripeId::random().map_err(|_| WriteError::Random)?;
        let plan = self.shared.plan(&policy, blocks.len())?;
        let code = Code::shared(policy.k, policy.m)?;
        let terms = ParityTerms::of(&blocks)?;

        let mut fan_out = FanOut::new(Arc::clone(&self.shared), id, policy, plan.quorum);
        for (slot, (draft, node)) in blocks.iter().zip(&plan.data).enumerate() {
            fan_out.launch(slot, ShardJob::of_data(draft), *node);
        }
        let parity = self.shared.parity(code, &blocks).await?;
        for ((index, block), node) in parity.iter().enumerate().zip(&plan.parity) {
            fan_out.launch(policy.k + index, terms.job(block), *node);
        }
        let placed = fan_out.finish().await?;

        let mut shards: Vec<Option<Shard>> = vec![None; policy.n()];
        let data = blocks.iter().map(|draft| &draft.block).enumerate();
        let parity = parity.iter().enumerate().map(|(index, block)| (policy.k + index, block));
        for (slot, block) in data.chain(parity) {
            let node = placed.iter().find(|placed| placed.slot == slot).map(|placed| placed.node);
            shards[slot] = Some(Shard { digest: block.digest(), len: block.len(), node });
        }
        let block_len = blocks.iter().map(|draft| draft.block.len()).max().ok_or(EMPTY)?;
        let stripe = Stripe {
            v: Stripe::VERSION,
            id,
            version: 1,
            policy: policy.name,
            k: u8::try_from(policy.k).map_err(|_| WIDE)?,
            m: u8::try_from(policy.m).map_err(|_| WIDE)?,
            block_len,
            shards,
        };
        Ok(WrittenStripe { stripe, receipts: placed.into_iter().map(|placed| placed.receipt).collect() })
    }
}

const EMPTY: WriteError = WriteError::Draft { detail: "it has no block" };
const WIDE: WriteError = WriteError::Draft { detail: "it has more blocks than the policy's k" };

impl Shared {
    fn plan(&self, policy: &Policy, blocks: usize) -> Result<Plan, WriteError> {
        let candidates = self.candidates();
        Ok(self.chooser.lock().choose(&candidates, policy, blocks)?)
    }

    pub(super) fn replacement(
        &self,
        policy: &Policy,
        taken: &[NodeId],
        refused: &[NodeId],
    ) -> Option<NodeId> {
        let candidates = self.candidates();
        self.chooser.lock().replacement(&candidates, policy, taken, refused)
    }

    /// The nodes with an agreement, as placement sees them.
    fn candidates(&self) -> Vec<Candidate> {
        candidates(&self.pool)
    }

    /// The stripe's parity, hashed.
    async fn parity(&self, code: Arc<Code>, blocks: &[DraftBlock]) -> Result<Vec<Block>, WriteError> {
        let data: Vec<Bytes> = blocks.iter().map(|draft| draft.block.bytes().clone()).collect();
        let longest = data.iter().map(Bytes::len).max().unwrap_or(0);
        let work = longest * (data.len() + code.m());
        let done = self.cpu.run(work, move || {
            let parity = code.encode(&data)?;
            let blocks: Result<Vec<Block>, _> = parity.into_iter().map(Block::new).collect();
            blocks.map_err(|_| WriteError::Draft { detail: "its blocks have no or too many bytes" })
        });
        done.await.ok_or(WriteError::Stopping)?
    }
}

/// The nodes of a pool that have an agreement, as placement sees them.
pub fn candidates(pool: &NodePool) -> Vec<Candidate> {
    pool.nodes()
        .into_iter()
        .filter(|view| view.known.agreement.is_some())
        .map(|view| Candidate {
            id: view.known.id,
            live: view.known.accepts_writes && !view.state.is_down(),
            domain: view.known.domain,
            free_bytes: view.known.free_bytes,
        })
        .collect()
}

/// The draft's blocks without repetitions, 1 to k of them.
fn distinct(draft: StripeDraft) -> Result<Vec<DraftBlock>, WriteError> {
    let mut seen = HashSet::new();
    let mut blocks: Vec<DraftBlock> = Vec::with_capacity(draft.blocks.len());
    for block in draft.blocks {
        if seen.insert(block.block.digest()) {
            blocks.push(block);
        }
    }
    if blocks.is_empty() {
        return Err(EMPTY);
    }
    if blocks.len() > draft.policy.k {
        return Err(WIDE);
    }
    Ok(blocks)
}

/// The terms of the parity's claims. Parity mixes the bytes of all blocks, so it is public only if all of
/// them are, readable under their scope if they share one, and else under a scope that nobody is granted:
/// then only delegates of the namespace read it. It is retained as long as the longest retained block.
struct ParityTerms {
    scope: Option<ScopeId>,
    retain_until_ms: u64,
}

impl ParityTerms {
    fn of(blocks: &[DraftBlock]) -> Result<Self, WriteError> {
        let first = blocks.first().ok_or(EMPTY)?.scope;
        let alike = blocks.iter().all(|draft| draft.scope == first);
        let scope = if alike { first } else { Some(ScopeId::random().map_err(|_| WriteError::Random)?) };
        let retain_until_ms = blocks.iter().map(|draft| draft.retain_until_ms).max().unwrap_or(0);
        Ok(Self { scope, retain_until_ms })
    }

    fn job(&self, block: &Block) -> ShardJob {
        ShardJob { block: block.clone(), scope: self.scope, retain_until_ms: self.retain_until_ms }
    }
}

#[cfg(test)]
mod tests;
