//! Uploads by HTML form (POST Object): a policy that somebody signed, and a browser that fills in the rest.
//!
//! The library would hold forms without a bound, take Signature Version 2 in them, and refuse forms that were signed more
//! than a quarter of an hour ago. So they are read here: at most [`FORM_BYTES_MAX`] each, and as much for all forms
//! together; a longer file goes by PUT or in parts. Nobody without a key may post.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, LOCATION};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body_util::BodyExt;
use s3s::dto::Metadata;
use s3s::{Body, S3Error, S3Result, s3_error};
use tokio::sync::Semaphore;

use self::form::Form;
use super::checksum::{Algorithm, Announced};
use super::{access, asked, attributes, bucket_policy, buckets, error, lock, objects, put, versions};
use crate::gateway::Core;
use crate::gateway::body::TimedBody;
use crate::meta::{Attributes, Bucket, Object, PutCondition};

mod form;
mod signed;

/// Bytes of one form, the file and all fields.
const FORM_BYTES_MAX: usize = 64 * 1024 * 1024;

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
    let (parts, body) = request.into_parts();
    let length =
        parts.headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    let Some(length) = length else {
        return Err(s3_error!(MissingContentLength, "You must provide the Content-Length HTTP header."));
    };
    if length > FORM_BYTES_MAX {
        return Err(s3_error!(
            EntityTooLarge,
            "A form may have {FORM_BYTES_MAX} bytes here; upload longer files with PUT or in parts"
        ));
    }
    let permits = u32::try_from(length.max(1)).unwrap_or(u32::MAX);
    let held = Arc::clone(&core.forms.0).acquire_many_owned(permits).await;
    let _held = held.map_err(|_| s3_error!(InternalError, "The gateway is stopping"))?;
    let bytes = read(body, length).await?;
    let content_type =
        parts.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let form = Form::parse(content_type, bytes)?;
    let signer = signed::check(core, &form, bucket).await?;
    let _place = core
        .fair
        .enter(signer.id())
        .await
        .map_err(|_| error::slow_down("Too many requests of this key wait already".to_owned()))?;
    let key = form.key()?;
    access::may_post(core, &signer, (bucket, &key), form.file().len() as u64).await?;
    let bucket = buckets::existing(core, bucket).await?;
    bucket_policy::may(core, &bucket, signer.id(), "PostObject", &key).await?;
    let object = store(core, &bucket, &key, &form).await?;
    Ok(answered(&form, &bucket, &key, &object))
}

async fn read(mut body: TimedBody, length: usize) -> S3Result<Bytes> {
    let mut bytes = BytesMut::with_capacity(length);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|source| error::body(&source))?;
        if let Ok(data) = frame.into_data() {
            bytes.extend_from_slice(&data);
        }
        if bytes.len() > length {
            return Err(s3_error!(InvalidRequest, "The body is longer than announced"));
        }
    }
    if bytes.len() < length {
        return Err(s3_error!(
            IncompleteBody,
            "You did not provide the number of bytes specified by the Content-Length HTTP header"
        ));
    }
    Ok(bytes.freeze())
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
    if headers.contains_key("tagging") {
        return Err(s3_error!(NotImplemented, "The form field tagging is not implemented"));
    }
    Ok((headers, metadata))
}

async fn store(core: &Arc<Core>, bucket: &Bucket, key: &str, form: &Form) -> S3Result<Object> {
    let (headers, metadata) = headers_of(form)?;
    asked::check(bucket, &headers)?;
    let mut kept: Attributes = attributes::from_request(&headers, Some(&metadata))?;
    kept.lock = lock::of_new(bucket, None, None, None, core.config.clock.now_ms())?;
    core.plane.writable(&error::policy_of(bucket)?).map_err(error::not_writable)?;
    let hashers = Announced::from_headers(&headers)?.hashers(Some(Algorithm::Crc64Nvme));
    let file = form.file();
    let size = file.len() as u64;
    let body = futures::stream::iter((!file.is_empty()).then(|| Ok(file.clone())));
    let received = put::store(core, bucket, body, size, hashers, None).await?;
    let object =
        objects::commit(core, bucket.clone(), key.to_owned(), kept, received, PutCondition::Any).await?;
    lock::retain(core, bucket, &object).await?;
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
