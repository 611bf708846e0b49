//! Scores and pay: published formulas, nothing else decides.
//!
//! **Data** (is it really there?) and **online** (does it answer?) are fractions of good evidence, in which evidence
//! fades by half over a half-life; **retrieval** (does it serve readers?) is the gateways' and has the online
//! formula. With `g` good and `b` bad evidence, `f = 2^(-time / half-life)`:
//!
//! ```text
//! g, b <- f g + good, f b + weight bad          score = (1 + g) / (1 + g + b)
//! data:   half-life  7 days; a passed chunk is good 1, an absent one bad 10, a wrong one bad 200
//! online: half-life 30 days; an epoch answered in time is good 1, an epoch offline or timed out bad 1
//! pay of an epoch = (drawn - declared - refused) / drawn x max(0, 1 - 10 x missed / (drawn - declared - refused))
//! ```
//! Offline and timed-out epochs never touch the data score: what was drawn stays due, and only the end of that time
//! makes it absent. Standing changes with hysteresis: suspended below the lower threshold, good again above the
//! higher one, disqualified for wrong proofs in two epochs or for two commitments to one epoch.

use holdfast_protocol::record::{AuditOutcome, StandingState};

pub mod book;

pub use book::{Account, EpochResult, ScoreBook};

/// Half-life of the data score's evidence.
pub const DATA_HALF_LIFE_MS: u64 = 7 * 24 * 3_600_000;
/// Half-life of the online and retrieval scores' evidence.
pub const ONLINE_HALF_LIFE_MS: u64 = 30 * 24 * 3_600_000;
/// Weight of an absent chunk against a passed one: what keeps 99 % then scores 0.908, far below the threshold.
pub const ABSENT_WEIGHT: f64 = 10.0;
/// Weight of a wrong proof: nobody signs one by accident.
pub const WRONG_WEIGHT: f64 = 200.0;
/// Below it a node gets no new data.
pub const DATA_SUSPENDED_BELOW: f64 = 0.98;
/// Above it a suspended node is good again.
pub const DATA_GOOD_ABOVE: f64 = 0.99;
/// Below it a node gets no new data.
pub const ONLINE_SUSPENDED_BELOW: f64 = 0.95;
/// Above it a suspended node is good again.
pub const ONLINE_GOOD_ABOVE: f64 = 0.97;
/// Drawn chunks before a score means anything: five hours of 20.
pub const DRAWS_UNTIL_KNOWN: u64 = 100;
/// Epochs with wrong proofs that disqualify.
pub const WRONG_EPOCHS_MAX: u32 = 2;
/// How steeply pay falls with missed chunks: 1 % missing is 10 % less pay in expectation while honest loss costs 1 %,
/// and one missed chunk of 20 costs half an epoch.
pub const PAY_SLOPE: f64 = 10.0;

/// Evidence that fades.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fading {
    good: f64,
    bad: f64,
    half_life_ms: u64,
    at_ms: u64,
}

impl Fading {
    /// Without evidence.
    pub const fn new(half_life_ms: u64) -> Self {
        Self { good: 0.0, bad: 0.0, half_life_ms, at_ms: 0 }
    }

    /// Takes in evidence of `at_ms`; what came before fades by the time in between.
    pub fn add(&mut self, at_ms: u64, good: f64, bad: f64) {
        let factor = self.factor(at_ms);
        self.good = self.good * factor + good;
        self.bad = self.bad * factor + bad;
        self.at_ms = self.at_ms.max(at_ms);
    }

    /// Between 0 and 1; 1 without evidence.
    pub fn score(&self) -> f64 {
        (1.0 + self.good) / (1.0 + self.good + self.bad)
    }

    /// The score after `good` more evidence, spread over `ms` from now.
    pub fn forecast(&self, ms: u64, good: f64) -> f64 {
        let mut later = *self;
        let steps = 24;
        for step in 1..=steps {
            later.add(self.at_ms + ms * step / steps, good / f64::from(24u32), 0.0);
        }
        later.score()
    }

    #[allow(clippy::cast_precision_loss)]
    fn factor(&self, at_ms: u64) -> f64 {
        let passed = at_ms.saturating_sub(self.at_ms) as f64;
        (-passed / self.half_life_ms as f64).exp2()
    }
}

/// A node's scores at one auditor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scores {
    data: Fading,
    online: Fading,
    draws: u64,
    wrong_epochs: u32,
    equivocated: bool,
    state: StandingState,
}

impl Scores {
    /// Of a node that nothing is known of.
    pub const fn new() -> Self {
        Self {
            data: Fading::new(DATA_HALF_LIFE_MS),
            online: Fading::new(ONLINE_HALF_LIFE_MS),
            draws: 0,
            wrong_epochs: 0,
            equivocated: false,
            state: StandingState::New,
        }
    }

    /// Settled draws of one epoch: takes each outcome once. What is pending, unknown, declared or refused says
    /// nothing about the data that is there.
    pub fn draws(&mut self, at_ms: u64, outcomes: impl IntoIterator<Item = AuditOutcome>) {
        let (mut good, mut bad, mut wrong) = (0.0, 0.0, false);
        for outcome in outcomes {
            match outcome {
                AuditOutcome::Passed => good += 1.0,
                AuditOutcome::Absent => bad += ABSENT_WEIGHT,
                AuditOutcome::Wrong => {
                    bad += WRONG_WEIGHT;
                    wrong = true;
                }
                AuditOutcome::Declared
                | AuditOutcome::Refused
                | AuditOutcome::Unknown
                | AuditOutcome::Pending
                | AuditOutcome::Offline
                | AuditOutcome::Timeout => continue,
            }
            self.draws += 1;
        }
        self.data.add(at_ms, good, bad);
        self.wrong_epochs += u32::from(wrong);
        self.decide();
    }

    /// One epoch: answered in time, or not. An epoch that is void for everybody is not told.
    pub fn epoch(&mut self, at_ms: u64, answered: bool) {
        let bad = f64::from(u8::from(!answered));
        self.online.add(at_ms, 1.0 - bad, bad);
        self.decide();
    }

    /// Two commitments to one epoch.
    pub fn equivocated(&mut self) {
        self.equivocated = true;
        self.decide();
    }

    /// Data score.
    pub fn data(&self) -> f64 {
        self.data.score()
    }

    /// Online score.
    pub fn online(&self) -> f64 {
        self.online.score()
    }

    /// What the scores mean.
    pub const fn state(&self) -> StandingState {
        self.state
    }

    /// Data and online score in a week, if everything drawn passes and every epoch is answered.
    #[allow(clippy::cast_precision_loss)]
    pub fn forecast(&self, epoch_ms: u64, chunks: u32) -> (f64, f64) {
        const WEEK_MS: u64 = 7 * 24 * 3_600_000;
        let epochs = WEEK_MS as f64 / epoch_ms.max(1) as f64;
        (self.data.forecast(WEEK_MS, epochs * f64::from(chunks)), self.online.forecast(WEEK_MS, epochs))
    }

    fn decide(&mut self) {
        let (data, online) = (self.data(), self.online());
        self.state = match self.state {
            StandingState::Disqualified => StandingState::Disqualified,
            _ if self.equivocated || self.wrong_epochs >= WRONG_EPOCHS_MAX => StandingState::Disqualified,
            _ if self.draws < DRAWS_UNTIL_KNOWN && self.wrong_epochs == 0 => StandingState::New,
            _ if data < DATA_SUSPENDED_BELOW || online < ONLINE_SUSPENDED_BELOW => StandingState::Suspended,
            StandingState::Suspended if data < DATA_GOOD_ABOVE || online < ONLINE_GOOD_ABOVE => {
                StandingState::Suspended
            }
            _ => StandingState::Good,
        };
    }
}

impl Default for Scores {
    fn default() -> Self {
        Self::new()
    }
}

/// The share of an epoch's pay that is earned; `None` while anything drawn is still due, for it is withheld then.
#[allow(clippy::cast_precision_loss)]
pub fn pay(outcomes: &[AuditOutcome]) -> Option<f64> {
    let count =
        |wanted: &[AuditOutcome]| outcomes.iter().filter(|outcome| wanted.contains(outcome)).count() as f64;
    if outcomes.contains(&AuditOutcome::Pending) {
        return None;
    }
    // What the auditor could not know is nobody's fault and is left out.
    let drawn = outcomes.len() as f64 - count(&[AuditOutcome::Unknown]);
    let shown = drawn - count(&[AuditOutcome::Declared, AuditOutcome::Refused]);
    if drawn <= 0.0 || shown <= 0.0 {
        return Some(0.0);
    }
    let missed = shown - count(&[AuditOutcome::Passed]);
    Some(shown / drawn * pay_factor(missed / shown))
}

/// Pay for a missed fraction: 1 for none, 0 from a tenth on.
pub fn pay_factor(missed: f64) -> f64 {
    (1.0 - PAY_SLOPE * missed).max(0.0)
}

/// A fraction in parts per million.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
pub fn ppm(fraction: f64) -> u32 {
    (fraction.clamp(0.0, 1.0) * 1e6).round() as u32
}

/// Whether so many nodes missed an epoch at once that the cause is common, a cut cable or the auditor itself: then
/// the epoch is void for all that missed it. Wrong proofs are exact and never void.
pub const fn is_correlated(missed: usize, nodes: usize) -> bool {
    (nodes >= 2 && missed == nodes) || (missed >= CORRELATED_MIN && missed * 3 >= nodes)
}

/// Fewer misses than this are never called correlated, unless they are all there is.
pub const CORRELATED_MIN: usize = 5;

#[cfg(test)]
mod tests;
