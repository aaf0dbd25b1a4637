//! RCPT as its server sees it: the recipient in question, and what is said to it; VRFY and EXPN too.
//!
//! Who is here the driver knows ([`crate::recipients`]); this part holds the question while it is
//! asked and puts what comes of it into the transaction or a reply.

use std::collections::HashSet;
use std::time::Instant;

use super::{Event, Phase, Server, Transaction};
use crate::config::RouteIndex;
use crate::limits;
use crate::message::Recipient;
use crate::smtp::address::ForwardPath;
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
    /// The recipient that waits at [`Event::CheckRecipient`].
    pub fn recipient_in_question(&self) -> Option<&ForwardPath> {
        self.rcpt_in_question().map(|recipient| &recipient.path)
    }

    /// The same with its parameters.
    pub fn rcpt_in_question(&self) -> Option<&Recipient> {
        match &self.phase {
            Phase::Recipient(recipient) => Some(recipient),
            _ => None,
        }
    }

    /// Whether that recipient would be the first of its transaction.
    pub fn is_first_recipient(&self) -> bool {
        self.transaction.as_ref().is_none_or(|transaction| transaction.recipients.is_empty())
    }

    /// What that recipient will take of memory, in octets.
    pub fn recipient_octets(&self) -> usize {
        self.rcpt_in_question().map_or(0, recipient_octets)
    }

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
        let asked = self.resume(now, |phase| match phase {
            Phase::Inquiry(inquiry) => Ok(inquiry),
            phase => Err(phase),
        });
        if asked.is_none() {
            return;
        }
        self.replies.verified(answer);
        self.idled();
    }

    /// Decides on the recipient in question: where its mail goes, or why not.
    pub fn recipient_checked(&mut self, now: Instant, verdict: Result<RouteIndex, Refusal>) {
        let Some(recipient) = self.answer_recipient(now) else { return };
        match verdict {
            Ok(route) => {
                self.take_recipient(recipient, route);
                self.replies.push(reply::RECIPIENT_OK);
            }
            Err(refusal) if refusal.is_fault() => self.fault_of(refusal, Some(recipient.path)),
            Err(refusal) => self.refuse_recipient(refusal, Some(recipient.path)),
        }
    }

    /// Accepts the recipient in question in the words of the next hop that has taken it.
    pub fn recipient_passed(&mut self, now: Instant, route: RouteIndex, words: &Passed) {
        let Some(recipient) = self.answer_recipient(now) else { return };
        self.take_recipient(recipient, route);
        self.replies.passed(words);
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
        let Some(recipient) = self.answer_recipient(now) else { return false };
        let Some(transaction) = &mut self.transaction else { return false };
        if transaction.recipients.len() + members.len() > limits::RECIPIENTS_MAX {
            self.fault_of(Refusal::TooManyRecipients, Some(recipient.path));
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

    /// The recipient in question, which is in question no longer; `None` if there is none.
    fn answer_recipient(&mut self, now: Instant) -> Option<Recipient> {
        self.resume(now, |phase| match phase {
            Phase::Recipient(recipient) => Ok(*recipient),
            phase => Err(phase),
        })
    }

    fn take_recipient(&mut self, recipient: Recipient, route: RouteIndex) {
        let transaction = self.transaction.as_mut().expect("RCPT is asked about in a transaction");
        transaction.recipients.push(recipient);
        transaction.routes.push(route);
        transaction.given += 1;
    }

    pub(super) fn rcpt(&mut self, recipient: Recipient) -> Event {
        let Some(transaction) = &self.transaction else {
            return self.refused(Refusal::NeedsMail);
        };
        if transaction.chunking.is_some() {
            return self.refused(Refusal::ChunkingUnderWay);
        }
        if transaction.given >= self.config.recipients {
            // Not counted as an error: a sender with more recipients is told so once for each,
            // and sends the rest in its next transaction.
            self.refuse(Refusal::TooManyRecipients);
            return Event::Continue;
        }
        self.phase = Phase::Recipient(Box::new(recipient));
        Event::CheckRecipient
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

/// What a recipient takes of memory in a transaction, in octets.
pub fn recipient_octets(recipient: &Recipient) -> usize {
    let text = recipient.path.as_str().len() + recipient.orcpt.as_deref().map_or(0, str::len);
    text + size_of::<Recipient>() + size_of::<RouteIndex>()
}
