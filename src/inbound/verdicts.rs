//! What a session does with the edge filter's verdict: the header field and the marks of a message
//! that is not simply let through, and telling of it.

use crate::control::moment::Moment;
use crate::edge::explanation::{Account, Explanation};
use crate::edge::screening::Judged;
use crate::edge::tag;
use crate::edge::verdict::Action;
use crate::message::MessageId;
use crate::smtp::reply::{Refusal, refusal_text};
use crate::spool::Extension;

use super::Session;

/// What is kept with a message because of its verdict.
pub(super) struct Mark {
    /// It waits for an operator.
    pub(super) is_quarantined: bool,
    explanation: Box<str>,
}

impl Mark {
    /// The same as the log has it.
    pub(super) fn extensions(&self) -> Vec<Extension<'_>> {
        let value = self.explanation.as_bytes();
        let explanation = Extension { kind: Extension::EXPLANATION, value };
        let quarantined = Extension { kind: Extension::QUARANTINED, value: &[] };
        let quarantined = self.is_quarantined.then_some(quarantined);
        [Some(explanation), quarantined].into_iter().flatten().collect()
    }
}

impl Session {
    /// Adds the header field of a message that is suspect; gives what is kept with it.
    ///
    /// One that is to be refused comes here too: the postmaster's.
    pub(super) fn mark(&self, judged: &Judged, id: MessageId, fields: &mut String) -> Option<Mark> {
        if judged.action == Action::Accept {
            return None;
        }
        self.tag(fields);
        let account = self.screening.as_ref().map(|screening| screening.account().clone());
        let explanation = self.explain(judged.clone(), account.unwrap_or_default(), Some(id), None);
        Some(Mark {
            is_quarantined: judged.action == Action::Quarantine,
            explanation: explanation.to_text(),
        })
    }

    /// Adds the header field of a message that is suspect, if it is.  All that is done for one that
    /// is passed on in-line, where nothing can be kept back.
    pub(super) fn tag(&self, fields: &mut String) {
        let judged = self.screening.as_ref().and_then(|screening| screening.judged());
        if let Some(judged) = judged.filter(|judged| judged.action > Action::Accept) {
            let hostname = &self.worker.config.hostname;
            tag::write(fields, hostname, judged.action, judged.score, &judged.findings);
        }
    }

    /// Notes the answer to the recipient in question.
    pub(super) fn note_recipient(&mut self, refusal: Option<&Refusal>) {
        if let (Some(screening), Some(path)) =
            (&mut self.screening, self.server.recipient_in_question())
        {
            screening.note_recipient(path, refusal);
        }
    }

    /// The transaction under way, if there is one, is over: see [`Session::tell_verdict`].
    pub(super) fn end_judged(&mut self, stored: Option<MessageId>, refusal: Option<&Refusal>) {
        let told = self.screening.as_mut().and_then(|screening| screening.end_transaction());
        self.tell_verdict(told, stored, refusal);
    }

    /// The client is gone, or another one comes in its place: what was found of it is told, if it
    /// is of interest, and forgotten.
    pub(super) fn end_screening(&mut self) {
        let Some(mut screening) = self.screening.take() else { return };
        self.tell_verdict(screening.end_session(self.server.was_hasty()), None, None);
    }

    /// Tells of a transaction that is over, of which `stored` is the message, and what the client
    /// heard of it at the end.
    fn tell_verdict(
        &self,
        told: Option<(Judged, Account)>,
        stored: Option<MessageId>,
        refusal: Option<&Refusal>,
    ) {
        let Some((judged, account)) = told else { return };
        self.worker.report_verdict(&self.explain(judged, account, stored, refusal));
    }

    fn explain(
        &self,
        judged: Judged,
        account: Account,
        message: Option<MessageId>,
        refusal: Option<&Refusal>,
    ) -> Explanation {
        // Who came to no recipient was turned away by the verdict itself.
        let is_turned_away = account.is_empty() && message.is_none();
        let reply = match refusal {
            Some(refusal) => Some(refusal_text(refusal)),
            None => is_turned_away.then(|| judged.words.clone()),
        };
        Explanation {
            time: Moment(self.worker.now_unix_ms()),
            session: self.id,
            message,
            peer: self.peer,
            helo: self.server.client().map(|client| client.helo.clone()).unwrap_or_default(),
            from: account.from,
            to: account.to,
            more_to: account.more_to,
            action: judged.action,
            score: judged.score,
            reply,
            waited: account.waited,
            findings: judged.findings,
            left_out: 0,
        }
    }
}
