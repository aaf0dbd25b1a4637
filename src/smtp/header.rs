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
}

/// Looks for the fields of [`HeaderFacts`] in the octets of a body, piece by piece.
#[derive(Debug, Clone)]
pub struct HeaderWatch {
    facts: HeaderFacts,
    state: State,
    form: BodyForm,
    octets_left: usize,
}

/// Where in the header section the next octet stands.
#[derive(Debug, Clone, Copy)]
enum State {
    /// At the start of a line.
    LineStart,
    /// In what may be one of the names, so far as it matches.
    Name(NamePrefix),
    /// In white space between a known name and its colon (RFC 5322 section 4.5.8 and others).
    BeforeColon(Field),
    /// Somewhere in a line that says no more.
    Passing { after_cr: bool },
    /// The empty line was seen, or the look was long enough.
    Done,
}

/// The first octets of a line, lower case.
#[derive(Debug, Clone, Copy)]
struct NamePrefix {
    octets: [u8; NAME_MAX],
    length: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    Received,
    Date,
    MessageId,
    From,
}

const FIELDS: [(&[u8], Field); 4] = [
    (b"received", Field::Received),
    (b"date", Field::Date),
    (b"message-id", Field::MessageId),
    (b"from", Field::From),
];

/// The longest name in [`FIELDS`].
const NAME_MAX: usize = 10;

impl HeaderWatch {
    /// A watch at the start of a body that comes in this form.
    pub fn new(form: BodyForm) -> HeaderWatch {
        HeaderWatch {
            facts: HeaderFacts::default(),
            state: State::LineStart,
            form,
            octets_left: limits::HEADER_LOOK,
        }
    }

    /// Looks at the next octets of the body; cheap once [`is_done`](HeaderWatch::is_done).
    pub fn feed(&mut self, piece: &[u8]) {
        let piece = &piece[..piece.len().min(self.octets_left)];
        self.octets_left -= piece.len();
        let mut rest = piece;
        while let Some((&octet, after)) = rest.split_first() {
            rest = match self.state {
                State::Done => return,
                State::Passing { after_cr } => {
                    let (state, after) = pass(after_cr, rest);
                    self.state = state;
                    after
                }
                State::LineStart if octet == b'.' && self.form == BodyForm::Data => {
                    // A stuffed dot, or one that should have been: the line begins behind it.
                    self.state = State::Name(NamePrefix::EMPTY);
                    after
                }
                State::LineStart => {
                    self.state = NamePrefix::EMPTY.then(octet);
                    after
                }
                State::Name(prefix) => {
                    self.name(prefix, octet);
                    after
                }
                State::BeforeColon(field) => {
                    self.before_colon(field, octet);
                    after
                }
            };
        }
        if self.octets_left == 0 {
            self.state = State::Done;
        }
    }

    /// Whether nothing that follows can change the facts.
    pub fn is_done(&self) -> bool {
        matches!(self.state, State::Done)
    }

    /// What was found so far.
    pub fn facts(&self) -> HeaderFacts {
        self.facts
    }

    /// The next octet of a line that may begin with one of the names.
    fn name(&mut self, prefix: NamePrefix, octet: u8) {
        match (octet, prefix.field()) {
            (b'\n', _) if prefix.as_bytes() == b"\r" => self.state = State::Done,
            (b':', Some(field)) => self.found(field),
            (b' ' | b'\t', Some(field)) => self.state = State::BeforeColon(field),
            _ => self.state = prefix.then(octet),
        }
    }

    fn before_colon(&mut self, field: Field, octet: u8) {
        match octet {
            b':' => self.found(field),
            b' ' | b'\t' => {}
            _ => self.state = State::Passing { after_cr: octet == b'\r' },
        }
    }

    fn found(&mut self, field: Field) {
        match field {
            // The look is bounded, so the count is too.
            Field::Received => self.facts.received += 1,
            Field::Date => self.facts.date.again(),
            Field::MessageId => self.facts.message_id.again(),
            Field::From => self.facts.from.again(),
        }
        self.state = State::Passing { after_cr: false };
    }
}

impl Occurrence {
    fn again(&mut self) {
        *self = match self {
            Occurrence::Absent => Occurrence::Once,
            Occurrence::Once | Occurrence::Repeated => Occurrence::Repeated,
        };
    }
}

impl NamePrefix {
    const EMPTY: NamePrefix = NamePrefix { octets: [0; NAME_MAX], length: 0 };

    fn as_bytes(&self) -> &[u8] {
        &self.octets[..usize::from(self.length)]
    }

    /// The state after one more octet of the line.
    fn then(mut self, octet: u8) -> State {
        let length = usize::from(self.length);
        if length < NAME_MAX {
            self.octets[length] = octet.to_ascii_lowercase();
            self.length += 1;
            let begins_a_name = FIELDS.iter().any(|(name, _)| name.starts_with(self.as_bytes()));
            if begins_a_name || self.as_bytes() == b"\r" {
                return State::Name(self);
            }
        }
        State::Passing { after_cr: octet == b'\r' }
    }

    /// The field of which this is the whole name.
    fn field(&self) -> Option<Field> {
        FIELDS.iter().find(|(name, _)| *name == self.as_bytes()).map(|&(_, field)| field)
    }
}

/// Goes on to the end of the line, or of the piece, which is not empty.
fn pass(after_cr: bool, piece: &[u8]) -> (State, &[u8]) {
    if after_cr && piece[0] == b'\n' {
        return (State::LineStart, &piece[1..]);
    }
    let mut next = 0;
    while let Some(found) = memchr::memchr(b'\n', &piece[next..]) {
        let lf_at = next + found;
        next = lf_at + 1;
        if piece[..lf_at].ends_with(b"\r") {
            return (State::LineStart, &piece[next..]);
        }
    }
    (State::Passing { after_cr: piece.ends_with(b"\r") }, &[])
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
