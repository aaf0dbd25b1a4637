//! What becomes of a message's header section: fields before it, a new subject, fields that go.
//!
//! Pure.  New fields stand in front of all that the sender wrote, so that no octet of the body moves
//! for them.  A new subject and fields that go change the body itself, as it is kept: only that of a
//! small message, which is in memory.
//!
//! Invariants: what is added is ASCII in lines of at most 998 octets (RFC 5322 section 2.1.1), each a
//! field or its continuation, however rspamd wrote it, and has a bound; what is changed is changed
//! by whole fields, so that the form of the body (stuffed dots, bare newlines) stays what it was.

use data_encoding::BASE64;

use crate::message::{BodyFlags, BodySummary};
use crate::smtp::body::BodyForm;
use crate::smtp::data::{ChunkScanner, DataScanner};
use crate::smtp::header::{header_section, is_folded, unstuffed};

/// What is to be changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// Takes the place of every `Subject`.
    pub subject: Option<Field>,
    added: Vec<Field>,
    removed: Vec<Removal>,
}

/// One field, folded, CRLF at its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field(Box<str>);

/// A field that goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removal {
    name: Box<str>,
    /// The first is 1, the last is -1; 0 is all of them.
    which: i32,
}

/// A body whose header section was changed, and what a scan of it finds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rewritten {
    /// Its octets, in the form that they had.
    pub body: Vec<u8>,
    /// See [`BodySummary`].
    pub summary: BodySummary,
}

impl Changes {
    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        *self == Changes::default()
    }

    /// Whether the body itself changes.
    pub fn concern_body(&self) -> bool {
        self.subject.is_some() || !self.removed.is_empty()
    }

    /// One more field, up to a bound.
    pub fn add(&mut self, field: Field) {
        let octets: usize = self.added.iter().map(|field| field.0.len()).sum();
        if octets + field.0.len() <= ADDED_OCTETS {
            self.added.push(field);
        }
    }

    /// One more field that goes, up to a bound.
    pub fn remove(&mut self, removal: Removal) {
        if self.removed.len() < REMOVALS {
            self.removed.push(removal);
        }
    }

    /// Fields that go.
    pub fn removed(&self) -> &[Removal] {
        &self.removed
    }

    /// `X-Spam: Yes`, whatever the sender says of it, and however much else there is.
    pub fn mark(&mut self) {
        self.removed.push(Removal { name: SPAM.into(), which: 0 });
        self.added.push(Field(format!("{SPAM}: Yes\r\n").into()));
    }

    /// Writes the fields that are added.
    pub fn write(&self, out: &mut String) {
        self.added.iter().for_each(|field| out.push_str(&field.0));
    }

    /// The body with these changes; `None` if there is nothing to be changed.
    ///
    /// rspamd was shown it behind our `trace`, whose fields count where it removes one by number,
    /// and stay.
    pub fn apply(&self, body: &[u8], flags: BodyFlags, trace: &str) -> Option<Rewritten> {
        let form = BodyForm::kept(flags);
        let header = header_section(body);
        let theirs = fields(header, form);
        let ours = fields(trace.as_bytes(), BodyForm::Bdat);
        let mut goes: Vec<bool> = vec![false; theirs.len()];
        for removal in &self.removed {
            let is_ours = |field: &&&[u8]| is_named(field, &removal.name, BodyForm::Bdat);
            removal.mark(ours.iter().filter(is_ours).count(), &theirs, form, &mut goes);
        }
        let mut subject_at = None;
        if self.subject.is_some() {
            for (place, _) in
                theirs.iter().enumerate().filter(|(_, f)| is_named(f, "Subject", form))
            {
                goes[place] = true;
                subject_at.get_or_insert(place);
            }
        } else if !goes.contains(&true) {
            return None;
        }
        let subject = self.subject.as_ref().map_or("", |subject| &subject.0).as_bytes();
        let mut changed = Vec::with_capacity(body.len() + subject.len());
        // Lines that continue nothing stay in front: they must not continue the subject.
        let orphans = usize::from(is_folded(header, form));
        let subject_at = subject_at.unwrap_or(orphans);
        for (place, field) in theirs.iter().enumerate() {
            if subject_at == place {
                changed.extend_from_slice(subject);
            }
            if !goes[place] {
                changed.extend_from_slice(field);
            }
        }
        if subject_at >= theirs.len() && !subject.is_empty() {
            if !changed.is_empty() && !changed.ends_with(b"\r\n") {
                changed.extend_from_slice(b"\r\n");
            }
            changed.extend_from_slice(subject);
        }
        changed.extend_from_slice(&body[header.len()..]);
        let summary = summary(&changed, flags)?;
        Some(Rewritten { body: changed, summary })
    }
}

impl Field {
    /// The field of this name; `None` if that is no name of a field, or nothing is left of its value.
    pub fn new(name: &str, value: &str) -> Option<Field> {
        is_name(name).then_some(())?;
        let mut field = format!("{name}:");
        let mut lines = value.split('\n').map(clean).filter(|line| !line.is_empty()).peekable();
        lines.peek()?;
        for (place, line) in lines.enumerate() {
            field.push_str(if place == 0 { " " } else { "\r\n\t" });
            push_folded(&mut field, &line);
            if field.len() > VALUE_OCTETS {
                break;
            }
        }
        field.push_str("\r\n");
        Some(Field(field.into()))
    }

    /// `Subject`, with encoded words (RFC 2047) where it is not ASCII.
    pub fn subject(text: &str) -> Option<Field> {
        match text.is_ascii() {
            true => Field::new("Subject", text),
            false => Field::new("Subject", &encoded_words(text)),
        }
    }
}

impl Removal {
    /// The field of this name: the first is 1, the last is -1, all of them are 0.
    pub fn new(name: &str, which: i32) -> Option<Removal> {
        is_name(name).then(|| Removal { name: name.into(), which })
    }

    /// Notes which of the fields go; so many of that name stand before them.
    fn mark(&self, before: usize, fields: &[&[u8]], form: BodyForm, goes: &mut [bool]) {
        let is_it = |(_, field): &(usize, &&[u8])| is_named(field, &self.name, form);
        let mut places = fields.iter().enumerate().filter(is_it).map(|(place, _)| place);
        let nth = self.which.unsigned_abs() as usize;
        let one = match self.which {
            0 => return places.for_each(|place| goes[place] = true),
            1.. => nth.checked_sub(before + 1).and_then(|nth| places.nth(nth)),
            _ => {
                let places: Vec<usize> = places.collect();
                places.len().checked_sub(nth).map(|at| places[at])
            }
        };
        if let Some(place) = one {
            goes[place] = true;
        }
    }
}

/// The fields of a header section with their continuations; a line that is no field goes with the
/// one before it or stands alone.
fn fields(header: &[u8], form: BodyForm) -> Vec<&[u8]> {
    let mut fields = Vec::new();
    let (mut start, mut line) = (0, 0);
    while line < header.len() {
        if line > start && !is_folded(&header[line..], form) {
            fields.push(&header[start..line]);
            start = line;
        }
        let end = memchr::memmem::find(&header[line..], b"\r\n");
        line = end.map_or(header.len(), |end| line + end + 2);
    }
    if start < header.len() {
        fields.push(&header[start..]);
    }
    fields
}

/// Whether a field has this name, in any case; before the colon there may be blanks (RFC 5322
/// section 4.5).
fn is_named(field: &[u8], name: &str, form: BodyForm) -> bool {
    let field = unstuffed(field, form);
    let Some((start, rest)) = field.split_at_checked(name.len()) else { return false };
    let mut rest = rest.iter().skip_while(|octet| matches!(octet, b' ' | b'\t'));
    start.eq_ignore_ascii_case(name.as_bytes()) && rest.next() == Some(&b':')
}

/// A field's name (RFC 5322 section 2.2).  One that begins with a dot could be taken for a stuffed
/// one.
fn is_name(name: &str) -> bool {
    let is_name_octet = |octet: u8| octet.is_ascii_graphic() && octet != b':';
    (1..=NAME_OCTETS).contains(&name.len())
        && name.bytes().all(is_name_octet)
        && !name.starts_with('.')
}

/// A line of a value without blanks around it, and in ASCII.
fn clean(line: &str) -> String {
    let clean = |c: char| match c {
        ' '..='~' => Some(c),
        '\t' => Some(' '),
        c if c.is_control() => None,
        _ => Some('?'),
    };
    line.chars().take(VALUE_OCTETS).filter_map(clean).collect::<String>().trim().to_owned()
}

/// Adds a line, on several where it is too long for one.
fn push_folded(out: &mut String, mut line: &str) {
    while line.len() > LINE_OCTETS {
        let at = line[..LINE_OCTETS].rfind(' ').filter(|&at| at > 0).unwrap_or(LINE_OCTETS);
        out.push_str(line[..at].trim_end());
        out.push_str("\r\n\t");
        line = line[at..].trim_start();
    }
    out.push_str(line);
}

/// Text in the encoded words of RFC 2047 section 2, one a line; none is longer than 75 characters.
fn encoded_words(text: &str) -> String {
    let mut words = String::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (word, after) = rest.split_at(rest.floor_char_boundary(WORD_OCTETS));
        let separator = if words.is_empty() { "" } else { "\n" };
        words.push_str(separator);
        words.push_str(&format!("=?UTF-8?B?{}?=", BASE64.encode(word.as_bytes())));
        rest = after;
    }
    words
}

/// What a scan finds of a body in the form that `flags` tell; `None` if it is no body of that form.
fn summary(body: &[u8], flags: BodyFlags) -> Option<BodySummary> {
    if flags.contains(BodyFlags::DATA) {
        let mut scanner = DataScanner::new();
        let scanned = scanner.scan(body);
        return (scanned.body == body.len() && !scanned.end).then(|| scanner.summary());
    }
    let mut scanner = ChunkScanner::new();
    scanner.begin_chunk(body.len() as u64);
    scanner.scan(body);
    Some(scanner.summary())
}

/// The field that marks spam.
const SPAM: &str = "X-Spam";
/// The most octets of a field's name.
const NAME_OCTETS: usize = 76;
/// About the most octets of one field.
const VALUE_OCTETS: usize = 8 * 1024;
/// The most octets of all fields that are added, but for the mark.
const ADDED_OCTETS: usize = 32 * 1024;
/// The most fields that are removed, by name, but for the mark's.
const REMOVALS: usize = 32;
/// The most octets of a value on one line; with a name before it less than the 998 of RFC 5322.
const LINE_OCTETS: usize = 900;
/// Octets in an encoded word: 60 characters of base64, and 12 around them.
const WORD_OCTETS: usize = 45;

const _: () = assert!(NAME_OCTETS + 2 + LINE_OCTETS <= 998);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn changes(subject: Option<&str>, removed: &[(&str, i32)]) -> Changes {
        let removed = removed.iter().map(|(name, which)| Removal::new(name, *which).unwrap());
        Changes {
            subject: subject.and_then(Field::subject),
            removed: removed.collect(),
            added: Vec::new(),
        }
    }

    fn applied(changes: &Changes, body: &str) -> Option<String> {
        let changed = changes.apply(body.as_bytes(), BodyFlags::DATA, "")?;
        Some(String::from_utf8(changed.body).unwrap())
    }

    #[test]
    fn the_subject_is_replaced_where_it_stood() {
        let new = changes(Some("[spam] x"), &[]);
        for (body, right) in [
            ("Subject: x\r\n\r\nb\r\n", "Subject: [spam] x\r\n\r\nb\r\n"),
            (
                "A: b\r\nsubject : x\r\n\ty\r\nC: d\r\n\r\n",
                "A: b\r\nSubject: [spam] x\r\nC: d\r\n\r\n",
            ),
            ("Subject: x\r\nA: b\r\nSUBJECT: y\r\n\r\n", "Subject: [spam] x\r\nA: b\r\n\r\n"),
            ("A: b\r\n\r\nSubject: x\r\n", "Subject: [spam] x\r\nA: b\r\n\r\nSubject: x\r\n"),
            ("\r\nbody\r\n", "Subject: [spam] x\r\n\r\nbody\r\n"),
            ("", "Subject: [spam] x\r\n"),
            ("Subjects: x\r\n", "Subject: [spam] x\r\nSubjects: x\r\n"),
            // A line that continues nothing must not continue the subject, nor hide behind a dot.
            (" y\r\n\tz\r\nA: b\r\n\r\n", " y\r\n\tz\r\nSubject: [spam] x\r\nA: b\r\n\r\n"),
            (". y\r\nA: b\r\n\r\n", ". y\r\nSubject: [spam] x\r\nA: b\r\n\r\n"),
            (" y", " y\r\nSubject: [spam] x\r\n"),
            (" y\r\n\r\nb\r\n", " y\r\nSubject: [spam] x\r\n\r\nb\r\n"),
            (".Subject: x\r\n. y\r\nA: b\r\n\r\n", "Subject: [spam] x\r\nA: b\r\n\r\n"),
        ] {
            assert_eq!(applied(&new, body).as_deref(), Some(right), "{body:?}");
        }
    }

    #[test]
    fn fields_go_by_their_number() {
        let body = "X: 1\r\nY: 2\r\nx: 3\r\n 4\r\nX: 5\r\n\r\nX: 6\r\n";
        for (which, right) in [
            (0, Some("Y: 2\r\n\r\nX: 6\r\n")),
            (1, Some("Y: 2\r\nx: 3\r\n 4\r\nX: 5\r\n\r\nX: 6\r\n")),
            (2, Some("X: 1\r\nY: 2\r\nX: 5\r\n\r\nX: 6\r\n")),
            (3, Some("X: 1\r\nY: 2\r\nx: 3\r\n 4\r\n\r\nX: 6\r\n")),
            (4, None),
            (-1, Some("X: 1\r\nY: 2\r\nx: 3\r\n 4\r\n\r\nX: 6\r\n")),
            (-3, Some("Y: 2\r\nx: 3\r\n 4\r\nX: 5\r\n\r\nX: 6\r\n")),
            (-4, None),
            (i32::MIN, None),
            (i32::MAX, None),
        ] {
            assert_eq!(applied(&changes(None, &[("X", which)]), body).as_deref(), right, "{which}");
        }
        assert_eq!(applied(&changes(None, &[("Z", 0)]), body), None);
    }

    /// rspamd counts the fields of what it was shown.
    #[test]
    fn fields_in_front_of_the_body_count_and_stay() {
        let trace = "Received: ours\r\n\tby us\r\nX: ours\r\n";
        let body = "received: 1\r\nReceived: 2\r\nX: 3\r\n\r\n";
        for (name, which, right) in [
            ("Received", 1, None),
            ("Received", 2, Some("Received: 2\r\nX: 3\r\n\r\n")),
            ("Received", 3, Some("received: 1\r\nX: 3\r\n\r\n")),
            ("Received", 4, None),
            ("Received", -1, Some("received: 1\r\nX: 3\r\n\r\n")),
            ("Received", -2, Some("Received: 2\r\nX: 3\r\n\r\n")),
            ("Received", -3, None),
            ("Received", 0, Some("X: 3\r\n\r\n")),
            ("X", 2, Some("received: 1\r\nReceived: 2\r\n\r\n")),
        ] {
            let changes = changes(None, &[(name, which)]);
            let changed = changes.apply(body.as_bytes(), BodyFlags::DATA, trace);
            let changed = changed.map(|changed| String::from_utf8(changed.body).unwrap());
            assert_eq!(changed.as_deref(), right, "{name} {which}");
        }
    }

    #[test]
    fn what_is_added_is_a_field_whatever_it_was() {
        let field = |name: &str, value: &str| Field::new(name, value).map(|field| field.0);
        let right = |text: &str| Some(Box::from(text));
        assert_eq!(field("X", "a"), right("X: a\r\n"));
        assert_eq!(field("X", "a\r\n\r\nBcc: b"), right("X: a\r\n\tBcc: b\r\n"));
        assert_eq!(field("X", " a\u{0}\u{e4}\r b "), right("X: a? b\r\n"));
        for (name, value) in [("", "a"), ("X:", "a"), ("X Y", "a"), ("\u{e4}", "a"), (".X", "a")] {
            assert_eq!(field(name, value), None, "{name}");
        }
        assert_eq!(field("X", " \r\n "), None);
        let long = field(&"X".repeat(76), &format!("{} {}", "a".repeat(2_000), "b".repeat(899)));
        let long = long.expect("it is one");
        assert!(long.lines().all(|line| line.len() <= 998) && long.contains('b'), "{long}");
        let mut much = Changes::default();
        (0..1_000).for_each(|_| much.add(Field::new("X", &"a".repeat(8_000)).unwrap()));
        (0..1_000).for_each(|_| much.remove(Removal::new("X", 0).unwrap()));
        let mut text = String::new();
        much.write(&mut text);
        assert!(text.len() <= ADDED_OCTETS && much.removed.len() == REMOVALS);
        // The mark has room of its own.
        much.mark();
        text.clear();
        much.write(&mut text);
        assert!(text.ends_with("\r\nX-Spam: Yes\r\n"));
        assert_eq!(much.removed.last(), Removal::new("X-Spam", 0).as_ref());
    }

    #[test]
    fn a_subject_that_is_not_ascii_is_encoded() {
        let subject = |text: &str| Field::subject(text).map(|field| field.0);
        assert_eq!(subject("***SPAM*** hello").as_deref(), Some("Subject: ***SPAM*** hello\r\n"));
        assert_eq!(
            subject("=?UTF-8?Q?=C3=A4?=").as_deref(),
            Some("Subject: =?UTF-8?Q?=C3=A4?=\r\n")
        );
        assert_eq!(subject("\u{e4}").as_deref(), Some("Subject: =?UTF-8?B?w6Q=?=\r\n"));
        let long = subject(&"\u{20ac}".repeat(60)).expect("it is one");
        assert!(long.lines().all(|line| line.len() <= 9 + 75), "{long}");
        let words = long.trim_start_matches("Subject:").split_whitespace();
        let octets = words.flat_map(|word| {
            let word = word.trim_start_matches("=?UTF-8?B?").trim_end_matches("?=");
            BASE64.decode(word.as_bytes()).unwrap()
        });
        let text = String::from_utf8(octets.collect()).unwrap();
        assert_eq!(text, "\u{20ac}".repeat(60));
    }

    proptest! {
        /// Against a plain version, line by line; and the summary is that of the new octets.
        #[test]
        fn removal_is_by_whole_fields(
            lines in prop::collection::vec(
                prop::sample::select(vec!["X: 1", "x :2", " 3", "\t4", "Y: 5", "", "..", "Xy: 6", "\u{e4}", ". 7", ".X: 8"]),
                0..12,
            ),
        ) {
            let body: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
            for flags in [BodyFlags::DATA, BodyFlags::default()] {
                let mut right = String::new();
                let (mut goes, mut is_header) = (false, true);
                for line in &lines {
                    is_header &= !line.is_empty();
                    let read = line.strip_prefix('.').filter(|_| flags == BodyFlags::DATA);
                    let read = read.unwrap_or(line);
                    let is_folded = read.starts_with([' ', '\t']);
                    let is_it = read.starts_with("X:") || read.starts_with("x :");
                    goes = is_header && (is_it || (goes && is_folded));
                    if !goes {
                        right.push_str(line);
                        right.push_str("\r\n");
                    }
                }
                let changed = changes(None, &[("X", 0)]).apply(body.as_bytes(), flags, "");
                let found = changed.as_ref().map_or(body.as_bytes(), |changed| &changed.body);
                prop_assert_eq!(found, right.as_bytes());
                if let Some(Rewritten { body, summary }) = &changed {
                    prop_assert_eq!(summary.octets, body.len() as u64);
                    prop_assert_eq!(summary.crc32c, crc32c::crc32c(body));
                    let has_dots = right.lines().any(|line| line.starts_with('.'));
                    prop_assert_eq!(summary.flags.contains(BodyFlags::LEADING_DOTS), has_dots);
                    prop_assert_eq!(summary.flags.contains(BodyFlags::DATA), flags == BodyFlags::DATA);
                }
            }
        }
    }
}
