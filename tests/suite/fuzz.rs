//! The fuzz targets of `fuzz/`, without a fuzzer: every seed, and a bounded number of mutations of
//! them, the same in every run.  `fuzz/README.md` says how to run them for long.

use std::fs;
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;

use targets::{TARGETS, Target};

#[path = "../../fuzz/src/targets/mod.rs"]
mod targets;

/// Mutations a target; `MAILRACE_FUZZ_MUTATIONS` asks for more.
const MUTATIONS: usize = 300;

/// The seeds of a target, by name.
fn seeds(target: &str) -> Vec<Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(target);
    let entries = fs::read_dir(&directory).expect("every target has seeds");
    let mut files: Vec<_> = entries.map(|entry| entry.expect("it can be read").path()).collect();
    files.sort();
    assert!(files.len() >= 5, "{} has only {} seeds", directory.display(), files.len());
    files.iter().map(|file| fs::read(file).expect("it can be read")).collect()
}

/// Runs a target; says which input it was if it fails.
fn try_on(name: &str, target: Target, octets: &[u8]) {
    if panic::catch_unwind(AssertUnwindSafe(|| target(octets))).is_err() {
        panic!("target {name} fails on b\"{}\"", octets.escape_ascii());
    }
}

fn run(name: &str) {
    let target = TARGETS.iter().find(|(known, _)| *known == name).expect("one of them").1;
    let seeds = seeds(name);
    for seed in &seeds {
        try_on(name, target, seed);
    }
    let asked = std::env::var("MAILRACE_FUZZ_MUTATIONS").ok();
    let mutations = asked.map_or(MUTATIONS, |asked| asked.parse().expect("a number"));
    let mut random = fastrand::Rng::with_seed(0x6d61_696c);
    for _ in 0..mutations {
        let mut octets = random.choice(&seeds).expect("there are some").clone();
        for _ in 0..random.usize(1..5) {
            mutate(&mut octets, &seeds, &mut random);
        }
        octets.truncate(4_096);
        try_on(name, target, &octets);
    }
}

/// One change of the kinds that libFuzzer makes.
fn mutate(octets: &mut Vec<u8>, seeds: &[Vec<u8>], random: &mut fastrand::Rng) {
    let at = random.usize(..=octets.len());
    let end = (at + random.usize(..16)).min(octets.len());
    match random.u8(..7) {
        0 if at < octets.len() => octets[at] ^= 1 << random.u8(..8),
        1 if at < octets.len() => octets[at] = random.u8(..),
        2 => octets.insert(at, random.u8(..)),
        3 => drop(octets.drain(at..end)),
        4 => {
            let piece = octets[at..end].to_vec();
            octets.splice(at..at, piece);
        }
        5 => {
            let other = random.choice(seeds).expect("there are some");
            let from = random.usize(..=other.len());
            octets.truncate(at);
            octets.extend_from_slice(&other[from..]);
        }
        _ => {
            let telling: &[&[u8]] =
                &[b"\r\n", b"\r\n.\r\n", b"\0", b"\xff\xff\xff\xff", b" ", b"<", b"="];
            octets.splice(at..at, random.choice(telling).expect("there are some").iter().copied());
        }
    }
}

/// A test for each target, so that they run beside each other and fail by name.
macro_rules! each {
    ($($name:ident)*) => {$(
        #[test]
        fn $name() {
            run(stringify!($name));
        }
    )*
        #[test]
        fn every_target_is_run() {
            let tested = [$(stringify!($name)),*];
            assert_eq!(TARGETS.iter().map(|(name, _)| *name).collect::<Vec<_>>(), tested);
        }
    };
}

each!(address client command config data dns log reply session);
