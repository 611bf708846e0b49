//! The order of an epoch, when it is known: which block is wanted when.
//!
//! A shuffled epoch is a random order, but not an unknown one: the data loader drew it before it began. With
//! it, the best block to give up is the one whose next use lies farthest ahead, and no guess can do better.

use std::collections::HashMap;

use holdfast_protocol::Digest;

/// Positions of one order, all blocks together: a TiB of whole blocks. About 100 bytes each.
pub const EPOCH_ORDER_MAX: usize = 1 << 20;

/// How far behind or ahead of the farthest reader a use may happen and still count as the planned one. Loaders
/// with several workers and readers that read ahead are out of step by this much at most; a use of the next
/// epoch lies farther away.
const STEP: u64 = 1024;

/// When each block will be used next.
#[derive(Debug, Default)]
pub(crate) struct EpochOrder {
    /// Uses still ahead of each block, the next one last.
    uses: HashMap<Digest, Vec<u32>>,
    /// One past the farthest position used.
    at: u64,
}

impl EpochOrder {
    /// The order of the next uses; positions behind [`EPOCH_ORDER_MAX`] are left out.
    pub(crate) fn new(order: impl IntoIterator<Item = Digest>) -> Self {
        let mut uses: HashMap<Digest, Vec<u32>> = HashMap::new();
        for (position, digest) in (0u32..).zip(order.into_iter().take(EPOCH_ORDER_MAX)) {
            uses.entry(digest).or_default().push(position);
        }
        uses.values_mut().for_each(|positions| positions.reverse());
        Self { uses, at: 0 }
    }

    /// The next planned use of a block; `None` when none is planned.
    pub(crate) fn next_use(&self, digest: &Digest) -> Option<u64> {
        self.uses.get(digest)?.last().map(|position| u64::from(*position))
    }

    /// A block was used: its planned use is over, unless that lies so far ahead that it is another one (the
    /// same block's in the next epoch, while ranges of it are still read in this one).
    pub(crate) fn used(&mut self, digest: &Digest) {
        let Some(positions) = self.uses.get_mut(digest) else { return };
        let Some(position) = positions.last().map(|position| u64::from(*position)) else { return };
        if position > self.at + STEP {
            return;
        }
        positions.pop();
        if positions.is_empty() {
            self.uses.remove(digest);
        }
        self.at = self.at.max(position + 1);
    }

    /// Whether nothing is planned any more.
    pub(crate) fn is_over(&self) -> bool {
        self.uses.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(number: u64) -> Digest {
        Digest::of(&number.to_le_bytes())
    }

    #[test]
    fn uses_are_over_one_by_one() {
        let mut order = EpochOrder::new([digest(1), digest(2), digest(1)]);
        assert_eq!(order.next_use(&digest(1)), Some(0));
        order.used(&digest(1));
        assert_eq!((order.next_use(&digest(1)), order.next_use(&digest(2))), (Some(2), Some(1)));
        order.used(&digest(2));
        order.used(&digest(1));
        assert!(order.is_over());
        order.used(&digest(9));
    }

    #[test]
    fn many_ranges_of_a_block_do_not_use_up_its_next_epoch() {
        let epoch: Vec<Digest> = (0..5000).map(digest).collect();
        let mut order = EpochOrder::new(epoch.iter().chain(&epoch).copied());
        for _ in 0..16 {
            order.used(&digest(0));
        }
        assert_eq!(order.next_use(&digest(0)), Some(5000));
    }
}
