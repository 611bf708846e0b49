//! The requests of one stripe: started, replaced when a node fails, counted, and cut off in time.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use holdfast_protocol::NodeId;
use holdfast_protocol::message::PutBlock;
use holdfast_protocol::record::{Policy, Receipt, ScopeId, Signed, StripeId};
use holdfast_protocol::rpc::CallError;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::Shared;
use crate::block::Block;
use crate::pool::{Outcome, PoolError};
use crate::write::{DraftBlock, FailureKind, ShardFailure, WriteError};

/// Nodes tried for one stripe beyond its shards. A network where more fail is not one to write to now.
const REPLACEMENTS_MAX: usize = 8;

/// A shard to put somewhere.
#[derive(Clone)]
pub(super) struct ShardJob {
    pub(super) block: Block,
    pub(super) scope: Option<ScopeId>,
    pub(super) retain_until_ms: u64,
}

impl ShardJob {
    pub(super) fn of_data(draft: &DraftBlock) -> Self {
        Self { block: draft.block.clone(), scope: draft.scope, retain_until_ms: draft.retain_until_ms }
    }
}

/// A shard that its node holds durably.
pub(super) struct Placed {
    pub(super) slot: usize,
    pub(super) node: NodeId,
    pub(super) receipt: Signed<Receipt>,
}

type Answer = (usize, NodeId, Result<Signed<Receipt>, ShardFailure>);

/// The fan-out of one stripe. Dropping it cancels every request.
pub(super) struct FanOut {
    shared: Arc<Shared>,
    stripe: StripeId,
    policy: Policy,
    quorum: usize,
    started: Instant,
    requests: JoinSet<Answer>,
    jobs: HashMap<usize, ShardJob>,
    /// Who works on which slot now.
    pending: HashMap<usize, NodeId>,
    placed: Vec<Placed>,
    failures: Vec<ShardFailure>,
    replacements: usize,
}

impl FanOut {
    pub(super) fn new(shared: Arc<Shared>, stripe: StripeId, policy: Policy, quorum: usize) -> Self {
        Self {
            shared,
            stripe,
            policy,
            quorum,
            started: Instant::now(),
            requests: JoinSet::new(),
            jobs: HashMap::new(),
            pending: HashMap::new(),
            placed: Vec::new(),
            failures: Vec::new(),
            replacements: 0,
        }
    }

    /// Puts a shard to a node. Without a node the slot stays empty.
    pub(super) fn launch(&mut self, slot: usize, job: ShardJob, node: Option<NodeId>) {
        let Some(node) = node else { return };
        self.jobs.insert(slot, job.clone());
        self.pending.insert(slot, node);
        let (shared, stripe) = (Arc::clone(&self.shared), self.stripe);
        self.requests.spawn(async move {
            let answer = shared.put_shard(stripe, node, job).await;
            (slot, node, answer.map_err(|(kind, detail)| ShardFailure { slot, node, kind, detail }))
        });
    }

    /// Waits for the quorum and a grace beyond it. The shards placed, in slot order.
    pub(super) async fn finish(mut self) -> Result<Vec<Placed>, WriteError> {
        let deadline = self.started + self.shared.config.deadline;
        let mut until = deadline;
        let mut in_grace = false;
        loop {
            if self.placed.len() >= self.quorum && !in_grace {
                in_grace = true;
                until = deadline.min(Instant::now() + self.grace());
            }
            // Nothing more can come, or not enough to matter.
            if self.pending.is_empty() || self.placed.len() + self.pending.len() < self.quorum {
                break;
            }
            match tokio::time::timeout_at(until, self.requests.join_next()).await {
                Ok(Some(Ok((slot, node, answer)))) => self.answered(slot, node, answer),
                Ok(Some(Err(error))) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                Ok(Some(Err(_)) | None) => break,
                Err(_) => break,
            }
        }
        let hopeless = self.placed.len() + self.pending.len() < self.quorum;
        if !hopeless {
            self.blame_the_late();
        }
        self.conclude()
    }

    fn answered(&mut self, slot: usize, node: NodeId, answer: Result<Signed<Receipt>, ShardFailure>) {
        self.pending.remove(&slot);
        match answer {
            Ok(receipt) => self.placed.push(Placed { slot, node, receipt }),
            Err(failure) => {
                tracing::debug!(stripe = %self.stripe, slot, %failure, "a shard was not taken");
                self.failures.push(failure);
                self.replace(slot);
            }
        }
    }

    /// Gives a slot whose node failed to another one in an unused domain, if there is one.
    fn replace(&mut self, slot: usize) {
        if self.replacements >= REPLACEMENTS_MAX {
            return;
        }
        let placed = self.placed.iter().map(|placed| placed.node);
        let taken: Vec<NodeId> = placed.chain(self.pending.values().copied()).collect();
        let refused: Vec<NodeId> = self.failures.iter().map(|failure| failure.node).collect();
        let Some(node) = self.shared.replacement(&self.policy, &taken, &refused) else { return };
        let Some(job) = self.jobs.get(&slot).cloned() else { return };
        self.replacements += 1;
        self.launch(slot, job, Some(node));
    }

    /// How long the stragglers are worth waiting for: twice the worst 95th percentile among them.
    fn grace(&self) -> Duration {
        let config = &self.shared.config;
        let slowest = self.pending.iter().map(|(slot, node)| {
            let bytes = self.jobs.get(slot).map_or(0, |job| job.block.len().as_usize());
            self.shared.pool.latency(*node, bytes).p95_or(Duration::ZERO)
        });
        (slowest.max().unwrap_or_default() * 2).clamp(config.grace_min, config.grace_max)
    }

    /// Counts the requests that ran out of time as failures.
    fn blame_the_late(&mut self) {
        let waited = self.started.elapsed();
        for (slot, node) in std::mem::take(&mut self.pending) {
            // A node that has answered nobody meanwhile is taken for down, so that the next stripes do not
            // wait for it; one that is merely slow stays.
            if self.shared.pool.silent_for(node).is_none_or(|silence| silence >= waited) {
                self.shared.pool.report(node, Outcome::Failed);
            }
            let detail = format!("no receipt within {} ms", waited.as_millis());
            self.failures.push(ShardFailure { slot, node, kind: FailureKind::Late, detail });
        }
    }

    fn conclude(mut self) -> Result<Vec<Placed>, WriteError> {
        if self.placed.len() < self.quorum {
            return Err(WriteError::Quorum {
                needed: self.quorum,
                got: self.placed.len(),
                given_up: self.pending.len(),
                failures: last_per_slot(self.failures),
            });
        }
        self.placed.sort_by_key(|placed| placed.slot);
        Ok(self.placed)
    }
}

fn last_per_slot(failures: Vec<ShardFailure>) -> Vec<ShardFailure> {
    let mut last: HashMap<usize, ShardFailure> = HashMap::new();
    for failure in failures {
        last.insert(failure.slot, failure);
    }
    let mut last: Vec<ShardFailure> = last.into_values().collect();
    last.sort_by_key(|failure| failure.slot);
    last
}

impl Shared {
    /// One PutBlock, and the check of its receipt.
    pub(super) async fn put_shard(
        &self,
        stripe: StripeId,
        node: NodeId,
        job: ShardJob,
    ) -> Result<Signed<Receipt>, (FailureKind, String)> {
        let Some(agreement) = self.pool.agreement(node) else {
            return Err((FailureKind::NoAgreement, "no agreement with this node".into()));
        };
        let peer = self.pool.peer(node).await.map_err(|error| unreachable_node(&error))?;
        let (digest, len) = (job.block.digest(), job.block.len());
        let lease_ms = u64::try_from(self.config.lease.as_millis()).unwrap_or(u64::MAX);
        let request = PutBlock {
            agreement,
            digest,
            len,
            tag: self.tags.tag(stripe, node),
            scope: job.scope,
            lease_until_ms: self.pool.clock().now_ms().saturating_add(lease_ms),
            retain_until_ms: job.retain_until_ms,
        };
        let asked = Instant::now();
        let reply = match peer.put_block(request, job.block.into_bytes()).await {
            Ok(reply) => reply,
            Err(error) => return Err(self.put_failed(node, digest, error)),
        };
        let now_ms = self.pool.clock().now_ms();
        match self.receipts.check(&reply.receipt, node, agreement, (digest, len), now_ms) {
            Ok(receipt) => {
                let bytes = len.as_usize();
                self.pool.report(node, Outcome::Ok { latency: asked.elapsed(), bytes });
                Ok(receipt)
            }
            Err(error) => {
                let what = format!("answered PutBlock with a receipt that does not hold: {error}");
                self.pool.report(node, Outcome::Lied { what: what.clone(), digest: Some(digest) });
                Err((FailureKind::Lied, what))
            }
        }
    }

    fn put_failed(
        &self,
        node: NodeId,
        digest: holdfast_protocol::Digest,
        error: CallError,
    ) -> (FailureKind, String) {
        let detail = described(&error);
        match error {
            CallError::Refused(refusal) => (FailureKind::Refused(refusal.reason), detail),
            error if error.is_peer_fault() => {
                let what = format!("broke the protocol in answer to PutBlock: {detail}");
                self.pool.report(node, Outcome::Lied { what, digest: Some(digest) });
                (FailureKind::Lied, detail)
            }
            _ => {
                self.pool.report(node, Outcome::Failed);
                (FailureKind::Unreachable, detail)
            }
        }
    }
}

fn unreachable_node(error: &PoolError) -> (FailureKind, String) {
    (FailureKind::Unreachable, described(error))
}

/// An error with its causes on one line.
fn described(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
