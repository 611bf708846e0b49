//! The S3 side: one HTTP service over the S3 library, with what the library leaves to us in front and behind.
//!
//! In front: Signature Version 2 refused, a request id. Behind: counters, and a log line for server faults. What an
//! operation means is in [`service`] and the files it names; XML, SigV4 and routing are the library's.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use futures::FutureExt;
use http::{HeaderName, HeaderValue, Request, Response, header};
use s3s::Body;
use s3s::config::{S3Config, StaticConfigProvider};
use s3s::service::{S3Service, S3ServiceBuilder};

use crate::gateway::Core;
use crate::gateway::body::TimedBody;
use crate::gateway::listen::{AnswerError, BoxError, Handler, answer_body};
use crate::gateway::telemetry;

mod access;
mod attributes;
mod buckets;
mod checksum;
mod conditions;
mod copy;
mod error;
mod etag;
mod get;
mod list;
mod multipart;
mod objects;
mod put;
mod rechunk;
mod refuse;
mod rename;
mod service;
pub(crate) mod session;
#[cfg(test)]
mod tests;
mod ticket;

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
            let asked_for = request.body().asked_for();
            let session = session::Session::begin(&core, &request);
            let mut response = session.scope(answer(&service, request)).await?;
            if expects && !asked_for.load(Ordering::Relaxed) {
                // The client gets its answer instead of "100 Continue". botocore then takes the next answer on the
                // connection for a part of this one, so it must not use the connection again.
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

async fn answer(service: &S3Service, request: Request<TimedBody>) -> Result<Response<Body>, AnswerError> {
    if let Some(refusal) = refuse::refusal(&request) {
        return refusal.to_http_response().map_err(|error| AnswerError(error.into()));
    }
    let request = with_servable_range(request);
    let request = match rechunk::Chunks::of(request.headers()) {
        Some(chunks) => request.map(|body| Body::http_body_unsync(rechunk::Rechunked::new(body, chunks))),
        None => request.map(Body::http_body_unsync),
    };
    service.call(request).await.map_err(|error| AnswerError(BoxError::from(error)))
}

/// Drops a Range that is not one range of bytes, or that hangs on a condition: HTTP lets a server answer both with the
/// whole, which is right where 400 or a piece of another version would not be.
fn with_servable_range<B>(mut request: Request<B>) -> Request<B> {
    let headers = request.headers_mut();
    let is_range =
        |value: &HeaderValue| value.to_str().is_ok_and(|text| s3s::dto::Range::parse(text).is_ok());
    if headers.contains_key(http::header::IF_RANGE)
        || headers.get(http::header::RANGE).is_some_and(|value| !is_range(value))
    {
        headers.remove(http::header::RANGE);
    }
    request
}

fn library(core: Arc<Core>) -> S3Service {
    let mut config = S3Config::default();
    config.xml_max_body_size = XML_BODY_BYTES_MAX;
    config.presigned_url_max_skew_time_secs = CLOCK_SKEW_MAX_S;
    let gatekeeper = access::Gatekeeper { core: Arc::clone(&core) };
    let mut builder = S3ServiceBuilder::new(service::Holdfast { core: Arc::clone(&core) });
    builder.set_route(ticket::TicketRoute { core });
    builder.set_config(Arc::new(StaticConfigProvider::new(Arc::new(config))));
    builder.set_auth(gatekeeper.clone());
    builder.set_access(gatekeeper);
    builder.build()
}

/// Tells this process's request ids from those of its last life; nothing depends on it.
fn rand_u32() -> u32 {
    let mut bytes = [0u8; 4];
    let _ = getrandom::fill(&mut bytes);
    u32::from_le_bytes(bytes)
}
