//! How messages are treated: shares of refusals with texts as they come in the wild, greylisting,
//! latency, rates, breaks, and lies to try the ledger with.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use fastrand::Rng;
use serde::{Deserialize, Deserializer};

use crate::units::Span;

/// How a domain treats messages to it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Manners {
    /// Replies to RCPT other than 250.
    pub rcpt: Vec<Share>,
    /// Replies to the end of data other than 250.
    pub data: Vec<Share>,
    /// How long a new triplet of client, sender and recipient is put off.
    pub greylist: Option<Span>,
    /// What the reply to the end of data takes.
    pub latency: Option<SpanRange>,
    /// Messages a second, beyond which RCPT is put off.
    pub rate: Option<f64>,
    /// Share of messages in the midst of which the connection is reset.
    pub drop: f64,
    /// Share of messages that are acknowledged and forgotten.
    pub lose: f64,
    /// Share of messages that arrive with a flipped bit.
    pub damage: f64,
    /// Share of messages that arrive twice.
    pub double: f64,
    /// Share of messages that arrive after the next one of their connection.
    pub reorder: f64,
}

/// A reply and how often it is given.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Share {
    /// From 0 to 1.
    pub share: f64,
    /// A reply (`450 4.2.0 Come back`) or the name of one in [`REPLIES`].
    pub reply: ReplyText,
}

/// A whole reply line with its CRLF.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplyText(pub Box<[u8]>);

/// A text that is no reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplyTextError(String);

/// A time between two bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpanRange {
    from: Duration,
    to: Duration,
}

/// Replies by name, worded as large receivers word theirs.
pub const REPLIES: [(&str, &str); 10] = [
    ("greylisted", "450 4.7.1 Greylisted, please try again later"),
    ("over-quota", "452 4.2.2 The recipient's mailbox is over its storage quota"),
    ("busy", "451 4.3.2 Please try again later; the system is busy"),
    ("rate-limited", "421 4.7.28 Unusual rate of mail from your address; try again later"),
    ("local-error", "451 4.3.0 Temporary local problem; please try later"),
    ("unknown-user", "550 5.1.1 The account that you tried to reach does not exist"),
    ("disabled", "550 5.2.1 The account that you tried to reach is disabled"),
    ("blocked", "554 5.7.1 Service unavailable; your address is on a blocklist"),
    ("spam", "554 5.7.1 Message rejected as likely unsolicited mail"),
    ("policy", "550 5.7.26 Unauthenticated mail from this domain is not accepted"),
];

impl Manners {
    /// Whether all shares are shares and the rate is one.
    pub fn is_sound(&self) -> bool {
        let is_share = |share: f64| (0.0..=1.0).contains(&share);
        let lists = [&self.rcpt, &self.data];
        let is_list = |list: &&Vec<Share>| {
            list.iter().all(|one| is_share(one.share))
                && list.iter().map(|one| one.share).sum::<f64>() <= 1.0 + 1e-9
        };
        lists.iter().all(is_list)
            && [self.drop, self.lose, self.damage, self.double, self.reorder]
                .into_iter()
                .all(is_share)
            && self.rate.is_none_or(|rate| rate > 0.0)
    }
}

/// One of these replies, or none, as their shares have it.
pub fn draw<'a>(shares: &'a [Share], random: &mut Rng) -> Option<&'a ReplyText> {
    if shares.is_empty() {
        return None;
    }
    let mut drawn = random.f64();
    shares.iter().find_map(|one| {
        drawn -= one.share;
        (drawn < 0.0).then_some(&one.reply)
    })
}

impl SpanRange {
    /// A time in it.
    pub fn draw(self, random: &mut Rng) -> Duration {
        self.from + (self.to - self.from).mul_f64(random.f64())
    }
}

impl FromStr for ReplyText {
    type Err = ReplyTextError;

    fn from_str(text: &str) -> Result<ReplyText, ReplyTextError> {
        let named = REPLIES.iter().find(|(name, _)| *name == text);
        let line = named.map_or(text, |(_, line)| line);
        let is_refusal = matches!(line.as_bytes(), [b'4' | b'5', b, c, b' ', ..]
            if b.is_ascii_digit() && c.is_ascii_digit());
        let is_one_line = !line.contains(|letter: char| letter.is_control()) && line.len() <= 500;
        match is_refusal && is_one_line {
            true => Ok(ReplyText(format!("{line}\r\n").into_bytes().into())),
            false => Err(ReplyTextError(text.into())),
        }
    }
}

impl fmt::Display for ReplyTextError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = REPLIES.iter().map(|(name, _)| *name).collect();
        let names = names.join(", ");
        write!(f, "{:?} is neither a reply of 4xx or 5xx nor one of {names}", self.0)
    }
}

impl<'de> Deserialize<'de> for ReplyText {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<ReplyText, D::Error> {
        String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}

impl<'de> Deserialize<'de> for SpanRange {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<SpanRange, D::Error> {
        let text = String::deserialize(from)?;
        let (from, to) = text.split_once('-').unwrap_or((&text, &text));
        let span = |text: &str| text.parse::<Span>().map_err(serde::de::Error::custom);
        let (from, to) = (span(from)?.0, span(to)?.0);
        if from > to {
            return Err(serde::de::Error::custom("a range goes from the shorter to the longer"));
        }
        Ok(SpanRange { from, to })
    }
}

#[cfg(test)]
mod tests {
    use super::super::world::tests::world;
    use super::*;

    #[test]
    fn shares_are_drawn_as_often_as_they_say() {
        let world = world("[default]\nrcpt = [{ share = 0.25, reply = \"busy\" }]").unwrap();
        let mut random = Rng::with_seed(3);
        let shares = &world.manners(0).rcpt;
        let drawn = (0..10_000).filter(|_| draw(shares, &mut random).is_some()).count();
        assert!((2_300..2_700).contains(&drawn), "{drawn}");
    }
}
