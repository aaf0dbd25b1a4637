//! The gateway's log: what the committer and the maintenance do, and how their news get back.

use mailrace::spool::Completion;

use super::super::scene::{Scene, Task};
use super::super::worker::Waiting;
use super::{Errand, Gateway};

impl Gateway {
    /// The completions go to their workers, after as long as the disk took.
    pub(super) fn complete(&mut self, scene: &mut Scene, done: Vec<Completion>) {
        // Now and then a disk takes its time.
        let is_slow = scene.chance(50);
        let wait_us = scene.wait_us(if is_slow { 3_000..400_000 } else { 100..3_000 });
        for completion in done {
            self.shared.errand(scene, wait_us, Errand::Completed(completion));
        }
    }

    pub(super) fn completed(&mut self, scene: &mut Scene, completion: Completion) {
        let worker = &mut self.workers[completion.worker];
        let settled = worker.appender.completed(completion, scene.now());
        if let Some(batch) = &settled.batch {
            worker.remember(batch.downgrade());
        }
        let index = worker.index;
        let mut woken = Vec::new();
        for record in settled.records {
            let worker = &mut self.workers[index];
            let Some(waiting) = worker.waiting.remove(&record.ticket) else { continue };
            match (waiting, record.result) {
                (Waiting::Message { link, filing }, result) => {
                    if let Ok(place) = result {
                        worker.file(&self.shared, scene, filing, place);
                    }
                    woken.push((link, record));
                }
                (Waiting::Chunk { link }, _) => woken.push((link, record)),
                (Waiting::Notice { filing }, Ok(place)) => {
                    worker.file(&self.shared, scene, filing, place);
                }
                (Waiting::Done { keys, ends, part }, Ok(_)) => {
                    keys.iter().for_each(|key| scene.books.kept(key));
                    scene.books.ended(&ends);
                    if let Some(part) = part {
                        worker.part_kept(scene, &part);
                    }
                }
                (Waiting::Defer { keys, until_unix_ms }, Ok(_)) => {
                    scene.books.waits(&keys, until_unix_ms);
                }
                // The log has stopped for good; a restart finds things as they were.
                (Waiting::Notice { .. } | Waiting::Done { .. } | Waiting::Defer { .. }, Err(_)) => {
                    scene.happens("the log stops for good with an outcome on its way");
                }
            }
        }
        drop(settled.batch);
        for (link, record) in woken {
            self.session(scene, link, |session, scene| session.settled(scene, record));
        }
    }

    pub(super) fn chore(&mut self, scene: &mut Scene) {
        self.maintenance_is_called = false;
        let Some(chore) = self.chores.pop_front() else { return };
        let mut random = scene.random.fork();
        let result = chore.perform(&*self.shared.disk, &mut || random.u64(..));
        let done = self.log.chore_done(result);
        self.complete(scene, done);
    }

    /// After every errand: what was appended goes to the committer, chores to the maintenance.
    pub(super) fn settle(&mut self, scene: &mut Scene) {
        for worker in &mut self.workers {
            self.inbox.append(&mut worker.sealed);
            while let Some(batch) = worker.appender.seal(scene.now()) {
                self.inbox.push(batch);
            }
            let deadline = worker.appender.deadline();
            if let Some(time) = deadline
                && worker.deadline != deadline
            {
                worker.deadline = deadline;
                let errand = Errand::Appender(worker.index);
                scene.at(time, Task::Gateway(self.shared.life, errand));
            }
        }
        if !self.inbox.is_empty() && !self.committer_is_called {
            self.committer_is_called = true;
            let wait_us = scene.wait_us(10..2_000);
            self.shared.errand(scene, wait_us, Errand::Commit);
        }
        self.chores.extend(std::iter::from_fn(|| self.log.poll_chore()));
        if !self.chores.is_empty() && !self.maintenance_is_called {
            self.maintenance_is_called = true;
            let wait_us = scene.wait_us(10..20_000);
            self.shared.errand(scene, wait_us, Errand::Chore);
        }
    }
}
