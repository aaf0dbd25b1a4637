//! Finds the command lines in what a client has sent.
//!
//! One job: where a line ends.  It stands between the receive buffer and
//! [`crate::smtp::command`].
//!
//! Invariants: a line ends at CRLF and nowhere else.  A CR or an LF by itself stays inside the
//! line, where the command parser refuses it; were it taken as an end, this server and a program
//! in front of it could disagree about where a message stops and commands begin.  No octet is
//! looked at twice however the line is cut into reads.  A line over the limit is dropped as it
//! comes, in constant memory, and reported once, when its true end has come.  Nothing here fails.

use crate::limits::COMMAND_LINE;

const CRLF: usize = 2;

/// What stands at the front of the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LineStep {
    /// The line `input[..length]`; with its CRLF it takes `consumed` octets.
    Line {
        /// Octets of the line without its CRLF.
        length: usize,
        /// Octets to take off the front of the input: `length + 2`.
        consumed: usize,
    },
    /// No end of line yet.  The caller keeps the whole input, fewer octets than the limit, and
    /// calls again when more stand behind it.
    Incomplete,
    /// The front of a line that is over the limit; its end has not come.
    Discard {
        /// Octets to take off the front of the input and forget.
        consumed: usize,
    },
    /// The end of a line that was over the limit, told once for such a line.
    TooLong {
        /// Octets to take off the front of the input and forget, through the CRLF.
        consumed: usize,
    },
}

/// Finds one line after the other at the front of a buffer that grows and is consumed.
#[derive(Debug)]
pub struct LineScanner {
    /// The longest line in octets, with its CRLF.
    limit: usize,
    progress: Progress,
}

#[derive(Debug, Clone, Copy)]
enum Progress {
    /// Within a line; no CRLF ends in its first `scanned` octets.
    Searching { scanned: usize },
    /// Within a line that is over the limit, whose front is already forgotten.
    Discarding,
}

const START: Progress = Progress::Searching { scanned: 0 };

impl Default for LineScanner {
    fn default() -> LineScanner {
        LineScanner::new(COMMAND_LINE)
    }
}

impl LineScanner {
    /// A scanner at the beginning of a line, for lines of at most `limit` octets with their CRLF.
    pub fn new(limit: usize) -> LineScanner {
        LineScanner { limit, progress: START }
    }

    /// Changes how long a line may be, from the one on whose end has not been found; what of it
    /// was dropped as too long stays dropped.
    pub fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    /// Looks for the end of the line that `input` begins with.
    ///
    /// `input` is everything received and not yet consumed: after [`LineStep::Incomplete`] the
    /// same octets with more behind them, after any other step what follows `consumed`.
    pub fn next(&mut self, input: &[u8]) -> LineStep {
        let (scanned, within_limit) = match self.progress {
            Progress::Searching { scanned } => (scanned.min(input.len()), true),
            Progress::Discarding => (0, false),
        };
        if let Some(consumed) = end_of_line(input, scanned) {
            self.progress = START;
            return match within_limit && consumed <= self.limit {
                true => LineStep::Line { length: consumed - CRLF, consumed },
                false => LineStep::TooLong { consumed },
            };
        }
        if within_limit && input.len() < self.limit {
            self.progress = Progress::Searching { scanned: input.len() };
            return LineStep::Incomplete;
        }
        self.progress = Progress::Discarding;
        // A CR at the end may be half of the CRLF, so it waits for the next octet.
        match input.len() - usize::from(input.ends_with(b"\r")) {
            0 => LineStep::Incomplete,
            consumed => LineStep::Discard { consumed },
        }
    }
}

/// Where the first CRLF ends whose LF is not among the first `scanned` octets.
fn end_of_line(input: &[u8], scanned: usize) -> Option<usize> {
    memchr::memchr_iter(b'\n', &input[scanned..])
        .map(|found| scanned + found)
        .find(|&line_feed| line_feed > 0 && input[line_feed - 1] == b'\r')
        .map(|line_feed| line_feed + 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMIT: usize = 16;

    #[derive(Debug, Clone, PartialEq, Eq)]
    enum Found {
        Line(Vec<u8>),
        TooLong,
    }

    /// Runs a scanner over a stream that comes in these pieces.
    fn scan<'p>(pieces: impl IntoIterator<Item = &'p [u8]>) -> Vec<Found> {
        let mut scanner = LineScanner::new(LIMIT);
        let mut buffer: Vec<u8> = Vec::new();
        let mut found = Vec::new();
        for piece in pieces {
            buffer.extend_from_slice(piece);
            loop {
                let consumed = match scanner.next(&buffer) {
                    LineStep::Incomplete => break,
                    LineStep::Discard { consumed } => consumed,
                    LineStep::TooLong { consumed } => {
                        found.push(Found::TooLong);
                        consumed
                    }
                    LineStep::Line { length, consumed } => {
                        assert_eq!(&buffer[length..consumed], b"\r\n");
                        found.push(Found::Line(buffer[..length].to_vec()));
                        consumed
                    }
                };
                assert!(consumed > 0, "a step must lead on");
                buffer.drain(..consumed);
                if buffer.is_empty() {
                    break;
                }
            }
            assert!(buffer.len() < LIMIT, "what is kept is bounded");
        }
        found
    }

    /// The plain version: split at every CRLF.
    fn oracle(stream: &[u8]) -> Vec<Found> {
        let mut found = Vec::new();
        let mut start = 0;
        for end in 1..stream.len() {
            if &stream[end - 1..=end] == b"\r\n" && end > start {
                found.push(match end + 1 - start > LIMIT {
                    true => Found::TooLong,
                    false => Found::Line(stream[start..end - 1].to_vec()),
                });
                start = end + 1;
            }
        }
        found
    }

    #[test]
    fn only_crlf_ends_a_line() {
        let line = |text: &[u8]| Found::Line(text.to_vec());
        assert_eq!(scan([&b"a\nb\rc\r\nd\r\n"[..]]), [line(b"a\nb\rc"), line(b"d")]);
        assert_eq!(scan([&b"\n\r\r\n\r\n"[..]]), [line(b"\n\r"), line(b"")]);
        assert_eq!(scan([&b"a\r"[..], b"\nb"]), [line(b"a")]);
        assert_eq!(scan([&b"a\r"[..], b"b\r\n"]), [line(b"a\rb")]);
        assert_eq!(scan([&b"a\n\n\n"[..]]), []);
    }

    #[test]
    fn the_limit_counts_the_crlf() {
        let fits = [b"x".repeat(LIMIT - 2), b"\r\n".to_vec()].concat();
        assert_eq!(scan([&fits[..]]), [Found::Line(fits[..LIMIT - 2].to_vec())]);
        let over = [b"x".repeat(LIMIT - 1), b"\r\nNOOP\r\n".to_vec()].concat();
        let found = [Found::TooLong, Found::Line(b"NOOP".to_vec())];
        assert_eq!(scan([&over[..]]), found);
        assert_eq!(scan(over.chunks(1)), found);
    }

    #[test]
    fn a_long_line_is_dropped_to_its_true_end() {
        let mut stream = b"x\r y\n".repeat(40);
        stream.extend_from_slice(b"\r");
        let mut pieces: Vec<&[u8]> = stream.chunks(7).collect();
        pieces.extend([&b"\r"[..], b"\nQUIT\r\n"]);
        assert_eq!(scan(pieces), [Found::TooLong, Found::Line(b"QUIT".to_vec())]);
    }

    /// Each octet costs one step of the search: a line that comes octet by octet is not searched
    /// again from its start.
    #[test]
    fn what_was_scanned_is_not_scanned_again() {
        let mut scanner = LineScanner::new(LIMIT);
        let mut input = b"abcdef".to_vec();
        assert_eq!(scanner.next(&input), LineStep::Incomplete);
        // Planted behind the scanner's back, so found only by one that looks again.
        input[1..3].copy_from_slice(b"\r\n");
        assert_eq!(scanner.next(&input), LineStep::Incomplete);
    }

    proptest! {
        #[test]
        fn how_the_stream_is_cut_changes_nothing(
            stream in prop::collection::vec(
                prop_oneof![3 => Just(b'\r'), 3 => Just(b'\n'), 8 => Just(b'x')], 0..120),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
        ) {
            let expected = oracle(&stream);
            let mut places: Vec<usize> =
                cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
            places.extend([0, stream.len()]);
            places.sort_unstable();
            let pieces = places.windows(2).map(|pair| &stream[pair[0]..pair[1]]);
            prop_assert_eq!(&scan(pieces), &expected);
            prop_assert_eq!(&scan(stream.chunks(1)), &expected);
            prop_assert_eq!(&scan([&stream[..]]), &expected);
        }
    }
}
