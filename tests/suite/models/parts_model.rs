//! The end of a message whose parts are with several cores.

use loom::sync::Arc;
use loom::sync::atomic::{AtomicU32, Ordering};
use loom::thread;

use super::every_order;
use super::sync::parts::Parts;

struct Message {
    parts: Parts,
    /// What is in the log of each part's end, as the committer told that part's core: without any
    /// ordering of its own.
    ends: [AtomicU32; 2],
    /// DONEs that say that the message is over.
    lasts: AtomicU32,
}

impl Message {
    /// What a core does at the end of its part; see `delivery::settle`.
    fn end(&self, part: usize) {
        if self.parts.is_one_left() {
            // Its own end and the message's are one record.
            self.ends[part].store(1, Ordering::Relaxed);
            return self.say_last();
        }
        self.ends[part].store(1, Ordering::Relaxed);
        if self.parts.end_one() {
            self.say_last();
        }
    }

    fn say_last(&self) {
        let logged = self.ends.iter().map(|end| end.load(Ordering::Relaxed)).sum::<u32>();
        assert_eq!(logged, 2, "the message is over and the end of a part is not in the log");
        self.lasts.fetch_add(1, Ordering::Relaxed);
    }
}

fn end_both(end: fn(&Message, usize)) {
    let ends = [AtomicU32::new(0), AtomicU32::new(0)];
    let message = Arc::new(Message { parts: Parts::new(2), ends, lasts: AtomicU32::new(0) });
    let other = message.clone();
    let core = thread::spawn(move || end(&other, 1));
    end(&message, 0);
    core.join().unwrap();
    assert_eq!(message.lasts.load(Ordering::Relaxed), 1, "DONEs that end the message");
}

#[test]
fn one_part_ends_the_message_and_only_after_all_others() {
    every_order(3, || end_both(Message::end));
}

/// Counting down before the end is in the log is the mistake that `Plant::EarlyLast` makes, too.
#[test]
#[ignore = "it is there to fail"]
fn broken_a_part_that_counts_down_before_its_end_is_in_the_log() {
    let early = |message: &Message, part: usize| {
        let is_last = message.parts.end_one();
        message.ends[part].store(1, Ordering::Relaxed);
        if is_last {
            message.say_last();
        }
    };
    every_order(3, move || end_both(early));
}
