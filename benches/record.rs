//! What a record costs on its way to bytes and back, beside the checksum that no way round it avoids.
#![allow(
    clippy::unwrap_used,
    missing_docs,
    reason = "a bench stops at the first error, and its macro documents nothing"
)]

use std::hint::black_box;

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use topiclog::record::{
    BatchHeader, BatchSpec, BatchView, Compression, DecodeLimits, Decompressor, RecordRef, RecordsIter, decode_body,
    encode_batch, stored_records,
};

/// A key of 8 bytes and a value of 92.
const KEY: &[u8] = b"key-0001";
const VALUE: &[u8] = &[b'v'; 92];

fn spec() -> BatchSpec {
    BatchSpec { append_time_ms: 1_700_000_000_000, ..BatchSpec::new(1_000_000) }
}

fn batch_of(records: usize) -> Bytes {
    let mut out = Vec::new();
    let record = RecordRef::new(Some(KEY), Some(VALUE));
    encode_batch(&mut out, &spec(), std::iter::repeat_n(record, records)).unwrap();
    Bytes::from(out)
}

fn encode(c: &mut Criterion) {
    let mut group = c.benchmark_group("encode");
    for records in [1, 100] {
        let mut out = Vec::with_capacity(1 << 20);
        group.throughput(Throughput::Elements(records as u64));
        group.bench_function(format!("{records}x100B"), |b| {
            b.iter(|| {
                out.clear();
                let record = RecordRef::new(black_box(Some(KEY)), black_box(Some(VALUE)));
                encode_batch(&mut out, black_box(&spec()), std::iter::repeat_n(record, records)).unwrap()
            });
        });
    }
    group.finish();
}

fn checksum(c: &mut Criterion) {
    let mut group = c.benchmark_group("crc");
    for bytes in [145, 160, 1024, 10_800] {
        let input = vec![7; bytes];
        group.throughput(Throughput::Bytes(bytes as u64));
        group.bench_function(format!("{bytes}B"), |b| b.iter(|| crc_fast::crc32_iscsi(black_box(&input))));
    }
    group.finish();
}

fn decode(c: &mut Criterion) {
    let batch = batch_of(100);
    let header = BatchHeader::decode(&batch).unwrap();
    let mut group = c.benchmark_group("decode");
    group.bench_function("header", |b| b.iter(|| BatchHeader::decode(black_box(&batch)).unwrap()));
    group.bench_function("parse 1x100B", |b| {
        let batch = batch_of(1);
        b.iter(|| BatchView::parse(black_box(&batch)).unwrap().header().crc);
    });
    group.throughput(Throughput::Elements(100));
    group.bench_function("100x100B checksum only", |b| {
        b.iter(|| BatchView::parse(black_box(&batch)).unwrap().header().crc);
    });
    group.bench_function("100x100B borrowed, no checksum", |b| {
        b.iter(|| {
            let mut sum = 0;
            for record in RecordsIter::new(&header, black_box(&batch[61..])) {
                let record = record.unwrap();
                sum += record.offset() as usize + record.value().map_or(0, <[u8]>::len);
            }
            sum
        });
    });
    group.bench_function("100x100B borrowed", |b| {
        let mut decompressor = Decompressor::default();
        b.iter(|| {
            let mut sum = 0;
            let view = BatchView::parse(black_box(&batch)).unwrap();
            for record in view.records(&mut decompressor).unwrap() {
                let record = record.unwrap();
                sum += record.offset() as usize + record.value().map_or(0, <[u8]>::len);
            }
            sum
        });
    });
    group.bench_function("100x100B owned, no checksum", |b| {
        b.iter(|| {
            let mut sum = 0;
            let body = decode_body(&header, black_box(&batch), &DecodeLimits::default()).unwrap();
            for record in stored_records(&header, &body) {
                let record = record.unwrap();
                sum += record.offset().get() as usize + record.value().map_or(0, <[u8]>::len);
            }
            sum
        });
    });
    group.finish();
}

/// Both ways through each codec that is built in, with values that differ.
fn codecs(c: &mut Criterion) {
    let mut group = c.benchmark_group("codec 100x100B");
    let values: Vec<String> = (0..100).map(|index| format!("{index:08}{}", "abcdefghijklmn".repeat(6))).collect();
    for compression in Compression::ALL.into_iter().filter(|codec| codec.is_built_in()) {
        let spec = BatchSpec { compression, ..spec() };
        let records = || values.iter().map(|value| RecordRef::new(Some(KEY), Some(value.as_bytes())));
        let mut out = Vec::new();
        group.bench_function(format!("encode {compression}"), |b| {
            b.iter(|| {
                out.clear();
                encode_batch(&mut out, &spec, records()).unwrap()
            });
        });
        out.clear();
        encode_batch(&mut out, &spec, records()).unwrap();
        let mut decompressor = Decompressor::default();
        group.bench_function(format!("decode {compression}"), |b| {
            b.iter(|| BatchView::parse(black_box(&out)).unwrap().records(&mut decompressor).unwrap().count());
        });
    }
    group.finish();
}

criterion_group!(benches, encode, checksum, decode, codecs);
criterion_main!(benches);
