//! Sizes, spans of time and rates as people write them: `10KiB`, `1m30s`, `2000`.
//!
//! Parsed once, from the command line or a TOML file, into types that carry their unit.  Every
//! failure is the user's to mend and says what was expected.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer};

/// An amount of octets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Octets(pub u64);

/// A span of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

/// A text that is no amount.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no {what}")]
pub struct UnitError {
    text: String,
    what: &'static str,
}

impl FromStr for Octets {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Octets, UnitError> {
        let wrong = || UnitError { text: text.into(), what: "size; write 4096, 10KiB or 1MB" };
        let (number, unit) = split(text.trim()).ok_or_else(wrong)?;
        let factor = match unit {
            "" | "B" => 1.0,
            "KB" => 1e3,
            "MB" => 1e6,
            "GB" => 1e9,
            "KiB" => 1024.0,
            "MiB" => 1024.0 * 1024.0,
            "GiB" => 1024.0 * 1024.0 * 1024.0,
            _ => return Err(wrong()),
        };
        let octets = number * factor;
        // Far above any message, far below where a float stops counting octets.
        if octets < 1e15 { Ok(Octets(octets.round() as u64)) } else { Err(wrong()) }
    }
}

impl FromStr for Span {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Span, UnitError> {
        let wrong = || UnitError { text: text.into(), what: "time; write 500ms, 30s or 1h30m" };
        let mut rest = text.trim();
        let mut seconds = 0.0;
        if rest.is_empty() {
            return Err(wrong());
        }
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
            let number: f64 = rest[..digits].parse().map_err(|_| wrong())?;
            rest = &rest[digits..];
            let letters = rest.find(|c: char| !c.is_alphabetic()).unwrap_or(rest.len());
            seconds += number
                * match &rest[..letters] {
                    "us" => 1e-6,
                    "ms" => 1e-3,
                    "s" => 1.0,
                    "m" => 60.0,
                    "h" => 3_600.0,
                    "d" => 86_400.0,
                    _ => return Err(wrong()),
                };
            rest = &rest[letters..];
        }
        // A year: longer than any run, and every sum of two fits.
        if seconds <= 366.0 * 86_400.0 {
            Ok(Span(Duration::from_secs_f64(seconds)))
        } else {
            Err(wrong())
        }
    }
}

/// A number and the letters behind it.
fn split(text: &str) -> Option<(f64, &str)> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let number = text[..digits].parse().ok()?;
    Some((number, text[digits..].trim_start()))
}

impl fmt::Display for Octets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let amount = self.0 as f64;
        match self.0 {
            0..1_024 => write!(f, "{} B", self.0),
            1_024..1_048_576 => write!(f, "{:.1} KiB", amount / 1024.0),
            1_048_576..1_073_741_824 => write!(f, "{:.1} MiB", amount / 1_048_576.0),
            _ => write!(f, "{:.1} GiB", amount / 1_073_741_824.0),
        }
    }
}

impl<'de> Deserialize<'de> for Octets {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Octets, D::Error> {
        TextOrNumber::deserialize(from)?.parse()
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Span, D::Error> {
        String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}

/// TOML lets a size be written with or without a unit.
#[derive(Deserialize)]
#[serde(untagged)]
enum TextOrNumber {
    Number(u64),
    Text(String),
}

impl TextOrNumber {
    fn parse<E: serde::de::Error>(self) -> Result<Octets, E> {
        match self {
            TextOrNumber::Number(number) => Ok(Octets(number)),
            TextOrNumber::Text(text) => text.parse().map_err(E::custom),
        }
    }
}

/// `123456` as `123 456`, so that a rate can be read at a glance.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_their_units() {
        for (text, octets) in [("0", 0), ("4096", 4096), ("10KiB", 10_240), ("1.5 MB", 1_500_000)] {
            assert_eq!(text.parse(), Ok(Octets(octets)), "{text}");
        }
        for text in ["", "KiB", "10 kb", "-1", "1e9", "10KiBs", "9999999GiB"] {
            assert!(text.parse::<Octets>().is_err(), "{text}");
        }
    }

    #[test]
    fn spans_are_sums_of_numbers_with_units() {
        for (text, millis) in [("500ms", 500), ("1m30s", 90_000), ("1.5s", 1_500), ("0s", 0)] {
            assert_eq!(text.parse(), Ok(Span(Duration::from_millis(millis))), "{text}");
        }
        for text in ["", "5", "s", "5 minutes", "1m-3s", "400d", "1..2s"] {
            assert!(text.parse::<Span>().is_err(), "{text}");
        }
    }

    #[test]
    fn numbers_are_grouped_by_thousands() {
        assert_eq!(grouped(7), "7");
        assert_eq!(grouped(1_234_567), "1 234 567");
        assert_eq!(grouped(123_456), "123 456");
    }
}
