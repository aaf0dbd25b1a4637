//! Where the octets of a session go: commands stay in the receive buffer until the server has
//! consumed them, a small body stays where it was received until its end, a large one is received
//! into chunks of the log.
//!
//! So a small message is copied once (into its batch) and a large one never.  A session holds
//! nothing between messages; with a small one a buffer of 16 or 64 KiB; with a large one chunks
//! (see [`crate::limits::CHUNKS_IN_FLIGHT`]).

use crate::limits;
use crate::runtime::buffer::{self, Buffer};
use crate::spool::ChunkBuffer;

/// A session's input.
#[derive(Default)]
pub struct Intake {
    buffer: Buffer,
    /// What the server has not consumed begins here in `buffer`.
    start: usize,
    body: Body,
}

/// The body so far.
#[derive(Default)]
enum Body {
    #[default]
    None,
    /// `buffer[from..from + len]`, before `start`.
    InPlace { from: usize, len: usize },
    /// Earlier parts are chunks on their way to the disk.
    Chunked(Chunk),
}

/// The chunk being filled.
struct Chunk {
    buffer: ChunkBuffer,
    /// Octets at its front that belong to the body; those behind them are not consumed yet.
    kept: usize,
}

/// What must happen before the next read.
#[derive(Debug, PartialEq, Eq)]
pub enum Room {
    /// Nothing: [`Intake::take_buffer`] and read.
    Buffer,
    /// The body outgrew the buffer or its chunk: give [`Intake::next_chunk`] an empty one.
    NeedsChunk,
    /// Read into the chunk: [`Intake::take_chunk`].
    Chunk,
}

impl Intake {
    /// What the server has not consumed.
    pub fn unconsumed(&mut self) -> &mut [u8] {
        match &mut self.body {
            Body::Chunked(chunk) if chunk.buffer.len() > chunk.kept => {
                let kept = chunk.kept;
                &mut chunk.buffer.body_mut()[kept..]
            }
            _ => &mut self.buffer.bytes_mut()[self.start..],
        }
    }

    /// The server consumed `octets` that are no body.
    pub fn consume(&mut self, octets: usize) {
        if let Body::Chunked(chunk) = &mut self.body
            && chunk.buffer.len() > chunk.kept
        {
            // What follows the consumed octets are commands; they belong in the buffer.
            let behind = chunk.kept + octets;
            spill(&mut self.buffer, &mut self.start, &chunk.buffer.body()[behind..]);
            chunk.buffer.set_len(chunk.kept);
            return;
        }
        self.start += octets;
        self.tidy();
    }

    /// The server consumed `octets` of body.
    pub fn keep(&mut self, octets: usize) {
        match &mut self.body {
            Body::Chunked(chunk) if chunk.buffer.len() > chunk.kept => chunk.kept += octets,
            Body::Chunked(chunk) => {
                // Came in behind a BDAT command, through the buffer.
                let source = &self.buffer.bytes()[self.start..self.start + octets];
                chunk.buffer.spare()[..octets].copy_from_slice(source);
                chunk.buffer.advance(octets);
                chunk.kept += octets;
                self.start += octets;
            }
            Body::None => {
                self.body = Body::InPlace { from: self.start, len: octets };
                self.start += octets;
            }
            Body::InPlace { from, len } => {
                // A second chunk of BDAT: the command between the two goes.
                let end = *from + *len;
                self.buffer.remove(end..self.start);
                *len += octets;
                self.start = end + octets;
            }
        }
    }

    /// The most octets of body that [`Intake::keep`] can take from the buffer at once.
    pub fn body_room(&self) -> usize {
        match &self.body {
            Body::Chunked(chunk) if chunk.buffer.len() == chunk.kept => {
                chunk.buffer.capacity() - chunk.kept
            }
            _ => usize::MAX,
        }
    }

    /// Throws the body away.
    pub fn drop_body(&mut self) {
        if let Body::Chunked(chunk) = &self.body {
            // Nothing that the server has not seen goes with it.
            spill(&mut self.buffer, &mut self.start, &chunk.buffer.body()[chunk.kept..]);
        }
        self.body = Body::None;
        self.tidy();
    }

    /// The body of a small message.
    pub fn small_body(&self) -> &[u8] {
        match self.body {
            Body::InPlace { from, len } => &self.buffer.bytes()[from..from + len],
            _ => &[],
        }
    }

    /// The last chunk of a large message; `None` for a small one.
    pub fn last_chunk(&mut self) -> Option<ChunkBuffer> {
        match std::mem::take(&mut self.body) {
            Body::Chunked(Chunk { mut buffer, kept }) => {
                // Behind the last octet of BDAT LAST the next commands may have come with it.
                spill(&mut self.buffer, &mut self.start, &buffer.body()[kept..]);
                buffer.set_len(kept);
                Some(buffer)
            }
            body => {
                self.body = body;
                None
            }
        }
    }

    /// Makes room for a read.  `in_body` says that what comes next is body.
    pub fn make_room(&mut self, in_body: bool) -> Room {
        if let Body::Chunked(chunk) = &self.body {
            if !in_body {
                self.grow();
                return Room::Buffer;
            }
            let has_room = chunk.buffer.capacity() - chunk.buffer.len() >= UNDECIDED_ROOM;
            return if has_room { Room::Chunk } else { Room::NeedsChunk };
        }
        // Also between two chunks of BDAT: the buffer may have no room for the next command.
        if let Body::InPlace { len, .. } = self.body
            && len > limits::SMALL_MESSAGE
        {
            return Room::NeedsChunk;
        }
        self.grow();
        Room::Buffer
    }

    /// Moves on to `next`, an empty chunk: the full one comes back, to be written.  The first
    /// time there is none and the body moves over from the buffer.  `in_body` says that what was
    /// not consumed belongs to the body, or may be its end; else it is part of a command.
    pub fn next_chunk(&mut self, mut next: ChunkBuffer, in_body: bool) -> Option<ChunkBuffer> {
        match std::mem::take(&mut self.body) {
            Body::Chunked(Chunk { mut buffer, kept }) => {
                next.push(&buffer.body()[kept..]);
                buffer.set_len(kept);
                self.body = Body::Chunked(Chunk { buffer: next, kept: 0 });
                Some(buffer)
            }
            Body::InPlace { from, len } => {
                let buffer = std::mem::take(&mut self.buffer);
                let (body, rest) =
                    (&buffer.bytes()[from..from + len], &buffer.bytes()[self.start..]);
                next.push(body);
                self.start = 0;
                match in_body {
                    // At most an undecided end of data.
                    true => drop(next.push(rest)),
                    false => spill(&mut self.buffer, &mut self.start, rest),
                }
                self.body = Body::Chunked(Chunk { buffer: next, kept: len });
                None
            }
            Body::None => None,
        }
    }

    /// The buffer, for a read; [`Intake::put_buffer`] brings it back.
    pub fn take_buffer(&mut self) -> Buffer {
        std::mem::take(&mut self.buffer)
    }

    /// The buffer after a read.
    pub fn put_buffer(&mut self, buffer: Buffer) {
        self.buffer = buffer;
        self.tidy();
    }

    /// The chunk, for a read of at most [`buffer::LARGE`] octets; [`Intake::put_chunk`] brings it
    /// back.
    pub fn take_chunk(&mut self) -> Option<(ChunkBuffer, usize)> {
        match std::mem::take(&mut self.body) {
            Body::Chunked(chunk) => Some((chunk.buffer, chunk.kept)),
            body => {
                self.body = body;
                None
            }
        }
    }

    /// The chunk after a read.
    pub fn put_chunk(&mut self, buffer: ChunkBuffer, kept: usize) {
        self.body = Body::Chunked(Chunk { buffer, kept });
    }

    /// Gives back all room beyond what is held, which may have to wait for long; room for a read
    /// comes with the next [`Intake::make_room`].
    pub fn park(&mut self) {
        let front = self.front();
        self.buffer = match &self.buffer.bytes()[front..] {
            [] => Buffer::default(),
            held => Buffer::parked(held),
        };
        self.start -= front;
        if let Body::InPlace { from, .. } = &mut self.body {
            *from = 0;
        }
    }

    /// Makes room for a read where memory is short: little for who has sent little.
    pub fn make_little_room(&mut self) {
        let front = self.front();
        let held = self.buffer.bytes().len() - front;
        if held + LITTLE_ROOM > buffer::TINY {
            return self.grow();
        }
        if self.buffer.room() < LITTLE_ROOM {
            self.renew(buffer::TINY);
        }
    }

    /// Whether there is neither body nor anything unconsumed.
    pub fn is_empty(&self) -> bool {
        matches!(self.body, Body::None) && self.start == self.buffer.bytes().len()
    }

    /// Gives the buffer back when nothing is left in it.
    fn tidy(&mut self) {
        if self.is_empty() {
            self.buffer = Buffer::default();
            self.start = 0;
        }
    }

    /// Where what is still needed begins.
    fn front(&self) -> usize {
        match self.body {
            Body::InPlace { from, .. } => from,
            _ => self.start,
        }
    }

    /// Room behind what is there: moves it to the front, takes a larger buffer.
    fn grow(&mut self) {
        if self.buffer.room() >= READ_ROOM {
            return;
        }
        let front = self.front();
        if front > 0 {
            self.buffer.remove(0..front);
            self.start -= front;
            if let Body::InPlace { from, .. } = &mut self.body {
                *from = 0;
            }
        }
        let held = self.buffer.bytes().len();
        if self.buffer.room() < READ_ROOM {
            let is_small = held + READ_ROOM <= buffer::SMALL;
            self.renew(if is_small { buffer::SMALL } else { buffer::LARGE });
        }
    }

    /// The same octets in a buffer of another class, into which they fit.
    fn renew(&mut self, class: usize) {
        let front = self.front();
        let mut renewed = Buffer::new(class);
        let held = self.buffer.bytes().len() - front;
        let pushed = renewed.push(&self.buffer.bytes()[front..]);
        debug_assert_eq!(pushed, held, "the caller chose a class that is large enough");
        self.buffer = renewed;
        self.start -= front;
        if let Body::InPlace { from, .. } = &mut self.body {
            *from = 0;
        }
    }
}

/// Puts what came behind a chunk's body into the receive buffer, which holds nothing else then:
/// a read into a chunk is made only when everything before it was consumed.
fn spill(buffer: &mut Buffer, start: &mut usize, octets: &[u8]) {
    if octets.is_empty() {
        return;
    }
    debug_assert_eq!(*start, buffer.bytes().len(), "all was consumed before the read");
    *start = 0;
    *buffer = Buffer::new(octets.len());
    let pushed = buffer.push(octets);
    debug_assert_eq!(pushed, octets.len(), "a read into a chunk is at most a large buffer");
}

/// The least room worth a read.
const READ_ROOM: usize = 4 * 1024;
/// The least room worth a read of a client that sends little, where memory is short.
const LITTLE_ROOM: usize = 1024;
/// The least room of a chunk with which the data scanner can go on: an end of data and more.
const UNDECIDED_ROOM: usize = 8;

// A body that is moved on to chunks fits the first of them, with a read behind it.
const _: () = assert!(buffer::LARGE + UNDECIDED_ROOM < ChunkBuffer::CAPACITY);
// A buffer that is full of body is over the limit for small ones.
const _: () = assert!(buffer::LARGE - READ_ROOM > limits::SMALL_MESSAGE + limits::COMMAND_LINE);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spool::{Appender, AppenderOptions};

    /// What waits is as large as it must be, and goes on where it stood.
    #[test]
    fn a_body_that_waits_takes_no_more_room_than_it_needs() {
        let mut intake = Intake::default();
        intake.make_room(false);
        let mut buffer = intake.take_buffer();
        buffer.push(b"DATA\r\nhalf a bodyhalf a command");
        intake.put_buffer(buffer);
        intake.consume(6);
        intake.keep(11);
        let before = buffer::held_octets();
        intake.park();
        assert_eq!(before - buffer::held_octets(), buffer::SMALL - 25);
        assert_eq!(intake.small_body(), b"half a body");
        assert_eq!(intake.unconsumed(), b"half a command");
        intake.make_little_room();
        assert_eq!(before - buffer::held_octets(), buffer::SMALL - buffer::TINY);
        assert_eq!(intake.small_body(), b"half a body");
        assert_eq!(intake.make_room(true), Room::Buffer);
        let mut buffer = intake.take_buffer();
        assert!((READ_ROOM..buffer::SMALL).contains(&buffer.room()));
        buffer.push(b"!");
        intake.put_buffer(buffer);
        assert_eq!(intake.unconsumed(), b"half a command!");
        intake.drop_body();
        intake.consume(15);
        assert!(intake.is_empty() && buffer::held_octets() < before);
    }

    /// With the commands in the body, a next hop that is sent it by BDAT would obey them.
    #[test]
    fn commands_behind_a_large_body_are_no_part_of_it() {
        let appender = Appender::new(AppenderOptions::new(0));
        let mut intake = Intake::default();
        intake.make_room(true);
        let mut buffer = intake.take_buffer();
        buffer.push(b"body");
        intake.put_buffer(buffer);
        intake.keep(4);
        intake.next_chunk(appender.chunk_buffer().expect("none is in use"), true);
        let (mut chunk, kept) = intake.take_chunk().expect("it was just made");
        chunk.push(b", its endQUIT\r\n");
        intake.put_chunk(chunk, kept);
        intake.keep(9);
        let last = intake.last_chunk().expect("the body is in a chunk");
        assert_eq!(last.body(), b"body, its end");
        assert_eq!(intake.unconsumed(), b"QUIT\r\n");
    }

    /// A chunk of BDAT that fills the buffer, and half of the next command behind it.
    #[test]
    fn a_full_buffer_between_two_chunks_makes_room_for_the_next_command() {
        let appender = Appender::new(AppenderOptions::new(0));
        let mut intake = Intake::default();
        for room in [buffer::SMALL, buffer::LARGE] {
            assert_eq!(intake.make_room(true), Room::Buffer);
            let mut taken = intake.take_buffer();
            let body = vec![b'x'; room - taken.bytes().len() - 4];
            taken.push(&body);
            intake.put_buffer(taken);
            intake.keep(body.len());
            let mut taken = intake.take_buffer();
            taken.push(&[b'x'; 4][..4 * usize::from(room == buffer::SMALL)]);
            taken.push(&b"BDAT"[..4 * usize::from(room == buffer::LARGE)]);
            intake.put_buffer(taken);
            intake.keep(4 * usize::from(room == buffer::SMALL));
        }
        assert_eq!(intake.unconsumed(), b"BDAT");
        assert_eq!(intake.make_room(false), Room::NeedsChunk);
        intake.next_chunk(appender.chunk_buffer().expect("none is in use"), false);
        assert_eq!(intake.make_room(false), Room::Buffer);
        let mut taken = intake.take_buffer();
        assert!(taken.room() >= READ_ROOM);
        taken.push(b" 5 LAST\r\n");
        intake.put_buffer(taken);
        assert_eq!(intake.unconsumed(), b"BDAT 5 LAST\r\n");
        let last = intake.last_chunk().expect("the body is in a chunk");
        assert_eq!(last.len(), buffer::LARGE - 4);
    }
}
