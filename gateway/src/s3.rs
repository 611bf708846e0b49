//! The S3 side: one HTTP service over the S3 library, with what the library leaves to us in front and behind.
//!
//! In front: Signature Version 2 refused, a request id. Behind: counters, and a log line for server faults. What an
//! operation means is in [`service`] and the files it names; XML, SigV4 and routing are the library's.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use futures::FutureExt;
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use s3s::config::{S3Config, StaticConfigProvider};
use s3s::dto::{Timestamp, TimestampFormat};
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s::{Body, S3Error, s3_error};

use crate::gateway::Core;
use crate::gateway::body::TimedBody;
use crate::gateway::listen::{AnswerError, BoxError, Handler, answer_body};
use crate::gateway::telemetry;

mod access;
mod asked;
mod attributes;
mod bodies;
mod bucket_acl;
mod bucket_policy;
mod bucket_settings;
mod buckets;
mod checksum;
mod condition;
mod conditions;
mod copy;
mod cors;
mod delete;
mod document;
mod error;
mod etag;
pub(crate) mod fair;
pub(crate) mod get;
pub(crate) mod host;
pub(crate) mod lifecycle;
mod list;
mod lock;
mod multipart;
mod objects;
mod policy;
pub(crate) mod post;
mod public_access;
mod put;
mod read;
pub(crate) mod rechunk;
mod refusal;
mod refuse;
mod rename;
mod service;
pub(crate) mod session;
pub(crate) mod snapshots;
mod tagging;
#[cfg(test)]
mod tests;
mod ticket;
mod versions;

/// Bodies that the library parses whole (XML): DeleteObjects names 1,000 keys of 1 KiB, Complete 10,000 parts.
const XML_BODY_BYTES_MAX: usize = 4 * 1024 * 1024;
/// S3's limit on a request's clock, either way.
const CLOCK_SKEW_MAX_S: u32 = 15 * 60;
const REQUEST_ID: HeaderName = HeaderName::from_static("x-amz-request-id");

/// The handler of the S3 listener.
pub(crate) fn handler(core: Arc<Core>) -> Handler {
    let service = library(Arc::clone(&core));
    let requests = AtomicU64::new(0);
    let instance: u32 = rand_u32();
    Arc::new(move |request| {
        let id = format!("{instance:08X}{:08X}", requests.fetch_add(1, Ordering::Relaxed));
        let service = service.clone();
        let core = Arc::clone(&core);
        async move {
            let started = Instant::now();
            let in_flight = telemetry::S3InFlight::enter();
            let method = request.method().clone();
            let expects = request.headers().contains_key(header::EXPECT);
            let (asked_for, read_to_end) = (request.body().asked_for(), request.body().read_to_end());
            let session = session::Session::begin(&core, &request);
            let resource = request.uri().path().to_owned();
            let response = session.scope(answer(&core, &service, request)).await?;
            let mut response = refusal::completed(response, &id, &resource);
            let is_unasked = expects && !asked_for.load(Ordering::Relaxed);
            if is_unasked || !read_to_end.load(Ordering::Relaxed) {
                // What is left of the body stands between this answer and the next request: the connection ends here,
                // and a client that is told so does not try it again. One that got its answer instead of
                // "100 Continue" may also take the next answer for a part of this one, as botocore does.
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            drop(in_flight);
            telemetry::s3_answered(&method, response.status(), started.elapsed());
            core.s3_requests.fetch_add(1, Ordering::Relaxed);
            if let Ok(id) = HeaderValue::try_from(id) {
                response.headers_mut().insert(REQUEST_ID, id);
            }
            Ok(session.answered(response).map(answer_body))
        }
        .boxed()
    })
}

async fn answer(
    core: &Arc<Core>,
    service: &S3Service,
    request: Request<TimedBody>,
) -> Result<Response<Body>, AnswerError> {
    let target = host::target(&request, &core.domains);
    let bucket = target.as_ref().map(|target| target.bucket.as_str());
    if request.method() == Method::OPTIONS {
        return cors::preflight(core, bucket, request.headers()).await.or_else(refused);
    }
    let origin = request.headers().get(header::ORIGIN).cloned();
    let method = request.method().clone();
    let mut response = match refuse::refusal(&request) {
        Some(refusal) => refused(refusal)?,
        None if refuse::is_form(&request) => match bucket {
            Some(bucket) => post::answer(core, request, bucket).await.or_else(refused)?,
            None => refused(s3_error!(MethodNotAllowed, "A form is posted to a bucket"))?,
        },
        None => call(core, service, request, target.as_ref()).await?,
    };
    if let Some(origin) = origin {
        cors::decorate(core, bucket, (&origin, &method), &mut response).await;
    }
    Ok(response)
}

fn refused(refusal: S3Error) -> Result<Response<Body>, AnswerError> {
    refusal.to_http_response().map_err(|error| AnswerError(error.into()))
}

async fn call(
    core: &Core,
    service: &S3Service,
    request: Request<TimedBody>,
    target: Option<&host::Target>,
) -> Result<Response<Body>, AnswerError> {
    let request = with_servable_conditions(request);
    let is_head = request.method() == Method::HEAD;
    let mistake = bodies::Mistake::default();
    let is_object = bodies::is_object(request.method(), request.uri().query(), target);
    if !is_object && session::declared_len(request.headers()) > XML_BODY_BYTES_MAX as u64 {
        return refused(error::document_too_long());
    }
    let request = match rechunk::Chunks::of(request.headers()) {
        Some(chunks) => {
            let memory = core.chunks.clone();
            request.map(|body| Body::http_body_unsync(rechunk::Rechunked::new(body, chunks, memory)))
        }
        None if is_object => request.map(Body::http_body_unsync),
        None => {
            let (parts, body) = request.into_parts();
            let is_completion = bodies::is_completion(&parts);
            match bodies::Checked::new(body, &parts.headers, is_completion, mistake.clone()) {
                Ok(body) => Request::from_parts(parts, Body::http_body_unsync(body)),
                Err(error) => return refused(error),
            }
        }
    };
    let mut response = service.call(request).await.map_err(|error| AnswerError(BoxError::from(error)))?;
    if is_head
        && response.headers().contains_key(header::CONTENT_RANGE)
        && response.status() == StatusCode::OK
    {
        // The library gives a HEAD no other status.
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    // A document that was not what its digests say changed nothing: it was read before anything was done.
    match mistake.take() {
        Some(mistake) => refused(mistake),
        None => Ok(response),
    }
}

/// Drops a Range that is not one range of bytes, and conditions on dates that are none: HTTP lets a server answer the one
/// with the whole, and demands that it ignores the others. What a signature covers must stay, and is answered by 400.
fn with_servable_conditions<B>(mut request: Request<B>) -> Request<B> {
    let is_date = |value: &HeaderValue| {
        value.to_str().is_ok_and(|text| Timestamp::parse(TimestampFormat::HttpDate, text).is_ok())
    };
    // The library takes a suffix without a length for one of length 0.
    let is_range = |value: &HeaderValue| {
        value.to_str().is_ok_and(|text| text != "bytes=-" && s3s::dto::Range::parse(text).is_ok())
    };
    for name in [header::RANGE, header::IF_MODIFIED_SINCE, header::IF_UNMODIFIED_SINCE] {
        let Some(value) = request.headers().get(&name) else { continue };
        let is_servable = if name == header::RANGE { is_range(value) } else { is_date(value) };
        if !is_servable && !refuse::is_signed(&request, name.as_str()) {
            request.headers_mut().remove(name);
        }
    }
    request
}

fn library(core: Arc<Core>) -> S3Service {
    let mut config = S3Config::default();
    config.xml_max_body_size = XML_BODY_BYTES_MAX;
    config.presigned_url_max_skew_time_secs = CLOCK_SKEW_MAX_S;
    let domains = core.domains.clone();
    let gatekeeper = access::Gatekeeper { core: Arc::clone(&core) };
    let mut builder = S3ServiceBuilder::new(service::Holdfast { core: Arc::clone(&core) });
    let tickets = ticket::TicketRoute { core: Arc::clone(&core) };
    builder.set_route(snapshots::Routes { tickets, core });
    builder.set_config(Arc::new(StaticConfigProvider::new(Arc::new(config))));
    builder.set_auth(gatekeeper.clone());
    builder.set_access(gatekeeper);
    builder.set_host(domains);
    builder.build()
}

/// Tells this process's request ids from those of its last life; nothing depends on it.
fn rand_u32() -> u32 {
    let mut bytes = [0u8; 4];
    let _ = getrandom::fill(&mut bytes);
    u32::from_le_bytes(bytes)
}
