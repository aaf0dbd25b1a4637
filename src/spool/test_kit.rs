//! What the tests of the spool share: messages from numbers, a log without threads.

use std::sync::Arc;
use std::time::Instant;

use super::chore::Chore;
use super::format::message::{NewBody, NewMessage};
use super::recovery::{RecoveredMessage, RecoveryVisitor};
use super::sim_disk::SimDisk;
use super::*;
use crate::message::*;
use crate::smtp::address::{ForwardPath, Mailbox, ReversePath};

/// Small segments, so that a test sees many of them.
pub(crate) const OPTIONS: LogOptions = LogOptions {
    segment_bytes: 64 * 1024,
    spares: 3,
    spares_max: 4,
    compact_after_ticks: u32::MAX,
    compact_octets_per_tick: 1 << 20,
    mistake: None,
};

/// A message's parts, from which a [`NewMessage`] borrows.
pub(crate) struct Mail {
    pub(crate) id: MessageId,
    pub(crate) durability: Durability,
    pub(crate) envelope: Envelope,
    pub(crate) origin: Origin,
    pub(crate) body: Vec<u8>,
}

impl Mail {
    pub(crate) fn new(id: u64, recipients: usize, octets: usize) -> Mail {
        let recipient = |no| {
            let text = format!("r{no}@example.org");
            let at = text.find('@').unwrap() as u16;
            let path = ForwardPath::Mailbox(Mailbox::restored(&text, at).unwrap());
            Recipient { path, notify: Notify::UNSPECIFIED, orcpt: None }
        };
        let body = (0..octets).map(|at| (at as u64 * 7 + id) as u8).collect();
        Mail {
            id: MessageId(id),
            durability: Durability::Fsync,
            envelope: Envelope {
                reverse_path: ReversePath::Null,
                parameters: MailParameters::default(),
                recipients: (0..recipients).map(recipient).collect(),
            },
            origin: Origin {
                client: "192.0.2.1:1".parse().unwrap(),
                listener: "192.0.2.2:25".parse().unwrap(),
                helo: "client".into(),
                accepted_unix_ms: id,
            },
            body,
        }
    }

    pub(crate) fn summary(&self) -> BodySummary {
        BodySummary {
            octets: self.body.len() as u64,
            crc32c: crc32c::crc32c(&self.body),
            longest_line: 0,
            flags: BodyFlags::DATA,
        }
    }

    pub(crate) fn with<T>(&self, body: NewBody<'_>, f: impl FnOnce(&NewMessage<'_>) -> T) -> T {
        f(&NewMessage {
            id: self.id,
            durability: self.durability,
            envelope: &self.envelope,
            origin: &self.origin,
            summary: &self.summary(),
            trace: b"Received: by test\r\n",
            not_before_unix_ms: None,
            extensions: &[],
            body,
        })
    }

    pub(crate) fn append(&self, appender: &mut Appender, now: Instant) -> Result<Ticket, Refused> {
        self.with(NewBody::Inline(&self.body), |message| appender.append_message(message, now))
    }
}

pub(crate) fn appender() -> Appender {
    let options = AppenderOptions {
        batch_bytes: 16 * 1024,
        buffers: 4,
        chunk_buffers: 2,
        recent: 1,
        ..AppenderOptions::new(0)
    };
    Appender::new(options)
}

/// Keeps what recovery says.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    pub(crate) messages: Vec<RecoveredMessage>,
}

impl RecoveryVisitor for Kept {
    fn message(&mut self, message: RecoveredMessage) {
        self.messages.push(message);
    }
}

impl Kept {
    pub(crate) fn ids(&self) -> Vec<u64> {
        self.messages.iter().map(|message| message.message.id.0).collect()
    }
}

/// A log on a simulated disk, with its chores done at once, and one appender.
pub(crate) struct Bench {
    pub(crate) disk: SimDisk,
    pub(crate) log: Log<SimDisk>,
    pub(crate) appender: Appender,
    pub(crate) report: RecoveryReport,
    pub(crate) kept: Kept,
    pub(crate) now: Instant,
    pub(crate) options: LogOptions,
    /// Chores are left in the log while this is set.
    pub(crate) is_lazy: bool,
    random: u64,
}

impl Bench {
    pub(crate) fn on(disk: &SimDisk) -> Result<Bench, RecoveryError> {
        Bench::with(disk, OPTIONS)
    }

    pub(crate) fn with(disk: &SimDisk, options: LogOptions) -> Result<Bench, RecoveryError> {
        let mut bench = Bench::idle_with(disk, options)?;
        bench.do_chores();
        Ok(bench)
    }

    /// Recovers and does nothing more.
    pub(crate) fn idle_on(disk: &SimDisk) -> Result<Bench, RecoveryError> {
        Bench::idle_with(disk, OPTIONS)
    }

    fn idle_with(disk: &SimDisk, options: LogOptions) -> Result<Bench, RecoveryError> {
        // Two lives of a disk must not share a generation, and a test must repeat itself.
        let mut random = disk.operations().wrapping_mul(0x1234_5678_9abc_def1) | 1;
        let mut kept = Kept::default();
        let (log, report) = recover(
            Arc::new(disk.clone()),
            options,
            Arc::default(),
            &mut || next(&mut random),
            &mut kept,
        )?;
        Ok(Bench {
            disk: disk.clone(),
            log,
            appender: appender(),
            report,
            kept,
            now: Instant::now(),
            options,
            is_lazy: false,
            random,
        })
    }

    pub(crate) fn new() -> Bench {
        Bench::on(&SimDisk::new(1)).unwrap()
    }

    /// Seals whatever there is, commits it, and gives what settled.
    pub(crate) fn commit(&mut self) -> Vec<SettledRecord> {
        let mut settled = Vec::new();
        self.now += std::time::Duration::from_millis(20);
        while let Some(batch) = self.appender.seal(self.now) {
            let done = self.log.commit(vec![batch]);
            settled.extend(self.take(done));
            settled.extend(self.do_chores());
        }
        settled
    }

    pub(crate) fn take(&mut self, done: Vec<Completion>) -> Vec<SettledRecord> {
        let mut settled = Vec::new();
        for completion in done {
            settled.extend(self.appender.completed(completion, self.now).records);
        }
        settled
    }

    pub(crate) fn do_chores(&mut self) -> Vec<SettledRecord> {
        let mut settled = Vec::new();
        while !self.is_lazy
            && let Some(chore) = self.log.poll_chore()
        {
            settled.extend(self.do_chore(chore));
        }
        settled
    }

    pub(crate) fn do_chore(&mut self, chore: Chore) -> Vec<SettledRecord> {
        let random = &mut self.random;
        let result = chore.perform(&self.disk, &mut || next(random));
        let done = self.log.chore_done(result);
        self.take(done)
    }

    /// Appends a message and commits it; gives its place.
    pub(crate) fn accept(&mut self, mail: &Mail) -> RecordPlace {
        mail.append(&mut self.appender, self.now).unwrap();
        self.commit().last().unwrap().result.unwrap()
    }

    pub(crate) fn done(&mut self, id: u64, place: RecordPlace) {
        let segment = place.segment;
        let recipients = Recipients::All;
        let done = Done { id: MessageId(id), segment, recipients, last: true };
        self.appender.append_done(&done, self.now);
        self.commit();
    }

    /// The process dies; the power goes too if `power`.  A new one recovers.
    pub(crate) fn reborn(self, power: bool) -> Bench {
        if power {
            self.disk.restart();
        }
        Bench::with(&self.disk, self.options).unwrap()
    }

    /// A second passes.
    pub(crate) fn tick(&mut self) {
        let done = self.log.tick();
        self.take(done);
        self.do_chores();
    }
}

pub(crate) fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}
