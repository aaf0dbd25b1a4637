//! Streams and listeners: what a session or a connection runs over.
//!
//! [`Stream`] is the seam for TLS: sessions read and write through it and never see a socket.
//! Every read and write of a stream stands under the deadline of its watch (`deadline`), which ends
//! it by shutting the socket down; so no future of an operation is ever dropped half-way.
//!
//! A session reads and writes in turns.  A connection to a next hop does both at once, through the
//! two halves of [`Stream::split`], which stand under one deadline, a [`TimeLimit`].
//!
//! After [`Stream::accept_tls`] or [`Stream::connect_tls`] the same stream carries plaintext to
//! its user and records to its peer.  Octets that its user has read in clear before that are the
//! user's to throw away: they were sent by nobody knows whom.

/// Does the same with either kind.
macro_rules! either {
    ($kind:ident, $value:expr, $name:ident => $what:expr) => {
        match $value {
            $kind::Tcp($name) => $what,
            $kind::Unix($name) => $what,
        }
    };
}

mod encrypted;
mod halves;
mod listening;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::path::Path;
use std::time::{Duration, Instant};

pub use monoio::buf::IoBuf;
use monoio::io::{AsyncReadRent, AsyncWriteRentExt};
pub use monoio::io::{CancelHandle, Canceller};
use monoio::net::{TcpStream, UnixStream};

use super::buffer::{Fill, Spare, octets, receive_now};
use super::deadline::{Cut, Shortage, Watch, watch};
use super::tls::link::Link;

pub use encrypted::HandshakeError;
pub use halves::{Receiving, Sending, TimeLimit};
pub use listening::{Listener, bind};

/// A connection in either direction.
pub struct Stream {
    // Before the socket: it leaves the list before the descriptor is closed.
    watch: Watch,
    socket: Socket,
    tls: Option<Box<Link>>,
}

/// The kinds of sockets, told apart by a match and not by a table of functions.
enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// Why a read or a write came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The deadline passed; see [`Stream::read`].
    #[error("nothing came within the time allowed")]
    TimedOut,
    /// The connection broke, or the peer broke TLS.
    #[error("the connection broke")]
    Io(#[source] io::Error),
}

impl Stream {
    /// Takes over a connected socket.
    fn new(tcp: TcpStream) -> io::Result<Stream> {
        // Replies are already gathered into one write; waiting for more would only add delay.
        tcp.set_nodelay(true)?;
        let watch = watch(tcp.as_raw_fd());
        Ok(Stream { watch, socket: Socket::Tcp(tcp), tls: None })
    }

    /// Connects to the socket at `path`.
    ///
    /// # Errors
    /// As connect(2); `TimedOut` after `limit`.
    pub async fn connect_unix(path: &Path, limit: Duration) -> Result<Stream, StreamError> {
        let connected = super::timeout(limit, UnixStream::connect(path)).await;
        let socket = connected.ok_or(StreamError::TimedOut)?.map_err(StreamError::Io)?;
        let watch = watch(socket.as_raw_fd());
        Ok(Stream { watch, socket: Socket::Unix(socket), tls: None })
    }

    /// Connects to `peer`, from the address `source` if one is given.
    ///
    /// # Errors
    /// As connect(2); `TimedOut` after `limit`.
    pub async fn connect(
        peer: SocketAddr,
        source: Option<IpAddr>,
        limit: Duration,
    ) -> Result<Stream, StreamError> {
        // The socket of a connect that is given up is closed with its future.
        let connecting = async {
            match source {
                None => TcpStream::connect_addr(peer).await,
                Some(source) => connect_from(source, peer).await,
            }
        };
        match super::timeout(limit, connecting).await {
            None => Err(StreamError::TimedOut),
            Some(connected) => connected.and_then(Stream::new).map_err(StreamError::Io),
        }
    }

    /// Waits for bytes and adds them to `buffer`; `Ok(0)` is the peer's end of the stream.
    ///
    /// # Errors
    /// `TimedOut` when `deadline` passed: the receiving half is then closed, a last reply can
    /// still be written.
    pub async fn read<B: Fill>(
        &mut self,
        buffer: B,
        deadline: Instant,
    ) -> (Result<usize, StreamError>, B) {
        if self.tls.is_some() {
            return self.read_plain(buffer, deadline).await;
        }
        self.read_socket(buffer, deadline, Cut::Receiving).await
    }

    /// Adds what has come to `buffer` and waits for nothing; `None` if the stream has to be
    /// [read](Stream::read), since nothing has come or what comes is encrypted.
    ///
    /// For when the stream has just become [readable](Stream::readable), once after each wait: the
    /// wait is what gives the loop's other tasks their turn.  A future of its own would be paid for
    /// by every session that idles.
    pub fn read_now<B: Fill>(&self, buffer: &mut B) -> Option<Result<usize, StreamError>> {
        if self.tls.is_some() {
            return None;
        }
        match receive_now(self.fd(), buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            result => Some(result.map_err(StreamError::Io)),
        }
    }

    /// Waits until there is something to read, holding no buffer meanwhile.
    ///
    /// # Errors
    /// As [`Stream::read`].
    pub async fn readable(&mut self, deadline: Instant) -> Result<(), StreamError> {
        if self.tls.as_ref().is_some_and(|tls| !tls.inflow.is_empty()) {
            return Ok(());
        }
        self.watch.set(deadline, Cut::Receiving);
        // Not relaxed: with epoll the last readiness would count until a read has found nothing,
        // and that read would hold a buffer for as long as the session idles.
        let result = either!(Socket, &self.socket, socket => socket.readable(false).await);
        self.judge(result)
    }

    /// Gives what has come in clear to `take`, which tells how much of it is used up; the rest waits
    /// to be read.  Call it when the stream is [readable](Stream::readable).
    ///
    /// # Errors
    /// As recv(2); `UnexpectedEof` at the end of the stream.
    pub fn take_now<T>(&self, take: impl FnOnce(&[u8]) -> (usize, T)) -> io::Result<T> {
        let mut octets = [0; 512];
        let now = rustix::net::RecvFlags::DONTWAIT;
        let (_, come) =
            rustix::net::recv(self.fd(), &mut octets, now | rustix::net::RecvFlags::PEEK)?;
        if come == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let (used, taken) = take(&octets[..come]);
        let mut left = used.min(come);
        while left > 0 {
            let (_, gone) = rustix::net::recv(self.fd(), &mut octets[..left], now)?;
            left -= gone;
            if gone == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(taken)
    }

    /// The reads from here on must be over by then if the thread is short of that
    /// ([`press`](super::deadline::press)); then they end as if they had timed out.
    pub fn give_way_at(&self, at: Option<(Shortage, Instant)>) {
        self.watch.set_pressed(at);
    }

    /// Whether a stopping service may end the reads from here on, as if they had timed out: the
    /// peer has begun nothing.
    pub fn allow_interrupt(&self, allowed: bool) {
        self.watch.allow_interrupt(allowed);
    }

    /// Writes all of `bytes` and gives the buffer back.
    ///
    /// # Errors
    /// `TimedOut` when the peer did not take them by `deadline`; the connection is then dead.
    pub async fn write_all<B: IoBuf>(
        &mut self,
        bytes: B,
        deadline: Instant,
    ) -> (Result<(), StreamError>, B) {
        if self.tls.is_some() {
            return (self.write_plain(octets(&bytes), deadline).await, bytes);
        }
        self.write_socket(bytes, deadline).await
    }

    /// Says that nothing more will be written.
    pub fn close_sending(&mut self) {
        if let Some(tls) = &mut self.tls {
            tls.records.close();
            let last = tls.records.take_outgoing();
            self.send_now(&last);
        }
        // The peer may have closed already; then there is nothing to tell it.
        let _ = rustix::net::shutdown(self.fd(), rustix::net::Shutdown::Write);
    }

    /// Whether nothing has come that was not read, and nothing need be said before the close: the
    /// end of TLS does.
    pub fn is_read_out(&self) -> bool {
        let flags = rustix::net::RecvFlags::DONTWAIT | rustix::net::RecvFlags::PEEK;
        let come = || rustix::net::recv(self.fd(), &mut [0; 1], flags).map_or(0, |(_, come)| come);
        self.tls.is_none() && come() == 0
    }

    /// The peer's address.
    ///
    /// # Errors
    /// The peer has gone, or is no TCP peer.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        match &self.socket {
            Socket::Tcp(tcp) => tcp.peer_addr(),
            Socket::Unix(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    async fn read_socket<B: Fill>(
        &mut self,
        buffer: B,
        deadline: Instant,
        cut: Cut,
    ) -> (Result<usize, StreamError>, B) {
        self.watch.set(deadline, cut);
        let (result, Spare(buffer)) =
            either!(Socket, &mut self.socket, socket => socket.read(Spare(buffer)).await);
        (self.judge(result), buffer)
    }

    async fn write_socket<B: IoBuf>(
        &mut self,
        bytes: B,
        deadline: Instant,
    ) -> (Result<(), StreamError>, B) {
        // Replies fit the kernel's buffer nearly always.  Through the loop a write would end in the
        // loop's next turn, so that each command would take one turn more.
        let written = match self.send_what_fits(octets(&bytes)) {
            Ok(written) if written == octets(&bytes).len() => return (Ok(()), bytes),
            Ok(written) => written,
            Err(error) => return (Err(StreamError::Io(error)), bytes),
        };
        // On the heap, since it is rare: every session pays for the size of its future.
        Box::pin(self.write_rest(bytes, written, deadline)).await
    }

    async fn write_rest<B: IoBuf>(
        &mut self,
        bytes: B,
        written: usize,
        deadline: Instant,
    ) -> (Result<(), StreamError>, B) {
        self.watch.set(deadline, Cut::Both);
        let rest = bytes.slice(written..);
        let (result, rest) =
            either!(Socket, &mut self.socket, socket => socket.write_all(rest).await);
        (self.judge(result.map(|_| ())), rest.into_inner())
    }

    /// Sends as many octets as the kernel takes now, which may be none.
    fn send_what_fits(&self, octets: &[u8]) -> io::Result<usize> {
        let flags = rustix::net::SendFlags::DONTWAIT | rustix::net::SendFlags::NOSIGNAL;
        match rustix::net::send(self.fd(), octets, flags) {
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(0),
            result => Ok(result?),
        }
    }

    /// Sends a few octets that nothing waits for, as far as the kernel takes them now.
    fn send_now(&self, octets: &[u8]) {
        if !octets.is_empty() {
            // A peer that takes nothing, or has gone, misses a good-bye.
            let _ = self.send_what_fits(octets);
        }
    }

    fn fd(&self) -> BorrowedFd<'_> {
        let fd = either!(Socket, &self.socket, socket => socket.as_raw_fd());
        super::deadline::borrow(fd, self)
    }

    fn judge<T>(&self, result: io::Result<T>) -> Result<T, StreamError> {
        self.watch.clear();
        judge(&self.watch, result)
    }
}

fn judge<T>(watch: &Watch, result: io::Result<T>) -> Result<T, StreamError> {
    if watch.has_cut() { Err(StreamError::TimedOut) } else { result.map_err(StreamError::Io) }
}

/// Binds before it connects, which monoio's own connect cannot.
async fn connect_from(source: IpAddr, peer: SocketAddr) -> io::Result<TcpStream> {
    let socket = socket2::Socket::new(
        socket2::Domain::for_address(peer),
        socket2::Type::STREAM,
        Some(socket2::Protocol::TCP),
    )?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddr::new(source, 0).into())?;
    match socket.connect(&peer.into()) {
        Err(error)
            if error.raw_os_error() != Some(rustix::io::Errno::INPROGRESS.raw_os_error()) =>
        {
            return Err(error);
        }
        _ => {}
    }
    let stream = TcpStream::from_std(socket.into())?;
    stream.writable(false).await?;
    match rustix::net::sockopt::socket_error(super::deadline::borrow(stream.as_raw_fd(), &stream))?
    {
        Ok(()) => Ok(stream),
        Err(error) => Err(error.into()),
    }
}

/// A file descriptor's number, for the deadline sweep.
pub(super) type Fd = RawFd;

#[cfg(test)]
mod tests;
