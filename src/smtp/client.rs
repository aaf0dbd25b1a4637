//! The client's side of an SMTP or LMTP connection as a state machine: octets and time in, actions
//! out (RFC 5321 and 2033, with PIPELINING, RFC 2920, CHUNKING, RFC 3030, and LIMITS, RFC 9422).
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
//! **One flight.**  Where the peer has PIPELINING and CHUNKING, a message goes out whole, envelope
//! and body, before any reply: one round trip.  [`Client::start`] may then be called while earlier
//! transactions are under way, as long as [`Client::can_start`] says so; each that follows another
//! begins with RSET, so that what became of the one before it matters to none.  The first message
//! to a site goes the strict way, body after the replies to the envelope, and so do large ones,
//! large envelopes, and LMTP, whose peers are near and disagree on the number of replies when
//! nobody was taken.  A peer that is out of step once is not tried in one flight again: the
//! connection takes no further transaction, and the results tell the driver to remember it.  A
//! peer that refuses something and throws away what came with it, silently, would answer the next
//! message in place of this one: after a refusal nothing is told, and nothing started, until every
//! reply that is owed has come.
//!
//! Invariants: transactions end in the order in which they were started; every transaction that is started ends in exactly one
//! [`ClientAction::TransactionDone`] with one outcome for each recipient; a recipient counts as
//! delivered only by a 2xx that answers the end of a body that was sent to its end; what a peer
//! decided about a recipient stands when the connection fails later, and the failure decides
//! nothing.  After [`ClientAction::Close`] there is no further action but the end of a transaction
//! that is started all the same.
//!
//! **STARTTLS** (RFC 3207) is the driver's to do when the machine says so
//! ([`ClientAction::StartTls`]); what the peer said before is forgotten then, and what it sent in
//! clear behind its 220 ends the connection, since nobody knows who sent it.
//!
//! **AUTH** (RFC 4954) follows EHLO where the configuration has a [`Login`]; without
//! success there the connection takes no mail.
//!
//! What it does not do: choosing peers, retrying, judging what an outcome means for
//! the queue; splitting recipients by the peer's limits (`capabilities::Limits::split`; the driver
//! starts each part).

mod envelope;
mod exchange;
mod login;
#[cfg(test)]
mod oracle;
mod result;
mod settings;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use envelope::{mail_command, rcpt_command};
pub use login::Login;
pub use result::{
    AfterTransaction, BrokenPromise, ConnectionCause, ConnectionFailure, Deferral, Failure,
    LocalRefusal, LoginTrouble, RecipientOutcome, Stage, StagedReply, TlsTrouble,
    TransactionResult,
};
pub use settings::{
    ClientConfig, OneFlight, Protocol, StartTls, Timeouts, Transaction, TransactionId,
};

use crate::auth::sasl::client::{ClientError, ClientExchange, Derivation};
use crate::config::EightBit;
use crate::limits;
use crate::message::BodyFlags;
use crate::smtp::body::BodyForm;
use crate::smtp::capabilities::{Capabilities, SizeOffer};
use crate::smtp::code::ReplyClass;
use crate::smtp::reply_reader::{PeerReply, ReplyReader};
use exchange::{Exchange, Manner, Next, Terms};

/// What the driver is to do.
#[derive(Debug)]
pub enum ClientAction {
    /// Write these octets.  The buffer may come back through [`Client::recycle`].
    Send(Vec<u8>),
    /// Write, for this transaction, `prefix`, the trace header, the body in this form and `suffix`, best in one go; call
    /// [`Client::body_progress`] as it goes and [`Client::body_sent`] at its end.  A following
    /// `Close` means: stop at once.
    SendBody {
        /// Whose body it is.
        id: TransactionId,
        /// What comes first: the BDAT command, in one flight the whole envelope, or nothing.
        prefix: Vec<u8>,
        /// How the body goes.
        form: BodyForm,
        /// What comes last: the final dot, or nothing.
        suffix: &'static [u8],
    },
    /// Shake hands, then call [`Client::tls_started`] or [`Client::tls_failed`].
    StartTls,
    /// Derive these keys where nobody waits for it, then call [`Client::derived`].
    Derive(Derivation),
    /// The peer has introduced itself; [`Client::start`] may be called.
    Ready,
    /// A transaction is over: the oldest of those that were not.
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
    /// What is to be written after the actions.
    output: Vec<u8>,
    /// What the driver is to do, in order.
    actions: VecDeque<ClientAction>,
    deadline: Option<Instant>,
    /// The connection runs over TLS.
    is_secured: bool,
    /// What SCRAM-PLUS binds to, where the connection has it.
    exporter: Option<[u8; 32]>,
    /// Transactions under way, oldest first.  More than one only in one flight, or decided, or
    /// waiting at the end.
    under_way: VecDeque<UnderWay>,
    next_id: u32,
    /// Transactions that put a command on the wire.
    transactions: u32,
    /// The peer lost count: what is under way comes to its end, and nothing follows.
    is_draining: bool,
    /// What the peer has refused in one flight.  It may have thrown away what came with it:
    /// nothing follows until every reply that is owed has come.
    suspicion: Option<Arc<PeerReply>>,
    /// What ended since, to be told when nothing is owed any more.
    withheld: VecDeque<TransactionResult>,
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
    /// STARTTLS is out.
    StartTls,
    /// The driver shakes hands.
    Handshake,
    /// AUTH is out, or the response to a challenge, or the driver derives keys.
    Login(Box<ClientExchange>),
    /// We have given AUTH up.
    LoginCancelled(ClientError),
    /// Between transactions, or in some.
    Serving,
    /// QUIT is out.
    Quitting,
    /// Over.
    Closed,
}

#[derive(Debug)]
enum UnderWay {
    /// Its commands are out, or some of them.
    Running { id: TransactionId, exchange: Exchange },
    /// Its turn comes when nothing is before it: it goes the strict way.
    Waiting { id: TransactionId, transaction: Transaction },
    /// It was over before it began; told in its turn.
    Decided(TransactionResult),
}

impl Client {
    /// A connection that was just made.
    pub fn new(config: ClientConfig, now: Instant) -> Client {
        let deadline = Some(now + config.timeouts.greeting);
        Client {
            is_secured: config.is_secured,
            config,
            state: State::Greeting,
            peer: Capabilities::default(),
            reader: ReplyReader::new(),
            output: Vec::new(),
            actions: VecDeque::new(),
            deadline,
            exporter: None,
            under_way: VecDeque::new(),
            next_id: 0,
            transactions: 0,
            is_draining: false,
            suspicion: None,
            withheld: VecDeque::new(),
            reset_first: false,
        }
    }

    /// Takes what the peer sent.
    pub fn handle_bytes(&mut self, now: Instant, input: &[u8]) {
        let mut taken = 0;
        while taken < input.len() && !matches!(self.state, State::Closed) {
            let (consumed, reply) = self.reader.read(&input[taken..]);
            taken += consumed;
            match reply {
                None => {}
                Some(Ok(reply)) => self.handle_reply(now, reply),
                Some(Err(error)) => self.fail(ConnectionCause::Malformed(error)),
            }
            if matches!(self.state, State::Handshake) && taken < input.len() {
                self.actions.clear();
                return self.fail(ConnectionCause::Tls(TlsTrouble::Injected));
            }
        }
    }

    /// The handshake is done: from here on the peer is another one than it was in clear.
    pub fn tls_started(&mut self, now: Instant) {
        if matches!(self.state, State::Handshake) {
            self.is_secured = true;
            self.peer = Capabilities::default();
            self.reader = ReplyReader::new();
            self.reader.expect_ehlo();
            self.hello(now, self.verb(), State::Ehlo);
        }
    }

    /// The handshake came to nothing.
    pub fn tls_failed(&mut self, words: &str) {
        if matches!(self.state, State::Handshake) {
            self.fail(ConnectionCause::Tls(TlsTrouble::Handshake(words.into())));
        }
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

    /// The peer took a piece of a body: it has time for the next (RFC 5321 section 4.5.3.2.5), or
    /// for what it owes us already.
    pub fn body_progress(&mut self, now: Instant) {
        if !self.under_way.is_empty() {
            let later = now + self.patience();
            self.deadline = Some(self.deadline.map_or(later, |deadline| deadline.max(later)));
        }
    }

    /// The body of this transaction, its prefix and its suffix are written.
    pub fn body_sent(&mut self, now: Instant, id: TransactionId) {
        let running = self.under_way.iter_mut().enumerate().find_map(|(place, one)| match one {
            UnderWay::Running { id: this, exchange } if *this == id => Some((place, exchange)),
            _ => None,
        });
        let Some((place, exchange)) = running.filter(|(_, exchange)| exchange.is_sending_body())
        else {
            return;
        };
        let next = exchange.body_sent();
        if place > 0 {
            return;
        }
        match next {
            Next::Wait => self.deadline = Some(now + self.patience()),
            next => self.go_on(now, next),
        }
    }

    /// Begins a transaction, whose name it gives.  Where [`Client::can_start`] does not hold,
    /// since the connection may have failed a moment ago, the transaction ends at once with every
    /// recipient deferred.
    pub fn start(&mut self, now: Instant, transaction: Transaction) -> TransactionId {
        let id = TransactionId(self.next_id);
        self.next_id = self.next_id.wrapping_add(1);
        // Half a reply that nobody asked for: the next one would be taken for its rest.
        if self.is_ready() && self.reader.is_within_reply() {
            self.fail(ConnectionCause::Abandoned);
        }
        if !self.can_start() {
            let result = self.declined(id, &transaction);
            self.under_way.push_back(UnderWay::Decided(result));
        } else if let Err(refusal) = self.check(&transaction) {
            let outcome = RecipientOutcome::Failed(Failure::Local(refusal));
            let outcomes = vec![outcome; transaction.recipients.len()];
            let result = self.result(id, outcomes, AfterTransaction::Usable);
            self.under_way.push_back(UnderWay::Decided(result));
        } else if self.goes_in_one_flight(&transaction) {
            self.begin(now, id, transaction, Manner::OneFlight);
        } else {
            self.under_way.push_back(UnderWay::Waiting { id, transaction });
        }
        self.take_turns(now);
        id
    }

    /// Ends the connection politely; in the middle of something, at once.
    pub fn quit(&mut self, now: Instant) {
        match self.state {
            State::Serving if self.under_way.is_empty() => {
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
        if let Some(action) = self.actions.pop_front() {
            return Some(action);
        }
        // An empty one stays: it may be a buffer that came back.
        (!self.output.is_empty()).then(|| ClientAction::Send(std::mem::take(&mut self.output)))
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

    /// Whether the connection stands and nothing is under way.
    pub fn is_ready(&self) -> bool {
        matches!(self.state, State::Serving) && self.under_way.is_empty()
    }

    /// Whether the connection is over.
    pub fn is_over(&self) -> bool {
        matches!(self.state, State::Closed)
    }

    /// Whether a transaction may start now.
    pub fn can_start(&self) -> bool {
        let has_room = || match self.under_way.back() {
            None => true,
            Some(UnderWay::Running { exchange, .. }) => {
                exchange.is_one_flight()
                    && self.under_way.len() < self.config.messages_in_flight.max(1)
            }
            Some(UnderWay::Waiting { .. } | UnderWay::Decided(_)) => false,
        };
        self.may_go_on() && self.suspicion.is_none() && has_room()
    }

    /// Whether a transaction may still start on this connection, now or after those under way:
    /// it stands, the peer keeps count, and its MAILMAX is not used up (RFC 9422).
    pub fn may_go_on(&self) -> bool {
        let mail_max = self.peer.limits.mail_max;
        matches!(self.state, State::Serving)
            && !self.is_draining
            && mail_max.is_none_or(|most| self.transactions < most)
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

    /// A reply that ends the connection, as others may read it.
    fn presentable(&self, reply: PeerReply) -> Arc<PeerReply> {
        Arc::new(match self.state {
            State::Login(_) | State::LoginCancelled(_) => self.without_secrets(reply),
            _ => reply,
        })
    }

    fn handle_reply(&mut self, now: Instant, reply: PeerReply) {
        // RFC 5321 section 3.8: the service may end at any time.
        if reply.code.value() == 421 && !matches!(self.state, State::Quitting) {
            return self.fail(ConnectionCause::Refused(self.presentable(reply)));
        }
        // It came with the reply before it, while the command that it would answer is still here:
        // counted, it would be somebody else's verdict.
        if !self.output.is_empty() && !matches!(self.state, State::Quitting | State::Closed) {
            return self.fail(ConnectionCause::Unexpected(self.presentable(reply)));
        }
        match self.state {
            State::Greeting => self.greeting(now, reply),
            State::Ehlo => self.ehlo_reply(now, reply),
            State::Helo => self.helo_reply(now, reply),
            State::StartTls => self.starttls_reply(reply),
            State::Handshake => self.fail(ConnectionCause::Tls(TlsTrouble::Injected)),
            State::Login(_) => self.login_reply(now, reply),
            State::LoginCancelled(error) => self.cancelled_reply(error),
            State::Serving => match self.under_way.front_mut() {
                Some(UnderWay::Running { exchange, .. }) => {
                    let next = exchange.handle_reply(reply, &self.peer, &mut self.output);
                    if self.suspicion.is_none() && exchange.is_one_flight() {
                        self.suspicion = exchange.refusal().cloned();
                    }
                    self.go_on(now, next);
                }
                _ => self.fail(ConnectionCause::Unexpected(Arc::new(reply))),
            },
            // Whatever it says to QUIT, it is over.
            State::Quitting => self.close(),
            State::Closed => {}
        }
    }

    fn greeting(&mut self, now: Instant, reply: PeerReply) {
        match reply.class() {
            ReplyClass::Success => {
                self.reader.expect_ehlo();
                self.hello(now, self.verb(), State::Ehlo);
            }
            ReplyClass::Intermediate => self.fail(ConnectionCause::Unexpected(Arc::new(reply))),
            _ => self.fail(ConnectionCause::Refused(Arc::new(reply))),
        }
    }

    fn ehlo_reply(&mut self, now: Instant, reply: PeerReply) {
        match reply.class() {
            ReplyClass::Success => {
                self.peer = Capabilities::from_ehlo(&reply);
                self.introduced(now);
            }
            // RFC 5321 section 3.2: a server without extensions knows HELO.  LMTP has none.
            ReplyClass::PermanentFailure if self.config.protocol == Protocol::Smtp => {
                self.hello(now, "HELO ", State::Helo)
            }
            ReplyClass::Intermediate => self.fail(ConnectionCause::Unexpected(Arc::new(reply))),
            _ => self.fail(ConnectionCause::Refused(Arc::new(reply))),
        }
    }

    fn helo_reply(&mut self, now: Instant, reply: PeerReply) {
        match reply.class() {
            ReplyClass::Success if self.config.starttls == StartTls::Demanded => {
                self.fail(ConnectionCause::Tls(TlsTrouble::NotOffered));
            }
            ReplyClass::Success => self.log_in(now),
            ReplyClass::Intermediate => self.fail(ConnectionCause::Unexpected(Arc::new(reply))),
            _ => self.fail(ConnectionCause::Refused(Arc::new(reply))),
        }
    }

    /// The peer has said what it can: is this the connection that we want?
    fn introduced(&mut self, now: Instant) {
        match (self.config.starttls, self.peer.starttls) {
            _ if self.is_secured => self.log_in(now),
            (StartTls::Never, _) | (StartTls::IfOffered, false) => self.log_in(now),
            (StartTls::IfOffered | StartTls::Demanded, true) => {
                self.output.extend_from_slice(b"STARTTLS\r\n");
                self.state = State::StartTls;
                self.deadline = Some(now + self.config.timeouts.command);
            }
            (StartTls::Demanded, false) => {
                self.fail(ConnectionCause::Tls(TlsTrouble::NotOffered));
            }
        }
    }

    fn starttls_reply(&mut self, reply: PeerReply) {
        match reply.class() {
            ReplyClass::Success => {
                self.state = State::Handshake;
                self.deadline = None;
                self.actions.push_back(ClientAction::StartTls);
            }
            ReplyClass::Intermediate => self.fail(ConnectionCause::Unexpected(Arc::new(reply))),
            _ => self.fail(ConnectionCause::Tls(TlsTrouble::Refused(Arc::new(reply)))),
        }
    }

    fn verb(&self) -> &'static str {
        match self.config.protocol {
            Protocol::Smtp => "EHLO ",
            Protocol::Lmtp => "LHLO ",
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
        self.state = State::Serving;
        self.deadline = None;
        self.actions.push_back(ClientAction::Ready);
    }

    // ---- transactions --------------------------------------------------------------------

    fn begin(&mut self, now: Instant, id: TransactionId, transaction: Transaction, manner: Manner) {
        let is_running = |one: &UnderWay| matches!(one, UnderWay::Running { .. });
        let follows_one_under_way = self.under_way.iter().any(is_running);
        let terms = Terms {
            form: self.body_form(),
            manner,
            protocol: self.config.protocol,
            follows_another: self.transactions > 0,
            reset_first: std::mem::take(&mut self.reset_first) || follows_one_under_way,
        };
        let exchange = Exchange::begin(transaction, terms, &self.peer, &mut self.output);
        self.transactions = self.transactions.saturating_add(1);
        if manner == Manner::OneFlight {
            self.send_body(id, &exchange);
        }
        let running = UnderWay::Running { id, exchange };
        match manner {
            Manner::OneFlight => self.under_way.push_back(running),
            // It has waited for its turn; what was declined meanwhile stands behind it.
            Manner::Strict => self.under_way.push_front(running),
        }
        if !follows_one_under_way {
            self.deadline = Some(now + self.config.timeouts.command);
        }
    }

    /// Tells what was decided before it began and begins what waits, where nothing is before it.
    fn take_turns(&mut self, now: Instant) {
        loop {
            match self.under_way.pop_front() {
                Some(UnderWay::Decided(result)) => self.withheld.push_back(result),
                // What the one before it brought may have ended the connection's use.
                Some(UnderWay::Waiting { id, transaction }) if !self.may_go_on() => {
                    let result = self.declined(id, &transaction);
                    self.withheld.push_back(result);
                }
                Some(UnderWay::Waiting { id, transaction }) => {
                    self.tell_all();
                    return self.begin(now, id, transaction, Manner::Strict);
                }
                Some(running) => {
                    self.under_way.push_front(running);
                    if self.suspicion.is_none() {
                        self.tell_all();
                    }
                    return;
                }
                None => return self.tell_all(),
            }
        }
    }

    /// Every reply that was owed has come, or there is no doubt: what ended is told.
    fn tell_all(&mut self) {
        self.suspicion = None;
        self.actions.extend(self.withheld.drain(..).map(ClientAction::TransactionDone));
    }

    /// Replies were owed after a refusal in one flight, and do not come.  A peer that threw away
    /// what came with it (against RFC 2920 section 3.2) has answered later commands in place of
    /// those, so that what seems taken or refused since may be neither: it is tried again.
    fn doubt_all(&mut self, cause: &ConnectionCause) {
        let cause = match cause {
            ConnectionCause::Refused(_) => ConnectionCause::Closed,
            other => other.clone(),
        };
        for result in &mut self.withheld {
            for outcome in &mut result.outcomes {
                let is_sure = match outcome {
                    RecipientOutcome::Deferred(_) | RecipientOutcome::Failed(Failure::Local(_)) => {
                        true
                    }
                    RecipientOutcome::Failed(Failure::Reply(StagedReply { reply, .. })) => {
                        let suspicion = self.suspicion.as_ref();
                        suspicion.is_some_and(|first| Arc::ptr_eq(first, reply))
                    }
                    RecipientOutcome::Delivered(_) => false,
                };
                if !is_sure {
                    let failure =
                        ConnectionFailure { stage: Stage::EndOfData, cause: cause.clone() };
                    *outcome = RecipientOutcome::Deferred(Deferral::Connection(failure));
                }
            }
            result.connection = AfterTransaction::MustClose;
        }
    }

    /// Does what the oldest exchange says.
    fn go_on(&mut self, now: Instant, next: Next) {
        match next {
            Next::Wait => self.deadline = Some(now + self.patience()),
            Next::SendBody => self.begin_body(now),
            Next::Finished(connection) => self.finish(now, connection),
            Next::Broken(cause) => self.fail(cause),
        }
    }

    fn begin_body(&mut self, now: Instant) {
        let Some(UnderWay::Running { id, exchange }) = self.under_way.pop_front() else { return };
        exchange.write_body_prefix(&mut self.output);
        self.send_body(id, &exchange);
        self.under_way.push_front(UnderWay::Running { id, exchange });
        self.deadline = Some(now + self.patience());
    }

    fn send_body(&mut self, id: TransactionId, exchange: &Exchange) {
        self.actions.push_back(ClientAction::SendBody {
            id,
            prefix: std::mem::take(&mut self.output),
            form: exchange.form(),
            suffix: exchange.body_suffix(),
        });
    }

    /// The oldest transaction went to its end.
    fn finish(&mut self, now: Instant, connection: AfterTransaction) {
        let Some(UnderWay::Running { id, exchange }) = self.under_way.pop_front() else { return };
        self.reset_first = exchange.reset_after;
        let strict = !exchange.is_one_flight();
        let outcomes = exchange.finish();
        let mut result = self.result(id, outcomes, connection);
        result.has_behaved = strict && self.body_form() == BodyForm::Bdat && self.peer.pipelining;
        result.has_behaved &=
            result.outcomes.iter().any(|outcome| matches!(outcome, RecipientOutcome::Delivered(_)));
        if result.has_behaved && self.config.one_flight == OneFlight::AfterOne {
            self.config.one_flight = OneFlight::AtOnce;
        }
        self.is_draining |= result.broken_promise.is_some();
        self.withheld.push_back(result);
        if connection == AfterTransaction::MustClose {
            return self.end(&ConnectionCause::Abandoned, None);
        }
        self.deadline = (!self.under_way.is_empty()).then(|| now + self.patience());
        self.take_turns(now);
    }

    /// Ends the connection where it stands.
    fn fail(&mut self, cause: ConnectionCause) {
        match self.state {
            State::Closed => {}
            State::Serving if !self.under_way.is_empty() => self.end(&cause, Some(0)),
            State::Quitting => self.close(),
            _ => {
                let failure = ConnectionFailure { stage: self.stage(), cause };
                self.actions.push_back(ClientAction::Failed(failure));
                self.close();
            }
        }
    }

    /// Ends the connection and every transaction under way.  `front` is the place of the one that
    /// the cause struck, if it is still among them.
    fn end(&mut self, cause: &ConnectionCause, front: Option<usize>) {
        // A body that the driver has not begun is not begun any more.
        self.actions.retain(|action| !matches!(action, ClientAction::SendBody { .. }));
        let confused =
            matches!(cause, ConnectionCause::Unexpected(_) | ConnectionCause::Malformed(_))
                || (self.suspicion.is_some() && matches!(cause, ConnectionCause::TimedOut));
        if self.suspicion.is_some() && !self.under_way.is_empty() {
            self.doubt_all(cause);
        }
        self.tell_all();
        self.state = State::Closed;
        for (place, one) in std::mem::take(&mut self.under_way).into_iter().enumerate() {
            let result = match one {
                UnderWay::Decided(result) => result,
                UnderWay::Waiting { id, transaction } => self.declined(id, &transaction),
                UnderWay::Running { id, exchange } => {
                    let one_flight = exchange.is_one_flight();
                    let outcomes = exchange.break_off(cause, Some(place) == front);
                    let mut result = self.result(id, outcomes, AfterTransaction::MustClose);
                    if one_flight && confused {
                        result.broken_promise.get_or_insert(BrokenPromise::OneFlight);
                    }
                    result
                }
            };
            self.actions.push_back(ClientAction::TransactionDone(TransactionResult {
                connection: AfterTransaction::MustClose,
                ..result
            }));
        }
        self.close();
    }

    fn close(&mut self) {
        self.state = State::Closed;
        self.deadline = None;
        self.output = Vec::new();
        self.actions.push_back(ClientAction::Close);
    }

    fn stage(&self) -> Stage {
        match (&self.state, self.under_way.front()) {
            (State::Greeting, _) => Stage::Greeting,
            (State::Ehlo | State::Helo, _) => Stage::Hello,
            (State::StartTls | State::Handshake, _) => Stage::StartTls,
            (State::Login(_) | State::LoginCancelled(_), _) => Stage::Login,
            (State::Serving, Some(UnderWay::Running { exchange, .. })) => exchange.stage(),
            (State::Serving | State::Closed, _) => Stage::Idle,
            (State::Quitting, _) => Stage::Quit,
        }
    }

    /// How long the peer may take for what comes next.
    fn patience(&self) -> Duration {
        let timeouts = &self.config.timeouts;
        match self.stage() {
            Stage::Body => timeouts.data.min(limits::CLIENT_DATA_BLOCK),
            Stage::EndOfData => timeouts.data,
            _ => timeouts.command,
        }
    }

    /// Whether this one may go out before any reply to it.
    fn goes_in_one_flight(&self, transaction: &Transaction) -> bool {
        self.config.one_flight == OneFlight::AtOnce
            && self.config.protocol == Protocol::Smtp
            && self.peer.pipelining
            && self.body_form() == BodyForm::Bdat
            && transaction.fits_one_flight()
    }

    /// Whether the peer can take this message at all.
    fn check(&self, transaction: &Transaction) -> Result<(), LocalRefusal> {
        let size_octets = transaction.size_octets;
        if let SizeOffer::AtMost { octets: limit_octets } = self.peer.size
            && !self.peer.size.allows(size_octets)
        {
            return Err(LocalRefusal::TooLarge { size_octets, limit_octets });
        }
        if transaction.envelope.parameters.smtputf8 && !self.peer.smtputf8 {
            return Err(LocalRefusal::NeedsSmtputf8);
        }
        // RFC 8689 section 4.2.1.  That the peer has proved its name is the site's policy, under
        // which such mail goes.  LMTP delivers, which ends the way.
        if transaction.envelope.parameters.require_tls
            && self.config.protocol == Protocol::Smtp
            && !(self.is_secured && self.peer.require_tls)
        {
            return Err(LocalRefusal::NeedsRequireTls);
        }
        if transaction.flags.contains(BodyFlags::EIGHT_BIT)
            && !self.peer.eight_bit_mime
            && self.config.eight_bit == EightBit::Bounce
        {
            return Err(LocalRefusal::NeedsEightBitMime);
        }
        let form = self.body_form();
        let bare = [BodyFlags::BARE_CR, BodyFlags::BARE_LF];
        if form == BodyForm::Data && bare.iter().any(|&flag| transaction.flags.contains(flag)) {
            return Err(LocalRefusal::BareNewlines);
        }
        Ok(())
    }

    /// A transaction that cannot begin on this connection.
    fn declined(&self, id: TransactionId, transaction: &Transaction) -> TransactionResult {
        let failure = ConnectionFailure { stage: Stage::Idle, cause: ConnectionCause::Closed };
        let outcome = RecipientOutcome::Deferred(Deferral::Connection(failure));
        let outcomes = vec![outcome; transaction.recipients.len()];
        let connection = match self.state {
            State::Closed => AfterTransaction::MustClose,
            _ => AfterTransaction::Usable,
        };
        self.result(id, outcomes, connection)
    }

    fn result(
        &self,
        id: TransactionId,
        outcomes: Vec<RecipientOutcome>,
        connection: AfterTransaction,
    ) -> TransactionResult {
        TransactionResult {
            id,
            broken_promise: broken_promise(&outcomes),
            outcomes,
            connection,
            peer_has_dsn: self.peer.dsn,
            has_behaved: false,
        }
    }
}

/// What the outcomes tell of the peer.
fn broken_promise(outcomes: &[RecipientOutcome]) -> Option<BrokenPromise> {
    outcomes.iter().find_map(|outcome| match outcome {
        RecipientOutcome::Deferred(Deferral::ChunkingRefused(_)) => Some(BrokenPromise::Chunking),
        RecipientOutcome::Deferred(Deferral::OneFlightRefused(_)) => Some(BrokenPromise::OneFlight),
        _ => None,
    })
}
