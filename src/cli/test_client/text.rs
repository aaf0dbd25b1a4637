//! What was found as an operator reads it: a subject a line.

use std::fmt::{Display, Write as _};

use super::{CheckFound, Found, ListFound, RecipientFound};
use crate::cli::plain::plain;

/// All of it.
pub(super) fn page(found: &Found) -> String {
    let mut page = Page::default();
    page.say("client", found.client);
    if let Some(helo) = &found.helo {
        page.say("helo", helo);
    }
    if let Some(from) = &found.from {
        page.say("from", format_args!("<{from}>"));
    }
    if let Some(why) = &found.not_looked_at {
        page.say("checks", format_args!("none: {why}"));
    }
    let labels = |first| std::iter::once(first).chain(std::iter::repeat(""));
    for (list, label) in found.lists.iter().zip(labels("lists")) {
        page.list(label, list);
    }
    let width = found.checks.iter().map(|check| check.check.chars().count()).max().unwrap_or(0);
    for (check, label) in found.checks.iter().zip(labels("checks")) {
        page.check(label, check, width);
    }
    page.say("score", found.score);
    page.verdict(found);
    if let Some(recipient) = &found.recipient {
        page.recipient(recipient);
    }
    page.text
}

/// The text so far.
#[derive(Default)]
struct Page {
    text: String,
}

impl Page {
    /// A line under a label; under the same one as the last if it is empty.
    fn say(&mut self, label: &str, words: impl Display) {
        let words = words.to_string();
        writeln!(self.text, "{label:<LABEL$}{}", plain(&words)).expect("a string takes all text");
    }

    fn list(&mut self, label: &str, list: &ListFound) {
        let ListFound { zone, kind, state, fact, took_ms } = list;
        let state = if *state == "starting" { "not believed yet" } else { state };
        self.say(label, format_args!("{zone} ({kind}) is {state}: {fact} ({took_ms} ms)"));
    }

    fn check(&mut self, label: &str, check: &CheckFound, width: usize) {
        let CheckFound { check, fact, score, action, took_ms } = check;
        let effect = match action {
            Some(action) => (*action).to_owned(),
            None if *score == 0.0 => "-".to_owned(),
            None => format!("{score:+}"),
        };
        let words = format!("{check:<width$}  {effect:<EFFECT$}  {fact}");
        match *took_ms > 0.0 {
            true => self.say(label, format_args!("{words} ({took_ms} ms)")),
            false => self.say(label, words),
        }
    }

    fn verdict(&mut self, found: &Found) {
        let cause = found.cause.as_ref().map(|check| format!(", mainly for {check}"));
        let cause = cause.filter(|_| found.verdict != "accept").unwrap_or_default();
        self.say("verdict", format_args!("{}{cause}", found.verdict));
        if let Some(reply) = &found.reply {
            self.say("", reply);
        }
    }

    fn recipient(&mut self, recipient: &RecipientFound) {
        let address = &recipient.address;
        match (&recipient.reply, recipient.route, &recipient.to) {
            (Some(reply), ..) => self.say("to", format_args!("{address}, refused: {reply}")),
            (None, Some(number), Some(to)) => {
                let kind = match recipient.kind {
                    Some("alias") => ", an alias".to_owned(),
                    Some(kind) => format!(", a {kind}"),
                    None => String::new(),
                };
                self.say("to", format_args!("{address}{kind}, by route {number}: {to}"));
            }
            (None, ..) => self.say("to", address),
        }
        if recipient.postmaster {
            self.say("", "postmasters are reached whatever the verdict");
        }
    }
}

/// Columns of the labels.
const LABEL: usize = 10;
/// Columns of what a check does: the longest is `quarantine`.
const EFFECT: usize = 10;
