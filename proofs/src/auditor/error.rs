//! Why the auditor does not take what it is given.

use holdfast_protocol::NodeId;
use holdfast_protocol::record::{Epoch, SignatureError};

use crate::beacon::BeaconError;

/// Why a round is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RoundError {
    /// Another round.
    #[error("epoch {epoch} is drawn by round {expected}, not {found}")]
    Round {
        /// The epoch.
        epoch: Epoch,
        /// Its round.
        expected: u64,
        /// The round given.
        found: u64,
    },
    /// It does not hold.
    #[error(transparent)]
    Beacon(#[from] BeaconError),
}

impl RoundError {
    /// Never with the same round.
    pub const fn is_retryable(&self) -> bool {
        false
    }
}

/// Why a commitment is not countersigned.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CommitmentError {
    /// Nobody follows the node.
    #[error("{node} is not followed")]
    Unfollowed {
        /// The node.
        node: NodeId,
    },
    /// It is not the node's.
    #[error(transparent)]
    Signature(#[from] SignatureError),
    /// It is for another epoch or of another node.
    #[error("asked for epoch {epoch}, got one for {found}")]
    Other {
        /// The epoch asked for.
        epoch: Epoch,
        /// The epoch that came.
        found: Epoch,
    },
    /// The beacon has drawn.
    #[error("the commitment to epoch {epoch} came {late_ms} ms after the draw")]
    Late {
        /// The epoch.
        epoch: Epoch,
        /// How late.
        late_ms: u64,
    },
    /// The epoch has not begun.
    #[error("epoch {epoch} has not begun")]
    Early {
        /// The epoch.
        epoch: Epoch,
    },
    /// The node had committed to something else: a proven lie.
    #[error("{node} committed to epoch {epoch} twice")]
    Equivocation {
        /// The node.
        node: NodeId,
        /// The epoch.
        epoch: Epoch,
    },
}

impl CommitmentError {
    /// Whether the same node may show an acceptable one for the same epoch later.
    pub const fn is_retryable(&self) -> bool {
        matches!(self, Self::Early { .. } | Self::Other { .. })
    }
}

/// Why an answer is not judged: it is nobody's word.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AnswerError {
    /// The epoch is not drawn yet.
    #[error("epoch {epoch} has not been drawn")]
    Undrawn {
        /// The epoch.
        epoch: Epoch,
    },
    /// There is no commitment in time.
    #[error("the node has no commitment to epoch {epoch} here")]
    Uncommitted {
        /// The epoch.
        epoch: Epoch,
    },
    /// It is not the node's.
    #[error(transparent)]
    Signature(#[from] SignatureError),
    /// It answers another draw.
    #[error("the answer is not to the draw of epoch {epoch}")]
    Other {
        /// The epoch asked for.
        epoch: Epoch,
    },
    /// The proofs are not those that were signed for.
    #[error("the proofs are not those that the node signed for")]
    Body,
}

impl AnswerError {
    /// Whether the same node may answer acceptably later.
    pub const fn is_retryable(&self) -> bool {
        true
    }
}
