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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::smtp::data::DataScanner;

    const DOTS_FROM_DATA: BodyFlags = BodyFlags(BodyFlags::DATA.0 | BodyFlags::LEADING_DOTS.0);

    /// Octet by octet, over the whole body: the oracle.
    fn plain(body: &[u8], change: Change) -> Vec<u8> {
        let mut changed = Vec::new();
        for (at, &octet) in body.iter().enumerate() {
            let leads = octet == b'.' && (at == 0 || body[..at].ends_with(b"\r\n"));
            let times = match change {
                Change::Remove if leads => 0,
                Change::Double if leads => 2,
                _ => 1,
            };
            changed.extend(std::iter::repeat_n(octet, times));
        }
        changed
    }

    fn in_pieces(body: &[u8], change: Change, cuts: &[usize]) -> Vec<u8> {
        let mut reshape = Reshape { change, line: Line::Start };
        let mut changed = Vec::new();
        let mut from = 0;
        for &cut in cuts.iter().chain([&body.len()]) {
            let before = changed.len();
            let slices = reshape.slices(&body[from..cut]);
            let announced = slices.octets();
            for slice in slices {
                assert!(!slice.is_empty());
                changed.extend_from_slice(slice);
            }
            assert_eq!(changed.len() - before, announced);
            from = cut;
        }
        changed
    }

    #[test]
    fn every_short_body_is_changed_alike_however_it_is_cut() {
        let alphabet = b"\r\n.a";
        for length in 0..=7u32 {
            for number in 0..4usize.pow(length) {
                let body: Vec<u8> =
                    (0..length).map(|at| alphabet[number >> (2 * at) & 3]).collect();
                for change in [Change::Nothing, Change::Remove, Change::Double] {
                    let right = plain(&body, change);
                    let cut = number % (body.len() + 1);
                    let every: Vec<usize> = (0..body.len()).collect();
                    for cuts in [&[] as &[usize], &[cut], &every] {
                        let found = in_pieces(&body, change, cuts);
                        assert_eq!(found, right, "{change:?} {cuts:?} {}", body.escape_ascii());
                    }
                }
            }
        }
    }

    #[test]
    fn without_leading_dots_one_slice_comes_back() {
        let body = b"a.b\r\nc";
        for flags in [BodyFlags::DATA, BodyFlags::default()] {
            for to in [BodyForm::Data, BodyForm::Bdat] {
                let mut reshape = Reshape::new(flags, to);
                assert!(reshape.is_identity());
                let slices: Vec<&[u8]> = reshape.slices(body).collect();
                assert_eq!(slices, [body]);
                assert_eq!(reshape.slices(b"").count(), 0);
            }
        }
        // With leading dots too, if the body is wanted as it is kept.
        assert!(Reshape::new(DOTS_FROM_DATA, BodyForm::Data).is_identity());
        assert!(Reshape::new(BodyFlags::LEADING_DOTS, BodyForm::Bdat).is_identity());
    }

    #[test]
    fn no_octet_is_copied_to_take_dots_out_or_put_them_in() {
        let body = b"..a\r\n..\r\nb.c\r\n";
        let slices: Vec<&[u8]> =
            Reshape::new(DOTS_FROM_DATA, BodyForm::Bdat).slices(body).collect();
        assert_eq!(slices, [b".a\r\n" as &[u8], b".\r\nb.c\r\n"]);
        let slices: Vec<&[u8]> =
            Reshape::new(BodyFlags::LEADING_DOTS, BodyForm::Data).slices(b".a\r\n.\r\n").collect();
        assert_eq!(slices, [b"." as &[u8], b".a\r\n.", b".\r\n"]);
    }

    #[test]
    fn the_ending_completes_the_last_line() {
        assert_eq!(data_ending(BodyFlags::ENDS_WITH_CRLF), b".\r\n");
        assert_eq!(data_ending(BodyFlags::DATA), b"\r\n.\r\n");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        /// What one gateway stuffs and ends the next one takes as the same message.
        #[test]
        fn a_body_survives_the_way_through_data(
            words in proptest::collection::vec(
                prop_oneof![
                    Just(b"\r\n".to_vec()),
                    Just(b".".to_vec()),
                    Just(b"\r\n.\r\n".to_vec()),
                    Just(b"\r".to_vec()),
                    Just(b"\n".to_vec()),
                    proptest::collection::vec(any::<u8>(), 0..80),
                ],
                0..40,
            ),
        ) {
            let body = words.concat();
            let mut wire = Vec::new();
            write_stuffed(&body, &mut wire);
            let ends_with_crlf = body.is_empty() || body.ends_with(b"\r\n");
            let flags = if ends_with_crlf { BodyFlags::ENDS_WITH_CRLF } else { BodyFlags::default() };
            wire.extend_from_slice(data_ending(flags));

            let mut scanner = DataScanner::new();
            let scanned = scanner.scan(&wire);
            prop_assert!(scanned.end && scanned.consumed == wire.len());
            let mut arrived = Vec::new();
            Reshape::new(scanner.summary().flags, BodyForm::Bdat)
                .write(&wire[..scanned.body], &mut arrived);
            let sent = if ends_with_crlf { body } else { [&body as &[u8], b"\r\n"].concat() };
            prop_assert_eq!(arrived, sent);
        }
    }
}
