//! The network as the S3 side's [`Plane`]: stripes through commit groups, reads through the verifying fetcher.

use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use holdfast_protocol::message::ByteRange;
use holdfast_protocol::record::{Policy, PolicyName, ScopeId};
use holdfast_retrieval::block::BlockRef;
use holdfast_retrieval::fetch::{FetchError, Fetcher};
use holdfast_retrieval::pool::NodePool;
use holdfast_retrieval::surprise::ShapeRecorder;
use holdfast_retrieval::write::{CommitGroups, ObjectOptions, ObjectWriter, WriteBudget, WriteError};

use super::plane::{NotWritable, Plane, PlaneWriter, Written};

/// Blocks on nodes.
pub(crate) struct NetworkPlane {
    pub(crate) pool: Arc<NodePool>,
    pub(crate) groups: CommitGroups,
    pub(crate) budget: WriteBudget,
    pub(crate) in_flight_bytes: u32,
    pub(crate) fetcher: Fetcher,
    /// Remembers how readers read, for surprise audits to be like them.
    pub(crate) shapes: Arc<ShapeRecorder>,
    pub(crate) started: Instant,
}

impl Plane for NetworkPlane {
    fn writable(&self, policy: &Policy) -> Result<(), NotWritable> {
        let views = self.pool.nodes();
        let takes_blocks = |view: &&holdfast_retrieval::pool::NodeView| {
            view.known.agreement.is_some() && view.known.accepts_writes && !view.state.is_down()
        };
        let up = views.iter().filter(takes_blocks).count();
        if up >= policy.w {
            return Ok(());
        }
        Err(NotWritable { policy: name(policy.name), needed: policy.w, up, known: views.len() })
    }

    fn begin(&self, policy: Policy, scope: Option<ScopeId>, _size: u64) -> Box<dyn PlaneWriter> {
        let mut options = ObjectOptions::new(policy, scope);
        options.in_flight_bytes = self.in_flight_bytes;
        Box::new(NetworkWriter(ObjectWriter::new(self.groups.clone(), self.budget.clone(), options)))
    }

    fn read(&self, wanted: Vec<(BlockRef, ByteRange)>) -> BoxStream<'static, Result<Bytes, FetchError>> {
        if let Some((_, first)) = wanted.first() {
            let len = wanted.iter().map(|(_, range)| u64::from(range.len)).sum();
            let now_ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
            self.shapes.record(first.start, len, now_ms);
        }
        if let [(block, range)] = wanted[..] {
            // One piece needs no task of its own.
            let fetcher = self.fetcher.clone();
            return futures::stream::once(async move { fetcher.range(block, range).await }).boxed();
        }
        self.fetcher.stream(wanted).boxed()
    }
}

fn name(policy: PolicyName) -> &'static str {
    match policy {
        PolicyName::Local => "local",
        PolicyName::Small => "small",
        PolicyName::Standard => "standard",
        PolicyName::Journal => "journal",
    }
}

struct NetworkWriter(ObjectWriter);

#[async_trait]
impl PlaneWriter for NetworkWriter {
    async fn push(&mut self, bytes: Bytes) -> Result<(), WriteError> {
        self.0.push(bytes).await.map(drop)
    }

    async fn finish(self: Box<Self>) -> Result<Written, WriteError> {
        let object = self.0.finish().await?;
        let stripes = object.stripes.iter().map(|written| Arc::new(written.stripe.clone())).collect();
        Ok(Written { blocks: object.blocks, stripes })
    }
}
