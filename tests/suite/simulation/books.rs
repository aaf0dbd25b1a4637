//! The ledger of a world: what was sent, what was acknowledged, what arrived; and the rules that
//! must hold between the three.
//!
//! A recipient of a mail, and a notice, has a [`Key`].  Its *fate* is what the gateway believes:
//! told (an attempt ended it, the DONE is on its way) or kept (the DONE is in the log).  What a
//! next hop took is a *copy*.  The rules:
//! - A copy is of a mail that a client sent to its end and that was not refused, octet for octet.
//! - What a next hop took, the gateway believes delivered, or knows that it cannot know; and the
//!   other way round.
//! - A message is over in the log only when the fates of all its recipients are kept.
//! - Nothing is attempted after its fate is kept, nor, in one life of the gateway, after it was
//!   told.  So a second copy arises only where it must.
//! - A notice of failure names recipients that were refused for good or had their time; one of
//!   delay those that are late, each once; one of success those that a next hop without DSN took.
//! - A recipient that is to wait, as the log says, is not attempted before its time; and the log
//!   says so soon.
//! - In the end each recipient of an acknowledged mail has its fate decided, and a copy or a
//!   notice to show for it.

mod copies;

use std::collections::{BTreeMap, BTreeSet};

use mailrace::message::{Durability, MessageId};
use mailrace::smtp::client::{Deferral, RecipientOutcome};

use super::plan::{LIFETIME_S, Plan, Rot};
use super::scene::LinkId;
pub use copies::next_hop;
use copies::numbers;

/// A recipient of a mail by its address, which no two have in common; of a notice with its id.
pub type Key = String;

/// A mail that a client means to send.
pub struct Mail {
    /// Its address, or nothing for a null reverse-path.
    pub sender: Option<String>,
    pub recipients: Vec<Rcpt>,
    /// As it is, without stuffed dots.
    pub body: Vec<u8>,
    /// The client wrote its last octet then.
    whole_us: Option<u64>,
    verdict: Verdict,
    /// Its commit failed and could not be made void: it may come back after a restart.
    is_uncertain: bool,
    /// Nobody can read any more who sent it to whom.
    is_rotten: bool,
}

/// When a recipient is to be tried again.
#[derive(Debug, Clone, Copy)]
struct Due {
    until_unix_ms: u64,
    /// The gateway meant to write that down then.
    since_us: u64,
    /// The log has it.
    is_kept: bool,
}

pub struct Rcpt {
    pub address: String,
    pub wish: Wish,
    /// The server said 250 to RCPT.
    is_accepted: bool,
}

/// NOTIFY of a recipient.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// Not given: of failures and delays.
    Unspoken,
    Never,
    Everything,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Unknown,
    Accepted { at_us: u64 },
    Refused { code: u16 },
}

#[derive(Debug, Clone, Copy)]
enum Fate {
    Told { life: u32 },
    Kept { at_us: u64 },
}

/// What the gateway made of one recipient of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Belief {
    Delivered,
    Unknowable,
    NotDelivered,
}

/// See the module's text.
pub struct Books {
    pub mails: Vec<Mail>,
    pub life: u32,
    durability: Durability,
    has_bad_disk: bool,
    now_us: u64,
    fates: BTreeMap<Key, Fate>,
    copies: BTreeMap<Key, Vec<LinkId>>,
    beliefs: BTreeMap<(LinkId, Key), Belief>,
    /// Recipients that a next hop refused for good.
    refused: BTreeSet<Key>,
    /// Next hops of whose domain the DNS said that it takes no mail.
    no_mail: BTreeSet<usize>,
    /// The notices that named a recipient as failed, as late, and as relayed, by their ids.
    named: BTreeMap<Key, String>,
    late: BTreeMap<Key, BTreeSet<String>>,
    relayed: BTreeMap<Key, BTreeSet<String>>,
    /// By next hop: whether it offers DSN, and whether it has done so each time.
    offers_dsn: Vec<bool>,
    always_dsn: Vec<bool>,
    /// By next hop: whether what it takes is where it was to go.
    is_final: Vec<bool>,
    /// By next hop: whether it throws away what comes with what it refuses.
    flushes: Vec<bool>,
    /// The power cuts, each by the time at which the gateway was last seen before it.
    power_cuts_us: Vec<u64>,
    down_since_us: Option<u64>,
    moved: usize,
    dues: BTreeMap<Key, Due>,
    /// Of each message its mail.
    mails_by_id: BTreeMap<MessageId, usize>,
    notices: usize,
    rot: Rot,
    cores: usize,
    happened: BTreeMap<&'static str, usize>,
    problems: Vec<String>,
}

/// When an outcome is in the log at the latest, unless that has failed.
const WRITTEN_US: u64 = 3_000_000;
/// With `durability = "os"` a power cut may take what is younger.
const OS_WINDOW_US: u64 = 2_000_000;

impl Books {
    pub fn new(plan: &Plan) -> Books {
        Books {
            mails: Vec::new(),
            life: 0,
            durability: plan.durability,
            has_bad_disk: plan.faults.write_failures_permil + plan.faults.sync_failures_permil > 0,
            now_us: 0,
            fates: BTreeMap::new(),
            copies: BTreeMap::new(),
            beliefs: BTreeMap::new(),
            refused: BTreeSet::new(),
            no_mail: BTreeSet::new(),
            named: BTreeMap::new(),
            late: BTreeMap::new(),
            relayed: BTreeMap::new(),
            offers_dsn: plan.offers.iter().map(|offer| offer.dsn && !offer.lmtp).collect(),
            always_dsn: plan.offers.iter().map(|offer| offer.dsn && !offer.lmtp).collect(),
            is_final: plan.offers.iter().map(|offer| offer.lmtp).collect(),
            flushes: plan.offers.iter().map(|offer| offer.flushes).collect(),
            power_cuts_us: Vec::new(),
            down_since_us: None,
            moved: 0,
            dues: BTreeMap::new(),
            mails_by_id: BTreeMap::new(),
            notices: 0,
            rot: plan.rot,
            cores: 0,
            happened: BTreeMap::new(),
            problems: Vec::new(),
        }
    }

    pub fn at(&mut self, now_us: u64) {
        self.now_us = now_us;
    }

    /// Something happens that a world is there for.
    pub fn happens(&mut self, what: &'static str) {
        *self.happened.entry(what).or_default() += 1;
    }

    /// Something is wrong.
    pub fn problem(&mut self, words: String) {
        self.problems.push(format!("at {} us: {words}", self.now_us));
    }

    pub fn problems(&self) -> &[String] {
        &self.problems
    }

    // ---- what clients do -----------------------------------------------------------------

    /// A mail that may be sent; gives its number.
    pub fn plan_mail(
        &mut self,
        sender: Option<String>,
        recipients: Vec<(String, Wish)>,
        body: Vec<u8>,
    ) {
        let rcpt = |(address, wish)| Rcpt { address, wish, is_accepted: false };
        self.mails.push(Mail {
            sender,
            recipients: recipients.into_iter().map(rcpt).collect(),
            body,
            whole_us: None,
            verdict: Verdict::Unknown,
            is_uncertain: false,
            is_rotten: false,
        });
    }

    /// The client has written the mail to its last octet.
    pub fn whole(&mut self, mail: usize) {
        self.mails[mail].whole_us = Some(self.now_us);
    }

    /// The server answered RCPT with 250.
    pub fn recipient_taken(&mut self, mail: usize, place: usize) {
        self.mails[mail].recipients[place].is_accepted = true;
    }

    /// The server answered the end of the mail.
    pub fn verdict(&mut self, mail: usize, code: u16) {
        let is_whole = self.mails[mail].whole_us.is_some();
        if code / 100 == 2 {
            self.mails[mail].verdict = Verdict::Accepted { at_us: self.now_us };
            if !is_whole {
                self.problem(format!("mail {mail} was acknowledged before its end"));
            }
            return;
        }
        self.mails[mail].verdict = Verdict::Refused { code };
        let copies = self.mails[mail].recipients.iter().map(|rcpt| &rcpt.address);
        let taken = copies.filter(|address| self.copies.contains_key(*address)).count();
        if taken > 0 && !self.mails[mail].is_uncertain {
            self.problem(format!("mail {mail} was refused ({code}) after it was delivered"));
        }
    }

    // ---- what the gateway does -----------------------------------------------------------

    /// Its log stopped for good while it held this recipient's mail.
    pub fn uncertain(&mut self, address: &str) {
        if let Some((mail, _)) = numbers(address) {
            self.mails[mail].is_uncertain = true;
        }
    }

    /// An attempt for these recipients begins, or they are given up without one.
    pub fn attempt(&mut self, keys: &[Key]) {
        for key in keys {
            match self.fates.get(key) {
                Some(Fate::Kept { at_us }) => {
                    let at_us = *at_us;
                    self.problem(format!("{key} is attempted though it was done at {at_us} us"));
                }
                Some(Fate::Told { life }) if *life == self.life => {
                    self.problem(format!("{key} is attempted twice in one life"));
                }
                _ => {
                    self.fates.remove(key);
                }
            }
        }
    }

    /// The attempt for these begins now; the log may have said that they wait longer.
    pub fn attempt_is_due(&mut self, keys: &[Key], now_unix_ms: u64) {
        for key in keys {
            if let Some(due) = self.dues.remove(key)
                && due.is_kept
                && now_unix_ms < due.until_unix_ms
            {
                let early_ms = due.until_unix_ms - now_unix_ms;
                self.problem(format!("{key} is attempted {early_ms} ms before its time"));
            }
        }
    }

    /// These are to wait, which is on its way to the log.
    pub fn is_to_wait(&mut self, keys: &[Key], until_unix_ms: u64) {
        for key in keys {
            let due = Due { until_unix_ms, since_us: self.now_us, is_kept: false };
            self.dues.insert(key.clone(), due);
        }
    }

    /// The log says that these wait.
    pub fn waits(&mut self, keys: &[Key], until_unix_ms: u64) {
        for key in keys {
            if let Some(due) = self.dues.get_mut(key)
                && due.until_unix_ms == until_unix_ms
            {
                due.is_kept = true;
            }
        }
    }

    /// A transaction with these recipients begins: what an earlier one over the same connection
    /// came to is past.
    pub fn asks(&mut self, link: LinkId, keys: &[Key]) {
        for key in keys {
            self.beliefs.remove(&(link, key.clone()));
        }
    }

    /// What the gateway made of a transaction's recipient.
    pub fn outcome(&mut self, link: LinkId, key: &Key, outcome: &RecipientOutcome) {
        let flushes = next_hop(key).is_some_and(|site| self.flushes[site]);
        let belief = match outcome {
            RecipientOutcome::Delivered(_) => Belief::Delivered,
            RecipientOutcome::Deferred(deferral) if deferral.possible_duplicate() => {
                Belief::Unknowable
            }
            // Out of step as it is, it may have taken it for all we know.
            RecipientOutcome::Deferred(Deferral::OneFlightRefused(_)) if flushes => {
                Belief::Unknowable
            }
            RecipientOutcome::Deferred(Deferral::Connection(_)) => Belief::NotDelivered,
            _ => Belief::NotDelivered,
        };
        self.beliefs.insert((link, key.clone()), belief);
        let is_copied = self.copies.get(key).is_some_and(|links| links.contains(&link));
        self.compare(link, key, belief, is_copied);
    }

    fn compare(&mut self, link: LinkId, key: &Key, belief: Belief, is_copied: bool) {
        match belief {
            Belief::Delivered if !is_copied => {
                self.problem(format!("{key} counts as delivered over {link:?} and is not"));
            }
            Belief::NotDelivered if is_copied => {
                self.problem(format!("{key} was taken over {link:?} and counts as not delivered"));
            }
            _ => {}
        }
    }

    /// Its fate is decided, and the record of it appended.
    pub fn told(&mut self, key: &Key) {
        self.fates.insert(key.clone(), Fate::Told { life: self.life });
    }

    /// The record is in the log.
    pub fn kept(&mut self, key: &Key) {
        self.fates.insert(key.clone(), Fate::Kept { at_us: self.now_us });
    }

    /// The log says that a message is over, which went to these.
    pub fn ended(&mut self, keys: &[Key]) {
        for key in keys.iter().filter(|key| !self.is_decided(key)).cloned().collect::<Vec<_>>() {
            self.problem(format!("the message is over, and the end of {key} is not in the log"));
        }
    }

    /// The gateway runs, with so many workers.
    pub fn started(&mut self, cores: usize) {
        self.down_since_us = None;
        if self.cores > 0 && self.cores != cores {
            self.happens("a restart has another number of workers");
        }
        self.cores = cores;
    }

    // ---- what rots -----------------------------------------------------------------------

    /// A message of a client has this name in the gateway.
    pub fn named_by(&mut self, id: MessageId, recipients: &[String]) {
        if let Some((mail, _)) = recipients.first().and_then(|address| numbers(address)) {
            self.mails_by_id.insert(id, mail);
        }
    }

    /// Of a message nobody can read any more who sent it to these.
    pub fn rots(&mut self, keys: &[Key]) {
        if let Some((mail, _)) = keys.first().and_then(|key| numbers(key)) {
            self.mails[mail].is_rotten = true;
        }
    }

    /// The gateway has given up on a message of which it cannot tell anybody.
    pub fn set_aside(&mut self, id: MessageId) {
        match (self.rot, self.mails_by_id.get(&id)) {
            (Rot::Heads(_), Some(&mail)) if self.mails[mail].is_rotten => {}
            // Two reads with a wrong bit each, at the very end of its time.
            (Rot::Reads(_), Some(&mail)) => self.mails[mail].is_rotten = true,
            (Rot::Reads(_), None) => {}
            _ => self.problem(format!("{id} is set aside, and could be read")),
        }
    }

    /// Whether reads may bring what was not written.
    pub fn may_be_damaged(&self) -> bool {
        self.rot != Rot::None
    }

    /// Whether something has rotten on the disk, and may take along what shares its batch.
    pub fn has_rotten(&self) -> bool {
        self.rot.stays() && self.happened.contains_key("a message rots")
    }

    // ---- bounds --------------------------------------------------------------------------

    /// The gateway writes a notice.
    pub fn notice_appended(&mut self) {
        self.notices += 1;
    }

    /// Recipients of which the gateway may have something in its memory.
    pub fn unfinished(&self) -> usize {
        let sent = self.mails.iter().filter(|mail| mail.whole_us.is_some());
        let recipients = sent.flat_map(|mail| &mail.recipients);
        let kept = |key: &Key| matches!(self.fates.get(key), Some(Fate::Kept { .. }));
        let left = recipients.filter(|rcpt| !kept(&rcpt.address)).count();
        let ended = self.fates.iter().filter(|(key, _)| key.contains('/') && kept(key)).count();
        left + self.notices.saturating_sub(ended)
    }

    // ---- lives ---------------------------------------------------------------------------

    /// Its compactions wrote so many messages again.
    pub fn moved(&mut self, messages: usize) {
        self.moved += messages;
    }

    /// The gateway ended without a word.
    pub fn crash(&mut self, power: bool, has_failed: bool) {
        let (now_us, is_down) = (self.now_us, self.down_since_us.is_some());
        let is_volatile = power && self.durability == Durability::Os;
        self.dues.retain(|_, due| {
            due.is_kept |= now_us > due.since_us + WRITTEN_US && !has_failed && !is_down;
            // A power cut may take what `os` alone had promised.
            due.is_kept && !is_volatile
        });
        // While it is down nobody syncs what was only written.
        let down_us = *self.down_since_us.get_or_insert(self.now_us);
        if power {
            self.power_cuts_us.push(down_us);
            let (life, now_us) = (self.life, down_us);
            if self.durability == Durability::Os {
                for fate in self.fates.values_mut() {
                    if matches!(fate, Fate::Kept { at_us } if at_us.saturating_add(OS_WINDOW_US) > now_us)
                    {
                        *fate = Fate::Told { life };
                    }
                }
            }
        }
        self.life += 1;
    }

    // ---- the balance ---------------------------------------------------------------------

    /// Whether every acknowledged recipient has its fate in the log.
    pub fn is_settled(&self) -> bool {
        self.acknowledged()
            .all(|(mail, rcpt)| self.is_decided(&rcpt.address) || self.may_be_lost(mail))
    }

    fn is_decided(&self, key: &Key) -> bool {
        match self.fates.get(key) {
            Some(Fate::Kept { .. }) => true,
            // A crash came between the write of its DONE and the news of it.
            Some(Fate::Told { life }) => *life < self.life,
            None => false,
        }
    }

    fn acknowledged(&self) -> impl Iterator<Item = (&Mail, &Rcpt)> {
        let accepted =
            self.mails.iter().filter(|mail| matches!(mail.verdict, Verdict::Accepted { .. }));
        accepted
            .flat_map(|mail| mail.recipients.iter().map(move |rcpt| (mail, rcpt)))
            .filter(|(_, rcpt)| rcpt.is_accepted)
    }

    /// Who is acknowledged and not decided, for a report.
    pub fn undecided(&self) -> Vec<&Key> {
        let keys = self.acknowledged().map(|(_, rcpt)| &rcpt.address);
        keys.filter(|key| !self.is_decided(key)).collect()
    }

    /// Whether recovery may miss what the log had not promised to keep: chunks, or with
    /// `durability = "os"` messages, in a segment that a failure closed before their sync.
    pub fn may_find_damage(&self) -> bool {
        (self.has_bad_disk && !self.power_cuts_us.is_empty()) || self.has_rotten()
    }

    /// Looks at everything once the world has come to rest.
    pub fn balance(&mut self) {
        let mut wrong = Vec::new();
        for (mail, rcpt) in self.acknowledged() {
            let address = &rcpt.address;
            if self.may_be_lost(mail) {
                continue;
            }
            if !self.is_decided(address) {
                let fate = self.fates.get(address);
                wrong.push(format!("{address} was acknowledged; its fate is {fate:?}"));
            }
            let is_shown = self.copies.contains_key(address) || self.named.contains_key(address);
            // Of these nobody is told, so it must do that they were refused or had their time.
            let is_quiet = mail.sender.is_none() || rcpt.wish == Wish::Never;
            let had_time =
                mail.whole_us.is_some_and(|at| at + LIFETIME_S * 1_000_000 <= self.now_us);
            if !is_shown && !(is_quiet && (self.is_refused(address) || had_time)) {
                wrong.push(format!("{address} was acknowledged; neither a copy nor a notice came"));
            }
            let is_told = self.relayed.contains_key(address) || self.named.contains_key(address);
            let wants = mail.sender.is_some() && rcpt.wish == Wish::Everything;
            if wants && !is_told && !next_hop(address).is_some_and(|site| self.offers_dsn[site]) {
                wrong.push(format!("{address} was relayed, and nobody told its sender"));
            }
        }
        wrong.into_iter().for_each(|words| self.problem(words));
    }

    fn may_be_lost(&self, mail: &Mail) -> bool {
        if mail.is_rotten {
            return true;
        }
        let Verdict::Accepted { at_us } = mail.verdict else { return false };
        self.durability == Durability::Os
            && self.power_cuts_us.iter().any(|&cut| {
                mail.whole_us.is_some_and(|whole| whole <= cut) && cut < at_us + OS_WINDOW_US
            })
    }

    /// What happened, in numbers.
    pub fn tally(&self) -> Tally {
        let verdicts = |wanted: fn(&Verdict) -> bool| {
            self.mails.iter().filter(|mail| wanted(&mail.verdict)).count()
        };
        let copies = self.copies.values().map(Vec::len).sum::<usize>();
        Tally {
            mails: self.mails.len(),
            accepted: verdicts(|verdict| matches!(verdict, Verdict::Accepted { .. })),
            refused: verdicts(|verdict| matches!(verdict, Verdict::Refused { .. })),
            copies,
            repeated: copies - self.copies.len(),
            named: self.named.len(),
            late: self.late.len(),
            relayed: self.relayed.len(),
            lives: self.life as usize + 1,
            moved: self.moved,
            happened: self.happened.clone(),
        }
    }
}

/// What happened in one world or several.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    pub mails: usize,
    pub accepted: usize,
    pub refused: usize,
    /// Copies that next hops took, and those of them that were not the first.
    pub copies: usize,
    pub repeated: usize,
    /// Recipients that were named in notices.
    pub named: usize,
    /// Recipients that were told of as late, and as relayed.
    pub late: usize,
    pub relayed: usize,
    pub lives: usize,
    /// Messages that compactions wrote again.
    pub moved: usize,
    /// What else happened, and how often.
    pub happened: BTreeMap<&'static str, usize>,
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Tally) {
        self.mails += other.mails;
        self.accepted += other.accepted;
        self.refused += other.refused;
        self.copies += other.copies;
        self.repeated += other.repeated;
        self.named += other.named;
        self.late += other.late;
        self.relayed += other.relayed;
        self.lives += other.lives;
        self.moved += other.moved;
        for (what, count) in other.happened {
            *self.happened.entry(what).or_default() += count;
        }
    }
}
