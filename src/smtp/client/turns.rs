//! Transactions that share a connection: whose turn it is, what the peer can take at all, what is
//! told when, and what becomes of all of them when the connection ends.

use std::sync::Arc;
use std::time::Instant;

use super::exchange::{Exchange, Manner, Next, Terms};
use super::{
    AfterTransaction, BrokenPromise, Client, ClientAction, ConnectionCause, ConnectionFailure,
    Deferral, Failure, LocalRefusal, OneFlight, PeerReply, Protocol, RecipientOutcome, Stage,
    StagedReply, State, Transaction, TransactionId, TransactionResult, UnderWay,
};
use crate::config::EightBit;
use crate::limits;
use crate::message::BodyFlags;
use crate::smtp::body::BodyForm;
use crate::smtp::capabilities::SizeOffer;

impl Client {
    pub(super) fn begin(
        &mut self,
        now: Instant,
        id: TransactionId,
        transaction: Transaction,
        manner: Manner,
    ) {
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
    pub(super) fn take_turns(&mut self, now: Instant) {
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
                None => return self.tell_or_confirm(now),
            }
        }
    }

    /// Nothing is under way.  As many replies have come as were owed, and yet where the peer lost
    /// count they need not be those to our commands: if it threw some away after its refusal it may
    /// have taken octets of a body for others.  Nothing follows on such a connection.  So we say
    /// good-bye now, and what has ended is told by the reply: only one in step answers QUIT with 221
    /// (RFC 5321 section 4.1.1.10).
    fn tell_or_confirm(&mut self, now: Instant) {
        match self.state {
            State::Confirming => {}
            State::Serving if self.suspicion.is_some() && self.is_draining => {
                self.say_quit(now, State::Confirming, limits::CLIENT_CONFIRMATION);
            }
            _ => self.tell_all(),
        }
    }

    /// The peer answers QUIT.
    pub(super) fn confirmed(&mut self, reply: PeerReply) {
        if reply.code.value() != 221 {
            return self.end(&ConnectionCause::Unexpected(Arc::new(reply)), None);
        }
        for result in &mut self.withheld {
            result.connection = AfterTransaction::MustClose;
        }
        self.tell_all();
        self.close();
    }

    /// Every reply that was owed has come, or there is no doubt: what ended is told.
    fn tell_all(&mut self) {
        self.suspicion = None;
        self.actions.extend(self.withheld.drain(..).map(ClientAction::TransactionDone));
    }

    /// Replies were owed after a refusal in one flight, and do not come, or not in step.  A peer
    /// that threw away what came with it (against RFC 2920 section 3.2) has answered later commands
    /// in place of those, so that what seems taken or refused since may be neither: all but the
    /// refusal itself is tried again.
    fn doubt_all(&mut self, cause: &ConnectionCause) {
        for result in &mut self.withheld {
            for outcome in &mut result.outcomes {
                let is_sure = match outcome {
                    RecipientOutcome::Deferred(Deferral::Connection(_))
                    | RecipientOutcome::Failed(Failure::Local(_)) => true,
                    RecipientOutcome::Deferred(
                        Deferral::Reply(StagedReply { reply, .. })
                        | Deferral::TooManyRecipients(reply)
                        | Deferral::ChunkingRefused(reply)
                        | Deferral::OneFlightRefused(reply),
                    )
                    | RecipientOutcome::Failed(Failure::Reply(StagedReply { reply, .. })) => {
                        self.suspicion.as_ref().is_some_and(|first| Arc::ptr_eq(first, reply))
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
    pub(super) fn go_on(&mut self, now: Instant, next: Next) {
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

    /// Ends the connection and every transaction under way.  `front` is the place of the one that
    /// the cause struck, if it is still among them.
    pub(super) fn end(&mut self, cause: &ConnectionCause, front: Option<usize>) {
        // A body that the driver has not begun is not begun any more.
        self.actions.retain(|action| !matches!(action, ClientAction::SendBody { .. }));
        let confused =
            matches!(cause, ConnectionCause::Unexpected(_) | ConnectionCause::Malformed(_))
                || (self.suspicion.is_some() && matches!(cause, ConnectionCause::TimedOut));
        // A last verdict in step vouches for those before it.
        let is_doubtful =
            self.suspicion.is_some() && (self.is_draining || !self.under_way.is_empty());
        let cause = match cause {
            // It may be the answer to another command than the one whose turn it is.
            ConnectionCause::Refused(reply) if is_doubtful => {
                &ConnectionCause::Unexpected(reply.clone())
            }
            cause => cause,
        };
        self.state = State::Closed;
        for (place, one) in std::mem::take(&mut self.under_way).into_iter().enumerate() {
            let mut result = match one {
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
            result.connection = AfterTransaction::MustClose;
            self.withheld.push_back(result);
        }
        if is_doubtful {
            self.doubt_all(cause);
        }
        self.tell_all();
        self.close();
    }

    /// Whether this one may go out before any reply to it.
    pub(super) fn goes_in_one_flight(&self, transaction: &Transaction) -> bool {
        self.config.one_flight == OneFlight::AtOnce
            && self.config.protocol == Protocol::Smtp
            && self.peer.pipelining
            && self.body_form() == BodyForm::Bdat
            && transaction.fits_one_flight()
    }

    /// Whether the peer can take this message at all.
    pub(super) fn check(&self, transaction: &Transaction) -> Result<(), LocalRefusal> {
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
    pub(super) fn declined(
        &self,
        id: TransactionId,
        transaction: &Transaction,
    ) -> TransactionResult {
        let failure = ConnectionFailure { stage: Stage::Idle, cause: ConnectionCause::Closed };
        let outcome = RecipientOutcome::Deferred(Deferral::Connection(failure));
        let outcomes = vec![outcome; transaction.recipients.len()];
        let connection = match self.state {
            State::Closed => AfterTransaction::MustClose,
            _ => AfterTransaction::Usable,
        };
        self.result(id, outcomes, connection)
    }

    pub(super) fn result(
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
