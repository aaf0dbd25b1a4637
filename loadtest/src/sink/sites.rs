//! Many domains on many receiving hosts, described in one line: site `k` of a group is the host
//! `mxK.NAME` on an address of its own, and serves the domains `dJ.NAME` with `J` modulo the
//! number of sites equal to `k`.
//!
//! All sites listen on the ports of the world (an unspecified address, `0.0.0.0`, takes all of
//! 127.0.0.0/8 at once); a connection belongs to the site whose address it was made to.  Some
//! sites may be told to differ, by shares: the count of them is exact and which ones they are is
//! the same in every run.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use fastrand::Rng;
use serde::{Deserialize, Deserializer};
use toml::Table;

use super::manners::{ReplyText, ReplyTextError};

/// Sites of all groups together.
const SITES_MAX: u32 = 1 << 20;
/// Addresses of one site: the answer that holds them all fits every transport but UDP.
const ADDRESSES_MAX: u32 = 1_000;
/// Which sites differ is drawn from here, so that every run has the same.
const SEED: u64 = 0x5172_5eed;

/// A group as it stands in the file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// The domain under which all names of the group stand.
    pub name: String,
    /// Domains.
    #[serde(default = "one")]
    pub domains: u32,
    /// Sites.
    #[serde(default = "one")]
    pub count: u32,
    /// The address of the first site; the others follow it.
    pub address: Ipv4Addr,
    /// Addresses of each site.
    #[serde(default = "one")]
    pub addresses: u32,
    /// Sessions at a time at each site; the next gets 421.
    #[serde(default)]
    pub sessions: Option<usize>,
    /// How the sites treat messages.
    #[serde(default)]
    pub messages: Table,
    /// Sites that differ.
    #[serde(default)]
    pub except: Vec<Exception>,
}

/// What some of the sites of a group do otherwise.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exception {
    /// How many of the group's sites, from 0 to 1.
    pub share: f64,
    /// What becomes of connections.
    #[serde(default)]
    pub connect: Option<Reception>,
    /// What becomes of questions for the domains' hosts.
    #[serde(default)]
    pub dns: Option<NameFault>,
    /// Sessions at a time.
    #[serde(default)]
    pub sessions: Option<usize>,
    /// How they treat messages.
    #[serde(default)]
    pub messages: Table,
}

/// What a site does instead of a greeting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reception {
    /// Resets the connection.
    Reset,
    /// Never says a word.
    Silent,
    /// Greets with this reply and closes.
    Refusal(ReplyText),
}

/// What is wrong with the names of a site's domains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NameFault {
    /// They do not exist.
    Nxdomain,
    /// The server cannot say.
    Servfail,
    /// No answer comes.
    Silence,
    /// They take no mail (RFC 7505).
    NullMx,
    /// The host has no address.
    NoAddress,
}

/// All sites of a world.
#[derive(Debug, Default)]
pub struct Sites {
    groups: Vec<Part>,
    by_name: HashMap<String, usize>,
    sites: Vec<Site>,
}

/// A group of which the sites have been made.
#[derive(Debug)]
struct Part {
    name: String,
    domains: u32,
    first: u32,
    count: u32,
    address: u32,
    addresses: u32,
}

/// One receiving host.
#[derive(Debug)]
pub struct Site {
    /// The place of its manners among all.
    pub manners: usize,
    /// What it does instead of a greeting.
    pub reception: Option<Reception>,
    /// What is wrong with its domains' names.
    pub fault: Option<NameFault>,
    /// Sessions at a time.
    pub limit: Option<usize>,
    /// What came to it, of all threads together.
    pub traffic: Traffic,
}

/// Sessions and messages at one place, of all threads together.
#[derive(Debug, Default)]
pub struct Traffic {
    /// Sessions that are open.
    open: AtomicUsize,
    /// The most that were open at a time, those turned away not counted.
    most: AtomicUsize,
    /// Sessions that came.
    sessions: AtomicU64,
    /// Messages that were taken.
    messages: AtomicU64,
}

/// What a name of a group stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Named {
    /// A domain, served by this site.
    Domain(u32),
    /// The host of this site.
    Host(u32),
    /// The group's own name.
    Group,
}

/// A group that cannot be.
#[derive(Debug, thiserror::Error)]
pub enum SitesError {
    /// No sites, fewer domains than sites, or far too many.
    #[error(
        "[[sites]] {0}: at least one site, a domain for each; 1000 addresses a site and 1048576 in all at most"
    )]
    Count(String),
    /// Past the end of the addresses, or over those of another group.
    #[error("[[sites]] {0}: its addresses do not fit, or another group has them")]
    Addresses(String),
    /// More exceptions than sites.
    #[error("[[sites]] {0}: the shares of its exceptions must be from 0 to 1, and 1 together")]
    Shares(String),
}

impl Sites {
    /// Adds the sites of a group; `manners` gives the place of manners that are made of these
    /// tables, the later over the earlier.
    ///
    /// # Errors
    /// See [`SitesError`], or whatever `manners` says.
    pub fn add<E: From<SitesError>>(
        &mut self,
        group: &Group,
        mut manners: impl FnMut(&[&Table]) -> Result<usize, E>,
    ) -> Result<(), E> {
        let name = group.name.trim_end_matches('.').to_ascii_lowercase();
        let part = self.part(group, &name)?;
        let kinds = kinds(group).ok_or(SitesError::Shares(name.clone()))?;
        let ordinary = manners(&[&group.messages])?;
        let places = group.except.iter().map(|one| manners(&[&group.messages, &one.messages]));
        let places: Vec<usize> = places.collect::<Result<_, E>>()?;
        self.sites.extend(kinds.into_iter().map(|kind| {
            let exception = kind.map(|at| &group.except[at]);
            Site {
                manners: kind.map_or(ordinary, |at| places[at]),
                reception: exception.and_then(|one| one.connect.clone()),
                fault: exception.and_then(|one| one.dns),
                limit: exception.and_then(|one| one.sessions).or(group.sessions),
                traffic: Traffic::default(),
            }
        }));
        self.by_name.insert(name, self.groups.len());
        self.groups.push(part);
        Ok(())
    }

    fn part(&self, group: &Group, name: &str) -> Result<Part, SitesError> {
        let first = self.sites.len() as u32;
        let (count, address) = (group.count, u32::from(group.address));
        let all = count.checked_mul(group.addresses).filter(|all| (1..=SITES_MAX).contains(all));
        let is_sound = group.domains >= count
            && count <= SITES_MAX - first
            && group.addresses <= ADDRESSES_MAX;
        let all = all.filter(|_| is_sound).ok_or_else(|| SitesError::Count(name.into()))?;
        let last = address.checked_add(all - 1);
        let is_free = |last: u32| {
            self.groups.iter().all(|other| last < other.address || address > other.last_address())
                && !self.by_name.contains_key(name)
        };
        if !last.is_some_and(is_free) {
            return Err(SitesError::Addresses(name.into()));
        }
        let (domains, addresses) = (group.domains, group.addresses);
        Ok(Part { name: name.into(), domains, first, count, address, addresses })
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.sites.is_empty()
    }

    /// The site with this number.
    pub fn site(&self, number: u32) -> &Site {
        &self.sites[number as usize]
    }

    /// The site that an address belongs to.
    pub fn at(&self, address: IpAddr) -> Option<u32> {
        let IpAddr::V4(address) = address else { return None };
        let address = u32::from(address);
        let is_in = |part: &&Part| (part.address..=part.last_address()).contains(&address);
        let part = self.groups.iter().find(is_in)?;
        Some(part.first + (address - part.address) / part.addresses)
    }

    /// What a name in lower case, without a dot at its end, stands for.
    pub fn named(&self, name: &str) -> Option<Named> {
        if let Some((first, rest)) = name.split_once('.')
            && let Some(place) = self.by_name.get(rest)
        {
            let part = &self.groups[*place];
            return match (number(first, "d"), number(first, "mx")) {
                (Some(domain), _) if domain < part.domains => {
                    Some(Named::Domain(part.first + domain % part.count))
                }
                (_, Some(site)) if site < part.count => Some(Named::Host(part.first + site)),
                _ => None,
            };
        }
        self.by_name.contains_key(name).then_some(Named::Group)
    }

    /// Whether a name in lower case stands below a group's.
    pub fn is_below_group(&self, name: &str) -> bool {
        let mut parents = name.match_indices('.').map(|(dot, _)| &name[dot + 1..]);
        parents.any(|parent| self.by_name.contains_key(parent))
    }

    /// The site that serves a domain in lower case.
    pub fn of_domain(&self, domain: &str) -> Option<u32> {
        match self.named(domain) {
            Some(Named::Domain(site)) => Some(site),
            _ => None,
        }
    }

    /// The addresses of a site.
    pub fn addresses(&self, number: u32) -> impl Iterator<Item = Ipv4Addr> {
        let part = self.part_of(number);
        let first = part.address + (number - part.first) * part.addresses;
        (first..first + part.addresses).map(Ipv4Addr::from)
    }

    /// The name of a site's host.
    pub fn host(&self, number: u32) -> String {
        let part = self.part_of(number);
        format!("mx{}.{}", number - part.first, part.name)
    }

    /// All of them, in the order of their numbers.
    pub fn all(&self) -> impl Iterator<Item = (u32, &Site)> {
        (0..).zip(&self.sites)
    }

    fn part_of(&self, number: u32) -> &Part {
        let after = self.groups.partition_point(|part| part.first <= number);
        &self.groups[after - 1]
    }
}

impl Part {
    fn last_address(&self) -> u32 {
        self.address + (self.count * self.addresses - 1)
    }
}

impl Traffic {
    /// Counts a session in, unless there are `limit` already.
    pub fn enter(&self, limit: Option<usize>) -> bool {
        // Counted before it is judged, so that two threads cannot both take the last place.
        let before = self.open.fetch_add(1, Ordering::Relaxed);
        if limit.is_some_and(|most| before >= most) {
            self.open.fetch_sub(1, Ordering::Relaxed);
            return false;
        }
        self.most.fetch_max(before + 1, Ordering::Relaxed);
        self.sessions.fetch_add(1, Ordering::Relaxed);
        true
    }

    /// Counts messages that were taken.
    pub fn took(&self, messages: u64) {
        self.messages.fetch_add(messages, Ordering::Relaxed);
    }

    /// Counts a session out.
    pub fn leave(&self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }

    /// Sessions that were open at a time, at most; that came; messages that were taken.
    pub fn so_far(&self) -> (usize, u64, u64) {
        let read = |number: &AtomicU64| number.load(Ordering::Relaxed);
        (self.most.load(Ordering::Relaxed), read(&self.sessions), read(&self.messages))
    }
}

/// Which exception each site of a group is of, if of any.
fn kinds(group: &Group) -> Option<Vec<Option<usize>>> {
    let shares: f64 = group.except.iter().map(|one| one.share).sum();
    let is_share = |one: &Exception| (0.0..=1.0).contains(&one.share);
    if !group.except.iter().all(is_share) || shares > 1.0 + 1e-9 {
        return None;
    }
    let mut kinds = Vec::with_capacity(group.count as usize);
    for (at, one) in group.except.iter().enumerate() {
        let count = (one.share * f64::from(group.count)).round() as usize;
        kinds.extend(std::iter::repeat_n(Some(at), count));
    }
    kinds.resize(group.count as usize, None);
    Rng::with_seed(SEED).shuffle(&mut kinds);
    Some(kinds)
}

/// The number behind `prefix`, as it is written by us: without zeros in front.
fn number(label: &str, prefix: &str) -> Option<u32> {
    let digits = label.strip_prefix(prefix)?;
    let is_number = digits.bytes().all(|digit| digit.is_ascii_digit());
    let is_short = digits == "0" || !digits.starts_with('0');
    (is_number && is_short).then(|| digits.parse().ok()).flatten()
}

fn one() -> u32 {
    1
}

impl<'de> Deserialize<'de> for Reception {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Reception, D::Error> {
        let text = String::deserialize(from)?;
        match text.as_str() {
            "reset" => Ok(Reception::Reset),
            "silent" => Ok(Reception::Silent),
            text => text.parse().map(Reception::Refusal).map_err(|error: ReplyTextError| {
                serde::de::Error::custom(format!("neither reset nor silent, and {error}"))
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sites(text: &str) -> Result<Sites, SitesError> {
        let mut sites = Sites::default();
        let group: Group = toml::from_str(text).unwrap();
        sites.add(&group, |tables| Ok::<_, SitesError>(tables.len()))?;
        Ok(sites)
    }

    #[test]
    fn names_and_addresses_lead_to_the_same_site() {
        let sites = sites(
            "name = \"Bulk.example\"\ndomains = 10000\ncount = 500\naddress = \"127.10.0.254\"\n\
             addresses = 2",
        )
        .unwrap();
        assert_eq!(sites.named("d0.bulk.example"), Some(Named::Domain(0)));
        assert_eq!(sites.named("d9999.bulk.example"), Some(Named::Domain(499)));
        assert_eq!(sites.named("mx499.bulk.example"), Some(Named::Host(499)));
        assert_eq!(sites.named("bulk.example"), Some(Named::Group));
        for name in ["d10000", "mx500", "d01", "d", "d+1", "x", "www.d1"] {
            assert_eq!(sites.named(&format!("{name}.bulk.example")), None, "{name}");
        }
        let addresses: Vec<_> = sites.addresses(1).collect();
        assert_eq!(addresses, [Ipv4Addr::new(127, 10, 1, 0), Ipv4Addr::new(127, 10, 1, 1)]);
        for (number, _) in sites.all() {
            for address in sites.addresses(number) {
                assert_eq!(sites.at(address.into()), Some(number));
            }
        }
        assert_eq!(sites.at(Ipv4Addr::new(127, 10, 0, 253).into()), None);
        assert_eq!(sites.host(499), "mx499.bulk.example");
    }

    #[test]
    fn exceptions_are_as_many_as_their_share_and_always_the_same() {
        let text = "name = \"b.example\"\ndomains = 200\ncount = 200\naddress = \"127.9.0.1\"\n\
            except = [{ share = 0.05, connect = \"silent\" }, { share = 0.1, dns = \"servfail\" }]";
        let (one, two) = (sites(text).unwrap(), sites(text).unwrap());
        let silent = |sites: &Sites| -> Vec<u32> {
            let all = sites.all().filter(|(_, site)| site.reception == Some(Reception::Silent));
            all.map(|(number, _)| number).collect()
        };
        assert_eq!(silent(&one).len(), 10);
        assert_eq!(silent(&one), silent(&two));
        let failing = one.all().filter(|(_, site)| site.fault == Some(NameFault::Servfail));
        assert_eq!(failing.count(), 20);
        assert_eq!(one.all().filter(|(_, site)| site.manners == 2).count(), 30);
    }

    #[test]
    fn groups_that_cannot_be_are_refused() {
        for text in [
            "name = \"a\"\naddress = \"127.0.0.1\"\ncount = 0",
            "name = \"a\"\naddress = \"127.0.0.1\"\ncount = 5",
            "name = \"a\"\naddress = \"127.0.0.1\"\ncount = 4000000000\ndomains = 4000000000",
            "name = \"a\"\naddress = \"127.0.0.1\"\naddresses = 4000000000",
            "name = \"a\"\naddress = \"255.255.255.255\"\ncount = 2\ndomains = 2",
            "name = \"a\"\naddress = \"127.0.0.1\"\nexcept = [{ share = 1.5 }]",
        ] {
            assert!(sites(text).is_err(), "{text}");
        }
        let mut two = sites("name = \"a\"\naddress = \"127.0.0.1\"\naddresses = 9").unwrap();
        let group = toml::from_str("name = \"b\"\naddress = \"127.0.0.9\"").unwrap();
        assert!(two.add(&group, |_| Ok::<_, SitesError>(0)).is_err(), "an address of another");
    }

    #[test]
    fn a_place_counts_who_is_there() {
        let traffic = Traffic::default();
        assert!(traffic.enter(Some(2)) && traffic.enter(Some(2)));
        assert!(!traffic.enter(Some(2)));
        traffic.took(5);
        traffic.leave();
        assert!(traffic.enter(Some(2)));
        assert_eq!(traffic.so_far(), (2, 3, 5));
    }
}
