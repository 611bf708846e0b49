//! Why a cache cannot be opened. A cache that is open never fails: it only has, or has not.

use std::io;
use std::path::PathBuf;

/// Why a cache cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CacheError {
    /// Another process owns the directory.
    #[error("another process uses the cache in {path}; give each its own directory", path = .path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// Too small to be of use.
    #[error("a cache of {bytes} bytes on disk is too small; give it at least {least}")]
    TooSmall {
        /// What was asked for.
        bytes: u64,
        /// The least.
        least: u64,
    },
    /// The directory cannot be used.
    #[error("the cache in {path} cannot be opened", path = .path.display())]
    Disk {
        /// The directory or file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The process is stopping.
    #[error("the process is stopping")]
    Stopping,
}

impl CacheError {
    /// Whether the same call can succeed later without anybody's help.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::InUse { .. })
    }
}
