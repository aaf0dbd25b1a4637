//! The scheduler by table: what happened, and what it wants done.

#[path = "scheduler_exchanger_tests.rs"]
mod exchangers;

use super::*;
use crate::config::Target;
use crate::delivery::reach::Reach;
use crate::spool::{RecordPlace, SegmentNo};

/// An id of that age at time zero of these tests.
fn id(number: u64) -> MessageId {
    MessageId(number)
}

const START: u64 = 1_735_689_600_000;
const LIFETIME: u64 = 1_000_000;

/// How a course of these tests takes mail.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Its next hop is known.
    Open,
    /// Mail exchangers take it.
    Mail,
    Hold,
}

fn site_of(number: u64, limit: u32, cores: u32) -> Arc<SiteShared> {
    let reach = Reach::fixed(&Target::Discard, None);
    Arc::new(SiteShared::new(SiteId(number), &format!("site {number}"), limit, cores, reach))
}

fn rules(kinds: &[Kind], limit: u32, cores: u32) -> Vec<CourseRules> {
    let rule = |(place, kind): (usize, &Kind)| CourseRules {
        lead: match kind {
            Kind::Open => Lead::Site(site_of(place as u64, limit, cores)),
            Kind::Mail => Lead::Exchangers,
            Kind::Hold => Lead::Hold,
        },
        lifetime_ms: LIFETIME,
        late_ms: None,
    };
    kinds.iter().enumerate().map(rule).collect()
}

fn scheduler(cores: u32, limit: u32, kinds: &[Kind]) -> Scheduler {
    Scheduler::new(0, cores, rules(kinds, limit, cores))
}

/// What the cores share of the one site with connections.
fn shared(scheduler: &Scheduler) -> Arc<SiteShared> {
    scheduler.site(SITE).expect("it is there").clone()
}

fn handle(number: u64) -> Handle {
    let place = RecordPlace { segment: SegmentNo(1), offset: 64, length: 64 };
    Handle::new(id(number), place, Recipients::All(1), None)
}

fn course(course: u32) -> Destination {
    Destination { course: CourseIndex(course), domain: None }
}

/// The filing of a message with a course that names its next hop.
fn filed(number: u64, to: u32, stay: bool) -> Event {
    Event::Filed { destination: course(to), handle: handle(number), stay }
}

fn file(scheduler: &mut Scheduler, number: u64, to: u32, now: u64) {
    scheduler.handle(filed(number, to, true), now);
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
    let mut scheduler = scheduler(1, 3, &[Kind::Open]);
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
    let mut scheduler = scheduler(1, 1, &[Kind::Open]);
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
    let mut scheduler = scheduler(1, 1, &[Kind::Open]);
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
    let mut scheduler = scheduler(1, 1, &[Kind::Open]);
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
    let mut scheduler = scheduler(1, 1, &[Kind::Open]);
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
    let mut scheduler = scheduler(1, 8, &[Kind::Open]);
    (0..8).for_each(|number| file(&mut scheduler, number, 0, START));
    let connections = opened(&actions(&mut scheduler));
    shared(&scheduler).fail(START + 1_000, "refused");
    for connection in connections {
        scheduler.handle(Event::ConnectionClosed { site: SITE, connection }, START);
    }
    scheduler.handle(Event::Tick, START + 999);
    assert!(actions(&mut scheduler).is_empty());
    scheduler.handle(Event::Tick, START + 1_000);
    let probe = opened(&actions(&mut scheduler));
    assert_eq!(probe.len(), 1, "one finds out whether it is back");
    shared(&scheduler).recover();
    assert_eq!(opened(&ready(&mut scheduler, probe[0], START + 1_000)).len(), 7);
}

#[test]
fn nothing_expires_before_one_attempt_and_then_everything_does() {
    let mut scheduler = scheduler(1, 1, &[Kind::Open]);
    let late = START + 2 * LIFETIME;
    (0..3).for_each(|number| file(&mut scheduler, number, 0, late));
    scheduler.handle(Event::Tick, late);
    let first = actions(&mut scheduler);
    assert!(!first.iter().any(|action| matches!(action, Action::Expire { .. })));
    shared(&scheduler).fail(late + 60_000, "refused");
    let connection = opened(&first)[0];
    scheduler.handle(Event::ConnectionClosed { site: SITE, connection }, late);
    scheduler.handle(Event::Tick, late + 100);
    let expired = actions(&mut scheduler);
    assert_eq!(expired.len(), 3);
    assert!(expired.iter().all(|action| matches!(action, Action::Expire { .. })));
}

#[test]
fn what_is_due_at_the_end_of_its_lifetime_has_one_last_attempt() {
    let mut scheduler = scheduler(1, 1, &[Kind::Open]);
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
    shared(&scheduler).fail(START + 2 * LIFETIME, "refused");
    scheduler.handle(Event::Returned { slot }, START + LIFETIME);
    scheduler.handle(Event::Tick, START + LIFETIME + 1);
    assert_eq!(actions(&mut scheduler), [Action::Expire { slot }]);
}

#[test]
fn what_is_held_waits_for_an_operator_or_its_end() {
    let mut scheduler = scheduler(1, 1, &[Kind::Hold, Kind::Open]);
    file(&mut scheduler, 0, 0, START);
    file(&mut scheduler, 1, 0, START);
    scheduler.handle(Event::Tick, START + LIFETIME - 1);
    assert!(actions(&mut scheduler).is_empty());
    let slots: Vec<Slot> = scheduler.iter().map(|(slot, _)| slot).collect();
    scheduler.handle(Event::Reroute { slot: slots[0], destination: course(1) }, START);
    assert_eq!(opened(&actions(&mut scheduler)).len(), 1);
    scheduler.handle(Event::Tick, START + LIFETIME);
    assert_eq!(actions(&mut scheduler), [Action::Expire { slot: slots[1] }]);
}

#[test]
fn a_quiet_site_is_served_by_one_core_and_a_busy_one_by_all() {
    let rules = rules(&[Kind::Open], 8, 2);
    let mut home = Scheduler::new(0, 2, rules.clone());
    let mut other = Scheduler::new(1, 2, rules);
    let site = shared(&home);
    other.handle(filed(0, 0, false), START);
    assert_eq!(actions(&mut other), [Action::Forward { core: 0 }]);
    let (destination, handle) = other.take_leaving().unwrap();
    home.handle(Event::Filed { destination, handle, stay: true }, START);
    assert_eq!((site.members(), site.quota()), (1, 8));
    (1..=u64::from(connections::BUSY) + 8)
        .for_each(|number| home.handle(filed(number, 0, false), START));
    let opened_at_home = opened(&actions(&mut home));
    assert_eq!(opened_at_home.len(), 8);
    other.handle(filed(1_000, 0, false), START);
    assert!(other.take_leaving().is_none(), "the other core joins in");
    assert_eq!((other.len(), site.members(), site.quota()), (1, 2, 4));
    // The limit is used up: the home gives its connections away as they come free.
    let at = |connection| Event::ConnectionReady { site: SITE, connection };
    let mut given = 0;
    for &connection in &opened_at_home {
        home.handle(at(connection), START);
        for action in actions(&mut home) {
            match action {
                Action::Close { connection } => {
                    home.handle(Event::ConnectionClosed { site: SITE, connection }, START);
                }
                Action::Deliver { .. } => given += 1,
                other => panic!("{other:?}"),
            }
        }
    }
    assert_eq!((given, site.connections()), (7, 7), "one is free for the other core");
    other.handle(Event::Tick, START + 100);
    let joined = opened(&actions(&mut other));
    assert_eq!(joined.len(), 1);
    // Once it has nothing left it leaves, and the home has all of the limit again.
    other.handle(at(joined[0]), START + 100);
    let slot = delivered(&actions(&mut other))[0].1;
    other.finish(slot);
    assert_eq!(site.members(), 2);
    other.handle(Event::ConnectionClosed { site: SITE, connection: joined[0] }, START + 200);
    assert_eq!((site.members(), site.quota()), (1, 8));
}

#[test]
fn with_one_connection_one_core_serves_whatever_the_others_have() {
    let rules = rules(&[Kind::Open], 1, 2);
    let mut other = Scheduler::new(1, 2, rules);
    (0..3).for_each(|number| other.handle(filed(number, 0, true), START));
    assert_eq!(actions(&mut other), [const { Action::Forward { core: 0 } }; 3]);
    assert!(other.is_empty());
}

/// A connection that had others under way takes note of nothing but that there is no message.
#[test]
fn a_connection_that_missed_its_end_is_told_again() {
    let rules = rules(&[Kind::Open], 2, 2);
    let mut scheduler = Scheduler::new(0, 2, rules.clone());
    (0..2).for_each(|number| file(&mut scheduler, number, 0, START));
    let connections = opened(&actions(&mut scheduler));
    connections.iter().for_each(|&connection| drop(ready(&mut scheduler, connection, START)));
    // Another core joins: one connection is too many.
    shared(&scheduler).join();
    let end = [Action::Close { connection: connections[0] }];
    assert_eq!(ready(&mut scheduler, connections[0], START), end);
    let leaving = Event::ConnectionLeaving { site: SITE, connection: connections[0] };
    scheduler.handle(leaving, START);
    assert_eq!(actions(&mut scheduler), []);
    assert_eq!(ready(&mut scheduler, connections[0], START), end, "once it has ended the others");
}

#[test]
fn an_age_that_is_long_gone_costs_the_next_messages_no_timers() {
    let mut scheduler = scheduler(1, 1, &[Kind::Open]);
    file(&mut scheduler, 1_000 << 23, 0, START);
    let gone = scheduler.iter().next().expect("it was filed").0;
    scheduler.finish(gone);
    (0..3).for_each(|number| file(&mut scheduler, number, 0, START));
    assert_eq!(scheduler.timers.len(), 0, "they are in the order of their age");
    check(&mut scheduler);
}

#[test]
fn what_comes_back_to_an_empty_list_is_not_overlooked_by_what_comes_behind() {
    let mut scheduler = scheduler(1, 1, &[Kind::Open]);
    let late = u64::from(u32::MAX);
    file(&mut scheduler, late << 23, 0, START);
    let connection = opened(&actions(&mut scheduler))[0];
    let slot = delivered(&ready(&mut scheduler, connection, START))[0].1;
    scheduler.handle(Event::Returned { slot }, START);
    file(&mut scheduler, 0, 0, START);
    assert_eq!(scheduler.timers.len(), 1, "the older one, which stands behind");
}

/// Lists, rings, timers, alarms and states agree.
pub(super) fn check(scheduler: &mut Scheduler) {
    let places: Vec<DestinationIndex> =
        scheduler.destinations.iter().map(|(index, _)| index).collect();
    let (mut ready, mut deferred, mut asked) = (0, 0, 0);
    let mut by_site: HashMap<SiteIndex, (u64, u32, Vec<Slot>)> = HashMap::new();
    for index in places {
        let entry = scheduler.destinations.entry(index);
        let (listed, handles) = (entry.ready.slots(&mut scheduler.handles), entry.handles);
        let waiting = entry.deferred.slots(&mut scheduler.handles);
        assert_eq!(listed.len(), entry.ready.len() as usize);
        assert_eq!(waiting.len(), entry.deferred.len() as usize);
        asked += u32::from(entry.asking == super::super::destination::Asking::Asked);
        if let Some(site) = entry.site() {
            let of_site = by_site.entry(site).or_default();
            of_site.0 += listed.len() as u64;
            of_site.1 += 1;
            if !listed.is_empty() {
                of_site.2.push(index.slot());
            }
        }
        let is_looked_after = entry.alarm_unix_ms.is_some() || entry.is_refused;
        assert!(listed.is_empty() || is_looked_after, "somebody looks at {:?}", entry.key);
        for &slot in &listed {
            let handle = scheduler.get(slot).expect("what is listed is there");
            assert_eq!((handle.state, handle.destination), (State::Ready, index));
        }
        for &slot in &waiting {
            let handle = scheduler.get(slot).expect("what is listed is there");
            assert_eq!((handle.state, handle.destination), (State::Deferred, index));
            assert!(handle.due_unix_ms > 0);
        }
        let of_it = scheduler.handles.iter().filter(|(_, handle)| handle.destination == index);
        if scheduler.len() < 1_000 {
            assert_eq!(of_it.count(), handles as usize);
        }
        ready += listed.len() as u64;
        deferred += waiting.len() as u64;
    }
    assert_eq!(asked, scheduler.asked);
    for (slot, queue) in scheduler.sites.iter() {
        let (ready, destinations, _) = by_site.get(&SiteIndex(slot.0)).cloned().unwrap_or_default();
        assert_eq!((queue.ready, queue.destinations), (ready, destinations));
        assert_eq!(queue.serves, queue.ready > 0 || queue.open > 0);
        let named = queue.idle.len() + queue.opening.len() + queue.closing.len();
        assert!(named <= queue.open as usize);
    }
    let sites: Vec<Slot> = scheduler.sites.iter().map(|(slot, _)| slot).collect();
    for slot in sites {
        let mut expected = by_site.remove(&SiteIndex(slot.0)).unwrap_or_default().2;
        let ring = &scheduler.sites.get(slot).unwrap().ring;
        let mut found = ring.slots(scheduler.destinations.entries());
        found.sort_unstable();
        expected.sort_unstable();
        assert_eq!(found, expected, "the ring has those with ready messages");
    }
    for (due, slot) in scheduler.timers.all(&mut scheduler.handles) {
        let known = scheduler.get(slot).map(|handle| handle.due_unix_ms);
        assert!(known == Some(due) || known.map(|known| known / 1_000 * 1_000) == Some(due));
    }
    let timed = scheduler.handles.iter().filter(|(_, handle)| handle.due_unix_ms != 0).count();
    assert_eq!(timed, scheduler.timers.len());
    for &(at, alarm) in &scheduler.alarms {
        let owner = match alarm {
            Alarm::Destination(index) => scheduler.destinations.get(index).unwrap().alarm_unix_ms,
            Alarm::Site(site) => scheduler.sites.get(site.slot()).unwrap().alarm_unix_ms,
        };
        assert_eq!(owner, Some(at));
    }
    let of = |state| scheduler.counts().of(state);
    assert_eq!((of(State::Ready), of(State::Deferred)), (ready, deferred));
    let all = [State::Ready, State::Active, State::Deferred, State::Held].map(of);
    assert_eq!(all.iter().sum::<u64>(), scheduler.len() as u64);
}

/// Sites of their own limits that need a connection each.
fn next_hops(count: u32, cores: u32) -> Vec<CourseRules> {
    let target: Target =
        Target::parse("smtp://192.0.2.1:25", std::path::Path::new("/")).expect("a target");
    let rule = |number: u32| {
        let reach = Reach::fixed(&target, None);
        let name = format!("next hop {number}");
        let shared = SiteShared::new(SiteId(number.into()), &name, 20, cores, reach);
        CourseRules { lead: Lead::Site(Arc::new(shared)), lifetime_ms: LIFETIME, late_ms: None }
    };
    (0..count).map(rule).collect()
}

fn closed(scheduler: &mut Scheduler, site: u32, connection: ConnectionId, now: u64) {
    scheduler.handle(Event::ConnectionClosed { site: SiteIndex(site), connection }, now);
}

/// A thousand slow domains must not take every descriptor.
#[test]
fn all_sites_together_have_no_more_connections_than_are_allowed() {
    let allowance = Arc::new(Allowance::new(3));
    let mut scheduler = Scheduler::new(0, 1, next_hops(8, 1)).within(allowance.clone());
    for number in 0..16 {
        file(&mut scheduler, number, (number % 8) as u32, START);
    }
    let open = actions(&mut scheduler);
    let opened_sites: Vec<(u32, ConnectionId)> = open
        .iter()
        .filter_map(|action| match action {
            Action::Open { site, connection } => Some((site.0, *connection)),
            _ => None,
        })
        .collect();
    assert_eq!(opened_sites.len(), 3);
    assert_eq!((allowance.used(), allowance.is_full()), (3, true));
    // A site may have one with a second message behind it, or two.
    let waiting = scheduler.sites_waiting();
    assert!((5..=8).contains(&waiting), "{waiting}");
    // Whoever stands in line is next, each once, until all had one.
    let mut seen: Vec<u32> = opened_sites.iter().map(|(site, _)| *site).collect();
    let mut open: VecDeque<(u32, ConnectionId)> = opened_sites.into();
    for _ in 0..8 {
        let (site, connection) = open.pop_front().expect("three are always open");
        closed(&mut scheduler, site, connection, START + 1);
        for action in actions(&mut scheduler) {
            if let Action::Open { site, connection } = action {
                seen.push(site.0);
                open.push_back((site.0, connection));
            }
        }
        assert_eq!(allowance.used(), 3, "what is given back is taken by the next in line");
    }
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen, [0, 1, 2, 3, 4, 5, 6, 7], "nobody waits for ever");
}

/// An idle connection is kept from those who wait.
#[test]
fn what_idles_is_closed_for_who_waits() {
    let mut scheduler = Scheduler::new(0, 1, next_hops(2, 1)).within(Arc::new(Allowance::new(1)));
    file(&mut scheduler, 0, 0, START);
    let connection = opened(&actions(&mut scheduler))[0];
    let given = ready(&mut scheduler, connection, START);
    assert_eq!(delivered(&given).len(), 1);
    assert!(ready(&mut scheduler, connection, START).is_empty(), "it idles, and nobody minds");
    scheduler.handle(Event::ConnectionLeaving { site: SITE, connection }, START);
    file(&mut scheduler, 1, 1, START);
    assert_eq!((opened(&actions(&mut scheduler)).len(), scheduler.sites_waiting()), (0, 1));
    let told = ready(&mut scheduler, connection, START);
    assert_eq!(told, [Action::Close { connection }]);
    closed(&mut scheduler, 0, connection, START);
    assert_eq!(opened(&actions(&mut scheduler)).len(), 1);
    assert_eq!(scheduler.sites_waiting(), 0);
}

/// What one core gives back another one gets, though the first has sites in line itself.
#[test]
fn cores_share_what_there_is() {
    let allowance = Arc::new(Allowance::new(2));
    let rules = next_hops(8, 2);
    let mut cores =
        [0, 1].map(|core| Scheduler::new(core, 2, rules.clone()).within(allowance.clone()));
    for core in &mut cores {
        (0..8).for_each(|number| file(core, number, number as u32, START));
    }
    let first: Vec<Action> = actions(&mut cores[0]);
    let places: Vec<(u32, ConnectionId)> = first
        .iter()
        .filter_map(|action| match action {
            Action::Open { site, connection } => Some((site.0, *connection)),
            _ => None,
        })
        .collect();
    assert_eq!((places.len(), opened(&actions(&mut cores[1])).len()), (2, 0));
    closed(&mut cores[0], places[0].0, places[0].1, START + 1);
    assert!(opened(&actions(&mut cores[0])).is_empty(), "it has its even share");
    cores[1].handle(Event::Tick, START + 2);
    assert_eq!(opened(&actions(&mut cores[1])).len(), 1);
    assert_eq!(allowance.used(), 2);
}
