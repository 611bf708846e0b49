//! Repair on request: one run at a time, its figures kept for whoever asks.

use std::sync::Arc;

use holdfast_retrieval::repair::{RepairOptions, RepairProgress, RepairReport, Repairer};
use parking_lot::Mutex;
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;

use crate::gateway::Core;

/// Starts repairs and remembers how they went.
pub(crate) struct RepairRunner {
    repairer: Arc<Repairer>,
    state: Arc<Mutex<RepairState>>,
}

/// The current or last run.
#[derive(Clone, Debug, Default)]
pub(crate) struct RepairState {
    /// Runs since the start.
    pub(crate) run: u64,
    /// Whether one is under way.
    pub(crate) running: bool,
    /// Its figures.
    pub(crate) progress: RepairProgress,
    /// What the last finished run did.
    pub(crate) report: Option<RepairReport>,
    /// Why the last run ended early.
    pub(crate) error: Option<String>,
    task: Option<AbortHandle>,
}

impl RepairRunner {
    /// Runs of `repairer`.
    pub(crate) fn new(repairer: Repairer) -> Self {
        Self { repairer: Arc::new(repairer), state: Arc::default() }
    }

    /// The repairer, for runs that are nobody's to ask about.
    pub(crate) fn repairer(&self) -> &Repairer {
        &self.repairer
    }

    /// The current or last run.
    pub(crate) fn state(&self) -> RepairState {
        self.state.lock().clone()
    }

    /// Starts a run unless one is under way; says how it stands either way.
    pub(crate) fn start(&self, core: &Arc<Core>, options: RepairOptions) -> RepairState {
        let mut state = self.state.lock();
        if state.running {
            return state.clone();
        }
        *state = RepairState { run: state.run + 1, running: true, ..RepairState::default() };
        let (repairer, shared, core) =
            (Arc::clone(&self.repairer), Arc::clone(&self.state), Arc::clone(core));
        let task = tokio::spawn(async move {
            let progress = |progress| shared.lock().progress = progress;
            let outcome = repairer.run(options, progress).await;
            let mut state = shared.lock();
            state.running = false;
            match outcome {
                Ok(report) => {
                    tracing::info!(
                        shards = report.progress.shards_rebuilt,
                        waiting = report.progress.waiting,
                        "a repair is finished"
                    );
                    state.progress = report.progress;
                    state.report = Some(report);
                }
                Err(error) => {
                    tracing::warn!(%error, "a repair stopped early");
                    state.error = Some(error.to_string());
                }
            }
            core.wake_deliveries();
        });
        state.task = Some(task.abort_handle());
        state.clone()
    }
}

/// Ends a run under way with the gateway. Every stripe is then repaired or untouched.
pub(super) async fn stop_with(core: Arc<Core>, stop: CancellationToken) {
    stop.cancelled().await;
    let mut state = core.repair.state.lock();
    if let Some(task) = state.task.take() {
        task.abort();
    }
    if state.running {
        state.running = false;
        state.error = Some("the gateway stopped".to_owned());
    }
}
