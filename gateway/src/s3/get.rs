//! From an object to a response body: manifest pages as they are needed, verified bytes in order, deciphered in place.
//!
//! The first bytes are fetched before the answer's head goes out, so that an object that cannot be read is an error
//! and not a broken answer. Later failures abort the connection: a client never takes a part for the whole.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use holdfast_retrieval::block::BlockRef;
use holdfast_retrieval::fetch::FetchError;
use http_body::Frame;
use http_body_util::StreamBody;
use s3s::dto::StreamingBlob;
use s3s::{Body, S3Error, S3Result};

use super::error;
use crate::crypt::CryptError;
use crate::gateway::Core;
use crate::layout::Piece;
use crate::meta::{ManifestReader, MetaError, Object};

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
    /// Pieces under way, as the stream yields them.
    pieces: VecDeque<Piece>,
    fetched: Option<BoxStream<'static, Result<Bytes, FetchError>>>,
    left: u64,
}

impl ObjectStream {
    /// Reads `range` of `object`.
    pub(crate) fn new(core: &Core, object: &Object, range: Range<u64>) -> Self {
        let left = range.end - range.start;
        Self {
            plane: Arc::clone(&core.plane),
            reader: core.meta.read(object, range),
            pieces: VecDeque::new(),
            fetched: None,
            left,
        }
    }

    /// The next bytes, deciphered; `None` at the end of the range.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, ReadError> {
        loop {
            if let Some(fetched) = &mut self.fetched
                && let Some(bytes) = fetched.next().await
            {
                let bytes = bytes?;
                let Some(piece) = self.pieces.pop_front() else {
                    return Err(ReadError::Short { missing: self.left });
                };
                self.left = self.left.saturating_sub(bytes.len() as u64);
                return Ok(Some(decipher(&piece, bytes)?));
            }
            self.fetched = None;
            let Some(pieces) = self.reader.next().await? else {
                return if self.left == 0 { Ok(None) } else { Err(ReadError::Short { missing: self.left }) };
            };
            let wanted = pieces
                .iter()
                .map(|piece| (BlockRef { digest: piece.digest, len: piece.len }, piece.range))
                .collect();
            self.pieces = pieces.into();
            self.fetched = Some(self.plane.read(wanted));
        }
    }
}

/// Deciphers in place where the bytes are ours alone, which they are unless a node of this process still holds them.
fn decipher(piece: &Piece, bytes: Bytes) -> Result<Bytes, CryptError> {
    let Some(cipher) = &piece.cipher else { return Ok(bytes) };
    let mut own = bytes.try_into_mut().unwrap_or_else(|shared| BytesMut::from(&shared[..]));
    cipher.apply(piece.cipher_offset, &mut own)?;
    Ok(own.freeze())
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
