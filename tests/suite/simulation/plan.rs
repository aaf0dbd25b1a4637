//! What a world is made of, all of it from its seed.

use std::path::{Path, PathBuf};

use mailrace::config::{Config, Environment};
use mailrace::message::Durability;
use mailrace::spool::sim_disk::Faults;
use mailrace::spool::{AppenderOptions, FileNo, LogOptions, Mistake};

/// A mistake that a test puts into the glue or under the log, to see whether it is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plant {
    /// None.
    Nothing,
    /// The session says 250 when the message is appended, not when it is durable.
    EarlyReply,
    /// Some DONEs are never appended.
    LostDone,
    /// Recipients that failed are done, and nobody is told.
    LostNotice,
    /// A DONE says that it is the last one before the others are in the log.
    EarlyLast,
    /// A message that was delivered goes back to the queue.
    Twice,
    /// Nobody remembers that a delay was told.
    TwiceLate,
    /// A message that waits for its next attempt drops out of the queue.
    Forgotten,
    /// The disk says that it has synced and has not.
    LyingSync,
    /// A refused commit is not recorded as void.
    NoVoid,
    /// The compaction leaves out one of its rules.
    Compaction(Mistake),
}

/// What a next hop offers.
#[derive(Debug, Clone, Copy)]
pub struct Offer {
    pub pipelining: bool,
    pub chunking: bool,
    pub dsn: bool,
    pub eight_bit: bool,
    pub size: bool,
    /// It offers CHUNKING and does not know BDAT.
    pub is_wrong: bool,
    /// Its domain has to be asked for.
    pub by_mx: bool,
}

/// See the module's text.
#[derive(Debug, Clone)]
pub struct Plan {
    pub plant: Plant,
    /// The next hops.  Number 0 serves the senders: it never refuses for good.
    pub offers: Vec<Offer>,
    /// A next hop that nobody ever reaches, whose mail expires.
    pub dead_site: Option<usize>,
    pub connections_per_site: usize,
    pub clients: usize,
    pub mails_per_client: usize,
    /// How large the largest bodies are.
    pub body_octets_max: usize,
    pub durability: Durability,
    pub log: LogOptions,
    pub appender: AppenderOptions,
    pub faults: Faults,
    /// A segment file that never becomes free again.
    pub bad_header: Option<FileNo>,
    /// Trouble of the next hops at each reply, of a thousand.
    pub peer_trouble: u32,
    /// Crashes at any time, and crashes at a bad moment.
    pub crashes: usize,
    pub bad_moments: usize,
}

/// Faults end then.
pub const ROUGH_US: u64 = 40_000_000;
/// When a sender hears that a message is late.
pub const LATE_S: u64 = 12;
/// How long a message may wait; longer than the rough time, so that no notice expires.
pub const LIFETIME_S: u64 = 90;

impl Plan {
    pub fn new(plant: Plant, random: &mut fastrand::Rng) -> Plan {
        let sites = random.usize(2..5);
        let offers = (0..sites).map(|_| Offer {
            pipelining: random.u8(0..4) > 0,
            chunking: random.bool(),
            dsn: random.bool(),
            eight_bit: random.u8(0..4) > 0,
            size: random.bool(),
            is_wrong: random.u8(0..8) == 0,
            by_mx: random.bool(),
        });
        let offers = offers.collect();
        let has_large = random.u8(0..8) == 0;
        let kib = 1024;
        let batch_bytes = [8, 16, 64][random.usize(0..3)] * kib;
        let segment = if has_large { random.u32(96..160) } else { random.u32(10..64) };
        let segment_bytes = (segment * 8 * 1024).max(if has_large { 400 * 1024 } else { 0 });
        let buffers = random.usize(2..9);
        let is_full_at_times = random.u8(0..6) == 0;
        let os = random.u8(0..6) == 0;
        let bad_disk = random.u8(0..2) == 0;
        Plan {
            plant,
            offers,
            dead_site: (random.u8(0..3) == 0).then(|| random.usize(1..sites)),
            connections_per_site: random.usize(1..5),
            clients: random.usize(1..7),
            mails_per_client: random.usize(1..5),
            body_octets_max: if has_large { 600 * kib } else { 30 * kib },
            durability: if os { Durability::Os } else { Durability::Fsync },
            log: LogOptions {
                segment_bytes,
                spares: 3,
                spares_max: random.usize(3..8),
                compact_after_ticks: [1, 2, 5, 12, 600][random.usize(0..5)],
                mistake: match plant {
                    Plant::Compaction(mistake) => Some(mistake),
                    _ => None,
                },
                compact_octets_per_tick: [1, 64, 32 * 1024][random.usize(0..3)] * 1024,
            },
            appender: AppenderOptions {
                batch_bytes,
                buffers,
                in_flight: random.usize(1..4).min(buffers),
                chunk_buffers: random.usize(2..6),
                recent: random.usize(0..4),
                ..AppenderOptions::new(0)
            },
            faults: Faults {
                // A segment that was closed by a failure is not synced any more, so a later power
                // cut may take what `os` alone had promised.
                write_failures_permil: if bad_disk && !os { random.u32(0..60) } else { 0 },
                sync_failures_permil: if bad_disk && !os { random.u32(0..60) } else { 0 },
                files_max: if is_full_at_times { random.usize(6..9) } else { usize::MAX },
            },
            bad_header: (random.u8(0..4) == 0 && !is_full_at_times)
                .then(|| FileNo(random.u32(1..5))),
            peer_trouble: [0, 30, 120, 300][random.usize(0..4)],
            crashes: random.usize(0..3),
            bad_moments: random.usize(0..3),
        }
    }

    /// The configuration of a gateway with so many workers.
    pub fn config(&self, workers: usize) -> Config {
        let mut text = format!(
            "hostname = \"gateway.example\"\ndata_dir = \"/nowhere\"\nworkers = {workers}\n\
             [[listener]]\naddress = \"127.0.0.1:25\"\nservice = \"relay\"\n\
             [relay]\nnetworks = [\"127.0.0.0/8\"]\n\
             [queue]\nretry = [\"2s\", \"5s\", \"15s\"]\nlifetime = \"{LIFETIME_S}s\"\n\
             delay_notice = \"{LATE_S}s\"\n\
             [delivery]\nconnections_per_site = {}\nmessages_per_connection = 5\n\
             idle_timeout = \"1s\"\n\
             timeouts = {{ connect = \"3s\", greeting = \"5s\", command = \"5s\", data = \"8s\" }}\n",
            self.connections_per_site
        );
        for (site, offer) in self.offers.iter().enumerate() {
            let to = match offer.by_mx {
                true => "mx".to_owned(),
                false => format!("smtp://127.0.0.1:{}", SITE_PORT + site),
            };
            text += &format!("[[route]]\nrecipient = \"*@site{site}.example\"\nto = \"{to}\"\n");
        }
        let environment = Environment {
            host_name: "gateway.example".to_owned(),
            cores: workers,
            descriptors: 1024,
            directory: PathBuf::from("/nowhere"),
            user_exists: |_| true,
        };
        match Config::parse(&text, Path::new("simulation.toml"), &environment) {
            Ok(checked) => checked.config,
            Err(report) => panic!("{}", report.render(false)),
        }
    }
}

/// The port of the first next hop; the others follow.
pub const SITE_PORT: usize = 2500;
