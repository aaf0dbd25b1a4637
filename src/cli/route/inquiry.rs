//! The questions to the DNS, and what their answers mean for a message.
//!
//! Which hosts are used is [`mail_hosts`]' word; the records are then looked at once more, out of
//! the resolver's cache, to say why.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use super::Inquirer;
use super::findings::{
    AttemptFound, Exchangers, HostFound, HostSource, NameServer, NextHop, Verdict, Way,
};
use crate::config::Host;
use crate::dns::mail::{MailError, MailHost, MailHosts, fixed_host, mail_hosts};
use crate::dns::{Addresses, Exchange, Lookup, LookupError, Name, Record, RecordType};
use crate::limits::{DNS_ALIASES, MAIL_HOSTS};
use crate::pool::dial::HostHealth;
use crate::pool::dial::plan::{DialPlan, DialStep};

/// What came of asking.
pub(super) struct Inquired {
    pub way: Way,
    /// The mail exchangers that are used.
    pub hosts: Option<Vec<MailHost>>,
    pub dns: Option<Vec<NameServer>>,
    pub attempts: Vec<AttemptFound>,
    pub verdict: Verdict,
}

impl Inquired {
    /// Nothing had to be asked.
    pub(super) fn without_names((way, verdict): (Way, Verdict)) -> Inquired {
        Inquired { way, hosts: None, dns: None, attempts: Vec::new(), verdict }
    }
}

/// An MX record.
type Exchanger = (u16, Exchange);

impl<L: Lookup> Inquirer<'_, L> {
    /// Who takes the mail of a domain or an address literal.
    pub(super) async fn exchangers(&self, domain: &str, source: Option<IpAddr>) -> Inquired {
        let resolved = mail_hosts(&self.resolver, domain, &self.ourselves).await;
        let used = resolved.result.as_ref().ok();
        let (exchangers, dns) = match Name::parse(domain).filter(|_| !domain.starts_with('[')) {
            Some(name) => (self.by_name(&name, used).await, Some(self.name_servers())),
            None => (literal(domain, used), None),
        };
        let port = self.config.delivery.port;
        let mut attempts = Vec::new();
        let verdict = match &resolved.result {
            Ok(found) => {
                attempts = self.attempts(&found.hosts, port, source).await;
                sent_to(&attempts, source)
            }
            Err(MailError::Permanent(why)) => {
                Verdict::Bounce { status: why.enhanced().to_string(), why: why.to_string() }
            }
            Err(MailError::Temporary { why }) => Verdict::Wait { why: why.to_string() },
        };
        let hosts = resolved.result.ok().map(|found| found.hosts);
        Inquired { way: Way::Mx(exchangers), hosts, dns, attempts, verdict }
    }

    /// A next hop that the route names.
    pub(super) async fn next_hop(
        &self,
        protocol: &'static str,
        host: &Host,
        port: u16,
        source: Option<IpAddr>,
    ) -> Inquired {
        let name = match host {
            Host::Address(_) => None,
            Host::Name(name) => Name::parse(name),
        };
        let (found, dns) = match &name {
            Some(name) => {
                let dns = (!name.is_localhost()).then(|| self.name_servers());
                (self.host(None, name).await, dns)
            }
            None => (address_host(host), None),
        };
        let hosts: Vec<MailHost> =
            fixed_host(&host.to_string(), self.resolver.now()).into_iter().collect();
        let attempts = self.attempts(&hosts, port, source).await;
        let verdict = match &found.note {
            Some(note) if attempts.is_empty() => {
                Verdict::Wait { why: format!("the next hop {host} {note}") }
            }
            _ => sent_to(&attempts, source),
        };
        let way = Way::NextHop(NextHop { protocol, port, host: found });
        Inquired { way, hosts: None, dns, attempts, verdict }
    }

    fn name_servers(&self) -> Vec<NameServer> {
        let server = |address: &SocketAddr| NameServer {
            address: address.to_string(),
            trusted: self.config.dns.trusts(address.ip()),
        };
        self.servers.iter().map(server).collect()
    }

    async fn by_name(&self, domain: &Name, used: Option<&MailHosts>) -> Exchangers {
        let answer = self.resolver.lookup(domain, RecordType::Mx).await;
        let (source, records) = match &answer.result {
            Ok(records) => {
                let records = exchangers_of(records);
                let is_null = records.iter().all(|(_, exchange)| *exchange == Exchange::Null);
                (if is_null { HostSource::Null } else { HostSource::Mx }, records)
            }
            Err(LookupError::NoData) => {
                (HostSource::Implicit, vec![(0, Exchange::Host(domain.clone()))])
            }
            Err(LookupError::NoName | LookupError::Temporary { .. }) => {
                (HostSource::Unknown, Vec::new())
            }
        };
        let mut hosts = Vec::new();
        for (place, (preference, exchange)) in records.into_iter().enumerate() {
            let host = match &exchange {
                // Its own words; it is no host.
                Exchange::Null if source == HostSource::Null => break,
                Exchange::Host(name) if place < MAIL_HOSTS => {
                    let preference = (source == HostSource::Mx).then_some(preference);
                    self.host(preference, name).await
                }
                _ => unasked(preference, &exchange),
            };
            hosts.push(host);
        }
        self.judge(&mut hosts, used);
        let is_alias = !matches!(answer.result, Err(LookupError::Temporary { .. }));
        Exchangers {
            domain: domain.to_string(),
            aliases: if is_alias { self.aliases(domain).await } else { Vec::new() },
            source,
            error: answer.result.as_ref().err().map(ToString::to_string),
            ttl_seconds: Some(self.seconds_until(answer.expires)),
            authentic: answer.authentic,
            hosts,
        }
    }

    /// A host with what the DNS says of its addresses.
    async fn host(&self, preference: Option<u16>, name: &Name) -> HostFound {
        let Addresses { result, authentic, expires } = self.resolver.addresses(name).await;
        let is_known = !name.is_localhost() && result.is_ok();
        HostFound {
            preference,
            host: name.to_string(),
            unicode_host: unicode(name.as_str()),
            aliases: if is_known { self.aliases(name).await } else { Vec::new() },
            ttl_seconds: (!name.is_localhost()).then(|| self.seconds_until(expires)),
            authentic,
            used: result.is_ok(),
            note: result.as_ref().err().map(no_address),
            addresses: result.unwrap_or_default(),
        }
    }

    /// Says of each host whether it is used, and if not, why.
    fn judge(&self, hosts: &mut [HostFound], used: Option<&MailHosts>) {
        let is_ours = |host: &HostFound| {
            let by_name =
                Name::parse(&host.host).is_some_and(|name| self.ourselves.is_named(&name));
            by_name || host.addresses.iter().any(|address| self.ourselves.is_at(*address))
        };
        let ours = hosts.iter().position(is_ours).map(|place| hosts[place].preference);
        for host in hosts {
            let is_used = |known: &MailHost| *known.name == *host.host;
            host.used = used.is_some_and(|used| used.hosts.iter().any(is_used));
            if host.used {
                continue;
            }
            host.note = if is_ours(host) {
                Some("is this gateway itself: cut off, with all that are no better".into())
            } else if ours.is_some_and(|ours| host.preference >= ours) {
                Some("is no better than this gateway: cut off".into())
            } else if !host.addresses.is_empty() && used.is_some() {
                Some("has no address that leads to a host".into())
            } else {
                host.note.take()
            };
        }
    }

    /// The names that a name is an alias of, each of the one before it.
    async fn aliases(&self, name: &Name) -> Vec<String> {
        let mut found: Vec<String> = Vec::new();
        let mut name = name.clone();
        while found.len() < DNS_ALIASES {
            let answer = self.resolver.lookup(&name, RecordType::Cname).await;
            let target = answer.result.as_ref().ok().and_then(|records| match records.first() {
                Some(Record::Cname(target)) => Some(target.clone()),
                _ => None,
            });
            let Some(target) = target else { break };
            found.push(target.to_string());
            name = target;
        }
        found
    }

    /// The addresses in the order in which a connection would try them, by the dialler's own plan.
    async fn attempts(
        &self,
        hosts: &[MailHost],
        port: u16,
        source: Option<IpAddr>,
    ) -> Vec<AttemptFound> {
        // The same draw each time, so that two answers differ only if something has changed.
        let mut rng = fastrand::Rng::with_seed(0);
        let (health, now) = (HostHealth::default(), self.resolver.now());
        let mut plan = DialPlan::new(hosts, port, source, now, &mut rng);
        let mut attempts = Vec::new();
        loop {
            match plan.next(&health, now, &mut rng) {
                DialStep::Exhausted => return attempts,
                DialStep::LookUp(names) => {
                    for name in names {
                        let found = self.resolver.addresses(&name).await;
                        plan.looked_up(&name, &found);
                    }
                }
                DialStep::Connect(target) => attempts.push(AttemptFound {
                    address: target.address.to_string(),
                    host: target.host.into(),
                    preference: target.preference,
                }),
            }
        }
    }

    /// Rounded up: what was given for 300 s a millisecond ago is still told as 300.
    fn seconds_until(&self, expires: Instant) -> u64 {
        let left = expires.saturating_duration_since(self.resolver.now());
        left.as_secs() + u64::from(left.subsec_nanos() > 0)
    }
}

/// The domain as people read it, if that differs.
pub(super) fn unicode(domain: &str) -> Option<String> {
    let (unicode, result) = idna::domain_to_unicode(domain);
    (result.is_ok() && unicode != domain).then_some(unicode)
}

/// By preference, then by name, each host once.
fn exchangers_of(records: &[Record]) -> Vec<Exchanger> {
    let exchanger = |record: &Record| match record {
        Record::Mx { preference, exchange } => Some((*preference, exchange.clone())),
        _ => None,
    };
    let name = |exchange: &Exchange| match exchange {
        Exchange::Host(name) => name.to_string(),
        Exchange::Null => ".".into(),
        Exchange::Unusable(name) => name.to_string(),
    };
    let mut found: Vec<Exchanger> = records.iter().filter_map(exchanger).collect();
    found.sort_by_cached_key(|(preference, exchange)| (*preference, name(exchange)));
    let mut seen = std::collections::HashSet::new();
    found.retain(|(_, exchange)| seen.insert(name(exchange)));
    found
}

/// An MX record whose host's addresses are not asked for.
fn unasked(preference: u16, exchange: &Exchange) -> HostFound {
    let (host, note) = match exchange {
        Exchange::Host(name) => {
            (name.to_string(), format!("is beyond the first {MAIL_HOSTS}, which are looked at"))
        }
        Exchange::Null => (".".into(), "is a null MX beside other records: passed over".into()),
        Exchange::Unusable(name) => (name.to_string(), "is a name that no host can bear".into()),
    };
    HostFound {
        preference: Some(preference),
        host,
        unicode_host: None,
        aliases: Vec::new(),
        addresses: Vec::new(),
        ttl_seconds: None,
        authentic: false,
        used: false,
        note: Some(note),
    }
}

fn no_address(error: &LookupError) -> String {
    match error {
        LookupError::NoName => "has no address: there is no such name".into(),
        LookupError::NoData => "has no address".into(),
        LookupError::Temporary { why } => format!("could not be looked up: {why}"),
    }
}

fn literal(domain: &str, used: Option<&MailHosts>) -> Exchangers {
    let host = |host: &MailHost| HostFound {
        preference: None,
        host: host.name.to_string(),
        unicode_host: None,
        aliases: Vec::new(),
        addresses: host.addresses.clone(),
        ttl_seconds: None,
        authentic: host.authentic,
        used: true,
        note: None,
    };
    Exchangers {
        domain: domain.to_owned(),
        aliases: Vec::new(),
        source: HostSource::Literal,
        error: None,
        ttl_seconds: None,
        authentic: true,
        hosts: used.into_iter().flat_map(|found| found.hosts.iter().map(host)).collect(),
    }
}

fn address_host(host: &Host) -> HostFound {
    HostFound {
        preference: None,
        host: host.to_string(),
        unicode_host: None,
        aliases: Vec::new(),
        addresses: host.fixed_addresses().to_vec(),
        ttl_seconds: None,
        authentic: true,
        used: true,
        note: None,
    }
}

/// The message goes to the first address, if there is one.
fn sent_to(attempts: &[AttemptFound], source: Option<IpAddr>) -> Verdict {
    match (attempts.first(), source) {
        (Some(first), _) => Verdict::Deliver { to: first.host.clone() },
        (None, Some(source)) => {
            Verdict::Wait { why: format!("no host has an address that {source} can connect to") }
        }
        (None, None) => Verdict::Wait { why: "no host has an address".into() },
    }
}
