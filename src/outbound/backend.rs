//! A connection to a next hop that one command at a time is said on: for sessions that wait for
//! each answer, not for the queue.
//!
//! Two of them use it: in-line mode (`inbound::inline`), which lets the next hop answer our client,
//! and the question whether a recipient is there ([`crate::inbound::ahead`]).  It is dialled,
//! encrypted and logged in as the connections of the queue are; after that each side speaks in its
//! turn.
//!
//! Invariant: a connection on which anything went wrong, or on which a transaction is under way,
//! is never used again: it is dropped, which closes it in the middle, so that no next hop takes
//! half a message for a whole one.  Each counts among the connections to next hops that there may
//! be, from before it is dialled to its end.  A host that fails is avoided for a while, by the queue
//! too, and another one tried at once, as the queue does.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::smtp::{Security, Trouble, judge, open};
use super::{connect, describe_connect};
use crate::config::Target;
use crate::control::metrics::WorkerMetrics;
use crate::delivery::reach::{HOSTS_AT_ONCE, Serving};
use crate::limits;
use crate::pool::dial::Dialled;
use crate::queue::allowance::{Allowance, Place};
use crate::queue::site::{SiteId, SiteShared};
use crate::runtime;
use crate::runtime::buffer::{self, Account, Buffer};
use crate::runtime::deadline::Shortage;
use crate::runtime::socket::{Stream, StreamError};
use crate::smtp::capabilities::Capabilities;
use crate::smtp::client::{
    Client, ClientConfig, ConnectionFailure, Login, OneFlight, Protocol, Timeouts,
};
use crate::smtp::reply_reader::{PeerReply, ReplyReader};
use crate::worker::Worker;

/// See the module's text.
pub struct Backend {
    site: Arc<SiteShared>,
    stream: Stream,
    peer: Option<SocketAddr>,
    capabilities: Capabilities,
    timeouts: Timeouts,
    /// It was kept since another transaction, and has said nothing since: it may have been closed.
    is_kept: bool,
    /// A body was slow, and we cut it off for those that wait for memory: no fault of its host.
    has_given_way: bool,
    /// It has shown itself well, which speaks for its host as long as it stands.
    serving: Option<Serving>,
    _counted: Counted,
}

/// A connection's part in the counts, for as long as this lives.
struct Counted {
    metrics: Arc<WorkerMetrics>,
    _place: Place,
}

impl Counted {
    /// A connection that stands.
    fn new(metrics: &Arc<WorkerMetrics>, place: Place) -> Counted {
        metrics.connections_opened.count();
        metrics.connections_open.raise();
        Counted { metrics: metrics.clone(), _place: place }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.metrics.connections_open.lower();
    }
}

/// Why a next hop gave no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BackendError {
    /// It cannot be reached, or does not take us.
    #[error("{0}")]
    Unreachable(Box<str>),
    /// The connection ended, or what came over it was no answer.
    #[error("{0}")]
    Lost(Box<str>),
    /// There are as many connections to next hops as there may be.
    #[error("there are as many connections to next hops as `[delivery] connections` allows")]
    Crowded,
}

impl Backend {
    /// A connection to `site` that has introduced itself: one that was kept, or a new one.
    async fn to(
        worker: &Rc<Worker>,
        site: &Arc<SiteShared>,
        tries: &mut Tries,
    ) -> Result<Backend, BackendError> {
        match worker.backends.take(site.id()) {
            Some(kept) => Ok(kept),
            None => Backend::fresh(worker, site, tries).await,
        }
    }

    /// A new connection, to the first host that takes us.
    async fn fresh(
        worker: &Rc<Worker>,
        site: &Arc<SiteShared>,
        tries: &mut Tries,
    ) -> Result<Backend, BackendError> {
        loop {
            match Backend::dial(worker, site).await {
                Err((Next::TryOn, _)) if tries.may_go_on() => {}
                dialled => return dialled.map_err(|(_, error)| error),
            }
        }
    }

    /// One attempt.
    async fn dial(
        worker: &Rc<Worker>,
        site: &Arc<SiteShared>,
    ) -> Result<Backend, (Next, BackendError)> {
        let unreachable = |words: &str| {
            worker.metrics.connections_failed.count();
            (Next::GiveUp, BackendError::Unreachable(words.into()))
        };
        let reach = site.reach();
        let place = worker.backends.place().ok_or((Next::GiveUp, BackendError::Crowded))?;
        let (stream, peer, host) = match &reach.target {
            Target::LmtpUnix { path } => {
                let limit = worker.config.delivery.timeouts.connect;
                let connected = Stream::connect_unix(path, limit).await;
                let failed = |error| unreachable(&describe_connect(path.display(), &error));
                (connected.map_err(failed)?, None, "".into())
            }
            _ => {
                let dialled = connect(worker, reach).await;
                let Dialled { stream, peer, host } =
                    dialled.map_err(|error| unreachable(&error.words))?;
                (stream, Some(peer), host)
            }
        };
        let counted = Counted::new(&worker.metrics, place);
        let security = Security::of(reach, &host);
        let config = client_config(worker, site, &security);
        let timeouts = config.timeouts;
        let make = |_: &Security, login: Option<Login>| {
            Client::new(ClientConfig { login, ..config }, Instant::now())
        };
        match open(worker, reach, &security, stream, make).await {
            Ok((client, stream)) => Ok(Backend {
                site: site.clone(),
                stream,
                peer,
                capabilities: client.capabilities().clone(),
                timeouts,
                is_kept: false,
                has_given_way: false,
                serving: None,
                _counted: counted,
            }),
            Err(failure) => Err(not_opened(worker, site, peer, &security, failure.as_ref())),
        }
    }

    /// What the peer offers.
    pub fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// Where it leads.
    pub fn site(&self) -> &Arc<SiteShared> {
        &self.site
    }

    /// The peer's address; none of a socket of this machine.
    pub fn peer(&self) -> Option<SocketAddr> {
        self.peer
    }

    /// What is spoken there.
    pub fn protocol(&self) -> Protocol {
        self.site.reach().protocol().unwrap_or(Protocol::Smtp)
    }

    /// Whether the connection runs over TLS.
    pub fn is_secured(&self) -> bool {
        self.stream.secured().is_some()
    }

    /// Says a command, whose line end is there, and waits for the reply.
    ///
    /// # Errors
    /// `Lost`, with a 421 too (RFC 5321 section 3.8).
    pub async fn say(&mut self, command: Vec<u8>) -> Result<PeerReply, BackendError> {
        let reply = self.ask(command).await;
        self.blame(reply)
    }

    /// [`Backend::say`] for who judges the host by what comes.
    async fn ask(&mut self, command: Vec<u8>) -> Result<PeerReply, BackendError> {
        let deadline = Instant::now() + self.timeouts.command;
        let (written, _) = self.stream.write_all(command, deadline).await;
        written.map_err(|error| lost("while a command was sent", &error))?;
        self.reply(deadline).await
    }

    /// Sends a piece of a body.
    ///
    /// # Errors
    /// `Lost`; whether that is its host's failure, [`Backend::last_word`] tells.
    pub async fn send(&mut self, octets: Vec<u8>) -> Result<(), BackendError> {
        let now = Instant::now();
        // Meanwhile the client's octets wait in a receive buffer, which others may need.
        self.stream.give_way_at(Some((Shortage::Intake, now + limits::UPLOAD_GRACE_PRESSED)));
        let deadline = now + limits::CLIENT_DATA_BLOCK;
        let (written, _) = self.stream.write_all(octets, deadline).await;
        self.stream.give_way_at(None);
        let is_cut = matches!(written, Err(StreamError::TimedOut));
        self.has_given_way = is_cut && Instant::now() < deadline;
        written.map_err(|error| lost("in the middle of the message", &error))
    }

    /// The reply to the end of the data.
    ///
    /// # Errors
    /// `Lost`: the next hop may have taken the message or not.
    pub async fn last_reply(&mut self) -> Result<PeerReply, BackendError> {
        let reply = self.reply(Instant::now() + self.timeouts.data).await;
        self.blame(reply)
    }

    /// What a peer that takes no more says before it closes; it was not asked for.  Only one that
    /// says nothing has failed: another message may be welcome where this one is not.
    pub async fn last_word(&mut self) -> Option<PeerReply> {
        let said = self.reply(Instant::now() + LAST_WORD).await;
        match self.has_given_way {
            true => said.ok(),
            false => self.blame(said).ok(),
        }
    }

    /// A host whose connection fails comes last for a while, unless others to it are well.  One that
    /// was kept may end at any time.
    fn blame<T>(&mut self, result: Result<T, BackendError>) -> Result<T, BackendError> {
        if result.is_err() && !self.is_kept {
            self.serving = None;
            if let Some(peer) = self.peer {
                self.site.reach().host_refused(peer, Instant::now());
            }
        }
        result
    }

    /// Its host has had its word on a transaction.
    fn is_well(&mut self) {
        if let (Some(peer), None) = (self.peer, &self.serving) {
            self.serving = Some(self.site.reach().host_succeeded(peer));
        }
    }

    async fn reply(&mut self, deadline: Instant) -> Result<PeerReply, BackendError> {
        let mut reader = ReplyReader::new();
        loop {
            let input = Buffer::on(Account::Outbound, buffer::TINY);
            let (result, input) = self.stream.read(input, deadline).await;
            match result {
                Ok(0) => return Err(BackendError::Lost("the connection was closed".into())),
                Ok(_) => {}
                Err(error) => return Err(lost("before the reply", &error)),
            }
            let (taken, reply) = reader.read(input.bytes());
            match reply {
                None => {}
                Some(Err(error)) => return Err(BackendError::Lost(error.to_string().into())),
                // It would be taken for the reply to the next command.
                Some(Ok(reply)) if taken < input.bytes().len() => {
                    let words = format!("more than one reply came at once: {reply}");
                    return Err(BackendError::Lost(words.into()));
                }
                Some(Ok(reply)) if reply.code.value() == 421 => {
                    return Err(BackendError::Lost(reply.to_string().into()));
                }
                Some(Ok(reply)) => return Ok(reply),
            }
        }
    }
}

/// Says MAIL, which `write` writes, to a next hop: over a connection that was kept, or if that has
/// been closed meanwhile, over a new one.
///
/// # Errors
/// `Unreachable`, `Lost`, `Crowded`.
pub async fn begin(
    worker: &Rc<Worker>,
    site: &Arc<SiteShared>,
    write: impl Fn(&mut Vec<u8>, &Capabilities),
) -> Result<(Backend, PeerReply), BackendError> {
    let mut tries = Tries::new();
    let mut backend = Backend::to(worker, site, &mut tries).await?;
    loop {
        let mut mail = Vec::with_capacity(limits::COMMAND_LINE);
        write(&mut mail, &backend.capabilities);
        let error = match backend.ask(mail).await {
            Ok(reply) => {
                backend.is_kept = false;
                return Ok((backend, reply));
            }
            Err(error) => error,
        };
        let (is_kept, peer) = (backend.is_kept, backend.peer);
        drop(backend);
        if is_kept {
            // It may have used up all the time by its silence.
            tries = Tries::new();
        } else if !matches!(next_host(worker, site, peer, &error.to_string()), Next::TryOn)
            || !tries.may_go_on()
        {
            return Err(error);
        }
        backend = Backend::fresh(worker, site, &mut tries).await?;
    }
}

/// As the queue's connections have it, but for what only they do.
fn client_config(worker: &Worker, site: &SiteShared, security: &Security) -> ClientConfig {
    let delivery = &worker.config.delivery;
    ClientConfig {
        ehlo_name: Arc::from(&*worker.config.hostname),
        protocol: site.reach().protocol().unwrap_or(Protocol::Smtp),
        is_secured: security.is_implicit,
        login: None,
        starttls: security.starttls(site.tls_is_broken(worker.now_unix_ms())),
        // A client of ours waits: it must not give up before we do.
        timeouts: Timeouts {
            greeting: delivery.timeouts.greeting.min(limits::BACKEND_GREETING),
            command: delivery.timeouts.command.min(limits::BACKEND_COMMAND),
            data: delivery.timeouts.data.min(limits::BACKEND_DATA_END),
        },
        use_chunking: false,
        one_flight: OneFlight::Never,
        messages_in_flight: 1,
        eight_bit: delivery.eight_bit,
    }
}

/// What follows a connection on which the peer takes no mail, as for those of the queue.
enum Next {
    /// Another attempt is worth while at once.
    TryOn,
    GiveUp,
}

fn not_opened(
    worker: &Worker,
    site: &SiteShared,
    peer: Option<SocketAddr>,
    security: &Security,
    failure: Option<&ConnectionFailure>,
) -> (Next, BackendError) {
    let (trouble, words) = judge(worker, site, peer, security, failure);
    let next = match trouble {
        Trouble::InClear => Next::TryOn,
        Trouble::Host(_) => next_host(worker, site, peer, &words),
        Trouble::Site(_) => {
            worker.metrics.connections_failed.count();
            Next::GiveUp
        }
    };
    (next, BackendError::Unreachable(words.into()))
}

/// A host has connected and then not taken us: it is avoided for a while, and another one is tried,
/// if there is one.  Not if other connections to it are well: then it has enough of them.
fn next_host(worker: &Worker, site: &SiteShared, peer: Option<SocketAddr>, words: &str) -> Next {
    worker.metrics.connections_failed.count();
    let Some(peer) = peer.filter(|peer| !site.reach().serves(*peer)) else { return Next::GiveUp };
    if !site.reach().pass_over(peer, Instant::now()) {
        return Next::GiveUp;
    }
    tracing::info!(site = site.name(), %peer, words, "the next host is tried");
    Next::TryOn
}

fn lost(place: &str, error: &StreamError) -> BackendError {
    let words = match error {
        StreamError::TimedOut => format!("the next hop did not answer in time {place}"),
        StreamError::Io(error) => format!("the connection broke {place}: {error}"),
    };
    BackendError::Lost(words.into())
}

/// Connections of one core that stand idle, a few for each site, each for a short time.
pub struct Backends {
    /// The connections to next hops that all cores may have, those of the queue too.
    allowance: Arc<Allowance>,
    kept: RefCell<HashMap<SiteId, Vec<(Instant, Backend)>>>,
}

impl Backends {
    /// None yet; there may be no more than `allowance` has.
    pub fn new(allowance: Arc<Allowance>) -> Backends {
        Backends { allowance, kept: RefCell::default() }
    }

    /// A place for a new connection; one that idles on this core makes room for it.  If there is
    /// none, those of the other cores make room for who comes next.
    fn place(&self) -> Option<Place> {
        let place = self.allowance.place().or_else(|| {
            self.close_oldest();
            self.allowance.place()
        });
        if place.is_none() {
            self.allowance.place_missed(Instant::now(), MISSED_FOR);
        }
        place
    }

    /// Whether connections that idle are in somebody's way.
    pub fn must_end(&self, now: Instant) -> bool {
        self.allowance.is_wanted() || self.allowance.misses_place(now)
    }

    /// Gives up the connection that has stood idle for longest.
    fn close_oldest(&self) {
        let mut kept = self.kept.borrow_mut();
        let oldest = kept.values_mut().filter(|of_site| !of_site.is_empty());
        // The last one kept stands last.
        if let Some(of_site) = oldest.min_by_key(|of_site| of_site[0].0) {
            of_site.remove(0);
        }
    }

    /// The one that was kept last.
    fn take(&self, site: SiteId) -> Option<Backend> {
        let mut kept = self.kept.borrow_mut();
        let (_, backend) = kept.get_mut(&site)?.pop()?;
        Some(Backend { is_kept: true, ..backend })
    }

    /// Forgets those that have stood idle for long enough; tells whether any are left.
    fn sweep(&self, now: Instant, idle: Duration) -> bool {
        let mut kept = self.kept.borrow_mut();
        kept.retain(|_, of_site| {
            of_site.retain(|(since, _)| now.duration_since(*since) < idle);
            !of_site.is_empty()
        });
        !kept.is_empty()
    }
}

/// Keeps a connection on which nothing is under way for the next who wants one.
pub fn keep(worker: &Rc<Worker>, mut backend: Backend) {
    backend.is_well();
    // Sites that stand in line for a connection come before one that idles.  Not so a client that
    // found no place and has been told to come again: the next one here may want this very one, and
    // if none does, `sweep` finds it.
    if worker.is_stopping() || worker.backends.allowance.is_wanted() {
        return;
    }
    let mut kept = worker.backends.kept.borrow_mut();
    let was_empty = kept.is_empty();
    let of_site = kept.entry(backend.site.id()).or_default();
    if of_site.len() < limits::BACKENDS_KEPT {
        of_site.push((Instant::now(), backend));
    }
    if was_empty {
        runtime::spawn(sweep(worker.clone()));
    }
}

/// Runs as long as any are kept.
async fn sweep(worker: Rc<Worker>) {
    let idle = worker.config.delivery.idle_timeout;
    loop {
        runtime::sleep(idle.clamp(SWEEP_LEAST, SWEEP_MOST)).await;
        let now = Instant::now();
        if worker.is_stopping() || worker.backends.must_end(now) {
            worker.backends.kept.borrow_mut().clear();
        }
        if !worker.backends.sweep(now, idle) {
            return;
        }
    }
}

/// What one who waits may spend on hosts that do not take us.
struct Tries {
    began: Instant,
    failed: u32,
}

impl Tries {
    fn new() -> Tries {
        Tries { began: Instant::now(), failed: 0 }
    }

    /// One has failed; whether another may be tried.
    fn may_go_on(&mut self) -> bool {
        self.failed += 1;
        self.failed < HOSTS_AT_ONCE && self.began.elapsed() < HOSTS_TRIED_FOR
    }
}

/// How long after the first attempt another host is tried: whoever waits has its own deadline for
/// RCPT, of 5 minutes (RFC 5321 section 4.5.3.2.3), and an attempt may take two of them.
const HOSTS_TRIED_FOR: Duration = Duration::from_secs(60);
// A few that say nothing must not use it up.
const _: () = assert!(HOSTS_TRIED_FOR.as_secs() > 3 * limits::BACKEND_GREETING.as_secs());
/// What a peer may take to say why it closed.
const LAST_WORD: Duration = Duration::from_secs(1);
/// The least time between two looks for connections that stand idle for too long.
const SWEEP_LEAST: Duration = Duration::from_millis(200);
/// The most: sites that stand in line for a connection wait so long for those that idle here.
const SWEEP_MOST: Duration = Duration::from_secs(1);
/// How long those that idle give way once somebody found no place: each core looks at its own
/// meanwhile, even a busy one.
const MISSED_FOR: Duration = SWEEP_MOST.saturating_mul(3);
