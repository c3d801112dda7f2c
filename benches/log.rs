//! The log beside the raw limit of the same work, under criterion: in each group, `ours` and `raw` of the same bytes.
//!
//! `ratios` runs the same works interleaved and prints their ratios; this keeps their history. Each group names the
//! durability level that it runs at.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, missing_docs, reason = "a bench touches files and times")]

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use topiclog::record::{BatchView, Decompressor, RecordRef};
use topiclog::{AppendOptions, Durability, Partition, ReadOptions, Store, TopicConfig, Upkeep, Verify};

#[allow(dead_code, reason = "each bench uses a part of it")]
mod support;

use support::raw::{RawGroup, preallocate, raw_recovery};

/// A directory that goes when the work is done.
struct Place(PathBuf);

impl Place {
    fn new() -> Self {
        let base =
            std::env::var_os("TOPICLOG_BENCH_DIR").map_or_else(|| PathBuf::from("target/bench-data"), PathBuf::from);
        let place = base.join("criterion");
        fs::remove_dir_all(&place).ok();
        fs::create_dir_all(&place).unwrap();
        Self(place)
    }

    fn open(&self) -> Store {
        Store::builder().upkeep(Upkeep::Manual).open(self.0.join("store")).unwrap()
    }

    fn partition(&self, store: &Store, durability: Durability) -> Partition {
        let config = TopicConfig::default().durability(durability).batch_bytes_max(2 << 20).segment_ms(i64::MAX);
        store.ensure_topic("t", config).unwrap().partition(0).unwrap()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).ok();
    }
}

fn timed(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

fn appends(criterion: &mut Criterion) {
    for (size, batch) in [(100, 1), (1024, 1), (100, 100), (100, 1000), (1024, 100), (1024, 1000)] {
        let value = vec![b'v'; size];
        let records: Vec<RecordRef<'_>> = (0..batch).map(|_| RecordRef::new(None, Some(&value))).collect();
        let mut group = criterion.benchmark_group(format!("append os, {batch} x {size} B"));
        group.throughput(Throughput::Elements(batch as u64)).sample_size(10);
        group.bench_function("ours", |bencher| {
            bencher.iter_custom(|count| {
                let place = Place::new();
                let store = place.open();
                let partition = place.partition(&store, Durability::Os);
                timed(|| {
                    for _ in 0..count {
                        partition.append_batch(&records).unwrap();
                    }
                })
            });
        });
        group.bench_function("raw write(2)", |bencher| {
            bencher.iter_custom(|count| {
                let place = Place::new();
                let mut file = File::create(place.0.join("raw")).unwrap();
                let payload = vec![b'v'; size * batch];
                timed(|| (0..count).for_each(|_| file.write_all(&payload).unwrap()))
            });
        });
        group.finish();
    }
}

fn synced_appends(criterion: &mut Criterion) {
    for (size, threads) in [(100, 1), (1024, 1), (100, 8), (1024, 8)] {
        let value = vec![b'v'; size];
        let mut group = criterion.benchmark_group(format!("append sync, {threads} threads, {size} B"));
        group.throughput(Throughput::Elements(threads)).sample_size(10);
        group.bench_function("ours", |bencher| {
            bencher.iter_custom(|count| {
                let place = Place::new();
                let store = place.open();
                let partition = place.partition(&store, Durability::Sync);
                let append = || {
                    for _ in 0..count {
                        partition.append(RecordRef::new(None, Some(&value))).unwrap();
                    }
                };
                timed(|| std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(append)))))
            });
        });
        group.bench_function("raw write + shared fdatasync", |bencher| {
            bencher.iter_custom(|count| {
                let place = Place::new();
                let raw = RawGroup::new(File::create(place.0.join("raw")).unwrap());
                let append = || (0..count).for_each(|_| raw.append(&value));
                timed(|| {
                    preallocate(&raw.file, 0);
                    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(append))));
                })
            });
        });
        group.finish();
    }
}

/// A closed log of about 100 MB in batches.
fn filled(size: usize, durability: Durability) -> (Place, u64) {
    let place = Place::new();
    let value = vec![b'v'; size];
    let records: Vec<RecordRef<'_>> = (0..100).map(|_| RecordRef::new(None, Some(&value))).collect();
    let store = place.open();
    let partition = place.partition(&store, durability);
    let batches = 100_000_000 / (size * 100);
    for _ in 0..batches {
        partition.append_batch(&records).unwrap();
    }
    store.close().unwrap();
    (place, batches as u64 * 100)
}

fn reads(criterion: &mut Criterion) {
    for size in [100, 1024] {
        let (place, count) = filled(size, Durability::Os);
        let store = place.open();
        let partition = place.partition(&store, Durability::Os);
        let always = ReadOptions::new().verify(Verify::Always);
        let log = File::open(place.0.join("store/t-0/00000000000000000000.log")).unwrap();
        #[allow(unsafe_code, reason = "the raw limit is a map; nobody writes to the file")]
        // SAFETY: the log is closed and nothing changes the file.
        let mapped = unsafe { memmap2::Mmap::map(&log) }.unwrap();
        let mut group = criterion.benchmark_group(format!("scan, {size} B in batches of 100"));
        group.throughput(Throughput::Elements(count)).sample_size(10);
        group.bench_function("borrowed", |bencher| {
            bencher.iter(|| {
                let mut reader = partition.reader(0, &always).unwrap();
                let mut bytes = 0;
                while let Some(batch) = reader.next_batch().unwrap() {
                    bytes += batch.records().map(|record| record.unwrap().value().unwrap().len()).sum::<usize>();
                }
                bytes
            });
        });
        group.bench_function("owned", |bencher| {
            bencher.iter(|| {
                let reader = partition.reader(0, &always).unwrap();
                reader.map(|record| record.unwrap().value().unwrap().len()).sum::<usize>()
            });
        });
        group.bench_function("raw map, CRC-32C alone", |bencher| {
            bencher.iter(|| {
                let (mut at, mut good) = (0, 0);
                while at + 61 <= mapped.len() {
                    let size = 12 + u32::from_be_bytes(mapped[at + 8..at + 12].try_into().unwrap()) as usize;
                    let crc = u32::from_be_bytes(mapped[at + 17..at + 21].try_into().unwrap());
                    good += usize::from(crc_fast::crc32_iscsi(&mapped[at + 21..at + size]) == crc);
                    at += size;
                }
                good
            });
        });
        group.finish();
        let mut group = criterion.benchmark_group(format!("random read, {size} B in batches of 100"));
        let mut seed = 1_u64;
        group.bench_function("ours", |bencher| {
            bencher.iter(|| {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                partition.record(((seed >> 20) % count) as i64).unwrap().unwrap().offset()
            });
        });
        let mut positions = Vec::new();
        let mut at = 0;
        while at + 61 <= mapped.len() {
            positions.push(at);
            at += 12 + u32::from_be_bytes(mapped[at + 8..at + 12].try_into().unwrap()) as usize;
        }
        let mut decompressor = Decompressor::default();
        assert_eq!(positions.len() as u64 * 100, count);
        group.bench_function("raw map with CRC, all positions known", |bencher| {
            bencher.iter(|| {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let target = (seed >> 20) % count;
                let batch = BatchView::parse(&mapped[positions[target as usize / 100]..]).unwrap();
                let found = batch.records(&mut decompressor).unwrap().nth(target as usize % 100);
                found.unwrap().unwrap().offset()
            });
        });
        group.finish();
        store.close().unwrap();
    }
}

fn reopens(criterion: &mut Criterion) {
    for size in [100, 1024] {
        let (place, _) = filled(size, Durability::Sync);
        let log = place.0.join("store/t-0/00000000000000000000.log");
        let mut group = criterion.benchmark_group(format!("reopen to the first record, 100 MB, {size} B"));
        group.sample_size(10);
        let open = || {
            let start = Instant::now();
            let store = place.open();
            assert!(place.partition(&store, Durability::Sync).record(0).unwrap().is_some());
            (start.elapsed(), store)
        };
        group.bench_function("clean", |bencher| {
            bencher.iter_custom(|count| {
                let each = |_| {
                    let (time, store) = open();
                    store.close().unwrap();
                    time
                };
                (0..count).map(each).sum()
            });
        });
        // What was appended since the floor moved last: about 8 MiB.
        let value = vec![b'v'; size];
        let records: Vec<RecordRef<'_>> = (0..100).map(|_| RecordRef::new(None, Some(&value))).collect();
        let mut above = 0;
        group.bench_function("after a kill", |bencher| {
            bencher.iter_custom(|count| {
                let mut each = |_| {
                    let store = place.open();
                    let partition = place.partition(&store, Durability::Sync);
                    let os = AppendOptions::new().durability(Durability::Os);
                    for _ in 0..8_000_000 / (size * 100) {
                        partition.append_batch_with(&records, &os).unwrap();
                    }
                    drop((partition, store));
                    let (time, store) = open();
                    above = store.recovery_report().partitions[0].scanned_bytes;
                    store.close().unwrap();
                    time
                };
                (0..count).map(&mut each).sum()
            });
        });
        group.bench_function("raw scan, copy and fdatasync of what was above the floor", |bencher| {
            let end = fs::metadata(&log).unwrap().len();
            bencher.iter_custom(|count| (0..count).map(|_| raw_recovery(&log, end - above, end)).sum());
        });
        group.finish();
    }
}

criterion_group!(benches, appends, synced_appends, reads, reopens);
criterion_main!(benches);
