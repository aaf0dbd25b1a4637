//! Stops and starts: what is under way is finished, nobody holds the end up, nothing is shared
//! with a second gateway by mistake.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::client::Client;
use crate::gateway::{Gateway, INTO_MAILDIRS};

const MESSAGE: &[u8] = b"Subject: under way\r\n\r\nfirst half\r\n";

#[test]
fn a_transaction_under_way_ends_with_250_and_the_others_with_421() {
    let mut gateway = Gateway::start(INTO_MAILDIRS);
    let mut idle = Client::hello(gateway.smtp(0));
    let mut mute = Client::connect(gateway.smtp(0));
    let mut busy = Client::hello(gateway.smtp(0));
    busy.envelope("sender@client.test", &["user@late.test"]);
    busy.command("DATA").expect("354");
    busy.send(MESSAGE);
    let address = gateway.smtp(0);

    gateway.ask_to_stop();
    idle.reply().expect("421 4.3.2");
    idle.expect_end();
    mute.reply().expect("421 4.3.2");
    // Nobody new is let in: refused, reset or turned away, but not greeted.
    let asked = Instant::now();
    gateway.wait_until("the listeners' end", || {
        std::net::TcpStream::connect(address).is_err().then_some(())
    });
    assert!(asked.elapsed() < Duration::from_secs(3), "a listener outlived the stop");
    busy.send(b"second half\r\n.\r\n");
    let id = busy.reply().message_id();
    busy.reply().expect("421 4.3.2");
    busy.expect_end();
    gateway.wait_for_end(Duration::from_secs(10));

    // What was accepted in the last moment is there after a restart, if not before it.
    let mut gateway = gateway.restart(INTO_MAILDIRS);
    let stored = gateway.maildir("late.test", "user", 1);
    let text = String::from_utf8(stored[0].clone()).expect("ASCII");
    assert!(text.contains(&id) && text.ends_with("first half\r\nsecond half\r\n"), "{text}");
    gateway.terminate();
}

#[test]
fn a_stuck_client_does_not_hold_up_the_end() {
    let mut gateway = Gateway::start(INTO_MAILDIRS);
    let mut stuck = Client::hello(gateway.smtp(0));
    stuck.envelope("sender@client.test", &["user@never.test"]);
    stuck.command("DATA").expect("354");
    stuck.send(MESSAGE);
    let mut half = Client::hello(gateway.smtp(0));
    half.envelope("sender@client.test", &["user@never.test"]);
    half.send(b"BDAT 1000000\r\n");
    half.send(&[b'x'; 300_000]);

    gateway.ask_to_stop();
    // 15 seconds of grace for what is under way, and a little for the rest.
    let took = gateway.wait_for_end(Duration::from_secs(25));
    assert!(took >= Duration::from_secs(5), "no time was given to what is under way: {took:?}");
    let mut gateway = gateway.restart(INTO_MAILDIRS);
    assert!(!gateway.dir().join("mail/never.test").exists(), "half a message was delivered");
    gateway.terminate();
}

#[test]
fn a_next_hop_that_never_greets_does_not_hold_up_the_end() {
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = silent.local_addr().expect("bound");
    let mut gateway = Gateway::start(&format!(
        "[[listener]]\naddress = \"127.0.0.1:0\"\nservice = \"relay\"\n\
         [[route]]\nrecipient = \"*\"\nto = \"smtp://{address}\"\n"
    ));
    let mut client = Client::hello(gateway.smtp(0));
    client.envelope("sender@client.test", &["user@silent.test"]);
    client.data(MESSAGE).expect("250");
    let (_connection, _) = silent.accept().expect("it is tried");
    drop(client);
    gateway.ask_to_stop();
    // Its greeting may take five minutes, and messages under way would have fifteen seconds.
    gateway.wait_for_end(Duration::from_secs(8));
}

#[test]
fn it_starts_again_at_once_on_the_same_port() {
    let mut gateway = Gateway::start(INTO_MAILDIRS);
    let address = gateway.smtp(0).to_string();
    let same_port = INTO_MAILDIRS.replacen("127.0.0.1:0", &address, 1);
    for round in 0..3 {
        // A session that the gateway closes leaves its side of the port waiting.
        let mut idle = Client::hello(gateway.smtp(0));
        if round == 1 {
            gateway.kill9();
        } else {
            gateway.ask_to_stop();
            idle.reply().expect("421");
            gateway.wait_for_end(Duration::from_secs(10));
        }
        gateway = gateway.restart(&same_port);
        assert_eq!(gateway.smtp(0).to_string(), address);
        let mut client = Client::hello(gateway.smtp(0));
        client.command("NOOP").expect("250");
    }
}

#[test]
fn two_gateways_do_not_share_a_data_directory() {
    let mut first = Gateway::start(INTO_MAILDIRS);
    let other = TempDir::new().expect("a temporary directory");
    let data_dir = first.dir().join("data").display().to_string();
    let config = format!("data_dir = \"{data_dir}\"\n{INTO_MAILDIRS}");
    let (code, said) = Gateway::fail_to_start(other.path(), &config);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("another") && said.contains(&data_dir), "{said}");
    // The first one does not notice.
    let mut client = Client::hello(first.smtp(0));
    client.envelope("sender@client.test", &["user@first.test"]);
    client.data(MESSAGE).message_id();
    first.maildir("first.test", "user", 1);
    first.terminate();
}

#[test]
fn a_port_that_is_taken_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("bound").to_string();
    let home = TempDir::new().expect("a temporary directory");
    let config = INTO_MAILDIRS.replacen("127.0.0.1:0", &address, 1);
    let (code, said) = Gateway::fail_to_start(home.path(), &config);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains(&address) && said.contains("is another server"), "{said}");

    // Another mailrace there is seen too, although each of its workers binds the port again.
    let mut running = Gateway::start(INTO_MAILDIRS);
    let config = INTO_MAILDIRS.replacen("127.0.0.1:0", &running.smtp(0).to_string(), 1);
    let (code, said) = Gateway::fail_to_start(home.path(), &config);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("is another server"), "{said}");

    let config = format!("{INTO_MAILDIRS}\n[admin]\naddress = \"{address}\"\n");
    let (code, said) = Gateway::fail_to_start(home.path(), &config);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains(&address) && said.contains("is another server"), "{said}");
    running.terminate();
}
