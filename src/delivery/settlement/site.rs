//! What a connection that failed before its first message means for its site.

use crate::delivery::outcome::RetryPolicy;

/// What is known of a site when a connection to it has failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SiteFacts {
    /// No connection is opened to it just now.
    pub rests: bool,
    /// Connections whose peer has answered.
    pub established: u32,
    /// Failures in a row before this one.
    pub failures: u32,
}

/// What to do with a site.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SiteVerdict {
    /// Nothing: this failure has been counted.
    Nothing,
    /// It is well and has connections enough: no further one before then.
    Pause {
        /// In milliseconds since 1970 UTC.
        until_unix_ms: u64,
    },
    /// It cannot be reached, or takes no mail: all that goes there waits.
    Rest {
        /// Until when, in milliseconds since 1970 UTC.
        until_unix_ms: u64,
        /// Failures in a row, this one counted.
        failures: u16,
    },
}

/// How long a site that has connections enough is asked for no further one.
const PAUSE_MS: u64 = 2_000;

/// What a failed connection means for its site.
pub fn after_failed_connection(
    site: SiteFacts,
    retry: &RetryPolicy,
    now_unix_ms: u64,
    random: u32,
) -> SiteVerdict {
    // The connections that were opened together fail together: that is one failure of the site.
    if site.rests {
        return SiteVerdict::Nothing;
    }
    // A site that serves other connections is well: it has enough of them (421, most likely).
    if site.established > 0 {
        return SiteVerdict::Pause { until_unix_ms: now_unix_ms.saturating_add(PAUSE_MS) };
    }
    let failures = u16::try_from(site.failures.saturating_add(1)).unwrap_or(u16::MAX);
    let until_unix_ms = retry.next_attempt(failures, now_unix_ms, random);
    SiteVerdict::Rest { until_unix_ms, failures }
}

/// What it means for a site that this machine had nothing left for a connection to it.
pub fn after_own_shortage(rests: bool, now_unix_ms: u64) -> SiteVerdict {
    match rests {
        true => SiteVerdict::Nothing,
        false => SiteVerdict::Pause { until_unix_ms: now_unix_ms.saturating_add(PAUSE_MS) },
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::Target;
    use crate::delivery::reach::Reach;
    use crate::queue::site::{SiteId, SiteShared};

    const NOW: u64 = 1_750_000_000_000;

    fn retry() -> RetryPolicy {
        let waits = [Duration::from_secs(80), Duration::from_secs(800)];
        RetryPolicy::new(&waits, Duration::from_secs(86_400)).expect("valid")
    }

    #[test]
    fn a_failed_connection_means_one_thing_for_its_site() {
        let rest = |seconds: u64, failures| SiteVerdict::Rest {
            until_unix_ms: NOW + seconds * 1000 - seconds * 125,
            failures,
        };
        let pause = SiteVerdict::Pause { until_unix_ms: NOW + PAUSE_MS };
        let cases = [
            ((false, 0, 0), rest(80, 1)),
            ((false, 0, 1), rest(800, 2)),
            ((false, 0, u32::MAX), rest(800, u16::MAX)),
            ((false, 1, 0), pause),
            ((false, 1, 3), pause),
            ((true, 0, 1), SiteVerdict::Nothing),
            ((true, 1, 0), SiteVerdict::Nothing),
        ];
        for ((rests, established, failures), expected) in cases {
            let site = SiteFacts { rests, established, failures };
            assert_eq!(after_failed_connection(site, &retry(), NOW, 0), expected, "{site:?}");
        }
    }

    #[test]
    fn a_shortage_of_our_own_is_no_failure_and_ends_no_rest() {
        let pause = SiteVerdict::Pause { until_unix_ms: NOW + PAUSE_MS };
        assert_eq!(after_own_shortage(false, NOW), pause);
        assert_eq!(after_own_shortage(true, NOW), SiteVerdict::Nothing);
    }

    /// Ten connections that were opened together are one failure and one wait of the schedule.
    #[test]
    fn connections_that_fail_together_count_once() {
        let shared =
            SiteShared::new(SiteId(0), "site", 10, 1, Reach::fixed(&Target::Discard, None));
        let fails = |now_unix_ms| {
            let site = SiteFacts {
                rests: shared.rests_until(now_unix_ms).is_some(),
                established: shared.established(),
                failures: shared.failures(),
            };
            match after_failed_connection(site, &retry(), now_unix_ms, 0) {
                SiteVerdict::Rest { until_unix_ms, .. } => shared.fail(until_unix_ms, "refused"),
                SiteVerdict::Pause { until_unix_ms } => shared.pause(until_unix_ms),
                SiteVerdict::Nothing => {}
            }
        };
        (0..10).for_each(|ms| fails(NOW + ms));
        assert_eq!(shared.failures(), 1);
        let until = shared.rests_until(NOW + 10).expect("it rests");
        (0..10).for_each(|ms| fails(until + ms));
        assert_eq!(shared.failures(), 2);
        // While another connection stands, the site only pauses, and its failures stay.
        let until = shared.rests_until(until + 10).expect("it rests");
        let established = shared.establish();
        fails(until);
        assert_eq!(shared.failures(), 2);
        assert_eq!(shared.rests_until(until), Some(until + PAUSE_MS));
        drop(established);
    }
}
