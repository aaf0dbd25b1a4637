//! The checks of a client's name, its HELO and its sender: from facts and configuration to findings.
//!
//! Pure.  A check that is switched off finds nothing; every other says what it saw, also where all
//! was well and where nobody could tell.  The texts are one line and of bounded length, whatever a
//! client sent.

use std::net::IpAddr;
use std::time::Duration;

use super::lists::{Asked, Subject, query::Reading, watch};
use super::verdict::{Effect, Finding};
use crate::config::{Checks, List};
use crate::dns::{Answer, Exchange, LookupError, Name, Record};
use crate::limits::REPLY_LINE;

/// What a client calls itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Helo {
    /// A name with a dot in it.
    Name(Name),
    /// An address literal (RFC 5321 section 4.1.3).
    Literal(IpAddr),
    /// An address without its brackets.
    NakedAddress(IpAddr),
    /// Neither.
    Bare,
}

/// What is known of the name behind a client's address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReverseName {
    /// The name leads back to the address.
    Confirmed(Name),
    /// There is one, the first of several, and none leads back.
    Unconfirmed(Name),
    /// There is one, and nobody could say where it leads.
    Unsettled(Name),
    /// There is none.
    Missing,
    /// Nobody could say: why.
    Untold(Box<str>),
    /// Nobody has asked: the client is refused whatever the answer.  What it has for the postmaster
    /// is taken all the same, and rspamd is shown that without a `hostname`.
    Unasked,
}

/// What is known of a HELO name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Existence {
    /// It leads to the client.
    LeadsToClient,
    /// It exists.
    Exists,
    /// It does not.
    Missing,
    /// Nobody could say: why.
    Untold(Box<str>),
}

/// What is known of a sender's domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SenderDomain {
    /// It is one of ours.
    Ours,
    /// An address literal.
    Literal,
    /// It has hosts that take mail, or could.
    TakesMail,
    /// It says that it takes none (RFC 7505).
    NullMx,
    /// It does not exist, or has neither mail exchangers nor addresses.
    Unknown,
    /// Nobody could say: why.
    Untold(Box<str>),
}

/// Whose name or address a client has taken for its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// Nobody's of ours.
    Not,
    /// The name of this gateway.
    OurName,
    /// The name of a domain of ours.
    OurDomain,
    /// An address of this gateway.
    OurAddress,
}

impl Helo {
    /// What the argument of HELO is.
    pub fn parse(text: &str) -> Helo {
        if let Ok(address) = text.parse::<IpAddr>() {
            return Helo::NakedAddress(address.to_canonical());
        }
        if let Some(literal) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            return address_of(literal).map_or(Helo::Bare, Helo::Literal);
        }
        // The last label of a name that exists is never all digits; such a one is meant as an
        // address.
        let is_full = |name: &Name| {
            let last = name.as_str().rsplit_once('.');
            last.is_some_and(|(_, last)| !last.bytes().all(|octet| octet.is_ascii_digit()))
        };
        Name::parse(text).filter(is_full).map_or(Helo::Bare, Helo::Name)
    }

    /// The address that it is, with or without brackets.
    pub fn address(&self) -> Option<IpAddr> {
        match self {
            Helo::Literal(address) | Helo::NakedAddress(address) => Some(*address),
            Helo::Name(_) | Helo::Bare => None,
        }
    }
}

fn address_of(literal: &str) -> Option<IpAddr> {
    const TAG: &str = "IPv6:";
    let address = match literal.get(..TAG.len()) {
        Some(tag) if tag.eq_ignore_ascii_case(TAG) => {
            literal[TAG.len()..].parse().map(IpAddr::V6).ok()
        }
        _ => literal.parse().map(IpAddr::V4).ok(),
    };
    address.map(|address| address.to_canonical())
}

/// What the MX records of a domain say; `None` if its addresses have to tell.
pub fn sender_of_mx(answer: &Answer) -> Option<SenderDomain> {
    match &answer.result {
        Ok(records) => {
            let is_null = |r: &Record| matches!(r, Record::Mx { exchange: Exchange::Null, .. });
            Some(match records.iter().all(is_null) {
                true => SenderDomain::NullMx,
                false => SenderDomain::TakesMail,
            })
        }
        Err(LookupError::NoName) => Some(SenderDomain::Unknown),
        Err(LookupError::NoData) => None,
        Err(LookupError::Temporary { why }) => Some(SenderDomain::Untold(why.clone())),
    }
}

/// What the addresses of a domain without MX records say (RFC 5321 section 5.1).
pub fn sender_of_addresses(result: &Result<Vec<IpAddr>, LookupError>) -> SenderDomain {
    match result {
        Ok(_) => SenderDomain::TakesMail,
        Err(LookupError::NoName | LookupError::NoData) => SenderDomain::Unknown,
        Err(LookupError::Temporary { why }) => SenderDomain::Untold(why.clone()),
    }
}

/// `helo_bare` and `helo_literal`.
pub fn helo_form(text: &str, helo: &Helo, client: IpAddr, checks: &Checks) -> Vec<Finding> {
    let text = one_line(text);
    let (bare, literal) = match helo {
        Helo::Name(_) => (None, None),
        Helo::Literal(address) => (None, (*address != client).then_some("another address")),
        Helo::NakedAddress(_) => (Some("an address without brackets"), None),
        Helo::Bare => (Some("neither a full name nor an address literal"), None),
    };
    let found = |wrong: Option<&str>, well| format!("{text} is {}", wrong.unwrap_or(well));
    let bare = check("helo_bare", checks.helo_bare, bare.is_some())
        .because(found(bare, "a full name or an address literal"))
        .reply("HELO needs a full name or an address literal");
    let literal = check("helo_literal", checks.helo_literal, literal.is_some())
        .because(match (helo, literal) {
            (Helo::Literal(_), Some(_)) => format!("{text} is not the client's address"),
            (Helo::Literal(_), None) => format!("{text} is the client's address"),
            _ => format!("{text} is no address literal"),
        })
        .reply("HELO is not your address");
    [bare, literal].into_iter().filter_map(Draft::finish).collect()
}

/// `helo_forged`: `existence` only has to be known of a domain of ours, whose hosts may well be
/// called by its name.
pub fn helo_forged(
    text: &str,
    taken: Taken,
    existence: &Existence,
    checks: &Checks,
) -> Option<Finding> {
    let text = one_line(text);
    let (is_forged, fact) = match (taken, existence) {
        (Taken::Not, _) => (false, format!("{text} is not ours")),
        (Taken::OurName, _) => (true, format!("{text} is our own name")),
        (Taken::OurAddress, _) => (true, format!("{text} is our own address")),
        (Taken::OurDomain, Existence::LeadsToClient) => {
            (false, format!("{text} is a domain of ours, and leads to the client"))
        }
        (Taken::OurDomain, Existence::Untold(why)) => {
            (false, format!("{text} is a domain of ours; {}", untold(why)))
        }
        (Taken::OurDomain, Existence::Exists | Existence::Missing) => {
            (true, format!("{text} is a domain of ours"))
        }
    };
    check("helo_forged", checks.helo_forged, is_forged)
        .because(fact)
        .reply("HELO is not your name")
        .finish()
}

/// `helo_unknown`.
pub fn helo_unknown(name: &Name, existence: &Existence, checks: &Checks) -> Option<Finding> {
    let fact = match existence {
        Existence::LeadsToClient => format!("{name} leads to the client"),
        Existence::Exists => format!("{name} exists"),
        Existence::Missing => format!("{name} has neither addresses nor mail exchangers"),
        Existence::Untold(why) => untold(why),
    };
    check("helo_unknown", checks.helo_unknown, *existence == Existence::Missing)
        .because(fact)
        .reply("HELO name does not exist")
        .finish()
}

/// `reverse_missing` and `reverse_unconfirmed`.
pub fn reverse(client: IpAddr, reverse: &ReverseName, checks: &Checks) -> Vec<Finding> {
    let (is_missing, is_unconfirmed, fact) = match reverse {
        ReverseName::Confirmed(name) => {
            (false, false, format!("{client} is {name}, which leads back"))
        }
        ReverseName::Unconfirmed(name) => {
            (false, true, format!("{client} is {name}, which does not lead back"))
        }
        ReverseName::Unsettled(name) => {
            (false, false, format!("{client} is {name}; nobody could say whether it leads back"))
        }
        ReverseName::Missing => (true, false, format!("{client} has no name")),
        ReverseName::Untold(why) => (false, false, untold(why)),
        ReverseName::Unasked => (false, false, "not asked for: refused as it is".to_owned()),
    };
    let missing = check("reverse_missing", checks.reverse_missing, is_missing)
        .because(fact.clone())
        .reply(format!("{client} has no reverse name"));
    let unconfirmed = check("reverse_unconfirmed", checks.reverse_unconfirmed, is_unconfirmed)
        .because(fact)
        .reply(format!("The reverse name of {client} does not lead back to it"));
    [missing, unconfirmed].into_iter().filter_map(Draft::finish).collect()
}

/// `sender_unknown` and `sender_null_mx`.
pub fn sender(domain: &str, found: &SenderDomain, checks: &Checks) -> Vec<Finding> {
    let domain = one_line(domain);
    let fact = match found {
        SenderDomain::Ours => format!("{domain} is a domain of ours"),
        SenderDomain::Literal => format!("{domain} is an address literal"),
        SenderDomain::TakesMail => format!("{domain} takes mail"),
        SenderDomain::NullMx => format!("{domain} takes no mail"),
        SenderDomain::Unknown => format!("{domain} has neither mail exchangers nor addresses"),
        SenderDomain::Untold(why) => untold(why),
    };
    let unknown = check("sender_unknown", checks.sender_unknown, *found == SenderDomain::Unknown)
        .because(fact.clone())
        .reply("The sender's domain does not exist");
    let null_mx = check("sender_null_mx", checks.sender_null_mx, *found == SenderDomain::NullMx)
        .because(fact)
        .reply("The sender's domain takes no mail");
    [unknown, null_mx].into_iter().filter_map(Draft::finish).collect()
}

/// What a list said.
pub fn listing(list: &List, subject: &Subject, client: IpAddr, asked: &Asked) -> Finding {
    let what = match subject {
        Subject::Address(address) => address.to_string(),
        Subject::Domain(name) => one_line(name.as_str()),
    };
    let (is_listed, fact) = match asked {
        Asked::Answered(Reading::Listed(codes)) => {
            let codes: Vec<String> = codes.iter().take(CODES_TOLD).map(|c| c.to_string()).collect();
            (true, format!("{what} is listed: {}", codes.join(", ")))
        }
        Asked::Answered(Reading::NotListed) => (false, format!("{what} is not listed")),
        Asked::Answered(Reading::Odd(oddity)) => (false, format!("{what}: {oddity}")),
        Asked::Answered(Reading::Unanswered(why)) => (false, untold(why)),
        Asked::Unasked(state) => (false, format!("not asked: {}", watch::describe_state(*state))),
        Asked::Unaskable => (false, format!("{what} is too long a name for it")),
    };
    let reply = list.reply.replace("{ip}", &client.to_string()).replace("{list}", &list.zone);
    let reply: String = reply.chars().take(REPLY_SHOWN).collect();
    Finding {
        check: list.zone.clone(),
        fact: fact.into(),
        effect: if is_listed { Effect::Score(list.weight) } else { Effect::None },
        reply: is_listed.then(|| reply.into()),
        took: Duration::ZERO,
    }
}

/// What a check does to a client that it finds something of; nothing if it is switched off, or
/// none of [`NAMES`].
pub fn effect_of(check: &str, checks: &Checks) -> Effect {
    match check {
        "early_talk" => checks.early_talk,
        "pipelining" => checks.pipelining,
        "reverse_missing" => checks.reverse_missing,
        "reverse_unconfirmed" => checks.reverse_unconfirmed,
        "helo_bare" => checks.helo_bare,
        "helo_forged" => checks.helo_forged,
        "helo_literal" => checks.helo_literal,
        "helo_unknown" => checks.helo_unknown,
        "sender_unknown" => checks.sender_unknown,
        "sender_null_mx" => checks.sender_null_mx,
        _ => Effect::None,
    }
}

/// All checks but the lists, in the order in which a session meets them.
pub const NAMES: [&str; 10] = [
    "early_talk",
    "pipelining",
    "reverse_missing",
    "reverse_unconfirmed",
    "helo_bare",
    "helo_forged",
    "helo_literal",
    "helo_unknown",
    "sender_unknown",
    "sender_null_mx",
];

/// A finding on its way.
struct Draft {
    name: &'static str,
    configured: Effect,
    is_wrong: bool,
    fact: String,
    reply: String,
}

fn check(name: &'static str, configured: Effect, is_wrong: bool) -> Draft {
    Draft { name, configured, is_wrong, fact: String::new(), reply: String::new() }
}

impl Draft {
    fn because(self, fact: String) -> Draft {
        Draft { fact, ..self }
    }

    fn reply(self, reply: impl Into<String>) -> Draft {
        Draft { reply: reply.into(), ..self }
    }

    /// Nothing if the check is switched off.
    fn finish(self) -> Option<Finding> {
        (self.configured != Effect::None).then(|| Finding {
            check: self.name.into(),
            fact: self.fact.into(),
            effect: if self.is_wrong { self.configured } else { Effect::None },
            reply: self.is_wrong.then(|| self.reply.into()),
            took: Duration::ZERO,
        })
    }
}

fn untold(why: &str) -> String {
    format!("nobody could tell: {}", one_line(why))
}

/// What somebody sent, fit for a log line and a header: no control characters, and not too long.
pub fn one_line(text: &str) -> String {
    let shown = text.chars().map(|c| if c.is_control() { '?' } else { c });
    shown.take(SHOWN).collect()
}

/// Characters of a name that are shown: the longest that the DNS can hold.
const SHOWN: usize = 253;
/// Characters of a list's reply: what fits a reply line with its codes, if they are ASCII.
const REPLY_SHOWN: usize = REPLY_LINE - 16;
/// Codes of one answer that are told.
const CODES_TOLD: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edge::lists::health::{State, Trouble};
    use crate::edge::lists::query::Oddity;
    use crate::edge::verdict::{Action, Score};

    const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    fn name(text: &str) -> Name {
        Name::parse(text).expect("a name")
    }

    /// The names of the findings that have an effect.
    fn effective(findings: impl IntoIterator<Item = Finding>) -> Vec<String> {
        let findings = findings.into_iter().filter(|finding| finding.effect != Effect::None);
        findings.map(|finding| finding.check.into()).collect()
    }

    #[test]
    fn what_a_client_calls_itself() {
        let v6: IpAddr = "2001:db8::1".parse().expect("an address");
        for (text, helo) in [
            ("mx.example.com", Helo::Name(name("mx.example.com"))),
            ("MX.Example.COM.", Helo::Name(name("mx.example.com"))),
            ("a_b.example", Helo::Name(name("a_b.example"))),
            ("[192.0.2.1]", Helo::Literal(CLIENT)),
            ("[IPv6:2001:db8::1]", Helo::Literal(v6)),
            ("[ipv6:::ffff:192.0.2.1]", Helo::Literal(CLIENT)),
            ("192.0.2.1", Helo::NakedAddress(CLIENT)),
            ("2001:db8::1", Helo::NakedAddress(v6)),
            ("[2001:db8::1]", Helo::Bare),
            ("[192.0.2.1", Helo::Bare),
            ("[]", Helo::Bare),
            ("[\u{e9}\u{e9}\u{e9}]", Helo::Bare),
            ("localhost", Helo::Bare),
            ("mx.example.1", Helo::Bare),
            ("a..b", Helo::Bare),
            ("a b.example", Helo::Bare),
            ("", Helo::Bare),
        ] {
            assert_eq!(Helo::parse(text), helo, "{text}");
        }
    }

    #[test]
    fn the_form_of_helo() {
        for (text, found) in [
            ("mx.example.com", &[][..]),
            ("[192.0.2.1]", &[]),
            ("[192.0.2.2]", &["helo_literal"]),
            ("192.0.2.1", &["helo_bare"]),
            ("localhost", &["helo_bare"]),
        ] {
            let findings = helo_form(text, &Helo::parse(text), CLIENT, &Checks::default());
            assert_eq!(findings.len(), 2, "{text}");
            assert_eq!(effective(findings), found, "{text}");
        }
        let off =
            Checks { helo_bare: Effect::None, helo_literal: Effect::None, ..Checks::default() };
        assert_eq!(helo_form("localhost", &Helo::Bare, CLIENT, &off), []);
    }

    #[test]
    fn a_name_of_ours_is_forged_unless_it_leads_to_the_client() {
        use Existence::{Exists, LeadsToClient, Missing};
        let untold = || Existence::Untold("SERVFAIL".into());
        for (taken, existence, is_forged) in [
            (Taken::Not, Missing, false),
            (Taken::OurName, LeadsToClient, true),
            (Taken::OurAddress, Exists, true),
            (Taken::OurDomain, LeadsToClient, false),
            (Taken::OurDomain, untold(), false),
            (Taken::OurDomain, Exists, true),
            (Taken::OurDomain, Missing, true),
        ] {
            let found = helo_forged("x.test", taken, &existence, &Checks::default());
            assert_eq!(effective(found).len(), usize::from(is_forged), "{taken:?} {existence:?}");
        }
    }

    #[test]
    fn only_what_is_certain_has_an_effect() {
        let checks = Checks::default();
        let n = || name("mx.example");
        for (existence, found) in [
            (Existence::Exists, 0),
            (Existence::LeadsToClient, 0),
            (Existence::Missing, 1),
            (Existence::Untold("".into()), 0),
        ] {
            let finding = helo_unknown(&n(), &existence, &checks);
            assert_eq!(effective(finding).len(), found, "{existence:?}");
        }
        for (reverse_name, found) in [
            (ReverseName::Confirmed(n()), None),
            (ReverseName::Unconfirmed(n()), Some("reverse_unconfirmed")),
            (ReverseName::Unsettled(n()), None),
            (ReverseName::Missing, Some("reverse_missing")),
            (ReverseName::Untold("".into()), None),
        ] {
            let findings = reverse(CLIENT, &reverse_name, &checks);
            assert_eq!(findings.len(), 2);
            assert_eq!(effective(findings), Vec::from_iter(found), "{reverse_name:?}");
        }
        for (domain, found) in [
            (SenderDomain::Ours, None),
            (SenderDomain::Literal, None),
            (SenderDomain::TakesMail, None),
            (SenderDomain::NullMx, Some("sender_null_mx")),
            (SenderDomain::Unknown, Some("sender_unknown")),
            (SenderDomain::Untold("".into()), None),
        ] {
            let findings = sender("a.example", &domain, &checks);
            assert_eq!(findings.len(), 2);
            assert_eq!(effective(findings), Vec::from_iter(found), "{domain:?}");
        }
    }

    #[test]
    fn the_configured_effect_is_the_findings() {
        let reject = Effect::Action(Action::Reject);
        let checks = Checks { reverse_missing: reject, ..Checks::default() };
        let findings = reverse(CLIENT, &ReverseName::Missing, &checks);
        assert_eq!(findings[0].effect, reject);
        assert_eq!(findings[0].reply.as_deref(), Some("192.0.2.1 has no reverse name"));
        assert_eq!((findings[1].effect, &findings[1].reply), (Effect::None, &None));
    }

    #[test]
    fn a_listing_weighs_and_says_who_and_where() {
        let list = List {
            zone: "dnsbl.example".into(),
            of: crate::config::ListSubject::Address,
            codes: Vec::new(),
            weight: Score(450),
            reply: "{ip} is listed by {list}, see https://{list}/{ip}".into(),
            self_check: Duration::ZERO,
        };
        let subject = Subject::Address(CLIENT);
        let code = std::net::Ipv4Addr::new(127, 0, 0, 2);
        let asked = Asked::Answered(Reading::Listed(vec![code]));
        let found = listing(&list, &subject, CLIENT, &asked);
        assert_eq!((&*found.check, found.effect), ("dnsbl.example", Effect::Score(Score(450))));
        assert_eq!(&*found.fact, "192.0.2.1 is listed: 127.0.0.2");
        let reply = "192.0.2.1 is listed by dnsbl.example, see https://dnsbl.example/192.0.2.1";
        assert_eq!(found.reply.as_deref(), Some(reply));
        for asked in [
            Asked::Answered(Reading::NotListed),
            Asked::Answered(Reading::Odd(Oddity::Refusal(code))),
            Asked::Answered(Reading::Unanswered("SERVFAIL".into())),
            Asked::Unasked(State::Off(Trouble::ListsEverything)),
            Asked::Unaskable,
        ] {
            let found = listing(&list, &subject, CLIENT, &asked);
            assert_eq!((found.effect, &found.reply), (Effect::None, &None), "{asked:?}");
            assert!(!found.fact.is_empty());
        }
    }

    #[test]
    fn what_is_shown_is_one_short_line() {
        assert_eq!(one_line("a\r\nX: b\0\u{85}"), "a??X: b??");
        assert_eq!(one_line(&"\u{e9}".repeat(2_000)).chars().count(), SHOWN);
    }
}
