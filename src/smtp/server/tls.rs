//! STARTTLS as its server sees it (RFC 3207): when it may come, what may come before it, and what
//! is left of a session after it.
//!
//! The handshake is the driver's, at [`Event::StartTls`].

use std::time::Instant;

use super::{Event, Haste, Phase, Refusal, Server};
use crate::config::ListenerTls;
use crate::limits;
use crate::smtp::command::Command;
use crate::smtp::line::LineScanner;
use crate::smtp::reply;

impl Server {
    /// The handshake that [`Event::StartTls`] asked for is done: all that is known of the client
    /// is forgotten (RFC 3207 section 4.2), because somebody else may have said it.
    pub fn tls_started(&mut self, now: Instant) {
        if !matches!(self.phase, Phase::StartTls) {
            return;
        }
        self.phase = Phase::Command;
        self.is_secured = true;
        self.lines = LineScanner::default();
        self.client = None;
        self.can_bind = false;
        if self.haste == Haste::Allowed {
            self.haste = Haste::Forbidden;
        }
        self.transaction = None;
        self.deadline = now + limits::SERVER_COMMAND;
    }

    /// Whether STARTTLS can be given now: where it is configured, and once.
    pub(super) fn offers_tls(&self) -> bool {
        let offered = matches!(self.config.tls, ListenerTls::StartTls | ListenerTls::Required);
        offered && !self.is_secured
    }

    /// Whether the session must be encrypted first.
    pub(super) fn lacks_tls(&self) -> bool {
        self.config.tls == ListenerTls::Required && !self.is_secured
    }

    pub(super) fn start_tls(&mut self, now: Instant) -> Event {
        if self.is_secured {
            return self.refused(Refusal::TlsUnderWay);
        }
        if !self.offers_tls() {
            return self.refused(Refusal::NotOffered);
        }
        if self.transaction.is_some() {
            return self.refused(Refusal::NestedMail);
        }
        self.replies.push(reply::START_TLS);
        self.phase = Phase::StartTls;
        self.deadline = now + limits::TLS_HANDSHAKE;
        Event::StartTls
    }
}

/// What may be said before TLS where it is demanded (RFC 3207 section 4), and BDAT, which is
/// refused at its end: its octets follow in any case.
pub(super) fn is_free_of_tls(command: &Command<'_>) -> bool {
    matches!(
        command,
        Command::Ehlo { .. }
            | Command::Noop
            | Command::Quit
            | Command::StartTls
            | Command::Bdat { .. }
            | Command::OtherProtocol
            | Command::Unknown
    )
}
