//! What becomes of a recipient's DSN parameters when it stands for others (RFC 3461 section
//! 5.2.7).
//!
//! An alias of one hands them on (5.2.7.2).  Behind a list the wish for notices of success ends:
//! each would name a member to whoever wrote to the list.  The notice that a message was expanded
//! (action `expanded`), which section 5.2.7.3 has in their place, is not sent.  Either way ORCPT
//! names the address that was written to (5.2.1), so that notices of failure speak of what the
//! sender knows.

use std::fmt::Write as _;

use crate::limits;
use crate::message::{Notify, Recipient};
use crate::smtp::address::{ForwardPath, Mailbox};

/// The recipient that gets the mail of `original`, which is a list, or an alias of one.
pub fn forwarded(original: &Recipient, to: Mailbox, is_list: bool) -> Recipient {
    let notify = if is_list { without_success(original.notify) } else { original.notify };
    let orcpt = original.orcpt.clone().or_else(|| orcpt_of(&original.path));
    Recipient { path: ForwardPath::Mailbox(to), notify, orcpt }
}

fn without_success(notify: Notify) -> Notify {
    Notify(notify.0 & !Notify::SUCCESS.0)
}

/// `rfc822;` and the address as xtext (RFC 3461 section 4); none where it does not fit, or is not
/// ASCII.
fn orcpt_of(path: &ForwardPath) -> Option<Box<str>> {
    let mut text = String::from("rfc822;");
    for octet in path.as_str().bytes() {
        match octet {
            b'+' | b'=' | b' ' => write!(text, "+{octet:02X}").expect("a string takes all text"),
            b'!'..=b'~' => text.push(octet as char),
            _ => return None,
        }
    }
    (text.len() <= limits::ORCPT).then(|| text.into())
}
