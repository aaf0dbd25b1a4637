//! Views of a kept body: from the form of DATA to the form of BDAT and back, without copying.
//!
//! Its place: `spool` keeps a body as it came on the wire; `outbound`, signing and Maildir want
//! it as the next hop or the reader wants it.  The forms differ only where a line begins with a
//! dot (RFC 5321 section 4.5.2), so a body in the other form is a sequence of slices of the
//! kept one: with no leading dot, as in nearly all mail, one slice, and no octet is looked at.
//!
//! Invariants: state is carried from piece to piece of a body, whatever the cuts; a line starts
//! after CRLF only, as in [`super::data`]; no octet but dots is added or left out.  Nothing in
//! here can fail.

use std::sync::LazyLock;

use memchr::memmem;

use crate::message::BodyFlags;

/// How a body stands on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyForm {
    /// For DATA: a line that begins with a dot carries one more.
    Data,
    /// For BDAT, files and signatures: the message as it is.
    Bdat,
}

impl BodyForm {
    /// The form in which a body with these flags is kept.
    pub fn kept(flags: BodyFlags) -> BodyForm {
        if flags.contains(BodyFlags::DATA) { BodyForm::Data } else { BodyForm::Bdat }
    }
}

/// What has to be sent after a body in the form of DATA (RFC 5321 section 4.1.1.4): the CRLF of
/// its last line if that is missing, and the terminator.
pub fn data_ending(flags: BodyFlags) -> &'static [u8] {
    if flags.contains(BodyFlags::ENDS_WITH_CRLF) { b".\r\n" } else { b"\r\n.\r\n" }
}

/// Brings the pieces of one body, in their order, from the form in which it is kept to another.
#[derive(Debug, Clone)]
pub struct Reshape {
    change: Change,
    line: Line,
}

/// What becomes of a dot at the start of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    Nothing,
    Remove,
    Double,
}

/// Where in a line a piece begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Line {
    Start,
    AfterCr,
    Inside,
}

impl Reshape {
    /// From the form that `flags` tell to `to`.  A body without leading dots is already there.
    pub fn new(flags: BodyFlags, to: BodyForm) -> Reshape {
        let change = match (BodyForm::kept(flags), to) {
            _ if !flags.contains(BodyFlags::LEADING_DOTS) => Change::Nothing,
            (BodyForm::Data, BodyForm::Bdat) => Change::Remove,
            (BodyForm::Bdat, BodyForm::Data) => Change::Double,
            (BodyForm::Data, BodyForm::Data) | (BodyForm::Bdat, BodyForm::Bdat) => Change::Nothing,
        };
        Reshape { change, line: Line::Start }
    }

    /// Whether every piece comes back as it is.
    pub fn is_identity(&self) -> bool {
        self.change == Change::Nothing
    }

    /// The next piece of the body in the new form, as slices of it.  The state goes on to the
    /// piece after it at once, whether or not the slices are used.
    pub fn slices<'a>(&mut self, piece: &'a [u8]) -> Slices<'a> {
        if self.change == Change::Nothing {
            return Slices { change: Change::Nothing, rest: piece, dot_at: None };
        }
        let dot_at = match (self.line, piece) {
            (Line::Start, [b'.', ..]) => Some(0),
            (Line::AfterCr, [b'\n', b'.', ..]) => Some(1),
            _ => leading_dot(piece),
        };
        self.line = self.line.after(piece);
        Slices { change: self.change, rest: piece, dot_at }
    }

    /// Appends the next piece of the body in the new form.
    pub fn write(&mut self, piece: &[u8], to: &mut Vec<u8>) {
        to.reserve(piece.len());
        self.slices(piece).for_each(|slice| to.extend_from_slice(slice));
    }
}

/// A piece of a body in another form; see [`Reshape::slices`].  No slice is empty.
#[derive(Debug, Clone)]
pub struct Slices<'a> {
    change: Change,
    /// What has not been given out.
    rest: &'a [u8],
    /// The next leading dot in `rest`.
    dot_at: Option<usize>,
}

impl Slices<'_> {
    /// How many octets all slices that are left have: what BDAT announces for this piece.  Looks
    /// through the piece once if dots change.
    pub fn octets(&self) -> usize {
        match self.change {
            Change::Nothing => self.rest.len(),
            Change::Remove | Change::Double => self.clone().map(<[u8]>::len).sum(),
        }
    }
}

impl<'a> Iterator for Slices<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        while let Some(dot_at) = self.dot_at {
            let until = match self.change {
                Change::Double => dot_at + 1,
                Change::Nothing | Change::Remove => dot_at,
            };
            let slice = &self.rest[..until];
            // A doubled dot is given out twice: as the end of one slice and the start of the
            // next, so that no octet has to come from elsewhere.
            let from = match self.change {
                Change::Remove => dot_at + 1,
                Change::Nothing | Change::Double => dot_at,
            };
            self.rest = &self.rest[from..];
            self.dot_at = leading_dot(self.rest);
            if !slice.is_empty() {
                return Some(slice);
            }
        }
        let slice = std::mem::take(&mut self.rest);
        (!slice.is_empty()).then_some(slice)
    }
}

impl Line {
    /// Where the octet after `piece` stands, if the piece's first stood here.
    fn after(self, piece: &[u8]) -> Line {
        match piece {
            [] => self,
            [.., b'\r', b'\n'] => Line::Start,
            [b'\n'] if self == Line::AfterCr => Line::Start,
            [.., b'\r'] => Line::AfterCr,
            _ => Line::Inside,
        }
    }
}

/// The first dot that stands behind a CRLF within `octets`.
fn leading_dot(octets: &[u8]) -> Option<usize> {
    static CRLF_DOT: LazyLock<memmem::Finder<'static>> =
        LazyLock::new(|| memmem::Finder::new(b"\r\n."));
    CRLF_DOT.find(octets).map(|at| at + 2)
}

/// Appends a whole body that came by DATA in the form of BDAT.
pub fn write_unstuffed(body: &[u8], to: &mut Vec<u8>) {
    Reshape { change: Change::Remove, line: Line::Start }.write(body, to);
}

/// Appends a whole body that came by BDAT in the form of DATA, without [`data_ending`].
pub fn write_stuffed(body: &[u8], to: &mut Vec<u8>) {
    Reshape { change: Change::Double, line: Line::Start }.write(body, to);
}
