//! 20,000 proofs, each bent in one way, all refused. The seed is fixed and printed on failure.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, clippy::cast_sign_loss)]

use holdfast_proofs::{LeafUnit, hash_block, leaf_count, leaf_extent, verify_leaf};
use holdfast_protocol::{BlockLen, Digest};

const SEED: u64 = 0x686f_6c64_6661_7374;
const MUTATIONS: usize = 20_000;
const KINDS: u64 = 14;

/// SplitMix64.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.roll() % bound as u64) as usize
    }
}

#[derive(Clone, Debug, PartialEq)]
struct Proof {
    digest: Digest,
    len: BlockLen,
    unit: LeafUnit,
    index: u32,
    leaf: Vec<u8>,
    siblings: Vec<u8>,
}

impl Proof {
    fn holds(&self) -> bool {
        verify_leaf(&self.digest, self.len, self.unit, self.index, &self.leaf, &self.siblings).is_ok()
    }
}

struct Block {
    bytes: Vec<u8>,
    digest: Digest,
    tree: holdfast_proofs::GroupTree,
}

impl Block {
    fn new(len: usize) -> Self {
        let mut bytes = vec![0; len];
        blake3::Hasher::new().update(&len.to_le_bytes()).finalize_xof().fill(&mut bytes);
        let (digest, tree) = hash_block(&bytes);
        Self { bytes, digest, tree }
    }

    fn prove(&self, unit: LeafUnit, index: u32) -> Proof {
        let extent = leaf_extent(unit, index, self.tree.len()).unwrap();
        let leaf = self.bytes[extent.start as usize..extent.end() as usize].to_vec();
        let path = match unit {
            LeafUnit::Group => self.tree.group_path(index).unwrap(),
            LeafUnit::Chunk => {
                let start = index as usize / 16 * 16384;
                let group = &self.bytes[start..self.bytes.len().min(start + 16384)];
                self.tree.chunk_path(index, group).unwrap()
            }
        };
        let siblings = path.siblings.into_vec();
        Proof { digest: self.digest, len: self.tree.len(), unit, index, leaf, siblings }
    }
}

fn flip(bytes: &mut [u8], dice: &mut Dice) {
    if !bytes.is_empty() {
        let at = dice.below(bytes.len());
        bytes[at] ^= 1 << dice.below(8);
    }
}

/// Bends `proof` in way `kind`; may leave it as it is when that way does not apply.
fn bend(kind: u64, block: &Block, proof: &mut Proof, dice: &mut Dice) {
    let leaves = leaf_count(proof.unit, proof.len);
    let levels = proof.siblings.len() / 32;
    match kind {
        0 => flip(&mut proof.leaf, dice),
        1 => flip(&mut proof.siblings, dice),
        2 => flip(&mut proof.digest.0, dice),
        3 => proof.index = dice.below(leaves as usize + 3) as u32,
        4 => proof.index = dice.roll() as u32,
        // Only the last leaf's proof binds the length.
        5 => {
            *proof = block.prove(proof.unit, leaves - 1);
            proof.len = BlockLen::new(1 + dice.below(1_048_576) as u32).unwrap();
        }
        6 if levels > 1 => {
            let level = dice.below(levels - 1);
            let mut rows: Vec<Vec<u8>> = proof.siblings.chunks(32).map(<[u8]>::to_vec).collect();
            rows.swap(level, level + 1);
            proof.siblings = rows.concat();
        }
        7 if levels > 0 => proof.siblings.truncate(dice.below(proof.siblings.len())),
        8 => proof.siblings.extend((0..=dice.below(64)).map(|_| 0)),
        9 => {
            let copy = proof.siblings.get(..32).unwrap_or(&[7; 32]).to_vec();
            let at = dice.below(levels + 1) * 32;
            proof.siblings.splice(at..at, copy);
        }
        10 => proof.leaf.truncate(dice.below(proof.leaf.len())),
        11 => proof.leaf.extend((0..=dice.below(16)).map(|_| 0)),
        // Another leaf's bytes, or another leaf's path, under this index.
        12 => {
            let other = block.prove(proof.unit, dice.below(leaves as usize) as u32);
            if dice.below(2) == 0 { proof.leaf = other.leaf } else { proof.siblings = other.siblings }
        }
        // The parent's two halves as the leaf, with what is left of the path.
        13 if levels > 0 => {
            let mut own = blake3::Hasher::new();
            own.update(&proof.leaf);
            proof.leaf = [own.finalize().as_bytes().as_slice(), &proof.siblings[..32]].concat();
            proof.siblings.drain(..32);
            proof.index /= 2;
            // The strongest case: the caller's record itself says a length at which 64 bytes fit.
            if dice.below(2) == 0 {
                proof.len = BlockLen::new(proof.index * proof.unit.len() + 64).unwrap();
            }
        }
        _ => {}
    }
}

#[test]
fn twenty_thousand_bent_proofs_are_all_refused() {
    let lengths =
        [1, 64, 1024, 1025, 3000, 16384, 16385, 16448, 49_152, 70_000, 100_000, 163_904, 524_289, 1_048_576];
    let blocks: Vec<Block> = lengths.into_iter().map(Block::new).collect();
    let mut dice = Dice(SEED);
    let (mut refused, mut by_kind) = (0, [0usize; KINDS as usize]);
    while refused < MUTATIONS {
        let block = &blocks[dice.below(blocks.len())];
        let unit = if dice.below(2) == 0 { LeafUnit::Group } else { LeafUnit::Chunk };
        let index = dice.below(leaf_count(unit, block.tree.len()) as usize) as u32;
        let proof = block.prove(unit, index);
        assert!(proof.holds(), "seed {SEED:#x}, {index} of {} bytes", block.bytes.len());
        let kind = dice.roll() % KINDS;
        let mut bent = proof.clone();
        bend(kind, block, &mut bent, &mut dice);
        let honest = (bent.len == block.tree.len()) && {
            let leaves = leaf_count(unit, block.tree.len());
            bent.index < leaves && bent == block.prove(unit, bent.index)
        };
        if honest {
            continue;
        }
        assert!(!bent.holds(), "seed {SEED:#x}, kind {kind}, mutation {refused}: {bent:?}");
        by_kind[kind as usize] += 1;
        refused += 1;
    }
    assert!(by_kind.iter().all(|count| *count > MUTATIONS / 100), "every kind counts: {by_kind:?}");
}

#[test]
fn a_parents_halves_are_never_a_leaf() {
    // The second group has 64 bytes, as two chaining values have.
    let block = Block::new(16384 + 64);
    let proof = block.prove(LeafUnit::Group, 1);
    let halves = block.tree.chaining_values().concat();
    assert_eq!(halves.len(), proof.leaf.len());
    assert!(proof.holds());
    assert!(!Proof { leaf: halves.clone(), ..proof.clone() }.holds());
    // A block of 64 bytes whose digest is our root: the halves hash to it only as a parent.
    let forged = Proof { leaf: halves, len: BlockLen::new(64).unwrap(), index: 0, siblings: vec![], ..proof };
    assert!(!forged.holds());
}
