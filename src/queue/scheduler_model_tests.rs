//! The schedulers of several cores by chance: whatever happens, in whatever order, every handle is
//! in one place, no site has more connections than it may, and in the end everything is delivered.

use super::tests::check;
use super::*;
use crate::config::Target;
use crate::delivery::reach::Reach;
use crate::spool::{RecordPlace, SegmentNo};

const START: u64 = 1_735_689_600_000;
/// No message of these worlds expires.
const LIFETIME: u64 = 1_000_000_000;
const LIMITS: [u32; 3] = [1, 3, 8];

/// A connection that the driver has been asked for, and what it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Doing {
    Opening,
    Idle,
    Sending(Slot),
    Ending,
}

struct Core {
    scheduler: Scheduler,
    connections: Vec<(SiteIndex, ConnectionId, Doing)>,
    asked: Vec<DestinationIndex>,
}

struct World {
    random: fastrand::Rng,
    now: u64,
    cores: Vec<Core>,
    /// Handles between two cores.
    between: Vec<(u32, Destination, Handle)>,
    sites: Vec<Arc<SiteShared>>,
    filed: usize,
    ended: usize,
    /// Nothing fails any more.
    is_well: bool,
}

impl World {
    fn new(seed: u64, cores: u32) -> World {
        let site = |(number, &limit): (usize, &u32)| {
            let reach = Reach::fixed(&Target::Discard, None);
            Arc::new(SiteShared::new(SiteId(10 + number as u64), "site", limit, cores, reach))
        };
        let sites: Vec<_> = LIMITS.iter().enumerate().map(site).collect();
        let fixed = SiteShared::new(SiteId(0), "f", 2, cores, Reach::fixed(&Target::Discard, None));
        let rule = |lead| CourseRules { lead, lifetime_ms: LIFETIME, late_ms: None };
        let rules =
            vec![rule(Lead::Exchangers), rule(Lead::Site(Arc::new(fixed))), rule(Lead::Exchangers)];
        let core = |core| Core {
            scheduler: Scheduler::new(core, cores, rules.clone()),
            connections: Vec::new(),
            asked: Vec::new(),
        };
        World {
            random: fastrand::Rng::with_seed(seed),
            now: START,
            cores: (0..cores).map(core).collect(),
            between: Vec::new(),
            sites,
            filed: 0,
            ended: 0,
            is_well: false,
        }
    }

    fn handle(&mut self, core: usize, event: Event) {
        let now = self.now;
        self.cores[core].scheduler.handle(event, now);
        self.act(core);
    }

    fn act(&mut self, core: usize) {
        while let Some(action) = self.cores[core].scheduler.poll_action() {
            let at = &mut self.cores[core];
            match action {
                Action::Resolve { destination } => at.asked.push(destination),
                Action::Open { site, connection } => {
                    at.connections.push((site, connection, Doing::Opening));
                }
                Action::Deliver { connection, slot } => {
                    let to = at.connections.iter_mut().find(|other| other.1 == connection);
                    let to = to.expect("a connection that is there");
                    assert_eq!(to.2, Doing::Idle, "only what is ready is given a message");
                    to.2 = Doing::Sending(slot);
                }
                Action::Close { connection } => {
                    let to = at.connections.iter_mut().find(|other| other.1 == connection);
                    let to = to.expect("a connection that is there");
                    assert_eq!(to.2, Doing::Idle, "only what waits is told to end");
                    to.2 = Doing::Ending;
                }
                Action::Refuse { slot, .. } | Action::Expire { slot } => {
                    assert!(at.scheduler.finish(slot).is_some());
                    self.ended += 1;
                }
                Action::Delay { .. } => unreachable!("nobody is told of delays here"),
                Action::Forward { core } => {
                    let (destination, handle) = at.scheduler.take_leaving().expect("one leaves");
                    self.between.push((core, destination, handle));
                }
            }
        }
    }

    fn step(&mut self) {
        self.now += self.random.u64(0..400);
        let core = self.random.usize(0..self.cores.len());
        match self.random.u8(0..12) {
            0..3 if !self.is_well => self.file(core),
            3..5 => self.resolve(core),
            5..8 => self.connection(core),
            8 | 9 if !self.between.is_empty() => {
                let place = self.random.usize(0..self.between.len());
                let (core, destination, handle) = self.between.swap_remove(place);
                self.handle(core as usize, Event::Filed { destination, handle, stay: true });
            }
            10 if !self.is_well => self.operator(core),
            _ => self.handle(core, Event::Tick),
        }
    }

    fn file(&mut self, core: usize) {
        let number = self.filed as u64;
        self.filed += 1;
        let course = CourseIndex(self.random.u32(0..3));
        let domain = (course.0 != 1).then(|| format!("{}.example", self.random.u8(0..6)).into());
        let place = RecordPlace { segment: SegmentNo(1), offset: 64, length: 64 };
        let handle = Handle::new(MessageId(number << 23), place, Recipients::All(1), None);
        let destination = Destination { course, domain };
        let stay = self.random.bool();
        self.handle(core, Event::Filed { destination, handle, stay });
    }

    fn resolve(&mut self, core: usize) {
        if self.cores[core].asked.is_empty() {
            return;
        }
        let place = self.random.usize(0..self.cores[core].asked.len());
        let destination = self.cores[core].asked.swap_remove(place);
        let until_unix_ms = self.now + self.random.u64(0..5_000);
        let fails = if self.is_well { 9 } else { self.random.u8(0..10) };
        let resolution = match fails {
            0 => {
                let status = crate::smtp::code::EnhancedCode::new(5, 1, 2).unwrap();
                let verdict = Arc::new(Verdict { status, text: "no".into() });
                Resolution::NoMail { verdict, until_unix_ms }
            }
            1 | 2 => Resolution::Later { reason: Reason::new("later".into()), until_unix_ms },
            _ => {
                let shared = self.sites[self.random.usize(0..self.sites.len())].clone();
                Resolution::Site { shared, until_unix_ms }
            }
        };
        self.handle(core, Event::Resolved { destination, resolution });
    }

    fn connection(&mut self, core: usize) {
        let at = &mut self.cores[core];
        if at.connections.is_empty() {
            return;
        }
        let place = self.random.usize(0..at.connections.len());
        let (site, connection, doing) = at.connections[place];
        let fails = !self.is_well && self.random.u8(0..4) == 0;
        match doing {
            Doing::Sending(slot) => {
                match self.random.u8(0..6) {
                    0 if fails => self.handle(core, Event::Returned { slot }),
                    1 if fails => {
                        let due_unix_ms = self.now + self.random.u64(0..3_000);
                        let (recipients, reason) = (Recipients::All(1), Some(Reason::default()));
                        let event = Event::Deferred { slot, recipients, due_unix_ms, reason };
                        self.handle(core, event);
                    }
                    _ => {
                        assert!(self.cores[core].scheduler.finish(slot).is_some());
                        self.ended += 1;
                    }
                }
                self.cores[core].connections[place].2 = Doing::Idle;
                self.handle(core, Event::ConnectionReady { site, connection });
            }
            Doing::Opening if !fails => {
                let shared = self.cores[core].scheduler.site(site).expect("it is in use").clone();
                shared.recover();
                self.cores[core].connections[place].2 = Doing::Idle;
                self.handle(core, Event::ConnectionReady { site, connection });
            }
            Doing::Opening => {
                let shared = self.cores[core].scheduler.site(site).expect("it is in use").clone();
                shared.fail(self.now + self.random.u64(0..4_000), "refused");
                self.close(core, place);
            }
            Doing::Ending => self.close(core, place),
            Doing::Idle if self.random.u8(0..3) == 0 => {
                self.handle(core, Event::ConnectionLeaving { site, connection });
                self.close(core, place);
            }
            Doing::Idle => {}
        }
    }

    fn close(&mut self, core: usize, place: usize) {
        let (site, connection, _) = self.cores[core].connections.swap_remove(place);
        self.handle(core, Event::ConnectionClosed { site, connection });
    }

    fn operator(&mut self, core: usize) {
        let slots: Vec<Slot> = self.cores[core].scheduler.iter().map(|(slot, _)| slot).collect();
        if slots.is_empty() {
            return;
        }
        let slot = slots[self.random.usize(0..slots.len())];
        match self.random.u8(0..3) {
            0 => self.handle(core, Event::Retry { slot }),
            1 => {
                let domain = format!("{}.example", self.random.u8(0..6)).into();
                self.handle(core, Event::RetryDomain { domain });
            }
            _ => {
                let scheduler = &mut self.cores[core].scheduler;
                if scheduler.get(slot).is_some_and(|handle| handle.state != State::Active) {
                    scheduler.finish(slot);
                    self.ended += 1;
                }
            }
        }
    }

    fn check(&mut self) {
        let mut open: HashMap<SiteId, (u32, u32)> = HashMap::new();
        for core in &mut self.cores {
            check(&mut core.scheduler);
            for (_, queue) in core.scheduler.sites.iter() {
                let of_site = open.entry(queue.shared.id()).or_default();
                of_site.0 += queue.open;
                of_site.1 += u32::from(queue.serves);
            }
        }
        for site in &self.sites {
            let (connections, members) = open.get(&site.id()).copied().unwrap_or_default();
            assert_eq!((site.connections(), site.members()), (connections, members));
            assert!(site.connections() <= site.limit());
        }
        let queued: usize = self.cores.iter().map(|core| core.scheduler.len()).sum();
        assert_eq!(queued + self.between.len() + self.ended, self.filed, "each in one place");
    }
}

#[test]
fn whatever_happens_each_handle_is_in_one_place_and_all_are_delivered() {
    for seed in 0..24 {
        let mut world = World::new(seed, 1 + (seed % 4) as u32);
        for step in 0..600 {
            world.step();
            // Each is a look at everything.
            if step % 3 == 0 {
                world.check();
            }
        }
        world.is_well = true;
        let mut steps = 0;
        while world.ended < world.filed {
            world.step();
            steps += 1;
            assert!(steps < 200_000, "seed {seed}: {} of {} ended", world.ended, world.filed);
        }
        world.check();
    }
}
