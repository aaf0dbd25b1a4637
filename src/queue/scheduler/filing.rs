//! Handles into and out of the lists of their destinations, and what operators do to them.
//!
//! The list of ready messages is in the order of their age, nearly always: its head tells when
//! something is late or to expire, and one alarm of the destination looks at it.  A message that
//! breaks the order, because it was deferred before, has a timer of its own.

use super::*;

impl Scheduler {
    pub(super) fn file(
        &mut self,
        destination: Destination,
        mut handle: Handle,
        stay: bool,
        now_unix_ms: u64,
    ) {
        self.step();
        let index = self.destinations.place(&destination);
        if let Some(core) = self.core_for(index, stay, now_unix_ms) {
            self.leaving.push_back((destination, handle));
            return self.actions.push_back(Action::Forward { core });
        }
        if stay || self.joins(index, now_unix_ms) {
            self.serve_here(index);
        }
        let is_hold = matches!(self.destinations.entry(index).standing, Standing::Hold);
        if is_hold {
            handle.state = State::Held;
        }
        handle.destination = index;
        let expires = self.expiry(index, handle.id);
        // A longer schedule of an earlier configuration may have set it beyond the end.
        let due = std::mem::take(&mut handle.due_unix_ms).min(expires);
        let state = std::mem::replace(&mut handle.state, State::Active);
        let slot = self.insert(handle);
        if state == State::Held {
            self.wait(slot, State::Held, expires);
        } else if due > now_unix_ms {
            self.wait(slot, State::Deferred, due);
        } else {
            self.make_ready(slot, End::Back, now_unix_ms);
            self.stir(index, now_unix_ms);
        }
    }

    /// The core to hand a message to, if another one serves its site.
    fn core_for(&self, index: DestinationIndex, stay: bool, now_unix_ms: u64) -> Option<u32> {
        let shared = match &self.destinations.get(index)?.standing {
            Standing::Resolved { site, .. } => {
                let queue = self.sites.get(site.slot())?;
                if queue.serves {
                    return None;
                }
                &queue.shared
            }
            // What another core hands us stays: it may have heard of other hosts than we have, and
            // two cores that hand a message to each other would do it without end.
            Standing::Elsewhere { shared, until_unix_ms }
                if !stay && *until_unix_ms > now_unix_ms =>
            {
                shared
            }
            _ => return None,
        };
        if stay && shared.can_serve(self.core, self.cores) {
            return None;
        }
        Some(shared.core_for(self.core, self.cores)).filter(|&core| core != self.core)
    }

    /// Whether this core joins those that serve a destination's site: it keeps a message for it
    /// though the site was another core's business when it was asked for.
    fn joins(&self, index: DestinationIndex, now_unix_ms: u64) -> bool {
        let Some(entry) = self.destinations.get(index) else { return false };
        match &entry.standing {
            Standing::Elsewhere { shared, until_unix_ms } => {
                *until_unix_ms > now_unix_ms && shared.core_for(self.core, self.cores) == self.core
            }
            _ => false,
        }
    }

    fn insert(&mut self, handle: Handle) -> Slot {
        self.counts.0[handle.state as usize] += 1;
        self.destinations.count_in(handle.destination);
        self.handles.insert(handle)
    }

    /// Puts an active handle, or a held one again, among those that wait for a time.
    pub(super) fn wait(&mut self, slot: Slot, state: State, due_unix_ms: u64) {
        let Some(handle) = self.handles.get_mut(slot) else { return };
        self.counts.change(handle.state, state);
        handle.state = state;
        // 0 says that there is no timer.
        handle.due_unix_ms = due_unix_ms.max(1);
        let index = handle.destination;
        self.timers.insert(&mut self.handles, slot);
        if state == State::Deferred {
            self.destinations.entry(index).deferred.push_back(&mut self.handles, slot);
        }
    }

    /// Takes a deferred handle out of its list and its timer.
    pub(super) fn undefer(&mut self, slot: Slot) {
        self.unset_timer(slot);
        let Some(handle) = self.handles.get(slot) else { return };
        let index = handle.destination;
        self.destinations.entry(index).deferred.remove(&mut self.handles, slot);
    }

    pub(super) fn unset_timer(&mut self, slot: Slot) {
        self.timers.remove(&mut self.handles, slot);
    }

    fn set_timer(&mut self, slot: Slot, due_unix_ms: u64) {
        let Some(handle) = self.handles.get_mut(slot) else { return };
        debug_assert_eq!(handle.due_unix_ms, 0, "a handle has one timer");
        handle.due_unix_ms = due_unix_ms.max(1);
        self.timers.insert(&mut self.handles, slot);
    }

    /// Sees to it that a ready handle is looked at when its age matters, whatever stands before it
    /// in its list.
    pub(super) fn set_own_timer(&mut self, slot: Slot, due_unix_ms: u64) {
        if self.handles.get(slot).is_some_and(|handle| handle.due_unix_ms == 0) {
            self.set_timer(slot, due_unix_ms);
        }
    }

    // ---- the list of ready messages ------------------------------------------------------

    /// Puts a handle, which is in no list and has no timer, into its destination's list.
    pub(super) fn make_ready(&mut self, slot: Slot, end: End, now_unix_ms: u64) {
        self.step();
        let Some(handle) = self.handles.get_mut(slot) else { return };
        self.counts.change(handle.state, State::Ready);
        handle.state = State::Ready;
        let index = handle.destination;
        let look = self.look_unix_ms(slot);
        let entry = self.destinations.entry(index);
        let head = entry.ready.first();
        match end {
            End::Back => {
                entry.ready.push_back(&mut self.handles, slot);
                if look < entry.newest_unix_ms {
                    self.set_own_timer(slot, look);
                } else {
                    entry.newest_unix_ms = look;
                }
            }
            End::Front => {
                entry.ready.push_front(&mut self.handles, slot);
                if head.is_none() {
                    entry.newest_unix_ms = look;
                }
                if let Some(head) = head {
                    let behind = self.look_unix_ms(head);
                    if behind < look {
                        self.set_own_timer(head, behind);
                    }
                }
            }
        }
        let site = self.destinations.entry(index).site();
        if let Some(site) = site {
            self.site_queue(site).ready += 1;
            self.link_ring(index, site);
        }
        self.arm_destination(index, now_unix_ms);
    }

    /// Takes a handle out of its destination's list of ready ones.
    pub(super) fn unready(&mut self, slot: Slot) {
        self.step();
        self.unset_timer(slot);
        let Some(handle) = self.handles.get(slot) else { return };
        let index = handle.destination;
        let entry = self.destinations.entry(index);
        entry.ready.remove(&mut self.handles, slot);
        let (is_empty, site) = (entry.ready.is_empty(), entry.site());
        if is_empty {
            entry.newest_unix_ms = 0;
        }
        if let Some(site) = site {
            self.site_queue(site).ready -= 1;
            if is_empty {
                self.unlink_ring(index, site);
            }
            self.leave_if_quiet(site);
        }
    }

    /// Makes a handle in no list, or in that of the ready ones, the business of an attempt.
    pub(super) fn activate(&mut self, slot: Slot) {
        if let Some(handle) = self.handles.get_mut(slot) {
            self.counts.change(handle.state, State::Active);
            handle.state = State::Active;
        }
    }

    /// Hands the ready messages of a destination to another core, a bounded number of them.
    pub(super) fn disperse(&mut self, index: DestinationIndex, core: u32, now_unix_ms: u64) {
        for _ in 0..FORWARDS_AT_ONCE {
            let entry = self.destinations.entry(index);
            let Some(slot) = entry.ready.first() else { return };
            let key = entry.key.clone();
            if let Some(handle) = self.finish(slot) {
                self.leaving.push_back((key, handle));
                self.actions.push_back(Action::Forward { core });
            }
        }
        self.arm_destination(index, now_unix_ms);
    }

    pub(super) fn give_back(&mut self, slot: Slot, now_unix_ms: u64) {
        let Some(handle) = self.handles.get(slot) else { return };
        if handle.state != State::Active {
            return;
        }
        let index = handle.destination;
        self.make_ready(slot, End::Front, now_unix_ms);
        self.stir(index, now_unix_ms);
    }

    // ---- operators -----------------------------------------------------------------------

    pub(super) fn retry(&mut self, slot: Slot, now_unix_ms: u64) {
        let Some(handle) = self.handles.get(slot) else { return };
        let (index, state) = (handle.destination, handle.state);
        self.wake(index);
        if state == State::Deferred {
            self.undefer(slot);
            self.make_ready(slot, End::Back, now_unix_ms);
        }
        self.stir(index, now_unix_ms);
    }

    pub(super) fn retry_domain(&mut self, domain: &str, now_unix_ms: u64) {
        let courses: Vec<CourseIndex> = self.exchanger_courses().collect();
        for course in courses {
            self.retry_destination(&super::destination(course, domain), now_unix_ms);
        }
    }

    pub(super) fn retry_destination(&mut self, destination: &Destination, now_unix_ms: u64) {
        let Some(index) = self.destinations.find(destination) else { return };
        self.wake(index);
        let entry = self.destinations.entry(index);
        if entry.hurried == 0 && !entry.deferred.is_empty() {
            self.hurried.push_back(index);
        }
        // Those that are deferred from here on wait for their own time.
        let entry = self.destinations.entry(index);
        entry.hurried = entry.deferred.len();
        self.hurry(now_unix_ms);
        self.stir(index, now_unix_ms);
    }

    pub(super) fn reroute(&mut self, slot: Slot, destination: Destination, now_unix_ms: u64) {
        if self.handles.get(slot).is_none_or(|handle| handle.state != State::Held) {
            return;
        }
        if let Some(mut handle) = self.finish(slot) {
            handle.state = State::Ready;
            handle.due_unix_ms = 0;
            self.file(destination, handle, true, now_unix_ms);
        }
    }
}

/// Which end of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Front,
    Back,
}

/// Handles that go to another core in one go; more follow with the next ticks.
const FORWARDS_AT_ONCE: u32 = 1_024;
