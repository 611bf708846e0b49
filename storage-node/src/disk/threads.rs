//! The fallback: a bounded pool of threads with pread, pwrite and fdatasync.

use std::collections::VecDeque;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex};

use super::{Action, Disk, REQUESTS_MAX, Request, stopped};

/// Threads of the pool: enough depth for one disk, few enough to be cheap when idle.
const THREADS: usize = 8;

/// A disk behind a few threads.
pub struct ThreadDisk {
    queue: Arc<Queue>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    filled: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Request>,
    closed: bool,
}

impl ThreadDisk {
    /// Starts the pool.
    pub fn start() -> io::Result<Self> {
        let queue = Arc::new(Queue::default());
        let mut disk = Self { queue, threads: Vec::with_capacity(THREADS) };
        for index in 0..THREADS {
            let queue = Arc::clone(&disk.queue);
            let name = format!("disk-{index}");
            disk.threads.push(std::thread::Builder::new().name(name).spawn(move || serve(&queue))?);
        }
        Ok(disk)
    }
}

impl Disk for ThreadDisk {
    fn name(&self) -> &'static str {
        "threads"
    }

    fn submit(&self, request: Request) {
        let refusal = {
            let mut state = self.queue.state.lock();
            if state.closed {
                stopped()
            } else if state.waiting.len() >= REQUESTS_MAX {
                io::ErrorKind::WouldBlock.into()
            } else {
                state.waiting.push_back(request);
                self.queue.filled.notify_one();
                return;
            }
        };
        request.complete(Err(refusal));
    }
}

impl Drop for ThreadDisk {
    fn drop(&mut self) {
        self.queue.state.lock().closed = true;
        self.queue.filled.notify_all();
        for thread in self.threads.drain(..) {
            let _panicked = thread.join();
        }
    }
}

fn serve(queue: &Queue) {
    loop {
        let mut state = queue.state.lock();
        let request = loop {
            if let Some(request) = state.waiting.pop_front() {
                break request;
            }
            if state.closed {
                return;
            }
            queue.filled.wait(&mut state);
        };
        drop(state);
        perform(request);
    }
}

fn perform(mut request: Request) {
    let (len, offset) = (request.len, request.offset);
    let file = &request.file.file;
    let buffer = request.buffer.as_deref_mut().and_then(|buffer| buffer.get_mut(..len));
    let result = match (request.action, buffer) {
        (Action::Sync, _) => file.sync_data(),
        (Action::Read, Some(bytes)) => file.read_exact_at(bytes, offset),
        (Action::Write, Some(bytes)) => file.write_all_at(bytes, offset),
        (Action::Read | Action::Write, None) => Err(io::ErrorKind::InvalidInput.into()),
    };
    request.complete(result);
}
