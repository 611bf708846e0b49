//! Repair over the admin API: started, watched, told of lost shards; and what packing does.

use std::collections::HashSet;
use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Json, Response};
use holdfast_protocol::{Digest, NodeId};
use holdfast_retrieval::repair::{Lost, RepairOptions};

use super::api::{
    AutomaticRepair, Packing, RepairCounts, RepairStatus, ReportDamage, SilentNode, StartRepair,
};
use super::refuse;
use crate::background::{Expansion, RepairState};
use crate::gateway::Core;

pub(super) async fn state(State(core): State<Arc<Core>>) -> Json<RepairStatus> {
    Json(to_api(&core, core.repair.state()))
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
    (StatusCode::ACCEPTED, Json(to_api(&core, core.repair.start(&core, options)))).into_response()
}

/// A run in the API's words.
pub(super) fn to_api(core: &Core, state: RepairState) -> RepairStatus {
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
        automatic: automatic(core),
        packing: packing(core),
    }
}

/// Takes a report that a node does not hold a shard. It is checked by a read before anything follows.
pub(super) async fn damage(State(core): State<Arc<Core>>, Json(asked): Json<ReportDamage>) -> Response {
    let (Ok(node), Some(digest)) = (asked.node.parse::<NodeId>(), digest_of(&asked.digest)) else {
        return refuse(
            StatusCode::BAD_REQUEST,
            "a node's id (z6Mk…) and a block's CID (bafkr4i…) are needed",
        );
    };
    core.healing.report(node, digest);
    StatusCode::ACCEPTED.into_response()
}

fn digest_of(text: &str) -> Option<Digest> {
    text.parse().ok()
}

fn automatic(core: &Core) -> AutomaticRepair {
    let state = core.auto.state();
    let silent_ms = u64::try_from(core.config.repair.silent.as_millis()).unwrap_or(u64::MAX);
    let now_ms = core.config.clock.now_ms();
    let silent = state.presence.iter().filter(|(_, presence)| presence.silent_since_ms != 0);
    let silent = silent.map(|(id, presence)| {
        let lost_at_ms = presence.silent_since_ms.saturating_add(silent_ms);
        SilentNode {
            node: id.to_string(),
            since_ms: presence.silent_since_ms,
            lost_at_ms,
            lost: lost_at_ms <= now_ms,
            outages: presence.outages,
        }
    });
    let last = state.last.unwrap_or_default();
    let healing = core.healing.counts();
    AutomaticRepair {
        running: state.running,
        runs: state.runs,
        shards_rebuilt: state.total.shards_rebuilt,
        bytes_read: state.total.bytes_read,
        bytes_written: state.total.bytes_written,
        bytes_per_second: core.auto.measured_bytes_per_second().unwrap_or(0),
        bytes_per_second_max: core.config.repair.bytes_per_second,
        silent_after_s: core.config.repair.silent.as_secs(),
        silent: silent.collect(),
        remaining: last.progress.remaining,
        waiting: last.progress.waiting,
        waiting_for_nodes: last.waiting_for_nodes,
        unreadable: last.stripes_unreadable,
        shards_reported: healing.reported,
        shards_found_lost: healing.marked,
        shards_found_well: healing.unfounded,
    }
}

#[allow(clippy::cast_precision_loss, reason = "a ratio for people")]
fn packing(core: &Core) -> Packing {
    let state = core.pack.state();
    let over_live = |of: fn(&Expansion) -> u64| {
        let seen = state.expansion.as_ref().filter(|seen| seen.live_bytes > 0)?;
        Some(of(seen) as f64 / seen.live_bytes as f64)
    };
    Packing {
        waiting: state.total.candidates,
        merges: state.total.merges,
        absorbed: state.total.stripes_absorbed,
        bytes_read: state.total.bytes_read,
        bytes_written: state.total.bytes_written,
        bytes_released: state.total.bytes_released,
        given_up: state.total.failed,
        expansion_now: over_live(|seen| seen.stored_bytes),
        expansion_packed: over_live(|seen| seen.packed_bytes),
    }
}
