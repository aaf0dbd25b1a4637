//! Who asks for recipients that are not there: counted by session and by address, slowed, and then
//! cut off.
//!
//! Pure but for the lock of its bounded table; time is an argument.  A session's count only grows.
//! An address's goes down with each recipient that is there, so that a large sender, whose mail
//! has a wrong address among hundreds now and then, is never taken for somebody who guesses; and
//! so that who guesses gains nothing by a new connection.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::auth::table::{Lapses, Table};
use crate::auth::throttle::network;
use crate::limits;

/// The counts of addresses, for all workers.
pub struct Harvest {
    by_address: Table<IpAddr, Count>,
}

struct Count {
    unknown: u32,
    forgotten: Instant,
}

impl Lapses for Count {
    fn lapses(&self) -> Instant {
        self.forgotten
    }
}

/// What follows from one more unknown recipient.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Consequence {
    /// How long its reply waits.
    pub wait: Duration,
    /// The session ends.
    pub is_cut_off: bool,
}

impl Default for Harvest {
    fn default() -> Harvest {
        Harvest { by_address: Table::new(limits::AUTH_TABLE) }
    }
}

impl Harvest {
    /// A client asked for somebody who is not there, the `in_session`th of its session, counted
    /// from 1; `most` are borne, and `tarpit` is what the first one waits.
    pub fn unknown(
        &self,
        client: IpAddr,
        in_session: u32,
        most: u32,
        tarpit: Duration,
        now: Instant,
    ) -> Consequence {
        let fresh = || Count { unknown: 0, forgotten: now };
        let of_address = self.by_address.change(&network(client), now, fresh, |count| {
            if count.forgotten <= now {
                count.unknown = 0;
            }
            count.unknown = count.unknown.saturating_add(1);
            count.forgotten = now + MEMORY;
            count.unknown
        });
        let count = in_session.max(of_address);
        let wait = tarpit.saturating_mul(count).min(limits::TARPIT_MAX.max(tarpit));
        Consequence { wait, is_cut_off: count >= most }
    }

    /// A client asked for somebody who is there.
    pub fn known(&self, client: IpAddr) {
        self.by_address.adjust(&network(client), |count| {
            count.unknown = count.unknown.saturating_sub(1);
        });
    }
}

/// An address is forgotten so long after its last unknown recipient.
const MEMORY: Duration = Duration::from_secs(10 * 60);

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    #[test]
    fn waits_grow_and_end_the_session_and_a_new_one_does_not_help() {
        let (harvest, now) = (Harvest::default(), Instant::now());
        let ask = |in_session| harvest.unknown(CLIENT, in_session, 3, Duration::from_secs(2), now);
        let wait = |s| Duration::from_secs(s);
        assert_eq!(ask(1), Consequence { wait: wait(2), is_cut_off: false });
        assert_eq!(ask(2), Consequence { wait: wait(4), is_cut_off: false });
        assert_eq!(ask(3), Consequence { wait: wait(6), is_cut_off: true });
        assert_eq!(ask(1), Consequence { wait: wait(8), is_cut_off: true }, "a new session");
        for _ in 0..100 {
            assert!(ask(1).wait <= limits::TARPIT_MAX);
        }
        let other = IpAddr::from([192, 0, 2, 2]);
        assert!(!harvest.unknown(other, 1, 3, Duration::ZERO, now).is_cut_off);
        let later = now + MEMORY;
        let after = harvest.unknown(CLIENT, 1, 3, Duration::ZERO, later);
        assert_eq!(after, Consequence { wait: Duration::ZERO, is_cut_off: false });
    }

    #[test]
    fn who_writes_to_many_that_are_there_may_be_wrong_now_and_then() {
        let (harvest, now) = (Harvest::default(), Instant::now());
        for _ in 0..1_000 {
            harvest.known(CLIENT);
            harvest.known(CLIENT);
            assert!(!harvest.unknown(CLIENT, 1, 3, Duration::ZERO, now).is_cut_off);
        }
    }

    #[test]
    fn a_network_of_ipv6_is_one_client() {
        let (harvest, now) = (Harvest::default(), Instant::now());
        for last in 0..3_u16 {
            let client = IpAddr::from([0x2001, 0xdb8, 0, 1, 0, 0, 0, last]);
            let found = harvest.unknown(client, 1, 3, Duration::ZERO, now);
            assert_eq!(found.is_cut_off, last == 2);
        }
    }
}
