use proptest::prelude::*;

use super::*;

fn mailbox(text: &str) -> Mailbox {
    Mailbox::parse(text.as_bytes(), Utf8::Allowed).expect(text)
}

fn forward(text: &str) -> Result<ForwardPath, AddressError> {
    ForwardPath::parse(text.as_bytes(), Utf8::Allowed)
}

#[test]
fn a_mailbox_is_taken_apart() {
    let cases = [
        ("user@example.com", "user", "example.com"),
        (r#""a@b"@example.com"#, r#""a@b""#, "example.com"),
        ("a@[192.0.2.1]", "a", "[192.0.2.1]"),
        ("a@[IPv6:2001:db8::1]", "a", "[IPv6:2001:db8::1]"),
        ("a@[ipv6:::ffff:192.0.2.1]", "a", "[ipv6:::ffff:192.0.2.1]"),
        ("伊昭傑@郵件.商務", "伊昭傑", "郵件.商務"),
        (r#""é"@example.com"#, r#""é""#, "example.com"),
    ];
    for (text, local, domain) in cases {
        let mailbox = mailbox(text);
        assert_eq!((mailbox.local_part(), mailbox.domain()), (local, domain));
        assert_eq!(mailbox.to_string(), text);
    }
}

#[test]
fn what_is_no_mailbox_says_why() {
    let cases = [
        ("", AddressError::NoDomain),
        ("user", AddressError::NoDomain),
        ("user@", AddressError::NoDomain),
        ("@example.com", AddressError::LocalPart),
        ("a b@example.com", AddressError::LocalPart),
        (".a@example.com", AddressError::LocalPart),
        ("a.@example.com", AddressError::LocalPart),
        ("a..b@example.com", AddressError::LocalPart),
        (r#""a"b@example.com"#, AddressError::LocalPart),
        (r#""a".b@example.com"#, AddressError::LocalPart),
        (r#"a"b"@example.com"#, AddressError::LocalPart),
        (r#""\é"@example.com"#, AddressError::LocalPart),
        (r#""a@example.com"#, AddressError::OpenQuote),
        (r#""a\"@example.com"#, AddressError::OpenQuote),
        (r#""a\"#, AddressError::OpenQuote),
        ("a@b@example.com", AddressError::Domain),
        ("a@example.com.", AddressError::Domain),
        ("a@-example.com", AddressError::Domain),
        ("a@example-.com", AddressError::Domain),
        ("a@exa_mple.com", AddressError::Domain),
        ("a@exa mple.com", AddressError::Domain),
        ("a@example.com>", AddressError::Domain),
        // A full stop of another script is a dot, so this has an empty label.
        ("a@é\u{3002}\u{3002}com", AddressError::Domain),
        // It maps to a character that no domain may hold.
        ("a@\u{ff20}example.com", AddressError::Domain),
        ("a@xn--é.com", AddressError::Domain),
        ("a@[192.0.2.1", AddressError::Literal),
        ("a@[192.0.2.256]", AddressError::Literal),
        ("a@[192.0.2]", AddressError::Literal),
        ("a@[192.0.2.01]", AddressError::Literal),
        ("a@[192.0.2.1]x", AddressError::Literal),
        ("a@[2001:db8::1]", AddressError::Literal),
        ("a@[IPv6:192.0.2.1]", AddressError::Literal),
        ("a@[IPv6:fe80::1%eth0]", AddressError::Literal),
        ("a@[x400:anything]", AddressError::Literal),
        ("a@[]", AddressError::Literal),
        ("a\0@example.com", AddressError::ControlCharacter),
        ("a@example.com\r", AddressError::ControlCharacter),
        ("\"a\r\nb\"@example.com", AddressError::ControlCharacter),
        ("\"a\tb\"@example.com", AddressError::ControlCharacter),
        ("\u{85}é@example.com", AddressError::ControlCharacter),
    ];
    for (text, error) in cases {
        assert_eq!(Mailbox::parse(text.as_bytes(), Utf8::Allowed), Err(error), "{text:?}");
    }
}

#[test]
fn utf8_needs_to_be_asked_for() {
    for text in ["é@example.com", "a@é.example"] {
        assert_eq!(Mailbox::parse(text.as_bytes(), Utf8::Refused), Err(AddressError::Utf8Refused));
        assert!(!mailbox(text).is_ascii());
    }
    assert_eq!(Mailbox::parse(b"\xe9@example.com", Utf8::Allowed), Err(AddressError::NotUtf8));
}

#[test]
fn lengths_are_bounded() {
    let parse = |local: usize, label: usize, more: &str| {
        let text = format!("{}@{}{more}", "l".repeat(local), "d".repeat(label));
        Mailbox::parse(text.as_bytes(), Utf8::Allowed).map(|mailbox| mailbox.as_str().len())
    };
    assert_eq!(parse(64, 63, ""), Ok(128));
    assert_eq!(parse(65, 63, ""), Err(AddressError::LocalPartTooLong));
    assert_eq!(parse(64, 64, ""), Err(AddressError::LabelTooLong));
    let more = format!(".{0}.{0}", "m".repeat(60));
    assert_eq!(parse(64, 63, &format!("{more}.mmm")), Ok(254));
    assert_eq!(parse(64, 63, &format!("{more}.mmmm")), Err(AddressError::PathTooLong));
    assert_eq!(parse(1, 63, &".m".repeat(97)), Err(AddressError::DomainTooLong));
    // Octets count, not letters.
    assert_eq!(mailbox(&format!("{}@b", "é".repeat(32))).local_part().len(), 64);
    let long = format!("{}@b", "é".repeat(33));
    assert_eq!(Mailbox::parse(long.as_bytes(), Utf8::Allowed), Err(AddressError::LocalPartTooLong));
    // An A-label is bounded like any other label.
    let odd: String = ('\u{4e00}'..).step_by(97).take(30).collect();
    let text = format!("a@{odd}.com");
    assert_eq!(Mailbox::parse(text.as_bytes(), Utf8::Allowed), Err(AddressError::Domain));
}

#[test]
fn a_source_route_is_dropped() {
    for text in ["<@a.example:u@b.example>", "<@a.example,@c.example:u@b.example>"] {
        assert_eq!(forward(text), Ok(mailbox("u@b.example").into()), "{text}");
        let reverse = ReversePath::parse(text.as_bytes(), Utf8::Refused);
        assert_eq!(reverse, Ok(mailbox("u@b.example").into()));
    }
    for text in [
        "<@a.example>",
        "<@:u@b.example>",
        "<@a.example,c.example:u@b.example>",
        "<@a.example,:u@b.example>",
        "<@a.example@c.example:u@b.example>",
        "<@[192.0.2.1]:u@b.example>",
    ] {
        assert_eq!(forward(text), Err(AddressError::SourceRoute), "{text}");
    }
    // Routes do not nest.
    assert_eq!(forward("<@a.example:@c.example:u@b.example>"), Err(AddressError::LocalPart));
}

#[test]
fn paths_stand_in_angle_brackets() {
    for text in ["", "<", ">", "u@b.example", "<u@b.example", "u@b.example>"] {
        assert_eq!(forward(text), Err(AddressError::Brackets), "{text}");
    }
    assert_eq!(ReversePath::parse(b"<>", Utf8::Refused), Ok(ReversePath::Null));
    assert_eq!(ReversePath::Null.to_string(), "<>");
    assert_eq!(forward("<>"), Err(AddressError::NoDomain));
    assert_eq!(forward("< >"), Err(AddressError::LocalPart));
    assert_eq!(forward("<<u@b.example>>"), Err(AddressError::LocalPart));
    assert_eq!(
        forward("<u@b.example>").map(|path| path.to_string()).as_deref(),
        Ok("<u@b.example>")
    );
}

#[test]
fn postmaster_is_known_in_every_spelling() {
    for text in ["<Postmaster>", "<POSTMASTER>", "<postmaster>"] {
        assert_eq!(forward(text), Ok(ForwardPath::Postmaster));
    }
    for text in ["<PostMaster@a.example>", r#"<"postmaster"@b>"#, r#"<"post\master"@b>"#] {
        assert!(forward(text).expect(text).is_postmaster(), "{text}");
    }
    assert!(ForwardPath::Postmaster.is_postmaster());
    assert!(!forward("<postmaster1@b>").expect("valid").is_postmaster());
    assert_eq!(ForwardPath::Postmaster.to_string(), "<Postmaster>");
    assert!(ReversePath::parse(b"<postmaster>", Utf8::Refused).is_err());
}

#[test]
fn a_path_ends_at_a_bracket_outside_quotes() {
    let split = |text: &'static str| {
        split_path(text.as_bytes())
            .map(|(path, rest)| (path.escape_ascii().to_string(), rest.escape_ascii().to_string()))
    };
    let parts = |path: &str, rest: &str| Ok((path.to_string(), rest.to_string()));
    assert_eq!(split("<a@b> SIZE=1"), parts("<a@b>", " SIZE=1"));
    assert_eq!(split("<>"), parts("<>", ""));
    assert_eq!(split("<a>b>"), parts("<a>", "b>"));
    assert_eq!(split_path(br#"<"a>\">b"@c> x"#), Ok((&br#"<"a>\">b"@c>"#[..], &b" x"[..])));
    assert_eq!(split("a@b>"), Err(AddressError::Brackets));
    assert_eq!(split("<a@b"), Err(AddressError::Brackets));
    assert_eq!(split(r#"<"a@b>"#), Err(AddressError::OpenQuote));
}

#[test]
fn a_local_part_is_unquoted() {
    for (text, unquoted) in [
        ("user@b", "user"),
        (r#""user"@b"#, "user"),
        (r#""us\er"@b"#, "user"),
        (r#""a\"b\\c\ d"@b"#, r#"a"b\c d"#),
        (r#"""@b"#, ""),
    ] {
        assert_eq!(mailbox(text).local_unquoted(), unquoted);
    }
}

#[test]
fn a_domain_has_one_form_for_tables() {
    for (text, ascii) in [
        ("a@example.com", Some("example.com")),
        ("a@EXAMPLE.Com", Some("example.com")),
        ("a@BÜCHER.example", Some("xn--bcher-kva.example")),
        ("a@XN--BCHER-KVA.example", Some("xn--bcher-kva.example")),
        ("a@faß.example", Some("xn--fa-hia.example")),
        ("a@[192.0.2.1]", None),
    ] {
        assert_eq!(mailbox(text).domain_ascii().as_deref(), ascii, "{text}");
    }
}

#[test]
fn a_literal_gives_its_address() {
    let address = |text| mailbox(text).literal_address().map(|address| address.to_string());
    assert_eq!(address("a@[192.0.2.1]").as_deref(), Some("192.0.2.1"));
    assert_eq!(address("a@[IPv6:2001:db8::1]").as_deref(), Some("2001:db8::1"));
    assert_eq!(address("a@192.0.2.1"), None);
}

#[test]
fn routes_hidden_in_a_local_part_are_seen() {
    for text in [
        "user%other@b",
        "other!user@b",
        r#""user@other"@b"#,
        r#""user\@other"@b"#,
        r#""@other:user"@b"#,
        r#""user\%other"@b"#,
    ] {
        assert!(mailbox(text).has_routing_characters(), "{text}");
    }
    for text in ["user@b", "us+er@b", r#""us er"@b"#, "a/b=c@b"] {
        assert!(!mailbox(text).has_routing_characters(), "{text}");
    }
}

#[test]
fn stored_text_is_not_trusted_blindly() {
    for text in ["user@example.com", r#""a@b"@example.com"#, "é@é.example", "a@[192.0.2.1]"] {
        assert_eq!(Mailbox::from_stored(text), Some(mailbox(text)));
    }
    let long = format!("{}@b", "a".repeat(65));
    let deep = format!("a@{}", "b".repeat(254));
    for text in ["", "@", "user", "user@", "@b", "a\r\n@b", "a@b\0", &long, &deep] {
        assert_eq!(Mailbox::from_stored(text), None, "{text:?}");
    }
}

/// Texts made of the pieces that addresses are made of.
fn near_addresses() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        6 => "[a-z0-9]{1,4}",
        2 => Just("@".to_string()),
        2 => Just(".".to_string()),
        1 => prop::sample::select(vec![
            "\"", "\\", "[", "]", "IPv6:", "::", "192.0.2.1", "-", "%", "!", " ", ",", ":", "<", ">",
            "é", "郵", "\u{3002}", "\u{85}", "\0", "\r", "xn--",
        ]).prop_map(str::to_string),
    ];
    prop::collection::vec(piece, 0..10).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn a_mailbox_reads_back_as_it_was_written(text in prop_oneof![
        near_addresses(),
        "\"[ -~é]{0,8}\"@[a-z]{1,5}(\\.[a-zéß郵-]{1,5}){0,2}",
        "[a-zé!%+.]{1,9}@[a-zA-Z0-9.-]{1,12}",
    ]) {
        for utf8 in [Utf8::Allowed, Utf8::Refused] {
            let Ok(mailbox) = Mailbox::parse(text.as_bytes(), utf8) else { continue };
            prop_assert_eq!(mailbox.as_str(), &text);
            prop_assert!(utf8 == Utf8::Allowed || text.is_ascii());
            prop_assert_eq!(mailbox.domain_ascii().is_none(), mailbox.is_literal());
            prop_assert_eq!(mailbox.literal_address().is_some(), mailbox.is_literal());
            prop_assert_eq!(Mailbox::from_stored(&text), Some(mailbox.clone()));
            // Within a command it is found again, whole.
            let path = ForwardPath::from(mailbox);
            let command = format!("{path} NOTIFY=NEVER");
            let (found, rest) = split_path(command.as_bytes()).expect("a path");
            prop_assert_eq!(rest, b" NOTIFY=NEVER");
            prop_assert_eq!(ForwardPath::parse(found, utf8), Ok(path));
        }
    }

    #[test]
    fn no_octets_make_it_panic(octets in prop::collection::vec(any::<u8>(), 0..80)) {
        let _ = Mailbox::parse(&octets, Utf8::Allowed);
        let _ = ReversePath::parse(&octets, Utf8::Allowed);
        let _ = ForwardPath::parse(&octets, Utf8::Refused);
        let _ = split_path(&octets);
        let _ = Mailbox::from_stored(&String::from_utf8_lossy(&octets));
    }

    #[test]
    fn stored_text_answers_every_question(text in near_addresses()) {
        if let Some(mailbox) = Mailbox::from_stored(&text) {
            let _ = (mailbox.local_unquoted(), mailbox.domain_ascii(), mailbox.literal_address());
            let _ = (mailbox.is_postmaster(), mailbox.has_routing_characters());
        }
    }
}
