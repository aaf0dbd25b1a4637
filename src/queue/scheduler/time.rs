//! What is due: deferred messages, ends of lifetime, destinations and sites that have rested.
//!
//! A tick looks at what is due and at nothing else, and at a bounded number of that: what is left
//! comes with the next tick.  So neither ten thousand sites nor a million messages that are due at
//! one moment hold up the core's sessions.

use super::filing::End;
use super::*;
use crate::queue::destination::Asking;

/// Expiries and notices of delay that one tick begins: each reads its message and writes a notice,
/// and a long queue may come to its end at one moment.
pub(super) const EXPIRIES_PER_TICK: u32 = 64;
/// The same for messages that nobody will ever take.
pub(super) const REFUSALS_PER_TICK: u32 = 64;
/// Timers, alarms and hurried messages that one tick sees to, of each: some milliseconds.
const STEPS_PER_TICK: u32 = 8_192;
/// When to look again at a message that is too old and on its way all the same, or that has to
/// wait for its notice.
const EXPIRY_LOOK_MS: u64 = 100;

impl Scheduler {
    pub(super) fn tick(&mut self, now_unix_ms: u64) {
        self.expiries_left = EXPIRIES_PER_TICK;
        self.refusals_left = REFUSALS_PER_TICK;
        self.timers.open(&mut self.handles, now_unix_ms, STEPS_PER_TICK);
        for _ in 0..STEPS_PER_TICK {
            let Some(slot) = self.timers.due(now_unix_ms) else { break };
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
        // What another core has given back it tells nobody.
        self.call_next(now_unix_ms);
    }

    /// A handle's timer: its wait is over, or its age matters.
    fn due(&mut self, slot: Slot, now_unix_ms: u64) {
        self.step();
        let Some(handle) = self.handles.get(slot) else { return };
        let (index, due) = (handle.destination, handle.due_unix_ms);
        let (attempts, expires) = (handle.attempts, self.expires_unix_ms(handle));
        match handle.state {
            State::Active => self.unset_timer(slot),
            State::Held if expires <= now_unix_ms && self.may_tell() => {
                self.unset_timer(slot);
                self.expire(slot);
            }
            State::Ready if self.is_failing(index) && self.may_tell() => {
                self.too_old(slot, now_unix_ms);
            }
            // What is due at the very end of its lifetime has one last attempt.
            State::Deferred if due <= expires || (attempts == 0 && !self.is_failing(index)) => {
                self.undefer(slot);
                self.make_ready(slot, End::Back, now_unix_ms);
                self.stir(index, now_unix_ms);
            }
            State::Deferred if self.may_tell() => {
                self.undefer(slot);
                self.expire(slot);
            }
            // It waits for its notice, or for a connection that works; or it was held with
            // another lifetime.
            State::Held | State::Ready | State::Deferred => {
                let is_held = handle.state == State::Held;
                let look = if is_held { expires } else { self.look_unix_ms(slot) };
                self.unset_timer(slot);
                self.set_own_timer(slot, look.max(now_unix_ms + EXPIRY_LOOK_MS));
            }
        }
    }

    /// Whether the present tick may begin one more notice.
    fn may_tell(&self) -> bool {
        self.expiries_left > 0
    }

    /// Ends a ready message whose lifetime is over, or has its sender told that it is late.
    fn too_old(&mut self, slot: Slot, now_unix_ms: u64) {
        let Some(handle) = self.handles.get(slot) else { return };
        let (index, expires) = (handle.destination, self.expires_unix_ms(handle));
        self.unready(slot);
        if expires <= now_unix_ms {
            return self.expire(slot);
        }
        self.expiries_left = self.expiries_left.saturating_sub(1);
        self.activate(slot);
        let rest = self.rest_of(index, now_unix_ms).map(|rest| rest.until_unix_ms);
        let due_unix_ms = rest.unwrap_or(now_unix_ms).clamp(now_unix_ms + 1, expires);
        self.actions.push_back(Action::Delay { slot, due_unix_ms });
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
        self.look_at_oldest(index, now_unix_ms);
        self.stir(index, now_unix_ms);
        self.arm_destination(index, now_unix_ms);
    }

    /// Sees to what has waited too long for a destination that cannot be reached.
    fn look_at_oldest(&mut self, index: DestinationIndex, now_unix_ms: u64) {
        if !self.is_failing(index) {
            return;
        }
        while self.may_tell()
            && let Some(slot) = self.destinations.entry(index).ready.first()
            && self.look_unix_ms(slot) <= now_unix_ms
        {
            self.too_old(slot, now_unix_ms);
        }
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
        let oldest = match self.look_unix_ms(first) {
            look if look > now_unix_ms => look,
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
        Some(oldest.min(standing).max(now_unix_ms + 1))
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
            self.make_ready(slot, End::Back, now_unix_ms);
            self.stir(index, now_unix_ms);
        }
    }
}
