//! The configuration: one file, read once into types that prove it valid.
//!
//! [`Config::parse`] takes text and an [`Environment`] and gives a [`Config`] or a [`Report`] of
//! everything that is wrong with it, drawn with its lines; it does no I/O, which [`load`] adds.
//! What a `Config` holds can be used as it is: no value is out of bounds, nothing names a feature
//! that this version does not have, and it is no open relay.  The keys and their meaning are in
//! `docs/configuration.md`; a test holds that page to the list in `keys`.
//!
//! It does not bind sockets, create directories or look names up: what only the start can find
//! out is the start's to report.

mod check;
mod edge;
mod keys;
mod maildir;
mod pattern;
mod read;
mod recipients;
mod report;
mod route;
mod schedule;
mod table;
mod target;

#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

use ipnet::IpNet;
use toml::de::DeTable;

use crate::auth::Issuer;
use crate::auth::sasl::Mechanism;
use crate::limits;
use crate::message::Durability;
use crate::spool::SEGMENT_BYTES;
use crate::tls::{AcceptorSettings, CertificateFiles, Fingerprint};
use crate::units::{ByteSize, Rate};

pub use edge::{Checks, Edge, Greylist, List, ListSubject, OnFailure, RefuseAt, Rspamd};
pub use keys::{SECTIONS, Section};
pub use maildir::Maildir;
pub use pattern::{BadDomainPattern, BadPattern, DomainPattern, Domains, Pattern, Reach, unquoted};
pub use recipients::Recipients;
pub use report::{Problem, Report, Severity};
pub use route::{Route, RouteIndex, Routes};
pub use schedule::{DelayNotice, GivenSchedule, Schedule};
pub use target::{BadTarget, Host, Target};

/// Everything an operator can set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// What this host calls itself: greeting, EHLO, trace headers, notices.
    pub hostname: Box<str>,
    /// Where the spool, the admin socket and other state live.
    pub data_dir: PathBuf,
    /// Worker threads, at least 1.
    pub workers: usize,
    /// Whom the process becomes after it has bound its sockets, when started as root.
    pub user: Option<Box<str>>,
    /// Where mail comes in; at least one.
    pub listeners: Vec<Listener>,
    /// What sessions are encrypted with.
    pub tls: Tls,
    /// How users of `submission` listeners prove who they are.
    pub auth: Auth,
    /// Who may send anywhere.
    pub relay: Relay,
    /// For which domains anybody may send.
    pub domains: Domains,
    /// Who is here.
    pub recipients: Recipients,
    /// What `mx` listeners ask about their clients; `None` for nothing.
    pub edge: Option<Edge>,
    /// Bounds on what peers can ask for.
    pub limits: Limits,
    /// Which recipient goes where; at least one.
    pub routes: Routes,
    /// How mail is sent on.
    pub delivery: Delivery,
    /// When mail is tried again, and how long.
    pub queue: Schedule,
    /// How the log of messages uses its disk.
    pub spool: Spool,
    /// Whom to ask for names.
    pub dns: Dns,
    /// Where events go.
    pub log: Log,
    /// The read-only HTTP interface.
    pub admin: Admin,
}

/// One `[[listener]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    /// Where it listens; port 0 lets the system choose, for tests.
    pub address: SocketAddr,
    /// Whom it serves.
    pub service: Service,
    /// Whether sessions are encrypted.
    pub tls: ListenerTls,
    /// What the 250 after the data promises.
    pub durability: Durability,
    /// What becomes of a CR or LF that stands alone in the data.
    pub bare_newline: BareNewline,
    /// Whether the trace header leaves out who the client is; for `submission` alone.
    pub hide_client: bool,
    /// How its messages go on.
    pub delivery: ListenerDelivery,
    /// Balancers, whose connections begin with a PROXY header.
    pub proxy: Vec<IpNet>,
    /// Who may say for whom it speaks, by XCLIENT.
    pub xclient: Vec<IpNet>,
}

/// Whom a listener serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Service {
    /// Anybody, for the domains of `[domains] accept` only.
    Mx,
    /// Users who have authenticated (RFC 6409), to any recipient.
    Submission,
    /// The networks of `[relay]`, to any recipient.
    Relay,
}

/// Whether a listener's sessions are encrypted; all but `Off` come with a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ListenerTls {
    /// Never.
    Off,
    /// STARTTLS is offered (RFC 3207).
    StartTls,
    /// STARTTLS is demanded before MAIL.
    Required,
    /// From the first octet (RFC 8314).
    Implicit,
}

/// How a listener's messages go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ListenerDelivery {
    /// Through the log and the queue.
    Queue,
    /// Straight to the next hop, whose replies become ours; nothing is kept.
    Inline,
}

/// What becomes of a CR or LF that stands alone in the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BareNewline {
    /// The message is refused with 550 5.6.0 after its true end.
    Reject,
    /// A space takes its place.
    Space,
}

/// `[tls]`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tls {
    /// The first is the default; the others are chosen by the name that a client asks for.
    pub certificates: Vec<CertificateFiles>,
}

/// `[auth]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Auth {
    /// The users file.
    pub users: Option<PathBuf>,
    /// What is offered, in this order.
    pub mechanisms: Vec<Mechanism>,
    /// Whether AUTH and MAIL wait for TLS on `submission` listeners.  Mechanisms that show the
    /// secret are offered in clear only where this is off.
    pub require_tls: bool,
    /// Whose tokens count.
    pub oauth: Option<OAuth>,
}

/// `[auth] oauth_...`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OAuth {
    /// The issuer's keys, a JWK set.
    pub keys: PathBuf,
    /// What its tokens must say.
    pub issuer: Issuer,
}

/// `[relay]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relay {
    /// Whose clients a `relay` listener lets send anywhere; IPv4 networks in their IPv4 form.
    pub networks: Vec<IpNet>,
    /// The certificates whose holders it lets send anywhere, from wherever they come.
    pub certificates: Vec<Fingerprint>,
}

/// `[limits]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The largest message in octets, as announced by SIZE (RFC 1870).
    pub message_size: ByteSize,
    /// Recipients of one transaction.
    pub recipients: usize,
    /// Sessions of all listeners together.
    pub sessions: usize,
    /// Sessions of one client address; networks in `[relay]` are exempt.
    pub sessions_per_address: usize,
    /// Sessions of one client network, a /24 or a /64; the same are exempt.
    pub sessions_per_network: Option<usize>,
    /// New connections in a time, of all clients together.
    pub connections: Option<Rate>,
    /// New connections of a client address in a time; networks in `[relay]` are exempt.
    pub connections_per_address: Option<Rate>,
    /// New connections of a client network in a time; the same are exempt.
    pub connections_per_network: Option<Rate>,
    /// Received fields in a message before it counts as looping (RFC 5321 section 6.3).
    pub received: usize,
    /// What messages on their way in may take of memory, of all workers together; without it what
    /// suits the machine.
    pub memory: Option<ByteSize>,
    /// Messages that an authenticated user may begin in a time.
    pub messages_per_user: Option<Rate>,
    /// Recipients that one may name in a time.
    pub recipients_per_user: Option<Rate>,
    /// Messages that a client address may begin in a time; networks in `[relay]` are exempt.
    pub messages_per_address: Option<Rate>,
    /// Recipients that one may name in a time; the same are exempt.
    pub recipients_per_address: Option<Rate>,
}

/// `[delivery]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delivery {
    /// The port of mail exchangers, for `to = "mx"`.
    pub port: u16,
    /// Connections to all sites at a time, of all workers together.
    pub connections: usize,
    /// Connections to one site at a time, of all workers together.
    pub connections_per_site: usize,
    /// Messages before a connection is closed.
    pub messages_per_connection: usize,
    /// Messages that one connection may have under way at a time, where the peer allows it; 1 to
    /// 16.
    pub messages_in_flight: usize,
    /// How long a connection is kept without a message.
    pub idle_timeout: Duration,
    /// What becomes of 8-bit mail for a peer without 8BITMIME (RFC 6152).
    pub eight_bit: EightBit,
    /// Whether a permanent refusal counts as a temporary one, while a setup is being tested.
    pub soft_bounce: bool,
    /// How long a next hop may take.
    pub timeouts: Timeouts,
}

/// What becomes of 8-bit mail for a peer that has not announced 8BITMIME (RFC 6152 section 3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EightBit {
    /// It is sent as it is, as other servers do: peers of today take it.
    Send,
    /// It goes back to its sender with 5.6.3.
    Bounce,
}

/// `[delivery] timeouts` (RFC 5321 section 4.5.3.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// For the connection to stand.
    pub connect: Duration,
    /// For the greeting.
    pub greeting: Duration,
    /// For the reply to a command.
    pub command: Duration,
    /// For the reply to the end of the data.
    pub data: Duration,
}

/// `[spool]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spool {
    /// The size of a segment file; whole mebibytes.  One that exists keeps its size.
    pub segment_size: ByteSize,
    /// How long a segment rests before what is still needed of it may be written anew.
    pub compact_after: Duration,
}

/// `[dns]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dns {
    /// The name servers to ask; empty for those of the system (resolv.conf).
    pub servers: Vec<SocketAddr>,
    /// Servers beside those on this machine whose word counts that an answer is authentic (the
    /// AD bit, RFC 4035 section 3.2.3).
    pub trusted: Vec<IpAddr>,
    /// How long one look-up may take, all servers and retries included.
    pub timeout: Duration,
}

/// `[log]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// Where the JSON lines go.
    pub events: Events,
}

/// Where the JSON lines go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Events {
    /// Standard output.
    Stdout,
    /// A file, opened again on SIGUSR1.
    File(PathBuf),
}

/// `[admin]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Admin {
    /// Where metrics, health and the read-only interface are served.
    pub address: SocketAddr,
}

/// What a configuration takes from the host it is for, as arguments, so that reading one is pure.
#[derive(Debug, Clone)]
pub struct Environment {
    /// The system's name for itself.
    pub host_name: String,
    /// Cores that the process may use.
    pub cores: usize,
    /// File descriptors that the process may open: the hard limit, to which `run` raises itself.
    pub descriptors: u64,
    /// The working directory; relative paths of a file start at the file's own directory.
    pub directory: PathBuf,
    /// Whether the system knows the user.
    pub user_exists: fn(&str) -> bool,
}

/// A configuration that can be used, with what `check` has to say about it.
#[derive(Debug, Clone)]
pub struct Checked {
    /// The configuration.
    pub config: Config,
    /// Warnings only.
    pub report: Report,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file cannot be read.
    #[error("cannot read the configuration {}", path.display())]
    Read {
        /// As it was given.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The file is too large to be a configuration.
    #[error("the configuration {} is larger than {}", path.display(), ByteSize(FILE_OCTETS_MAX))]
    TooLarge {
        /// As it was given.
        path: PathBuf,
    },
    /// The file is not text.
    #[error("the configuration {} is not UTF-8 from line {line} on", path.display())]
    NotUtf8 {
        /// As it was given.
        path: PathBuf,
        /// Where the first wrong octet is, from 1.
        line: usize,
    },
    /// The file has errors.
    #[error("the configuration has errors")]
    Invalid(Report),
}

/// Sessions that a configuration may ask for.
pub(crate) const SESSIONS_MAX: usize = 1_000_000;
/// Sessions without `[limits] sessions`, however many descriptors there are: idle ones cost
/// little, but busy ones may hold a mebibyte each.
const SESSIONS_DEFAULT_MAX: usize = 20_000;
/// Connections without `[delivery] connections`, likewise.
const CONNECTIONS_DEFAULT_MAX: usize = 20_000;
/// Descriptors kept for the log, the rings, the admin interface and Maildir files.
const DESCRIPTORS_RESERVED: u64 = 256;
/// The worker's number is 7 bits of a message's id.
pub(crate) const WORKERS_MAX: usize = 128;
// A worker's turns with rspamd: half of them may be taken by messages that come slowly.
const _: () = assert!(limits::RSPAMD_AT_ONCE >= 2 * WORKERS_MAX);
/// A list of all domains of a large host fits; a spool file given by mistake does not.
const FILE_OCTETS_MAX: u64 = 16 << 20;

/// The descriptors that are left for mail: connections to rspamd take theirs, where it is asked.
pub fn descriptors_for_mail(descriptors: u64, edge: Option<&Edge>) -> u64 {
    let asks = edge.is_some_and(|edge| edge.rspamd.is_some());
    let taken = if asks { limits::RSPAMD_AT_ONCE + limits::RSPAMD_KEPT } else { 0 };
    descriptors.saturating_sub(taken as u64)
}

/// The sessions that fit a limit on file descriptors: three quarters of what is left after the
/// reserve, because deliveries and look-ups need the last quarter; at least 16, at most 20,000.
pub fn sessions_for(descriptors: u64) -> usize {
    let sessions = descriptors.saturating_sub(DESCRIPTORS_RESERVED) / 4 * 3;
    usize::try_from(sessions).unwrap_or(usize::MAX).clamp(16, SESSIONS_DEFAULT_MAX)
}

/// The connections to next hops that are left beside so many sessions and the questions to name
/// servers, which have half of it if they need as much: at least 16, at most 20,000.
pub fn connections_for(descriptors: u64, sessions: usize) -> usize {
    let left = descriptors.saturating_sub(DESCRIPTORS_RESERVED).saturating_sub(sessions as u64);
    let left = usize::try_from(left).unwrap_or(usize::MAX);
    (left - limits::DNS_QUERIES_ALL.min(left / 2)).clamp(16, CONNECTIONS_DEFAULT_MAX)
}

/// The questions to name servers that each of so many workers may have under way beside so many
/// sessions and connections.  Where nothing is left they share the reserve.
pub fn queries_for(descriptors: u64, sessions: usize, connections: usize, workers: usize) -> usize {
    let taken = (sessions as u64).saturating_add(connections as u64);
    let left = descriptors.saturating_sub(DESCRIPTORS_RESERVED).saturating_sub(taken);
    let left = usize::try_from(left).unwrap_or(usize::MAX).min(limits::DNS_QUERIES_ALL);
    let (least, most) = limits::DNS_QUERIES.into_inner();
    (left / workers.max(1)).clamp(least, most)
}

/// Reads and checks the file, or gives the development defaults without one.
pub fn load(file: Option<&Path>, environment: &Environment) -> Result<Checked, LoadError> {
    let Some(path) = file else {
        let config = Config::development(environment);
        return Ok(Checked { config, report: Report::empty() });
    };
    let read_error = |source| LoadError::Read { path: path.to_owned(), source };
    // Looked at first, and only a hint: a pipe has no length, and `read` ends where it ends.
    if fs::metadata(path).map_err(read_error)?.len() > FILE_OCTETS_MAX {
        return Err(LoadError::TooLarge { path: path.to_owned() });
    }
    let text = String::from_utf8(fs::read(path).map_err(read_error)?).map_err(|error| {
        let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = 1 + good.iter().filter(|&&byte| byte == b'\n').count();
        LoadError::NotUtf8 { path: path.to_owned(), line }
    })?;
    Config::parse(&text, path, environment).map_err(LoadError::Invalid)
}

impl Config {
    /// Reads and checks the text of the file `origin`.
    ///
    /// All errors are found in one go, as far as one does not hide another.
    pub fn parse(text: &str, origin: &Path, environment: &Environment) -> Result<Checked, Report> {
        let problems = report::Problems::default();
        // `mailrace.toml` has the parent "", which would leave a slash at the directory's end.
        let directory = match origin.parent() {
            Some(parent) if parent != Path::new("") => environment.directory.join(parent),
            _ => environment.directory.clone(),
        };
        let (root, errors) = DeTable::parse_recoverable(text);
        if !errors.is_empty() {
            // What was salvaged is full of holes, and talk about those would only distract.
            read::syntax_errors(text, errors, &problems);
            return Err(problems.into_report(&origin.display().to_string(), text));
        }
        let (config, marks) = read::config(root.as_ref(), &directory, environment, &problems);
        check::config(&config, &marks, environment, &problems);
        let report = problems.into_report(&origin.display().to_string(), text);
        if report.has_errors() { Err(report) } else { Ok(Checked { config, report }) }
    }

    /// What runs without a file: a relay for this machine alone, which sends nothing away from it
    /// and puts every message into a Maildir below the working directory.
    pub fn development(environment: &Environment) -> Config {
        let maildir = Maildir::parse("mailrace-data/mail", &environment.directory)
            .expect("the path has no braces");
        let pattern = "*".parse().expect("a star is a pattern");
        let everything = Route::new(pattern, Target::Maildir(maildir));
        Config {
            data_dir: environment.directory.join("mailrace-data"),
            listeners: vec![Listener::new((Ipv4Addr::LOCALHOST, 2525).into(), Service::Relay)],
            routes: Routes::new(vec![everything]),
            ..Config::defaults(environment)
        }
    }

    /// The value of each key that is not in the file.
    fn defaults(environment: &Environment) -> Config {
        Config {
            hostname: default_hostname(&environment.host_name).into(),
            data_dir: PathBuf::from("/var/lib/mailrace"),
            workers: environment.cores.clamp(1, WORKERS_MAX),
            user: None,
            listeners: Vec::new(),
            tls: Tls::default(),
            auth: Auth::default(),
            relay: Relay::default(),
            domains: Domains::default(),
            recipients: Recipients::default(),
            edge: None,
            limits: Limits {
                message_size: ByteSize(50 << 20),
                recipients: 1_000,
                sessions: sessions_for(environment.descriptors),
                sessions_per_address: 100,
                sessions_per_network: None,
                connections: None,
                connections_per_address: None,
                connections_per_network: None,
                received: 100,
                memory: None,
                messages_per_user: None,
                recipients_per_user: None,
                messages_per_address: None,
                recipients_per_address: None,
            },
            routes: Routes::default(),
            delivery: Delivery {
                port: 25,
                connections: connections_for(
                    environment.descriptors,
                    sessions_for(environment.descriptors),
                ),
                connections_per_site: 20,
                messages_per_connection: 100,
                messages_in_flight: 4,
                idle_timeout: Duration::from_secs(5),
                eight_bit: EightBit::Send,
                soft_bounce: false,
                timeouts: Timeouts {
                    connect: limits::CLIENT_CONNECT,
                    greeting: limits::CLIENT_GREETING,
                    command: limits::CLIENT_COMMAND,
                    data: limits::CLIENT_DATA_END,
                },
            },
            queue: Schedule {
                retry: [5, 10, 20, 60, 120, 240].map(|m| Duration::from_secs(60 * m)).into(),
                lifetime: Duration::from_secs(5 * 86_400),
                delay_notice: DelayNotice::After(Duration::from_secs(4 * 3_600)),
            },
            spool: Spool {
                segment_size: ByteSize(u64::from(SEGMENT_BYTES)),
                compact_after: Duration::from_secs(600),
            },
            dns: Dns { servers: Vec::new(), trusted: Vec::new(), timeout: Duration::from_secs(5) },
            log: Log { events: Events::Stdout },
            admin: Admin { address: (Ipv4Addr::LOCALHOST, 8025).into() },
        }
    }

    /// What listeners encrypt with; none where no listener does.
    pub fn acceptor(&self) -> Option<AcceptorSettings> {
        let is_used = self.listeners.iter().any(|listener| listener.tls != ListenerTls::Off);
        is_used.then(|| AcceptorSettings {
            certificates: self.tls.certificates.clone(),
            asks_for_certificates: !self.relay.certificates.is_empty(),
        })
    }

    /// The directory of the log of messages.
    pub fn spool_dir(&self) -> PathBuf {
        self.data_dir.join("spool")
    }
}

impl Listener {
    /// A listener with the defaults of all that is optional.
    pub fn new(address: SocketAddr, service: Service) -> Listener {
        Listener {
            address,
            service,
            tls: ListenerTls::Off,
            durability: Durability::Fsync,
            bare_newline: BareNewline::Reject,
            hide_client: false,
            delivery: ListenerDelivery::Queue,
            proxy: Vec::new(),
            xclient: Vec::new(),
        }
    }
}

impl Default for Auth {
    fn default() -> Auth {
        Auth {
            users: None,
            mechanisms: vec![
                Mechanism::ScramSha256Plus,
                Mechanism::ScramSha256,
                Mechanism::Plain,
                Mechanism::Login,
            ],
            require_tls: true,
            oauth: None,
        }
    }
}

impl Limits {
    /// Whether somebody's messages or recipients are counted.
    pub fn count_messages(&self) -> bool {
        let rates = [
            self.messages_per_user,
            self.recipients_per_user,
            self.messages_per_address,
            self.recipients_per_address,
        ];
        rates.iter().any(Option::is_some)
    }
}

impl Relay {
    /// Whether the client may send anywhere through a `relay` listener.
    ///
    /// An IPv4 client that came through an IPv6 socket (`::ffff:192.0.2.1`) counts as IPv4.
    pub fn contains(&self, client: IpAddr) -> bool {
        let client = client.to_canonical();
        self.networks.iter().any(|network| network.contains(&client))
    }
}

impl Dns {
    /// Whether the server's word counts that an answer is authentic: it runs on this machine, so
    /// that nobody stands between, or the operator trusts the way to it.
    pub fn trusts(&self, server: IpAddr) -> bool {
        let server = server.to_canonical();
        server.is_loopback() || self.trusted.contains(&server)
    }
}

impl Default for Relay {
    fn default() -> Self {
        let loopback = ["127.0.0.0/8", "::1/128"];
        let networks = loopback.map(|n| n.parse().expect("a network")).into();
        Relay { networks, certificates: Vec::new() }
    }
}

/// The system's name if it can stand in public, else `localhost`.
fn default_hostname(host_name: &str) -> String {
    match pattern::domain_ascii_lower(host_name) {
        Some(name) if name.contains('.') && !name.starts_with('[') => name,
        _ => "localhost".to_owned(),
    }
}

impl std::fmt::Display for ListenerTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            ListenerTls::Off => "off",
            ListenerTls::StartTls => "starttls",
            ListenerTls::Required => "required",
            ListenerTls::Implicit => "implicit",
        })
    }
}

impl std::fmt::Display for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Service::Mx => "mx",
            Service::Submission => "submission",
            Service::Relay => "relay",
        })
    }
}
