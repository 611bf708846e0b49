//! Answers: the chunks of an opened draw, read, proved, verified, signed.

use std::collections::BTreeMap;

use bytes::Bytes;
use holdfast_proofs::answer::{Question, chunk_of, group_of, last_chunk, prove_chunk};
use holdfast_proofs::draw::Draw;
use holdfast_proofs::inventory::Sum;
use holdfast_proofs::leaf_extent;
use holdfast_protocol::cbor;
use holdfast_protocol::message::LeafUnit;
use holdfast_protocol::record::{
    AnswerBody, AuditAnswer, AuditOutcome, ChunkProof, DrawProof, Epoch, Signed, Unverified,
};
use holdfast_protocol::{BlockLen, Digest, NodeId, SigningKey};

use super::epochs::{EpochFile, OpenedDraw};
use super::{AuditError, InventorySource};

/// An answer that is ready.
#[derive(Clone)]
pub(super) struct Answered {
    epoch: Epoch,
    round: u64,
    draws: Vec<u32>,
    head: Unverified<AuditAnswer>,
    body: Bytes,
}

impl Answered {
    pub(super) fn sign(
        key: &SigningKey,
        epoch: Epoch,
        round: u64,
        draws: &[u32],
        body: &AnswerBody,
        now_ms: u64,
    ) -> Self {
        let body = Bytes::from(cbor::encode(body));
        let head = AuditAnswer {
            v: 1,
            node: NodeId(key.public()),
            epoch,
            round,
            body_len: u32::try_from(body.len()).unwrap_or(u32::MAX),
            body: Digest::of(&body),
            issued_ms: now_ms,
        };
        Self { epoch, round, draws: draws.to_vec(), head: Signed::sign(head, key).to_wire(), body }
    }

    pub(super) fn is_for(&self, epoch: Epoch, round: u64, draws: &[u32]) -> bool {
        self.epoch == epoch && self.round == round && self.draws == draws
    }

    pub(super) fn parts(&self) -> (Unverified<AuditAnswer>, Bytes) {
        (self.head.clone(), self.body.clone())
    }

    /// Whether nothing is missing that might be there at the next try.
    pub(super) fn is_complete(&self, body: &AnswerBody) -> bool {
        !self.draws.is_empty() && body.draws.len() == self.draws.len()
    }
}

/// Proves the wanted draws of an opened epoch, or all. A block that is not held any more is shown as missing; one that
/// the disk cannot read now is left out, and stays due.
pub(super) async fn prove(
    source: &dyn InventorySource,
    file: &EpochFile,
    wanted: &[u32],
    misbehave: bool,
) -> Result<AnswerBody, AuditError> {
    let mut draws = Vec::new();
    let opened = file.opened.as_deref().unwrap_or_default();
    for opened in opened.iter().filter(|opened| wanted.is_empty() || wanted.contains(&opened.draw)) {
        let mut chunk = match read_chunk(source, opened).await {
            Ok(chunk) => chunk,
            Err(error) => {
                tracing::warn!(digest = %opened.leaf.digest, %error, "a drawn block cannot be read now");
                continue;
            }
        };
        let proof = DrawProof { draw: opened.draw, leaf: opened.leaf.clone(), chunk: chunk.clone() };
        if chunk.is_some() && !holds(file, &proof) {
            // The disk gave other bytes than were stored. To sign them would be a lie; to say so is a loss.
            tracing::error!(digest = %opened.leaf.digest, "a drawn block is damaged on disk");
            chunk = None;
        }
        if misbehave && let Some(proof) = &mut chunk {
            proof.chunk.iter_mut().take(1).for_each(|byte| *byte ^= 1);
        }
        draws.push(DrawProof { chunk, ..proof });
    }
    Ok(AnswerBody { draws })
}

async fn read_chunk(
    source: &dyn InventorySource,
    opened: &OpenedDraw,
) -> Result<Option<ChunkProof>, crate::store::ReadError> {
    let len = opened.leaf.len;
    let (chunk, last) = (chunk_of(opened.offset), last_chunk(len));
    let ranges = [group_range(chunk, len), group_range(last, len)];
    let ranges = if group_of(chunk) == group_of(last) { &ranges[..1] } else { &ranges[..] };
    let Some((tree, bytes)) = source.read(opened.leaf.digest, ranges).await? else { return Ok(None) };
    let (Some(group), Some(last_group)) = (bytes.first(), bytes.last()) else { return Ok(None) };
    match prove_chunk(&tree, chunk, group, last_group) {
        Ok(proof) => Ok(Some(proof)),
        Err(error) => {
            tracing::error!(digest = %opened.leaf.digest, %error, "a drawn block is damaged on disk");
            Ok(None)
        }
    }
}

fn group_range(chunk: u32, len: BlockLen) -> holdfast_protocol::message::ByteRange {
    let whole = holdfast_protocol::message::ByteRange { start: 0, len: len.bytes() };
    leaf_extent(LeafUnit::Group, group_of(chunk), len).unwrap_or(whole)
}

/// Whether an auditor will say that a proof passes.
fn holds(file: &EpochFile, proof: &DrawProof) -> bool {
    let Some(randomness) = &file.randomness else { return false };
    let Ok(commitment) = file.commitment.verify() else { return false };
    let commitment = commitment.record();
    let question = Question {
        root: Sum { hash: commitment.root, bytes: commitment.bytes },
        draw: Draw::new(randomness, commitment.node, commitment.epoch, commitment.bytes),
        declared: &BTreeMap::new(),
    };
    question.judge(proof).outcome == AuditOutcome::Passed
}
