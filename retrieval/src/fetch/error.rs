//! Why a read failed: one fault per node asked, and the error of the whole read.

use std::fmt;
use std::sync::Arc;

use holdfast_protocol::message::Refusal;
use holdfast_protocol::record::StripeId;
use holdfast_protocol::{Digest, NodeId};

/// Why one node did not give one verified answer.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadFault {
    /// No connection could be had.
    #[error("offline: {detail}")]
    Offline {
        /// What the pool said.
        detail: String,
    },
    /// No complete answer in time.
    #[error("no complete answer within {after_ms} ms")]
    Timeout {
        /// How long we waited.
        after_ms: u64,
    },
    /// The connection or stream broke off.
    #[error("broke off: {detail}")]
    Broken {
        /// What the transport said.
        detail: String,
    },
    /// The node says that it does not hold the block, or has lost it.
    #[error("does not hold the block: {0}")]
    Absent(Refusal),
    /// The node refused for another reason.
    #[error("refused: {0}")]
    Refused(Refusal),
    /// The node answered something that its request or the digest disproves: other bytes, fewer bytes, no
    /// message at all.
    #[error("wrong answer: {what}")]
    Lied {
        /// What was wrong with it, for the list of culprits.
        what: String,
    },
}

impl ReadFault {
    /// Whether asking the same node again can help.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Timeout { .. } | Self::Broken { .. } | Self::Offline { .. } => true,
            Self::Refused(refusal) => refusal.reason.is_retryable(),
            Self::Absent(_) | Self::Lied { .. } => false,
        }
    }

    /// Whether the shard itself must be taken for missing on that node, whatever the node's connection does.
    pub fn shard_is_gone(&self) -> bool {
        matches!(self, Self::Absent(_) | Self::Lied { .. })
    }
}

/// One shard that could not be used, and why.
#[derive(Clone, Debug)]
pub struct ShardReason {
    /// Its slot in the stripe.
    pub slot: usize,
    /// The node that should have it; `None` when no node has.
    pub node: Option<NodeId>,
    /// What happened; `None` when there was no node to ask.
    pub fault: Option<ReadFault>,
}

impl fmt::Display for ShardReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "shard {}", self.slot)?;
        match (&self.node, &self.fault) {
            (Some(node), Some(fault)) => write!(f, " on {}: {fault}", node.short()),
            (Some(node), None) => write!(f, " on {}: not asked", node.short()),
            (None, _) => write!(f, ": on no node"),
        }
    }
}

/// Reasons of several shards, printed one after another.
#[derive(Clone, Debug, Default)]
pub struct ShardReasons(pub Vec<ShardReason>);

impl fmt::Display for ShardReasons {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, reason) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}{reason}")?;
        }
        Ok(())
    }
}

/// Why the placement tables did not answer.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlacementError {
    /// The store failed; the same question may be answered later.
    #[error("the placement tables cannot be read")]
    Store {
        /// What the store said.
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// A row contradicts itself.
    #[error("the placement of {digest} is damaged: {detail}")]
    Damaged {
        /// The block.
        digest: Digest,
        /// What is wrong.
        detail: String,
    },
}

impl PlacementError {
    /// Wraps what a store said.
    pub fn store(source: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::Store { source: Arc::new(source) }
    }

    /// Whether asking again can help.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Store { .. })
    }
}

/// Why verified bytes of a block could not be had.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// No stripe holds the block.
    #[error("block {digest} is placed on no node")]
    NotPlaced {
        /// The block.
        digest: Digest,
    },
    /// The range lies outside the block.
    #[error("bytes {start}..{end} lie outside block {digest} of {len} bytes")]
    Range {
        /// The block.
        digest: Digest,
        /// Its length.
        len: u32,
        /// First byte wanted.
        start: u32,
        /// One past the last byte wanted.
        end: u32,
    },
    /// Too few shards could be read.
    #[error(
        "block {digest} cannot be read: {have} of the {need} shards needed of stripe {stripe} are to be had ({reasons})"
    )]
    Unrecoverable {
        /// The block.
        digest: Digest,
        /// Its stripe.
        stripe: StripeId,
        /// Shards that did not fail, virtual ones included.
        have: usize,
        /// Shards needed.
        need: usize,
        /// What happened to the others.
        reasons: ShardReasons,
    },
    /// Every shard is what the stripe's row says, and yet together they do not give the block: the row mixes
    /// shards of different codings. No node is to blame.
    #[error("stripe {stripe} does not decode to block {digest}: its row is inconsistent")]
    Inconsistent {
        /// The block.
        digest: Digest,
        /// Its stripe.
        stripe: StripeId,
        /// What the code said.
        detail: String,
    },
    /// The program is stopping.
    #[error("the read of block {digest} was stopped")]
    Stopping {
        /// The block.
        digest: Digest,
    },
    /// The placement tables failed.
    #[error("block {digest} cannot be located")]
    Placement {
        /// The block.
        digest: Digest,
        /// Why.
        source: PlacementError,
    },
}

impl FetchError {
    /// Whether the same read may succeed later without anybody's help.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::NotPlaced { .. } | Self::Range { .. } | Self::Inconsistent { .. } => false,
            Self::Stopping { .. } => true,
            Self::Placement { source, .. } => source.is_retryable(),
            Self::Unrecoverable { need, have, reasons, .. } => {
                let may_come = reasons
                    .0
                    .iter()
                    .filter(|reason| reason.fault.as_ref().is_some_and(ReadFault::is_retryable))
                    .count();
                have + may_come >= *need
            }
        }
    }

    /// The block that was wanted.
    pub fn digest(&self) -> Digest {
        match self {
            Self::NotPlaced { digest }
            | Self::Range { digest, .. }
            | Self::Unrecoverable { digest, .. }
            | Self::Inconsistent { digest, .. }
            | Self::Stopping { digest }
            | Self::Placement { digest, .. } => *digest,
        }
    }
}
