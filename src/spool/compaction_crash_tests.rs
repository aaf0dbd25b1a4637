//! What is left of messages when the compaction is interrupted, by crashes, cuts of the power and a
//! disk that refuses: random changes against a model.

use super::*;

/// A message as its sender and the queue know it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Model {
    place: RecordPlace,
    body: Vec<u8>,
    done: BTreeSet<u16>,
    waits: BTreeMap<u16, String>,
}

const RECIPIENTS: u16 = 3;

#[derive(Default)]
struct World {
    models: BTreeMap<u64, Model>,
    /// A change of these was appended and its answer has not come.
    open: BTreeSet<u64>,
    next_id: u64,
}

impl World {
    /// One change, and its answer if there is one.
    fn change(&mut self, bench: &mut Bench, random: &mut u64) {
        let count = self.models.len() as u64;
        let pick = (next(random) % count.max(1)) as usize;
        let known = self.models.keys().nth(pick).copied().filter(|_| count > 0);
        let young = self.models.keys().next_back().copied();
        match (next(random) % 8, known, young) {
            (0..4, _, _) | (_, None, _) => self.accept(bench, random),
            // Most are delivered soon.
            (4 | 5, _, Some(id)) => self.end(bench, id),
            (6, Some(id), _) => self.wait(bench, id, random),
            (_, Some(id), _) => self.deliver_one(bench, id, random),
        }
    }

    fn accept(&mut self, bench: &mut Bench, random: &mut u64) {
        self.next_id += 1;
        let id = self.next_id;
        let is_large = next(random).is_multiple_of(12);
        self.open.insert(id);
        let mut mail = Mail::new(
            id,
            RECIPIENTS.into(),
            (next(random) % 4000) as usize * usize::from(!is_large),
        );
        let mut chunks = Vec::new();
        for index in 0..3 * u32::from(is_large) {
            let Ok(mut chunk) = bench.appender.chunk_buffer() else { return };
            chunk.spare()[..6000].fill((index as u8).wrapping_add(id as u8));
            mail.body.extend_from_slice(&chunk.spare()[..6000]);
            chunk.advance(6000);
            let chunk = bench.appender.append_chunk(chunk, MessageId(id), index);
            let settled = bench.commit();
            let place = settled.iter().find(|settled| settled.ticket == chunk.ticket);
            let Some(Ok(place)) = place.map(|settled| settled.result) else {
                return bench.appender.abandon_upload(MessageId(id));
            };
            chunks.push(ChunkPlace { place, octets: chunk.octets, crc32c: chunk.crc32c });
        }
        let new_body =
            if is_large { NewBody::Chunks(&chunks) } else { NewBody::Inline(&mail.body) };
        let appended =
            mail.with(new_body, |message| bench.appender.append_message(message, bench.now));
        let Ok(ticket) = appended else { return };
        let settled = bench.commit();
        let own = settled.iter().find(|settled| settled.ticket == ticket);
        match own.map(|settled| settled.result) {
            Some(Ok(place)) => {
                let (done, waits) = Default::default();
                self.models.insert(id, Model { place, body: mail.body, done, waits });
            }
            Some(Err(CommitError::Disk(_) | CommitError::Full)) => {}
            // A log that has stopped cannot say what the disk holds.
            _ => return,
        }
        self.open.remove(&id);
    }

    fn end(&mut self, bench: &mut Bench, id: u64) {
        let segment = self.models[&id].place.segment;
        let done = Done { id: MessageId(id), segment, recipients: Recipients::All, last: true };
        let ticket = bench.appender.append_done(&done, bench.now);
        if self.answered(bench, id, ticket) {
            self.models.remove(&id);
        }
    }

    fn wait(&mut self, bench: &mut Bench, id: u64, random: &mut u64) {
        let model = &self.models[&id];
        let reply = format!("{:x}", next(random) % 4096);
        let some: Vec<u16> = (0..RECIPIENTS).filter(|no| !model.done.contains(no)).collect();
        let wait = match next(random) % 2 {
            0 => defer(id, model.place, Recipients::All, &reply),
            _ => defer(id, model.place, Recipients::Some(&some[..1]), &reply),
        };
        let whom = if wait.recipients == Recipients::All { &some[..] } else { &some[..1] };
        let ticket = bench.appender.append_defer(&wait, bench.now);
        if self.answered(bench, id, ticket) {
            let waits = &mut self.models.get_mut(&id).unwrap().waits;
            whom.iter().for_each(|&no| drop(waits.insert(no, reply.clone())));
        }
    }

    fn deliver_one(&mut self, bench: &mut Bench, id: u64, random: &mut u64) {
        let no = (next(random) % u64::from(RECIPIENTS)) as u16;
        let model = &self.models[&id];
        if model.done.contains(&no) || model.done.len() + 1 >= RECIPIENTS.into() {
            return;
        }
        let (segment, recipients) = (model.place.segment, [no]);
        let recipients = Recipients::Some(&recipients);
        let done = Done { id: MessageId(id), segment, recipients, last: false };
        let ticket = bench.appender.append_done(&done, bench.now);
        if self.answered(bench, id, ticket) {
            let model = self.models.get_mut(&id).unwrap();
            model.done.insert(no);
            model.waits.remove(&no);
        }
    }

    fn answered(&mut self, bench: &mut Bench, id: u64, ticket: crate::spool::Ticket) -> bool {
        let is_first = self.open.insert(id);
        let settled = bench.commit();
        let is_answered =
            settled.iter().any(|settled| settled.ticket == ticket && settled.result.is_ok());
        // An outcome that the disk refused is appended again, some time later.
        if is_answered && is_first {
            self.open.remove(&id);
        }
        is_answered
    }

    /// What recovery found must be what is known; what was open may be either way.
    fn check(&mut self, found: &Bench, what: &str) {
        assert_eq!(found.report.damage_count, 0, "{what}: {:?}", found.report.damage);
        self.check_messages(found, what);
    }

    fn check_messages(&mut self, found: &Bench, what: &str) {
        let messages: BTreeMap<u64, &RecoveredMessage> =
            found.kept.messages.iter().map(|found| (found.message.id.0, found)).collect();
        for (id, model) in &self.models {
            let Some(message) = messages.get(id) else {
                assert!(self.open.contains(id), "{what}: message {id} is gone");
                continue;
            };
            assert_eq!(body(found, *id, message.place), model.body, "{what}: message {id}");
            if self.open.contains(id) {
                continue;
            }
            let (done, waits) = waits(message);
            assert_eq!(done.into_iter().collect::<BTreeSet<_>>(), model.done, "{what}: {id}");
            let flat = waits
                .into_iter()
                .flat_map(|(reply, whom, _)| whom.into_iter().map(move |no| (no, reply.clone())));
            assert_eq!(flat.collect::<BTreeMap<_, _>>(), model.waits, "{what}: {id}");
        }
        for id in messages.keys() {
            let is_known = self.models.contains_key(id) || self.open.contains(id);
            assert!(is_known, "{what}: message {id} has ended and is back");
        }
        // What was open is now one or the other.
        for id in std::mem::take(&mut self.open) {
            self.models.remove(&id);
            if let Some(message) = messages.get(&id) {
                let (done, waits) = waits(message);
                let flat = waits.into_iter().flat_map(|(reply, whom, _)| {
                    whom.into_iter().map(move |no| (no, reply.clone()))
                });
                let model = Model {
                    place: message.place,
                    body: body(found, id, message.place),
                    done: done.into_iter().collect(),
                    waits: flat.collect(),
                };
                self.models.insert(id, model);
            }
        }
        for (id, model) in &mut self.models {
            model.place = messages[id].place;
        }
    }
}

fn turn(world: &mut World, bench: &mut Bench, random: &mut u64) {
    bench.is_lazy = next(random).is_multiple_of(3);
    world.change(bench, random);
    if next(random).is_multiple_of(2) {
        bench.tick();
    }
}

/// The power goes in the middle of one disk operation after the other, those of the compaction
/// among them.
#[test]
fn a_crash_at_every_write_point_of_a_compaction_loses_nothing() {
    let mut moved = 0;
    for seed in 1..=3u64 {
        let mut operation = 5;
        loop {
            let disk = SimDisk::new(seed * 10_000 + operation);
            let (mut random, mut world) = (seed, World::default());
            disk.crash_at(operation);
            let mut has_crashed = false;
            if let Ok(mut bench) = Bench::with(&disk, COMPACTING) {
                for _ in 0..160 {
                    turn(&mut world, &mut bench, &mut random);
                    has_crashed = disk.is_down();
                    if has_crashed {
                        break;
                    }
                }
                moved +=
                    bench.log.stats().messages_moved.load(std::sync::atomic::Ordering::Relaxed);
            }
            let what = format!("seed {seed}, operation {operation}");
            disk.restart();
            let found =
                Bench::with(&disk, COMPACTING).unwrap_or_else(|error| panic!("{what}: {error}"));
            world.check(&found, &what);
            let mut again = found.reborn(true);
            world.check(&again, &format!("{what}, second recovery"));
            for _ in 0..10 {
                turn(&mut world, &mut again, &mut random);
            }
            settle(&mut again);
            world.check(&again.reborn(true), &format!("{what}, later"));
            if !has_crashed {
                break;
            }
            operation += 1;
        }
    }
    assert!(moved > 1000, "there was something to compact: {moved}");
}

/// Long runs with failing writes and syncs, crashes of the process and of the power.
#[test]
fn faults_and_crashes_during_compactions_lose_nothing() {
    let mut moved = 0;
    for seed in 1..=40u64 {
        let disk = SimDisk::new(seed);
        let (mut random, mut world) = (seed * 31 + 7, World::default());
        for life in 0..6 {
            disk.set_faults(Faults::default());
            disk.restart();
            let what = format!("seed {seed}, life {life}");
            let mut bench =
                Bench::with(&disk, COMPACTING).unwrap_or_else(|error| panic!("{what}: {error}"));
            // A failed sync of chunks that no message names yet shows as damage.
            world.check_messages(&bench, &what);
            disk.set_faults(Faults {
                write_failures_permil: (next(&mut random) % 15) as u32,
                sync_failures_permil: (next(&mut random) % 15) as u32,
                files_max: 16 + (next(&mut random) % 20) as usize,
                read_flips_permil: 0,
            });
            for _ in 0..next(&mut random) % 200 {
                turn(&mut world, &mut bench, &mut random);
                if bench.log.stats().health() == Health::Failed {
                    break;
                }
            }
            if !disk.is_down() && next(&mut random).is_multiple_of(2) {
                disk.crash_at(disk.operations() + 1 + next(&mut random) % 4);
                (0..3).for_each(|_| turn(&mut world, &mut bench, &mut random));
            }
            moved += bench.log.stats().messages_moved.load(std::sync::atomic::Ordering::Relaxed);
        }
    }
    assert!(moved > 500, "there was something to compact: {moved}");
}
