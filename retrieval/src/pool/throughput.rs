//! How many bytes a second come from a node while anything is under way from it, and how many were asked for and have
//! not come yet. Pure: the caller brings the clock.
//!
//! A time alone does not tell a slow node from one of which much is asked at once: sixteen blocks over a line of
//! 10 MB/s take 1.6 s although nothing is wrong. With the rate, the next read's time can be said before it starts.

use std::time::Duration;

use tokio::time::Instant;

/// Bytes between two samples: less would measure single round trips.
const SAMPLE_BYTES: u64 = 1 << 20;
/// Weight of the newest sample.
const WEIGHT: f64 = 0.25;

/// One node's rate, and what is under way from it.
#[derive(Clone, Debug, Default)]
pub(super) struct Throughput {
    requests: u32,
    outstanding_bytes: u64,
    /// Since when something has been under way.
    busy_since: Option<Instant>,
    /// Busy time since the last sample, before `busy_since`.
    busy: Duration,
    delivered: u64,
    bytes_per_second: f64,
}

impl Throughput {
    /// A request for `bytes` was sent.
    pub(super) fn begin(&mut self, bytes: u64, now: Instant) {
        self.requests = self.requests.saturating_add(1);
        self.outstanding_bytes = self.outstanding_bytes.saturating_add(bytes);
        self.busy_since.get_or_insert(now);
    }

    /// A request for `bytes` ended; `delivered` of them came.
    pub(super) fn end(&mut self, bytes: u64, delivered: u64, now: Instant) {
        self.requests = self.requests.saturating_sub(1);
        self.outstanding_bytes = self.outstanding_bytes.saturating_sub(bytes);
        self.delivered = self.delivered.saturating_add(delivered);
        let busy = self.busy + self.busy_since.map_or(Duration::ZERO, |since| now.duration_since(since));
        self.busy_since = (self.requests > 0).then_some(now);
        self.busy = busy;
        if self.delivered >= SAMPLE_BYTES && !busy.is_zero() {
            let sample = self.delivered as f64 / busy.as_secs_f64();
            self.bytes_per_second = if self.bytes_per_second > 0.0 {
                self.bytes_per_second + WEIGHT * (sample - self.bytes_per_second)
            } else {
                sample
            };
            (self.delivered, self.busy) = (0, Duration::ZERO);
        }
    }

    /// Bytes a second; `None` while nothing is known.
    pub(super) fn bytes_per_second(&self) -> Option<f64> {
        (self.bytes_per_second > 0.0).then_some(self.bytes_per_second)
    }

    /// How long until all that is under way has come, and `bytes` more. `None` while the rate is not known.
    pub(super) fn time_for(&self, bytes: u64) -> Option<Duration> {
        let rate = self.bytes_per_second()?;
        let queued = self.outstanding_bytes.saturating_add(bytes) as f64;
        Duration::try_from_secs_f64(queued / rate).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[tokio::test(start_paused = true)]
    async fn the_rate_is_that_of_busy_time_and_idle_time_costs_nothing() {
        let (mut node, mut now) = (Throughput::default(), Instant::now());
        assert_eq!(node.time_for(1), None);
        for _ in 0..40 {
            node.begin(MIB, now);
            now += ms(100);
            node.end(MIB, MIB, now);
            now += ms(5000);
        }
        let rate = node.bytes_per_second().unwrap();
        assert!((rate / (10.0 * 1_048_576.0) - 1.0).abs() < 0.01, "{rate}");
        assert_eq!(node.time_for(MIB).unwrap().as_millis(), 100);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_under_way_comes_first() {
        let (mut node, now) = (Throughput::default(), Instant::now());
        (0..8).for_each(|_| node.begin(MIB, now));
        (1..=4).for_each(|at| node.end(MIB, MIB, now + ms(100 * at)));
        // 10 MiB/s, and four blocks are still to come.
        assert_eq!(node.time_for(MIB).unwrap().as_millis(), 500);
        (5..=8).for_each(|at| node.end(MIB, 0, now + ms(100 * at)));
        assert!(node.time_for(MIB).unwrap() < ms(110), "what failed is no longer under way");
    }

    #[tokio::test(start_paused = true)]
    async fn side_by_side_requests_count_their_time_once() {
        let (mut node, now) = (Throughput::default(), Instant::now());
        node.begin(4 * MIB, now);
        node.begin(4 * MIB, now);
        node.end(4 * MIB, 4 * MIB, now + ms(800));
        node.end(4 * MIB, 4 * MIB, now + ms(800));
        let rate = node.bytes_per_second().unwrap();
        assert!(rate >= 5.0 * 1_048_576.0, "{rate}");
    }
}
