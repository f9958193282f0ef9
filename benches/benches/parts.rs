//! The parts that every operation pays for, one by one.
#![expect(missing_docs, reason = "criterion's macros generate the entry points")]

use std::hint::black_box;

use connect_core::{Device, Digest, OperationKind, RdmaMetadata, Region};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

fn regions(count: u64) -> Vec<Region> {
    let region = |i| Region::new(Device::CPU, 0x7f00_0000_0000 + i * 0x1_0000, 4096).expect("a valid region");
    (0..count).map(region).collect()
}

fn document(regions: &[Region]) -> RdmaMetadata {
    // As long as a real blob of one region, and about as compressible.
    let blob: Vec<u8> = (0..450u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let key = "4a1d9f5c-7d9e-4d0b-9f2b-0d2a4f6f8a11".to_owned();
    RdmaMetadata::new(OperationKind::Read, regions, &blob, key).expect("a valid document")
}

fn metadata(c: &mut Criterion) {
    for descriptors in [1, 256] {
        let regions = regions(descriptors);
        c.bench_function(&format!("metadata/make/{descriptors}"), |b| {
            b.iter(|| document(black_box(&regions)))
        });
        let document = document(&regions);
        let json = document.to_json();
        c.bench_function(&format!("metadata/encode/{descriptors}"), |b| {
            b.iter(|| black_box(&document).to_json())
        });
        c.bench_function(&format!("metadata/decode/{descriptors}"), |b| {
            b.iter(|| RdmaMetadata::from_json(black_box(&json)).expect("valid"));
        });
        c.bench_function(&format!("metadata/blob/{descriptors}"), |b| {
            b.iter(|| black_box(&document).decode_blob().expect("valid"));
        });
    }
}

/// What a sender and a receiver that ask for digests pay, each on one core.
fn digest(c: &mut Criterion) {
    let mut group = c.benchmark_group("digest");
    for (name, len) in [("4 KiB", 4 << 10), ("1 MiB", 1 << 20), ("64 MiB", 64 << 20)] {
        let bytes: Vec<u8> = (0..len).map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        group.throughput(Throughput::Bytes(bytes.len() as u64));
        group.bench_function(name, |b| b.iter(|| Digest::of(black_box(&bytes))));
    }
    group.finish();
}

criterion_group!(benches, metadata, digest);
criterion_main!(benches);
