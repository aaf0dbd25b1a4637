//! A spool with mail in it is damaged while nobody runs on it: the start says what it found, the
//! tools explain, what is good is delivered, and no file is ever deleted.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use serde_json::Value;

use crate::client::Client;
use crate::gateway::{Gateway, files_in};

/// Segments small enough that there are several.
const HOLD: &str = r#"
workers = 1
[spool]
segment_size = "4MiB"
[[listener]]
address = "127.0.0.1:0"
service = "relay"
[[route]]
recipient = "*"
to = "hold"
"#;
const MESSAGES: usize = 120;
const BLOCK: usize = 4096;
const SEGMENT: usize = 4 << 20;

fn delivering() -> String {
    HOLD.replace("\"hold\"", "\"maildir:{dir}/mail\"")
}

/// Whether the message of that number is kept in several chunks.
fn is_large(number: usize) -> bool {
    number % 12 == 5
}

/// The message of that number.
fn message(number: usize) -> Vec<u8> {
    let octets = if is_large(number) { 600_000 } else { 25_000 };
    let line = format!("{number:06} {}\r\n", "x".repeat(60));
    format!("Subject: {number}\r\n\r\n{}", line.repeat(octets / line.len())).into_bytes()
}

/// A gateway that has stopped with its mail undelivered.
struct Spool {
    gateway: Gateway,
    /// The id of each message, by number.
    ids: Vec<String>,
    /// Every record: as `spool dump --json` says.
    records: Vec<Value>,
    /// Which file holds which segment.
    file_of: BTreeMap<u64, String>,
}

impl Spool {
    fn filled() -> Spool {
        Spool::filled_with(MESSAGES)
    }

    fn filled_with(messages: usize) -> Spool {
        let mut gateway = Gateway::start(HOLD);
        let mut client = Client::hello(gateway.smtp(0));
        let ids = (0..messages).map(|number| {
            client.envelope("sender@client.test", &[&format!("n{number}@box.test")]);
            client.data(&message(number)).message_id()
        });
        let ids = ids.collect();
        drop(client);
        gateway.terminate();
        let mut spool = Spool { gateway, ids, records: Vec::new(), file_of: BTreeMap::new() };
        let (_, dump) = spool.tool(&["dump", "--json"]);
        spool.records = dump
            .lines()
            .filter(|line| line.starts_with('{'))
            .map(|line| serde_json::from_str(line).expect("an object a line"))
            .collect();
        let (code, told) = spool.tool(&["verify"]);
        assert_eq!(code, 0, "sound before anything is done to it: {told}");
        for line in told.lines().filter(|line| line.contains(": segment ")) {
            let (file, rest) = line.split_once(": segment ").expect("looked for");
            let segment = rest.split(',').next().and_then(|number| number.parse().ok());
            spool.file_of.insert(segment.expect("a number"), file.to_owned());
        }
        assert!(spool.file_of.len() >= 3, "several segments: {told}");
        spool
    }

    fn directory(&self) -> PathBuf {
        self.gateway.dir().join("data/spool")
    }

    /// A command of `mailrace spool`: its exit code, and all that it says.
    fn tool(&self, arguments: &[&str]) -> (i32, String) {
        let output = self.gateway.command(&[&["spool"], arguments].concat());
        let told = [output.stdout, output.stderr].concat();
        (output.status.code().expect("an exit code"), String::from_utf8(told).expect("text"))
    }

    /// Every file of the spool with its octets.
    fn files(&self) -> BTreeMap<String, Vec<u8>> {
        let name =
            |path: &PathBuf| path.file_name().expect("a name").to_string_lossy().into_owned();
        let files = files_in(&self.directory());
        files.iter().map(|file| (name(file), fs::read(file).expect("readable"))).collect()
    }

    /// Changes a file.
    fn hurt(&self, file: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let path = self.directory().join(file);
        let mut octets = fs::read(&path).expect("it is there");
        change(&mut octets);
        fs::write(path, octets).expect("it can be written");
    }

    /// The record of this kind of the message of that number, the first of several.
    fn record(&self, number: usize, kind: &str) -> (String, usize, usize) {
        let id = &self.ids[number];
        let is_it = |record: &&Value| record["id"] == id.as_str() && record["kind"] == kind;
        let record = self.records.iter().find(is_it).expect("it is in the log");
        let figure = |name: &str| record[name].as_u64().expect("a number");
        let file = self.file_of[&figure("segment")].clone();
        (file, figure("offset") as usize, figure("length") as usize)
    }

    fn segment_of(&self, number: usize) -> u64 {
        let (file, ..) = self.record(number, "message");
        *self.file_of.iter().find(|(_, name)| **name == file).expect("it is one of them").0
    }

    /// The numbers of the messages with a record in a segment.
    fn numbers_in(&self, segment: u64) -> BTreeSet<usize> {
        let there = self.records.iter().filter(|record| record["segment"] == segment);
        let number = |record: &Value| self.ids.iter().position(|id| record["id"] == id.as_str());
        there.map(|record| number(record).expect("one of ours")).collect()
    }

    fn newest(&self) -> u64 {
        let holds = |segment: &&u64| !self.numbers_in(**segment).is_empty();
        *self.file_of.keys().rev().find(holds).expect("mail is somewhere")
    }

    /// A message that is whole in the newest segment, in front of others.
    fn small_in_newest(&self) -> usize {
        let newest = self.newest();
        let numbers = self.numbers_in(newest);
        assert!(numbers.len() >= 5, "{numbers:?}");
        let small = numbers.into_iter().find(|&number| !is_large(number));
        small.expect("most are")
    }

    /// The tools must say each of `told` and change nothing; the start must say each of `at_start`,
    /// deliver all but `lost` as they were sent, and delete nothing.
    fn judge(mut self, told: &[&str], at_start: &[&str], lost: &BTreeSet<usize>) {
        let before = self.files();
        let (code, verified) = self.tool(&["verify"]);
        assert_eq!(code, 1, "{verified}");
        for told in told.iter().chain(&["What to do: "]) {
            assert!(verified.contains(told), "verify does not say {told:?}:\n{verified}");
        }
        let (_, repaired) = self.tool(&["repair", "--dry-run"]);
        assert!(!repaired.contains("would be set aside"), "it can be started: {repaired}");
        assert!(self.files() == before, "looking has changed something");

        self.gateway = self.gateway.restart(&delivering());
        let errors = self.gateway.errors();
        for told in at_start {
            assert!(errors.contains(told), "the start does not say {told:?}:\n{errors}");
        }
        self.expect_delivered(lost);
        self.gateway.terminate();
        let after = self.files();
        for (name, octets) in before {
            if !name.ends_with(".seg") {
                continue;
            }
            let kept = after.get(&name).or_else(|| after.get(&format!("{name}.quarantined")));
            let kept = kept.unwrap_or_else(|| panic!("{name} is gone: {:?}", after.keys()));
            assert!(kept.len() >= octets.len().min(BLOCK), "{name} was cut");
        }
    }

    /// All messages but these are delivered, each as it was sent.
    fn expect_delivered(&self, lost: &BTreeSet<usize>) {
        for number in (0..self.ids.len()).filter(|number| !lost.contains(number)) {
            let mail = &self.gateway.maildir("box.test", &format!("n{number}"), 1)[0];
            assert!(mail.ends_with(&message(number)), "message {number} is not what was sent");
        }
        for number in lost {
            let new = self.gateway.dir().join(format!("mail/box.test/n{number}/new"));
            assert!(files_in(&new).is_empty(), "message {number} is delivered, and was hurt");
        }
    }
}

#[test]
fn a_flipped_bit_in_a_sealed_segment_hurts_one_message() {
    let spool = Spool::filled();
    let (file, offset, length) = spool.record(3, "message");
    assert_ne!(spool.segment_of(3), spool.newest());
    spool.hurt(&file, |octets| octets[offset + length / 2] ^= 4);
    let told = format!(
        "message {} from <sender@client.test> to <n3@box.test>: DAMAGED: a MESSAGE in {file} at \
         {offset}, {length} octets: the checksum of the body is wrong; its envelope is known",
        spool.ids[3]
    );
    // The index spares the start from reading bodies; the damage is found when it is sent.
    spool.judge(&[&told], &[], &[3].into());
}

#[test]
fn a_flipped_bit_in_the_newest_segment_hurts_one_message() {
    let spool = Spool::filled();
    let hurt = spool.small_in_newest();
    let (file, offset, length) = spool.record(hurt, "message");
    spool.hurt(&file, |octets| octets[offset + length - 200] ^= 4);
    let id = spool.ids[hurt].clone();
    let told = format!("message {id} from <sender@client.test> to <n{hurt}@box.test>: DAMAGED: ");
    let start = format!("octets of message {id} are damaged");
    spool.judge(&[&told], &[&start], &[hurt].into());
}

#[test]
fn a_flipped_bit_in_a_part_of_a_large_message_hurts_that_one() {
    let spool = Spool::filled();
    let (file, offset, length) = spool.record(5, "chunk");
    spool.hurt(&file, |octets| octets[offset + length / 2] ^= 1);
    let told = format!("message {}: DAMAGED: a CHUNK in {file} at {offset}, ", spool.ids[5]);
    spool.judge(&[&told, "a part of its octets is damaged"], &[], &[5].into());
}

#[test]
fn a_batch_whose_header_is_hurt_is_told_with_its_place() {
    let spool = Spool::filled();
    let hurt = spool.small_in_newest();
    let (file, offset, _) = spool.record(hurt, "message");
    let sequence = &spool.records.iter().find(|record| record["id"] == spool.ids[hurt].as_str());
    let sequence = sequence.expect("it is in the log")["sequence"].as_u64().expect("a number");
    let batch = offset / BLOCK * BLOCK;
    spool.hurt(&file, |octets| octets[batch + 20] ^= 1);
    let gone = format!("sequences {sequence} to {sequence} are gone");
    let place = format!("{file}: DAMAGED: {gone}; they stood between {batch} and ");
    let guess =
        format!("{file}: at {offset} there is, or was once, a MESSAGE of {}", spool.ids[hurt]);
    spool.judge(&[&place, &guess], &[&gone], &[hurt].into());
}

#[test]
fn a_segment_that_was_cut_serves_what_is_left() {
    let spool = Spool::filled();
    let segment = spool.segment_of(0);
    let (file, offset, length) = spool.record(9, "message");
    assert_eq!(spool.segment_of(9), segment);
    let end = (offset + length).next_multiple_of(BLOCK);
    spool.hurt(&file, |octets| octets.truncate(end));
    let missing = format!("its last {} octets are missing", SEGMENT - end);
    let is_behind = |record: &&Value| {
        record["segment"] == segment
            && record["offset"].as_u64().expect("a number") as usize > offset
    };
    let behind: BTreeSet<&str> =
        spool.records.iter().filter(is_behind).filter_map(|record| record["id"].as_str()).collect();
    let lost: BTreeSet<usize> =
        (0..MESSAGES).filter(|&number| behind.contains(spool.ids[number].as_str())).collect();
    assert!(!lost.is_empty() && lost.len() < MESSAGES / 2);
    spool.judge(&[&missing, "are gone"], &[&missing, "are gone"], &lost);
}

#[test]
fn a_missing_segment_is_told_of() {
    let spool = Spool::filled();
    let segment = spool.segment_of(0);
    let (file, ..) = spool.record(0, "message");
    let lost = spool.numbers_in(segment);
    let aside = spool.gateway.dir().join("taken-away");
    fs::rename(spool.directory().join(file), aside).expect("on one disk");
    let told = format!("segment {segment}: DAMAGED: its file is missing");
    let start = format!("the file of segment {segment} is missing");
    spool.judge(&[&told], &[&start], &lost);
}

#[test]
fn a_header_that_is_hurt_sets_its_file_aside() {
    let spool = Spool::filled();
    let segment = spool.segment_of(0);
    let (file, ..) = spool.record(0, "message");
    let lost = spool.numbers_in(segment);
    spool.hurt(&file, |octets| {
        octets[20] ^= 1;
        octets[2048 + 20] ^= 1;
    });
    let before = spool.files();
    let (code, told) = spool.tool(&["repair", "--dry-run"]);
    assert_eq!(code, 1, "{told}");
    let wrong = "the checksum of the segment header is wrong";
    assert!(told.contains(&format!("{file}: would be set aside: {wrong}")), "{told}");
    assert!(spool.files() == before, "a dry run has changed something");
    let (code, told) = spool.tool(&["repair"]);
    assert_eq!(code, 0, "{told}");
    assert!(told.contains(&format!("{file}: set aside as {file}.quarantined")), "{told}");
    let after = spool.files();
    assert!(after[&format!("{file}.quarantined")] == before[&file], "it was changed");
    assert_eq!(after.len(), before.len(), "files are gone");
    let told = format!("{file}.quarantined: DAMAGED header: {wrong}");
    spool.judge(&[&told], &["the file of segment"], &lost);
}

/// What keeps the gateway from starting: it says so and changes nothing; the repair that it names
/// sets the file aside, or leaves it alone if another mailrace can read it.
fn refused(mut spool: Spool, file: &str, why: &str, repair: &str, is_mended: bool) -> Spool {
    let before = spool.files();
    let (code, told) = spool.tool(&["verify"]);
    assert!(code == 1 && told.contains(&format!("{file}: DAMAGED")), "{told}");
    let home = spool.gateway.dir().to_owned();
    let (code, errors) = Gateway::fail_to_start(&home, &delivering());
    assert_eq!(code, 1, "{errors}");
    assert!(errors.contains(why) && errors.contains(file), "it does not say why: {errors}");
    let (code, told) = spool.tool(&["repair", "--dry-run"]);
    assert!(code == 1 && told.contains(&format!("{file}: {repair}")), "{told}");
    assert!(spool.files() == before, "something was changed");
    let (code, told) = spool.tool(&["repair"]);
    assert_eq!(code, i32::from(!is_mended), "{told}");
    let after = spool.files();
    let kept = if is_mended { format!("{file}.quarantined") } else { file.to_owned() };
    assert!(after[&kept] == before[file] && after.len() == before.len(), "{:?}", after.keys());
    if is_mended {
        spool.gateway = spool.gateway.restart(&delivering());
    }
    spool
}

#[test]
fn a_segment_of_another_spool_is_not_mixed_in() {
    let spool = Spool::filled();
    // As many segments that its number is one that ours do not have.
    let other = Spool::filled_with(2 * MESSAGES);
    let (strange, ..) = other.record(2 * MESSAGES - 1, "message");
    let octets = &other.files()[&strange];
    fs::write(spool.directory().join("000000aa.seg"), octets).expect("it can be written");
    let why = "000000aa.seg belongs to another spool";
    let mut spool = refused(spool, "000000aa.seg", why, "would be set aside: it belongs", true);
    spool.expect_delivered(&BTreeSet::new());
    spool.gateway.terminate();
}

#[test]
fn a_copy_of_a_segment_is_not_read_twice() {
    let spool = Spool::filled();
    let (file, ..) = spool.record(0, "message");
    fs::copy(spool.directory().join(&file), spool.directory().join("000000aa.seg"))
        .expect("it can be copied");
    let why = format!("000000aa.seg says to be the same segment as {file}");
    let mut spool = refused(spool, "000000aa.seg", &why, "would be set aside: it is a copy", true);
    spool.expect_delivered(&BTreeSet::new());
    spool.gateway.terminate();
}

#[test]
fn another_version_of_the_format_is_left_alone() {
    for version in [0_u32, 2] {
        let mut spool = Spool::filled();
        let (file, ..) = spool.record(0, "message");
        let whole = spool.files()[&file].clone();
        spool.hurt(&file, |octets| {
            for copy in [0, 2048] {
                octets[copy + 8..copy + 12].copy_from_slice(&version.to_le_bytes());
                let crc = crc32c::crc32c(&octets[copy..copy + 84]);
                octets[copy + 84..copy + 88].copy_from_slice(&crc.to_le_bytes());
            }
        });
        let why = format!("format version {version}; this mailrace reads version 1");
        spool = refused(spool, &file, &why, "left alone: ", false);
        // The file is as it was for the mailrace that wrote it.
        spool.hurt(&file, |octets| *octets = whole);
        spool.gateway = spool.gateway.restart(&delivering());
        spool.expect_delivered(&BTreeSet::new());
        spool.gateway.terminate();
    }
}
