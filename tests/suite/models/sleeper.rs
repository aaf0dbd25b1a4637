//! The sleeper and those who bring it work: a worker's mailbox with its budget, and the committer
//! with its start and its stop.

use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use loom::sync::{Arc, Notify};
use loom::thread;

use super::every_order;
use super::sync::doorbell::{Doorbell, Turn};

/// A queue of things that are all alike, with as little ordering as a queue can have.
#[derive(Default)]
struct Queue(AtomicUsize);

impl Queue {
    fn push(&self) {
        self.0.fetch_add(1, Ordering::Release);
    }

    fn has_some(&self) -> bool {
        self.0.load(Ordering::Acquire) > 0
    }

    /// For the one thread that takes.
    fn pop(&self) -> bool {
        self.has_some() && self.0.fetch_sub(1, Ordering::Acquire) > 0
    }
}

/// What a sleeper sleeps on: a socket pair, an event descriptor, or `park`.  It remembers that it
/// was rung, and sometimes wakes the sleeper for nothing.
struct Sleep(Notify);

impl Default for Sleep {
    fn default() -> Self {
        Sleep(Notify::new())
    }
}

impl Sleep {
    fn ring(&self) {
        self.0.notify();
    }

    fn until_rung(&self) {
        self.0.wait();
    }
}

#[derive(Default)]
struct Mailbox {
    letters: Queue,
    doorbell: Doorbell,
    socket: Sleep,
}

impl Mailbox {
    fn post(&self) {
        self.letters.push();
        if self.doorbell.is_to_be_rung() {
            self.socket.ring();
        }
    }

    /// As `Inbox::open_forever` does, but that it ends after so many letters; gives the turns that
    /// others had meanwhile, and the most letters that were opened between two.
    fn open(&self, letters: usize, most: usize) -> (usize, usize) {
        let (mut opened, mut turns, mut busiest) = (0, 0, 0);
        while opened < letters {
            let mut taken = 0;
            let has_taken_all = loop {
                if taken == most {
                    break false;
                }
                if !self.letters.pop() {
                    break true;
                }
                taken += 1;
            };
            opened += taken;
            busiest = busiest.max(taken);
            if opened == letters {
                break;
            }
            match self.doorbell.turn(has_taken_all, || self.letters.has_some()) {
                Turn::Again => continue,
                Turn::RingAndSleep => self.socket.ring(),
                Turn::Sleep => {}
            }
            self.socket.until_rung();
            turns += 1;
        }
        (turns, busiest)
    }
}

#[test]
fn no_letter_of_a_mailbox_stays_unopened() {
    every_order(3, || {
        let mailbox = Arc::new(Mailbox::default());
        let senders: Vec<_> = (0..2)
            .map(|_| {
                let mailbox = mailbox.clone();
                thread::spawn(move || mailbox.post())
            })
            .collect();
        mailbox.open(2, usize::MAX);
        senders.into_iter().for_each(|sender| sender.join().unwrap());
    });
}

#[test]
fn a_worker_that_leaves_letters_for_its_next_turn_comes_back_to_them() {
    every_order(3, || {
        let mailbox = Arc::new(Mailbox::default());
        mailbox.letters.push();
        mailbox.letters.push();
        let other = mailbox.clone();
        let sender = thread::spawn(move || other.post());
        let (turns, busiest) = mailbox.open(3, 1);
        assert!(busiest == 1 && turns >= 2, "{turns} turns");
        sender.join().unwrap();
    });
}

/// Letters that are put in after the look at the bell: some order leaves one unopened.
#[test]
#[ignore = "it is there to fail"]
fn broken_a_sender_that_looks_before_it_pushes() {
    every_order(3, || {
        let mailbox = Arc::new(Mailbox::default());
        let other = mailbox.clone();
        let sender = thread::spawn(move || {
            let is_to_be_rung = other.doorbell.is_to_be_rung();
            other.letters.push();
            if is_to_be_rung {
                other.socket.ring();
            }
        });
        mailbox.open(1, usize::MAX);
        sender.join().unwrap();
    });
}

/// A bell that is armed after the last look: the same.
#[test]
#[ignore = "it is there to fail"]
fn broken_a_worker_that_looks_before_it_arms() {
    every_order(3, || {
        let mailbox = Arc::new(Mailbox::default());
        let other = mailbox.clone();
        let sender = thread::spawn(move || other.post());
        while !mailbox.letters.pop() {
            let had_work = mailbox.letters.has_some();
            if mailbox.doorbell.may_sleep(|| had_work) {
                mailbox.socket.until_rung();
            }
        }
        sender.join().unwrap();
    });
}

// ---- the committer -----------------------------------------------------------------------------

/// The committer's inbox: two queues, a stop, and a thread that parks.
#[derive(Default)]
struct Committer {
    batches: Queue,
    results: Queue,
    is_stopping: AtomicBool,
    doorbell: Doorbell,
    parking: Sleep,
}

impl Committer {
    fn knock(&self) {
        if self.doorbell.is_to_be_rung() {
            self.parking.ring();
        }
    }

    /// As the committer's loop, without its tick: that one is no excuse for a missed wake-up.
    /// Gives the batches that were committed.
    fn run(&self) -> usize {
        let mut committed = 0;
        loop {
            while self.batches.pop() {
                committed += 1;
            }
            while self.results.pop() {}
            if self.is_stopping.load(Ordering::Acquire) && !self.batches.has_some() {
                return committed;
            }
            let has_work = || self.batches.has_some() || self.results.has_some();
            if self.doorbell.may_sleep(has_work) {
                self.parking.until_rung();
            }
            self.doorbell.disarm();
        }
    }
}

#[test]
fn the_committer_takes_every_batch_and_stops() {
    every_order(2, || {
        let inbox = Arc::new(Committer::default());
        let inside = inbox.clone();
        let committer = thread::spawn(move || inside.run());
        let maintenance = {
            let inbox = inbox.clone();
            thread::spawn(move || {
                inbox.results.push();
                inbox.knock();
            })
        };
        inbox.batches.push();
        inbox.knock();
        maintenance.join().unwrap();
        inbox.is_stopping.store(true, Ordering::Release);
        inbox.parking.ring();
        assert_eq!(committer.join().unwrap(), 1, "a batch was left");
    });
}

/// A stop that does not ring whatever the bell says: some order lets the committer sleep on.
#[test]
#[ignore = "it is there to fail"]
fn broken_a_stop_that_rings_for_nobody() {
    every_order(2, || {
        let inbox = Arc::new(Committer::default());
        let inside = inbox.clone();
        let committer = thread::spawn(move || inside.run());
        inbox.is_stopping.store(true, Ordering::Release);
        if inbox.doorbell.is_to_be_rung() {
            inbox.parking.ring();
        }
        committer.join().unwrap();
    });
}
