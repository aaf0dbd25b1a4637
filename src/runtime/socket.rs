//! Streams and listeners: what a session or a connection runs over.
//!
//! [`Stream`] is the seam for TLS: sessions read and write through it and never see a socket.
//! Every read and write of a stream stands under the deadline of its watch (`deadline`), which ends
//! it by shutting the socket down; so no future of an operation is ever dropped half-way.
//!
//! A session reads and writes in turns.  A connection to a next hop does both at once, through the
//! two halves of [`Stream::split`], which stand under one deadline, a [`TimeLimit`].

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::path::Path;
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

pub use monoio::buf::IoBuf;
use monoio::io::{
    AsyncReadRent, AsyncWriteRent, AsyncWriteRentExt, OwnedReadHalf, OwnedWriteHalf, Splitable,
};
pub use monoio::io::{CancelHandle, Canceller};
use monoio::net::{TcpListener, TcpStream, UnixStream};

use super::buffer::{Fill, Spare};
use super::deadline::{Cut, Shortage, Watch, watch};

/// A connection in either direction.
pub struct Stream {
    // Before the socket: it leaves the list before the descriptor is closed.
    watch: Watch,
    socket: Socket,
}

/// The kinds of sockets, told apart by a match and not by a table of functions.
enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// Does the same with either kind.
macro_rules! either {
    ($kind:ident, $value:expr, $name:ident => $what:expr) => {
        match $value {
            $kind::Tcp($name) => $what,
            $kind::Unix($name) => $what,
        }
    };
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
        Ok(Stream { watch, socket: Socket::Tcp(tcp) })
    }

    /// Connects to the socket at `path`.
    ///
    /// # Errors
    /// As connect(2); `TimedOut` after `limit`.
    pub async fn connect_unix(path: &Path, limit: Duration) -> Result<Stream, StreamError> {
        let connected = super::timeout(limit, UnixStream::connect(path)).await;
        let socket = connected.ok_or(StreamError::TimedOut)?.map_err(StreamError::Io)?;
        let watch = watch(socket.as_raw_fd());
        Ok(Stream { watch, socket: Socket::Unix(socket) })
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
        let (result, Spare(buffer)) =
            either!(Socket, &mut self.socket, socket => socket.read(Spare(buffer)).await);
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
        let result = either!(Socket, &self.socket, socket => socket.readable(false).await);
        self.judge(result)
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
        self.watch.set(deadline, Cut::Both);
        let (result, bytes) =
            either!(Socket, &mut self.socket, socket => socket.write_all(bytes).await);
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
    /// The peer has gone, or is no TCP peer.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        match &self.socket {
            Socket::Tcp(tcp) => tcp.peer_addr(),
            Socket::Unix(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// The two directions, to be used at the same time.
    pub fn split(self) -> (Receiving, Sending, TimeLimit) {
        let fd = self.fd().as_raw_fd();
        self.watch.set_for_both(None);
        let watch = Rc::new(self.watch);
        let (reading, writing) = match self.socket {
            Socket::Tcp(tcp) => {
                let (reading, writing) = tcp.into_split();
                (ReadHalf::Tcp(reading), WriteHalf::Tcp(writing))
            }
            Socket::Unix(unix) => {
                let (reading, writing) = unix.into_split();
                (ReadHalf::Unix(reading), WriteHalf::Unix(writing))
            }
        };
        let limit = TimeLimit { watch: Rc::downgrade(&watch), fd };
        (Receiving { watch: watch.clone(), half: reading }, Sending { watch, half: writing }, limit)
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

enum ReadHalf {
    Tcp(OwnedReadHalf<TcpStream>),
    Unix(OwnedReadHalf<UnixStream>),
}

enum WriteHalf {
    Tcp(OwnedWriteHalf<TcpStream>),
    Unix(OwnedWriteHalf<UnixStream>),
}

/// The half of a stream that is read.
pub struct Receiving {
    watch: Rc<Watch>,
    half: ReadHalf,
}

/// The half of a stream that is written.
pub struct Sending {
    watch: Rc<Watch>,
    half: WriteHalf,
}

/// The one deadline of both halves, and their common end.
pub struct TimeLimit {
    watch: Weak<Watch>,
    fd: Fd,
}

impl Receiving {
    /// Waits for bytes and adds them to `buffer`; `Ok(0)` is the peer's end of the stream.
    ///
    /// # Errors
    /// `TimedOut` when the [`TimeLimit`] passed; the connection is then dead.
    pub async fn read<B: Fill>(&mut self, buffer: B) -> (Result<usize, StreamError>, B) {
        let (result, Spare(buffer)) =
            either!(ReadHalf, &mut self.half, half => half.read(Spare(buffer)).await);
        (judge(&self.watch, result), buffer)
    }
}

impl Sending {
    /// Writes some of `bytes` from the place `from` on, and tells how many.
    ///
    /// # Errors
    /// `TimedOut` when the [`TimeLimit`] passed; the connection is then dead.
    pub async fn write<B: IoBuf>(
        &mut self,
        bytes: B,
        from: usize,
    ) -> (Result<usize, StreamError>, B) {
        let slice = bytes.slice(from..);
        let (result, slice) = either!(WriteHalf, &mut self.half, half => half.write(slice).await);
        (judge(&self.watch, result), slice.into_inner())
    }
}

impl TimeLimit {
    /// Whatever is under way must have moved on by `deadline`; with `None` it may wait for ever.
    pub fn set(&self, deadline: Option<Instant>) {
        if let Some(watch) = self.watch.upgrade() {
            watch.set_for_both(deadline);
        }
    }

    /// Likewise by then, if the thread is short of that; see [`Stream::give_way_at`].
    pub fn give_way_at(&self, at: Option<(Shortage, Instant)>) {
        if let Some(watch) = self.watch.upgrade() {
            watch.set_pressed(at);
        }
    }

    /// Ends the connection in both directions: what is under way ends by itself at once.
    pub fn shut_down(&self) {
        if let Some(watch) = self.watch.upgrade() {
            // The peer may have closed already; then it is ending anyway.
            let _ = rustix::net::shutdown(
                super::deadline::borrow(self.fd, &*watch),
                rustix::net::Shutdown::Both,
            );
        }
    }
}

/// However a connection's use ends, by a panic too, its read must not wait for the peer.
impl Drop for TimeLimit {
    fn drop(&mut self) {
        self.shut_down();
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

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::thread;

    use super::*;
    use crate::runtime::buffer::{Buffer, SMALL};
    use crate::runtime::{self};

    /// More than both windows hold.
    const MUCH: usize = 32 << 20;

    /// A peer that writes all that it has before it reads anything.
    fn stubborn(mut peer: impl Read + Write + Send + 'static) -> thread::JoinHandle<usize> {
        thread::spawn(move || {
            peer.write_all(&vec![b'p'; MUCH]).expect("the other side reads");
            let mut octets = 0;
            let mut piece = vec![0; 1 << 16];
            while octets < MUCH {
                octets += peer.read(&mut piece).expect("the other side writes");
            }
            octets
        })
    }

    async fn write_and_read(stream: Stream) -> usize {
        let (mut receiving, mut sending, limit) = stream.split();
        limit.set(Some(Instant::now() + Duration::from_secs(60)));
        let writing = async {
            let (mut bytes, mut written) = (vec![b'w'; MUCH], 0);
            while written < MUCH {
                let result;
                (result, bytes) = sending.write(bytes, written).await;
                written += result.expect("the peer reads in the end");
            }
        };
        let reading = async {
            let mut octets = 0;
            while octets < MUCH {
                octets += receiving.read(Buffer::new(SMALL)).await.0.expect("the peer writes");
            }
            octets
        };
        tokio::join!(writing, reading).1
    }

    #[test]
    fn two_sides_that_write_at_once_do_not_wait_for_each_other() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        let peer = thread::spawn(move || stubborn(listener.accept().expect("a connection").0));
        let read = runtime::run(async move {
            let stream = Stream::connect(address, None, Duration::from_secs(30)).await;
            write_and_read(stream.expect("it listens")).await
        });
        assert_eq!(read.expect("a loop"), MUCH);
        assert_eq!(peer.join().expect("no panic").join().expect("no panic"), MUCH);
    }

    #[test]
    fn a_unix_socket_does_the_same() {
        let home = tempfile::TempDir::new().expect("a directory");
        let path = home.path().join("lmtp");
        let listener = std::os::unix::net::UnixListener::bind(&path).expect("a path");
        let peer = thread::spawn(move || stubborn(listener.accept().expect("a connection").0));
        let read = runtime::run(async move {
            let stream = Stream::connect_unix(&path, Duration::from_secs(30)).await;
            write_and_read(stream.expect("it listens")).await
        });
        assert_eq!(read.expect("a loop"), MUCH);
        assert_eq!(peer.join().expect("no panic").join().expect("no panic"), MUCH);
    }

    /// Nothing is left of a connection whose read waits, once its limit is dropped.
    #[test]
    fn a_read_that_waits_ends_with_the_connection() {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().expect("a pair");
        let result = runtime::run(async move {
            let socket = UnixStream::from_std(ours).expect("the loop takes it");
            let watch = watch(socket.as_raw_fd());
            let (mut receiving, sending, limit) =
                Stream { watch, socket: Socket::Unix(socket) }.split();
            let ending = async {
                runtime::sleep(Duration::from_millis(20)).await;
                drop(limit);
            };
            let (read, ()) = tokio::join!(receiving.read(Buffer::new(SMALL)), ending);
            drop(sending);
            read.0.map_err(|error| error.to_string())
        });
        assert_eq!(result.expect("a loop"), Ok(0));
        drop(theirs);
    }
}
