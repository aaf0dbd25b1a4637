//! Builds the failure notice that an originator gets for the recipients that are given up: a
//! multipart/report of three parts (RFC 6522) with the fields of RFC 3464, or of RFC 6533 where
//! an address is not ASCII.
//!
//! It stands behind [`outcome`](crate::delivery::outcome), and what it builds is a message like
//! any other: it goes to the log and the queue.  Pure: the clock and the id are arguments, and
//! the same arguments give the same octets.
//!
//! Invariants: nobody gets a notice for a null reverse-path, or for a recipient whose NOTIFY does
//! not ask for it, so that no loop of notices can arise (RFC 5321 section 6.1, RFC 3461 section
//! 6.2); lines end in CRLF and have at most 998 octets; nothing that the original's originator, its recipients or
//! a peer wrote can add a field or a part; size is bounded for each recipient and for what is
//! returned.  It cannot fail.  What it does not do: notices of delay and of success.

mod returned;
mod status;
#[cfg(test)]
mod tests;
mod text;

use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimePrinter;

use crate::delivery::outcome::BounceCause;
use crate::message::{BodyKind, Envelope, MailParameters, MessageId, Notify, Recipient, Ret};
use crate::smtp::address::{ForwardPath, Mailbox, ReversePath};
use returned::Returned;

/// More recipients are told in further notices: the caller cuts its list.
pub const RECIPIENTS_PER_NOTICE: usize = 1_000;
/// The most of the original that a notice returns; of a longer one, the header only.
pub const RETURNED_OCTETS: usize = 64 * 1024;

/// Who reports, and when.
#[derive(Debug, Clone, Copy)]
pub struct Reporter<'a> {
    /// Our host name.
    pub hostname: &'a str,
    /// The id under which the notice is stored.
    pub id: MessageId,
    /// In milliseconds since 1970 UTC.
    pub now_unix_ms: u64,
}

/// The message that failed.
#[derive(Debug, Clone, Copy)]
pub struct Original<'a> {
    /// Its envelope.
    pub envelope: &'a Envelope,
    /// When it was accepted, in milliseconds since 1970 UTC.
    pub accepted_unix_ms: u64,
    /// Trace header and body without stuffed dots, or their first [`RETURNED_OCTETS`] and more.
    pub content: &'a [u8],
    /// Whether `content` is all of it.
    pub complete: bool,
}

/// A recipient that is given up.
#[derive(Debug, Clone, Copy)]
pub struct FailedRecipient<'a> {
    /// Its index in the envelope.
    pub index: u16,
    /// Why.
    pub cause: &'a BounceCause,
    /// The next hop's name, or address, if there was one.
    pub remote_mta: Option<&'a str>,
    /// When it was last tried, in milliseconds since 1970 UTC.
    pub last_attempt_unix_ms: Option<u64>,
}

/// A notice, ready to be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// From nobody to the originator.
    pub envelope: Envelope,
    /// The message in its BDAT form, without a trace header.
    pub content: Vec<u8>,
}

/// A recipient as the parts of a notice show it.
struct Shown<'a> {
    recipient: &'a Recipient,
    failed: FailedRecipient<'a>,
}

/// The notice for these recipients of a message, or `None` where nobody wants one.
pub fn failure_notice(
    reporter: &Reporter<'_>,
    original: &Original<'_>,
    failed: &[FailedRecipient<'_>],
) -> Option<Notice> {
    let ReversePath::Mailbox(originator) = &original.envelope.reverse_path else {
        return None;
    };
    let shown: Vec<Shown<'_>> = failed
        .iter()
        .filter_map(|&failed| {
            let recipient = original.envelope.recipients.get(usize::from(failed.index))?;
            recipient.notify.on_failure().then_some(Shown { recipient, failed })
        })
        .collect();
    if shown.is_empty() {
        return None;
    }
    let content = assemble(reporter, original, originator, &shown);
    Some(Notice { envelope: envelope(originator, &content), content })
}

/// From nobody, and with NOTIFY=NEVER, which says the same to next hops (RFC 3461 section 6.2).
fn envelope(originator: &Mailbox, content: &[u8]) -> Envelope {
    let body = if content.is_ascii() { BodyKind::SevenBit } else { BodyKind::EightBitMime };
    Envelope {
        reverse_path: ReversePath::Null,
        parameters: MailParameters { body, smtputf8: !originator.is_ascii(), ..Default::default() },
        recipients: vec![Recipient {
            path: ForwardPath::Mailbox(originator.clone()),
            notify: Notify::NEVER,
            orcpt: None,
        }],
    }
}

fn assemble(
    reporter: &Reporter<'_>,
    original: &Original<'_>,
    originator: &Mailbox,
    shown: &[Shown<'_>],
) -> Vec<u8> {
    let returned = Returned::of(original);
    let text = text::part(reporter, shown, &returned);
    let status = status::part(reporter, original, shown);
    let parts: [(&str, &[u8]); 3] = [
        ("text/plain; charset=utf-8", text.as_bytes()),
        (status.media_type, status.fields.as_bytes()),
        (returned.media_type, &returned.octets),
    ];
    let boundary = boundary(reporter.id, &parts.map(|(_, octets)| octets));
    let mut content = header(reporter, originator, &boundary).into_bytes();
    for (media_type, octets) in parts {
        let encoding = if octets.is_ascii() { "7bit" } else { "8bit" };
        let head = format!(
            "\r\n--{boundary}\r\nContent-Type: {media_type}\r\n\
             Content-Transfer-Encoding: {encoding}\r\n\r\n"
        );
        content.extend_from_slice(head.as_bytes());
        content.extend_from_slice(octets);
    }
    content.extend_from_slice(format!("\r\n--{boundary}--\r\n").as_bytes());
    content
}

fn header(reporter: &Reporter<'_>, originator: &Mailbox, boundary: &str) -> String {
    let Reporter { hostname, id, now_unix_ms } = reporter;
    // RFC 3834 section 5: a responder that minds Auto-Submitted does not answer this.
    format!(
        "From: Mail Delivery System <MAILER-DAEMON@{hostname}>\r\n\
         To: <{originator}>\r\n\
         Subject: Your message could not be delivered\r\n\
         Date: {}\r\n\
         Message-ID: <{id}@{hostname}>\r\n\
         Auto-Submitted: auto-replied\r\n\
         MIME-Version: 1.0\r\n\
         Content-Type: multipart/report; report-type=delivery-status;\r\n\
         \tboundary=\"{boundary}\"\r\n",
        date(*now_unix_ms),
    )
}

/// A boundary that stands in none of the parts: an original could hold one that was guessed.
fn boundary(id: MessageId, parts: &[&[u8]]) -> String {
    let free = |boundary: &String| {
        let finder = memchr::memmem::Finder::new(boundary);
        parts.iter().all(|part| finder.find(part).is_none())
    };
    (0u64..)
        .map(|number| format!("=_{id}_{number}"))
        .find(free)
        .expect("finite parts do not hold every boundary")
}

/// RFC 5322 section 3.3, in UTC.
fn date(unix_ms: u64) -> String {
    let timestamp = i64::try_from(unix_ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
    // A clock that says more than the year 9999 is told as the epoch.
    DateTimePrinter::new()
        .timestamp_to_string(&timestamp.unwrap_or(Timestamp::UNIX_EPOCH))
        .expect("years from 1970 to 9999 have this form")
}

/// Appends words in lines of about 78 octets, each after `indent` but the first after `first`.
/// Control characters become spaces; a word without end is cut before 998 octets.
fn wrap(out: &mut String, first: &str, indent: &str, text: &str) {
    const WIDTH: usize = 76;
    const WORD: usize = 800;
    out.push_str(first);
    let mut column = first.chars().count();
    let mut begun = false;
    for word in text.split(|letter: char| letter.is_whitespace() || letter.is_control()) {
        let mut word = word;
        while !word.is_empty() {
            let (piece, rest) = word.split_at(word.floor_char_boundary(WORD));
            if begun && column + 1 + piece.len() > WIDTH {
                out.push_str("\r\n");
                out.push_str(indent);
                column = indent.len();
            } else if begun {
                out.push(' ');
                column += 1;
            }
            out.push_str(piece);
            column += piece.len();
            begun = true;
            word = rest;
        }
    }
    out.push_str("\r\n");
}

/// Whether the originator asked for the whole message back (RFC 3461 section 4.3).
fn wants_all(envelope: &Envelope) -> bool {
    envelope.parameters.ret == Some(Ret::Full)
}
