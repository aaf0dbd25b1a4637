//! Where the process stands: what `/ready` says, and what the spool tells of itself.
//!
//! The thread that starts and stops the gateway sets the phase; the spool's own figures are
//! asked for when somebody wants to know.

use std::fmt;
use std::sync::atomic::{AtomicU8, Ordering};

use super::metrics::HistogramFigures;

/// How far the process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Phase {
    /// It reads its log.
    Recovering,
    /// It takes mail.
    Accepting,
    /// It takes no new sessions and ends when those that there are have ended.
    Stopping,
}

/// Whether the log takes messages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SpoolHealth {
    /// It does.
    #[default]
    Good,
    /// The disk has no room: outcomes only.
    Full,
    /// The disk fails: nothing.
    Failed,
}

/// What the spool counts, at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpoolFigures {
    /// Write-and-sync rounds that succeeded.
    pub commits: u64,
    /// Batches in those.
    pub batches: u64,
    /// Records in those.
    pub records: u64,
    /// Octets written by those, padding included.
    pub written_octets: u64,
    /// Their times.
    pub commit: HistogramFigures,
    /// Rounds that the disk refused.
    pub commit_failures: u64,
    /// Segments begun.
    pub rolls: u64,
    /// Segments retired.
    pub retired: u64,
    /// Background work that failed.
    pub chore_failures: u64,
    /// Segments in use now.
    pub segments_used: u64,
    /// Segments ready to be begun now.
    pub segments_spare: u64,
    /// Segments with damage, kept.
    pub segments_damaged: u64,
    /// Records of messages that are not done.
    pub live_records: u64,
    /// Compactions that came to their end.
    pub compactions: u64,
    /// Messages that those wrote again.
    pub messages_moved: u64,
    /// Octets that they wrote, padding included.
    pub compacted_octets: u64,
    /// Reads answered.
    pub reads: u64,
    /// Reads that failed or did not verify.
    pub read_failures: u64,
    /// Whether it takes messages.
    pub health: SpoolHealth,
}

/// Where the process stands, shared by the thread that drives it and the control thread.
pub struct Status {
    phase: AtomicU8,
    spool: Box<dyn Fn() -> SpoolFigures + Send + Sync>,
}

/// Why no mail is accepted now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotReady {
    /// See [`Phase::Recovering`].
    #[error("reading the log of messages")]
    Recovering,
    /// See [`Phase::Stopping`].
    #[error("stopping")]
    Stopping,
    /// See [`SpoolHealth::Full`].
    #[error("the disk of the log is full")]
    DiskFull,
    /// See [`SpoolHealth::Failed`].
    #[error("the log cannot be written")]
    LogFailed,
}

impl Status {
    /// A process that begins with reading its log; `spool` is called for each look.
    pub fn new(spool: impl Fn() -> SpoolFigures + Send + Sync + 'static) -> Status {
        Status { phase: AtomicU8::new(Phase::Recovering as u8), spool: Box::new(spool) }
    }

    /// Sets the phase.
    pub fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Release);
    }

    /// The phase.
    pub fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Acquire) {
            0 => Phase::Recovering,
            1 => Phase::Accepting,
            _ => Phase::Stopping,
        }
    }

    /// The spool's figures of now.
    pub fn spool(&self) -> SpoolFigures {
        (self.spool)()
    }

    /// Whether mail is accepted.
    ///
    /// # Errors
    /// Why it is not.
    pub fn readiness(&self) -> Result<(), NotReady> {
        match self.phase() {
            Phase::Recovering => return Err(NotReady::Recovering),
            Phase::Stopping => return Err(NotReady::Stopping),
            Phase::Accepting => {}
        }
        match self.spool().health {
            SpoolHealth::Good => Ok(()),
            SpoolHealth::Full => Err(NotReady::DiskFull),
            SpoolHealth::Failed => Err(NotReady::LogFailed),
        }
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Status").field("phase", &self.phase()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[test]
    fn readiness_by_phase_and_health() {
        use {NotReady::*, Phase::*};
        let health = Arc::new(Mutex::new(SpoolHealth::Good));
        let shown = health.clone();
        let status = Status::new(move || SpoolFigures {
            health: *shown.lock().unwrap(),
            ..SpoolFigures::default()
        });
        assert_eq!(status.readiness(), Err(NotReady::Recovering), "at the start");
        for (phase, spool, expected) in [
            (Phase::Recovering, SpoolHealth::Failed, Err(NotReady::Recovering)),
            (Accepting, SpoolHealth::Good, Ok(())),
            (Accepting, SpoolHealth::Full, Err(DiskFull)),
            (Accepting, SpoolHealth::Failed, Err(LogFailed)),
            (Phase::Stopping, SpoolHealth::Good, Err(NotReady::Stopping)),
        ] {
            status.enter(phase);
            *health.lock().unwrap() = spool;
            assert_eq!(status.readiness(), expected, "{phase:?} {spool:?}");
        }
    }
}
