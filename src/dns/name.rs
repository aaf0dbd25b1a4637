//! Names of hosts and domains as questions are asked about them.
//!
//! A [`Name`] is in A-labels and lower case, without the final dot, and made of letters, digits,
//! hyphens and underscores only (hosts have no underscores, but policy records have).  So two names
//! are equal exactly if the DNS takes them for equal, and one can stand in a log line or a key as
//! it is.  The DNS itself allows any octet in a label; such names exist in no mail and are refused.

use std::borrow::Cow;
use std::fmt::{self, Write as _};
use std::net::IpAddr;
use std::sync::Arc;

use idna::uts46::{DnsLength, Hyphens, Uts46};

use crate::limits::LABEL;

/// A name in the DNS, in its one canonical spelling; never the root.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Arc<str>);

impl Name {
    /// Reads a domain in any case, with U-labels or A-labels, with or without the final dot;
    /// `None` if the DNS can hold no such name or no host could bear it.
    pub fn parse(text: &str) -> Option<Name> {
        let text = text.strip_suffix('.').unwrap_or(text);
        let ascii = if text.is_ascii() { Cow::Borrowed(text) } else { to_ascii(text)? };
        let valid = ascii.len() <= NAME && ascii.split('.').all(is_label);
        valid.then(|| Name(ascii.to_ascii_lowercase().into()))
    }

    /// The name made of the labels of a message, its final empty one left out.
    pub(super) fn from_labels<'a>(labels: impl Iterator<Item = &'a [u8]>) -> Option<Name> {
        let mut text = String::new();
        for label in labels {
            if !text.is_empty() {
                text.push('.');
            }
            // A dot within a label would make two of it.
            text.push_str(std::str::from_utf8(label).ok().filter(|label| !label.contains('.'))?);
        }
        if text.is_ascii() { Name::parse(&text) } else { None }
    }

    /// The name whose PTR records name the host of `address` (RFC 1035 section 3.5, RFC 3596
    /// section 2.5).
    pub fn reverse(address: IpAddr) -> Name {
        let (address, mut text) = (address.to_canonical(), String::with_capacity(72));
        write_backwards(&mut text, address);
        text.push_str(if address.is_ipv4() { "in-addr.arpa" } else { "ip6.arpa" });
        Name(text.into())
    }

    /// In A-labels and lower case, without the final dot.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Its labels, the leftmost first.
    pub(super) fn labels(&self) -> impl Iterator<Item = &str> {
        self.0.split('.')
    }

    /// Whether it names this machine without any DNS (RFC 6761 section 6.3).
    pub fn is_localhost(&self) -> bool {
        self.0.rsplit('.').next() == Some("localhost")
    }
}

/// Writes the octets of an IPv4 address, or the nibbles of an IPv6 one, backwards, each with a dot
/// behind it.
pub fn write_backwards(out: &mut String, address: IpAddr) {
    match address {
        IpAddr::V4(address) => {
            for octet in address.octets().iter().rev() {
                let _ = write!(out, "{octet}.");
            }
        }
        IpAddr::V6(address) => {
            for octet in address.octets().iter().rev() {
                let _ = write!(out, "{:x}.{:x}.", octet & 15, octet >> 4);
            }
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A name of 255 octets on the wire (RFC 1035 section 2.3.4), as text.
const NAME: usize = 253;

fn is_label(label: &str) -> bool {
    let inner = |octet: u8| octet.is_ascii_alphanumeric() || octet == b'-' || octet == b'_';
    (1..=LABEL).contains(&label.len()) && label.bytes().all(inner)
}

/// By UTS 46 with the same switches as [`crate::smtp::address`], so that what was accepted as an
/// address can be looked up.
fn to_ascii(text: &str) -> Option<Cow<'_, str>> {
    Uts46::new()
        .to_ascii(
            text.as_bytes(),
            idna::AsciiDenyList::STD3,
            Hyphens::CheckFirstLast,
            DnsLength::Verify,
        )
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_one_spelling() {
        for (text, name) in [
            ("Example.COM", "example.com"),
            ("example.com.", "example.com"),
            ("_dmarc.example.com", "_dmarc.example.com"),
            ("b\u{fc}cher.example", "xn--bcher-kva.example"),
            ("B\u{dc}CHER.example.", "xn--bcher-kva.example"),
        ] {
            assert_eq!(Name::parse(text).expect(text).as_str(), name);
        }
    }

    #[test]
    fn what_no_host_can_bear_is_refused() {
        let long_label = format!("{}.example", "a".repeat(64));
        let long_name = format!("{}example", "aaaaaaa.".repeat(31));
        for text in
            ["", ".", "..", "a..b", ".a", "a b", "a\0b", "[192.0.2.1]", &long_label, &long_name]
        {
            assert_eq!(Name::parse(text), None, "{text}");
        }
        assert_eq!(Name::from_labels([&b"a.b"[..], b"c"].into_iter()), None);
        assert_eq!(Name::from_labels([&b"\xff"[..], b"c"].into_iter()), None);
        assert_eq!(Name::from_labels(std::iter::empty()), None);
    }

    #[test]
    fn an_address_has_a_name() {
        let v4 = Name::reverse("192.0.2.17".parse().expect("an address"));
        assert_eq!(v4.as_str(), "17.2.0.192.in-addr.arpa");
        let v6 = Name::reverse("2001:db8::1a".parse().expect("an address"));
        assert!(
            v6.as_str().starts_with("a.1.0.0.0.0.") && v6.as_str().ends_with(".1.0.0.2.ip6.arpa")
        );
        assert_eq!(Name::parse(v6.as_str()), Some(v6));
    }
}
