//! One session's way through the filter: which facts are asked for when, and where they are
//! awaited.
//!
//! Thin: it starts the [`Gathering`]s of the stages, waits for them where a decision needs them,
//! and lets [`Verdict`] decide.  The stages are the connection, whose facts are asked for before
//! the greeting, and the sender with its HELO, asked for at MAIL; both are awaited at the first
//! recipient, or the first of them before the greeting where clients are refused there.

use std::net::IpAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::explanation::Account;
use super::gathering::Gathering;
use super::memory::Acquaintance;
use super::tarpit;
use super::verdict::{Action, Effect, Finding, Score, Thresholds, Verdict};
use crate::config::{Edge, ListSubject, RefuseAt};
use crate::dns::Name;
use crate::limits;
use crate::message::Envelope;
use crate::smtp::address::{ForwardPath, ReversePath};
use crate::smtp::reply::{Refusal, refusal_text};
use crate::worker::Worker;

/// What the filter knows of a session.
pub struct Screening {
    worker: Rc<Worker>,
    client: IpAddr,
    /// What was found of the session itself, at hand.
    session: Vec<Finding>,
    connection: Rc<Gathering>,
    /// Of the transaction under way.
    sender: Option<Rc<Gathering>>,
    judged: Option<Judged>,
    /// What is told of that transaction.
    account: Account,
    /// It has a recipient that is no postmaster.
    has_others: bool,
    /// Transactions that were asked about since a message was accepted.
    asked: u32,
    /// A verdict of this session has been told.
    is_told: bool,
    /// Whether haste has been found, once it has been looked for.
    haste: Option<bool>,
    /// Recipients that were refused after a wait.
    refused: u32,
    /// Recipients that are not here.
    unknown: u32,
}

/// What was decided on the transaction under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judged {
    /// What becomes of its mail.
    pub action: Action,
    /// The sum of the scores.
    pub score: Score,
    /// The check that weighs most for that; none if nothing speaks against the client.
    pub cause: Option<Box<str>>,
    /// What its client hears if that is a refusal.
    pub words: Box<str>,
    /// All that led to it.
    pub findings: Vec<Finding>,
}

impl Screening {
    /// Begins to ask about a client that has just connected; `None` if it is not looked at.
    pub fn begin(worker: &Rc<Worker>, client: IpAddr) -> Option<Screening> {
        let edge = worker.config.edge.as_ref()?;
        let client = client.to_canonical();
        let is_exempt = edge.exempt.iter().any(|network| network.contains(&client));
        if is_exempt || worker.config.relay.contains(client) {
            return None;
        }
        let connection = Gathering::new(Instant::now() + edge.deadline);
        worker.inquiry.as_ref()?.arrival(&connection, client);
        Some(Screening {
            worker: worker.clone(),
            client,
            session: Vec::new(),
            connection,
            sender: None,
            judged: None,
            account: Account::default(),
            has_others: false,
            asked: 0,
            is_told: false,
            haste: None,
            refused: 0,
            unknown: 0,
        })
    }

    fn edge(&self) -> &Edge {
        self.worker.config.edge.as_ref().expect("there is no screening without a filter")
    }

    /// The client that is looked at.
    pub fn client(&self) -> IpAddr {
        self.client
    }

    /// Takes a finding of the session itself.
    pub fn find(&mut self, check: &str, fact: &str, effect: Effect) {
        let (check, fact) = (check.into(), fact.into());
        self.session.push(Finding { check, fact, effect, reply: None, took: Duration::ZERO });
        self.judged = None;
    }

    /// Takes notice, at a recipient, of whether the client has waited for our replies so far.
    pub fn note_haste(&mut self, was_hasty: bool) {
        let effect = self.edge().checks.pipelining;
        if effect == Effect::None || self.haste == Some(was_hasty) {
            return;
        }
        self.haste = Some(was_hasty);
        match was_hasty {
            true => self.find("pipelining", "sent commands before it was told that it may", effect),
            false => self.find("pipelining", "waited for the reply to EHLO", Effect::None),
        }
    }

    /// One more recipient is refused, for the client's sake or because it is not here: how long the
    /// client waits for the reply.
    pub fn refused_recipient(&mut self, is_crowded: bool) -> Duration {
        self.refused = self.refused.saturating_add(1);
        tarpit::wait(self.edge().tarpit, self.refused, is_crowded)
    }

    /// One more recipient is not here: whether the session ends for it.
    pub fn unknown_recipient(&mut self) -> bool {
        self.unknown = self.unknown.saturating_add(1);
        let of_address = self.worker.roster.harvest.unknown(self.client, Instant::now());
        self.unknown.max(of_address) >= self.edge().unknown_recipients
    }

    /// Waits for what is known of the client, where it is to be refused in place of the greeting.
    ///
    /// # Errors
    /// The refusal.
    pub async fn before_greeting(&mut self) -> Result<(), Refusal> {
        if self.edge().refuse_at != RefuseAt::Greeting {
            return Ok(());
        }
        self.connection.settle().await;
        let judged = self.judge();
        match judged.action {
            Action::Reject => Err(Refusal::Screened(judged.words)),
            _ => Ok(()),
        }
    }

    /// A transaction begins.
    pub fn sender(&mut self, path: &ReversePath) {
        self.judged = None;
        self.sender = None;
        self.account = Account { from: Some(path.as_str().into()), ..Account::default() };
        self.has_others = false;
    }

    /// Decides on the transaction under way, at a recipient that is not a postmaster; at the first
    /// one asks about the sender and about what the client calls itself, which a client that only
    /// says MAIL again and again could let us do without end.
    ///
    /// # Errors
    /// The refusal; `TooManyErrors` where the session is to end.
    pub async fn recipient(&mut self, helo: &str, path: &ReversePath) -> Result<(), Refusal> {
        if self.judged.is_none() {
            // Once a transaction, and no part of what each session keeps room for.
            Box::pin(self.decide(helo, path)).await?;
        }
        self.judged.as_ref().and_then(Judged::refusal).map_or(Ok(()), Err)
    }

    async fn decide(&mut self, helo: &str, path: &ReversePath) -> Result<(), Refusal> {
        let began = Instant::now();
        self.connection.settle().await;
        if !self.is_lost() {
            self.ask_about(helo, path)?.settle().await;
        }
        self.account.waited += began.elapsed();
        self.judged = Some(self.judge());
        Ok(())
    }

    /// Whether the client is rejected for what it is, and no answer about its sender could change
    /// that: then nobody need be asked.
    fn is_lost(&self) -> bool {
        let edge = self.edge();
        let of_transaction = |of| matches!(of, ListSubject::Helo | ListSubject::Sender);
        let may_lift = edge.lists.iter().any(|list| of_transaction(list.of) && list.weight.0 < 0);
        let may_lift = may_lift || edge.checks.may_lift();
        self.sender.is_none() && !may_lift && self.judge().action == Action::Reject
    }

    fn ask_about(&mut self, helo: &str, path: &ReversePath) -> Result<Rc<Gathering>, Refusal> {
        if let Some(gathering) = &self.sender {
            return Ok(gathering.clone());
        }
        self.asked += 1;
        if self.asked > limits::EDGE_TRANSACTIONS {
            return Err(Refusal::TooManyErrors);
        }
        let gathering = Gathering::new(Instant::now() + self.edge().deadline);
        if let Some(inquiry) = &self.worker.inquiry {
            inquiry.sender(&gathering, self.client, helo, path);
        }
        Ok(self.sender.insert(gathering).clone())
    }

    /// The message of the transaction under way is whole: what was found since its recipients were
    /// taken counts too.
    ///
    /// # Errors
    /// The refusal.
    pub fn whole(&mut self, envelope: &Envelope) -> Result<(), Refusal> {
        let is_for_others = envelope.recipients.iter().any(|to| !to.path.is_postmaster());
        if !is_for_others {
            return Ok(());
        }
        if self.judged.is_none() {
            self.judged = Some(self.judge());
        }
        self.judged.as_ref().and_then(Judged::refusal).map_or(Ok(()), Err)
    }

    /// Whether a good sender has come from the client's network.
    pub fn is_known(&self) -> bool {
        let memory = self.worker.memory.as_ref();
        memory.is_some_and(|memory| memory.knows(self.client, self.worker.now_seconds()))
    }

    /// Whether a stranger has to come again, at a recipient that nothing else speaks against.
    ///
    /// # Errors
    /// `Greylisted`.
    pub fn greylist(&mut self, sender: &ReversePath, to: &ForwardPath) -> Result<(), Refusal> {
        let (Some(settings), Some(memory)) = (&self.edge().greylist, &self.worker.memory) else {
            return Ok(());
        };
        if self.judged.as_ref().is_none_or(|judged| judged.score < settings.from) {
            return Ok(());
        }
        let now = self.worker.now_seconds();
        let met = memory.meet(self.client, sender.as_str(), to.as_str(), now);
        let fact = match met {
            Acquaintance::Known => "a known sender".to_owned(),
            Acquaintance::Returned { after } => format!("came again after {} s", after.as_secs()),
            Acquaintance::Stranger { wait } => format!("a stranger; {} s to wait", wait.as_secs()),
        };
        if let Some(judged) = &mut self.judged
            && !judged.findings.iter().any(|finding| *finding.check == *"greylist")
        {
            judged.findings.push(Finding {
                check: "greylist".into(),
                fact: fact.into(),
                effect: Effect::None,
                reply: None,
                took: Duration::ZERO,
            });
        }
        match met {
            Acquaintance::Stranger { .. } => Err(Refusal::Greylisted),
            Acquaintance::Known | Acquaintance::Returned { .. } => Ok(()),
        }
    }

    /// A message of the transaction under way was accepted: its sender is remembered.
    pub fn accepted(&mut self, sender: &ReversePath) {
        let (Some(judged), Some(memory)) = (&self.judged, &self.worker.memory) else { return };
        self.asked = 0;
        let is_clean = judged.action == Action::Accept;
        memory.accepted(self.client, sender.as_str(), is_clean, self.worker.now_seconds());
    }

    /// What was decided on the transaction under way; `None` before its first recipient.
    pub fn judged(&self) -> Option<&Judged> {
        self.judged.as_ref()
    }

    /// What is told of the transaction under way.
    pub fn account(&self) -> &Account {
        &self.account
    }

    /// A recipient of the transaction under way was asked for, and refused with this reply, or not.
    pub fn note_recipient(&mut self, path: &ForwardPath, refusal: Option<&Refusal>) {
        if refusal.is_none() {
            self.worker.roster.harvest.known(self.client);
        }
        self.account.note(path.as_str(), refusal.map(refusal_text));
        self.has_others |= refusal.is_none() && !path.is_postmaster();
    }

    /// The name behind the client's address that leads back to it, if it is known by now.
    pub fn client_name(&self) -> Option<&Name> {
        self.connection.client_name()
    }

    /// Takes what was found of the message of the transaction under way, which has come whole.
    ///
    /// # Errors
    /// The refusal, unless the message is for the postmaster alone.
    pub fn content(&mut self, finding: Finding) -> Result<(), Refusal> {
        self.account.waited += finding.took;
        let judged = self.judged.take().unwrap_or_else(|| self.judge());
        let findings = judged.findings.into_iter().chain([finding]).collect();
        let judged = Judged::new(findings, &self.edge().thresholds);
        let refusal = judged.refusal().filter(|_| self.has_others);
        self.judged = Some(judged);
        refusal.map_or(Ok(()), Err)
    }

    /// The transaction is over: gives how it was judged and what is told of it, if it came to a
    /// recipient.
    pub fn end_transaction(&mut self) -> Option<(Judged, Account)> {
        let account = std::mem::take(&mut self.account);
        let judged = self.judged.take();
        let told = match account.is_empty() {
            true => None,
            false => Some((judged.unwrap_or_else(|| self.judge()), account)),
        };
        self.sender = None;
        self.is_told |= told.is_some();
        told
    }

    /// The session is over: the same, also if it was turned away before any transaction.
    ///
    /// Nobody has looked yet whether one that came to no recipient has waited for our replies.
    pub fn end_session(&mut self, was_hasty: bool) -> Option<(Judged, Account)> {
        if let Some(told) = self.end_transaction() {
            return Some(told);
        }
        if self.is_told {
            return None;
        }
        if was_hasty {
            self.note_haste(true);
        }
        let judged = self.judge();
        (judged.action >= Action::Defer).then(|| (judged, Account::default()))
    }

    fn judge(&self) -> Judged {
        let stages = [Some(&self.connection), self.sender.as_ref()];
        let gathered = stages.into_iter().flatten().flat_map(|stage| stage.found());
        let findings: Vec<Finding> = self.session.iter().cloned().chain(gathered).collect();
        Judged::new(findings, &self.edge().thresholds)
    }
}

impl Judged {
    /// What follows from these findings.
    pub fn new(findings: Vec<Finding>, thresholds: &Thresholds) -> Judged {
        let verdict = Verdict::of(&findings, thresholds);
        let reply = verdict.cause.and_then(|cause| cause.reply.clone());
        let generic = match verdict.action {
            Action::Defer => "Not now, try later",
            _ => "Refused by policy",
        };
        Judged {
            action: verdict.action,
            score: verdict.score,
            cause: verdict.cause.map(|cause| cause.check.clone()),
            words: reply.unwrap_or_else(|| generic.into()),
            findings,
        }
    }

    /// What a recipient hears; `None` if the mail goes on.
    pub fn refusal(&self) -> Option<Refusal> {
        match self.action {
            Action::Accept | Action::Tag | Action::Quarantine => None,
            Action::Defer => Some(Refusal::PutOff(self.words.clone())),
            Action::Reject => Some(self.rejection()),
        }
    }

    /// What a rejected recipient hears: with its own enhanced code where the cause has one.
    fn rejection(&self) -> Refusal {
        match self.cause.as_deref() {
            Some("sender_unknown") => Refusal::UnknownSenderDomain,
            Some("sender_null_mx") => Refusal::SenderTakesNoMail,
            Some("reverse_missing" | "reverse_unconfirmed") => Refusal::ReverseName,
            _ => Refusal::Screened(self.words.clone()),
        }
    }
}
