//! Seats for connections: whoever holds one without using it gives it up when somebody else needs it.
//!
//! Without that, as many silent connections as there are seats would keep everybody out, for as long as their owner keeps
//! opening new ones. A connection is idle before its first request, while it is sending a head, and between requests. It
//! is at work from a request's head to the last byte of its answer; a connection at work is never unseated, it is cut by
//! its own timeouts.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

/// All seats of a listener.
#[derive(Clone)]
pub(super) struct Seats {
    free: Arc<Semaphore>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    table: Mutex<Table>,
    became_idle: Notify,
}

#[derive(Default)]
struct Table {
    /// Counts changes; whoever became idle first has the lowest.
    next: u64,
    /// Idle connections by when they became so.
    idle: BTreeMap<u64, CancellationToken>,
}

/// A connection's seat; free again when dropped.
pub(super) struct Seat {
    work: Work,
    _permit: OwnedSemaphorePermit,
}

/// Tells a seat whether its connection is at work.
#[derive(Clone)]
pub(super) struct Work(Arc<Place>);

struct Place {
    shared: Arc<Shared>,
    wanted: CancellationToken,
    state: Mutex<State>,
}

/// Where a connection stands.
#[derive(Clone, Copy)]
enum State {
    /// Since then.
    Idle(u64),
    /// So many requests; more than one only for a moment, when an answer ends as the next request begins.
    Working(usize),
    Gone,
}

/// A request under way.
pub(super) struct Working(Arc<Place>);

impl Seats {
    pub(super) fn new(count: usize) -> Self {
        Self { free: Arc::new(Semaphore::new(count)), shared: Arc::default() }
    }

    /// A free seat, or that of whoever has been idle the longest.
    ///
    /// # Cancel safety
    /// Cancel safe; somebody may have been unseated for nobody.
    pub(super) async fn take(&self) -> Seat {
        let permit = tokio::select! {
            biased;
            permit = self.permit() => permit,
            () = self.unseat_one() => self.permit().await,
        };
        Seat { work: Work(Place::idle(&self.shared)), _permit: permit }
    }

    async fn permit(&self) -> OwnedSemaphorePermit {
        Arc::clone(&self.free).acquire_owned().await.expect("the semaphore is never closed")
    }

    /// Unseats the longest idle, as soon as anybody is.
    async fn unseat_one(&self) {
        loop {
            let became_idle = self.shared.became_idle.notified();
            if let Some((_, wanted)) = self.shared.table.lock().idle.pop_first() {
                wanted.cancel();
                return;
            }
            became_idle.await;
        }
    }
}

impl Seat {
    /// Returns when somebody else needs the seat.
    pub(super) async fn is_wanted(&self) {
        self.work.0.wanted.cancelled().await;
    }

    /// To be told of requests.
    pub(super) fn work(&self) -> Work {
        self.work.clone()
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut state = self.work.0.state.lock();
        if let State::Idle(since) = std::mem::replace(&mut *state, State::Gone) {
            self.work.0.shared.table.lock().idle.remove(&since);
        }
    }
}

impl Work {
    /// A request begins; it ends when what this returns is dropped.
    pub(super) fn begin(&self) -> Working {
        let mut state = self.0.state.lock();
        *state = match *state {
            State::Idle(since) => {
                self.0.shared.table.lock().idle.remove(&since);
                State::Working(1)
            }
            State::Working(requests) => State::Working(requests + 1),
            State::Gone => State::Gone,
        };
        Working(Arc::clone(&self.0))
    }
}

impl Place {
    fn idle(shared: &Arc<Shared>) -> Arc<Self> {
        let wanted = CancellationToken::new();
        let state = Mutex::new(State::Idle(shared.is_idle(&wanted)));
        Arc::new(Self { shared: Arc::clone(shared), wanted, state })
    }
}

impl Shared {
    fn is_idle(&self, wanted: &CancellationToken) -> u64 {
        let since = {
            let mut table = self.table.lock();
            let since = table.next;
            table.next += 1;
            table.idle.insert(since, wanted.clone());
            since
        };
        self.became_idle.notify_one();
        since
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        *state = match *state {
            State::Working(1) => State::Idle(self.0.shared.is_idle(&self.0.wanted)),
            State::Working(requests) => State::Working(requests.saturating_sub(1)),
            other => other,
        };
    }
}

#[cfg(test)]
mod tests {
    use futures::poll;

    use super::*;

    fn idle(seats: &Seats) -> usize {
        seats.shared.table.lock().idle.len()
    }

    #[tokio::test]
    async fn the_longest_idle_gives_way_and_who_works_does_not() {
        let seats = Seats::new(3);
        let (first, second, third) = (seats.take().await, seats.take().await, seats.take().await);
        let working = first.work().begin();
        let mut newcomer = Box::pin(seats.take());
        assert!(poll!(newcomer.as_mut()).is_pending());
        assert!(poll!(Box::pin(second.is_wanted())).is_ready(), "idle since before the third");
        assert!(
            poll!(Box::pin(first.is_wanted())).is_pending()
                && poll!(Box::pin(third.is_wanted())).is_pending()
        );
        drop(second);
        let newcomer = newcomer.await;
        // An answer that ends makes its connection the last to become idle.
        drop(working);
        let mut next = Box::pin(seats.take());
        assert!(poll!(next.as_mut()).is_pending());
        assert!(poll!(Box::pin(third.is_wanted())).is_ready());
        drop((first, third, newcomer));
        drop(next.await);
        assert_eq!((idle(&seats), seats.free.available_permits()), (0, 3));
    }

    #[tokio::test]
    async fn while_all_work_a_newcomer_waits_for_the_first_that_is_done() {
        let seats = Seats::new(2);
        let (one, two) = (seats.take().await, seats.take().await);
        let (first, second) = (one.work().begin(), two.work().begin());
        let mut newcomer = Box::pin(seats.take());
        assert!(poll!(newcomer.as_mut()).is_pending());
        assert!(
            poll!(Box::pin(one.is_wanted())).is_pending() && poll!(Box::pin(two.is_wanted())).is_pending()
        );
        // A second request begins before the first answer is dropped: it is still at work.
        let again = two.work().begin();
        drop(second);
        assert!(poll!(newcomer.as_mut()).is_pending());
        drop(again);
        assert!(poll!(newcomer.as_mut()).is_pending());
        assert!(poll!(Box::pin(two.is_wanted())).is_ready());
        drop(two);
        drop((newcomer.await, first, one));
        assert_eq!((idle(&seats), seats.free.available_permits()), (0, 2));
    }

    #[tokio::test]
    async fn an_answer_that_outlives_its_connection_leaves_nothing_behind() {
        let seats = Seats::new(1);
        let seat = seats.take().await;
        let working = seat.work().begin();
        drop(seat);
        drop(working);
        assert_eq!((idle(&seats), seats.free.available_permits()), (0, 1));
    }
}
