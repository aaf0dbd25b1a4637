//! The simulator: clients, gateway and next hops joined in memory under virtual time, with a disk
//! and a network that misbehave; everything follows from a seed.
//!
//! A world has a rough time, in which anything may fail, and is then healed.  It has to come to
//! rest, and the [`books`] have to balance.  `MAILRACE_SEED=n` runs one world (with
//! `MAILRACE_TRACE=1` it is told step by step), `MAILRACE_SEEDS=n` so many.
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
use std::sync::Arc;

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
            [] => Ok(Ending { tally: self.scene.books.tally(), digest: self.scene.digest() }),
            problems => Err(format!("{:?}\n{}", self.scene.plan, problems.join("\n"))),
        }
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
        scene.books.crash(power);
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
        if self.scene.is_rough && self.scene.chance(300) {
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
        let (live, _) = self.gateway.as_ref().map_or((0, 0), Gateway::live);
        if live > 0 {
            self.scene.books.problem(format!("the queue is empty and {live} records are live"));
        }
        self.crash(true);
        self.gateway = Gateway::start(&mut self.scene, &self.disk);
        let Some(gateway) = &self.gateway else {
            return self.scene.books.problem("a healed log cannot be recovered".to_owned());
        };
        let (live, messages) = (gateway.live().0, gateway.report.live_messages);
        if live + messages > 0 {
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

fn seeds() -> std::ops::Range<u64> {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse().ok());
    match (number("MAILRACE_SEED"), number("MAILRACE_SEEDS")) {
        (Some(seed), _) => seed..seed + 1,
        (None, count) => 0..count.unwrap_or(SEEDS),
    }
}

/// Worlds of an ordinary run of the tests.
const SEEDS: u64 = 800;
/// Failed worlds that are told in full.
const SHOWN: usize = 5;

#[test]
fn every_acknowledged_mail_has_its_end_in_every_world() {
    let mut tally = Tally::default();
    let mut failed = Vec::new();
    for seed in seeds() {
        match run(seed, Plant::Nothing) {
            Ok(world) => tally += world.tally,
            Err(words) => failed.push(format!("MAILRACE_SEED={seed}\n{words}")),
        }
    }
    println!("{tally:?}");
    assert_rough(&tally);
    let count = failed.len();
    failed.truncate(SHOWN);
    assert!(failed.is_empty(), "{count} worlds failed, among them\n{}", failed.join("\n\n"));
}

/// Worlds in which nothing goes wrong would prove nothing.
fn assert_rough(tally: &Tally) {
    if tally.mails > 1_000 {
        let Tally {
            mails, accepted, refused, repeated, named, late, relayed, lives, moved, ..
        } = *tally;
        assert!(accepted > mails / 2 && refused > mails / 200, "{tally:?}");
        assert!(repeated > mails / 200 && named > mails / 50 && lives > mails / 10, "{tally:?}");
        assert!(late > mails / 50 && relayed > mails / 50, "{tally:?}");
        assert!(moved > mails / 50, "{tally:?}");
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
        Plant::Compaction(Mistake::NoSuccessor),
        Plant::Compaction(Mistake::Outdated),
        Plant::Compaction(Mistake::ForgottenDone),
    ] {
        let found = (0..PLANT_SEEDS).find_map(|seed| Some((seed, run(seed, plant).err()?)));
        let Some((seed, words)) = found else {
            panic!("{plant:?} went unnoticed in {PLANT_SEEDS} worlds");
        };
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
