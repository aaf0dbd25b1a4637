//! One SMTP connection: drives `smtp::client` over a stream and sends bodies out of memory or out
//! of the log.
//!
//! A small message leaves in one write with its trace header; a large one chunk by chunk as the
//! reader brings it.  The peer's word for each recipient goes to [`crate::delivery::settle`].

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Way;
use crate::delivery::message::LoadedMessage;
use crate::delivery::settle::{self, Attempt};
use crate::delivery::settlement::rounds::{Round, Rounds, Verdict};
use crate::delivery::settlement::{Handover, Hop, remote_mta};
use crate::delivery::verp;
use crate::queue::arena::Slot;
use crate::queue::scheduler::Event;
use crate::runtime::buffer::{self, Buffer};
use crate::runtime::socket::{IoBuf, Stream, StreamError};
use crate::smtp::body::{BodyForm, Reshape};
use crate::smtp::client::{
    Client, ClientAction, ClientConfig, ConnectionFailure, Timeouts, Transaction, TransactionResult,
};

/// One connection and its machine.
struct Connection<'a> {
    way: &'a Way,
    peer: SocketAddr,
    stream: Stream,
    client: Client,
    input: Buffer,
}

/// What the machine has come to.
enum Turn {
    Ready,
    Done(TransactionResult),
    Failed(ConnectionFailure),
    Closed,
}

/// Sends what the scheduler gives it over a connection that stands.
pub async fn run(way: &Way, stream: Stream, peer: SocketAddr) {
    let worker = &way.worker;
    worker.metrics.connections_opened.count();
    worker.metrics.connections_open.raise();
    let mut connection = Connection::new(way, peer, stream);
    match connection.turn(None).await {
        Turn::Ready => {}
        Turn::Failed(failure) => {
            way.host_failed(peer, &settle::words_of_failure(&failure));
            worker.metrics.connections_open.lower();
            return;
        }
        Turn::Done(_) | Turn::Closed => {
            way.host_failed(peer, "the connection was closed before the greeting");
            worker.metrics.connections_open.lower();
            return;
        }
    }
    way.host_succeeded(peer);
    let established = way.shared().establish();
    connection.serve().await;
    drop(established);
    worker.metrics.connections_open.lower();
}

impl<'a> Connection<'a> {
    fn new(way: &'a Way, peer: SocketAddr, stream: Stream) -> Connection<'a> {
        let delivery = &way.worker.config.delivery;
        let config = ClientConfig {
            ehlo_name: Arc::from(&*way.worker.config.hostname),
            timeouts: Timeouts {
                greeting: delivery.timeouts.greeting,
                command: delivery.timeouts.command,
                data: delivery.timeouts.data,
            },
            use_chunking: !way.shared().chunking_is_broken(),
        };
        let client = Client::new(config, Instant::now());
        Connection { way, peer, stream, client, input: Buffer::default() }
    }

    /// One message after the other, within the bounds of a connection.
    async fn serve(&mut self) {
        let most = self.way.worker.config.delivery.messages_per_connection;
        let opened = Instant::now();
        let mut messages = 0;
        while messages < most && opened.elapsed() < AGE_MAX {
            let Some(slot) = self.way.next().await else { break };
            messages += 1;
            if !self.deliver(slot).await {
                return;
            }
        }
        self.client.quit(Instant::now());
        self.turn(None).await;
    }

    /// Sends one message; tells whether the connection can be used again.
    async fn deliver(&mut self, slot: Slot) -> bool {
        let worker = &self.way.worker;
        let Some(mut attempt) = Attempt::begin(worker, self.way.site, Some(self.peer), slot) else {
            return true;
        };
        let message = match worker.load(attempt.id(), attempt.place()).await {
            Ok(message) => message,
            Err(error) => {
                attempt.unreadable(worker, &error);
                return true;
            }
        };
        let size_octets = match message.octets_unstuffed(&worker.log).await {
            Ok(size_octets) => size_octets,
            Err(error) => {
                attempt.unreadable(worker, &error);
                return true;
            }
        };
        let is_fresh = self.client.transactions() == 0;
        let envelope = message.envelope().clone();
        let (together, alone) = verp::split(&worker.config, &envelope, attempt.recipients());
        let mut rounds = Rounds::new(envelope, together, alone, is_fresh);
        let usable = loop {
            let transaction = rounds.transaction(size_octets, message.summary().flags);
            let result = self.transact(&message, transaction).await;
            if result.chunking_broken() {
                self.way.shared().remember_broken_chunking();
            }
            if let Round::Over { usable } = rounds.ended(result) {
                break usable;
            }
        };
        let Verdict::Settled { outcomes, taken } = rounds.verdict() else {
            worker.queue_event(Event::Returned { slot });
            return false;
        };
        // Not at its greeting: a peer that greets and then drops every transaction is not well.
        self.way.shared().recover();
        let has_dsn = self.client.capabilities().dsn;
        attempt.led_to(Hop {
            remote_mta: Some(remote_mta(self.peer.ip())),
            handover: if has_dsn { Handover::PassedOn } else { Handover::Relayed },
            taken,
        });
        attempt.settle(worker, &message, outcomes).await;
        usable
    }

    async fn transact(
        &mut self,
        message: &LoadedMessage,
        transaction: Transaction,
    ) -> TransactionResult {
        self.client.start(Instant::now(), transaction);
        loop {
            match self.turn(Some(message)).await {
                Turn::Done(result) => return result,
                // The machine ends every transaction before it says anything else.
                Turn::Ready | Turn::Failed(_) | Turn::Closed => {}
            }
        }
    }

    /// Drives the machine until it has come to something.
    async fn turn(&mut self, message: Option<&LoadedMessage>) -> Turn {
        loop {
            while let Some(action) = self.client.poll_action() {
                match action {
                    ClientAction::Send(bytes) => self.send(bytes).await,
                    ClientAction::SendBody { prefix, form, suffix } => {
                        if let Some(message) = message {
                            self.send_body(message, prefix, form, suffix).await;
                        }
                    }
                    ClientAction::Ready => return Turn::Ready,
                    ClientAction::TransactionDone(result) => return Turn::Done(result),
                    ClientAction::Failed(failure) => return Turn::Failed(failure),
                    ClientAction::Close => return Turn::Closed,
                }
            }
            if !self.receive().await {
                return Turn::Closed;
            }
        }
    }

    /// Reads once; `false` when the machine is over.
    async fn receive(&mut self) -> bool {
        let Some(deadline) = self.client.deadline() else { return false };
        if self.input.room() == 0 {
            self.input = Buffer::new(buffer::SMALL);
        }
        let (result, input) = self.stream.read(std::mem::take(&mut self.input), deadline).await;
        self.input = input;
        match result {
            Ok(octets) if octets > 0 => {
                self.client.handle_bytes(Instant::now(), self.input.bytes());
                self.input.truncate(0);
            }
            Ok(_) | Err(StreamError::Io(_)) => self.client.handle_closed(),
            Err(StreamError::TimedOut) => self.client.handle_timeout(Instant::now()),
        }
        true
    }

    async fn send(&mut self, bytes: Vec<u8>) {
        let deadline = self.client.deadline().unwrap_or_else(Instant::now);
        let (result, bytes) = self.stream.write_all(bytes, deadline).await;
        self.client.recycle(bytes);
        if let Err(error) = result {
            self.write_failed(error).await;
        }
    }

    /// A peer that gives up says why before it closes: what can still be read counts first.
    async fn write_failed(&mut self, error: StreamError) {
        let last_word = Instant::now() + LAST_WORD;
        let (result, input) = self.stream.read(Buffer::new(buffer::SMALL), last_word).await;
        if result.is_ok_and(|octets| octets > 0) {
            self.client.handle_bytes(Instant::now(), input.bytes());
        }
        match error {
            StreamError::TimedOut => self.client.abandon(),
            StreamError::Io(_) => self.client.handle_closed(),
        }
    }

    // ---- bodies --------------------------------------------------------------------------

    async fn send_body(
        &mut self,
        message: &LoadedMessage,
        prefix: Vec<u8>,
        form: BodyForm,
        suffix: &'static [u8],
    ) {
        let mut reshape = Reshape::new(message.summary().flags, form);
        let mut out = prefix;
        out.extend_from_slice(message.trace());
        if let Some(body) = message.inline_body() {
            reshape.write(body, &mut out);
            out.extend_from_slice(suffix);
            return self.send_part(out, true).await;
        }
        let mut pieces = message.pieces();
        while let Some(piece) = pieces.next(&self.way.worker.log).await {
            let Ok(piece) = piece else {
                // Without its end the peer does not take what it has for the message.
                return self.client.abandon();
            };
            if !out.is_empty() {
                self.send_part(std::mem::take(&mut out), false).await;
            }
            if reshape.is_identity() {
                self.send_octets(piece).await;
            } else {
                reshape.write(piece.0.view().body(), &mut out);
            }
            if !self.is_sending() {
                return;
            }
        }
        out.extend_from_slice(suffix);
        self.send_part(out, true).await;
    }

    async fn send_part(&mut self, bytes: Vec<u8>, is_end: bool) {
        if !bytes.is_empty() {
            self.send_octets(bytes).await;
        }
        if is_end && self.is_sending() {
            self.client.body_sent(Instant::now());
        }
    }

    async fn send_octets<B: IoBuf>(&mut self, bytes: B) {
        self.client.body_progress(Instant::now());
        let deadline = self.client.deadline().unwrap_or_else(Instant::now);
        let (result, _) = self.stream.write_all(bytes, deadline).await;
        if let Err(error) = result {
            self.write_failed(error).await;
        }
    }

    /// Whether the machine still wants the rest of the body.
    fn is_sending(&self) -> bool {
        self.client.deadline().is_some()
    }
}

/// A connection is closed at this age, so that a next hop which changes its address is followed.
const AGE_MAX: Duration = Duration::from_secs(300);
/// What a peer may take to say why it closed.
const LAST_WORD: Duration = Duration::from_secs(1);
