//! XCLIENT: a proxy in front tells for whom it speaks (Postfix's `XCLIENT_README`).
//!
//! Pure: the arguments of the command in, what of them this server makes use of out.  Who may send
//! it is the server machine's business, what follows from it the session's.
//!
//! Used are the client's address and port, and what it called itself.  The rest must be well formed
//! and is passed over: NAME, for the name behind an address is looked up here; DESTADDR and
//! DESTPORT, for what is written down is the listener's own address; and LOGIN, for nobody is
//! authenticated by another's word.

use std::net::{IpAddr, Ipv6Addr};

use crate::limits;

/// What a proxy has told of a client.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Introduction {
    /// Its address; `None` if nothing was said of it, or that it is not known.
    pub address: Option<IpAddr>,
    /// It was said that its address is not known.
    pub is_unknown: bool,
    /// The port at its end.
    pub port: Option<u16>,
    /// What it called itself: as the argument of HELO.
    pub helo: Option<Box<str>>,
    /// It speaks SMTP, and not ESMTP.
    pub is_plain: bool,
}

/// The keyword of EHLO, and what may be told.
pub const KEYWORD: &str = "XCLIENT NAME ADDR PORT PROTO HELO LOGIN DESTADDR DESTPORT";

impl Introduction {
    /// Reads the arguments of the command; `None` if there is none, or one that is malformed or not
    /// offered.
    pub fn parse(arguments: &str) -> Option<Introduction> {
        let mut words = arguments.split(' ').filter(|word| !word.is_empty()).peekable();
        words.peek()?;
        let mut introduction = Introduction::default();
        for word in words {
            let (name, value) = word.split_once('=')?;
            introduction.take(&name.to_ascii_uppercase(), &decoded(value)?)?;
        }
        Some(introduction)
    }

    fn take(&mut self, name: &str, value: &str) -> Option<()> {
        match name {
            "ADDR" => {
                self.address = told(value, address)?;
                self.is_unknown = self.address.is_none();
            }
            "PORT" => self.port = told(value, port)?,
            "HELO" => self.helo = told(value, host)?,
            "PROTO" if value.eq_ignore_ascii_case("SMTP") => self.is_plain = true,
            "PROTO" if value.eq_ignore_ascii_case("ESMTP") => self.is_plain = false,
            "NAME" => drop(told(value, host)?),
            "DESTADDR" => drop(told(value, address)?),
            "DESTPORT" => drop(told(value, port)?),
            "LOGIN" => {}
            _ => return None,
        }
        Some(())
    }
}

/// A value, or that it is not known.
fn told<T>(value: &str, read: fn(&str) -> Option<T>) -> Option<Option<T>> {
    let unknown = ["[UNAVAILABLE]", "[TEMPUNAVAIL]"];
    match unknown.iter().any(|unknown| value.eq_ignore_ascii_case(unknown)) {
        true => Some(None),
        false => read(value).map(Some),
    }
}

/// `192.0.2.1`, or `IPV6:2001:db8::1`; with or without the prefix.
fn address(text: &str) -> Option<IpAddr> {
    let address = match text.split_at_checked(5) {
        Some((prefix, rest)) if prefix.eq_ignore_ascii_case("IPV6:") => {
            IpAddr::V6(rest.parse::<Ipv6Addr>().ok()?)
        }
        _ => text.parse().ok()?,
    };
    Some(address.to_canonical())
}

fn port(text: &str) -> Option<u16> {
    text.bytes().all(|octet| octet.is_ascii_digit()).then(|| text.parse().ok())?
}

/// What can stand in a trace header and a log, as in HELO.
fn host(text: &str) -> Option<Box<str>> {
    let is_printable = text.bytes().all(|octet| octet.is_ascii_graphic());
    (is_printable && (1..=limits::DOMAIN).contains(&text.len())).then(|| text.into())
}

/// xtext (RFC 3461 section 4) that stands for text without control characters.
fn decoded(text: &str) -> Option<String> {
    let mut pieces = text.split('+');
    let mut octets = pieces.next()?.as_bytes().to_vec();
    for piece in pieces {
        let (digits, rest) = piece.split_at_checked(2)?;
        if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return None;
        }
        octets.push(u8::from_str_radix(digits, 16).ok()?);
        octets.extend_from_slice(rest.as_bytes());
    }
    let text = String::from_utf8(octets).ok()?;
    (!text.is_empty() && !text.chars().any(char::is_control)).then_some(text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(address: &str, port: Option<u16>, helo: Option<&str>) -> Introduction {
        let address = (!address.is_empty()).then(|| address.parse().unwrap());
        let helo = helo.map(Into::into);
        Introduction { address, is_unknown: false, port, helo, is_plain: false }
    }

    #[test]
    fn what_is_told_is_read() {
        let plain = |introduction| Introduction { is_plain: true, ..introduction };
        for (arguments, introduction) in [
            ("ADDR=192.0.2.7", of("192.0.2.7", None, None)),
            ("addr=192.0.2.7 port=4321", of("192.0.2.7", Some(4321), None)),
            ("ADDR=IPV6:2001:db8::7  PORT=0", of("2001:db8::7", Some(0), None)),
            ("ADDR=ipv6:::ffff:192.0.2.7", of("192.0.2.7", None, None)),
            ("ADDR=2001:db8::7", of("2001:db8::7", None, None)),
            (
                "ADDR=[UNAVAILABLE] PORT=[tempunavail]",
                Introduction { is_unknown: true, ..of("", None, None) },
            ),
            ("NAME=[TEMPUNAVAIL]", of("", None, None)),
            ("NAME=spike.example ADDR=192.0.2.7", of("192.0.2.7", None, None)),
            ("HELO=client.example PROTO=SMTP", plain(of("", None, Some("client.example")))),
            ("HELO=a+2Bb PROTO=esmtp", of("", None, Some("a+b"))),
            ("LOGIN=user+40a.example DESTADDR=127.0.0.1 DESTPORT=25", of("", None, None)),
        ] {
            assert_eq!(Introduction::parse(arguments), Some(introduction), "{arguments}");
        }
    }

    #[test]
    fn what_is_malformed_is_refused() {
        let long = format!("HELO={}", "x".repeat(256));
        for arguments in [
            "",
            "ADDR",
            "ADDR=",
            "=192.0.2.7",
            "ADDR=192.0.2.256",
            "ADDR=IPV6:192.0.2.7",
            "ADDR=host.example",
            "PORT=65536",
            "PORT=+2B1",
            "PORT=+1",
            "PROTO=LMTP",
            "HELO=a+20b",
            "HELO=a+0D+0Ab",
            "LOGIN=a+0ab",
            "LOGIN=+ff",
            "NAME=a+2",
            "NAME=a+gg",
            "DESTADDR=here",
            "DESTPORT=smtp",
            "SESSION=7",
            "ADDR=192.0.2.7 SESSION=7",
            &long,
        ] {
            assert_eq!(Introduction::parse(arguments), None, "{arguments}");
        }
    }

    proptest! {
        #[test]
        fn no_arguments_panic(arguments in "([A-Z]{4}=)?[ -~é]{0,40}", name in "ADDR|HELO|LOGIN|PORT") {
            let _ = Introduction::parse(&arguments);
            let told = Introduction::parse(&format!("{name}={arguments}"));
            if let Some(helo) = told.and_then(|told| told.helo) {
                prop_assert!(helo.bytes().all(|octet| octet.is_ascii_graphic()));
            }
        }
    }
}
