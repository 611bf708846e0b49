//! How long a node's answers take: a moving average and the 95th percentile of the last answers, apart for
//! small and large ones, because a 1 MiB block and a 16 KiB group are not compared.

use std::time::Duration;

/// Up to this many bytes an answer counts as small: its time is a round trip more than a transfer.
pub const SMALL_MAX: usize = 64 * 1024;
/// Answers remembered per class: enough for a 95th percentile with three worse ones, small enough to sort.
const WINDOW: usize = 64;
/// Weight of the newest answer in the average, as in TCP's smoothed round-trip time.
const EWMA_WEIGHT: f64 = 0.125;

/// With which others an answer's time is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SizeClass {
    /// Up to [`SMALL_MAX`] bytes.
    Small,
    /// More.
    Large,
}

impl SizeClass {
    /// The class of an answer of this many bytes.
    pub fn of(bytes: usize) -> Self {
        if bytes <= SMALL_MAX { Self::Small } else { Self::Large }
    }
}

/// What is known about the times of one class. All zero while nothing is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LatencyView {
    /// Exponentially weighted moving average.
    pub average: Duration,
    /// 95 of the last 100 answers were faster (of the last 64, in truth).
    pub p95: Duration,
    /// Answers that these figures rest on, at most 64.
    pub samples: usize,
}

impl LatencyView {
    /// The 95th percentile, or `fallback` while fewer than 8 answers are known.
    pub fn p95_or(&self, fallback: Duration) -> Duration {
        if self.samples < 8 { fallback } else { self.p95 }
    }
}

/// The times of one class of answers.
#[derive(Clone, Debug)]
pub(super) struct Estimator {
    window: [u32; WINDOW],
    next: usize,
    filled: usize,
    average_us: f64,
}

impl Default for Estimator {
    fn default() -> Self {
        Self { window: [0; WINDOW], next: 0, filled: 0, average_us: 0.0 }
    }
}

impl Estimator {
    pub(super) fn add(&mut self, latency: Duration) {
        let us = u32::try_from(latency.as_micros()).unwrap_or(u32::MAX);
        self.average_us = if self.filled == 0 {
            f64::from(us)
        } else {
            self.average_us + EWMA_WEIGHT * (f64::from(us) - self.average_us)
        };
        self.window[self.next] = us;
        self.next = (self.next + 1) % WINDOW;
        self.filled = (self.filled + 1).min(WINDOW);
    }

    /// The moving average alone; zero while nothing is known.
    pub(super) fn average(&self) -> Duration {
        Duration::from_secs_f64(self.average_us / 1e6)
    }

    pub(super) fn view(&self) -> LatencyView {
        if self.filled == 0 {
            return LatencyView::default();
        }
        let mut times = self.window;
        let times = &mut times[..self.filled];
        // The smallest index with at least 95 % of the samples at or below it.
        let rank = (self.filled * 95).div_ceil(100) - 1;
        let (_, p95, _) = times.select_nth_unstable(rank);
        LatencyView {
            average: Duration::from_secs_f64(self.average_us / 1e6),
            p95: Duration::from_micros(u64::from(*p95)),
            samples: self.filled,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn nothing_is_known_before_the_first_answer() {
        let view = Estimator::default().view();
        assert_eq!(view, LatencyView::default());
        assert_eq!(view.p95_or(Duration::from_secs(1)), Duration::from_secs(1));
    }

    #[test]
    fn the_percentile_is_that_of_the_last_answers_only() {
        let mut estimator = Estimator::default();
        for _ in 0..1000 {
            estimator.add(Duration::from_secs(5));
        }
        for ms in 1..=64u64 {
            estimator.add(Duration::from_millis(ms));
        }
        assert_eq!(estimator.view().p95, Duration::from_millis(61));
        assert_eq!(estimator.view().samples, 64);
    }

    proptest! {
        #[test]
        fn the_percentile_agrees_with_sorting(times in prop::collection::vec(0u32..10_000_000, 1..64)) {
            let mut estimator = Estimator::default();
            times.iter().for_each(|us| estimator.add(Duration::from_micros(u64::from(*us))));
            let mut sorted = times.clone();
            sorted.sort_unstable();
            let expected = sorted[(sorted.len() * 95).div_ceil(100) - 1];
            prop_assert_eq!(estimator.view().p95, Duration::from_micros(u64::from(expected)));
        }
    }
}
