//! A request body that cannot be left half-sent: reading it fails once the client goes quiet or merely drips.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep};

/// A client that keeps us waiting must bring at least this much per second waited, once the idle timeout's worth of
/// waiting has added up. Our own back-pressure does not count: nobody waits for the client then.
const WAITED_BYTES_PER_SECOND_MIN: u64 = 1024;

/// A request body with an idle timeout and a floor under its rate.
pub(crate) struct TimedBody {
    inner: Incoming,
    idle_timeout: Duration,
    timer: Option<Pin<Box<Sleep>>>,
    waiting_since: Option<Instant>,
    waited: Duration,
    received: u64,
    asked_for: Arc<AtomicBool>,
    read_to_end: Arc<AtomicBool>,
}

impl TimedBody {
    /// Puts the timeouts on `inner`.
    pub(crate) fn new(inner: Incoming, idle_timeout: Duration) -> Self {
        let read_to_end = Arc::new(AtomicBool::new(inner.is_end_stream()));
        Self {
            inner,
            read_to_end,
            idle_timeout,
            timer: None,
            waiting_since: None,
            waited: Duration::ZERO,
            received: 0,
            asked_for: Arc::default(),
        }
    }

    /// Becomes true when bytes of the body are asked for, which is what makes the HTTP library send "100 Continue".
    /// An empty body is never asked for.
    pub(crate) fn asked_for(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.asked_for)
    }

    /// Is true once nothing of the body is left on the connection, which can then be used again.
    pub(crate) fn read_to_end(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.read_to_end)
    }

    fn arrived(&mut self, bytes: u64) -> Result<(), BodyError> {
        if let Some(since) = self.waiting_since.take() {
            self.waited += since.elapsed();
        }
        self.received = self.received.saturating_add(bytes);
        let drips = self.waited > self.idle_timeout
            && self.received < self.waited.as_secs().saturating_mul(WAITED_BYTES_PER_SECOND_MIN);
        if drips { Err(BodyError::Slow { received: self.received }) } else { Ok(()) }
    }

    fn poll_timer(&mut self, cx: &mut Context<'_>) -> Poll<BodyError> {
        let now = Instant::now();
        self.waiting_since.get_or_insert(now);
        let deadline = now + self.idle_timeout;
        let timer = match &mut self.timer {
            Some(timer) => timer,
            None => self.timer.insert(Box::pin(tokio::time::sleep_until(deadline))),
        };
        timer.as_mut().poll(cx).map(|()| BodyError::Slow { received: self.received })
    }
}

impl Body for TimedBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        if !this.inner.is_end_stream() {
            this.asked_for.store(true, Ordering::Relaxed);
        }
        let polled = Pin::new(&mut this.inner).poll_frame(cx);
        if this.inner.is_end_stream() || matches!(polled, Poll::Ready(None)) {
            this.read_to_end.store(true, Ordering::Relaxed);
        }
        match polled {
            Poll::Ready(Some(Ok(frame))) => {
                this.timer = None;
                let bytes = frame.data_ref().map_or(0, |data| data.len() as u64);
                Poll::Ready(Some(this.arrived(bytes).map(|()| frame)))
            }
            Poll::Ready(Some(Err(source))) => {
                Poll::Ready(Some(Err(BodyError::Broken { received: this.received, source })))
            }
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending => this.poll_timer(cx).map(|error| Some(Err(error))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// Why a request body ended before its end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum BodyError {
    /// No byte, or too few, within the timeout.
    #[error("RequestBodySlow: the client stopped sending after {received} bytes")]
    Slow {
        /// Bytes that came.
        received: u64,
    },
    /// The aws-chunked framing is wrong, or a chunk too long.
    #[error("FormatError: {detail}")]
    Chunks {
        /// What is wrong.
        detail: &'static str,
    },
    /// Too many long signed chunks are held already.
    #[error("ChunkMemory: too many long signed chunks are under way")]
    Memory,
    /// The connection broke or the framing is wrong.
    #[error("RequestBodyBroken: the body ended after {received} bytes: {source}")]
    Broken {
        /// Bytes that came.
        received: u64,
        /// What the HTTP library said.
        source: hyper::Error,
    },
}
