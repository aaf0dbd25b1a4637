//! What makes sense by itself and not together: the whole configuration looked at once.
//!
//! Errors are what must not run: an open relay, a listener that takes nothing, a loop to oneself.
//! Warnings are what works and is hardly meant.  Each says what follows from it and the mend.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

use ipnet::IpNet;

use super::read::{Marks, RouteMarks, ScheduleMarks};
use super::report::{Problem, Problems};
use super::{
    Config, DelayNotice, Environment, Listener, ListenerDelivery, ListenerTls, Reach, Route,
    Schedule, Service, Target,
};
use crate::auth::sasl::Mechanism;
use crate::spool::BATCH_BYTES;
use crate::tls::TlsPolicy;
use crate::units::{ByteSize, Period};

pub(super) fn config(
    config: &Config,
    marks: &Marks,
    environment: &Environment,
    problems: &Problems,
) {
    presence(marks, problems);
    listeners(config, marks, problems);
    certificates(config, marks, problems);
    auth(config, marks, problems);
    open_relay(config, marks, problems);
    route_order(config, marks, problems);
    route_targets(config, marks, problems);
    limits(config, marks, environment, problems);
    host(config, marks, environment, problems);
    schedule("queue", &config.queue, &marks.queue, problems);
    delivery(config, marks, problems);
    segments(config, marks, problems);
    dns(config, marks, problems);
}

/// A file without a way in or out is a mistake, not a wish for the development defaults.
fn presence(marks: &Marks, problems: &Problems) {
    if !marks.has_listeners {
        problems.push(Problem::missing("there is no `[[listener]]`, so no mail can come in").help(
            "add `[[listener]]` with `address = \"127.0.0.1:2525\"` and `service = \"relay\"`",
        ));
    }
    if !marks.has_routes {
        problems.push(Problem::missing("there is no `[[route]]`, so no mail can go out").help(
            "add `[[route]]` with `recipient = \"*\"` and `to = \"smtp://HOST\"` or another target",
        ));
    }
}

fn listeners(config: &Config, marks: &Marks, problems: &Problems) {
    let mut seen: HashMap<SocketAddr, &str> = HashMap::new();
    seen.insert(config.admin.address, "`admin.address`");
    for (listener, mark) in config.listeners.iter().zip(&marks.listeners) {
        if listener.service == Service::Mx && config.domains.is_empty() && !marks.domains_are_bad {
            let title = "`service = \"mx\"` needs domains to take mail for, and there are none";
            problems.push(
                Problem::error(title, mark.service.clone()).help(
                    "add `[domains]` with `accept = [\"example.com\"]`, your own domains in it",
                ),
            );
        }
        if listener.delivery == ListenerDelivery::Inline && listener.service != Service::Mx {
            let title = "`listener.delivery = \"inline\"` is for `service = \"mx\"` alone";
            problems.push(Problem::error(title, mark.service.clone()).help("remove the key"));
        }
        if listener.delivery == ListenerDelivery::Inline
            && listener.service == Service::Mx
            && let Some(route) = kept_route(config)
        {
            let (recipient, to) = (&route.recipient, &route.to);
            let title = format!("in-line mail for `{recipient}` would go to `{to}`");
            problems.push(Problem::error(title, mark.service.clone()).label(
                "`delivery = \"inline\"` needs routes to `smtp://`, `smtps://` or `lmtp://`",
            ));
        }
        if listener.tls != ListenerTls::Off && config.tls.certificates.is_empty() {
            let title = "`listener.tls` needs a certificate, and there is none";
            let span = mark.tls.clone().unwrap_or(mark.address.clone());
            problems.push(Problem::error(title, span).help(
                "add `[[tls.certificate]]` with `chain` and `key`; `mailrace cert self-signed` \
                 makes one for a first try",
            ));
        }
        let address = listener.address;
        let taken = seen.insert(address, "another `[[listener]]`");
        if let Some(other) = taken.filter(|_| address.port() != 0) {
            let title = format!("`listener.address` {address} is taken by {other}");
            problems.push(
                Problem::error(title, mark.address.clone()).label("expected an address of its own"),
            );
        }
    }
}

/// The first route of our own domains whose target answers nobody while a message comes in.
fn kept_route(config: &Config) -> Option<&Route> {
    let answers = |route: &Route| {
        matches!(
            route.to,
            Target::Smtp { .. }
                | Target::Smtps { .. }
                | Target::Lmtp { .. }
                | Target::LmtpUnix { .. }
                | Target::Reject { .. }
        )
    };
    // Of the routes of a domain those count that come before one which takes all of it.
    let first_of = |domain: &str, reaches: &dyn Fn(&Route) -> bool| {
        let is_last = |route: &&Route| route.recipient.reach(domain) == Reach::Whole;
        let last = config.routes.iter().position(|route| is_last(&route));
        let counting = config.routes.iter().take(last.map_or(usize::MAX, |last| last + 1));
        counting.into_iter().find(|route| reaches(route) && !answers(route))
    };
    let of_exact =
        |domain: &str| first_of(domain, &|route| route.recipient.reach(domain) != Reach::Nothing);
    let of_below =
        |domain: &str| first_of(&format!("any.{domain}"), &|r| r.recipient.reaches_below(domain));
    let exact = config.domains.exact().find_map(of_exact);
    exact.or_else(|| config.domains.below().find_map(of_below))
}

/// Identities that no listener can ever see.
fn certificates(config: &Config, marks: &Marks, problems: &Problems) {
    let sees = |listener: &Listener| {
        listener.tls != ListenerTls::Off && listener.service == Service::Relay
    };
    if let Some(span) = &marks.certificates
        && !config.listeners.iter().any(sees)
    {
        let title = "`relay.certificates` is of no use: no `relay` listener is encrypted";
        problems.push(
            Problem::warning(title, span.clone())
                .help("give a listener with `service = \"relay\"` a `tls` other than \"off\""),
        );
    }
}

/// Users who could never log in, and listeners that could never take mail.
fn auth(config: &Config, marks: &Marks, problems: &Problems) {
    let auth = &config.auth;
    let usable = |mechanism: &Mechanism| match mechanism.takes_tokens() {
        true => auth.oauth.is_some(),
        false => auth.users.is_some(),
    };
    let mut submits = false;
    for (listener, mark) in config.listeners.iter().zip(&marks.listeners) {
        if listener.service != Service::Submission {
            if let (true, Some(span)) = (listener.hide_client, &mark.hide_client) {
                let title = "`listener.hide_client` is for `service = \"submission\"` alone";
                problems.push(Problem::error(title, span.clone()).label("remove it"));
            }
            continue;
        }
        submits = true;
        if !auth.mechanisms.iter().any(usable) {
            let title = "`service = \"submission\"` needs users who can log in";
            problems.push(Problem::error(title, mark.service.clone()).help(
                "add `[auth]` with `users = \"users\"`, and make the first with `mailrace user add`",
            ));
        }
        if auth.require_tls && listener.tls == ListenerTls::Off {
            let title = "`service = \"submission\"` needs TLS, and this listener has none";
            let span = mark.tls.clone().unwrap_or(mark.service.clone());
            problems.push(Problem::error(title, span).help(
                "add `tls = \"starttls\"` or `\"implicit\"`; or, where passwords may be read on \
                 the way, `require_tls = false` in `[auth]`",
            ));
        }
    }
    for (key, span) in [("users", &marks.auth.users), ("oauth_keys", &marks.auth.oauth_keys)] {
        if let (false, Some(span)) = (submits, span) {
            let title = format!("`auth.{key}` is of no use: there is no `submission` listener");
            problems.push(Problem::warning(title, span.clone()));
        }
    }
    if let Some(span) = &marks.auth.mechanisms {
        for mechanism in auth.mechanisms.iter().filter(|mechanism| !usable(mechanism)) {
            let needed = if mechanism.takes_tokens() { "oauth_keys" } else { "users" };
            let title = format!("`auth.mechanisms` has {mechanism}, which needs `auth.{needed}`");
            problems.push(Problem::error(title, span.clone()));
        }
    }
}

/// A `relay` listener that strangers reach, with networks that hold strangers.
fn open_relay(config: &Config, marks: &Marks, problems: &Problems) {
    let Some(networks) = &marks.networks else {
        return;
    };
    // Joined first, so that the world in two halves is still the world.
    let joined = IpNet::aggregate(&config.relay.networks);
    let Some(world) = joined.iter().find(|network| holds_strangers(network)) else {
        return;
    };
    for listener in &config.listeners {
        if listener.service != Service::Relay || listener.address.ip().is_loopback() {
            continue;
        }
        let address = listener.address;
        let help = "name the networks whose hosts you know, such as \"10.0.0.0/8\"";
        if is_private(address.ip()) {
            let title = format!("`relay.networks` lets whoever reaches {address} send anywhere");
            problems.push(
                Problem::warning(title, networks.clone())
                    .label(format!("holds {world}"))
                    .help(help),
            );
        } else {
            let title = format!("the `[[listener]]` {address} would be an open relay");
            problems.push(
                Problem::error(title, networks.clone())
                    .label(format!("holds {world}, so anybody could send anywhere"))
                    .help(format!("{help}; or listen on a loopback address")),
            );
        }
    }
}

/// Networks larger than any one organisation's, private ones aside.
fn holds_strangers(network: &IpNet) -> bool {
    match network {
        IpNet::V4(v4) => v4.prefix_len() < 8,
        IpNet::V6(v6) => {
            v6.prefix_len() < 16
                && !(v6.prefix_len() >= 7 && v6.addr().is_unique_local())
                && !(v6.prefix_len() >= 10 && v6.addr().is_unicast_link_local())
        }
    }
}

/// An address that the Internet does not route to this host.
fn is_private(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4.is_private() || v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unique_local() || v6.is_unicast_link_local(),
    }
}

/// Routes that nothing reaches, and recipients that reach no route.
fn route_order(config: &Config, marks: &Marks, problems: &Problems) {
    let mut seen: HashMap<String, usize> = HashMap::new();
    let mut everything: Option<&Range<usize>> = None;
    for (place, (route, mark)) in config.routes.iter().zip(&marks.routes).enumerate() {
        let number = place + 1;
        let earlier = seen.get(&route.recipient.to_string()).copied();
        let unused = if everything.is_some() {
            Some("an earlier one matches `*`, every recipient".to_owned())
        } else {
            earlier.map(|first| format!("route {first} has the same pattern"))
        };
        if let Some(why) = unused {
            let title = format!("route {number} is never used: {why}");
            problems.push(
                Problem::warning(title, mark.recipient.clone())
                    .help("the first route that matches is taken; move this one up or remove it"),
            );
        }
        if route.recipient.is_everything() {
            everything = Some(&mark.recipient);
        }
        seen.entry(route.recipient.to_string()).or_insert(number);
    }
    if let (None, Some(last)) = (everything, marks.routes.last()) {
        problems.push(
            Problem::warning("no route matches every recipient", last.recipient.clone())
                .label("the last route")
                .help(
                    "a recipient without a route is refused with 550 5.1.2, the bare <Postmaster> \
                     too, whom RFC 5321 section 4.5.1 wants accepted; end with a route whose \
                     `recipient = \"*\"`",
                ),
        );
    }
}

fn route_targets(config: &Config, marks: &Marks, problems: &Problems) {
    for (route, mark) in config.routes.iter().zip(&marks.routes) {
        loop_to_ourselves(config, route, mark, problems);
        source_family(route, mark, problems);
        needless_keys(route, mark, problems);
        clear_smtps(route, mark, problems);
        login(route, mark, problems);
        schedule("route", &route.schedule(&config.queue), &mark.schedule, problems);
    }
}

/// A next hop that is one of our listeners, as far as addresses written in the file tell.
fn loop_to_ourselves(config: &Config, route: &Route, mark: &RouteMarks, problems: &Problems) {
    let (Target::Smtp { host, port } | Target::Smtps { host, port }) = &route.to else { return };
    let mut addresses = host.fixed_addresses().iter().map(|ip| SocketAddr::new(*ip, *port));
    let ours = addresses.find(|&next| config.listeners.iter().any(|l| reaches(l.address, next)));
    if let Some(address) = ours {
        let title = format!("`route.to` sends mail for `{}` back to us", route.recipient);
        problems.push(
            Problem::error(title, mark.to.clone())
                .label(format!("a `[[listener]]` has {address}"))
                .help("name the next hop; mail would go round until it counts as a loop"),
        );
    }
}

/// A source from which no address of the next hop can be reached.
fn source_family(route: &Route, mark: &RouteMarks, problems: &Problems) {
    let (Target::Smtp { host, port } | Target::Smtps { host, port } | Target::Lmtp { host, port }) =
        &route.to
    else {
        return;
    };
    let Some((source, span)) = route.source.zip(mark.source.clone()) else { return };
    let addresses = host.fixed_addresses();
    let Some(&first) = addresses.first() else { return };
    if addresses.iter().all(|address| address.is_ipv4() != source.is_ipv4()) {
        let title = "`route.source` is of another family than the next hop";
        let label = format!("{} cannot be reached from it", SocketAddr::new(first, *port));
        problems.push(Problem::error(title, span).label(label));
    }
}

/// Keys that a route's target has no use for: whoever wrote them expects something that will not
/// happen.
fn needless_keys(route: &Route, mark: &RouteMarks, problems: &Problems) {
    let to = &route.to;
    let waits = !matches!(to, Target::Discard | Target::Reject { .. });
    let tries = waits && *to != Target::Hold;
    let talks = tries && !matches!(to, Target::Maildir(_));
    let connects = talks && !matches!(to, Target::LmtpUnix { .. });
    let encrypts = matches!(to, Target::Mx | Target::Smtp { .. } | Target::Smtps { .. });
    let keys = [
        ("tls", encrypts || route.given_tls == Some(TlsPolicy::Off), &mark.tls),
        ("source", connects, &mark.source),
        ("verp", talks || !route.verp, &mark.verp),
        ("retry", tries, &mark.schedule.retry),
        ("lifetime", waits, &mark.schedule.lifetime),
        ("delay_notice", waits, &mark.schedule.delay_notice),
    ];
    for (key, has_use, span) in keys {
        if let (false, Some(span)) = (has_use, span) {
            let title = format!("`route.{key}` means nothing for `{to}`");
            problems.push(Problem::error(title, span.clone()).label("remove it"));
        }
    }
}

/// `smtps://` is TLS, and nothing less.
fn clear_smtps(route: &Route, mark: &RouteMarks, problems: &Problems) {
    if let (Target::Smtps { .. }, Some(span)) = (&route.to, &mark.tls)
        && route.tls().allows_clear()
    {
        let title = "`route.tls` contradicts `smtps://`, which never goes in clear";
        problems.push(
            Problem::error(title, span.clone()).label("expected \"required\" or \"verified\""),
        );
    }
}

/// A login needs a user and one place of its secret, a smart host that takes it, and one that is
/// what it says.
fn login(route: &Route, mark: &RouteMarks, problems: &Problems) {
    let Some((key, span)) = mark.login.first() else { return };
    let takes = matches!(route.to, Target::Smtp { .. } | Target::Smtps { .. });
    let problem = |title: String| Problem::error(title, span.clone());
    if !takes {
        let title = format!("`route.{key}` means nothing for `{}`", route.to);
        return problems.push(problem(title).label("remove it"));
    }
    let has_user = *key == "user";
    let secrets = mark.login.len() - usize::from(has_user);
    if !has_user {
        let title = format!("`route.{key}` needs a `user` beside it");
        problems.push(problem(title).help("add `user = \"NAME\"`, the account at the next hop"));
    } else if secrets != 1 {
        let title = "`route.user` needs one secret beside it".to_owned();
        problems.push(problem(title).help(
            "add one of `password_file = \"FILE\"`, `password_env = \"VARIABLE\"` and \
             `token_file = \"FILE\"`",
        ));
    } else if route.tls() != TlsPolicy::Verified {
        let title = "`route.user` logs in at a next hop that need not prove its name";
        let span = mark.tls.clone().unwrap_or(span.clone());
        problems.push(Problem::warning(title, span).help(
            "leave `tls` out, which then means \"verified\"; as it is, whoever stands between may \
             be given the password",
        ));
    }
}

/// Whether a connection to `target` ends at a listener bound to `listener`, as far as addresses
/// tell: a public address of this host behind 0.0.0.0 is not known here.
fn reaches(listener: SocketAddr, target: SocketAddr) -> bool {
    let same_host = listener.ip() == target.ip()
        || (listener.ip().is_unspecified() && target.ip().is_loopback())
        || target.ip().is_unspecified();
    same_host && listener.port() == target.port()
}

fn limits(config: &Config, marks: &Marks, environment: &Environment, problems: &Problems) {
    let limits = &config.limits;
    if let Some(span) = &marks.sessions {
        let descriptors = environment.descriptors;
        let room = descriptors / 4 * 3;
        if limits.sessions as u64 > room {
            let title = format!("`limits.sessions` is more than {descriptors} descriptors allow");
            problems.push(
                Problem::warning(title, span.clone())
                    .label(format!("about {room} fit"))
                    .help("raise the limit on open files (LimitNOFILE= of the unit), or lower it"),
            );
        }
    }
    if let Some(span) = &marks.sessions_per_address
        && limits.sessions_per_address > limits.sessions
    {
        let title = "`limits.sessions_per_address` is above `limits.sessions`";
        let label = format!("one client could take all {} sessions", limits.sessions);
        problems.push(Problem::warning(title, span.clone()).label(label));
    }
}

/// The envelope of a message stands in one segment, whole.
fn segments(config: &Config, marks: &Marks, problems: &Problems) {
    let recipients = config.limits.recipients;
    let needed = RECIPIENT_OCTETS * recipients as u64 + BATCH_BYTES as u64;
    if let Some(span) = &marks.segment_size
        && config.spool.segment_size.0 < needed
    {
        let title =
            format!("`spool.segment_size` cannot hold a message for {recipients} recipients");
        let mebibytes = ByteSize(needed.next_multiple_of(1 << 20));
        problems.push(
            Problem::error(title, span.clone())
                .label(format!("expected {mebibytes} or more"))
                .help("or lower `limits.recipients`"),
        );
    }
}

/// An address and an ORCPT, each of the greatest length (RFC 5321 section 4.5.3.1.3, RFC 3461
/// section 4.2), and what stands between them.
const RECIPIENT_OCTETS: u64 = 1024;

fn host(config: &Config, marks: &Marks, environment: &Environment, problems: &Problems) {
    let is_public = config.listeners.iter().any(|listener| listener.service == Service::Mx);
    if is_public && !config.hostname.contains('.') {
        let title =
            format!("`hostname` is `{}`, which other hosts will not accept", config.hostname);
        let help = "set `hostname` to the name that this host's address has in the DNS";
        problems.push(match &marks.hostname {
            Some(span) => Problem::warning(title, span.clone()).help(help),
            None => Problem { span: None, ..Problem::warning(title, 0..0) }.help(help),
        });
    }
    if let (Some(user), Some(span)) = (&config.user, &marks.user)
        && !(environment.user_exists)(user)
    {
        let title = format!("`user` names `{user}`, whom this system does not know");
        problems.push(
            Problem::warning(title, span.clone())
                .help("make the user before starting as root, or start as an ordinary one"),
        );
    }
    if let Some(span) = marks.admin.clone().filter(|_| !config.admin.address.ip().is_loopback()) {
        let title = "`admin.address` can be reached from other hosts";
        problems.push(Problem::warning(title, span).help(
            "it is read-only, but shows addresses of mail; use a loopback address or a firewall",
        ));
    }
}

/// The schedule that holds for `[queue]` or a route; only what was written in that table is at
/// fault.
fn schedule(table: &str, schedule: &Schedule, marks: &ScheduleMarks, problems: &Problems) {
    let lifetime = Period(schedule.lifetime);
    match (schedule.retry.first(), &marks.retry, &marks.lifetime) {
        (None, Some(span), _) => problems.push(
            Problem::error(format!("`{table}.retry` is empty"), span.clone())
                .label("expected at least one duration, as in [\"5m\", \"1h\"]"),
        ),
        (Some(&first), Some(span), _) if first >= schedule.lifetime => {
            let title = format!("`{table}.retry` begins after the lifetime of {lifetime}");
            problems
                .push(Problem::warning(title, span.clone()).label("nothing would be tried twice"));
        }
        (Some(&first), None, Some(span)) if first >= schedule.lifetime => {
            let wait = Period(first);
            let title = format!("`{table}.lifetime` ends before the first retry, after {wait}");
            problems.push(
                Problem::warning(title, span.clone())
                    .label("nothing would be tried twice")
                    .help("give `retry` shorter waits too, as in [\"30s\", \"1m\"]"),
            );
        }
        _ => {}
    }
    if let (DelayNotice::After(age), Some(span)) = (schedule.delay_notice, &marks.delay_notice)
        && age >= schedule.lifetime
    {
        let title = format!("`{table}.delay_notice` comes after the lifetime of {lifetime}");
        problems.push(
            Problem::warning(title, span.clone())
                .label("no notice would be sent")
                .help("write \"off\" if that is meant"),
        );
    }
}

fn delivery(config: &Config, marks: &Marks, problems: &Problems) {
    if let Some(span) = marks.soft_bounce.clone().filter(|_| config.delivery.soft_bounce) {
        problems.push(
            Problem::warning("`delivery.soft_bounce` keeps mail that can never be delivered", span)
                .label("for tests only")
                .help(
                    "a sender hears of a wrong address only at the end of the message's lifetime; \
                     remove it once the setup works",
                ),
        );
    }
}

fn dns(config: &Config, marks: &Marks, problems: &Problems) {
    let servers = &config.dns.servers;
    if let Some(span) = &marks.dns_servers {
        if servers.is_empty() {
            let title = "`dns.servers` is empty";
            let label = "expected at least one server; without the key, the system's are asked";
            problems.push(Problem::error(title, span.clone()).label(label));
        } else if servers.len() > DNS_SERVERS_MAX {
            let title = format!("`dns.servers` has {} servers", servers.len());
            let label = format!("expected at most {DNS_SERVERS_MAX}");
            problems.push(Problem::error(title, span.clone()).label(label));
        }
    }
    // Those of the system are known at the start only.
    let is_asked = |address: IpAddr| {
        servers.is_empty() || servers.iter().any(|server| server.ip().to_canonical() == address)
    };
    for (&address, span) in config.dns.trusted.iter().zip(&marks.dns_trusted) {
        if !is_asked(address) {
            let title = format!("`dns.trusted` names {address}, which is never asked");
            problems.push(
                Problem::warning(title, span.clone())
                    .label("not among `dns.servers`")
                    .help("only the servers themselves are looked at, not whom they ask"),
            );
        }
    }
}

/// More servers are of no use: those that do not answer leave one look-up no time for the others.
const DNS_SERVERS_MAX: usize = 8;
