//! One mail transaction, in each of the ways in which a plan may want it (RFC 5321 section 3.3,
//! RFC 2920, RFC 3030).
//!
//! Everything that can be known before is prepared before: the envelope in one buffer, the
//! message in a draft of which only the id is new.  What belongs together leaves in one write.

use std::time::Instant;

use monoio::buf::IoBuf;

use super::connection::{Broken, Connection};
use super::plan::Conduct;
use super::worker::Worker;
use crate::ledger::record::add_recipient;
use crate::message::MessageId;
use crate::report::tally::Step;
use crate::wire::reply::Reply;

/// What became of a message.
#[derive(Debug)]
pub enum Outcome {
    /// The final reply was 2xx, and came at this moment.
    Acknowledged(Instant),
    /// The envelope was taken and left, as the plan wants it.
    Abandoned,
    /// Some reply was neither 2xx nor 354.
    Refused {
        /// What it was the reply to.
        at: Step,
        /// That reply's code.
        code: u16,
        /// That reply.
        text: String,
        /// Whether the whole message had been sent.
        sent: bool,
    },
    /// The connection is of no more use.
    Broken {
        /// Why.
        error: Broken,
        /// Whether the whole message may have been received.
        sent: bool,
        /// Whether any reply came before.
        heard: bool,
    },
}

/// A transaction that is under way.
pub struct Transaction {
    /// Names the message.
    pub id: MessageId,
    /// Recipients that the server accepted.
    pub recipients: u16,
    /// The sum of their hashes; 0 where no books are kept.
    pub recipients_sum: u32,
    template: usize,
    octets: u64,
    /// MAIL and RCPT, and where each command ends.
    envelope: Vec<u8>,
    ends: Vec<usize>,
    /// When the envelope left, if it left with the message before this one.
    envelope_sent_at: Option<Instant>,
    /// How far it has got: what a break means depends on it.
    sent: bool,
    heard: bool,
}

/// A transaction that ended before its time.
enum Stop {
    Broken(Broken),
    /// This reply, to that step; whether the server is still in the transaction.
    Refused(Step, Reply, InTransaction),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum InTransaction {
    Yes,
    No,
}

impl<E: Into<Broken>> From<E> for Stop {
    fn from(error: E) -> Stop {
        Stop::Broken(error.into())
    }
}

impl Transaction {
    /// Chooses the message and its envelope.
    pub fn new(worker: &Worker, id: MessageId, number: u64) -> Transaction {
        let plan = &worker.plan;
        let mut random = worker.random();
        let mut envelope = Vec::with_capacity(128);
        let mut ends = Vec::with_capacity(plan.recipient_count as usize + 1);
        envelope.extend_from_slice(b"MAIL FROM:<");
        plan.senders.choose(&mut random).write(number, &mut random, &mut envelope);
        envelope.extend_from_slice(b">\r\n");
        ends.push(envelope.len());
        for _ in 0..plan.recipient_count {
            envelope.extend_from_slice(RCPT);
            plan.recipients.choose(&mut random).write(number, &mut random, &mut envelope);
            envelope.extend_from_slice(b">\r\n");
            ends.push(envelope.len());
        }
        let template = plan.templates.choose_place(&mut random);
        let octets = plan.templates.choices()[template].wire_length() as u64;
        Transaction {
            id,
            recipients: 0,
            recipients_sum: 0,
            template,
            octets,
            envelope,
            ends,
            envelope_sent_at: None,
            sent: false,
            heard: false,
        }
    }

    /// Octets of the message on the wire.
    pub fn octets(&self) -> u64 {
        self.octets
    }

    /// When the envelope left, if it left with the message before this one.
    pub fn envelope_sent_at(&self) -> Option<Instant> {
        self.envelope_sent_at
    }

    /// The connection that the envelope was sent on is gone.
    pub fn forget_connection(&mut self) {
        self.envelope_sent_at = None;
    }

    /// Runs it to its end; the envelope of `next` leaves with the end of the message.
    pub async fn run(
        &mut self,
        worker: &Worker,
        connection: &mut Connection,
        next: Option<&mut Transaction>,
    ) -> Outcome {
        let ran = match worker.plan.conduct {
            Conduct::Plain => self.plain(worker, connection).await,
            Conduct::Pipelined | Conduct::Ahead => self.pipelined(worker, connection, next).await,
            Conduct::Chunk | Conduct::PipelinedChunk => self.chunk(worker, connection).await,
            Conduct::Flight => self.flight(worker, connection).await,
        };
        match ran {
            Ok(outcome) => outcome,
            Err(Stop::Broken(error)) => {
                Outcome::Broken { error, sent: self.sent, heard: self.heard }
            }
            Err(Stop::Refused(at, reply, state)) => {
                let text = connection.text(&reply);
                if state == InTransaction::Yes
                    && reply.code != 421
                    && let Err(error) = self.leave(worker, connection).await
                {
                    return Outcome::Broken { error, sent: self.sent, heard: true };
                }
                Outcome::Refused { at, code: reply.code, text, sent: self.sent }
            }
        }
    }

    async fn plain(
        &mut self,
        worker: &Worker,
        connection: &mut Connection,
    ) -> Result<Outcome, Stop> {
        self.envelope_in_turn(worker, connection).await?;
        if worker.plan.manners.no_data {
            self.leave(worker, connection).await?;
            return Ok(Outcome::Abandoned);
        }
        connection.commands.extend_from_slice(b"DATA\r\n");
        let begun = connection.send_commands().await?;
        let reply = connection.reply().await?;
        worker.tally().took(Step::Data, begun.elapsed());
        if reply.code != 354 {
            return Err(Stop::Refused(Step::Data, reply, InTransaction::Yes));
        }
        self.message(worker, connection, false, None).await
    }

    /// MAIL and RCPT, each after the reply to the one before.
    async fn envelope_in_turn(
        &mut self,
        worker: &Worker,
        connection: &mut Connection,
    ) -> Result<(), Stop> {
        let mut refused = None;
        for place in 0..self.ends.len() {
            connection.commands.extend_from_slice(self.command(place));
            let begun = connection.send_commands().await?;
            let reply = connection.reply().await?;
            self.judge(worker, place, begun, reply, &mut refused)?;
        }
        self.check_recipients(refused, InTransaction::Yes)
    }

    async fn pipelined(
        &mut self,
        worker: &Worker,
        connection: &mut Connection,
        next: Option<&mut Transaction>,
    ) -> Result<Outcome, Stop> {
        let begun = match self.envelope_sent_at {
            Some(begun) => {
                connection.hurry(Instant::now());
                begun
            }
            None => {
                connection.commands.extend_from_slice(&self.envelope);
                connection.commands.extend_from_slice(DATA);
                connection.send_commands().await?
            }
        };
        let envelope = self.envelope_replies(worker, connection, begun).await;
        let envelope = still_open(envelope)?;
        let reply = connection.reply().await?;
        worker.tally().took(Step::Data, begun.elapsed());
        match envelope {
            Ok(()) if reply.code != 354 => {
                Err(Stop::Refused(Step::Data, reply, InTransaction::Yes))
            }
            Ok(()) => self.message(worker, connection, false, next).await,
            Err(stop) if reply.code == 354 => {
                // Nobody would get it: the data must be ended, and will be refused.
                connection.commands.extend_from_slice(b".\r\n");
                connection.send_commands().await?;
                connection.reply().await?;
                Err(stop)
            }
            Err(stop) => Err(stop),
        }
    }

    async fn chunk(
        &mut self,
        worker: &Worker,
        connection: &mut Connection,
    ) -> Result<Outcome, Stop> {
        if worker.plan.conduct.is_pipelined() {
            connection.commands.extend_from_slice(&self.envelope);
            let begun = connection.send_commands().await?;
            self.envelope_replies(worker, connection, begun).await?;
        } else {
            self.envelope_in_turn(worker, connection).await?;
        }
        if worker.plan.manners.no_data {
            self.leave(worker, connection).await?;
            return Ok(Outcome::Abandoned);
        }
        self.message(worker, connection, false, None).await
    }

    async fn flight(
        &mut self,
        worker: &Worker,
        connection: &mut Connection,
    ) -> Result<Outcome, Stop> {
        self.message(worker, connection, true, None).await
    }

    /// The replies to MAIL and RCPT that were sent together at `begun`.
    async fn envelope_replies(
        &mut self,
        worker: &Worker,
        connection: &mut Connection,
        begun: Instant,
    ) -> Result<(), Stop> {
        let (mut refused, mut mail_refused) = (None, None);
        for place in 0..self.ends.len() {
            let reply = connection.reply().await?;
            match self.judge(worker, place, begun, reply, &mut refused) {
                // The recipients' replies are on their way nevertheless, unless it was 421.
                Err(Stop::Refused(_, reply, _)) if reply.code != 421 => mail_refused = Some(reply),
                other => other?,
            }
        }
        match mail_refused {
            Some(reply) => Err(Stop::Refused(Step::Mail, reply, InTransaction::No)),
            None => self.check_recipients(refused, InTransaction::Yes),
        }
    }

    /// Takes the reply to the envelope's command at `place`.
    fn judge(
        &mut self,
        worker: &Worker,
        place: usize,
        begun: Instant,
        reply: Reply,
        refused: &mut Option<Reply>,
    ) -> Result<(), Stop> {
        self.heard = true;
        let step = if place == 0 { Step::Mail } else { Step::Rcpt };
        worker.tally().took(step, begun.elapsed());
        match (place, reply.is_positive()) {
            (0, true) => {}
            (0, false) => return Err(Stop::Refused(step, reply, InTransaction::No)),
            (_, true) => self.accepted(worker, place),
            (_, false) if reply.code == 421 => {
                return Err(Stop::Refused(step, reply, InTransaction::No));
            }
            (_, false) => {
                worker.tally().counts.recipients_refused += 1;
                refused.get_or_insert(reply);
            }
        }
        Ok(())
    }

    fn accepted(&mut self, worker: &Worker, place: usize) {
        self.recipients += 1;
        if worker.ledger().is_some() {
            let command = self.command(place);
            let path = &command[RCPT.len()..command.len() - b">\r\n".len()];
            self.recipients_sum = add_recipient(self.recipients_sum, path);
        }
    }

    /// Without a recipient the transaction is refused by the first reply that refused one.
    fn check_recipients(&self, refused: Option<Reply>, state: InTransaction) -> Result<(), Stop> {
        match refused {
            Some(reply) if self.recipients == 0 => Err(Stop::Refused(Step::Rcpt, reply, state)),
            _ => Ok(()),
        }
    }

    fn command(&self, place: usize) -> &[u8] {
        let begin = if place == 0 { 0 } else { self.ends[place - 1] };
        &self.envelope[begin..self.ends[place]]
    }

    /// The message itself, with the BDAT and, in one flight, the envelope right before it, and
    /// right behind it the envelope of `next` (not if the message takes more than one write
    /// anyway); then the replies to what was sent.
    async fn message(
        &mut self,
        worker: &Worker,
        connection: &mut Connection,
        in_flight: bool,
        next: Option<&mut Transaction>,
    ) -> Result<Outcome, Stop> {
        let template = &worker.plan.templates.choices()[self.template];
        let mut draft = worker.draft(self.template);
        template.stamp(&mut draft, self.id);
        let mut begin = draft.room;
        let mut prepend = |bytes: &[u8]| {
            begin -= bytes.len();
            draft.bytes[begin..begin + bytes.len()].copy_from_slice(bytes);
        };
        if worker.plan.conduct.framing() == crate::message::template::Framing::Bdat {
            prepend(format!("BDAT {} LAST\r\n", template.wire_length()).as_bytes());
        }
        if in_flight {
            prepend(&self.envelope);
        }
        let begun = Instant::now();
        connection.hurry(begun);
        let end = draft.bytes.len();
        if let Some(next) = next.filter(|_| template.shared().is_empty()) {
            draft.bytes.extend_from_slice(&next.envelope);
            draft.bytes.extend_from_slice(DATA);
            next.envelope_sent_at = Some(begun);
        }
        let trickle = worker.plan.manners.trickle;
        // From here on the server may have all of it, for all that we know.
        self.sent = true;
        let piece = draft.bytes.slice(begin..);
        let is_all = template.shared().is_empty();
        let (mut result, piece) = match trickle {
            None if is_all => connection.exchange(piece).await,
            None => connection.send(piece).await,
            Some(trickle) => connection.trickle(piece, trickle).await,
        };
        draft.bytes = piece.into_inner();
        draft.bytes.truncate(end);
        worker.give_back(self.template, draft);
        if result.is_ok() && !is_all {
            let shared = template.shared().clone();
            result = match trickle {
                None => connection.exchange(shared).await.0,
                Some(trickle) => connection.trickle(shared, trickle).await.0,
            };
        }
        result?;
        let begun = if trickle.is_some() { Instant::now() } else { begun };
        let envelope = match in_flight {
            true => self.envelope_replies(worker, connection, begun).await,
            false => Ok(()),
        };
        let envelope = still_open(envelope)?;
        let reply = connection.reply().await?;
        let now = Instant::now();
        worker.tally().took(Step::Message, now - begun);
        match envelope {
            // The reply to BDAT only says that there was nothing to send to.
            Err(stop) => Err(stop),
            Ok(()) if reply.is_positive() => Ok(Outcome::Acknowledged(now)),
            Ok(()) => Err(Stop::Refused(Step::Message, reply, InTransaction::No)),
        }
    }

    /// Gives the transaction up.  On a connection that is used up QUIT does that.
    async fn leave(&self, worker: &Worker, connection: &mut Connection) -> Result<(), Broken> {
        if connection.messages >= worker.plan.per_connection {
            return Ok(());
        }
        connection.commands.extend_from_slice(b"RSET\r\n");
        connection.send_commands().await?;
        connection.reply().await?;
        Ok(())
    }
}

/// Passes an outcome of the envelope on unless it ended the connection: no more replies come then.
fn still_open(envelope: Result<(), Stop>) -> Result<Result<(), Stop>, Stop> {
    match envelope {
        Err(Stop::Refused(at, reply, state)) if reply.code != 421 => {
            Ok(Err(Stop::Refused(at, reply, state)))
        }
        Err(stop) => Err(stop),
        Ok(()) => Ok(Ok(())),
    }
}

const RCPT: &[u8] = b"RCPT TO:<";
const DATA: &[u8] = b"DATA\r\n";
