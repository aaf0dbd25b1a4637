//! VRFY and EXPN, answered from the table (RFC 5321 section 3.5).

use super::table::{Finding, Table};
use crate::limits;
use crate::smtp::address::{Mailbox, Utf8};
use crate::smtp::reply::Verified;
use crate::smtp::server::Inquiry;

impl Table {
    /// The answer to VRFY or EXPN.
    ///
    /// VRFY of an alias or a list gives the address that was asked for and not who is behind it;
    /// EXPN gives those, if they are not too many for a reply.  An argument that is not a whole
    /// ASCII address cannot be answered: a bare name would have to be looked for in every domain.
    pub fn answer(&self, inquiry: &Inquiry) -> Verified {
        let Some(mailbox) = asked(&inquiry.argument) else { return Verified::Untold };
        match self.find(&mailbox) {
            Finding::NotJudged => Verified::Untold,
            Finding::Unknown => Verified::Nobody,
            Finding::Expands(expansion) if inquiry.expands => {
                let members = self.members(expansion);
                let is_told =
                    members.len() <= limits::EXPN_MEMBERS && members.iter().all(Mailbox::is_ascii);
                if is_told { Verified::Found(members) } else { Verified::Untold }
            }
            Finding::Mailbox | Finding::Expands(_) => Verified::Found(vec![mailbox]),
        }
    }
}

/// `alice@example.com`, with or without angle brackets, perhaps behind a name.
fn asked(argument: &str) -> Option<Mailbox> {
    let argument = argument.trim();
    let inner = argument
        .strip_suffix('>')
        .and_then(|rest| rest.rsplit_once('<'))
        .map_or(argument, |(_, inner)| inner);
    Mailbox::parse(inner.as_bytes(), Utf8::Refused).ok()
}
