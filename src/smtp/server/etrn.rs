//! ETRN as its server sees it (RFC 1985): when it may come, and its answer.
//!
//! The driver starts the queue, at [`Event::StartQueue`].

use std::time::Instant;

use super::{Event, Phase, Refusal, Server};
use crate::smtp::command::Node;
use crate::smtp::reply::QueueStart;

impl Server {
    /// Lets the client send ETRN, which EHLO then offers (RFC 1985).  Its answer, and the
    /// connections that it makes this host open, are not for everybody.
    pub fn permit_etrn(&mut self) {
        self.may_start_queues = true;
    }

    /// The node that waits at [`Event::StartQueue`].
    pub fn node_in_question(&self) -> Option<&Node> {
        match &self.phase {
            Phase::Starting(node) => Some(node),
            _ => None,
        }
    }

    /// What became of the node in question.
    pub fn queue_started(&mut self, now: Instant, result: Result<QueueStart, Refusal>) {
        let asked = self.resume(now, |phase| match phase {
            Phase::Starting(node) => Ok(node),
            phase => Err(phase),
        });
        if asked.is_none() {
            return;
        }
        match result {
            Ok(found) => self.replies.queue_started(found),
            Err(refusal) => self.refuse(refusal),
        }
        self.idled();
    }

    pub(super) fn etrn(&mut self, node: Node) -> Event {
        if self.client.is_none() {
            return self.refused(Refusal::NeedsHello);
        }
        // Whoever may not send it learns nothing of our queues, not even their names.
        if !self.may_start_queues {
            return self.refused(Refusal::EtrnDenied);
        }
        if node == Node::Named {
            return self.refused(Refusal::NoSuchQueue);
        }
        if self.transaction.is_some() {
            return self.refused(Refusal::NestedMail);
        }
        self.phase = Phase::Starting(node);
        Event::StartQueue
    }
}
