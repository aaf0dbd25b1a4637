//! Maildir paths with an address in them.
//!
//! A [`Maildir`] makes paths out of addresses that a stranger chose, and so never leaves its root.

use std::fmt;
use std::path::{Path, PathBuf};

use super::target::BadTarget;

/// A path with `{domain}` and `{local}` in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Maildir {
    template: Box<str>,
    pieces: Vec<Piece>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(Box<str>),
    Domain,
    Local,
}

impl Maildir {
    /// Reads the path of `maildir:PATH`.  Without placeholders `/{domain}/{local}` is put after
    /// it; a relative one starts at `directory`.
    pub fn parse(path: &str, directory: &Path) -> Result<Maildir, BadTarget> {
        if path.is_empty() {
            return Err(BadTarget::NoPath);
        }
        let mut template = path.trim_end_matches('/').to_owned();
        if !template.contains(['{', '}']) {
            template.push_str("/{domain}/{local}");
        }
        let mut pieces = cut(&template)?;
        if !template.starts_with('/') {
            let root = format!("{}/", directory.display());
            template.insert_str(0, &root);
            pieces.insert(0, Piece::Text(root.into()));
        }
        Ok(Maildir { template: template.into(), pieces })
    }

    /// The Maildir of one recipient.
    ///
    /// `local` is the local part without quotes, `domain_ascii_lower` the domain, empty for the
    /// bare `<Postmaster>`.  Different addresses give different paths, and no address gives one
    /// with `/`, `..` or a hidden name in it.
    pub fn path(&self, local: &str, domain_ascii_lower: &str) -> PathBuf {
        let mut path = String::with_capacity(self.template.len() + 64);
        for piece in &self.pieces {
            match piece {
                Piece::Text(text) => path.push_str(text),
                Piece::Domain => push_file_name(&mut path, domain_ascii_lower),
                Piece::Local => push_file_name(&mut path, local),
            }
        }
        path.into()
    }
}

impl fmt::Display for Maildir {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.template)
    }
}

/// Cuts a template at its placeholders.
fn cut(template: &str) -> Result<Vec<Piece>, BadTarget> {
    let mut pieces = Vec::new();
    let mut rest = template;
    while let Some(brace) = rest.find(['{', '}']) {
        let (text, tail) = rest.split_at(brace);
        if !text.is_empty() {
            pieces.push(Piece::Text(text.into()));
        }
        let known = [("{domain}", Piece::Domain), ("{local}", Piece::Local)];
        let (tail, piece) = known
            .into_iter()
            .find_map(|(name, piece)| Some((tail.strip_prefix(name)?, piece)))
            .ok_or(BadTarget::Placeholder)?;
        pieces.push(piece);
        rest = tail;
    }
    if !rest.is_empty() {
        pieces.push(Piece::Text(rest.into()));
    }
    Ok(pieces)
}

/// Appends `text` as (a part of) a file name: what is not plain is written `%XX`, a dot at the
/// start too, so that `..` and hidden names cannot arise; the empty text is `%`.  One to one,
/// because `%` itself is never plain.
fn push_file_name(path: &mut String, text: &str) {
    use std::fmt::Write as _;
    if text.is_empty() {
        path.push('%');
    }
    for (place, byte) in text.bytes().enumerate() {
        let plain = byte.is_ascii_alphanumeric() || b"-_+=".contains(&byte);
        if plain || (byte == b'.' && place > 0) {
            path.push(char::from(byte));
        } else {
            write!(path, "%{byte:02X}").expect("a String takes what is written to it");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_address_cannot_leave_the_maildir() {
        let maildir = Maildir::parse("/m", Path::new("/")).unwrap();
        for (local, domain, path) in [
            ("alice", "example.com", "/m/example.com/alice"),
            ("a.b+c", "example.com", "/m/example.com/a.b+c"),
            ("../../etc/passwd", "..", "/m/%2E./%2E.%2F..%2Fetc%2Fpasswd"),
            ("a%2Fb", "[192.0.2.1]", "/m/%5B192.0.2.1%5D/a%252Fb"),
            (".", "x", "/m/x/%2E"),
            ("", "", "/m/%/%"),
            ("a\0b", "x", "/m/x/a%00b"),
            ("é", "x", "/m/x/%C3%A9"),
        ] {
            assert_eq!(maildir.path(local, domain), Path::new(path));
        }
    }

    proptest! {
        #[test]
        fn file_names_are_safe_and_one_to_one(a in "\\PC{0,8}", b in "\\PC{0,8}") {
            let name = |text: &str| {
                let mut name = String::new();
                push_file_name(&mut name, text);
                name
            };
            prop_assert!(!name(&a).is_empty() && !name(&a).contains(['/', '\0']));
            prop_assert!(!name(&a).starts_with('.'));
            prop_assert_eq!(name(&a) == name(&b), a == b);
        }
    }
}
