//! A client's session: `smtp::server` and `inbound::intake` driven as `inbound` drives them, but
//! that every wait is a state.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mailrace::config::Service;
use mailrace::inbound::intake::{Intake, Room};
use mailrace::inbound::relay::{self, Facts};
use mailrace::inbound::step::{Step, step, stored};
use mailrace::inbound::trace;
use mailrace::message::{Durability, MessageId, Origin};
use mailrace::runtime::buffer;
use mailrace::smtp::reply::Refusal;
use mailrace::smtp::server::{ReceivedMessage, Server};
use mailrace::spool::appender::ChunkTicket;
use mailrace::spool::{
    ChunkBuffer, ChunkPlace, CommitError, NewBody, NewMessage, Refused, SettledRecord, Ticket,
};
use mailrace::worker::log::Filing;

use super::gateway::Errand;
use super::plan::Plant;
use super::scene::{End, LinkId, Scene, Task};
use super::upload::Upload;
use super::worker::{Shared, Waiting, Worker, refusal};

/// See the module's text.
pub struct Session {
    link: LinkId,
    server: Server,
    intake: Intake,
    /// What has arrived and was not read.
    socket: VecDeque<u8>,
    has_ended: bool,
    upload: Option<Upload>,
    /// The upload of a message that the log did not keep.
    abandoned: Option<MessageId>,
    wait: Wait,
    /// The deadline that is on the agenda.
    armed: Option<Instant>,
}

/// What it waits for.
enum Wait {
    /// The server's word, or octets.
    Nothing,
    /// An empty chunk.
    Chunk,
    /// Room for this chunk among those on their way.
    Push(ChunkBuffer),
    /// The last chunks of a message.
    Places(ReceivedMessage),
    /// A commit.
    Commit { ticket: Ticket, id: MessageId, recipients: Vec<String>, is_large: bool },
}

const CLIENT: &str = "127.0.0.9:1024";

impl Session {
    pub fn new(shared: &Shared, scene: &Scene, link: LinkId) -> Session {
        Session {
            link,
            server: Server::new(shared.server.clone(), scene.now()),
            intake: Intake::default(),
            socket: VecDeque::new(),
            has_ended: false,
            upload: None,
            abandoned: None,
            wait: Wait::Nothing,
            armed: None,
        }
    }

    /// Octets from the client, or its end.
    pub fn arrive(&mut self, _scene: &mut Scene, octets: Option<Vec<u8>>) {
        match octets {
            Some(octets) => self.socket.extend(octets),
            None => self.has_ended = true,
        }
    }

    /// Whether an entry of the agenda still means something: a later deadline may have come.
    pub fn is_due(&self, scene: &Scene) -> bool {
        !matches!(self.wait, Wait::Nothing) || self.server.deadline() <= scene.now()
    }

    /// Its deadline, or something else that time brings.
    pub fn look(&mut self, scene: &mut Scene) {
        self.armed = None;
        if matches!(self.wait, Wait::Nothing) && self.server.deadline() <= scene.now() {
            self.server.handle_timeout();
        }
    }

    /// A record of its own is in the log, or is not.
    pub fn settled(&mut self, scene: &mut Scene, record: SettledRecord) {
        if let Wait::Commit { ticket, id, recipients, is_large } = &self.wait
            && *ticket == record.ticket
        {
            if record.result == Err(CommitError::Failed) {
                recipients.iter().for_each(|address| scene.books.uncertain(address));
            }
            let id = *id;
            // Without its MESSAGE nobody needs the chunks.
            scene.happens(match record.result {
                Ok(_) => "a message is committed",
                Err(CommitError::Full) => "a message finds the disk full",
                Err(CommitError::Failed) => "a message finds that the log has stopped",
                Err(_) => "a commit fails and is made void",
            });
            self.abandoned = record.result.err().filter(|_| *is_large).map(|_| id);
            self.wait = Wait::Nothing;
            let result = record.result.map(|_| (id, scene.plan.durability)).map_err(refusal);
            return self.stored(scene.now(), result);
        }
        let Some(upload) = &mut self.upload else { return };
        for (chunk, place) in &mut upload.pending {
            if chunk.ticket == record.ticket {
                match record.result {
                    Ok(at) => {
                        let ChunkTicket { octets, crc32c, .. } = *chunk;
                        *place = Some(ChunkPlace { place: at, octets, crc32c });
                    }
                    Err(error) => upload.failed = Some(refusal(error)),
                }
            }
        }
        let is_known = |(_, place): &(ChunkTicket, Option<ChunkPlace>)| place.is_some();
        while upload.pending.front().is_some_and(is_known)
            || (upload.failed.is_some() && !upload.pending.is_empty())
        {
            upload.places.extend(upload.pending.pop_front().and_then(|(_, place)| place));
        }
    }

    /// Does as much as it can; `false` once it is over.
    pub fn go_on(&mut self, scene: &mut Scene, worker: &mut Worker, shared: &Shared) -> bool {
        self.abandoned.take().into_iter().for_each(|id| worker.appender.abandon_upload(id));
        loop {
            match std::mem::replace(&mut self.wait, Wait::Nothing) {
                Wait::Nothing => match step(&mut self.server, &mut self.intake, scene.now()) {
                    Step::Read => {
                        self.flush(scene);
                        if !self.read() {
                            if self.has_ended && self.socket.is_empty() {
                                return false;
                            }
                            if matches!(self.wait, Wait::Nothing) {
                                self.arm(scene, shared, self.server.deadline());
                                return true;
                            }
                        }
                    }
                    Step::Flush => self.flush(scene),
                    Step::FullChunk => self.wait = Wait::Chunk,
                    Step::DropBody => {
                        self.intake.drop_body();
                        self.end(worker);
                    }
                    Step::CheckRecipient => self.check_recipient(scene.now(), shared),
                    Step::Store => self.store(scene, worker, shared),
                    Step::StartQueue => unreachable!("no client of the simulation may send ETRN"),
                    Step::LookUp => unreachable!("nor may one send VRFY or EXPN"),
                    Step::Introduce => unreachable!("no client of the simulation is a proxy"),
                    Step::StartTls => panic!("no simulated listener has TLS"),
                    Step::Authenticate | Step::CheckSender => {
                        panic!("no simulated listener has AUTH")
                    }
                    Step::Close => {
                        self.flush(scene);
                        return false;
                    }
                },
                Wait::Chunk => match worker.appender.chunk_buffer() {
                    Ok(empty) => {
                        if self.upload.is_none() {
                            let id = worker.ids.next(scene.now_unix_ms());
                            self.upload = Some(Upload::new(id));
                        }
                        if let Some(full) = self.intake.next_chunk(empty, self.server.in_body()) {
                            self.wait = Wait::Push(full);
                        }
                    }
                    Err(Refused::Busy) => {
                        self.wait = Wait::Chunk;
                        self.arm(scene, shared, scene.now() + Duration::from_millis(100));
                        return true;
                    }
                    Err(_) => self.server.close(Refusal::StorageFailed),
                },
                Wait::Push(chunk) => {
                    let upload = self.upload.as_mut().expect("made with its first chunk");
                    if upload.pending.len() >= mailrace::limits::CHUNKS_IN_FLIGHT {
                        self.wait = Wait::Push(chunk);
                        return true;
                    }
                    upload.push(worker, chunk, self.link);
                }
                Wait::Places(message) => {
                    let upload = self.upload.as_ref().expect("only large messages wait so");
                    if !upload.pending.is_empty() {
                        self.wait = Wait::Places(message);
                        return true;
                    }
                    self.append(scene, worker, shared, message);
                }
                wait @ Wait::Commit { .. } => {
                    self.wait = wait;
                    return true;
                }
            }
        }
    }

    /// It is over: what it had uploaded is given up.
    pub fn end(&mut self, worker: &mut Worker) {
        if let Some(upload) = self.upload.take() {
            worker.appender.abandon_upload(upload.id);
        }
    }

    fn arm(&mut self, scene: &mut Scene, shared: &Shared, deadline: Instant) {
        if self.armed != Some(deadline) {
            self.armed = Some(deadline);
            scene.at(deadline, Task::Gateway(shared.life, Errand::Session(self.link)));
        }
    }

    fn flush(&mut self, scene: &mut Scene) {
        self.server.take_refusals();
        let replies = self.server.replies().take();
        scene.send(self.link, End::Taker, &replies);
    }

    fn check_recipient(&mut self, now: Instant, shared: &Shared) {
        let client: SocketAddr = CLIENT.parse().expect("an address");
        let facts = Facts {
            service: Service::Relay,
            client: client.ip(),
            is_balancer: false,
            certificate: None,
            authenticated: false,
        };
        let path = self.server.recipient_in_question().expect("the server asks");
        let verdict = relay::decide(&shared.config, facts, path);
        let verdict = verdict.and_then(|route| match shared.stats.refusal() {
            None => Ok(route),
            Some(error) => Err(refusal(error)),
        });
        self.server.recipient_checked(now, verdict);
    }

    /// Reads what the socket has; `false` if that is nothing, or if there is no room.
    fn read(&mut self) -> bool {
        match self.intake.make_room(self.server.in_body()) {
            Room::NeedsChunk => {
                self.wait = Wait::Chunk;
                false
            }
            Room::Chunk => {
                let (mut chunk, kept) = self.intake.take_chunk().expect("there is one");
                let room = (chunk.capacity() - chunk.len()).min(buffer::LARGE);
                let octets = self.take(room);
                chunk.push(&octets);
                self.intake.put_chunk(chunk, kept);
                !octets.is_empty()
            }
            Room::Buffer => {
                let mut buffer = self.intake.take_buffer();
                let octets = self.take(buffer.room());
                buffer.push(&octets);
                self.intake.put_buffer(buffer);
                !octets.is_empty()
            }
        }
    }

    fn take(&mut self, room: usize) -> Vec<u8> {
        let octets = room.min(self.socket.len());
        self.socket.drain(..octets).collect()
    }

    // ---- storing -------------------------------------------------------------------------

    fn store(&mut self, scene: &mut Scene, worker: &mut Worker, shared: &Shared) {
        let message = self.server.take_message().expect("the server has one");
        let Some(upload) = &mut self.upload else {
            return self.append(scene, worker, shared, message);
        };
        if let Some(last) = self.intake.last_chunk()
            && !last.is_empty()
        {
            // With the one before it still on its way it would wait; nothing is gained by that
            // here, since no chunk follows.
            upload.push(worker, last, self.link);
        }
        self.wait = Wait::Places(message);
    }

    fn append(
        &mut self,
        scene: &mut Scene,
        worker: &mut Worker,
        shared: &Shared,
        message: ReceivedMessage,
    ) {
        let upload = self.upload.take();
        if let Some(upload) = &upload
            && let Some(refusal) = upload.failed.clone()
        {
            worker.appender.abandon_upload(upload.id);
            return self.stored(scene.now(), Err(refusal));
        }
        let id = match &upload {
            Some(upload) => upload.id,
            None => worker.ids.next(scene.now_unix_ms()),
        };
        let trace = self.trace(shared, id, &message);
        let address: SocketAddr = CLIENT.parse().expect("an address");
        let body = match &upload {
            None => NewBody::Inline(self.intake.small_body()),
            Some(upload) => NewBody::Chunks(&upload.places),
        };
        let new = NewMessage {
            id,
            durability: scene.plan.durability,
            envelope: &message.envelope,
            origin: &Origin {
                client: address,
                listener: address,
                helo: "client.example".into(),
                accepted_unix_ms: scene.now_unix_ms(),
            },
            summary: &message.summary,
            trace: trace.as_bytes(),
            not_before_unix_ms: None,
            extensions: &[],
            body,
        };
        let result = worker.appender.append_message(&new, scene.now());
        let ticket = match result {
            Ok(ticket) => ticket,
            Err(refused) => {
                if let Some(upload) = upload {
                    worker.appender.abandon_upload(upload.id);
                }
                return self.stored(scene.now(), Err(Refusal::from(refused)));
            }
        };
        self.intake.drop_body();
        let groups = shared.sites.group(&message.routes, &message.envelope);
        let filing = Filing { id, groups };
        worker.waiting.insert(ticket, Waiting::Message { link: self.link, filing });
        let path = |recipient: &mailrace::message::Recipient| recipient.path.as_str().to_owned();
        let recipients: Vec<String> = message.envelope.recipients.iter().map(path).collect();
        scene.books.named_by(id, &recipients);
        scene.trace(|| format!("{:?} appends {id} for {recipients:?}", self.link));
        if scene.plan.plant == Plant::EarlyReply {
            return self.stored(scene.now(), Ok((id, scene.plan.durability)));
        }
        let is_large = upload.is_some();
        self.wait = Wait::Commit { ticket, id, recipients, is_large };
        scene.tempt(50);
    }

    fn stored(&mut self, now: Instant, result: Result<(MessageId, Durability), Refusal>) {
        stored(&mut self.server, &mut self.intake, now, result);
    }

    fn trace(&self, shared: &Shared, id: MessageId, message: &ReceivedMessage) -> String {
        let client = self.server.client();
        let mut text = String::new();
        trace::Received {
            helo: client.map_or("", |client| &client.helo),
            client: Some(CLIENT.parse().expect("an address")),
            hostname: &shared.config.hostname,
            extended: true,
            secured: None,
            authenticated: false,
            id,
            recipients: message.named(),
            smtputf8: message.envelope.parameters.smtputf8,
            date: "Mon, 1 Jun 2026 00:00:00 +0000",
        }
        .write(&mut text);
        text
    }
}
