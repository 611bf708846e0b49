//! Every block length around every chunk edge up to 1 MiB, against `blake3::hash`.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, clippy::cast_sign_loss)]

use holdfast_proofs::{GroupTree, LeafUnit, hash_block, leaf_count, leaf_extent, verify_leaf, verify_whole};
use holdfast_protocol::{BlockLen, Digest};
use proptest::prelude::*;

const CHUNK: usize = 1024;
const GROUP: usize = 16 * CHUNK;
const BLOCK: usize = 1024 * CHUNK;

fn sample() -> Vec<u8> {
    let mut bytes = vec![0; BLOCK];
    blake3::Hasher::new().update(b"edges").finalize_xof().fill(&mut bytes);
    bytes
}

/// Edge - 1, edge, edge + 1 for every chunk edge: 3,072 lengths less the one past a block.
fn edge_lengths() -> impl Iterator<Item = usize> {
    (1..=BLOCK / CHUNK)
        .flat_map(|edge| [edge * CHUNK - 1, edge * CHUNK, edge * CHUNK + 1])
        .filter(|l| *l <= BLOCK)
}

fn check_chunk(digest: &Digest, tree: &GroupTree, bytes: &[u8], chunk: u32) {
    let start = chunk as usize * CHUNK / GROUP * GROUP;
    let path = tree.chunk_path(chunk, &bytes[start..bytes.len().min(start + GROUP)]).unwrap();
    let extent = leaf_extent(LeafUnit::Chunk, chunk, tree.len()).unwrap();
    let leaf = &bytes[extent.start as usize..extent.end() as usize];
    verify_leaf(digest, tree.len(), LeafUnit::Chunk, chunk, leaf, &path.siblings)
        .unwrap_or_else(|error| panic!("{} bytes, chunk {chunk}: {error}", bytes.len()));
}

#[test]
fn every_edge_length_has_blake3s_digest_and_all_its_groups_prove() {
    let sample = sample();
    for len in edge_lengths() {
        let bytes = &sample[..len];
        let (digest, tree) = hash_block(bytes);
        assert_eq!(digest.as_bytes(), blake3::hash(bytes).as_bytes(), "{len} bytes");
        assert_eq!(verify_whole(&digest, tree.len(), bytes), Ok(()));
        let paths = tree.group_paths(0..tree.groups()).unwrap();
        for (path, leaf) in paths.iter().zip(bytes.chunks(GROUP)) {
            verify_leaf(&digest, tree.len(), LeafUnit::Group, path.index, leaf, &path.siblings)
                .unwrap_or_else(|error| panic!("{len} bytes, group {}: {error}", path.index));
        }
    }
}

#[test]
fn every_edge_length_proves_its_first_last_and_edge_chunks() {
    let sample = sample();
    for len in edge_lengths() {
        let bytes = &sample[..len];
        let (digest, tree) = hash_block(bytes);
        let last = leaf_count(LeafUnit::Chunk, tree.len()) - 1;
        let mut chunks = vec![0, 15.min(last), 16.min(last), last / 2, last.saturating_sub(1), last];
        chunks.dedup();
        for chunk in chunks {
            check_chunk(&digest, &tree, bytes, chunk);
        }
    }
}

#[test]
fn every_chunk_of_chosen_lengths_proves() {
    let sample = sample();
    for len in [1, CHUNK, GROUP - 1, GROUP, GROUP + 1, 3 * GROUP + 700, 333_333, BLOCK - 1, BLOCK] {
        let bytes = &sample[..len];
        let (digest, tree) = hash_block(bytes);
        for chunk in 0..leaf_count(LeafUnit::Chunk, tree.len()) {
            check_chunk(&digest, &tree, bytes, chunk);
        }
    }
}

#[test]
fn only_the_last_leaf_binds_the_length() {
    let sample = sample();
    let bytes = &sample[..5 * GROUP - 100];
    let (digest, tree) = hash_block(bytes);
    let longer = BlockLen::new(tree.len().bytes() + 1).unwrap();
    let paths = tree.group_paths(0..5).unwrap();
    let verify = |len, group: usize| {
        let leaf = bytes.chunks(GROUP).nth(group).unwrap();
        verify_leaf(&digest, len, LeafUnit::Group, paths[group].index, leaf, &paths[group].siblings)
    };
    assert_eq!(verify(longer, 0), Ok(()));
    assert!(verify(longer, 4).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn any_block_proves_any_leaf(
        len in 1usize..=200_000, seed: u64, pick in 0.0f64..1.0
    ) {
        let mut bytes = vec![0; len];
        blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
        let (digest, tree) = hash_block(&bytes);
        prop_assert_eq!(digest, Digest::of(&bytes));
        let chunk = (pick * f64::from(leaf_count(LeafUnit::Chunk, tree.len()))) as u32;
        check_chunk(&digest, &tree, &bytes, chunk);
        let group = chunk / 16;
        let path = tree.group_path(group).unwrap();
        let leaf = bytes.chunks(GROUP).nth(group as usize).unwrap();
        prop_assert_eq!(verify_leaf(&digest, tree.len(), LeafUnit::Group, group, leaf, &path.siblings), Ok(()));
    }
}
