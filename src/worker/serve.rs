//! A worker's thread from its start to its end: which tasks run on its loop, and how they stop.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::net::TcpListener;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::log::LocalLog;
use super::{Forwarded, Letter, Post, Worker};
use crate::auth::Authority;
use crate::auth::sasl::Mechanism;
use crate::config::Auth;
use crate::config::Service;
use crate::config::{Config, Listener};
use crate::control::events::{EventBuffer, SessionIds};
use crate::control::metrics::WorkerMetrics;
use crate::delivery::recovery::RecoveredHandles;
use crate::delivery::sites::Sites;
use crate::dns::ourselves::Ourselves;
use crate::dns::{Resolver, ResolverConfig};
use crate::edge::inquiry::Inquiry;
use crate::edge::lists::{Lists, Zone, watch};
use crate::edge::memory::Memory;
use crate::edge::rspamd::desk::Desk;
use crate::edge::rspamd::office::{self, Announce};
use crate::inbound::ListenerState;
use crate::inbound::memory::Share;
use crate::listener::{self, SessionCounts};
use crate::message::{MessageId, MessageIds};
use crate::outbound::backend::Backends;
use crate::pool::Pool;
use crate::queue::allowance::Allowance;
use crate::queue::scheduler::{Event, Scheduler};
use crate::recipients::Roster;
use crate::runtime::blocking::{Blocking, BlockingPool};
use crate::runtime::mailbox::Inbox;
use crate::runtime::notify::{Notify, WaitingList};
use crate::runtime::socket::{self, Canceller};
use crate::runtime::{self, deadline};
use crate::smtp::server::{AuthOffer, ServerConfig};
use crate::spool::{CommitterHandle, ReaderHandle, SpoolStats};
use crate::tls::{Acceptor, Connector};

/// Everything that a worker's thread is given at its start.
pub struct Seat {
    /// Its number, from 0.
    pub index: usize,
    /// What the operator asked for.
    pub config: Arc<Config>,
    /// What sessions are encrypted with; none where no listener asks for it.
    pub acceptor: Option<Arc<Acceptor>>,
    /// Who users are.
    pub authority: Arc<Authority>,
    /// Who is here.
    pub roster: Arc<Roster>,
    /// What connections to next hops are encrypted with.
    pub connector: Arc<Connector>,
    /// Where mail goes.
    pub sites: Arc<Sites>,
    /// Which name servers to ask, and how.
    pub dns: ResolverConfig,
    /// What this gateway is called, and where it listens.
    pub ourselves: Arc<Ourselves>,
    /// The lists of the edge filter, as all workers know them.
    pub lists: Arc<Lists>,
    /// Sessions of all workers.
    pub counts: Arc<SessionCounts>,
    /// Whom the edge filter knows; `None` without it.
    pub memory: Option<Arc<Memory>>,
    /// Who asks rspamd; none where it is not asked.
    pub rspamd: Option<office::Handle>,
    /// What messages on their way in may take of its memory.
    pub share: Share,
    /// The connections to next hops that all workers may have.
    pub allowance: Arc<Allowance>,
    /// Its own sockets, bound, one for each listener.
    pub sockets: Vec<(Listener, TcpListener)>,
    /// The log's writing side.
    pub committer: CommitterHandle,
    /// The log's reading side.
    pub reader: ReaderHandle,
    /// How the log is.
    pub spool: Arc<SpoolStats>,
    /// Threads for work that blocks.
    pub blocking: BlockingPool,
    /// Its events.
    pub events: EventBuffer,
    /// Its figures.
    pub metrics: Arc<WorkerMetrics>,
    /// The mailboxes of all workers.
    pub posts: Arc<[Post]>,
    /// Its own mailbox for answers.
    pub letters: Inbox<Letter>,
    /// Its own mailbox for messages.
    pub handles: Inbox<Forwarded>,
    /// The highest id that recovery saw.
    pub highest: MessageId,
    /// What recovery found for this core.
    pub recovered: RecoveredHandles,
    /// Called once it accepts.
    pub ready: Box<dyn FnOnce() + Send>,
}

/// Runs the worker on this thread until the service stops.
///
/// # Errors
/// The event loop could not be set up.
pub fn serve(seat: Seat) -> io::Result<()> {
    runtime::run(run(seat))?
}

async fn run(seat: Seat) -> io::Result<()> {
    let Seat { index, letters, handles, recovered, sockets, ready, .. } = seat;
    let posts = seat.posts.clone();
    let own = posts[index].letters.clone();
    let announce = Arc::new(move |token| {
        if own.push(Letter::Unblocked(token)).is_ok() {
            own.wake();
        }
    });
    let own = posts[index].letters.clone();
    let told: Announce = Arc::new(move |token, news| {
        if own.push(Letter::Rspamd(token, news)).is_ok() {
            own.wake();
        }
    });
    let workers = posts.len();
    let rspamd = seat.rspamd.map(|office| Rc::new(Desk::new(office, told, workers)));
    let scheduler = Scheduler::new(index as u32, posts.len() as u32, seat.sites.rules())
        .within(seat.allowance.clone());
    let chunks = seat.share.chunks;
    let resolver = Resolver::new(seat.dns);
    let (config, ourselves) = (seat.config.clone(), seat.ourselves.clone());
    let inquiry = Inquiry::new(config, ourselves, seat.lists, resolver.clone());
    let worker = Rc::new(Worker {
        index,
        counts: seat.counts,
        memory: seat.memory,
        log: Rc::new(LocalLog::new(index, chunks, seat.committer, seat.reader, seat.spool)),
        pool: Pool::default(),
        backends: Backends::new(seat.allowance),
        events: seat.events,
        metrics: seat.metrics,
        resolver,
        inquiry,
        rspamd,
        ourselves: seat.ourselves,
        blocking: Blocking::new(seat.blocking, announce),
        highest_recovered: seat.highest,
        explanations: RefCell::default(),
        queue: RefCell::new(scheduler),
        reasons: RefCell::default(),
        etrn: Default::default(),
        leaving: RefCell::new(posts.iter().map(|_| VecDeque::new()).collect()),
        posts,
        ids: RefCell::new(MessageIds::new(index as u8, seat.highest)),
        session_ids: RefCell::new(SessionIds::new(index as u8)),
        sessions: Cell::new(0),
        share: seat.share,
        envelope_octets: Cell::new(0),
        full_ticks: Cell::new(0),
        receivers: WaitingList::default(),
        stopping: Cell::new(false),
        date: RefCell::new((0, "".into())),
        config: seat.config,
        acceptor: seat.acceptor,
        authority: seat.authority,
        roster: seat.roster,
        questions: Default::default(),
        connector: seat.connector,
        sites: seat.sites,
    });
    let stop = Rc::new(Notify::default());
    let canceller = Canceller::new();

    runtime::spawn(deadline::sweep_forever());
    runtime::spawn(flush(worker.clone()));
    runtime::spawn(read_letters(worker.clone(), letters, stop.clone()));
    runtime::spawn(read_handles(worker.clone(), handles));
    for (destination, handle) in recovered {
        worker.queue_event(Event::Filed { destination, handle, stay: true });
    }
    runtime::memory::give_back();
    runtime::spawn(tick(worker.clone()));
    if index == 0 {
        watch_lists(&worker);
    }
    let mut doors = Vec::new();
    for (listener, socket) in sockets {
        doors.push(socket.try_clone()?);
        let state = Rc::new(ListenerState {
            address: socket.local_addr()?,
            server: Rc::new(server_config(&worker.config, &listener)),
            listener,
        });
        let socket = socket::Listener::new(socket)?;
        runtime::spawn(listener::accept_forever(worker.clone(), state, socket, canceller.handle()));
    }
    ready();
    stop.notified().await;
    shut_down(&worker, canceller, &doors).await;
    Ok(())
}

fn server_config(config: &Config, listener: &Listener) -> ServerConfig {
    ServerConfig {
        hostname: config.hostname.clone(),
        message_size: config.limits.message_size.0,
        recipients: config.limits.recipients,
        received: config.limits.received as u32,
        bare_newline: listener.bare_newline,
        tls: listener.tls,
        auth: (listener.service == Service::Submission).then(|| AuthOffer {
            mechanisms: usable(&config.auth),
            only_secured: config.auth.require_tls,
            secrets_in_clear: !config.auth.require_tls,
            required: true,
        }),
        checks_senders: listener.service == Service::Submission
            || config.limits.count_messages()
            || (listener.service == Service::Mx && config.edge.is_some()),
    }
}

/// The mechanisms that there are users or keys for.
fn usable(auth: &Auth) -> Box<[Mechanism]> {
    let has = |mechanism: &Mechanism| match mechanism.takes_tokens() {
        true => auth.oauth.is_some(),
        false => auth.users.is_some(),
    };
    auth.mechanisms.iter().copied().filter(has).collect()
}

/// A task for each list: one worker does it for all.
fn watch_lists(worker: &Rc<Worker>) {
    let Some(inquiry) = &worker.inquiry else { return };
    for place in 0..inquiry.lists().zones().len() {
        let (worker, lists) = (worker.clone(), inquiry.lists().clone());
        runtime::spawn(async move {
            let tell = |zone: &Zone, change| worker.report_list(zone, change);
            watch::watch(&lists.zones()[place], &worker.resolver, tell).await;
        });
    }
}

async fn flush(worker: Rc<Worker>) {
    worker.log.flush_forever().await;
}

async fn read_letters(worker: Rc<Worker>, letters: Inbox<Letter>, stop: Rc<Notify>) {
    let rest = || worker.forward();
    let open = |letter| match letter {
        Letter::Committed(completion) => {
            worker.log.completed(completion, |filing, place| worker.file(filing, place));
        }
        Letter::Read(answer) => worker.log.answered(answer),
        Letter::Unblocked(token) => worker.blocking.finished(token),
        Letter::Rspamd(token, news) => {
            if let Some(desk) = &worker.rspamd {
                desk.opened(token, news);
            }
        }
        Letter::Asked(request, answer) => {
            runtime::spawn(super::admin::answer(worker.clone(), request, answer));
        }
        Letter::Etrn(errand) => runtime::spawn(worker.clone().run_errand(errand)),
        Letter::EtrnDone(found) => worker.errand_done(&found),
        Letter::AnsweredAhead(answer) => worker.questions.answered(&answer.0, answer.1),
        Letter::Stop => stop.notify(),
    };
    if let Err(error) = letters.open_forever(open, rest).await {
        // Without its mailbox a worker can keep no promise; recovery does the rest.
        tracing::error!(%error, "a worker lost its mailbox");
        std::process::abort();
    }
}

async fn read_handles(worker: Rc<Worker>, handles: Inbox<Forwarded>) {
    let open = |forwarded| worker.take_forwarded(forwarded);
    if let Err(error) = handles.open_forever(open, || ()).await {
        tracing::error!(%error, "a worker lost its mailbox");
        std::process::abort();
    }
}

/// What has to be looked at now and then: timers of the queue, the overflow of full mailboxes,
/// the block of events that is not full.
async fn tick(worker: Rc<Worker>) {
    loop {
        runtime::sleep(TICK).await;
        worker.queue_event(Event::Tick);
        worker.send_errand();
        worker.forward();
        worker.events.flush();
        worker.watch_receive();
        worker.receive_freed();
        worker.press_next_hops();
        worker.press_in_line();
        worker.report_queue();
        worker.report_load();
    }
}

/// Lets transactions and attempts under way come to their end, for a bounded time.
async fn shut_down(worker: &Rc<Worker>, canceller: Canceller, doors: &[TcpListener]) {
    worker.stopping.set(true);
    // Cancelling ends the accepts but closes nothing at once: a worker that has nothing else to do
    // ends first, and its socket would go on listening, with nobody to accept, while another
    // worker finishes its sessions.
    for door in doors {
        let _ = rustix::net::shutdown(door, rustix::net::Shutdown::Both);
    }
    canceller.cancel();
    deadline::interrupt_waiting();
    worker.pool.end_waiting();
    let end = Instant::now() + GRACE;
    while Instant::now() < end {
        let is_quiet = worker.sessions() == 0 && worker.pool.is_quiet();
        if worker.log.drain() && is_quiet {
            break;
        }
        runtime::sleep(POLL).await;
        worker.pool.end_waiting();
    }
    worker.events.flush();
    let left = worker.sessions();
    if left > 0 {
        tracing::warn!(sessions = left, "stopped with sessions still in the middle of a message");
    }
}

/// How often a worker looks after what has no event of its own.
const TICK: Duration = Duration::from_millis(100);
/// How long a stop waits for messages that are under way.
const GRACE: Duration = Duration::from_secs(15);
const POLL: Duration = Duration::from_millis(20);
