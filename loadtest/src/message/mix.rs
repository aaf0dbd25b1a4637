//! Who writes to whom: addresses and other things by weight.
//!
//! An address pattern is text with numbers to be filled in: `{n}` is the message's own number,
//! `{1..5000}` one of these at random.  `news@list{1..3}.example` is three domains, and
//! `user{n}@example.org` never the same mailbox twice.

use std::str::FromStr;

use fastrand::Rng;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

/// The longest address that is made (RFC 5321 section 4.5.3.1.3, without the brackets).
pub const ADDRESS_MAX: usize = 254;

/// A choice among things of different weight.
#[derive(Debug, Clone)]
pub struct Mix<T> {
    choices: Vec<T>,
    /// The sum of the weights up to and with each choice.
    sums: Vec<u64>,
}

/// An address with numbers to be filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    pieces: Vec<Piece>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(Box<[u8]>),
    /// The message's number.
    Number,
    /// One of these, both ends included.
    Random(u64, u64),
}

/// A pattern with its weight, as it is written: `"a@b"`, `"3 a@b"` or a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Weighted {
    /// How often it is chosen, against the others' weights.
    pub weight: u32,
    /// What is chosen.
    pub pattern: Pattern,
}

/// A text that is no address pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no address pattern; write user{{1..100}}@example.com, or a weight before it")]
pub struct PatternError(String);

impl<T> Mix<T> {
    /// A mix of at least one choice, each with its weight.
    pub fn new(choices: impl IntoIterator<Item = (u32, T)>) -> Option<Mix<T>> {
        let mut mix = Mix { choices: Vec::new(), sums: Vec::new() };
        let mut sum = 0;
        for (weight, choice) in choices.into_iter().filter(|(weight, _)| *weight > 0) {
            sum += u64::from(weight);
            mix.sums.push(sum);
            mix.choices.push(choice);
        }
        (!mix.choices.is_empty()).then_some(mix)
    }

    /// One of them; costs nothing where there is but one.
    pub fn choose(&self, random: &mut Rng) -> &T {
        &self.choices[self.choose_place(random)]
    }

    /// The place of one of them.
    pub fn choose_place(&self, random: &mut Rng) -> usize {
        let total = self.sums[self.sums.len() - 1];
        match self.choices.len() {
            1 => 0,
            _ => {
                let drawn = random.u64(0..total);
                self.sums.partition_point(|sum| *sum <= drawn)
            }
        }
    }

    /// All of them, in the order in which they were given.
    pub fn choices(&self) -> &[T] {
        &self.choices
    }
}

impl Pattern {
    /// Writes an address for the message with this number.
    pub fn write(&self, number: u64, random: &mut Rng, out: &mut Vec<u8>) {
        for piece in &self.pieces {
            match piece {
                Piece::Text(text) => out.extend_from_slice(text),
                Piece::Number => write_number(number, out),
                Piece::Random(first, last) => write_number(random.u64(*first..=*last), out),
            }
        }
    }
}

fn write_number(mut number: u64, out: &mut Vec<u8>) {
    let begin = out.len();
    loop {
        out.push(b'0' + (number % 10) as u8);
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out[begin..].reverse();
}

impl FromStr for Pattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Pattern, PatternError> {
        let wrong = || PatternError(text.into());
        // Twenty digits is the longest that a number becomes.
        let numbers = text.matches('{').count();
        let is_clean = text.bytes().all(|octet| octet > b' ' && octet != 127)
            && !text.contains(['<', '>'])
            && text.len() + numbers * 20 <= ADDRESS_MAX;
        if !is_clean {
            return Err(wrong());
        }
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some(open) = rest.find('{') {
            let close = rest[open..].find('}').ok_or_else(wrong)? + open;
            if open > 0 {
                pieces.push(Piece::Text(rest.as_bytes()[..open].into()));
            }
            pieces.push(match rest[open + 1..close].split_once("..") {
                None if &rest[open + 1..close] == "n" => Piece::Number,
                None => return Err(wrong()),
                Some((first, last)) => {
                    let first = first.parse().map_err(|_| wrong())?;
                    let last = last.parse().map_err(|_| wrong())?;
                    if first > last {
                        return Err(wrong());
                    }
                    Piece::Random(first, last)
                }
            });
            rest = &rest[close + 1..];
        }
        if !rest.is_empty() {
            pieces.push(Piece::Text(rest.as_bytes().into()));
        }
        Ok(Pattern { pieces })
    }
}

impl FromStr for Weighted {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Weighted, PatternError> {
        let text = text.trim();
        let (weight, pattern) = match text.split_once(' ') {
            None => (1, text),
            Some((weight, pattern)) => {
                (weight.parse().map_err(|_| PatternError(text.into()))?, pattern.trim())
            }
        };
        Ok(Weighted { weight, pattern: pattern.parse()? })
    }
}

impl<'de> Deserialize<'de> for Weighted {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Weighted, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(pattern: &str, number: u64) -> String {
        let mut out = Vec::new();
        let pattern: Pattern = pattern.parse().unwrap();
        pattern.write(number, &mut Rng::with_seed(1), &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn numbers_are_filled_in() {
        assert_eq!(written("a@b.example", 5), "a@b.example");
        assert_eq!(written("u{n}@{7..7}.example", 1_203), "u1203@7.example");
        assert_eq!(written("", 1), "", "the null path");
        let number: u64 = written("{10..20}", 0).parse().unwrap();
        assert!((10..=20).contains(&number));
    }

    #[test]
    fn what_would_break_a_command_is_refused() {
        for text in ["a b@c", "a\r@c", "<a@b>", "{x}@b", "{5..1}@b", "{1..@b", &"a".repeat(300)] {
            assert!(text.parse::<Pattern>().is_err(), "{text}");
        }
        assert_eq!("3 a@b".parse::<Weighted>().unwrap().weight, 3);
        assert!("x a@b".parse::<Weighted>().is_err());
    }

    #[test]
    fn choices_come_as_often_as_they_weigh() {
        let mix = Mix::new([(1, 'a'), (0, 'b'), (3, 'c')]).unwrap();
        let mut random = Rng::with_seed(7);
        let often = (0..10_000).filter(|_| *mix.choose(&mut random) == 'c').count();
        assert!((7_300..7_700).contains(&often), "{often}");
        assert!(Mix::<char>::new([(0, 'a')]).is_none());
    }
}
