//! What comes in goes out, octet for octet, behind our trace header.
//!
//! Every message goes to three recipients: a Maildir, a next hop that is offered DATA only, and one
//! that takes BDAT; and it comes in by DATA and by BDAT in odd chunks.

use std::collections::HashMap;
use std::path::Path;

use crate::client::Client;
use crate::gateway::{Gateway, files_in};
use crate::sink::{Manners, Sink};

/// One message, and where its octets come from.
struct Case {
    name: String,
    message: Vec<u8>,
}

/// A gateway with the three destinations.
struct Bench {
    gateway: Gateway,
    by_data: Sink,
    by_bdat: Sink,
    /// What each accepted message must come out as, by id.
    expected: HashMap<String, Case>,
}

const RECIPIENTS: [&str; 3] = ["box@maildir.test", "a@data.test", "b@bdat.test"];

impl Bench {
    fn start() -> Bench {
        let by_data = Sink::start(Manners::default());
        let by_bdat = Sink::start(Manners { chunking: true, ..Manners::default() });
        let config = format!(
            r#"
[[listener]]
address = "127.0.0.1:0"
service = "relay"
[[route]]
recipient = "*@maildir.test"
to = "maildir:{{dir}}/mail"
[[route]]
recipient = "*@data.test"
to = "smtp://{}"
[[route]]
recipient = "*@bdat.test"
to = "smtp://{}"
"#,
            by_data.address(),
            by_bdat.address(),
        );
        Bench { gateway: Gateway::start(&config), by_data, by_bdat, expected: HashMap::new() }
    }

    fn begin(&self, client: &mut Client) {
        client.command("MAIL FROM:<sender@client.test> BODY=8BITMIME").expect("250");
        for to in RECIPIENTS {
            client.command(&format!("RCPT TO:<{to}>")).expect("250");
        }
    }

    fn by_data(&mut self, client: &mut Client, name: &str, message: &[u8]) {
        let mut message = message.to_vec();
        if !message.is_empty() && !message.ends_with(b"\r\n") {
            message.extend_from_slice(b"\r\n");
        }
        self.begin(client);
        let id = client.data(&message).message_id();
        self.expected.insert(id, Case { name: format!("{name} by DATA"), message });
    }

    fn by_bdat(&mut self, client: &mut Client, name: &str, message: &[u8], chunks: &[usize]) {
        self.begin(client);
        let id = client.bdat(message, chunks).message_id();
        let name = format!("{name} by BDAT {chunks:?}");
        self.expected.insert(id, Case { name, message: message.to_vec() });
    }

    /// Waits for everything and compares it.
    fn judge(mut self) {
        let count = self.expected.len();
        let stored = self.gateway.maildir("maildir.test", "box", count);
        for file in &stored {
            let rest = file.strip_prefix(b"Return-Path: <sender@client.test>\r\n");
            self.compare(rest.expect("Return-Path comes first"), true, "Maildir");
        }
        for (sink, by_bdat, place) in
            [(&self.by_data, false, "next hop, DATA"), (&self.by_bdat, true, "next hop, BDAT")]
        {
            for taken in sink.taken(count) {
                assert_eq!(taken.by_bdat, by_bdat, "{place}");
                assert_eq!(taken.from, "sender@client.test");
                // DATA cannot carry a message that does not end a line; CRLF is added to it.
                self.compare(&taken.message, by_bdat, place);
            }
            let connections = sink.connections();
            assert!(connections * 2 <= count, "{connections} connections for {count} messages");
        }
        self.gateway.terminate();
    }

    fn compare(&self, whole: &[u8], exact: bool, place: &str) {
        let (id, message) = behind_trace(whole);
        let case = self.expected.get(&id).unwrap_or_else(|| panic!("{place}: unknown id {id}"));
        let mut expected = case.message.clone();
        if !exact && !expected.is_empty() && !expected.ends_with(b"\r\n") {
            expected.extend_from_slice(b"\r\n");
        }
        if message != expected {
            let at = message.iter().zip(&expected).take_while(|(a, b)| a == b).count();
            panic!(
                "{place}: {}: {} octets, expected {}; they part at {at}: {:?} for {:?}",
                case.name,
                message.len(),
                expected.len(),
                excerpt(message, at),
                excerpt(&expected, at),
            );
        }
    }
}

fn excerpt(octets: &[u8], at: usize) -> String {
    let from = at.saturating_sub(20);
    String::from_utf8_lossy(&octets[from..octets.len().min(at + 40)]).into_owned()
}

/// The id in our trace header, which must be just so, and what follows it.
pub fn behind_trace(whole: &[u8]) -> (String, &[u8]) {
    let mut rest = whole;
    let mut next = || {
        let end = rest.windows(2).position(|pair| pair == b"\r\n").expect("a whole line") + 2;
        let (line, others) = rest.split_at(end);
        rest = others;
        String::from_utf8(line.to_vec()).expect("the trace header is ASCII")
    };
    let from = next();
    assert!(from.starts_with("Received: from "), "{from}");
    let by = next();
    let mut words = by.trim_end().trim_end_matches(';').split(' ');
    let id = words.next_back().expect("the id comes last").to_owned();
    assert!(by.starts_with("\tby gateway.test with "), "{by}");
    let mut date = next();
    while date.starts_with("\tfor ") || date.starts_with("\ttls ") {
        date = next();
    }
    assert!(date.starts_with('\t') && date.ends_with("+0000\r\n"), "{date}");
    (id, rest)
}

/// CRLF in place of every kind of newline.
fn with_crlf(octets: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(octets.len() + octets.len() / 16);
    let mut rest = octets;
    while let [first, others @ ..] = rest {
        rest = others;
        match first {
            b'\r' => {
                rest = rest.strip_prefix(b"\n").unwrap_or(rest);
                out.extend_from_slice(b"\r\n");
            }
            b'\n' => out.extend_from_slice(b"\r\n"),
            other => out.push(*other),
        }
    }
    out
}

#[test]
fn every_message_of_the_collection_passes_through_unchanged() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/mime");
    let mut bench = Bench::start();
    let mut client = Client::hello(bench.gateway.smtp(0));
    let mut count = 0;
    for directory in files_in(&root).iter().filter(|path| path.is_dir()) {
        for file in files_in(directory) {
            let extension = file.extension().unwrap_or_default();
            let name = file.strip_prefix(&root).expect("below it").display().to_string();
            if name.contains("LICENSE") || (extension != "eml" && extension != "txt") {
                continue;
            }
            let message = with_crlf(&std::fs::read(&file).expect("readable"));
            bench.by_data(&mut client, &name, &message);
            let odd = 1 + count % 13 * 97;
            bench.by_bdat(&mut client, &name, &message, &[1, 2, odd]);
            count += 1;
        }
    }
    assert_eq!(count, 103, "messages in tests/data/mime");
    bench.judge();
}

#[test]
fn messages_that_are_hard_to_carry_pass_through_unchanged() {
    let mut bench = Bench::start();
    let mut client = Client::hello(bench.gateway.smtp(0));
    for (name, message) in hard_messages() {
        if !message.windows(2).any(|pair| pair == b"\r\n") && !message.is_empty() {
            // A message without any line is for BDAT alone.
        } else {
            bench.by_data(&mut client, name, &message);
        }
        // One chunk; chunks of the sizes that a gateway may have of its own, and next to them;
        // and pieces that part every CRLF, dot and line somewhere.
        bench.by_bdat(&mut client, name, &message, &[usize::MAX]);
        bench.by_bdat(&mut client, name, &message, &[4_093, 1, 1, 32_768, 1, 65_537]);
        if message.len() < 100_000 {
            bench.by_bdat(&mut client, name, &message, &[1, 3, 2, 5, 7]);
        }
    }
    bench.judge();
}

fn hard_messages() -> Vec<(&'static str, Vec<u8>)> {
    let header = b"Subject: hard\r\n\r\n".as_slice();
    let with_header = |body: &[u8]| [header, body].concat();
    let mut messages = vec![
        ("empty", Vec::new()),
        ("one empty line", b"\r\n".to_vec()),
        ("one dot", b".\r\n".to_vec()),
        ("dots only", b".\r\n..\r\n...\r\n.\r\n".to_vec()),
        ("a dot as its last octet", with_header(b"text\r\n.")),
        ("dots at the front of lines", with_header(b".a\r\n..b\r\n...c\r\n.\r\nd.\r\n")),
        ("NUL", with_header(b"a\0b\r\n\0\r\n.\0\r\n")),
        ("no final newline", with_header(b"the end")),
        ("only text without a newline", b"x".to_vec()),
        ("8-bit", with_header(&[0x80, 0xff, 0xc3, 0xa9, b'\r', b'\n'].repeat(50))),
        ("a line of 1 MiB", with_header(&[vec![b'x'; 1 << 20], b"\r\n".to_vec()].concat())),
        ("first line begins with a space", b" not a header\r\n\r\ntext\r\n".to_vec()),
        ("every octet but newlines", {
            let octets: Vec<u8> = (0..=255).filter(|o| !b"\r\n".contains(o)).collect();
            with_header(&[&octets[..], b"\r\n"].concat())
        }),
        // Lines of 3, 4 and 5 octets, so that a dot meets every border of a chunk.
        ("300 KiB of dots", with_header(&b".\r\n..\r\n.a.\r\nb\r\n".repeat(20_000))),
    ];
    // About the sizes where a message changes from small to large, and where chunks end.
    for size in [32 * 1024, 64 * 1024, 256 * 1024] {
        for octets in size - 20..=size + 3 {
            if octets % 4 == 0 || octets == size - 1 || octets == size + 1 {
                messages.push(("about a bound", sized(octets)));
            }
        }
    }
    messages
}

/// A message of so many octets that ends a line; each line begins with a dot.
fn sized(octets: usize) -> Vec<u8> {
    let mut message = b"Subject: sized\r\n\r\n".to_vec();
    while message.len() + 80 < octets {
        message.extend_from_slice(&[b'.'; 61]);
        message.extend_from_slice(b"\r\n");
    }
    message.resize(octets - 2, b'e');
    message.extend_from_slice(b"\r\n");
    message
}
