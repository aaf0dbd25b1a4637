//! What checks find, and what follows from it.
//!
//! Pure.  A check's [`Finding`] has an [`Effect`]: a score, an action of its own, or none.  The verdict
//! is the most severe of the findings' actions and of the thresholds that the sum of the scores
//! reaches.  The more severe, the greater: `Accept < Tag < Quarantine < Defer < Reject`.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// How suspicious, in hundredths of a point; what speaks for a client is negative.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Score(pub i32);

/// What becomes of mail, from the mildest to the most severe.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// It goes on.
    #[default]
    Accept,
    /// It goes on with a header that says why it is suspect.
    Tag,
    /// It is kept until an operator releases it.
    Quarantine,
    /// It is refused for now (4xx).
    Defer,
    /// It is refused (5xx).
    Reject,
}

/// What a finding does.  In JSON: `null`, a number, or the action's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Effect {
    /// Nothing: all was well, or nobody could tell.  In the configuration: the check is off.
    None,
    /// It adds to the score.
    Score(Score),
    /// It asks for an action, whatever the score.
    Action(Action),
}

/// The scores from which on an action is taken; one that is not set is never taken for a score.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Thresholds {
    /// [`Action::Tag`].
    pub tag: Option<Score>,
    /// [`Action::Quarantine`].
    pub quarantine: Option<Score>,
    /// [`Action::Defer`].
    pub defer: Option<Score>,
    /// [`Action::Reject`].
    pub reject: Option<Score>,
}

/// What a check has found, also that nothing speaks against the client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// The check's name, as in the configuration; of a list its zone.
    pub check: Box<str>,
    /// What was looked at and what was found, for a person.
    pub fact: Box<str>,
    /// What it does.
    pub effect: Effect,
    /// What a client hears that is refused mainly because of it; generic words if there is none.
    #[serde(skip)]
    pub reply: Option<Box<str>>,
    /// How long the fact took to come; zero if it was at hand.
    #[serde(rename = "took_ms", with = "whole_ms")]
    pub took: Duration,
}

/// What follows from all findings so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict<'f> {
    /// What becomes of the mail.
    pub action: Action,
    /// The sum of the scores.
    pub score: Score,
    /// The finding that weighs most for the action; none if nothing speaks against the client.
    pub cause: Option<&'f Finding>,
}

impl Action {
    /// Its name in the configuration, events and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Action::Accept => "accept",
            Action::Tag => "tag",
            Action::Quarantine => "quarantine",
            Action::Defer => "defer",
            Action::Reject => "reject",
        }
    }
}

impl Score {
    /// The sum, at the ends of the range where it would be beyond them.
    pub fn plus(self, other: Score) -> Score {
        Score(self.0.saturating_add(other.0))
    }
}

impl Effect {
    /// The score that it adds.
    pub fn score(self) -> Score {
        match self {
            Effect::Score(score) => score,
            Effect::None | Effect::Action(_) => Score(0),
        }
    }

    /// The action that it asks for by itself.
    pub fn action(self) -> Action {
        match self {
            Effect::Action(action) => action,
            Effect::None | Effect::Score(_) => Action::Accept,
        }
    }
}

impl Thresholds {
    /// The most severe action that a score reaches.
    pub fn reached(&self, score: Score) -> Action {
        let steps = [
            (self.reject, Action::Reject),
            (self.defer, Action::Defer),
            (self.quarantine, Action::Quarantine),
            (self.tag, Action::Tag),
        ];
        let reaches = |(least, _): &(Option<Score>, Action)| least.is_some_and(|l| score >= l);
        steps.into_iter().find(reaches).map_or(Action::Accept, |(_, action)| action)
    }
}

impl<'f> Verdict<'f> {
    /// What follows from these findings.
    pub fn of(findings: &'f [Finding], thresholds: &Thresholds) -> Verdict<'f> {
        let add = |sum: Score, finding: &Finding| sum.plus(finding.effect.score());
        let score = findings.iter().fold(Score(0), add);
        let asked = findings.iter().map(|finding| finding.effect.action()).max();
        let action = asked.unwrap_or_default().max(thresholds.reached(score));
        // One that asks for the action comes before any that only adds to the score.
        let weight = |finding: &&Finding| (finding.effect.action(), finding.effect.score());
        let cause = findings.iter().max_by_key(weight).filter(|heaviest| {
            heaviest.effect.action() > Action::Accept || heaviest.effect.score() > Score(0)
        });
        Verdict { action, score, cause }
    }
}

/// As it is told wherever causes are: `dnsbl.example=4`.
impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.check, self.effect)
    }
}

/// As in the configuration: `4`, `-1.5`.
impl fmt::Display for Score {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.0 < 0 { "-" } else { "" };
        let hundredths = self.0.unsigned_abs();
        match (hundredths / 100, hundredths % 100) {
            (whole, 0) => write!(f, "{sign}{whole}"),
            (whole, part) if part % 10 == 0 => write!(f, "{sign}{whole}.{}", part / 10),
            (whole, part) => write!(f, "{sign}{whole}.{part:02}"),
        }
    }
}

/// In JSON a score is a number of points.
impl Serialize for Score {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(f64::from(self.0) / 100.0)
    }
}

impl<'de> Deserialize<'de> for Score {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Score, D::Error> {
        // The cast stops at the ends of the range.
        f64::deserialize(deserializer).map(|points| Score((points * 100.0).round() as i32))
    }
}

/// A duration as whole milliseconds.
pub(super) mod whole_ms {
    use super::{Deserialize, Deserializer, Duration, Serializer};

    pub(in super::super) fn serialize<S: Serializer>(
        duration: &Duration,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Duration, D::Error> {
        u64::deserialize(deserializer).map(Duration::from_millis)
    }
}

/// As findings are told in a few words: `4`, `-1.5`, `reject`; `0` for none.
impl fmt::Display for Effect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Effect::None => f.write_str("0"),
            Effect::Score(score) => score.fmt(f),
            Effect::Action(action) => action.fmt(f),
        }
    }
}

impl Finding {
    /// Whether it does anything to the verdict.
    pub fn counts(&self) -> bool {
        !matches!(self.effect, Effect::None | Effect::Score(Score(0)))
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const THRESHOLDS: Thresholds = Thresholds {
        tag: Some(Score(300)),
        quarantine: None,
        defer: Some(Score(500)),
        reject: Some(Score(800)),
    };

    fn finding(check: &str, effect: Effect) -> Finding {
        Finding { check: check.into(), fact: "".into(), effect, reply: None, took: Duration::ZERO }
    }

    fn judged(effects: &[Effect]) -> (&'static str, i32, Option<usize>) {
        let findings: Vec<Finding> = effects
            .iter()
            .enumerate()
            .map(|(place, effect)| finding(&place.to_string(), *effect))
            .collect();
        let verdict = Verdict::of(&findings, &THRESHOLDS);
        let cause = verdict.cause.map(|cause| cause.check.parse().unwrap());
        (verdict.action.as_str(), verdict.score.0, cause)
    }

    #[test]
    fn scores_add_up_and_the_highest_threshold_that_is_reached_counts() {
        use Effect::Score as Points;
        assert_eq!(judged(&[]), ("accept", 0, None));
        assert_eq!(judged(&[Points(Score(299))]), ("accept", 299, Some(0)));
        assert_eq!(judged(&[Points(Score(100)), Points(Score(200))]), ("tag", 300, Some(1)));
        assert_eq!(judged(&[Points(Score(500)), Points(Score(299))]), ("defer", 799, Some(0)));
        assert_eq!(judged(&[Points(Score(900)), Points(Score(-100))]), ("reject", 800, Some(0)));
        assert_eq!(judged(&[Points(Score(-100))]), ("accept", -100, None));
        let much = [Points(Score(i32::MAX)), Points(Score(i32::MAX))];
        assert_eq!(judged(&much), ("reject", i32::MAX, Some(1)));
    }

    #[test]
    fn an_action_counts_whatever_the_score() {
        let effects = [
            Effect::Score(Score(400)),
            Effect::Action(Action::Reject),
            Effect::Score(Score(-2000)),
        ];
        assert_eq!(judged(&effects), ("reject", -1600, Some(1)));
        assert_eq!(judged(&[Effect::None, Effect::Action(Action::Tag)]), ("tag", 0, Some(1)));
        assert_eq!(judged(&[Effect::None]), ("accept", 0, None));
    }

    #[test]
    fn a_score_is_written_as_in_the_configuration() {
        let written = [0, 400, 150, -150, 5, -5, 1234].map(|s| Score(s).to_string());
        assert_eq!(written, ["0", "4", "1.5", "-1.5", "0.05", "-0.05", "12.34"]);
    }
}
