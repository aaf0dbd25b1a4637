//! How long a start takes: fills a spool through the real appender and log, and recovers it.
//!
//! `cargo bench --bench recovery -- fill DIRECTORY MESSAGES OCTETS` makes a spool of so many
//! messages; with `--no-index` none of its segments says what it holds.
//! `cargo bench --bench recovery -- recover DIRECTORY` drops the page cache, if it may, recovers
//! the spool as a gateway with two workers would, and tells time and memory.  A gateway whose
//! `data_dir` is the directory above starts on the same files (`DIRECTORY` ends in `spool`).
//! `cargo bench --bench recovery -- compare DIRECTORY` reads the same files with `dd` and recovers
//! them, five times in turns: the median of either rate, and their ratio.
//!
//! Without arguments it does both, small, in a temporary directory.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use mailrace::config::{Config, Environment};
use mailrace::delivery::recovery::Recovered;
use mailrace::delivery::sites::Sites;
use mailrace::message::{
    BodyFlags, BodySummary, Durability, Envelope, MailParameters, MessageId, MessageIds, Notify,
    Origin, Recipient,
};
use mailrace::smtp::address::{ForwardPath, Mailbox, ReversePath};
use mailrace::spool::chore::Chore;
use mailrace::spool::committer::random_generation;
use mailrace::spool::recovery::Progress;
use mailrace::spool::{
    Appender, AppenderOptions, BLOCK, Completion, Disk, FileDisk, FileNo, Log, LogOptions, NewBody,
    NewMessage, RecoveredMessage, RecoveryVisitor, SEGMENT_BYTES, SpoolStats, recover,
};

/// Domains of the recipients.
const DOMAINS: u64 = 1_000;

fn main() {
    let arguments: Vec<String> =
        std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let number = |text: &str| text.parse().expect("a number");
    match words[..] {
        [] => {
            let place = tempfile::tempdir().expect("a temporary directory");
            let spool = place.path().join("spool");
            fill(&spool, 20_000, 10 * 1024, true);
            _ = start(&spool);
        }
        ["fill", spool, messages, octets] => {
            fill(Path::new(spool), number(messages), number(octets), true);
        }
        ["fill", spool, messages, octets, "--no-index"] => {
            fill(Path::new(spool), number(messages), number(octets), false);
        }
        ["recover", spool] => _ = start(Path::new(spool)),
        ["compare", spool] => compare(Path::new(spool)),
        _ => panic!("fill DIRECTORY MESSAGES OCTETS [--no-index], recover or compare DIRECTORY"),
    }
}

// ---- filling ---------------------------------------------------------------------------------

struct Nobody;

impl RecoveryVisitor for Nobody {
    fn message(&mut self, _: RecoveredMessage) {}
}

struct Filler {
    log: Log<FileDisk>,
    appender: Appender,
    with_index: bool,
}

fn fill(spool: &Path, messages: u64, octets: u64, with_index: bool) {
    let started = Instant::now();
    let disk = Arc::new(FileDisk::open(spool).expect("a directory for the spool"));
    let stats = Arc::new(SpoolStats::default());
    let options = LogOptions::default();
    let (log, _) = recover(disk, options, stats, &mut random_generation, &mut Nobody)
        .expect("an empty spool, or one of ours");
    let appender = Appender::new(AppenderOptions::new(0));
    let mut filler = Filler { log, appender, with_index };
    filler.maintain();
    let body = body(octets);
    let mut ids = MessageIds::new(0, MessageId(0));
    let from = unix_ms() - 3_600_000;
    for number in 0..messages {
        filler.append(ids.next(from + number / 100), number, &body);
    }
    filler.flush();
    println!("filled with {messages} messages in {:.1} s", started.elapsed().as_secs_f64());
}

impl Filler {
    fn append(&mut self, id: MessageId, number: u64, body: &[u8]) {
        let envelope = envelope(number);
        let message = NewMessage {
            id,
            durability: Durability::Os,
            envelope: &envelope,
            origin: &Origin {
                client: "192.0.2.1:40000".parse().expect("an address"),
                listener: "192.0.2.2:25".parse().expect("an address"),
                helo: "client.example".into(),
                accepted_unix_ms: unix_ms(),
            },
            summary: &BodySummary {
                octets: body.len() as u64,
                crc32c: crc32c::crc32c(body),
                longest_line: 70,
                flags: BodyFlags::ENDS_WITH_CRLF,
            },
            trace: TRACE,
            not_before_unix_ms: None,
            extensions: &[],
            body: NewBody::Inline(body),
        };
        let now = Instant::now();
        if self.appender.append_message(&message, now).is_err() {
            self.flush();
            self.appender.append_message(&message, now).expect("every buffer is free");
        }
    }

    /// Commits all that is in the appender.
    fn flush(&mut self) {
        let now = Instant::now();
        loop {
            let batches: Vec<_> = std::iter::from_fn(|| self.appender.flush(now)).collect();
            if batches.is_empty() {
                break;
            }
            let mut done = self.log.commit(batches);
            done.extend(self.maintain());
            done.extend(self.log.tick());
            done.extend(self.maintain());
            for completion in done {
                completion.result.expect("the disk has room");
                self.appender.completed(completion, now);
            }
        }
    }

    /// Does what the maintenance would.
    fn maintain(&mut self) -> Vec<Completion> {
        let mut done = Vec::new();
        while let Some(chore) = self.log.poll_chore() {
            let chore = match chore {
                // Made as large and as empty as a footer would not be found in.
                Chore::Index { file, offset, mut blocks } if !self.with_index => {
                    blocks.fill(0);
                    Chore::Index { file, offset, blocks }
                }
                chore => chore,
            };
            let disk = self.log.disk().clone();
            let result = chore.perform(&*disk, &mut random_generation);
            done.extend(self.log.chore_done(result));
        }
        done
    }
}

fn envelope(number: u64) -> Envelope {
    let mailbox = |text: &str| Mailbox::from_stored(text).expect("an address");
    let recipient = mailbox(&format!("user{number}@domain{}.example", number % DOMAINS));
    Envelope {
        reverse_path: ReversePath::Mailbox(mailbox("bounces@sender.example")),
        parameters: MailParameters::default(),
        recipients: vec![Recipient {
            path: ForwardPath::Mailbox(recipient),
            notify: Notify::UNSPECIFIED,
            orcpt: None,
        }],
    }
}

const TRACE: &[u8] =
    b"Received: from client.example (192.0.2.1) by gateway.example (192.0.2.2:25)\r\n\
    \twith ESMTP id 0aa4drwx00000;\r\n\tThu, 01 Jan 2026 00:00:00 +0000\r\n";

fn body(octets: u64) -> Vec<u8> {
    let line = "Subject: a line of a message that waits for its next hop to come back\r\n";
    line.bytes().cycle().take(octets as usize - 2).chain(*b"\r\n").collect()
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock that was set");
    since.as_millis() as u64
}

// ---- recovering ------------------------------------------------------------------------------

/// The handles of a gateway, and when the first of them was there.
struct Timed<'a> {
    inner: Recovered<'a>,
    started: Instant,
    first_ms: Option<u128>,
}

impl RecoveryVisitor for Timed<'_> {
    fn message(&mut self, message: RecoveredMessage) {
        self.first_ms.get_or_insert_with(|| self.started.elapsed().as_millis());
        self.inner.message(message);
    }

    fn progress(&mut self, progress: Progress) {
        self.inner.progress(progress);
    }
}

/// The disk's own rate, and that of a recovery of all that is on it.
fn compare(spool: &Path) {
    let mut rates = [Vec::new(), Vec::new()];
    for _ in 0..5 {
        rates[0].push(read_by_dd(spool));
        rates[1].push(start(spool));
    }
    rates.iter_mut().for_each(|rates| rates.sort_by(f64::total_cmp));
    let [disk, recovery] = rates.map(|rates| rates[rates.len() / 2]);
    println!(
        "medians: dd {:.0} MB/s, recovery {:.0} MB/s, which is {:.0} %",
        disk / 1e6,
        recovery / 1e6,
        100.0 * recovery / disk
    );
}

/// Reads all segments as fast as the disk gives them; octets a second.
fn read_by_dd(spool: &Path) -> f64 {
    let started = Instant::now();
    let mut octets = 0;
    for entry in fs::read_dir(spool).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.extension().is_some_and(|extension| extension == "seg") {
            octets += fs::metadata(&path).expect("a file").len();
            let input = format!("if={}", path.display());
            let mut dd = Command::new("dd");
            let dd = dd.args([&*input, "of=/dev/null", "bs=4M", "iflag=direct", "status=none"]);
            assert!(dd.status().expect("dd").success());
        }
    }
    octets as f64 / started.elapsed().as_secs_f64()
}

/// Recovers a spool; gives its octets a second.
fn start(spool: &Path) -> f64 {
    if let Err(error) = fs::write("/proc/sys/vm/drop_caches", "3") {
        println!("the page cache stays warm: {error}");
    }
    let text = "hostname = \"gateway.example\"\ndata_dir = \"/nowhere\"\nworkers = 2\n\
        [[listener]]\naddress = \"127.0.0.1:25\"\nservice = \"relay\"\n\
        [[route]]\nrecipient = \"*\"\nto = \"mx\"\n";
    let environment = Environment {
        host_name: "gateway.example".to_owned(),
        cores: 2,
        descriptors: 1024,
        directory: "/nowhere".into(),
        user_exists: |_| true,
    };
    let config = Config::parse(text, Path::new("bench.toml"), &environment);
    let config = config.unwrap_or_else(|report| panic!("{}", report.render(false))).config;
    let sites = Sites::new(&config);
    let before = resident_kib();
    let started = Instant::now();
    let disk = Arc::new(FileDisk::open(spool).expect("a spool"));
    let octets = occupied(&disk);
    let mut timed = Timed { inner: Recovered::new(&config, &sites), started, first_ms: None };
    let stats = Arc::new(SpoolStats::default());
    let recovered = recover(disk, LogOptions::default(), stats, &mut random_generation, &mut timed);
    let (log, report) = recovered.expect("a sound spool");
    let handles = timed.inner.into_handles();
    let seconds = started.elapsed().as_secs_f64();
    let count: usize = handles.iter().map(ExactSizeIterator::len).sum();
    println!(
        "{} messages in {} segments ({} by index), {count} handles: {seconds:.2} s, \
         {:.0} MB/s of segments; first message after {} ms; {} KiB more than before, {} at most",
        report.live_messages,
        report.segments,
        report.indexed,
        octets as f64 / 1e6 / seconds,
        timed.first_ms.unwrap_or(0),
        resident_kib().saturating_sub(before),
        status_kib("VmHWM:"),
    );
    drop((log, handles));
    octets as f64 / seconds
}

/// Octets of segment files.
fn occupied(disk: &FileDisk) -> u64 {
    let files: Vec<FileNo> = disk.files().expect("a directory");
    debug_assert_eq!(SEGMENT_BYTES as usize % BLOCK, 0);
    files.len() as u64 * u64::from(SEGMENT_BYTES)
}

fn resident_kib() -> u64 {
    status_kib("VmRSS:")
}

fn status_kib(field: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}
