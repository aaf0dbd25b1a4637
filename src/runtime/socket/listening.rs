//! Listening sockets, one for each worker.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;

use monoio::io::CancelHandle;
use monoio::net::TcpListener;

use super::super::deadline;
use super::Stream;

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
        rustix::io::fcntl_setfd(deadline::borrow(fd, &stream), rustix::io::FdFlags::CLOEXEC)?;
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
