//! SASLprep (RFC 4013): one spelling for names and passwords that look alike.

use std::borrow::Cow;

/// The longest name, password or token that is looked at, in octets.
pub const CREDENTIAL_OCTETS: usize = 8 * 1024;

/// The prepared form; `None` if the text is empty, too long or holds what SASLprep prohibits.
///
/// An empty one proves nothing in any mechanism (RFC 4616 section 2 forbids it).
pub fn prepare(text: &str) -> Option<Cow<'_, str>> {
    if text.len() > CREDENTIAL_OCTETS {
        return None;
    }
    stringprep::saslprep(text).ok().filter(|prepared| !prepared.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples of RFC 4013 section 3.
    #[test]
    fn the_examples_of_the_rfc() {
        for (given, prepared) in [
            ("I\u{ad}X", Some("IX")),
            ("user", Some("user")),
            ("USER", Some("USER")),
            ("\u{aa}", Some("a")),
            ("\u{2168}", Some("IX")),
            ("\u{7}", None),
            ("\u{627}1", None),
            ("", None),
            ("\u{ad}", None),
        ] {
            assert_eq!(prepare(given).as_deref(), prepared, "{given:?}");
        }
    }
}
