//! Settings, checked and completed: what can be run.
//!
//! Everything that can be wrong with a run is found here, before the first connection.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use data_encoding::BASE64;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;

use super::pace::Pace;
use super::settings::{Bdat, Begin, Settings, Size};
use crate::message::PART_MAX;
use crate::message::mix::{ADDRESS_MAX, Mix, Pattern, Weighted};
use crate::message::template::{Framing, Template};
use crate::runtime::tls::{TlsError, client_config};
use crate::units::Octets;

/// What can be run; the same for all threads.
#[derive(Debug)]
pub struct Plan {
    /// The server.
    pub peer: SocketAddr,
    /// Addresses to connect from; empty for whatever the system chooses.
    pub sources: Vec<IpAddr>,
    /// How the commands and the message travel.
    pub conduct: Conduct,
    /// Sessions at a time.
    pub sessions: u32,
    /// Messages in all.
    pub messages: u64,
    /// The longest that the run may take.
    pub time: Duration,
    /// What is waited beyond that for what has begun.
    pub grace: Duration,
    /// Threads.
    pub threads: usize,
    /// Messages a connection.
    pub per_connection: u32,
    /// When messages start, in an open-loop run.
    pub pace: Option<Pace>,
    /// What is sent.
    pub templates: Mix<Template>,
    /// Envelope senders.
    pub senders: Mix<Pattern>,
    /// Envelope recipients.
    pub recipients: Mix<Pattern>,
    /// Recipients a message.
    pub recipient_count: u32,
    /// The name in EHLO.
    pub helo: String,
    /// What the server may take for one reply.
    pub timeout: Duration,
    /// Where the books are kept.
    pub ledger: Option<PathBuf>,
    /// From where the random numbers start.
    pub seed: u64,
    /// Names the run in the ids.
    pub run: u16,
    /// How connections are encrypted; None: not at all.
    pub security: Option<Security>,
    /// The command that logs in, with its CRLF; None: nobody does.
    pub login: Option<Login>,
    /// Manners that ordinary clients do not have.
    pub manners: Manners,
}

/// The command that logs in; not shown.
pub struct Login(pub Vec<u8>);

impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Login(..)")
    }
}

/// How connections are encrypted.
#[derive(Debug, Clone)]
pub struct Security {
    /// From when on.
    pub begin: Begin,
    /// What is asked of the server.
    pub config: Arc<ClientConfig>,
    /// The server's name, which it must prove unless the run is insecure.
    pub name: ServerName<'static>,
}

/// How the commands and the message travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conduct {
    /// Each command waits for the reply to the one before.
    Plain,
    /// The envelope and DATA in one write, then the message.
    Pipelined,
    /// The message and the envelope and DATA of the next one in one write.
    Ahead,
    /// The envelope command by command, then the message behind BDAT.
    Chunk,
    /// The envelope in one write, then the message behind BDAT.
    PipelinedChunk,
    /// All of it in one write.
    Flight,
}

impl Conduct {
    /// How it frames messages.
    pub fn framing(self) -> Framing {
        match self {
            Conduct::Plain | Conduct::Pipelined | Conduct::Ahead => Framing::Data,
            Conduct::Chunk | Conduct::PipelinedChunk | Conduct::Flight => Framing::Bdat,
        }
    }

    /// Whether the server must offer PIPELINING.
    pub fn is_pipelined(self) -> bool {
        !matches!(self, Conduct::Plain | Conduct::Chunk)
    }
}

/// Manners that ordinary clients do not have.
#[derive(Debug, Clone, Copy, Default)]
pub struct Manners {
    /// Talks before the greeting.
    pub early: bool,
    /// Connects, and then only stays for so long.
    pub hold: Option<Duration>,
    /// Leaves after the recipients.
    pub no_data: bool,
    /// Writes so many octets of a message at a time, with such pauses.
    pub trickle: Option<(usize, Duration)>,
    /// The commands in the same way.
    pub trickle_all: bool,
}

/// What is wrong with the settings.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// Nothing to connect to.
    #[error("where to? Give --to HOST:PORT")]
    NoServer,
    /// A name that does not resolve.
    #[error("cannot find {0}: {1}")]
    UnknownServer(String, #[source] io::Error),
    /// A number that makes no sense.
    #[error("{0} must be {1}")]
    Number(&'static str, &'static str),
    /// Two settings that exclude each other.
    #[error("{0}")]
    Contradiction(&'static str),
    /// `--source` that is no range.
    #[error("{0:?} is no range of addresses; write 127.0.0.2-127.0.0.50 or 127.20.0.0/16")]
    Source(String),
    /// TLS that cannot be had.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// `--folder` that cannot be read or holds no messages.
    #[error("cannot take messages from {0}: {1}")]
    Folder(PathBuf, #[source] io::Error),
}

/// Sizes that a range is divided into.
const SIZES_OF_RANGE: u64 = 8;
/// Octets of all templates together.
const TEMPLATES_MAX: u64 = 2 * 1024 * 1024 * 1024;
/// The pauses of a slow peer.
const TRICKLE_EVERY: Duration = Duration::from_millis(100);
/// Files that are taken from a folder.
const FILES_MAX: usize = 10_000;
/// What a message may weigh in recipients.
const RECIPIENTS_MAX: u32 = 10_000;

impl Plan {
    /// Checks and completes the settings.
    ///
    /// # Errors
    /// See [`PlanError`].
    pub fn new(settings: Settings, run: u16) -> Result<Plan, PlanError> {
        let conduct = conduct(&settings)?;
        let security = security(&settings)?;
        let login = settings.auth.as_deref().map(login).transpose()?;
        let sessions = settings.sessions.unwrap_or(10);
        within("sessions", sessions, 1, PART_MAX - 1, "from 1 to 16777215")?;
        let recipient_count = settings.recipients.unwrap_or(1);
        within("recipients", recipient_count, 1, RECIPIENTS_MAX, "from 1 to 10000")?;
        let per_connection = if settings.one { Some(1) } else { settings.per_connection };
        within("per_connection", per_connection.unwrap_or(1), 1, u32::MAX, "at least 1")?;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = settings.threads.unwrap_or(cores.div_ceil(2));
        within("threads", threads, 1, 1_024, "from 1 to 1024")?;
        let trickle = settings.trickle.map(|Octets(octets)| octets as usize);
        within("trickle", trickle.unwrap_or(1), 1, 1 << 20, "from 1B to 1MiB")?;
        let every = settings.trickle_every.map_or(TRICKLE_EVERY, |span| span.0);
        if settings.trickle_every.is_some() && trickle.is_none() {
            return Err(PlanError::Contradiction("--trickle-every goes with --trickle"));
        }
        if settings.trickle_all && trickle.is_none() {
            return Err(PlanError::Contradiction("--trickle-all goes with --trickle"));
        }
        let messages = settings.messages.unwrap_or(match settings.time {
            Some(_) => u64::MAX,
            None => 10_000,
        });
        Ok(Plan {
            peer: peer(settings.to.as_deref())?,
            sources: settings.source.as_deref().map_or(Ok(Vec::new()), sources)?,
            conduct,
            sessions,
            messages,
            time: settings.time.map_or(Duration::from_secs(600), |span| span.0),
            grace: settings.grace.map_or(Duration::from_secs(10), |span| span.0),
            threads: threads.min(sessions as usize),
            per_connection: per_connection.unwrap_or(u32::MAX),
            pace: pace(&settings)?,
            templates: templates(&settings, conduct.framing())?,
            senders: patterns(settings.from, "sender@loadtest.example"),
            recipients: patterns(settings.rcpt, "recipient@loadtest.example"),
            recipient_count,
            helo: settings.helo.unwrap_or_else(|| "loadtest.example".into()),
            timeout: settings.timeout.map_or(Duration::from_secs(60), |span| span.0),
            ledger: settings.ledger,
            seed: settings.seed.unwrap_or_else(|| fastrand::u64(..)),
            run,
            security,
            login,
            manners: Manners {
                early: settings.early,
                hold: settings.hold.map(|span| span.0),
                no_data: settings.no_data,
                trickle: trickle.map(|octets| (octets, every)),
                trickle_all: settings.trickle_all,
            },
        })
    }

    /// Octets that the commands before a message take at most.
    pub fn envelope_max(&self) -> usize {
        // MAIL, RCPT.., BDAT with their words.
        let path = "MAIL FROM:<>\r\n".len() + ADDRESS_MAX;
        path * (self.recipient_count as usize + 1) + 64
    }

    /// Whether a message begins with the end of the one before it.
    pub fn is_ahead(&self) -> bool {
        self.conduct == Conduct::Ahead
    }
}

fn within<T: PartialOrd>(
    name: &'static str,
    number: T,
    least: T,
    most: T,
    range: &'static str,
) -> Result<(), PlanError> {
    let is_within = number >= least && number <= most;
    if is_within { Ok(()) } else { Err(PlanError::Number(name, range)) }
}

fn conduct(settings: &Settings) -> Result<Conduct, PlanError> {
    let lone = settings.no_data || settings.trickle.is_some();
    let is_open_loop = settings.rate.is_some() || settings.stage.is_some();
    match (settings.pipeline, settings.bdat) {
        (pipeline, bdat) if settings.ahead && (!pipeline || bdat.is_some()) => {
            Err(PlanError::Contradiction("--ahead goes with --pipeline, and not with --bdat"))
        }
        _ if settings.ahead && (is_open_loop || lone) => Err(PlanError::Contradiction(
            "--ahead begins a message with the end of another; it does not go with --rate, \
             --no-data or --trickle",
        )),
        (true, None) if settings.ahead => Ok(Conduct::Ahead),
        (_, Some(Bdat::Flight)) if lone => Err(PlanError::Contradiction(
            "--bdat flight sends everything at once; it does not go with --no-data or --trickle",
        )),
        (true, None) if settings.no_data => Err(PlanError::Contradiction(
            "--pipeline sends DATA with the recipients; it does not go with --no-data",
        )),
        (false, None) => Ok(Conduct::Plain),
        (true, None) => Ok(Conduct::Pipelined),
        (false, Some(Bdat::Strict)) => Ok(Conduct::Chunk),
        (true, Some(Bdat::Strict)) => Ok(Conduct::PipelinedChunk),
        (_, Some(Bdat::Flight)) => Ok(Conduct::Flight),
    }
}

fn security(settings: &Settings) -> Result<Option<Security>, PlanError> {
    let Some(begin) = settings.tls else {
        return match settings.insecure {
            true => Err(PlanError::Contradiction("--insecure says nothing without --tls")),
            false => Ok(None),
        };
    };
    if settings.early {
        return Err(PlanError::Contradiction("--early goes without --tls"));
    }
    let host =
        settings.to.as_deref().and_then(|to| to.rsplit_once(':')).map_or("", |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let name = ServerName::try_from(host);
    let name = name.map_err(|_| PlanError::Contradiction("TLS needs a server's name in --to"))?;
    Ok(Some(Security { begin, config: client_config(settings.insecure)?, name }))
}

/// `AUTH PLAIN` with its initial response, all in one line.
fn login(auth: &str) -> Result<Login, PlanError> {
    let Some((name, password)) = auth.split_once(':') else {
        return Err(PlanError::Contradiction("--auth is a name and a password: NAME:PASSWORD"));
    };
    let response = BASE64.encode(format!("\0{name}\0{password}").as_bytes());
    Ok(Login(format!("AUTH PLAIN {response}\r\n").into_bytes()))
}

fn peer(to: Option<&str>) -> Result<SocketAddr, PlanError> {
    let to = to.ok_or(PlanError::NoServer)?;
    let unknown = |error| PlanError::UnknownServer(to.into(), error);
    let mut found = to.to_socket_addrs().map_err(unknown)?;
    found.next().ok_or_else(|| unknown(io::ErrorKind::NotFound.into()))
}

/// `first-last` of IPv4 addresses, `network/bits`, or a single address.
fn sources(text: &str) -> Result<Vec<IpAddr>, PlanError> {
    let wrong = || PlanError::Source(text.into());
    if let Some((network, bits)) = text.split_once('/') {
        let network: Ipv4Addr = network.trim().parse().map_err(|_| wrong())?;
        let bits: u32 = bits.trim().parse().map_err(|_| wrong())?;
        // Every address of it: on loopback none is kept for other uses.
        let first = u32::from(network);
        let is_sound = (16..=32).contains(&bits) && first.trailing_zeros() >= 32 - bits;
        let last = first | u32::MAX.checked_shr(bits).unwrap_or(0);
        return if is_sound { Ok(every_address(first, last)) } else { Err(wrong()) };
    }
    let Some((first, last)) = text.split_once('-') else {
        return Ok(vec![text.parse().map_err(|_| wrong())?]);
    };
    let parse = |text: &str| text.trim().parse::<Ipv4Addr>().map(u32::from).map_err(|_| wrong());
    let (first, last) = (parse(first)?, parse(last)?);
    if first > last || last - first >= 1 << 16 {
        return Err(wrong());
    }
    Ok(every_address(first, last))
}

fn every_address(first: u32, last: u32) -> Vec<IpAddr> {
    (first..=last).map(|number| IpAddr::V4(number.into())).collect()
}

fn pace(settings: &Settings) -> Result<Option<Pace>, PlanError> {
    let sound = |rate: f64| (0.0..=1e7).contains(&rate);
    if let Some(rate) = settings.rate {
        if rate <= 0.0 || !sound(rate) {
            return Err(PlanError::Number("rate", "above 0 and at most 10000000"));
        }
        return Ok(Some(Pace::steady(rate)));
    }
    let Some(stages) = &settings.stage else { return Ok(None) };
    for stage in stages {
        if stage.time.0.is_zero() || !sound(stage.rate) || !stage.up_to.is_none_or(sound) {
            return Err(PlanError::Number(
                "a stage",
                "of some time and from 0 to 10000000 a second",
            ));
        }
    }
    Ok(Some(Pace::staged(stages)))
}

fn patterns(given: Option<Vec<Weighted>>, default: &str) -> Mix<Pattern> {
    let given = given.unwrap_or_default().into_iter();
    Mix::new(given.map(|one| (one.weight, one.pattern))).unwrap_or_else(|| {
        let pattern = default.parse().expect("the default is a pattern");
        Mix::new([(1, pattern)]).expect("one choice with a weight")
    })
}

fn templates(settings: &Settings, framing: Framing) -> Result<Mix<Template>, PlanError> {
    let date = jiff::Zoned::now().strftime("%a, %d %b %Y %H:%M:%S %z").to_string();
    if let Some(folder) = &settings.folder {
        let failed = |error| PlanError::Folder(folder.clone(), error);
        let templates = read_folder(folder, &date, framing).map_err(failed)?;
        let nothing = || failed(io::Error::other("there is no .eml file in it that is a message"));
        return Mix::new(templates.into_iter().map(|template| (1, template))).ok_or_else(nothing);
    }
    let default = vec![Size { weight: 1, from: Octets(10_240), to: Octets(10_240) }];
    let mut sizes = Vec::new();
    for size in settings.size.as_ref().unwrap_or(&default) {
        let (from, to) = (size.from.0, size.to.0);
        if from > to {
            return Err(PlanError::Number("a range of sizes", "from the smaller to the larger"));
        }
        // A range becomes a few sizes in it, evenly far apart.
        let count = if from == to { 1 } else { SIZES_OF_RANGE };
        let step = (to - from) / (count - 1).max(1);
        sizes.extend((0..count).map(|at| (size.weight, from + at * step)));
    }
    let total: u64 = sizes.iter().map(|(_, octets)| octets).sum();
    if total > TEMPLATES_MAX {
        return Err(PlanError::Number("the sizes", "less than 2 GiB together"));
    }
    Mix::new(
        sizes.iter().map(|(weight, octets)| (*weight, Template::made_up(*octets, &date, framing))),
    )
    .ok_or(PlanError::Number("the weight of a size", "above 0"))
}

fn read_folder(folder: &Path, date: &str, framing: Framing) -> io::Result<Vec<Template>> {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(folder)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "eml"));
    // In the same order everywhere, so that a seed means the same.
    paths.sort();
    let mut templates = Vec::new();
    let mut left = TEMPLATES_MAX;
    for path in paths.iter().take(FILES_MAX) {
        let length = std::fs::metadata(path)?.len();
        left = left.checked_sub(length).ok_or_else(|| io::Error::other("more than 2 GiB"))?;
        // A file that is no message is passed over, as a folder may hold others.
        if let Ok(template) = Template::from_message(&std::fs::read(path)?, date, framing) {
            templates.push(template);
        }
    }
    Ok(templates)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(toml: &str) -> Result<Plan, PlanError> {
        let file: Settings = toml::from_str(toml).unwrap();
        let to = Settings { to: Some("127.0.0.1:2525".into()), ..Settings::default() };
        Plan::new(to.over(file), 1)
    }

    #[test]
    fn a_run_is_always_bounded() {
        let by_default = plan("").unwrap();
        assert_eq!((by_default.messages, by_default.time), (10_000, Duration::from_secs(600)));
        assert_eq!(plan("time = \"5s\"").unwrap().time, Duration::from_secs(5));
        assert_eq!(plan("messages = 7").unwrap().messages, 7);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for toml in [
            "sessions = 0",
            "threads = 0",
            "rate = 0.0",
            "rate = -1",
            "source = \"127.0.0.9-127.0.0.2\"",
            "source = \"127.0.0.0/8\"",
            "source = \"127.20.0.1/16\"",
            "source = \"127.20.0.0/33\"",
            "trickle_all = true",
            "size = [\"9KiB-1KiB\"]",
            "bdat = \"flight\"\nno_data = true",
            "trickle_every = \"1s\"",
            "ahead = true",
            "ahead = true\npipeline = true\nrate = 5",
            "ahead = true\npipeline = true\nbdat = \"strict\"",
            "folder = \"/nonexistent\"",
            "stage = [{ time = \"0s\", rate = 5 }]",
        ] {
            assert!(plan(toml).is_err(), "{toml}");
        }
        assert!(matches!(Plan::new(Settings::default(), 1), Err(PlanError::NoServer)));
    }

    #[test]
    fn the_scenarios_that_come_with_it_can_be_run() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
        let mut seen = 0;
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let settings = Settings::read(&path).unwrap_or_else(|error| panic!("{error}"));
            assert!(settings.about.is_some(), "{path:?} says what it is about");
            let to = Settings { to: Some("127.0.0.1:2525".into()), ..Settings::default() };
            let parties = to.over(settings).parties();
            for party in parties.unwrap_or_else(|error| panic!("{path:?}: {error}")) {
                let made = Plan::new(party.settings, 1);
                made.unwrap_or_else(|error| panic!("{path:?}: {:?}: {error}", party.name));
                seen += 1;
            }
        }
        assert!(seen >= 14);
    }

    #[test]
    fn source_addresses_are_a_range() {
        for (source, count, last) in [
            ("127.0.0.2-127.0.0.50", 49, [127, 0, 0, 50]),
            ("127.20.0.0/16", 65_536, [127, 20, 255, 255]),
            ("127.20.7.0/24", 256, [127, 20, 7, 255]),
            ("127.20.7.1/32", 1, [127, 20, 7, 1]),
        ] {
            let plan = plan(&format!("source = \"{source}\"")).unwrap();
            assert_eq!(plan.sources.len(), count, "{source}");
            assert_eq!(plan.sources[count - 1], IpAddr::from(last), "{source}");
        }
    }
}
