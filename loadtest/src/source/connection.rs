//! One connection to the server: commands out, replies in, each under a deadline.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::plan::Security;
use crate::runtime::link::{Link, LinkError, Octets};
use crate::wire::reply::{Replies, Reply, ReplyError};

/// How long QUIT may take to be answered: nothing depends on it any more.
const QUIT: Duration = Duration::from_secs(2);

/// See the module's text.
pub struct Connection {
    link: Link,
    replies: Replies,
    /// What the server may take for an answer.
    pub timeout: Duration,
    /// Offered in the reply to EHLO.
    pub offers: Offers,
    /// Messages that were begun on it.
    pub messages: u32,
    /// Commands are written so many octets at a time, with such pauses.
    pub trickle_commands: Option<(usize, Duration)>,
    /// The commands that are written next; kept to be used again.
    pub commands: Vec<u8>,
}

/// What a server offers of what a plan may need.
#[derive(Debug, Clone, Copy, Default)]
pub struct Offers {
    /// RFC 2920.
    pub pipelining: bool,
    /// RFC 3030.
    pub chunking: bool,
    /// RFC 3207.
    pub starttls: bool,
    /// AUTH with PLAIN among its mechanisms (RFC 4954).
    pub auth_plain: bool,
}

/// Why a connection is of no more use.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// The network.
    #[error("{0}")]
    Link(#[from] LinkError),
    /// The server does not speak SMTP.
    #[error("{0}")]
    Protocol(#[from] ReplyError),
    /// The server does not offer what the plan needs.
    #[error("the server does not offer {0}")]
    NotOffered(&'static str),
}

impl Broken {
    /// Whether nothing can be said about the message: the server may have had all of it.
    pub fn is_closed(&self) -> bool {
        matches!(self, Broken::Link(LinkError::Closed | LinkError::Io(_)))
    }
}

impl Connection {
    /// Connects; nothing has been read.
    ///
    /// # Errors
    /// As connect(2), or it took too long.
    pub async fn open(
        peer: SocketAddr,
        source: Option<IpAddr>,
        timeout: Duration,
    ) -> Result<Connection, Broken> {
        let link = Link::connect(peer, source, timeout).await?;
        Ok(Connection {
            link,
            replies: Replies::default(),
            timeout,
            offers: Offers::default(),
            messages: 0,
            trickle_commands: None,
            commands: Vec::with_capacity(256),
        })
    }

    /// Shakes hands; from here on everything is encrypted.
    ///
    /// # Errors
    /// The connection is of no more use; also if something came in clear that nobody asked for.
    pub async fn start_tls(&mut self, security: &Security) -> Result<(), Broken> {
        if self.is_ahead() {
            return Err(LinkError::Tls(rustls::Error::General(
                "something came in clear behind the reply to STARTTLS".into(),
            ))
            .into());
        }
        let (config, name) = (security.config.clone(), security.name.clone());
        let connection = rustls::ClientConnection::new(config, name).map_err(LinkError::Tls)?;
        self.link.start_tls(connection).await?;
        Ok(())
    }

    /// Whether the server said something that nobody asked for.
    pub fn is_ahead(&self) -> bool {
        self.replies.is_ahead()
    }

    /// The next reply.
    ///
    /// # Errors
    /// The connection is of no more use.
    pub async fn reply(&mut self) -> Result<Reply, Broken> {
        loop {
            if let Some(reply) = self.replies.next(|_| ())? {
                return Ok(reply);
            }
            self.fill().await?;
        }
    }

    /// The text of the reply that came last.
    pub fn text(&self, reply: &Reply) -> String {
        let text = String::from_utf8_lossy(self.replies.text(reply)).into_owned();
        format!("{} {}", reply.code, text.trim())
    }

    /// The reply to EHLO, and what it offers.
    ///
    /// # Errors
    /// The connection is of no more use.
    pub async fn offers(&mut self) -> Result<Reply, Broken> {
        let mut offers = Offers::default();
        loop {
            let next = self.replies.next(|line| {
                offers.pipelining |= line.eq_ignore_ascii_case(b"PIPELINING");
                offers.chunking |= line.eq_ignore_ascii_case(b"CHUNKING");
                offers.starttls |= line.eq_ignore_ascii_case(b"STARTTLS");
                offers.auth_plain |= is_auth_plain(line);
            });
            if let Some(reply) = next? {
                self.offers = offers;
                return Ok(reply);
            }
            self.fill().await?;
        }
    }

    async fn fill(&mut self) -> Result<(), Broken> {
        let buffer = self.replies.lend();
        let (result, buffer) = self.link.read(buffer).await;
        self.replies.give_back(buffer);
        match result? {
            0 => Err(LinkError::Closed.into()),
            _ => Ok(()),
        }
    }

    /// Starts the clock for whatever follows; it runs from `now`.
    pub fn hurry(&self, now: Instant) {
        self.link.must_end_by(now + self.timeout);
    }

    /// Writes [`Connection::commands`], empties them and waits for what comes back; gives the
    /// moment before.
    ///
    /// # Errors
    /// The connection is of no more use.
    pub async fn send_commands(&mut self) -> Result<Instant, Broken> {
        let now = Instant::now();
        self.hurry(now);
        let commands = std::mem::take(&mut self.commands);
        let (result, mut commands) = match self.trickle_commands {
            None => self.exchange(commands).await,
            Some(trickle) => self.trickle(commands, trickle).await,
        };
        commands.clear();
        self.commands = commands;
        result?;
        Ok(now)
    }

    /// Writes `bytes`, gives them back, and waits for what comes back.
    pub async fn exchange<B: Octets>(&mut self, bytes: B) -> (Result<(), Broken>, B) {
        let buffer = self.replies.lend();
        let (result, bytes, buffer) = self.link.exchange(bytes, buffer).await;
        self.replies.give_back(buffer);
        let result = match result {
            Ok(0) => Err(LinkError::Closed.into()),
            Ok(_) => Ok(()),
            Err(error) => Err(error.into()),
        };
        (result, bytes)
    }

    /// Writes `bytes` and gives them back; more is to follow before an answer comes.
    pub async fn send<B: Octets>(&mut self, bytes: B) -> (Result<(), Broken>, B) {
        let (result, bytes) = self.link.write_all(bytes).await;
        (result.map_err(Broken::from), bytes)
    }

    /// Writes `bytes` in pieces of `octets`, with a pause of `every` after each.
    pub async fn trickle<B: Octets>(
        &mut self,
        mut bytes: B,
        (octets, every): (usize, Duration),
    ) -> (Result<(), Broken>, B) {
        let (mut begin, end) = (0, bytes.bytes_init());
        while begin < end {
            let piece = bytes.slice(begin..end.min(begin + octets));
            self.hurry(Instant::now());
            let (result, piece) = self.link.write_all(piece).await;
            bytes = piece.into_inner();
            if let Err(error) = result {
                return (Err(error.into()), bytes);
            }
            begin += octets;
            crate::runtime::sleep(every).await;
        }
        (Ok(()), bytes)
    }

    /// Waits until `end`, or until the server says something or closes.
    ///
    /// # Errors
    /// It closed, or said what is no reply.
    pub async fn stay(&mut self, end: Instant) -> Result<Option<Reply>, Broken> {
        self.link.must_end_by(end);
        match self.reply().await {
            Err(Broken::Link(LinkError::TimedOut)) => Ok(None),
            Err(error) => Err(error),
            Ok(reply) => Ok(Some(reply)),
        }
    }

    /// QUIT, and waits for the answer, so that the server has closed its side.
    pub async fn quit(mut self) {
        self.commands.clear();
        self.commands.extend_from_slice(b"QUIT\r\n");
        self.timeout = self.timeout.min(QUIT);
        self.trickle_commands = None;
        if self.send_commands().await.is_ok() {
            // Whatever it answers, the connection ends here.
            let _ = self.reply().await;
        }
        self.link.close().await;
    }
}

fn is_auth_plain(line: &[u8]) -> bool {
    let mut words = line.split(|&octet| octet == b' ');
    words.next().is_some_and(|keyword| keyword.eq_ignore_ascii_case(b"AUTH"))
        && words.any(|mechanism| mechanism.eq_ignore_ascii_case(b"PLAIN"))
}
