//! A client's connection to the sink: reads, lets the dialogue answer, writes once for all that
//! came.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::dialogue::{Dialogue, GREETING, Next, TOO_MANY};
use super::manners::ReplyText;
use super::sites::Reception;
use super::worker::Place;
use super::world::Security;
use crate::runtime::link::{Link, LinkError};
use crate::runtime::sleep;

/// What is read at once: a message of 64 KiB with its envelope, nearly.
const BUFFER: usize = 64 * 1024;
/// The longest that a client may be silent, or not take its replies.
const PATIENCE: Duration = Duration::from_secs(300);
/// Reads a second of a port that reads slowly.
const SLOW_READS: u32 = 10;
/// What the kernel may keep for such a port, as far as it listens.
const SLOW_WINDOW: usize = 4_096;

/// Serves one client to the end.
pub async fn serve(place: Rc<Place>, mut link: Link, peer: SocketAddr) {
    let address = place.needs_address().then(|| link.local_address()).flatten();
    let mut guest = place.guest(address.map(|address| address.ip()));
    link.must_end_by(Instant::now() + PATIENCE);
    if !guest.is_admitted() {
        let _ = link.write_all(TOO_MANY).await;
        return;
    }
    match guest.reception() {
        None => {}
        Some(Reception::Reset) => return link.reset(),
        Some(Reception::Silent) => return ignore(link).await,
        Some(Reception::Refusal(ReplyText(text))) => {
            let _ = link.write_all(text.clone()).await;
            return;
        }
    }
    let port = &place.port.port;
    if let Some(security) = place.security().filter(|security| security.is_implicit)
        && shake_hands(&mut link, security).await.is_err()
    {
        return;
    }
    if let Some(delay) = port.greeting_delay {
        sleep(delay.0).await;
    }
    let capacity = match port.read_rate {
        None => BUFFER,
        Some(rate) => {
            link.narrow(SLOW_WINDOW);
            // Not less than a command line, or a session could not get on.
            (rate.0 as usize / SLOW_READS as usize).clamp(1, BUFFER)
        }
    };
    let client = match peer.ip() {
        std::net::IpAddr::V4(address) => u64::from(u32::from(address)),
        std::net::IpAddr::V6(address) => u128::from(address) as u64,
    };
    let mut dialogue = Dialogue::new(client);
    let mut out = Vec::with_capacity(512);
    out.extend_from_slice(GREETING);
    let mut buffer: Vec<u8> = Vec::with_capacity(BUFFER);
    let mut done = 0;
    let is_reset = loop {
        let (used, next) = guest.talk(&mut dialogue, &buffer[done..], &mut out);
        done += used;
        match next {
            Next::Pause(time) => {
                sleep(time).await;
                continue;
            }
            Next::Reset => break true,
            Next::StartTls => {
                let Some(security) = place.security() else { break false };
                if link.write_all(std::mem::take(&mut out)).await.0.is_err()
                    || shake_hands(&mut link, security).await.is_err()
                {
                    break false;
                }
                // Sent by nobody knows whom.
                buffer.clear();
                done = 0;
                dialogue.secure();
            }
            Next::Read | Next::Close => {}
        }
        link.must_end_by(Instant::now() + PATIENCE);
        if next == Next::Close {
            let _ = link.write_all(out).await;
            break false;
        }
        if done == buffer.len() {
            buffer.clear();
        } else {
            buffer.drain(..done);
        }
        done = 0;
        let result;
        (result, out, buffer) = if port.read_rate.is_some() {
            slow_turn(&mut link, out, buffer, capacity).await
        } else if out.is_empty() {
            let (result, buffer) = link.read(buffer).await;
            (result, out, buffer)
        } else {
            link.exchange(out, buffer).await
        };
        out.clear();
        if !matches!(result, Ok(1..)) {
            break false;
        }
    };
    guest.end(&mut dialogue);
    if is_reset {
        link.reset();
    }
}

async fn shake_hands(link: &mut Link, security: &Security) -> Result<(), LinkError> {
    let connection = rustls::ServerConnection::new(security.config.clone())?;
    link.start_tls(connection).await
}

/// Reads and says nothing, until the client leaves.
async fn ignore(mut link: Link) {
    let mut buffer = Vec::with_capacity(512);
    let mut result = Ok(1);
    while matches!(result, Ok(1..)) {
        buffer.clear();
        (result, buffer) = link.read(buffer).await;
    }
}

/// Answers, waits, and reads at most `octets`, by lending a buffer of that size.
async fn slow_turn(
    link: &mut Link,
    out: Vec<u8>,
    mut buffer: Vec<u8>,
    octets: usize,
) -> (Result<usize, LinkError>, Vec<u8>, Vec<u8>) {
    let (result, out) = link.write_all(out).await;
    if let Err(error) = result {
        return (Err(error), out, buffer);
    }
    sleep(Duration::from_secs(1) / SLOW_READS).await;
    let room = (buffer.capacity() - buffer.len()).min(octets);
    let (result, piece) = link.read(Vec::with_capacity(room)).await;
    buffer.extend_from_slice(&piece);
    (result, out, buffer)
}
