//! Taking the files in: what each says that it is, and whether they belong together.
//!
//! Nothing is changed here but that free headers are made durable; files of no use are noted for
//! the log to set aside.

use super::super::BLOCK;
use super::super::chore::Spare;
use super::super::direct::AlignedBuf;
use super::super::disk::{Disk, FileNo};
use super::super::format::FormatError;
use super::super::format::header::{SegmentHeader, SegmentState};
use super::super::format::roll::{self, Roll};
use super::{Damage, Recovery, RecoveryError, Segment, UnreadPart, refused};

/// Two files that say to be the same segment.
type Twins = Option<(FileNo, FileNo)>;

impl<D: Disk> Recovery<'_, D> {
    pub(super) fn read_headers(&mut self) -> Result<(), RecoveryError> {
        let mut twin = None;
        for file in self.disk.files()? {
            self.next_file = self.next_file.max(FileNo(file.0.saturating_add(1)));
            twin = self.read_header(file)?.or(twin);
        }
        self.check_spools()?;
        if let Some((file, other)) = twin {
            // A copy, most likely.  Neither can be preferred.
            return Err(RecoveryError::Twin { file: file.0, other: other.0 });
        }
        self.call_roll();
        self.report.segments = self.segments.len();
        self.progress.segments = 2 * self.segments.len();
        for (&no, segment) in &self.segments {
            self.accounts.open(no);
            self.accounts.close(no);
            if segment.header.voided.is_some() {
                self.accounts.succeeds(no, segment.header.predecessor);
            }
        }
        Ok(())
    }

    /// All files must belong to one spool: mail of another must not be delivered here as well.
    fn check_spools(&self) -> Result<(), RecoveryError> {
        let ours = roll::spool_of(self.spools.iter().map(|&(_, spool)| spool));
        let stranger = self.spools.iter().find(|&&(_, spool)| Some(spool) != ours);
        match stranger {
            Some((file, _)) => Err(RecoveryError::OtherSpool { file: file.0 }),
            None => Ok(()),
        }
    }

    /// Tells of segments that were in use when the newest was opened, and of which there is no
    /// trace.
    fn call_roll(&mut self) {
        let Some(roll) = self.roll.take() else { return };
        let is_there =
            |segment| self.segments.contains_key(&segment) || self.ended.contains(&segment);
        let segments = roll.missing(is_there);
        if !segments.is_empty() {
            self.damage(Damage::Missing { segments });
        }
    }

    /// Takes a file in; if another one says to be the same segment, gives both.
    fn read_header(&mut self, file: FileNo) -> Result<Twins, RecoveryError> {
        let length = self.disk.length(file).map_err(refused(file))?;
        if length < BLOCK as u64 {
            self.set_aside(file, FormatError::Truncated);
            return Ok(None);
        }
        let mut block = AlignedBuf::new(BLOCK);
        let disk = self.disk;
        let lost = self
            .patience
            .read_header(&mut block, &mut |offset, into| disk.read(file, offset as u32, into))
            .map_err(refused(file))?;
        if !lost.is_nothing() {
            // It may be that of the newest segment, whose numbers would be given out again.
            return Err(RecoveryError::Unreadable { file: file.0, part: UnreadPart::Header });
        }
        let header = match SegmentHeader::decode(&block) {
            Ok(header) => header,
            Err(error @ (FormatError::Magic | FormatError::Version(_))) => {
                return Err(RecoveryError::Foreign { file: file.0, error });
            }
            Err(error) => {
                self.set_aside(file, error);
                return Ok(None);
            }
        };
        if header.segment_bytes != self.options.segment_bytes {
            let (found, expected) = (header.segment_bytes, self.options.segment_bytes);
            return Err(RecoveryError::SegmentSize { file: file.0, found, expected });
        }
        self.last_segment = self.last_segment.max(header.segment);
        self.next_sequence = self.next_sequence.max(header.first_sequence);
        match header.state {
            SegmentState::Free if length < u64::from(header.segment_bytes) => {
                self.set_aside(file, FormatError::Truncated);
            }
            SegmentState::Free => {
                self.ended.insert(header.segment);
                // A crash of the process may have come between the write of this header and its
                // sync.  From now on outcomes that others hold for the segment's messages count no
                // more, so it must not come back after a power cut.
                self.disk.sync(file).map_err(refused(file))?;
                let SegmentHeader { generation, revision, .. } = header;
                self.spares.push_back(Spare { file, generation, revision });
            }
            // It was to be renamed when the last run ended.
            SegmentState::Quarantined => {
                self.ended.insert(header.segment);
                self.useless.push(file);
            }
            SegmentState::Open => {
                let roll = Roll::decode(&block, header.generation);
                self.spools.extend(roll.as_ref().map(|roll| (file, roll.spool)));
                if self.segments.keys().next_back().is_none_or(|&newest| newest < header.segment) {
                    self.roll = roll;
                }
                let cut = u64::from(header.segment_bytes).saturating_sub(length);
                if cut > 0 {
                    let segment = header.segment;
                    self.damage(Damage::Short { segment, file, octets: cut });
                }
                let segment = Segment {
                    header,
                    file,
                    is_damaged: cut > 0,
                    is_indexed: false,
                    end: header.segment_bytes,
                };
                let before = self.segments.insert(header.segment, segment);
                return Ok(before.map(|other| (file, other.file)));
            }
        }
        Ok(None)
    }

    fn set_aside(&mut self, file: FileNo, error: FormatError) {
        self.useless.push(file);
        self.damage(Damage::Header { file, error });
    }
}
