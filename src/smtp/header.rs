//! A cheap look at the header section of a message while it comes in: loops, and what is missing.
//!
//! Its place: beside the scan of the data, on the same octets, until the empty line.  It knows
//! names of fields, never their contents; what it finds feeds the loop check (RFC 5321 section
//! 6.3) and, on submission, the fields to be added (RFC 6409 section 8).
//!
//! Invariants: memory is constant; any cut of the same octets into pieces gives the same answer;
//! a line ends with CRLF only, as in [`super::data`].  It looks at no more than
//! [`limits::HEADER_LOOK`] octets, so a peer gains nothing from an endless header.  It cannot
//! fail: a line that is no field (RFC 5322 section 2.2) is passed over.

use crate::limits;
use crate::smtp::body::BodyForm;

/// How often a field occurs that RFC 5322 section 3.6 allows once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Occurrence {
    /// Not at all.
    #[default]
    Absent,
    /// Once, as it should be.
    Once,
    /// More than once.
    Repeated,
}

/// What the header section holds, as far as it was looked at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HeaderFacts {
    /// `Received:` fields, one for each relay that the message has passed.
    pub received: u32,
    /// `Date:`
    pub date: Occurrence,
    /// `Message-ID:`
    pub message_id: Occurrence,
    /// `From:`
    pub from: Occurrence,
    /// The first line begins with white space: it continues whatever is put in front of it.
    pub begins_folded: bool,
}

/// Looks for the fields of [`HeaderFacts`] in the octets of a body, piece by piece.
#[derive(Debug, Clone)]
pub struct HeaderWatch {
    facts: HeaderFacts,
    state: State,
    form: BodyForm,
    octets_left: usize,
    is_first_line: bool,
}

/// Where in the header section the next octet stands.
#[derive(Debug, Clone, Copy)]
enum State {
    /// At the start of a line or shortly behind it, with what there is of its head.
    Head(Head),
    /// In a line the head of which was judged.
    Passing { after_cr: bool },
    /// The empty line was seen, or the look was long enough.
    Done,
}

/// The first octets of a line, up to [`HEAD_MAX`] or its CRLF.
#[derive(Debug, Clone, Copy, Default)]
struct Head {
    octets: [u8; HEAD_MAX],
    length: u8,
}

/// What of a line is looked at for a name: the longest name, a stuffed dot, the colon and some of
/// the white space that old mail may have before it (RFC 5322 section 4.5.8).
const HEAD_MAX: usize = 16;

impl HeaderWatch {
    /// A watch at the start of a body that comes in this form.
    pub fn new(form: BodyForm) -> HeaderWatch {
        HeaderWatch {
            facts: HeaderFacts::default(),
            state: State::Head(Head::default()),
            form,
            octets_left: limits::HEADER_LOOK,
            is_first_line: true,
        }
    }

    /// Looks at the next octets of the body; cheap once [`is_done`](HeaderWatch::is_done).
    pub fn feed(&mut self, piece: &[u8]) {
        let mut rest = &piece[..piece.len().min(self.octets_left)];
        self.octets_left -= rest.len();
        while !rest.is_empty() {
            rest = match self.state {
                State::Done => return,
                State::Passing { after_cr } => self.pass(after_cr, rest),
                State::Head(head) => self.head(head, rest),
            };
        }
        if self.octets_left == 0 {
            self.facts = self.facts();
            self.state = State::Done;
        }
    }

    /// Whether nothing that follows can change the facts.
    pub fn is_done(&self) -> bool {
        matches!(self.state, State::Done)
    }

    /// What was found so far.
    pub fn facts(&self) -> HeaderFacts {
        match self.state {
            State::Head(head) => self.facts_with(head.as_bytes()),
            State::Passing { .. } | State::Done => self.facts,
        }
    }

    /// The facts with one more line.
    fn facts_with(&self, head: &[u8]) -> HeaderFacts {
        let mut facts = self.facts;
        facts.add_line(head, self.form);
        facts.begins_folded |= self.is_first_line && is_folded(head, self.form);
        facts
    }

    fn add_line(&mut self, head: &[u8]) {
        self.facts = self.facts_with(head);
        self.is_first_line = false;
    }

    /// Goes on in the head of a line; gives what is left of the piece.
    fn head<'a>(&mut self, mut head: Head, rest: &'a [u8]) -> &'a [u8] {
        // The usual case: the whole head is there, and needs no gathering.
        if let (0, Some(whole)) = (head.length, rest.first_chunk::<HEAD_MAX>()) {
            if whole.starts_with(b"\r\n") {
                self.state = State::Done;
                return &[];
            }
            // A CRLF within it does no harm: no name has one, and the line is passed from its
            // start.
            self.add_line(whole);
            return self.pass(false, rest);
        }
        let (&octet, rest) = rest.split_first().expect("the piece is not empty");
        head.push(octet);
        let line = head.as_bytes();
        self.state = match line {
            b"\r\n" => State::Done,
            _ if line.ends_with(b"\r\n") => {
                self.add_line(line);
                State::Head(Head::default())
            }
            _ if line.len() == HEAD_MAX => {
                self.add_line(line);
                State::Passing { after_cr: octet == b'\r' }
            }
            _ => State::Head(head),
        };
        rest
    }

    /// Goes on to the end of the line, or of the piece, which is not empty.
    fn pass<'a>(&mut self, after_cr: bool, piece: &'a [u8]) -> &'a [u8] {
        let mut next = 0;
        while let Some(found) = memchr::memchr(b'\n', &piece[next..]) {
            let lf_at = next + found;
            next = lf_at + 1;
            let ends_line = match lf_at.checked_sub(1) {
                Some(before) => piece[before] == b'\r',
                None => after_cr,
            };
            if ends_line {
                self.state = State::Head(Head::default());
                return &piece[next..];
            }
        }
        self.state = State::Passing { after_cr: piece.ends_with(b"\r") };
        &[]
    }
}

impl Head {
    fn as_bytes(&self) -> &[u8] {
        &self.octets[..usize::from(self.length)]
    }

    /// Only a head that is not full is gathered further.
    fn push(&mut self, octet: u8) {
        self.octets[usize::from(self.length)] = octet;
        self.length += 1;
    }
}

impl HeaderFacts {
    /// Counts the field that a line with this head is, if it is one of those looked for.
    fn add_line(&mut self, head: &[u8], form: BodyForm) {
        let line = unstuffed(head, form);
        match line.first() {
            // The look is bounded, so the count is too.
            Some(b'R' | b'r') if is_field(line, b"Received") => self.received += 1,
            Some(b'D' | b'd') if is_field(line, b"Date") => self.date.again(),
            Some(b'M' | b'm') if is_field(line, b"Message-ID") => self.message_id.again(),
            Some(b'F' | b'f') if is_field(line, b"From") => self.from.again(),
            _ => {}
        }
    }
}

/// A line of a body in this form as its reader has it: a stuffed dot, or one that should have been,
/// is gone.
pub fn unstuffed(line: &[u8], form: BodyForm) -> &[u8] {
    match line {
        [b'.', line @ ..] if form == BodyForm::Data => line,
        line => line,
    }
}

/// Whether a line continues the field before it (RFC 5322 section 2.2.3), in a body of this form.
pub fn is_folded(line: &[u8], form: BodyForm) -> bool {
    matches!(unstuffed(line, form), [b' ' | b'\t', ..])
}

/// Whether the line is a field of this name, in any case, by RFC 5322 sections 2.2 and 4.5.8.
fn is_field(line: &[u8], name: &[u8]) -> bool {
    let Some((start, rest)) = line.split_at_checked(name.len()) else {
        return false;
    };
    let mut rest = rest.iter().skip_while(|octet| matches!(octet, b' ' | b'\t'));
    start.eq_ignore_ascii_case(name) && rest.next() == Some(&b':')
}

impl Occurrence {
    fn again(&mut self) {
        *self = match self {
            Occurrence::Absent => Occurrence::Once,
            Occurrence::Once | Occurrence::Repeated => Occurrence::Repeated,
        };
    }
}

/// The header section of a body, with the CRLF of its last field and without the empty line
/// (RFC 5322 section 2.1): what a failure notice returns when it returns headers only.
///
/// A body without an empty line, or the first piece of a long one, is all header.  The octets
/// stay in the form in which the body is kept.
pub fn header_section(body: &[u8]) -> &[u8] {
    if body.starts_with(b"\r\n") {
        return &[];
    }
    match memchr::memmem::find(body, b"\r\n\r\n") {
        Some(at) => &body[..at + 2],
        None => body,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Occurrence::{Absent, Once, Repeated};

    fn watch(form: BodyForm, pieces: &[&[u8]]) -> (HeaderFacts, bool) {
        let mut watch = HeaderWatch::new(form);
        pieces.iter().for_each(|piece| watch.feed(piece));
        (watch.facts(), watch.is_done())
    }

    fn facts(received: u32, date: Occurrence, id: Occurrence, from: Occurrence) -> HeaderFacts {
        HeaderFacts { received, date, message_id: id, from, begins_folded: false }
    }

    #[test]
    fn fields_are_found_as_rfc_5322_writes_them_at_every_cut() {
        let none = facts(0, Absent, Absent, Absent);
        let table: &[(&[u8], HeaderFacts, bool)] = &[
            (b"", none, false),
            (b"\r\n", none, true),
            (
                b"Received: a\r\nRECEIVED:b\r\nrEcEiVeD \t: c\r\n\r\n",
                facts(3, Absent, Absent, Absent),
                true,
            ),
            (b"Date: a\r\nMessage-ID: b\r\nFrom: c\r\n", facts(0, Once, Once, Once), false),
            (
                b"From: a\r\nfrom: b\r\nFROM: c\r\nDate: d\r\n\r\n",
                facts(0, Once, Absent, Repeated),
                true,
            ),
            // Not a field: a folded line, a longer name, a shorter one, a name within a line.
            (b"X: a\r\n Received: b\r\n\tDate: c\r\n\r\n", none, true),
            (b"Receivedx: a\r\nReceive: b\r\nResent-Date: c\r\nMessage-ID2: d\r\n\r\n", none, true),
            (b"X: Date: a\r\nReceived x: b\r\nDate\r\n: c\r\n\r\n", none, true),
            // Behind the empty line there is no header.
            (b"X: a\r\n\r\nReceived: b\r\nDate: c\r\n", none, true),
            (b"\r\nFrom: a\r\n", none, true),
            // Bare newlines end no line, and a line of one CR is not empty.
            (
                b"X: a\nReceived: b\rDate: c\r\n\r\r\nDate: d\r\n\r\n",
                facts(0, Once, Absent, Absent),
                true,
            ),
            (b"\rFrom: a\r\n\nFrom: b\r\n\n\r\n\r\n", none, true),
            // A name that ends with its line, or with the piece.
            (b"From\r\n\r\nFrom:", none, true),
            (b"From:", facts(0, Absent, Absent, Once), false),
        ];
        for (body, right, done) in table {
            let text = body.escape_ascii();
            for cut in 0..=body.len() {
                let (one, two) = body.split_at(cut);
                let found = watch(BodyForm::Bdat, &[one, two]);
                assert_eq!(found, (*right, *done), "{cut} {text}");
            }
            let octets: Vec<&[u8]> = body.chunks(1).collect();
            assert_eq!(watch(BodyForm::Bdat, &octets), (*right, *done), "{text}");
        }
    }

    #[test]
    fn a_stuffed_dot_hides_no_field() {
        let body: &[u8] = b".Received: a\r\n..Received: b\r\nX: c\r\n.Date: d\r\n\r\n";
        let (found, _) = watch(BodyForm::Data, &[body]);
        assert_eq!(found, facts(1, Once, Absent, Absent));
        let (found, _) = watch(BodyForm::Bdat, &[body]);
        assert_eq!(found, facts(0, Absent, Absent, Absent));
    }

    #[test]
    fn a_first_line_that_continues_nothing_is_noticed_at_every_cut() {
        use BodyForm::{Bdat, Data};
        let table: &[(&[u8], BodyForm, bool)] = &[
            (b" a\r\nX: b\r\n\r\n", Bdat, true),
            (b"\ta", Data, true),
            (b" ", Bdat, true),
            // The dot is taken away from it on its way.
            (b". a, and this goes on for a while\r\n\r\n", Data, true),
            (b". a, and this goes on for a while\r\n\r\n", Bdat, false),
            (b".. a\r\n\r\n", Data, false),
            (b"X: a\r\n b\r\n\r\n", Data, false),
            (b"\r\n a\r\n", Data, false),
            (b"", Data, false),
        ];
        for (body, form, right) in table {
            for cut in 0..=body.len() {
                let (one, two) = body.split_at(cut);
                let (found, _) = watch(*form, &[one, two]);
                assert_eq!(found.begins_folded, *right, "{cut} {}", body.escape_ascii());
            }
        }
    }

    #[test]
    fn the_look_ends_after_its_bound() {
        let line = b"Received: x\r\n";
        let lines = limits::HEADER_LOOK / line.len();
        let endless = line.repeat(lines + 10);
        let (found, done) = watch(BodyForm::Data, &[&endless]);
        assert!(done);
        // The last line that is looked at is cut behind its colon at the earliest.
        let whole = lines as u32;
        assert!((whole..=whole + 1).contains(&found.received), "{}", found.received);
        let pieces: Vec<&[u8]> = endless.chunks(7).collect();
        assert_eq!(watch(BodyForm::Data, &pieces), (found, true));
    }

    #[test]
    fn the_header_section_ends_before_the_empty_line() {
        let table: &[(&[u8], &[u8])] = &[
            (b"", b""),
            (b"\r\nbody", b""),
            (b"A: b\r\n\r\nbody\r\n\r\n", b"A: b\r\n"),
            (b"A: b\r\nC: d", b"A: b\r\nC: d"),
            (b"A: b\n\nC: d\r\n\r\n", b"A: b\n\nC: d\r\n"),
        ];
        for (body, right) in table {
            assert_eq!(header_section(body), *right, "{}", body.escape_ascii());
        }
    }
}
