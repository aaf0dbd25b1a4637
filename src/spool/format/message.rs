//! MESSAGE and CHUNK: what was accepted.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::super::{RecordPlace, SegmentNo};
use super::record::{Kind, PutBody, RECORD_HEADER, RecordView, put_record, reseal_head};
use super::{FormatError, Put, Take};
use crate::message::{
    BodyFlags, BodyKind, BodySummary, Durability, Envelope, MailParameters, MessageId, Notify,
    Origin, Recipient, Ret,
};
use crate::smtp::address::{ForwardPath, Mailbox, ReversePath};

/// A message to be appended.
#[derive(Debug, Clone, Copy)]
pub struct NewMessage<'a> {
    /// Its stable name, given by the caller.
    pub id: MessageId,
    /// What its acknowledgement will promise.
    pub durability: Durability,
    /// Who it is from and for.
    pub envelope: &'a Envelope,
    /// Where it came from.
    pub origin: &'a Origin,
    /// What the scan of its body found; its CRC is trusted, not computed again.
    pub summary: &'a BodySummary,
    /// The trace header that goes out before the body: whole lines with CRLF, unstuffed.
    pub trace: &'a [u8],
    /// No attempt before this time, in milliseconds since 1970 UTC.
    pub not_before_unix_ms: Option<u64>,
    /// Whatever later versions add.
    pub extensions: &'a [Extension<'a>],
    /// Its octets.
    pub body: NewBody<'a>,
}

/// The octets of a message to be appended.
#[derive(Debug, Clone, Copy)]
pub enum NewBody<'a> {
    /// All of them, copied once; fastest when they begin on a boundary of 64.
    Inline(&'a [u8]),
    /// They are in the log already, in this order.
    Chunks(&'a [ChunkPlace]),
}

/// A typed value beside the fixed parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extension<'a> {
    /// What it is; with [`Self::MUST_UNDERSTAND`] no reader may pass it over.
    pub kind: u16,
    /// Its octets.
    pub value: &'a [u8],
}

impl Extension<'_> {
    /// In [`Self::kind`]: a reader that does not know it refuses the record.
    pub const MUST_UNDERSTAND: u16 = 0x8000;
    /// The message waits for an operator, whatever its routes say; without a value.  A reader that
    /// passed it over would send what was kept back.
    pub const QUARANTINED: u16 = Self::MUST_UNDERSTAND | 1;
    /// Why the edge filter judged the message as it did, as JSON: for people, and for no decision.
    pub const EXPLANATION: u16 = 2;
}

/// Where a part of a large body stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkPlace {
    /// Its CHUNK record.
    pub place: RecordPlace,
    /// Octets of body in it.
    pub octets: u32,
    /// CRC-32C of those.
    pub crc32c: u32,
}

/// A MESSAGE that was read, without its octets.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)] // As in `NewMessage`.
pub struct StoredMessage {
    pub id: MessageId,
    pub durability: Durability,
    pub envelope: Envelope,
    pub origin: Origin,
    pub summary: BodySummary,
    pub trace: Box<[u8]>,
    pub not_before_unix_ms: Option<u64>,
    pub extensions: StoredExtensions,
    pub body: StoredBody,
}

impl StoredMessage {
    /// Whether the message waits for an operator, whatever its routes say.
    pub fn is_quarantined(&self) -> bool {
        self.extension(Extension::QUARANTINED).is_some()
    }

    /// The value of an extension that the message has.
    pub fn extension(&self, wanted: u16) -> Option<&[u8]> {
        let is_it = |(kind, _): &&(u16, Box<[u8]>)| *kind == wanted;
        self.extensions.iter().find(is_it).map(|(_, value)| &**value)
    }
}

/// Kind and octets of each [`Extension`] that was read.
pub type StoredExtensions = Vec<(u16, Box<[u8]>)>;

/// Where the octets of a message are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoredBody {
    /// In the record itself: [`RecordView::body`].
    Inline,
    /// In these CHUNK records.
    Chunks(Box<[ChunkPlace]>),
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct Fixed {
    octets: U64,
    accepted_unix_ms: U64,
    not_before_unix_ms: U64,
    crc32c: U32,
    longest_line: U32,
    chunk_count: U32,
    trace_length: U32,
    recipient_count: U32,
    body_flags: U16,
    durability: u8,
    parameters: u8,
}

/// A chunk's entry in the list: segment, offset, length, octets, CRC.
const CHUNK_ENTRY: usize = 20;
/// In a length of 16 bits: nothing was given, which is not the same as empty.
const NOT_GIVEN: u16 = u16::MAX;

const EIGHT_BIT_MIME: u8 = 1;
const SMTPUTF8: u8 = 2;
const RET_FULL: u8 = 4;
const RET_HEADERS: u8 = 8;
const REQUIRE_TLS: u8 = 16;

impl NewMessage<'_> {
    /// Writes the record; nothing when `out` is too short, a part is longer than its field or the
    /// body is not the one that the summary is of.
    pub(crate) fn put(&self, out: &mut [u8]) -> Option<usize> {
        let body = match self.body {
            NewBody::Inline(octets) => {
                (octets.len() as u64 == self.summary.octets).then_some(())?;
                PutBody::Copy(octets, self.summary.crc32c)
            }
            NewBody::Chunks(chunks) => {
                let octets: u64 = chunks.iter().map(|chunk| u64::from(chunk.octets)).sum();
                (octets == self.summary.octets).then_some(())?;
                PutBody::Copy(&[], 0)
            }
        };
        let fixed = self.fixed()?;
        self.fits_its_fields().then_some(())?;
        put_record(out, Kind::Message, self.id, body, |put| {
            put.bytes(fixed.as_bytes());
            put.bytes(self.trace);
            if let NewBody::Chunks(chunks) = self.body {
                chunks.iter().for_each(|chunk| put_chunk_place(put, chunk));
            }
            put_origin(put, self.origin);
            put_envelope(put, self.envelope);
            for extension in self.extensions {
                put.u16(extension.kind);
                put.u32(extension.value.len() as u32);
                put.bytes(extension.value);
            }
        })
    }

    fn fixed(&self) -> Option<Fixed> {
        let parameters = &self.envelope.parameters;
        let chunk_count = match self.body {
            NewBody::Inline(_) => 0,
            NewBody::Chunks(chunks) => chunks.len(),
        };
        Some(Fixed {
            octets: self.summary.octets.into(),
            accepted_unix_ms: self.origin.accepted_unix_ms.into(),
            not_before_unix_ms: self.not_before_unix_ms.unwrap_or(0).into(),
            crc32c: self.summary.crc32c.into(),
            longest_line: self.summary.longest_line.into(),
            chunk_count: u32::try_from(chunk_count).ok()?.into(),
            trace_length: u32::try_from(self.trace.len()).ok()?.into(),
            recipient_count: u32::try_from(self.envelope.recipients.len()).ok()?.into(),
            body_flags: self.summary.flags.0.into(),
            durability: match self.durability {
                Durability::Fsync => 0,
                Durability::Os => 1,
            },
            parameters: match parameters.body {
                BodyKind::SevenBit => 0,
                BodyKind::EightBitMime => EIGHT_BIT_MIME,
            } | if parameters.smtputf8 { SMTPUTF8 } else { 0 }
                | if parameters.require_tls { REQUIRE_TLS } else { 0 }
                | match parameters.ret {
                    None => 0,
                    Some(Ret::Full) => RET_FULL,
                    Some(Ret::Headers) => RET_HEADERS,
                },
        })
    }

    /// Whether every text is shorter than its length field can say; the edge's limits are far
    /// below, so this only guards against a caller's mistake.
    fn fits_its_fields(&self) -> bool {
        let fits = |text: &str| text.len() < NOT_GIVEN as usize;
        let envelope = self.envelope;
        fits(&self.origin.helo)
            && envelope.parameters.envid.as_deref().is_none_or(fits)
            && match &envelope.reverse_path {
                ReversePath::Null => true,
                ReversePath::Mailbox(mailbox) => fits(mailbox.as_str()),
            }
            && envelope.recipients.iter().all(|recipient| {
                recipient.orcpt.as_deref().is_none_or(fits)
                    && match &recipient.path {
                        ForwardPath::Postmaster => true,
                        ForwardPath::Mailbox(mailbox) => fits(mailbox.as_str()),
                    }
            })
    }

    /// An upper bound of what [`Self::put`] writes, in octets; for the rare record that does not
    /// fit a fresh batch.
    pub(crate) fn bytes_max(&self) -> usize {
        let text = |text: &Option<Box<str>>| text.as_deref().map_or(0, str::len);
        let envelope = self.envelope;
        let recipients: usize = envelope
            .recipients
            .iter()
            .map(|recipient| {
                let path = match &recipient.path {
                    ForwardPath::Postmaster => 0,
                    ForwardPath::Mailbox(mailbox) => mailbox.as_str().len(),
                };
                8 + path + text(&recipient.orcpt)
            })
            .sum();
        let reverse_path = match &envelope.reverse_path {
            ReversePath::Null => 0,
            ReversePath::Mailbox(mailbox) => mailbox.as_str().len(),
        };
        let body = match self.body {
            NewBody::Inline(octets) => octets.len(),
            NewBody::Chunks(chunks) => chunks.len() * CHUNK_ENTRY,
        };
        let extensions: usize =
            self.extensions.iter().map(|extension| 6 + extension.value.len()).sum();
        512 + self.trace.len()
            + self.origin.helo.len()
            + reverse_path
            + text(&envelope.parameters.envid)
            + recipients
            + extensions
            + body
    }
}

fn put_chunk_place(put: &mut Put<'_>, chunk: &ChunkPlace) {
    let RecordPlace { segment, offset, length } = chunk.place;
    for value in [segment.0, offset, length, chunk.octets, chunk.crc32c] {
        put.u32(value);
    }
}

fn put_origin(put: &mut Put<'_>, origin: &Origin) {
    put_socket_address(put, origin.client);
    put_socket_address(put, origin.listener);
    put_text(put, Some(&origin.helo));
}

fn put_envelope(put: &mut Put<'_>, envelope: &Envelope) {
    match &envelope.reverse_path {
        ReversePath::Null => put.u8(0),
        ReversePath::Mailbox(mailbox) => {
            put.u8(1);
            put_mailbox(put, mailbox);
        }
    }
    put_text(put, envelope.parameters.envid.as_deref());
    for recipient in &envelope.recipients {
        put.u8(recipient.notify.0);
        match &recipient.path {
            ForwardPath::Postmaster => put.u8(0),
            ForwardPath::Mailbox(mailbox) => {
                put.u8(1);
                put_mailbox(put, mailbox);
            }
        }
        put_text(put, recipient.orcpt.as_deref());
    }
}

fn put_mailbox(put: &mut Put<'_>, mailbox: &Mailbox) {
    put.u16(mailbox.at());
    put_text(put, Some(mailbox.as_str()));
}

fn put_text(put: &mut Put<'_>, text: Option<&str>) {
    match text {
        None => put.u16(NOT_GIVEN),
        Some(text) => {
            put.u16(text.len() as u16);
            put.bytes(text.as_bytes());
        }
    }
}

fn put_socket_address(put: &mut Put<'_>, address: SocketAddr) {
    put.u16(address.port());
    match address {
        SocketAddr::V4(address) => {
            put.u8(4);
            put.bytes(&address.ip().octets());
        }
        SocketAddr::V6(address) => {
            put.u8(6);
            put.bytes(&address.ip().octets());
            put.u32(address.scope_id());
        }
    }
}

/// A chunk's head behind the fixed header: its number within the body, from 0.
pub(crate) fn put_chunk(
    out: &mut [u8],
    id: MessageId,
    index: u32,
    octets: u32,
    crc32c: u32,
) -> Option<usize> {
    put_record(out, Kind::Chunk, id, PutBody::InPlace { octets, crc32c }, |put| {
        put.u32(index);
        put.u32(0);
    })
}

/// A chunk's number within its message's body, from 0.
pub fn chunk_index(record: &RecordView<'_>) -> Result<u32, FormatError> {
    Take(record.head()).u32()
}

fn split_fixed<'a>(record: &RecordView<'a>) -> Result<(Fixed, Take<'a>), FormatError> {
    if record.kind() != Kind::Message {
        return Err(FormatError::Malformed("message"));
    }
    let (fixed, rest) =
        Fixed::read_from_prefix(record.head()).map_err(|_| FormatError::Truncated)?;
    Ok((fixed, Take(rest)))
}

/// The trace header of a MESSAGE, without decoding the rest.
pub fn trace<'a>(record: &RecordView<'a>) -> Result<&'a [u8], FormatError> {
    let (fixed, mut take) = split_fixed(record)?;
    take.bytes(fixed.trace_length.get() as usize)
}

/// The chunks of a MESSAGE, without decoding the rest; empty when the body is inline.
pub fn chunks<'a>(
    record: &RecordView<'a>,
) -> Result<impl ExactSizeIterator<Item = ChunkPlace> + use<'a>, FormatError> {
    let (fixed, mut take) = split_fixed(record)?;
    take.bytes(fixed.trace_length.get() as usize)?;
    take_chunks(&mut take, fixed.chunk_count.get())
}

/// Replaces the places of the chunks of a whole MESSAGE record, which keeps its length.
pub(crate) fn set_chunks(record: &mut [u8], chunks: &[ChunkPlace]) -> Result<(), FormatError> {
    let (fixed, _) = split_fixed(&RecordView::parse(record)?)?;
    if fixed.chunk_count.get() as usize != chunks.len() {
        return Err(FormatError::Malformed("number of chunks"));
    }
    let start = (RECORD_HEADER + size_of::<Fixed>())
        .checked_add(fixed.trace_length.get() as usize)
        .ok_or(FormatError::Truncated)?;
    let list = record.get_mut(start..start.saturating_add(chunks.len() * CHUNK_ENTRY));
    let mut put = Put::new(list.ok_or(FormatError::Truncated)?);
    chunks.iter().for_each(|chunk| put_chunk_place(&mut put, chunk));
    reseal_head(record);
    Ok(())
}

/// How many recipients a MESSAGE has, without decoding them.
pub fn recipient_count(record: &RecordView<'_>) -> Result<u32, FormatError> {
    Ok(split_fixed(record)?.0.recipient_count.get())
}

fn take_chunks<'a>(
    take: &mut Take<'a>,
    count: u32,
) -> Result<impl ExactSizeIterator<Item = ChunkPlace> + use<'a>, FormatError> {
    let octets = (count as usize).checked_mul(CHUNK_ENTRY).ok_or(FormatError::Truncated)?;
    Ok(take.bytes(octets)?.chunks_exact(CHUNK_ENTRY).map(|entry| {
        let word = |at: usize| {
            u32::from_le_bytes(entry[at * 4..at * 4 + 4].try_into().expect("four octets"))
        };
        ChunkPlace {
            place: RecordPlace { segment: SegmentNo(word(0)), offset: word(1), length: word(2) },
            octets: word(3),
            crc32c: word(4),
        }
    }))
}

impl StoredMessage {
    /// Reads a MESSAGE's head.
    ///
    /// # Errors
    /// [`FormatError::MustUnderstand`] for an extension that this version must not pass over.
    pub fn decode(record: &RecordView<'_>) -> Result<StoredMessage, FormatError> {
        let (fixed, mut take) = split_fixed(record)?;
        let trace = take.bytes(fixed.trace_length.get() as usize)?.into();
        let chunks: Box<[ChunkPlace]> = take_chunks(&mut take, fixed.chunk_count.get())?.collect();
        let origin = Origin {
            client: take_socket_address(&mut take)?,
            listener: take_socket_address(&mut take)?,
            helo: take_text(&mut take)?.ok_or(FormatError::Malformed("HELO name"))?,
            accepted_unix_ms: fixed.accepted_unix_ms.get(),
        };
        let envelope = take_envelope(&mut take, &fixed)?;
        let extensions = take_extensions(&mut take)?;
        Ok(StoredMessage {
            id: record.id(),
            durability: match fixed.durability {
                0 => Durability::Fsync,
                1 => Durability::Os,
                _ => return Err(FormatError::Malformed("durability")),
            },
            envelope,
            origin,
            summary: BodySummary {
                octets: fixed.octets.get(),
                crc32c: fixed.crc32c.get(),
                longest_line: fixed.longest_line.get(),
                flags: BodyFlags(fixed.body_flags.get()),
            },
            trace,
            not_before_unix_ms: Some(fixed.not_before_unix_ms.get()).filter(|&time| time != 0),
            extensions,
            body: if chunks.is_empty() { StoredBody::Inline } else { StoredBody::Chunks(chunks) },
        })
    }
}

fn take_envelope(take: &mut Take<'_>, fixed: &Fixed) -> Result<Envelope, FormatError> {
    let reverse_path = match take.u8()? {
        0 => ReversePath::Null,
        1 => ReversePath::Mailbox(take_mailbox(take)?),
        _ => return Err(FormatError::Malformed("reverse-path")),
    };
    let ret = match fixed.parameters & (RET_FULL | RET_HEADERS) {
        0 => None,
        RET_FULL => Some(Ret::Full),
        RET_HEADERS => Some(Ret::Headers),
        _ => return Err(FormatError::Malformed("RET")),
    };
    let parameters = MailParameters {
        body: if fixed.parameters & EIGHT_BIT_MIME != 0 {
            BodyKind::EightBitMime
        } else {
            BodyKind::SevenBit
        },
        smtputf8: fixed.parameters & SMTPUTF8 != 0,
        require_tls: fixed.parameters & REQUIRE_TLS != 0,
        ret,
        envid: take_text(take)?,
    };
    let count = fixed.recipient_count.get() as usize;
    // A recipient takes four octets at least, so the list never outgrows what was read.
    if count > take.0.len() / 4 {
        return Err(FormatError::Truncated);
    }
    let recipients = (0..count).map(|_| take_recipient(take)).collect::<Result<_, _>>()?;
    Ok(Envelope { reverse_path, parameters, recipients })
}

fn take_recipient(take: &mut Take<'_>) -> Result<Recipient, FormatError> {
    let notify = Notify(take.u8()?);
    let path = match take.u8()? {
        0 => ForwardPath::Postmaster,
        1 => ForwardPath::Mailbox(take_mailbox(take)?),
        _ => return Err(FormatError::Malformed("forward-path")),
    };
    Ok(Recipient { path, notify, orcpt: take_text(take)? })
}

fn take_extensions(take: &mut Take<'_>) -> Result<StoredExtensions, FormatError> {
    let mut extensions = Vec::new();
    while !take.is_empty() {
        let kind = take.u16()?;
        let octets = take.u32()? as usize;
        let value = take.bytes(octets)?;
        if kind & Extension::MUST_UNDERSTAND != 0 && kind != Extension::QUARANTINED {
            return Err(FormatError::MustUnderstand("an extension of this message"));
        }
        extensions.push((kind, value.into()));
    }
    Ok(extensions)
}

fn take_mailbox(take: &mut Take<'_>) -> Result<Mailbox, FormatError> {
    let at = take.u16()?;
    let octets = take.u16()? as usize;
    Mailbox::restored(take.text(octets)?, at).ok_or(FormatError::Malformed("mailbox"))
}

fn take_text(take: &mut Take<'_>) -> Result<Option<Box<str>>, FormatError> {
    match take.u16()? {
        NOT_GIVEN => Ok(None),
        octets => Ok(Some(take.text(octets as usize)?.into())),
    }
}

fn take_socket_address(take: &mut Take<'_>) -> Result<SocketAddr, FormatError> {
    let port = take.u16()?;
    match take.u8()? {
        4 => Ok(SocketAddr::new(IpAddr::V4(Ipv4Addr::from(take.array::<4>()?)), port)),
        6 => {
            let ip = Ipv6Addr::from(take.array::<16>()?);
            Ok(SocketAddr::V6(SocketAddrV6::new(ip, port, 0, take.u32()?)))
        }
        _ => Err(FormatError::Malformed("socket address")),
    }
}

#[cfg(test)]
#[path = "message_tests.rs"]
mod tests;
