//! The findings as an operator reads them: a subject a line, what belongs to it indented below.

use std::fmt::{self, Display, Write as _};
use std::time::Duration;

use super::findings::{
    Addressee, Exchangers, Findings, HostFound, HostSource, Matched, NameServer, NextHop,
    Originator, Queued, Taker, Timetable, Verdict, Waiting, Way,
};
use crate::cli::plain::plain;
use crate::units::Period;

/// See the module's text.
pub(super) struct Text<'a>(pub(super) &'a Findings);

impl Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let found = self.0;
        let mut page = Page::default();
        page.recipient(&found.recipient);
        if let Some(originator) = &found.originator {
            page.originator(originator);
        }
        page.takers(&found.taken_by);
        if let Some(route) = &found.route {
            page.route(route);
        }
        if let Some(servers) = &found.dns {
            page.name_servers(servers);
        }
        if let Some(way) = &found.way {
            page.way(way);
        }
        page.site(found);
        page.attempts(found);
        if let Some(queued) = &found.queue {
            page.queued(queued);
        }
        page.say("verdict", sentence(&found.verdict));
        f.write_str(&page.text)
    }
}

/// The text so far.
#[derive(Default)]
struct Page {
    text: String,
}

impl Page {
    /// A line under a label; under the same one as the last if it is empty.
    fn say(&mut self, label: &str, words: impl Display) {
        let words = words.to_string();
        writeln!(self.text, "{label:<LABEL$}{}", plain(&words)).expect("a string takes all text");
    }

    fn recipient(&mut self, recipient: &Addressee) {
        self.say("recipient", &recipient.address);
        if let Some(problem) = &recipient.problem {
            self.say("", problem);
        }
        if let (Some(domain), Some(unicode)) = (&recipient.domain, &recipient.unicode_domain) {
            self.say("", format_args!("its domain is {unicode}, in the DNS {domain}"));
        }
        if recipient.smtputf8 {
            self.say(
                "",
                "only a next hop with SMTPUTF8 can take it; from others it comes back with 5.6.7",
            );
        }
    }

    fn originator(&mut self, originator: &Originator) {
        self.say("originator", brackets(&originator.address));
        if let Some(problem) = &originator.problem {
            self.say("", problem);
        }
        if originator.is_null {
            self.say("", "a notice: nobody is told if it is late or cannot be delivered");
        }
        if let Some(sent_as) = originator.sent_as.as_ref().filter(|&to| *to != originator.address) {
            self.say("", format_args!("the next hop sees {}", brackets(sent_as)));
        }
    }

    fn takers(&mut self, takers: &[Taker]) {
        for (taker, label) in takers.iter().zip(labels("taken by")) {
            let Taker { listener, service, clients } = taker;
            let clients = match &clients[..] {
                [] => "nobody".to_owned(),
                [all] if all == "*" => "anybody".to_owned(),
                networks => networks.join(", "),
            };
            self.say(label, format_args!("{listener} ({service}), from {clients}"));
        }
    }

    fn route(&mut self, route: &Matched) {
        let Matched { number, of, recipient, to, .. } = route;
        self.say("route", format_args!("{number} of {of}: {recipient} -> {to}"));
        for passed in &route.passed_over {
            let (number, recipient) = (passed.number, &passed.recipient);
            self.say("", format_args!("not {number}: {recipient}"));
        }
        let untold = number - 1 - route.passed_over.len();
        if untold > 0 {
            self.say("", format_args!("nor the {untold} after them"));
        }
        if let Some(source) = route.source {
            self.say("source", source);
        }
        self.say("tls", route.tls);
        if route.verp {
            self.say("verp", "each recipient has a reverse-path of its own");
        }
        if !matches!(route.to.as_str(), "discard") && !route.to.starts_with("reject:") {
            self.say("schedule", timetable(&route.schedule));
        }
    }

    fn name_servers(&mut self, servers: &[NameServer]) {
        if servers.is_empty() {
            self.say("dns", "no name server is known");
        }
        for (server, label) in servers.iter().zip(labels("dns")) {
            let trust = if server.trusted { "trusted" } else { "not trusted" };
            self.say(label, format_args!("{}, {trust} to validate", server.address));
        }
    }

    fn way(&mut self, way: &Way) {
        match way {
            Way::Mx(exchangers) => self.exchangers(exchangers),
            Way::NextHop(next_hop) => self.next_hop(next_hop),
            Way::Socket { path } => self.say("socket", path),
            Way::Maildir { path } => self.say("maildir", path),
            Way::Discard | Way::Hold | Way::Reject => {}
        }
    }

    fn exchangers(&mut self, found: &Exchangers) {
        let domain = &found.domain;
        let standing = standing(found.ttl_seconds, found.authentic);
        let words = match (found.source, &found.error) {
            (HostSource::Mx, _) => format!("{domain} has MX records{standing}"),
            (HostSource::Null, _) => format!("{domain} has a null MX{standing}"),
            (HostSource::Implicit, _) => {
                format!("{domain} has no MX: it is its own mail host{standing}")
            }
            (HostSource::Literal, _) => format!("{domain} is an address: nothing is looked up"),
            (HostSource::Unknown, Some(error)) => format!("{domain}: {error}{standing}"),
            (HostSource::Unknown, None) => format!("{domain} is unknown"),
        };
        self.say("mx", words);
        self.aliases("", domain, &found.aliases);
        let width = |host: &HostFound| host.host.chars().count();
        let width = found.hosts.iter().map(width).max().unwrap_or_default();
        for host in found.hosts.iter().filter(|_| found.source != HostSource::Literal) {
            let preference = host.preference.map(|one| format!("{one:>5} ")).unwrap_or_default();
            self.say("", format_args!("{preference}{:<width$}  {}", host.host, whereabouts(host)));
            self.host_notes(host);
        }
    }

    fn next_hop(&mut self, hop: &NextHop) {
        let NextHop { protocol, port, host } = hop;
        let words = match host.addresses[..] {
            [address] if address.to_string() == host.host => String::new(),
            _ => format!("  {}", whereabouts(host)),
        };
        self.say("next hop", format_args!("{}, {protocol}, port {port}{words}", host.host));
        self.host_notes(host);
    }

    fn host_notes(&mut self, host: &HostFound) {
        if let Some(unicode) = &host.unicode_host {
            self.say("", format_args!("      {} is {unicode}", host.host));
        }
        self.aliases("      ", &host.host, &host.aliases);
    }

    fn aliases(&mut self, indent: &str, name: &str, aliases: &[String]) {
        if !aliases.is_empty() {
            let aliases = aliases.join(" -> ");
            self.say("", format_args!("{indent}an alias: {name} -> {aliases}"));
        }
    }

    fn site(&mut self, found: &Findings) {
        let Some(site) = &found.site else { return };
        self.say("site", &site.name);
        let words = format!(
            "at most {}, {} on each, {} at a time",
            counted(site.connections.into(), "connection"),
            counted(site.messages_per_connection as u64, "message"),
            site.messages_in_flight,
        );
        self.say("", words);
    }

    fn attempts(&mut self, found: &Findings) {
        let width = |attempt: &super::findings::AttemptFound| attempt.address.len();
        let width = found.attempts.iter().map(width).max().unwrap_or_default();
        for (attempt, label) in found.attempts.iter().zip(labels("tried")) {
            self.say(label, format_args!("{:<width$}  {}", attempt.address, attempt.host));
        }
        if found.attempts.len() > 1 {
            self.say("", "in this order; hosts of equal preference, and a host's addresses of one");
            self.say("", "family, take turns at random; what has failed lately comes last");
        }
    }

    fn queued(&mut self, queued: &Queued) {
        let Waiting { place, messages, oldest } = match queued {
            Queued::Known(waiting) => &**waiting,
            Queued::Unknown { error } => return self.say("queue", error),
        };
        self.say("queue", format_args!("{} for {place}", counted(*messages, "message")));
        let Some(oldest) = oldest else { return };
        let state = oldest.state.as_str();
        let next = oldest.next_attempt.map(|next| format!(", tried again at {next}"));
        let heard = oldest.reason.as_ref().map(|reason| format!("; last heard: {reason}"));
        let (next, heard) = (next.unwrap_or_default(), heard.unwrap_or_default());
        self.say("", format_args!("the oldest, {}, is {state}{next}{heard}", oldest.id));
    }
}

/// A label for the first line and none for those below it.
fn labels(first: &str) -> impl Iterator<Item = &str> {
    std::iter::once(first).chain(std::iter::repeat(""))
}

fn brackets(address: &str) -> String {
    format!("<{address}>")
}

/// `, for 300 s, validated`.
fn standing(ttl_seconds: Option<u64>, authentic: bool) -> String {
    let Some(ttl) = ttl_seconds else { return String::new() };
    format!(", for {ttl} s, {}", if authentic { "validated" } else { "not validated" })
}

/// A host's addresses, or why it is not used.
fn whereabouts(host: &HostFound) -> String {
    let addresses: Vec<String> = host.addresses.iter().map(ToString::to_string).collect();
    let known = match addresses.is_empty() {
        true => String::new(),
        false => addresses.join(", ") + &standing(host.ttl_seconds, host.authentic),
    };
    match (&host.note, known.is_empty()) {
        (Some(note), true) => note.clone(),
        (Some(note), false) => format!("{note} ({known})"),
        (None, _) => known,
    }
}

fn timetable(schedule: &Timetable) -> String {
    let period = |seconds: &f64| Period(Duration::from_secs_f64(*seconds)).to_string();
    let (last, waits) = schedule.retry_seconds.split_last().expect("a schedule has a wait");
    let waits: Vec<String> = waits.iter().map(period).collect();
    let waits = match waits.is_empty() {
        true => format!("every {}", period(last)),
        false => format!("after {}, then every {}", waits.join(", "), period(last)),
    };
    let notice = match &schedule.delay_notice_seconds {
        Some(age) => format!("its sender told after {}", period(age)),
        None => "its sender not told before".to_owned(),
    };
    format!("tried again {waits}; {notice}; returned after {}", period(&schedule.lifetime_seconds))
}

fn counted(count: u64, name: &str) -> String {
    format!("{count} {name}{}", if count == 1 { "" } else { "s" })
}

fn sentence(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Deliver { to } => format!("it would go to {to} now"),
        Verdict::Hold => "it would be accepted and held until `mailrace queue release`".into(),
        Verdict::Discard => "it would be accepted and thrown away".into(),
        Verdict::Wait { why } => format!("it would be accepted and wait: {why}"),
        Verdict::Bounce { status, why } => {
            format!("it would be accepted and come back with {status}: {why}")
        }
        Verdict::Refuse { reply } => format!("it would be refused: {reply}"),
    }
}

/// The width of a label with its space.
const LABEL: usize = 12;
