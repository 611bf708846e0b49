//! What the node's own errors look like to a peer: one exhaustive match per error, and no path or key in any text.

use holdfast_protocol::message::{Refusal, RefusalReason};

use crate::node::ledger::LedgerError;
use crate::store::{PutError, ReadError, StoreError};

/// A put's failure.
pub(crate) fn put(error: &PutError) -> Refusal {
    match error {
        PutError::DiskFull { .. } => Refusal::new(RefusalReason::DiskFull, error.to_string()),
        PutError::Contended { .. } => Refusal::new(RefusalReason::Busy, error.to_string()),
        PutError::TooManyClaims { .. } => Refusal::new(RefusalReason::TooLarge, error.to_string()),
        PutError::Mismatch { .. } => internal("a put contradicts itself", error),
        PutError::Store(error) => store(error),
    }
}

/// A claim change's failure.
pub(crate) fn store(error: &StoreError) -> Refusal {
    match error {
        StoreError::Failed { .. } => Refusal::new(
            RefusalReason::DiskFailed,
            "the node's disk failed; it takes no writes until restarted",
        ),
        StoreError::ReadOnly { .. } => Refusal::new(
            RefusalReason::DiskFailed,
            "the node's disk is read-only: it serves what it has and takes no writes",
        ),
        StoreError::Away { .. } => away(),
        StoreError::Full => Refusal::new(RefusalReason::DiskFull, error.to_string()),
        StoreError::TooLarge { .. } => Refusal::new(RefusalReason::TooLarge, error.to_string()),
        StoreError::Closing => Refusal::new(RefusalReason::Stopping, error.to_string()),
    }
}

/// A read's failure.
pub(crate) fn read(error: &ReadError) -> Refusal {
    match error {
        ReadError::Range { .. } => Refusal::new(RefusalReason::Range, error.to_string()),
        ReadError::Gone { .. } => Refusal::new(RefusalReason::NotFound, error.to_string()),
        ReadError::Moved { .. } => Refusal::new(RefusalReason::Busy, error.to_string()),
        ReadError::Away { .. } => away(),
        ReadError::Disk { digest, .. } => {
            tracing::error!(%digest, %error, "a block cannot be read from disk");
            Refusal::new(RefusalReason::DiskFailed, "the node's disk failed to read the block")
        }
        ReadError::Damaged { digest } => {
            tracing::error!(%digest, %error, "a block's header is damaged");
            Refusal::new(RefusalReason::DiskFailed, "the node's copy of the block is damaged")
        }
        ReadError::Index { .. } => internal("the index failed", error),
        ReadError::Closing => Refusal::new(RefusalReason::Stopping, error.to_string()),
    }
}

/// Never "not found": a block that may lie on a disk that is away is neither held nor lost for now.
fn away() -> Refusal {
    Refusal::new(RefusalReason::DiskFailed, "one of the node's disks is not there; the block may lie on it")
}

/// A record that was not kept.
pub(crate) fn ledger(error: &LedgerError) -> Refusal {
    match error {
        LedgerError::Write { .. } => {
            tracing::error!(%error, "a record cannot be written");
            Refusal::new(RefusalReason::DiskFailed, "the node's disk failed to keep the record")
        }
        LedgerError::TooManyInstances | LedgerError::HeadTooLong { .. } => {
            Refusal::new(RefusalReason::TooLarge, error.to_string())
        }
    }
}

/// A fault of our own: logged in full, told in brief.
pub(crate) fn internal(what: &'static str, error: &dyn std::fmt::Display) -> Refusal {
    tracing::error!(%error, "{what}");
    Refusal::new(RefusalReason::Internal, what)
}

/// Runs `work`, which blocks on the disk, off the async threads.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Refusal> {
    tokio::task::spawn_blocking(work).await.map_err(|error| internal("the request was interrupted", &error))
}
