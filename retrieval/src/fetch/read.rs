//! The one verified-read primitive: ask one node for a block or for leaves of it, and let nothing through
//! that its digest does not prove.
//!
//! Fetching, repairing and challenging all read through here. What a node answered is judged in one place
//! ([`ReadFault`]) and reported to the pool in one place, so that whoever lies is named whichever part met
//! the lie first. Digest and length always come from the caller's trusted record.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use holdfast_proofs::{VerifiedLeaves, verify_reply, verify_whole};
use holdfast_protocol::framing::FrameError;
use holdfast_protocol::message::{ByteRange, LeafUnit, RefusalReason};
use holdfast_protocol::record::PresentedGrant;
use holdfast_protocol::rpc::{CallError, Peer};
use holdfast_protocol::{Digest, NodeId};
use parking_lot::RwLock;
use tokio::time::Instant;

use super::ReadFault;
use crate::block::BlockRef;
use crate::pool::{NodePool, Outcome};

/// A request may take this many times what its node's rate lets expect.
const TIMES_EXPECTED: u32 = 4;
/// But never more than this many times the usual deadline.
const TIMEOUTS_MAX: u32 = 6;

/// Bytes that were checked against a digest: of a whole block, or of a range of it by proofs. Can only be
/// made in this module and by a rebuild whose whole block hashes to its digest.
#[derive(Clone, Debug)]
pub struct VerifiedBytes(Bytes);

impl VerifiedBytes {
    /// Checks that `bytes` are the whole block.
    pub(crate) fn whole(block: BlockRef, bytes: Bytes) -> Result<Self, String> {
        verify_whole(&block.digest, block.len, &bytes).map_err(|error| error.to_string())?;
        Ok(Self(bytes))
    }

    /// A part of bytes that are verified is verified.
    pub(crate) fn slice(&self, range: ByteRange) -> Self {
        let end = (range.end() as usize).min(self.0.len());
        Self(self.0.slice((range.start as usize).min(end)..end))
    }

    /// The bytes.
    pub fn into_bytes(self) -> Bytes {
        self.0
    }

    /// How many bytes.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none; never for a block.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The grant that a reader presents when its caller names none. Replaced before it ends.
#[derive(Default)]
pub struct GrantHolder(RwLock<Option<Arc<PresentedGrant>>>);

impl GrantHolder {
    /// Presents this grant from now on.
    pub fn set(&self, grant: PresentedGrant) {
        *self.0.write() = Some(Arc::new(grant));
    }

    fn presented(&self) -> Option<Box<PresentedGrant>> {
        self.0.read().as_ref().map(|grant| Box::new(PresentedGrant::clone(grant)))
    }
}

/// Reads from nodes of a pool and verifies.
#[derive(Clone)]
pub struct VerifiedReader {
    pool: Arc<NodePool>,
    timeout: Duration,
    /// Whether the pool hears of what a node does not hold, or holds wrongly.
    tells: bool,
    grants: Option<Arc<GrantHolder>>,
}

impl VerifiedReader {
    /// A reader that gives each request at most `timeout`, dialling included.
    pub fn new(pool: Arc<NodePool>, timeout: Duration) -> Self {
        Self { pool, timeout, tells: true, grants: None }
    }

    /// A reader that does not tell the pool about blocks that are gone: for whoever looks into such a report.
    pub fn silent(pool: Arc<NodePool>, timeout: Duration) -> Self {
        Self { pool, timeout, tells: false, grants: None }
    }

    /// The same reader, presenting what `grants` holds where a call names no grant of its own.
    pub fn with_grants(mut self, grants: Option<Arc<GrantHolder>>) -> Self {
        self.grants = grants;
        self
    }

    fn grant(&self, named: Option<Box<PresentedGrant>>) -> Option<Box<PresentedGrant>> {
        named.or_else(|| self.grants.as_ref()?.presented())
    }

    /// The pool that it reads from.
    pub fn pool(&self) -> &Arc<NodePool> {
        &self.pool
    }

    /// The whole block from `node`, hashed.
    ///
    /// # Cancel safety
    /// Cancel safe: the stream is dropped, the node stops sending.
    pub async fn whole(
        &self,
        node: NodeId,
        block: BlockRef,
        grant: Option<Box<PresentedGrant>>,
    ) -> Result<VerifiedBytes, ReadFault> {
        let grant = self.grant(grant);
        let attempt = |peer: Peer| async move {
            let bytes = peer.read_whole(block.digest, block.len, grant).await.map_err(fault_of)?;
            VerifiedBytes::whole(block, bytes).map_err(|what| ReadFault::Lied { what })
        };
        self.judged((node, block.digest, block.len.as_usize()), attempt, VerifiedBytes::len).await
    }

    /// Leaves that cover `ranges` (ascending, no leaf twice) from `node`, each proved by its path.
    ///
    /// # Cancel safety
    /// Cancel safe, as [`VerifiedReader::whole`].
    pub async fn leaves(
        &self,
        node: NodeId,
        block: BlockRef,
        unit: LeafUnit,
        ranges: &[ByteRange],
        grant: Option<Box<PresentedGrant>>,
    ) -> Result<VerifiedLeaves, ReadFault> {
        let BlockRef { digest, len } = block;
        let grant = self.grant(grant);
        let attempt = |peer: Peer| async move {
            let (reply, body) =
                peer.read_leaves(digest, len, unit, ranges.to_vec(), grant).await.map_err(fault_of)?;
            verify_reply(&digest, len, unit, ranges, &reply.paths, body)
                .map_err(|error| ReadFault::Lied { what: error.to_string() })
        };
        let size = |leaves: &VerifiedLeaves| leaves.ranges().map(|range| range.len()).sum();
        let asked = ranges.iter().map(|range| range.len as usize).sum();
        self.judged((node, digest, asked), attempt, size).await
    }

    /// Bytes `range` of the block from `node`: the whole block when [`reads_whole`] says so, else groups.
    ///
    /// # Cancel safety
    /// Cancel safe, as [`VerifiedReader::whole`].
    pub async fn range(
        &self,
        node: NodeId,
        block: BlockRef,
        range: ByteRange,
    ) -> Result<VerifiedBytes, ReadFault> {
        if reads_whole(block, range) {
            return Ok(self.whole(node, block, None).await?.slice(range));
        }
        let leaves = self.leaves(node, block, LeafUnit::Group, &[range], None).await?;
        Ok(VerifiedBytes(leaves.range(0)))
    }

    /// Connects, asks for `bytes` under the deadline, and tells the pool how it went.
    async fn judged<T, F: Future<Output = Result<T, ReadFault>>>(
        &self,
        (node, digest, bytes): (NodeId, Digest, usize),
        attempt: impl FnOnce(Peer) -> F,
        size: impl FnOnce(&T) -> usize,
    ) -> Result<T, ReadFault> {
        let started = Instant::now();
        let timeout = self.timeout_for(node, bytes);
        let mut under_way = self.pool.under_way(node, bytes);
        let asked = async {
            let peer = self
                .pool
                .peer(node)
                .await
                .map_err(|error| ReadFault::Offline { detail: in_words(&error) })?;
            attempt(peer).await
        };
        let outcome = tokio::time::timeout(timeout, asked).await.unwrap_or_else(|_| {
            Err(ReadFault::Timeout { after_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX) })
        });
        match &outcome {
            Ok(value) => {
                let bytes = size(value);
                under_way.delivered(bytes);
                self.pool.report(node, Outcome::Ok { latency: started.elapsed(), bytes });
            }
            // The pool itself knows that it could not connect.
            Err(ReadFault::Offline { .. }) => {}
            Err(ReadFault::Lied { .. } | ReadFault::Absent(_)) if !self.tells => {}
            Err(ReadFault::Lied { what }) => {
                self.pool.report(node, Outcome::Lied { what: what.clone(), digest: Some(digest) });
            }
            Err(ReadFault::Absent(_)) => self.pool.report(node, Outcome::Absent { digest }),
            Err(ReadFault::Refused(_)) => {}
            Err(ReadFault::Timeout { .. } | ReadFault::Broken { .. }) => {
                self.pool.report(node, Outcome::Failed);
            }
        }
        outcome
    }
}

impl VerifiedReader {
    /// The deadline of one request: the usual one, or on a slow line several times what everything that is under way
    /// from the node will take. Else a reader of much over a line of 1 MB/s would take each node for dead.
    pub(super) fn timeout_for(&self, node: NodeId, bytes: usize) -> Duration {
        let expected = self.pool.expects(node, bytes).unwrap_or_default();
        self.timeout
            .max(expected.saturating_mul(TIMES_EXPECTED))
            .min(self.timeout.saturating_mul(TIMEOUTS_MAX))
    }
}

/// Whether a range is read as the whole block, which is then hashed, instead of as groups with paths.
///
/// Per 16 KiB group, over QUIC at 0.8 CPU-s/GiB: moving it costs 13 µs at both ends, hashing it within a
/// whole block 1.8 µs, verifying it alone with its path 5 µs. A whole block of 64 groups is therefore as
/// dear as 52 groups by proof over QUIC, and as 23 through memory, where moving is free. Half lies between;
/// a block of one group is its own proof.
pub fn reads_whole(block: BlockRef, range: ByteRange) -> bool {
    let unit = LeafUnit::Group.len();
    let first = range.start / unit;
    let last = range.end().saturating_sub(1) / unit;
    let widened = (last.saturating_sub(first) + 1).saturating_mul(unit);
    block.len.bytes() <= unit || widened.saturating_mul(2) > block.len.bytes()
}

/// What a failed call says about the node.
///
/// An answer that ends properly before its announced bytes counts as a wrong one: a connection that breaks
/// shows as a reset, and only the node itself can end its stream.
fn fault_of(error: CallError) -> ReadFault {
    let lied = error.is_peer_fault()
        || matches!(&error, CallError::Frame { source: FrameError::Truncated { .. }, .. });
    match error {
        CallError::Refused(refusal)
            if matches!(refusal.reason, RefusalReason::NotFound | RefusalReason::Lost) =>
        {
            ReadFault::Absent(refusal)
        }
        CallError::Refused(refusal) => ReadFault::Refused(refusal),
        error if lied => ReadFault::Lied { what: in_words(&error) },
        error => ReadFault::Broken { detail: in_words(&error) },
    }
}

/// An error with all its sources, in one line.
pub(crate) fn in_words(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        words.push_str(": ");
        words.push_str(&error.to_string());
        source = error.source();
    }
    words
}

#[cfg(test)]
mod tests {
    use holdfast_protocol::BlockLen;

    use super::*;

    fn block(len: u32) -> BlockRef {
        BlockRef { digest: Digest([0; 32]), len: BlockLen::new(len).unwrap() }
    }

    #[test]
    fn small_blocks_and_wide_ranges_are_read_whole() {
        let range = |start, len| ByteRange { start, len };
        assert!(reads_whole(block(16 * 1024), range(0, 1)));
        assert!(!reads_whole(block(64 * 1024), range(0, 1)));
        assert!(!reads_whole(block(1 << 20), range(100, 64 * 1024)));
        assert!(!reads_whole(block(1 << 20), range(0, 512 * 1024)), "half is still read by groups");
        assert!(reads_whole(block(1 << 20), range(1, 512 * 1024)), "one group more than half");
        assert!(reads_whole(block(1 << 20), range(0, 1 << 20)));
    }
}
