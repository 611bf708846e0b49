//! How long a file operation waits for a network that is gone: to the end of the limit, then EIO, never for ever.
//!
//! The limit counts from the beginning of the outage, not of the operation: once the network was silent for that
//! long, each further operation gets one short attempt instead of a minute of its own, so that walking a tree over
//! a dead network ends. One success ends the outage.

use std::future::Future;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, sleep, timeout_at};

use super::backend::BackendError;

/// One attempt waits no longer for an answer, so that a lost connection is noticed and another is tried. An attempt
/// that sends many bytes has the whole limit.
const ATTEMPT_MAX: Duration = Duration::from_secs(20);
/// What an attempt gets even when the limit has passed.
const ATTEMPT_MIN: Duration = Duration::from_secs(2);
const PAUSE_FIRST: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// Since when nothing has come through. Pure: told what happened and when.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outage {
    since: Option<Instant>,
}

impl Outage {
    /// An answer came.
    pub fn succeeded(&mut self) {
        self.since = None;
    }

    /// An attempt that began at `began` failed.
    pub fn failed(&mut self, began: Instant) {
        self.since.get_or_insert(began);
    }

    /// When an operation that began at `began` gives up.
    pub fn deadline(&self, began: Instant, limit: Duration) -> Instant {
        self.since.map_or(began, |since| since.min(began)) + limit
    }
}

/// Repeats calls within the limit.
#[derive(Debug)]
pub struct Patience {
    limit: Duration,
    outage: Mutex<Outage>,
}

impl Patience {
    /// Patience of `limit`.
    pub fn new(limit: Duration) -> Self {
        Self { limit, outage: Mutex::new(Outage::default()) }
    }

    /// Something came from the network.
    pub fn progressed(&self) {
        self.outage.lock().succeeded();
    }

    /// Nothing came for an attempt that began at `began`.
    pub fn stalled(&self, began: Instant) {
        self.outage.lock().failed(began);
    }

    /// When an operation that began at `began` gives up.
    pub fn deadline(&self, began: Instant) -> Instant {
        self.outage.lock().deadline(began, self.limit)
    }

    /// Waits for one thing of an operation that began at `began`; a stall is an error.
    pub async fn attempt<T>(
        &self,
        began: Instant,
        call: impl Future<Output = Result<T, BackendError>>,
    ) -> Result<T, BackendError> {
        self.attempt_within(began, ATTEMPT_MAX, call).await
    }

    async fn attempt_within<T>(
        &self,
        began: Instant,
        most: Duration,
        call: impl Future<Output = Result<T, BackendError>>,
    ) -> Result<T, BackendError> {
        let now = Instant::now();
        let least = ATTEMPT_MIN.min(self.limit);
        let until = self.deadline(began).clamp(now + least, now + most.max(least));
        let result = match timeout_at(until, call).await {
            Ok(result) => result,
            Err(_) => {
                let waited = now.elapsed().as_secs();
                Err(BackendError::Unreachable { why: format!("no answer within {waited} s") })
            }
        };
        match &result {
            Err(error) if error.is_retryable() => self.stalled(now),
            // A refusal is an answer too.
            _ => self.progressed(),
        }
        result
    }

    /// Repeats `call`, which is told how often it was tried before, until it succeeds, is refused, or patience ends.
    pub async fn run<T, F>(&self, call: impl FnMut(u32) -> F) -> Result<T, BackendError>
    where
        F: Future<Output = Result<T, BackendError>>,
    {
        self.run_within(ATTEMPT_MAX, call).await
    }

    /// [`Patience::run`] for calls that send so much that one attempt may need the whole limit.
    pub async fn run_long<T, F>(&self, call: impl FnMut(u32) -> F) -> Result<T, BackendError>
    where
        F: Future<Output = Result<T, BackendError>>,
    {
        self.run_within(self.limit, call).await
    }

    async fn run_within<T, F>(
        &self,
        most: Duration,
        mut call: impl FnMut(u32) -> F,
    ) -> Result<T, BackendError>
    where
        F: Future<Output = Result<T, BackendError>>,
    {
        let began = Instant::now();
        let mut pause = PAUSE_FIRST;
        for tried in 0.. {
            match self.attempt_within(began, most, call(tried)).await {
                Err(error) if error.is_retryable() => {
                    if Instant::now() + pause >= self.deadline(began) {
                        return Err(error);
                    }
                }
                done => return done,
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
        unreachable!("the loop above ends by returning")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(60);

    fn down() -> BackendError {
        BackendError::Unreachable { why: "refused".to_owned() }
    }

    #[tokio::test(start_paused = true)]
    async fn a_dead_network_is_an_error_after_the_limit_and_then_at_once() {
        let patience = Patience::new(LIMIT);
        let began = Instant::now();
        let failed: Result<(), _> = patience.run(|_| async { Err(down()) }).await;
        assert!(failed.is_err());
        let waited = began.elapsed();
        assert!(waited <= LIMIT && waited > LIMIT - 2 * PAUSE_MAX, "{waited:?}");
        let began = Instant::now();
        let failed: Result<(), _> = patience.run(|_| async { Err(down()) }).await;
        assert!(failed.is_err());
        assert!(began.elapsed() <= ATTEMPT_MIN, "the second operation waited {:?}", began.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_noticed_as_refusal_is() {
        let patience = Patience::new(LIMIT);
        let began = Instant::now();
        let failed: Result<(), _> = patience.run(|_| std::future::pending()).await;
        assert!(failed.is_err());
        assert!(began.elapsed() <= LIMIT + ATTEMPT_MIN, "{:?}", began.elapsed());
        let began = Instant::now();
        let failed: Result<(), _> = patience.run(|_| std::future::pending()).await;
        assert!(failed.is_err());
        assert!(began.elapsed() <= ATTEMPT_MIN, "{:?}", began.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_ends_the_outage_and_a_refusal_is_one() {
        let patience = Patience::new(LIMIT);
        let tried =
            patience.run(|tried| async move { if tried < 4 { Err(down()) } else { Ok(tried) } }).await;
        assert_eq!(tried.ok(), Some(4));
        let gone: Result<(), _> =
            patience.run(|_| async { Err(BackendError::NotFound { key: "x".to_owned() }) }).await;
        assert!(matches!(gone, Err(BackendError::NotFound { .. })));
        let began = Instant::now();
        assert_eq!(patience.deadline(began), began + LIMIT);
    }
}
