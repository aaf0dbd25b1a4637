//! Records, envelopes and bodies in the forms that the tools write.

use std::io::{self, Write};

use super::super::format::message::{self, StoredMessage};
use super::super::format::outcome::{DeferState, StoredDefer, StoredDone, StoredRecipients};
use super::super::format::record::{Kind, RecordView};
use super::super::{RecordPlace, SegmentNo};
use super::Known;
use crate::control::moment::Moment;
use crate::message::{BodyFlags, Durability};
use crate::smtp::address::{ForwardPath, ReversePath};

/// A message's envelope as a line of JSON.
pub(super) fn envelope_line(
    stored: &StoredMessage,
    known: &Known,
    is_complete: bool,
) -> serde_json::Value {
    let from = match &stored.envelope.reverse_path {
        ReversePath::Null => "",
        ReversePath::Mailbox(mailbox) => mailbox.as_str(),
    };
    let recipients = stored.envelope.recipients.iter().zip(0u16..).map(|(recipient, no)| {
        let address = match &recipient.path {
            ForwardPath::Postmaster => "postmaster",
            ForwardPath::Mailbox(mailbox) => mailbox.as_str(),
        };
        let is_done = known.is_ended || known.done.contains(&no);
        serde_json::json!({ "address": address, "done": is_done, "orcpt": recipient.orcpt })
    });
    serde_json::json!({
        "id": stored.id.to_string(),
        "file": format!("{}.eml", stored.id),
        "complete": is_complete,
        "from": from,
        "to": recipients.collect::<Vec<_>>(),
        "envid": stored.envelope.parameters.envid,
        "smtputf8": stored.envelope.parameters.smtputf8,
        "require_tls": stored.envelope.parameters.require_tls,
        "accepted_unix_ms": stored.origin.accepted_unix_ms,
        "client": stored.origin.client.to_string(),
        "helo": stored.origin.helo,
        "size": stored.summary.octets,
    })
}

/// A record's content in a line.
pub(super) struct Line<'a>(pub(super) &'a RecordView<'a>);

impl std::fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let record = self.0;
        match record.kind() {
            Kind::Message => match StoredMessage::decode(record) {
                Ok(stored) => write!(
                    f,
                    "MESSAGE {} octets, {} recipients, promised as {}{}",
                    stored.summary.octets,
                    stored.envelope.recipients.len(),
                    durability(&stored),
                    if stored.is_quarantined() { ", quarantined" } else { "" }
                ),
                Err(error) => write!(f, "MESSAGE: {error}"),
            },
            Kind::Chunk => {
                let index = message::chunk_index(record).unwrap_or(u32::MAX);
                write!(f, "CHUNK {index}, {} octets", record.body_length())
            }
            Kind::Done => match StoredDone::decode(record) {
                Ok(done) => {
                    let last = if done.last { ", the last" } else { "" };
                    write!(f, "DONE {}{last}{}", Whom(&done.recipients), Of(done.segment))
                }
                Err(error) => write!(f, "DONE: {error}"),
            },
            Kind::Defer => match StoredDefer::decode(record) {
                Ok(defer) => write!(
                    f,
                    "DEFER {}, {}, after attempt {}, due {}{}{}: {}",
                    Whom(&defer.recipients),
                    state(defer.state),
                    defer.attempts,
                    Moment(defer.next_attempt_unix_ms),
                    if defer.delay_told { ", told of the delay" } else { "" },
                    Of(defer.segment),
                    defer.reply.escape_debug()
                ),
                Err(error) => write!(f, "DEFER: {error}"),
            },
            Kind::Control => write!(f, "CONTROL"),
            Kind::Unknown(number) => {
                write!(f, "a record of kind {number}, unknown to this version")
            }
        }
    }
}

/// The same as an object.
pub(super) fn record_line(
    sequence: u64,
    place: RecordPlace,
    record: &RecordView<'_>,
) -> serde_json::Value {
    let mut line = serde_json::json!({
        "segment": place.segment.0,
        "offset": place.offset,
        "length": place.length,
        "sequence": sequence,
        "id": record.id().to_string(),
    });
    let content = match record.kind() {
        Kind::Message => StoredMessage::decode(record).map(|stored| {
            serde_json::json!({
                "kind": "message",
                "size": stored.summary.octets,
                "recipients": stored.envelope.recipients.len(),
                "durability": durability(&stored),
                "quarantined": stored.is_quarantined(),
            })
        }),
        Kind::Chunk => message::chunk_index(record).map(|index| {
            serde_json::json!({ "kind": "chunk", "index": index, "size": record.body_length() })
        }),
        Kind::Done => StoredDone::decode(record).map(|done| {
            serde_json::json!({
                "kind": "done",
                "of_segment": done.segment.0,
                "recipients": whom(&done.recipients),
                "last": done.last,
            })
        }),
        Kind::Defer => StoredDefer::decode(record).map(|defer| {
            serde_json::json!({
                "kind": "defer",
                "of_segment": defer.segment.0,
                "recipients": whom(&defer.recipients),
                "state": state(defer.state),
                "attempts": defer.attempts,
                "next_attempt_unix_ms": defer.next_attempt_unix_ms,
                "reply": defer.reply,
            })
        }),
        Kind::Control => Ok(serde_json::json!({ "kind": "control" })),
        Kind::Unknown(number) => Ok(serde_json::json!({ "kind": number })),
    };
    let content = content.unwrap_or_else(|error| serde_json::json!({ "error": error.to_string() }));
    if let (Some(line), serde_json::Value::Object(content)) = (line.as_object_mut(), content) {
        line.extend(content);
    }
    line
}

/// Recipients by their place in the envelope, from 0; `"all"` for all.
fn whom(recipients: &StoredRecipients) -> serde_json::Value {
    match recipients {
        StoredRecipients::All => "all".into(),
        StoredRecipients::Some(list) => list.to_vec().into(),
    }
}

fn state(state: DeferState) -> &'static str {
    match state {
        DeferState::Deferred => "deferred",
        DeferState::Held => "held",
        DeferState::Released => "released",
    }
}

fn durability(stored: &StoredMessage) -> &'static str {
    match stored.durability {
        Durability::Fsync => "fsync",
        Durability::Os => "os",
    }
}

/// Recipients for people.
struct Whom<'a>(&'a StoredRecipients);

impl std::fmt::Display for Whom<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            StoredRecipients::All => write!(f, "all recipients"),
            StoredRecipients::Some(list) => match &list[..] {
                [] => write!(f, "no recipient"),
                [one] => write!(f, "recipient {one}"),
                [first, others @ ..] => {
                    write!(f, "recipients {first}")?;
                    others.iter().try_for_each(|other| write!(f, ", {other}"))
                }
            },
        }
    }
}

/// Where the message of an outcome stands.
struct Of(SegmentNo);

impl std::fmt::Display for Of {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            SegmentNo(0) => write!(f, " (of the copy before it)"),
            segment => write!(f, " (of segment {segment})"),
        }
    }
}

/// Takes the doubled dots out of a body that came by DATA.
pub(super) struct Unstuff<'a, W> {
    out: &'a mut W,
    is_stuffed: bool,
    /// The last two octets were CRLF, or there were none.
    is_line_start: bool,
    last_is_cr: bool,
}

impl<'a, W: Write> Unstuff<'a, W> {
    pub(super) fn new(flags: BodyFlags, out: &'a mut W) -> Unstuff<'a, W> {
        let is_stuffed = flags.contains(BodyFlags::DATA | BodyFlags::LEADING_DOTS);
        Unstuff { out, is_stuffed, is_line_start: true, last_is_cr: false }
    }

    pub(super) fn write(&mut self, octets: &[u8]) -> io::Result<()> {
        if !self.is_stuffed {
            return self.out.write_all(octets);
        }
        let mut start = 0;
        for (at, &octet) in octets.iter().enumerate() {
            if self.is_line_start && octet == b'.' {
                self.out.write_all(&octets[start..at])?;
                start = at + 1;
            }
            self.is_line_start = self.last_is_cr && octet == b'\n';
            self.last_is_cr = octet == b'\r';
        }
        self.out.write_all(&octets[start..])
    }
}
