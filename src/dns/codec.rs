//! Questions and answers as octets (RFC 1035 section 4, RFC 6891).
//!
//! Pure; `hickory-proto` reads the records, this module judges what they mean.  What a server
//! sends is a [`Reply`], a stray (something else was answered), or malformed; nothing panics, and
//! the memory that reading takes is bounded by the message, which is at most 64 KiB.

use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr;
use hickory_proto::rr::RData;

use super::cache::Question;
use super::{Exchange, Name, Record, RecordType};
use crate::limits::{DNS_ALIASES, DNS_DATAGRAM, DNS_NEGATIVE_TTL_MAX, DNS_TTL_MAX, DNS_TTL_MIN};

/// What a server has said to a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// It knows.
    Known(Known),
    /// The answer did not fit the datagram: ask over TCP.
    Truncated,
    /// It did not understand the question, perhaps for its EDNS part.
    FormatError,
    /// It could not or would not answer; the words are for the log.
    Failed(Box<str>),
}

/// An answer that may be believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// What there is.
    pub outcome: Outcome,
    /// The server says that it has validated the answer.
    pub authentic: bool,
    /// How long it stands, within our own bounds.
    pub ttl: Duration,
}

/// What there is under the name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Records of the type that was asked for, at least one.
    Records(Vec<Record>),
    /// Another name, which the server did not follow to its end.
    Alias(Name),
    /// No such name.
    NoName,
    /// No such records.
    NoData,
}

/// Why octets are no reply to a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotAReply {
    /// Not an answer, or one to another question: pass it over and wait on.
    #[error("an answer to something else")]
    Stray,
    /// An answer to the question that cannot be read.
    #[error("a malformed answer")]
    Malformed,
}

/// The octets of a question.  `edns` announces the datagram that we take.
pub fn encode(question: &Question, id: u16, edns: bool) -> Vec<u8> {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    // Asks for the AD bit of the answer without the signatures (RFC 6840 section 5.7).
    message.metadata.authentic_data = true;
    message.add_query(Query::query(wire_name(&question.name), wire_type(question.kind)));
    if edns {
        let mut options = Edns::new();
        options.set_max_payload(DNS_DATAGRAM as u16);
        message.set_edns(options);
    }
    message.to_vec().expect("one name of at most 255 octets fits a message")
}

/// Reads what a server sent to the question that was encoded with `id`.
///
/// # Errors
/// The octets answer something else, or nobody can read them.
pub fn decode(octets: &[u8], question: &Question, id: u16) -> Result<Reply, NotAReply> {
    let head = Head::read(octets).filter(|head| head.id == id && head.is_response);
    let head = head.ok_or(NotAReply::Stray)?;
    // A server that could not read the question need not repeat it.
    if head.questions == 0 && head.code != CODE_NO_ERROR && head.code != CODE_NO_NAME {
        return Ok(failure(ResponseCode::from(0, head.code)));
    }
    if head.questions != 1 {
        return Err(NotAReply::Stray);
    }
    let message = match Message::from_vec(octets) {
        Ok(message) => message,
        // What was cut off may have been cut within a record.
        Err(_) if head.is_truncated => return Ok(Reply::Truncated),
        Err(_) => return Err(NotAReply::Malformed),
    };
    if !answers(&message, question) {
        return Err(NotAReply::Stray);
    }
    if message.metadata.truncation {
        return Ok(Reply::Truncated);
    }
    match message.metadata.response_code {
        ResponseCode::NoError | ResponseCode::NXDomain => judge(&message, question),
        code => Ok(failure(code)),
    }
}

/// The first 12 octets, as far as they matter before the rest is read.
struct Head {
    id: u16,
    is_response: bool,
    is_truncated: bool,
    code: u8,
    questions: u16,
}

impl Head {
    fn read(octets: &[u8]) -> Option<Head> {
        let head: &[u8; 12] = octets.first_chunk()?;
        Some(Head {
            id: u16::from_be_bytes([head[0], head[1]]),
            is_response: head[2] & 0x80 != 0,
            is_truncated: head[2] & 0x02 != 0,
            code: head[3] & 0x0f,
            questions: u16::from_be_bytes([head[4], head[5]]),
        })
    }
}

const CODE_NO_ERROR: u8 = 0;
const CODE_NO_NAME: u8 = 3;
const CODE_BAD_VERSION: u16 = 16;

fn failure(code: ResponseCode) -> Reply {
    match code {
        ResponseCode::FormErr | ResponseCode::NotImp => Reply::FormatError,
        // By its number, which BADVERS shares with a code of TSIG (RFC 6891 section 9).
        code if u16::from(code) == CODE_BAD_VERSION => Reply::FormatError,
        ResponseCode::ServFail => Reply::Failed("SERVFAIL".into()),
        ResponseCode::Refused => Reply::Failed("REFUSED".into()),
        code => Reply::Failed(format!("response code {}", u16::from(code)).into()),
    }
}

fn answers(message: &Message, question: &Question) -> bool {
    let [query] = &message.queries[..] else { return false };
    message.metadata.op_code == OpCode::Query
        && query.query_type() == wire_type(question.kind)
        && query.query_class() == rr::DNSClass::IN
        && *query.name() == wire_name(&question.name)
}

/// Follows the aliases within the message and takes what stands at their end.
fn judge(message: &Message, question: &Question) -> Result<Reply, NotAReply> {
    let (kind, mut ttl) = (wire_type(question.kind), DNS_TTL_MAX);
    let mut owner = wire_name(&question.name);
    let mut aliases = 0;
    let records: Vec<Record> = loop {
        let at_owner =
            |record: &&rr::Record| record.name == owner && record.dns_class == rr::DNSClass::IN;
        let of_kind = message.answers.iter().filter(at_owner);
        let of_kind = of_kind.filter(|record| record.record_type() == kind);
        let found = of_kind.clone().filter_map(|record| read_record(&record.data)).collect();
        if let Some(shortest) = of_kind.map(|record| record_ttl(record.ttl)).min() {
            ttl = ttl.min(shortest);
            break found;
        }
        let alias = message.answers.iter().filter(at_owner).find_map(|record| match &record.data {
            RData::CNAME(target) => Some((&target.0, record_ttl(record.ttl))),
            _ => None,
        });
        let Some((target, alias_ttl)) = alias else { break Vec::new() };
        ttl = ttl.min(alias_ttl);
        aliases += 1;
        if aliases > DNS_ALIASES {
            return Ok(Reply::Failed("too many aliases".into()));
        }
        owner = target.clone();
    };
    let known = |outcome, ttl: Duration| {
        let authentic = message.metadata.authentic_data;
        Ok(Reply::Known(Known { outcome, authentic, ttl: ttl.max(DNS_TTL_MIN) }))
    };
    if !records.is_empty() {
        return known(Outcome::Records(records), ttl);
    }
    let negative = negative_ttl(message);
    let absent_ttl = ttl.min(negative.unwrap_or(DNS_TTL_MIN));
    if message.metadata.response_code == ResponseCode::NXDomain {
        // Name servers beside it are no referral here (RFC 2308 section 2.1.1, type 4).
        return match negative.is_none() && is_uninvolved(message) {
            true => Ok(Reply::Failed("no such name, says a server that cannot know".into())),
            false => known(Outcome::NoName, absent_ttl),
        };
    }
    if negative.is_none() && aliases > 0 {
        let Some(target) = Name::from_labels(owner.iter()) else {
            return Ok(Reply::Failed("an alias for no host name".into()));
        };
        return known(Outcome::Alias(target), ttl);
    }
    if negative.is_none() && is_lame(message) {
        return Ok(Reply::Failed("a referral in place of an answer".into()));
    }
    known(Outcome::NoData, absent_ttl)
}

/// A server that answers neither for itself nor by asking others says nothing about the name;
/// to take its empty answer for an absence would return mail.
fn is_lame(message: &Message) -> bool {
    let refers =
        message.authorities.iter().any(|record| record.record_type() == rr::RecordType::NS);
    refers || is_uninvolved(message)
}

/// Whether the server neither has the zone nor asks others.
fn is_uninvolved(message: &Message) -> bool {
    !(message.metadata.authoritative || message.metadata.recursion_available)
}

/// How long an absence stands (RFC 2308 section 5).
fn negative_ttl(message: &Message) -> Option<Duration> {
    message.authorities.iter().find_map(|record| match &record.data {
        RData::SOA(soa) => {
            let seconds = record_ttl(soa.minimum).min(record_ttl(record.ttl));
            Some(seconds.min(DNS_NEGATIVE_TTL_MAX))
        }
        _ => None,
    })
}

/// A TTL with its highest bit set counts as 0 (RFC 2181 section 8).
fn record_ttl(seconds: u32) -> Duration {
    let seconds = if seconds > i32::MAX as u32 { 0 } else { seconds };
    Duration::from_secs(seconds.into()).min(DNS_TTL_MAX)
}

fn read_record(data: &RData) -> Option<Record> {
    Some(match data {
        RData::A(address) => Record::A(address.0),
        RData::AAAA(address) => Record::Aaaa(address.0),
        RData::MX(mx) => {
            Record::Mx { preference: mx.preference, exchange: read_exchange(&mx.exchange) }
        }
        RData::TXT(text) => Record::Txt(text.txt_data.concat().into()),
        RData::PTR(name) => Record::Ptr(Name::from_labels(name.0.iter())?),
        RData::CNAME(name) => Record::Cname(Name::from_labels(name.0.iter())?),
        _ => return None,
    })
}

fn read_exchange(name: &rr::Name) -> Exchange {
    if name.is_root() {
        return Exchange::Null;
    }
    match Name::from_labels(name.iter()) {
        Some(name) => Exchange::Host(name),
        None => Exchange::Unusable(name.to_ascii().into()),
    }
}

fn wire_type(kind: RecordType) -> rr::RecordType {
    match kind {
        RecordType::A => rr::RecordType::A,
        RecordType::Aaaa => rr::RecordType::AAAA,
        RecordType::Mx => rr::RecordType::MX,
        RecordType::Txt => rr::RecordType::TXT,
        RecordType::Ptr => rr::RecordType::PTR,
        RecordType::Cname => rr::RecordType::CNAME,
    }
}

fn wire_name(name: &Name) -> rr::Name {
    rr::Name::from_labels(name.labels().map(str::as_bytes)).expect("a name's labels fit the DNS")
}

#[cfg(test)]
mod tests;
