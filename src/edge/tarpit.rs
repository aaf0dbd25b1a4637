//! The wait before the reply to a refused recipient, which costs whoever guesses addresses time, and
//! nobody else anything; and the wait before the last line of the greeting.
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

/// Such a wait, drawn out so that it ends on a beat: by a twentieth and 100 ms at most.  `now` counts
/// from any moment that is the same for all.
///
/// Those whose waits end together go on together, and a worker that turns to many at once takes
/// less for each than one that wakes for each by itself.
pub fn to_the_beat(wait: Duration, now: Duration) -> Duration {
    let beat = (wait / 20).min(BEAT_MAX);
    let over = (now + wait).as_nanos().checked_rem(beat.as_nanos()).unwrap_or(0);
    let over = Duration::from_nanos(u64::try_from(over).unwrap_or(0));
    if over.is_zero() { wait } else { wait + (beat - over) }
}

const BEAT_MAX: Duration = Duration::from_millis(100);

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

    #[test]
    fn waits_end_on_a_beat_that_is_a_small_part_of_them() {
        let ms = Duration::from_millis;
        for (wait, now, drawn_out) in [
            (2_000, 0, 2_000),
            (2_000, 1, 2_099),
            (2_000, 99, 2_001),
            (2_000, 1_234_567_800, 2_000),
            (6_000, 50, 6_050),
            (1_000, 49, 1_001),
            (1_000, 51, 1_049),
            (0, 7, 0),
        ] {
            assert_eq!(to_the_beat(ms(wait), ms(now)), ms(drawn_out), "{wait} at {now}");
        }
        let least = Duration::from_nanos(19);
        assert_eq!(to_the_beat(least, ms(7)), least, "no beat is so short");
    }
}
