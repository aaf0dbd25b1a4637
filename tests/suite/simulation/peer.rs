//! The next hops, with SMTP of their own: at every reply one may refuse for now or for good, say
//! 421, hang up, or fall silent; also after it has taken a message and before it says so.  It may
//! also say what is no reply in this place, or no reply at all, or more than anyone wants to hear;
//! answer a message before its end; close right after a good word; not know the BDAT that it has
//! offered; and throw away what came together with what it refused.  One that speaks LMTP has a
//! word for each recipient at the end of a message, and may be gone between two of them.

use super::plan::Offer;
use super::scene::{Between, End, LinkId, Scene};

/// One connection to a next hop.
pub struct Peer {
    link: LinkId,
    site: usize,
    offer: Offer,
    input: Vec<u8>,
    output: Vec<u8>,
    state: State,
    sender: Option<String>,
    recipients: Vec<String>,
    /// It takes nothing in and says nothing more.
    is_silent: bool,
    /// Why it takes the octets behind BDAT for commands: it does not know the word.
    lacks_bdat: bool,
    has_flushed: bool,
}

enum State {
    Commands,
    /// Until CRLF.CRLF; what has come so far.
    Data(Vec<u8>),
    /// So many octets of a chunk are to come.
    Bdat {
        left: usize,
        content: Vec<u8>,
    },
}

/// What it does at one reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mood {
    Well,
    Later,
    Never,
    Closing,
    HangUp,
    Silent,
    /// It says what it was asked for, and is gone.
    WellAndGone,
    /// A code that has no place here.
    WrongCode,
    /// TLS, or a line, or lines, without end: what a peer says that speaks no SMTP.
    Babble,
}

impl Peer {
    /// A connection that was just made.
    pub fn accept(scene: &mut Scene, link: LinkId) -> Peer {
        let Between::Peer { site } = scene.between(link) else {
            unreachable!("only the gateway connects to next hops")
        };
        let mut peer = Peer {
            link,
            site,
            offer: scene.plan.offers[site],
            input: Vec::new(),
            output: Vec::new(),
            state: State::Commands,
            sender: None,
            recipients: Vec::new(),
            is_silent: false,
            lacks_bdat: scene.plan.offers[site].is_wrong,
            has_flushed: false,
        };
        peer.answer(scene, "220 peer.example", "554 5.3.2 not here");
        peer.flush(scene);
        peer
    }

    /// Octets arrive, or the news that we hung up.
    pub fn arrive(&mut self, scene: &mut Scene, octets: Option<&[u8]>) {
        let Some(octets) = octets else {
            return scene.close(self.link, End::Taker);
        };
        self.input.extend_from_slice(octets);
        while !self.is_silent && scene.is_open(self.link, End::Taker) && self.step(scene) {}
        self.flush(scene);
    }

    fn flush(&mut self, scene: &mut Scene) {
        scene.send(self.link, End::Taker, &std::mem::take(&mut self.output));
    }

    /// Does one thing; `false` when it needs more.
    fn step(&mut self, scene: &mut Scene) -> bool {
        match &mut self.state {
            State::Commands => {
                let Some(end) = memchr::memmem::find(&self.input, b"\r\n") else { return false };
                let line: Vec<u8> = self.input.drain(..end + 2).collect();
                let line = String::from_utf8_lossy(&line[..end]).into_owned();
                self.command(scene, &line);
                true
            }
            State::Data(content) => {
                let is_begun = !content.is_empty();
                content.append(&mut self.input);
                let end = if content.starts_with(b".\r\n") {
                    Some((0, 3))
                } else {
                    memchr::memmem::find(content, b"\r\n.\r\n").map(|at| (at + 2, at + 5))
                };
                let Some((end, behind)) = end else {
                    return self.in_the_middle(scene, is_begun);
                };
                self.input = content.split_off(behind);
                content.truncate(end);
                let content = unstuff(content);
                self.state = State::Commands;
                self.end_of_mail(scene, &content);
                true
            }
            State::Bdat { left, content } => {
                let is_begun = !content.is_empty();
                let taken = (*left).min(self.input.len());
                content.extend(self.input.drain(..taken));
                *left -= taken;
                if *left > 0 {
                    return self.in_the_middle(scene, is_begun);
                }
                let content = std::mem::take(content);
                self.state = State::Commands;
                self.end_of_mail(scene, &content);
                true
            }
        }
    }

    /// Gives up on a body that is still coming.
    fn in_the_middle(&mut self, scene: &mut Scene, is_begun: bool) -> bool {
        let trouble = scene.plan.peer_trouble;
        if is_begun && scene.trouble(trouble / 4) {
            match self.mood(scene) {
                Mood::Later => self.say("452 4.3.1 full"),
                Mood::Never => {
                    self.refuse_all(scene);
                    self.say("552 5.3.4 too large");
                }
                // Not 250: once all is written nobody can tell such a lie from the truth.
                Mood::WellAndGone | Mood::WrongCode => self.say("354 go on"),
                Mood::Babble => self.babble(scene),
                _ => {}
            }
            self.flush(scene);
            if scene.chance(700) {
                scene.close(self.link, End::Taker);
            }
            self.is_silent = true;
        }
        false
    }

    fn command(&mut self, scene: &mut Scene, line: &str) {
        let (verb, rest) = line.split_once([' ', ':']).unwrap_or((line, ""));
        match verb {
            "EHLO" | "LHLO" if (verb == "LHLO") != self.offer.lmtp => {
                scene.books.problem(format!("the gateway says {line:?} to the wrong kind of peer"));
            }
            "EHLO" | "LHLO" => {
                let mut reply = "250-peer.example\r\n".to_owned();
                for (is_offered, word) in [
                    (self.offer.pipelining, "PIPELINING"),
                    (self.offer.chunking, "CHUNKING"),
                    (self.offer.dsn, "DSN"),
                    (self.offer.eight_bit, "8BITMIME"),
                    (self.offer.size, "SIZE 10000000"),
                ] {
                    if is_offered {
                        reply += &format!("250-{word}\r\n");
                    }
                }
                self.answer(scene, &(reply + "250 HELP"), "550 5.5.1 no");
            }
            "HELO" if !self.offer.lmtp => {
                scene.books.greeted_plainly(self.site);
                _ = self.answer(scene, "250 peer.example", "550 5.5.1 no");
            }
            "MAIL" => self.mail(scene, path(rest)),
            "RCPT" => self.rcpt(scene, path(rest)),
            "DATA" if self.recipients.is_empty() => self.say("554 5.5.1 no recipients"),
            "DATA" => {
                if self.answer(scene, "354 go on", "554 5.7.1 not you") {
                    self.state = State::Data(Vec::new());
                } else {
                    self.refuse_if_told(scene);
                }
            }
            "BDAT" if self.lacks_bdat => {
                scene.happens("a next hop offers BDAT and does not know it");
                self.say("500 5.5.1 what");
                self.is_silent = true;
            }
            "BDAT" => {
                let octets = rest.split(' ').next().and_then(|octets| octets.parse().ok());
                let left = octets.expect("the gateway gives a size");
                self.state = State::Bdat { left, content: Vec::new() };
            }
            "RSET" => {
                (self.sender, self.recipients) = (None, Vec::new());
                _ = self.answer(scene, "250 2.0.0 ok", "550 5.5.1 no");
            }
            "QUIT" => {
                self.say("221 2.0.0 bye");
                self.flush(scene);
                scene.close(self.link, End::Taker);
            }
            // What is left of a message of which it has thrown a part away.
            _ if self.has_flushed => self.say("503 5.5.1 out of step"),
            _ => scene.books.problem(format!("the gateway says {line:?} to a next hop")),
        }
    }

    fn mail(&mut self, scene: &mut Scene, sender: &str) {
        if self.sender.is_some() {
            return self.say("503 5.5.1 nested MAIL");
        }
        self.recipients.clear();
        if self.answer(scene, "250 2.1.0 ok", "550 5.7.1 not from you") {
            self.sender = Some(sender.to_owned());
        } else if self.output.ends_with(b"550 5.7.1 not from you\r\n") {
            scene.books.sender_refused(sender);
        }
    }

    fn rcpt(&mut self, scene: &mut Scene, address: &str) {
        if self.sender.is_none() {
            return self.say("503 5.5.1 MAIL first");
        }
        let trouble = scene.plan.peer_trouble;
        if !self.recipients.is_empty() && scene.trouble(trouble) {
            return self.say("452 4.5.3 too many recipients");
        }
        if self.answer(scene, "250 2.1.5 ok", "550 5.1.1 nobody") {
            self.recipients.push(address.to_owned());
        } else if self.output.ends_with(b"550 5.1.1 nobody\r\n") {
            scene.books.refused(address);
        }
    }

    fn end_of_mail(&mut self, scene: &mut Scene, content: &[u8]) {
        if self.recipients.is_empty() {
            self.sender = None;
            return self.say("554 5.5.1 no recipients");
        }
        if self.offer.lmtp {
            return self.end_of_lmtp(scene, content);
        }
        // A peer that never refuses for good may still lose its own reply.
        let mood = self.mood(scene);
        let takes = match mood {
            Mood::Well | Mood::WellAndGone => true,
            Mood::Later | Mood::Never | Mood::Closing => false,
            Mood::HangUp | Mood::Silent | Mood::WrongCode | Mood::Babble => scene.chance(500),
        };
        if matches!(mood, Mood::HangUp | Mood::Silent) {
            scene.happens(match takes {
                true => "a next hop is lost behind the last octet, and has the message",
                false => "a next hop is lost behind the last octet, without the message",
            });
        }
        if takes {
            scene.trace(|| format!("{:?} takes {:?}", self.link, self.recipients));
            scene.books.taken(self.link, &self.recipients, content);
        }
        self.behave(scene, mood, "250 2.0.0 taken", "554 5.6.0 not that");
        if mood == Mood::Never {
            self.refuse_all(scene);
        }
        (self.sender, self.recipients) = (None, Vec::new());
    }

    /// A word for each recipient, one after the other.
    fn end_of_lmtp(&mut self, scene: &mut Scene, content: &[u8]) {
        scene.happens("a message goes by LMTP");
        let (recipients, _) = (std::mem::take(&mut self.recipients), self.sender.take());
        let mut is_closing = false;
        for (number, address) in recipients.iter().enumerate() {
            if self.is_silent || !scene.is_open(self.link, End::Taker) {
                // Nobody hears whether it takes the message for these, but for a 421.
                if !is_closing && scene.chance(500) {
                    scene.books.taken(self.link, std::slice::from_ref(address), content);
                }
                continue;
            }
            let mood = self.mood(scene);
            let takes = match mood {
                Mood::Well | Mood::WellAndGone => true,
                Mood::Later | Mood::Never | Mood::Closing => false,
                Mood::HangUp | Mood::Silent | Mood::WrongCode | Mood::Babble => scene.chance(500),
            };
            is_closing |= mood == Mood::Closing;
            if number > 0 && mood != Mood::Well {
                scene.happens("an LMTP peer says different things to the recipients of a message");
            }
            if takes {
                scene.books.taken(self.link, std::slice::from_ref(address), content);
            }
            self.behave(scene, mood, "250 2.0.0 taken", "554 5.6.0 not that");
            if mood == Mood::Never {
                scene.books.refused(address);
            }
        }
    }

    fn refuse_all(&mut self, scene: &mut Scene) {
        self.recipients.iter().for_each(|address| scene.books.refused(address));
    }

    fn refuse_if_told(&mut self, scene: &mut Scene) {
        if self.output.ends_with(b"554 5.7.1 not you\r\n") {
            self.refuse_all(scene);
        }
    }

    // ---- replies -------------------------------------------------------------------------

    fn say(&mut self, reply: &str) {
        self.output.extend_from_slice(reply.as_bytes());
        self.output.extend_from_slice(b"\r\n");
    }

    /// Says `yes`, most of the time; tells whether it did.
    fn answer(&mut self, scene: &mut Scene, yes: &str, never: &str) -> bool {
        let mood = self.mood(scene);
        self.behave(scene, mood, yes, never);
        matches!(mood, Mood::Well | Mood::WellAndGone)
    }

    fn mood(&mut self, scene: &mut Scene) -> Mood {
        if !scene.trouble(scene.plan.peer_trouble) {
            return Mood::Well;
        }
        match scene.random.u8(0..11) {
            0..=2 => Mood::Later,
            3 | 4 if self.site == 0 => Mood::Later,
            3 | 4 => Mood::Never,
            5 => Mood::Closing,
            6 => Mood::HangUp,
            7 => Mood::WellAndGone,
            8 => Mood::WrongCode,
            9 => Mood::Babble,
            _ => Mood::Silent,
        }
    }

    fn behave(&mut self, scene: &mut Scene, mood: Mood, yes: &str, never: &str) {
        scene.happens(match mood {
            Mood::Well => "a next hop says yes",
            Mood::Later => "a next hop says 4xx",
            Mood::Never => "a next hop says 5xx",
            Mood::Closing => "a next hop says 421",
            Mood::HangUp => "a next hop hangs up",
            Mood::Silent => "a next hop falls silent",
            Mood::WellAndGone => "a next hop says yes and is gone",
            Mood::WrongCode => "a next hop says what has no place",
            Mood::Babble => "a next hop babbles",
        });
        let is_refusal = matches!(mood, Mood::Later | Mood::Never);
        // Of an envelope by itself it keeps count.
        let is_one_flight = memchr::memmem::find(&self.input, b"BDAT").is_some();
        if self.offer.flushes && is_refusal && is_one_flight {
            scene.happens("a next hop throws away what came with what it refuses");
            self.input.clear();
            self.has_flushed = true;
        }
        match mood {
            Mood::Well | Mood::WellAndGone => self.say(yes),
            // A 354 belongs to DATA alone, and DATA wants nothing else.
            Mood::WrongCode if yes.starts_with('3') => self.say("250 2.0.0 go on"),
            Mood::WrongCode => self.say("354 go on"),
            Mood::Babble => self.babble(scene),
            Mood::Later => self.say("451 4.3.0 later"),
            Mood::Never => self.say(never),
            Mood::Closing => self.say("421 4.3.2 closing"),
            Mood::HangUp | Mood::Silent => {}
        }
        if matches!(mood, Mood::Closing | Mood::HangUp | Mood::WellAndGone) {
            self.flush(scene);
            scene.close(self.link, End::Taker);
        }
        // What it would do after a word that has no place is nobody's business.
        self.is_silent |= matches!(mood, Mood::Silent | Mood::WrongCode | Mood::Babble);
    }

    /// What is no reply, or none that ends.
    fn babble(&mut self, scene: &mut Scene) {
        match scene.random.u8(0..4) {
            0 => self.output.extend_from_slice(b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03"),
            1 => self.output.extend_from_slice(&[b'2'; 6_000]),
            2 => self.output.extend_from_slice(&b"250-and more\r\n".repeat(300)),
            _ => self.output.extend_from_slice(b"250-one thing\r\n550 and another\r\n"),
        }
    }
}

/// What stands between angle brackets.
fn path(text: &str) -> &str {
    let inner = text.split_once('<').and_then(|(_, rest)| rest.split_once('>'));
    inner.map_or("", |(path, _)| path)
}

fn unstuff(content: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(content.len());
    let mut is_line_start = true;
    for &octet in content {
        if !(is_line_start && octet == b'.') {
            out.push(octet);
        }
        is_line_start = octet == b'\n';
    }
    out
}
