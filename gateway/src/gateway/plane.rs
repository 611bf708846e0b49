//! The seam between S3 and the network: blocks go out, stripes come back; ranges go out, verified bytes come back.
//!
//! The S3 side is written against this trait, so that its rules can be tested over a map in memory.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use holdfast_protocol::message::ByteRange;
use holdfast_protocol::record::{Policy, ScopeId, Stripe};
use holdfast_retrieval::block::BlockRef;
use holdfast_retrieval::fetch::FetchError;
use holdfast_retrieval::write::WriteError;

/// Where blocks are put and read.
pub(crate) trait Plane: Send + Sync + 'static {
    /// Whether a write can succeed now, before its body is asked for.
    fn writable(&self, policy: &Policy) -> Result<(), NotWritable>;

    /// Starts an object or part of `size` bytes whose blocks have this scope.
    fn begin(&self, policy: Policy, scope: Option<ScopeId>, size: u64) -> Box<dyn PlaneWriter>;

    /// The ranges in order, verified, one item each.
    fn read(&self, wanted: Vec<(BlockRef, ByteRange)>) -> BoxStream<'static, Result<Bytes, FetchError>>;
}

/// One object or part on its way out. Dropping it gives up: what was written lapses with its leases.
#[async_trait]
pub(crate) trait PlaneWriter: Send {
    /// The next block. Waits while enough is in flight.
    async fn push(&mut self, bytes: Bytes) -> Result<(), WriteError>;

    /// All blocks have enough receipts.
    async fn finish(self: Box<Self>) -> Result<Written, WriteError>;
}

/// What was written, each block durable on enough nodes.
#[derive(Debug, Default)]
pub(crate) struct Written {
    /// The blocks in order.
    pub(crate) blocks: Vec<BlockRef>,
    /// Every stripe that holds one of them.
    pub(crate) stripes: Vec<Arc<Stripe>>,
}

/// Too few nodes for a write.
#[derive(Debug, Clone, thiserror::Error)]
#[error(
    "policy {policy} needs {needed} nodes that take blocks and only {up} of {known} known ones do; \
     try again, or add nodes"
)]
pub(crate) struct NotWritable {
    /// The policy's name.
    pub(crate) policy: &'static str,
    /// Nodes needed for the write quorum.
    pub(crate) needed: usize,
    /// Nodes that answer and take blocks.
    pub(crate) up: usize,
    /// Nodes known.
    pub(crate) known: usize,
}
