//! What can happen to the files of a log that nobody runs on.

use mailrace::spool::format::BATCH_HEADER;
use mailrace::spool::format::batch::{BatchHeader, Digest};
use mailrace::spool::format::header::SegmentHeader;
use mailrace::spool::format::record::RECORD_HEADER;
use mailrace::spool::sim_disk::SimDisk;
use mailrace::spool::{BLOCK, Disk, FileNo};

use super::super::Input;

/// How bad it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Damage {
    /// Nothing was done.
    None,
    /// Octets were changed, moved or lost.
    Hurt,
    /// Octets were changed and their checksums made to agree.
    Forged,
}

impl Damage {
    /// Does what the input says, to the files as they lie on the disk.
    pub fn inflict(disk: &SimDisk, input: &mut Input<'_>) -> Damage {
        let mut worst = Damage::None;
        for _ in 0..8 {
            let files = disk.files().expect("the disk is up");
            if input.is_empty() || files.is_empty() {
                break;
            }
            let file = files[input.below(files.len())];
            worst = worst.max(one(disk, file, &files, input));
        }
        worst
    }
}

fn one(disk: &SimDisk, file: FileNo, files: &[FileNo], input: &mut Input<'_>) -> Damage {
    let mut octets = disk.contents(file);
    if octets.len() < BLOCK {
        return Damage::None;
    }
    match input.octet() % 8 {
        0 | 1 => {
            let at = place(&octets, input);
            disk.flip_bit(file, at, input.octet());
            return Damage::Hurt;
        }
        2 => octets.truncate(place(&octets, input)),
        3 => {
            let block = place(&octets, input) / BLOCK * BLOCK;
            // A file that was cut before ends within a block.
            let end = octets.len().min(block + BLOCK);
            octets[block..end].fill(0);
        }
        4 => {
            let source = disk.contents(files[input.below(files.len())]);
            let (from, to) = (place(&source, input) / BLOCK, place(&octets, input) / BLOCK);
            let into = octets.get_mut(to * BLOCK..(to + 1) * BLOCK);
            if let (Some(block), Some(into)) = (source.get(from * BLOCK..(from + 1) * BLOCK), into)
            {
                into.copy_from_slice(block);
            }
        }
        5 => {
            disk.quarantine(file).expect("the disk is up");
            return Damage::Hurt;
        }
        6 => {
            forge_batch(&mut octets, input);
            disk.plant(file, octets);
            return Damage::Forged;
        }
        _ => {
            forge_header(&mut octets, input);
            disk.plant(file, octets);
            return Damage::Forged;
        }
    }
    disk.plant(file, octets);
    Damage::Hurt
}

/// An octet of the file: one of the first blocks, most of the time, where there is something.
fn place(octets: &[u8], input: &mut Input<'_>) -> usize {
    let block = input.below(octets.len().div_ceil(BLOCK).max(1));
    (block * BLOCK + input.below(BLOCK)).min(octets.len().saturating_sub(1))
}

/// Overwrites a few octets.
fn scribble(octets: &mut [u8], input: &mut Input<'_>) {
    let at = input.below(octets.len().min(65_536));
    let length = 1 + input.below(16);
    let with = input.take(length);
    for (place, octet) in octets[at..].iter_mut().zip(with) {
        *place = *octet;
    }
}

/// Scribbles into a batch, and takes all checksums of it anew.
fn forge_batch(octets: &mut [u8], input: &mut Input<'_>) {
    let Ok(header) = SegmentHeader::decode(&octets[..BLOCK]) else { return };
    let starts: Vec<usize> = (BLOCK..octets.len() - BLOCK + 1)
        .step_by(BLOCK)
        .filter(|&at| BatchHeader::decode(&octets[at..], header.generation).is_ok())
        .collect();
    if starts.is_empty() {
        return;
    }
    let start = starts[input.below(starts.len())];
    let batch = &mut octets[start..];
    let mut header = BatchHeader::decode(batch, header.generation).expect("looked at above");
    match input.octet() % 4 {
        0 => header.sequence = header.sequence.wrapping_add(u64::from(input.octet())),
        1 => header.durable_through = u64::from(input.octet()),
        2 => header.payload_length = u32::from(input.octet()) * 64,
        _ => {}
    }
    let end = (BATCH_HEADER + header.payload_length as usize).min(batch.len());
    if end > BATCH_HEADER {
        // The first octets of a payload are those of its first head.
        let near = end.min(BATCH_HEADER + 512);
        scribble(&mut batch[BATCH_HEADER..near], input);
        let digest = reseal(&mut batch[BATCH_HEADER..end]);
        (header.digest, header.record_count) = (digest.crc32c, digest.record_count);
    }
    header.encode(batch);
}

/// Takes the checksums of a payload's records anew, as far as their lengths make sense.
fn reseal(payload: &mut [u8]) -> Digest {
    let (mut at, mut digest) = (0, Digest::default());
    while let Some(record) = payload.get_mut(at..).filter(|rest| rest.len() >= RECORD_HEADER) {
        let word = |record: &[u8], at: usize| {
            u32::from_le_bytes(record[at..at + 4].try_into().expect("four octets")) as usize
        };
        let (head, total) = (word(record, 4), word(record, 8));
        let (body, length) = (word(record, 12), word(record, 24));
        if head < RECORD_HEADER || head > record.len() || total == 0 {
            break;
        }
        if let Some(body) = body.checked_add(length).and_then(|end| record.get(body..end)) {
            let crc = crc32c::crc32c(body);
            record[28..32].copy_from_slice(&crc.to_le_bytes());
        }
        let crc = crc32c::crc32c_append(crc32c::crc32c(&record[..36]), &record[40..head]);
        record[36..40].copy_from_slice(&crc.to_le_bytes());
        digest.add(record);
        at = at.saturating_add(total);
    }
    digest
}

/// Scribbles into a segment's header, and takes its checksum anew.
fn forge_header(octets: &mut [u8], input: &mut Input<'_>) {
    const LENGTH: usize = 88;
    scribble(&mut octets[8..LENGTH - 4], input);
    let crc = crc32c::crc32c(&octets[..LENGTH - 4]);
    octets[LENGTH - 4..LENGTH].copy_from_slice(&crc.to_le_bytes());
    let copy = octets[..LENGTH].to_vec();
    octets[2048..2048 + LENGTH].copy_from_slice(&copy);
}
