//! How often the operator is told that rspamd does not judge messages.
//!
//! Pure.  Where rspamd is away every message fails, and `on_failure = "accept"` lets spam through
//! meanwhile: that is worth a line in the log, and not one for each message.  One line a minute, of
//! all workers together, says for how many messages it stands; the metrics have the rest.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// See the module's text.
#[derive(Debug, Default)]
pub struct Alarm(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    told: Option<Instant>,
    /// Messages since then.
    untold: u64,
}

impl Alarm {
    /// One more message was not judged; gives how many there are to be told of, if it is time.
    pub fn raise(&self, now: Instant) -> Option<u64> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.untold += 1;
        if state.told.is_some_and(|told| now.saturating_duration_since(told) < SILENCE) {
            return None;
        }
        state.told = Some(now);
        Some(std::mem::take(&mut state.untold))
    }
}

/// From one line to the next.
const SILENCE: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_a_minute_stands_for_all_messages() {
        let alarm = Alarm::default();
        let began = Instant::now();
        let raise = |seconds| alarm.raise(began + Duration::from_secs(seconds));
        let told: Vec<_> = [0, 1, 59, 60, 61, 119, 3_600].into_iter().map(raise).collect();
        assert_eq!(told, [Some(1), None, None, Some(3), None, None, Some(3)]);
    }
}
