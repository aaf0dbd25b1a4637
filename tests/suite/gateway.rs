//! Starts the real binary in a directory of its own, and stops it.
//!
//! Every listener has port 0; the real ports come from the one `ready:` line on standard error.
//! Events are read off standard output as they come.  A gateway that is dropped is killed, and
//! one that told of a panic fails its test: no peer may cause one.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

/// How long something may take that takes milliseconds on an idle machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A `relay` listener that takes mail for everybody and puts it into Maildirs.
pub const INTO_MAILDIRS: &str = r#"
[[listener]]
address = "127.0.0.1:0"
service = "relay"
[[route]]
recipient = "*"
to = "maildir:{dir}/mail"
"#;

/// Lines of `[edge]`: nothing is asked of the DNS of whatever host the tests run on.
pub const CHECKS_WITHOUT_DNS: &str = r#"
checks.helo_unknown = "off"
checks.reverse_missing = "off"
checks.reverse_unconfirmed = "off"
checks.sender_unknown = "off"
checks.sender_null_mx = "off"
"#;

/// The binary under test; a release build can be put in its place where figures count.
pub fn binary() -> PathBuf {
    match std::env::var_os("MAILRACE_TEST_BINARY") {
        Some(path) => path.into(),
        None => env!("CARGO_BIN_EXE_mailrace").into(),
    }
}

/// A gateway that runs, with its directory.
pub struct Gateway {
    home: Arc<TempDir>,
    wrapper: Vec<String>,
    process: Process,
    listeners: Vec<SocketAddr>,
    admin: SocketAddr,
}

struct Process {
    child: Child,
    events: Arc<Lines>,
    errors: Arc<Lines>,
    readers: Vec<JoinHandle<()>>,
}

/// The lines of a stream so far, and a bell for the next one.
#[derive(Default)]
struct Lines {
    lines: Mutex<(Vec<String>, IsOver)>,
    more: Condvar,
}

type IsOver = bool;

impl Gateway {
    /// Starts a gateway with this configuration, in which `{dir}` stands for a new directory.
    /// Host name, data directory and admin address need not be given.
    pub fn start(config: &str) -> Gateway {
        Gateway::start_under(&[], config)
    }

    /// The same under a command that ends by executing its arguments.
    pub fn start_under(wrapper: &[&str], config: &str) -> Gateway {
        let home = Arc::new(TempDir::new().expect("a temporary directory"));
        let in_home = |word: &&str| within(home.path(), word);
        let wrapper = wrapper.iter().map(in_home).collect();
        Gateway::start_in(home, wrapper, config)
    }

    fn start_in(home: Arc<TempDir>, wrapper: Vec<String>, config: &str) -> Gateway {
        Gateway::try_start_in(home, wrapper, config)
            .unwrap_or_else(|said| panic!("it did not get ready:\n{said}"))
    }

    fn try_start_in(
        home: Arc<TempDir>,
        wrapper: Vec<String>,
        config: &str,
    ) -> Result<Gateway, String> {
        let process = Process::start(home.path(), &wrapper, config);
        let ready = process.wait_for_ready().ok_or_else(|| process.errors.text())?;
        let (listeners, admin) = addresses(&ready);
        Ok(Gateway { home, wrapper, process, listeners, admin })
    }

    /// Starts on a directory that others look into too, or gives what it said instead of `ready`.
    pub fn start_on(home: &Arc<TempDir>, config: &str) -> Result<Gateway, String> {
        Gateway::try_start_in(home.clone(), Vec::new(), config)
    }

    /// The same, but it is killed once `wait` is over, ready or not; `before_end` is run as in
    /// [`Gateway::kill9_and`].
    pub fn start_and_kill(
        home: &Path,
        config: &str,
        wait: impl FnOnce(),
        before_end: impl FnOnce(),
    ) {
        let mut process = Process::start(home, &[], config);
        wait();
        process.kill9_and(before_end);
    }

    /// Runs the binary with a configuration that it must refuse, or cannot run with; gives its
    /// exit code and what it said.
    pub fn fail_to_start(home: &Path, config: &str) -> (i32, String) {
        let mut process = Process::start(home, &[], config);
        let status = process.wait(PATIENCE).expect("it must end by itself");
        (status.code().expect("an exit code, not a signal"), process.errors.text())
    }

    /// Starts again on the same directory, with another configuration.
    pub fn restart(mut self, config: &str) -> Gateway {
        assert!(self.process.wait(Duration::ZERO).is_some(), "end it first");
        let (home, wrapper) = (self.home.clone(), self.wrapper.clone());
        drop(self);
        Gateway::start_in(home, wrapper, config)
    }

    /// Where the listener with this index can be reached.
    pub fn smtp(&self, index: usize) -> SocketAddr {
        self.listeners[index]
    }

    /// Where the admin interface can be reached.
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// Its directory, `{dir}` of the configuration.
    pub fn dir(&self) -> &Path {
        self.home.path()
    }

    /// The file that it was configured with.
    pub fn config_file(&self) -> PathBuf {
        self.dir().join("mailrace.toml")
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.process.child.id()
    }

    /// The first event, of all so far and those to come, for which `wanted` holds.
    pub fn wait_event(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let found = self.process.events.wait_for(PATIENCE, |line| {
            let event: Value = serde_json::from_str(line).expect("events are JSON");
            wanted(&event).then_some(event)
        });
        found.unwrap_or_else(|| panic!("no event: {what}\n{}", self.story()))
    }

    /// The events so far.
    pub fn events(&self) -> Vec<Value> {
        let lines = self.process.events.lock().0.clone();
        lines.iter().map(|line| serde_json::from_str(line).expect("events are JSON")).collect()
    }

    /// Waits until `done` gives something, looking again and again.
    pub fn wait_until<T>(&self, what: &str, done: impl FnMut() -> Option<T>) -> T {
        wait_until(done).unwrap_or_else(|| panic!("did not come about: {what}\n{}", self.story()))
    }

    /// The messages in a Maildir below `{dir}/mail`, once there are `count`.
    pub fn maildir(&self, domain: &str, local: &str, count: usize) -> Vec<Vec<u8>> {
        let new = self.dir().join("mail").join(domain).join(local).join("new");
        let found = self.wait_until(&format!("{count} files in {}", new.display()), || {
            let files = files_in(&new);
            (files.len() >= count).then_some(files)
        });
        assert_eq!(found.len(), count, "files in {}", new.display());
        found.iter().map(|file| std::fs::read(file).expect("a delivered message")).collect()
    }

    /// Ends it as a crash would.
    pub fn kill9(&mut self) {
        self.kill9_and(|| {});
    }

    /// The same, for a process that may hang in a disk that does not answer until `before_end`.
    pub fn kill9_and(&mut self, before_end: impl FnOnce()) {
        let status = self.process.kill9_and(before_end);
        assert_eq!(status.signal(), Some(9), "it ended before\n{}", self.story());
    }

    /// Asks it to stop.
    pub fn ask_to_stop(&self) {
        self.signal(Signal::TERM);
    }

    /// Waits for its end, which must come in time and be a good one.
    pub fn wait_for_end(&mut self, patience: Duration) -> Duration {
        let started = Instant::now();
        let status = self.process.wait(patience);
        let status = status.unwrap_or_else(|| panic!("it goes on\n{}", self.story()));
        assert_eq!(status.code(), Some(0), "{status}\n{}", self.story());
        started.elapsed()
    }

    /// Stops it; nobody is connected, so it must be quick.
    pub fn terminate(&mut self) {
        self.ask_to_stop();
        self.wait_for_end(Duration::from_secs(10));
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.pid().cast_signed()).expect("a process id");
        kill_process(pid, signal).expect("it runs");
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.process.wait(Duration::ZERO).is_none()
    }

    /// Bytes of memory of its own that are in use (`Rss` without what is shared with files).
    pub fn memory_bytes(&self) -> u64 {
        self.status_bytes("RssAnon:")
    }

    /// The most of [`Gateway::memory_bytes`] while `work` was done, looked at every few
    /// milliseconds.
    pub fn peak_while(&self, work: impl FnOnce()) -> u64 {
        let is_done = AtomicBool::new(false);
        thread::scope(|scope| {
            let watcher = scope.spawn(|| {
                let mut peak = 0;
                while !is_done.load(Ordering::Relaxed) {
                    peak = self.memory_bytes().max(peak);
                    thread::sleep(Duration::from_millis(3));
                }
                peak
            });
            // Also after a panic, or the watcher would never end.
            let done = SetOnDrop(&is_done);
            work();
            drop(done);
            watcher.join().expect("watching does not fail")
        })
    }

    fn status_bytes(&self, field: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()));
        let status = status.expect("the process runs");
        let line = status.lines().find_map(|line| line.strip_prefix(field));
        let kib = line.and_then(|rest| rest.split_whitespace().next()).expect("a figure");
        kib.parse::<u64>().expect("a number of KiB") * 1024
    }

    /// Runs a command of the binary, with the configuration that this gateway has.
    pub fn command(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(binary());
        command.args(arguments).arg("--config").arg(self.config_file());
        command.output().expect("the binary is there")
    }

    /// What such a command prints; it must succeed.
    #[track_caller]
    pub fn said(&self, arguments: &[&str]) -> String {
        let Output { status, stdout, stderr } = self.command(arguments);
        let text = String::from_utf8(stdout).expect("text");
        let errors = String::from_utf8_lossy(&stderr);
        assert!(status.success(), "{arguments:?}: {text}{errors}{}", self.errors());
        text
    }

    /// The same with `--json`.
    #[track_caller]
    pub fn said_json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.said(&[arguments, &["--json"]].concat())).expect("JSON")
    }

    /// What it has said on standard error.
    pub fn errors(&self) -> String {
        self.process.errors.text()
    }

    /// What is known of it, for a failure's message.
    fn story(&self) -> String {
        let events = self.process.events.lock();
        let mut story = String::from("--- its last events:\n");
        for line in events.0.iter().rev().take(20).rev() {
            let _ = writeln!(story, "{line}");
        }
        story + "--- standard error:\n" + &self.process.errors.text()
    }
}

impl Process {
    fn start(home: &Path, wrapper: &[String], config: &str) -> Process {
        let file = home.join("mailrace.toml");
        std::fs::write(&file, complete(config, home)).expect("a configuration file");
        let mut command = match wrapper {
            [] => Command::new(binary()),
            [first, rest @ ..] => {
                let mut command = Command::new(first);
                command.args(rest).arg(binary());
                command
            }
        };
        command.arg("run").arg("--config").arg(&file).current_dir(home);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the binary starts");
        let (events, errors) = (Arc::<Lines>::default(), Arc::<Lines>::default());
        let readers = vec![
            read_lines(child.stdout.take().expect("piped"), events.clone()),
            read_lines(child.stderr.take().expect("piped"), errors.clone()),
        ];
        Process { child, events, errors, readers }
    }

    fn wait_for_ready(&self) -> Option<String> {
        self.errors.wait_for(PATIENCE, |line| line.strip_prefix("ready: ").map(str::to_owned))
    }

    fn kill9_and(&mut self, before_end: impl FnOnce()) -> ExitStatus {
        self.child.kill().expect("a child of ours");
        before_end();
        self.wait(PATIENCE).expect("nothing outlives this signal")
    }

    /// Its exit status, if it ends in time; then all that it said has been read.
    fn wait(&mut self, patience: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = self.child.try_wait().expect("a child of ours") {
                for reader in self.readers.drain(..) {
                    reader.join().expect("reading lines does not fail");
                }
                return Some(status);
            }
            if Instant::now() >= deadline {
                return None;
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}

struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.wait(PATIENCE);
        let said = self.errors.text();
        let has_panicked = said.contains("panicked") || said.contains("bug of ours");
        if has_panicked && !thread::panicking() {
            panic!("the gateway panicked:\n{said}");
        }
    }
}

impl Lines {
    fn lock(&self) -> MutexGuard<'_, (Vec<String>, IsOver)> {
        self.lines.lock().expect("no reader panics")
    }

    fn text(&self) -> String {
        self.lock().0.join("\n")
    }

    /// What `wanted` makes of the first line that it takes, past or to come.
    fn wait_for<T>(&self, patience: Duration, wanted: impl Fn(&str) -> Option<T>) -> Option<T> {
        let deadline = Instant::now() + patience;
        let mut seen = 0;
        let mut lines = self.lock();
        loop {
            let found = lines.0[seen..].iter().find_map(|line| wanted(line));
            let left = deadline.saturating_duration_since(Instant::now());
            if found.is_some() || lines.1 || left.is_zero() {
                return found;
            }
            seen = lines.0.len();
            lines = self.more.wait_timeout(lines, left).expect("no reader panics").0;
        }
    }
}

fn read_lines(stream: impl Read + Send + 'static, to: Arc<Lines>) -> JoinHandle<()> {
    thread::spawn(move || {
        for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
            to.lock().0.push(String::from_utf8_lossy(&line).into_owned());
            to.more.notify_all();
        }
        to.lock().1 = true;
        to.more.notify_all();
    })
}

/// A configuration with what every test would have to say otherwise.
fn complete(config: &str, home: &Path) -> String {
    let mut whole = String::new();
    for (key, value) in [("hostname", "gateway.test"), ("data_dir", "{dir}/data")] {
        if !config.lines().any(|line| line.starts_with(key)) {
            let _ = writeln!(whole, "{key} = \"{value}\"");
        }
    }
    whole += config;
    if !config.contains("[admin]") {
        whole += "\n[admin]\naddress = \"127.0.0.1:0\"\n";
    }
    within(home, &whole)
}

/// The text with `{dir}` replaced.
fn within(home: &Path, text: &str) -> String {
    text.replace("{dir}", home.to_str().expect("temporary paths are ASCII"))
}

/// The command that runs `command` with mounts of its own.  It needs root, or a system that lets
/// users have namespaces.
pub fn unshared(command: &[&str]) -> Vec<String> {
    let mut words = vec!["unshare", "--mount"];
    if !rustix::process::geteuid().is_root() {
        words.push("--map-root-user");
    }
    words.extend(command);
    words.into_iter().map(str::to_owned).collect()
}

/// The addresses of the `ready:` line.
fn addresses(ready: &str) -> (Vec<SocketAddr>, SocketAddr) {
    let address = |word: &str, scheme: &str| {
        word.strip_prefix(scheme).map(|rest| rest.parse().expect("an address"))
    };
    let listeners = ready.split(' ').filter_map(|word| address(word, "smtp://")).collect();
    let admin = ready.split(' ').find_map(|word| address(word, "http://"));
    (listeners, admin.expect("the admin address"))
}

/// The files of a directory, sorted by name; none if it is not there.
pub fn files_in(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("readable").path()).collect();
    files.sort();
    files
}

/// Looks until `done` gives something, or [`PATIENCE`] is over.
pub fn wait_until<T>(mut done: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let found = done();
        if found.is_some() || Instant::now() >= deadline {
            return found;
        }
        thread::sleep(Duration::from_millis(10));
    }
}
