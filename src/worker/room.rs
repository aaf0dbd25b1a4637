//! Room for messages on their way in: what the sessions of this worker hold of its memory, and
//! how they wait when it is used up.  What connections to next hops hold is none of it.
//!
//! The rungs, in their order: from a quarter of the worker's part on, who waits in the middle of
//! something gives back the room that it does not use; at the whole of it nobody reads on; after a
//! second bodies that trickle are cut off and recipients refused with 452, and after ten a body that
//! still finds no room.

use std::time::{Duration, Instant};

use super::Worker;
use crate::limits;
use crate::runtime::buffer;
use crate::runtime::deadline::{self, Shortage};

impl Worker {
    /// What receive buffers and envelopes take, in octets.
    pub fn receive_octets(&self) -> usize {
        buffer::held_octets() + self.envelope_octets.get()
    }

    /// Whether they take all that they may.
    pub fn receive_is_full(&self) -> bool {
        self.receive_octets() >= self.share.receive_octets
    }

    /// Whether they have taken it for so long that nobody new is to begin.  A burst that all comes
    /// in one turn of the loop is over with the next.
    pub fn receive_is_exhausted(&self) -> bool {
        self.full_ticks.get() >= EXHAUSTED_TICKS && self.receive_is_full()
    }

    /// Looks whether they still take all; a tick has passed.
    pub(super) fn watch_receive(&self) {
        let is_full = self.receive_is_full();
        self.full_ticks.set(if is_full { self.full_ticks.get().saturating_add(1) } else { 0 });
    }

    /// Whether a session that waits is to give back what it does not use.
    pub fn receive_is_crowded(&self) -> bool {
        buffer::held_octets() >= self.share.receive_octets / 4
    }

    /// Waits until a session may read on; `false` if there was no room for so long.
    pub async fn may_receive(&self, patience: Duration) -> bool {
        if !self.receive_is_full() {
            return true;
        }
        self.metrics.reads_paused.count();
        let end = Instant::now() + patience;
        while self.receive_is_full() && Instant::now() < end && !self.is_stopping() {
            // Not for a burst: it is over with the next turn, and those whose bodies are slow hold
            // next to nothing.
            if self.receive_is_exhausted() {
                deadline::press(Shortage::Intake, Instant::now() + limits::PRESSURE);
            }
            self.receivers.wait(RECEIVE_POLL.min(patience)).await;
        }
        !self.receive_is_full()
    }

    /// A session has given something back: others may go on.
    pub fn receive_freed(&self) {
        if self.receivers.is_empty() {
            return;
        }
        let room = self.share.receive_octets.saturating_sub(self.receive_octets());
        self.receivers.wake(room.div_ceil(buffer::SMALL));
    }

    /// While the log's reader is short of buffers, next hops that hold one for long give way.
    pub(super) fn press_next_hops(&self) {
        if self.log.reader_is_short() {
            deadline::press(Shortage::Reader, Instant::now() + limits::PRESSURE);
        }
    }

    /// While somebody finds no place for a connection, clients that hold one in-line and say nothing
    /// give way, on every core.
    pub(super) fn press_in_line(&self) {
        let now = Instant::now();
        if self.backends.must_end(now) {
            deadline::press(Shortage::Connections, now + limits::PRESSURE);
        }
    }

    /// The envelopes of this worker's sessions have grown by so much.
    pub fn envelope_grew(&self, octets: usize) {
        self.envelope_octets.set(self.envelope_octets.get() + octets);
    }

    /// Envelopes of so much are gone.
    pub fn envelope_went(&self, octets: usize) {
        self.envelope_octets.set(self.envelope_octets.get().saturating_sub(octets));
    }
}

/// Ticks of a tenth of a second.
const EXHAUSTED_TICKS: u32 = 10;
/// The longest wait before looking again: what a session's TLS gives back tells nobody.
const RECEIVE_POLL: Duration = Duration::from_secs(1);
