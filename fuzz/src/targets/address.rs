//! Mailboxes and paths: what is taken reads back as the same, and holds nothing that could break
//! a command line.

use mailrace::smtp::address::{ForwardPath, Mailbox, ReversePath, Utf8};

/// The input is the address.
pub fn run(octets: &[u8]) {
    let strict = Mailbox::parse(octets, Utf8::Refused);
    let wide = Mailbox::parse(octets, Utf8::Allowed);
    if let Ok(mailbox) = &strict {
        assert!(mailbox.is_ascii(), "beyond ASCII without SMTPUTF8: {mailbox}");
        assert_eq!(wide.as_ref(), Ok(mailbox), "SMTPUTF8 changes what ASCII means");
    }
    if let Ok(mailbox) = &wide {
        assert_eq!(mailbox.as_str().as_bytes(), octets, "an address is kept as it came");
        check(mailbox);
    }
    for utf8 in [Utf8::Refused, Utf8::Allowed] {
        if let Ok(path) = ReversePath::parse(octets, utf8) {
            assert_eq!(ReversePath::parse(path.to_string().as_bytes(), utf8), Ok(path.clone()));
            path.mailbox().into_iter().for_each(check);
        }
        if let Ok(path) = ForwardPath::parse(octets, utf8) {
            assert_eq!(ForwardPath::parse(path.to_string().as_bytes(), utf8), Ok(path.clone()));
            path.mailbox().into_iter().for_each(check);
        }
    }
}

fn check(mailbox: &Mailbox) {
    let text = mailbox.as_str();
    assert!(!text.chars().any(char::is_control), "{text:?}");
    assert!(text.len() <= 256 && mailbox.local_part().len() <= 64 && mailbox.domain().len() <= 255);
    assert_eq!(text, format!("{}@{}", mailbox.local_part(), mailbox.domain()));
    assert_eq!(Mailbox::parse(text.as_bytes(), Utf8::Allowed).as_ref(), Ok(mailbox));
    assert_eq!(Mailbox::from_stored(text).as_ref(), Some(mailbox));
    let _ = (mailbox.local_unquoted(), mailbox.is_postmaster(), mailbox.has_routing_characters());
    let _ = mailbox.literal_address();
    if let Some(domain) = mailbox.domain_ascii() {
        assert!(domain.is_ascii(), "{domain}");
    }
}
