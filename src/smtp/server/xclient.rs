//! XCLIENT as its server sees it: when it may come, and what is left of a session after it.
//!
//! What stands in it `crate::smtp::xclient` reads; whether the client is changed is the driver's
//! to say, at [`Event::Introduce`].

use std::time::Instant;

use super::{Client, Event, Haste, Phase, Refusal, Server};
use crate::smtp::xclient::Introduction;

impl Server {
    /// Lets the client send XCLIENT, which EHLO then offers, also after it has sent one.
    pub fn permit_xclient(&mut self) {
        self.may_introduce = true;
    }

    /// What a proxy says at [`Event::Introduce`].
    pub fn introduction(&self) -> Option<&Introduction> {
        match &self.phase {
            Phase::Introducing(introduction) => Some(introduction),
            _ => None,
        }
    }

    /// The client is another one from here on, and is greeted; or the session ends.
    ///
    /// Nothing is left of what was said before, but the count of commands that did nothing, or
    /// there would be no end of them.  What a client may do is to be permitted anew.
    pub fn introduced(&mut self, now: Instant, result: Result<(), Refusal>) {
        let asked = self.resume(now, |phase| match phase {
            Phase::Introducing(told) => Ok(told),
            phase => Err(phase),
        });
        let Some(told) = asked else { return };
        if let Err(refusal) = result {
            return self.close(refusal);
        }
        self.client = told.helo.map(|helo| Client {
            helo,
            extended: !told.is_plain,
            secured: self.is_secured,
            authenticated: None,
        });
        self.haste = Haste::Forbidden;
        self.may_start_queues = false;
        self.auth_failures = 0;
        self.errors = 0;
        self.replies.greet(&self.config.hostname);
        self.idled();
    }

    pub(super) fn xclient(&mut self, arguments: &str) -> Event {
        // For everybody else there is no such command.
        if !self.may_introduce {
            return self.refused(Refusal::UnknownCommand);
        }
        if self.transaction.is_some() {
            return self.refused(Refusal::NestedMail);
        }
        let Some(introduction) = Introduction::parse(arguments) else {
            return self.refused(Refusal::BadArgument);
        };
        self.phase = Phase::Introducing(Box::new(introduction));
        Event::Introduce
    }
}
