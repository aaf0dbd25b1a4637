//! Message data on its way in: where it ends, and every fact about it that is kept.
//!
//! Its place: `inbound` hands over what it reads after DATA or BDAT, and passes on to `spool`
//! what this module says belongs to the body.  The octets are looked at once, as they come: the
//! body is worked through in windows that stay in the first-level cache, each met first by a
//! kernel ([`Kernel`]) that finds the end of data and the facts, then by the CRC.
//!
//! Invariants:
//! - The end of data is CRLF, dot, CRLF and nothing else (RFC 5321 section 4.1.1.4); DATA itself
//!   counts as the first CRLF.  A bare CR or LF ends no line, so no smuggled end exists.
//! - Any cut of the same octets into pieces gives the same answer.
//! - What has been consumed was judged for good: nothing is ever taken back or counted twice.
//!
//! Nothing in here can fail.  What is wrong with the data (bare newlines, an over-long body) is
//! recorded or counted; the server's policy refuses it, after its true end.
//!
//! Deliberately absent: buffers, size limits, removal of stuffed dots ([`super::body`]).

use crc32c::crc32c_append;

use crate::message::{BodyFlags, BodySummary};

#[cfg(target_arch = "x86_64")]
mod avx2;
mod facts;
mod kernel;
mod plain;
mod portable;
#[cfg(test)]
mod tests;

pub use kernel::Kernel;

use facts::{EndOfData, Facts, Position};

/// What one piece of input held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scanned {
    /// Octets of the input that are done with.  After the end they are the body and its
    /// terminator, and what follows belongs to the command parser; before the end what follows
    /// is undecided and must come again, in front of the octets read next.
    pub consumed: usize,
    /// Octets at the start of the input that belong to the body as it is kept.
    pub body: usize,
    /// The end was reached: of the data for [`DataScanner`], of the chunk for [`ChunkScanner`].
    pub end: bool,
}

/// Finds the end of data after DATA (RFC 5321 section 4.1.1.4), and the body's facts.
///
/// The body is kept as on the wire: with its stuffed dots, without the final `.CRLF`; the CRLF
/// before that dot is the body's.
///
/// Before the end at most [`DataScanner::UNDECIDED_MAX`] octets of an input stay unconsumed:
/// a dot that begins a line, with or without a CR after it, may be the end.  So a caller that
/// keeps a small message in its receive buffer goes on reading behind it and presents the
/// buffer from the first unconsumed octet; one that receives into chunks moves those octets to
/// the front of the next chunk.  Progress needs room for three octets, no more.
#[derive(Debug, Clone)]
pub struct DataScanner {
    kernel: Kernel,
    facts: Facts,
    crc32c: u32,
    replaced: u64,
}

impl DataScanner {
    /// The most octets of an input that are left unconsumed before the end.
    pub const UNDECIDED_MAX: usize = 2;

    /// A scanner for the octets that follow the CRLF of DATA.
    pub fn new() -> DataScanner {
        DataScanner::with_kernel(Kernel::fastest())
    }

    /// The same with a kernel of choice, for tests and benchmarks.
    pub fn with_kernel(kernel: Kernel) -> DataScanner {
        DataScanner { kernel, facts: Facts::new(), crc32c: 0, replaced: 0 }
    }

    /// Judges the next octets: first what was left unconsumed, then what was read since.
    ///
    /// After the end it consumes nothing more.
    pub fn scan(&mut self, input: &[u8]) -> Scanned {
        let mut total = Scanned { consumed: 0, body: 0, end: self.has_ended() };
        while total.consumed < input.len() {
            let window = window(input, total.consumed);
            let found = self.judge(window, Pending::Dot);
            self.crc32c = crc32c_append(self.crc32c, &window[..found.body]);
            if total.add(found) {
                break;
            }
        }
        total
    }

    /// The same for listeners with `bare_newline = "space"`: each bare CR or LF of the body
    /// becomes a space in place, and is counted in [`replaced`](DataScanner::replaced) instead
    /// of flagged.
    ///
    /// A CR at the end of the input stays unconsumed too, for it can only be judged with the
    /// octet after it.  A scanner is driven by this method or by [`scan`](DataScanner::scan)
    /// from its first octet to its last, never by both in turn.
    pub fn scan_replacing(&mut self, input: &mut [u8]) -> Scanned {
        let mut total = Scanned { consumed: 0, body: 0, end: self.has_ended() };
        while total.consumed < input.len() {
            let window_end = input.len().min(total.consumed + WINDOW);
            let window = &mut input[total.consumed..window_end];
            let found = self.judge(window, Pending::DotOrCr);
            self.replace_bare(window, found.body);
            self.crc32c = crc32c_append(self.crc32c, &window[..found.body]);
            if total.add(found) {
                break;
            }
        }
        total
    }

    /// Octets of the body so far, as kept: what a size limit is held against.
    pub fn octets(&self) -> u64 {
        self.facts.octets
    }

    /// How many bare CR and LF have become spaces.
    pub fn replaced(&self) -> u64 {
        self.replaced
    }

    /// What is certain already, whatever follows.
    pub fn flags_so_far(&self) -> BodyFlags {
        self.facts.flags | BodyFlags::DATA
    }

    /// What is known of the body; final once the end was reached.
    pub fn summary(&self) -> BodySummary {
        let mut summary = self.facts.summary(self.crc32c);
        summary.flags.insert(BodyFlags::DATA);
        summary
    }

    fn has_ended(&self) -> bool {
        self.facts.position == Position::Ended
    }

    /// Runs the kernel over one window, less the octets that it cannot decide.
    fn judge(&mut self, window: &[u8], pending: Pending) -> Scanned {
        if self.has_ended() {
            return Scanned { consumed: 0, body: 0, end: true };
        }
        let decided = window.len() - undecided(self.facts.position, window, pending);
        match self.kernel.scan(&mut self.facts, &window[..decided], EndOfData::Stops) {
            Some(dot_at) => {
                self.facts.position = Position::Ended;
                Scanned { consumed: dot_at + TERMINATOR.len(), body: dot_at, end: true }
            }
            None => Scanned { consumed: decided, body: decided, end: false },
        }
    }

    /// Makes spaces of the bare CR and LF in the body part of a window, if there are any.
    #[inline]
    fn replace_bare(&mut self, window: &mut [u8], body_octets: usize) {
        let bare = BodyFlags::BARE_CR | BodyFlags::BARE_LF;
        let ends_in_cr = self.facts.position == Position::AfterCr;
        if self.facts.flags.0 & bare.0 != 0 || ends_in_cr {
            self.replaced += spaces_for_bare(window, body_octets);
            self.facts.flags.0 &= !bare.0;
        }
        if ends_in_cr {
            // A last CR is consumed only together with an octet after it that is no LF: it was
            // bare, and is a space by now.
            self.facts.position = Position::InLine;
        }
    }
}

impl Default for DataScanner {
    fn default() -> DataScanner {
        DataScanner::new()
    }
}

/// Counts the octets of BDAT chunks (RFC 3030 section 2) and gathers the same facts.
///
/// One scanner serves all chunks of a message, so that a CRLF may be cut by the end of a chunk.
/// Dots mean nothing in here; every octet is the body's and is consumed at once.
#[derive(Debug, Clone)]
pub struct ChunkScanner {
    kernel: Kernel,
    facts: Facts,
    crc32c: u32,
    remaining_octets: u64,
}

impl ChunkScanner {
    /// A scanner before its first chunk.
    pub fn new() -> ChunkScanner {
        ChunkScanner::with_kernel(Kernel::fastest())
    }

    /// The same with a kernel of choice, for tests and benchmarks.
    pub fn with_kernel(kernel: Kernel) -> ChunkScanner {
        ChunkScanner { kernel, facts: Facts::new(), crc32c: 0, remaining_octets: 0 }
    }

    /// The next chunk has this many octets: the argument of BDAT.  The one before must have
    /// reached its end.
    pub fn begin_chunk(&mut self, octets: u64) {
        debug_assert_eq!(self.remaining_octets, 0, "the chunk before has not ended");
        self.remaining_octets = octets;
    }

    /// Takes the next octets of the chunk; `end` says that it is complete, as one of no octets
    /// is without any input.
    pub fn scan(&mut self, input: &[u8]) -> Scanned {
        let here = usize::try_from(self.remaining_octets)
            .map_or(input.len(), |remaining| remaining.min(input.len()));
        let mut done = 0;
        while done < here {
            let window = window(&input[..here], done);
            let end = self.kernel.scan(&mut self.facts, window, EndOfData::IsBody);
            debug_assert!(end.is_none(), "dots end nothing in a chunk");
            self.crc32c = crc32c_append(self.crc32c, window);
            done += window.len();
        }
        self.remaining_octets -= here as u64;
        Scanned { consumed: here, body: here, end: self.remaining_octets == 0 }
    }

    /// Octets that the chunk still lacks.
    pub fn remaining_octets(&self) -> u64 {
        self.remaining_octets
    }

    /// Octets of the body so far, over all chunks: what a size limit is held against.
    pub fn octets(&self) -> u64 {
        self.facts.octets
    }

    /// What is certain already, whatever follows.
    pub fn flags_so_far(&self) -> BodyFlags {
        self.facts.flags
    }

    /// What is known of the body; final at the end of the chunk that said LAST.
    pub fn summary(&self) -> BodySummary {
        self.facts.summary(self.crc32c)
    }
}

impl Default for ChunkScanner {
    fn default() -> ChunkScanner {
        ChunkScanner::new()
    }
}

/// What ends the data when it stands at the start of a line.
const TERMINATOR: &[u8] = b".\r\n";

/// What the kernel and the CRC go over in turn: it stays in a first-level cache of 32 KiB
/// between the two, and it is what the CRC's longest stride covers (3 times 8 KiB).
const WINDOW: usize = 24 * 1024;

fn window(input: &[u8], from: usize) -> &[u8] {
    &input[from..input.len().min(from + WINDOW)]
}

impl Scanned {
    /// Adds what the next window held; true if nothing behind it is to be looked at.
    fn add(&mut self, window: Scanned) -> bool {
        self.consumed += window.consumed;
        self.body += window.body;
        self.end = window.end;
        self.end || window.consumed == 0
    }
}

/// Which octets at the end of an input wait for the ones after them.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pending {
    /// A beginning of the terminator: `.` or `.CR` at the start of a line.
    Dot,
    /// That, or any CR: it may have to become a space.
    DotOrCr,
}

/// How many octets at the input's end cannot be judged without the next.
///
/// With them cut off a kernel needs no look-ahead beyond its piece: a dot at the start of a
/// line that still lacks an octet after it is not the end.
fn undecided(position: Position, input: &[u8], pending: Pending) -> usize {
    let (before_cr, cr_octets) = match input {
        [rest @ .., b'\r'] => (rest, 1),
        all => (all, 0),
    };
    let at_line_start = match before_cr {
        [b'.'] => position == Position::LineStart,
        [b'\n', b'.'] => position == Position::AfterCr,
        [.., b'\r', b'\n', b'.'] => true,
        _ => false,
    };
    match (at_line_start, pending) {
        (true, _) => 1 + cr_octets,
        (false, Pending::Dot) => 0,
        (false, Pending::DotOrCr) => cr_octets,
    }
}

/// Makes spaces of the bare CR and LF among the first `octets` of a window and counts them.
///
/// No line of the window may hang on an octet before it: a CR is never carried over.
#[cold]
fn spaces_for_bare(window: &mut [u8], octets: usize) -> u64 {
    let mut replaced = 0;
    let mut at = 0;
    while let Some(found) = memchr::memchr2(b'\r', b'\n', &window[at..octets]) {
        at += found;
        if window[at..].starts_with(b"\r\n") {
            at += 2;
            continue;
        }
        window[at] = b' ';
        replaced += 1;
        at += 1;
    }
    replaced
}
