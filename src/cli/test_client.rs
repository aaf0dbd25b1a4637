//! `mailrace test-client`: what the edge filter makes of a client, without its mail.
//!
//! The lists' test entries are looked at first, as a gateway does when it starts; then the same
//! [`Inquiry`] asks as a session's, and the same [`Judged`] decides.  A gateway need not run; what
//! only one that runs can know is left out: how a client behaves, whether it is greylisted, what a
//! next hop says of a recipient or rspamd of a message.  The exit code is 0 whatever the verdict.

mod text;

use std::io::{self, Write};
use std::net::IpAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::route::{bracketed, ourselves};
use super::{Failure, TestClientArgs, load_quietly};
use crate::config::{Config, Edge, Service};
use crate::dns::{Lookup, Resolver, ResolverConfig, join};
use crate::edge::checks;
use crate::edge::gathering::Gathering;
use crate::edge::inquiry::Inquiry;
use crate::edge::lists::health::{Health, State, Trouble};
use crate::edge::lists::{Lists, Zone, watch};
use crate::edge::screening::Judged;
use crate::edge::verdict::{Effect, Finding, Score};
use crate::inbound::relay::{self, Facts};
use crate::recipients::{Finding as Placed, Roster, Table};
use crate::runtime;
use crate::smtp::address::{ForwardPath, ReversePath, Utf8};
use crate::smtp::reply::{Refusal, refusal_text};

/// Finds out and prints it.
pub(super) fn test_client(arguments: &TestClientArgs) -> Result<ExitCode, Failure> {
    let config = load_quietly(arguments.config.as_deref())?;
    if config.edge.is_none() {
        let sentence = "the configuration has no `[edge]`: nothing is asked about clients";
        return Err(Failure::Failed(sentence.into()));
    }
    let client = Client::new(arguments)?;
    let roster = Roster::new(&config).map_err(|error| Failure::Failed(error.to_string()))?;
    let table = roster.table();
    let found = runtime::run(async {
        runtime::spawn(runtime::deadline::sweep_forever());
        let resolver = Resolver::new(ResolverConfig::new(&config.dns));
        found(Arc::new(config), resolver, table.as_deref(), &client).await
    });
    let found = found.map_err(|error| Failure::Failed(format!("no event loop: {error}")))?;
    let text = match arguments.json {
        true => serde_json::to_string(&found).map_err(io::Error::from)? + "\n",
        false => text::page(&found),
    };
    io::stdout().write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

/// The client that is made up.
struct Client {
    address: IpAddr,
    helo: Option<String>,
    from: Option<ReversePath>,
    to: Option<ForwardPath>,
}

/// All that is told; the fields of `--json`.
#[derive(Debug, Serialize)]
struct Found {
    client: IpAddr,
    helo: Option<String>,
    /// Without angle brackets.
    from: Option<String>,
    /// Why nothing was asked.
    not_looked_at: Option<String>,
    lists: Vec<ListFound>,
    checks: Vec<CheckFound>,
    score: f64,
    /// As in the configuration.
    verdict: &'static str,
    /// The check that weighs most for it.
    cause: Option<Box<str>>,
    /// What a recipient hears; none if mail goes on.
    reply: Option<String>,
    recipient: Option<RecipientFound>,
}

/// A list's test entries.
#[derive(Debug, Serialize)]
struct ListFound {
    zone: String,
    /// `address` or `domain`.
    kind: &'static str,
    /// `on`, `off`, or `starting` if nobody could tell.
    state: &'static str,
    fact: String,
    took_ms: f64,
}

/// What a check found.
#[derive(Debug, Serialize)]
struct CheckFound {
    check: Box<str>,
    fact: Box<str>,
    score: f64,
    /// What it asks for by itself.
    action: Option<&'static str>,
    took_ms: f64,
}

/// What would become of a recipient if it were for the recipient alone.
#[derive(Debug, Serialize)]
struct RecipientFound {
    /// Without angle brackets.
    address: String,
    /// The route's place in the file.
    route: Option<usize>,
    to: Option<String>,
    /// `mailbox`, `alias`, `list` or `unknown`; none where no table says anything of its domain.
    kind: Option<&'static str>,
    /// What its client hears if it is refused.
    reply: Option<String>,
    /// It is reached whatever the verdict.
    postmaster: bool,
}

impl Client {
    fn new(arguments: &TestClientArgs) -> Result<Client, Failure> {
        let wrong = |option, error| Failure::Failed(format!("{option} is no address: {error}"));
        let parse = |given: &String| ReversePath::parse(&bracketed(given), Utf8::Allowed);
        let from = arguments.from.as_ref().map(parse).transpose();
        let parse = |given: &String| ForwardPath::parse(&bracketed(given), Utf8::Allowed);
        let to = arguments.to.as_ref().map(parse).transpose();
        Ok(Client {
            address: arguments.address.to_canonical(),
            helo: arguments.helo.clone(),
            from: from.map_err(|error| wrong("--from", error))?,
            to: to.map_err(|error| wrong("--to", error))?,
        })
    }
}

/// All that there is to say about a client.
async fn found<L: Lookup + 'static>(
    config: Arc<Config>,
    resolver: L,
    table: Option<&Table>,
    client: &Client,
) -> Found {
    let edge = config.edge.as_ref().expect("it was looked for");
    let lists = Arc::new(Lists::new(&edge.lists));
    let not_looked_at = exemption(&config, edge, client.address);
    let (mut canaries, mut findings) = (Vec::new(), Vec::new());
    if not_looked_at.is_none() {
        let checked = lists.zones().iter().map(|zone| list(zone, &resolver));
        canaries = join::join_all(checked).await;
        let ourselves = Arc::new(ourselves(&config));
        let inquiry = Inquiry::new(config.clone(), ourselves, lists, resolver);
        findings = asked(&inquiry.expect("there is a filter"), edge, client).await;
    }
    let judged = Judged::new(findings, &edge.thresholds);
    Found {
        client: client.address,
        helo: client.helo.clone(),
        from: client.from.as_ref().map(|path| path.as_str().to_owned()),
        not_looked_at,
        lists: canaries,
        checks: judged.findings.iter().map(CheckFound::new).collect(),
        score: points(judged.score),
        verdict: judged.action.as_str(),
        reply: judged.refusal().as_ref().map(|refusal| refusal_text(refusal).into()),
        cause: judged.cause,
        recipient: client.to.as_ref().map(|to| recipient(&config, table, client.address, to)),
    }
}

/// Why a client is not looked at.
fn exemption(config: &Config, edge: &Edge, client: IpAddr) -> Option<String> {
    let by = |networks: &[ipnet::IpNet], key: &str| {
        let network = networks.iter().find(|network| network.contains(&client));
        network.map(|network| format!("it is in {network} of `{key}`"))
    };
    by(&edge.exempt, "edge.exempt").or_else(|| by(&config.relay.networks, "relay.networks"))
}

/// Looks at the test entries of a list, which counts from then on or does not.
async fn list(zone: &Zone, resolver: &impl Lookup) -> ListFound {
    let began = Instant::now();
    let mut health = Health::new(zone.self_check, began);
    let check = watch::check(zone, resolver).await;
    health.checked(check, Instant::now());
    // Nobody will look again: the checks need not wait for that.
    zone.board.publish(match health.state() {
        State::Starting => State::Off(Trouble::NoAnswers),
        state => state,
    });
    ListFound {
        zone: zone.name.to_string(),
        kind: zone.kind.as_str(),
        state: match health.state() {
            State::Starting => "starting",
            State::On => "on",
            State::Off(_) => "off",
        },
        fact: match zone.self_check.is_zero() {
            true => format!("its test entries never count; {}", watch::describe(check)),
            false => watch::describe(check),
        },
        took_ms: milliseconds(began.elapsed()),
    }
}

/// Asks as a session does, and waits as long; what was found, in a session's order.
async fn asked<L: Lookup + 'static>(
    inquiry: &Inquiry<L>,
    edge: &Edge,
    client: &Client,
) -> Vec<Finding> {
    let gathering = Gathering::new(Instant::now() + edge.deadline);
    inquiry.connection(&gathering, client.address);
    if let Some(helo) = &client.helo {
        inquiry.helo(&gathering, client.address, helo);
    }
    if let Some(from) = &client.from {
        inquiry.reverse_path(&gathering, client.address, from);
    }
    gathering.settle().await;
    let mut findings = gathering.found();
    let place = |finding: &Finding| {
        let check = checks::NAMES.iter().position(|name| *name == &*finding.check);
        let list = || edge.lists.iter().position(|list| list.zone == finding.check);
        check.or_else(|| Some(checks::NAMES.len() + list()?))
    };
    findings.sort_by_key(place);
    findings
}

/// What an `mx` listener says to a recipient before the filter has its say.
fn recipient(
    config: &Config,
    table: Option<&Table>,
    client: IpAddr,
    path: &ForwardPath,
) -> RecipientFound {
    let facts = Facts {
        service: Service::Mx,
        client,
        is_balancer: false,
        certificate: None,
        authenticated: false,
    };
    let placed = table.zip(path.mailbox()).map(|(table, mailbox)| table.find(mailbox));
    let kind = placed.and_then(kind);
    let decided = relay::decide(config, facts, path).and_then(|route| match placed {
        Some(Placed::Unknown) => Err(Refusal::UnknownRecipient),
        _ => Ok(route),
    });
    let index = decided.as_ref().ok().copied();
    RecipientFound {
        address: path.as_str().to_owned(),
        route: index.map(|index| index.0 as usize + 1),
        to: index.map(|index| config.routes[index].to.to_string()),
        kind,
        reply: decided.as_ref().err().map(|refusal| refusal_text(refusal).into()),
        postmaster: path.is_postmaster(),
    }
}

/// What the table of recipients says of an address.
fn kind(placed: Placed<'_>) -> Option<&'static str> {
    match placed {
        Placed::NotJudged => None,
        Placed::Unknown => Some("unknown"),
        Placed::Mailbox => Some("mailbox"),
        Placed::Expands(expansion) if expansion.is_list() => Some("list"),
        Placed::Expands(_) => Some("alias"),
    }
}

impl CheckFound {
    fn new(finding: &Finding) -> CheckFound {
        let action = match finding.effect {
            Effect::Action(action) => Some(action.as_str()),
            Effect::None | Effect::Score(_) => None,
        };
        CheckFound {
            check: finding.check.clone(),
            fact: finding.fact.clone(),
            score: points(finding.effect.score()),
            action,
            took_ms: milliseconds(finding.took),
        }
    }
}

fn points(score: Score) -> f64 {
    f64::from(score.0) / 100.0
}

/// With a decimal: most answers take less than one.
fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 10_000.0).round() / 10.0
}
