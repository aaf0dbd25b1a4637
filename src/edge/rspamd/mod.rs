//! rspamd looks at messages that the edge filter would take: asked over HTTP, before the 250.
//!
//! A session shows a message through its worker's [`desk`]; the [`office`] is the one thread that
//! speaks HTTP, since no worker may block on it, with the rspamd that `addresses` finds behind its
//! name; [`question`] is what goes out and [`answer`] what comes back; [`changes`] is what becomes of
//! the message's header section.  Where rspamd does not judge, `alarm` tells the operator.
//!
//! Invariants: what there is of messages on their way to rspamd has a bound
//! ([`limits::RSPAMD_AT_ONCE`] messages, two chunks at most of each of the half that is read back), and
//! what there is of answers has another, 64 MiB ([`limits::RSPAMD_LARGE_ANSWERS`]); who asks hears by
//! the deadline that the operator has set, whatever rspamd does; a failure is no verdict, and what
//! becomes of the message then is the operator's choice (`on_failure`).
//!
//! A message is shown once it is whole, and a large one is read back from the log for that: a
//! sender that trickles would else hold a connection to rspamd for as long as it likes, and use up
//! the deadline that is meant for rspamd.  Large ones in-line, of which nothing is kept, are shown
//! while they come, and are few at a time for that reason.
//!
//! Not here: signatures of rspamd's.
//!
//! [`limits::RSPAMD_AT_ONCE`]: crate::limits::RSPAMD_AT_ONCE
//! [`limits::RSPAMD_LARGE_ANSWERS`]: crate::limits::RSPAMD_LARGE_ANSWERS

mod addresses;
mod alarm;
pub mod answer;
pub mod changes;
pub mod desk;
pub mod office;
pub mod question;

use changes::Changes;

use super::verdict::{Action, Effect};

/// The check's name.
pub const NAME: &str = "rspamd";

/// What rspamd advises: its `action`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Advice {
    /// Take it.
    NoAction,
    /// It has the score for greylisting.  Where rspamd does greylist, it says [`Advice::SoftReject`]
    /// instead until the message has come again.
    Greylist,
    /// Take it, marked as spam.
    AddHeader,
    /// Take it, marked as spam in its subject.
    RewriteSubject,
    /// Refuse it for now.
    SoftReject,
    /// Refuse it.
    Reject,
    /// Keep it back.
    Quarantine,
    /// Take it and throw it away.
    Discard,
    /// An action that somebody has made up in its configuration.
    Other,
}

/// What rspamd makes of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assessment {
    /// What it advises.
    pub advice: Advice,
    /// What follows from that here.
    pub effect: Effect,
    /// The advice, the score and the symbols that weigh most, for a person.
    pub fact: Box<str>,
    /// What a client hears that is refused because of it, if rspamd has words for that.
    pub reply: Option<Box<str>>,
    /// What becomes of the header section if the message goes on.
    pub changes: Changes,
}

/// Why there is no assessment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// None in time.
    #[error("no answer in time")]
    Late,
    /// Nobody listens there.
    #[error("it cannot be reached")]
    Unreachable,
    /// The connection ended, or is no HTTP.
    #[error("its connection broke")]
    Broken,
    /// Another status than 200.
    #[error("it answered with status {0}")]
    Status(u16),
    /// Not what rspamd answers.
    #[error("its answer cannot be understood")]
    Strange,
    /// More than [`limits::RSPAMD_ANSWER`](crate::limits::RSPAMD_ANSWER).
    #[error("its answer is too large")]
    TooLarge,
    /// The message could not be read back from the log.
    #[error("the message could not be read back")]
    Unreadable,
    /// It was not asked: it is shown as many messages as may take their time.
    #[error("too many large messages are on their way to it")]
    NoTurn,
}

impl Advice {
    /// Its name in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Advice::NoAction => "no_action",
            Advice::Greylist => "greylist",
            Advice::AddHeader => "add_header",
            Advice::RewriteSubject => "rewrite_subject",
            Advice::SoftReject => "soft_reject",
            Advice::Reject => "reject",
            Advice::Quarantine => "quarantine",
            Advice::Discard => "discard",
            Advice::Other => "other",
        }
    }

    /// What it does to the verdict.
    ///
    /// Greylisting by score alone is nothing, as for rspamd's own milter: without its memory rspamd
    /// says so of the same message for ever.  What rspamd would have thrown away is kept back,
    /// since a message that was acknowledged does not vanish here.
    pub fn effect(self) -> Effect {
        match self {
            Advice::NoAction | Advice::Greylist | Advice::Other => Effect::None,
            Advice::AddHeader | Advice::RewriteSubject => Effect::Action(Action::Tag),
            Advice::SoftReject => Effect::Action(Action::Defer),
            Advice::Reject => Effect::Action(Action::Reject),
            Advice::Quarantine | Advice::Discard => Effect::Action(Action::Quarantine),
        }
    }
}

impl Failure {
    /// Its name in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Failure::Late => "late",
            Failure::Unreachable => "unreachable",
            Failure::Broken => "broken",
            Failure::Status(_) => "status",
            Failure::Strange => "strange",
            Failure::TooLarge => "too_large",
            Failure::Unreadable => "unreadable",
            Failure::NoTurn => "no_turn",
        }
    }
}
