//! The scheduler by table: what happened, and what it wants done.

use super::*;
use crate::message::MessageId;
use crate::spool::{RecordPlace, SegmentNo};

/// An id of that age at time zero of these tests.
fn id(number: u64) -> MessageId {
    MessageId(number)
}

const START: u64 = 1_735_689_600_000;
const LIFETIME: u64 = 1_000_000;

fn scheduler(cores: u32, limit: u32, kinds: &[SiteKind]) -> Scheduler {
    let shared = (0..kinds.len() as u32)
        .map(|index| SiteShared::new(SiteIndex(index), limit, cores))
        .collect();
    Scheduler::new(0, cores, LIFETIME, shared, kinds.iter().copied())
}

fn handle(number: u64, site: u32) -> Handle {
    let place = RecordPlace { segment: SegmentNo(1), offset: 64, length: 64 };
    Handle::new(id(number), place, SiteIndex(site), Recipients::All(1), None)
}

fn file(scheduler: &mut Scheduler, number: u64, site: u32, now: u64) {
    scheduler.handle(Event::Filed { handle: handle(number, site), stay: true }, now);
}

fn actions(scheduler: &mut Scheduler) -> Vec<Action> {
    std::iter::from_fn(|| scheduler.poll_action()).collect()
}

fn opened(actions: &[Action]) -> Vec<ConnectionId> {
    let opened = |action: &Action| match action {
        Action::Open { connection, .. } => Some(*connection),
        _ => None,
    };
    actions.iter().filter_map(opened).collect()
}

fn delivered(actions: &[Action]) -> Vec<(ConnectionId, Slot)> {
    let delivered = |action: &Action| match action {
        Action::Deliver { connection, slot } => Some((*connection, *slot)),
        _ => None,
    };
    actions.iter().filter_map(delivered).collect()
}

const SITE: SiteIndex = SiteIndex(0);

fn ready(scheduler: &mut Scheduler, connection: ConnectionId, now: u64) -> Vec<Action> {
    scheduler.handle(Event::ConnectionReady { site: SITE, connection }, now);
    actions(scheduler)
}

#[test]
fn connections_grow_with_the_backlog_up_to_the_limit() {
    let mut scheduler = scheduler(1, 3, &[SiteKind::Open]);
    for number in 0..5 {
        file(&mut scheduler, number, 0, START);
    }
    let connections = opened(&actions(&mut scheduler));
    assert_eq!(connections.len(), 3, "one a message, and never over the limit");
    for connection in connections {
        let given = ready(&mut scheduler, connection, START);
        assert_eq!(delivered(&given).len(), 1);
        assert!(opened(&given).is_empty());
    }
    assert_eq!(scheduler.counts().of(State::Active), 3);
    assert_eq!(scheduler.counts().of(State::Ready), 2);
}

#[test]
fn messages_go_in_the_order_in_which_they_came() {
    let mut scheduler = scheduler(1, 1, &[SiteKind::Open]);
    (0..4).for_each(|number| file(&mut scheduler, number, 0, START));
    let connection = opened(&actions(&mut scheduler))[0];
    for number in 0..4 {
        let given = delivered(&ready(&mut scheduler, connection, START));
        let slot = given[0].1;
        assert_eq!(scheduler.get(slot).unwrap().id, id(number));
        assert!(scheduler.finish(slot).is_some());
    }
    assert!(scheduler.is_empty());
    assert!(delivered(&ready(&mut scheduler, connection, START)).is_empty());
    file(&mut scheduler, 9, 0, START);
    let given = actions(&mut scheduler);
    assert!(opened(&given).is_empty(), "the idle connection takes it");
    assert_eq!(delivered(&given).len(), 1);
}

#[test]
fn a_connection_that_leaves_is_given_nothing_more() {
    let mut scheduler = scheduler(1, 1, &[SiteKind::Open]);
    file(&mut scheduler, 0, 0, START);
    let connection = opened(&actions(&mut scheduler))[0];
    let slot = delivered(&ready(&mut scheduler, connection, START))[0].1;
    scheduler.finish(slot);
    ready(&mut scheduler, connection, START);
    scheduler.handle(Event::ConnectionLeaving { site: SITE, connection }, START);
    file(&mut scheduler, 1, 0, START);
    assert!(actions(&mut scheduler).is_empty(), "the limit is still used up");
    scheduler.handle(Event::ConnectionClosed { site: SITE, connection }, START);
    assert_eq!(opened(&actions(&mut scheduler)).len(), 1);
}

#[test]
fn a_returned_message_goes_first() {
    let mut scheduler = scheduler(1, 1, &[SiteKind::Open]);
    (0..3).for_each(|number| file(&mut scheduler, number, 0, START));
    let connection = opened(&actions(&mut scheduler))[0];
    let slot = delivered(&ready(&mut scheduler, connection, START))[0].1;
    scheduler.handle(Event::Returned { slot }, START);
    scheduler.handle(Event::ConnectionClosed { site: SITE, connection }, START);
    let connection = opened(&actions(&mut scheduler))[0];
    let again = delivered(&ready(&mut scheduler, connection, START))[0].1;
    assert_eq!(scheduler.get(again).unwrap().id, id(0));
    assert_eq!(scheduler.get(again).unwrap().attempts, 0, "it was no attempt");
}

#[test]
fn a_deferred_message_comes_back_when_it_is_due() {
    let mut scheduler = scheduler(1, 1, &[SiteKind::Open]);
    file(&mut scheduler, 0, 0, START);
    let connection = opened(&actions(&mut scheduler))[0];
    let slot = delivered(&ready(&mut scheduler, connection, START))[0].1;
    let (recipients, due_unix_ms) = (Recipients::All(1), START + 500);
    let reason = Some(Reason::new("450 later".into()));
    scheduler.handle(Event::Deferred { slot, recipients, due_unix_ms, reason }, START);
    ready(&mut scheduler, connection, START);
    scheduler.handle(Event::Tick, START + 499);
    assert!(actions(&mut scheduler).is_empty());
    scheduler.handle(Event::Tick, START + 500);
    assert_eq!(delivered(&actions(&mut scheduler)), [(connection, slot)]);
    assert_eq!(scheduler.get(slot).unwrap().attempts, 1);
}

#[test]
fn a_site_that_rests_is_left_alone_and_then_tried_by_one() {
    let mut scheduler = scheduler(1, 8, &[SiteKind::Open]);
    (0..8).for_each(|number| file(&mut scheduler, number, 0, START));
    let connections = opened(&actions(&mut scheduler));
    scheduler.shared(SITE).fail(START + 1_000, "refused");
    for connection in connections {
        scheduler.handle(Event::ConnectionClosed { site: SITE, connection }, START);
    }
    scheduler.handle(Event::Tick, START + 999);
    assert!(actions(&mut scheduler).is_empty());
    scheduler.handle(Event::Tick, START + 1_000);
    let probe = opened(&actions(&mut scheduler));
    assert_eq!(probe.len(), 1, "one finds out whether it is back");
    scheduler.shared(SITE).recover();
    assert_eq!(opened(&ready(&mut scheduler, probe[0], START + 1_000)).len(), 7);
}

#[test]
fn nothing_expires_before_one_attempt_and_then_everything_does() {
    let mut scheduler = scheduler(1, 1, &[SiteKind::Open]);
    let late = START + 2 * LIFETIME;
    (0..3).for_each(|number| file(&mut scheduler, number, 0, late));
    scheduler.handle(Event::Tick, late);
    let first = actions(&mut scheduler);
    assert!(!first.iter().any(|action| matches!(action, Action::Expire { .. })));
    scheduler.shared(SITE).fail(late + 60_000, "refused");
    let connection = opened(&first)[0];
    scheduler.handle(Event::ConnectionClosed { site: SITE, connection }, late);
    scheduler.handle(Event::Tick, late + 100);
    let expired = actions(&mut scheduler);
    assert_eq!(expired.len(), 3);
    assert!(expired.iter().all(|action| matches!(action, Action::Expire { .. })));
}

#[test]
fn what_is_due_at_the_end_of_its_lifetime_has_one_last_attempt() {
    let mut scheduler = scheduler(1, 1, &[SiteKind::Open]);
    file(&mut scheduler, 0, 0, START);
    let connection = opened(&actions(&mut scheduler))[0];
    let slot = delivered(&ready(&mut scheduler, connection, START))[0].1;
    let (recipients, due_unix_ms) = (Recipients::All(1), START + LIFETIME);
    let reason = Some(Reason::new("450 later".into()));
    scheduler.handle(Event::Deferred { slot, recipients, due_unix_ms, reason }, START);
    ready(&mut scheduler, connection, START);
    scheduler.handle(Event::Tick, START + LIFETIME);
    assert_eq!(delivered(&actions(&mut scheduler)), [(connection, slot)]);
    // Its site does not answer: then it is over.
    scheduler.shared(SITE).fail(START + 2 * LIFETIME, "refused");
    scheduler.handle(Event::Returned { slot }, START + LIFETIME);
    scheduler.handle(Event::Tick, START + LIFETIME + 1);
    assert_eq!(actions(&mut scheduler), [Action::Expire { slot }]);
}

#[test]
fn what_is_held_waits_for_an_operator_or_its_end() {
    let mut scheduler = scheduler(1, 1, &[SiteKind::Hold, SiteKind::Open]);
    file(&mut scheduler, 0, 0, START);
    file(&mut scheduler, 1, 0, START);
    scheduler.handle(Event::Tick, START + LIFETIME - 1);
    assert!(actions(&mut scheduler).is_empty());
    let slots: Vec<Slot> = scheduler.iter().map(|(slot, _)| slot).collect();
    scheduler.handle(Event::Reroute { slot: slots[0], site: SiteIndex(1) }, START);
    assert_eq!(opened(&actions(&mut scheduler)).len(), 1);
    scheduler.handle(Event::Tick, START + LIFETIME);
    assert_eq!(actions(&mut scheduler), [Action::Expire { slot: slots[1] }]);
}

#[test]
fn a_quiet_site_is_served_by_one_core_and_a_busy_one_by_all() {
    let shared: Arc<[SiteShared]> = [SiteShared::new(SITE, 8, 2)].into();
    let mut home = Scheduler::new(0, 2, LIFETIME, shared.clone(), [SiteKind::Open]);
    let mut other = Scheduler::new(1, 2, LIFETIME, shared, [SiteKind::Open]);
    let filed = |number| Event::Filed { handle: handle(number, 0), stay: false };
    other.handle(filed(0), START);
    assert_eq!(actions(&mut other), [Action::Forward { core: 0 }]);
    let leaving = other.take_leaving().unwrap();
    home.handle(Event::Filed { handle: leaving, stay: true }, START);
    (1..=u64::from(BUSY) + 8).for_each(|number| home.handle(filed(number), START));
    actions(&mut home);
    other.handle(filed(1_000), START);
    assert!(other.take_leaving().is_none(), "the other core joins in");
    assert_eq!(other.len(), 1);
}

#[test]
fn every_handle_is_in_one_place_whatever_happens() {
    let mut random = fastrand::Rng::with_seed(7);
    for _ in 0..200 {
        let mut scheduler = scheduler(1, 4, &[SiteKind::Open, SiteKind::Hold]);
        let (mut now, mut number) = (START, 0);
        let (mut open, mut active) = (Vec::new(), Vec::new());
        for _ in 0..300 {
            now += random.u64(0..2_000);
            match random.u8(0..8) {
                0 | 1 => {
                    number += 1;
                    file(&mut scheduler, number, random.u32(0..2), now);
                }
                2 if !active.is_empty() => {
                    let (slot, connection) = active.swap_remove(random.usize(0..active.len()));
                    match random.u8(0..3) {
                        0 => drop(scheduler.finish(slot)),
                        1 => scheduler.handle(Event::Returned { slot }, now),
                        _ => {
                            let (recipients, due_unix_ms) = (Recipients::All(1), now + 3_000);
                            let reason = Some(Reason::default());
                            let event = Event::Deferred { slot, recipients, due_unix_ms, reason };
                            scheduler.handle(event, now);
                        }
                    }
                    scheduler.handle(Event::ConnectionReady { site: SITE, connection }, now);
                }
                3 if !open.is_empty() => {
                    let connection = open.swap_remove(random.usize(0..open.len()));
                    scheduler.handle(Event::ConnectionReady { site: SITE, connection }, now);
                }
                4 if !open.is_empty() => {
                    let connection = open.swap_remove(random.usize(0..open.len()));
                    scheduler.shared(SITE).fail(now + random.u64(0..4_000), "refused");
                    scheduler.handle(Event::ConnectionClosed { site: SITE, connection }, now);
                }
                5 => {
                    let slots: Vec<Slot> = scheduler.iter().map(|(slot, _)| slot).collect();
                    if !slots.is_empty() {
                        let slot = slots[random.usize(0..slots.len())];
                        if scheduler.get(slot).unwrap().state != State::Active {
                            scheduler.finish(slot);
                        }
                    }
                }
                6 => scheduler.shared(SITE).recover(),
                _ => scheduler.handle(Event::Tick, now),
            }
            for action in actions(&mut scheduler) {
                match action {
                    Action::Open { connection, .. } => open.push(connection),
                    Action::Deliver { connection, slot } => active.push((slot, connection)),
                    Action::Expire { slot } => drop(scheduler.finish(slot)),
                    Action::Forward { .. } => unreachable!("there is one core"),
                }
            }
            check(&scheduler);
        }
    }
}

/// Lists, timers and states agree.
fn check(scheduler: &Scheduler) {
    let mut listed = 0;
    for queue in &scheduler.sites {
        let (mut at, mut last) = (queue.first, None);
        while let Some(slot) = at {
            let handle = scheduler.get(slot).expect("what is listed is there");
            assert_eq!(handle.state, State::Ready);
            (at, last) = (handle.next, at);
            listed += 1;
        }
        assert_eq!(last, queue.last);
        assert!(queue.idle.len() as u32 + queue.opening <= queue.open);
    }
    for &(due, slot) in &scheduler.timers {
        let handle = scheduler.get(slot).expect("what has a timer is there");
        assert!(matches!(handle.state, State::Deferred | State::Held));
        assert_eq!(handle.due_unix_ms, due);
    }
    let of = |state| scheduler.counts().of(state);
    assert_eq!(of(State::Ready), listed);
    assert_eq!(of(State::Deferred) + of(State::Held), scheduler.timers.len() as u64);
    let all = [State::Ready, State::Active, State::Deferred, State::Held].map(of);
    assert_eq!(all.iter().sum::<u64>(), scheduler.len() as u64);
    assert!(scheduler.shared(SITE).connections() <= 4);
}
