//! From the text to a [`Config`]: each value by itself.
//!
//! What does not fit is reported and its default stands in, so that reading reaches the end and
//! `check` can look at the whole.  Values of features that are still to be built are refused here,
//! targets in `check::awaited`, and nowhere else.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::ops::{Range, RangeInclusive};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::edge;
use super::pattern::domain_ascii_lower;
use super::recipients;
use super::report::{Problem, Problems};
use super::table::{
    Table, Wrong, choice, expected, network, networks, parsed, period, size, text, truth, whole,
};
use super::{
    Admin, Auth, BareNewline, Config, DelayNotice, Delivery, Dns, DomainPattern, Domains, EightBit,
    Environment, Events, GivenSchedule, Limits, Listener, ListenerDelivery, ListenerTls, Log,
    OAuth, Relay, Route, Routes, SESSIONS_MAX, Service, Spool, Target, Timeouts, Tls, WORKERS_MAX,
    connections_for, descriptors_for_mail,
};
use crate::auth::{Issuer, SecretPlace, SmartHostLogin};
use crate::limits;
use crate::message::Durability;
use crate::tls::{CertificateFiles, TlsPolicy};
use crate::units::{ByteSize, Rate};

/// Where things stand in the text, for what `check` has to say; `None` where they do not.
///
/// The lists are as long as those of the [`Config`], and in its order.
#[derive(Debug, Default)]
pub(super) struct Marks {
    pub hostname: Option<Range<usize>>,
    pub user: Option<Range<usize>>,
    /// Set if the file has the key, though no listener in it was good.
    pub has_listeners: bool,
    pub listeners: Vec<ListenerMarks>,
    pub auth: AuthMarks,
    pub networks: Option<Range<usize>>,
    pub certificates: Option<Range<usize>>,
    pub domains: Option<Range<usize>>,
    /// Set if there is an `accept` that does not fit.
    pub domains_are_bad: bool,
    pub sessions: Option<Range<usize>>,
    pub sessions_per_address: Option<Range<usize>>,
    pub has_routes: bool,
    pub routes: Vec<RouteMarks>,
    pub queue: ScheduleMarks,
    pub soft_bounce: Option<Range<usize>>,
    pub segment_size: Option<Range<usize>>,
    pub dns_servers: Option<Range<usize>>,
    /// One for each of `dns.trusted`.
    pub dns_trusted: Vec<Range<usize>>,
    pub admin: Option<Range<usize>>,
}

#[derive(Debug)]
pub(super) struct ListenerMarks {
    pub address: Range<usize>,
    pub service: Range<usize>,
    pub tls: Option<Range<usize>>,
    pub hide_client: Option<Range<usize>>,
}

#[derive(Debug)]
pub(super) struct RouteMarks {
    pub recipient: Range<usize>,
    pub to: Range<usize>,
    pub source: Option<Range<usize>>,
    pub tls: Option<Range<usize>>,
    /// Of each key of the login that is there, by its name.
    pub login: Vec<(&'static str, Range<usize>)>,
    pub schedule: ScheduleMarks,
    pub verp: Option<Range<usize>>,
}

#[derive(Debug, Default)]
pub(super) struct AuthMarks {
    pub users: Option<Range<usize>>,
    pub mechanisms: Option<Range<usize>>,
    pub oauth_keys: Option<Range<usize>>,
}

/// Of `[queue]` and of each route.
#[derive(Debug, Default)]
pub(super) struct ScheduleMarks {
    pub retry: Option<Range<usize>>,
    pub lifetime: Option<Range<usize>>,
    pub delay_notice: Option<Range<usize>>,
}

/// Durations that make sense for a peer or a wait; short ones are for tests.
const WAIT: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(86_400);
const LIFETIME: RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(90 * 86_400);
/// A look-up that takes longer holds up deliveries for an answer that hardly comes any more.
const LOOK_UP: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(60);
/// The most messages that `[delivery] messages_in_flight` may ask for.
const MESSAGES_IN_FLIGHT_MAX: usize = 16;
const DNS_PORT: u16 = 53;
/// Every batch fits the smallest segment, and a start holds the largest in memory.
const SEGMENT_SIZE: RangeInclusive<ByteSize> = ByteSize(4 * MEBIBYTE)..=ByteSize(256 * MEBIBYTE);
const MEBIBYTE: u64 = 1 << 20;
const REST: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(30 * 86_400);
/// Less would refuse the sessions of one busy client, more is more than any host has.
const MEMORY: RangeInclusive<ByteSize> = ByteSize(8 * MEBIBYTE)..=ByteSize(1 << 40);
const MESSAGE_SIZE: RangeInclusive<ByteSize> = ByteSize(1 << 10)..=ByteSize(1 << 30);

/// Reads every value; bad ones become problems.
pub(super) fn config(
    root: &DeTable<'_>,
    directory: &Path,
    environment: &Environment,
    problems: &Problems,
) -> (Config, Marks) {
    let table = Table::root(root, problems);
    let edge = edge::edge(&table);
    let descriptors = descriptors_for_mail(environment.descriptors, edge.as_ref());
    let defaults = Config::defaults(&Environment { descriptors, ..environment.clone() });
    let mut marks = Marks::default();

    let hostname = note(table.optional("hostname", hostname), &mut marks.hostname);
    let user = note(table.optional("user", user), &mut marks.user);
    let workers = table.or("workers", 0, whole(0..=WORKERS_MAX));
    let limits = session_limits(&table.table("limits"), defaults.limits, &mut marks);
    let connections = connections_for(descriptors, limits.sessions);
    let config = Config {
        hostname: hostname.unwrap_or(defaults.hostname),
        data_dir: match table.optional("data_dir", path) {
            Some(path) => directory.join(path.into_inner()),
            None => defaults.data_dir,
        },
        workers: if workers == 0 { defaults.workers } else { workers },
        user,
        listeners: listeners(&table, &mut marks),
        tls: tls(&table.table("tls"), directory),
        auth: auth(&table.table("auth"), directory, defaults.auth, &mut marks.auth),
        relay: relay(&table.table("relay"), defaults.relay, &mut marks),
        domains: domains(&table.table("domains"), &mut marks),
        recipients: recipients::recipients(&table.table("recipients"), directory),
        edge,
        limits,
        routes: routes(&table, directory, &mut marks),
        delivery: delivery(
            &table.table("delivery"),
            Delivery { connections, ..defaults.delivery },
            &mut marks,
        ),
        queue: schedule(&table.table("queue"), &mut marks.queue).or(&defaults.queue),
        spool: spool(&table.table("spool"), defaults.spool, &mut marks),
        dns: dns(&table.table("dns"), defaults.dns, &mut marks),
        log: log(&table.table("log"), directory, defaults.log),
        admin: admin(&table.table("admin"), defaults.admin, &mut marks),
    };
    (config, marks)
}

/// Keeps the place and gives the value.
fn note<T>(value: Option<Spanned<T>>, mark: &mut Option<Range<usize>>) -> Option<T> {
    *mark = value.as_ref().map(Spanned::span);
    value.map(Spanned::into_inner)
}

/// The TOML parser's errors.  It goes on after one, and then sees more of them on the same line
/// that are only echoes: the first of a line stands for it.
pub(super) fn syntax_errors(source: &str, errors: Vec<toml::de::Error>, problems: &Problems) {
    let mut lines = HashSet::new();
    for error in errors {
        let Some(span) = error.span() else {
            problems.push(Problem::missing(error.message()));
            continue;
        };
        let line = source.as_bytes()[..span.start].iter().filter(|&&b| b == b'\n').count();
        if lines.insert(line) {
            let title = "this is not valid TOML".to_owned();
            problems.push(Problem::error(title, span).label(error.message()));
        }
    }
}

fn hostname(value: &DeValue<'_>) -> Result<Box<str>, Wrong> {
    let name = domain_ascii_lower(text(value)?).filter(|name| !name.starts_with('['));
    name.map(String::into_boxed_str).ok_or_else(|| {
        Wrong::new("is not a host name", "expected a full name like \"mx1.example.com\"")
    })
}

fn user(value: &DeValue<'_>) -> Result<Box<str>, Wrong> {
    match text(value)? {
        "" => Err(Wrong::new("is empty", "expected the name of a user of this system")),
        name => Ok(name.into()),
    }
}

pub(super) fn path(value: &DeValue<'_>) -> Result<PathBuf, Wrong> {
    match text(value)? {
        "" => Err(Wrong::new("is empty", "expected a path")),
        path if path.contains('\0') => Err(Wrong::new("has a NUL", "expected a path")),
        path => Ok(path.into()),
    }
}

fn socket_address(value: &DeValue<'_>) -> Result<SocketAddr, Wrong> {
    let given = text(value)?;
    given.parse().map_err(|_| {
        let expected = "expected an IP address and a port, as in \"0.0.0.0:25\" or \"[::]:25\"";
        let wrong = Wrong::new("is not a socket address", expected);
        match (given.parse::<IpAddr>(), given.strip_prefix(':').unwrap_or(given).parse::<u16>()) {
            (Ok(ip), _) => {
                let port = if ip.is_loopback() { 2525 } else { 25 };
                wrong.mend(format!("add the port: \"{}\"", SocketAddr::new(ip, port)))
            }
            (_, Ok(port)) => wrong.mend(format!("for all IPv4 addresses: \"0.0.0.0:{port}\"")),
            _ => wrong,
        }
    })
}

fn listeners(root: &Table<'_>, marks: &mut Marks) -> Vec<Listener> {
    let Some(tables) = root.tables("listener") else {
        return Vec::new();
    };
    marks.has_listeners = true;
    let mut listeners = Vec::new();
    for table in tables {
        let address = table.required("address", "add `address = \"0.0.0.0:25\"`", socket_address);
        let mend = "add `service = \"mx\"` to take mail for your domains from anybody, or \
                    `service = \"relay\"` to take mail for anybody from `[relay] networks`";
        let service = table.required("service", mend, service);
        let tls = table.optional("tls", choice(&LISTENER_TLS));
        let durability = table.or(
            "durability",
            Durability::Fsync,
            choice(&[("fsync", Durability::Fsync), ("os", Durability::Os)]),
        );
        let bare_newline = table.or(
            "bare_newline",
            BareNewline::Reject,
            choice(&[("reject", BareNewline::Reject), ("space", BareNewline::Space)]),
        );
        let hide_client = table.optional("hide_client", truth);
        let delivery = table.or(
            "delivery",
            ListenerDelivery::Queue,
            choice(&[("queue", ListenerDelivery::Queue), ("inline", ListenerDelivery::Inline)]),
        );
        let proxy = networks(&table, "proxy");
        let xclient = networks(&table, "xclient");
        let (Some(address), Some(service)) = (address, service) else {
            continue;
        };
        marks.listeners.push(ListenerMarks {
            address: address.span(),
            service: service.span(),
            tls: tls.as_ref().map(Spanned::span),
            hide_client: hide_client.as_ref().map(Spanned::span),
        });
        let hide_client = hide_client.is_some_and(Spanned::into_inner);
        let tls = tls.map_or(ListenerTls::Off, Spanned::into_inner);
        let (address, service) = (address.into_inner(), service.into_inner());
        listeners.push(Listener {
            address,
            service,
            tls,
            durability,
            bare_newline,
            hide_client,
            delivery,
            proxy,
            xclient,
        });
    }
    listeners
}

fn service(value: &DeValue<'_>) -> Result<Service, Wrong> {
    let words =
        [("mx", Service::Mx), ("submission", Service::Submission), ("relay", Service::Relay)];
    choice(&words)(value)
}

const LISTENER_TLS: [(&str, ListenerTls); 4] = [
    ("off", ListenerTls::Off),
    ("starttls", ListenerTls::StartTls),
    ("required", ListenerTls::Required),
    ("implicit", ListenerTls::Implicit),
];

fn tls(table: &Table<'_>, directory: &Path) -> Tls {
    let mut certificates = Vec::new();
    for table in table.tables("certificate").into_iter().flatten() {
        let chain = table.required("chain", "add `chain = \"fullchain.pem\"`", path);
        let key = table.required("key", "add `key = \"key.pem\"`", path);
        if let (Some(chain), Some(key)) = (chain, key) {
            certificates.push(CertificateFiles {
                chain: directory.join(chain.into_inner()),
                key: directory.join(key.into_inner()),
            });
        }
    }
    Tls { certificates }
}

fn auth(table: &Table<'_>, directory: &Path, default: Auth, marks: &mut AuthMarks) -> Auth {
    let users = note(table.optional("users", path), &mut marks.users);
    let mechanism = parsed("has an entry that is no mechanism");
    let mechanisms = note(table.list("mechanisms", mechanism), &mut marks.mechanisms);
    let oauth = oauth(table, directory, &mut marks.oauth_keys);
    let given = mechanisms.map(|all| all.into_iter().map(Spanned::into_inner).collect());
    Auth {
        users: users.map(|users| directory.join(users)),
        mechanisms: given.unwrap_or(default.mechanisms),
        require_tls: table.or("require_tls", default.require_tls, truth),
        oauth,
    }
}

/// The keys about tokens: none of them, or all but the last.
fn oauth(table: &Table<'_>, directory: &Path, mark: &mut Option<Range<usize>>) -> Option<OAuth> {
    let claim = table.optional("oauth_claim", words).map(Spanned::into_inner);
    if !["oauth_keys", "oauth_issuer", "oauth_audience"].iter().any(|key| table.has(key)) {
        return None;
    }
    let keys = note(table.required("oauth_keys", "add the issuer's JWK set", path), mark);
    let issuer = table.required("oauth_issuer", "add the `iss` of its tokens", words);
    let audience = table.required("oauth_audience", "add the `aud` of tokens for us", words);
    Some(OAuth {
        keys: directory.join(keys?),
        issuer: Issuer {
            issuer: issuer?.into_inner(),
            audience: audience?.into_inner(),
            claim: claim.unwrap_or_else(|| "email".into()),
        },
    })
}

fn relay(table: &Table<'_>, default: Relay, marks: &mut Marks) -> Relay {
    let networks = note(table.list("networks", network), &mut marks.networks);
    let read = parsed("has an entry that is not a fingerprint");
    let certificates = note(table.list("certificates", read), &mut marks.certificates);
    let values = |list: Vec<Spanned<IpNet>>| list.into_iter().map(Spanned::into_inner).collect();
    let certificates = certificates.unwrap_or_default();
    Relay {
        networks: networks.map_or(default.networks, values),
        certificates: certificates.into_iter().map(Spanned::into_inner).collect(),
    }
}

fn domains(table: &Table<'_>, marks: &mut Marks) -> Domains {
    let read = parsed::<DomainPattern>("has an entry that is not a domain");
    let accept = note(table.list("accept", read), &mut marks.domains);
    marks.domains_are_bad = table.has("accept") && accept.is_none();
    accept.into_iter().flatten().map(Spanned::into_inner).collect()
}

fn session_limits(table: &Table<'_>, default: Limits, marks: &mut Marks) -> Limits {
    let sessions = table.optional("sessions", whole(1..=SESSIONS_MAX));
    let per_address = table.optional("sessions_per_address", whole(1..=SESSIONS_MAX));
    let recipients = whole(limits::RECIPIENTS_MIN..=limits::RECIPIENTS_MAX);
    Limits {
        message_size: table.or("message_size", default.message_size, size(MESSAGE_SIZE)),
        recipients: table.or("recipients", default.recipients, recipients),
        sessions: note(sessions, &mut marks.sessions).unwrap_or(default.sessions),
        sessions_per_address: note(per_address, &mut marks.sessions_per_address)
            .unwrap_or(default.sessions_per_address),
        sessions_per_network: table
            .optional("sessions_per_network", whole(1..=SESSIONS_MAX))
            .map(Spanned::into_inner),
        connections: rate(table, "connections"),
        connections_per_address: rate(table, "connections_per_address"),
        connections_per_network: rate(table, "connections_per_network"),
        received: table.or("received", default.received, whole(10..=1_000)),
        memory: table.optional("memory", size(MEMORY)).map(Spanned::into_inner).or(default.memory),
        messages_per_user: rate(table, "messages_per_user"),
        recipients_per_user: rate(table, "recipients_per_user"),
        messages_per_address: rate(table, "messages_per_address"),
        recipients_per_address: rate(table, "recipients_per_address"),
    }
}

fn rate(table: &Table<'_>, key: &'static str) -> Option<Rate> {
    table.optional(key, parsed("is not a rate")).map(Spanned::into_inner)
}

fn routes(root: &Table<'_>, directory: &Path, marks: &mut Marks) -> Routes {
    let Some(tables) = root.tables("route") else {
        return Routes::default();
    };
    marks.has_routes = true;
    let mut routes = Vec::new();
    for table in tables {
        let mend = "add `recipient = \"*@example.com\"`, or `\"*\"` for every recipient";
        let recipient = table.required("recipient", mend, parsed("is not a pattern"));
        let target = |value: &DeValue<'_>| target(value, directory);
        let mend = "add `to = \"mx\"`, `to = \"smtp://10.0.0.5:25\"`, or a `maildir:PATH`";
        let to = table.required("to", mend, target);
        let source = table.optional("source", source_address);
        let tls = table.optional("tls", choice(&ROUTE_TLS));
        let (login, login_marks) = login(&table, directory);
        let mut own = ScheduleMarks::default();
        let given = schedule(&table, &mut own);
        let verp = table.optional("verp", truth);
        let (Some(recipient), Some(to)) = (recipient, to) else {
            continue;
        };
        marks.routes.push(RouteMarks {
            recipient: recipient.span(),
            to: to.span(),
            source: source.as_ref().map(Spanned::span),
            tls: tls.as_ref().map(Spanned::span),
            login: login_marks,
            schedule: own,
            verp: verp.as_ref().map(Spanned::span),
        });
        routes.push(Route {
            recipient: recipient.into_inner(),
            to: to.into_inner(),
            source: source.map(Spanned::into_inner),
            given_tls: tls.map(Spanned::into_inner),
            login: login.map(Arc::new),
            given,
            verp: verp.is_some_and(Spanned::into_inner),
        });
    }
    Routes::new(routes)
}

/// The keys of a login: the user and one place of its secret.  `check` looks at what is amiss.
fn login(
    table: &Table<'_>,
    directory: &Path,
) -> (Option<SmartHostLogin>, Vec<(&'static str, Range<usize>)>) {
    let mut marks = Vec::new();
    let mut value = |key: &'static str| {
        let found = table.optional(key, words)?;
        marks.push((key, found.span()));
        Some(found.into_inner())
    };
    let user = value("user");
    let file = |path: Box<str>| directory.join(&*path);
    let place = value("password_file").map(|path| SecretPlace::PasswordFile(file(path)));
    let place = value("password_env").map(SecretPlace::PasswordVariable).or(place);
    let place = value("token_file").map(|path| SecretPlace::TokenFile(file(path))).or(place);
    let login = user.zip(place).map(|(user, secret)| SmartHostLogin { user, secret });
    (login, marks)
}

/// Text that is not empty.
pub(super) fn words(value: &DeValue<'_>) -> Result<Box<str>, Wrong> {
    match text(value)? {
        "" => Err(Wrong::new("is empty", "expected some text")),
        words if words.contains('\0') => Err(Wrong::new("has a NUL", "expected some text")),
        words => Ok(words.into()),
    }
}

fn target(value: &DeValue<'_>, directory: &Path) -> Result<Target, Wrong> {
    let given = text(value)?;
    Target::parse(given, directory)
        .map_err(|error| Wrong::new("is not a target", error.to_string()))
}

fn source_address(value: &DeValue<'_>) -> Result<IpAddr, Wrong> {
    text(value)?.parse().map_err(|_| {
        Wrong::new("is not an address", "expected an IP address of this host, without a port")
    })
}

const ROUTE_TLS: [(&str, TlsPolicy); 4] = [
    ("off", TlsPolicy::Off),
    ("opportunistic", TlsPolicy::Opportunistic),
    ("required", TlsPolicy::Required),
    ("verified", TlsPolicy::Verified),
];

fn delivery(table: &Table<'_>, default: Delivery, marks: &mut Marks) -> Delivery {
    let timeouts = table.table("timeouts");
    Delivery {
        port: table.or("port", default.port, whole(1..=u16::MAX)),
        connections: table.or("connections", default.connections, whole(1..=1_000_000)),
        connections_per_site: table.or(
            "connections_per_site",
            default.connections_per_site,
            whole(1..=10_000),
        ),
        messages_per_connection: table.or(
            "messages_per_connection",
            default.messages_per_connection,
            whole(1..=1_000_000),
        ),
        messages_in_flight: table.or(
            "messages_in_flight",
            default.messages_in_flight,
            whole(1..=MESSAGES_IN_FLIGHT_MAX),
        ),
        idle_timeout: table.or("idle_timeout", default.idle_timeout, period(WAIT)),
        eight_bit: table.or(
            "eight_bit",
            default.eight_bit,
            choice(&[("send", EightBit::Send), ("bounce", EightBit::Bounce)]),
        ),
        soft_bounce: note(table.optional("soft_bounce", truth), &mut marks.soft_bounce)
            .unwrap_or(default.soft_bounce),
        timeouts: Timeouts {
            connect: timeouts.or("connect", default.timeouts.connect, period(WAIT)),
            greeting: timeouts.or("greeting", default.timeouts.greeting, period(WAIT)),
            command: timeouts.or("command", default.timeouts.command, period(WAIT)),
            data: timeouts.or("data", default.timeouts.data, period(WAIT)),
        },
    }
}

/// `retry`, `lifetime` and `delay_notice`, of `[queue]` or of a route.
fn schedule(table: &Table<'_>, marks: &mut ScheduleMarks) -> GivenSchedule {
    let retry = note(table.list("retry", period(WAIT)), &mut marks.retry);
    GivenSchedule {
        retry: retry.map(|waits| waits.into_iter().map(Spanned::into_inner).collect()),
        lifetime: note(table.optional("lifetime", period(LIFETIME)), &mut marks.lifetime),
        delay_notice: note(table.optional("delay_notice", delay_notice), &mut marks.delay_notice),
    }
}

fn delay_notice(value: &DeValue<'_>) -> Result<DelayNotice, Wrong> {
    let off = "write \"off\" for no notices of delays";
    match value {
        DeValue::String(word) if word == "off" => Ok(DelayNotice::Off),
        DeValue::Boolean(_) => {
            let expected = expected("a duration or \"off\"", value);
            Err(Wrong::new("is not a duration", expected).mend(off))
        }
        _ => period(LIFETIME)(value).map(DelayNotice::After).map_err(|wrong| match wrong.mend {
            None => wrong.mend(off),
            Some(_) => wrong,
        }),
    }
}

fn spool(table: &Table<'_>, default: Spool, marks: &mut Marks) -> Spool {
    let segment_size = note(table.optional("segment_size", segment_size), &mut marks.segment_size);
    Spool {
        segment_size: segment_size.unwrap_or(default.segment_size),
        compact_after: table.or("compact_after", default.compact_after, period(REST)),
    }
}

fn segment_size(value: &DeValue<'_>) -> Result<ByteSize, Wrong> {
    let given = size(SEGMENT_SIZE)(value)?;
    let whole = given.0.is_multiple_of(MEBIBYTE);
    let wrong = || Wrong::new("is not a whole number of MiB", "expected a size like \"64MiB\"");
    whole.then_some(given).ok_or_else(wrong)
}

fn dns(table: &Table<'_>, default: Dns, marks: &mut Marks) -> Dns {
    let trusted = table.list("trusted", server_address).map_or(Vec::new(), Spanned::into_inner);
    marks.dns_trusted = trusted.iter().map(Spanned::span).collect();
    let servers = table.list("servers", name_server);
    marks.dns_servers = servers.as_ref().map(Spanned::span);
    Dns {
        servers: match servers {
            Some(servers) => servers.into_inner().into_iter().map(Spanned::into_inner).collect(),
            None => default.servers,
        },
        trusted: trusted.into_iter().map(Spanned::into_inner).collect(),
        timeout: table.or("timeout", default.timeout, period(LOOK_UP)),
    }
}

/// `IP` or `IP:PORT`, an IPv6 address in brackets where a port follows it.
fn name_server(value: &DeValue<'_>) -> Result<SocketAddr, Wrong> {
    let given = text(value)?;
    let server = given
        .parse()
        .or_else(|_| given.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, DNS_PORT)))
        .map_err(|_| {
            let expected = "expected an IP address, with a port if it is not 53, as in \
                            \"127.0.0.1\" or \"[::1]:5353\"";
            Wrong::new("has an entry that is not an address", expected)
        })?;
    if server.port() == 0 {
        let expected = "expected a port from 1 to 65535 after the colon";
        return Err(Wrong::new("has an entry that is not an address", expected));
    }
    one_host(server.ip())?;
    Ok(server)
}

/// As answers are compared: IPv4 inside IPv6 becomes IPv4.
fn server_address(value: &DeValue<'_>) -> Result<IpAddr, Wrong> {
    let address: IpAddr = text(value)?.parse().map_err(|_| {
        let expected = "expected the IP address of a name server, without a port";
        Wrong::new("has an entry that is not an address", expected)
    })?;
    one_host(address)?;
    Ok(address.to_canonical())
}

/// Refuses what no single server answers from.
fn one_host(address: IpAddr) -> Result<(), Wrong> {
    if address.is_unspecified() || address.is_multicast() {
        let found = format!("has {address}, which is no server's address");
        return Err(Wrong::new(found, "expected the address of one host"));
    }
    Ok(())
}

fn log(table: &Table<'_>, directory: &Path, default: Log) -> Log {
    let events = |value: &DeValue<'_>| {
        Ok(match path(value)? {
            word if word == Path::new("stdout") => Events::Stdout,
            path => Events::File(directory.join(path)),
        })
    };
    Log { events: table.or("events", default.events, events) }
}

fn admin(table: &Table<'_>, default: Admin, marks: &mut Marks) -> Admin {
    let address = note(table.optional("address", socket_address), &mut marks.admin);
    Admin { address: address.unwrap_or(default.address) }
}
