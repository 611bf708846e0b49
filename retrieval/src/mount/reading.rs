//! Reading a version of an object: from chunks that are there, or by fetching what the pattern of reads asks for.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use parking_lot::Mutex;
use tokio::time::{Instant, sleep};

use super::backend::{Backend, BackendError};
use super::chunks::{ChunkId, Chunks, Claim, Found, Load};
use super::patience::Patience;
use super::pattern::{CHUNK_LEN, Pattern, Plan, align_down, align_up};
use super::tree::Version;

/// Chunks that one request brings: long enough to hide its cost, short enough that several run side by side.
const CLAIM_CHUNKS: u64 = 4;
/// A window of one file, at most; smaller when many files are read at once.
const WINDOW_MAX: u64 = 32 * CHUNK_LEN;
const RESUME_PAUSE: std::time::Duration = std::time::Duration::from_millis(100);

/// Where the bytes of a read will come from.
#[derive(Debug)]
pub(super) enum Ready {
    /// Here they are.
    Bytes(Bytes),
    /// From these chunks, in order.
    Chunks(Vec<Found>),
    /// From a request of their own.
    Exact,
}

/// Reads versions of objects.
pub(super) struct Reading {
    pub(super) backend: Arc<dyn Backend>,
    pub(super) patience: Arc<Patience>,
    chunks: Chunks,
    capacity: u64,
    runtime: tokio::runtime::Handle,
    /// Files that are being read on and on.
    pub(super) sequential: AtomicU64,
}

/// A version under a key.
#[derive(Clone, Debug)]
pub(super) struct Source {
    pub(super) key: Arc<str>,
    pub(super) version: Arc<Version>,
}

impl Reading {
    pub(super) fn new(
        backend: Arc<dyn Backend>,
        patience: Arc<Patience>,
        capacity: u64,
        runtime: tokio::runtime::Handle,
    ) -> Arc<Self> {
        let chunks = Chunks::new(capacity);
        Arc::new(Self { backend, patience, chunks, capacity, runtime, sequential: AtomicU64::new(0) })
    }

    fn window_max(&self) -> u64 {
        let readers = self.sequential.load(Ordering::Relaxed).max(1);
        align_down(self.capacity / 2 / readers).clamp(CHUNK_LEN, WINDOW_MAX)
    }

    /// Begins a read of `range`, which lies within the object: fetches ahead, and says where the bytes come from.
    /// Never waits.
    pub(super) fn begin(
        self: &Arc<Self>,
        source: &Source,
        pattern: &Mutex<Pattern>,
        range: &Range<u64>,
    ) -> Ready {
        let size = source.version.size;
        let plan = {
            let mut pattern = pattern.lock();
            let before = pattern.is_sequential();
            let plan = pattern.observe(range.clone(), size, self.window_max());
            match (before, pattern.is_sequential()) {
                (false, true) => {
                    self.sequential.fetch_add(1, Ordering::Relaxed);
                }
                (true, false) => {
                    self.sequential.fetch_sub(1, Ordering::Relaxed);
                }
                _ => {}
            }
            plan
        };
        let id = source.version.id;
        let wanted = range.start / CHUNK_LEN..align_up(range.end) / CHUNK_LEN;
        if let Plan::Chunks { ahead } = plan {
            let mut claims = self.chunks.claim(id, wanted.clone(), true);
            let ahead = align_down(ahead.start) / CHUNK_LEN..align_up(ahead.end) / CHUNK_LEN;
            for more in self.chunks.claim(id, ahead, false) {
                // What is wanted and what is fetched ahead are mostly neighbours: one request then.
                match claims.last_mut() {
                    Some(last) if last.first + last.loads.len() as u64 == more.first => {
                        last.loads.extend(more.loads);
                    }
                    _ => claims.push(more),
                }
            }
            self.fetch(source, claims);
        }
        let mut found = Vec::with_capacity(2);
        for index in wanted {
            match self.chunks.find(ChunkId { version: id, index }) {
                Some(chunk) => found.push(chunk),
                // Evicted just now, or a random read.
                None => return Ready::Exact,
            }
        }
        if found.iter().all(|chunk| matches!(chunk, Found::Ready(_))) {
            let parts = found.into_iter().map(|chunk| match chunk {
                Found::Ready(bytes) => bytes,
                Found::Loading(_) => Bytes::new(),
            });
            return Ready::Bytes(assemble(range, parts.collect()));
        }
        Ready::Chunks(found)
    }

    /// Waits for what [`Reading::begin`] named.
    pub(super) async fn finish(
        self: &Arc<Self>,
        source: &Source,
        range: Range<u64>,
        ready: Ready,
    ) -> Result<Bytes, BackendError> {
        match ready {
            Ready::Bytes(bytes) => Ok(bytes),
            Ready::Exact => self.exact(source, range).await,
            Ready::Chunks(found) => {
                let mut parts = Vec::with_capacity(found.len());
                for chunk in found {
                    parts.push(match chunk {
                        Found::Ready(bytes) => bytes,
                        Found::Loading(load) => load.wait().await?,
                    });
                }
                Ok(assemble(&range, parts))
            }
        }
    }

    /// Exactly `range`, kept nowhere.
    pub(super) async fn exact(&self, source: &Source, range: Range<u64>) -> Result<Bytes, BackendError> {
        let mut whole = BytesMut::new();
        let mut single = None;
        self.stream(source, range, |piece| {
            // One frame is passed on as it is.
            match single.take() {
                None if whole.is_empty() => single = Some(piece),
                Some(first) => {
                    whole.extend_from_slice(&first);
                    whole.extend_from_slice(&piece);
                }
                None => whole.extend_from_slice(&piece),
            }
        })
        .await?;
        Ok(single.unwrap_or_else(|| whole.freeze()))
    }

    /// Fetches claimed chunks, each claim in pieces of [`CLAIM_CHUNKS`] by tasks of their own.
    fn fetch(self: &Arc<Self>, source: &Source, claims: Vec<Claim>) {
        for claim in claims {
            let mut first = claim.first;
            let mut loads = claim.loads.into_iter().peekable();
            while loads.peek().is_some() {
                // Claims begin anywhere; their pieces end on common borders.
                let take = CLAIM_CHUNKS - first % CLAIM_CHUNKS;
                let piece: Vec<_> = loads.by_ref().take(usize::try_from(take).unwrap_or(1)).collect();
                let count = piece.len() as u64;
                let (reading, source) = (Arc::clone(self), source.clone());
                let at = ChunkId { version: claim.version, index: first };
                self.runtime.spawn(async move { reading.fetch_run(&source, at, piece).await });
                first += count;
            }
        }
    }

    async fn fetch_run(&self, source: &Source, first: ChunkId, loads: Vec<Arc<Load>>) {
        let size = source.version.size;
        let start = first.index * CHUNK_LEN;
        let end = ((first.index + loads.len() as u64) * CHUNK_LEN).min(size);
        let mut filling =
            Filling { chunks: &self.chunks, first, loads: &loads, size, done: 0, buffer: BytesMut::new() };
        let result = self.stream(source, start..end, |piece| filling.take(&piece)).await;
        let done = filling.done;
        let failed = result
            .err()
            .unwrap_or_else(|| BackendError::Unreachable { why: "the body ended early".to_owned() });
        for (at, load) in loads.iter().enumerate().skip(done) {
            let id = ChunkId { index: first.index + at as u64, ..first };
            self.chunks.settle(id, load, Err(failed.clone()));
        }
    }

    /// Streams `range` to `sink`, resuming where a connection broke off, within the mount's patience.
    async fn stream(
        &self,
        source: &Source,
        range: Range<u64>,
        mut sink: impl FnMut(Bytes) + Send,
    ) -> Result<(), BackendError> {
        let mut at = range.start;
        let mut began = Instant::now();
        while at < range.end {
            let attempt = async {
                let mut body = self
                    .patience
                    .attempt(began, self.backend.read(&source.key, &source.version.etag, at..range.end))
                    .await?;
                while at < range.end {
                    let next = async {
                        body.next().await.unwrap_or_else(|| {
                            Err(BackendError::Unreachable { why: "the body ended early".to_owned() })
                        })
                    };
                    let mut piece = self.patience.attempt(began, next).await?;
                    piece.truncate(usize::try_from(range.end - at).unwrap_or(usize::MAX));
                    at += piece.len() as u64;
                    began = Instant::now();
                    sink(piece);
                }
                Ok(())
            };
            match attempt.await {
                Ok(()) => return Ok(()),
                Err(error) if !BackendError::is_retryable(&error) => return Err(error),
                Err(error) if Instant::now() + RESUME_PAUSE >= self.patience.deadline(began) => {
                    return Err(error);
                }
                Err(_) => sleep(RESUME_PAUSE).await,
            }
        }
        Ok(())
    }

    /// Forgets the chunks of a version.
    pub(super) fn forget(&self, version: &Version) {
        self.chunks.forget(version.id, version.size.div_ceil(CHUNK_LEN));
    }
}

/// Chunks being filled by a body.
struct Filling<'a> {
    chunks: &'a Chunks,
    first: ChunkId,
    loads: &'a [Arc<Load>],
    size: u64,
    /// Chunks settled.
    done: usize,
    buffer: BytesMut,
}

impl Filling<'_> {
    fn take(&mut self, mut piece: &[u8]) {
        while !piece.is_empty() && self.done < self.loads.len() {
            let id = ChunkId { index: self.first.index + self.done as u64, ..self.first };
            let len = usize::try_from(CHUNK_LEN.min(self.size - id.index * CHUNK_LEN)).unwrap_or(usize::MAX);
            if self.buffer.capacity() == 0 {
                self.buffer = BytesMut::with_capacity(len);
            }
            let (now, rest) = piece.split_at(piece.len().min(len - self.buffer.len()));
            self.buffer.extend_from_slice(now);
            piece = rest;
            if self.buffer.len() == len {
                let whole = std::mem::take(&mut self.buffer).freeze();
                self.chunks.settle(id, &self.loads[self.done], Ok(whole));
                self.done += 1;
            }
        }
    }
}

/// The bytes of `range` out of the chunks that hold it.
fn assemble(range: &Range<u64>, mut chunks: Vec<Bytes>) -> Bytes {
    let into = usize::try_from(range.start % CHUNK_LEN).unwrap_or(0);
    let len = usize::try_from(range.end - range.start).unwrap_or(0);
    if chunks.len() == 1 {
        let chunk = chunks.remove(0);
        return chunk.slice(into.min(chunk.len())..(into + len).min(chunk.len()));
    }
    let mut whole = BytesMut::with_capacity(len);
    let mut skip = into;
    for chunk in chunks {
        let from = skip.min(chunk.len());
        let take = (len - whole.len()).min(chunk.len() - from);
        whole.extend_from_slice(&chunk[from..from + take]);
        skip = 0;
    }
    whole.freeze()
}
