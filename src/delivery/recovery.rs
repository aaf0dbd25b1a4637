//! What recovery finds becomes handles: each message's recipients that are left, by destination
//! and by what they wait for.  Nothing is looked up: a start needs no DNS.

use std::collections::{HashMap, HashSet};
use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::{Duration, Instant};

use super::sites::{Sites, route_of};
use crate::config::Config;
use crate::queue::destination::Destination;
use crate::queue::handle::{Handle, Reasons, Recipients, State};
use crate::spool::recovery::{Damage, Progress};
use crate::spool::{DeferState, RecoveredMessage, RecoveryVisitor, StoredDefer};

/// Gathers the handles of a recovery for each core, and says how far it is.
pub struct Recovered<'a> {
    config: &'a Config,
    sites: &'a Sites,
    cores: Vec<Vec<(Destination, Handle)>>,
    messages: u64,
    known: Known,
    told: Instant,
}

/// What many handles have in common, so that they share it.
#[derive(Default)]
struct Known {
    reasons: Reasons,
    domains: HashSet<Arc<str>>,
}

/// What makes recipients of one message wait together.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Wait {
    destination: Destination,
    /// The place of its DEFER among the message's.
    deferral: Option<usize>,
}

impl<'a> Recovered<'a> {
    /// Nothing yet.
    pub fn new(config: &'a Config, sites: &'a Sites) -> Recovered<'a> {
        let cores = (0..config.workers).map(|_| Vec::new()).collect();
        Recovered {
            config,
            sites,
            cores,
            messages: 0,
            known: Known::default(),
            told: Instant::now(),
        }
    }

    /// The handles of each core, in the order of acceptance: the lists of sites count on it.
    pub fn into_handles(mut self) -> Vec<Vec<(Destination, Handle)>> {
        // Stable and nearly sorted; only what was moved by a compaction is out of place.
        self.cores.iter_mut().for_each(|handles| handles.sort_by_key(|(_, handle)| handle.id));
        self.cores
    }
}

impl RecoveryVisitor for Recovered<'_> {
    fn message(&mut self, message: RecoveredMessage) {
        // Spread evenly: whatever destination has a backlog then uses every core at once.
        let core = (self.messages % self.cores.len() as u64) as usize;
        self.messages += 1;
        let handles = handles(self.config, self.sites, &mut self.known, &message);
        self.cores[core].extend(handles);
    }

    fn progress(&mut self, progress: Progress) {
        if self.told.elapsed() < TELL_EVERY {
            return;
        }
        self.told = Instant::now();
        let Progress { segments_done, segments } = progress;
        if std::io::stderr().is_terminal() {
            eprint!("\rrecovering: {segments_done} of {segments} segments");
        } else {
            tracing::info!(segments_done, segments, "recovering the log");
        }
    }

    fn damage(&mut self, damage: &Damage) {
        tracing::error!(?damage, "the log is damaged; what is good is kept, nothing is deleted");
    }
}

/// The handles of one message.
fn handles(
    config: &Config,
    sites: &Sites,
    known: &mut Known,
    recovered: &RecoveredMessage,
) -> Vec<(Destination, Handle)> {
    let envelope = &recovered.message.envelope;
    let mut groups: HashMap<Wait, Vec<u16>> = HashMap::new();
    for (place, recipient) in envelope.recipients.iter().enumerate() {
        let place = place as u16;
        if recovered.done.binary_search(&place).is_ok() {
            continue;
        }
        let deferral =
            recovered.deferrals.iter().position(|defer| defer.recipients.contains(place));
        let is_released = deferral
            .is_some_and(|deferral| recovered.deferrals[deferral].state == DeferState::Released);
        let route = route_of(config, &recipient.path, is_released);
        let destination = match route {
            Some(route) => {
                known.share(sites.destination(route, &recipient.path, &envelope.parameters))
            }
            None => sites.unrouted(),
        };
        groups.entry(Wait { destination, deferral }).or_default().push(place);
    }
    let mut groups: Vec<(Wait, Vec<u16>)> = groups.into_iter().collect();
    groups.sort_unstable();
    let parts = (groups.len() > 1).then(|| Arc::new(AtomicU32::new(groups.len() as u32)));
    let handle = |(wait, places): (Wait, Vec<u16>)| {
        let recipients = Recipients::of(places, envelope.recipients.len());
        let id = recovered.message.id;
        let mut handle = Handle::new(id, recovered.place, recipients, parts.clone());
        if let Some(deferral) = wait.deferral {
            let deferral = &recovered.deferrals[deferral];
            restore(&mut handle, deferral);
            handle.reason = Some(known.reasons.share(&deferral.reply));
        }
        (wait.destination, handle)
    };
    groups.into_iter().map(handle).collect()
}

impl Known {
    /// The same destination with a domain that others share.
    fn share(&mut self, mut destination: Destination) -> Destination {
        if let Some(domain) = &mut destination.domain {
            match self.domains.get(domain) {
                Some(known) => *domain = known.clone(),
                None => drop(self.domains.insert(domain.clone())),
            }
        }
        destination
    }
}

fn restore(handle: &mut Handle, deferral: &StoredDefer) {
    handle.attempts = deferral.attempts;
    handle.delay_told = deferral.delay_told;
    handle.released = deferral.state == DeferState::Released;
    match deferral.state {
        DeferState::Deferred | DeferState::Released => {
            handle.due_unix_ms = deferral.next_attempt_unix_ms;
        }
        DeferState::Held => handle.state = State::Held,
    }
}

/// How often a long recovery says how far it is.
const TELL_EVERY: Duration = Duration::from_secs(1);
