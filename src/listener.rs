//! Where clients come in: accepts connections, counts them against the limits, and starts a
//! session for each.
//!
//! Every worker has its own socket for each listener and takes what the kernel gives it.  The
//! counts are shared by all workers: they are touched once a connection, never by a message.
//!
//! A client over a limit gets one line of 421 and is closed; a process without descriptors waits
//! a moment and goes on.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::config::{Config, ListenerTls};
use crate::control::events::SessionId;
use crate::inbound::{self, ListenerState};
use crate::runtime::guard::guarded;
use crate::runtime::socket::{CancelHandle, Listener, Stream};
use crate::runtime::{self, sleep};
use crate::smtp::reply::{Refusal, Replies};
use crate::worker::Worker;

/// How many sessions there are, in all and by client address; shared by all workers.
pub struct SessionCounts {
    sessions_max: usize,
    per_address_max: usize,
    sessions: AtomicUsize,
    by_address: [Mutex<HashMap<IpAddr, usize>>; SHARDS],
}

/// Locks of the table of addresses, so that workers seldom meet.
const SHARDS: usize = 64;

/// One session's place in the counts; given back when dropped.
pub struct Admission {
    counts: Arc<SessionCounts>,
    address: Option<IpAddr>,
}

impl SessionCounts {
    /// Nobody is there yet.
    pub fn new(config: &Config) -> SessionCounts {
        SessionCounts {
            sessions_max: config.limits.sessions,
            per_address_max: config.limits.sessions_per_address,
            sessions: AtomicUsize::new(0),
            by_address: std::array::from_fn(|_| Mutex::default()),
        }
    }

    /// Counts a client in; `exempt` ones are not counted by address.
    ///
    /// # Errors
    /// `TooManySessions` or `TooManySessionsFromAddress`.
    pub fn admit(self: &Arc<Self>, address: IpAddr, exempt: bool) -> Result<Admission, Refusal> {
        let address = address.to_canonical();
        if self.sessions.fetch_add(1, Ordering::Relaxed) >= self.sessions_max {
            self.sessions.fetch_sub(1, Ordering::Relaxed);
            return Err(Refusal::TooManySessions);
        }
        let mut admission = Admission { counts: self.clone(), address: None };
        if exempt {
            return Ok(admission);
        }
        let mut shard = self.shard(address);
        let count = shard.entry(address).or_insert(0);
        if *count >= self.per_address_max {
            drop(shard);
            return Err(Refusal::TooManySessionsFromAddress);
        }
        *count += 1;
        drop(shard);
        admission.address = Some(address);
        Ok(admission)
    }

    /// How many there are.
    pub fn sessions(&self) -> usize {
        self.sessions.load(Ordering::Relaxed)
    }

    fn shard(&self, address: IpAddr) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        let bits = match address {
            IpAddr::V4(address) => u128::from(u32::from(address)),
            IpAddr::V6(address) => u128::from(address),
        };
        // Neighbours in a network differ in the last bits of what is one client's own.
        let shard = (bits ^ bits >> 6 ^ bits >> 64) as usize % SHARDS;
        self.by_address[shard].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.counts.sessions.fetch_sub(1, Ordering::Relaxed);
        let Some(address) = self.address else { return };
        let mut shard = self.counts.shard(address);
        if let Some(count) = shard.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                shard.remove(&address);
            }
        }
    }
}

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
    let admission = worker.counts.admit(peer.ip(), exempt);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_its_share_and_gives_it_back() {
        let counts = Arc::new(SessionCounts {
            sessions_max: 3,
            per_address_max: 1,
            sessions: AtomicUsize::new(0),
            by_address: std::array::from_fn(|_| Mutex::default()),
        });
        let client: IpAddr = "192.0.2.1".parse().unwrap();
        let same: IpAddr = "::ffff:192.0.2.1".parse().unwrap();
        let first = counts.admit(client, false).map_err(|_| ()).unwrap();
        assert_eq!(counts.admit(same, false).err(), Some(Refusal::TooManySessionsFromAddress));
        assert_eq!(counts.sessions(), 1, "who is refused does not count");
        let exempt = [counts.admit(client, true), counts.admit(client, true)];
        assert!(exempt.iter().all(Result::is_ok));
        assert_eq!(counts.admit(client, true).err(), Some(Refusal::TooManySessions));
        drop((first, exempt));
        assert_eq!(counts.sessions(), 0);
        assert!(counts.admit(client, false).is_ok());
    }
}
