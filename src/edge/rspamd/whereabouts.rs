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

/// Addresses that were found.
type Addresses = Arc<[SocketAddr]>;
/// What a look-up came to: `None` if there are no addresses.
type Found = Option<Addresses>;
/// One look-up; called anew for each.
type LookUp =
    dyn Fn() -> Pin<Box<dyn Future<Output = io::Result<Vec<SocketAddr>>> + Send>> + Send + Sync;

/// See the module's text.
pub struct Whereabouts {
    look_up: Box<LookUp>,
    fresh: Duration,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    known: Option<(Instant, Addresses)>,
    /// The look-up under way; no value until it is over.
    under_way: Option<watch::Receiver<Option<Found>>>,
}

impl Whereabouts {
    /// Those of `authority`, a host and a port.
    pub fn new(authority: &str) -> Whereabouts {
        let authority: Arc<str> = authority.into();
        let look_up = move || {
            let authority = authority.clone();
            let look_up = async move { Ok(tokio::net::lookup_host(&*authority).await?.collect()) };
            Box::pin(look_up) as Pin<Box<dyn Future<Output = _> + Send>>
        };
        Whereabouts::by(Box::new(look_up), FRESH)
    }

    fn by(look_up: Box<LookUp>, fresh: Duration) -> Whereabouts {
        Whereabouts { look_up, fresh, state: Mutex::default() }
    }

    /// The addresses; `None` if they cannot be found.  Who no longer waits for them leaves the
    /// look-up to the others.
    pub async fn addresses(self: &Arc<Self>) -> Found {
        let (known, mut under_way) = {
            let mut state = self.state();
            let known = match &state.known {
                Some((since, known)) if since.elapsed() < self.fresh => return Some(known.clone()),
                known => known.as_ref().map(|(_, known)| known.clone()),
            };
            let under_way = state.under_way.get_or_insert_with(|| self.begin());
            (known, under_way.clone())
        };
        let found = async {
            // Its end without an answer is that of the office.
            under_way.wait_for(Option::is_some).await.ok().and_then(|found| found.clone()).flatten()
        };
        match known {
            None => found.await,
            Some(known) => timeout(PATIENCE, found).await.ok().flatten().or(Some(known)),
        }
    }

    fn begin(self: &Arc<Self>) -> watch::Receiver<Option<Found>> {
        let (tell, under_way) = watch::channel(None);
        let (whereabouts, look_up) = (self.clone(), (self.look_up)());
        tokio::spawn(async move {
            let found = look_up.await.ok().filter(|found| !found.is_empty()).map(Addresses::from);
            let mut state = whereabouts.state();
            if let Some(found) = &found {
                state.known = Some((Instant::now(), found.clone()));
            }
            state.under_way = None;
            drop(state);
            // Nobody may wait any more.
            let _ = tell.send(Some(found));
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

    fn resolver(fresh: Duration) -> (Arc<Resolver>, Arc<Whereabouts>) {
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
        (resolver, Arc::new(Whereabouts::by(Box::new(look_up), fresh)))
    }

    fn run(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a loop").block_on(test);
    }

    #[test]
    fn whoever_gives_up_leaves_one_look_up_behind() {
        run(async {
            let (resolver, whereabouts) = resolver(Duration::from_secs(3_600));
            for _ in 0..50 {
                let addresses = whereabouts.addresses();
                assert!(timeout(Duration::from_millis(1), addresses).await.is_err());
            }
            assert_eq!(resolver.asked.load(Ordering::SeqCst), 1);
            resolver.let_go.add_permits(1);
            for _ in 0..2 {
                let found = whereabouts.addresses().await.expect("it has answered");
                assert_eq!(found.len(), 1);
            }
            assert_eq!(resolver.asked.load(Ordering::SeqCst), 1);
        });
    }

    #[test]
    fn what_was_known_serves_while_nobody_knows_better() {
        run(async {
            let (resolver, whereabouts) = resolver(Duration::ZERO);
            resolver.let_go.add_permits(1);
            let first = whereabouts.addresses().await.expect("it answers");
            // The second look-up takes for ever, and then fails, as all after it.
            assert_eq!(whereabouts.addresses().await, Some(first.clone()));
            assert_eq!(resolver.asked.load(Ordering::SeqCst), 2);
            resolver.let_go.add_permits(2);
            assert_eq!(whereabouts.addresses().await, Some(first.clone()));
            assert_eq!(whereabouts.addresses().await, Some(first));
            let (resolver, whereabouts) = self::resolver(Duration::ZERO);
            resolver.asked.store(1, Ordering::SeqCst);
            resolver.let_go.add_permits(1);
            assert_eq!(whereabouts.addresses().await, None);
        });
    }
}
