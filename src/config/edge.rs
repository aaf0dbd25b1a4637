//! `[edge]` and what belongs to it: the types, and reading them.

use std::net::Ipv4Addr;
use std::ops::RangeInclusive;
use std::time::Duration;

use ipnet::IpNet;
use toml::Spanned;
use toml::de::DeValue;

use super::read::words;
use super::table::{Table, Wrong, choice, expected, networks, period, size, text, whole};
use crate::dns::Name;
use crate::edge::verdict::{Action, Effect, Score, Thresholds};
use crate::units::ByteSize;

/// `[edge]`: the edge filter of `mx` listeners.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edge {
    /// Clients that are not looked at, beside those of `[relay] networks`.
    pub exempt: Vec<IpNet>,
    /// What the look-ups of one stage of a session may take together.
    pub deadline: Duration,
    /// When a client that is refused for what it is hears of it.
    pub refuse_at: RefuseAt,
    /// How long strangers wait for the last line of the greeting; zero for nobody.
    pub greeting_wait: Duration,
    /// The wait before the reply to a refused recipient, at first; zero for none.
    pub tarpit: Duration,
    /// Unknown recipients after which a session is cut off.
    pub unknown_recipients: u32,
    /// The scores from which on something is done.
    pub thresholds: Thresholds,
    /// What each check's finding does.
    pub checks: Checks,
    /// DNS lists, for and against.
    pub lists: Vec<List>,
    /// Whether, and how, strangers are told to come again.
    pub greylist: Option<Greylist>,
    /// The rspamd that looks at messages.
    pub rspamd: Option<Rspamd>,
}

/// When a client that is refused for what it is hears of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefuseAt {
    /// In place of the greeting: the cheapest.
    Greeting,
    /// At each recipient, so that the events say whom it wrote to, and the postmaster is reached.
    Recipient,
}

/// `[edge.checks]`: what each check's finding does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checks {
    /// The client sent something before the greeting was complete.
    pub early_talk: Effect,
    /// It sent more commands at once before we had said that it may.
    pub pipelining: Effect,
    /// HELO is neither a full name nor an address literal.
    pub helo_bare: Effect,
    /// HELO is our own name, one of our domains, or our address.
    pub helo_forged: Effect,
    /// HELO is an address literal and not the client's address.
    pub helo_literal: Effect,
    /// HELO is a name that does not exist.
    pub helo_unknown: Effect,
    /// There is no name behind the client's address.
    pub reverse_missing: Effect,
    /// That name does not lead back to the address.
    pub reverse_unconfirmed: Effect,
    /// The sender's domain does not exist.
    pub sender_unknown: Effect,
    /// The sender's domain takes no mail (RFC 7505).
    pub sender_null_mx: Effect,
}

/// One `[[edge.list]]`: a list in the DNS (RFC 5782).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct List {
    /// The zone, in lower case.
    pub zone: Box<str>,
    /// What is looked up in it.
    pub of: ListSubject,
    /// The answers that count as listed.
    pub codes: Vec<RangeInclusive<Ipv4Addr>>,
    /// What a listing adds to the score; negative for lists of good senders.
    pub weight: Score,
    /// What a client hears that is refused mainly because of it; may hold `{ip}` and `{list}`.
    pub reply: Box<str>,
    /// How often it is held against its own test entries; zero for never.
    pub self_check: Duration,
}

/// What is looked up in a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ListSubject {
    /// The client's address.
    Address,
    /// The argument of HELO.
    Helo,
    /// The name behind the client's address.
    Reverse,
    /// The domain of the sender.
    Sender,
}

/// `[edge.greylist]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Greylist {
    /// The score from which on a stranger is told to come again.
    pub from: Score,
    /// How long it has to wait.
    pub delay: Duration,
    /// How long it may wait.
    pub window: Duration,
    /// How long one that came again is remembered since its last mail.
    pub keep: Duration,
    /// Entries that are remembered.
    pub entries: usize,
}

/// `[edge.rspamd]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rspamd {
    /// Where it listens: `http://HOST:PORT`.
    pub url: Box<str>,
    /// What it may take for a message.
    pub deadline: Duration,
    /// What becomes of a message that it does not judge.
    pub on_failure: OnFailure,
    /// The largest message that it is shown.
    pub size: ByteSize,
}

impl Rspamd {
    /// Its host and port.
    pub fn authority(&self) -> &str {
        self.url.strip_prefix("http://").unwrap_or(&self.url)
    }
}

/// What becomes of a message that a filter does not judge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnFailure {
    /// It is taken unjudged.
    Accept,
    /// Its client is told to come again.
    Defer,
}

const DEADLINE: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(60);
const SHORT: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(60);
pub(super) const LONG: RangeInclusive<Duration> =
    Duration::ZERO..=Duration::from_secs(366 * 86_400);
pub(super) const ENTRIES: RangeInclusive<usize> = 1_000..=20_000_000;
const SIZE: RangeInclusive<ByteSize> = ByteSize(1 << 10)..=ByteSize(1 << 30);
/// No score of a configuration is larger, so that sums are far from their bounds.
const SCORE_MAX: f64 = 1_000.0;

impl Default for Edge {
    fn default() -> Edge {
        Edge {
            exempt: Vec::new(),
            deadline: Duration::from_secs(8),
            refuse_at: RefuseAt::Recipient,
            greeting_wait: Duration::from_secs(3),
            tarpit: Duration::from_secs(2),
            unknown_recipients: 10,
            thresholds: Thresholds {
                tag: Some(Score(300)),
                quarantine: None,
                defer: None,
                reject: Some(Score(900)),
            },
            checks: Checks::default(),
            lists: Vec::new(),
            greylist: None,
            rspamd: None,
        }
    }
}

/// Hard where the protocol is broken or the mail could not be answered, soft where honest hosts
/// are merely badly set up.
impl Default for Checks {
    fn default() -> Checks {
        let points = |points: i32| Effect::Score(Score(100 * points));
        let reject = Effect::Action(Action::Reject);
        Checks {
            early_talk: reject,
            pipelining: reject,
            helo_bare: points(1),
            helo_forged: reject,
            helo_literal: points(1),
            helo_unknown: points(1),
            reverse_missing: points(2),
            reverse_unconfirmed: points(1),
            sender_unknown: reject,
            sender_null_mx: reject,
        }
    }
}

impl Checks {
    /// Whether a finding about a sender, or about HELO, can speak for a client.
    pub fn may_lift(&self) -> bool {
        let of_transaction = [
            self.helo_bare,
            self.helo_forged,
            self.helo_literal,
            self.helo_unknown,
            self.sender_unknown,
            self.sender_null_mx,
        ];
        of_transaction.iter().any(|effect| effect.score() < Score(0))
    }

    /// Whether any check could speak for a client.
    pub fn any_may_lift(&self) -> bool {
        // All of them: a new one is missed here.
        let Checks {
            early_talk,
            pipelining,
            helo_bare: _,
            helo_forged: _,
            helo_literal: _,
            helo_unknown: _,
            reverse_missing,
            reverse_unconfirmed,
            sender_unknown: _,
            sender_null_mx: _,
        } = self;
        let others = [early_talk, pipelining, reverse_missing, reverse_unconfirmed];
        self.may_lift() || others.iter().any(|effect| effect.score() < Score(0))
    }
}

impl Default for Greylist {
    fn default() -> Greylist {
        Greylist {
            from: Score(100),
            delay: Duration::from_secs(5 * 60),
            window: Duration::from_secs(86_400),
            keep: Duration::from_secs(36 * 86_400),
            entries: 1_000_000,
        }
    }
}

/// Reads `[edge]`; without it there is no edge filter.
pub(super) fn edge(root: &Table<'_>) -> Option<Edge> {
    let table = root.table("edge");
    let default = Edge::default();
    let edge = Edge {
        exempt: networks(&table, "exempt"),
        deadline: table.or("deadline", default.deadline, period(DEADLINE)),
        refuse_at: table.or(
            "refuse_at",
            default.refuse_at,
            choice(&[("greeting", RefuseAt::Greeting), ("recipient", RefuseAt::Recipient)]),
        ),
        greeting_wait: table.or("greeting_wait", default.greeting_wait, period(SHORT)),
        tarpit: table.or("tarpit", default.tarpit, period(SHORT)),
        unknown_recipients: table.or(
            "unknown_recipients",
            default.unknown_recipients,
            whole(1..=1_000_000),
        ),
        thresholds: thresholds(&table, default.thresholds),
        checks: checks(&table.table("checks"), default.checks),
        lists: table.tables("list").into_iter().flatten().filter_map(|t| list(&t)).collect(),
        greylist: table.has("greylist").then(|| greylist(&table.table("greylist"))),
        rspamd: table.has("rspamd").then(|| rspamd(&table.table("rspamd"))).flatten(),
    };
    root.has("edge").then_some(edge)
}

/// Where there is a table of thresholds, it is all of them.
fn thresholds(edge: &Table<'_>, default: Thresholds) -> Thresholds {
    if !edge.has("thresholds") {
        return default;
    }
    let table = edge.table("thresholds");
    let read = |key| table.optional(key, score).map(Spanned::into_inner);
    Thresholds {
        tag: read("tag"),
        quarantine: read("quarantine"),
        defer: read("defer"),
        reject: read("reject"),
    }
}

fn checks(table: &Table<'_>, default: Checks) -> Checks {
    Checks {
        early_talk: table.or("early_talk", default.early_talk, effect),
        pipelining: table.or("pipelining", default.pipelining, effect),
        helo_bare: table.or("helo_bare", default.helo_bare, effect),
        helo_forged: table.or("helo_forged", default.helo_forged, effect),
        helo_literal: table.or("helo_literal", default.helo_literal, effect),
        helo_unknown: table.or("helo_unknown", default.helo_unknown, effect),
        reverse_missing: table.or("reverse_missing", default.reverse_missing, effect),
        reverse_unconfirmed: table.or("reverse_unconfirmed", default.reverse_unconfirmed, effect),
        sender_unknown: table.or("sender_unknown", default.sender_unknown, effect),
        sender_null_mx: table.or("sender_null_mx", default.sender_null_mx, effect),
    }
}

/// Everything is read before the first absence counts, so that every problem is told.
fn list(table: &Table<'_>) -> Option<List> {
    let zone = table.required("zone", "add `zone = \"dnsbl.example\"`", zone);
    let weight = table.required("weight", "add `weight = 4`, or a negative one", score);
    let codes = table.list("codes", codes).map(Spanned::into_inner);
    let codes: Vec<_> = codes.into_iter().flatten().map(Spanned::into_inner).collect();
    let subjects = [
        ("address", ListSubject::Address),
        ("helo", ListSubject::Helo),
        ("reverse", ListSubject::Reverse),
        ("sender", ListSubject::Sender),
    ];
    let of = table.or("of", ListSubject::Address, choice(&subjects));
    let reply = table.or("reply", "{ip} is listed by {list}".into(), reply);
    let self_check = table.or("self_check", Duration::from_secs(300), period(LONG));
    Some(List {
        zone: zone?.into_inner(),
        of,
        codes: if codes.is_empty() { vec![LISTED] } else { codes },
        weight: weight?.into_inner(),
        reply,
        self_check,
    })
}

/// What a list answers for what is listed (RFC 5782 section 2.1); 127.0.0.1 and 127.255.255.x are
/// its ways to say that something is wrong.
const LISTED: RangeInclusive<Ipv4Addr> =
    Ipv4Addr::new(127, 0, 0, 2)..=Ipv4Addr::new(127, 0, 0, 254);

fn greylist(table: &Table<'_>) -> Greylist {
    let default = Greylist::default();
    Greylist {
        from: table.or("from", default.from, score),
        delay: table.or("delay", default.delay, period(LONG)),
        window: table.or("window", default.window, period(LONG)),
        keep: table.or("keep", default.keep, period(LONG)),
        entries: table.or("entries", default.entries, whole(ENTRIES)),
    }
}

fn rspamd(table: &Table<'_>) -> Option<Rspamd> {
    let url = table.required("url", "add `url = \"http://127.0.0.1:11333\"`", url);
    let deadline = table.or("deadline", Duration::from_secs(10), period(DEADLINE));
    let failures = [("accept", OnFailure::Accept), ("defer", OnFailure::Defer)];
    let on_failure = table.or("on_failure", OnFailure::Accept, choice(&failures));
    let size = table.or("size", ByteSize(20 << 20), size(SIZE));
    Some(Rspamd { url: url?.into_inner(), deadline, on_failure, size })
}

/// A score: a number with at most two decimals.
fn score(value: &DeValue<'_>) -> Result<Score, Wrong> {
    let wanted = "a number like 4, 1.5 or -2";
    let number = match value {
        DeValue::Integer(number) => i32::from_str_radix(number.as_str(), number.radix()).ok(),
        DeValue::Float(number) => {
            let wrong = || Wrong::new("is not a score", format!("expected {wanted}"));
            let number: f64 = number.as_str().parse().map_err(|_| wrong())?;
            if !(-SCORE_MAX..=SCORE_MAX).contains(&number) {
                return Err(out_of_bounds());
            }
            return Ok(Score((number * 100.0).round() as i32));
        }
        _ => return Err(Wrong::new("is not a score", expected(wanted, value))),
    };
    let within = number.filter(|number| f64::from(number.saturating_abs()) <= SCORE_MAX);
    within.map(|number| Score(100 * number)).ok_or_else(out_of_bounds)
}

fn out_of_bounds() -> Wrong {
    Wrong::new("is out of bounds", format!("expected a score from -{SCORE_MAX} to {SCORE_MAX}"))
}

/// What a finding does: a word, or a score.
fn effect(value: &DeValue<'_>) -> Result<Effect, Wrong> {
    if !matches!(value, DeValue::String(_)) {
        return score(value).map(Effect::Score).map_err(|wrong| {
            wrong.mend("or one of \"off\", \"tag\", \"quarantine\", \"defer\" and \"reject\"")
        });
    }
    choice(&[
        ("off", Effect::None),
        ("tag", Effect::Action(Action::Tag)),
        ("quarantine", Effect::Action(Action::Quarantine)),
        ("defer", Effect::Action(Action::Defer)),
        ("reject", Effect::Action(Action::Reject)),
    ])(value)
}

/// A zone's name, without its final dot.
fn zone(value: &DeValue<'_>) -> Result<Box<str>, Wrong> {
    let given = text(value)?;
    let name = given.strip_suffix('.').unwrap_or(given);
    let fits = |name: &String| Name::parse(name).is_some_and(|parsed| parsed.as_str() == name);
    let name = super::pattern::domain_ascii_lower(name).filter(fits);
    name.map(String::into_boxed_str)
        .ok_or_else(|| Wrong::new("is not a zone", "expected a name like \"dnsbl.example\""))
}

/// An address of 127.0.0.0/8, or two with a hyphen between.
fn codes(value: &DeValue<'_>) -> Result<RangeInclusive<Ipv4Addr>, Wrong> {
    let given = text(value)?;
    let (first, last) = given.split_once('-').unwrap_or((given, given));
    let parse = |text: &str| text.trim().parse().ok().filter(Ipv4Addr::is_loopback);
    match (parse(first), parse(last)) {
        (Some(first), Some(last)) if first <= last => Ok(first..=last),
        _ => Err(Wrong::new(
            "has an entry that is no answer of a list",
            "expected an address of 127.0.0.0/8, or two as in \"127.0.0.2-127.0.0.11\"",
        )),
    }
}

/// What a client is told: one line that fits a reply.
fn reply(value: &DeValue<'_>) -> Result<Box<str>, Wrong> {
    let given = words(value)?;
    let fits = given.len() <= REPLY_OCTETS_MAX && !given.bytes().any(|b| b.is_ascii_control());
    let expected = format!("expected one line of at most {REPLY_OCTETS_MAX} octets");
    fits.then_some(given).ok_or_else(|| Wrong::new("does not fit a reply", expected))
}

/// With an IPv6 address and a long zone put in, a reply line stays within 512 octets.
const REPLY_OCTETS_MAX: usize = 200;

fn url(value: &DeValue<'_>) -> Result<Box<str>, Wrong> {
    let given = text(value)?;
    let wrong = || {
        Wrong::new("is not an address of rspamd", "expected \"http://HOST:PORT\", without a path")
    };
    let host = given.strip_prefix("http://").map(|rest| rest.trim_end_matches('/'));
    let host = host.filter(|host| !host.is_empty() && !host.contains(['/', '?', '#', '@', ' ']));
    let (name, port) = host.ok_or_else(wrong)?.rsplit_once(':').ok_or_else(wrong)?;
    match port.parse::<u16>() {
        Ok(1..) if !name.is_empty() => Ok(given.trim_end_matches('/').into()),
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::{Config, Environment};
    use crate::edge::checks::{NAMES, effect_of};

    fn parse(text: &str) -> Result<Config, String> {
        let listener = "[[listener]]\naddress = \"127.0.0.1:0\"\nservice = \"mx\"\n";
        let rest = "[domains]\naccept = [\"example.com\"]\n\
                    [[route]]\nrecipient = \"*\"\nto = \"hold\"\n";
        let text = format!("{listener}{rest}{text}");
        match Config::parse(&text, Path::new("/etc/m.toml"), &Environment::for_test()) {
            Ok(checked) => Ok(checked.config),
            Err(report) => Err(report.render(false)),
        }
    }

    #[test]
    fn without_the_table_there_is_no_filter_and_with_an_empty_one_the_defaults() {
        assert_eq!(parse("").unwrap().edge, None);
        assert_eq!(parse("[edge]").unwrap().edge, Some(Edge::default()));
    }

    #[test]
    fn every_key_reaches_its_place() {
        let config = parse(
            r#"
[edge]
exempt = ["192.0.2.0/24"]
deadline = "2s"
refuse_at = "greeting"
greeting_wait = "0s"
tarpit = "1s"
unknown_recipients = 3
thresholds = { tag = 1.5, defer = 7 }
[edge.checks]
early_talk = "off"
pipelining = "tag"
helo_bare = "quarantine"
helo_forged = "defer"
helo_literal = -1
helo_unknown = 2
reverse_missing = 3
reverse_unconfirmed = 4
sender_unknown = 5
sender_null_mx = 6
[[edge.list]]
zone = "DNSBL.Example."
weight = 5
[[edge.list]]
zone = "rhsbl.example"
of = "sender"
codes = ["127.0.1.2", "127.0.1.4-127.0.1.6"]
weight = -2.25
reply = "{ip}: see {list}"
self_check = "1m"
[edge.greylist]
from = 0
delay = "1m"
window = "1h"
keep = "2d"
entries = 5000
[edge.rspamd]
url = "http://127.0.0.1:11333/"
deadline = "3s"
on_failure = "defer"
size = "1MiB"
"#,
        );
        let config = config.unwrap_or_else(|told| panic!("{told}"));
        let seconds = Duration::from_secs;
        let points = |points: i32| Effect::Score(Score(100 * points));
        let code = |last: u8| Ipv4Addr::new(127, 0, 1, last);
        let list = |zone: &str| List {
            zone: zone.into(),
            of: ListSubject::Address,
            codes: vec![LISTED],
            weight: Score(500),
            reply: "{ip} is listed by {list}".into(),
            self_check: seconds(300),
        };
        let domains = List {
            of: ListSubject::Sender,
            codes: vec![code(2)..=code(2), code(4)..=code(6)],
            weight: Score(-225),
            reply: "{ip}: see {list}".into(),
            self_check: seconds(60),
            ..list("rhsbl.example")
        };
        let edge = Edge {
            exempt: vec!["192.0.2.0/24".parse().unwrap()],
            deadline: seconds(2),
            refuse_at: RefuseAt::Greeting,
            greeting_wait: Duration::ZERO,
            tarpit: seconds(1),
            unknown_recipients: 3,
            thresholds: Thresholds {
                tag: Some(Score(150)),
                defer: Some(Score(700)),
                ..Thresholds::default()
            },
            checks: Checks {
                early_talk: Effect::None,
                pipelining: Effect::Action(Action::Tag),
                helo_bare: Effect::Action(Action::Quarantine),
                helo_forged: Effect::Action(Action::Defer),
                helo_literal: points(-1),
                helo_unknown: points(2),
                reverse_missing: points(3),
                reverse_unconfirmed: points(4),
                sender_unknown: points(5),
                sender_null_mx: points(6),
            },
            lists: vec![list("dnsbl.example"), domains],
            greylist: Some(Greylist {
                from: Score(0),
                delay: seconds(60),
                window: seconds(3_600),
                keep: seconds(2 * 86_400),
                entries: 5_000,
            }),
            rspamd: Some(Rspamd {
                url: "http://127.0.0.1:11333".into(),
                deadline: seconds(3),
                on_failure: OnFailure::Defer,
                size: ByteSize(1 << 20),
            }),
        };
        assert_eq!(config.edge, Some(edge));
    }

    /// The names stand in several lists; a misspelt one would switch its check off without a word.
    #[test]
    fn every_check_is_found_by_its_name() {
        let mut keys = super::super::keys::Section::named("edge.checks").keys.to_vec();
        let mut names = NAMES;
        keys.sort_unstable();
        names.sort_unstable();
        assert_eq!(keys, names);
        let quarantine = Effect::Action(Action::Quarantine);
        for name in names {
            let config = parse(&format!("[edge.checks]\n{name} = \"quarantine\"")).unwrap();
            let checks = config.edge.unwrap().checks;
            let found = names.iter().filter(|other| effect_of(other, &checks) == quarantine);
            assert_eq!(found.collect::<Vec<_>>(), [&name]);
        }
    }

    #[test]
    fn what_does_not_fit_is_told() {
        for (text, told) in [
            ("[edge]\nthresholds = { tag = \"much\" }", "expected a number like 4"),
            ("[edge]\nthresholds = { tag = 1001 }", "a score from -1000 to 1000"),
            ("[edge]\nthresholds = { tag = -9e9 }", "a score from -1000 to 1000"),
            ("[edge.checks]\nhelo_bare = \"rejct\"", "did you mean \"reject\"?"),
            ("[[edge.list]]\nzone = \"a..b\"\nweight = 1", "is not a zone"),
            ("[[edge.list]]\nzone = \"a.b\"", "has no `weight`"),
            ("[[edge.list]]\nzone = \"a.b\"\nweight = 1\ncodes = [\"10.0.0.1\"]", "no answer"),
            ("[[edge.list]]\nzone = \"a.b\"\nweight = 1\nreply = \"a\\nb\"", "does not fit"),
            ("[edge.rspamd]\nurl = \"127.0.0.1\"", "\"http://HOST:PORT\""),
            ("[edge.rspamd]\nurl = \"http://127.0.0.1:11333/x\"", "\"http://HOST:PORT\""),
            ("[edge.rspamd]", "has no `url`"),
        ] {
            let report = parse(text).expect_err(text);
            assert!(report.contains(told), "{text}: {report}");
        }
    }
}
