//! What a stream keeps of its TLS connection, with errors as its reader and writer want them.

use std::io;

use super::inflow::{Drained, Inflow};
use super::{ENCRYPT_OCTETS, Records, TlsError};
use crate::runtime::buffer::{self, Buffer, Fill};

/// The state of an encrypted stream.
pub struct Link {
    /// Keys and what is to be sent by itself.
    pub records: Records,
    /// What has come.
    pub inflow: Inflow,
}

impl Link {
    /// Of a connection that is about to shake hands.
    pub fn new(records: Records) -> Link {
        let inflow = Inflow::on(records.account());
        Link { records, inflow }
    }

    /// Gives plaintext to `reader`; see [`Inflow::drain`].
    ///
    /// # Errors
    /// `InvalidData` around a [`TlsError`].
    pub fn drain<B: Fill>(&mut self, reader: &mut B) -> io::Result<Drained> {
        self.inflow.drain(&mut self.records, reader).map_err(invalid)
    }

    /// A buffer to read records into; see [`Inflow::take_buffer`].
    ///
    /// # Errors
    /// `InvalidData` around a [`TlsError`].
    pub fn take_buffer(&mut self) -> io::Result<Buffer> {
        self.inflow.take_buffer().map_err(invalid)
    }

    /// The front of `plain` as records in a buffer, and how many octets of it they hold.
    ///
    /// # Errors
    /// `InvalidData` around a [`TlsError`].
    pub fn encrypt(&mut self, plain: &[u8]) -> io::Result<(Buffer, usize)> {
        let octets = plain.len().min(ENCRYPT_OCTETS) + self.records.outgoing_octets() + FRAMES;
        let class = if octets <= buffer::SMALL { buffer::SMALL } else { buffer::LARGE };
        let mut out = Buffer::on(self.records.account(), class);
        let taken = self.records.encrypt(plain, &mut out).map_err(invalid)?;
        Ok((out, taken))
    }
}

fn invalid(error: TlsError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// Room for what records add.
const FRAMES: usize = 1024;
