//! Which site a recipient's mail goes to: routes resolved to destinations, and destinations to
//! the sites that all cores share.
//!
//! A route's course that names its next hop has its site from the start.  For mail exchangers a
//! message is filed under its domain, and [`Sites::of_hosts`] gives the site of the hosts that
//! the DNS names for it when it is to be sent: domains with the same hosts share one.
//!
//! The table of sites is behind a lock that is taken once a resolution, never for a message.  It
//! forgets a site that no core holds and that was not asked for within ten minutes, so it is
//! bounded by what is queued and by what the cores remember.

use std::borrow::Cow;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use super::course::{Course, Courses};
use super::reach::Reach;
use crate::config::{Config, Route, RouteIndex, Target};
use crate::dns::mail::MailHost;
use crate::message::{Envelope, MailParameters};
use crate::queue::destination::{CourseIndex, CourseRules, Destination, DestinationIndex, Lead};
use crate::queue::handle::Recipients;
use crate::queue::scheduler::Scheduler;
use crate::queue::site::{SiteId, SiteShared};
use crate::smtp::address::{ForwardPath, Mailbox};
use crate::tls::TlsPolicy;

/// The courses of a configuration, and every site that mail goes to.
pub struct Sites {
    courses: Courses,
    /// For `<Postmaster>`, who has no domain.
    hostname: Arc<str>,
    cores: u32,
    connections_per_site: u32,
    port: u16,
    /// The site of each course that names its next hop.
    fixed: Vec<Option<Arc<SiteShared>>>,
    table: Mutex<Table>,
}

/// The sites of mail exchangers.
#[derive(Default)]
struct Table {
    sites: HashMap<SiteKey, Entry>,
    next_id: u64,
    swept_unix_ms: u64,
}

struct Entry {
    shared: Arc<SiteShared>,
    used_unix_ms: u64,
}

/// What makes two sites one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct SiteKey {
    /// By rank, 0 first.  The preferences themselves say nothing but the order.
    hosts: Box<[(u16, Box<str>)]>,
    source: Option<IpAddr>,
    tls: TlsPolicy,
}

impl SiteKey {
    /// The key of hosts that are in the order of their preference.
    fn of(hosts: &[MailHost], source: Option<IpAddr>, tls: TlsPolicy) -> SiteKey {
        let mut ranked = Vec::with_capacity(hosts.len());
        let by_rank = hosts.chunk_by(|one, other| one.preference == other.preference);
        for (rank, equals) in (0_u16..).zip(by_rank) {
            ranked.extend(equals.iter().map(|host| (rank, host.name.clone())));
        }
        SiteKey { hosts: ranked.into(), source, tls }
    }
}

/// The recipients of one message that go to one destination.
pub type SiteGroup = (Destination, Recipients);

impl Sites {
    /// The courses of a configuration with the sites that they name.
    pub fn new(config: &Config) -> Sites {
        let courses = Courses::new(config);
        let cores = config.workers as u32;
        let connections_per_site = config.delivery.connections_per_site as u32;
        let mut fixed: Vec<Option<Arc<SiteShared>>> = Vec::new();
        for (place, course) in courses.iter().enumerate() {
            let way = |course: &Course| (course.source, course.tls, course.login.clone());
            let is_same =
                |other: &&Course| other.target == course.target && way(other) == way(course);
            let known = courses.iter().take(place).position(|other| is_same(&other));
            let limit = match course.target {
                Target::Mx | Target::Hold => {
                    fixed.push(None);
                    continue;
                }
                Target::Smtp { .. }
                | Target::Smtps { .. }
                | Target::Lmtp { .. }
                | Target::LmtpUnix { .. } => connections_per_site,
                // Writers of files: more of them would only wait for the same disk.
                Target::Maildir(_) | Target::Discard | Target::Reject { .. } => {
                    LOCAL_WRITERS * cores
                }
            };
            let site = known.and_then(|known| fixed[known].clone()).unwrap_or_else(|| {
                let reach = Reach::fixed(&course.target, course.source).with_tls(course.tls);
                let reach = reach.with_login(course.login.clone());
                let name = course.target.to_string();
                Arc::new(SiteShared::new(SiteId(place as u64), &name, limit, cores, reach))
            });
            fixed.push(Some(site));
        }
        // The last course is the quarantine's, which has no site.
        let table = Table { next_id: fixed.len() as u64 - 1, ..Table::default() };
        Sites {
            hostname: config.hostname.to_ascii_lowercase().into(),
            port: config.delivery.port,
            table: Mutex::new(table),
            courses,
            cores,
            connections_per_site,
            fixed,
        }
    }

    /// A course.
    pub fn course(&self, index: CourseIndex) -> &Course {
        self.courses.get(index)
    }

    /// The courses of a route: of all mail, and of mail that requires TLS.
    pub fn courses_of(&self, route: RouteIndex) -> [CourseIndex; 2] {
        [self.courses.of(route), self.courses.secure_of(route)]
    }

    /// Where messages wait to which no route leads since the configuration changed.
    pub fn unrouted(&self) -> Destination {
        Destination { course: self.courses.unrouted(), domain: None }
    }

    /// Where messages wait that the edge filter has kept back, until an operator releases them.
    pub fn quarantine(&self) -> Destination {
        Destination { course: self.courses.quarantine(), domain: None }
    }

    /// The site of a course that names its next hop.
    pub fn fixed(&self, course: CourseIndex) -> Option<&Arc<SiteShared>> {
        self.fixed.get(course.0 as usize)?.as_ref()
    }

    /// The site of a route's next hop that speaks SMTP or LMTP, where the route names one.
    pub fn next_hop(
        &self,
        route: RouteIndex,
        parameters: &MailParameters,
    ) -> Option<&Arc<SiteShared>> {
        let site = self.fixed(self.course_of(route, parameters));
        site.filter(|site| site.reach().protocol().is_some())
    }

    /// What the queue has to know of each course.
    pub fn rules(&self) -> Vec<CourseRules> {
        let ms = |time: std::time::Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let rules = |(course, fixed): (&Course, &Option<Arc<SiteShared>>)| CourseRules {
            lead: match fixed {
                Some(shared) => Lead::Site(shared.clone()),
                None if course.target == Target::Mx => Lead::Exchangers,
                None => Lead::Hold,
            },
            lifetime_ms: ms(course.schedule.lifetime),
            late_ms: course.schedule.delay_notice.after().map(ms),
        };
        self.courses.iter().zip(&self.fixed).map(rules).collect()
    }

    /// What people call the place where a destination's mail goes, and its domain where mail
    /// exchangers take it: the site, or as long as none is known, the domain or what the route
    /// says.
    pub fn names(&self, queue: &Scheduler, index: DestinationIndex) -> (String, Option<Arc<str>>) {
        let Some(destination) = queue.destination(index) else { return Default::default() };
        let name = match (queue.site_of(index), &destination.domain) {
            (Some(site), _) => site.name().to_owned(),
            (None, Some(domain)) => domain.to_string(),
            (None, None) if *destination == self.unrouted() => "no route".to_owned(),
            (None, None) if *destination == self.quarantine() => "quarantine".to_owned(),
            (None, None) => self.course(destination.course).target.to_string(),
        };
        (name, destination.domain.clone())
    }

    // ---- recipients ----------------------------------------------------------------------

    fn course_of(&self, route: RouteIndex, parameters: &MailParameters) -> CourseIndex {
        match parameters.require_tls {
            true => self.courses.secure_of(route),
            false => self.courses.of(route),
        }
    }

    /// The destination of a recipient by its route and what its message asks for.
    pub fn destination(
        &self,
        route: RouteIndex,
        path: &ForwardPath,
        parameters: &MailParameters,
    ) -> Destination {
        let course = self.course_of(route, parameters);
        let is_mx = self.course(course).target == Target::Mx;
        let domain = is_mx.then(|| match path {
            ForwardPath::Postmaster => self.hostname.clone(),
            ForwardPath::Mailbox(mailbox) => routing_domain(mailbox).into(),
        });
        Destination { course, domain }
    }

    /// Recipients by destination, in the order in which the destinations first come; `routes` has
    /// one for each.
    pub fn group(&self, routes: &[RouteIndex], envelope: &Envelope) -> Vec<SiteGroup> {
        let Envelope { recipients, parameters, .. } = envelope;
        debug_assert_eq!(routes.len(), recipients.len());
        group_by(routes.len(), || {
            let both = routes.iter().zip(recipients);
            both.map(|(&route, recipient)| self.destination(route, &recipient.path, parameters))
        })
    }

    /// The same for a message that the edge filter keeps back: only the postmaster gets it.
    pub fn group_quarantined(&self, routes: &[RouteIndex], envelope: &Envelope) -> Vec<SiteGroup> {
        let Envelope { recipients, parameters, .. } = envelope;
        debug_assert_eq!(routes.len(), recipients.len());
        group_by(routes.len(), || {
            let both = routes.iter().zip(recipients);
            both.map(|(&route, recipient)| match recipient.path.is_postmaster() {
                true => self.destination(route, &recipient.path, parameters),
                false => self.quarantine(),
            })
        })
    }

    // ---- mail exchangers -----------------------------------------------------------------

    /// The site of mail exchangers, which may be new.
    pub fn of_hosts(
        &self,
        course: CourseIndex,
        hosts: Vec<MailHost>,
        now_unix_ms: u64,
    ) -> Arc<SiteShared> {
        let course = self.course(course);
        let key = SiteKey::of(&hosts, course.source, course.tls);
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        table.sweep(now_unix_ms);
        if let Some(known) = table.sites.get_mut(&key) {
            known.used_unix_ms = now_unix_ms;
            known.shared.reach().renew(hosts.into());
            return known.shared.clone();
        }
        let id = SiteId(table.next_id);
        table.next_id += 1;
        let name = site_name(&hosts, self.port);
        let reach = Reach::to_hosts(Target::Mx, course.source, hosts.into(), self.port)
            .with_tls(course.tls);
        let shared = SiteShared::new(id, &name, self.connections_per_site, self.cores, reach);
        let shared = Arc::new(shared);
        table.sites.insert(key, Entry { shared: shared.clone(), used_unix_ms: now_unix_ms });
        shared
    }

    /// Sites of mail exchangers that are known.
    pub fn exchanger_sites(&self) -> usize {
        self.table.lock().unwrap_or_else(PoisonError::into_inner).sites.len()
    }
}

/// Places of recipients by their destinations, in the order in which those first come.
fn group_by<D: Iterator<Item = Destination>>(
    count: usize,
    destinations: impl Fn() -> D,
) -> Vec<SiteGroup> {
    let Some(first) = destinations().next() else { return Vec::new() };
    if destinations().skip(1).all(|other| other == first) {
        return vec![(first, Recipients::All(count as u16))];
    }
    let mut places: HashMap<Destination, usize> = HashMap::new();
    let mut groups: Vec<(Destination, Vec<u16>)> = Vec::new();
    for (place, destination) in destinations().enumerate() {
        let group = *places.entry(destination).or_insert_with_key(|destination| {
            groups.push((destination.clone(), Vec::new()));
            groups.len() - 1
        });
        groups[group].1.push(place as u16);
    }
    let named = |(destination, places)| (destination, Recipients::of(places, count));
    groups.into_iter().map(named).collect()
}

impl Table {
    /// Forgets what nobody holds and nobody has asked for of late; once in a while, since it looks
    /// at all.
    fn sweep(&mut self, now_unix_ms: u64) {
        if now_unix_ms.saturating_sub(self.swept_unix_ms) < SWEEP_EVERY_MS {
            return;
        }
        self.swept_unix_ms = now_unix_ms;
        self.sites.retain(|_, entry| {
            // Others get theirs under this lock, so a count of one cannot grow meanwhile.
            if Arc::strong_count(&entry.shared) > 1 {
                entry.used_unix_ms = now_unix_ms;
            }
            now_unix_ms.saturating_sub(entry.used_unix_ms) < SITE_REMEMBERED_MS
        });
    }
}

/// `mx1.example.net,mx2.example.net`, the most preferred first; what does not fit is counted.
fn site_name(hosts: &[MailHost], port: u16) -> String {
    let mut name = String::new();
    for (place, host) in hosts.iter().enumerate() {
        if place == NAMED_HOSTS {
            name.push_str(&format!(",+{}", hosts.len() - NAMED_HOSTS));
            break;
        }
        if place > 0 {
            name.push(',');
        }
        name.push_str(&host.name);
    }
    if port != SMTP_PORT {
        name.push_str(&format!(":{port}"));
    }
    name
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
/// Hosts that a site is named after.
const NAMED_HOSTS: usize = 3;
/// The port that goes without saying.
const SMTP_PORT: u16 = 25;
/// How long a site is remembered that nobody holds: its rests and the habits of its hosts.
const SITE_REMEMBERED_MS: u64 = 600_000;
const SWEEP_EVERY_MS: u64 = 60_000;

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::message::{Notify, Recipient};
    use crate::smtp::address::{ReversePath, Utf8};

    const ROUTES: &str = r#"
hostname = "mx.example.com"
[[listener]]
address = "127.0.0.1:0"
service = "relay"
[[route]]
recipient = "*@smart.test"
to = "smtp://192.0.2.1"
[[route]]
recipient = "*@patient.test"
to = "smtp://192.0.2.1"
lifetime = "9d"
[[route]]
recipient = "*@same.test"
to = "smtp://192.0.2.1"
[[route]]
recipient = "*@held.test"
to = "hold"
[[route]]
recipient = "*"
to = "mx"
"#;

    fn config() -> Config {
        Config::for_test(ROUTES)
    }

    fn recipient(text: &str) -> Recipient {
        let path = ForwardPath::parse(text.as_bytes(), Utf8::Allowed).expect("a path");
        Recipient { path, notify: Notify::UNSPECIFIED, orcpt: None }
    }

    /// What recipients are grouped into: `course/domain: places`.
    fn groups(recipients: &[&str]) -> Vec<String> {
        groups_with(recipients, MailParameters::default())
    }

    fn groups_with(recipients: &[&str], parameters: MailParameters) -> Vec<String> {
        let config = config();
        let sites = Sites::new(&config);
        let recipients: Vec<Recipient> = recipients.iter().map(|text| recipient(text)).collect();
        let route = |recipient: &Recipient| route_of(&config, &recipient.path, false);
        let routes: Vec<RouteIndex> =
            recipients.iter().map(|recipient| route(recipient).expect("a route")).collect();
        let reverse_path = ReversePath::Null;
        let envelope = Envelope { reverse_path, parameters, recipients };
        let groups = sites.group(&routes, &envelope);
        let named = |(destination, recipients): SiteGroup| {
            let Destination { course, domain } = destination;
            format!("{}/{}: {:?}", course.0, domain.as_deref().unwrap_or("-"), recipients.places())
        };
        groups.into_iter().map(named).collect()
    }

    /// The postmaster hears what comes for him, whatever the edge filter thinks of it.
    #[test]
    fn what_is_quarantined_waits_apart_but_for_the_postmaster() {
        let config = config();
        let sites = Sites::new(&config);
        let names = ["<a@b.test>", "<Postmaster>", "<a@held.test>"];
        let recipients: Vec<Recipient> = names.iter().map(|text| recipient(text)).collect();
        let route = |recipient: &Recipient| route_of(&config, &recipient.path, false);
        let routes: Vec<RouteIndex> =
            recipients.iter().map(|recipient| route(recipient).expect("a route")).collect();
        let (reverse_path, parameters) = (ReversePath::Null, MailParameters::default());
        let envelope = Envelope { reverse_path, parameters, recipients };
        let groups = sites.group_quarantined(&routes, &envelope);
        let quarantine = sites.quarantine();
        let apart: Vec<(bool, Vec<u16>)> =
            groups.iter().map(|(to, who)| (*to == quarantine, who.places())).collect();
        assert_eq!(apart, [(true, vec![0, 2]), (false, vec![1])]);
        assert_eq!(sites.course(quarantine.course).target, Target::Hold);
        assert_ne!(quarantine, sites.unrouted());
    }

    /// RFC 8689: such mail has courses of its own, but for where it is not sent on.
    #[test]
    fn mail_that_requires_tls_goes_apart() {
        let config = config();
        let secure = MailParameters { require_tls: true, ..MailParameters::default() };
        let of = |names: &[&str]| groups_with(names, secure.clone());
        assert_eq!(of(&["<a@held.test>"]), groups(&["<a@held.test>"]));
        let sites = Sites::new(&config);
        for name in ["<a@b.test>", "<a@smart.test>"] {
            let grouped = of(&[name]);
            assert_ne!(grouped, groups(&[name]));
            let course = grouped[0].split('/').next().expect("an index").parse().expect("a number");
            let course = sites.course(CourseIndex(course));
            assert!(course.requires_tls && course.tls == TlsPolicy::Verified, "{course:?}");
        }
        assert_eq!(sites.course(sites.unrouted().course).target, Target::Hold);
    }

    #[test]
    fn recipients_are_grouped_by_course_and_where_exchangers_take_them_by_domain() {
        assert_eq!(groups(&["<a@b.test>"]), ["3/b.test: [0]"]);
        assert_eq!(groups(&["<a@B.test>", "<c@b.TEST>"]), ["3/b.test: [0, 1]"]);
        // Routes that say the same are one course; another lifetime makes another one.
        assert_eq!(
            groups(&["<a@smart.test>", "<b@patient.test>", "<c@same.test>", "<d@smart.test>"]),
            ["0/-: [0, 2, 3]", "1/-: [1]"]
        );
        assert_eq!(
            groups(&["<a@x.test>", "<a@held.test>", "<a@y.test>", "<b@x.test>", "<Postmaster>"]),
            ["3/x.test: [0, 3]", "2/-: [1]", "3/y.test: [2]", "3/mx.example.com: [4]"]
        );
        assert_eq!(groups(&["<a@b\u{fc}cher.test>"]), ["3/xn--bcher-kva.test: [0]"]);
        assert_eq!(groups(&["<a@[192.0.2.1]>"]), ["3/[192.0.2.1]: [0]"]);
    }

    fn hosts(names: &[(u16, &str)]) -> Vec<MailHost> {
        let host = |&(preference, name): &(u16, &str)| MailHost {
            preference,
            name: name.into(),
            addresses: Vec::new(),
            expires: Instant::now(),
            authentic: false,
        };
        names.iter().map(host).collect()
    }

    #[test]
    fn the_same_hosts_are_one_site_and_one_that_nobody_uses_is_forgotten() {
        let sites = Sites::new(&config());
        let mx = CourseIndex(3);
        let first = sites.of_hosts(mx, hosts(&[(10, "a.test"), (20, "b.test")]), 0);
        let again = sites.of_hosts(mx, hosts(&[(10, "a.test"), (20, "b.test")]), 1);
        let other = sites.of_hosts(mx, hosts(&[(10, "b.test"), (20, "a.test")]), 2);
        assert_eq!(first.id(), again.id());
        assert_ne!(first.id(), other.id());
        let same_order = sites.of_hosts(mx, hosts(&[(0, "a.test"), (5, "b.test")]), 2);
        assert_eq!(first.id(), same_order.id(), "only the order of preferences matters");
        let equals = sites.of_hosts(mx, hosts(&[(10, "a.test"), (10, "b.test")]), 2);
        assert_ne!(first.id(), equals.id());
        drop((same_order, equals));
        assert_eq!((first.name(), sites.exchanger_sites()), ("a.test,b.test", 3));
        drop((again, other));
        let later = SITE_REMEMBERED_MS + SWEEP_EVERY_MS;
        sites.of_hosts(mx, hosts(&[(0, "c.test")]), later);
        let still = sites.of_hosts(mx, hosts(&[(10, "a.test"), (20, "b.test")]), later);
        assert_eq!(first.id(), still.id(), "somebody holds it");
        assert_eq!(sites.exchanger_sites(), 2, "the other one is gone");
        let many: Vec<(u16, String)> = (0..5).map(|number| (0, format!("{number}.test"))).collect();
        let many: Vec<(u16, &str)> = many.iter().map(|(at, name)| (*at, &**name)).collect();
        assert_eq!(sites.of_hosts(mx, hosts(&many), later).name(), "0.test,1.test,2.test,+2");
    }

    #[test]
    fn courses_to_the_same_next_hop_share_its_site() {
        let sites = Sites::new(&config());
        let id = |course| sites.fixed(CourseIndex(course)).map(|site| site.id());
        assert_eq!(id(0), id(1));
        assert_eq!((id(2), id(3)), (None, None));
        let rules = sites.rules();
        assert!(matches!(rules[2].lead, Lead::Hold) && matches!(rules[3].lead, Lead::Exchangers));
        assert!(rules[1].lifetime_ms > rules[0].lifetime_ms);
    }
}
