//! Looking after the disks: which are there, and the scrub of each.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::{Disks, State};
use crate::metric;
use crate::store::scrub::pace::{Next, PAUSE_MAX_MS, Pace};
use crate::store::{ScrubStep, Store};

/// Between a step and the next look at the pace.
const PAUSE_MIN_MS: u64 = 1;
/// Before a scrub that failed to step tries again.
const WAIT_MS: u64 = 5_000;

impl Disks {
    /// Sets aside disks that are no longer there, and takes up those that are back. Answers whether anything changed.
    /// To be called every few seconds.
    pub async fn tend(self: &Arc<Self>) -> bool {
        let disks = Arc::clone(self);
        // Opening a store replays its tail, dropping one waits for its writer: both on a thread that may wait.
        tokio::task::spawn_blocking(move || disks.tend_now()).await.unwrap_or(false)
    }

    fn tend_now(&self) -> bool {
        let mut changed = false;
        for slot in &self.slots {
            match slot.store() {
                Some(store) if store.could_be_written() => {
                    tracing::warn!(dir = %slot.config.dir.display(), "a read-only disk can be written again; opening it anew");
                    slot.accounts();
                    *slot.state.write() = State::Away { why: "it is being opened for writing".to_owned() };
                    changed = true;
                    drop(store);
                    // While a reader still has it, its lock is held: then the next look opens it.
                    if let Ok(store) = Store::open(slot.config.clone()) {
                        *slot.state.write() = State::Present(store);
                    }
                }
                Some(store) if store.is_present() => {}
                Some(store) => {
                    let why = store.failure().unwrap_or_else(|| "its path leads elsewhere".to_owned());
                    tracing::error!(dir = %slot.config.dir.display(), %why, "a disk is gone; nothing on it counts as lost");
                    slot.accounts();
                    *slot.state.write() = State::Away { why };
                    changed = true;
                }
                None => match Store::open(slot.config.clone()) {
                    Ok(store) => {
                        tracing::warn!(dir = %slot.config.dir.display(), "a disk is back");
                        *slot.state.write() = State::Present(store);
                        changed = true;
                    }
                    Err(error) => {
                        tracing::debug!(dir = %slot.config.dir.display(), %error, "a disk is still away");
                        *slot.state.write() = State::Away { why: error.to_string() };
                    }
                },
            }
        }
        changed
    }

    /// Scrubs one disk until `stop`, for as long as it is there, in the gaps that readers leave.
    pub async fn scrub(self: Arc<Self>, disk: usize, stop: CancellationToken) {
        let Some(clock) = self.slots.get(disk).map(|slot| Arc::clone(&slot.config.clock)) else { return };
        let mut pace = Pace::default();
        let started = tokio::time::Instant::now();
        let tick = || u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let mut reads_before = 0;
        loop {
            let pause_ms = match self.store(disk) {
                Some(store) => {
                    let (reads, waiting) = store.load();
                    let busy = waiting || reads != reads_before;
                    reads_before = reads;
                    match pace.next(&store.scrub_progress(), busy, clock.now_ms(), tick()) {
                        Next::Pause { ms } => ms,
                        Next::Step => {
                            let began = tick();
                            match scrub_step(&store, clock.now_ms()).await {
                                Some(step) => {
                                    pace.stepped(&step, began, tick());
                                    PAUSE_MIN_MS
                                }
                                None => WAIT_MS,
                            }
                        }
                    }
                }
                None => PAUSE_MAX_MS,
            };
            let pause = tokio::time::sleep(Duration::from_millis(pause_ms));
            tokio::select! {
                () = stop.cancelled() => return,
                () = pause => {}
            }
        }
    }
}

/// One step; `None` when the disk or the store cannot be scrubbed just now.
async fn scrub_step(store: &Store, now_ms: u64) -> Option<ScrubStep> {
    match store.scrub_step(now_ms).await {
        Ok(step) => {
            metrics::counter!(metric::SCRUBBED_BYTES).increment(step.bytes);
            metrics::counter!(metric::LOST_BLOCKS).increment(step.lost.len() as u64);
            Some(step)
        }
        Err(error) => {
            tracing::debug!(%error, "the scrub waits");
            None
        }
    }
}
