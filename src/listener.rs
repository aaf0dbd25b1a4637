//! Where clients come in: accepts connections, counts them against the limits, and starts a
//! session for each.
//!
//! Every worker has its own socket for each listener and takes what the kernel gives it.  The
//! counts and rates ([`counts`]) are shared by all workers: they are touched once a connection,
//! never by a message.
//!
//! A client over a limit gets one line of 421 and is closed; a process without descriptors waits
//! a moment and goes on.

pub mod counts;

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::config::ListenerTls;
use crate::control::events::SessionId;
use crate::inbound::{self, ListenerState};
use crate::runtime::guard::guarded;
use crate::runtime::socket::{CancelHandle, Listener, Stream};
use crate::runtime::{self, sleep};
use crate::smtp::reply::{Refusal, Replies};
use crate::worker::Worker;

pub use counts::SessionCounts;

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
    let exempt = worker.config.relay.contains(peer.ip());
    let admission = worker.counts.admit(peer.ip(), exempt, Instant::now());
    let (worker, state) = (worker.clone(), state.clone());
    match admission {
        Err(refusal) => {
            let tls = state.listener.tls;
            runtime::spawn(turn_away(worker, stream, peer, id, refusal, tls));
        }
        Ok(admission) => runtime::spawn(async move {
            worker.session_began(id, peer, &state);
            let session = inbound::serve(worker.clone(), state, stream, peer, id);
            // On the heap, so that what idles is only as large as it must be.
            if let Err(words) = guarded(Box::pin(session)).await {
                tracing::error!(session = %id, %peer, "a session ended by a bug of ours: {words}");
            }
            worker.session_ended();
            drop(admission);
        }),
    }
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
