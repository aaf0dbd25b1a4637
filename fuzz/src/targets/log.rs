//! The log: a short life, damage, recovery.
//!
//! The input is a script.  It lets a log live for a while, then hurts its files, then recovers it
//! and looks at it with the tools.  Whatever was done to the files, nothing panics, no file is
//! deleted, and a recovery that is refused has changed nothing.  Where nothing was forged with
//! matching checksums, each message that comes back is one that was accepted, with its envelope
//! and octets; a second recovery finds the same; and where nothing was hurt, exactly the messages
//! that had not ended come back.

mod damage;
mod life;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::{fs, io};

use mailrace::spool::recovery::{RecoveredMessage, RecoveryVisitor};
use mailrace::spool::sim_disk::SimDisk;
use mailrace::spool::tools::{self, Form, Repair};
use mailrace::spool::{Disk, FileNo, RecoveryError, RecoveryReport};

use super::Input;
use damage::Damage;
use life::{Accepted, Life, OPTIONS};

/// The script.
pub fn run(octets: &[u8]) {
    let mut input = Input(octets);
    let disk = SimDisk::new(u64::from(input.octet()));
    let mut life = Life::on(&disk);
    for _ in 0..input.below(48) {
        life = life.step(&mut input);
    }
    let accepted = life.end();
    let damage = Damage::inflict(&disk, &mut input);
    judge(&disk, &accepted, damage);
}

/// Keeps what recovery says.
#[derive(Default)]
struct Kept(Vec<RecoveredMessage>);

impl RecoveryVisitor for Kept {
    fn message(&mut self, message: RecoveredMessage) {
        self.0.push(message);
    }
}

fn recover(disk: &SimDisk) -> Result<(Vec<RecoveredMessage>, RecoveryReport), RecoveryError> {
    let mut kept = Kept::default();
    let mut random = disk.operations().wrapping_mul(0x1234_5678_9abc_def1) | 1;
    let mut draw = || {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        random
    };
    let log = mailrace::spool::recover(
        Arc::new(disk.clone()),
        OPTIONS,
        Arc::default(),
        &mut draw,
        &mut kept,
    );
    log.map(|(_, report)| (kept.0, report))
}

fn judge(disk: &SimDisk, accepted: &BTreeMap<u64, Accepted>, damage: Damage) {
    let before = contents(disk);
    let seen = look(&before);
    let recovered = recover(disk);
    let aside = disk.quarantined();
    let after = contents(disk);
    for file in before.keys() {
        assert!(after.contains_key(file) || aside.contains(file), "{file:?} is gone");
    }
    let (messages, report) = match recovered {
        Ok(recovered) => recovered,
        Err(error) => {
            assert!(damage != Damage::None, "a sound log is refused: {error}");
            assert!(after.iter().all(|(file, octets)| before[file] == *octets), "{error}");
            return;
        }
    };
    assert_eq!(report.live_messages, messages.len() as u64);
    if damage == Damage::Forged {
        return;
    }
    assert_eq!(seen.0, report.live_messages, "{report:?}, and the tools: {}", seen.1);
    for message in &messages {
        check(message, accepted);
    }
    if damage == Damage::None {
        assert_eq!(report.damage_count, 0, "{:?}", report.damage);
        let live = accepted.iter().filter(|(_, mail)| !mail.is_ended());
        let found = messages.iter().map(|message| message.message.id.0);
        assert_eq!(sorted(found), sorted(live.map(|(&id, _)| id)));
    }
    let (again, _) = recover(disk).expect("what was recovered once can be recovered again");
    let ids = |messages: &[RecoveredMessage]| sorted(messages.iter().map(|m| m.message.id.0));
    assert_eq!(ids(&again), ids(&messages), "a second recovery comes to another end");
}

fn sorted(ids: impl Iterator<Item = u64>) -> Vec<u64> {
    let mut ids: Vec<u64> = ids.collect();
    ids.sort_unstable();
    ids
}

fn check(found: &RecoveredMessage, accepted: &BTreeMap<u64, Accepted>) {
    let mail = accepted.get(&found.message.id.0).expect("nobody sent it");
    assert_eq!(found.message.envelope, mail.envelope);
    assert_eq!(found.message.summary, mail.summary());
    assert!(found.done.iter().all(|recipient| mail.done.contains(recipient)), "{:?}", found.done);
}

fn contents(disk: &SimDisk) -> BTreeMap<FileNo, Vec<u8>> {
    let files = disk.files().expect("the disk is up");
    files.into_iter().map(|file| (file, disk.contents(file))).collect()
}

/// Looks at the files with the tools; gives how many live messages they find, and what
/// they say.
fn look(files: &BTreeMap<FileNo, Vec<u8>>) -> (u64, String) {
    let directory = directory().expect("a directory for the tools");
    for (file, octets) in files {
        fs::write(directory.join(format!("{:08x}.seg", file.0)), octets).expect("a small file");
    }
    let mut told = Vec::new();
    let verdict = tools::verify(&directory, &mut told).expect("files can be read");
    tools::dump(&directory, None, Form::Json, &mut io::sink()).expect("files can be read");
    tools::repair(&directory, Repair::DryRun, &mut told).expect("files can be read");
    assert!(verdict.damage == 0 || !told.is_empty(), "damage that nobody is told of");
    (verdict.live_messages, String::from_utf8(told).expect("text"))
}

/// An empty directory of this process, in memory where there is such a place.
fn directory() -> io::Result<PathBuf> {
    let memory = PathBuf::from("/dev/shm");
    let parent = if memory.is_dir() { memory } else { std::env::temp_dir() };
    let directory = parent.join(format!("mailrace-fuzz-{}", std::process::id()));
    if directory.exists() {
        fs::remove_dir_all(&directory)?;
    }
    fs::create_dir(&directory)?;
    Ok(directory)
}
