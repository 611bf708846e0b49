//! The retrieval score: does a node serve its readers? Decided by gateways, shown to everybody, paid to nobody.

use serde::{Deserialize, Serialize};

use super::SurpriseAnswer;
use crate::fetch::ReadFault;

/// Evidence fades by half over this time.
pub const HALF_LIFE_MS: u64 = 30 * 24 * 3_600_000;
/// Weight of a wrong answer against a right one.
pub const WRONG_WEIGHT: f64 = 20.0;
/// A right answer that takes longer counts half: it came, but no reader would have waited.
pub const SLOW_MS: u64 = 2_000;

/// Good and bad evidence, faded to `at_ms`.
///
/// ```text
/// f = 2^(-passed / 30 days)     g <- f g + good     b <- f b + bad     score = (1 + g) / (1 + g + b)
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RetrievalScore {
    /// Right answers.
    pub good: f64,
    /// Everything else, weighed.
    pub bad: f64,
    /// When the evidence was last faded.
    pub at_ms: u64,
    /// Reads asked, unfaded.
    pub asked: u64,
    /// Reads answered rightly, unfaded.
    pub right: u64,
}

impl RetrievalScore {
    /// Takes in one answer.
    pub fn add(&mut self, answer: &SurpriseAnswer, now_ms: u64) {
        #[allow(clippy::cast_precision_loss, reason = "a factor")]
        let passed = now_ms.saturating_sub(self.at_ms) as f64;
        #[allow(clippy::cast_precision_loss, reason = "a constant of 2.6e9")]
        let factor = (-passed / HALF_LIFE_MS as f64).exp2();
        let (good, bad) = weigh(answer);
        self.good = self.good * factor + good;
        self.bad = self.bad * factor + bad;
        self.at_ms = self.at_ms.max(now_ms);
        self.asked += 1;
        self.right += u64::from(answer.fault.is_none());
    }

    /// Between 0 and 1; 1 without evidence.
    pub fn score(&self) -> f64 {
        (1.0 + self.good) / (1.0 + self.good + self.bad)
    }
}

fn weigh(answer: &SurpriseAnswer) -> (f64, f64) {
    match &answer.fault {
        None if answer.took.as_millis() > u128::from(SLOW_MS) => (0.5, 0.5),
        None => (1.0, 0.0),
        Some(ReadFault::Lied { .. }) => (0.0, WRONG_WEIGHT),
        Some(
            ReadFault::Absent(_)
            | ReadFault::Refused(_)
            | ReadFault::Timeout { .. }
            | ReadFault::Offline { .. }
            | ReadFault::Broken { .. },
        ) => (0.0, 1.0),
    }
}
