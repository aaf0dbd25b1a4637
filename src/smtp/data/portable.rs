//! The scan from one CR or LF to the next with `memchr`, for processors without AVX2.
//!
//! The plain version is [`super::plain`].  The tricks:
//! 1. Between two newline octets nothing about lines can change, so `memchr2` jumps over them.
//! 2. The common case, CR with its LF, is one jump, not two.
//! 3. 8-bit octets and NUL are sought by passes of their own (the window is in the first-level
//!    cache by then), and no more once one was found.

use super::facts::{EndOfData, Facts, Position};
use crate::message::BodyFlags;

/// See [`super::kernel`] for the contract.
pub(super) fn scan(facts: &mut Facts, piece: &[u8], end: EndOfData) -> Option<usize> {
    let dot_at = walk_lines(facts, piece, end);
    let body = &piece[..dot_at.unwrap_or(piece.len())];
    if !facts.flags.contains(BodyFlags::EIGHT_BIT) && !body.is_ascii() {
        facts.flags.insert(BodyFlags::EIGHT_BIT);
    }
    if !facts.flags.contains(BodyFlags::NUL) && memchr::memchr(0, body).is_some() {
        facts.flags.insert(BodyFlags::NUL);
    }
    facts.position = position_after(facts.position, body);
    facts.octets += body.len() as u64;
    dot_at
}

/// Everything that has to do with line ends.
fn walk_lines(facts: &mut Facts, piece: &[u8], end: EndOfData) -> Option<usize> {
    let base_octets = facts.octets;
    let first = *piece.first()?;
    if facts.position == Position::LineStart && is_end(facts, piece, end) {
        return Some(0);
    }
    if facts.position == Position::AfterCr && first != b'\n' {
        facts.flags.insert(BodyFlags::BARE_CR);
    }
    let mut next = 0;
    while let Some(found) = memchr::memchr2(b'\r', b'\n', &piece[next..]) {
        let at = next + found;
        let lf_at = match (piece[at], piece.get(at + 1)) {
            (b'\r', Some(b'\n')) => at + 1,
            // Only the LF of a CRLF that was cut between two pieces comes by itself.
            (b'\n', _) if at == 0 && facts.position == Position::AfterCr => at,
            (b'\n', _) => {
                facts.flags.insert(BodyFlags::BARE_LF);
                next = at + 1;
                continue;
            }
            (_, Some(_)) => {
                facts.flags.insert(BodyFlags::BARE_CR);
                next = at + 1;
                continue;
            }
            (_, None) => return None,
        };
        next = lf_at + 1;
        facts.end_line(base_octets + lf_at as u64);
        if is_end(facts, &piece[next..], end) {
            return Some(next);
        }
    }
    None
}

/// Whether the line that starts here is the end of data; notes a leading dot otherwise.
#[inline]
fn is_end(facts: &mut Facts, line: &[u8], end: EndOfData) -> bool {
    if line.first() != Some(&b'.') {
        return false;
    }
    if end == EndOfData::Stops && line.starts_with(b".\r\n") {
        return true;
    }
    facts.flags.insert(BodyFlags::LEADING_DOTS);
    false
}

/// Where the octet after `body` stands, if its first stood at `position`.
fn position_after(position: Position, body: &[u8]) -> Position {
    match body {
        [] => position,
        [.., b'\r', b'\n'] => Position::LineStart,
        [b'\n'] if position == Position::AfterCr => Position::LineStart,
        [.., b'\r'] => Position::AfterCr,
        _ => Position::InLine,
    }
}
