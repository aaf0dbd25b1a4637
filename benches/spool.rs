//! What a commit costs, and what an append costs.
//!
//! `commit`: one aligned buffer written durably to a zeroed segment, by the two ways that there
//! are: `pwritev2(O_DIRECT, RWF_DSYNC)`, which the log uses, and a ring's WRITE_FIXED linked to
//! FSYNC(DATASYNC).  Put the files on the disk in question by `TMPDIR`.
//!
//! `append`: a message of 10 KiB into the open batch, and what a checksum over the whole payload
//! would add to it when the batch is sealed.
//!
//! `cargo bench --bench spool`

#![allow(missing_docs)] // criterion_group! makes a public function.
#![allow(unsafe_code)] // The raw ring that the log is compared with.

use std::hint::black_box;
use std::io::IoSlice;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use io_uring::{IoUring, opcode, squeue, types};
use mailrace::message::{
    BodyFlags, BodySummary, Durability, Envelope, MailParameters, MessageId, Origin,
};
use mailrace::smtp::address::ReversePath;
use mailrace::spool::direct::AlignedBuf;
use mailrace::spool::disk::Sync;
use mailrace::spool::{
    Appender, AppenderOptions, BLOCK, Disk, FileDisk, FileNo, NewBody, NewMessage, SEGMENT_BYTES,
};
use rustix::fs::{Mode, OFlags};

const FILE: FileNo = FileNo(1);

fn commit(c: &mut Criterion) {
    let place = tempfile::tempdir().expect("a directory for the segment");
    let disk = FileDisk::open(place.path()).expect("it is fresh");
    disk.create(FILE, SEGMENT_BYTES, &AlignedBuf::new(BLOCK)).expect("it has room");
    let mut group = c.benchmark_group("commit");
    group.measurement_time(Duration::from_secs(4)).warm_up_time(Duration::from_secs(1));
    for octets in [64 * 1024, 512 * 1024] {
        group.throughput(Throughput::Bytes(octets as u64));
        group.bench_with_input(BenchmarkId::new("pwritev2", octets), &octets, |b, &octets| {
            let buffer = filled(octets);
            let mut offsets = offsets(octets);
            b.iter(|| {
                let offset = offsets.next().expect("it goes round");
                disk.write(FILE, offset, &[IoSlice::new(&buffer)], Sync::Data).expect("it writes");
            });
        });
        group.bench_with_input(BenchmarkId::new("ring", octets), &octets, |b, &octets| {
            let mut ring = RawRing::new(&place.path().join("00000001.seg"), filled(octets));
            let mut offsets = offsets(octets);
            b.iter(|| ring.commit(offsets.next().expect("it goes round")));
        });
    }
    group.finish();
}

fn filled(octets: usize) -> AlignedBuf {
    let mut buffer = AlignedBuf::new(octets);
    buffer.fill(0x5a);
    buffer
}

/// One place after the other, again and again.
fn offsets(octets: usize) -> impl Iterator<Item = u32> {
    (BLOCK as u32..SEGMENT_BYTES - octets as u32).step_by(octets).cycle()
}

/// WRITE_FIXED linked to FSYNC(DATASYNC), one `submit_and_wait`.
struct RawRing {
    ring: IoUring,
    file: OwnedFd,
    buffer: AlignedBuf,
}

impl RawRing {
    fn new(path: &std::path::Path, mut buffer: AlignedBuf) -> RawRing {
        let flags = OFlags::RDWR | OFlags::DIRECT;
        let file = rustix::fs::open(path, flags, Mode::empty()).expect("the segment is there");
        let ring = IoUring::new(8).expect("this kernel has rings");
        let part = nix::libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        // SAFETY: the buffer lives as long as the ring, in this struct, and does not move.
        unsafe { ring.submitter().register_buffers(&[part]) }.expect("it may be locked");
        RawRing { ring, file, buffer }
    }

    fn commit(&mut self, offset: u32) {
        let file = types::Fd(self.file.as_raw_fd());
        let write =
            opcode::WriteFixed::new(file, self.buffer.as_ptr(), self.buffer.len() as u32, 0)
                .offset(u64::from(offset))
                .build()
                .flags(squeue::Flags::IO_LINK);
        let sync = opcode::Fsync::new(file).flags(types::FsyncFlags::DATASYNC).build();
        // SAFETY: file and buffer outlive the wait for both completions below.
        unsafe { self.ring.submission().push_multiple(&[write, sync]) }.expect("there is room");
        self.ring.submit_and_wait(2).expect("the ring works");
        let results: Vec<i32> = self.ring.completion().map(|entry| entry.result()).collect();
        assert_eq!(results, [self.buffer.len() as i32, 0]);
    }
}

impl Drop for RawRing {
    fn drop(&mut self) {
        let _ = self.ring.submitter().unregister_buffers();
    }
}

fn append(c: &mut Criterion) {
    const MESSAGES: usize = 64;
    let body = filled(10 * 1024);
    let envelope = Envelope {
        reverse_path: ReversePath::Null,
        parameters: MailParameters::default(),
        recipients: Vec::new(),
    };
    let origin = Origin {
        client: "192.0.2.1:1".parse().expect("an address"),
        listener: "192.0.2.2:25".parse().expect("an address"),
        helo: "client.example.com".into(),
        accepted_unix_ms: 0,
    };
    let summary = BodySummary {
        octets: body.len() as u64,
        crc32c: crc32c::crc32c(&body),
        longest_line: 78,
        flags: BodyFlags::DATA,
    };
    let trace = [b'x'; 200];
    let message = NewMessage {
        id: MessageId(1),
        durability: Durability::Fsync,
        envelope: &envelope,
        origin: &origin,
        summary: &summary,
        trace: &trace,
        not_before_unix_ms: None,
        extensions: &[],
        body: NewBody::Inline(&body),
    };
    let now = Instant::now();
    let mut group = c.benchmark_group("append");
    group.measurement_time(Duration::from_secs(3)).warm_up_time(Duration::from_secs(1));
    group.throughput(Throughput::Elements(MESSAGES as u64));
    group.bench_function("64 messages of 10 KiB", |b| {
        b.iter_batched_ref(
            || {
                // Its buffer is made and touched before the measurement, as in a running worker.
                let mut appender = Appender::new(AppenderOptions::new(0));
                fill(&mut appender, MESSAGES, &message, now);
                drop(appender.flush(now));
                appender
            },
            |appender| fill(appender, MESSAGES, &message, now),
            BatchSize::PerIteration,
        );
    });
    let payload = filled(MESSAGES * 10 * 1024);
    group.bench_function("a checksum over the payload of 64 (not done)", |b| {
        b.iter(|| crc32c::crc32c(black_box(&payload)));
    });
    group.bench_function("64 checksums combined (not done)", |b| {
        b.iter(|| {
            (0..MESSAGES as u32)
                .fold(0, |crc, next| crc32c::crc32c_combine(crc, black_box(next), 10 * 1024))
        });
    });
    group.finish();
}

fn fill(appender: &mut Appender, messages: usize, message: &NewMessage<'_>, now: Instant) {
    for _ in 0..messages {
        appender.append_message(message, now).expect("there is room");
    }
}

criterion_group!(benches, commit, append);
criterion_main!(benches);
