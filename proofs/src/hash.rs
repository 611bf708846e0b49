//! The one pass over a block: its digest and the chaining values of its groups, nothing hashed twice.
//!
//! Groups are always hashed whole. BLAKE3 is fast because it works on many chunks side by side: 7 GB/s
//! a core in pieces of 16 KiB, 2.6 in pieces of 4 KiB, 0.7 in pieces of 1 KiB.

use blake3::Hasher;
use blake3::hazmat::HasherExt;
use holdfast_protocol::limits::{BLOCK_LEN_MAX, GROUP_LEN, GROUPS_MAX};
use holdfast_protocol::{BlockLen, Digest};

use crate::node::ChainingValue;
use crate::tree::GroupTree;

const GROUP: usize = GROUP_LEN as usize;

/// Hashes a whole block.
///
/// # Panics
/// When `bytes` is not a block: empty, or longer than 1 MiB. Whoever holds bytes of a peer has checked
/// that already, by the [`BlockLen`] under which it read them.
pub fn hash_block(bytes: &[u8]) -> (Digest, GroupTree) {
    let len = BlockLen::of(bytes).expect("hash_block is given a block: 1 to 1048576 bytes");
    if bytes.len() <= GROUP {
        return (Digest::of(bytes), GroupTree::single(len));
    }
    let mut chaining_values = Vec::with_capacity(bytes.len().div_ceil(GROUP));
    let mut offset = 0;
    for group in bytes.chunks(GROUP) {
        chaining_values.push(subtree(offset, group));
        offset += u64::from(GROUP_LEN);
    }
    let tree = GroupTree::of_groups(len, chaining_values);
    let digest = tree.root().expect("a block of two groups has a top node");
    (digest, tree)
}

/// The chaining value of the chunk or group at byte `offset` of its block.
pub(crate) fn subtree(offset: u64, bytes: &[u8]) -> ChainingValue {
    let mut hasher = Hasher::new();
    hasher.set_input_offset(offset);
    hasher.update(bytes);
    hasher.finalize_non_root()
}

/// Hashes a block that arrives in pieces of any size, as [`hash_block`] would hash it whole.
///
/// Pieces are hashed in place where they contain a whole group; only what straddles two pieces is copied,
/// into one buffer of 16 KiB.
pub struct BlockHasher {
    /// Bytes of the group that is not full yet.
    partial: Vec<u8>,
    chaining_values: Vec<ChainingValue>,
    /// The root form of the first group, in case nothing follows it.
    first_group: Option<Digest>,
    len: usize,
}

impl BlockHasher {
    /// Starts a block.
    pub fn new() -> Self {
        Self {
            partial: Vec::with_capacity(GROUP),
            chaining_values: Vec::with_capacity(GROUPS_MAX),
            first_group: None,
            len: 0,
        }
    }

    /// Bytes taken in so far.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing was taken in yet.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Takes in the block's next bytes.
    ///
    /// # Panics
    /// When the block becomes longer than 1 MiB.
    pub fn update(&mut self, mut bytes: &[u8]) {
        self.len += bytes.len();
        assert!(self.len <= BLOCK_LEN_MAX as usize, "a block has at most 1048576 bytes");
        if !self.partial.is_empty() {
            let (head, rest) = bytes.split_at(bytes.len().min(GROUP - self.partial.len()));
            self.partial.extend_from_slice(head);
            bytes = rest;
            if self.partial.len() < GROUP {
                return;
            }
            let full = std::mem::take(&mut self.partial);
            self.push_group(&full);
            self.partial = full;
            self.partial.clear();
        }
        while bytes.len() >= GROUP {
            let (group, rest) = bytes.split_at(GROUP);
            self.push_group(group);
            bytes = rest;
        }
        self.partial.extend_from_slice(bytes);
    }

    /// Ends the block.
    ///
    /// # Panics
    /// When nothing was taken in: there is no block of 0 bytes.
    pub fn finish(mut self) -> (Digest, GroupTree) {
        let len = u32::try_from(self.len).ok().and_then(|len| BlockLen::new(len).ok());
        let len = len.expect("a finished block has 1 to 1048576 bytes; update() refuses more");
        match (self.first_group, self.partial.is_empty()) {
            (None, _) => return (Digest::of(&self.partial), GroupTree::single(len)),
            (Some(digest), true) if self.chaining_values.len() == 1 => {
                return (digest, GroupTree::single(len));
            }
            (Some(_), true) => {}
            (Some(_), false) => {
                let last = std::mem::take(&mut self.partial);
                self.push_group(&last);
            }
        }
        let tree = GroupTree::of_groups(len, self.chaining_values);
        let digest = tree.root().expect("a block of two groups has a top node");
        (digest, tree)
    }

    fn push_group(&mut self, group: &[u8]) {
        let offset = self.chaining_values.len() as u64 * u64::from(GROUP_LEN);
        let mut hasher = Hasher::new();
        hasher.set_input_offset(offset);
        hasher.update(group);
        if self.chaining_values.is_empty() {
            self.first_group = Some(Digest::from(hasher.finalize()));
        }
        self.chaining_values.push(hasher.finalize_non_root());
    }
}

impl Default for BlockHasher {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for BlockHasher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BlockHasher").field("len", &self.len).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample(len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        blake3::Hasher::new().update(b"hash tests").finalize_xof().fill(&mut bytes);
        bytes
    }

    #[test]
    fn the_largest_block_and_the_smallest() {
        for len in [1, BLOCK_LEN_MAX as usize] {
            let bytes = sample(len);
            let (digest, tree) = hash_block(&bytes);
            assert_eq!(digest, Digest::of(&bytes));
            assert_eq!(tree.len().as_usize(), len);
        }
    }

    #[test]
    #[should_panic(expected = "1 to 1048576 bytes")]
    fn no_bytes_are_no_block() {
        BlockHasher::new().finish();
    }

    #[test]
    #[should_panic(expected = "at most 1048576 bytes")]
    fn a_block_never_grows_past_its_bound() {
        let mut hasher = BlockHasher::new();
        hasher.update(&sample(BLOCK_LEN_MAX as usize));
        hasher.update(&[0]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]
        #[test]
        fn pieces_hash_as_the_whole(
            len in prop_oneof![1usize..70_000, (1usize..5).prop_map(|groups| groups * GROUP)],
            pieces in prop::collection::vec(prop_oneof![1usize..40_000, Just(GROUP), Just(6_500)], 1..20),
        ) {
            let bytes = sample(len);
            let mut hasher = BlockHasher::new();
            let mut rest = &bytes[..];
            for size in pieces.iter().cycle() {
                let (piece, after) = rest.split_at(rest.len().min(*size));
                hasher.update(piece);
                rest = after;
                if rest.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(hasher.finish(), hash_block(&bytes));
        }
    }
}
