//! The scanners of message data: every kernel, every cut, one answer, and it is the oracle's.
//!
//! The oracle shares nothing with the scanners: it has the whole input at hand and looks for the
//! end of data by its definition.

use mailrace::message::{BodyFlags, BodySummary};
use mailrace::smtp::body::{write_stuffed, write_unstuffed};
use mailrace::smtp::data::{ChunkScanner, DataScanner, Kernel};

use super::{Input, cut};

/// How it is cut, and what comes after DATA.
pub fn run(octets: &[u8]) {
    let mut input = Input(octets);
    let seed = input.octet();
    let stream = input.0;
    let expected = by_oracle(stream);
    let kernels = [Some(Kernel::plain()), Some(Kernel::portable()), Kernel::avx2()];
    for kernel in kernels.into_iter().flatten() {
        let scanner = || DataScanner::with_kernel(kernel);
        assert_eq!(drive(scanner(), cut(stream, 0), false), expected, "whole");
        assert_eq!(drive(scanner(), cut(stream, seed), false), expected, "cut by {seed}");
        // Every cut in two of what is not too long, so that no state is missed.
        for at in 0..stream.len().min(96) {
            let (first, second) = stream.split_at(at);
            assert_eq!(drive(scanner(), [first, second].into_iter(), false), expected, "at {at}");
        }
        let replacing = drive(scanner(), cut(stream, 0), true);
        assert_eq!(drive(scanner(), cut(stream, seed), true), replacing);
        let none_bare = BodyFlags::BARE_CR | BodyFlags::BARE_LF;
        assert!(replacing.summary.flags.0 & none_bare.0 == 0, "a bare newline is left");
        assert_eq!(in_chunks(kernel, stream, seed), in_chunks(kernel, stream, 0));
        assert_eq!(in_chunks(kernel, stream, seed), summary_of(stream));
    }
    stuffing(stream);
}

/// What a scanner made of an input.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    /// How many octets were consumed if the end was found.
    end: Option<usize>,
    body: Vec<u8>,
    summary: BodySummary,
}

/// As a session does: what was not consumed stays in front of what comes next.
fn drive<'a>(
    mut scanner: DataScanner,
    pieces: impl Iterator<Item = &'a [u8]>,
    replacing: bool,
) -> Outcome {
    let (mut waiting, mut body, mut consumed, mut end) = (Vec::new(), Vec::new(), 0, None);
    for piece in pieces {
        waiting.extend_from_slice(piece);
        let scanned = match replacing {
            true => scanner.scan_replacing(&mut waiting),
            false => scanner.scan(&waiting),
        };
        body.extend_from_slice(&waiting[..scanned.body]);
        consumed += scanned.consumed;
        waiting.drain(..scanned.consumed);
        if scanned.end {
            end = Some(consumed);
            break;
        }
        assert!(waiting.len() <= DataScanner::UNDECIDED_MAX);
    }
    assert_eq!(scanner.octets(), body.len() as u64);
    Outcome { end, summary: scanner.summary(), body }
}

fn by_oracle(stream: &[u8]) -> Outcome {
    let at_line_start = |at: usize| at == 0 || stream[..at].ends_with(b"\r\n");
    let dot = (0..stream.len()).find(|&at| at_line_start(at) && stream[at..].starts_with(b".\r\n"));
    // A dot that begins a line waits for what follows it.
    let waiting = |tail: &[u8]| stream.ends_with(tail) && at_line_start(stream.len() - tail.len());
    let undecided = match () {
        () if waiting(b".") => 1,
        () if waiting(b".\r") => 2,
        () => 0,
    };
    let body = stream[..dot.unwrap_or(stream.len() - undecided)].to_vec();
    let mut summary = summary_of(&body);
    summary.flags.insert(BodyFlags::DATA);
    Outcome { end: dot.map(|at| at + 3), body, summary }
}

/// What is to be known of a whole body.
fn summary_of(body: &[u8]) -> BodySummary {
    let mut flags = BodyFlags::default();
    let (mut line, mut longest, mut at) = (0, 0, 0);
    while let Some(&octet) = body.get(at) {
        if octet == b'\r' && body.get(at + 1) == Some(&b'\n') {
            (line, at) = (0, at + 2);
            continue;
        }
        match octet {
            b'.' if line == 0 => flags.insert(BodyFlags::LEADING_DOTS),
            0 => flags.insert(BodyFlags::NUL),
            b'\n' => flags.insert(BodyFlags::BARE_LF),
            b'\r' => flags.insert(BodyFlags::BARE_CR),
            128.. => flags.insert(BodyFlags::EIGHT_BIT),
            _ => {}
        }
        (line, at) = (line + 1, at + 1);
        longest = longest.max(line);
    }
    if body.is_empty() || body.ends_with(b"\r\n") {
        flags.insert(BodyFlags::ENDS_WITH_CRLF);
    }
    let crc32c = crc32c::crc32c(body);
    BodySummary { octets: body.len() as u64, crc32c, longest_line: longest, flags }
}

/// The same octets by BDAT, in chunks that are cut again.
fn in_chunks(kernel: Kernel, stream: &[u8], seed: u8) -> BodySummary {
    let mut scanner = ChunkScanner::with_kernel(kernel);
    for chunk in cut(stream, seed) {
        scanner.begin_chunk(chunk.len() as u64);
        for piece in cut(chunk, seed / 2) {
            let scanned = scanner.scan(piece);
            assert_eq!((scanned.consumed, scanned.body), (piece.len(), piece.len()));
        }
        assert_eq!(scanner.remaining_octets(), 0);
    }
    scanner.summary()
}

/// A body goes out by DATA and comes in again as it was.
fn stuffing(body: &[u8]) {
    let mut on_the_wire = Vec::new();
    write_stuffed(body, &mut on_the_wire);
    let mut back = Vec::new();
    write_unstuffed(&on_the_wire, &mut back);
    assert_eq!(back, body);
    let ending: &[u8] =
        if body.is_empty() || body.ends_with(b"\r\n") { b".\r\n" } else { b"\r\n.\r\n" };
    on_the_wire.extend_from_slice(ending);
    let scanned = DataScanner::new().scan(&on_the_wire);
    assert!(scanned.end, "the end is not found");
    assert_eq!(scanned.consumed, on_the_wire.len(), "another end is found first");
}
