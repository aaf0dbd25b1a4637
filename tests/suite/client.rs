//! A plain SMTP client over a socket: it sends what it is told to, also what no client should.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};

use socket2::{Domain, Socket, Type};

use crate::gateway::PATIENCE;

/// One connection.
pub struct Client {
    stream: TcpStream,
    input: Vec<u8>,
}

/// One reply, its lines joined by LF.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply(pub String);

impl Client {
    /// Connects and reads the greeting.
    pub fn connect(address: SocketAddr) -> Client {
        let mut client = Client::connect_silently(address, None);
        client.reply().expect("220");
        client
    }

    /// The same from another address of this host.
    pub fn connect_from(source: IpAddr, address: SocketAddr) -> Client {
        let mut client = Client::connect_silently(address, Some(source));
        client.reply().expect("220");
        client
    }

    /// Connects; the greeting waits to be read.
    pub fn connect_silently(address: SocketAddr, source: Option<IpAddr>) -> Client {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None);
        let socket = socket.expect("a socket");
        if let Some(source) = source {
            socket.bind(&SocketAddr::new(source, 0).into()).expect("a loopback address");
        }
        socket.connect(&address.into()).expect("somebody listens");
        let stream = TcpStream::from(socket);
        stream.set_nodelay(true).expect("a socket option");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket option");
        stream.set_write_timeout(Some(PATIENCE)).expect("a socket option");
        Client { stream, input: Vec::new() }
    }

    /// Connects and says EHLO.
    #[track_caller]
    pub fn hello(address: SocketAddr) -> Client {
        let mut client = Client::connect(address);
        client.command("EHLO client.test").expect("250");
        client
    }

    /// The socket itself.
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Sends octets as they are.
    pub fn send(&mut self, octets: &[u8]) {
        self.try_send(octets).expect("the gateway reads");
    }

    /// Sends octets as they are; the gateway may be gone.
    pub fn try_send(&mut self, octets: &[u8]) -> std::io::Result<()> {
        self.stream.write_all(octets)
    }

    /// Sends a line and reads the reply.
    #[track_caller]
    pub fn command(&mut self, line: &str) -> Reply {
        self.send(format!("{line}\r\n").as_bytes());
        self.reply()
    }

    /// Reads one reply.
    #[track_caller]
    pub fn reply(&mut self) -> Reply {
        match self.try_reply() {
            Some(reply) => reply,
            None => panic!("the connection ended before a reply"),
        }
    }

    /// Reads one reply; `None` if the connection ends first.
    pub fn try_reply(&mut self) -> Option<Reply> {
        let mut lines = Vec::new();
        loop {
            let line = self.line()?;
            let is_last = line.as_bytes().get(3) != Some(&b'-');
            lines.push(line);
            if is_last {
                return Some(Reply(lines.join("\n")));
            }
        }
    }

    /// What of a greeting has come, which may not be all of its lines; it stays to be read.
    pub fn first_line(&self) -> String {
        let mut octets = [0; 256];
        let count = self.stream.peek(&mut octets).expect("a first line");
        String::from_utf8_lossy(&octets[..count]).into_owned()
    }

    fn line(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.input.windows(2).position(|pair| pair == b"\r\n") {
                let line: Vec<u8> = self.input.drain(..end + 2).collect();
                return Some(String::from_utf8(line[..end].into()).expect("replies are UTF-8"));
            }
            let mut octets = [0; 4096];
            match self.stream.read(&mut octets) {
                Ok(0) => return None,
                Ok(count) => self.input.extend_from_slice(&octets[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    panic!("no reply in {PATIENCE:?}; so far: {:?}", self.input)
                }
                Err(_) => return None,
            }
        }
    }

    /// Begins a transaction.
    #[track_caller]
    pub fn envelope(&mut self, from: &str, to: &[&str]) {
        self.command(&format!("MAIL FROM:<{from}>")).expect("250");
        for to in to {
            self.command(&format!("RCPT TO:<{to}>")).expect("250");
        }
    }

    /// Sends a message, which must end with CRLF, by DATA; gives the final reply.
    #[track_caller]
    pub fn data(&mut self, message: &[u8]) -> Reply {
        self.command("DATA").expect("354");
        self.send(&stuffed(message));
        self.reply()
    }

    /// Sends a message by BDAT in chunks of these sizes, the last repeated, all in one flight;
    /// gives the last reply.
    #[track_caller]
    pub fn bdat(&mut self, message: &[u8], chunks: &[usize]) -> Reply {
        let mut flight = Vec::with_capacity(message.len() + 64);
        let mut replies = 0;
        let mut rest = message;
        let mut sizes = chunks.iter().copied();
        let repeated = *chunks.last().expect("at least one size");
        loop {
            let size = sizes.next().unwrap_or(repeated).min(rest.len());
            let (chunk, others) = rest.split_at(size);
            rest = others;
            let last = if rest.is_empty() { " LAST" } else { "" };
            flight.extend_from_slice(format!("BDAT {size}{last}\r\n").as_bytes());
            flight.extend_from_slice(chunk);
            replies += 1;
            if rest.is_empty() {
                break;
            }
        }
        // The replies are read while the flight is under way, or both sides would wait to write.
        let mut stream = self.stream.try_clone().expect("a descriptor");
        std::thread::scope(|scope| {
            scope.spawn(move || stream.write_all(&flight).expect("the gateway reads"));
            for _ in 1..replies {
                self.reply().expect("250");
            }
            self.reply()
        })
    }

    /// Asserts that the gateway ends the connection, and sends nothing before.
    #[track_caller]
    pub fn expect_end(&mut self) {
        if let Some(reply) = self.try_reply() {
            panic!("the connection was to end, but: {reply:?}");
        }
    }
}

impl Reply {
    /// The reply, which must begin so.
    #[track_caller]
    pub fn expect(self, start: &str) -> Reply {
        assert!(self.0.starts_with(start), "expected {start}, got {self:?}");
        self
    }

    /// The id in a final 250.
    pub fn message_id(&self) -> String {
        let rest = self.0.strip_prefix("250 2.0.0 Ok: queued as ");
        let rest = rest.unwrap_or_else(|| panic!("not accepted: {self:?}"));
        rest.split(' ').next().expect("an id").to_owned()
    }
}

/// A message as DATA carries it, with its end.
pub fn stuffed(message: &[u8]) -> Vec<u8> {
    assert!(message.is_empty() || message.ends_with(b"\r\n"), "DATA ends lines");
    let mut out = Vec::with_capacity(message.len() + message.len() / 64 + 3);
    for line in message.split_inclusive(|&octet| octet == b'\n') {
        if line.starts_with(b".") {
            out.push(b'.');
        }
        out.extend_from_slice(line);
    }
    out.extend_from_slice(b".\r\n");
    out
}
