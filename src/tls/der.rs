//! The little of DER (X.690) that certificates need here: reading two facts out of one, and
//! writing a self-signed one.
//!
//! What is read is only looked at for warnings and for choosing a certificate by name; whether a
//! certificate is good is decided by rustls.  Nothing in here trusts a length.

/// Tags of X.690 and X.509.
pub(super) mod tag {
    pub const INTEGER: u8 = 0x02;
    pub const BIT_STRING: u8 = 0x03;
    pub const OCTET_STRING: u8 = 0x04;
    pub const OBJECT_IDENTIFIER: u8 = 0x06;
    pub const UTF8_STRING: u8 = 0x0c;
    pub const UTC_TIME: u8 = 0x17;
    pub const GENERALIZED_TIME: u8 = 0x18;
    pub const SEQUENCE: u8 = 0x30;
    pub const SET: u8 = 0x31;
    pub const VERSION: u8 = 0xa0;
    pub const EXTENSIONS: u8 = 0xa3;
    /// A DNS name among the subject's alternative names.
    pub const DNS_NAME: u8 = 0x82;
    /// An IP address among them.
    pub const IP_ADDRESS: u8 = 0x87;
}

/// The object identifier of the subject's alternative names (RFC 5280 section 4.2.1.6).
pub(super) const SUBJECT_ALT_NAME: &[u8] = &[0x55, 0x1d, 0x11];

/// Reads one value after the other.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    /// The next value's tag and content; `None` at the end or where it is no DER.
    pub(super) fn next(&mut self) -> Option<(u8, &'a [u8])> {
        let (&tag, rest) = self.0.split_first()?;
        let (&first, rest) = rest.split_first()?;
        let (length, rest) = match first {
            0..=0x7f => (usize::from(first), rest),
            0x81..=0x84 => {
                let (octets, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
                let length = octets.iter().fold(0_u64, |sum, &octet| sum << 8 | u64::from(octet));
                (usize::try_from(length).ok()?, rest)
            }
            _ => return None,
        };
        let (content, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((tag, content))
    }

    /// The content of the next value, which must have this tag.
    pub(super) fn expect(&mut self, tag: u8) -> Option<&'a [u8]> {
        let (found, content) = self.next()?;
        (found == tag).then_some(content)
    }
}

/// What is read out of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Facts {
    /// The end of its validity, as it is written: `YYYYMMDDhhmmssZ`.
    pub not_after: String,
    /// Its DNS names in lower case, wildcards as they are.
    pub names: Vec<String>,
}

/// The facts of an X.509 certificate (RFC 5280 section 4.1); `None` where it is none.
pub(super) fn facts(certificate: &[u8]) -> Option<Facts> {
    let mut outer = Reader(Reader(certificate).expect(tag::SEQUENCE)?);
    let mut fields = Reader(outer.expect(tag::SEQUENCE)?);
    let mut first = fields;
    // Version 1 certificates begin with the serial number.
    if first.next()?.0 == tag::VERSION {
        fields = first;
    }
    fields.expect(tag::INTEGER)?;
    fields.expect(tag::SEQUENCE)?;
    fields.expect(tag::SEQUENCE)?;
    let mut validity = Reader(fields.expect(tag::SEQUENCE)?);
    validity.next()?;
    let not_after = time(validity.next()?)?;
    fields.expect(tag::SEQUENCE)?;
    fields.expect(tag::SEQUENCE)?;
    let mut names = Vec::new();
    while let Some((found, content)) = fields.next() {
        if found == tag::EXTENSIONS {
            names = alternative_names(content).unwrap_or_default();
        }
    }
    Some(Facts { not_after, names })
}

/// A time with its century: RFC 5280 section 4.1.2.5.1 puts 50 to 99 into the twentieth.
fn time((found, content): (u8, &[u8])) -> Option<String> {
    let text = std::str::from_utf8(content).ok()?;
    match found {
        tag::GENERALIZED_TIME => Some(text.to_owned()),
        tag::UTC_TIME if text.as_bytes().first()? < &b'5' => Some(format!("20{text}")),
        tag::UTC_TIME => Some(format!("19{text}")),
        _ => None,
    }
}

fn alternative_names(extensions: &[u8]) -> Option<Vec<String>> {
    let mut extensions = Reader(Reader(extensions).expect(tag::SEQUENCE)?);
    while let Some(extension) = extensions.expect(tag::SEQUENCE) {
        let mut extension = Reader(extension);
        if extension.expect(tag::OBJECT_IDENTIFIER)? != SUBJECT_ALT_NAME {
            continue;
        }
        // Between them there may be whether it is critical.
        let mut value = extension.next()?;
        if value.0 != tag::OCTET_STRING {
            value = extension.next()?;
        }
        let mut names = Reader(Reader(value.1).expect(tag::SEQUENCE)?);
        let mut found = Vec::new();
        while let Some((kind, name)) = names.next() {
            if kind == tag::DNS_NAME && name.is_ascii() {
                found.push(String::from_utf8_lossy(name).to_ascii_lowercase());
            }
        }
        return Some(found);
    }
    None
}

/// A value with this tag and the contents one behind the other.
pub(super) fn value(tag: u8, contents: &[&[u8]]) -> Vec<u8> {
    let length: usize = contents.iter().map(|content| content.len()).sum();
    let mut out = vec![tag];
    match u8::try_from(length) {
        Ok(short @ 0..=0x7f) => out.push(short),
        _ => {
            let octets = length.to_be_bytes();
            let zeroes = octets.iter().take_while(|&&octet| octet == 0).count();
            let octets = &octets[zeroes..];
            out.push(0x80 | u8::try_from(octets.len()).expect("a length has eight octets at most"));
            out.extend_from_slice(octets);
        }
    }
    contents.iter().for_each(|content| out.extend_from_slice(content));
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lengths_are_read_as_they_are_written() {
        for length in [0, 1, 127, 128, 255, 256, 70_000] {
            let written = value(tag::OCTET_STRING, &[&vec![7; length]]);
            let mut reader = Reader(&written);
            assert_eq!(reader.expect(tag::OCTET_STRING).map(<[u8]>::len), Some(length));
            assert!(reader.next().is_none());
            let cut = Reader(&written[..written.len() - 1]).next();
            assert!(cut.is_none(), "{length}");
        }
    }

    proptest! {
        #[test]
        fn no_octets_are_too_strange(octets in prop::collection::vec(any::<u8>(), 0..200)) {
            facts(&octets);
        }
    }
}
