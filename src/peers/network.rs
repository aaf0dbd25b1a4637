//! What counts as one client: its host, and where a single one says too little, its network.
//!
//! Hosts of one sender share a /24, and an IPv6 client has a whole /64 of addresses for itself
//! (RFC 6177 has it given out even to homes).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A client by itself: its address, or for IPv6 the first address of its /64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Host(IpAddr);

impl Host {
    /// The host at an address; an IPv4 address that came through an IPv6 socket is one of IPv4.
    pub fn of(address: IpAddr) -> Host {
        Host(match address.to_canonical() {
            IpAddr::V6(v6) => subnet(v6).into(),
            v4 => v4,
        })
    }
}

/// A client's network: the first address of its /24, or of its /64 for IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Network(IpAddr);

impl Network {
    /// The network of an address, of an IPv4 address that came through an IPv6 socket likewise.
    pub fn of(address: IpAddr) -> Network {
        Network(match address.to_canonical() {
            IpAddr::V4(v4) => Ipv4Addr::from_bits(v4.to_bits() & !0 << 8).into(),
            IpAddr::V6(v6) => subnet(v6).into(),
        })
    }

    /// Its octets, of which the first tells the family.
    pub fn octets(self) -> [u8; 17] {
        let mut octets = [0; 17];
        match self.0 {
            IpAddr::V4(v4) => {
                octets[0] = 4;
                octets[1..5].copy_from_slice(&v4.octets());
            }
            IpAddr::V6(v6) => {
                octets[0] = 6;
                octets[1..].copy_from_slice(&v6.octets());
            }
        }
        octets
    }
}

/// The first address of its /64.
fn subnet(address: Ipv6Addr) -> Ipv6Addr {
    Ipv6Addr::from_bits(address.to_bits() & !0 << 64)
}

/// With the length of its prefix: `192.0.2.0/24`.
impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bits = if self.0.is_ipv4() { 24 } else { 64 };
        write!(f, "{}/{bits}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_an_address_or_a_64() {
        let of = |text: &str| Host::of(text.parse().unwrap());
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
        assert_eq!(of("192.0.2.1"), of("::ffff:192.0.2.1"));
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
    }

    #[test]
    fn neighbours_are_one_client() {
        let of = |text: &str| Network::of(text.parse().unwrap());
        assert_eq!(of("192.0.2.1"), of("192.0.2.254"));
        assert_eq!(of("192.0.2.1"), of("::ffff:192.0.2.9"));
        assert_ne!(of("192.0.2.1"), of("192.0.3.1"));
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("192.0.2.77").to_string(), "192.0.2.0/24");
        assert_eq!(of("2001:db8::77").to_string(), "2001:db8::/64");
        // No IPv4 network has the octets of an IPv6 one.
        assert_ne!(of("32.1.13.184").octets(), of("2001:db8::").octets());
    }
}
