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
pub mod event_loop;
pub mod guard;
pub mod mailbox;
pub mod memory;
pub mod notify;
pub mod socket;
pub mod tls;

use std::future::Future;
use std::time::Duration;

pub use event_loop::{RING_OCTETS, driver_name, run};

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
