//! A backend whose bytes come straight from the nodes, verified here; everything else goes through the gateway.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, stream};
use holdfast_retrieval::direct::DirectObject;
use holdfast_retrieval::mount::{Backend, BackendError, ByteStream, ListPage, ListRequest, Stat, WriteIf};
use holdfast_retrieval::object::ObjectSource;

use super::gateway::GatewayBackend;
use crate::direct::Direct;

/// Objects kept open: each holds the pages of its blocks that were read, about 40 bytes a block.
const OPEN_MAX: usize = 1024;

/// Reads from the nodes, writes through the gateway.
pub(crate) struct DirectBackend {
    gateway: GatewayBackend,
    direct: Arc<Direct>,
    bucket: String,
    open: Mutex<Vec<Opened>>,
}

/// A version of an object, open; the latest used lies last.
struct Opened {
    key: String,
    etag: String,
    object: Arc<DirectObject>,
}

impl DirectBackend {
    pub(crate) fn new(gateway: GatewayBackend, direct: Arc<Direct>, bucket: &str) -> Self {
        Self { gateway, direct, bucket: bucket.to_owned(), open: Mutex::default() }
    }

    fn find(&self, key: &str, etag: &str) -> Option<Arc<DirectObject>> {
        let mut open = self.open.lock().ok()?;
        let at = open.iter().position(|opened| opened.key == key && opened.etag == etag)?;
        let opened = open.remove(at);
        let object = Arc::clone(&opened.object);
        open.push(opened);
        Some(object)
    }

    /// Opens the version `etag`: the blocks that the ticket lists must make the root CID that HEAD names with it.
    async fn object(&self, key: &str, etag: &str) -> Result<Arc<DirectObject>, BackendError> {
        if let Some(object) = self.find(key, etag) {
            return Ok(object);
        }
        let changed = || BackendError::Changed { key: key.to_owned() };
        let stat = match self.gateway.stat(key).await {
            Err(BackendError::NotFound { .. }) => return Err(changed()),
            stat => stat?,
        };
        let opened = self.direct.open(&self.bucket, key).await;
        let (object, root) = opened.map_err(|error| BackendError::Busy { why: format!("{error:#}") })?;
        if &*stat.etag != etag || stat.cid.as_deref() != Some(root.as_str()) {
            return Err(changed());
        }
        if let Ok(mut open) = self.open.lock() {
            if open.len() >= OPEN_MAX {
                open.remove(0);
            }
            let (key, etag, object) = (key.to_owned(), etag.to_owned(), Arc::clone(&object));
            open.push(Opened { key, etag, object });
        }
        Ok(object)
    }
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
        // Nothing unverified is ever handed on: what cannot be read now is tried again, and then EIO.
        let bytes =
            object.read(range).await.map_err(|error| BackendError::Busy { why: error.to_string() })?;
        Ok(stream::iter([Ok(bytes)]).boxed())
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
