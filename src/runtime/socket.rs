//! Streams and listeners: what a session or a connection runs over.
//!
//! [`Stream`] is the seam for TLS: sessions read and write through it and never see a socket.
//! Every read and write of a stream stands under the deadline of its watch (`deadline`), which ends it by
//! shutting the socket down; so no future of an operation is ever dropped half-way.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::time::{Duration, Instant};

pub use monoio::buf::IoBuf;
use monoio::io::{AsyncReadRent, AsyncWriteRentExt};
pub use monoio::io::{CancelHandle, Canceller};
use monoio::net::{TcpListener, TcpStream};

use super::buffer::{Fill, Spare};
use super::deadline::{Cut, Watch, watch};

/// A connection in either direction.
pub struct Stream {
    tcp: TcpStream,
    watch: Watch,
}

/// Why a read or a write came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The deadline passed; see [`Stream::read`].
    #[error("nothing came within the time allowed")]
    TimedOut,
    /// The connection broke.
    #[error("the connection broke")]
    Io(#[source] io::Error),
}

impl Stream {
    /// Takes over a connected socket.
    fn new(tcp: TcpStream) -> io::Result<Stream> {
        // Replies are already gathered into one write; waiting for more would only add delay.
        tcp.set_nodelay(true)?;
        let watch = watch(tcp.as_raw_fd());
        Ok(Stream { tcp, watch })
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
        self.watch.set(deadline, Cut::Receiving);
        let (result, Spare(buffer)) = self.tcp.read(Spare(buffer)).await;
        (self.judge(result), buffer)
    }

    /// Waits until there is something to read, holding no buffer meanwhile.
    ///
    /// # Errors
    /// As [`Stream::read`].
    pub async fn readable(&mut self, deadline: Instant) -> Result<(), StreamError> {
        self.watch.set(deadline, Cut::Receiving);
        // Not relaxed: with epoll the last readiness would count until a read has found nothing,
        // and that read would hold a buffer for as long as the session idles.
        let result = self.tcp.readable(false).await;
        self.judge(result)
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
        self.watch.set(deadline, Cut::Both);
        let (result, bytes) = self.tcp.write_all(bytes).await;
        (self.judge(result.map(|_| ())), bytes)
    }

    /// Says that nothing more will be written.
    pub fn close_sending(&self) {
        // The peer may have closed already; then there is nothing to tell it.
        let _ = rustix::net::shutdown(self.fd(), rustix::net::Shutdown::Write);
    }

    /// The peer's address.
    ///
    /// # Errors
    /// The peer has gone.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.tcp.peer_addr()
    }

    fn fd(&self) -> BorrowedFd<'_> {
        super::deadline::borrow(self.tcp.as_raw_fd(), self)
    }

    fn judge<T>(&self, result: io::Result<T>) -> Result<T, StreamError> {
        if self.watch.has_cut() {
            return Err(StreamError::TimedOut);
        }
        result.map_err(StreamError::Io)
    }
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

/// A listening socket of one worker; all workers bind the same address with SO_REUSEPORT and
/// the kernel spreads the connections.
pub struct Listener {
    tcp: TcpListener,
}

impl Listener {
    /// Takes over a socket made by [`bind`].
    ///
    /// # Errors
    /// The event loop refused the socket.
    pub fn new(socket: std::net::TcpListener) -> io::Result<Listener> {
        Ok(Listener { tcp: TcpListener::from_std(socket)? })
    }

    /// The next connection.  Ended only through `cancel`: a dropped accept could swallow a
    /// connection that the kernel has already given out.
    ///
    /// # Errors
    /// As accept(2), EMFILE above all; ECANCELED once cancelled.
    pub async fn accept(&self, cancel: CancelHandle) -> io::Result<(Stream, SocketAddr)> {
        let (tcp, peer) = self.tcp.cancelable_accept(cancel).await?;
        let fd = tcp.as_raw_fd();
        let stream = Stream::new(tcp)?;
        rustix::io::fcntl_setfd(
            super::deadline::borrow(fd, &stream),
            rustix::io::FdFlags::CLOEXEC,
        )?;
        Ok((stream, peer))
    }
}

/// Binds `address` for one of several workers.
///
/// # Errors
/// As bind(2) and listen(2).
pub fn bind(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = socket2::Socket::new(
        socket2::Domain::for_address(address),
        socket2::Type::STREAM,
        Some(socket2::Protocol::TCP),
    )?;
    socket.set_reuse_port(true)?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Connections that the kernel holds for us between two accepts.
const BACKLOG: i32 = 4_096;

/// A file descriptor's number, for the deadline sweep.
pub(super) type Fd = RawFd;
