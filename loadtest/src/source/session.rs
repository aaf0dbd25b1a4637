//! A client's life: connects, sends one message after the other, connects anew when the
//! connection is used up or broken, and stops when there is nothing more to do.

use std::rc::Rc;
use std::time::{Duration, Instant};

use super::connection::{Broken, Connection};
use super::plan::{Login, Security};
use super::settings::Begin;
use super::transaction::{Outcome, Transaction};
use super::worker::{Errand, Worker};
use crate::ledger::record::{Record, Verdict, now_ns};
use crate::message::MessageId;
use crate::report::tally::Step;
use crate::runtime::sleep;
use crate::wire::reply::Reply;

/// The first wait after a connection that failed; it doubles up to the last.
const PAUSE: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// What a connection may take to stand and to greet: a server whose queue of connections
/// overflows leaves clients that think they are connected, and will never say a word to them.
const GREETING: Duration = Duration::from_secs(10);
/// The longest that a session sleeps without looking whether the run is over.
const NAP: Duration = Duration::from_millis(100);

struct Session {
    worker: Rc<Worker>,
    serial: u32,
    /// Messages that this session has begun.
    sent: u32,
    connection: Option<Connection>,
    /// What comes next, if its envelope leaves with the present message.
    next: Option<Task>,
    pause: Duration,
}

/// A message on its way.
struct Task {
    /// The start from which its latency counts.
    begun: Instant,
    transaction: Transaction,
}

/// Why there is no connection.
enum NotOpen {
    /// It could not be made; the message can wait for the next one.
    Failed,
    /// The server turned us away with a reply.
    TurnedAway(Step, u16),
    /// The run is over.
    Over,
}

/// Runs the session with this number until there is nothing more for it to do.
pub async fn run(worker: Rc<Worker>, serial: u32) {
    let mut session = Session {
        worker: worker.clone(),
        serial,
        sent: 0,
        connection: None,
        next: None,
        pause: PAUSE,
    };
    match worker.plan.manners.hold {
        Some(time) => session.hold(time).await,
        None => session.send_all().await,
    }
    if let Some(connection) = session.connection.take() {
        connection.quit().await;
    }
    worker.session_ended();
}

impl Session {
    async fn send_all(&mut self) {
        loop {
            let mut task = match self.next.take() {
                Some(task) => task,
                None => {
                    let Some(errand) = self.worker.next_errand() else { return };
                    if !self.wait_until(errand.due).await {
                        return;
                    }
                    let begun = errand.due.unwrap_or_else(Instant::now);
                    Task { begun, transaction: self.prepare(errand, self.sent) }
                }
            };
            if !self.send(&mut task).await || self.sent + 1 >= crate::message::PART_MAX {
                return;
            }
        }
    }

    /// The session's `number`th message.
    fn prepare(&self, errand: Errand, number: u32) -> Transaction {
        let id = MessageId::new(self.worker.plan.run, self.serial, number);
        Transaction::new(&self.worker, id, errand.number)
    }

    /// The message of which the envelope is to leave with the end of the present one, if the
    /// plan and the connection have one.
    fn prepare_next(&mut self, connection: &Connection) {
        let plan = &self.worker.plan;
        let is_last =
            connection.messages >= plan.per_connection || self.sent + 2 >= crate::message::PART_MAX;
        if !plan.is_ahead() || is_last || self.next.is_some() {
            return;
        }
        if let Some(errand) = self.worker.next_errand() {
            let transaction = self.prepare(errand, self.sent + 1);
            self.next = Some(Task { begun: Instant::now(), transaction });
        }
    }

    /// Sleeps until a message is due; false when the run ended meanwhile.
    async fn wait_until(&mut self, due: Option<Instant>) -> bool {
        let Some(due) = due else { return true };
        loop {
            let left = due.saturating_duration_since(Instant::now());
            if left.is_zero() {
                self.worker.tally().took(Step::Wait, due.elapsed());
                return true;
            }
            if self.worker.is_over() {
                return false;
            }
            if left <= NAP {
                self.worker.alarm.wait_until(due).await;
            } else {
                sleep(NAP.min(left - NAP)).await;
            }
        }
    }

    /// Sends one message, whatever it takes; false when the run ended meanwhile.
    async fn send(&mut self, task: &mut Task) -> bool {
        loop {
            let was_open = self.connection.is_some();
            let mut connection = match self.take_connection(&mut task.transaction).await {
                Ok(connection) => connection,
                Err(NotOpen::Failed) => continue,
                Err(NotOpen::Over) => return false,
                Err(NotOpen::TurnedAway(at, code)) => {
                    self.worker.tally().refused(at, code);
                    return true;
                }
            };
            connection.messages += 1;
            self.prepare_next(&connection);
            let next = self.next.as_mut().map(|next| &mut next.transaction);
            let outcome = task.transaction.run(&self.worker, &mut connection, next).await;
            // The envelope that left with this message began the next one.
            if let Some(next) = &mut self.next {
                next.begun = next.transaction.envelope_sent_at().unwrap_or_else(Instant::now);
            }
            // A server may close what was idle; the message has not begun then.
            let is_stale = was_open && connection.messages > 1;
            if let Outcome::Broken { error, sent: false, heard: false } = &outcome
                && is_stale
                && error.is_closed()
            {
                task.transaction.forget_connection();
                continue;
            }
            self.settle(&task.transaction, outcome, task.begun, connection).await;
            return true;
        }
    }

    /// Counts what became of a message, and keeps its connection if it can serve again.
    async fn settle(
        &mut self,
        transaction: &Transaction,
        outcome: Outcome,
        begun: Instant,
        connection: Connection,
    ) {
        self.sent += 1;
        let verdict = match &outcome {
            Outcome::Acknowledged(at) => {
                let mut tally = self.worker.tally();
                tally.took(Step::Whole, at.saturating_duration_since(begun));
                tally.counts.acknowledged += 1;
                tally.counts.octets += transaction.octets();
                tally.last_at = tally.last_at.max(at.saturating_duration_since(self.worker.begun));
                Some(Verdict::Acknowledged)
            }
            Outcome::Abandoned => {
                self.worker.tally().counts.abandoned += 1;
                None
            }
            Outcome::Refused { at, code, text, sent } => {
                let mut tally = self.worker.tally();
                tally.refused(*at, *code);
                tally.note(text);
                sent.then_some(Verdict::Refused)
            }
            Outcome::Broken { error, sent, .. } => {
                let mut tally = self.worker.tally();
                tally.counts.broken += 1;
                tally.note(&error.to_string());
                sent.then_some(Verdict::Unknown)
            }
        };
        if let (Some(verdict), Some(mut ledger)) = (verdict, self.worker.ledger()) {
            ledger.record(Record {
                id: transaction.id,
                time_ns: now_ns(),
                recipients_sum: transaction.recipients_sum,
                recipients: transaction.recipients,
                verdict,
                address: 0,
            });
        }
        let is_used_up = connection.messages >= self.worker.plan.per_connection;
        match outcome {
            Outcome::Broken { .. } | Outcome::Refused { code: 421, .. } => {}
            _ if is_used_up => connection.quit().await,
            _ => self.connection = Some(connection),
        }
    }

    /// The connection that is there, or a new one.
    async fn take_connection(
        &mut self,
        transaction: &mut Transaction,
    ) -> Result<Connection, NotOpen> {
        let is_begun = transaction.envelope_sent_at().is_some();
        match self.connection.take() {
            // What stands there unasked is a 421 before the end.
            Some(connection) if is_begun || !connection.is_ahead() => return Ok(connection),
            _ => transaction.forget_connection(),
        }
        self.open_connection().await
    }

    async fn open_connection(&mut self) -> Result<Connection, NotOpen> {
        if self.worker.is_over() {
            return Err(NotOpen::Over);
        }
        match self.open().await {
            Ok(connection) => {
                self.pause = PAUSE;
                self.worker.tally().counts.connections += 1;
                Ok(connection)
            }
            Err(OpenError::Refused(at, code, text)) => {
                let mut tally = self.worker.tally();
                tally.counts.connect_failures += 1;
                tally.note(&text);
                Err(NotOpen::TurnedAway(at, code))
            }
            Err(OpenError::Broken(error)) => {
                {
                    let mut tally = self.worker.tally();
                    tally.counts.connect_failures += 1;
                    tally.note(&error.to_string());
                }
                if matches!(error, Broken::NotOffered(_)) {
                    self.worker.give_up();
                }
                sleep(self.pause).await;
                self.pause = (self.pause * 2).min(PAUSE_MAX);
                Err(NotOpen::Failed)
            }
        }
    }

    async fn open(&mut self) -> Result<Connection, OpenError> {
        let plan = self.worker.plan.clone();
        let begun = Instant::now();
        let source = self.worker.next_source();
        let mut connection =
            Connection::open(plan.peer, source, plan.timeout.min(GREETING)).await?;
        connection.trickle_commands = plan.manners.trickle.filter(|_| plan.manners.trickle_all);
        let connected = Instant::now();
        let hello = |commands: &mut Vec<u8>| {
            commands.extend_from_slice(b"EHLO ");
            commands.extend_from_slice(plan.helo.as_bytes());
            commands.extend_from_slice(b"\r\n");
        };
        connection.hurry(connected);
        if let Some(security) = plan.security.as_ref().filter(|one| one.begin == Begin::Implicit) {
            connection.start_tls(security).await?;
        }
        if plan.manners.early {
            hello(&mut connection.commands);
            connection.send_commands().await?;
        }
        let greeting = connection.reply().await?;
        let greeted = Instant::now();
        connection.timeout = plan.timeout;
        self.worker.tally().took(Step::Connect, connected - begun);
        self.worker.tally().took(Step::Greeting, greeted - connected);
        if !greeting.is_positive() {
            return Err(OpenError::refused(Step::Greeting, &greeting, &connection));
        }
        if !plan.manners.early {
            hello(&mut connection.commands);
            connection.send_commands().await?;
        }
        let reply = connection.offers().await?;
        self.worker.tally().took(Step::Ehlo, greeted.elapsed());
        if !reply.is_positive() {
            return Err(OpenError::refused(Step::Ehlo, &reply, &connection));
        }
        if let Some(security) = plan.security.as_ref().filter(|one| one.begin == Begin::Starttls) {
            start_tls(&mut connection, security).await?;
            hello(&mut connection.commands);
            connection.send_commands().await?;
            // What was offered in clear does not count.
            let reply = connection.offers().await?;
            if !reply.is_positive() {
                return Err(OpenError::refused(Step::Ehlo, &reply, &connection));
            }
        }
        if let Some(login) = &plan.login {
            log_in(&mut connection, login).await?;
        }
        if plan.conduct.is_pipelined() && !connection.offers.pipelining {
            return Err(Broken::NotOffered("PIPELINING").into());
        }
        if plan.conduct.framing() == crate::message::template::Framing::Bdat
            && !connection.offers.chunking
        {
            return Err(Broken::NotOffered("CHUNKING").into());
        }
        Ok(connection)
    }

    /// Connects and stays, until the time or the run is over or the server has had enough.
    async fn hold(&mut self, time: Duration) {
        let mut connection = loop {
            match self.open_connection().await {
                Ok(connection) => break connection,
                Err(NotOpen::Failed) => {}
                Err(NotOpen::TurnedAway(at, code)) => {
                    return self.worker.tally().refused(at, code);
                }
                Err(NotOpen::Over) => return,
            }
        };
        let end = (Instant::now() + time).min(self.worker.begun + self.worker.plan.time);
        let stayed = connection.stay(end).await;
        let mut tally = self.worker.tally();
        match stayed {
            // The sweep has shut it down: there is nobody to say QUIT to.
            Ok(None) => tally.counts.abandoned += 1,
            Ok(Some(reply)) => {
                tally.counts.broken += 1;
                let text = connection.text(&reply);
                tally.note(&text);
            }
            Err(error) => {
                tally.counts.broken += 1;
                tally.note(&error.to_string());
            }
        }
    }
}

async fn log_in(connection: &mut Connection, login: &Login) -> Result<(), OpenError> {
    if !connection.offers.auth_plain {
        return Err(Broken::NotOffered("AUTH PLAIN").into());
    }
    connection.commands.extend_from_slice(&login.0);
    connection.send_commands().await?;
    let reply = connection.reply().await?;
    match reply.is_positive() {
        true => Ok(()),
        false => Err(OpenError::refused(Step::Ehlo, &reply, connection)),
    }
}

async fn start_tls(connection: &mut Connection, security: &Security) -> Result<(), OpenError> {
    if !connection.offers.starttls {
        return Err(Broken::NotOffered("STARTTLS").into());
    }
    connection.commands.extend_from_slice(b"STARTTLS\r\n");
    connection.send_commands().await?;
    let reply = connection.reply().await?;
    if !reply.is_positive() {
        return Err(OpenError::refused(Step::Ehlo, &reply, connection));
    }
    Ok(connection.start_tls(security).await?)
}

/// Why a connection was not opened.
enum OpenError {
    Broken(Broken),
    /// By the reply to this step, with that code and text.
    Refused(Step, u16, String),
}

impl OpenError {
    /// What follows EHLO before the first message counts as EHLO.
    fn refused(at: Step, reply: &Reply, connection: &Connection) -> OpenError {
        OpenError::Refused(at, reply.code, connection.text(reply))
    }
}

impl<E: Into<Broken>> From<E> for OpenError {
    fn from(error: E) -> OpenError {
        OpenError::Broken(error.into())
    }
}
