//! Why a node could not be opened or stopped.

use std::path::PathBuf;

use crate::store::OpenError;

/// Why a node's directory cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenNodeError {
    /// The directory, or a file in it, cannot be used.
    #[error("{} cannot be used: {source}", dir.display())]
    Dir {
        /// The path.
        dir: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Another process runs on it.
    #[error("{} is in use by another process; stop that one or choose another directory", dir.display())]
    Locked {
        /// The directory.
        dir: PathBuf,
    },
    /// A newer release wrote it.
    #[error("{} has format {found}, this release reads up to {newest}; upgrade, nothing was changed", dir.display())]
    Newer {
        /// The directory.
        dir: PathBuf,
        /// The format found.
        found: u32,
        /// The newest format read.
        newest: u32,
    },
    /// Something else lies there.
    #[error("{} is not a node's directory: its `format` file cannot be read", dir.display())]
    NotANode {
        /// The directory.
        dir: PathBuf,
    },
    /// The key file is damaged. It is never replaced: with it the node would lose its name and agreements.
    #[error("the key file {} is unusable: {detail}; restore it from a backup", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        detail: &'static str,
    },
    /// An agreement or head is damaged.
    #[error("the record {} is damaged: {detail}; move it away to start without it", path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// The committed inventory or the audit's rules cannot be used.
    #[error("the audit's files cannot be used: {source}")]
    Audit {
        /// What failed.
        source: crate::audit::AuditError,
    },
    /// The block store cannot be opened.
    #[error("the block store cannot be opened: {source}")]
    Store {
        /// What the store said.
        source: OpenError,
    },
    /// A thread panicked while opening.
    #[error("opening the node was interrupted")]
    Interrupted,
}

impl OpenNodeError {
    /// Whether opening again can succeed without anybody doing anything.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Locked { .. } | Self::Interrupted => true,
            Self::Dir { .. }
            | Self::Newer { .. }
            | Self::NotANode { .. }
            | Self::Key { .. }
            | Self::Record { .. }
            | Self::Audit { .. }
            | Self::Store { .. } => false,
        }
    }
}
