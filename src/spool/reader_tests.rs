use std::sync::Mutex;
use std::sync::mpsc;

use super::*;
use crate::spool::committer::random_generation;
use crate::spool::disk::{Disk, Sync};
use crate::spool::test_kit::{Kept, Mail};
use crate::spool::{Appender, AppenderOptions, Done, Kind, Log, LogOptions, Recipients, recover};

struct Sink(Mutex<mpsc::Sender<ReadAnswer>>);

impl ReadSink for Sink {
    fn answer(&self, _: usize, answer: ReadAnswer) {
        self.0.lock().unwrap().send(answer).unwrap();
    }
    fn wake(&self, _: usize) {}
}

/// A log of these messages on a real directory, and a reader of it.
struct Bench {
    _place: tempfile::TempDir,
    disk: Arc<FileDisk>,
    log: Log<FileDisk>,
    places: Vec<RecordPlace>,
    reader: Reader,
    answers: mpsc::Receiver<ReadAnswer>,
}

fn bench(octets: &[usize], buffers: usize) -> Bench {
    let options = LogOptions { segment_bytes: 8 << 20, ..LogOptions::default() };
    bench_with(options, octets, buffers)
}

fn bench_with(options: LogOptions, octets: &[usize], buffers: usize) -> Bench {
    let place = tempfile::tempdir().unwrap();
    let disk = Arc::new(FileDisk::open(place.path()).unwrap());
    let mut random = random_generation;
    let (mut log, _) =
        recover(disk.clone(), options, Arc::default(), &mut random, &mut Kept::default()).unwrap();
    let mut appender = Appender::new(AppenderOptions::new(0));
    let now = std::time::Instant::now();
    let mut places = Vec::new();
    for (id, &octets) in octets.iter().enumerate() {
        Mail::new(id as u64, 1, octets).append(&mut appender, now).unwrap();
        for completion in log.commit(appender.seal(now).into_iter().collect()) {
            let settled = appender.completed(completion, now);
            places.extend(settled.records.iter().map(|record| record.result.unwrap()));
        }
    }
    let (sender, answers) = mpsc::channel();
    let sink = Arc::new(Sink(Mutex::new(sender)));
    let (table, stats) = (log.table().clone(), log.stats().clone());
    let reader = Reader::start(disk.clone(), table, stats, sink, buffers).unwrap();
    Bench { _place: place, disk, log, places, reader, answers }
}

impl Bench {
    fn ask(&self, token: u64, id: u64, place: RecordPlace) {
        self.ask_for(Part::Message, token, id, place);
    }

    fn ask_for(&self, part: Part, token: u64, id: u64, place: RecordPlace) {
        let (id, octets_max) = (MessageId(id), RECORD_BYTES_MAX);
        let request = ReadRequest { worker: 0, token, id, part, place, octets_max };
        self.reader.handle().request(request);
    }

    fn answer(&self) -> ReadAnswer {
        self.answers.recv_timeout(Duration::from_secs(10)).unwrap()
    }
}

#[test]
fn records_come_back_whole_whatever_their_length() {
    let lengths = [0, 1, 4000, 10_000, 32_000, 500_000, 900_000];
    let bench = bench(&lengths, 2);
    for round in 0..20 {
        for (id, &place) in bench.places.iter().enumerate() {
            bench.ask(round, id as u64, place);
        }
    }
    for _ in 0..20 * lengths.len() {
        let record = bench.answer().result.unwrap();
        let view = record.view();
        assert_eq!(view.kind(), Kind::Message);
        let id = view.id().0;
        assert_eq!(view.body(), Mail::new(id, 1, lengths[id as usize]).body);
    }
    bench.reader.stop();
}

/// Each move makes the place of a moment ago one that is retired.
#[test]
fn a_message_that_moves_all_the_time_is_found() {
    let bench = bench(&[100], 4);
    let (place, table) = (bench.places[0], bench.log.table().clone());
    let file = table.file(place.segment).unwrap();
    let is_over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for no in 1000.. {
                let segment = SegmentNo(no);
                table.insert(segment, file);
                table.set_moved(MessageId(0), RecordPlace { segment, ..place });
                table.remove_unread(SegmentNo(no - 1));
                if is_over.load(Ordering::Relaxed) {
                    return;
                }
            }
        });
        let failed = (0..5000).find_map(|token| {
            bench.ask(token, 0, place);
            bench.answer().result.err()
        });
        is_over.store(true, Ordering::Relaxed);
        assert!(failed.is_none(), "{failed:?}");
    });
    bench.reader.stop();
}

#[test]
fn wrong_places_ids_and_rot_are_told() {
    let bench = bench(&[100, 100, 100], 4);
    let place = bench.places[0];
    bench.ask(1, 7, place);
    assert!(matches!(bench.answer().result, Err(ReadError::WrongMessage(id)) if id.0 == 0));
    bench.ask(2, 0, RecordPlace { segment: SegmentNo(99), ..place });
    assert!(matches!(bench.answer().result, Err(ReadError::Retired(SegmentNo(99)))));
    for (offset, length) in [
        (place.offset + 64, 64),
        (place.offset, 64),
        (u32::MAX, u32::MAX),
        (0, 0),
        (u32::MAX - 63, 64),
    ] {
        bench.ask(3, 0, RecordPlace { offset, length, ..place });
        let result = bench.answer().result;
        assert!(result.is_err(), "{offset} {length}");
    }
    let file = bench.log.table().file(place.segment).unwrap();
    let start = place.offset / BLOCK as u32 * BLOCK as u32;
    let mut block = crate::spool::direct::AlignedBuf::new(BLOCK);
    bench.disk.read(file, start, &mut block).unwrap();
    block[(place.offset - start + place.length) as usize - 70] ^= 1;
    bench.disk.write(file, start, &[io::IoSlice::new(&block)], Sync::Data).unwrap();
    bench.ask(4, 0, place);
    assert!(matches!(bench.answer().result, Err(ReadError::Damaged(_))));
    // Who sent it to whom stands before the body, and is sound.
    bench.ask_for(Part::Envelope, 5, 0, place);
    assert_eq!(bench.answer().result.unwrap().view().id(), MessageId(0));
    block[(place.offset - start) as usize + 70] ^= 1;
    bench.disk.write(file, start, &[io::IoSlice::new(&block)], Sync::Data).unwrap();
    bench.ask_for(Part::Envelope, 6, 0, place);
    assert!(matches!(bench.answer().result, Err(ReadError::Damaged(_))));
    bench.reader.stop();
}

#[test]
fn a_longer_record_than_was_asked_for_is_refused() {
    let bench = bench(&[10_000], 1);
    let place = bench.places[0];
    let request = ReadRequest {
        worker: 0,
        token: 5,
        id: MessageId(0),
        part: Part::Message,
        place,
        octets_max: 9_999,
    };
    bench.reader.handle().request(request);
    let answer = bench.answer();
    assert_eq!((answer.worker, answer.token), (0, 5));
    assert!(matches!(answer.result, Err(ReadError::TooLong(_))));
    bench.reader.stop();
}

#[test]
fn a_message_that_was_moved_is_read_where_it_stands() {
    let options =
        LogOptions { segment_bytes: 256 * 1024, compact_after_ticks: 0, ..LogOptions::default() };
    let mut bench = bench_with(options, &[20_000; 40], 2);
    let mut appender = Appender::new(AppenderOptions::new(0));
    let now = std::time::Instant::now();
    let old = bench.places[0];
    for (id, place) in bench.places.iter().enumerate().skip(1) {
        let (id, segment) = (MessageId(id as u64), place.segment);
        let done = Done { id, segment, recipients: Recipients::All, last: true };
        appender.append_done(&done, now);
    }
    for completion in bench.log.commit(appender.flush(now).into_iter().collect()) {
        appender.completed(completion, now);
    }
    for _ in 0..10 {
        bench.log.tick();
        while let Some(chore) = bench.log.poll_chore() {
            bench.log.chore_done(chore.perform(&*bench.disk, &mut random_generation));
        }
    }
    assert!(bench.log.table().file(old.segment).is_none(), "it has moved");
    bench.ask(1, 0, old);
    let record = bench.answer().result.unwrap();
    assert_eq!(record.view().body(), Mail::new(0, 1, 20_000).body);
}

/// Chunks stay with slow next hops; the messages of all the others must not wait for them.
#[test]
fn chunks_leave_buffers_to_messages() {
    let bench = bench(&[1000; 8], 4);
    let ask = |part, token: u64| {
        let place = bench.places[token as usize];
        let (id, octets_max) = (MessageId(token), RECORD_BYTES_MAX);
        bench.reader.handle().request(ReadRequest {
            worker: 0,
            token,
            id,
            part,
            place,
            octets_max,
        });
    };
    (0..6).for_each(|token| ask(Part::Chunk, token));
    let mut held: Vec<ReadAnswer> = (0..3).map(|_| bench.answer()).collect();
    ask(Part::Message, 7);
    let message = bench.answer();
    assert_eq!(message.token, 7, "three of four buffers are out, and the last is for messages");
    drop(message);
    for _ in 0..3 {
        held.remove(0);
        held.push(bench.answer());
    }
    let tokens: Vec<u64> = held.iter().map(|answer| answer.token).collect();
    assert_eq!(tokens, [3, 4, 5]);
}

#[test]
fn without_a_ring_reads_go_one_by_one() {
    let bench = bench(&[100, 20_000], 1);
    let (sender, answers) = mpsc::channel();
    let inbox = Arc::new(Inbox {
        requests: SegQueue::new(),
        event: Arc::new(eventfd(0, EventfdFlags::NONBLOCK).unwrap()),
        doorbell: Doorbell::default(),
        is_stopping: AtomicBool::new(false),
        is_short: AtomicBool::new(false),
    });
    let reader = Loop {
        disk: bench.disk.clone(),
        table: bench.log.table().clone(),
        stats: bench.log.stats().clone(),
        sink: Arc::new(Sink(Mutex::new(sender))),
        inbox: inbox.clone(),
        pool: BufferPool::new(BUFFER_OCTETS, 1),
        kept_for_messages: 0,
        waiting: Waiting::default(),
        flying: Vec::new(),
        woken: Vec::new(),
    };
    let thread = thread::spawn(move || reader.run(None));
    let handle = ReaderHandle { inbox: inbox.clone(), table: bench.log.table().clone() };
    for _ in 0..3 {
        for (id, &place) in bench.places.iter().enumerate() {
            let id = MessageId(id as u64);
            let octets_max = RECORD_BYTES_MAX;
            handle.request(ReadRequest {
                worker: 0,
                token: 0,
                id,
                part: Part::Chunk,
                place,
                octets_max,
            });
            assert!(answers.recv_timeout(Duration::from_secs(10)).unwrap().result.is_ok());
            thread::sleep(Duration::from_millis(2));
        }
    }
    inbox.is_stopping.store(true, Ordering::SeqCst);
    inbox.ring();
    thread.join().unwrap();
    bench.reader.stop();
}
