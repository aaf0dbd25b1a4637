//! The [`Volume`] as a file system that programs see, whose power can be cut.
//!
//! Nothing is kept in the kernel: names and lengths are asked for each time, and all files are
//! read and written directly, so that what the volume knows is all that there is.  The kernel
//! tells with each write whether it has to be durable (`RWF_DSYNC`, `O_DSYNC`, `O_SYNC`).
//!
//! A cut strikes before a change, in the midst of one, or when it is done and not yet reported.
//! From then on nothing is answered, so that nobody can act on what the disk said after its end;
//! once whoever used it was killed, [`PowerDisk::release`] fails what waits, and
//! [`PowerDisk::restart`] mounts what was left.
//!
//! The mount is in a namespace of the calling thread and its children, and goes with them.  That
//! needs root; others need `fusermount3` (Debian's fuse3).

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, SystemTime};

use fastrand::Rng;
use fuser::{
    BackgroundSession, Config, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, LockOwner, MountOption, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request,
    WriteFlags,
};
use nix::mount::MsFlags;
use nix::sched::{CloneFlags, unshare};
use rustix::io::Errno;

use super::volume::{Attributes, Kept, Kind, Lie, ROOT, Rights, Volume};

const CAPACITY_OCTETS: u64 = 2 << 30;
const BLOCK_OCTETS: u32 = 4096;
/// For how long the kernel may remember an answer.
const AT_ONCE: Duration = Duration::ZERO;

/// A disk that is mounted until it is dropped.
pub struct PowerDisk {
    place: PathBuf,
    shared: Arc<Shared>,
    session: Option<BackgroundSession>,
}

/// Runs `work` where mounts are seen by nobody else, and gone afterwards, if that is allowed.
pub fn with_own_mounts<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let main = || {
        match unshare(CloneFlags::CLONE_NEWNS) {
            // Who may not have that may have fusermount3, and mounts that all see.
            Err(nix::errno::Errno::EPERM) => {}
            unshared => {
                unshared.expect("a namespace");
                let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
                let none = None::<&str>;
                nix::mount::mount(none, "/", none, flags, none).expect("it is kept apart");
            }
        }
        work()
    };
    // A namespace is a thread's for good, and the caller's thread serves others too.
    thread::scope(|scope| match scope.spawn(main).join() {
        Ok(done) => done,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

/// Where in a change the power goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// The change was never begun.
    Before,
    /// It is in the cache, and no part of it need be durable.
    Midway,
    /// It is done, and nobody knows.
    After,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    volume: Volume,
    power: Power,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Power {
    On,
    /// It goes in the change after so many.
    Armed(u32, Moment),
    /// It is off, and all wait.
    Off,
    /// It is off, and all fails.
    Released,
}

impl PowerDisk {
    /// Mounts an empty disk at this folder.
    pub fn mount(place: &Path, lie: Option<Lie>) -> PowerDisk {
        let rights = Rights {
            mode: 0o755,
            uid: rustix::process::getuid().as_raw(),
            gid: rustix::process::getgid().as_raw(),
        };
        let volume = Volume::new(CAPACITY_OCTETS, rights, lie);
        let state = Mutex::new(State { volume, power: Power::On });
        let shared = Arc::new(Shared { state, changed: Condvar::new() });
        let mut disk = PowerDisk { place: place.into(), shared, session: None };
        disk.open();
        disk
    }

    fn open(&mut self) {
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("powerdisk".into())];
        let session = fuser::spawn_mount(Server(self.shared.clone()), &self.place, &config);
        let explained =
            "a file system cannot be mounted; it needs /dev/fuse, and root or fusermount3";
        self.session = Some(session.unwrap_or_else(|error| panic!("{explained}: {error}")));
    }

    /// Lets the power go in the change that follows on so many others.
    pub fn arm(&self, changes: u32, moment: Moment) {
        self.shared.lock().power = Power::Armed(changes, moment);
    }

    /// Waits for the cut that was armed; what does not come in time is done now.
    pub fn wait_for_cut(&self, patience: Duration) {
        let is_on = |state: &mut State| matches!(state.power, Power::On | Power::Armed(..));
        let waited = self.shared.changed.wait_timeout_while(self.shared.lock(), patience, is_on);
        let (mut state, waited) = waited.expect("the disk does not panic");
        if waited.timed_out() {
            state.power = Power::Off;
        }
    }

    /// Fails what waits for the disk since the cut, and all that comes.
    pub fn release(&self) {
        self.shared.lock().power = Power::Released;
        self.shared.changed.notify_all();
    }

    /// The power comes back: mounts what was left.
    pub fn restart(&mut self, kept: Kept, random: &mut Rng) {
        self.close();
        let mut state = self.shared.lock();
        state.volume.cut(kept, random);
        state.power = Power::On;
        drop(state);
        self.open();
    }

    fn close(&mut self) {
        self.release();
        let Some(session) = self.session.take() else { return };
        if let Err(error) = session.umount_and_join() {
            eprintln!("{}: {error}", self.place.display());
        }
    }
}

impl Drop for PowerDisk {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("the disk does not panic")
    }

    /// The volume, while there is power.
    fn powered(&self) -> Result<MutexGuard<'_, State>, Errno> {
        self.held(self.lock())
    }

    /// Goes on if there still is power, else waits for whoever used the disk to be gone.
    fn held<'a>(&'a self, state: MutexGuard<'a, State>) -> Result<MutexGuard<'a, State>, Errno> {
        let is_off = |state: &mut State| state.power == Power::Off;
        let state = self.changed.wait_while(state, is_off).expect("the disk does not panic");
        match state.power {
            Power::Released => Err(Errno::IO),
            _ => Ok(state),
        }
    }

    fn look<T>(&self, look: impl FnOnce(&Volume) -> Result<T, Errno>) -> Result<T, Errno> {
        look(&self.powered()?.volume)
    }

    /// A change in two steps, the second of which makes it durable; `settle` is told that it was
    /// asked for.
    fn change_and<T: Copy>(
        &self,
        change: impl FnOnce(&mut Volume) -> Result<T, Errno>,
        settle: Option<impl FnOnce(&mut Volume) -> Result<(), Errno>>,
    ) -> Result<T, Errno> {
        let mut state = self.powered()?;
        let moment = state.next_moment();
        state = self.strike(state, moment == Some(Moment::Before))?;
        let changed = change(&mut state.volume)?;
        state = self.strike(state, moment == Some(Moment::Midway))?;
        if let Some(settle) = settle {
            settle(&mut state.volume)?;
        }
        drop(self.strike(state, moment == Some(Moment::After))?);
        Ok(changed)
    }

    /// A change that need not be durable.
    fn change<T: Copy>(
        &self,
        change: impl FnOnce(&mut Volume) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        self.change_and(change, None::<fn(&mut Volume) -> Result<(), Errno>>)
    }

    fn strike<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        is_now: bool,
    ) -> Result<MutexGuard<'a, State>, Errno> {
        if !is_now {
            return Ok(state);
        }
        state.power = Power::Off;
        self.changed.notify_all();
        self.held(state)
    }
}

impl State {
    /// Counts a change; gives where in it the power is to go.
    fn next_moment(&mut self) -> Option<Moment> {
        let Power::Armed(changes, moment) = &mut self.power else { return None };
        if *changes == 0 {
            return Some(*moment);
        }
        *changes -= 1;
        None
    }
}

macro_rules! answer {
    ($result:expr, $reply:ident, $value:pat => $told:expr) => {
        match $result {
            Ok($value) => $told,
            Err(error) => $reply.error(errno(error)),
        }
    };
}

/// What answers the kernel.
struct Server(Arc<Shared>);

impl Server {
    fn entry(&self, number: u64) -> Result<FileAttr, Errno> {
        self.0.look(|volume| volume.attributes(number)).map(|attributes| told(&attributes))
    }

    fn create_entry(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        kind: Kind,
    ) -> Result<FileAttr, Errno> {
        let rights = Rights { mode: mode as u16 & 0o7777, uid: request.uid(), gid: request.gid() };
        let number = self.0.change(|volume| volume.create(parent.0, name, kind, rights))?;
        self.entry(number)
    }

    fn make(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        kind: Kind,
        reply: ReplyEntry,
    ) {
        let made = self.create_entry(request, parent, name, mode, kind);
        answer!(made, reply, made => reply.entry(&AT_ONCE, &made, Generation(0)));
    }
}

fn told(attributes: &Attributes) -> FileAttr {
    let Attributes { number, kind, octets, rights, modified } = *attributes;
    FileAttr {
        ino: INodeNo(number),
        size: octets,
        blocks: octets.div_ceil(512),
        atime: modified,
        mtime: modified,
        ctime: modified,
        crtime: modified,
        kind: file_type(kind),
        perm: rights.mode,
        nlink: 1,
        uid: rights.uid,
        gid: rights.gid,
        rdev: 0,
        blksize: BLOCK_OCTETS,
        flags: 0,
    }
}

fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::File => FileType::RegularFile,
        Kind::Folder => FileType::Directory,
        Kind::Socket => FileType::Socket,
    }
}

fn errno(error: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(error.raw_os_error())
}

/// As the kernel has it; `OFlags::DSYNC` of rustix is `O_SYNC`, which is this bit and another one.
pub const O_DSYNC: i32 = 0o10000;

/// Whether a write with these flags must be durable when it is answered.
fn is_durable(flags: OpenFlags) -> bool {
    flags.0 & O_DSYNC != 0
}

impl Filesystem for Server {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = self.0.look(|volume| {
            let number = volume.look_up(parent.0, name)?;
            volume.attributes(number)
        });
        answer!(found, reply, found => reply.entry(&AT_ONCE, &told(&found), Generation(0)));
    }

    fn getattr(&self, _: &Request, number: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        answer!(self.entry(number.0), reply, found => reply.attr(&AT_ONCE, &found));
    }

    fn setattr(
        &self,
        _: &Request,
        number: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _: Option<fuser::TimeOrNow>,
        _: Option<fuser::TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let changed = self.0.change(|volume| {
            volume.set_rights(number.0, |rights| {
                rights.mode = mode.map_or(rights.mode, |mode| mode as u16 & 0o7777);
                rights.uid = uid.unwrap_or(rights.uid);
                rights.gid = gid.unwrap_or(rights.gid);
            })?;
            size.map_or(Ok(()), |octets| volume.set_length(number.0, octets))
        });
        let found = changed.and_then(|()| self.entry(number.0));
        answer!(found, reply, found => reply.attr(&AT_ONCE, &found));
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _: u32,
        reply: ReplyEntry,
    ) {
        let kind = match rustix::fs::FileType::from_raw_mode(mode) {
            rustix::fs::FileType::RegularFile => Kind::File,
            rustix::fs::FileType::Socket => Kind::Socket,
            _ => return reply.error(fuser::Errno::EPERM),
        };
        self.make(request, parent, name, mode & !umask, kind, reply);
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        self.make(request, parent, name, mode & !umask, Kind::Folder, reply);
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _: i32,
        reply: ReplyCreate,
    ) {
        let made = self.create_entry(request, parent, name, mode & !umask, Kind::File);
        let direct = FopenFlags::FOPEN_DIRECT_IO;
        answer!(made, reply, made => {
            reply.created(&AT_ONCE, &made, Generation(0), FileHandle(0), direct);
        });
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let gone = self.0.change(|volume| volume.remove(parent.0, name));
        answer!(gone, reply, () => reply.ok());
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let gone = self.0.change(|volume| volume.remove(parent.0, name));
        answer!(gone, reply, () => reply.ok());
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        to_parent: INodeNo,
        to_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let may_replace = match flags {
            RenameFlags::RENAME_NOREPLACE => false,
            flags if flags.is_empty() => true,
            _ => return reply.error(fuser::Errno::EINVAL),
        };
        let (from, to) = ((parent.0, name), (to_parent.0, to_name));
        let renamed = self.0.change(|volume| volume.rename(from, to, may_replace));
        answer!(renamed, reply, () => reply.ok());
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let powered = self.0.look(|_| Ok(()));
        answer!(powered, reply, () => {
            reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
        });
    }

    fn read(
        &self,
        _: &Request,
        number: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let read = self.0.powered().and_then(|state| {
            state.volume.read(number.0, offset, size as usize).map(<[u8]>::to_vec)
        });
        answer!(read, reply, octets => reply.data(&octets));
    }

    fn write(
        &self,
        _: &Request,
        number: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let settle = |volume: &mut Volume| volume.settle_write(number.0);
        let written = self.0.change_and(
            |volume| volume.write(number.0, offset, data),
            is_durable(flags).then_some(settle),
        );
        answer!(written, reply, () => reply.written(data.len() as u32));
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, number: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let settle = |volume: &mut Volume| volume.sync_file(number.0);
        answer!(self.0.change_and(|_| Ok(()), Some(settle)), reply, () => reply.ok());
    }

    fn fsyncdir(&self, _: &Request, number: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let settle = |volume: &mut Volume| volume.sync_folder(number.0);
        answer!(self.0.change_and(|_| Ok(()), Some(settle)), reply, () => reply.ok());
    }

    fn fallocate(
        &self,
        _: &Request,
        number: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let Some(end) = offset.checked_add(length).filter(|_| mode == 0) else {
            return reply.error(fuser::Errno::EOPNOTSUPP);
        };
        let grown = self.0.change(|volume| {
            let octets = volume.attributes(number.0)?.octets;
            if octets < end { volume.set_length(number.0, end) } else { Ok(()) }
        });
        answer!(grown, reply, () => reply.ok());
    }

    fn readdir(
        &self,
        _: &Request,
        number: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let listed = self.0.look(|volume| {
            let named = volume
                .list(number.0)?
                .into_iter()
                .map(|(name, number)| Ok((name, number, volume.attributes(number)?.kind)));
            named.collect::<Result<Vec<_>, Errno>>()
        });
        answer!(listed, reply, names => {
            let dots = [".", ".."].map(|name| (name.into(), ROOT, Kind::Folder));
            let all = dots.into_iter().chain(names).enumerate();
            for (place, (name, number, kind)) in all.skip(offset as usize) {
                if reply.add(INodeNo(number), place as u64 + 1, file_type(kind), &name) {
                    break;
                }
            }
            reply.ok();
        });
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let room = self.0.look(|volume| Ok(volume.room()));
        answer!(room, reply, (all, free) => {
            let block = u64::from(BLOCK_OCTETS);
            let (all, free) = (all / block, free / block);
            reply.statfs(all, free, free, 1 << 20, 1 << 20, BLOCK_OCTETS, 255, BLOCK_OCTETS);
        });
    }

    fn access(&self, _: &Request, _: INodeNo, _: fuser::AccessFlags, reply: ReplyEmpty) {
        reply.ok();
    }
}
