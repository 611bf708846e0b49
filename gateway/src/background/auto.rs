//! Automatic repair: watches how long nodes are silent, remembers it across restarts, and repairs the stripes that
//! must not wait any longer, the most urgent first.
//!
//! All stripes are looked through when something has changed that could make one of them need it: a node fell
//! silent or came back, its silence passed one of the steps of [`Patience`], a node joined or left. What a run leaves
//! undone (no room, too few nodes) is tried again after a pause that grows.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use holdfast_protocol::NodeId;
use holdfast_protocol::time::UnixMs;
use holdfast_retrieval::pool::{NodeState, NodeView};
use holdfast_retrieval::repair::{
    LOSSES_PER_YEAR, Lost, Patience, RepairOptions, RepairProgress, RepairReport, Urgency,
};
use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::gateway::{Core, telemetry};
use crate::meta::{MetaError, NodePresence};

/// Stripes of one run: after so many the nodes are judged anew.
const STRIPES_PER_RUN: usize = 4096;
/// Bytes of shards held at once; reads and writes of clients come first.
const HELD_BYTES: usize = 48 * 1024 * 1024;
/// The longest pause after a run that left something undone, and how often all is looked through in any case.
const PAUSE_MAX: Duration = Duration::from_secs(600);
/// Milliseconds of a year.
const YEAR_MS: f64 = 365.25 * 86_400_000.0;
/// The observation that a node without history is credited with, in years.
const PRIOR_YEARS: f64 = 1.0;

/// What automatic repair knows and did.
#[derive(Clone, Debug, Default)]
pub(crate) struct AutoState {
    /// Runs since the start.
    pub(crate) runs: u64,
    /// Whether one is under way.
    pub(crate) running: bool,
    /// Shards rebuilt and bytes moved by all runs.
    pub(crate) total: RepairProgress,
    /// What the last run left and why.
    pub(crate) last: Option<RepairReport>,
    /// Time that runs which moved something took.
    pub(crate) busy: Duration,
    /// Presence of every node that was ever watched.
    pub(crate) presence: BTreeMap<NodeId, NodePresence>,
}

/// Automatic repair's state, shared with whoever asks.
#[derive(Default)]
pub(crate) struct AutoRepair {
    state: Mutex<AutoState>,
}

impl AutoRepair {
    pub(crate) fn state(&self) -> AutoState {
        self.state.lock().clone()
    }

    /// Bytes moved a second by the runs that moved something.
    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rate for people"
    )]
    pub(crate) fn measured_bytes_per_second(&self) -> Option<u64> {
        let state = self.state.lock();
        let moved = state.total.bytes_read + state.total.bytes_written;
        let seconds = state.busy.as_secs_f64();
        (moved > 0 && seconds > 0.0).then(|| (moved as f64 / seconds) as u64)
    }

    /// Losses a year of each node, from what was seen of it and the prior for all.
    pub(crate) fn losses_per_year(&self, now_ms: UnixMs) -> HashMap<NodeId, f64> {
        self.state.lock().presence.iter().map(|(id, presence)| (*id, losses(presence, now_ms))).collect()
    }
}

/// What a node's history says of its future: observed losses, with one prior year at the usual rate.
#[allow(clippy::cast_precision_loss, reason = "a rate; counts and times are far below 2^53")]
pub(crate) fn losses(presence: &NodePresence, now_ms: UnixMs) -> f64 {
    let years = now_ms.saturating_sub(presence.watched_since_ms) as f64 / YEAR_MS;
    (presence.losses as f64 + LOSSES_PER_YEAR * PRIOR_YEARS) / (years + PRIOR_YEARS)
}

/// Watches and repairs until stopped.
pub(super) async fn run(core: Arc<Core>, stop: CancellationToken) {
    let work = async {
        loop {
            match core.meta.presences().await {
                Ok(known) => {
                    core.auto.state.lock().presence = known.into_iter().collect();
                    break;
                }
                Err(error) => tracing::warn!(%error, "the history of the nodes cannot be read; trying again"),
            }
            tokio::time::sleep(core.config.timing.repair_interval).await;
        }
        let mut watch = Watch::default();
        loop {
            tokio::time::sleep(core.config.timing.repair_interval).await;
            if let Err(error) = note_presence(&core).await {
                tracing::warn!(%error, "the presence of nodes cannot be kept");
            }
            watch.round(&core).await;
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = work => {}
    }
    core.auto.state.lock().running = false;
}

/// Writes down who is silent since when.
async fn note_presence(core: &Core) -> Result<(), MetaError> {
    let now_ms = core.config.clock.now_ms();
    let silent_ms = as_ms(core.config.repair.silent);
    for view in core.pool.nodes() {
        let id = view.known.id;
        let before = core.auto.state.lock().presence.get(&id).cloned();
        let after = observed(before.clone(), &view, now_ms, silent_ms);
        if before.as_ref() != Some(&after) {
            core.meta.put_presence(id, &after).await?;
            core.auto.state.lock().presence.insert(id, after);
        }
    }
    Ok(())
}

/// A node's history after one more look at it.
fn observed(before: Option<NodePresence>, view: &NodeView, now_ms: UnixMs, silent_ms: u64) -> NodePresence {
    let mut presence = before.unwrap_or(NodePresence { watched_since_ms: now_ms, ..NodePresence::default() });
    match view.state {
        NodeState::Unknown => {}
        NodeState::Up => {
            if presence.silent_since_ms != 0 {
                presence.silent_total_ms += now_ms.saturating_sub(presence.silent_since_ms);
                presence.silent_since_ms = 0;
                presence.counted_lost = false;
            }
        }
        NodeState::Down { since_ms } => {
            if presence.silent_since_ms == 0 {
                presence.silent_since_ms = since_ms.max(1);
                presence.outages += 1;
            }
            let silent = now_ms.saturating_sub(presence.silent_since_ms);
            if silent >= silent_ms && !presence.counted_lost {
                presence.losses += 1;
                presence.counted_lost = true;
            }
        }
    }
    presence
}

/// What the last look through all stripes was based on.
#[derive(Default)]
struct Watch {
    seen: Option<Vec<(NodeId, u8, bool)>>,
    again_at: Option<Instant>,
    pause: Duration,
}

impl Watch {
    async fn round(&mut self, core: &Core) {
        let patience = patience(core);
        let now = self.fingerprint(core, &patience);
        let due = self.again_at.is_none_or(|at| Instant::now() >= at);
        if self.seen.as_ref() == Some(&now) && !due {
            return;
        }
        if core.repair.state().running {
            return;
        }
        let changed = self.seen.as_ref() != Some(&now);
        let undone = run_once(core, patience).await;
        self.seen = Some(now);
        self.pause = match undone {
            None | Some(true) if changed => core.config.timing.repair_interval,
            Some(false) => PAUSE_MAX,
            _ => (self.pause * 2).min(PAUSE_MAX),
        };
        self.again_at = Some(Instant::now() + self.pause);
    }

    /// Every node with the step of patience that its silence has passed, and whether it takes blocks.
    fn fingerprint(&self, core: &Core, patience: &Patience) -> Vec<(NodeId, u8, bool)> {
        let now_ms = core.config.clock.now_ms();
        core.pool
            .nodes()
            .into_iter()
            .map(|view| {
                let silent = match view.state {
                    NodeState::Down { since_ms } => {
                        let since = patience.silent_since.get(&view.known.id).copied().unwrap_or(since_ms);
                        now_ms.saturating_sub(since.min(since_ms))
                    }
                    NodeState::Up | NodeState::Unknown => 0,
                };
                // With none, some and half of the spare shards of a code of 2 left.
                let steps = [0, 1, 12].map(|spare| patience.for_margin(spare, 12));
                let passed = steps.iter().filter(|step| view.state.is_down() && silent >= **step).count();
                let takes = view.known.accepts_writes && view.known.agreement.is_some();
                let down = u8::from(view.state.is_down());
                (view.known.id, down + u8::try_from(passed).unwrap_or(0), takes && !view.state.is_down())
            })
            .collect()
    }
}

/// How long silent nodes are waited for, with what is known from before this process.
pub(super) fn patience(core: &Core) -> Patience {
    let silent_since = core
        .auto
        .state
        .lock()
        .presence
        .iter()
        .filter(|(_, presence)| presence.silent_since_ms != 0)
        .map(|(id, presence)| (*id, presence.silent_since_ms))
        .collect();
    Patience { silent_ms: as_ms(core.config.repair.silent), silent_since: Arc::new(silent_since) }
}

/// One run. Whether it left something undone; `None` when it failed.
async fn run_once(core: &Core, patience: Patience) -> Option<bool> {
    let losses = core.auto.losses_per_year(core.config.clock.now_ms());
    let options = RepairOptions {
        lost: Lost::Patient(patience),
        concurrent_bytes: HELD_BYTES,
        bytes_per_second: core.config.repair.bytes_per_second,
        urgency: Urgency { losses_per_year: Arc::new(losses) },
        stripes_max: STRIPES_PER_RUN,
        ..RepairOptions::default()
    };
    core.auto.state.lock().running = true;
    let started = Instant::now();
    let outcome = core.repair.repairer().run(options, |_| {}).await;
    let mut state = core.auto.state.lock();
    state.running = false;
    match outcome {
        Ok(report) => {
            let progress = report.progress;
            telemetry::repaired(&progress);
            if progress.shards_rebuilt > 0 {
                state.runs += 1;
                state.busy += started.elapsed();
                tracing::info!(
                    shards = progress.shards_rebuilt,
                    waiting = progress.waiting,
                    remaining = progress.remaining,
                    "lost shards were rebuilt"
                );
                core.wake_deliveries();
            }
            state.total.stripes_repaired += progress.stripes_repaired;
            state.total.shards_rebuilt += progress.shards_rebuilt;
            state.total.bytes_read += progress.bytes_read;
            state.total.bytes_written += progress.bytes_written;
            let undone = progress.remaining > 0 || !report.is_whole();
            state.last = Some(report);
            Some(undone)
        }
        Err(error) => {
            tracing::warn!(%error, "automatic repair stopped early; trying again");
            None
        }
    }
}

fn as_ms(period: Duration) -> u64 {
    u64::try_from(period.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
