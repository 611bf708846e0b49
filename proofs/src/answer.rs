//! Answers: proving what an epoch drew, and judging what comes back.
//!
//! One drawn byte is proved in two steps, each against what the judge already believes: the inventory's leaf at
//! that byte against the committed root, and the chunk that holds the byte against the leaf's digest. The last chunk
//! comes along, because only its path binds the block's length, and the lengths are what the sums are made of.

use std::collections::BTreeMap;

use holdfast_protocol::cbor::{self, DecodeError};
use holdfast_protocol::limits::{CHUNK_LEN, GROUP_LEN};
use holdfast_protocol::message::LeafUnit;
use holdfast_protocol::record::{AnswerBody, AuditOutcome, ChunkProof, DeclaredAs, DrawProof, OpenedLeaf};
use holdfast_protocol::{BlockLen, Digest};
use serde_bytes::ByteBuf;

use crate::draw::Draw;
use crate::inventory::{self, LeafError, Sum};
use crate::shape::leaf_count;
use crate::tree::{GroupTree, ProveError};
use crate::verify::{VerifyError, verify_leaf};

/// The chunk of a block that holds its byte `offset`.
pub const fn chunk_of(offset: u32) -> u32 {
    offset / CHUNK_LEN
}

/// The last chunk of a block.
pub const fn last_chunk(len: BlockLen) -> u32 {
    leaf_count(LeafUnit::Chunk, len) - 1
}

/// The group of a block that holds a chunk: what must be read to prove it.
pub const fn group_of(chunk: u32) -> u32 {
    chunk / (GROUP_LEN / CHUNK_LEN)
}

/// Proves a chunk and the last chunk, given the whole groups that hold them.
///
/// # Errors
/// [`ProveError`] when the groups are not the block's, for instance because the disk has changed them.
pub fn prove_chunk(
    tree: &GroupTree,
    chunk: u32,
    group: &[u8],
    last_group: &[u8],
) -> Result<ChunkProof, ProveError> {
    let last = last_chunk(tree.len());
    let path = tree.chunk_path(chunk, group)?.siblings;
    let bytes = chunk_bytes(group, chunk);
    if chunk == last {
        return Ok(ChunkProof { chunk: bytes, path, last: ByteBuf::new(), last_path: ByteBuf::new() });
    }
    let last_path = tree.chunk_path(last, last_group)?.siblings;
    Ok(ChunkProof { chunk: bytes, path, last: chunk_bytes(last_group, last), last_path })
}

fn chunk_bytes(group: &[u8], chunk: u32) -> ByteBuf {
    let start = ((chunk - group_of(chunk) * (GROUP_LEN / CHUNK_LEN)) * CHUNK_LEN) as usize;
    let end = group.len().min(start + CHUNK_LEN as usize);
    ByteBuf::from(group.get(start..end).unwrap_or_default())
}

/// Reads the proofs of an answer: canonical, nothing behind them, within bounds.
///
/// # Errors
/// [`DecodeError`] when they are not.
pub fn decode_body(bytes: &[u8]) -> Result<AnswerBody, DecodeError> {
    let body: AnswerBody = cbor::decode(bytes)?;
    body.check_bounds()?;
    Ok(body)
}

/// What the judge believes before it looks at an answer.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// Hash and bytes of the inventory, from the countersigned commitment.
    pub root: Sum,
    /// The draw, from the beacon.
    pub draw: Draw,
    /// What was declared before it.
    pub declared: &'a BTreeMap<Digest, DeclaredAs>,
}

/// What came of one draw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Judged {
    /// The outcome: passed, declared, refused, absent or wrong.
    pub outcome: AuditOutcome,
    /// The block, if its leaf is proved.
    pub digest: Option<Digest>,
    /// Why it is wrong.
    pub error: Option<DrawError>,
}

impl Question<'_> {
    /// Judges the proof of one draw.
    pub fn judge(&self, proof: &DrawProof) -> Judged {
        let offset = match self.locate(proof) {
            Ok(offset) => offset,
            Err(error) => {
                return Judged { outcome: AuditOutcome::Wrong, digest: None, error: Some(error) };
            }
        };
        let digest = Some(proof.leaf.digest);
        let Some(chunk) = &proof.chunk else {
            let outcome = match self.declared.get(&proof.leaf.digest) {
                Some(DeclaredAs::Lost) => AuditOutcome::Declared,
                Some(DeclaredAs::Refused) => AuditOutcome::Refused,
                None => AuditOutcome::Absent,
            };
            return Judged { outcome, digest, error: None };
        };
        match verify_chunks(&proof.leaf, offset, chunk) {
            Ok(()) => Judged { outcome: AuditOutcome::Passed, digest, error: None },
            Err(error) => Judged { outcome: AuditOutcome::Wrong, digest, error: Some(error) },
        }
    }

    /// The drawn byte's place in the opened block, once the leaf is proved to lie there.
    fn locate(&self, proof: &DrawProof) -> Result<u32, DrawError> {
        let located =
            inventory::verify_leaf(&self.root, &proof.leaf).map_err(|source| DrawError::Leaf { source })?;
        let outside = DrawError::Position { draw: proof.draw };
        let position = self.draw.position(proof.draw).ok_or(outside)?;
        let offset = position.checked_sub(located.start).ok_or(outside)?;
        let offset = u32::try_from(offset).map_err(|_| outside)?;
        if offset < proof.leaf.len.bytes() { Ok(offset) } else { Err(outside) }
    }
}

fn verify_chunks(leaf: &OpenedLeaf, offset: u32, proof: &ChunkProof) -> Result<(), DrawError> {
    let (chunk, last) = (chunk_of(offset), last_chunk(leaf.len));
    verify_leaf(&leaf.digest, leaf.len, LeafUnit::Chunk, chunk, &proof.chunk, &proof.path)
        .map_err(|source| DrawError::Chunk { source })?;
    if chunk == last {
        // Two byte strings for one meaning would be two answers.
        return if proof.last.is_empty() && proof.last_path.is_empty() {
            Ok(())
        } else {
            Err(DrawError::Surplus)
        };
    }
    verify_leaf(&leaf.digest, leaf.len, LeafUnit::Chunk, last, &proof.last, &proof.last_path)
        .map_err(|source| DrawError::Last { source })
}

/// Why the proof of a draw is wrong. Always the fault of the node that signed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DrawError {
    /// The leaf is none of the inventory's.
    #[error("inventory: {source}")]
    Leaf {
        /// How.
        source: LeafError,
    },
    /// The leaf is another than the one drawn.
    #[error("the leaf shown does not hold the byte of draw {draw}")]
    Position {
        /// The draw.
        draw: u32,
    },
    /// The drawn chunk does not belong to the block.
    #[error("chunk: {source}")]
    Chunk {
        /// How.
        source: VerifyError,
    },
    /// The last chunk does not: the block has another length than claimed.
    #[error("length: {source}")]
    Last {
        /// How.
        source: VerifyError,
    },
    /// The last chunk stands there twice.
    #[error("the drawn chunk is the last one and was sent twice")]
    Surplus,
}

impl DrawError {
    /// Never at the same node.
    pub const fn is_retryable(&self) -> bool {
        false
    }
}
