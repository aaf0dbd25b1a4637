//! The bytes of the log, as `docs/spool-format.md` tells them: encoding and decoding, no I/O.
//!
//! Everything is little-endian.  What is read is checked in this order: lengths, then the CRC,
//! then the meaning; no number from the disk is added, indexed by or allocated from unchecked.

pub mod batch;
pub mod header;
pub mod index;
pub mod message;
pub mod outcome;
pub mod record;
pub mod roll;

/// The version that this code writes, and the only one that it reads.
pub const FORMAT_VERSION: u32 = 1;
/// A batch's header in octets; its first record follows at once.
pub const BATCH_HEADER: usize = 64;
/// Records, and the body within a record, begin on this boundary of the file and of the buffer.
pub const RECORD_ALIGN: usize = 64;

const _: () = assert!(BATCH_HEADER.is_multiple_of(RECORD_ALIGN));
const _: () = assert!(super::BLOCK.is_multiple_of(RECORD_ALIGN));

/// What is wrong with bytes that were read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// The bytes end before what they announce.
    #[error("it ends too early")]
    Truncated,
    /// Not what should stand here at all.
    #[error("the magic number is wrong")]
    Magic,
    /// The checksum over this part does not agree.
    #[error("the checksum of the {0} is wrong")]
    Checksum(&'static str),
    /// Checksums agree and the content makes no sense: written by a bug or another program.
    #[error("the {0} makes no sense")]
    Malformed(&'static str),
    /// Another version of mailrace wrote this and says that it must not be guessed at.
    #[error("written by a version of mailrace that knows {0}, which this one does not")]
    MustUnderstand(&'static str),
    /// Another version of the whole format.
    #[error("format version {0}; this mailrace reads version {FORMAT_VERSION}")]
    Version(u32),
}

/// Writes into a slice and notes when it did not suffice, so that an encoder needs one check.
pub(crate) struct Put<'a> {
    out: &'a mut [u8],
    at: usize,
    overflow: bool,
}

impl<'a> Put<'a> {
    pub(crate) fn new(out: &'a mut [u8]) -> Put<'a> {
        Put { out, at: 0, overflow: false }
    }

    #[inline]
    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        match self.out.get_mut(self.at..).and_then(|rest| rest.get_mut(..bytes.len())) {
            Some(place) => {
                place.copy_from_slice(bytes);
                self.at += bytes.len();
            }
            None => self.overflow = true,
        }
    }

    pub(crate) fn u8(&mut self, value: u8) {
        self.bytes(&[value]);
    }

    pub(crate) fn u16(&mut self, value: u16) {
        self.bytes(&value.to_le_bytes());
    }

    pub(crate) fn u32(&mut self, value: u32) {
        self.bytes(&value.to_le_bytes());
    }

    /// Writes zeros up to the next multiple of `align` from the beginning.
    pub(crate) fn pad_to(&mut self, align: usize) {
        const ZEROS: [u8; RECORD_ALIGN] = [0; RECORD_ALIGN];
        self.bytes(&ZEROS[..self.at.next_multiple_of(align) - self.at]);
    }

    /// How much is written, or nothing when the slice was too short.
    pub(crate) fn len(&self) -> Option<usize> {
        (!self.overflow).then_some(self.at)
    }

    pub(crate) fn written(&mut self) -> &mut [u8] {
        &mut self.out[..self.at]
    }
}

/// Reads from a slice; every step can say [`FormatError::Truncated`].
pub(crate) struct Take<'a>(pub(crate) &'a [u8]);

impl<'a> Take<'a> {
    pub(crate) fn bytes(&mut self, octets: usize) -> Result<&'a [u8], FormatError> {
        let (taken, rest) = self.0.split_at_checked(octets).ok_or(FormatError::Truncated)?;
        self.0 = rest;
        Ok(taken)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], FormatError> {
        Ok(self.bytes(N)?.try_into().expect("as many as were asked for"))
    }

    pub(crate) fn u8(&mut self) -> Result<u8, FormatError> {
        Ok(self.array::<1>()?[0])
    }

    pub(crate) fn u16(&mut self) -> Result<u16, FormatError> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub(crate) fn u32(&mut self) -> Result<u32, FormatError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(crate) fn text(&mut self, octets: usize) -> Result<&'a str, FormatError> {
        std::str::from_utf8(self.bytes(octets)?).map_err(|_| FormatError::Malformed("text"))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
