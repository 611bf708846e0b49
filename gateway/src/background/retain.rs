//! Tells nodes until when they must keep the blocks of locked objects, until they have said that they will.

use std::collections::BTreeMap;
use std::sync::Arc;

use holdfast_protocol::NodeId;
use holdfast_protocol::message::BlockOutcome;
use holdfast_retrieval::write::ShardClaim;
use tokio_util::sync::CancellationToken;

use crate::gateway::{Core, telemetry};
use crate::meta::{MetaError, RetentionItem};

/// Queue rows of one node taken at a time.
const ITEMS_PER_PAGE: usize = 256;

/// Delivers retentions until stopped.
pub(super) async fn run(core: Arc<Core>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(core.config.timing.queue_interval) => {}
        }
        // What a gateway that died had promised and not queued.
        if let Err(error) = core.meta.retain_left(ITEMS_PER_PAGE).await {
            tracing::warn!(%error, "locks cannot be put into the retention queue; trying again");
        }
        let up: Vec<NodeId> = core
            .pool
            .nodes()
            .into_iter()
            .filter(|view| !view.state.is_down())
            .map(|view| view.known.id)
            .collect();
        for node in up {
            let delivered = tokio::select! {
                () = stop.cancelled() => return,
                delivered = deliver(&core, node) => delivered,
            };
            if let Err(error) = delivered {
                tracing::warn!(%node, %error, "the retention queue cannot be used; trying again");
            }
        }
    }
}

async fn deliver(core: &Core, node: NodeId) -> Result<(), MetaError> {
    let items = core.meta.retention_queue_of(node, ITEMS_PER_PAGE).await?;
    let mut by_time = BTreeMap::<u64, Vec<&RetentionItem>>::new();
    for item in &items {
        by_time.entry(item.until_ms).or_default().push(item);
    }
    for (until_ms, items) in by_time {
        let claims: Vec<ShardClaim> = items
            .iter()
            .flat_map(|item| {
                item.digests.iter().map(|digest| ShardClaim { stripe: item.stripe, digest: *digest, node })
            })
            .collect();
        let mut answers = core.deliverer.commit_shards(&claims, until_ms).await.into_iter();
        let mut done = Vec::new();
        for item in items {
            let of_item: Vec<_> = answers.by_ref().take(item.digests.len()).collect();
            // A block that is gone is found out by the commit queue and by repair; there is nothing to retain.
            let is_settled = of_item.len() == item.digests.len()
                && of_item
                    .iter()
                    .all(|answer| matches!(answer, Ok(outcome) if *outcome != BlockOutcome::Retained));
            if is_settled {
                done.push(item.clone());
            }
        }
        telemetry::delivered("retain", done.iter().map(|item| item.digests.len()).sum());
        core.meta.ack_retentions(&done).await?;
    }
    Ok(())
}
