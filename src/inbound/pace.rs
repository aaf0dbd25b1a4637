//! How fast a body must come.
//!
//! A body that trickles holds memory, a large one segments of the log as well.  So each has a rate
//! to keep on average after a time of grace, and a higher one while others wait for what it holds.

use std::time::{Duration, Instant};

use crate::limits;
use crate::smtp::server::Server;

/// A body that is on its way in.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    started: Instant,
    octets: u64,
}

impl Pace {
    /// Nothing of it has come.
    pub fn new(now: Instant) -> Pace {
        Pace { started: now, octets: 0 }
    }

    /// The pace to go on with at a read: one begins with each body, and lasts from one chunk of
    /// BDAT to the next.  Behind a chunk that was refused unread no body is left, and the next one
    /// must not be charged for its time.
    pub fn at_read(before: Option<Pace>, server: &Server, now: Instant) -> Option<Pace> {
        match before {
            before if server.in_body() => Some(before.unwrap_or_else(|| Pace::new(now))),
            before => before.filter(|_| server.in_transaction()),
        }
    }

    /// Counts what came.
    pub fn received(&mut self, octets: usize) {
        self.octets += octets as u64;
    }

    /// It was we who did not read for so long.
    pub fn excuse(&mut self, paused: Duration) {
        self.started += paused;
    }

    /// When it has been too slow if nothing more comes.
    pub fn deadline(&self) -> Instant {
        self.at(limits::UPLOAD_GRACE, limits::UPLOAD_RATE_LEAST)
    }

    /// The same while others wait for what it holds.
    pub fn deadline_pressed(&self) -> Instant {
        self.at(limits::UPLOAD_GRACE_PRESSED, limits::UPLOAD_RATE_PRESSED)
    }

    fn at(&self, grace: Duration, octets_a_second: u64) -> Instant {
        self.started + grace + Duration::from_secs(self.octets / octets_a_second)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RouteIndex;
    use crate::smtp::server::Event;

    #[test]
    fn a_refused_chunk_leaves_its_time_to_nobody() {
        let start = Instant::now();
        let seconds = |seconds| start + Duration::from_secs(seconds);
        let mut server = Server::new(crate::inbound::step::test_config(), start);
        let mut pace = None;
        // What comes then, and when the pace began that the next read has.
        let dialogue: [(u64, &[u8], Option<u64>); 10] = [
            // Without a transaction.
            (0, b"EHLO c\r\nBDAT 10\r\n01234", Some(0)),
            (1, b"56789", None),
            (20, b"MAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\n", None),
            (21, b"BDAT 10\r\n", Some(21)),
            (22, b"01234", Some(21)),
            (23, b"56789", Some(21)),
            // Larger than any message may be: the body so far is thrown away.
            (50, b"BDAT 2000\r\nthe first octets", Some(50)),
            (51, &[b'x'; 1984], Some(50)),
            (72, b"RSET\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\n", None),
            (73, b"BDAT 10\r\n0", Some(73)),
        ];
        for (at, octets, began) in dialogue {
            let mut input = octets.to_vec();
            loop {
                let handled = server.handle_bytes(seconds(at), &mut input);
                input.drain(..handled.consumed);
                match handled.event {
                    Event::CheckRecipient => server.recipient_checked(start, Ok(RouteIndex(0))),
                    Event::DropBody => pace = None,
                    Event::NeedInput => break,
                    _ => {}
                }
            }
            pace = Pace::at_read(pace, &server, seconds(at));
            assert_eq!(pace.map(|pace| pace.started), began.map(seconds), "at {at} s");
        }
    }

    #[test]
    fn what_came_earns_time() {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        assert_eq!(pace.deadline(), now + limits::UPLOAD_GRACE);
        assert_eq!(pace.deadline_pressed(), now + limits::UPLOAD_GRACE_PRESSED);
        pace.received(64 * 1024);
        assert_eq!(pace.deadline(), now + limits::UPLOAD_GRACE + Duration::from_secs(64));
        let pressed = limits::UPLOAD_GRACE_PRESSED + Duration::from_secs(8);
        assert_eq!(pace.deadline_pressed(), now + pressed);
        pace.excuse(Duration::from_secs(7));
        assert_eq!(pace.deadline_pressed(), now + pressed + Duration::from_secs(7));
    }
}
