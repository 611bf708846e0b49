//! How fast a key may go and how much of the gateway it may hold, so that one tenant cannot slow another.
//!
//! Counted at each gateway by itself: several gateways give a key several times its rate. Nothing here waits; whoever is
//! over a limit is told to slow down.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::rules::Rules;

/// Keys whose state is kept. Those that have been idle the longest go first.
const KEYS_MAX: usize = 8192;
/// Requests under way at once of a key whose rules name no number: an eighth of all connections of a listener, so that
/// it takes eight greedy keys to be in the others' way.
const CONCURRENT_DEFAULT: u32 = 256;
/// The owner's: no bound but that of the listeners' connections.
const CONCURRENT_OWNER: u32 = 1 << 20;
/// What may come at once after a pause, in seconds of the rate.
const BURST_S: f64 = 1.0;

/// The state of all keys.
#[derive(Default)]
pub(crate) struct Limits {
    keys: Mutex<HashMap<String, Arc<Meter>>>,
}

/// One key's state.
pub(crate) struct Meter {
    under_way: Arc<Semaphore>,
    concurrent: u32,
    rates: Mutex<Rates>,
}

struct Rates {
    requests: Bucket,
    bytes: Bucket,
    used: Instant,
}

/// A bucket of tokens. It may be overdrawn: what a transfer weighs is known at its end.
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Bucket {
    /// Takes `cost` if there is anything left at `rate` a second.
    fn take(&mut self, rate: Option<f64>, cost: f64, now: Instant) -> bool {
        let Some(rate) = rate else { return true };
        let burst = (rate * BURST_S).max(1.0);
        self.tokens = (self.tokens + now.saturating_duration_since(self.at).as_secs_f64() * rate).min(burst);
        self.at = now;
        if self.tokens < cost.min(1.0) {
            return false;
        }
        self.tokens -= cost;
        true
    }
}

/// A request under way; the next one may come once it is dropped.
pub(crate) struct Place {
    _permit: OwnedSemaphorePermit,
    meter: Arc<Meter>,
}

impl Place {
    /// Counts bytes that went up or down against the key's rate.
    pub(crate) fn transferred(&self, bytes: u64) {
        #[allow(clippy::cast_precision_loss)]
        let bytes = bytes as f64;
        self.meter.rates.lock().bytes.tokens -= bytes;
    }
}

/// Why a request is refused for now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum TooFast {
    /// Requests a second.
    #[error("this access key makes more requests a second than it may; slow down")]
    Requests,
    /// Bytes a second.
    #[error("this access key moves more bytes a second than it may; slow down")]
    Bytes,
    /// Requests at once.
    #[error("this access key has more requests under way than it may; slow down")]
    Concurrent,
}

impl Limits {
    /// Lets a request of `key` in, or says what is too fast.
    pub(crate) fn enter(&self, key: &str, rules: &Rules, now: Instant) -> Result<Place, TooFast> {
        let meter = self.meter(key, rules, now);
        let permit = Arc::clone(&meter.under_way).try_acquire_owned().map_err(|_| TooFast::Concurrent)?;
        {
            let mut rates = meter.rates.lock();
            rates.used = now;
            if !rates.requests.take(rules.requests_per_second.map(f64::from), 1.0, now) {
                return Err(TooFast::Requests);
            }
            #[allow(clippy::cast_precision_loss)]
            let rate = rules.bytes_per_second.map(|rate| rate as f64);
            // The bytes are taken when they have gone through; here it only counts whether earlier ones are paid.
            if !rates.bytes.take(rate, 0.0, now) || (rate.is_some() && rates.bytes.tokens < 0.0) {
                return Err(TooFast::Bytes);
            }
        }
        Ok(Place { _permit: permit, meter })
    }

    fn meter(&self, key: &str, rules: &Rules, now: Instant) -> Arc<Meter> {
        let default = if rules.is_owner() { CONCURRENT_OWNER } else { CONCURRENT_DEFAULT };
        let concurrent = rules.concurrent.unwrap_or(default).max(1);
        let mut keys = self.keys.lock();
        // Changed rules begin a new count; what is under way by the old one ends by itself.
        if let Some(meter) = keys.get(key).filter(|meter| meter.concurrent == concurrent) {
            return Arc::clone(meter);
        }
        if keys.len() >= KEYS_MAX {
            let idle =
                keys.iter().min_by_key(|(_, meter)| meter.rates.lock().used).map(|(key, _)| key.clone());
            if let Some(idle) = idle {
                keys.remove(&idle);
            }
        }
        let full = |rate: f64| Bucket { tokens: (rate * BURST_S).max(1.0), at: now };
        #[allow(clippy::cast_precision_loss)]
        let bytes = rules.bytes_per_second.unwrap_or_default() as f64;
        let requests = f64::from(rules.requests_per_second.unwrap_or_default());
        let meter = Arc::new(Meter {
            under_way: Arc::new(Semaphore::new(concurrent as usize)),
            concurrent,
            rates: Mutex::new(Rates { requests: full(requests), bytes: full(bytes), used: now }),
        });
        keys.insert(key.to_owned(), Arc::clone(&meter));
        meter
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn requests_beyond_the_rate_wait_for_their_second_and_other_keys_do_not() {
        let limits = Limits::default();
        let rules = Rules { requests_per_second: Some(5), ..Rules::default() };
        let start = Instant::now();
        let allowed = (0..20).filter(|_| limits.enter("a", &rules, start).is_ok()).count();
        assert_eq!(allowed, 5);
        assert_eq!(limits.enter("a", &rules, start).err(), Some(TooFast::Requests));
        assert!(limits.enter("b", &rules, start).is_ok());
        let later = start + Duration::from_millis(400);
        assert_eq!((0..20).filter(|_| limits.enter("a", &rules, later).is_ok()).count(), 2);
    }

    #[test]
    fn a_large_transfer_is_paid_off_before_the_next_request() {
        let limits = Limits::default();
        let rules = Rules { bytes_per_second: Some(1000), ..Rules::default() };
        let start = Instant::now();
        let place = limits.enter("a", &rules, start).unwrap();
        place.transferred(3500);
        assert_eq!(limits.enter("a", &rules, start).err(), Some(TooFast::Bytes));
        assert_eq!(limits.enter("a", &rules, start + Duration::from_secs(2)).err(), Some(TooFast::Bytes));
        assert!(limits.enter("a", &rules, start + Duration::from_secs(3)).is_ok());
    }

    #[test]
    fn places_are_given_back() {
        let limits = Limits::default();
        let rules = Rules { concurrent: Some(2), ..Rules::default() };
        let now = Instant::now();
        let places: Vec<_> = (0..2).map(|_| limits.enter("a", &rules, now).unwrap()).collect();
        assert_eq!(limits.enter("a", &rules, now).err(), Some(TooFast::Concurrent));
        assert!(limits.enter("b", &rules, now).is_ok());
        drop(places);
        assert!(limits.enter("a", &rules, now).is_ok());
    }
}
