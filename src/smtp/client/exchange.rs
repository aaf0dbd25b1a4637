//! One mail transaction as the client sees it: which commands are out, which reply comes next,
//! what is known of each recipient.
//!
//! The commands have one order (RSET, MAIL, RCPT.., DATA), so two marks suffice: `awaited`, whose
//! reply comes next, and `unsent`, what goes out next.  Invariant: `awaited <= unsent`; they are
//! equal when nothing is outstanding.  With PIPELINING a group goes out at once, without it each
//! group is one command; nothing else differs (RFC 2920).
//!
//! In one flight everything is out from the start, the body too, and `unsent` stands at the end.
//! Two things follow.  When nobody was taken, the reply to BDAT is an echo of that and decides
//! nothing.  And a reply about the order of commands says that the peer lost count, perhaps at
//! the message before: it never bounces a message, which goes the strict way instead.
//!
//! LMTP (RFC 2033) differs in [`Exchange::end_of_data`]: one reply for each accepted recipient.

use std::sync::Arc;

use crate::limits;
use crate::smtp::capabilities::Capabilities;
use crate::smtp::code::ReplyClass::{Intermediate, PermanentFailure, Success, TransientFailure};
use crate::smtp::reply_reader::PeerReply;

use super::envelope::{write_mail, write_rcpt};
use super::result::{
    AfterTransaction, ConnectionCause, ConnectionFailure, Deferral, Failure, RecipientOutcome,
    Stage, StagedReply,
};
use super::settings::{Protocol, Transaction};
use crate::smtp::body::{BodyForm, data_ending};

/// A transaction that has begun.
#[derive(Debug)]
pub(super) struct Exchange {
    transaction: Transaction,
    form: BodyForm,
    manner: Manner,
    protocol: Protocol,
    /// Whether the connection has carried a transaction before.
    follows_another: bool,
    awaited: Step,
    unsent: Step,
    /// One for each recipient of the transaction.
    places: Vec<Place>,
    /// How many of `places` are [`Place::Accepted`].
    accepted: usize,
    /// The driver has written the last octet of the body and of what ends it.
    body_written: bool,
    /// Places before this one have their reply to the end of data (LMTP).
    answered: usize,
    /// Whether the peer holds a transaction open that RSET must end.
    pub(super) reset_after: bool,
}

/// How a transaction goes out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Manner {
    /// The body after the replies to the envelope.
    Strict,
    /// Envelope and body at once.
    OneFlight,
}

/// What an exchange is begun with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Terms {
    pub(super) form: BodyForm,
    pub(super) manner: Manner,
    pub(super) protocol: Protocol,
    /// Whether the connection has carried a transaction before.
    pub(super) follows_another: bool,
    /// Whether it begins with RSET.
    pub(super) reset_first: bool,
}

/// The steps in their order.  `Rcpt` counts the transaction's recipients; the body begins where
/// the steps of the envelope end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Reset,
    Mail,
    Rcpt(usize),
    Data,
    /// A 354 with no recipient left: the dot goes out by itself.
    LoneDot,
    /// The body is going out, or is about to.
    Body,
    EndOfData,
    /// In one flight: the last reply came early, the body is still going out.
    Drain,
}

/// What is known of a recipient.
#[derive(Debug)]
enum Place {
    Undecided,
    /// RCPT got 2xx.
    Accepted,
    /// RCPT got "too many recipients".
    TooMany(Arc<PeerReply>),
    Decided(RecipientOutcome),
}

/// What the connection does after a reply.
#[derive(Debug)]
pub(super) enum Next {
    /// Wait for the next reply; the output may have grown.
    Wait,
    /// Send the body.
    SendBody,
    /// The transaction is over.
    Finished(AfterTransaction),
    /// The connection is over.
    Broken(ConnectionCause),
}

impl Exchange {
    /// Begins a transaction and writes its first group to `out`; in one flight, all of it up to
    /// the body.
    pub(super) fn begin(
        transaction: Transaction,
        terms: Terms,
        peer: &Capabilities,
        out: &mut Vec<u8>,
    ) -> Exchange {
        let first = if terms.reset_first { Step::Reset } else { Step::Mail };
        let places = (0..transaction.recipients.len()).map(|_| Place::Undecided).collect();
        let mut exchange = Exchange {
            transaction,
            form: terms.form,
            manner: terms.manner,
            protocol: terms.protocol,
            follows_another: terms.follows_another,
            awaited: first,
            unsent: first,
            places,
            accepted: 0,
            body_written: false,
            answered: 0,
            reset_after: false,
        };
        exchange.send_group(peer, out);
        if terms.manner == Manner::OneFlight {
            exchange.write_body_prefix(out);
            exchange.unsent = Step::Drain;
        }
        exchange
    }

    /// Takes the reply to the step that is awaited.  421 is the connection's matter and does not
    /// come here.
    pub(super) fn handle_reply(
        &mut self,
        reply: PeerReply,
        peer: &Capabilities,
        out: &mut Vec<u8>,
    ) -> Next {
        match (self.awaited, reply.class()) {
            (Step::Reset, Success) => self.proceed(Step::Mail, peer, out),
            (Step::Reset, _) if self.loses_count(&reply) => {
                self.lose_count(reply);
                self.proceed(Step::Mail, peer, out)
            }
            (Step::Mail, Success) => {
                self.reset_after = true;
                self.proceed(Step::Rcpt(0), peer, out)
            }
            (Step::Mail, _) if self.loses_count(&reply) => {
                self.lose_count(reply);
                self.proceed(Step::Rcpt(0), peer, out)
            }
            // It does not know MAIL?  It takes something else for it.
            (Step::Mail, _) if self.is_one_flight() && is_unknown_command(&reply) => broken(reply),
            // The peer takes another transaction to be open: its view of the connection is
            // wrong, and no message may bounce for that.
            (Step::Mail, _) if reply.code.value() == 503 && self.follows_another => broken(reply),
            (Step::Mail, TransientFailure | PermanentFailure) => {
                self.refuse_all(Stage::Mail, reply);
                self.proceed(Step::Rcpt(0), peer, out)
            }
            (Step::Rcpt(place), _)
                if self.is_one_flight()
                    && is_unknown_command(&reply)
                    && matches!(self.places[place], Place::Undecided) =>
            {
                broken(reply)
            }
            (Step::Rcpt(place), Success | TransientFailure | PermanentFailure) => {
                self.rcpt_reply(place, reply);
                self.proceed(self.after_rcpt(place), peer, out)
            }
            (Step::Data, Intermediate) if self.accepted > 0 => self.begin_body(),
            (Step::Data, Intermediate) => {
                out.extend_from_slice(b".\r\n");
                self.awaited = Step::LoneDot;
                Next::Wait
            }
            // 503 is about the order of commands, and the peer took a recipient: it contradicts
            // itself, so this connection is worth nothing and the message is not to blame.
            (Step::Data, _) if reply.code.value() == 503 && self.accepted > 0 => broken(reply),
            (Step::Data, TransientFailure | PermanentFailure) => {
                self.refuse_all(Stage::Data, reply);
                Next::Finished(AfterTransaction::Usable)
            }
            (Step::LoneDot, Success | TransientFailure | PermanentFailure) => {
                self.reset_after = true;
                Next::Finished(AfterTransaction::Usable)
            }
            (Step::Body | Step::EndOfData, _) if self.is_one_flight() && self.accepted == 0 => {
                self.echo(reply)
            }
            (Step::Body | Step::EndOfData, PermanentFailure) if self.refuses_chunking(&reply) => {
                let lost_count = self.loses_count(&reply);
                let reply = Arc::new(reply);
                self.decide_accepted(|| {
                    RecipientOutcome::Deferred(if lost_count {
                        Deferral::OneFlightRefused(reply.clone())
                    } else {
                        Deferral::ChunkingRefused(reply.clone())
                    })
                });
                Next::Finished(AfterTransaction::MustClose)
            }
            // The verdict is clear, but the peer stopped listening in the middle: what of the
            // body it will take for commands nobody knows.
            (Step::Body, TransientFailure | PermanentFailure) => {
                self.refuse_all(Stage::Body, reply);
                Next::Finished(AfterTransaction::MustClose)
            }
            (Step::EndOfData, Success | TransientFailure | PermanentFailure) => {
                self.end_of_data(reply)
            }
            // Among them a 2xx while the body is being sent: the peer saw an end of data in the
            // middle of it, and takes the rest for commands.
            _ => broken(reply),
        }
    }

    /// The driver has written the body to its end.
    pub(super) fn body_sent(&mut self) -> Next {
        self.body_written = true;
        match self.awaited {
            Step::Body => self.awaited = Step::EndOfData,
            Step::Drain => return Next::Finished(AfterTransaction::Usable),
            _ => {}
        }
        Next::Wait
    }

    /// Whether the body is going out, or is about to.
    pub(super) fn is_sending_body(&self) -> bool {
        !self.body_written && (self.is_one_flight() || self.awaited == Step::Body)
    }

    /// Whether all of it is sent before any reply.
    pub(super) fn is_one_flight(&self) -> bool {
        self.manner == Manner::OneFlight
    }

    /// What the peer said to the first recipient, of those in their order, that it has refused.
    pub(super) fn refusal(&self) -> Option<&Arc<PeerReply>> {
        self.places.iter().find_map(|place| match place {
            Place::TooMany(reply) => Some(reply),
            Place::Decided(
                RecipientOutcome::Failed(Failure::Reply(StagedReply { reply, .. }))
                | RecipientOutcome::Deferred(
                    Deferral::Reply(StagedReply { reply, .. })
                    | Deferral::OneFlightRefused(reply)
                    | Deferral::ChunkingRefused(reply)
                    | Deferral::TooManyRecipients(reply),
                ),
            ) => Some(reply),
            _ => None,
        })
    }

    /// What the next reply answers.
    pub(super) fn stage(&self) -> Stage {
        match self.awaited {
            Step::Reset => Stage::Reset,
            Step::Mail => Stage::Mail,
            Step::Rcpt(_) => Stage::Rcpt,
            Step::Data | Step::LoneDot => Stage::Data,
            Step::Body | Step::Drain => Stage::Body,
            Step::EndOfData => Stage::EndOfData,
        }
    }

    /// Octets that come before the body in the same write: the BDAT command (RFC 3030).
    pub(super) fn write_body_prefix(&self, out: &mut Vec<u8>) {
        if self.form == BodyForm::Bdat {
            out.extend_from_slice(b"BDAT ");
            out.extend_from_slice(self.transaction.size_octets.to_string().as_bytes());
            out.extend_from_slice(b" LAST\r\n");
        }
    }

    /// Octets that come after the body in the same write: the end of data.
    pub(super) fn body_suffix(&self) -> &'static [u8] {
        match self.form {
            BodyForm::Data => data_ending(self.transaction.flags),
            BodyForm::Bdat => b"",
        }
    }

    /// How the body goes out.
    pub(super) fn form(&self) -> BodyForm {
        self.form
    }

    /// The outcomes when the exchange went to its end.
    pub(super) fn finish(self) -> Vec<RecipientOutcome> {
        // "Too many" means one thing if others were taken.  Of a first recipient it means that
        // the peer takes none now, and an immediate next transaction would come back for ever.
        let some_accepted = self.accepted > 0;
        let outcomes = self.places.into_iter().map(|place| match place {
            Place::Decided(outcome) => outcome,
            Place::TooMany(reply) if some_accepted => {
                RecipientOutcome::Deferred(Deferral::TooManyRecipients(reply))
            }
            Place::TooMany(reply) => RecipientOutcome::Deferred(Deferral::Reply(StagedReply {
                stage: Stage::Rcpt,
                reply,
            })),
            Place::Undecided | Place::Accepted => {
                unreachable!("an exchange ends after a verdict on every recipient")
            }
        });
        outcomes.collect()
    }

    /// The outcomes when the connection failed first: what the peer decided stands, the rest is
    /// deferred.  `is_front` says that the next reply would have been this transaction's.
    pub(super) fn break_off(
        mut self,
        cause: &ConnectionCause,
        is_front: bool,
    ) -> Vec<RecipientOutcome> {
        let stage = self.stage_of_break(cause, is_front);
        for place in &mut self.places {
            if matches!(place, Place::Undecided | Place::Accepted) {
                let failure = ConnectionFailure { stage, cause: cause.clone() };
                *place = Place::Decided(RecipientOutcome::Deferred(Deferral::Connection(failure)));
            }
        }
        self.finish()
    }

    /// Where a transaction stood when its connection failed, seen from the message: one that went
    /// out to its last octet may have been taken, and one that did not has not begun.
    fn stage_of_break(&self, cause: &ConnectionCause, is_front: bool) -> Stage {
        if !self.is_one_flight() {
            return self.stage();
        }
        let decided = |place: &Place| !matches!(place, Place::Undecided | Place::Accepted);
        match cause {
            // After 421 the peer does nothing more (RFC 5321 section 3.8).
            ConnectionCause::Refused(_) if is_front => self.stage(),
            ConnectionCause::Refused(_) => Stage::Idle,
            // It claims to have it.
            ConnectionCause::Unexpected(_) if is_front && self.awaited == Step::Body => Stage::Body,
            _ if self.body_written => Stage::EndOfData,
            _ if self.places.iter().any(decided) => Stage::Body,
            _ => Stage::Idle,
        }
    }

    /// Goes on to the step after the one that was answered.
    fn proceed(&mut self, next: Step, peer: &Capabilities, out: &mut Vec<u8>) -> Next {
        self.awaited = if next == Step::Body && self.body_written { Step::EndOfData } else { next };
        if self.awaited < self.unsent {
            return Next::Wait;
        }
        // Nothing is outstanding.
        let undecided = self.places.iter().any(|place| matches!(place, Place::Undecided));
        if self.accepted == 0 && !undecided {
            return Next::Finished(AfterTransaction::Usable);
        }
        if next == Step::Body {
            return self.begin_body();
        }
        self.send_group(peer, out);
        Next::Wait
    }

    /// Writes commands up to the group's bound; one command where the peer does not pipeline.
    fn send_group(&mut self, peer: &Capabilities, out: &mut Vec<u8>) {
        let begin = out.len();
        loop {
            match self.unsent {
                Step::Reset => {
                    out.extend_from_slice(b"RSET\r\n");
                    self.unsent = Step::Mail;
                }
                Step::Mail => {
                    write_mail(out, &self.transaction, peer);
                    self.unsent = Step::Rcpt(0);
                }
                Step::Rcpt(place) => {
                    write_rcpt(out, &self.transaction, peer, place);
                    self.unsent = self.after_rcpt(place);
                }
                Step::Data => {
                    out.extend_from_slice(b"DATA\r\n");
                    self.unsent = Step::LoneDot;
                }
                Step::LoneDot | Step::Body | Step::EndOfData | Step::Drain => return,
            }
            let is_full = out.len() - begin >= limits::CLIENT_GROUP && !self.is_one_flight();
            if !peer.pipelining || is_full {
                return;
            }
        }
    }

    fn after_rcpt(&self, place: usize) -> Step {
        match self.form {
            _ if place + 1 < self.places.len() => Step::Rcpt(place + 1),
            BodyForm::Data => Step::Data,
            BodyForm::Bdat => Step::Body,
        }
    }

    fn rcpt_reply(&mut self, place: usize, reply: PeerReply) {
        let lost_count = self.loses_count(&reply);
        let place = &mut self.places[place];
        // After a refused MAIL the verdict stands, whatever the peer says to RCPT.
        if !matches!(place, Place::Undecided) {
            return;
        }
        if reply.class() == Success {
            *place = Place::Accepted;
            self.accepted += 1;
        } else if lost_count {
            *place = Place::Decided(RecipientOutcome::Deferred(Deferral::OneFlightRefused(
                Arc::new(reply),
            )));
        } else if means_too_many(&reply) {
            *place = Place::TooMany(Arc::new(reply));
        } else {
            *place = Place::Decided(refusal(Stage::Rcpt, Arc::new(reply)));
        }
    }

    /// Whether a reply in one flight says that the peer lost count of the commands.
    fn loses_count(&self, reply: &PeerReply) -> bool {
        self.is_one_flight() && reply.code.value() == 503
    }

    /// Nothing of this transaction is to be judged by the peer's words any more.  Its replies are
    /// still awaited, so that those to the next one are not taken for them.
    fn lose_count(&mut self, reply: PeerReply) {
        let reply = Arc::new(reply);
        for place in &mut self.places {
            if matches!(place, Place::Undecided) {
                let deferral = Deferral::OneFlightRefused(reply.clone());
                *place = Place::Decided(RecipientOutcome::Deferred(deferral));
            }
        }
    }

    /// The reply to a body that was out before its envelope was refused: it decides nothing.
    fn echo(&mut self, reply: PeerReply) -> Next {
        match (self.awaited, reply.class()) {
            (Step::EndOfData, Success) if self.is_out_of_step() => {
                self.take_all_the_same(&reply);
                broken(reply)
            }
            (_, Intermediate) | (Step::Body, Success) => broken(reply),
            // The body has to go out to its end all the same: the peer counts its octets.
            (Step::Body, _) => {
                self.awaited = Step::Drain;
                Next::Wait
            }
            _ => Next::Finished(AfterTransaction::Usable),
        }
    }

    fn is_out_of_step(&self) -> bool {
        self.places.iter().any(|place| {
            matches!(
                place,
                Place::Decided(RecipientOutcome::Deferred(Deferral::OneFlightRefused(_)))
            )
        })
    }

    /// The peer lost count and yet took a message, which may have been this one.
    fn take_all_the_same(&mut self, reply: &PeerReply) {
        let cause = ConnectionCause::Unexpected(Arc::new(reply.clone()));
        let failure = ConnectionFailure { stage: Stage::EndOfData, cause };
        for place in &mut self.places {
            if let Place::Decided(RecipientOutcome::Deferred(deferral)) = place
                && matches!(deferral, Deferral::OneFlightRefused(_))
            {
                *deferral = Deferral::Connection(failure.clone());
            }
        }
    }

    fn begin_body(&mut self) -> Next {
        self.awaited = Step::Body;
        Next::SendBody
    }

    fn end_of_data(&mut self, reply: PeerReply) -> Next {
        if reply.class() == Success {
            self.reset_after = false;
        }
        let reply = Arc::new(reply);
        let outcome = || match reply.class() {
            Success => RecipientOutcome::Delivered(reply.clone()),
            _ => refusal(Stage::EndOfData, reply.clone()),
        };
        match self.protocol {
            Protocol::Smtp => self.decide_accepted(outcome),
            // RFC 2033 section 4.2: in the order of RCPT, for those that were accepted.
            Protocol::Lmtp => {
                if let Some(place) = self.next_accepted() {
                    self.places[place] = Place::Decided(outcome());
                    self.answered = place + 1;
                }
                if self.next_accepted().is_some() {
                    return Next::Wait;
                }
            }
        }
        Next::Finished(AfterTransaction::Usable)
    }

    /// The recipient whose reply to the end of data comes next (LMTP).
    fn next_accepted(&self) -> Option<usize> {
        let mut rest = self.places[self.answered..].iter();
        rest.position(|place| matches!(place, Place::Accepted)).map(|place| self.answered + place)
    }

    /// A peer that does not know BDAT may have taken the body for commands, so its connection
    /// is of no more use.  503 is how some gateways name a command that they strip.
    fn refuses_chunking(&self, reply: &PeerReply) -> bool {
        self.form == BodyForm::Bdat
            && self.answered == 0
            && matches!(reply.code.value(), 500 | 502 | 503)
    }

    /// Decides everybody who is not decided yet by one refusing reply.
    fn refuse_all(&mut self, stage: Stage, reply: PeerReply) {
        let reply = Arc::new(reply);
        for place in &mut self.places {
            if matches!(place, Place::Undecided | Place::Accepted) {
                *place = Place::Decided(refusal(stage, reply.clone()));
            }
        }
    }

    fn decide_accepted(&mut self, outcome: impl Fn() -> RecipientOutcome) {
        for place in &mut self.places {
            if matches!(place, Place::Accepted) {
                *place = Place::Decided(outcome());
            }
        }
    }
}

/// Whether the peer says that it has never heard of what it was asked.
fn is_unknown_command(reply: &PeerReply) -> bool {
    matches!(reply.code.value(), 500 | 502)
}

/// A reply that is none in its place.
fn broken(reply: PeerReply) -> Next {
    Next::Broken(ConnectionCause::Unexpected(Arc::new(reply)))
}

/// A 4xx or 5xx as a verdict.
fn refusal(stage: Stage, reply: Arc<PeerReply>) -> RecipientOutcome {
    // 552 to RCPT is what older servers say for 452 (RFC 5321 section 4.5.3.1.10).
    let temporary =
        reply.class() == TransientFailure || means_too_many(&reply) && stage == Stage::Rcpt;
    let staged = StagedReply { stage, reply };
    if temporary {
        RecipientOutcome::Deferred(Deferral::Reply(staged))
    } else {
        RecipientOutcome::Failed(Failure::Reply(staged))
    }
}

/// Whether a reply to RCPT limits the number of recipients.  An enhanced code decides where
/// there is one (X.5.3, RFC 3463): 452 4.2.2 is a full mailbox, and so is 552 5.2.2.
fn means_too_many(reply: &PeerReply) -> bool {
    match reply.enhanced {
        Some(enhanced) => (enhanced.subject(), enhanced.detail()) == (5, 3),
        None => matches!(reply.code.value(), 452 | 552),
    }
}
