//! Waking tasks at a moment, to the microsecond.
//!
//! The event loop's own timers count whole milliseconds: too coarse for a generator whose
//! latencies are tens of microseconds.  One timer descriptor a thread is set to the earliest
//! moment that anybody waits for.

use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

/// One thread's alarm clock.
pub struct Alarm {
    timer: OwnedFd,
    waiting: RefCell<BinaryHeap<Reverse<Call>>>,
    /// Calls of equal time are told apart by their number.
    calls: Cell<u64>,
}

struct Call {
    at: Instant,
    number: u64,
    waker: Rc<Cell<Option<Waker>>>,
}

impl Alarm {
    /// Nobody waits yet; [`Alarm::ring_forever`] must run for anybody to be woken.
    ///
    /// # Errors
    /// No descriptors are left.
    pub fn new() -> io::Result<Rc<Alarm>> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        let (waiting, calls) = Default::default();
        Ok(Rc::new(Alarm { timer, waiting, calls }))
    }

    /// Waits until `at`.
    pub async fn wait_until(&self, at: Instant) {
        let number = self.calls.replace(self.calls.get() + 1);
        let place = Rc::new(Cell::new(None));
        let mut is_set = false;
        poll_fn(|context| {
            if Instant::now() >= at {
                return Poll::Ready(());
            }
            place.set(Some(context.waker().clone()));
            if !is_set {
                is_set = true;
                let mut waiting = self.waiting.borrow_mut();
                waiting.push(Reverse(Call { at, number, waker: place.clone() }));
                let is_first = waiting.peek().is_some_and(|first| first.0.number == number);
                if is_first {
                    self.set(at);
                }
            }
            Poll::Pending
        })
        .await;
        // A call that is no longer waited for wakes nobody.
        place.set(None);
    }

    /// Wakes those whose time has come, for as long as the thread's loop runs.
    ///
    /// # Errors
    /// The event loop refused the descriptor.
    pub async fn ring_forever(self: Rc<Self>) -> io::Result<()> {
        // monoio takes descriptors to be polled only as sockets; nothing but polling is asked.
        let socket = std::net::TcpStream::from(self.timer.try_clone()?);
        let polled = monoio::net::TcpStream::from_std(socket)?;
        loop {
            polled.readable(false).await?;
            // Takes the expiry away, so that the next poll waits for the next one.
            let _ = rustix::io::read(self.timer.as_fd(), &mut [0u8; 8]);
            self.ring(Instant::now());
        }
    }

    fn ring(&self, now: Instant) {
        let mut waiting = self.waiting.borrow_mut();
        while let Some(Reverse(call)) = waiting.peek() {
            if call.at > now {
                let at = call.at;
                drop(waiting);
                return self.set(at);
            }
            if let Some(waker) = call.waker.take() {
                waker.wake();
            }
            waiting.pop();
        }
    }

    fn set(&self, at: Instant) {
        // A time of zero would switch the timer off.
        let left = at.saturating_duration_since(Instant::now()).max(Duration::from_nanos(1));
        let value =
            Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        let none = Timespec { tv_sec: 0, tv_nsec: 0 };
        let setting = Itimerspec { it_interval: none, it_value: value };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &setting)
            .expect("the descriptor is a timer and the time is sound");
    }
}

impl PartialEq for Call {
    fn eq(&self, other: &Call) -> bool {
        self.number == other.number
    }
}

impl Eq for Call {}

impl PartialOrd for Call {
    fn partial_cmp(&self, other: &Call) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Call {
    fn cmp(&self, other: &Call) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime;

    #[test]
    fn many_are_woken_in_order_and_not_early() {
        let woken: Rc<RefCell<Vec<u32>>> = Rc::default();
        let told = woken.clone();
        let main = async move {
            let alarm = Alarm::new().unwrap();
            let ringing = alarm.clone();
            runtime::spawn(async move { ringing.ring_forever().await.unwrap() });
            // Late enough for all of them to be waiting by then.
            let begun = Instant::now() + Duration::from_secs(1);
            for number in [3u32, 1, 2, 0] {
                let (alarm, told) = (alarm.clone(), told.clone());
                runtime::spawn(async move {
                    let at = begun + Duration::from_micros(1_700) * number;
                    alarm.wait_until(at).await;
                    assert!(Instant::now() >= at);
                    told.borrow_mut().push(number);
                });
            }
            let enough = begun + Duration::from_secs(30);
            while told.borrow().len() < 4 && Instant::now() < enough {
                alarm.wait_until(Instant::now() + Duration::from_millis(5)).await;
            }
        };
        runtime::run(main).unwrap();
        assert_eq!(*woken.borrow(), [0, 1, 2, 3]);
    }
}
