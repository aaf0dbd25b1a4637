//! The wait before the reply to a refused recipient: it costs whoever guesses addresses time, and
//! nobody else anything.
//!
//! Pure: how long.  The session does the waiting (`inbound::delays`).

use std::time::Duration;

/// The longest wait; a client waits five minutes for the reply to RCPT (RFC 5321 section
/// 4.5.3.2.3), and with PIPELINING several of these add up.
const WAIT_MAX: Duration = Duration::from_secs(30);

/// How long the reply to the `nth` refused recipient of a session waits, counted from 1: `first`,
/// and as much more with each.
///
/// Where sessions are short, `is_crowded`, nobody waits: a client that is made to wait keeps its
/// place, and a crowd of them would keep all.
pub fn wait(first: Duration, nth: u32, is_crowded: bool) -> Duration {
    match is_crowded {
        true => Duration::ZERO,
        false => first.saturating_mul(nth).min(WAIT_MAX),
    }
}

/// How long a stranger waits for the last line of the greeting: a third of what is configured
/// where sessions are short, which catches most of those that do not wait at all.
pub fn greeting_wait(configured: Duration, is_crowded: bool) -> Duration {
    if is_crowded { configured / 3 } else { configured }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_bound_and_give_way_to_a_crowd() {
        let seconds = |nth| wait(Duration::from_secs(2), nth, false).as_secs();
        assert_eq!([1, 2, 3, 14, 15, 16, u32::MAX].map(seconds), [2, 4, 6, 28, 30, 30, 30]);
        assert_eq!(wait(Duration::from_secs(2), 5, true), Duration::ZERO);
        assert_eq!(wait(Duration::ZERO, 5, false), Duration::ZERO);
        assert_eq!(greeting_wait(Duration::from_secs(3), true), Duration::from_secs(1));
    }
}
