#[path = "recovery_crash_tests.rs"]
mod crashes;
#[path = "recovery_damage_tests.rs"]
mod damage;

use super::*;
use crate::message::Durability;
use crate::spool::disk::Sync;
use crate::spool::format::header::SegmentState;
use crate::spool::format::outcome::StoredRecipients;
use crate::spool::sim_disk::{Faults, SimDisk};
use crate::spool::stats::Health;
use crate::spool::test_kit::{Bench, Kept, Mail, OPTIONS, next};
use crate::spool::{
    CommitError, Defer, DeferState, Done, NewBody, NewRecord, Recipients, SettledRecord, Ticket,
};

fn head_file(bench: &Bench, place: RecordPlace) -> FileNo {
    bench.log.table().file(place.segment).unwrap()
}

#[test]
fn what_was_accepted_is_found_again() {
    let mut bench = Bench::new();
    assert!(bench.kept.messages.is_empty());
    let places: Vec<_> = (1..=5).map(|id| bench.accept(&Mail::new(id, 2, 500))).collect();
    bench.done(2, places[1]);
    let mut bench = bench.reborn(true);
    assert_eq!(bench.kept.ids(), [1, 3, 4, 5]);
    assert_eq!(bench.report.highest_id, Some(MessageId(5)));
    assert_eq!((bench.report.damage_count, &bench.report.cut), (0, &None));
    let found = &bench.kept.messages[0];
    assert_eq!((found.place, &found.message.envelope), (places[0], &Mail::new(1, 2, 500).envelope));
    bench.done(1, places[0]);
    bench.accept(&Mail::new(6, 1, 10));
    assert_eq!(bench.reborn(false).kept.ids(), [3, 4, 5, 6]);
}

#[test]
fn recipients_that_are_done_or_wait_are_known_one_by_one() {
    let mut bench = Bench::new();
    let place = bench.accept(&Mail::new(1, 5, 10));
    let id = MessageId(1);
    let segment = place.segment;
    let defer = |recipients, reply| Defer {
        id,
        segment,
        recipients,
        state: DeferState::Deferred,
        next_attempt_unix_ms: 7,
        attempts: 1,
        delay_told: false,
        reply,
    };
    let now = bench.now;
    bench.appender.append_defer(&defer(Recipients::All, "first"), now);
    bench.appender.append_defer(&defer(Recipients::Some(&[1, 3]), "second"), now);
    let done = Done { id, segment, recipients: Recipients::Some(&[0, 3]), last: false };
    bench.appender.append_done(&done, now);
    bench.commit();
    let mut bench = bench.reborn(true);
    let found = &bench.kept.messages[0];
    assert_eq!(found.done, [0, 3]);
    let waits: Vec<_> =
        found.deferrals.iter().map(|wait| (&*wait.reply, wait.recipients.clone())).collect();
    let list = |list: &[u16]| StoredRecipients::Some(list.into());
    assert_eq!(waits, [("first", list(&[2, 4])), ("second", list(&[1]))]);
    // Every recipient done, in pieces and without a last word, is done.
    let done = Done { id, segment, recipients: Recipients::Some(&[1, 2, 4]), last: false };
    bench.appender.append_done(&done, bench.now);
    bench.commit();
    assert!(bench.reborn(true).kept.messages.is_empty());
}

/// A crash in the middle of a segment's first write may leave batches behind a header that still
/// says free; they must pass in no later life of the file.
#[test]
fn a_spare_that_is_found_gets_another_generation() {
    let bench = Bench::new();
    let header = |bench: &Bench, file| SegmentHeader::decode(&bench.disk.contents(file)).unwrap();
    let files = bench.disk.files().unwrap();
    let before: BTreeMap<FileNo, u64> = files
        .into_iter()
        .filter(|&file| header(&bench, file).state == SegmentState::Free)
        .map(|file| (file, header(&bench, file).generation))
        .collect();
    let mut bench = bench.reborn(true);
    for id in 1..80 {
        bench.accept(&Mail::new(id, 1, 3000));
    }
    let mut used = 0;
    for (file, generation) in before {
        let now = header(&bench, file);
        if now.state == SegmentState::Open {
            used += 1;
            assert_ne!(now.generation, generation);
        }
    }
    assert!(used > 0, "a spare that was found has been used");
}

#[test]
fn failed_sync_is_voided_and_never_retried() {
    for fail in [SimDisk::fail_next_sync, SimDisk::fail_next_write] {
        for seed in 0..30 {
            let disk = SimDisk::new(seed);
            let mut bench = Bench::on(&disk).unwrap();
            let place = bench.accept(&Mail::new(1, 1, 100));
            fail(&disk);
            Mail::new(2, 1, 100).append(&mut bench.appender, bench.now).unwrap();
            let settled = bench.commit();
            assert!(matches!(settled[0].result, Err(CommitError::Disk(_))), "seed {seed}");
            let after = bench.accept(&Mail::new(3, 1, 100));
            assert_ne!(after.segment, place.segment, "the segment is not written to again");
            if seed % 2 == 0 {
                bench = bench.reborn(false);
                let ids = bench.kept.ids();
                assert_eq!(ids, [1, 3], "seed {seed}: what was refused never comes back");
                assert_eq!(bench.report.damage_count, 0, "seed {seed}");
            }
            // Not even when the segment that voids it has nothing else to keep it.
            bench.done(3, after);
            for id in 10..60 {
                let place = bench.accept(&Mail::new(id, 1, 3000));
                bench.done(id, place);
            }
            assert_eq!(bench.reborn(true).kept.ids(), [1], "seed {seed}");
        }
    }
}

#[test]
fn when_no_failure_can_be_recorded_the_log_stops() {
    let mut bench = Bench::new();
    bench.accept(&Mail::new(1, 1, 100));
    bench.disk.set_faults(Faults { write_failures_permil: 1000, ..Faults::default() });
    let ticket = Mail::new(2, 1, 100).append(&mut bench.appender, bench.now).unwrap();
    bench.is_lazy = true;
    let settled = bench.commit();
    let failed = Err(CommitError::Failed);
    bench.disk.set_faults(Faults { files_max: 0, ..Faults::default() });
    bench.is_lazy = false;
    let settled = [settled, bench.do_chores()].concat();
    assert_eq!(settled, [SettledRecord { ticket, result: failed }]);
    assert_eq!(bench.log.stats().health(), Health::Failed);
    bench.disk.set_faults(Faults::default());
    assert!(bench.reborn(true).kept.ids().starts_with(&[1]));
}

#[test]
fn a_segment_is_reused_only_after_its_retirement_is_durable() {
    let mut bench = Bench::new();
    let place = bench.accept(&Mail::new(1, 1, 100));
    let mut filler = Vec::new();
    for id in 2..40 {
        filler.push((id, bench.accept(&Mail::new(id, 1, 3000))));
    }
    bench.is_lazy = true;
    filler.push((1, place));
    for (id, place) in filler {
        let (id, segment) = (MessageId(id), place.segment);
        let done = Done { id, segment, recipients: Recipients::All, last: true };
        bench.appender.append_done(&done, bench.now);
    }
    bench.commit();
    // The outcomes are there, the retirements not: nothing may come back.
    let bench = bench.reborn(true);
    assert!(bench.kept.messages.is_empty());
    assert_eq!(bench.report.damage_count, 0);
}

#[test]
fn disk_full_refuses_messages_but_takes_outcomes() {
    let mut bench = Bench::new();
    bench.disk.set_faults(Faults { files_max: 5, ..Faults::default() });
    let mut places = BTreeMap::new();
    let mut refused = 0;
    for id in 1..200 {
        let mail = Mail::new(id, 1, 3000);
        match mail.append(&mut bench.appender, bench.now) {
            Ok(_) => match bench.commit()[..] {
                [SettledRecord { result: Ok(place), .. }] => drop(places.insert(id, place)),
                [SettledRecord { result: Err(CommitError::Full), .. }] => refused += 1,
                ref other => panic!("{other:?}"),
            },
            Err(error) => panic!("{error}"),
        }
    }
    assert!(refused > 50, "{refused}");
    assert_eq!(bench.log.stats().health(), Health::Full);
    let ids: Vec<u64> = places.keys().copied().collect();
    let mut settled = 0;
    for (id, place) in places {
        let (id, segment) = (MessageId(id), place.segment);
        let done = Done { id, segment, recipients: Recipients::All, last: true };
        bench.appender.append_done(&done, bench.now);
        settled += bench.commit().iter().filter(|settled| settled.result.is_ok()).count();
    }
    assert_eq!(settled, ids.len(), "the queue drains");
    bench.log.tick();
    bench.do_chores();
    assert_eq!(bench.log.stats().health(), Health::Good, "and then there is room again");
    bench.accept(&Mail::new(500, 1, 3000));
    assert_eq!(bench.reborn(true).kept.ids(), [500]);
}

#[test]
fn a_full_disk_does_not_keep_the_log_from_starting() {
    let mut bench = Bench::new();
    bench.disk.set_faults(Faults { files_max: 6, ..Faults::default() });
    let mut places = Vec::new();
    for id in 1..200 {
        Mail::new(id, 1, 3000).append(&mut bench.appender, bench.now).unwrap();
        places.extend(bench.commit()[0].result.map(|place| (id, place)));
    }
    for round in 0..10 {
        if round % 2 == 0 {
            bench.disk.restart();
        }
        // Not even when each run ends before its maintenance has done anything.
        bench = Bench::idle_on(&bench.disk).unwrap();
        assert_eq!(bench.kept.messages.len(), places.len(), "round {round}");
    }
    bench.do_chores();
    for (id, place) in places {
        bench.done(id, place);
    }
    assert_eq!(bench.log.accounts().live(), 0);
}

#[test]
fn a_mixed_batch_that_is_refused_for_room_keeps_its_outcomes() {
    let mut bench = Bench::new();
    bench.disk.set_faults(Faults { files_max: 4, ..Faults::default() });
    let first = bench.accept(&Mail::new(1, 1, 100));
    let full = (2..200).find(|&id| {
        Mail::new(id, 1, 3000).append(&mut bench.appender, bench.now).unwrap();
        bench.commit()[0].result == Err(CommitError::Full)
    });
    let id = full.expect("the disk is small");
    let done =
        Done { id: MessageId(1), segment: first.segment, recipients: Recipients::All, last: true };
    let outcome = bench.appender.append_done(&done, bench.now);
    let message = Mail::new(id, 1, 3000).append(&mut bench.appender, bench.now).unwrap();
    let mut settled = bench.commit();
    settled.extend(bench.commit());
    let find = |ticket: Ticket| settled.iter().find(|settled| settled.ticket == ticket).unwrap();
    assert_eq!(find(message).result, Err(CommitError::Full));
    assert!(find(outcome).result.is_ok());
    assert!(!bench.reborn(true).kept.ids().contains(&1));
}

#[test]
fn indexes_spare_the_bodies_and_say_the_same() {
    let mut bench = Bench::new();
    let mut live = Vec::new();
    for id in 1..=80 {
        let place = bench.accept(&Mail::new(id, 3, 1500));
        if id % 3 == 0 {
            bench.done(id, place);
        } else {
            live.push(id);
        }
    }
    let disk = bench.disk.clone();
    let bench = bench.reborn(true);
    assert!(bench.report.indexed > 3, "{}", bench.report.indexed);
    assert_eq!(bench.kept.ids(), live);
    // Without its index each segment is scanned, to the same end.
    for file in disk.files().unwrap() {
        disk.flip_bit(file, OPTIONS.segment_bytes as usize - BLOCK + 3, 1);
    }
    let scanned = Bench::on(&disk).unwrap();
    assert_eq!(scanned.report.indexed, 0);
    assert_eq!(scanned.kept.messages, bench.kept.messages);
}

#[test]
fn chunks_count_once_their_message_is_there() {
    let mut bench = Bench::new();
    let upload = |bench: &mut Bench, id: u64, parts: u32| -> Vec<crate::spool::ChunkPlace> {
        (0..parts)
            .map(|index| {
                let mut chunk = bench.appender.chunk_buffer().unwrap();
                chunk.spare()[..9000].fill(index as u8);
                chunk.advance(9000);
                let chunk = bench.appender.append_chunk(chunk, MessageId(id), index);
                let place = bench.commit()[0].result.unwrap();
                crate::spool::ChunkPlace { place, octets: chunk.octets, crc32c: chunk.crc32c }
            })
            .collect()
    };
    let chunks = upload(&mut bench, 1, 10);
    let mut mail = Mail::new(1, 1, 90_000);
    mail.body = (0..90_000).map(|at| (at / 9000) as u8).collect();
    mail.with(NewBody::Chunks(&chunks), |message| {
        bench.appender.append_message(message, bench.now).unwrap()
    });
    let place = bench.commit()[0].result.unwrap();
    upload(&mut bench, 2, 10);
    upload(&mut bench, 3, 10);
    bench.appender.abandon_upload(MessageId(3));
    bench.commit();
    let used = bench.log.accounts().segments();
    let mut bench = bench.reborn(true);
    assert_eq!(bench.kept.ids(), [1]);
    let found = &bench.kept.messages[0].message;
    assert_eq!(found.body, crate::spool::StoredBody::Chunks(chunks.clone().into()));
    assert!(bench.log.accounts().segments() < used, "unfinished uploads are forgotten");
    for chunk in chunks {
        let file = bench.log.table().file(chunk.place.segment).expect("a live chunk stays");
        let start = chunk.place.offset as usize;
        let bytes = &bench.disk.contents(file)[start..start + chunk.place.length as usize];
        RecordView::parse(bytes).unwrap().verify_body().unwrap();
    }
    bench.done(1, place);
    assert_eq!(bench.log.accounts().live(), 0);
}

/// A chunk is written without a sync of its own.  If the sync that was to cover it fails, the
/// message that names it must not be acknowledged.
#[test]
fn a_message_whose_chunk_was_not_synced_is_refused() {
    for is_late in [true, false] {
        let mut bench = Bench::new();
        bench.accept(&Mail::new(1, 1, 100));
        let mut chunk = bench.appender.chunk_buffer().unwrap();
        chunk.spare()[..9000].fill(7);
        chunk.advance(9000);
        let chunk = bench.appender.append_chunk(chunk, MessageId(2), 0);
        let place = bench.commit()[0].result.unwrap();
        bench.disk.fail_next_sync();
        if is_late {
            bench.log.tick();
        } else {
            Mail::new(3, 1, 100).append(&mut bench.appender, bench.now).unwrap();
            assert!(bench.commit()[0].result.is_err());
        }
        let chunks =
            [crate::spool::ChunkPlace { place, octets: chunk.octets, crc32c: chunk.crc32c }];
        let mail = Mail { body: vec![7; 9000], ..Mail::new(2, 1, 0) };
        mail.with(NewBody::Chunks(&chunks), |message| {
            bench.appender.append_message(message, bench.now).unwrap()
        });
        let settled = bench.commit();
        assert!(matches!(settled[0].result, Err(CommitError::Disk(_))), "{is_late}");
        bench.accept(&Mail::new(4, 1, 100));
        assert_eq!(bench.reborn(true).kept.ids(), [1, 4], "{is_late}");
    }
}

#[test]
fn os_durability_survives_the_process_and_a_tick_makes_it_durable() {
    let disk = SimDisk::new(3);
    let mut bench = Bench::on(&disk).unwrap();
    let mut mail = Mail::new(1, 1, 100);
    mail.durability = Durability::Os;
    bench.accept(&mail);
    assert!(bench.log.has_unsynced());
    let mut bench = bench.reborn(false);
    assert_eq!(bench.kept.ids(), [1], "the process died, the system did not");
    let mut bench = {
        bench.accept(&Mail { durability: Durability::Os, ..Mail::new(2, 1, 100) });
        bench.log.tick();
        bench.reborn(true)
    };
    assert_eq!(bench.kept.ids(), [1, 2]);
    // A synced message makes everything before it durable too.
    bench.accept(&Mail { durability: Durability::Os, ..Mail::new(3, 1, 100) });
    bench.accept(&Mail::new(4, 1, 100));
    assert_eq!(bench.reborn(true).kept.ids(), [1, 2, 3, 4]);
}

/// A bounce and the end of its cause share a batch.  While that may still be lost, the cause must
/// be found again.
#[test]
fn an_outcome_that_is_not_synced_does_not_free_its_message() {
    let mut bench = Bench::new();
    let cause = bench.accept(&Mail::new(1, 1, 100));
    let mut filler = Vec::new();
    for id in 2..40 {
        filler.push((id, bench.accept(&Mail::new(id, 1, 3000))));
    }
    for (id, place) in filler {
        bench.done(id, place);
    }
    let bounce = Mail { durability: Durability::Os, ..Mail::new(50, 1, 100) };
    let (id, segment) = (MessageId(1), cause.segment);
    let done = Done { id, segment, recipients: Recipients::All, last: true };
    bounce.with(NewBody::Inline(&bounce.body), |message| {
        let group = [NewRecord::Message(*message), NewRecord::Done(done)];
        bench.appender.append_group(&group, bench.now).unwrap();
    });
    bench.commit();
    assert!(bench.log.has_unsynced());
    assert!(bench.log.table().file(cause.segment).is_some());
    let bench = bench.reborn(true);
    assert!(bench.kept.ids() == [1] || bench.kept.ids() == [50], "{:?}", bench.kept.ids());
}

#[test]
fn a_retirement_that_fails_at_the_start_is_tried_again() {
    let mut bench = Bench::new();
    let places: Vec<_> = (1..=60).map(|id| (id, bench.accept(&Mail::new(id, 1, 3000)))).collect();
    bench.is_lazy = true;
    for (id, RecordPlace { segment, .. }) in places {
        let done = Done { id: MessageId(id), segment, recipients: Recipients::All, last: true };
        bench.appender.append_done(&done, bench.now);
    }
    bench.commit();
    // No spare is left, so that the start looks for one among the dead.
    for file in bench.disk.files().unwrap() {
        let header = SegmentHeader::decode(&bench.disk.contents(file)).unwrap();
        if header.state == SegmentState::Free {
            bench.disk.remove(file).unwrap();
        }
    }
    let before = bench.log.accounts().segments();
    bench.disk.fail_next_write();
    bench = Bench::with(&bench.disk, OPTIONS).unwrap();
    bench.tick();
    // The head, and the one with the ends until the others are gone.
    let after = bench.log.accounts().segments();
    assert!(before > 4 && after <= 2, "{before}, {after}");
}

/// A run that ends before its head has changed twice has not removed what it has too much of.
#[test]
fn spares_that_are_too_many_are_removed_at_the_next_start() {
    let mut bench = Bench::new();
    let places: Vec<_> = (1..=60).map(|id| (id, bench.accept(&Mail::new(id, 1, 9000)))).collect();
    let used = bench.log.accounts().segments();
    let most = OPTIONS.spares_max + 2;
    assert!(used > 2 * most, "{used}");
    for (id, place) in places {
        bench.done(id, place);
    }
    for _ in 0..3 {
        bench = bench.reborn(true);
    }
    let files = bench.disk.files().unwrap().len();
    assert!(files <= most, "{files} of {used} are left");
}

#[test]
fn a_message_written_twice_counts_once_where_it_stands_last() {
    let mut bench = Bench::new();
    let first = bench.accept(&Mail::new(1, 1, 100));
    for id in 2..20 {
        let place = bench.accept(&Mail::new(id, 1, 5000));
        bench.done(id, place);
    }
    let second = bench.accept(&Mail::new(1, 1, 100));
    assert_ne!(first.segment, second.segment);
    let bench = bench.reborn(true);
    assert_eq!(bench.kept.ids(), [1]);
    assert_eq!(bench.kept.messages[0].place, second);
    assert_eq!(bench.log.accounts().live(), 1);
    assert_eq!(bench.log.table().file(first.segment), None, "the first copy's segment is free");
}
