//! Where blocks were seen last: which stripe, which slot.
//!
//! A hint saves one of the two look-ups that finding a block takes, which is a round trip where metadata lies in a database.
//! It needs no invalidation, whichever gateway writes: the stripe's row is read every time, and the hint counts only if that
//! row still has the block in that slot. A stripe that was packed away has no row any more; then the block's row is asked.

use holdfast_protocol::Digest;
use holdfast_protocol::record::{Stripe, StripeId};
use lru::LruCache;
use parking_lot::Mutex;

use super::Meta;
use super::error::MetaError;
use super::model::Located;

/// Hints kept; about 100 bytes each.
const HINTS_MAX: usize = 32_768;

/// The hints.
#[derive(Default)]
pub(super) struct Whereabouts(Mutex<Option<LruCache<Digest, (StripeId, u8)>>>);

impl Whereabouts {
    fn get(&self, digest: &Digest) -> Option<(StripeId, u8)> {
        self.0.lock().as_mut()?.get(digest).copied()
    }

    fn forget(&self, digest: &Digest) {
        if let Some(hints) = self.0.lock().as_mut() {
            hints.pop(digest);
        }
    }

    fn put(&self, digest: Digest, stripe: StripeId, slot: usize) {
        let Ok(slot) = u8::try_from(slot) else { return };
        let mut hints = self.0.lock();
        let hints = hints.get_or_insert_with(LruCache::unbounded);
        hints.put(digest, (stripe, slot));
        if hints.len() > HINTS_MAX {
            hints.pop_lru();
        }
    }

    /// The data blocks of a stripe that was just committed.
    pub(super) fn committed(&self, stripe: &Stripe) {
        for (slot, shard) in stripe.shards.iter().take(usize::from(stripe.k)).enumerate() {
            if let Some(shard) = shard {
                self.put(shard.digest, stripe.id, slot);
            }
        }
    }
}

impl Meta {
    /// Where a block can be read now. Of a block that nothing refers to any more it may still say where its bytes are.
    pub async fn locate_to_read(&self, digest: &Digest) -> Result<Option<Located>, MetaError> {
        if let Some((id, slot)) = self.whereabouts.get(digest) {
            let slot = usize::from(slot);
            if let Some(stripe) = self.stripe(id).await?
                && let Some(Some(shard)) = stripe.shards.get(slot)
                && shard.digest == *digest
            {
                return Ok(Some(Located { stripe: std::sync::Arc::new(stripe), slot }));
            }
            self.whereabouts.forget(digest);
        }
        let located = self.locate(digest).await?;
        if let Some(located) = &located {
            self.whereabouts.put(*digest, located.stripe.id, located.slot);
        }
        Ok(located)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_hints_is_bounded_and_the_latest_stay() {
        let hints = Whereabouts::default();
        let digest = |number: usize| Digest::of(&number.to_le_bytes());
        for number in 0..HINTS_MAX + 10 {
            hints.put(digest(number), StripeId([1; 16]), number % 4);
        }
        assert_eq!(hints.0.lock().as_ref().unwrap().len(), HINTS_MAX);
        assert_eq!(hints.get(&digest(9)), None);
        assert_eq!(hints.get(&digest(HINTS_MAX)), Some((StripeId([1; 16]), 0)));
    }
}
