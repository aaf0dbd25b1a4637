//! Builds the notice that an originator gets for recipients that are given up, late, or
//! delivered: a multipart/report of three parts (RFC 6522) with the fields of RFC 3464, or of
//! RFC 6533 where an address is not ASCII.
//!
//! It stands behind [`settlement`](crate::delivery::settlement), which says whom a notice is
//! about, and what it builds is a message like any other: it goes to the log and the queue.
//! Pure: the clock and the id are arguments, and the same arguments give the same octets.
//!
//! Invariants: nobody gets a notice for a null reverse-path, or for a recipient whose NOTIFY does
//! not ask for it, so that no loop of notices can arise (RFC 5321 section 6.1, RFC 3461 section
//! 6.2); lines end in CRLF and have at most 998 octets; nothing that the original's originator,
//! its recipients or a peer wrote can add a field or a part; size is bounded for each recipient
//! and for what is returned.  It cannot fail.  When one is due is not decided here.

mod returned;
mod status;
#[cfg(test)]
mod tests;
mod text;

pub use status::original_address;

use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimePrinter;

use crate::delivery::outcome::{BounceCause, Reason};
use crate::message::{BodyKind, Envelope, MailParameters, MessageId, Notify, Recipient, Ret};
use crate::smtp::address::{ForwardPath, Mailbox, ReversePath};
use crate::smtp::code::EnhancedCode;
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

/// What a notice tells, of all its recipients alike (`Action` of RFC 3464 section 2.3.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `failed`.
    Failure,
    /// `delayed`.
    Delay {
        /// The end of the message's lifetime, in milliseconds since 1970 UTC.
        until_unix_ms: u64,
    },
    /// `delivered`: it is where the recipient's mail is kept.
    Delivery,
    /// `relayed`: it is with a next hop that knows nothing of notices, so this is the last word.
    Relay,
}

/// A recipient that a notice is about.
#[derive(Debug, Clone, Copy)]
pub struct ToldRecipient<'a> {
    /// Its index in the envelope.
    pub index: u16,
    /// What was said last: why it is given up, or what delays it.
    pub cause: Option<Cause<'a>>,
    /// The next hop's name, or address as a literal, if there was one.
    pub remote_mta: Option<&'a str>,
    /// When it was last tried, in milliseconds since 1970 UTC.
    pub last_attempt_unix_ms: Option<u64>,
}

/// Why a recipient is given up or late.
#[derive(Debug, Clone, Copy)]
pub enum Cause<'a> {
    /// It failed.
    Bounced(&'a BounceCause),
    /// It waits.
    Waits(&'a Reason),
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
    told: ToldRecipient<'a>,
}

impl Kind {
    /// Whether the originator of `envelope` is to hear of this recipient (RFC 3461 section 4.1).
    pub fn is_wanted(self, envelope: &Envelope, index: u16) -> bool {
        let Some(recipient) = envelope.recipients.get(usize::from(index)) else { return false };
        envelope.reverse_path != ReversePath::Null
            && match self {
                Kind::Failure => recipient.notify.on_failure(),
                Kind::Delay { .. } => recipient.notify.on_delay(),
                Kind::Delivery | Kind::Relay => recipient.notify.on_success(),
            }
    }
}

/// The notice for these recipients of a message, or `None` where nobody wants one.
pub fn notice(
    kind: Kind,
    reporter: &Reporter<'_>,
    original: &Original<'_>,
    told: &[ToldRecipient<'_>],
) -> Option<Notice> {
    let ReversePath::Mailbox(originator) = &original.envelope.reverse_path else {
        return None;
    };
    let wanted = told.iter().filter(|told| kind.is_wanted(original.envelope, told.index));
    let shown: Vec<Shown<'_>> = wanted
        .map(|&told| {
            let recipient = &original.envelope.recipients[usize::from(told.index)];
            Shown { recipient, told }
        })
        .collect();
    if shown.is_empty() {
        return None;
    }
    let content = assemble(kind, reporter, original, originator, &shown);
    let envelope = envelope(originator, original.envelope, &content);
    Some(Notice { envelope, content })
}

impl<'a> Cause<'a> {
    fn reason(self) -> Option<&'a Reason> {
        match self {
            Cause::Bounced(cause) => cause.reason(),
            Cause::Waits(reason) => Some(reason),
        }
    }
}

impl Shown<'_> {
    /// The status of RFC 3463; its class has to agree with the action (RFC 3464 section 2.3.4).
    fn status(&self, kind: Kind) -> EnhancedCode {
        let own = |class, subject, detail| {
            EnhancedCode::new(class, subject, detail).expect("a status of RFC 3463")
        };
        match (kind, self.told.cause) {
            (Kind::Delivery | Kind::Relay, _) => own(2, 0, 0),
            (Kind::Failure, Some(Cause::Bounced(cause))) => cause.status(),
            (Kind::Failure, _) => own(5, 0, 0),
            // What a refusal that only `soft_bounce` makes a delay said is its reply's business.
            (Kind::Delay { .. }, Some(Cause::Waits(reason))) if reason.status().class() == 4 => {
                reason.status()
            }
            (Kind::Delay { .. }, _) => own(4, 0, 0),
        }
    }
}

/// From nobody, and with NOTIFY=NEVER, which says the same to next hops (RFC 3461 section 6.2).
/// Where the message required TLS, its notice does too (RFC 8689 section 5).
fn envelope(originator: &Mailbox, original: &Envelope, content: &[u8]) -> Envelope {
    let body = if content.is_ascii() { BodyKind::SevenBit } else { BodyKind::EightBitMime };
    Envelope {
        reverse_path: ReversePath::Null,
        parameters: MailParameters {
            body,
            smtputf8: !originator.is_ascii(),
            require_tls: original.parameters.require_tls,
            ..Default::default()
        },
        recipients: vec![Recipient {
            path: ForwardPath::Mailbox(originator.clone()),
            notify: Notify::NEVER,
            orcpt: None,
        }],
    }
}

fn assemble(
    kind: Kind,
    reporter: &Reporter<'_>,
    original: &Original<'_>,
    originator: &Mailbox,
    shown: &[Shown<'_>],
) -> Vec<u8> {
    let returned = Returned::of(kind, original);
    let text = text::part(kind, reporter, shown, &returned);
    let status = status::part(kind, reporter, original, shown);
    let parts: [(&str, &[u8]); 3] = [
        ("text/plain; charset=utf-8", text.as_bytes()),
        (status.media_type, status.fields.as_bytes()),
        (returned.media_type, &returned.octets),
    ];
    let boundary = boundary(reporter.id, &parts.map(|(_, octets)| octets));
    let mut content = header(kind, reporter, originator, &boundary).into_bytes();
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

fn header(kind: Kind, reporter: &Reporter<'_>, originator: &Mailbox, boundary: &str) -> String {
    let Reporter { hostname, id, now_unix_ms } = reporter;
    let subject = text::subject(kind);
    // RFC 3834 section 5: a responder that minds Auto-Submitted does not answer this.
    format!(
        "From: Mail Delivery System <MAILER-DAEMON@{hostname}>\r\n\
         To: <{originator}>\r\n\
         Subject: {subject}\r\n\
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

/// Whether the originator gets the whole message back: RET is about failures and about nothing
/// else (RFC 3461 section 4.3).
fn wants_all(kind: Kind, envelope: &Envelope) -> bool {
    // Whatever RET says, what required TLS is not sent back (RFC 8689 section 5).
    let MailParameters { ret, require_tls, .. } = &envelope.parameters;
    kind == Kind::Failure && *ret == Some(Ret::Full) && !require_tls
}
