//! What has come from the peer of a TLS connection: ciphertext that is no whole record yet, and
//! plaintext that its reader had no room for.
//!
//! It stands between the socket and [`Records`].  When nothing is left in it, it holds no buffer;
//! one record makes it take a small one, a record larger than that or a peer that fills it a
//! large one, and more than a large one it never holds: a handshake message that does not fit
//! ends the connection.

use super::{Progress, Records, TlsError, record_octets};
use crate::runtime::buffer::{Account, Buffer, Fill, LARGE, SMALL};

/// Octets received and not yet given to the reader.
#[derive(Default)]
pub struct Inflow {
    account: Account,
    buffer: Buffer,
    /// What [`Records`] has not consumed begins here.
    start: usize,
    /// The rest of a record of which the reader took the front.
    plain: Vec<u8>,
    /// What of `plain` the reader has taken.
    plain_taken: usize,
    /// The last read filled its buffer: the next is given a large one.
    is_bulk: bool,
    has_ended: bool,
}

/// What [`Inflow::drain`] came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drained {
    /// So many octets of plaintext were given out, at least one.
    Octets(usize),
    /// There is none before more has been read.
    NeedsInput,
    /// The peer has ended its stream.
    Ended,
}

impl Inflow {
    /// With buffers on this account.
    pub fn on(account: Account) -> Inflow {
        Inflow { account, ..Inflow::default() }
    }

    /// Gives plaintext to `reader`, as much as there is and fits.
    ///
    /// # Errors
    /// See [`TlsError`].
    pub fn drain<B: Fill>(
        &mut self,
        records: &mut Records,
        reader: &mut B,
    ) -> Result<Drained, TlsError> {
        let room = reader.spare().1;
        let mut given = self.give_rest(reader, room);
        while given < room && !self.has_ended {
            let incoming = &mut self.buffer.bytes_mut()[self.start..];
            // A record that does not fit is left for the next read, if this one has something.
            let fits = record_octets(incoming).is_none_or(|octets| octets <= room - given);
            if given > 0 && !fits {
                break;
            }
            let plain = &mut self.plain;
            let received = records.receive(incoming, |octets| {
                let taken = match plain.is_empty() {
                    true => reader.push(&octets[..octets.len().min(room - given)]),
                    false => 0,
                };
                given += taken;
                plain.extend_from_slice(&octets[taken..]);
            })?;
            self.start += received.consumed;
            match received.progress {
                Progress::Plaintext => {}
                Progress::NeedsInput => break,
                Progress::Ended => self.has_ended = true,
            }
        }
        self.tidy();
        Ok(match given {
            0 if self.has_ended => Drained::Ended,
            0 => Drained::NeedsInput,
            octets => Drained::Octets(octets),
        })
    }

    /// Lets `records` have what has come, in a handshake: what it decrypts beyond its end is kept
    /// for the reader.  Tells whether the peer has ended its stream.
    ///
    /// # Errors
    /// See [`TlsError`].
    pub fn shake_hands(&mut self, records: &mut Records) -> Result<bool, TlsError> {
        let plain = &mut self.plain;
        let incoming = &mut self.buffer.bytes_mut()[self.start..];
        let received = records.receive(incoming, |octets| plain.extend_from_slice(octets))?;
        self.start += received.consumed;
        self.has_ended |= received.progress == Progress::Ended;
        self.tidy();
        Ok(self.has_ended)
    }

    /// Whether plaintext, or the peer's end, can be had without reading.
    pub fn has_plain(&self) -> bool {
        self.plain_taken < self.plain.len() || self.has_ended
    }

    /// Whether nothing is held: neither plaintext nor a part of a record.
    pub fn is_empty(&self) -> bool {
        !self.has_plain() && self.start == self.buffer.bytes().len()
    }

    /// The buffer, with room for a read; [`Inflow::put_buffer`] brings it back.
    ///
    /// # Errors
    /// `TooLarge` when what has come fills the largest buffer and is no whole message.
    pub fn take_buffer(&mut self) -> Result<Buffer, TlsError> {
        self.make_room()?;
        Ok(std::mem::take(&mut self.buffer))
    }

    /// The buffer after a read of `octets`.
    pub fn put_buffer(&mut self, buffer: Buffer) {
        self.is_bulk = buffer.room() == 0;
        self.buffer = buffer;
        self.tidy();
    }

    fn give_rest<B: Fill>(&mut self, reader: &mut B, room: usize) -> usize {
        let rest = &self.plain[self.plain_taken..];
        let given = reader.push(&rest[..rest.len().min(room)]);
        self.plain_taken += given;
        if self.plain_taken == self.plain.len() {
            self.plain = Vec::new();
            self.plain_taken = 0;
        }
        given
    }

    fn make_room(&mut self) -> Result<(), TlsError> {
        let held = self.buffer.bytes().len() - self.start;
        let record = record_octets(&self.buffer.bytes()[self.start..]).unwrap_or(0);
        // The record that has begun, and for a handshake message in many records some more.
        let wanted = record.saturating_sub(held).max(READ_ROOM);
        if self.buffer.room() >= wanted {
            return Ok(());
        }
        if self.start > 0 {
            self.buffer.remove(0..self.start);
            self.start = 0;
        }
        if self.buffer.room() < wanted {
            let class = if self.is_bulk || held + wanted > SMALL { LARGE } else { SMALL };
            if held >= class {
                return Err(TlsError::TooLarge);
            }
            let mut larger = Buffer::on(self.account, class);
            larger.push(self.buffer.bytes());
            self.buffer = larger;
        }
        Ok(())
    }

    /// Gives the buffer back when nothing is left in it.
    fn tidy(&mut self) {
        if self.start == self.buffer.bytes().len() {
            self.buffer = Buffer::default();
            self.start = 0;
        }
    }
}

/// The least room worth a read.
const READ_ROOM: usize = 4 * 1024;
