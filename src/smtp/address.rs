//! Addresses of RFC 5321 section 4.1.2, parsed once into types that prove them valid.

/// A mailbox `local-part@domain`, valid by RFC 5321 (RFC 6531 where the client asked for SMTPUTF8).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Mailbox {
    /// As it came on the wire, without source route and angle brackets.
    text: Box<str>,
    /// Where the `@` that ends the local part stands in `text`.
    at: u16,
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
