//! What is told of a verdict afterwards: who was judged, what each check found, what followed.
//!
//! An [`Account`] is kept while a transaction goes on; with its end it becomes an [`Explanation`],
//! which `mailrace why` prints.  A worker remembers the latest of them ([`Explanations`]), as text
//! and within a bound; that of a message which goes on with a tag, or is quarantined, stands in its
//! record in the log besides, and lives as long as that.
//!
//! Invariant: an explanation has a bound ([`limits::EXPLANATION`]), however much a client did and
//! however many checks there are: what counts is kept longest, and what is left out is counted.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::verdict::{Action, Finding, Score, whole_ms};
use crate::control::events::SessionId;
use crate::control::moment::Moment;
use crate::control::port::text;
use crate::limits;
use crate::message::MessageId;

/// What is noted of a transaction, or of a session that came to none, while it goes on.
#[derive(Debug, Clone, Default)]
pub struct Account {
    /// The originator, empty for `<>`.
    pub from: Option<Box<str>>,
    /// The first recipients that were asked for.
    pub to: Vec<Asked>,
    /// How many more there were.
    pub more_to: u32,
    /// How long the client was kept waiting for facts.
    pub waited: Duration,
}

/// One recipient that a client asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    /// Its address, without brackets.
    pub address: Box<str>,
    /// What the client heard, if it was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply: Option<Box<str>>,
}

/// Why a transaction was judged as it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// When.
    pub time: Moment,
    /// The session.
    #[serde(with = "text")]
    pub session: SessionId,
    /// The message, if one was stored.
    #[serde(default, with = "text::option", skip_serializing_if = "Option::is_none")]
    pub message: Option<MessageId>,
    /// The client.
    pub peer: SocketAddr,
    /// What it called itself, as far as it did.
    pub helo: Box<str>,
    /// The originator, empty for `<>`; `None` if it came to no transaction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Box<str>>,
    /// The first recipients.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub to: Vec<Asked>,
    /// How many more there were.
    #[serde(default)]
    pub more_to: u32,
    /// What was decided.
    pub action: Action,
    /// The sum of the scores.
    pub score: Score,
    /// What the client heard in place of the greeting, or at the end of its data, if that was a
    /// refusal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply: Option<Box<str>>,
    /// How long the client was kept waiting for facts.
    #[serde(rename = "waited_ms", with = "whole_ms")]
    pub waited: Duration,
    /// What was found.
    pub findings: Vec<Finding>,
    /// Findings for which there was no room.
    #[serde(default)]
    pub left_out: u32,
}

/// The latest explanations of one worker.
///
/// Those of messages and those of what was refused have room of their own each: a flood of refused
/// clients does not drive out why a message was let in.
#[derive(Debug, Default)]
pub struct Explanations {
    of_messages: Ring,
    of_refusals: Ring,
}

#[derive(Debug, Default)]
struct Ring {
    kept: VecDeque<Kept>,
    /// What `kept` takes of memory.
    octets: usize,
}

#[derive(Debug)]
struct Kept {
    session: SessionId,
    message: Option<MessageId>,
    /// The explanation as JSON, a third of what it takes as a value.
    text: Box<str>,
}

impl Account {
    /// Whether no recipient was asked for.
    pub fn is_empty(&self) -> bool {
        self.to.is_empty()
    }

    /// Notes a recipient, and the reply that refused it.
    pub fn note(&mut self, address: &str, reply: Option<Box<str>>) {
        match self.to.len() < RECIPIENTS_MAX {
            true => self.to.push(Asked { address: cut(address, TEXT_MAX), reply }),
            false => self.more_to = self.more_to.saturating_add(1),
        }
    }
}

impl Explanation {
    /// The explanation as JSON, within [`limits::EXPLANATION`]: what does not count is left out
    /// first.
    pub fn to_text(&self) -> Box<str> {
        let is_terse = self.texts().all(|text| text.len() <= TEXT_MAX);
        let text = is_terse.then(|| self.to_json());
        match text.filter(|text| text.len() <= limits::EXPLANATION) {
            Some(text) => text.into(),
            None => self.to_text_cut(),
        }
    }

    /// What is as long as others have made it.
    fn texts(&self) -> impl Iterator<Item = &str> {
        let of_findings =
            self.findings.iter().flat_map(|finding| [&*finding.check, &*finding.fact]);
        of_findings.chain([&*self.helo])
    }

    fn to_json(&self) -> String {
        serde_json::to_string(self).expect("an explanation is JSON")
    }

    fn to_text_cut(&self) -> Box<str> {
        let mut fitting = self.clone();
        for finding in &mut fitting.findings {
            finding.check = cut(&finding.check, TEXT_MAX);
            finding.fact = cut(&finding.fact, TEXT_MAX);
        }
        fitting.helo = cut(&fitting.helo, TEXT_MAX);
        loop {
            let text = fitting.to_json();
            if text.len() <= limits::EXPLANATION || !fitting.shorten() {
                return text.into();
            }
        }
    }

    /// What led to the verdict, in a line: `score 6.5: dnsbl.example=6, reverse_missing=0.5`.
    pub fn causes(&self) -> String {
        let causes = self.findings.iter().filter(|finding| finding.counts());
        let causes: Vec<String> = causes.map(Finding::to_string).collect();
        format!("score {}: {}", self.score, causes.join(", "))
    }

    /// Leaves out the last finding that does not count, else the last one, else the last
    /// recipient; tells whether there was any of them.
    fn shorten(&mut self) -> bool {
        let idle = self.findings.iter().rposition(|finding| !finding.counts());
        if let Some(last) = idle.or(self.findings.len().checked_sub(1)) {
            self.findings.remove(last);
            self.left_out = self.left_out.saturating_add(1);
            return true;
        }
        let recipient = self.to.pop();
        self.more_to = self.more_to.saturating_add(u32::from(recipient.is_some()));
        recipient.is_some()
    }

    /// Reads what [`Explanation::to_text`] wrote; `None` if it is something else.
    pub fn from_text(text: &[u8]) -> Option<Explanation> {
        serde_json::from_slice(text).ok()
    }
}

impl Explanations {
    /// Remembers one; the oldest make room for it.
    pub fn remember(&mut self, explanation: &Explanation) {
        let ring = match explanation.message {
            Some(_) => &mut self.of_messages,
            None => &mut self.of_refusals,
        };
        let Explanation { session, message, .. } = *explanation;
        ring.push(Kept { session, message, text: explanation.to_text() });
    }

    /// Those of a session, or of a message, of this id; the oldest first.
    pub fn find(&self, id: MessageId) -> Vec<Explanation> {
        let all = self.of_messages.kept.iter().chain(&self.of_refusals.kept);
        let is_it = |kept: &&Kept| kept.message == Some(id) || kept.session.is(id);
        let mut found: Vec<Explanation> = all
            .filter(is_it)
            .filter_map(|kept| Explanation::from_text(kept.text.as_bytes()))
            .collect();
        found.sort_by_key(|explanation| explanation.time);
        found
    }
}

impl Ring {
    fn push(&mut self, kept: Kept) {
        self.octets += kept.octets();
        self.kept.push_back(kept);
        while self.octets > limits::EXPLANATIONS / 2
            && let Some(oldest) = self.kept.pop_front()
        {
            self.octets -= oldest.octets();
        }
    }
}

impl Kept {
    fn octets(&self) -> usize {
        self.text.len() + size_of::<Kept>()
    }
}

/// The text, or as much of it as fits so many octets.
fn cut(text: &str, octets_max: usize) -> Box<str> {
    text[..text.floor_char_boundary(octets_max)].into()
}

/// Recipients of a transaction that are named.
const RECIPIENTS_MAX: usize = 8;
/// The most octets of a fact or an address: a path is no longer (RFC 5321 section 4.5.3.1.3).
const TEXT_MAX: usize = 256;

// Recipients and what is written around findings fit by themselves, escapes of JSON not counted.
const _: () = assert!(limits::EXPLANATION > 2 * (RECIPIENTS_MAX + 2) * TEXT_MAX);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::events::SessionIds;
    use crate::edge::verdict::Effect;

    fn finding(number: usize, effect: Effect) -> Finding {
        Finding {
            check: format!("check{number}").into(),
            fact: "192.0.2.1 is listed".repeat(10).into(),
            effect,
            reply: None,
            took: Duration::from_millis(7),
        }
    }

    fn explanation(findings: Vec<Finding>) -> Explanation {
        Explanation {
            time: Moment(1_769_862_896_789),
            session: SessionIds::new(0).next(1_769_862_896_000),
            message: None,
            peer: "192.0.2.1:25".parse().unwrap(),
            helo: "a\"\u{1}b".into(),
            from: Some("".into()),
            to: vec![Asked { address: "a@b.example".into(), reply: Some("550 no".into()) }],
            more_to: 0,
            action: Action::Reject,
            score: Score(905),
            reply: None,
            waited: Duration::from_millis(3),
            findings,
            left_out: 0,
        }
    }

    #[test]
    fn it_reads_back() {
        let effects = [
            Effect::None,
            Effect::Score(Score(905)),
            Effect::Score(Score(-50)),
            Effect::Action(Action::Quarantine),
        ];
        let findings = effects.into_iter().enumerate().map(|(n, effect)| finding(n, effect));
        let written = explanation(findings.collect());
        assert_eq!(Explanation::from_text(written.to_text().as_bytes()), Some(written));
        assert_eq!(Explanation::from_text(b"{\"time\":\"2026"), None);
    }

    #[test]
    fn what_counts_is_kept_longest() {
        let idle = (0..100).map(|number| finding(number, Effect::None));
        let heavy = finding(100, Effect::Score(Score(900)));
        let text = explanation(idle.chain([heavy.clone()]).collect()).to_text();
        assert!(text.len() <= limits::EXPLANATION);
        let read = Explanation::from_text(text.as_bytes()).unwrap();
        assert_eq!(read.findings.last(), Some(&heavy));
        assert_eq!(read.findings.len() + read.left_out as usize, 101);
        let long = "\u{1}".repeat(10_000);
        let mut account = Account::default();
        (0..100).for_each(|_| account.note(&long, None));
        let mut much = explanation(vec![heavy; 100]);
        (much.helo, much.to, much.more_to) = (long.into(), account.to, account.more_to);
        assert!(much.to_text().len() <= limits::EXPLANATION);
    }

    #[test]
    fn the_oldest_make_room_and_a_flood_of_refusals_leaves_messages_alone() {
        let mut explanations = Explanations::default();
        let mut sessions = SessionIds::new(3);
        let accepted = Explanation { message: Some(MessageId(7)), ..explanation(Vec::new()) };
        explanations.remember(&accepted);
        let refused: Vec<Explanation> = (0..20_000)
            .map(|at| Explanation { session: sessions.next(at), ..explanation(Vec::new()) })
            .collect();
        refused.iter().for_each(|refused| explanations.remember(refused));
        assert!(explanations.of_refusals.octets <= limits::EXPLANATIONS / 2);
        assert!(explanations.of_refusals.kept.len() > 1_000);
        let find = |session: SessionId| explanations.find(session.to_string().parse().unwrap());
        assert_eq!(find(refused[19_999].session), [refused[19_999].clone()]);
        assert_eq!(find(refused[0].session), []);
        assert_eq!(explanations.find(MessageId(7)), [accepted]);
    }
}
