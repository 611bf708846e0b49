//! Repair over the admin API: started, and watched.

use std::collections::HashSet;
use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Json, Response};
use holdfast_protocol::NodeId;
use holdfast_retrieval::repair::{Lost, RepairOptions};

use super::api::{RepairCounts, RepairStatus, StartRepair};
use super::refuse;
use crate::background::RepairState;
use crate::gateway::Core;

pub(super) async fn state(State(core): State<Arc<Core>>) -> Json<RepairStatus> {
    Json(to_api(core.repair.state()))
}

/// Starts a run, or joins the one under way.
pub(super) async fn start(State(core): State<Arc<Core>>, Json(asked): Json<StartRepair>) -> Response {
    let mut listed = HashSet::new();
    for text in &asked.lost {
        match text.parse::<NodeId>() {
            Ok(node) => {
                listed.insert(node);
            }
            Err(_) => return refuse(StatusCode::BAD_REQUEST, format!("`{text}` is not a node's id (z6Mk…)")),
        }
    }
    let lost =
        if listed.is_empty() { Lost::Down { for_ms: asked.down_for_ms } } else { Lost::Listed(listed) };
    let options =
        RepairOptions { lost, bytes_per_second: asked.bytes_per_second, ..RepairOptions::default() };
    (StatusCode::ACCEPTED, Json(to_api(core.repair.start(&core, options)))).into_response()
}

/// A run in the API's words.
pub(super) fn to_api(state: RepairState) -> RepairStatus {
    let figures = state.progress;
    let report = state.report.unwrap_or_default();
    let troubles =
        report.troubles.iter().map(|trouble| format!("stripe {}: {}", trouble.stripe, trouble.why)).collect();
    RepairStatus {
        running: state.running,
        run: state.run,
        progress: RepairCounts {
            stripes_scanned: figures.stripes_scanned,
            stripes_damaged: figures.stripes_damaged,
            stripes_repaired: figures.stripes_repaired,
            shards_rebuilt: figures.shards_rebuilt,
            bytes_read: figures.bytes_read,
            bytes_written: figures.bytes_written,
            remaining: figures.remaining,
            waiting: figures.waiting,
            waiting_for_nodes: report.waiting_for_nodes,
            stripes_unreadable: report.stripes_unreadable,
            stripes_failed: report.stripes_failed,
            troubles,
        },
        error: state.error,
    }
}
