//! Small chunks for the library: it holds each chunk of an aws-chunked body in memory before handing it on, and a
//! chunk may be as long as the object (some SDKs send exactly one).
//!
//! Unsigned chunks are cut into one chunk per frame read from the socket. Signed ones cannot be cut, their signature
//! covers them whole; beyond a bound they are refused. Everything behind the last chunk passes as it is.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use http::HeaderMap;
use http_body::{Body, Frame};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;
use tokio_util::sync::PollSemaphore;

use crate::gateway::body::{BodyError, TimedBody};

/// Signed chunks longer than this are refused. SDKs send 64 KiB to 1 MiB.
const SIGNED_CHUNK_MAX: u64 = 16 * 1024 * 1024;
/// Signed chunks up to this length are held for free: a connection's buffers are as large.
const FREE_CHUNK_MAX: u64 = 256 * 1024;
/// Bytes of longer signed chunks held by all connections together.
const CHUNK_MEMORY_BYTES: usize = 64 * 1024 * 1024;
/// How long a body waits for it before its client is asked to slow down.
const CHUNK_PATIENCE: Duration = Duration::from_secs(15);

/// The memory that all long signed chunks share; a body whose chunk finds none is not read on until there is some.
#[derive(Clone)]
pub(crate) struct ChunkMemory(Arc<Semaphore>);

impl ChunkMemory {
    /// All of it.
    pub(crate) fn new() -> Self {
        Self(Arc::new(Semaphore::new(CHUNK_MEMORY_BYTES)))
    }
}

/// Bytes of a chunk's head line.
const HEAD_LINE_MAX: usize = 1024;

/// How the chunks of a request's body are signed; `None` when it has no chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Chunks {
    Signed,
    Unsigned,
}

impl Chunks {
    /// What `x-amz-content-sha256` says.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        match headers.get("x-amz-content-sha256")?.as_bytes() {
            b"STREAMING-UNSIGNED-PAYLOAD-TRAILER" => Some(Self::Unsigned),
            value if value.starts_with(b"STREAMING-") => Some(Self::Signed),
            _ => None,
        }
    }
}

/// An aws-chunked body on its way to the library.
pub(super) struct Rechunked {
    inner: TimedBody,
    splitter: Splitter,
    memory: PollSemaphore,
    /// For the long chunk that is being read.
    held: Option<OwnedSemaphorePermit>,
    /// Runs while memory is waited for.
    patience: Option<Pin<Box<Sleep>>>,
}

impl Rechunked {
    pub(super) fn new(inner: TimedBody, chunks: Chunks, memory: ChunkMemory) -> Self {
        let memory = PollSemaphore::new(memory.0);
        Self { inner, splitter: Splitter::new(chunks), memory, held: None, patience: None }
    }

    /// Waits for the memory of a long chunk that has begun, and gives back that of one that has ended.
    ///
    /// Not without end: whoever holds it may wait for upload memory that this body's request holds.
    fn poll_memory(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BodyError>> {
        let Some(len) = self.splitter.long_chunk() else {
            self.held = None;
            return Poll::Ready(Ok(()));
        };
        if self.held.is_none() {
            let permits = u32::try_from(len).unwrap_or(u32::MAX);
            match self.memory.poll_acquire_many(cx, permits) {
                Poll::Ready(permit) => {
                    self.held = permit;
                    self.patience = None;
                }
                Poll::Pending => {
                    let fresh = || Box::pin(tokio::time::sleep(CHUNK_PATIENCE));
                    ready!(self.patience.get_or_insert_with(fresh).as_mut().poll(cx));
                    return Poll::Ready(Err(BodyError::Memory));
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl Body for Rechunked {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        loop {
            if let Some(bytes) = this.splitter.ready.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
            if let Err(error) = ready!(this.poll_memory(cx)) {
                return Poll::Ready(Some(Err(error)));
            }
            match ready!(Pin::new(&mut this.inner).poll_frame(cx)) {
                Some(Ok(frame)) => {
                    let Ok(bytes) = frame.into_data() else { continue };
                    if let Err(detail) = this.splitter.take(bytes) {
                        return Poll::Ready(Some(Err(BodyError::Chunks { detail })));
                    }
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None if matches!(this.splitter.at, At::Tail) => return Poll::Ready(None),
                None => {
                    let detail = "the body ended before its last chunk";
                    return Poll::Ready(Some(Err(BodyError::Chunks { detail })));
                }
            }
        }
    }
}

/// Where in the framing we are.
#[derive(Debug)]
enum At {
    /// In a head line.
    Head(Vec<u8>),
    /// In an unsigned chunk's bytes, which go out as chunks of their own.
    Data(u64),
    /// In the line break behind them, which went out already.
    Break(u8),
    /// In a signed chunk and its line break, which go out as they are: bytes left, and bytes in all.
    Whole(u64, u64),
    /// Behind the last chunk.
    Tail,
}

#[derive(Debug)]
struct Splitter {
    chunks: Chunks,
    at: At,
    ready: VecDeque<Bytes>,
}

impl Splitter {
    fn new(chunks: Chunks) -> Self {
        Self { chunks, at: At::Head(Vec::new()), ready: VecDeque::new() }
    }

    /// The length of the signed chunk that is being read, if it is held at a cost.
    fn long_chunk(&self) -> Option<u64> {
        match self.at {
            At::Whole(_, len) if len > FREE_CHUNK_MAX => Some(len),
            _ => None,
        }
    }

    fn take(&mut self, mut bytes: Bytes) -> Result<(), &'static str> {
        while !bytes.is_empty() {
            match &mut self.at {
                At::Head(line) => {
                    let end = bytes.iter().position(|byte| *byte == b'\n').map(|at| at + 1);
                    let piece = bytes.split_to(end.unwrap_or(bytes.len()));
                    line.extend_from_slice(&piece);
                    if line.len() > HEAD_LINE_MAX {
                        return Err("a chunk's head line is too long");
                    }
                    if end.is_some() {
                        let line = std::mem::take(line);
                        self.head(line)?;
                    }
                }
                At::Data(left) => {
                    let piece = split(&mut bytes, left);
                    let done = *left == 0;
                    self.ready.push_back(Bytes::from(format!("{:x}\r\n", piece.len())));
                    self.ready.push_back(piece);
                    self.ready.push_back(Bytes::from_static(b"\r\n"));
                    if done {
                        self.at = At::Break(0);
                    }
                }
                At::Break(seen) => {
                    if bytes.get_u8() != b"\r\n"[usize::from(*seen)] {
                        return Err("a chunk is longer than its head line says");
                    }
                    self.at = if *seen == 0 { At::Break(1) } else { At::Head(Vec::new()) };
                }
                At::Whole(left, _) => {
                    let piece = split(&mut bytes, left);
                    let done = *left == 0;
                    self.ready.push_back(piece);
                    if done {
                        self.at = At::Head(Vec::new());
                    }
                }
                At::Tail => self.ready.push_back(bytes.split_to(bytes.len())),
            }
        }
        Ok(())
    }

    fn head(&mut self, line: Vec<u8>) -> Result<(), &'static str> {
        let digits = line.split(|byte| matches!(byte, b';' | b'\r' | b'\n')).next().unwrap_or_default();
        let size = std::str::from_utf8(digits)
            .ok()
            .and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok())
            .ok_or("a chunk's head line does not begin with its length")?;
        self.at = match (size, self.chunks) {
            (0, _) => {
                self.ready.push_back(Bytes::from(line));
                At::Tail
            }
            (_, Chunks::Unsigned) => At::Data(size),
            (_, Chunks::Signed) if size > SIGNED_CHUNK_MAX => {
                return Err("a signed chunk is longer than 16 MiB; sign smaller chunks");
            }
            (_, Chunks::Signed) => {
                self.ready.push_back(Bytes::from(line));
                At::Whole(size + 2, size)
            }
        };
        Ok(())
    }
}

/// As much of `bytes` as is left of the chunk.
fn split(bytes: &mut Bytes, left: &mut u64) -> Bytes {
    let len = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
    *left -= len as u64;
    bytes.split_to(len)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The payload and tail that a decoder of aws-chunked sees.
    fn decoded(framed: &[u8]) -> (Vec<u8>, Vec<u8>, usize) {
        let (mut payload, mut longest, mut rest) = (Vec::new(), 0, framed);
        loop {
            let end = rest.windows(2).position(|window| window == b"\r\n").unwrap();
            let digits = std::str::from_utf8(&rest[..end]).unwrap().split(';').next().unwrap();
            let size = usize::from_str_radix(digits, 16).unwrap();
            rest = &rest[end + 2..];
            if size == 0 {
                return (payload, rest.to_vec(), longest);
            }
            payload.extend_from_slice(&rest[..size]);
            assert_eq!(&rest[size..size + 2], b"\r\n");
            rest = &rest[size + 2..];
            longest = longest.max(size);
        }
    }

    fn through(chunks: Chunks, framed: &[u8], piece: usize) -> Result<Vec<u8>, &'static str> {
        let mut splitter = Splitter::new(chunks);
        for part in framed.chunks(piece) {
            splitter.take(Bytes::copy_from_slice(part))?;
        }
        Ok(splitter.ready.iter().flatten().copied().collect())
    }

    #[test]
    fn one_long_chunk_becomes_many_of_the_same_bytes() {
        let payload: Vec<u8> = (0..1_000_000u32).map(|index| u8::try_from(index % 251).unwrap()).collect();
        let mut framed = format!("{:x}\r\n", payload.len()).into_bytes();
        framed.extend_from_slice(&payload);
        framed.extend_from_slice(b"\r\n0\r\nx-amz-checksum-crc32:AAAAAA==\r\n\r\n");
        for piece in [1, 2, 7, 4096, 65_536, framed.len()] {
            let (bytes, tail, longest) = decoded(&through(Chunks::Unsigned, &framed, piece).unwrap());
            assert!(bytes == payload);
            assert_eq!(tail, b"x-amz-checksum-crc32:AAAAAA==\r\n\r\n");
            assert!(longest <= piece);
        }
    }

    #[test]
    fn signed_chunks_pass_unchanged_and_very_long_ones_do_not() {
        let framed = b"3;chunk-signature=aa\r\nabc\r\n0;chunk-signature=bb\r\n\r\n";
        for piece in 1..framed.len() {
            assert_eq!(through(Chunks::Signed, framed, piece).unwrap(), framed);
        }
        assert!(through(Chunks::Signed, b"1000001;chunk-signature=aa\r\n", 9).is_err());
    }

    #[test]
    fn broken_framing_is_an_error_and_bounded() {
        assert!(through(Chunks::Unsigned, b"zz\r\n", 4).is_err());
        assert!(through(Chunks::Unsigned, b"3\r\nabcd", 7).is_err());
        assert!(through(Chunks::Unsigned, &[b'1'; 2000], 100).is_err());
        assert!(through(Chunks::Unsigned, b"-1\r\n", 4).is_err());
    }
}
