//! What callers hand to the store and get back.

use std::sync::Arc;

use bytes::Bytes;
use holdfast_proofs::GroupTree;
use holdfast_protocol::digest::{BlockLen, Digest};
use holdfast_protocol::record::{AgreementId, Claim};

use crate::disk::{AlignedBuf, PAGE};

/// Claims that one call may change.
pub const CLAIMS_PER_CALL_MAX: usize = 1024;
/// Claims that one block may have.
pub const CLAIMS_PER_BLOCK_MAX: u32 = 4096;
/// Bytes of a deletion order that the store keeps: a message header bounds it on the wire.
pub const ORDER_LEN_MAX: usize = 64 * 1024;

/// All puts that one sync made durable together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CommitGroupId(pub u64);

/// A block to be, verified by the caller: `tree` and `claim.digest` are those of the buffer's bytes.
#[derive(Clone, Debug)]
pub struct NewBlock {
    /// The block's digest.
    pub digest: Digest,
    /// Its groups' chaining values.
    pub tree: GroupTree,
    /// The claim that it comes with.
    pub claim: Claim,
}

/// What a put did, durably.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PutOutcome {
    /// Whether the bytes were there before.
    pub existed: bool,
    /// Which sync made it durable.
    pub group: CommitGroupId,
}

/// A held block: its length, its claims, and where it lies.
#[derive(Clone, Debug)]
pub struct Located {
    /// Which block.
    pub digest: Digest,
    /// Its length.
    pub len: BlockLen,
    /// Every claim on it, those in trash too; at most [`CLAIMS_PER_BLOCK_MAX`].
    pub claims: Vec<Claim>,
    pub(crate) extent: u64,
    pub(crate) offset: u64,
    pub(crate) record: u64,
    /// How often bytes had been punched when this was looked up.
    pub(crate) punched: u64,
    /// Which of a node's disks holds it.
    pub(crate) slot: usize,
}

/// Where every byte of the capacity is. `capacity = used + trash + garbage + free`, always.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Accounts {
    /// Bytes offered; more than configured only while more than that is occupied.
    pub capacity_bytes: u64,
    /// Whole pages, with headers, of blocks that a provisional or live claim keeps.
    pub used_bytes: u64,
    /// Whole pages of blocks that only claims in trash keep.
    pub trash_bytes: u64,
    /// Every other occupied page: heads of extents, small records, kept deletion orders, headers of punched
    /// blocks, data not punched yet.
    pub garbage_bytes: u64,
    /// The rest.
    pub free_bytes: u64,
    /// Lengths of blocks that a live claim keeps.
    pub paid_bytes: u64,
    /// Blocks that a provisional or live claim keeps.
    pub blocks: u64,
    /// Claims that are provisional or live.
    pub claims: u64,
}

impl Accounts {
    /// Whether the identity holds.
    pub fn add_up(&self) -> bool {
        let occupied = self.used_bytes + self.trash_bytes + self.garbage_bytes;
        self.capacity_bytes == occupied + self.free_bytes
    }
}

/// What one agreement keeps here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AgreementUsage {
    /// Provisional and live claims.
    pub claims: u64,
    /// Block lengths summed over those claims; a block claimed twice counts twice.
    pub bytes: u64,
    /// Whole pages with headers, summed alike: what the disk gives for them, and what an agreement is charged.
    pub page_bytes: u64,
}

/// One line of the inventory: an agreement keeps a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InventoryEntry {
    /// Which block.
    pub digest: Digest,
    /// Its length.
    pub len: BlockLen,
    /// Who keeps it; once per block, however many claims the agreement has on it.
    pub agreement: AgreementId,
    /// Whether one of those claims is live; else all of them are provisional.
    pub live: bool,
}

/// What [`super::Store::changed_buckets`] saw; for [`super::Store::forget_changed`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChangedBuckets(pub(crate) Vec<(u16, u64)>);

impl ChangedBuckets {
    /// The buckets, ascending.
    pub fn buckets(&self) -> impl ExactSizeIterator<Item = u16> + '_ {
        self.0.iter().map(|(bucket, _)| *bucket)
    }

    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// A block that this node declared lost and was not given again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loss {
    /// Which block.
    pub digest: Digest,
    /// Its length; 0 when it was declared by a release that did not keep it.
    pub len: u32,
    /// When it was declared.
    pub declared_ms: u64,
}

/// How far opening a store has come through what its index did not know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Replayed {
    /// Extents done.
    pub extents_done: u64,
    /// Extents to look at.
    pub extents: u64,
    /// Bytes of extents passed.
    pub bytes_done: u64,
    /// Bytes of extents to pass.
    pub bytes: u64,
    /// Records applied.
    pub records: u64,
}

/// What a reclaiming pass did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReclaimReport {
    /// Claims whose trash period was over.
    pub claims: u64,
    /// Blocks that no claim kept any longer.
    pub blocks: u64,
    /// Bytes given back to the file system by punching.
    pub punched_bytes: u64,
    /// Small records carried on from dying extents.
    pub carried: u64,
    /// Extents unlinked.
    pub extents: u64,
}

/// Memory for one block on its way in: aligned, with room for the header page in front, so that header and
/// data reach the disk in one write.
#[derive(Debug)]
pub struct BlockBuffer {
    pages: AlignedBuf,
    len: BlockLen,
    filled: usize,
}

impl BlockBuffer {
    pub(crate) fn new(pages: AlignedBuf, len: BlockLen) -> Self {
        Self { pages, len, filled: 0 }
    }

    /// The block's length.
    pub fn len(&self) -> BlockLen {
        self.len
    }

    /// Bytes appended so far by [`BlockBuffer::extend_from_slice`].
    pub fn filled(&self) -> usize {
        self.filled
    }

    /// Bytes still missing.
    pub fn remaining(&self) -> usize {
        self.len.as_usize() - self.filled
    }

    /// Appends `bytes`; `false`, and nothing appended, when they are more than the block has.
    pub fn extend_from_slice(&mut self, bytes: &[u8]) -> bool {
        if bytes.len() > self.remaining() {
            return false;
        }
        let start = PAGE + self.filled;
        self.pages[start..start + bytes.len()].copy_from_slice(bytes);
        self.filled += bytes.len();
        true
    }

    /// What has been appended.
    pub fn data(&self) -> &[u8] {
        &self.pages[PAGE..PAGE + self.filled]
    }

    /// All of the block's bytes, for writing in place. Counts as filled from here on.
    pub fn data_mut(&mut self) -> &mut [u8] {
        self.filled = self.len.as_usize();
        &mut self.pages[PAGE..PAGE + self.filled]
    }

    /// Header page, data and zero padding; the bytes to write.
    pub(crate) fn into_pages(mut self) -> (AlignedBuf, usize) {
        let end = PAGE + self.len.as_usize();
        let padded = end.next_multiple_of(PAGE);
        // The buffer has had other users: their bytes must not reach the disk as padding.
        self.pages[end..padded].fill(0);
        (self.pages, padded)
    }
}

/// A kept deletion order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptOrder {
    /// Under which agreement it came.
    pub agreement: AgreementId,
    /// When it was kept.
    pub kept_ms: u64,
    /// The order as it was signed.
    pub bytes: Bytes,
}

/// A group tree shared with the cache.
pub type SharedTree = Arc<GroupTree>;
