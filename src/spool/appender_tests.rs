use super::*;
use crate::spool::sealed::BatchPlace;
use crate::spool::test_kit::{Mail, appender};
use crate::spool::{DeferState, Kind, Recipients, RecordView, SegmentNo};

const PLACE: BatchPlace = BatchPlace { segment: SegmentNo(1), offset: 4096, sequence: 1 };
const MS: Duration = Duration::from_millis(1);

fn done(id: u64) -> Done<'static> {
    Done { id: MessageId(id), segment: SegmentNo(1), recipients: Recipients::All, last: true }
}

fn complete(batch: SealedBatch, result: Result<BatchPlace, CommitError>) -> Completion {
    Completion { worker: batch.worker, result, batch }
}

fn ids(batch: &SealedBatch) -> Vec<u64> {
    let payload = &batch.buffer[BATCH_HEADER..BATCH_HEADER + batch.payload_length];
    crate::spool::format::batch::records(payload).map(|r| r.unwrap().1.id().0).collect()
}

#[test]
fn a_message_is_sealed_at_once_and_the_next_gather_behind_it() {
    let (mut appender, now) = (appender(), Instant::now());
    Mail::new(1, 1, 100).append(&mut appender, now).unwrap();
    let first = appender.seal(now).unwrap();
    for id in 2..5 {
        Mail::new(id, 1, 100).append(&mut appender, now).unwrap();
    }
    assert!(appender.seal(now).is_none(), "one is in flight");
    let settled = appender.completed(complete(first, Ok(PLACE)), now);
    let place = settled.records[0].result.unwrap();
    assert_eq!((place.segment, place.offset), (SegmentNo(1), 4096 + 64));
    let shared = settled.batch.unwrap();
    let record = RecordView::parse(shared.record(place).unwrap()).unwrap();
    assert_eq!(record.body(), Mail::new(1, 1, 100).body);
    assert_eq!(record.body().as_ptr() as usize % 64, 0, "the copy is aligned");
    assert_eq!(ids(&appender.seal(now).unwrap()), [2, 3, 4]);
}

#[test]
fn outcomes_alone_wait_ten_milliseconds_and_ride_along_otherwise() {
    let (mut appender, now) = (appender(), Instant::now());
    appender.append_done(&done(1), now);
    assert_eq!(appender.deadline(), Some(now + 10 * MS));
    assert!(appender.seal(now + 9 * MS).is_none());
    let batch = appender.seal(now + 10 * MS).unwrap();
    assert_eq!((batch.durability, batch.has_messages), (Durability::Fsync, false));
    let settled = appender.completed(complete(batch, Ok(PLACE)), now);
    assert_eq!(settled.records.len(), 1);
    appender.append_done(&done(2), now);
    let mut mail = Mail::new(3, 1, 10);
    mail.durability = Durability::Os;
    mail.append(&mut appender, now).unwrap();
    let batch = appender.seal(now).unwrap();
    assert_eq!((ids(&batch), batch.durability), (vec![2, 3], Durability::Os));
}

#[test]
fn one_fsync_message_makes_its_batch_fsync() {
    let (mut appender, now) = (appender(), Instant::now());
    for (id, durability) in [(1, Durability::Fsync), (2, Durability::Os)] {
        let mut mail = Mail::new(id, 1, 10);
        mail.durability = durability;
        mail.append(&mut appender, now).unwrap();
    }
    assert_eq!(appender.seal(now).unwrap().durability, Durability::Fsync);
}

#[test]
fn messages_are_refused_without_a_buffer_and_outcomes_are_not() {
    let (mut appender, now) = (appender(), Instant::now());
    let taken = (1..).take_while(|&id| Mail::new(id, 1, 7000).append(&mut appender, now).is_ok());
    assert_eq!(taken.count(), 6, "three buffers of two messages; one is kept back");
    let mut flying = Vec::new();
    flying.extend(std::iter::from_fn(|| appender.seal(now)));
    assert_eq!(flying.len(), 2, "the open one waits while others fly");
    let refused = Mail::new(99, 1, 7000).append(&mut appender, now);
    assert_eq!(refused, Err(Refused::Busy));
    // As many outcomes as fill what is left and more.
    let before = appender.next_ticket;
    for id in 100..1000 {
        appender.append_done(&done(id), now);
    }
    assert_eq!(appender.next_ticket, before + 900);
    let (mut settled, mut later) = (0, now);
    let mut tick = || {
        later += 20 * MS;
        later
    };
    while let Some(batch) = flying.pop().or_else(|| appender.seal(tick())) {
        settled += appender.completed(complete(batch, Ok(PLACE)), now).records.len();
    }
    assert_eq!(settled, 6 + 900);
    assert!(appender.is_idle());
}

#[test]
fn outcomes_of_a_failed_batch_are_appended_again() {
    let (mut appender, now) = (appender(), Instant::now());
    let defer = Defer {
        id: MessageId(7),
        segment: SegmentNo(1),
        recipients: Recipients::Some(&[3]),
        state: DeferState::Deferred,
        next_attempt_unix_ms: 1,
        attempts: 1,
        delay_told: false,
        reply: "451 later",
    };
    let first = appender.append_defer(&defer, now);
    let message = Mail::new(8, 1, 10).append(&mut appender, now).unwrap();
    let second = appender.append_done(&done(9), now);
    let batch = appender.seal(now).unwrap();
    appender.append_done(&done(10), now);
    let settled = appender.completed(complete(batch, Err(CommitError::Full)), now);
    let refused = SettledRecord { ticket: message, result: Err(CommitError::Full) };
    assert_eq!(settled.records, [refused], "only the client's message is told");
    // New messages do not endanger the outcomes again.
    Mail::new(11, 1, 10).append(&mut appender, now).unwrap();
    let mut order = Vec::new();
    let mut tickets = Vec::new();
    while let Some(batch) = appender.seal(now + 20 * MS) {
        let ids = ids(&batch);
        assert!(!(ids.contains(&7) && ids.contains(&11)), "{ids:?}");
        order.extend(ids);
        let settled = appender.completed(complete(batch, Ok(PLACE)), now);
        tickets.extend(settled.records.iter().map(|record| record.ticket));
    }
    order.sort_unstable();
    assert_eq!(order, [7, 9, 10, 11]);
    assert!(tickets.contains(&first) && tickets.contains(&second));
}

#[test]
fn a_group_shares_a_batch_and_is_appended_again_as_a_whole() {
    let (mut appender, now) = (appender(), Instant::now());
    // Little room is left, so that the group would be torn apart if it could.
    Mail::new(1, 1, 15_000).append(&mut appender, now).unwrap();
    let bounce = Mail::new(2, 1, 900);
    let ticket = bounce.with(crate::spool::NewBody::Inline(&bounce.body), |message| {
        let group = [NewRecord::Message(*message), NewRecord::Done(done(1))];
        appender.append_group(&group, now).unwrap()
    });
    let first = appender.seal(now).unwrap();
    assert_eq!(ids(&first), [1]);
    let group = appender.seal(now).or_else(|| {
        appender.completed(complete(first, Ok(PLACE)), now);
        appender.seal(now)
    });
    let group = group.unwrap();
    assert_eq!((ids(&group), group.has_messages), (vec![2, 1], false));
    let settled = appender.completed(complete(group, Err(CommitError::Full)), now);
    assert_eq!(settled.records, [], "nobody is told of a bounce that is not yet there");
    let again = appender.seal(now + 20 * MS).unwrap();
    assert_eq!(ids(&again), [2, 1]);
    let settled = appender.completed(complete(again, Ok(PLACE)), now);
    let tickets: Vec<Ticket> = settled.records.iter().map(|record| record.ticket).collect();
    assert_eq!(tickets, [ticket, Ticket(ticket.0 + 1)]);
}

#[test]
fn a_chunk_travels_alone_and_what_is_abandoned_follows_it() {
    let (mut appender, now) = (appender(), Instant::now());
    let mut chunk = appender.chunk_buffer().unwrap();
    chunk.spare()[..5].copy_from_slice(b"hello");
    chunk.advance(5);
    let chunk = appender.append_chunk(chunk, MessageId(1), 0);
    assert_eq!((chunk.octets, chunk.crc32c), (5, crc32c::crc32c(b"hello")));
    let other = appender.chunk_buffer().unwrap();
    assert_eq!(appender.chunk_buffer().unwrap_err(), Refused::Busy);
    appender.append_chunk(other, MessageId(1), 1);
    appender.abandon_upload(MessageId(1));
    let first = appender.seal(now).unwrap();
    assert!(first.is_chunk && first.abandoned.is_empty());
    let payload = &first.buffer[BATCH_HEADER..BATCH_HEADER + first.payload_length];
    let record = RecordView::parse(payload).unwrap();
    record.verify_body().unwrap();
    assert_eq!((record.kind(), record.body()), (Kind::Chunk, &b"hello"[..]));
    let second = appender.seal(now).unwrap();
    assert_eq!(second.abandoned, [MessageId(1)]);
    appender.completed(complete(second, Err(CommitError::Disk(std::io::ErrorKind::Other))), now);
    let notice = appender.seal(now).unwrap();
    assert_eq!((notice.octets(), &notice.abandoned[..]), (0, &[MessageId(1)][..]));
}

#[test]
fn an_envelope_larger_than_a_batch_gets_a_buffer_of_its_own_one_at_a_time() {
    let (mut appender, now) = (appender(), Instant::now());
    let large = Mail::new(1, 2000, 10);
    large.append(&mut appender, now).unwrap();
    let batch = appender.seal(now).unwrap();
    assert!(batch.payload_length > 16 * 1024);
    assert_eq!(large.append(&mut appender, now), Err(Refused::Busy));
    appender.completed(complete(batch, Ok(PLACE)), now);
    large.append(&mut appender, now).unwrap();
}

#[test]
fn after_the_log_has_failed_nothing_is_taken_or_sealed() {
    let (mut appender, now) = (appender(), Instant::now());
    appender.append_done(&done(1), now);
    let batch = appender.seal(now + 20 * MS).unwrap();
    appender.completed(complete(batch, Err(CommitError::Failed)), now);
    assert!(appender.seal(now + 40 * MS).is_none());
    assert_eq!(Mail::new(1, 1, 1).append(&mut appender, now), Err(Refused::Failed));
    assert!(matches!(appender.chunk_buffer(), Err(Refused::Failed)));
}

#[test]
fn what_an_earlier_user_left_in_a_buffer_does_not_reach_the_disk() {
    let (mut appender, now) = (appender(), Instant::now());
    for id in 1..20 {
        let mut mail = Mail::new(id, 1, 9000);
        mail.body.fill(0xaa);
        if id > 10 {
            mail.body = vec![0xbb; 70];
        }
        mail.append(&mut appender, now).unwrap();
        let batch = appender.seal(now).unwrap();
        let stale = batch.buffer[..batch.octets()].iter().filter(|&&octet| octet == 0xaa).count();
        assert!(id <= 10 || stale < 16, "{stale} octets of another message");
        appender.completed(complete(batch, Ok(PLACE)), now);
    }
}

/// A session waits for each of these without a deadline of its own.
#[test]
fn a_failed_log_settles_what_was_never_given_out() {
    let (mut appender, now) = (appender(), Instant::now());
    Mail::new(1, 1, 100).append(&mut appender, now).unwrap();
    let flying = appender.seal(now).unwrap();
    // One full batch, one that is open, and a chunk.
    for id in 2..5 {
        Mail::new(id, 1, 7000).append(&mut appender, now).unwrap();
    }
    appender.append_done(&done(9), now);
    let chunk = appender.chunk_buffer().unwrap();
    let late = appender.chunk_buffer().unwrap();
    appender.append_chunk(chunk, MessageId(7), 0);
    assert!(!appender.has_failed());
    let settled = appender.completed(complete(flying, Err(CommitError::Failed)), now);
    assert!(appender.has_failed());
    let mut tickets: Vec<u64> = settled.records.iter().map(|record| record.ticket.0).collect();
    tickets.sort_unstable();
    assert_eq!(tickets, [0, 1, 2, 3, 5], "all but the outcome");
    assert!(settled.records.iter().all(|record| record.result == Err(CommitError::Failed)));
    appender.append_chunk(late, MessageId(8), 0);
    assert!(appender.seal(now).is_none());
    assert_eq!(appender.chunk_pool.available(), 2, "their buffers are free again");
}
