//! The thin shell around monoio: a worker's event loop, its sockets, buffers, deadlines and
//! mailbox.
//!
//! One thread a core, each with its own ring; nothing in here is shared between threads but
//! [`mailbox`].  Everything that the gateway needs of monoio stands behind this module, so that
//! another loop could take its place.  What monoio 0.2.4 does badly is kept out: no task wakes
//! itself (that starves I/O), no read or write is abandoned on a connection that lives on.

pub mod blocking;
pub mod buffer;
pub mod datagram;
pub mod deadline;
pub mod guard;
pub mod mailbox;
pub mod memory;
pub mod notify;
pub mod socket;
pub mod tls;

use std::future::Future;
use std::io;
use std::time::Duration;

use monoio::{FusionDriver, RuntimeBuilder};

/// Entries of a worker's submission queue.
const RING_ENTRIES: u32 = 4_096;
/// Entries of its completion queue: room for a burst on every session between two looks.
const COMPLETION_ENTRIES: u32 = 32_768;

/// Runs `main` on a new event loop of this thread until it is done: io_uring, or epoll where
/// that is refused (containers) or `MONOIO_FORCE_LEGACY_DRIVER=1` asks for it.
///
/// # Errors
/// Neither driver could be set up.
pub fn run<F: Future>(main: F) -> io::Result<F::Output> {
    let mut tuned = io_uring_06::IoUring::builder();
    // DEFER_TASKRUN is left out: with it, tasks that wake each other starve the ring.
    tuned.setup_coop_taskrun().setup_single_issuer().setup_cqsize(COMPLETION_ENTRIES);
    let mut plain = io_uring_06::IoUring::builder();
    plain.setup_cqsize(COMPLETION_ENTRIES);
    let builder = || RuntimeBuilder::<FusionDriver>::new().with_entries(RING_ENTRIES);
    // Kernels before 6.0 refuse the flags; the loop works without them.
    let mut runtime = match builder().uring_builder(tuned).enable_timer().build() {
        Ok(runtime) => runtime,
        Err(_) => builder().uring_builder(plain).enable_timer().build()?,
    };
    Ok(runtime.block_on(main))
}

/// The name of the driver that [`run`] uses on this machine, for the log.
pub fn driver_name() -> &'static str {
    if monoio::utils::detect_uring() { "io_uring" } else { "epoll" }
}

/// Starts a task on this thread's loop and lets it run by itself.
pub fn spawn(task: impl Future<Output = ()> + 'static) {
    drop(monoio::spawn(task));
}

/// Sleeps without blocking the thread.
pub async fn sleep(duration: Duration) {
    monoio::time::sleep(duration).await;
}

/// `future`, or `None` when it took longer than `limit`.  Only for futures that hold no read or
/// write of a connection that is to be used again.
pub async fn timeout<F: Future>(limit: Duration, future: F) -> Option<F::Output> {
    monoio::time::timeout(limit, future).await.ok()
}
