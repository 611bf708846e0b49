//! Sizes as people write and read them.

use std::fmt;
use std::str::FromStr;

/// A number of bytes: `500GB` (10^9), `1.5TiB` (2^40), `4096`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct ByteSize(pub(crate) u64);

const UNITS: [(&str, u64); 12] = [
    ("kib", 1 << 10),
    ("mib", 1 << 20),
    ("gib", 1 << 30),
    ("tib", 1 << 40),
    ("kb", 1000),
    ("mb", 1_000_000),
    ("gb", 1_000_000_000),
    ("tb", 1_000_000_000_000),
    ("k", 1000),
    ("m", 1_000_000),
    ("g", 1_000_000_000),
    ("b", 1),
];

impl FromStr for ByteSize {
    type Err = String;

    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "the product is checked to lie in u64 first"
    )]
    fn from_str(text: &str) -> Result<Self, String> {
        let lower = text.trim().to_ascii_lowercase();
        let (number, unit) = UNITS
            .iter()
            .find_map(|(name, unit)| lower.strip_suffix(name).map(|number| (number.trim(), *unit)))
            .unwrap_or((lower.as_str(), 1));
        let wrong = || format!("`{text}` is not a size; write for example 500GB, 1.5TiB or 1048576");
        if let Ok(whole) = number.parse::<u64>() {
            return whole.checked_mul(unit).map(Self).ok_or_else(wrong);
        }
        let number: f64 = number.parse().map_err(|_| wrong())?;
        let bytes = number * unit as f64;
        if !bytes.is_finite() || bytes < 0.0 || bytes >= u64::MAX as f64 {
            Err(wrong())
        } else {
            Ok(Self(bytes as u64))
        }
    }
}

impl fmt::Display for ByteSize {
    #[allow(clippy::cast_precision_loss, reason = "three digits are shown")]
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.0;
        let (unit, name) = match bytes {
            0..1_000 => return write!(f, "{bytes} B"),
            1_000..1_000_000 => (1e3, "kB"),
            1_000_000..1_000_000_000 => (1e6, "MB"),
            1_000_000_000..1_000_000_000_000 => (1e9, "GB"),
            _ => (1e12, "TB"),
        };
        write!(f, "{:.1} {name}", bytes as f64 / unit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_in_both_systems() {
        for (text, bytes) in [
            ("500GB", 500_000_000_000),
            ("1.5TiB", 1_649_267_441_664),
            ("4096", 4096),
            ("64 MiB", 64 << 20),
            ("10b", 10),
            ("2g", 2_000_000_000),
        ] {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
    }

    #[test]
    fn nonsense_is_refused_with_an_example() {
        for text in ["", "GB", "-1GB", "1e400", "99999999999TB", "5 bananas"] {
            let error = text.parse::<ByteSize>().expect_err(text);
            assert!(error.contains("500GB"), "{error}");
        }
    }
}
