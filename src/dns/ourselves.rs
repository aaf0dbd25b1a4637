//! Which mail hosts are this gateway itself.
//!
//! Mail that is sent to oneself comes back for ever (RFC 5321 section 5.1).  A host is known by
//! its name, or by an address and port on which this gateway listens.

use std::net::{IpAddr, SocketAddr};

use super::Name;

/// What this gateway is called and where it listens.
#[derive(Debug, Clone, Default)]
pub struct Ourselves {
    names: Vec<Name>,
    /// Addresses at which a connection to the delivery port ends here.
    addresses: Vec<IpAddr>,
    /// So does one to any address of 127/8, of which the interfaces name only the first.
    is_all_loopback: bool,
}

impl Ourselves {
    /// This gateway by the name that it greets with, the addresses of its listeners, the addresses
    /// of the machine's interfaces, and the port to which mail for hosts is delivered.
    ///
    /// A listener on another port is not met by that mail.  One on all addresses (`0.0.0.0`,
    /// `::`) is met at every one of the machine's; each family only at its own, as the listeners
    /// are bound.
    pub fn new(
        hostname: &str,
        listeners: &[SocketAddr],
        interfaces: &[IpAddr],
        delivery_port: u16,
    ) -> Ourselves {
        let (mut addresses, mut is_all_loopback) = (Vec::new(), false);
        for listener in listeners.iter().filter(|listener| listener.port() == delivery_port) {
            let of_family = |address: &&IpAddr| address.is_ipv4() == listener.is_ipv4();
            if listener.ip().is_unspecified() {
                addresses.extend(interfaces.iter().filter(of_family));
                is_all_loopback |= listener.is_ipv4();
            } else {
                addresses.push(listener.ip());
            }
        }
        // A name without a dot is what a machine calls itself that has not been named: it says
        // nothing about a host in the DNS.
        let names = Name::parse(hostname).filter(|name| name.as_str().contains('.'));
        Ourselves { names: names.into_iter().collect(), addresses, is_all_loopback }
    }

    /// Whether this gateway is called so.
    pub fn is_named(&self, name: &Name) -> bool {
        self.names.contains(name)
    }

    /// Whether mail that is delivered to `address` ends here.
    pub fn is_at(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        let is_loopback = address.is_ipv4() && address.is_loopback();
        self.is_all_loopback && is_loopback || self.addresses.contains(&address)
    }
}

/// The addresses of this machine's interfaces, loopback included.
///
/// # Errors
/// The system could not say.
pub fn interface_addresses() -> std::io::Result<Vec<IpAddr>> {
    let interfaces = nix::ifaddrs::getifaddrs()?;
    let addresses = interfaces.filter_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
    });
    Ok(addresses.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn only_listeners_on_the_delivery_port_count() {
        let listeners = ["192.0.2.1:25", "127.0.0.1:2525"].map(|text| text.parse().expect("one"));
        let at_25 = Ourselves::new("mx.example", &listeners, &[], 25);
        assert!(at_25.is_at(address("192.0.2.1")) && !at_25.is_at(address("127.0.0.1")));
        assert!(!at_25.is_at(address("127.0.0.2")), "only a listener on all addresses is there");
        assert!(at_25.is_at(address("::ffff:192.0.2.1")));
        let at_2525 = Ourselves::new("mx.example", &listeners, &[], 2525);
        assert!(at_2525.is_at(address("127.0.0.1")) && !at_2525.is_at(address("192.0.2.1")));
    }

    #[test]
    fn a_listener_on_all_addresses_is_met_at_each_of_its_family() {
        let interfaces = ["192.0.2.1", "2001:db8::1", "127.0.0.1"].map(address);
        let listeners = ["0.0.0.0:25".parse().expect("one")];
        let ourselves = Ourselves::new("mx.example", &listeners, &interfaces, 25);
        assert!(ourselves.is_at(address("192.0.2.1")) && ourselves.is_at(address("127.0.0.1")));
        assert!(!ourselves.is_at(address("2001:db8::1")));
        assert!(ourselves.is_at(address("127.0.0.2")) && !ourselves.is_at(address("192.0.2.2")));
    }

    #[test]
    fn an_unnamed_machine_has_no_name() {
        let localhost = Name::parse("localhost").expect("a name");
        assert!(!Ourselves::new("localhost", &[], &[], 25).is_named(&localhost));
        let mx = Name::parse("mx.example").expect("a name");
        assert!(Ourselves::new("MX.example", &[], &[], 25).is_named(&mx));
    }

    #[test]
    fn the_machine_has_a_loopback_address() {
        let addresses = interface_addresses().expect("the system says");
        assert!(addresses.iter().any(IpAddr::is_loopback), "{addresses:?}");
    }
}
