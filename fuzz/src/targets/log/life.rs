//! A log without threads on a disk in memory, and what it has accepted.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mailrace::message::{
    BodyFlags, BodySummary, Durability, Envelope, MailParameters, MessageId, Notify, Origin,
    Recipient,
};
use mailrace::smtp::address::{ForwardPath, ReversePath, Utf8};
use mailrace::spool::sim_disk::SimDisk;
use mailrace::spool::{
    Appender, AppenderOptions, ChunkPlace, Completion, Defer, DeferState, Done, Log, LogOptions,
    NewBody, NewMessage, Recipients, RecordPlace, SegmentNo, SettledRecord, Ticket,
};

use super::super::Input;
use super::Kept;

/// Small segments, and compaction soon.
pub const OPTIONS: LogOptions = LogOptions {
    segment_bytes: 64 * 1024,
    spares: 3,
    spares_max: 4,
    compact_after_ticks: 2,
    compact_octets_per_tick: 1 << 20,
    mistake: None,
};

/// A message that was accepted, and what became of it.
pub struct Accepted {
    pub envelope: Envelope,
    pub done: BTreeSet<u16>,
    body: Vec<u8>,
    segment: SegmentNo,
}

impl Accepted {
    pub fn is_ended(&self) -> bool {
        self.done.len() == self.envelope.recipients.len()
    }

    pub fn summary(&self) -> BodySummary {
        BodySummary {
            octets: self.body.len() as u64,
            crc32c: crc32c::crc32c(&self.body),
            longest_line: 0,
            flags: BodyFlags::DATA,
        }
    }
}

/// A run of the log.
pub struct Life {
    disk: SimDisk,
    log: Log<SimDisk>,
    appender: Appender,
    now: Instant,
    random: u64,
    accepted: BTreeMap<u64, Accepted>,
}

impl Life {
    pub fn on(disk: &SimDisk) -> Life {
        Life::with(disk, BTreeMap::new())
    }

    fn with(disk: &SimDisk, mut accepted: BTreeMap<u64, Accepted>) -> Life {
        let mut random = disk.operations().wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut kept = Kept::default();
        let (log, _) = mailrace::spool::recover(
            Arc::new(disk.clone()),
            OPTIONS,
            Arc::default(),
            &mut || draw(&mut random),
            &mut kept,
        )
        .expect("a sound log");
        // Where a message stood before it was moved is known to the log that moved it, and no more
        // to the next one.
        for found in kept.0 {
            let mail = accepted.get_mut(&found.message.id.0).expect("nobody sent it");
            mail.segment = found.place.segment;
        }
        let options = AppenderOptions {
            batch_bytes: 32 * 1024,
            buffers: 3,
            chunk_buffers: 2,
            recent: 1,
            ..AppenderOptions::new(0)
        };
        let appender = Appender::new(options);
        let now = Instant::now();
        let mut life = Life { disk: disk.clone(), log, appender, now, random, accepted };
        life.do_chores();
        life
    }

    /// The process dies.
    pub fn end(self) -> BTreeMap<u64, Accepted> {
        self.accepted
    }

    pub fn step(mut self, input: &mut Input<'_>) -> Life {
        match input.octet() % 10 {
            0..=2 => self.accept(input),
            3 => self.accept_in_chunks(input),
            4..=6 => self.done(input),
            7 => self.defer(input),
            8 => {
                let completions = self.log.tick();
                self.take(completions);
                self.do_chores();
            }
            _ => return self.restarted(input.octet() & 1 == 0),
        }
        self
    }

    fn restarted(self, by_power_cut: bool) -> Life {
        if by_power_cut {
            self.disk.restart();
        }
        Life::with(&self.disk, self.accepted)
    }

    fn accept(&mut self, input: &mut Input<'_>) {
        let mail = self.mail(input);
        let ticket = self.append(&mail, NewBody::Inline(&mail.body));
        self.filed(mail, ticket);
    }

    fn accept_in_chunks(&mut self, input: &mut Input<'_>) {
        let mail = self.mail(input);
        let mut chunks = Vec::new();
        for (index, part) in mail.body.chunks(mail.body.len().div_ceil(2).max(1)).enumerate() {
            let mut chunk = self.appender.chunk_buffer().expect("all are committed");
            chunk.push(part);
            let id = MessageId(self.next_id());
            let ticket = self.appender.append_chunk(chunk, id, index as u32);
            let place = self.place(ticket.ticket);
            chunks.push(ChunkPlace { place, octets: ticket.octets, crc32c: ticket.crc32c });
        }
        if chunks.is_empty() {
            return;
        }
        let ticket = self.append(&mail, NewBody::Chunks(&chunks));
        self.filed(mail, ticket);
    }

    fn mail(&self, input: &mut Input<'_>) -> Accepted {
        let recipient = |no| Recipient {
            path: ForwardPath::parse(format!("<r{no}@example.org>").as_bytes(), Utf8::Refused)
                .expect("an address"),
            notify: Notify::UNSPECIFIED,
            orcpt: None,
        };
        let envelope = Envelope {
            reverse_path: ReversePath::Null,
            parameters: MailParameters::default(),
            recipients: (0..1 + input.below(3)).map(recipient).collect(),
        };
        let (octets, salt) = (input.below(256) * 80, self.next_id());
        let body = (0..octets).map(|at| (at as u64 * 7 + salt) as u8).collect();
        Accepted { envelope, done: BTreeSet::new(), body, segment: SegmentNo(0) }
    }

    fn next_id(&self) -> u64 {
        self.accepted.keys().next_back().map_or(1, |last| last + 1)
    }

    fn append(&mut self, mail: &Accepted, body: NewBody<'_>) -> Ticket {
        let id = self.next_id();
        let address = ([192, 0, 2, 1], 25).into();
        let origin = Origin {
            client: address,
            listener: address,
            helo: "client".into(),
            accepted_unix_ms: id,
        };
        let message = NewMessage {
            id: MessageId(id),
            durability: Durability::Fsync,
            envelope: &mail.envelope,
            origin: &origin,
            summary: &mail.summary(),
            trace: b"Received: by test\r\n",
            not_before_unix_ms: None,
            extensions: &[],
            body,
        };
        self.appender.append_message(&message, self.now).expect("all are committed")
    }

    fn filed(&mut self, mail: Accepted, ticket: Ticket) {
        let segment = self.place(ticket).segment;
        let id = self.next_id();
        self.accepted.insert(id, Accepted { segment, ..mail });
    }

    /// Commits, and gives where a record went.
    fn place(&mut self, ticket: Ticket) -> RecordPlace {
        let settled = self.commit();
        let record = settled.iter().find(|record| record.ticket == ticket);
        record.expect("it settles with its commit").result.expect("the disk is well")
    }

    /// One that has not ended, if there is one.
    fn some_live(&self, input: &mut Input<'_>) -> Option<u64> {
        let live: Vec<u64> =
            self.accepted.iter().filter(|(_, mail)| !mail.is_ended()).map(|(&id, _)| id).collect();
        let choice = input.below(256);
        (!live.is_empty()).then(|| live[choice % live.len()])
    }

    fn done(&mut self, input: &mut Input<'_>) {
        let Some(id) = self.some_live(input) else { return };
        let mail = self.accepted.get_mut(&id).expect("it is one of them");
        let place = input.below(mail.envelope.recipients.len()) as u16;
        let everybody = input.octet() & 1 == 0;
        match everybody {
            true => mail.done.extend(0..mail.envelope.recipients.len() as u16),
            false => drop(mail.done.insert(place)),
        }
        let some = [place];
        let recipients = if everybody { Recipients::All } else { Recipients::Some(&some) };
        let (segment, last) = (mail.segment, mail.is_ended());
        self.appender.append_done(&Done { id: MessageId(id), segment, recipients, last }, self.now);
        self.commit();
    }

    fn defer(&mut self, input: &mut Input<'_>) {
        let Some(id) = self.some_live(input) else { return };
        let defer = Defer {
            id: MessageId(id),
            segment: self.accepted[&id].segment,
            recipients: Recipients::All,
            state: DeferState::Deferred,
            next_attempt_unix_ms: id,
            attempts: u16::from(input.octet()),
            delay_told: false,
            reply: "450 4.2.0 later",
        };
        self.appender.append_defer(&defer, self.now);
        self.commit();
    }

    fn commit(&mut self) -> Vec<SettledRecord> {
        let mut settled = Vec::new();
        self.now += Duration::from_millis(20);
        while let Some(batch) = self.appender.seal(self.now) {
            let completions = self.log.commit(vec![batch]);
            settled.extend(self.take(completions));
            settled.extend(self.do_chores());
        }
        settled
    }

    fn take(&mut self, completions: Vec<Completion>) -> Vec<SettledRecord> {
        let now = self.now;
        let settle = |completion| self.appender.completed(completion, now).records;
        completions.into_iter().flat_map(settle).collect()
    }

    fn do_chores(&mut self) -> Vec<SettledRecord> {
        let mut settled = Vec::new();
        while let Some(chore) = self.log.poll_chore() {
            let result = chore.perform(&self.disk, &mut || draw(&mut self.random));
            let completions = self.log.chore_done(result);
            settled.extend(self.take(completions));
        }
        settled
    }
}

/// An output of xorshift; never 0 from a state that is not.
fn draw(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}
