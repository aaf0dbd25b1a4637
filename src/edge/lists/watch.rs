//! Looks at the test entries of a list, and tells when it is switched off or on.
//!
//! A task for each list, all of one worker, so that each change is told once.  It takes what all workers saw
//! ([`Board`](super::board::Board)), and its own checks, to the machine of [`health`](super::health).

use std::net::Ipv4Addr;
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use super::health::{Change, Check, Health, State, judge};
use super::query::{self, Reading};
use super::{Kind, Zone};
use crate::dns::{Lookup, Name, RecordType, join};
use crate::runtime;

/// Watches one list for ever; `tell` hears of each change.
pub async fn watch(zone: &Zone, resolver: &impl Lookup, tell: impl Fn(&Zone, Change)) {
    let mut health = Health::new(zone.self_check, Instant::now());
    loop {
        let now = Instant::now();
        let odd = zone.board.take_odd().and_then(|trouble| health.saw_odd(trouble, now));
        let seen = odd.or_else(|| health.saw_silence(zone.board.silence(), now));
        follow(zone, &health, seen, &tell);
        if health.is_check_due(now) {
            let check = check(zone, resolver).await;
            let change = health.checked(check, Instant::now());
            follow(zone, &health, change, &tell);
        }
        runtime::sleep(LOOK).await;
    }
}

/// Lets all workers know, and whoever wants to be told.
fn follow(zone: &Zone, health: &Health, change: Option<Change>, tell: &impl Fn(&Zone, Change)) {
    if zone.board.state() != health.state() {
        zone.board.publish(health.state());
        zone.board.forget();
    }
    if let Some(change) = change {
        tell(zone, change);
    }
}

/// Looks at the test entries of one list (RFC 5782 section 5), whatever the cache remembers.
///
/// Of IPv6 only what must not be listed: a list of IPv4 addresses alone is as good as any.
pub async fn check(zone: &Zone, resolver: &impl Lookup) -> Check {
    let names: Vec<Option<Name>> = match zone.kind {
        Kind::Addresses => vec![
            query::of_address(LISTED.into(), &zone.name),
            query::of_address(NOT_LISTED.into(), &zone.name),
            query::of_mapped(NOT_LISTED, &zone.name),
        ],
        Kind::Domains => ["test", "invalid"]
            .map(|name| Name::parse(name).and_then(|name| query::of_domain(&name, &zone.name)))
            .into(),
    };
    let read = async |name: Option<Name>| match name {
        Some(name) => query::read(&*resolver.lookup_anew(&name, RecordType::A).await, &[ANY_CODE]),
        None => Reading::Unanswered("the zone's name is too long".into()),
    };
    let readings = join::join_all(names.into_iter().map(read)).await;
    let (present, absent) = readings.split_first().expect("each list has test entries");
    judge(present, absent)
}

/// What a check found, for a person.
pub fn describe(check: Check) -> String {
    match check {
        Check::Good => "its test entries are as they must be".into(),
        Check::Bad(trouble) => trouble.to_string(),
        Check::Unanswered => "it does not answer".into(),
    }
}

/// Whether a list of that state is believed, for a person.
pub fn describe_state(state: State) -> String {
    match state {
        State::Starting => "not checked yet".into(),
        State::On => "on".into(),
        State::Off(trouble) => format!("switched off: {trouble}"),
    }
}

/// How often it is looked at what the workers saw.
const LOOK: Duration = Duration::from_millis(250);
/// Every list of addresses holds the first and none the second.
const LISTED: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
const NOT_LISTED: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 1);
/// A test entry may have any code.
const ANY_CODE: RangeInclusive<Ipv4Addr> =
    Ipv4Addr::new(127, 0, 0, 0)..=Ipv4Addr::new(127, 255, 255, 255);
