//! The scan octet by octet: the definition of what the fast kernels compute, and their oracle.

use super::facts::{EndOfData, Facts, Position};
use crate::message::BodyFlags;

/// See [`super::kernel`] for the contract.
pub(super) fn scan(facts: &mut Facts, piece: &[u8], end: EndOfData) -> Option<usize> {
    for (at, &octet) in piece.iter().enumerate() {
        if facts.position == Position::LineStart && octet == b'.' {
            if end == EndOfData::Stops && piece[at..].starts_with(b".\r\n") {
                return Some(at);
            }
            facts.flags.insert(BodyFlags::LEADING_DOTS);
        }
        take(facts, octet);
    }
    None
}

/// One octet of the body.
fn take(facts: &mut Facts, octet: u8) {
    let after_cr = facts.position == Position::AfterCr;
    match octet {
        b'\n' if after_cr => facts.end_line(facts.octets),
        b'\n' => facts.flags.insert(BodyFlags::BARE_LF),
        _ if after_cr => facts.flags.insert(BodyFlags::BARE_CR),
        _ => {}
    }
    match octet {
        0 => facts.flags.insert(BodyFlags::NUL),
        128.. => facts.flags.insert(BodyFlags::EIGHT_BIT),
        _ => {}
    }
    facts.position = match octet {
        b'\n' if after_cr => Position::LineStart,
        b'\r' => Position::AfterCr,
        _ => Position::InLine,
    };
    facts.octets += 1;
}
