//! MAIL as its server sees it: when it may come, and the transaction that it begins.
//!
//! Where the listener asks for it, the driver decides on the sender, at [`Event::CheckSender`].

use std::time::Instant;

use super::{Event, Phase, Refusal, Server, Transaction};
use crate::message::MailParameters;
use crate::smtp::address::ReversePath;
use crate::smtp::command::Mail;
use crate::smtp::reply;

impl Server {
    /// The number of the transaction under way among those of the session.
    pub fn transaction_number(&self) -> Option<u32> {
        self.transaction.as_ref().map(|_| self.transactions)
    }

    /// The sender of the transaction under way.
    pub fn reverse_path(&self) -> Option<&ReversePath> {
        self.transaction.as_ref().map(|transaction| &transaction.reverse_path)
    }

    /// What MAIL asked for in the transaction under way.
    pub fn parameters(&self) -> Option<&MailParameters> {
        self.transaction.as_ref().map(|transaction| &transaction.parameters)
    }

    /// The sender that waits at [`Event::CheckSender`].
    pub fn sender_in_question(&self) -> Option<&ReversePath> {
        match &self.phase {
            Phase::Sender(mail) => Some(&mail.path),
            _ => None,
        }
    }

    /// Decides on the sender in question.
    pub fn sender_checked(&mut self, now: Instant, verdict: Result<(), Refusal>) {
        let asked = self.resume(now, |phase| match phase {
            Phase::Sender(mail) => Ok(mail),
            phase => Err(phase),
        });
        let Some(mail) = asked else { return };
        match verdict {
            Ok(()) => self.begin(*mail),
            Err(refusal) => self.fault(refusal),
        }
    }

    pub(super) fn mail(&mut self, mail: Mail) -> Event {
        if self.client.is_none() {
            return self.refused(Refusal::NeedsHello);
        }
        if self.transaction.is_some() {
            return self.refused(Refusal::NestedMail);
        }
        if self.lacks_auth() {
            return self.refused(Refusal::NeedsAuth);
        }
        if mail.size_octets.is_some_and(|octets| octets > self.config.message_size) {
            return self.refused(Refusal::TooLarge);
        }
        if self.config.checks_senders {
            self.phase = Phase::Sender(Box::new(mail));
            return Event::CheckSender;
        }
        self.begin(mail);
        Event::Continue
    }

    fn begin(&mut self, mail: Mail) {
        self.transactions = self.transactions.wrapping_add(1);
        self.transaction = Some(Box::new(Transaction {
            reverse_path: mail.path,
            parameters: mail.parameters,
            recipients: Vec::new(),
            routes: Vec::new(),
            given: 0,
            is_expanded: false,
            header: None,
            chunking: None,
        }));
        self.replies.push(reply::SENDER_OK);
    }
}
