//! Which name server is asked next, and how long it has.
//!
//! Pure.  The server that answered last time comes first.  A server that is silent loses its turn
//! after a third of the whole time and may get another; one that fails or cannot be reached is
//! left out of the question.  A server that does not know EDNS is asked again without.

use std::time::{Duration, Instant};

/// One question on its way through the servers.
#[derive(Debug)]
pub struct Asking {
    /// The servers still in question, the next one first.
    order: Vec<usize>,
    edns: bool,
    attempts: usize,
    step: Duration,
    deadline: Instant,
}

/// One attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attempt {
    /// The server's place in the configuration.
    pub server: usize,
    /// With EDNS.
    pub edns: bool,
    /// When to give up on it.
    pub deadline: Instant,
}

/// Why an attempt came to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// Nothing was heard in time.
    Silence,
    /// It did not understand the question.
    FormatError,
    /// It cannot or will not answer, now or after another question.
    Unable,
}

impl Asking {
    /// A question to `servers` servers, `first` of them to be asked first, that may take `limit`.
    pub fn new(servers: usize, first: usize, limit: Duration, now: Instant) -> Asking {
        let mut order: Vec<usize> = (0..servers).collect();
        order.rotate_left(first.min(servers.saturating_sub(1)));
        Asking { order, edns: true, attempts: 0, step: limit / STEPS, deadline: now + limit }
    }

    /// What to do next; `None` when there is nobody left to ask or no time.
    pub fn next(&mut self, now: Instant) -> Option<Attempt> {
        let server = *self.order.first()?;
        if now >= self.deadline || self.attempts >= ATTEMPTS {
            return None;
        }
        self.attempts += 1;
        Some(Attempt { server, edns: self.edns, deadline: self.deadline.min(now + self.step) })
    }

    /// The last attempt came to nothing.
    pub fn failed(&mut self, failure: Failure) {
        match failure {
            Failure::FormatError if self.edns => {
                self.edns = false;
                return;
            }
            Failure::Silence => self.order.rotate_left(1),
            Failure::FormatError | Failure::Unable => {
                self.order.remove(0);
            }
        }
        self.edns = true;
    }
}

/// A silent server's part of the whole time is one of so many.
const STEPS: u32 = 3;
/// Attempts of one question, whatever happens.
const ATTEMPTS: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(9);
    const STEP: Duration = Duration::from_secs(3);

    #[test]
    fn a_single_silent_server_is_asked_three_times() {
        let start = Instant::now();
        let mut asking = Asking::new(1, 0, LIMIT, start);
        for round in 0..3 {
            let now = start + round * STEP;
            let deadline = now + STEP;
            assert_eq!(asking.next(now), Some(Attempt { server: 0, edns: true, deadline }));
            asking.failed(Failure::Silence);
        }
        assert_eq!(asking.next(start + LIMIT), None);
    }

    #[test]
    fn the_last_to_answer_is_asked_first_and_a_failing_one_once() {
        let now = Instant::now();
        let mut asking = Asking::new(3, 2, LIMIT, now);
        let mut asked = Vec::new();
        for failure in [Failure::Unable, Failure::Silence, Failure::Unable, Failure::Unable] {
            asked.extend(asking.next(now).map(|attempt| attempt.server));
            asking.failed(failure);
        }
        assert_eq!(asked, [2, 0, 1, 0]);
        assert_eq!(asking.next(now), None);
    }

    #[test]
    fn a_server_without_edns_is_asked_again_without() {
        let now = Instant::now();
        let mut asking = Asking::new(2, 0, LIMIT, now);
        let mut asked = Vec::new();
        for failure in [Failure::FormatError, Failure::FormatError, Failure::Silence] {
            asked.extend(asking.next(now).map(|attempt| (attempt.server, attempt.edns)));
            asking.failed(failure);
        }
        assert_eq!(asked, [(0, true), (0, false), (1, true)]);
    }

    #[test]
    fn no_servers_no_attempt() {
        assert_eq!(Asking::new(0, 0, LIMIT, Instant::now()).next(Instant::now()), None);
    }
}
