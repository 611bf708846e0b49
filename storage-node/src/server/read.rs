//! ReadBlock: a whole block as it lies on disk, or leaves with their paths.
//!
//! Nothing is hashed here: the reader verifies. Bytes go from the disk's buffer to the transport without a copy.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::try_join_all;
use holdfast_proofs::{GroupTree, ProveError, RangeError, leaf_extent, leaves_of};
use holdfast_protocol::digest::BlockLen;
use holdfast_protocol::limits::{GROUP_LEN, READ_LEAVES_MAX};
use holdfast_protocol::message::{
    ByteRange, LeafPath, LeafUnit, ReadBlock, ReadBlockReply, ReadPart, Refusal, RefusalReason, Reply,
};
use holdfast_protocol::record::PresentedGrant;

use super::budget::Standing;
use super::lie;
use super::link::Link;
use super::permit::{self, Permission};
use super::refusal;
use super::session::{Right, Session};
use super::stream::Answer;
use crate::disks::Disks;
use crate::metric;
use crate::node::Node;
use crate::node::config::Misbehaviour;
use crate::node::limits::READ_DEADLINE_MS;
use crate::store::Located;

/// Where a block's bytes come from.
pub(crate) enum Source<'a> {
    /// The store.
    Store(&'a Disks, &'a Located),
    /// Memory: what a lying node shows instead.
    Memory { bytes: Bytes, tree: Arc<GroupTree> },
}

/// Serves a block or parts of it to whoever may read it. Requests for chunks are what challenges are: they have a rate
/// of their own and are remembered for the operator.
pub(crate) async fn read_block(
    node: &Arc<Node>,
    link: &Link,
    session: &Session,
    request: ReadBlock,
) -> Result<Answer, Refusal> {
    let ReadPart::Leaves { unit: LeafUnit::Chunk, ranges } = &request.part else {
        return answer(node, link, session, request).await;
    };
    let (now_ms, digest, chunks) = (node.now_ms(), request.digest, ranges.len());
    link.challenge(now_ms)?;
    let outcome = answer(node, link, session, request).await;
    let refused = match &outcome {
        Ok(_) => String::new(),
        Err(refusal) => refusal.to_string(),
    };
    // What strangers may not read they may ask all day long; it says nothing about this node.
    let ours = outcome.is_ok() || session.authority(Right::Read, now_ms).is_some();
    if ours {
        node.watch.challenged(now_ms, session.peer, digest, chunks, refused);
    }
    outcome
}

async fn answer(
    node: &Arc<Node>,
    link: &Link,
    session: &Session,
    request: ReadBlock,
) -> Result<Answer, Refusal> {
    let now_ms = node.now_ms();
    let found = node.store.locate(request.digest).await.map_err(|error| refusal::read(&error))?;
    let claims = found.as_ref().map_or(&[][..], |located| &located.claims);
    let owner = |agreement: &_| node.ledger.agreement(agreement).map(|held| held.terms().namespace);
    let verify = |grant: &_| node.grants.verify(grant, session.peer, now_ms);
    let permission = match permit::to_read(session, claims, request.grant.as_deref(), owner, verify, now_ms) {
        Ok(permission) => permission,
        Err(refusal) => return Err(name_loss(node, &request, refusal).await),
    };
    recognise_reader(node, link, session, request.grant.as_deref(), now_ms);
    let located =
        found.ok_or_else(|| refusal::internal("a block without claims was permitted", &request.digest))?;
    node.deny.block(&request.digest)?;
    let plan = Plan::new(&request.part, located.len)?;
    if let Permission::Grant(grant) = &permission {
        node.grants.charge(grant, u64::from(plan.body_len), now_ms)?;
    }
    node.sending.pass(u64::from(plan.body_len), node.rates().0).await?;
    let memory = link.reserve(node, plan.read_len).await?;
    let lie = node.config.misbehave;
    let source = match lie {
        Some(Misbehaviour::OtherBlock) => lie::another_block(&request.digest, located.len),
        _ => Source::Store(&node.store, &located),
    };
    let fetched = tokio::time::timeout(Duration::from_millis(READ_DEADLINE_MS), plan.fetch(&source)).await;
    let (paths, body) = fetched
        .map_err(|_| Refusal::new(RefusalReason::Busy, "the disk did not answer in time"))
        .and_then(|fetched| fetched)?;
    let part = if matches!(request.part, ReadPart::Whole) { "whole" } else { "leaves" };
    metrics::counter!(metric::SERVED_BYTES, "part" => part).increment(u64::from(plan.body_len));
    node.watch.served(u64::from(plan.body_len));
    let reply = Reply::ReadBlock(ReadBlockReply { body_len: plan.body_len, paths });
    Ok(Answer { reply, body, memory: Some(memory), lie })
}

/// A grant of somebody who pays here, also one that this block did not need, makes a stranger a reader.
fn recognise_reader(
    node: &Node,
    link: &Link,
    session: &Session,
    grant: Option<&PresentedGrant>,
    now_ms: u64,
) {
    let Some(presented) = grant.filter(|_| link.standing() == Standing::Stranger) else { return };
    let Ok(grant) = node.grants.verify(presented, session.peer, now_ms) else { return };
    if grant.ops.read && node.ledger.current(grant.namespace, now_ms).is_some() {
        link.promote_reader(node);
    }
}

/// To those who would learn that the block is not here, a known loss is named as such.
async fn name_loss(node: &Node, request: &ReadBlock, refusal: Refusal) -> Refusal {
    if refusal.reason != RefusalReason::NotFound {
        return refusal;
    }
    match node.store.is_lost(request.digest).await {
        Ok(true) => Refusal::new(RefusalReason::Lost, "the node has lost this block and says so"),
        Ok(false) | Err(_) => refusal,
    }
}

/// What to read and what to send: decided before anything is read.
#[derive(Debug)]
struct Plan {
    pieces: Vec<Piece>,
    /// Bytes to send.
    body_len: u32,
    /// Bytes to hold in memory for that: chunks are proved from whole groups.
    read_len: u32,
}

/// One range of the request.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Whole { len: u32 },
    Groups { leaves: std::ops::Range<u32>, extent: ByteRange },
    Chunks { leaves: std::ops::Range<u32>, groups: ByteRange },
}

impl Plan {
    fn new(part: &ReadPart, len: BlockLen) -> Result<Self, Refusal> {
        let (unit, ranges) = match part {
            ReadPart::Whole => {
                let len = len.bytes();
                return Ok(Self { pieces: vec![Piece::Whole { len }], body_len: len, read_len: len });
            }
            ReadPart::Leaves { unit, ranges } => (*unit, ranges),
        };
        let mut plan = Self { pieces: Vec::with_capacity(ranges.len()), body_len: 0, read_len: 0 };
        let mut count = 0usize;
        for range in ranges {
            let leaves = leaves_of(unit, *range, len).map_err(|error| refuse_range(&error))?;
            count += leaves.len();
            let extent = span(unit, &leaves, len)?;
            plan.body_len = plan.body_len.saturating_add(extent.len);
            let piece = match unit {
                LeafUnit::Group => Piece::Groups { leaves, extent },
                LeafUnit::Chunk => {
                    let groups =
                        leaves_of(LeafUnit::Group, extent, len).map_err(|error| refuse_range(&error))?;
                    Piece::Chunks { leaves, groups: span(LeafUnit::Group, &groups, len)? }
                }
            };
            plan.read_len = plan.read_len.saturating_add(piece.read_len());
            plan.pieces.push(piece);
        }
        if count > READ_LEAVES_MAX {
            return Err(Refusal::new(RefusalReason::TooLarge, "more leaves than one answer may prove"));
        }
        Ok(plan)
    }

    async fn fetch(&self, source: &Source<'_>) -> Result<(Vec<LeafPath>, Vec<Bytes>), Refusal> {
        let pieces = try_join_all(self.pieces.iter().map(|piece| piece.fetch(source))).await?;
        let mut paths = Vec::new();
        let mut body = Vec::with_capacity(pieces.len());
        for (mut some, bytes) in pieces {
            paths.append(&mut some);
            body.push(bytes);
        }
        Ok((paths, body))
    }
}

impl Piece {
    fn read_len(&self) -> u32 {
        match self {
            Self::Whole { len } => *len,
            Self::Groups { extent, .. } => extent.len,
            Self::Chunks { groups, .. } => groups.len,
        }
    }

    async fn fetch(&self, source: &Source<'_>) -> Result<(Vec<LeafPath>, Bytes), Refusal> {
        match self {
            Self::Whole { len } => {
                let bytes = source.read(ByteRange { start: 0, len: *len }).await?;
                Ok((Vec::new(), bytes))
            }
            Self::Groups { leaves, extent } => {
                let (tree, bytes) = futures::try_join!(source.tree(), source.read(*extent))?;
                let paths = tree.group_paths(leaves.clone()).map_err(|error| refuse_proof(&error))?;
                Ok((paths, bytes))
            }
            Self::Chunks { leaves, groups } => {
                let (tree, bytes) = futures::try_join!(source.tree(), source.read(*groups))?;
                chunks(&tree, &bytes, leaves, *groups)
            }
        }
    }
}

/// The paths and bytes of consecutive chunks, given the whole groups that hold them.
fn chunks(
    tree: &GroupTree,
    bytes: &Bytes,
    leaves: &std::ops::Range<u32>,
    groups: ByteRange,
) -> Result<(Vec<LeafPath>, Bytes), Refusal> {
    let mut paths = Vec::with_capacity(leaves.len());
    for chunk in leaves.clone() {
        let group_start = (chunk * LeafUnit::Chunk.len() / GROUP_LEN * GROUP_LEN - groups.start) as usize;
        let group_end = bytes.len().min(group_start + GROUP_LEN as usize);
        let path =
            tree.chunk_path(chunk, &bytes[group_start..group_end]).map_err(|error| refuse_proof(&error))?;
        paths.push(path);
    }
    let extent = span(LeafUnit::Chunk, leaves, tree.len())?;
    let start = (extent.start - groups.start) as usize;
    Ok((paths, bytes.slice(start..start + extent.len as usize)))
}

/// The bytes of consecutive leaves.
fn span(unit: LeafUnit, leaves: &std::ops::Range<u32>, len: BlockLen) -> Result<ByteRange, Refusal> {
    let first = leaf_extent(unit, leaves.start, len);
    let last = leaves.end.checked_sub(1).and_then(|last| leaf_extent(unit, last, len));
    match (first, last) {
        (Some(first), Some(last)) if first.start <= last.start => {
            Ok(ByteRange { start: first.start, len: last.end() - first.start })
        }
        _ => Err(Refusal::new(RefusalReason::Range, "the range lies outside the block")),
    }
}

impl Source<'_> {
    async fn read(&self, range: ByteRange) -> Result<Bytes, Refusal> {
        match self {
            Self::Store(store, located) => {
                store.read(located, range).await.map_err(|error| refusal::read(&error))
            }
            Self::Memory { bytes, .. } => Ok(bytes.slice(range.start as usize..range.end() as usize)),
        }
    }

    async fn tree(&self) -> Result<Arc<GroupTree>, Refusal> {
        match self {
            Self::Store(store, located) => store.tree(located).await.map_err(|error| refusal::read(&error)),
            Self::Memory { tree, .. } => Ok(tree.clone()),
        }
    }
}

fn refuse_range(error: &RangeError) -> Refusal {
    Refusal::new(RefusalReason::Range, error.to_string())
}

/// The tree was made from the bytes that were put: if they disagree now, the disk has changed them.
fn refuse_proof(error: &ProveError) -> Refusal {
    tracing::error!(%error, "a block does not fit its own tree");
    Refusal::new(RefusalReason::DiskFailed, "the node's copy of the block is damaged")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(unit: LeafUnit, ranges: &[(u32, u32)], len: u32) -> Result<Plan, RefusalReason> {
        let ranges = ranges.iter().map(|(start, len)| ByteRange { start: *start, len: *len }).collect();
        Plan::new(&ReadPart::Leaves { unit, ranges }, BlockLen::new(len).unwrap())
            .map_err(|refusal| refusal.reason)
    }

    #[test]
    fn ranges_widen_to_leaves_and_the_last_one_is_short() {
        let groups = plan(LeafUnit::Group, &[(100, 1), (16_384, 20_000)], 40_000).unwrap();
        assert_eq!(groups.body_len, 40_000);
        let last = plan(LeafUnit::Group, &[(39_999, 1)], 40_000).unwrap();
        assert_eq!(last.body_len, 40_000 - 2 * 16_384);
    }

    #[test]
    fn chunks_hold_their_whole_groups_in_memory() {
        let chunks = plan(LeafUnit::Chunk, &[(0, 1), (17_000, 3_000)], 40_000).unwrap();
        assert_eq!(chunks.body_len, 1024 + 4 * 1024);
        assert_eq!(chunks.read_len, 2 * 16_384);
    }

    #[test]
    fn ranges_outside_are_refused() {
        assert_eq!(plan(LeafUnit::Group, &[(39_999, 2)], 40_000).unwrap_err(), RefusalReason::Range);
        assert_eq!(plan(LeafUnit::Chunk, &[(u32::MAX, 1)], 40_000).unwrap_err(), RefusalReason::Range);
    }
}
