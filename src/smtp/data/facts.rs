//! What a kernel carries from piece to piece: the facts of the body so far and the place in its
//! line.  One home, so that the three kernels can only differ in how they find things.

use crate::message::{BodyFlags, BodySummary};

/// Where in a line the next octet stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Position {
    /// At its start: after CRLF, or at the start of the body.
    LineStart,
    /// Anywhere else, unless the last octet was a CR.
    InLine,
    /// After a CR that is bare unless an LF follows.
    AfterCr,
    /// The end of data was found; nothing more is looked at.
    Ended,
}

/// Whether a dot alone on its line ends the body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EndOfData {
    /// After DATA.
    Stops,
    /// In a BDAT chunk.
    IsBody,
}

/// The facts of the octets so far.  `line_start_octets <= octets`.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    /// How many there were.
    pub octets: u64,
    /// Where the line that is open starts, in octets from the start of the body.
    pub line_start_octets: u64,
    /// At least the longest complete line without its CRLF, at most the longest of all lines
    /// that have begun.
    pub longest_line_octets: u64,
    /// All but DATA and ENDS_WITH_CRLF, and BARE_CR for a CR that is last.
    pub flags: BodyFlags,
    /// Where the next octet stands.
    pub position: Position,
}

impl Facts {
    /// Those of an empty body.
    pub fn new() -> Facts {
        Facts {
            octets: 0,
            line_start_octets: 0,
            longest_line_octets: 0,
            flags: BodyFlags::default(),
            position: Position::LineStart,
        }
    }

    /// A line ends with its LF as the octet at `lf_octets` of the body; its CR stands before it.
    #[inline]
    pub fn end_line(&mut self, lf_octets: u64) {
        debug_assert!(lf_octets > self.line_start_octets);
        let line_octets = lf_octets - 1 - self.line_start_octets;
        self.longest_line_octets = self.longest_line_octets.max(line_octets);
        self.line_start_octets = lf_octets + 1;
    }

    /// The summary of a body that ends here.
    pub fn summary(&self, crc32c: u32) -> BodySummary {
        let mut flags = self.flags;
        match self.position {
            Position::LineStart | Position::Ended => flags.insert(BodyFlags::ENDS_WITH_CRLF),
            Position::AfterCr => flags.insert(BodyFlags::BARE_CR),
            Position::InLine => {}
        }
        let open_line_octets = self.octets - self.line_start_octets;
        let longest_line_octets = self.longest_line_octets.max(open_line_octets);
        BodySummary {
            octets: self.octets,
            crc32c,
            longest_line: u32::try_from(longest_line_octets).unwrap_or(u32::MAX),
            flags,
        }
    }
}
