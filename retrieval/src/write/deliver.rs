//! What follows an acknowledged write: CommitBlocks makes its shards live, and one day DeleteBlocks releases
//! them. Both are repeated until the node answers, so both may arrive twice; a claim's tag names its stripe,
//! so a late repetition never touches another stripe's claim on the same block.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use holdfast_protocol::limits::CLAIMS_PER_REQUEST_MAX;
use holdfast_protocol::message::{BlockOutcome, CommitBlocks, DeletionOrder, RestoreBlocks};
use holdfast_protocol::record::{AgreementId, ClaimRef, Record, Signed, StripeId};
use holdfast_protocol::rpc::{CallError, Peer};
use holdfast_protocol::{Digest, NodeId, SigningKey};

use crate::pool::{NodePool, Outcome, PoolError};
use crate::tag::TagKey;

/// Nodes told at the same time.
const NODES_AT_ONCE: usize = 32;
/// How long one request of up to 512 claims may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(15);

/// One shard on one node: what its claim is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ShardClaim {
    /// The stripe whose claim is meant.
    pub stripe: StripeId,
    /// The shard's digest.
    pub digest: Digest,
    /// The node that holds it.
    pub node: NodeId,
}

/// Why a node was not told, or did not answer. The claim stays as it is, or was changed without our
/// knowing; telling it again is right either way.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeliverError {
    /// There is no agreement with the node, so it has no claims of ours.
    #[error("there is no agreement with node {node}")]
    NoAgreement {
        /// Which.
        node: NodeId,
    },
    /// The node is not known, or cannot be reached.
    #[error("node {node} cannot be told now: {detail}")]
    Unreachable {
        /// Which.
        node: NodeId,
        /// Why.
        detail: String,
    },
    /// The request failed.
    #[error("node {node} did not do it")]
    Call {
        /// Which.
        node: NodeId,
        /// What it said.
        source: CallError,
    },
    /// No answer in time.
    #[error("node {node} did not answer within {after:?}")]
    Timeout {
        /// Which.
        node: NodeId,
        /// How long we waited.
        after: Duration,
    },
}

impl DeliverError {
    /// Whether telling the same node again later can help.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::NoAgreement { .. } => false,
            Self::Unreachable { .. } | Self::Timeout { .. } => true,
            Self::Call { source, .. } => source.is_retryable(),
        }
    }
}

/// One answer per claim, in the order of the claims.
pub type Delivered = Vec<Result<BlockOutcome, DeliverError>>;

/// Tells nodes about claims, grouped per node. Cheap to clone.
#[derive(Clone)]
pub struct Deliverer {
    pool: Arc<NodePool>,
    tags: TagKey,
    /// The delegate's key, which signs deletion orders.
    key: Arc<SigningKey>,
}

/// What to tell.
#[derive(Clone, Copy)]
enum Message {
    Commit { retain_until_ms: u64 },
    Delete,
    Restore,
}

impl Deliverer {
    /// A deliverer that signs deletion orders with the delegate's `key`.
    pub fn new(pool: Arc<NodePool>, tags: TagKey, key: Arc<SigningKey>) -> Self {
        Self { pool, tags, key }
    }

    /// Makes provisional shards live. `Absent` means that the node has let the block go (its lease ended
    /// while we were away): the shard is missing and its stripe needs repair.
    pub async fn commit_shards(&self, claims: &[ShardClaim], retain_until_ms: u64) -> Delivered {
        self.tell(claims, Message::Commit { retain_until_ms }, None).await
    }

    /// Releases shards to the nodes' trash, by signed orders. `Absent` and `Already` are as good as `Done`;
    /// `Retained` is not.
    pub async fn delete_shards(&self, claims: &[ShardClaim]) -> Delivered {
        self.tell(claims, Message::Delete, None).await
    }

    /// Commits shards that were put under an earlier agreement with their nodes.
    pub async fn commit_shards_under(&self, agreement: AgreementId, claims: &[ShardClaim]) -> Delivered {
        self.tell(claims, Message::Commit { retain_until_ms: 0 }, Some(agreement)).await
    }

    /// Releases shards that were put under an earlier agreement with their nodes.
    pub async fn delete_shards_under(&self, agreement: AgreementId, claims: &[ShardClaim]) -> Delivered {
        self.tell(claims, Message::Delete, Some(agreement)).await
    }

    /// Takes shards back from trash.
    pub async fn restore_shards(&self, claims: &[ShardClaim]) -> Delivered {
        self.tell(claims, Message::Restore, None).await
    }

    async fn tell(&self, claims: &[ShardClaim], message: Message, under: Option<AgreementId>) -> Delivered {
        let mut per_node: BTreeMap<NodeId, Vec<usize>> = BTreeMap::new();
        for (index, claim) in claims.iter().enumerate() {
            per_node.entry(claim.node).or_default().push(index);
        }
        let answers: Vec<(Vec<usize>, Delivered)> = futures::stream::iter(per_node)
            .map(|(node, indexes)| async move {
                let mut delivered = Delivered::with_capacity(indexes.len());
                for part in indexes.chunks(CLAIMS_PER_REQUEST_MAX) {
                    let refs: Vec<ClaimRef> = part
                        .iter()
                        .map(|index| &claims[*index])
                        .map(|claim| ClaimRef(claim.digest, self.tags.tag(claim.stripe, node)))
                        .collect();
                    match self.tell_node(node, refs, message, under).await {
                        Ok(outcomes) => delivered.extend(outcomes.into_iter().map(Ok)),
                        Err(error) => delivered.extend(part.iter().map(|_| Err(error.clone()))),
                    }
                }
                (indexes, delivered)
            })
            .buffer_unordered(NODES_AT_ONCE)
            .collect()
            .await;
        let mut ordered: Vec<(usize, Result<BlockOutcome, DeliverError>)> =
            answers.into_iter().flat_map(|(indexes, delivered)| indexes.into_iter().zip(delivered)).collect();
        ordered.sort_by_key(|(index, _)| *index);
        ordered.into_iter().map(|(_, answer)| answer).collect()
    }

    async fn tell_node(
        &self,
        node: NodeId,
        claims: Vec<ClaimRef>,
        message: Message,
        under: Option<AgreementId>,
    ) -> Result<Vec<BlockOutcome>, DeliverError> {
        let present = || self.pool.agreement(node);
        let agreement = under.or_else(present).ok_or(DeliverError::NoAgreement { node })?;
        let ask = async {
            let peer = self.pool.peer(node).await.map_err(|error| not_reached(node, &error))?;
            self.ask(&peer, agreement, claims, message)
                .await
                .map_err(|source| DeliverError::Call { node, source })
        };
        let answer = tokio::time::timeout(ANSWER_WITHIN, ask)
            .await
            .unwrap_or(Err(DeliverError::Timeout { node, after: ANSWER_WITHIN }));
        match &answer {
            Err(DeliverError::Timeout { .. }) => self.pool.report(node, Outcome::Failed),
            Err(DeliverError::Call { source: CallError::Transport { .. }, .. }) => {
                self.pool.report(node, Outcome::Failed);
            }
            _ => {}
        }
        answer
    }

    async fn ask(
        &self,
        peer: &Peer,
        agreement: AgreementId,
        claims: Vec<ClaimRef>,
        message: Message,
    ) -> Result<Vec<BlockOutcome>, CallError> {
        match message {
            Message::Commit { retain_until_ms } => {
                peer.commit_blocks(CommitBlocks { agreement, claims, retain_until_ms }).await
            }
            Message::Restore => peer.restore_blocks(RestoreBlocks { agreement, claims }).await,
            Message::Delete => {
                let issued_ms = self.pool.clock().now_ms();
                let order = DeletionOrder { v: DeletionOrder::VERSION, agreement, claims, issued_ms };
                peer.delete_blocks(&Signed::sign(order, &self.key)).await
            }
        }
    }
}

fn not_reached(node: NodeId, error: &PoolError) -> DeliverError {
    DeliverError::Unreachable { node, detail: error.to_string() }
}

#[cfg(test)]
mod tests;
