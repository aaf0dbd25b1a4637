//! Crashes, restarts and hostile contents, judged by a ledger of what was promised.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

/// What a crash test knows of the messages it sent.
#[derive(Default)]
struct Ledger {
    /// Acknowledged with a sync, not told done.
    accepted: BTreeMap<u64, RecordPlace>,
    /// Their end was appended, and it may or may not be on the disk.
    ending: BTreeSet<u64>,
    /// Their end is acknowledged.
    ended: BTreeSet<u64>,
    /// Refused by an answer: must never be seen.
    refused: BTreeSet<u64>,
    next_id: u64,
}

impl Ledger {
    fn check(&self, found: &Bench, what: &str) {
        let ids: BTreeSet<u64> = found.kept.ids().into_iter().collect();
        assert_eq!(ids.len(), found.kept.messages.len(), "{what}: one each");
        for (id, place) in &self.accepted {
            assert!(ids.contains(id), "{what}: message {id} was accepted and is gone");
            let message = found.kept.messages.iter().find(|m| m.message.id.0 == *id).unwrap();
            assert_eq!(message.place, *place, "{what}");
        }
        for id in &ids {
            assert!(!self.ended.contains(id), "{what}: message {id} has ended and is back");
            assert!(!self.refused.contains(id), "{what}: message {id} was refused and is back");
        }
    }
}

fn assert_undamaged(found: &Bench, what: &str) {
    assert_eq!(found.report.damage_count, 0, "{what}: {:?}", found.report.damage);
}

/// One turn of a made-up gateway: accept some, end some, commit.
fn turn(bench: &mut Bench, ledger: &mut Ledger, random: &mut u64) {
    let now = bench.now;
    let is_os = next(random).is_multiple_of(3) && bench.appender.is_idle();
    let mut tickets = BTreeMap::new();
    for _ in 0..next(random) % 4 {
        ledger.next_id += 1;
        let octets = (next(random) % 5000) as usize;
        let mut mail = Mail::new(ledger.next_id, 1, octets);
        if is_os {
            mail.durability = Durability::Os;
        }
        if let Ok(ticket) = mail.append(&mut bench.appender, now)
            && !is_os
        {
            tickets.insert(ticket, (ledger.next_id, false));
        }
    }
    if is_os {
        // Those that a power cut may take only have to stay out of the others' way.
        bench.commit();
        return;
    }
    for _ in 0..next(random) % 4 {
        let count = ledger.accepted.len().max(1) as u64;
        let Some((&id, &place)) = ledger.accepted.iter().nth((next(random) % count) as usize)
        else {
            break;
        };
        ledger.accepted.remove(&id);
        ledger.ending.insert(id);
        let (message, segment) = (MessageId(id), place.segment);
        let done = Done { id: message, segment, recipients: Recipients::All, last: true };
        tickets.insert(bench.appender.append_done(&done, now), (id, true));
    }
    bench.is_lazy = !next(random).is_multiple_of(3);
    let mut settled = bench.commit();
    settled.extend(bench.do_chores());
    for SettledRecord { ticket, result } in settled {
        match (tickets.get(&ticket), result) {
            (Some(&(id, false)), Ok(place)) => drop(ledger.accepted.insert(id, place)),
            (Some(&(id, false)), Err(CommitError::Disk(_) | CommitError::Full)) => {
                ledger.refused.insert(id);
            }
            (Some(&(id, true)), Ok(_)) => {
                ledger.ending.remove(&id);
                ledger.ended.insert(id);
            }
            _ => {}
        }
    }
}

/// The power goes in the middle of one disk operation after the other.
#[test]
fn a_crash_at_every_write_point_loses_nothing_acknowledged() {
    for seed in 1..=6u64 {
        let mut operation = 1;
        loop {
            let disk = SimDisk::new(seed * 1000 + operation);
            let (mut random, mut ledger) = (seed, Ledger::default());
            let mut crashed = false;
            disk.crash_at(operation);
            if let Ok(mut bench) = Bench::on(&disk) {
                for _ in 0..60 {
                    turn(&mut bench, &mut ledger, &mut random);
                    if disk.is_down() {
                        crashed = true;
                        break;
                    }
                }
            }
            disk.restart();
            let what = format!("seed {seed}, operation {operation}");
            let found = Bench::on(&disk).unwrap_or_else(|error| panic!("{what}: {error}"));
            ledger.check(&found, &what);
            assert_undamaged(&found, &what);
            let again = found.reborn(true);
            let what = format!("{what}, second recovery");
            ledger.check(&again, &what);
            assert_undamaged(&again, &what);
            if !crashed && operation > 10 {
                break;
            }
            operation += 1;
        }
    }
}

/// Long runs with failing writes and syncs, crashes of the process and of the power, and
/// recoveries in between.
#[test]
fn faults_crashes_and_restarts_lose_nothing_acknowledged() {
    for seed in 1..=60u64 {
        let disk = SimDisk::new(seed);
        let (mut random, mut ledger) = (seed * 77 + 1, Ledger::default());
        for life in 0..8 {
            disk.set_faults(Faults::default());
            disk.restart();
            let what = format!("seed {seed}, life {life}");
            let mut bench = Bench::on(&disk).unwrap_or_else(|error| panic!("{what}: {error}"));
            // A failed sync of messages that were never promised one shows as damage; no other.
            ledger.check(&bench, &what);
            // What ended without an answer has now ended or not.
            let ids: BTreeSet<u64> = bench.kept.ids().into_iter().collect();
            for message in &bench.kept.messages {
                ledger.accepted.insert(message.message.id.0, message.place);
            }
            ledger.ended.extend(ledger.ending.iter().filter(|id| !ids.contains(id)));
            ledger.ending.clear();
            disk.set_faults(Faults {
                write_failures_permil: (next(&mut random) % 30) as u32,
                sync_failures_permil: (next(&mut random) % 30) as u32,
                files_max: 12 + (next(&mut random) % 20) as usize,
                read_flips_permil: 0,
            });
            for _ in 0..next(&mut random) % 60 {
                turn(&mut bench, &mut ledger, &mut random);
                if bench.log.stats().health() == Health::Failed {
                    break;
                }
            }
            if !disk.is_down() && next(&mut random).is_multiple_of(2) {
                disk.crash_at(disk.operations() + 1);
                turn(&mut bench, &mut ledger, &mut random);
            }
        }
    }
}

/// Overwrites octets of one file of a log and starts from what is left.
fn start_after(hurts: &[(usize, u8)], which: usize) {
    let mut bench = Bench::new();
    for id in 1..30 {
        bench.accept(&Mail::new(id, 1, 2000));
    }
    let disk = bench.disk.clone();
    let files = disk.files().unwrap();
    let file = files[which % files.len()];
    let mut contents = disk.contents(file);
    for (at, value) in hurts.iter().copied() {
        contents[at] = value;
    }
    disk.plant(file, contents);
    let _ = Bench::on(&disk);
}

/// Once a case that proptest found.
#[test]
fn a_wrong_first_octet_does_not_make_recovery_panic() {
    start_after(&[(0, 0)], 0);
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]
    /// Whatever a disk gives back, recovery ends, with an answer.
    #[test]
    fn no_contents_make_recovery_panic(
        hurts in proptest::collection::vec((0usize..64 * 1024, 0u8..), 1..60),
        which in 0usize..3,
    ) {
        start_after(&hurts, which);
    }
}
