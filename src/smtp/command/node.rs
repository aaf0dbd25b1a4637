//! What ETRN names (RFC 1985 section 5).
//!
//! Invariant: a domain in here is one of the DNS, in A-labels and lower case, so that it can be
//! compared with routing domains octet by octet.

use crate::smtp::address::{Mailbox, Utf8};

/// Whose mail is asked for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Node {
    /// `example.com`: mail for this domain.
    Domain(Box<str>),
    /// `@example.com`: mail for this domain and for all below it (section 5.3).
    Subdomains(Box<str>),
    /// `#name`: a queue by its name (section 5.3), of which this server has none.
    Named,
}

impl Node {
    /// Reads the argument of ETRN; `None` if it is neither a domain nor one of the options.
    pub fn parse(argument: &str) -> Option<Node> {
        if argument.starts_with('#') {
            return Some(Node::Named);
        }
        match argument.strip_prefix('@') {
            None => domain(argument).map(Node::Domain),
            Some(rest) => domain(rest).map(Node::Subdomains),
        }
    }

    /// Whether the mail of a domain, in A-labels and lower case, is asked for.
    pub fn covers(&self, domain: &str) -> bool {
        match self {
            Node::Domain(node) => **node == *domain,
            Node::Subdomains(node) => {
                let above = domain.strip_suffix(&**node);
                above.is_some_and(|above| above.is_empty() || above.ends_with('.'))
            }
            Node::Named => false,
        }
    }
}

/// A domain by the rules for domains of mailboxes, which has the one parser for them.
fn domain(text: &str) -> Option<Box<str>> {
    let mailbox = Mailbox::parse(format!("node@{text}").as_bytes(), Utf8::Refused).ok()?;
    // There is none in an address literal.
    Some(mailbox.domain_ascii()?.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_domains_with_or_without_what_is_below() {
        for (argument, node) in [
            ("example.com", Some(Node::Domain("example.com".into()))),
            ("Example.COM", Some(Node::Domain("example.com".into()))),
            ("@Example.com", Some(Node::Subdomains("example.com".into()))),
            ("localhost", Some(Node::Domain("localhost".into()))),
            ("#queue", Some(Node::Named)),
            ("#", Some(Node::Named)),
            ("", None),
            ("@", None),
            ("@@example.com", None),
            ("a@example.com", None),
            ("[192.0.2.1]", None),
            ("example..com", None),
            (".example.com", None),
            ("-example.com", None),
            ("example.com x", None),
            ("b\u{fc}cher.example", None),
            ("*.example.com", None),
        ] {
            assert_eq!(Node::parse(argument), node, "{argument}");
        }
        let long = format!("{}.example", "a.".repeat(200));
        assert_eq!(Node::parse(&long), None);
    }

    #[test]
    fn a_node_covers_its_domain_and_no_namesake() {
        let domain = Node::parse("example.com").expect("a domain");
        let below = Node::parse("@example.com").expect("a domain");
        for (other, by_domain, by_below) in [
            ("example.com", true, true),
            ("a.example.com", false, true),
            ("a.b.example.com", false, true),
            ("badexample.com", false, false),
            ("com", false, false),
            ("", false, false),
        ] {
            assert_eq!((domain.covers(other), below.covers(other)), (by_domain, by_below));
        }
        assert!(!Node::Named.covers("example.com"));
    }
}
