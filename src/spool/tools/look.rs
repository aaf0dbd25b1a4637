//! One segment as the tools see it: its records in order, those that are hurt among them, and the
//! gaps where batches are gone.
//!
//! What counts is what counts for recovery: a sealed segment goes by its index where that is
//! sound, any other by what its batches hold.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::ops::Range;

use super::super::format::header::SegmentHeader;
use super::super::format::record::{Kind, RECORD_HEADER, RecordView};
use super::super::format::{FormatError, RECORD_ALIGN};
use super::super::scan::{self, Piece, Scanned};
use super::super::{BLOCK, RecordPlace};
use crate::message::MessageId;

/// One segment while it is looked at.
pub(super) struct Look<'a> {
    pub(super) name: &'a str,
    pub(super) header: SegmentHeader,
    bytes: &'a [u8],
    scanned: &'a Scanned,
    last_valid: u64,
    /// Ascending in place.
    pub(super) entries: Vec<Entry<'a>>,
    pub(super) gaps: Vec<Gap>,
    /// It has a sound index, and that does not name the records that are there.
    pub(super) index_disagrees: bool,
}

/// Which batches of a segment may count.
pub(super) struct Bounds {
    pub(super) last_valid: u64,
    pub(super) is_end_known: bool,
    /// Recovery would go by the index.
    pub(super) is_indexed: bool,
}

/// A record that counts, or did until it was hurt.
pub(super) struct Entry<'a> {
    pub(super) sequence: u64,
    pub(super) place: RecordPlace,
    pub(super) name: (Kind, MessageId),
    /// What recovery goes by; nothing where the record is lost.
    pub(super) record: Option<RecordView<'a>>,
    /// What is wrong with it on the disk.
    pub(super) hurt: Option<FormatError>,
}

impl Entry<'_> {
    /// Whether this is the record that the index names here, as far as it is left.
    fn is_of(&self, named: &RecordView<'_>) -> bool {
        let has_its_head =
            |record: &RecordView<'_>| record.header_and_head() == named.header_and_head();
        self.name == (named.kind(), named.id()) && self.record.as_ref().is_none_or(has_its_head)
    }
}

/// Batches that are gone.
pub(super) struct Gap {
    pub(super) sequences: Range<u64>,
    /// Where they must have stood.
    pub(super) octets: Range<usize>,
}

impl<'a> Look<'a> {
    pub(super) fn new(
        name: &'a str,
        header: SegmentHeader,
        bytes: &'a [u8],
        scanned: &'a Scanned,
        bounds: Bounds,
    ) -> Look<'a> {
        let last_valid = bounds.last_valid;
        let gaps = scanned.gaps(header.first_sequence, last_valid, bounds.is_end_known);
        let mut look = Look {
            name,
            header,
            bytes,
            scanned,
            last_valid,
            entries: Vec::new(),
            gaps: Vec::new(),
            index_disagrees: false,
        };
        look.gaps = gaps.into_iter().map(|sequences| look.gap(sequences)).collect();
        let mut entries = look.in_batches();
        if let Some(index) = scan::index_in(bytes, &header) {
            let disagrees = look.add_named(&mut entries, index, bounds.is_indexed);
            look.index_disagrees = disagrees;
        }
        look.entries = entries.into_values().collect();
        look
    }

    /// The batches in front of the gap and behind it say where it is.
    fn gap(&self, sequences: Range<u64>) -> Gap {
        let batches = &self.scanned.batches;
        let before = batches.iter().rev().find(|batch| batch.header.sequence < sequences.start);
        let behind = batches.iter().find(|batch| batch.header.sequence >= sequences.end);
        let start = before.map_or(BLOCK, |batch| batch.offset + batch.header.batch_bytes());
        let end = behind.map_or(self.bytes.len(), |batch| batch.offset);
        Gap { sequences, octets: start..end.max(start) }
    }

    fn in_batches(&self) -> BTreeMap<u32, Entry<'a>> {
        let mut entries = BTreeMap::new();
        let counts = |batch: &&scan::FoundBatch| batch.header.sequence <= self.last_valid;
        for batch in self.scanned.batches.iter().filter(counts) {
            for piece in batch.pieces(self.bytes) {
                let Piece { offset, length, name, record } = piece;
                let place = RecordPlace { segment: self.header.segment, offset, length };
                let hurt = match &record {
                    _ if batch.is_whole => None,
                    Ok(record) => record.verify_body().err(),
                    Err(error) => Some(*error),
                };
                let sequence = batch.header.sequence;
                let entry = Entry { sequence, place, name, record: record.ok(), hurt };
                entries.insert(offset, entry);
            }
        }
        entries
    }

    /// Adds what the index names and the batches do not hold any more, if recovery goes by it.
    /// Gives whether the two disagree where nothing is hurt.
    fn add_named(
        &self,
        entries: &mut BTreeMap<u32, Entry<'a>>,
        index: impl Iterator<Item = Result<(u32, RecordView<'a>), FormatError>>,
        is_indexed: bool,
    ) -> bool {
        let mut disagrees = false;
        let mut named = BTreeSet::new();
        for entry in index {
            let Ok((offset, record)) = entry else {
                disagrees = true;
                continue;
            };
            named.insert(offset);
            let gap = self.gaps.iter().find(|gap| gap.octets.contains(&(offset as usize)));
            match entries.get_mut(&offset) {
                Some(entry) if entry.is_of(&record) => {
                    if is_indexed && entry.record.is_none() {
                        entry.record = Some(record);
                    }
                }
                // A batch, sound by itself, has been written over the one that stood here.
                Some(entry) => {
                    disagrees = true;
                    if is_indexed {
                        *entry = self.named(offset, record, entry.sequence, is_indexed);
                    }
                }
                None if is_indexed || gap.is_some() => {
                    // Outside of every gap: behind the last batch that is left, where the next
                    // segment is missing too and nothing tells how many there were.
                    disagrees |= gap.is_none();
                    let sequence = gap.map_or(self.last_valid, |gap| gap.sequences.start);
                    entries.insert(offset, self.named(offset, record, sequence, is_indexed));
                }
                None => disagrees = true,
            }
        }
        disagrees |= named.len() != entries.len();
        if is_indexed {
            entries.retain(|offset, _| named.contains(offset));
        }
        disagrees
    }

    /// A record that only the index still knows, or, where the batch around it is gone, that is
    /// whole all the same: who reads it goes by its place.
    fn named(&self, offset: u32, record: RecordView<'a>, sequence: u64, counts: bool) -> Entry<'a> {
        let rest = self.bytes.get(offset as usize..).unwrap_or_default();
        let is_whole = RecordView::parse(rest).is_ok_and(|there| {
            there.header_and_head() == record.header_and_head() && there.verify_body().is_ok()
        });
        let length = record.total_length() as u32;
        Entry {
            sequence,
            place: RecordPlace { segment: self.header.segment, offset, length },
            name: (record.kind(), record.id()),
            record: counts.then_some(record),
            hurt: (!is_whole || !counts).then_some(FormatError::Checksum("batch")),
        }
    }

    /// Records that seem to stand in a gap that no index tells of.
    pub(super) fn guesses(&self, gap: &Gap) -> impl Iterator<Item = (usize, Kind, MessageId)> {
        let starts = gap.octets.clone().step_by(RECORD_ALIGN);
        starts.filter_map(|at| {
            let rest = self.bytes.get(at..).filter(|rest| rest.len() >= RECORD_HEADER)?;
            let record = RecordView::parse_head(rest).ok()?;
            Some((at, record.kind(), record.id()))
        })
    }

    /// Whether anything is known of what stood in the gap.
    pub(super) fn has_named(&self, gap: &Gap) -> bool {
        self.entries.iter().any(|entry| gap.octets.contains(&(entry.place.offset as usize)))
    }

    pub(super) fn describe(&self, out: &mut impl Write) -> io::Result<()> {
        let SegmentHeader { segment, generation, first_sequence, .. } = self.header;
        let last = self.scanned.batches.last().map_or(first_sequence.saturating_sub(1), |batch| {
            batch.header.sequence.min(self.last_valid)
        });
        let octets: usize =
            self.scanned.batches.iter().map(|batch| batch.header.batch_bytes()).sum();
        writeln!(
            out,
            "{}: segment {segment}, generation {generation:016x}, sequences {first_sequence} to \
             {last}, {} batches, {octets} octets",
            self.name,
            self.scanned.batches.len(),
        )
    }
}
