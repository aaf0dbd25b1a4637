//! A disk behind a cache that forgets, without any I/O: what a power cut leaves of it.
//!
//! Every file and folder is kept twice, as it is seen and as it is durable, with the changes
//! between the two in their order.  A sync brings the durable state up to the present one; a cut
//! ([`Volume::cut`]) applies a part of the changes, chosen by a seed, and forgets the rest.
//!
//! It is as harsh as the standards allow, and harsher than any one file system:
//! - unsynced writes survive or not by sectors of 512 octets, in any order;
//! - a write that asks to be durable by itself (`RWF_DSYNC`, `O_DSYNC`) makes only itself durable,
//!   as a disk with FUA does, and nothing that was written before it;
//! - a sync of a file says nothing about its name: names last when their folder was synced;
//! - unsynced changes of a folder survive up to any point of their order, each folder's apart, so
//!   a file that was moved to another folder may be in both or in neither.
//!
//! Owners and modes are durable at once; there are no links.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::ffi::{OsStr, OsString};
use std::time::SystemTime;

use fastrand::Rng;
use rustix::io::Errno;

/// What a disk writes whole or not at all.
pub const SECTOR_OCTETS: usize = 512;
/// The number of the uppermost folder.
pub const ROOT: u64 = 1;

/// The disk.
#[derive(Debug)]
pub struct Volume {
    nodes: HashMap<u64, Node>,
    next: u64,
    capacity_octets: u64,
    used_octets: u64,
    lie: Option<Lie>,
}

/// A promise that is not kept, to try the tests themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lie {
    /// Writes that ask to be durable are not.
    DurableWrites,
    /// A sync of a file does nothing.
    FileSyncs,
    /// A sync of a folder does nothing.
    FolderSyncs,
}

/// What a cut leaves of that which was not synced.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kept {
    /// Nothing: the cache was never written back.
    Nothing,
    /// Everything: it just had been.
    Everything,
    /// Each sector of each write with this probability.
    Sectors(f64),
    /// Each write, whole, with this probability.
    Writes(f64),
}

/// What a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A folder.
    Folder,
    /// A socket's name.
    Socket,
}

/// Whom a node belongs to, and its permissions.
#[derive(Debug, Clone, Copy)]
pub struct Rights {
    /// Permission bits.
    pub mode: u16,
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// What is told of a node.
#[derive(Debug, Clone, Copy)]
pub struct Attributes {
    /// Its number.
    pub number: u64,
    /// What it is.
    pub kind: Kind,
    /// Its length.
    pub octets: u64,
    /// Whose it is.
    pub rights: Rights,
    /// When it was last written.
    pub modified: SystemTime,
}

#[derive(Debug)]
struct Node {
    rights: Rights,
    modified: SystemTime,
    body: Body,
}

#[derive(Debug)]
enum Body {
    File(File),
    Folder(Folder),
    Socket,
}

#[derive(Debug, Default)]
struct File {
    seen: Vec<u8>,
    durable: Vec<u8>,
    /// From `durable` to `seen`.
    changes: VecDeque<Change>,
}

#[derive(Debug)]
enum Change {
    Write { at: usize, octets: Box<[u8]>, is_durable: bool },
    Length(usize),
}

#[derive(Debug, Default)]
struct Folder {
    seen: BTreeMap<OsString, u64>,
    durable: BTreeMap<OsString, u64>,
    /// From `durable` to `seen`: what is done together is one element.
    changes: Vec<Vec<(OsString, Option<u64>)>>,
}

type Outcome<T> = Result<T, Errno>;

impl Volume {
    /// An empty disk.
    pub fn new(capacity_octets: u64, rights: Rights, lie: Option<Lie>) -> Volume {
        let root = Node::new(Kind::Folder, rights);
        let nodes = HashMap::from([(ROOT, root)]);
        Volume { nodes, next: ROOT + 1, capacity_octets, used_octets: 0, lie }
    }

    /// How much it holds, and how much is free.
    pub fn room(&self) -> (u64, u64) {
        (self.capacity_octets, self.capacity_octets.saturating_sub(self.used_octets))
    }

    /// The node of this name.
    pub fn look_up(&self, folder: u64, name: &OsStr) -> Outcome<u64> {
        self.folder(folder)?.seen.get(name).copied().ok_or(Errno::NOENT)
    }

    /// What there is to be told.
    pub fn attributes(&self, number: u64) -> Outcome<Attributes> {
        let node = self.nodes.get(&number).ok_or(Errno::NOENT)?;
        let (kind, octets) = match &node.body {
            Body::File(file) => (Kind::File, file.seen.len() as u64),
            Body::Folder(_) => (Kind::Folder, 0),
            Body::Socket => (Kind::Socket, 0),
        };
        Ok(Attributes { number, kind, octets, rights: node.rights, modified: node.modified })
    }

    /// The names in a folder, sorted.
    pub fn list(&self, folder: u64) -> Outcome<Vec<(OsString, u64)>> {
        let seen = &self.folder(folder)?.seen;
        Ok(seen.iter().map(|(name, number)| (name.clone(), *number)).collect())
    }

    /// A new node under a new name.
    pub fn create(
        &mut self,
        folder: u64,
        name: &OsStr,
        kind: Kind,
        rights: Rights,
    ) -> Outcome<u64> {
        if self.folder(folder)?.seen.contains_key(name) {
            return Err(Errno::EXIST);
        }
        let number = self.next;
        self.next += 1;
        self.nodes.insert(number, Node::new(kind, rights));
        self.folder_mut(folder)?.change(vec![(name.into(), Some(number))]);
        Ok(number)
    }

    /// Takes a name away.
    pub fn remove(&mut self, folder: u64, name: &OsStr) -> Outcome<()> {
        let number = self.look_up(folder, name)?;
        if let Body::Folder(inner) = &self.nodes[&number].body
            && !inner.seen.is_empty()
        {
            return Err(Errno::NOTEMPTY);
        }
        self.used_octets = self.used_octets.saturating_sub(self.attributes(number)?.octets);
        self.folder_mut(folder)?.change(vec![(name.into(), None)]);
        Ok(())
    }

    /// Gives a node another name, over another node's unless that is forbidden.
    pub fn rename(
        &mut self,
        from: (u64, &OsStr),
        to: (u64, &OsStr),
        may_replace: bool,
    ) -> Outcome<()> {
        let number = self.look_up(from.0, from.1)?;
        if let Ok(replaced) = self.look_up(to.0, to.1) {
            if !may_replace {
                return Err(Errno::EXIST);
            }
            let octets = self.attributes(replaced)?.octets;
            self.used_octets = self.used_octets.saturating_sub(octets);
        }
        let (gone, come) = ((from.1.into(), None), (to.1.into(), Some(number)));
        if from.0 == to.0 {
            self.folder_mut(to.0)?.change(vec![gone, come]);
        } else {
            self.folder_mut(to.0)?.change(vec![come]);
            self.folder_mut(from.0)?.change(vec![gone]);
        }
        Ok(())
    }

    /// Changes permissions.
    pub fn set_rights(&mut self, number: u64, change: impl FnOnce(&mut Rights)) -> Outcome<()> {
        change(&mut self.nodes.get_mut(&number).ok_or(Errno::NOENT)?.rights);
        Ok(())
    }

    /// Makes a file longer, by zeros, or shorter.
    pub fn set_length(&mut self, number: u64, octets: u64) -> Outcome<()> {
        let length = self.grow_to(number, octets)?;
        let file = self.file_mut(number)?;
        file.seen.resize(length, 0);
        file.changes.push_back(Change::Length(length));
        Ok(())
    }

    /// The octets from `at` on, up to the file's end.
    pub fn read(&self, number: u64, at: u64, octets: usize) -> Outcome<&[u8]> {
        let Body::File(file) = &self.node(number)?.body else { return Err(Errno::ISDIR) };
        let begin = usize::try_from(at).unwrap_or(usize::MAX).min(file.seen.len());
        Ok(&file.seen[begin..begin.saturating_add(octets).min(file.seen.len())])
    }

    /// Writes into the cache.
    pub fn write(&mut self, number: u64, at: u64, octets: &[u8]) -> Outcome<()> {
        let end = at.checked_add(octets.len() as u64).ok_or(Errno::FBIG)?;
        let length = self.attributes(number)?.octets.max(end);
        self.grow_to(number, length)?;
        let node = self.nodes.get_mut(&number).ok_or(Errno::NOENT)?;
        node.modified = SystemTime::now();
        let file = self.file_mut(number)?;
        let at = at as usize;
        put(&mut file.seen, at, octets);
        file.changes.push_back(Change::Write { at, octets: octets.into(), is_durable: false });
        Ok(())
    }

    /// Makes the last write to this file durable, and no other.
    pub fn settle_write(&mut self, number: u64) -> Outcome<()> {
        if self.lie == Some(Lie::DurableWrites) {
            return Ok(());
        }
        let file = self.file_mut(number)?;
        if let Some(Change::Write { is_durable, .. }) = file.changes.back_mut() {
            *is_durable = true;
        }
        // Behind what is not durable it waits for the order's sake.
        while let Some(Change::Write { is_durable: true, .. }) = file.changes.front() {
            let Some(Change::Write { at, octets, .. }) = file.changes.pop_front() else { break };
            put(&mut file.durable, at, &octets);
        }
        Ok(())
    }

    /// Makes all that was written to a file durable, and its length.
    pub fn sync_file(&mut self, number: u64) -> Outcome<()> {
        if self.lie == Some(Lie::FileSyncs) {
            return Ok(());
        }
        let file = self.file_mut(number)?;
        let changes = std::mem::take(&mut file.changes);
        changes.into_iter().for_each(|change| file.make_durable(change));
        Ok(())
    }

    /// Makes the names in a folder durable.
    pub fn sync_folder(&mut self, number: u64) -> Outcome<()> {
        if self.lie == Some(Lie::FolderSyncs) {
            return Ok(());
        }
        let folder = self.folder_mut(number)?;
        folder.changes.clear();
        folder.durable.clone_from(&folder.seen);
        Ok(())
    }

    /// The power goes and comes back: what is durable is seen, with what else was kept.
    pub fn cut(&mut self, kept: Kept, random: &mut Rng) {
        let mut numbers: Vec<u64> = self.nodes.keys().copied().collect();
        // The same seed is to leave the same.
        numbers.sort_unstable();
        for number in numbers {
            match self.nodes.get_mut(&number).map(|node| &mut node.body) {
                Some(Body::File(file)) => file.cut(kept, random),
                Some(Body::Folder(folder)) => folder.cut(kept, random),
                _ => {}
            }
        }
        self.forget_the_nameless();
    }

    fn forget_the_nameless(&mut self) {
        let mut named = HashSet::from([ROOT]);
        let mut unseen = vec![ROOT];
        while let Some(number) = unseen.pop() {
            if let Ok(folder) = self.folder(number) {
                unseen.extend(folder.seen.values().filter(|number| named.insert(**number)));
            }
        }
        self.nodes.retain(|number, _| named.contains(number));
        let lengths = self.nodes.values().map(|node| match &node.body {
            Body::File(file) => file.seen.len() as u64,
            _ => 0,
        });
        self.used_octets = lengths.sum();
    }

    /// Counts what a file is to have; gives it as a length.
    fn grow_to(&mut self, number: u64, octets: u64) -> Outcome<usize> {
        let before = self.attributes(number)?.octets;
        let used = self.used_octets.saturating_sub(before).saturating_add(octets);
        if octets > before && used > self.capacity_octets {
            return Err(Errno::NOSPC);
        }
        self.used_octets = used;
        usize::try_from(octets).map_err(|_| Errno::FBIG)
    }

    fn node(&self, number: u64) -> Outcome<&Node> {
        self.nodes.get(&number).ok_or(Errno::NOENT)
    }

    fn folder(&self, number: u64) -> Outcome<&Folder> {
        match &self.node(number)?.body {
            Body::Folder(folder) => Ok(folder),
            _ => Err(Errno::NOTDIR),
        }
    }

    fn folder_mut(&mut self, number: u64) -> Outcome<&mut Folder> {
        match &mut self.nodes.get_mut(&number).ok_or(Errno::NOENT)?.body {
            Body::Folder(folder) => Ok(folder),
            _ => Err(Errno::NOTDIR),
        }
    }

    fn file_mut(&mut self, number: u64) -> Outcome<&mut File> {
        match &mut self.nodes.get_mut(&number).ok_or(Errno::NOENT)?.body {
            Body::File(file) => Ok(file),
            _ => Err(Errno::ISDIR),
        }
    }
}

impl Node {
    fn new(kind: Kind, rights: Rights) -> Node {
        let body = match kind {
            Kind::File => Body::File(File::default()),
            Kind::Folder => Body::Folder(Folder::default()),
            Kind::Socket => Body::Socket,
        };
        Node { rights, modified: SystemTime::now(), body }
    }
}

impl File {
    fn make_durable(&mut self, change: Change) {
        match change {
            Change::Write { at, octets, .. } => put(&mut self.durable, at, &octets),
            Change::Length(length) => self.durable.resize(length, 0),
        }
    }

    fn cut(&mut self, kept: Kept, random: &mut Rng) {
        for change in std::mem::take(&mut self.changes) {
            match change {
                Change::Write { at, octets, is_durable: false } => {
                    let is_whole = kept.keeps_write(random);
                    for (at, sector) in sectors(at, &octets) {
                        if is_whole || kept.keeps_sector(random) {
                            put(&mut self.durable, at, sector);
                        }
                    }
                }
                Change::Length(_) if !kept.keeps_write(random) && !kept.keeps_sector(random) => {}
                change => self.make_durable(change),
            }
        }
        self.seen.clone_from(&self.durable);
    }
}

impl Folder {
    fn change(&mut self, names: Vec<(OsString, Option<u64>)>) {
        apply(&mut self.seen, &names);
        self.changes.push(names);
    }

    fn cut(&mut self, kept: Kept, random: &mut Rng) {
        let changes = std::mem::take(&mut self.changes);
        let count = match kept {
            Kept::Nothing => 0,
            Kept::Everything => changes.len(),
            Kept::Sectors(_) | Kept::Writes(_) => random.usize(0..=changes.len()),
        };
        changes[..count].iter().for_each(|names| apply(&mut self.durable, names));
        self.seen.clone_from(&self.durable);
    }
}

impl Kept {
    fn keeps_write(self, random: &mut Rng) -> bool {
        match self {
            Kept::Nothing | Kept::Sectors(_) => false,
            Kept::Everything => true,
            Kept::Writes(share) => random.f64() < share,
        }
    }

    fn keeps_sector(self, random: &mut Rng) -> bool {
        matches!(self, Kept::Sectors(share) if random.f64() < share)
    }
}

fn apply(names: &mut BTreeMap<OsString, u64>, changes: &[(OsString, Option<u64>)]) {
    for (name, number) in changes {
        match number {
            Some(number) => names.insert(name.clone(), *number),
            None => names.remove(name),
        };
    }
}

/// Writes over `octets` from `at` on, which is made longer where it has to be.
fn put(octets: &mut Vec<u8>, at: usize, new: &[u8]) {
    let end = at + new.len();
    if octets.len() < end {
        octets.resize(end, 0);
    }
    octets[at..end].copy_from_slice(new);
}

/// The pieces of a write that lie in one sector each, with where they begin.
fn sectors(at: usize, octets: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let begin = at + done;
        let left = SECTOR_OCTETS - begin % SECTOR_OCTETS;
        let piece = &octets[done..octets.len().min(done + left)];
        done += piece.len();
        (!piece.is_empty()).then_some((begin, piece))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const RIGHTS: Rights = Rights { mode: 0o755, uid: 0, gid: 0 };

    fn volume() -> (Volume, u64) {
        let mut volume = Volume::new(1 << 20, RIGHTS, None);
        let file = volume.create(ROOT, OsStr::new("file"), Kind::File, RIGHTS).unwrap();
        volume.sync_folder(ROOT).unwrap();
        (volume, file)
    }

    #[test]
    fn what_was_not_synced_is_gone_in_the_worst_case() {
        let (mut volume, file) = volume();
        volume.write(file, 0, b"first").unwrap();
        volume.sync_file(file).unwrap();
        volume.write(file, 0, b"later").unwrap();
        volume.write(file, 5, b", at once").unwrap();
        volume.settle_write(file).unwrap();
        assert_eq!(volume.read(file, 0, 99).unwrap(), b"later, at once");
        volume.cut(Kept::Nothing, &mut Rng::with_seed(1));
        assert_eq!(volume.read(file, 0, 99).unwrap(), b"first, at once");
        assert_eq!(volume.room(), (1 << 20, (1 << 20) - 14));
    }

    /// Random writes and syncs against the rule: after a cut each sector holds what it durably
    /// held or one of the later writes to it.
    #[test]
    fn a_cut_tears_and_reorders_but_invents_nothing() {
        const SECTORS: usize = 12;
        let (mut torn, mut reordered) = (0, 0);
        for seed in 0..2_000 {
            let mut random = Rng::with_seed(seed);
            let (mut volume, file) = volume();
            volume.set_length(file, (SECTORS * SECTOR_OCTETS) as u64).unwrap();
            volume.sync_file(file).unwrap();
            let mut possible = vec![vec![0u8]; SECTORS];
            let mut unsynced: Vec<(usize, usize, u8)> = Vec::new();
            for number in 1..random.u8(2..20) {
                let begin = random.usize(0..SECTORS);
                let count = random.usize(1..=SECTORS - begin);
                let octets = vec![number; count * SECTOR_OCTETS];
                volume.write(file, (begin * SECTOR_OCTETS) as u64, &octets).unwrap();
                let touched = &mut possible[begin..begin + count];
                match random.u8(0..4) {
                    0 => {
                        volume.settle_write(file).unwrap();
                        touched.iter_mut().for_each(|values| *values = vec![number]);
                    }
                    1 => {
                        volume.sync_file(file).unwrap();
                        touched.iter_mut().for_each(|values| values.push(number));
                        for values in &mut possible {
                            values.drain(..values.len() - 1);
                        }
                        unsynced.clear();
                    }
                    _ => {
                        touched.iter_mut().for_each(|values| values.push(number));
                        unsynced.push((begin, count, number));
                    }
                }
            }
            let kept = [Kept::Sectors(0.5), Kept::Writes(0.5)][seed as usize % 2];
            volume.cut(kept, &mut random);
            let left = volume.read(file, 0, usize::MAX).unwrap();
            let left: Vec<u8> = left.chunks(SECTOR_OCTETS).map(|sector| sector[0]).collect();
            for (value, possible) in left.iter().zip(&possible) {
                assert!(possible.contains(value), "seed {seed}: {left:?}, {possible:?}");
            }
            let survives = |(begin, count, number): &(usize, usize, u8)| {
                left[*begin..begin + count].iter().filter(|value| **value == *number).count()
            };
            let partly = |write: &&(usize, usize, u8)| (1..write.1).contains(&survives(write));
            torn += unsynced.iter().filter(partly).count();
            let lost_first = unsynced.iter().position(|write| survives(write) == 0);
            let kept_last = unsynced.iter().rposition(|write| survives(write) > 0);
            reordered += usize::from(lost_first.is_some() && lost_first < kept_last);
        }
        assert!(torn > 100 && reordered > 100, "{torn} torn, {reordered} reordered");
    }

    #[test]
    fn names_last_when_their_folder_was_synced() {
        let (mut volume, file) = volume();
        let (old, new) = (OsStr::new("file"), OsStr::new("other"));
        let folder = volume.create(ROOT, OsStr::new("sub"), Kind::Folder, RIGHTS).unwrap();
        volume.sync_folder(ROOT).unwrap();
        volume.rename((ROOT, old), (folder, new), false).unwrap();
        volume.sync_folder(folder).unwrap();
        volume.cut(Kept::Nothing, &mut Rng::with_seed(1));
        // Harsher than any file system: it is in both.
        assert_eq!(volume.look_up(ROOT, old), Ok(file));
        assert_eq!(volume.look_up(folder, new), Ok(file));
        volume.remove(ROOT, old).unwrap();
        volume.rename((folder, new), (folder, old), true).unwrap();
        volume.cut(Kept::Nothing, &mut Rng::with_seed(1));
        assert_eq!(volume.look_up(folder, new), Ok(file));
        assert_eq!(volume.look_up(folder, old), Err(Errno::NOENT));
    }

    #[test]
    fn each_lie_forgets_what_it_promised() {
        for lie in [Lie::DurableWrites, Lie::FileSyncs, Lie::FolderSyncs] {
            let mut volume = Volume::new(1 << 20, RIGHTS, Some(lie));
            let name = OsStr::new("file");
            let file = volume.create(ROOT, name, Kind::File, RIGHTS).unwrap();
            volume.sync_folder(ROOT).unwrap();
            volume.write(file, 0, b"synced").unwrap();
            volume.sync_file(file).unwrap();
            volume.write(file, 6, b", durable").unwrap();
            volume.settle_write(file).unwrap();
            volume.cut(Kept::Nothing, &mut Rng::with_seed(1));
            let left = volume.look_up(ROOT, name).and_then(|file| volume.read(file, 0, 99));
            match lie {
                Lie::DurableWrites => assert_eq!(left, Ok(&b"synced"[..])),
                Lie::FileSyncs => assert_eq!(left, Ok(&b"\0\0\0\0\0\0, durable"[..])),
                Lie::FolderSyncs => assert_eq!(left, Err(Errno::NOENT)),
            }
        }
    }
}
