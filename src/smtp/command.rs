//! Reads the commands of a client (RFC 5321 section 4.1 and its extensions).
//!
//! One job: a line without its CRLF into a [`Command`].  It stands between
//! [`crate::smtp::line`] and the server's state machine, which knows whether the command may come
//! now; here only the line itself is judged.
//!
//! Invariants: what comes out holds no control character and, unless SMTPUTF8 allows it, nothing
//! beyond ASCII.  Every failure is the client's and says which reply it deserves.  The grammar is
//! the RFC's with three liberties that cost nothing: a space after `FROM:` and `TO:`, several
//! spaces between parameters, and spaces at the end of the line.

mod node;
mod parameters;

pub use node::Node;

use crate::limits::DOMAIN;
use crate::message::{MailParameters, Recipient};
use crate::smtp::address::{self, AddressError, ForwardPath, ReversePath, Utf8};

/// A command with its arguments, some borrowed from the line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command<'line> {
    /// HELO (RFC 5321 section 4.1.1.1).
    Helo {
        /// What the client calls itself: 1 to 255 octets of printable ASCII, not judged further.
        name: &'line str,
    },
    /// EHLO (RFC 5321 section 4.1.1.1).
    Ehlo {
        /// As for HELO.
        name: &'line str,
    },
    /// MAIL (RFC 5321 section 4.1.1.2).
    Mail(Mail),
    /// RCPT (RFC 5321 section 4.1.1.3).
    Rcpt(Recipient),
    /// DATA (RFC 5321 section 4.1.1.4).
    Data,
    /// BDAT (RFC 3030 section 2): this many octets of the message follow the line.
    Bdat {
        /// At most 2^63 - 1.
        octets: u64,
        /// The message ends with them.
        last: bool,
    },
    /// RSET (RFC 5321 section 4.1.1.5).
    Rset,
    /// NOOP (RFC 5321 section 4.1.1.9), its argument ignored.
    Noop,
    /// QUIT (RFC 5321 section 4.1.1.10).
    Quit,
    /// HELP (RFC 5321 section 4.1.1.8), its argument ignored.
    Help,
    /// VRFY (RFC 5321 section 4.1.1.6).
    Vrfy {
        /// A user or mailbox, not judged.
        argument: &'line str,
    },
    /// EXPN (RFC 5321 section 4.1.1.7).
    Expn {
        /// A list, not judged.
        argument: &'line str,
    },
    /// STARTTLS (RFC 3207 section 4).
    StartTls,
    /// AUTH (RFC 4954 section 4).
    Auth {
        /// The mechanism's name as it came: letters, digits, hyphens and underscores.
        mechanism: &'line str,
        /// The initial response as it came, still base64, or `=` for an empty one.
        initial: Option<&'line str>,
    },
    /// ETRN (RFC 1985 section 5): the queue for this node is to be started.
    Etrn(Node),
    /// XCLIENT: a proxy says for whom it speaks.
    Xclient {
        /// What it says, not judged.
        arguments: &'line str,
    },
    /// A command of SMTP that this server has not (502): TURN, SEND, SOML, SAML.
    NotImplemented,
    /// The first line of another protocol: a browser or a proxy that was led here.  What follows
    /// is not for this server, so the session should end with 421.
    OtherProtocol,
    /// No command of SMTP (500).
    Unknown,
}

/// The arguments of MAIL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mail {
    /// Where notices go.
    pub path: ReversePath,
    /// What is kept with the message.
    pub parameters: MailParameters,
    /// SIZE= (RFC 1870): octets announced; `u64::MAX` if the number is larger than that.
    pub size_octets: Option<u64>,
    /// AUTH= (RFC 4954 section 5) as it came: xtext, or `<>`.
    pub auth: Option<Box<str>>,
}

/// What the line may use: the extensions in force, and the transaction's choice.
///
/// The default, all off, is plain SMTP as after HELO.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Extensions {
    /// SIZE (RFC 1870).
    pub size: bool,
    /// 8BITMIME (RFC 6152).
    pub eight_bit_mime: bool,
    /// SMTPUTF8 (RFC 6531): MAIL may ask for it.
    pub smtputf8: bool,
    /// DSN (RFC 3461): RET, ENVID, NOTIFY, ORCPT.
    pub dsn: bool,
    /// AUTH (RFC 4954): the parameter of MAIL.
    pub auth: bool,
    /// REQUIRETLS (RFC 8689).
    pub require_tls: bool,
    /// Allowed once the open transaction's MAIL has said SMTPUTF8: RCPT may hold UTF-8.
    pub transaction: Utf8,
}

/// Why a line is no command.  The code in brackets is the reply it deserves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// The line was over the limit; told by the line scanner, here for the reply (500 5.5.2).
    #[error("the command line is too long")]
    TooLong,
    /// A NUL (500 5.5.2).
    #[error("the command holds a NUL")]
    Nul,
    /// A CR without LF or an LF without CR: perhaps smuggling (500 5.5.2).
    #[error("the command holds a CR or LF by itself")]
    BareNewline,
    /// Another control character (500 5.5.2).
    #[error("the command holds a control character")]
    ControlCharacter,
    /// Octets above 127 where no extension allows them (500 5.5.2).
    #[error("the command holds octets beyond ASCII")]
    EightBit,
    /// An argument is missing, malformed or not wanted (501 5.5.4).
    #[error("the command's arguments are wrong; it is used as {usage}")]
    Syntax {
        /// How the command is used, for the reply.
        usage: &'static str,
    },
    /// The path of MAIL (501 5.1.7; 553 5.6.7 if it needs SMTPUTF8).
    #[error("the reverse-path is wrong: {0}")]
    ReversePath(#[source] AddressError),
    /// The path of RCPT (501 5.1.3; 553 5.6.7 if it needs SMTPUTF8).
    #[error("the forward-path is wrong: {0}")]
    ForwardPath(#[source] AddressError),
    /// A parameter that no extension in force defines (555 5.5.4).
    #[error("a parameter is not known")]
    UnknownParameter,
    /// A parameter given twice (501 5.5.4).
    #[error("{name} is given twice")]
    DuplicateParameter {
        /// The parameter's keyword.
        name: &'static str,
    },
    /// A parameter whose value is missing, malformed or not wanted (501 5.5.4).
    #[error("the value of {name} is wrong")]
    BadParameter {
        /// The parameter's keyword.
        name: &'static str,
    },
    /// BODY=BINARYMIME (RFC 3030), which is not offered (555 5.5.4).
    #[error("BODY=BINARYMIME is not supported")]
    BinaryMime,
    /// A BDAT that cannot be obeyed (501 5.5.4).  Its octets follow all the same, and must never
    /// be taken for commands.
    #[error("the arguments of BDAT are wrong")]
    Bdat {
        /// How many octets to discard behind the line.  `None` if nobody can tell: the session
        /// must end.
        skip_octets: Option<u64>,
    },
}

/// One command of the table.
struct Verb {
    name: &'static str,
    /// What may stand in its line.
    octets: Octets,
    /// Reads what follows the verb and one space; `None` if the line ends with the verb.
    read: for<'line> fn(Option<&'line [u8]>, &Extensions) -> Parsed<'line>,
}

type Parsed<'line> = Result<Command<'line>, CommandError>;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Octets {
    /// Printable ASCII.
    Ascii,
    /// UTF-8 perhaps: the command's own parser judges where, for it knows SMTPUTF8.
    Utf8,
}

use Octets::{Ascii, Utf8 as MayBeUtf8};

/// Every verb, the most frequent first.
const VERBS: &[Verb] = &[
    Verb { name: "RCPT", octets: MayBeUtf8, read: rcpt },
    Verb { name: "MAIL", octets: MayBeUtf8, read: mail },
    Verb { name: "BDAT", octets: Ascii, read: bdat },
    Verb { name: "DATA", octets: Ascii, read: |rest, _| bare(rest, Command::Data, "DATA") },
    Verb { name: "RSET", octets: Ascii, read: |rest, _| bare(rest, Command::Rset, "RSET") },
    Verb { name: "QUIT", octets: Ascii, read: |rest, _| bare(rest, Command::Quit, "QUIT") },
    Verb { name: "EHLO", octets: Ascii, read: ehlo },
    Verb { name: "HELO", octets: Ascii, read: helo },
    Verb { name: "NOOP", octets: Ascii, read: |_, _| Ok(Command::Noop) },
    Verb { name: "STARTTLS", octets: Ascii, read: starttls },
    Verb { name: "AUTH", octets: Ascii, read: auth },
    Verb { name: "HELP", octets: Ascii, read: |_, _| Ok(Command::Help) },
    Verb { name: "VRFY", octets: MayBeUtf8, read: vrfy },
    Verb { name: "EXPN", octets: MayBeUtf8, read: expn },
    Verb { name: "ETRN", octets: Ascii, read: etrn },
    Verb { name: "XCLIENT", octets: Ascii, read: xclient },
    Verb { name: "TURN", octets: Ascii, read: |_, _| Ok(Command::NotImplemented) },
    Verb { name: "SEND", octets: Ascii, read: |_, _| Ok(Command::NotImplemented) },
    Verb { name: "SOML", octets: Ascii, read: |_, _| Ok(Command::NotImplemented) },
    Verb { name: "SAML", octets: Ascii, read: |_, _| Ok(Command::NotImplemented) },
    Verb { name: "GET", octets: Ascii, read: |_, _| Ok(Command::OtherProtocol) },
    Verb { name: "POST", octets: Ascii, read: |_, _| Ok(Command::OtherProtocol) },
    Verb { name: "CONNECT", octets: Ascii, read: |_, _| Ok(Command::OtherProtocol) },
];

/// Reads one command line without its CRLF.
pub fn parse<'line>(line: &'line [u8], extensions: &Extensions) -> Parsed<'line> {
    let line = without_trailing_spaces(line);
    let (word, rest) = line.split_at(letters(line));
    let Some(verb) = VERBS.iter().find(|verb| word.eq_ignore_ascii_case(verb.name.as_bytes()))
    else {
        return check_octets(line, Octets::Ascii).map(|()| Command::Unknown);
    };
    let parsed = check_octets(rest, verb.octets).and_then(|()| match rest {
        [] => (verb.read)(None, extensions),
        [b' ', argument @ ..] => (verb.read)(Some(argument), extensions),
        _ => Ok(Command::Unknown),
    });
    match parsed {
        // Whatever is wrong with the line, octets of a message follow it.
        Ok(Command::Unknown) | Err(_) if verb.name == "BDAT" => Err(bdat_error(&parsed)),
        parsed => parsed,
    }
}

/// The error of a line that begins with BDAT and is none.
fn bdat_error(parsed: &Parsed<'_>) -> CommandError {
    match parsed {
        Err(error @ CommandError::Bdat { .. }) => *error,
        _ => CommandError::Bdat { skip_octets: None },
    }
}

fn helo<'line>(argument: Option<&'line [u8]>, _: &Extensions) -> Parsed<'line> {
    let usage = "HELO domain";
    client_name(argument).map(|name| Command::Helo { name }).ok_or(CommandError::Syntax { usage })
}

fn ehlo<'line>(argument: Option<&'line [u8]>, _: &Extensions) -> Parsed<'line> {
    let usage = "EHLO domain";
    client_name(argument).map(|name| Command::Ehlo { name }).ok_or(CommandError::Syntax { usage })
}

fn mail<'line>(argument: Option<&'line [u8]>, extensions: &Extensions) -> Parsed<'line> {
    let usage = "MAIL FROM:<reverse-path> [parameters]";
    let argument = after_keyword(argument, b"FROM:").ok_or(CommandError::Syntax { usage })?;
    let (path, rest) = address::split_path(argument).map_err(CommandError::ReversePath)?;
    let rest = parameter_list(rest).ok_or(CommandError::Syntax { usage })?;
    let given = parameters::mail(rest, extensions)?;
    // The path comes first but is read last: SMTPUTF8 behind it says how.
    let utf8 = if given.parameters.smtputf8 { Utf8::Allowed } else { Utf8::Refused };
    let path = ReversePath::parse(path, utf8).map_err(CommandError::ReversePath)?;
    Ok(Command::Mail(Mail {
        path,
        parameters: given.parameters,
        size_octets: given.size_octets,
        auth: given.auth,
    }))
}

fn rcpt<'line>(argument: Option<&'line [u8]>, extensions: &Extensions) -> Parsed<'line> {
    let usage = "RCPT TO:<forward-path> [parameters]";
    let argument = after_keyword(argument, b"TO:").ok_or(CommandError::Syntax { usage })?;
    let (path, rest) = address::split_path(argument).map_err(CommandError::ForwardPath)?;
    let rest = parameter_list(rest).ok_or(CommandError::Syntax { usage })?;
    let path =
        ForwardPath::parse(path, extensions.transaction).map_err(CommandError::ForwardPath)?;
    let (notify, orcpt) = parameters::rcpt(rest, extensions)?;
    Ok(Command::Rcpt(Recipient { path, notify, orcpt }))
}

fn bdat<'line>(argument: Option<&'line [u8]>, _: &Extensions) -> Parsed<'line> {
    let unknown = CommandError::Bdat { skip_octets: None };
    let argument = argument.ok_or(unknown)?;
    let (number, rest) = argument.split_at(digits(argument));
    let octets = decimal(number).filter(|&octets| octets <= BDAT_OCTETS_MAX).ok_or(unknown)?;
    match rest {
        [] => Ok(Command::Bdat { octets, last: false }),
        [b' ', last @ ..] if last.eq_ignore_ascii_case(b"LAST") => {
            Ok(Command::Bdat { octets, last: true })
        }
        // A word of its own behind the number leaves the number in no doubt.
        [b' ', ..] => Err(CommandError::Bdat { skip_octets: Some(octets) }),
        _ => Err(unknown),
    }
}

fn starttls<'line>(argument: Option<&'line [u8]>, _: &Extensions) -> Parsed<'line> {
    bare(argument, Command::StartTls, "STARTTLS")
}

fn auth<'line>(argument: Option<&'line [u8]>, _: &Extensions) -> Parsed<'line> {
    let usage = CommandError::Syntax { usage: "AUTH mechanism [initial-response]" };
    let argument = text(argument.ok_or(usage)?).ok_or(usage)?;
    let (mechanism, initial) = match argument.split_once(' ') {
        Some((mechanism, initial)) => (mechanism, Some(initial)),
        None => (argument, None),
    };
    let base64 = |octet: u8| octet.is_ascii_alphanumeric() || b"+/=".contains(&octet);
    let valid = is_mechanism(mechanism)
        && initial.is_none_or(|initial| !initial.is_empty() && initial.bytes().all(base64));
    if valid { Ok(Command::Auth { mechanism, initial }) } else { Err(usage) }
}

fn vrfy<'line>(argument: Option<&'line [u8]>, extensions: &Extensions) -> Parsed<'line> {
    free_text(argument, extensions, "VRFY user").map(|argument| Command::Vrfy { argument })
}

fn expn<'line>(argument: Option<&'line [u8]>, extensions: &Extensions) -> Parsed<'line> {
    free_text(argument, extensions, "EXPN list").map(|argument| Command::Expn { argument })
}

fn etrn<'line>(argument: Option<&'line [u8]>, _: &Extensions) -> Parsed<'line> {
    let usage = "ETRN node";
    let node = argument.and_then(text).and_then(Node::parse);
    node.map(Command::Etrn).ok_or(CommandError::Syntax { usage })
}

fn xclient<'line>(arguments: Option<&'line [u8]>, _: &Extensions) -> Parsed<'line> {
    let usage = "XCLIENT name=value ...";
    let arguments = arguments.and_then(text);
    arguments.map(|arguments| Command::Xclient { arguments }).ok_or(CommandError::Syntax { usage })
}

/// A command that takes no argument.
fn bare<'line>(
    argument: Option<&[u8]>,
    command: Command<'line>,
    usage: &'static str,
) -> Parsed<'line> {
    match argument {
        None => Ok(command),
        Some(_) => Err(CommandError::Syntax { usage }),
    }
}

/// An argument that is not judged here but for its repertoire.
fn free_text<'line>(
    argument: Option<&'line [u8]>,
    extensions: &Extensions,
    usage: &'static str,
) -> Result<&'line str, CommandError> {
    let argument = argument.ok_or(CommandError::Syntax { usage })?;
    if !argument.is_ascii() && !extensions.smtputf8 {
        return Err(CommandError::EightBit);
    }
    text(argument).ok_or(CommandError::EightBit)
}

/// UTF-8 without control characters.
fn text(octets: &[u8]) -> Option<&str> {
    std::str::from_utf8(octets).ok().filter(|text| !text.chars().any(char::is_control))
}

/// The argument of HELO and EHLO.
///
/// RFC 5321 wants a domain or an address literal, and forbids to refuse mail because the name is
/// not the client's; many clients send an underscore or a bare IP address.  So what has to hold is
/// that the name can stand in a trace header and a log.
fn client_name(argument: Option<&[u8]>) -> Option<&str> {
    let name = argument?;
    let printable = name.iter().all(u8::is_ascii_graphic);
    (printable && (1..=DOMAIN).contains(&name.len())).then_some(())?;
    text(name)
}

/// The name of a SASL mechanism (RFC 4422 section 3.1), in either case.
fn is_mechanism(name: &str) -> bool {
    let letter = |octet: u8| octet.is_ascii_alphanumeric() || b"-_".contains(&octet);
    (1..=20).contains(&name.len()) && name.bytes().all(letter)
}

/// What stands behind `FROM:` or `TO:` and perhaps one space.
fn after_keyword<'line>(argument: Option<&'line [u8]>, keyword: &[u8]) -> Option<&'line [u8]> {
    let (front, rest) = argument?.split_at_checked(keyword.len())?;
    let rest = rest.strip_prefix(b" ").unwrap_or(rest);
    front.eq_ignore_ascii_case(keyword).then_some(rest)
}

/// What stands behind a path: nothing, or parameters after a space.
fn parameter_list(rest: &[u8]) -> Option<&[u8]> {
    if rest.is_empty() { Some(rest) } else { rest.strip_prefix(b" ") }
}

/// Refuses control characters, and what is beyond ASCII if `allowed` says so.
fn check_octets(line: &[u8], allowed: Octets) -> Result<(), CommandError> {
    match line.iter().find(|octet| octet.is_ascii_control()) {
        Some(0) => return Err(CommandError::Nul),
        Some(b'\r' | b'\n') => return Err(CommandError::BareNewline),
        Some(_) => return Err(CommandError::ControlCharacter),
        None => {}
    }
    if allowed == Octets::Ascii && !line.is_ascii() {
        return Err(CommandError::EightBit);
    }
    Ok(())
}

fn without_trailing_spaces(line: &[u8]) -> &[u8] {
    let end = line.iter().rposition(|&octet| octet != b' ').map_or(0, |last| last + 1);
    &line[..end]
}

/// The length of the run of letters at the front.
fn letters(line: &[u8]) -> usize {
    line.iter().take_while(|octet| octet.is_ascii_alphabetic()).count()
}

/// The length of the run of digits at the front.
fn digits(line: &[u8]) -> usize {
    line.iter().take_while(|octet| octet.is_ascii_digit()).count()
}

/// The value of one or more ASCII digits, if it fits.
fn decimal(octets: &[u8]) -> Option<u64> {
    if octets.is_empty() {
        return None;
    }
    octets.iter().try_fold(0u64, |value, octet| {
        let digit = octet.is_ascii_digit().then(|| u64::from(octet - b'0'))?;
        value.checked_mul(10)?.checked_add(digit)
    })
}

/// The most octets that one BDAT may announce, so that sums of file offsets stay signed.
const BDAT_OCTETS_MAX: u64 = i64::MAX as u64;

#[cfg(test)]
mod tests;
