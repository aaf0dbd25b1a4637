//! The scan of message data, per octet: the kernels side by side, with and without the CRC, and
//! what others would do (`memmem` for the end of data) for comparison.
//!
//! `cargo bench --bench data`; the message is base64 in lines of 76 behind a usual header, warm
//! in the caches as it is after a read.

#![allow(missing_docs)] // `criterion_group!` makes a public function.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use mailrace::message::BodyFlags;
use mailrace::smtp::body::{BodyForm, Reshape};
use mailrace::smtp::data::{ChunkScanner, DataScanner, Kernel};
use mailrace::smtp::header::HeaderWatch;

const SIZES_KIB: [usize; 3] = [1, 10, 100];

/// About so many octets of mail as they come after DATA, with the terminator.
fn message(octets: usize) -> Vec<u8> {
    let mut message = Vec::with_capacity(octets + 1024);
    for name in ["Received", "Date", "From", "To", "Subject", "Message-ID", "Content-Type"] {
        message.extend_from_slice(name.as_bytes());
        message.extend_from_slice(b": some 50 octets of what such a field would hold.\r\n");
    }
    message.extend_from_slice(b"\r\n");
    while message.len() < octets {
        message.extend((0..76).map(|at| b'A' + (at * 7 % 26) as u8));
        message.extend_from_slice(b"\r\n");
    }
    message.extend_from_slice(b".\r\n");
    message
}

fn kernels() -> impl Iterator<Item = (&'static str, Kernel)> {
    let avx2 = Kernel::avx2().map(|kernel| ("avx2", kernel));
    let others = [("portable", Kernel::portable()), ("plain", Kernel::plain())];
    avx2.into_iter().chain(others)
}

fn scan(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("data");
    for size_kib in SIZES_KIB {
        let message = message(size_kib * 1024);
        group.throughput(Throughput::Bytes(message.len() as u64));
        for (name, kernel) in kernels() {
            group.bench_function(BenchmarkId::new(format!("{name}, kernel only"), size_kib), |b| {
                b.iter(|| kernel.find_end(black_box(&message)).expect("there is an end"));
            });
            group.bench_function(BenchmarkId::new(format!("{name}, with CRC"), size_kib), |b| {
                b.iter(|| {
                    let mut scanner = DataScanner::with_kernel(kernel);
                    assert!(scanner.scan(black_box(&message)).end);
                    scanner.summary()
                });
            });
        }
        group.bench_function(BenchmarkId::new("as a chunk, with CRC", size_kib), |b| {
            b.iter(|| {
                let mut scanner = ChunkScanner::new();
                scanner.begin_chunk(message.len() as u64);
                assert!(scanner.scan(black_box(&message)).end);
                scanner.summary()
            });
        });
    }
    group.finish();
}

fn references(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("reference");
    for size_kib in SIZES_KIB {
        let message = message(size_kib * 1024);
        group.throughput(Throughput::Bytes(message.len() as u64));
        let finder = memchr::memmem::Finder::new(b"\r\n.\r\n");
        group.bench_function(BenchmarkId::new("memmem for the end", size_kib), |b| {
            b.iter(|| finder.find(black_box(&message)).expect("there is an end"));
        });
        group.bench_function(BenchmarkId::new("CRC-32C alone", size_kib), |b| {
            b.iter(|| crc32c::crc32c(black_box(&message)));
        });
        let mut copy = Vec::with_capacity(message.len());
        group.bench_function(BenchmarkId::new("copy", size_kib), |b| {
            b.iter(|| {
                copy.clear();
                copy.extend_from_slice(black_box(&message));
                black_box(copy.last());
            });
        });
    }
    group.finish();
}

fn around(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("around");
    let message = message(10 * 1024);
    group.bench_function("header watch, 10 KiB message", |b| {
        b.iter(|| {
            let mut watch = HeaderWatch::new(BodyForm::Data);
            watch.feed(black_box(&message));
            watch.facts()
        });
    });
    group.throughput(Throughput::Bytes(message.len() as u64));
    group.bench_function("unstuffing, 10 KiB message", |b| {
        b.iter(|| {
            let flags = BodyFlags::DATA | BodyFlags::LEADING_DOTS;
            let mut reshape = Reshape::new(flags, BodyForm::Bdat);
            reshape.slices(black_box(&message)).octets()
        });
    });
    group.finish();
}

criterion_group!(benches, scan, references, around);
criterion_main!(benches);
