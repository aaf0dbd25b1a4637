//! Connections of this core: which message goes over which, and how many there are.
//!
//! A site's destinations with ready messages stand in a ring and take turns, so that one with a
//! long queue does not hold up another at the same site.  (Fairness between tenants will be a ring
//! of rings in its place.)

use super::*;
use crate::queue::list::List;

/// Ready messages from which a member counts as busy, so that other cores join it.
pub(super) const BUSY: u32 = 64;

/// What this core keeps of a site.
pub(super) struct SiteQueue {
    pub(super) shared: Arc<SiteShared>,
    /// Destinations with ready messages; the first one is next.
    pub(super) ring: List,
    /// Ready messages of all of them.
    pub(super) ready: u64,
    /// Destinations that are resolved to the site, with messages or without.
    pub(super) destinations: u32,
    /// Whether this core counts as a member: it has messages or connections.
    pub(super) serves: bool,
    /// Connections of ours, whatever they do.
    pub(super) open: u32,
    /// Those that were never ready yet; of those that were, the ones that wait for a message, and
    /// the ones that were told to end.
    pub(super) opening: Vec<ConnectionId>,
    pub(super) idle: Vec<ConnectionId>,
    pub(super) closing: Vec<ConnectionId>,
    /// When it is to be looked at.
    pub(super) alarm_unix_ms: Option<u64>,
    /// Whether it stands in the line for a connection that all cores share.
    pub(super) is_in_line: bool,
}

impl SiteQueue {
    /// Whether what goes there takes a connection: a Maildir needs none.
    fn is_counted(&self) -> bool {
        self.shared.reach().protocol().is_some()
    }
}

impl SiteIndex {
    pub(super) fn slot(self) -> Slot {
        Slot(self.0)
    }
}

impl Scheduler {
    /// The place of a site, which may be new to this core.
    pub(super) fn site_for(&mut self, shared: Arc<SiteShared>) -> SiteIndex {
        let id = shared.id();
        if let Some(&known) = self.site_by_id.get(&id) {
            return known;
        }
        let slot = self.sites.insert(SiteQueue {
            shared,
            ring: List::default(),
            ready: 0,
            destinations: 0,
            serves: false,
            open: 0,
            opening: Vec::new(),
            idle: Vec::new(),
            closing: Vec::new(),
            alarm_unix_ms: None,
            is_in_line: false,
        });
        let site = SiteIndex(slot.0);
        self.site_by_id.insert(id, site);
        site
    }

    pub(super) fn site_queue(&mut self, site: SiteIndex) -> &mut SiteQueue {
        self.sites.get_mut(site.slot()).expect("a site with destinations or connections stays")
    }

    /// Nothing to send and no connection: others get this core's share of the limit.
    pub(super) fn leave_if_quiet(&mut self, site: SiteIndex) {
        let queue = self.site_queue(site);
        if queue.ready == 0 && queue.open == 0 && std::mem::take(&mut queue.serves) {
            queue.shared.report_backlog(false);
            queue.shared.leave();
        }
    }

    /// Forgets a site to which no destination leads and no connection goes.
    pub(super) fn forget_if_unused(&mut self, site: SiteIndex) {
        let queue = self.site_queue(site);
        if queue.destinations > 0 || queue.open > 0 {
            return;
        }
        if let Some(at) = queue.alarm_unix_ms.take() {
            self.alarms.remove(&(at, Alarm::Site(site)));
        }
        if let Some(queue) = self.sites.remove(site.slot()) {
            self.site_by_id.remove(&queue.shared.id());
            if queue.is_in_line {
                self.in_line.retain(|&waiting| waiting != site);
                self.end_line_if_empty();
            }
        }
    }

    // ---- what connections do -------------------------------------------------------------

    pub(super) fn connection_ready(
        &mut self,
        site: SiteIndex,
        connection: ConnectionId,
        now_unix_ms: u64,
    ) {
        let Some(queue) = self.sites.get_mut(site.slot()) else { return };
        take(&mut queue.opening, connection);
        if queue.closing.contains(&connection) {
            // It was told to end while it had others under way, and only took note that there was
            // no message: without a second word it would wait until it is idle for too long.
            self.actions.push_back(Action::Close { connection });
        } else if !queue.idle.contains(&connection) {
            queue.idle.push(connection);
        }
        self.pump(site, now_unix_ms);
    }

    pub(super) fn leave_idle(&mut self, site: SiteIndex, connection: ConnectionId) {
        if let Some(queue) = self.sites.get_mut(site.slot()) {
            take(&mut queue.idle, connection);
        }
    }

    pub(super) fn connection_closed(
        &mut self,
        site: SiteIndex,
        connection: ConnectionId,
        now_unix_ms: u64,
    ) {
        let Some(queue) = self.sites.get_mut(site.slot()) else { return };
        take(&mut queue.opening, connection);
        take(&mut queue.idle, connection);
        take(&mut queue.closing, connection);
        queue.open -= 1;
        let is_counted = queue.is_counted();
        queue.shared.release();
        if is_counted {
            self.counted -= 1;
            self.allowance.release();
            // Who stands in the line comes before who had it last.
            self.call_next(now_unix_ms);
        }
        self.pump(site, now_unix_ms);
        self.leave_if_quiet(site);
        self.forget_if_unused(site);
    }

    /// Lets sites that wait for a connection have those that have become free.
    pub(super) fn call_next(&mut self, now_unix_ms: u64) {
        for _ in 0..self.in_line.len() {
            if !self.allowance.has_room(self.counted, self.cores, true) {
                return;
            }
            let Some(site) = self.in_line.pop_front() else { return };
            self.site_queue(site).is_in_line = false;
            self.end_line_if_empty();
            self.pump(site, now_unix_ms);
        }
    }

    fn stand_in_line(&mut self, site: SiteIndex) {
        if !std::mem::replace(&mut self.site_queue(site).is_in_line, true) {
            if self.in_line.is_empty() {
                self.allowance.line_began();
            }
            self.in_line.push_back(site);
        }
    }

    fn end_line_if_empty(&mut self) {
        if self.in_line.is_empty() {
            self.allowance.line_ended();
        }
    }

    // ---- what is done about it -----------------------------------------------------------

    /// Gives ready messages to idle connections, ends those that others need more, and opens more
    /// while that helps.
    pub(super) fn pump(&mut self, site: SiteIndex, now_unix_ms: u64) {
        self.step();
        if self.site_queue(site).shared.is_full() {
            self.close_excess(site, false);
        }
        while let Some(connection) = self.site_queue(site).idle.pop() {
            let Some(slot) = self.pop(site, now_unix_ms) else {
                self.site_queue(site).idle.push(connection);
                break;
            };
            self.actions.push_back(Action::Deliver { connection, slot });
        }
        let is_wanted = self.allowance.is_wanted();
        self.close_excess(site, is_wanted);
        self.open_more(site, now_unix_ms);
    }

    /// Ends idle connections beyond this core's share of the limit; where others wait for one, all
    /// that idle.
    fn close_excess(&mut self, site: SiteIndex, is_wanted: bool) {
        let queue = self.sites.get_mut(site.slot()).expect("it is being looked at");
        let quota = if is_wanted && queue.is_counted() { 0 } else { queue.shared.quota() as usize };
        while queue.open as usize - queue.closing.len() > quota {
            let Some(connection) = queue.idle.pop() else { return };
            queue.closing.push(connection);
            self.actions.push_back(Action::Close { connection });
        }
    }

    /// The next message of a site, made active.
    fn pop(&mut self, site: SiteIndex, now_unix_ms: u64) -> Option<Slot> {
        let index = DestinationIndex(self.site_queue(site).ring.first()?.0);
        let entry = self.destinations.entry(index);
        let slot = entry.ready.first().expect("who stands in a ring has messages");
        let is_over = match entry.standing {
            Standing::Resolved { until_unix_ms, .. } => until_unix_ms <= now_unix_ms,
            _ => false,
        };
        if is_over {
            self.ask(index);
        }
        self.unready(slot);
        self.activate(slot);
        let queue = self.sites.get_mut(site.slot()).expect("it is being looked at");
        // Each destination in its turn; one that is empty by now has left the ring.
        if queue.ring.first() == Some(index.slot()) {
            queue.ring.rotate(self.destinations.entries());
        }
        Some(slot)
    }

    fn open_more(&mut self, site: SiteIndex, now_unix_ms: u64) {
        let queue = self.sites.get_mut(site.slot()).expect("it is being looked at");
        let shared = &queue.shared;
        shared.report_backlog(queue.ready > u64::from(BUSY));
        if queue.ready <= queue.opening.len() as u64 {
            return;
        }
        if let Some(until) = shared.rests_until(now_unix_ms) {
            let at = until.min(now_unix_ms + poll_ms(until - now_unix_ms));
            return self.arm_site(site, at);
        }
        // After a failure one connection finds out whether the site is back.
        let most = if shared.failures() > 0 { 1 } else { shared.quota() };
        let wait_ms = loop {
            if queue.ready <= queue.opening.len() as u64 {
                return;
            }
            if queue.open >= most {
                break QUOTA_POLL_MS;
            }
            if !queue.shared.acquire() {
                break LIMIT_POLL_MS;
            }
            if queue.is_counted() {
                let has_line = !self.in_line.is_empty();
                if !self.allowance.acquire(self.counted, self.cores, has_line) {
                    queue.shared.release();
                    return self.stand_in_line(site);
                }
                self.counted += 1;
            }
            queue.open += 1;
            if !std::mem::replace(&mut queue.serves, true) {
                queue.shared.join();
            }
            self.connections += 1;
            let connection = ConnectionId(self.connections);
            queue.opening.push(connection);
            self.actions.push_back(Action::Open { site, connection });
        };
        // Other cores may give up their share of the limit, and do not tell.
        self.arm_site(site, now_unix_ms + wait_ms);
    }

    /// Looks at a site at the latest at `at_unix_ms`.
    fn arm_site(&mut self, site: SiteIndex, at_unix_ms: u64) {
        let queue = self.sites.get_mut(site.slot()).expect("it is being looked at");
        if queue.alarm_unix_ms.is_some_and(|known| known <= at_unix_ms) {
            return;
        }
        let old = queue.alarm_unix_ms.replace(at_unix_ms);
        if let Some(old) = old {
            self.alarms.remove(&(old, Alarm::Site(site)));
        }
        self.alarms.insert((at_unix_ms, Alarm::Site(site)));
    }
}

/// How soon to look again at a site that rests: another core may find it well again, and does
/// not tell.
fn poll_ms(rest_ms: u64) -> u64 {
    (rest_ms / 16).clamp(REST_POLL_MS.0, REST_POLL_MS.1)
}

fn take(connections: &mut Vec<ConnectionId>, connection: ConnectionId) {
    if let Some(place) = connections.iter().position(|&known| known == connection) {
        connections.swap_remove(place);
    }
}

/// Bounds on the wait between two looks at a site that rests.
const REST_POLL_MS: (u64, u64) = (1_000, 10_000);
/// The same where all of this core's share of the limit is used.
const QUOTA_POLL_MS: u64 = 1_000;
/// The same where other cores use up the limit.
const LIMIT_POLL_MS: u64 = 100;
