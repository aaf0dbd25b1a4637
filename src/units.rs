//! Sizes and durations as people write them: `50MiB`, `1h30m`.
//!
//! Used by the configuration file, the command line and everything that prints such a value.
//! What [`Display`](fmt::Display) writes, [`FromStr`] reads back.  It fails with a sentence that
//! says what was expected; it never rounds and never wraps.  Bounds are the caller's matter.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};

/// A number of octets, written `50MiB`, `10KB` or as a plain number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(pub u64);

/// A length of time in whole milliseconds or more, written `5m`, `1h30m`, `500ms`.
///
/// A wrapper of [`Duration`] that reads and prints; fields hold the [`Duration`] itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Period(pub Duration);

/// So many in so long, written `1000/1h`; at least one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// How many.
    pub count: u32,
    /// In what time; not zero.
    pub period: Duration,
}

/// Why a text is not a rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected a number and a time, as in \"1000/1h\"")]
pub struct NotARate;

/// Why a text is not a size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotASize {
    /// No digits, an unknown unit, a fraction or a sign.
    #[error("expected a size like \"50MiB\", \"10KB\" or a plain number of bytes")]
    Form,
    /// More than 64 bits of octets.
    #[error("expected a size below 16 EiB")]
    TooLarge,
}

/// Why a text is not a duration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotAPeriod {
    /// No digits, an unknown unit, a fraction or a sign.
    #[error("expected a duration like \"500ms\", \"30s\", \"5m\", \"1h30m\" or \"5d\"")]
    Form,
    /// Digits alone; guessing seconds would be wrong for half of the readers.
    #[error("expected a unit after the number: \"ms\", \"s\", \"m\", \"h\" or \"d\"")]
    NoUnit,
    /// The units do not go from larger to smaller, or one comes twice.
    #[error("expected units from the largest to the smallest, each once, as in \"1h30m\"")]
    Order,
    /// More than 64 bits of milliseconds.
    #[error("expected a duration below 500 million years")]
    TooLarge,
}

/// Units of size by the octets they stand for, those that are printed first come first.
const SIZE_UNITS: [(&str, u64); 7] = [
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("B", 1),
];

/// Units of time by their milliseconds, from the largest to the smallest.
const PERIOD_UNITS: [(&str, u64); 5] =
    [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

impl FromStr for ByteSize {
    type Err = NotASize;

    fn from_str(text: &str) -> Result<Self, NotASize> {
        let (digits, unit) = split_number(text);
        let octets_each = match unit {
            "" => 1,
            _ => {
                let unit = unit.strip_prefix(' ').unwrap_or(unit);
                let named = SIZE_UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit));
                named.map(|&(_, octets)| octets).ok_or(NotASize::Form)?
            }
        };
        let count = number(digits).ok_or(NotASize::Form)?;
        count.and_then(|n| n.checked_mul(octets_each)).map(ByteSize).ok_or(NotASize::TooLarge)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fits = |&&(_, octets): &&(&str, u64)| {
            octets > 1 && self.0 != 0 && self.0.is_multiple_of(octets)
        };
        match SIZE_UNITS.iter().find(fits) {
            Some((name, octets)) => write!(f, "{}{name}", self.0 / octets),
            None => write!(f, "{}", self.0),
        }
    }
}

impl FromStr for Rate {
    type Err = NotARate;

    fn from_str(text: &str) -> Result<Self, NotARate> {
        let (count, period) = text.split_once('/').ok_or(NotARate)?;
        let digits = Some(count).filter(|count| count.bytes().all(|b| b.is_ascii_digit()));
        let count = digits
            .and_then(number)
            .flatten()
            .and_then(|n| u32::try_from(n).ok())
            .ok_or(NotARate)?;
        let Period(period) = period.parse().map_err(|_| NotARate)?;
        if count == 0 || period.is_zero() { Err(NotARate) } else { Ok(Rate { count, period }) }
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.count, Period(self.period))
    }
}

impl FromStr for Period {
    type Err = NotAPeriod;

    fn from_str(text: &str) -> Result<Self, NotAPeriod> {
        let mut rest = text;
        let mut sum_ms = 0u64;
        // The place in PERIOD_UNITS from which on units may still come.
        let mut next_unit = 0;
        loop {
            let (digits, tail) = split_number(rest);
            let count = number(digits).ok_or(NotAPeriod::Form)?.ok_or(NotAPeriod::TooLarge)?;
            if tail.is_empty() {
                return Err(NotAPeriod::NoUnit);
            }
            let unit_end = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
            let place = PERIOD_UNITS
                .iter()
                .position(|(name, _)| *name == &tail[..unit_end])
                .ok_or(NotAPeriod::Form)?;
            if place < next_unit {
                return Err(NotAPeriod::Order);
            }
            next_unit = place + 1;
            sum_ms = count
                .checked_mul(PERIOD_UNITS[place].1)
                .and_then(|ms| sum_ms.checked_add(ms))
                .ok_or(NotAPeriod::TooLarge)?;
            rest = &tail[unit_end..];
            if rest.is_empty() {
                return Ok(Period(Duration::from_millis(sum_ms)));
            }
        }
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest_ms = self.0.as_millis();
        if rest_ms == 0 {
            return f.write_str("0s");
        }
        for (name, unit_ms) in PERIOD_UNITS {
            let count = rest_ms / u128::from(unit_ms);
            if count > 0 {
                write!(f, "{count}{name}")?;
            }
            rest_ms %= u128::from(unit_ms);
        }
        Ok(())
    }
}

impl From<Duration> for Period {
    fn from(duration: Duration) -> Self {
        Period(duration)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ByteSizeVisitor)
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Period {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(PeriodVisitor)
    }
}

impl Serialize for Period {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

struct ByteSizeVisitor;

impl Visitor<'_> for ByteSizeVisitor {
    type Value = ByteSize;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a size like \"50MiB\", or a number of bytes")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<ByteSize, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_u64<E: de::Error>(self, octets: u64) -> Result<ByteSize, E> {
        Ok(ByteSize(octets))
    }

    fn visit_i64<E: de::Error>(self, octets: i64) -> Result<ByteSize, E> {
        u64::try_from(octets).map(ByteSize).map_err(|_| E::custom(NotASize::Form))
    }
}

struct PeriodVisitor;

impl Visitor<'_> for PeriodVisitor {
    type Value = Period;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a duration like \"5m\"")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Period, E> {
        text.parse().map_err(E::custom)
    }
}

/// The digits at the start, and what follows them.
fn split_number(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))
}

/// `None`: no digits.  `Some(None)`: more than 64 bits.
fn number(digits: &str) -> Option<Option<u64>> {
    (!digits.is_empty()).then(|| digits.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes() {
        let good = [
            ("0", 0, "0"),
            ("17", 17, "17"),
            ("17B", 17, "17"),
            ("10KB", 10_000, "10KB"),
            ("50MiB", 50 << 20, "50MiB"),
            ("50 MiB", 50 << 20, "50MiB"),
            ("50mib", 50 << 20, "50MiB"),
            ("1024KiB", 1 << 20, "1MiB"),
            ("3GB", 3_000_000_000, "3GB"),
            ("18446744073709551615", u64::MAX, "18446744073709551615"),
        ];
        for (text, octets, shown) in good {
            assert_eq!(text.parse(), Ok(ByteSize(octets)), "{text}");
            assert_eq!(ByteSize(octets).to_string(), shown);
        }
        for text in ["", "MiB", "50M", "1.5MiB", "-1", "+1", "1 ", " 1", "1  KB", "1KBs", "٣KB"] {
            assert_eq!(text.parse::<ByteSize>(), Err(NotASize::Form), "{text}");
        }
        for text in ["18446744073709551616", "17179869184GiB"] {
            assert_eq!(text.parse::<ByteSize>(), Err(NotASize::TooLarge), "{text}");
        }
    }

    #[test]
    fn periods() {
        let good = [
            ("500ms", 500, "500ms"),
            ("90s", 90_000, "1m30s"),
            ("5m", 300_000, "5m"),
            ("1h30m", 5_400_000, "1h30m"),
            ("5d", 432_000_000, "5d"),
            ("1d2h3m4s5ms", 93_784_005, "1d2h3m4s5ms"),
            ("0s", 0, "0s"),
        ];
        for (text, ms, shown) in good {
            assert_eq!(text.parse(), Ok(Period(Duration::from_millis(ms))), "{text}");
            assert_eq!(Period(Duration::from_millis(ms)).to_string(), shown);
        }
        let bad = [
            ("", NotAPeriod::Form),
            ("m", NotAPeriod::Form),
            ("5", NotAPeriod::NoUnit),
            ("1h30", NotAPeriod::NoUnit),
            ("5min", NotAPeriod::Form),
            ("5 m", NotAPeriod::Form),
            ("1.5h", NotAPeriod::Form),
            ("-5m", NotAPeriod::Form),
            ("30m1h", NotAPeriod::Order),
            ("1m1m", NotAPeriod::Order),
            ("99999999999999999999s", NotAPeriod::TooLarge),
            ("999999999999999d", NotAPeriod::TooLarge),
        ];
        for (text, why) in bad {
            assert_eq!(text.parse::<Period>(), Err(why), "{text}");
        }
    }

    #[test]
    fn serde_speaks_the_same_texts() {
        let size: ByteSize = serde_json::from_str("\"10KB\"").unwrap();
        assert_eq!(serde_json::to_string(&size).unwrap(), "\"10KB\"");
        assert_eq!(serde_json::from_str::<ByteSize>("10").unwrap(), ByteSize(10));
        assert!(serde_json::from_str::<ByteSize>("-10").is_err());
        let period: Period = serde_json::from_str("\"90s\"").unwrap();
        assert_eq!(serde_json::to_string(&period).unwrap(), "\"1m30s\"");
    }

    proptest! {
        #[test]
        fn what_is_printed_reads_back(octets: u64, ms: u64) {
            prop_assert_eq!(ByteSize(octets).to_string().parse(), Ok(ByteSize(octets)));
            let period = Period(Duration::from_millis(ms));
            prop_assert_eq!(period.to_string().parse(), Ok(period));
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,12}") {
            let _ = text.parse::<ByteSize>();
            let _ = text.parse::<Period>();
        }
    }
}
