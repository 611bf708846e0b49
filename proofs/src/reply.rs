//! All leaves of an answer against the request that asked for them.
//!
//! The request, not the answer, says which leaves must come: exactly those that cover its ranges, in the
//! order of the bytes, each with its own path. A missing, surplus, repeated or reordered leaf is refused
//! before anything is hashed.

use std::ops::Range;

use bytes::Bytes;
use holdfast_protocol::limits::READ_LEAVES_MAX;
use holdfast_protocol::message::{ByteRange, LeafPath, LeafUnit};
use holdfast_protocol::{BlockLen, Digest};

use crate::shape::{RangeError, leaf_extent, leaves_of};
use crate::verify::{VerifyError, verify_leaf};

/// Bytes of a block that were proved against its digest. Made by [`verify_reply`] and nothing else.
#[derive(Clone, Debug)]
pub struct VerifiedLeaves {
    body: Bytes,
    /// Where in `body` each requested range lies.
    places: Vec<Range<usize>>,
}

impl VerifiedLeaves {
    /// How many ranges were asked for.
    pub fn count(&self) -> usize {
        self.places.len()
    }

    /// Exactly the bytes of the requested range `i`, without copying.
    ///
    /// # Panics
    /// When there is no range `i`, as indexing does.
    pub fn range(&self, i: usize) -> Bytes {
        self.body.slice(self.places[i].clone())
    }

    /// The bytes of all requested ranges, in order, without copying.
    pub fn ranges(&self) -> impl ExactSizeIterator<Item = Bytes> + '_ {
        self.places.iter().map(|place| self.body.slice(place.clone()))
    }

    /// All proved bytes: the leaves as they came, wider than the ranges.
    pub fn into_leaves(self) -> Bytes {
        self.body
    }
}

/// How many body bytes a request for `ranges` must be answered with: all covering leaves, whole.
///
/// # Errors
/// [`RangeError`] when the ranges are empty, outside the block, or not ascending with disjoint leaves.
pub fn body_len(unit: LeafUnit, ranges: &[ByteRange], len: BlockLen) -> Result<u32, RangeError> {
    let plan = Plan::new(unit, ranges, len)?;
    Ok(plan.body_len)
}

/// Verifies an answer to a request for `ranges` of the block that `digest` names and that has `len`
/// bytes: `paths` and `body` as they came off the wire.
///
/// # Errors
/// [`VerifyError::Range`] when the request itself is wrong, any other [`VerifyError`] when the answer is.
pub fn verify_reply(
    digest: &Digest,
    len: BlockLen,
    unit: LeafUnit,
    ranges: &[ByteRange],
    paths: &[LeafPath],
    body: Bytes,
) -> Result<VerifiedLeaves, VerifyError> {
    let plan = Plan::new(unit, ranges, len)?;
    if paths.len() != plan.leaves.len() {
        return Err(VerifyError::PathCount { expected: plan.leaves.len(), found: paths.len() });
    }
    if let Some((expected, path)) = plan.leaves.iter().zip(paths).find(|(leaf, path)| **leaf != path.index) {
        return Err(VerifyError::Order { expected: *expected, found: path.index });
    }
    if body.len() != plan.body_len as usize {
        return Err(VerifyError::BodyLength { expected: plan.body_len as usize, found: body.len() });
    }
    let mut rest = &body[..];
    for path in paths {
        let extent =
            leaf_extent(unit, path.index, len).ok_or(VerifyError::Index { unit, index: path.index, len })?;
        let (leaf, after) = rest.split_at(extent.len as usize);
        verify_leaf(digest, len, unit, path.index, leaf, &path.siblings)?;
        rest = after;
    }
    Ok(VerifiedLeaves { body, places: plan.places })
}

/// What a request must be answered with.
struct Plan {
    leaves: Vec<u32>,
    places: Vec<Range<usize>>,
    body_len: u32,
}

impl Plan {
    fn new(unit: LeafUnit, ranges: &[ByteRange], len: BlockLen) -> Result<Self, RangeError> {
        let mut plan = Self { leaves: Vec::with_capacity(READ_LEAVES_MAX), places: Vec::new(), body_len: 0 };
        let mut next = 0;
        for range in ranges {
            let leaves = leaves_of(unit, *range, len)?;
            if leaves.start < next {
                return Err(RangeError::Order { start: range.start });
            }
            next = leaves.end;
            // Leaves are contiguous within a range: the first one's start gives the place of every byte.
            let first = leaves.start * unit.len();
            let place = (plan.body_len + (range.start - first)) as usize;
            plan.places.push(place..place + range.len as usize);
            plan.body_len += (leaves.end * unit.len()).min(len.bytes()) - first;
            plan.leaves.extend(leaves);
        }
        Ok(plan)
    }
}

#[cfg(test)]
mod tests;
