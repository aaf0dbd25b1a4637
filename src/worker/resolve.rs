//! Finds out where a destination's mail goes: the driver's side of `Action::Resolve`.
//!
//! The scheduler bounds how many of these run at once.  Whatever comes of it, the scheduler hears
//! `Resolved`; a destination that nobody can tell about rests by its course's schedule, which is
//! one event and no record in the log, however many messages wait.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::Worker;
use crate::control::events::{Event as LogEvent, EventKind};
use crate::control::moment::Moment;
use crate::dns::mail::{MailError, NoMail, Resolved, mail_hosts};
use crate::queue::destination::{Destination, DestinationIndex, Resolution, Verdict};
use crate::queue::scheduler::Event;

/// Asks for the mail exchangers of a destination and tells the scheduler.
pub(super) async fn resolve(worker: Rc<Worker>, index: DestinationIndex) {
    let Some(destination) = worker.with_queue(|queue| queue.destination(index).cloned()) else {
        return;
    };
    let resolved = match &destination.domain {
        Some(domain) => mail_hosts(&worker.resolver, domain, &worker.ourselves).await,
        None => Resolved { result: Err(NoMail::BadDomain.into()), ttl: Duration::ZERO },
    };
    let resolution = worker.resolution(index, &destination, resolved);
    worker.queue_event(Event::Resolved { destination: index, resolution });
}

impl Worker {
    fn resolution(
        &self,
        index: DestinationIndex,
        destination: &Destination,
        resolved: Resolved,
    ) -> Resolution {
        let now_unix_ms = self.now_unix_ms();
        let ttl_ms = u64::try_from(resolved.ttl.as_millis()).unwrap_or(u64::MAX);
        let until_unix_ms = now_unix_ms.saturating_add(ttl_ms);
        match resolved.result {
            Ok(found) if self.sites.course(destination.course).requires_tls && !found.authentic => {
                let why = NoMail::NotAuthentic;
                let verdict = Verdict { status: why.enhanced(), text: why.to_string().into() };
                Resolution::NoMail { verdict: Arc::new(verdict), until_unix_ms }
            }
            Ok(found) => {
                let shared = self.sites.of_hosts(destination.course, found.hosts, now_unix_ms);
                Resolution::Site { shared, until_unix_ms }
            }
            Err(MailError::Permanent(why)) => {
                let verdict = Verdict { status: why.enhanced(), text: why.to_string().into() };
                Resolution::NoMail { verdict: Arc::new(verdict), until_unix_ms }
            }
            Err(MailError::Temporary { why }) => {
                let (failures, keeps_site) = self.with_queue(|queue| {
                    (queue.resolution_failures(index), queue.keeps_site(index, now_unix_ms))
                });
                let attempts = u16::try_from(failures.saturating_add(1)).unwrap_or(u16::MAX);
                let retry = &self.sites.course(destination.course).retry;
                let again = retry.next_attempt(attempts, now_unix_ms, fastrand::u32(..));
                let until_unix_ms = again.max(until_unix_ms);
                // With the site that it has nothing is deferred.
                match keeps_site {
                    true => tracing::debug!(domain = destination.domain.as_deref(), why, "stale"),
                    false => self.report_unresolved(destination, &why, attempts, until_unix_ms),
                }
                Resolution::Later { reason: self.shared_reason(&why), until_unix_ms }
            }
        }
    }

    fn report_unresolved(
        &self,
        destination: &Destination,
        why: &str,
        attempts: u16,
        until_unix_ms: u64,
    ) {
        self.events.emit(&LogEvent {
            domain: destination.domain.as_deref(),
            reply: Some(why),
            reason: Some("domain_unresolved"),
            attempts: Some(u32::from(attempts)),
            next_attempt: Some(Moment(until_unix_ms)),
            ..LogEvent::new(EventKind::Deferred)
        });
    }
}
