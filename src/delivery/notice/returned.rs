//! The third part: the original's header, or all of it where RET=FULL asks for it and it is small
//! and clean.

use super::{Kind, Original, RETURNED_OCTETS, wants_all};

/// The most of a header that is returned.
const HEADER_OCTETS: usize = 16 * 1024;
/// RFC 5322 section 2.1.1, without CRLF.
const LINE_OCTETS: usize = 998;

/// What is returned of the original.
pub(super) struct Returned {
    pub(super) media_type: &'static str,
    pub(super) octets: Vec<u8>,
    /// Whether it is the whole message.
    pub(super) whole: bool,
}

impl Returned {
    pub(super) fn of(kind: Kind, original: &Original<'_>) -> Returned {
        let content = original.content;
        let whole = wants_all(kind, original.envelope)
            && original.complete
            && content.len() <= RETURNED_OCTETS
            && is_clean(content);
        let octets = if whole { content.to_vec() } else { header(content) };
        // RFC 6532 section 3.7: a header with UTF-8 in it is another media type.
        let global = original.envelope.parameters.smtputf8
            && !octets.is_ascii()
            && std::str::from_utf8(&octets).is_ok();
        let media_type = match (whole, global) {
            (true, false) => "message/rfc822",
            (true, true) => "message/global",
            (false, false) => "text/rfc822-headers",
            (false, true) => "message/global-headers",
        };
        Returned { media_type, octets, whole }
    }
}

/// Whether octets may stand in a message as they are: lines of CRLF, none too long, no NUL.
fn is_clean(octets: &[u8]) -> bool {
    let mut line_octets = 0;
    let mut previous = 0;
    for &octet in octets {
        // CR and LF come as a pair or not at all.
        if octet == 0 || (octet == b'\n') != (previous == b'\r') {
            return false;
        }
        match octet {
            b'\n' => line_octets = 0,
            b'\r' => {}
            _ => line_octets += 1,
        }
        if line_octets > LINE_OCTETS {
            return false;
        }
        previous = octet;
    }
    previous != b'\r'
}

/// The header's lines up to the first empty one, whole lines of at most [`HEADER_OCTETS`] in all,
/// each ended with CRLF whatever ended it; a line that is too long is folded.
fn header(content: &[u8]) -> Vec<u8> {
    let mut header = Vec::new();
    // CR LF, CR and LF each end a line; the LF of a pair gives an empty rest that is skipped.
    let mut rest = content;
    while let Some(end) = memchr::memchr2(b'\r', b'\n', rest) {
        let (line, tail) = rest.split_at(end);
        if line.is_empty() || header.len() + line.len() + 2 > HEADER_OCTETS {
            break;
        }
        push_line(&mut header, line);
        rest = tail.strip_prefix(b"\r\n").unwrap_or(&tail[1..]);
    }
    header
}

fn push_line(header: &mut Vec<u8>, line: &[u8]) {
    let mut rest = line;
    while rest.len() > LINE_OCTETS - 1 {
        // Not between the octets of one UTF-8 character.
        let continues = |&octet: &u8| octet & 0xc0 == 0x80;
        let shorter =
            rest[LINE_OCTETS - 5..LINE_OCTETS].iter().rposition(|octet| !continues(octet));
        let cut = shorter.map_or(LINE_OCTETS - 1, |place| LINE_OCTETS - 5 + place);
        let (piece, tail) = rest.split_at(cut);
        push_octets(header, piece);
        header.extend_from_slice(b"\r\n ");
        rest = tail;
    }
    push_octets(header, rest);
    header.extend_from_slice(b"\r\n");
}

fn push_octets(header: &mut Vec<u8>, octets: &[u8]) {
    header.extend(octets.iter().map(|&octet| if octet == 0 { b'?' } else { octet }));
}
