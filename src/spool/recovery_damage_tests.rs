//! What recovery makes of files that are torn, rotten, unreadable or not its own.

use std::collections::BTreeSet;

use super::*;
use crate::spool::format::BATCH_HEADER;
use crate::spool::format::batch::BatchHeader;
use crate::spool::format::record::RECORD_HEADER;

#[test]
fn torn_tail_is_cut() {
    let mut bench = Bench::new();
    bench.accept(&Mail::new(1, 1, 3000));
    // The next commit is interrupted by a power cut, at every one of its sectors by chance.
    for seed in 0..40 {
        let disk = SimDisk::new(seed);
        let mut bench = Bench::on(&disk).unwrap();
        bench.accept(&Mail::new(1, 1, 3000));
        disk.crash_at(disk.operations() + 1);
        Mail::new(2, 1, 6000).append(&mut bench.appender, bench.now).unwrap();
        assert!(bench.commit().iter().all(|settled| settled.result.is_err()));
        let mut bench = bench.reborn(true);
        assert!(bench.kept.ids() == [1] || bench.kept.ids() == [1, 2], "seed {seed}");
        assert_eq!(bench.report.damage_count, 0, "seed {seed}: a torn tail is not damage");
        let ids = bench.kept.ids();
        bench.accept(&Mail::new(3, 1, 10));
        let again = bench.reborn(true);
        assert_eq!(again.kept.ids(), [&ids[..], &[3]].concat(), "seed {seed}");
        assert_eq!(again.report.damage_count, 0, "seed {seed}: nor is it later");
    }
}

#[test]
fn a_hole_below_durable_through_is_damage_and_skipped_over() {
    let mut bench = Bench::new();
    let places: Vec<_> = (1..=4).map(|id| bench.accept(&Mail::new(id, 1, 100))).collect();
    let file = head_file(&bench, places[1]);
    // The batch's header, so that nothing of it can be made out.
    bench.disk.flip_bit(file, places[1].offset as usize - BATCH_HEADER + 20, 3);
    let bench = bench.reborn(true);
    assert_eq!(bench.kept.ids(), [1, 3, 4]);
    let segment = places[1].segment;
    assert_eq!(bench.report.damage, [Damage::Batches { segment, file, sequences: 2..3 }]);
    let mut bench = bench.reborn(true);
    assert_eq!(bench.kept.ids(), [1, 3, 4], "the rest of a damaged segment is still served");
    // When it is dead it is kept aside, not used again.
    for id in [1, 3, 4] {
        bench.done(id, places[id as usize - 1]);
    }
    assert_eq!(bench.disk.quarantined(), [file]);
}

#[test]
fn of_a_damaged_batch_the_records_that_verify_are_kept() {
    let mut bench = Bench::new();
    // Three messages in one batch, which others follow.
    let mails: Vec<Mail> = (1..=3).map(|id| Mail::new(id, 1, 1000)).collect();
    for mail in &mails {
        mail.append(&mut bench.appender, bench.now).unwrap();
    }
    let settled = bench.commit();
    let places: Vec<_> = settled.iter().map(|settled| settled.result.unwrap()).collect();
    bench.accept(&Mail::new(4, 1, 100));
    bench.accept(&Mail::new(5, 1, 100));
    let (file, segment) = (head_file(&bench, places[1]), places[1].segment);
    let whole = bench.disk.contents(file);
    let (place, id) = (places[1], MessageId(2));
    let head = Damage::Record { place, id, error: FormatError::Checksum("record head") };
    let gone = Damage::Batches { segment, file, sequences: 1..2 };
    for (at, kept, damage) in [
        // The body: its sender can be told, so it stays in the queue.
        (place.offset + place.length - 64 - 100, &[1, 2, 3, 4, 5][..], Damage::Body { place, id }),
        // The head, behind its fixed part.
        (place.offset + RECORD_HEADER as u32 + 4, &[1, 3, 4, 5], head),
        // The fixed part: where the records are is not certain any more.
        (place.offset + 8, &[4, 5], gone),
    ] {
        let disk = SimDisk::new(1);
        disk.plant(file, whole.clone());
        disk.flip_bit(file, at as usize, 3);
        let found = Bench::on(&disk).unwrap();
        assert_eq!(found.kept.ids(), kept, "octet {at}");
        assert_eq!(found.report.damage, [damage], "octet {at}");
        let again = found.reborn(true);
        assert_eq!(again.kept.ids(), kept, "octet {at}: nor does a second start lose more");
    }
}

#[test]
fn a_torn_batch_is_cut_also_where_its_records_frames_are_whole() {
    let mut bench = Bench::new();
    bench.accept(&Mail::new(1, 1, 100));
    let place = bench.accept(&Mail::new(2, 1, 9000));
    let file = head_file(&bench, place);
    // The last batch: nothing says that it was durable, and a sector of its body is missing.
    let mut octets = bench.disk.contents(file);
    octets[place.offset as usize + 6000..][..512].fill(0);
    let disk = SimDisk::new(1);
    disk.plant(file, octets);
    let found = Bench::on(&disk).unwrap();
    assert_eq!(found.kept.ids(), [1]);
    assert_eq!((found.report.damage_count, found.report.cut), (0, Some(2..3)));
}

#[test]
fn bit_flip_is_refused() {
    // Each bit of one message's batch by itself: it is found whole, or not at all.
    let mut bench = Bench::new();
    let place = bench.accept(&Mail::new(1, 1, 100));
    bench.accept(&Mail::new(2, 1, 100));
    let file = head_file(&bench, place);
    let batch = place.offset as usize / BLOCK * BLOCK;
    let whole = bench.disk.contents(file);
    let mut random = 99;
    for _ in 0..300 {
        let at = batch + (next(&mut random) % 500) as usize;
        let disk = SimDisk::new(1);
        disk.plant(file, whole.clone());
        disk.flip_bit(file, at, next(&mut random) as u8);
        let found = Bench::on(&disk).unwrap();
        match &found.kept.ids()[..] {
            [2] => assert_eq!(found.report.damage_count, 1, "octet {at}"),
            [1, 2] => {
                let first = &found.kept.messages[0].message;
                assert_eq!(first.envelope, Mail::new(1, 1, 100).envelope, "octet {at}");
            }
            ids => panic!("octet {at}: {ids:?}"),
        }
    }
}

#[test]
fn stale_bytes_of_a_recycled_segment_never_pass() {
    let mut bench = Bench::new();
    let mut id = 0;
    let mut files = BTreeSet::new();
    // Many lives of few files, each message done at once.
    for _ in 0..200 {
        id += 1;
        let place = bench.accept(&Mail::new(id, 1, 3000));
        files.insert(head_file(&bench, place));
        bench.done(id, place);
    }
    assert!(files.len() <= 5, "files are used again: {files:?}");
    id += 1;
    bench.accept(&Mail::new(id, 1, 10));
    let disk = bench.disk.clone();
    let stale: usize = files
        .iter()
        .map(|&file| disk.contents(file).windows(4).filter(|magic| magic == b"MRB1").count())
        .sum();
    assert!(stale > 20, "there is something stale to be found: {stale}");
    let bench = bench.reborn(true);
    assert_eq!(bench.kept.ids(), [id]);
    assert_eq!(bench.report.damage_count, 0);
}

#[test]
fn foreign_files_are_refused_and_unreadable_ones_set_aside() {
    let disk = SimDisk::new(1);
    disk.plant(FileNo(1), vec![0; 64 * 1024]);
    let error = Bench::on(&disk).err().unwrap();
    assert!(matches!(error, RecoveryError::Foreign { file: 1, error: FormatError::Magic }));
    let mut bench = Bench::new();
    let place = bench.accept(&Mail::new(1, 1, 100));
    let file = head_file(&bench, place);
    bench.disk.flip_bit(file, 20, 1);
    bench.disk.flip_bit(file, 2048 + 20, 1);
    let bench = bench.reborn(true);
    assert!(bench.kept.messages.is_empty());
    assert!(matches!(bench.report.damage[..], [Damage::Header { .. }]));
    assert_eq!(bench.disk.quarantined(), [file]);
    let other_size = crate::spool::LogOptions { segment_bytes: 128 * 1024, ..OPTIONS };
    let error = recover(
        Arc::new(bench.disk.clone()),
        other_size,
        Arc::default(),
        &mut || 1,
        &mut Kept::default(),
    )
    .err()
    .unwrap();
    assert!(matches!(error, RecoveryError::SegmentSize { .. }), "{error}");
}

/// Keeps what recovery says, and spoils blocks between its two passes.
struct Spoiling {
    disk: SimDisk,
    blocks: Vec<(FileNo, usize)>,
    kept: Kept,
}

impl RecoveryVisitor for Spoiling {
    fn message(&mut self, message: RecoveredMessage) {
        self.kept.message(message);
    }

    fn progress(&mut self, progress: Progress) {
        if progress.segments_done * 2 == progress.segments {
            for (file, offset) in self.blocks.drain(..) {
                self.disk.make_unreadable(file, offset);
            }
        }
    }
}

/// One bad sector costs the messages that stand in it, and nothing else; not the start.
#[test]
fn a_block_that_cannot_be_read_costs_what_stands_in_it() {
    let footer = OPTIONS.segment_bytes as usize - BLOCK;
    // Of a sealed segment: its footer, message 3, both, in one pass or between the two; then
    // message 40, which stands in the newest one.
    let none: &[u64] = &[];
    let cases = [
        (none, true, false, none, 1),
        (&[3], false, false, none, 0),
        (&[3], true, false, &[3], 2),
        (&[3], true, true, &[3], 1),
        (none, true, true, none, 0),
        (&[40], false, false, &[40], 2),
    ];
    for (case, (ids, is_footer, is_between, lost, damage)) in cases.into_iter().enumerate() {
        let mut bench = Bench::new();
        let places: Vec<RecordPlace> =
            (1..=41).map(|id| bench.accept(&Mail::new(id, 1, 3000))).collect();
        let file = |no: usize| bench.log.table().file(places[no].segment).unwrap();
        assert_ne!(file(2), file(39));
        let mut blocks: Vec<(FileNo, usize)> = ids
            .iter()
            .map(|&id| (file(id as usize - 1), places[id as usize - 1].offset as usize))
            .collect();
        blocks.extend(is_footer.then_some((file(2), footer)));
        if !is_between {
            blocks.drain(..).for_each(|(file, at)| bench.disk.make_unreadable(file, at));
        }
        let mut visitor = Spoiling { disk: bench.disk.clone(), blocks, kept: Kept::default() };
        let disk = Arc::new(bench.disk.clone());
        let (_, report) = recover(disk, OPTIONS, Arc::default(), &mut || 77, &mut visitor).unwrap();
        let expected: Vec<u64> = (1..=41).filter(|id| !lost.contains(id)).collect();
        assert_eq!(visitor.kept.ids(), expected, "case {case}");
        assert_eq!(report.damage_count, damage, "case {case}: {:?}", report.damage);
    }
}

/// What a refused start must leave as it is.
fn everything(disk: &SimDisk) -> Vec<(FileNo, Vec<u8>)> {
    disk.files().unwrap().into_iter().map(|file| (file, disk.contents(file))).collect()
}

/// Whether a batch that cannot be read, or the end of one, was acknowledged, nobody can tell.
#[test]
fn a_start_is_refused_where_the_log_may_end_in_what_cannot_be_read() {
    // Two workers' batches in one commit: neither says that the other is durable.
    let mut bench = Bench::new();
    let first = bench.accept(&Mail::new(1, 1, 3000));
    bench.accept(&Mail::new(2, 1, 3000));
    let mut other = crate::spool::test_kit::appender();
    let mut batches = Vec::new();
    for (id, appender) in [(3, &mut bench.appender), (4, &mut other)] {
        Mail::new(id, 1, 6000).append(appender, bench.now).unwrap();
        batches.extend(appender.flush(bench.now));
    }
    let done = bench.log.commit(batches);
    let offsets: Vec<usize> =
        done.iter().map(|completion| completion.result.unwrap().offset as usize).collect();
    let [three, four] = offsets[..] else { panic!("{offsets:?}") };
    let (file, disk) = (head_file(&bench, first), bench.disk.clone());
    let before = everything(&disk);
    // Their headers, what they hold, what is behind them, and two of these.
    let ends: [&[usize]; 6] = [
        &[three],
        &[three + BLOCK],
        &[four],
        &[four + BLOCK],
        &[four + 2 * BLOCK],
        &[first.offset as usize, four + 4 * BLOCK],
    ];
    for unreadable in ends {
        disk.heal();
        unreadable.iter().for_each(|&offset| disk.make_unreadable(file, offset));
        let error = Bench::on(&disk).err().expect("the end is not certain");
        let octets = unreadable.len() * BLOCK;
        assert!(
            matches!(error, RecoveryError::Unreadable { file: no, part: UnreadPart::End { octets: lost, .. } }
                if no == file.0 && lost == octets),
            "{unreadable:?}: {error}"
        );
        assert_eq!((everything(&disk), disk.quarantined()), (before.clone(), vec![]));
    }
    disk.heal();
    let bench = bench.reborn(true);
    assert_eq!(bench.kept.ids(), [1, 2, 3, 4]);
    assert_eq!((bench.report.damage_count, bench.report.cut), (0, None));
}

#[test]
fn a_header_that_cannot_be_read_refuses_the_start() {
    for is_newest in [true, false] {
        let mut bench = Bench::new();
        let places: Vec<_> = (1..=20).map(|id| bench.accept(&Mail::new(id, 1, 10_000))).collect();
        let file = head_file(&bench, places[if is_newest { 19 } else { 0 }]);
        let disk = bench.disk.clone();
        let before = everything(&disk);
        disk.make_unreadable(file, 0);
        let error = Bench::on(&disk).err().expect("not to start without it");
        let part = UnreadPart::Header;
        assert!(
            matches!(error, RecoveryError::Unreadable { file: no, part: unread }
                if no == file.0 && unread == part),
            "{error}"
        );
        assert_eq!((everything(&disk), disk.quarantined()), (before, vec![]));
        // A moment's failure is not even noticed.
        disk.fail_reads(file, 0, 3);
        let bench = bench.reborn(true);
        assert_eq!(bench.kept.ids(), (1..=20).collect::<Vec<_>>());
        assert_eq!(bench.report.damage, []);
    }
}

/// A batch that claims too much of everything is told from a sound one.
#[test]
fn a_forged_batch_header_gets_nowhere() {
    let mut bench = Bench::new();
    let place = bench.accept(&Mail::new(1, 1, 100));
    let file = head_file(&bench, place);
    let whole = bench.disk.contents(file);
    let generation = SegmentHeader::decode(&whole).unwrap().generation;
    for payload_length in [0, 64, 1 << 20, u32::MAX - 63] {
        let forged = BatchHeader {
            segment: place.segment,
            generation,
            sequence: 2,
            durable_through: 1,
            payload_length,
            record_count: 1,
            digest: 0,
        };
        let mut block = AlignedBuf::new(BLOCK);
        forged.encode(&mut block);
        let disk = SimDisk::new(1);
        disk.plant(file, whole.clone());
        disk.write(file, 2 * BLOCK as u32, &[io::IoSlice::new(&block)], Sync::Data).unwrap();
        let found = Bench::on(&disk).unwrap();
        assert_eq!(found.kept.ids(), [1], "{payload_length}");
        assert_eq!(found.report.cut, Some(2..3));
    }
}

#[test]
fn a_segment_without_a_file_is_told_of_once() {
    let mut bench = Bench::new();
    let places: Vec<_> = (1..=20).map(|id| bench.accept(&Mail::new(id, 1, 10_000))).collect();
    let (file, segment) = (head_file(&bench, places[0]), places[0].segment);
    assert!(places[19].segment.0 >= segment.0 + 2, "several segments");
    Disk::remove(&bench.disk, file).unwrap();
    let bench = bench.reborn(true);
    let gone = places.iter().filter(|place| place.segment == segment).count() as u64;
    assert_eq!(bench.kept.ids(), (gone + 1..=20).collect::<Vec<_>>());
    assert_eq!(bench.report.damage, [Damage::Missing { segments: vec![segment] }]);
    assert_eq!(bench.reborn(true).report.damage_count, 0, "nobody needs to hear it twice");
}

#[test]
fn what_was_freed_removed_or_set_aside_is_not_missing() {
    // Enough that spares beyond the most are removed, at every moment of which the power may go.
    for lives in 1..60 {
        let mut bench = Bench::new();
        let mut waiting = Vec::new();
        for id in 1..=40 {
            waiting.push((id, bench.accept(&Mail::new(id, 1, 10_000))));
        }
        for (id, place) in waiting.drain(..).take(lives) {
            bench.done(id, place);
        }
        let bench = bench.reborn(true);
        assert_eq!(bench.report.damage, [], "after {lives}");
        assert_eq!(bench.reborn(false).report.damage, [], "after {lives}");
    }
}

#[test]
fn a_file_of_another_spool_is_refused() {
    let mut bench = Bench::new();
    let places: Vec<_> = (1..=20).map(|id| bench.accept(&Mail::new(id, 1, 10_000))).collect();
    // Something was done to that disk before, from which other random numbers follow.
    let other = SimDisk::new(2);
    other.create(FileNo(50), OPTIONS.segment_bytes, &[0; BLOCK]).unwrap();
    other.remove(FileNo(50)).unwrap();
    let mut stranger = Bench::on(&other).unwrap();
    let strange: Vec<_> = (1..=40).map(|id| stranger.accept(&Mail::new(id, 1, 10_000))).collect();
    let from = head_file(&stranger, strange[39]);
    assert!(strange[39].segment > places[19].segment, "no number is there twice");
    bench.disk.plant(FileNo(99), stranger.disk.contents(from));
    let (disk, before) = (bench.disk.clone(), bench.disk.files().unwrap());
    let refused = Bench::on(&disk).err().expect("not to be mixed");
    assert!(matches!(refused, RecoveryError::OtherSpool { file: 99 }), "{refused}");
    assert_eq!(disk.files().unwrap(), before);
    disk.quarantine(FileNo(99)).unwrap();
    let bench = Bench::on(&disk).unwrap();
    assert_eq!(bench.kept.ids().len(), 20);
    assert_eq!(bench.report.damage, []);
}

#[test]
fn a_file_that_was_cut_is_told_of_and_serves_what_is_left() {
    let mut bench = Bench::new();
    let places: Vec<_> = (1..=4).map(|id| bench.accept(&Mail::new(id, 1, 3000))).collect();
    let (file, segment) = (head_file(&bench, places[0]), places[0].segment);
    let mut octets = bench.disk.contents(file);
    octets.truncate(places[2].offset as usize - BATCH_HEADER);
    let missing = OPTIONS.segment_bytes as u64 - octets.len() as u64;
    bench.disk.plant(file, octets);
    let bench = bench.reborn(true);
    assert_eq!(bench.kept.ids(), [1, 2]);
    assert_eq!(bench.report.damage[0], Damage::Short { segment, file, octets: missing });
}

#[test]
fn a_sealed_segment_goes_by_its_index_also_where_it_is_the_newest() {
    let mut bench = Bench::new();
    let mut places = Vec::new();
    while places.last().is_none_or(|place: &RecordPlace| place.segment == places[0].segment) {
        let id = places.len() as u64 + 1;
        places.push(bench.accept(&Mail::new(id, 1, 10_000)));
    }
    let last = places.len() - 2;
    let (file, newest) = (head_file(&bench, places[last]), head_file(&bench, places[last + 1]));
    // As if the crash had come before the next segment was written, and the last batch is hurt:
    // nothing tore it.
    bench.disk.remove(newest).unwrap();
    bench.disk.flip_bit(file, places[last].offset as usize + 5000, 1);
    let all: Vec<u64> = (1..=last as u64 + 1).collect();
    let mut bench = bench.reborn(true);
    for _ in 0..2 {
        assert_eq!(bench.kept.ids(), all);
        assert_eq!(bench.report.cut, None);
        bench = bench.reborn(false);
    }
}
