//! The scheduler by table: what happened, and what it wants done.

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

// ---- mail exchangers -------------------------------------------------------------------------

fn domain(name: &str) -> Destination {
    destination(CourseIndex(0), name)
}

fn file_to(scheduler: &mut Scheduler, number: u64, name: &str, now: u64) {
    let (destination, handle) = (domain(name), handle(number));
    scheduler.handle(Event::Filed { destination, handle, stay: true }, now);
}

/// The destinations whose site is to be asked for.
fn asked(actions: &[Action]) -> Vec<DestinationIndex> {
    let asked = |action: &Action| match action {
        Action::Resolve { destination } => Some(*destination),
        _ => None,
    };
    actions.iter().filter_map(asked).collect()
}

fn resolve(scheduler: &mut Scheduler, to: DestinationIndex, resolution: Resolution, now: u64) {
    scheduler.handle(Event::Resolved { destination: to, resolution }, now);
}

fn to_site(shared: &Arc<SiteShared>, until_unix_ms: u64) -> Resolution {
    Resolution::Site { shared: shared.clone(), until_unix_ms }
}

fn later(until_unix_ms: u64) -> Resolution {
    Resolution::Later { reason: Reason::new("no answer".into()), until_unix_ms }
}

fn no_mail(until_unix_ms: u64) -> Resolution {
    let status = crate::smtp::code::EnhancedCode::new(5, 1, 2).unwrap();
    let verdict = Arc::new(Verdict { status, text: "no such domain".into() });
    Resolution::NoMail { verdict, until_unix_ms }
}

const LONG: u64 = START + 10_000_000;

#[test]
fn a_domain_is_asked_for_once_and_its_messages_then_go_to_its_site() {
    let mut scheduler = scheduler(1, 4, &[Kind::Mail]);
    (0..3).for_each(|number| file_to(&mut scheduler, number, "a.example", START));
    let to = asked(&actions(&mut scheduler));
    assert_eq!(to.len(), 1, "for three messages");
    resolve(&mut scheduler, to[0], to_site(&site_of(9, 2, 1), LONG), START);
    assert_eq!(opened(&actions(&mut scheduler)).len(), 2, "as many as the limit allows");
    // What comes later need not wait for a look-up, and that holds beyond the last message.
    let slots: Vec<Slot> = scheduler.iter().map(|(slot, _)| slot).collect();
    slots.into_iter().for_each(|slot| drop(scheduler.finish(slot)));
    file_to(&mut scheduler, 3, "a.example", START + 1);
    assert!(asked(&actions(&mut scheduler)).is_empty());
}

#[test]
fn domains_with_the_same_hosts_share_connections_and_take_turns() {
    let mut scheduler = scheduler(1, 4, &[Kind::Mail]);
    let site = site_of(9, 1, 1);
    (0..100).for_each(|number| file_to(&mut scheduler, number, "long.example", START));
    (100..103).for_each(|number| file_to(&mut scheduler, number, "short.example", START));
    let to = asked(&actions(&mut scheduler));
    to.iter().for_each(|&to| resolve(&mut scheduler, to, to_site(&site, LONG), START));
    let connection = opened(&actions(&mut scheduler))[0];
    let mut order = Vec::new();
    for _ in 0..8 {
        let slot = delivered(&ready(&mut scheduler, connection, START))[0].1;
        order.push(scheduler.finish(slot).unwrap().id.0);
    }
    assert_eq!(order, [0, 100, 1, 101, 2, 102, 3, 4]);
    assert_eq!(site.connections(), 1);
}

#[test]
fn cores_that_hear_of_different_hosts_do_not_hand_a_message_to_and_fro() {
    let rules = rules(&[Kind::Mail], 1, 2);
    let mut cores = [Scheduler::new(0, 2, rules.clone()), Scheduler::new(1, 2, rules)];
    // Each is told that the other core is the home of the site.
    let sites = [site_of(11, 1, 2), site_of(10, 1, 2)];
    file_to(&mut cores[0], 0, "a.example", START);
    let mut handed = 0;
    for at in [0, 1] {
        let to = asked(&actions(&mut cores[at]))[0];
        resolve(&mut cores[at], to, to_site(&sites[at], LONG), START);
        while let Some(action) = cores[at].poll_action() {
            let Action::Forward { core } = action else { panic!("{action:?}") };
            handed += 1;
            let (destination, handle) = cores[at].take_leaving().unwrap();
            let event = Event::Filed { destination, handle, stay: true };
            cores[core as usize].handle(event, START);
        }
    }
    assert_eq!(handed, 2);
    assert_eq!(opened(&actions(&mut cores[0])).len(), 1, "it came back and is served");
    check(&mut cores[0]);
}

#[test]
fn a_resolution_that_has_run_out_is_renewed_and_a_domain_moves_with_its_messages() {
    let mut scheduler = scheduler(1, 4, &[Kind::Mail]);
    let (old, new) = (site_of(8, 1, 1), site_of(9, 1, 1));
    (0..5).for_each(|number| file_to(&mut scheduler, number, "a.example", START));
    let to = asked(&actions(&mut scheduler))[0];
    resolve(&mut scheduler, to, to_site(&old, START + 1_000), START);
    let connection = opened(&actions(&mut scheduler))[0];
    assert_eq!(scheduler.site_of(to).map(|site| site.id()), Some(old.id()));
    // The next message after the end still goes where the last ones went, and the answer moves
    // the rest.
    let given = ready(&mut scheduler, connection, START + 1_000);
    assert_eq!((delivered(&given).len(), asked(&given)), (1, vec![to]));
    let before = scheduler.steps;
    resolve(&mut scheduler, to, to_site(&new, LONG), START + 1_001);
    assert!(scheduler.steps - before < 5, "a move does not touch its messages");
    let moved = actions(&mut scheduler);
    assert_eq!(opened(&moved).len(), 1);
    assert_eq!((old.members(), new.members()), (1, 1), "the old connection is still busy");
    scheduler.handle(Event::ConnectionClosed { site: SITE, connection }, START + 1_002);
    assert_eq!((old.members(), old.connections(), scheduler.site_count()), (0, 0, 1));
    check(&mut scheduler);
}

#[test]
fn a_core_joins_a_busy_site_of_a_domain_that_it_took_for_anothers() {
    let rules = rules(&[Kind::Mail], 8, 2);
    let mut other = Scheduler::new(1, 2, rules);
    let site = site_of(10, 8, 2);
    let filed = |number| Event::Filed {
        destination: domain("a.example"),
        handle: handle(number),
        stay: false,
    };
    other.handle(filed(0), START);
    let to = asked(&actions(&mut other))[0];
    resolve(&mut other, to, to_site(&site, LONG), START);
    assert_eq!(actions(&mut other), [Action::Forward { core: 0 }]);
    // The home has joined, and has more than it can send soon.
    site.join();
    site.report_backlog(true);
    other.handle(filed(1), START);
    assert_eq!(opened(&actions(&mut other)).len(), 1, "it joins in");
    assert_eq!((other.len(), site.members()), (1, 2));
    check(&mut other);
}

#[test]
fn a_working_site_outlasts_name_servers_that_do_not() {
    const HOUR: u64 = 3_600_000;
    let mut scheduler = scheduler(1, 1, &[Kind::Mail]);
    let site = site_of(9, 1, 1);
    file_to(&mut scheduler, 0, "a.example", START);
    let to = asked(&actions(&mut scheduler))[0];
    resolve(&mut scheduler, to, to_site(&site, START + 1_000), START);
    let connection = opened(&actions(&mut scheduler))[0];
    let mut now = START + 1_000;
    let mut looks = 0;
    while now < START + 1_000 + 4 * HOUR {
        looks += 1;
        file_to(&mut scheduler, looks, "a.example", now);
        assert_eq!(asked(&actions(&mut scheduler)), [to]);
        resolve(&mut scheduler, to, later(now + 300_000 + looks), now);
        assert_eq!((scheduler.resolution_failures(to), scheduler.rest_of(to, now)), (0, None));
        scheduler.handle(Event::Tick, now + 29_999);
        assert_eq!(asked(&actions(&mut scheduler)), [], "not at once");
        now += 60_000;
    }
    assert_eq!(looks, 240);
    let given = ready(&mut scheduler, connection, now);
    assert_eq!(delivered(&given).len(), 1, "it is used to the end");
    assert_eq!(asked(&given), [to]);
    resolve(&mut scheduler, to, later(now + 300_000), now);
    assert!(scheduler.rest_of(to, now).is_some(), "and not for ever");
    check(&mut scheduler);
}

#[test]
fn what_waits_is_counted_by_destinations() {
    let mut scheduler = scheduler(1, 1, &[Kind::Mail, Kind::Hold]);
    (0..3).for_each(|number| file_to(&mut scheduler, number, "a.example", START));
    file(&mut scheduler, 9, 1, START);
    let waiting = |scheduler: &Scheduler| -> Vec<(Destination, u64)> {
        let at = |place| scheduler.waiting_at(place, START);
        let found = (0..scheduler.destination_places()).filter_map(at);
        found.map(|(destination, waiting)| (destination.clone(), waiting)).collect()
    };
    assert_eq!(waiting(&scheduler), [], "they are ready, or held");
    let to = asked(&actions(&mut scheduler))[0];
    resolve(&mut scheduler, to, later(START + 5_000), START);
    assert_eq!(waiting(&scheduler), [(domain("a.example"), 3)]);
}

#[test]
fn domains_that_nobody_can_tell_about_leave_room_for_others() {
    let mut scheduler = scheduler(1, 1, &[Kind::Mail]);
    let most = crate::limits::RESOLUTIONS_AT_ONCE as usize;
    (0..most as u64)
        .for_each(|number| file_to(&mut scheduler, number, &format!("{number}.example"), START));
    let dead = asked(&actions(&mut scheduler));
    assert_eq!(dead.len(), most);
    dead.iter().for_each(|&to| resolve(&mut scheduler, to, later(START + 1_000), START));
    scheduler.handle(Event::Tick, START + 1_000);
    let again = asked(&actions(&mut scheduler));
    assert_eq!(again.len(), most - crate::limits::RESOLUTIONS_RESERVED as usize);
    file_to(&mut scheduler, 5_000, "new.example", START + 1_000);
    assert_eq!(asked(&actions(&mut scheduler)).len(), 1, "at once");
    // The others have their turn.
    again.iter().for_each(|&to| resolve(&mut scheduler, to, later(LONG), START + 1_001));
    let left = most - again.len();
    assert_eq!(asked(&actions(&mut scheduler)).len(), left - 1, "the new one is still at it");
    check(&mut scheduler);
}

#[test]
fn nothing_to_send_means_nothing_to_ask() {
    let mut scheduler = scheduler(1, 4, &[Kind::Mail]);
    file_to(&mut scheduler, 0, "a.example", START);
    let to = asked(&actions(&mut scheduler))[0];
    resolve(&mut scheduler, to, to_site(&site_of(9, 1, 1), START + 1_000), START);
    let connection = opened(&actions(&mut scheduler))[0];
    let site = scheduler.destinations.get(to).unwrap().site().unwrap();
    scheduler.handle(Event::ConnectionReady { site, connection }, START);
    let slot = delivered(&actions(&mut scheduler))[0].1;
    scheduler.finish(slot);
    (1..100).for_each(|second| scheduler.handle(Event::Tick, START + 1_000 * second));
    assert!(actions(&mut scheduler).is_empty());
    file_to(&mut scheduler, 1, "a.example", START + 100_000);
    assert_eq!(asked(&actions(&mut scheduler)), [to]);
}

#[test]
fn a_domain_that_nobody_can_tell_about_rests_and_is_asked_for_again() {
    let mut scheduler = scheduler(1, 4, &[Kind::Mail]);
    file_to(&mut scheduler, 0, "a.example", START);
    let to = asked(&actions(&mut scheduler))[0];
    resolve(&mut scheduler, to, later(START + 5_000), START);
    file_to(&mut scheduler, 1, "a.example", START + 10);
    scheduler.handle(Event::Tick, START + 4_999);
    assert!(actions(&mut scheduler).is_empty());
    let rest = scheduler.rest_of(to, START + 4_999).expect("it rests");
    assert_eq!((rest.until_unix_ms, &*rest.reason), (START + 5_000, "no answer"));
    scheduler.handle(Event::Tick, START + 5_000);
    assert_eq!(asked(&actions(&mut scheduler)), [to]);
    resolve(&mut scheduler, to, later(START + 20_000), START + 5_001);
    assert_eq!(scheduler.resolution_failures(to), 2);
    // An operator does not wait for that.
    let domain = "a.example".into();
    scheduler.handle(Event::RetryDomain { domain }, START + 6_000);
    assert_eq!(asked(&actions(&mut scheduler)), [to]);
    // Its lifetime is looked at meanwhile: both go when it is over.
    resolve(&mut scheduler, to, later(LONG), START + 6_001);
    scheduler.handle(Event::Tick, START + LIFETIME - 1);
    assert!(actions(&mut scheduler).is_empty());
    scheduler.handle(Event::Tick, START + LIFETIME);
    let expired = actions(&mut scheduler);
    assert_eq!(expired.len(), 2);
    assert!(expired.iter().all(|action| matches!(action, Action::Expire { .. })));
}

#[test]
fn what_nobody_will_take_goes_back_a_few_at_a_time() {
    let mut scheduler = scheduler(1, 4, &[Kind::Mail]);
    (0..200).for_each(|number| file_to(&mut scheduler, number, "no.example", START));
    let to = asked(&actions(&mut scheduler))[0];
    resolve(&mut scheduler, to, no_mail(START + 60_000), START);
    let mut refused = 0;
    let mut take = |scheduler: &mut Scheduler| {
        let before = refused;
        for action in actions(scheduler) {
            let Action::Refuse { slot, verdict } = action else { panic!("{action:?}") };
            assert_eq!(&*verdict.text, "no such domain");
            scheduler.finish(slot);
            refused += 1;
        }
        refused - before
    };
    assert_eq!(take(&mut scheduler), 64);
    for (tick, expected) in [(1, 64), (2, 64), (3, 8), (4, 0)] {
        scheduler.handle(Event::Tick, START + tick);
        assert_eq!(take(&mut scheduler), expected);
    }
    // The answer holds for what comes later, until it has run out.
    file_to(&mut scheduler, 500, "no.example", START + 59_999);
    assert_eq!(take(&mut scheduler), 1);
    file_to(&mut scheduler, 501, "no.example", START + 60_000);
    assert_eq!(asked(&actions(&mut scheduler)), [to]);
}

#[test]
fn etrn_makes_what_waits_for_a_domain_due_and_nothing_else() {
    let mut scheduler = scheduler(1, 8, &[Kind::Mail]);
    let (ours, other) = (site_of(8, 8, 1), site_of(9, 8, 1));
    for (number, name, site) in [(0, "a.example", &ours), (1, "b.example", &other)] {
        file_to(&mut scheduler, number, name, START);
        let to = asked(&actions(&mut scheduler))[0];
        resolve(&mut scheduler, to, to_site(site, LONG), START);
        let opened = opened(&actions(&mut scheduler));
        let index = scheduler.destinations.get(to).unwrap().site().unwrap();
        let connection = opened[0];
        scheduler.handle(Event::ConnectionReady { site: index, connection }, START);
        let slot = delivered(&actions(&mut scheduler))[0].1;
        let (recipients, due_unix_ms) = (Recipients::All(1), START + 50_000);
        let reason = Some(Reason::default());
        let event = Event::Deferred { slot, recipients, due_unix_ms, reason };
        scheduler.handle(event, START);
    }
    assert_eq!((scheduler.waiting_for("a.example"), scheduler.waiting_for("c.example")), (1, 0));
    scheduler.handle(Event::RetryDomain { domain: "a.example".into() }, START + 1);
    assert_eq!(opened(&actions(&mut scheduler)).len(), 1);
    assert_eq!(scheduler.counts().of(State::Deferred), 1);
    check(&mut scheduler);
}

#[test]
fn late_messages_of_a_destination_that_fails_are_told_once() {
    let mut rules = rules(&[Kind::Mail], 1, 1);
    rules[0].late_ms = Some(10_000);
    let mut scheduler = Scheduler::new(0, 1, rules);
    file_to(&mut scheduler, 0, "a.example", START);
    let to = asked(&actions(&mut scheduler))[0];
    resolve(&mut scheduler, to, later(START + 60_000), START);
    scheduler.handle(Event::Tick, START + 9_999);
    assert!(actions(&mut scheduler).is_empty());
    scheduler.handle(Event::Tick, START + 10_000);
    let late = actions(&mut scheduler);
    let [Action::Delay { slot, due_unix_ms }] = late[..] else { panic!("{late:?}") };
    assert_eq!(due_unix_ms, START + 60_000, "when its destination is tried again");
    scheduler.delay_told(slot);
    scheduler.handle(Event::Returned { slot }, START + 10_001);
    (0..40).for_each(|second| scheduler.handle(Event::Tick, START + 11_000 + 1_000 * second));
    assert!(actions(&mut scheduler).is_empty());
}

/// A dead destination with a million messages costs the others nothing, and no tick walks them.
#[test]
fn a_million_messages_for_a_dead_domain_cost_nothing_while_they_wait() {
    let mut scheduler = scheduler(1, 4, &[Kind::Mail]);
    let (dead, well) = (site_of(8, 4, 1), site_of(9, 4, 1));
    file_to(&mut scheduler, 0, "dead.example", START);
    let to = asked(&actions(&mut scheduler))[0];
    resolve(&mut scheduler, to, to_site(&dead, START + 60_000), START);
    let connection = opened(&actions(&mut scheduler))[0];
    dead.fail(START + 300_000, "refused");
    scheduler.handle(Event::ConnectionClosed { site: SITE, connection }, START);
    let before = scheduler.steps;
    const MILLION: u64 = 1_000_000;
    (1..MILLION).for_each(|number| file_to(&mut scheduler, number, "dead.example", START));
    assert!(scheduler.steps - before <= 4 * MILLION, "{}", scheduler.steps - before);
    assert!(scheduler.timers.len() + scheduler.alarms.len() <= 4, "no timer a message");
    // Ten minutes of ticks, with a probe and a new look-up in between.
    let before = scheduler.steps;
    for tick in 1..=6_000 {
        let now = START + 100 * tick;
        scheduler.handle(Event::Tick, now);
        for action in actions(&mut scheduler) {
            match action {
                Action::Open { site, connection } => {
                    dead.fail(now + 300_000, "refused");
                    scheduler.handle(Event::ConnectionClosed { site, connection }, now);
                }
                Action::Resolve { destination } => {
                    resolve(&mut scheduler, destination, to_site(&dead, now + 60_000), now);
                }
                other => panic!("{other:?}"),
            }
        }
    }
    assert!(scheduler.steps - before < 1_000, "{}", scheduler.steps - before);
    // Others are served meanwhile as if it were not there.
    let before = scheduler.steps;
    let now = START + 700_000;
    file_to(&mut scheduler, MILLION, "well.example", now);
    let to = asked(&actions(&mut scheduler))[0];
    resolve(&mut scheduler, to, to_site(&well, LONG), now);
    let connection = opened(&actions(&mut scheduler))[0];
    let site = scheduler.destinations.get(to).unwrap().site().unwrap();
    scheduler.handle(Event::ConnectionReady { site, connection }, now);
    assert_eq!(delivered(&actions(&mut scheduler)).len(), 1);
    assert!(scheduler.steps - before < 20, "{}", scheduler.steps - before);
    // And it can move as a whole at once.
    let before = scheduler.steps;
    scheduler.handle(Event::RetryDomain { domain: "dead.example".into() }, now);
    let to = asked(&actions(&mut scheduler))[0];
    resolve(&mut scheduler, to, to_site(&well, LONG), now);
    assert!(scheduler.steps - before < 20, "{}", scheduler.steps - before);
}

#[test]
fn destinations_without_messages_are_remembered_within_a_bound() {
    let mut scheduler = scheduler(1, 4, &[Kind::Mail]);
    let most = crate::limits::DESTINATIONS_REMEMBERED as usize;
    for number in 0..most as u64 + 100 {
        let name = format!("{number}.example");
        file_to(&mut scheduler, number, &name, START);
        let to = asked(&actions(&mut scheduler))[0];
        resolve(&mut scheduler, to, to_site(&site_of(100 + number, 1, 1), LONG), START);
        let slot = scheduler.iter().next().unwrap().0;
        let (site, connection) = match actions(&mut scheduler)[..] {
            [Action::Open { site, connection }] => (site, connection),
            ref other => panic!("{other:?}"),
        };
        scheduler.finish(slot);
        scheduler.handle(Event::ConnectionClosed { site, connection }, START);
    }
    assert!(scheduler.destination_count() <= most + 2);
    assert!(scheduler.site_count() <= most + 1);
    check(&mut scheduler);
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
    for &(due, slot) in &scheduler.timers {
        assert_eq!(scheduler.get(slot).map(|handle| handle.due_unix_ms), Some(due));
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
