//! A strict next hop: it takes nothing that RFC 5321, 2920 or 3030 does not allow, and keeps what
//! it took, octet for octet.
//!
//! What a client does wrong is remembered, answered with 500, and fails the test at the end.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::gateway::wait_until;

/// What the next hop offers and refuses.
#[derive(Debug, Clone, Default)]
pub struct Manners {
    /// Offers CHUNKING.
    pub chunking: bool,
    /// Offers DSN (RFC 3461).
    pub dsn: bool,
    /// Replies to RCPT by address, in place of 250.
    pub replies: HashMap<String, String>,
    /// Hashes a body and forgets it, for large ones.
    pub forgets_bodies: bool,
    /// How far away it is: what a reply takes on its way, while it reads on.
    pub latency: Duration,
    /// Says this in place of its greeting, and hangs up.
    pub greeting: Option<String>,
    /// Says this to every MAIL, and hangs up.
    pub farewell: Option<String>,
    /// How long it takes for each message.
    pub pause: Duration,
    /// A connection may end in the middle of a message.
    pub forgives_ends: bool,
}

/// A next hop that runs until it is dropped.
pub struct Sink {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    manners: Manners,
    taken: Mutex<Vec<Taken>>,
    errors: Mutex<Vec<String>>,
    connections: AtomicUsize,
    /// The verbs of all commands, those of all connections one after the other.
    journal: Mutex<Vec<String>>,
    /// Bodies that have come and whose reply has not gone out, and the most that there ever were.
    under_way: AtomicUsize,
    most_under_way: AtomicUsize,
    /// Replies wait.
    is_held: AtomicBool,
    /// Now, and the most that there were at a time.
    open: AtomicUsize,
    open_most: AtomicUsize,
    /// Answers every MAIL with 451.
    is_busy: AtomicBool,
    is_over: AtomicBool,
}

/// One message that it took.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// The reverse-path.
    pub from: String,
    /// The recipients that it accepted.
    pub to: Vec<String>,
    /// What stood behind the paths of MAIL and RCPT.
    pub parameters: Vec<String>,
    /// The message, without stuffed dots.
    pub message: Vec<u8>,
    /// Its octets, also where the message itself was forgotten.
    pub octets: usize,
    /// CRC-32C of the octets behind the trace header's four lines.
    pub crc32c: u32,
    /// By BDAT; else by DATA.
    pub by_bdat: bool,
}

impl Sink {
    /// Listens on a port of its own.
    pub fn start(manners: Manners) -> Sink {
        Sink::start_at(SocketAddr::from(([127, 0, 0, 1], 0)), manners)
    }

    /// Listens there.
    pub fn start_at(address: SocketAddr, manners: Manners) -> Sink {
        let listener = TcpListener::bind(address).expect("a port");
        let address = listener.local_addr().expect("bound");
        let shared = Arc::new(Shared { manners, ..Shared::default() });
        let all = shared.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                if all.is_over.load(Ordering::Relaxed) {
                    return;
                }
                let stream = stream.expect("a connection");
                all.connections.fetch_add(1, Ordering::Relaxed);
                let shared = all.clone();
                thread::spawn(move || serve(&shared, stream));
            }
        });
        Sink { address, shared }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Connections so far.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::Relaxed)
    }

    /// The most connections that there were at a time.
    pub fn connections_most(&self) -> usize {
        self.shared.open_most.load(Ordering::Relaxed)
    }

    /// From now on every MAIL gets 451, or no more.
    pub fn set_busy(&self, is_busy: bool) {
        self.shared.is_busy.store(is_busy, Ordering::Relaxed);
    }

    /// From now on no reply goes out, or those that waited do.
    pub fn hold(&self, is_held: bool) {
        self.shared.is_held.store(is_held, Ordering::Relaxed);
    }

    /// The most bodies that waited for their replies at a time.
    pub fn most_under_way(&self) -> usize {
        self.shared.most_under_way.load(Ordering::Relaxed)
    }

    /// The verbs of the commands so far.
    pub fn journal(&self) -> Vec<String> {
        self.shared.journal.lock().expect("no session panics").clone()
    }

    /// How many messages it has taken.
    pub fn count(&self) -> usize {
        self.shared.taken.lock().expect("no session panics").len()
    }

    /// Its messages, once there are `count`; more are an error, as is whatever a client did wrong.
    pub fn taken(&self, count: usize) -> Vec<Taken> {
        wait_until(|| (self.count() >= count).then_some(()));
        let taken = self.shared.taken.lock().expect("no session panics").clone();
        self.assert_no_errors();
        assert_eq!(taken.len(), count, "messages at the next hop");
        taken
    }

    /// Its messages so far.
    pub fn taken_so_far(&self) -> Vec<Taken> {
        self.assert_no_errors();
        self.shared.taken.lock().expect("no session panics").clone()
    }

    fn assert_no_errors(&self) {
        let errors = self.shared.errors.lock().expect("no session panics");
        assert!(errors.is_empty(), "the client did wrong: {errors:?}");
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Relaxed);
        // The listener sees it at its next connection.
        let _ = TcpStream::connect(self.address);
    }
}

/// A session, between two commands.
struct Session<'a> {
    shared: &'a Shared,
    input: BufReader<TcpStream>,
    replies: Sender<Reply>,
    greeted: bool,
    from: Option<String>,
    to: Vec<String>,
    parameters: Vec<String>,
    /// What BDAT has brought so far.
    chunks: Option<Body>,
}

/// A reply on its way out.
struct Reply {
    due: Instant,
    text: String,
    /// It answers a body.
    is_verdict: bool,
}

/// Sends each reply when it is due.
fn send(shared: &Shared, replies: &Receiver<Reply>, mut output: TcpStream) {
    for reply in replies {
        std::thread::sleep(reply.due.saturating_duration_since(Instant::now()));
        while shared.is_held.load(Ordering::Relaxed) && !shared.is_over.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(1));
        }
        if reply.is_verdict {
            shared.under_way.fetch_sub(1, Ordering::Relaxed);
        }
        // A client that vanishes may do so.
        if output.write_all(reply.text.as_bytes()).is_err() {
            return;
        }
    }
    let _ = output.shutdown(std::net::Shutdown::Write);
}

/// A body on its way in.
#[derive(Default)]
struct Body {
    kept: Vec<u8>,
    octets: usize,
    crc32c: u32,
    trace_lines_left: usize,
    forgets: bool,
}

fn serve(shared: &Arc<Shared>, stream: TcpStream) {
    let output = stream.try_clone().expect("a descriptor");
    let (replies, to_send) = std::sync::mpsc::channel();
    let all = shared.clone();
    thread::spawn(move || send(&all, &to_send, output));
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a socket option");
    let mut session = Session {
        shared,
        input: BufReader::with_capacity(64 * 1024, stream),
        replies,
        greeted: false,
        from: None,
        to: Vec::new(),
        parameters: Vec::new(),
        chunks: None,
    };
    let ended = session.run();
    match ended {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::InvalidData => {
            shared.errors.lock().expect("no session panics").push(error.to_string());
        }
        // A client that vanishes may do so.
        Err(_) => {}
    }
}

fn wrong(what: impl Into<String>) -> std::io::Error {
    std::io::Error::new(ErrorKind::InvalidData, what.into())
}

/// A connection, until its client may open another in its place.
struct Counted<'a>(&'a Shared);

impl Counted<'_> {
    fn new(shared: &Shared) -> Counted<'_> {
        let open = shared.open.fetch_add(1, Ordering::Relaxed) + 1;
        shared.open_most.fetch_max(open, Ordering::Relaxed);
        Counted(shared)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Session<'_> {
    fn run(&mut self) -> std::io::Result<()> {
        let counted = Counted::new(self.shared);
        if let Some(greeting) = &self.shared.manners.greeting.clone() {
            return self.say(greeting);
        }
        self.say("220 sink.test ESMTP")?;
        while let Some(line) = self.line()? {
            let verb = line.split(' ').next().unwrap_or_default().to_ascii_uppercase();
            self.shared.journal.lock().expect("no session panics").push(verb.clone());
            match verb.as_str() {
                "EHLO" => self.hello()?,
                "MAIL" => match &self.shared.manners.farewell.clone() {
                    Some(farewell) => return self.say(farewell),
                    None => self.mail(&line)?,
                },
                "RCPT" => self.rcpt(&line)?,
                "DATA" => self.data()?,
                "BDAT" => self.bdat(&line)?,
                "RSET" => {
                    self.reset();
                    self.say("250 2.0.0 Ok")?;
                }
                "QUIT" => {
                    drop(counted);
                    return self.say("221 2.0.0 Bye");
                }
                _ => return Err(wrong(format!("unknown command: {line}"))),
            }
        }
        Ok(())
    }

    fn reset(&mut self) {
        (self.from, self.chunks) = (None, None);
        self.to.clear();
        self.parameters.clear();
    }

    /// A whole line; `None` at the end of the connection.
    fn line(&mut self) -> std::io::Result<Option<String>> {
        let mut line = Vec::new();
        self.input.read_until(b'\n', &mut line)?;
        if line.is_empty() {
            return Ok(None);
        }
        let Some(line) = line.strip_suffix(b"\r\n") else {
            return Err(wrong(format!("no CRLF: {:?}", String::from_utf8_lossy(&line))));
        };
        let text = String::from_utf8(line.into()).map_err(|_| wrong("not UTF-8"))?;
        if text.len() > 1_000 || text.contains(['\r', '\0']) {
            return Err(wrong(format!("bad line: {text:?}")));
        }
        Ok(Some(text))
    }

    fn say(&mut self, reply: &str) -> std::io::Result<()> {
        self.reply(reply, false)
    }

    /// Says what becomes of a body.
    fn judge(&mut self, reply: &str) -> std::io::Result<()> {
        self.reply(reply, true)
    }

    fn reply(&mut self, reply: &str, is_verdict: bool) -> std::io::Result<()> {
        let due = Instant::now() + self.shared.manners.latency;
        let text = format!("{reply}\r\n");
        self.replies.send(Reply { due, text, is_verdict }).map_err(|_| ErrorKind::BrokenPipe.into())
    }

    fn body_comes(&self) {
        let now = self.shared.under_way.fetch_add(1, Ordering::Relaxed) + 1;
        self.shared.most_under_way.fetch_max(now, Ordering::Relaxed);
    }

    fn hello(&mut self) -> std::io::Result<()> {
        self.greeted = true;
        let chunking = if self.shared.manners.chunking { "250-CHUNKING\r\n" } else { "" };
        let dsn = if self.shared.manners.dsn { "250-DSN\r\n" } else { "" };
        self.say(&format!(
            "250-sink.test\r\n250-PIPELINING\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n{chunking}{dsn}250 SIZE 0"
        ))
    }

    fn mail(&mut self, line: &str) -> std::io::Result<()> {
        if !self.greeted || self.from.is_some() {
            return Err(wrong("MAIL out of order"));
        }
        let from = path(line, "MAIL FROM:<")?;
        if self.shared.is_busy.load(Ordering::Relaxed) {
            return self.say("451 4.3.2 Busy");
        }
        self.from = Some(from);
        self.parameters.push(parameters(line));
        self.say("250 2.1.0 Ok")
    }

    fn rcpt(&mut self, line: &str) -> std::io::Result<()> {
        let to = path(line, "RCPT TO:<")?;
        if self.from.is_none() {
            return self.say("503 5.5.1 No sender");
        }
        if self.chunks.is_some() {
            return Err(wrong("RCPT between chunks"));
        }
        if let Some(reply) = self.shared.manners.replies.get(&to).cloned() {
            return self.say(&reply);
        }
        self.to.push(to);
        self.parameters.push(parameters(line));
        self.say("250 2.1.5 Ok")
    }

    fn data(&mut self) -> std::io::Result<()> {
        if self.chunks.is_some() {
            return Err(wrong("DATA after BDAT"));
        }
        if self.to.is_empty() {
            return self.say("554 5.5.1 No recipients");
        }
        if !self.input.buffer().is_empty() {
            return Err(wrong("something was sent before the 354"));
        }
        self.say("354 Go on")?;
        self.body_comes();
        let mut body = self.body();
        let mut line = Vec::new();
        loop {
            line.clear();
            self.input.read_until(b'\n', &mut line)?;
            if !line.ends_with(b"\n") && self.shared.manners.forgives_ends {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            if !line.ends_with(b"\r\n") || line[..line.len() - 2].contains(&b'\r') {
                return Err(wrong("a bare newline in DATA, or an end within it"));
            }
            match line.as_slice() {
                b".\r\n" => break,
                [b'.', unstuffed @ ..] => body.add(unstuffed),
                whole => body.add(whole),
            }
        }
        self.take(body, false)
    }

    fn bdat(&mut self, line: &str) -> std::io::Result<()> {
        let mut words = line.split(' ').skip(1);
        let size = words.next().and_then(|word| word.parse::<usize>().ok());
        let size = size.ok_or_else(|| wrong(format!("bad BDAT: {line}")))?;
        let is_last = words.next().is_some_and(|word| word.eq_ignore_ascii_case("LAST"));
        if !self.shared.manners.chunking {
            return Err(wrong("BDAT was not offered"));
        }
        self.body_comes();
        let mut body = self.chunks.take().unwrap_or_else(|| self.body());
        let mut left = size;
        let mut piece = vec![0; 64 * 1024];
        while left > 0 {
            let count = piece.len().min(left);
            self.input.read_exact(&mut piece[..count])?;
            body.add(&piece[..count]);
            left -= count;
        }
        if self.to.is_empty() {
            return self.judge("503 5.5.1 No recipients");
        }
        if is_last {
            return self.take(body, true);
        }
        self.chunks = Some(body);
        self.judge("250 2.0.0 Chunk taken")
    }

    fn body(&self) -> Body {
        let forgets = self.shared.manners.forgets_bodies;
        Body { trace_lines_left: TRACE_LINES, forgets, ..Body::default() }
    }

    fn take(&mut self, body: Body, by_bdat: bool) -> std::io::Result<()> {
        let taken = Taken {
            from: self.from.clone().expect("there are recipients"),
            to: self.to.clone(),
            parameters: self.parameters.clone(),
            message: body.kept,
            octets: body.octets,
            crc32c: body.crc32c,
            by_bdat,
        };
        thread::sleep(self.shared.manners.pause);
        self.shared.taken.lock().expect("no session panics").push(taken);
        self.reset();
        self.judge("250 2.0.0 Taken")
    }
}

impl Body {
    fn add(&mut self, octets: &[u8]) {
        self.octets += octets.len();
        if !self.forgets {
            self.kept.extend_from_slice(octets);
        }
        let mut rest = octets;
        while self.trace_lines_left > 0 {
            let Some(end) = rest.iter().position(|&octet| octet == b'\n') else { return };
            rest = &rest[end + 1..];
            self.trace_lines_left -= 1;
        }
        self.crc32c = crc32c::crc32c_append(self.crc32c, rest);
    }
}

/// The address of `MAIL FROM:<address> ...`.
fn path(line: &str, start: &str) -> std::io::Result<String> {
    let rest = line.get(start.len()..).filter(|_| line[..start.len()].eq_ignore_ascii_case(start));
    let path = rest.and_then(|rest| rest.split_once('>')).map(|(path, _)| path.to_owned());
    path.ok_or_else(|| wrong(format!("bad path: {line}")))
}

/// What stands behind the path.
fn parameters(line: &str) -> String {
    line.split_once('>').map(|(_, rest)| rest.trim().to_owned()).unwrap_or_default()
}

/// Lines of the trace header of a message with one recipient.
const TRACE_LINES: usize = 4;
