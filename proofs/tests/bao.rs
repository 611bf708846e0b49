//! Against `bao-tree`, an implementation of the same tree that is not ours: roots, paths, and its
//! decoder reading proofs that we made.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, clippy::cast_sign_loss)]

use bao_tree::io::outboard::PreOrderMemOutboard;
use bao_tree::io::sync::{DecodeResponseIter, encode_ranges};
use bao_tree::{BaoTree, BlockSize, ChunkNum, ChunkRanges};
use blake3::hazmat::{HasherExt, Mode, merge_subtrees_non_root};
use holdfast_proofs::{GroupTree, LeafPath, LeafUnit, hash_block, leaf_count, leaf_extent};

const GROUP: usize = 16 * 1024;

const LENGTHS: [usize; 16] = [
    1, 1023, 1024, 1025, 16383, 16384, 16385, 32768, 40_000, 49_153, 81_920, 114_688, 333_333, 700_001,
    1_048_575, 1_048_576,
];

fn sample(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(b"bao tests").finalize_xof().fill(&mut bytes);
    bytes
}

fn chunk_log(unit: LeafUnit) -> BlockSize {
    match unit {
        LeafUnit::Group => BlockSize::from_chunk_log(4),
        LeafUnit::Chunk => BlockSize::ZERO,
    }
}

fn path(tree: &GroupTree, unit: LeafUnit, leaf: u32, bytes: &[u8]) -> LeafPath {
    match unit {
        LeafUnit::Group => tree.group_path(leaf).unwrap(),
        LeafUnit::Chunk => {
            let start = leaf as usize / 16 * GROUP;
            tree.chunk_path(leaf, &bytes[start..bytes.len().min(start + GROUP)]).unwrap()
        }
    }
}

fn leaves(unit: LeafUnit, tree: &GroupTree) -> Vec<u32> {
    let count = leaf_count(unit, tree.len());
    // All groups; of the chunks a spread that ends with the last.
    let step = if unit == LeafUnit::Group { 1 } else { (count as usize / 40).max(1) };
    (0..count).step_by(step).chain([count - 1]).collect()
}

fn ranges_of(unit: LeafUnit, leaf: u32) -> ChunkRanges {
    let chunks = u64::from(unit.len() / 1024);
    ChunkRanges::from(ChunkNum(u64::from(leaf) * chunks)..ChunkNum(u64::from(leaf + 1) * chunks))
}

fn cv(bytes: &[u8], start: u32) -> [u8; 32] {
    blake3::Hasher::new().set_input_offset(u64::from(start)).update(bytes).finalize_non_root()
}

/// Our path as bao writes it: the pairs of children from the root down.
fn pairs_of(path: &LeafPath, leaf: &[u8], start: u32, theirs: &[u8]) -> Vec<u8> {
    let mut node = cv(leaf, start);
    let mut pairs = Vec::new();
    for (sibling, pair) in path.siblings.chunks(32).zip(theirs.chunks(64).rev()) {
        let (left, right) = if pair[..32] == node { (&node[..], sibling) } else { (sibling, &node[..]) };
        let parent = [left, right].concat();
        let halves = (left.try_into().unwrap(), right.try_into().unwrap());
        node = merge_subtrees_non_root(halves.0, halves.1, Mode::Hash);
        pairs.push(parent);
    }
    pairs.reverse();
    pairs.concat()
}

#[test]
fn roots_agree() {
    for len in LENGTHS {
        let bytes = sample(len);
        for unit in [LeafUnit::Group, LeafUnit::Chunk] {
            let theirs = PreOrderMemOutboard::create(&bytes, chunk_log(unit));
            assert_eq!(hash_block(&bytes).0.as_bytes(), theirs.root.as_bytes(), "{len} bytes");
        }
    }
}

#[test]
fn every_path_is_the_one_that_bao_sends() {
    for unit in [LeafUnit::Group, LeafUnit::Chunk] {
        for len in LENGTHS {
            let bytes = sample(len);
            let (_, tree) = hash_block(&bytes);
            let outboard = PreOrderMemOutboard::create(&bytes, chunk_log(unit));
            for leaf in leaves(unit, &tree) {
                let extent = leaf_extent(unit, leaf, tree.len()).unwrap();
                let leaf_bytes = &bytes[extent.start as usize..extent.end() as usize];
                let mut encoded = Vec::new();
                encode_ranges(&bytes[..], &outboard, &ranges_of(unit, leaf), &mut encoded).unwrap();
                let path = path(&tree, unit, leaf, &bytes);
                let (pairs, body) = encoded.split_at(encoded.len() - leaf_bytes.len());
                assert_eq!(body, leaf_bytes);
                assert_eq!(pairs.len(), path.siblings.len() * 2, "{len} bytes, {unit:?} {leaf}");
                assert_eq!(pairs, pairs_of(&path, leaf_bytes, extent.start, pairs));
            }
        }
    }
}

#[test]
fn baos_decoder_accepts_our_proofs_and_refuses_them_bent() {
    for unit in [LeafUnit::Group, LeafUnit::Chunk] {
        for len in LENGTHS {
            let bytes = sample(len);
            let (digest, tree) = hash_block(&bytes);
            let shape = BaoTree::new(len as u64, chunk_log(unit));
            let root = blake3::Hash::from_bytes(*digest.as_bytes());
            let outboard = PreOrderMemOutboard::create(&bytes, chunk_log(unit));
            for leaf in leaves(unit, &tree) {
                let extent = leaf_extent(unit, leaf, tree.len()).unwrap();
                let leaf_bytes = &bytes[extent.start as usize..extent.end() as usize];
                let ranges = ranges_of(unit, leaf);
                let mut sent = Vec::new();
                encode_ranges(&bytes[..], &outboard, &ranges, &mut sent).unwrap();
                let path = path(&tree, unit, leaf, &bytes);
                let pairs = &sent[..sent.len() - leaf_bytes.len()];
                let mut ours = pairs_of(&path, leaf_bytes, extent.start, pairs);
                ours.extend_from_slice(leaf_bytes);
                let decodes = |encoded: &[u8]| {
                    DecodeResponseIter::new(root, shape, encoded, &ranges).all(|item| item.is_ok())
                };
                assert!(decodes(&ours), "{len} bytes, {unit:?} {leaf}");
                let middle = ours.len() / 2;
                ours[middle] ^= 1;
                assert!(!decodes(&ours), "{len} bytes, {unit:?} {leaf}, bent");
            }
        }
    }
}
