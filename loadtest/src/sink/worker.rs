//! A thread of the sink: its sockets, its counts, its way to the ledger.

use std::cell::RefCell;
use std::net::TcpListener;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use fastrand::Rng;
use monoio::io::{CancelHandle, Canceller};

use super::dialogue::{Dialogue, Next, Surroundings};
use super::world::World;
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

/// A session's place in the port's count; given back when dropped.
pub struct Guest<'a> {
    port: &'a OpenPort,
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
    /// Counts a session in, unless the port has as many as it takes.
    pub fn admit(&self) -> Option<Guest<'_>> {
        let port = &*self.port;
        let before = port.sessions.fetch_add(1, Ordering::Relaxed);
        // Counted before it is judged, so that two threads cannot both take the last place.
        let guest = Guest { port };
        if port.port.sessions.is_some_and(|most| before >= most) {
            self.worker.counts.borrow_mut().turned_away += 1;
            return None;
        }
        Some(guest)
    }

    /// Lets a session's dialogue handle what has come.
    pub fn talk(&self, dialogue: &mut Dialogue, bytes: &[u8], out: &mut Vec<u8>) -> (usize, Next) {
        let worker = &*self.worker;
        let mut writer = worker.ledger.as_ref().map(RefCell::borrow_mut);
        let mut record = writer.as_mut().map(|writer| |record: Record| writer.record(record));
        let mut around = Surroundings {
            world: &worker.world,
            port: &self.port.port,
            random: &mut worker.random.borrow_mut(),
            counts: &mut worker.counts.borrow_mut(),
            ledger: record.as_mut().map(|record| record as &mut dyn FnMut(Record)),
        };
        dialogue.take(bytes, &mut around, out)
    }
}

impl Drop for Guest<'_> {
    fn drop(&mut self) {
        self.port.sessions.fetch_sub(1, Ordering::Relaxed);
    }
}
