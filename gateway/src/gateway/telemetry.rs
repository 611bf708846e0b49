//! Metrics: names, units and labels in one place, and their text form.

use std::sync::OnceLock;
use std::time::Duration;

use http::{Method, StatusCode};
use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

/// S3 requests answered, by method and status class.
const S3_REQUESTS: &str = "holdfast_s3_requests_total";
/// Seconds until an S3 answer began.
const S3_SECONDS: &str = "holdfast_s3_first_answer_seconds";
/// S3 requests whose answer has not begun.
const S3_IN_FLIGHT: &str = "holdfast_s3_requests_in_flight";
/// Nodes by state.
const NODES: &str = "holdfast_nodes";
/// Bytes leased by uploads.
const UPLOAD_BYTES: &str = "holdfast_upload_memory_bytes";
/// Blocks committed or released at nodes, by kind.
const DELIVERED: &str = "holdfast_delivered_blocks_total";
/// Lines of evidence against nodes.
const CULPRITS: &str = "holdfast_culprit_lines";

const SECONDS_BUCKETS: [f64; 10] = [0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0];

/// The recorder of this process; the first caller installs it.
pub(crate) fn recorder() -> Option<&'static PrometheusHandle> {
    static HANDLE: OnceLock<Option<PrometheusHandle>> = OnceLock::new();
    HANDLE
        .get_or_init(|| {
            let builder = PrometheusBuilder::new()
                .set_buckets_for_metric(Matcher::Full(S3_SECONDS.to_owned()), &SECONDS_BUCKETS)
                .ok()?;
            let handle = builder.install_recorder().inspect_err(|error| {
                tracing::warn!(%error, "another metrics recorder is installed; /metrics stays empty");
            });
            describe();
            handle.ok()
        })
        .as_ref()
}

fn describe() {
    describe_counter!(S3_REQUESTS, Unit::Count, "S3 requests answered, by method and status class");
    describe_histogram!(S3_SECONDS, Unit::Seconds, "Seconds until an S3 answer began");
    describe_gauge!(S3_IN_FLIGHT, Unit::Count, "S3 requests whose answer has not begun");
    describe_gauge!(NODES, Unit::Count, "Known nodes by state");
    describe_gauge!(UPLOAD_BYTES, Unit::Bytes, "Memory leased by uploads");
    describe_counter!(DELIVERED, Unit::Count, "Blocks committed or released at nodes");
    describe_gauge!(CULPRITS, Unit::Count, "Lines of evidence against nodes");
}

/// Counts a request as in flight while it lives.
pub(crate) struct S3InFlight;

impl S3InFlight {
    pub(crate) fn enter() -> Self {
        gauge!(S3_IN_FLIGHT).increment(1.0);
        Self
    }
}

impl Drop for S3InFlight {
    fn drop(&mut self) {
        gauge!(S3_IN_FLIGHT).decrement(1.0);
    }
}

/// An S3 request was answered.
pub(crate) fn s3_answered(method: &Method, status: StatusCode, after: Duration) {
    let method = match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::PUT => "PUT",
        Method::POST => "POST",
        Method::DELETE => "DELETE",
        _ => "other",
    };
    let class = match status.as_u16() {
        100..=199 => "1xx",
        200..=299 => "2xx",
        300..=399 => "3xx",
        400..=499 => "4xx",
        _ => "5xx",
    };
    counter!(S3_REQUESTS, "method" => method, "status" => class).increment(1);
    histogram!(S3_SECONDS, "method" => method).record(after);
}

/// Blocks were committed or released.
pub(crate) fn delivered(kind: &'static str, blocks: usize) {
    counter!(DELIVERED, "kind" => kind).increment(blocks as u64);
}

/// Figures that are looked up when somebody asks.
#[allow(clippy::cast_precision_loss, reason = "gauges are floats; these are far below 2^53")]
pub(crate) fn gauges(up: usize, down: usize, unknown: usize, upload_bytes: usize, culprits: usize) {
    gauge!(NODES, "state" => "up").set(up as f64);
    gauge!(NODES, "state" => "down").set(down as f64);
    gauge!(NODES, "state" => "unknown").set(unknown as f64);
    gauge!(UPLOAD_BYTES).set(upload_bytes as f64);
    gauge!(CULPRITS).set(culprits as f64);
}
