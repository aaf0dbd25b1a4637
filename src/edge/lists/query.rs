//! What a DNS list is asked, and what its answers mean (RFC 5782).
//!
//! Pure.  An answer counts as a listing only if the operator named its code.  What a list says when
//! it refuses to answer, and what a domain says that is a list no more, must not count: either would
//! refuse everybody's mail.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::ops::RangeInclusive;

use crate::dns::name::write_backwards;
use crate::dns::{Answer, LookupError, Name, Record};

/// What an answer of a list means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reading {
    /// Listed, with these codes, the lowest first; at least one.
    Listed(Vec<Ipv4Addr>),
    /// Not there.
    NotListed,
    /// No listing, and more than that.
    Odd(Oddity),
    /// Nobody could say: why.
    Unanswered(Box<str>),
}

/// An answer that is no listing and not an absence either.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Oddity {
    /// 127.255.255.x or 127.0.0.1: the list refuses to answer us, most of the time because of
    /// whom we ask it through.
    Refusal(Ipv4Addr),
    /// Not in 127.0.0.0/8: whoever answers is no list.
    Foreign(Ipv4Addr),
    /// In 127.0.0.0/8, but no code that the operator named: another part of a combined list.
    Unnamed(Ipv4Addr),
}

/// The name to ask about an address: its octets, or the nibbles of an IPv6 address, backwards under
/// the zone (RFC 5782 sections 2.1 and 2.4); `None` if the DNS can hold no such name.
pub fn of_address(address: IpAddr, zone: &Name) -> Option<Name> {
    backwards(address.to_canonical(), zone)
}

/// The same for an address that is asked about as IPv6 although it maps an IPv4 one: the test
/// entries of RFC 5782 section 5 are such.
pub fn of_mapped(address: Ipv4Addr, zone: &Name) -> Option<Name> {
    backwards(address.to_ipv6_mapped().into(), zone)
}

fn backwards(address: IpAddr, zone: &Name) -> Option<Name> {
    let mut text = String::with_capacity(64 + zone.as_str().len());
    write_backwards(&mut text, address);
    text.push_str(zone.as_str());
    Name::parse(&text)
}

/// The name to ask about a domain (RFC 5782 section 3); `None` if it would be too long.
pub fn of_domain(domain: &Name, zone: &Name) -> Option<Name> {
    Name::parse(&format!("{domain}.{zone}"))
}

/// What the answer to such a question means where these codes count.
pub fn read(answer: &Answer, codes: &[RangeInclusive<Ipv4Addr>]) -> Reading {
    let records = match &answer.result {
        Ok(records) => records,
        Err(LookupError::NoName | LookupError::NoData) => return Reading::NotListed,
        Err(LookupError::Temporary { why }) => return Reading::Unanswered(why.clone()),
    };
    let found = records.iter().filter_map(|record| match record {
        Record::A(address) => Some(*address),
        _ => None,
    });
    let mut found: Vec<Ipv4Addr> = found.collect();
    found.sort_unstable();
    // One address that is no list's makes all of them worthless.
    if let Some(oddity) = found.iter().find_map(|&address| oddity(address)) {
        return Reading::Odd(oddity);
    }
    let is_named = |address: &Ipv4Addr| codes.iter().any(|range| range.contains(address));
    match found.iter().any(is_named) {
        true => Reading::Listed(found.into_iter().filter(is_named).collect()),
        false => found.first().map_or(Reading::NotListed, |&a| Reading::Odd(Oddity::Unnamed(a))),
    }
}

/// What an address says that no list answers with.
fn oddity(address: Ipv4Addr) -> Option<Oddity> {
    match address.octets() {
        [127, 255, 255, _] | [127, 0, 0, 1] => Some(Oddity::Refusal(address)),
        [127, ..] => None,
        _ => Some(Oddity::Foreign(address)),
    }
}

impl fmt::Display for Oddity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Oddity::Refusal(code) => write!(f, "the list refuses to answer: {code}"),
            Oddity::Foreign(address) => write!(f, "{address} is no answer of a list"),
            Oddity::Unnamed(code) => write!(f, "{code} is no code that counts here"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;
    use std::time::Instant;

    use proptest::prelude::*;

    use super::*;

    fn name(text: &str) -> Name {
        Name::parse(text).expect("a name")
    }

    fn codes() -> Vec<RangeInclusive<Ipv4Addr>> {
        let code = |last| Ipv4Addr::new(127, 0, 0, last);
        vec![code(2)..=code(4), code(9)..=code(9)]
    }

    fn answer(addresses: &[&str]) -> Answer {
        let records = addresses.iter().map(|a| Record::A(a.parse().expect("an address")));
        Answer { result: Ok(records.collect()), authentic: false, expires: Instant::now() }
    }

    #[test]
    fn an_address_is_asked_about_backwards() {
        let zone = name("dnsbl.example");
        for (address, asked) in [
            ("192.0.2.17", "17.2.0.192.dnsbl.example"),
            ("::ffff:192.0.2.17", "17.2.0.192.dnsbl.example"),
            (
                "2001:db8:1:2:3:4:567:89ab",
                "b.a.9.8.7.6.5.0.4.0.0.0.3.0.0.0.2.0.0.0.1.0.0.0.8.b.d.0.1.0.0.2.dnsbl.example",
            ),
        ] {
            let found = of_address(address.parse().expect("an address"), &zone);
            assert_eq!(found, Some(name(asked)), "{address}");
        }
        // The very name of RFC 5782 section 5.
        let mapped = of_mapped(Ipv4Addr::new(127, 0, 0, 2), &zone).expect("it fits");
        assert_eq!(
            mapped.as_str(),
            "2.0.0.0.0.0.f.7.f.f.f.f.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.dnsbl.example"
        );
    }

    #[test]
    fn what_does_not_fit_a_name_is_not_asked() {
        let label = "a".repeat(60);
        let long = name(&format!("{label}.{label}.{label}.{label}"));
        assert_eq!(of_domain(&long, &name("dbl.example")), None);
        assert_eq!(of_address("192.0.2.100".parse().expect("one"), &long), None);
        let fits = of_domain(&name("spam.test"), &name("dbl.example"));
        assert_eq!(fits, Some(name("spam.test.dbl.example")));
    }

    #[test]
    fn only_named_codes_are_listings() {
        let address = |text: &str| text.parse::<Ipv4Addr>().expect("an address");
        let listed = |codes: &[&str]| Reading::Listed(codes.iter().map(|c| address(c)).collect());
        for (addresses, reading) in [
            (&["127.0.0.2"][..], listed(&["127.0.0.2"])),
            (&["127.0.0.9", "127.0.0.3"], listed(&["127.0.0.3", "127.0.0.9"])),
            (&["127.0.0.10", "127.0.0.4"], listed(&["127.0.0.4"])),
            (&["127.0.0.10"], Reading::Odd(Oddity::Unnamed(address("127.0.0.10")))),
            (&["127.0.0.1"], Reading::Odd(Oddity::Refusal(address("127.0.0.1")))),
            (
                &["127.0.0.2", "127.255.255.254"],
                Reading::Odd(Oddity::Refusal(address("127.255.255.254"))),
            ),
            (&["203.0.113.7"], Reading::Odd(Oddity::Foreign(address("203.0.113.7")))),
            (&["127.0.0.2", "203.0.113.7"], Reading::Odd(Oddity::Foreign(address("203.0.113.7")))),
        ] {
            assert_eq!(read(&answer(addresses), &codes()), reading, "{addresses:?}");
        }
    }

    #[test]
    fn even_a_named_code_does_not_count_if_it_says_that_something_is_wrong() {
        let all = [Ipv4Addr::new(127, 0, 0, 0)..=Ipv4Addr::new(127, 255, 255, 255)];
        for address in ["127.0.0.1", "127.255.255.252", "127.255.255.255"] {
            let reading = read(&answer(&[address]), &all);
            assert!(matches!(reading, Reading::Odd(Oddity::Refusal(_))), "{address}");
        }
    }

    #[test]
    fn absences_and_failures() {
        let now = Instant::now();
        for error in [LookupError::NoName, LookupError::NoData] {
            let absent = Answer { result: Err(error), authentic: false, expires: now };
            assert_eq!(read(&absent, &codes()), Reading::NotListed);
        }
        let failed = Answer::temporary("no answer in time", now, std::time::Duration::ZERO);
        assert_eq!(read(&failed, &codes()), Reading::Unanswered("no answer in time".into()));
    }

    proptest! {
        /// The nibbles, read backwards, are the address again.
        #[test]
        fn nibbles_say_the_address(bits in any::<u128>()) {
            let address = Ipv6Addr::from_bits(bits);
            prop_assume!(address.to_ipv4_mapped().is_none());
            let asked = of_address(address.into(), &name("z.example")).expect("it fits");
            let nibbles = asked.as_str().strip_suffix(".z.example").expect("the zone");
            let nibbles: String = nibbles.split('.').rev().collect();
            prop_assert_eq!(nibbles.len(), 32);
            prop_assert_eq!(u128::from_str_radix(&nibbles, 16), Ok(bits));
        }

        #[test]
        fn octets_say_the_address(bits in any::<u32>()) {
            let address = Ipv4Addr::from_bits(bits);
            let asked = of_address(address.into(), &name("z.example")).expect("it fits");
            let octets = asked.as_str().strip_suffix(".z.example").expect("the zone");
            let forwards: Vec<&str> = octets.split('.').rev().collect();
            prop_assert_eq!(forwards.join(".").parse(), Ok(address));
        }
    }
}
