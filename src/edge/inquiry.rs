//! Asks for the facts of a stage, all at the same time, and lets [`checks`] judge
//! them.
//!
//! Thin: what is asked for, and which answer leads to which further question.  The worker's
//! sessions and `mailrace test-client` ask through it alike.

use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::checks::{self, Existence, Helo, ReverseName, SenderDomain, Taken};
use super::gathering::Gathering;
use super::lists::{Lists, Subject};
use super::verdict::{Action, Effect, Finding, Score, Verdict};
use crate::config::{Checks, Config, Edge, List, ListSubject};
use crate::dns::ourselves::Ourselves;
use crate::dns::{Lookup, LookupError, Name, Record, RecordType, Resolver, join};
use crate::limits::REVERSE_NAMES;
use crate::runtime;
use crate::smtp::address::{Mailbox, ReversePath};

/// Who asks; its clones are the same one.
pub struct Inquiry<L = Resolver>(Rc<Parts<L>>);

struct Parts<L> {
    config: Arc<Config>,
    ourselves: Arc<Ourselves>,
    lists: Arc<Lists>,
    resolver: L,
}

impl<L> Clone for Inquiry<L> {
    fn clone(&self) -> Self {
        Inquiry(self.0.clone())
    }
}

impl<L: Lookup + 'static> Inquiry<L> {
    /// Asks `resolver` what a configuration with an edge filter wants to know; `None` without one.
    pub fn new(
        config: Arc<Config>,
        ourselves: Arc<Ourselves>,
        lists: Arc<Lists>,
        resolver: L,
    ) -> Option<Inquiry<L>> {
        config.edge.as_ref()?;
        Some(Inquiry(Rc::new(Parts { config, ourselves, lists, resolver })))
    }

    /// The lists that are asked.
    pub fn lists(&self) -> &Arc<Lists> {
        &self.0.lists
    }

    /// Asks about a client that has connected, for nothing that could change nothing any more.
    ///
    /// Most clients of an attack are listed.  The name servers of their networks are the slowest of
    /// all, so the lists have a head start; whom they reject is not asked about further.
    pub fn arrival(&self, gathering: &Rc<Gathering>, client: IpAddr) {
        let (inquiry, stage) = (self.clone(), gathering.clone());
        let head_start = HEAD_START.min(self.edge().deadline / 4);
        let is_lost = async move {
            // A list that has not answered may be one that allows.
            let have_answered = Box::pin(runtime::timeout(head_start, stage.others())).await;
            have_answered.is_some() && inquiry.is_lost(&stage)
        };
        self.connection_unless(gathering, client, is_lost);
    }

    /// Asks for all that there is to know about a client.
    pub fn connection(&self, gathering: &Rc<Gathering>, client: IpAddr) {
        self.connection_unless(gathering, client, std::future::ready(false));
    }

    fn connection_unless(
        &self,
        gathering: &Rc<Gathering>,
        client: IpAddr,
        is_lost: impl Future<Output = bool> + 'static,
    ) {
        let client = client.to_canonical();
        self.ask_lists(gathering, ListSubject::Address, client, &Subject::Address(client));
        let checks = &self.edge().checks;
        let is_wanted = names_of(&REVERSE, checks).next().is_some()
            || self.edge().lists.iter().any(|list| list.of == ListSubject::Reverse)
            || self.edge().rspamd.is_some();
        if is_wanted {
            let (inquiry, stage) = (self.clone(), gathering.clone());
            gathering.ask(names_of(&REVERSE, checks), async move {
                if is_lost.await {
                    return checks::reverse(client, &ReverseName::Unasked, &inquiry.edge().checks);
                }
                let found = inquiry.reverse_name(client).await;
                if let ReverseName::Confirmed(name) = &found {
                    stage.name(name);
                }
                inquiry.ask_reverse_lists(&stage, client, &found);
                checks::reverse(client, &found, &inquiry.edge().checks)
            });
        }
    }

    /// Whether a client is rejected for what its address is, and nothing that is asked later could
    /// change that.
    fn is_lost(&self, connection: &Gathering) -> bool {
        let edge = self.edge();
        let may_lift = |list: &List| list.of != ListSubject::Address && list.weight < Score(0);
        !edge.lists.iter().any(may_lift)
            && !edge.checks.any_may_lift()
            && Verdict::of(&connection.found(), &edge.thresholds).action == Action::Reject
    }

    /// Asks about what a client calls itself, and about the sender of its transaction.
    pub fn sender(
        &self,
        gathering: &Rc<Gathering>,
        client: IpAddr,
        helo: &str,
        path: &ReversePath,
    ) {
        self.helo(gathering, client, helo);
        self.reverse_path(gathering, client, path);
    }

    // ---- HELO ----------------------------------------------------------------------------

    /// Asks about what a client calls itself, and nothing else.
    pub fn helo(&self, gathering: &Rc<Gathering>, client: IpAddr, text: &str) {
        let client = client.to_canonical();
        let helo = Helo::parse(text);
        let checks = &self.edge().checks;
        add_all(gathering, checks::helo_form(text, &helo, client, checks));
        let taken = self.taken(&helo, client);
        let Helo::Name(name) = helo else {
            let forged = checks::helo_forged(text, taken, &Existence::Exists, checks);
            return add_all(gathering, forged);
        };
        self.ask_lists(gathering, ListSubject::Helo, client, &Subject::Domain(name.clone()));
        let (inquiry, text) = (self.clone(), Box::<str>::from(text));
        gathering.ask(names_of(&["helo_forged", "helo_unknown"], checks), async move {
            let checks = &inquiry.edge().checks;
            // Without the one and the other the answer would change nothing.
            let is_wanted = checks.helo_unknown != Effect::None || taken == Taken::OurDomain;
            let existence = match is_wanted {
                true => inquiry.existence(&name, client).await,
                false => Existence::Exists,
            };
            let forged = checks::helo_forged(&text, taken, &existence, checks);
            forged.into_iter().chain(checks::helo_unknown(&name, &existence, checks)).collect()
        });
    }

    /// Whose name or address a client has taken for its own.
    fn taken(&self, helo: &Helo, client: IpAddr) -> Taken {
        let Parts { ourselves, config, .. } = &*self.0;
        match helo {
            Helo::Name(name) if ourselves.is_named(name) => Taken::OurName,
            Helo::Name(name) if config.domains.contains(name.as_str()) => Taken::OurDomain,
            Helo::Literal(address) | Helo::NakedAddress(address)
                if *address != client && ourselves.is_at(*address) =>
            {
                Taken::OurAddress
            }
            _ => Taken::Not,
        }
    }

    async fn existence(&self, name: &Name, client: IpAddr) -> Existence {
        let resolver = &self.0.resolver;
        match resolver.addresses(name).await.result {
            Ok(found) if found.iter().any(|a| a.to_canonical() == client) => {
                Existence::LeadsToClient
            }
            Ok(_) => Existence::Exists,
            Err(LookupError::Temporary { why }) => Existence::Untold(why),
            Err(LookupError::NoName | LookupError::NoData) => {
                match &resolver.lookup(name, RecordType::Mx).await.result {
                    Ok(_) => Existence::Exists,
                    Err(LookupError::NoName | LookupError::NoData) => Existence::Missing,
                    Err(LookupError::Temporary { why }) => Existence::Untold(why.clone()),
                }
            }
        }
    }

    // ---- the name behind the address -------------------------------------------------------

    async fn reverse_name(&self, client: IpAddr) -> ReverseName {
        let resolver = &self.0.resolver;
        let answer = resolver.lookup(&Name::reverse(client), RecordType::Ptr).await;
        let names: Vec<&Name> = match &answer.result {
            Ok(records) => records.iter().filter_map(name_of).take(REVERSE_NAMES).collect(),
            Err(LookupError::NoName | LookupError::NoData) => return ReverseName::Missing,
            Err(LookupError::Temporary { why }) => return ReverseName::Untold(why.clone()),
        };
        let Some(&first) = names.first() else { return ReverseName::Missing };
        let kind = if client.is_ipv4() { RecordType::A } else { RecordType::Aaaa };
        let questions = names.iter().map(|name| resolver.lookup(name, kind));
        let answers = join::join_all(questions).await;
        let leads_back = |record: &Record| record.address() == Some(client);
        let mut led = names.iter().zip(&answers);
        let confirmed = led.find(|(_, a)| a.result.iter().flatten().any(leads_back));
        match confirmed {
            Some((&name, _)) => ReverseName::Confirmed(name.clone()),
            None if answers.iter().any(|answer| answer.is_temporary()) => {
                ReverseName::Unsettled(first.clone())
            }
            None => ReverseName::Unconfirmed(first.clone()),
        }
    }

    /// Anybody can write any name behind his own address: one that does not lead back speaks
    /// against its client where it is listed, and never for it.
    fn ask_reverse_lists(&self, stage: &Rc<Gathering>, client: IpAddr, found: &ReverseName) {
        let (name, is_confirmed) = match found {
            ReverseName::Confirmed(name) => (name, true),
            ReverseName::Unconfirmed(name) | ReverseName::Unsettled(name) => (name, false),
            ReverseName::Missing | ReverseName::Untold(_) | ReverseName::Unasked => return,
        };
        let subject = Subject::Domain(name.clone());
        self.ask_lists_if(stage, ListSubject::Reverse, client, &subject, |list| {
            is_confirmed || list.weight.0 >= 0
        });
    }

    // ---- the sender ------------------------------------------------------------------------

    /// Asks about the sender of a transaction, and nothing else; of a notice there is nothing to
    /// ask.
    pub fn reverse_path(&self, gathering: &Rc<Gathering>, client: IpAddr, path: &ReversePath) {
        if let Some(mailbox) = path.mailbox() {
            self.sender_domain(gathering, client.to_canonical(), mailbox);
        }
    }

    fn sender_domain(&self, gathering: &Rc<Gathering>, client: IpAddr, mailbox: &Mailbox) {
        let Some(domain) = mailbox.domain_ascii() else { return };
        let domain = domain.to_ascii_lowercase();
        let checks = self.edge().checks;
        let known = if mailbox.is_literal() {
            Some(SenderDomain::Literal)
        } else if self.0.config.domains.contains(&domain) {
            Some(SenderDomain::Ours)
        } else {
            None
        };
        let name = Name::parse(&domain);
        if let (Some(name), None) = (&name, &known) {
            let subject = Subject::Domain(name.clone());
            self.ask_lists(gathering, ListSubject::Sender, client, &subject);
        }
        let is_wanted = names_of(&SENDER, &checks).next().is_some();
        match (known, name) {
            (Some(known), _) => add_all(gathering, checks::sender(&domain, &known, &checks)),
            (None, Some(name)) if is_wanted => {
                let inquiry = self.clone();
                gathering.ask(names_of(&SENDER, &checks), async move {
                    let found = inquiry.takes_mail(&name).await;
                    checks::sender(name.as_str(), &found, &checks)
                });
            }
            (None, Some(_)) => {}
            // No name of the DNS: nobody can answer to it.
            (None, None) => {
                add_all(gathering, checks::sender(&domain, &SenderDomain::Unknown, &checks));
            }
        }
    }

    async fn takes_mail(&self, name: &Name) -> SenderDomain {
        let resolver = &self.0.resolver;
        match checks::sender_of_mx(&*resolver.lookup(name, RecordType::Mx).await) {
            Some(found) => found,
            None => checks::sender_of_addresses(&resolver.addresses(name).await.result),
        }
    }

    // ---- lists -----------------------------------------------------------------------------

    fn ask_lists(
        &self,
        gathering: &Rc<Gathering>,
        of: ListSubject,
        client: IpAddr,
        subject: &Subject,
    ) {
        self.ask_lists_if(gathering, of, client, subject, |_| true);
    }

    fn ask_lists_if(
        &self,
        gathering: &Rc<Gathering>,
        of: ListSubject,
        client: IpAddr,
        subject: &Subject,
        is_wanted: impl Fn(&List) -> bool,
    ) {
        for (index, list) in self.edge().lists.iter().enumerate() {
            if list.of != of || !is_wanted(list) {
                continue;
            }
            let (inquiry, subject) = (self.clone(), subject.clone());
            gathering.ask([list.zone.clone()], async move {
                let list = &inquiry.edge().lists[index];
                let zone = inquiry.0.lists.zone(index);
                let asked = zone.ask(&inquiry.0.resolver, list, &subject).await;
                vec![checks::listing(list, &subject, client, &asked)]
            });
        }
    }

    fn edge(&self) -> &Edge {
        self.0.config.edge.as_ref().expect("there is no inquiry without a filter")
    }
}

fn add_all(gathering: &Gathering, findings: impl IntoIterator<Item = Finding>) {
    findings.into_iter().for_each(|finding| gathering.add(finding));
}

/// Those checks that are not switched off.
fn names_of(checks: &[&'static str], configured: &Checks) -> impl Iterator<Item = Box<str>> {
    let is_on = |check: &&str| checks::effect_of(check, configured) != Effect::None;
    checks.iter().copied().filter(is_on).map(Box::from)
}

fn name_of(record: &Record) -> Option<&Name> {
    match record {
        Record::Ptr(name) => Some(name),
        _ => None,
    }
}

/// What the lists have to answer in before the name behind an address is asked for too.
const HEAD_START: Duration = Duration::from_millis(250);
/// Checks that wait for the name behind the address.
const REVERSE: [&str; 2] = ["reverse_missing", "reverse_unconfirmed"];
/// Checks that wait for the records of the sender's domain.
const SENDER: [&str; 2] = ["sender_unknown", "sender_null_mx"];

#[cfg(test)]
#[path = "inquiry_tests.rs"]
mod tests;
