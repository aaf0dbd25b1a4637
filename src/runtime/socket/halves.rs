//! The two halves of a stream that is read and written at the same time.
//!
//! They stand under one deadline, a [`TimeLimit`], and share one TLS state, borrowed only between
//! two operations of the socket, never across one.

use std::cell::RefCell;
use std::io;
use std::os::fd::AsRawFd;
use std::rc::{Rc, Weak};
use std::time::Instant;

use monoio::buf::IoBuf;
use monoio::io::{AsyncReadRent, AsyncWriteRent, OwnedReadHalf, OwnedWriteHalf, Splitable};
use monoio::net::{TcpStream, UnixStream};

use super::super::buffer::{Fill, Spare, octets};
use super::super::deadline::{self, Shortage, Watch};
use super::super::tls::inflow::Drained;
use super::super::tls::link::Link;
use super::{Fd, Socket, Stream, StreamError, judge};

impl Stream {
    /// The two directions, to be used at the same time.
    pub fn split(self) -> (Receiving, Sending, TimeLimit) {
        let fd = self.fd().as_raw_fd();
        self.watch.set_for_both(None);
        let watch = Rc::new(self.watch);
        let tls = self.tls.map(|link| Rc::new(RefCell::new(*link)));
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
        (
            Receiving { watch: watch.clone(), half: reading, tls: tls.clone() },
            Sending { watch, half: writing, fd, tls },
            limit,
        )
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
    tls: Option<Rc<RefCell<Link>>>,
}

/// The half of a stream that is written.
pub struct Sending {
    watch: Rc<Watch>,
    half: WriteHalf,
    fd: Fd,
    tls: Option<Rc<RefCell<Link>>>,
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
    pub async fn read<B: Fill>(&mut self, mut buffer: B) -> (Result<usize, StreamError>, B) {
        let Some(tls) = self.tls.clone() else { return self.read_socket(buffer).await };
        loop {
            let drained = tls.borrow_mut().drain(&mut buffer);
            match drained {
                Ok(Drained::Octets(octets)) => return (Ok(octets), buffer),
                Ok(Drained::Ended) => return (Ok(0), buffer),
                Ok(Drained::NeedsInput) => {}
                Err(error) => return (Err(StreamError::Io(error)), buffer),
            }
            let records = tls.borrow_mut().take_buffer();
            let records = match records {
                Ok(records) => records,
                Err(error) => return (Err(StreamError::Io(error)), buffer),
            };
            let (result, records) = self.read_socket(records).await;
            tls.borrow_mut().inflow.put_buffer(records);
            match result {
                Ok(0) | Err(_) => return (result, buffer),
                Ok(_) => {}
            }
        }
    }

    async fn read_socket<B: Fill>(&mut self, buffer: B) -> (Result<usize, StreamError>, B) {
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
        if let Some(tls) = self.tls.clone() {
            let plain = octets(&bytes).get(from..).unwrap_or_default();
            return (self.write_plain(&tls, plain).await, bytes);
        }
        let (result, slice) = self.write_socket(bytes.slice(from..)).await;
        (result, slice.into_inner())
    }

    /// Tells a TLS peer that nothing more comes, as far as the kernel takes it now.
    pub fn close(&mut self) {
        let Some(tls) = &self.tls else { return };
        let mut tls = tls.borrow_mut();
        tls.records.close();
        let flags = rustix::net::SendFlags::DONTWAIT | rustix::net::SendFlags::NOSIGNAL;
        let last = tls.records.take_outgoing();
        let _ = rustix::net::send(deadline::borrow(self.fd, self), &last, flags);
    }

    /// Writes what one buffer of records takes of `plain`, all of it.
    async fn write_plain(
        &mut self,
        tls: &RefCell<Link>,
        plain: &[u8],
    ) -> Result<usize, StreamError> {
        let encrypted = tls.borrow_mut().encrypt(plain);
        let (mut records, taken) = encrypted.map_err(StreamError::Io)?;
        let mut written = 0;
        while written < records.bytes().len() {
            let (result, slice) = self.write_socket(records.slice(written..)).await;
            records = slice.into_inner();
            match result? {
                0 => return Err(StreamError::Io(io::ErrorKind::WriteZero.into())),
                octets => written += octets,
            }
        }
        Ok(taken)
    }

    async fn write_socket<B: IoBuf>(&mut self, bytes: B) -> (Result<usize, StreamError>, B) {
        let (result, bytes) = either!(WriteHalf, &mut self.half, half => half.write(bytes).await);
        (judge(&self.watch, result), bytes)
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
                deadline::borrow(self.fd, &*watch),
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

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::thread;
    use std::time::Duration;

    use super::super::super::deadline::watch;
    use super::*;
    use crate::runtime;
    use crate::runtime::buffer::{Buffer, SMALL};

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
                Stream { watch, socket: Socket::Unix(socket), tls: None }.split();
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
