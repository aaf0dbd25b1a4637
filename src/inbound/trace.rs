//! The trace header that we put before a message: `Received` (RFC 5321 section 4.4).

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use crate::message::{MessageId, Recipient};
use crate::runtime::tls::Secured;
use crate::smtp::header::{HeaderFacts, Occurrence};

/// What a Received field says.
#[derive(Debug, Clone, Copy)]
pub struct Received<'a> {
    /// The argument of HELO or EHLO.
    pub helo: &'a str,
    /// The client's address; `None` leaves out all that says who it is.
    pub client: Option<SocketAddr>,
    /// Our name.
    pub hostname: &'a str,
    /// The client said EHLO.
    pub extended: bool,
    /// What the session's TLS has agreed on; none in clear.
    pub secured: Option<Secured>,
    /// The client has proved who it is.
    pub authenticated: bool,
    /// The message.
    pub id: MessageId,
    /// Those of its recipients that it may name: none where the client has not named them.
    pub recipients: &'a [Recipient],
    /// The client asked for SMTPUTF8.
    pub smtputf8: bool,
    /// Now, as RFC 5322 writes it.
    pub date: &'a str,
}

impl Received<'_> {
    /// Writes the field, CRLF at its end.
    pub fn write(&self, out: &mut String) {
        out.clear();
        let with = self.protocol();
        let (helo, hostname, id) = (self.helo, self.hostname, self.id);
        out.push_str("Received: ");
        if let Some(client) = self.client {
            let client = AddressLiteral(client.ip());
            write!(out, "from {helo} ({client})\r\n\t").expect("a string takes all text");
        }
        write!(out, "by {hostname} with {with} id {id}").expect("a string takes all text");
        // With several recipients, naming one would tell the others of it.
        if let [recipient] = self.recipients {
            write!(out, "\r\n\tfor {}", recipient.path).expect("a string takes all text");
        }
        // The clause of RFC 8314 section 4.3.
        if let Some(Secured { version, cipher, .. }) = self.secured {
            write!(out, "\r\n\ttls {cipher} ({version})").expect("a string takes all text");
        }
        write!(out, ";\r\n\t{}\r\n", self.date).expect("a string takes all text");
    }

    /// Adds the fields that a message of a user must have and lacks (RFC 6409 sections 8.2 and
    /// 8.3).
    pub fn complete(&self, header: &HeaderFacts, out: &mut String) {
        if header.date == Occurrence::Absent {
            write!(out, "Date: {}\r\n", self.date).expect("a string takes all text");
        }
        if header.message_id == Occurrence::Absent {
            let (id, hostname) = (self.id, self.hostname);
            write!(out, "Message-ID: <{id}@{hostname}>\r\n").expect("a string takes all text");
        }
    }

    /// The registered names of RFC 3848 and RFC 6531 section 4.3.
    fn protocol(&self) -> &'static str {
        if self.smtputf8 {
            return match (self.secured.is_some(), self.authenticated) {
                (false, false) => "UTF8SMTP",
                (true, false) => "UTF8SMTPS",
                (false, true) => "UTF8SMTPA",
                (true, true) => "UTF8SMTPSA",
            };
        }
        match (self.extended, self.secured.is_some(), self.authenticated) {
            (false, ..) => "SMTP",
            (_, false, false) => "ESMTP",
            (_, true, false) => "ESMTPS",
            (_, false, true) => "ESMTPA",
            (_, true, true) => "ESMTPSA",
        }
    }
}

/// What goes before a body: the trace header, and other fields of ours behind it.
///
/// Before a body that begins with white space they come first: its first line continues the field
/// in front of it, and a stranger is to add nothing to a verdict.
pub fn with_fields(trace: String, fields: String, begins_folded: bool) -> String {
    match (fields.is_empty(), begins_folded) {
        (true, _) => trace,
        (false, false) => trace + &fields,
        (false, true) => fields + &trace,
    }
}

/// An address as RFC 5321 section 4.1.3 writes it.
struct AddressLiteral(IpAddr);

impl std::fmt::Display for AddressLiteral {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0.to_canonical() {
            IpAddr::V4(address) => write!(f, "[{address}]"),
            IpAddr::V6(address) => write!(f, "[IPv6:{address}]"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Notify;
    use crate::smtp::address::ForwardPath;

    #[test]
    fn a_single_recipient_is_named_and_several_are_not() {
        let recipient =
            Recipient { path: ForwardPath::Postmaster, notify: Notify::UNSPECIFIED, orcpt: None };
        let (one, several) = ([recipient.clone()], [recipient.clone(), recipient]);
        let written = |recipients: &[Recipient], smtputf8, secured: Option<Secured>| {
            let mut text = String::new();
            Received {
                helo: "client.example",
                client: "[2001:db8::1]:25".parse().ok(),
                hostname: "mx.example.com",
                extended: true,
                secured,
                authenticated: false,
                id: MessageId(1),
                recipients,
                smtputf8,
                date: "Sat, 21 Nov 2026 23:50:32 +0000",
            }
            .write(&mut text);
            text
        };
        assert_eq!(
            written(&one, false, None),
            "Received: from client.example ([IPv6:2001:db8::1])\r\n\
             \tby mx.example.com with ESMTP id 0000000000001\r\n\
             \tfor <Postmaster>;\r\n\
             \tSat, 21 Nov 2026 23:50:32 +0000\r\n"
        );
        let secured = Secured {
            version: "TLSv1.3",
            cipher: "TLS_AES_128_GCM_SHA256",
            resumed: false,
            binding: None,
        };
        assert_eq!(
            written(&several, false, Some(secured)),
            "Received: from client.example ([IPv6:2001:db8::1])\r\n\
             \tby mx.example.com with ESMTPS id 0000000000001\r\n\
             \ttls TLS_AES_128_GCM_SHA256 (TLSv1.3);\r\n\
             \tSat, 21 Nov 2026 23:50:32 +0000\r\n"
        );
        assert_eq!(
            written(&several, true, None),
            "Received: from client.example ([IPv6:2001:db8::1])\r\n\
             \tby mx.example.com with UTF8SMTP id 0000000000001;\r\n\
             \tSat, 21 Nov 2026 23:50:32 +0000\r\n"
        );
    }

    #[test]
    fn a_body_continues_no_field_but_the_trace_header() {
        let joined = |fields: &str, begins_folded| {
            with_fields("Received: a\r\n".to_owned(), fields.to_owned(), begins_folded)
        };
        assert_eq!(joined("", false), "Received: a\r\n");
        assert_eq!(joined("", true), "Received: a\r\n");
        assert_eq!(joined("X: b\r\n", false), "Received: a\r\nX: b\r\n");
        assert_eq!(joined("X: b\r\n", true), "X: b\r\nReceived: a\r\n");
    }

    #[test]
    fn a_hidden_client_is_not_there_and_what_lacks_is_added() {
        let received = Received {
            helo: "laptop.home.example",
            client: None,
            hostname: "mx.example.com",
            extended: true,
            secured: None,
            authenticated: true,
            id: MessageId(1),
            recipients: &[],
            smtputf8: false,
            date: "Sat, 21 Nov 2026 23:50:32 +0000",
        };
        let mut text = String::new();
        received.write(&mut text);
        let mut facts = HeaderFacts { date: Occurrence::Once, ..HeaderFacts::default() };
        received.complete(&facts, &mut text);
        assert_eq!(
            text,
            "Received: by mx.example.com with ESMTPA id 0000000000001;\r\n\
             \tSat, 21 Nov 2026 23:50:32 +0000\r\n\
             Message-ID: <0000000000001@mx.example.com>\r\n"
        );
        facts.message_id = Occurrence::Repeated;
        facts.date = Occurrence::Absent;
        text.clear();
        received.complete(&facts, &mut text);
        assert_eq!(text, "Date: Sat, 21 Nov 2026 23:50:32 +0000\r\n");
    }
}
