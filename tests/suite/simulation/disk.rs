//! The disk of a world: the library's [`SimDisk`], and over it the lies that a test may plant to
//! see whether the books find them.

use std::io::{self, IoSlice};

use mailrace::spool::disk::{Disk, FileNo, Sync};
use mailrace::spool::format::header::{SegmentHeader, SegmentState};
use mailrace::spool::sim_disk::SimDisk;

use super::plan::Plant;

/// See the module's text.
#[derive(Debug)]
pub struct TestDisk {
    pub sim: SimDisk,
    pub plant: Plant,
    /// A file whose header cannot be rewritten once it was in use: it never becomes free again.
    pub bad_header: Option<FileNo>,
}

/// A block that direct I/O would take.
#[repr(align(4096))]
struct Block([u8; 4096]);

impl TestDisk {
    /// The header without its word on what is void, as if nobody had thought of that.
    fn forget_void(&self, offset: u32, parts: &[IoSlice<'_>]) -> Option<Box<Block>> {
        let first = parts.first().filter(|_| self.plant == Plant::NoVoid && offset == 0)?;
        let header = SegmentHeader::decode(first).ok()?;
        header.voided?;
        let mut block = Box::new(Block([0; 4096]));
        let forgetful =
            SegmentHeader { voided: None, predecessor_last: header.first_sequence - 1, ..header };
        forgetful.encode(&mut block.0);
        Some(block)
    }
}

fn frees(offset: u32, parts: &[IoSlice<'_>]) -> bool {
    let header = parts.first().filter(|_| offset == 0).map(|part| SegmentHeader::decode(part));
    header.is_some_and(|header| header.is_ok_and(|header| header.state != SegmentState::Open))
}

impl Disk for TestDisk {
    fn files(&self) -> io::Result<Vec<FileNo>> {
        self.sim.files()
    }

    fn create(&self, file: FileNo, octets: u32, header: &[u8]) -> io::Result<()> {
        self.sim.create(file, octets, header)
    }

    fn length(&self, file: FileNo) -> io::Result<u64> {
        self.sim.length(file)
    }

    fn write(
        &self,
        file: FileNo,
        offset: u32,
        parts: &[IoSlice<'_>],
        sync: Sync,
    ) -> io::Result<()> {
        if self.bad_header == Some(file) && frees(offset, parts) {
            return Err(io::Error::other("a bad sector"));
        }
        if let Some(block) = self.forget_void(offset, parts) {
            let mut parts: Vec<IoSlice<'_>> = parts.to_vec();
            parts[0] = IoSlice::new(&block.0);
            return self.sim.write(file, offset, &parts, sync);
        }
        let lies = match self.plant {
            Plant::LyingSync => true,
            Plant::EarlyReuse => frees(offset, parts),
            _ => false,
        };
        let sync = if lies { Sync::Later } else { sync };
        self.sim.write(file, offset, parts, sync)
    }

    fn sync(&self, file: FileNo) -> io::Result<()> {
        if self.plant == Plant::LyingSync { Ok(()) } else { self.sim.sync(file) }
    }

    fn read(&self, file: FileNo, offset: u32, into: &mut [u8]) -> io::Result<()> {
        self.sim.read(file, offset, into)
    }

    fn quarantine(&self, file: FileNo) -> io::Result<()> {
        self.sim.quarantine(file)
    }

    fn remove(&self, file: FileNo) -> io::Result<()> {
        self.sim.remove(file)
    }
}
