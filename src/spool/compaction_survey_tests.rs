//! What the survey gives up, passes over and remembers, and what becomes of segments in which it
//! finds damage.

use super::*;

/// More than half of a segment are outcomes that others need: it stays, and nothing that one of
/// its jobs could find has changed until these others are gone.
#[test]
fn a_segment_that_must_stay_is_not_surveyed_for_ever() {
    let mut bench = bench();
    let live: Vec<_> = (1..=70).map(|id| (id, bench.accept(&Mail::new(id, 1, 3000)))).collect();
    let dead = |bench: &mut Bench, ids: std::ops::Range<u64>| {
        for id in ids {
            let place = bench.accept(&Mail::new(id, 1, 3000));
            bench.done(id, place);
        }
    };
    dead(&mut bench, 100..110);
    for &(id, place) in &live[..60] {
        bench.appender.append_defer(&defer(id, place, Recipients::All, "wait"), bench.now);
    }
    let holder = bench.commit()[0].result.unwrap().segment;
    dead(&mut bench, 110..130);
    (0..4).for_each(|_| settle(&mut bench));
    let fill = bench.log.accounts().fills().find(|fill| fill.segment == holder).unwrap();
    assert_eq!(fill.live, 0);
    assert!(fill.pins > 0 && fill.outcomes >= 60, "{fill:?}");
    let jobs =
        |bench: &Bench| bench.log.stats().compactions.load(std::sync::atomic::Ordering::Relaxed);
    let before = jobs(&bench);
    settle(&mut bench);
    assert_eq!(jobs(&bench), before);
    // Less of it is needed once one of these is gone.
    live[..28].iter().for_each(|&(id, place)| bench.done(id, place));
    settle(&mut bench);
    assert!(bench.log.table().file(holder).is_none());
    assert_eq!(bench.reborn(true).kept.ids().len(), 42);
}

#[test]
fn a_survey_of_too_many_messages_is_given_up() {
    let mut bench = bench();
    let places: Vec<_> = (1..=40).map(|id| bench.accept(&Mail::new(id, 1, 3000))).collect();
    let segment = places[0].segment;
    let file = bench.log.table().file(segment).unwrap();
    let header = SegmentHeader::decode(&bench.disk.contents(file)).unwrap();
    for is_closed in [false, true] {
        let end = header.segment_bytes;
        let task = Task { file, header, end, is_closed, is_damaged: true };
        let in_use: BTreeSet<SegmentNo> = bench.log.accounts().in_use().collect();
        let table = bench.log.table().clone();
        let mut survey = Survey::new([segment].into(), in_use, table, end, u64::MAX);
        survey.messages_max = 5;
        let error = survey.read(&bench.disk, &task).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::OutOfMemory);
        survey.messages_max = 40;
        survey.read(&bench.disk, &task).unwrap();
    }
}

/// Recovery serves what is good behind a head that is hurt, so a survey that stopped there would
/// let go of outcomes that count.
#[test]
fn a_survey_skips_hurt_heads_where_damage_is_known() {
    let mut bench = bench();
    for id in 1..=3 {
        Mail::new(id, 1, 3000).append(&mut bench.appender, bench.now).unwrap();
    }
    let settled = bench.commit();
    let places: Vec<_> = settled.iter().map(|settled| settled.result.unwrap()).collect();
    let behind = bench.accept(&Mail::new(4, 1, 3000));
    let segment = places[0].segment;
    let file = bench.log.table().file(segment).unwrap();
    let header = SegmentHeader::decode(&bench.disk.contents(file)).unwrap();
    let end = (behind.offset + behind.length).next_multiple_of(crate::spool::BLOCK as u32);
    let survey = |is_damaged| {
        let task = Task { file, header, end, is_closed: false, is_damaged };
        let in_use: BTreeSet<SegmentNo> = bench.log.accounts().in_use().collect();
        let table = bench.log.table().clone();
        let mut survey = Survey::new([segment].into(), in_use, table, end, u64::MAX);
        survey.read(&bench.disk, &task).map(|()| survey.plan().needed_octets[&segment])
    };
    let length = |place: &RecordPlace| u64::from(place.length);
    let all = places.iter().chain([&behind]).map(length).sum::<u64>();
    assert_eq!(survey(false).unwrap(), all);
    // Behind the fixed part of the second one's head.
    let at = places[1].offset as usize + crate::spool::format::record::RECORD_HEADER + 4;
    bench.disk.flip_bit(file, at, 3);
    assert_eq!(survey(true).unwrap(), all - length(&places[1]));
    assert_eq!(survey(false).unwrap_err().kind(), std::io::ErrorKind::InvalidData);
    // Its fixed part too: where the third one stands is not certain, and the next batch is.
    bench.disk.flip_bit(file, places[1].offset as usize + 8, 3);
    assert_eq!(survey(true).unwrap(), length(&places[0]) + length(&behind));
}

#[test]
fn damage_is_left_where_it_is() {
    let mut bench = bench();
    let place = bench.accept(&Mail::new(1, 1, 500));
    bench.accept(&Mail::new(2, 1, 500));
    let file = bench.log.table().file(place.segment).unwrap();
    bench.disk.flip_bit(file, (place.offset + place.length) as usize - 100, 1);
    traffic(&mut bench, 100..200);
    settle(&mut bench);
    assert!(bench.log.table().file(place.segment).is_some(), "the damaged message is not moved");
    assert_eq!(bench.log.stats().segments_damaged.load(std::sync::atomic::Ordering::Relaxed), 1);
    assert!(bench.log.accounts().segments() <= 4, "{}", bench.log.accounts().segments());
    assert!(bench.reborn(true).kept.ids().contains(&2));
}

/// Whether the roll call of the newest segment names this one.
fn is_called(bench: &Bench, segment: SegmentNo) -> bool {
    let files = bench.disk.files().unwrap().into_iter();
    let blocks = files.map(|file| bench.disk.contents(file));
    let newest = blocks
        .filter_map(|block| Some((SegmentHeader::decode(&block).ok()?, block)))
        .max_by_key(|(header, _)| header.segment);
    let (header, block) = newest.expect("there is a head");
    let roll = Roll::decode(&block, header.generation).expect("it has one");
    !roll.missing(|other| other != segment).is_empty()
}

#[test]
fn a_segment_that_was_damaged_and_died_is_not_missing() {
    let mut called = 0;
    // The damage is found at several places of the head, which may have to give way to another.
    for small in 0..12 {
        let mut bench = bench();
        let places = [1, 2].map(|id| (id, bench.accept(&Mail::new(id, 1, 500))));
        let (_, place) = places[0];
        let file = bench.log.table().file(place.segment).unwrap();
        bench.disk.flip_bit(file, (place.offset + place.length) as usize - 100, 1);
        traffic(&mut bench, 100..100 + small);
        let damaged = |bench: &Bench| bench.log.stats().segments_damaged.load(Relaxed);
        for id in (200..300).step_by(5) {
            // The compaction finds it, and right then it dies.
            if damaged(&bench) > 0 {
                break;
            }
            let place = bench.accept(&Mail::new(id, 1, 3000));
            bench.done(id, place);
            bench.tick();
        }
        assert_eq!(damaged(&bench), 1, "{small}");
        assert!(bench.disk.quarantined().is_empty(), "it is served");
        places.into_iter().for_each(|(id, place)| bench.done(id, place));
        assert_eq!(damaged(&bench), 0, "it is dead");
        called += u32::from(is_called(&bench, place.segment));
        if small % 2 == 0 {
            traffic(&mut bench, 300..360);
            assert_eq!(bench.disk.quarantined(), [file], "no roll call names it any more");
        }
        let bench = bench.reborn(true);
        assert_eq!(bench.report.damage, [], "{small}");
        assert_eq!(bench.disk.quarantined(), [file]);
        assert_eq!(bench.reborn(true).report.damage, []);
    }
    assert!(called > 0, "the damage was found after some head's roll call");
}
