//! Reading a version of an object: from chunks that are there, or by fetching what the pattern of reads asks for.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep};

use super::backend::{Backend, BackendError};
use super::chunks::{ChunkId, Chunks, Claim, Found, Load};
use super::patience::Patience;
use super::pattern::{CHUNK_LEN, Pattern, Plan, align_down, align_up};
use super::spans::{SpanClaim, Spans};
use super::tree::Version;

/// Chunks that one request brings: long enough to hide its cost, short enough that several run side by side.
const CLAIM_CHUNKS: u64 = 4;
/// A window of one file, at most; smaller when many files are read at once.
const WINDOW_MAX: u64 = 32 * CHUNK_LEN;
const RESUME_PAUSE: std::time::Duration = std::time::Duration::from_millis(100);
/// Of the memory for reading: a part for strided readers, and a part for reads that are kept nowhere.
const SPANS_SHARE: u64 = 8;
const EXACT_SHARE: u64 = 4;
/// What memory is counted in, so that a semaphore can count it.
const ROOM_UNIT: u64 = 4096;

/// Where the bytes of a read will come from.
#[derive(Debug)]
pub(super) enum Ready {
    /// Here they are.
    Bytes(Bytes),
    /// From these chunks, in order.
    Chunks(Vec<Found>),
    /// From a range fetched ahead, which starts there.
    Span(u64, Arc<Load>),
    /// From a request of their own.
    Exact,
}

/// Reads versions of objects.
pub(super) struct Reading {
    pub(super) backend: Arc<dyn Backend>,
    pub(super) patience: Arc<Patience>,
    chunks: Chunks,
    spans: Spans,
    /// Memory for reads that are kept nowhere, in [`ROOM_UNIT`].
    exact_room: Semaphore,
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
        let (spans, exact) = (capacity / SPANS_SHARE, (capacity / EXACT_SHARE).max(2 * CHUNK_LEN));
        let capacity = capacity.saturating_sub(spans + exact).max(8 * CHUNK_LEN);
        Arc::new(Self {
            backend,
            patience,
            chunks: Chunks::new(capacity),
            spans: Spans::new(spans),
            exact_room: Semaphore::new(usize::try_from(exact / ROOM_UNIT).unwrap_or(usize::MAX >> 3)),
            capacity,
            runtime,
            sequential: AtomicU64::new(0),
        })
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
        if let Plan::Strided { ahead } = plan {
            for range in ahead {
                if let Some(claim) = self.spans.claim(id, range) {
                    self.fetch_span(source, claim);
                }
            }
            if let Some((start, load)) = self.spans.find(id, range) {
                return Ready::Span(start, load);
            }
        } else if let Plan::Chunks { ahead } = plan {
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
            let within = range.start.max(index * CHUNK_LEN)..range.end.min((index + 1) * CHUNK_LEN);
            match self.chunks.find(ChunkId { version: id, index }, within.end - within.start) {
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
            Ready::Span(start, load) => match load.wait().await {
                Ok(bytes) => {
                    let at = |offset: u64| usize::try_from(offset - start).unwrap_or(usize::MAX);
                    Ok(bytes.slice(at(range.start).min(bytes.len())..at(range.end).min(bytes.len())))
                }
                Err(error @ BackendError::Changed { .. }) => Err(error),
                // Reading ahead is nobody's request: what failed there deserves a try of its own.
                Err(_) => self.exact(source, range).await,
            },
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
        let units = u32::try_from((range.end - range.start).div_ceil(ROOM_UNIT)).unwrap_or(u32::MAX);
        let most = u32::try_from((self.capacity / EXACT_SHARE) / ROOM_UNIT).unwrap_or(u32::MAX);
        // Closed never; without its room a read would go on all the same.
        let _room = self.exact_room.acquire_many(units.min(most)).await.ok();
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
                let first_id = ChunkId { version: claim.version, index: first };
                let promise = Promise { reading: Arc::clone(self), first: first_id, loads: piece, done: 0 };
                let source = source.clone();
                self.runtime.spawn(async move { fetch_run(&source, promise).await });
                first += count;
            }
        }
    }

    fn fetch_span(self: &Arc<Self>, source: &Source, claim: SpanClaim) {
        let (reading, source) = (Arc::clone(self), source.clone());
        self.runtime.spawn(async move {
            let read = reading.exact(&source, claim.range.clone()).await;
            claim.finish(read);
        });
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

/// Chunks that a task brings. What it does not bring, whatever became of it, has failed: nobody waits for ever.
struct Promise {
    reading: Arc<Reading>,
    first: ChunkId,
    loads: Vec<Arc<Load>>,
    /// Chunks settled.
    done: usize,
}

impl Promise {
    fn settle(&mut self, result: Result<Bytes, BackendError>) {
        let id = ChunkId { index: self.first.index + self.done as u64, ..self.first };
        if let Some(load) = self.loads.get(self.done) {
            self.reading.chunks.settle(id, load, result);
        }
        self.done += 1;
    }

    fn fail(&mut self, error: &BackendError) {
        while self.done < self.loads.len() {
            self.settle(Err(error.clone()));
        }
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        self.fail(&BackendError::Unreachable { why: "the fetch was given up".to_owned() });
    }
}

async fn fetch_run(source: &Source, promise: Promise) {
    let size = source.version.size;
    let start = promise.first.index * CHUNK_LEN;
    let end = ((promise.first.index + promise.loads.len() as u64) * CHUNK_LEN).min(size);
    let reading = Arc::clone(&promise.reading);
    let mut filling = Filling { promise, size, buffer: BytesMut::new() };
    let result = reading.stream(source, start..end, |piece| filling.take(piece)).await;
    let failed =
        result.err().unwrap_or_else(|| BackendError::Unreachable { why: "the body ended early".to_owned() });
    filling.promise.fail(&failed);
}

/// Chunks being filled by a body.
struct Filling {
    promise: Promise,
    size: u64,
    buffer: BytesMut,
}

impl Filling {
    fn take(&mut self, mut piece: Bytes) {
        while !piece.is_empty() && self.promise.done < self.promise.loads.len() {
            let index = self.promise.first.index + self.promise.done as u64;
            let len = usize::try_from(CHUNK_LEN.min(self.size - index * CHUNK_LEN)).unwrap_or(usize::MAX);
            if self.buffer.is_empty() && piece.len() >= len {
                // A whole chunk is passed on as it came.
                let whole = piece.split_to(len);
                self.promise.settle(Ok(whole));
                continue;
            }
            if self.buffer.capacity() == 0 {
                self.buffer = BytesMut::with_capacity(len);
            }
            let now = piece.split_to(piece.len().min(len - self.buffer.len()));
            self.buffer.extend_from_slice(&now);
            if self.buffer.len() == len {
                let whole = std::mem::take(&mut self.buffer).freeze();
                self.promise.settle(Ok(whole));
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
