//! Variable envelope return paths: a reverse-path that names the recipient, so that whatever
//! comes back says whom it is about, even from hosts that know nothing of RFC 3464.
//!
//! `list@example.org` writing to `user@example.com` becomes `list+user=example.com@example.org`.
//! A route asks for it (`verp = true`); that each recipient then has a transaction of its own is
//! [`rounds`](super::settlement::rounds)' business.  Our own notices go to the reverse-path as it
//! came: they name their recipients anyway.
//!
//! Invariant: the result is a valid mailbox of the originator's own domain, or there is none and
//! the reverse-path stays as it is: a null one must stay null, and a local part longer than the 64
//! octets of RFC 5321 section 4.5.3.1.1 would be refused by some next hops, which costs the mail.

use super::sites::route_of;
use crate::config::Config;
use crate::message::Envelope;
use crate::smtp::address::{ForwardPath, Mailbox, ReversePath, Utf8};

/// Recipients by whether their route asks for a reverse-path of their own: those that share one
/// first.  What an operator has released goes by the route that follows the hold.
pub fn split(config: &Config, envelope: &Envelope, places: Vec<u16>) -> (Vec<u16>, Vec<u16>) {
    // Nearly always: then nothing has to be matched again.
    if !config.routes.iter().any(|route| route.verp) {
        return (places, Vec::new());
    }
    let shares = |place: &u16| {
        let recipient = envelope.recipients.get(usize::from(*place));
        let route = recipient.and_then(|recipient| route_of(config, &recipient.path, true));
        !route.is_some_and(|route| config.routes[route].verp)
    };
    places.into_iter().partition(shares)
}

/// The envelope for the recipient at `place` alone, under a reverse-path that names it; `None` if
/// there is no such reverse-path.
pub fn envelope(envelope: &Envelope, place: u16) -> Option<Envelope> {
    let recipient = envelope.recipients.get(usize::from(place))?;
    let reverse_path = reverse_path(&envelope.reverse_path, &recipient.path)?;
    Some(Envelope {
        reverse_path,
        parameters: envelope.parameters.clone(),
        recipients: vec![recipient.clone()],
    })
}

/// See the module's text.
fn reverse_path(originator: &ReversePath, recipient: &ForwardPath) -> Option<ReversePath> {
    let originator = originator.mailbox()?;
    let recipient = recipient.mailbox()?;
    let local = format!(
        "{}+{}={}",
        originator.local_unquoted(),
        recipient.local_unquoted(),
        recipient.domain()
    );
    // No new need for SMTPUTF8 may arise: the message that names the recipient has it already.
    let plain = format!("{local}@{}", originator.domain());
    let parse = |text: &str| Mailbox::parse(text.as_bytes(), Utf8::Allowed).ok();
    parse(&plain)
        .or_else(|| parse(&format!("{}@{}", quoted(&local), originator.domain())))
        .map(ReversePath::Mailbox)
}

/// As a quoted string (RFC 5321 section 4.1.2).
fn quoted(local: &str) -> String {
    let mut quoted = String::with_capacity(local.len() + 2);
    quoted.push('"');
    for letter in local.chars() {
        if matches!(letter, '"' | '\\') {
            quoted.push('\\');
        }
        quoted.push(letter);
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{MailParameters, Notify, Recipient};
    use proptest::prelude::*;

    fn envelope_of(from: &str, to: &str) -> Envelope {
        Envelope {
            reverse_path: ReversePath::parse(from.as_bytes(), Utf8::Allowed).expect("valid"),
            parameters: MailParameters { envid: Some("x".into()), ..Default::default() },
            recipients: vec![
                Recipient {
                    path: ForwardPath::parse(b"<other@r.test>", Utf8::Allowed).expect("valid"),
                    notify: Notify::UNSPECIFIED,
                    orcpt: None,
                },
                Recipient {
                    path: ForwardPath::parse(to.as_bytes(), Utf8::Allowed).expect("valid"),
                    notify: Notify::NEVER,
                    orcpt: None,
                },
            ],
        }
    }

    #[test]
    fn a_reverse_path_names_its_recipient() {
        let long = format!("<{}@r.test>", "u".repeat(53));
        let cases = [
            ("<list@s.test>", "<user@r.test>", Some("list+user=r.test@s.test")),
            ("<list+a@s.test>", "<u+b@r.test>", Some("list+a+u+b=r.test@s.test")),
            ("<list@s.test>", "<\"a b\"@r.test>", Some("\"list+a b=r.test\"@s.test")),
            ("<list@s.test>", "<\"a\\\"b\"@r.test>", Some("\"list+a\\\"b=r.test\"@s.test")),
            ("<list@s.test>", "<\"user\"@r.test>", Some("list+user=r.test@s.test")),
            ("<list@s.test>", "<u@[127.0.0.1]>", Some("\"list+u=[127.0.0.1]\"@s.test")),
            ("<list@s.test>", "<\u{f6}@r.test>", Some("list+\u{f6}=r.test@s.test")),
            ("<list@s.test>", &long, None),
            ("<list@s.test>", "<Postmaster>", None),
            ("<>", "<user@r.test>", None),
        ];
        for (from, to, expected) in cases {
            let own = envelope(&envelope_of(from, to), 1);
            let path = own.as_ref().map(|own| own.reverse_path.as_str());
            assert_eq!(path, expected, "{from} {to}");
            if let Some(own) = own {
                assert_eq!(own.recipients, envelope_of(from, to).recipients[1..]);
                assert_eq!(own.parameters.envid.as_deref(), Some("x"));
            }
        }
        assert!(envelope(&envelope_of("<list@s.test>", "<u@r.test>"), 2).is_none());
    }

    proptest! {
        /// Whatever valid addresses come together, what is made of them reads back as the same.
        #[test]
        fn what_is_made_is_a_mailbox_of_the_originators_domain(
            from in "[a-z+=.!\"\\\\ ]{1,20}", to in "[a-z+=.@!\"\\\\ ]{1,20}",
        ) {
            let from = format!("<{from}@s.test>");
            let to = format!("<{to}@r.test>");
            let (Ok(from), Ok(to)) = (
                ReversePath::parse(from.as_bytes(), Utf8::Refused),
                ForwardPath::parse(to.as_bytes(), Utf8::Refused),
            ) else { return Ok(()) };
            if let Some(path) = reverse_path(&from, &to) {
                let mailbox = path.mailbox().expect("it is not null");
                prop_assert_eq!(mailbox.domain(), "s.test");
                let (from, to) = (from.mailbox().expect("so was this"), to.mailbox().expect("too"));
                let local = format!("{}+{}=r.test", from.local_unquoted(), to.local_unquoted());
                prop_assert_eq!(&*mailbox.local_unquoted(), &local);
                prop_assert_eq!(ReversePath::parse(path.to_string().as_bytes(), Utf8::Refused), Ok(path));
            }
        }
    }
}
