//! SIGINT and SIGTERM as something to be asked for, instead of handlers.

use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// The wish of the user, or of the system, that the program ends.
#[derive(Debug)]
pub struct Signals {
    descriptor: SignalFd,
}

impl Signals {
    /// Takes the two signals over; to be called before any thread is started, for threads
    /// inherit what is blocked.
    ///
    /// # Errors
    /// No descriptors are left.
    pub fn take_over() -> std::io::Result<Signals> {
        let mut set = SigSet::empty();
        set.add(Signal::SIGINT);
        set.add(Signal::SIGTERM);
        set.thread_block()?;
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        Ok(Signals { descriptor: SignalFd::with_flags(&set, flags)? })
    }

    /// Waits for at most `time`; whether a signal came.
    pub fn wait(&self, time: Duration) -> bool {
        let mut asked =
            [rustix::event::PollFd::new(&self.descriptor, rustix::event::PollFlags::IN)];
        let limit = rustix::event::Timespec {
            tv_sec: time.as_secs() as i64,
            tv_nsec: i64::from(time.subsec_nanos()),
        };
        // Interrupted is as good as nothing.
        let _ = rustix::event::poll(&mut asked, Some(&limit));
        matches!(self.descriptor.read_signal(), Ok(Some(_)))
    }
}

/// As many descriptors as the system grants without asking: a session needs one.
pub fn raise_file_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((_, most)) = getrlimit(Resource::RLIMIT_NOFILE) {
        // Where it is refused, the first failed connection will say so.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, most, most);
    }
}
