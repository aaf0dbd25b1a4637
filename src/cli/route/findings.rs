//! What there is to say about a message that nobody has sent: the fields of `--json`.
//!
//! Fields are added, never renamed or taken away; what does not apply is null or empty.  Names in
//! the DNS are in A-labels and lower case, times are seconds.

use std::net::IpAddr;

use serde::Serialize;

use crate::control::port::Entry;

/// Everything.
#[derive(Debug, Serialize)]
pub(super) struct Findings {
    pub recipient: Addressee,
    /// With `--from` only.
    pub originator: Option<Originator>,
    /// Each listener, and from whom it takes mail for the recipient.
    pub taken_by: Vec<Taker>,
    /// The route that matches.
    pub route: Option<Matched>,
    /// Where it leads.
    pub way: Option<Way>,
    /// Whom the resolver asks; null where nothing had to be asked.
    pub dns: Option<Vec<NameServer>>,
    /// What messages to the same hosts share.
    pub site: Option<SiteFound>,
    /// The addresses in the order in which a connection would try them.
    pub attempts: Vec<AttemptFound>,
    /// What a running gateway has for the same place; null where none runs.
    pub queue: Option<Queued>,
    pub verdict: Verdict,
}

/// The recipient.
#[derive(Debug, Serialize)]
pub(super) struct Addressee {
    /// Without angle brackets; as it was given if it is no address.
    pub address: String,
    /// What is wrong with it.
    pub problem: Option<String>,
    /// What routes are matched against and the DNS is asked for.
    pub domain: Option<String>,
    /// The domain as people read it, if that differs.
    pub unicode_domain: Option<String>,
    /// Whether it can only be given to a peer with SMTPUTF8 (RFC 6531).
    pub smtputf8: bool,
}

/// The originator.
#[derive(Debug, Serialize)]
pub(super) struct Originator {
    /// Without angle brackets; empty for the null reverse-path.
    pub address: String,
    /// What is wrong with it.
    pub problem: Option<String>,
    /// The null reverse-path: nobody is told of anything.
    pub is_null: bool,
    /// As for the recipient.
    pub smtputf8: bool,
    /// The reverse-path that the next hop would be given.
    pub sent_as: Option<String>,
}

/// A listener and whose mail it takes.
#[derive(Debug, Serialize)]
pub(super) struct Taker {
    pub listener: String,
    pub service: String,
    /// Networks of clients, `*` for everybody; empty if it takes the recipient from nobody.
    pub clients: Vec<String>,
}

/// The route that matches.
#[derive(Debug, Serialize)]
pub(super) struct Matched {
    /// Its place in the file, from 1.
    pub number: usize,
    /// How many routes there are.
    pub of: usize,
    pub recipient: String,
    pub to: String,
    /// The first of those before it, which do not match.
    pub passed_over: Vec<PassedOver>,
    pub source: Option<IpAddr>,
    pub tls: &'static str,
    pub verp: bool,
    pub schedule: Timetable,
}

/// A route that does not match.
#[derive(Debug, Serialize)]
pub(super) struct PassedOver {
    pub number: usize,
    pub recipient: String,
}

/// When mail is tried again.
#[derive(Debug, Serialize)]
pub(super) struct Timetable {
    /// The waits between attempts; the last repeats.
    pub retry_seconds: Vec<f64>,
    pub lifetime_seconds: f64,
    /// Null: never.
    pub delay_notice_seconds: Option<f64>,
}

/// Where the route leads.
#[derive(Debug, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(super) enum Way {
    Mx(Exchangers),
    NextHop(NextHop),
    Socket { path: String },
    Maildir { path: String },
    Discard,
    Hold,
    Reject,
}

/// A name server.
#[derive(Debug, Serialize)]
pub(super) struct NameServer {
    pub address: String,
    /// Whether its word counts that an answer is authentic.
    pub trusted: bool,
}

/// Who takes the mail of a domain.
#[derive(Debug, Serialize)]
pub(super) struct Exchangers {
    pub domain: String,
    /// The names that the domain is an alias of, each of the one before it.
    pub aliases: Vec<String>,
    pub source: HostSource,
    /// What the question for MX records came to, if not to records.
    pub error: Option<String>,
    /// How long that stands.
    pub ttl_seconds: Option<u64>,
    /// Validated by a server that is trusted.
    pub authentic: bool,
    /// Those that were named, also those that are not used.
    pub hosts: Vec<HostFound>,
}

/// Where the hosts of a domain come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum HostSource {
    /// MX records.
    Mx,
    /// There is no MX record: the domain itself is the host (RFC 5321 section 5.1).
    Implicit,
    /// An address literal.
    Literal,
    /// A null MX (RFC 7505).
    Null,
    /// Nobody could say, or there is no such domain.
    Unknown,
}

/// A next hop that the route names.
#[derive(Debug, Serialize)]
pub(super) struct NextHop {
    pub protocol: &'static str,
    pub port: u16,
    #[serde(flatten)]
    pub host: HostFound,
}

/// A host.
#[derive(Debug, Serialize)]
pub(super) struct HostFound {
    /// Of its MX record.
    pub preference: Option<u16>,
    pub host: String,
    /// As people read it, if that differs.
    pub unicode_host: Option<String>,
    pub aliases: Vec<String>,
    pub addresses: Vec<IpAddr>,
    /// How long the addresses stand; null where none were asked for.
    pub ttl_seconds: Option<u64>,
    /// Of the addresses.
    pub authentic: bool,
    /// Whether mail would be sent to it.
    pub used: bool,
    /// Why not, or what there is to know.
    pub note: Option<String>,
}

/// What messages to the same hosts share.
#[derive(Debug, Serialize)]
pub(super) struct SiteFound {
    pub name: String,
    /// At a time, of all workers together.
    pub connections: u32,
    pub messages_per_connection: usize,
    /// On one connection.
    pub messages_in_flight: usize,
}

/// An address to be tried.
#[derive(Debug, Serialize)]
pub(super) struct AttemptFound {
    /// With its port.
    pub address: String,
    pub host: String,
    pub preference: u16,
}

/// What a running gateway says.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(super) enum Queued {
    Known(Box<Waiting>),
    /// It runs, and could not be asked.
    Unknown {
        error: String,
    },
}

/// What waits for the same domain or site.
#[derive(Debug, Serialize)]
pub(super) struct Waiting {
    /// The domain of an `mx` route, else the site.
    pub place: String,
    pub messages: u64,
    /// As `mailrace queue list --json` has it.
    pub oldest: Option<Entry>,
}

/// What would become of the message.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub(super) enum Verdict {
    /// It would be sent on at once.
    Deliver { to: String },
    /// It would be kept until an operator releases it.
    Hold,
    /// It would be thrown away.
    Discard,
    /// Nobody could say where to: it would be tried again.
    Wait { why: String },
    /// It would go back to its sender.
    Bounce { status: String, why: String },
    /// It would not be accepted.
    Refuse { reply: String },
}

impl Findings {
    /// Of a message of which no more is known yet; whoever finds out gives the verdict.
    pub(super) fn new(recipient: Addressee) -> Findings {
        Findings {
            recipient,
            originator: None,
            taken_by: Vec::new(),
            route: None,
            way: None,
            dns: None,
            site: None,
            attempts: Vec::new(),
            queue: None,
            verdict: Verdict::Discard,
        }
    }

    /// What the queue of a gateway calls the place that the message would go to.
    pub(super) fn place(&self) -> Option<&str> {
        match &self.way {
            Some(Way::Mx(exchangers)) => Some(&exchangers.domain),
            _ => self.site.as_ref().map(|site| &*site.name),
        }
    }
}

impl Verdict {
    /// The exit code of the command.
    pub(super) fn exit_code(&self) -> u8 {
        match self {
            Verdict::Deliver { .. } | Verdict::Hold | Verdict::Discard => 0,
            Verdict::Refuse { .. } | Verdict::Bounce { .. } => 1,
            Verdict::Wait { .. } => TEMPORARY,
        }
    }
}

/// EX_TEMPFAIL of sysexits(3).
const TEMPORARY: u8 = 75;
