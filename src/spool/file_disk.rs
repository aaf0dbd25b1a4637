//! The real disk: segment files in one directory, written directly where the file system lets us.
//!
//! A segment file `00000007.seg` is made as `00000007.new`, filled with zeros and synced before it
//! gets its name, so a file with a segment's name is always whole.  The directory is locked for one
//! process.  Where direct I/O is refused the same calls go through the page cache, which is said
//! loudly, since there a sync costs what other writers have left in the cache.

use std::collections::HashMap;
use std::ffi::OsString;
use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, PoisonError, RwLock};

use rustix::fs::{AtFlags, FallocateFlags, FlockOperation, Mode, OFlags, RenameFlags};
use rustix::io::{Errno, ReadWriteFlags, retry_on_intr};

use super::BLOCK;
use super::direct::AlignedBuf;
use super::disk::{Disk, FileNo, Sync};

const FILE_MODE: Mode = Mode::from_raw_mode(0o600);
const DIRECTORY_MODE: Mode = Mode::from_raw_mode(0o700);
/// How much is zeroed at once when a segment is made: small enough not to hold up a commit.
const ZERO_OCTETS: usize = 1024 * 1024;

/// Why a spool directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error("{0} is in use by another mailrace")]
    Locked(PathBuf),
    /// The system refuses.
    #[error("{path}: {source}")]
    Io {
        /// The directory.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

/// A locked spool directory.
#[derive(Debug)]
pub struct FileDisk {
    path: PathBuf,
    directory: OwnedFd,
    /// Held for the lock's sake.
    _lock: OwnedFd,
    open: RwLock<HashMap<FileNo, Arc<OwnedFd>>>,
    is_direct: AtomicBool,
}

impl FileDisk {
    /// Opens and locks the directory, making it (mode 0700) if it is not there.
    pub fn open(path: &Path) -> Result<FileDisk, OpenError> {
        let failed = |source: Errno| OpenError::Io { path: path.into(), source: source.into() };
        match rustix::fs::mkdir(path, DIRECTORY_MODE) {
            Ok(()) => sync_parent(path).map_err(failed)?,
            // Whoever made it may have died before its name was durable.  Where we may only pass
            // through the parent, it is not ours to sync.
            Err(Errno::EXIST) => match sync_parent(path) {
                Ok(()) | Err(Errno::ACCESS | Errno::PERM | Errno::ROFS | Errno::INVAL) => {}
                Err(error) => return Err(failed(error)),
            },
            Err(error) => return Err(failed(error)),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(path, flags, Mode::empty()).map_err(failed)?;
        let mode = rustix::fs::fstat(&directory).map_err(failed)?.st_mode & 0o777;
        if mode & 0o077 != 0 {
            tracing::warn!(path = %path.display(), "the spool was open to others (mode {mode:o}); now it is not");
            rustix::fs::fchmod(&directory, DIRECTORY_MODE).map_err(failed)?;
        }
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
        let lock = rustix::fs::openat(&directory, "LOCK", flags, FILE_MODE).map_err(failed)?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(OpenError::Locked(path.into())),
            Err(error) => return Err(failed(error)),
        }
        let disk = FileDisk {
            path: path.into(),
            directory,
            _lock: lock,
            open: RwLock::default(),
            is_direct: AtomicBool::new(true),
        };
        disk.remove_unfinished().map_err(|source| OpenError::Io { path: path.into(), source })?;
        Ok(disk)
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether writes pass by the page cache, as far as has been tried.
    pub fn is_direct(&self) -> bool {
        self.is_direct.load(Relaxed)
    }

    /// The open descriptor of a file, for a ring.
    pub(crate) fn descriptor(&self, file: FileNo) -> io::Result<Arc<OwnedFd>> {
        if let Some(open) = self.open.read().unwrap_or_else(PoisonError::into_inner).get(&file) {
            return Ok(open.clone());
        }
        let opened = Arc::new(self.open_file(&name(file), OFlags::RDWR)?);
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        Ok(open.entry(file).or_insert(opened).clone())
    }

    fn open_file(&self, name: &str, flags: OFlags) -> io::Result<OwnedFd> {
        let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let open = |flags| rustix::fs::openat(&self.directory, name, flags, FILE_MODE);
        if !self.is_direct() {
            return Ok(open(flags)?);
        }
        match open(flags | OFlags::DIRECT) {
            Err(Errno::INVAL) => {
                tracing::warn!(path = %self.path.display(),
                    "the file system refuses direct I/O: the spool goes through the page cache, \
                     commits are slower and their times less even");
                self.is_direct.store(false, Relaxed);
                // The refused attempt may have made the file.
                Ok(open(flags.difference(OFlags::EXCL))?)
            }
            result => Ok(result?),
        }
    }

    fn names(&self) -> io::Result<Vec<OsString>> {
        std::fs::read_dir(&self.path)?.map(|entry| Ok(entry?.file_name())).collect()
    }

    fn remove_unfinished(&self) -> io::Result<()> {
        for name in self.names()? {
            if name.to_str().is_some_and(|name| number(name, ".new").is_some()) {
                rustix::fs::unlinkat(&self.directory, name, AtFlags::empty())?;
            }
        }
        Ok(())
    }

    fn fill(&self, file: &OwnedFd, octets: u32, header: &[u8]) -> io::Result<()> {
        // Said in advance, the file gets few extents, and a full disk is known at once.
        match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, u64::from(octets)) {
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => {}
            Err(error) => return Err(error.into()),
        }
        let mut zeros = AlignedBuf::new(ZERO_OCTETS.min(octets as usize));
        zeros[..header.len()].copy_from_slice(header);
        let mut at = 0;
        while at < octets {
            let piece = zeros.len().min((octets - at) as usize);
            write_all(file, at, &[IoSlice::new(&zeros[..piece])], ReadWriteFlags::empty())?;
            zeros[..BLOCK].fill(0);
            at += piece as u32;
        }
        Ok(rustix::fs::fsync(file)?)
    }

    /// Renames within the directory and never over another file.
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let flags = RenameFlags::NOREPLACE;
        Ok(rustix::fs::renameat_with(&self.directory, from, &self.directory, to, flags)?)
    }

    fn sync_directory(&self) -> io::Result<()> {
        Ok(rustix::fs::fsync(&self.directory)?)
    }

    fn forget(&self, file: FileNo) {
        self.open.write().unwrap_or_else(PoisonError::into_inner).remove(&file);
    }
}

impl Disk for FileDisk {
    fn files(&self) -> io::Result<Vec<FileNo>> {
        let mut files: Vec<FileNo> =
            self.names()?.iter().filter_map(|name| number(name.to_str()?, ".seg")).collect();
        files.sort_unstable();
        Ok(files)
    }

    fn create(&self, file: FileNo, octets: u32, header: &[u8]) -> io::Result<()> {
        let unfinished = format!("{:08x}.new", file.0);
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
        let opened = self.open_file(&unfinished, flags)?;
        let made = self.fill(&opened, octets, header).and_then(|()| {
            self.rename(&unfinished, &name(file))?;
            self.sync_directory()
        });
        if made.is_err() {
            // What cannot be removed now is removed at the next start.
            let _ = rustix::fs::unlinkat(&self.directory, &unfinished, AtFlags::empty());
        }
        made
    }

    fn length(&self, file: FileNo) -> io::Result<u64> {
        let length = rustix::fs::fstat(&self.descriptor(file)?)?.st_size;
        u64::try_from(length).map_err(|_| io::ErrorKind::InvalidData.into())
    }

    fn write(
        &self,
        file: FileNo,
        offset: u32,
        parts: &[IoSlice<'_>],
        sync: Sync,
    ) -> io::Result<()> {
        let opened = self.descriptor(file)?;
        let flags = match sync {
            Sync::Later => ReadWriteFlags::empty(),
            Sync::Data => ReadWriteFlags::DSYNC,
        };
        write_all(&opened, offset, parts, flags)
    }

    fn sync(&self, file: FileNo) -> io::Result<()> {
        Ok(rustix::fs::fdatasync(&self.descriptor(file)?)?)
    }

    fn read(&self, file: FileNo, offset: u32, into: &mut [u8]) -> io::Result<()> {
        read_all(&*self.descriptor(file)?, offset, into)
    }

    fn quarantine(&self, file: FileNo) -> io::Result<()> {
        let name = name(file);
        let asides = (0..1000).map(|again| match again {
            0 => format!("{name}.quarantined"),
            again => format!("{name}.{again}.quarantined"),
        });
        let mut renamed = Err(io::ErrorKind::AlreadyExists.into());
        let mut aside = String::new();
        for free in asides {
            renamed = self.rename(&name, &free);
            aside = free;
            if !matches!(&renamed, Err(error) if error.kind() == io::ErrorKind::AlreadyExists) {
                break;
            }
        }
        renamed?;
        self.forget(file);
        tracing::warn!(
            file = aside,
            "a damaged segment was set aside; look at it with `mailrace spool dump`"
        );
        self.sync_directory()
    }

    fn remove(&self, file: FileNo) -> io::Result<()> {
        self.forget(file);
        rustix::fs::unlinkat(&self.directory, name(file), AtFlags::empty())?;
        self.sync_directory()
    }
}

fn name(file: FileNo) -> String {
    format!("{:08x}.seg", file.0)
}

/// The number in a file name of ours.
fn number(name: &str, suffix: &str) -> Option<FileNo> {
    let digits = name.strip_suffix(suffix)?;
    let is_ours = digits.len() == 8 && digits.bytes().all(|b| b.is_ascii_hexdigit());
    u32::from_str_radix(digits, 16).ok().filter(|_| is_ours).map(FileNo)
}

fn sync_parent(path: &Path) -> Result<(), Errno> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::fsync(rustix::fs::open(parent, flags, Mode::empty())?)
}

/// Writes all of `parts`; a short write goes on where it ended, which on direct I/O is a block's
/// end.
fn write_all(
    file: &OwnedFd,
    offset: u32,
    parts: &[IoSlice<'_>],
    flags: ReadWriteFlags,
) -> io::Result<()> {
    let mut offset = u64::from(offset);
    let mut written = retry_on_intr(|| rustix::io::pwritev2(file, parts, offset, flags))?;
    let octets: usize = parts.iter().map(|part| part.len()).sum();
    if written == octets {
        return Ok(());
    }
    let mut rest: Vec<IoSlice<'_>> = parts.to_vec();
    let mut rest = &mut rest[..];
    loop {
        if written == 0 || written % BLOCK != 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        offset += written as u64;
        IoSlice::advance_slices(&mut rest, written);
        if rest.is_empty() {
            return Ok(());
        }
        written = retry_on_intr(|| rustix::io::pwritev2(file, rest, offset, flags))?;
    }
}

/// Fills `into`; the end of the file before that is an error.
pub(crate) fn read_all(file: &OwnedFd, offset: u32, into: &mut [u8]) -> io::Result<()> {
    let mut filled = 0;
    while filled < into.len() {
        let at = u64::from(offset) + filled as u64;
        match retry_on_intr(|| rustix::io::pread(file, &mut into[filled..], at))? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            octets => filled += octets,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn header() -> AlignedBuf {
        let mut block = AlignedBuf::new(BLOCK);
        block.fill(7);
        block
    }

    #[test]
    fn one_process_has_the_directory_and_nobody_else_may_look() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("spool");
        let disk = FileDisk::open(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        assert!(matches!(FileDisk::open(&path), Err(OpenError::Locked(_))));
        drop(disk);
        FileDisk::open(&path).unwrap();
    }

    /// A spool that somebody else made for us: we may pass through its parent, and not read it.
    #[test]
    fn a_parent_that_is_not_ours_to_sync_is_left_alone() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("spool");
        drop(FileDisk::open(&path).unwrap());
        let opened = std::thread::scope(|scope| {
            let open = || {
                // Rights hold for root only where it is somebody else; that is this thread's own.
                if rustix::process::getuid().is_root() {
                    let nobody = 65_534;
                    for path in [place.path(), &path, &path.join("LOCK")] {
                        std::os::unix::fs::chown(path, Some(nobody), None).unwrap();
                    }
                    let nobody = rustix::process::Uid::from_raw(nobody);
                    rustix::thread::set_thread_uid(nobody).unwrap();
                }
                std::fs::set_permissions(place.path(), std::fs::Permissions::from_mode(0o300))
                    .unwrap();
                assert_eq!(sync_parent(&path), Err(Errno::ACCESS), "what is to be left alone");
                FileDisk::open(&path).map(drop)
            };
            scope.spawn(open).join().unwrap()
        });
        std::fs::set_permissions(place.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        opened.unwrap();
    }

    #[test]
    fn files_are_made_whole_written_read_and_set_aside() {
        let place = tempfile::tempdir().unwrap();
        std::fs::write(place.path().join("0000000a.new"), "unfinished").unwrap();
        std::fs::write(place.path().join("README.seg"), "foreign").unwrap();
        let disk = FileDisk::open(place.path()).unwrap();
        for file in [FileNo(3), FileNo(1)] {
            disk.create(file, 3 * 1024 * 1024, &header()).unwrap();
        }
        let again = disk.create(FileNo(3), 8192, &header()).unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::AlreadyExists, "a segment is never replaced");
        assert_eq!(disk.files().unwrap(), [FileNo(1), FileNo(3)]);
        assert_eq!(disk.length(FileNo(1)).unwrap(), 3 * 1024 * 1024);
        assert!(!place.path().join("0000000a.new").exists());
        let parts = [header(), header()];
        let slices = [IoSlice::new(&parts[0]), IoSlice::new(&parts[1])];
        disk.write(FileNo(1), 4 * BLOCK as u32, &slices, Sync::Data).unwrap();
        disk.sync(FileNo(1)).unwrap();
        let mut back = AlignedBuf::new(8 * BLOCK);
        disk.read(FileNo(1), 0, &mut back).unwrap();
        for (block, octets) in back.chunks(BLOCK).enumerate() {
            let expected = if [0, 4, 5].contains(&block) { 7 } else { 0 };
            assert!(octets.iter().all(|&octet| octet == expected), "block {block}");
        }
        assert!(disk.read(FileNo(1), 3 * 1024 * 1024 - 4096, &mut back).is_err());
        disk.quarantine(FileNo(1)).unwrap();
        disk.remove(FileNo(3)).unwrap();
        assert_eq!(disk.files().unwrap(), []);
        assert!(place.path().join("00000001.seg.quarantined").exists());
    }
}
