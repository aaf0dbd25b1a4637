//! Where a session makes its client wait on purpose: before the last line of the greeting, to see
//! whether it talks meanwhile, and before the reply to a refused recipient.
//!
//! While it waits a session holds no buffer but for what has come already, and a stop of the
//! service ends the wait.  An honest client notices nothing but the time.

use std::time::{Duration, Instant};

use super::{End, Session};
use crate::config::RefuseAt;
use crate::edge::tarpit;
use crate::edge::verdict::Effect;
use crate::limits;
use crate::runtime;
use crate::runtime::socket::StreamError;
use crate::smtp::reply::{Refusal, Replies};

impl Session {
    /// Brings the client to the greeting, which then waits in the server's replies, or to the
    /// words in its place.
    ///
    /// # Errors
    /// How the session ended.
    pub(super) async fn greet(&mut self) -> Result<(), End> {
        if self.screening.is_some() {
            Box::pin(self.watch_greeting()).await?;
        }
        if let Some(screening) = &mut self.screening
            && let Err(refusal) = screening.before_greeting().await
        {
            self.server.turn_away(refusal);
        }
        Ok(())
    }

    /// Says the first line of the greeting to a stranger, and waits: whoever sends something before
    /// the last line does not read what we say (RFC 5321 section 4.3.1).
    async fn watch_greeting(&mut self) -> Result<(), End> {
        let Some(edge) = &self.worker.config.edge else { return Ok(()) };
        let effect = edge.checks.early_talk;
        let wait = tarpit::greeting_wait(edge.greeting_wait, self.is_crowded());
        if wait.is_zero() || effect == Effect::None {
            return Ok(());
        }
        if self.screening.as_ref().is_some_and(|screening| screening.is_known()) {
            self.find(
                "early_talk",
                "not looked for: good mail came from its network",
                Effect::None,
            );
            return Ok(());
        }
        let mut first = Replies::default();
        first.begin_greeting(&self.worker.config.hostname);
        let deadline = Instant::now() + limits::SERVER_WRITE;
        let written = self.stream.write_all(first.take(), deadline).await.0;
        written.map_err(|_| End::Broken)?;
        let began = Instant::now();
        self.stream.allow_interrupt(true);
        // What is given up at the end is a question whether there is something to read, and no
        // read; its own deadline is far, or the sweep would close the session in its place.
        let readable = self.stream.readable(began + limits::SERVER_COMMAND);
        let drawn_out = tarpit::to_the_beat(wait, Duration::from_millis(self.worker.now_unix_ms()));
        match runtime::timeout(drawn_out, readable).await {
            None => self.find("early_talk", &format!("silent for {wait:?}"), Effect::None),
            Some(Ok(())) => {
                let octets = self.read_early().await?;
                let took = began.elapsed();
                let fact =
                    format!("sent {octets} octets {} ms into the greeting", took.as_millis());
                self.find("early_talk", &fact, effect);
            }
            Some(Err(StreamError::TimedOut)) if self.worker.is_stopping() => {
                self.server.turn_away(Refusal::ShuttingDown);
            }
            Some(Err(_)) => return Err(End::Broken),
        }
        self.stream.allow_interrupt(false);
        self.finish_greeting().await
    }

    /// Takes in what has come too early; it is obeyed in its turn.
    async fn read_early(&mut self) -> Result<usize, End> {
        self.intake.make_room(false);
        let buffer = self.intake.take_buffer();
        let deadline = Instant::now() + limits::SERVER_COMMAND;
        let (read, buffer) = self.stream.read(buffer, deadline).await;
        self.intake.put_buffer(buffer);
        match read {
            Ok(0) | Err(StreamError::TimedOut) => Err(End::ClosedByPeer),
            Ok(octets) => Ok(octets),
            Err(StreamError::Io(_)) => Err(End::Broken),
        }
    }

    /// Sends the last line before any command is looked at, unless it is to be decided on still:
    /// else what came early would count as pipelined as well.
    async fn finish_greeting(&mut self) -> Result<(), End> {
        let edge = self.worker.config.edge.as_ref();
        if edge.is_some_and(|edge| edge.refuse_at == RefuseAt::Greeting) {
            return Ok(());
        }
        self.flush().await.map_err(|_| End::Broken)
    }

    /// Lets the client wait for the reply to one more refused recipient.
    pub(super) async fn tarpit(&mut self) {
        let is_crowded = self.is_crowded();
        let Some(screening) = &mut self.screening else { return };
        let wait = screening.refused_recipient(is_crowded);
        if wait.is_zero() || self.flush().await.is_err() {
            return;
        }
        // Commands may have come behind; they keep no more room than they need.
        self.intake.park();
        self.worker.receive_freed();
        let end = Instant::now() + wait;
        while !self.worker.is_stopping() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            Box::pin(runtime::sleep(left.min(STOP_LOOK))).await;
        }
    }

    fn find(&mut self, check: &str, fact: &str, effect: Effect) {
        if let Some(screening) = &mut self.screening {
            screening.find(check, fact, effect);
        }
    }

    /// Whether more than half of all sessions that there may be are there.
    fn is_crowded(&self) -> bool {
        self.worker.counts.sessions() > self.worker.config.limits.sessions / 2
    }
}

/// How often a client that waits is looked after, in case the service stops.
const STOP_LOOK: Duration = Duration::from_secs(1);
