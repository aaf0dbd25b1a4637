//! The processor time and memory of this process.

use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;

/// Processor time used so far, by all threads.
#[derive(Debug, Clone, Copy, Default)]
pub struct CpuTime {
    /// In the program itself.
    pub user: Duration,
    /// In the kernel on its behalf.
    pub system: Duration,
}

impl CpuTime {
    /// Up to now.
    pub fn now() -> CpuTime {
        getrusage(UsageWho::RUSAGE_SELF).map_or(CpuTime::default(), |usage| CpuTime {
            user: duration(usage.user_time()),
            system: duration(usage.system_time()),
        })
    }

    /// What was used since an earlier moment.
    pub fn since(self, earlier: CpuTime) -> CpuTime {
        CpuTime {
            user: self.user.saturating_sub(earlier.user),
            system: self.system.saturating_sub(earlier.system),
        }
    }

    /// Microseconds of each kind for one of `count`.
    pub fn per_us(self, count: u64) -> (f64, f64) {
        let share = |time: Duration| time.as_secs_f64() * 1e6 / count.max(1) as f64;
        (share(self.user), share(self.system))
    }
}

fn duration(value: TimeVal) -> Duration {
    let seconds = u64::try_from(value.tv_sec()).unwrap_or(0);
    Duration::from_secs(seconds)
        + Duration::from_micros(u64::try_from(value.tv_usec()).unwrap_or(0))
}
