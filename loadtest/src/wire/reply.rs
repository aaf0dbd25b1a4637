//! Reads replies (RFC 5321 section 4.2) out of a stream of bytes.
//!
//! The sending side's hot loop: a reply is usually one short line that came whole, and costs one
//! search for its end.  Bounded: a line over [`LINE_MAX`] or a reply over [`LINES_MAX`] is the
//! server's fault and ends the connection.

/// The longest line that is read; RFC 5321 section 4.5.3.1.5 allows 512.
pub const LINE_MAX: usize = 2_048;
/// The most lines of one reply.
pub const LINES_MAX: u32 = 256;
/// What is read at once: the replies to a hundred pipelined commands fit.
const CAPACITY: usize = 4_096;

/// A complete reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reply {
    /// 200 to 599.
    pub code: u16,
    /// Where the text of its last line stands in the buffer, until the next read.
    text: (usize, usize),
}

/// What a server must not send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReplyError {
    /// Not three digits and a space, a hyphen or the end of the line.
    #[error("a line that is no reply")]
    Malformed,
    /// Lines of one reply with different codes.
    #[error("a reply whose lines disagree about the code")]
    Mixed,
    /// Over [`LINE_MAX`] or [`LINES_MAX`].
    #[error("a reply without end")]
    TooLong,
}

/// Bytes that came, and the reply that is being read out of them.
#[derive(Debug, Default)]
pub struct Replies {
    bytes: Vec<u8>,
    /// What stands before it has been read.
    begun: usize,
    /// The code of the lines of the present reply so far, and how many there were.
    open: Option<(u16, u32)>,
}

impl Reply {
    /// 2xx.
    pub fn is_positive(&self) -> bool {
        self.code / 100 == 2
    }
}

impl Replies {
    /// The next complete reply, if its end has come; `line_seen` is shown the text of each line.
    ///
    /// # Errors
    /// The server broke the protocol; nothing after it can be trusted.
    pub fn next(&mut self, mut line_seen: impl FnMut(&[u8])) -> Result<Option<Reply>, ReplyError> {
        loop {
            let rest = &self.bytes[self.begun..];
            let Some(end) = memchr::memchr(b'\n', rest) else {
                return if rest.len() < LINE_MAX { Ok(None) } else { Err(ReplyError::TooLong) };
            };
            let line = rest[..end].strip_suffix(b"\r").unwrap_or(&rest[..end]);
            let (code, is_last) = read_line(line)?;
            let text = (self.begun + line.len().min(4), self.begun + line.len());
            line_seen(&self.bytes[text.0..text.1]);
            self.begun += end + 1;
            let lines = match self.open {
                None => 1,
                Some((first, _)) if first != code => return Err(ReplyError::Mixed),
                Some((_, lines)) => lines + 1,
            };
            if is_last {
                self.open = None;
                return Ok(Some(Reply { code, text }));
            }
            if lines == LINES_MAX {
                return Err(ReplyError::TooLong);
            }
            self.open = Some((code, lines));
        }
    }

    /// The text of the last line of `reply`; good until more bytes are taken in.
    pub fn text(&self, reply: &Reply) -> &[u8] {
        self.bytes.get(reply.text.0..reply.text.1).unwrap_or_default()
    }

    /// Whether something came that nobody asked for.
    pub fn is_ahead(&self) -> bool {
        self.begun < self.bytes.len()
    }

    /// The buffer, with room, to be read into; comes back through [`Replies::give_back`].
    pub fn lend(&mut self) -> Vec<u8> {
        let mut bytes = std::mem::take(&mut self.bytes);
        if self.begun == bytes.len() {
            bytes.clear();
        } else {
            bytes.drain(..self.begun);
        }
        self.begun = 0;
        // At most LINE_MAX octets are left over, or `next` would have found or refused a line.
        if bytes.capacity() < CAPACITY {
            bytes.reserve_exact(CAPACITY - bytes.len());
        }
        bytes
    }

    /// The buffer with what came behind what it held.
    pub fn give_back(&mut self, bytes: Vec<u8>) {
        self.bytes = bytes;
    }

    /// Forgets everything, for a new connection.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.begun = 0;
        self.open = None;
    }
}

/// The code of a line, and whether it is its reply's last.
fn read_line(line: &[u8]) -> Result<(u16, bool), ReplyError> {
    let (digits, rest) = line.split_first_chunk::<3>().ok_or(ReplyError::Malformed)?;
    if !matches!(digits, [b'2'..=b'5', b'0'..=b'9', b'0'..=b'9']) {
        return Err(ReplyError::Malformed);
    }
    let code = digits.iter().fold(0, |code, digit| code * 10 + u16::from(digit - b'0'));
    match rest.first() {
        None | Some(b' ') => Ok((code, true)),
        Some(b'-') => Ok((code, false)),
        Some(_) => Err(ReplyError::Malformed),
    }
}

const _: () = assert!(CAPACITY >= 2 * LINE_MAX);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Feeds `pieces` and collects codes and texts.
    fn read(pieces: &[&[u8]]) -> Result<Vec<(u16, String)>, ReplyError> {
        let mut replies = Replies::default();
        let mut seen = Vec::new();
        for piece in pieces {
            let mut buffer = replies.lend();
            buffer.extend_from_slice(piece);
            replies.give_back(buffer);
            while let Some(reply) = replies.next(|_| ())? {
                let text = String::from_utf8_lossy(replies.text(&reply)).into_owned();
                seen.push((reply.code, text));
            }
        }
        Ok(seen)
    }

    #[test]
    fn replies_come_out_the_same_at_every_split() {
        let stream = b"220 mx ready\r\n250-mx\r\n250-SIZE 1\r\n250 DSN\r\n354\r\n421 bye\n";
        let whole = read(&[stream]).unwrap();
        let codes: Vec<u16> = whole.iter().map(|(code, _)| *code).collect();
        assert_eq!(codes, [220, 250, 354, 421]);
        assert_eq!(whole[1].1, "DSN");
        assert_eq!(whole[2].1, "");
        for first in 0..stream.len() {
            for second in first..stream.len() {
                let pieces = [&stream[..first], &stream[first..second], &stream[second..]];
                assert_eq!(read(&pieces).as_ref(), Ok(&whole), "{first} {second}");
            }
        }
    }

    #[test]
    fn what_is_no_reply_is_refused() {
        for (stream, error) in [
            (&b"HTTP/1.1 400 Bad Request\r\n"[..], ReplyError::Malformed),
            (b"\r\n", ReplyError::Malformed),
            (b"2500 Ok\r\n", ReplyError::Malformed),
            (b"150 Ok\r\n", ReplyError::Malformed),
            (b"250-a\r\n251 b\r\n", ReplyError::Mixed),
        ] {
            assert_eq!(read(&[stream]), Err(error));
        }
        assert_eq!(read(&[&[b'2'; LINE_MAX]]), Err(ReplyError::TooLong));
        assert_eq!(read(&[&b"250-x\r\n".repeat(300)]), Err(ReplyError::TooLong));
    }

    proptest! {
        #[test]
        fn no_stream_grows_the_buffer(stream in proptest::collection::vec(any::<u8>(), 0..9000)) {
            let mut replies = Replies::default();
            for piece in stream.chunks(700) {
                let mut buffer = replies.lend();
                prop_assert!(buffer.capacity() - buffer.len() >= 700);
                buffer.extend_from_slice(piece);
                replies.give_back(buffer);
                loop {
                    match replies.next(|_| ()) {
                        Ok(Some(_)) => {}
                        Ok(None) => break,
                        Err(_) => return Ok(()),
                    }
                }
            }
        }
    }
}
