//! What next hops take and refuse, held against what was sent.

use super::super::plan::LIFETIME_S;
use super::super::scene::LinkId;
use super::{Belief, Books, Verdict};

impl Books {
    /// A next hop takes a message, and will or will not say so.
    pub fn taken(&mut self, link: LinkId, recipients: &[String], content: &[u8]) {
        let notice = content.starts_with(b"From: Mail Delivery System").then(|| notice_id(content));
        for address in recipients {
            let key = match &notice {
                Some(id) => format!("{address}/{id}"),
                None => address.clone(),
            };
            if notice.is_none() {
                self.check_copy(address, content);
            }
            if let Some(&belief) = self.beliefs.get(&(link, key.clone())) {
                let is_late = belief != Belief::Unknowable;
                if is_late {
                    self.problem(format!("{key} was taken over {link:?} after its attempt ended"));
                }
            }
            self.copies.entry(key).or_default().push(link);
        }
        if let Some(id) = notice {
            self.check_notice(&id, recipients, content);
        }
    }

    fn check_copy(&mut self, address: &str, content: &[u8]) {
        let Some((number, place)) = numbers(address) else {
            return self.problem(format!("a copy for {address}, whom nobody wrote to"));
        };
        let mail = &self.mails[number];
        let body = without_trace(content);
        let (is_whole, verdict) = (mail.whole_us.is_some(), mail.verdict);
        // DATA cannot say that a body does not end with CRLF.
        let is_same =
            body == mail.body || body.strip_suffix(b"\r\n").is_some_and(|body| body == mail.body);
        let is_known = mail.recipients.get(place).is_some();
        let is_uncertain = mail.is_uncertain;
        if !is_same || !is_known {
            let (is, was) = (body.len(), mail.body.len());
            self.problem(format!("the copy for {address} is another: {is} octets, sent {was}"));
        }
        if !is_whole {
            self.problem(format!("a copy for {address}, of which the client never sent the end"));
        }
        if let Verdict::Refused { code } = verdict
            && !is_uncertain
        {
            self.problem(format!("a copy for {address}, which was refused with {code}"));
        }
    }

    fn check_notice(&mut self, id: &str, recipients: &[String], content: &[u8]) {
        let text = String::from_utf8_lossy(content);
        let mut named = 0;
        for line in text.lines() {
            let Some(address) = line.strip_prefix("Final-Recipient: rfc822; ") else { continue };
            named += 1;
            let Some((number, place)) = numbers(address) else {
                self.problem(format!("notice {id} names {address}, whom nobody wrote to"));
                continue;
            };
            let mail = &self.mails[number];
            if mail.sender.as_ref() != recipients.first() || mail.recipients[place].is_quiet {
                self.problem(format!("notice {id} tells the wrong one of {address}"));
            }
            let mail = &self.mails[number];
            let is_old = mail.whole_us.is_some_and(|at| at + LIFETIME_S * 1_000_000 <= self.now_us);
            if !is_old && !self.refused.contains(address) {
                self.problem(format!("notice {id} gives {address} up, whom nobody refused"));
            }
            let first = self.named.entry(address.to_owned()).or_insert_with(|| id.to_owned());
            if first != id {
                let first = first.clone();
                self.problem(format!("{address} is in notice {first} and in notice {id}"));
            }
        }
        if named == 0 {
            self.problem(format!("notice {id} names nobody"));
        }
    }

    /// A next hop refuses a recipient for good.
    pub fn refused(&mut self, address: &str) {
        self.refused.insert(address.to_owned());
    }

    /// A next hop refuses a sender, and thereby every recipient, for good.
    pub fn sender_refused(&mut self, sender: &str) {
        let sender = (!sender.is_empty()).then_some(sender);
        let mails = self.mails.iter().filter(|mail| mail.sender.as_deref() == sender);
        let addresses = mails.flat_map(|mail| &mail.recipients).map(|rcpt| rcpt.address.clone());
        self.refused.extend(addresses.collect::<Vec<_>>());
    }
}

/// `r12x3@..` is place 3 of mail 12.
pub(super) fn numbers(address: &str) -> Option<(usize, usize)> {
    let (mail, rest) = address.strip_prefix('r')?.split_once('x')?;
    let (place, _) = rest.split_once('@')?;
    Some((mail.parse().ok()?, place.parse().ok()?))
}

/// The id that a notice's Message-ID is made of.
fn notice_id(content: &[u8]) -> String {
    let text = String::from_utf8_lossy(content);
    let line = text.lines().find_map(|line| line.strip_prefix("Message-ID: <"));
    line.and_then(|line| line.split('@').next()).unwrap_or("none").to_owned()
}

/// The content behind our trace header, which every mail from a client must have.
fn without_trace(content: &[u8]) -> &[u8] {
    if !content.starts_with(b"Received: from ") {
        return b"no trace header";
    }
    let mut at = 0;
    while let Some(end) = memchr::memmem::find(&content[at..], b"\r\n") {
        at += end + 2;
        if !content[at..].starts_with(b"\t") {
            return &content[at..];
        }
    }
    b"no end of the trace header"
}
