//! Inventory: the commitment to everything that a node claims to hold, as a Merkle *sum* tree.
//!
//! Blocks lie in 65,536 buckets by the first 16 bits of their digest, sorted by digest, each digest once. Every
//! inner node commits to hash *and* bytes of both children, so a byte position is found by descending sums, and
//! nobody can claim bytes that no leaf has: a position that falls into them has no answer.
//!
//! ```text
//! leaf    hash = H("leaf",   digest 32 | length u32 LE | owner 32)                      bytes = length
//! inner   hash = H("node",   left hash | left bytes u64 LE | right hash | right bytes)  bytes = left + right
//! bucket  hash = H("bucket", leaves u32 LE | top hash | top bytes u64 LE)               bytes = top bytes
//!         an empty bucket is 32 zeros and 0 bytes
//! root    16 levels of inner nodes over the 65,536 buckets
//! ```
//! H(name, ..) is BLAKE3 keyed by `derive_key("holdfast inventory <name> v1", "")`. Within a bucket nodes pair up
//! from the left and an odd last one is handed up, so the shape follows from the number of leaves, which the bucket
//! commits to. The bucket follows from the digest: no leaf can stand in two.

use std::sync::LazyLock;

use holdfast_protocol::limits::INVENTORY_BUCKET_MAX;
use holdfast_protocol::record::{AgreementId, InventoryHash, OpenedLeaf, OwnerHash};
use holdfast_protocol::{BlockLen, Digest};
use serde_bytes::ByteBuf;

use crate::shape::{Side, sides};

/// Buckets of an inventory.
pub const BUCKETS: usize = 65_536;
/// Levels of inner nodes above the buckets.
pub const LEVELS: usize = 16;
/// Bytes of a sibling in a path: hash and sum.
const SIBLING_LEN: usize = 40;

const _: () = assert!(1 << LEVELS == BUCKETS);

/// A node of the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sum {
    /// What its parent commits to.
    pub hash: InventoryHash,
    /// Bytes of all leaves below.
    pub bytes: u64,
}

impl Sum {
    /// A bucket without blocks.
    pub const EMPTY: Self = Self { hash: InventoryHash([0; 32]), bytes: 0 };
}

/// One block that a node claims to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The block.
    pub digest: Digest,
    /// Its length.
    pub len: BlockLen,
    /// For whom it is kept, blinded.
    pub owner: OwnerHash,
}

/// The bucket of a block.
pub fn bucket_of(digest: &Digest) -> u16 {
    u16::from_be_bytes([digest.0[0], digest.0[1]])
}

/// Blinds the agreements that keep a block, so that strangers who see the leaf learn nothing of them, not even
/// whether two blocks have one keeper. `secret` is the node's own.
pub fn owner_of(secret: &[u8; 32], digest: &Digest, agreements: &[AgreementId]) -> OwnerHash {
    let mut hasher = blake3::Hasher::new_keyed(secret);
    hasher.update(&digest.0);
    for agreement in agreements {
        hasher.update(&agreement.0);
    }
    OwnerHash(*hasher.finalize().as_bytes())
}

fn key(name: &str) -> [u8; 32] {
    blake3::derive_key(&format!("holdfast inventory {name} v1"), b"")
}

static LEAF_KEY: LazyLock<[u8; 32]> = LazyLock::new(|| key("leaf"));
static NODE_KEY: LazyLock<[u8; 32]> = LazyLock::new(|| key("node"));
static BUCKET_KEY: LazyLock<[u8; 32]> = LazyLock::new(|| key("bucket"));

/// The leaf of a block.
pub fn leaf(digest: &Digest, len: BlockLen, owner: &OwnerHash) -> Sum {
    let mut message = [0u8; 68];
    message[..32].copy_from_slice(&digest.0);
    message[32..36].copy_from_slice(&len.bytes().to_le_bytes());
    message[36..].copy_from_slice(&owner.0);
    Sum { hash: hashed(&LEAF_KEY, &message), bytes: u64::from(len.bytes()) }
}

/// The parent of two nodes, or `None` when their bytes pass what a u64 holds.
fn parent(left: &Sum, right: &Sum) -> Option<Sum> {
    let bytes = left.bytes.checked_add(right.bytes)?;
    let mut message = [0u8; 80];
    message[..32].copy_from_slice(&left.hash.0);
    message[32..40].copy_from_slice(&left.bytes.to_le_bytes());
    message[40..72].copy_from_slice(&right.hash.0);
    message[72..].copy_from_slice(&right.bytes.to_le_bytes());
    Some(Sum { hash: hashed(&NODE_KEY, &message), bytes })
}

fn bucket(count: u32, top: &Sum) -> Sum {
    let mut message = [0u8; 44];
    message[..4].copy_from_slice(&count.to_le_bytes());
    message[4..36].copy_from_slice(&top.hash.0);
    message[36..].copy_from_slice(&top.bytes.to_le_bytes());
    Sum { hash: hashed(&BUCKET_KEY, &message), bytes: top.bytes }
}

fn hashed(key: &[u8; 32], message: &[u8]) -> InventoryHash {
    InventoryHash(*blake3::keyed_hash(key, message).as_bytes())
}

/// The node of a bucket with these blocks, which must be its own, ascending, each once.
///
/// # Errors
/// [`InventoryError`] when they are not.
pub fn bucket_sum(number: u16, entries: &[Entry]) -> Result<Sum, InventoryError> {
    if entries.is_empty() {
        return Ok(Sum::EMPTY);
    }
    let count = u32::try_from(entries.len()).ok().filter(|count| *count <= INVENTORY_BUCKET_MAX);
    let count = count.ok_or(InventoryError::TooMany { bucket: number })?;
    if entries.iter().any(|entry| bucket_of(&entry.digest) != number) {
        return Err(InventoryError::Bucket { bucket: number });
    }
    if !entries.is_sorted_by(|one, next| one.digest < next.digest) {
        return Err(InventoryError::Order { bucket: number });
    }
    let mut level: Vec<Sum> =
        entries.iter().map(|entry| leaf(&entry.digest, entry.len, &entry.owner)).collect();
    let mut width = level.len();
    while width > 1 {
        for index in 0..width / 2 {
            // A bucket of 2^20 blocks of 1 MiB has 2^40 bytes.
            level[index] = parent(&level[2 * index], &level[2 * index + 1])
                .ok_or(InventoryError::TooMany { bucket: number })?;
        }
        if width % 2 == 1 {
            level[width / 2] = level[width - 1];
        }
        width = width.div_ceil(2);
    }
    Ok(bucket(count, &level[0]))
}

/// The upper part of an inventory: its buckets and the inner nodes above them. 5.2 MB, whatever the node holds.
#[derive(Clone)]
pub struct Inventory {
    /// A heap: the root at 1, the children of i at 2i and 2i + 1, bucket b at 65,536 + b.
    nodes: Vec<Sum>,
}

impl Inventory {
    /// An inventory of nothing.
    pub fn new() -> Self {
        let mut nodes = vec![Sum::EMPTY; 2 * BUCKETS];
        let mut sum = Sum::EMPTY;
        for level in (0..LEVELS).rev() {
            // Two empty halves have 0 bytes: their parent always exists.
            sum = parent(&sum, &sum).unwrap_or(Sum::EMPTY);
            nodes[1 << level..2 << level].fill(sum);
        }
        Self { nodes }
    }

    /// Replaces the nodes of some buckets and rehashes what lies above them, each inner node once.
    ///
    /// # Errors
    /// [`InventoryError::TooManyBytes`] when the sum passes what a u64 holds; the inventory is then unusable.
    pub fn update(&mut self, changes: &[(u16, Sum)]) -> Result<(), InventoryError> {
        let mut dirty: Vec<usize> = Vec::with_capacity(changes.len());
        for (number, sum) in changes {
            let index = BUCKETS + usize::from(*number);
            if self.nodes[index] != *sum {
                self.nodes[index] = *sum;
                dirty.push(index / 2);
            }
        }
        while !dirty.is_empty() {
            dirty.sort_unstable();
            dirty.dedup();
            let mut above = Vec::with_capacity(dirty.len());
            for index in dirty {
                let sum = parent(&self.nodes[2 * index], &self.nodes[2 * index + 1]);
                self.nodes[index] = sum.ok_or(InventoryError::TooManyBytes)?;
                if index > 1 {
                    above.push(index / 2);
                }
            }
            dirty = above;
        }
        Ok(())
    }

    /// The root: hash and bytes of everything.
    pub fn root(&self) -> Sum {
        self.nodes[1]
    }

    /// The node of a bucket.
    pub fn bucket(&self, number: u16) -> Sum {
        self.nodes[BUCKETS + usize::from(number)]
    }

    /// The bucket that holds byte `position`, and the byte's place among the bucket's.
    pub fn find(&self, position: u64) -> Option<(u16, u64)> {
        if position >= self.nodes[1].bytes {
            return None;
        }
        let (mut index, mut rest) = (1, position);
        while index < BUCKETS {
            let left = self.nodes[2 * index].bytes;
            index *= 2;
            if rest >= left {
                rest -= left;
                index += 1;
            }
        }
        Some((u16::try_from(index - BUCKETS).ok()?, rest))
    }

    /// Opens the leaf that holds byte `within` of a bucket, whose blocks are given as they were committed to.
    /// With it comes the byte's place in the block. `None` when the bucket has no such byte.
    pub fn open(&self, number: u16, entries: &[Entry], within: u64) -> Option<(OpenedLeaf, u32)> {
        let mut rest = within;
        let index = entries.iter().position(|entry| {
            let len = u64::from(entry.len.bytes());
            let here = rest < len;
            if !here {
                rest -= len;
            }
            here
        })?;
        Some((self.open_leaf(number, entries, index)?, u32::try_from(rest).ok()?))
    }

    /// Opens leaf `index` of a bucket.
    pub fn open_leaf(&self, number: u16, entries: &[Entry], index: usize) -> Option<OpenedLeaf> {
        let entry = entries.get(index)?;
        let mut siblings = Vec::with_capacity((8 + LEVELS) * SIBLING_LEN);
        let mut level: Vec<Sum> =
            entries.iter().map(|entry| leaf(&entry.digest, entry.len, &entry.owner)).collect();
        let mut at = index;
        while level.len() > 1 {
            if let Some(sibling) = level.get(at ^ 1) {
                push(&mut siblings, sibling);
            }
            at /= 2;
            level = level
                .chunks(2)
                .map(|pair| match pair {
                    [left, right] => parent(left, right),
                    odd => odd.first().copied(),
                })
                .collect::<Option<_>>()?;
        }
        let mut at = BUCKETS + usize::from(number);
        while at > 1 {
            push(&mut siblings, &self.nodes[at ^ 1]);
            at /= 2;
        }
        Some(OpenedLeaf {
            digest: entry.digest,
            len: entry.len,
            owner: entry.owner,
            index: u32::try_from(index).ok()?,
            count: u32::try_from(entries.len()).ok()?,
            siblings: ByteBuf::from(siblings),
        })
    }
}

impl Default for Inventory {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for Inventory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Inventory").field(&self.root()).finish()
    }
}

fn push(siblings: &mut Vec<u8>, sum: &Sum) {
    siblings.extend_from_slice(&sum.hash.0);
    siblings.extend_from_slice(&sum.bytes.to_le_bytes());
}

/// Where an opened leaf stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Located {
    /// The first of its bytes among all bytes claimed.
    pub start: u64,
}

/// Verifies that `opened` is a leaf of the inventory with this root, and says where its bytes lie. Root and bytes
/// come from a commitment that the caller believes; nothing is taken from the leaf that it does not prove.
///
/// # Errors
/// [`LeafError`]: the shape, a sum, or the root itself does not fit.
pub fn verify_leaf(root: &Sum, opened: &OpenedLeaf) -> Result<Located, LeafError> {
    if opened.count == 0 || opened.count > INVENTORY_BUCKET_MAX || opened.index >= opened.count {
        return Err(LeafError::Index { index: opened.index, count: opened.count });
    }
    let below = sides(opened.index, opened.count).count();
    let (siblings, surplus) = opened.siblings.as_chunks::<SIBLING_LEN>();
    if siblings.len() != below + LEVELS || !surplus.is_empty() {
        return Err(LeafError::PathLength {
            expected: (below + LEVELS) * SIBLING_LEN,
            found: opened.siblings.len(),
        });
    }
    let mut start = 0u64;
    let mut climb = |node: Sum, sibling: &[u8; SIBLING_LEN], side: Side| {
        let sibling = sum_of(sibling);
        match side {
            Side::Left => {
                start = start.checked_add(sibling.bytes)?;
                parent(&sibling, &node)
            }
            Side::Right => parent(&node, &sibling),
        }
    };
    let mut node = leaf(&opened.digest, opened.len, &opened.owner);
    for (sibling, side) in siblings.iter().zip(sides(opened.index, opened.count)) {
        node = climb(node, sibling, side).ok_or(LeafError::Overflow)?;
    }
    node = bucket(opened.count, &node);
    let mut number = bucket_of(&opened.digest);
    for sibling in &siblings[below..] {
        let side = if number & 1 == 1 { Side::Left } else { Side::Right };
        node = climb(node, sibling, side).ok_or(LeafError::Overflow)?;
        number >>= 1;
    }
    if node == *root { Ok(Located { start }) } else { Err(LeafError::Mismatch) }
}

fn sum_of(bytes: &[u8; SIBLING_LEN]) -> Sum {
    let (mut hash, mut sum) = ([0u8; 32], [0u8; 8]);
    hash.copy_from_slice(&bytes[..32]);
    sum.copy_from_slice(&bytes[32..]);
    Sum { hash: InventoryHash(hash), bytes: u64::from_le_bytes(sum) }
}

/// Why blocks are not an inventory: the index that they come from is damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InventoryError {
    /// A block of another bucket.
    #[error("a block does not belong to bucket {bucket}")]
    Bucket {
        /// The bucket.
        bucket: u16,
    },
    /// Not ascending, or a digest twice.
    #[error("the blocks of bucket {bucket} are not in order")]
    Order {
        /// The bucket.
        bucket: u16,
    },
    /// More blocks than a bucket may have.
    #[error("bucket {bucket} has too many blocks")]
    TooMany {
        /// The bucket.
        bucket: u16,
    },
    /// More bytes than can be counted.
    #[error("the inventory has too many bytes to be counted")]
    TooManyBytes,
}

impl InventoryError {
    /// Never.
    pub const fn is_retryable(&self) -> bool {
        false
    }
}

/// Why an opened leaf is none of the inventory's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LeafError {
    /// No such leaf.
    #[error("a bucket of {count} leaves has no leaf {index}")]
    Index {
        /// Which.
        index: u32,
        /// Of how many.
        count: u32,
    },
    /// The path is too short or too long.
    #[error("the leaf's path has {expected} bytes, not {found}")]
    PathLength {
        /// Bytes that it has.
        expected: usize,
        /// Bytes received.
        found: usize,
    },
    /// The sums along the path cannot be counted.
    #[error("the sums along the leaf's path overflow")]
    Overflow,
    /// The path does not lead to the root, or not with its bytes.
    #[error("the leaf and its path do not lead to the committed root")]
    Mismatch,
}

impl LeafError {
    /// Never at the same peer.
    pub const fn is_retryable(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests;
