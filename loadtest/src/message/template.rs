//! A message that is built once and sent many times under different ids.
//!
//! The plain version, a message:
//! ```text
//! content = header(id, sum) + body(id)        sum = crc32c(digits of id + body)
//! wire    = content with dots stuffed + "." CRLF     (DATA; with BDAT the content itself)
//! ```
//! The fast one:
//! 1. A draft in memory keeps the whole wire form; the next message only writes its digits over
//!    the last one's.
//! 2. CRC is linear over XOR: what a digit changes in the checksum does not depend on the other
//!    digits.  So the checksum of any id is sixteen look-ups in a table that was made with the
//!    template, however large the body is.
//! 3. Only the beginning, which holds the digits, is a session's own; the rest of a large message
//!    is shared by all of them.
//! 4. Room is kept in front, so that the commands that go with a message can be written right
//!    before it and leave in the same system call.

use std::sync::Arc;

use super::{ID_DIGITS, ID_FIELD, MessageId, SUM_DIGITS, SUM_FIELD, hex, hex_digit};

/// What of a wire form a session keeps for itself.
const OWN_MAX: usize = 64 * 1024;
/// Lines between two repetitions of the id in a body that is made up.
const LINES_PER_ID: usize = 6;
/// Octets of such a line with its CRLF.
const LINE: usize = 78;
/// The smallest message that can be made: a header section and one line.
pub const SIZE_MIN: u64 = 512;
/// The largest that is made or read.
pub const SIZE_MAX: u64 = 1024 * 1024 * 1024;

/// How a message is framed on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// RFC 5321 section 4.5.2: dots stuffed, ended by a dot on its own line.
    Data,
    /// RFC 3030: the content as it is.
    Bdat,
}

/// See the module's text.
#[derive(Debug)]
pub struct Template {
    /// The part that every draft has a copy of.
    own: Vec<u8>,
    /// What follows it, the same for all.
    shared: Arc<Vec<u8>>,
    /// Where in `own` the id's digits stand.
    ids: Vec<usize>,
    /// Where in `own` the checksum's digits stand.
    sum: usize,
    sums: Sums,
}

/// A template's wire form for one message, kept and used again for the next.
#[derive(Debug)]
pub struct Draft {
    /// `room` octets, then the template's own part.
    pub bytes: Vec<u8>,
    /// Where the message begins.
    pub room: usize,
}

/// Checksums of all ids over one body.
#[derive(Debug)]
struct Sums {
    base: u32,
    deltas: [[u32; 16]; ID_DIGITS],
}

/// A file that is no message.
#[derive(Debug, thiserror::Error)]
#[error("no header section, or larger than {SIZE_MAX} octets")]
pub struct NotAMessage;

impl Template {
    /// A message of about `size` octets, made up.
    pub fn made_up(size: u64, date: &str, framing: Framing) -> Template {
        let size = size.clamp(SIZE_MIN, SIZE_MAX) as usize;
        let mut content = Content::new(date);
        content.text(b"From: Load Test <sender@loadtest.example>\r\n");
        content.text(b"To: Recipient <recipient@loadtest.example>\r\n");
        content.text(b"Subject: A message of mailrace-loadtest\r\nMessage-ID: <");
        content.id();
        content.text(b"@loadtest.example>\r\nMIME-Version: 1.0\r\n");
        content.text(b"Content-Type: text/plain; charset=us-ascii\r\n\r\n");
        content.begin_body();
        let mut line = 0;
        while content.bytes.len() < size {
            // A last line that is too short for anything still ends with CRLF.
            let length = (size - content.bytes.len()).clamp(3, LINE);
            let has_id = line % LINES_PER_ID == 0 && length > ID_DIGITS + 2;
            if has_id && content.bytes.len() < OWN_MAX / 2 {
                content.id();
                content.text(&filler(line, length - ID_DIGITS));
            } else {
                content.text(&filler(line, length));
            }
            line += 1;
        }
        content.finish(framing)
    }

    /// A real message, its fields and body as they are, behind the fields of the ledger.
    ///
    /// Line ends become CRLF; fields of an earlier run are taken out.
    ///
    /// # Errors
    /// It has no header section or is too large.
    pub fn from_message(
        file: &[u8],
        date: &str,
        framing: Framing,
    ) -> Result<Template, NotAMessage> {
        if file.len() as u64 > SIZE_MAX {
            return Err(NotAMessage);
        }
        let mut content = Content::new(date);
        let mut lines = file.split_inclusive(|octet| *octet == b'\n').map(without_line_end);
        let (mut fields, mut is_ours) = (0, false);
        for line in lines.by_ref().take_while(|line| !line.is_empty()) {
            let name = line.split(|octet| *octet == b':').next().unwrap_or(line);
            let is_folded = line[0].is_ascii_whitespace();
            if fields == 0 && (is_folded || name.len() == line.len()) {
                return Err(NotAMessage);
            }
            fields += 1;
            if !is_folded {
                is_ours = [ID_FIELD, SUM_FIELD, "Date"]
                    .iter()
                    .any(|field| name.eq_ignore_ascii_case(field.as_bytes()));
            }
            if !is_ours {
                content.text(line);
                content.text(b"\r\n");
            }
        }
        if fields == 0 {
            return Err(NotAMessage);
        }
        content.text(b"\r\n");
        content.begin_body();
        for line in lines {
            content.text(line);
            content.text(b"\r\n");
        }
        Ok(content.finish(framing))
    }

    /// A draft with `room` octets in front; its digits are zeros.
    pub fn draft(&self, room: usize) -> Draft {
        let mut bytes = vec![0; room];
        bytes.extend_from_slice(&self.own);
        Draft { bytes, room }
    }

    /// Makes a draft of this template the message with this id.
    pub fn stamp(&self, draft: &mut Draft, id: MessageId) {
        let own = &mut draft.bytes[draft.room..];
        let digits = id.digits();
        for place in &self.ids {
            own[*place..*place + ID_DIGITS].copy_from_slice(&digits);
        }
        let sum: [u8; SUM_DIGITS] = hex(u64::from(self.sums.of(id)));
        own[self.sum..self.sum + SUM_DIGITS].copy_from_slice(&sum);
    }

    /// What follows a draft on the wire, if anything.
    pub fn shared(&self) -> &Arc<Vec<u8>> {
        &self.shared
    }

    /// Octets of the whole wire form.
    pub fn wire_length(&self) -> usize {
        self.own.len() + self.shared.len()
    }
}

impl Sums {
    /// `head` is what the id's digits stand in, at `places`; `tail` follows it.
    fn new(head: &[u8], places: &[usize], tail: &[u8]) -> Sums {
        let zeros = crc32c::crc32c(head);
        let base = crc32c::crc32c_append(zeros, tail);
        let mut changed = head.to_vec();
        let deltas = std::array::from_fn(|digit| {
            let sums = std::array::from_fn(|value| {
                places.iter().for_each(|place| changed[place + digit] = hex_digit(value as u8));
                // The difference, moved behind the tail: combining with zero only shifts it.
                crc32c::crc32c_combine(zeros ^ crc32c::crc32c(&changed), 0, tail.len())
            });
            places.iter().for_each(|place| changed[place + digit] = b'0');
            sums
        });
        Sums { base, deltas }
    }

    fn of(&self, id: MessageId) -> u32 {
        let changes =
            self.deltas.iter().enumerate().map(|(place, values)| {
                values[(id.0 >> (4 * (ID_DIGITS - 1 - place))) as usize & 15]
            });
        changes.fold(self.base, |sum, change| sum ^ change)
    }
}

/// A message in the making: its content, and where the digits belong.
struct Content {
    bytes: Vec<u8>,
    ids: Vec<usize>,
    sum: usize,
    body: usize,
}

impl Content {
    fn new(date: &str) -> Content {
        let mut content = Content { bytes: Vec::new(), ids: Vec::new(), sum: 0, body: 0 };
        content.text(ID_FIELD.as_bytes());
        content.text(b": ");
        content.id();
        content.text(b"\r\n");
        content.text(SUM_FIELD.as_bytes());
        content.text(b": ");
        content.sum = content.bytes.len();
        content.text(&[b'0'; SUM_DIGITS]);
        content.text(b"\r\nDate: ");
        content.text(date.as_bytes());
        content.text(b"\r\n");
        content
    }

    fn text(&mut self, text: &[u8]) {
        self.bytes.extend_from_slice(text);
    }

    fn id(&mut self) {
        self.ids.push(self.bytes.len());
        self.text(&[b'0'; ID_DIGITS]);
    }

    fn begin_body(&mut self) {
        self.body = self.bytes.len();
    }

    fn finish(self, framing: Framing) -> Template {
        let sums = self.sums();
        let mut wire = Vec::with_capacity(self.bytes.len() + 64);
        // The digits stand in lines of ours, which begin with no dot; only their places move.
        let mut stuffed_at = Vec::new();
        match framing {
            Framing::Bdat => wire.extend_from_slice(&self.bytes),
            Framing::Data => {
                for line in self.bytes.split_inclusive(|octet| *octet == b'\n') {
                    if line[0] == b'.' {
                        stuffed_at.push(wire.len() - stuffed_at.len());
                        wire.push(b'.');
                    }
                    wire.extend_from_slice(line);
                }
                wire.extend_from_slice(b".\r\n");
            }
        }
        let moved = |place: usize| place + stuffed_at.partition_point(|at| *at <= place);
        let ids: Vec<usize> = self.ids.iter().map(|place| moved(*place)).collect();
        let last = ids.last().copied().unwrap_or(0).max(self.sum) + ID_DIGITS;
        let shared = if wire.len() > OWN_MAX { wire.split_off(last.max(4096)) } else { Vec::new() };
        Template { own: wire, shared: Arc::new(shared), ids, sum: moved(self.sum), sums }
    }

    /// What the checksum covers: the id, then the body up to its last digits, then the rest.
    fn sums(&self) -> Sums {
        let in_body = self.ids.iter().filter(|place| **place >= self.body);
        let mut places = vec![0];
        places.extend(in_body.map(|place| place - self.body + ID_DIGITS));
        let head_end = self.body + places[places.len() - 1];
        let mut head = vec![b'0'; ID_DIGITS];
        head.extend_from_slice(&self.bytes[self.body..head_end]);
        Sums::new(&head, &places, &self.bytes[head_end..])
    }
}

fn without_line_end(line: &[u8]) -> &[u8] {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    line.strip_suffix(b"\r").unwrap_or(line)
}

/// Text of `length` octets with its CRLF, another one in every line.
fn filler(line: usize, length: usize) -> Vec<u8> {
    const LETTERS: &[u8; 64] = b"the quick brown fox jumps over the lazy dog, and so it goes on. ";
    let letters = LETTERS.iter().cycle().skip(line * 7 % LETTERS.len());
    let mut text: Vec<u8> = letters.copied().take(length.saturating_sub(2)).collect();
    // Neither a dot that would be stuffed nor a space at the ends of a line.
    for end in [0, text.len().saturating_sub(1)] {
        if let Some(letter) = text.get_mut(end).filter(|letter| !letter.is_ascii_alphabetic()) {
            *letter = b'-';
        }
    }
    text.extend_from_slice(b"\r\n");
    text
}

#[cfg(test)]
mod tests {
    use super::super::inspect::Inspection;
    use super::*;
    use crate::wire::data::{DataScanner, Scan};
    use proptest::prelude::*;

    const DATE: &str = "Sun, 22 Nov 2026 12:00:00 +0000";

    fn wire(template: &Template, id: MessageId) -> Vec<u8> {
        let mut draft = template.draft(10);
        template.stamp(&mut draft, MessageId(u64::MAX));
        template.stamp(&mut draft, id);
        let mut wire = draft.bytes.split_off(draft.room);
        wire.extend_from_slice(template.shared());
        assert_eq!(wire.len(), template.wire_length());
        wire
    }

    /// As a sink would see it: unstuffed, inspected.
    fn arrives(wire: &[u8], framing: Framing) -> (Option<MessageId>, bool) {
        let mut inspection = Inspection::new();
        match framing {
            Framing::Bdat => inspection.take(wire),
            Framing::Data => {
                let scan = DataScanner::new().scan(wire, |piece| inspection.take(piece));
                assert_eq!(scan, Scan::End(wire.len()));
            }
        }
        let found = inspection.finish();
        (found.id, found.is_intact)
    }

    #[test]
    fn every_size_and_framing_arrives_intact_under_every_id() {
        for framing in [Framing::Data, Framing::Bdat] {
            for size in [1, 512, 513, 1_000, 10_240, 65_000, 66_000, 300_000] {
                let template = Template::made_up(size, DATE, framing);
                for id in [0, 1, u64::MAX, 0x0123_4567_89ab_cdef] {
                    let wire = wire(&template, MessageId(id));
                    assert_eq!(arrives(&wire, framing), (Some(MessageId(id)), true), "{size}");
                    let extra = if framing == Framing::Data { 3 } else { 0 };
                    let off = (wire.len() - extra).abs_diff(size.max(SIZE_MIN) as usize);
                    assert!(off <= 2, "{size} became {}", wire.len());
                }
            }
        }
    }

    #[test]
    fn a_flipped_bit_or_anothers_body_is_damage() {
        let template = Template::made_up(2_000, DATE, Framing::Data);
        let (one, two) = (wire(&template, MessageId(1)), wire(&template, MessageId(2)));
        let body = memchr::memmem::find(&one, b"\r\n\r\n").unwrap() + 4;
        let mut flipped = one.clone();
        flipped[body + 900] ^= 1;
        assert_eq!(arrives(&flipped, Framing::Data), (Some(MessageId(1)), false));
        let mixed = [&one[..body], &two[body..]].concat();
        assert_eq!(arrives(&mixed, Framing::Data), (Some(MessageId(1)), false));
    }

    #[test]
    fn a_real_message_keeps_its_text_and_its_dots() {
        let file = b"Subject: x\nX-Race-Id: old\nDate: never\n folded\n\n.dot\n..\nlast";
        let template = Template::from_message(file, DATE, Framing::Data).unwrap();
        let wire = wire(&template, MessageId(9));
        assert_eq!(arrives(&wire, Framing::Data), (Some(MessageId(9)), true));
        let text = String::from_utf8(wire).unwrap();
        assert!(text.ends_with("\r\n\r\n..dot\r\n...\r\nlast\r\n.\r\n"), "{text}");
        assert!(
            !text.contains("old\r") && !text.contains("folded") && !text.contains("never"),
            "{text}"
        );
        assert!(Template::from_message(b"\n\nno header", DATE, Framing::Data).is_err());
        assert!(Template::from_message(b"MZ\x90\0", DATE, Framing::Data).is_err());
    }

    proptest! {
        #[test]
        fn the_table_gives_the_plain_checksum(
            body in proptest::collection::vec(any::<u8>(), 40..400),
            places in proptest::collection::btree_set(0usize..20, 0..3),
            id in any::<u64>(),
        ) {
            let digits = MessageId(id).digits();
            let mut head = vec![b'0'; ID_DIGITS];
            let mut starts = vec![0];
            for place in places {
                starts.push(head.len() + place);
                head.extend_from_slice(&body[..place]);
                head.extend_from_slice(&[b'0'; ID_DIGITS]);
            }
            let sums = Sums::new(&head, &starts, &body);
            for start in starts {
                head[start..start + ID_DIGITS].copy_from_slice(&digits);
            }
            head.extend_from_slice(&body);
            prop_assert_eq!(sums.of(MessageId(id)), crc32c::crc32c(&head));
        }
    }
}
