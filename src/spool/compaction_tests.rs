#[path = "compaction_crash_tests.rs"]
mod crashes;
#[path = "compaction_survey_tests.rs"]
mod surveys;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering::Relaxed;

use super::*;
use crate::message::Durability;
use crate::spool::chore::Chore;
use crate::spool::format::header::SegmentHeader;
use crate::spool::format::record::RecordView;
use crate::spool::format::roll::Roll;
use crate::spool::recovery::RecoveredMessage;
use crate::spool::sim_disk::{Faults, SimDisk};
use crate::spool::stats::Health;
use crate::spool::test_kit::{Bench, Mail, OPTIONS, next};
use crate::spool::{
    ChunkPlace, CommitError, Defer, DeferState, Disk, Done, LogOptions, NewBody, Recipients,
    StoredBody,
};

const COMPACTING: LogOptions = LogOptions { compact_after_ticks: 2, ..OPTIONS };

fn bench() -> Bench {
    Bench::with(&SimDisk::new(1), COMPACTING).unwrap()
}

/// Messages that are accepted and delivered at once, as nearly all are.
fn traffic(bench: &mut Bench, ids: std::ops::Range<u64>) {
    for id in ids {
        let place = bench.accept(&Mail::new(id, 1, 3000));
        bench.done(id, place);
        if id % 5 == 0 {
            bench.tick();
        }
    }
}

fn settle(bench: &mut Bench) {
    (0..10).for_each(|_| bench.tick());
}

fn defer<'a>(id: u64, place: RecordPlace, recipients: Recipients<'a>, reply: &'a str) -> Defer<'a> {
    Defer {
        id: MessageId(id),
        segment: place.segment,
        recipients,
        state: DeferState::Deferred,
        next_attempt_unix_ms: 7,
        attempts: 1,
        delay_told: id % 2 == 1,
        reply,
    }
}

/// A reply, who waits for it, and how.
type Wait = (String, Vec<u16>, DeferState);

/// What a restart makes of a message's outcomes.
fn waits(message: &RecoveredMessage) -> (Vec<u16>, Vec<Wait>) {
    let all = message.message.envelope.recipients.len() as u16;
    let waits = message.deferrals.iter().map(|wait| {
        // As `defer` has set it.
        assert_eq!(wait.delay_told, message.message.id.0 % 2 == 1);
        let recipients = (0..all).filter(|&recipient| wait.recipients.contains(recipient));
        (wait.reply.to_string(), recipients.collect(), wait.state)
    });
    (message.done.clone(), waits.collect())
}

/// The octets of a message as a reader gets them that was told it stands at `place`.
fn body(bench: &Bench, id: u64, place: RecordPlace) -> Vec<u8> {
    let record = |place: RecordPlace| {
        let file = bench.log.table().file(place.segment).expect("a live segment has its file");
        let start = place.offset as usize;
        bench.disk.contents(file)[start..start + place.length as usize].to_vec()
    };
    let octets = record(bench.log.table().place_of(MessageId(id), place));
    let view = RecordView::parse(&octets).unwrap();
    view.verify_body().unwrap();
    assert_eq!(view.id(), MessageId(id));
    match crate::spool::StoredMessage::decode(&view).unwrap().body {
        StoredBody::Inline => view.body().to_vec(),
        StoredBody::Chunks(chunks) => {
            let mut whole = Vec::new();
            for chunk in &chunks {
                let octets = record(chunk.place);
                let view = RecordView::parse(&octets).unwrap();
                view.verify_body().unwrap();
                assert_eq!(view.id(), MessageId(id));
                whole.extend_from_slice(view.body());
            }
            whole
        }
    }
}

/// A message whose body came in chunks of 9,000 octets.
fn upload(bench: &mut Bench, id: u64, parts: u32) -> RecordPlace {
    let mut mail = Mail::new(id, 1, 0);
    let mut chunks = Vec::new();
    for index in 0..parts {
        let mut chunk = bench.appender.chunk_buffer().unwrap();
        chunk.spare()[..9000].fill(index as u8);
        mail.body.extend_from_slice(&chunk.spare()[..9000]);
        chunk.advance(9000);
        let chunk = bench.appender.append_chunk(chunk, MessageId(id), index);
        let place = bench.commit()[0].result.unwrap();
        chunks.push(ChunkPlace { place, octets: chunk.octets, crc32c: chunk.crc32c });
    }
    mail.with(NewBody::Chunks(&chunks), |message| {
        bench.appender.append_message(message, bench.now).unwrap()
    });
    bench.commit()[0].result.unwrap()
}

#[test]
fn one_message_that_waits_does_not_keep_all_that_comes_after_it() {
    let mut bench = bench();
    let mail = Mail::new(1, 2, 700);
    let place = bench.accept(&mail);
    bench.appender.append_defer(&defer(1, place, Recipients::Some(&[1]), "later"), bench.now);
    bench.commit();
    let mut used = 0;
    for round in 0..20u64 {
        traffic(&mut bench, 10 + round * 40..50 + round * 40);
        used = used.max(bench.log.accounts().segments());
    }
    assert!(used <= 9, "one message keeps {used} segments");
    assert!(bench.log.table().file(place.segment).is_none(), "its first segment is free");
    assert_eq!(body(&bench, 1, place), mail.body);
    let found = {
        bench = bench.reborn(true);
        assert_eq!(bench.kept.ids(), [1]);
        &bench.kept.messages[0]
    };
    assert_eq!(found.message.envelope, mail.envelope);
    assert_eq!(waits(found), (vec![], vec![("later".into(), vec![1], DeferState::Deferred)]));
    let place = found.place;
    // And it goes on so in the next life.
    traffic(&mut bench, 2000..2200);
    settle(&mut bench);
    assert!(bench.log.accounts().segments() <= 4, "{}", bench.log.accounts().segments());
    // Its end names the place that its handle knows.
    bench.done(1, place);
    assert_eq!(bench.log.accounts().live(), 0);
    settle(&mut bench);
    assert!(bench.reborn(true).kept.messages.is_empty());
}

/// Half of the messages stay, so their segments do, and each of the others has its DONE in
/// another segment.
#[test]
fn outcomes_of_full_segments_are_carried_and_their_holders_freed() {
    let mut bench = bench();
    let mut places: Vec<(u64, RecordPlace)> = Vec::new();
    for id in 1..=100 {
        places.push((id, bench.accept(&Mail::new(id, 1, 3000))));
    }
    let full = bench.log.accounts().segments();
    let mut kept = Vec::new();
    for (id, place) in places {
        match id % 4 {
            0 => bench.done(id, place),
            1 => {
                let wait = defer(id, place, Recipients::All, "wait");
                bench.appender.append_defer(&Defer { state: DeferState::Held, ..wait }, bench.now);
                bench.commit();
                kept.push(id);
            }
            _ => kept.push(id),
        }
        traffic(&mut bench, 1000 + id * 10..1000 + id * 10 + 6);
    }
    settle(&mut bench);
    let used = bench.log.accounts().segments();
    assert!(used <= full + 3, "{used} segments for what was {full}");
    let bench = bench.reborn(true);
    let mut ids = bench.kept.ids();
    ids.sort_unstable();
    assert_eq!(ids, kept);
    for message in &bench.kept.messages {
        let id = message.message.id.0;
        let expected = match id % 4 {
            1 => vec![("wait".into(), vec![0], DeferState::Held)],
            _ => vec![],
        };
        assert_eq!(waits(message), (vec![], expected), "message {id}");
    }
}

/// Its end is said by two DONEs in two segments, of which one goes; the one that would have said
/// `last` never came.
#[test]
fn an_end_that_several_outcomes_say_together_is_not_torn_apart() {
    let mut bench = bench();
    let place = bench.accept(&Mail::new(1, 3, 3000));
    // Its segment is looked at, since something in it is dead.
    let dead = bench.accept(&Mail::new(2, 1, 3000));
    bench.done(2, dead);
    let fill = |bench: &mut Bench, ids: std::ops::Range<u64>| {
        for id in ids {
            bench.accept(&Mail::new(id, 1, 3500));
        }
    };
    let done = |bench: &mut Bench, recipients: &[u16]| {
        let recipients = Recipients::Some(recipients);
        let segment = place.segment;
        let done = Done { id: MessageId(1), segment, recipients, last: false };
        bench.appender.append_done(&done, bench.now);
        bench.commit()[0].result.unwrap().segment
    };
    // Two segments that are more than half live, and one between them that is dead.
    fill(&mut bench, 10..40);
    for id in 100..110 {
        let place = bench.accept(&Mail::new(id, 1, 3000));
        bench.done(id, place);
    }
    let first = done(&mut bench, &[0]);
    for id in 110..120 {
        let place = bench.accept(&Mail::new(id, 1, 3000));
        bench.done(id, place);
    }
    fill(&mut bench, 200..212);
    let second = done(&mut bench, &[1, 2]);
    fill(&mut bench, 212..240);
    settle(&mut bench);
    let file = |segment| bench.log.table().file(segment);
    assert!(file(place.segment).is_some() && file(second).is_some(), "they are needed");
    assert!(first != second && file(first).is_none(), "compacted");
    assert!(!bench.reborn(true).kept.ids().contains(&1), "all recipients were done");
}

#[test]
fn what_became_of_each_recipient_goes_with_the_message() {
    let mut bench = bench();
    let place = bench.accept(&Mail::new(1, 6, 100));
    let all = Recipients::All;
    bench.appender.append_defer(&defer(1, place, all, "first"), bench.now);
    bench.commit();
    traffic(&mut bench, 100..150);
    bench.appender.append_defer(&defer(1, place, Recipients::Some(&[1, 3]), "second"), bench.now);
    let (id, segment) = (MessageId(1), place.segment);
    let done = Done { id, segment, recipients: Recipients::Some(&[0, 3]), last: false };
    bench.appender.append_done(&done, bench.now);
    bench.commit();
    let expected = (
        vec![0, 3],
        vec![
            ("first".to_owned(), vec![2, 4, 5], DeferState::Deferred),
            ("second".to_owned(), vec![1], DeferState::Deferred),
        ],
    );
    for round in 0..3u64 {
        traffic(&mut bench, 200 + round * 100..300 + round * 100);
        settle(&mut bench);
        assert!(bench.log.table().file(place.segment).is_none());
        bench = bench.reborn(true);
        assert_eq!(waits(&bench.kept.messages[0]), expected, "round {round}");
    }
    // By the place of long ago: the queue may know no other.
    let done = Done { id, segment, recipients: Recipients::Some(&[1, 2, 4]), last: false };
    bench.appender.append_done(&done, bench.now);
    let done = Done { id, segment, recipients: Recipients::Some(&[5]), last: true };
    bench.appender.append_done(&done, bench.now);
    bench.commit();
    settle(&mut bench);
    assert!(bench.reborn(true).kept.messages.is_empty());
}

/// The compaction reads, an outcome comes, the compaction writes: the copy must not be the last
/// word.
#[test]
fn an_outcome_that_comes_meanwhile_is_not_undone() {
    for pause in 0..40 {
        let mut bench = bench();
        let place = bench.accept(&Mail::new(1, 3, 100));
        bench.appender.append_defer(&defer(1, place, Recipients::All, "old"), bench.now);
        bench.commit();
        let other = bench.accept(&Mail::new(2, 1, 100));
        for id in 100..130 {
            let place = bench.accept(&Mail::new(id, 1, 3000));
            bench.done(id, place);
        }
        bench.is_lazy = true;
        let mut chores: std::collections::VecDeque<Chore> = Default::default();
        for step in 0..60 {
            bench.tick();
            while let Some(chore) = bench.log.poll_chore() {
                chores.push_back(chore);
            }
            if step == pause {
                bench.appender.append_defer(&defer(1, place, Recipients::All, "new"), bench.now);
                let segment = place.segment;
                let recipients = Recipients::Some(&[2]);
                let done = Done { id: MessageId(1), segment, recipients, last: false };
                bench.appender.append_done(&done, bench.now);
                bench.done(2, other);
            }
            if let Some(chore) = chores.pop_front() {
                bench.do_chore(chore);
            }
        }
        let bench = bench.reborn(true);
        assert_eq!(bench.kept.ids(), [1], "pause {pause}");
        let expected = (vec![2], vec![("new".to_owned(), vec![0, 1], DeferState::Deferred)]);
        assert_eq!(waits(&bench.kept.messages[0]), expected, "pause {pause}");
    }
}

/// Does all chores until the compaction is to copy something; gives that chore.
fn until_copy(bench: &mut Bench) -> Chore {
    bench.is_lazy = true;
    for _ in 0..40 {
        while let Some(chore) = bench.log.poll_chore() {
            if matches!(chore, Chore::Copy { .. }) {
                return chore;
            }
            bench.do_chore(chore);
        }
        bench.tick();
    }
    panic!("there was nothing to copy");
}

/// An outcome comes while a batch is made, or the disk refuses the batch: whatever stays behind
/// must be tried again, though nothing more dies.
#[test]
fn what_a_job_left_behind_is_tried_again() {
    for is_refused in [false, true] {
        let mut bench = bench();
        let first = bench.accept(&Mail::new(1, 1, 500));
        let second = bench.accept(&Mail::new(2, 1, 500));
        for id in 100..140 {
            let place = bench.accept(&Mail::new(id, 1, 3000));
            bench.done(id, place);
        }
        let copy = until_copy(&mut bench);
        if is_refused {
            bench.disk.fail_next_write();
        } else {
            let wait = defer(1, first, Recipients::All, "meanwhile");
            bench.appender.append_defer(&wait, bench.now);
            bench.commit();
        }
        bench.do_chore(copy);
        bench.is_lazy = false;
        bench.do_chores();
        let moved =
            |bench: &Bench, id, place| bench.log.table().place_of(MessageId(id), place) != place;
        // What was not touched goes with the same job.
        assert_eq!(moved(&bench, 2, second), !is_refused);
        assert!(!moved(&bench, 1, first));
        settle(&mut bench);
        assert!(moved(&bench, 1, first) && moved(&bench, 2, second), "refused: {is_refused}");
        assert_eq!(bench.reborn(true).kept.messages.len(), 2);
    }
}

#[test]
fn a_large_message_moves_with_its_chunks() {
    let mut bench = bench();
    let place = upload(&mut bench, 1, 10);
    let whole = body(&bench, 1, place);
    assert_eq!(whole.len(), 90_000);
    traffic(&mut bench, 100..180);
    settle(&mut bench);
    assert!(bench.log.table().file(place.segment).is_none(), "it moved");
    assert_eq!(body(&bench, 1, place), whole);
    assert_eq!(bench.log.accounts().live(), 11);
    let mut bench = bench.reborn(true);
    assert_eq!(bench.kept.ids(), [1]);
    let place = bench.kept.messages[0].place;
    assert_eq!(body(&bench, 1, place), whole);
    assert_eq!(bench.log.accounts().live(), 11);
    bench.done(1, place);
    assert_eq!(bench.log.accounts().live(), 0);
}

#[test]
fn a_segment_that_is_read_stays_until_it_is_not() {
    let mut bench = bench();
    let place = upload(&mut bench, 1, 3);
    let pin = bench.log.table().pin(place.segment).unwrap();
    traffic(&mut bench, 100..180);
    settle(&mut bench);
    assert!(bench.log.table().file(place.segment).is_some(), "somebody reads it");
    assert_ne!(bench.log.table().place_of(MessageId(1), place), place, "but it has moved");
    drop(pin);
    bench.tick();
    assert!(bench.log.table().file(place.segment).is_none());
    assert!(bench.log.table().pin(place.segment).is_none());
}

#[test]
fn an_upload_keeps_its_chunks_where_they_are_and_nothing_else() {
    let mut bench = bench();
    let mut chunk = bench.appender.chunk_buffer().unwrap();
    chunk.push(&[7; 5000]);
    let chunk = bench.appender.append_chunk(chunk, MessageId(1), 0);
    let place = bench.commit()[0].result.unwrap();
    traffic(&mut bench, 100..300);
    settle(&mut bench);
    let used = bench.log.accounts().segments();
    assert!(used <= 5, "{used} segments for one chunk");
    let chunks = [ChunkPlace { place, octets: chunk.octets, crc32c: chunk.crc32c }];
    let mail = Mail { body: vec![7; 5000], ..Mail::new(1, 1, 0) };
    mail.with(NewBody::Chunks(&chunks), |message| {
        bench.appender.append_message(message, bench.now).unwrap()
    });
    let place = bench.commit()[0].result.unwrap();
    assert_eq!(body(&bench, 1, place), mail.body);
}

#[test]
fn a_retirement_that_failed_is_tried_again() {
    let mut bench = bench();
    let place = bench.accept(&Mail::new(1, 1, 100));
    for id in 2..40 {
        let place = bench.accept(&Mail::new(id, 1, 3000));
        bench.done(id, place);
    }
    bench.is_lazy = true;
    bench.done(1, place);
    while let Some(chore) = bench.log.poll_chore() {
        if matches!(chore, Chore::Retire { .. }) {
            bench.disk.fail_next_write();
        }
        bench.do_chore(chore);
    }
    let used = bench.log.accounts().segments();
    bench.is_lazy = false;
    settle(&mut bench);
    assert!(bench.log.accounts().segments() < used);
    assert!(bench.reborn(true).kept.messages.is_empty());
}

#[test]
fn a_full_disk_is_compacted_at_once() {
    let mut bench = bench();
    bench.disk.set_faults(Faults { files_max: 8, ..Faults::default() });
    bench.accept(&Mail::new(1, 1, 100));
    let mut refused = 0;
    for id in 2..400 {
        Mail::new(id, 1, 3000).append(&mut bench.appender, bench.now).unwrap();
        match bench.commit()[0].result {
            Ok(place) => bench.done(id, place),
            Err(_) => {
                refused += 1;
                bench.tick();
            }
        }
    }
    assert!(refused < 40, "{refused} were refused though nearly all is dead");
    settle(&mut bench);
    assert_eq!(bench.log.stats().health(), Health::Good);
    assert_eq!(bench.reborn(true).kept.ids(), [1]);
}

/// The disk fills while a job is under way that needs several segments before it frees one.
#[test]
fn a_job_on_a_disk_that_fills_leaves_room_for_outcomes() {
    let mut bench = bench();
    // These stay where they are, and each segment that comes after holds an outcome of one.
    let firm: Vec<_> = (1..=28).map(|id| (id, bench.accept(&Mail::new(id, 1, 3000)))).collect();
    let mut waiting = Vec::new();
    for id in 100..240 {
        let place = bench.accept(&Mail::new(id, 1, 3000));
        match id % 3 {
            0 => waiting.push((id, place)),
            _ => bench.done(id, place),
        }
        if id % 5 == 0 {
            let (id, place) = firm[(id as usize - 100) / 5];
            bench.appender.append_defer(&defer(id, place, Recipients::All, "wait"), bench.now);
            bench.commit();
        }
    }
    let used = bench.log.accounts().segments();
    bench.disk.set_faults(Faults { files_max: used + 3, ..Faults::default() });
    let copy = until_copy(&mut bench);
    bench.do_chore(copy);
    bench.is_lazy = false;
    for _ in 0..3 {
        bench.do_chores();
        bench.tick();
    }
    // What waits is bound to end, whatever the compaction is about.
    let is_refused = (1000..).any(|id| {
        let appended = Mail::new(id, 1, 3000).append(&mut bench.appender, bench.now);
        appended.is_err() || bench.commit().iter().any(|settled| settled.result.is_err())
    });
    assert!(is_refused);
    for &(id, RecordPlace { segment, .. }) in &waiting {
        let recipients = Recipients::All;
        let done = Done { id: MessageId(id), segment, recipients, last: true };
        bench.appender.append_done(&done, bench.now);
    }
    assert_eq!(bench.commit().len(), waiting.len(), "their ends wait");
    settle(&mut bench);
    let ids = bench.reborn(true).kept.ids();
    assert_eq!(ids.iter().filter(|&&id| id < 1000).count(), firm.len());
}

#[test]
fn disk_use_stays_in_proportion_to_what_is_live() {
    for seed in 1..=3u64 {
        let mut random = seed;
        let mut bench = bench();
        let mut waiting: Vec<(u64, RecordPlace)> = Vec::new();
        for id in 1..4000u64 {
            let octets = (next(&mut random) % 4000) as usize;
            let place = bench.accept(&Mail::new(id, 1, octets));
            if next(&mut random).is_multiple_of(5) {
                waiting.push((id, place));
            } else {
                bench.done(id, place);
            }
            if waiting.len() > 300 {
                let (id, place) = waiting.swap_remove((next(&mut random) % 300) as usize);
                bench.done(id, place);
            }
            if id % 5 == 0 {
                let which = (next(&mut random) % waiting.len().max(1) as u64) as usize;
                if let Some(&(id, place)) = waiting.get(which) {
                    let wait = defer(id, place, Recipients::All, "not yet");
                    bench.appender.append_defer(&wait, bench.now);
                    bench.commit();
                }
                bench.tick();
            }
            if id > 1500 && id % 100 == 0 {
                let live: u32 = waiting.iter().map(|(_, place)| place.length).sum();
                let used = bench.log.accounts().segments() as u32 * OPTIONS.segment_bytes;
                // Beside the proportion: the head, and what is too young or under way.
                let most = live / 10 * 22 + 8 * OPTIONS.segment_bytes;
                assert!(used <= most, "seed {seed}, {id}: {used} octets for {live} that are live");
            }
        }
        let ids: BTreeSet<u64> = waiting.iter().map(|(id, _)| *id).collect();
        let bench = bench.reborn(true);
        assert_eq!(bench.kept.ids().into_iter().collect::<BTreeSet<_>>(), ids);
    }
}

/// A busy gateway's outcomes are nearly all of messages that came since the job began.
#[test]
fn a_job_remembers_only_outcomes_of_what_it_may_have_surveyed() {
    let mut bench = bench();
    bench.accept(&Mail::new(1, 1, 500));
    for id in 100..120 {
        let place = bench.accept(&Mail::new(id, 1, 3000));
        bench.done(id, place);
    }
    let old = bench.accept(&Mail::new(2, 1, 500));
    let copy = until_copy(&mut bench);
    let new: Vec<_> = (200..235).map(|id| (id, bench.accept(&Mail::new(id, 1, 3000)))).collect();
    bench.done(2, old);
    let before = bench.log.touched();
    assert!(before >= 1);
    let later = new.iter().filter(|(_, place)| place.segment > old.segment);
    assert!(later.clone().count() > 10);
    later.for_each(|&(id, place)| bench.done(id, place));
    assert_eq!(bench.log.touched(), before);
    bench.do_chore(copy);
    bench.is_lazy = false;
    settle(&mut bench);
    assert!(bench.reborn(true).kept.ids().contains(&1));
}

/// A message whose last chunk may be lost stays where it is, and keeps nobody else.
#[test]
fn a_message_with_a_chunk_whose_sync_failed_does_not_stop_the_others() {
    let mut bench = bench();
    let mut id = 100;
    let mut dead = |bench: &mut Bench| {
        id += 1;
        let place = bench.accept(&Mail::new(id, 1, 3000));
        bench.done(id, place);
        place.segment
    };
    let mut chunks = Vec::new();
    let mut chunk = |bench: &mut Bench, index| {
        let mut chunk = bench.appender.chunk_buffer().unwrap();
        chunk.push(&[7; 9000]);
        let chunk = bench.appender.append_chunk(chunk, MessageId(1), index);
        let place = bench.commit()[0].result.unwrap();
        chunks.push(ChunkPlace { place, octets: chunk.octets, crc32c: chunk.crc32c });
        place.segment
    };
    let first = chunk(&mut bench, 0);
    while dead(&mut bench) == first {}
    // More than half of the second segment is live, so it is not emptied.
    (2..9).for_each(|id| assert_ne!(bench.accept(&Mail::new(id, 1, 3500)).segment, first));
    let second = chunk(&mut bench, 1);
    let mail = Mail { body: vec![7; 18_000], durability: Durability::Os, ..Mail::new(1, 1, 0) };
    mail.with(NewBody::Chunks(&chunks), |message| {
        bench.appender.append_message(message, bench.now).unwrap()
    });
    assert_eq!(bench.commit()[0].result.unwrap().segment, second);
    bench.disk.fail_next_sync();
    bench.tick();
    assert!(!bench.log.has_unsynced());
    let other = bench.accept(&Mail::new(50, 1, 100));
    assert_ne!(other.segment, second);
    for _ in 0..20 {
        dead(&mut bench);
    }
    settle(&mut bench);
    let file = |segment| bench.log.table().file(segment);
    assert!(file(first).is_some() && file(second).is_some(), "they are named");
    assert!(file(other.segment).is_none(), "it goes with all that is in it");
}
