//! Records, envelopes and bodies in the forms that the tools write.

use std::io::{self, Write};

use super::super::format::message::{self, StoredMessage};
use super::super::format::outcome::{StoredDefer, StoredDone};
use super::super::format::record::{Kind, RecordView};
use super::Known;
use crate::message::BodyFlags;
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
                    "MESSAGE {} octets, {} recipients, {:?}",
                    stored.summary.octets,
                    stored.envelope.recipients.len(),
                    stored.durability
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
                    write!(f, "DONE {:?} of segment {}{last}", done.recipients, done.segment)
                }
                Err(error) => write!(f, "DONE: {error}"),
            },
            Kind::Defer => match StoredDefer::decode(record) {
                Ok(defer) => write!(
                    f,
                    "DEFER {:?} of segment {}, {:?}, attempt {}, next {}{}: {}",
                    defer.recipients,
                    defer.segment,
                    defer.state,
                    defer.attempts,
                    defer.next_attempt_unix_ms,
                    if defer.delay_told { ", told of the delay" } else { "" },
                    defer.reply.escape_debug()
                ),
                Err(error) => write!(f, "DEFER: {error}"),
            },
            other => write!(f, "{other:?}"),
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
