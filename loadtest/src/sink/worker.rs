//! A thread of the sink: its sockets, its counts, its way to the ledger.

use std::cell::RefCell;
use std::net::{IpAddr, TcpListener};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use fastrand::Rng;
use monoio::io::{CancelHandle, Canceller};

use super::dialogue::{Dialogue, Next, Surroundings};
use super::sites::{Reception, Site};
use super::world::{Security, Treatment, World};
use super::{Live, OpenPort, SinkError, session};
use crate::ledger::record::{LedgerFile, Record, Writer};
use crate::report::sink::Counts;
use crate::runtime::link::{Listener, sweep_forever};
use crate::runtime::{self, sleep, spawn};

/// How often a thread tells what it has done, and writes its records.
const PUBLISH: Duration = Duration::from_millis(50);
/// The wait after an accept that failed: out of descriptors, nearly always.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// What the sessions of one thread share.
struct Worker {
    world: Arc<World>,
    counts: RefCell<Counts>,
    random: RefCell<Rng>,
    ledger: Option<RefCell<Writer>>,
}

/// A port as one thread's sessions see it.
pub struct Place {
    /// The port, of all threads together.
    pub port: Arc<OpenPort>,
    worker: Rc<Worker>,
}

/// A session where it takes place; leaves the counts when dropped.
pub struct Guest<'a> {
    place: &'a Place,
    whose: Treatment,
    address: u32,
    /// Whether it was counted in at the port, and at the site.
    is_in: (bool, bool),
}

/// Runs one thread until the sink is to end.
pub fn run(
    world: Arc<World>,
    live: Arc<Live>,
    ledger: Option<LedgerFile>,
    places: Vec<(Arc<OpenPort>, TcpListener)>,
    thread: usize,
) -> Result<Counts, SinkError> {
    let worker = Rc::new(Worker {
        world,
        counts: RefCell::default(),
        random: RefCell::new(Rng::with_seed(thread as u64)),
        ledger: ledger.map(|ledger| RefCell::new(ledger.writer())),
    });
    let ended = runtime::run(worker.clone().drive(live, places));
    ended.and_then(|inner| inner).map_err(SinkError::Thread)?;
    if let Some(writer) = &worker.ledger {
        let mut writer = writer.borrow_mut();
        writer.flush();
        writer.check().map_err(SinkError::Ledger)?;
    }
    Ok(*worker.counts.borrow())
}

impl Worker {
    async fn drive(
        self: Rc<Self>,
        live: Arc<Live>,
        places: Vec<(Arc<OpenPort>, TcpListener)>,
    ) -> std::io::Result<()> {
        spawn(sweep_forever());
        let canceller = Canceller::new();
        for (port, socket) in places {
            let place = Rc::new(Place { port, worker: self.clone() });
            let listener = Listener::new(socket)?;
            spawn(accept_forever(place, listener, canceller.handle(), live.clone()));
        }
        let mut published = Counts::default();
        while !live.stop.load(Ordering::Relaxed) {
            sleep(PUBLISH).await;
            let counts = *self.counts.borrow();
            let messages = counts.messages - published.messages;
            let connections = counts.connections - published.connections;
            live.messages.fetch_add(messages, Ordering::Relaxed);
            live.connections.fetch_add(connections, Ordering::Relaxed);
            published = counts;
            if let Some(ledger) = &self.ledger {
                ledger.borrow_mut().flush();
            }
        }
        canceller.cancel();
        Ok(())
    }
}

async fn accept_forever(
    place: Rc<Place>,
    listener: Listener,
    cancel: CancelHandle,
    live: Arc<Live>,
) {
    while !live.stop.load(Ordering::Relaxed) {
        match listener.accept(cancel.clone()).await {
            Ok((link, peer)) => {
                place.worker.counts.borrow_mut().connections += 1;
                spawn(session::serve(place.clone(), link, peer));
            }
            Err(_) => sleep(ACCEPT_PAUSE).await,
        }
    }
}

impl Place {
    /// A session on a connection to `address` (None: it does not matter which).
    pub fn guest(&self, address: Option<IpAddr>) -> Guest<'_> {
        let sites = &self.worker.world.sites;
        let site = address.and_then(|address| sites.at(address));
        let manners = site.map_or(self.port.port.manners, |site| sites.site(site).manners);
        let address = match address {
            Some(IpAddr::V4(address)) => u32::from(address),
            _ => 0,
        };
        let whose = Treatment { manners, site };
        Guest { place: self, whose, address, is_in: (false, false) }
    }

    /// How connections may be encrypted.
    pub fn security(&self) -> Option<&Security> {
        self.worker.world.security.as_ref()
    }

    /// Whether a session must ask which address it is on.
    pub fn needs_address(&self) -> bool {
        !self.worker.world.sites.is_empty() || self.port.port.listen.ip().is_unspecified()
    }
}

impl Guest<'_> {
    /// Counts the session in, unless the port or the site has as many as it takes.
    pub fn is_admitted(&mut self) -> bool {
        let port = &*self.place.port;
        self.is_in.0 = port.traffic.enter(port.port.sessions);
        if self.is_in.0 {
            self.is_in.1 = self.site().is_none_or(|site| site.traffic.enter(site.limit));
        }
        let is_admitted = self.is_in == (true, true);
        if !is_admitted {
            self.place.worker.counts.borrow_mut().turned_away += 1;
        }
        is_admitted
    }

    /// What the site does instead of a greeting.
    pub fn reception(&self) -> Option<&Reception> {
        self.site().and_then(|site| site.reception.as_ref())
    }

    fn site(&self) -> Option<&Site> {
        self.whose.site.map(|site| self.place.worker.world.sites.site(site))
    }

    /// Lets a session's dialogue handle what has come.
    pub fn talk(&self, dialogue: &mut Dialogue, bytes: &[u8], out: &mut Vec<u8>) -> (usize, Next) {
        let before = dialogue.messages();
        let taken = self.around(|around| dialogue.take(bytes, around, out));
        let more = u64::from(dialogue.messages() - before);
        if more > 0 {
            self.place.port.traffic.took(more);
            if let Some(site) = self.site() {
                site.traffic.took(more);
            }
        }
        taken
    }

    /// The connection has ended.
    pub fn end(&self, dialogue: &mut Dialogue) {
        self.around(|around| dialogue.ended(around));
    }

    fn around<T>(&self, act: impl FnOnce(&mut Surroundings) -> T) -> T {
        let worker = &*self.place.worker;
        let mut writer = worker.ledger.as_ref().map(RefCell::borrow_mut);
        let mut record = writer.as_mut().map(|writer| |record: Record| writer.record(record));
        act(&mut Surroundings {
            world: &worker.world,
            port: &self.place.port.port,
            whose: self.whose,
            address: self.address,
            offers_tls: self.place.security().is_some_and(|security| !security.is_implicit),
            random: &mut worker.random.borrow_mut(),
            counts: &mut worker.counts.borrow_mut(),
            ledger: record.as_mut().map(|record| record as &mut dyn FnMut(Record)),
        })
    }
}

impl Drop for Guest<'_> {
    fn drop(&mut self) {
        if self.is_in.0 {
            self.place.port.traffic.leave();
        }
        if let (true, Some(site)) = (self.is_in.1, self.site()) {
            site.traffic.leave();
        }
    }
}
