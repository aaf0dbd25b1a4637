//! The language of `tests/dialogues/peer`, described in its `README.md`.

use std::time::Duration;

use crate::dialogue::format::{Newline, octets, read_all};

/// One file.
pub struct Dialogue {
    /// The file's name without `.txt`.
    pub name: String,
    /// The comment at its head: what it guards against.
    pub danger: String,
    /// The `@` lines.
    pub settings: Settings,
    /// What happens, in order.
    pub steps: Vec<Step>,
}

/// What the `@` lines say, with the defaults of the rest.
pub struct Settings {
    /// How long the gateway waits for a peer.
    pub patience: Patience,
    /// The recipients' local parts.
    pub to: Vec<String>,
    /// What is sent.
    pub body: Body,
    /// The parameters with which the message is given to the gateway.
    pub mail: String,
    /// The same for each recipient.
    pub rcpt: String,
}

/// How long the gateway waits for a peer; each kind is a gateway of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// Longer than any dialogue.
    Long,
    /// Two seconds, for dialogues about time.
    Short,
}

/// What is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body {
    /// A line.
    Small,
    /// More than the buffers of both sockets hold.
    Huge,
    /// A line beyond ASCII.
    EightBit,
}

/// One line, with its number in the file.
pub struct Step {
    pub line: usize,
    pub action: Action,
}

/// What a line does or claims.
#[derive(Clone)]
pub enum Action {
    /// The peer sends these octets.
    Send(Vec<u8>),
    /// The same, each octet by itself.
    SendSingly(Vec<u8>),
    /// The next line from the gateway is like this.
    Line(String),
    /// The whole body of a DATA.
    Body,
    /// So many octets of a body.
    BodyPart(usize),
    /// The whole body of a DATA, its first half read slowly.
    SlowBody(Duration),
    /// What the last BDAT announced.
    Chunk,
    /// What follows is about this connection of several.
    On(usize),
    /// The peer does nothing.
    Wait(Duration),
    /// The peer closes.
    Close,
    /// The peer resets the connection.
    Reset,
    /// The gateway has closed, and said nothing more before.
    End,
    /// No connection is made for this long.
    Nobody(Duration),
    /// Another message is given to the gateway.
    Message,
    /// An operator has the site's messages tried again.
    Retry,
    /// The next event of the site.
    Told(Telling),
    /// What the queue has for the site.
    Queue(Vec<Waiting>),
    /// The sender has got a notice with these statuses.
    Notice(Vec<String>),
    /// The gateway's log says this of the site.
    Logged(String),
}

/// An event of a site.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Telling {
    /// `delivered`, `deferred`, `bounced`, `expired`; `site` for a site that rests.
    pub kind: String,
    /// The recipients' local parts.
    pub to: Vec<String>,
    /// The reply; a pattern in a dialogue.
    pub reply: String,
}

/// What the queue says of some recipients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// `ready`, `active`, `deferred`, `held`.
    pub state: String,
    /// The recipients' local parts.
    pub to: Vec<String>,
    /// Why; a pattern in a dialogue.
    pub reason: String,
}

impl Dialogue {
    /// All dialogues with bad peers, by name.
    pub fn all() -> Vec<Dialogue> {
        read_all("tests/dialogues/peer", Dialogue::parse)
    }

    /// Reads the text of a file; the number of the line that is wrong if there is one.
    pub fn parse(name: &str, text: &str) -> Result<Dialogue, (usize, String)> {
        let mut dialogue = Dialogue {
            name: name.to_owned(),
            danger: String::new(),
            settings: Settings::default(),
            steps: Vec::new(),
        };
        let mut is_head = true;
        for (line, text) in (1..).zip(text.lines()) {
            if let Some(comment) = text.strip_prefix('#') {
                if is_head {
                    dialogue.danger.push_str(comment);
                }
                continue;
            }
            is_head = false;
            let done = match text.strip_prefix('@') {
                Some(setting) => dialogue.settings.set(setting),
                None if text.is_empty() => Ok(()),
                None => actions(text, &dialogue.settings).map(|actions| {
                    dialogue.steps.extend(actions.into_iter().map(|action| Step { line, action }));
                }),
            };
            done.map_err(|wrong| (line, wrong))?;
        }
        dialogue.danger = dialogue.danger.trim().to_owned();
        Ok(dialogue)
    }
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            patience: Patience::Long,
            to: vec!["a".to_owned()],
            body: Body::Small,
            mail: String::new(),
            rcpt: String::new(),
        }
    }
}

impl Settings {
    fn set(&mut self, setting: &str) -> Result<(), String> {
        let (key, value) = setting.split_once('=').ok_or("no `=`")?;
        match (key.trim(), value.trim()) {
            ("patience", "short") => self.patience = Patience::Short,
            ("to", names) => self.to = words(names),
            ("body", "huge") => self.body = Body::Huge,
            ("body", "eight-bit") => self.body = Body::EightBit,
            ("mail", parameters) => self.mail = format!(" {parameters}"),
            ("rcpt", parameters) => self.rcpt = format!(" {parameters}"),
            _ => return Err(format!("`@{setting}` sets nothing")),
        }
        Ok(())
    }
}

/// What one line does.
fn actions(text: &str, settings: &Settings) -> Result<Vec<Action>, String> {
    let (word, argument) = text.split_once(' ').unwrap_or((text, ""));
    Ok(vec![match word {
        "P:" => Action::Send(octets(argument, Newline::AddUnlessGiven)?),
        "P~" => Action::Send(octets(argument, Newline::Never)?),
        "P." => Action::SendSingly(octets(argument, Newline::AddUnlessGiven)?),
        "G:" => Action::Line(argument.to_owned()),
        "BODY" if argument.is_empty() => Action::Body,
        "BODY" => Action::BodyPart(argument.parse().map_err(|_| "expected a number")?),
        "SLOWLY" => Action::SlowBody(time(argument)?),
        "CHUNK" => Action::Chunk,
        "ON" => Action::On(argument.parse().map_err(|_| "expected a number")?),
        "WAIT" => Action::Wait(time(argument)?),
        "CLOSE" => Action::Close,
        "RESET" => Action::Reset,
        "END" => Action::End,
        "NOBODY" => Action::Nobody(time(argument)?),
        "MESSAGE" => Action::Message,
        "RETRY" => Action::Retry,
        "=" => claim(argument)?,
        "HELLO" => return Ok(hello(argument)),
        "ENVELOPE" => return Ok(envelope(settings)),
        "DATA" => return Ok(data()),
        "TAKEN" => taken(),
        "GOOD" => {
            let all = [hello(argument), envelope(settings), data(), vec![taken()]];
            return Ok(all.concat());
        }
        _ => return Err(format!("`{word}` is no line of a dialogue")),
    }])
}

fn said(text: &str) -> Action {
    Action::Send(format!("{text}\r\n").into_bytes())
}

/// A greeting, EHLO, and its answer with these keywords.
fn hello(keywords: &str) -> Vec<Action> {
    let mut actions = vec![said("220 peer.test"), Action::Line("EHLO gateway.test".to_owned())];
    let mut lines = vec!["peer.test"];
    lines.extend(keywords.split(',').map(str::trim).filter(|keyword| !keyword.is_empty()));
    let (last, inner) = lines.split_last().expect("a reply has a line");
    let inner: String = inner.iter().map(|line| format!("250-{line}\r\n")).collect();
    actions.push(said(&format!("{inner}250 {last}")));
    actions
}

/// MAIL and every RCPT, all of them good.
fn envelope(settings: &Settings) -> Vec<Action> {
    let mut actions = vec![Action::Line("MAIL FROM:<*".to_owned()), said("250 2.1.0 Ok")];
    for name in &settings.to {
        actions.extend([Action::Line(format!("RCPT TO:<{name}@*")), said("250 2.1.5 Ok")]);
    }
    actions
}

fn data() -> Vec<Action> {
    vec![Action::Line("DATA".to_owned()), said("354 Go"), Action::Body]
}

fn taken() -> Action {
    said("250 2.0.0 Taken")
}

fn claim(text: &str) -> Result<Action, String> {
    let (text, pattern) = match text.split_once(" \"") {
        None => (text, "*"),
        Some((text, pattern)) => (text, pattern.strip_suffix('"').ok_or("no closing quote")?),
    };
    let (word, argument) = text.split_once(' ').unwrap_or((text, ""));
    let (mut to, pattern) = (words(argument), pattern.to_owned());
    Ok(match word {
        "delivered" | "deferred" | "bounced" | "expired" if !to.is_empty() => {
            Action::Told(Telling { kind: word.to_owned(), to, reply: pattern })
        }
        "site" if to.is_empty() => {
            Action::Told(Telling { kind: word.to_owned(), to, reply: pattern })
        }
        "queue" if argument == "none" => Action::Queue(Vec::new()),
        "queue" if to.len() > 1 => {
            let state = to.remove(0);
            Action::Queue(vec![Waiting { state, to, reason: pattern }])
        }
        "notice" if !to.is_empty() => Action::Notice(to),
        "logged" => Action::Logged(pattern),
        _ => return Err(format!("`= {text}` claims nothing")),
    })
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

fn time(text: &str) -> Result<Duration, String> {
    let number = text.strip_suffix("ms").ok_or("expected milliseconds, as `300ms`")?;
    number.parse().map(Duration::from_millis).map_err(|_| "expected a number".to_owned())
}

#[test]
fn a_line_that_means_nothing_is_told_with_its_number() {
    for text in [
        "# x\nQ: a",
        "# x\nWAIT 1s",
        "# x\n= delivered",
        "# x\n= queue a",
        "# x\n= deferred a \"x",
        "# x\n@ patience=none",
        "# x\nP: \\q",
    ] {
        let line = Dialogue::parse("x", text).err().map(|(line, _)| line);
        assert_eq!(line, Some(2), "{text}");
    }
}
