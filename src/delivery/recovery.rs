//! What recovery finds becomes handles: each message's recipients that are left, by destination
//! and by what they wait for.  Nothing is looked up: a start needs no DNS.

use std::cmp::Reverse;
use std::collections::binary_heap::PeekMut;
use std::collections::{BinaryHeap, HashMap};
use std::io::IsTerminal;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::sites::{Sites, route_of};
use crate::config::Config;
use crate::message::MessageId;
use crate::queue::destination::{Destination, DestinationIndex};
use crate::queue::handle::{Handle, Reasons, Recipients, State};
use crate::runtime;
use crate::spool::recovery::{Damage, Progress};
use crate::spool::{DeferState, RecoveredMessage, RecoveryVisitor, SegmentNo, StoredDefer};
use crate::sync::parts::Parts;

/// Gathers the handles of a recovery for each core, and says how far it is.
pub struct Recovered<'a> {
    config: &'a Config,
    sites: &'a Sites,
    cores: Vec<RecoveredHandles>,
    /// Whose messages are being handed over.
    segment: SegmentNo,
    messages: u64,
    known: Known,
    told: Instant,
}

/// What many handles have in common, so that they share it.
#[derive(Default)]
struct Known {
    reasons: Reasons,
    destinations: Vec<Destination>,
    /// Where each stands in `destinations`.
    places: HashMap<Destination, DestinationIndex>,
}

/// What makes recipients of one message wait together.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Wait {
    destination: DestinationIndex,
    /// The place of its DEFER among the message's.
    deferral: Option<usize>,
}

impl<'a> Recovered<'a> {
    /// Nothing yet.
    pub fn new(config: &'a Config, sites: &'a Sites) -> Recovered<'a> {
        let cores = (0..config.workers).map(|_| RecoveredHandles::default()).collect();
        Recovered {
            config,
            sites,
            cores,
            segment: SegmentNo(0),
            messages: 0,
            known: Known::default(),
            told: Instant::now(),
        }
    }

    /// The handles of each core.
    pub fn into_handles(mut self) -> Vec<RecoveredHandles> {
        let destinations: Arc<[Destination]> = self.known.destinations.into();
        for core in &mut self.cores {
            core.end_run();
            core.run = Vec::new();
            core.destinations = destinations.clone();
        }
        self.cores
    }
}

/// What one core has to file, in the order of acceptance: the lists of sites count on it.
///
/// What comes from one segment is sorted by itself, and its memory is given back with the last of
/// it, so that a backlog of millions is not there twice while it is filed.
#[derive(Default)]
pub struct RecoveredHandles {
    /// Of the segment that is being read; it keeps what it has grown to for the next one.
    run: Vec<Handle>,
    runs: Vec<std::vec::IntoIter<Handle>>,
    /// The lowest id that is left of each run.
    heads: BinaryHeap<Reverse<(MessageId, usize)>>,
    left: usize,
    /// What the handles' places mean, for all cores: ten million handles, each with a destination
    /// of its own beside it, would take a quarter more.
    destinations: Arc<[Destination]>,
}

impl RecoveredHandles {
    fn end_run(&mut self) {
        // Stable and nearly sorted; only what a compaction has moved is out of place.
        self.run.sort_by_key(|handle| handle.id);
        // Moved into memory of its own size: what a vector grew to and has given back is as good as
        // in use, where other memory was before, and a run may have grown to twice what it needs.
        let mut run = Vec::with_capacity(self.run.len());
        run.append(&mut self.run);
        let Some(first) = run.first() else { return };
        self.left += run.len();
        self.heads.push(Reverse((first.id, self.runs.len())));
        self.runs.push(run.into_iter());
    }
}

impl Iterator for RecoveredHandles {
    type Item = (Destination, Handle);

    fn next(&mut self) -> Option<(Destination, Handle)> {
        let mut head = self.heads.peek_mut()?;
        let run = &mut self.runs[head.0.1];
        let handle = run.next()?;
        match run.as_slice().first() {
            Some(next) => head.0.0 = next.id,
            None => {
                *run = Vec::new().into_iter();
                PeekMut::pop(head);
            }
        }
        self.left -= 1;
        Some((self.destinations[handle.destination().place()].clone(), handle))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for RecoveredHandles {}

impl RecoveryVisitor for Recovered<'_> {
    fn message(&mut self, message: RecoveredMessage) {
        // Spread evenly: whatever destination has a backlog then uses every core at once.
        let core = (self.messages % self.cores.len() as u64) as usize;
        self.messages += 1;
        if message.place.segment != self.segment {
            self.segment = message.place.segment;
            self.cores.iter_mut().for_each(RecoveredHandles::end_run);
            // What recovery knew of that segment's messages is not needed any more, and the handles
            // have come in its place.
            runtime::memory::give_back();
        }
        let handles = handles(self.config, self.sites, &mut self.known, &message);
        self.cores[core].run.extend(handles);
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
        tracing::error!("the log is damaged: {damage}; what is good is kept, nothing is deleted");
    }
}

/// The handles of one message.
fn handles(
    config: &Config,
    sites: &Sites,
    known: &mut Known,
    recovered: &RecoveredMessage,
) -> Vec<Handle> {
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
        let is_kept_back =
            recovered.message.is_quarantined() && !is_released && !recipient.path.is_postmaster();
        let route = route_of(config, &recipient.path, is_released);
        let destination = match route {
            _ if is_kept_back => sites.quarantine(),
            Some(route) => sites.destination(route, &recipient.path, &envelope.parameters),
            None => sites.unrouted(),
        };
        let destination = known.place(destination);
        groups.entry(Wait { destination, deferral }).or_default().push(place);
    }
    let mut groups: Vec<(Wait, Vec<u16>)> = groups.into_iter().collect();
    groups.sort_unstable();
    let parts = (groups.len() > 1).then(|| Arc::new(Parts::new(groups.len() as u32)));
    let handle = |(wait, places): (Wait, Vec<u16>)| {
        let recipients = Recipients::of(places, envelope.recipients.len());
        let id = recovered.message.id;
        let mut handle = Handle::new(id, recovered.place, recipients, parts.clone());
        handle.lead_to(wait.destination);
        if let Some(deferral) = wait.deferral {
            let deferral = &recovered.deferrals[deferral];
            restore(&mut handle, deferral);
            handle.reason = Some(known.reasons.share(&deferral.reply));
        }
        handle
    };
    groups.into_iter().map(handle).collect()
}

impl Known {
    /// A destination's place in the table.
    fn place(&mut self, destination: Destination) -> DestinationIndex {
        if let Some(&known) = self.places.get(&destination) {
            return known;
        }
        let place = DestinationIndex::at(self.destinations.len());
        self.destinations.push(destination.clone());
        self.places.insert(destination, place);
        place
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Environment;
    use crate::queue::handle::Recipients as Places;
    use crate::spool::RecordPlace;

    /// Compactions and clocks put them out of order, within a segment and across segments.
    #[test]
    fn handles_come_in_the_order_of_acceptance() {
        let config = Config::development(&Environment::for_test());
        let sites = Sites::new(&config);
        let place = RecordPlace { segment: SegmentNo(1), offset: 0, length: 0 };
        let destinations = Arc::from([sites.unrouted()]);
        let mut handles = RecoveredHandles { destinations, ..RecoveredHandles::default() };
        let handle = |&id: &u64| {
            let mut handle = Handle::new(MessageId(id), place, Places::All(1), None);
            handle.lead_to(DestinationIndex::at(0));
            handle
        };
        for run in [&[5, 7, 6][..], &[], &[1, 2], &[8, 3, 9], &[4]] {
            handles.run.extend(run.iter().map(handle));
            handles.end_run();
        }
        assert_eq!(handles.len(), 9);
        let ids: Vec<u64> = handles.map(|(_, handle)| handle.id.0).collect();
        assert_eq!(ids, [1, 2, 3, 4, 5, 6, 7, 8, 9]);
    }
}
