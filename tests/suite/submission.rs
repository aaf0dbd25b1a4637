//! The mail programs that people have, through each mechanism that they know, over TLS: they get in
//! with the right secret and not with a wrong one.
//!
//! `.ci/setup` installs them, as for `interop`.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::auth::{ALICE, IMPLICIT, STARTTLS, Submission};
use crate::interop::are_here;

const MESSAGE: &str = "From: alice@example.com\nTo: user@box.test\nSubject: hello\n\nhello\n";

/// A service, and what has been sent to it so far.
struct Service {
    submission: Submission,
    sent: AtomicUsize,
}

impl Service {
    fn start() -> Service {
        Service { submission: Submission::start("", ""), sent: AtomicUsize::new(0) }
    }

    fn port(&self, listener: usize) -> String {
        self.submission.gateway.smtp(listener).port().to_string()
    }

    /// The client ends well, its message is here, and the gateway knows how it has logged in.
    fn takes(&self, mechanism: &str, client: &mut Command) {
        let output = run(client);
        assert!(output.status.success(), "{mechanism}: {}", text(&output));
        self.has_taken(mechanism, 1);
    }

    fn has_taken(&self, mechanism: &str, messages: usize) {
        let count = self.sent.fetch_add(messages, Ordering::Relaxed) + messages;
        self.submission.gateway.maildir("box.test", "user", count);
        self.submission.wait_login(mechanism, ALICE);
    }

    /// The client says that it could not log in.
    fn refuses(&self, client: &mut Command) {
        let output = run(client);
        assert!(!output.status.success(), "with a wrong secret: {}", text(&output));
        let sent = self.sent.load(Ordering::Relaxed);
        self.submission.gateway.maildir("box.test", "user", sent);
    }
}

fn run(client: &mut Command) -> Output {
    client.output().unwrap_or_else(|error| panic!("{:?}: {error}", client.get_program()))
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[&*output.stdout, &*output.stderr].concat()).into_owned()
}

fn script(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(name);
    path.display().to_string()
}

#[test]
fn swaks_logs_in() {
    if !are_here(&["swaks"]) {
        return;
    }
    let service = Service::start();
    let swaks = |mechanism: &str, listener, password: &str| {
        let mut swaks = Command::new("swaks");
        swaks.args(["--server", "127.0.0.1", "--port", &service.port(listener)]);
        swaks.arg(if listener == IMPLICIT { "--tls-on-connect" } else { "--tls" });
        swaks.args(["--helo", "client.test", "--from", ALICE, "--to", "user@box.test"]);
        swaks.args(["--auth", mechanism, "--auth-user", ALICE, "--auth-password", password]);
        swaks.args(["--header", "Subject: hello", "--body", "hello"]);
        swaks
    };
    for mechanism in ["PLAIN", "LOGIN"] {
        for listener in [STARTTLS, IMPLICIT] {
            service.takes(mechanism, &mut swaks(mechanism, listener, "pencil"));
        }
    }
    service.refuses(&mut swaks("LOGIN", STARTTLS, "pen"));
}

#[test]
fn curl_logs_in() {
    if !are_here(&["curl"]) {
        return;
    }
    let service = Service::start();
    let file = service.submission.home.path().join("message");
    std::fs::write(&file, MESSAGE.replace('\n', "\r\n")).expect("a file");
    let curl = |listener, secret: &[&str]| {
        let scheme = if listener == IMPLICIT { "smtps" } else { "smtp" };
        let mut curl = Command::new("curl");
        curl.arg(format!("{scheme}://127.0.0.1:{}/client.test", service.port(listener)));
        curl.args(["-sS", "--ssl-reqd", "--cacert", &service.submission.trust()]);
        curl.args(["--mail-from", ALICE, "--mail-rcpt", "user@box.test", "--user"]);
        curl.args(secret).arg("-T").arg(&file);
        curl
    };
    let (good, bad) = (format!("{ALICE}:pencil"), format!("{ALICE}:pen"));
    for (mechanism, listener) in [("PLAIN", STARTTLS), ("LOGIN", IMPLICIT)] {
        let option = format!("AUTH={mechanism}");
        service.takes(mechanism, &mut curl(listener, &[&good, "--login-options", &option]));
    }
    // Without an initial response for some, with one for others.
    let with_initial = [&*good, "--login-options", "AUTH=PLAIN", "--sasl-ir"];
    service.takes("PLAIN", &mut curl(IMPLICIT, &with_initial));
    let token = service.submission.token(ALICE);
    // With a token it takes the standard's mechanism, whatever else it is told.
    service.takes("OAUTHBEARER", &mut curl(STARTTLS, &[ALICE, "--oauth2-bearer", &token]));
    service.refuses(&mut curl(STARTTLS, &[&bad, "--login-options", "AUTH=PLAIN"]));
    service.refuses(&mut curl(STARTTLS, &[ALICE, "--oauth2-bearer", "t.o.k"]));
}

#[test]
fn msmtp_logs_in() {
    if !are_here(&["msmtp"]) {
        return;
    }
    let service = Service::start();
    let message = service.submission.home.path().join("message");
    std::fs::write(&message, MESSAGE).expect("a file");
    let token = service.submission.token(ALICE);
    let msmtp = |mechanism: &str, listener, secret: &str| {
        let mut msmtp = Command::new("msmtp");
        msmtp.args(["--file=/dev/null", "--host=127.0.0.1", "--domain=client.test", "--tls=on"]);
        msmtp.arg(format!("--port={}", service.port(listener)));
        msmtp.arg(format!("--tls-starttls={}", if listener == IMPLICIT { "off" } else { "on" }));
        msmtp.arg(format!("--tls-trust-file={}", service.submission.trust()));
        msmtp.args([format!("--auth={mechanism}"), format!("--user={ALICE}")]);
        msmtp.arg(format!("--passwordeval=printf %s {secret}"));
        msmtp.args([format!("--from={ALICE}"), "user@box.test".to_owned()]);
        msmtp.stdin(Stdio::from(std::fs::File::open(&message).expect("a file")));
        msmtp
    };
    for (mechanism, listener, secret) in [
        ("PLAIN", STARTTLS, "pencil"),
        ("LOGIN", IMPLICIT, "pencil"),
        ("SCRAM-SHA-256", IMPLICIT, "pencil"),
        ("SCRAM-SHA-1", STARTTLS, "pencil"),
        ("OAUTHBEARER", STARTTLS, &*token),
        ("XOAUTH2", IMPLICIT, &*token),
    ] {
        let mut msmtp = msmtp(&mechanism.to_ascii_lowercase(), listener, secret);
        service.takes(mechanism, &mut msmtp);
    }
    service.refuses(&mut msmtp("scram-sha-256", STARTTLS, "pen"));
    service.refuses(&mut msmtp("oauthbearer", STARTTLS, "t.o.k"));
}

#[test]
fn smtplib_logs_in() {
    if !are_here(&["python3"]) {
        return;
    }
    let service = Service::start();
    let python = |mechanism: &str, listener, password: &str| {
        let mut python = Command::new("python3");
        python.arg(script("smtplib_login.py")).arg(service.port(listener));
        let how = if listener == IMPLICIT { "implicit" } else { "starttls" };
        python.args([how, &service.submission.trust(), mechanism, ALICE, password]);
        python
    };
    for (mechanism, listener) in [("PLAIN", STARTTLS), ("LOGIN", IMPLICIT)] {
        service.takes(mechanism, &mut python(mechanism, listener, "pencil"));
    }
    service.refuses(&mut python("PLAIN", IMPLICIT, "pen"));
}

#[test]
fn nodemailer_logs_in() {
    if !are_here(&["node", "nodemailer"]) {
        return;
    }
    let service = Service::start();
    let modules = crate::postfix::cache("nodemailer").join("node_modules");
    let node = |mechanism: &str, listener, secret: &str| {
        let mut node = Command::new("node");
        node.env("NODE_PATH", &modules).env("NODE_EXTRA_CA_CERTS", service.submission.trust());
        node.arg(script("nodemailer_login.js")).arg(service.port(listener));
        let how = if listener == IMPLICIT { "implicit" } else { "starttls" };
        node.args([how, mechanism, ALICE, secret]);
        node
    };
    let token = service.submission.token(ALICE);
    for (mechanism, listener, secret) in [
        ("PLAIN", STARTTLS, "pencil"),
        ("LOGIN", IMPLICIT, "pencil"),
        ("XOAUTH2", STARTTLS, &*token),
    ] {
        service.takes(mechanism, &mut node(mechanism, listener, secret));
    }
    service.refuses(&mut node("PLAIN", STARTTLS, "pen"));
    service.refuses(&mut node("XOAUTH2", IMPLICIT, "t.o.k"));
}
