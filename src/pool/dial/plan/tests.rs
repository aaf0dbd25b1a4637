//! Orders by table, without clock, network or chance.

use std::time::Duration;

use super::*;

const HOUR: Duration = Duration::from_secs(3_600);

fn host(preference: u16, name: &str, addresses: &[&str], expires: Instant) -> MailHost {
    MailHost {
        preference,
        name: name.into(),
        addresses: addresses.iter().map(|text| text.parse().expect("an address")).collect(),
        expires,
        authentic: false,
    }
}

fn drain(plan: &mut DialPlan, health: &HostHealth, now: Instant, rng: &mut Rng) -> Vec<String> {
    let mut order = Vec::new();
    loop {
        match plan.next(health, now, rng) {
            DialStep::Connect(target) => order.push(target.address.ip().to_string()),
            DialStep::LookUp(names) => panic!("{names:?} are known"),
            DialStep::Exhausted => return order,
        }
    }
}

fn order(
    hosts: &[MailHost],
    source: Option<&str>,
    health: &HostHealth,
    now: Instant,
) -> Vec<String> {
    let mut rng = Rng::with_seed(7);
    let source = source.map(|text| text.parse().expect("an address"));
    let mut plan = DialPlan::new(hosts, 25, source, now, &mut rng);
    drain(&mut plan, health, now, &mut rng)
}

#[test]
fn by_preference_and_both_families_in_turn() {
    let now = Instant::now();
    let hosts = [
        host(10, "one", &["192.0.2.1", "2001:db8::1"], now + HOUR),
        host(20, "two", &["192.0.2.2"], now + HOUR),
    ];
    let well = HostHealth::default();
    assert_eq!(order(&hosts, None, &well, now), ["2001:db8::1", "192.0.2.1", "192.0.2.2"]);
    assert_eq!(order(&hosts, Some("192.0.2.9"), &well, now), ["192.0.2.1", "192.0.2.2"]);
    assert_eq!(order(&hosts, Some("2001:db8::9"), &well, now), ["2001:db8::1"]);
}

#[test]
fn equals_share_the_load() {
    let now = Instant::now();
    let hosts = ["a", "b", "c", "d"].map(|name| {
        let last = name.as_bytes()[0];
        host(10, name, &[&format!("192.0.2.{last}")], now + HOUR)
    });
    let mut rng = Rng::with_seed(1);
    let mut first = std::collections::HashMap::new();
    for _ in 0..400 {
        let mut plan = DialPlan::new(&hosts, 25, None, now, &mut rng);
        let order = drain(&mut plan, &HostHealth::default(), now, &mut rng);
        assert_eq!(order.len(), 4);
        *first.entry(order[0].clone()).or_insert(0) += 1;
    }
    assert!(first.len() == 4 && first.values().all(|times| (60..140).contains(times)), "{first:?}");
}

#[test]
fn what_failed_lately_comes_last_until_it_is_forgiven() {
    let now = Instant::now();
    let hosts = [
        host(10, "one", &["192.0.2.1"], now + HOUR),
        host(20, "two", &["192.0.2.2"], now + HOUR),
        host(30, "three", &["192.0.2.3"], now + HOUR),
    ];
    let mut health = HostHealth::default();
    health.failed("192.0.2.2:25".parse().expect("an address"), now);
    health.failed("192.0.2.1:25".parse().expect("an address"), now + Duration::from_secs(1));
    let soon = now + Duration::from_secs(2);
    assert_eq!(order(&hosts, None, &health, soon), ["192.0.2.3", "192.0.2.2", "192.0.2.1"]);
    let later = now + Duration::from_secs(120);
    assert_eq!(order(&hosts, None, &health, later), ["192.0.2.1", "192.0.2.2", "192.0.2.3"]);
}

#[test]
fn sixteen_addresses_each_once() {
    let now = Instant::now();
    let addresses: Vec<String> = (0..40).map(|last| format!("192.0.2.{}", last % 20)).collect();
    let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
    let hosts = [host(10, "one", &addresses, now + HOUR)];
    let mut tried = order(&hosts, None, &HostHealth::default(), now);
    assert_eq!(tried.len(), ADDRESSES_MAX);
    tried.sort();
    tried.dedup();
    assert_eq!(tried.len(), ADDRESSES_MAX);
}

#[test]
fn names_are_looked_up_when_their_turn_comes() {
    let now = Instant::now();
    let hosts = [
        host(10, "one.test", &["192.0.2.1"], now + HOUR),
        host(20, "stale.test", &["192.0.2.2"], now),
        host(20, "new.test", &[], now + HOUR),
        host(20, "192.0.2.7", &["192.0.2.7"], now),
        host(30, "gone.test", &["192.0.2.4"], now),
    ];
    let (well, mut rng) = (HostHealth::default(), Rng::with_seed(1));
    let mut plan = DialPlan::new(&hosts, 25, None, now, &mut rng);
    let DialStep::Connect(first) = plan.next(&well, now, &mut rng) else { panic!("known") };
    assert_eq!((&*first.host, first.preference, plan.has_equal()), ("one.test", 10, false));
    let DialStep::LookUp(mut names) = plan.next(&well, now, &mut rng) else { panic!("unknown") };
    names.sort();
    assert_eq!(names.iter().map(Name::as_str).collect::<Vec<_>>(), ["new.test", "stale.test"]);
    let found = |result| Addresses { result, authentic: false, expires: now };
    // Where the DNS cannot say, the old address is better than none.
    let failed = found(Err(LookupError::Temporary { why: "no answer".into() }));
    plan.looked_up(&names[1], &failed);
    let usable = "192.0.2.3".parse().expect("an address");
    let unusable = "0.0.0.0".parse().expect("an address");
    plan.looked_up(&names[0], &found(Ok(vec![unusable, usable])));
    let mut group = Vec::new();
    let step = loop {
        match plan.next(&well, now, &mut rng) {
            DialStep::Connect(target) => group.push(target.address.ip().to_string()),
            step => break step,
        }
    };
    group.sort();
    assert_eq!(group, ["192.0.2.2", "192.0.2.3", "192.0.2.7"]);
    let gone = Name::parse("gone.test").expect("a name");
    assert_eq!(step, DialStep::LookUp(vec![gone.clone()]));
    plan.looked_up(&gone, &found(Err(LookupError::NoName)));
    assert_eq!(plan.next(&well, now, &mut rng), DialStep::Exhausted);
}
