//! An event as its line: JSON written by hand, because every message pays for it.
//!
//! In plain words: an object of the fields that apply, in a fixed order.  What makes it about
//! three times as fast as a serializer: the names go out as they stand in the code; a string is
//! looked at once as a whole for what needs an escape, and nearly never has any (those that do
//! take serde_json's way); IPv4 addresses do without the formatting machinery.  The tests read
//! every line back with serde_json.

use std::fmt::Display;
use std::io::Write;
use std::net::SocketAddr;

use super::{Addressees, Event};
use crate::edge::verdict::{Finding, Score};
use crate::message::Recipient;

/// How every line begins.  The number is the version of the lines' form; it grows when a field
/// changes its meaning or goes.
const BEGIN: &[u8] = b"{\"schema\":1,\"time\":\"";

/// Appends the event's line to `out`, its newline too.
pub(super) fn write(event: &Event<'_>, time: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(BEGIN);
    out.extend_from_slice(time.as_bytes());
    out.extend_from_slice(b"\",\"event\":\"");
    out.extend_from_slice(event.kind.as_str().as_bytes());
    out.push(b'"');
    let mut line = Line(out);
    line.field("session", event.session, Line::display);
    line.field("message", event.message, Line::display);
    line.field("listener", event.listener, Line::address);
    line.field("peer", event.peer, Line::address);
    line.field("proxy", event.proxy, Line::address);
    line.field("helo", event.helo, Line::string);
    line.field("tls", event.tls, Line::string);
    line.field("certificate", event.certificate, Line::string);
    line.field("user", event.user, Line::string);
    line.field("mechanism", event.mechanism, Line::string);
    line.field("from", event.from, Line::string);
    let to = Some(event.to).filter(|to| !matches!(to, Addressees::None));
    line.field("to", to, Line::addressees);
    line.field("size", event.size, Line::number);
    line.field("site", event.site, Line::string);
    line.field("domain", event.domain, Line::string);
    line.field("list", event.list, Line::string);
    line.field("attempts", event.attempts.map(u64::from), Line::number);
    line.field("reply", event.reply, Line::string);
    line.field("reason", event.reason, Line::string);
    line.field("action", event.action, Line::string);
    line.field("score", event.score, Line::score);
    line.field("causes", event.causes, Line::causes);
    line.field("require_tls", event.require_tls, Line::boolean);
    line.field("soft_bounce", event.soft_bounce, Line::boolean);
    line.field("delay_ms", event.delay_ms, Line::number);
    line.field("next_attempt", event.next_attempt, Line::display);
    line.field("addresses", event.addresses, Line::string);
    out.extend_from_slice(b"}\n");
}

struct Line<'a>(&'a mut Vec<u8>);

impl Line<'_> {
    /// A name that needs no escape, and its value if there is one.
    #[inline]
    fn field<T>(&mut self, name: &'static str, value: Option<T>, write: impl Fn(&mut Self, T)) {
        if let Some(value) = value {
            self.0.extend_from_slice(b",\"");
            self.0.extend_from_slice(name.as_bytes());
            self.0.extend_from_slice(b"\":");
            write(self, value);
        }
    }

    fn string(&mut self, text: &str) {
        // Without an early end the compiler looks at 16 octets and more at a time.
        let needs_escape = |octet: u8| octet < b' ' || octet == b'"' || octet == b'\\';
        if text.bytes().fold(false, |found, octet| found | needs_escape(octet)) {
            return serde_json::to_writer(&mut *self.0, text)
                .expect("a string is JSON and a vector takes all octets");
        }
        self.0.push(b'"');
        self.0.extend_from_slice(text.as_bytes());
        self.0.push(b'"');
    }

    /// What prints without anything that needs an escape.
    fn display(&mut self, value: impl Display) {
        write!(self.0, "\"{value}\"").expect("a vector takes all octets");
    }

    fn address(&mut self, address: SocketAddr) {
        let SocketAddr::V4(address) = address else { return self.display(address) };
        self.0.push(b'"');
        for (place, octet) in address.ip().octets().into_iter().enumerate() {
            if place > 0 {
                self.0.push(b'.');
            }
            self.number(octet.into());
        }
        self.0.push(b':');
        self.number(address.port().into());
        self.0.push(b'"');
    }

    fn boolean(&mut self, value: bool) {
        self.0.extend_from_slice(if value { b"true" } else { b"false" });
    }

    /// A score prints as a number of JSON does.
    fn score(&mut self, score: Score) {
        write!(self.0, "{score}").expect("a vector takes all octets");
    }

    /// The findings that did something: what they are called and what they did.
    fn causes(&mut self, findings: &[Finding]) {
        self.0.push(b'[');
        let mut is_first = true;
        for finding in findings.iter().filter(|finding| finding.counts()) {
            if !std::mem::take(&mut is_first) {
                self.0.push(b',');
            }
            self.string(&finding.to_string());
        }
        self.0.push(b']');
    }

    fn number(&mut self, number: u64) {
        let mut digits = [0; 20];
        let mut first = digits.len();
        let mut left = number;
        loop {
            first -= 1;
            digits[first] = b'0' + (left % 10) as u8;
            left /= 10;
            if left == 0 {
                break;
            }
        }
        self.0.extend_from_slice(&digits[first..]);
    }

    fn addressees(&mut self, to: Addressees<'_>) {
        fn path(recipient: &Recipient) -> &str {
            recipient.path.as_str()
        }
        match to {
            Addressees::None => self.list(std::iter::empty()),
            Addressees::One(address) => self.list(std::iter::once(address)),
            Addressees::Texts(addresses) => self.list(addresses.iter().map(String::as_str)),
            Addressees::Words(addresses) => self.list(addresses.iter().copied()),
            Addressees::All(recipients) => self.list(recipients.iter().map(path)),
            Addressees::Some(recipients, places) => {
                let found = places.iter().filter_map(|&place| recipients.get(usize::from(place)));
                self.list(found.map(path));
            }
        }
    }

    fn list<'a>(&mut self, texts: impl Iterator<Item = &'a str>) {
        self.0.push(b'[');
        for (place, text) in texts.enumerate() {
            if place > 0 {
                self.0.push(b',');
            }
            self.string(text);
        }
        self.0.push(b']');
    }
}
