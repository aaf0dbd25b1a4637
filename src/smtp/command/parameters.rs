//! The parameters of MAIL and RCPT (RFC 5321 section 4.1.2, `Mail-parameters`).
//!
//! One job: what follows the path into the types of [`crate::message`].  A parameter of an
//! extension that is not in force is unknown.  Values that go into notices, headers or commands
//! to the next hop keep their encoding and are checked in both forms, as they stand and decoded,
//! so that no encoded line break reaches a header later.

use crate::limits::{ENVID, ORCPT};
use crate::message::{BodyKind, MailParameters, Notify, Ret};
use crate::smtp::address::Utf8;

use super::{CommandError, Extensions, decimal};

/// The parameters of one MAIL.
#[derive(Debug, Default)]
pub(super) struct MailGiven {
    pub(super) parameters: MailParameters,
    pub(super) size_octets: Option<u64>,
    pub(super) auth: Option<Box<str>>,
}

/// A parameter: its keyword, and its value if there is a `=`.
type Parameter<'line> = (&'line [u8], Option<&'line [u8]>);

/// Reads the parameters of MAIL.
pub(super) fn mail(list: &[u8], extensions: &Extensions) -> Result<MailGiven, CommandError> {
    let mut given = MailGiven::default();
    let mut seen = Seen::default();
    for (keyword, value) in split(list) {
        let kept = &mut given.parameters;
        match mail_keyword(keyword, extensions).ok_or(CommandError::UnknownParameter)? {
            name @ "SIZE" => given.size_octets = Some(seen.once(name, size(value))?),
            name @ "BODY" => kept.body = seen.once(name, body(value)?)?,
            name @ "SMTPUTF8" => {
                kept.smtputf8 = seen.once(name, value.is_none().then_some(true))?
            }
            name @ "REQUIRETLS" => {
                kept.require_tls = seen.once(name, value.is_none().then_some(true))?
            }
            name @ "RET" => kept.ret = Some(seen.once(name, ret(value))?),
            name @ "ENVID" => kept.envid = Some(seen.once(name, envid(value))?),
            name => given.auth = Some(seen.once(name, auth(value))?),
        }
    }
    Ok(given)
}

/// Reads the parameters of RCPT: NOTIFY and ORCPT.
pub(super) fn rcpt(
    list: &[u8],
    extensions: &Extensions,
) -> Result<(Notify, Option<Box<str>>), CommandError> {
    let (mut notify, mut orcpt) = (Notify::UNSPECIFIED, None);
    let mut seen = Seen::default();
    for (keyword, value) in split(list) {
        match rcpt_keyword(keyword, extensions).ok_or(CommandError::UnknownParameter)? {
            name @ "NOTIFY" => notify = seen.once(name, notify_events(value))?,
            name => orcpt = Some(seen.once(name, original_recipient(value, extensions))?),
        }
    }
    Ok((notify, orcpt))
}

/// The keyword of a parameter of MAIL whose extension is in force.
fn mail_keyword(keyword: &[u8], extensions: &Extensions) -> Option<&'static str> {
    let known = [
        ("SIZE", extensions.size),
        ("BODY", extensions.eight_bit_mime),
        ("SMTPUTF8", extensions.smtputf8),
        ("REQUIRETLS", extensions.require_tls),
        ("RET", extensions.dsn),
        ("ENVID", extensions.dsn),
        ("AUTH", extensions.auth),
    ];
    in_force(keyword, &known)
}

/// The keyword of a parameter of RCPT whose extension is in force.
fn rcpt_keyword(keyword: &[u8], extensions: &Extensions) -> Option<&'static str> {
    in_force(keyword, &[("NOTIFY", extensions.dsn), ("ORCPT", extensions.dsn)])
}

fn in_force(keyword: &[u8], known: &[(&'static str, bool)]) -> Option<&'static str> {
    let is_it = |name: &str| keyword.eq_ignore_ascii_case(name.as_bytes());
    known.iter().find(|(name, in_force)| *in_force && is_it(name)).map(|(name, _)| *name)
}

/// The parameters that one command has had.
#[derive(Default)]
struct Seen {
    names: [Option<&'static str>; PARAMETERS],
}

impl Seen {
    /// Passes a value on unless it is wrong or the second of its name.
    fn once<T>(&mut self, name: &'static str, value: Option<T>) -> Result<T, CommandError> {
        if self.names.contains(&Some(name)) {
            return Err(CommandError::DuplicateParameter { name });
        }
        let free = self.names.iter_mut().find(|slot| slot.is_none());
        *free.expect("there are no more names than slots") = Some(name);
        value.ok_or(CommandError::BadParameter { name })
    }
}

fn split(list: &[u8]) -> impl Iterator<Item = Parameter<'_>> {
    let words = list.split(|&octet| octet == b' ').filter(|word| !word.is_empty());
    words.map(|word| match memchr::memchr(b'=', word) {
        Some(equals) => (&word[..equals], Some(&word[equals + 1..])),
        None => (word, None),
    })
}

/// `1*20DIGIT` (RFC 1870 section 4).  Twenty digits may pass 64 bits; such a message is too large
/// for anybody, and the reply to that is another one than that to a malformed number.
fn size(value: Option<&[u8]>) -> Option<u64> {
    let number = value.filter(|number| number.len() <= 20)?;
    if number.is_empty() || !number.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(decimal(number).unwrap_or(u64::MAX))
}

/// RFC 6152 section 2; the third kind is of RFC 3030 and not offered.
fn body(value: Option<&[u8]>) -> Result<Option<BodyKind>, CommandError> {
    let is_it = |name: &[u8]| value.is_some_and(|value| value.eq_ignore_ascii_case(name));
    if is_it(b"BINARYMIME") {
        return Err(CommandError::BinaryMime);
    }
    let kinds = [(&b"7BIT"[..], BodyKind::SevenBit), (b"8BITMIME", BodyKind::EightBitMime)];
    Ok(kinds.into_iter().find(|(name, _)| is_it(name)).map(|(_, kind)| kind))
}

/// RFC 3461 section 4.3.
fn ret(value: Option<&[u8]>) -> Option<Ret> {
    let value = value?;
    let values = [(&b"FULL"[..], Ret::Full), (b"HDRS", Ret::Headers)];
    values.into_iter().find(|(name, _)| value.eq_ignore_ascii_case(name)).map(|(_, ret)| ret)
}

/// RFC 3461 section 4.4.
fn envid(value: Option<&[u8]>) -> Option<Box<str>> {
    let value = value.filter(|value| value.len() <= ENVID)?;
    printable_xtext(value)
}

/// RFC 4954 section 5: a mailbox as xtext, or `<>`.  No mailbox is longer as xtext than an ORCPT
/// may be.
fn auth(value: Option<&[u8]>) -> Option<Box<str>> {
    let value = value.filter(|value| value.len() <= ORCPT)?;
    if value == b"<>" { Some("<>".into()) } else { printable_xtext(value) }
}

/// RFC 3461 section 4.1.
fn notify_events(value: Option<&[u8]>) -> Option<Notify> {
    let value = value?;
    if value.eq_ignore_ascii_case(b"NEVER") {
        return Some(Notify::NEVER);
    }
    value.split(|&octet| octet == b',').try_fold(Notify::NEVER, |events, event| {
        let event = match event {
            _ if event.eq_ignore_ascii_case(b"SUCCESS") => Notify::SUCCESS,
            _ if event.eq_ignore_ascii_case(b"FAILURE") => Notify::FAILURE,
            _ if event.eq_ignore_ascii_case(b"DELAY") => Notify::DELAY,
            _ => return None,
        };
        Some(Notify(events.0 | event.0))
    })
}

/// `addr-type;address` (RFC 3461 section 4.2, RFC 6533 section 3).
fn original_recipient(value: Option<&[u8]>, extensions: &Extensions) -> Option<Box<str>> {
    let value = value.filter(|value| value.len() <= ORCPT)?;
    let semicolon = memchr::memchr(b';', value)?;
    let (kind, address) = (&value[..semicolon], &value[semicolon + 1..]);
    let valid = is_atom(kind)
        && match kind.eq_ignore_ascii_case(b"utf-8") {
            true => is_utf8_address(address, extensions.transaction),
            false => is_printable_xtext(address),
        };
    valid.then(|| std::str::from_utf8(value).ok().map(Box::from))?
}

/// `atom` of RFC 5322 section 3.2.3 as far as it can stand in a parameter.
fn is_atom(octets: &[u8]) -> bool {
    let is_atext =
        |octet: &u8| octet.is_ascii_alphanumeric() || b"!#$%&'*-/?^_`{|}~".contains(octet);
    !octets.is_empty() && octets.iter().all(is_atext)
}

fn printable_xtext(value: &[u8]) -> Option<Box<str>> {
    is_printable_xtext(value).then(|| std::str::from_utf8(value).ok().map(Box::from))?
}

/// Whether this is xtext (RFC 3461 section 4) of at least one character that stands for printable
/// ASCII only, as the same section wants of ENVID and ORCPT.  An encoded CR or LF would otherwise
/// become a line of its own in a notice.
fn is_printable_xtext(mut value: &[u8]) -> bool {
    if value.is_empty() {
        return false;
    }
    while let [octet, rest @ ..] = value {
        value = match (octet, rest) {
            (b'+', [high, low, rest @ ..]) => match (upper_hex(*high), upper_hex(*low)) {
                (Some(high), Some(low)) if matches!(high << 4 | low, b' '..=b'~') => rest,
                _ => return false,
            },
            (b'+' | b'=', _) => return false,
            (b'!'..=b'~', rest) => rest,
            _ => return false,
        };
    }
    true
}

/// Whether this is `utf-8-addr-xtext` (RFC 6533 section 3), or `utf-8-addr-unitext` if the
/// transaction may hold UTF-8, and stands for no control character.
fn is_utf8_address(value: &[u8], utf8: Utf8) -> bool {
    let Ok(mut text) = std::str::from_utf8(value) else {
        return false;
    };
    if text.is_empty() || (utf8 == Utf8::Refused && !text.is_ascii()) {
        return false;
    }
    while let Some(letter) = text.chars().next() {
        text = match letter {
            '\\' => match embedded_character(text) {
                Some((character, rest)) if !character.is_control() => rest,
                _ => return false,
            },
            '+' | '=' | ' ' => return false,
            _ if letter.is_control() => return false,
            _ => &text[letter.len_utf8()..],
        };
    }
    true
}

/// Reads `\x{HEX}`: the character, and what follows.
fn embedded_character(text: &str) -> Option<(char, &str)> {
    let (hex, rest) = text.strip_prefix("\\x{")?.split_once('}')?;
    let digits =
        (2..=6).contains(&hex.len()) && hex.bytes().all(|octet| upper_hex(octet).is_some());
    let value = u32::from_str_radix(hex, 16).ok().filter(|_| digits)?;
    Some((char::from_u32(value)?, rest))
}

/// The value of `0` to `9` and `A` to `F`; small letters are no digits here.
fn upper_hex(octet: u8) -> Option<u8> {
    match octet {
        b'0'..=b'9' => Some(octet - b'0'),
        b'A'..=b'F' => Some(octet - b'A' + 10),
        _ => None,
    }
}

/// As many as MAIL has names.
const PARAMETERS: usize = 7;
