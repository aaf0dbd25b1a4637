//! The account of a campaign: what was acknowledged against what came of it.
//!
//! The ledgers of the load generator say what arrived at the next hops; the Maildirs are read and
//! entered beside them.  The generator's own comparison (`mailrace-loadtest ledger`) counts and
//! finds damage.  It is strict where several copies make it vague: a message is complete only if
//! some of its copies together are exactly its recipients, each once.
//!
//! A copy too many is explained if a crash lies between the two: the gateway died after the next
//! hop's reply and before its record of it was durable.  So within one life of the process nobody
//! may get a message twice, and in a Maildir never.  A notice of failure is in the same commit as
//! the end of its cause, and may not come twice either.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs;
use std::path::Path;
use std::time::UNIX_EPOCH;

use mailrace_loadtest::ledger::compare::compare;
use mailrace_loadtest::ledger::record::{LedgerFile, Record, Side, Verdict, add_recipient, read};
use mailrace_loadtest::message::MessageId;
use mailrace_loadtest::message::inspect::Inspection;
use mailrace_loadtest::report::books::Books as Printed;

use super::load::Source;
use super::world::{ARRIVED, World};
use crate::gateway::files_in;

/// Copies of one message of which all combinations are tried.
const COPIES_MAX: usize = 12;
/// Ids that are shown of each kind.
const SHOWN: usize = 10;

/// From a start of the gateway to the next one, before which all that it had sent was read.
#[derive(Debug, Clone, Copy)]
pub struct Life {
    /// Its start, in nanoseconds since 1970.
    pub begun_ns: u64,
    /// Its end, likewise.
    pub crashed_ns: u64,
}

/// What a campaign came to.
#[derive(Debug, Default)]
pub struct Books {
    /// Messages whose final reply was 2xx.
    pub acknowledged: u64,
    /// Of them, those that nobody takes, so that they had to bounce.
    pub to_bounce: u64,
    /// Messages without a final reply.
    pub unanswered: u64,
    /// Acknowledged, and not everybody got it, nor a notice its sender.
    pub lost: Vec<String>,
    /// Arrived, and not as it was sent; or a file in a Maildir that is no whole message.
    pub damaged: Vec<String>,
    /// Refused with a final reply, and yet arrived.
    pub refused_but_arrived: u64,
    /// Notices about mail that everybody takes.
    pub wrong_notices: Vec<String>,
    /// Messages of which somebody got more than one copy, with a crash between them.
    pub duplicated: u64,
    /// Messages that came twice without one.
    pub unexplained: Vec<String>,
    /// From the arrival of a copy that came again to the crash, in milliseconds, sorted.
    pub before_crash_ms: Vec<u64>,
    /// The generator's comparison of all that was to arrive.
    pub printed: String,
}

/// A message in a Maildir.
struct Delivered {
    id: MessageId,
    mailbox: String,
    is_intact: bool,
    time_ns: u64,
}

/// A notice of failure.
struct Notice {
    id: MessageId,
    recipients: Vec<String>,
}

impl Books {
    /// Reads all ledgers and the Maildirs below `mail`; the world has ended.
    pub fn of(world: &World, mail: &Path, lives: &[Life]) -> Books {
        let mut books = Books::default();
        let (delivered, notices) = books.read_maildirs(mail);
        let mut arrived = Vec::new();
        let is_kept = |name: &str| world.file(name).exists();
        for name in ARRIVED.into_iter().filter(|name| is_kept(name)) {
            arrived.extend(records(world, name, Side::Sink));
        }
        arrived.extend(books.enter(&delivered));
        let mut sent = Vec::new();
        for source in Source::GOOD.into_iter().filter(|source| is_kept(source.ledger())) {
            sent.extend(records(world, source.ledger(), Side::Source));
        }
        let mut refused = Vec::new();
        if is_kept(Source::Refused.ledger()) {
            refused = records(world, Source::Refused.ledger(), Side::Source);
        }
        // So that the generator can be asked again, by hand.
        write(world, "sent", Side::Source, &sent);
        write(world, "arrived", Side::Sink, &arrived);
        books.judge_good(&mut sent, &mut arrived, lives);
        books.judge_refused(&refused, &notices);
        books
    }

    /// Whether no promise was broken.
    pub fn is_clean(&self) -> bool {
        self.lost.is_empty()
            && self.damaged.is_empty()
            && self.refused_but_arrived == 0
            && self.wrong_notices.is_empty()
            && self.unexplained.is_empty()
    }

    /// What the summary tells, line by line.
    pub fn figures(&self) -> [(&'static str, u64); 11] {
        let before_crash_ms = &self.before_crash_ms;
        let count = |of: &[String]| of.len() as u64;
        [
            ("acknowledged", self.acknowledged),
            ("of them, nobody's, to be bounced", self.to_bounce),
            ("without an answer, for the crash came first", self.unanswered),
            ("LOST", count(&self.lost)),
            ("DAMAGED", count(&self.damaged)),
            ("REFUSED but arrived", self.refused_but_arrived),
            ("WRONG notices", count(&self.wrong_notices)),
            ("UNEXPLAINED copies", count(&self.unexplained)),
            ("duplicated at next hops by a crash", self.duplicated),
            ("ms from such a copy to the crash, median", median(before_crash_ms)),
            ("at most", before_crash_ms.last().copied().unwrap_or(0)),
        ]
    }

    /// Which messages they are, of those that there should be none of.
    pub fn faults(&self) -> String {
        let mut text = String::new();
        for (what, of) in [
            ("lost", &self.lost),
            ("damaged", &self.damaged),
            ("wrong notices", &self.wrong_notices),
            ("unexplained", &self.unexplained),
        ] {
            if !of.is_empty() {
                text += &format!("{what}: {}\n", of[..of.len().min(SHOWN)].join(", "));
            }
        }
        text
    }

    fn judge_good(&mut self, sent: &mut [Record], arrived: &mut [Record], lives: &[Life]) {
        let found = compare(sent, arrived);
        self.printed = Printed::new(&found, 0).to_string();
        self.acknowledged += found.acknowledged;
        self.unanswered += found.unknown;
        self.refused_but_arrived += found.refused_but_arrived.count;
        assert_eq!(found.repeated_ids, 0, "the books themselves are wrong");
        let mut copies_of: HashMap<MessageId, Vec<Record>> = HashMap::new();
        for record in arrived.iter() {
            if record.verdict == Verdict::Damaged {
                self.damaged.push(record.id.to_string());
            }
            copies_of.entry(record.id).or_default().push(*record);
        }
        for message in sent.iter() {
            let copies = copies_of.get(&message.id).map_or(&[][..], Vec::as_slice);
            if message.verdict == Verdict::Acknowledged && !is_complete(message, copies) {
                self.lost.push(message.id.to_string());
            }
            self.judge_copies(message, copies, lives);
        }
    }

    /// Counts copies too many, and looks for a crash between them.
    fn judge_copies(&mut self, message: &Record, copies: &[Record], lives: &[Life]) {
        let recipients = |copies: &mut dyn Iterator<Item = &Record>| {
            copies.map(|copy| u32::from(copy.recipients)).sum::<u32>()
        };
        let sent = u32::from(message.recipients);
        let is_doubled = |came: u32| came > sent;
        // Without a final reply we do not know for whom it was taken.
        let is_known = message.verdict == Verdict::Acknowledged;
        if !is_known || !is_doubled(recipients(&mut copies.iter())) {
            return;
        }
        let mut in_life: BTreeMap<usize, Vec<&Record>> = BTreeMap::new();
        for copy in copies {
            let life = lives.partition_point(|life| life.begun_ns <= copy.time_ns);
            in_life.entry(life).or_default().push(copy);
        }
        if in_life.values().any(|copies| is_doubled(recipients(&mut copies.iter().copied()))) {
            self.unexplained.push(message.id.to_string());
            return;
        }
        self.duplicated += 1;
        if let Some((life, copies)) = in_life.first_key_value()
            && let Some(life) = life.checked_sub(1).and_then(|life| lives.get(life))
            && let Some(last) = copies.iter().map(|copy| copy.time_ns).max()
        {
            self.before_crash_ms.push(life.crashed_ns.saturating_sub(last) / 1_000_000);
            self.before_crash_ms.sort_unstable();
        }
    }

    /// All of it must have bounced, for each recipient and once.
    fn judge_refused(&mut self, refused: &[Record], notices: &[Notice]) {
        let mut told: HashMap<MessageId, BTreeSet<&str>> = HashMap::new();
        for notice in notices {
            let of_message = told.entry(notice.id).or_default();
            for recipient in &notice.recipients {
                if !of_message.insert(recipient) {
                    self.unexplained.push(format!("two notices about {}", notice.id));
                }
            }
        }
        let ours: HashSet<MessageId> = refused.iter().map(|record| record.id).collect();
        let wrong = told.keys().filter(|id| !ours.contains(id));
        self.wrong_notices.extend(wrong.map(ToString::to_string));
        for record in refused {
            match record.verdict {
                Verdict::Acknowledged => {}
                Verdict::Unknown => {
                    self.unanswered += 1;
                    continue;
                }
                _ => {
                    self.refused_but_arrived += u64::from(told.contains_key(&record.id));
                    continue;
                }
            }
            self.acknowledged += 1;
            self.to_bounce += 1;
            let recipients = told.get(&record.id).into_iter().flatten();
            let sum = recipients.fold(0, |sum, path| add_recipient(sum, path.as_bytes()));
            if sum != record.recipients_sum {
                self.lost.push(format!("{} (its notice)", record.id));
            }
        }
    }

    /// Enters what lies in Maildirs into the books.
    fn enter(&mut self, delivered: &[Delivered]) -> Vec<Record> {
        let mut seen = HashSet::new();
        let record = |message: &Delivered| {
            if !seen.insert((message.id, message.mailbox.clone())) {
                self.unexplained.push(format!("{} twice in {}", message.id, message.mailbox));
            }
            Record {
                id: message.id,
                time_ns: message.time_ns,
                recipients_sum: add_recipient(0, message.mailbox.as_bytes()),
                recipients: 1,
                verdict: if message.is_intact { Verdict::Intact } else { Verdict::Damaged },
                address: 0,
            }
        };
        delivered.iter().map(record).collect()
    }

    fn read_maildirs(&mut self, mail: &Path) -> (Vec<Delivered>, Vec<Notice>) {
        let (mut delivered, mut notices) = (Vec::new(), Vec::new());
        for domain in files_in(mail) {
            for local in files_in(&domain) {
                for file in files_in(&local.join("new")) {
                    let octets = fs::read(&file).expect("a message");
                    let name = |path: &Path| {
                        path.file_name().expect("a name").to_string_lossy().into_owned()
                    };
                    let mailbox = format!("{}@{}", name(&local), name(&domain));
                    let found = match name(&domain).as_str() {
                        "home.test" => Notice::read(&octets).map(|notice| notices.push(notice)),
                        _ => Delivered::read(&octets, mailbox, &file)
                            .map(|message| delivered.push(message)),
                    };
                    if found.is_none() {
                        self.damaged.push(format!("{} ({} octets)", file.display(), octets.len()));
                    }
                }
            }
        }
        (delivered, notices)
    }
}

impl Delivered {
    fn read(octets: &[u8], mailbox: String, file: &Path) -> Option<Delivered> {
        let mut inspection = Inspection::new();
        inspection.take(octets);
        let found = inspection.finish();
        let modified = fs::metadata(file).ok()?.modified().ok()?;
        let time_ns = modified.duration_since(UNIX_EPOCH).ok()?.as_nanos() as u64;
        Some(Delivered { id: found.id?, mailbox, is_intact: found.is_intact, time_ns })
    }
}

impl Notice {
    /// A whole one; its end is the end of the last part.
    fn read(octets: &[u8]) -> Option<Notice> {
        let text = String::from_utf8_lossy(octets);
        let lines = || text.split("\r\n");
        let value = |line: &str, field: &str| {
            let value = line.strip_prefix(field).map(|value| value.trim().to_owned());
            value.filter(|value| !value.is_empty())
        };
        let id = lines().find_map(|line| value(line, "X-Race-Id:"))?;
        let recipients = lines().filter_map(|line| value(line, "Final-Recipient: rfc822;"));
        let is_whole = text.ends_with("--\r\n");
        let id = MessageId::parse(id.as_bytes()).filter(|_| is_whole)?;
        Some(Notice { id, recipients: recipients.collect() })
    }
}

fn median(sorted: &[u64]) -> u64 {
    sorted.get(sorted.len() / 2).copied().unwrap_or(0)
}

/// Whether some of the copies together have exactly the message's recipients, each once.
fn is_complete(message: &Record, copies: &[Record]) -> bool {
    let copies = &copies[..copies.len().min(COPIES_MAX)];
    (1..1_u32 << copies.len()).any(|chosen| {
        let chosen = copies.iter().enumerate().filter(|(place, _)| chosen >> place & 1 == 1);
        let start = (0u32, 0u32);
        let (count, sum) = chosen.fold(start, |(count, sum), (_, copy)| {
            (count + u32::from(copy.recipients), sum.wrapping_add(copy.recipients_sum))
        });
        (count, sum) == (u32::from(message.recipients), message.recipients_sum)
    })
}

fn records(world: &World, name: &str, side: Side) -> Vec<Record> {
    let path = world.file(name);
    let book = read(&path, side).unwrap_or_else(|error| panic!("{name}: {error}"));
    assert_eq!(book.unreadable, 0, "{name} is torn");
    book.records
}

fn write(world: &World, name: &str, side: Side, records: &[Record]) {
    let file = LedgerFile::append(&world.file(name), side).expect("a new ledger");
    let mut writer = file.writer();
    records.iter().for_each(|record| writer.record(*record));
    writer.flush();
    writer.check().expect("room for it");
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;
    const LIVES: [Life; 2] = [
        Life { begun_ns: 0, crashed_ns: 10 * SECOND },
        Life { begun_ns: 11 * SECOND, crashed_ns: 20 * SECOND },
    ];

    fn of(verdict: Verdict, recipients: &[&str], second: u64) -> Record {
        let sum = recipients.iter().fold(0, |sum, path| add_recipient(sum, path.as_bytes()));
        Record {
            id: MessageId(7),
            time_ns: second * SECOND,
            recipients_sum: sum,
            recipients: recipients.len() as u16,
            verdict,
            address: 0,
        }
    }

    /// `(lost, duplicated, unexplained)` of one message to a, b and c.
    fn counts(copies: &[(&[&str], u64)]) -> (usize, u64, usize) {
        let mut sent = [of(Verdict::Acknowledged, &["a", "b", "c"], 1)];
        let mut arrived: Vec<_> =
            copies.iter().map(|(whom, second)| of(Verdict::Intact, whom, *second)).collect();
        let mut books = Books::default();
        books.judge_good(&mut sent, &mut arrived, &LIVES);
        (books.lost.len(), books.duplicated, books.unexplained.len())
    }

    #[test]
    fn copies_are_told_from_parts_and_need_a_crash_between_them() {
        let table: [(&[(&[&str], u64)], _); 7] = [
            (&[(&["a", "b", "c"], 2)], (0, 0, 0)),
            (&[(&["a", "b"], 2), (&["c"], 3)], (0, 0, 0)),
            (&[(&["a", "b"], 2)], (1, 0, 0)),
            (&[(&["a", "b", "c"], 9), (&["a", "b", "c"], 12)], (0, 1, 0)),
            (&[(&["a", "b", "c"], 8), (&["a", "b", "c"], 9)], (0, 0, 1)),
            // As many as there should be, and yet somebody has none.
            (&[(&["a", "b"], 9), (&["a"], 12)], (1, 0, 0)),
            (&[(&["a", "b"], 9), (&["a", "b"], 12)], (1, 1, 0)),
        ];
        for (copies, expected) in table {
            assert_eq!(counts(copies), expected, "{copies:?}");
        }
    }
}
