//! Bandwidth by hour of day: how many bytes a second the node sends and takes, as a home line allows.
//!
//! A schedule is text, `08:00-23:00=10Mbit/s,23:00-08:00=unlimited`, in the local time of the machine. Hours that no
//! line names are unlimited. Sending and taking have a pace each; a request waits for its turn before its bytes move,
//! and one that would wait too long is told to come back.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use holdfast_protocol::message::{Refusal, RefusalReason};
use parking_lot::Mutex;
use tokio::time::Instant;

/// Minutes of a day.
const DAY_MIN: u16 = 24 * 60;
/// Lines of a schedule.
const SPANS_MAX: usize = 48;
/// The least rate that may be set: below, a block of 1 MiB would not pass within its deadline.
const RATE_MIN: u64 = 32 * 1024;
/// The longest that a request waits for its turn. Readers go elsewhere long before.
const WAIT_MAX: Duration = Duration::from_secs(10);

/// One span of the day with its rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    /// First minute of the day.
    from_min: u16,
    /// First minute that no longer belongs; may lie before `from_min`, over midnight.
    to_min: u16,
    /// Bytes a second; `None` is unlimited.
    rate: Option<u64>,
}

impl Span {
    fn covers(self, minute: u16) -> bool {
        if self.from_min < self.to_min {
            (self.from_min..self.to_min).contains(&minute)
        } else {
            minute >= self.from_min || minute < self.to_min
        }
    }
}

/// Rates over the day. The first span that covers a minute counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Schedule {
    spans: Vec<Span>,
    text: String,
}

impl Schedule {
    /// The rate at a minute of the day, in bytes a second; `None` is unlimited.
    pub fn rate_at(&self, minute: u16) -> Option<u64> {
        self.spans.iter().find(|span| span.covers(minute % DAY_MIN)).and_then(|span| span.rate)
    }

    /// Whether no hour is limited.
    pub fn is_unlimited(&self) -> bool {
        self.spans.iter().all(|span| span.rate.is_none())
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.text.is_empty() { "unlimited" } else { &self.text })
    }
}

/// Not a schedule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{part}` is not a line of a bandwidth schedule: {why}; write for example `08:00-23:00=10Mbit/s` or `20MB/s`"
)]
pub struct ScheduleError {
    part: String,
    why: &'static str,
}

impl FromStr for Schedule {
    type Err = ScheduleError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut spans = Vec::new();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let fail = |why| ScheduleError { part: part.chars().take(60).collect(), why };
            let (hours, rate) = match part.split_once('=') {
                Some((hours, rate)) => (Some(hours), rate),
                None => (None, part),
            };
            let rate = rate_of(rate.trim()).ok_or_else(|| fail("the rate cannot be read"))?;
            if rate.is_some_and(|rate| rate < RATE_MIN) {
                return Err(fail("less than 32 KiB/s would let no block through"));
            }
            let (from_min, to_min) = match hours {
                None => (0, DAY_MIN),
                Some(hours) => hours_of(hours.trim()).ok_or_else(|| fail("the hours cannot be read"))?,
            };
            if spans.len() >= SPANS_MAX {
                return Err(fail("there are too many lines"));
            }
            spans.push(Span { from_min, to_min, rate });
        }
        Ok(Self { spans, text: text.trim().to_owned() })
    }
}

fn hours_of(text: &str) -> Option<(u16, u16)> {
    let (from, to) = text.split_once('-')?;
    let minute = |text: &str| {
        let (hour, minute) = text.trim().split_once(':')?;
        let (hour, minute) = (hour.parse::<u16>().ok()?, minute.parse::<u16>().ok()?);
        (hour * 60 + minute <= DAY_MIN && minute < 60).then_some(hour * 60 + minute)
    };
    let (from, to) = (minute(from)?, minute(to)?);
    (from != to && from < DAY_MIN).then_some((from, to))
}

/// `10Mbit/s`, `20MB/s`, `unlimited`. Units are decimal, as lines are sold.
fn rate_of(text: &str) -> Option<Option<u64>> {
    if text.eq_ignore_ascii_case("unlimited") {
        return Some(None);
    }
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let number: f64 = text[..digits].parse().ok()?;
    let unit = text[digits..].trim().trim_end_matches("/s").to_ascii_lowercase();
    let factor = match unit.as_str() {
        "kbit" => 125.0,
        "mbit" => 125_000.0,
        "gbit" => 125_000_000.0,
        "kb" => 1_000.0,
        "mb" => 1_000_000.0,
        "gb" => 1_000_000_000.0,
        _ => return None,
    };
    let bytes = number * factor;
    if !(bytes.is_finite() && (1.0..1e15).contains(&bytes)) {
        return None;
    }
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bounds were checked above")]
    Some(Some(bytes as u64))
}

/// The pace of one direction.
#[derive(Debug, Default)]
pub(crate) struct Pacer {
    free_at: Mutex<Option<Instant>>,
}

impl Pacer {
    /// Waits for the turn of `bytes` at `rate`, or refuses when that would take too long.
    ///
    /// # Cancel safety
    /// Cancel safe; the turn that was taken is lost.
    pub(crate) async fn pass(&self, bytes: u64, rate: Option<u64>) -> Result<(), Refusal> {
        let Some(rate) = rate else { return Ok(()) };
        match self.turn(bytes, rate, Instant::now()) {
            Some(at) => {
                tokio::time::sleep_until(at).await;
                Ok(())
            }
            None => Err(Refusal::new(
                RefusalReason::Busy,
                "the operator's bandwidth limit of this hour is used up; try again or elsewhere",
            )),
        }
    }

    /// When `bytes` may move; `None` when that is too far off, and then no turn is taken.
    fn turn(&self, bytes: u64, rate: u64, now: Instant) -> Option<Instant> {
        let mut free_at = self.free_at.lock();
        let begin = free_at.filter(|at| *at > now).unwrap_or(now);
        if begin.saturating_duration_since(now) > WAIT_MAX {
            return None;
        }
        let nanos = u128::from(bytes).saturating_mul(1_000_000_000) / u128::from(rate.max(1));
        let takes = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        *free_at = begin.checked_add(takes);
        Some(begin)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_follow_the_hours_over_midnight_too() {
        let schedule: Schedule = "08:00-23:00=8Mbit/s, 23:00-08:00=unlimited".parse().unwrap();
        assert_eq!(schedule.rate_at(8 * 60), Some(1_000_000));
        assert_eq!(schedule.rate_at(22 * 60 + 59), Some(1_000_000));
        assert_eq!(schedule.rate_at(23 * 60), None);
        assert_eq!(schedule.rate_at(3 * 60), None);
        let all_day: Schedule = "2MB/s".parse().unwrap();
        assert_eq!(all_day.rate_at(1234), Some(2_000_000));
        assert!("".parse::<Schedule>().unwrap().is_unlimited());
    }

    #[test]
    fn nonsense_is_named() {
        for text in ["10", "25:00-26:00=1MB/s", "08:00-08:00=1MB/s", "08:00=1MB/s", "fast", "1kB/s", "-1MB/s"]
        {
            let error = text.parse::<Schedule>().unwrap_err();
            assert!(error.to_string().contains(text.split(',').next().unwrap()), "{error}");
        }
    }

    #[tokio::test]
    async fn bytes_are_spread_and_too_long_a_queue_is_refused() {
        let pacer = Pacer::default();
        let now = Instant::now();
        assert_eq!(pacer.turn(1_000_000, 1_000_000, now), Some(now));
        assert_eq!(pacer.turn(9_500_000, 1_000_000, now), Some(now + Duration::from_secs(1)));
        assert_eq!(pacer.turn(1, 1_000_000, now), None);
        assert!(pacer.pass(1, Some(1_000_000)).await.is_err());
        assert!(pacer.pass(u64::MAX, None).await.is_ok());
    }
}
