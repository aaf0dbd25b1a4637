//! A receiving server's side of SMTP, without I/O: bytes in; replies, pauses and ends out.
//!
//! Everything that came is handled before anything is answered, so that a group of commands is
//! answered by one write.  Lenient with what clients send; strict about where a message begins
//! and ends.

use std::time::Duration;

use fastrand::Rng;

use super::manners::{Manners, ReplyText, draw};
use super::world::{Extension, Port, Treatment, World};
use crate::ledger::record::{Record, Verdict, add_recipient, now_ns};
use crate::message::inspect::Inspection;
use crate::report::sink::Counts;
use crate::wire::command::Command;
use crate::wire::data::{DataScanner, Scan};

/// The longest command that is read.
pub const LINE_MAX: usize = 4_096;
/// Recipients of one message.
const RECIPIENTS_MAX: u16 = 10_000;

/// The greeting.
pub const GREETING: &[u8] = b"220 sink.loadtest.example ESMTP\r\n";
/// To who comes when there is no room.
pub const TOO_MANY: &[u8] =
    b"421 4.7.0 sink.loadtest.example Too many connections, try again later\r\n";

/// Where a session takes place.
pub struct Surroundings<'a> {
    /// How domains behave.
    pub world: &'a World,
    /// How the port behaves.
    pub port: &'a Port,
    /// Who treats what is for no domain that has manners of its own.
    pub whose: Treatment,
    /// The IPv4 address that the connection was made to; 0 where it is none.
    pub address: u32,
    /// The sink has a certificate.
    pub offers_tls: bool,
    /// Chance, by the thread's seed.
    pub random: &'a mut Rng,
    /// What is counted.
    pub counts: &'a mut Counts,
    /// Gets a record for each arrival, where books are kept.
    pub ledger: Option<&'a mut dyn FnMut(Record)>,
}

/// What a session does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Writes the replies, then reads more.
    Read,
    /// Writes the replies, throws away what else has come, and shakes hands.
    StartTls,
    /// Waits, then calls again; the replies may wait too.
    Pause(Duration),
    /// Writes the replies and closes.
    Close,
    /// Resets the connection at once.
    Reset,
}

/// The state of a session.
#[derive(Debug)]
pub struct Dialogue {
    state: State,
    /// Where the client comes from, for greylisting.
    client: u64,
    messages: u32,
    is_secured: bool,
    envelope: Option<Envelope>,
    /// A record that is to come behind the next one.
    late: Option<Record>,
}

#[derive(Debug)]
enum State {
    Commands,
    Data { scanner: DataScanner, arrival: Arrival },
    Chunk { left: u64, last: bool, arrival: Option<Arrival> },
}

/// An open mail transaction.
#[derive(Debug, Default)]
struct Envelope {
    from: Vec<u8>,
    recipients: u16,
    recipients_sum: u32,
    /// Who treats the first recipient treats the message.
    whose: Treatment,
    /// The part of the message that came in chunks before the last.
    begun: Option<Arrival>,
}

/// A message that is coming in.
#[derive(Debug)]
struct Arrival {
    octets: u64,
    /// Looks at it, where books are kept.
    inspection: Option<Inspection>,
    /// The connection breaks before the end.
    breaks: bool,
}

impl Dialogue {
    /// A client has been greeted.
    pub fn new(client: u64) -> Dialogue {
        let (messages, is_secured) = Default::default();
        let state = State::Commands;
        Dialogue { state, client, messages, is_secured, envelope: None, late: None }
    }

    /// From here on the connection is encrypted, and what was said before is forgotten.
    pub fn secure(&mut self) {
        self.is_secured = true;
        self.envelope = None;
    }

    /// Messages that were taken so far.
    pub fn messages(&self) -> u32 {
        self.messages
    }

    /// The connection has ended: enters what was kept back.
    pub fn ended(&mut self, around: &mut Surroundings) {
        if let (Some(late), Some(ledger)) = (self.late.take(), &mut around.ledger) {
            ledger(Record { time_ns: now_ns(), ..late });
        }
    }

    /// Handles what has come; replies are added to `out`.  Gives how many octets are done with
    /// and what is next; what is left must be shown again, with more behind it after a read.
    pub fn take(
        &mut self,
        bytes: &[u8],
        around: &mut Surroundings,
        out: &mut Vec<u8>,
    ) -> (usize, Next) {
        let mut used = 0;
        loop {
            let rest = &bytes[used..];
            let (octets, next) = match &mut self.state {
                State::Commands => match memchr::memchr(b'\n', rest) {
                    None if rest.len() < LINE_MAX => return (used, Next::Read),
                    None => {
                        out.extend_from_slice(b"500 5.5.2 Line too long\r\n");
                        return (used, Next::Close);
                    }
                    Some(end) => {
                        let line = rest[..end].strip_suffix(b"\r").unwrap_or(&rest[..end]);
                        let next = self.command(line, around, out);
                        let is_liar = around.port.lie.contains(&Extension::Pipelining);
                        // A server that only says that it pipelines throws away what came along.
                        let octets = if is_liar { rest.len() } else { end + 1 };
                        (octets, next)
                    }
                },
                State::Data { scanner, arrival } => {
                    match scanner.scan(rest, |piece| arrival.take(piece)) {
                        Scan::More(octets) => {
                            return (used + octets, arrival.goes_on(around));
                        }
                        Scan::End(octets) => (octets, self.message_ended(around, out)),
                    }
                }
                State::Chunk { left, arrival, .. } => {
                    let octets = rest.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                    *left -= octets as u64;
                    if let Some(arrival) = arrival {
                        arrival.take(&rest[..octets]);
                    }
                    if *left > 0 {
                        let next = arrival.as_ref().map_or(Next::Read, |it| it.goes_on(around));
                        return (used + octets, next);
                    }
                    (octets, self.message_ended(around, out))
                }
            };
            used += octets;
            match next {
                None => {}
                Some(next) => return (used, next),
            }
        }
    }

    /// One command; None to go on with the next.
    fn command(
        &mut self,
        line: &[u8],
        around: &mut Surroundings,
        out: &mut Vec<u8>,
    ) -> Option<Next> {
        let reply: &[u8] = match Command::parse(line) {
            Command::Rcpt(path) => return self.recipient(path, around, out),
            Command::Mail(path) => return self.originator(path, around, out),
            Command::Data => match &self.envelope {
                Some(envelope) if envelope.recipients > 0 && envelope.begun.is_none() => {
                    let arrival = Arrival::new(envelope.whose, around);
                    self.state = State::Data { scanner: DataScanner::new(), arrival };
                    b"354 End data with <CR><LF>.<CR><LF>\r\n"
                }
                Some(_) => b"554 5.5.1 No valid recipients\r\n",
                None => b"503 5.5.1 Need MAIL first\r\n",
            },
            Command::Bdat { octets, last } => {
                self.begin_chunk(octets, last, around);
                // An empty chunk is complete at once.
                return (octets == 0).then(|| self.message_ended(around, out)).flatten();
            }
            Command::Ehlo(_) => {
                self.envelope = None;
                out.extend_from_slice(&around.port.ehlo(around.offers_tls && !self.is_secured));
                return None;
            }
            Command::Helo(_) => {
                self.envelope = None;
                b"250 sink.loadtest.example\r\n"
            }
            Command::Rset => {
                self.envelope = None;
                b"250 2.0.0 Ok\r\n"
            }
            Command::StartTls if around.offers_tls && !self.is_secured => {
                out.extend_from_slice(b"220 2.0.0 Ready to start TLS\r\n");
                return Some(Next::StartTls);
            }
            Command::StartTls => b"503 5.5.1 No TLS here and now\r\n",
            Command::Idle => b"250 2.0.0 Ok\r\n",
            Command::Quit => {
                out.extend_from_slice(b"221 2.0.0 Bye\r\n");
                return Some(Next::Close);
            }
            Command::Malformed => b"501 5.5.4 Syntax error in arguments\r\n",
            Command::Unknown => b"500 5.5.2 Command not recognised\r\n",
        };
        out.extend_from_slice(reply);
        None
    }

    fn originator(
        &mut self,
        path: &[u8],
        around: &mut Surroundings,
        out: &mut Vec<u8>,
    ) -> Option<Next> {
        if around.port.messages_per_connection.is_some_and(|most| self.messages >= most) {
            out.extend_from_slice(b"421 4.7.0 Too many messages on this connection\r\n");
            return Some(Next::Close);
        }
        if self.envelope.is_some() {
            out.extend_from_slice(b"503 5.5.1 Sender already given\r\n");
            return None;
        }
        self.envelope = Some(Envelope { from: path.to_vec(), ..Envelope::default() });
        out.extend_from_slice(b"250 2.1.0 Ok\r\n");
        None
    }

    fn recipient(
        &mut self,
        path: &[u8],
        around: &mut Surroundings,
        out: &mut Vec<u8>,
    ) -> Option<Next> {
        let Some(envelope) = &mut self.envelope else {
            out.extend_from_slice(b"503 5.5.1 Need MAIL first\r\n");
            return None;
        };
        let whose = around.world.find(path, around.whose);
        let manners = around.world.manners(whose.manners);
        let refusal: Option<&[u8]> =
            if let Some(ReplyText(text)) = draw(&manners.rcpt, around.random) {
                Some(text)
            } else if manners.greylist.is_some_and(|wait| {
                !around.world.is_known(self.client, &envelope.from, path, wait.0)
            }) {
                Some(b"450 4.7.1 Greylisted, please try again later\r\n")
            } else if manners.rate.is_some_and(|rate| !around.world.is_within_rate(whose, rate)) {
                Some(b"451 4.7.1 Too many messages, slow down\r\n")
            } else if envelope.recipients >= RECIPIENTS_MAX {
                Some(b"452 4.5.3 Too many recipients\r\n")
            } else {
                None
            };
        if let Some(refusal) = refusal {
            around.counts.recipients_refused += 1;
            out.extend_from_slice(refusal);
            return refusal.starts_with(b"421").then_some(Next::Close);
        }
        if envelope.recipients == 0 {
            envelope.whose = whose;
        }
        if whose.site.is_some() && whose.site != around.whose.site {
            around.counts.misrouted += 1;
        }
        envelope.recipients += 1;
        if around.ledger.is_some() {
            envelope.recipients_sum = add_recipient(envelope.recipients_sum, path);
        }
        out.extend_from_slice(b"250 2.1.5 Ok\r\n");
        None
    }

    /// A chunk's octets come in any case (RFC 3030 section 2); without an envelope they are
    /// thrown away.
    fn begin_chunk(&mut self, left: u64, last: bool, around: &mut Surroundings) {
        let is_liar = around.port.lie.contains(&Extension::Chunking);
        let envelope = self.envelope.as_mut().filter(|one| one.recipients > 0 && !is_liar);
        let arrival = envelope.map(|envelope| {
            let begun = envelope.begun.take();
            begun.unwrap_or_else(|| Arrival::new(envelope.whose, around))
        });
        self.state = State::Chunk { left, last, arrival };
    }

    /// The data or a chunk is complete.
    fn message_ended(&mut self, around: &mut Surroundings, out: &mut Vec<u8>) -> Option<Next> {
        match std::mem::replace(&mut self.state, State::Commands) {
            State::Commands => None,
            State::Data { arrival, .. } => self.arrived(arrival, around, out),
            State::Chunk { arrival: None, .. } => {
                // The transaction is over: what follows it in a flight must not count as its end.
                self.envelope = None;
                out.extend_from_slice(match around.port.lie.contains(&Extension::Chunking) {
                    true => b"502 5.5.1 BDAT is not implemented\r\n",
                    false => b"503 5.5.1 No valid recipients\r\n",
                });
                None
            }
            State::Chunk { last: true, arrival: Some(arrival), .. } => {
                self.arrived(arrival, around, out)
            }
            State::Chunk { arrival, .. } => {
                let envelope = self.envelope.as_mut().expect("a chunk that is kept has one");
                envelope.begun = arrival;
                out.extend_from_slice(b"250 2.0.0 Chunk taken\r\n");
                None
            }
        }
    }

    /// The whole message is there.
    fn arrived(
        &mut self,
        arrival: Arrival,
        around: &mut Surroundings,
        out: &mut Vec<u8>,
    ) -> Option<Next> {
        let envelope = self.envelope.take().expect("there is no message without an envelope");
        let manners = around.world.manners(envelope.whose.manners);
        if arrival.breaks {
            around.counts.broken += 1;
            return Some(Next::Reset);
        }
        let pause = manners.latency.map(|range| Next::Pause(range.draw(around.random)));
        if let Some(ReplyText(refusal)) = draw(&manners.data, around.random) {
            around.counts.refused += 1;
            out.extend_from_slice(refusal);
            return if refusal.starts_with(b"421") { Some(Next::Close) } else { pause };
        }
        self.messages += 1;
        around.counts.messages += 1;
        around.counts.recipients += u64::from(envelope.recipients);
        around.counts.octets += arrival.octets;
        if let Some(inspection) = arrival.inspection {
            self.enter(inspection, &envelope, manners, around);
        }
        out.extend_from_slice(b"250 2.0.0 Ok: taken\r\n");
        pause
    }

    /// Enters an arrival into the books, or falsifies them as the world wants it.
    fn enter(
        &mut self,
        inspection: Inspection,
        envelope: &Envelope,
        manners: &Manners,
        around: &mut Surroundings,
    ) {
        let found = inspection.finish();
        let Some(id) = found.id else {
            around.counts.unmarked += 1;
            return;
        };
        let mut happens = |share: f64| share > 0.0 && around.random.f64() < share;
        let (is_lost, is_damaged) = (happens(manners.lose), happens(manners.damage));
        let (is_doubled, is_late) = (happens(manners.double), happens(manners.reorder));
        if is_lost {
            around.counts.lost += 1;
            return;
        }
        let is_intact = found.is_intact && !is_damaged;
        around.counts.damaged += u64::from(!is_intact);
        let record = Record {
            id,
            time_ns: now_ns(),
            recipients_sum: envelope.recipients_sum,
            recipients: envelope.recipients,
            verdict: if is_intact { Verdict::Intact } else { Verdict::Damaged },
            address: around.address,
        };
        if is_late && self.late.is_none() {
            self.late = Some(record);
            return;
        }
        let Some(ledger) = &mut around.ledger else { return };
        ledger(record);
        if is_doubled {
            around.counts.doubled += 1;
            ledger(record);
        }
        if let Some(late) = self.late.take() {
            around.counts.reordered += 1;
            // Behind the other one, whatever the clock's steps are.
            ledger(Record { time_ns: now_ns().max(record.time_ns + 1), ..late });
        }
    }
}

impl Arrival {
    fn new(whose: Treatment, around: &mut Surroundings) -> Arrival {
        let share = around.world.manners(whose.manners).drop;
        Arrival {
            octets: 0,
            inspection: around.ledger.is_some().then(Inspection::new),
            breaks: share > 0.0 && around.random.f64() < share,
        }
    }

    /// What follows a part of it that is not the last.
    fn goes_on(&self, around: &mut Surroundings) -> Next {
        if !self.breaks {
            return Next::Read;
        }
        around.counts.broken += 1;
        Next::Reset
    }

    fn take(&mut self, piece: &[u8]) {
        self.octets += piece.len() as u64;
        if let Some(inspection) = &mut self.inspection {
            inspection.take(piece);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::world::tests::world;
    use super::*;

    struct Played {
        replies: String,
        next: Next,
        counts: Counts,
        records: Vec<Record>,
    }

    /// Plays `stream` to a dialogue in reads of at most `length` octets.
    fn play(world: &World, stream: &[u8], length: usize) -> Played {
        let port = world.ports[0].clone();
        let (mut dialogue, mut counts) = (Dialogue::new(1), Counts::default());
        let (mut out, mut records, mut held) = (Vec::new(), Vec::new(), Vec::new());
        let mut random = Rng::with_seed(5);
        let mut next = Next::Read;
        for piece in stream.chunks(length) {
            held.extend_from_slice(piece);
            loop {
                let mut keep = |record| records.push(record);
                let mut around = Surroundings {
                    world,
                    port: &port,
                    whose: Treatment::default(),
                    address: 0,
                    offers_tls: false,
                    random: &mut random,
                    counts: &mut counts,
                    ledger: Some(&mut keep),
                };
                let used;
                (used, next) = dialogue.take(&held, &mut around, &mut out);
                held.drain(..used);
                match next {
                    Next::Pause(_) => {}
                    Next::Read => break,
                    Next::Close | Next::Reset | Next::StartTls => {
                        let replies = String::from_utf8(out).unwrap();
                        return Played { replies, next, counts, records };
                    }
                }
            }
        }
        Played { replies: String::from_utf8(out).unwrap(), next, counts, records }
    }

    fn codes(played: &Played) -> String {
        let lines = played.replies.lines().filter(|line| line.as_bytes()[3] == b' ');
        lines.map(|line| &line[..3]).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_session_is_the_same_at_every_split() {
        let world = world("").unwrap();
        let stream = b"EHLO c\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\nSubject: x\r\n\r\n..a\r\n\
            .\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nBDAT 4\r\na: bBDAT 4 LAST\r\n\r\n\r\nMAIL FROM:<>\r\n\
            BDAT 6 LAST\r\nQUIT\r\nRSET\r\nDATA\r\nNOOP\r\nWHAT\r\nMAIL a\r\nQUIT\r\n";
        let whole = play(&world, stream, stream.len());
        assert_eq!(
            codes(&whole),
            "250 250 250 354 250 250 250 250 250 250 503 250 503 250 500 501 221"
        );
        assert_eq!((whole.counts.messages, whole.counts.unmarked), (2, 2));
        assert!(whole.records.is_empty(), "neither carries an id");
        assert_eq!(whole.counts.octets, 18 + 8);
        for length in 1..stream.len() {
            let played = play(&world, stream, length);
            assert_eq!(played.replies, whole.replies, "{length}");
            assert_eq!((played.next, played.counts), (Next::Close, whole.counts), "{length}");
        }
    }

    const TWO: &[u8] = b"EHLO c\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\n.\r\n\
        MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nBDAT 2 LAST\r\n\r\nQUIT\r\n";

    #[test]
    fn the_world_refuses_breaks_and_lies() {
        for (text, expected, next) in [
            (
                "[default]\ndata = [{ share = 1, reply = \"spam\" }]",
                "250 250 250 354 554 250 250 554 221",
                Next::Close,
            ),
            (
                "[default]\ndata = [{ share = 1, reply = \"rate-limited\" }]",
                "250 250 250 354 421",
                Next::Close,
            ),
            (
                "[default]\nrcpt = [{ share = 1, reply = \"unknown-user\" }]",
                "250 250 550 554 500 503 550 503 221",
                Next::Close,
            ),
            ("[default]\ngreylist = \"1h\"", "250 250 450 554 500 503 450 503 221", Next::Close),
            ("[default]\ndrop = 1.0", "250 250 250 354", Next::Reset),
            (
                "[[port]]\nlisten = \"127.0.0.1:1\"\nmessages_per_connection = 1",
                "250 250 250 354 250 421",
                Next::Close,
            ),
            (
                "[[port]]\nlisten = \"127.0.0.1:1\"\nlie = [\"CHUNKING\"]",
                "250 250 250 354 250 250 250 502 221",
                Next::Close,
            ),
            ("[[port]]\nlisten = \"127.0.0.1:1\"\nlie = [\"PIPELINING\"]", "250", Next::Read),
        ] {
            let played = play(&world(text).unwrap(), TWO, TWO.len());
            assert_eq!((codes(&played).as_str(), played.next), (expected, next), "{text}");
        }
    }

    #[test]
    fn latency_is_a_pause_before_the_reply() {
        let world = world("[default]\nlatency = \"5ms\"").unwrap();
        let mut counts = Counts::default();
        let mut around = Surroundings {
            world: &world,
            port: &world.ports[0],
            whose: Treatment::default(),
            address: 0,
            offers_tls: false,
            random: &mut Rng::with_seed(1),
            counts: &mut counts,
            ledger: None,
        };
        let mut out = Vec::new();
        let (_, next) = Dialogue::new(1).take(TWO, &mut around, &mut out);
        assert_eq!(next, Next::Pause(Duration::from_millis(5)));
        assert!(out.ends_with(b"250 2.0.0 Ok: taken\r\n"));
    }

    #[test]
    fn a_line_without_end_is_refused() {
        let world = world("").unwrap();
        let played = play(&world, &[b'x'; LINE_MAX * 3], 1_000);
        assert_eq!((codes(&played).as_str(), played.next), ("500", Next::Close));
    }
}
