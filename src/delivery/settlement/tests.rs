//! Every case of what an attempt may come to, as the effects that follow.

use std::collections::BTreeSet;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::message::{MailParameters, MessageIds, Notify, Recipient};
use crate::smtp::address::{ForwardPath, ReversePath, Utf8};
use crate::smtp::code::EnhancedCode;

const ACCEPTED: u64 = 1_750_000_000_000;
const HOUR: u64 = 3_600_000;

fn policy() -> RetryPolicy {
    let waits = [Duration::from_secs(300), Duration::from_secs(3_600)];
    let policy = RetryPolicy::new(&waits, Duration::from_secs(5 * 86_400)).expect("valid");
    policy.with_delay_notice(Some(Duration::from_secs(4 * 3_600)))
}

fn id() -> MessageId {
    MessageIds::new(0, MessageId(0)).next(ACCEPTED)
}

fn envelope(recipients: usize, notify: Notify) -> Envelope {
    let path = |number| ForwardPath::parse(format!("<r{number}@r.test>").as_bytes(), Utf8::Refused);
    let recipient = |number| Recipient { path: path(number).expect("valid"), notify, orcpt: None };
    Envelope {
        reverse_path: ReversePath::parse(b"<s@s.test>", Utf8::Refused).expect("valid"),
        parameters: MailParameters::default(),
        recipients: (0..recipients).map(recipient).collect(),
    }
}

fn part(envelope: &Envelope) -> Part<'_> {
    Part { id: id(), envelope, attempts_before: 2, delay_told: false, released: false }
}

fn reason(status: (u8, u16, u16), text: &str) -> Reason {
    let status = EnhancedCode::new(status.0, status.1, status.2).expect("valid");
    Reason::Local { status, text: text.into() }
}

/// `ok`, `at once`, or else a refusal: `later ..` or `never ..`.
fn attempted(word: &str) -> Attempted {
    match word {
        "ok" => Attempted::Delivered,
        "at once" => Attempted::AtOnce,
        later if later.starts_with("later") => Attempted::Deferred(reason((4, 2, 2), later)),
        never => Attempted::Failed(reason((5, 1, 1), never)),
    }
}

struct Case<'a> {
    part: Part<'a>,
    hop: Hop,
    retry: RetryPolicy,
    soft_bounce: bool,
    age_ms: u64,
    is_only_part: bool,
}

impl<'a> Case<'a> {
    fn new(envelope: &'a Envelope) -> Case<'a> {
        let hop = Hop { taken: Some("250 taken".into()), ..Hop::default() };
        let part = part(envelope);
        Case { part, hop, retry: policy(), soft_bounce: false, age_ms: HOUR, is_only_part: true }
    }

    fn judge(&self) -> Judge<'_> {
        Judge {
            retry: &self.retry,
            soft_bounce: self.soft_bounce,
            now_unix_ms: ACCEPTED + self.age_ms,
            random: 0,
        }
    }

    /// The effects of an attempt with these outcomes, one a recipient.
    fn attempt(&self, words: &[&str]) -> Vec<Effect> {
        let outcomes =
            words.iter().enumerate().map(|(place, word)| (place as u16, attempted(word)));
        let judge = self.judge();
        let settlement = Settlement::of_attempt(self.part, &judge, self.hop.clone(), outcomes);
        self.effects(settlement)
    }

    fn effects(&self, settlement: Settlement<'_>) -> Vec<Effect> {
        let needs_content = settlement.needs_content();
        let paper = Paper {
            hostname: "mx.test",
            accepted_unix_ms: ACCEPTED,
            content: b"Subject: x\r\n\r\nbody\r\n",
            complete: true,
        };
        let mut ids = MessageIds::new(1, MessageId(0));
        let now_unix_ms = ACCEPTED + self.age_ms;
        let effects = settlement.effects(self.is_only_part, &paper, || ids.next(now_unix_ms));
        let is_noticed = |effect: &Effect| matches!(effect, Effect::Append { notice: Some(_), .. });
        assert_eq!(effects.iter().any(is_noticed), needs_content);
        effects
    }
}

/// The effects in a few words each.
fn told(effects: &[Effect]) -> Vec<String> {
    let tell = |effect: &Effect| match effect {
        Effect::Report(Report { told, places, attempts, reply }) => {
            let kind = match told {
                Told::Deferred { soft_bounce: true, .. } => "soft bounce".to_owned(),
                Told::Deferred { .. } => "deferred".to_owned(),
                told => format!("{told:?}").to_lowercase(),
            };
            let reply = reply.as_deref().unwrap_or("-");
            format!("tell {kind} {places:?} after {attempts}: {reply}")
        }
        Effect::Append { record, notice } => {
            let record = match record {
                Record::Done { places, last } => {
                    format!("done {places:?}{}", if *last { " last" } else { "" })
                }
                Record::Defer { places, attempts, delay_told, reply, .. } => {
                    let told = if *delay_told { ", told" } else { "" };
                    format!("defer {places:?} after {attempts}{told}: {reply}")
                }
            };
            let action = notice.as_ref().map(|notice| format!(" + {}", action(notice)));
            record + &action.unwrap_or_default()
        }
        Effect::EndPart => "end part".into(),
        Effect::Finish => "finish".into(),
        Effect::Wait { recipients, due_unix_ms, reason, delay_told } => {
            let wait = due_unix_ms.saturating_sub(ACCEPTED) / 60_000;
            let told = if *delay_told { ", told" } else { "" };
            let reason = reason.as_deref().unwrap_or("-");
            format!("wait {:?} until {wait} min{told}: {reason}", recipients.places())
        }
    };
    effects.iter().map(tell).collect()
}

fn action(notice: &Parcel) -> String {
    let text = std::str::from_utf8(&notice.notice.content).expect("ASCII");
    let action = text.lines().find_map(|line| line.strip_prefix("Action: ")).expect("it has one");
    format!("{action} {}", text.matches("Final-Recipient").count())
}

#[test]
fn what_an_operator_has_let_go_says_so_in_every_record() {
    let envelope = envelope(1, Notify::UNSPECIFIED);
    for (released, expected) in [(false, DeferState::Deferred), (true, DeferState::Released)] {
        let mut case = Case::new(&envelope);
        case.part.released = released;
        let effects = case.attempt(&["later full"]);
        let records = effects.iter().filter_map(|effect| match effect {
            Effect::Append { record, .. } => Some(record.for_log(id(), SegmentNo(1), 1)),
            _ => None,
        });
        let states = records.map(|record| match record {
            NewRecord::Defer(defer) => (defer.state, defer.next_attempt_unix_ms > ACCEPTED),
            _ => panic!("it waits"),
        });
        assert_eq!(states.collect::<Vec<_>>(), [(expected, true)]);
    }
}

#[test]
fn an_attempt_has_its_effects_in_their_order() {
    let envelope = envelope(3, Notify::UNSPECIFIED);
    let case = Case::new(&envelope);
    assert_eq!(
        told(&case.attempt(&["ok", "ok", "ok"])),
        ["tell delivered [0, 1, 2] after 3: 250 taken", "done [0, 1, 2] last", "finish"]
    );
    assert_eq!(
        told(&case.attempt(&["ok", "never a", "later b"])),
        [
            "tell delivered [0] after 3: 250 taken",
            "tell deferred [2] after 3: later b",
            "tell bounced [1] after 3: never a",
            "done [0]",
            "done [1] + failed 1",
            "defer [2] after 3: later b",
            "wait [2] until 112 min: later b",
        ]
    );
    // Those that heard the same wait in one record.
    assert_eq!(
        told(&case.attempt(&["later a", "later b", "later a"])),
        [
            "tell deferred [0, 2] after 3: later a",
            "tell deferred [1] after 3: later b",
            "defer [0, 2] after 3: later a",
            "defer [1] after 3: later b",
            "wait [0, 1, 2] until 112 min: later a",
        ]
    );
}

#[test]
fn only_the_last_part_ends_the_message() {
    let envelope = envelope(3, Notify::UNSPECIFIED);
    let mut case = Case::new(&envelope);
    case.is_only_part = false;
    let effects = told(&case.attempt(&["ok", "never a", "ok"]));
    assert_eq!(effects[2..], ["done [0, 2]", "done [1] + failed 1", "end part", "finish"]);
    let effects = told(&case.attempt(&["ok", "later", "ok"]));
    assert!(!effects.contains(&"end part".to_owned()), "a part that waits has not ended");
}

/// Else what a peer may have taken without a word would be sent again and again.
#[test]
fn those_that_could_go_at_once_wait_with_the_deferred() {
    let envelope = envelope(2, Notify::UNSPECIFIED);
    let case = Case::new(&envelope);
    let both = told(&case.attempt(&["at once", "later a"]));
    assert_eq!(both.last().expect("effects"), "wait [0, 1] until 112 min: later a");
    let alone = told(&case.attempt(&["at once", "ok"]));
    assert_eq!(alone.last().expect("effects"), "wait [0] until 0 min: -");
    assert!(!alone.iter().any(|effect| effect.starts_with("defer")), "it counts as no attempt");
}

#[test]
fn more_bounces_than_a_notice_holds_lose_none() {
    let envelope = envelope(2_500, Notify::UNSPECIFIED);
    let case = Case::new(&envelope);
    let effects = case.attempt(&vec!["never"; 2_500]);
    let (mut done, mut named) = (BTreeSet::new(), BTreeSet::new());
    let (mut ids, mut lasts) = (BTreeSet::new(), Vec::new());
    for effect in &effects {
        let Effect::Append { record: Record::Done { places, last }, notice } = effect else {
            continue;
        };
        let notice = notice.as_ref().expect("each DONE comes with its notice");
        assert!(ids.insert(notice.id));
        lasts.push(*last);
        let before = named.len();
        let text = std::str::from_utf8(&notice.notice.content).expect("ASCII");
        let paths = text.lines().filter_map(|line| line.strip_prefix("Final-Recipient: rfc822; "));
        named.extend(paths.map(str::to_owned));
        done.extend(places.iter().copied());
        assert_eq!(named.len() - before, places.len());
        assert!(places.len() <= notice::RECIPIENTS_PER_NOTICE && places.is_sorted());
    }
    assert_eq!((done.len(), named.len()), (2_500, 2_500));
    assert_eq!(lasts, [false, false, true]);
    assert_eq!(effects.last(), Some(&Effect::Finish));
}

#[test]
fn a_delay_is_told_once_and_with_its_deferral() {
    let envelope = envelope(3, Notify::UNSPECIFIED);
    let mut case = Case::new(&envelope);
    case.age_ms = 4 * HOUR - 1;
    let words = ["later a", "ok", "later b"];
    let is_noticed = |effects: &[String]| effects.iter().any(|effect| effect.contains("delayed"));
    assert!(!is_noticed(&told(&case.attempt(&words))));
    case.age_ms = 4 * HOUR;
    assert_eq!(
        told(&case.attempt(&words)),
        [
            "tell delivered [1] after 3: 250 taken",
            "tell deferred [0] after 3: later a",
            "tell deferred [2] after 3: later b",
            "tell delayed [0, 2] after 3: later a",
            "done [1]",
            "defer [0] after 3, told: later a + delayed 2",
            "defer [2] after 3, told: later b",
            "wait [0, 2] until 292 min, told: later a",
        ]
    );
    // Not while some could go at once: they would not be in it.
    assert!(!is_noticed(&told(&case.attempt(&["later a", "at once", "ok"]))));
    case.part.delay_told = true;
    let again = told(&case.attempt(&words));
    assert!(!is_noticed(&again));
    assert!(again.contains(&"defer [0] after 3, told: later a".to_owned()), "it stays told");
    case.part.delay_told = false;
    case.retry = policy().with_delay_notice(None);
    assert!(!is_noticed(&told(&case.attempt(&words))));
}

#[test]
fn a_delay_is_told_to_those_who_asked_and_never_to_nobody() {
    let mut envelope = envelope(3, Notify::FAILURE);
    envelope.recipients[1].notify = Notify::DELAY;
    let late = |envelope: &Envelope| {
        let case = Case { age_ms: 5 * HOUR, ..Case::new(envelope) };
        told(&case.attempt(&["later", "later", "later"]))
    };
    assert!(late(&envelope).contains(&"defer [0, 1, 2] after 3, told: later + delayed 1".into()));
    envelope.recipients[1].notify = Notify::NEVER;
    assert!(late(&envelope).contains(&"defer [0, 1, 2] after 3, told: later".into()));
    envelope.recipients[1].notify = Notify::DELAY;
    envelope.reverse_path = ReversePath::Null;
    assert!(late(&envelope).contains(&"defer [0, 1, 2] after 3, told: later".into()));
}

#[test]
fn a_part_whose_site_does_not_answer_is_told_of_without_an_attempt() {
    let mut envelope = envelope(2, Notify::UNSPECIFIED);
    let words = reason((4, 4, 1), "no connection");
    let due_unix_ms = ACCEPTED + 6 * HOUR;
    let late = |case: &Case<'_>| {
        let settlement =
            Settlement::of_delay(case.part, &[0, 1], &words, due_unix_ms, &case.judge())?;
        Some(told(&case.effects(settlement)))
    };
    let case = Case { age_ms: 5 * HOUR, ..Case::new(&envelope) };
    assert_eq!(
        late(&case).expect("it is late"),
        [
            "tell delayed [0, 1] after 2: no connection",
            "defer [0, 1] after 2, told: no connection + delayed 2",
            "wait [0, 1] until 360 min, told: -",
        ]
    );
    assert_eq!(late(&Case { age_ms: HOUR, ..Case::new(&envelope) }), None);
    // Where nobody wants to know, the log is left alone.
    envelope.reverse_path = ReversePath::Null;
    let case = Case { age_ms: 5 * HOUR, ..Case::new(&envelope) };
    let effects = late(&case).expect("it is late");
    assert_eq!(effects[1..], ["wait [0, 1] until 360 min, told: -"]);
}

/// RFC 3461 section 5.2.
#[test]
fn success_is_told_by_whoever_knows_of_it_last() {
    let cases = [
        (Handover::Final, Notify::SUCCESS, "done [0] last + delivered 1"),
        (Handover::Relayed, Notify::SUCCESS, "done [0] last + relayed 1"),
        (Handover::PassedOn, Notify::SUCCESS, "done [0] last"),
        (Handover::Final, Notify::UNSPECIFIED, "done [0] last"),
        (Handover::Relayed, Notify::FAILURE, "done [0] last"),
        (Handover::Final, Notify::NEVER, "done [0] last"),
    ];
    for (handover, notify, expected) in cases {
        let envelope = envelope(1, notify);
        let mut case = Case::new(&envelope);
        case.hop.handover = handover;
        assert_eq!(told(&case.attempt(&["ok"]))[1], expected, "{handover:?} {notify:?}");
    }
    let envelope = envelope(1_001, Notify::SUCCESS);
    let effects = Case::new(&envelope).attempt(&vec!["ok"; 1_001]);
    let actions = effects.iter().filter_map(|effect| match effect {
        Effect::Append { notice: Some(notice), .. } => Some(action(notice)),
        _ => None,
    });
    assert_eq!(actions.collect::<Vec<_>>(), ["delivered 1000", "delivered 1"]);
}

#[test]
fn a_soft_bounce_is_a_deferral_that_says_so() {
    let envelope = envelope(3, Notify::UNSPECIFIED);
    let mut case = Case { soft_bounce: true, ..Case::new(&envelope) };
    assert_eq!(
        told(&case.attempt(&["ok", "never a", "later b"])),
        [
            "tell delivered [0] after 3: 250 taken",
            "tell soft bounce [1] after 3: never a",
            "tell deferred [2] after 3: later b",
            "done [0]",
            "defer [1] after 3: never a",
            "defer [2] after 3: later b",
            "wait [1, 2] until 112 min: never a",
        ]
    );
    let refused = Settlement::of_refusal(
        case.part,
        &[0],
        &reason((5, 1, 2), "no such domain"),
        &case.judge(),
    );
    assert_eq!(told(&case.effects(refused))[0], "tell soft bounce [0] after 3: no such domain");
    // Its time ends like any other's.
    case.age_ms = 5 * 24 * HOUR;
    let effects = told(&case.attempt(&["never a", "never a", "never a"]));
    assert_eq!(effects[0], "tell expired [0] after 2: never a");
}

#[test]
fn what_is_given_up_without_an_attempt_is_told_with_its_reason() {
    let envelope = envelope(2, Notify::UNSPECIFIED);
    let case = Case::new(&envelope);
    let last = reason((4, 4, 1), "no connection");
    let end = Settlement::of_end(case.part, &[0, 1], Some(&last), ACCEPTED + case.age_ms);
    assert_eq!(
        told(&case.effects(end)),
        [
            "tell expired [0] after 2: no connection",
            "tell expired [1] after 2: no connection",
            "done [0, 1] last + failed 2",
            "finish",
        ]
    );
    let words = reason((5, 1, 10), "the domain takes no mail");
    let refused = Settlement::of_refusal(case.part, &[1], &words, &case.judge());
    let effects = case.effects(refused);
    assert_eq!(told(&effects)[..1], ["tell bounced [1] after 2: the domain takes no mail"]);
    let Effect::Append { notice: Some(notice), .. } = &effects[1] else { panic!("{effects:?}") };
    let text = std::str::from_utf8(&notice.notice.content).expect("ASCII");
    assert!(text.contains("Status: 5.1.10\r\n"), "{text}");
    assert!(!text.contains("Last-Attempt-Date"), "{text}");
}

#[test]
fn a_next_hop_without_a_name_is_an_address_literal() {
    for (address, expected) in [("192.0.2.1", "[192.0.2.1]"), ("2001:db8::1", "[IPv6:2001:db8::1]")]
    {
        assert_eq!(&*remote_mta(address.parse().expect("an address")), expected);
    }
}

proptest! {
    /// Whatever is said of whom, and whenever.
    #[test]
    fn every_recipient_has_one_end_or_waits(
        words in proptest::collection::vec(
            prop_oneof![
                Just("ok"), Just("at once"), Just("later a"), Just("later b"), Just("never a"),
            ],
            1..40,
        ),
        age_ms in 0u64..6 * 24 * HOUR,
        notify in 0u8..9,
        is_null: bool,
        is_only_part: bool,
        soft_bounce: bool,
        delay_told: bool,
    ) {
        let mut envelope = envelope(words.len(), Notify(notify));
        if is_null {
            envelope.reverse_path = ReversePath::Null;
        }
        let mut case = Case { age_ms, is_only_part, soft_bounce, ..Case::new(&envelope) };
        case.part.delay_told = delay_told;
        let effects = case.attempt(&words);
        let (mut ended, mut deferred, mut lasts) = (Vec::new(), Vec::new(), 0);
        for effect in &effects {
            let Effect::Append { record, notice } = effect else { continue };
            prop_assert!(!(is_null && notice.is_some()));
            let places = match record {
                Record::Done { places, last } => {
                    lasts += usize::from(*last);
                    ended.extend(places.iter().copied());
                    places
                }
                Record::Defer { places, next_attempt_unix_ms, .. } => {
                    prop_assert!(*next_attempt_unix_ms > ACCEPTED + age_ms);
                    deferred.extend(places.iter().copied());
                    places
                }
            };
            prop_assert!(places.is_sorted_by(|a, b| a < b) && !places.is_empty());
        }
        let (last, before) = effects.split_last().expect("there are effects");
        let is_end = |effect: &Effect| matches!(effect, Effect::Finish | Effect::Wait { .. });
        prop_assert!(!before.iter().any(is_end));
        let left = match last {
            Effect::Finish => Vec::new(),
            Effect::Wait { recipients, .. } => recipients.places(),
            other => panic!("{other:?}"),
        };
        prop_assert!(deferred.iter().all(|place| left.contains(place)));
        let ends_part = effects.contains(&Effect::EndPart);
        prop_assert_eq!(ends_part, left.is_empty() && !is_only_part);
        prop_assert_eq!(lasts, usize::from(left.is_empty() && is_only_part));
        let mut all: Vec<u16> = ended.into_iter().chain(left).collect();
        all.sort_unstable();
        prop_assert_eq!(all, Vec::from_iter(0..words.len() as u16));
    }
}

#[test]
fn what_cannot_be_read_is_waited_for_as_long_as_it_may_be_told_of() {
    let end = ACCEPTED + 5 * 24 * HOUR;
    let until = |until_unix_ms| Unreadable::Wait { until_unix_ms };
    for (is_end, may_pass, now, wanted) in [
        (false, true, ACCEPTED, until(ACCEPTED + HOUR)),
        (false, false, ACCEPTED, until(ACCEPTED + HOUR)),
        (false, false, end - HOUR / 2, until(end)),
        (false, false, end, until(end + 1)),
        (false, true, end + HOUR, until(end + HOUR + 1)),
        (true, false, end, Unreadable::SetAside),
        (true, true, end, until(end + HOUR)),
        (true, true, end + 23 * HOUR, until(end + 24 * HOUR)),
        (true, true, end + 24 * HOUR, Unreadable::SetAside),
    ] {
        let judged = Unreadable::judge(end, is_end, may_pass, now);
        assert_eq!(judged, wanted, "{is_end} {may_pass} {now}");
    }
}
