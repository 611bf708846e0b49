//! Nodes in memory, honest or not, for tests and simulations. They make real inventories, real proofs and real
//! signatures; what is played is only which bytes they still have and what they do when they have not.

use std::collections::BTreeMap;
use std::sync::Arc;

use holdfast_protocol::cbor;
use holdfast_protocol::message::LeafUnit;
use holdfast_protocol::record::{
    AnswerBody, AuditAnswer, ChunkProof, Commitment, Declaration, DeclaredAs, DrawProof, Epoch,
    InventoryHash, OwnerHash, Signed, Unverified,
};
use holdfast_protocol::rpc::ShownCommitment;
use holdfast_protocol::{BlockLen, Digest, NodeId, SigningKey};
use serde_bytes::ByteBuf;

use crate::answer::{chunk_of, group_of, last_chunk, prove_chunk};
use crate::draw::{Draw, Randomness};
use crate::hash::hash_block;
use crate::inventory::{Entry, Inventory, Sum, bucket_of, bucket_sum};
use crate::shape::leaf_extent;
use crate::tree::GroupTree;

/// A block of a pool.
#[derive(Debug)]
pub struct SimBlock {
    bytes: Vec<u8>,
    digest: Digest,
    tree: GroupTree,
}

impl SimBlock {
    /// A block of `len` bytes that depend on `seed`.
    pub fn new(seed: u64, len: usize) -> Self {
        let mut bytes = vec![0u8; len];
        blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
        let (digest, tree) = hash_block(&bytes);
        Self { bytes, digest, tree }
    }

    /// Its digest.
    pub const fn digest(&self) -> Digest {
        self.digest
    }

    fn group(&self, chunk: u32) -> &[u8] {
        let extent = leaf_extent(LeafUnit::Group, group_of(chunk), self.tree.len());
        extent.map_or(&[], |extent| &self.bytes[extent.start as usize..extent.end() as usize])
    }
}

/// What a node does about the blocks that it does not have, and about the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strategy {
    /// Has everything it says.
    Honest,
    /// Lacks some blocks and says so when they are drawn.
    Admits,
    /// Lacks some and leaves their draws unanswered.
    Silent,
    /// Has the header pages, with all chaining values, but no data: shows zeros under a right path.
    HeadersOnly,
    /// Lacks some, and declares them once it has seen the draw.
    DeclaresLate,
    /// Lacks some, and declares them before every draw.
    DeclaresInTime,
    /// Answers with the proofs of the epoch before.
    Replays,
    /// Changes a bit of a path.
    ForgesPath,
    /// Claims twice the bytes that its leaves have.
    ForgesSums,
    /// Claims that a block is longer than it is.
    ForgesLength,
    /// Commits to two inventories for one epoch.
    Equivocates,
    /// Shows another drawn block than the one at the position.
    ShowsOther,
}

/// A node in memory.
#[derive(Debug)]
pub struct SimNode {
    key: Arc<SigningKey>,
    strategy: Strategy,
    blocks: BTreeMap<Digest, (Arc<SimBlock>, bool)>,
}

/// A node's inventory as it committed to it.
#[derive(Debug)]
pub struct SimInventory {
    tree: Inventory,
    buckets: BTreeMap<u16, Vec<Entry>>,
    claimed: Sum,
}

impl SimNode {
    /// A node that claims `blocks`, and has those of which the flag is set.
    pub fn new(
        key: Arc<SigningKey>,
        strategy: Strategy,
        blocks: impl IntoIterator<Item = (Arc<SimBlock>, bool)>,
    ) -> Self {
        let blocks = blocks.into_iter().map(|(block, has)| (block.digest, (block, has))).collect();
        Self { key, strategy, blocks }
    }

    /// Its id.
    pub fn id(&self) -> NodeId {
        NodeId(self.key.public())
    }

    /// Its key.
    pub const fn key(&self) -> &Arc<SigningKey> {
        &self.key
    }

    /// What it does.
    pub const fn strategy(&self) -> Strategy {
        self.strategy
    }

    /// Builds the inventory that it claims.
    pub fn inventory(&self) -> SimInventory {
        let mut tree = Inventory::new();
        let mut buckets: BTreeMap<u16, Vec<Entry>> = BTreeMap::new();
        for (index, (digest, (block, _))) in self.blocks.iter().enumerate() {
            let mut len = block.tree.len();
            if self.strategy == Strategy::ForgesLength && index == 0 {
                len = BlockLen::MAX;
            }
            let entry = Entry { digest: *digest, len, owner: OwnerHash([7; 32]) };
            buckets.entry(bucket_of(digest)).or_default().push(entry);
        }
        let sums: Vec<(u16, Sum)> = buckets
            .iter()
            .map(|(number, entries)| (*number, bucket_sum(*number, entries).unwrap_or(Sum::EMPTY)))
            .collect();
        // Few blocks: their bytes never pass a u64.
        let _ = tree.update(&sums);
        let mut claimed = tree.root();
        if self.strategy == Strategy::ForgesSums {
            claimed.bytes *= 2;
        }
        SimInventory { tree, buckets, claimed }
    }

    /// What it shows before the draw of `epoch`.
    pub fn shown(&self, inventory: &SimInventory, epoch: Epoch, now_ms: u64) -> ShownCommitment {
        let declarations = match self.strategy {
            Strategy::DeclaresInTime => vec![self.declaration(epoch, now_ms)],
            _ => Vec::new(),
        };
        ShownCommitment {
            commitment: self.commitment(inventory.claimed, epoch, now_ms),
            declarations,
            countersignatures: Vec::new(),
        }
    }

    /// Another commitment for the same epoch.
    pub fn second(&self, inventory: &SimInventory, epoch: Epoch, now_ms: u64) -> ShownCommitment {
        let other = Sum { hash: InventoryHash([9; 32]), bytes: inventory.claimed.bytes };
        ShownCommitment {
            commitment: self.commitment(other, epoch, now_ms),
            declarations: Vec::new(),
            countersignatures: Vec::new(),
        }
    }

    fn commitment(&self, claimed: Sum, epoch: Epoch, now_ms: u64) -> Unverified<Commitment> {
        let commitment = Commitment {
            v: 1,
            node: self.id(),
            epoch,
            count: self.blocks.len() as u64,
            bytes: claimed.bytes,
            root: claimed.hash,
            issued_ms: now_ms,
        };
        Signed::sign(commitment, &self.key).to_wire()
    }

    /// "These I have lost": its word on all that it lacks.
    pub fn declaration(&self, epoch: Epoch, now_ms: u64) -> Unverified<Declaration> {
        let digests: Vec<Digest> = self
            .blocks
            .iter()
            .filter(|(_, (_, has))| !has)
            .map(|(digest, _)| *digest)
            .take(holdfast_protocol::limits::DECLARED_DIGESTS_MAX)
            .collect();
        let kind = DeclaredAs::Lost;
        let declaration = Declaration { v: 1, node: self.id(), epoch, kind, digests, issued_ms: now_ms };
        Signed::sign(declaration, &self.key).to_wire()
    }

    /// Its answer to these draws of an epoch, drawn by a round with its randomness: the signed head and the proofs.
    pub fn answer(
        &self,
        inventory: &SimInventory,
        epoch: Epoch,
        (round, randomness): (u64, &Randomness),
        draws: &[u32],
        now_ms: u64,
    ) -> (Unverified<AuditAnswer>, Vec<u8>) {
        let drawn_epoch = if self.strategy == Strategy::Replays { epoch.saturating_sub(1) } else { epoch };
        let draw = Draw::new(randomness, self.id(), drawn_epoch, inventory.claimed.bytes);
        let draws = draws.iter().filter_map(|index| self.prove(inventory, &draw, *index)).collect();
        self.signed(epoch, round, cbor::encode(&AnswerBody { draws }), now_ms)
    }

    /// Signs any bytes as its answer.
    pub fn signed(
        &self,
        epoch: Epoch,
        round: u64,
        body: Vec<u8>,
        now_ms: u64,
    ) -> (Unverified<AuditAnswer>, Vec<u8>) {
        let answer = AuditAnswer {
            v: 1,
            node: self.id(),
            epoch,
            round,
            body_len: u32::try_from(body.len()).unwrap_or(u32::MAX),
            body: Digest::of(&body),
            issued_ms: now_ms,
        };
        (Signed::sign(answer, &self.key).to_wire(), body)
    }

    fn prove(&self, inventory: &SimInventory, draw: &Draw, index: u32) -> Option<DrawProof> {
        let mut position = draw.position(index)?;
        if self.strategy == Strategy::ShowsOther {
            position = (position + inventory.claimed.bytes / 2) % inventory.claimed.bytes;
        }
        // A position in bytes that no leaf has: all that can be shown is some leaf.
        let position = position % inventory.tree.root().bytes;
        let (number, within) = inventory.tree.find(position)?;
        let (mut leaf, offset) = inventory.tree.open(number, inventory.buckets.get(&number)?, within)?;
        let (block, has) = self.blocks.get(&leaf.digest)?;
        // Within a block that is shorter than claimed, the best that can be shown is its own last chunk.
        let chunk = chunk_of(offset).min(last_chunk(block.tree.len()));
        let proved =
            prove_chunk(&block.tree, chunk, block.group(chunk), block.group(last_chunk(block.tree.len())));
        let mut shown = Some(proved.ok()?);
        if !has {
            match self.strategy {
                Strategy::Silent | Strategy::DeclaresLate => return None,
                Strategy::HeadersOnly => blank(shown.as_mut()?),
                _ => shown = None,
            }
        }
        if self.strategy == Strategy::ForgesPath {
            leaf.siblings[33] ^= 1;
        }
        Some(DrawProof { draw: index, leaf, chunk: shown })
    }
}

/// Zeros in place of the bytes.
fn blank(proof: &mut ChunkProof) {
    proof.chunk = ByteBuf::from(vec![0u8; proof.chunk.len()]);
    proof.last = ByteBuf::from(vec![0u8; proof.last.len()]);
}

impl SimInventory {
    /// What is claimed: hash and bytes.
    pub const fn claimed(&self) -> Sum {
        self.claimed
    }
}
