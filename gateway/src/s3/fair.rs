//! Fair sharing between access keys: how many requests of one key may be worked on at once.
//!
//! A key alone may use every place; with others active it gets its equal share, so a flood of one key's requests waits
//! behind that key's own requests and nobody else's. A key is never made to wait because of what others hold: when a
//! second key comes while the first holds all places, the second is let in at once and the first falls back to its share
//! as its requests end. So the total is bounded by places * (1 + 1/2 + … + 1/keys).

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;

/// However many keys are active, each gets this many places.
const SHARE_MIN: usize = 4;
/// Requests of one key that may wait; a client with more is asked to slow down.
const WAITING_MAX: usize = 4096;

/// Places for requests.
#[derive(Clone, Debug)]
pub(crate) struct Fair {
    places: usize,
    table: Arc<Mutex<HashMap<String, Key>>>,
}

#[derive(Debug, Default)]
struct Key {
    working: usize,
    waiting: VecDeque<oneshot::Sender<()>>,
}

/// A request that is being worked on; the place is free again when it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    fair: Fair,
    key: String,
}

/// Too many requests of this key wait already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooMany;

impl Fair {
    /// `places` for a key that is alone.
    pub(crate) fn new(places: usize) -> Self {
        Self { places: places.max(SHARE_MIN), table: Arc::default() }
    }

    /// Waits for a place.
    ///
    /// # Cancel safety
    /// Cancel safe: a place that comes too late goes to the next.
    pub(crate) async fn enter(&self, key: &str) -> Result<Place, TooMany> {
        let waiting = {
            let mut table = self.table.lock();
            let share = self.share(&table, key);
            let state = table.entry(key.to_owned()).or_default();
            if state.working < share && state.waiting.is_empty() {
                state.working += 1;
                None
            } else if state.waiting.len() >= WAITING_MAX {
                return Err(TooMany);
            } else {
                let (sender, receiver) = oneshot::channel();
                state.waiting.push_back(sender);
                Some(receiver)
            }
        };
        match waiting {
            None => Ok(Place { fair: self.clone(), key: key.to_owned() }),
            Some(waiting) => Waiter { waiting, fair: self, key, is_done: false }.wait().await,
        }
    }

    /// Places that a key may use now.
    fn share(&self, table: &HashMap<String, Key>, key: &str) -> usize {
        let others = table.len() - usize::from(table.contains_key(key));
        (self.places / (others + 1)).max(SHARE_MIN)
    }

    fn leave(&self, key: &str) {
        let mut table = self.table.lock();
        let is_gone = match table.get_mut(key) {
            None => return,
            Some(state) => {
                state.working -= 1;
                state.waiting.retain(|sender| !sender.is_closed());
                state.working == 0 && state.waiting.is_empty()
            }
        };
        if is_gone {
            table.remove(key);
            // Everybody's share has grown.
            let keys: Vec<String> = table
                .iter()
                .filter(|(_, state)| !state.waiting.is_empty())
                .map(|(key, _)| key.clone())
                .collect();
            keys.iter().for_each(|key| self.admit(&mut table, key));
        } else {
            self.admit(&mut table, key);
        }
    }

    /// Lets those in who wait and have a place now.
    fn admit(&self, table: &mut HashMap<String, Key>, key: &str) {
        let share = self.share(table, key);
        let Some(state) = table.get_mut(key) else { return };
        while state.working < share {
            let Some(next) = state.waiting.pop_front() else { return };
            if next.send(()).is_ok() {
                state.working += 1;
            }
        }
    }
}

/// Waits for a place. Whoever frees one counts it for the waiter before telling; a waiter that is dropped in between
/// gives it back.
struct Waiter<'a> {
    waiting: oneshot::Receiver<()>,
    fair: &'a Fair,
    key: &'a str,
    is_done: bool,
}

impl Waiter<'_> {
    async fn wait(mut self) -> Result<Place, TooMany> {
        let told = (&mut self.waiting).await;
        self.is_done = true;
        // The table drops no sender that it has not used.
        told.map(|()| Place { fair: self.fair.clone(), key: self.key.to_owned() }).map_err(|_| TooMany)
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        if !self.is_done {
            self.waiting.close();
            if self.waiting.try_recv().is_ok() {
                self.fair.leave(self.key);
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.fair.leave(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_flood_of_one_key_does_not_hold_up_another() {
        let fair = Fair::new(16);
        let mut held = Vec::new();
        for _ in 0..16 {
            held.push(fair.enter("flood").await.unwrap());
        }
        let mut next = Box::pin(fair.enter("flood"));
        assert!(futures::poll!(next.as_mut()).is_pending());
        let other = fair.enter("other").await.unwrap();
        // The flood falls back to half: eight must end before another of its requests goes on.
        held.truncate(9);
        assert!(futures::poll!(next.as_mut()).is_pending());
        held.truncate(7);
        let admitted = next.await.unwrap();
        drop((admitted, other, held));
        assert!(fair.table.lock().is_empty());
    }

    #[tokio::test]
    async fn those_who_give_up_waiting_leave_their_place_to_others() {
        let fair = Fair::new(SHARE_MIN);
        let mut held = Vec::new();
        for _ in 0..SHARE_MIN {
            held.push(fair.enter("k").await.unwrap());
        }
        let mut gone = Box::pin(fair.enter("k"));
        let mut told_and_gone = Box::pin(fair.enter("k"));
        let mut stays = Box::pin(fair.enter("k"));
        for waiter in [&mut gone, &mut told_and_gone, &mut stays] {
            assert!(futures::poll!(waiter.as_mut()).is_pending());
        }
        drop(gone);
        held.pop();
        // Its place was granted, and it goes without having looked.
        drop(told_and_gone);
        let place = stays.await.unwrap();
        drop((place, held));
        assert!(fair.table.lock().is_empty());
    }

    #[tokio::test]
    async fn shares_grow_again_when_a_key_is_gone() {
        let fair = Fair::new(8);
        let other = fair.enter("other").await.unwrap();
        let mut held = Vec::new();
        for _ in 0..4 {
            held.push(fair.enter("k").await.unwrap());
        }
        let mut next = Box::pin(fair.enter("k"));
        assert!(futures::poll!(next.as_mut()).is_pending());
        drop(other);
        assert!(next.await.is_ok());
    }
}
