//! What next hops take and refuse, held against what was sent.

use super::super::plan::{LATE_S, LIFETIME_S};
use super::super::scene::LinkId;
use super::{Belief, Books, Key, Verdict, Wish};

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
        let mut address = None;
        let mut named = 0;
        for line in text.lines() {
            if let Some(recipient) = line.strip_prefix("Final-Recipient: rfc822; ") {
                address = Some(recipient.to_owned());
            }
            let Some(action) = line.strip_prefix("Action: ") else { continue };
            let Some(address) = address.take() else { continue };
            named += 1;
            self.check_named(id, &address, action, recipients);
        }
        if named == 0 {
            self.problem(format!("notice {id} names nobody"));
        }
    }

    fn check_named(&mut self, id: &str, address: &Key, action: &str, recipients: &[String]) {
        let Some((number, place)) = numbers(address) else {
            return self.problem(format!("notice {id} names {address}, whom nobody wrote to"));
        };
        let mail = &self.mails[number];
        let wish = mail.recipients[place].wish;
        let is_single = mail.recipients.len() == 1;
        let is_wanted = match action {
            "relayed" | "delivered" => wish == Wish::Everything,
            _ => wish != Wish::Never,
        };
        if mail.sender.as_ref() != recipients.first() || !is_wanted {
            self.problem(format!("notice {id} tells the wrong one that {address} is {action}"));
        }
        let whole_us = self.mails[number].whole_us;
        let has_age = |age_s| whole_us.is_some_and(|at| at + age_s * 1_000_000 <= self.now_us);
        // A large mail's age is counted from its first chunk.
        let (is_old, is_late) = (has_age(LIFETIME_S), has_age(LATE_S / 2));
        match action {
            "failed" => {
                if !is_old && !self.is_refused(address) {
                    self.problem(format!("notice {id} gives {address} up, whom nobody refused"));
                }
                let first = self.named.entry(address.clone()).or_insert_with(|| id.to_owned());
                if first != id {
                    let first = first.clone();
                    self.problem(format!("{address} is in notice {first} and in notice {id}"));
                }
            }
            "delayed" => {
                if !is_late {
                    self.problem(format!("notice {id} says that {address} is late, which is not"));
                }
                let notices = self.late.entry(address.clone()).or_default();
                notices.insert(id.to_owned());
                // Of several that wait for different reasons a crash may keep the word on one only.
                if notices.len() > 1 && (is_single || self.life == 0) {
                    self.problem(format!("{address} is late in notice {id} and in another"));
                }
            }
            "relayed" | "delivered" => {
                let is_final = next_hop(address).is_some_and(|site| self.is_final[site]);
                if is_final != (action == "delivered") {
                    self.problem(format!("notice {id} says that {address} is {action}"));
                }
                if next_hop(address).is_some_and(|site| self.always_dsn[site]) {
                    self.problem(format!("{address} is relayed, and the next hop has DSN"));
                }
                if !self.copies.contains_key(address) {
                    self.problem(format!("{address} is relayed, and nobody has it"));
                }
                self.relayed.entry(address.clone()).or_default().insert(id.to_owned());
            }
            other => self.problem(format!("notice {id} says that {address} is {other}")),
        }
    }

    /// A next hop introduces itself without its extensions.
    pub fn greeted_plainly(&mut self, site: usize) {
        self.always_dsn[site] = false;
    }

    /// A next hop refuses a recipient for good.
    pub fn refused(&mut self, address: &str) {
        self.refused.insert(address.to_owned());
    }

    /// The DNS says that a next hop's domain takes no mail.
    pub fn takes_no_mail(&mut self, site: usize) {
        self.no_mail.insert(site);
    }

    /// Whether a recipient was ever refused for good.
    pub(super) fn is_refused(&self, address: &str) -> bool {
        let site = next_hop(address);
        self.refused.contains(address) || site.is_some_and(|site| self.no_mail.contains(&site))
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

/// The number of the next hop of an address.
pub fn next_hop(address: &str) -> Option<usize> {
    let (_, domain) = address.split_once("@site")?;
    domain.split('.').next()?.parse().ok()
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
