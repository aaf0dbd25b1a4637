//! Plays every dialogue of `tests/dialogues` against the pure server, however its octets are cut,
//! and against the program over TCP.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use mailrace::message::BodyFlags;
use mailrace::smtp::body::write_unstuffed;

use crate::dialogue::format::Dialogue;
use crate::dialogue::judge;
use crate::dialogue::machine::Machine;
use crate::dialogue::settings::Settings;
use crate::dialogue::tcp::play_over_tcp;

/// Runs a check over all dialogues and shows everything that is wrong at once.
fn for_each(check: impl Fn(&Dialogue) -> Result<(), String>) {
    let wrong: Vec<String> =
        Dialogue::all().iter().filter_map(|dialogue| check(dialogue).err()).collect();
    assert!(wrong.is_empty(), "{} dialogues fail:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn every_dialogue_names_its_danger() {
    let dialogues = Dialogue::all();
    assert!(dialogues.len() >= 50, "only {} dialogues", dialogues.len());
    let dangers: BTreeSet<&str> = dialogues.iter().map(|d| d.danger.as_str()).collect();
    assert!(dangers.iter().all(|danger| danger.len() > 20), "a danger is told in a sentence");
    assert_eq!(dangers.len(), dialogues.len(), "two dialogues guard against the same");
}

#[test]
fn every_dialogue_holds() {
    for_each(|dialogue| judge::play(dialogue).map(|_| ()));
}

/// As if the client never waited: RFC 2920 taken further than it allows.
#[test]
fn one_write_of_everything_changes_nothing() {
    for_each(|dialogue| {
        let expected = judge::play(dialogue)?;
        judge::play_cut(dialogue, std::iter::empty(), &expected)
            .map_err(|wrong| format!("{}: {wrong}", dialogue.name))
    });
}

#[test]
fn a_read_for_every_octet_changes_nothing() {
    for_each(|dialogue| {
        let expected = judge::play(dialogue)?;
        judge::play_cut(dialogue, std::iter::repeat_n(1, dialogue.client_octets().len()), &expected)
            .map_err(|wrong| format!("{}: {wrong}", dialogue.name))
    });
}

#[test]
fn random_cuts_change_nothing() {
    let seed = std::env::var("MAILRACE_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    let mut random = fastrand::Rng::with_seed(seed);
    let cuts: Vec<Vec<usize>> = (0..CUTS)
        .map(|round| (0..CUT_PIECES).map(|_| random.usize(0..4 << round)).collect())
        .collect();
    for_each(|dialogue| {
        let expected = judge::play(dialogue)?;
        cuts.iter().try_for_each(|cut| {
            judge::play_cut(dialogue, cut.iter().copied(), &expected)
                .map_err(|wrong| format!("{}: MAILRACE_SEED={seed}: {wrong}", dialogue.name))
        })
    });
}

/// The player over TCP, tried on the pure server behind a socket.
#[test]
fn the_pure_server_holds_over_tcp() {
    for_each(|dialogue| {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("there is a free port");
        let address = listener.local_addr().expect("it is bound");
        let settings = Settings::of(dialogue);
        let server = thread::spawn(move || serve_one(&listener, &settings));
        let played = play_over_tcp(address, dialogue);
        server.join().expect("the server ends with its client");
        played
    });
}

/// Serves one client and reads on to its end, so that its last reply is not lost to a reset.
fn serve_one(listener: &TcpListener, settings: &Settings) {
    let (mut stream, _) = listener.accept().expect("a client comes");
    let mut machine = Machine::new(settings);
    let mut buffer = [0; 8 * 1024];
    let mut sent = 0;
    loop {
        // A client that has gone no longer wants its replies.
        let _ = stream.write_all(&machine.replies[sent..]);
        sent = machine.replies.len();
        if machine.closed {
            let _ = stream.shutdown(Shutdown::Write);
        }
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => return,
            Ok(read) => machine.receive(&buffer[..read]),
        }
    }
}

#[test]
fn the_program_holds_to_every_dialogue() {
    let mut sets: BTreeMap<Settings, Vec<Dialogue>> = BTreeMap::new();
    for dialogue in Dialogue::all() {
        let settings = Settings::of(&dialogue);
        // Over TCP the client is on this host and nowhere else.
        if settings.client.is_none() {
            sets.entry(settings).or_default().push(dialogue);
        }
    }
    for (settings, dialogues) in &sets {
        let gateway = Gateway::start(settings);
        let wrong: Vec<String> =
            dialogues.iter().filter_map(|dialogue| gateway.play(dialogue).err()).collect();
        assert!(wrong.is_empty(), "{settings:?}:\n{}", wrong.join("\n"));
        thread::sleep(Duration::from_millis(300));
        assert_eq!(gateway.delivered().len(), 0, "more was delivered than was accepted");
    }
}

/// The program, with a directory of its own; it ends with this value.
struct Gateway {
    program: Child,
    address: SocketAddr,
    directory: tempfile::TempDir,
}

impl Gateway {
    fn start(settings: &Settings) -> Gateway {
        let directory = tempfile::tempdir().expect("a directory");
        let (smtp, admin) = (free_port(), free_port());
        let file = directory.path().join("mailrace.toml");
        fs::write(&file, settings.toml(directory.path(), smtp, admin)).expect("it can be written");
        settings.prepare(directory.path());
        let program = Command::new(env!("CARGO_BIN_EXE_mailrace"))
            .arg("run")
            .arg("--config")
            .arg(&file)
            .stdout(Stdio::null())
            .spawn()
            .expect("the program starts");
        let address = SocketAddr::from(([127, 0, 0, 1], smtp));
        let gateway = Gateway { program, address, directory };
        wait_until(|| TcpStream::connect(address).is_ok(), "the gateway accepts");
        gateway
    }

    /// Plays a dialogue and holds what was delivered against what the pure server accepts.
    fn play(&self, dialogue: &Dialogue) -> Result<(), String> {
        play_over_tcp(self.address, dialogue)?;
        let mut expected = expected_files(&judge::play(dialogue)?);
        wait_until(|| self.delivered().len() >= expected.len(), "everything is delivered");
        let mut files: Vec<(PathBuf, Vec<u8>)> = self.delivered();
        // The longest first, for a short body may be the end of a long one.
        expected.sort_by_key(|body| std::cmp::Reverse(body.len()));
        for body in expected {
            let place = files.iter().position(|(_, text)| text.ends_with(&body));
            let (file, _) =
                files.remove(place.ok_or(format!("{}: a body is lost", dialogue.name))?);
            fs::remove_file(file).expect("it can be removed");
        }
        Ok(())
    }

    /// The messages in all Maildirs but notices of success, newlines as LF.
    fn delivered(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let mut files = Vec::new();
        let mut directories = vec![self.directory.path().join("mail")];
        while let Some(directory) = directories.pop() {
            let Ok(entries) = fs::read_dir(&directory) else { continue };
            for path in entries.map(|entry| entry.expect("it can be read").path()) {
                if path.is_dir() {
                    directories.push(path);
                } else if is_in_new(&path) {
                    let text = without_cr(&fs::read(&path).expect("it can be read"));
                    if memchr::memmem::find(&text, b"multipart/report").is_none() {
                        files.push((path, text));
                    }
                }
            }
        }
        files
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.program.kill();
        let _ = self.program.wait();
    }
}

/// A file for each recipient: the body as it was meant, newlines as LF.
fn expected_files(session: &Machine) -> Vec<Vec<u8>> {
    let mut files = Vec::new();
    for message in &session.messages {
        let mut body = Vec::new();
        match message.summary.flags.contains(BodyFlags::DATA) {
            true => write_unstuffed(&message.body, &mut body),
            false => body.clone_from(&message.body),
        }
        let copies = message.envelope.recipients.len();
        files.extend(std::iter::repeat_n(without_cr(&body), copies));
    }
    files
}

fn is_in_new(path: &Path) -> bool {
    path.parent().is_some_and(|parent| parent.ends_with("new"))
}

fn without_cr(text: &[u8]) -> Vec<u8> {
    text.iter().copied().filter(|&octet| octet != b'\r').collect()
}

/// A port that nobody listens on just now.
fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("there is a free port");
    listener.local_addr().expect("it is bound").port()
}

fn wait_until(condition: impl Fn() -> bool, what: &str) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(20), "in vain: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Random ways to cut each dialogue, from small pieces to large ones.
const CUTS: usize = 10;
/// Pieces of each; the rest of a long dialogue comes in one.
const CUT_PIECES: usize = 3_000;
