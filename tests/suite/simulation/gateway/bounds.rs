//! What must hold of a running gateway at any time: its memory follows its messages, and no message
//! outlives its time.

use mailrace::queue::handle::State;

use super::super::plan::LIFETIME_S;
use super::super::scene::Scene;
use super::Gateway;

/// What an attempt may take that was begun in time, a notice that waits its turn, and a resolution.
const GRACE_MS: u64 = 40_000;

impl Gateway {
    /// Looks at the queue and at the log's tables; once a second.
    pub(super) fn look_at_bounds(&mut self, scene: &mut Scene) {
        let now_unix_ms = scene.now_unix_ms();
        let (handles, forwarded) = (self.queued(), self.shared.forwarding.get());
        let waiting = self.workers.iter().map(|worker| worker.waiting.len()).sum::<usize>();
        let known = scene.books.unfinished();
        if handles + forwarded > known {
            let words = format!("{handles} handles in the queue, and {known} recipients left");
            scene.books.problem(words);
        }
        for worker in &self.workers {
            let (timers, alarms) = worker.queue.armed();
            let places = worker.queue.destination_count() + worker.queue.site_count();
            if timers > worker.queue.len() || alarms > places {
                let words = format!("{timers} timers and {alarms} alarms are left over");
                scene.books.problem(words);
            }
            for (_, handle) in worker.queue.iter() {
                let expires = handle.id.unix_ms() + LIFETIME_S * 1000;
                let since = expires.max(self.started_unix_ms);
                if now_unix_ms > since + GRACE_MS && handle.state != State::Held {
                    let (id, state) = (handle.id, handle.state);
                    scene.books.problem(format!("{id} outlives its time, {state:?}"));
                }
            }
        }
        if waiting > known * 3 + 300 {
            scene.books.problem(format!("{waiting} records are waited for"));
        }
    }

    /// Once it is at rest nothing is left in its tables.
    pub fn look_at_rest(&self, scene: &mut Scene) {
        let mut left = Vec::new();
        for worker in &self.workers {
            left.push(("timers", worker.queue.armed().0));
            left.push(("waiting records", worker.waiting.len()));
        }
        for (what, count) in left.into_iter().filter(|(_, count)| *count > 0) {
            scene.books.problem(format!("all is done and {count} {what} are left"));
        }
    }
}
