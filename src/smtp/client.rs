//! The client's side of an SMTP connection as a state machine: octets and time in, actions out
//! (RFC 5321, with PIPELINING, RFC 2920, and CHUNKING, RFC 3030).
//!
//! It stands between `outbound`, which owns the socket and the message, and the peer.  Its twin
//! is `smtp::server`.  The message never passes through it: it says when and in which form the
//! body goes out.
//!
//! How a driver uses it: make a [`Client`] when the connection stands; feed what arrives to
//! [`Client::handle_bytes`]; after every call, take actions from [`Client::poll_action`] until
//! there is none; watch [`Client::deadline`].  Three duties are the driver's.  It reads while it
//! writes, or two full windows wait for each other.  It calls [`Client::body_sent`] before it
//! feeds what arrived after the body's last octet was written.  And when a write fails it first
//! feeds what can still be read, for a peer that gives up says why, and only then calls
//! [`Client::handle_closed`].
//!
//! Invariants: every transaction that is started ends in exactly one
//! [`ClientAction::TransactionDone`] with one outcome for each recipient; a recipient counts as
//! delivered only by a 2xx that answers the end of a body that was sent to its end; what a peer
//! decided about a recipient stands when the connection fails later, and the failure decides
//! nothing.  After [`ClientAction::Close`] there is no further action.
//!
//! What it does not do: TLS, AUTH, LMTP and envelope and body in one flight (see `exchange` for
//! their places); choosing peers, retrying, judging what an outcome means for the queue.

mod envelope;
mod exchange;
mod result;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use result::{
    AfterTransaction, ConnectionCause, ConnectionFailure, Deferral, Failure, LocalRefusal,
    RecipientOutcome, Stage, StagedReply, TransactionResult,
};

use crate::limits;
use crate::message::{BodyFlags, Envelope, Recipient};
use crate::smtp::body::BodyForm;
use crate::smtp::capabilities::{Capabilities, SizeOffer};
use crate::smtp::code::ReplyClass;
use crate::smtp::reply_reader::{PeerReply, ReplyReader};
use exchange::{Exchange, Next};

/// What a connection is to keep to.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// What EHLO says: our host name, or an address literal.
    pub ehlo_name: Arc<str>,
    /// How long the peer may take.
    pub timeouts: Timeouts,
    /// False once a peer of the site announced CHUNKING and refused BDAT
    /// ([`TransactionResult::chunking_broken`]).
    pub use_chunking: bool,
}

/// How long the peer may take for a reply (RFC 5321 section 4.5.3.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// For the greeting.
    pub greeting: Duration,
    /// For the reply to a command.
    pub command: Duration,
    /// For the reply to the end of data.
    pub data: Duration,
}

impl Default for Timeouts {
    fn default() -> Timeouts {
        Timeouts {
            greeting: limits::CLIENT_GREETING,
            command: limits::CLIENT_COMMAND,
            data: limits::CLIENT_DATA_END,
        }
    }
}

/// A message for some of its recipients.
#[derive(Debug, Clone)]
pub struct Transaction {
    envelope: Arc<Envelope>,
    /// Not empty; each `< envelope.recipients.len()`.
    recipients: Vec<u16>,
    size_octets: u64,
    flags: BodyFlags,
}

impl Transaction {
    /// A transaction for those recipients of the envelope that `recipients` names by index.
    ///
    /// `size_octets` is the message with its trace header and without stuffed dots: what BDAT
    /// transfers, and what SIZE means too (RFC 1870 section 3 does not count them).  `flags` is
    /// what the scan of the body found.
    ///
    /// `None` if there are no recipients, or one that the envelope does not have.
    pub fn new(
        envelope: Arc<Envelope>,
        recipients: Vec<u16>,
        size_octets: u64,
        flags: BodyFlags,
    ) -> Option<Transaction> {
        let known = recipients.iter().all(|&index| usize::from(index) < envelope.recipients.len());
        (known && !recipients.is_empty()).then_some(Transaction {
            envelope,
            recipients,
            size_octets,
            flags,
        })
    }

    /// The recipients as indices into the envelope's, in the order of the result's outcomes.
    pub fn recipients(&self) -> &[u16] {
        &self.recipients
    }

    /// The recipient at a place of this transaction.
    fn recipient(&self, place: usize) -> &Recipient {
        &self.envelope.recipients[usize::from(self.recipients[place])]
    }
}

/// What the driver is to do.
#[derive(Debug)]
pub enum ClientAction {
    /// Write these octets.  The buffer may come back through [`Client::recycle`].
    Send(Vec<u8>),
    /// Write `prefix`, the trace header, the body in this form and `suffix`, best in one go; call
    /// [`Client::body_progress`] as it goes and [`Client::body_sent`] at its end.  A following
    /// `Close` means: stop at once.
    SendBody {
        /// What comes first: the BDAT command, or nothing.
        prefix: Vec<u8>,
        /// How the body goes.
        form: BodyForm,
        /// What comes last: the final dot, or nothing.
        suffix: &'static [u8],
    },
    /// The peer has introduced itself; [`Client::start`] may be called.
    Ready,
    /// The transaction is over.
    TransactionDone(TransactionResult),
    /// The connection failed outside a transaction.
    Failed(ConnectionFailure),
    /// Close the connection and throw away what is still to be written.
    Close,
}

/// One connection to a peer.
#[derive(Debug)]
pub struct Client {
    config: ClientConfig,
    state: State,
    peer: Capabilities,
    reader: ReplyReader,
    /// What is to be written next.
    output: Vec<u8>,
    /// What the driver is to do after the output is written, in order.
    actions: VecDeque<ClientAction>,
    deadline: Option<Instant>,
    /// Transactions that put a command on the wire.
    transactions: u32,
    /// Whether the next transaction begins with RSET.  It then costs no round trip of its own.
    reset_first: bool,
}

#[derive(Debug)]
enum State {
    /// The connection stands; the 220 has not come.
    Greeting,
    /// EHLO is out.
    Ehlo,
    /// EHLO was refused; HELO is out.
    Helo,
    /// Between transactions.
    Ready,
    /// In a transaction.
    Exchanging(Exchange),
    /// QUIT is out.
    Quitting,
    /// Over.
    Closed,
}

impl Client {
    /// A connection that was just made.
    pub fn new(config: ClientConfig, now: Instant) -> Client {
        let deadline = Some(now + config.timeouts.greeting);
        Client {
            config,
            state: State::Greeting,
            peer: Capabilities::default(),
            reader: ReplyReader::new(),
            output: Vec::new(),
            actions: VecDeque::new(),
            deadline,
            transactions: 0,
            reset_first: false,
        }
    }

    /// Takes what the peer sent.  Returns how many octets were taken: all of them today; the rest
    /// belongs to somebody else once a connection can turn to TLS.
    pub fn handle_bytes(&mut self, now: Instant, input: &[u8]) -> usize {
        let mut taken = 0;
        while taken < input.len() && !matches!(self.state, State::Closed) {
            let (consumed, reply) = self.reader.read(&input[taken..]);
            taken += consumed;
            match reply {
                None => {}
                Some(Ok(reply)) => self.handle_reply(now, reply),
                Some(Err(error)) => self.fail(ConnectionCause::Malformed(error)),
            }
        }
        input.len()
    }

    /// Time has passed.  Before the [deadline](Client::deadline) this does nothing.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.deadline.is_some_and(|deadline| deadline <= now) {
            self.fail(ConnectionCause::TimedOut);
        }
    }

    /// The peer closed the connection, or a read or write failed.
    pub fn handle_closed(&mut self) {
        self.fail(ConnectionCause::Closed);
    }

    /// Gives up: the body cannot be read, or the gateway stops.  Whoever is undecided is
    /// deferred.  The body is left without its end, so that the peer does not take a part of it
    /// for the message.
    pub fn abandon(&mut self) {
        self.fail(ConnectionCause::Abandoned);
    }

    /// The peer took a piece of the body: it has time for the next (RFC 5321 section 4.5.3.2.5).
    pub fn body_progress(&mut self, now: Instant) {
        if self.stage() == Stage::Body {
            self.deadline = Some(now + self.config.timeouts.data.min(limits::CLIENT_DATA_BLOCK));
        }
    }

    /// The body, its prefix and its suffix are written.
    pub fn body_sent(&mut self, now: Instant) {
        if self.stage() != Stage::Body {
            return;
        }
        if let State::Exchanging(exchange) = &mut self.state {
            exchange.body_sent();
            self.deadline = Some(now + self.config.timeouts.data);
        }
    }

    /// Begins a transaction on a connection that is [ready](Client::is_ready).  On any other,
    /// which may have failed a moment ago, it ends at once with every recipient deferred.
    pub fn start(&mut self, now: Instant, transaction: Transaction) {
        // Half a reply that nobody asked for: the next one would be taken for its rest.
        if self.is_ready() && self.reader.is_within_reply() {
            self.fail(ConnectionCause::Abandoned);
        }
        if !self.is_ready() {
            return self.decline_unready(&transaction);
        }
        let form = self.body_form();
        if let Err(refusal) = self.check(&transaction, form) {
            let outcome = RecipientOutcome::Failed(Failure::Local(refusal));
            return self.decide_at_once(&transaction, &outcome, AfterTransaction::Usable);
        }
        let exchange = Exchange::begin(
            transaction,
            form,
            &self.peer,
            self.transactions > 0,
            std::mem::take(&mut self.reset_first),
            &mut self.output,
        );
        self.transactions = self.transactions.saturating_add(1);
        self.state = State::Exchanging(exchange);
        self.deadline = Some(now + self.config.timeouts.command);
    }

    /// Ends the connection politely; in the middle of something, at once.
    pub fn quit(&mut self, now: Instant) {
        match self.state {
            State::Ready => {
                self.output.extend_from_slice(b"QUIT\r\n");
                self.state = State::Quitting;
                self.deadline = Some(now + self.config.timeouts.command.min(limits::CLIENT_QUIT));
            }
            State::Quitting | State::Closed => {}
            _ => self.abandon(),
        }
    }

    /// The next thing to do, or `None` until something else is fed in.
    pub fn poll_action(&mut self) -> Option<ClientAction> {
        if let Some(ClientAction::SendBody { prefix, .. }) = self.actions.front_mut() {
            // The BDAT command stands in the output: it goes out with the body.
            *prefix = std::mem::take(&mut self.output);
        }
        if !self.output.is_empty() {
            return Some(ClientAction::Send(std::mem::take(&mut self.output)));
        }
        self.actions.pop_front()
    }

    /// Gives a buffer back that a `Send` or `SendBody` carried, to be written to again.
    pub fn recycle(&mut self, mut buffer: Vec<u8>) {
        if self.output.capacity() == 0 && buffer.capacity() <= 2 * limits::CLIENT_GROUP {
            buffer.clear();
            self.output = buffer;
        }
    }

    /// When [`Client::handle_timeout`] is to be called, if nothing else happens.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Whether a transaction may start.
    pub fn is_ready(&self) -> bool {
        matches!(self.state, State::Ready)
    }

    /// What the peer offers; nothing before [`ClientAction::Ready`].
    pub fn capabilities(&self) -> &Capabilities {
        &self.peer
    }

    /// Transactions that this connection has carried, the present one included.
    pub fn transactions(&self) -> u32 {
        self.transactions
    }

    /// How a body goes to this peer.
    pub fn body_form(&self) -> BodyForm {
        if self.peer.chunking && self.config.use_chunking { BodyForm::Bdat } else { BodyForm::Data }
    }

    fn handle_reply(&mut self, now: Instant, reply: PeerReply) {
        // RFC 5321 section 3.8: the service may end at any time.
        if reply.code.value() == 421 && !matches!(self.state, State::Quitting) {
            return self.fail(ConnectionCause::Refused(Arc::new(reply)));
        }
        match &mut self.state {
            State::Greeting => self.greeting(now, reply),
            State::Ehlo => self.ehlo_reply(now, reply),
            State::Helo => self.helo_reply(reply),
            State::Exchanging(exchange) => {
                let next = exchange.handle_reply(reply, &self.peer, &mut self.output);
                self.go_on(now, next);
            }
            State::Ready => self.fail(ConnectionCause::Unexpected(Arc::new(reply))),
            // Whatever it says to QUIT, it is over.
            State::Quitting => self.close(),
            State::Closed => {}
        }
    }

    fn greeting(&mut self, now: Instant, reply: PeerReply) {
        match reply.class() {
            ReplyClass::Success => {
                self.reader.expect_ehlo();
                self.hello(now, "EHLO ", State::Ehlo);
            }
            ReplyClass::Intermediate => self.fail(ConnectionCause::Unexpected(Arc::new(reply))),
            _ => self.fail(ConnectionCause::Refused(Arc::new(reply))),
        }
    }

    fn ehlo_reply(&mut self, now: Instant, reply: PeerReply) {
        match reply.class() {
            ReplyClass::Success => {
                self.peer = Capabilities::from_ehlo(&reply);
                self.become_ready();
            }
            // RFC 5321 section 3.2: a server without extensions knows HELO.
            ReplyClass::PermanentFailure => self.hello(now, "HELO ", State::Helo),
            ReplyClass::TransientFailure => self.fail(ConnectionCause::Refused(Arc::new(reply))),
            ReplyClass::Intermediate => self.fail(ConnectionCause::Unexpected(Arc::new(reply))),
        }
    }

    fn helo_reply(&mut self, reply: PeerReply) {
        match reply.class() {
            ReplyClass::Success => self.become_ready(),
            ReplyClass::Intermediate => self.fail(ConnectionCause::Unexpected(Arc::new(reply))),
            _ => self.fail(ConnectionCause::Refused(Arc::new(reply))),
        }
    }

    fn hello(&mut self, now: Instant, verb: &str, state: State) {
        self.output.extend_from_slice(verb.as_bytes());
        self.output.extend_from_slice(self.config.ehlo_name.as_bytes());
        self.output.extend_from_slice(b"\r\n");
        self.state = state;
        self.deadline = Some(now + self.config.timeouts.command);
    }

    fn become_ready(&mut self) {
        self.state = State::Ready;
        self.deadline = None;
        self.actions.push_back(ClientAction::Ready);
    }

    /// Does what the exchange says after a reply.
    fn go_on(&mut self, now: Instant, next: Next) {
        match next {
            Next::Wait => self.deadline = Some(now + self.config.timeouts.command),
            Next::SendBody => self.send_body(now),
            Next::Finished(connection) => self.finish(connection),
            Next::Broken(cause) => self.fail(cause),
        }
    }

    fn send_body(&mut self, now: Instant) {
        let State::Exchanging(exchange) = &self.state else {
            return;
        };
        exchange.write_body_prefix(&mut self.output);
        self.actions.push_back(ClientAction::SendBody {
            prefix: Vec::new(),
            form: exchange.form(),
            suffix: exchange.body_suffix(),
        });
        self.body_progress(now);
    }

    fn finish(&mut self, connection: AfterTransaction) {
        let State::Exchanging(exchange) = std::mem::replace(&mut self.state, State::Ready) else {
            return;
        };
        self.deadline = None;
        self.reset_first = exchange.reset_after;
        self.actions.push_back(ClientAction::TransactionDone(exchange.finish(connection)));
        if connection == AfterTransaction::MustClose {
            self.close();
        }
    }

    /// Ends the connection where it stands.
    fn fail(&mut self, cause: ConnectionCause) {
        let failure = ConnectionFailure { stage: self.stage(), cause };
        match std::mem::replace(&mut self.state, State::Closed) {
            State::Closed => return,
            State::Quitting => {}
            State::Exchanging(exchange) => {
                self.drop_unsent_body();
                let result = exchange.break_off(&failure);
                self.actions.push_back(ClientAction::TransactionDone(result));
            }
            _ => self.actions.push_back(ClientAction::Failed(failure)),
        }
        self.close();
    }

    fn close(&mut self) {
        self.state = State::Closed;
        self.deadline = None;
        self.output = Vec::new();
        self.actions.push_back(ClientAction::Close);
    }

    /// A body that the driver has not begun is not begun any more.
    fn drop_unsent_body(&mut self) {
        self.actions.retain(|action| !matches!(action, ClientAction::SendBody { .. }));
    }

    fn stage(&self) -> Stage {
        match &self.state {
            State::Greeting => Stage::Greeting,
            State::Ehlo | State::Helo => Stage::Hello,
            State::Ready | State::Closed => Stage::Idle,
            State::Exchanging(exchange) => exchange.stage(),
            State::Quitting => Stage::Quit,
        }
    }

    /// Whether the peer can take this message at all.
    fn check(&self, transaction: &Transaction, form: BodyForm) -> Result<(), LocalRefusal> {
        let size_octets = transaction.size_octets;
        if let SizeOffer::AtMost { octets: limit_octets } = self.peer.size
            && !self.peer.size.allows(size_octets)
        {
            return Err(LocalRefusal::TooLarge { size_octets, limit_octets });
        }
        if transaction.envelope.parameters.smtputf8 && !self.peer.smtputf8 {
            return Err(LocalRefusal::NeedsSmtputf8);
        }
        let bare = [BodyFlags::BARE_CR, BodyFlags::BARE_LF];
        if form == BodyForm::Data && bare.iter().any(|&flag| transaction.flags.contains(flag)) {
            return Err(LocalRefusal::BareNewlines);
        }
        Ok(())
    }

    fn decline_unready(&mut self, transaction: &Transaction) {
        let failure = ConnectionFailure { stage: Stage::Idle, cause: ConnectionCause::Closed };
        let outcome = RecipientOutcome::Deferred(Deferral::Connection(failure));
        self.decide_at_once(transaction, &outcome, AfterTransaction::MustClose);
    }

    fn decide_at_once(
        &mut self,
        transaction: &Transaction,
        outcome: &RecipientOutcome,
        connection: AfterTransaction,
    ) {
        let outcomes = vec![outcome.clone(); transaction.recipients.len()];
        let result = TransactionResult { outcomes, connection };
        self.actions.push_back(ClientAction::TransactionDone(result));
    }
}
