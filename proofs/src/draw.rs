//! The draw: which bytes of an inventory an epoch's randomness asks for. Anybody computes the same.

use holdfast_protocol::NodeId;
use holdfast_protocol::record::Epoch;

/// A beacon round's 32 random bytes.
pub type Randomness = [u8; 32];

/// One node's draws in one epoch.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Draw {
    seed: [u8; 32],
    /// Bytes claimed; positions are uniform below.
    bytes: u64,
}

impl Draw {
    /// The draws of `node` in `epoch`, over the `bytes` that it committed to. The commitment itself is not mixed in:
    /// who commits twice must not get a second draw to choose from.
    pub fn new(randomness: &Randomness, node: NodeId, epoch: Epoch, bytes: u64) -> Self {
        let mut message = [0u8; 72];
        message[..32].copy_from_slice(randomness);
        message[32..64].copy_from_slice(node.as_bytes());
        message[64..].copy_from_slice(&epoch.to_le_bytes());
        Self { seed: blake3::derive_key("holdfast draw v1", &message), bytes }
    }

    /// The byte position of draw `index`: uniform over all bytes claimed, but for 2^-64. `None` when there are none.
    pub fn position(&self, index: u32) -> Option<u64> {
        if self.bytes == 0 {
            return None;
        }
        let hash = blake3::keyed_hash(&self.seed, &index.to_le_bytes());
        let mut random = [0u8; 16];
        random.copy_from_slice(&hash.as_bytes()[..16]);
        let random = u128::from_le_bytes(random);
        // The high 64 bits of random x bytes / 2^64: a fraction of 128 bits, scaled.
        let (high, low) = (random >> 64, random & u128::from(u64::MAX));
        let bytes = u128::from(self.bytes);
        let scaled = high * bytes + ((low * bytes) >> 64);
        u64::try_from(scaled >> 64).ok()
    }

    /// Bytes drawn from.
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl std::fmt::Debug for Draw {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Draw").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use holdfast_protocol::PublicKey;

    use super::*;

    fn node(byte: u8) -> NodeId {
        NodeId(PublicKey([byte; 32]))
    }

    #[test]
    fn nothing_claimed_is_nothing_drawn() {
        assert_eq!(Draw::new(&[1; 32], node(1), 1, 0).position(0), None);
        assert_eq!(Draw::new(&[1; 32], node(1), 1, 1).position(7), Some(0));
    }

    #[test]
    fn randomness_node_epoch_and_index_each_change_the_position() {
        let bytes = 1 << 40;
        let base = Draw::new(&[1; 32], node(1), 1, bytes).position(0);
        assert!(base.is_some_and(|position| position < bytes));
        assert_ne!(base, Draw::new(&[2; 32], node(1), 1, bytes).position(0));
        assert_ne!(base, Draw::new(&[1; 32], node(2), 1, bytes).position(0));
        assert_ne!(base, Draw::new(&[1; 32], node(1), 2, bytes).position(0));
        assert_ne!(base, Draw::new(&[1; 32], node(1), 1, bytes).position(1));
    }

    /// 64 cells, 64,000 draws: chi-squared with 63 degrees of freedom stays below 120 but once in 10^5. The seed is
    /// fixed, so the test cannot flicker.
    #[test]
    fn positions_are_uniform() {
        let bytes = (1u64 << 63) + 12_345;
        let mut cells = [0u32; 64];
        for epoch in 0..1000 {
            let draw = Draw::new(&[9; 32], node(3), epoch, bytes);
            for index in 0..64 {
                let position = draw.position(index).unwrap();
                cells[usize::try_from(u128::from(position) * 64 / u128::from(bytes)).unwrap()] += 1;
            }
        }
        let chi: f64 = cells.iter().map(|count| (f64::from(*count) - 1000.0).powi(2) / 1000.0).sum();
        assert!(chi < 120.0, "chi-squared is {chi}");
    }
}
