//! Command lines: where they end however they are cut, and what each says.

use mailrace::limits::COMMAND_LINE;
use mailrace::smtp::address::Utf8;
use mailrace::smtp::command::{self, Command, CommandError, Extensions};
use mailrace::smtp::line::{LineScanner, LineStep};

use super::{Input, cut};

/// Which extensions hold, how the stream is cut, and the stream.
pub fn run(octets: &[u8]) {
    let mut input = Input(octets);
    let extensions = extensions(input.octet());
    let seed = input.octet();
    let stream = input.0;
    for limit in [16, COMMAND_LINE] {
        let whole = lines(stream, 0, limit);
        assert_eq!(whole, by_oracle(stream, limit));
        assert_eq!(lines(stream, seed, limit), whole, "cut by {seed}");
    }
    for line in lines(stream, 0, COMMAND_LINE).into_iter().flatten() {
        check(&line, &extensions);
    }
}

fn extensions(bits: u8) -> Extensions {
    let has = |bit: u8| bits & 1 << bit != 0;
    Extensions {
        size: has(0),
        eight_bit_mime: has(1),
        smtputf8: has(2),
        dsn: has(3),
        auth: has(4),
        require_tls: has(6),
        transaction: if has(5) { Utf8::Allowed } else { Utf8::Refused },
    }
}

/// A line without its CRLF, or nothing for one that was over the limit.
type Line = Option<Vec<u8>>;

/// As a session does: what was not consumed stays in front of what comes next.
fn lines(stream: &[u8], seed: u8, limit: usize) -> Vec<Line> {
    let (mut scanner, mut waiting, mut lines) = (LineScanner::new(limit), Vec::new(), Vec::new());
    for piece in cut(stream, seed) {
        waiting.extend_from_slice(piece);
        let mut start = 0;
        loop {
            let consumed = match scanner.next(&waiting[start..]) {
                LineStep::Incomplete => break,
                LineStep::Line { length, consumed } => {
                    assert_eq!(consumed, length + 2);
                    lines.push(Some(waiting[start..start + length].to_vec()));
                    consumed
                }
                LineStep::Discard { consumed } => consumed,
                LineStep::TooLong { consumed } => {
                    lines.push(None);
                    consumed
                }
            };
            assert!(consumed > 0, "no step forward");
            start += consumed;
        }
        waiting.drain(..start);
        assert!(waiting.len() < limit, "{} octets are kept", waiting.len());
    }
    lines
}

fn by_oracle(stream: &[u8], limit: usize) -> Vec<Line> {
    let (mut rest, mut lines) = (stream, Vec::new());
    while let Some(at) = rest.windows(2).position(|pair| pair == b"\r\n") {
        lines.push((at + 2 <= limit).then(|| rest[..at].to_vec()));
        rest = &rest[at + 2..];
    }
    lines
}

fn check(line: &[u8], extensions: &Extensions) {
    let parsed = command::parse(line, extensions);
    let word = line.iter().take_while(|octet| octet.is_ascii_alphabetic()).count();
    if line[..word].eq_ignore_ascii_case(b"BDAT") {
        let is_told = matches!(parsed, Ok(Command::Bdat { .. }) | Err(CommandError::Bdat { .. }));
        assert!(is_told, "octets of a message follow, and nobody says so: {parsed:?}");
    }
    match &parsed {
        Ok(Command::Helo { name } | Command::Ehlo { name }) => {
            assert!((1..=255).contains(&name.len()) && name.bytes().all(|o| o.is_ascii_graphic()));
        }
        Ok(Command::Bdat { octets, .. }) => assert!(*octets <= i64::MAX as u64),
        Ok(Command::Mail(mail)) => {
            let utf8 = mail.parameters.smtputf8;
            assert!(utf8 || mail.path.as_str().is_ascii(), "{}", mail.path);
            let again = format!("MAIL FROM:{}{}", mail.path, if utf8 { " SMTPUTF8" } else { "" });
            let Ok(Command::Mail(same)) = command::parse(again.as_bytes(), extensions) else {
                panic!("{again} is refused")
            };
            assert_eq!(same.path, mail.path);
        }
        Ok(Command::Rcpt(recipient)) => {
            let again = format!("RCPT TO:{}", recipient.path);
            let Ok(Command::Rcpt(same)) = command::parse(again.as_bytes(), extensions) else {
                panic!("{again} is refused")
            };
            assert_eq!(same.path, recipient.path);
        }
        Err(error) => assert!(!error.to_string().is_empty()),
        Ok(_) => {}
    }
}
