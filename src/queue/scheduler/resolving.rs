//! Where destinations lead: asking for their sites, and moving them from one to another.
//!
//! A resolution is renewed when it has run out and there is something to send; until the answer
//! comes the old site goes on, and for some hours where nobody can tell (RFC 8767): name servers
//! that are down take no working site away.  A destination that moves takes its list along as it
//! is, so moving a million messages is as quick as moving one.

use super::*;
use crate::limits;
use crate::queue::destination::{Asking, Listed};

impl Scheduler {
    /// Gives the courses that name their next hop their sites, for good.
    pub(super) fn resolve_fixed(&mut self) {
        for place in 0..self.courses.len() {
            let Lead::Site(shared) = self.courses[place].lead.clone() else { continue };
            let course = CourseIndex(place as u32);
            let index = self.destinations.place(&Destination { course, domain: None });
            let site = self.site_for(shared);
            self.site_queue(site).destinations += 1;
            self.destinations.entry(index).standing =
                Standing::Resolved { site, until_unix_ms: u64::MAX };
        }
    }

    /// Does what a destination with ready messages needs: asks for its site, gives messages to
    /// connections, or sends them back.
    pub(super) fn stir(&mut self, index: DestinationIndex, now_unix_ms: u64) {
        let Some(entry) = self.destinations.get(index) else { return };
        if entry.ready.is_empty() {
            return;
        }
        let has_site = entry.site().is_some();
        if self.has_run_out(index, now_unix_ms) {
            self.ask(index);
            if !has_site {
                return;
            }
        }
        self.go_on(index, now_unix_ms);
    }

    // ---- asking --------------------------------------------------------------------------

    pub(super) fn ask(&mut self, index: DestinationIndex) {
        let entry = self.destinations.entry(index);
        if entry.asking != Asking::No {
            return;
        }
        entry.asking = Asking::Waiting;
        match entry.failures {
            0 => self.to_ask.push_back(index),
            _ => self.to_ask_again.push_back(index),
        }
        self.ask_more();
    }

    fn ask_more(&mut self) {
        while let Some(index) = self.next_to_ask() {
            self.step();
            self.destinations.entry(index).asking = Asking::Asked;
            self.asked += 1;
            self.actions.push_back(Action::Resolve { destination: index });
        }
    }

    fn next_to_ask(&mut self) -> Option<DestinationIndex> {
        let left = limits::RESOLUTIONS_AT_ONCE.saturating_sub(self.asked);
        if left > 0
            && let Some(index) = self.to_ask.pop_front()
        {
            return Some(index);
        }
        (left > limits::RESOLUTIONS_RESERVED).then(|| self.to_ask_again.pop_front()).flatten()
    }

    pub(super) fn resolved(
        &mut self,
        index: DestinationIndex,
        resolution: Resolution,
        now_unix_ms: u64,
    ) {
        if self.destinations.get(index).is_none_or(|entry| entry.asking != Asking::Asked) {
            return;
        }
        self.asked -= 1;
        let keeps_site = self.keeps_site(index, now_unix_ms);
        let entry = self.destinations.entry(index);
        entry.asking = Asking::No;
        entry.failures = match resolution {
            Resolution::Later { .. } if !keeps_site => entry.failures.saturating_add(1),
            _ => 0,
        };
        match resolution {
            Resolution::Site { shared, until_unix_ms } => {
                self.lead_to(index, shared, until_unix_ms);
            }
            Resolution::NoMail { verdict, until_unix_ms } => {
                self.detach(index);
                self.destinations.entry(index).standing =
                    Standing::Refusing { verdict, until_unix_ms };
            }
            Resolution::Later { until_unix_ms: later, .. } if keeps_site => {
                if let Standing::Resolved { until_unix_ms, .. }
                | Standing::Elsewhere { until_unix_ms, .. } =
                    &mut self.destinations.entry(index).standing
                {
                    // The jitter is in the last digits of when the schedule would ask again.
                    *until_unix_ms = now_unix_ms + RENEWAL_MS + later % RENEWAL_MS;
                }
            }
            Resolution::Later { reason, until_unix_ms } => {
                self.detach(index);
                self.destinations.entry(index).standing =
                    Standing::Resting { until_unix_ms, reason };
            }
        }
        self.arm_destination(index, now_unix_ms);
        self.go_on(index, now_unix_ms);
        self.ask_more();
    }

    /// Whether a destination keeps the site that it has if nobody can tell where its mail goes
    /// now.
    pub fn keeps_site(&self, index: DestinationIndex, now_unix_ms: u64) -> bool {
        self.destinations.get(index).is_some_and(|entry| {
            matches!(entry.standing, Standing::Resolved { .. } | Standing::Elsewhere { .. })
                && now_unix_ms < entry.held_until_unix_ms.saturating_add(STALE_MS)
        })
    }

    /// Whether it is to be asked for where a destination's messages go.
    fn has_run_out(&self, index: DestinationIndex, now_unix_ms: u64) -> bool {
        let Some(entry) = self.destinations.get(index) else { return false };
        match &entry.standing {
            Standing::Hold => false,
            Standing::Unresolved => true,
            Standing::Resolved { site, until_unix_ms } => {
                // While nothing may be sent, it need not be known where to.
                let shared = self.site(*site);
                *until_unix_ms <= now_unix_ms
                    && shared.is_some_and(|shared| shared.rests_until(now_unix_ms).is_none())
            }
            // What is being sent back goes back to its end.
            Standing::Refusing { .. } if entry.is_refused => false,
            Standing::Refusing { until_unix_ms, .. }
            | Standing::Resting { until_unix_ms, .. }
            | Standing::Elsewhere { until_unix_ms, .. } => *until_unix_ms <= now_unix_ms,
        }
    }

    /// Does what follows from what is known of a destination, even if it has run out already: a
    /// resolution that holds for no time at all is not asked for again without end.
    fn go_on(&mut self, index: DestinationIndex, now_unix_ms: u64) {
        let entry = self.destinations.entry(index);
        match &entry.standing {
            Standing::Hold | Standing::Unresolved | Standing::Resting { .. } => {}
            Standing::Resolved { site, .. } => {
                let (site, is_fixed) = (*site, entry.key.domain.is_none());
                let (core, cores) = (self.core, self.cores);
                let shared = &self.site_queue(site).shared;
                // All cores agree where a next hop that is named leads, so it ends there.
                match is_fixed && !shared.can_serve(core, cores) {
                    true => {
                        let home = shared.home();
                        self.disperse(index, home, now_unix_ms);
                    }
                    false => self.pump(site, now_unix_ms),
                }
            }
            Standing::Elsewhere { shared, .. } => {
                let home = shared.home();
                self.disperse(index, home, now_unix_ms);
            }
            Standing::Refusing { .. } => {
                if !entry.ready.is_empty() && !std::mem::replace(&mut entry.is_refused, true) {
                    self.refused.push_back(index);
                }
                self.refuse_some();
            }
        }
    }

    // ---- moving --------------------------------------------------------------------------

    /// A destination's mail goes to that site: over connections of ours if this core serves it
    /// or has backlog enough to join, else by way of the core that does.
    fn lead_to(&mut self, index: DestinationIndex, shared: Arc<SiteShared>, until_unix_ms: u64) {
        self.destinations.entry(index).held_until_unix_ms = until_unix_ms;
        let known = self.site_by_id.get(&shared.id()).copied();
        let serves = known.is_some_and(|site| self.site_queue(site).serves);
        let waiting = self.destinations.entry(index).ready.len();
        let can_serve = shared.can_serve(self.core, self.cores);
        let is_ours = serves
            || shared.core_for(self.core, self.cores) == self.core
            || (can_serve && waiting > connections::BUSY);
        if !is_ours {
            self.detach(index);
            self.destinations.entry(index).standing = Standing::Elsewhere { shared, until_unix_ms };
            return;
        }
        let site = self.site_for(shared);
        if self.destinations.entry(index).site() != Some(site) {
            // Before the old site is left: it may be the last use of it.
            self.site_queue(site).destinations += 1;
            self.detach(index);
            self.site_queue(site).ready += u64::from(waiting);
        }
        self.destinations.entry(index).standing = Standing::Resolved { site, until_unix_ms };
        self.link_ring(index, site);
    }

    /// This core serves the site of a destination, whoever else does.
    pub(super) fn serve_here(&mut self, index: DestinationIndex) {
        let Standing::Elsewhere { shared, until_unix_ms } =
            &self.destinations.entry(index).standing
        else {
            return;
        };
        let (shared, until_unix_ms) = (shared.clone(), *until_unix_ms);
        let site = self.site_for(shared);
        let entry = self.destinations.entry(index);
        entry.standing = Standing::Resolved { site, until_unix_ms };
        let waiting = u64::from(entry.ready.len());
        let queue = self.site_queue(site);
        queue.destinations += 1;
        queue.ready += waiting;
        self.link_ring(index, site);
    }

    /// Takes a destination from its site, with its messages.
    fn detach(&mut self, index: DestinationIndex) {
        let entry = self.destinations.entry(index);
        let waiting = u64::from(entry.ready.len());
        let Some(site) = entry.site() else { return };
        entry.standing = Standing::Unresolved;
        self.unlink_ring(index, site);
        let queue = self.site_queue(site);
        queue.ready -= waiting;
        queue.destinations -= 1;
        self.leave_if_quiet(site);
        self.forget_if_unused(site);
    }

    /// Puts a destination with ready messages into the ring of its site.
    pub(super) fn link_ring(&mut self, index: DestinationIndex, site: SiteIndex) {
        let entry = self.destinations.entry(index);
        if entry.ready.is_empty() || entry.listed == Listed::Ring {
            return;
        }
        debug_assert_eq!(entry.listed, Listed::No, "one with messages is not idle");
        entry.listed = Listed::Ring;
        let queue = self.sites.get_mut(site.slot()).expect("a site with destinations stays");
        queue.ring.push_back(self.destinations.entries(), index.slot());
        if !std::mem::replace(&mut queue.serves, true) {
            queue.shared.join();
        }
    }

    pub(super) fn unlink_ring(&mut self, index: DestinationIndex, site: SiteIndex) {
        let entry = self.destinations.entry(index);
        if entry.listed == Listed::Ring {
            entry.listed = Listed::No;
            let queue = self.sites.get_mut(site.slot()).expect("a site with destinations stays");
            queue.ring.remove(self.destinations.entries(), index.slot());
        }
    }

    /// Forgets destinations that nothing was filed under for the longest time.
    pub(super) fn forget_excess(&mut self) {
        while let Some(index) = self.destinations.excess(limits::DESTINATIONS_REMEMBERED) {
            self.step();
            self.detach(index);
            if let Some(at) = self.destinations.entry(index).alarm_unix_ms.take() {
                self.alarms.remove(&(at, Alarm::Destination(index)));
            }
            self.destinations.forget(index);
        }
    }

    // ---- waking and refusing -------------------------------------------------------------

    /// An operator wants a destination tried now, wherever its mail goes by now.
    pub(super) fn wake(&mut self, index: DestinationIndex) {
        let Some(entry) = self.destinations.get(index) else { return };
        let woken = match &entry.standing {
            Standing::Resolved { site, until_unix_ms } => {
                let shared = self.sites.get(site.slot()).map(|queue| &queue.shared);
                let failed = shared.is_some_and(|shared| shared.failures() > 0);
                shared.inspect(|shared| shared.wake());
                let is_fixed = *until_unix_ms == u64::MAX;
                (failed && !is_fixed).then_some(())
            }
            Standing::Resting { .. } | Standing::Refusing { .. } => Some(()),
            Standing::Hold | Standing::Unresolved | Standing::Elsewhere { .. } => None,
        };
        if woken.is_some()
            && let Standing::Resolved { until_unix_ms, .. }
            | Standing::Resting { until_unix_ms, .. }
            | Standing::Refusing { until_unix_ms, .. } =
                &mut self.destinations.entry(index).standing
        {
            *until_unix_ms = 0;
        }
    }

    /// Sends messages back, as many as the tick still allows: each costs a read and a notice.
    pub(super) fn refuse_some(&mut self) {
        while self.refusals_left > 0
            && let Some(&index) = self.refused.front()
        {
            self.step();
            let first = match self.destinations.get(index) {
                Some(DestinationQueue {
                    standing: Standing::Refusing { verdict, .. },
                    ready,
                    ..
                }) => ready.first().map(|slot| (slot, verdict.clone())),
                _ => None,
            };
            let Some((slot, verdict)) = first else {
                self.refused.pop_front();
                if self.destinations.get(index).is_some() {
                    self.destinations.entry(index).is_refused = false;
                }
                continue;
            };
            self.refusals_left -= 1;
            self.unready(slot);
            self.activate(slot);
            self.actions.push_back(Action::Refuse { slot, verdict });
        }
    }
}

/// How long beyond its time an answer is used that cannot be renewed.  RFC 8767 section 5 allows
/// days; a message that meets a host which has moved meanwhile should wait for hours at most.
const STALE_MS: u64 = 4 * 3_600_000;
/// How soon such an answer is asked for again: this, and up to as much again.  RFC 8767 section 5
/// wants thirty seconds at least.
const RENEWAL_MS: u64 = 30_000;
