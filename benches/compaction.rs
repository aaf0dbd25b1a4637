//! What it costs to keep the disk free of mail that has gone, while other mail stays: a gateway that
//! compacts against the same one that does not, in turns.
//!
//! `cargo bench --bench compaction -- [PAIRS [SECONDS]]` starts the gateway twice for each pair and
//! loads it as fast as twenty sessions can, with messages of 10 KiB of which every eighth is held
//! and the others are discarded.  It tells the rate of either, how much of the disk is in use for
//! an octet that is held, and the median dip.  It fails where the disk in use goes beyond what
//! the compaction promises.
//!
//! Without arguments it does one short pair, to see that it works: too short for a figure.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

/// Small ones, so that a short run fills many.
const SEGMENT_MIB: f64 = 16.0;
/// What a message takes in the log, at the least.
const MESSAGE_OCTETS: f64 = 10_240.0;
/// Octets of the disk for an octet that is waited for; besides, segments that are too young.
const OVERHEAD_MAX: f64 = 2.2;
const SPARE_SEGMENTS: f64 = 6.0;
const COMPACT_AFTER: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let number = |place: usize| words.get(place).map(|word| word.parse().expect("a number"));
    match words.first().map(String::as_str) {
        // It is its own load generator, in another process.
        Some("send") => return mailrace_loadtest::cli::main(),
        None => compare(1, 4),
        Some(_) => compare(number(0).unwrap_or(5), number(1).unwrap_or(20)),
    }
    ExitCode::SUCCESS
}

fn compare(pairs: u64, seconds: u64) {
    let mut dips = Vec::new();
    for pair in 0..pairs {
        // Whatever drifts falls on either as often.
        let (without, with) = if pair % 2 == 0 {
            let without = run("30d", seconds);
            (without, run("1s", seconds))
        } else {
            let with = run("1s", seconds);
            (run("30d", seconds), with)
        };
        let dip = 100.0 * (1.0 - with.rate / without.rate);
        dips.push(dip);
        println!(
            "without: {without}\nwith:    {with}\n         {dip:.1} % slower, {:.2} octets in use for one that is held",
            with.used_octets / with.held_octets,
        );
        with.check();
    }
    dips.sort_by(f64::total_cmp);
    println!("median of {pairs} pairs: {:.1} % slower with compaction", dips[dips.len() / 2]);
}

/// What one gateway did.
struct Run {
    /// Messages a second, from a fourth of the time on.
    rate: f64,
    moved: f64,
    used_octets: f64,
    held_octets: f64,
    /// What came in within the time that a segment is left alone.
    young_octets: f64,
}

impl Run {
    fn check(&self) {
        let most = OVERHEAD_MAX * self.held_octets
            + 2.0 * self.young_octets
            + SPARE_SEGMENTS * SEGMENT_MIB * 1_048_576.0;
        assert!(self.used_octets <= most, "{self}: at most {most:.0} octets are in order");
    }
}

impl std::fmt::Display for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Run { rate, moved, used_octets, held_octets, .. } = self;
        let mib = |octets: &f64| octets / 1_048_576.0;
        let (used, held) = (mib(used_octets), mib(held_octets));
        write!(f, "{rate:.0} messages/s, {moved:.0} moved; {held:.0} MiB held, {used:.0} in use")
    }
}

fn run(compact_after: &str, seconds: u64) -> Run {
    // Beside the build, which is on a disk; a directory for temporary files may not be.
    let place = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary directory");
    let mut gateway = Gateway::start(place.path(), compact_after);
    let time = format!("{seconds}s");
    let mut load = Command::new(std::env::current_exe().expect("this program"))
        .args(["send", "--quiet", "--to", &gateway.smtp, "--sessions", "20", "--pipeline"])
        .args(["--time", &time, "--messages", "1000000000", "--size", "10KiB"])
        .args(["--rcpt", "1 a{1..999}@wait.example", "--rcpt", "7 b{1..999}@go.example"])
        .stdout(Stdio::null())
        .spawn()
        .expect("the load generator");
    std::thread::sleep(Duration::from_secs(seconds) / 4);
    let (started, before) = (Instant::now(), gateway.metrics());
    std::thread::sleep(Duration::from_secs(seconds).mul_f64(0.7));
    let (elapsed, after) = (started.elapsed().as_secs_f64(), gateway.metrics());
    assert!(load.wait().expect("its end").success(), "the load generator failed");
    gateway.stop();
    let rate = (after.accepted - before.accepted) / elapsed;
    Run {
        rate,
        moved: after.moved - before.moved,
        used_octets: after.segments * SEGMENT_MIB * 1_048_576.0,
        held_octets: after.held * MESSAGE_OCTETS,
        young_octets: rate * COMPACT_AFTER.as_secs_f64() * MESSAGE_OCTETS,
    }
}

struct Gateway {
    process: Child,
    smtp: String,
    admin: String,
}

struct Figures {
    accepted: f64,
    moved: f64,
    held: f64,
    segments: f64,
}

impl Gateway {
    fn start(place: &Path, compact_after: &str) -> Gateway {
        let config = place.join("mailrace.toml");
        std::fs::write(&config, configuration(place, compact_after)).expect("the configuration");
        let mut process = Command::new(env!("CARGO_BIN_EXE_mailrace"))
            .args(["run", "--config"])
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the gateway");
        let mut said = BufReader::new(process.stderr.take().expect("it is a pipe"));
        let mut ready = String::new();
        while !ready.starts_with("ready: ") {
            ready.clear();
            let octets = said.read_line(&mut ready).expect("what it says");
            assert!(octets > 0, "the gateway ended before it was ready");
        }
        // Whatever else it says must not fill the pipe.
        std::thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
        let address = |scheme: &str| {
            let (_, rest) = ready.split_once(scheme).expect("an address of the scheme");
            rest.split([' ', '/', '\n', ',']).next().expect("an address").to_owned()
        };
        Gateway { process, smtp: address("smtp://"), admin: address("http://") }
    }

    fn metrics(&self) -> Figures {
        let mut stream = TcpStream::connect(&self.admin).expect("the admin address");
        let request = "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).expect("a request");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("an answer");
        let figure = |name: &str| {
            let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            value.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no {name}"))
        };
        Figures {
            accepted: figure("mailrace_messages_accepted_total"),
            moved: figure("mailrace_spool_messages_moved_total"),
            held: figure("mailrace_queue_entries{state=\"held\"}"),
            segments: figure("mailrace_spool_segments{state=\"used\"}"),
        }
    }

    fn stop(&mut self) {
        self.process.kill().and_then(|()| self.process.wait()).expect("its end");
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn configuration(place: &Path, compact_after: &str) -> String {
    let mut text = String::new();
    let data = place.join("data");
    let written = write!(
        text,
        "hostname = \"gateway.example\"\ndata_dir = {data:?}\n\
         [spool]\nsegment_size = \"{SEGMENT_MIB}MiB\"\ncompact_after = \"{compact_after}\"\n\
         [[listener]]\naddress = \"127.0.0.1:0\"\nservice = \"relay\"\n\
         [[route]]\nrecipient = \"*@wait.example\"\nto = \"hold\"\n\
         [[route]]\nrecipient = \"*\"\nto = \"discard\"\n\
         [log]\nevents = \"/dev/null\"\n[admin]\naddress = \"127.0.0.1:0\"\n"
    );
    written.expect("a string takes all");
    text
}
