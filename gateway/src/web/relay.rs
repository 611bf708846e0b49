//! Challenging one node over the gateway's own connection: the way to nodes that nobody can dial.
//!
//! The draw, the requests and the checks are those of every challenge; only the connection is the gateway's. Whoever
//! does not trust the gateway asks nodes that can be dialled by itself.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Json, Response};
use holdfast_protocol::NodeId;
use holdfast_protocol::record::StripeId;
use holdfast_retrieval::block::BlockRef;
use holdfast_retrieval::challenge::{ChallengeOptions, Challenger, Target};
use serde::Deserialize;

use super::{meta_failed, refuse};
use crate::gateway::Core;
use crate::meta::MetaError;

/// Blocks among which chunks are drawn.
const BLOCKS_MAX: usize = 512;
/// Stripes looked through for them: 64 pages.
const STRIPES_PER_PAGE: usize = 256;
const PAGES_MAX: usize = 64;
const CHUNKS_DEFAULT: usize = 20;
const CHUNKS_MAX: usize = 1000;

/// How many chunks.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Ask {
    chunks: Option<usize>,
}

pub(super) async fn challenge(
    State(core): State<Arc<Core>>,
    Path(id): Path<String>,
    Json(ask): Json<Ask>,
) -> Response {
    let Ok(node) = id.parse::<NodeId>() else {
        return refuse(StatusCode::BAD_REQUEST, "the path does not name a node by its id (z6Mk…)");
    };
    if core.pool.node(node).is_none() {
        return refuse(StatusCode::NOT_FOUND, format!("node {node} is not known here"));
    }
    let targets = match targets(&core, node).await {
        Ok(targets) => targets,
        Err(error) => return meta_failed(&error),
    };
    let chunks_per_node = ask.chunks.unwrap_or(CHUNKS_DEFAULT).clamp(1, CHUNKS_MAX);
    let options = ChallengeOptions { chunks_per_node, ..ChallengeOptions::default() };
    let challenger = Challenger::new(Arc::clone(&core.pool), options);
    // The challenger's future stays on one thread; requests move between threads.
    let handle = tokio::runtime::Handle::current();
    let run = tokio::task::spawn_blocking(move || handle.block_on(challenger.run(&targets, |_| {})));
    match run.await {
        Ok(Ok(report)) => Json(report).into_response(),
        Ok(Err(error)) => refuse(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        Err(_) => refuse(StatusCode::INTERNAL_SERVER_ERROR, "the challenge was interrupted"),
    }
}

/// Blocks that the node is said to hold, from a random place in the table on.
async fn targets(core: &Core, node: NodeId) -> Result<Vec<Target>, MetaError> {
    let mut targets = Vec::new();
    let mut after = StripeId::random().ok();
    let mut wrapped = after.is_none();
    for _ in 0..PAGES_MAX {
        let page = core.meta.stripes(after, STRIPES_PER_PAGE).await?;
        for shard in page.iter().flat_map(|stripe| stripe.shards.iter().flatten()) {
            let new = !targets.iter().any(|target: &Target| target.block.digest == shard.digest);
            if shard.node == Some(node) && targets.len() < BLOCKS_MAX && new {
                let block = BlockRef { digest: shard.digest, len: shard.len };
                targets.push(Target { node, block, grant: None });
            }
        }
        match page.last() {
            _ if targets.len() >= BLOCKS_MAX => break,
            Some(last) => after = Some(last.id),
            None if wrapped => break,
            None => (after, wrapped) = (None, true),
        }
    }
    Ok(targets)
}
