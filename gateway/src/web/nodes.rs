//! Nodes over the admin API: listed, taken in, taken out.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Json, Response};
use futures::StreamExt;
use holdfast_protocol::NodeId;
use holdfast_protocol::cbor;
use holdfast_protocol::message::NodeStatus;
use holdfast_protocol::record::{NodeRecord, Unverified};
use holdfast_retrieval::pool::{NodeState, NodeView};

use super::api::{AddNode, NodeList, NodeRow};
use super::{meta_failed, refuse};
use crate::background::{self, AdmitError};
use crate::gateway::Core;

/// Nodes asked for their counters at the same time, and how long one may take.
const ASKED_AT_ONCE: usize = 32;
const ANSWER_WITHIN: Duration = Duration::from_secs(1);

pub(super) async fn list(State(core): State<Arc<Core>>) -> Json<NodeList> {
    Json(NodeList { nodes: rows(&core).await })
}

/// All known nodes, with the counters of those that answer.
pub(super) async fn rows(core: &Core) -> Vec<NodeRow> {
    futures::stream::iter(core.pool.nodes())
        .map(|view| async move {
            let status = if view.state == NodeState::Up { ask(core, view.known.id).await } else { None };
            row(&view, status)
        })
        .buffered(ASKED_AT_ONCE)
        .collect()
        .await
}

async fn ask(core: &Core, id: NodeId) -> Option<NodeStatus> {
    let asking = async { core.pool.peer(id).await.ok()?.status().await.ok() };
    tokio::time::timeout(ANSWER_WITHIN, asking).await.ok().flatten()
}

fn row(view: &NodeView, status: Option<NodeStatus>) -> NodeRow {
    let known = &view.known;
    let (used_bytes, free_bytes, blocks) = match &status {
        Some(status) => (status.used_bytes, status.free_bytes, status.blocks),
        None => (known.capacity_bytes.saturating_sub(known.free_bytes), known.free_bytes, 0),
    };
    let latency = if view.small.samples > 0 { view.small.average } else { view.large.average };
    NodeRow {
        id: known.id.to_string(),
        state: match view.state {
            NodeState::Up => "up",
            NodeState::Down { .. } => "down",
            NodeState::Unknown => "unknown",
        }
        .to_owned(),
        addresses: known.addresses.clone(),
        agreed: known.agreement.is_some(),
        capacity_bytes: status.as_ref().map_or(known.capacity_bytes, |status| status.capacity_bytes),
        used_bytes,
        free_bytes,
        blocks,
        latency_us: u64::try_from(latency.as_micros()).unwrap_or(u64::MAX),
        culprit_count: view.lies,
    }
}

pub(super) async fn add(State(core): State<Arc<Core>>, Json(request): Json<AddNode>) -> Response {
    let Some(bytes) = request.wire_bytes() else {
        return refuse(StatusCode::BAD_REQUEST, "`record` is not base64");
    };
    let record: Unverified<NodeRecord> = match cbor::decode(&bytes) {
        Ok(record) => record,
        Err(error) => {
            return refuse(StatusCode::BAD_REQUEST, format!("`record` is no signed node record: {error}"));
        }
    };
    let facts = match record.verify() {
        Ok(signed) => signed.into_record(),
        Err(error) => return refuse(StatusCode::BAD_REQUEST, error.to_string()),
    };
    let addresses: Vec<_> = facts.addresses.iter().filter_map(|text| text.parse().ok()).collect();
    if addresses.is_empty() {
        return refuse(StatusCode::BAD_REQUEST, "the record names no address that can be dialled (IP:PORT)");
    }
    match background::admit(&core, facts.node, addresses, Some(record)).await {
        Ok(_) => {
            let row = core.pool.node(facts.node).map(|view| row(&view, None));
            Json(row).into_response()
        }
        Err(error) => admit_failed(&error),
    }
}

fn admit_failed(error: &AdmitError) -> Response {
    let status = match error {
        AdmitError::Record { .. } | AdmitError::NoRecord { .. } => StatusCode::BAD_REQUEST,
        AdmitError::Meta(error) => return meta_failed(error),
        error if error.is_retryable() => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::BAD_GATEWAY,
    };
    refuse(status, error.to_string())
}

pub(super) async fn remove(State(core): State<Arc<Core>>, Path(id): Path<String>) -> Response {
    let Ok(id) = id.parse::<NodeId>() else {
        return refuse(StatusCode::BAD_REQUEST, "the path does not end in a node's id (z6Mk…)");
    };
    match background::remove(&core, id).await {
        Ok(true) => StatusCode::NO_CONTENT.into_response(),
        Ok(false) => refuse(StatusCode::NOT_FOUND, format!("node {id} is not known here")),
        Err(error) => meta_failed(&error),
    }
}
