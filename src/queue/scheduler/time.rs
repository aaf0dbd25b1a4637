//! What is due: deferred messages, ends of lifetime, destinations and sites that have rested.
//!
//! A tick looks at what is due and at nothing else, and at a bounded number of that: what is left
//! comes with the next tick.  So neither ten thousand sites nor a million messages that are due at
//! one moment hold up the core's sessions.

use super::filing::End;
use super::*;
use crate::queue::destination::Asking;

/// Expiries that one tick begins: each reads its message and writes a notice, and a long queue may
/// come to its end at one moment.
pub(super) const EXPIRIES_PER_TICK: u32 = 64;
/// The same for messages that nobody will ever take.
pub(super) const REFUSALS_PER_TICK: u32 = 64;
/// Timers, alarms and hurried messages that one tick sees to, of each: some milliseconds.
const STEPS_PER_TICK: u32 = 8_192;
/// When to look again at a message whose lifetime is over and that is on its way all the same, or
/// that has to wait for its notice.
const EXPIRY_LOOK_MS: u64 = 100;

impl Scheduler {
    pub(super) fn tick(&mut self, now_unix_ms: u64) {
        self.expiries_left = EXPIRIES_PER_TICK;
        self.refusals_left = REFUSALS_PER_TICK;
        for _ in 0..STEPS_PER_TICK {
            let Some(&(due, slot)) = self.timers.first() else { break };
            if due > now_unix_ms {
                break;
            }
            self.due(slot, now_unix_ms);
        }
        for _ in 0..STEPS_PER_TICK {
            let Some(&(at, alarm)) = self.alarms.first() else { break };
            if at > now_unix_ms {
                break;
            }
            self.alarms.pop_first();
            self.step();
            match alarm {
                Alarm::Destination(index) => self.destination_alarm(index, now_unix_ms),
                Alarm::Site(site) => {
                    self.site_queue(site).alarm_unix_ms = None;
                    self.pump(site, now_unix_ms);
                }
            }
        }
        self.refuse_some();
        self.hurry(now_unix_ms);
    }

    /// A handle's timer: its wait is over, or its lifetime.
    fn due(&mut self, slot: Slot, now_unix_ms: u64) {
        self.step();
        let Some(handle) = self.handles.get(slot) else { return };
        let (index, state, due) = (handle.destination, handle.state, handle.due_unix_ms);
        let expires = self.expires_unix_ms(handle);
        let tried = handle.attempts > 0 || self.is_failing(index);
        let is_over = expires <= now_unix_ms;
        let expires_now = match state {
            State::Held => is_over,
            State::Ready => is_over && self.is_failing(index),
            // What is due at the very end of its lifetime has one last attempt.
            State::Deferred => is_over && tried && due > expires,
            State::Active => false,
        };
        if expires_now && self.expiries_left > 0 {
            match state {
                State::Deferred => self.undefer(slot),
                State::Ready => self.unready(slot),
                State::Held | State::Active => self.unset_timer(slot),
            }
            return self.expire(slot);
        }
        match state {
            State::Deferred if !expires_now => {
                self.undefer(slot);
                self.activate(slot);
                self.make_ready(slot, End::Back, now_unix_ms);
                self.stir(index, now_unix_ms);
            }
            State::Active => self.unset_timer(slot),
            // It waits for its notice, or for a connection that works; or it was held with
            // another lifetime.
            State::Held | State::Ready | State::Deferred => {
                let again = expires.max(now_unix_ms + EXPIRY_LOOK_MS);
                self.unset_timer(slot);
                self.set_own_timer(slot, again);
            }
        }
    }

    /// Whether the last try to reach a destination failed, which counts as an attempt for all that
    /// waits there.
    fn is_failing(&self, index: DestinationIndex) -> bool {
        let Some(entry) = self.destinations.get(index) else { return false };
        let site = entry.site().and_then(|site| self.sites.get(site.slot()));
        entry.failures > 0 || site.is_some_and(|queue| queue.shared.failures() > 0)
    }

    fn expire(&mut self, slot: Slot) {
        self.expiries_left = self.expiries_left.saturating_sub(1);
        self.activate(slot);
        self.actions.push_back(Action::Expire { slot });
    }

    // ---- destinations --------------------------------------------------------------------

    fn destination_alarm(&mut self, index: DestinationIndex, now_unix_ms: u64) {
        self.destinations.entry(index).alarm_unix_ms = None;
        self.expire_waiting(index, now_unix_ms);
        self.stir(index, now_unix_ms);
        self.arm_destination(index, now_unix_ms);
    }

    /// Ends what has waited too long for a destination that cannot be reached.
    fn expire_waiting(&mut self, index: DestinationIndex, now_unix_ms: u64) {
        if !self.is_failing(index) {
            return;
        }
        while self.expiries_left > 0
            && let Some(slot) = self.destinations.entry(index).ready.first()
            && self.expiry_of(slot) <= now_unix_ms
        {
            self.unready(slot);
            self.expire(slot);
        }
    }

    fn expiry_of(&self, slot: Slot) -> u64 {
        self.handles.get(slot).map_or(u64::MAX, |handle| self.expires_unix_ms(handle))
    }

    /// Sees to it that a destination with ready messages is looked at in time.  An alarm that
    /// comes too early is harmless and stays, so that a destination whose messages come and go
    /// costs a comparison a message and no more.
    pub(super) fn arm_destination(&mut self, index: DestinationIndex, now_unix_ms: u64) {
        let Some(at_unix_ms) = self.next_look(index, now_unix_ms) else { return };
        let entry = self.destinations.entry(index);
        if entry.alarm_unix_ms.is_some_and(|known| known <= at_unix_ms) {
            return;
        }
        if let Some(old) = entry.alarm_unix_ms.replace(at_unix_ms) {
            self.alarms.remove(&(old, Alarm::Destination(index)));
        }
        self.alarms.insert((at_unix_ms, Alarm::Destination(index)));
    }

    /// When a destination is to be looked at; always after now.
    fn next_look(&self, index: DestinationIndex, now_unix_ms: u64) -> Option<u64> {
        let entry = self.destinations.get(index)?;
        let first = entry.ready.first()?;
        let expires = match self.expiry_of(first) {
            expires if expires > now_unix_ms => expires,
            _ if self.is_failing(index) => now_unix_ms + 1,
            _ => now_unix_ms + EXPIRY_LOOK_MS,
        };
        let standing = match &entry.standing {
            Standing::Elsewhere { .. } => now_unix_ms + 1,
            _ if entry.asking != Asking::No => u64::MAX,
            Standing::Resting { until_unix_ms, .. } => *until_unix_ms,
            Standing::Resolved { site, until_unix_ms } => {
                let shared = self.sites.get(site.slot()).map(|queue| &queue.shared);
                let rest = shared.and_then(|shared| shared.rests_until(now_unix_ms));
                (*until_unix_ms).max(rest.unwrap_or(0))
            }
            Standing::Hold | Standing::Unresolved | Standing::Refusing { .. } => u64::MAX,
        };
        Some(expires.min(standing).max(now_unix_ms + 1))
    }

    /// Makes deferred messages ready that an operator wants tried now.
    pub(super) fn hurry(&mut self, now_unix_ms: u64) {
        for _ in 0..STEPS_PER_TICK {
            let Some(&index) = self.hurried.front() else { return };
            let entry = self.destinations.get(index).filter(|entry| entry.hurried > 0);
            let Some(slot) = entry.and_then(|entry| entry.deferred.first()) else {
                self.hurried.pop_front();
                if self.destinations.get(index).is_some() {
                    self.destinations.entry(index).hurried = 0;
                }
                continue;
            };
            self.destinations.entry(index).hurried -= 1;
            self.undefer(slot);
            self.activate(slot);
            self.make_ready(slot, End::Back, now_unix_ms);
            self.stir(index, now_unix_ms);
        }
    }
}
