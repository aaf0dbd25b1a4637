//! Rounds of load and crash on one spool, and the account at their end.
//!
//! A round starts the gateway with another number of workers, sends mixed load, and ends it at a
//! random moment: by `kill -9`, or by a power cut of the disk that it stands on.  After every
//! third crash or so the next start is cut short too, in the midst of its recovery.  What was left
//! is looked through by `mailrace spool verify` before the gateway has it again.  At the end the
//! host comes up for which mail has waited, the queue runs empty, and the books are made.
//!
//! The seed fixes what is done, not how the threads take turns: a run with the same seed is
//! alike, not the same.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;
use mailrace_loadtest::ledger::record::now_ns;
use tempfile::TempDir;

use super::books::{Books, Life};
use super::load::{Load, Source};
use super::mount::{Moment, PowerDisk, with_own_mounts};
use super::volume::{Kept, Lie};
use super::world::World;
use crate::gateway::{Gateway, PATIENCE, binary, wait_until};

/// How the rounds end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Crash {
    /// The process alone goes.
    Kill,
    /// The disk goes, and the process with it.
    PowerCut {
        /// What the disk promises and does not do, to try the campaign itself.
        lie: Option<Lie>,
    },
}

/// A campaign.
#[derive(Debug, Clone, Copy)]
pub struct Campaign {
    /// How its rounds end.
    pub crash: Crash,
    /// Who sends.
    pub sources: &'static [Source],
    /// Whether next hops come up only at the end, so that whatever is forgotten is missed.
    pub all_waits: bool,
    /// How many rounds there are.
    pub rounds: u32,
    /// Messages a second that are tried.
    pub rate: f64,
    /// The longest that a round's load lasts beyond the first acknowledgement.
    pub load: Duration,
    /// From where the random numbers start.
    pub seed: u64,
    /// Whether each round is told.
    pub is_told: bool,
}

/// What a campaign came to.
#[derive(Debug)]
pub struct Outcome {
    /// The account.
    pub books: Books,
    /// What `spool verify` said where it found damage; only a lie makes any.
    pub damage: Vec<String>,
    /// Rounds.
    pub rounds: u32,
    /// The fewest acknowledged messages of a round.
    pub least: u64,
    /// Starts that were cut short.
    pub short_starts: u32,
    /// The longest start, in milliseconds.
    pub start_ms_max: u128,
    /// Messages that waited at the end.
    pub waited: u64,
    /// What it took.
    pub took: Duration,
}

/// Why a campaign could not be brought to its end.
#[derive(Debug)]
pub enum Fault {
    /// The gateway did not start on what was left.
    NotStarted(String),
    /// `spool verify` found damage where only a crash had been.
    Damage(String),
    /// Nothing was acknowledged in a round.
    Silent,
    /// The queue did not run empty.
    Stuck(u64),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::NotStarted(said) => write!(f, "it does not start on what was left:\n{said}"),
            Fault::Damage(said) => write!(f, "a crash left what is called damage:\n{said}"),
            Fault::Silent => write!(f, "nothing was acknowledged"),
            Fault::Stuck(left) => write!(f, "{left} messages stay in the queue"),
        }
    }
}

struct Run {
    campaign: Campaign,
    world: World,
    ground: Ground,
    random: Rng,
    senders: u16,
    lives: Vec<Life>,
    damage: Vec<String>,
    least: u64,
    acknowledged: u64,
    short_starts: u32,
    start_ms_max: u128,
}

/// What the gateway stands on.
enum Ground {
    Folder(PathBuf),
    /// In this order: what is mounted goes before the folder.
    Disk {
        disk: PowerDisk,
        place: TempDir,
    },
}

impl Campaign {
    /// Runs it to its end.
    pub fn run(self) -> Result<Outcome, Fault> {
        match self.crash {
            Crash::Kill => {
                let world = World::start();
                let ground = Ground::Folder(world.file("disk"));
                Run::new(self, world, ground).run()
            }
            Crash::PowerCut { lie } => with_own_mounts(|| {
                let place = TempDir::new().expect("a folder");
                let disk = PowerDisk::mount(place.path(), lie);
                Run::new(self, World::start(), Ground::Disk { disk, place }).run()
            }),
        }
    }
}

impl Run {
    fn new(campaign: Campaign, world: World, ground: Ground) -> Run {
        Run {
            campaign,
            world,
            ground,
            random: Rng::with_seed(campaign.seed),
            senders: 0,
            lives: Vec::new(),
            damage: Vec::new(),
            least: u64::MAX,
            acknowledged: 0,
            short_starts: 0,
            start_ms_max: 0,
        }
    }

    fn run(mut self) -> Result<Outcome, Fault> {
        let begun = Instant::now();
        for round in 1..=self.campaign.rounds {
            if round > 1 && self.random.u8(0..3) == 0 {
                self.start_in_vain();
                self.verify()?;
            }
            let told = self.round()?;
            self.verify()?;
            if self.campaign.is_told {
                let Campaign { rounds, .. } = self.campaign;
                println!("{round:>4} of {rounds}: {told}; {} in all", self.acknowledged);
            }
        }
        let waited = self.run_empty()?;
        self.world.end();
        let books = Books::of(&self.world, &self.ground.path().join("mail"), &self.lives);
        Ok(Outcome {
            books,
            damage: self.damage,
            rounds: self.campaign.rounds,
            least: self.least,
            short_starts: self.short_starts,
            start_ms_max: self.start_ms_max,
            waited,
            took: begun.elapsed(),
        })
    }

    /// One start, load and crash.
    fn round(&mut self) -> Result<String, Fault> {
        let workers = self.random.usize(1..=3);
        let (mut gateway, begun_ns, start_ms) = self.start(workers)?;
        let Campaign { sources, rate, .. } = self.campaign;
        let (smtp, run, random) = (gateway.smtp(0), &mut self.senders, &mut self.random);
        let load = Load::start(&self.world, smtp, sources, rate, run, random);
        let is_heard = wait_until(|| (load.acknowledged() > 0).then_some(()));
        let longest_ms = self.campaign.load.as_millis() as u64;
        thread::sleep(Duration::from_millis(self.random.u64(0..=longest_ms)));
        let crashed_ns = now_ns();
        let how = self.crash(&mut gateway);
        let acknowledged = load.stop();
        self.world.wait_until_read();
        self.lives.push(Life { begun_ns, crashed_ns });
        self.restore();
        self.least = self.least.min(acknowledged);
        self.acknowledged += acknowledged;
        if is_heard.is_none() || acknowledged == 0 {
            return Err(Fault::Silent);
        }
        Ok(format!("{workers} workers, up in {start_ms} ms, {how}, {acknowledged:>4} acknowledged"))
    }

    fn start(&mut self, workers: usize) -> Result<(Gateway, u64, u128), Fault> {
        let (begun_ns, begun) = (now_ns(), Instant::now());
        let gateway = Gateway::start_on(self.world.home(), &self.configuration(workers));
        let gateway = gateway.map_err(Fault::NotStarted)?;
        let start_ms = begun.elapsed().as_millis();
        self.start_ms_max = self.start_ms_max.max(start_ms);
        Ok((gateway, begun_ns, start_ms))
    }

    fn crash(&mut self, gateway: &mut Gateway) -> &'static str {
        match &self.ground {
            Ground::Folder(_) => {
                gateway.kill9();
                "killed"
            }
            Ground::Disk { disk, .. } => {
                let moment = arm(disk, &mut self.random);
                disk.wait_for_cut(Duration::from_millis(500));
                gateway.kill9_and(|| disk.release());
                match moment {
                    Moment::Before => "cut before a change",
                    Moment::Midway => "cut midway in a change",
                    Moment::After => "cut after a change",
                }
            }
        }
    }

    /// A start that comes to its end before, or soon after, it is ready.
    fn start_in_vain(&mut self) {
        self.short_starts += 1;
        let workers = self.random.usize(1..=3);
        let configuration = self.configuration(workers);
        let wait = Duration::from_millis(self.random.u64(5..150));
        let begun_ns = now_ns();
        let home = self.world.home().path();
        match &self.ground {
            Ground::Folder(_) => {
                Gateway::start_and_kill(home, &configuration, || thread::sleep(wait), || {});
            }
            Ground::Disk { disk, .. } => {
                arm(disk, &mut self.random);
                let cut = || disk.wait_for_cut(wait);
                Gateway::start_and_kill(home, &configuration, cut, || disk.release());
            }
        }
        self.world.wait_until_read();
        self.lives.push(Life { begun_ns, crashed_ns: now_ns() });
        self.restore();
    }

    /// The power comes back.
    fn restore(&mut self) {
        let (is_lied_to, is_first) = (self.is_lied_to(), self.lives.len() == 1);
        let Ground::Disk { disk, .. } = &mut self.ground else { return };
        let kept = match self.random.u8(0..6) {
            // A lie, and what was forgotten when the spool was made, show best where all depends
            // on what was promised.
            _ if is_lied_to || is_first => Kept::Nothing,
            0 => Kept::Nothing,
            1 => Kept::Everything,
            2 => Kept::Sectors(0.1),
            3 => Kept::Sectors(0.5),
            4 => Kept::Sectors(0.9),
            _ => Kept::Writes(0.5),
        };
        disk.restart(kept, &mut self.random);
    }

    /// What a crash leaves is not damage.
    fn verify(&mut self) -> Result<(), Fault> {
        // A cut before the first commit may leave no spool at all.
        let is_there = self.ground.path().join("var/data/spool/LOCK").exists();
        if !is_there && self.acknowledged == 0 {
            return Ok(());
        }
        let output = self.mailrace(&["spool", "verify"]);
        if output.status.success() {
            return Ok(());
        }
        let text = String::from_utf8_lossy;
        let said = format!("{}{}", text(&output.stdout), text(&output.stderr));
        if !self.is_lied_to() {
            return Err(Fault::Damage(said));
        }
        self.damage.push(said);
        Ok(())
    }

    fn is_lied_to(&self) -> bool {
        matches!(self.campaign.crash, Crash::PowerCut { lie: Some(_) })
    }

    /// Lets all that is queued be delivered; gives how many messages had waited.
    fn run_empty(&mut self) -> Result<u64, Fault> {
        let (mut gateway, begun_ns, _) = self.start(2)?;
        let waited = self.queued();
        self.world.end_the_wait();
        let (mut left, mut changed) = (waited, Instant::now());
        while left > 0 {
            thread::sleep(Duration::from_millis(100));
            let now = self.queued();
            if now != left {
                (left, changed) = (now, Instant::now());
            }
            match changed.elapsed() {
                // What was found damaged stays there for the operator to see.
                elapsed if self.is_lied_to() && elapsed > PATIENCE / 6 => break,
                elapsed if elapsed > 2 * PATIENCE => return Err(Fault::Stuck(left)),
                _ => {}
            }
        }
        gateway.terminate();
        self.world.wait_until_read();
        self.lives.push(Life { begun_ns, crashed_ns: now_ns() });
        Ok(waited)
    }

    fn queued(&self) -> u64 {
        let output = self.mailrace(&["queue", "count", "--json"]);
        let count: Option<serde_json::Value> = serde_json::from_slice(&output.stdout).ok();
        let messages = count.and_then(|count| count["messages"].as_u64());
        messages.unwrap_or_else(|| panic!("the queue does not answer: {output:?}"))
    }

    fn mailrace(&self, arguments: &[&str]) -> std::process::Output {
        let mut command = Command::new(binary());
        command.args(arguments).arg("--config").arg(self.world.file("mailrace.toml"));
        command.output().expect("the binary starts")
    }

    fn configuration(&self, workers: usize) -> String {
        self.world.configuration(workers, self.ground.path(), self.campaign.all_waits)
    }
}

impl Ground {
    fn path(&self) -> &Path {
        match self {
            Ground::Folder(path) => path,
            Ground::Disk { place, .. } => place.path(),
        }
    }
}

impl Outcome {
    /// What the summary tells, line by line.
    pub fn figures(&self) -> Vec<(&'static str, u64)> {
        let mut figures = vec![
            ("rounds", self.rounds.into()),
            ("starts cut short besides", self.short_starts.into()),
            ("the longest start, ms", self.start_ms_max as u64),
            ("acknowledged in the round with the fewest", self.least),
        ];
        figures.extend(self.books.figures());
        figures.push(("waited in the queue through all of it", self.waited));
        figures.push(("seconds in all", self.took.as_secs()));
        figures
    }
}

/// Lets the power go at a random moment, which is told.
fn arm(disk: &PowerDisk, random: &mut Rng) -> Moment {
    let moment = [Moment::Before, Moment::Midway, Moment::After][random.usize(..3)];
    disk.arm(random.u32(0..40), moment);
    moment
}
