//! The DNS, as far as mail needs it: who takes a domain's mail, and where that host is.
//!
//! [`resolver`] asks recursive name servers and keeps their answers, one resolver a core;
//! [`mail`] makes of them the hosts that take mail for a domain.  [`codec`], [`cache`] and
//! [`asking`] are pure; `transport` is the I/O.  Whoever needs the DNS is written against
//! [`Lookup`], so that a simulation or a table can answer in the place of the network.
//!
//! Invariants: an answer is believed only if it came from the server that was asked, with the id
//! and the question that it was asked with; nothing is believed for longer than its TTL; the flag
//! `authentic` is set only by servers that the operator trusts.  Whatever a server sends, however
//! malformed, ends as a [`LookupError`]: absent for certain, or try again later.
//!
//! Not here: recursion, DNSSEC validation (the trusted server's business), zone transfers.

pub mod asking;
pub mod cache;
pub mod codec;
pub mod flight;
pub(crate) mod join;
pub mod mail;
pub mod name;
pub mod ourselves;
pub mod resolv_conf;
pub mod resolver;
mod transport;

use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::rc::Rc;
use std::time::{Duration, Instant};

pub use name::Name;
pub use resolver::{Resolver, ResolverConfig};

use crate::limits::HOST_ADDRESSES;

/// What can be asked about a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RecordType {
    /// IPv4 addresses.
    A,
    /// IPv6 addresses.
    Aaaa,
    /// Mail exchangers.
    Mx,
    /// Texts: policies of all kinds.
    Txt,
    /// The name behind an address.
    Ptr,
    /// The name that a name is an alias of.  Other questions follow aliases by themselves; this
    /// one is for who wants to see them.
    Cname,
}

/// One record of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// An IPv4 address.
    A(Ipv4Addr),
    /// An IPv6 address.
    Aaaa(Ipv6Addr),
    /// A mail exchanger (RFC 1035 section 3.3.9).
    Mx {
        /// The lower, the sooner it is tried.
        preference: u16,
        /// The host.
        exchange: Exchange,
    },
    /// A text, its strings joined (RFC 7208 section 3.3).
    Txt(Box<[u8]>),
    /// The name behind an address.
    Ptr(Name),
    /// The name that a name is an alias of.
    Cname(Name),
}

/// What an MX record points to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exchange {
    /// A host.
    Host(Name),
    /// The root: the domain takes no mail (RFC 7505).
    Null,
    /// A name that no host can bear, its odd octets escaped.
    Unusable(Box<str>),
}

/// What became of a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The records, all of the type that was asked for and at least one; or why there are none.
    pub result: Result<Vec<Record>, LookupError>,
    /// A server that is trusted has validated the answer, also one that there is nothing (the AD
    /// bit, RFC 6840 section 5.8).
    pub authentic: bool,
    /// Until then the answer stands.
    pub expires: Instant,
}

/// Why there are no records.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    /// There is no such name (NXDOMAIN).
    #[error("there is no such name")]
    NoName,
    /// The name has no records of the type.
    #[error("there are no such records")]
    NoData,
    /// Nobody could say: try again later.
    #[error("{why}")]
    Temporary {
        /// For the log and the deferral.
        why: Box<str>,
    },
}

/// The addresses of a host, of both families.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Addresses {
    /// At least one, at most [`HOST_ADDRESSES`]; or why there are none.
    pub result: Result<Vec<IpAddr>, LookupError>,
    /// Both families' answers have been validated.
    pub authentic: bool,
    /// Until then they stand.
    pub expires: Instant,
}

/// Somebody who answers questions about names: a [`Resolver`], or what stands for one.
pub trait Lookup {
    /// Asks for the records of one type; aliases are followed.
    fn lookup(&self, name: &Name, kind: RecordType) -> impl Future<Output = Rc<Answer>>;

    /// The same, asked anew whatever is remembered: for who wants to know how it is now.
    fn lookup_anew(&self, name: &Name, kind: RecordType) -> impl Future<Output = Rc<Answer>> {
        self.lookup(name, kind)
    }

    /// The same as [`Lookup::lookup`], and whether a server was asked for it: the answer was neither
    /// remembered nor on its way to somebody else.  Of all who hear an answer one hears that.
    fn lookup_first(
        &self,
        name: &Name,
        kind: RecordType,
    ) -> impl Future<Output = (Rc<Answer>, bool)> {
        async move { (self.lookup(name, kind).await, true) }
    }

    /// The clock that the answers' times go by.
    fn now(&self) -> Instant {
        Instant::now()
    }

    /// The addresses of a host, IPv6 and IPv4 asked for at the same time.  `localhost` is known
    /// without asking (RFC 6761 section 6.3).
    fn addresses(&self, host: &Name) -> impl Future<Output = Addresses> {
        async move {
            if host.is_localhost() {
                let found = [Ipv6Addr::LOCALHOST.into(), Ipv4Addr::LOCALHOST.into()];
                let expires = self.now() + crate::limits::DNS_TTL_MAX;
                return Addresses { result: Ok(found.into()), authentic: true, expires };
            }
            let questions = [RecordType::Aaaa, RecordType::A].map(|kind| self.lookup(host, kind));
            let answers = join::join_all(questions).await;
            both_families(&answers[0], &answers[1])
        }
    }
}

impl Answer {
    /// An answer that nobody could give, which is to be believed for `ttl`.
    pub fn temporary(why: impl Into<Box<str>>, now: Instant, ttl: Duration) -> Answer {
        let why = why.into();
        Answer { result: Err(LookupError::Temporary { why }), authentic: false, expires: now + ttl }
    }

    /// Nobody was asked: too many questions are under way already.
    pub fn overloaded(now: Instant) -> Answer {
        Answer::temporary(OVERLOADED, now, crate::limits::DNS_TTL_MIN)
    }

    /// Whether nobody was asked, which says nothing about whoever would have been.
    pub fn is_overloaded(&self) -> bool {
        matches!(&self.result, Err(LookupError::Temporary { why }) if **why == *OVERLOADED)
    }

    /// Whether the next attempt may have another result for no reason in the DNS.
    pub fn is_temporary(&self) -> bool {
        matches!(self.result, Err(LookupError::Temporary { .. }))
    }
}

/// Why a question was not asked; no server says so.
const OVERLOADED: &str = "too many DNS queries";

impl Record {
    /// The address of an A or AAAA record.
    pub fn address(&self) -> Option<IpAddr> {
        match self {
            Record::A(address) => Some((*address).into()),
            Record::Aaaa(address) => Some((*address).into()),
            _ => None,
        }
    }
}

/// One answer of two: what either has found counts, and only two certain absences make one.
fn both_families(v6: &Answer, v4: &Answer) -> Addresses {
    // Half of the room for each, so that many of one family leave some of the other.
    let found: Vec<IpAddr> = [v6, v4]
        .into_iter()
        .filter_map(|answer| answer.result.as_ref().ok())
        .flat_map(|records| records.iter().filter_map(Record::address).take(HOST_ADDRESSES / 2))
        .collect();
    let result = match (&v6.result, &v4.result) {
        _ if !found.is_empty() => Ok(found),
        (Err(error @ LookupError::Temporary { .. }), _)
        | (_, Err(error @ LookupError::Temporary { .. }))
        | (Err(error @ LookupError::NoName), _)
        | (_, Err(error @ LookupError::NoName)) => Err(error.clone()),
        _ => Err(LookupError::NoData),
    };
    Addresses {
        result,
        authentic: v6.authentic && v4.authentic,
        expires: v6.expires.min(v4.expires),
    }
}
