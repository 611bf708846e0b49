//! The tree over a block's groups: what a node keeps beside the block, and the paths it proves with.

use std::ops::Range;
use std::sync::OnceLock;

use holdfast_protocol::limits::{CHUNK_LEN, GROUP_LEN};
use holdfast_protocol::message::{ByteRange, LeafPath, LeafUnit};
use holdfast_protocol::{BlockLen, Digest};
use rs_merkle::PartialTree;
use serde_bytes::ByteBuf;

use crate::hash;
use crate::node::{Blake3Parents, ChainingValue, Node};
use crate::shape::{leaf_count, leaf_extent, path_len};

const CHUNKS_PER_GROUP: u32 = GROUP_LEN / CHUNK_LEN;

/// A block's length and the chaining values of its groups.
///
/// A block of one group has no tree: it keeps no chaining value, and its digest is the hash of its bytes.
#[derive(Clone, Debug)]
pub struct GroupTree {
    len: BlockLen,
    chaining_values: Vec<ChainingValue>,
    /// The layers above the groups, made with the first path and kept for the next ones: up to 2 KiB, and a tenth of
    /// what it costs to hash 64 KiB.
    above: OnceLock<Vec<Vec<ChainingValue>>>,
}

impl PartialEq for GroupTree {
    /// What can be derived does not count.
    fn eq(&self, other: &Self) -> bool {
        (self.len, &self.chaining_values) == (other.len, &other.chaining_values)
    }
}

impl Eq for GroupTree {}

impl GroupTree {
    /// Takes back what [`GroupTree::chaining_values`] gave: one value per group, none for a block of one.
    ///
    /// # Errors
    /// [`TreeError::Count`] when the number of values is not the one that `len` demands. Wrong *values*
    /// show in [`GroupTree::root`] alone.
    pub fn from_chaining_values(len: BlockLen, values: &[ChainingValue]) -> Result<Self, TreeError> {
        let expected = Self::values_of(len);
        if values.len() != expected {
            return Err(TreeError::Count { len, expected, found: values.len() });
        }
        Ok(Self { len, chaining_values: values.to_vec(), above: OnceLock::new() })
    }

    /// How many chaining values the tree of a block of `len` bytes has: 0, or 2 to 64.
    pub const fn values_of(len: BlockLen) -> usize {
        match leaf_count(LeafUnit::Group, len) {
            1 => 0,
            groups => groups as usize,
        }
    }

    pub(crate) const fn single(len: BlockLen) -> Self {
        Self { len, chaining_values: Vec::new(), above: OnceLock::new() }
    }

    pub(crate) fn of_groups(len: BlockLen, chaining_values: Vec<ChainingValue>) -> Self {
        assert_eq!(chaining_values.len(), Self::values_of(len), "one chaining value per group");
        Self { len, chaining_values, above: OnceLock::new() }
    }

    /// The block's length.
    // A block is never empty, so there is no is_empty().
    #[allow(clippy::len_without_is_empty)]
    pub const fn len(&self) -> BlockLen {
        self.len
    }

    /// How many groups the block has: 1 to 64.
    pub const fn groups(&self) -> u32 {
        leaf_count(LeafUnit::Group, self.len)
    }

    /// The non-root hashes of the groups, first to last; empty for a block of one group.
    pub fn chaining_values(&self) -> &[ChainingValue] {
        &self.chaining_values
    }

    /// The digest that these chaining values commit to, or `None` for a block of one group: only its
    /// bytes give that. Costs one compression a group (about 4 µs for 1 MiB).
    pub fn root(&self) -> Option<Digest> {
        let mut level = self.chaining_values.clone();
        while level.len() > 2 {
            level = above(&level);
        }
        match &level[..] {
            [left, right] => Some(crate::node::root_of(left, right)),
            _ => None,
        }
    }

    /// The path of one group. See [`GroupTree::group_paths`].
    ///
    /// # Errors
    /// [`ProveError::Outside`] when the block has no such group.
    pub fn group_path(&self, group: u32) -> Result<LeafPath, ProveError> {
        self.check(LeafUnit::Group, group)?;
        Ok(self.path_of(group))
    }

    /// The paths of consecutive groups. The inner nodes are built once and kept. Siblings stand leaf upwards; the
    /// only group of a block has none.
    ///
    /// # Errors
    /// [`ProveError::Outside`] when the block has no such groups.
    pub fn group_paths(&self, groups: Range<u32>) -> Result<Vec<LeafPath>, ProveError> {
        if let Some(last) = groups.clone().last() {
            self.check(LeafUnit::Group, last)?;
        }
        Ok(groups.map(|group| self.path_of(group)).collect())
    }

    /// The path of one chunk, given the bytes of the whole group that holds it: first within the group,
    /// then up from the group.
    ///
    /// # Errors
    /// [`ProveError::Outside`] when the block has no such chunk, [`ProveError::GroupLength`] when
    /// `group_bytes` is not as long as that group, [`ProveError::GroupMismatch`] when its bytes are not
    /// those that the tree was made from: the holder's disk has changed them. (A block of one group has
    /// nothing to compare with here; its proof would fail at the reader.)
    pub fn chunk_path(&self, chunk: u32, group_bytes: &[u8]) -> Result<LeafPath, ProveError> {
        self.check(LeafUnit::Chunk, chunk)?;
        let group = chunk / CHUNKS_PER_GROUP;
        let extent = leaf_extent(LeafUnit::Group, group, self.len).ok_or(ProveError::Outside {
            unit: LeafUnit::Group,
            index: group,
            len: self.len,
        })?;
        if group_bytes.len() != extent.len as usize {
            return Err(ProveError::GroupLength {
                group,
                expected: extent.len as usize,
                found: group_bytes.len(),
            });
        }
        let chunks = layers_of(&chunk_leaves(extent, group_bytes));
        let top = chunks.root();
        if let Some(expected) = self.chaining_values.get(group as usize)
            && top.is_none_or(|node| node.chaining_value() != expected)
        {
            return Err(ProveError::GroupMismatch { group });
        }
        let mut siblings = ByteBuf::with_capacity(10 * 32);
        climb(&chunks, (chunk % CHUNKS_PER_GROUP) as usize, &mut siblings);
        self.climb(group as usize, &mut siblings);
        debug_assert_eq!(Some(siblings.len() / 32), path_len(LeafUnit::Chunk, chunk, self.len));
        Ok(LeafPath { index: chunk, siblings })
    }

    fn check(&self, unit: LeafUnit, index: u32) -> Result<(), ProveError> {
        if index < leaf_count(unit, self.len) {
            Ok(())
        } else {
            Err(ProveError::Outside { unit, index, len: self.len })
        }
    }

    fn path_of(&self, group: u32) -> LeafPath {
        let mut siblings = ByteBuf::with_capacity(6 * 32);
        self.climb(group as usize, &mut siblings);
        debug_assert_eq!(Some(siblings.len() / 32), path_len(LeafUnit::Group, group, self.len));
        LeafPath { index: group, siblings }
    }

    /// Appends the siblings of group `index`, group upwards.
    fn climb(&self, mut index: usize, siblings: &mut ByteBuf) {
        let above = self.above.get_or_init(|| self.layers_above());
        for layer in std::iter::once(&self.chaining_values).chain(above) {
            if let Some(sibling) = layer.get(index ^ 1) {
                siblings.extend_from_slice(sibling);
            }
            index /= 2;
        }
    }

    /// As `rs_merkle` builds them, without a node's second form and its sorting, which cost three times as much.
    fn layers_above(&self) -> Vec<Vec<ChainingValue>> {
        let mut layers: Vec<Vec<ChainingValue>> = Vec::with_capacity(5);
        loop {
            let below = layers.last().unwrap_or(&self.chaining_values);
            // The topmost has no sibling.
            if below.len() <= 2 {
                return layers;
            }
            let layer = above(below);
            layers.push(layer);
        }
    }
}

/// The layer above `layer`: an odd last node is handed up unchanged.
fn above(layer: &[ChainingValue]) -> Vec<ChainingValue> {
    let merged = |pair: &[ChainingValue]| match pair {
        [left, right] => *Node::parent(left, right).chaining_value(),
        [odd, ..] => *odd,
        [] => unreachable!("chunks are never empty"),
    };
    layer.chunks(2).map(merged).collect()
}

/// The nodes of a tree with their indexes, leaves first, each layer complete. Empty without leaves.
type Layers = PartialTree<Blake3Parents>;

/// Lets `rs_merkle` build the tree.
fn layers_of(leaves: &[Node]) -> Layers {
    if leaves.is_empty() {
        return Layers::new();
    }
    // Building from a complete row of leaves has no missing node to fail for.
    Layers::from_leaves(leaves).unwrap_or_default()
}

/// Appends the siblings of leaf `index`, leaf upwards. Where the layer ends without one, the node was
/// handed up unchanged.
fn climb(layers: &Layers, mut index: usize, siblings: &mut ByteBuf) {
    for layer in layers.layers() {
        if let Some((_, sibling)) = layer.get(index ^ 1) {
            siblings.extend_from_slice(sibling.chaining_value());
        }
        index /= 2;
    }
}

fn chunk_leaves(group: ByteRange, bytes: &[u8]) -> Vec<Node> {
    let offsets = (u64::from(group.start)..).step_by(CHUNK_LEN as usize);
    let chunks = bytes.chunks(CHUNK_LEN as usize);
    offsets.zip(chunks).map(|(offset, chunk)| Node::leaf(hash::subtree(offset, chunk))).collect()
}

/// Why chaining values are not a tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TreeError {
    /// Not one per group.
    #[error("a block of {len} bytes has {expected} chaining values, not {found}")]
    Count {
        /// The block's length.
        len: BlockLen,
        /// Values that such a block has.
        expected: usize,
        /// Values given.
        found: usize,
    },
}

impl TreeError {
    /// Never: the record that gave the values is damaged.
    pub const fn is_retryable(&self) -> bool {
        false
    }
}

/// Why a path could not be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProveError {
    /// The block has no such leaf.
    #[error("a block of {len} bytes has no {unit:?} {index}")]
    Outside {
        /// Group or chunk.
        unit: LeafUnit,
        /// Which.
        index: u32,
        /// The block's length.
        len: BlockLen,
    },
    /// The bytes given are not as long as the group.
    #[error("group {group} has {expected} bytes, not {found}")]
    GroupLength {
        /// Which group.
        group: u32,
        /// Its bytes.
        expected: usize,
        /// Bytes given.
        found: usize,
    },
    /// The bytes given are not the group's: they changed since they were hashed.
    #[error("the bytes of group {group} are not those that were stored")]
    GroupMismatch {
        /// Which group.
        group: u32,
    },
}

impl ProveError {
    /// Never: the request is wrong, or the bytes are.
    pub const fn is_retryable(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests;
