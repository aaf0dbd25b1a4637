//! The log's side of the maintenance: which chores the present state asks for, and what becomes of
//! their results.

use std::sync::atomic::Ordering::Relaxed;

use super::super::chore::{Chore, ChoreDone, Spare};
use super::super::disk::{Disk, FileNo};
use super::super::format::header::SegmentHeader;
use super::super::sealed::Completion;
use super::super::stats::Health;
use super::{Log, SegmentFile, SegmentNo};

impl<D: Disk> Log<D> {
    /// Takes a chore's result, and goes on with what waited for it.
    pub fn chore_done(&mut self, result: ChoreDone) -> Vec<Completion> {
        match result {
            ChoreDone::Created(spare) => {
                (self.is_creating, self.is_full) = (false, false);
                self.spares.push_back(spare);
            }
            ChoreDone::NotCreated(error) => {
                if !self.is_full {
                    tracing::error!(%error, "no segment can be made: new messages are refused");
                }
                (self.is_creating, self.is_full) = (false, true);
                self.stats.chore_failures.fetch_add(1, Relaxed);
            }
            ChoreDone::Retired { segment, spare } => self.segment_retired(segment, spare),
            ChoreDone::NotRetired { segment, error } => {
                tracing::error!(%segment, %error, "a dead segment could not be retired yet");
                self.unretired.push(segment);
                self.stats.chore_failures.fetch_add(1, Relaxed);
            }
            ChoreDone::Surveyed { survey, segment, result } => {
                self.surveyed(survey, segment, result);
            }
            ChoreDone::Planned(plan) => self.planned(*plan),
            ChoreDone::Copied(made) => self.copied(*made),
            ChoreDone::Housekeeping => {}
            ChoreDone::HousekeepingFailed(error) => {
                tracing::warn!(%error, "maintenance of the spool failed");
                self.stats.chore_failures.fetch_add(1, Relaxed);
            }
        }
        let mut done = Vec::new();
        self.advance(&mut done);
        done
    }

    /// Hands out the chores that the present state asks for, and shows it.
    pub(super) fn settle(&mut self) {
        if self.has_failed {
            self.stats.set_health(Health::Failed);
            return;
        }
        // An outcome that is not durable yet must not cost the segment of its message.
        if !self.head.has_unsynced {
            for segment in self.accounts.take_dead() {
                self.retire(segment);
            }
        }
        if self.spares.len() < self.options.spares && !self.is_creating && !self.is_full {
            self.create_spare();
        }
        self.stats.set_health(if self.is_short_of_room() { Health::Full } else { Health::Good });
        self.stats.segments_used.store(self.accounts.segments() as u64, Relaxed);
        self.stats.segments_spare.store(self.spares.len() as u64, Relaxed);
        self.stats.live_records.store(self.accounts.live(), Relaxed);
    }

    pub(super) fn create_spare(&mut self) {
        let file = self.next_file;
        let Some(next) = file.0.checked_add(1) else {
            return;
        };
        self.next_file = FileNo(next);
        self.is_creating = true;
        let segment_bytes = self.options.segment_bytes;
        self.chores.push_back(Chore::Create { file, segment_bytes });
    }

    fn retire(&mut self, segment: SegmentNo) {
        let Some(dead) = self.segments.get_mut(&segment) else {
            return;
        };
        // A large message whose attempt began before it was moved, or ended elsewhere.
        if !self.table.remove_unread(segment) {
            self.unretired.push(segment);
            return;
        }
        // One more for each attempt, so that a header of which half was written loses.
        dead.header.revision += 1;
        let SegmentFile { file, is_damaged, header: SegmentHeader { revision, .. }, .. } = *dead;
        self.chores.push_back(Chore::Retire {
            segment,
            file,
            segment_bytes: self.options.segment_bytes,
            revision,
            quarantine: is_damaged,
        });
    }

    fn segment_retired(&mut self, segment: SegmentNo, spare: Option<Spare>) {
        self.accounts.retired(segment);
        self.suspect.remove(&segment);
        if let Some(dead) = self.segments.remove(&segment).filter(|file| file.is_damaged) {
            self.stats.segments_damaged.fetch_sub(1, Relaxed);
            let leaving = Chore::SetAside { file: dead.file };
            match dead.was_damaged {
                true => self.chores.push_back(leaving),
                false => self.leaving.add(leaving),
            }
        }
        for id in self.moved_into.remove(&segment).unwrap_or_default() {
            self.table.forget_moved(id, segment);
        }
        self.stats.retired.fetch_add(1, Relaxed);
        match spare {
            Some(spare) if self.spares.len() >= self.options.spares_max => {
                self.leaving.add(Chore::Remove { file: spare.file });
            }
            spare => self.spares.extend(spare),
        }
    }
}
