//! Answers questions for the names of the world: MX and addresses of the domains that it serves.
//!
//! Pure: a packet in, a packet out.  A domain that is served has one MX, `mx.` before its own
//! name (a domain of `[[sites]]` that of its site); IPv6 addresses and everything else of a name
//! that is there are answered by "no data" (RFC 2308 section 2.2), all other names by NXDOMAIN.

use std::net::{Ipv4Addr, SocketAddr};

use fastrand::Rng;
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, MX, SOA};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use serde::Deserialize;

use super::manners::SpanRange;
use super::sites::{NameFault, Named};
use super::world::World;
use crate::units::Span;

/// What a client takes by UDP that does not say more (RFC 1035 section 4.2.1).
const UDP_MIN: usize = 512;
/// The most that is sent by UDP, and announced: what fits a packet everywhere.
const UDP_MAX: u16 = 1_232;

/// How names are answered; the table `[dns]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Naming {
    /// Where.
    pub listen: Option<SocketAddr>,
    /// How long answers may be kept, the negative ones too.
    pub ttl: Span,
    /// The address of the hosts that are of no `[[sites]]`.
    pub address: Ipv4Addr,
    /// Domains that are served beside those of `[[domain]]` and `[[sites]]`; `*.example` is all
    /// below `example`.
    pub domains: Vec<String>,
    /// What an answer takes.
    pub latency: Option<SpanRange>,
    /// Share of answers by UDP that are cut, so that the client must ask again by TCP.
    pub truncate: f64,
    /// Share of questions by UDP that are never answered.
    pub drop: f64,
}

impl Default for Naming {
    fn default() -> Naming {
        Naming {
            listen: None,
            ttl: Span(std::time::Duration::from_secs(300)),
            address: Ipv4Addr::LOCALHOST,
            domains: vec!["*.example".into(), "*.test".into()],
            latency: None,
            truncate: 0.0,
            drop: 0.0,
        }
    }
}

/// How a question came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// In a datagram: the answer may have to be cut.
    Udp,
    /// In a stream.
    Tcp,
}

impl Naming {
    /// Whether all shares are shares.
    pub fn is_sound(&self) -> bool {
        let is_share = |share: &f64| (0.0..=1.0).contains(share);
        [self.truncate, self.drop].iter().all(is_share)
    }

    fn serves(&self, name: &str) -> bool {
        self.domains.iter().any(|pattern| match pattern.strip_prefix('*') {
            Some(parent) => name.len() > parent.len() && name.ends_with(parent),
            None => name == pattern,
        })
    }
}

/// The answer to a packet; None where none is to come, for it is no question or so the world
/// wants it.
pub fn answer(
    world: &World,
    packet: &[u8],
    transport: Transport,
    random: &mut Rng,
) -> Option<Vec<u8>> {
    let asked = Message::from_vec(packet).ok()?;
    let naming = &world.naming;
    let happens = |share: f64, random: &mut Rng| share > 0.0 && random.f64() < share;
    let is_udp = transport == Transport::Udp;
    if asked.metadata.message_type != MessageType::Query || is_udp && happens(naming.drop, random) {
        return None;
    }
    let mut reply = Message::response(asked.metadata.id, asked.metadata.op_code);
    reply.metadata.recursion_desired = asked.metadata.recursion_desired;
    reply.metadata.recursion_available = true;
    reply.metadata.authoritative = true;
    reply.queries.clone_from(&asked.queries);
    let mut limit = usize::from(u16::MAX);
    if is_udp {
        limit = asked
            .edns
            .as_ref()
            .map_or(UDP_MIN, |edns| usize::from(edns.max_payload().min(UDP_MAX)).max(UDP_MIN));
    }
    if asked.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(UDP_MAX);
        reply.set_edns(edns);
    }
    reply.metadata.response_code = match &asked.queries[..] {
        _ if asked.metadata.op_code != OpCode::Query => ResponseCode::NotImp,
        [query] if query.query_class() == DNSClass::IN => look_up(world, query, &mut reply)?,
        [_] => ResponseCode::Refused,
        _ => ResponseCode::FormErr,
    };
    let whole = reply.to_vec().ok()?;
    if whole.len() <= limit && !(is_udp && happens(naming.truncate, random)) {
        return Some(whole);
    }
    reply.answers.clear();
    reply.authorities.clear();
    reply.metadata.truncation = true;
    reply.to_vec().ok()
}

/// What a name stands for.
enum Found {
    Domain { host: String },
    Host { addresses: Vec<Ipv4Addr> },
    Fault(NameFault),
    Nothing,
    Unknown,
}

/// Puts the answer to `query` into `reply`; None where none is to come.
fn look_up(world: &World, query: &Query, reply: &mut Message) -> Option<ResponseCode> {
    let name = query.name();
    let text = name.to_lowercase().to_ascii();
    let ttl = u32::try_from(world.naming.ttl.0.as_secs()).unwrap_or(u32::MAX);
    let mut put = |data: RData| {
        reply.add_answer(Record::from_rdata(name.clone(), ttl, data));
    };
    let code = match (find(world, text.trim_end_matches('.')), query.query_type()) {
        (Found::Fault(NameFault::Silence), _) => return None,
        (Found::Fault(NameFault::Servfail), _) => return Some(ResponseCode::ServFail),
        (Found::Fault(NameFault::NullMx), RecordType::MX) => {
            put(RData::MX(MX::new(0, Name::root())));
            ResponseCode::NoError
        }
        (Found::Domain { host }, RecordType::MX) => {
            put(RData::MX(MX::new(10, Name::from_ascii(host).ok()?)));
            ResponseCode::NoError
        }
        (Found::Host { addresses }, RecordType::A) => {
            addresses.into_iter().for_each(|address| put(RData::A(A(address))));
            ResponseCode::NoError
        }
        (Found::Unknown | Found::Fault(NameFault::Nxdomain), _) => ResponseCode::NXDomain,
        _ => ResponseCode::NoError,
    };
    if reply.answers.is_empty() {
        // Any name above the one that was asked for may own it; two labels are enough of one.
        let owner = name.trim_to(2);
        let soa = SOA::new(owner.clone(), owner.clone(), 1, 3_600, 600, 86_400, ttl);
        reply.add_authority(Record::from_rdata(owner, ttl, RData::SOA(soa)));
    }
    Some(code)
}

fn find(world: &World, name: &str) -> Found {
    let sites = &world.sites;
    match sites.named(name) {
        Some(Named::Domain(site)) => match sites.site(site).fault {
            Some(NameFault::NoAddress) | None => Found::Domain { host: sites.host(site) },
            Some(fault) => Found::Fault(fault),
        },
        Some(Named::Host(site)) => match sites.site(site).fault {
            Some(NameFault::NoAddress) => Found::Nothing,
            _ => Found::Host { addresses: sites.addresses(site).collect() },
        },
        Some(Named::Group) => Found::Nothing,
        None => {
            let serves = |name: &str| world.has_domain(name) || world.naming.serves(name);
            match name.strip_prefix("mx.") {
                Some(domain) if serves(domain) => {
                    Found::Host { addresses: vec![world.naming.address] }
                }
                // What is not among the sites of a group is not there, whatever stands above it.
                _ if sites.is_below_group(name) => Found::Unknown,
                _ if serves(name) => Found::Domain { host: format!("mx.{name}.") },
                _ => Found::Unknown,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::world::tests::world;
    use super::*;

    const WORLD: &str = "[dns]\nttl = \"60s\"\ndomains = [\"*.other.example\", \"one.example\"]\n\
        [[domain]]\nname = \"*.slow.example\"\n\
        [[sites]]\nname = \"bulk.example\"\ndomains = 100\ncount = 10\naddress = \"127.8.0.1\"\n";

    fn ask(world: &World, name: &str, kind: RecordType, transport: Transport) -> Option<Message> {
        let mut asked = Message::query();
        asked.metadata.id = 77;
        asked.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        let packet = asked.to_vec().unwrap();
        let reply = answer(world, &packet, transport, &mut Rng::with_seed(1))?;
        let reply = Message::from_vec(&reply).unwrap();
        assert_eq!((reply.metadata.id, reply.queries), (77, asked.queries));
        Message::from_vec(&answer(world, &packet, transport, &mut Rng::with_seed(1))?).ok()
    }

    /// The code, the answers and whether a negative one may be kept.
    fn said(world: &World, name: &str, kind: RecordType) -> (ResponseCode, Vec<String>, bool) {
        let reply = ask(world, name, kind, Transport::Udp).unwrap();
        assert!(reply.answers.iter().all(|record| record.ttl == 60));
        let texts = reply.answers.iter().map(|record| record.data.to_string()).collect();
        (reply.metadata.response_code, texts, !reply.authorities.is_empty())
    }

    #[test]
    fn every_name_of_the_world_is_answered() {
        use RecordType::{A, AAAA, MX, TXT};
        let world = world(WORLD).unwrap();
        let mx = |host: &str| (ResponseCode::NoError, vec![format!("10 {host}.")], false);
        let a = |address: &str| (ResponseCode::NoError, vec![address.into()], false);
        let nothing = (ResponseCode::NoError, vec![], true);
        let unknown = (ResponseCode::NXDomain, vec![], true);
        for (name, kind, expected) in [
            ("d17.bulk.example.", MX, mx("mx7.bulk.example")),
            ("D17.Bulk.Example.", MX, mx("mx7.bulk.example")),
            ("mx7.bulk.example.", A, a("127.8.0.8")),
            ("mx7.bulk.example.", AAAA, nothing.clone()),
            ("d17.bulk.example.", A, nothing.clone()),
            ("d17.bulk.example.", TXT, nothing.clone()),
            ("bulk.example.", MX, nothing.clone()),
            ("d100.bulk.example.", MX, unknown.clone()),
            ("a.slow.example.", MX, mx("mx.a.slow.example")),
            ("mx.a.slow.example.", A, a("127.0.0.1")),
            ("one.example.", MX, mx("mx.one.example")),
            ("two.other.example.", MX, mx("mx.two.other.example")),
            ("other.example.", MX, unknown.clone()),
            ("two.example.", MX, unknown.clone()),
            (".", MX, unknown.clone()),
        ] {
            assert_eq!(said(&world, name, kind), expected, "{name} {kind}");
        }
    }

    #[test]
    fn sites_fail_by_name_as_they_are_told() {
        for (fault, mx, a) in [
            ("nxdomain", Some(ResponseCode::NXDomain), 1),
            ("servfail", Some(ResponseCode::ServFail), 1),
            ("silence", None, 1),
            ("null-mx", Some(ResponseCode::NoError), 1),
            ("no-address", Some(ResponseCode::NoError), 0),
        ] {
            let text = format!(
                "[[sites]]\nname = \"b.example\"\naddress = \"127.8.0.1\"\n\
                 except = [{{ share = 1, dns = \"{fault}\" }}]"
            );
            let world = world(&text).unwrap();
            let told = ask(&world, "d0.b.example.", RecordType::MX, Transport::Udp);
            assert_eq!(told.as_ref().map(|told| told.metadata.response_code), mx, "{fault}");
            if fault == "null-mx" {
                assert_eq!(told.unwrap().answers[0].data.to_string(), "0 .");
            }
            let host = ask(&world, "mx0.b.example.", RecordType::A, Transport::Udp).unwrap();
            assert_eq!(host.answers.len(), a, "{fault}");
        }
    }

    #[test]
    fn what_does_not_fit_a_datagram_is_cut_and_whole_by_tcp() {
        let text = "[[sites]]\nname = \"b.example\"\naddress = \"127.8.0.1\"\naddresses = 100";
        let world = world(text).unwrap();
        let cut = ask(&world, "mx0.b.example.", RecordType::A, Transport::Udp).unwrap();
        assert!(cut.metadata.truncation && cut.answers.is_empty());
        let whole = ask(&world, "mx0.b.example.", RecordType::A, Transport::Tcp).unwrap();
        assert_eq!((whole.metadata.truncation, whole.answers.len()), (false, 100));
    }

    #[test]
    fn what_is_no_question_gets_no_answer_or_a_refusal() {
        let world = world(WORLD).unwrap();
        let mut random = Rng::with_seed(1);
        for length in 0..40 {
            let noise: Vec<u8> = (0..length).map(|_| random.u8(..)).collect();
            // Whatever comes back, nothing breaks.
            let _ = answer(&world, &noise, Transport::Udp, &mut random);
        }
        let reply = Message::response(1, OpCode::Query).to_vec().unwrap();
        assert_eq!(answer(&world, &reply, Transport::Udp, &mut random), None);
        let empty = Message::query().to_vec().unwrap();
        let told = answer(&world, &empty, Transport::Udp, &mut random).unwrap();
        let told = Message::from_vec(&told).unwrap();
        assert_eq!(told.metadata.response_code, ResponseCode::FormErr);
    }
}
