//! Why an object's bytes could not be had.

use std::sync::Arc;
use std::time::Duration;

use holdfast_protocol::Digest;

use crate::fetch::FetchError;

/// Why an object's bytes could not be had.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ObjectError {
    /// A block.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// The object's key does not decipher.
    #[error("the object cannot be deciphered")]
    Cipher,
    /// The object's list of blocks ends early.
    #[error("the object ends {missing} bytes early")]
    Short {
        /// Bytes that nothing has.
        missing: u64,
    },
    /// Whatever stands between us and the object failed.
    #[error("the object cannot be read")]
    Source {
        /// What it said.
        source: Arc<dyn std::error::Error + Send + Sync>,
        /// Whether the same read may succeed later.
        retryable: bool,
    },
    /// A block could not be had in time, in whatever way.
    #[error("block {block} could not be had within {after:?}")]
    TimedOut {
        /// The block.
        block: Digest,
        /// How long it was tried.
        after: Duration,
    },
    /// The read was given up on because the program is stopping.
    #[error("the read was stopped")]
    Stopping,
}

impl ObjectError {
    /// Wraps what another source of bytes said.
    pub fn source(source: impl std::error::Error + Send + Sync + 'static, retryable: bool) -> Self {
        Self::Source { source: Arc::new(source), retryable }
    }

    /// Whether the same read may succeed later without anybody's help.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Fetch(error) => error.is_retryable(),
            Self::Source { retryable, .. } => *retryable,
            Self::Stopping | Self::TimedOut { .. } => true,
            Self::Cipher | Self::Short { .. } => false,
        }
    }
}
