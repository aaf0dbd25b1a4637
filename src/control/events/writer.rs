//! The thread that writes events, and what becomes of a write that fails.
//!
//! A slow reader makes the writer slow and the queue to it full; the workers then wait (see the
//! parent).  A write that *fails* is tried again every second, or as soon as the file is opened
//! anew; while the queue is more than half full meanwhile, the oldest block is given up and
//! counted, because mail must not stop for want of a log of it.  Lines are never torn: one that
//! was cut short goes on where it stopped, starts again in a new file, or is ended.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam::channel::{self, Receiver, Sender};
use rustix::event::{PollFd, PollFlags, Timespec};

use super::{EventBuffer, EventCounters, Link};
use crate::limits;

/// Blocks in the queue at most; its octets are bounded by [`limits::EVENT_QUEUE`].
const QUEUE_BLOCKS: usize = 1_024;
/// Empty blocks that wait to be filled again.
const SPARE_BLOCKS: usize = 64;
/// Commands that wait; a second reopening before the first adds nothing.
const COMMANDS: usize = 4;
/// How long after a failure the write is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// How often the queue is looked at meanwhile.
const LOOK: Duration = Duration::from_millis(50);
/// How often a failure that lasts is told.
const WARN: Duration = Duration::from_secs(60);
/// Owner and group only: events hold addresses of mail.
const FILE_MODE: u32 = 0o640;

/// Where events go.
#[derive(Debug)]
pub enum EventTarget {
    /// Standard output.
    Stdout,
    /// A file, made if it is not there, appended to, and opened again by [`EventLog::reopen`].
    File(PathBuf),
    /// A descriptor, such as a pipe's.
    Descriptor(OwnedFd),
}

/// The event log: the thread that writes, as its owner sees it.
#[derive(Debug)]
pub struct EventLog {
    link: Link,
    commands: Sender<Command>,
    /// Gone when the thread is.
    done: Receiver<()>,
    thread: JoinHandle<()>,
}

/// The events that were still in the queue at the deadline of [`EventLog::close`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{octets} octets of events were not written in time")]
pub struct NotDrained {
    /// Their octets.
    pub octets: usize,
}

#[derive(Debug)]
enum Command {
    Reopen,
    Close,
}

impl EventLog {
    /// Opens the target and starts the thread.
    ///
    /// # Errors
    /// The file cannot be opened, or no thread can be started.
    pub fn start(target: EventTarget) -> io::Result<EventLog> {
        let sink = Sink::open(target)?;
        let (full, blocks) = channel::bounded(QUEUE_BLOCKS);
        let (used, spare) = channel::bounded(SPARE_BLOCKS);
        let (commands, commanded) = channel::bounded(COMMANDS);
        let (running, done) = channel::bounded(0);
        let counters = Arc::new(EventCounters::default());
        let mut writer = Writer {
            sink,
            blocks,
            used,
            commands: commanded,
            counters: counters.clone(),
            failing: None,
            is_torn: false,
            is_closing: false,
        };
        let thread = thread::Builder::new().name("events".to_owned()).spawn(move || {
            writer.run();
            drop(running);
        })?;
        Ok(EventLog { link: Link { full, spare, counters }, commands, done, thread })
    }

    /// A buffer for one more thread.
    pub fn buffer(&self) -> EventBuffer {
        EventBuffer::new(self.link.clone())
    }

    /// Opens the file anew, for a rotation that has renamed it.  If that fails the old one stays
    /// in use.  Returns at once.
    pub fn reopen(&self) {
        // A full queue of commands holds a reopening already.
        let _ = self.commands.try_send(Command::Reopen);
    }

    /// What went wrong so far, for the metrics.
    pub fn counters(&self) -> Arc<EventCounters> {
        self.link.counters.clone()
    }

    /// Writes what has been handed over and ends.  Buffers should be gone by now: what they hand
    /// over later is not written.
    ///
    /// # Errors
    /// The deadline passed first, as when nobody reads the pipe; the thread is then left behind.
    pub fn close(self, deadline: Instant) -> Result<(), NotDrained> {
        let late = || NotDrained { octets: self.link.counters.figures().queued_bytes as usize };
        self.commands.send_deadline(Command::Close, deadline).map_err(|_| late())?;
        match self.done.recv_deadline(deadline) {
            Err(channel::RecvTimeoutError::Timeout) => Err(late()),
            // The thread is past its last write; a panic in it has been told by the hook.
            Ok(()) | Err(channel::RecvTimeoutError::Disconnected) => {
                let _ = self.thread.join();
                Ok(())
            }
        }
    }
}

/// An open target.
struct Sink {
    file: File,
    /// What it is opened by, if it can be opened again.
    path: Option<PathBuf>,
}

impl Sink {
    fn open(target: EventTarget) -> io::Result<Sink> {
        Ok(match target {
            // A descriptor of its own: `io::Stdout` would cut blocks into lines.
            EventTarget::Stdout => {
                Sink { file: io::stdout().as_fd().try_clone_to_owned()?.into(), path: None }
            }
            EventTarget::File(path) => Sink { file: append(&path)?, path: Some(path) },
            EventTarget::Descriptor(descriptor) => Sink { file: descriptor.into(), path: None },
        })
    }
}

fn append(path: &PathBuf) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(FILE_MODE).open(path)
}

struct Writer {
    sink: Sink,
    blocks: Receiver<Vec<u8>>,
    used: Sender<Vec<u8>>,
    commands: Receiver<Command>,
    counters: Arc<EventCounters>,
    failing: Option<Failing>,
    /// The last line that was written has no end.
    is_torn: bool,
    is_closing: bool,
}

/// Writes that fail, since when and how often.
struct Failing {
    told: Instant,
    lost_before: u64,
}

/// What to do after a write that failed.
enum AfterFailure {
    /// Go on where it stopped.
    Again,
    /// Begin its line again: the file is another one.
    AgainFromLine,
    GiveUp,
}

impl Writer {
    fn run(&mut self) {
        while !self.is_closing {
            crossbeam::select! {
                recv(self.blocks) -> block => match block {
                    Ok(block) => self.write_block(block),
                    Err(channel::RecvError) => return,
                },
                recv(self.commands) -> command => match command {
                    Ok(Command::Reopen) => { self.reopen(); }
                    Ok(Command::Close) | Err(channel::RecvError) => self.is_closing = true,
                },
            }
        }
        while let Ok(block) = self.blocks.try_recv() {
            self.write_block(block);
        }
    }

    fn write_block(&mut self, mut block: Vec<u8>) {
        let octets = block.len();
        let events = lines(&block);
        let prefix = usize::from(self.is_torn);
        if self.is_torn {
            block.insert(0, b'\n');
        }
        let written = self.write_all(&block);
        let lost = lines(&block[written.max(prefix)..]);
        self.is_torn = match written {
            0 => self.is_torn,
            _ => block[written - 1] != b'\n',
        };
        self.counters.written.fetch_add(events - lost, Ordering::Relaxed);
        self.counters.lost.fetch_add(lost, Ordering::Relaxed);
        self.counters.queued_octets.fetch_sub(octets, Ordering::Relaxed);
        block.clear();
        if block.capacity() <= 2 * limits::EVENT_BLOCK {
            // With enough spare ones, this one is freed.
            let _ = self.used.try_send(block);
        }
    }

    /// Writes the block, whatever it takes short of losing mail; returns how far it came.
    fn write_all(&mut self, block: &[u8]) -> usize {
        let mut written = 0;
        while written < block.len() {
            let result = match self.sink.file.write(&block[written..]) {
                Ok(0) => Err(ErrorKind::WriteZero.into()),
                result => result,
            };
            match result {
                Ok(octets) => {
                    written += octets;
                    self.recovered();
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.wait_until_writable(),
                Err(error) => match self.after_failure(&error) {
                    AfterFailure::Again => {}
                    AfterFailure::AgainFromLine => written = line_start(block, written),
                    AfterFailure::GiveUp => break,
                },
            }
        }
        written
    }

    /// For a pipe that somebody else has made non-blocking.
    fn wait_until_writable(&self) {
        let mut pipe = [PollFd::new(&self.sink.file, PollFlags::OUT)];
        let second = Timespec { tv_sec: 1, tv_nsec: 0 };
        // Whatever it says, the next write tells more.
        let _ = rustix::event::poll(&mut pipe, Some(&second));
    }

    /// Waits until the write should be tried again, or given up.
    fn after_failure(&mut self, error: &io::Error) -> AfterFailure {
        self.failed("events cannot be written", error);
        let retry = Instant::now() + RETRY;
        loop {
            let queued = self.counters.queued_octets.load(Ordering::Relaxed);
            if self.is_closing || queued > limits::EVENT_QUEUE / 2 {
                return AfterFailure::GiveUp;
            }
            if Instant::now() >= retry {
                return AfterFailure::Again;
            }
            match self.commands.recv_timeout(LOOK) {
                Ok(Command::Reopen) if self.reopen() => return AfterFailure::AgainFromLine,
                Ok(Command::Reopen) | Err(channel::RecvTimeoutError::Timeout) => {}
                Ok(Command::Close) | Err(channel::RecvTimeoutError::Disconnected) => {
                    self.is_closing = true;
                }
            }
        }
    }

    /// Whether the file is another one now.
    fn reopen(&mut self) -> bool {
        let Some(path) = &self.sink.path else { return false };
        match append(path) {
            Ok(file) => {
                self.sink.file = file;
                self.is_torn = false;
                true
            }
            Err(error) => {
                self.failed("the event log cannot be opened again", &error);
                false
            }
        }
    }

    fn failed(&mut self, what: &str, error: &io::Error) {
        self.counters.failures.fetch_add(1, Ordering::Relaxed);
        let lost = self.counters.lost.load(Ordering::Relaxed);
        let lost_before = match &self.failing {
            Some(failing) if failing.told.elapsed() < WARN => return,
            Some(failing) => failing.lost_before,
            None => lost,
        };
        tracing::warn!(%error, lost = lost - lost_before, "{what}");
        self.failing = Some(Failing { told: Instant::now(), lost_before });
    }

    fn recovered(&mut self) {
        if let Some(failing) = self.failing.take() {
            let lost = self.counters.lost.load(Ordering::Relaxed) - failing.lost_before;
            tracing::info!(lost, "events are written again");
        }
    }
}

fn lines(text: &[u8]) -> u64 {
    memchr::memchr_iter(b'\n', text).count() as u64
}

/// Where the line begins that `at` is in; the empty one that ends a torn line is passed over.
fn line_start(text: &[u8], at: usize) -> usize {
    let start = memchr::memrchr(b'\n', &text[..at]).map_or(0, |end| end + 1);
    start + usize::from(text.get(start) == Some(&b'\n'))
}

#[cfg(test)]
#[path = "writer_tests.rs"]
mod tests;
