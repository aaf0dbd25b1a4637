//! What the file of recipients makes of one at RCPT: nobody, itself, or those that it stands for.
//!
//! Pure.  It comes after [`super::relay`], which has said that the client may send there at all
//! and where the mail of the address as it was given goes.

use super::relay;
use crate::config::{Config, RouteIndex, Target};
use crate::delivery::sites::routing_domain;
use crate::message::Recipient;
use crate::recipients::{Finding, Table, forwarded};
use crate::smtp::address::{ForwardPath, Mailbox};
use crate::smtp::reply::Refusal;

/// Whom a recipient's mail goes to, each by its own route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Addressees {
    /// The recipient itself.
    Itself(RouteIndex),
    /// Others in its place; one at least.
    Others(Vec<(Recipient, RouteIndex)>),
}

/// Whom the mail of `recipient` goes to, whose own route is `route`.
///
/// The file judges the domains of `[domains] accept` alone: mail that goes through here to
/// elsewhere is not its business, whatever it says.
///
/// # Errors
/// `UnknownRecipient`; `NoRoute` or `Rejected` where a member of a list has lost its route;
/// `NeedsSmtpUtf8` for a message without it where all that there are would need it.
pub fn addressees(
    config: &Config,
    table: &Table,
    recipient: &Recipient,
    route: RouteIndex,
    smtputf8: bool,
) -> Result<Addressees, Refusal> {
    match find(config, table, &recipient.path) {
        Finding::NotJudged | Finding::Mailbox => Ok(Addressees::Itself(route)),
        Finding::Unknown => Err(Refusal::UnknownRecipient),
        Finding::Expands(expansion) => {
            let members = table.members(expansion);
            let is_list = expansion.is_list();
            let routed = |to| {
                let route = relay::route_for(config, &ForwardPath::Mailbox(Clone::clone(&to)))?;
                Ok((forwarded(recipient, to, is_list), route))
            };
            let others: Vec<_> = members.into_iter().map(routed).collect::<Result<_, Refusal>>()?;
            match smtputf8 || others.iter().any(|(to, route)| can_be_told(config, to, *route)) {
                true => Ok(Addressees::Others(others)),
                false => Err(Refusal::NeedsSmtpUtf8),
            }
        }
    }
}

/// Whether the way of `route` takes this recipient of a message without SMTPUTF8: a next hop does
/// not, if it is not ASCII (RFC 6531 section 3.2).  To refuse it now is better than a notice later.
fn can_be_told(config: &Config, to: &Recipient, route: RouteIndex) -> bool {
    let has_peer = match config.routes[route].to {
        Target::Mx | Target::Smtp { .. } | Target::Smtps { .. } => true,
        Target::Lmtp { .. } | Target::LmtpUnix { .. } => true,
        Target::Maildir(_) | Target::Discard | Target::Hold | Target::Reject { .. } => false,
    };
    !has_peer || to.path.mailbox().is_none_or(Mailbox::is_ascii)
}

/// Whether the file has anything against a recipient.
///
/// # Errors
/// `UnknownRecipient`.
pub fn is_here(config: &Config, table: &Table, path: &ForwardPath) -> Result<(), Refusal> {
    match find(config, table, path) {
        Finding::Unknown => Err(Refusal::UnknownRecipient),
        Finding::NotJudged | Finding::Mailbox | Finding::Expands(_) => Ok(()),
    }
}

fn find<'t>(config: &Config, table: &'t Table, path: &ForwardPath) -> Finding<'t> {
    let is_ours = |mailbox: &&Mailbox| config.domains.contains(&routing_domain(mailbox));
    path.mailbox().filter(is_ours).map_or(Finding::NotJudged, |mailbox| table.find(mailbox))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Notify;
    use crate::smtp::address::Utf8;

    const CONFIG: &str = r#"
hostname = "mx.example.com"
[[listener]]
address = "127.0.0.1:0"
service = "mx"
[domains]
accept = ["example.com", "example.org"]
[[route]]
recipient = "gone@elsewhere.example"
to = "reject:Moved away"
[[route]]
recipient = "*@example.com"
to = "hold"
[[route]]
recipient = "*@elsewhere.example"
to = "discard"
[[route]]
recipient = "*@far.example"
to = "smtp://192.0.2.1"
"#;

    const FILE: &str = "\
alice@example.com
al@example.com: alice@example.com
team@example.com: alice@example.com, friend@elsewhere.example
lost@example.com: gone@elsewhere.example
friend@elsewhere.example
gone@elsewhere.example
postmaster@example.com: alice@example.com
zoe@example.com: zo\u{eb}@far.example
ines@example.com: in\u{ea}s@elsewhere.example
both@example.com: zo\u{eb}@far.example, alice@example.com
in\u{ea}s@elsewhere.example
";

    fn said(address: &str) -> String {
        said_with(false, address)
    }

    fn said_with(smtputf8: bool, address: &str) -> String {
        let config = Config::for_test(CONFIG);
        let table = Table::parse(FILE, "+").expect("a good file");
        let path = ForwardPath::parse(address.as_bytes(), Utf8::Refused).expect("an address");
        let recipient = Recipient { path, notify: Notify::UNSPECIFIED, orcpt: None };
        match addressees(&config, &table, &recipient, RouteIndex(7), smtputf8) {
            Ok(Addressees::Itself(route)) => format!("{}", route.0),
            Ok(Addressees::Others(others)) => {
                let one =
                    |(to, route): &(Recipient, RouteIndex)| format!("{} {}", to.path, route.0);
                others.iter().map(one).collect::<Vec<_>>().join(", ")
            }
            Err(refusal) => refusal.reason().to_owned(),
        }
    }

    #[test]
    fn who_gets_the_mail_of_whom() {
        for (address, expected) in [
            ("<alice@example.com>", "7"),
            ("<alice+shop@example.com>", "7"),
            ("<nobody@example.com>", "unknown_recipient"),
            ("<Al@example.com>", "<alice@example.com> 1"),
            ("<team@example.com>", "<alice@example.com> 1, <friend@elsewhere.example> 2"),
            ("<lost@example.com>", "rejected_by_route"),
            ("<anybody@example.org>", "7"),
            // Not in `accept`: the file says who else is there, and it is not its business.
            ("<nobody@elsewhere.example>", "7"),
            ("<Postmaster>", "7"),
            ("<postmaster@example.com>", "<alice@example.com> 1"),
            ("<postmaster@example.org>", "7"),
        ] {
            assert_eq!(said(address), expected, "{address}");
        }
    }

    #[test]
    fn a_message_without_smtputf8_goes_to_nobody_who_needs_it() {
        for (address, without, with) in [
            ("<zoe@example.com>", "needs_smtputf8", "<zo\u{eb}@far.example> 3"),
            // No next hop is asked.
            (
                "<ines@example.com>",
                "<in\u{ea}s@elsewhere.example> 2",
                "<in\u{ea}s@elsewhere.example> 2",
            ),
            // The others get it; one notice is less than all mail of the list.
            (
                "<both@example.com>",
                "<zo\u{eb}@far.example> 3, <alice@example.com> 1",
                "<zo\u{eb}@far.example> 3, <alice@example.com> 1",
            ),
        ] {
            assert_eq!(said(address), without, "{address}");
            assert_eq!(said_with(true, address), with, "{address}");
        }
    }
}
