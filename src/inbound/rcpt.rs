//! A session's answer to RCPT: whether the client may send there, what the edge filter says,
//! whether the recipient is here, whom it stands for, and what the next hop says to it.  VRFY and
//! EXPN too.

use std::time::Instant;

use super::Session;
use super::addressees::{Addressees, addressees, is_here};
use super::relay::Facts;
use super::{ahead, relay};
use crate::config::{ListenerDelivery, RouteIndex};
use crate::delivery::sites::routing_domain;
use crate::message::Recipient;
use crate::smtp::reply::{Passed, Refusal, Verified};
use crate::smtp::server::recipient_octets;

/// A recipient that is accepted.
enum Taken {
    /// As it is.
    Itself(RouteIndex),
    /// These in its place.
    Others(Vec<(Recipient, RouteIndex)>),
    /// By the next hop, in its words.
    Passed(RouteIndex, Passed),
}

impl Session {
    /// Whether messages go straight to the next hop.
    pub(super) fn is_inline(&self) -> bool {
        self.listener.listener.delivery == ListenerDelivery::Inline
    }

    /// Decides on the recipient in question, and answers.
    pub(super) async fn check_recipient(&mut self) {
        let Some(path) = self.server.recipient_in_question() else { return };
        let is_postmaster = path.is_postmaster();
        let mut verdict = relay::decide(&self.worker.config, self.facts(), path);
        if let Some(screening) = &mut self.screening {
            screening.note_haste(self.server.was_hasty());
        }
        if verdict.is_ok()
            && !is_postmaster
            && let Err(refusal) = self.screen().await
        {
            if refusal == Refusal::TooManyErrors {
                return self.server.close(refusal);
            }
            verdict = Err(refusal);
        }
        if verdict.as_ref().is_err_and(Refusal::is_of_the_edge) {
            self.tarpit().await;
        }
        let verdict = verdict.and_then(|route| self.has_room().map(|()| route));
        if self.server.is_first_recipient() {
            // The envelope before it ended without a read between, by RSET for one.
            self.envelope.give_back();
        }
        self.answer_recipient(verdict).await;
    }

    fn facts(&self) -> Facts {
        Facts {
            service: self.listener.listener.service,
            client: self.peer.ip(),
            is_balancer: self.is_balancer,
            certificate: self.certificate,
            authenticated: self.server.client().is_some_and(|c| c.authenticated.is_some()),
        }
    }

    /// What the edge filter says of the client and the transaction.
    async fn screen(&mut self) -> Result<(), Refusal> {
        match (&mut self.screening, self.server.client(), self.server.reverse_path()) {
            (Some(screening), Some(client), Some(sender)) => {
                screening.recipient(&client.helo, sender).await
            }
            _ => Ok(()),
        }
    }

    /// Whether one more recipient can be taken: 452 before the data is kinder than after it.
    fn has_room(&self) -> Result<(), Refusal> {
        let log = if self.is_inline() { None } else { self.worker.log.refusal() };
        match log {
            Some(refusal) => Err(refusal),
            None if self.worker.receive_is_exhausted() => Err(Refusal::Busy),
            None => self.counts_recipient(Instant::now()),
        }
    }

    /// Answers the recipient in question, whose own route is that of `verdict`.
    async fn answer_recipient(&mut self, verdict: Result<RouteIndex, Refusal>) {
        let taken = match verdict {
            Ok(route) => self.take_recipient(route).await,
            Err(refusal) => Err(refusal),
        };
        self.note_recipient(taken.as_ref().err());
        if let Err(refusal) = &taken
            && refusal.is_unknown_recipient()
        {
            return self.answer_unknown(refusal.clone()).await;
        }
        let now = Instant::now();
        match taken {
            Ok(Taken::Itself(route)) => {
                self.envelope.grow(self.server.recipient_octets());
                self.server.recipient_checked(now, Ok(route));
            }
            Ok(Taken::Others(others)) => {
                let octets = others.iter().map(|(recipient, _)| recipient_octets(recipient));
                let octets = octets.sum();
                if self.server.recipient_expanded(now, others) {
                    self.envelope.grow(octets);
                }
            }
            Ok(Taken::Passed(route, words)) => {
                self.envelope.grow(self.server.recipient_octets());
                self.server.recipient_passed(now, route, &words);
            }
            Err(refusal) => self.server.recipient_checked(now, Err(refusal)),
        }
    }

    async fn take_recipient(&mut self, route: RouteIndex) -> Result<Taken, Refusal> {
        let placed = self.placed(route)?;
        self.greylist()?;
        if self.is_inline() {
            // What the client has heard so far is no business of a next hop that takes its time.
            self.flush().await.map_err(|_| Refusal::NextHopLost)?;
            let passed = Box::pin(self.pass_recipient(route)).await;
            return passed.map(|words| Taken::Passed(route, words));
        }
        match placed {
            Addressees::Others(others) => Ok(Taken::Others(others)),
            Addressees::Itself(route) => {
                if self.worker.config.recipients.call_ahead {
                    Box::pin(self.call_ahead(route)).await?;
                }
                Ok(Taken::Itself(route))
            }
        }
    }

    /// Whom the file puts in the place of the recipient in question, or why nobody.
    fn placed(&self, route: RouteIndex) -> Result<Addressees, Refusal> {
        let Some(recipient) = self.server.rcpt_in_question() else {
            return Err(Refusal::Internal);
        };
        let Some(table) = self.worker.roster.table() else {
            return Ok(Addressees::Itself(route));
        };
        let config = &self.worker.config;
        if self.is_inline() {
            // Aliases and lists are the next hop's to expand: it answers for the address as it is.
            is_here(config, &table, &recipient.path)?;
            return Ok(Addressees::Itself(route));
        }
        let smtputf8 = self.server.parameters().is_some_and(|asked| asked.smtputf8);
        addressees(config, &table, recipient, route, smtputf8)
    }

    /// Asks the next hop for recipients of our own domains.
    async fn call_ahead(&mut self, route: RouteIndex) -> Result<(), Refusal> {
        let worker = self.worker.clone();
        let Some(recipient) = self.server.rcpt_in_question() else { return Ok(()) };
        let Some(mailbox) = recipient.path.mailbox() else { return Ok(()) };
        let is_asked =
            !mailbox.is_postmaster() && worker.config.domains.contains(&routing_domain(mailbox));
        let Some(parameters) = self.server.parameters().filter(|_| is_asked) else { return Ok(()) };
        let Some(site) = worker.sites.next_hop(route, parameters) else { return Ok(()) };
        let path = recipient.path.clone();
        if !ahead::is_known(&worker, site, &path) {
            // The replies before this one need not wait for the next hop.
            self.flush().await.map_err(|_| Refusal::UnverifiedRecipient)?;
        }
        ahead::ask(&worker, site, &path).await
    }

    /// Whether a client that the edge filter looks at has to come again for the recipient in
    /// question, who is here.
    ///
    /// # Errors
    /// `Greylisted`.
    fn greylist(&mut self) -> Result<(), Refusal> {
        let (Some(screening), Some(sender), Some(path)) =
            (&mut self.screening, self.server.reverse_path(), self.server.recipient_in_question())
        else {
            return Ok(());
        };
        match path.is_postmaster() {
            true => Ok(()),
            false => screening.greylist(sender, path),
        }
    }

    /// Slows and cuts off who asks for many that are not here, where the edge filter looks.
    async fn answer_unknown(&mut self, refusal: Refusal) {
        let is_cut_off =
            self.screening.as_mut().is_some_and(|screening| screening.unknown_recipient());
        self.tarpit().await;
        self.server.recipient_checked(Instant::now(), Err(refusal));
        if is_cut_off {
            self.server.close(Refusal::TooManyUnknown);
        }
    }

    /// Before a read: passes on what has come, or lets the next hop go.
    pub(super) async fn see_to_next_hop(&mut self) {
        if self.server.in_transaction() {
            self.pass_body().await;
        } else {
            self.release_next_hop().await;
        }
    }

    /// VRFY and EXPN.
    pub(super) fn look_up(&mut self) {
        let Some(inquiry) = self.server.inquiry() else { return };
        let table = self.worker.roster.table();
        let answer = table.map_or(Verified::Untold, |table| table.answer(inquiry));
        self.server.inquiry_answered(Instant::now(), &answer);
    }
}
