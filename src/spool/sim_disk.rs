//! A disk in memory that behaves as badly as a real one may, from a seed.  For tests only: the
//! unit tests here, the simulator and the fuzzing of recovery.
//!
//! What it models:
//! - A write that was not synced may, in a crash, reach the disk in part: each 512-octet sector by
//!   itself, in any order.
//! - A write that fails may have reached the disk in part, and so may one that a crash interrupts.
//! - A sync that fails forgets what it was to sync: some sectors are there, some are not, and
//!   asking again says yes.  (What is read back before a crash is still what was written.)
//! - Of several writes to one sector that were not synced an older one may be what is there.
//! - A disk has room for so many files.
//! - A read may bring a wrong bit, once.
//! - Anything may rot: [`SimDisk::flip_bit`], [`SimDisk::make_unreadable`].
//!
//! Making, renaming and removing a file is atomic and durable, as [`Disk`] asks.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::BLOCK;
use super::disk::{Disk, FileNo, Sync};

/// What a disk never tears.
const SECTOR: usize = 512;

/// The disk; clones are handles to the same one.
#[derive(Debug, Clone)]
pub struct SimDisk(Arc<Mutex<State>>);

/// How the disk misbehaves.
#[derive(Debug, Clone, Copy)]
pub struct Faults {
    /// Of 1,000 writes, how many fail.
    pub write_failures_permil: u32,
    /// Of 1,000 syncs (and synchronous writes), how many fail.
    pub sync_failures_permil: u32,
    /// How many files it holds, quarantined ones not counted.
    pub files_max: usize,
    /// Of 1,000 reads, how many have one bit that is wrong.
    pub read_flips_permil: u32,
}

/// How often it has misbehaved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Happened {
    /// Writes that failed, those that were cut short by the power included.
    pub write_failures: usize,
    /// Syncs that failed, likewise.
    pub sync_failures: usize,
    /// Files of which a crash or a failed sync left some sectors that were not synced, and others
    /// not.
    pub torn: usize,
    /// Sectors that were written, not synced, and are gone.
    pub dropped_sectors: usize,
    /// Files that found no room.
    pub full: usize,
    /// Reads with a wrong bit.
    pub flipped_reads: usize,
}

impl Happened {
    /// By their names.
    pub fn events(self) -> [(&'static str, usize); 6] {
        [
            ("a write fails", self.write_failures),
            ("a sync fails", self.sync_failures),
            ("what was not synced is torn", self.torn),
            ("a sector that was not synced is dropped", self.dropped_sectors),
            ("the disk is full", self.full),
            ("a read has a wrong bit", self.flipped_reads),
        ]
    }
}

impl Default for Faults {
    fn default() -> Self {
        Faults {
            write_failures_permil: 0,
            sync_failures_permil: 0,
            files_max: usize::MAX,
            read_flips_permil: 0,
        }
    }
}

#[derive(Debug, Default)]
struct State {
    files: BTreeMap<FileNo, SimFile>,
    quarantined: Vec<FileNo>,
    random: u64,
    faults: Faults,
    happened: Happened,
    /// Writes, syncs, creations and renames so far.
    operations: u64,
    /// The operation at which the power goes.
    crash_at: Option<u64>,
    is_down: bool,
    fail_next_write: bool,
    fail_next_sync: bool,
    /// Blocks that cannot be read, and for how many reads.
    unreadable: BTreeMap<(FileNo, usize), usize>,
}

#[derive(Debug, Default)]
struct SimFile {
    /// What is there for sure.
    durable: Vec<u8>,
    /// What is read at present.
    seen: Vec<u8>,
    /// Sectors written and not synced, in order, as they were written.
    unsynced: Vec<(usize, Box<[u8]>)>,
}

impl SimDisk {
    /// An empty disk; everything that it decides follows from `seed`.
    pub fn new(seed: u64) -> SimDisk {
        SimDisk(Arc::new(Mutex::new(State { random: seed, ..State::default() })))
    }

    /// Sets how it misbehaves from now on.
    pub fn set_faults(&self, faults: Faults) {
        self.state().faults = faults;
    }

    /// How it misbehaves.
    pub fn faults(&self) -> Faults {
        self.state().faults
    }

    /// How often it has misbehaved.
    pub fn happened(&self) -> Happened {
        self.state().happened
    }

    /// Lets the next write fail.
    pub fn fail_next_write(&self) {
        self.state().fail_next_write = true;
    }

    /// Lets the next sync or synchronous write fail.
    pub fn fail_next_sync(&self) {
        self.state().fail_next_sync = true;
    }

    /// Lets the power go in the middle of the operation with this number; every later one fails
    /// until [`Self::restart`].
    pub fn crash_at(&self, operation: u64) {
        self.state().crash_at = Some(operation);
    }

    /// Operations so far.
    pub fn operations(&self) -> u64 {
        self.state().operations
    }

    /// Whether the power went.
    pub fn is_down(&self) -> bool {
        self.state().is_down
    }

    /// The power goes and comes back: of what was not synced, each sector is there or not.
    pub fn restart(&self) {
        let state = &mut *self.state();
        for file in state.files.values_mut() {
            file.lose_power(&mut state.random, &mut state.happened);
        }
        (state.is_down, state.crash_at) = (false, None);
    }

    /// One bit of a file turns over, at rest.
    pub fn flip_bit(&self, file: FileNo, offset: usize, bit: u8) {
        if let Some(file) = self.state().files.get_mut(&file)
            && offset < file.seen.len()
        {
            file.seen[offset] ^= 1 << (bit % 8);
            file.durable[offset] ^= 1 << (bit % 8);
        }
    }

    /// The block of a file at `offset` can be read no more (EIO).
    pub fn make_unreadable(&self, file: FileNo, offset: usize) {
        self.fail_reads(file, offset, usize::MAX);
    }

    /// So many reads of the block at `offset` fail (EIO).
    pub fn fail_reads(&self, file: FileNo, offset: usize, reads: usize) {
        self.state().unreadable.insert((file, offset / BLOCK), reads);
    }

    /// Every block can be read again.
    pub fn heal(&self) {
        self.state().unreadable.clear();
    }

    /// Files that were set aside.
    pub fn quarantined(&self) -> Vec<FileNo> {
        self.state().quarantined.clone()
    }

    /// What a file holds at present.
    pub fn contents(&self, file: FileNo) -> Vec<u8> {
        self.state().files.get(&file).map(|file| file.seen.clone()).unwrap_or_default()
    }

    /// Replaces what a file holds, durably: for tests that plant something.
    pub fn plant(&self, file: FileNo, contents: Vec<u8>) {
        let planted = SimFile { durable: contents.clone(), seen: contents, unsynced: Vec::new() };
        self.state().files.insert(file, planted);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An output of splitmix64.
fn next_random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn broken() -> io::Error {
    io::Error::other("the simulated disk says no")
}

impl State {
    fn chance(&mut self, permil: u32) -> bool {
        permil > 0 && next_random(&mut self.random) % 1000 < u64::from(permil)
    }

    /// Counts an operation; gives whether the power goes in its middle.
    fn begin(&mut self) -> io::Result<bool> {
        if self.is_down {
            return Err(broken());
        }
        self.operations += 1;
        self.is_down = self.crash_at == Some(self.operations);
        Ok(self.is_down)
    }

    fn file(&mut self, file: FileNo) -> io::Result<&mut SimFile> {
        self.files.get_mut(&file).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl SimFile {
    fn lose_power(&mut self, random: &mut u64, happened: &mut Happened) {
        self.keep_some(random, happened);
        self.seen.clone_from(&self.durable);
    }

    /// Of the unsynced sectors some reach the disk; none is pending after that.
    fn keep_some(&mut self, random: &mut u64, happened: &mut Happened) {
        let (mut kept, mut dropped) = (0, 0);
        for (sector, contents) in std::mem::take(&mut self.unsynced) {
            if next_random(random).is_multiple_of(2) {
                self.durable[sector * SECTOR..][..SECTOR].copy_from_slice(&contents);
                kept += 1;
            } else {
                dropped += 1;
            }
        }
        happened.dropped_sectors += dropped;
        happened.torn += usize::from(kept > 0 && dropped > 0);
    }

    fn make_durable(&mut self, sector: usize) {
        let range = sector * SECTOR..(sector + 1) * SECTOR;
        self.durable[range.clone()].copy_from_slice(&self.seen[range]);
    }
}

impl Disk for SimDisk {
    fn files(&self) -> io::Result<Vec<FileNo>> {
        let state = self.state();
        if state.is_down { Err(broken()) } else { Ok(state.files.keys().copied().collect()) }
    }

    fn create(&self, file: FileNo, octets: u32, header: &[u8]) -> io::Result<()> {
        let mut state = self.state();
        if state.begin()? {
            return Err(broken());
        }
        if state.files.len() >= state.faults.files_max {
            state.happened.full += 1;
            return Err(io::ErrorKind::StorageFull.into());
        }
        if state.files.contains_key(&file) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let mut contents = vec![0; octets as usize];
        contents[..header.len()].copy_from_slice(header);
        let made = SimFile { durable: contents.clone(), seen: contents, unsynced: Vec::new() };
        state.files.insert(file, made);
        Ok(())
    }

    fn length(&self, file: FileNo) -> io::Result<u64> {
        Ok(self.state().file(file)?.seen.len() as u64)
    }

    fn write(
        &self,
        file: FileNo,
        offset: u32,
        parts: &[IoSlice<'_>],
        sync: Sync,
    ) -> io::Result<()> {
        let state = &mut *self.state();
        let goes_down = state.begin()?;
        let permil = match sync {
            Sync::Later => state.faults.write_failures_permil,
            Sync::Data => state.faults.write_failures_permil + state.faults.sync_failures_permil,
        };
        let fails = std::mem::take(&mut state.fail_next_write)
            || (sync == Sync::Data && std::mem::take(&mut state.fail_next_sync))
            || state.chance(permil)
            || goes_down;
        let file = state.files.get_mut(&file).ok_or(io::ErrorKind::NotFound)?;
        let mut at = offset as usize;
        for part in parts {
            assert!(
                at.is_multiple_of(SECTOR) && part.len().is_multiple_of(SECTOR),
                "direct I/O wants whole sectors"
            );
            assert_eq!(part.as_ptr() as usize % SECTOR, 0, "direct I/O wants aligned memory");
            for (place, sector) in part.chunks(SECTOR).enumerate() {
                if fails && next_random(&mut state.random).is_multiple_of(2) {
                    continue;
                }
                let start = at + place * SECTOR;
                let room = file.seen.get_mut(start..start + SECTOR);
                room.ok_or(io::ErrorKind::StorageFull)?.copy_from_slice(sector);
                if sync == Sync::Data && !fails {
                    file.make_durable(start / SECTOR);
                } else {
                    file.unsynced.push((start / SECTOR, sector.into()));
                }
            }
            at += part.len();
        }
        state.happened.write_failures += usize::from(fails);
        if fails { Err(broken()) } else { Ok(()) }
    }

    fn sync(&self, file: FileNo) -> io::Result<()> {
        let state = &mut *self.state();
        let goes_down = state.begin()?;
        let permil = state.faults.sync_failures_permil;
        let fails = std::mem::take(&mut state.fail_next_sync) || state.chance(permil) || goes_down;
        let file = state.files.get_mut(&file).ok_or(io::ErrorKind::NotFound)?;
        if fails {
            file.keep_some(&mut state.random, &mut state.happened);
            state.happened.sync_failures += 1;
            return Err(broken());
        }
        for (sector, _) in std::mem::take(&mut file.unsynced) {
            file.make_durable(sector);
        }
        Ok(())
    }

    fn read(&self, file: FileNo, offset: u32, into: &mut [u8]) -> io::Result<()> {
        let mut state = self.state();
        if state.is_down {
            return Err(broken());
        }
        let start = offset as usize;
        let blocks = start / BLOCK..(start + into.len()).div_ceil(BLOCK);
        let mut fails = false;
        for block in blocks {
            if let Some(left) = state.unreadable.get_mut(&(file, block))
                && *left > 0
            {
                *left -= 1;
                fails = true;
            }
        }
        if fails {
            return Err(rustix::io::Errno::IO.into());
        }
        let seen = &state.file(file)?.seen;
        let range = start..start.checked_add(into.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        into.copy_from_slice(seen.get(range).ok_or(io::ErrorKind::UnexpectedEof)?);
        let permil = state.faults.read_flips_permil;
        if !into.is_empty() && state.chance(permil) {
            state.happened.flipped_reads += 1;
            let at = next_random(&mut state.random) as usize;
            into[at % into.len()] ^= 1 << (at / into.len() % 8);
        }
        Ok(())
    }

    fn quarantine(&self, file: FileNo) -> io::Result<()> {
        let mut state = self.state();
        if state.begin()? {
            return Err(broken());
        }
        state.files.remove(&file).ok_or(io::ErrorKind::NotFound)?;
        state.quarantined.push(file);
        Ok(())
    }

    fn remove(&self, file: FileNo) -> io::Result<()> {
        let mut state = self.state();
        if state.begin()? {
            return Err(broken());
        }
        state.files.remove(&file).ok_or(io::ErrorKind::NotFound)?;
        Ok(())
    }
}
