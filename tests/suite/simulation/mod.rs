//! The simulator: clients, gateway and next hops joined in memory under virtual time, with a disk
//! and a network that misbehave; everything follows from a seed.
//!
//! A world has a rough time, in which anything may fail, and is then healed.  It has to come to
//! rest, and the [`books`] have to balance.  `MAILRACE_SEED=n` runs one world again, step by step
//! the same (with `MAILRACE_TRACE=1` it is told), `MAILRACE_SEEDS=n` so many from 0, and
//! `MAILRACE_SECONDS=n` those that follow, or those from `MAILRACE_FROM=n` on, for so long.
//!
//! What is the library's: server, intake, relay control, trace header, appender, log, recovery,
//! scheduler, client, judgement, notices.  What is only modelled, in [`gateway`], [`session`],
//! [`sending`] and [`outcome`]: the loops that join them.

mod books;
mod client;
mod disk;
mod gateway;
mod message;
mod outcome;
mod peer;
mod plan;
mod scene;
mod sending;
mod session;
mod upload;
mod worker;

use std::collections::BTreeMap;
use std::num::NonZero;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use mailrace::spool::Mistake;
use mailrace::spool::sim_disk::{Faults, SimDisk};

use books::Tally;
use client::{Sender, plan_mails};
use disk::TestDisk;
use gateway::Gateway;
use peer::Peer;
use plan::{LIFETIME_S, Plan, Plant, ROUGH_US};
use scene::{Between, End, LinkId, Scene, Task};

struct World {
    scene: Scene,
    disk: Arc<TestDisk>,
    gateway: Option<Gateway>,
    /// Each client's mails, until it sends them.
    unsent: Vec<Vec<usize>>,
    clients: BTreeMap<usize, Sender>,
    peers: BTreeMap<LinkId, Peer>,
    /// What its gateways saw in all: recoveries with something to cut.
    cuts: usize,
}

/// How a world ended.
#[derive(Debug, PartialEq, Eq)]
struct Ending {
    tally: Tally,
    /// Of everything that happened, and when.
    digest: u64,
}

/// When a world that has not come to rest never will.
const END_US: u64 = ROUGH_US + 5 * LIFETIME_S * 1_000_000;

impl World {
    fn new(seed: u64, plant: Plant) -> World {
        let mut random = fastrand::Rng::with_seed(seed);
        let plan = Plan::new(plant, &mut random);
        let bad_header = plan.bad_header;
        let disk = Arc::new(TestDisk { sim: SimDisk::new(random.u64(..)), plant, bad_header });
        disk.sim.set_faults(plan.faults);
        let mut scene = Scene::new(plan, random);
        scene.trace(|| format!("{:#?}", scene.plan));
        let unsent = (0..scene.plan.clients).map(|_| plan_mails(&mut scene)).collect();
        World {
            scene,
            disk,
            gateway: None,
            unsent,
            clients: BTreeMap::new(),
            peers: BTreeMap::new(),
            cuts: 0,
        }
    }

    /// Runs it to its end; gives what is wrong, or what happened.
    fn run(mut self) -> Result<Ending, String> {
        self.scene.after(0, Task::Start);
        for client in 0..self.unsent.len() {
            let wait_us = self.scene.wait_us(0..ROUGH_US / 2);
            self.scene.after(wait_us, Task::Begin(client));
        }
        for _ in 0..self.scene.plan.crashes {
            let wait_us = self.scene.wait_us(0..ROUGH_US);
            let power = self.scene.random.bool();
            self.scene.after(wait_us, Task::Crash { power });
        }
        self.scene.after(ROUGH_US, Task::Heal);
        while let Some(task) = self.scene.next() {
            self.step(task);
            if !self.scene.books.problems().is_empty() || self.is_at_rest() {
                break;
            }
            if self.scene.now_us() > END_US {
                let what = self.gateway.as_ref().map(Gateway::describe);
                let who = self.scene.books.undecided();
                let words = format!("no end comes for {who:?}; the gateway has {what:?}");
                self.scene.books.problem(words);
                break;
            }
        }
        if self.scene.books.problems().is_empty() {
            self.scene.books.balance();
            self.look_at_the_log();
        }
        match self.scene.books.problems() {
            [] => Ok(self.ending()),
            problems => Err(format!("{:?}\n{}", self.scene.plan, problems.join("\n"))),
        }
    }

    fn ending(mut self) -> Ending {
        if self.cuts > 0 {
            self.scene.happens("recovery cuts a torn tail");
        }
        let mut tally = self.scene.books.tally();
        for (what, count) in self.disk.sim.happened().events() {
            *tally.happened.entry(what).or_default() += count;
        }
        tally.happened.retain(|_, count| *count > 0);
        Ending { tally, digest: self.scene.digest() }
    }

    fn step(&mut self, task: Task) {
        let scene = &mut self.scene;
        scene.books.at(scene.now_us());
        match task {
            Task::Begin(client) => self.begin(client),
            Task::Arrive(link, end, octets) => self.arrive(link, end, octets),
            Task::Gateway(life, errand) => {
                if let Some(gateway) = self.gateway.as_mut().filter(|_| life == scene.books.life) {
                    gateway.run(scene, errand);
                }
            }
            Task::Crash { power } => self.crash(power),
            Task::Start => self.start(),
            Task::Heal => self.heal(),
        }
        if self.disk.sim.is_down() {
            self.scene.happens("the power is cut in the middle of a write or a sync");
            self.crash(true);
        }
        self.accept_at_peers();
        // An operator looks at a gateway whose log has stopped.
        if self.gateway.as_ref().is_some_and(Gateway::has_failed) {
            let wait_us = self.scene.wait_us(0..50);
            if wait_us == 0 {
                self.crash(false);
            }
        }
    }

    fn begin(&mut self, client: usize) {
        let mails = std::mem::take(&mut self.unsent[client]);
        let scene = &mut self.scene;
        let sender = Sender::connect(scene, client, mails, scene.books.life);
        let link = sender.link();
        self.clients.insert(client, sender);
        match &mut self.gateway {
            Some(gateway) => gateway.accept(scene, link),
            None => scene.close(link, End::Taker),
        }
    }

    fn arrive(&mut self, link: LinkId, end: End, octets: Option<Vec<u8>>) {
        let scene = &mut self.scene;
        if !scene.is_open(link, end) {
            return;
        }
        match (scene.between(link), end) {
            (Between::Client(client), End::Opener) => {
                if let Some(client) = self.clients.get_mut(&client) {
                    client.arrive(scene, octets.as_deref());
                }
            }
            (Between::Peer { .. }, End::Taker) => {
                if let Some(peer) = self.peers.get_mut(&link) {
                    peer.arrive(scene, octets.as_deref());
                }
            }
            _ => {
                let life = scene.life_of(link);
                if let Some(gateway) = self.gateway.as_mut().filter(|_| life == scene.books.life) {
                    gateway.arrive(scene, link, octets);
                }
            }
        }
    }

    /// Next hops take the connections that the gateway has made.
    fn accept_at_peers(&mut self) {
        let Some(gateway) = &self.gateway else { return };
        let new = gateway.outbound.keys().filter(|link| !self.peers.contains_key(link));
        for link in new.copied().collect::<Vec<_>>() {
            let peer = Peer::accept(&mut self.scene, link);
            self.peers.insert(link, peer);
        }
    }

    // ---- crashes -------------------------------------------------------------------------

    fn crash(&mut self, power: bool) {
        let scene = &mut self.scene;
        scene.trace(|| format!("crash, power {power}"));
        let life = scene.books.life;
        let has_failed = self.gateway.as_ref().is_none_or(Gateway::has_failed);
        scene.books.crash(power, has_failed);
        if scene.is_rough {
            scene.happens(if power { "the power is cut" } else { "the gateway is killed" });
        }
        scene.cut_links(life);
        if let Some(gateway) = self.gateway.take() {
            scene.books.moved(gateway.moved());
            let wait_us = scene.wait_us(0..3_000_000);
            scene.after(wait_us, Task::Start);
        }
        if power {
            self.disk.sim.restart();
        }
    }

    fn start(&mut self) {
        if self.gateway.is_some() {
            return;
        }
        let may_crash = !self.scene.plan.rot.stays();
        if self.scene.is_rough && may_crash && self.scene.chance(300) {
            // The power may go at any write, also at one of the recovery.
            let from = self.disk.sim.operations();
            let operation = from + self.scene.random.u64(1..200);
            self.disk.sim.crash_at(operation);
        }
        self.gateway = Gateway::start(&mut self.scene, &self.disk);
        match &self.gateway {
            Some(gateway) => self.cuts += usize::from(gateway.report.cut.is_some()),
            None => self.scene.after(1_000_000, Task::Start),
        }
    }

    fn heal(&mut self) {
        self.scene.trace(|| "the world heals".to_owned());
        self.scene.is_rough = false;
        self.disk.sim.set_faults(Faults::default());
        self.disk.sim.crash_at(u64::MAX);
    }

    // ---- the end -------------------------------------------------------------------------

    fn is_at_rest(&self) -> bool {
        !self.scene.is_rough
            && self.unsent.iter().all(Vec::is_empty)
            // One whose log has stopped is quiet too, and an operator will start it again.
            && self.gateway.as_ref().is_some_and(|gateway| gateway.is_quiet() && !gateway.has_failed())
            && self.scene.books.is_settled()
    }

    /// A gateway with an empty queue leaves an empty log, now and after a last recovery.
    fn look_at_the_log(&mut self) {
        let rotten = self.scene.books.has_rotten();
        if let Some(gateway) = &self.gateway {
            gateway.look_at_rest(&mut self.scene);
        }
        let (live, _) = self.gateway.as_ref().map_or((0, 0), Gateway::live);
        if live > 0 && !rotten {
            self.scene.books.problem(format!("the queue is empty and {live} records are live"));
        }
        self.crash(true);
        self.gateway = Gateway::start(&mut self.scene, &self.disk);
        let Some(gateway) = &self.gateway else {
            return self.scene.books.problem("a healed log cannot be recovered".to_owned());
        };
        let (live, messages) = (gateway.live().0, gateway.report.live_messages);
        if live + messages > 0 && !rotten {
            let words = format!("{messages} messages and {live} records came back to life");
            self.scene.books.problem(words);
        }
    }
}

/// Runs one world; a panic in a machine is as wrong as anything.
fn run(seed: u64, plant: Plant) -> Result<Ending, String> {
    let result = std::panic::catch_unwind(|| World::new(seed, plant).run());
    result.unwrap_or_else(|_| Err("a machine panicked, see above".to_owned()))
}

/// Which worlds to run.
struct Seeds {
    from: u64,
    to: u64,
    /// No further one is begun then.
    until: Option<Instant>,
}

impl Seeds {
    /// As the environment says, see the module's text.
    fn asked_for() -> Seeds {
        let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
        if let Some(seed) = number("MAILRACE_SEED") {
            return Seeds { from: seed, to: seed + 1, until: None };
        }
        if let Some(seconds) = number("MAILRACE_SECONDS") {
            let from = number("MAILRACE_FROM").unwrap_or(SEEDS);
            let until = Instant::now() + Duration::from_secs(seconds);
            return Seeds { from, to: u64::MAX, until: Some(until) };
        }
        Seeds { from: 0, to: number("MAILRACE_SEEDS").unwrap_or(SEEDS), until: None }
    }

    /// Runs them all on as many threads as there are cores; gives what happened in all, and the
    /// seeds that failed, in order, with words.
    fn run(&self) -> (Tally, Vec<(u64, String)>) {
        let next = AtomicU64::new(self.from);
        let result = Mutex::new((Tally::default(), Vec::new()));
        let run_some = || loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= self.to || self.until.is_some_and(|until| until <= Instant::now()) {
                return;
            }
            let ended = run(seed, Plant::Nothing);
            let mut result = result.lock().expect("no thread panics with it");
            match ended {
                Ok(world) => result.0 += world.tally,
                Err(words) => result.1.push((seed, words)),
            }
        };
        let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
        std::thread::scope(|scope| {
            (0..threads).for_each(|_| drop(scope.spawn(run_some)));
        });
        let (tally, mut failed) = result.into_inner().expect("no thread panicked with it");
        failed.sort();
        (tally, failed)
    }
}

/// Worlds of an ordinary run of the tests.
const SEEDS: u64 = 2_000;
/// Failed worlds that are told in full.
const SHOWN: usize = 5;

#[test]
fn every_acknowledged_mail_has_its_end_in_every_world() {
    let (tally, failed) = Seeds::asked_for().run();
    println!("{tally:#?}");
    let again = |(seed, words): &(u64, String)| {
        let test = "simulation::every_acknowledged_mail_has_its_end_in_every_world";
        format!("MAILRACE_SEED={seed} cargo test --test suite -- --exact {test}\n{words}")
    };
    let shown: Vec<_> = failed.iter().take(SHOWN).map(again).collect();
    let count = failed.len();
    assert!(failed.is_empty(), "{count} worlds failed, among them\n{}", shown.join("\n\n"));
    assert_rough(&tally);
}

/// Worlds in which nothing goes wrong would prove nothing: everything that this simulation is for
/// must have happened so often for each 10,000 mails, a quarter of what is usual.
const ROUGHNESS: &[(&str, usize)] = &[
    ("a client falls silent", 51),
    ("a client sends by BDAT", 581),
    ("a client vanishes", 157),
    ("a commit fails and is made void", 45),
    ("a message expires", 319),
    ("a message goes back to where it was", 98),
    ("a message goes by LMTP", 886),
    ("a message goes in one flight", 955),
    ("a message goes to another core", 1831),
    ("a message is set aside", 22),
    ("a message takes several transactions", 49),
    ("a next hop babbles", 233),
    ("a next hop cannot be reached", 2085),
    ("a next hop does not know the BDAT that it offers", 126),
    ("a next hop falls silent", 232),
    ("a next hop hangs up", 225),
    ("a next hop is lost behind the last octet, and has the message", 19),
    ("a next hop is lost behind the last octet, without the message", 21),
    ("a next hop loses count in one flight", 47),
    ("a next hop offers BDAT and does not know it", 127),
    ("a next hop says 421", 226),
    ("a next hop says 4xx", 925),
    ("a next hop says 5xx", 211),
    ("a next hop says what has no place", 231),
    ("a next hop says yes and is gone", 232),
    ("a next hop takes what is written piece by piece", 1079),
    ("a next hop throws away what came with what it refuses", 5),
    ("a read has a wrong bit", 42),
    ("a record cannot be read", 196),
    ("a restart has another number of workers", 213),
    ("a sector that was not synced is dropped", 419),
    ("a sync fails", 41),
    ("a write fails", 193),
    ("an LMTP peer says different things to the recipients of a message", 8),
    ("nobody can know whether a next hop took a message", 323),
    ("of a message the envelope alone can be read", 43),
    ("recovery cuts a torn tail", 6),
    ("several messages are under way over one connection", 219),
    ("the DNS has no answer", 224),
    ("the DNS says that a domain takes no mail", 22),
    ("the disk is full", 24),
    ("the gateway is killed", 266),
    ("the power is cut", 295),
    ("the power is cut in the middle of a write or a sync", 22),
    ("what was not synced is torn", 58),
];

fn assert_rough(tally: &Tally) {
    if tally.mails < 5_000 {
        return;
    }
    let Tally { mails, accepted, refused, repeated, named, late, relayed, lives, moved, .. } =
        *tally;
    assert!(accepted > mails / 2 && refused > mails / 200, "{tally:?}");
    assert!(repeated > mails / 200 && named > mails / 50 && lives > mails / 10, "{tally:?}");
    assert!(late > mails / 50 && relayed > mails / 50, "{tally:?}");
    assert!(moved > mails / 50, "{tally:?}");
    for &(what, least) in ROUGHNESS {
        let count = tally.happened.get(what).copied().unwrap_or_default();
        let is_enough = count * 10_000 >= least * mails;
        assert!(is_enough, "{what}: {count} times for {mails} mails, {least} for 10,000 wanted");
    }
}

/// What the simulation does not see it does not prove.
#[test]
fn every_planted_mistake_is_found() {
    for plant in [
        Plant::EarlyReply,
        Plant::LostDone,
        Plant::LostNotice,
        Plant::EarlyLast,
        Plant::Twice,
        Plant::TwiceLate,
        Plant::Forgotten,
        Plant::LyingSync,
        Plant::NoVoid,
        Plant::EarlyReuse,
        Plant::LostDefer,
        Plant::MixedFlight,
        Plant::HopefulLoss,
        Plant::HalfHeard,
        Plant::DoneForAll,
        Plant::LoneNotice,
        Plant::EverWaiting,
        Plant::Compaction(Mistake::NoSuccessor),
        Plant::Compaction(Mistake::Outdated),
        Plant::Compaction(Mistake::ForgottenDone),
    ] {
        let found = (0..PLANT_SEEDS).find_map(|seed| Some((seed, run(seed, plant).err()?)));
        let Some((seed, words)) = found else {
            panic!("{plant:?} went unnoticed in {PLANT_SEEDS} worlds");
        };
        assert!(!words.contains("panicked"), "{plant:?} made a machine panic with seed {seed}");
        println!("{plant:?}, seed {seed}: {}", words.lines().last().unwrap_or_default());
    }
}

/// Worlds in which a planted mistake must show at the latest.
const PLANT_SEEDS: u64 = 1_000;

#[test]
fn a_world_repeats_itself() {
    for seed in 0..10 {
        assert_eq!(run(seed, Plant::Nothing), run(seed, Plant::Nothing), "seed {seed}");
    }
}
