//! AUTH through the real binary, both ways: who gets in and who does not, what a user may do, and
//! how mail goes out through a smart host that wants a login, without its secret being told to
//! anybody.

mod smart_host;

use std::fs::{Permissions, set_permissions, write};
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::num::NonZeroU32;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use data_encoding::{BASE64, BASE64URL_NOPAD};
use mailrace::auth::sasl::client::{Answer, ClientExchange, Credentials};
use mailrace::auth::sasl::{Binding, Mechanism};
use mailrace::auth::scram::{ScramHash, Verifier};
use mailrace::auth::users::edit;
use mailrace::auth::{SenderRule, User, Users};
use mailrace::tls::self_signed::{self, SelfSigned, pem};
use mailrace_loadtest::signal::Signals;
use mailrace_loadtest::source;
use mailrace_loadtest::source::plan::Plan;
use mailrace_loadtest::source::settings::{Begin, Settings};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore, SupportedProtocolVersion};
use serde_json::Value;
use tempfile::TempDir;

use crate::client::{Client, Reply};
use crate::dialogue::settings;
use crate::gateway::{Gateway, PATIENCE, binary};
use crate::sink::{Manners, Sink};

/// Whoever can read a log must not find this in it.
const SECRET: &str = "Corr3ct-Horse-Battery";
pub const ALICE: &str = "alice@example.com";

/// A submission service with users, keys of a token's issuer and a certificate.
pub struct Submission {
    pub gateway: Gateway,
    pub home: TempDir,
    certificate: SelfSigned,
    mint: Ed25519KeyPair,
}

/// Its listeners: in clear and never anything else, with STARTTLS, in TLS from the first octet.
const CLEAR: usize = 0;
pub const STARTTLS: usize = 1;
pub const IMPLICIT: usize = 2;

impl Submission {
    /// With these lines in `[auth]` and these further tables.
    pub fn start(auth: &str, tables: &str) -> Submission {
        let home = tempfile::tempdir().expect("a directory");
        let certificate = self_signed::generate(&["mx.test", "127.0.0.1"], jiff::Timestamp::now());
        let certificate = certificate.expect("a key");
        let mint = Ed25519KeyPair::generate().expect("a key");
        put(&home, "chain.pem", &pem("CERTIFICATE", &certificate.certificate));
        put(&home, "key.pem", &pem("PRIVATE KEY", &certificate.key));
        put(&home, "users", &users());
        put(&home, "keys.json", &key_set(&mint));
        let gateway = Gateway::start(&config(&home, auth, tables));
        Submission { gateway, home, certificate, mint }
    }

    /// A token for `user` that holds for an hour.
    pub fn token(&self, user: &str) -> String {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
        let expires = now.as_secs() + 3_600;
        let claims =
            format!(r#"{{"iss":"https://id.test","aud":"mail","exp":{expires},"email":"{user}"}}"#);
        let encode = |octets: &[u8]| BASE64URL_NOPAD.encode(octets);
        let signed =
            format!("{}.{}", encode(br#"{"alg":"EdDSA","kid":"k"}"#), encode(claims.as_bytes()));
        let signature = encode(self.mint.sign(signed.as_bytes()).as_ref());
        format!("{signed}.{signature}")
    }

    /// Trusts its certificate: for the environment of a client.
    pub fn trust(&self) -> String {
        self.home.path().join("chain.pem").display().to_string()
    }

    fn tls_client(&self, versions: &[&'static SupportedProtocolVersion]) -> Tls {
        self.tls_client_of(self.gateway.smtp(IMPLICIT), versions)
    }

    fn tls_client_of(
        &self,
        address: SocketAddr,
        versions: &[&'static SupportedProtocolVersion],
    ) -> Tls {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.certificate.clone().into()).expect("a certificate");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .expect("a version")
            .with_root_certificates(roots)
            .with_no_client_auth();
        Tls::connect(address, config)
    }

    /// Waits until this user has logged in so.
    pub fn wait_login(&self, mechanism: &str, user: &str) {
        self.gateway.wait_event(&format!("{user} by {mechanism}"), |event| {
            event["event"] == "authenticated"
                && event["mechanism"] == mechanism
                && event["user"] == user
        });
    }
}

fn put(home: &TempDir, name: &str, text: &str) {
    let path = home.path().join(name);
    write(&path, text).expect("a file");
    set_permissions(&path, Permissions::from_mode(0o600)).expect("ours");
}

fn config(home: &TempDir, auth: &str, tables: &str) -> String {
    let listener = |tls| {
        format!(
            "[[listener]]\naddress = \"127.0.0.1:0\"\nservice = \"submission\"\ntls = \"{tls}\"\n\
             hide_client = true\n"
        )
    };
    let file = |name| home.path().join(name).display().to_string();
    let (users, keys, chain, key) =
        (file("users"), file("keys.json"), file("chain.pem"), file("key.pem"));
    // A later line for the same key would be an error, so those of the test come instead.
    let default = |key: &str, line: &str| match auth.contains(key) {
        true => String::new(),
        false => format!("{line}\n"),
    };
    let mechanisms = default(
        "mechanisms",
        "mechanisms = [\"SCRAM-SHA-256-PLUS\", \"SCRAM-SHA-256\", \"SCRAM-SHA-1\", \
         \"OAUTHBEARER\", \"XOAUTH2\", \"PLAIN\", \"LOGIN\"]",
    );
    let require_tls = default("require_tls", "require_tls = false");
    format!(
        "{}{}{}[[tls.certificate]]\nchain = \"{chain}\"\nkey = \"{key}\"\n\
         [auth]\nusers = \"{users}\"\noauth_keys = \"{keys}\"\n\
         oauth_issuer = \"https://id.test\"\noauth_audience = \"mail\"\n\
         {mechanisms}{require_tls}{auth}\n{tables}\n\
         [[route]]\nrecipient = \"*\"\nto = \"maildir:{{dir}}/mail\"\n",
        // In clear for good where that is allowed.
        listener(if auth.contains("require_tls = true") { "starttls" } else { "off" }),
        listener("starttls"),
        listener("implicit"),
    )
}

/// `alice@example.com` with verifiers of both kinds and `office`, as in the dialogues, and the
/// account of a gateway that sends through this one.
fn users() -> String {
    let mut text = settings::users();
    let verifier = |hash, password| {
        let iterations = NonZeroU32::new(4_096).expect("not zero");
        Some(Verifier::make(hash, password, b"saltsaltsaltsalt", iterations))
    };
    let known = Users::parse(&text).expect("a users file");
    let alice = User {
        scram_sha_256: verifier(ScramHash::Sha256, "pencil"),
        scram_sha_1: verifier(ScramHash::Sha1, "pencil"),
        ..known.find(ALICE).expect("she is there").clone()
    };
    let relay = User {
        name: "relay".into(),
        password: None,
        scram_sha_256: verifier(ScramHash::Sha256, SECRET),
        scram_sha_1: None,
        senders: SenderRule::Patterns(vec!["*".parse().expect("a pattern")].into()),
    };
    text = edit(&text, ALICE, Some(&alice));
    edit(&text, "relay", Some(&relay))
}

fn key_set(mint: &Ed25519KeyPair) -> String {
    let x = BASE64URL_NOPAD.encode(mint.public_key().as_ref());
    format!(r#"{{"keys":[{{"kty":"OKP","crv":"Ed25519","kid":"k","x":"{x}"}}]}}"#)
}

fn plain(name: &str, password: &str) -> String {
    format!("AUTH PLAIN {}", BASE64.encode(format!("\0{name}\0{password}").as_bytes()))
}

/// Whatever speaks SMTP line by line.
trait Speak {
    fn say(&mut self, line: &str) -> Reply;
}

impl Speak for Client {
    fn say(&mut self, line: &str) -> Reply {
        self.command(line)
    }
}

/// A client over TLS that has said EHLO.
struct Tls {
    stream: BufReader<rustls::StreamOwned<ClientConnection, TcpStream>>,
    offer: String,
}

impl Tls {
    fn connect(address: SocketAddr, config: ClientConfig) -> Tls {
        let socket = TcpStream::connect(address).expect("it listens");
        socket.set_read_timeout(Some(PATIENCE)).expect("a socket option");
        let name = ServerName::try_from("mx.test").expect("a name");
        let connection = ClientConnection::new(Arc::new(config), name).expect("a connection");
        let stream = BufReader::new(rustls::StreamOwned::new(connection, socket));
        let mut client = Tls { stream, offer: String::new() };
        client.reply().expect("220");
        client.offer = client.say("EHLO client.test").expect("250").0;
        client
    }

    fn reply(&mut self) -> Reply {
        let mut text = String::new();
        loop {
            let start = text.len();
            let read = self.stream.read_line(&mut text).expect("a line");
            assert!(read > 4, "the connection ended before a reply");
            if text.as_bytes()[start + 3] == b' ' {
                return Reply(text.trim_end().to_owned());
            }
        }
    }

    /// The channel binding of RFC 9266.
    fn exporter(&self) -> [u8; 32] {
        let label = b"EXPORTER-Channel-Binding";
        let connection = &self.stream.get_ref().conn;
        connection.export_keying_material([0; 32], label, Some(b"")).expect("TLS 1.3")
    }
}

impl Speak for Tls {
    fn say(&mut self, line: &str) -> Reply {
        let stream = self.stream.get_mut();
        stream.write_all(format!("{line}\r\n").as_bytes()).expect("the gateway reads");
        stream.flush().expect("the gateway reads");
        self.reply()
    }
}

/// Logs in; the last reply.
fn log_in(
    client: &mut impl Speak,
    mechanism: Mechanism,
    (name, secret): (&str, &str),
    binding: Binding,
) -> Reply {
    let is_token = mechanism.takes_tokens();
    let credentials = Credentials { name: name.into(), secret: secret.into(), is_token };
    let exchange =
        ClientExchange::new(mechanism, &credentials, "fyko+d2lbbFgONRv9qkxdawL", binding);
    let mut exchange = exchange.expect("they can be sent");
    let initial = exchange.initial().map(|octets| format!(" {}", BASE64.encode(&octets)));
    let mut reply = client.say(&format!("AUTH {mechanism}{}", initial.unwrap_or_default()));
    while let Some(challenge) = reply.0.strip_prefix("334 ") {
        let challenge = BASE64.decode(challenge.as_bytes()).expect("base64");
        let response = match exchange.respond(&challenge).expect("a good challenge") {
            Answer::Respond(octets) => octets,
            Answer::Derive(derivation) => exchange.derived(&derivation.derive()).expect("keys"),
        };
        reply = client.say(&BASE64.encode(&response));
    }
    if reply.0.starts_with("235") {
        exchange.succeeded().expect("the server has proved itself");
    }
    reply
}

#[test]
fn every_mechanism_lets_its_users_in_and_nobody_else() {
    let server = Submission::start("", "");
    let token = server.token(ALICE);
    for mechanism in Mechanism::ALL {
        let secret = if mechanism.takes_tokens() { &*token } else { "pencil" };
        let mut client = server.tls_client(&[&rustls::version::TLS13]);
        assert!(client.offer.contains(mechanism.name()), "{}", client.offer);
        let binding = Binding { exporter: Some(client.exporter()), offered: true };
        let reply = log_in(&mut client, mechanism, (ALICE, secret), binding);
        assert!(reply.0.starts_with("235 2.7.0 "), "{mechanism}: {reply:?}");
        server.wait_login(mechanism.name(), ALICE);
        client.say(&format!("MAIL FROM:<{ALICE}>")).expect("250");
    }
    // A wrong secret each, all at once: every failure takes its second.
    thread::scope(|scope| {
        for mechanism in Mechanism::ALL {
            let (server, token) = (&server, &token);
            scope.spawn(move || {
                let mut client = server.tls_client(&[&rustls::version::TLS13]);
                let binding = Binding { exporter: Some(client.exporter()), offered: true };
                let wrong = match mechanism.takes_tokens() {
                    true => format!("{token}A"),
                    false => "Pencil".to_owned(),
                };
                let reply = log_in(&mut client, mechanism, (ALICE, &wrong), binding);
                // Beyond five failures in a row the address has to wait.
                let refused = ["535 5.7.8 ", "454 4.7.0 "];
                assert!(
                    refused.iter().any(|code| reply.0.starts_with(code)),
                    "{mechanism} {reply:?}"
                );
                client.say(&format!("MAIL FROM:<{ALICE}>")).expect("530 5.7.0");
            });
        }
    });
}

/// RFC 5802 section 6: whoever stands between two TLS connections, or takes the better mechanism
/// out of the offer, is found out.
#[test]
fn scram_plus_is_bound_to_its_connection() {
    type Attempt<'a> = dyn Fn(&Tls) -> (Mechanism, Binding) + Sync + 'a;
    let server = Submission::start("", "");
    let plus = Mechanism::ScramSha256Plus;
    let failing: [&Attempt<'_>; 2] = [
        &|client| {
            let mut exporter = client.exporter();
            exporter[31] ^= 1;
            (plus, Binding { exporter: Some(exporter), offered: true })
        },
        &|client| {
            let binding = Binding { exporter: Some(client.exporter()), offered: false };
            (Mechanism::ScramSha256, binding)
        },
    ];
    thread::scope(|scope| {
        for choose in failing {
            let server = &server;
            scope.spawn(move || {
                let mut client = server.tls_client(&[&rustls::version::TLS13]);
                let (mechanism, binding) = choose(&client);
                log_in(&mut client, mechanism, (ALICE, "pencil"), binding).expect("535 5.7.8");
            });
        }
    });
    // TLS 1.2 has no exporter that binds, so it is not offered there.
    let mut client = server.tls_client(&[&rustls::version::TLS12]);
    assert!(!client.offer.contains("-PLUS"), "{}", client.offer);
    let without = Binding::default();
    log_in(&mut client, Mechanism::ScramSha256, (ALICE, "pencil"), without).expect("235");
}

#[test]
fn nothing_secret_is_asked_for_in_clear() {
    let server = Submission::start("require_tls = true", "");
    let mut client = Client::connect(server.gateway.smtp(STARTTLS));
    let offer = client.command("EHLO client.test").expect("250");
    assert!(!offer.0.contains("AUTH"), "{offer:?}");
    client.command(&plain(ALICE, "pencil")).expect("538 5.7.11");
    client.command(&format!("MAIL FROM:<{ALICE}>")).expect("530 5.7.0");
    let client = server.tls_client(&[&rustls::version::TLS13]);
    assert!(client.offer.contains("AUTH SCRAM-SHA-256-PLUS "), "{}", client.offer);
}

/// The users that the commands make, change and take out are those who get in.
#[test]
fn the_command_makes_users_and_a_reload_knows_them() {
    let server = Submission::start("", "");
    let file = server.home.path().join("users");
    let user = |words: &[&str], password: &str| {
        let mut command = Command::new(binary());
        command.arg("user").args(words).arg("--file").arg(&file);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary is there");
        let mut stdin = child.stdin.take().expect("piped");
        writeln!(stdin, "{password}").expect("it reads");
        drop(stdin);
        let output = child.wait_with_output().expect("it ends");
        assert!(output.status.success(), "{words:?}: {}", text(&output));
        assert!(password.is_empty() || !text(&output).contains(password));
    };
    let reload = |times: usize| {
        server.gateway.signal(rustix::process::Signal::HUP);
        server.gateway.wait_until("the reload", || {
            let told = server.gateway.errors();
            (told.matches("users and keys were read again").count() >= times).then_some(())
        });
    };
    let attempt = |mechanism, password: &str| {
        let mut client = Client::hello(server.gateway.smtp(CLEAR));
        log_in(&mut client, mechanism, ("bob@example.com", password), Binding::default())
    };
    user(&["add", "bob@example.com", "--scram-sha-1"], "first one");
    reload(1);
    for mechanism in [Mechanism::Plain, Mechanism::ScramSha256, Mechanism::ScramSha1] {
        attempt(mechanism, "first one").expect("235");
    }
    user(&["passwd", "bob@example.com"], "second one");
    reload(2);
    attempt(Mechanism::ScramSha1, "second one").expect("235");
    attempt(Mechanism::Plain, "first one").expect("535");
    // What cannot be used changes nothing.
    set_permissions(&file, Permissions::from_mode(0o644)).expect("ours");
    server.gateway.signal(rustix::process::Signal::HUP);
    server.gateway.wait_until("the complaint", || {
        server.gateway.errors().contains("chmod 600").then_some(())
    });
    attempt(Mechanism::Plain, "second one").expect("235");
    set_permissions(&file, Permissions::from_mode(0o600)).expect("ours");
    user(&["remove", "bob@example.com"], "");
    reload(3);
    attempt(Mechanism::Plain, "second one").expect("535");
}

/// Wrong logins from one address, all at the same time; what each was told, and the shortest time
/// that one took.
fn guess(server: &Submission, source: IpAddr, names: &[&str]) -> (Vec<Reply>, Duration) {
    let address = server.gateway.smtp(CLEAR);
    let attempt = |name: &str| {
        let mut client = Client::connect_from(source, address);
        client.command("EHLO client.test").expect("250");
        let begun = Instant::now();
        (client.command(&plain(name, "wrong")), begun.elapsed())
    };
    let told: Vec<(Reply, Duration)> = thread::scope(|scope| {
        let attempts: Vec<_> =
            names.iter().map(|name| scope.spawn(move || attempt(name))).collect();
        attempts.into_iter().map(|attempt| attempt.join().expect("a reply")).collect()
    });
    let shortest = told.iter().map(|(_, time)| *time).min().expect("one at least");
    (told.into_iter().map(|(reply, _)| reply).collect(), shortest)
}

fn knock(server: &Submission, source: IpAddr, name: &str, password: &str) -> Reply {
    let mut client = Client::connect_from(source, server.gateway.smtp(CLEAR));
    client.command("EHLO client.test").expect("250");
    client.command(&plain(name, password))
}

#[test]
fn a_guesser_learns_nothing_and_is_slowed() {
    let server = Submission::start("", "");
    let at = |last: u8| IpAddr::from([127, 0, 0, last]);
    // Somebody who is there, somebody who is not, and a user who has no hash but a verifier.
    let (told, shortest) = guess(&server, at(11), &[ALICE, "nobody@example.com", "relay"]);
    assert!(told.iter().all(|reply| *reply == told[0]), "{told:?}");
    assert_eq!(told[0].0, "535 5.7.8 Authentication failed");
    assert!(shortest >= Duration::from_secs(1), "{shortest:?}");
    server.gateway.wait_event("the failure", |event| {
        event["event"] == "auth_failed"
            && event["user"] == "nobody@example.com"
            && event["reason"] == "auth_failed"
            && event["peer"].as_str().is_some_and(|peer| peer.starts_with("127.0.0.11"))
    });
    // Each further failure shuts the address out for longer, whoever it says that it is; others
    // are not touched.  However slow this machine is, one of the waits outlasts the next look.
    let names = ["a@x.test", "b@x.test", "c@x.test"];
    let shut = |source, name: &str| {
        server.gateway.wait_until("a wait", || {
            guess(&server, source, &names);
            knock(&server, source, name, "pencil").0.starts_with("454 4.7.0 ").then_some(())
        });
    };
    shut(at(11), "office");
    knock(&server, at(12), "office", "pencil").expect("235");
    // A user that is guessed at from many places has to wait too, but for where it is at home.
    server.gateway.wait_until("a wait of the user", || {
        thread::scope(|scope| {
            for last in 21..=27 {
                let server = &server;
                scope.spawn(move || guess(server, at(last), &["office"]));
            }
        });
        knock(&server, at(30), "office", "pencil").0.starts_with("454 4.7.0 ").then_some(())
    });
    knock(&server, at(12), "office", "pencil").expect("235");
    knock(&server, at(30), ALICE, "pencil").expect("235");
}

#[test]
fn a_user_sends_within_its_rates_and_without_its_address() {
    let limits = "[limits]\nmessages_per_user = \"2/1h\"\nrecipients_per_user = \"3/1h\"\n\
                  messages_per_address = \"1/1h\"";
    let server = Submission::start("", limits);
    let log_in = || {
        let mut client = Client::hello(server.gateway.smtp(CLEAR));
        client.command(&plain(ALICE, "pencil")).expect("235");
        client
    };
    let mut client = log_in();
    client.envelope(ALICE, &["one@box.test", "two@box.test"]);
    client.data(b"From: Alice <alice@example.com>\r\n\r\nhello\r\n").message_id();
    client.envelope(ALICE, &["three@box.test"]);
    client.command("RCPT TO:<four@box.test>").expect("450 4.7.1");
    client.data(b"Date: x\r\nMessage-ID: <y@z>\r\n\r\nhello\r\n").message_id();
    // Another session is the same user.
    let mut client = log_in();
    client.command(&format!("MAIL FROM:<{ALICE}>")).expect("450 4.7.1");
    let stored = server.gateway.maildir("box.test", "one", 1).remove(0);
    let stored = String::from_utf8(stored).expect("ASCII");
    let (header, body) = stored.split_once("\r\n\r\n").expect("a header");
    assert_eq!(body, "hello\r\n");
    assert!(header.contains("with ESMTPA id "), "{header}");
    assert!(!header.contains("127.0.0.1") && !header.contains("client.test"), "{header}");
    assert_eq!(header.matches("\r\nDate: ").count(), 1, "{header}");
    assert_eq!(header.matches("\r\nMessage-ID: <").count(), 1, "{header}");
    let stored = server.gateway.maildir("box.test", "three", 1).remove(0);
    let stored = String::from_utf8(stored).expect("ASCII");
    assert_eq!(stored.matches("Date: ").count(), 1, "{stored}");
    assert_eq!(stored.matches("Message-ID: ").count(), 1, "{stored}");
}

/// What it printed, on either stream.
fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[&*output.stdout, &*output.stderr].concat()).into_owned()
}
