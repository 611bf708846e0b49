//! When the scrub's next step is due. Pure: what was done, what is asked of the disk, and the time in; a pause out.
//!
//! A pass is spread evenly over its period. A step that is due waits while readers or writers are busy, but never
//! longer than [`DEFER_MAX_MS`], so that a disk that is always busy is scrubbed too, at a block every two seconds. A
//! scrub that has fallen behind catches up in idle times with at most half of the disk's time.

use super::{ScrubProgress, ScrubStep};

/// How long a due step waits for readers at most: 2 seconds are 43,200 blocks, 43 GB, a day.
pub const DEFER_MAX_MS: u64 = 2_000;
/// How soon a busy disk is looked at again.
pub const BUSY_LOOK_MS: u64 = 50;
/// The longest pause between two looks, so that new blocks and a changed clock are noticed.
pub const PAUSE_MAX_MS: u64 = 60_000;
/// The shortest pause: the scrub never spins.
const PAUSE_MIN_MS: u64 = 1;

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// A step, now.
    Step,
    /// Nothing for this long.
    Pause {
        /// Milliseconds.
        ms: u64,
    },
}

/// Paces the steps of one scrub.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pace {
    /// Since when a due step has been waiting for readers, in ticks.
    deferred_since: Option<u64>,
    /// Not before this tick: the last step's share of the disk's time.
    resting_until: u64,
}

impl Pace {
    /// What to do at `now_ms`; `busy` when readers or writers wanted the disk since the last question. `tick` counts
    /// milliseconds, too, but never jumps: what rests or waits does so by it.
    pub fn next(&mut self, progress: &ScrubProgress, busy: bool, now_ms: u64, tick: u64) -> Next {
        if progress.period_ms == 0 {
            return Next::Pause { ms: PAUSE_MAX_MS };
        }
        let early = due_ms(progress).saturating_sub(now_ms);
        let resting = self.resting_until.saturating_sub(tick);
        if early > 0 || resting > 0 {
            return Next::Pause { ms: early.max(resting).clamp(PAUSE_MIN_MS, PAUSE_MAX_MS) };
        }
        let since = *self.deferred_since.get_or_insert(tick);
        if busy && tick.saturating_sub(since) < DEFER_MAX_MS {
            return Next::Pause { ms: BUSY_LOOK_MS };
        }
        self.deferred_since = None;
        Next::Step
    }

    /// A step took from tick `began` to tick `ended`: the disk rests from the scrub for as long.
    pub fn stepped(&mut self, step: &ScrubStep, began: u64, ended: u64) {
        let took = ended.saturating_sub(began).max(PAUSE_MIN_MS);
        let rest = if step.ended { BUSY_LOOK_MS } else { took };
        self.resting_until = ended.saturating_add(rest);
    }
}

/// When the next byte is due: the pass's beginning and the share of its period that is done. A whole pass is due with
/// its period's end.
fn due_ms(progress: &ScrubProgress) -> u64 {
    // The first pass, of which nothing is known, begins at once.
    if progress.pass == 0 {
        return 0;
    }
    let done = u128::from(progress.verified_bytes.min(progress.total_bytes));
    let total = u128::from(progress.total_bytes);
    let share_ms = match total {
        // Nothing is held: looked at when the period is over.
        0 => progress.period_ms,
        total => u64::try_from(u128::from(progress.period_ms) * done / total).unwrap_or(u64::MAX),
    };
    progress.began_ms.saturating_add(share_ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress(verified_bytes: u64) -> ScrubProgress {
        ScrubProgress {
            pass: 1,
            began_ms: 1_000,
            verified_bytes,
            total_bytes: 1_000,
            period_ms: 100_000,
            ..ScrubProgress::default()
        }
    }

    #[test]
    fn a_pass_is_spread_over_its_period() {
        let mut pace = Pace::default();
        assert_eq!(pace.next(&progress(0), false, 1_000, 7), Next::Step);
        assert_eq!(pace.next(&progress(500), false, 1_000, 7), Next::Pause { ms: 50_000 });
        assert_eq!(pace.next(&progress(500), false, 51_000, 7), Next::Step);
        // All is verified: the pass ends, and the next begins, with the period.
        assert_eq!(pace.next(&progress(1_000), false, 100_999, 7), Next::Pause { ms: 1 });
        assert_eq!(pace.next(&progress(1_000), false, 101_000, 7), Next::Step);
    }

    #[test]
    fn readers_come_first_but_not_for_ever() {
        let mut pace = Pace::default();
        let behind = progress(0);
        assert_eq!(pace.next(&behind, true, 9_000, 10_000), Next::Pause { ms: BUSY_LOOK_MS });
        assert_eq!(pace.next(&behind, true, 9_000, 11_999), Next::Pause { ms: BUSY_LOOK_MS });
        assert_eq!(pace.next(&behind, true, 9_000, 12_000), Next::Step);
        // And the waiting begins anew.
        assert_eq!(pace.next(&behind, true, 9_000, 12_001), Next::Pause { ms: BUSY_LOOK_MS });
        assert_eq!(pace.next(&behind, false, 9_000, 12_002), Next::Step);
    }

    #[test]
    fn a_scrub_that_is_behind_takes_at_most_half_of_the_disk() {
        let mut pace = Pace::default();
        assert_eq!(pace.next(&progress(0), false, 50_000, 100), Next::Step);
        pace.stepped(&ScrubStep::default(), 100, 130);
        assert_eq!(pace.next(&progress(1), false, 50_030, 130), Next::Pause { ms: 30 });
        assert_eq!(pace.next(&progress(1), false, 50_060, 160), Next::Step);
    }

    #[test]
    fn an_empty_store_and_a_scrub_that_is_off_ask_for_nothing() {
        let mut pace = Pace::default();
        let empty = ScrubProgress { total_bytes: 0, ..progress(0) };
        assert_eq!(pace.next(&empty, false, 2_000, 7), Next::Pause { ms: PAUSE_MAX_MS });
        let off = ScrubProgress { period_ms: 0, ..progress(0) };
        assert_eq!(pace.next(&off, false, u64::MAX, 7), Next::Pause { ms: PAUSE_MAX_MS });
    }
}
