//! Real programs on both sides of the gateway: what they send arrives octet for octet, and they
//! agree with it about the protocol.
//!
//! `.ci/setup` installs them.  One that is missing is a failure, for a test that was skipped has
//! proved nothing.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::bytes::behind_trace;
use crate::client::Client;
use crate::gateway::{Gateway, INTO_MAILDIRS};
use crate::postfix::{Ports, Postfix, cache, cache_path};
use crate::sink::{Manners, Sink, Taken};

/// A message that a careless client would change: dots, spaces at the ends of lines, a long line,
/// empty lines at its end.
fn message() -> Vec<u8> {
    let long = "long ".repeat(190);
    format!(
        "From: Sender <sender@client.test>\r\nTo: user@box.test\r\n\
         Date: Sat, 21 Nov 2026 12:00:00 +0000\r\nMessage-ID: <1@client.test>\r\n\
         Subject: as it stands\r\n\r\n.\r\n..\r\n.leading dot\r\nspaces   \r\n\ttab\t\r\n{long}\r\n\
         From the first column\r\n\r\n\r\n"
    )
    .into_bytes()
}

/// Whether the programs that a test talks to are there.  Where `MAILRACE_REQUIRE_PEERS` is set, as
/// by `.ci/run`, one that is missing is a failure; else the test says so and is over.
pub fn are_here(programs: &[&str]) -> bool {
    if std::env::var_os("MAILRACE_REQUIRE_PEERS").is_some() {
        return true;
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let is_here = |program: &&&str| match **program {
        "nodemailer" | "postfix" | "dns" | "lists" | "rspamd" => cache_path(program).exists(),
        program => std::env::split_paths(&path).any(|place| place.join(program).exists()),
    };
    let missing = programs.iter().find(|program| !is_here(program));
    if let Some(program) = missing {
        eprintln!("NOT TESTED: {program} is not here; `.ci/setup` installs it");
    }
    missing.is_none()
}

/// Runs a program to its end, which must be a good one; gives what it printed.
pub fn run(command: &mut Command) -> String {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = match command.output() {
        Ok(output) => output,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            panic!("{name} is not installed: run .ci/setup")
        }
        Err(error) => panic!("{name}: {error}"),
    };
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(output.status.success(), "{name}: {}\n{said}", output.status);
    said
}

pub fn file(gateway: &Gateway, name: &str, octets: &[u8]) -> PathBuf {
    let path = gateway.dir().join(name);
    std::fs::write(&path, octets).expect("a file");
    path
}

pub fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(name)
}

pub fn host_and_port(address: SocketAddr) -> (String, String) {
    (address.ip().to_string(), address.port().to_string())
}

/// What lies behind our trace header in each file of a Maildir of box.test.
fn stored(gateway: &Gateway, local: &str, count: usize) -> Vec<Vec<u8>> {
    let files = gateway.maildir("box.test", local, count);
    let behind = |file: &Vec<u8>| {
        let end = file.iter().position(|&octet| octet == b'\n').expect("a line") + 1;
        assert!(file.starts_with(b"Return-Path: <"));
        behind_trace(&file[end..]).1.to_vec()
    };
    files.iter().map(behind).collect()
}

pub fn assert_stored(gateway: &Gateway, local: &str, count: usize, message: &[u8]) {
    for found in stored(gateway, local, count) {
        let text = |octets: &[u8]| String::from_utf8_lossy(octets).into_owned();
        assert!(found == message, "{local}: {:?}\nnot {:?}", text(&found), text(message));
    }
}

#[test]
fn swaks_sends_what_it_was_given() {
    if !are_here(&["swaks"]) {
        return;
    }
    let mut gateway = Gateway::start(INTO_MAILDIRS);
    // It ends the last line itself.
    let unended = message();
    let file = file(&gateway, "message", unended.strip_suffix(b"\r\n").expect("a last line"));
    let mut swaks = Command::new("swaks");
    swaks.arg("--server").arg(gateway.smtp(0).to_string());
    swaks.args(["--helo", "client.test", "--from", "sender@client.test"]);
    swaks.args(["--to", "user@box.test,second@box.test", "--data"]);
    let said = run(swaks.arg(format!("@{}", file.display())));
    assert!(said.contains("250 2.0.0 Ok: queued as "), "{said}");
    assert_stored(&gateway, "user", 1, &message());
    assert_stored(&gateway, "second", 1, &message());
    gateway.terminate();
}

#[test]
fn curl_sends_what_it_was_given() {
    if !are_here(&["curl"]) {
        return;
    }
    let mut gateway = Gateway::start(INTO_MAILDIRS);
    let crlf = file(&gateway, "crlf", &message());
    let lf =
        file(&gateway, "lf", String::from_utf8(message()).unwrap().replace('\r', "").as_bytes());
    for (file, options) in [(&crlf, &[][..]), (&lf, &["--crlf"][..])] {
        let mut curl = Command::new("curl");
        curl.arg(format!("smtp://{}/client.test", gateway.smtp(0))).args(options);
        curl.args(["-sS", "--mail-from", "sender@client.test", "--mail-rcpt", "user@box.test"]);
        run(curl.arg("-T").arg(file));
    }
    assert_stored(&gateway, "user", 2, &message());
    gateway.terminate();
}

#[test]
fn msmtp_sends_what_it_was_given() {
    if !are_here(&["msmtp"]) {
        return;
    }
    let mut gateway = Gateway::start(INTO_MAILDIRS);
    let lf = String::from_utf8(message()).expect("ASCII").replace('\r', "");
    let lf = file(&gateway, "lf", lf.as_bytes());
    let (host, port) = host_and_port(gateway.smtp(0));
    let mut msmtp = Command::new("msmtp");
    msmtp.args(["--file=/dev/null", "--tls=off", "--auth=off", "--domain=client.test"]);
    msmtp.args([format!("--host={host}"), format!("--port={port}")]);
    msmtp.args(["--from=sender@client.test", "user@box.test"]);
    run(msmtp.stdin(Stdio::from(std::fs::File::open(lf).expect("a file"))));
    assert_stored(&gateway, "user", 1, &message());
    gateway.terminate();
}

#[test]
fn smtplib_sends_what_it_was_given() {
    if !are_here(&["python3"]) {
        return;
    }
    let config = INTO_MAILDIRS.replacen(
        "[[route]]",
        "[[route]]\nrecipient = \"*@closed.test\"\nto = \"reject:Closed\"\n[[route]]",
        1,
    );
    let mut gateway = Gateway::start(&config);
    let (host, port) = host_and_port(gateway.smtp(0));
    let file = file(&gateway, "message", &message());
    run(Command::new("python3").arg(script("smtplib_client.py")).args([host, port]).arg(file));
    assert_stored(&gateway, "plain", 4, &message());
    assert_stored(&gateway, "raw", 2, &message());
    assert_stored(&gateway, "dsn", 1, &message());
    let eight = [&message(), "Grüße, 8 bits\r\n".as_bytes(), b"Gr\xfc\xdfe\r\n"].concat();
    assert_stored(&gateway, "eight", 1, &eight);
    let unicode = stored(&gateway, "%E7%94%A8%E6%88%B7", 1).remove(0);
    let unicode = String::from_utf8(unicode).expect("UTF-8");
    assert!(unicode.contains("Subject: δοκιμή\r\n"), "{unicode}");
    assert!(unicode.ends_with("\r\nText: привет\r\n"), "{unicode}");
    let built = stored(&gateway, "built", 1).remove(0);
    assert!(built.starts_with(b"From: sender@client.test\r\n"));
    let accepted =
        gateway.wait_event("the UTF-8 message", |event| event["to"][0] == "用户@box.test");
    assert_eq!(accepted["from"], "jörg@büro.test");
    gateway.terminate();
}

#[test]
fn nodemailer_sends_what_it_was_given() {
    if !are_here(&["node", "nodemailer"]) {
        return;
    }
    let mut gateway = Gateway::start(INTO_MAILDIRS);
    let (host, port) = host_and_port(gateway.smtp(0));
    let modules = cache("nodemailer").join("node_modules");
    let mut node = Command::new("node");
    node.env("NODE_PATH", modules).arg(script("nodemailer_client.js"));
    run(node.args([host, port]));
    let pool = stored(&gateway, "pool", 10);
    for number in 0..10 {
        let subject = format!("Subject: number {number}\r\n");
        let of_number = |message: &&Vec<u8>| String::from_utf8_lossy(message).contains(&subject);
        assert_eq!(pool.iter().filter(of_number).count(), 1, "{subject}");
    }
    let raw = "Subject: raw\r\n\r\n..two dots\r\n.\r\nGrüße\r\n";
    assert_stored(&gateway, "raw", 1, raw.as_bytes());
    stored(&gateway, "dsn", 1);
    gateway.terminate();
}

// ---- Postfix ---------------------------------------------------------------------------------

/// Messages of several sizes, all different and all text.
fn messages(count: usize) -> Vec<Vec<u8>> {
    let of_number = |number: usize| {
        let body = format!(".line of {number}\r\nGrüße\r\n").repeat(1 + number * number * 3);
        [format!("X-Number: {number}\r\n").as_bytes(), &message(), body.as_bytes()].concat()
    };
    (0..count).map(of_number).collect()
}

/// What lies behind the trace headers that begin with these words, in this order.
fn behind_traces<'a>(mut rest: &'a [u8], starts: &[&str]) -> &'a [u8] {
    for start in starts {
        assert!(rest.starts_with(start.as_bytes()), "no {start:?}: {}", head(rest));
        let mut at = 0;
        // To the first line that does not go on with the header.
        while at == 0 || rest[at] == b'\t' || rest[at] == b' ' {
            let line = rest[at..].iter().position(|&octet| octet == b'\n').expect("a line");
            at += line + 1;
        }
        rest = &rest[at..];
    }
    rest
}

fn head(octets: &[u8]) -> String {
    String::from_utf8_lossy(&octets[..octets.len().min(400)]).into_owned()
}

#[test]
fn postfix_sends_into_mailrace() {
    if !are_here(&["postfix"]) {
        return;
    }
    let mut gateway = Gateway::start(INTO_MAILDIRS);
    let ports = Ports::choose();
    // Nothing goes elsewhere; if it did it would come back to the gateway and be seen.
    let postfix = Postfix::start(ports, gateway.smtp(0), gateway.smtp(0));
    let messages = messages(30);
    let mut client = Client::hello(([127, 0, 0, 1], ports.data).into());
    for message in &messages {
        client.command("MAIL FROM:<sender@client.test> BODY=8BITMIME").expect("250");
        client.command("RCPT TO:<a@to-gateway.test>").expect("250");
        client.command("RCPT TO:<b@to-gateway.test>").expect("250");
        client.data(message).expect("250");
    }
    client.command("QUIT").expect("221");
    for local in ["a", "b"] {
        let files = gateway.maildir("to-gateway.test", local, messages.len());
        let mut found: Vec<&[u8]> = files
            .iter()
            .map(|file| {
                behind_traces(
                    file,
                    &[
                        "Return-Path: <sender@client.test>\r\n",
                        "Received: from postfix.test ([127.0.0.1])\r\n\tby gateway.test ",
                        "Received: from client.test ",
                    ],
                )
            })
            .collect();
        let mut expected: Vec<&[u8]> = messages.iter().map(Vec::as_slice).collect();
        found.sort();
        expected.sort();
        assert!(found == expected, "{local}: changed on the way\n{}", postfix.log());
    }
    gateway.terminate();
}

/// A gateway in front of Postfix, which passes everything on to a sink.
struct Chain {
    gateway: Gateway,
    postfix: Postfix,
    sink: Sink,
    ports: Ports,
}

const CONNECTIONS: usize = 3;

impl Chain {
    fn start() -> Chain {
        let sink = Sink::start(Manners::default());
        let ports = Ports::choose();
        let Ports { chunking, data, ten } = ports;
        let config = format!(
            r#"
workers = 1
[[listener]]
address = "127.0.0.1:0"
service = "relay"
[[route]]
recipient = "*@chunking.test"
to = "smtp://127.0.0.1:{chunking}"
[[route]]
recipient = "*@data.test"
to = "smtp://127.0.0.1:{data}"
[[route]]
recipient = "*@ten.test"
to = "smtp://127.0.0.1:{ten}"
[[route]]
recipient = "*"
to = "maildir:{{dir}}/mail"
[delivery]
connections_per_site = {CONNECTIONS}
idle_timeout = "1s"
"#
        );
        let gateway = Gateway::start(&config);
        let postfix = Postfix::start(ports, gateway.smtp(0), sink.address());
        Chain { gateway, postfix, sink, ports }
    }

    /// What has come through for a domain, by recipient.
    fn arrived(&self, domain: &str) -> HashMap<String, Taken> {
        let mut arrived = HashMap::new();
        for taken in self.sink.taken_so_far() {
            for to in taken.to.iter().filter(|to| to.ends_with(domain)) {
                let before = arrived.insert(to.clone(), taken.clone());
                assert!(before.is_none(), "{to} twice");
            }
        }
        arrived
    }

    fn wait_for(&self, domain: &str, count: usize) -> HashMap<String, Taken> {
        self.gateway.wait_until(&format!("{count} recipients of {domain}"), || {
            let arrived = self.arrived(domain);
            (arrived.len() >= count).then_some(arrived)
        })
    }

    /// Sixty messages pass through few connections, unchanged.
    fn pooled(&self, domain: &str, service: &str, used: &str, unused: &str) {
        let messages = messages(60);
        let mut client = Client::hello(self.gateway.smtp(0));
        for (number, message) in messages.iter().enumerate() {
            client.command("MAIL FROM:<sender@client.test> BODY=8BITMIME").expect("250");
            client.command(&format!("RCPT TO:<n{number}@{domain}>")).expect("250");
            client.data(message).message_id();
        }
        let arrived = self.wait_for(domain, messages.len());
        for (number, message) in messages.iter().enumerate() {
            let taken = &arrived[&format!("n{number}@{domain}")];
            assert_eq!(taken.from, "sender@client.test");
            let rest = behind_traces(
                &taken.message,
                &["Received: from gateway.test ", "Received: from client.test ([127.0.0.1])"],
            );
            assert!(rest == message, "{number} changed: {}", head(rest));
        }
        // Each connection tells at its end what it was used for.
        let ended = self.gateway.wait_until("the idle connections' end", || {
            let begun = self.postfix.log_of(service, ": connect from").len();
            let ended = self.postfix.log_of(service, ": disconnect from");
            (begun == ended.len()).then_some(ended)
        });
        let with_mail: Vec<&String> = ended.iter().filter(|line| line.contains(" mail=")).collect();
        // On a busy machine some idle too long between two messages, and others come after them.
        assert!(!with_mail.is_empty() && with_mail.len() <= 4 * CONNECTIONS, "{ended:#?}");
        for line in with_mail {
            assert!(line.contains(used) && !line.contains(unused), "{line}");
            assert!(line.contains(" quit=1 "), "{line}");
        }
    }

    /// Ten recipients a transaction: the others get 452 and go in the next ones, at once.
    fn too_many_recipients(&self) {
        let mut client = Client::hello(self.gateway.smtp(0));
        client.command("MAIL FROM:<sender@client.test>").expect("250");
        for number in 0..25 {
            client.command(&format!("RCPT TO:<n{number}@ten.test>")).expect("250");
        }
        client.data(&message()).message_id();
        self.wait_for("ten.test", 25);
        let deferred = self.gateway.events().iter().any(|event| event["event"] == "deferred");
        assert!(!deferred, "the rest was put off, not sent at once");
        // Ten, ten and five.
        let transactions = self.postfix.log_of("ten", ": client=").len();
        assert_eq!(transactions, 3, "{}", self.postfix.log());
    }

    /// A recipient that the next hop refuses comes back as a notice that a mail program can read.
    fn failure_notice(&self, domain: &str, originator: &str) {
        let mut client = Client::hello(self.gateway.smtp(0));
        let recipients = [format!("nobody@{domain}"), format!("known@{domain}")];
        let recipients: Vec<&str> = recipients.iter().map(String::as_str).collect();
        client.envelope(&format!("{originator}@client.test"), &recipients);
        let id = client.data(&message()).message_id();
        let bounced = self.gateway.wait_event("the failure", |event| {
            event["event"] == "bounced" && event["message"] == *id
        });
        assert_eq!(bounced["to"], serde_json::json!([recipients[0]]));
        let reply = bounced["reply"].as_str().expect("the next hop's");
        assert!(
            reply.starts_with("550 5.1.1 ") && reply.contains("Nobody of that name"),
            "{reply}"
        );
        let notice = self.gateway.maildir("client.test", originator, 1).remove(0);
        let file = file(&self.gateway, &format!("notice-{originator}"), &notice);
        let mut python = Command::new("python3");
        python.arg(script("read_notice.py")).arg(file);
        run(python.args([recipients[0], "5.1.1"]));
        // The other recipient is not harmed.
        self.gateway.wait_until("the good recipient", || {
            self.arrived(domain).contains_key(recipients[1]).then_some(())
        });
    }
}

#[test]
fn postfix_is_the_next_hop() {
    if !are_here(&["postfix", "python3"]) {
        return;
    }
    let mut chain = Chain::start();
    chain.pooled("chunking.test", "chunking", " bdat=", " data=");
    chain.pooled("data.test", "data", " data=", " bdat=");
    chain.too_many_recipients();
    chain.failure_notice("chunking.test", "by-bdat");
    chain.failure_notice("data.test", "by-data");
    assert_ne!(chain.ports.chunking, chain.ports.data);
    chain.gateway.terminate();
}
