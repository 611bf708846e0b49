//! The shape of a block's tree: arithmetic only, no hashing.
//!
//! BLAKE3's tree is left-balanced: nodes pair up from the left, level by level, and an odd last node is
//! handed up unchanged. So a leaf's path is as long as the number of levels at which it has a sibling,
//! and leaves of one block may have paths of different lengths.

use std::ops::Range;

use holdfast_protocol::BlockLen;
use holdfast_protocol::message::{ByteRange, LeafUnit};

/// How many leaves of `unit` a block of `len` bytes has: at least 1; at most 64 groups or 1,024 chunks.
pub const fn leaf_count(unit: LeafUnit, len: BlockLen) -> u32 {
    len.bytes().div_ceil(unit.len())
}

/// The exact bytes of leaf `index` of a block of `len` bytes, or `None` when it has no such leaf.
///
/// Every leaf has `unit.len()` bytes except the last, which has what is left: at least 1 byte.
pub fn leaf_extent(unit: LeafUnit, index: u32, len: BlockLen) -> Option<ByteRange> {
    if index >= leaf_count(unit, len) {
        return None;
    }
    let start = index * unit.len();
    Some(ByteRange { start, len: unit.len().min(len.bytes() - start) })
}

/// How many siblings the path of leaf `index` has, or `None` when the block has no such leaf.
///
/// 0 for the only leaf of a block; never more than 6 for a group and 10 for a chunk.
pub fn path_len(unit: LeafUnit, index: u32, len: BlockLen) -> Option<usize> {
    if index >= leaf_count(unit, len) {
        return None;
    }
    Some(sides(index, leaf_count(unit, len)).count())
}

/// The leaves that cover `range`, widened to whole leaves.
///
/// # Errors
/// [`RangeError::Empty`] for a range of 0 bytes, [`RangeError::Outside`] for one that ends past the block.
pub fn leaves_of(unit: LeafUnit, range: ByteRange, len: BlockLen) -> Result<Range<u32>, RangeError> {
    if range.len == 0 {
        return Err(RangeError::Empty { start: range.start });
    }
    match range.start.checked_add(range.len) {
        Some(end) if end <= len.bytes() => Ok(range.start / unit.len()..end.div_ceil(unit.len())),
        _ => Err(RangeError::Outside { range, len }),
    }
}

/// On which side a path's sibling stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Left,
    Right,
}

/// The sides of the siblings of leaf `index` of `leaves`, leaf upwards.
pub(crate) fn sides(index: u32, leaves: u32) -> impl Iterator<Item = Side> {
    let (mut index, mut width) = (index, leaves);
    std::iter::from_fn(move || {
        while width > 1 {
            let side = if index % 2 == 1 {
                Some(Side::Left)
            } else if index + 1 < width {
                Some(Side::Right)
            } else {
                None
            };
            (index, width) = (index / 2, width.div_ceil(2));
            if side.is_some() {
                return side;
            }
        }
        None
    })
}

/// Why a byte range cannot be served from a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RangeError {
    /// The range has no bytes.
    #[error("the range at byte {start} is empty")]
    Empty {
        /// Where it starts.
        start: u32,
    },
    /// The range ends past the block.
    #[error("bytes {}+{} lie outside a block of {len} bytes", range.start, range.len)]
    Outside {
        /// The range.
        range: ByteRange,
        /// The block's length.
        len: BlockLen,
    },
    /// The range shares a leaf with the one before it, or comes before it.
    #[error("the range at byte {start} does not come after the leaves of the range before it")]
    Order {
        /// Where it starts.
        start: u32,
    },
}

impl RangeError {
    /// Never: the request itself is wrong.
    pub const fn is_retryable(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn len(bytes: u32) -> BlockLen {
        BlockLen::new(bytes).unwrap()
    }

    #[test]
    fn the_last_leaf_has_what_is_left() {
        let extent = |index| leaf_extent(LeafUnit::Group, index, len(16384 * 2 + 1));
        assert_eq!(extent(1), Some(ByteRange { start: 16384, len: 16384 }));
        assert_eq!(extent(2), Some(ByteRange { start: 32768, len: 1 }));
        assert_eq!(extent(3), None);
        assert_eq!(leaf_extent(LeafUnit::Chunk, u32::MAX, BlockLen::MAX), None);
    }

    #[test]
    fn leaves_tile_the_block() {
        for bytes in [1, 1023, 1024, 1025, 16384, 16385, 1_048_575, 1_048_576] {
            for unit in [LeafUnit::Group, LeafUnit::Chunk] {
                let mut next = 0;
                for index in 0..leaf_count(unit, len(bytes)) {
                    let extent = leaf_extent(unit, index, len(bytes)).unwrap();
                    assert_eq!(extent.start, next);
                    next = extent.end();
                }
                assert_eq!(next, bytes);
            }
        }
    }

    #[test]
    fn an_odd_last_leaf_has_a_shorter_path() {
        let paths = |groups: u32| -> Vec<usize> {
            (0..groups).map(|i| path_len(LeafUnit::Group, i, len(groups * 16384)).unwrap()).collect()
        };
        assert_eq!(paths(1), [0]);
        assert_eq!(paths(3), [2, 2, 1]);
        assert_eq!(paths(5), [3, 3, 3, 3, 1]);
        assert_eq!(paths(6), [3, 3, 3, 3, 2, 2]);
        assert_eq!(paths(7), [3, 3, 3, 3, 3, 3, 2]);
        assert_eq!(path_len(LeafUnit::Chunk, 0, BlockLen::MAX), Some(10));
        assert_eq!(path_len(LeafUnit::Chunk, 1024, BlockLen::MAX), None);
    }

    #[test]
    fn ranges_are_widened_to_leaves_and_bounded() {
        let of = |start, size| leaves_of(LeafUnit::Group, ByteRange { start, len: size }, len(40_000));
        assert_eq!(of(0, 1), Ok(0..1));
        assert_eq!(of(16383, 2), Ok(0..2));
        assert_eq!(of(16384, 16384), Ok(1..2));
        assert_eq!(of(39_999, 1), Ok(2..3));
        assert!(matches!(of(39_999, 2), Err(RangeError::Outside { .. })));
        assert!(matches!(of(u32::MAX, u32::MAX), Err(RangeError::Outside { .. })));
        assert!(matches!(of(5, 0), Err(RangeError::Empty { start: 5 })));
    }
}
