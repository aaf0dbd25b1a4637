//! Where the mail of a route goes: the value of `to`.
//!
//! Parsing decides the form only: a [`Host`] that is a name is looked up when mail goes there, by
//! whoever delivers.  A text that is wrong is refused with what was expected ([`BadTarget`]).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::str::FromStr;

use super::maildir::Maildir;
use super::pattern::domain_ascii_lower;

/// Where mail goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// `mx`: the mail exchangers of each recipient's domain (RFC 5321 section 5.1).
    Mx,
    /// `smtp://HOST[:PORT]`: one next hop for all of it.
    Smtp {
        /// The next hop; a name stands for its addresses, its MX records are not asked for.
        host: Host,
        /// Its port, from 1.
        port: u16,
    },
    /// `smtps://HOST[:PORT]`: the same, in TLS from the first octet (RFC 8314).
    Smtps {
        /// The next hop, as above.
        host: Host,
        /// Its port, from 1.
        port: u16,
    },
    /// `lmtp://HOST:PORT` (RFC 2033).
    Lmtp {
        /// The server.
        host: Host,
        /// Its port, from 1; LMTP has none of its own.
        port: u16,
    },
    /// `lmtp+unix:/PATH` (RFC 2033).
    LmtpUnix {
        /// The socket's absolute path; it fits a socket address.
        path: Box<Path>,
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

/// A next hop by address or by name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Host {
    /// An address, as it was written.
    Address(IpAddr),
    /// A name in lower case and A-labels, without a dot at its end.
    Name(Box<str>),
}

/// Why a text is not a target.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadTarget {
    /// No scheme that is known.
    #[error("expected {TARGETS}")]
    Form,
    /// Neither an address nor a name.
    #[error("expected an IP address or the name of a host in place of `{0}`")]
    Host(Box<str>),
    /// What stands after the colon is not a port, or is 0.
    #[error("expected a port from 1 to 65535 after the colon")]
    Port,
    /// `smtp://` and no host, or something after the port.
    #[error("expected `smtp://HOST` or `smtp://HOST:PORT`, an IPv6 address in brackets")]
    Smtp,
    /// The same of `smtps://`.
    #[error("expected `smtps://HOST` or `smtps://HOST:PORT`, an IPv6 address in brackets")]
    Smtps,
    /// `lmtp://` without host or port, or with something after the port.
    #[error(
        "expected `lmtp://HOST:PORT`, an IPv6 address in brackets; LMTP has no port of its own"
    )]
    Lmtp,
    /// `lmtp+unix:` and a path that no socket can have.
    #[error("expected an absolute path of at most {SOCKET_PATH} octets after `lmtp+unix:`")]
    SocketPath,
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

/// All forms of a target, for those who have written none of them.
pub(super) const TARGETS: &str = "`mx`, `smtp://HOST[:PORT]`, `smtps://HOST[:PORT]`, `lmtp://HOST:PORT`, \
    `lmtp+unix:/PATH`, `maildir:PATH`, `discard`, `hold` or `reject:TEXT`";
/// The longest text of `reject:`; with code and line end it fits a reply line.
const REJECT_TEXT: usize = 400;
/// The longest path of a Unix socket: `sun_path` has 108 octets, the last one a NUL (unix(7)).
const SOCKET_PATH: usize = 107;
/// The port of `smtp://HOST`.
const SMTP_PORT: u16 = 25;
/// The port of `smtps://HOST` (RFC 8314 section 7.3).
const SMTPS_PORT: u16 = 465;
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
            ("mx", None) => Ok(Target::Mx),
            ("smtp", Some(rest)) => {
                let (host, port) = next_hop(rest, Some(SMTP_PORT), BadTarget::Smtp)?;
                Ok(Target::Smtp { host, port })
            }
            ("lmtp", Some(rest)) => {
                let (host, port) = next_hop(rest, None, BadTarget::Lmtp)?;
                Ok(Target::Lmtp { host, port })
            }
            ("lmtp+unix", Some(path)) => Self::parse_socket(path),
            ("smtps", Some(rest)) => {
                let (host, port) = next_hop(rest, Some(SMTPS_PORT), BadTarget::Smtps)?;
                Ok(Target::Smtps { host, port })
            }
            _ => Err(BadTarget::Form),
        }
    }

    fn parse_reject(text: &str) -> Result<Target, BadTarget> {
        let text = text.trim();
        let fits = (1..=REJECT_TEXT).contains(&text.len())
            && text.bytes().all(|b| (b' '..=b'~').contains(&b));
        fits.then(|| Target::Reject { text: text.into() }).ok_or(BadTarget::RejectText)
    }

    fn parse_socket(path: &str) -> Result<Target, BadTarget> {
        let fits = path.starts_with('/')
            && !path.ends_with('/')
            && path.len() <= SOCKET_PATH
            && !path.contains('\0');
        fits.then(|| Target::LmtpUnix { path: Path::new(path).into() }).ok_or(BadTarget::SocketPath)
    }
}

impl Host {
    /// Its addresses as far as they are known without the DNS, in the order in which to try them;
    /// none for a name that must be looked up.
    ///
    /// `localhost` and what is below it is the loopback of this machine (RFC 6761 section 6.3),
    /// whatever a name server says.
    pub fn fixed_addresses(&self) -> &[IpAddr] {
        const LOOPBACK: [IpAddr; 2] =
            [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
        match self {
            Host::Address(address) => std::slice::from_ref(address),
            Host::Name(name) if &**name == "localhost" || name.ends_with(".localhost") => &LOOPBACK,
            Host::Name(_) => &[],
        }
    }
}

impl FromStr for Host {
    type Err = BadTarget;

    /// Reads an address without brackets, or a name of letters, digits, hyphens and underscores,
    /// or of U-labels (RFC 5890).
    fn from_str(text: &str) -> Result<Host, BadTarget> {
        if let Ok(address) = text.parse() {
            return Ok(Host::Address(address));
        }
        // No top-level domain is all digits: such a text was meant as an address.
        let is_number = |label: &str| label.bytes().all(|byte| byte.is_ascii_digit());
        let name = domain_ascii_lower(text).filter(|name| {
            !name.starts_with('[') && !name.rsplit('.').next().is_none_or(is_number)
        });
        name.map(|name| Host::Name(name.into())).ok_or_else(|| BadTarget::Host(text.into()))
    }
}

/// `//HOST`, `//HOST:PORT`, `//[IPV6]`, `//[IPV6]:PORT`, with or without a final slash; `form` is
/// what anything else is told, and a missing port if there is no default.
fn next_hop(
    text: &str,
    default_port: Option<u16>,
    form: BadTarget,
) -> Result<(Host, u16), BadTarget> {
    let Some(text) = text.strip_prefix("//") else { return Err(form) };
    let text = text.strip_suffix('/').unwrap_or(text);
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let Some((host, after)) = rest.split_once(']') else { return Err(form) };
            let Ok(address) = host.parse() else { return Err(form) };
            match after.strip_prefix(':') {
                Some(port) => (Host::Address(address), Some(port)),
                None if after.is_empty() => (Host::Address(address), None),
                None => return Err(form),
            }
        }
        None => match text.split_once(':') {
            // An IPv6 address without its brackets.
            Some((_, rest)) if rest.contains(':') => return Err(form),
            Some(("", _)) => return Err(form),
            None if text.is_empty() => return Err(form),
            Some((host, port)) => (host.parse()?, Some(port)),
            None => (text.parse()?, None),
        },
    };
    let port = match port {
        Some(port) => port.parse().ok().filter(|&port| port != 0).ok_or(BadTarget::Port)?,
        None => default_port.ok_or(form)?,
    };
    Ok((host, port))
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Host::Address(address) => address.fmt(f),
            Host::Name(name) => f.write_str(name),
        }
    }
}

/// Whatever the port, it is written, so that one next hop has one name.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Mx => f.write_str("mx"),
            Target::Smtp { host, port } => write!(f, "smtp://{}", HostPort(host, *port)),
            Target::Smtps { host, port } => write!(f, "smtps://{}", HostPort(host, *port)),
            Target::Lmtp { host, port } => write!(f, "lmtp://{}", HostPort(host, *port)),
            Target::LmtpUnix { path } => write!(f, "lmtp+unix:{}", path.display()),
            Target::Maildir(maildir) => write!(f, "maildir:{maildir}"),
            Target::Discard => f.write_str("discard"),
            Target::Hold => f.write_str("hold"),
            Target::Reject { text } => write!(f, "reject:{text}"),
        }
    }
}

/// Host and port as a URL has them: an IPv6 address in brackets.
struct HostPort<'a>(&'a Host, u16);

impl fmt::Display for HostPort<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Host::Address(address) => SocketAddr::new(*address, self.1).fmt(f),
            Host::Name(name) => write!(f, "{name}:{}", self.1),
        }
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
            ("smtp://localhost:26", "smtp://localhost:26"),
            ("smtp://Mail.Example.com", "smtp://mail.example.com:25"),
            ("smtp://bücher.example:26", "smtp://xn--bcher-kva.example:26"),
            ("smtp://smart_host:587/", "smtp://smart_host:587"),
            ("smtp://10.0.0.5.example", "smtp://10.0.0.5.example:25"),
            ("mx", "mx"),
            ("lmtp://10.0.0.5:24", "lmtp://10.0.0.5:24"),
            ("lmtp://[::1]:24/", "lmtp://[::1]:24"),
            ("lmtp://Store.example:24", "lmtp://store.example:24"),
            ("lmtp+unix:/run/dovecot/lmtp", "lmtp+unix:/run/dovecot/lmtp"),
            ("maildir:/var/mail", "maildir:/var/mail/{domain}/{local}"),
            ("maildir:/var/mail/{local}/", "maildir:/var/mail/{local}"),
            ("maildir:mail", "maildir:/etc/mailrace/mail/{domain}/{local}"),
            ("discard", "discard"),
            ("hold", "hold"),
            ("reject: no such user ", "reject:no such user"),
        ] {
            let target = parse(text).unwrap();
            assert_eq!(target.to_string(), shown, "{text}");
            assert_eq!(parse(shown).unwrap().to_string(), shown);
        }
    }

    #[test]
    fn bad_targets_say_what_is_wrong() {
        for (text, why) in [
            ("", BadTarget::Form),
            ("drop", BadTarget::Form),
            ("discard:", BadTarget::Form),
            ("SMTP://10.0.0.5", BadTarget::Form),
            ("mx:", BadTarget::Form),
            ("mx:example.com", BadTarget::Form),
            ("smtps://", BadTarget::Smtps),
            ("smtp://user@10.0.0.5", BadTarget::Host("user@10.0.0.5".into())),
            ("smtp://10.0.0.256", BadTarget::Host("10.0.0.256".into())),
            ("smtp://167772165:25", BadTarget::Host("167772165".into())),
            ("smtp://mail..example", BadTarget::Host("mail..example".into())),
            ("smtp://mail.example.", BadTarget::Host("mail.example.".into())),
            ("smtp://-mail.example", BadTarget::Host("-mail.example".into())),
            ("smtp://mail example", BadTarget::Host("mail example".into())),
            ("smtp://*.example", BadTarget::Host("*.example".into())),
            ("smtp://10.0.0.5/inbox", BadTarget::Host("10.0.0.5/inbox".into())),
            ("smtp://[mail.example.com]", BadTarget::Smtp),
            ("smtp://10.0.0.5:0", BadTarget::Port),
            ("smtp://10.0.0.5:", BadTarget::Port),
            ("smtp://10.0.0.5:65536", BadTarget::Port),
            ("smtp:10.0.0.5", BadTarget::Smtp),
            ("smtp://", BadTarget::Smtp),
            ("smtp://:25", BadTarget::Smtp),
            ("smtp://2001:db8::1", BadTarget::Smtp),
            ("smtp://[2001:db8::1", BadTarget::Smtp),
            ("smtp://[2001:db8::1]26", BadTarget::Smtp),
            ("lmtp://", BadTarget::Lmtp),
            ("lmtp:10.0.0.5:24", BadTarget::Lmtp),
            ("lmtp://10.0.0.5", BadTarget::Lmtp),
            ("lmtp://[::1]", BadTarget::Lmtp),
            ("lmtp://store.example", BadTarget::Lmtp),
            ("lmtp://store.example:lmtp", BadTarget::Port),
            ("lmtp://a b:24", BadTarget::Host("a b".into())),
            ("lmtp+unix:", BadTarget::SocketPath),
            ("lmtp+unix:run/lmtp", BadTarget::SocketPath),
            ("lmtp+unix:/run/lmtp/", BadTarget::SocketPath),
            ("lmtp+unix:/", BadTarget::SocketPath),
            ("lmtp+unix:/run/l\0mtp", BadTarget::SocketPath),
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
    fn a_socket_path_fits_the_address_of_a_socket() {
        let path = |octets: usize| format!("lmtp+unix:/{}", "x".repeat(octets - 1));
        assert!(parse(&path(SOCKET_PATH)).is_ok());
        assert_eq!(parse(&path(SOCKET_PATH + 1)), Err(BadTarget::SocketPath));
    }

    #[test]
    fn only_names_that_are_not_ours_need_the_dns() {
        for (text, addresses) in [
            ("192.0.2.1", &["192.0.2.1"][..]),
            ("2001:db8::1", &["2001:db8::1"]),
            ("LocalHost", &["127.0.0.1", "::1"]),
            ("mail.localhost", &["127.0.0.1", "::1"]),
            ("localhost.example", &[]),
            ("mylocalhost", &[]),
        ] {
            let host: Host = text.parse().unwrap();
            let expected: Vec<IpAddr> = addresses.iter().map(|a| a.parse().unwrap()).collect();
            assert_eq!(host.fixed_addresses(), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_target_panics(text in "(smtp://|lmtp://|lmtp\\+unix:|maildir:|reject:)?(\\[|/)?\\PC{0,12}") {
            let _ = parse(&text);
        }

        #[test]
        fn what_is_printed_reads_back(
            text in "(smtp://|lmtp://|lmtp\\+unix:/)([a-zü.:/-]{0,9}|[0-9.]{0,9}|\\[[0-9a-f:]{0,5}\\])(:[0-9]{1,2})?/?",
        ) {
            if let Ok(target) = parse(&text) {
                prop_assert_eq!(parse(&target.to_string()), Ok(target));
            }
        }
    }
}
