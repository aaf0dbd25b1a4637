//! Datagrams to one peer: a socket for one question to a name server.
//!
//! The socket is connected, so that the kernel passes only what comes from that peer's address and
//! port and reports a port that nobody listens on; its own port is one that the kernel picks at
//! random.  An operation that is given up takes its socket with it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::time::Instant;

use monoio::net::udp::UdpSocket;
use rustix::io::Errno;
use rustix::net::SendFlags;

use super::deadline::borrow;

/// A socket that hears one peer only.
pub struct Datagram {
    socket: UdpSocket,
}

impl Datagram {
    /// A new socket, connected to `peer`.
    ///
    /// # Errors
    /// As socket(2), bind(2) and connect(2): no descriptor left, no route to the peer.
    pub fn connect(peer: SocketAddr) -> io::Result<Datagram> {
        let any: IpAddr = match peer {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = UdpSocket::bind((any, 0))?;
        // Nothing is sent, so there is nothing to wait for.
        rustix::net::connect(borrow(socket.as_raw_fd(), &socket), &peer)?;
        Ok(Datagram { socket })
    }

    /// Sends one datagram.
    ///
    /// # Errors
    /// As send(2); `ConnectionRefused` if it is known at once that nobody listens.
    pub async fn send(&self, octets: Vec<u8>) -> io::Result<()> {
        let socket = borrow(self.socket.as_raw_fd(), self);
        let now = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        match rustix::net::send(socket, &octets, now) {
            // So much is on its way out that this one has to wait.
            Err(Errno::AGAIN) => drop(self.socket.send(octets).await.0?),
            result => drop(result?),
        }
        // On this machine the refusal is there already.  With epoll no read would tell of it: the
        // loop waits until there is something to read, and an error alone is nothing.
        Ok(rustix::net::sockopt::socket_error(socket)??)
    }

    /// The next datagram, cut off at the capacity of `buffer`, whose octets it replaces.
    ///
    /// # Errors
    /// As recv(2): `ConnectionRefused`, though not with epoll; `TimedOut` after `deadline`.
    pub async fn receive(
        self,
        mut buffer: Vec<u8>,
        deadline: Instant,
    ) -> io::Result<(Datagram, Vec<u8>)> {
        buffer.clear();
        let limit = deadline.saturating_duration_since(Instant::now());
        // The socket is this future's own: given up, it is closed and nothing can come late.
        match super::timeout(limit, self.socket.recv(buffer)).await {
            Some((result, octets)) => result.map(|_| (self, octets)),
            None => Err(io::ErrorKind::TimedOut.into()),
        }
    }
}
