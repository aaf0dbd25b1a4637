//! The second pass: the envelopes of what is left, from indexes, from the heads that the first pass
//! has kept, or from the records themselves.

use std::collections::BTreeMap;

use super::super::disk::Disk;
use super::super::format::FormatError;
use super::super::format::index::IndexBuilder;
use super::super::format::message::{StoredBody, StoredMessage};
use super::super::format::record::{Kind, RecordView};
use super::super::{RecordPlace, SegmentNo, scan};
use super::{Live, RecoveredMessage, Recovery, RecoveryError, foreign, refused};
use crate::message::MessageId;

impl<D: Disk> Recovery<'_, D> {
    /// Pass two.
    pub(super) fn visit_live(&mut self) -> Result<(), RecoveryError> {
        // Offsets alone: there may be millions.
        let mut by_scan: BTreeMap<SegmentNo, Vec<u32>> = BTreeMap::new();
        for live in self.live.values() {
            let segment = live.place.segment;
            if !self.segments[&segment].is_indexed && !self.heads.contains_key(&segment) {
                by_scan.entry(segment).or_default().push(live.place.offset);
            }
        }
        let order: Vec<SegmentNo> = self.segments.keys().copied().collect();
        for no in order {
            if self.segments[&no].is_indexed {
                self.visit_indexed(no)?;
            } else if let Some(heads) = self.heads.remove(&no) {
                self.visit_heads(no, &heads)?;
            } else if let Some(mut offsets) = by_scan.remove(&no) {
                offsets.sort_unstable();
                self.visit_places(no, &offsets)?;
            }
            self.step();
        }
        Ok(())
    }

    fn visit_indexed(&mut self, no: SegmentNo) -> Result<(), RecoveryError> {
        let (file, header) = (self.segments[&no].file, self.segments[&no].header);
        let index = scan::load_index(self.disk, file, &header, &mut self.patience)
            .map_err(refused(file))?;
        let Some(index) = index else {
            // It could be read a moment ago.  What it said of the records is known, so these are
            // asked themselves.
            let places = self.live.values().map(|live| live.place);
            let there = places.filter(|place| place.segment == no);
            let mut offsets: Vec<u32> = there.map(|place| place.offset).collect();
            offsets.sort_unstable();
            return self.visit_places(no, &offsets);
        };
        for entry in index.entries() {
            let (offset, record) = entry.map_err(|error| foreign(file, error))?;
            if record.kind() == Kind::Message {
                self.visit(no, offset, &record)?;
            }
        }
        Ok(())
    }

    fn visit_heads(&mut self, no: SegmentNo, heads: &IndexBuilder) -> Result<(), RecoveryError> {
        for entry in heads.entries() {
            let (offset, record) = entry.expect("it was taken from a record that verified");
            self.visit(no, offset, &record)?;
        }
        Ok(())
    }

    /// Visits the records at these offsets, which are ascending.
    fn visit_places(&mut self, no: SegmentNo, offsets: &[u32]) -> Result<(), RecoveryError> {
        let file = self.segments[&no].file;
        let mut patience = std::mem::take(&mut self.patience);
        let mut window = scan::Window::new(
            self.disk,
            file,
            self.options.segment_bytes,
            scan::Unreadable::IsEmpty(&mut patience),
        );
        let mut lost = BTreeMap::new();
        for &offset in offsets {
            let place = RecordPlace { segment: no, offset, length: 0 };
            let head = window.record_head(place).map_err(refused(file))?;
            match RecordView::parse_head(head) {
                Ok(record) => self.visit(no, offset, &record)?,
                Err(error) => drop(lost.insert(offset, error)),
            }
        }
        self.patience = patience;
        if lost.is_empty() {
            return Ok(());
        }
        let there = self.live.iter().filter(|(_, live)| live.place.segment == no);
        let places: Vec<(MessageId, RecordPlace)> =
            there.map(|(&id, live)| (id, live.place)).collect();
        for (id, place) in places {
            if let Some(error) = lost.remove(&place.offset) {
                self.lose(id, place, error)?;
            }
        }
        Ok(())
    }

    /// Gives a message to the visitor if it is live and this is its place.
    fn visit(
        &mut self,
        segment: SegmentNo,
        offset: u32,
        record: &RecordView<'_>,
    ) -> Result<(), RecoveryError> {
        let id = record.id();
        let is_its_place =
            |live: &Live| (live.place.segment, live.place.offset) == (segment, offset);
        if !self.live.get(&id).is_some_and(is_its_place) {
            return Ok(());
        }
        let live = self.live.remove(&id).expect("looked at above");
        match StoredMessage::decode(record) {
            Ok(message) => {
                if let StoredBody::Chunks(chunks) = &message.body {
                    // Copies that a compaction left unfinished are no part of it.
                    let named: Vec<SegmentNo> =
                        chunks.iter().map(|chunk| chunk.place.segment).collect();
                    self.accounts.retain_chunks(id, &named);
                }
                self.report.live_messages += 1;
                self.visitor.message(live.recovered(message));
                Ok(())
            }
            Err(error) => self.lose(id, live.place, error),
        }
    }

    /// A live message that cannot be read: nobody will ever end it, so it does not count.  What is
    /// left of it is set aside with its segments when they are dead.
    fn lose(
        &mut self,
        id: MessageId,
        place: RecordPlace,
        error: FormatError,
    ) -> Result<(), RecoveryError> {
        self.live.remove(&id);
        for segment in self.accounts.chunk_segments(id) {
            if let Some(segment) = self.segments.get_mut(&segment) {
                segment.is_damaged = true;
            }
        }
        self.accounts.finished(place.segment, id);
        self.bad_record(place, id, error)
    }
}

impl Live {
    fn recovered(self, message: StoredMessage) -> RecoveredMessage {
        let outcomes = self.outcomes.map(|outcomes| *outcomes).unwrap_or_default();
        let (done, deferrals) = outcomes.waits(Some(self.recipients));
        RecoveredMessage { place: self.place, message, done, deferrals }
    }
}
