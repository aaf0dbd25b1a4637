//! Patterns over addresses and domains.
//!
//! [`Pattern`] is what `recipient = "*@example.com"` holds; [`Domains`] is `[domains] accept`.
//! Both compare domains in one form: ASCII (A-labels), lower case, an address literal with its
//! brackets.  The caller brings addresses in that form; patterns are put into it when parsed.
//! Nothing here does I/O or allocates while matching.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;
use std::str::FromStr;

use crate::limits;

/// A pattern over a whole address.
///
/// `*` stands for any characters, none included.  `*` alone matches everything, the bare
/// `<Postmaster>` included; `postmaster` alone matches that one only; all others have the form
/// `local@domain` and match the local part exactly and the domain without regard to case.
/// `*@*.example.org` matches subdomains only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    text: Box<str>,
    kind: Kind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    Everything,
    BarePostmaster,
    Address { local: Glob, domain: Glob },
}

/// How much of something a pattern matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// None of it.
    Nothing,
    /// Perhaps some of it.
    Part,
    /// All of it.
    Whole,
}

/// Why a text is not a pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadPattern {
    /// Neither `local@domain`, nor `*`, nor `postmaster`.
    #[error(
        "expected an address in which `*` stands for any characters, as in `*@example.com`, or `*` alone"
    )]
    Form,
    /// One side of the `@` is empty.
    #[error("expected something on both sides of the `@`; `*` stands for any characters")]
    EmptySide,
    /// The domain has characters or labels that no domain has.
    #[error("expected a domain after the `@`")]
    Domain,
}

impl Pattern {
    /// Whether the pattern matches `local@domain`.
    ///
    /// `local` is the local part without quotes (see [`unquoted`]).  `domain_ascii_lower` is the
    /// domain in lower case and A-labels; it is empty for the bare `<Postmaster>` alone.
    pub fn matches(&self, local: &str, domain_ascii_lower: &str) -> bool {
        match &self.kind {
            Kind::Everything => true,
            Kind::BarePostmaster => {
                domain_ascii_lower.is_empty() && local.eq_ignore_ascii_case("postmaster")
            }
            Kind::Address { local: local_glob, domain } => {
                // The domain decides nearly always, so it comes first.
                !domain_ascii_lower.is_empty()
                    && domain.matches(domain_ascii_lower)
                    && local_glob.matches(local)
            }
        }
    }

    /// Whether it is `*`, which matches every recipient there can be.
    pub fn is_everything(&self) -> bool {
        self.kind == Kind::Everything
    }

    /// How much of the mail for a domain, in lower case and A-labels, it can match.
    pub fn reach(&self, domain_ascii_lower: &str) -> Reach {
        match &self.kind {
            Kind::Everything => Reach::Whole,
            Kind::Address { local: Glob::Anything, domain }
                if domain.matches(domain_ascii_lower) =>
            {
                Reach::Whole
            }
            Kind::Address { domain, .. } if domain.matches(domain_ascii_lower) => Reach::Part,
            Kind::BarePostmaster | Kind::Address { .. } => Reach::Nothing,
        }
    }

    /// Whether it can match mail for a domain below this one, in lower case and A-labels.
    pub fn reaches_below(&self, domain_ascii_lower: &str) -> bool {
        let Kind::Address { domain, .. } = &self.kind else { return self.is_everything() };
        let below = format!(".{domain_ascii_lower}");
        match domain {
            Glob::Anything => true,
            Glob::Exact(exact) => exact.ends_with(&below),
            // What stands behind the last star ends all domains that it matches.
            Glob::Pieces { suffix, .. } => suffix.ends_with(&below) || below.ends_with(&**suffix),
        }
    }

    /// The one domain that it can match, if there is only one: the key of an index.
    pub(crate) fn only_domain(&self) -> Option<&str> {
        match &self.kind {
            Kind::Address { domain: Glob::Exact(domain), .. } => Some(domain),
            _ => None,
        }
    }
}

impl FromStr for Pattern {
    type Err = BadPattern;

    fn from_str(text: &str) -> Result<Self, BadPattern> {
        let kind = match text.rsplit_once('@') {
            None if text == "*" => Kind::Everything,
            None if text.eq_ignore_ascii_case("postmaster") => Kind::BarePostmaster,
            None => return Err(BadPattern::Form),
            Some(("", _) | (_, "")) => return Err(BadPattern::EmptySide),
            Some((local, domain)) => Kind::Address {
                local: Glob::new(&unquoted(local)),
                domain: Glob::new(&domain_glob(domain).ok_or(BadPattern::Domain)?),
            },
        };
        Ok(Pattern { text: text.into(), kind })
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The local part that a quoted string stands for (RFC 5321 section 4.1.2: `"a"@x` and `a@x` are
/// the same mailbox), so that quotes are no way round a route.
pub fn unquoted(local: &str) -> Cow<'_, str> {
    let Some(inner) = local.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) else {
        return Cow::Borrowed(local);
    };
    if !inner.contains('\\') {
        return Cow::Borrowed(inner);
    }
    let mut plain = String::with_capacity(inner.len());
    let mut characters = inner.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => plain.extend(characters.next()),
            other => plain.push(other),
        }
    }
    Cow::Owned(plain)
}

/// Text with `*` in it, cut at the stars once.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Glob {
    Anything,
    Exact(Box<str>),
    Pieces { prefix: Box<str>, middle: Box<[Box<str>]>, suffix: Box<str> },
}

impl Glob {
    fn new(text: &str) -> Glob {
        if !text.contains('*') {
            return Glob::Exact(text.into());
        }
        let mut pieces: Vec<Box<str>> = text.split('*').map(Box::from).collect();
        let suffix = pieces.pop().expect("a split has a last piece");
        let prefix = pieces.remove(0);
        pieces.retain(|piece| !piece.is_empty());
        if prefix.is_empty() && suffix.is_empty() && pieces.is_empty() {
            return Glob::Anything;
        }
        Glob::Pieces { prefix, middle: pieces.into(), suffix }
    }

    /// Takes the leftmost place for each middle piece; that never loses a match, because a piece
    /// found earlier leaves more room for the rest.
    fn matches(&self, text: &str) -> bool {
        match self {
            Glob::Anything => true,
            Glob::Exact(exact) => **exact == *text,
            Glob::Pieces { prefix, middle, suffix } => {
                let Some(rest) = text.strip_prefix(&**prefix) else {
                    return false;
                };
                let Some(mut rest) = rest.strip_suffix(&**suffix) else {
                    return false;
                };
                middle.iter().all(|piece| match rest.split_once(&**piece) {
                    Some((_, tail)) => {
                        rest = tail;
                        true
                    }
                    None => false,
                })
            }
        }
    }
}

/// The domains that `service = "mx"` takes mail for: names, and names below a name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Domains {
    exact: HashSet<Box<str>>,
    /// `example.org` for `*.example.org`.
    below: HashSet<Box<str>>,
}

/// One entry of `[domains] accept`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DomainPattern {
    /// `example.com`: itself only.
    Exact(Box<str>),
    /// `*.example.org`: whatever is below it, not itself.
    Below(Box<str>),
}

/// Why a text is not an entry of `[domains] accept`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadDomainPattern {
    /// `*`: mail for the whole world.
    #[error("expected the domains that this host takes mail for; `*` would make it an open relay")]
    Everything,
    /// A `*` that is not the first label.
    #[error("expected `*` as the first label only, as in `*.example.org`")]
    Star,
    /// Not a domain.
    #[error("expected a domain like `example.com`, or `*.example.com` for all below it")]
    Form,
}

impl Domains {
    /// Whether mail for the domain (lower case, A-labels) is taken.
    pub fn contains(&self, domain_ascii_lower: &str) -> bool {
        if self.exact.contains(domain_ascii_lower) {
            return true;
        }
        !self.below.is_empty()
            && domain_ascii_lower
                .match_indices('.')
                .any(|(dot, _)| self.below.contains(&domain_ascii_lower[dot + 1..]))
    }

    /// Whether no domain is taken.
    pub fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.below.is_empty()
    }

    /// The domains that are named themselves.
    pub fn exact(&self) -> impl Iterator<Item = &str> {
        self.exact.iter().map(|domain| &**domain)
    }

    /// Those of which everything below is taken.
    pub fn below(&self) -> impl Iterator<Item = &str> {
        self.below.iter().map(|domain| &**domain)
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.exact.len() + self.below.len()
    }

    /// Adds an entry.
    pub fn insert(&mut self, pattern: DomainPattern) {
        match pattern {
            DomainPattern::Exact(domain) => self.exact.insert(domain),
            DomainPattern::Below(domain) => self.below.insert(domain),
        };
    }
}

impl FromIterator<DomainPattern> for Domains {
    fn from_iter<I: IntoIterator<Item = DomainPattern>>(patterns: I) -> Self {
        let mut domains = Domains::default();
        patterns.into_iter().for_each(|pattern| domains.insert(pattern));
        domains
    }
}

impl FromStr for DomainPattern {
    type Err = BadDomainPattern;

    fn from_str(text: &str) -> Result<Self, BadDomainPattern> {
        if text.chars().all(|c| c == '*' || c == '.') && text.contains('*') {
            return Err(BadDomainPattern::Everything);
        }
        let (below, domain) = match text.strip_prefix("*.") {
            Some(domain) => (true, domain),
            None => (false, text),
        };
        if domain.contains('*') {
            return Err(BadDomainPattern::Star);
        }
        let domain = domain_ascii_lower(domain).ok_or(BadDomainPattern::Form)?.into_boxed_str();
        Ok(if below { DomainPattern::Below(domain) } else { DomainPattern::Exact(domain) })
    }
}

/// The domain in lower case and A-labels (RFC 5890), or an address literal in lower case.
pub(super) fn domain_ascii_lower(domain: &str) -> Option<String> {
    if let Some(literal) = domain.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        let fits = |b: u8| b.is_ascii_alphanumeric() || b"-:.".contains(&b);
        return (!literal.is_empty() && literal.bytes().all(fits))
            .then(|| domain.to_ascii_lowercase());
    }
    let ascii = idna::domain_to_ascii(domain).ok()?;
    is_host_name(&ascii).then_some(ascii)
}

/// Labels of letters, digits, hyphens and underscores, with dots between them.
fn is_host_name(ascii: &str) -> bool {
    let is_label = |label: &str| {
        (1..=limits::LABEL).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    ascii.len() <= limits::DOMAIN && ascii.split('.').all(is_label)
}

/// The domain side of a pattern: stars where they are, each whole label as an A-label.
fn domain_glob(domain: &str) -> Option<String> {
    if !domain.contains('*') {
        return domain_ascii_lower(domain);
    }
    let fits = |c: char| c.is_ascii_alphanumeric() || "-_.:[]*".contains(c);
    let labels = domain.split('.').map(|label| match label {
        "" => None,
        _ if label.chars().all(fits) => Some(label.to_ascii_lowercase()),
        _ if label.contains('*') => None,
        _ => idna::domain_to_ascii(label).ok().filter(|label| is_host_name(label)),
    });
    Some(labels.collect::<Option<Vec<String>>>()?.join("."))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn matches(pattern: &str, local: &str, domain: &str) -> bool {
        pattern.parse::<Pattern>().unwrap().matches(local, domain)
    }

    #[test]
    fn a_pattern_reaches_domains_and_what_is_below() {
        use Reach::{Nothing, Part, Whole};
        for (pattern, reach, below) in [
            ("*", Whole, true),
            ("postmaster", Nothing, false),
            ("*@example.com", Whole, false),
            ("a*@example.com", Part, false),
            ("*@*", Whole, true),
            ("*@*.com", Whole, true),
            ("*@example.*", Whole, true),
            ("*@*.example.com", Nothing, true),
            ("*@a.example.com", Nothing, true),
            ("a@b*.a.example.com", Nothing, true),
            ("*@badexample.com", Nothing, false),
            ("*@*.org", Nothing, false),
            ("*@com", Nothing, false),
        ] {
            let parsed = pattern.parse::<Pattern>().unwrap();
            let found = (parsed.reach("example.com"), parsed.reaches_below("example.com"));
            assert_eq!(found, (reach, below), "{pattern}");
        }
    }

    #[test]
    fn patterns_match_as_documented() {
        let table = [
            ("*", "a", "example.com", true),
            ("*", "Postmaster", "", true),
            ("*@*", "a", "example.com", true),
            ("*@*", "Postmaster", "", false),
            ("postmaster", "PostMaster", "", true),
            ("postmaster", "postmaster", "example.com", false),
            ("*@example.com", "a", "example.com", true),
            ("*@EXAMPLE.com", "a", "example.com", true),
            ("*@example.com", "a", "sub.example.com", false),
            ("*@example.com", "a", "badexample.com", false),
            ("*@*.example.org", "a", "x.example.org", true),
            ("*@*.example.org", "a", "x.y.example.org", true),
            ("*@*.example.org", "a", "example.org", false),
            ("*@*.example.org", "a", "badexample.org", false),
            ("*@example.*", "a", "example.net", true),
            ("Sales@example.com", "Sales", "example.com", true),
            ("Sales@example.com", "sales", "example.com", false),
            ("sales-*@example.com", "sales-north", "example.com", true),
            ("*+*@example.com", "a+b", "example.com", true),
            ("*+*@example.com", "a", "example.com", false),
            ("a*a@example.com", "a", "example.com", false),
            ("a*a@example.com", "aa", "example.com", true),
            ("*@bücher.example", "a", "xn--bcher-kva.example", true),
            ("*@*.bücher.example", "a", "x.xn--bcher-kva.example", true),
            ("*@[192.0.2.1]", "a", "[192.0.2.1]", true),
            ("*@[*]", "a", "[ipv6:2001:db8::1]", true),
            ("\"a b\"@example.com", "a b", "example.com", true),
        ];
        for (pattern, local, domain, expected) in table {
            assert_eq!(matches(pattern, local, domain), expected, "{pattern} {local}@{domain}");
        }
    }

    #[test]
    fn bad_patterns_are_refused() {
        for (text, why) in [
            ("", BadPattern::Form),
            ("example.com", BadPattern::Form),
            ("**", BadPattern::Form),
            ("@example.com", BadPattern::EmptySide),
            ("*@", BadPattern::EmptySide),
            ("*@exa mple.com", BadPattern::Domain),
            ("*@example..com", BadPattern::Domain),
            ("*@*..com", BadPattern::Domain),
            ("*@bü*cher.example", BadPattern::Domain),
        ] {
            assert_eq!(text.parse::<Pattern>(), Err(why), "{text}");
        }
    }

    #[test]
    fn domains_take_names_and_what_is_below_a_name() {
        let domains: Domains = ["Example.com", "*.example.org", "bücher.example"]
            .iter()
            .map(|text| text.parse::<DomainPattern>().unwrap())
            .collect();
        for (domain, expected) in [
            ("example.com", true),
            ("x.example.com", false),
            ("example.org", false),
            ("x.example.org", true),
            ("y.x.example.org", true),
            ("xexample.org", false),
            ("xn--bcher-kva.example", true),
            ("", false),
            (".", false),
        ] {
            assert_eq!(domains.contains(domain), expected, "{domain}");
        }
    }

    #[test]
    fn an_entry_that_takes_the_world_is_refused() {
        for text in ["*", "*.", "*.*", "**"] {
            let parsed = text.parse::<DomainPattern>();
            assert_eq!(parsed, Err(BadDomainPattern::Everything), "{text}");
        }
        assert_eq!("a.*.org".parse::<DomainPattern>(), Err(BadDomainPattern::Star));
        for text in ["", "a b", "user@example.com", "example.com."] {
            assert_eq!(text.parse::<DomainPattern>(), Err(BadDomainPattern::Form), "{text}");
        }
    }

    #[test]
    fn quotes_are_no_way_round_a_pattern() {
        for (local, plain) in
            [("a", "a"), ("\"a\"", "a"), ("\"a\\b\\\\\"", "ab\\"), ("\"\"", ""), ("\"", "\"")]
        {
            assert_eq!(unquoted(local), plain);
        }
    }

    /// The plain definition: try every length for each star.
    fn oracle(glob: &[u8], text: &[u8]) -> bool {
        match glob.split_first() {
            None => text.is_empty(),
            Some((b'*', rest)) => (0..=text.len()).any(|skip| oracle(rest, &text[skip..])),
            Some((byte, rest)) => text.first() == Some(byte) && oracle(rest, &text[1..]),
        }
    }

    proptest! {
        #[test]
        fn globs_agree_with_the_plain_definition(glob in "[ab*]{0,8}", text in "[ab]{0,10}") {
            let expected = oracle(glob.as_bytes(), text.as_bytes());
            prop_assert_eq!(Glob::new(&glob).matches(&text), expected);
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,16}") {
            let _ = text.parse::<Pattern>();
            let _ = text.parse::<DomainPattern>();
            let _ = unquoted(&text);
        }
    }
}
