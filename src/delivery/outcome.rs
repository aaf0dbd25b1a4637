//! Judges what an attempt brought: done, again, later, or never.
//!
//! It stands between an attempt (`outbound`) and its record in the log (DONE, DEFER, or a notice
//! with its DONE).  Pure: the clock and the random number for the jitter are arguments, so the
//! simulator can drive it.  It keeps nothing and cannot fail.
//!
//! The lifetime is one clock for every place in which a message can wait, and it starts with the
//! message's id: [`RetryPolicy::judge`] looks at it after an attempt, the scheduler
//! ([`crate::queue::scheduler`]) wherever there is none.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::config::Schedule;
use crate::smtp::client::{
    ConnectionCause, ConnectionFailure, Deferral, Failure, LocalRefusal, LoginTrouble,
    RecipientOutcome, StagedReply, TlsTrouble,
};
use crate::smtp::code::EnhancedCode;
use crate::smtp::reply_reader::PeerReply;

/// What one attempt brought for one recipient, over SMTP or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attempted {
    /// The next hop has it.
    Delivered,
    /// The next hop wants another transaction, or the same in another form: no failure, no wait.
    AtOnce,
    /// Not now.
    Deferred(Reason),
    /// Never.
    Failed(Reason),
}

/// Why a recipient was not delivered to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// The peer said so.
    Reply(StagedReply),
    /// There was no verdict: the connection failed.
    Connection(ConnectionFailure),
    /// We found it ourselves: a full disk, a route that rejects, a peer that cannot take it.
    Local {
        /// The status of RFC 3463.
        status: EnhancedCode,
        /// What is wrong, as a clause: `the disk is full`.
        text: Box<str>,
    },
}

/// What is to be done about one recipient.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Record it as done.
    Done,
    /// Begin the next transaction.  This counts as no attempt.
    AtOnce,
    /// Record it as deferred.
    Defer {
        /// When to try again, in milliseconds since 1970 UTC.
        next_attempt_unix_ms: u64,
        /// What it waits for.
        reason: Reason,
    },
    /// Record it as done, with a failure notice if the originator wants one.
    Bounce(BounceCause),
}

/// Why a recipient is given up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BounceCause {
    /// The next hop, or we, will never take it.
    Failed(Reason),
    /// Its time is over.
    Expired {
        /// What the last attempt brought, if there was one.
        last: Option<Reason>,
    },
}

/// What judgement knows of a recipient's past.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// When the message was accepted, in milliseconds since 1970 UTC.
    pub accepted_unix_ms: u64,
    /// Attempts so far, the one being judged included.
    pub attempts: u16,
}

/// `retry`, `lifetime` and `delay_notice` of `[queue]` or of a route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetryPolicy {
    /// The waits after the first, second, .. attempt; not empty, and the last one repeats.
    delays: Box<[Duration]>,
    lifetime: Duration,
    /// The age at which a sender is told that the message is late; `None`: never.
    delay_notice: Option<Duration>,
}

impl RetryPolicy {
    /// A policy; `None` if there is no delay, or one under a millisecond, which would try for
    /// ever.
    pub fn new(delays: &[Duration], lifetime: Duration) -> Option<RetryPolicy> {
        let valid = !delays.is_empty() && delays.iter().all(|delay| delay.as_millis() > 0);
        valid.then(|| RetryPolicy { delays: delays.into(), lifetime, delay_notice: None })
    }

    /// The policy of a schedule.
    pub fn of(schedule: &Schedule) -> RetryPolicy {
        let policy = RetryPolicy::new(&schedule.retry, schedule.lifetime);
        let policy = policy.expect("a schedule has at least one wait, none of them empty");
        policy.with_delay_notice(schedule.delay_notice.after())
    }

    /// The same, with notices of delay at this age.
    #[must_use]
    pub fn with_delay_notice(self, delay_notice: Option<Duration>) -> RetryPolicy {
        RetryPolicy { delay_notice, ..self }
    }

    /// What is to be done after an attempt.  `random` spreads the next attempt over seven to nine
    /// eighths of the wait, so that what failed together does not come back together.
    pub fn judge(
        &self,
        attempted: Attempted,
        progress: Progress,
        now_unix_ms: u64,
        random: u32,
    ) -> Decision {
        match attempted {
            Attempted::Delivered => Decision::Done,
            Attempted::AtOnce => Decision::AtOnce,
            Attempted::Failed(reason) => Decision::Bounce(BounceCause::Failed(reason)),
            Attempted::Deferred(reason) => {
                let expires_unix_ms = self.expires_unix_ms(progress.accepted_unix_ms);
                if now_unix_ms >= expires_unix_ms {
                    return Decision::Bounce(BounceCause::Expired { last: Some(reason) });
                }
                // Cut at the end of the lifetime: one last attempt then, and not a wait beyond.
                let next_attempt_unix_ms =
                    self.next_attempt(progress.attempts, now_unix_ms, random).min(expires_unix_ms);
                Decision::Defer { next_attempt_unix_ms, reason }
            }
        }
    }

    /// When to try again after so many attempts, in milliseconds since 1970 UTC; `random` as in
    /// [`RetryPolicy::judge`].
    pub fn next_attempt(&self, attempts: u16, now_unix_ms: u64, random: u32) -> u64 {
        now_unix_ms.saturating_add(jittered_ms(self.delay(attempts), random))
    }

    /// When a message's lifetime ends, in milliseconds since 1970 UTC.
    pub fn expires_unix_ms(&self, accepted_unix_ms: u64) -> u64 {
        accepted_unix_ms.saturating_add(milliseconds(self.lifetime))
    }

    /// When a sender is to hear that a message is late, in milliseconds since 1970 UTC; `None`
    /// where that is switched off.
    pub fn late_unix_ms(&self, accepted_unix_ms: u64) -> Option<u64> {
        self.delay_notice.map(|age| accepted_unix_ms.saturating_add(milliseconds(age)))
    }

    /// The wait after so many attempts, before jitter.
    fn delay(&self, attempts: u16) -> Duration {
        let place = usize::from(attempts.saturating_sub(1)).min(self.delays.len() - 1);
        self.delays[place]
    }
}

/// Seven eighths of the wait and up to a quarter of it more.
fn jittered_ms(wait: Duration, random: u32) -> u64 {
    let wait_ms = u128::from(milliseconds(wait));
    let spread_ms = (wait_ms * u128::from(random) / 4) >> 32;
    u64::try_from(wait_ms - wait_ms / 8 + spread_ms).unwrap_or(u64::MAX)
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl From<RecipientOutcome> for Attempted {
    fn from(outcome: RecipientOutcome) -> Attempted {
        match outcome {
            RecipientOutcome::Delivered(_) => Attempted::Delivered,
            RecipientOutcome::Deferred(deferral) => match deferral {
                Deferral::Reply(staged) => Attempted::Deferred(Reason::Reply(staged)),
                Deferral::TooManyRecipients(_)
                | Deferral::ChunkingRefused(_)
                | Deferral::OneFlightRefused(_) => Attempted::AtOnce,
                Deferral::Connection(failure) => Attempted::Deferred(Reason::Connection(failure)),
            },
            RecipientOutcome::Failed(Failure::Reply(staged)) => {
                Attempted::Failed(Reason::Reply(staged))
            }
            RecipientOutcome::Failed(Failure::Local(refusal)) => {
                Attempted::Failed(Reason::from(refusal))
            }
        }
    }
}

impl From<LocalRefusal> for Reason {
    fn from(refusal: LocalRefusal) -> Reason {
        let status = match refusal {
            LocalRefusal::TooLarge { .. } => status(5, 3, 4),
            LocalRefusal::NeedsSmtputf8 => status(5, 6, 7),
            LocalRefusal::NeedsRequireTls => status(5, 7, 30),
            LocalRefusal::BareNewlines => status(5, 6, 0),
            LocalRefusal::NeedsEightBitMime => status(5, 6, 3),
        };
        Reason::Local { status, text: refusal.to_string().into() }
    }
}

impl Reason {
    /// The status of RFC 3463: the peer's where it gave one, else what fits.
    pub fn status(&self) -> EnhancedCode {
        match self {
            Reason::Local { status, .. } => *status,
            Reason::Reply(staged) => reply_status(&staged.reply),
            Reason::Connection(failure) => match &failure.cause {
                ConnectionCause::Refused(reply) => reply_status(reply),
                // RFC 5248: encryption needed, and a failure of cryptography.
                ConnectionCause::Tls(TlsTrouble::NotOffered) => status(4, 7, 10),
                ConnectionCause::Tls(_) => status(4, 7, 5),
                ConnectionCause::Login(LoginTrouble::Refused(reply)) => reply_status(reply),
                // RFC 5248: no fitting mechanism, and what else there is about credentials.
                ConnectionCause::Login(LoginTrouble::NotOffered) => status(4, 7, 9),
                ConnectionCause::Login(_) => status(4, 7, 8),
                ConnectionCause::TimedOut => status(4, 4, 1),
                ConnectionCause::Closed | ConnectionCause::Abandoned => status(4, 4, 2),
                ConnectionCause::Unexpected(_) | ConnectionCause::Malformed(_) => status(4, 5, 0),
            },
        }
    }

    /// What the peer said, if it said something.
    pub fn reply(&self) -> Option<&Arc<PeerReply>> {
        match self {
            Reason::Reply(staged) => Some(&staged.reply),
            Reason::Connection(failure) => failure.reply(),
            Reason::Local { .. } => None,
        }
    }
}

/// One line for the log, the queue's listing and the DEFER record.  Where TLS failed it begins
/// with the status, as a reply would: no reply says it.
impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Reply(staged) => write!(f, "{} ({})", staged.reply, staged.stage),
            Reason::Connection(failure) => {
                if matches!(failure.cause, ConnectionCause::Tls(_)) {
                    write!(f, "{} ", self.status())?;
                }
                match failure.reply() {
                    Some(reply) => write!(f, "{failure}: {reply}"),
                    None => write!(f, "{failure}"),
                }
            }
            Reason::Local { text, .. } => f.write_str(text),
        }
    }
}

impl BounceCause {
    /// The status of RFC 3463 for the notice: 4.4.7 for what expired, whatever delayed it.
    pub fn status(&self) -> EnhancedCode {
        match self {
            BounceCause::Failed(reason) => reason.status(),
            BounceCause::Expired { .. } => status(4, 4, 7),
        }
    }

    /// What the last attempt brought.
    pub fn reason(&self) -> Option<&Reason> {
        match self {
            BounceCause::Failed(reason) => Some(reason),
            BounceCause::Expired { last } => last.as_ref(),
        }
    }
}

/// X.0.0 where the peer gave no enhanced code: it said no more.
fn reply_status(reply: &PeerReply) -> EnhancedCode {
    let class = if reply.code.value() < 500 { 4 } else { 5 };
    reply.enhanced.unwrap_or_else(|| status(class, 0, 0))
}

fn status(class: u8, subject: u16, detail: u16) -> EnhancedCode {
    EnhancedCode::new(class, subject, detail).expect("a status written in this file")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::smtp::client::Stage;
    use crate::smtp::reply_reader::ReplyReader;
    use proptest::prelude::*;

    const MINUTE_MS: u64 = 60_000;
    const ACCEPTED: u64 = 1_750_000_000_000;

    fn policy() -> RetryPolicy {
        let minutes = |n: u64| Duration::from_secs(60 * n);
        RetryPolicy::new(&[minutes(5), minutes(10), minutes(60)], minutes(600)).expect("valid")
    }

    fn reply(text: &str) -> Arc<PeerReply> {
        let (_, reply) = ReplyReader::new().read(format!("{text}\r\n").as_bytes());
        Arc::new(reply.expect("whole").expect("valid"))
    }

    fn deferred() -> Attempted {
        let failure =
            ConnectionFailure { stage: Stage::Greeting, cause: ConnectionCause::TimedOut };
        Attempted::Deferred(Reason::Connection(failure))
    }

    fn progress(attempts: u16) -> Progress {
        Progress { accepted_unix_ms: ACCEPTED, attempts }
    }

    #[test]
    fn the_waits_follow_the_list_and_the_last_repeats() {
        for (attempts, minutes) in [(0, 5), (1, 5), (2, 10), (3, 60), (4, 60), (u16::MAX, 60)] {
            for (random, from, to) in [(0, 7, 7), (1 << 31, 8, 8), (u32::MAX, 8, 9)] {
                let decision = policy().judge(deferred(), progress(attempts), ACCEPTED, random);
                let Decision::Defer { next_attempt_unix_ms, .. } = decision else {
                    panic!("{decision:?}")
                };
                let wait_ms = next_attempt_unix_ms - ACCEPTED;
                let eighth_ms = minutes * MINUTE_MS / 8;
                assert!((from * eighth_ms..=to * eighth_ms).contains(&wait_ms), "{wait_ms}");
            }
        }
    }

    #[test]
    fn what_expires_after_an_attempt_bounces_with_its_reason() {
        let end = ACCEPTED + 600 * MINUTE_MS;
        let almost = policy().judge(deferred(), progress(9), end - 1, 0);
        let Decision::Defer { next_attempt_unix_ms, .. } = almost else { panic!("{almost:?}") };
        assert_eq!(next_attempt_unix_ms, end);
        let decision = policy().judge(deferred(), progress(9), end, 0);
        let Decision::Bounce(cause) = decision else { panic!("{decision:?}") };
        assert_eq!(cause.status().to_string(), "4.4.7");
        assert!(cause.reason().is_some());
    }

    #[test]
    fn each_outcome_has_its_decision_and_status() {
        let staged = |text| StagedReply { stage: Stage::Rcpt, reply: reply(text) };
        let later = |text| RecipientOutcome::Deferred(Deferral::Reply(staged(text)));
        let never = |text| RecipientOutcome::Failed(Failure::Reply(staged(text)));
        let local = |refusal| RecipientOutcome::Failed(Failure::Local(refusal));
        let lost = |cause| {
            let failure = ConnectionFailure { stage: Stage::Mail, cause };
            RecipientOutcome::Deferred(Deferral::Connection(failure))
        };
        let cases = [
            (RecipientOutcome::Delivered(reply("250 ok")), "done"),
            (RecipientOutcome::Deferred(Deferral::TooManyRecipients(reply("452 x"))), "at once"),
            (RecipientOutcome::Deferred(Deferral::ChunkingRefused(reply("500 x"))), "at once"),
            (later("450 4.2.2 full"), "4.2.2 later"),
            (later("450 later"), "4.0.0 later"),
            (lost(ConnectionCause::Refused(reply("554 5.3.2 closed"))), "5.3.2 later"),
            (lost(ConnectionCause::TimedOut), "4.4.1 later"),
            (lost(ConnectionCause::Closed), "4.4.2 later"),
            (lost(ConnectionCause::Unexpected(reply("250 ok"))), "4.5.0 later"),
            (never("550 5.1.1 who"), "5.1.1 never"),
            (never("550 who"), "5.0.0 never"),
            (local(LocalRefusal::TooLarge { size_octets: 2, limit_octets: 1 }), "5.3.4 never"),
            (local(LocalRefusal::NeedsSmtputf8), "5.6.7 never"),
            (local(LocalRefusal::BareNewlines), "5.6.0 never"),
        ];
        for (outcome, expected) in cases {
            let attempted = Attempted::from(outcome);
            let said = match policy().judge(attempted, progress(1), ACCEPTED, 0) {
                Decision::Done => "done".to_string(),
                Decision::AtOnce => "at once".to_string(),
                Decision::Defer { reason, .. } => format!("{} later", reason.status()),
                Decision::Bounce(cause) => format!("{} never", cause.status()),
            };
            assert_eq!(said, expected);
        }
    }

    #[test]
    fn a_reason_is_one_line_that_says_who_and_when() {
        let staged = StagedReply { stage: Stage::Rcpt, reply: reply("550-5.1.1 who\r\n550 gone") };
        assert_eq!(Reason::Reply(staged).to_string(), "550 5.1.1 who gone (at RCPT TO)");
        let Attempted::Deferred(reason) = deferred() else { panic!("a deferral") };
        let said = "the mail server did not answer in time at its greeting";
        assert_eq!(reason.to_string(), said);
    }

    #[test]
    fn a_policy_that_would_not_wait_is_none() {
        assert!(RetryPolicy::new(&[], Duration::from_secs(1)).is_none());
        assert!(RetryPolicy::new(&[Duration::ZERO], Duration::from_secs(1)).is_none());
    }

    proptest! {
        /// Whatever the clock, the disk and the configuration say.
        #[test]
        fn a_deferral_moves_forward_and_never_past_the_lifetime(
            delays in proptest::collection::vec(1u64..=u64::MAX, 1..4),
            lifetime_s: u64, accepted_unix_ms: u64, attempts: u16, now: u64, random: u32,
        ) {
            let delays: Vec<_> = delays.into_iter().map(Duration::from_millis).collect();
            let policy = RetryPolicy::new(&delays, Duration::from_secs(lifetime_s)).expect("valid");
            let progress = Progress { accepted_unix_ms, attempts };
            match policy.judge(deferred(), progress, now, random) {
                Decision::Defer { next_attempt_unix_ms: next, .. } => {
                    prop_assert!(next > now);
                    prop_assert!(next <= policy.expires_unix_ms(accepted_unix_ms));
                }
                decision => prop_assert!(matches!(decision, Decision::Bounce(_))),
            }
        }
    }
}
