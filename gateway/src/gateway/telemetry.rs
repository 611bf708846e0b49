//! Metrics: names, units and labels in one place, and their text form.

use std::sync::OnceLock;
use std::time::Duration;

use holdfast_retrieval::fetch::Fetcher;
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
/// What repair did without being told, by kind: shards rebuilt, bytes read, bytes written.
const REPAIRED: &str = "holdfast_repair_total";
/// Stripes by what they wait for: their turn, further nodes, shards that cannot be read.
const REPAIR_WAITING: &str = "holdfast_repair_stripes_waiting";
/// Shards that answering nodes were found to have lost.
const SHARDS_LOST: &str = "holdfast_shards_lost_total";
/// What packing did, by kind: merges, stripes absorbed, merges given up.
const PACKED: &str = "holdfast_packing_total";
/// Bytes that packing moved or let go, by kind.
const PACKED_BYTES: &str = "holdfast_packing_bytes_total";
/// Stripes that wait to be packed.
const PACK_WAITING: &str = "holdfast_packing_stripes_waiting";
/// Bytes stored per byte of live data, now and after packing.
const EXPANSION: &str = "holdfast_expansion_ratio";
/// Lines of evidence against nodes.
const CULPRITS: &str = "holdfast_culprit_lines";

/// Reads of blocks, by how they were served.
const FETCHES: &str = "holdfast_block_reads_total";
/// Verified bytes that nodes sent.
const FETCHED_BYTES: &str = "holdfast_block_read_bytes_total";
/// Look-ups in the cache of blocks, by outcome.
const CACHE_LOOKUPS: &str = "holdfast_block_cache_lookups_total";
/// Bytes of the cache of blocks, by place.
const CACHE_BYTES: &str = "holdfast_block_cache_bytes";
/// Blocks that the cache's disk has damaged.
const CACHE_DAMAGED: &str = "holdfast_block_cache_damaged_total";

/// Metadata transactions decided, by outcome: committed, or refused because what they relied on had changed.
const META_TRANSACTIONS: &str = "holdfast_meta_transactions_total";
/// Groups of metadata transactions committed; each is one sync.
const META_GROUPS: &str = "holdfast_meta_groups_total";
/// Groups that a shared database refused because another gateway's commit was in the way, and that were decided again.
const META_LOST: &str = "holdfast_meta_groups_lost_total";
/// Operations on metadata that read and decided again because somebody else was faster.
const META_RETRIES: &str = "holdfast_meta_retries_total";

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
    describe_counter!(
        REPAIRED,
        Unit::Count,
        "Shards rebuilt by automatic repair, and bytes it moved for that"
    );
    describe_gauge!(REPAIR_WAITING, Unit::Count, "Damaged stripes by what they wait for");
    describe_counter!(SHARDS_LOST, Unit::Count, "Shards that answering nodes were found to have lost");
    describe_counter!(
        PACKED,
        Unit::Count,
        "Merges done, stripes absorbed by them, and merges given up for now"
    );
    describe_counter!(PACKED_BYTES, Unit::Bytes, "Bytes that packing read, wrote and let go");
    describe_gauge!(PACK_WAITING, Unit::Count, "Stripes that wait to be packed");
    describe_gauge!(EXPANSION, Unit::Count, "Bytes stored per byte of live data, now and after packing");
    describe_counter!(FETCHES, Unit::Count, "Reads of blocks, by how they were served");
    describe_counter!(FETCHED_BYTES, Unit::Bytes, "Verified bytes that nodes sent");
    describe_counter!(CACHE_LOOKUPS, Unit::Count, "Look-ups in the cache of blocks");
    describe_gauge!(CACHE_BYTES, Unit::Bytes, "Bytes of the cache of blocks");
    describe_counter!(CACHE_DAMAGED, Unit::Count, "Cached blocks that the disk has damaged");
    describe_counter!(META_TRANSACTIONS, Unit::Count, "Metadata transactions decided, by outcome");
    describe_counter!(META_GROUPS, Unit::Count, "Groups of metadata transactions committed, one sync each");
    describe_counter!(
        META_LOST,
        Unit::Count,
        "Groups that a shared database refused because another gateway was in the way"
    );
    describe_counter!(META_RETRIES, Unit::Count, "Operations on metadata that were decided again");
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

/// A run of automatic repair ended.
#[allow(clippy::cast_precision_loss, reason = "gauges are floats; these are far below 2^53")]
pub(crate) fn repaired(progress: &holdfast_retrieval::repair::RepairProgress) {
    counter!(REPAIRED, "kind" => "shards").increment(progress.shards_rebuilt);
    counter!(REPAIRED, "kind" => "bytes_read").increment(progress.bytes_read);
    counter!(REPAIRED, "kind" => "bytes_written").increment(progress.bytes_written);
    gauge!(REPAIR_WAITING, "for" => "turn").set(progress.remaining as f64);
    gauge!(REPAIR_WAITING, "for" => "nodes").set(progress.waiting as f64);
}

/// A node that answers has lost a shard.
pub(crate) fn shard_lost() {
    counter!(SHARDS_LOST).increment(1);
}

/// A round of packing ended.
#[allow(clippy::cast_precision_loss, reason = "gauges are floats; this is far below 2^53")]
pub(crate) fn packed(report: &holdfast_retrieval::pack::PackReport) {
    counter!(PACKED, "kind" => "merge").increment(report.merges);
    counter!(PACKED, "kind" => "absorbed").increment(report.stripes_absorbed);
    counter!(PACKED, "kind" => "given_up").increment(report.failed);
    counter!(PACKED_BYTES, "kind" => "read").increment(report.bytes_read);
    counter!(PACKED_BYTES, "kind" => "written").increment(report.bytes_written);
    counter!(PACKED_BYTES, "kind" => "released").increment(report.bytes_released);
    gauge!(PACK_WAITING).set(report.candidates as f64);
}

/// The whole stripe table was looked through.
#[allow(clippy::cast_precision_loss, reason = "a ratio")]
pub(crate) fn expansion(stored: u64, packed: u64, live: u64) {
    if live > 0 {
        gauge!(EXPANSION, "when" => "now").set(stored as f64 / live as f64);
        gauge!(EXPANSION, "when" => "after_packing").set(packed as f64 / live as f64);
    }
}

/// A group of metadata transactions was decided and committed.
pub(crate) fn meta_group(committed: usize, refused: usize) {
    counter!(META_GROUPS).increment(1);
    counter!(META_TRANSACTIONS, "outcome" => "committed").increment(committed as u64);
    counter!(META_TRANSACTIONS, "outcome" => "refused").increment(refused as u64);
}

/// A group lost to another gateway's.
pub(crate) fn meta_group_lost() {
    counter!(META_LOST).increment(1);
}

/// An operation on metadata is tried again.
pub(crate) fn meta_retried() {
    counter!(META_RETRIES).increment(1);
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

/// What the fetcher and its cache did since the start, looked up when somebody asks.
#[allow(clippy::cast_precision_loss, reason = "gauges are floats; these are far below 2^53")]
pub(crate) fn fetched(fetcher: &Fetcher) {
    let counts = fetcher.counts();
    for (how, count) in [
        ("direct", counts.direct),
        ("cached", counts.cached),
        ("rebuilt", counts.rebuilt),
        ("hedged", counts.hedged),
    ] {
        counter!(FETCHES, "how" => how).absolute(count);
    }
    counter!(FETCHED_BYTES).absolute(counts.node_bytes);
    let Some(cache) = fetcher.cache().map(|cache| cache.counts()) else { return };
    for (outcome, count) in [("memory", cache.memory_hits), ("disk", cache.disk_hits), ("miss", cache.misses)]
    {
        counter!(CACHE_LOOKUPS, "outcome" => outcome).absolute(count);
    }
    gauge!(CACHE_BYTES, "place" => "memory").set(cache.memory_bytes as f64);
    gauge!(CACHE_BYTES, "place" => "disk").set(cache.disk_bytes as f64);
    counter!(CACHE_DAMAGED).absolute(cache.damaged);
}
