//! Reading segments back: scanning one for its batches, loading its index, reading heads here and
//! there.  Shared by recovery and by the tools; knows bytes, not messages.

use std::io;
use std::ops::Range;

use super::direct::AlignedBuf;
use super::disk::{Disk, FileNo};
use super::format::batch::BatchHeader;
use super::format::header::SegmentHeader;
use super::format::index::{self, Footer};
use super::format::record::{Kind, RECORD_HEADER, RecordView};
use super::format::{BATCH_HEADER, FormatError};
use super::salvage::{Lost, Patience};
use super::{BLOCK, RecordPlace, SegmentNo, round_to_block};
use crate::message::MessageId;

/// A batch whose header verifies, and the fixed headers of all its records.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FoundBatch {
    /// Where it begins in the file.
    pub(crate) offset: usize,
    pub(crate) header: BatchHeader,
    /// Every record verifies with its body.  Else something was damaged since it was written, or
    /// not all of it was: a batch that was durable still has its other records.
    pub(crate) is_whole: bool,
}

/// A record of a batch, or what is left of one.
pub(crate) struct Piece<'a> {
    /// Where it begins in the file.
    pub(crate) offset: u32,
    /// The whole of it, in octets.
    pub(crate) length: u32,
    /// Kind and message, certain whatever else is damaged.
    pub(crate) name: (Kind, MessageId),
    /// Header and head; the body is to be verified where [`FoundBatch::is_whole`] is not so.
    pub(crate) record: Result<RecordView<'a>, FormatError>,
}

/// What stands in a segment.
#[derive(Debug, Default)]
pub(crate) struct Scanned {
    /// Ascending in offset and sequence.
    pub(crate) batches: Vec<FoundBatch>,
    /// The highest `durable_through` of any batch, sound or not, whose header verifies.
    pub(crate) durable_through: u64,
    /// The highest sequence that any header claims, voided ones left out.
    pub(crate) last_seen: Option<u64>,
}

/// Looks for batches of this segment's life in the whole file.
///
/// # Errors
/// [`FormatError::MustUnderstand`] when something sound must not be passed over.
pub(crate) fn scan(
    file: &[u8],
    header: &SegmentHeader,
    voided: &[(u64, u64)],
) -> Result<Scanned, FormatError> {
    let mut scanned = Scanned::default();
    let is_void = |sequence| voided.iter().any(|&(first, last)| (first..=last).contains(&sequence));
    let mut offset = BLOCK;
    while let Some(bytes) = file.get(offset..).filter(|bytes| bytes.len() >= BLOCK) {
        let found = match BatchHeader::decode(bytes, header.generation) {
            Ok(found) => found,
            Err(error @ FormatError::MustUnderstand(_)) => return Err(error),
            Err(_) => {
                offset += BLOCK;
                continue;
            }
        };
        let step = found.batch_bytes();
        if is_void(found.sequence) {
            offset += BLOCK;
            continue;
        }
        scanned.durable_through = scanned.durable_through.max(found.durable_through);
        scanned.last_seen = scanned.last_seen.max(Some(found.sequence));
        match verify(bytes, &found, header, scanned.batches.last()) {
            Ok(is_whole) => {
                scanned.batches.push(FoundBatch { offset, header: found, is_whole });
                offset += step;
            }
            Err(error @ FormatError::MustUnderstand(_)) => return Err(error),
            // Its length may be part of what is wrong: look at every block.
            Err(_) => offset += BLOCK,
        }
    }
    Ok(scanned)
}

/// Gives whether the batch is whole; fails where not even the places of its records are certain.
fn verify(
    bytes: &[u8],
    found: &BatchHeader,
    header: &SegmentHeader,
    before: Option<&FoundBatch>,
) -> Result<bool, FormatError> {
    let first_possible = before.map_or(header.first_sequence, |before| before.header.sequence + 1);
    if found.segment != header.segment || found.sequence < first_possible {
        return Err(FormatError::Malformed("batch's place"));
    }
    let end =
        BATCH_HEADER.checked_add(found.payload_length as usize).ok_or(FormatError::Truncated)?;
    let payload = bytes.get(BATCH_HEADER..end).ok_or(FormatError::Truncated)?;
    match found.verify_payload(payload) {
        Ok(()) => Ok(true),
        Err(error @ FormatError::MustUnderstand(_)) => Err(error),
        Err(error) => found.verify_frames(payload).then_some(false).ok_or(error),
    }
}

impl FoundBatch {
    /// Its records.
    pub(crate) fn pieces<'a>(&self, file: &'a [u8]) -> impl Iterator<Item = Piece<'a>> + use<'a> {
        let mut at = self.offset + BATCH_HEADER;
        let end = at + self.header.payload_length as usize;
        std::iter::from_fn(move || {
            let rest = file.get(at..end).filter(|rest| !rest.is_empty())?;
            let name = RecordView::name_of(rest).expect("the frames have been verified");
            let length = RecordView::total_length_of(rest).expect("the frames have been verified");
            let piece = Piece {
                offset: at as u32,
                length: length as u32,
                name,
                record: RecordView::parse(rest),
            };
            at += length;
            Some(piece)
        })
    }
}

impl Scanned {
    /// For the newest segment: the last sequence before the tear.  Up to `durable_through`
    /// everything counts whatever is missing; above it the first that is missing ends the log.
    pub(crate) fn end_of_whole(&self, first_sequence: u64) -> u64 {
        let mut end = self.durable_through.max(first_sequence.saturating_sub(1));
        for batch in &self.batches {
            if batch.header.sequence == end.saturating_add(1) && batch.is_whole {
                end = batch.header.sequence;
            }
        }
        end
    }

    /// For the newest segment: whether what the disk could not read stands before its end.  Batches
    /// behind that may have been acknowledged, and the end may be further on than it seems.
    pub(crate) fn is_end_readable(&self, last_valid: u64, lost: Lost) -> bool {
        let counting = self.batches.iter().rev().find(|batch| batch.header.sequence <= last_valid);
        let end = counting.map_or(BLOCK, |batch| batch.offset + batch.header.batch_bytes());
        lost.end <= end as u64
    }

    /// Sequences from `first` to `last_valid` that should be there and are not.  Where the end is
    /// not known, what is missing behind the last batch cannot be told.
    pub(crate) fn gaps(&self, first: u64, last_valid: u64, is_end_known: bool) -> Vec<Range<u64>> {
        let mut expected = first;
        let mut gaps = Vec::new();
        let counting = self.batches.iter().map(|batch| batch.header.sequence);
        for sequence in counting.take_while(|&sequence| sequence <= last_valid) {
            if sequence > expected {
                gaps.push(expected..sequence);
            }
            expected = sequence.saturating_add(1);
        }
        if is_end_known && expected <= last_valid && last_valid != u64::MAX {
            gaps.push(expected..last_valid + 1);
        }
        gaps
    }
}

/// The sequences that may count in a segment that is not the newest, and whether the last of them
/// is known to have been written; `next` is the header of the segment after it.
pub(crate) fn bound_by(no: SegmentNo, next: Option<&SegmentHeader>) -> (u64, bool) {
    match next {
        Some(next) if next.predecessor == no => (next.predecessor_last, true),
        // The segments in between are retired: whatever verifies counts.
        Some(next) => (next.first_sequence.saturating_sub(1), false),
        None => (u64::MAX, false),
    }
}

/// A sealed segment's index, verified.
pub(crate) struct Index {
    /// Not shorter than the footer says.
    blocks: AlignedBuf,
    footer: Footer,
}

/// Loads a segment's index; nothing where it has none, or it cannot be read or does not verify.
///
/// # Errors
/// Only what else the disk says; a file that is too short has no index.
pub(crate) fn load_index<D: Disk>(
    disk: &D,
    file: FileNo,
    header: &SegmentHeader,
    patience: &mut Patience,
) -> io::Result<Option<Index>> {
    let octets = header.segment_bytes as usize;
    if disk.length(file)? < octets as u64 || octets < 2 * BLOCK {
        return Ok(None);
    }
    let mut last = AlignedBuf::new(BLOCK);
    patience.read(disk, file, (octets - BLOCK) as u32, &mut last)?;
    let Some((footer, range)) = footer_in(&last, header) else { return Ok(None) };
    let mut blocks = AlignedBuf::new(range.len());
    let filled = round_to_block(range.len());
    if !patience.read(disk, file, footer.index_offset, &mut blocks[..filled])?.is_nothing() {
        return Ok(None);
    }
    let verifies = crc32c::crc32c(&blocks[..range.len()]) == footer.index_crc32c;
    Ok(verifies.then_some(Index { blocks, footer }))
}

/// The entries of the index in a segment that has been read whole; nothing where it has none or
/// it does not verify.
pub(crate) fn index_in<'a>(
    file: &'a [u8],
    header: &SegmentHeader,
) -> Option<impl Iterator<Item = Result<(u32, RecordView<'a>), FormatError>> + use<'a>> {
    let (_, blocks) = sealed(file, header)?;
    Some(index::entries(blocks))
}

/// The last sequence of a segment that has been read whole, if it has a sound index.
pub(crate) fn sealed_end(file: &[u8], header: &SegmentHeader) -> Option<u64> {
    sealed(file, header).map(|(footer, _)| footer.last_sequence)
}

fn sealed<'a>(file: &'a [u8], header: &SegmentHeader) -> Option<(Footer, &'a [u8])> {
    let end = header.segment_bytes as usize;
    let (footer, range) = footer_in(file.get(end.checked_sub(BLOCK)?..end)?, header)?;
    let blocks = file.get(range)?;
    (crc32c::crc32c(blocks) == footer.index_crc32c).then_some((footer, blocks))
}

/// The footer in a segment's last block, and where its index stands.
fn footer_in(last: &[u8], header: &SegmentHeader) -> Option<(Footer, Range<usize>)> {
    let footer = Footer::decode(last, header.generation).ok()?;
    let start = footer.index_offset as usize;
    let end = start.checked_add(footer.index_length as usize)?;
    let fits = footer.segment == header.segment
        && start.is_multiple_of(BLOCK)
        && end <= (header.segment_bytes as usize).checked_sub(BLOCK)?;
    fits.then_some((footer, start..end))
}

impl Index {
    /// The records: offset in the file, and head.
    pub(crate) fn entries(
        &self,
    ) -> impl Iterator<Item = Result<(u32, RecordView<'_>), FormatError>> {
        index::entries(&self.blocks[..self.footer.index_length as usize])
    }

    /// The last sequence in the segment.
    pub(crate) fn last_sequence(&self) -> u64 {
        self.footer.last_sequence
    }
}

/// Reads heads at ascending places of one file with few, large reads.  What the disk cannot read
/// is zeros, which verify as nothing.
pub(crate) struct Window<'a, D> {
    disk: &'a D,
    file: FileNo,
    file_octets: usize,
    buffer: AlignedBuf,
    /// What of the file is in the buffer.
    start: usize,
    end: usize,
    unreadable: Unreadable<'a>,
}

/// What becomes of a block that the disk cannot read.
#[derive(Debug)]
pub(crate) enum Unreadable<'a> {
    /// Nothing stands there: for those who serve what is left.
    IsEmpty(&'a mut Patience),
    /// The read fails: for those who would conclude something from what does not stand there.
    Fails,
}

const WINDOW: usize = 1024 * 1024;

impl<'a, D: Disk> Window<'a, D> {
    pub(crate) fn new(
        disk: &'a D,
        file: FileNo,
        segment_bytes: u32,
        unreadable: Unreadable<'a>,
    ) -> Window<'a, D> {
        let file_octets = segment_bytes as usize;
        let buffer = AlignedBuf::new(WINDOW.min(file_octets));
        Window { disk, file, file_octets, buffer, start: 0, end: 0, unreadable }
    }

    /// The header and head of the record at `place`; shorter where the file ends.
    pub(crate) fn record_head(&mut self, place: RecordPlace) -> io::Result<&[u8]> {
        let offset = place.offset as usize;
        let fixed = self.bytes(offset, RECORD_HEADER)?;
        let length = RecordView::head_length_of(fixed).unwrap_or(RECORD_HEADER);
        self.bytes(offset, length)
    }

    /// The octets from `offset` on, fewer where the file ends.
    pub(crate) fn bytes(&mut self, offset: usize, octets: usize) -> io::Result<&[u8]> {
        let end = offset.saturating_add(octets).min(self.file_octets);
        let offset = offset.min(end);
        if offset < self.start || end > self.end {
            let start = offset / BLOCK * BLOCK;
            let wanted = round_to_block(end - start);
            if wanted > self.buffer.len() {
                self.buffer = AlignedBuf::new(wanted);
            }
            let length = self.disk.length(self.file)?.min(self.file_octets as u64) as usize;
            let filled = self.buffer.len().min((length / BLOCK * BLOCK).saturating_sub(start));
            let into = &mut self.buffer[..filled];
            match &mut self.unreadable {
                Unreadable::Fails => self.disk.read(self.file, start as u32, into)?,
                Unreadable::IsEmpty(patience) => {
                    patience.read(self.disk, self.file, start as u32, into)?;
                }
            }
            (self.start, self.end) = (start, start + filled);
        }
        let end = end.min(self.end);
        Ok(&self.buffer[offset.min(end) - self.start..end - self.start])
    }
}
