//! Holds a dialogue against what happened, and the ways to play one against each other.

use std::fmt::Write as _;

use mailrace::message::{BodyKind, MailParameters, Notify, Recipient, Ret};

use super::format::{Action, Claim, Dialogue};
use super::machine::{Machine, Message};
use super::settings::Settings;

/// The replies of a server, as they come in.
#[derive(Default)]
pub struct Replies {
    text: Vec<u8>,
    read: usize,
}

impl Replies {
    /// More of them.
    pub fn receive(&mut self, octets: &[u8]) {
        self.text.extend_from_slice(octets);
    }

    /// The lines of the next reply, if it is whole.
    pub fn next(&mut self) -> Option<Result<Vec<String>, String>> {
        let mut lines = Vec::new();
        let mut rest = &self.text[self.read..];
        loop {
            let end = rest.iter().position(|&octet| octet == b'\n')?;
            let (line, after) = rest.split_at(end + 1);
            rest = after;
            let line = match well_formed(line) {
                Ok(line) => line,
                Err(wrong) => return Some(Err(wrong)),
            };
            let is_last = line.as_bytes().get(3) != Some(&b'-');
            lines.push(line);
            if is_last {
                self.read = self.text.len() - rest.len();
                return Some(Ok(lines));
            }
        }
    }

    /// What has come and was not looked at.
    pub fn unread(&self) -> &[u8] {
        &self.text[self.read..]
    }
}

/// A line of a reply without its CRLF, if RFC 5321 section 4.2 and our own bound allow it.
pub fn well_formed(line: &[u8]) -> Result<String, String> {
    let wrong = |what: &str| format!("{what}: {}", line.escape_ascii());
    let text = line.strip_suffix(b"\r\n").ok_or_else(|| wrong("a reply without CRLF"))?;
    if line.len() > REPLY_LINE {
        return Err(wrong("a reply that is too long"));
    }
    if !text.iter().all(|octet| (b' '..=b'~').contains(octet)) {
        return Err(wrong("a reply with an octet that is not printable ASCII"));
    }
    let code = matches!(text, [b'2'..=b'5', b'0'..=b'5', b'0'..=b'9', b' ' | b'-', _, ..]);
    // An empty challenge of AUTH has no text (RFC 4954 section 4).
    if !code && text != b"334 " {
        return Err(wrong("a reply without a code"));
    }
    Ok(String::from_utf8_lossy(text).into_owned())
}

/// Plays a dialogue against the pure server, a read for each `C:` line.
///
/// # Errors
/// The line that does not hold, and what happened instead.
pub fn play(dialogue: &Dialogue) -> Result<Machine, String> {
    let mut machine = Machine::new(&Settings::of(dialogue));
    let mut replies = Replies::default();
    let (mut replies_seen, mut client_closed, mut server_closes) = (0, false, false);
    let mut messages = Messages::default();
    for step in &dialogue.steps {
        replies.receive(&machine.replies[replies_seen..]);
        replies_seen = machine.replies.len();
        let held = match &step.action {
            Action::Send(octets) => {
                assert!(!client_closed, "{}: sends after it has closed", dialogue.name);
                machine.receive(octets);
                Ok(())
            }
            Action::Reply { times, lines, last } => (0..*times).try_for_each(|_| {
                let reply = replies.next().ok_or("there is no reply")??;
                reply_is(&reply, lines, last)
            }),
            Action::Silence => silent(&replies),
            Action::ClientCloses => {
                client_closed = true;
                Ok(())
            }
            Action::ServerCloses => {
                server_closes = true;
                machine.closed.then_some(()).ok_or("the server has not closed".to_owned())
            }
            Action::Delivered(claim) => messages.holds(claim, &machine.messages),
        };
        held.map_err(|wrong| format!("{}.txt:{}: {wrong}", dialogue.name, step.line))?;
    }
    replies.receive(&machine.replies[replies_seen..]);
    let at_end = silent(&replies)
        .and_then(|()| messages.holds(&Claim::None, &machine.messages))
        .and_then(|()| match machine.closed == server_closes {
            true => Ok(()),
            false => Err("the server has closed".to_owned()),
        });
    at_end.map_err(|wrong| format!("{}.txt: at the end: {wrong}", dialogue.name))?;
    Ok(machine)
}

/// Plays only what the client says, cut into reads at these places, and compares everything that
/// can be seen with another play.
///
/// # Errors
/// What differs.
pub fn play_cut(
    dialogue: &Dialogue,
    pieces: impl Iterator<Item = usize>,
    expected: &Machine,
) -> Result<(), String> {
    let octets = dialogue.client_octets();
    let mut machine = Machine::new(&Settings::of(dialogue));
    let mut rest = octets.as_slice();
    for piece in pieces {
        let (now, later) = rest.split_at(piece.min(rest.len()));
        machine.receive(now);
        rest = later;
    }
    machine.receive(rest);
    same(&machine, expected)
}

/// Whether two sessions look alike from outside.
pub fn same(machine: &Machine, expected: &Machine) -> Result<(), String> {
    if machine.replies != expected.replies {
        let differ = |(a, b): (&u8, &u8)| a != b;
        let common = machine.replies.iter().zip(&expected.replies).position(differ);
        let from =
            common.unwrap_or(machine.replies.len().min(expected.replies.len())).saturating_sub(80);
        let show = |replies: &[u8]| replies[from..].iter().take(240).copied().collect::<Vec<u8>>();
        return Err(format!(
            "other replies: {} instead of {}",
            show(&machine.replies).escape_ascii(),
            show(&expected.replies).escape_ascii()
        ));
    }
    if machine.messages != expected.messages {
        return Err("other messages".to_owned());
    }
    if machine.closed != expected.closed {
        return Err(format!("closed: {}", machine.closed));
    }
    Ok(())
}

fn silent(replies: &Replies) -> Result<(), String> {
    match replies.unread() {
        [] => Ok(()),
        unread => Err(format!("unexpected: {}", unread.escape_ascii())),
    }
}

/// Whether a reply is what a dialogue says: its last line, and lines that stand within.
pub fn reply_is(reply: &[String], lines: &[String], last: &str) -> Result<(), String> {
    let (end, inner) = reply.split_last().expect("a reply has a line");
    if !matches(last, end) {
        return Err(format!("expected `{last}`, not `{end}`"));
    }
    match lines.iter().find(|line| !inner.iter().any(|found| matches(line, found))) {
        Some(missing) => Err(format!("expected a line `{missing}` in {inner:?}")),
        None => Ok(()),
    }
}

/// Whether a text is as the pattern, in which `*` stands for anything.
pub fn matches(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((front, rest)) => text.strip_prefix(front).is_some_and(|text| {
            (0..=text.len()).any(|at| text.is_char_boundary(at) && matches(rest, &text[at..]))
        }),
    }
}

/// Where the `=` lines of a dialogue stand.
#[derive(Default)]
struct Messages {
    /// Messages looked at; the last of them is the one that claims are about.
    taken: usize,
    /// Recipients of that one that were named.
    recipients: usize,
}

impl Messages {
    fn holds(&mut self, claim: &Claim, messages: &[Message]) -> Result<(), String> {
        self.all_recipients_named(claim, messages)?;
        match claim {
            Claim::None if self.taken < messages.len() => {
                return Err(format!("{} messages more", messages.len() - self.taken));
            }
            Claim::None => return Ok(()),
            Claim::Message | Claim::From(_) => {
                self.taken += 1;
                self.recipients = 0;
            }
            _ => {}
        }
        let message = self.taken.checked_sub(1).and_then(|place| messages.get(place));
        let message = message.ok_or("no message was accepted")?;
        match claim {
            Claim::None | Claim::Message => Ok(()),
            Claim::From(from) => equal(message.envelope.reverse_path.as_str(), from),
            Claim::To(to) => {
                self.recipients += 1;
                let recipient = message.envelope.recipients.get(self.recipients - 1);
                equal(&recipient.map_or(String::new(), written), to)
            }
            Claim::Parameters(parameters) => {
                equal(&written_parameters(&message.envelope.parameters), parameters)
            }
            Claim::Body(body) => {
                equal(&message.body.escape_ascii().to_string(), &body.escape_ascii().to_string())
            }
            Claim::Octets(octets) => equal(&message.body.len().to_string(), &octets.to_string()),
        }
    }

    /// A dialogue that names recipients names them all.
    fn all_recipients_named(&self, claim: &Claim, messages: &[Message]) -> Result<(), String> {
        let leaves = matches!(claim, Claim::None | Claim::Message | Claim::From(_));
        let current = self.taken.checked_sub(1).and_then(|place| messages.get(place));
        let Some(message) = current.filter(|_| leaves && self.recipients > 0) else {
            return Ok(());
        };
        let named = self.recipients.to_string();
        equal(
            &format!("{} recipients", message.envelope.recipients.len()),
            &format!("{named} recipients"),
        )
    }
}

fn equal(found: &str, expected: &str) -> Result<(), String> {
    if found == expected { Ok(()) } else { Err(format!("expected `{expected}`, not `{found}`")) }
}

/// A recipient as a dialogue writes it.
fn written(recipient: &Recipient) -> String {
    let mut text = recipient.path.as_str().to_owned();
    if recipient.notify.is_given() {
        let events =
            [(Notify::SUCCESS, "SUCCESS"), (Notify::FAILURE, "FAILURE"), (Notify::DELAY, "DELAY")];
        let given = events.iter().filter(|(event, _)| recipient.notify.0 & event.0 != 0);
        let names: Vec<&str> = given.map(|(_, name)| *name).collect();
        let names = if names.is_empty() { "NEVER".to_owned() } else { names.join(",") };
        write!(text, " NOTIFY={names}").expect("a string takes all text");
    }
    if let Some(orcpt) = &recipient.orcpt {
        write!(text, " ORCPT={orcpt}").expect("a string takes all text");
    }
    text
}

/// The parameters of MAIL as a dialogue writes them.
fn written_parameters(parameters: &MailParameters) -> String {
    let mut words = Vec::new();
    if parameters.body == BodyKind::EightBitMime {
        words.push("BODY=8BITMIME".to_owned());
    }
    if parameters.smtputf8 {
        words.push("SMTPUTF8".to_owned());
    }
    match parameters.ret {
        Some(Ret::Full) => words.push("RET=FULL".to_owned()),
        Some(Ret::Headers) => words.push("RET=HDRS".to_owned()),
        None => {}
    }
    words.extend(parameters.envid.iter().map(|envid| format!("ENVID={envid}")));
    words.join(" ")
}

/// RFC 5321 section 4.5.3.1.5.
const REPLY_LINE: usize = 512;

#[test]
fn a_star_stands_for_anything() {
    for (pattern, text) in [("250 *", "250 x"), ("*", ""), ("a*b*c", "aXbYbZc"), ("a", "a")] {
        assert!(matches(pattern, text), "{pattern} {text}");
    }
    for (pattern, text) in [("250 *", "251 x"), ("a*b", "a"), ("a", "ab"), ("", "a")] {
        assert!(!matches(pattern, text), "{pattern} {text}");
    }
}

#[test]
fn replies_that_break_the_rules_are_seen() {
    assert!(well_formed(b"250 Ok\r\n").is_ok());
    let long = [b"250 ".to_vec(), b"x".repeat(507), b"\r\n".to_vec()].concat();
    assert!(well_formed(&long).is_err());
    let bad: [&[u8]; 7] = [
        b"250 Ok\n",
        b"25 Ok\r\n",
        b"250\r\n",
        b"150 a\r\n",
        b"250 \xc3\xa9\r\n",
        b"250_a\r\n",
        b"\r\n",
    ];
    for line in bad {
        assert!(well_formed(line).is_err(), "{}", line.escape_ascii());
    }
}
