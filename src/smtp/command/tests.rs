use proptest::prelude::*;

use super::*;
use crate::message::{BodyKind, Notify, Ret};
use crate::smtp::address::Mailbox;

const ALL: Extensions = Extensions {
    size: true,
    eight_bit_mime: true,
    smtputf8: true,
    dsn: true,
    auth: true,
    require_tls: true,
    transaction: Utf8::Refused,
};

fn read(line: &str) -> Parsed<'_> {
    parse(line.as_bytes(), &ALL)
}

fn mail_of(line: &str) -> Mail {
    match read(line) {
        Ok(Command::Mail(mail)) => mail,
        other => panic!("{line}: {other:?}"),
    }
}

fn recipient_of(line: &str) -> Recipient {
    match read(line) {
        Ok(Command::Rcpt(recipient)) => recipient,
        other => panic!("{line}: {other:?}"),
    }
}

fn mailbox(text: &str) -> Mailbox {
    Mailbox::parse(text.as_bytes(), Utf8::Allowed).expect(text)
}

#[test]
fn every_verb_is_read() {
    let cases = [
        ("HELO a", Command::Helo { name: "a" }),
        ("EHLO my_pc", Command::Ehlo { name: "my_pc" }),
        ("EHLO [192.0.2.1]", Command::Ehlo { name: "[192.0.2.1]" }),
        ("eHlO a  ", Command::Ehlo { name: "a" }),
        ("DATA", Command::Data),
        ("data   ", Command::Data),
        ("RSET", Command::Rset),
        ("QUIT", Command::Quit),
        ("NOOP", Command::Noop),
        ("NOOP and more", Command::Noop),
        ("HELP", Command::Help),
        ("HELP MAIL", Command::Help),
        ("VRFY <a@b>", Command::Vrfy { argument: "<a@b>" }),
        ("VRFY é SMTPUTF8", Command::Vrfy { argument: "é SMTPUTF8" }),
        ("EXPN list", Command::Expn { argument: "list" }),
        ("ETRN b", Command::Etrn(Node::Domain("b".into()))),
        ("etrn @B.example", Command::Etrn(Node::Subdomains("b.example".into()))),
        ("XCLIENT ADDR=b", Command::Xclient { arguments: "ADDR=b" }),
        ("ETRN #queue", Command::Etrn(Node::Named)),
        ("STARTTLS", Command::StartTls),
        ("AUTH PLAIN", Command::Auth { mechanism: "PLAIN", initial: None }),
        ("auth plain AGEAYg==", Command::Auth { mechanism: "plain", initial: Some("AGEAYg==") }),
        ("AUTH SCRAM-SHA-256 =", Command::Auth { mechanism: "SCRAM-SHA-256", initial: Some("=") }),
        ("BDAT 0", Command::Bdat { octets: 0, last: false }),
        ("BDAT 100 last", Command::Bdat { octets: 100, last: true }),
        ("BDAT 0000000000000000000000012 LAST", Command::Bdat { octets: 12, last: true }),
        (
            "BDAT 9223372036854775807",
            Command::Bdat { octets: 9_223_372_036_854_775_807, last: false },
        ),
        ("TURN", Command::NotImplemented),
        ("SAML FROM:<a@b>", Command::NotImplemented),
        ("GET / HTTP/1.1", Command::OtherProtocol),
        ("CONNECT a:25 HTTP/1.1", Command::OtherProtocol),
        ("", Command::Unknown),
        ("   ", Command::Unknown),
        (" NOOP", Command::Unknown),
        ("FOO", Command::Unknown),
        ("NOOPS", Command::Unknown),
        ("QUIT;", Command::Unknown),
        ("DATA\u{2d}", Command::Unknown),
        ("250 Ok", Command::Unknown),
    ];
    for (line, command) in cases {
        assert_eq!(read(line), Ok(command), "{line}");
    }
}

#[test]
fn wrong_arguments_are_refused() {
    for line in [
        "HELO",
        "HELO ",
        "EHLO",
        "EHLO a b",
        "EHLO  a",
        "DATA now",
        "RSET 1",
        "QUIT now",
        "STARTTLS now",
        "VRFY",
        "EXPN",
        "ETRN",
        "ETRN @",
        "ETRN a b",
        "ETRN user@b",
        "ETRN [192.0.2.1]",
        "AUTH",
        "AUTH  PLAIN",
        "AUTH PLAIN a b",
        "AUTH PL@IN",
        "AUTH AAAAAAAAAAAAAAAAAAAAA",
        "AUTH PLAIN a-b",
        "MAIL",
        "MAIL FROM",
        "MAIL <a@b>",
        "MAIL TO:<a@b>",
        "MAIL FROM <a@b>",
        "MAIL FROM :<a@b>",
        "MAIL  FROM:<a@b>",
        "MAIL FROM:<a@b>SIZE=1",
        "RCPT",
        "RCPT FROM:<a@b>",
        "RCPT TO:<a@b>>",
        "RCPT TO:<a@b>,<c@d>",
    ] {
        assert!(matches!(read(line), Err(CommandError::Syntax { .. })), "{line}: {:?}", read(line));
    }
    let long = format!("EHLO {}", "a".repeat(256));
    assert!(matches!(read(&long), Err(CommandError::Syntax { .. })));
    assert!(read(&long[..long.len() - 1]).is_ok());
}

#[test]
fn octets_that_no_command_holds_are_named() {
    let cases: [(&[u8], CommandError); 11] = [
        (b"NOOP \0", CommandError::Nul),
        (b"\0\0\0", CommandError::Nul),
        (b"NOOP\nQUIT", CommandError::BareNewline),
        (b"NOOP \rQUIT", CommandError::BareNewline),
        (b"MAIL FROM:<a@b>\nRCPT TO:<c@d>", CommandError::BareNewline),
        (b"MAIL\tFROM:<a@b>", CommandError::ControlCharacter),
        (b"NOOP \x7f", CommandError::ControlCharacter),
        (b"\x16\x03\x01\x02\x03", CommandError::ControlCharacter),
        (b"EHLO caf\xc3\xa9", CommandError::EightBit),
        (b"\xff\xff", CommandError::EightBit),
        (b"VRFY \xff", CommandError::EightBit),
    ];
    for (line, error) in cases {
        assert_eq!(parse(line, &ALL), Err(error), "{}", line.escape_ascii());
    }
    let vrfy = parse("VRFY é".as_bytes(), &Extensions::default());
    assert_eq!(vrfy, Err(CommandError::EightBit));
}

/// The octets of a refused BDAT are a message's, which could hold commands that somebody else
/// wrote; either they can be counted and discarded, or the session must end.
#[test]
fn a_wrong_bdat_never_leaves_its_octets_to_be_commands() {
    for (line, skip_octets) in [
        (&b"BDAT 10 LAST now"[..], Some(10)),
        (b"BDAT 10 FIRST", Some(10)),
        (b"BDAT 10  LAST", Some(10)),
        (b"BDAT", None),
        (b"BDAT LAST", None),
        (b"BDAT -1", None),
        (b"BDAT +1", None),
        (b"BDAT  10", None),
        (b"BDAT 10,LAST", None),
        (b"BDAT 10LAST", None),
        (b"BDAT 0x10", None),
        (b"BDAT 1.5", None),
        (b"BDAT 9223372036854775808", None),
        (b"BDAT 18446744073709551617", None),
        (b"BDAT 99999999999999999999999999 LAST", None),
        (b"BDAT\t10", None),
        (b"BDAT10", None),
        (b"bdat 10\0", None),
        (b"BDAT 10\nLAST", None),
        (b"BDAT 10 LAST\xff", None),
    ] {
        let expected = Err(CommandError::Bdat { skip_octets });
        assert_eq!(parse(line, &ALL), expected, "{}", line.escape_ascii());
    }
}

#[test]
fn mail_is_read() {
    assert_eq!(mail_of("MAIL FROM:<>").path, ReversePath::Null);
    assert_eq!(mail_of("mail from: <a@b> ").path, mailbox("a@b").into());
    assert_eq!(mail_of("MAIL FROM:<\"a> SIZE=1\"@b>").path, mailbox("\"a> SIZE=1\"@b").into());
    assert_eq!(mail_of("MAIL FROM:<a@b>").parameters, MailParameters::default());

    let mail = mail_of(
        "MAIL FROM:<a@b>  SIZE=1000 body=8bitmime SMTPUTF8 RET=HDRS ENVID=QQ+2B314 AUTH=c+3Dd@e",
    );
    let expected = Mail {
        path: mailbox("a@b").into(),
        parameters: MailParameters {
            body: BodyKind::EightBitMime,
            smtputf8: true,
            require_tls: false,
            ret: Some(Ret::Headers),
            envid: Some("QQ+2B314".into()),
        },
        size_octets: Some(1000),
        auth: Some("c+3Dd@e".into()),
    };
    assert_eq!(mail, expected);
    assert!(mail_of("MAIL FROM:<a@b> requiretls SIZE=5").parameters.require_tls);
    assert!(read("MAIL FROM:<a@b> REQUIRETLS=yes").is_err());
    assert!(read("MAIL FROM:<a@b> REQUIRETLS REQUIRETLS").is_err());
    let in_clear = Extensions { require_tls: false, ..ALL };
    assert!(parse(b"MAIL FROM:<a@b> REQUIRETLS", &in_clear).is_err());
    assert_eq!(mail_of("MAIL FROM:<a@b> AUTH=<>").auth.as_deref(), Some("<>"));
    assert_eq!(mail_of("MAIL FROM:<a@b> RET=full").parameters.ret, Some(Ret::Full));
}

#[test]
fn a_size_beyond_64_bits_is_too_large_and_not_malformed() {
    for (value, octets) in [
        ("0", 0),
        ("18446744073709551615", u64::MAX),
        ("18446744073709551616", u64::MAX),
        ("99999999999999999999", u64::MAX),
        ("00000000000000000001", 1),
    ] {
        let line = format!("MAIL FROM:<> SIZE={value}");
        assert_eq!(mail_of(&line).size_octets, Some(octets), "{value}");
    }
}

#[test]
fn utf8_in_paths_needs_smtputf8() {
    let reverse = CommandError::ReversePath(AddressError::Utf8Refused);
    assert_eq!(read("MAIL FROM:<é@b>"), Err(reverse));
    assert_eq!(mail_of("MAIL FROM:<é@b> SMTPUTF8").path, mailbox("é@b").into());

    let rcpt = "RCPT TO:<é@b>";
    assert_eq!(read(rcpt), Err(CommandError::ForwardPath(AddressError::Utf8Refused)));
    let utf8 = Extensions { transaction: Utf8::Allowed, ..ALL };
    assert!(matches!(parse(rcpt.as_bytes(), &utf8), Ok(Command::Rcpt(_))));

    // What is not offered cannot be asked for.
    let without = Extensions { smtputf8: false, ..ALL };
    let line = "MAIL FROM:<é@b> SMTPUTF8".as_bytes();
    assert_eq!(parse(line, &without), Err(CommandError::UnknownParameter));
}

#[test]
fn parameters_are_judged() {
    let bad = |name| CommandError::BadParameter { name };
    let twice = |name| CommandError::DuplicateParameter { name };
    let long_envid = format!("ENVID={}", "x".repeat(101));
    let cases = [
        ("SIZE", bad("SIZE")),
        ("SIZE=", bad("SIZE")),
        ("SIZE=-1", bad("SIZE")),
        ("SIZE=1e3", bad("SIZE")),
        ("SIZE=1=1", bad("SIZE")),
        ("SIZE=000000000000000000000", bad("SIZE")),
        ("SIZE=1 size=1", twice("SIZE")),
        ("BODY", bad("BODY")),
        ("BODY=9BIT", bad("BODY")),
        ("BODY=BINARYMIME", CommandError::BinaryMime),
        ("BODY=7BIT BODY=8BITMIME", twice("BODY")),
        ("SMTPUTF8=yes", bad("SMTPUTF8")),
        ("SMTPUTF8 SMTPUTF8", twice("SMTPUTF8")),
        ("RET=SOME", bad("RET")),
        ("ENVID=", bad("ENVID")),
        ("ENVID=a+", bad("ENVID")),
        ("ENVID=a+2", bad("ENVID")),
        ("ENVID=a+2b", bad("ENVID")),
        ("ENVID=a=b", bad("ENVID")),
        ("ENVID=a+0D+0Ab", bad("ENVID")),
        ("ENVID=a+00", bad("ENVID")),
        ("ENVID=a+7F", bad("ENVID")),
        ("ENVID=a+E9", bad("ENVID")),
        ("ENVID=é", bad("ENVID")),
        (&long_envid, bad("ENVID")),
        ("AUTH", bad("AUTH")),
        ("AUTH=", bad("AUTH")),
        ("AUTH=<a@b>+0A", bad("AUTH")),
        ("NOTIFY=NEVER", CommandError::UnknownParameter),
        ("FOO", CommandError::UnknownParameter),
        ("FOO=bar", CommandError::UnknownParameter),
        ("=", CommandError::UnknownParameter),
        ("é", CommandError::UnknownParameter),
    ];
    for (parameters, error) in cases {
        let line = format!("MAIL FROM:<a@b> {parameters}");
        assert_eq!(read(&line), Err(error), "{parameters}");
    }
    assert!(read(&format!("MAIL FROM:<a@b> {}", &long_envid[..106])).is_ok());
}

#[test]
fn a_parameter_needs_its_extension() {
    for parameter in ["SIZE=1", "BODY=7BIT", "SMTPUTF8", "RET=FULL", "ENVID=a", "AUTH=<>"] {
        let line = format!("MAIL FROM:<a@b> {parameter}");
        assert!(parse(line.as_bytes(), &ALL).is_ok(), "{parameter}");
        let plain = parse(line.as_bytes(), &Extensions::default());
        assert_eq!(plain, Err(CommandError::UnknownParameter), "{parameter}");
    }
    for parameter in ["NOTIFY=NEVER", "ORCPT=rfc822;a@b"] {
        let line = format!("RCPT TO:<a@b> {parameter}");
        let plain = parse(line.as_bytes(), &Extensions::default());
        assert_eq!(plain, Err(CommandError::UnknownParameter), "{parameter}");
    }
}

#[test]
fn rcpt_is_read() {
    let expected =
        Recipient { path: mailbox("a@b").into(), notify: Notify::UNSPECIFIED, orcpt: None };
    assert_eq!(recipient_of("RCPT TO:<a@b>"), expected);
    assert_eq!(recipient_of("rcpt to: <@c,@d:a@b> "), expected);
    assert_eq!(recipient_of("RCPT TO:<postmaster>").path, ForwardPath::Postmaster);
    let recipient = recipient_of("RCPT TO:<a@b> NOTIFY=success,DELAY ORCPT=rfc822;A+2BC@b");
    assert_eq!(recipient.notify, Notify(Notify::SUCCESS.0 | Notify::DELAY.0));
    assert_eq!(recipient.orcpt.as_deref(), Some("rfc822;A+2BC@b"));
    assert_eq!(recipient_of("RCPT TO:<a@b> NOTIFY=never").notify, Notify::NEVER);
    assert_eq!(read("RCPT TO:<>"), Err(CommandError::ForwardPath(AddressError::NoDomain)));
}

#[test]
fn notify_and_orcpt_are_judged() {
    let bad = |name| CommandError::BadParameter { name };
    let long = format!("ORCPT=rfc822;{}", "a".repeat(494));
    let cases = [
        ("NOTIFY", bad("NOTIFY")),
        ("NOTIFY=", bad("NOTIFY")),
        ("NOTIFY=ALWAYS", bad("NOTIFY")),
        ("NOTIFY=NEVER,FAILURE", bad("NOTIFY")),
        ("NOTIFY=SUCCESS,", bad("NOTIFY")),
        ("NOTIFY=SUCCESS NOTIFY=DELAY", CommandError::DuplicateParameter { name: "NOTIFY" }),
        ("ORCPT", bad("ORCPT")),
        ("ORCPT=a@b", bad("ORCPT")),
        ("ORCPT=;a@b", bad("ORCPT")),
        ("ORCPT=rfc822;", bad("ORCPT")),
        ("ORCPT=rfc822;a+0D+0Ab", bad("ORCPT")),
        ("ORCPT=rfc 822;a", bad("ORCPT")),
        ("ORCPT=utf-8;a\\x{0A}b", bad("ORCPT")),
        ("ORCPT=utf-8;a\\x{85}b", bad("ORCPT")),
        ("ORCPT=utf-8;a\\x{D800}b", bad("ORCPT")),
        ("ORCPT=utf-8;a\\x{110000}b", bad("ORCPT")),
        ("ORCPT=utf-8;a\\x{e9}b", bad("ORCPT")),
        ("ORCPT=utf-8;a\\x{+E9}b", bad("ORCPT")),
        ("ORCPT=utf-8;a\\b", bad("ORCPT")),
        ("ORCPT=utf-8;é@b", bad("ORCPT")),
        ("SIZE=1", CommandError::UnknownParameter),
        (&long, bad("ORCPT")),
    ];
    for (parameters, error) in cases {
        let line = format!("RCPT TO:<a@b> {parameters}");
        assert_eq!(read(&line), Err(error), "{parameters}");
    }
    assert!(read(&format!("RCPT TO:<a@b> {}", &long[..long.len() - 1])).is_ok());
    for orcpt in ["utf-8;\\x{E9}\\x{2B}@b", "UTF-8;a@\\x{10FFFF}b", "x400;/C=x/"] {
        let line = format!("RCPT TO:<a@b> ORCPT={orcpt}");
        let valid = !orcpt.contains("/C=");
        assert_eq!(read(&line).is_ok(), valid, "{orcpt}");
    }
    let utf8 = Extensions { transaction: Utf8::Allowed, ..ALL };
    let line = "RCPT TO:<a@b> ORCPT=utf-8;é@b".as_bytes();
    assert!(matches!(parse(line, &utf8), Ok(Command::Rcpt(_))));
}

/// Lines made of the pieces that commands are made of.
fn near_commands() -> impl Strategy<Value = Vec<u8>> {
    let pieces: Vec<&[u8]> = vec![
        b"MAIL FROM:",
        b"RCPT TO:",
        b"<a@b>",
        b"<>",
        b"BDAT ",
        b"EHLO ",
        b"AUTH ",
        b" ",
        b"SIZE=",
        b"ENVID=",
        b"ORCPT=utf-8;",
        b"NOTIFY=",
        b"NEVER",
        b"SMTPUTF8",
        b"\\x{",
        b"}",
        b"+",
        b"=",
        b"10",
        b"LAST",
        b"\"",
        b"<",
        b">",
        b"@",
        b",",
        b"\xc3\xa9",
        b"\xff",
        b"\0",
        b"\n",
        b"VRFY ",
    ];
    prop::collection::vec(prop::sample::select(pieces), 0..10).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn no_line_makes_it_panic(line in prop_oneof![
        near_commands(),
        prop::collection::vec(any::<u8>(), 0..64),
    ]) {
        for transaction in [Utf8::Refused, Utf8::Allowed] {
            let _ = parse(&line, &Extensions { transaction, ..ALL });
        }
        let plain = parse(&line, &Extensions::default());
        // Commands hold no control characters, whatever they are.
        if line.iter().any(u8::is_ascii_control) {
            prop_assert!(plain.is_err());
        }
    }

    #[test]
    fn an_address_is_read_back_from_its_command(local in "[a-z!%.\"\\\\ >é]{1,8}", utf8: bool) {
        let text = format!("{local}@example.com");
        let utf8 = if utf8 { Utf8::Allowed } else { Utf8::Refused };
        let line = format!("RCPT TO:<{text}> NOTIFY=DELAY");
        let parsed = parse(line.as_bytes(), &Extensions { transaction: utf8, ..ALL });
        if let Ok(mailbox) = Mailbox::parse(text.as_bytes(), utf8) {
            let expected =
                Recipient { path: mailbox.into(), notify: Notify::DELAY, orcpt: None };
            prop_assert_eq!(parsed, Ok(Command::Rcpt(expected)));
        } else {
            prop_assert!(parsed.is_err());
        }
    }
}
