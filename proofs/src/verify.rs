//! One leaf, or one whole block, against a digest.
//!
//! `rs_merkle`'s own verification is never used: it believes the leaf count that the proof implies,
//! ignores surplus hashes and cannot tell an inner node from a leaf. Here digest and length come from
//! the caller's record, the shape follows from the length alone, and the leaf's *bytes* are hashed at
//! their own offset: an inner node offered as a leaf is hashed as a chunk and lands elsewhere.

use holdfast_protocol::message::LeafUnit;
use holdfast_protocol::{BlockLen, Digest};

use crate::hash;
use crate::node::{ChainingValue, Node, root_of};
use crate::shape::{RangeError, Side, leaf_count, leaf_extent, sides};

/// Verifies that `leaf` is leaf `index` of the block that `digest` names and that has `len` bytes.
///
/// `siblings` is the path's chaining values, leaf upwards, 32 bytes each. Nothing is allocated. Only the
/// path of the *last* leaf binds `len`: for any other a wrong length with the same path shape passes.
///
/// # Errors
/// [`VerifyError`]: index, leaf length, path length, or the digest itself does not fit.
pub fn verify_leaf(
    digest: &Digest,
    len: BlockLen,
    unit: LeafUnit,
    index: u32,
    leaf: &[u8],
    siblings: &[u8],
) -> Result<(), VerifyError> {
    let leaves = leaf_count(unit, len);
    let extent = leaf_extent(unit, index, len).ok_or(VerifyError::Index { unit, index, len })?;
    if leaf.len() != extent.len as usize {
        return Err(VerifyError::LeafLength {
            unit,
            index,
            expected: extent.len as usize,
            found: leaf.len(),
        });
    }
    let expected = sides(index, leaves).count();
    let (siblings, surplus) = siblings.as_chunks::<32>();
    if siblings.len() != expected || !surplus.is_empty() {
        let found_bytes = siblings.len() * 32 + surplus.len();
        return Err(VerifyError::PathLength { unit, index, expected_bytes: expected * 32, found_bytes });
    }
    let root = match siblings.split_last() {
        None => Digest::of(leaf),
        Some((top, below)) => {
            let mut node = hash::subtree(u64::from(extent.start), leaf);
            let mut sides = sides(index, leaves);
            for (sibling, side) in below.iter().zip(&mut sides) {
                node = *merge(Node::parent, side, &node, sibling).chaining_value();
            }
            let side = sides.next().ok_or(VerifyError::Mismatch { unit, index })?;
            merge(root_of, side, &node, top)
        }
    };
    if root == *digest { Ok(()) } else { Err(VerifyError::Mismatch { unit, index }) }
}

/// Verifies that `bytes` is the whole block that `digest` names and that has `len` bytes.
///
/// # Errors
/// [`VerifyError::WholeLength`] or [`VerifyError::WholeMismatch`].
pub fn verify_whole(digest: &Digest, len: BlockLen, bytes: &[u8]) -> Result<(), VerifyError> {
    if bytes.len() != len.as_usize() {
        return Err(VerifyError::WholeLength { expected: len.as_usize(), found: bytes.len() });
    }
    if Digest::of(bytes) == *digest { Ok(()) } else { Err(VerifyError::WholeMismatch) }
}

fn merge<T>(
    parent: impl Fn(&ChainingValue, &ChainingValue) -> T,
    side: Side,
    node: &ChainingValue,
    sibling: &ChainingValue,
) -> T {
    match side {
        Side::Left => parent(sibling, node),
        Side::Right => parent(node, sibling),
    }
}

/// Why an answer does not prove what was asked. All but [`VerifyError::Range`] are the peer's fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// The request itself is wrong.
    #[error("the request is wrong: {source}")]
    Range {
        /// How.
        #[from]
        source: RangeError,
    },
    /// The block has no such leaf.
    #[error("a block of {len} bytes has no {unit:?} {index}")]
    Index {
        /// Group or chunk.
        unit: LeafUnit,
        /// Which.
        index: u32,
        /// The block's length.
        len: BlockLen,
    },
    /// The leaf is too short or too long.
    #[error("{unit:?} {index} has {expected} bytes, not {found}")]
    LeafLength {
        /// Group or chunk.
        unit: LeafUnit,
        /// Which.
        index: u32,
        /// Bytes that it has.
        expected: usize,
        /// Bytes received.
        found: usize,
    },
    /// The path is too short or too long.
    #[error("the path of {unit:?} {index} has {expected_bytes} bytes, not {found_bytes}")]
    PathLength {
        /// Group or chunk.
        unit: LeafUnit,
        /// Which.
        index: u32,
        /// Bytes that it has.
        expected_bytes: usize,
        /// Bytes received.
        found_bytes: usize,
    },
    /// Leaf and path do not lead to the digest.
    #[error("{unit:?} {index} and its path do not lead to the digest")]
    Mismatch {
        /// Group or chunk.
        unit: LeafUnit,
        /// Which.
        index: u32,
    },
    /// A whole block is too short or too long.
    #[error("the block has {expected} bytes, not {found}")]
    WholeLength {
        /// Bytes that it has.
        expected: usize,
        /// Bytes received.
        found: usize,
    },
    /// The bytes are not those of the digest.
    #[error("the block's bytes are not those of its digest")]
    WholeMismatch,
    /// More or fewer leaves than the request covers.
    #[error("{expected} leaves were asked for, {found} paths came")]
    PathCount {
        /// Leaves that the request covers.
        expected: usize,
        /// Paths received.
        found: usize,
    },
    /// The leaves do not come in the order of the bytes asked for.
    #[error("leaf {expected} was expected, leaf {found} came")]
    Order {
        /// The leaf whose turn it was.
        expected: u32,
        /// The leaf that the path names.
        found: u32,
    },
    /// The body is too short or too long for its leaves.
    #[error("the leaves asked for have {expected} bytes, not {found}")]
    BodyLength {
        /// Bytes of all leaves asked for.
        expected: usize,
        /// Bytes received.
        found: usize,
    },
}

impl VerifyError {
    /// Never at the same peer: it would answer alike.
    pub const fn is_retryable(&self) -> bool {
        false
    }

    /// Whether the peer that answered is to blame, and not the request.
    pub const fn is_peer_fault(&self) -> bool {
        !matches!(self, Self::Range { .. })
    }
}
