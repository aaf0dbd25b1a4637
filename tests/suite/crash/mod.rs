//! Crashes of the real binary in the midst of mixed load: `kill -9`, and power cuts on a file
//! system that forgets what was not synced; nothing that was acknowledged may be lost, and nothing
//! may come twice but what a crash explains.
//!
//! `volume` is the disk, without I/O; `mount` makes a file system of it; `world`, `load` and
//! `books` are what stands around the gateway, built on the load generator; `campaign` is the
//! rounds.  The short form runs with all tests; `tests/crash-campaign` is the long one.

mod books;
mod campaign;
mod load;
mod mount;
mod mount_tests;
mod volume;
mod world;

use std::env;
use std::time::Duration;

use campaign::{Campaign, Crash, Fault, Outcome};
use load::Source;
use volume::Lie;

/// A few rounds, as every change has to pass them.
fn short(crash: Crash) -> Campaign {
    Campaign {
        crash,
        sources: &Source::ALL,
        all_waits: false,
        rounds: 3,
        rate: 200.0,
        load: Duration::from_millis(600),
        seed: fastrand::u64(..),
        is_told: true,
    }
}

#[test]
fn a_few_kills_lose_nothing() {
    must_keep_all(&[short(Crash::Kill)]);
}

#[test]
fn a_few_power_cuts_lose_nothing() {
    must_keep_all(&[short(Crash::PowerCut { lie: None })]);
}

/// The campaign must find it if a sync is skipped, of whatever kind.  A cut may strike when by
/// chance nothing hung on the lie, so there are several tries.
#[test]
fn a_disk_that_lies_about_syncs_is_found_out() {
    const TRIES: usize = 10;
    for lie in [Lie::DurableWrites, Lie::FileSyncs, Lie::FolderSyncs] {
        assert!((0..TRIES).any(|_| is_found_out(lie)), "{lie:?} was not found out");
    }
}

/// Whether one power cut on a lying disk lets mail be missed.
fn is_found_out(lie: Lie) -> bool {
    // Large messages end in a sync of their own, which would mend what the first lie does.
    let sources = if lie == Lie::DurableWrites { &[Source::Single][..] } else { &Source::GOOD };
    let crash = Crash::PowerCut { lie: Some(lie) };
    let campaign = Campaign { rounds: 1, sources, all_waits: true, ..short(crash) };
    match campaign.run() {
        Ok(outcome) => {
            // A log whose last commits are all gone looks like one that never had them: only the
            // books can tell.
            println!("{lie:?}: verify says\n{}", outcome.damage.join("\n"));
            print_table(std::slice::from_ref(&outcome));
            !outcome.books.lost.is_empty()
        }
        // A segment without its header is nobody's, and all that is in it is out of reach.
        Err(Fault::NotStarted(said)) if lie == Lie::FileSyncs => {
            println!("{lie:?}: it does not start:\n{said}");
            true
        }
        Err(fault) => panic!("{lie:?}: {fault}"),
    }
}

/// The long form, which `tests/crash-campaign` starts with the release build.
#[test]
#[ignore = "it takes minutes; run tests/crash-campaign"]
fn campaign() {
    let number = |name: &str, default: u64| match env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")),
        Err(_) => default,
    };
    let seed = number("MAILRACE_CRASH_SEED", fastrand::u64(..));
    let rounds = |name, default| u32::try_from(number(name, default)).expect("fewer rounds");
    let campaigns = [
        (Crash::Kill, rounds("MAILRACE_CRASH_KILLS", 200)),
        (Crash::PowerCut { lie: None }, rounds("MAILRACE_CRASH_CUTS", 50)),
    ];
    let campaigns = campaigns.into_iter().filter(|(_, rounds)| *rounds > 0);
    let long = |(crash, rounds)| Campaign {
        crash,
        sources: &Source::ALL,
        all_waits: false,
        rounds,
        rate: number("MAILRACE_CRASH_RATE", 1000) as f64,
        load: Duration::from_millis(1500),
        seed,
        is_told: true,
    };
    must_keep_all(&campaigns.map(long).collect::<Vec<_>>());
}

/// Runs campaigns that must come to their end without a fault, and tells what they came to.
fn must_keep_all(campaigns: &[Campaign]) {
    let run = |campaign: &Campaign| {
        println!("{campaign:?}");
        campaign.run().unwrap_or_else(|fault| panic!("{fault}"))
    };
    let outcomes: Vec<Outcome> = campaigns.iter().map(run).collect();
    print_table(&outcomes);
    for outcome in &outcomes {
        assert!(outcome.books.is_clean(), "a promise was broken:\n{}", outcome.books.faults());
    }
}

fn print_table(outcomes: &[Outcome]) {
    let Some(first) = outcomes.first() else { return };
    let figures: Vec<_> = outcomes.iter().map(Outcome::figures).collect();
    println!();
    for (place, (what, _)) in first.figures().into_iter().enumerate() {
        let values = figures.iter().map(|figures| format!("{:>10}", figures[place].1));
        println!("{what:<48}{}", values.collect::<String>());
    }
}
