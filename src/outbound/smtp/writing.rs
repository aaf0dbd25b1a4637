//! What goes out: gathered, then written while replies are read.
//!
//! The machine is told of a body's end ([`Client::body_sent`]) when the kernel has its last octet
//! and before it hears what arrived afterwards; what several messages have gathered leaves in one
//! write all the same.

use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};

use super::Connection;
use super::duplex::Arrived;
use crate::delivery::message::LoadedMessage;
use crate::limits;
use crate::runtime::deadline::Shortage;
use crate::runtime::socket::{IoBuf, StreamError};
use crate::smtp::body::{BodyForm, Reshape};
use crate::smtp::client::{Client, TransactionId};

/// Octets that wait to be written.
#[derive(Default)]
pub(super) struct Outbox {
    octets: Vec<u8>,
    /// Where in them bodies end, ascending.
    ends: Vec<(usize, TransactionId)>,
}

impl Outbox {
    pub(super) fn is_empty(&self) -> bool {
        self.octets.is_empty()
    }

    /// Adds octets, and gives a buffer back that is free now.
    pub(super) fn add(&mut self, octets: Vec<u8>) -> Vec<u8> {
        if self.octets.is_empty() {
            return std::mem::replace(&mut self.octets, octets);
        }
        self.octets.extend_from_slice(&octets);
        octets
    }

    /// Throws away what is in it, and its memory.
    pub(super) fn release(&mut self) {
        *self = Outbox::default();
    }
}

impl Connection<'_> {
    /// Writes what waits.
    pub(super) async fn flush(&mut self) {
        if self.outbox.is_empty() {
            return;
        }
        let Outbox { octets, ends } = std::mem::take(&mut self.outbox);
        let mut octets = self.write(octets, &ends).await;
        if octets.capacity() <= 2 * limits::CLIENT_WRITE && self.outbox.is_empty() {
            octets.clear();
            self.outbox.octets = octets;
        }
    }

    /// Sends a body with what stands before and after it; a small one is gathered with others.
    pub(super) async fn send_body(
        &mut self,
        id: TransactionId,
        prefix: Vec<u8>,
        form: BodyForm,
        suffix: &'static [u8],
    ) {
        let Some(job) = self.jobs.iter().find(|job| job.transaction == id) else { return };
        let message = job.message.clone();
        let mut reshape = Reshape::new(message.summary().flags, form);
        let spare = self.outbox.add(prefix);
        self.client.recycle(spare);
        let out = &mut self.outbox.octets;
        out.extend_from_slice(message.trace());
        match message.inline_body() {
            Some(body) => reshape.write(body, out),
            None => self.send_pieces(&message, reshape).await,
        }
        if !self.client.is_over() {
            self.end_body(id, suffix).await;
        }
    }

    /// Sends a large body as the reader brings it.
    async fn send_pieces(&mut self, message: &Rc<LoadedMessage>, mut reshape: Reshape) {
        let mut pieces = message.pieces();
        while let Some(piece) = pieces.next(&self.way.worker.log).await {
            let Ok(piece) = piece else {
                // Without its end the peer does not take what it has for the message.
                return self.client.abandon();
            };
            // From here until the piece is written, a buffer of the reader is held; also where its
            // octets are copied, so that there are no more copies than buffers.
            let now = Instant::now();
            self.piece = Some(now);
            self.limit.give_way_at(Some((Shortage::Reader, now + limits::CLIENT_PIECE_PRESSED)));
            if reshape.is_identity() {
                self.flush().await;
                self.write(piece, &[]).await;
            } else {
                reshape.write(piece.0.view().body(), &mut self.outbox.octets);
                self.flush().await;
            }
            self.limit.give_way_at(None);
            self.piece = None;
            // The peer may have said enough before the end.
            if self.client.is_over() {
                return;
            }
        }
    }

    async fn end_body(&mut self, id: TransactionId, suffix: &'static [u8]) {
        self.outbox.octets.extend_from_slice(suffix);
        let end = self.outbox.octets.len();
        if end == 0 {
            return self.client.body_sent(Instant::now(), id);
        }
        self.outbox.ends.push((end, id));
        if end >= limits::CLIENT_WRITE {
            self.flush().await;
        }
    }

    /// Writes all of `bytes`, in which bodies end at `ends`, and gives the buffer back.  It stops
    /// when the connection is over.
    async fn write<B: IoBuf>(&mut self, mut bytes: B, ends: &[(usize, TransactionId)]) -> B {
        let octets = bytes.bytes_init();
        let mut ends = ends.iter().peekable();
        let mut written = 0;
        while written < octets && !self.client.is_over() {
            self.client.body_progress(Instant::now());
            self.limit.set(self.time_left());
            let result;
            (result, bytes) = self.write_some(bytes, written).await;
            match result {
                Ok(0) => self.client.handle_closed(),
                Ok(more) => written += more,
                Err(error) => self.hear_last_word(error).await,
            }
            while let Some((_, id)) = ends.next_if(|(end, _)| *end <= written) {
                self.client.body_sent(Instant::now(), *id);
            }
        }
        bytes
    }

    /// One write, during which the machine hears what arrives.
    async fn write_some<B: IoBuf>(
        &mut self,
        bytes: B,
        from: usize,
    ) -> (Result<usize, StreamError>, B) {
        let Connection { sending, client, inbox, limit, .. } = self;
        let mut writing = pin!(sending.write(bytes, from));
        poll_fn(|context| {
            loop {
                if let Poll::Ready(written) = writing.as_mut().poll(context) {
                    return Poll::Ready(written);
                }
                let Some(arrived) = inbox.take() else { return Poll::Pending };
                take_in(client, arrived);
                limit.set(client.deadline());
                if client.is_over() {
                    // This ends the write: nobody wants it any more.
                    limit.shut_down();
                }
            }
        })
        .await
    }

    /// When the present write must have come to something.
    fn time_left(&self) -> Option<Instant> {
        let piece = self.piece.map(|began| began + limits::CLIENT_PIECE);
        let deadline = self.client.deadline();
        deadline.zip(piece).map_or(deadline, |(deadline, piece)| Some(deadline.min(piece)))
    }

    /// A peer that gives up says why before it closes: what can still be read counts first.
    async fn hear_last_word(&mut self, error: StreamError) {
        if matches!(error, StreamError::Io(_)) {
            self.limit.set(Some(Instant::now() + LAST_WORD));
            while !self.client.is_over() {
                match self.inbox.next().await {
                    Arrived::Octets(buffer) => {
                        self.client.handle_bytes(Instant::now(), buffer.bytes());
                    }
                    Arrived::End | Arrived::TimedOut => self.client.handle_closed(),
                }
            }
        }
        self.client.handle_timeout(Instant::now());
        self.client.abandon();
    }
}

/// Lets the machine have what arrived.
pub(super) fn take_in(client: &mut Client, arrived: Arrived) {
    match arrived {
        Arrived::Octets(buffer) => {
            client.handle_bytes(Instant::now(), buffer.bytes());
        }
        Arrived::End => client.handle_closed(),
        Arrived::TimedOut => {
            client.handle_timeout(Instant::now());
            // Whatever else the machine waits for, this connection is dead.
            client.handle_closed();
        }
    }
}

/// What a peer may take to say why it closed.
const LAST_WORD: Duration = Duration::from_secs(1);
