//! What rspamd is shown of a message in-line, and its word before the end of the data is passed on.
//!
//! Its place: beside the way to the next hop (`inline`), where the edge filter has looked at the
//! client.  A small message is kept until it is whole, as most are, and shown in one go; a larger
//! one is shown while it comes, from the moment on at which it is known to be larger, since nothing
//! of it is kept here.  The last octets wait for the verdict: a message that is refused is one whose
//! end the next hop never sees.
//!
//! Invariants: what is kept counts among what messages on their way in may take; the client is not
//! read while rspamd does not take what came, for the deadline at most; whatever goes wrong with
//! rspamd says nothing of the message but what `on_failure` does; and where senders may have brought
//! that about, this one by letting rspamd wait in the middle or others by taking all turns for
//! messages that come slowly, the message is put off in any case.
//!
//! Not here: fields, subjects and the quarantine.  When rspamd speaks the header section is gone,
//! and what is passed on cannot be kept back.

use std::time::{Duration, Instant};

use super::Session;
use crate::config::OnFailure;
use crate::edge::rspamd::desk::Showing;
use crate::edge::rspamd::question::Question;
use crate::edge::rspamd::{Assessment, Failure};
use crate::limits;
use crate::message::{BodyFlags, Envelope, MessageId};
use crate::runtime;
use crate::smtp::address::ReversePath;
use crate::smtp::body::{BodyForm, Reshape};
use crate::smtp::reply::Refusal;

/// A message on its way to rspamd.
pub(super) struct Exhibit {
    id: MessageId,
    /// What has come of the body, in octets.
    octets: u64,
    reshape: Reshape,
    state: State,
    pauses: Pauses,
}

/// How long rspamd has waited for the next piece of a message that it is shown while it comes.
#[derive(Debug, Default)]
struct Pauses {
    /// It waits since then.
    since: Option<Instant>,
    longest: Duration,
}

impl Pauses {
    fn begin(&mut self, now: Instant) {
        self.since = Some(now);
    }

    fn end(&mut self, now: Instant) {
        if let Some(since) = self.since.take() {
            self.longest = self.longest.max(now.saturating_duration_since(since));
        }
    }

    /// Whether one of them may be why rspamd has not judged the message.
    fn may_explain(&self, failure: Failure) -> bool {
        self.longest >= PAUSE && failure != Failure::Unreachable
    }
}

enum State {
    /// All of it so far.
    Kept(Vec<u8>),
    /// It is shown while it comes.
    Followed(Showing),
    /// It is larger than what rspamd is shown.
    TooLarge,
    /// rspamd will not judge it.
    Failed(Failure),
}

impl Session {
    /// What is to be shown of a message with this trace header; `None` if rspamd is not asked.
    pub(super) fn begin_exhibit(
        &mut self,
        id: MessageId,
        trace: &str,
        flags: BodyFlags,
    ) -> Option<Exhibit> {
        let asks = self.worker.rspamd.is_some() && self.screening.is_some();
        asks.then(|| {
            self.envelope.grow(trace.len());
            let reshape = Reshape::new(flags, BodyForm::Bdat);
            let state = State::Kept(trace.as_bytes().to_vec());
            Exhibit { id, octets: 0, reshape, state, pauses: Pauses::default() }
        })
    }

    /// Shows the piece of the body that the receive buffer holds, or keeps it to be shown.
    pub(super) async fn exhibit(&mut self, exhibit: &mut Exhibit) {
        let piece = self.intake.small_body();
        let Some(rspamd) = self.rspamd() else { return };
        let (most, patience) = (rspamd.size.0, rspamd.deadline);
        exhibit.octets += piece.len() as u64;
        exhibit.pauses.end(Instant::now());
        if exhibit.octets > most {
            exhibit.state = State::TooLarge;
            return;
        }
        let mut octets = match &mut exhibit.state {
            State::Kept(kept) => std::mem::take(kept),
            State::Followed(_) => Vec::with_capacity(piece.len()),
            State::TooLarge | State::Failed(_) => return,
        };
        let is_kept = matches!(exhibit.state, State::Kept(_));
        let came = piece.len();
        exhibit.reshape.write(piece, &mut octets);
        if is_kept {
            if octets.len() <= limits::RSPAMD_HELD && !self.worker.receive_is_exhausted() {
                self.envelope.grow(came);
                exhibit.state = State::Kept(octets);
                return;
            }
            exhibit.state = match self.follow_message(exhibit.id, patience).await {
                Some(showing) => State::Followed(showing),
                None => State::Failed(Failure::NoTurn),
            };
        }
        let State::Followed(showing) = &mut exhibit.state else { return };
        match runtime::timeout(patience, showing.pass(octets)).await {
            Some(()) => exhibit.pauses.begin(Instant::now()),
            // It does not wait for the client: what comes late from here on explains nothing.
            None => exhibit.state = State::Failed(Failure::Late),
        }
    }

    /// Takes a turn to show a message while it comes.
    async fn follow_message(&self, id: MessageId, patience: Duration) -> Option<Showing> {
        let desk = self.worker.rspamd.as_ref()?;
        let turn = runtime::timeout(patience, desk.turn_to_follow()).await?;
        let question = self.question_under_way(id);
        // As long as the body may take; what counts for rspamd is the wait for each piece.
        Some(desk.begin_showing(turn, question, None, Instant::now() + UPLOAD_MOST))
    }

    fn question_under_way(&self, id: MessageId) -> Question {
        let reverse_path = self.server.reverse_path().unwrap_or(&ReversePath::Null);
        self.question(id, reverse_path, self.server.recipients())
    }

    /// Lets rspamd judge a message that has come whole but for its end.
    ///
    /// # Errors
    /// What the client hears, if the message does not go on.
    pub(super) async fn judge_exhibit(
        &mut self,
        mut exhibit: Exhibit,
        envelope: &Envelope,
    ) -> Result<(), Refusal> {
        let worker = self.worker.clone();
        let (Some(desk), Some(rspamd)) = (&worker.rspamd, self.rspamd()) else { return Ok(()) };
        let (patience, on_failure) = (rspamd.deadline, rspamd.on_failure);
        let began = Instant::now();
        exhibit.pauses.end(began);
        let asked = match exhibit.state {
            State::TooLarge => return self.not_shown(exhibit.octets),
            // rspamd was not asked, and a sender could let its own message pass by taking all turns.
            State::Failed(Failure::NoTurn) => {
                return self.not_judged(Failure::NoTurn, OnFailure::Defer, Duration::ZERO);
            }
            State::Failed(failure) => Some(Err(failure)),
            State::Followed(showing) => runtime::timeout(patience, showing.assessment()).await,
            State::Kept(octets) => {
                let question =
                    self.question(exhibit.id, &envelope.reverse_path, &envelope.recipients);
                let asked = async {
                    let turn = desk.turn().await;
                    desk.show(turn, question, octets, began + patience).assessment().await
                };
                runtime::timeout(patience, asked).await
            }
        };
        let took = began.elapsed();
        match self.heard(asked, took) {
            Ok(Assessment { effect, fact, reply, changes, .. }) => {
                let mut fact = fact.into_string();
                if !changes.is_empty() {
                    fact.push_str("; passed on as it came");
                }
                self.weigh(fact, effect, reply, took)
            }
            Err(failure) if exhibit.pauses.may_explain(failure) => {
                self.not_judged(failure, OnFailure::Defer, took)
            }
            Err(failure) => self.not_judged(failure, on_failure, took),
        }
    }
}

/// What a body may take to come; it is let go with its session, and its rate has a bound of its own.
const UPLOAD_MOST: Duration = Duration::from_secs(24 * 3_600);
/// From here on a pause may be why rspamd gave up: it waits for a minute if nobody has told it
/// otherwise, and a sender that knows must not get past it by that.
const PAUSE: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_that_rspamd_gives_up_in_is_its_senders() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        for (dialogue, expected) in [
            // When a piece had been passed on, and when the next one came, or the end.
            (&[(0, 29), (40, 69)][..], false),
            (&[(0, 1), (2, 63), (63, 64)], true),
            // It was the wait for the end.
            (&[(0, 1), (2, 32)], true),
            // It was rspamd that took its time.
            (&[(0, 1), (100, 101)], false),
            (&[], false),
        ] {
            let mut pauses = Pauses::default();
            pauses.end(at(0));
            for &(passed, came) in dialogue {
                pauses.begin(at(passed));
                pauses.end(at(came));
            }
            for failure in [Failure::Broken, Failure::Status(500), Failure::Late] {
                assert_eq!(pauses.may_explain(failure), expected, "{dialogue:?}");
            }
            assert!(!pauses.may_explain(Failure::Unreachable));
        }
    }
}
