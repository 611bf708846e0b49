//! Directories: one dag-pb node, or a HAMT of nodes when one would be larger than 256 KiB.
//!
//! The layout of IPIP-0499's profile `unixfs-v1-2025` with BLAKE3 for the CIDs: links sorted by name; above the
//! threshold 256 ways a level, placed by the first 64 bits of MurmurHash3 (x64, 128 bits), most significant byte first.
//!
//! ```text
//! Data    1: type (1 = directory, 5 = HAMT shard)  2: bitmap of the ways in use, big-endian, no leading zeros
//!         5: hash (0x22)  6: ways (256)
//! ```

use cid::Cid;

use super::node::{Link, WIRE_BYTES, WIRE_VARINT, delimited, field, varint};
use super::node_cid;

/// A directory whose one node would be larger than this becomes a HAMT.
const NODE_LEN_MAX: usize = 256 * 1024;
const TYPE_DIRECTORY: u64 = 1;
const TYPE_HAMT: u64 = 5;
const WAYS: usize = 256;
const MURMUR3_X64_64: u64 = 0x22;
/// Bytes of the hash, and so levels of the HAMT.
const LEVELS: u32 = 8;

/// A directory's child.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Child {
    /// Its name.
    pub name: String,
    /// What it is.
    pub cid: Cid,
    /// Bytes of all blocks and nodes beneath.
    pub tree_size: u64,
}

/// Why there is no such directory.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DirectoryError {
    /// Two names whose hashes are the same in all 64 bits: made on purpose.
    #[error("the names {one} and {other} cannot be told apart by their hash")]
    Collision {
        /// One.
        one: String,
        /// The other.
        other: String,
    },
}

/// The root of a directory over `children`, whose names differ.
pub fn directory(mut children: Vec<Child>) -> Result<Link, DirectoryError> {
    children.sort_by(|a, b| a.name.cmp(&b.name));
    let mut data = Vec::with_capacity(2);
    field(&mut data, 1, WIRE_VARINT);
    varint(&mut data, TYPE_DIRECTORY);
    // A node over more than that is never encoded: its least length is above the threshold.
    let least: usize = children.iter().map(|child| child.name.len() + 40).sum();
    if least <= NODE_LEN_MAX {
        let (bytes, link) = node(&children, &data);
        if bytes.len() <= NODE_LEN_MAX {
            return Ok(link);
        }
    }
    let mut hashed: Vec<_> =
        children.into_iter().map(|child| (murmur3(child.name.as_bytes()), child)).collect();
    hashed.sort_by_key(|(hash, _)| *hash);
    shard(&hashed, 0)
}

/// A shard over children sorted by hash, which agree in the first `level` bytes of it.
fn shard(children: &[(u64, Child)], level: u32) -> Result<Link, DirectoryError> {
    if level == LEVELS {
        let name = |at: usize| children.get(at).map(|(_, child)| child.name.clone()).unwrap_or_default();
        return Err(DirectoryError::Collision { one: name(0), other: name(1) });
    }
    let way = |hash: u64| usize::from(hash.to_be_bytes()[level as usize]);
    let mut links = Vec::new();
    let mut bitmap = [0u8; WAYS / 8];
    for group in children.chunk_by(|a, b| way(a.0) == way(b.0)) {
        let at = way(group[0].0);
        bitmap[WAYS / 8 - 1 - at / 8] |= 1 << (at % 8);
        links.push(match group {
            [(_, only)] => Child { name: format!("{at:02X}{}", only.name), ..only.clone() },
            several => {
                let Link { cid, tree_size, .. } = shard(several, level + 1)?;
                Child { name: format!("{at:02X}"), cid, tree_size }
            }
        });
    }
    let used = bitmap.iter().position(|byte| *byte != 0).unwrap_or(WAYS / 8 - 1);
    let mut data = Vec::with_capacity(64);
    field(&mut data, 1, WIRE_VARINT);
    varint(&mut data, TYPE_HAMT);
    field(&mut data, 2, WIRE_BYTES);
    delimited(&mut data, &bitmap[used..]);
    field(&mut data, 5, WIRE_VARINT);
    varint(&mut data, MURMUR3_X64_64);
    field(&mut data, 6, WIRE_VARINT);
    varint(&mut data, WAYS as u64);
    Ok(node(&links, &data).1)
}

/// A dag-pb node over `children`, with its link.
fn node(children: &[Child], data: &[u8]) -> (Vec<u8>, Link) {
    let mut bytes = Vec::with_capacity(data.len() + children.len() * 64);
    let mut inner = Vec::with_capacity(128);
    for child in children {
        inner.clear();
        field(&mut inner, 1, WIRE_BYTES);
        delimited(&mut inner, &child.cid.to_bytes());
        field(&mut inner, 2, WIRE_BYTES);
        delimited(&mut inner, child.name.as_bytes());
        field(&mut inner, 3, WIRE_VARINT);
        varint(&mut inner, child.tree_size);
        field(&mut bytes, 2, WIRE_BYTES);
        delimited(&mut bytes, &inner);
    }
    field(&mut bytes, 1, WIRE_BYTES);
    delimited(&mut bytes, data);
    let beneath: u64 = children.iter().map(|child| child.tree_size).sum();
    let link = Link { cid: node_cid(&bytes), tree_size: beneath + bytes.len() as u64, file_size: 0 };
    (bytes, link)
}

/// The first 64 bits of MurmurHash3 x64 128 with seed 0.
fn murmur3(bytes: &[u8]) -> u64 {
    const C1: u64 = 0x87c3_7b91_1142_53d5;
    const C2: u64 = 0x4cf5_ad43_2745_937f;
    let word = |bytes: &[u8]| {
        let mut word = [0u8; 8];
        word[..bytes.len()].copy_from_slice(bytes);
        u64::from_le_bytes(word)
    };
    let mix1 = |word: u64| word.wrapping_mul(C1).rotate_left(31).wrapping_mul(C2);
    let mix2 = |word: u64| word.wrapping_mul(C2).rotate_left(33).wrapping_mul(C1);
    let finish = |mut word: u64| {
        word ^= word >> 33;
        word = word.wrapping_mul(0xff51_afd7_ed55_8ccd);
        word ^= word >> 33;
        word = word.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        word ^ (word >> 33)
    };
    let (mut h1, mut h2) = (0u64, 0u64);
    let blocks = bytes.chunks_exact(16);
    let tail = blocks.remainder();
    for block in blocks {
        h1 ^= mix1(word(&block[..8]));
        h1 = h1.rotate_left(27).wrapping_add(h2).wrapping_mul(5).wrapping_add(0x52dc_e729);
        h2 ^= mix2(word(&block[8..]));
        h2 = h2.rotate_left(31).wrapping_add(h1).wrapping_mul(5).wrapping_add(0x3849_5ab5);
    }
    if tail.len() > 8 {
        h2 ^= mix2(word(&tail[8..]));
    }
    if !tail.is_empty() {
        h1 ^= mix1(word(&tail[..tail.len().min(8)]));
    }
    h1 ^= bytes.len() as u64;
    h2 ^= bytes.len() as u64;
    h1 = h1.wrapping_add(h2);
    h2 = h2.wrapping_add(h1);
    finish(h1).wrapping_add(finish(h2))
}

#[cfg(test)]
mod tests;
