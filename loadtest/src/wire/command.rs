//! Reads commands (RFC 5321 section 4.1.1) as a sink needs them: the verb, the path, and where
//! a chunk ends.
//!
//! Lenient on purpose: a sink measures its client, it does not teach it.  Only what would make
//! the two sides lose step is refused.

/// A command line without its CRLF.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command<'a> {
    /// EHLO with the client's name.
    Ehlo(&'a [u8]),
    /// HELO with the client's name.
    Helo(&'a [u8]),
    /// MAIL FROM: with what stands between the angle brackets.
    Mail(&'a [u8]),
    /// RCPT TO: likewise.
    Rcpt(&'a [u8]),
    /// DATA.
    Data,
    /// BDAT (RFC 3030): how many octets follow, and whether they are the last.
    Bdat {
        /// Octets of the chunk, right behind the command.
        octets: u64,
        /// Whether the message ends with them.
        last: bool,
    },
    /// STARTTLS (RFC 3207).
    StartTls,
    /// RSET.
    Rset,
    /// NOOP, HELP, VRFY, EXPN: answered, nothing else.
    Idle,
    /// QUIT.
    Quit,
    /// A verb without its argument, or with one that cannot be read.
    Malformed,
    /// Anything else.
    Unknown,
}

impl Command<'_> {
    /// Reads one line, without its line end.
    pub fn parse(line: &[u8]) -> Command<'_> {
        let Some(verb) = line.first_chunk::<4>() else { return Command::Unknown };
        let rest = &line[4..];
        match &verb.map(|letter| letter.to_ascii_uppercase()) {
            b"MAIL" => path(rest, b"FROM:").map_or(Command::Malformed, Command::Mail),
            b"RCPT" => path(rest, b"TO:").map_or(Command::Malformed, Command::Rcpt),
            b"DATA" if rest.trim_ascii().is_empty() => Command::Data,
            b"BDAT" => chunk(rest).unwrap_or(Command::Malformed),
            b"EHLO" => Command::Ehlo(rest.trim_ascii()),
            b"HELO" => Command::Helo(rest.trim_ascii()),
            b"RSET" => Command::Rset,
            b"STAR" if rest.eq_ignore_ascii_case(b"TTLS") => Command::StartTls,
            b"NOOP" | b"HELP" | b"VRFY" | b"EXPN" => Command::Idle,
            b"QUIT" => Command::Quit,
            _ => Command::Unknown,
        }
    }
}

/// What stands in angle brackets behind `keyword`, parameters left out.
fn path<'a>(rest: &'a [u8], keyword: &[u8]) -> Option<&'a [u8]> {
    let rest = rest.strip_prefix(b" ")?.trim_ascii_start();
    let (given, rest) = rest.split_at_checked(keyword.len())?;
    if !given.eq_ignore_ascii_case(keyword) {
        return None;
    }
    let path = rest.trim_ascii_start().strip_prefix(b"<")?;
    // A quoted local part may hold a bracket; the last one before a space ends the path.
    let space = memchr::memmem::find(path, b"> ").unwrap_or(path.len());
    let end = memchr::memrchr(b'>', &path[..path.len().min(space + 1)])?;
    Some(&path[..end])
}

fn chunk(rest: &[u8]) -> Option<Command<'static>> {
    let text = std::str::from_utf8(rest.strip_prefix(b" ")?).ok()?;
    let mut words = text.split_ascii_whitespace();
    let octets =
        words.next().filter(|digits| digits.bytes().all(|digit| digit.is_ascii_digit()))?;
    let octets = octets.parse().ok()?;
    let last = match words.next() {
        None => false,
        Some(word) if word.eq_ignore_ascii_case("LAST") => true,
        Some(_) => return None,
    };
    words.next().is_none().then_some(Command::Bdat { octets, last })
}

/// The domain of a path in lower case, `""` for one that has none.
pub fn domain(path: &[u8]) -> String {
    let domain = memchr::memrchr(b'@', path).map_or(&b""[..], |at| &path[at + 1..]);
    String::from_utf8_lossy(domain).to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_read_as_they_are_written() {
        let table: [(&str, Command); 18] = [
            ("EHLO a.example", Command::Ehlo(b"a.example")),
            ("helo  b", Command::Helo(b"b")),
            ("MAIL FROM:<>", Command::Mail(b"")),
            ("mail from: <a@b> SIZE=10", Command::Mail(b"a@b")),
            ("RCPT TO:<\"x>y\"@b> NOTIFY=NEVER", Command::Rcpt(b"\"x>y\"@b")),
            ("RCPT TO:<a@b> ORCPT=rfc822;<c>", Command::Rcpt(b"a@b")),
            ("RCPT TO:a@b", Command::Malformed),
            ("RCPT FROM:<a@b>", Command::Malformed),
            ("DATA", Command::Data),
            ("DATA x", Command::Unknown),
            ("BDAT 10", Command::Bdat { octets: 10, last: false }),
            ("bdat 0 last", Command::Bdat { octets: 0, last: true }),
            ("BDAT -1", Command::Malformed),
            ("BDAT +1", Command::Malformed),
            ("BDAT 99999999999999999999", Command::Malformed),
            ("BDAT 5 LAST x", Command::Malformed),
            ("QUIT", Command::Quit),
            ("no", Command::Unknown),
        ];
        for (line, command) in table {
            assert_eq!(Command::parse(line.as_bytes()), command, "{line}");
        }
    }

    #[test]
    fn the_domain_is_what_stands_behind_the_last_at() {
        assert_eq!(domain(b"\"a@b\"@C.Example"), "c.example");
        assert_eq!(domain(b"postmaster"), "");
    }
}
