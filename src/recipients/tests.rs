use std::collections::HashMap;
use std::time::Instant;

use proptest::prelude::*;

use super::*;
use crate::limits;
use crate::message::{Notify, Recipient};
use crate::smtp::address::{ForwardPath, Mailbox, Utf8};

fn mailbox(text: &str) -> Mailbox {
    Mailbox::parse(text.as_bytes(), Utf8::Allowed).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn table(text: &str) -> Table {
    Table::parse(text, "+").unwrap_or_else(|error| panic!("{error}"))
}

/// What the table says, in a word.
fn said(table: &Table, address: &str) -> String {
    match table.find(&mailbox(address)) {
        Finding::NotJudged => "not judged".to_owned(),
        Finding::Unknown => "unknown".to_owned(),
        Finding::Mailbox => "mailbox".to_owned(),
        Finding::Expands(expansion) => {
            let members = table.members(expansion);
            let members: Vec<&str> = members.iter().map(Mailbox::as_str).collect();
            members.join(" ")
        }
    }
}

const FILE: &str = r#"
# The people.
alice@example.com
Bob@Example.COM
"carol q"@example.com
bob+lists@example.com: carol@elsewhere.example
  # Others of them.
alice.smith@example.com: alice@example.com
team@example.com: alice@example.com, bob@example.com , dave@elsewhere.example
staff@example.com : team@example.com, alice.smith@example.com, "carol q"@example.com
keeps@example.com: keeps@example.com, copy@elsewhere.example
outer@example.com: keeps@example.com
@all.example
@else.example: alice@example.com
eve@else.example
jörg@bücher.example
v6@[IPv6:2001:db8::1]: alice@example.com
plus@example.com: alice+shop@example.com
"#;

#[test]
fn the_file_says_who_is_here() {
    let table = table(FILE);
    for (address, expected) in [
        ("alice@example.com", "mailbox"),
        ("ALICE@EXAMPLE.com", "mailbox"),
        ("bob@example.com", "mailbox"),
        ("\"alice\"@example.com", "mailbox"),
        ("\"carol q\"@example.com", "mailbox"),
        ("nobody@example.com", "unknown"),
        ("alice@sub.example.com", "not judged"),
        ("alice@elsewhere.example", "not judged"),
        // Details.
        ("alice+shop@example.com", "mailbox"),
        ("alice+shop+more@example.com", "mailbox"),
        ("alice-shop@example.com", "unknown"),
        ("+shop@example.com", "unknown"),
        ("bob+lists@example.com", "carol@elsewhere.example"),
        ("bob+list@example.com", "mailbox"),
        ("alice.smith+shop@example.com", "alice@example.com"),
        // Postmasters are always there.
        ("postmaster@example.com", "mailbox"),
        ("PostMaster@bücher.example", "mailbox"),
        // Aliases and lists, each member once, in the order of the file.
        ("alice.smith@example.com", "alice@example.com"),
        ("team@example.com", "alice@example.com bob@example.com dave@elsewhere.example"),
        (
            "staff@example.com",
            "alice@example.com bob@example.com dave@elsewhere.example \"carol q\"@example.com",
        ),
        ("keeps@example.com", "keeps@example.com copy@elsewhere.example"),
        ("outer@example.com", "keeps@example.com copy@elsewhere.example"),
        ("plus@example.com", "alice+shop@example.com"),
        // Whole domains.
        ("anybody@all.example", "mailbox"),
        ("anybody@ELSE.example", "alice@example.com"),
        ("eve@else.example", "mailbox"),
        ("eve+x@else.example", "mailbox"),
        // Internationalised ones.
        ("JÖRG@xn--bcher-kva.example", "mailbox"),
        ("jorg@bücher.example", "unknown"),
        ("v6@[ipv6:2001:DB8::1]", "alice@example.com"),
    ] {
        assert_eq!(said(&table, address), expected, "{address}");
    }
    let Figures { addresses, expansions, domains, .. } = table.figures();
    assert_eq!((addresses, expansions, domains), (13, 9, 5));
}

#[test]
fn without_a_divider_there_are_no_details() {
    let table = Table::parse("alice@example.com", "").unwrap();
    assert_eq!(said(&table, "alice+shop@example.com"), "unknown");
    let table = Table::parse("alice@example.com", "--").unwrap();
    assert_eq!(said(&table, "alice--shop@example.com"), "mailbox");
    assert_eq!(said(&Table::parse("# nobody\n", "+").unwrap(), "a@b.example"), "not judged");
}

#[test]
fn what_is_wrong_is_told_with_its_line() {
    for (text, expected) in [
        ("a@x.example\n\nalice", "line 3: found `alice`, expected an address"),
        ("a@x.example b@x.example", "line 1: found `a@x.example b@x.example`, expected"),
        ("a@x.example:", "line 1: found ``, expected an address"),
        ("a@x.example: b@y.example,", "line 1: found ``, expected an address"),
        ("a@x.example: @y.example", "line 1: found `@y.example`, expected an address"),
        ("@", "line 1: found `@`, expected `@` and a domain"),
        ("@x..example", "line 1: found `@x..example`, expected `@` and a domain"),
        ("a@x.example # Alice", "line 1: found `a@x.example # Alice`, expected"),
        ("a@x.example\nA@X.example", "line 2: found `A@X.example`, which line 1 has too"),
        ("@x.example\n@X.EXAMPLE: a@y.example", "line 2: found `@X.EXAMPLE` a second time"),
        ("a@x.example: a@x.example", "line 1: found `a@x.example: a@x.example`, an alias of"),
        (
            "c@x.example\nb@x.example: a@x.example",
            "line 2: `b@x.example` leads to `a@x.example`, and the file has no line for that",
        ),
        (
            "a@x.example: b@x.example\nb@x.example: c@x.example, d@y.example\n\
             c@x.example: b@x.example",
            "line 2: the aliases form a loop: b@x.example (line 2) -> c@x.example (line 3) -> \
             b@x.example; take one of its steps out",
        ),
        (
            "a@x.example: a+1@x.example",
            "line 1: the aliases form a loop: a@x.example (line 1) -> a@x.example;",
        ),
        (
            "@x.example: b@x.example",
            "line 1: the aliases form a loop: @x.example (line 1) -> @x.example;",
        ),
    ] {
        let error = Table::parse(text, "+").expect_err(text).to_string();
        assert!(error.starts_with(expected), "{error}\n{expected}");
    }
}

#[test]
fn a_list_has_as_many_members_as_a_message_can_have() {
    let list = |name: &str, members: usize| {
        let members: Vec<String> = (0..members).map(|n| format!("{name}{n}@y.example")).collect();
        format!("{name}@x.example: {}\n", members.join(", "))
    };
    let most = limits::EXPANDED_RECIPIENTS;
    let longest = table(&list("a", most));
    assert_eq!(longest.members(&longest.expansions()[0]).len(), most);
    assert!(Table::parse(&list("a", most + 1), "+").is_err());
    // Through others, and where each level doubles the one below.
    let mut text = list("a", most / 2) + &list("b", most / 2);
    text.push_str("c@x.example: a@x.example, b@x.example\n");
    assert_eq!(table(&text).members(&table(&text).expansions()[2]).len(), most);
    text.push_str("d@x.example: c@x.example, e@y.example\n");
    let error = Table::parse(&text, "+").unwrap_err();
    assert_eq!((error.line, error.what.contains("more than")), (4, true), "{error}");
    let mut doubling = "a0@x.example: m@y.example, n@y.example\n".to_owned();
    for level in 1..64 {
        let below = level - 1;
        doubling.push_str(&format!(
            "a{level}@x.example: a{below}@x.example, b{below}@x.example\n\
             b{below}@x.example: a{below}@x.example\n"
        ));
    }
    assert!(Table::parse(&doubling, "+").is_err());
}

/// Neither the check nor the walk may use the stack for it.
#[test]
fn a_chain_may_be_long() {
    let mut text = String::from("a0@x.example\n");
    for step in 1..100_000 {
        text.push_str(&format!("a{step}@x.example: a{}@x.example\n", step - 1));
    }
    assert_eq!(said(&table(&text), "a99999@x.example"), "a0@x.example");
}

#[test]
fn dsn_parameters_follow_an_alias_and_success_ends_at_a_list() {
    let original = |notify, orcpt: Option<&str>| Recipient {
        path: ForwardPath::parse(b"<a+b=c@x.example>", Utf8::Refused).unwrap(),
        notify,
        orcpt: orcpt.map(Box::from),
    };
    let given = Notify(Notify::SUCCESS.0 | Notify::FAILURE.0);
    for (recipient, is_list, notify, orcpt) in [
        (original(given, None), false, given, "rfc822;a+2Bb+3Dc@x.example"),
        (original(given, Some("rfc822;z@z.example")), false, given, "rfc822;z@z.example"),
        (original(given, None), true, Notify::FAILURE, "rfc822;a+2Bb+3Dc@x.example"),
        (original(Notify::SUCCESS, None), true, Notify::NEVER, "rfc822;a+2Bb+3Dc@x.example"),
        (
            original(Notify::UNSPECIFIED, None),
            true,
            Notify::UNSPECIFIED,
            "rfc822;a+2Bb+3Dc@x.example",
        ),
    ] {
        let to = forwarded(&recipient, mailbox("m@y.example"), is_list);
        assert_eq!(to.path.as_str(), "m@y.example");
        assert_eq!((to.notify, to.orcpt.as_deref()), (notify, Some(orcpt)));
    }
}

/// The figure that the documentation gives.
#[test]
fn a_million_mailboxes_are_small_and_found() {
    let text: String = (0..200_000).map(|n| format!("person{n}@example.com\n")).collect();
    let table = table(&text);
    let figures = table.figures();
    assert_eq!(figures.addresses, 200_000);
    let each = figures.octets as f64 / figures.addresses as f64;
    assert!(each < 32.0, "{each} octets a mailbox");
    let asked = mailbox("PERSON123456@example.com");
    let began = Instant::now();
    for _ in 0..1_000 {
        assert_eq!(table.find(&asked), Finding::Mailbox);
    }
    println!("{each:.1} octets a mailbox, {:?} a look-up", began.elapsed() / 1_000);
    assert_eq!(said(&table, "person200000@example.com"), "unknown");
}

/// Names that collide often, some of them in another case.
fn name() -> impl Strategy<Value = String> {
    "[a-dA-D]{1,2}(\\+[ab])?@(x|Y|z)\\.example"
}

proptest! {
    /// The plain version: a map from folded names to their targets, followed step by step.
    #[test]
    fn agrees_with_a_map(
        lines in prop::collection::vec((name(), prop::collection::vec(name(), 0..3)), 0..20),
        asked in prop::collection::vec(name(), 20),
    ) {
        let text: String = lines
            .iter()
            .map(|(name, targets)| match targets.is_empty() {
                true => format!("{name}\n"),
                false => format!("{name}: {}\n", targets.join(", ")),
            })
            .collect();
        let Ok(table) = Table::parse(&text, "+") else { return Ok(()) };
        let fold = |name: &str| name.to_ascii_lowercase();
        let map: HashMap<String, &Vec<String>> =
            lines.iter().map(|(name, targets)| (fold(name), targets)).collect();
        prop_assert_eq!(map.len(), lines.len(), "one line a name");
        let line_of = |name: &str| {
            let name = fold(name);
            let (local, domain) = name.split_once('@').expect("an address");
            let base = local.split_once('+').map_or(local, |(base, _)| base);
            map.get(&name).or_else(|| map.get(&format!("{base}@{domain}"))).copied()
        };
        let speaks = |name: &str| {
            let domain = fold(name.split_once('@').expect("an address").1);
            map.keys().any(|known| known.ends_with(&format!("@{domain}")))
        };
        for address in asked {
            let expected = match line_of(&address) {
                Some(targets) if targets.is_empty() => "mailbox".to_owned(),
                None if speaks(&address) => "unknown".to_owned(),
                None => "not judged".to_owned(),
                Some(_) => {
                    // Each way ends, as the table has proved; so every end is found by following
                    // all of them.
                    let mut ends: Vec<String> = Vec::new();
                    let mut ahead = vec![fold(&address)];
                    let mut steps = 0;
                    while let Some(next) = ahead.pop() {
                        steps += 1;
                        prop_assert!(steps < 100_000, "a loop was let through: {}", text);
                        let base = line_of(&next);
                        match base {
                            Some(targets) if !targets.is_empty() => {
                                for target in targets {
                                    let is_own = map
                                        .get(&fold(target))
                                        .is_some_and(|own| std::ptr::eq(*own, targets));
                                    match is_own {
                                        true => ends.push(fold(target)),
                                        false => ahead.push(fold(target)),
                                    }
                                }
                            }
                            _ => ends.push(next),
                        }
                    }
                    ends.sort();
                    ends.dedup();
                    let mut members: Vec<String> =
                        said(&table, &address).split(' ').map(fold).collect();
                    members.sort();
                    prop_assert_eq!(members, ends, "{} in {}", address, text);
                    continue;
                }
            };
            prop_assert_eq!(said(&table, &address), expected, "{} in {}", address, text);
        }
    }

    /// Any text at all is read or refused.
    #[test]
    fn no_text_panics(text in "[a-c@:,+\"\\\\\\[\\] .\n#é]{0,80}") {
        let _ = Table::parse(&text, "+");
    }
}
