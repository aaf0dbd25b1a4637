//! A worker's event loop: io_uring where there is memory for its rings, epoll where there is none.
//!
//! The kernel counts the memory of rings against RLIMIT_MEMLOCK of the user, over all its
//! processes, unless the process has CAP_IPC_LOCK; and it frees the rings of a process that has
//! ended a little later than the process ends.  So a start waits for a bounded time, then takes
//! smaller rings, then does without: a gateway that is slower is better than none, and the log
//! says what would mend it.

use std::future::Future;
use std::io;
use std::thread;
use std::time::{Duration, Instant};

use monoio::time::TimeDriver;
use monoio::{FusionDriver, FusionRuntime, IoUringDriver, LegacyDriver, RuntimeBuilder};
use rustix::io::Errno;

/// How many entries a ring has.
#[derive(Debug, Clone, Copy)]
struct RingSize {
    submissions: u32,
    completions: u32,
}

/// With room in the completion queue for a burst on every session between two looks.
const WANTED: RingSize = RingSize { submissions: 4_096, completions: 32_768 };
/// An eighth of the memory.  The kernel keeps what does not fit into the queue for the next look,
/// which costs time and loses nothing.
const SMALL: RingSize = RingSize { submissions: 512, completions: 4_096 };

/// What the kernel locks for one worker's rings.
pub const RING_OCTETS: u64 = WANTED.octets();

/// How long a start waits for the rings of a process that has just ended.
const PATIENCE: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(20);

type Loop = FusionRuntime<TimeDriver<IoUringDriver>, TimeDriver<LegacyDriver>>;

/// Runs `main` on a new event loop of this thread until it is done: io_uring, or epoll where
/// that is refused (containers), has no memory, or `MONOIO_FORCE_LEGACY_DRIVER=1` asks for it.
///
/// # Errors
/// No driver could be set up.
pub fn run<F: Future>(main: F) -> io::Result<F::Output> {
    Ok(event_loop()?.block_on(main))
}

/// The name of the driver that [`run`] uses on this machine if memory allows, for the log.
pub fn driver_name() -> &'static str {
    if monoio::utils::detect_uring() { "io_uring" } else { "epoll" }
}

fn event_loop() -> io::Result<Loop> {
    match patiently(Instant::now() + PATIENCE, || build(WANTED)) {
        Err(error) if is_short_of_memory(&error) => {}
        decided => return decided,
    }
    let mend = "raise RLIMIT_MEMLOCK (LimitMEMLOCK= of the unit)";
    match build(SMALL) {
        Err(error) if is_short_of_memory(&error) => {
            tracing::warn!("no memory for io_uring; this worker runs on epoll; {mend}");
            Ok(RuntimeBuilder::<LegacyDriver>::new().enable_timer().build()?.into())
        }
        built => {
            tracing::warn!("little memory for io_uring; this worker has small rings; {mend}");
            built
        }
    }
}

fn build(size: RingSize) -> io::Result<Loop> {
    let builder = || RuntimeBuilder::<FusionDriver>::new().with_entries(size.submissions);
    let mut tuned = io_uring_06::IoUring::builder();
    // DEFER_TASKRUN is left out: with it, tasks that wake each other starve the ring.
    tuned.setup_coop_taskrun().setup_single_issuer().setup_cqsize(size.completions);
    match builder().uring_builder(tuned).enable_timer().build() {
        Err(error) if !is_short_of_memory(&error) => {
            // Kernels before 6.0 refuse the flags; the loop works without them.
            let mut plain = io_uring_06::IoUring::builder();
            plain.setup_cqsize(size.completions);
            builder().uring_builder(plain).enable_timer().build()
        }
        decided => decided,
    }
}

/// Tries again until the deadline, as long as nothing but memory is missing.
fn patiently<T>(deadline: Instant, mut attempt: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match attempt() {
            Err(error) if is_short_of_memory(&error) && Instant::now() < deadline => {
                thread::sleep(POLL);
            }
            decided => return decided,
        }
    }
}

fn is_short_of_memory(error: &io::Error) -> bool {
    Errno::from_io_error(error) == Some(Errno::NOMEM)
}

impl RingSize {
    /// As io_uring_setup(2) lays them out: an entry of 64 octets and an index of 4 for each
    /// submission, 16 octets for each completion, and the ends of the queues.
    const fn octets(self) -> u64 {
        const PAGE: u64 = 4_096;
        let entries = self.submissions as u64 * 68 + self.completions as u64 * 16;
        (entries + PAGE).next_multiple_of(PAGE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn short() -> io::Error {
        Errno::NOMEM.into()
    }

    #[test]
    fn memory_that_comes_free_is_waited_for() {
        let mut tries = 0;
        let result = patiently(Instant::now() + Duration::from_secs(60), || {
            tries += 1;
            if tries < 3 { Err(short()) } else { Ok(()) }
        });
        assert!(result.is_ok());
        assert_eq!(tries, 3);
    }

    #[test]
    fn memory_that_does_not_is_given_up_and_another_error_at_once() {
        let over: io::Result<()> = patiently(Instant::now(), || Err(short()));
        assert!(is_short_of_memory(&over.expect_err("there was none")));
        let mut tries = 0;
        let refused: io::Result<()> = patiently(Instant::now() + Duration::from_secs(60), || {
            tries += 1;
            Err(Errno::PERM.into())
        });
        assert!(refused.is_err());
        assert_eq!(tries, 1);
    }

    #[test]
    fn a_small_ring_takes_about_an_eighth() {
        assert_eq!(WANTED.octets(), 806_912);
        assert!(SMALL.octets() * 8 <= WANTED.octets() * 5 / 4);
    }
}
