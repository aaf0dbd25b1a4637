//! Slow readers, gone readers, full disks, rotation.

use std::fs;
use std::io::{BufRead, BufReader};

use super::*;
use crate::control::events::{Event, EventKind};

fn emit(buffer: &EventBuffer, count: u64) {
    for size in 0..count {
        buffer.emit(&Event { size: Some(size), ..Event::new(EventKind::Accepted) });
    }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = soon();
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        thread::sleep(Duration::from_millis(5));
    }
}

fn sizes(text: &str) -> Vec<u64> {
    let size = |line: &str| {
        let json: serde_json::Value = serde_json::from_str(line).expect("each line is whole");
        json["size"].as_u64().unwrap()
    };
    text.lines().map(size).collect()
}

#[test]
fn closing_writes_what_was_handed_over() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("events.json");
    fs::write(&path, "").unwrap();
    let log = EventLog::start(EventTarget::File(path.clone())).unwrap();
    let counters = log.counters();
    let buffer = log.buffer();
    emit(&buffer, 5_000);
    drop(buffer);
    log.close(soon()).unwrap();
    assert_eq!(sizes(&fs::read_to_string(&path).unwrap()), (0..5_000).collect::<Vec<_>>());
    let figures = counters.figures();
    assert_eq!((figures.written, figures.lost, figures.queued_bytes), (5_000, 0, 0));
}

#[test]
fn a_rotated_file_is_made_anew() {
    let directory = tempfile::tempdir().unwrap();
    let (path, old) = (directory.path().join("e"), directory.path().join("e.1"));
    let log = EventLog::start(EventTarget::File(path.clone())).unwrap();
    let buffer = log.buffer();
    emit(&buffer, 3);
    buffer.flush();
    wait_until("the first events are written", || log.counters().figures().written == 3);
    fs::rename(&path, &old).unwrap();
    log.reopen();
    wait_until("the file is there again", || path.exists());
    emit(&buffer, 2);
    drop(buffer);
    log.close(soon()).unwrap();
    assert_eq!(sizes(&fs::read_to_string(old).unwrap()).len(), 3);
    assert_eq!(sizes(&fs::read_to_string(path).unwrap()).len(), 2);
}

#[test]
fn a_file_that_cannot_be_reopened_stays_in_use() {
    let directory = tempfile::tempdir().unwrap();
    let inner = directory.path().join("inner");
    fs::create_dir(&inner).unwrap();
    let log = EventLog::start(EventTarget::File(inner.join("e"))).unwrap();
    let moved = directory.path().join("moved");
    fs::rename(&inner, &moved).unwrap();
    log.reopen();
    wait_until("the failure is counted", || log.counters().figures().failures == 1);
    let buffer = log.buffer();
    emit(&buffer, 2);
    drop(buffer);
    log.close(soon()).unwrap();
    assert_eq!(sizes(&fs::read_to_string(moved.join("e")).unwrap()).len(), 2);
}

#[test]
fn a_slow_reader_makes_wait_and_gets_everything() {
    let (reader, pipe) = io::pipe().unwrap();
    let log = EventLog::start(EventTarget::Descriptor(pipe.into())).unwrap();
    let counters = log.counters();
    let buffer = log.buffer();
    let mut count = 0;
    while !buffer.must_wait() {
        emit(&buffer, 1_000);
        count += 1_000;
    }
    assert!(counters.figures().queued_bytes <= limits::EVENT_QUEUE as u64);
    let reading = thread::spawn(move || {
        BufReader::new(reader).lines().map(|line| sizes(&line.unwrap()).len() as u64).sum::<u64>()
    });
    wait_until("the writer catches up", || {
        buffer.flush();
        !buffer.must_wait()
    });
    drop(buffer);
    log.close(soon()).unwrap();
    assert_eq!(reading.join().unwrap(), count);
    let figures = counters.figures();
    assert_eq!((figures.lost, figures.written), (0, count));
    assert!(figures.waits >= 1, "once, and again where the writer is behind for long");
}

#[test]
fn a_reader_who_never_reads_does_not_hold_up_the_end() {
    let (_reader, pipe) = io::pipe().unwrap();
    let log = EventLog::start(EventTarget::Descriptor(pipe.into())).unwrap();
    let buffer = log.buffer();
    emit(&buffer, 10_000);
    drop(buffer);
    let late = log.close(Instant::now() + Duration::from_millis(100)).unwrap_err();
    assert!(late.octets > 0);
}

#[test]
fn a_closed_pipe_loses_events_and_holds_up_nothing() {
    let (reader, pipe) = io::pipe().unwrap();
    drop(reader);
    let log = EventLog::start(EventTarget::Descriptor(pipe.into())).unwrap();
    let counters = log.counters();
    let buffer = log.buffer();
    let deadline = soon();
    let mut count = 0;
    // Several times what the queue holds.
    while counters.figures().lost < 200_000 {
        assert!(Instant::now() < deadline, "{:?}", counters.figures());
        match buffer.must_wait() {
            true => thread::sleep(LOOK),
            false => {
                emit(&buffer, 1_000);
                count += 1_000;
            }
        }
        buffer.flush();
    }
    drop(buffer);
    log.close(soon()).unwrap();
    let figures = counters.figures();
    assert!(figures.failures > 0);
    assert_eq!((figures.written, figures.lost, figures.queued_bytes), (0, count, 0));
}

#[test]
fn a_write_that_fails_is_tried_again_in_the_new_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("e");
    std::os::unix::fs::symlink("/dev/full", &path).unwrap();
    let log = EventLog::start(EventTarget::File(path.clone())).unwrap();
    let buffer = log.buffer();
    emit(&buffer, 3);
    drop(buffer);
    wait_until("the write fails", || log.counters().figures().failures > 0);
    fs::remove_file(&path).unwrap();
    log.reopen();
    wait_until("it is written elsewhere", || log.counters().figures().written == 3);
    log.close(soon()).unwrap();
    assert_eq!(sizes(&fs::read_to_string(path).unwrap()), [0, 1, 2]);
}

#[test]
fn a_line_cut_short_begins_again_where_it_began() {
    let text = b"\nab\ncd\n";
    let table = [(0, 1), (1, 1), (2, 1), (3, 1), (4, 4), (5, 4), (6, 4), (7, 7)];
    for (at, start) in table {
        assert_eq!(line_start(text, at), start, "{at}");
    }
}
