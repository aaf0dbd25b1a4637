//! The file of a ledger: a header of one record's size, then records, all little-endian.
//!
//! ```text
//! header  magic "MRLEDGER", version u8, side u8, zeros
//! record  id u64, time u64 (ns since 1970), recipients sum u32, recipients u16, verdict u8, 0xA5,
//!         address u32, zeros
//! ```
//! A run appends to a file that is there; the run's number is part of every id.  The constant at
//! the end of a record tells a torn or overwritten one.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use crate::message::MessageId;

/// Octets of a record and of the header.
pub const RECORD: usize = 32;
const MAGIC: &[u8; 8] = b"MRLEDGER";
const VERSION: u8 = 2;
const MARK: u8 = 0xa5;
/// Records that a thread keeps before it writes them.
const BLOCK: usize = 2_048;

/// Whose books these are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Side {
    /// What was sent, and what the server said to it.
    Source = 1,
    /// What arrived.
    Sink = 2,
}

/// What became of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Verdict {
    /// Source: the final reply was 2xx; the server must deliver it.
    Acknowledged = 1,
    /// Source: the final reply was 4xx or 5xx; the server must not deliver it.
    Refused = 2,
    /// Source: sent, but no final reply came; the server may deliver it or not.
    Unknown = 3,
    /// Sink: arrived whole.
    Intact = 4,
    /// Sink: arrived, but the body is not what was sent.
    Damaged = 5,
}

/// One message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// Which.
    pub id: MessageId,
    /// When, in nanoseconds since 1970.
    pub time_ns: u64,
    /// The sum of its recipients' hashes, so that nobody is taken for somebody else.
    pub recipients_sum: u32,
    /// How many recipients.
    pub recipients: u16,
    /// What became of it.
    pub verdict: Verdict,
    /// The IPv4 address at which it arrived, as a number; 0 where there is none or many.
    pub address: u32,
}

/// Adds a recipient to a sum that does not depend on their order.
pub fn add_recipient(sum: u32, path: &[u8]) -> u32 {
    // Servers may change the case of a domain; nothing else of an address.
    let mut hash = 0;
    for chunk in path.chunks(64) {
        let mut lower = [0; 64];
        lower[..chunk.len()].copy_from_slice(chunk);
        lower.make_ascii_lowercase();
        hash = crc32c::crc32c_append(hash, &lower[..chunk.len()]);
    }
    sum.wrapping_add(hash)
}

/// The time of a record.
pub fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    since.as_nanos() as u64
}

impl Record {
    fn to_bytes(self) -> [u8; RECORD] {
        let mut bytes = [0; RECORD];
        bytes[..8].copy_from_slice(&self.id.0.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.time_ns.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.recipients_sum.to_le_bytes());
        bytes[20..22].copy_from_slice(&self.recipients.to_le_bytes());
        bytes[22] = self.verdict as u8;
        bytes[23] = MARK;
        bytes[24..28].copy_from_slice(&self.address.to_le_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8; RECORD]) -> Option<Record> {
        let number = |at: usize| {
            let octets = bytes[at..at + 8].try_into().expect("eight octets of a record");
            u64::from_le_bytes(octets)
        };
        let verdict = match bytes[22] {
            1 => Verdict::Acknowledged,
            2 => Verdict::Refused,
            3 => Verdict::Unknown,
            4 => Verdict::Intact,
            5 => Verdict::Damaged,
            _ => return None,
        };
        (bytes[23] == MARK).then(|| Record {
            id: MessageId(number(0)),
            time_ns: number(8),
            recipients_sum: number(16) as u32,
            recipients: (number(16) >> 32) as u16,
            verdict,
            address: number(24) as u32,
        })
    }
}

/// A ledger file that all threads of a process append to.
#[derive(Debug, Clone)]
pub struct LedgerFile {
    file: Arc<File>,
}

/// One thread's way to the file: gathers records into blocks.
#[derive(Debug)]
pub struct Writer {
    file: LedgerFile,
    block: Vec<u8>,
    /// The first failure; the books are no good after it.
    failure: Option<io::Error>,
}

impl LedgerFile {
    /// Opens the file to append to it, or makes it.
    ///
    /// # Errors
    /// The system says no, or the file is no ledger of this side.
    pub fn append(path: &Path, side: Side) -> io::Result<LedgerFile> {
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(path)?;
        let length = file.metadata()?.len();
        if length == 0 {
            file.write_all(&header(side))?;
            return Ok(LedgerFile { file: Arc::new(file) });
        }
        let mut begin = [0; RECORD];
        file.read_exact(&mut begin)?;
        if begin != header(side) {
            return Err(io::Error::other("this file is not a ledger of this side; choose another"));
        }
        // What a killed process left of a record would shift all that follow it.
        file.set_len(length - length % RECORD as u64)?;
        Ok(LedgerFile { file: Arc::new(file) })
    }

    /// A writer for one thread.
    pub fn writer(&self) -> Writer {
        let block = Vec::with_capacity(BLOCK * RECORD);
        Writer { file: self.clone(), block, failure: None }
    }
}

impl Writer {
    /// Adds a record; writes when a block is full.
    pub fn record(&mut self, record: Record) {
        self.block.extend_from_slice(&record.to_bytes());
        if self.block.len() >= BLOCK * RECORD {
            self.flush();
        }
    }

    /// Writes what has been gathered.
    pub fn flush(&mut self) {
        if self.block.is_empty() {
            return;
        }
        // One write each, to the end of the file: blocks of several threads do not mix.
        if let Err(error) = (&*self.file.file).write_all(&self.block) {
            self.failure.get_or_insert(error);
        }
        self.block.clear();
    }

    /// Whether everything that was flushed was written.
    ///
    /// # Errors
    /// The first write that failed; the books are no good after it.
    pub fn check(&mut self) -> io::Result<()> {
        self.failure.take().map_or(Ok(()), Err)
    }
}

fn header(side: Side) -> [u8; RECORD] {
    let mut bytes = [0; RECORD];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8] = VERSION;
    bytes[9] = side as u8;
    bytes
}

/// A whole ledger in memory.
#[derive(Debug)]
pub struct Book {
    /// In the order of the file.
    pub records: Vec<Record>,
    /// Records that cannot be read, and whether the last one is cut off.
    pub unreadable: u64,
}

/// Reads a ledger of the given side.
///
/// # Errors
/// The system says no, or the file is no ledger of this side.
pub fn read(path: &Path, side: Side) -> io::Result<Book> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len() as usize;
    let mut begin = [0; RECORD];
    file.read_exact(&mut begin)?;
    if begin != header(side) {
        let wanted = if side == Side::Source { "send" } else { "sink" };
        return Err(io::Error::other(format!("this file is not a ledger of {wanted}")));
    }
    let mut book = Book { records: Vec::new(), unreadable: 0 };
    book.records.reserve_exact((length / RECORD).saturating_sub(1));
    let mut block = vec![0; 4_096 * RECORD];
    let mut held = 0;
    loop {
        let octets = file.read(&mut block[held..])?;
        let filled = held + octets;
        let (records, rest) = block[..filled].as_chunks::<RECORD>();
        for bytes in records {
            match Record::from_bytes(bytes) {
                Some(record) => book.records.push(record),
                None => book.unreadable += 1,
            }
        }
        if octets == 0 {
            book.unreadable += u64::from(!rest.is_empty());
            return Ok(book);
        }
        held = rest.len();
        block.copy_within(filled - held..filled, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(number: u64) -> Record {
        Record {
            id: MessageId(number),
            time_ns: number * 3,
            recipients_sum: number as u32 ^ 0xdead_beef,
            recipients: 7,
            verdict: Verdict::Damaged,
            address: 0x7f00_0001,
        }
    }

    #[test]
    fn records_are_read_as_they_were_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sink.ledger");
        for begin in [0, 5_000] {
            let file = LedgerFile::append(&path, Side::Sink).unwrap();
            let mut writer = file.writer();
            (begin..begin + 5_000).for_each(|number| writer.record(record(number)));
            writer.flush();
            writer.check().unwrap();
        }
        let book = read(&path, Side::Sink).unwrap();
        assert!(book.records.iter().copied().eq((0..10_000).map(record)));
        assert_eq!(book.unreadable, 0);
        assert!(read(&path, Side::Source).is_err());
        assert!(LedgerFile::append(&path, Side::Source).is_err());
    }

    #[test]
    fn a_torn_end_is_told_and_then_cut() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger");
        let mut writer = LedgerFile::append(&path, Side::Source).unwrap().writer();
        (0..3).for_each(|number| writer.record(record(number)));
        writer.flush();
        writer.check().unwrap();
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 5]).unwrap();
        let book = read(&path, Side::Source).unwrap();
        assert_eq!((book.records.len(), book.unreadable), (2, 1));
        let mut writer = LedgerFile::append(&path, Side::Source).unwrap().writer();
        writer.record(record(9));
        writer.flush();
        writer.check().unwrap();
        let book = read(&path, Side::Source).unwrap();
        assert_eq!((book.records.len(), book.unreadable), (3, 0));
        assert_eq!(book.records[2], record(9));
    }

    #[test]
    fn recipients_are_told_apart_but_not_by_case_or_order() {
        let sum =
            |paths: &[&str]| paths.iter().fold(0, |sum, path| add_recipient(sum, path.as_bytes()));
        assert_eq!(sum(&["a@B.example", "c@d"]), sum(&["c@d", "a@b.Example"]));
        assert_ne!(sum(&["a@b"]), sum(&["a@c"]));
        let long = "x".repeat(200);
        assert_ne!(sum(&[&long]), sum(&[&long[1..]]));
    }
}
