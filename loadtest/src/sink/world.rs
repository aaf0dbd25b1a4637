//! How the world behaves: shares of refusals with texts as they come in the wild, greylisting,
//! latency, limits, breaks, slow readers, extensions that are missing or lied about.
//!
//! Read from a TOML file: `[default]` for every recipient, `[[domain]]` for those of one domain,
//! `[[port]]` for connections to one port.  Nothing in it means a sink that takes everything.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use fastrand::Rng;
use serde::{Deserialize, Deserializer};

use super::settings::SinkSettings;
use crate::units::{Octets, Span};

/// Triplets that greylisting remembers; the oldest are forgotten with the rest when it is full.
const TRIPLETS_MAX: usize = 1 << 20;

/// A world that can be opened.
#[derive(Debug)]
pub struct World {
    /// Where it listens.
    pub ports: Vec<Port>,
    /// `[default]` first, then those of the domains and ports.
    manners: Vec<Manners>,
    /// Places in `manners` by domain in lower case; `*.example` stands as `.example`.
    domains: HashMap<String, usize>,
    greylist: Mutex<HashMap<u64, Instant>>,
    /// When the next message is allowed, by place in `manners`.
    allowed_at: Mutex<HashMap<usize, Instant>>,
}

/// How a domain treats messages to it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Manners {
    /// Replies to RCPT other than 250.
    pub rcpt: Vec<Share>,
    /// Replies to the end of data other than 250.
    pub data: Vec<Share>,
    /// How long a new triplet of client, sender and recipient is put off.
    pub greylist: Option<Span>,
    /// What the reply to the end of data takes.
    pub latency: Option<SpanRange>,
    /// Messages a second, beyond which RCPT is put off.
    pub rate: Option<f64>,
    /// Share of messages in the midst of which the connection is reset.
    pub drop: f64,
    /// Share of messages that are acknowledged and forgotten.
    pub lose: f64,
    /// Share of messages that arrive with a flipped bit.
    pub damage: f64,
    /// Share of messages that arrive twice.
    pub double: f64,
}

/// A reply and how often it is given.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Share {
    /// From 0 to 1.
    pub share: f64,
    /// A reply (`450 4.2.0 Come back`) or the name of one in [`REPLIES`].
    pub reply: ReplyText,
}

/// A whole reply line with its CRLF.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplyText(pub Box<[u8]>);

/// A time between two bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpanRange {
    from: Duration,
    to: Duration,
}

/// How a port treats connections.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Port {
    /// Where.
    pub listen: SocketAddr,
    /// What the greeting takes.
    #[serde(default)]
    pub greeting_delay: Option<Span>,
    /// Sessions at a time; the next gets 421.
    #[serde(default)]
    pub sessions: Option<usize>,
    /// Messages a connection; then 421.
    #[serde(default)]
    pub messages_per_connection: Option<u32>,
    /// Octets a second that are read from each client.
    #[serde(default)]
    pub read_rate: Option<Octets>,
    /// Extensions that are not offered.
    #[serde(default)]
    pub hide: Vec<Extension>,
    /// Extensions that are offered and do not work.
    #[serde(default)]
    pub lie: Vec<Extension>,
    /// How it treats messages whose domain has no entry; else `[default]`.
    #[serde(default)]
    pub messages: Option<Manners>,
    /// The place of that among all manners.
    #[serde(skip)]
    pub manners: usize,
}

/// What the reply to EHLO offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Extension {
    /// RFC 2920.
    Pipelining,
    /// RFC 3030.
    Chunking,
    /// RFC 6152.
    #[serde(rename = "8BITMIME")]
    EightBitMime,
    /// RFC 1870.
    Size,
    /// RFC 3461.
    Dsn,
    /// RFC 6531.
    SmtpUtf8,
    /// RFC 2034.
    EnhancedStatusCodes,
}

impl Extension {
    /// All of them, as they stand in the reply.
    pub const ALL: [(Extension, &'static str); 7] = [
        (Extension::Pipelining, "PIPELINING"),
        (Extension::Chunking, "CHUNKING"),
        (Extension::EightBitMime, "8BITMIME"),
        (Extension::Size, "SIZE 104857600"),
        (Extension::Dsn, "DSN"),
        (Extension::SmtpUtf8, "SMTPUTF8"),
        (Extension::EnhancedStatusCodes, "ENHANCEDSTATUSCODES"),
    ];
}

/// Replies by name, worded as large receivers word theirs.
pub const REPLIES: [(&str, &str); 10] = [
    ("greylisted", "450 4.7.1 Greylisted, please try again later"),
    ("over-quota", "452 4.2.2 The recipient's mailbox is over its storage quota"),
    ("busy", "451 4.3.2 Please try again later; the system is busy"),
    ("rate-limited", "421 4.7.28 Unusual rate of mail from your address; try again later"),
    ("local-error", "451 4.3.0 Temporary local problem; please try later"),
    ("unknown-user", "550 5.1.1 The account that you tried to reach does not exist"),
    ("disabled", "550 5.2.1 The account that you tried to reach is disabled"),
    ("blocked", "554 5.7.1 Service unavailable; your address is on a blocklist"),
    ("spam", "554 5.7.1 Message rejected as likely unsolicited mail"),
    ("policy", "550 5.7.26 Unauthenticated mail from this domain is not accepted"),
];

/// A description of a world that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum WorldError {
    /// The file.
    #[error("cannot read {0}: {1}")]
    Unreadable(PathBuf, #[source] std::io::Error),
    /// What is in it.
    #[error("{0}: {1}")]
    Wrong(PathBuf, #[source] Box<toml::de::Error>),
    /// A share that is none, or shares that are more than everything.
    #[error("shares must be from 0 to 1, and those of one list no more than 1 together")]
    Share,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    default: Manners,
    domain: Vec<Domain>,
    port: Vec<Port>,
}

#[derive(Debug, Deserialize)]
struct Domain {
    name: String,
    // Unknown keys cannot be refused through a flattened field; they are refused in `manners`.
    #[serde(flatten)]
    manners: toml::Table,
}

impl World {
    /// Reads the world that the settings describe.
    ///
    /// # Errors
    /// See [`WorldError`].
    pub fn new(settings: &SinkSettings) -> Result<World, WorldError> {
        let file = match &settings.world {
            None => File::default(),
            Some(path) => {
                let text = std::fs::read_to_string(path)
                    .map_err(|error| WorldError::Unreadable(path.clone(), error))?;
                toml::from_str(&text)
                    .map_err(|error| WorldError::Wrong(path.clone(), Box::new(error)))?
            }
        };
        let path = settings.world.clone().unwrap_or_default();
        World::build(file, &settings.listen, path)
    }

    fn build(file: File, listen: &[SocketAddr], path: PathBuf) -> Result<World, WorldError> {
        let mut manners = vec![file.default];
        let mut domains = HashMap::new();
        for domain in file.domain {
            let name = domain.name.trim_start_matches('*').to_ascii_lowercase();
            domains.insert(name, manners.len());
            let read = domain.manners.try_into();
            manners.push(read.map_err(|error| WorldError::Wrong(path.clone(), Box::new(error)))?);
        }
        let mut ports = file.port;
        let named: Vec<SocketAddr> = ports.iter().map(|port| port.listen).collect();
        ports.extend(listen.iter().filter(|at| !named.contains(at)).map(|at| Port::plain(*at)));
        if ports.is_empty() {
            ports.push(Port::plain(SocketAddr::from(([127, 0, 0, 1], 2600))));
        }
        for port in &mut ports {
            if let Some(own) = port.messages.take() {
                port.manners = manners.len();
                manners.push(own);
            }
        }
        if !manners.iter().all(Manners::is_sound) {
            return Err(WorldError::Share);
        }
        let (greylist, allowed_at) = Default::default();
        Ok(World { ports, manners, domains, greylist, allowed_at })
    }

    /// The place of the manners of a recipient's domain, on a port whose own are at `default`.
    pub fn find(&self, path: &[u8], default: usize) -> usize {
        if self.domains.is_empty() {
            return default;
        }
        let domain = crate::wire::command::domain(path);
        if let Some(place) = self.domains.get(&domain) {
            return *place;
        }
        let parents = domain.match_indices('.').map(|(dot, _)| &domain[dot..]);
        parents.filter_map(|parent| self.domains.get(parent)).copied().next().unwrap_or(default)
    }

    /// The manners at a place that [`World::find`] gave.
    pub fn manners(&self, place: usize) -> &Manners {
        &self.manners[place]
    }

    /// Whether a triplet has waited long enough; a new one is remembered.
    pub fn is_known(&self, client: u64, from: &[u8], to: &[u8], wait: Duration) -> bool {
        let mut hasher = DefaultHasher::new();
        (client, from, to).hash(&mut hasher);
        let mut known = self.greylist.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= TRIPLETS_MAX {
            known.clear();
        }
        let now = Instant::now();
        *known.entry(hasher.finish()).or_insert(now) + wait <= now
    }

    /// Whether the rate of the manners at `place` has room for one more now.
    pub fn is_within_rate(&self, place: usize, rate: f64) -> bool {
        let now = Instant::now();
        let step = Duration::from_secs_f64((1.0 / rate).min(3_600.0));
        let mut allowed_at = self.allowed_at.lock().unwrap_or_else(PoisonError::into_inner);
        let at = allowed_at.entry(place).or_insert(now);
        // What was not used in the last second may be used at once.
        let begin = (*at).max(now.checked_sub(Duration::from_secs(1)).unwrap_or(now));
        if begin > now {
            return false;
        }
        *at = begin + step;
        true
    }
}

impl Manners {
    fn is_sound(&self) -> bool {
        let is_share = |share: f64| (0.0..=1.0).contains(&share);
        let lists = [&self.rcpt, &self.data];
        let is_list = |list: &&Vec<Share>| {
            list.iter().all(|one| is_share(one.share))
                && list.iter().map(|one| one.share).sum::<f64>() <= 1.0 + 1e-9
        };
        lists.iter().all(is_list)
            && [self.drop, self.lose, self.damage, self.double].into_iter().all(is_share)
            && self.rate.is_none_or(|rate| rate > 0.0)
    }
}

/// One of these replies, or none, as their shares have it.
pub fn draw<'a>(shares: &'a [Share], random: &mut Rng) -> Option<&'a ReplyText> {
    if shares.is_empty() {
        return None;
    }
    let mut drawn = random.f64();
    shares.iter().find_map(|one| {
        drawn -= one.share;
        (drawn < 0.0).then_some(&one.reply)
    })
}

impl SpanRange {
    /// A time in it.
    pub fn draw(self, random: &mut Rng) -> Duration {
        self.from + (self.to - self.from).mul_f64(random.f64())
    }
}

impl Port {
    /// A port that takes everything.
    pub fn plain(listen: SocketAddr) -> Port {
        Port {
            listen,
            greeting_delay: None,
            sessions: None,
            messages_per_connection: None,
            read_rate: None,
            hide: Vec::new(),
            lie: Vec::new(),
            messages: None,
            manners: 0,
        }
    }

    /// The reply to EHLO.
    pub fn ehlo(&self) -> Vec<u8> {
        let mut reply = b"250-sink.loadtest.example\r\n".to_vec();
        for (extension, text) in Extension::ALL {
            if !self.hide.contains(&extension) {
                reply.extend_from_slice(format!("250-{text}\r\n").as_bytes());
            }
        }
        reply.extend_from_slice(b"250 HELP\r\n");
        reply
    }
}

impl<'de> Deserialize<'de> for ReplyText {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<ReplyText, D::Error> {
        let text = String::deserialize(from)?;
        let named = REPLIES.iter().find(|(name, _)| *name == text);
        let line = named.map_or(text.as_str(), |(_, line)| line);
        let is_refusal = matches!(line.as_bytes(), [b'4' | b'5', b, c, b' ', ..]
            if b.is_ascii_digit() && c.is_ascii_digit());
        let is_one_line = !line.contains(|letter: char| letter.is_control()) && line.len() <= 500;
        if !is_refusal || !is_one_line {
            let names: Vec<&str> = REPLIES.iter().map(|(name, _)| *name).collect();
            return Err(serde::de::Error::custom(format!(
                "{text:?} is neither a reply of 4xx or 5xx nor one of {}",
                names.join(", ")
            )));
        }
        Ok(ReplyText(format!("{line}\r\n").into_bytes().into()))
    }
}

impl<'de> Deserialize<'de> for SpanRange {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<SpanRange, D::Error> {
        let text = String::deserialize(from)?;
        let (from, to) = text.split_once('-').unwrap_or((&text, &text));
        let span = |text: &str| text.parse::<Span>().map_err(serde::de::Error::custom);
        let (from, to) = (span(from)?.0, span(to)?.0);
        if from > to {
            return Err(serde::de::Error::custom("a range goes from the shorter to the longer"));
        }
        Ok(SpanRange { from, to })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A world from the text of its file.
    pub fn world(text: &str) -> Result<World, String> {
        let file = toml::from_str(text).map_err(|error| error.to_string())?;
        World::build(file, &[], PathBuf::new()).map_err(|error| error.to_string())
    }

    #[test]
    fn domains_are_found_by_name_then_by_parent_then_by_port() {
        let world = world(
            "[default]\nlose = 0.1\n[[domain]]\nname = \"A.example\"\nlose = 0.2\n\
             [[domain]]\nname = \"*.example\"\nlose = 0.3\n\
             [[port]]\nlisten = \"127.0.0.1:1\"\nmessages = { lose = 0.4 }\n",
        )
        .unwrap();
        let lose = |path: &str, default| world.manners(world.find(path.as_bytes(), default)).lose;
        assert_eq!(lose("x@a.EXAMPLE", 0), 0.2);
        assert_eq!(lose("x@b.c.example", 0), 0.3);
        assert_eq!(lose("x@other", 0), 0.1);
        assert_eq!(lose("x@other", world.ports[0].manners), 0.4);
    }

    #[test]
    fn mistakes_are_told() {
        for text in [
            "[default]\nloose = 0.1",
            "[[domain]]\nname = \"x\"\nloose = 0.1",
            "[default]\nlose = 1.5",
            "[default]\nrate = 0.0",
            "[default]\nlatency = \"9ms-1ms\"",
            "[default]\nrcpt = [{ share = 0.7, reply = \"busy\" }, { share = 0.7, reply = \"spam\" }]",
            "[default]\nrcpt = [{ share = 0.7, reply = \"250 fine\" }]",
            "[default]\nrcpt = [{ share = 0.7, reply = \"bussy\" }]",
            "[[port]]\nlisten = \"127.0.0.1:1\"\nhide = [\"STARTTLS\"]",
        ] {
            assert!(world(text).is_err(), "{text}");
        }
    }

    #[test]
    fn shares_are_drawn_as_often_as_they_say() {
        let world = world("[default]\nrcpt = [{ share = 0.25, reply = \"busy\" }]").unwrap();
        let mut random = Rng::with_seed(3);
        let shares = &world.manners(0).rcpt;
        let drawn = (0..10_000).filter(|_| draw(shares, &mut random).is_some()).count();
        assert!((2_300..2_700).contains(&drawn), "{drawn}");
    }

    #[test]
    fn greylisting_puts_off_once_and_a_rate_holds() {
        let world = world("").unwrap();
        let wait = Duration::from_millis(30);
        assert!(!world.is_known(1, b"a", b"b", wait));
        std::thread::sleep(wait);
        assert!(world.is_known(1, b"a", b"b", wait));
        assert!(!world.is_known(2, b"a", b"b", wait));
        let taken = (0..1_000).filter(|_| world.is_within_rate(0, 10.0)).count();
        assert!((1..=11).contains(&taken), "{taken}");
    }
}
