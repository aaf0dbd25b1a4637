//! Relay control: which recipient a session may send to, decided at RCPT.
//!
//! A pure function of the configuration and of what is known of the client.  Never an open relay:
//! a listener takes mail for its own domains (`mx`) or from its own networks (`relay`), and an
//! address that another system could take for a route of its own is refused to strangers.

use std::net::IpAddr;

use crate::config::{Config, RouteIndex, Service, Target};
use crate::smtp::address::{ForwardPath, Mailbox};
use crate::smtp::reply::Refusal;

/// What relay control looks at beside the address.
#[derive(Debug, Clone, Copy)]
pub struct Facts {
    /// What the listener is for.
    pub service: Service,
    /// The client's address.
    pub client: IpAddr,
    /// Whether the client has proved who it is.
    pub authenticated: bool,
}

/// The route for a recipient, or why it is refused.
///
/// # Errors
/// `RelayDenied`, `NoRoute`, or `Rejected` with the words of a `reject:` route.
pub fn decide(config: &Config, facts: Facts, path: &ForwardPath) -> Result<RouteIndex, Refusal> {
    match path {
        ForwardPath::Postmaster => postmaster(config, ""),
        ForwardPath::Mailbox(mailbox) => {
            let domain = mailbox.domain_ascii().ok_or(Refusal::BadRecipient)?;
            may_send(config, facts, mailbox, &domain)?;
            // RFC 5321 section 4.5.1: a postmaster of ours is refused by no route.
            if path.is_postmaster() && config.domains.contains(&domain) {
                return postmaster(config, &domain);
            }
            route(config, &mailbox.local_unquoted(), &domain)
        }
    }
}

fn may_send(config: &Config, facts: Facts, to: &Mailbox, domain: &str) -> Result<(), Refusal> {
    let is_ours = config.domains.contains(domain);
    let allowed = match facts.service {
        // A next hop might read `a%b@ours` or `"a@b"@ours` as mail for somebody else.
        Service::Mx => is_ours && !to.has_routing_characters(),
        Service::Relay => config.relay.contains(facts.client),
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

/// The first route for the postmaster that does not refuse.
fn postmaster(config: &Config, domain: &str) -> Result<RouteIndex, Refusal> {
    let takes = |(_, route): &(RouteIndex, &crate::config::Route)| {
        route.recipient.matches("postmaster", domain) && !matches!(route.to, Target::Reject { .. })
    };
    let routes = config.routes.iter().enumerate();
    routes
        .map(|(index, route)| (RouteIndex(index as u32), route))
        .find(takes)
        .map(|(index, _)| index)
        .ok_or(Refusal::NoRoute)
}
