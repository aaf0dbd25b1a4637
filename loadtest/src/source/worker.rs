//! A thread of a run: its share of the sessions and messages, its tally, its way to the ledger.

use std::cell::{Cell, RefCell, RefMut};
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use fastrand::Rng;

use super::plan::Plan;
use super::{Live, RunError, session};
use crate::ledger::record::{LedgerFile, Writer};
use crate::message::template::Draft;
use crate::report::tally::{Counts, Step, Tally};
use crate::runtime::alarm::Alarm;
use crate::runtime::link::{cut_all, sweep_forever};
use crate::runtime::{self, sleep, spawn};

/// How often a thread looks up from its sessions.
const LOOK: Duration = Duration::from_millis(20);
/// How often it tells what it has done, and writes its records.
const PUBLISH: Duration = Duration::from_millis(250);

/// What the sessions of one thread share.
pub struct Worker {
    /// What is to be done.
    pub plan: Arc<Plan>,
    /// When the run began; the pace counts from here.
    pub begun: Instant,
    /// Wakes sessions when a message is due.
    pub alarm: Rc<Alarm>,
    live: Arc<Live>,
    place: u64,
    /// Messages of this thread that have been given out.
    given: Cell<u64>,
    /// Nothing new is to be begun.
    over: Cell<bool>,
    sessions: Cell<usize>,
    tally: RefCell<Tally>,
    random: RefCell<Rng>,
    ledger: Option<RefCell<Writer>>,
    /// Drafts of each template that nobody uses.
    drafts: RefCell<Vec<Vec<Draft>>>,
    room: usize,
    next_source: Cell<usize>,
}

/// A message that a session is to send.
#[derive(Debug, Clone, Copy)]
pub struct Errand {
    /// Its number in the run, from 0.
    pub number: u64,
    /// When it is meant to start, in an open-loop run.
    pub due: Option<Instant>,
}

/// Runs one thread's share.
pub fn run(
    plan: Arc<Plan>,
    live: Arc<Live>,
    ledger: Option<LedgerFile>,
    place: usize,
    begun: Instant,
) -> Result<Tally, RunError> {
    let alarm = Alarm::new().map_err(RunError::Thread)?;
    let worker = Rc::new(Worker::new(plan, live, alarm, ledger, place, begun));
    let ended = runtime::run(worker.clone().drive());
    ended.map_err(RunError::Thread)?;
    if let Some(writer) = &worker.ledger {
        let mut writer = writer.borrow_mut();
        writer.flush();
        writer.check().map_err(RunError::Ledger)?;
    }
    Ok(worker.tally.take())
}

impl Worker {
    fn new(
        plan: Arc<Plan>,
        live: Arc<Live>,
        alarm: Rc<Alarm>,
        ledger: Option<LedgerFile>,
        place: usize,
        begun: Instant,
    ) -> Worker {
        let seed = plan.seed.wrapping_add(place as u64);
        let drafts = plan.templates.choices().iter().map(|_| Vec::new()).collect();
        let room = plan.envelope_max();
        Worker {
            place: place as u64,
            begun,
            alarm,
            live,
            given: Cell::new(0),
            over: Cell::new(false),
            sessions: Cell::new(0),
            tally: RefCell::default(),
            random: RefCell::new(Rng::with_seed(seed)),
            ledger: ledger.map(|ledger| RefCell::new(ledger.writer())),
            drafts: RefCell::new(drafts),
            room,
            next_source: Cell::new(place),
            plan,
        }
    }

    /// Starts the sessions and looks after them until they are done or the time is up.
    async fn drive(self: Rc<Self>) {
        spawn(sweep_forever());
        let alarm = self.alarm.clone();
        spawn(async move {
            // Where the loop takes no timers the naps of those who wait wake them all the same.
            let _ = alarm.ring_forever().await;
        });
        let threads = self.plan.threads as u32;
        for serial in (self.place as u32..self.plan.sessions).step_by(threads as usize) {
            self.sessions.set(self.sessions.get() + 1);
            spawn(session::run(self.clone(), serial));
        }
        let end = self.begun + self.plan.time;
        let mut published_at = Instant::now();
        let mut published = Counts::default();
        let mut over_at = None;
        while self.sessions.get() > 0 {
            sleep(LOOK).await;
            let now = Instant::now();
            if self.live.stop.load(Ordering::Relaxed) || now >= end {
                self.over.set(true);
                let over_at = *over_at.get_or_insert(now);
                // Those that still wait for the server have waited long enough.
                if now >= over_at + self.plan.grace {
                    break;
                }
            }
            if now >= published_at + PUBLISH {
                self.publish(&mut published);
                published_at = now;
            }
        }
        cut_all();
        let mut tally = self.tally.borrow_mut();
        tally.counts.unfinished = self.given.get().saturating_sub(tally.counts.finished());
        drop(tally);
        self.publish(&mut published);
    }

    fn publish(&self, published: &mut Counts) {
        let (tally, live) = (self.tally.borrow(), &self.live);
        let (counts, before) = (tally.counts, *published);
        for (number, now, before) in [
            (&live.finished, counts.finished(), before.finished()),
            (&live.acknowledged, counts.acknowledged, before.acknowledged),
            (&live.connections, counts.connections, before.connections),
            (&live.connect_failures, counts.connect_failures, before.connect_failures),
        ] {
            number.fetch_add(now - before, Ordering::Relaxed);
        }
        *published = counts;
        let p99_us = tally.latency(Step::Whole).value_at_quantile(0.99);
        live.p99_us.store(p99_us, Ordering::Relaxed);
        drop(tally);
        if let Some(mut writer) = self.ledger() {
            writer.flush();
        }
    }

    /// The next message of this thread, or None when there are no more.
    pub fn next_errand(&self) -> Option<Errand> {
        if self.over.get() {
            return None;
        }
        let given = self.given.get();
        let number = given * self.plan.threads as u64 + self.place;
        if number >= self.plan.messages {
            return None;
        }
        let due = match &self.plan.pace {
            None => None,
            Some(pace) => {
                let start = pace.start_of(number).filter(|start| *start < self.plan.time)?;
                Some(self.begun + start)
            }
        };
        self.given.set(given + 1);
        Some(Errand { number, due })
    }

    /// Whether nothing new is to be begun.
    pub fn is_over(&self) -> bool {
        self.over.get()
    }

    /// Ends the whole run: it cannot be what was asked for.
    pub fn give_up(&self) {
        self.over.set(true);
        self.live.stop.store(true, Ordering::Relaxed);
    }

    /// A session has ended.
    pub fn session_ended(&self) {
        self.sessions.set(self.sessions.get() - 1);
    }

    /// The counts of this thread; not to be held while waiting.
    pub fn tally(&self) -> RefMut<'_, Tally> {
        self.tally.borrow_mut()
    }

    /// The random numbers of this thread; not to be held while waiting.
    pub fn random(&self) -> RefMut<'_, Rng> {
        self.random.borrow_mut()
    }

    /// The books, if they are kept; not to be held while waiting.
    pub fn ledger(&self) -> Option<RefMut<'_, Writer>> {
        self.ledger.as_ref().map(RefCell::borrow_mut)
    }

    /// A draft of the template at this place.
    pub fn draft(&self, template: usize) -> Draft {
        let kept = self.drafts.borrow_mut()[template].pop();
        kept.unwrap_or_else(|| self.plan.templates.choices()[template].draft(self.room))
    }

    /// Takes back a draft of the template at this place.
    pub fn give_back(&self, template: usize, draft: Draft) {
        self.drafts.borrow_mut()[template].push(draft);
    }

    /// The address to connect from next, each in turn.
    pub fn next_source(&self) -> Option<IpAddr> {
        let sources = &self.plan.sources;
        let place = self.next_source.get();
        self.next_source.set(place.wrapping_add(self.plan.threads));
        (!sources.is_empty()).then(|| sources[place % sources.len()])
    }
}
