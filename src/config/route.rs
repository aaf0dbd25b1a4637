//! Routes: which recipient goes where.
//!
//! [`Routes`] finds the first route that matches; whole domains are indexed, so that ten thousand
//! `*@domain` routes cost one look-up.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::pattern::{Pattern, unquoted};
use super::schedule::{GivenSchedule, Schedule};
use super::target::Target;
use crate::auth::SmartHostLogin;
use crate::tls::TlsPolicy;

/// One `[[route]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Whom it is for.
    pub recipient: Pattern,
    /// Where their mail goes.
    pub to: Target,
    /// The address that connections are made from; the system's choice without it.
    pub source: Option<IpAddr>,
    /// `tls`, as far as this route has it; see [`tls`](Route::tls).
    pub given_tls: Option<TlsPolicy>,
    /// What connections log in with at the smart host.
    pub login: Option<Arc<SmartHostLogin>>,
    /// `retry`, `lifetime` and `delay_notice`, as far as this route has its own; see
    /// [`schedule`](Route::schedule).
    pub given: GivenSchedule,
    /// Whether each recipient's mail goes out with a reverse-path of its own that names the
    /// recipient (variable envelope return path), so that a bounce says whom it is about.
    pub verp: bool,
}

impl Route {
    /// A route with the defaults of all that is optional.
    pub fn new(recipient: Pattern, to: Target) -> Route {
        Route {
            recipient,
            to,
            source: None,
            given_tls: None,
            login: None,
            given: GivenSchedule::default(),
            verp: false,
        }
    }

    /// How its connections are encrypted: opportunistically by default, which is better than
    /// nothing and refuses no mail (RFC 7435); but whom we log in to must prove its name, or a
    /// password could go to anybody.
    pub fn tls(&self) -> TlsPolicy {
        self.given_tls.unwrap_or(match self.to {
            Target::Smtp { .. } | Target::Smtps { .. } if self.login.is_some() => {
                TlsPolicy::Verified
            }
            Target::Mx | Target::Smtp { .. } => TlsPolicy::Opportunistic,
            Target::Smtps { .. } => TlsPolicy::Required,
            _ => TlsPolicy::Off,
        })
    }

    /// When its mail is tried again, and how long: its own keys, the others from `[queue]`.
    pub fn schedule(&self, queue: &Schedule) -> Schedule {
        self.given.or(queue)
    }
}

/// Which route of the configuration: its place in the file, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RouteIndex(pub u32);

/// The routes in the order of the file, with the index that finds the first that matches.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Routes {
    routes: Vec<Route>,
    /// The routes that can match one domain only, by that domain, in the order of the file.
    by_domain: HashMap<Box<str>, Vec<RouteIndex>>,
    /// All others, in the order of the file.
    others: Vec<RouteIndex>,
}

impl Routes {
    /// Builds the index.
    pub fn new(routes: Vec<Route>) -> Routes {
        let mut by_domain: HashMap<Box<str>, Vec<RouteIndex>> = HashMap::new();
        let mut others = Vec::new();
        for (route, place) in routes.iter().zip(0..) {
            let index = RouteIndex(place);
            match route.recipient.only_domain() {
                Some(domain) => by_domain.entry(domain.into()).or_default().push(index),
                None => others.push(index),
            }
        }
        Routes { routes, by_domain, others }
    }

    /// The first route that matches, or `None`: then RCPT is refused.
    ///
    /// `local` is as it came, with its quotes if it has any; `domain_ascii_lower` is the domain in
    /// lower case and A-labels.  The bare `<Postmaster>` is `("postmaster", "")`.
    pub fn first_match(
        &self,
        local: &str,
        domain_ascii_lower: &str,
    ) -> Option<(RouteIndex, &Route)> {
        let local = unquoted(local);
        let first = |indices: &[RouteIndex]| {
            let matches =
                |index: &&RouteIndex| self[**index].recipient.matches(&local, domain_ascii_lower);
            indices.iter().find(matches).copied()
        };
        let of_domain = self.by_domain.get(domain_ascii_lower).and_then(|indices| first(indices));
        let of_others = first(&self.others);
        let index = [of_domain, of_others].into_iter().flatten().min()?;
        Some((index, &self[index]))
    }

    /// The routes in the order of the file.
    pub fn iter(&self) -> std::slice::Iter<'_, Route> {
        self.routes.iter()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.routes.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.routes.is_empty()
    }
}

impl std::ops::Index<RouteIndex> for Routes {
    type Output = Route;

    fn index(&self, index: RouteIndex) -> &Route {
        &self.routes[index.0 as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn routes(patterns: &[String]) -> Routes {
        let route = |text: &String| Route::new(text.parse().unwrap(), Target::Discard);
        Routes::new(patterns.iter().map(route).collect())
    }

    proptest! {
        #[test]
        fn the_index_finds_what_a_walk_finds(
            patterns in prop::collection::vec("(\\*|postmaster|(a|b|\\*)@(x|y|\\*|\\*\\.x))", 0..12),
            local in "(a|b|c|postmaster)",
            domain in "(|x|y|z|a\\.x)",
        ) {
            let routes = routes(&patterns);
            let walk = routes.iter().position(|r| r.recipient.matches(&local, &domain));
            let found = routes.first_match(&local, &domain).map(|(index, _)| index.0 as usize);
            prop_assert_eq!(found, walk);
        }

    }

    #[test]
    fn quotes_do_not_hide_a_recipient_from_its_route() {
        let routes = routes(&["boss@x".to_owned(), "*".to_owned()]);
        assert_eq!(
            routes.first_match("\"boss\"", "x").map(|(index, _)| index),
            Some(RouteIndex(0))
        );
        assert_eq!(
            routes.first_match("postmaster", "").map(|(index, _)| index),
            Some(RouteIndex(1))
        );
    }
}
