//! Models: the handshakes between our threads, run by loom in every order of their steps that the
//! memory model of C11 allows, with a bound on preemptions.
//!
//! The files under test are those of the library, compiled once more over loom's atomics.  What
//! stands around them (a queue, a socket, a park) is modelled by the weakest thing that would do:
//! a queue is a counter with no ordering beyond release and acquire, so that what makes the
//! handshake hold is the handshake.
//!
//! A thread that sleeps for ever is a deadlock to loom, and fails the model.  That the models can
//! fail is shown by handshakes with a step out of place (`broken_..`).

mod parts_model;
mod sleeper;

/// The library's handshakes over loom's atomics.
#[path = "../../../src/sync"]
#[expect(dead_code, reason = "a model uses what it is about")]
mod sync {
    pub mod doorbell;
    pub mod parts;

    mod atomic {
        pub(super) use loom::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};
    }
}

/// Runs a model in every order with at most so many preemptions.
fn every_order(preemptions: usize, model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(model);
}

/// What the models do not see they do not prove.  A deadlock ends loom's process: each of these
/// runs in one of its own.
#[test]
fn every_broken_handshake_is_found_out() {
    let program = std::env::current_exe().expect("this program has a path");
    for (broken, words) in [
        ("sleeper::broken_a_sender_that_looks_before_it_pushes", "deadlock"),
        ("sleeper::broken_a_worker_that_looks_before_it_arms", "deadlock"),
        ("sleeper::broken_a_stop_that_rings_for_nobody", "deadlock"),
        (
            "parts_model::broken_a_part_that_counts_down_before_its_end_is_in_the_log",
            "not in the log",
        ),
    ] {
        let mut run = std::process::Command::new(&program);
        run.args(["--ignored", "--exact", "--nocapture", &format!("models::{broken}")]);
        let output = run.env("RUST_BACKTRACE", "0").output().expect("it starts");
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        assert!(!output.status.success() && said.contains(words), "{broken}:\n{said}");
    }
}
