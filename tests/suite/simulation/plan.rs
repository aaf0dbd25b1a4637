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
    /// The header that says that a segment is free is not synced before the segment is used.
    EarlyReuse,
    /// The compaction leaves out one of its rules.
    Compaction(Mistake),
    /// Some DEFERs are never appended.
    LostDefer,
    /// Of several messages in flight the outcomes of one are taken for another's.
    MixedFlight,
    /// A connection that is lost behind the last octet counts as a delivery.
    HopefulLoss,
    /// What was said of the last of several recipients is thrown away.
    HalfHeard,
    /// A DONE for some recipients says that it is for all.
    DoneForAll,
    /// A notice is appended before its cause, in a batch of its own.
    LoneNotice,
    /// A message whose body cannot be read waits on when its time is over.
    EverWaiting,
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
    /// It speaks LMTP.
    pub lmtp: bool,
    /// After a refusal it throws away what came with it: it loses count of what is in one flight.
    pub flushes: bool,
}

/// What becomes of octets that lie on the disk, or come from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rot {
    /// Nothing.
    None,
    /// Of 1,000 reads so many have a bit that is wrong, this time.
    Reads(u32),
    /// A bit turns over in the bodies of so many messages of 1,000.  A recovery may take what
    /// shares a batch with one of these for lost, so such a world has no crashes.
    Bodies(u32),
    /// The same in their heads.
    Heads(u32),
}

impl Rot {
    /// Whether it spoils what lies on the disk.
    pub fn stays(self) -> bool {
        matches!(self, Rot::Bodies(_) | Rot::Heads(_))
    }
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
    pub rot: Rot,
    pub messages_in_flight: usize,
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
        let offers = (0..sites).map(|_| {
            let lmtp = random.u8(0..5) == 0;
            Offer {
                pipelining: random.u8(0..4) > 0,
                chunking: random.u8(0..3) > 0,
                dsn: random.bool(),
                eight_bit: random.u8(0..4) > 0,
                size: random.bool(),
                is_wrong: random.u8(0..8) == 0,
                by_mx: random.bool() && !lmtp,
                lmtp,
                flushes: random.u8(0..4) < 2,
            }
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
        let rot = match random.u8(0..12) {
            0 => Rot::Reads(random.u32(1..400)),
            1 => Rot::Bodies(random.u32(1..400)),
            2 => Rot::Heads(random.u32(1..300)),
            _ => Rot::None,
        };
        let may_crash = !rot.stays();
        let bad_disk = random.u8(0..2) == 0 && may_crash;
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
                read_flips_permil: if let Rot::Reads(permil) = rot { permil } else { 0 },
            },
            rot,
            messages_in_flight: [1, 2, 4, 16][random.usize(0..4)],
            bad_header: (random.u8(0..4) == 0 && !is_full_at_times)
                .then(|| FileNo(random.u32(1..5))),
            peer_trouble: [0, 30, 120, 300][random.usize(0..4)],
            crashes: if may_crash { random.usize(0..3) } else { 0 },
            bad_moments: if may_crash { random.usize(0..3) } else { 0 },
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
             idle_timeout = \"1s\"\nmessages_in_flight = {}\n\
             timeouts = {{ connect = \"3s\", greeting = \"5s\", command = \"5s\", data = \"8s\" }}\n",
            self.connections_per_site, self.messages_in_flight
        );
        for (site, offer) in self.offers.iter().enumerate() {
            let to = match (offer.by_mx, offer.lmtp) {
                (true, _) => "mx".to_owned(),
                (false, true) => format!("lmtp://127.0.0.1:{}", SITE_PORT + site),
                (false, false) => format!("smtp://127.0.0.1:{}", SITE_PORT + site),
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
