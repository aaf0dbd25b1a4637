//! Relay control: which recipient a session may send to, decided at RCPT.
//!
//! A pure function of the configuration and of what is known of the client.  Never an open relay:
//! a listener takes mail for its own domains (`mx`) or from its own networks (`relay`), and an
//! address that another system could take for a route of its own is refused to strangers.

use std::net::IpAddr;

use crate::config::{Config, RouteIndex, Service, Target};
use crate::delivery::sites::{postmaster_route, routing_domain};
use crate::smtp::address::{ForwardPath, Mailbox};
use crate::smtp::reply::Refusal;
use crate::smtp::server::MayInquire;
use crate::tls::Fingerprint;

/// What relay control looks at beside the address.
#[derive(Debug, Clone, Copy)]
pub struct Facts {
    /// What the listener is for.
    pub service: Service,
    /// The client's address.
    pub client: IpAddr,
    /// It is the address of a balancer that cannot tell for whom it speaks, and proves nothing.
    pub is_balancer: bool,
    /// The certificate that it has proved to hold the key of.
    pub certificate: Option<Fingerprint>,
    /// Whether the client has proved who it is.
    pub authenticated: bool,
}

/// The route for a recipient, or why it is refused.
///
/// # Errors
/// `RelayDenied`, `NoRoute`, or `Rejected` with the words of a `reject:` route.
pub fn decide(config: &Config, facts: Facts, path: &ForwardPath) -> Result<RouteIndex, Refusal> {
    if let ForwardPath::Mailbox(mailbox) = path {
        let domain = routing_domain(mailbox);
        may_send(config, facts, mailbox, &domain)?;
        return mailbox_route(config, mailbox, &domain);
    }
    route_for(config, path)
}

/// The route for a recipient, whoever sends to it.
///
/// # Errors
/// `NoRoute`, or `Rejected` with the words of a `reject:` route.
pub fn route_for(config: &Config, path: &ForwardPath) -> Result<RouteIndex, Refusal> {
    match path {
        ForwardPath::Postmaster => postmaster_route(config, "").ok_or(Refusal::NoRoute),
        ForwardPath::Mailbox(mailbox) => mailbox_route(config, mailbox, &routing_domain(mailbox)),
    }
}

/// Whether a client may start the queue for a domain (RFC 1985 section 7): it makes this host open
/// connections, and the answer tells what waits here.
pub fn may_start_queues(config: &Config, client: IpAddr) -> bool {
    config.relay.contains(client)
}

/// What a client may ask about who is here: what the configuration offers, and only whom it lets
/// send anywhere.
pub fn may_inquire(config: &Config, client: IpAddr) -> MayInquire {
    let (settings, is_ours) = (&config.recipients, config.relay.contains(client));
    let has_file = settings.file.is_some() && is_ours;
    MayInquire { verify: settings.vrfy && has_file, expand: settings.expn && has_file }
}

fn mailbox_route(config: &Config, to: &Mailbox, domain: &str) -> Result<RouteIndex, Refusal> {
    // RFC 5321 section 4.5.1: a postmaster of ours is refused by no route.
    if to.is_postmaster() && config.domains.contains(domain) {
        return postmaster_route(config, domain).ok_or(Refusal::NoRoute);
    }
    route(config, to.local_part(), domain)
}

fn may_send(config: &Config, facts: Facts, to: &Mailbox, domain: &str) -> Result<(), Refusal> {
    let is_ours = config.domains.contains(domain);
    let allowed = match facts.service {
        // A next hop might read `a%b@ours` or `"a@b"@ours` as mail for somebody else.
        Service::Mx => is_ours && !to.has_routing_characters(),
        Service::Relay => {
            let is_known = |certificate| config.relay.certificates.contains(&certificate);
            let is_near = !facts.is_balancer && config.relay.contains(facts.client);
            is_near || facts.certificate.is_some_and(is_known)
        }
        Service::Submission => facts.authenticated,
    };
    if allowed { Ok(()) } else { Err(Refusal::RelayDenied) }
}

fn route(config: &Config, local: &str, domain: &str) -> Result<RouteIndex, Refusal> {
    let (index, route) = config.routes.first_match(local, domain).ok_or(Refusal::NoRoute)?;
    match &route.to {
        Target::Reject { text } => Err(Refusal::Rejected(text.clone())),
        _ => Ok(index),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::smtp::address::Utf8;

    const CONFIG: &str = r#"
hostname = "mx.example.com"
[[listener]]
address = "127.0.0.1:0"
service = "mx"
[domains]
accept = ["example.com", "*.example.org"]
[relay]
networks = ["192.0.2.0/24"]
[[route]]
recipient = "gone@example.com"
to = "reject:Moved away"
[[route]]
recipient = "postmaster@example.com"
to = "reject:Nobody is here"
[[route]]
recipient = "*@example.com"
to = "hold"
[[route]]
recipient = "*@a.example.org"
to = "discard"
[[route]]
recipient = "*@elsewhere.example"
to = "discard"
"#;

    fn decision(service: Service, client: &str, path: &str) -> Result<u32, &'static str> {
        let config = Config::for_test(CONFIG);
        let facts = Facts {
            service,
            client: client.parse().unwrap(),
            is_balancer: false,
            certificate: None,
            authenticated: false,
        };
        let path = ForwardPath::parse(path.as_bytes(), Utf8::Refused).unwrap();
        decide(&config, facts, &path).map(|index| index.0).map_err(|refusal| refusal.reason())
    }

    #[test]
    fn an_mx_takes_mail_for_its_own_domains_only() {
        let mx = |path| decision(Service::Mx, "192.0.2.7", path);
        assert_eq!(mx("<friend@example.com>"), Ok(2));
        assert_eq!(mx("<friend@EXAMPLE.Com>"), Ok(2));
        assert_eq!(mx("<friend@a.example.org>"), Ok(3));
        assert_eq!(mx("<friend@b.example.org>"), Err("no_route"));
        for stranger in [
            "<friend@elsewhere.example>",
            "<friend@example.org>",
            "<friend@sub.example.com>",
            "<friend@[192.0.2.1]>",
            "<friend%elsewhere.example@example.com>",
            "<elsewhere.example!friend@example.com>",
            "<\"friend@elsewhere.example\"@example.com>",
            "<@example.com:friend@elsewhere.example>",
        ] {
            assert_eq!(mx(stranger), Err("relay_denied"), "{stranger}");
        }
        assert_eq!(mx("<gone@example.com>"), Err("rejected_by_route"));
    }

    #[test]
    fn a_relay_takes_mail_from_its_own_networks_only() {
        let to = "<friend@elsewhere.example>";
        assert_eq!(decision(Service::Relay, "192.0.2.7", to), Ok(4));
        assert_eq!(decision(Service::Relay, "::ffff:192.0.2.7", to), Ok(4));
        for stranger in ["192.0.3.7", "127.0.0.1", "::1"] {
            assert_eq!(decision(Service::Relay, stranger, to), Err("relay_denied"), "{stranger}");
            let ours = "<friend@example.com>";
            assert_eq!(decision(Service::Relay, stranger, ours), Err("relay_denied"), "{stranger}");
        }
    }

    #[test]
    fn the_postmaster_is_always_taken() {
        for service in [Service::Mx, Service::Relay] {
            // No route names the bare one: the first that takes mail has to do.
            assert_eq!(decision(service, "203.0.113.1", "<Postmaster>"), Ok(2));
        }
        // A route that refuses does not count for it.
        assert_eq!(decision(Service::Mx, "203.0.113.1", "<PostMaster@example.com>"), Ok(2));
        let elsewhere = "<postmaster@elsewhere.example>";
        assert_eq!(decision(Service::Mx, "203.0.113.1", elsewhere), Err("relay_denied"));
    }
}
