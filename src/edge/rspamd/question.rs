//! What rspamd is asked: `POST /checkv2`, with what is known of a message in the headers that
//! rspamd documents, and the message behind them.
//!
//! Pure.

use std::net::IpAddr;

use hyper::header::{CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use hyper::{Method, Request, Uri};

use crate::limits;
use crate::message::{MessageId, Recipient};
use crate::runtime::tls::Secured;
use crate::smtp::address::ReversePath;

/// What is known of a message beside its octets.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// The message.
    pub id: MessageId,
    /// Its client.
    pub client: IpAddr,
    /// What that calls itself.
    pub helo: &'a str,
    /// The name behind its address that leads back to it; none if there is none.
    pub hostname: Option<&'a str>,
    /// The user that it has proved to be.
    pub user: Option<&'a str>,
    /// What its TLS has agreed on; none in clear.
    pub secured: Option<Secured>,
    /// Our name.
    pub our_name: &'a str,
    /// Who sends it.
    pub reverse_path: &'a ReversePath,
    /// To whom.
    pub recipients: &'a [Recipient],
}

/// The head of a question.
#[derive(Debug, Clone)]
pub struct Question(HeaderMap);

impl Question {
    /// The question about a message.
    pub fn new(facts: &Facts<'_>) -> Question {
        let mut head = Question(HeaderMap::new());
        head.add("ip", &facts.client.to_canonical().to_string());
        head.add("helo", facts.helo);
        // Left out it means that there is none, as from rspamd's own milter.
        if let Some(hostname) = facts.hostname {
            head.add("hostname", hostname);
        }
        head.add("from", facts.reverse_path.as_str());
        head.add("queue-id", &facts.id.to_string());
        head.add("mta-name", facts.our_name);
        if let Some(user) = facts.user {
            head.add("user", user);
        }
        if let Some(Secured { version, cipher, .. }) = facts.secured {
            head.add("tls-version", version);
            head.add("tls-cipher", cipher);
        }
        let recipients = facts.recipients;
        if let [recipient] = recipients {
            head.add("deliver-to", recipient.path.as_str());
        }
        let mut room = limits::RSPAMD_RECIPIENTS;
        for recipient in recipients {
            let path = recipient.path.as_str();
            let Some(left) = room.checked_sub(path.len() + "rcpt: \r\n".len()) else { break };
            room = left;
            head.add("rcpt", path);
        }
        head
    }

    /// The request to who is called `host`, with the message.
    pub fn request<B>(&self, host: &str, message: B) -> Request<B> {
        let mut request = Request::new(message);
        *request.method_mut() = Method::POST;
        *request.uri_mut() = Uri::from_static("/checkv2");
        *request.headers_mut() = self.0.clone();
        let headers = request.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("message/rfc822"));
        headers.insert(USER_AGENT, HeaderValue::from_static("mailrace"));
        if let Ok(host) = HeaderValue::from_str(host) {
            headers.insert(HOST, host);
        }
        request
    }

    /// What cannot stand in a header is left out: rspamd then does without.
    fn add(&mut self, name: &'static str, value: &str) {
        if let Ok(value) = HeaderValue::from_bytes(value.as_bytes()) {
            self.0.append(HeaderName::from_static(name), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Notify;
    use crate::smtp::address::ForwardPath;

    fn recipient() -> Recipient {
        Recipient { path: ForwardPath::Postmaster, notify: Notify::UNSPECIFIED, orcpt: None }
    }

    fn facts(recipients: &[Recipient]) -> Facts<'_> {
        Facts {
            id: MessageId(7),
            client: "::ffff:192.0.2.1".parse().unwrap(),
            helo: "client.example",
            hostname: None,
            user: None,
            secured: None,
            our_name: "mx.example.com",
            reverse_path: &ReversePath::Null,
            recipients,
        }
    }

    fn values(question: &Question, name: &str) -> Vec<String> {
        let values = question.0.get_all(name).iter();
        values.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned()).collect()
    }

    #[test]
    fn the_headers_say_who_sends_to_whom() {
        let secured =
            Secured { version: "TLSv1.3", cipher: "TLS_X", resumed: false, binding: None };
        let question = Question::new(&Facts {
            hostname: Some("mail.client.example"),
            user: Some("u\u{e4}"),
            secured: Some(secured),
            ..facts(&[recipient()])
        });
        for (name, value) in [
            ("ip", "192.0.2.1"),
            ("helo", "client.example"),
            ("hostname", "mail.client.example"),
            ("from", ""),
            ("rcpt", "Postmaster"),
            ("deliver-to", "Postmaster"),
            ("queue-id", "0000000000007"),
            ("user", "u\u{e4}"),
            ("tls-version", "TLSv1.3"),
            ("tls-cipher", "TLS_X"),
            ("mta-name", "mx.example.com"),
        ] {
            assert_eq!(values(&question, name), [value], "{name}");
        }
        let recipients = vec![recipient(); 100_000];
        let question = Question::new(&facts(&recipients));
        let octets = values(&question, "rcpt").len() * "rcpt: Postmaster\r\n".len();
        let room = limits::RSPAMD_RECIPIENTS;
        assert!(octets <= room && octets > room - 20, "{octets}");
        assert!(values(&question, "deliver-to").is_empty());
        assert!(values(&question, "hostname").is_empty() && values(&question, "user").is_empty());
    }

    #[test]
    fn what_would_end_a_line_does_not_get_into_a_header() {
        let question = Question::new(&Facts { helo: "a\r\nip: 127.0.0.1", ..facts(&[]) });
        assert!(values(&question, "helo").is_empty());
        assert_eq!(values(&question, "ip"), ["192.0.2.1"]);
        let request = question.request("[::1]:11333", ());
        assert_eq!((request.method(), request.uri().path()), (&Method::POST, "/checkv2"));
        assert_eq!(request.headers()["host"], "[::1]:11333");
    }
}
