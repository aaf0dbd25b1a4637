//! One core of the gateway as its sessions and connections see it: its appender, its scheduler,
//! and who waits for what.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use mailrace::config::Config;
use mailrace::delivery::sites::Sites;
use mailrace::dns::mail::MailHost;
use mailrace::message::MessageIds;
use mailrace::queue::arena::Slot;
use mailrace::queue::destination::{DestinationIndex, Resolution, Verdict};
use mailrace::queue::handle::{Handle, Reason};
use mailrace::queue::scheduler::{Action, ConnectionId, Event, Scheduler};
use mailrace::queue::site::SiteId;
use mailrace::smtp::code::EnhancedCode;
use mailrace::smtp::reply::Refusal;
use mailrace::smtp::server::ServerConfig;
use mailrace::spool::{
    Appender, CommitError, Done, Recipients, RecordPlace, SealedBatch, SegmentTable, SharedBatch,
    SpoolStats, Ticket, WeakBatch,
};
use mailrace::worker::handles;
use mailrace::worker::log::Filing;

use super::books::Key;
use super::disk::TestDisk;
use super::gateway::Errand;
use super::message;
use super::scene::{LinkId, Scene, Task};
use super::sending::Connection;

/// What all workers of one life share.
pub struct Shared {
    pub life: u32,
    pub config: Arc<Config>,
    pub sites: Arc<Sites>,
    pub server: Rc<ServerConfig>,
    pub stats: Arc<SpoolStats>,
    pub disk: Arc<TestDisk>,
    pub table: Arc<SegmentTable>,
    /// Connections whose peer has answered, of each site.
    pub established: RefCell<BTreeMap<SiteId, u32>>,
    /// Messages between two cores.
    pub forwarding: Cell<usize>,
}

/// One core.
pub struct Worker {
    pub index: usize,
    pub appender: Appender,
    pub queue: Scheduler,
    pub ids: MessageIds,
    /// Who waits for which record.
    pub waiting: BTreeMap<Ticket, Waiting>,
    /// Batches that may still be in memory.
    pub recent: VecDeque<WeakBatch>,
    pub connections: BTreeMap<ConnectionId, Connection>,
    /// Sealed before its time.
    pub sealed: Vec<SealedBatch>,
    /// The appender's, as it is on the agenda.
    pub deadline: Option<Instant>,
}

/// Who waits for a record.
pub enum Waiting {
    /// A session, and the queue.
    Message { link: LinkId, filing: Filing },
    /// A session.
    Chunk { link: LinkId },
    /// The queue.
    Notice { filing: Filing },
    /// The books.
    Done {
        keys: Vec<Key>,
        /// Everybody to whom the message went, if it says that all of them are done.
        ends: Vec<Key>,
        /// The part of a message that ends with it.
        part: Option<Rc<PartEnd>>,
    },
    /// The books: these recipients wait until this time.
    Defer { keys: Vec<Key>, until_unix_ms: u64 },
}

/// The end of one part of a message, while other parts are under way.
pub struct PartEnd {
    pub handle: Handle,
    /// Records of the end that are not in the log.
    pub left: Cell<usize>,
}

impl Shared {
    /// Puts an errand on the agenda.
    pub fn errand(&self, scene: &mut Scene, wait_us: u64, errand: Errand) {
        scene.after(wait_us, Task::Gateway(self.life, errand));
    }
}

impl Worker {
    /// Tells the scheduler what happened, and sees to what it wants done.
    pub fn queue_event(&mut self, shared: &Shared, scene: &mut Scene, event: Event) {
        let given = self.queue_event_for(shared, scene, event, None);
        debug_assert_eq!(given, None, "there was nobody to give it to");
    }

    /// The same for a connection that takes a message at this moment, if there is one.
    pub fn queue_event_for(
        &mut self,
        shared: &Shared,
        scene: &mut Scene,
        event: Event,
        taker: Option<ConnectionId>,
    ) -> Option<Slot> {
        self.queue.handle(event, scene.now_unix_ms());
        let worker = self.index;
        let mut given = None;
        while let Some(action) = self.queue.poll_action() {
            match action {
                Action::Resolve { destination } => {
                    let wait_us = scene.wait_us(50..300_000);
                    shared.errand(scene, wait_us, Errand::Resolve(worker, destination));
                }
                Action::Close { connection } => {
                    shared.errand(scene, 0, Errand::Leave(worker, connection));
                }
                Action::Delay { slot, due_unix_ms } => {
                    shared.errand(scene, 0, Errand::Delay(worker, slot, due_unix_ms));
                }
                Action::Refuse { slot, verdict } => {
                    shared.errand(scene, 0, Errand::Refuse(worker, slot, verdict));
                }
                Action::Open { site, connection } => {
                    let wait_us = scene.wait_us(50..3_000);
                    shared.errand(scene, wait_us, Errand::Connected { worker, site, connection });
                }
                Action::Deliver { connection, slot } if taker == Some(connection) => {
                    given = Some(slot);
                }
                Action::Deliver { connection, slot } => {
                    shared.errand(scene, 0, Errand::Deliver { worker, connection, slot });
                }
                Action::Expire { slot } => shared.errand(scene, 0, Errand::Expire(worker, slot)),
                Action::Forward { core } => {
                    let leaving = self.queue.take_leaving();
                    let (destination, handle) = leaving.expect("one leaves with each of these");
                    let batch = self.in_memory(handle.place).map(|batch| batch.downgrade());
                    let wait_us = scene.wait_us(0..500);
                    let core = core as usize;
                    shared.forwarding.update(|count| count + 1);
                    scene.happens("a message goes to another core");
                    let forwarded = Errand::Forwarded { core, destination, handle, batch };
                    shared.errand(scene, wait_us, forwarded);
                }
            }
        }
        given
    }

    /// Files a message that is now in the log.
    pub fn file(&mut self, shared: &Shared, scene: &mut Scene, filing: Filing, place: RecordPlace) {
        message::let_rot(shared, scene, place);
        for (destination, handle) in handles(filing, place) {
            self.queue_event(shared, scene, Event::Filed { destination, handle, stay: false });
        }
    }

    /// The DNS answers, or does not; see `worker::resolve`.
    pub fn resolve(&mut self, shared: &Shared, scene: &mut Scene, index: DestinationIndex) {
        let Some(destination) = self.queue.destination(index).cloned() else { return };
        let domain = destination.domain.clone().expect("only mail exchangers are asked for");
        let place = super::books::next_hop(&format!("@{domain}")).expect("a domain of the world");
        let now_unix_ms = scene.now_unix_ms();
        let until_unix_ms = now_unix_ms + scene.wait_us(0..20_000);
        let trouble = scene.plan.peer_trouble;
        let resolution = if scene.trouble(trouble) {
            let failures = self.queue.resolution_failures(index);
            let retry = &shared.sites.course(destination.course).retry;
            let attempts = u16::try_from(failures + 1).unwrap_or(u16::MAX);
            let until_unix_ms = retry.next_attempt(attempts, now_unix_ms, scene.random.u32(..));
            scene.happens("the DNS has no answer");
            Resolution::Later { reason: Reason::new("SERVFAIL".into()), until_unix_ms }
        } else if place > 0 && scene.trouble(trouble / 4) {
            scene.happens("the DNS says that a domain takes no mail");
            scene.books.takes_no_mail(place);
            let status = EnhancedCode::new(5, 1, 10).expect("a status of RFC 7505");
            let verdict = Arc::new(Verdict { status, text: "it takes no mail".into() });
            Resolution::NoMail { verdict, until_unix_ms }
        } else {
            let host = MailHost {
                preference: 10,
                name: format!("mx{place}.example").into(),
                addresses: vec![std::net::Ipv4Addr::LOCALHOST.into()],
                expires: scene.now(),
                authentic: false,
            };
            let shared = shared.sites.of_hosts(destination.course, vec![host], now_unix_ms);
            Resolution::Site { shared, until_unix_ms }
        };
        let resolved = Event::Resolved { destination: index, resolution };
        self.queue_event(shared, scene, resolved);
    }

    /// A record of the end of a part is in the log; see `delivery::settle::end_part`.
    pub fn part_kept(&mut self, scene: &mut Scene, part: &PartEnd) {
        part.left.update(|left| left - 1);
        if part.left.get() == 0 && part.handle.end_part() {
            let (id, segment) = (part.handle.id, part.handle.place.segment);
            let recipients = Recipients::Some(&[]);
            let done = Done { id, segment, recipients, last: true };
            self.appender.append_done(&done, scene.now());
        }
    }

    pub fn remember(&mut self, batch: WeakBatch) {
        if self.recent.len() >= 8 {
            self.recent.pop_front();
        }
        self.recent.push_back(batch);
    }

    /// The batch that holds a record, if it is still in memory.
    pub fn in_memory(&self, place: RecordPlace) -> Option<SharedBatch> {
        let batches = self.recent.iter().rev().filter_map(WeakBatch::upgrade);
        batches.into_iter().find(|batch| batch.record(place).is_some())
    }
}

/// Why the log would not keep a message, as a session tells it.
pub fn refusal(error: CommitError) -> Refusal {
    Refusal::from(error)
}
