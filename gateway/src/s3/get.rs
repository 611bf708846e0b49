//! From an object to a response body: manifest pages as they are needed, verified bytes in order, deciphered as they leave.
//!
//! The first bytes are fetched before the answer's head goes out, so that an object that cannot be read is an error
//! and not a broken answer. Later failures abort the connection: a client never takes a part for the whole.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use holdfast_protocol::limits::BLOCK_LEN_MAX;
use holdfast_protocol::message::ByteRange;
use holdfast_retrieval::block::BlockRef;
use holdfast_retrieval::fetch::FetchError;
use http_body::Frame;
use http_body_util::StreamBody;
use s3s::dto::StreamingBlob;
use s3s::{Body, S3Error, S3Result};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error;
use crate::crypt::{CryptError, PartCipher};
use crate::gateway::Core;
use crate::layout::Piece;
use crate::meta::{ManifestReader, MetaError, Object};

/// What a stream of whole blocks holds for a client that does not read: the block on its way and the next one.
const STREAM_BYTES: u64 = 2 * BLOCK_LEN_MAX as u64;
/// Pieces of streams that there is no room for: a range of this length costs a node one read of four groups.
const THIN_BYTES: u32 = 64 * 1024;

/// Bytes of one frame: copied, deciphered and written while they lie in a second-level cache.
const FRAME_BYTES: usize = 128 * 1024;

/// Why an object's bytes could not be read on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    /// The manifest.
    #[error(transparent)]
    Meta(#[from] MetaError),
    /// The blocks.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// The keys.
    #[error(transparent)]
    Crypt(#[from] CryptError),
    /// The manifest and its blocks disagree.
    #[error("the object's manifest ends {missing} bytes early")]
    Short {
        /// Bytes that no block has.
        missing: u64,
    },
}

/// The body of a GET of `range`, which lies within the object.
pub(crate) async fn body(core: &Core, object: &Object, range: Range<u64>) -> S3Result<StreamingBlob> {
    let len = range.end - range.start;
    if len == 0 {
        return Ok(StreamingBlob::from(Body::empty()));
    }
    let mut pieces = ObjectStream::new(core, object, range);
    let first = pieces.next().await.map_err(error::read)?;
    let Some(first) = first else {
        return Err(error::read(ReadError::Short { missing: len }));
    };
    if first.len() as u64 == len {
        return Ok(StreamingBlob::from(Body::from(first)));
    }
    let rest = stream::try_unfold(pieces, |mut pieces| async move {
        let next = pieces.next().await.inspect_err(|error| {
            tracing::warn!(%error, "an answer was cut off: the rest of its object cannot be read");
        })?;
        Ok(next.map(|bytes| (bytes, pieces)))
    });
    let all = stream::once(std::future::ready(Ok::<_, ReadError>(first))).chain(rest);
    let frames = StreamBody::new(all.map(|piece| piece.map(Frame::data)));
    Ok(StreamingBlob::from(Body::http_body_unsync(frames)))
}

/// An object's bytes in order.
pub(crate) struct ObjectStream {
    plane: Arc<dyn crate::gateway::plane::Plane>,
    reader: ManifestReader,
    answers: AnswerMemory,
    /// Room for whole blocks, while this stream has it.
    room: Option<OwnedSemaphorePermit>,
    /// Pieces under way, as the stream yields them.
    pieces: VecDeque<Piece>,
    fetched: Option<BoxStream<'static, Result<Bytes, FetchError>>>,
    /// The piece that is being handed out.
    current: Option<Current>,
    left: u64,
}

impl ObjectStream {
    /// Reads `range` of `object`.
    pub(crate) fn new(core: &Core, object: &Object, range: Range<u64>) -> Self {
        let left = range.end - range.start;
        Self {
            plane: Arc::clone(&core.plane),
            reader: core.meta.read(object, range),
            answers: core.answers.clone(),
            room: None,
            pieces: VecDeque::new(),
            fetched: None,
            current: None,
            left,
        }
    }

    /// The next bytes, deciphered; `None` at the end of the range.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, ReadError> {
        loop {
            if let Some(current) = &mut self.current {
                let bytes = current.frame()?;
                if current.is_empty() {
                    self.current = None;
                }
                self.left = self.left.saturating_sub(bytes.len() as u64);
                // The last frame outlives the stream: it waits in the connection for its client.
                let room = self.room.take_if(|_| self.left == 0);
                return Ok(Some(match room {
                    Some(room) => Bytes::from_owner(Held { bytes, _room: room }),
                    None => bytes,
                }));
            }
            if let Some(fetched) = &mut self.fetched
                && let Some(bytes) = fetched.next().await
            {
                let bytes = bytes?;
                let Some(piece) = self.pieces.pop_front() else {
                    return Err(ReadError::Short { missing: self.left });
                };
                // An empty piece would be an end before the end.
                self.current = Some(Current::new(piece, bytes)).filter(|current| !current.is_empty());
                continue;
            }
            self.fetched = None;
            let Some(mut pieces) = self.reader.next().await? else {
                return if self.left == 0 { Ok(None) } else { Err(ReadError::Short { missing: self.left }) };
            };
            // Asked for anew with every batch: a stream that began while many were served grows when they have ended.
            self.room = self.room.take().or_else(|| self.answers.room(self.left));
            if self.room.is_none() {
                pieces = pieces.into_iter().flat_map(thin).collect();
            }
            let wanted = pieces
                .iter()
                .map(|piece| (BlockRef { digest: piece.digest, len: piece.len }, piece.range))
                .collect();
            self.pieces = pieces.into();
            self.fetched = Some(self.plane.read(wanted));
        }
    }
}

/// Memory of answers that wait for their clients.
///
/// A client that reads slowly holds the block it is being sent and the next one, and nobody can tell it from a fast one
/// before it is slow. So whole blocks are read for as many at once as fit into this memory; the others are served in
/// pieces of [`THIN_BYTES`], which is dearer by the byte and never refused.
#[derive(Clone)]
pub(crate) struct AnswerMemory {
    free: Arc<Semaphore>,
    #[cfg(test)]
    bytes: usize,
}

impl AnswerMemory {
    /// `bytes` for whole blocks.
    pub(crate) fn new(bytes: usize) -> Self {
        Self {
            free: Arc::new(Semaphore::new(bytes.min(Semaphore::MAX_PERMITS))),
            #[cfg(test)]
            bytes,
        }
    }

    /// Whether anybody has room.
    #[cfg(test)]
    pub(crate) fn is_in_use(&self) -> bool {
        self.free.available_permits() < self.bytes
    }

    /// Whether a stream finds no room. Only looked at: trying would take the room from a stream that comes meanwhile.
    #[cfg(test)]
    pub(crate) fn is_full(&self) -> bool {
        (self.free.available_permits() as u64) < STREAM_BYTES
    }

    /// Room for a stream with this much left, if there is any.
    fn room(&self, left: u64) -> Option<OwnedSemaphorePermit> {
        let bytes = u32::try_from(left.min(STREAM_BYTES)).unwrap_or(u32::MAX);
        Arc::clone(&self.free).try_acquire_many_owned(bytes).ok()
    }
}

/// Bytes that keep their room while anybody has them.
struct Held {
    bytes: Bytes,
    _room: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// A piece cut at multiples of [`THIN_BYTES`] within its block, which are group boundaries too.
fn thin(piece: Piece) -> impl Iterator<Item = Piece> {
    let (start, end) = (piece.range.start, piece.range.end());
    let first = start / THIN_BYTES;
    (first..end.div_ceil(THIN_BYTES)).map(move |step| {
        let from = start.max(step * THIN_BYTES);
        let to = end.min((step + 1).saturating_mul(THIN_BYTES));
        let skipped = u64::from(from - start);
        Piece {
            range: ByteRange { start: from, len: to - from },
            object_offset: piece.object_offset + skipped,
            cipher_offset: piece.cipher_offset + skipped,
            ..piece.clone()
        }
    })
}

/// A piece on its way out, deciphered frame by frame as its client takes it: what was just deciphered is still near when it
/// is written to the socket, and a client that does not read has only a frame or two made for it.
struct Current {
    cipher: Option<Arc<PartCipher>>,
    /// Where the next byte is in the cipher's stream.
    offset: u64,
    bytes: Source,
}

enum Source {
    /// Ours alone: deciphered in place.
    Own(BytesMut),
    /// The cache or a node of this process holds them too: copied, then deciphered.
    Shared(Bytes),
}

impl Current {
    fn new(piece: Piece, bytes: Bytes) -> Self {
        let bytes = match &piece.cipher {
            Some(_) => bytes.try_into_mut().map_or_else(Source::Shared, Source::Own),
            None => Source::Shared(bytes),
        };
        Self { cipher: piece.cipher, offset: piece.cipher_offset, bytes }
    }

    fn is_empty(&self) -> bool {
        match &self.bytes {
            Source::Own(bytes) => bytes.is_empty(),
            Source::Shared(bytes) => bytes.is_empty(),
        }
    }

    fn frame(&mut self) -> Result<Bytes, CryptError> {
        let mut frame = match (&mut self.bytes, &self.cipher) {
            (Source::Own(bytes), _) => bytes.split_to(bytes.len().min(FRAME_BYTES)),
            (Source::Shared(bytes), Some(_)) => {
                BytesMut::from(&bytes.split_to(bytes.len().min(FRAME_BYTES))[..])
            }
            // Plain bytes are handed out as they are, all at once.
            (Source::Shared(bytes), None) => return Ok(std::mem::take(bytes)),
        };
        if let Some(cipher) = &self.cipher {
            cipher.apply(self.offset, &mut frame)?;
        }
        self.offset += frame.len() as u64;
        Ok(frame.freeze())
    }
}

/// The bytes that a Range header asks for, of an object of `size` bytes; `None` for all of it.
///
/// A range that cannot be met is 416 with the object's size, so that the client can ask again.
pub(crate) fn requested(range: Option<&s3s::dto::Range>, size: u64) -> Result<Option<Range<u64>>, S3Error> {
    let Some(range) = range else { return Ok(None) };
    match range.check(size) {
        Ok(range) if range.start < range.end => Ok(Some(range)),
        _ => Err(unsatisfiable(size)),
    }
}

fn unsatisfiable(size: u64) -> S3Error {
    let mut error =
        s3s::s3_error!(InvalidRange, "The requested range is not satisfiable: the object has {size} bytes");
    let mut headers = http::HeaderMap::new();
    if let Ok(value) = http::HeaderValue::try_from(format!("bytes */{size}")) {
        headers.insert(http::header::CONTENT_RANGE, value);
    }
    headers.insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/xml"));
    error.set_headers(headers);
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(header: &str, size: u64) -> Option<Range<u64>> {
        requested(Some(&s3s::dto::Range::parse(header).unwrap()), size).ok().flatten()
    }

    #[test]
    fn first_open_and_suffix_ranges_are_cut_to_the_object() {
        assert_eq!(ask("bytes=0-0", 10), Some(0..1));
        assert_eq!(ask("bytes=2-100", 10), Some(2..10));
        assert_eq!(ask("bytes=7-", 10), Some(7..10));
        assert_eq!(ask("bytes=-3", 10), Some(7..10));
        assert_eq!(ask("bytes=-30", 10), Some(0..10));
        assert_eq!(requested(None, 10).unwrap(), None);
    }

    #[test]
    fn thin_pieces_are_the_piece_in_order_and_end_at_group_boundaries() {
        let digest = holdfast_protocol::Digest([7; 32]);
        let len = holdfast_protocol::BlockLen::new(BLOCK_LEN_MAX).unwrap();
        for (start, bytes) in [(0, 1), (0, BLOCK_LEN_MAX), (65_535, 2), (70_000, 200_000), (1_048_575, 1)] {
            let range = ByteRange { start, len: bytes };
            let whole = Piece { digest, len, range, object_offset: 5000, cipher: None, cipher_offset: 900 };
            let (mut at, mut object, mut cipher) = (start, 5000, 900);
            for piece in thin(whole) {
                assert_eq!(
                    (piece.range.start, piece.object_offset, piece.cipher_offset),
                    (at, object, cipher)
                );
                assert!(piece.range.len > 0 && piece.range.len <= THIN_BYTES);
                at = piece.range.end();
                object += u64::from(piece.range.len);
                cipher += u64::from(piece.range.len);
                assert!(at % THIN_BYTES == 0 || at == start + bytes);
            }
            assert_eq!(at, start + bytes);
        }
    }

    #[test]
    fn ranges_outside_are_416_with_the_size() {
        for header in ["bytes=10-", "bytes=10-20", "bytes=-0"] {
            assert_eq!(ask(header, 10), None, "{header}");
        }
        for header in ["bytes=0-0", "bytes=-1", "bytes=0-"] {
            let range = s3s::dto::Range::parse(header).unwrap();
            let error = requested(Some(&range), 0).unwrap_err();
            assert_eq!(error.status_code(), Some(http::StatusCode::RANGE_NOT_SATISFIABLE));
            assert_eq!(error.headers().unwrap()[http::header::CONTENT_RANGE], "bytes */0");
        }
    }
}
