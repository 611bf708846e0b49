//! A bounded place for work that would hold up a runtime thread.

use std::sync::Arc;

use tokio::sync::Semaphore;

/// Below this many bytes touched, work is done where it is: at several GB/s it takes under 60 µs, which is
/// what handing it to another thread and back costs on a busy machine of two cores.
const INLINE_BYTES_MAX: usize = 256 * 1024;

/// Runs coding and hashing on the runtime's blocking threads, at most a given number at once.
#[derive(Clone)]
pub struct CpuPool {
    permits: Arc<Semaphore>,
}

impl CpuPool {
    /// At most `threads` pieces of work at once.
    pub fn new(threads: usize) -> Self {
        Self { permits: Arc::new(Semaphore::new(threads.max(1))) }
    }

    /// As many at once as the machine has cores.
    pub fn per_core() -> Self {
        Self::new(std::thread::available_parallelism().map_or(2, std::num::NonZero::get))
    }

    /// Does `work`, which touches about `bytes` bytes. `None` only when the runtime is shutting down.
    ///
    /// # Cancel safety
    /// Work that has begun runs to its end, and its result is dropped.
    pub async fn run<T: Send + 'static>(
        &self,
        bytes: usize,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        if bytes <= INLINE_BYTES_MAX {
            return Some(work());
        }
        let permit = Arc::clone(&self.permits).acquire_owned().await.ok()?;
        let done = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            work()
        });
        match done.await {
            Ok(result) => Some(result),
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => None,
        }
    }
}
