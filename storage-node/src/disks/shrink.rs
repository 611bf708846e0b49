//! Offering less on a disk, or more from the next start on.
//!
//! What is offered is written down in the registry first. New blocks find no more room than that from then on; what is
//! too much already, the namespaces are asked to move elsewhere.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use super::registry::Registry;
use super::{Disks, Slot};
use crate::store::OpenError;

/// Why a disk was not told to offer something else.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ResizeError {
    /// The node has no such disk.
    #[error("the node has no disk at {}; it has {}", dir.display(), known.join(", "))]
    Unknown {
        /// What was named.
        dir: PathBuf,
        /// Its disks.
        known: Vec<String>,
    },
    /// What is written down could not be changed.
    #[error("the list of disks cannot be changed: {source}")]
    Registry {
        /// Why.
        source: OpenError,
    },
}

impl ResizeError {
    /// Whether the same change can succeed later.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Registry { .. })
    }
}

impl Disks {
    /// Offers this much on the disk at `dir` from now on, durably. More than the store was opened with counts from the
    /// next start. Blocks on the disk.
    pub fn resize(&self, dir: &Path, capacity_bytes: u64) -> Result<(), ResizeError> {
        let slot = self.slots.iter().find(|slot| slot.config.dir == dir);
        let slot = slot.ok_or_else(|| ResizeError::Unknown {
            dir: dir.to_owned(),
            known: self.slots.iter().map(|slot| slot.config.dir.display().to_string()).collect(),
        })?;
        resize_offline(&self.home, dir, capacity_bytes)?;
        slot.offered.store(capacity_bytes, Ordering::Relaxed);
        Ok(())
    }

    /// What the node's own disk offers: kept with the node's other wishes, not in the registry.
    pub fn offer_on_first(&self, capacity_bytes: u64) {
        if let Some(slot) = self.slots.first() {
            slot.offered.store(capacity_bytes, Ordering::Relaxed);
        }
    }

    /// Bytes offered over all disks, and what their stores were opened with.
    pub fn offered_and_whole(&self) -> (u64, u64) {
        let whole = |slot: &Slot| slot.config.capacity_bytes;
        let offered = |slot: &Slot| slot.offered.load(Ordering::Relaxed).min(whole(slot));
        (self.slots.iter().map(offered).sum(), self.slots.iter().map(whole).sum())
    }

    /// Bytes of kept blocks that are too much on disks which were told to offer less.
    pub fn excess_bytes(&self) -> u64 {
        let excess =
            |slot: &Slot| slot.accounts().used_bytes.saturating_sub(slot.offered.load(Ordering::Relaxed));
        self.slots.iter().map(excess).sum()
    }

    /// Bytes that new blocks may still take on a disk that was told to offer less.
    pub(super) fn room_left(&self, disk: usize, block_room: u64) -> u64 {
        let Some(slot) = self.slots.get(disk) else { return 0 };
        let accounts = slot.accounts();
        let occupied = accounts.capacity_bytes.saturating_sub(accounts.free_bytes);
        block_room.min(slot.offered.load(Ordering::Relaxed).saturating_sub(occupied))
    }
}

/// As [`Disks::resize`], for a node that does not run.
pub fn resize_offline(home: &Path, dir: &Path, capacity_bytes: u64) -> Result<(), ResizeError> {
    let failed = |source| ResizeError::Registry { source };
    let mut registry = Registry::load(home).map_err(failed)?;
    registry
        .resize(dir, capacity_bytes)
        .map_err(|known| ResizeError::Unknown { dir: dir.to_owned(), known })?;
    registry.save().map_err(failed)
}
