//! Which Host header a request over TCP may have.
//!
//! A web page can have its own name resolve to a loopback address and then read what answers
//! there (DNS rebinding).  Such a request names the page's host, so only names that no stranger
//! can give an address to are taken: addresses themselves, `localhost`, names without a dot, and
//! the gateway's own.

use std::net::{IpAddr, Ipv6Addr};

/// Whether the value of a Host header (RFC 9110 section 7.2) names this host.
pub(super) fn is_ours(host: &str, hostname: &str) -> bool {
    let Some(name) = without_port(host) else { return false };
    let name = name.strip_suffix('.').unwrap_or(name);
    is_address(name)
        || (!name.is_empty() && !name.contains('.'))
        || name.eq_ignore_ascii_case(hostname)
        || name.to_ascii_lowercase().ends_with(".localhost")
}

/// The host of `host:port`; `None` if the port is none.
fn without_port(host: &str) -> Option<&str> {
    let literal_end = host.rfind(']').map_or(0, |end| end + 1);
    match host[literal_end..].split_once(':') {
        Some((rest, port)) if port.bytes().all(|octet| octet.is_ascii_digit()) => {
            Some(&host[..literal_end + rest.len()])
        }
        Some(_) => None,
        None => Some(host),
    }
}

fn is_address(name: &str) -> bool {
    match name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(literal) => literal.parse::<Ipv6Addr>().is_ok(),
        None => name.parse::<IpAddr>().is_ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_ours() {
        for host in [
            "127.0.0.1",
            "127.0.0.1:8025",
            "192.0.2.7:8025",
            "[::1]",
            "[::1]:8025",
            "localhost",
            "LOCALHOST:8025",
            "a.localhost:8025",
            "mailrace:8025",
            "mx1.example.com:8025",
            "MX1.example.com.:8025",
        ] {
            assert!(is_ours(host, "mx1.example.com"), "{host}");
        }
    }

    #[test]
    fn names_that_are_foreign() {
        for host in [
            "",
            ":8025",
            "evil.example:8025",
            "mx1.example.com.evil.example",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "[::1].evil.example",
            "127.0.0.1:evil.example",
            "127.0.0.1@evil.example:80",
            "evillocalhost.example",
        ] {
            assert!(!is_ours(host, "mx1.example.com"), "{host}");
        }
    }
}
