//! One io_uring on one thread: submissions come through a bounded queue, completions answer their senders.
//!
//! A thread of its own, because a ring shared by many threads needs a lock around every submission, and one
//! thread drives a disk at its full depth for 0.02 CPU-seconds a GiB.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use parking_lot::Mutex;
use rustix::event::EventfdFlags;

use super::raw::Ring;
use super::{BufferPool, Disk, REQUESTS_MAX, Request, stopped};

/// With this many requests under way the thread is not woken for one more: the next completion, which is near, takes it
/// up, and a wake-up costs as much as a read.
const WAKE_BELOW: usize = 8;

/// A disk behind an io_uring.
pub struct UringDisk {
    queue: Arc<Queue>,
    registered_bytes: u64,
    thread: Option<JoinHandle<()>>,
}

struct Queue {
    waiting: Mutex<VecDeque<Request>>,
    /// The thread is, or is about to be, in the kernel, and must be woken.
    sleeping: AtomicBool,
    closed: AtomicBool,
    event: OwnedFd,
}

impl UringDisk {
    /// Starts the ring's thread; fails when the system does not permit io_uring.
    pub fn start() -> io::Result<Self> {
        Self::start_with(&[])
    }

    /// Starts the ring's thread and registers the pools' memory, as far as the memlock limit allows.
    pub fn start_with(pools: &[&BufferPool]) -> io::Result<Self> {
        // One of each pool before the second of any: a small limit is then shared.
        let most = pools.iter().map(|pool| pool.slabs().len()).max().unwrap_or(0);
        let slabs: Vec<_> = (0..most)
            .flat_map(|at| pools.iter().filter_map(move |pool| pool.slabs().get(at).cloned()))
            .collect();
        let event = rustix::event::eventfd(0, EventfdFlags::CLOEXEC)?;
        let watched = event.try_clone()?;
        let queue = Arc::new(Queue {
            waiting: Mutex::new(VecDeque::new()),
            sleeping: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            event,
        });
        let (ready, started) = mpsc::sync_channel(1);
        let shared = Arc::clone(&queue);
        let thread =
            std::thread::Builder::new().name("disk-ring".to_owned()).spawn(move || {
                match Ring::new(watched, &slabs) {
                    Ok(ring) => {
                        let _gone = ready.send(Ok(ring.registered_bytes()));
                        drive(ring, &shared);
                    }
                    Err(error) => drop(ready.send(Err(error))),
                }
            })?;
        let registered_bytes = started.recv().map_err(|_| stopped())??;
        Ok(Self { queue, registered_bytes, thread: Some(thread) })
    }
}

impl Disk for UringDisk {
    fn name(&self) -> &'static str {
        "io_uring"
    }

    fn registered_bytes(&self) -> u64 {
        self.registered_bytes
    }

    fn submit(&self, request: Request) {
        {
            let mut waiting = self.queue.waiting.lock();
            // Read under the lock: the thread empties the queue under it after it has closed.
            if self.queue.closed.load(Ordering::SeqCst) {
                drop(waiting);
                return request.complete(Err(stopped()));
            }
            if waiting.len() >= REQUESTS_MAX {
                drop(waiting);
                return request.complete(Err(io::ErrorKind::WouldBlock.into()));
            }
            waiting.push_back(request);
        }
        self.queue.wake();
    }
}

impl Queue {
    fn wake(&self) {
        if self.sleeping.swap(false, Ordering::SeqCst) {
            // An eventfd write fails only when the counter would overflow: then the thread is awake anyway.
            let _awake = rustix::io::write(&self.event, &1u64.to_ne_bytes());
        }
    }
}

impl Drop for UringDisk {
    fn drop(&mut self) {
        self.queue.closed.store(true, Ordering::SeqCst);
        self.queue.sleeping.store(true, Ordering::SeqCst);
        self.queue.wake();
        if let Some(thread) = self.thread.take() {
            let _panicked = thread.join();
        }
    }
}

fn drive(mut ring: Ring, queue: &Queue) {
    loop {
        {
            let mut waiting = queue.waiting.lock();
            while ring.has_room()
                && let Some(request) = waiting.pop_front()
            {
                ring.start(request);
            }
        }
        if queue.closed.load(Ordering::SeqCst) && ring.is_idle() {
            break;
        }
        let wakeable = ring.under_way() < WAKE_BELOW;
        queue.sleeping.store(wakeable, Ordering::SeqCst);
        // Whoever queued after our look and before the flag did not wake us: look again.
        let more = !queue.waiting.lock().is_empty() && ring.has_room();
        let waited = if more || queue.closed.load(Ordering::SeqCst) && ring.is_idle() {
            ring.submit()
        } else {
            ring.wait(wakeable)
        };
        queue.sleeping.store(false, Ordering::SeqCst);
        if let Err(error) = waited
            && error.kind() != io::ErrorKind::ResourceBusy
        {
            tracing::error!(%error, "the io_uring failed; the disk stops");
            break;
        }
        ring.reap();
    }
    queue.closed.store(true, Ordering::SeqCst);
    for request in queue.waiting.lock().drain(..) {
        request.complete(Err(stopped()));
    }
}
