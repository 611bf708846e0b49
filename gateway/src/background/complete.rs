//! Completion and sweeping: stripes that were acknowledged short of shards get the rest when nodes are back, and the
//! metadata of what was deleted is taken down page by page.

use std::sync::Arc;
use std::time::Duration;

use holdfast_protocol::record::StripeId;
use holdfast_retrieval::repair::{Lost, RepairOptions};
use tokio_util::sync::CancellationToken;

use crate::gateway::Core;

/// Stripes completed in one run.
const STRIPES_PER_RUN: usize = 256;
/// Bytes of shards that completion holds at once; reads and writes of clients come first.
const COMPLETION_BYTES: usize = 24 * 1024 * 1024;
/// The longest pause while nothing can be completed.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// How often deleted objects' metadata is looked for, and rows of it at a time.
const SWEEP_EVERY: Duration = Duration::from_secs(60);
const SWEEP_ROWS: usize = 256;

/// Completes stripes until stopped.
pub(super) async fn run(core: Arc<Core>, stop: CancellationToken) {
    let first = core.config.timing.completion_interval;
    let mut pause = first;
    let mut after = None;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
        let outcome = tokio::select! {
            () = stop.cancelled() => return,
            outcome = complete(&core, &mut after) => outcome,
        };
        pause = match outcome {
            Outcome::Idle | Outcome::Progress => first,
            Outcome::Stuck => (pause * 2).min(PAUSE_MAX),
        };
    }
}

enum Outcome {
    Idle,
    Progress,
    Stuck,
}

async fn complete(core: &Core, after: &mut Option<StripeId>) -> Outcome {
    let ids = match core.meta.completion_queue(*after, STRIPES_PER_RUN).await {
        Ok(ids) => ids,
        Err(error) => {
            tracing::warn!(%error, "the completion queue cannot be read; trying again");
            return Outcome::Stuck;
        }
    };
    if ids.is_empty() {
        let wrapped = after.take().is_some();
        return if wrapped { Outcome::Progress } else { Outcome::Idle };
    }
    // Stripes that wait for more nodes must not hold up those behind them.
    *after = (ids.len() == STRIPES_PER_RUN).then(|| ids.last().copied()).flatten();
    let options = RepairOptions {
        lost: Lost::Nobody,
        only: Some(ids),
        concurrent_bytes: COMPLETION_BYTES,
        ..RepairOptions::default()
    };
    match core.repair.repairer().run(options, |_| {}).await {
        Ok(report) if report.progress.stripes_repaired > 0 => {
            tracing::info!(
                stripes = report.progress.stripes_repaired,
                waiting = report.progress.waiting,
                "stripes were completed"
            );
            core.wake_deliveries();
            Outcome::Progress
        }
        Ok(report) => {
            tracing::debug!(waiting = report.progress.waiting, "no stripe could be completed");
            Outcome::Stuck
        }
        Err(error) => {
            tracing::warn!(%error, "completion stopped early; trying again");
            Outcome::Stuck
        }
    }
}

/// Takes down the metadata of deleted objects until stopped.
pub(super) async fn sweep(core: Arc<Core>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(SWEEP_EVERY) => {}
        }
        loop {
            let swept = tokio::select! {
                () = stop.cancelled() => return,
                swept = core.meta.sweep(core.config.clock.now_ms(), SWEEP_ROWS) => swept,
            };
            match swept {
                Ok(report) if report.is_idle() => break,
                Ok(_) => core.wake_deliveries(),
                Err(error) => {
                    tracing::warn!(%error, "sweeping stopped early; trying again");
                    break;
                }
            }
        }
    }
}
