//! Where blocks are, as the tickets of a process told it.

use async_trait::async_trait;
use holdfast_protocol::Digest;
use lru::LruCache;
use parking_lot::Mutex;

use crate::fetch::{Placement, PlacementError, Slot};

/// Blocks whose places are remembered: as many as a thousand pages name; about 100 bytes each, and a stripe's
/// row is shared by its blocks.
const PLACES_MAX: usize = 1 << 20;

/// A placement table that tickets fill.
pub(super) struct TicketTable {
    places: Mutex<LruCache<Digest, Slot>>,
}

impl TicketTable {
    pub(super) fn new() -> Self {
        Self { places: Mutex::new(LruCache::unbounded()) }
    }

    /// A newer ticket's word counts.
    pub(super) fn enter(&self, digest: Digest, slot: Slot) {
        let mut places = self.places.lock();
        places.put(digest, slot);
        while places.len() > PLACES_MAX {
            places.pop_lru();
        }
    }
}

#[async_trait]
impl Placement for TicketTable {
    async fn locate(&self, digest: &Digest) -> Result<Option<Slot>, PlacementError> {
        Ok(self.places.lock().get(digest).cloned())
    }
}
