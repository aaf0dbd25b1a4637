//! A session's driver: moves octets between the client's stream and [`smtp::server`], and does or
//! asks for whatever that machine wants to be done.
//!
//! The thin shell around a pure machine.  [`step`](mod@step) says what comes next, and this file has
//! the loop, TLS and the octets, which lie in [`intake`] and must come at a [`pace`].  Beside it
//! stand: whom a proxy brings (`introduction`), who logs in (`login`), where the client waits
//! (`delays`), who may send where ([`relay`]), who is here and whom he stands for ([`addressees`],
//! [`ahead`], `rcpt`), what the edge filter's verdict does (`verdicts`) and rspamd's (`content`), the
//! way of a message into the log (`store`, with the header of [`trace`]) or straight to the next hop
//! (`inline`, which shows it to rspamd by `exhibit`), and what all sessions of a worker may hold
//! ([`memory`]).
//!
//! The session only *waits* for a commit; filing the message in the queue is the commit's own doing,
//! so a client that vanishes after its last octet changes nothing.
//!
//! A peer can only harm its own session: every read and write has a deadline, memory is bounded
//! (see [`intake`]), and a panic ends the session that caused it.
//!
//! [`smtp::server`]: crate::smtp::server

pub mod addressees;
pub mod ahead;
mod content;
mod delays;
mod exhibit;
mod inline;
pub mod intake;
mod introduction;
mod login;
pub mod memory;
pub mod pace;
mod rcpt;
pub mod relay;
pub mod step;
mod store;
pub mod trace;
mod verdicts;

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::config::{Listener, ListenerTls};
use crate::control::events::{Event as LogEvent, EventKind, SessionId};
use crate::edge::screening::Screening;
use crate::limits;
use crate::listener::{self, counts::Admission};
use crate::runtime::deadline::Shortage;
use crate::runtime::socket::{Stream, StreamError};
use crate::smtp::reply::Refusal;
use crate::smtp::server::{Server, ServerConfig};
use crate::tls::Fingerprint;
use crate::worker::Worker;
use crate::worker::log::Upload;
use inline::Inline;
use intake::{Intake, Room};
use login::Login;
use pace::Pace;
use step::{Step, step};

/// What all sessions of a listener share.
pub struct ListenerState {
    /// As configured.
    pub listener: Listener,
    /// The address that it is bound to.
    pub address: SocketAddr,
    /// What its sessions tell their clients.
    pub server: Rc<ServerConfig>,
}

/// Who has connected.
pub struct Arrival {
    /// The client's address.
    pub address: SocketAddr,
    /// The balancer or proxy that it came through.
    pub proxy: Option<SocketAddr>,
    /// It is a balancer that speaks for itself, or cannot tell for whom it speaks.
    pub is_balancer: bool,
    /// Its place in the counts.
    pub admission: Admission,
}

/// One session.
struct Session {
    worker: Rc<Worker>,
    listener: Rc<ListenerState>,
    stream: Stream,
    peer: SocketAddr,
    /// It is a balancer that speaks for itself, or cannot tell for whom: its networks allow nothing.
    is_balancer: bool,
    /// The proxy that has named it by XCLIENT.
    introducer: Option<Box<SocketAddr>>,
    /// Its place among the sessions.
    admission: Admission,
    id: SessionId,
    server: Server,
    intake: Intake,
    /// The certificate that the client has proved to hold the key of.
    certificate: Option<Fingerprint>,
    login: Login,
    /// What the edge filter knows of the client; `None` if it does not look at it.
    screening: Option<Box<Screening>>,
    /// The parts of a large body that are on their way to the disk.
    upload: Option<Box<Upload>>,
    /// How fast the body comes that is under way.
    pace: Option<Pace>,
    /// What the envelope takes, as it was told to the worker.
    envelope: EnvelopeRoom,
    messages: u32,
    /// How many of them had their reply on its way when the client was read last.
    answered_before: u32,
    /// What is under way with a next hop, where messages are not kept.
    inline: Inline,
}

/// Why a session ended, for the events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Quit,
    ClosedByPeer,
    TimedOut,
    Broken,
    TlsFailed,
}

/// Serves one client from its greeting to its end.
pub async fn serve(
    worker: Rc<Worker>,
    listener: Rc<ListenerState>,
    stream: Stream,
    arrival: Arrival,
    id: SessionId,
) {
    let mut session = Session::new(worker, listener, stream, arrival, id);
    let end = session.run().await;
    session.report_end(end);
    session.drop_body();
}

/// What the envelope of a session takes of the worker's memory; given back with it, however the
/// session ends.
struct EnvelopeRoom {
    worker: Rc<Worker>,
    octets: usize,
}

impl EnvelopeRoom {
    fn grow(&mut self, octets: usize) {
        self.octets += octets;
        self.worker.envelope_grew(octets);
    }

    fn give_back(&mut self) {
        self.worker.envelope_went(std::mem::take(&mut self.octets));
    }
}

impl Drop for EnvelopeRoom {
    fn drop(&mut self) {
        self.give_back();
    }
}

impl Session {
    /// A session of a client that nothing has been said to.
    ///
    /// Apart from [`serve`], whose future would have a place for each part of it for as long as it
    /// lives.
    fn new(
        worker: Rc<Worker>,
        listener: Rc<ListenerState>,
        stream: Stream,
        arrival: Arrival,
        id: SessionId,
    ) -> Session {
        let peer = arrival.address;
        let mut server = Server::new(listener.server.clone(), Instant::now());
        let mut screening = None;
        // Whom a balancer does not name is a stranger, whose word for another one is worth nothing.
        if !arrival.is_balancer {
            introduction::permit(&mut server, &worker.config, peer.ip());
            if listener::is_in(&listener.listener.xclient, peer) {
                server.permit_xclient();
            }
            screening = introduction::screening(&worker, &listener, peer);
        }
        Session {
            envelope: EnvelopeRoom { worker: worker.clone(), octets: 0 },
            worker,
            listener,
            stream,
            peer,
            is_balancer: arrival.is_balancer,
            introducer: None,
            admission: arrival.admission,
            id,
            server,
            intake: Intake::default(),
            certificate: None,
            login: Login::default(),
            screening,
            upload: None,
            pace: None,
            messages: 0,
            answered_before: 0,
            inline: Inline::default(),
        }
    }

    /// The size of this future is paid by every session for as long as it lives: what is rare and
    /// large waits on the heap.
    async fn run(&mut self) -> End {
        let mut end = End::Quit;
        if self.listener.listener.tls == ListenerTls::Implicit
            && !Box::pin(self.shake_hands()).await
        {
            return End::TlsFailed;
        }
        self.permit_binding();
        if let Err(end) = self.greet().await {
            return end;
        }
        loop {
            match step(&mut self.server, &mut self.intake, Instant::now()) {
                Step::Read => {
                    if self.has_next_hop() {
                        // What the client is told does not wait for the next hop.
                        if self.flush().await.is_err() {
                            return End::Broken;
                        }
                        Box::pin(self.see_to_next_hop()).await;
                    }
                    let stops = self.worker.is_stopping() && self.server.handle_shutdown();
                    if self.flush().await.is_err() {
                        return End::Broken;
                    }
                    if stops {
                        return self.linger(End::Quit).await;
                    }
                    // A stop that came during the flush has found no read to interrupt.
                    if self.worker.is_stopping() && self.server.handle_shutdown() {
                        continue;
                    }
                    match self.read().await {
                        Ok(0) if self.worker.is_stopping() => self.server.handle_shutdown_now(),
                        Ok(0) => return End::ClosedByPeer,
                        Ok(_) => {}
                        Err(StreamError::TimedOut) if self.worker.is_stopping() => {
                            self.server.handle_shutdown_now();
                        }
                        Err(StreamError::TimedOut) => {
                            end = End::TimedOut;
                            self.server.handle_timeout();
                        }
                        Err(StreamError::Io(_)) => return End::Broken,
                    }
                }
                Step::Flush => {
                    if self.flush().await.is_err() {
                        return End::Broken;
                    }
                }
                Step::FullChunk => self.next_chunk().await,
                Step::DropBody => {
                    self.drop_passed_body();
                    self.drop_body();
                }
                Step::CheckRecipient => self.check_recipient().await,
                Step::Store if self.is_inline() => Box::pin(self.pass_end()).await,
                Step::Store => self.store().await,
                Step::LookUp => self.look_up(),
                Step::Authenticate => Box::pin(self.authenticate()).await,
                Step::CheckSender => self.check_sender(),
                Step::StartQueue => Box::pin(self.start_queue()).await,
                Step::Introduce => {
                    if let Err(end) = Box::pin(self.introduce()).await {
                        return end;
                    }
                }
                Step::StartTls => {
                    if self.flush().await.is_err() {
                        return End::Broken;
                    }
                    if !Box::pin(self.start_tls()).await {
                        return End::TlsFailed;
                    }
                }
                Step::Close => {
                    if self.flush().await.is_err() {
                        return End::Broken;
                    }
                    return self.linger(end).await;
                }
            }
        }
    }

    async fn start_queue(&mut self) {
        let Some(node) = self.server.node_in_question().cloned() else { return };
        tracing::info!(session = %self.id, peer = %self.peer, ?node, "ETRN");
        let result = self.worker.start_queue(node).await;
        self.server.queue_started(Instant::now(), result);
    }

    fn drop_body(&mut self) {
        self.intake.drop_body();
        self.upload = None;
        self.pace = None;
        self.worker.receive_freed();
    }

    fn report_refusals(&mut self) {
        for refused in self.server.take_refusals() {
            self.worker.report_refused(self.id, self.peer, &refused);
        }
    }

    fn report_end(&mut self, end: End) {
        self.report_refusals();
        self.end_screening();
        let reason = match end {
            End::Quit => None,
            End::ClosedByPeer => Some("closed_by_peer"),
            End::TimedOut => Some("timed_out"),
            End::Broken => Some("broken"),
            End::TlsFailed => Some("tls_failed"),
        };
        self.worker.events.emit(&LogEvent {
            session: Some(self.id),
            peer: Some(self.peer),
            helo: self.server.client().map(|client| &*client.helo),
            reason,
            ..LogEvent::new(EventKind::Disconnect)
        });
    }

    // ---- TLS -----------------------------------------------------------------------------

    /// The handshake that STARTTLS asked for; tells whether the session can go on.
    ///
    /// What came in clear behind the command was sent by nobody knows whom, and is thrown away
    /// unread (CVE-2011-0411): it must not be taken for what the client says under TLS.
    async fn start_tls(&mut self) -> bool {
        let behind = self.intake.unconsumed().len();
        if behind > 0 {
            self.worker.report_injected(self.id, self.peer, behind);
        }
        self.intake = Intake::default();
        let succeeded = self.shake_hands().await;
        self.server.tls_started(Instant::now());
        self.login = Login::default();
        self.permit_binding();
        succeeded
    }

    fn permit_binding(&mut self) {
        if self.stream.secured().is_some_and(|secured| secured.binding.is_some()) {
            self.server.permit_binding();
        }
    }

    async fn shake_hands(&mut self) -> bool {
        let Some(acceptor) = &self.worker.acceptor else { return false };
        let config = acceptor.config();
        let deadline = Instant::now() + limits::TLS_HANDSHAKE;
        self.stream.allow_interrupt(true);
        match self.stream.accept_tls(config, deadline).await {
            Ok(secured) => {
                let certificate = self.stream.peer_certificate();
                // Behind a proxy it would be the proxy's, and what it allows is not the client's.
                let is_its_own = self.introducer.is_none();
                self.certificate =
                    certificate.filter(|_| is_its_own).map(|shown| Fingerprint::of(shown));
                self.worker.report_secured(self.id, self.peer, &secured, self.certificate);
                true
            }
            Err(error) => {
                self.worker.report_handshake_failed(self.id, self.peer, &error);
                false
            }
        }
    }

    // ---- octets --------------------------------------------------------------------------

    async fn flush(&mut self) -> Result<(), StreamError> {
        self.report_refusals();
        if self.server.replies().is_empty() {
            return Ok(());
        }
        let replies = self.server.replies().take();
        let deadline = Instant::now() + limits::SERVER_WRITE;
        let (result, replies) = self.stream.write_all(replies, deadline).await;
        if self.server.in_transaction() || self.messages > 0 {
            self.server.replies().recycle(replies);
        }
        result
    }

    async fn read(&mut self) -> Result<usize, StreamError> {
        // What came before has been seen to, and its buffer given back.
        self.worker.receive_freed();
        if !self.server.in_transaction() {
            self.envelope.give_back();
        }
        self.answered_before = self.messages;
        self.pace = Pace::at_read(self.pace, &self.server, Instant::now());
        let server = self.server.deadline();
        let deadline = self.pace.map_or(server, |pace| pace.deadline().min(server));
        self.stream.allow_interrupt(!self.server.in_transaction());
        self.stream.give_way_at(self.gives_way());
        let result = self.read_by(deadline).await;
        self.stream.give_way_at(None);
        if let (Ok(octets), Some(pace)) = (&result, &mut self.pace) {
            pace.received(*octets);
        }
        result
    }

    /// When the next read gives way to those who want what the session holds meanwhile.
    fn gives_way(&self) -> Option<(Shortage, Instant)> {
        match self.pace {
            Some(pace) => Some((Shortage::Intake, pace.deadline_pressed())),
            None => self
                .keeps_next_hop_waiting()
                .then(|| (Shortage::Connections, Instant::now() + limits::IN_LINE_IDLE_PRESSED)),
        }
    }

    async fn read_by(&mut self, deadline: Instant) -> Result<usize, StreamError> {
        loop {
            match self.intake.make_room(self.server.in_body()) {
                Room::NeedsChunk => self.next_chunk().await,
                Room::Chunk => {
                    let Some((chunk, kept)) = self.intake.take_chunk() else { continue };
                    let (result, chunk) = self.stream.read(chunk, deadline).await;
                    self.intake.put_chunk(chunk, kept);
                    return result;
                }
                Room::Buffer => {
                    // A session that waits between messages gives its buffer back meanwhile; where
                    // memory is short, every one that waits gives back what it does not use.
                    let is_idle = self.intake.is_empty() && self.is_quiet();
                    let waits = is_idle || self.worker.receive_is_crowded();
                    if waits {
                        self.intake.park();
                        self.stream.readable(deadline).await?;
                        if is_idle && self.worker.is_stopping() {
                            return Ok(0);
                        }
                        self.take_turn().await;
                        self.hurry_record();
                    }
                    let mut buffer = self.intake.take_buffer();
                    if waits && let Some(result) = self.stream.read_now(&mut buffer) {
                        self.intake.put_buffer(buffer);
                        return result;
                    }
                    let (result, buffer) = self.stream.read(buffer, deadline).await;
                    self.intake.put_buffer(buffer);
                    return result;
                }
            }
        }
    }

    /// Where TLS began: a record that has begun holds a buffer until it is whole, so it must come
    /// soon if others wait for room.
    fn hurry_record(&self) {
        if self.pace.is_none() && self.stream.secured().is_some() {
            let at = Instant::now() + limits::UPLOAD_GRACE_PRESSED;
            self.stream.give_way_at(Some((Shortage::Intake, at)));
        }
    }

    /// Takes room for what has come, as soon as there is some; a body that finds none for too long
    /// is refused.
    async fn take_turn(&mut self) {
        let began = Instant::now();
        let keeps_body = self.server.keeps_body();
        let patience = match keeps_body {
            true => limits::RECEIVE_PATIENCE,
            false => limits::RECEIVE_PATIENCE_COMMAND,
        };
        if !self.worker.may_receive(patience).await && keeps_body {
            self.server.refuse_body(Refusal::Busy);
            // The client may take its time with the rest, and the next hop has others to serve.
            self.drop_passed_body();
            self.drop_body();
        }
        self.excuse_since(began);
        match self.worker.receive_is_crowded() {
            true => self.intake.make_little_room(),
            false => drop(self.intake.make_room(false)),
        }
    }

    /// Since then the client was not listened to.
    fn excuse_since(&mut self, began: Instant) {
        if let Some(pace) = &mut self.pace {
            pace.excuse(began.elapsed());
        }
    }

    /// Whether the next octets may be long in coming.  A client that is sending messages gets its
    /// next read without a look whether there is anything to read, which saves an operation.
    fn is_quiet(&self) -> bool {
        !self.server.in_transaction()
            && (self.messages == 0 || self.worker.sessions() > QUIET_FROM_SESSIONS)
    }

    /// Closes our half and reads what the client still sends, so that the last reply is not lost
    /// to a reset.
    async fn linger(&mut self, end: End) -> End {
        let has_heard = self.messages == self.answered_before;
        if self.server.has_quit() && has_heard && self.stream.is_read_out() {
            // QUIT is the client's last word (RFC 5321 section 4.1.1.10), so the close resets nothing.
            // And if it did, no word for a message would be lost.
            return end;
        }
        self.stream.close_sending();
        let deadline = Instant::now() + LINGER;
        let mut octets = 0;
        while octets < LINGER_OCTETS && Instant::now() < deadline {
            self.intake = Intake::default();
            self.intake.make_room(false);
            let (result, _) = self.stream.read(self.intake.take_buffer(), deadline).await;
            match result {
                Ok(read) if read > 0 => octets += read,
                _ => break,
            }
        }
        end
    }
}

/// From this many sessions of a worker on, all that wait do so without a buffer.
const QUIET_FROM_SESSIONS: usize = 512;
/// How long, and how much, a client may go on sending after our last reply.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_OCTETS: usize = 256 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    /// What a session takes beside its connection, for as long as it lives: one more `await` in the
    /// middle of its loop costs each of ten thousand that idle what is awaited there.
    #[test]
    fn a_session_takes_no_more_than_2_kib() {
        fn octets<F>(
            _: fn(Rc<Worker>, Rc<ListenerState>, Stream, Arrival, SessionId) -> F,
        ) -> usize {
            size_of::<F>()
        }
        let octets = octets(serve);
        assert!(octets <= 2_048, "{octets}; box what is rare");
    }
}
