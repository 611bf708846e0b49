//! Nodes that leave or shrink: their shards move to other nodes under the same rules, and are then released.
//!
//! A node says what it wants over any connection between us, again and again; the wish is kept in the metadata, so a
//! gateway that dies goes on where it stopped. Each shard is read from the leaving node, verified, put elsewhere, and
//! the stripe's row changed in one transaction that also queues the deletion of the old copy.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use holdfast_protocol::NodeId;
use holdfast_protocol::message::{Drain, DrainProgress, DrainWish, Refusal, RefusalReason, Reply};
use holdfast_protocol::record::{Stripe, StripeId};
use holdfast_retrieval::repair::Relocated;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::gateway::Core;
use crate::meta::{Leaving, MetaError};

/// Stripe rows read at a time.
const PAGE: usize = 256;
/// Stripes under way at the same time: clients' reads and writes come first.
const STRIPES_AT_ONCE: usize = 4;
/// How long after a pass the next begins: blocks may have been on their way to the node when it asked.
const PASS_EVERY: Duration = Duration::from_secs(10);
/// The same while only releases are still on their way to the node.
const PASS_SOON: Duration = Duration::from_secs(1);
/// Moves after which the count is kept, so that a restart forgets few of them.
const KEEP_COUNT_EVERY: u64 = 64;
/// Releases counted for the progress, at most.
const RELEASES_COUNTED_MAX: usize = 1000;

/// The nodes that want blocks moved off them, and how far that is.
#[derive(Default)]
pub(crate) struct Drains {
    nodes: Mutex<HashMap<NodeId, State>>,
    heard: Notify,
}

#[derive(Clone, Debug)]
struct State {
    leaving: Leaving,
    progress: DrainProgress,
}

impl Drains {
    /// What is known of a node's wish, for whoever asks.
    pub(crate) fn progress(&self, node: NodeId) -> Option<DrainProgress> {
        self.nodes.lock().get(&node).map(|state| state.progress.clone())
    }

    fn leaving(&self) -> Vec<(NodeId, Leaving)> {
        self.nodes.lock().iter().map(|(node, state)| (*node, state.leaving)).collect()
    }

    fn set(&self, node: NodeId, leaving: Leaving) {
        let mut nodes = self.nodes.lock();
        if nodes.get(&node).is_some_and(|state| state.leaving.keep_bytes == leaving.keep_bytes) {
            return;
        }
        let Leaving { shards_moved, bytes_moved, .. } = leaving;
        let progress = DrainProgress { shards_moved, bytes_moved, ..DrainProgress::default() };
        nodes.insert(node, State { leaving, progress });
        drop(nodes);
        // A new wish is looked at at once; repetitions wait for their turn.
        self.heard.notify_one();
    }

    /// How long to wait before the next pass.
    fn pause(&self) -> Duration {
        let nodes = self.nodes.lock();
        let nearly =
            |state: &State| !state.progress.done && state.progress.bytes_left <= state.leaving.keep_bytes;
        if nodes.values().any(nearly) { PASS_SOON } else { PASS_EVERY }
    }

    fn unset(&self, node: NodeId) {
        self.nodes.lock().remove(&node);
    }

    fn wants(&self, node: NodeId, leaving: Leaving) -> bool {
        self.nodes.lock().get(&node).is_some_and(|state| state.leaving.keep_bytes == leaving.keep_bytes)
    }

    fn update(&self, node: NodeId, change: impl FnOnce(&mut DrainProgress)) {
        if let Some(state) = self.nodes.lock().get_mut(&node) {
            change(&mut state.progress);
        }
    }
}

/// A node says what it wants.
pub(super) async fn heard(core: &Core, node: NodeId, drain: Drain) -> Reply {
    if core.pool.agreement(node).is_none() {
        return Reply::Refused(Refusal::new(RefusalReason::NoAgreement, "there is no agreement between us"));
    }
    match note(core, node, drain.wish).await {
        Ok(progress) => Reply::Drain(progress),
        Err(error) => {
            tracing::warn!(%node, %error, "a node's wish to leave cannot be kept now");
            Reply::Refused(Refusal::new(RefusalReason::Busy, "the metadata cannot be written now"))
        }
    }
}

async fn note(core: &Core, node: NodeId, wish: DrainWish) -> Result<DrainProgress, MetaError> {
    let Some(mut entry) = core.meta.node(node).await?.filter(|entry| !entry.removed) else {
        return Ok(DrainProgress { done: true, ..DrainProgress::default() });
    };
    let keep_bytes = match wish {
        DrainWish::Stay => {
            if entry.notes.leaving.take().is_some() {
                tracing::info!(%node, "a node stays after all");
                core.meta.upsert_node(&entry).await?;
            }
            core.drains.unset(node);
            return Ok(DrainProgress { done: true, ..DrainProgress::default() });
        }
        DrainWish::Gone => {
            let progress = core.drains.progress(node).unwrap_or_default();
            // It goes whether we are done or not: what still lay there is missing from now on, and repaired.
            super::nodes::remove(core, node).await?;
            core.drains.unset(node);
            if progress.done {
                tracing::info!(%node, "a node has left; all that it kept lies elsewhere");
            } else {
                tracing::warn!(%node, shards_left = progress.shards_left, "a node has left before all that it kept lay elsewhere");
            }
            return Ok(progress);
        }
        DrainWish::Leave => 0,
        DrainWish::Shrink { keep_bytes } => keep_bytes,
    };
    let leaving = match entry.notes.leaving {
        Some(before) if before.keep_bytes == keep_bytes => before,
        before => {
            let since_ms = before.map_or_else(|| core.config.clock.now_ms(), |before| before.since_ms);
            let leaving = Leaving { keep_bytes, since_ms, ..before.unwrap_or(NOTHING_MOVED) };
            entry.notes.leaving = Some(leaving);
            core.meta.upsert_node(&entry).await?;
            tracing::info!(%node, keep_bytes, "a node wants blocks moved off it");
            leaving
        }
    };
    core.drains.set(node, leaving);
    Ok(core.drains.progress(node).unwrap_or_default())
}

const NOTHING_MOVED: Leaving = Leaving { keep_bytes: 0, since_ms: 0, shards_moved: 0, bytes_moved: 0 };

/// Moves what leaving nodes keep, until stopped.
pub(super) async fn run(core: Arc<Core>, stop: CancellationToken) {
    match core.meta.nodes().await {
        Ok(entries) => {
            for entry in entries.iter().filter(|entry| !entry.removed) {
                if let Some(leaving) = entry.notes.leaving {
                    core.drains.set(entry.id, leaving);
                }
            }
        }
        Err(error) => tracing::warn!(%error, "leaving nodes are not known yet; each says so again"),
    }
    loop {
        for (node, leaving) in core.drains.leaving() {
            let passed = tokio::select! {
                () = stop.cancelled() => return,
                passed = pass(&core, node, leaving) => passed,
            };
            if let Err(error) = passed {
                tracing::warn!(%node, %error, "moving a node's blocks stopped early; trying again");
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = core.drains.heard.notified() => {}
            () = tokio::time::sleep(core.drains.pause()) => {}
        }
    }
}

/// One look at everything, and a move of what is too much.
async fn pass(core: &Core, node: NodeId, leaving: Leaving) -> Result<(), MetaError> {
    let (mut shards_left, mut bytes_left) = (0u64, 0u64);
    let mut work: Vec<(StripeId, u64)> = Vec::new();
    let mut after = None;
    loop {
        let page = core.meta.stripes(after, PAGE).await?;
        let Some(last) = page.last() else { break };
        after = Some(last.id);
        for stripe in &page {
            let (shards, bytes) = held(stripe, node);
            if shards > 0 {
                (shards_left, bytes_left) = (shards_left + shards, bytes_left + bytes);
                work.push((stripe.id, bytes));
            }
        }
    }
    core.drains.update(node, |progress| {
        (progress.shards_left, progress.bytes_left) = (shards_left, bytes_left);
        progress.done = false;
    });
    let excess = bytes_left.saturating_sub(leaving.keep_bytes);
    let mut planned = 0u64;
    let work: Vec<StripeId> = work
        .into_iter()
        .take_while(|(_, bytes)| {
            let needed = planned < excess;
            planned += bytes;
            needed
        })
        .map(|(id, _)| id)
        .collect();
    let outcome = move_all(core, node, leaving, work).await?;
    finish(core, node, leaving, outcome).await
}

fn held(stripe: &Stripe, node: NodeId) -> (u64, u64) {
    let shards = stripe.shards.iter().flatten().filter(|shard| shard.node == Some(node));
    shards.fold((0, 0), |(count, bytes), shard| (count + 1, bytes + u64::from(shard.len.bytes())))
}

/// What a pass came to.
#[derive(Default)]
struct Outcome {
    waiting: u64,
    note: String,
}

async fn move_all(
    core: &Core,
    node: NodeId,
    leaving: Leaving,
    work: Vec<StripeId>,
) -> Result<Outcome, MetaError> {
    let mut outcome = Outcome::default();
    let mut since_kept = 0;
    let repairer = core.repair.repairer();
    let mut moves = futures::stream::iter(work)
        .take_while(|_| std::future::ready(core.drains.wants(node, leaving)))
        .map(|id| async move { (id, repairer.relocate(id, node).await) })
        .buffer_unordered(STRIPES_AT_ONCE);
    while let Some((id, moved)) = moves.next().await {
        let Relocated { shards, bytes, waiting, failed } = match moved {
            Ok(moved) => moved,
            Err(error) => {
                outcome.note = error.to_string();
                continue;
            }
        };
        core.drains.update(node, |progress| {
            progress.shards_left = progress.shards_left.saturating_sub(shards);
            progress.bytes_left = progress.bytes_left.saturating_sub(bytes);
            progress.shards_moved += shards;
            progress.bytes_moved += bytes;
        });
        since_kept += shards;
        if since_kept >= KEEP_COUNT_EVERY {
            since_kept = 0;
            keep_count(core, node).await?;
            core.wake_deliveries();
        }
        outcome.waiting = outcome.waiting.max(waiting);
        if let Some(why) = failed {
            tracing::debug!(stripe = %id, %node, why, "a shard stays on a leaving node for now");
            outcome.note = format!("stripe {id}: {why}").chars().take(300).collect();
        }
    }
    Ok(outcome)
}

async fn finish(core: &Core, node: NodeId, leaving: Leaving, outcome: Outcome) -> Result<(), MetaError> {
    keep_count(core, node).await?;
    core.wake_deliveries();
    let releases_left = core.meta.release_queue_of(node, RELEASES_COUNTED_MAX).await?.len() as u64;
    core.drains.update(node, |progress| {
        progress.releases_left = releases_left;
        progress.waiting_for_nodes = outcome.waiting;
        progress.done = progress.bytes_left <= leaving.keep_bytes && releases_left == 0;
        progress.note = match (outcome.waiting, outcome.note) {
            (_, note) if !note.is_empty() => note,
            (0, _) => String::new(),
            (more, _) => format!(
                "what is left finds no other node under the placement rules; {more} more would do, in failure domains \
                 of their own"
            ),
        };
    });
    Ok(())
}

/// Remembers what was moved, for people who ask after a restart.
async fn keep_count(core: &Core, node: NodeId) -> Result<(), MetaError> {
    let Some(progress) = core.drains.progress(node) else { return Ok(()) };
    let Some(mut entry) = core.meta.node(node).await? else { return Ok(()) };
    let Some(leaving) = &mut entry.notes.leaving else { return Ok(()) };
    if leaving.shards_moved == progress.shards_moved {
        return Ok(());
    }
    (leaving.shards_moved, leaving.bytes_moved) = (progress.shards_moved, progress.bytes_moved);
    core.meta.upsert_node(&entry).await
}
