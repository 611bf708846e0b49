//! Delivery: tells nodes which blocks to keep for good and which to let go, until they have said that they did.
//!
//! Rows leave the queue only when the node answered, so a crash repeats a delivery and never loses one. A node that
//! is down keeps its rows; it holds up no other. A node that let a block go before it heard of the commit has lost
//! a shard: the stripe's row then says so, and completion gives the shard a new node.

use std::sync::Arc;

use futures::StreamExt;
use holdfast_protocol::NodeId;
use holdfast_protocol::message::BlockOutcome;
use holdfast_retrieval::write::{DeliverError, ShardClaim};
use tokio_util::sync::CancellationToken;

use super::heal::take_off;
use crate::gateway::{Core, telemetry};
use crate::meta::{MetaError, QueueItem};

/// Queue rows of one node taken at a time, and pages of them before the other nodes' turn.
const ITEMS_PER_PAGE: usize = 256;
const PAGES_PER_ROUND: usize = 16;
/// Nodes told at the same time.
const NODES_AT_ONCE: usize = 16;

/// Delivers CommitBlocks.
pub(super) async fn commits(core: Arc<Core>, stop: CancellationToken) {
    run(core, stop, Kind::Commit).await;
}

/// Delivers DeleteBlocks.
pub(super) async fn releases(core: Arc<Core>, stop: CancellationToken) {
    run(core, stop, Kind::Release).await;
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Commit,
    Release,
}

async fn run(core: Arc<Core>, stop: CancellationToken, kind: Kind) {
    loop {
        let busy = tokio::select! {
            () = stop.cancelled() => return,
            busy = round(&core, kind) => busy,
        };
        if busy {
            continue;
        }
        let interval = core.config.timing.queue_interval;
        tokio::select! {
            () = stop.cancelled() => return,
            // Only commits are urgent, and the interval alone would do for them too: a lease lasts an hour.
            () = core.deliveries_woken(), if kind == Kind::Commit => {
                // More commits of the same burst are about to come, and one request carries hundreds of claims.
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(interval / 8) => {}
                }
            }
            () = tokio::time::sleep(interval) => {}
        }
    }
}

/// A turn of every node that answers; true when one of them has more.
async fn round(core: &Core, kind: Kind) -> bool {
    let up = core.pool.nodes().into_iter().filter(|view| !view.state.is_down()).map(|view| view.known.id);
    futures::stream::iter(up)
        .map(|node| one_node(core, node, kind))
        .buffer_unordered(NODES_AT_ONCE)
        .fold(false, |busy, more| async move { busy || more })
        .await
}

async fn one_node(core: &Core, node: NodeId, kind: Kind) -> bool {
    match deliver(core, node, kind).await {
        Ok(more) => more,
        Err(error) => {
            tracing::warn!(%node, %error, "a delivery queue cannot be used; trying again");
            false
        }
    }
}

/// Goes through the node's rows. True when there are more.
async fn deliver(core: &Core, node: NodeId, kind: Kind) -> Result<bool, MetaError> {
    for _ in 0..PAGES_PER_ROUND {
        let items = match kind {
            Kind::Commit => core.meta.commit_queue_of(node, ITEMS_PER_PAGE).await?,
            Kind::Release => core.meta.release_queue_of(node, ITEMS_PER_PAGE).await?,
        };
        let is_last = items.len() < ITEMS_PER_PAGE;
        // Rows that stay come up again; a page of nothing else means that nothing gets through to this node now.
        if items.is_empty() || deliver_page(core, &items, kind).await? == 0 || is_last {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Delivers one page; returns how many rows were settled.
async fn deliver_page(core: &Core, items: &[QueueItem], kind: Kind) -> Result<usize, MetaError> {
    let claims: Vec<ShardClaim> = items.iter().flat_map(claims_of).collect();
    let mut answers = match kind {
        Kind::Commit => core.deliverer.commit_shards(&claims, 0).await,
        Kind::Release => core.deliverer.delete_shards(&claims).await,
    };
    tell_under_former(core, &claims, &mut answers, kind).await?;
    let mut answers = answers.into_iter();
    let mut done = Vec::with_capacity(items.len());
    for item in items {
        let of_item: Vec<_> = answers.by_ref().take(item.digests.len()).collect();
        if settle(core, item, &of_item, kind).await? {
            done.push(item.clone());
        }
    }
    let blocks = done.iter().map(|item| item.digests.len()).sum();
    match kind {
        Kind::Commit => {
            core.meta.ack_commits(&done).await?;
            telemetry::delivered("commit", blocks);
        }
        Kind::Release => {
            core.meta.ack_releases(&done).await?;
            telemetry::delivered("release", blocks);
        }
    }
    Ok(done.len())
}

/// Claims that the present agreement does not know may have been made under an earlier one.
async fn tell_under_former(
    core: &Core,
    claims: &[ShardClaim],
    answers: &mut [Result<BlockOutcome, DeliverError>],
    kind: Kind,
) -> Result<(), MetaError> {
    let absent = |answers: &[Result<BlockOutcome, DeliverError>]| -> Vec<usize> {
        let is_absent = |at: &usize| matches!(answers[*at], Ok(BlockOutcome::Absent));
        (0..answers.len()).filter(is_absent).collect()
    };
    let (Some(first), false) = (claims.first(), absent(answers).is_empty()) else { return Ok(()) };
    for agreement in core.meta.former_agreements(first.node).await? {
        let unknown = absent(answers);
        let asked: Vec<ShardClaim> = unknown.iter().map(|at| claims[*at]).collect();
        let told = match kind {
            Kind::Commit => core.deliverer.commit_shards_under(agreement, &asked).await,
            Kind::Release => core.deliverer.delete_shards_under(agreement, &asked).await,
        };
        for (at, answer) in unknown.into_iter().zip(told) {
            // A refusal means that the node knows the agreement no longer, and so nothing under it.
            if answer.as_ref().is_ok() || answer.as_ref().is_err_and(DeliverError::is_retryable) {
                answers[at] = answer;
            }
        }
    }
    Ok(())
}

fn claims_of(item: &QueueItem) -> impl Iterator<Item = ShardClaim> + '_ {
    item.digests.iter().map(|digest| ShardClaim { stripe: item.stripe, digest: *digest, node: item.node })
}

/// Whether the row may go.
async fn settle(
    core: &Core,
    item: &QueueItem,
    answers: &[Result<BlockOutcome, DeliverError>],
    kind: Kind,
) -> Result<bool, MetaError> {
    let mut settled = answers.len() == item.digests.len();
    for (digest, answer) in item.digests.iter().zip(answers) {
        match (answer, kind) {
            (Ok(BlockOutcome::Done | BlockOutcome::Already), _)
            | (Ok(BlockOutcome::Absent), Kind::Release) => {}
            (Ok(BlockOutcome::Absent), Kind::Commit) => {
                tracing::warn!(node = %item.node, %digest, "a node let a block go before it heard of its commit");
                settled &= take_off(core, item.stripe, item.node, digest).await?;
            }
            (Ok(BlockOutcome::Retained), _) => settled = false,
            (Err(error), _) => {
                tracing::debug!(node = %item.node, %error, "a delivery failed; it stays queued");
                settled = false;
            }
        }
    }
    Ok(settled)
}
