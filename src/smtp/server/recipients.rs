//! What the server says of recipients beyond yes and no: those that stand for others, VRFY and
//! EXPN.
//!
//! Its place: the second half of [`Server`] that speaks of addresses.  Who is here the driver
//! knows ([`crate::recipients`]); this part holds the question while it is asked and puts what
//! comes of it into the transaction or a reply.

use std::collections::HashSet;
use std::time::Instant;

use super::{Event, Phase, Server, Transaction};
use crate::config::RouteIndex;
use crate::limits;
use crate::message::{MailParameters, Recipient};
use crate::smtp::reply::{self, Passed, Refusal, Verified};

/// VRFY or EXPN (RFC 5321 sections 4.1.1.6 and 4.1.1.7), which waits for its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inquiry {
    /// EXPN: who is on the list.
    pub expands: bool,
    /// What stands behind the verb.
    pub argument: Box<str>,
}

/// Which of them the client may send.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MayInquire {
    /// VRFY.
    pub verify: bool,
    /// EXPN.
    pub expand: bool,
}

impl Server {
    /// Lets the client ask who is here, which EHLO then offers.  The answers are what harvesters
    /// look for, so they are not for everybody.
    pub fn permit_inquiries(&mut self, may: MayInquire) {
        self.may_inquire = may;
    }

    /// The question that waits at [`Event::LookUp`].
    pub fn inquiry(&self) -> Option<&Inquiry> {
        match &self.phase {
            Phase::Inquiry(inquiry) => Some(inquiry),
            _ => None,
        }
    }

    /// The answer to it.
    pub fn inquiry_answered(&mut self, now: Instant, answer: &Verified) {
        if !matches!(self.phase, Phase::Inquiry(_)) {
            return;
        }
        self.phase = Phase::Command;
        self.deadline = now + limits::SERVER_COMMAND;
        self.replies.verified(answer);
        self.idled();
    }

    /// Accepts the recipient in question and puts those that it stands for in its place.
    ///
    /// What has no room beside the recipients before it is refused for now: the client names it
    /// again in its next transaction.  That counts as an error, for each costs a look at the whole
    /// list.  Tells whether they were taken.
    pub fn recipient_expanded(
        &mut self,
        now: Instant,
        members: Vec<(Recipient, RouteIndex)>,
    ) -> bool {
        let (Phase::Recipient(_), Some(transaction)) = (&self.phase, &mut self.transaction) else {
            return false;
        };
        self.deadline = now + limits::SERVER_COMMAND;
        self.phase = Phase::Command;
        if transaction.recipients.len() + members.len() > limits::RECIPIENTS_MAX {
            self.errors += 1;
            self.refuse(Refusal::TooManyRecipients);
            if self.errors > limits::SESSION_ERRORS {
                self.close(Refusal::TooManyErrors);
            }
            return false;
        }
        let (recipients, routes): (Vec<_>, Vec<_>) = members.into_iter().unzip();
        transaction.recipients.extend(recipients);
        transaction.routes.extend(routes);
        transaction.given += 1;
        transaction.is_expanded = true;
        self.replies.push(reply::RECIPIENT_OK);
        true
    }

    /// Accepts the recipient in question in the words of the next hop that has taken it.
    pub fn recipient_passed(&mut self, now: Instant, route: RouteIndex, words: &Passed) {
        if !matches!(self.phase, Phase::Recipient(_)) {
            return;
        }
        let phase = std::mem::replace(&mut self.phase, Phase::Command);
        let (Phase::Recipient(recipient), Some(transaction)) = (phase, &mut self.transaction)
        else {
            return;
        };
        self.deadline = now + limits::SERVER_COMMAND;
        transaction.recipients.push(*recipient);
        transaction.routes.push(route);
        transaction.given += 1;
        self.replies.passed(words);
    }

    /// What the next hop said to the message that was taken.
    pub fn passed_on(&mut self, now: Instant, result: Result<Passed, Refusal>) {
        if !matches!(self.phase, Phase::Storing { .. }) {
            return;
        }
        self.phase = Phase::Command;
        self.transaction = None;
        self.deadline = now + limits::SERVER_COMMAND;
        match result {
            Ok(words) => {
                self.idle_commands = 0;
                self.errors = 0;
                self.replies.passed(&words);
            }
            Err(refusal) => self.refuse(refusal),
        }
    }

    /// The number of the transaction under way among those of the session.
    pub fn transaction_number(&self) -> Option<u32> {
        self.transaction.as_ref().map(|_| self.transactions)
    }

    /// What MAIL asked for in the transaction under way.
    pub fn parameters(&self) -> Option<&MailParameters> {
        self.transaction.as_ref().map(|transaction| &transaction.parameters)
    }

    /// The recipients of the transaction under way.
    pub fn recipients(&self) -> &[Recipient] {
        self.transaction.as_ref().map_or(&[], |transaction| &transaction.recipients)
    }

    pub(super) fn inquire(&mut self, expands: bool, argument: &str) -> Event {
        let may = if expands { self.may_inquire.expand } else { self.may_inquire.verify };
        match (may, expands) {
            (true, _) => {
                self.phase = Phase::Inquiry(Inquiry { expands, argument: argument.into() });
                Event::LookUp
            }
            (false, false) => self.idle(reply::VRFY, false),
            (false, true) => self.refused(Refusal::NotImplemented),
        }
    }

    /// The keywords of EHLO for what the client may ask.
    pub(super) fn inquiry_keywords(&self) -> [Option<&'static str>; 2] {
        let MayInquire { verify, expand } = self.may_inquire;
        [verify.then_some("VRFY"), expand.then_some("EXPN")]
    }
}

impl Transaction {
    /// Leaves of each address the first: whoever is on two lists gets one copy.
    pub(super) fn merge(&mut self) {
        if !self.is_expanded {
            return;
        }
        let mut seen = HashSet::new();
        let both = self.recipients.iter().zip(&self.routes);
        let is_first: Vec<bool> =
            both.map(|(recipient, route)| seen.insert((recipient.path.folded(), *route))).collect();
        let mut keeps = is_first.iter();
        self.recipients.retain(|_| *keeps.next().expect("one for each"));
        let mut keeps = is_first.iter();
        self.routes.retain(|_| *keeps.next().expect("one for each"));
    }
}
