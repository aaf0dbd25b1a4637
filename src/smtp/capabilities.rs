//! What a server offers, read from its reply to EHLO (RFC 5321 section 4.1.1.1).
//!
//! One job: the keyword lines into a type that the client asks.  Nothing here fails: a line that
//! is unknown or broken is an offer not made, so the client stays with plain SMTP.

use std::collections::HashSet;

use crate::message::Envelope;
use crate::smtp::address::ForwardPath;
use crate::smtp::reply_reader::PeerReply;

/// The service extensions that a server offered and that this client knows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// PIPELINING (RFC 2920).
    pub pipelining: bool,
    /// CHUNKING (RFC 3030).
    pub chunking: bool,
    /// 8BITMIME (RFC 6152).
    pub eight_bit_mime: bool,
    /// SMTPUTF8 (RFC 6531).
    pub smtputf8: bool,
    /// DSN (RFC 3461).
    pub dsn: bool,
    /// ENHANCEDSTATUSCODES (RFC 2034).
    pub enhanced_status_codes: bool,
    /// STARTTLS (RFC 3207).
    pub starttls: bool,
    /// REQUIRETLS (RFC 8689).
    pub require_tls: bool,
    /// SIZE (RFC 1870).
    pub size: SizeOffer,
    /// The mechanisms of AUTH (RFC 4954), in upper case, in the server's order.
    pub auth: Vec<Box<str>>,
    /// LIMITS (RFC 9422).
    pub limits: Limits,
}

/// What a server said about SIZE (RFC 1870 section 4).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SizeOffer {
    /// Nothing: the parameter must not be sent.
    #[default]
    NotOffered,
    /// The parameter may be sent; no fixed limit is known (no number, or 0).
    NoLimit,
    /// Larger messages will be refused.
    AtMost {
        /// The limit in octets, not 0.
        octets: u64,
    },
}

/// The limits of RFC 9422 section 4; `None` where the server named none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// MAILMAX: transactions a session.
    pub mail_max: Option<u32>,
    /// RCPTMAX: recipients a transaction.
    pub recipients_max: Option<u32>,
    /// RCPTDOMAINMAX: recipient domains a transaction.
    pub recipient_domains_max: Option<u32>,
}

impl Capabilities {
    /// What the reply to EHLO offers.  The reader must have been told to
    /// [expect it](crate::smtp::reply_reader::ReplyReader::expect_ehlo), else the later lines
    /// may be missing.
    pub fn from_ehlo(reply: &PeerReply) -> Capabilities {
        let mut capabilities = Capabilities::default();
        // The first line is the server's name and greeting.
        for line in reply.lines().skip(1) {
            capabilities.add(line);
        }
        capabilities
    }

    /// Takes one keyword line.
    fn add(&mut self, line: &str) {
        let mut words = line.split_ascii_whitespace();
        let Some(keyword) = words.next() else { return };
        match keyword.to_ascii_uppercase().as_str() {
            "PIPELINING" => self.pipelining = true,
            "CHUNKING" => self.chunking = true,
            "8BITMIME" => self.eight_bit_mime = true,
            "SMTPUTF8" => self.smtputf8 = true,
            "DSN" => self.dsn = true,
            "ENHANCEDSTATUSCODES" => self.enhanced_status_codes = true,
            "STARTTLS" => self.starttls = true,
            "REQUIRETLS" => self.require_tls = true,
            "SIZE" => self.size = SizeOffer::read(words.next()),
            "AUTH" => words.for_each(|mechanism| self.add_mechanism(mechanism)),
            "LIMITS" => words.for_each(|limit| self.limits.add(limit)),
            other => {
                // `AUTH=LOGIN PLAIN`, from a draft before RFC 2554; some servers send both.
                if let Some(first) = other.strip_prefix("AUTH=") {
                    std::iter::once(first)
                        .chain(words)
                        .for_each(|mechanism| self.add_mechanism(mechanism));
                }
            }
        }
    }

    fn add_mechanism(&mut self, mechanism: &str) {
        let mechanism = mechanism.to_ascii_uppercase().into_boxed_str();
        if !mechanism.is_empty() && !self.auth.contains(&mechanism) {
            self.auth.push(mechanism);
        }
    }
}

impl SizeOffer {
    fn read(number: Option<&str>) -> SizeOffer {
        match number.map(decimal) {
            // A limit above 64 bits limits nothing, and a broken one is not known.
            None | Some(None | Some(0)) => SizeOffer::NoLimit,
            Some(Some(octets)) => SizeOffer::AtMost { octets },
        }
    }

    /// Whether a message of this size is worth sending.
    pub fn allows(self, octets: u64) -> bool {
        match self {
            SizeOffer::NotOffered | SizeOffer::NoLimit => true,
            SizeOffer::AtMost { octets: limit } => octets <= limit,
        }
    }
}

impl Limits {
    /// Takes out of `places`, recipients of the envelope by index, those that one transaction may
    /// have (RCPTMAX and RCPTDOMAINMAX, RFC 9422 sections 4.2 and 4.3), in their order; those that
    /// are left come later.  At least one is taken, if there is one.
    pub fn split(&self, envelope: &Envelope, places: &mut Vec<u16>) -> Vec<u16> {
        let most = self.recipients_max.map_or(usize::MAX, |most| most as usize);
        let Some(domains_max) = self.recipient_domains_max else {
            let left = places.split_off(places.len().min(most));
            return std::mem::replace(places, left);
        };
        let (mut taken, mut left) = (Vec::new(), Vec::new());
        let mut domains = HashSet::new();
        for &place in places.iter() {
            let domain = match &envelope.recipients[usize::from(place)].path {
                // It has no domain, so it adds none.
                ForwardPath::Postmaster => None,
                ForwardPath::Mailbox(mailbox) => Some(mailbox.domain().to_ascii_lowercase()),
            };
            let has_room = domains.len() < domains_max as usize;
            let fits = domain.as_ref().is_none_or(|domain| has_room || domains.contains(domain));
            if fits && taken.len() < most {
                taken.push(place);
                domains.extend(domain);
            } else {
                left.push(place);
            }
        }
        *places = left;
        taken
    }

    fn add(&mut self, limit: &str) {
        let Some((name, value)) = limit.split_once('=') else {
            return;
        };
        // Six digits, the first of them not 0 (RFC 9422 section 3); a limit of 0 would be none.
        let value = match decimal(value).and_then(|value| u32::try_from(value).ok()) {
            Some(value @ 1..=999_999) => value,
            _ => return,
        };
        match name.to_ascii_uppercase().as_str() {
            "MAILMAX" => self.mail_max = Some(value),
            "RCPTMAX" => self.recipients_max = Some(value),
            "RCPTDOMAINMAX" => self.recipient_domains_max = Some(value),
            _ => {}
        }
    }
}

/// Decimal digits only; `str::parse` alone would take a sign.
fn decimal(text: &str) -> Option<u64> {
    text.bytes().all(|octet| octet.is_ascii_digit()).then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::smtp::reply_reader::ReplyReader;

    fn from_lines(lines: &[&str]) -> Capabilities {
        let mut stream = String::from("250-mx.example.net greets you, PIPELINING\r\n");
        lines.iter().for_each(|line| stream.push_str(&format!("250-{line}\r\n")));
        stream.push_str("250 HELP\r\n");
        let mut reader = ReplyReader::new();
        reader.expect_ehlo();
        let (_, reply) = reader.read(stream.as_bytes());
        Capabilities::from_ehlo(&reply.expect("whole").expect("valid"))
    }

    #[test]
    fn a_rich_server_is_understood() {
        let capabilities = from_lines(&[
            "PIPELINING",
            "size 52428800",
            "8BITMIME",
            "SMTPUTF8",
            "CHUNKING",
            "DSN",
            "ENHANCEDSTATUSCODES",
            "STARTTLS",
            "REQUIRETLS",
            "AUTH PLAIN login",
            "AUTH=LOGIN XOAUTH2",
            "LIMITS RCPTMAX=20 mailmax=5 RCPTDOMAINMAX=1 OTHER=7",
            "X-UNKNOWN a b c",
        ]);
        let expected = Capabilities {
            pipelining: true,
            chunking: true,
            eight_bit_mime: true,
            smtputf8: true,
            dsn: true,
            enhanced_status_codes: true,
            starttls: true,
            require_tls: true,
            size: SizeOffer::AtMost { octets: 52_428_800 },
            auth: ["PLAIN", "LOGIN", "XOAUTH2"].map(Box::from).to_vec(),
            limits: Limits {
                mail_max: Some(5),
                recipients_max: Some(20),
                recipient_domains_max: Some(1),
            },
        };
        assert_eq!(capabilities, expected);
    }

    #[test]
    fn the_greeting_line_offers_nothing() {
        assert_eq!(from_lines(&[]), Capabilities::default());
    }

    #[test]
    fn odd_sizes_limit_nothing() {
        for line in ["SIZE", "SIZE 0", "SIZE x", "SIZE +5", "SIZE 99999999999999999999999"] {
            assert_eq!(from_lines(&[line]).size, SizeOffer::NoLimit, "{line}");
        }
        assert!(SizeOffer::NoLimit.allows(u64::MAX));
        assert!(SizeOffer::AtMost { octets: 5 }.allows(5));
        assert!(!SizeOffer::AtMost { octets: 5 }.allows(6));
    }

    #[test]
    fn odd_limits_are_not_taken() {
        for line in ["LIMITS", "LIMITS RCPTMAX", "LIMITS RCPTMAX=0", "LIMITS RCPTMAX=1000000"] {
            assert_eq!(from_lines(&[line]).limits, Limits::default(), "{line}");
        }
    }
}
