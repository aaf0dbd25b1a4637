//! Who takes the mail of a domain (RFC 5321 section 5.1, RFC 7505).
//!
//! [`mail_hosts`] turns a domain into its mail hosts in the order of their preference, with the
//! addresses that are known, or says why there are none: for good, or for now.  It is asked before
//! each attempt; everything it asks comes from the resolver's cache most of the time.
//!
//! A failure is permanent only if every answer behind it is certain: one server that did not
//! answer makes it a temporary one.  That a host with an address can be reached is not asked here
//! ([`crate::pool::dial`]).

use std::collections::HashSet;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use super::ourselves::Ourselves;
use super::{Addresses, Exchange, Lookup, LookupError, Name, Record, RecordType, join};
use crate::limits::{DNS_TTL_MAX, DNS_TTL_MIN, MAIL_HOSTS};
use crate::smtp::code::EnhancedCode;

/// One host that takes mail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MailHost {
    /// The lower, the sooner it is tried.
    pub preference: u16,
    /// Its name in A-labels and lower case without the final dot, or an address literal's
    /// address.
    pub name: Box<str>,
    /// What is known of its addresses; none if the DNS could not say.
    pub addresses: Vec<IpAddr>,
    /// Until then they stand; after that, or without any, they are asked for again.
    pub expires: Instant,
    /// The addresses have been validated by a server that is trusted.
    pub authentic: bool,
}

impl MailHost {
    /// Takes over what the DNS says of its addresses; where it could not say, what was known
    /// still counts.
    pub fn learn(&mut self, found: &Addresses) {
        self.addresses = match &found.result {
            Ok(addresses) => usable(addresses),
            Err(LookupError::NoName | LookupError::NoData) => Vec::new(),
            Err(LookupError::Temporary { .. }) => return,
        };
        self.expires = found.expires;
        self.authentic = found.authentic;
    }
}

/// The hosts that take the mail of a domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MailHosts {
    /// At least one and at most [`MAIL_HOSTS`], by preference, then by name; at least one has an
    /// address.
    pub hosts: Vec<MailHost>,
    /// Until then they are the domain's hosts.
    pub expires: Instant,
    /// That these are the hosts has been validated by a server that is trusted.
    pub authentic: bool,
}

/// Why no host takes the mail of a domain, now or later.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoMail {
    /// The domain says that it takes no mail (RFC 7505).
    #[error("the domain takes no mail (null MX)")]
    NullMx,
    /// There is no such domain.
    #[error("there is no such domain")]
    NoSuchDomain,
    /// The domain has neither MX nor address, or its mail hosts have no address.
    #[error("no host takes mail for the domain")]
    NoMailHost,
    /// The most preferred of its mail hosts is this gateway, which has no other way to it.
    #[error("mail for the domain loops back to this host ({host})")]
    LoopsBack {
        /// The host that is this gateway.
        host: Box<str>,
    },
    /// The sender requires TLS all the way, and who the mail hosts are is not proved (RFC 8689
    /// section 4.2.1).
    #[error("the sender requires TLS all the way and the domain's mail hosts have no DNSSEC")]
    NotAuthentic,
    /// Not a domain that the DNS could know, and no address literal.
    #[error("the domain is malformed")]
    BadDomain,
}

/// Why there are no mail hosts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MailError {
    /// There will not be any later either: the mail is returned.
    #[error("{0}")]
    Permanent(NoMail),
    /// Nobody could say: the mail waits.
    #[error("{why}")]
    Temporary {
        /// For the log and the deferral.
        why: Box<str>,
    },
}

/// What became of the question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// The hosts, or why there are none.
    pub result: Result<MailHosts, MailError>,
    /// How long this stands, at least [`DNS_TTL_MIN`].
    pub ttl: Duration,
}

impl NoMail {
    /// The enhanced status code for a notice (RFC 3463, RFC 7505 section 4.2).
    pub fn enhanced(&self) -> EnhancedCode {
        let (subject, detail) = match self {
            NoMail::NullMx => (1, 10),
            NoMail::NoSuchDomain | NoMail::BadDomain => (1, 2),
            NoMail::NoMailHost => (4, 4),
            NoMail::LoopsBack { .. } => (4, 6),
            NoMail::NotAuthentic => (7, 30),
        };
        EnhancedCode::new(5, subject, detail).expect("a code of RFC 3463")
    }
}

/// The hosts that take mail for `domain`: a name in any spelling, or an address literal with its
/// brackets.
pub async fn mail_hosts(resolver: &impl Lookup, domain: &str, ourselves: &Ourselves) -> Resolved {
    let (result, expires) = match Destination::of(domain) {
        None => (Err(NoMail::BadDomain.into()), resolver.now() + DNS_TTL_MAX),
        Some(Destination::Address(address)) => {
            let expires = resolver.now() + DNS_TTL_MAX;
            (literal(address, ourselves, expires), expires)
        }
        Some(Destination::Name(name)) => by_name(resolver, &name, ourselves).await,
    };
    let ttl = expires.saturating_duration_since(resolver.now()).max(DNS_TTL_MIN);
    Resolved { result, ttl }
}

/// The host of a next hop that is given by name or address: no MX, one host.  Whether it has an
/// address is found when it is dialled.
pub fn fixed_host(host: &str, now: Instant) -> Option<MailHost> {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    if let Ok(address) = bare.parse::<IpAddr>() {
        return Some(address_host(address, now + DNS_TTL_MAX));
    }
    let destination = Destination::of(host)?;
    Some(match destination {
        Destination::Address(address) => address_host(address, now + DNS_TTL_MAX),
        Destination::Name(name) => MailHost {
            preference: 0,
            name: name.as_str().into(),
            addresses: Vec::new(),
            expires: now,
            authentic: false,
        },
    })
}

/// What stands behind the `@`.
enum Destination {
    Name(Name),
    Address(IpAddr),
}

impl Destination {
    fn of(domain: &str) -> Option<Destination> {
        let Some(open) = domain.strip_prefix('[') else {
            return Name::parse(domain).map(Destination::Name);
        };
        let inner = open.strip_suffix(']')?;
        let tagged = inner.get(..5).filter(|tag| tag.eq_ignore_ascii_case("IPv6:"));
        let address = match tagged {
            Some(_) => inner[5..].parse::<Ipv6Addr>().ok()?.into(),
            None => IpAddr::V4(inner.parse().ok()?),
        };
        Some(Destination::Address(address))
    }
}

type Found = (Result<MailHosts, MailError>, Instant);

fn literal(
    address: IpAddr,
    ourselves: &Ourselves,
    expires: Instant,
) -> Result<MailHosts, MailError> {
    if ourselves.is_at(address) {
        return Err(NoMail::LoopsBack { host: address.to_string().into() }.into());
    }
    if !is_usable(address) {
        return Err(NoMail::NoMailHost.into());
    }
    // No part of this came from the DNS, so none of it can be forged there.
    Ok(MailHosts { hosts: vec![address_host(address, expires)], expires, authentic: true })
}

fn address_host(address: IpAddr, expires: Instant) -> MailHost {
    let addresses = vec![address.to_canonical()];
    MailHost {
        preference: 0,
        name: address.to_string().into(),
        addresses,
        expires,
        authentic: true,
    }
}

async fn by_name(resolver: &impl Lookup, domain: &Name, ourselves: &Ourselves) -> Found {
    let answer = resolver.lookup(domain, RecordType::Mx).await;
    let candidates = match &answer.result {
        Ok(records) => match candidates(records) {
            Some(candidates) => candidates,
            None => return (Err(NoMail::NullMx.into()), answer.expires),
        },
        // Without MX the domain itself is the host, with preference 0.
        Err(LookupError::NoData) => vec![(0, domain.clone())],
        Err(LookupError::NoName) => return (Err(NoMail::NoSuchDomain.into()), answer.expires),
        Err(LookupError::Temporary { why }) => {
            let why = format!("the mail hosts of {domain} could not be looked up: {why}");
            return (Err(MailError::Temporary { why: why.into() }), answer.expires);
        }
    };
    let questions = candidates.iter().map(|(_, name)| resolver.addresses(name));
    let addresses = join::join_all(questions).await;
    let candidates = candidates
        .into_iter()
        .zip(addresses)
        .map(|((preference, name), addresses)| Candidate { preference, name, addresses });
    let judged = judge(candidates.collect(), ourselves, answer.expires);
    match judged {
        (Ok(hosts), expires) => {
            (Ok(MailHosts { hosts, expires, authentic: answer.authentic }), expires)
        }
        (Err(error), expires) => (Err(error), expires),
    }
}

/// The hosts of MX records, by preference and then by name, each once; `None` for a null MX.
fn candidates(records: &[Record]) -> Option<Vec<(u16, Name)>> {
    let exchanges = || records.iter().filter_map(exchange);
    if exchanges().all(|(_, exchange)| *exchange == Exchange::Null) {
        return None;
    }
    // A null MX beside others is a mistake of the domain's (RFC 7505 section 3) and no host.
    let mut hosts: Vec<(u16, Name)> = exchanges()
        .filter_map(|(preference, exchange)| match exchange {
            Exchange::Host(name) => Some((preference, name.clone())),
            Exchange::Null | Exchange::Unusable(_) => None,
        })
        .collect();
    hosts.sort_unstable();
    let mut seen = HashSet::new();
    hosts.retain(|(_, name)| seen.insert(name.clone()));
    hosts.truncate(MAIL_HOSTS);
    Some(hosts)
}

fn exchange(record: &Record) -> Option<(u16, &Exchange)> {
    match record {
        Record::Mx { preference, exchange } => Some((*preference, exchange)),
        _ => None,
    }
}

/// A host whose addresses have been asked for.
struct Candidate {
    preference: u16,
    name: Name,
    addresses: Addresses,
}

/// Cuts off this gateway and what is no better, then the hosts that certainly have no address.
fn judge(
    mut candidates: Vec<Candidate>,
    ourselves: &Ourselves,
    mut expires: Instant,
) -> (Result<Vec<MailHost>, MailError>, Instant) {
    let own = candidates.iter().find(|candidate| candidate.is_one_of(ourselves));
    if let Some(own) = own {
        let (preference, host) = (own.preference, Box::from(own.name.as_str()));
        // Whether it is this gateway may have been told by its addresses.
        expires = expires.min(own.addresses.expires);
        candidates.retain(|candidate| candidate.preference < preference);
        if candidates.is_empty() {
            return (Err(NoMail::LoopsBack { host }.into()), expires);
        }
    }
    let mut hosts = Vec::new();
    let mut failure = None;
    for candidate in candidates {
        if candidate.addresses.result.is_err() {
            expires = expires.min(candidate.addresses.expires);
        }
        if let Err(LookupError::Temporary { why }) = &candidate.addresses.result {
            failure =
                Some(format!("the address of {} could not be looked up: {why}", candidate.name));
        }
        hosts.extend(candidate.into_host());
    }
    let result = match failure {
        _ if hosts.iter().any(|host: &MailHost| !host.addresses.is_empty()) => Ok(hosts),
        Some(why) => Err(MailError::Temporary { why: why.into() }),
        None => Err(NoMail::NoMailHost.into()),
    };
    (result, expires)
}

impl Candidate {
    fn is_one_of(&self, ourselves: &Ourselves) -> bool {
        let addresses = self.addresses.result.as_deref().unwrap_or_default();
        ourselves.is_named(&self.name) || addresses.iter().any(|address| ourselves.is_at(*address))
    }

    /// `None` if it certainly has no address.
    fn into_host(self) -> Option<MailHost> {
        let addresses: Vec<IpAddr> = match self.addresses.result {
            Ok(found) => {
                let usable = usable(&found);
                (!usable.is_empty()).then_some(usable)?
            }
            Err(LookupError::Temporary { .. }) => Vec::new(),
            Err(LookupError::NoName | LookupError::NoData) => return None,
        };
        Some(MailHost {
            preference: self.preference,
            name: self.name.as_str().into(),
            addresses,
            expires: self.addresses.expires,
            authentic: self.addresses.authentic,
        })
    }
}

/// Those of a host's addresses to which a connection may be made.
pub(crate) fn usable(addresses: &[IpAddr]) -> Vec<IpAddr> {
    let usable = addresses.iter().filter(|address| is_usable(**address));
    usable.map(IpAddr::to_canonical).collect()
}

/// Whether a connection to the address can lead to one host: `0.0.0.0` and `::` would lead to this
/// machine, whoever published them.
pub(crate) fn is_usable(address: IpAddr) -> bool {
    let address = address.to_canonical();
    let is_broadcast = matches!(address, IpAddr::V4(address) if address.is_broadcast());
    !(address.is_unspecified() || address.is_multicast() || is_broadcast)
}

impl From<NoMail> for MailError {
    fn from(reason: NoMail) -> MailError {
        MailError::Permanent(reason)
    }
}

#[cfg(test)]
mod tests;
