//! One core of the gateway as its sessions and connections see it: its appender, its scheduler,
//! and who waits for what.

use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use mailrace::config::Config;
use mailrace::delivery::outcome::RetryPolicy;
use mailrace::delivery::sites::Sites;
use mailrace::message::MessageIds;
use mailrace::queue::handle::Handle;
use mailrace::queue::scheduler::{Action, ConnectionId, Event, Scheduler};
use mailrace::smtp::reply::Refusal;
use mailrace::smtp::server::ServerConfig;
use mailrace::spool::{
    Appender, CommitError, Done, Recipients, RecordPlace, SegmentTable, SharedBatch, SpoolStats,
    Ticket, WeakBatch,
};
use mailrace::worker::handles;
use mailrace::worker::log::Filing;

use super::books::Key;
use super::disk::TestDisk;
use super::gateway::Errand;
use super::scene::{LinkId, Scene, Task};
use super::sending::Connection;

/// What all workers of one life share.
pub struct Shared {
    pub life: u32,
    pub config: Arc<Config>,
    pub sites: Arc<Sites>,
    pub retry: RetryPolicy,
    pub server: Rc<ServerConfig>,
    pub stats: Arc<SpoolStats>,
    pub disk: Arc<TestDisk>,
    pub table: Arc<SegmentTable>,
    /// Connections whose peer has answered, of each site.
    pub established: Vec<Cell<u32>>,
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
        self.queue.handle(event, scene.now_unix_ms());
        let worker = self.index;
        while let Some(action) = self.queue.poll_action() {
            match action {
                Action::Open { site, connection } => {
                    let wait_us = scene.wait_us(50..3_000);
                    shared.errand(scene, wait_us, Errand::Connected { worker, site, connection });
                }
                Action::Deliver { connection, slot } => {
                    shared.errand(scene, 0, Errand::Deliver { worker, connection, slot });
                }
                Action::Expire { slot } => shared.errand(scene, 0, Errand::Expire(worker, slot)),
                Action::Forward { core } => {
                    let handle = self.queue.take_leaving();
                    let handle = handle.expect("a handle leaves with each of these");
                    let batch = self.in_memory(handle.place).map(|batch| batch.downgrade());
                    let wait_us = scene.wait_us(0..500);
                    let core = core as usize;
                    shared.forwarding.update(|count| count + 1);
                    shared.errand(scene, wait_us, Errand::Forwarded { core, handle, batch });
                }
            }
        }
    }

    /// Files a message that is now in the log.
    pub fn file(&mut self, shared: &Shared, scene: &mut Scene, filing: Filing, place: RecordPlace) {
        for handle in handles(filing, place) {
            self.queue_event(shared, scene, Event::Filed { handle, stay: false });
        }
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
