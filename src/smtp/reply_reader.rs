//! Reads the replies of a server as they come, in whatever pieces.
//!
//! One job: octets in, whole replies out (RFC 5321 section 4.2).  It stands at the front of the
//! client's side; [`crate::smtp::capabilities`] reads the reply to EHLO further.
//!
//! Invariants: what a reply costs in memory is bounded by `limits` whatever the peer sends, and
//! how the octets are cut into reads changes nothing.  A reply that breaks the rules is an
//! error after which the stream is out of step: the caller closes the connection.  What a reply
//! means for a message is not judged here.

use std::fmt;

use crate::limits::{EHLO_REPLY, KEPT_REPLY, PEER_REPLY_LINE, PEER_REPLY_LINES};
use crate::smtp::code::{EnhancedCode, ReplyClass, ReplyCode};

/// A whole reply of a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerReply {
    /// The code, the same on every line.
    pub code: ReplyCode,
    /// The first enhanced code (RFC 2034) among the lines whose class agrees with `code`.
    pub enhanced: Option<EnhancedCode>,
    /// The lines without their code, joined by LF: UTF-8 without other control characters,
    /// whatever was sent.  At most [`KEPT_REPLY`] octets, or [`EHLO_REPLY`] of a reply to EHLO.
    /// An enhanced code is still in it.
    pub text: Box<str>,
}

/// A reply that no SMTP server sends; the connection is of no further use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReplyError {
    /// A line does not begin with three digits from 200 to 599 and then a space, a hyphen or
    /// its end.
    #[error("the peer's reply does not begin with a reply code")]
    BadCode,
    /// A later line of a reply has another code than the first (RFC 5321 section 4.2.1).
    #[error("the peer's reply changes its code from line to line")]
    CodesDiffer,
    /// A line longer than [`PEER_REPLY_LINE`].
    #[error("a line of the peer's reply is longer than {PEER_REPLY_LINE} octets")]
    LineTooLong,
    /// More lines than [`PEER_REPLY_LINES`].
    #[error("the peer's reply has more than {PEER_REPLY_LINES} lines")]
    TooManyLines,
}

/// How much of a reply's text is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keep {
    /// Enough for the log and a notice; the last line may be cut.
    Text,
    /// The keywords of EHLO.  A line that does not fit is left out whole, for half of a number
    /// is another number.
    Keywords,
}

/// Puts replies together from the octets of a connection.
#[derive(Debug)]
pub struct ReplyReader {
    keep: Keep,
    /// A line whose end has not come yet; empty while lines come whole, as they nearly always do.
    /// `partial.len() <= PEER_REPLY_LINE`
    partial: Vec<u8>,
    /// Lines of the present reply so far, `lines <= PEER_REPLY_LINES`.
    lines: usize,
    /// The code of the present reply's first line.
    code: Option<ReplyCode>,
    enhanced: Option<EnhancedCode>,
    text: String,
}

impl PeerReply {
    /// What the first digit says.
    pub fn class(&self) -> ReplyClass {
        self.code.class()
    }

    /// The lines of the text that were kept, without their codes.
    pub fn lines(&self) -> impl Iterator<Item = &str> {
        self.text.split('\n')
    }
}

/// The reply on one line: the code and the lines of the text, with spaces between them.
impl fmt::Display for PeerReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.code)?;
        self.lines().filter(|line| !line.is_empty()).try_for_each(|line| write!(f, " {line}"))
    }
}

impl Default for ReplyReader {
    fn default() -> ReplyReader {
        ReplyReader::new()
    }
}

impl ReplyReader {
    /// A reader at the start of a connection.
    pub fn new() -> ReplyReader {
        ReplyReader {
            keep: Keep::Text,
            partial: Vec::new(),
            lines: 0,
            code: None,
            enhanced: None,
            text: String::new(),
        }
    }

    /// Says that the next reply is the one to EHLO, whose text is kept in full for
    /// [`Capabilities`](crate::smtp::capabilities::Capabilities).  Called between two replies;
    /// holds for one.
    pub fn expect_ehlo(&mut self) {
        self.keep = Keep::Keywords;
    }

    /// Takes octets of the stream up to the end of one reply.
    ///
    /// Returns how many octets of `input` were taken, all of them if no reply ends in it, and
    /// the reply.  What was taken need not be shown again; what was not is the beginning of the
    /// next reply.  After an error the connection is to be closed.
    pub fn read(&mut self, input: &[u8]) -> (usize, Option<Result<PeerReply, ReplyError>>) {
        let mut consumed = 0;
        // A line ends at LF, with or without CR before it.  The strict rule that holds for
        // commands and data guards against octets that two programs split differently; a reply
        // goes no further than this client, which splits nothing again, and old appliances do
        // send a bare LF.
        while let Some(length) = memchr::memchr(b'\n', &input[consumed..]) {
            let piece = &input[consumed..consumed + length];
            consumed += length + 1;
            match self.end_of_line(piece) {
                Ok(None) => {}
                Ok(Some(reply)) => return (consumed, Some(Ok(reply))),
                Err(error) => return (consumed, Some(Err(self.fail(error)))),
            }
        }
        let rest = &input[consumed..];
        if self.partial.len() + rest.len() >= PEER_REPLY_LINE {
            return (input.len(), Some(Err(self.fail(ReplyError::LineTooLong))));
        }
        self.partial.extend_from_slice(rest);
        (input.len(), None)
    }

    /// Whether a reply has begun and not ended.
    pub fn is_within_reply(&self) -> bool {
        self.lines > 0 || !self.partial.is_empty()
    }

    /// Takes the last piece of a line, without its LF; the reply, if this line ends it.
    fn end_of_line(&mut self, piece: &[u8]) -> Result<Option<PeerReply>, ReplyError> {
        if self.partial.len() + piece.len() >= PEER_REPLY_LINE {
            return Err(ReplyError::LineTooLong);
        }
        if self.partial.is_empty() {
            return self.line(piece);
        }
        // Given up rather than cleared: an idle connection then holds no buffer.
        let mut line = std::mem::take(&mut self.partial);
        line.extend_from_slice(piece);
        self.line(&line)
    }

    /// Takes one line without its LF; the reply, if this line ends it.
    fn line(&mut self, line: &[u8]) -> Result<Option<PeerReply>, ReplyError> {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let (digits, rest) = line.split_first_chunk::<3>().ok_or(ReplyError::BadCode)?;
        let code = ReplyCode::from_digits(*digits).ok_or(ReplyError::BadCode)?;
        let (last, text) = match rest {
            [] => (true, rest),
            [b' ', text @ ..] => (true, text),
            [b'-', text @ ..] => (false, text),
            _ => return Err(ReplyError::BadCode),
        };
        if *self.code.get_or_insert(code) != code {
            return Err(ReplyError::CodesDiffer);
        }
        if self.lines == PEER_REPLY_LINES {
            return Err(ReplyError::TooManyLines);
        }
        // A class other than the code's says that one of them is wrong; the code decides
        // (RFC 2034 section 4 wants them to agree).
        self.enhanced = self.enhanced.or_else(|| {
            EnhancedCode::at_front(text)
                .filter(|enhanced| u16::from(enhanced.class()) == code.value() / 100)
        });
        self.keep_text(text);
        self.lines += 1;
        Ok(last.then(|| self.finish(code)))
    }

    /// Adds a line to the kept text as far as there is room.
    fn keep_text(&mut self, line: &[u8]) {
        let limit = match self.keep {
            Keep::Text => KEPT_REPLY,
            Keep::Keywords => EHLO_REPLY,
        };
        let separator = usize::from(self.lines > 0);
        let room = limit.saturating_sub(self.text.len() + separator);
        if room == 0 || (self.keep == Keep::Keywords && line.len() > room) {
            return;
        }
        if separator == 1 {
            self.text.push('\n');
        }
        push_printable(&mut self.text, line, limit);
    }

    /// The reply is whole; the reader is ready for the next one.
    fn finish(&mut self, code: ReplyCode) -> PeerReply {
        let reply = PeerReply {
            code,
            enhanced: self.enhanced,
            text: std::mem::take(&mut self.text).into_boxed_str(),
        };
        *self = ReplyReader::new();
        reply
    }

    /// Lets go of what was gathered, so that a reader kept by mistake holds nothing.
    fn fail(&mut self, error: ReplyError) -> ReplyError {
        *self = ReplyReader::new();
        error
    }
}

/// Appends `line` to `text` until `text` has `limit` octets: what is not UTF-8 becomes U+FFFD and
/// a control character a space, since the text goes to logs, terminals and notices.
fn push_printable(text: &mut String, line: &[u8], limit: usize) {
    let pieces = line.utf8_chunks().flat_map(|chunk| {
        let broken = (!chunk.invalid().is_empty()).then_some(char::REPLACEMENT_CHARACTER);
        chunk.valid().chars().chain(broken)
    });
    for letter in pieces {
        let letter = if letter.is_control() { ' ' } else { letter };
        if text.len() + letter.len_utf8() > limit {
            return;
        }
        text.push(letter);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Outcome = Vec<Result<PeerReply, ReplyError>>;

    /// Every reply of a stream that comes in these pieces, up to the first error.
    fn read_all(pieces: &[&[u8]]) -> Outcome {
        let mut reader = ReplyReader::new();
        let mut outcome = Vec::new();
        for piece in pieces {
            let mut piece = *piece;
            while !piece.is_empty() {
                let (consumed, step) = reader.read(piece);
                assert!(consumed <= piece.len());
                assert!(step.is_some() || consumed == piece.len());
                piece = &piece[consumed..];
                let failed = matches!(step, Some(Err(_)));
                outcome.extend(step);
                if failed {
                    return outcome;
                }
            }
        }
        outcome
    }

    fn read_one(stream: &[u8]) -> Result<PeerReply, ReplyError> {
        let outcome = read_all(&[stream]);
        assert_eq!(outcome.len(), 1, "{}", stream.escape_ascii());
        outcome.into_iter().next().expect("one reply")
    }

    #[test]
    fn replies_are_read() {
        let cases: [(&[u8], &str, Option<&str>, &str); 9] = [
            (b"250 2.1.5 Ok\r\n", "250", Some("2.1.5"), "2.1.5 Ok"),
            (b"250\r\n", "250", None, ""),
            (b"250 \r\n", "250", None, ""),
            (b"354 go ahead\n", "354", None, "go ahead"),
            (b"250-a\r\n250-b\n250 c\r\n", "250", None, "a\nb\nc"),
            (
                b"550-5.1.1 no\r\n550 5.7.1 really\r\n",
                "550",
                Some("5.1.1"),
                "5.1.1 no\n5.7.1 really",
            ),
            (b"550-hello\r\n550 5.7.1 no\r\n", "550", Some("5.7.1"), "hello\n5.7.1 no"),
            (b"550 4.7.1 which?\r\n", "550", None, "4.7.1 which?"),
            (b"250 a\x00b\x1bc\xffd\rx \xc3\xa9\r\n", "250", None, "a b c\u{fffd}d x \u{e9}"),
        ];
        for (stream, code, enhanced, text) in cases {
            let reply = read_one(stream).expect(text);
            assert_eq!(reply.code.to_string(), code);
            assert_eq!(reply.enhanced.map(|code| code.to_string()).as_deref(), enhanced);
            assert_eq!(&*reply.text, text);
        }
    }

    #[test]
    fn what_is_no_reply_is_refused() {
        let cases: [(&[u8], ReplyError); 9] = [
            (b"\r\n", ReplyError::BadCode),
            (b"25\r\n", ReplyError::BadCode),
            (b"2500 x\r\n", ReplyError::BadCode),
            (b"250\tx\r\n", ReplyError::BadCode),
            (b"150 x\r\n", ReplyError::BadCode),
            (b"HTTP/1.1 400 Bad Request\r\n", ReplyError::BadCode),
            (b"\x15\x03\x03\x00\x02\n", ReplyError::BadCode),
            (b"250-a\r\n251 b\r\n", ReplyError::CodesDiffer),
            (b"250-a\r\nb\r\n", ReplyError::BadCode),
        ];
        for (stream, error) in cases {
            assert_eq!(read_one(stream), Err(error), "{}", stream.escape_ascii());
        }
    }

    #[test]
    fn a_line_has_a_bound() {
        let mut stream = b"250 ".to_vec();
        stream.resize(PEER_REPLY_LINE - 2, b'x');
        stream.extend_from_slice(b"\r\n");
        let reply = read_one(&stream).expect("just fits");
        assert_eq!(reply.text.len(), KEPT_REPLY);

        stream.insert(4, b'x');
        assert_eq!(read_one(&stream), Err(ReplyError::LineTooLong));
        // It is not waited for, either.
        assert_eq!(read_one(&stream[..PEER_REPLY_LINE]), Err(ReplyError::LineTooLong));
        let single: Vec<&[u8]> = stream.chunks(1).collect();
        assert_eq!(read_all(&single), [Err(ReplyError::LineTooLong)]);
    }

    #[test]
    fn lines_have_a_bound() {
        let mut stream = b"250-x\r\n".repeat(PEER_REPLY_LINES - 1);
        stream.extend_from_slice(b"250 x\r\n");
        assert!(read_one(&stream).is_ok());
        stream.splice(..0, *b"250-x\r\n");
        assert_eq!(read_one(&stream), Err(ReplyError::TooManyLines));
    }

    #[test]
    fn text_is_cut_at_a_character() {
        let mut stream = b"550 ".to_vec();
        stream.extend("x\u{e9}".repeat(400).as_bytes());
        stream.extend_from_slice(b"\r\n");
        let reply = read_one(&stream).expect("a reply");
        // 170 times three octets and an x; the next letter would need two.
        assert_eq!(reply.text.len(), KEPT_REPLY - 1);
    }

    #[test]
    fn the_reply_to_ehlo_is_kept_in_whole_lines() {
        let mut reader = ReplyReader::new();
        reader.expect_ehlo();
        let mut stream = b"250-host\r\n".to_vec();
        stream.extend(format!("250-{}\r\n", "x".repeat(4_000)).bytes());
        stream.extend(format!("250-{}\r\n", "y".repeat(4_000)).bytes());
        stream.extend(format!("250-SIZE {}\r\n", "1".repeat(300)).bytes());
        stream.extend_from_slice(b"250 PIPELINING\r\n");
        let (consumed, reply) = reader.read(&stream);
        assert_eq!(consumed, stream.len());
        let reply = reply.expect("whole").expect("valid");
        assert!(reply.text.len() <= EHLO_REPLY);
        assert!(!reply.text.contains("SIZE"), "half a line would be another number");
        assert!(reply.text.ends_with("\nPIPELINING"));
        assert_eq!(reader.keep, Keep::Text, "the next reply is an ordinary one");
    }

    #[test]
    fn a_reply_is_shown_on_one_line() {
        let reply = read_one(b"550-5.1.1 no\r\n550-\r\n550 5.1.1 such user\r\n").expect("a reply");
        assert_eq!(reply.to_string(), "550 5.1.1 no 5.1.1 such user");
        assert_eq!(read_one(b"250\r\n").expect("a reply").to_string(), "250");
    }

    /// Streams that are mostly replies, with some rubbish among them.
    fn streams() -> impl Strategy<Value = Vec<u8>> {
        let line = prop_oneof![
            8 => "(250|354|550)[- ](2\\.1\\.5 |5\\.7\\.1 )?[a-z ]{0,12}\r?\n",
            1 => "[0-9]{0,4}[- ]?[a-z]{0,3}\r?\n",
            1 => "\\PC{0,5}",
        ];
        prop::collection::vec(line, 0..12).prop_map(|lines| lines.concat().into_bytes())
    }

    proptest! {
        #[test]
        fn how_the_stream_is_cut_changes_nothing(
            stream in prop_oneof![streams(), prop::collection::vec(any::<u8>(), 0..200)],
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
        ) {
            let mut places: Vec<usize> =
                cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
            places.extend([0, stream.len()]);
            places.sort_unstable();
            let pieces: Vec<&[u8]> =
                places.windows(2).map(|pair| &stream[pair[0]..pair[1]]).collect();
            let whole = read_all(&[&stream]);
            prop_assert_eq!(&read_all(&pieces), &whole);
            let single: Vec<&[u8]> = stream.chunks(1).collect();
            prop_assert_eq!(&read_all(&single), &whole);
        }
    }
}
