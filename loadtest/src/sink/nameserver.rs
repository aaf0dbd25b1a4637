//! The sockets of the name server: questions by UDP and TCP, on a thread of its own so that its
//! work is not done at the cost of the mail.
//!
//! What cannot be read gets no answer.  A client by TCP may ask one question after the other
//! (RFC 7766) and is cut off when it is silent for too long.

use std::cell::RefCell;
use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use fastrand::Rng;
use monoio::io::{CancelHandle, Canceller};
use monoio::net::udp::UdpSocket;

use super::zone::{Transport, answer};
use super::{Live, SinkError, world::World};
use crate::runtime::link::{Link, Listener, bind, sweep_forever};
use crate::runtime::{self, sleep, spawn};

/// The longest question that is read.
const QUESTION_MAX: usize = 4_096;
/// How long a client by TCP may be silent.
const PATIENCE: Duration = Duration::from_secs(10);
/// Clients by TCP at a time; more are closed at once.
const CLIENTS_MAX: usize = 512;
/// How often the thread looks whether it is to end.
const LOOK: Duration = Duration::from_millis(50);
/// The wait after an accept or a receipt that failed.
const PAUSE: Duration = Duration::from_millis(20);

/// Both sockets of an address, bound and not yet served.
#[derive(Debug)]
pub struct Sockets {
    /// Where, with the port that the system chose where none was given.
    pub address: SocketAddr,
    udp: std::net::UdpSocket,
    tcp: TcpListener,
}

struct Server {
    world: Arc<World>,
    random: RefCell<Rng>,
    udp: UdpSocket,
}

impl Sockets {
    /// Binds an address for both.
    ///
    /// # Errors
    /// As bind(2).
    pub fn bind(address: SocketAddr) -> Result<Sockets, SinkError> {
        let failed = |error| SinkError::Listen(address, error);
        let udp = std::net::UdpSocket::bind(address).map_err(failed)?;
        udp.set_nonblocking(true).map_err(failed)?;
        let address = udp.local_addr().map_err(failed)?;
        Ok(Sockets { address, udp, tcp: bind(address).map_err(failed)? })
    }
}

/// Answers until the sink is to end.
pub fn run(world: Arc<World>, live: Arc<Live>, sockets: Sockets) -> Result<(), SinkError> {
    let ended = runtime::run(drive(world, live, sockets));
    ended.and_then(|inner| inner).map_err(SinkError::Thread)
}

async fn drive(world: Arc<World>, live: Arc<Live>, sockets: Sockets) -> std::io::Result<()> {
    spawn(sweep_forever());
    let udp = UdpSocket::from_std(sockets.udp)?;
    let server = Rc::new(Server { world, random: RefCell::new(Rng::with_seed(53)), udp });
    let canceller = Canceller::new();
    spawn(server.clone().serve_udp());
    let listener = Listener::new(sockets.tcp)?;
    spawn(server.serve_tcp(listener, canceller.handle(), live.clone()));
    while !live.stop.load(Ordering::Relaxed) {
        sleep(LOOK).await;
    }
    canceller.cancel();
    Ok(())
}

impl Server {
    fn answer(&self, question: &[u8], transport: Transport) -> Option<Vec<u8>> {
        answer(&self.world, question, transport, &mut self.random.borrow_mut())
    }

    fn latency(&self) -> Option<Duration> {
        let range = self.world.naming.latency?;
        Some(range.draw(&mut self.random.borrow_mut()))
    }

    async fn serve_udp(self: Rc<Self>) {
        let mut buffer = Vec::with_capacity(QUESTION_MAX);
        loop {
            buffer.clear();
            let (result, taken) = self.udp.recv_from(buffer).await;
            buffer = taken;
            // A client that has closed its socket shows here as an error; it does not matter.
            let Ok((_, client)) = result else {
                sleep(PAUSE).await;
                continue;
            };
            let Some(reply) = self.answer(&buffer, Transport::Udp) else { continue };
            match self.latency() {
                None => drop(self.udp.send_to(reply, client).await),
                Some(time) => {
                    let server = self.clone();
                    spawn(async move {
                        sleep(time).await;
                        // What is lost on the way the client asks for again.
                        drop(server.udp.send_to(reply, client).await);
                    });
                }
            }
        }
    }

    async fn serve_tcp(self: Rc<Self>, listener: Listener, cancel: CancelHandle, live: Arc<Live>) {
        let clients = Rc::new(());
        while !live.stop.load(Ordering::Relaxed) {
            match listener.accept(cancel.clone()).await {
                Ok((link, _)) if Rc::strong_count(&clients) <= CLIENTS_MAX => {
                    let (server, client) = (self.clone(), clients.clone());
                    spawn(async move {
                        server.serve_client(link).await;
                        drop(client);
                    });
                }
                Ok(_) => {}
                Err(_) => sleep(PAUSE).await,
            }
        }
    }

    /// Each question and each answer stands behind its length in two octets (RFC 1035 section
    /// 4.2.2).
    async fn serve_client(&self, mut link: Link) {
        let mut buffer: Vec<u8> = Vec::with_capacity(2 + QUESTION_MAX);
        loop {
            while let Some((length, rest)) = buffer.split_first_chunk::<2>() {
                let length = usize::from(u16::from_be_bytes(*length));
                if length > QUESTION_MAX {
                    return;
                }
                let Some(question) = rest.get(..length) else { break };
                let reply = self.answer(question, Transport::Tcp);
                buffer.drain(..2 + length);
                let Some(reply) = reply else { continue };
                if let Some(time) = self.latency() {
                    sleep(time).await;
                }
                let length = u16::try_from(reply.len()).expect("an answer is within the limit");
                let framed = [&length.to_be_bytes()[..], &reply].concat();
                link.must_end_by(Instant::now() + PATIENCE);
                if link.write_all(framed).await.0.is_err() {
                    return;
                }
            }
            link.must_end_by(Instant::now() + PATIENCE);
            let result;
            (result, buffer) = link.read(buffer).await;
            if !matches!(result, Ok(1..)) {
                return;
            }
        }
    }
}
