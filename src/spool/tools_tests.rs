use std::sync::Arc;
use std::time::{Duration, Instant};

use super::*;
use crate::message::{BodyFlags, BodySummary};
use crate::spool::committer::random_generation;
use crate::spool::format::record::RECORD_HEADER;
use crate::spool::test_kit::{Kept, Mail};
use crate::spool::{
    Appender, AppenderOptions, ChunkPlace, Done, FileDisk, Log, LogOptions, NewBody, Recipients,
    recover,
};

/// A stopped spool of a few small segments.
struct Bench {
    place: tempfile::TempDir,
    log: Option<Log<FileDisk>>,
    appender: Appender,
}

const SEGMENT: u32 = 2 << 20;

impl Bench {
    fn new() -> Bench {
        let place = tempfile::tempdir().unwrap();
        let disk = Arc::new(FileDisk::open(&place.path().join("spool")).unwrap());
        let options = LogOptions { segment_bytes: SEGMENT, ..LogOptions::default() };
        let mut random = random_generation;
        let (log, _) =
            recover(disk, options, Arc::default(), &mut random, &mut Kept::default()).unwrap();
        let mut bench =
            Bench { place, log: Some(log), appender: Appender::new(AppenderOptions::new(0)) };
        bench.commit();
        bench
    }

    fn spool(&self) -> PathBuf {
        self.place.path().join("spool")
    }

    fn commit(&mut self) -> Vec<RecordPlace> {
        let log = self.log.as_mut().expect("not stopped");
        let now = Instant::now();
        let mut places = Vec::new();
        loop {
            let batch = self.appender.flush(now);
            let is_end = batch.is_none();
            let mut done = log.commit(batch.into_iter().collect());
            while let Some(chore) = log.poll_chore() {
                let disk = log.disk().clone();
                done.extend(log.chore_done(chore.perform(&*disk, &mut random_generation)));
            }
            for completion in done {
                let settled = self.appender.completed(completion, now);
                places.extend(settled.records.iter().map(|record| record.result.unwrap()));
            }
            if is_end {
                return places;
            }
        }
    }

    fn accept(&mut self, mail: &Mail) -> RecordPlace {
        mail.append(&mut self.appender, Instant::now()).unwrap();
        self.commit()[0]
    }

    /// Takes it with its body in chunks.
    fn accept_in_chunks(&mut self, mail: &Mail, summary: &BodySummary, parts: &[&[u8]]) {
        let mut chunks = Vec::new();
        for (index, part) in parts.iter().enumerate() {
            let mut chunk = self.appender.chunk_buffer().unwrap();
            chunk.spare()[..part.len()].copy_from_slice(part);
            chunk.advance(part.len());
            let ticket = self.appender.append_chunk(chunk, mail.id, index as u32);
            let place = self.commit()[0];
            chunks.push(ChunkPlace { place, octets: ticket.octets, crc32c: ticket.crc32c });
        }
        mail.with(NewBody::Chunks(&chunks), |message| {
            let message = crate::spool::NewMessage { summary, ..*message };
            self.appender.append_message(&message, Instant::now()).unwrap();
        });
        self.commit();
    }

    fn done(&mut self, id: u64, place: RecordPlace) {
        let (id, segment) = (MessageId(id), place.segment);
        let done = Done { id, segment, recipients: Recipients::All, last: true };
        self.appender.append_done(&done, Instant::now());
        self.commit();
    }

    fn stop(&mut self) {
        self.log = None;
    }
}

fn stuffed(id: u64, text: &str) -> (Mail, BodySummary) {
    let mut mail = Mail::new(id, 2, 0);
    mail.body = text.into();
    let mut summary = mail.summary();
    summary.flags.insert(BodyFlags::LEADING_DOTS);
    (mail, summary)
}

#[test]
fn a_running_spool_is_left_alone_and_a_sound_one_is_sound() {
    let mut bench = Bench::new();
    let places: Vec<_> = (0..300).map(|id| bench.accept(&Mail::new(id, 1, 20_000))).collect();
    bench.done(7, places[7]);
    let error = verify(&bench.spool(), &mut Vec::new()).unwrap_err();
    assert!(matches!(error, ToolError::InUse(_)));
    bench.stop();
    let mut out = Vec::new();
    let verdict = verify(&bench.spool(), &mut out).unwrap();
    let out = String::from_utf8(out).unwrap();
    assert_eq!((verdict.damage, verdict.live_messages, verdict.records), (0, 299, 301), "{out}");
    assert!(verdict.segments >= 3, "{out}");
    let mut lines = Vec::new();
    dump(&bench.spool(), Some(MessageId(7)), Form::Text, &mut lines).unwrap();
    let lines = String::from_utf8(lines).unwrap();
    assert!(lines.contains("MESSAGE 20000 octets, 1 recipients, promised as fsync"), "{lines}");
    assert!(lines.contains("DONE all recipients, the last (of segment 1)"), "{lines}");
    assert!(!lines.contains(&MessageId(8).to_string()), "{lines}");
}

#[test]
fn rot_is_found_wherever_it_is() {
    let mut bench = Bench::new();
    let places: Vec<_> = (0..150).map(|id| bench.accept(&Mail::new(id, 1, 20_000))).collect();
    let file = bench.log.as_ref().unwrap().table().file(places[3].segment).unwrap();
    bench.stop();
    let path = bench.spool().join(format!("{:08x}.seg", file.0));
    let whole = fs::read(&path).unwrap();
    let body = places[3].offset as usize + 5000;
    let footer_index = SEGMENT as usize - 2 * BLOCK + 100;
    let id = MessageId(3);
    let octets = format!("message {id} from <> to <r0@example.org>: DAMAGED: a MESSAGE in ");
    for (at, expected, told) in
        [(body, 1, octets.clone()), (body - 5000 + 60, 1, octets), (footer_index, 0, String::new())]
    {
        let mut hurt = whole.clone();
        hurt[at] ^= 16;
        fs::write(&path, &hurt).unwrap();
        let mut out = Vec::new();
        let verdict = verify(&bench.spool(), &mut out).unwrap();
        let out = String::from_utf8(out).unwrap();
        assert_eq!(verdict.damage, expected, "octet {at}: {out}");
        assert!(out.contains(&told), "octet {at}: {out}");
        // What the index knows stays in the queue.
        assert_eq!(verdict.live_messages, 150, "octet {at}: {out}");
    }
    let mut hurt = whole.clone();
    (hurt[9], hurt[2048 + 30]) = (7, 7);
    fs::write(&path, &hurt).unwrap();
    // The header, and that no file says to be the segment.
    assert_eq!(verify(&bench.spool(), &mut Vec::new()).unwrap().damage, 2);
}

#[test]
fn a_done_that_is_hurt_says_that_its_message_may_go_out_again() {
    let mut bench = Bench::new();
    let place = bench.accept(&Mail::new(1, 1, 100));
    bench.done(1, place);
    let file = bench.log.as_ref().unwrap().table().file(place.segment).unwrap();
    // What was durable before these is no torn end.
    bench.accept(&Mail::new(2, 1, 100));
    bench.accept(&Mail::new(3, 1, 100));
    bench.stop();
    let spool = bench.spool();
    let mut lines = Vec::new();
    dump(&spool, Some(MessageId(1)), Form::Json, &mut lines).unwrap();
    let lines = String::from_utf8(lines).unwrap();
    let done: serde_json::Value = serde_json::from_str(lines.lines().last().unwrap()).unwrap();
    assert_eq!(done["kind"], "done");
    let path = spool.join(format!("{:08x}.seg", file.0));
    let mut octets = fs::read(&path).unwrap();
    octets[done["offset"].as_u64().unwrap() as usize + RECORD_HEADER] ^= 1;
    fs::write(&path, octets).unwrap();
    let mut out = Vec::new();
    let verdict = verify(&spool, &mut out).unwrap();
    let out = String::from_utf8(out).unwrap();
    assert_eq!((verdict.damage, verdict.live_messages), (1, 3), "{out}");
    let told = format!("message {}: DAMAGED: a DONE in ", MessageId(1));
    assert!(out.contains(&told) && out.contains("it may be sent to them again"), "{out}");
}

/// A disk that writes to the wrong place can put a sound batch over another one.  Recovery goes by
/// the index, and so must who looks.
#[test]
fn a_batch_over_another_one_hides_nothing_that_the_index_knows() {
    let mut bench = Bench::new();
    let places: Vec<_> = (0..150).map(|id| bench.accept(&Mail::new(id, 1, 20_000))).collect();
    bench.done(9, places[9]);
    let [lost, moved] = [places[3], places[8]];
    assert_eq!((lost.segment, lost.length), (moved.segment, moved.length));
    let file = bench.log.as_ref().unwrap().table().file(lost.segment).unwrap();
    bench.stop();
    let path = bench.spool().join(format!("{:08x}.seg", file.0));
    let mut octets = fs::read(&path).unwrap();
    let start = |place: RecordPlace| place.offset as usize / BLOCK * BLOCK;
    let batch = round_to_block(lost.length as usize);
    octets.copy_within(start(moved)..start(moved) + batch, start(lost));
    fs::write(&path, octets).unwrap();
    let mut out = Vec::new();
    let verdict = verify(&bench.spool(), &mut out).unwrap();
    let out = String::from_utf8(out).unwrap();
    assert_eq!(verdict.live_messages, 149, "{out}");
    let told =
        |id: u64| format!("message {} from <> to <r0@example.org>: DAMAGED: ", MessageId(id));
    for id in 0..150 {
        assert_eq!(out.contains(&told(id)), id == 3, "message {id}: {out}");
    }
}

/// A crash may come after the header was written and before the file has its new name.
#[test]
fn a_segment_whose_header_says_quarantined_is_aside_under_either_name() {
    let mut bench = Bench::new();
    let places: Vec<_> = (0..300).map(|id| bench.accept(&Mail::new(id, 1, 20_000))).collect();
    let dead = places[0].segment;
    let file = bench.log.as_ref().unwrap().table().file(dead).unwrap();
    bench.stop();
    let spool = bench.spool();
    let path = spool.join(format!("{:08x}.seg", file.0));
    let whole = fs::read(&path).unwrap();
    let header = SegmentHeader::decode(&whole).unwrap();
    let revision = header.revision + 1;
    // What stands there can be read, or, as [`Chore::Retire`] leaves it, belongs to another life.
    let kept = SegmentHeader { state: SegmentState::Quarantined, revision, ..header };
    let retired = SegmentHeader { generation: 7, predecessor: SegmentNo(0), ..kept };
    let retired = SegmentHeader { first_sequence: 0, predecessor_last: 0, ..retired };
    let live = places.iter().filter(|place| place.segment != dead).count() as u64;
    for header in [kept, retired] {
        let mut octets = whole.clone();
        header.encode(&mut octets);
        fs::write(&path, octets).unwrap();
        let mut out = Vec::new();
        let verdict = verify(&spool, &mut out).unwrap();
        let out = String::from_utf8(out).unwrap();
        assert_eq!((verdict.damage, verdict.live_messages), (0, live), "{out}");
        let directory = tempfile::tempdir().unwrap();
        let verdict = export(&spool, Export::All, directory.path(), &mut io::sink()).unwrap();
        assert_eq!((verdict.damage, verdict.live_messages), (0, live));
        assert_eq!(fs::read_dir(directory.path()).unwrap().count() as u64, live);
        let mut out = Vec::new();
        assert_eq!(repair(&spool, Repair::DryRun, &mut out).unwrap().damage, 0);
        let out = String::from_utf8(out).unwrap();
        assert!(out.contains("would be set aside: it is damaged and dead"), "{out}");
    }
    // A start looks at the size first, and refuses it.
    let mut octets = whole.clone();
    SegmentHeader { segment_bytes: 2 * SEGMENT, ..retired }.encode(&mut octets);
    fs::write(&path, octets).unwrap();
    assert_eq!(repair(&spool, Repair::DryRun, &mut io::sink()).unwrap().damage, 1);
}

/// Reading address 0 of a process gives EIO, as a bad sector does.
#[test]
fn a_file_that_cannot_be_read_is_told_and_the_others_are_looked_at() {
    let mut bench = Bench::new();
    bench.accept(&Mail::new(1, 1, 100));
    bench.stop();
    std::os::unix::fs::symlink("/proc/self/mem", bench.spool().join("00000063.seg")).unwrap();
    let mut out = Vec::new();
    let verdict = verify(&bench.spool(), &mut out).unwrap();
    let out = String::from_utf8(out).unwrap();
    assert!(out.contains("00000063.seg: DAMAGED header: the header, which the disk"), "{out}");
    assert_eq!((verdict.damage, verdict.live_messages), (1, 1), "{out}");
}

#[test]
fn messages_are_exported_as_they_were_sent() {
    let mut bench = Bench::new();
    let text = "..dot\r\nplain\r\n...three\r\n.. \r\nno.dot\r\n";
    let (mail, summary) = stuffed(1, text);
    mail.with(NewBody::Inline(text.as_bytes()), |message| {
        let message = crate::spool::NewMessage { summary: &summary, ..*message };
        bench.appender.append_message(&message, Instant::now()).unwrap();
    });
    bench.commit();
    // The same in two chunks, torn apart before a dot.
    let (mail, summary) = stuffed(2, text);
    let parts = [&text[..7], &text[7..]].map(str::as_bytes);
    bench.accept_in_chunks(&mail, &summary, &parts);
    let gone = bench.accept(&Mail::new(3, 1, 10));
    bench.done(3, gone);
    bench.stop();
    let directory = bench.place.path().join("out");
    fs::create_dir(&directory).unwrap();
    let mut lines = Vec::new();
    let verdict = export(&bench.spool(), Export::Live, &directory, &mut lines).unwrap();
    assert_eq!((verdict.damage, verdict.live_messages), (0, 2));
    let expected = "Received: by test\r\n.dot\r\nplain\r\n..three\r\n. \r\nno.dot\r\n";
    for id in [1, 2] {
        let file = directory.join(format!("{}.eml", MessageId(id)));
        assert_eq!(fs::read_to_string(file).unwrap(), expected, "message {id}");
    }
    let lines = String::from_utf8(lines).unwrap();
    let line: serde_json::Value = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
    assert_eq!(line["to"][1]["address"], "r1@example.org");
    assert_eq!((&line["complete"], &line["from"]), (&true.into(), &"".into()));
    assert_eq!(lines.lines().count(), 2);
}

/// One that a disk cannot read whole costs what cannot be read, and the others nothing.
#[test]
fn an_export_goes_on_behind_a_bad_sector() {
    let mut bench = Bench::new();
    for mail in [unreadable(1), Mail::new(2, 1, 6_000)] {
        bench.accept(&mail);
    }
    let in_chunks = unreadable_in_chunks(&mut bench, 3);
    // They are known by the index of their segment, which is sealed.
    for id in 4..120 {
        bench.accept(&Mail::new(id, 1, 20_000));
    }
    bench.stop();
    let directory = bench.place.path().join("out");
    fs::create_dir(&directory).unwrap();
    let survey = survey_of_a_bad_disk(&bench.spool(), Patience::default());
    let mut lines = Vec::new();
    let verdict = export_surveyed(survey, Export::Live, &directory, &mut lines).unwrap();
    assert_eq!((verdict.damage, verdict.live_messages), (3, 119), "the segment and two messages");
    let lines = String::from_utf8(lines).unwrap();
    let complete = lines.lines().map(|line| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        line["complete"].as_bool().unwrap()
    });
    let is_whole = |id: u64| ![1, 3].contains(&id);
    assert_eq!(complete.collect::<Vec<_>>(), (1..120).map(is_whole).collect::<Vec<_>>());
    let exported = |id| fs::read(directory.join(format!("{}.eml", MessageId(id)))).unwrap();
    let trace = "Received: by test\r\n".len();
    assert_eq!(exported(2).split_off(trace), Mail::new(2, 1, 6_000).body);
    for (id, whole, behind) in [(1, unreadable(1).body, 0), (3, in_chunks, 6_000)] {
        let hurt = exported(id).split_off(trace);
        assert_eq!(hurt.len(), whole.len(), "message {id}");
        let lost = hurt.iter().zip(&whole).position(|(hurt, whole)| hurt != whole).unwrap();
        assert!((3_000..BLOCK).contains(&lost), "message {id}, {lost}: more than a block is lost");
        let (hurt, sound) = hurt.split_at(whole.len() - behind);
        assert!(hurt[lost..].iter().all(|&octet| octet == 0), "message {id}");
        assert_eq!(sound, &whole[whole.len() - behind..], "message {id}");
    }
}

/// What nobody reads on costs that chunk; what comes after it can be had.
#[test]
fn an_export_goes_on_where_the_disk_is_given_up() {
    let mut bench = Bench::new();
    unreadable_in_chunks(&mut bench, 1);
    bench.accept(&Mail::new(2, 1, 100));
    bench.stop();
    let mut survey = survey_of_a_bad_disk(&bench.spool(), Patience::default());
    survey.each(&mut Verdict::default(), &mut io::sink(), |_, _, _| Ok(())).unwrap();
    let (id, place) = survey.live().next().unwrap();
    survey.reads.patience = Patience::of(Duration::from_millis(1));
    let mut file = Vec::new();
    let exported = survey.export(id, place, &mut file).expect("its second chunk can be read");
    assert_eq!((exported.damage, exported.line["complete"].as_bool()), (1, Some(false)));
    assert!(file.len() > 6_000, "{}", file.len());
}

/// Nothing in them is exported, so no patience is spent on them.
#[test]
fn an_export_does_not_read_what_is_set_aside() {
    let mut bench = Bench::new();
    bench.accept(&Mail::new(1, 1, 6_000));
    bench.stop();
    let (path, mut octets) = the_segment(&bench.spool());
    octets[SEGMENT as usize / 2..][..BAD.len()].copy_from_slice(BAD);
    fs::write(path.with_extension("seg.quarantined"), octets).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let survey = survey_of_a_bad_disk(&bench.spool(), Patience::of(Duration::from_millis(1)));
    let verdict = export_surveyed(survey, Export::All, directory.path(), &mut io::sink());
    let verdict = verdict.unwrap();
    assert_eq!((verdict.damage, verdict.segments, verdict.live_messages), (0, 1, 1));
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
}

/// A start refuses two files of one segment, whatever else says to be it.
#[test]
fn twins_are_found_beside_one_that_is_set_aside() {
    let mut bench = Bench::new();
    bench.accept(&Mail::new(1, 1, 6_000));
    bench.stop();
    let spool = bench.spool();
    let (path, octets) = the_segment(&spool);
    // By their names it stands between them.
    fs::write(path.with_extension("seg.quarantined"), &octets).unwrap();
    fs::write(spool.join("000000aa.seg"), &octets).unwrap();
    let mut out = Vec::new();
    let verdict = verify(&spool, &mut out).unwrap();
    let out = String::from_utf8(out).unwrap();
    assert_eq!(verdict.damage, 1, "{out}");
    assert!(out.contains("000000aa.seg: DAMAGED: it says to be the same segment as"), "{out}");
}

#[test]
fn a_dump_in_json_is_an_object_a_line() {
    let mut bench = Bench::new();
    let place = bench.accept(&Mail::new(7, 2, 100));
    bench.done(7, place);
    bench.accept(&Mail::new(8, 1, 100));
    bench.stop();
    let mut lines = Vec::new();
    dump(&bench.spool(), None, Form::Json, &mut lines).unwrap();
    let lines: Vec<serde_json::Value> = String::from_utf8(lines)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).expect("an object"))
        .collect();
    let kinds: Vec<_> = lines.iter().map(|line| line["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["message", "done", "message"]);
    assert_eq!(lines[1]["recipients"], "all");
    assert_eq!(lines[1]["id"], MessageId(7).to_string());
}

#[test]
fn a_repair_says_what_it_would_do_and_then_does_it() {
    let mut bench = Bench::new();
    for id in 0..300 {
        bench.accept(&Mail::new(id, 1, 20_000));
    }
    bench.stop();
    let spool = bench.spool();
    fs::write(spool.join("000000aa.seg"), vec![0; 2 * BLOCK]).unwrap();
    let mut out = Vec::new();
    assert_eq!(repair(&spool, Repair::DryRun, &mut out).unwrap().damage, 1);
    let said = String::from_utf8(out).unwrap();
    assert!(said.contains("000000aa.seg: would be set aside"), "{said}");
    assert!(spool.join("000000aa.seg").exists(), "nothing was done");
    let mut out = Vec::new();
    let verdict = repair(&spool, Repair::Quarantine, &mut out).unwrap();
    assert_eq!((verdict.damage, verdict.live_messages), (0, 300));
    assert!(!spool.join("000000aa.seg").exists());
    assert!(spool.join("000000aa.seg.quarantined").exists(), "nothing is deleted");
    let mut out = Vec::new();
    assert_eq!(repair(&spool, Repair::DryRun, &mut out).unwrap().damage, 0);
    assert!(out.is_empty(), "{}", String::from_utf8_lossy(&out));
}

/// Stands where the disk cannot read.
const BAD: &[u8] = b"A BAD SECTOR";

/// A disk that fails the reads of all blocks with [`BAD`] in them, and takes its time over it.
fn read_around_bad_sectors(file: &File, into: &mut [u8], at: u64) -> io::Result<()> {
    file.read_exact_at(into, at)?;
    if memchr::memmem::find(into, BAD).is_some() {
        std::thread::sleep(Duration::from_millis(2));
        return Err(Errno::IO.into());
    }
    Ok(())
}

fn survey_of_a_bad_disk(spool: &Path, patience: Patience) -> Survey {
    let reads = Reads { read_at: read_around_bad_sectors, patience };
    Survey::take_by(reads, spool).unwrap()
}

/// A message whose record a disk cannot read from its second block on.
fn unreadable(id: u64) -> Mail {
    let mut mail = Mail::new(id, 1, 6_000);
    mail.body[5_000..][..BAD.len()].copy_from_slice(BAD);
    mail
}

/// Takes a message in two chunks, of which a disk cannot read the first from its second block on;
/// its body.
fn unreadable_in_chunks(bench: &mut Bench, id: u64) -> Vec<u8> {
    let (mut mail, first) = (Mail::new(id, 1, 12_000), unreadable(id).body);
    mail.body[..first.len()].copy_from_slice(&first);
    bench.accept_in_chunks(&mail, &mail.summary(), &[&mail.body[..6_000], &mail.body[6_000..]]);
    mail.body
}

/// The one segment that is in use, and what its file holds.
fn the_segment(spool: &Path) -> (PathBuf, Vec<u8>) {
    let survey = Survey::take(spool).unwrap();
    let mut open = survey.files.iter().filter(|file| file.is_open(file.segment()));
    let path = spool.join(&open.next().expect("one").name);
    assert!(open.next().is_none(), "more than one");
    (path.clone(), fs::read(path).unwrap())
}

/// A bad sector in a file of 2 MiB costs ten failing reads, 20 ms, so that nine segments are too
/// many for 100 ms.
#[test]
fn all_reads_of_a_tool_share_its_patience() {
    let mut bench = Bench::new();
    for id in 0..27 {
        bench.accept(&unreadable(3 * id));
        bench.accept(&Mail::new(3 * id + 1, 1, 500_000));
        bench.accept(&Mail::new(3 * id + 2, 1, 500_000));
    }
    bench.stop();
    let look = |patience| {
        let mut survey = survey_of_a_bad_disk(&bench.spool(), patience);
        let mut verdict = Verdict::default();
        survey.each(&mut verdict, &mut io::sink(), |_, _, _| Ok(())).map(|()| verdict)
    };
    let verdict = look(Patience::default()).unwrap();
    assert!(verdict.segments >= 9 && verdict.damage >= 9, "{verdict:?}");
    let error = look(Patience::of(Duration::from_millis(100))).unwrap_err();
    let ToolError::Io { source, .. } = error else { panic!("{error}") };
    assert_eq!(source.kind(), io::ErrorKind::TimedOut);
}

/// What cannot be read at the log's end keeps a start away until the operator gives it up; what
/// was there is kept.
#[test]
fn a_repair_replaces_what_hides_the_end_by_a_copy() {
    let mut bench = Bench::new();
    for mail in [Mail::new(1, 1, 6_000), Mail::new(2, 1, 6_000), unreadable(3)] {
        bench.accept(&mail);
    }
    bench.stop();
    let spool = bench.spool();
    let contents = || -> Vec<(String, Vec<u8>)> {
        let names = std::fs::read_dir(&spool).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<String> = names.map(|name| name.into_string().unwrap()).collect();
        names.sort();
        names
            .into_iter()
            .map(|name| (name.clone(), std::fs::read(spool.join(name)).unwrap()))
            .collect()
    };
    let survey = || survey_of_a_bad_disk(&spool, Patience::default());
    let before = contents();
    let mut told = Vec::new();
    let verdict = repair::repair_surveyed(survey(), Repair::DryRun, &mut told);
    let told = String::from_utf8(told).unwrap();
    assert_eq!(verdict.unwrap().damage, 1, "{told}");
    assert!(told.contains("would be replaced by a copy"), "{told}");
    assert_eq!(contents(), before);
    let mut told = Vec::new();
    let verdict = repair::repair_surveyed(survey(), Repair::Quarantine, &mut told);
    let told = String::from_utf8(told).unwrap();
    assert_eq!(verdict.unwrap().damage, 0, "{told}");
    let (name, _) = told.split_once(": set aside as").expect("it says so");
    let hurt = &before.iter().find(|(file, _)| file == name).expect("it was there").1;
    assert_eq!(&std::fs::read(spool.join(format!("{name}.quarantined"))).unwrap(), hurt);
    let lost = memchr::memmem::find(hurt, BAD).unwrap() / BLOCK;
    let mut copy = hurt.clone();
    copy[lost * BLOCK..][..BLOCK].fill(0);
    assert_eq!(std::fs::read(spool.join(name)).unwrap(), copy);
    let disk = Arc::new(FileDisk::open(&spool).unwrap());
    let options = LogOptions { segment_bytes: SEGMENT, ..LogOptions::default() };
    let mut kept = Kept::default();
    recover(disk, options, Arc::default(), &mut random_generation, &mut kept).unwrap();
    assert_eq!(kept.ids(), [1, 2]);
}
