//! The address suites of isemail and its JavaScript child decide what SMTP must accept.
//!
//! Their categories say for each case whether the envelope of SMTP can carry the address: valid,
//! perhaps with a warning from the DNS or with unusual elements of RFC 5321, or not, since it is
//! wrong everywhere or has comments, folding or obsolete forms that only a header may have.  Where
//! we think otherwise, the case stands in [`EXCEPTIONS`] with the reason.

use mailrace::smtp::address::{Mailbox, Utf8};

const NEW_SUITE: &str = include_str!("../data/address/isemail-tests.xml");
const ORIGINAL_SUITE: &str = include_str!("../data/address/isemail-tests-original.xml");
const HAPI_SUITE: &[u8] = include_bytes!("../data/address/hapi-isemail-tests.json");

/// One case of a suite.
struct Case {
    address: Vec<u8>,
    /// The suite's name for what it found.
    diagnosis: String,
    /// Whether the suite's category says that an envelope can carry it.
    valid: bool,
}

/// An address for which the suites' verdict is not ours, and why.
struct Exception {
    address: &'static str,
    diagnosis: &'static str,
    accepted: bool,
    reason: &'static str,
}

const EXCEPTIONS: &[Exception] = &[
    Exception {
        address: "test@[IPv6:1111:2222:3333:4444:5555:6666::8888]",
        diagnosis: "ISEMAIL_RFC5321_IPV6DEPRECATED",
        accepted: true,
        reason: "RFC 4291 lets `::` stand for a single group and the address is not in doubt; \
                 the original suite takes six like it as valid",
    },
    Exception {
        address: "test@[IPv6:1111:2222:3333:4444:5555:6666::8888]",
        diagnosis: "deprecatedIPv6",
        accepted: true,
        reason: "the same case in the other suite",
    },
    Exception {
        address: "test@\u{103ff}ñoñó郵件ñoñó郵件.郵件ñoñó郵件ñoñó郵件.ñoñó郵件ñoñó郵件.\
                  ñoñó郵件ñoñó郵件.ñoñó郵件ñoñó郵件.ñoñó郵件ñoñó郵件.ñoñó郵件ñoñó郵件.\
                  noñó郵件.商務",
        diagnosis: "valid",
        accepted: false,
        reason: "U+103FF is no assigned character, so no domain can hold it",
    },
];

#[test]
fn the_new_suite_of_isemail_decides() {
    let cases = isemail_cases(NEW_SUITE);
    assert_eq!(cases.len(), 164);
    // The suite is older than SMTPUTF8 and its cases are ASCII, but for one that is an error.
    judge(&cases, Utf8::Refused);
    judge(&cases, Utf8::Allowed);
}

#[test]
fn the_original_suite_of_isemail_decides() {
    let cases = isemail_cases(ORIGINAL_SUITE);
    assert_eq!(cases.len(), 279);
    judge(&cases, Utf8::Refused);
    judge(&cases, Utf8::Allowed);
}

#[test]
fn the_suite_of_hapi_decides() {
    let cases = hapi_cases();
    assert_eq!(cases.len(), 210);
    judge(&cases, Utf8::Allowed);
}

/// Without SMTPUTF8 the same cases hold, except that nothing beyond ASCII passes.
#[test]
fn the_suite_of_hapi_decides_without_smtputf8() {
    let (ascii, beyond): (Vec<Case>, Vec<Case>) =
        hapi_cases().into_iter().partition(|case| case.address.is_ascii());
    judge(&ascii, Utf8::Refused);
    assert!(beyond.iter().any(|case| case.valid));
    for case in beyond {
        assert!(Mailbox::parse(&case.address, Utf8::Refused).is_err());
    }
}

#[test]
fn every_exception_is_needed() {
    let cases: Vec<Case> = isemail_cases(NEW_SUITE)
        .into_iter()
        .chain(isemail_cases(ORIGINAL_SUITE))
        .chain(hapi_cases())
        .collect();
    for exception in EXCEPTIONS {
        let needed =
            cases.iter().any(|case| exception.is_for(case) && case.valid != exception.accepted);
        assert!(needed, "{} ({})", exception.address, exception.reason);
    }
}

impl Exception {
    fn is_for(&self, case: &Case) -> bool {
        case.address == self.address.as_bytes() && case.diagnosis == self.diagnosis
    }
}

/// Compares our verdicts with a suite's, and shows all differences at once.
fn judge(cases: &[Case], utf8: Utf8) {
    let wrong: Vec<String> = cases
        .iter()
        .filter_map(|case| {
            let expected = EXCEPTIONS
                .iter()
                .find(|exception| exception.is_for(case))
                .map_or(case.valid, |exception| exception.accepted);
            let found = Mailbox::parse(&case.address, utf8);
            (found.is_ok() != expected).then(|| {
                let address = String::from_utf8_lossy(&case.address);
                format!("{address:?} is {} there, {found:?} here", case.diagnosis)
            })
        })
        .collect();
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// The cases of an isemail file: a flat list of `<test>` with an `<address>`, a `<category>` and a
/// `<diagnosis>`, which needs no XML library.
fn isemail_cases(file: &str) -> Vec<Case> {
    let after_comment = file.split("-->").nth(1).expect("a comment comes first");
    after_comment
        .split("<test ")
        .skip(1)
        .map(|test| Case {
            // Control characters are written as their pictures, U+2400 and following.
            address: element(test, "address")
                .chars()
                .map(|letter| match letter {
                    '\u{2400}'..='\u{241f}' => char::from((letter as u32 - 0x2400) as u8),
                    _ => letter,
                })
                .collect::<String>()
                .into_bytes(),
            diagnosis: element(test, "diagnosis"),
            valid: matches!(
                element(test, "category").as_str(),
                "ISEMAIL_VALID_CATEGORY" | "ISEMAIL_DNSWARN" | "ISEMAIL_RFC5321"
            ),
        })
        .collect()
}

/// The text of a child element, empty if it is `<name/>`.
fn element(test: &str, name: &str) -> String {
    match test.split_once(&format!("<{name}>")) {
        None => {
            assert!(test.contains(&format!("<{name}/>")), "{name} in {test}");
            String::new()
        }
        Some((_, rest)) => {
            let (text, _) = rest.split_once(&format!("</{name}>")).expect("an end tag");
            unescape(text)
        }
    }
}

/// Resolves the entities of XML that these files use.
fn unescape(text: &str) -> String {
    let mut pieces = text.split('&');
    let mut plain = pieces.next().expect("split gives one piece at least").to_string();
    for piece in pieces {
        let (entity, rest) = piece.split_once(';').expect("an entity ends");
        plain.push(match entity {
            "lt" => '<',
            "gt" => '>',
            "amp" => '&',
            "quot" => '"',
            "apos" => '\'',
            _ => {
                let hex = entity.strip_prefix("#x").expect("a known entity");
                let value = u32::from_str_radix(hex, 16).expect("a hexadecimal number");
                char::from_u32(value).expect("a character")
            }
        });
        plain.push_str(rest);
    }
    plain
}

/// The cases of the JSON file: a list of `[address, diagnosis]`.
fn hapi_cases() -> Vec<Case> {
    let cases: Vec<(Octets, String)> = serde_json::from_slice(HAPI_SUITE).expect("valid JSON");
    cases
        .into_iter()
        .map(|(Octets(address), diagnosis)| Case {
            address,
            valid: matches!(
                diagnosis.as_str(),
                "valid"
                    | "rfc5321TLD"
                    | "rfc5321TLDNumeric"
                    | "rfc5321QuotedString"
                    | "rfc5321AddressLiteral"
            ),
            diagnosis,
        })
        .collect()
}

/// A JSON string as octets: some cases hold half of a surrogate pair, which no `String` can.
struct Octets(Vec<u8>);

impl<'de> serde::Deserialize<'de> for Octets {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Octets, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Octets;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a string")
            }
            fn visit_bytes<E>(self, octets: &[u8]) -> Result<Octets, E> {
                Ok(Octets(octets.to_vec()))
            }
        }
        deserializer.deserialize_bytes(Visitor)
    }
}
