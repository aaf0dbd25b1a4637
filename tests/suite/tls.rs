//! TLS through the real binary, both ways: what a stranger sends in clear counts for nothing, what
//! must not go in clear does not, and certificates change under running sessions.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::thread;

use jiff::Timestamp;
use mailrace::tls::Fingerprint;
use mailrace::tls::self_signed::{self, SelfSigned, pem};
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};

use crate::client::Client;
use crate::gateway::{Gateway, PATIENCE};
use crate::overload::{alone, metric, tries_to_get_through};
use crate::sink::{Manners, Sink};

pub const STARTTLS: usize = 0;
pub const REQUIRED: usize = 1;
pub const IMPLICIT: usize = 2;

/// Three listeners, and certificates in the directory of the test.
fn listeners(home: &Path, networks: &str) -> String {
    let listener = |tls| {
        format!("[[listener]]\naddress = \"127.0.0.1:0\"\nservice = \"relay\"\ntls = \"{tls}\"\n")
    };
    let certificate = |name: &str| {
        let file = |end| home.join(format!("{name}.{end}")).display().to_string();
        format!("[[tls.certificate]]\nchain = \"{}\"\nkey = \"{}\"\n", file("pem"), file("key"))
    };
    format!(
        "{}{}{}{}{}[relay]\n{networks}\n[[route]]\nrecipient = \"*\"\nto = \"maildir:{{dir}}/mail\"\n",
        listener("starttls"),
        listener("required"),
        listener("implicit"),
        certificate("mx.test"),
        certificate("other.test"),
    )
}

/// Makes a certificate and puts it into files.
pub fn certify(home: &Path, name: &str) -> SelfSigned {
    let made = self_signed::generate(&[name, "127.0.0.1"], Timestamp::now()).expect("a key");
    std::fs::write(home.join(format!("{name}.pem")), pem("CERTIFICATE", &made.certificate))
        .unwrap();
    std::fs::write(home.join(format!("{name}.key")), pem("PRIVATE KEY", &made.key)).unwrap();
    made
}

/// A gateway with TLS, and its certificates.
pub struct Server {
    pub gateway: Gateway,
    pub home: tempfile::TempDir,
    mx: SelfSigned,
    other: SelfSigned,
}

impl Server {
    pub fn start(networks: &str) -> Server {
        Server::start_with("", networks)
    }

    /// With more of a configuration, at its beginning and among the relay's.
    fn start_with(front: &str, networks: &str) -> Server {
        let home = tempfile::tempdir().unwrap();
        let (mx, other) = (certify(home.path(), "mx.test"), certify(home.path(), "other.test"));
        let gateway = Gateway::start(&format!("{front}{}", listeners(home.path(), networks)));
        Server { gateway, home, mx, other }
    }
}

/// A client that trusts these certificates alone, perhaps with one of its own.
fn config(trusted: &[&SelfSigned], own: Option<&SelfSigned>) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    for trusted in trusted {
        roots.add(trusted.certificate.clone().into()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    Arc::new(match own {
        None => builder.with_no_client_auth(),
        Some(own) => {
            let key = PrivateKeyDer::Pkcs8(own.key.clone().into());
            builder.with_client_auth_cert(vec![own.certificate.clone().into()], key).unwrap()
        }
    })
}

/// A socket that sends octet by octet, each in a packet of its own.
struct Trickle(TcpStream);

impl Write for Trickle {
    fn write(&mut self, octets: &[u8]) -> std::io::Result<usize> {
        self.0.write(&octets[..octets.len().min(1)])
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.flush()
    }
}

impl Read for Trickle {
    fn read(&mut self, octets: &mut [u8]) -> std::io::Result<usize> {
        self.0.read(octets)
    }
}

struct TlsClient<S: Read + Write> {
    stream: BufReader<rustls::StreamOwned<ClientConnection, S>>,
}

impl<S: Read + Write> TlsClient<S> {
    fn new(socket: S, config: Arc<ClientConfig>, name: &'static str) -> TlsClient<S> {
        let name = ServerName::try_from(name).unwrap();
        let connection = ClientConnection::new(config, name).unwrap();
        TlsClient { stream: BufReader::new(rustls::StreamOwned::new(connection, socket)) }
    }

    fn say(&mut self, words: &str) -> String {
        self.stream.get_mut().write_all(words.as_bytes()).unwrap();
        self.stream.get_mut().flush().unwrap();
        self.hear()
    }

    fn hear(&mut self) -> String {
        read_reply(&mut self.stream)
    }

    fn send_message(&mut self, to: &str) -> String {
        assert!(self.say("MAIL FROM:<a@client.test>\r\n").starts_with("250"));
        let reply = self.say(&format!("RCPT TO:<{to}>\r\n"));
        if !reply.starts_with("250") {
            return reply;
        }
        assert!(self.say("DATA\r\n").starts_with("354"));
        self.say("Subject: secret\r\n\r\nhello\r\n.\r\n")
    }
}

/// A whole reply; empty at the end of the stream.
fn read_reply(stream: &mut impl BufRead) -> String {
    let mut reply = String::new();
    loop {
        let start = reply.len();
        if stream.read_line(&mut reply).unwrap_or(0) == 0 || &reply[start + 3..start + 4] == " " {
            return reply;
        }
    }
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("it listens");
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// In clear as far as STARTTLS, with `extra` right behind it in the same packet.
fn start_tls(address: SocketAddr, extra: &str) -> TcpStream {
    let mut stream = connect(address);
    let mut octet_by_octet = BufReader::with_capacity(1, stream.try_clone().unwrap());
    assert!(read_reply(&mut octet_by_octet).starts_with("220"));
    stream.write_all(b"EHLO clear.test\r\n").unwrap();
    assert!(read_reply(&mut octet_by_octet).contains("250-STARTTLS\r\n"));
    stream.write_all(format!("STARTTLS\r\n{extra}").as_bytes()).unwrap();
    assert_eq!(read_reply(&mut octet_by_octet), "220 2.0.0 Ready to start TLS\r\n");
    stream
}

#[test]
fn mail_comes_in_through_each_kind_of_listener() {
    let server = Server::start("");
    let config = config(&[&server.mx], None);
    for index in [STARTTLS, REQUIRED] {
        let stream = start_tls(server.gateway.smtp(index), "");
        let mut client = TlsClient::new(stream, config.clone(), "mx.test");
        assert!(!client.say("EHLO tls.test\r\n").contains("STARTTLS"));
        assert!(client.send_message("user@box.test").starts_with("250"));
        assert!(client.say("QUIT\r\n").starts_with("221"));
    }
    // And with every octet of every record in a packet of its own.
    let stream = Trickle(connect(server.gateway.smtp(IMPLICIT)));
    let mut client = TlsClient::new(stream, config, "mx.test");
    assert!(client.hear().starts_with("220"));
    assert!(client.say("EHLO tls.test\r\n").contains("PIPELINING"));
    assert!(client.send_message("user@box.test").starts_with("250"));
    let secured = server.gateway.wait_event("secured", |event| event["event"] == "secured");
    assert!(secured["tls"].as_str().is_some_and(|tls| tls.starts_with("TLSv1.3 TLS_")));
}

/// CVE-2011-0411 and its family: what came in clear behind STARTTLS is never obeyed.
#[test]
fn commands_injected_behind_starttls_leave_no_trace() {
    let server = Server::start("");
    for extra in ["NOOP\r\n", "RSET\r\nMAIL FROM:<evil@evil.test>\r\n", "EHLO evil\r\nMAIL FROM:<e"]
    {
        let stream = start_tls(server.gateway.smtp(STARTTLS), extra);
        let mut client = TlsClient::new(stream, config(&[&server.mx], None), "mx.test");
        // Answered at once, or completed by this line, they would show here.
        assert!(client.say("MAIL FROM:<a@client.test>\r\n").starts_with("503 5.5.1 Send EHLO"));
        assert!(client.say("EHLO tls.test\r\n").starts_with("250-"));
        assert!(client.send_message("user@box.test").starts_with("250"));
    }
    // Each with the number of octets that were thrown away.
    for size in [6, 34, 23] {
        server.gateway.wait_event("injection", |event| {
            event["reason"] == "starttls_injection" && event["size"] == size
        });
    }
}

/// A release build shows five thousand of them, another a part, because handshakes are dear.
#[test]
fn idle_tls_sessions_take_at_most_24_kib_each() {
    let sessions = if std::env::var_os("MAILRACE_TEST_BINARY").is_some() { 5_000 } else { 500 };
    let _alone = alone(sessions + 1_000);
    let server = Server::start("");
    let (address, config) = (server.gateway.smtp(IMPLICIT), config(&[&server.mx], None));
    let open = || {
        let mut client = TlsClient::new(connect(address), config.clone(), "mx.test");
        assert!(client.hear().starts_with("220"));
        assert!(client.say("EHLO idle.test\r\n").contains("PIPELINING"));
        client
    };
    // What is there for the first sessions is there for all.
    let warm: Vec<_> = (0..100).map(|_| open()).collect();
    let before = server.gateway.memory_bytes();
    let mut clients: Vec<_> = (0..sessions).map(|_| open()).collect();
    let each = server.gateway.memory_bytes().saturating_sub(before) / sessions;
    println!("{each} bytes for each of {sessions} idle TLS sessions");
    assert!(each <= 24 * 1024, "{each} bytes for each idle TLS session");
    for client in clients.iter_mut().step_by(97) {
        assert!(client.say("NOOP\r\n").starts_with("250"), "it still lives");
    }
    drop((warm, clients));
}

/// A session that sends no message has no pace to keep, and holds a buffer for a record that has
/// begun.
#[test]
fn records_that_never_end_give_way_to_mail() {
    const SESSIONS: usize = 320;
    let _alone = alone(SESSIONS as u64 + 1_000);
    // Half of the memory is for such buffers, which are of 16 KiB.
    let server = Server::start_with("workers = 1\n", "[limits]\nmemory = \"8MiB\"\n");
    let gateway = &server.gateway;
    let (address, config) = (gateway.smtp(IMPLICIT), config(&[&server.mx], None));
    let mut clients: Vec<_> = (0..SESSIONS)
        .map(|_| {
            let mut client = TlsClient::new(connect(address), config.clone(), "mx.test");
            assert!(client.hear().starts_with("220"));
            client
        })
        .collect();
    for client in &mut clients {
        let part = [&[23, 3, 3, 0x40, 0x10][..], &[0; 300]].concat();
        client.stream.get_mut().sock.write_all(&part).expect("it listens");
    }
    gateway.wait_until("all memory taken", || {
        (metric(gateway, "mailrace_receive_memory_bytes") >= 4 << 20).then_some(())
    });
    gateway.wait_until("a refusal for want of memory", || {
        (!tries_to_get_through(gateway, "user@early.test")).then_some(())
    });
    gateway.wait_until("a message that is taken", || {
        tries_to_get_through(gateway, "user@after.test").then_some(())
    });
    gateway.wait_until("the count of those that gave way", || {
        (metric(gateway, "mailrace_sessions_cut_total") > 0).then_some(())
    });
    drop(clients);
}

#[test]
fn where_tls_is_required_no_mail_comes_in_clear() {
    let server = Server::start("");
    let mut client = Client::hello(server.gateway.smtp(REQUIRED));
    client.command("MAIL FROM:<a@client.test>").expect("530 5.7.0");
    client.command("RSET").expect("530 5.7.0");
    client.command("NOOP").expect("250");
}

#[test]
fn certificates_are_chosen_by_name_and_change_under_running_sessions() {
    let server = Server::start("");
    let address = server.gateway.smtp(IMPLICIT);
    let greeted = |trusted: &SelfSigned, name| {
        let mut client = TlsClient::new(connect(address), config(&[trusted], None), name);
        client.stream.get_mut().flush().map(|()| client)
    };
    let mut old = greeted(&server.mx, "mx.test").expect("the default");
    assert!(old.hear().starts_with("220"));
    assert!(greeted(&server.other, "other.test").is_ok());
    assert!(greeted(&server.mx, "other.test").is_err(), "another certificate answers to it");
    let renewed = certify(server.home.path(), "mx.test");
    server.gateway.signal(rustix::process::Signal::HUP);
    wait_error(&server.gateway, "the certificates were read again");
    assert!(greeted(&renewed, "mx.test").is_ok());
    assert!(greeted(&server.mx, "mx.test").is_err());
    assert!(old.say("NOOP\r\n").starts_with("250"), "who is there stays there");
    std::fs::write(server.home.path().join("mx.test.pem"), "no certificate").unwrap();
    server.gateway.signal(rustix::process::Signal::HUP);
    wait_error(&server.gateway, "holds no certificate");
    assert!(greeted(&renewed, "mx.test").is_ok(), "a bad file changes nothing");
}

#[test]
fn a_known_certificate_may_relay_and_an_unknown_one_may_not() {
    let known = self_signed::generate(&["known.test"], Timestamp::now()).unwrap();
    let unknown = self_signed::generate(&["known.test"], Timestamp::now()).unwrap();
    let fingerprint = Fingerprint::of(&known.certificate);
    let networks = format!("networks = [\"192.0.2.0/24\"]\ncertificates = [\"{fingerprint}\"]");
    let server = Server::start(&networks);
    for (own, reply) in [(Some(&known), "250"), (Some(&unknown), "550 5.7.1"), (None, "550 5.7.1")]
    {
        let stream = connect(server.gateway.smtp(IMPLICIT));
        let mut client = TlsClient::new(stream, config(&[&server.mx], own), "mx.test");
        assert!(client.hear().starts_with("220"));
        client.say("EHLO tls.test\r\n");
        assert!(client.send_message("user@box.test").starts_with(reply));
    }
}

fn wait_error(gateway: &Gateway, words: &str) {
    gateway.wait_until(words, || gateway.errors().contains(words).then_some(()));
}

// ---- out -----------------------------------------------------------------------------------

fn send_through(gateway: &Gateway) {
    let mut client = Client::hello(gateway.smtp(0));
    client.envelope("a@client.test", &["user@box.test"]);
    client.data(b"Subject: out\r\n\r\nhello\r\n").expect("250");
}

/// What `queue list` says of the one message that waits.
fn shown_by_queue(gateway: &Gateway) -> serde_json::Value {
    gateway.said_json(&["queue", "list"])[0].clone()
}

fn route(to: &str, tls: &str) -> String {
    format!(
        "[[listener]]\naddress = \"127.0.0.1:0\"\nservice = \"relay\"\n\
         [[route]]\nrecipient = \"*\"\nto = \"{to}\"\n{tls}\n"
    )
}

#[test]
fn mail_goes_out_encrypted_where_it_can() {
    let server = Server::start("");
    let (plain, implicit) = (server.gateway.smtp(STARTTLS), server.gateway.smtp(IMPLICIT));
    let trust = format!("SSL_CERT_FILE={}", server.home.path().join("mx.test.pem").display());
    let ways = [
        (format!("smtp://{plain}"), ""),
        (format!("smtp://{plain}"), "tls = \"required\""),
        (format!("smtp://{plain}"), "tls = \"verified\""),
        (format!("smtps://{implicit}"), ""),
        (format!("smtps://{implicit}"), "tls = \"verified\""),
    ];
    for ((to, tls), arrived) in ways.into_iter().zip(1..) {
        let gateway = Gateway::start_under(&["env", &trust], &route(&to, tls));
        send_through(&gateway);
        let delivered = gateway.wait_event("delivered", |event| event["event"] == "delivered");
        assert!(delivered["tls"].as_str().is_some_and(|tls| tls.starts_with("TLSv1.3 TLS_")));
        let is_it = |event: &serde_json::Value| event["event"] == "secured";
        server.gateway.wait_until(&format!("{to} {tls} in TLS"), || {
            let secured = server.gateway.events().iter().filter(|event| is_it(event)).count();
            (secured >= arrived).then_some(())
        });
    }
}

/// Each is deferred with a reason, and nothing arrives in clear.
#[test]
fn what_must_not_go_in_clear_waits() {
    let server = Server::start("");
    let clear = Sink::start(Manners::default());
    let nobody = "SSL_CERT_FILE=/dev/null";
    for (to, tls, status, words) in [
        (clear.address(), "required", "4.7.10 ", "does not offer it"),
        (clear.address(), "verified", "4.7.10 ", "does not offer it"),
        (server.gateway.smtp(STARTTLS), "verified", "4.7.5 ", "handshake failed"),
    ] {
        let config = route(&format!("smtp://{to}"), &format!("tls = \"{tls}\""));
        let gateway = Gateway::start_under(&["env", nobody], &config);
        send_through(&gateway);
        let deferred = gateway.wait_event("deferred", |event| event["event"] == "deferred");
        let reply = deferred["reply"].as_str().unwrap_or_default();
        assert!(reply.starts_with(status), "{reply} does not say {status}");
        assert!(reply.contains(words), "{reply} does not say {words}");
        assert_eq!(deferred["reason"], "tls_failed");
        let shown = shown_by_queue(&gateway);
        assert_eq!(shown["reason"], reply);
        let failed = gateway.wait_event("tls_failed", |event| event["event"] == "tls_failed");
        assert_eq!(failed["reason"], "tls_demanded");
    }
    assert!(clear.taken_so_far().is_empty());
    let other = self_signed::generate(&["other"], Timestamp::now()).unwrap();
    let trusted = server.home.path().join("trusted.pem");
    std::fs::write(&trusted, pem("CERTIFICATE", &other.certificate)).unwrap();
    let to = route(&format!("smtp://{}", server.gateway.smtp(STARTTLS)), "tls = \"verified\"");
    let trust = format!("SSL_CERT_FILE={}", trusted.display());
    let gateway = Gateway::start_under(&["env", &trust], &to);
    send_through(&gateway);
    let deferred = gateway.wait_event("deferred", |event| event["event"] == "deferred");
    assert!(deferred["reply"].as_str().is_some_and(|words| words.contains("handshake failed")));
}

/// A next hop that offers STARTTLS and breaks at it: the next connection goes in clear, at once,
/// and whoever asks is told.
#[test]
fn a_broken_offer_of_tls_does_not_hold_mail_up() {
    for reply in [
        "454 4.7.0 not now\r\n",
        "220 go\r\nwhat handshake?\r\n",
        // Words in clear behind its reply: by somebody between us and it.
        "220 go\r\n250-hop.test\r\n250 AUTH PLAIN\r\n",
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let hop = thread::spawn(move || {
            let mut verbs = Vec::new();
            for stream in listener.incoming() {
                let stream = stream.unwrap();
                verbs.push(break_at_starttls(&stream, reply));
                if verbs.last().is_some_and(|verbs| verbs.contains(&"MAIL".into())) {
                    return verbs;
                }
            }
            verbs
        });
        let gateway = Gateway::start(&route(&format!("smtp://{address}"), ""));
        send_through(&gateway);
        let failed = gateway.wait_event("tls_failed", |event| event["event"] == "tls_failed");
        assert_eq!(failed["reason"], "goes_on_in_clear");
        let is_it = |event: &serde_json::Value| event["event"] == "deferred";
        let deferred = gateway.wait_event("in clear", is_it);
        assert_eq!(
            (&deferred["reply"], &deferred["tls"]),
            (&"451 later (at RCPT TO)".into(), &().into())
        );
        let note = shown_by_queue(&gateway)["tls"].to_string();
        assert!(note.contains("in clear until") && note.contains("4.7.5"), "{note}");
        let verbs = hop.join().unwrap();
        assert_eq!(verbs[0], ["EHLO", "STARTTLS"]);
        assert_eq!(verbs.len(), 2);
        assert!(!verbs[1].contains(&"STARTTLS".into()));
    }
}

fn break_at_starttls(mut stream: &TcpStream, reply: &str) -> Vec<String> {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let mut verbs = Vec::new();
    stream.write_all(b"220 hop.test\r\n").unwrap();
    while let Some(Ok(line)) = lines.next() {
        let verb = line.split([' ', ':']).next().unwrap_or_default().to_owned();
        let answer = match verb.as_str() {
            "EHLO" => "250-hop.test\r\n250 STARTTLS\r\n",
            "STARTTLS" => reply,
            "RCPT" => "451 later\r\n",
            _ => "250 ok\r\n",
        };
        verbs.push(verb);
        stream.write_all(answer.as_bytes()).unwrap();
        if verbs.last().is_some_and(|verb| verb == "STARTTLS") {
            return verbs;
        }
    }
    verbs
}

// ---- programs ------------------------------------------------------------------------------

#[test]
fn openssl_resumes_and_cannot_renegotiate_or_go_below_tls_1_2() {
    let server = Server::start("");
    let address = server.gateway.smtp(STARTTLS).to_string();
    let openssl = |words: &str, arguments: &[&str]| {
        let command = format!(
            "(sleep 0.3; printf '{words}'; sleep 0.7) | timeout 20 openssl s_client -starttls smtp \
             -connect {address} {} 2>&1",
            arguments.join(" ")
        );
        let output = Command::new("sh").args(["-c", &command]).output().expect("a shell");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let resumed = openssl("", &["-tls1_2", "-reconnect"]);
    assert!(resumed.contains("Reused, TLSv1.2"), "{resumed}");
    assert!(openssl("", &["-tls1_1"]).contains("(NONE)"));
    let renegotiated = openssl("R\\n", &["-tls1_2"]);
    assert!(renegotiated.contains("RENEGOTIATING"), "{renegotiated}");
    assert_eq!(renegotiated.matches("Verify return code").count(), 1, "{renegotiated}");
    // Nobody else is harmed.
    Client::hello(server.gateway.smtp(STARTTLS));
}
