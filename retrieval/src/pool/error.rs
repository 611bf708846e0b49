//! Why there is no connection to a node.

use std::time::Duration;

use holdfast_protocol::NodeId;
use holdfast_protocol::record::SignatureError;
use holdfast_protocol::rpc::CallError;
use holdfast_protocol::transport::DialError;

/// Why a node cannot be asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PoolError {
    /// Not a node of this pool.
    #[error("node {node} is not known here")]
    Unknown {
        /// Which.
        node: NodeId,
    },
    /// The pool knows as many nodes as it may.
    #[error("node {node} is not taken in: {max} nodes are known already")]
    Full {
        /// Which.
        node: NodeId,
        /// The bound.
        max: usize,
    },
    /// It failed a moment ago and is left alone until its back-off ends.
    #[error("node {node} failed {failures} times in a row; the next attempt is due in {wait:?}")]
    BackingOff {
        /// Which.
        node: NodeId,
        /// Failures in a row.
        failures: u32,
        /// How long until the next attempt.
        wait: Duration,
    },
    /// Dialling failed.
    #[error("node {node} cannot be reached")]
    Dial {
        /// Which.
        node: NodeId,
        /// What the transport said.
        source: DialError,
    },
    /// It answered, but not to our Hello, or to the request.
    #[error("node {node} does not talk to us")]
    Call {
        /// Which.
        node: NodeId,
        /// What it said.
        source: CallError,
    },
    /// Dialling and Hello took too long.
    #[error("node {node} did not answer within {after:?}")]
    Timeout {
        /// Which.
        node: NodeId,
        /// How long we waited.
        after: Duration,
    },
    /// The agreement it answered with is not what was proposed.
    #[error("node {node} answered with an agreement that does not hold: {detail}")]
    Agreement {
        /// Which.
        node: NodeId,
        /// What is wrong.
        detail: &'static str,
        /// The signature at fault, if one is.
        source: Option<Box<SignatureError>>,
    },
}

impl PoolError {
    /// Whether trying again later can help.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Unknown { .. } | Self::Full { .. } | Self::Agreement { .. } => false,
            Self::BackingOff { .. } | Self::Dial { .. } | Self::Timeout { .. } => true,
            Self::Call { source, .. } => source.is_retryable(),
        }
    }

    /// The node that it is about.
    pub fn node(&self) -> NodeId {
        match self {
            Self::Unknown { node }
            | Self::Full { node, .. }
            | Self::BackingOff { node, .. }
            | Self::Dial { node, .. }
            | Self::Call { node, .. }
            | Self::Timeout { node, .. }
            | Self::Agreement { node, .. } => *node,
        }
    }
}
