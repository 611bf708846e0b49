//! A backend whose bytes come straight from the nodes, verified here; everything else goes through the gateway.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, stream};
use holdfast_protocol::Digest;
use holdfast_retrieval::direct::DirectObject;
use holdfast_retrieval::mount::{Backend, BackendError, ByteStream, ListPage, ListRequest, Stat, WriteIf};
use holdfast_retrieval::object::ObjectSource;
use parking_lot::Mutex;

use super::gateway::GatewayBackend;
use crate::direct::Direct;

/// Objects kept open: each holds the pages of its blocks that were read, about 40 bytes a block.
const OPEN_MAX: usize = 1024;
/// Blocks of one read under way at once, beside those of other reads.
const BLOCKS_AT_ONCE: usize = 4;
/// Objects that are being opened are told apart by so many locks.
const OPENERS: usize = 64;

/// Reads from the nodes, writes through the gateway.
pub(super) struct DirectBackend {
    gateway: Arc<GatewayBackend>,
    direct: Arc<Direct>,
    bucket: String,
    /// The latest used lies last.
    open: Mutex<VecDeque<Opened>>,
    /// Held while an object is opened, so that its first readers ask for one ticket.
    opening: [tokio::sync::Mutex<()>; OPENERS],
}

/// A version of an object, open.
struct Opened {
    key: String,
    etag: String,
    object: Arc<DirectObject>,
}

impl DirectBackend {
    pub(super) fn new(gateway: Arc<GatewayBackend>, direct: Arc<Direct>, bucket: &str) -> Self {
        let opening = std::array::from_fn(|_| tokio::sync::Mutex::new(()));
        Self { gateway, direct, bucket: bucket.to_owned(), open: Mutex::default(), opening }
    }

    fn find(&self, key: &str, etag: &str) -> Option<Arc<DirectObject>> {
        let mut open = self.open.lock();
        let at = open.iter().rposition(|opened| opened.key == key && opened.etag == etag)?;
        let opened = open.remove(at)?;
        let object = Arc::clone(&opened.object);
        open.push_back(opened);
        Some(object)
    }

    /// Opens the version `etag`: the blocks that the ticket lists must make the root CID that HEAD names with it.
    async fn object(&self, key: &str, etag: &str) -> Result<Arc<DirectObject>, BackendError> {
        if let Some(object) = self.find(key, etag) {
            return Ok(object);
        }
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        let opener = usize::try_from(hasher.finish() % OPENERS as u64).unwrap_or(0);
        let _opening = self.opening[opener].lock().await;
        if let Some(object) = self.find(key, etag) {
            return Ok(object);
        }
        let changed = || BackendError::Changed { key: key.to_owned() };
        let stat = self.stat_open(key).await?;
        let opened = self.direct.open(&self.bucket, key).await;
        let (object, root) = opened.map_err(|error| BackendError::Busy { why: format!("{error:#}") })?;
        if &*stat.etag != etag || stat.cid.as_deref() != Some(root.as_str()) {
            return Err(changed());
        }
        let mut open = self.open.lock();
        if open.len() >= OPEN_MAX {
            open.pop_front();
        }
        open.push_back(Opened { key: key.to_owned(), etag: etag.to_owned(), object: Arc::clone(&object) });
        Ok(object)
    }

    /// What is at the key of an open file; ESTALE when nothing is.
    async fn stat_open(&self, key: &str) -> Result<Stat, BackendError> {
        match self.gateway.stat(key).await {
            Err(BackendError::NotFound { key }) => Err(BackendError::Changed { key }),
            stat => stat,
        }
    }

    /// The blocks of an object, in order.
    pub(super) async fn blocks(&self, key: &str) -> Result<Vec<Digest>, BackendError> {
        let stat = self.gateway.stat(key).await?;
        let object = self.object(key, &stat.etag).await?;
        let blocks = object.blocks(0..object.size()).await;
        let blocks = blocks.map_err(|error| BackendError::Busy { why: error.to_string() })?;
        Ok(blocks.into_iter().map(|block| block.digest).collect())
    }
}

/// `range` cut where blocks end, so that each piece is handed on as it came.
fn pieces(object: &DirectObject, range: Range<u64>) -> Vec<Range<u64>> {
    let (mut at, mut pieces) = (range.start, Vec::new());
    while at < range.end {
        let end = object.unit(at).end.clamp(at + 1, range.end);
        pieces.push(at..end);
        at = end;
    }
    pieces
}

/// Exactly `range`, which lies in one block. With a cache the whole block is fetched when it is not there yet: what a
/// run reads of it later, or in its next epoch, then comes from the cache, and the nodes are asked once.
async fn piece(
    object: Arc<DirectObject>,
    direct: Arc<Direct>,
    range: Range<u64>,
) -> Result<Bytes, BackendError> {
    // Nothing unverified is ever handed on: what cannot be read now is tried again, and then EIO.
    let failed = |error: &dyn std::error::Error| BackendError::Busy { why: error.to_string() };
    let whole = object.unit(range.start);
    let is_part = range.start > whole.start || range.end < whole.end;
    if let Some(cache) = direct.cache().filter(|_| is_part && range.end <= whole.end) {
        let blocks = object.blocks(range.clone()).await.map_err(|error| failed(&error))?;
        if blocks.iter().any(|block| !cache.holds(&block.digest)) {
            let bytes = object.read(whole.clone()).await.map_err(|error| failed(&error))?;
            let at = |offset: u64| usize::try_from(offset - whole.start).unwrap_or(usize::MAX);
            if at(range.end) <= bytes.len() {
                return Ok(bytes.slice(at(range.start)..at(range.end)));
            }
        }
    }
    object.read(range).await.map_err(|error| failed(&error))
}

#[async_trait]
impl Backend for DirectBackend {
    async fn stat(&self, key: &str) -> Result<Stat, BackendError> {
        self.gateway.stat(key).await
    }

    async fn list(&self, request: ListRequest<'_>) -> Result<ListPage, BackendError> {
        self.gateway.list(request).await
    }

    async fn read(&self, key: &str, etag: &str, range: Range<u64>) -> Result<ByteStream, BackendError> {
        let object = self.object(key, etag).await?;
        let direct = Arc::clone(&self.direct);
        let pieces = stream::iter(pieces(&object, range))
            .map(move |range| piece(Arc::clone(&object), Arc::clone(&direct), range))
            .buffered(BLOCKS_AT_ONCE);
        Ok(pieces.boxed())
    }

    async fn put(&self, key: &str, bytes: Bytes, condition: WriteIf) -> Result<Stat, BackendError> {
        self.gateway.put(key, bytes, condition).await
    }

    async fn create_upload(&self, key: &str) -> Result<String, BackendError> {
        self.gateway.create_upload(key).await
    }

    async fn put_part(
        &self,
        key: &str,
        upload: &str,
        number: u16,
        bytes: Bytes,
    ) -> Result<String, BackendError> {
        self.gateway.put_part(key, upload, number, bytes).await
    }

    async fn complete_upload(
        &self,
        key: &str,
        upload: &str,
        tags: &[String],
        condition: WriteIf,
    ) -> Result<Stat, BackendError> {
        self.gateway.complete_upload(key, upload, tags, condition).await
    }

    async fn abort_upload(&self, key: &str, upload: &str) -> Result<(), BackendError> {
        self.gateway.abort_upload(key, upload).await
    }

    async fn delete(&self, key: &str) -> Result<(), BackendError> {
        self.gateway.delete(key).await
    }

    async fn rename(&self, from: &str, to: &str, condition: WriteIf) -> Result<(), BackendError> {
        self.gateway.rename(from, to, condition).await
    }
}
