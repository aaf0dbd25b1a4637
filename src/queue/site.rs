//! What the cores share of a site: a few atomics, and which cores serve it.
//!
//! A site is served by `k` member cores: those that have messages for it or connections to it.
//! While it is quiet, messages that other cores accept go to its home core, so that a quiet site
//! keeps few connections; with a backlog the others keep theirs and so join, up to one for each
//! connection of the limit.  Whoever has nothing left has left.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use crossbeam::utils::CachePadded;

use crate::delivery::reach::Reach;
use crate::limits;

/// A site's place in the table of one core's scheduler.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SiteIndex(pub u32);

/// A site's name among all that this process has known: never given twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SiteId(pub u64);

/// What the members of a site share.
pub struct SiteShared {
    id: SiteId,
    /// For people: its hosts, or its next hop.
    name: Box<str>,
    /// How connections to it are made.
    reach: Reach,
    /// The most connections of all cores together.
    limit: u32,
    /// The core that serves it while it is quiet.
    home: u32,
    /// In use, opening ones counted.  `connections <= limit`
    connections: CachePadded<AtomicU32>,
    /// Of those, the ones whose peer has answered.  `established <= connections`
    established: CachePadded<AtomicU32>,
    /// How many cores serve the site.  `members <= min(cores, limit)`
    members: CachePadded<AtomicU32>,
    /// A member has more waiting than it can send soon.
    busy: AtomicBool,
    /// No connection is opened before then; 0 when the site is well.
    rests_until_unix_ms: AtomicU64,
    /// Connections that failed in a row.
    failures: AtomicU32,
    /// Fresh connections in a row that ended without a word on a message.
    silences: AtomicU32,
    /// It announces CHUNKING and does not know BDAT.
    chunking_broken: AtomicBool,
    /// It took a message whose envelope went in one group and whose body went by BDAT.
    has_behaved: AtomicBool,
    /// It loses count when an envelope and its body come in one flight.
    one_flight_broken: AtomicBool,
    /// Until then mail goes there in clear, where its policy allows it: TLS has failed.
    tls_broken_until_unix_ms: AtomicU64,
    /// How it failed, for people.
    tls_failure: Mutex<String>,
    /// What the last failure was, for people.
    last_failure: Mutex<String>,
}

/// A connection whose peer has answered.
pub struct Established<'a>(&'a SiteShared);

impl Drop for Established<'_> {
    fn drop(&mut self) {
        self.0.established.fetch_sub(1, Ordering::AcqRel);
    }
}

impl SiteShared {
    /// A site with a home chosen by its number, so that homes are spread evenly.
    pub fn new(id: SiteId, name: &str, limit: u32, cores: u32, reach: Reach) -> SiteShared {
        let cores = cores.max(1);
        SiteShared {
            id,
            name: name.into(),
            reach,
            limit: limit.max(1),
            home: (id.0 % u64::from(cores)) as u32,
            connections: CachePadded::new(AtomicU32::new(0)),
            established: CachePadded::new(AtomicU32::new(0)),
            members: CachePadded::new(AtomicU32::new(0)),
            busy: AtomicBool::new(false),
            rests_until_unix_ms: AtomicU64::new(0),
            failures: AtomicU32::new(0),
            silences: AtomicU32::new(0),
            chunking_broken: AtomicBool::new(false),
            has_behaved: AtomicBool::new(false),
            one_flight_broken: AtomicBool::new(false),
            tls_broken_until_unix_ms: AtomicU64::new(0),
            tls_failure: Mutex::new(String::new()),
            last_failure: Mutex::new(String::new()),
        }
    }

    /// Its number.
    pub fn id(&self) -> SiteId {
        self.id
    }

    /// Its name for people.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How connections to it are made.
    pub fn reach(&self) -> &Reach {
        &self.reach
    }

    /// The most connections of all cores together.
    pub fn limit(&self) -> u32 {
        self.limit
    }

    /// How many cores serve it.
    pub fn members(&self) -> u32 {
        self.members.load(Ordering::Relaxed)
    }

    /// The core to hand a message to that was accepted on `core`, which does not serve the site:
    /// itself if it may join because the others are busy, else the home.
    pub(super) fn core_for(&self, core: u32, cores: u32) -> u32 {
        let joins = self.busy.load(Ordering::Relaxed) && self.can_serve(core, cores);
        if joins { core } else { self.home }
    }

    /// Whether `core` may serve the site at all: a site has no more members than connections, and
    /// with few connections it is the same few cores that have them, so that nobody waits for one
    /// that another core keeps busy.
    pub(super) fn can_serve(&self, core: u32, cores: u32) -> bool {
        (core + cores - self.home) % cores < self.limit
    }

    /// The core that serves it while it is quiet.
    pub(super) fn home(&self) -> u32 {
        self.home
    }

    /// One core more serves the site: it has messages for it, or connections to it.
    pub(super) fn join(&self) {
        self.members.fetch_add(1, Ordering::Relaxed);
    }

    /// A core that served the site has neither any more.
    pub(super) fn leave(&self) {
        let before = self.members.fetch_sub(1, Ordering::Relaxed);
        debug_assert!(before > 0, "who leaves has joined");
    }

    /// Says whether a member has more waiting than it can send soon.
    pub(super) fn report_backlog(&self, busy: bool) {
        if self.busy.load(Ordering::Relaxed) != busy {
            self.busy.store(busy, Ordering::Relaxed);
        }
    }

    /// The connections that one member may have.
    pub(super) fn quota(&self) -> u32 {
        self.limit.div_ceil(self.members().max(1))
    }

    /// Whether all cores together have as many connections as they may.
    pub(super) fn is_full(&self) -> bool {
        self.connections() >= self.limit
    }

    /// Takes one connection out of the limit.
    pub(super) fn acquire(&self) -> bool {
        let taken = self.connections.fetch_update(Ordering::AcqRel, Ordering::Relaxed, |used| {
            (used < self.limit).then_some(used + 1)
        });
        taken.is_ok()
    }

    /// Gives it back.
    pub(super) fn release(&self) {
        let before = self.connections.fetch_sub(1, Ordering::AcqRel);
        debug_assert!(before > 0, "every release has its acquire");
    }

    /// Connections in use now.
    pub fn connections(&self) -> u32 {
        self.connections.load(Ordering::Relaxed)
    }

    /// Until when the site rests after failures; `None` when it is well or due for a try.
    pub fn rests_until(&self, now_unix_ms: u64) -> Option<u64> {
        let until = self.rests_until_unix_ms.load(Ordering::Relaxed);
        (until > now_unix_ms).then_some(until)
    }

    /// Connections that failed in a row.
    pub fn failures(&self) -> u32 {
        self.failures.load(Ordering::Relaxed)
    }

    /// What the last failure was.
    pub fn last_failure(&self) -> String {
        self.last_failure.lock().map(|text| text.clone()).unwrap_or_default()
    }

    /// A connection could not be made or used: no other is tried before `until_unix_ms`.
    pub fn fail(&self, until_unix_ms: u64, reason: &str) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        self.rests_until_unix_ms.store(until_unix_ms, Ordering::Relaxed);
        if let Ok(mut text) = self.last_failure.lock() {
            text.clear();
            text.push_str(reason);
        }
    }

    /// A connection's peer has answered; it counts until the value is dropped.
    pub fn establish(&self) -> Established<'_> {
        self.established.fetch_add(1, Ordering::AcqRel);
        Established(self)
    }

    /// Connections whose peer has answered.
    pub fn established(&self) -> u32 {
        self.established.load(Ordering::Acquire)
    }

    /// It greeted and then ended the connection without a word on its first message.  Tells
    /// whether it has done so too often in a row to be tried with one message after the other.
    pub fn stays_silent(&self) -> bool {
        let silences = self.silences.fetch_add(1, Ordering::Relaxed) + 1;
        silences >= limits::SITE_SILENCES
    }

    /// The site answers, and takes no more connections just now: those that there are go on.
    pub fn pause(&self, until_unix_ms: u64) {
        self.rests_until_unix_ms.store(until_unix_ms, Ordering::Relaxed);
    }

    /// The site answers.
    pub fn recover(&self) {
        if self.silences.load(Ordering::Relaxed) != 0 {
            self.silences.store(0, Ordering::Relaxed);
        }
        if self.failures.load(Ordering::Relaxed) != 0 {
            self.failures.store(0, Ordering::Relaxed);
            self.rests_until_unix_ms.store(0, Ordering::Relaxed);
        }
    }

    /// Whether BDAT is not to be tried there.
    pub fn chunking_is_broken(&self) -> bool {
        self.chunking_broken.load(Ordering::Relaxed)
    }

    /// BDAT was refused as unknown though CHUNKING is announced.
    pub fn remember_broken_chunking(&self) {
        self.chunking_broken.store(true, Ordering::Relaxed);
    }

    /// Whether TLS has failed there lately.
    pub fn tls_is_broken(&self, now_unix_ms: u64) -> bool {
        now_unix_ms < self.tls_broken_until_unix_ms.load(Ordering::Relaxed)
    }

    /// A handshake failed there, or STARTTLS was refused.
    pub fn remember_broken_tls(&self, until_unix_ms: u64, words: &str) {
        self.tls_broken_until_unix_ms.store(until_unix_ms, Ordering::Relaxed);
        if let Ok(mut text) = self.tls_failure.lock() {
            text.clear();
            text.push_str(words);
        }
    }

    /// Until when mail goes there in clear and how TLS failed; `None` where TLS is well, or not
    /// known to be broken.
    pub fn tls_failure(&self, now_unix_ms: u64) -> Option<(u64, String)> {
        let until_unix_ms = self.tls_broken_until_unix_ms.load(Ordering::Relaxed);
        let text = || self.tls_failure.lock().map(|text| text.clone()).unwrap_or_default();
        (now_unix_ms < until_unix_ms).then(|| (until_unix_ms, text()))
    }

    /// Whether a message went the strict way there and was taken.
    pub fn has_behaved(&self) -> bool {
        self.has_behaved.load(Ordering::Relaxed)
    }

    /// A message went the strict way, by PIPELINING and BDAT, and was taken.
    pub fn remember_behaviour(&self) {
        if !self.has_behaved() {
            self.has_behaved.store(true, Ordering::Relaxed);
        }
    }

    /// Whether envelopes and bodies are not to go there in one flight.
    pub fn one_flight_is_broken(&self) -> bool {
        self.one_flight_broken.load(Ordering::Relaxed)
    }

    /// It lost count of what came in one flight.
    pub fn remember_broken_one_flight(&self) {
        self.one_flight_broken.store(true, Ordering::Relaxed);
    }

    /// An operator wants it tried now.
    pub fn wake(&self) {
        self.rests_until_unix_ms.store(0, Ordering::Relaxed);
    }
}
