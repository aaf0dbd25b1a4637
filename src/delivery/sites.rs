//! Which site a recipient's mail goes to: routes resolved to sites, once at the start.
//!
//! Today a route names its one next hop, so the table is fixed; a later step resolves `mx` routes
//! for each attempt and adds sites as it meets them.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;

use crate::config::{Config, Route, RouteIndex, Target};
use crate::queue::handle::Recipients;
use crate::queue::scheduler::SiteKind;
use crate::queue::site::{SiteIndex, SiteShared};
use crate::smtp::address::{ForwardPath, Mailbox};
use crate::tls::TlsPolicy;

/// Every site, and the one of each route.
pub struct Sites {
    /// Where each site's mail goes, from which address, and how its connections are encrypted.
    targets: Vec<(Target, Option<IpAddr>, TlsPolicy)>,
    of_route: Vec<SiteIndex>,
    shared: Arc<[SiteShared]>,
}

/// The recipients of one message that go to one site.
pub type SiteGroup = (SiteIndex, Recipients);

impl Sites {
    /// The sites of a configuration; routes to the same target share one.
    pub fn new(config: &Config) -> Sites {
        let mut targets: Vec<(Target, Option<IpAddr>, TlsPolicy)> = Vec::new();
        let mut of_route = Vec::new();
        for route in config.routes.iter() {
            let way = (route.to.clone(), route.source, route.tls());
            let known = targets.iter().position(|target| *target == way);
            let site = known.unwrap_or_else(|| {
                targets.push(way);
                targets.len() - 1
            });
            of_route.push(SiteIndex(site as u32));
        }
        targets.push((Target::Hold, None, TlsPolicy::Off));
        let cores = config.workers as u32;
        let limit = |target: &Target| match target {
            Target::Mx
            | Target::Smtp { .. }
            | Target::Smtps { .. }
            | Target::Lmtp { .. }
            | Target::LmtpUnix { .. } => config.delivery.connections_per_site as u32,
            // Writers of files: more of them would only wait for the same disk.
            _ => LOCAL_WRITERS * cores,
        };
        let shared = targets.iter().enumerate().map(|(index, (target, ..))| {
            SiteShared::new(SiteIndex(index as u32), limit(target), cores)
        });
        Sites { shared: shared.collect(), targets, of_route }
    }

    /// Where a site's mail goes.
    pub fn target(&self, site: SiteIndex) -> &Target {
        &self.targets[site.0 as usize].0
    }

    /// The address that connections to a site are made from.
    pub fn source(&self, site: SiteIndex) -> Option<IpAddr> {
        self.targets[site.0 as usize].1
    }

    /// How connections to a site are encrypted.
    pub fn tls(&self, site: SiteIndex) -> TlsPolicy {
        self.targets[site.0 as usize].2
    }

    /// Where messages wait to which no route leads since the configuration changed.
    pub fn unrouted(&self) -> SiteIndex {
        SiteIndex(self.targets.len() as u32 - 1)
    }

    /// The names of all sites.
    pub fn names(&self) -> Vec<String> {
        (0..self.targets.len() as u32).map(|index| self.name(SiteIndex(index))).collect()
    }

    /// A site's name for people.
    pub fn name(&self, site: SiteIndex) -> String {
        if site == self.unrouted() { "no route".into() } else { self.target(site).to_string() }
    }

    /// What the cores share of each site.
    pub fn shared(&self) -> &Arc<[SiteShared]> {
        &self.shared
    }

    /// How each site takes mail.
    pub fn kinds(&self) -> impl Iterator<Item = SiteKind> {
        self.targets.iter().map(|(target, ..)| match target {
            Target::Hold => SiteKind::Hold,
            _ => SiteKind::Open,
        })
    }

    /// The site of a route.
    pub fn of(&self, route: RouteIndex) -> SiteIndex {
        self.of_route[route.0 as usize]
    }

    /// Recipients by site, in the order in which the sites first come; `routes` has one for each.
    pub fn group(&self, routes: &[RouteIndex]) -> Vec<SiteGroup> {
        if let [first, rest @ ..] = routes
            && rest.iter().all(|route| self.of(*route) == self.of(*first))
        {
            return vec![(self.of(*first), Recipients::All(routes.len() as u16))];
        }
        let mut groups: Vec<(SiteIndex, Vec<u16>)> = Vec::new();
        for (place, &route) in routes.iter().enumerate() {
            let (site, place) = (self.of(route), place as u16);
            match groups.iter_mut().find(|group| group.0 == site) {
                Some(group) => group.1.push(place),
                None => groups.push((site, vec![place])),
            }
        }
        let named = |(site, places)| (site, Recipients::of(places, routes.len()));
        groups.into_iter().map(named).collect()
    }
}

/// The route of a recipient that was accepted before, by the configuration as it is now.
/// `past_hold` passes over `hold` routes, for what an operator has released.
pub fn route_of(config: &Config, path: &ForwardPath, past_hold: bool) -> Option<RouteIndex> {
    match path {
        ForwardPath::Postmaster => postmaster_route(config, ""),
        ForwardPath::Mailbox(mailbox) if !past_hold => {
            let found = config.routes.first_match(mailbox.local_part(), &routing_domain(mailbox));
            found.map(|(index, _)| index)
        }
        ForwardPath::Mailbox(mailbox) => {
            let (local, domain) = (mailbox.local_unquoted(), routing_domain(mailbox));
            find(config, |route| {
                route.to != Target::Hold && route.recipient.matches(&local, &domain)
            })
        }
    }
}

/// The route for the postmaster of a domain, or of this host without one: the first that matches
/// and does not refuse, else the first that takes mail at all, since the postmaster is always
/// accepted (RFC 5321 section 4.5.1).
pub fn postmaster_route(config: &Config, domain: &str) -> Option<RouteIndex> {
    let takes = |route: &Route| !matches!(route.to, Target::Reject { .. });
    let hostname = config.hostname.to_ascii_lowercase();
    let names = [domain, if domain.is_empty() { &hostname } else { domain }];
    let matches =
        |route: &Route| names.iter().any(|name| route.recipient.matches("postmaster", name));
    find(config, |route| takes(route) && matches(route)).or_else(|| find(config, takes))
}

/// What routes and domains are matched against: the domain in A-labels and lower case, or an
/// address literal as it stands.
pub fn routing_domain(mailbox: &Mailbox) -> Cow<'_, str> {
    mailbox.domain_ascii().unwrap_or_else(|| mailbox.domain().to_ascii_lowercase().into())
}

fn find(config: &Config, fits: impl Fn(&Route) -> bool) -> Option<RouteIndex> {
    config.routes.iter().position(fits).map(|place| RouteIndex(place as u32))
}

/// Writers of Maildirs that a core has at once.
const LOCAL_WRITERS: u32 = 4;
