//! The filter's memory on disk: read at the start, written every minute and at the stop by a thread
//! of its own.
//!
//! The file, `state/senders` in the data directory, is written whole beside the old one, synced and
//! put in its place, so that there is always a good one.  What it holds, in little-endian words:
//!
//! ```text
//! "MRsender"  version 1 (4 octets)  the key of the hashes (32 octets)
//! blocks: which table (4 octets: 1 strangers, 2 good senders)  entries (4 octets)
//!         each entry 24 octets: hash of the network, hash of the subject, time << 32 | count
//! 0 (4 octets)  CRC-32C of all before it (4 octets)
//! ```
//!
//! Its size is bounded by that of the tables: 24 octets an entry.  A file that is damaged, or cannot
//! be read, is told of, and the memory begins empty: strangers are told to come again, which harms
//! nobody for longer than their retry.  A failed write is told of and tried again.

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam::channel::{RecvTimeoutError, Sender, bounded};

use super::memory::{Memory, Secret, Table};
use super::slots::{ENTRY_OCTETS, Entry, Key, Seconds};
use crate::config::Greylist;

/// Why the file says nothing.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// It cannot be read.
    #[error("it cannot be read: {0}")]
    Io(#[from] io::Error),
    /// It is not what was written.
    #[error("it is damaged")]
    Damaged,
}

/// The thread that writes the file.
pub struct Keeper {
    stop: Sender<()>,
    thread: JoinHandle<()>,
}

const MAGIC: &[u8; 8] = b"MRsender";
const VERSION: u32 = 1;
/// How much of a block's word of entries is believed: more are in no shard of any table.
const BLOCK_ENTRIES_MAX: u32 = 1 << 24;
/// How often it is written, if anything has changed: what a crash may forget.
const EVERY: Duration = Duration::from_secs(60);
const NAME: &str = "senders";

/// The memory as it was left in the directory `state`, or an empty one.
///
/// # Errors
/// The system gives no random key.
pub fn load(state: &Path, settings: &Greylist, now: Seconds) -> io::Result<Memory> {
    let path = state.join(NAME);
    let loaded = match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => Some(Err(LoadError::Io(error))),
        Ok(file) => Some(read(BufReader::new(file), settings, now)),
    };
    match loaded {
        Some(Ok(memory)) => return Ok(memory),
        Some(Err(error)) => {
            let path = path.display();
            tracing::warn!(%error, %path, "what is known of senders begins anew");
        }
        None => {}
    }
    let mut secret: Secret = [0; 32];
    aws_lc_rs::rand::fill(&mut secret).map_err(|_| io::Error::other("no random numbers"))?;
    Ok(Memory::new(settings, secret))
}

/// Writes the memory into the directory `state`, which is made if it is not there.
///
/// # Errors
/// As the system says; the file from before is there still.
pub fn save(state: &Path, memory: &Memory, now: Seconds) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(state)?;
    let new = state.join(format!("{NAME}.new"));
    let file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    let mut out = BufWriter::with_capacity(256 * 1024, file);
    write(&mut out, memory, now)?;
    out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
    fs::rename(&new, state.join(NAME))?;
    File::open(state)?.sync_all()
}

impl Keeper {
    /// Starts it.
    ///
    /// # Errors
    /// The system gives no more threads.
    pub fn start(
        state: PathBuf,
        memory: Arc<Memory>,
        now: impl Fn() -> Seconds + Send + 'static,
    ) -> io::Result<Keeper> {
        let (stop, stopped) = bounded(1);
        let keep = move || {
            loop {
                let waited = stopped.recv_timeout(EVERY);
                if memory.take_changed()
                    && let Err(error) = save(&state, &memory, now())
                {
                    memory.put_changed();
                    tracing::warn!(%error, "what is known of senders could not be written");
                }
                if waited != Err(RecvTimeoutError::Timeout) {
                    return;
                }
            }
        };
        let thread = thread::Builder::new().name("senders".into()).spawn(keep)?;
        Ok(Keeper { stop, thread })
    }

    /// Writes what has changed, and ends.
    pub fn stop(self) {
        drop(self.stop);
        if self.thread.join().is_err() {
            tracing::error!("what is known of senders was not written, by a bug of ours");
        }
    }
}

fn write(out: impl Write, memory: &Memory, now: Seconds) -> io::Result<()> {
    let mut out = Summed { inner: out, crc: 0 };
    out.write_all(MAGIC)?;
    out.write_all(&VERSION.to_le_bytes())?;
    out.write_all(memory.secret())?;
    for (number, table, slots) in
        [(1u32, Table::Strangers, &memory.strangers), (2, Table::Good, &memory.good)]
    {
        for part in slots.parts() {
            let fresh = || part.iter().filter(|(_, entry)| memory.is_fresh(table, *entry, now));
            let count = fresh().count() as u32;
            if count > 0 {
                out.write_all(&number.to_le_bytes())?;
                out.write_all(&count.to_le_bytes())?;
            }
            for (key, entry) in fresh() {
                out.write_all(&encoded(*key, *entry))?;
            }
        }
    }
    out.write_all(&0u32.to_le_bytes())?;
    let crc = out.crc;
    out.inner.write_all(&crc.to_le_bytes())?;
    out.inner.flush()
}

fn read(file: impl Read, settings: &Greylist, now: Seconds) -> Result<Memory, LoadError> {
    let mut file = Summed { inner: file, crc: 0 };
    if &file.array::<8>()? != MAGIC || file.word()? != VERSION {
        return Err(LoadError::Damaged);
    }
    let memory = Memory::new(settings, file.array()?);
    loop {
        let (table, slots) = match file.word()? {
            0 => break,
            1 => (Table::Strangers, &memory.strangers),
            2 => (Table::Good, &memory.good),
            _ => return Err(LoadError::Damaged),
        };
        let count = file.word()?;
        if count > BLOCK_ENTRIES_MAX {
            return Err(LoadError::Damaged);
        }
        for _ in 0..count {
            let (key, mut entry) = decoded(file.array()?);
            // From a clock that was ahead: it would stay for ever.
            entry.at = entry.at.min(now);
            if memory.is_fresh(table, entry, now) {
                slots.put(key, entry);
            }
        }
    }
    let crc = file.crc;
    if file.word()? != crc || file.inner.read(&mut [0])? > 0 {
        return Err(LoadError::Damaged);
    }
    Ok(memory)
}

fn encoded(key: Key, entry: Entry) -> [u8; ENTRY_OCTETS] {
    let what = u64::from(entry.at.0) << 32 | u64::from(entry.count);
    let mut octets = [0; ENTRY_OCTETS];
    for (word, place) in [key.network, key.subject, what].iter().zip(octets.chunks_exact_mut(8)) {
        place.copy_from_slice(&word.to_le_bytes());
    }
    octets
}

fn decoded(octets: [u8; ENTRY_OCTETS]) -> (Key, Entry) {
    let word = |at: usize| {
        octets[at..at + 8].iter().rev().fold(0u64, |word, &octet| word << 8 | u64::from(octet))
    };
    let what = word(16);
    let entry = Entry { at: Seconds((what >> 32) as u32), count: what as u32 };
    (Key { network: word(0), subject: word(8) }, entry)
}

/// Sums up what goes through it.
struct Summed<T> {
    inner: T,
    crc: u32,
}

impl<W: Write> Summed<W> {
    fn write_all(&mut self, octets: &[u8]) -> io::Result<()> {
        self.crc = crc32c::crc32c_append(self.crc, octets);
        self.inner.write_all(octets)
    }
}

impl<R: Read> Summed<R> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], LoadError> {
        let mut octets = [0; N];
        self.inner.read_exact(&mut octets).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => LoadError::Damaged,
            _ => LoadError::Io(error),
        })?;
        self.crc = crc32c::crc32c_append(self.crc, &octets);
        Ok(octets)
    }

    fn word(&mut self) -> Result<u32, LoadError> {
        Ok(u32::from_le_bytes(self.array()?))
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proptest::prelude::*;

    use super::super::memory::Acquaintance;
    use super::*;

    const NOW: Seconds = Seconds(1_700_000_000);

    fn settings() -> Greylist {
        Greylist { entries: 1_000, ..Greylist::default() }
    }

    fn client(number: u8) -> IpAddr {
        [192, 0, number, 1].into()
    }

    fn filled() -> Memory {
        let memory = Memory::new(&settings(), [3; 32]);
        for number in 0..50 {
            memory.accepted(client(number), "a@x.example", true, NOW);
            memory.meet(client(number), "b@y.example", "c@here.example", NOW);
        }
        memory
    }

    fn written() -> Vec<u8> {
        let mut file = Vec::new();
        write(&mut file, &filled(), NOW).unwrap();
        file
    }

    #[test]
    fn what_was_known_is_known_after_a_restart() {
        let file = written();
        // 50 strangers, 50 networks, 50 of their domains.
        assert!(file.len() < 52 + 150 * ENTRY_OCTETS + 2 * 64 * 8, "{}", file.len());
        for settings in [settings(), Greylist { entries: 50_000, ..settings() }] {
            let memory = read(&*file, &settings, NOW).unwrap();
            let later = Seconds(NOW.0 + 301);
            for number in 0..50 {
                let met = |from| memory.meet(client(number), from, "c@here.example", later);
                assert_eq!(met("a@x.example"), Acquaintance::Known);
                assert!(matches!(met("b@y.example"), Acquaintance::Returned { .. }));
            }
            assert!(!memory.knows(client(60), later));
        }
    }

    #[test]
    fn what_says_nothing_any_more_is_not_read() {
        let memory = read(&*written(), &settings(), Seconds(NOW.0 + 37 * 86_400)).unwrap();
        let entries: usize =
            memory.good.parts().chain(memory.strangers.parts()).map(|part| part.len()).sum();
        assert_eq!(entries, 0);
    }

    #[test]
    fn a_clock_that_was_ahead_keeps_nothing_for_ever() {
        let memory = read(&*written(), &settings(), Seconds(1_000)).unwrap();
        assert!(memory.knows(client(0), Seconds(1_000)));
        assert!(!memory.knows(client(0), Seconds(1_000 + 37 * 86_400)));
    }

    proptest! {
        #[test]
        fn every_damage_is_found(place in any::<prop::sample::Index>(), flip in 1..=255u8) {
            let mut file = written();
            let place = place.index(file.len());
            file[place] ^= flip;
            prop_assert!(read(&*file, &settings(), NOW).is_err());
        }

        #[test]
        fn every_cut_is_found(place in any::<prop::sample::Index>()) {
            let file = written();
            prop_assert!(read(&file[..place.index(file.len())], &settings(), NOW).is_err());
        }
    }

    #[test]
    fn a_damaged_file_is_an_empty_memory_and_is_written_anew() {
        let directory =
            std::env::temp_dir().join(format!("mailrace-senders-{}", std::process::id()));
        let state = directory.join("state");
        let keeper = |memory: &Arc<Memory>| {
            Keeper::start(state.clone(), memory.clone(), || NOW).expect("a thread")
        };
        let memory = Arc::new(load(&state, &settings(), NOW).expect("random numbers"));
        memory.accepted(client(1), "a@x.example", true, NOW);
        keeper(&memory).stop();
        let again = load(&state, &settings(), NOW).expect("random numbers");
        assert!(again.knows(client(1), NOW));
        let path = state.join(NAME);
        let mut file = fs::read(&path).expect("it was written");
        let middle = file.len() / 2;
        file[middle] ^= 1;
        fs::write(&path, &file).expect("it is ours");
        let empty = Arc::new(load(&state, &settings(), NOW).expect("random numbers"));
        assert!(!empty.knows(client(1), NOW));
        assert_ne!(empty.secret(), memory.secret());
        empty.accepted(client(2), "a@x.example", true, NOW);
        keeper(&empty).stop();
        assert!(load(&state, &settings(), NOW).expect("random numbers").knows(client(2), NOW));
        fs::remove_dir_all(&directory).expect("it is ours");
    }
}
