use holdfast_protocol::limits::GROUP_LEN;

use super::*;
use crate::hash::hash_block;
use crate::tree::GroupTree;

struct Answer {
    digest: Digest,
    len: BlockLen,
    ranges: Vec<ByteRange>,
    paths: Vec<LeafPath>,
    body: Vec<u8>,
}

impl Answer {
    fn verify(&self, unit: LeafUnit) -> Result<VerifiedLeaves, VerifyError> {
        let body = Bytes::copy_from_slice(&self.body);
        verify_reply(&self.digest, self.len, unit, &self.ranges, &self.paths, body)
    }
}

fn sample(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(b"reply tests").finalize_xof().fill(&mut bytes);
    bytes
}

fn path(tree: &GroupTree, unit: LeafUnit, leaf: u32, bytes: &[u8]) -> LeafPath {
    match unit {
        LeafUnit::Group => tree.group_path(leaf).unwrap(),
        LeafUnit::Chunk => {
            let start = (leaf / 16 * GROUP_LEN) as usize;
            tree.chunk_path(leaf, &bytes[start..bytes.len().min(start + 16384)]).unwrap()
        }
    }
}

fn answer(bytes: &[u8], unit: LeafUnit, ranges: &[(u32, u32)]) -> Answer {
    let (digest, tree) = hash_block(bytes);
    let ranges: Vec<_> = ranges.iter().map(|(start, len)| ByteRange { start: *start, len: *len }).collect();
    let (mut paths, mut body) = (vec![], vec![]);
    for range in &ranges {
        for leaf in leaves_of(unit, *range, tree.len()).unwrap() {
            let extent = leaf_extent(unit, leaf, tree.len()).unwrap();
            body.extend_from_slice(&bytes[extent.start as usize..extent.end() as usize]);
            paths.push(path(&tree, unit, leaf, bytes));
        }
    }
    Answer { digest, len: tree.len(), ranges, paths, body }
}

#[test]
fn each_range_gives_exactly_its_bytes() {
    let bytes = sample(300_001);
    let ranges = [(5, 20_000), (70_000, 1), (100_000, 65_536), (300_000, 1)];
    for unit in [LeafUnit::Group, LeafUnit::Chunk] {
        let answer = answer(&bytes, unit, &ranges);
        let verified = answer.verify(unit).unwrap();
        assert_eq!(verified.count(), ranges.len());
        for (i, (start, len)) in ranges.iter().enumerate() {
            assert_eq!(verified.range(i), bytes[*start as usize..(start + len) as usize]);
        }
        assert_eq!(verified.ranges().map(|b| b.len()).sum::<usize>(), 85_538);
        assert_eq!(body_len(unit, &answer.ranges, answer.len).unwrap() as usize, answer.body.len());
    }
}

#[test]
fn a_block_of_one_group_is_answered_with_itself() {
    let bytes = sample(9_999);
    let verified = answer(&bytes, LeafUnit::Group, &[(10, 100)]).verify(LeafUnit::Group).unwrap();
    assert_eq!(verified.range(0), bytes[10..110]);
    assert_eq!(verified.into_leaves(), bytes);
}

#[test]
fn a_missing_leaf_is_refused() {
    let bytes = sample(200_000);
    let mut short = answer(&bytes, LeafUnit::Group, &[(0, 65_536)]);
    short.paths.pop();
    assert!(matches!(short.verify(LeafUnit::Group), Err(VerifyError::PathCount { expected: 4, found: 3 })));
    let mut short = answer(&bytes, LeafUnit::Group, &[(0, 65_536)]);
    short.body.truncate(49_152);
    assert!(matches!(short.verify(LeafUnit::Group), Err(VerifyError::BodyLength { .. })));
}

#[test]
fn a_surplus_leaf_is_refused() {
    let bytes = sample(200_000);
    let wide = answer(&bytes, LeafUnit::Group, &[(0, 65_537)]);
    let mut answer = answer(&bytes, LeafUnit::Group, &[(0, 65_536)]);
    answer.paths = wide.paths;
    answer.body = wide.body;
    assert!(matches!(answer.verify(LeafUnit::Group), Err(VerifyError::PathCount { .. })));
    answer.paths.pop();
    assert!(matches!(answer.verify(LeafUnit::Group), Err(VerifyError::BodyLength { .. })));
}

#[test]
fn reordered_and_repeated_leaves_are_refused() {
    let bytes = sample(200_000);
    let mut swapped = answer(&bytes, LeafUnit::Group, &[(0, 32_768)]);
    swapped.paths.swap(0, 1);
    swapped.body.rotate_left(16_384);
    assert!(matches!(swapped.verify(LeafUnit::Group), Err(VerifyError::Order { expected: 0, found: 1 })));

    let mut repeated = answer(&bytes, LeafUnit::Group, &[(0, 32_768)]);
    repeated.paths[1] = repeated.paths[0].clone();
    repeated.body.copy_within(0..16_384, 16_384);
    assert!(matches!(repeated.verify(LeafUnit::Group), Err(VerifyError::Order { expected: 1, found: 0 })));

    // The other leaf's bytes and path under the index that was asked for.
    repeated.paths[1].index = 1;
    assert!(matches!(repeated.verify(LeafUnit::Group), Err(VerifyError::Mismatch { index: 1, .. })));
}

#[test]
fn leaves_of_another_unit_or_block_are_refused() {
    let bytes = sample(200_000);
    let chunks = answer(&bytes, LeafUnit::Chunk, &[(0, 16_384)]);
    assert!(chunks.verify(LeafUnit::Group).is_err());
    let mut other = answer(&sample(200_001)[1..], LeafUnit::Group, &[(0, 16_384)]);
    other.digest = chunks.digest;
    assert!(matches!(other.verify(LeafUnit::Group), Err(VerifyError::Mismatch { index: 0, .. })));
}

#[test]
fn a_wrong_request_is_not_the_peers_fault() {
    let bytes = sample(200_000);
    let good = answer(&bytes, LeafUnit::Group, &[(0, 10)]);
    let refused = |ranges: &[(u32, u32)]| {
        let ranges: Vec<_> =
            ranges.iter().map(|(start, len)| ByteRange { start: *start, len: *len }).collect();
        let error = verify_reply(&good.digest, good.len, LeafUnit::Group, &ranges, &good.paths, Bytes::new())
            .unwrap_err();
        assert!(!error.is_peer_fault() && !error.is_retryable());
        error
    };
    let order = |start| VerifyError::Range { source: RangeError::Order { start } };
    assert_eq!(refused(&[(0, 10), (20, 10)]), order(20));
    assert_eq!(refused(&[(50_000, 10), (0, 10)]), order(0));
    assert!(matches!(refused(&[(199_999, 2)]), VerifyError::Range { source: RangeError::Outside { .. } }));
    assert!(matches!(refused(&[(0, 0)]), VerifyError::Range { source: RangeError::Empty { .. } }));
}
