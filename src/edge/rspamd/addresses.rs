//! Where rspamd is: the addresses behind the host of its URL.
//!
//! The system's resolver blocks a thread for as long as it likes, and cannot be told to stop: with a
//! resolver that is dead, and a look-up for each message, whose deadline ends the wait but not the
//! look-up, threads and work for them would pile up.
//!
//! Invariants: one look-up is under way at most, and all who come meanwhile wait for its answer;
//! what was found is used for [`FRESH`] without asking.  Where the next look-up fails or takes long,
//! what was found before is still the best guess.  An address needs no look-up.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::time::timeout;

/// Addresses that were found; there is at least one.
type Found = Arc<[SocketAddr]>;
/// One look-up; called anew for each.
type LookUp =
    dyn Fn() -> Pin<Box<dyn Future<Output = io::Result<Vec<SocketAddr>>> + Send>> + Send + Sync;

/// See the module's text.
pub struct Addresses {
    look_up: Box<LookUp>,
    fresh: Duration,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    known: Option<(Instant, Found)>,
    /// The look-up under way: nothing comes through this, it ends when the look-up does.
    under_way: Option<watch::Receiver<()>>,
}

impl Addresses {
    /// Those of `authority`, a host and a port.
    pub fn new(authority: &str) -> Addresses {
        let authority: Arc<str> = authority.into();
        let look_up = move || {
            let authority = authority.clone();
            let look_up = async move { Ok(tokio::net::lookup_host(&*authority).await?.collect()) };
            Box::pin(look_up) as Pin<Box<dyn Future<Output = _> + Send>>
        };
        Addresses::by(Box::new(look_up), FRESH)
    }

    fn by(look_up: Box<LookUp>, fresh: Duration) -> Addresses {
        Addresses { look_up, fresh, state: Mutex::default() }
    }

    /// The addresses; `None` if they cannot be found.  Who no longer waits for them leaves the
    /// look-up to the others.
    pub async fn find(self: &Arc<Self>) -> Option<Found> {
        let (is_known, mut under_way) = {
            let mut state = self.state();
            let is_known = match &state.known {
                Some((since, known)) if since.elapsed() < self.fresh => return Some(known.clone()),
                known => known.is_some(),
            };
            let under_way = state.under_way.get_or_insert_with(|| self.begin());
            (is_known, under_way.clone())
        };
        // What it found is in its place by then; if it ends without, that is what was known before.
        let over = under_way.changed();
        match is_known {
            false => drop(over.await),
            true => drop(timeout(PATIENCE, over).await),
        }
        self.state().known.as_ref().map(|(_, known)| known.clone())
    }

    fn begin(self: &Arc<Self>) -> watch::Receiver<()> {
        let (ends, under_way) = watch::channel(());
        let (addresses, look_up) = (self.clone(), (self.look_up)());
        tokio::spawn(async move {
            let found = look_up.await.ok().filter(|found| !found.is_empty()).map(Found::from);
            let mut state = addresses.state();
            if let Some(found) = found {
                state.known = Some((Instant::now(), found));
            }
            state.under_way = None;
            drop(state);
            drop(ends);
        });
        under_way
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long what was found is used before it is looked up again.
const FRESH: Duration = Duration::from_secs(60);
/// How long a look-up is waited for where there is an older answer.
const PATIENCE: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::Semaphore;

    use super::*;

    /// A resolver that answers as often as it is let, first with an address and then with none.
    struct Resolver {
        asked: AtomicUsize,
        let_go: Semaphore,
    }

    fn resolver(fresh: Duration) -> (Arc<Resolver>, Arc<Addresses>) {
        let resolver = Arc::new(Resolver { asked: AtomicUsize::new(0), let_go: Semaphore::new(0) });
        let asked = resolver.clone();
        let look_up = move || {
            let resolver = asked.clone();
            let look_up = async move {
                let number = resolver.asked.fetch_add(1, Ordering::SeqCst);
                resolver.let_go.acquire().await.expect("it is open").forget();
                match number {
                    0 => Ok(vec![SocketAddr::from(([192, 0, 2, 1], 11_333))]),
                    _ => Err(io::Error::other("nobody knows")),
                }
            };
            Box::pin(look_up) as Pin<Box<dyn Future<Output = _> + Send>>
        };
        (resolver, Arc::new(Addresses::by(Box::new(look_up), fresh)))
    }

    fn run(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a loop").block_on(test);
    }

    #[test]
    fn whoever_gives_up_leaves_one_look_up_behind() {
        run(async {
            let (resolver, addresses) = resolver(Duration::from_secs(3_600));
            for _ in 0..50 {
                let found = addresses.find();
                assert!(timeout(Duration::from_millis(1), found).await.is_err());
            }
            assert_eq!(resolver.asked.load(Ordering::SeqCst), 1);
            resolver.let_go.add_permits(1);
            for _ in 0..2 {
                let found = addresses.find().await.expect("it has answered");
                assert_eq!(found.len(), 1);
            }
            assert_eq!(resolver.asked.load(Ordering::SeqCst), 1);
        });
    }

    #[test]
    fn what_was_known_serves_while_nobody_knows_better() {
        run(async {
            let (resolver, addresses) = resolver(Duration::ZERO);
            resolver.let_go.add_permits(1);
            let first = addresses.find().await.expect("it answers");
            // The second look-up takes for ever, and then fails, as all after it.
            assert_eq!(addresses.find().await, Some(first.clone()));
            assert_eq!(resolver.asked.load(Ordering::SeqCst), 2);
            resolver.let_go.add_permits(2);
            assert_eq!(addresses.find().await, Some(first.clone()));
            assert_eq!(addresses.find().await, Some(first));
            let (resolver, addresses) = self::resolver(Duration::ZERO);
            resolver.asked.store(1, Ordering::SeqCst);
            resolver.let_go.add_permits(1);
            assert_eq!(addresses.find().await, None);
        });
    }
}
