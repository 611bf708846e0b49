//! Node processes that hang and node processes that die.

use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// How long a node hangs.
const STALL: Duration = Duration::from_secs(1);
/// How long all is well between two stalls.
const PAUSE: Duration = Duration::from_secs(3);

/// Ends a process at once.
pub(crate) fn kill(pid: u32) -> Result<()> {
    signal(pid, Signal::KILL)
}

fn signal(pid: u32, signal: Signal) -> Result<()> {
    let pid = Pid::from_raw(i32::try_from(pid)?).context("no process has id 0")?;
    kill_process(pid, signal).with_context(|| format!("cannot signal process {pid:?}"))
}

/// Stops one process after the other for a second. All go on when this is stopped.
pub(crate) struct Stalls {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Stalls {
    /// Starts with the first of `pids`.
    pub(crate) fn start(pids: Vec<u32>) -> Self {
        let (stop, mut stopped) = oneshot::channel();
        let task = tokio::spawn(async move {
            for pid in pids.iter().cycle() {
                let stall = async {
                    if signal(*pid, Signal::STOP).is_ok() {
                        tokio::time::sleep(STALL).await;
                    }
                };
                let ended = tokio::select! { () = stall => false, _ = &mut stopped => true };
                // A process that is gone cannot be woken, and need not be.
                signal(*pid, Signal::CONT).ok();
                if ended || tokio::time::timeout(PAUSE, &mut stopped).await.is_ok() {
                    return;
                }
            }
        });
        Self { stop, task }
    }

    /// Lets all processes go on.
    pub(crate) async fn stop(self) {
        self.stop.send(()).ok();
        self.task.await.ok();
    }
}
