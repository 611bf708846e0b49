//! Why an object cannot be read directly.

use std::sync::Arc;

use super::TicketError;
use crate::pool::PoolError;

/// The gateway gave no ticket, or no bytes.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct TicketFailure {
    /// What it said, for people.
    pub message: String,
    /// Whether asking again later can help.
    pub retryable: bool,
}

/// Why an object cannot be read directly.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DirectError {
    /// The gateway gave no ticket.
    #[error("the gateway gives no ticket: {0}")]
    Failure(#[from] TicketFailure),
    /// The ticket contradicts itself.
    #[error("the gateway's ticket cannot be used: {0}")]
    Ticket(#[from] TicketError),
    /// The object was replaced while it was read.
    #[error("the object was replaced or deleted while it was read")]
    Changed,
    /// The pool of nodes is full.
    #[error("a node of the ticket cannot be used")]
    Node(#[source] Arc<PoolError>),
}

impl DirectError {
    /// Whether the same call may succeed later without anybody's help.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Failure(failure) => failure.retryable,
            Self::Node(error) => error.is_retryable(),
            Self::Ticket(_) | Self::Changed => false,
        }
    }
}
