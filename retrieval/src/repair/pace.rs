//! A limit of bytes per second.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Spreads bytes over time: each reservation begins when the ones before it are paid for.
#[derive(Debug)]
pub(crate) struct Pace {
    bytes_per_second: Option<u64>,
    free_at: Mutex<Option<Instant>>,
}

impl Pace {
    pub(crate) fn new(bytes_per_second: Option<u64>) -> Self {
        Self { bytes_per_second: bytes_per_second.map(|rate| rate.max(1)), free_at: Mutex::new(None) }
    }

    /// Waits until `bytes` more may be moved.
    pub(crate) async fn wait(&self, bytes: usize) {
        if let Some(at) = self.reserve(bytes, Instant::now()) {
            tokio::time::sleep_until(at).await;
        }
    }

    /// When these bytes may begin; `None` for at once.
    fn reserve(&self, bytes: usize, now: Instant) -> Option<Instant> {
        let rate = self.bytes_per_second?;
        let mut free_at = self.free_at.lock();
        let begin = free_at.filter(|at| *at > now).unwrap_or(now);
        let nanos = (bytes as u128).saturating_mul(1_000_000_000) / u128::from(rate);
        let takes = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        *free_at = begin.checked_add(takes);
        (begin > now).then_some(begin)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_spread_at_the_rate() {
        let pace = Pace::new(Some(1000));
        let now = Instant::now();
        assert_eq!(pace.reserve(500, now), None);
        assert_eq!(pace.reserve(500, now), Some(now + Duration::from_millis(500)));
        assert_eq!(pace.reserve(1, now), Some(now + Duration::from_secs(1)));
        let later = now + Duration::from_secs(60);
        assert_eq!(pace.reserve(500, later), None, "idle time is not saved up");
        assert_eq!(pace.reserve(1, later), Some(later + Duration::from_millis(500)));
    }

    #[test]
    fn without_a_rate_nothing_waits() {
        assert_eq!(Pace::new(None).reserve(usize::MAX, Instant::now()), None);
    }
}
