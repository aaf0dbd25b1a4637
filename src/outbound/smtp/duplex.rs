//! Reading and writing one connection at the same time, in one task.
//!
//! A read is always under way, so that a peer which fills its window with replies is heard while
//! we write, and an idle connection sees its peer go.  The reading future and the driver's stand
//! side by side under [`both`]: what is read goes through the [`Inbox`], which holds one piece;
//! the next read begins when the driver has taken it, so a peer cannot make us hold more.
//!
//! No future of an operation is dropped half-way: the connection is shut down first, which ends
//! the read, and [`both`] sees it to its end.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::pin;
use std::task::{Context, Poll};

use crate::runtime::buffer::{self, Account, Buffer};
use crate::runtime::socket::{Receiving, StreamError};

/// What has arrived and was not looked at.
#[derive(Default)]
pub(super) struct Inbox {
    arrived: RefCell<Option<Arrived>>,
    /// Something was taken since the reading future last ran.
    was_emptied: Cell<bool>,
    /// The driver has ended.
    is_over: Cell<bool>,
}

/// What a read brought.
pub(super) enum Arrived {
    /// Octets; at least one.
    Octets(Buffer),
    /// The peer has closed, or the connection broke.  Nothing comes after it.
    End,
    /// It was cut off by its deadline.  Nothing comes after it.
    TimedOut,
}

/// Runs the reading of `receiving` into `inbox` beside `driver`, to the end of both.
///
/// The driver must have shut the connection down when it ends, or the peer decides how long the
/// last read takes.
pub(super) async fn both<T>(
    inbox: &Inbox,
    receiving: Receiving,
    driver: impl Future<Output = T>,
) -> T {
    let mut reading = pin!(inbox.fill(receiving));
    let mut driver = pin!(driver);
    let mut is_reading = true;
    let mut outcome = None;
    poll_fn(move |context| {
        loop {
            is_reading = is_reading && reading.as_mut().poll(context).is_pending();
            if outcome.is_none()
                && let Poll::Ready(value) = driver.as_mut().poll(context)
            {
                inbox.end();
                outcome = Some(value);
            }
            // Taking from the inbox wakes nobody: that the reading goes on is seen to here.
            if inbox.was_emptied.take() && is_reading {
                continue;
            }
            return match outcome.take_if(|_| !is_reading) {
                Some(value) => Poll::Ready(value),
                None => Poll::Pending,
            };
        }
    })
    .await
}

impl Inbox {
    /// What has arrived, if something has.
    pub(super) fn take(&self) -> Option<Arrived> {
        let arrived = self.arrived.borrow_mut().take();
        if arrived.is_some() {
            self.was_emptied.set(true);
        }
        arrived
    }

    /// Whether something has arrived.
    pub(super) fn has_arrived(&self) -> bool {
        self.arrived.borrow().is_some()
    }

    /// Waits for the next arrival.  Only the driver under [`both`] may: it is polled again when
    /// the read ends, which is why no waker is kept.
    pub(super) async fn next(&self) -> Arrived {
        poll_fn(|_: &mut Context<'_>| self.take().map_or(Poll::Pending, Poll::Ready)).await
    }

    /// Nobody looks any more: the read that is under way is the last one, even if a peer that
    /// babbles has sent more (a socket that was shut down still gives out what came).
    fn end(&self) {
        self.is_over.set(true);
        self.arrived.borrow_mut().take();
        self.was_emptied.set(true);
    }

    async fn fill(&self, mut receiving: Receiving) {
        while !self.is_over.get() {
            let buffer = Buffer::on(Account::Outbound, buffer::TINY);
            let (result, buffer) = receiving.read(buffer).await;
            let arrived = match result {
                Ok(octets) if octets > 0 => Arrived::Octets(buffer),
                Ok(_) | Err(StreamError::Io(_)) => Arrived::End,
                Err(StreamError::TimedOut) => Arrived::TimedOut,
            };
            let is_end = !matches!(arrived, Arrived::Octets(_));
            *self.arrived.borrow_mut() = Some(arrived);
            if is_end {
                return;
            }
            poll_fn(|_| if self.has_arrived() { Poll::Pending } else { Poll::Ready(()) }).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::time::Duration;

    use super::*;
    use crate::runtime;
    use crate::runtime::socket::Stream;

    /// A driver that has had enough is not held up by what a peer goes on sending.
    #[test]
    fn a_peer_that_babbles_does_not_keep_the_connection() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        let babbling = std::thread::spawn(move || {
            let mut peer = listener.accept().expect("a connection").0;
            while peer.write_all(&[b'x'; 4096]).is_ok() {}
        });
        let ended = runtime::run(async move {
            let patience = Duration::from_secs(30);
            let stream = Stream::connect(address, None, patience).await.expect("it listens");
            let (receiving, sending, limit) = stream.split();
            let inbox = Inbox::default();
            let driver = async {
                let first = inbox.next().await;
                limit.shut_down();
                matches!(first, Arrived::Octets(_))
            };
            let ended = runtime::timeout(patience, both(&inbox, receiving, driver)).await;
            drop(sending);
            ended
        });
        assert_eq!(ended.expect("a loop"), Some(true));
        babbling.join().expect("it ends when it cannot write");
    }
}
