//! Bodies that the library parses whole (XML, JSON): checked on their way against every digest that the client sent.
//!
//! The library ignores Content-MD5 and checksums of such bodies, and answers 500 when one cannot be read. So what is
//! wrong is noted here, and answered in place of whatever came of it.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use aws_lc_rs::digest;
use bytes::Bytes;
use http::{HeaderMap, Method};
use http_body::{Body, Frame, SizeHint};
use parking_lot::Mutex;
use s3s::{S3Error, S3Result};
use subtle::ConstantTimeEq;

use super::checksum::{Announced, Hashers};
use super::host::Target;
use super::{XML_BODY_BYTES_MAX, error};
use crate::gateway::body::{BodyError, TimedBody};

/// Queries of PUTs whose bodies are objects or parts; every other name in a query selects something else.
const OBJECT_QUERIES: [&str; 4] = ["partNumber", "uploadId", "x-id", "versionId"];

/// Whether the body is the bytes of an object or a part, which [`super::put`] checks.
pub(super) fn is_object(method: &Method, query: Option<&str>, target: Option<&Target>) -> bool {
    let names_object = target.is_some_and(|target| !target.key.is_empty());
    let mut names = query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
    let only_object = names.all(|pair| {
        let name = pair.split('=').next().unwrap_or_default();
        OBJECT_QUERIES.contains(&name) || name.to_ascii_lowercase().starts_with("x-amz-")
    });
    method == Method::PUT && names_object && only_object
}

/// Whether the request completes a multipart upload.
pub(super) fn is_completion(parts: &http::request::Parts) -> bool {
    parts.method == Method::POST && parts.uri.query().is_some_and(|query| query.contains("uploadId="))
}

/// Where a mistake in a body is noted.
#[derive(Clone, Default)]
pub(super) struct Mistake(Arc<Mutex<Option<S3Error>>>);

impl Mistake {
    /// The mistake, once the body has been read.
    pub(super) fn take(&self) -> Option<S3Error> {
        self.0.lock().take()
    }

    fn note(&self, error: S3Error) -> BodyError {
        self.0.lock().get_or_insert(error);
        BodyError::Chunks { detail: "the body is not what its digests say" }
    }
}

/// A body with its digests.
pub(super) struct Checked {
    inner: TimedBody,
    expected: Option<Expected>,
    /// Bytes that are still to come, where the client said how many there are.
    left: Option<u64>,
    received: usize,
    mistake: Mistake,
}

struct Expected {
    hashers: Hashers,
    sha256: Option<([u8; 32], digest::Context)>,
}

impl Checked {
    /// Checks `inner` against what the headers announce. Chunked bodies bring their own signatures and trailers.
    ///
    /// The checksum that comes with a completion is the object's, not the document's.
    pub(super) fn new(
        inner: TimedBody,
        headers: &HeaderMap,
        is_completion: bool,
        mistake: Mistake,
    ) -> S3Result<Self> {
        let payload =
            headers.get("x-amz-content-sha256").map(http::HeaderValue::as_bytes).unwrap_or_default();
        if payload.starts_with(b"STREAMING-") {
            return Ok(Self { inner, expected: None, left: None, received: 0, mistake });
        }
        let mut sha256 = [0u8; 32];
        let is_hash = hex::decode_to_slice(payload, &mut sha256).is_ok();
        let announced = if is_completion {
            let md5 = headers.get("content-md5").cloned();
            let only_md5 = md5.map(|value| (http::HeaderName::from_static("content-md5"), value));
            Announced::from_headers(&only_md5.into_iter().collect())?
        } else {
            Announced::from_headers(headers)?
        };
        let expected = Expected {
            hashers: announced.hashers(None),
            sha256: is_hash.then(|| (sha256, digest::Context::new(&digest::SHA256))),
        };
        let left =
            headers.get(http::header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        Ok(Self { inner, expected: Some(expected), left, received: 0, mistake })
    }

    fn finish(&mut self) -> Result<(), BodyError> {
        let Some(expected) = self.expected.take() else { return Ok(()) };
        if let Some((announced, context)) = expected.sha256
            && !bool::from(context.finish().as_ref().ct_eq(&announced))
        {
            return Err(self.mistake.note(error::sha256_differs()));
        }
        expected.hashers.finish(None).map(|_| ()).map_err(|error| self.mistake.note(error))
    }
}

impl Body for Checked {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        match ready!(Pin::new(&mut this.inner).poll_frame(cx)) {
            Some(Ok(frame)) => {
                this.received += frame.data_ref().map_or(0, Bytes::len);
                if this.received > XML_BODY_BYTES_MAX {
                    return Poll::Ready(Some(Err(this.mistake.note(error::document_too_long()))));
                }
                if let (Some(expected), Some(bytes)) = (&mut this.expected, frame.data_ref()) {
                    expected.hashers.update(bytes);
                    if let Some((_, context)) = &mut expected.sha256 {
                        context.update(bytes);
                    }
                }
                // The library asks for no end behind the last byte, and judges the hash by itself.
                let len = frame.data_ref().map_or(0, |bytes| bytes.len() as u64);
                this.left = this.left.map(|left| left.saturating_sub(len));
                if this.left == Some(0)
                    && let Err(error) = this.finish()
                {
                    return Poll::Ready(Some(Err(error)));
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(source)) => {
                this.mistake.note(error::body(&source));
                Poll::Ready(Some(Err(source)))
            }
            None => Poll::Ready(this.finish().err().map(Err)),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_of_objects_and_parts_are_told_from_documents() {
        let object = Target { bucket: "b".to_owned(), key: "k".to_owned() };
        let bucket = Target { key: String::new(), ..object.clone() };
        for (method, query, target, expected) in [
            (Method::PUT, None, &object, true),
            (Method::PUT, Some("partNumber=1&uploadId=x"), &object, true),
            (Method::PUT, Some("X-Amz-Signature=1&x-id=PutObject"), &object, true),
            (Method::PUT, Some("tagging"), &object, false),
            (Method::PUT, Some("retention=&versionId=x"), &object, false),
            (Method::PUT, None, &bucket, false),
            (Method::POST, Some("uploadId=x"), &object, false),
            (Method::POST, Some("delete"), &bucket, false),
        ] {
            assert_eq!(is_object(&method, query, Some(target)), expected, "{method} {query:?} {target:?}");
        }
    }
}
