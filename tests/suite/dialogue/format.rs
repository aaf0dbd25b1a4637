//! The language of the dialogue files.

use std::path::{Path, PathBuf};

/// One file.
pub struct Dialogue {
    /// The file's name without `.txt`.
    pub name: String,
    /// The comment at its head: what it guards against.
    pub danger: String,
    /// The `@` lines: key and value.
    pub settings: Vec<(String, String)>,
    /// What happens, in order.
    pub steps: Vec<Step>,
}

/// One line, with its number in the file.
pub struct Step {
    pub line: usize,
    pub action: Action,
}

/// What a line does or claims.
pub enum Action {
    /// The client sends these octets.
    Send(Vec<u8>),
    /// The next replies, so many times the same.
    Reply { times: usize, lines: Vec<String>, last: String },
    /// No reply waits.
    Silence,
    /// The client closes its half of the connection.
    ClientCloses,
    /// The server has closed the connection.
    ServerCloses,
    /// What was delivered.
    Delivered(Claim),
}

/// A claim about a delivered message: the one that the last `Message` or `From` took.
pub enum Claim {
    /// There is no message that was not looked at.
    None,
    /// Goes on to the next message.
    Message,
    /// Goes on to the next message, whose reverse-path this is.
    From(String),
    /// The next recipient of the message.
    To(String),
    /// What was kept of the parameters of MAIL.
    Parameters(String),
    /// The body as it was on the wire.
    Body(Vec<u8>),
    /// The octets of the body.
    Octets(usize),
}

/// Parses every text of a directory of the project, in the order of their names.
pub fn read_all<T>(
    directory: &str,
    parse: impl Fn(&str, &str) -> Result<T, (usize, String)>,
) -> Vec<T> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join(directory);
    let entries = std::fs::read_dir(directory).expect("the directory is there");
    let mut files: Vec<PathBuf> =
        entries.map(|entry| entry.expect("it can be read").path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "txt"));
    files.sort();
    let read = |file: &PathBuf| {
        let text = std::fs::read_to_string(file).expect("it is text");
        let name = file.file_stem().expect("it has a name").to_string_lossy();
        parse(&name, &text)
            .unwrap_or_else(|(line, wrong)| panic!("{}:{line}: {wrong}", file.display()))
    };
    files.iter().map(read).collect()
}

impl Dialogue {
    /// All dialogues of the project, by name.
    pub fn all() -> Vec<Dialogue> {
        read_all("tests/dialogues", Dialogue::parse)
    }

    /// Reads the text of a file; the number of the line that is wrong if there is one.
    pub fn parse(name: &str, text: &str) -> Result<Dialogue, (usize, String)> {
        let (mut steps, mut settings, mut danger) = (Vec::new(), Vec::new(), String::new());
        let mut inner_lines = Vec::new();
        for (line, text) in (1..).zip(text.lines()) {
            let wrong = |what: String| (line, what);
            match text.split_at_checked(1) {
                None => {}
                Some(("#", comment)) if steps.is_empty() && settings.is_empty() => {
                    danger.push_str(comment);
                }
                Some(("#", _)) => {}
                Some(("@", setting)) => {
                    let pair = setting.split_once('=').ok_or(wrong("no `=`".into()))?;
                    settings.push((pair.0.trim().to_owned(), pair.1.trim().to_owned()));
                }
                _ if text.starts_with("S- ") => inner_lines.push(text[3..].to_owned()),
                _ => {
                    for action in actions(text, &mut inner_lines).map_err(wrong)? {
                        steps.push(Step { line, action });
                    }
                }
            }
        }
        let name = name.to_owned();
        Ok(Dialogue { name, danger: danger.trim().to_owned(), settings, steps })
    }

    /// Everything that the client sends.
    pub fn client_octets(&self) -> Vec<u8> {
        let mut octets = Vec::new();
        for step in &self.steps {
            if let Action::Send(text) = &step.action {
                octets.extend_from_slice(text);
            }
        }
        octets
    }
}

/// What one line does; `inner_lines` are the `S-` lines before it.
fn actions(text: &str, inner_lines: &mut Vec<String>) -> Result<Vec<Action>, String> {
    let (word, argument) = text.split_once(' ').unwrap_or((text, ""));
    let (word, times) = repeated(word)?;
    let lines = match word {
        "S:" => std::mem::take(inner_lines),
        _ if inner_lines.is_empty() => Vec::new(),
        _ => return Err("`S-` must stand before `S:`".into()),
    };
    Ok(vec![match word {
        "C:" => Action::Send(octets(argument, Newline::AddUnlessGiven)?.repeat(times)),
        "C~" => Action::Send(octets(argument, Newline::Never)?.repeat(times)),
        "S:" => Action::Reply { times, lines, last: argument.to_owned() },
        "S!" => Action::Silence,
        "CLOSE" => Action::ClientCloses,
        "END" => Action::ServerCloses,
        "=" => Action::Delivered(claim(argument)?),
        "GREETING" => reply("220 *"),
        "HELLO" => return Ok(hello().into()),
        "TRANSACTION" => return Ok(hello().into_iter().chain(envelope()).collect()),
        "ENVELOPE" => return Ok(envelope().into()),
        _ => return Err(format!("`{word}` is no line of a dialogue")),
    }])
}

fn reply(last: &str) -> Action {
    Action::Reply { times: 1, lines: Vec::new(), last: last.to_owned() }
}

fn hello() -> [Action; 3] {
    [reply("220 *"), Action::Send(b"EHLO client.example\r\n".to_vec()), reply("250 *")]
}

fn envelope() -> [Action; 4] {
    [
        Action::Send(b"MAIL FROM:<sender@client.example>\r\n".to_vec()),
        reply("250 2.1.0 *"),
        Action::Send(b"RCPT TO:<user@example.com>\r\n".to_vec()),
        reply("250 2.1.5 *"),
    ]
}

/// `C*5:` is `C:`, five times.
fn repeated(word: &str) -> Result<(&str, usize), String> {
    let Some((letter, times)) = word.split_once('*') else { return Ok((word, 1)) };
    let times = times.strip_suffix(':').ok_or("expected `C*N:` or `S*N:`")?;
    let word = if letter == "C" { "C:" } else { "S:" };
    Ok((word, times.parse().map_err(|_| "expected a number behind `*`")?))
}

fn claim(text: &str) -> Result<Claim, String> {
    let (word, argument) = text.split_once(' ').unwrap_or((text, ""));
    Ok(match word {
        "none" => Claim::None,
        "message" => Claim::Message,
        "from" => Claim::From(argument.to_owned()),
        "to" => Claim::To(argument.to_owned()),
        "parameters" => Claim::Parameters(argument.to_owned()),
        "octets" => Claim::Octets(argument.parse().map_err(|_| "expected a number")?),
        "body" => {
            let quoted = argument.strip_prefix('"').and_then(|text| text.strip_suffix('"'));
            Claim::Body(octets(quoted.ok_or("expected quotes")?, Newline::Never)?)
        }
        _ => return Err(format!("`= {word}` claims nothing")),
    })
}

/// How a text becomes a line.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Newline {
    /// CRLF at the end, unless the text itself says where its newlines are.
    AddUnlessGiven,
    Never,
}

/// The octets that a text with escapes stands for.
pub fn octets(text: &str, newline: Newline) -> Result<Vec<u8>, String> {
    let mut octets = Vec::new();
    let mut rest = text;
    while let Some((plain, escape)) = rest.split_once('\\') {
        octets.extend_from_slice(plain.as_bytes());
        let letter = escape.chars().next().ok_or("a backslash at the end")?;
        rest = &escape[letter.len_utf8()..];
        match letter {
            'r' => octets.push(b'\r'),
            'n' => octets.push(b'\n'),
            't' => octets.push(b'\t'),
            '0' => octets.push(0),
            '\\' => octets.push(b'\\'),
            'x' => {
                let hex = rest.get(..2).ok_or("expected two hex digits")?;
                octets.push(u8::from_str_radix(hex, 16).map_err(|_| "expected two hex digits")?);
                rest = &rest[2..];
            }
            '{' => {
                let (inner, after) = rest.split_once('}').ok_or("no closing brace")?;
                let (text, times) = inner.rsplit_once('*').ok_or("no `*` in the braces")?;
                let times = times.parse().map_err(|_| "expected a number behind `*`")?;
                octets.extend(self::octets(text, Newline::Never)?.repeat(times));
                rest = after;
            }
            _ => return Err(format!("`\\{letter}` is no escape")),
        }
    }
    octets.extend_from_slice(rest.as_bytes());
    if newline == Newline::AddUnlessGiven && !octets.iter().any(|octet| b"\r\n".contains(octet)) {
        octets.extend_from_slice(b"\r\n");
    }
    Ok(octets)
}

#[test]
fn texts_stand_for_octets() {
    for (text, expected) in [
        ("NOOP", &b"NOOP\r\n"[..]),
        ("", b"\r\n"),
        ("a\\nb", b"a\nb"),
        ("a\\r", b"a\r"),
        ("\\x0a", b"\n"),
        ("\\0\\t\\\\", b"\0\t\\\r\n"),
        ("\\{ab*3}c", b"abababc\r\n"),
        ("\\{\\r\\n*2}", b"\r\n\r\n"),
        ("\u{e9}", b"\xc3\xa9\r\n"),
    ] {
        assert_eq!(octets(text, Newline::AddUnlessGiven).as_deref(), Ok(expected), "{text}");
    }
    for text in ["\\", "\\q", "\\x4", "\\xgg", "\\{a*2", "\\{a}", "\\{a*b}"] {
        assert!(octets(text, Newline::Never).is_err(), "{text}");
    }
}

#[test]
fn a_line_that_means_nothing_is_told_with_its_number() {
    for text in ["# x\nQ: a", "# x\nS- a\nC: b", "# x\n= size 5", "# x\n= body a", "# x\nC*: a"] {
        let line = Dialogue::parse("x", text).err().map(|(line, _)| line);
        assert!(line.is_some_and(|line| line > 1), "{text}");
    }
}
