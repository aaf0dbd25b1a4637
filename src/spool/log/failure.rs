//! What the log does when the disk refuses: records durably that the refused batches are void,
//! remembers what may be lost, stops where not even that can be said.

use std::io;

use super::super::chore::{Chore, write_header_block};
use super::super::disk::Disk;
use super::super::format::batch;
use super::super::format::message::{self, ChunkPlace};
use super::super::format::record::Kind;
use super::super::sealed::{CommitError, Completion, SealedBatch};
use super::head::header_block;
use super::{Head, Log, SegmentNo, open_header};
use std::sync::atomic::Ordering::Relaxed;

#[derive(Debug)]
pub(super) struct RefusedGroup {
    pub(super) batches: Vec<SealedBatch>,
    pub(super) error: io::Error,
    /// It was a sync that was refused, so that another one would say nothing.
    pub(super) was_sync: bool,
}

impl<D: Disk> Log<D> {
    /// Syncs what was acknowledged without a sync in the segment that is being closed by a failure.
    pub(super) fn sync_closed(&mut self, was_sync: bool) {
        if !self.head.has_unsynced {
            return;
        }
        // A sync that was refused once would lie the second time.
        if !was_sync && self.disk.sync(self.head.file).is_ok() {
            self.head.has_unsynced = false;
            return;
        }
        tracing::error!(segment = %self.head.header.segment,
            "messages taken with durability = \"os\" before the disk's refusal may not survive a \
             power cut");
        self.mark_damaged(self.head.header.segment);
        self.suspect_unsynced();
    }

    pub(super) fn suspect_unsynced(&mut self) {
        if self.head.has_unsynced {
            self.suspect.insert(self.head.header.segment, self.head.synced);
        }
    }

    /// Whether the batch has a message with a chunk whose sync failed.
    pub(super) fn names_suspect(&self, batch: &SealedBatch) -> bool {
        let is_suspect = |chunk: ChunkPlace| {
            let from = self.suspect.get(&chunk.place.segment);
            from.is_some_and(|&from| chunk.place.offset >= from)
        };
        !self.suspect.is_empty()
            && batch::records(batch.payload())
                .flatten()
                .filter(|(_, record)| record.kind() == Kind::Message)
                .filter_map(|(_, record)| message::chunks(&record).ok())
                .any(|mut chunks| chunks.any(is_suspect))
    }

    /// Records durably that the refused batches are void, then tells so.  Gives whether the log
    /// can go on.
    pub(super) fn void_refused(&mut self, done: &mut Vec<Completion>) -> bool {
        // Before the next header's roll call, which leaves damaged segments out.
        if self.refused.as_ref().is_some_and(|group| !is_out_of_space(&group.error)) {
            self.mark_damaged(self.head.header.segment);
        }
        while let Some(spare) = self.spares.pop_front() {
            let Some(next) = self.next_segment() else {
                return false;
            };
            let header = open_header(
                &self.options,
                spare,
                next,
                self.head.header.segment,
                self.last_sequence,
                self.next_sequence,
            );
            let block = header_block(&header, self.spool, &self.segments);
            if let Err(error) = write_header_block(&*self.disk, spare.file, &block) {
                tracing::error!(file = spare.file.0, %error, "a spare segment refused its header");
                self.chores.push_back(Chore::SetAside { file: spare.file });
                continue;
            }
            let RefusedGroup { batches, error, was_sync } =
                self.refused.take().expect("called only with a refused group");
            self.close_head();
            self.sync_closed(was_sync);
            self.durable_through = self.last_sequence;
            self.head = Head::new(header, spare.file, true);
            self.install_head();
            let error = CommitError::Disk(error.kind());
            done.extend(batches.into_iter().map(|batch| batch.refused(error)));
            return true;
        }
        if self.is_full || !self.is_creating {
            self.fail("a failed commit could not be recorded as void");
        }
        false
    }

    pub(super) fn mark_damaged(&mut self, segment: SegmentNo) {
        if let Some(file) = self.segments.get_mut(&segment)
            && !file.is_damaged
        {
            file.is_damaged = true;
            self.stats.segments_damaged.fetch_add(1, Relaxed);
        }
    }

    pub(super) fn fail(&mut self, why: &str) {
        tracing::error!("the log stops: {why}");
        self.has_failed = true;
    }

    pub(super) fn refuse_all(&mut self, done: &mut Vec<Completion>) {
        let refused = self.refused.take().map(|group| group.batches).unwrap_or_default();
        let all = refused.into_iter().chain(self.waiting.drain(..));
        done.extend(all.map(|batch| batch.refused(CommitError::Failed)));
    }

    /// Refuses the waiting batches that bring messages; outcomes go on waiting.
    pub(super) fn refuse_messages(&mut self, error: CommitError, done: &mut Vec<Completion>) {
        for batch in std::mem::take(&mut self.waiting) {
            if batch.has_messages {
                done.push(batch.refused(error));
            } else {
                self.waiting.push_back(batch);
            }
        }
    }
}

fn is_out_of_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
