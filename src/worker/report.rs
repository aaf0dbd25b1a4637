//! What a worker tells of its sessions and its queue.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use super::Worker;
use crate::auth::sasl::Mechanism;
use crate::control::events::{Addressees, Event, EventKind, SessionId};
use crate::edge::lists::{Zone, health::Change};
use crate::inbound::{Arrival, ListenerState};
use crate::message::MessageId;
use crate::queue::handle::{Handle, State};
use crate::runtime::buffer::Account;
use crate::runtime::deadline::{self, Shortage};
use crate::runtime::socket::HandshakeError;
use crate::runtime::tls::Secured;
use crate::smtp::address::ForwardPath;
use crate::smtp::reply::{Refusal, Replies};
use crate::smtp::server::{ReceivedMessage, Refused};
use crate::tls::Fingerprint;

/// A message that went straight to the next hop.
pub struct PassedOn<'a> {
    /// The name that its trace header has.
    pub id: MessageId,
    /// The message.
    pub message: &'a ReceivedMessage,
    /// The site that it went to.
    pub site: &'a str,
    /// The host that has taken it.
    pub peer: Option<SocketAddr>,
    /// What that host said.
    pub reply: &'a str,
    /// From the last octet to that.
    pub waited: Duration,
}

impl Worker {
    /// A client was let in.
    pub fn session_began(&self, session: SessionId, client: &Arrival, listener: &ListenerState) {
        self.sessions.set(self.sessions.get() + 1);
        self.metrics.sessions_opened.count();
        self.metrics.sessions_open.raise();
        self.report_client(session, client.address, client.proxy, listener);
    }

    /// Who the client of a session is; once more where a proxy says so later.
    pub fn report_client(
        &self,
        session: SessionId,
        client: SocketAddr,
        proxy: Option<SocketAddr>,
        listener: &ListenerState,
    ) {
        self.events.emit(&Event {
            session: Some(session),
            peer: Some(client),
            proxy,
            listener: Some(listener.address),
            ..Event::new(EventKind::Connect)
        });
    }

    /// A balancer's connection did not say for whom it is.
    pub fn report_unintroduced(&self, session: SessionId, peer: SocketAddr) {
        self.metrics.refused.count("proxy_header");
        self.events.emit(&Event {
            session: Some(session),
            peer: Some(peer),
            reason: Some("proxy_header"),
            ..Event::new(EventKind::Refused)
        });
    }

    /// Its session is over.
    pub fn session_ended(&self) {
        self.sessions.set(self.sessions.get() - 1);
        self.metrics.sessions_open.lower();
    }

    /// A client was not let in.
    pub fn report_turned_away(&self, session: SessionId, peer: SocketAddr, refusal: &Refusal) {
        self.metrics.refused.count(refusal.reason());
        self.events.emit(&Event {
            session: Some(session),
            peer: Some(peer),
            reason: Some(refusal.reason()),
            ..Event::new(EventKind::Refused)
        });
    }

    /// A session runs over TLS from here on.
    pub fn report_secured(
        &self,
        session: SessionId,
        peer: SocketAddr,
        secured: &Secured,
        certificate: Option<Fingerprint>,
    ) {
        self.metrics.sessions_secured.count();
        let tls = secured.to_string();
        let certificate = certificate.map(|certificate| certificate.to_string());
        self.events.emit(&Event {
            session: Some(session),
            peer: Some(peer),
            tls: Some(&tls),
            certificate: certificate.as_deref(),
            ..Event::new(EventKind::Secured)
        });
    }

    /// A handshake came to nothing.
    pub fn report_handshake_failed(
        &self,
        session: SessionId,
        peer: SocketAddr,
        error: &HandshakeError,
    ) {
        self.metrics.handshakes_failed.count();
        let reason = error.to_string();
        self.events.emit(&Event {
            session: Some(session),
            peer: Some(peer),
            reason: Some(&reason),
            ..Event::new(EventKind::TlsFailed)
        });
    }

    /// TLS did not come about with a next hop; `goes_on` says that mail goes there in clear now.
    pub fn report_tls_failed_at(
        &self,
        site: &str,
        peer: Option<SocketAddr>,
        goes_on: bool,
        words: &str,
    ) {
        self.metrics.tls_failed.count();
        self.events.emit(&Event {
            site: Some(site),
            peer,
            reply: Some(words),
            reason: Some(if goes_on { "goes_on_in_clear" } else { "tls_demanded" }),
            ..Event::new(EventKind::TlsFailed)
        });
    }

    /// A login came to its end: of `user` as far as the client named one, refused or not.
    pub fn report_login(
        &self,
        session: SessionId,
        peer: SocketAddr,
        mechanism: Mechanism,
        user: Option<&str>,
        refusal: Option<&Refusal>,
    ) {
        let (counter, kind) = match refusal {
            None => (&self.metrics.logins, EventKind::Authenticated),
            Some(_) => (&self.metrics.logins_failed, EventKind::AuthFailed),
        };
        counter.count();
        self.events.emit(&Event {
            session: Some(session),
            peer: Some(peer),
            user,
            mechanism: Some(mechanism.name()),
            reason: refusal.map(Refusal::reason),
            ..Event::new(kind)
        });
    }

    /// A client, or somebody between it and us, sent octets in clear behind STARTTLS.
    pub fn report_injected(&self, session: SessionId, peer: SocketAddr, octets: usize) {
        self.metrics.refused.count("starttls_injection");
        self.events.emit(&Event {
            session: Some(session),
            peer: Some(peer),
            size: Some(octets as u64),
            reason: Some("starttls_injection"),
            ..Event::new(EventKind::Refused)
        });
    }

    /// A message is ours.
    pub fn report_accepted(
        &self,
        session: SessionId,
        peer: SocketAddr,
        id: MessageId,
        message: &ReceivedMessage,
        waited: Duration,
        ours: Duration,
    ) {
        self.metrics.messages_accepted.count();
        self.metrics.octets_accepted.add(message.summary.octets);
        self.metrics.recipients_accepted.add(message.envelope.recipients.len() as u64);
        self.metrics.commit_wait.observe(ours);
        self.events.emit(&Event {
            session: Some(session),
            message: Some(id),
            peer: Some(peer),
            from: Some(message.envelope.reverse_path.as_str()),
            to: Addressees::All(&message.envelope.recipients),
            size: Some(message.summary.octets),
            delay_ms: Some(u64::try_from(waited.as_millis()).unwrap_or(u64::MAX)),
            require_tls: message.envelope.parameters.require_tls.then_some(true),
            ..Event::new(EventKind::Accepted)
        });
    }

    /// A message went straight to the next hop.
    pub fn report_passed_on(&self, session: SessionId, passed: &PassedOn<'_>) {
        self.metrics.messages_passed_on.count();
        self.events.emit(&Event {
            session: Some(session),
            message: Some(passed.id),
            peer: passed.peer,
            from: Some(passed.message.envelope.reverse_path.as_str()),
            to: Addressees::All(&passed.message.envelope.recipients),
            size: Some(passed.message.summary.octets),
            site: Some(passed.site),
            reply: Some(passed.reply),
            delay_ms: Some(u64::try_from(passed.waited.as_millis()).unwrap_or(u64::MAX)),
            ..Event::new(EventKind::PassedOn)
        });
    }

    /// A message waits for an operator.
    pub(super) fn report_held(&self, handle: &Handle) {
        self.events.emit(&Event {
            message: Some(handle.id),
            site: Some("hold"),
            ..Event::new(EventKind::Held)
        });
    }

    /// A message waits for an operator because of its verdict.
    pub(super) fn report_quarantined(&self, handle: &Handle) {
        self.events.emit(&Event {
            message: Some(handle.id),
            site: Some("quarantine"),
            ..Event::new(EventKind::Quarantined)
        });
    }

    /// A DNS list was switched off or on.
    pub(super) fn report_list(&self, zone: &Zone, change: Change) {
        let name = zone.name.as_str();
        let (kind, reason) = match change {
            Change::Off(trouble) => (EventKind::ListOff, Some(trouble.as_str())),
            Change::On => (EventKind::ListOn, None),
        };
        match change {
            Change::Off(trouble) => tracing::warn!(list = name, "switched off: {trouble}"),
            Change::On => tracing::info!(list = name, "switched on again"),
        }
        self.events.emit(&Event { list: Some(name), reason, ..Event::new(kind) });
    }

    /// Something was refused within a session.
    pub fn report_refused(&self, session: SessionId, peer: SocketAddr, refused: &Refused) {
        let reason = refused.refusal.reason();
        self.metrics.refused.count(reason);
        let mut replies = Replies::default();
        replies.refuse(&refused.refusal);
        let reply = replies.take();
        let to = refused.recipient.as_ref().map(ForwardPath::as_str);
        self.events.emit(&Event {
            session: Some(session),
            peer: Some(peer),
            to: to.map_or(Addressees::None, Addressees::One),
            reply: std::str::from_utf8(&reply).ok().map(str::trim_end),
            reason: Some(reason),
            ..Event::new(EventKind::Refused)
        });
    }

    /// Sets what tells how far up the ladder of back-pressure this worker is.
    pub(super) fn report_load(&self) {
        self.metrics.receive_octets.set(self.receive_octets() as u64);
        self.metrics.delivery_octets.set(Account::Outbound.octets() as u64);
        self.metrics.chunk_octets.set(self.log.chunk_octets() as u64);
        let cut = [Shortage::Intake, Shortage::Connections].map(deadline::pressed_cuts);
        self.metrics.sessions_cut.set(cut.iter().sum());
        self.metrics.connections_cut.set(deadline::pressed_cuts(Shortage::Reader));
        self.metrics.work_late.set(self.log.late_reads() + self.blocking.late());
        self.metrics.sites_waiting.set(self.with_queue(|queue| queue.sites_waiting()) as u64);
    }

    /// Sets the gauges of the queue; cheap, but not for each message.
    pub(super) fn report_queue(self: &Rc<Self>) {
        let counts = self.with_queue(|queue| queue.counts());
        self.metrics.handles_ready.set(counts.of(State::Ready));
        self.metrics.handles_active.set(counts.of(State::Active));
        self.metrics.handles_deferred.set(counts.of(State::Deferred));
        let quarantine = self.sites.quarantine();
        let quarantined = self.with_queue(|queue| queue.count_for(&quarantine));
        self.metrics.handles_held.set(counts.of(State::Held).saturating_sub(quarantined));
        self.metrics.handles_quarantined.set(quarantined);
    }
}
