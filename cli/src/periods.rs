//! Periods as people write them: `30s`, `15m`, `1h`, `7d`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A period of at least one second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Period(pub(crate) Duration);

const UNITS: [(&str, u64); 4] = [("s", 1), ("m", 60), ("h", 3600), ("d", 86_400)];

impl FromStr for Period {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a period; write for example 30s, 15m, 1h or 7d");
        let (number, unit) = UNITS
            .iter()
            .find_map(|(name, seconds)| text.strip_suffix(name).map(|number| (number, *seconds)))
            .ok_or_else(wrong)?;
        let number: u64 = number.trim().parse().map_err(|_| wrong())?;
        match number.checked_mul(unit) {
            Some(seconds @ 1..) => Ok(Self(Duration::from_secs(seconds))),
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        let (name, unit) =
            UNITS.iter().rev().find(|(_, unit)| seconds.is_multiple_of(*unit)).unwrap_or(&UNITS[0]);
        write!(f, "{}{name}", seconds / unit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn periods_are_read_and_written_alike() {
        for (text, seconds) in [("30s", 30), ("15m", 900), ("1h", 3600), ("7d", 604_800)] {
            let period: Period = text.parse().expect(text);
            assert_eq!((period.0.as_secs(), period.to_string()), (seconds, text.to_owned()));
        }
    }

    #[test]
    fn nonsense_is_refused_with_an_example() {
        for text in ["", "1", "h", "0s", "-1h", "1 fortnight", "99999999999999999999d"] {
            assert!(text.parse::<Period>().expect_err(text).contains("15m"), "{text}");
        }
    }
}
