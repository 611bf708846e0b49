//! The bytes of an open file: staged here, or as they are at the key.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::RwLock;

use super::staged::Staged;

/// What all open handles of a file share.
#[derive(Debug, Default)]
pub(super) struct Content {
    /// There once something was written. Held for writing during an upload, so that what is uploaded holds still.
    pub(super) staged: RwLock<Option<Staged>>,
    is_staged: AtomicBool,
}

impl Content {
    pub(super) fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Whether reads must look at the staged bytes.
    pub(super) fn is_staged(&self) -> bool {
        self.is_staged.load(Ordering::Acquire)
    }

    /// Told by whoever puts or takes the staged bytes, while holding the lock.
    pub(super) fn set_staged(&self, staged: bool) {
        self.is_staged.store(staged, Ordering::Release);
    }
}
