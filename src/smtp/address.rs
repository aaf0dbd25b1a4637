//! Addresses of RFC 5321 section 4.1.2, parsed once into types that prove them valid.
//!
//! One job: what a client wrote after `MAIL FROM:` and `RCPT TO:` into a path, and the questions
//! that relay control and routing ask of it.  [`crate::smtp::command`] calls it; everything
//! behind holds the types.
//!
//! Invariants: a [`Mailbox`] is UTF-8 without control characters, so it can be written into a
//! command, a header or a log line as it is, and nothing but its own quotes and brackets can end
//! it early.  The text is kept as it came, for only the final system may interpret a local part
//! (RFC 5321 section 2.3.11).  Comments, folding and the obsolete forms of RFC 5322 have no place
//! in SMTP and are refused.  Every failure is the client's fault.  Whether a mailbox exists is not
//! asked here.

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use idna::uts46::{DnsLength, Hyphens, Uts46};

use crate::limits::{DOMAIN, LABEL, LOCAL_PART, PATH};

/// A mailbox `local-part@domain`, valid by RFC 5321 (RFC 6531 where the client asked for SMTPUTF8).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Mailbox {
    /// As it came on the wire, without source route and angle brackets.
    text: Box<str>,
    /// Where the `@` that ends the local part stands in `text`.
    at: u16,
}

/// The argument of MAIL: where notices go.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ReversePath {
    /// `<>`: nobody wants a notice.
    Null,
    /// The originator's mailbox.
    Mailbox(Mailbox),
}

/// The argument of RCPT.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ForwardPath {
    /// `<Postmaster>` without a domain (RFC 5321 section 4.1.1.3).
    Postmaster,
    /// A recipient's mailbox.
    Mailbox(Mailbox),
}

/// Whether an address may hold characters beyond ASCII (RFC 6531 section 3.3).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Utf8 {
    /// Only ASCII: the client did not ask for SMTPUTF8.
    #[default]
    Refused,
    /// UTF-8 in the local part and U-labels in the domain.
    Allowed,
}

/// Why a text is no address that SMTP can carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// A path without its angle brackets.
    #[error("the path does not stand in angle brackets")]
    Brackets,
    /// Octets above 127 without SMTPUTF8 (553 5.6.7 by RFC 6531 section 3.5).
    #[error("the address is internationalised and SMTPUTF8 was not asked for")]
    Utf8Refused,
    /// Octets above 127 that are not UTF-8.
    #[error("the address is not UTF-8")]
    NotUtf8,
    /// A control character of ASCII or Unicode, quoted or not.
    #[error("the address holds a control character")]
    ControlCharacter,
    /// Neither a dot-string nor one quoted string, or empty.
    #[error("the local part is malformed")]
    LocalPart,
    /// Over [`LOCAL_PART`] octets.
    #[error("the local part is longer than {LOCAL_PART} octets")]
    LocalPartTooLong,
    /// A quoted string without its end.
    #[error("a quoted string has no end")]
    OpenQuote,
    /// No `@` after the local part, or nothing behind it.
    #[error("the address has no domain")]
    NoDomain,
    /// Not letters, digits and inner hyphens between dots; or U-labels that have no A-label form.
    #[error("the domain is malformed")]
    Domain,
    /// Over [`DOMAIN`] octets.
    #[error("the domain is longer than {DOMAIN} octets")]
    DomainTooLong,
    /// A label over [`LABEL`] octets.
    #[error("a label of the domain is longer than {LABEL} octets")]
    LabelTooLong,
    /// Brackets that hold no IP address of RFC 5321 section 4.1.3, or a tag that is not registered.
    #[error("the address literal is malformed")]
    Literal,
    /// A source route that is not `@domain,@domain:` before the mailbox.
    #[error("the source route is malformed")]
    SourceRoute,
    /// Over [`PATH`] octets with its angle brackets, the source route not counted.
    #[error("the path is longer than {PATH} octets")]
    PathTooLong,
}

impl Mailbox {
    /// A mailbox read back from the log, where it was valid when it was written: only that the
    /// `@` stands where it was noted is checked again.
    pub(crate) fn restored(text: &str, at: u16) -> Option<Mailbox> {
        (text.as_bytes().get(at as usize) == Some(&b'@')).then(|| Mailbox { text: text.into(), at })
    }

    /// Where the `@` that ends the local part stands.
    pub(crate) fn at(&self) -> u16 {
        self.at
    }

    /// Reads `local-part@domain` without angle brackets (`Mailbox` of RFC 5321 section 4.1.2).
    pub fn parse(text: &[u8], utf8: Utf8) -> Result<Mailbox, AddressError> {
        Mailbox::parse_readable(readable(text, utf8)?)
    }

    /// A mailbox that an earlier run found valid and stored.
    ///
    /// Cheap, so that recovery can read millions; not blind, for a disk may return anything: the
    /// bounds, the `@` and the absence of control characters are checked, the grammar is not.
    pub fn from_stored(text: &str) -> Option<Mailbox> {
        // No domain and no literal that was accepted holds an `@`.
        let at = text.rfind('@')?;
        let (local, domain) = (at, text.len() - at - 1);
        let bounded = text.len() <= MAILBOX
            && (1..=LOCAL_PART).contains(&local)
            && (1..=DOMAIN).contains(&domain);
        (bounded && !has_control(text)).then(|| Mailbox {
            text: text.into(),
            at: u16::try_from(at).expect("a local part is at most 64 octets"),
        })
    }

    /// The whole address as it came on the wire.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The local part as it came, with its quotes if it has any.
    pub fn local_part(&self) -> &str {
        &self.text[..self.at as usize]
    }

    /// The domain, or the address literal with its brackets, as it came.
    pub fn domain(&self) -> &str {
        &self.text[self.at as usize + 1..]
    }

    /// The local part without quotes and backslashes: two spellings of one mailbox are equal in
    /// this form (RFC 5321 section 4.1.2).
    pub fn local_unquoted(&self) -> Cow<'_, str> {
        let local = self.local_part();
        let Some(quoted) = local.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) else {
            return Cow::Borrowed(local);
        };
        if !quoted.contains('\\') {
            return Cow::Borrowed(quoted);
        }
        let mut letters = quoted.chars();
        let mut unquoted = String::with_capacity(quoted.len());
        while let Some(letter) = letters.next() {
            unquoted.extend(if letter == '\\' { letters.next() } else { Some(letter) });
        }
        Cow::Owned(unquoted)
    }

    /// The domain as the DNS and tables know it: A-labels in lower case.  `None` for an address
    /// literal, and for stored text whose domain has no such form.
    pub fn domain_ascii(&self) -> Option<Cow<'_, str>> {
        let domain = self.domain();
        if self.is_literal() {
            None
        } else if !domain.is_ascii() {
            ascii_domain(domain).map(Cow::Owned)
        } else if domain.bytes().any(|octet| octet.is_ascii_uppercase()) {
            Some(Cow::Owned(domain.to_ascii_lowercase()))
        } else {
            Some(Cow::Borrowed(domain))
        }
    }

    /// Whether the domain is an address literal.
    pub fn is_literal(&self) -> bool {
        self.domain().starts_with('[')
    }

    /// The IP address of an address literal.
    pub fn literal_address(&self) -> Option<IpAddr> {
        self.domain().strip_prefix('[')?.strip_suffix(']').and_then(literal_address)
    }

    /// Whether all of it is ASCII, so that a peer without SMTPUTF8 can take it.
    pub fn is_ascii(&self) -> bool {
        self.text.is_ascii()
    }

    /// Whether the local part is `postmaster` in any spelling and case (RFC 5321 section 4.5.1).
    /// Which domain it is in is for the caller to judge.
    pub fn is_postmaster(&self) -> bool {
        self.local_unquoted().eq_ignore_ascii_case(POSTMASTER)
    }

    /// Whether a next hop could read a route to elsewhere out of the local part: the percent hack
    /// `user%other@here`, a bang path `other!user@here`, an `@` in quotes `"user@other"@here` or a
    /// source route in quotes.
    ///
    /// Nothing is wrong with such an address in itself, but a gateway whose client may not relay
    /// must not pass it to a backend that trusts the gateway (RFC 5321 appendix F.2).
    pub fn has_routing_characters(&self) -> bool {
        self.local_part().contains(['@', '%', '!'])
    }

    /// Reads a mailbox from text without control characters.
    fn parse_readable(text: &str) -> Result<Mailbox, AddressError> {
        let at = local_part_length(text)?;
        let domain_length = check_domain(&text[at + 1..])?;
        // The A-label form has to fit as well: a hop without SMTPUTF8 may be sent that.
        if text.len().max(at + 1 + domain_length) > MAILBOX {
            return Err(AddressError::PathTooLong);
        }
        Ok(Mailbox {
            text: text.into(),
            at: u16::try_from(at).expect("a local part is at most 64 octets"),
        })
    }
}

impl ReversePath {
    /// Reads `<>` or `<mailbox>` with its angle brackets; a source route is checked and dropped.
    pub fn parse(text: &[u8], utf8: Utf8) -> Result<ReversePath, AddressError> {
        match without_brackets(text)? {
            [] => Ok(ReversePath::Null),
            inner => parse_routed(inner, utf8).map(ReversePath::Mailbox),
        }
    }

    /// The mailbox, unless the path is null.
    pub fn mailbox(&self) -> Option<&Mailbox> {
        match self {
            ReversePath::Null => None,
            ReversePath::Mailbox(mailbox) => Some(mailbox),
        }
    }

    /// What stands between the angle brackets; empty for the null path.
    pub fn as_str(&self) -> &str {
        self.mailbox().map_or("", Mailbox::as_str)
    }
}

impl ForwardPath {
    /// Reads `<mailbox>` or `<Postmaster>` with its angle brackets; a source route is checked and
    /// dropped, so that only the mailbox behind it counts (RFC 5321 section 4.1.1.3, appendix C).
    pub fn parse(text: &[u8], utf8: Utf8) -> Result<ForwardPath, AddressError> {
        match without_brackets(text)? {
            inner if inner.eq_ignore_ascii_case(POSTMASTER.as_bytes()) => {
                Ok(ForwardPath::Postmaster)
            }
            inner => parse_routed(inner, utf8).map(ForwardPath::Mailbox),
        }
    }

    /// The mailbox, unless it is the bare `<Postmaster>`.
    pub fn mailbox(&self) -> Option<&Mailbox> {
        match self {
            ForwardPath::Postmaster => None,
            ForwardPath::Mailbox(mailbox) => Some(mailbox),
        }
    }

    /// What stands between the angle brackets.
    pub fn as_str(&self) -> &str {
        self.mailbox().map_or("Postmaster", Mailbox::as_str)
    }

    /// Two paths that name one mailbox are equal in this form: domains by their A-labels, local
    /// parts in either case (only the final system may tell them apart).
    pub fn folded(&self) -> String {
        let Some(mailbox) = self.mailbox() else { return POSTMASTER.to_owned() };
        let domain = mailbox.domain_ascii();
        let domain = domain.unwrap_or_else(|| mailbox.domain().to_ascii_lowercase().into());
        format!("{}@{domain}", mailbox.local_unquoted().to_lowercase())
    }

    /// Whether this is `<Postmaster>`, or a mailbox of that name in any domain.
    pub fn is_postmaster(&self) -> bool {
        self.mailbox().is_none_or(Mailbox::is_postmaster)
    }
}

impl fmt::Display for Mailbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Display for ReversePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{}>", self.as_str())
    }
}

impl fmt::Display for ForwardPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{}>", self.as_str())
    }
}

impl From<Mailbox> for ReversePath {
    fn from(mailbox: Mailbox) -> ReversePath {
        ReversePath::Mailbox(mailbox)
    }
}

impl From<Mailbox> for ForwardPath {
    fn from(mailbox: Mailbox) -> ForwardPath {
        ForwardPath::Mailbox(mailbox)
    }
}

/// Splits the argument of MAIL or RCPT into the path with its angle brackets and what follows.
///
/// Only a `>` outside quotes ends a path.  The path is not checked further here.
pub(super) fn split_path(argument: &[u8]) -> Result<(&[u8], &[u8]), AddressError> {
    if !argument.starts_with(b"<") {
        return Err(AddressError::Brackets);
    }
    let mut quoted = false;
    let mut octets = argument.iter().enumerate();
    while let Some((place, octet)) = octets.next() {
        match octet {
            b'"' => quoted = !quoted,
            b'\\' if quoted => {
                octets.next();
            }
            b'>' if !quoted => return Ok(argument.split_at(place + 1)),
            _ => {}
        }
    }
    Err(if quoted { AddressError::OpenQuote } else { AddressError::Brackets })
}

fn without_brackets(text: &[u8]) -> Result<&[u8], AddressError> {
    text.strip_prefix(b"<").and_then(|rest| rest.strip_suffix(b">")).ok_or(AddressError::Brackets)
}

/// Reads what stands between angle brackets: a mailbox, perhaps behind a source route.
fn parse_routed(inner: &[u8], utf8: Utf8) -> Result<Mailbox, AddressError> {
    let inner = readable(inner, utf8)?;
    if !inner.starts_with('@') {
        return Mailbox::parse_readable(inner);
    }
    // No domain holds a colon, so the first one ends the route.
    let (route, mailbox) = inner.split_once(':').ok_or(AddressError::SourceRoute)?;
    for hop in route.split(',') {
        let domain = hop.strip_prefix('@').ok_or(AddressError::SourceRoute)?;
        check_domain_name(domain).map_err(|_| AddressError::SourceRoute)?;
    }
    Mailbox::parse_readable(mailbox)
}

/// The octets as text, if they are in the repertoire and hold no control character.
fn readable(octets: &[u8], utf8: Utf8) -> Result<&str, AddressError> {
    if utf8 == Utf8::Refused && !octets.is_ascii() {
        return Err(AddressError::Utf8Refused);
    }
    let text = std::str::from_utf8(octets).map_err(|_| AddressError::NotUtf8)?;
    if has_control(text) {
        return Err(AddressError::ControlCharacter);
    }
    Ok(text)
}

fn has_control(text: &str) -> bool {
    if text.is_ascii() {
        return text.bytes().any(|octet| octet.is_ascii_control());
    }
    text.chars().any(char::is_control)
}

/// The length of the local part that `text` begins with, its quotes counted; an `@` follows it.
fn local_part_length(text: &str) -> Result<usize, AddressError> {
    let length = match text.strip_prefix('"') {
        Some(quoted) => 1 + quoted_length(quoted)?,
        None => dot_string_length(text)?,
    };
    match text.as_bytes().get(length) {
        None => Err(AddressError::NoDomain),
        Some(b'@') if length > LOCAL_PART => Err(AddressError::LocalPartTooLong),
        Some(b'@') if length > 0 => Ok(length),
        Some(_) => Err(AddressError::LocalPart),
    }
}

/// The length of a quoted string without its opening quote (`Quoted-string`).
fn quoted_length(text: &str) -> Result<usize, AddressError> {
    let mut octets = text.bytes().enumerate();
    while let Some((place, octet)) = octets.next() {
        match octet {
            b'"' => return Ok(place + 1),
            // RFC 6531 adds UTF-8 to what may stand in quotes but not to what a backslash quotes.
            b'\\' => match octets.next() {
                Some((_, 0..=127)) => {}
                Some(_) => return Err(AddressError::LocalPart),
                None => return Err(AddressError::OpenQuote),
            },
            _ => {}
        }
    }
    Err(AddressError::OpenQuote)
}

/// The length of the `Dot-string` that `text` begins with; 0 if it begins with another character.
fn dot_string_length(text: &str) -> Result<usize, AddressError> {
    let length =
        text.bytes().position(|octet| !(is_atext(octet) || octet == b'.')).unwrap_or(text.len());
    let dots = &text[..length];
    if dots.starts_with('.') || dots.ends_with('.') || dots.contains("..") {
        return Err(AddressError::LocalPart);
    }
    Ok(length)
}

/// `atext` of RFC 5322 section 3.2.3, and the octets of UTF-8 beyond ASCII (RFC 6532 section 3.2),
/// whose presence [`readable`] has judged.
fn is_atext(octet: u8) -> bool {
    matches!(octet,
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | 128..
        | b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'/'
        | b'=' | b'?' | b'^' | b'_' | b'`' | b'{' | b'|' | b'}' | b'~')
}

/// Checks what follows the `@`, a domain or an address literal; its length as A-labels.
fn check_domain(domain: &str) -> Result<usize, AddressError> {
    let Some(open) = domain.strip_prefix('[') else {
        return check_domain_name(domain);
    };
    let inner = open.strip_suffix(']').ok_or(AddressError::Literal)?;
    literal_address(inner).map(|_| domain.len()).ok_or(AddressError::Literal)
}

/// Checks `Domain` of RFC 5321 section 4.1.2, with U-labels if there are any; its length as
/// A-labels.
fn check_domain_name(domain: &str) -> Result<usize, AddressError> {
    if domain.is_empty() {
        return Err(AddressError::NoDomain);
    }
    if domain.len() > DOMAIN {
        return Err(AddressError::DomainTooLong);
    }
    if !domain.is_ascii() {
        return ascii_domain(domain).map(|ascii| ascii.len()).ok_or(AddressError::Domain);
    }
    domain.split('.').try_for_each(check_label)?;
    Ok(domain.len())
}

fn check_label(label: &str) -> Result<(), AddressError> {
    let outer = |octet: Option<&u8>| octet.is_some_and(u8::is_ascii_alphanumeric);
    let octets = label.as_bytes();
    if !outer(octets.first()) || !outer(octets.last()) {
        return Err(AddressError::Domain);
    }
    if !octets.iter().all(|octet| octet.is_ascii_alphanumeric() || *octet == b'-') {
        return Err(AddressError::Domain);
    }
    if octets.len() > LABEL { Err(AddressError::LabelTooLong) } else { Ok(()) }
}

/// The A-label form in lower case of a domain with U-labels, within the lengths of the DNS.
///
/// By UTS 46, as browsers and other mail servers do it, not by the narrower IDNA 2008: domains
/// that were registered under the older rules still receive mail.
fn ascii_domain(domain: &str) -> Option<String> {
    Uts46::new()
        .to_ascii(
            domain.as_bytes(),
            idna::AsciiDenyList::STD3,
            // Not the check of the third and fourth place: ASCII domains do not get it either.
            Hyphens::CheckFirstLast,
            DnsLength::Verify,
        )
        .ok()
        .map(Cow::into_owned)
}

/// The IP address between the brackets of an address literal (RFC 5321 section 4.1.3).
///
/// Stricter than the grammar in two ways.  An IPv4 number with leading zeros is refused, since
/// programs disagree on whether it is octal.  Of the general form `tag:content` only the one
/// registered tag, `IPv6`, is known, and the RFC wants tags to be registered.  Laxer in one: `::`
/// may stand for a single group, as RFC 4291 has it.
fn literal_address(inner: &str) -> Option<IpAddr> {
    match inner.split_once(':') {
        None => inner.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
        Some((tag, address)) if tag.eq_ignore_ascii_case("IPv6") => {
            address.parse::<Ipv6Addr>().ok().map(IpAddr::V6)
        }
        Some(_) => None,
    }
}

const POSTMASTER: &str = "postmaster";
/// A mailbox: a path without its angle brackets.
const MAILBOX: usize = PATH - 2;

#[cfg(test)]
mod tests;
