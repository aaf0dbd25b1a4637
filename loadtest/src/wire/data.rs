//! Finds the end of data in the stream of a message sent by DATA, and takes out the dots that
//! were stuffed (RFC 5321 section 4.5.2).
//!
//! The plain version:
//! ```text
//! for each line (ended by CRLF only):
//!     "."          -> the end
//!     starts "."   -> the rest of the line is content
//!     else         -> the line is content
//! ```
//! The fast one looks for CRLF and a dot with a vector search, for nearly no line begins with
//! one.  What may be the beginning of a match at the end of a read is left unread, so that no
//! state but the very first line's is carried over.

use std::sync::LazyLock;

use memchr::memmem::Finder;

static LINE_WITH_DOT: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\r\n."));

/// What a scan came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scan {
    /// So many octets are done with; the rest must be shown again with more behind it.
    More(usize),
    /// The data ended, with so many octets including the final CRLF.
    End(usize),
}

/// The state of one message's data.
#[derive(Debug, Clone, Copy)]
pub struct DataScanner {
    /// Nothing has been read: a dot here begins a line, though no CRLF stands before it.
    at_start: bool,
}

impl DataScanner {
    /// Right behind the 354.
    pub fn new() -> DataScanner {
        DataScanner { at_start: true }
    }

    /// Scans what has come; `content` is given the message in its pieces, without stuffed dots
    /// and without the final dot.
    pub fn scan(&mut self, bytes: &[u8], mut content: impl FnMut(&[u8])) -> Scan {
        let mut from = 0;
        if self.at_start {
            match bytes {
                [b'.', b'\r', b'\n', ..] => return Scan::End(3),
                [] | [b'.'] | [b'.', b'\r'] => return Scan::More(0),
                [b'.', ..] => from = 1,
                _ => {}
            }
            self.at_start = false;
        }
        let finder = &*LINE_WITH_DOT;
        let mut look = from;
        while let Some(at) = finder.find(&bytes[look..]) {
            let dot = look + at + 2;
            match &bytes[dot + 1..] {
                [b'\r', b'\n', ..] => {
                    content(&bytes[from..dot]);
                    return Scan::End(dot + 3);
                }
                [] | [b'\r'] => {
                    content(&bytes[from..dot - 2]);
                    return Scan::More(dot - 2);
                }
                _ => {
                    content(&bytes[from..dot]);
                    from = dot + 1;
                    look = from;
                }
            }
        }
        let end = bytes.len() - beginning_of_match(&bytes[from..]);
        content(&bytes[from..end]);
        Scan::More(end)
    }
}

impl Default for DataScanner {
    fn default() -> DataScanner {
        DataScanner::new()
    }
}

/// How many octets at the end may begin a line with a dot.
fn beginning_of_match(bytes: &[u8]) -> usize {
    match bytes {
        [.., b'\r', b'\n'] => 2,
        [.., b'\r'] => 1,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The plain version: content and how many octets it took, once the end is there.
    fn plain(stream: &[u8]) -> Option<(Vec<u8>, usize)> {
        let mut content = Vec::new();
        let mut at = 0;
        loop {
            let end = at + stream[at..].windows(2).position(|pair| pair == b"\r\n")?;
            let line = &stream[at..end];
            at = end + 2;
            if line == b"." {
                return Some((content, at));
            }
            content.extend_from_slice(line.strip_prefix(b".").unwrap_or(line));
            content.extend_from_slice(b"\r\n");
        }
    }

    /// Shows the stream in reads of the given lengths, as a session's buffer would.
    fn in_reads(stream: &[u8], cuts: &[usize]) -> Option<(Vec<u8>, usize)> {
        let mut scanner = DataScanner::new();
        let (mut content, mut done, mut came) = (Vec::new(), 0, 0);
        let mut cuts = cuts.iter().copied().cycle();
        loop {
            let scan = scanner.scan(&stream[done..came], |piece| content.extend_from_slice(piece));
            match scan {
                Scan::End(octets) => return Some((content, done + octets)),
                Scan::More(octets) => done += octets,
            }
            if came == stream.len() {
                return None;
            }
            came = stream.len().min(came + cuts.next().unwrap_or(1).max(1));
        }
    }

    #[test]
    fn dots_are_taken_out_and_the_end_is_found_at_every_split() {
        for stream in [
            &b".\r\n"[..],
            b"..\r\n.\r\n",
            b"\r\n.\r\nMAIL",
            b"a\r\n..b\r\n...\r\n.c\r\n.\r\nNOOP\r\n",
            b"a\n.\nb\r.\r\n.\r\n.\r\n",
            b"a\r\r\n.\r\n",
        ] {
            let expected = plain(stream);
            assert!(expected.is_some());
            for first in 1..=stream.len() {
                for then in 1..=stream.len() {
                    assert_eq!(in_reads(stream, &[first, then]), expected, "{first} {then}");
                }
            }
        }
    }

    proptest! {
        #[test]
        fn as_the_plain_version(
            stream in proptest::collection::vec(
                prop_oneof![Just(b'.'), Just(b'\r'), Just(b'\n'), Just(b'a')], 0..60),
            cuts in proptest::collection::vec(1usize..9, 1..6),
        ) {
            let mut stream = stream;
            stream.extend_from_slice(b"\r\n.\r\ntail");
            prop_assert_eq!(in_reads(&stream, &cuts), plain(&stream));
        }
    }
}
