//! The second half of writing a group: waiting for its writes, one sync, its changes in the index, the answers.
//!
//! A thread of its own does that, so that the writer can plan the next group and start its writes meanwhile: a disk that
//! syncs, and an index that is written, need not wait for callers that hash. At most two groups are on their way to the
//! disk at a time: the first byte of a group is written only when all of the group before the last one are synced.
//! Replay relies on that.

use std::io;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex};
use tokio::sync::Notify;

use super::Answer;
use crate::disk::{DiskFile, WriteTally};
use crate::store::command::Command;
use crate::store::engine::Shared;
use crate::store::error::StoreError;
use crate::store::index::Sealed;
use crate::store::types::CommitGroupId;

/// A group whose writes have been started.
pub(super) struct Job {
    pub(super) commit: CommitGroupId,
    /// The file that was written to; `None` when nothing was.
    pub(super) written: Option<Arc<DiskFile>>,
    pub(super) tally: Arc<WriteTally>,
    /// What the group changes in the index; `None` when it changes nothing.
    pub(super) changes: Option<Sealed>,
    pub(super) answers: Vec<Answer>,
    /// What replaying the group would cost, in bytes.
    pub(super) replay_cost: u64,
}

/// The way to the thread.
pub(super) struct Pipe {
    jobs: Option<mpsc::SyncSender<Job>>,
    thread: Option<JoinHandle<()>>,
    gate: Arc<Gate>,
}

/// Whether the thread has a group.
struct Gate {
    state: Mutex<State>,
    changed: Condvar,
    idle: Notify,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Idle,
    Busy,
    /// The thread is gone; only a panic does that.
    Ended,
}

impl Gate {
    fn set(&self, state: State) {
        *self.state.lock() = state;
        self.changed.notify_all();
        self.idle.notify_one();
    }
}

impl Pipe {
    pub(super) fn start(shared: Arc<Shared>) -> io::Result<Self> {
        let (jobs, queue) = mpsc::sync_channel(1);
        let gate =
            Arc::new(Gate { state: Mutex::new(State::Idle), changed: Condvar::new(), idle: Notify::new() });
        let ours = Arc::clone(&gate);
        let thread = std::thread::Builder::new()
            .name("store-sync".to_owned())
            .spawn(move || Finisher { shared, replay_cost: 0, gate: ours }.run(&queue))?;
        Ok(Self { jobs: Some(jobs), thread: Some(thread), gate })
    }

    /// Whether every group that was handed over is finished.
    pub(super) fn is_idle(&self) -> bool {
        *self.gate.state.lock() != State::Busy
    }

    /// Waits until every group that was handed over is finished.
    pub(super) fn wait_idle(&self) {
        let mut state = self.gate.state.lock();
        while *state == State::Busy {
            self.gate.changed.wait(&mut state);
        }
    }

    /// The next command, unless the group under way is finished first or no command will ever come.
    pub(super) fn command_or_idle(
        &self,
        commands: &mut tokio::sync::mpsc::Receiver<Command>,
    ) -> Option<Command> {
        futures::executor::block_on(async {
            loop {
                // Asked for before the look, so that an end between the two is not missed.
                let idle = self.gate.idle.notified();
                if self.is_idle() {
                    return None;
                }
                tokio::select! {
                    biased;
                    command = commands.recv() => return command,
                    () = idle => {}
                }
            }
        })
    }

    /// Hands a group over, once the one before is finished.
    pub(super) fn hand_over(&self, job: Job) {
        self.wait_idle();
        *self.gate.state.lock() = State::Busy;
        let sent = match &self.jobs {
            Some(jobs) => jobs.send(job).map_err(|unsent| unsent.0),
            None => Err(job),
        };
        if let Err(job) = sent {
            self.gate.set(State::Ended);
            job.tally.wait().err();
            job.answer(&Err(StoreError::Closing));
        }
    }
}

impl Drop for Pipe {
    /// Waits for the group under way: whoever drops the writer may open the store again.
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            let _panicked = thread.join();
        }
    }
}

struct Finisher {
    shared: Arc<Shared>,
    replay_cost: u64,
    gate: Arc<Gate>,
}

impl Drop for Finisher {
    fn drop(&mut self) {
        self.gate.set(State::Ended);
    }
}

impl Finisher {
    fn run(mut self, jobs: &mpsc::Receiver<Job>) {
        while let Ok(mut job) = jobs.recv() {
            let result = self.finish(&mut job).map(|()| job.commit);
            // Idle before the answers: whoever hears one may ask the writer for something at once.
            self.gate.set(State::Idle);
            job.answer(&result);
        }
    }

    fn finish(&mut self, job: &mut Job) -> Result<(), StoreError> {
        // Every write is awaited, even after a failure: none may still be under way when the store is opened again.
        let written = job.tally.wait();
        if let Some(error) = self.shared.refusal() {
            return Err(error);
        }
        if let Some(file) = &job.written {
            written
                .and_then(|()| self.shared.disk.sync(file))
                .map_err(|error| self.fail(format!("{}: {error}", file.path.display())))?;
        }
        let Some(changes) = job.changes.take() else { return Ok(()) };
        let accounts = changes.accounts;
        self.shared.index.apply(&changes).map_err(|error| self.fail(error.to_string()))?;
        *self.shared.accounts.lock() = accounts;
        self.replay_cost += job.replay_cost;
        if self.replay_cost >= self.shared.index_flush_bytes {
            self.replay_cost = 0;
            self.shared.index.flush(false).map_err(|error| self.fail(error.to_string()))?;
        }
        Ok(())
    }

    fn fail(&self, detail: String) -> StoreError {
        self.shared.fail(detail.clone());
        StoreError::Failed { detail }
    }
}

impl Job {
    fn answer(self, result: &Result<CommitGroupId, StoreError>) {
        for answer in self.answers {
            answer(result.clone());
        }
    }
}
