//! Plays a dialogue to a gateway over TCP.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use super::format::{Action, Dialogue};
use super::judge::{self, Replies};

/// A client's connection: reading goes on beside writing, so that neither side waits in a write
/// for the other.
struct Connection {
    stream: TcpStream,
    received: Receiver<Vec<u8>>,
    replies: Replies,
    closed: bool,
}

/// Plays the client's part and holds the server to its own; what was delivered is the caller's to
/// look at.
///
/// # Errors
/// The line that does not hold, and what happened instead.
pub fn play_over_tcp(address: SocketAddr, dialogue: &Dialogue) -> Result<(), String> {
    let mut connection = Connection::open(address).map_err(|error| error.to_string())?;
    for step in &dialogue.steps {
        connection
            .play(&step.action)
            .map_err(|wrong| format!("{}.txt:{}: {wrong}", dialogue.name, step.line))?;
    }
    Ok(())
}

impl Connection {
    fn open(address: SocketAddr) -> std::io::Result<Connection> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut reader = stream.try_clone()?;
        let (sender, received) = channel();
        // Ends when the connection does.
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            loop {
                match reader.read(&mut buffer) {
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Ok(0) | Err(_) => return,
                    Ok(read) if sender.send(buffer[..read].to_vec()).is_err() => return,
                    Ok(_) => {}
                }
            }
        });
        Ok(Connection { stream, received, replies: Replies::default(), closed: false })
    }

    fn play(&mut self, action: &Action) -> Result<(), String> {
        match action {
            Action::Send(octets) => {
                // A server that has closed takes no more, and what it said is judged below.
                let _ = self.stream.write_all(octets);
                Ok(())
            }
            Action::Reply { times, lines, last } => {
                (0..*times).try_for_each(|_| judge::reply_is(&self.next_reply()?, lines, last))
            }
            Action::Silence => {
                self.receive(SILENCE);
                match self.replies.unread() {
                    [] => Ok(()),
                    unread => Err(format!("unexpected: {}", unread.escape_ascii())),
                }
            }
            Action::ClientCloses => {
                self.stream.shutdown(Shutdown::Write).map_err(|error| error.to_string())
            }
            Action::ServerCloses => {
                while !self.closed && self.receive(PATIENCE) {}
                if !self.closed {
                    return Err("the server has not closed".to_owned());
                }
                match self.replies.unread() {
                    [] => Ok(()),
                    unread => Err(format!("unexpected: {}", unread.escape_ascii())),
                }
            }
            Action::Delivered(_) => Ok(()),
        }
    }

    fn next_reply(&mut self) -> Result<Vec<String>, String> {
        loop {
            if let Some(reply) = self.replies.next() {
                return reply;
            }
            if !self.receive(PATIENCE) {
                let unread = self.replies.unread().escape_ascii();
                return Err(format!("there is no reply, only `{unread}`"));
            }
        }
    }

    /// Waits for more octets; whether there were any.
    fn receive(&mut self, at_most: Duration) -> bool {
        match self.received.recv_timeout(at_most) {
            Ok(octets) => {
                self.replies.receive(&octets);
                true
            }
            Err(RecvTimeoutError::Timeout) => false,
            Err(RecvTimeoutError::Disconnected) => {
                self.closed = true;
                false
            }
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // Ends the reader too.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

/// What a busy machine may take for a reply.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long nothing must come for it to count as silence.
const SILENCE: Duration = Duration::from_millis(150);
