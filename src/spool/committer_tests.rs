use std::sync::Mutex;
use std::sync::mpsc;

use super::*;
use crate::message::MessageId;
use crate::spool::sim_disk::SimDisk;
use crate::spool::test_kit::{Kept, Mail, OPTIONS, appender};
use crate::spool::{
    Appender, AppenderOptions, Done, FileDisk, LogOptions, Recipients, RecordPlace, SettledRecord,
    recover,
};

/// Takes completions back to the test's thread.
struct Sink {
    completions: Mutex<mpsc::Sender<Completion>>,
    wakes: Mutex<Vec<usize>>,
}

impl CompletionSink for Sink {
    fn complete(&self, _: usize, completion: Completion) {
        self.completions.lock().unwrap().send(completion).unwrap();
    }
    fn wake(&self, worker: usize) {
        self.wakes.lock().unwrap().push(worker);
    }
}

fn start<D: Disk>(
    disk: Arc<D>,
    options: LogOptions,
) -> (Committer, mpsc::Receiver<Completion>, Kept, Arc<Sink>) {
    let mut kept = Kept::default();
    let (log, _) =
        recover(disk, options, Arc::default(), &mut random_generation, &mut kept).unwrap();
    let (sender, receiver) = mpsc::channel();
    let sink = Arc::new(Sink { completions: Mutex::new(sender), wakes: Mutex::default() });
    (Committer::start(log, sink.clone()).unwrap(), receiver, kept, sink)
}

/// Runs a worker until everything it appended is in the log.
fn drain(
    appender: &mut Appender,
    handle: &CommitterHandle,
    completions: &mpsc::Receiver<Completion>,
) -> Vec<SettledRecord> {
    let mut settled = Vec::new();
    loop {
        while let Some(batch) = appender.flush(Instant::now()) {
            handle.submit(batch);
        }
        if appender.is_idle() {
            return settled;
        }
        let completion = completions.recv_timeout(Duration::from_secs(10)).unwrap();
        settled.extend(appender.completed(completion, Instant::now()).records);
    }
}

#[test]
fn what_is_submitted_is_committed_rolled_retired_and_found_again() {
    let disk = SimDisk::new(5);
    let (committer, completions, _, sink) = start(Arc::new(disk.clone()), OPTIONS);
    let handle = committer.handle();
    let mut appender = appender();
    let mut places: Vec<(u64, RecordPlace)> = Vec::new();
    for round in 0..60 {
        for id in round * 4..round * 4 + 4 {
            Mail::new(id, 1, 3000).append(&mut appender, Instant::now()).unwrap();
        }
        // All but the newest are done, so that segments can be used again.
        for (id, place) in places.drain(..) {
            let (id, segment) = (MessageId(id), place.segment);
            let done = Done { id, segment, recipients: Recipients::All, last: true };
            appender.append_done(&done, Instant::now());
        }
        let settled = drain(&mut appender, &handle, &completions);
        let new = settled
            .iter()
            .map(|settled| settled.result.unwrap())
            .filter(|place| place.length > 1000);
        places = (round * 4..).zip(new).collect();
        assert_eq!(places.len(), 4);
    }
    committer.stop(Duration::from_secs(5));
    assert!(!sink.wakes.lock().unwrap().is_empty());
    disk.restart();
    let (committer, _, kept, _) = start(Arc::new(disk), OPTIONS);
    assert_eq!(kept.ids(), [236, 237, 238, 239]);
    committer.stop(Duration::from_secs(5));
}

#[test]
fn the_real_disk_does_the_same() {
    let place = tempfile::tempdir().unwrap();
    let options = LogOptions { segment_bytes: 1 << 20, ..LogOptions::default() };
    let open = || Arc::new(FileDisk::open(place.path()).unwrap());
    let (committer, completions, _, _) = start(open(), options);
    let mut appender = Appender::new(AppenderOptions::new(3));
    for id in 0..300 {
        Mail::new(id, 1, 10_000).append(&mut appender, Instant::now()).unwrap();
        if id % 10 == 9 {
            let settled = drain(&mut appender, &committer.handle(), &completions);
            assert!(settled.iter().all(|settled| settled.result.is_ok()));
        }
    }
    committer.stop(Duration::from_secs(5));
    let (committer, _, kept, _) = start(open(), options);
    assert_eq!(kept.ids(), (0..300).collect::<Vec<_>>());
    committer.stop(Duration::from_secs(5));
}

/// With the real threads, ticks and files: one message waits while others come and go.
#[test]
fn the_real_disk_is_compacted_under_load() {
    let place = tempfile::tempdir().unwrap();
    let options =
        LogOptions { segment_bytes: 1 << 20, compact_after_ticks: 1, ..LogOptions::default() };
    let open = || Arc::new(FileDisk::open(place.path()).unwrap());
    let (committer, completions, _, _) = start(open(), options);
    let handle = committer.handle();
    let mut appender = Appender::new(AppenderOptions::new(0));
    Mail::new(0, 1, 10_000).append(&mut appender, Instant::now()).unwrap();
    drain(&mut appender, &handle, &completions);
    let end = Instant::now() + Duration::from_secs(6);
    let (mut id, mut files_most) = (1, 0);
    while Instant::now() < end {
        let first = id;
        for _ in 0..10 {
            Mail::new(id, 1, 10_000).append(&mut appender, Instant::now()).unwrap();
            id += 1;
        }
        let settled = drain(&mut appender, &handle, &completions);
        let places = settled.iter().map(|settled| settled.result.unwrap());
        for (id, place) in (first..).zip(places.filter(|place| place.length > 1000)) {
            let (id, segment) = (MessageId(id), place.segment);
            let done = Done { id, segment, recipients: Recipients::All, last: true };
            appender.append_done(&done, Instant::now());
        }
        files_most = files_most.max(std::fs::read_dir(place.path()).unwrap().count());
        // Not more than some 4 MB a second, so that 6 MB of segments are what is young.
        thread::sleep(Duration::from_millis(25));
    }
    drain(&mut appender, &handle, &completions);
    committer.stop(Duration::from_secs(5));
    let written = id as usize / 100;
    println!("{files_most} files of 1 MiB for {written} MB");
    // Spares and the lock among them, and what one slow second writes.
    assert!(files_most < 12.max(written), "{files_most} files of 1 MiB for {written} MB");
    let (committer, _, kept, _) = start(open(), options);
    assert_eq!(kept.ids(), [0]);
    assert!(kept.messages[0].place.segment.0 > 2, "it moved: {:?}", kept.messages[0].place);
    committer.stop(Duration::from_secs(5));
}

#[test]
fn stopping_does_not_wait_for_room_that_never_comes() {
    let disk = SimDisk::new(5);
    let (committer, completions, _, _) = start(Arc::new(disk.clone()), OPTIONS);
    disk.set_faults(crate::spool::sim_disk::Faults { files_max: 0, ..Default::default() });
    let handle = committer.handle();
    let mut appender = appender();
    // Outcomes alone fill what there is and then wait.
    for id in 0..2000 {
        let segment = crate::spool::SegmentNo(1);
        let done = Done { id: MessageId(id), segment, recipients: Recipients::All, last: false };
        appender.append_done(&done, Instant::now());
        while let Some(batch) = appender.flush(Instant::now()) {
            handle.submit(batch);
        }
        while let Ok(completion) = completions.try_recv() {
            appender.completed(completion, Instant::now());
        }
    }
    let started = Instant::now();
    committer.stop(Duration::from_millis(200));
    assert!(started.elapsed() < Duration::from_secs(5));
}
