//! What all machines of a simulated world share: the clock, the agenda, chance, and the network.
//!
//! Time is virtual and jumps from one entry of the agenda to the next.  The network is a pair of
//! octet queues for each link: what is sent arrives in order, in pieces of any size, after any
//! delay; an end that closes is seen by the other one behind its last octet.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::{Duration, Instant};

use super::books::Books;
use super::gateway::Errand;
use super::plan::Plan;

/// A connection's number in its world.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(pub usize);

/// One of a link's two ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Who opened it.
    Opener = 0,
    /// Who took it.
    Taker = 1,
}

/// Who is at the ends of a link; the gateway is one of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Between {
    /// A client that sends mail to us.
    Client(usize),
    /// A next hop that gets mail from us.
    Peer {
        /// Whose it is.
        site: usize,
    },
}

/// Something that happens at a time.
pub enum Task {
    /// A client connects.
    Begin(usize),
    /// Octets arrive at an end, or the news that the other end is closed.
    Arrive(LinkId, End, Option<Vec<u8>>),
    /// The gateway has something to do, unless it has crashed since.
    Gateway(u32, Errand),
    /// The gateway ends without a word, with or without the power.
    Crash { power: bool },
    /// Somebody starts it again.
    Start,
    /// Every fault ends.
    Heal,
}

struct Link {
    between: Between,
    /// The life of the gateway at one of its ends.
    life: u32,
    is_open: [bool; 2],
    /// When the last octet that was sent by each end arrives.
    last_us: [u64; 2],
}

/// See the module's text.
pub struct Scene {
    pub plan: Plan,
    pub random: fastrand::Rng,
    pub books: Books,
    /// Faults are still on.
    pub is_rough: bool,
    start: Instant,
    now_us: u64,
    agenda: BTreeMap<(u64, u64), Task>,
    entries: u64,
    links: Vec<Link>,
    digest: u64,
    /// Crashes that are still to be had at a bad moment.
    temptations: usize,
    is_traced: bool,
}

/// Where the virtual wall clock begins: in 2026.
const START_UNIX_MS: u64 = 1_780_000_000_000;

impl Scene {
    pub fn new(plan: Plan, random: fastrand::Rng) -> Scene {
        Scene {
            books: Books::new(&plan),
            temptations: plan.bad_moments,
            plan,
            random,
            is_rough: true,
            start: Instant::now(),
            now_us: 0,
            agenda: BTreeMap::new(),
            entries: 0,
            links: Vec::new(),
            digest: 0xcbf2_9ce4_8422_2325,
            is_traced: std::env::var_os("MAILRACE_TRACE").is_some(),
        }
    }

    // ---- time ----------------------------------------------------------------------------

    pub fn now(&self) -> Instant {
        self.start + Duration::from_micros(self.now_us)
    }

    pub fn now_us(&self) -> u64 {
        self.now_us
    }

    pub fn now_unix_ms(&self) -> u64 {
        START_UNIX_MS + self.now_us / 1000
    }

    /// Puts a task on the agenda, some microseconds from now.
    pub fn after(&mut self, wait_us: u64, task: Task) {
        self.entries += 1;
        self.agenda.insert((self.now_us + wait_us, self.entries), task);
    }

    /// Puts a task on the agenda at a time of the machines' clock.
    pub fn at(&mut self, time: Instant, task: Task) {
        let wait = time.saturating_duration_since(self.now());
        self.after(wait.as_micros() as u64, task);
    }

    /// The next task; time jumps to it.
    pub fn next(&mut self) -> Option<Task> {
        let ((at_us, entry), task) = self.agenda.pop_first()?;
        self.now_us = at_us;
        for number in [at_us, entry] {
            self.digest = (self.digest ^ number).wrapping_mul(0x100_0000_01b3);
        }
        Some(task)
    }

    /// A number that two runs share only if the same happened in both.
    pub fn digest(&self) -> u64 {
        self.digest
    }

    // ---- chance --------------------------------------------------------------------------

    pub fn chance(&mut self, permil: u32) -> bool {
        self.random.u32(0..1000) < permil
    }

    /// Chance for trouble, of which there is none once the world has healed.
    pub fn trouble(&mut self, permil: u32) -> bool {
        self.is_rough && self.chance(permil)
    }

    /// A moment at which something is on its way to the disk: a good one for a crash.
    pub fn tempt(&mut self, permil: u32) {
        if self.temptations > 0 && self.trouble(permil) {
            self.temptations -= 1;
            let (wait_us, power) = (self.wait_us(0..15_000), self.random.bool());
            self.after(wait_us, Task::Crash { power });
        }
    }

    pub fn wait_us(&mut self, range: Range<u64>) -> u64 {
        self.random.u64(range)
    }

    /// Counts what happens: a world in which it never does proves nothing about it.
    pub fn happens(&mut self, what: &'static str) {
        self.books.happens(what);
    }

    /// Tells what happens, for whoever looks at one seed.
    pub fn trace(&self, words: impl FnOnce() -> String) {
        if self.is_traced {
            eprintln!("{:>12} {}", self.now_us, words());
        }
    }

    // ---- the network ---------------------------------------------------------------------

    pub fn connect(&mut self, between: Between, life: u32) -> LinkId {
        let last_us = [self.now_us; 2];
        self.links.push(Link { between, life, is_open: [true; 2], last_us });
        LinkId(self.links.len() - 1)
    }

    pub fn between(&self, link: LinkId) -> Between {
        self.links[link.0].between
    }

    pub fn life_of(&self, link: LinkId) -> u32 {
        self.links[link.0].life
    }

    pub fn is_open(&self, link: LinkId, end: End) -> bool {
        self.links[link.0].is_open[end as usize]
    }

    /// Sends from an end, in random pieces.
    pub fn send(&mut self, link: LinkId, from: End, octets: &[u8]) {
        if octets.is_empty() || !self.is_open(link, from) {
            return;
        }
        self.trace(|| format!("{link:?} {from:?} sends {}", Shown(octets)));
        let pieces = if self.chance(300) { self.random.usize(2..7) } else { 1 };
        let mut rest = octets;
        for left in (1..=pieces).rev() {
            let cut = if left == 1 { rest.len() } else { self.random.usize(0..=rest.len()) };
            let (piece, behind) = rest.split_at(cut);
            rest = behind;
            if !piece.is_empty() {
                self.deliver(link, from, Some(piece.to_vec()));
            }
        }
    }

    /// Closes an end for good: it sends nothing more and sees nothing more.
    pub fn close(&mut self, link: LinkId, from: End) {
        if std::mem::replace(&mut self.links[link.0].is_open[from as usize], false) {
            self.trace(|| format!("{link:?} {from:?} closes"));
            self.deliver(link, from, None);
        }
    }

    fn deliver(&mut self, link: LinkId, from: End, what: Option<Vec<u8>>) {
        let wait_us = if self.chance(50) { self.wait_us(0..200_000) } else { self.wait_us(0..900) };
        let last_us = self.links[link.0].last_us[from as usize];
        let at_us = last_us.max(self.now_us + wait_us);
        self.links[link.0].last_us[from as usize] = at_us;
        let to = if from == End::Opener { End::Taker } else { End::Opener };
        self.after(at_us - self.now_us, Task::Arrive(link, to, what));
    }

    /// The gateway of this life is gone, and so are its ends.
    pub fn cut_links(&mut self, life: u32) {
        for place in 0..self.links.len() {
            if self.links[place].life == life {
                let end = match self.links[place].between {
                    Between::Client(_) => End::Taker,
                    Between::Peer { .. } => End::Opener,
                };
                self.close(LinkId(place), end);
            }
        }
    }
}

/// Octets as a trace shows them.
struct Shown<'a>(&'a [u8]);

impl std::fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let octets = self.0;
        if octets.len() <= 200 {
            return write!(f, "{}", octets.escape_ascii());
        }
        write!(f, "{} .. ({} octets)", octets[..120].escape_ascii(), octets.len())
    }
}
