//! Mixed load: several senders at once, each with its own way of sending, sizes and recipients,
//! drawn anew for each round.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use fastrand::Rng;
use mailrace_loadtest::report::tally::Counts;
use mailrace_loadtest::signal::Signals;
use mailrace_loadtest::source::plan::Plan;
use mailrace_loadtest::source::settings::{Bdat, Settings};
use mailrace_loadtest::source::{self, Live};
use mailrace_loadtest::units::Span;

use super::world::World;

/// Senders that run until they are stopped.
pub struct Load {
    senders: Vec<(Arc<Live>, JoinHandle<Counts>)>,
}

/// What is sent, each with a ledger of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Small messages for one recipient each.
    Single,
    /// Small messages for several.
    Many,
    /// Messages of several chunks.
    Large,
    /// Messages that nobody takes.
    Refused,
}

/// How the clients of a round send; five ways, two of them by BDAT.
const WAYS: [&str; 5] = ["plain", "pipeline", "ahead", "bdat", "flight"];
/// The size of a round's large messages.
const LARGE: [&str; 5] = ["100KiB", "300KiB", "600KiB", "1MiB", "3MiB"];

impl Source {
    /// Those of which all mail must arrive.
    pub const GOOD: [Source; 3] = [Source::Single, Source::Many, Source::Large];

    /// All of them.
    pub const ALL: [Source; 4] = [Source::Single, Source::Many, Source::Large, Source::Refused];

    /// Its ledger's file.
    pub fn ledger(self) -> &'static str {
        match self {
            Source::Single => "sent-single",
            Source::Many => "sent-many",
            Source::Large => "sent-large",
            Source::Refused => "refused",
        }
    }

    /// What it sends, to whom and how often.
    fn settings(self, rate: f64, random: &mut Rng) -> Settings {
        let small = ["8 1KiB-10KiB", "1 32KiB-64KiB"];
        match self {
            Source::Single => Settings {
                sessions: Some(10),
                rate: Some(rate * 0.6),
                size: drawn(&small),
                rcpt: drawn(&[
                    "40 user{n}@hop.test",
                    "3 box{1..20}@box.test",
                    "2 wait{n}@waiting.test",
                ]),
                ..Settings::default()
            },
            Source::Many => Settings {
                sessions: Some(4),
                rate: Some(rate * 0.3),
                size: drawn(&small),
                recipients: Some(6),
                // Nobody twice in one message.
                rcpt: drawn(&[
                    "120 many{1..4000000000}@hop.test",
                    "1 many{1..4000000000}@box.test",
                    "1 many{1..4000000000}@waiting.test",
                ]),
                ..Settings::default()
            },
            Source::Large => Settings {
                sessions: Some(2),
                rate: Some(rate * 0.02),
                size: drawn(&[LARGE[random.usize(..LARGE.len())]]),
                rcpt: drawn(&["8 large{n}@hop.test", "1 large{n}@box.test"]),
                ..Settings::default()
            },
            Source::Refused => Settings {
                sessions: Some(2),
                rate: Some(rate * 0.05),
                size: drawn(&["1KiB-20KiB"]),
                recipients: Some(2),
                rcpt: drawn(&["nobody{1..4000000000}@refused.test"]),
                ..Settings::default()
            },
        }
    }
}

impl Load {
    /// Starts a round's senders.  `run` numbers all senders of a campaign; `rate` is about how
    /// many messages a second there are to be.
    pub fn start(
        world: &World,
        gateway: SocketAddr,
        sources: &[Source],
        rate: f64,
        run: &mut u16,
        random: &mut Rng,
    ) -> Load {
        let mut start = |source: &Source| {
            *run += 1;
            let settings = Settings {
                to: Some(gateway.to_string()),
                ledger: Some(world.file(source.ledger())),
                seed: Some(random.u64(..)),
                from: drawn(&["list{1..20}@home.test"]),
                time: Some(Span(Duration::from_secs(300))),
                grace: Some(Span(Duration::from_secs(5))),
                threads: Some(1),
                ..source.settings(rate, random)
            };
            let settings = by(WAYS[random.usize(..WAYS.len())], settings);
            let plan = Plan::new(settings, *run).expect("a plan");
            let live = Arc::new(Live::default());
            let shared = live.clone();
            let sender = thread::spawn(move || {
                let signals = Signals::take_over().expect("a descriptor");
                source::run_with(plan, &signals, true, shared).expect("it runs").0.counts
            });
            (live, sender)
        };
        Load { senders: sources.iter().map(&mut start).collect() }
    }

    /// How many messages have been acknowledged, as far as is known yet.
    pub fn acknowledged(&self) -> u64 {
        self.senders.iter().map(|(live, _)| live.acknowledged.load(Ordering::Relaxed)).sum()
    }

    /// Ends the senders; the server is gone already.
    pub fn stop(self) -> u64 {
        for (live, _) in &self.senders {
            live.stop.store(true, Ordering::Relaxed);
        }
        let counts = self.senders.into_iter().map(|(_, sender)| {
            let counts = sender.join().expect("senders do not panic");
            assert_eq!(counts.refused_for_good, 0, "all of it is good mail");
            counts.acknowledged
        });
        counts.sum()
    }
}

fn by(way: &str, settings: Settings) -> Settings {
    match way {
        "plain" => settings,
        "pipeline" => Settings { pipeline: true, ..settings },
        // It takes no rate: what another way sends in a second, at once.
        "ahead" => {
            let messages = settings.rate.map(|rate| rate.ceil() as u64);
            Settings { pipeline: true, ahead: true, rate: None, messages, ..settings }
        }
        "bdat" => Settings { bdat: Some(Bdat::Strict), pipeline: true, ..settings },
        _ => Settings { bdat: Some(Bdat::Flight), ..settings },
    }
}

/// Things with weights, as the command line takes them.
fn drawn<T>(texts: &[&str]) -> Option<Vec<T>>
where
    T: std::str::FromStr,
    T::Err: std::fmt::Debug,
{
    Some(texts.iter().map(|text| text.parse().expect("a good text")).collect())
}
