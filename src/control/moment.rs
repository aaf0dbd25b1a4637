//! Points in time as the control plane writes them: RFC 3339, UTC, with milliseconds.
//!
//! Pure; whoever has a clock brings its milliseconds.  Times that RFC 3339 cannot write (after
//! the year 9999) are written as the last one that it can, so that no clock makes this fail.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use serde::de::{Deserialize, Deserializer, Error};
use serde::ser::{Serialize, Serializer};

/// Milliseconds since 1970 UTC, written `2026-01-31T12:34:56.789Z`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(pub u64);

/// The text is not a date and time of RFC 3339, or one before 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected a time like 2026-01-31T12:34:56Z")]
pub struct NotAMoment;

impl Moment {
    fn timestamp(self) -> Timestamp {
        let ms = i64::try_from(self.0).unwrap_or(i64::MAX);
        Timestamp::from_millisecond(ms).unwrap_or(Timestamp::MAX)
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.3}", self.timestamp())
    }
}

impl FromStr for Moment {
    type Err = NotAMoment;

    fn from_str(text: &str) -> Result<Self, NotAMoment> {
        let timestamp: Timestamp = text.parse().map_err(|_| NotAMoment)?;
        u64::try_from(timestamp.as_millisecond()).map(Moment).map_err(|_| NotAMoment)
    }
}

impl Serialize for Moment {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Moment {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

/// Writes [`Moment`]s that mostly fall into the same second: only the first of a second is
/// formatted, the others change three digits of it.
#[derive(Debug)]
pub(super) struct Stamp {
    /// The second since 1970 that `text` stands for.
    second: Option<u64>,
    text: String,
}

/// Where the milliseconds stand in a written moment.
const MILLISECONDS_AT: usize = "2026-01-31T12:34:56.".len();

impl Stamp {
    pub(super) fn new() -> Stamp {
        Stamp { second: None, text: String::new() }
    }

    /// The moment's text.
    pub(super) fn write(&mut self, moment: Moment) -> &str {
        let second = moment.0 / 1_000;
        if self.second != Some(second) {
            self.text = moment.to_string();
            self.second = Some(second);
        } else {
            let ms = moment.0 % 1_000;
            self.text.truncate(MILLISECONDS_AT);
            let digits = [ms / 100, ms / 10 % 10, ms % 10];
            self.text.extend(digits.map(|digit| char::from(b'0' + digit as u8)));
            self.text.push('Z');
        }
        &self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_read_back_as_they_were_written() {
        for (ms, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (1, "1970-01-01T00:00:00.001Z"),
            (1_769_862_896_789, "2026-01-31T12:34:56.789Z"),
            (253_402_207_200_000, "9999-12-30T22:00:00.000Z"),
        ] {
            assert_eq!(Moment(ms).to_string(), text);
            assert_eq!(text.parse(), Ok(Moment(ms)));
            let json = serde_json::to_string(&Moment(ms)).unwrap();
            assert_eq!(json, format!("\"{text}\""));
            assert_eq!(serde_json::from_str::<Moment>(&json).unwrap(), Moment(ms));
        }
        assert_eq!("2026-01-31T12:34:56+01:00".parse(), Ok(Moment(1_769_859_296_000)));
        for text in ["", "yesterday", "2026-01-31", "1969-12-31T23:59:59Z"] {
            assert_eq!(text.parse::<Moment>(), Err(NotAMoment), "{text}");
        }
    }

    #[test]
    fn a_clock_out_of_its_mind_is_written_somehow() {
        assert!(Moment(u64::MAX).to_string().starts_with("9999-"));
    }

    #[test]
    fn a_stamp_writes_what_a_moment_writes() {
        let mut stamp = Stamp::new();
        let start = 1_769_862_896_789;
        for ms in [0, 0, 1, 10, 100, 210, 211, 999, 1_000, 1_000, 900, 86_400_000, 5] {
            let moment = Moment(start + ms);
            assert_eq!(stamp.write(moment), moment.to_string());
        }
        let end = Moment(u64::MAX);
        assert_eq!(stamp.write(end), end.to_string());
        assert_eq!(stamp.write(Moment(u64::MAX - 1)).len(), end.to_string().len());
    }
}
