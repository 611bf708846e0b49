//! Uploads by HTML form (POST Object): a policy that somebody signed, and a browser that fills in the rest.
//!
//! The library would hold forms without a bound, take Signature Version 2 in them, and refuse forms that were signed more
//! than a quarter of an hour ago. So they are read here: at most [`FORM_BYTES_MAX`] each, and as much for all forms
//! together; a longer file goes by PUT or in parts. Nobody without a key may post: what stands in front of the file is read
//! and judged first, and the file gets memory only when somebody who may write it has signed for it.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, LOCATION};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body_util::BodyExt;
use s3s::dto::Metadata;
use s3s::{Body, S3Error, S3Result, s3_error};
use tokio::sync::Semaphore;

use self::form::Form;
use super::checksum::{Algorithm, Announced};
use super::{
    access, asked, attributes, bucket_policy, buckets, error, lock, objects, put, tagging, versions,
};
use crate::gateway::Core;
use crate::gateway::body::TimedBody;
use crate::meta::{Attributes, Bucket, Object, PutCondition};

mod form;
mod signed;

/// Bytes of one form, the file and all fields.
const FORM_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Bytes in front of the file: what a stranger can make us hold.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// The head is parsed again once so much more of it has come, so that a client that drips it costs no more than one that
/// does not.
const HEAD_STEP_BYTES: usize = 2 * 1024;
/// Whoever is refused gets to send so much more, so that the answer arrives before the connection ends.
const DRAIN_BYTES_MAX: usize = 16 * 1024 * 1024;
const DRAIN_TIME_MAX: Duration = Duration::from_secs(5);

/// The memory of forms.
#[derive(Clone)]
pub(crate) struct FormMemory(Arc<Semaphore>);

impl FormMemory {
    /// All of it.
    pub(crate) fn new() -> Self {
        Self(Arc::new(Semaphore::new(FORM_BYTES_MAX)))
    }
}

/// Answers a form.
pub(super) async fn answer(
    core: &Arc<Core>,
    request: Request<TimedBody>,
    bucket: &str,
) -> S3Result<Response<Body>> {
    let (parts, mut body) = request.into_parts();
    let answered = receive(core, &parts.headers, &mut body, bucket).await;
    if answered.is_err() {
        drain(&mut body).await;
    }
    answered
}

async fn receive(
    core: &Arc<Core>,
    headers: &HeaderMap,
    body: &mut TimedBody,
    bucket: &str,
) -> S3Result<Response<Body>> {
    let length = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    let Some(length) = length else {
        return Err(s3_error!(MissingContentLength, "You must provide the Content-Length HTTP header."));
    };
    if length > FORM_BYTES_MAX {
        return Err(s3_error!(
            EntityTooLarge,
            "A form may have {FORM_BYTES_MAX} bytes here; upload longer files with PUT or in parts"
        ));
    }
    let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let (form, bytes) = read_head(body, content_type, length).await?;
    let (signer, conditions) = signed::check(core, &form, bucket).await?;
    let _place = core
        .fair
        .enter(signer.id())
        .await
        .map_err(|_| error::slow_down("Too many requests of this key wait already".to_owned()))?;
    let key = form.key()?;
    access::may_post(core, &signer, (bucket, &key), form.file_len_max(length)).await?;
    let bucket = buckets::existing(core, bucket).await?;
    bucket_policy::may(core, &bucket, signer.id(), "PostObject", &key).await?;
    let permits = u32::try_from(length.max(1)).unwrap_or(u32::MAX);
    let held = Arc::clone(&core.forms.0).acquire_many_owned(permits).await;
    let _held = held.map_err(|_| s3_error!(InternalError, "The gateway is stopping"))?;
    let file = form.file(read_rest(body, bytes, length).await?)?;
    conditions.check_length(file.len() as u64)?;
    let object = store(core, &bucket, &key, (&form, file)).await?;
    Ok(answered(&form, &bucket, &key, &object))
}

/// Reads up to the file; returns the form and what was read.
async fn read_head(body: &mut TimedBody, content_type: &str, length: usize) -> S3Result<(Form, BytesMut)> {
    let mut bytes = BytesMut::new();
    let mut parsed_len = 0;
    loop {
        let is_whole = bytes.len() >= length;
        if is_whole || bytes.len() >= parsed_len + HEAD_STEP_BYTES {
            parsed_len = bytes.len();
            if let Some(form) = Form::parse_head(content_type, &bytes, is_whole)? {
                return Ok((form, bytes));
            }
            if bytes.len() > HEAD_BYTES_MAX {
                return Err(form::error_too_long());
            }
        }
        if !read_more(body, &mut bytes, length).await? {
            return Err(incomplete());
        }
    }
}

/// Reads the rest of the form, which is signed for and has its memory.
async fn read_rest(body: &mut TimedBody, mut bytes: BytesMut, length: usize) -> S3Result<Bytes> {
    bytes.reserve(length - bytes.len().min(length));
    while read_more(body, &mut bytes, length).await? {}
    if bytes.len() < length {
        return Err(incomplete());
    }
    Ok(bytes.freeze())
}

/// Appends what came; false at the end.
async fn read_more(body: &mut TimedBody, bytes: &mut BytesMut, length: usize) -> S3Result<bool> {
    let Some(frame) = body.frame().await else { return Ok(false) };
    if let Ok(data) = frame.map_err(|source| error::body(&source))?.into_data() {
        bytes.extend_from_slice(&data);
    }
    if bytes.len() > length {
        return Err(s3_error!(InvalidRequest, "The body is longer than announced"));
    }
    Ok(true)
}

fn incomplete() -> S3Error {
    s3_error!(
        IncompleteBody,
        "You did not provide the number of bytes specified by the Content-Length HTTP header"
    )
}

/// Reads on for a while and keeps nothing.
async fn drain(body: &mut TimedBody) {
    let read_on = async {
        let mut drained = 0;
        while let Some(Ok(frame)) = body.frame().await {
            drained += frame.data_ref().map_or(0, Bytes::len);
            if drained > DRAIN_BYTES_MAX {
                return;
            }
        }
    };
    // Past the deadline the client meets a closed connection, which is all we owe it.
    let _ = tokio::time::timeout(DRAIN_TIME_MAX, read_on).await;
}

/// The fields as the headers of a PUT would be.
fn headers_of(form: &Form) -> S3Result<(HeaderMap, Metadata)> {
    let (mut headers, mut metadata) = (HeaderMap::new(), Metadata::new());
    for (name, value) in form.fields() {
        if let Some(name) = name.strip_prefix("x-amz-meta-") {
            metadata.insert(name.to_owned(), value.to_owned());
            continue;
        }
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::from_str(value)) {
            headers.insert(name, value);
        }
    }
    Ok((headers, metadata))
}

async fn store(
    core: &Arc<Core>,
    bucket: &Bucket,
    key: &str,
    (form, file): (&Form, Bytes),
) -> S3Result<Object> {
    let (headers, metadata) = headers_of(form)?;
    asked::check(bucket, &headers)?;
    let mut kept: Attributes = attributes::from_request(&headers, Some(&metadata))?;
    kept.tags = form.field("tagging").map_or(Ok(Vec::new()), tagging::of_field)?;
    kept.lock = lock::of_new(bucket, None, None, None, core.config.clock.now_ms())?;
    core.plane.writable(&error::policy_of(bucket)?).map_err(error::not_writable)?;
    let hashers = Announced::from_headers(&headers)?.hashers(Some(Algorithm::Crc64Nvme));
    let size = file.len() as u64;
    let body = futures::stream::iter((!file.is_empty()).then_some(Ok(file)));
    let received = put::store(core, bucket, body, size, hashers, None).await?;
    let object =
        objects::commit(core, bucket.clone(), key.to_owned(), kept, received, PutCondition::Any).await?;
    lock::retain(core, &object).await;
    Ok(object)
}

fn answered(form: &Form, bucket: &Bucket, key: &str, object: &Object) -> Response<Body> {
    let etag = format!("\"{}\"", object.attributes.etag);
    let location = format!("/{}/{}", bucket.name, escaped(key));
    let redirect = form.field("success_action_redirect").or_else(|| form.field("redirect"));
    let (status, body) = match (redirect, form.field("success_action_status")) {
        (Some(_), _) => (StatusCode::SEE_OTHER, Body::empty()),
        (None, Some("200")) => (StatusCode::OK, Body::empty()),
        (None, Some("201")) => {
            let text = format!(
                "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<PostResponse><Location>{}</Location><Bucket>{}</Bucket><Key>{}</Key><ETag>{}</ETag></PostResponse>",
                xml(&location),
                xml(&bucket.name),
                xml(key),
                xml(&etag)
            );
            (StatusCode::CREATED, Body::from(text))
        }
        (None, _) => (StatusCode::NO_CONTENT, Body::empty()),
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let target = match redirect {
        Some(url) => {
            let separator = if url.contains('?') { '&' } else { '?' };
            format!("{url}{separator}bucket={}&key={}&etag={}", bucket.name, escaped(key), escaped(&etag))
        }
        None => location,
    };
    let headers = response.headers_mut();
    headers.extend(objects::cid_header(object));
    for (name, text) in [(http::header::ETAG, etag), (LOCATION, target)] {
        if let Ok(value) = HeaderValue::try_from(text) {
            headers.insert(name, value);
        }
    }
    if let Some(Ok(value)) = versions::id_of(bucket, object).map(HeaderValue::try_from) {
        headers.insert(HeaderName::from_static("x-amz-version-id"), value);
    }
    if status == StatusCode::CREATED {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/xml"));
    }
    response
}

fn escaped(text: &str) -> String {
    super::list::Encoding::Url.text(text.to_owned())
}

fn xml(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn malformed(message: &str) -> S3Error {
    error::custom("MalformedPOSTRequest", StatusCode::BAD_REQUEST, message)
}
