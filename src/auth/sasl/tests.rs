//! The vectors of the RFCs, both sides against each other, and whatever a client may send.

use std::num::NonZeroU32;

use data_encoding::BASE64;
use proptest::prelude::*;

use super::client::{Answer, ClientError, ClientExchange, Credentials};
use super::*;

const EXPORTER: Binding = Binding { exporter: Some([9; 32]), offered: true };

fn lookup(hash: ScramHash, name: &str) -> Verifier {
    match name {
        "user" => Verifier::make(hash, "pencil", b"0123456789abcdef", iterations(4096)),
        _ => Verifier::nobody(hash, name, b"secret"),
    }
}

fn credentials(name: &str, secret: &str) -> Credentials {
    Credentials { name: name.into(), secret: secret.into(), is_token: false }
}

/// What the client says to a challenge, its keys derived at once.
fn respond(client: &mut ClientExchange, challenge: &[u8]) -> Result<Vec<u8>, ClientError> {
    match client.respond(challenge)? {
        Answer::Respond(octets) => Ok(octets),
        Answer::Derive(derivation) => client.derived(&derivation.derive()),
    }
}

fn iterations(count: u32) -> NonZeroU32 {
    NonZeroU32::new(count).unwrap()
}

fn text(step: Step) -> String {
    match step {
        Step::Challenge(octets) => String::from_utf8(octets).unwrap(),
        other => panic!("{other:?}"),
    }
}

/// RFC 5802 section 5 and RFC 7677 section 3.
#[test]
fn the_dialogues_of_the_rfcs() {
    for (mechanism, salt, client, server, proof, answer) in [
        (
            Mechanism::ScramSha1,
            "QSXCR+Q6sek8bf92",
            "fyko+d2lbbFgONRv9qkxdawL",
            "3rfcNHYJY1ZVvWVs7j",
            "v0X8v3Bz2T0CJGbJQyF0X+HI4Ts=",
            "rmF9pqV8S7suAoZWja4dJRkFsKQ=",
        ),
        (
            Mechanism::ScramSha256,
            "W22ZaJ0SNY7soEsUEjb6gQ==",
            "rOprNGfwEbeRWgbNEkqO",
            "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0",
            "dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=",
            "6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=",
        ),
    ] {
        let salt_octets = BASE64.decode(salt.as_bytes()).unwrap();
        let lookup = |hash, name: &str| {
            assert_eq!(name, "user");
            Verifier::make(hash, "pencil", &salt_octets, iterations(4096))
        };
        let mut ours = Exchange::new(mechanism, server, Binding::default());
        let known = credentials("user", "pencil");
        let mut theirs =
            ClientExchange::new(mechanism, &known, client, Binding::default()).unwrap();
        let first = theirs.initial().unwrap();
        assert_eq!(first, format!("n,,n=user,r={client}").as_bytes());
        let challenge = text(ours.respond(Some(&first), &lookup));
        assert_eq!(challenge, format!("r={client}{server},s={salt},i=4096"));
        let last = respond(&mut theirs, challenge.as_bytes()).unwrap();
        let expected = format!("c=biws,r={client}{server},p={proof}");
        assert_eq!(String::from_utf8_lossy(&last), expected);
        let answered = text(ours.respond(Some(&last), &lookup));
        assert_eq!(answered, format!("v={answer}"));
        assert_eq!(theirs.succeeded(), Err(ClientError::NotTheServer), "before it was looked at");
        assert_eq!(respond(&mut theirs, answered.as_bytes()), Ok(Vec::new()));
        assert_eq!(theirs.succeeded(), Ok(()));
        assert_eq!(ours.respond(Some(b""), &lookup), Step::Done("user".into()));
        assert_eq!(ours.respond(Some(b""), &lookup), Step::Failed(Failure::Malformed));
    }
}

/// Our client against our server, with what is known of the connection on either side.
fn meet(
    mechanism: Mechanism,
    (name, password): (&str, &str),
    client: Binding,
    server: Binding,
) -> Step {
    let known = credentials(name, password);
    let mut theirs = ClientExchange::new(mechanism, &known, "abc", client).unwrap();
    let mut ours = Exchange::new(mechanism, "def", server);
    let mut response = theirs.initial();
    for _ in 0..5 {
        let mut step = ours.respond(response.as_deref(), &lookup);
        if let Step::Verify(claim) = &step {
            let good = match claim {
                Claim::Password { name, password } => {
                    (&**name == "user" && &**password == "pencil").then_some("user")
                }
                Claim::Token { token, .. } => (&**token == "pencil").then_some("user"),
            };
            step = ours.verified(good);
        }
        match step {
            Step::Challenge(challenge) => match respond(&mut theirs, &challenge) {
                Ok(next) => response = Some(next),
                Err(error) => panic!("{error}"),
            },
            Step::Done(name) => {
                theirs.succeeded().unwrap();
                return Step::Done(name);
            }
            step => return step,
        }
    }
    panic!("an exchange without an end");
}

#[test]
fn both_sides_agree_in_every_mechanism() {
    for mechanism in Mechanism::ALL {
        let done = meet(mechanism, ("user", "pencil"), EXPORTER, EXPORTER);
        assert_eq!(done, Step::Done("user".into()), "{mechanism}");
        let failed = meet(mechanism, ("user", "Pencil"), EXPORTER, EXPORTER);
        assert_eq!(failed, Step::Failed(Failure::Credentials), "{mechanism}");
        if !mechanism.takes_tokens() {
            let failed = meet(mechanism, ("u,s=r", "pencil"), EXPORTER, EXPORTER);
            assert_eq!(failed, Step::Failed(Failure::Credentials), "{mechanism}");
        }
    }
}

#[test]
fn a_man_in_the_middle_is_found_out() {
    let other = Binding { exporter: Some([8; 32]), offered: true };
    let hidden = Binding { offered: false, ..EXPORTER };
    let plus = Mechanism::ScramSha256Plus;
    let failed = Step::Failed(Failure::Credentials);
    assert_eq!(meet(plus, ("user", "pencil"), EXPORTER, other), failed);
    let plain = Mechanism::ScramSha256;
    assert_eq!(meet(plain, ("user", "pencil"), hidden, EXPORTER), failed, "the offer was hidden");
    assert_eq!(meet(plain, ("user", "pencil"), hidden, hidden), Step::Done("user".into()));
}

#[test]
fn a_server_without_our_verifier_is_left() {
    let known = credentials("user", "pencil");
    let start = || {
        let mechanism = Mechanism::ScramSha256;
        let mut client = ClientExchange::new(mechanism, &known, "abc", Binding::default()).unwrap();
        client.initial();
        client
    };
    for challenge in [
        &b""[..],
        b"r=abc,s=AAAA,i=4096",
        b"r=xyzdef,s=AAAA,i=4096",
        b"r=abcdef,s=AAAA,i=0",
        b"r=abcdef,s=AAAA,i=4000000000",
        b"r=abcdef,s=*,i=4096",
        b"\xff",
    ] {
        assert_eq!(respond(&mut start(), challenge), Err(ClientError::Malformed), "{challenge:?}");
    }
    let mut client = start();
    respond(&mut client, b"r=abcdef,s=AAAA,i=1").unwrap();
    assert_eq!(respond(&mut client, b"v=AAAA"), Err(ClientError::NotTheServer));
}

#[test]
fn responses_and_what_they_come_to() {
    use Mechanism::*;
    let failed = || Step::Failed(Failure::Credentials);
    let malformed = || Step::Failed(Failure::Malformed);
    let claim = |name: &str, password: &str| {
        Step::Verify(Claim::Password { name: name.into(), password: password.into() })
    };
    let token = |name: Option<&str>| {
        Step::Verify(Claim::Token { name: name.map(Box::from), token: "t.t".into() })
    };
    for (mechanism, response, step) in [
        (Plain, &b"\0user\0pencil"[..], claim("user", "pencil")),
        (Plain, b"user\0user\0pencil", claim("user", "pencil")),
        (Plain, "\0us\u{ad}er\0pen\u{a0}cil".as_bytes(), claim("user", "pen cil")),
        (Plain, b"admin\0user\0pencil", failed()),
        (Plain, b"\0user\0", failed()),
        (Plain, b"\0\0pencil", failed()),
        (Plain, b"\0user\0a\x07", failed()),
        (Plain, b"\0user", malformed()),
        (Plain, b"\0user\0pencil\0", malformed()),
        (Plain, b"\0user\0\xff", malformed()),
        (Plain, b"", malformed()),
        (ScramSha256, b"n,,n=user", malformed()),
        (ScramSha256, b"n,,n=us=er,r=a", malformed()),
        (ScramSha256, b"n,,n=user,r=", malformed()),
        (ScramSha256, b"n,,m=x,n=user,r=a", malformed()),
        (ScramSha256, b"n,,n=user,r=a,m=x", malformed()),
        (ScramSha256, b"n,b=user,n=user,r=a", malformed()),
        (ScramSha256, b"x,,n=user,r=a", failed()),
        (ScramSha256, b"y,,n=user,r=a", failed()),
        (ScramSha256, b"n,a=admin,n=user,r=a", failed()),
        (ScramSha256, b"p=tls-exporter,,n=user,r=a", failed()),
        (ScramSha256Plus, b"n,,n=user,r=a", failed()),
        (ScramSha256Plus, b"p=tls-unique,,n=user,r=a", failed()),
        (XOAuth2, b"user=u\x01auth=Bearer t.t\x01\x01", token(Some("u"))),
        (XOAuth2, b"user=u\x01auth=Basic t.t\x01\x01", malformed()),
        (XOAuth2, b"user=u\x01auth=Bearer t.t\x01", malformed()),
        (OAuthBearer, b"n,a=u,\x01host=h\x01port=1\x01auth=Bearer t.t\x01\x01", token(Some("u"))),
        (OAuthBearer, b"n,,\x01auth=bearer t.t\x01\x01", token(None)),
        (OAuthBearer, b"p=x,,\x01auth=bearer t.t\x01\x01", malformed()),
        (OAuthBearer, b"n,,\x01\x01", malformed()),
    ] {
        let mut exchange = Exchange::new(mechanism, "nonce", EXPORTER);
        let found = exchange.respond(Some(response), &lookup);
        assert_eq!(found, step, "{mechanism} {}", response.escape_ascii());
    }
}

#[test]
fn login_asks_twice() {
    let mut exchange = Exchange::new(Mechanism::Login, "", Binding::default());
    assert_eq!(text(exchange.respond(None, &lookup)), "Username:");
    assert_eq!(text(exchange.respond(Some(b"user"), &lookup)), "Password:");
    assert!(matches!(exchange.respond(Some(b"pencil"), &lookup), Step::Verify(_)));
    assert_eq!(exchange.name(), Some("user"));
    let mut exchange = Exchange::new(Mechanism::Login, "", Binding::default());
    assert_eq!(text(exchange.respond(Some(b"user"), &lookup)), "Password:", "a name at once");
    assert_eq!(exchange.respond(Some(b""), &lookup), Step::Failed(Failure::Credentials));
}

#[test]
fn no_secret_is_shown_in_clear() {
    let all = |_: &str| true;
    let choose = |offered: &dyn Fn(&str) -> bool, secured, binding| {
        ClientExchange::choose(offered, false, secured, binding)
    };
    assert_eq!(choose(&all, true, EXPORTER), Some(Mechanism::ScramSha256Plus));
    assert_eq!(choose(&all, true, Binding::default()), Some(Mechanism::ScramSha256));
    assert_eq!(choose(&|name| name == "PLAIN", true, EXPORTER), Some(Mechanism::Plain));
    assert_eq!(choose(&|name| name == "PLAIN", false, EXPORTER), None);
    let token =
        |offered: &dyn Fn(&str) -> bool| ClientExchange::choose(offered, true, true, EXPORTER);
    assert_eq!(token(&all), Some(Mechanism::OAuthBearer));
    assert_eq!(token(&|name| name == "XOAUTH2"), Some(Mechanism::XOAuth2));
    assert_eq!(ClientExchange::choose(all, true, false, EXPORTER), None);
    let known = credentials("u", "hunter2");
    let claim = Claim::Password { name: "u".into(), password: "hunter2".into() };
    assert!(!format!("{known:?} {claim:?}").contains("hunter2"));
}

/// Octets near the grammars, so that they get past their first checks.
fn responses() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let near = prop_oneof![
        Just("n,,n=user,r=abc".as_bytes().to_vec()),
        Just(b"c=biws,r=abcnonce,p=AAAA".to_vec()),
        Just(b"user=u\x01auth=Bearer t\x01\x01".to_vec()),
        Just(b"\0user\0pencil".to_vec()),
        prop::collection::vec(any::<u8>(), 0..64),
        "[nypcra=,*,,=\\x012CD3 ]{0,24}".prop_map(String::into_bytes),
    ];
    let broken = (near, any::<prop::sample::Index>(), any::<u8>(), any::<bool>());
    let broken = broken.prop_map(|(mut octets, at, octet, change)| {
        if change && !octets.is_empty() {
            let at = at.index(octets.len());
            octets[at] = octet;
        }
        octets
    });
    prop::collection::vec(broken, 1..5)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    /// No client gets in by anything but its password, and nothing panics.
    #[test]
    fn whatever_a_client_sends(mechanism in 0..Mechanism::ALL.len(), all in responses()) {
        let lookup = |hash, name: &str| Verifier::nobody(hash, name, b"secret");
        let mut exchange = Exchange::new(Mechanism::ALL[mechanism], "nonce", EXPORTER);
        for response in &all {
            let step = exchange.respond(Some(response), &lookup);
            let is_in = matches!(step, Step::Done(_));
            prop_assert!(!is_in);
            if let Step::Verify(_) = step {
                let is_in = matches!(exchange.verified(None), Step::Done(_));
                prop_assert!(!is_in);
            }
        }
    }

    #[test]
    fn whatever_a_server_sends(mechanism in 0..Mechanism::ALL.len(), all in responses()) {
        let known = credentials("user", "pencil");
        let mechanism = Mechanism::ALL[mechanism];
        let mut client =
            ClientExchange::new(mechanism, &known, "abc", EXPORTER).unwrap();
        client.initial();
        for challenge in &all {
            let _ = respond(&mut client, challenge);
        }
    }
}
