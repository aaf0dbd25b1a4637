//! Chooses our certificate by the name that a client asks for (SNI, RFC 6066 section 3).

use std::collections::HashMap;
use std::sync::Arc;

use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::certificate::Certificate;

/// Our certificates by name.
#[derive(Debug)]
pub(super) struct ByName {
    /// Where nothing else fits: no name was asked for, or one that none is for.
    default: Arc<CertifiedKey>,
    exact: HashMap<String, Arc<CertifiedKey>>,
    /// By what follows `*.`.
    wildcard: HashMap<String, Arc<CertifiedKey>>,
}

impl ByName {
    /// The first is the default, and the first with a name has it; `None` without any.
    pub(super) fn new(certificates: &[Certificate]) -> Option<ByName> {
        let default = certificates.first()?.certified.clone();
        let (mut exact, mut wildcard) = (HashMap::new(), HashMap::new());
        for certificate in certificates {
            for name in &certificate.names {
                let (names, name) = match name.strip_prefix("*.") {
                    Some(parent) => (&mut wildcard, parent),
                    None => (&mut exact, name.as_str()),
                };
                let known = names.entry(name.to_owned());
                known.or_insert_with(|| certificate.certified.clone());
            }
        }
        Some(ByName { default, exact, wildcard })
    }

    /// The certificate for `name`, in lower case.  A star stands for one label (RFC 6125 section
    /// 6.4.3).
    fn find(&self, name: &str) -> &Arc<CertifiedKey> {
        let by_star = || self.wildcard.get(name.split_once('.')?.1);
        self.exact.get(name).or_else(by_star).unwrap_or(&self.default)
    }
}

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let Some(name) = hello.server_name() else { return Some(self.default.clone()) };
        Some(self.find(&name.to_ascii_lowercase()).clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::test_kit;

    #[test]
    fn an_exact_name_goes_before_a_star_and_a_star_is_one_label() {
        let names: [&[&str]; 4] = [
            &["mx.example.com"],
            &["*.example.org", "example.org"],
            &["a.example.org"],
            &["*.example.org", "mx.example.com"],
        ];
        let certificates = names.map(test_kit::certificate);
        let by_name = ByName::new(&certificates).unwrap();
        for (name, place) in [
            ("mx.example.com", 0),
            ("example.org", 1),
            ("b.example.org", 1),
            ("a.example.org", 2),
            ("a.b.example.org", 0),
            ("com", 0),
            ("", 0),
        ] {
            assert!(Arc::ptr_eq(by_name.find(name), &certificates[place].certified), "{name}");
        }
        assert!(ByName::new(&[]).is_none());
    }
}
