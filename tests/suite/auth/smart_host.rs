//! Mail that goes out through a smart host that wants a login, without its secret being told to
//! anybody, and mail that requires TLS on its whole way.

use super::*;

/// A gateway that passes everything on to a smart host.
fn sender(server: &Submission, route: &str) -> Gateway {
    let trust = format!("SSL_CERT_FILE={}", server.trust());
    let secret = format!("SMART_HOST_PASSWORD={SECRET}");
    Gateway::start_under(
        &["env", &trust, &secret],
        &format!(
            "[[listener]]\naddress = \"127.0.0.1:0\"\nservice = \"relay\"\n\
             [[route]]\nrecipient = \"*\"\n{route}\n[queue]\nretry = [\"1h\"]\n"
        ),
    )
}

fn send_through(gateway: &Gateway, local: &str) {
    let mut client = Client::hello(gateway.smtp(0));
    client.envelope("sender@client.test", &[&format!("{local}@box.test")]);
    client.data(b"Subject: out\r\n\r\nhello\r\n").expect("250");
}

/// What a command of a gateway prints, on either stream.
fn printed(gateway: &Gateway, words: &[&str]) -> String {
    let mut command = Command::new(binary());
    command.args(words).arg("--config").arg(gateway.config_file());
    command.env("SMART_HOST_PASSWORD", SECRET);
    text(&command.output().expect("the binary is there"))
}

/// Neither it nor any part of it, nor as it stands in AUTH.
fn assert_untold(words: &str, secret: &str) {
    let encoded = BASE64.encode(secret.as_bytes());
    for told in [secret, &secret[4..12], &encoded[..encoded.len() - 4]] {
        assert!(!words.contains(told), "a secret is told: {words}");
    }
}

#[test]
fn mail_goes_out_by_every_mechanism_and_no_secret_with_it() {
    let offers = [
        ("SCRAM-SHA-256-PLUS\", \"PLAIN", "relay", IMPLICIT, "SCRAM-SHA-256-PLUS"),
        ("SCRAM-SHA-256\", \"PLAIN", "relay", STARTTLS, "SCRAM-SHA-256"),
        ("PLAIN", "relay", STARTTLS, "PLAIN"),
        ("LOGIN", "relay", IMPLICIT, "LOGIN"),
        ("XOAUTH2\", \"PLAIN", "token", STARTTLS, "XOAUTH2"),
        ("OAUTHBEARER", "token", IMPLICIT, "OAUTHBEARER"),
        // In clear only a proof goes.
        ("SCRAM-SHA-256\", \"PLAIN", "relay", CLEAR, "SCRAM-SHA-256"),
    ];
    for (place, (offered, account, listener, mechanism)) in offers.into_iter().enumerate() {
        let server = Submission::start(&format!("mechanisms = [\"{offered}\"]"), "");
        let address = server.gateway.smtp(listener);
        let token = server.token("sender@client.test");
        put(&server.home, "token", &format!("{token}\n"));
        put(&server.home, "password", &format!("{SECRET}\n"));
        let file = |name| server.home.path().join(name).display().to_string();
        let (user, secret, login) = match account {
            "token" => {
                ("sender@client.test", &*token, format!("token_file = \"{}\"", file("token")))
            }
            _ if place % 2 == 0 => {
                ("relay", SECRET, format!("password_file = \"{}\"", file("password")))
            }
            _ => ("relay", SECRET, "password_env = \"SMART_HOST_PASSWORD\"".to_owned()),
        };
        let (scheme, tls) = match listener {
            IMPLICIT => ("smtps", ""),
            STARTTLS => ("smtp", ""),
            _ => ("smtp", "tls = \"off\"\n"),
        };
        let route = format!("to = \"{scheme}://{address}\"\nuser = \"{user}\"\n{tls}{login}");
        let mut gateway = sender(&server, &route);
        send_through(&gateway, "user");
        server.gateway.maildir("box.test", "user", 1);
        server.wait_login(mechanism, user);
        gateway.wait_event("delivered", |event| event["event"] == "delivered");
        let told = [
            printed(&gateway, &["check"]),
            printed(&gateway, &["route", "user@box.test"]),
            printed(&gateway, &["queue", "list", "--json"]),
        ];
        assert!(told[0].contains("ok\n"), "{}", told[0]);
        gateway.terminate();
        let events: Vec<String> = gateway.events().iter().map(Value::to_string).collect();
        for words in told.iter().chain([&events.join("\n"), &gateway.errors()]) {
            assert_untold(words, secret);
        }
        assert_untold(&server.gateway.errors(), secret);
    }
}

/// A wrong password is the operator's to mend and no message's fault: mail waits, whatever class
/// the refusal has, and goes as soon as the right one is there, without a restart.
#[test]
fn mail_waits_while_the_smart_host_does_not_let_us_in() {
    let server = Submission::start("", "");
    let password = server.home.path().join("password").display().to_string();
    put(&server.home, "password", "Wr0ng-Horse-Battery");
    let address = server.gateway.smtp(IMPLICIT);
    let login = format!("user = \"relay\"\npassword_file = \"{password}\"");
    let gateway = sender(&server, &format!("to = \"smtps://{address}\"\n{login}"));
    send_through(&gateway, "user");
    let refused = gateway.wait_event("the refusal", |event| event["reason"] == "login_failed");
    assert_eq!(refused["event"], "deferred");
    assert!(
        refused["reply"].as_str().is_some_and(|words| words.contains("535 5.7.8 ")),
        "{refused}"
    );
    let listed = printed(&gateway, &["queue", "list", "--json"]);
    assert!(listed.contains("535 5.7.8") && !listed.contains("Horse"), "{listed}");
    assert!(gateway.events().iter().all(|event| event["event"] != "bounced"));
    // A secret that everybody can read is not used at all.
    put(&server.home, "password", SECRET);
    set_permissions(Path::new(&password), Permissions::from_mode(0o604)).expect("ours");
    let told = printed(&gateway, &["check"]);
    assert!(told.contains("chmod 600"), "{told}");
    assert_untold(&told, SECRET);
    put(&server.home, "password", SECRET);
    printed(&gateway, &["queue", "retry", "--all"]);
    server.gateway.maildir("box.test", "user", 1);
    assert_untold(&gateway.errors(), SECRET);
    assert_untold(&gateway.errors(), "Wr0ng-Horse-Battery");
}

/// A server that offers only what shows the password gets none in clear, and one that cannot prove
/// its name gets none at all.
#[test]
fn no_password_goes_to_who_may_be_anybody() {
    let server = Submission::start("mechanisms = [\"PLAIN\", \"LOGIN\"]", "");
    let login = "user = \"relay\"\npassword_env = \"SMART_HOST_PASSWORD\"";
    let clear = server.gateway.smtp(CLEAR);
    let gateway = sender(&server, &format!("to = \"smtp://{clear}\"\ntls = \"off\"\n{login}"));
    send_through(&gateway, "user");
    let refused = gateway.wait_event("no mechanism", |event| event["reason"] == "login_failed");
    assert!(
        refused["reply"].as_str().is_some_and(|words| words.contains("no AUTH that may be used"))
    );
    // Without `tls`, a route with a login asks for a proof of the name.
    let starttls = server.gateway.smtp(STARTTLS);
    let nobody = Gateway::start_under(
        &["env", "SSL_CERT_FILE=/dev/null", &format!("SMART_HOST_PASSWORD={SECRET}")],
        &format!(
            "[[listener]]\naddress = \"127.0.0.1:0\"\nservice = \"relay\"\n\
             [[route]]\nrecipient = \"*\"\nto = \"smtp://{starttls}\"\n{login}\n"
        ),
    );
    send_through(&nobody, "user");
    let deferred = nobody.wait_event("no handshake", |event| event["event"] == "deferred");
    assert!(deferred["reply"].as_str().is_some_and(|words| words.contains("handshake failed")));
    let tried = server.gateway.events();
    assert!(tried.iter().all(|event| event["event"] != "authenticated"), "{tried:?}");
}

/// The load generator's own client, of which a wrong password takes every message.
#[test]
fn the_load_generator_logs_in() {
    let server = Submission::start("", "");
    let send = |auth: &str| {
        let settings = Settings {
            to: Some(server.gateway.smtp(IMPLICIT).to_string()),
            tls: Some(Begin::Implicit),
            insecure: true,
            auth: Some(auth.to_owned()),
            sessions: Some(2),
            threads: Some(1),
            messages: Some(4),
            per_connection: Some(1),
            from: Some(vec![ALICE.parse().expect("an address")]),
            rcpt: Some(vec!["user@box.test".parse().expect("an address")]),
            pipeline: true,
            ..Settings::default()
        };
        let plan = Plan::new(settings, 1).expect("a plan");
        source::run(plan, &Signals::take_over().expect("signals"), true).expect("a run").0
    };
    let tally = send("alice@example.com:pencil");
    assert_eq!(tally.counts.acknowledged, 4, "{:?}", tally.texts);
    server.gateway.maildir("box.test", "user", 4);
    server.wait_login("PLAIN", ALICE);
    let tally = send("alice@example.com:pen");
    assert_eq!(tally.counts.acknowledged, 0, "{:?}", tally.texts);
}

// ---- REQUIRETLS --------------------------------------------------------------------------------

/// RFC 8689: what requires TLS goes on where TLS and the name are proved and the next hop promises
/// the same, under the same requirement, and nowhere else.
#[test]
fn mail_that_requires_tls_goes_on_so_or_not_at_all() {
    let server = Submission::start("", "");
    let clear = Sink::start(Manners::default());
    let address = server.gateway.smtp(STARTTLS);
    let file = |name| server.home.path().join(name).display().to_string();
    let trust = format!("SSL_CERT_FILE={}", server.trust());
    let secret = format!("SMART_HOST_PASSWORD={SECRET}");
    let gateway = Gateway::start_under(
        &["env", &trust, &secret],
        &format!(
            "[[listener]]\naddress = \"127.0.0.1:0\"\nservice = \"relay\"\ntls = \"implicit\"\n\
             [[tls.certificate]]\nchain = \"{}\"\nkey = \"{}\"\n\
             [[route]]\nrecipient = \"*@clear.test\"\nto = \"smtp://{}\"\n\
             [[route]]\nrecipient = \"*@client.test\"\nto = \"maildir:{{dir}}/mail\"\n\
             [[route]]\nrecipient = \"*\"\nto = \"smtp://{address}\"\ntls = \"required\"\n\
             user = \"relay\"\npassword_env = \"SMART_HOST_PASSWORD\"\n",
            file("chain.pem"),
            file("key.pem"),
            clear.address(),
        ),
    );
    let mut client = server.tls_client_of(gateway.smtp(0), &[&rustls::version::TLS13]);
    assert!(client.offer.contains("250-REQUIRETLS\r\n"), "{}", client.offer);
    assert!(client.offer.contains("250-LIMITS RCPTMAX=1000\r\n"), "{}", client.offer);
    let mut send = |domain: &str| {
        client.say("MAIL FROM:<sender@client.test> REQUIRETLS RET=FULL").expect("250");
        client.say(&format!("RCPT TO:<user@{domain}>")).expect("250");
        client.say("DATA").expect("354");
        client.say("Subject: out\r\n\r\nvery private\r\n.").expect("250");
    };
    send("box.test");
    server.gateway.maildir("box.test", "user", 1);
    // There it has arrived under the same requirement, or it would not be known here.
    let accepted = server.gateway.wait_event("accepted", |event| event["event"] == "accepted");
    assert_eq!(accepted["require_tls"], true, "{accepted}");
    send("clear.test");
    let waits = gateway.wait_event("no TLS", |event| {
        event["event"] == "deferred" && event["reason"] == "tls_failed"
    });
    assert!(waits["reply"].as_str().is_some_and(|words| words.contains("does not offer it")));
    assert!(clear.taken_so_far().is_empty(), "not a word of it in clear");
}
