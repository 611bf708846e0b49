//! One shard onto one node, believed only with the node's receipt; and the commit of its claim.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use holdfast_protocol::NodeId;
use holdfast_protocol::message::{BlockOutcome, CommitBlocks, PutBlock};
use holdfast_protocol::record::{AgreementId, ClaimRef, ClaimTag, Receipt, Unverified};
use holdfast_protocol::rpc::CallError;
use tokio::time::Instant;

use super::ShardTerms;
use crate::block::BlockRef;
use crate::fetch::read::in_words;
use crate::pool::{NodePool, Outcome};

/// How long a node keeps the shard without a CommitBlocks: far longer than a stripe takes.
const LEASE_MS: u64 = 3_600_000;
/// One PutBlock or CommitBlocks ends after this time, dialling included.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(10);

/// Puts and commits shards on the nodes of a pool.
pub(crate) struct Putter {
    pub(crate) pool: Arc<NodePool>,
}

/// A shard to put: verified bytes of exactly this block.
pub(crate) struct ShardPut {
    pub(crate) block: BlockRef,
    pub(crate) bytes: Bytes,
    pub(crate) tag: ClaimTag,
    pub(crate) terms: ShardTerms,
}

impl Putter {
    /// Puts the shard on `node` and checks the receipt. The error says in words what happened.
    pub(crate) async fn put(&self, node: NodeId, shard: &ShardPut) -> Result<(), String> {
        let agreement = self.pool.agreement(node).ok_or("there is no agreement with it")?;
        let now_ms = self.pool.clock().now_ms();
        let request = PutBlock {
            agreement,
            digest: shard.block.digest,
            len: shard.block.len,
            tag: shard.tag,
            scope: shard.terms.scope,
            lease_until_ms: now_ms.saturating_add(LEASE_MS),
            retain_until_ms: shard.terms.retain_until_ms,
        };
        let started = Instant::now();
        let asked = async {
            let peer = self.pool.peer(node).await.map_err(|error| in_words(&error))?;
            peer.put_block(request, shard.bytes.clone()).await.map_err(|error| self.failed(node, &error))
        };
        let reply = match tokio::time::timeout(TIMEOUT, asked).await {
            Ok(reply) => reply?,
            Err(_) => {
                self.pool.report(node, Outcome::Failed);
                return Err(format!("no receipt within {} s", TIMEOUT.as_secs()));
            }
        };
        if let Err(what) = check_receipt(&reply.receipt, node, agreement, shard.block, now_ms) {
            let digest = Some(shard.block.digest);
            self.pool.report(node, Outcome::Lied { what: what.clone(), digest });
            return Err(what);
        }
        self.pool.report(node, Outcome::Ok { latency: started.elapsed(), bytes: shard.bytes.len() });
        Ok(())
    }

    /// Commits the claim of a shard that was put. The gateway's queue holds the same order, so a failure
    /// here costs only time.
    pub(crate) async fn commit(&self, node: NodeId, claim: ClaimRef) -> bool {
        let Some(agreement) = self.pool.agreement(node) else { return false };
        let request = CommitBlocks { agreement, claims: vec![claim], retain_until_ms: 0 };
        let asked = async {
            let peer = self.pool.peer(node).await.ok()?;
            peer.commit_blocks(request).await.map_err(|error| self.failed(node, &error)).ok()
        };
        let outcomes = tokio::time::timeout(TIMEOUT, asked).await.ok().flatten();
        outcomes.is_some_and(|outcomes| {
            matches!(outcomes.as_slice(), [BlockOutcome::Done | BlockOutcome::Already])
        })
    }

    fn failed(&self, node: NodeId, error: &CallError) -> String {
        let what = in_words(error);
        if error.is_peer_fault() {
            self.pool.report(node, Outcome::Lied { what: what.clone(), digest: None });
        } else if !matches!(error, CallError::Refused(_)) {
            self.pool.report(node, Outcome::Failed);
        }
        what
    }
}

/// The receipt is the node's, under this agreement, for this block, and runs.
fn check_receipt(
    receipt: &Unverified<Receipt>,
    node: NodeId,
    agreement: AgreementId,
    block: BlockRef,
    now_ms: u64,
) -> Result<(), String> {
    let signed = receipt.verify_by(node.key()).map_err(|error| in_words(&error))?;
    let record = signed.record();
    let fault = if record.node != node || record.agreement != agreement {
        "the receipt is about another agreement"
    } else if !record.covers(&block.digest, block.len) {
        "the receipt does not list the block"
    } else if record.lease_until_ms <= now_ms {
        "the receipt's lease has already ended"
    } else {
        return Ok(());
    };
    Err(fault.to_owned())
}
