//! The scheduler where mail exchangers have to be asked for.

use super::*;

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
