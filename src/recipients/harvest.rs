//! Who asks for recipients that are not here: counted by address, beside the sessions' own counts,
//! after which a session is cut off.
//!
//! Pure but for the lock of its bounded table; time is an argument.  A session's count only grows.
//! An address's goes down with each recipient that is here, so that a large sender, whose mail
//! has a wrong address among hundreds now and then, is never taken for somebody who guesses; and
//! so that who guesses gains nothing by a new connection.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::limits;
use crate::peers::lapsing::{Lapses, Table};
use crate::peers::network::Host;

/// The counts of addresses, for all workers.
pub struct Harvest {
    by_address: Table<Host, Count>,
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

impl Default for Harvest {
    fn default() -> Harvest {
        Harvest { by_address: Table::new(limits::PEERS_REMEMBERED) }
    }
}

impl Harvest {
    /// A client asked for somebody who is not here: how many of late its address did.
    pub fn unknown(&self, client: IpAddr, now: Instant) -> u32 {
        let fresh = || Count { unknown: 0, forgotten: now };
        self.by_address.change(&Host::of(client), now, fresh, |count| {
            if count.forgotten <= now {
                count.unknown = 0;
            }
            count.unknown = count.unknown.saturating_add(1);
            count.forgotten = now + MEMORY;
            count.unknown
        })
    }

    /// A client asked for somebody who is here.
    pub fn known(&self, client: IpAddr) {
        self.by_address.adjust(&Host::of(client), |count| {
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
    fn an_address_is_counted_whatever_its_sessions_and_forgotten_in_time() {
        let (harvest, now) = (Harvest::default(), Instant::now());
        assert_eq!([1, 2, 3].map(|_| harvest.unknown(CLIENT, now)), [1, 2, 3]);
        assert_eq!(harvest.unknown(IpAddr::from([192, 0, 2, 2]), now), 1);
        assert_eq!(harvest.unknown(CLIENT, now + MEMORY - Duration::from_millis(1)), 4);
        assert_eq!(harvest.unknown(CLIENT, now + 2 * MEMORY), 1);
    }

    #[test]
    fn who_writes_to_many_that_are_here_may_be_wrong_now_and_then() {
        let (harvest, now) = (Harvest::default(), Instant::now());
        for _ in 0..1_000 {
            harvest.known(CLIENT);
            harvest.known(CLIENT);
            assert_eq!(harvest.unknown(CLIENT, now), 1);
        }
    }

    #[test]
    fn a_network_of_ipv6_is_one_client() {
        let (harvest, now) = (Harvest::default(), Instant::now());
        for last in 0..3_u16 {
            let client = IpAddr::from([0x2001, 0xdb8, 0, 1, 0, 0, 0, last]);
            assert_eq!(harvest.unknown(client, now), u32::from(last) + 1);
        }
    }
}
