//! Where the mail of a route goes: the value of `to`.
//!
//! A [`Target`] is only ever something that this version can do; `to = "mx"` and its like are
//! refused while the file is read.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;

use super::maildir::Maildir;

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

    proptest! {
        #[test]
        fn no_target_panics(text in "(smtp://|maildir:|reject:)?\\PC{0,12}") {
            let _ = parse(&text);
        }
    }
}
