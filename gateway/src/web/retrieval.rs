//! Retrieval scores over the admin API.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Json;

use super::api::{ReconciledRow, Retrieval, RetrievalEvidence, RetrievalRow};
use crate::gateway::Core;

pub(super) async fn show(State(core): State<Arc<Core>>) -> Json<Retrieval> {
    let state = core.surprise.state();
    let scores = state.scores.iter().map(|(node, score)| RetrievalRow {
        node: node.to_string(),
        score: score.score(),
        good: score.good,
        bad: score.bad,
        asked: score.asked,
        right: score.right,
    });
    let evidence = state.evidence.iter().rev().map(|evidence| RetrievalEvidence {
        node: evidence.node.to_string(),
        digest: evidence.digest.to_string(),
        start: evidence.range.start,
        len: evidence.range.len,
        at_ms: evidence.at_ms,
        what: evidence.what.clone(),
    });
    let reconciled = core.reconciled.nodes();
    let reconciled = reconciled.into_iter().map(|(node, found)| ReconciledRow {
        node: node.to_string(),
        at_ms: found.at_ms,
        listed: found.listed,
        expected: found.expected,
        missing: found.missing,
        extra: found.extra,
        proven: found.proven,
        error: found.error,
    });
    Json(Retrieval {
        sessions: state.sessions,
        sessions_fresh_key: state.fresh,
        scores: scores.collect(),
        evidence: evidence.collect(),
        reconciled: reconciled.collect(),
    })
}
