//! Nodes over the admin API: listed, taken out. How they come in is in [`super::join`].

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Json, Response};
use futures::StreamExt;
use holdfast_protocol::NodeId;
use holdfast_protocol::message::NodeStatus;
use holdfast_retrieval::pool::{NodeState, NodeView};

use super::api::{LeavingRow, NodeList, NodeRow};
use super::{meta_failed, refuse};
use crate::background;
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
            row(core, &view, status)
        })
        .buffered(ASKED_AT_ONCE)
        .collect()
        .await
}

async fn ask(core: &Core, id: NodeId) -> Option<NodeStatus> {
    let asking = async { core.pool.peer(id).await.ok()?.status().await.ok() };
    tokio::time::timeout(ANSWER_WITHIN, asking).await.ok().flatten()
}

pub(super) fn row(core: &Core, view: &NodeView, status: Option<NodeStatus>) -> NodeRow {
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
        dials_in: known.addresses.is_empty() && known.agreement.is_some(),
        leaving: core.drains.progress(known.id).map(|progress| LeavingRow {
            shards_left: progress.shards_left,
            bytes_left: progress.bytes_left,
            shards_moved: progress.shards_moved,
            done: progress.done,
            note: progress.note,
        }),
    }
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
