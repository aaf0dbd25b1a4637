//! The file system of the power cuts, through system calls: it keeps what was synced by any of the
//! ways that there are, and nothing else.

use std::fs::{self, File, OpenOptions};
use std::io::{IoSlice, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::thread;
use std::time::Duration;

use fastrand::Rng;
use rustix::fs::{FallocateFlags, OFlags, RenameFlags};
use rustix::io::ReadWriteFlags;
use tempfile::TempDir;

use super::mount::{Moment, O_DSYNC, PowerDisk, with_own_mounts};
use super::volume::{Kept, Lie};

const PAGE: usize = 4096;

/// Runs `before` on an empty disk, cuts the power, and gives the files that are left.
fn after_a_cut(lie: Option<Lie>, before: impl FnOnce(&Path) + Send) -> Vec<(String, Vec<u8>)> {
    with_own_mounts(|| {
        let place = TempDir::new().expect("a folder");
        let mut disk = PowerDisk::mount(place.path(), lie);
        before(place.path());
        disk.restart(Kept::Nothing, &mut Rng::with_seed(1));
        let names = fs::read_dir(place.path()).expect("a folder").map(|entry| {
            let entry = entry.expect("a name");
            let octets = fs::read(entry.path()).expect("a file");
            (entry.file_name().into_string().expect("ASCII"), octets)
        });
        let mut left: Vec<_> = names.collect();
        left.sort();
        left
    })
}

fn sync_folder(folder: &Path) {
    File::open(folder).and_then(|folder| folder.sync_all()).expect("a sync");
}

/// A new file whose name lasts, opened with these flags.
fn named(folder: &Path, flags: OFlags) -> File {
    let flags = flags.bits().cast_signed();
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).create_new(true).custom_flags(flags);
    let file = file.open(folder.join("file")).expect("a new file");
    sync_folder(folder);
    file
}

/// Pages of one value, at an address that direct writes take.
fn with_pages<T>(count: usize, value: u8, work: impl FnOnce(&[u8]) -> T) -> T {
    let memory = vec![value; (count + 1) * PAGE];
    let begin = memory.as_ptr().align_offset(PAGE);
    work(&memory[begin..begin + count * PAGE])
}

fn write_pages(file: &File, page: usize, count: usize, value: u8, flags: ReadWriteFlags) {
    let at = (page * PAGE) as u64;
    let written = with_pages(count, value, |pages| {
        rustix::io::pwritev2(file, &[IoSlice::new(pages)], at, flags).expect("a write")
    });
    assert_eq!(written, count * PAGE);
}

fn only_file(left: Vec<(String, Vec<u8>)>) -> Vec<u8> {
    assert_eq!(left.len(), 1, "{left:?}");
    left.into_iter().next().expect("one").1
}

#[test]
fn a_write_lasts_if_it_was_synced_in_whatever_way() {
    let (none, dsync) = (ReadWriteFlags::empty(), ReadWriteFlags::DSYNC);
    type Case = (&'static str, OFlags, ReadWriteFlags, fn(&File), bool);
    let dsynced = OFlags::DIRECT | OFlags::from_bits_retain(O_DSYNC.cast_unsigned());
    let fdatasync = |file: &File| file.sync_data().expect("a sync");
    let fsync = |file: &File| file.sync_all().expect("a sync");
    let nothing = |_: &File| {};
    let table: [Case; 8] = [
        ("unsynced", OFlags::empty(), none, nothing, false),
        ("direct", OFlags::DIRECT, none, nothing, false),
        ("direct, RWF_DSYNC", OFlags::DIRECT, dsync, nothing, true),
        ("RWF_DSYNC", OFlags::empty(), dsync, nothing, true),
        ("O_DSYNC", dsynced, none, nothing, true),
        ("O_SYNC", OFlags::SYNC, none, nothing, true),
        ("fdatasync", OFlags::DIRECT, none, fdatasync, true),
        ("fsync", OFlags::empty(), none, fsync, true),
    ];
    for (name, open, write, sync, lasts) in table {
        let left = after_a_cut(None, |folder| {
            let file = named(folder, open);
            // More than the kernel sends at once.
            write_pages(&file, 0, 700, 7, write);
            sync(&file);
        });
        let expected = if lasts { vec![7; 700 * PAGE] } else { Vec::new() };
        assert!(only_file(left) == expected, "{name}");
    }
}

#[test]
fn a_durable_write_carries_none_of_those_before_it() {
    let left = after_a_cut(None, |folder| {
        let file = named(folder, OFlags::DIRECT);
        write_pages(&file, 0, 1, 1, ReadWriteFlags::empty());
        write_pages(&file, 1, 1, 2, ReadWriteFlags::DSYNC);
    });
    assert!(only_file(left) == [vec![0; PAGE], vec![2; PAGE]].concat());
}

#[test]
fn a_length_lasts_with_the_file_and_a_name_with_its_folder() {
    let left = after_a_cut(None, |folder| {
        let file = named(folder, OFlags::DIRECT);
        rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, 8192).expect("room");
        file.sync_data().expect("a sync");
        let unnamed = File::create(folder.join("unnamed")).expect("a file");
        unnamed.write_at(b"x", 0).expect("a write");
        unnamed.sync_all().expect("a sync");
    });
    assert_eq!(left, [("file".to_owned(), vec![0; 8192])]);
    let rename = |folder: &Path| {
        let (from, to) = (folder.join("file"), folder.join("renamed"));
        let cwd = rustix::fs::CWD;
        rustix::fs::renameat_with(cwd, &from, cwd, &to, RenameFlags::NOREPLACE).expect("a rename");
        let again = rustix::fs::renameat_with(cwd, &to, cwd, &to, RenameFlags::NOREPLACE);
        assert!(again.is_err(), "nothing is replaced");
    };
    for (is_synced, expected) in [(false, "file"), (true, "renamed")] {
        let left = after_a_cut(None, |folder| {
            drop(named(folder, OFlags::empty()));
            rename(folder);
            if is_synced {
                sync_folder(folder);
            }
        });
        assert_eq!(left, [(expected.to_owned(), Vec::new())]);
    }
}

#[test]
fn a_lie_is_one_through_system_calls_too() {
    for (lie, flags) in [
        (Lie::DurableWrites, ReadWriteFlags::DSYNC),
        (Lie::FileSyncs, ReadWriteFlags::empty()),
        (Lie::FolderSyncs, ReadWriteFlags::DSYNC),
    ] {
        let left = after_a_cut(Some(lie), |folder| {
            let file = named(folder, OFlags::DIRECT);
            write_pages(&file, 0, 1, 7, flags);
            if lie != Lie::DurableWrites {
                file.sync_all().expect("a promise");
            }
        });
        match lie {
            Lie::FolderSyncs => assert_eq!(left, []),
            _ => assert!(only_file(left).is_empty(), "{lie:?}"),
        }
    }
}

#[test]
fn nobody_hears_from_a_disk_whose_power_is_gone() {
    for (moment, lasts) in [(Moment::Before, 1), (Moment::Midway, 1), (Moment::After, 2)] {
        with_own_mounts(|| {
            let place = TempDir::new().expect("a folder");
            let mut disk = PowerDisk::mount(place.path(), None);
            let mut file = named(place.path(), OFlags::DSYNC);
            file.write_all(&[1; 512]).expect("there is power");
            disk.arm(0, moment);
            thread::scope(|scope| {
                let blocked = scope.spawn(|| file.write_all(&[2; 512]));
                disk.wait_for_cut(Duration::from_secs(30));
                thread::sleep(Duration::from_millis(20));
                assert!(!blocked.is_finished(), "{moment:?}: it waits");
                disk.release();
                assert!(blocked.join().expect("no panic").is_err(), "{moment:?}");
            });
            drop(file);
            disk.restart(Kept::Nothing, &mut Rng::with_seed(1));
            let left = fs::read(place.path().join("file")).expect("a file");
            assert_eq!(left.len(), lasts * 512, "{moment:?}");
        });
    }
}
