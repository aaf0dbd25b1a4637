//! Looks at a message as it arrives: whose it is, and whether it is whole.
//!
//! Works on the content in whatever pieces it comes.  Fields that a gateway puts in front
//! (Received, Return-Path) or between do not matter: the checksum covers the body only.

use super::{ID_FIELD, MessageId, SUM_FIELD, unhex};

/// What of a header line is kept; the two fields are far shorter.
const LINE_KEPT: usize = 80;

/// A message that is arriving.
#[derive(Debug)]
pub struct Inspection {
    id: Option<MessageId>,
    sum: Option<u32>,
    part: Part,
}

#[derive(Debug)]
enum Part {
    /// In the header section, with the beginning of the present line.
    Header { line: Vec<u8> },
    /// In the body, with the checksum so far.
    Body { sum: u32 },
}

/// What an inspection came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// None for a message that is not from here: a notice, say.
    pub id: Option<MessageId>,
    /// Whether the body is the one that was sent under this id.
    pub is_intact: bool,
}

impl Inspection {
    /// Nothing has come yet.
    pub fn new() -> Inspection {
        let line = Vec::with_capacity(LINE_KEPT);
        Inspection { id: None, sum: None, part: Part::Header { line } }
    }

    /// Takes the next piece of the content.
    pub fn take(&mut self, mut piece: &[u8]) {
        while let Part::Header { line } = &mut self.part {
            let Some(end) = memchr::memchr(b'\n', piece) else {
                let room = LINE_KEPT - line.len();
                line.extend_from_slice(&piece[..piece.len().min(room)]);
                return;
            };
            let room = LINE_KEPT - line.len();
            line.extend_from_slice(&piece[..end.min(room)]);
            piece = &piece[end + 1..];
            let text = line.strip_suffix(b"\r").unwrap_or(line);
            if text.is_empty() {
                let id = self.id.map(MessageId::digits);
                let sum = id.map_or(0, |digits| crc32c::crc32c(&digits));
                self.part = Part::Body { sum };
                break;
            }
            if let Some(digits) = value(text, ID_FIELD) {
                self.id = MessageId::parse(digits);
            } else if let Some(digits) = value(text, SUM_FIELD) {
                self.sum = unhex(digits).and_then(|sum| u32::try_from(sum).ok());
            }
            line.clear();
        }
        if let Part::Body { sum } = &mut self.part {
            *sum = crc32c::crc32c_append(*sum, piece);
        }
    }

    /// The message has ended.
    pub fn finish(self) -> Found {
        let is_intact = match self.part {
            Part::Header { .. } => false,
            Part::Body { sum } => self.sum == Some(sum),
        };
        Found { id: self.id, is_intact }
    }
}

impl Default for Inspection {
    fn default() -> Inspection {
        Inspection::new()
    }
}

/// The value of a line that is this field.
fn value<'a>(line: &'a [u8], field: &str) -> Option<&'a [u8]> {
    let (name, rest) = line.split_at_checked(field.len())?;
    let value = rest.strip_prefix(b":")?;
    name.eq_ignore_ascii_case(field.as_bytes()).then(|| value.trim_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message() -> Vec<u8> {
        let body = b"line\r\n\r\nline: two\r\n";
        let id = MessageId(7);
        let sum = crc32c::crc32c(&[&id.digits()[..], body].concat());
        let long = "x".repeat(300);
        let header = format!(
            "Received: from {long}\r\nx-race-id: {id}\r\nX-Race-Sum: {sum:08x}\r\nSubject: y\r\n\r\n"
        );
        [header.as_bytes(), body].concat()
    }

    #[test]
    fn is_found_in_whatever_pieces_it_comes() {
        let message = message();
        for length in 1..message.len() {
            let mut inspection = Inspection::new();
            message.chunks(length).for_each(|piece| inspection.take(piece));
            let found = Found { id: Some(MessageId(7)), is_intact: true };
            assert_eq!(inspection.finish(), found, "{length}");
        }
    }

    #[test]
    fn every_cut_is_damage() {
        let message = message();
        for length in 0..message.len() {
            let mut inspection = Inspection::new();
            inspection.take(&message[..length]);
            assert!(!inspection.finish().is_intact, "{length}");
        }
    }
}
