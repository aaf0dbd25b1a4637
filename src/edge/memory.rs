//! Whom the edge filter knows: strangers that were told to come again, and senders that are good.
//!
//! A stranger is a network (/24, or /64 for IPv6), a sender and a recipient.  It is told to come
//! again, and when it does in time it is good: its network for the sender's domain from then on,
//! and the network for all domains once that has happened a few times, because whoever retries is
//! a real mail server.  Senders whose mail was accepted without anything against it are good too.
//! All of it is forgotten some time after the last mail.
//!
//! The two kinds are in two tables of a fixed size ([`Slots`]), so that a flood of strangers pushes
//! out no good sender.  What stands there are hashes under a random key: nobody can foresee where
//! an entry lies, and the file on disk tells nobody who writes to whom.
//!
//! Pure but for the locks of its tables; time is an argument.  It never fails: what is not
//! remembered is a stranger.  Keeping it on disk is [`super::memory_file`]'s.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aws_lc_rs::hmac;

use super::slots::{Entry, Key, Seconds, Slots};
use crate::config::Greylist;
use crate::peers::network::Network;

/// See the module's text.
pub struct Memory {
    secret: Secret,
    hasher: hmac::Key,
    delay: Duration,
    window: Duration,
    keep: Duration,
    pub(super) strangers: Slots,
    pub(super) good: Slots,
    is_changed: AtomicBool,
}

/// The key of the hashes.
pub type Secret = [u8; 32];

/// What is known of who writes to whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acquaintance {
    /// A good sender.
    Known,
    /// A stranger that came again in time, and is a good sender from now on.
    Returned {
        /// After so long.
        after: Duration,
    },
    /// A stranger that has to come again.
    Stranger {
        /// After so long at least.
        wait: Duration,
    },
}

/// How often strangers of a network came again before the network is good for all senders.
const TRUSTED_FROM: u32 = 5;
/// What is hashed into the name of a network itself, which no domain begins with.
const WHOLE_NETWORK: &str = "\0";

impl Memory {
    /// Nobody is known; `settings` are the greylist's, or its defaults where there is none.
    pub fn new(settings: &Greylist, secret: Secret) -> Memory {
        Memory {
            secret,
            hasher: hmac::Key::new(hmac::HMAC_SHA256, &secret),
            delay: settings.delay,
            window: settings.window,
            keep: settings.keep,
            strangers: Slots::new(settings.entries),
            good: Slots::new(settings.entries),
            is_changed: AtomicBool::new(false),
        }
    }

    /// Whether a good sender has come from this network.
    pub fn knows(&self, client: IpAddr, now: Seconds) -> bool {
        self.is_good(self.prints(client).key(&[WHOLE_NETWORK]), now).is_some()
    }

    /// Somebody writes to somebody: `sender` and `recipient` are paths without their brackets.
    pub fn meet(
        &self,
        client: IpAddr,
        sender: &str,
        recipient: &str,
        now: Seconds,
    ) -> Acquaintance {
        let prints = self.prints(client);
        let network = prints.key(&[WHOLE_NETWORK]);
        let domain = prints.key(&[&domain(sender)]);
        let is_trusted = self.is_good(network, now).is_some_and(|seen| seen.count >= TRUSTED_FROM);
        if is_trusted || self.is_good(domain, now).is_some() {
            return Acquaintance::Known;
        }
        let (sender, recipient) = (sender.to_ascii_lowercase(), recipient.to_ascii_lowercase());
        let stranger = prints.key(&[&sender, &recipient]);
        self.is_changed.store(true, Ordering::Relaxed);
        let met = self.strangers.entry(stranger);
        let met = met.filter(|&met| self.is_fresh(Table::Strangers, met, now));
        let Some(met) = met else {
            self.strangers.put(stranger, Entry { at: now, count: 1 });
            return Acquaintance::Stranger { wait: self.delay };
        };
        let waited = Duration::from_secs(now.since(met.at));
        if waited < self.delay {
            return Acquaintance::Stranger { wait: self.delay - waited };
        }
        self.strangers.remove(stranger);
        self.good.put(domain, Entry { at: now, count: 1 });
        self.remember(network, now, 1);
        Acquaintance::Returned { after: waited }
    }

    /// Mail of a sender was accepted: what is known of it stays known.  Where `is_clean` says that
    /// nothing spoke against the client it is good from now on.
    pub fn accepted(&self, client: IpAddr, sender: &str, is_clean: bool, now: Seconds) {
        let prints = self.prints(client);
        let network = prints.key(&[WHOLE_NETWORK]);
        let domain = prints.key(&[&domain(sender)]);
        for key in [network, domain] {
            if is_clean || self.is_good(key, now).is_some() {
                self.remember(key, now, 0);
                self.is_changed.store(true, Ordering::Relaxed);
            }
        }
    }

    /// The key of its hashes.
    pub fn secret(&self) -> &Secret {
        &self.secret
    }

    /// Whether anything has changed since the last call.
    pub fn take_changed(&self) -> bool {
        self.is_changed.swap(false, Ordering::Relaxed)
    }

    /// Says that what has changed has not been written after all.
    pub fn put_changed(&self) {
        self.is_changed.store(true, Ordering::Relaxed);
    }

    /// Whether an entry of that age says anything still.
    pub(super) fn is_fresh(&self, table: Table, entry: Entry, now: Seconds) -> bool {
        let age = now.since(entry.at);
        match table {
            Table::Strangers => age <= self.window.max(self.delay).as_secs(),
            Table::Good => age <= self.keep.as_secs(),
        }
    }

    fn is_good(&self, key: Key, now: Seconds) -> Option<Entry> {
        self.good.entry(key).filter(|&entry| self.is_fresh(Table::Good, entry, now))
    }

    fn remember(&self, key: Key, now: Seconds, more: u32) {
        let count = self.is_good(key, now).map_or(0, |entry| entry.count);
        self.good.put(key, Entry { at: now, count: count.saturating_add(more).max(1) });
    }

    fn prints(&self, client: IpAddr) -> Prints {
        let network = Network::of(client).octets();
        let mut begun = hmac::Context::with_key(&self.hasher);
        begun.update(&network);
        Prints { network: first_word(begun.clone().sign().as_ref()), begun }
    }
}

/// Makes the keys of one client, whose network is hashed once for all of them.
struct Prints {
    network: u64,
    /// The hash of a key as far as the network.
    begun: hmac::Context,
}

impl Prints {
    fn key(&self, subject: &[&str]) -> Key {
        let mut whole = self.begun.clone();
        for text in subject {
            whole.update(&(text.len() as u64).to_le_bytes());
            whole.update(text.as_bytes());
        }
        Key { network: self.network, subject: first_word(whole.sign().as_ref()) }
    }
}

/// The tables of a memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Table {
    Strangers,
    Good,
}

fn first_word(hash: &[u8]) -> u64 {
    hash.iter().take(8).fold(0, |word, &octet| word << 8 | u64::from(octet))
}

/// The domain of a sender in lower case; empty for the null path, for whose mail each server
/// speaks itself.
fn domain(sender: &str) -> String {
    sender.rsplit_once('@').map_or("", |(_, domain)| domain).to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: u32 = 60;
    const DAY: u32 = 86_400;
    const BEGIN: u32 = 1_700_000_000;

    fn memory() -> Memory {
        Memory::new(&Greylist { entries: 10_000, ..Greylist::default() }, [7; 32])
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn meet(memory: &Memory, client: &str, from: &str, to: &str, after: u32) -> Acquaintance {
        memory.meet(ip(client), from, to, Seconds(BEGIN + after))
    }

    fn wait(minutes: u64) -> Acquaintance {
        Acquaintance::Stranger { wait: Duration::from_secs(60 * minutes) }
    }

    #[test]
    fn a_stranger_comes_again_and_is_known() {
        let memory = memory();
        let met = |client, after| meet(&memory, client, "a@x.example", "b@here.example", after);
        assert_eq!(met("192.0.2.1", 0), wait(5));
        assert_eq!(met("192.0.2.1", 2 * MINUTE), wait(3), "too early, and no later for that");
        assert!(!memory.knows(ip("192.0.2.1"), Seconds(BEGIN + 2 * MINUTE)));
        // From a neighbour, as large senders do.
        let after = Duration::from_secs(300);
        assert_eq!(met("192.0.2.200", 5 * MINUTE), Acquaintance::Returned { after });
        assert_eq!(met("192.0.2.1", 5 * MINUTE), Acquaintance::Known);
        assert!(memory.knows(ip("192.0.2.9"), Seconds(BEGIN + 6 * MINUTE)));
        assert_eq!(met("198.51.100.1", 5 * MINUTE), wait(5), "somebody else");
    }

    #[test]
    fn spelling_makes_no_stranger_and_recipients_do() {
        let memory = memory();
        meet(&memory, "192.0.2.1", "A@x.Example", "B@here.example", 0);
        let met = meet(&memory, "192.0.2.1", "a@X.example", "b@HERE.example", 6 * MINUTE);
        assert!(matches!(met, Acquaintance::Returned { .. }), "{met:?}");
        assert_eq!(meet(&memory, "192.0.2.1", "a@y.example", "b@here.example", 0), wait(5));
        assert_eq!(meet(&memory, "192.0.2.1", "a@y.example", "c@here.example", 360), wait(5));
        // Where one word ends and the next begins counts.
        assert_eq!(meet(&memory, "192.0.2.1", "a@y.exampleb", "@here.example", 360), wait(5));
    }

    #[test]
    fn who_comes_too_late_begins_anew() {
        let memory = memory();
        let met = |after| meet(&memory, "192.0.2.1", "", "b@here.example", after);
        assert_eq!(met(0), wait(5));
        assert_eq!(met(DAY + 1), wait(5), "the window is over");
        assert!(matches!(met(DAY + 1 + 5 * MINUTE), Acquaintance::Returned { .. }));
        assert_eq!(met(30 * DAY), Acquaintance::Known);
        assert_eq!(met(80 * DAY), wait(5), "nothing came for more than 36 days");
    }

    #[test]
    fn mail_keeps_a_sender_known() {
        let memory = memory();
        let client = ip("192.0.2.1");
        let accept = |sender, is_clean, day: u32| {
            memory.accepted(client, sender, is_clean, Seconds(BEGIN + day * DAY));
        };
        accept("a@x.example", false, 0);
        assert!(!memory.knows(client, Seconds(BEGIN)), "it was suspect");
        for day in (0..365).step_by(30) {
            accept("a@x.example", day == 0, day);
        }
        let met = |sender| meet(&memory, "192.0.2.1", sender, "b@here.example", 366 * DAY);
        assert_eq!(met("b@x.example"), Acquaintance::Known);
        assert_eq!(met("b@y.example"), wait(5), "one domain is no proof for another");
        assert!(memory.knows(client, Seconds(BEGIN + 366 * DAY)));
    }

    #[test]
    fn a_network_that_keeps_coming_again_is_trusted() {
        let memory = memory();
        for number in 0..TRUSTED_FROM {
            let sender = format!("a@x{number}.example");
            assert_eq!(meet(&memory, "192.0.2.1", &sender, "b@here.example", 0), wait(5));
            meet(&memory, "192.0.2.1", &sender, "b@here.example", 5 * MINUTE);
        }
        let met = meet(&memory, "192.0.2.7", "a@new.example", "b@here.example", 5 * MINUTE);
        assert_eq!(met, Acquaintance::Known);
    }

    /// They are on disk: another hash would make strangers of all.
    #[test]
    fn keys_stay_what_they_were() {
        let (memory, client) = (memory(), ip("2001:db8::77"));
        let network = Network::of(client).octets();
        let word = |octets: &[u8]| first_word(hmac::sign(&memory.hasher, octets).as_ref());
        for subject in [&["a@x.example", "b@y.example"][..], &[""], &[]] {
            let mut whole = network.to_vec();
            for text in subject {
                whole.extend_from_slice(&(text.len() as u64).to_le_bytes());
                whole.extend_from_slice(text.as_bytes());
            }
            let key = Key { network: word(&network), subject: word(&whole) };
            assert_eq!(memory.prints(client).key(subject), key, "{subject:?}");
        }
    }

    /// A flood of strangers costs good senders nothing.
    #[test]
    fn strangers_push_out_no_good_sender() {
        let memory = Memory::new(&Greylist { entries: 1_000, ..Greylist::default() }, [7; 32]);
        memory.accepted(ip("192.0.2.1"), "a@x.example", true, Seconds(BEGIN));
        for number in 0..20_000u32 {
            let client = format!("10.{}.{}.1", number / 256, number % 256);
            meet(&memory, &client, "a@x.example", "b@here.example", 1);
        }
        let met = meet(&memory, "192.0.2.1", "a@x.example", "b@here.example", 2);
        assert_eq!(met, Acquaintance::Known);
        let strangers: usize = memory.strangers.parts().map(|part| part.len()).sum();
        assert!(strangers <= 1_024, "{strangers}");
    }

    #[test]
    fn a_clock_that_goes_back_harms_nobody() {
        let memory = memory();
        let met = |at| memory.meet(ip("192.0.2.1"), "a@x.example", "b@y.example", Seconds(at));
        assert_eq!(met(BEGIN), wait(5));
        assert_eq!(met(0), wait(5));
        assert!(matches!(met(BEGIN + 300), Acquaintance::Returned { .. }));
        assert_eq!(met(0), Acquaintance::Known);
    }
}
