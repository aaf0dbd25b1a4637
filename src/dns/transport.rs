//! One question to one server: a datagram, and a stream where the answer does not fit one.
//!
//! Every question has a socket to itself, with a port that the kernel picks at random, and a
//! random id: who cannot see the traffic has to guess both (RFC 5452).  A socket that was answered
//! serves the next question only where the server is on this machine: there nobody else can send
//! in its name, and a new socket costs more than the question.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::time::Instant;

use super::asking::Failure;
use super::cache::Question;
use super::codec::{self, Known, NotAReply, Reply};
use crate::limits::{DNS_DATAGRAM, DNS_SOCKETS_IDLE, DNS_STRAY_DATAGRAMS};
use crate::runtime::buffer::{Account, Buffer, SMALL};
use crate::runtime::datagram::Datagram;
use crate::runtime::socket::{Stream, StreamError};

/// Why a server gave no answer, for the choice of the next one and for the log.
pub type Problem = (Failure, Box<str>);

/// Sockets of one core's resolver that nobody uses.
#[derive(Default)]
pub struct Sockets {
    idle: RefCell<Vec<(SocketAddr, Datagram)>>,
}

impl Sockets {
    fn take(&self, server: SocketAddr) -> io::Result<Datagram> {
        let idle = {
            let mut idle = self.idle.borrow_mut();
            let place = idle.iter().rposition(|(peer, _)| *peer == server);
            place.map(|place| idle.swap_remove(place).1)
        };
        match idle {
            Some(socket) => Ok(socket),
            None => Datagram::connect(server),
        }
    }

    /// Only after an answer: on any other end, one may still be on its way.
    fn give_back(&self, server: SocketAddr, socket: Datagram) {
        let mut idle = self.idle.borrow_mut();
        if server.ip().to_canonical().is_loopback() && idle.len() < DNS_SOCKETS_IDLE {
            idle.push((server, socket));
        }
    }
}

/// Asks `server` and waits for its answer until `deadline`.
pub async fn ask(
    sockets: &Sockets,
    server: SocketAddr,
    question: &Question,
    edns: bool,
    deadline: Instant,
) -> Result<Known, Problem> {
    let reply = match by_datagram(sockets, server, question, edns, deadline).await {
        Ok(Reply::Truncated) => by_stream(server, question, edns, deadline).await,
        reply => reply,
    };
    match reply.map_err(describe)? {
        Reply::Known(known) => Ok(known),
        Reply::FormatError => Err((Failure::FormatError, "FORMERR".into())),
        Reply::Failed(words) => Err((Failure::Unable, words)),
        Reply::Truncated => Err((Failure::Unable, "an answer that is cut off over TCP".into())),
    }
}

async fn by_datagram(
    sockets: &Sockets,
    server: SocketAddr,
    question: &Question,
    edns: bool,
    deadline: Instant,
) -> io::Result<Reply> {
    let id = random_id()?;
    let mut socket = sockets.take(server)?;
    socket.send(codec::encode(question, id, edns)).await?;
    // Without EDNS a server keeps to 512 octets; with it to what the question announced.
    let mut octets = Vec::with_capacity(DNS_DATAGRAM);
    for _ in 0..DNS_STRAY_DATAGRAMS {
        (socket, octets) = socket.receive(octets, deadline).await?;
        match codec::decode(&octets, question, id) {
            Err(NotAReply::Stray) => {}
            Err(NotAReply::Malformed) => return Err(io::Error::other(NotAReply::Malformed)),
            Ok(reply) => {
                sockets.give_back(server, socket);
                return Ok(reply);
            }
        }
    }
    Err(io::Error::other("too many answers to something else"))
}

async fn by_stream(
    server: SocketAddr,
    question: &Question,
    edns: bool,
    deadline: Instant,
) -> io::Result<Reply> {
    let id = random_id()?;
    let left = deadline.saturating_duration_since(Instant::now());
    let mut stream = Stream::connect(server, None, left).await.map_err(io_error)?;
    let message = codec::encode(question, id, edns);
    let length = u16::try_from(message.len()).expect("a question fits 512 octets");
    let framed = [&length.to_be_bytes()[..], &message].concat();
    stream.write_all(framed, deadline).await.0.map_err(io_error)?;
    let octets = read_message(&mut stream, deadline).await?;
    codec::decode(&octets, question, id).map_err(io::Error::other)
}

/// One message with its length in front (RFC 1035 section 4.2.2).
async fn read_message(stream: &mut Stream, deadline: Instant) -> io::Result<Vec<u8>> {
    let mut octets = Vec::new();
    loop {
        if let Some((length, message)) = octets.split_first_chunk() {
            let length = usize::from(u16::from_be_bytes(*length));
            if message.len() >= length {
                return Ok(message[..length].to_vec());
            }
        }
        let buffer = Buffer::on(Account::Outbound, SMALL);
        let (result, buffer) = stream.read(buffer, deadline).await;
        if result.map_err(io_error)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        octets.extend_from_slice(buffer.bytes());
    }
}

fn io_error(error: StreamError) -> io::Error {
    match error {
        StreamError::TimedOut => io::ErrorKind::TimedOut.into(),
        StreamError::Io(error) => error,
    }
}

fn describe(error: io::Error) -> Problem {
    match error.kind() {
        io::ErrorKind::TimedOut => (Failure::Silence, "no answer in time".into()),
        io::ErrorKind::UnexpectedEof => {
            (Failure::Unable, "the connection was closed without an answer".into())
        }
        _ => (Failure::Unable, error.to_string().into()),
    }
}

/// From the operating system: an id that can be guessed is half of a forged answer.
fn random_id() -> io::Result<u16> {
    let mut octets = [0; 2];
    rustix::rand::getrandom(&mut octets, rustix::rand::GetRandomFlags::empty())?;
    Ok(u16::from_be_bytes(octets))
}
