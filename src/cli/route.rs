//! `mailrace route`: where a message for an address would go and why, without sending one.
//!
//! Everything is asked of the parts that deliver: relay control, the routes, the resolver's mail
//! hosts, the sites and the dialler's plan; so what is told here is what a message would meet.  A
//! gateway need not run; one that does is asked what it has queued for the same place and no more:
//! which addresses failed lately, and its DNS cache, are known to it alone.
//!
//! [`findings`] are the facts and the fields of `--json`, [`inquiry`] asks the DNS, [`queued`] the
//! gateway, [`text`] is what people read.  The exit code is the verdict's: 0 it would go now (or be
//! held or discarded, as the route says), 1 it would be refused or come back, 75 (EX_TEMPFAIL of
//! sysexits) it would wait, since the DNS does not say where to.

mod findings;
mod inquiry;
mod queued;
mod text;

#[cfg(test)]
mod tests;

use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use super::{Failure, RouteArgs, load_quietly};
use crate::config::{Config, Maildir, Route, RouteIndex, Service, Target};
use crate::delivery::sites::{Sites, routing_domain};
use crate::delivery::verp;
use crate::dns::ourselves::{Ourselves, interface_addresses};
use crate::dns::{Lookup, Resolver, ResolverConfig};
use crate::inbound::relay::{self, Facts};
use crate::message::{Envelope, MailParameters, Notify, Recipient};
use crate::queue::site::SiteShared;
use crate::runtime;
use crate::smtp::address::{AddressError, ForwardPath, ReversePath, Utf8};
use crate::smtp::reply::{Refusal, refusal_text};
use findings::{
    Addressee, Findings, Matched, Originator, PassedOver, SiteFound, Taker, Timetable, Verdict, Way,
};
use inquiry::Inquired;
use text::Text;

/// Finds out, prints it, and tells by the exit code what would become of the message.
pub(super) fn route(arguments: &RouteArgs) -> Result<ExitCode, Failure> {
    let config = load_quietly(arguments.config.as_deref())?;
    let resolver = ResolverConfig::new(&config.dns);
    let found = runtime::run(async {
        runtime::spawn(runtime::deadline::sweep_forever());
        let inquirer = Inquirer {
            config: &config,
            servers: resolver.servers.clone(),
            ourselves: ourselves(&config),
            resolver: Resolver::new(resolver),
        };
        inquirer.findings(&arguments.address, arguments.from.as_deref()).await
    });
    let mut found = found.map_err(|error| Failure::Failed(format!("no event loop: {error}")))?;
    found.queue = found.place().and_then(|place| queued::queued(&config.data_dir, place));
    let text = match arguments.json {
        true => serde_json::to_string(&found).map_err(io::Error::from)? + "\n",
        false => Text(&found).to_string(),
    };
    io::stdout().write_all(text.as_bytes())?;
    Ok(ExitCode::from(found.verdict.exit_code()))
}

/// What mail is not sent to, since it would come back.
pub(super) fn ourselves(config: &Config) -> Ourselves {
    let listeners: Vec<SocketAddr> = config.listeners.iter().map(|one| one.address).collect();
    // Without them a loop is still found by its name.
    let interfaces = interface_addresses().unwrap_or_default();
    Ourselves::new(&config.hostname, &listeners, &interfaces, config.delivery.port)
}

/// Who finds out.
struct Inquirer<'a, L> {
    config: &'a Config,
    /// Those that the resolver asks.
    servers: Vec<SocketAddr>,
    ourselves: Ourselves,
    resolver: L,
}

impl<L: Lookup> Inquirer<'_, L> {
    /// All that there is to say about a message from `from` to `address`, both with or without
    /// their angle brackets.
    async fn findings(&self, address: &str, from: Option<&str>) -> Findings {
        let path = ForwardPath::parse(&bracketed(address), Utf8::Allowed);
        let mut found = Findings::new(addressee(address, path.as_ref()));
        let from = from.map(|from| (from, ReversePath::parse(&bracketed(from), Utf8::Allowed)));
        if let Some((given, parsed)) = &from {
            found.originator = Some(originator(given, parsed.as_ref()));
        }
        let Ok(path) = path else {
            found.verdict = refused(&Refusal::BadRecipient);
            return found;
        };
        if matches!(from, Some((_, Err(_)))) {
            found.verdict = refused(&Refusal::BadSender);
            return found;
        }
        found.taken_by = takers(self.config, &path);
        let index = match relay::route_for(self.config, &path) {
            Ok(index) => index,
            Err(refusal) => {
                found.verdict = refused(&refusal);
                if let Some(index) = rejecting(self.config, &path, &refusal) {
                    found.route = Some(matched(self.config, index));
                }
                return found;
            }
        };
        let route = &self.config.routes[index];
        found.route = Some(matched(self.config, index));
        if let (Some(originator), Some((_, Ok(from)))) = (&mut found.originator, &from) {
            originator.sent_as = Some(sent_as(route, from, &path));
        }
        if found.taken_by.iter().all(|taker| taker.clients.is_empty()) {
            found.verdict = refused(&Refusal::RelayDenied);
            return found;
        }
        self.way(&mut found, index, &path).await;
        found
    }

    /// Where the route leads.
    async fn way(&self, found: &mut Findings, index: RouteIndex, path: &ForwardPath) {
        let Route { to, source, .. } = &self.config.routes[index];
        let sites = Sites::new(self.config);
        let destination = sites.destination(index, path, &MailParameters::default());
        let inquired = match to {
            Target::Mx => {
                let domain = destination.domain.as_deref().expect("an `mx` route has a domain");
                self.exchangers(domain, *source).await
            }
            Target::Smtp { host, port } => self.next_hop("smtp", host, *port, *source).await,
            Target::Smtps { host, port } => self.next_hop("smtps", host, *port, *source).await,
            Target::Lmtp { host, port } => self.next_hop("lmtp", host, *port, *source).await,
            local => Inquired::without_names(local_way(local, path)),
        };
        let to_a_peer = |shared: &&Arc<SiteShared>| shared.reach().protocol().is_some();
        let shared = match inquired.hosts {
            Some(hosts) => Some(sites.of_hosts(destination.course, hosts, 0)),
            None => sites.fixed(destination.course).filter(to_a_peer).cloned(),
        };
        found.site = shared.map(|shared| site(self.config, &shared));
        (found.dns, found.attempts) = (inquired.dns, inquired.attempts);
        found.way = Some(inquired.way);
        found.verdict = match inquired.verdict {
            Verdict::Bounce { status, why } if self.config.delivery.soft_bounce => Verdict::Wait {
                why: format!("{why}; it would come back with {status} but for `soft_bounce`"),
            },
            verdict => verdict,
        };
    }
}

/// Where mail goes for which no name has to be known.
fn local_way(target: &Target, path: &ForwardPath) -> (Way, Verdict) {
    match target {
        Target::LmtpUnix { path } => {
            let path = path.display().to_string();
            (Way::Socket { path: path.clone() }, Verdict::Deliver { to: path })
        }
        Target::Maildir(maildir) => {
            let path = maildir_of(maildir, path);
            (Way::Maildir { path: path.clone() }, Verdict::Deliver { to: path })
        }
        Target::Discard => (Way::Discard, Verdict::Discard),
        Target::Hold => (Way::Hold, Verdict::Hold),
        Target::Reject { text } => (Way::Reject, refused(&Refusal::Rejected(text.clone()))),
        Target::Mx | Target::Smtp { .. } | Target::Smtps { .. } | Target::Lmtp { .. } => {
            unreachable!("those lead to hosts")
        }
    }
}

/// The octets between angle brackets, which may be there already.
pub(super) fn bracketed(address: &str) -> Vec<u8> {
    match address.starts_with('<') {
        true => address.into(),
        false => format!("<{address}>").into(),
    }
}

fn addressee(given: &str, parsed: Result<&ForwardPath, &AddressError>) -> Addressee {
    let mailbox = parsed.ok().and_then(ForwardPath::mailbox);
    let domain = mailbox.map(|mailbox| routing_domain(mailbox).into_owned());
    Addressee {
        address: parsed.map_or_else(|_| given.to_owned(), |path| path.as_str().to_owned()),
        problem: parsed.err().map(ToString::to_string),
        unicode_domain: domain.as_deref().and_then(inquiry::unicode),
        domain,
        smtputf8: mailbox.is_some_and(|mailbox| !mailbox.is_ascii()),
    }
}

fn originator(given: &str, parsed: Result<&ReversePath, &AddressError>) -> Originator {
    Originator {
        address: parsed.map_or_else(|_| given.to_owned(), |path| path.as_str().to_owned()),
        problem: parsed.err().map(ToString::to_string),
        is_null: matches!(parsed, Ok(ReversePath::Null)),
        smtputf8: matches!(parsed, Ok(path) if !path.as_str().is_ascii()),
        sent_as: None,
    }
}

/// The reverse-path that the next hop would see.
fn sent_as(route: &Route, from: &ReversePath, to: &ForwardPath) -> String {
    let recipient = Recipient { path: to.clone(), notify: Notify::UNSPECIFIED, orcpt: None };
    let envelope = Envelope {
        reverse_path: from.clone(),
        parameters: MailParameters::default(),
        recipients: vec![recipient],
    };
    let own = route.verp.then(|| verp::envelope(&envelope, 0)).flatten();
    own.as_ref().unwrap_or(&envelope).reverse_path.as_str().to_owned()
}

/// Each listener, and from whom it takes mail for the recipient.
fn takers(config: &Config, path: &ForwardPath) -> Vec<Taker> {
    let takes_from = |service, client| {
        let facts =
            Facts { service, client, is_balancer: false, certificate: None, authenticated: false };
        relay::decide(config, facts, path) != Err(Refusal::RelayDenied)
    };
    // In no network but one that holds everybody.
    let stranger = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    let listeners = config.listeners.iter().map(|listener| {
        let clients = match listener.service {
            service if takes_from(service, stranger) => vec!["*".to_owned()],
            Service::Relay => config.relay.networks.iter().map(ToString::to_string).collect(),
            Service::Mx | Service::Submission => Vec::new(),
        };
        let (address, service) = (listener.address.to_string(), listener.service.to_string());
        Taker { listener: address, service, clients }
    });
    listeners.collect()
}

/// The `reject:` route behind a refusal.
fn rejecting(config: &Config, path: &ForwardPath, refusal: &Refusal) -> Option<RouteIndex> {
    let mailbox = path.mailbox().filter(|_| matches!(refusal, Refusal::Rejected(_)))?;
    let found = config.routes.first_match(mailbox.local_part(), &routing_domain(mailbox));
    found.map(|(index, _)| index)
}

fn matched(config: &Config, index: RouteIndex) -> Matched {
    let route = &config.routes[index];
    let earlier = config.routes.iter().take(index.0 as usize).zip(1..);
    let passed = earlier
        .map(|(route, number)| PassedOver { number, recipient: route.recipient.to_string() });
    let schedule = route.schedule(&config.queue);
    Matched {
        number: index.0 as usize + 1,
        of: config.routes.len(),
        recipient: route.recipient.to_string(),
        to: route.to.to_string(),
        passed_over: passed.take(PASSED_OVER_MAX).collect(),
        source: route.source,
        tls: route.tls().as_str(),
        verp: route.verp,
        schedule: Timetable {
            retry_seconds: schedule.retry.iter().map(Duration::as_secs_f64).collect(),
            lifetime_seconds: schedule.lifetime.as_secs_f64(),
            delay_notice_seconds: schedule.delay_notice.after().map(|age| age.as_secs_f64()),
        },
    }
}

fn site(config: &Config, shared: &SiteShared) -> SiteFound {
    SiteFound {
        name: shared.name().to_owned(),
        connections: shared.limit(),
        messages_per_connection: config.delivery.messages_per_connection,
        messages_in_flight: config.delivery.messages_in_flight,
    }
}

fn maildir_of(maildir: &Maildir, path: &ForwardPath) -> String {
    let made = match path {
        ForwardPath::Postmaster => maildir.path("postmaster", ""),
        ForwardPath::Mailbox(mailbox) => {
            maildir.path(&mailbox.local_unquoted(), &routing_domain(mailbox))
        }
    };
    made.display().to_string()
}

/// As the client would hear it.
fn refused(refusal: &Refusal) -> Verdict {
    Verdict::Refuse { reply: refusal_text(refusal).into() }
}

/// Routes before the one that matches, as far as they are told.
const PASSED_OVER_MAX: usize = 16;
