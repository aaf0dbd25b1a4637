//! Programs of other people over TLS, by STARTTLS and from the first octet: mail programs, the
//! tools of OpenSSL and GnuTLS, and Postfix on both sides.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::client::Client;
use crate::gateway::Gateway;
use crate::interop::{are_here, assert_stored, file, host_and_port, run, script};
use crate::postfix::{Ports, Postfix, cache};
use crate::sink::{Manners, Sink};
use crate::tls::{IMPLICIT, STARTTLS, Server, certify};

const MESSAGE: &[u8] = b"From: sender@client.test\r\nDate: Sat, 21 Nov 2026 12:00:00 +0000\r\n\
    Message-ID: <1@client.test>\r\nSubject: encrypted\r\n\r\nby a program\r\n..\r\n";

/// A gateway with its two ports, its certificate as an authority, and the message in a file.
struct Ways {
    server: Server,
    starttls: SocketAddr,
    implicit: SocketAddr,
    ca: PathBuf,
    message: PathBuf,
}

impl Ways {
    fn start() -> Ways {
        let server = Server::start("");
        let (starttls, implicit) = (server.gateway.smtp(STARTTLS), server.gateway.smtp(IMPLICIT));
        let ca = server.home.path().join("mx.test.pem");
        let message = file(&server.gateway, "message", MESSAGE);
        Ways { server, starttls, implicit, ca, message }
    }

    /// Both messages are there, and both came encrypted.
    fn end(mut self, local: &str, message: &[u8]) {
        assert_stored(&self.server.gateway, local, 2, message);
        self.server.gateway.wait_until("both came encrypted", || {
            let events = self.server.gateway.events();
            let of = |kind: &str| events.iter().filter(|event| event["event"] == kind).count();
            ((of("accepted"), of("secured")) == (2, 2)).then_some(())
        });
        self.server.gateway.terminate();
    }
}

#[test]
fn swaks_sends_over_tls() {
    if !are_here(&["swaks"]) {
        return;
    }
    let ways = Ways::start();
    for (address, option) in [(ways.starttls, "--tls"), (ways.implicit, "--tls-on-connect")] {
        let mut swaks = Command::new("swaks");
        swaks.arg("--server").arg(address.to_string()).arg(option);
        swaks.args(["--tls-verify", "--tls-ca-path"]).arg(&ways.ca);
        swaks.args(["--helo", "client.test", "--from", "sender@client.test"]);
        swaks.args(["--to", "swaks@box.test", "--data", "Subject: x\\n\\nby swaks"]);
        let said = run(&mut swaks);
        assert!(said.contains("TLSv1.3") && said.contains("queued as "), "{said}");
    }
    ways.end("swaks", b"Subject: x\r\n\r\nby swaks\r\n");
}

#[test]
fn curl_sends_over_tls() {
    if !are_here(&["curl"]) {
        return;
    }
    let ways = Ways::start();
    let urls = [
        (format!("smtp://{}/client.test", ways.starttls), "--ssl-reqd"),
        (format!("smtps://{}/client.test", ways.implicit), "--tlsv1.2"),
    ];
    for (url, option) in urls {
        let mut curl = Command::new("curl");
        curl.args(["-sS", option, "--cacert"]).arg(&ways.ca).arg(url);
        curl.args(["--mail-from", "sender@client.test", "--mail-rcpt", "curl@box.test", "-T"]);
        run(curl.arg(&ways.message));
    }
    ways.end("curl", MESSAGE);
}

#[test]
fn msmtp_sends_over_tls() {
    if !are_here(&["msmtp"]) {
        return;
    }
    let ways = Ways::start();
    let text = String::from_utf8_lossy(MESSAGE).replace('\r', "");
    let lf = file(&ways.server.gateway, "lf", text.as_bytes());
    for (address, starttls) in [(ways.starttls, "on"), (ways.implicit, "off")] {
        let (host, port) = host_and_port(address);
        let mut msmtp = Command::new("msmtp");
        msmtp.args(["--file=/dev/null", "--tls=on", "--auth=off", "--domain=client.test"]);
        msmtp.arg(format!("--tls-starttls={starttls}"));
        msmtp.arg(format!("--tls-trust-file={}", ways.ca.display()));
        msmtp.args([format!("--host={host}"), format!("--port={port}")]);
        msmtp.args(["--from=sender@client.test", "msmtp@box.test"]);
        run(msmtp.stdin(Stdio::from(std::fs::File::open(&lf).expect("a file"))));
    }
    ways.end("msmtp", MESSAGE);
}

#[test]
fn smtplib_sends_over_tls() {
    if !are_here(&["python3"]) {
        return;
    }
    let ways = Ways::start();
    let (host, starttls) = host_and_port(ways.starttls);
    let mut python = Command::new("python3");
    python.arg(script("smtplib_tls.py")).args([host, starttls, host_and_port(ways.implicit).1]);
    run(python.arg(&ways.ca).arg(&ways.message));
    ways.end("smtplib", MESSAGE);
}

#[test]
fn nodemailer_sends_over_tls() {
    if !are_here(&["node", "nodemailer"]) {
        return;
    }
    let ways = Ways::start();
    let (host, starttls) = host_and_port(ways.starttls);
    let mut node = Command::new("node");
    node.env("NODE_PATH", cache("nodemailer").join("node_modules"));
    node.arg(script("nodemailer_tls.js")).args([host, starttls, host_and_port(ways.implicit).1]);
    run(node.arg(&ways.ca));
    ways.end("nodemailer", b"Subject: raw\r\n\r\nby nodemailer\r\n");
}

/// A whole session in one piece, to a program that passes its input on over TLS; gives what came
/// back.
fn converse(command: &mut Command, local: &str) -> String {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("it is installed");
    let mut input = child.stdin.take().expect("a pipe");
    let head = format!(
        "EHLO tls.test\r\nMAIL FROM:<sender@client.test>\r\nRCPT TO:<{local}@box.test>\r\n\
         BDAT {} LAST\r\n",
        MESSAGE.len()
    );
    input.write_all(&[head.as_bytes(), MESSAGE, b"QUIT\r\n"].concat()).expect("it reads");
    // The input stays open: it is the gateway that ends the connection.
    let mut said = Vec::new();
    child.stdout.take().expect("a pipe").read_to_end(&mut said).expect("text");
    drop(input);
    child.wait().expect("it ends");
    String::from_utf8_lossy(&said).into_owned()
}

#[test]
fn openssl_and_gnutls_speak_through_both_ways() {
    if !are_here(&["openssl", "gnutls-cli"]) {
        return;
    }
    let ways = Ways::start();
    for (address, option) in [(ways.starttls, &["-starttls", "smtp"][..]), (ways.implicit, &[])] {
        let mut openssl = Command::new("openssl");
        openssl.args(["s_client", "-quiet", "-verify_return_error", "-CAfile"]).arg(&ways.ca);
        openssl.arg("-connect").arg(address.to_string()).args(option);
        let said = converse(&mut openssl, "openssl");
        assert!(said.contains("queued as ") && said.contains("221 "), "{said}");
    }
    assert_stored(&ways.server.gateway, "openssl", 2, MESSAGE);
    for (address, option) in [(ways.starttls, &["--starttls-proto=smtp"][..]), (ways.implicit, &[])]
    {
        let (host, port) = host_and_port(address);
        let mut gnutls = Command::new("gnutls-cli");
        gnutls.args(["--insecure", "--port", &port]).args(option).arg(host);
        let said = converse(&mut gnutls, "gnutls");
        assert!(said.contains("queued as ") && said.contains("221 "), "{said}");
    }
    assert_stored(&ways.server.gateway, "gnutls", 2, MESSAGE);
}

/// Postfix sends to the gateway and the gateway to Postfix, encrypted both ways.
#[test]
fn postfix_speaks_tls_on_both_sides() {
    if !are_here(&["postfix"]) {
        return;
    }
    let sink = Sink::start(Manners::default());
    let ports = Ports::choose();
    let home = tempfile::tempdir().expect("a directory");
    certify(home.path(), "mx.test");
    let of = |end: &str| home.path().join(format!("mx.test.{end}"));
    let config = format!(
        "[[listener]]\naddress = \"127.0.0.1:0\"\nservice = \"relay\"\ntls = \"starttls\"\n\
         [[tls.certificate]]\nchain = \"{}\"\nkey = \"{}\"\n\
         [[route]]\nrecipient = \"*@chunking.test\"\nto = \"smtp://127.0.0.1:{}\"\n\
         tls = \"required\"\n\
         [[route]]\nrecipient = \"*\"\nto = \"maildir:{{dir}}/mail\"\n",
        of("pem").display(),
        of("key").display(),
        ports.chunking,
    );
    let mut gateway = Gateway::start(&config);
    let both = [of("key"), of("pem")].map(|path| std::fs::read(path).expect("made")).concat();
    let postfix = Postfix::start_secured(ports, gateway.smtp(0), sink.address(), &both);
    let mut client = Client::hello(([127, 0, 0, 1], ports.data).into());
    client.envelope("sender@client.test", &["in@to-gateway.test"]);
    client.data(MESSAGE).expect("250");
    let stored = gateway.maildir("to-gateway.test", "in", 1).remove(0);
    let stored = String::from_utf8_lossy(&stored).into_owned();
    assert!(stored.contains("with ESMTPS"), "{stored}\n{}", postfix.log());
    let mut client = Client::hello(gateway.smtp(0));
    client.envelope("sender@client.test", &["out@chunking.test"]);
    client.data(MESSAGE).message_id();
    let taken = sink.taken(1).remove(0);
    let taken = String::from_utf8_lossy(&taken.message).into_owned();
    assert!(taken.contains("(using TLSv1.3 with cipher"), "{taken}\n{}", postfix.log());
    let is_it = |event: &serde_json::Value| {
        event["event"] == "delivered" && event["to"][0] == "out@chunking.test"
    };
    let delivered = gateway.wait_event("through Postfix", is_it);
    assert!(delivered["tls"].as_str().is_some_and(|tls| tls.starts_with("TLSv1.3 ")));
    gateway.terminate();
}
