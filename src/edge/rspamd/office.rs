//! The thread that speaks HTTP with rspamd, for all workers.
//!
//! A worker sends an [`Errand`], and with a large message the pieces of it one by one; it hears by
//! [`News`] when there is room for the next piece, and what rspamd says.  Each errand is a task of
//! its own under its deadline, the connect included.  Connections that rspamd keeps open are used
//! again, unless they have idled for long; where one that was kept turns out to be closed, a small
//! message is shown once more over a new one.  A large one, which cannot be repeated, gets a new one
//! at once.
//!
//! Invariants: every errand is answered once, even if its task comes to grief; one that its worker
//! has given up on ends at once, wherever it is, and its connection with it: what was not whole by
//! then never looks whole to rspamd.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::StatusCode;
use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use hyper::client::conn::http1::{Builder, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio::time::{interval, timeout, timeout_at};

use super::addresses::Addresses;
use super::alarm::Alarm;
use super::question::Question;
use super::{Assessment, Failure, answer};
use crate::limits;

/// The thread.
#[derive(Debug)]
pub struct Office {
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

/// How to reach it.
#[derive(Debug, Clone)]
pub struct Handle {
    errands: mpsc::UnboundedSender<Errand>,
    alarm: Arc<Alarm>,
}

/// One message to be shown.
#[derive(Debug)]
pub struct Errand {
    /// Whose it is and for whom.
    pub question: Question,
    /// Its octets.
    pub message: Message,
    /// Nobody waits for an answer after this.
    pub deadline: Instant,
    /// Nobody waits for an answer once the other end of this is dropped.
    pub given_up: oneshot::Receiver<()>,
    /// Who waits for it.
    pub teller: Teller,
}

/// The octets of a message.
#[derive(Debug)]
pub enum Message {
    /// All of them.
    Whole(Bytes),
    /// They come one piece after the other.
    Pieces {
        /// How many there are in all, if that is known.
        octets: Option<u64>,
        /// The pieces; without a [`Piece::End`] it was given up.
        pieces: mpsc::Receiver<Piece>,
    },
}

/// A piece of a message.
#[derive(Debug)]
pub enum Piece {
    /// The next octets.
    Octets(Bytes),
    /// There are no more.
    End,
}

/// What a worker hears of an errand.
#[derive(Debug)]
pub enum News {
    /// A piece was taken: there is room for the next one.
    Taken,
    /// What came of it.
    Done(Box<Result<Assessment, Failure>>),
}

/// Takes news to a worker.  Called on the office's thread: must not block.
pub type Announce = Arc<dyn Fn(u64, News) + Send + Sync>;

/// Tells one worker of one errand; that it came to nothing if it is dropped before.
pub struct Teller {
    announce: Announce,
    token: u64,
    is_done: bool,
}

impl Office {
    /// Starts the thread, for the rspamd at `authority`, a host and a port.
    ///
    /// # Errors
    /// The system refuses a thread or an event loop.
    pub fn start(authority: &str) -> io::Result<(Office, Handle)> {
        Office::keeping_for(limits::RSPAMD_IDLE, authority)
    }

    /// The same with connections that are kept for so long.
    fn keeping_for(idle: Duration, authority: &str) -> io::Result<(Office, Handle)> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (sender, mut errands) = mpsc::unbounded_channel();
        let (stop, mut stopped) = oneshot::channel();
        let peer = Arc::new(Peer {
            authority: authority.into(),
            addresses: Arc::new(Addresses::new(authority)),
            kept: Mutex::default(),
            idle,
            large_answers: Semaphore::new(limits::RSPAMD_LARGE_ANSWERS),
        });
        let serving = async move {
            let mut looks = interval(idle / 2);
            loop {
                tokio::select! {
                    errand = errands.recv() => match errand {
                        Some(errand) => drop(tokio::spawn(run(peer.clone(), errand))),
                        None => return,
                    },
                    _ = looks.tick() => peer.close_idle(),
                    _ = &mut stopped => return,
                }
            }
        };
        let body = move || {
            runtime.block_on(serving);
            // What is under way ends here, and its teller says so.
            runtime.shutdown_background();
        };
        let thread = thread::Builder::new().name("rspamd".to_owned()).spawn(body)?;
        let handle = Handle { errands: sender, alarm: Arc::default() };
        Ok((Office { stop, thread }, handle))
    }

    /// Ends it.
    pub fn stop(self) {
        // If the thread has ended by itself there is nothing to stop.
        let _ = self.stop.send(());
        // A panic in it has been told by the hook.
        let _ = self.thread.join();
    }
}

impl Handle {
    /// Sends an errand on its way.
    pub fn send(&self, errand: Errand) {
        // An office that is gone drops it, and with it the teller that says so.
        let _ = self.errands.send(errand);
    }

    /// Tells the operator that rspamd has not judged a message, once in a while.
    pub fn warn(&self, failure: Failure) {
        if let Some(messages) = self.alarm.raise(Instant::now()) {
            tracing::warn!(%failure, messages, "rspamd does not judge messages");
        }
    }
}

impl Teller {
    /// Tells of the errand that its worker calls `token`.
    pub fn new(announce: Announce, token: u64) -> Teller {
        Teller { announce, token, is_done: false }
    }

    fn done(mut self, result: Result<Assessment, Failure>) {
        self.is_done = true;
        (self.announce)(self.token, News::Done(Box::new(result)));
    }
}

impl Drop for Teller {
    fn drop(&mut self) {
        if !self.is_done {
            (self.announce)(self.token, News::Done(Box::new(Err(Failure::Broken))));
        }
    }
}

impl std::fmt::Debug for Teller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Teller").field(&self.token).finish()
    }
}

/// rspamd, and the connections to it that nobody uses now.
struct Peer {
    authority: Box<str>,
    addresses: Arc<Addresses>,
    /// With when they were kept, the last one last.
    kept: Mutex<Vec<(Instant, Connection)>>,
    /// How long a connection may idle.
    idle: Duration,
    /// For each answer of more than [`limits::RSPAMD_SMALL_ANSWER`] that may be read at a time.
    large_answers: Semaphore,
}

/// A connection; closed when this is dropped.
struct Connection {
    sender: SendRequest<Outgoing>,
    task: AbortHandle,
}

/// What is sent of a message.
type Outgoing = UnsyncBoxBody<Bytes, Gone>;

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn run(peer: Arc<Peer>, errand: Errand) {
    let Errand { question, message, deadline, given_up, teller } = errand;
    let announce = (teller.announce.clone(), teller.token);
    let exchange = timeout_at(deadline.into(), peer.exchange(&question, message, announce));
    let result = tokio::select! {
        result = exchange => result.unwrap_or(Err(Failure::Late)),
        // A connection that is being made, or on which rspamd neither reads nor says anything, would
        // be held up to the deadline, which is a day where a message is shown while it comes.
        _ = given_up => Err(Failure::Late),
    };
    teller.done(result);
}

impl Peer {
    async fn exchange(
        &self,
        question: &Question,
        message: Message,
        (announce, token): (Announce, u64),
    ) -> Result<Assessment, Failure> {
        match message {
            Message::Whole(octets) => {
                let body = || {
                    let never = |never: Infallible| -> Gone { match never {} };
                    Full::new(octets.clone()).map_err(never).boxed_unsync()
                };
                if let Some(kept) = self.take_kept().await {
                    let answered = self.ask(kept, question, body(), true).await;
                    if answered != Err(Failure::Broken) {
                        return answered;
                    }
                }
                self.ask(self.connect().await?, question, body(), true).await
            }
            Message::Pieces { octets, pieces } => {
                let body = Pieces { octets, pieces, is_over: false, announce, token };
                self.ask(self.connect().await?, question, body.boxed_unsync(), false).await
            }
        }
    }

    async fn ask(
        &self,
        mut connection: Connection,
        question: &Question,
        message: Outgoing,
        is_to_be_kept: bool,
    ) -> Result<Assessment, Failure> {
        let request = question.request(&self.authority, message);
        let answered = connection.sender.send_request(request).await;
        let answered = answered.map_err(|_| Failure::Broken)?;
        let status = answered.status();
        let collected = self.collect(answered.into_body()).await?;
        // Who answers in the middle of a piece will not read the rest of it.
        if is_to_be_kept {
            self.keep(connection);
        }
        match status {
            StatusCode::OK => answer::read(&collected).ok_or(Failure::Strange),
            status => Err(Failure::Status(status.as_u16())),
        }
    }

    /// The octets of an answer.
    async fn collect(&self, mut body: Incoming) -> Result<Vec<u8>, Failure> {
        // Each time all of it at once: a vector that grows by itself has twice of what it needs.
        let told = body.size_hint().upper().and_then(|octets| usize::try_from(octets).ok());
        let small = limits::RSPAMD_SMALL_ANSWER;
        let mut octets = Vec::with_capacity(told.map_or(small, |octets| octets.min(small)));
        let mut turn = None;
        while let Some(frame) = body.frame().await {
            let Ok(piece) = frame.map_err(|_| Failure::Broken)?.into_data() else { continue };
            let len = octets.len() + piece.len();
            if len > limits::RSPAMD_ANSWER {
                return Err(Failure::TooLarge);
            }
            if len > small && turn.is_none() {
                turn = Some(self.large_answers.acquire().await.map_err(|_| Failure::Broken)?);
                octets.reserve_exact(limits::RSPAMD_ANSWER - octets.len());
            }
            octets.extend_from_slice(&piece);
        }
        Ok(octets)
    }

    async fn connect(&self) -> Result<Connection, Failure> {
        let addresses = self.addresses.find().await.ok_or(Failure::Unreachable)?;
        let stream = first_to_answer(&addresses, limits::RSPAMD_CONNECT).await;
        let stream = stream.ok_or(Failure::Unreachable)?;
        // A request is written in one go, but for its pieces: each of them should go at once.
        let _ = stream.set_nodelay(true);
        let mut builder = Builder::new();
        // What hyper takes of a message before rspamd has taken it, and the head of an answer.
        builder.max_buf_size(limits::RSPAMD_PIECE);
        let shaken = builder.handshake(TokioIo::new(stream)).await;
        let (sender, connection) = shaken.map_err(|_| Failure::Broken)?;
        // Its errors show in the answer.
        let task = tokio::spawn(async move { drop(connection.await) }).abort_handle();
        Ok(Connection { sender, task })
    }

    /// A connection that nobody uses and that is open as far as anybody knows.  It has not idled for
    /// too long: [`Peer::close_idle`] looks now and then only.
    async fn take_kept(&self) -> Option<Connection> {
        loop {
            let (since, mut kept) = self.kept().pop()?;
            if since.elapsed() >= self.idle {
                continue;
            }
            // It is a moment until one that has just been used may be used again.
            if let Ok(Ok(())) = timeout(READY, kept.sender.ready()).await {
                return Some(kept);
            }
        }
    }

    fn keep(&self, connection: Connection) {
        let mut kept = self.kept();
        if kept.len() < limits::RSPAMD_KEPT && !connection.sender.is_closed() {
            kept.push((Instant::now(), connection));
        }
    }

    /// Closes those that have idled for long, and lets go of those that rspamd has closed.
    fn close_idle(&self) {
        let is_of_use = |(since, kept): &(Instant, Connection)| {
            since.elapsed() < self.idle && !kept.sender.is_closed()
        };
        self.kept().retain(is_of_use);
    }

    fn kept(&self) -> MutexGuard<'_, Vec<(Instant, Connection)>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection to the first of these addresses that takes one.
///
/// They are tried in a row, and each has the same share of the patience: one that swallows whatever
/// it is sent must leave the others enough.
async fn first_to_answer(addresses: &[SocketAddr], patience: Duration) -> Option<TcpStream> {
    let share = patience / u32::try_from(addresses.len()).ok()?.max(1);
    for &address in addresses {
        if let Ok(Ok(stream)) = timeout(share, TcpStream::connect(address)).await {
            return Some(stream);
        }
    }
    None
}

/// A message that comes in pieces.
struct Pieces {
    /// Octets that are still to come, if that is known.
    octets: Option<u64>,
    pieces: mpsc::Receiver<Piece>,
    is_over: bool,
    announce: Announce,
    token: u64,
}

/// Its worker has given a message up.
#[derive(Debug, thiserror::Error)]
#[error("the message was given up")]
struct Gone;

impl Body for Pieces {
    type Data = Bytes;
    type Error = Gone;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Gone>>> {
        if self.is_over {
            return Poll::Ready(None);
        }
        let piece = ready!(self.pieces.poll_recv(context));
        Poll::Ready(match piece {
            Some(Piece::Octets(octets)) => {
                self.octets = self.octets.map(|left| left.saturating_sub(octets.len() as u64));
                (self.announce)(self.token, News::Taken);
                Some(Ok(Frame::data(octets)))
            }
            Some(Piece::End) => {
                self.is_over = true;
                None
            }
            None => {
                self.is_over = true;
                Some(Err(Gone))
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        self.is_over
    }

    fn size_hint(&self) -> SizeHint {
        self.octets.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

/// How long a connection may take to be ready for the next message.
const READY: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    use tokio::net::TcpSocket;

    use super::*;
    use crate::edge::rspamd::question::Facts;
    use crate::message::MessageId;
    use crate::smtp::address::ReversePath;

    /// It is we who close it: else one that rspamd closes meanwhile would be used once more.
    #[test]
    fn a_connection_that_idles_is_closed() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let authority = listener.local_addr().expect("bound").to_string();
        let idle = Duration::from_millis(20);
        let (office, handle) = Office::keeping_for(idle, &authority).expect("a thread");
        let question = Question::new(&Facts {
            id: MessageId(7),
            client: "192.0.2.1".parse().expect("an address"),
            helo: "client.example",
            hostname: None,
            user: None,
            secured: None,
            our_name: "mx.example.com",
            reverse_path: &ReversePath::Null,
            recipients: &[],
        });
        let (_waits, given_up) = oneshot::channel();
        handle.send(Errand {
            question,
            message: Message::Whole(Bytes::from_static(b"the end")),
            deadline: Instant::now() + Duration::from_secs(30),
            given_up,
            teller: Teller::new(Arc::new(|_, _| ()), 1),
        });
        let (mut stream, _) = listener.accept().expect("a connection");
        stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a socket option");
        read_to_the_end_of_the_message(&mut stream);
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").expect("it listens");
        assert_eq!(stream.read(&mut [0]).expect("it is closed"), 0);
        office.stop();
    }

    /// A listener nobody accepts from, whose queue is full, swallows who comes next.
    #[test]
    fn an_address_that_swallows_what_it_is_sent_leaves_time_for_the_next() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a loop").block_on(async {
            let socket = TcpSocket::new_v4().expect("a socket");
            socket.bind("127.0.0.1:0".parse().expect("an address")).expect("a port");
            let silent = socket.listen(0).expect("it listens");
            let silent_at = silent.local_addr().expect("bound");
            let mut queue = Vec::new();
            let share = Duration::from_millis(300);
            while let Some(stream) = first_to_answer(&[silent_at], share).await {
                queue.push(stream);
            }
            let open = TcpListener::bind("127.0.0.1:0").expect("a port");
            let open_at = open.local_addr().expect("bound");
            let stream = first_to_answer(&[silent_at, open_at], Duration::from_secs(2)).await;
            let found = stream.expect("one is open").peer_addr().expect("connected");
            assert_eq!(found, open_at);
        });
    }

    fn read_to_the_end_of_the_message(stream: &mut TcpStream) {
        let mut came = Vec::new();
        while !came.ends_with(b"the end") {
            let mut octets = [0; 512];
            let read = stream.read(&mut octets).expect("a question");
            assert!(read > 0, "it ended early");
            came.extend_from_slice(&octets[..read]);
        }
    }
}
