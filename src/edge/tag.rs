//! The header field that tells a recipient, and his filters, why mail is suspect.
//!
//! One field before the body, above everything that the sender wrote and below our trace header:
//!
//! ```text
//! X-Mailrace-Verdict: mx1.example.com; tag; score=4.5;
//!     dnsbl.example=4; reverse_missing=0.5
//! ```
//!
//! It holds ASCII alone and has a bound, whatever a check is called; a sender may write such a field
//! too, which stands below a trace header that is not ours.

use std::fmt::Write as _;

use super::verdict::{Action, Finding, Score};

/// The field's name.
pub const NAME: &str = "X-Mailrace-Verdict";

/// Adds the field to `out`, CRLF at its end: our name, what was decided, and the findings that did
/// anything, up to a bound.
pub fn write(out: &mut String, hostname: &str, action: Action, score: Score, findings: &[Finding]) {
    let mut line = Line { out, column: 0 };
    line.put(NAME);
    line.put(": ");
    line.put(hostname);
    line.item(&action.to_string());
    line.item(&format!("score={score}"));
    let mut causes = findings.iter().filter(|finding| finding.counts());
    let mut cause = String::new();
    for finding in causes.by_ref().take(CAUSES_MAX) {
        cause.clear();
        write!(cause, "{finding}").expect("a string takes all text");
        line.item(&cause);
    }
    if causes.next().is_some() {
        line.item("...");
    }
    line.out.push_str("\r\n");
}

/// The most findings that are named.
const CAUSES_MAX: usize = 24;
/// The most characters of one of them: a zone is up to 253 long.
const CAUSE_CHARACTERS_MAX: usize = 280;
/// Where a line is folded (RFC 5322 section 2.1.1 recommends 78).
const WIDTH: usize = 76;

struct Line<'a> {
    out: &'a mut String,
    column: usize,
}

impl Line<'_> {
    /// One more item, on a line of its own where the present one has no room for it.
    fn item(&mut self, text: &str) {
        self.put(";");
        if self.column + 1 + text.len() > WIDTH {
            self.out.push_str("\r\n\t");
            self.column = 8;
        } else {
            self.put(" ");
        }
        self.put(text);
    }

    /// Text without what could end the line, or the item.
    fn put(&mut self, text: &str) {
        for c in text.chars().take(CAUSE_CHARACTERS_MAX) {
            let is_part = c == ' ' || (c.is_ascii_graphic() && (c != ';' || text == ";"));
            self.out.push(if is_part { c } else { '_' });
            self.column += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::edge::verdict::Effect;

    fn finding(check: &str, effect: Effect) -> Finding {
        Finding { check: check.into(), fact: "".into(), effect, reply: None, took: Duration::ZERO }
    }

    fn written(findings: &[Finding]) -> String {
        let mut out = String::new();
        write(&mut out, "mx1.example.com", Action::Tag, Score(450), findings);
        out
    }

    #[test]
    fn only_what_counts_is_named() {
        let findings = [
            finding("early_talk", Effect::None),
            finding("dnsbl.example", Effect::Score(Score(400))),
            finding("reverse_missing", Effect::Score(Score(50))),
            finding("helo_bare", Effect::Action(Action::Tag)),
        ];
        assert_eq!(
            written(&findings),
            "X-Mailrace-Verdict: mx1.example.com; tag; score=4.5; dnsbl.example=4;\r\n\
             \treverse_missing=0.5; helo_bare=tag\r\n"
        );
        assert_eq!(written(&[]), "X-Mailrace-Verdict: mx1.example.com; tag; score=4.5\r\n");
    }

    #[test]
    fn many_findings_are_cut_short() {
        let many: Vec<Finding> =
            (0..100).map(|n| finding(&format!("list{n}"), Effect::Score(Score(100)))).collect();
        let written = written(&many);
        assert!(written.ends_with("list23=1; ...\r\n"), "{written}");
    }

    proptest! {
        /// It is one field of one message, and no more, whatever checks are called.
        #[test]
        fn it_is_one_folded_field(names in proptest::collection::vec(".{0,400}", 0..40)) {
            let findings: Vec<Finding> =
                names.iter().map(|name| finding(name, Effect::Score(Score(1)))).collect();
            let field = written(&findings);
            prop_assert!(field.is_ascii() && field.ends_with("\r\n") && field.len() < 9_000);
            let lines = field.strip_suffix("\r\n").unwrap().split("\r\n");
            for (place, line) in lines.enumerate() {
                prop_assert!(!line.contains(['\r', '\n']) && line.len() <= 998);
                prop_assert_eq!(line.starts_with('\t'), place > 0);
                prop_assert!(!line.trim().is_empty());
            }
        }
    }
}
