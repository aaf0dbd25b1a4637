//! What rspamd says of a message: its JSON, read leniently.
//!
//! Pure.  rspamd is the operator's own, and yet what it says comes out of messages of strangers and
//! out of scripts: every text is bounded and cleaned before it gets into a reply or a header
//! section, and whatever has another form than documented is passed over, but for the action, which
//! must be there.

use std::fmt::Write as _;

use serde::Deserialize;
use serde_json::Value;

use super::changes::{Changes, Field, Removal};
use super::{Advice, Assessment};
use crate::edge::verdict::{Effect, Score};

/// What is used of an answer.
///
/// Its greatest part is passed over as it is read: every URL and address that stands in the message
/// (`urls`, `emails`), which a sender can make megabytes of.  The text has a bound, and the fields
/// here are values of any form, since one that is odd must not hide the action.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Answer {
    action: Value,
    score: Value,
    required_score: Value,
    symbols: Value,
    messages: Value,
    milter: Value,
    subject: Value,
}

/// Reads an answer to `/checkv2`; `None` if it is none.
pub fn read(octets: &[u8]) -> Option<Assessment> {
    // Text of the message may be in it as its sender wrote it.
    let text = String::from_utf8_lossy(octets);
    let answer: Answer = serde_json::from_str(&text).ok()?;
    let action = answer.action.as_str()?;
    let mut advice = advice(action);
    let milter = &answer.milter;
    if let (Advice::Reject, Some(instead)) = (advice, milter["reject"].as_str()) {
        advice = match instead {
            "quarantine" => Advice::Quarantine,
            "discard" => Advice::Discard,
            _ => advice,
        };
    }
    let is_ignored = milter["no_action"] == true;
    let effect = if is_ignored { Effect::None } else { advice.effect() };
    let mut changes = milter_changes(milter);
    if !is_ignored {
        advised_changes(advice, &answer, &mut changes);
    }
    Some(Assessment {
        advice,
        effect,
        fact: fact(action, is_ignored, &answer),
        reply: answer.messages["smtp_message"].as_str().and_then(reply),
        changes,
    })
}

fn advice(action: &str) -> Advice {
    match action {
        "no action" | "accept" => Advice::NoAction,
        "greylist" => Advice::Greylist,
        "add header" => Advice::AddHeader,
        "rewrite subject" => Advice::RewriteSubject,
        "soft reject" => Advice::SoftReject,
        "reject" => Advice::Reject,
        "quarantine" => Advice::Quarantine,
        "discard" => Advice::Discard,
        _ => Advice::Other,
    }
}

/// `add header, score 7.2 of 15: A 4, B 3.2`.
fn fact(action: &str, is_ignored: bool, answer: &Answer) -> Box<str> {
    let mut fact = one_line(action, WORD_CHARACTERS);
    if is_ignored {
        fact.push_str(", not to be done");
    }
    write!(fact, ", score {}", score(&answer.score)).expect("a string takes all text");
    if answer.required_score.is_number() {
        let required = score(&answer.required_score);
        write!(fact, " of {required}").expect("a string takes all text");
    }
    let symbols = answer.symbols.as_object().into_iter().flatten();
    let mut symbols: Vec<(&str, Score)> = symbols
        .map(|(name, symbol)| (&**name, score(&symbol["score"])))
        .filter(|(_, score)| *score != Score(0))
        .collect();
    symbols.sort_by_key(|(name, score)| (std::cmp::Reverse(score.0.unsigned_abs()), *name));
    for (place, (name, score)) in symbols.iter().take(SYMBOLS_TOLD).enumerate() {
        let before = if place == 0 { ":" } else { "," };
        let name = one_line(name, WORD_CHARACTERS);
        write!(fact, "{before} {name} {score}").expect("a string takes all text");
    }
    fact.into()
}

/// Points as a score of ours; the cast stops at the ends of the range.
fn score(value: &Value) -> Score {
    Score((value.as_f64().unwrap_or(0.0) * 100.0).round() as i32)
}

/// What a client may hear; nothing if there are no words in it.
fn reply(text: &str) -> Option<Box<str>> {
    let text = one_line(text, REPLY_CHARACTERS);
    let text = text.trim();
    (!text.is_empty()).then(|| text.into())
}

/// Printable ASCII of a bounded length, whatever it was.
fn one_line(text: &str, characters_max: usize) -> String {
    let clean = |c: char| match c {
        ' '..='~' => c,
        c if c.is_whitespace() => ' ',
        _ => '?',
    };
    text.chars().take(characters_max).map(clean).collect()
}

/// What the block for milters asks for.
fn milter_changes(milter: &Value) -> Changes {
    let mut changes = Changes::default();
    for (name, given) in milter["remove_headers"].as_object().into_iter().flatten() {
        for which in each(given) {
            let which = which.as_i64().and_then(|which| i32::try_from(which).ok());
            if let Some(removal) = which.and_then(|which| Removal::new(name, which)) {
                changes.remove(removal);
            }
        }
    }
    for (name, given) in milter["add_headers"].as_object().into_iter().flatten() {
        for value in each(given) {
            let value = value.as_str().or_else(|| value["value"].as_str());
            if let Some(field) = value.and_then(|value| Field::new(name, value)) {
                changes.add(field);
            }
        }
    }
    changes
}

/// What marks spam, as rspamd's own milter does it.
fn advised_changes(advice: Advice, answer: &Answer, changes: &mut Changes) {
    match advice {
        Advice::AddHeader => changes.mark(),
        Advice::RewriteSubject => match answer.subject.as_str().and_then(Field::subject) {
            Some(subject) => changes.subject = Some(subject),
            None => changes.mark(),
        },
        _ => {}
    }
}

/// The entries of a list, or the one that stands there alone.
fn each(value: &Value) -> &[Value] {
    match value {
        Value::Array(values) => values,
        value => std::slice::from_ref(value),
    }
}

/// Symbols that a fact names.
const SYMBOLS_TOLD: usize = 8;
/// The most characters of an action or a symbol.
const WORD_CHARACTERS: usize = 40;
/// The most characters of a reply: with its codes it fits a line of 512 octets.
const REPLY_CHARACTERS: usize = 300;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edge::verdict::Action;

    fn parse(text: &str) -> Assessment {
        read(text.as_bytes()).unwrap_or_else(|| panic!("{text}"))
    }

    #[test]
    fn every_action_has_its_effect() {
        use Action::{Defer, Quarantine, Reject, Tag};
        for (action, effect) in [
            ("no action", Effect::None),
            ("accept", Effect::None),
            ("greylist", Effect::None),
            ("of my own", Effect::None),
            ("add header", Effect::Action(Tag)),
            ("rewrite subject", Effect::Action(Tag)),
            ("soft reject", Effect::Action(Defer)),
            ("reject", Effect::Action(Reject)),
            ("quarantine", Effect::Action(Quarantine)),
            ("discard", Effect::Action(Quarantine)),
        ] {
            let text = format!(r#"{{"action": "{action}", "score": 0}}"#);
            assert_eq!(parse(&text).effect, effect, "{action}");
        }
        let milter = |block: &str| parse(&format!(r#"{{"action":"reject","milter":{block}}}"#));
        assert_eq!(milter(r#"{"reject":"quarantine"}"#).effect, Effect::Action(Quarantine));
        assert_eq!(milter(r#"{"reject":"discard"}"#).effect, Effect::Action(Quarantine));
        assert_eq!(milter(r#"{"reject":"so be it"}"#).effect, Effect::Action(Reject));
        assert_eq!(milter(r#"{"no_action":true}"#).effect, Effect::None);
    }

    #[test]
    fn the_fact_names_the_heaviest_symbols() {
        let found = parse(
            r#"{"action": "add header", "score": 7.25, "required_score": 15.0, "symbols": {
                "A": {"score": -1.5}, "B": {"score": 8.75}, "C": {"score": 0.0}, "D": 7}}"#,
        );
        assert_eq!(&*found.fact, "add header, score 7.25 of 15: B 8.75, A -1.5");
        let many: Vec<String> = (0..1_000)
            .map(|n| format!(r#""S{n}\u0007{}": {{"score": 1e300}}"#, "x".repeat(90)))
            .collect();
        let found = parse(&format!(r#"{{"action": "reject", "symbols": {{{}}}}}"#, many.join(",")));
        assert!(found.fact.len() < 600 && found.fact.contains("S0?"), "{}", found.fact);
    }

    #[test]
    fn headers_come_in_any_of_their_forms() {
        let found = parse(
            r#"{"action": "no action", "milter": {
                "add_headers": {
                    "X-A": "one",
                    "X-B": {"value": "two\n\tfolded", "order": 0},
                    "X-C": [{"value": "three"}, "four"],
                    "X-D": 7,
                    "Not a name": "five"
                },
                "remove_headers": {"X-E": 0, "X-F": [1, -1], "X-G": "all"}
            }}"#,
        );
        let mut fields = String::new();
        found.changes.write(&mut fields);
        assert_eq!(fields, "X-A: one\r\nX-B: two\r\n\tfolded\r\nX-C: three\r\nX-C: four\r\n");
        let removals = ["X-E", "X-F", "X-F"].into_iter().zip([0, 1, -1]);
        let removals: Vec<Removal> =
            removals.map(|(name, which)| Removal::new(name, which).unwrap()).collect();
        assert_eq!(found.changes.removed(), removals);
    }

    #[test]
    fn a_reply_is_one_line_of_ascii() {
        let said = |text: &str| {
            let text = serde_json::json!({"action": "reject", "messages": {"smtp_message": text}});
            parse(&text.to_string()).reply
        };
        assert_eq!(said("Gtube pattern").as_deref(), Some("Gtube pattern"));
        assert_eq!(said("a\r\n250 ok\u{7f}\u{e4}").as_deref(), Some("a  250 ok??"));
        assert_eq!(said(" \r\n"), None);
        assert_eq!(said(&"x".repeat(5_000)).map(|reply| reply.len()), Some(REPLY_CHARACTERS));
    }

    #[test]
    fn an_octet_that_is_no_text_hides_no_verdict() {
        let found = read(b"{\"action\": \"reject\", \"symbols\": {\"A\xff\": {\"score\": 7}}}");
        let found = found.expect("an answer");
        assert_eq!(found.effect, Effect::Action(Action::Reject));
        assert_eq!(&*found.fact, "reject, score 0: A? 7");
    }

    #[test]
    fn what_is_no_answer_is_told() {
        for text in ["", "{}", "[]", "null", "{\"action\": 7}", "{\"action\": \"reject\"", "<html>"]
        {
            assert_eq!(read(text.as_bytes()), None, "{text}");
        }
        // Everything else may be missing, or odd.
        for text in [
            r#"{"action":"reject"}"#,
            r#"{"action":"reject","score":"much","symbols":[],"messages":[],"milter":[]}"#,
            r#"{"action":"reject","milter":{"add_headers":[1],"remove_headers":{"A":99999999999}}}"#,
        ] {
            let found = parse(text);
            assert_eq!(found.effect, Effect::Action(Action::Reject), "{text}");
            assert!(found.changes.is_empty(), "{text}");
        }
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(read(deep.as_bytes()), None);
    }
}
