//! Where clients come in: accepts connections, counts them against the limits, and starts a
//! session for each.
//!
//! Every worker has its own socket for each listener and takes what the kernel gives it.  The
//! counts and rates ([`counts`]) are shared by all workers: they are touched once a connection,
//! never by a message.
//!
//! Behind a balancer the client is whom the connection's PROXY header names ([`proxy`]): it is read
//! first, and counts and limits are the client's.
//!
//! A client over a limit gets one line of 421 and is closed; a process without descriptors waits
//! a moment and goes on.

pub mod counts;
pub mod proxy;

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use ipnet::IpNet;

use crate::config::ListenerTls;
use crate::control::events::SessionId;
use crate::inbound::{self, Arrival, ListenerState};
use crate::limits;
use crate::runtime::guard::guarded;
use crate::runtime::socket::{CancelHandle, Listener, Stream, StreamError};
use crate::runtime::{self, sleep};
use crate::smtp::reply::{Refusal, Replies};
use crate::worker::Worker;

use counts::Admission;
pub use counts::SessionCounts;
use proxy::{HeaderReader, Introduced};

/// Accepts on one socket until `cancel` ends it.
pub async fn accept_forever(
    worker: Rc<Worker>,
    state: Rc<ListenerState>,
    listener: Listener,
    cancel: CancelHandle,
) {
    let mut told = None;
    while !worker.is_stopping() {
        // Events are never dropped: where their writer is behind, new sessions wait for it.
        while worker.events.must_wait() && !worker.is_stopping() {
            worker.metrics.accept_pauses.count();
            sleep(ACCEPT_PAUSE).await;
        }
        match listener.accept(cancel.clone()).await {
            Ok((stream, peer)) => admit(&worker, &state, stream, peer),
            Err(_) if worker.is_stopping() => return,
            Err(error) => {
                // Out of descriptors, nearly always: each one that a session gives back helps.
                worker.metrics.accept_errors.count();
                worker.metrics.accept_pauses.count();
                // It may last, and be tried ten times a second.
                if told.is_none_or(|told: Instant| told.elapsed() > ACCEPT_SILENCE) {
                    told = Some(Instant::now());
                    tracing::warn!(%error, "cannot accept connections; trying again and again");
                }
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn admit(worker: &Rc<Worker>, state: &Rc<ListenerState>, stream: Stream, peer: SocketAddr) {
    let id = worker.next_session();
    let is_proxied = is_in(&state.listener.proxy, peer);
    let exempt = is_proxied || is_exempt(worker, state, peer);
    let admission = worker.counts.admit(peer.ip(), exempt, Instant::now());
    let (worker, state) = (worker.clone(), state.clone());
    match admission {
        Err(refusal) => {
            let tls = state.listener.tls;
            runtime::spawn(turn_away(worker, stream, peer, id, refusal, tls));
        }
        Ok(admission) if is_proxied => {
            runtime::spawn(introduce(worker, state, stream, peer, id, admission));
        }
        Ok(admission) => {
            let arrival = Arrival { address: peer, proxy: None, is_balancer: false, admission };
            runtime::spawn(serve(worker, state, stream, arrival, id));
        }
    }
}

async fn serve(
    worker: Rc<Worker>,
    state: Rc<ListenerState>,
    stream: Stream,
    arrival: Arrival,
    id: SessionId,
) {
    let peer = arrival.address;
    worker.session_began(id, &arrival, &state);
    let session = inbound::serve(worker.clone(), state, stream, arrival, id);
    // On the heap, so that what idles is only as large as it must be.
    if let Err(words) = guarded(Box::pin(session)).await {
        tracing::error!(session = %id, %peer, "a session ended by a bug of ours: {words}");
    }
    worker.session_ended();
}

/// Lets a balancer say for whom its connection is, then counts that client and serves it.
async fn introduce(
    worker: Rc<Worker>,
    state: Rc<ListenerState>,
    mut stream: Stream,
    balancer: SocketAddr,
    id: SessionId,
    mut admission: Admission,
) {
    let arrival = match introduced(&mut stream).await {
        Err(_) => return worker.report_unintroduced(id, balancer),
        Ok(Introduced::Balancer) => {
            Arrival { address: balancer, proxy: None, is_balancer: true, admission }
        }
        Ok(Introduced::Client(address)) => {
            let exempt = is_exempt(&worker, &state, address);
            if !exempt && let Err(refusal) = admission.claim(address.ip(), Instant::now()) {
                let tls = state.listener.tls;
                return turn_away(worker, stream, address, id, refusal, tls).await;
            }
            Arrival { address, proxy: Some(balancer), is_balancer: false, admission }
        }
    };
    // A task of its own: this one's state is not kept for as long as the session lives.
    runtime::spawn(serve(worker, state, stream, arrival, id));
}

/// Reads a PROXY header, and nothing of what follows it.
async fn introduced(stream: &mut Stream) -> Result<Introduced, StreamError> {
    let deadline = Instant::now() + limits::PROXY_HEADER;
    let mut reader = HeaderReader::default();
    stream.allow_interrupt(true);
    loop {
        stream.readable(deadline).await?;
        let take = |octets: &[u8]| match reader.take(octets) {
            Ok((taken, introduced)) => (taken, Ok(introduced)),
            Err(malformed) => (0, Err(malformed)),
        };
        let introduced = match stream.take_now(take) {
            Ok(taken) => taken.map_err(|malformed| StreamError::Io(io::Error::other(malformed)))?,
            // It was not readable after all.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            Err(error) => return Err(StreamError::Io(error)),
        };
        if let Some(introduced) = introduced {
            stream.allow_interrupt(false);
            return Ok(introduced);
        }
    }
}

/// Whether a client has no limits of its own: who speaks for many is not one client, and from whom
/// anything is relayed may come as he likes.
pub fn is_exempt(worker: &Worker, state: &ListenerState, client: SocketAddr) -> bool {
    is_in(&state.listener.xclient, client) || worker.config.relay.contains(client.ip())
}

/// Whether one of these networks has the address.
pub fn is_in(networks: &[IpNet], address: SocketAddr) -> bool {
    let ip = address.ip().to_canonical();
    networks.iter().any(|network| network.contains(&ip))
}

async fn turn_away(
    worker: Rc<Worker>,
    mut stream: Stream,
    peer: SocketAddr,
    session: SessionId,
    refusal: Refusal,
    tls: ListenerTls,
) {
    worker.report_turned_away(session, peer, &refusal);
    if tls == ListenerTls::Implicit {
        // A handshake for a word would cost what there is too much of already.
        return;
    }
    let mut replies = Replies::default();
    replies.refuse(&refusal);
    let _ = stream.write_all(replies.take(), Instant::now() + TURN_AWAY).await;
    stream.close_sending();
}

/// The wait after an accept that failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How often the log hears of it.
const ACCEPT_SILENCE: Duration = Duration::from_secs(60);
/// What a client may take to read that there is no room for it.
const TURN_AWAY: Duration = Duration::from_secs(2);
