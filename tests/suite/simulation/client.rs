//! A client of the gateway with SMTP of its own: it sends its mails over one connection, command
//! by command or pipelined, by DATA or BDAT, and may vanish, or fall silent, after any octet.

use std::collections::VecDeque;
use std::ops::Range;

use super::books::Wish;
use super::scene::{Between, End, LinkId, Scene};

/// What is sent next.
#[derive(Debug, Clone)]
enum Step {
    Ehlo,
    Mail(usize),
    Rcpt(usize, usize),
    Data(usize),
    Body(usize),
    Bdat(usize, Range<usize>),
    Quit,
}

/// See the module's text.
pub struct Sender {
    link: LinkId,
    steps: VecDeque<Step>,
    /// What the replies to come are about.
    awaited: VecDeque<Step>,
    has_greeting: bool,
    pipelines: bool,
    input: Vec<u8>,
    /// Octets that it writes before it vanishes or falls silent.
    left: usize,
    ends_silently: bool,
}

/// Makes up a client's mails and enters them in the books; gives their numbers.
pub fn plan_mails(scene: &mut Scene) -> Vec<usize> {
    let count = scene.random.usize(1..=scene.plan.mails_per_client);
    (0..count)
        .map(|_| {
            let number = scene.books.mails.len();
            let sites = scene.plan.offers.len();
            let recipients = if scene.chance(600) { 1 } else { scene.random.usize(2..6) };
            let recipients = (0..recipients).map(|place| {
                let site = scene.random.usize(0..sites);
                let wish = match scene.random.u8(0..20) {
                    0 | 1 => Wish::Never,
                    2..=5 => Wish::Everything,
                    _ => Wish::Unspoken,
                };
                (format!("r{number}x{place}@site{site}.example"), wish)
            });
            let recipients = recipients.collect();
            let sender = (scene.random.u8(0..10) > 0).then(|| format!("s{number}@site0.example"));
            let body = body(scene, number);
            scene.books.plan_mail(sender, recipients, body);
            number
        })
        .collect()
}

/// A body of its own for each mail, with everything that a body may hold.
fn body(scene: &mut Scene, number: usize) -> Vec<u8> {
    let octets_max = scene.plan.body_octets_max;
    let octets = match scene.random.u8(0..10) {
        0 => 0,
        1..=6 => scene.random.usize(0..2_000),
        7 | 8 => scene.random.usize(0..octets_max.min(40_000)),
        _ => scene.random.usize(0..octets_max),
    };
    let mut body = format!("Number: {number}\r\nSubject: simulated\r\n\r\n").into_bytes();
    while body.len() < octets {
        if scene.chance(150) {
            body.push(b'.');
        }
        let length = scene.random.usize(0..120).min(octets - body.len());
        let letter = scene.random.u8(b'a'..=b'z');
        body.extend((0..length).map(|place| letter ^ (place as u8 & 1)));
        if scene.chance(30) {
            body.push(0xe9);
        }
        body.extend_from_slice(b"\r\n");
    }
    body
}

impl Sender {
    /// Connects; the gateway is to be told of the link.
    pub fn connect(scene: &mut Scene, client: usize, mails: Vec<usize>, life: u32) -> Sender {
        let link = scene.connect(Between::Client(client), life);
        let by_bdat = scene.chance(400);
        let mut steps = VecDeque::from([Step::Ehlo]);
        for mail in mails {
            steps.push_back(Step::Mail(mail));
            let recipients = 0..scene.books.mails[mail].recipients.len();
            steps.extend(recipients.map(|place| Step::Rcpt(mail, place)));
            if by_bdat {
                chunks(scene, mail, &mut steps);
            } else {
                steps.push_back(Step::Data(mail));
            }
        }
        steps.push_back(Step::Quit);
        let vanishes = scene.trouble(250);
        if by_bdat {
            scene.happens("a client sends by BDAT");
        }
        let left = if vanishes { scene.random.usize(0..6_000) } else { usize::MAX };
        Sender {
            link,
            steps,
            awaited: VecDeque::new(),
            has_greeting: false,
            pipelines: scene.chance(500),
            input: Vec::new(),
            left,
            ends_silently: scene.chance(200),
        }
    }

    pub fn link(&self) -> LinkId {
        self.link
    }

    /// Replies arrive, or the end of them.
    pub fn arrive(&mut self, scene: &mut Scene, octets: Option<&[u8]>) {
        let Some(octets) = octets else {
            return scene.close(self.link, End::Opener);
        };
        self.input.extend_from_slice(octets);
        while let Some(end) = memchr::memmem::find(&self.input, b"\r\n") {
            let line: Vec<u8> = self.input.drain(..end + 2).collect();
            if line[3] == b' ' {
                let code = std::str::from_utf8(&line[..3]).ok().and_then(|code| code.parse().ok());
                self.reply(scene, code.expect("the server's replies begin with a code"));
            }
        }
        self.go_on(scene);
    }

    fn reply(&mut self, scene: &mut Scene, code: u16) {
        if !self.has_greeting {
            self.has_greeting = true;
            return;
        }
        match self.awaited.pop_front() {
            Some(Step::Rcpt(mail, place)) if code == 250 => {
                scene.books.recipient_taken(mail, place);
            }
            // The body goes out before anything else.
            Some(Step::Data(mail)) if code == 354 => self.steps.push_front(Step::Body(mail)),
            Some(Step::Data(mail) | Step::Body(mail)) => scene.books.verdict(mail, code),
            Some(Step::Bdat(mail, range)) if range.end == scene.books.mails[mail].body.len() => {
                scene.books.verdict(mail, code);
            }
            Some(Step::Quit) => scene.close(self.link, End::Opener),
            Some(_) => {}
            None if code == 421 => {}
            None => scene.books.problem(format!("a reply {code} to nothing")),
        }
    }

    /// Sends as much as may be sent now.
    fn go_on(&mut self, scene: &mut Scene) {
        let mut out = Vec::new();
        while self.has_greeting && self.left > 0 && self.may_send() {
            let Some(step) = self.steps.pop_front() else { break };
            let begin = out.len();
            write(scene, &step, &mut out);
            let octets = out.len() - begin;
            if octets > self.left {
                out.truncate(begin + self.left);
                self.left = 0;
                break;
            }
            self.left -= if self.left == usize::MAX { 0 } else { octets };
            match &step {
                Step::Body(mail) => scene.books.whole(*mail),
                Step::Bdat(mail, range) if range.end == scene.books.mails[*mail].body.len() => {
                    scene.books.whole(*mail);
                }
                _ => {}
            }
            self.awaited.push_back(step);
        }
        scene.send(self.link, End::Opener, &out);
        if self.left == 0 && self.has_greeting {
            scene.happens(match self.ends_silently {
                true => "a client falls silent",
                false => "a client vanishes",
            });
        }
        if self.left == 0 && !self.ends_silently {
            scene.close(self.link, End::Opener);
        }
    }

    fn may_send(&self) -> bool {
        match self.awaited.back() {
            None => true,
            Some(Step::Ehlo | Step::Data(_) | Step::Quit) => false,
            Some(_) => self.pipelines,
        }
    }
}

/// Cuts a mail into chunks; the last one reaches its end.
fn chunks(scene: &mut Scene, mail: usize, steps: &mut VecDeque<Step>) {
    let octets = scene.books.mails[mail].body.len();
    let mut from = 0;
    while scene.chance(300) && from < octets {
        let to = scene.random.usize(from..octets);
        steps.push_back(Step::Bdat(mail, from..to));
        from = to;
    }
    steps.push_back(Step::Bdat(mail, from..octets));
}

fn write(scene: &Scene, step: &Step, out: &mut Vec<u8>) {
    let line = match step {
        Step::Ehlo => "EHLO client.example".to_owned(),
        Step::Mail(mail) => {
            let sender = scene.books.mails[*mail].sender.as_deref();
            format!("MAIL FROM:<{}> BODY=8BITMIME", sender.unwrap_or_default())
        }
        Step::Rcpt(mail, place) => {
            let rcpt = &scene.books.mails[*mail].recipients[*place];
            let notify = match rcpt.wish {
                Wish::Unspoken => "",
                Wish::Never => " NOTIFY=NEVER",
                Wish::Everything => " NOTIFY=SUCCESS,FAILURE,DELAY",
            };
            format!("RCPT TO:<{}>{notify}", rcpt.address)
        }
        Step::Data(_) => "DATA".to_owned(),
        Step::Quit => "QUIT".to_owned(),
        Step::Body(mail) => return stuff(&scene.books.mails[*mail].body, out),
        Step::Bdat(mail, range) => {
            let body = &scene.books.mails[*mail].body;
            let last = if range.end == body.len() { " LAST" } else { "" };
            out.extend_from_slice(format!("BDAT {}{last}\r\n", range.len()).as_bytes());
            return out.extend_from_slice(&body[range.clone()]);
        }
    };
    out.extend_from_slice(line.as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// The body with its dots stuffed, and the end of data.
fn stuff(body: &[u8], out: &mut Vec<u8>) {
    let mut is_line_start = true;
    for &octet in body {
        if is_line_start && octet == b'.' {
            out.push(b'.');
        }
        out.push(octet);
        is_line_start = octet == b'\n';
    }
    out.extend_from_slice(b".\r\n");
}
