//! A TCP connection, in clear or encrypted, whose reads and writes stand under a deadline.
//!
//! A timer for each operation would cost as much as the operation; so a connection only notes
//! when its operation must be over, and a sweep of the thread shuts down the sockets that are
//! late.  That ends their operation, and no future of one is ever dropped half-way.
#![allow(unsafe_code)] // Borrowed descriptors of sockets that a task owns.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use monoio::buf::{IoBuf, IoBufMut, Slice};
use monoio::io::{
    AsyncReadRent, AsyncWriteRentExt, CancelHandle, OwnedReadHalf, OwnedWriteHalf, Splitable,
};
use monoio::net::{TcpListener, TcpStream};
use nix::sys::socket::sockopt::IpBindAddressNoPort;

use super::tls::Tls;

/// How often the sweep looks: the most that an operation outlives its deadline.
const SWEEP: Duration = Duration::from_millis(200);
/// Connections that the kernel holds for us between two accepts.
const BACKLOG: i32 = 4_096;

/// A connection in either direction.
pub struct Link {
    reading: OwnedReadHalf<TcpStream>,
    writing: OwnedWriteHalf<TcpStream>,
    watch: Rc<Watch>,
    tls: Option<Box<Tls>>,
}

/// Octets that can be sent as they are or be encrypted.
pub trait Octets: IoBuf {
    /// What it holds.
    fn octets(&self) -> &[u8];
}

impl Octets for Vec<u8> {
    fn octets(&self) -> &[u8] {
        self
    }
}

impl Octets for Arc<Vec<u8>> {
    fn octets(&self) -> &[u8] {
        self
    }
}

impl Octets for Box<[u8]> {
    fn octets(&self) -> &[u8] {
        self
    }
}

impl Octets for &'static [u8] {
    fn octets(&self) -> &[u8] {
        self
    }
}

impl<B: Octets> Octets for Slice<B> {
    fn octets(&self) -> &[u8] {
        &self.get_ref().octets()[self.begin()..self.end()]
    }
}

/// Why a connection could not be made, or no longer serves.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The deadline passed.
    #[error("the time allowed for an answer passed")]
    TimedOut,
    /// The peer closed it where a reply or a command was due.
    #[error("connection closed by the peer")]
    Closed,
    /// The two sides did not come to terms about TLS, or the peer broke it.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// The system said no.
    #[error("{}", .0.kind())]
    Io(#[source] io::Error),
}

struct Watch {
    fd: RawFd,
    deadline: Cell<Instant>,
    late: Cell<bool>,
    place: Cell<usize>,
}

thread_local! {
    static WATCHED: RefCell<Vec<Rc<Watch>>> = const { RefCell::new(Vec::new()) };
}

impl Link {
    fn new(tcp: TcpStream) -> io::Result<Link> {
        // What belongs together is written together; waiting for more would only add delay.
        tcp.set_nodelay(true)?;
        let watch = WATCHED.with_borrow_mut(|watched| {
            let watch = Rc::new(Watch {
                fd: tcp.as_raw_fd(),
                deadline: Cell::new(Instant::now() + Duration::from_secs(600)),
                late: Cell::new(false),
                place: Cell::new(watched.len()),
            });
            watched.push(watch.clone());
            watch
        });
        let (reading, writing) = tcp.into_split();
        Ok(Link { reading, writing, watch, tls: None })
    }

    /// Connects to `peer`, from the address `source` if one is given.
    ///
    /// # Errors
    /// As connect(2); `TimedOut` after `limit`.
    pub async fn connect(
        peer: SocketAddr,
        source: Option<IpAddr>,
        limit: Duration,
    ) -> Result<Link, LinkError> {
        // The socket of a connect that is given up is closed with its future.
        let connecting = async {
            match source {
                None => TcpStream::connect_addr(peer).await,
                Some(source) => connect_from(source, peer).await,
            }
        };
        match monoio::time::timeout(limit, connecting).await {
            Err(_) => Err(LinkError::TimedOut),
            Ok(connected) => connected.and_then(Link::new).map_err(LinkError::Io),
        }
    }

    /// Everything from here on must be over by `deadline`, until another one is set.
    pub fn must_end_by(&self, deadline: Instant) {
        self.watch.deadline.set(deadline);
    }

    /// Waits for bytes and puts them behind what `buffer` holds, without growing it; `Ok(0)` is
    /// the peer's end of the stream (or a buffer without room).
    ///
    /// # Errors
    /// `TimedOut` when the deadline passed; the connection is then dead.
    pub async fn read(&mut self, mut buffer: Vec<u8>) -> (Result<usize, LinkError>, Vec<u8>) {
        let Some(mut tls) = self.tls.take() else { return self.read_socket(buffer).await };
        let result = loop {
            match tls.take(&mut buffer) {
                Err(error) => break Err(error.into()),
                Ok(Some(octets)) => break Ok(octets),
                Ok(None) => {}
            }
            match self.read_records(&mut tls).await {
                Ok(1..) => {}
                ended => break ended,
            }
        };
        self.tls = Some(tls);
        (result, buffer)
    }

    /// Shakes hands; from here on everything is encrypted.
    ///
    /// # Errors
    /// The connection is of no more use.
    pub async fn start_tls(
        &mut self,
        connection: impl Into<rustls::Connection>,
    ) -> Result<(), LinkError> {
        let mut tls = Box::new(Tls::new(connection.into()));
        loop {
            let fed = tls.feed();
            // Also the alert that says what was wrong.
            let records = tls.outgoing();
            let sent = self.write_socket(records).await.0;
            fed?;
            sent?;
            if !tls.is_handshaking() {
                self.tls = Some(tls);
                return Ok(());
            }
            if self.read_records(&mut tls).await? == 0 {
                return Err(LinkError::Closed);
            }
        }
    }

    async fn read_records(&mut self, tls: &mut Tls) -> Result<usize, LinkError> {
        let (result, records) = self.read_socket(tls.lend()).await;
        tls.give_back(records);
        result
    }

    async fn read_socket(&mut self, buffer: Vec<u8>) -> (Result<usize, LinkError>, Vec<u8>) {
        let (begin, end) = (buffer.len(), buffer.capacity());
        let (result, slice) = self.reading.read(buffer.slice_mut(begin..end)).await;
        (self.judge(result), slice.into_inner())
    }

    /// Writes all of `bytes` and gives the buffer back.
    ///
    /// # Errors
    /// `TimedOut` when the peer did not take them in time; the connection is then dead.
    pub async fn write_all<B: Octets>(&mut self, bytes: B) -> (Result<(), LinkError>, B) {
        let Some(tls) = &mut self.tls else { return self.write_socket(bytes).await };
        let records = tls.encrypt(bytes.octets());
        (self.write_socket(records).await.0, bytes)
    }

    async fn write_socket<B: IoBuf>(&mut self, bytes: B) -> (Result<(), LinkError>, B) {
        let (result, bytes) = self.writing.write_all(bytes).await;
        (self.judge(result.map(|_| ())), bytes)
    }

    /// Writes all of `bytes` and waits for what comes back, as [`Link::read`] does.
    ///
    /// Both operations are handed to the kernel together: a round trip then costs one turn of the
    /// event loop instead of two, which is a good part of what a short command costs.
    ///
    /// # Errors
    /// As [`Link::write_all`] and [`Link::read`].
    pub async fn exchange<B: Octets>(
        &mut self,
        bytes: B,
        buffer: Vec<u8>,
    ) -> (Result<usize, LinkError>, B, Vec<u8>) {
        if self.tls.is_some() {
            let (written, bytes) = self.write_all(bytes).await;
            if let Err(error) = written {
                return (Err(error), bytes, buffer);
            }
            let (result, buffer) = self.read(buffer).await;
            return (result, bytes, buffer);
        }
        let (begin, end) = (buffer.len(), buffer.capacity());
        let write = self.writing.write_all(bytes);
        let read = self.reading.read(buffer.slice_mut(begin..end));
        // Neither is dropped half-way: a read on a connection whose write failed ends with it.
        let ((written, bytes), (result, slice)) = monoio::join!(write, read);
        let result = written.and(result);
        (self.judge(result), bytes, slice.into_inner())
    }

    /// Tells a TLS peer that nothing more comes.
    pub async fn close(mut self) {
        if let Some(tls) = &mut self.tls {
            let records = tls.close();
            // A peer that has gone needs no good-bye.
            let _ = self.write_socket(records).await;
        }
    }

    /// Closes it with a reset, as a host that died or a process that was killed would.
    pub fn reset(self) {
        let linger = rustix::net::sockopt::set_socket_linger(self.fd(), Some(Duration::ZERO));
        // Without the option it closes in the ordinary way: also an end in the middle.
        let _ = linger;
    }

    /// The address at this end.
    pub fn local_address(&self) -> Option<SocketAddr> {
        rustix::net::getsockname(self.fd()).ok()?.try_into().ok()
    }

    /// Asks the kernel to keep only `octets` of what the peer sent and we did not read.
    pub fn narrow(&self, octets: usize) {
        // A hint that makes slow reading felt sooner; nothing depends on it.
        let _ = rustix::net::sockopt::set_socket_recv_buffer_size(self.fd(), octets);
    }

    fn fd(&self) -> BorrowedFd<'_> {
        borrow(self.watch.fd, self)
    }

    fn judge<T>(&self, result: io::Result<T>) -> Result<T, LinkError> {
        if self.watch.late.get() {
            return Err(LinkError::TimedOut);
        }
        result.map_err(LinkError::Io)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // A thread that is ending has no list any more.
        let _ = WATCHED.try_with(|watched| {
            let mut watched = watched.borrow_mut();
            let place = self.watch.place.get();
            watched.swap_remove(place);
            if let Some(moved) = watched.get(place) {
                moved.place.set(place);
            }
        });
    }
}

/// The sweep; one such task runs on every thread for as long as its loop does.
pub async fn sweep_forever() {
    loop {
        super::sleep(SWEEP).await;
        cut_late(Instant::now());
    }
}

/// Cuts every connection of this thread that is late at `now`.
fn cut_late(now: Instant) {
    cut(|watch| watch.deadline.get() <= now);
}

/// Shuts down all connections of this thread.  Tasks that sleep when their loop ends are never
/// dropped, and the connections that they own would stay open until the process ends.
pub fn cut_all() {
    cut(|_| true);
}

/// Shuts down the connections of this thread that are `chosen`, and says so to who waits for them.
fn cut(chosen: impl Fn(&Watch) -> bool) {
    WATCHED.with_borrow(|watched| {
        for watch in watched.iter().filter(|watch| chosen(watch)) {
            watch.late.set(true);
            // The peer may be gone already: then the operation is ending anyway.
            let _ = rustix::net::shutdown(borrow(watch.fd, watch), rustix::net::Shutdown::Both);
        }
    });
}

/// The descriptor of a socket that `_owner` keeps open.
fn borrow<T: ?Sized>(fd: RawFd, _owner: &T) -> BorrowedFd<'_> {
    // SAFETY: a watch is a field of the link that owns the socket and leaves the list before the
    // socket is closed; the borrow ends with the owner's.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

/// Binds before it connects, which monoio's own connect cannot.
async fn connect_from(source: IpAddr, peer: SocketAddr) -> io::Result<TcpStream> {
    let socket = stream_socket(peer)?;
    // The kernel then chooses the port when it knows both ends, so that every source address has
    // all ports for every destination.
    nix::sys::socket::setsockopt(&socket, IpBindAddressNoPort, &true)?;
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
    match rustix::net::sockopt::socket_error(borrow(stream.as_raw_fd(), &stream))? {
        Ok(()) => Ok(stream),
        Err(error) => Err(error.into()),
    }
}

fn stream_socket(peer: SocketAddr) -> io::Result<socket2::Socket> {
    let domain = socket2::Domain::for_address(peer);
    let socket = socket2::Socket::new(domain, socket2::Type::STREAM, Some(socket2::Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// A listening socket of one thread; all threads bind the same address with SO_REUSEPORT and the
/// kernel spreads the connections.
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
    pub async fn accept(&self, cancel: CancelHandle) -> io::Result<(Link, SocketAddr)> {
        let (tcp, peer) = self.tcp.cancelable_accept(cancel).await?;
        Ok((Link::new(tcp)?, peer))
    }
}

/// Binds `address` for one of several threads.
///
/// # Errors
/// As bind(2) and listen(2).
pub fn bind(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = stream_socket(address)?;
    socket.set_reuse_port(true)?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}
