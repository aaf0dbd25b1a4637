//! One dialogue as it is played: the peer's side of its connections, and the claims about what
//! the gateway makes of it.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use socket2::SockRef;

use super::books::Books;
use super::format::{Action, Body, Dialogue, Telling, Waiting};
use crate::client::Client;
use crate::dialogue::judge::matches;
use crate::gateway::Gateway;

/// A gateway and its books.
pub struct Stage<'a> {
    pub gateway: &'a Gateway,
    pub books: &'a Books,
}

/// A dialogue under way.
pub struct Play<'a> {
    stage: &'a Stage<'a>,
    dialogue: &'a Dialogue,
    listener: &'a TcpListener,
    /// The site's name: the peer's address.
    site: String,
    connections: BTreeMap<usize, Connection>,
    /// Which of them the lines are about.
    on: usize,
    /// Events that have been claimed.
    told: usize,
    /// Notices that have been claimed.
    notices: usize,
}

/// A connection that the gateway has made.
struct Connection {
    stream: TcpStream,
    /// What has come and was not looked at.
    input: Vec<u8>,
    /// What the last BDAT announced.
    chunk_octets: usize,
}

/// Plays a dialogue.
///
/// # Errors
/// The line that does not hold, and what happened instead.
pub fn play(stage: &Stage<'_>, dialogue: &Dialogue, listener: &TcpListener) -> Result<(), String> {
    let address = listener.local_addr().expect("bound");
    let mut play = Play {
        stage,
        dialogue,
        listener,
        site: format!("smtp://{address}"),
        connections: BTreeMap::new(),
        on: 1,
        told: 0,
        notices: 0,
    };
    listener.set_nonblocking(true).expect("a socket option");
    play.submit();
    for step in &dialogue.steps {
        play.step(&step.action).map_err(|wrong| {
            let after = stage.books.told(&play.site, play.told);
            format!("{}.txt:{}: {wrong}; not claimed: {after:?}", dialogue.name, step.line)
        })?;
    }
    Ok(())
}

impl Play<'_> {
    /// Gives the gateway a message.
    fn submit(&self) {
        let settings = &self.dialogue.settings;
        let mut client = Client::hello(self.stage.gateway.smtp(0));
        let name = &self.dialogue.name;
        client.command(&format!("MAIL FROM:<{name}@home.test>{}", settings.mail)).expect("250");
        for to in &settings.to {
            let domain = domain(name);
            client.command(&format!("RCPT TO:<{to}@{domain}>{}", settings.rcpt)).expect("250");
        }
        client.data(&message(settings.body)).message_id();
    }

    fn step(&mut self, action: &Action) -> Result<(), String> {
        match action {
            // A gateway that has closed takes no more; what it makes of that is claimed later.
            Action::Send(octets) => {
                let _ = self.connection()?.stream.write_all(octets);
            }
            Action::SendSingly(octets) => {
                for octet in octets {
                    let _ = self.connection()?.stream.write_all(&[*octet]);
                    thread::sleep(Duration::from_millis(1));
                }
            }
            Action::Line(pattern) => self.connection()?.line_is(pattern)?,
            Action::Body => {
                let octets = self.connection()?.body(Duration::ZERO)?;
                self.is_message(&octets)?;
            }
            Action::SlowBody(pause) => {
                let octets = self.connection()?.body(*pause)?;
                self.is_message(&octets)?;
            }
            Action::BodyPart(count) => {
                self.connection()?.octets(*count)?;
            }
            Action::Chunk => {
                let connection = self.connection()?;
                let octets = connection.octets(connection.chunk_octets)?;
                self.is_message(&octets)?;
            }
            Action::On(number) => self.on = *number,
            Action::Wait(time) => thread::sleep(*time),
            Action::Close => {
                self.connection()?;
                self.connections.remove(&self.on);
            }
            Action::Reset => {
                let connection = self.connection()?;
                // Without waiting for what was not sent: the kernel sends RST.
                let linger = SockRef::from(&connection.stream).set_linger(Some(Duration::ZERO));
                linger.map_err(|error| error.to_string())?;
                self.connections.remove(&self.on);
            }
            Action::End => {
                self.connection()?.ends()?;
                self.connections.remove(&self.on);
            }
            Action::Nobody(time) => {
                thread::sleep(*time);
                if self.listener.accept().is_ok() {
                    return Err("there is a connection".to_owned());
                }
            }
            Action::Message => self.submit(),
            Action::Retry => {
                let tried = || (self.stage.books.retry(&self.site) > 0).then_some(());
                soon(tried).ok_or("nothing waits to be tried again")?;
            }
            Action::Told(claim) => self.is_told(claim)?,
            Action::Queue(claim) => self.waits(claim)?,
            Action::Notice(statuses) => self.is_notified(statuses)?,
            Action::Logged(pattern) => self.is_logged(pattern)?,
        }
        Ok(())
    }

    /// The present connection; the next one that is made, if there is none.
    fn connection(&mut self) -> Result<&mut Connection, String> {
        if !self.connections.contains_key(&self.on) {
            let (stream, _) =
                soon(|| self.listener.accept().ok()).ok_or("nobody connects to the peer")?;
            stream.set_nonblocking(false).expect("a socket option");
            stream.set_nodelay(true).expect("a socket option");
            stream.set_write_timeout(Some(PATIENCE)).expect("a socket option");
            stream.set_read_timeout(Some(PATIENCE)).expect("a socket option");
            let connection = Connection { stream, input: Vec::new(), chunk_octets: 0 };
            self.connections.insert(self.on, connection);
        }
        Ok(self.connections.get_mut(&self.on).expect("just looked at"))
    }

    /// Whether these octets of the wire are the message, behind its trace header.
    fn is_message(&self, octets: &[u8]) -> Result<(), String> {
        let whole = octets.starts_with(b"Received: ")
            && octets.ends_with(&message(self.dialogue.settings.body));
        whole.then_some(()).ok_or("the body is not the message".to_owned())
    }

    // ---- claims --------------------------------------------------------------------------

    fn is_told(&mut self, claim: &Telling) -> Result<(), String> {
        let next = || self.stage.books.told(&self.site, self.told).into_iter().next();
        let telling = soon(next).ok_or(format!("no event; expected {claim:?}"))?;
        self.told += 1;
        let holds = telling.kind == claim.kind
            && telling.to == claim.to
            && matches(&claim.reply, &telling.reply)
            && !telling.reply.contains(char::is_control);
        holds.then_some(()).ok_or(format!("expected {claim:?}, not {telling:?}"))
    }

    fn waits(&self, claim: &[Waiting]) -> Result<(), String> {
        let holds = |found: &[Waiting]| {
            found.len() == claim.len()
                && found.iter().zip(claim).all(|(found, claim)| {
                    found.state == claim.state
                        && found.to == claim.to
                        && matches(&claim.reason, &found.reason)
                        && !found.reason.contains(char::is_control)
                })
        };
        let found = || self.stage.books.queue(&self.site);
        soon(|| holds(&found()).then_some(()))
            .ok_or_else(|| format!("expected {claim:?} in the queue, not {:?}", found()))
    }

    fn is_notified(&mut self, statuses: &[String]) -> Result<(), String> {
        let next = || self.stage.books.notices(&self.dialogue.name).into_iter().nth(self.notices);
        let notice = soon(next).ok_or("the sender has got no notice")?;
        self.notices += 1;
        let harmless = |&octet: &u8| octet == b'\n' || octet == b'\r' || octet == b'\t';
        if notice.iter().any(|octet| octet.is_ascii_control() && !harmless(octet)) {
            return Err("the notice holds a control character".to_owned());
        }
        let text = String::from_utf8(notice).map_err(|_| "the notice is not UTF-8")?;
        let found: Vec<&str> =
            text.lines().filter_map(|line| line.strip_prefix("Status: ")).collect();
        (found == *statuses).then_some(()).ok_or(format!("the notice says {found:?}"))
    }

    fn is_logged(&self, pattern: &str) -> Result<(), String> {
        let logged = || {
            let said = self.stage.gateway.errors();
            let mut lines = said.lines().filter(|line| line.contains(&self.site));
            lines.any(|line| matches(pattern, line)).then_some(())
        };
        soon(logged).ok_or("the gateway has not logged that".to_owned())
    }
}

impl Connection {
    /// Reads more; nothing when the gateway has closed.
    fn read(&mut self) -> Result<usize, String> {
        let mut octets = [0; 64 * 1024];
        match self.stream.read(&mut octets) {
            Ok(count) => {
                self.input.extend_from_slice(&octets[..count]);
                Ok(count)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                Err(format!("nothing comes; so far: {}", self.input.escape_ascii()))
            }
            // A gateway that closes with something unread resets the connection.
            Err(_) => Ok(0),
        }
    }

    fn line_is(&mut self, pattern: &str) -> Result<(), String> {
        let end = loop {
            match memchr::memmem::find(&self.input, b"\r\n") {
                Some(end) => break end,
                None if self.read()? > 0 => {}
                None => return Err(format!("expected `{pattern}`, but the gateway has closed")),
            }
        };
        let line: Vec<u8> = self.input.drain(..end + 2).collect();
        let line = String::from_utf8_lossy(&line[..end]).into_owned();
        if let Some(count) = line.strip_prefix("BDAT ").and_then(|rest| rest.split(' ').next()) {
            self.chunk_octets = count.parse().map_err(|_| format!("a bad BDAT: {line}"))?;
        }
        matches(pattern, &line).then_some(()).ok_or(format!("expected `{pattern}`, not `{line}`"))
    }

    fn octets(&mut self, count: usize) -> Result<Vec<u8>, String> {
        while self.input.len() < count {
            if self.read()? == 0 {
                return Err("the gateway has closed in the middle of a body".to_owned());
            }
        }
        Ok(self.input.drain(..count).collect())
    }

    /// A body to its CRLF.CRLF, without the dot.
    fn body(&mut self, pause: Duration) -> Result<Vec<u8>, String> {
        let mut searched = 0;
        loop {
            if let Some(at) = memchr::memmem::find(&self.input[searched..], b"\r\n.\r\n") {
                let mut body: Vec<u8> = self.input.drain(..searched + at + 5).collect();
                body.truncate(searched + at + 2);
                return Ok(body);
            }
            searched = self.input.len().saturating_sub(4);
            // The end lies in the sockets' buffers by then, and the time for the reply runs.
            if self.input.len() < SLOW_OCTETS {
                thread::sleep(pause);
            }
            if self.read()? == 0 {
                return Err("the gateway has closed in the middle of a body".to_owned());
            }
        }
    }

    fn ends(&mut self) -> Result<(), String> {
        while self.read()? > 0 {}
        match self.input.as_slice() {
            [] => Ok(()),
            more => Err(format!("the gateway says more: {}", more.escape_ascii())),
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // In order, FIN, where nothing else was asked for.
        if !matches!(SockRef::from(&self.stream).linger(), Ok(Some(_))) {
            let _ = self.stream.shutdown(Shutdown::Write);
        }
    }
}

/// The domain of a dialogue's recipients.
pub fn domain(name: &str) -> String {
    format!("{}.test", name.replace('_', "-"))
}

fn message(body: Body) -> Vec<u8> {
    let text = match body {
        Body::Small => "It was said.\r\n".to_owned(),
        Body::EightBit => "Es wurde ges\u{e4}gt.\r\n".to_owned(),
        Body::Huge => "It was said again, and again, and once more for good luck.\r\n".repeat(HUGE),
    };
    format!("Subject: heard\r\n\r\n{text}").into_bytes()
}

/// Looks until there is something, or [`PATIENCE`] is over.
fn soon<T>(mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let found = look();
        if found.is_some() || Instant::now() >= deadline {
            return found;
        }
        thread::sleep(Duration::from_millis(15));
    }
}

/// What a busy machine may take for anything.
const PATIENCE: Duration = Duration::from_secs(20);
/// How much of a body is read slowly, where a dialogue asks for it.
const SLOW_OCTETS: usize = 6 << 20;
/// Lines of a huge body: 12 MiB, more than the sockets of this system buffer.
const HUGE: usize = 200_000;
