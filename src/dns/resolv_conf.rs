//! The name servers of the machine, out of `resolv.conf`.
//!
//! Only `nameserver` lines matter: names in mail are complete, so there is nothing to search, and
//! time and rotation are [`super::asking`]'s.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6};

/// The servers in their order, eight at most; the one of this machine if there are none.
pub fn servers(text: &str) -> Vec<SocketAddr> {
    let mut servers: Vec<SocketAddr> = text.lines().filter_map(server).collect();
    servers.truncate(SERVERS);
    if servers.is_empty() {
        servers.push(SocketAddr::from((Ipv4Addr::LOCALHOST, PORT)));
    }
    servers
}

/// The machine's servers; the one of this machine if it does not say (resolv.conf(5)).
pub fn system_servers() -> Vec<SocketAddr> {
    servers(&std::fs::read_to_string(PATH).unwrap_or_default())
}

fn server(line: &str) -> Option<SocketAddr> {
    let mut words = line.split_whitespace();
    if words.next()? != "nameserver" {
        return None;
    }
    let address = words.next()?;
    // A link-local address names its interface, by number here: `fe80::1%2`.
    if let Some((address, scope)) = address.split_once('%') {
        let scope = scope.parse().ok()?;
        return Some(SocketAddrV6::new(address.parse().ok()?, PORT, 0, scope).into());
    }
    Some(SocketAddr::new(address.parse::<IpAddr>().ok()?, PORT))
}

const PATH: &str = "/etc/resolv.conf";
/// The port of name servers.
const PORT: u16 = 53;
/// More would only be asked after all these have failed.
const SERVERS: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(text: &str) -> Vec<String> {
        servers(text).iter().map(SocketAddr::to_string).collect()
    }

    #[test]
    fn nameserver_lines_count() {
        let text = "# nameserver 192.0.2.9\nsearch example\nnameserver 192.0.2.1\n\
                    nameserver\t2001:db8::1 # ours\nnameserver fe80::1%2\noptions rotate\n";
        assert_eq!(texts(text), ["192.0.2.1:53", "[2001:db8::1]:53", "[fe80::1%2]:53"]);
    }

    #[test]
    fn without_a_server_it_is_this_machine() {
        for text in ["", "nameserver", "nameserver example.com", "nameserver fe80::1%eth0", "\0"] {
            assert_eq!(texts(text), ["127.0.0.1:53"], "{text:?}");
        }
        assert_eq!(texts(&"nameserver 192.0.2.1\n".repeat(99)).len(), SERVERS);
    }
}
