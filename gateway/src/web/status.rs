//! Health, metrics and status: what anybody may know.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use holdfast_retrieval::pool::NodeState;

use super::api::{Health, Status};
use super::{meta_failed, repair};
use crate::gateway::{Core, telemetry};
use crate::meta::MetaError;

/// Stripes counted in the completion queue, at most.
const INCOMPLETE_COUNTED_MAX: usize = 1000;

pub(super) async fn health(State(core): State<Arc<Core>>) -> Response {
    let mut problems = core.problems();
    if let Err(error) = core.meta.buckets().await {
        problems.push(format!("the metadata cannot be read: {error}"));
    }
    let ready = problems.is_empty();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(Health { ready, problems })).into_response()
}

pub(super) async fn metrics(State(core): State<Arc<Core>>) -> Response {
    let counts = Counts::of(&core);
    let leased = core.uploads.budget_bytes() - core.uploads.free_bytes();
    telemetry::fetched(&core.fetcher);
    telemetry::gauges(counts.up, counts.down, counts.unknown, leased, core.pool.culprits().len());
    let Some(recorder) = telemetry::recorder() else {
        return super::refuse(StatusCode::SERVICE_UNAVAILABLE, "another metrics recorder is installed");
    };
    recorder.run_upkeep();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], recorder.render()).into_response()
}

pub(super) async fn status(State(core): State<Arc<Core>>) -> Response {
    match gather(&core).await {
        Ok(status) => Json(status).into_response(),
        Err(error) => meta_failed(&error),
    }
}

/// Nodes by state.
struct Counts {
    up: usize,
    down: usize,
    unknown: usize,
    capacity_bytes: u64,
    free_bytes: u64,
}

impl Counts {
    fn of(core: &Core) -> Self {
        let mut counts = Self { up: 0, down: 0, unknown: 0, capacity_bytes: 0, free_bytes: 0 };
        for view in core.pool.nodes() {
            counts.capacity_bytes = counts.capacity_bytes.saturating_add(view.known.capacity_bytes);
            match view.state {
                NodeState::Up => {
                    counts.up += 1;
                    counts.free_bytes = counts.free_bytes.saturating_add(view.known.free_bytes);
                }
                NodeState::Down { .. } => counts.down += 1,
                NodeState::Unknown => counts.unknown += 1,
            }
        }
        counts
    }
}

/// The figures of the status call and of the page.
pub(super) async fn gather(core: &Core) -> Result<Status, MetaError> {
    let counts = Counts::of(core);
    let problems = core.problems();
    let buckets = core.meta.buckets().await?;
    let (mut objects, mut object_bytes) = (0u64, 0u64);
    for bucket in &buckets {
        let usage = core.meta.usage(bucket).await?;
        objects = objects.saturating_add(usage.objects);
        object_bytes = object_bytes.saturating_add(usage.bytes);
    }
    let waiting = !core.meta.commit_queue(None, 1).await?.is_empty()
        || !core.meta.release_queue(None, 1).await?.is_empty();
    let incomplete = core.meta.completion_queue(None, INCOMPLETE_COUNTED_MAX).await?.len();
    Ok(Status {
        software: core.config.software.clone(),
        namespace: core.config.keys.namespace_id().to_string(),
        gateway: core.config.keys.node_id().to_string(),
        quic: super::join::quic(core),
        policy: core.config.policy.name.to_string(),
        ready: problems.is_empty(),
        problems,
        nodes_up: counts.up,
        nodes_known: counts.up + counts.down + counts.unknown,
        nodes_needed: core.config.policy.w,
        capacity_bytes: counts.capacity_bytes,
        free_bytes: counts.free_bytes,
        buckets: buckets.len() as u64,
        objects,
        object_bytes,
        deliveries_waiting: waiting,
        stripes_incomplete: incomplete,
        culprits: core.pool.culprits().len(),
        repair: repair::to_api(core, core.repair.state()),
        owns_upkeep: core.ownership.is_owner(),
        uptime_s: core.started.elapsed().as_secs(),
    })
}
