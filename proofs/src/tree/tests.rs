use super::*;
use crate::hash::hash_block;
use crate::verify::verify_leaf;

fn sample(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(b"tree tests").finalize_xof().fill(&mut bytes);
    bytes
}

fn group_bytes(tree: &GroupTree, bytes: &[u8], chunk: u32) -> Vec<u8> {
    let extent = leaf_extent(LeafUnit::Group, chunk / CHUNKS_PER_GROUP, tree.len()).unwrap();
    bytes[extent.start as usize..extent.end() as usize].to_vec()
}

#[test]
fn a_block_of_one_group_keeps_no_values_and_proves_itself() {
    let bytes = sample(16384);
    let (digest, tree) = hash_block(&bytes);
    assert_eq!(tree.chaining_values().len(), 0);
    assert_eq!(tree.root(), None);
    let path = tree.group_path(0).unwrap();
    assert_eq!((path.index, path.siblings.len()), (0, 0));
    verify_leaf(&digest, tree.len(), LeafUnit::Group, 0, &bytes, &path.siblings).unwrap();
}

#[test]
fn chunks_of_a_single_group_lead_to_the_digest() {
    for len in [1, 1024, 1025, 3 * 1024, 16383, 16384] {
        let bytes = sample(len);
        let (digest, tree) = hash_block(&bytes);
        for (chunk, leaf) in (0..).zip(bytes.chunks(1024)) {
            let path = tree.chunk_path(chunk, &bytes).unwrap();
            verify_leaf(&digest, tree.len(), LeafUnit::Chunk, chunk, leaf, &path.siblings).unwrap();
        }
    }
}

#[test]
fn a_full_block_has_paths_of_192_and_320_bytes() {
    let bytes = sample(1024 * 1024);
    let (_, tree) = hash_block(&bytes);
    assert_eq!(tree.group_path(63).unwrap().siblings.len(), 192);
    let path = tree.chunk_path(1023, &group_bytes(&tree, &bytes, 1023)).unwrap();
    assert_eq!(path.siblings.len(), 320);
}

#[test]
fn values_survive_storage_and_only_the_right_count_is_taken() {
    let (digest, tree) = hash_block(&sample(100_000));
    let back = GroupTree::from_chaining_values(tree.len(), tree.chaining_values()).unwrap();
    assert_eq!(back, tree);
    assert_eq!(back.root(), Some(digest));
    let values = tree.chaining_values();
    assert_eq!(
        GroupTree::from_chaining_values(tree.len(), &values[1..]),
        Err(TreeError::Count { len: tree.len(), expected: 7, found: 6 })
    );
    let one = BlockLen::new(9).unwrap();
    assert!(GroupTree::from_chaining_values(one, &values[..1]).is_err());
    assert!(GroupTree::from_chaining_values(one, &[]).is_ok());
}

#[test]
fn what_the_block_does_not_have_is_refused() {
    let bytes = sample(40_000);
    let (_, tree) = hash_block(&bytes);
    assert!(matches!(tree.group_path(3), Err(ProveError::Outside { index: 3, .. })));
    assert!(matches!(tree.group_paths(0..4), Err(ProveError::Outside { index: 3, .. })));
    assert!(matches!(tree.group_paths(0..u32::MAX), Err(ProveError::Outside { .. })));
    assert_eq!(tree.group_paths(2..2), Ok(vec![]));
    assert!(matches!(tree.chunk_path(40, &bytes[32768..]), Err(ProveError::Outside { .. })));
    let short = tree.chunk_path(39, &bytes[32769..]);
    assert_eq!(short, Err(ProveError::GroupLength { group: 2, expected: 7232, found: 7231 }));
}

#[test]
fn a_group_that_rotted_on_disk_is_noticed_before_it_is_proved() {
    let mut bytes = sample(40_000);
    let (_, tree) = hash_block(&bytes);
    bytes[20_000] ^= 1;
    let group = &bytes[16384..32768];
    assert_eq!(tree.chunk_path(16, group), Err(ProveError::GroupMismatch { group: 1 }));
}

#[test]
fn rs_merkle_by_its_own_proofs_agrees_for_every_number_of_groups() {
    for groups in 2..=64usize {
        let (digest, tree) = hash_block(&sample(groups * 16384 - 5));
        let leaves: Vec<Node> = tree.chaining_values().iter().map(|v| Node::leaf(*v)).collect();
        let merkle = rs_merkle::MerkleTree::<Blake3Parents>::from_leaves(&leaves);
        assert_eq!(merkle.root().and_then(|top| top.root()), Some(digest));
        let paths = tree.group_paths(0..tree.groups()).unwrap();
        for (index, path) in paths.iter().enumerate() {
            let theirs: Vec<u8> =
                merkle.proof(&[index]).proof_hashes().iter().flat_map(|n| *n.chaining_value()).collect();
            assert_eq!(path.siblings, theirs);
        }
    }
}
