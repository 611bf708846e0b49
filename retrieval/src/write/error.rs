//! Why a stripe was not written.

use std::fmt;

use holdfast_protocol::NodeId;
use holdfast_protocol::message::RefusalReason;

use crate::code::CodeError;
use crate::placement::PlacementError;

/// Why one node did not take one shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardFailure {
    /// The shard's slot.
    pub slot: usize,
    /// The node.
    pub node: NodeId,
    /// For programs.
    pub kind: FailureKind,
    /// For people.
    pub detail: String,
}

/// The kinds of [`ShardFailure`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FailureKind {
    /// It could not be reached, or the connection broke.
    Unreachable,
    /// It did not answer in time.
    Late,
    /// It said no.
    Refused(RefusalReason),
    /// Its answer was provably wrong.
    Lied,
    /// We have no agreement with it (any more).
    NoAgreement,
}

impl fmt::Display for ShardFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.node, self.detail)
    }
}

/// Why a stripe was not written. Cloneable, because all participants of a commit group get the same.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// Fewer nodes than the write quorum gave a receipt. What they took lapses with its lease.
    #[error("{got} of the {needed} receipts needed arrived ({})", listed(.failures, .given_up))]
    Quorum {
        /// Receipts needed.
        needed: usize,
        /// Receipts that came.
        got: usize,
        /// Requests that were given up because the quorum was out of reach already.
        given_up: usize,
        /// Why the others did not: the last failures, at most one per slot.
        failures: Vec<ShardFailure>,
    },
    /// No nodes to write to.
    #[error(transparent)]
    Placement(#[from] PlacementError),
    /// The stripe cannot be coded.
    #[error(transparent)]
    Code(#[from] CodeError),
    /// The stripe has no block, or more than k, or a block of no or too many bytes.
    #[error("the draft is not a stripe: {detail}")]
    Draft {
        /// What is wrong.
        detail: &'static str,
    },
    /// The system gave no random bytes for the stripe's id.
    #[error("the system's random source failed")]
    Random,
    /// The writer is shutting down.
    #[error("the writer is stopping")]
    Stopping,
}

impl WriteError {
    /// Whether the same write can succeed later: 503 SlowDown to an S3 client.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Quorum { .. } | Self::Stopping | Self::Random => true,
            Self::Placement(error) => error.is_retryable(),
            Self::Code(error) => error.is_retryable(),
            Self::Draft { .. } => false,
        }
    }
}

fn listed(failures: &[ShardFailure], given_up: &usize) -> String {
    let mut reasons: Vec<String> = failures.iter().map(ToString::to_string).collect();
    if *given_up > 0 {
        reasons.push(format!("{given_up} more requests were given up"));
    }
    reasons.join("; ")
}
