//! An ordered stream of verified bytes that reads ahead within a bounded number of bytes.
//!
//! Two bounds hold at once. Each stream has a window of its own that grows from a few blocks to its full
//! size. All streams of a [`Fetcher`] together read ahead within one budget; what a stream reads at its head,
//! the piece that its consumer waits for, stands outside it. So a consumer that stops taking can hold up the
//! budget but never another stream: others then go on one piece at a time.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures::Stream;
use holdfast_protocol::Digest;
use holdfast_protocol::message::{ByteRange, LeafUnit};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;

use super::read::reads_whole;
use super::window::Window;
use super::{FetchError, Fetcher};
use crate::block::BlockRef;

/// What a stream reads, in order.
type Wanted = Box<dyn Iterator<Item = (BlockRef, ByteRange)> + Send>;

/// Verified bytes of many blocks, in order: one [`Bytes`] per wanted range. Ends after the first error.
///
/// # Cancel safety
/// Dropping the stream aborts every read that it has under way.
pub struct FetchStream {
    fetcher: Fetcher,
    wanted: Wanted,
    next: Option<(BlockRef, ByteRange)>,
    flights: VecDeque<Flight>,
    window: Window,
    budget: Arc<Semaphore>,
}

/// One read under way; aborted when dropped.
struct Flight {
    digest: Digest,
    cost: u64,
    task: JoinHandle<Result<Bytes, FetchError>>,
    /// The share of the common budget; the read at the head needs none.
    _share: Option<OwnedSemaphorePermit>,
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl FetchStream {
    pub(crate) fn new(fetcher: Fetcher, wanted: Wanted, window: Window, budget: Arc<Semaphore>) -> Self {
        Self { fetcher, wanted, next: None, flights: VecDeque::new(), window, budget }
    }

    /// Bytes that are being read or wait to be taken.
    pub fn bytes_in_flight(&self) -> u64 {
        self.window.flying()
    }

    fn launch_ahead(&mut self) {
        while let Some((block, range)) = self.next.take().or_else(|| self.wanted.next()) {
            let cost = cost_of(block, range);
            let Some(share) = self.admit(cost) else {
                self.next = Some((block, range));
                return;
            };
            self.window.started(cost);
            let fetcher = self.fetcher.clone();
            let task = tokio::spawn(async move { fetcher.range(block, range).await });
            self.flights.push_back(Flight { digest: block.digest, cost, task, _share: share });
        }
    }

    /// Room for one more read: `None` when there is none now.
    fn admit(&self, cost: u64) -> Option<Option<OwnedSemaphorePermit>> {
        if self.flights.is_empty() {
            return Some(None);
        }
        if !self.window.admits(cost) {
            return None;
        }
        let share = u32::try_from(cost).ok()?;
        Arc::clone(&self.budget).try_acquire_many_owned(share).ok().map(Some)
    }

    fn stop(&mut self) {
        self.flights.clear();
        self.next = None;
        self.wanted = Box::new(std::iter::empty());
    }
}

impl Stream for FetchStream {
    type Item = Result<Bytes, FetchError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        this.launch_ahead();
        let Some(head) = this.flights.front_mut() else {
            return Poll::Ready(None);
        };
        let joined = ready!(Pin::new(&mut head.task).poll(cx));
        let (digest, cost) = (head.digest, head.cost);
        this.flights.pop_front();
        this.window.taken(cost);
        let result = joined.unwrap_or_else(|error| {
            if error.is_panic() {
                std::panic::resume_unwind(error.into_panic());
            }
            Err(FetchError::Stopping { digest })
        });
        if result.is_err() {
            this.stop();
        }
        Poll::Ready(Some(result))
    }
}

/// Bytes that a read holds until it is handed out.
fn cost_of(block: BlockRef, range: ByteRange) -> u64 {
    if reads_whole(block, range) {
        return u64::from(block.len.bytes());
    }
    let unit = LeafUnit::Group.len();
    let first = range.start / unit * unit;
    u64::from(range.end().div_ceil(unit).saturating_mul(unit).min(block.len.bytes()).saturating_sub(first))
}
