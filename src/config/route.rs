//! Routes: which recipient goes where.
//!
//! A [`Target`] is only ever something that this version can do; `to = "mx"` and its like are
//! refused while the file is read.  [`Routes`] finds the first route that matches; whole domains
//! are indexed, so that ten thousand `*@domain` routes cost one look-up.  A [`Maildir`] makes
//! paths out of addresses that a stranger chose, and so never leaves its root.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use super::pattern::{Pattern, unquoted};

/// One `[[route]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Whom it is for.
    pub recipient: Pattern,
    /// Where their mail goes.
    pub to: Target,
    /// The address that connections are made from; the system's choice without it.
    pub source: Option<IpAddr>,
}

/// Where mail goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// `smtp://HOST[:PORT]`: one next hop for all of it.
    Smtp {
        /// The next hop; `localhost` stands for 127.0.0.1 until names are looked up.
        address: SocketAddr,
    },
    /// `maildir:PATH`.
    Maildir(Maildir),
    /// Accepted and thrown away.
    Discard,
    /// Accepted and kept until an operator releases it.
    Hold,
    /// Refused at RCPT with 550 5.7.1 and this text.
    Reject {
        /// One line of printable ASCII.
        text: Box<str>,
    },
}

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

/// Why a text is not a target.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadTarget {
    /// No scheme that is known.
    #[error("expected `smtp://HOST[:PORT]`, `maildir:PATH`, `discard`, `hold` or `reject:TEXT`")]
    Form,
    /// Planned, and not in this version.
    #[error(
        "`{0}` is not available in this version; use `smtp://HOST[:PORT]`, `maildir:PATH`, `discard`, `hold` or `reject:TEXT`"
    )]
    NotYet(&'static str),
    /// A name where an address is needed.
    #[error(
        "names are not looked up in this version; expected an IP address or `localhost` in place of `{0}`"
    )]
    HostName(Box<str>),
    /// What stands after the colon is not a port, or is 0.
    #[error("expected a port from 1 to 65535 after the colon")]
    Port,
    /// `smtp://` and no host, or something after the port.
    #[error("expected `smtp://HOST` or `smtp://HOST:PORT`, an IPv6 address in brackets")]
    Smtp,
    /// `maildir:` and nothing.
    #[error("expected a path after `maildir:`")]
    NoPath,
    /// Braces with something else in them, or one brace.
    #[error("expected no other braces than `{{domain}}` and `{{local}}` in the path")]
    Placeholder,
    /// Empty, too long, or not printable ASCII.
    #[error("expected 1 to {REJECT_TEXT} printable ASCII characters after `reject:`")]
    RejectText,
}

/// The longest text of `reject:`; with code and line end it fits a reply line.
const REJECT_TEXT: usize = 400;
/// The port of `smtp://HOST`.
const SMTP_PORT: u16 = 25;
const _: () = assert!("550 5.7.1 \r\n".len() + REJECT_TEXT <= crate::limits::REPLY_LINE);

impl Target {
    /// Reads the value of `to`; a relative Maildir path starts at `directory`.
    pub fn parse(text: &str, directory: &Path) -> Result<Target, BadTarget> {
        let (scheme, rest) = match text.split_once(':') {
            Some((scheme, rest)) => (scheme, Some(rest)),
            None => (text, None),
        };
        match (scheme, rest) {
            ("discard", None) => Ok(Target::Discard),
            ("hold", None) => Ok(Target::Hold),
            ("reject", Some(text)) => Self::parse_reject(text),
            ("maildir", Some(path)) => Maildir::parse(path, directory).map(Target::Maildir),
            ("smtp", Some(rest)) => {
                let host = rest.strip_prefix("//").ok_or(BadTarget::Smtp)?;
                parse_host(host).map(|address| Target::Smtp { address })
            }
            ("mx", None) => Err(BadTarget::NotYet("mx")),
            ("smtps", Some(_)) => Err(BadTarget::NotYet("smtps://")),
            ("lmtp", Some(_)) => Err(BadTarget::NotYet("lmtp://")),
            ("lmtp+unix", Some(_)) => Err(BadTarget::NotYet("lmtp+unix:")),
            _ => Err(BadTarget::Form),
        }
    }

    fn parse_reject(text: &str) -> Result<Target, BadTarget> {
        let text = text.trim();
        let fits = (1..=REJECT_TEXT).contains(&text.len())
            && text.bytes().all(|b| (b' '..=b'~').contains(&b));
        fits.then(|| Target::Reject { text: text.into() }).ok_or(BadTarget::RejectText)
    }
}

/// `HOST`, `HOST:PORT`, `[IPV6]`, `[IPV6]:PORT`, with or without a final slash.
fn parse_host(text: &str) -> Result<SocketAddr, BadTarget> {
    let text = text.strip_suffix('/').unwrap_or(text);
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, after) = rest.split_once(']').ok_or(BadTarget::Smtp)?;
            let port = match after {
                "" => None,
                _ => Some(after.strip_prefix(':').ok_or(BadTarget::Smtp)?),
            };
            (host, port)
        }
        None => match text.split_once(':') {
            // An IPv6 address without its brackets.
            Some((_, rest)) if rest.contains(':') => return Err(BadTarget::Smtp),
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let port = match port {
        None => SMTP_PORT,
        Some(port) => port.parse().ok().filter(|&port| port != 0).ok_or(BadTarget::Port)?,
    };
    let ip = match host.parse::<IpAddr>() {
        Ok(ip) => ip,
        Err(_) if host.eq_ignore_ascii_case("localhost") => Ipv4Addr::LOCALHOST.into(),
        Err(_) if host.is_empty() => return Err(BadTarget::Smtp),
        Err(_) => return Err(BadTarget::HostName(host.into())),
    };
    Ok(SocketAddr::new(ip, port))
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Smtp { address } => write!(f, "smtp://{address}"),
            Target::Maildir(maildir) => write!(f, "maildir:{maildir}"),
            Target::Discard => f.write_str("discard"),
            Target::Hold => f.write_str("hold"),
            Target::Reject { text } => write!(f, "reject:{text}"),
        }
    }
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

/// Which route of the configuration: its place in the file, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RouteIndex(pub u32);

/// The routes in the order of the file, with the index that finds the first that matches.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Routes {
    routes: Vec<Route>,
    /// The routes that can match one domain only, by that domain, in the order of the file.
    by_domain: HashMap<Box<str>, Vec<RouteIndex>>,
    /// All others, in the order of the file.
    others: Vec<RouteIndex>,
}

impl Routes {
    /// Builds the index.
    pub fn new(routes: Vec<Route>) -> Routes {
        let mut by_domain: HashMap<Box<str>, Vec<RouteIndex>> = HashMap::new();
        let mut others = Vec::new();
        for (route, place) in routes.iter().zip(0..) {
            let index = RouteIndex(place);
            match route.recipient.only_domain() {
                Some(domain) => by_domain.entry(domain.into()).or_default().push(index),
                None => others.push(index),
            }
        }
        Routes { routes, by_domain, others }
    }

    /// The first route that matches, or `None`: then RCPT is refused.
    ///
    /// `local` is as it came, with its quotes if it has any; `domain_ascii_lower` is the domain in
    /// lower case and A-labels.  The bare `<Postmaster>` is `("postmaster", "")`.
    pub fn first_match(
        &self,
        local: &str,
        domain_ascii_lower: &str,
    ) -> Option<(RouteIndex, &Route)> {
        let local = unquoted(local);
        let first = |indices: &[RouteIndex]| {
            let matches =
                |index: &&RouteIndex| self[**index].recipient.matches(&local, domain_ascii_lower);
            indices.iter().find(matches).copied()
        };
        let of_domain = self.by_domain.get(domain_ascii_lower).and_then(|indices| first(indices));
        let of_others = first(&self.others);
        let index = [of_domain, of_others].into_iter().flatten().min()?;
        Some((index, &self[index]))
    }

    /// The routes in the order of the file.
    pub fn iter(&self) -> std::slice::Iter<'_, Route> {
        self.routes.iter()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.routes.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.routes.is_empty()
    }
}

impl std::ops::Index<RouteIndex> for Routes {
    type Output = Route;

    fn index(&self, index: RouteIndex) -> &Route {
        &self.routes[index.0 as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Result<Target, BadTarget> {
        Target::parse(text, Path::new("/etc/mailrace"))
    }

    #[test]
    fn targets_read_and_print() {
        for (text, shown) in [
            ("smtp://10.0.0.5", "smtp://10.0.0.5:25"),
            ("smtp://10.0.0.5:2525/", "smtp://10.0.0.5:2525"),
            ("smtp://[2001:db8::1]", "smtp://[2001:db8::1]:25"),
            ("smtp://[2001:db8::1]:26", "smtp://[2001:db8::1]:26"),
            ("smtp://localhost:26", "smtp://127.0.0.1:26"),
            ("maildir:/var/mail", "maildir:/var/mail/{domain}/{local}"),
            ("maildir:/var/mail/{local}/", "maildir:/var/mail/{local}"),
            ("maildir:mail", "maildir:/etc/mailrace/mail/{domain}/{local}"),
            ("discard", "discard"),
            ("hold", "hold"),
            ("reject: no such user ", "reject:no such user"),
        ] {
            assert_eq!(parse(text).unwrap().to_string(), shown, "{text}");
        }
    }

    #[test]
    fn bad_targets_say_what_is_wrong() {
        for (text, why) in [
            ("", BadTarget::Form),
            ("drop", BadTarget::Form),
            ("discard:", BadTarget::Form),
            ("SMTP://10.0.0.5", BadTarget::Form),
            ("mx", BadTarget::NotYet("mx")),
            ("smtps://10.0.0.5", BadTarget::NotYet("smtps://")),
            ("lmtp://10.0.0.5:24", BadTarget::NotYet("lmtp://")),
            ("lmtp+unix:/run/lmtp", BadTarget::NotYet("lmtp+unix:")),
            ("smtp://mail.example.com", BadTarget::HostName("mail.example.com".into())),
            ("smtp://user@10.0.0.5", BadTarget::HostName("user@10.0.0.5".into())),
            ("smtp://10.0.0.5:0", BadTarget::Port),
            ("smtp://10.0.0.5:", BadTarget::Port),
            ("smtp://10.0.0.5:65536", BadTarget::Port),
            ("smtp:10.0.0.5", BadTarget::Smtp),
            ("smtp://", BadTarget::Smtp),
            ("smtp://:25", BadTarget::Smtp),
            ("smtp://2001:db8::1", BadTarget::Smtp),
            ("smtp://[2001:db8::1", BadTarget::Smtp),
            ("smtp://[2001:db8::1]26", BadTarget::Smtp),
            ("maildir:", BadTarget::NoPath),
            ("maildir:/m/{user}", BadTarget::Placeholder),
            ("maildir:/m/{local", BadTarget::Placeholder),
            ("maildir:/m/}", BadTarget::Placeholder),
            ("reject:", BadTarget::RejectText),
            ("reject:a\r\n250 ok", BadTarget::RejectText),
            ("reject:é", BadTarget::RejectText),
        ] {
            assert_eq!(parse(text), Err(why), "{text}");
        }
    }

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

    fn routes(patterns: &[String]) -> Routes {
        let route = |text: &String| Route {
            recipient: text.parse().unwrap(),
            to: Target::Discard,
            source: None,
        };
        Routes::new(patterns.iter().map(route).collect())
    }

    proptest! {
        #[test]
        fn the_index_finds_what_a_walk_finds(
            patterns in prop::collection::vec("(\\*|postmaster|(a|b|\\*)@(x|y|\\*|\\*\\.x))", 0..12),
            local in "(a|b|c|postmaster)",
            domain in "(|x|y|z|a\\.x)",
        ) {
            let routes = routes(&patterns);
            let walk = routes.iter().position(|r| r.recipient.matches(&local, &domain));
            let found = routes.first_match(&local, &domain).map(|(index, _)| index.0 as usize);
            prop_assert_eq!(found, walk);
        }

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

        #[test]
        fn no_target_panics(text in "(smtp://|maildir:|reject:)?\\PC{0,12}") {
            let _ = parse(&text);
        }
    }

    #[test]
    fn quotes_do_not_hide_a_recipient_from_its_route() {
        let routes = routes(&["boss@x".to_owned(), "*".to_owned()]);
        assert_eq!(
            routes.first_match("\"boss\"", "x").map(|(index, _)| index),
            Some(RouteIndex(0))
        );
        assert_eq!(
            routes.first_match("postmaster", "").map(|(index, _)| index),
            Some(RouteIndex(1))
        );
    }
}
