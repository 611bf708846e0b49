//! Objects in memory, for tests: it can be cut off, slowed to a standstill, and asked what it was asked.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream;
use parking_lot::Mutex;

use holdfast_retrieval::mount::{
    Backend, BackendError, ByteStream, ListPage, ListRequest, Listed, Stat, WriteIf,
};

/// Bytes of one frame of a body.
const FRAME: usize = 100_000;
/// How long a test waits for what must happen, on a machine that is busy.
const HAPPENS_WITHIN: Duration = Duration::from_secs(60);

#[derive(Debug, Clone)]
struct Object {
    bytes: Bytes,
    stat: Stat,
}

/// A bucket in memory.
#[derive(Debug, Default)]
pub(crate) struct MemoryBackend {
    objects: Mutex<BTreeMap<String, Object>>,
    uploads: Mutex<BTreeMap<String, BTreeMap<u16, Bytes>>>,
    next: AtomicU64,
    /// Calls fail at once, as over a refused connection.
    pub(crate) is_down: AtomicBool,
    /// Calls do not answer while this is set, as over a cut cable.
    is_silent: tokio::sync::watch::Sender<bool>,
    /// Woken by every call, and by everything that is written.
    happened: tokio::sync::Notify,
    /// Bytes that readers were given.
    pub(crate) bytes_read: AtomicU64,
    /// Requests for bytes.
    pub(crate) reads: AtomicU64,
    /// Requests of every kind.
    calls: AtomicU64,
}

impl MemoryBackend {
    /// An empty bucket.
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Writes an object behind the mount's back, as another machine would.
    pub(crate) fn insert(&self, key: &str, bytes: impl Into<Bytes>) -> Stat {
        let bytes = bytes.into();
        let serial = self.next.fetch_add(1, Ordering::Relaxed) + 1;
        let stat = Stat {
            size: bytes.len() as u64,
            etag: format!("\"{serial}\"").into(),
            modified_ms: 1_700_000_000_000 + serial * 1000,
            cid: Some(format!("cid-of-{serial}").into()),
        };
        self.objects.lock().insert(key.to_owned(), Object { bytes, stat: stat.clone() });
        self.happened.notify_one();
        stat
    }

    /// Deletes an object behind the mount's back.
    pub(crate) fn remove(&self, key: &str) {
        self.objects.lock().remove(key);
    }

    /// An object's bytes.
    pub(crate) fn get(&self, key: &str) -> Option<Bytes> {
        self.objects.lock().get(key).map(|object| object.bytes.clone())
    }

    /// All keys, in order.
    pub(crate) fn keys(&self) -> Vec<String> {
        self.objects.lock().keys().cloned().collect()
    }

    /// Cuts the network, or mends it.
    pub(crate) fn set_down(&self, down: bool) {
        self.is_down.store(down, Ordering::SeqCst);
    }

    /// Lets calls go unanswered, or answers them all.
    pub(crate) fn set_silent(&self, silent: bool) {
        self.is_silent.send_replace(silent);
    }

    /// How many requests of every kind there were.
    pub(crate) fn calls(&self) -> u64 {
        self.calls.load(Ordering::SeqCst)
    }

    /// Waits until a call or a write has made `holds` true. One waits at a time.
    pub(crate) async fn wait_until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        while !holds(self) {
            let woken = tokio::time::timeout(HAPPENS_WITHIN, self.happened.notified()).await;
            woken.unwrap_or_else(|_| panic!("{what} did not happen"));
        }
    }

    async fn reach(&self) -> Result<(), BackendError> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        self.happened.notify_one();
        let mut silence = self.is_silent.subscribe();
        silence.wait_for(|silent| !silent).await.expect("its sender lives as long as we do");
        if self.is_down.load(Ordering::SeqCst) {
            return Err(BackendError::Unreachable { why: "cut off by the test".to_owned() });
        }
        Ok(())
    }

    fn find(&self, key: &str) -> Result<Object, BackendError> {
        self.objects.lock().get(key).cloned().ok_or_else(|| BackendError::NotFound { key: key.to_owned() })
    }

    fn check(&self, key: &str, condition: WriteIf) -> Result<(), BackendError> {
        match condition {
            WriteIf::Absent if self.objects.lock().contains_key(key) => {
                Err(BackendError::Changed { key: key.to_owned() })
            }
            WriteIf::Absent | WriteIf::Any => Ok(()),
        }
    }
}

#[async_trait]
impl Backend for MemoryBackend {
    async fn stat(&self, key: &str) -> Result<Stat, BackendError> {
        self.reach().await?;
        Ok(self.find(key)?.stat)
    }

    async fn list(&self, request: ListRequest<'_>) -> Result<ListPage, BackendError> {
        self.reach().await?;
        let mut page = ListPage::default();
        let objects = self.objects.lock();
        for (key, object) in objects.range(request.prefix.to_owned()..) {
            let Some(rest) = key.strip_prefix(request.prefix) else { break };
            let line = match rest.find('/').filter(|_| request.one_level) {
                Some(at) => &key[..request.prefix.len() + at + 1],
                None => key,
            };
            if request.after.is_some_and(|after| line <= after)
                || page.prefixes.last().is_some_and(|last| last == line)
            {
                continue;
            }
            if page.objects.len() + page.prefixes.len() == request.max {
                let last_object = page.objects.last().map(|object| object.key.clone());
                page.next = last_object.max(page.prefixes.last().cloned());
                break;
            }
            if line.len() < key.len() || (request.one_level && rest.ends_with('/')) {
                page.prefixes.push(line.to_owned());
            } else {
                page.objects.push(Listed { key: key.clone(), stat: object.stat.clone() });
            }
        }
        Ok(page)
    }

    async fn read(&self, key: &str, etag: &str, range: Range<u64>) -> Result<ByteStream, BackendError> {
        self.reach().await?;
        self.reads.fetch_add(1, Ordering::Relaxed);
        let object = self.find(key).map_err(|_| BackendError::Changed { key: key.to_owned() })?;
        if &*object.stat.etag != etag {
            return Err(BackendError::Changed { key: key.to_owned() });
        }
        let at = |offset: u64| usize::try_from(offset.min(object.stat.size)).unwrap_or(usize::MAX);
        let bytes = object.bytes.slice(at(range.start)..at(range.end));
        self.bytes_read.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        let frames: Vec<_> = (0..bytes.len())
            .step_by(FRAME)
            .map(|from| bytes.slice(from..(from + FRAME).min(bytes.len())))
            .collect();
        Ok(stream::iter(frames.into_iter().map(Ok)).boxed())
    }

    async fn put(&self, key: &str, bytes: Bytes, condition: WriteIf) -> Result<Stat, BackendError> {
        self.reach().await?;
        self.check(key, condition)?;
        Ok(self.insert(key, bytes))
    }

    async fn create_upload(&self, _key: &str) -> Result<String, BackendError> {
        self.reach().await?;
        let id = self.next.fetch_add(1, Ordering::Relaxed).to_string();
        self.uploads.lock().insert(id.clone(), BTreeMap::new());
        Ok(id)
    }

    async fn put_part(
        &self,
        key: &str,
        upload: &str,
        number: u16,
        bytes: Bytes,
    ) -> Result<String, BackendError> {
        self.reach().await?;
        let mut uploads = self.uploads.lock();
        let parts = uploads.get_mut(upload).ok_or_else(|| BackendError::NotFound { key: key.to_owned() })?;
        parts.insert(number, bytes);
        Ok(number.to_string())
    }

    async fn complete_upload(
        &self,
        key: &str,
        upload: &str,
        tags: &[String],
        condition: WriteIf,
    ) -> Result<Stat, BackendError> {
        self.reach().await?;
        self.check(key, condition)?;
        let parts = self.uploads.lock().remove(upload);
        let parts = parts.ok_or_else(|| BackendError::NotFound { key: key.to_owned() })?;
        let whole: Vec<u8> = parts.values().flat_map(|part| part.iter().copied()).collect();
        if parts.len() != tags.len() {
            return Err(BackendError::Refused { key: key.to_owned(), why: "parts are missing".to_owned() });
        }
        Ok(self.insert(key, whole))
    }

    async fn abort_upload(&self, _key: &str, upload: &str) -> Result<(), BackendError> {
        self.reach().await?;
        self.uploads.lock().remove(upload);
        Ok(())
    }

    async fn delete(&self, key: &str) -> Result<(), BackendError> {
        self.reach().await?;
        self.remove(key);
        Ok(())
    }

    async fn rename(&self, from: &str, to: &str, condition: WriteIf) -> Result<(), BackendError> {
        self.reach().await?;
        self.check(to, condition)?;
        let mut objects = self.objects.lock();
        let object = objects.remove(from).ok_or_else(|| BackendError::NotFound { key: from.to_owned() })?;
        objects.insert(to.to_owned(), object);
        Ok(())
    }
}
