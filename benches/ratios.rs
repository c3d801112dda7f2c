//! The library beside the raw limit of the same work, interleaved in one run: nine rounds, medians, and their ratio.
//!
//! `cargo bench --all-features --bench ratios [-- NAME..]` runs all, or those whose name contains a word given. Each line
//! names the durability level that it ran at. Files go to `TOPICLOG_BENCH_DIR`, or to `target/bench-data`.
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::disallowed_methods, reason = "a bench prints and times")]

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use topiclog::record::{BatchView, Decompressor, RecordRef};
use topiclog::{Durability, Partition, Store, TopicConfig, Upkeep, Verify};

#[allow(dead_code, reason = "each bench uses a part of it")]
mod support;

use support::raw::{RawGroup, preallocate, raw_recovery};
use support::{ROUNDS, directory, map, median, varint};

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    let wanted = |name: &str| words.is_empty() || words.iter().any(|word| name.contains(word.as_str()));
    let benches: [(&str, fn()); 9] = [
        ("append_one", append_one),
        ("append_batches", append_batches),
        ("sync_one", sync_one),
        ("sync_eight", sync_eight),
        ("scan", scan),
        ("random", random),
        ("reopen_clean", reopen_clean),
        ("reopen_kill", reopen_kill),
        ("idle_partitions", idle_partitions),
    ];
    for (name, bench) in benches {
        if wanted(name) {
            bench();
        }
    }
}

/// Runs both in turn and prints medians per item and the ratio of speeds (ours to raw; 1.00 is as fast).
fn compare(name: &str, level: &str, items: u64, mut ours: impl FnMut() -> Duration, mut raw: impl FnMut() -> Duration) {
    let (mut our_times, mut raw_times) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        raw_times.push(raw());
        our_times.push(ours());
    }
    let (ours, raw) = (median(our_times), median(raw_times));
    let per_item = |time: Duration| time.as_secs_f64() * 1e9 / items as f64;
    let ratio = raw.as_secs_f64() / ours.as_secs_f64();
    println!(
        "{name:<44} {level:<8} ours {:>11.1} ns  raw {:>11.1} ns  ratio {ratio:.2}",
        per_item(ours),
        per_item(raw)
    );
}

fn timed(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

fn store_at(directory: &Path) -> Store {
    Store::builder().upkeep(Upkeep::Manual).open(directory.join("store")).unwrap()
}

fn fresh(name: &str, config: TopicConfig) -> (PathBuf, Store, Partition) {
    let directory = directory(name);
    let store = store_at(&directory);
    let topic = store.create_topic("t", config).unwrap();
    let partition = topic.partition(0).unwrap();
    (directory, store, partition)
}

fn config(durability: Durability) -> TopicConfig {
    TopicConfig::default().durability(durability).segment_ms(i64::MAX)
}

fn append_one() {
    for size in [100, 1024] {
        let value = vec![b'v'; size];
        let count = if size == 100 { 100_000 } else { 50_000u64 };
        let ours = || {
            let (directory, store, partition) = fresh("ours", config(Durability::Os));
            partition.append(RecordRef::new(None, Some(&value))).unwrap();
            let time = timed(|| {
                for _ in 0..count {
                    partition.append(RecordRef::new(None, Some(&value))).unwrap();
                }
            });
            drop((store, partition));
            fs::remove_dir_all(directory).unwrap();
            time
        };
        let raw = || {
            let directory = directory("raw");
            let mut file = File::create(directory.join("raw")).unwrap();
            file.write_all(&value).unwrap();
            let time = timed(|| {
                for _ in 0..count {
                    file.write_all(&value).unwrap();
                }
            });
            fs::remove_dir_all(directory).unwrap();
            time
        };
        compare(&format!("append one by one, {size} B / write(2)"), "os", count, ours, raw);
    }
}

fn append_batches() {
    for (size, batch) in [(100, 100), (100, 1000), (1024, 100), (1024, 1000)] {
        let value = vec![b'v'; size];
        let records: Vec<RecordRef<'_>> = (0..batch).map(|_| RecordRef::new(None, Some(&value))).collect();
        let count = (200_000_000 / (size * batch)) as u64 / if size * batch > 500_000 { 1 } else { 4 };
        let ours = || {
            let config = config(Durability::Os).batch_bytes_max(2 << 20);
            let (directory, store, partition) = fresh("ours", config);
            partition.append_batch(&records).unwrap();
            let time = timed(|| {
                for _ in 0..count {
                    partition.append_batch(&records).unwrap();
                }
            });
            drop((store, partition));
            fs::remove_dir_all(directory).unwrap();
            time
        };
        let raw = || {
            let directory = directory("raw");
            let mut file = File::create(directory.join("raw")).unwrap();
            let payload = vec![b'v'; size * batch];
            file.write_all(&payload).unwrap();
            let time = timed(|| {
                for _ in 0..count {
                    file.write_all(&payload).unwrap();
                }
            });
            fs::remove_dir_all(directory).unwrap();
            time
        };
        let name = format!("batches of {batch} x {size} B / write(2) a batch");
        compare(&name, "os", count * batch as u64, ours, raw);
    }
}

fn sync_one() {
    let count = 300u64;
    for size in [100, 1024] {
        let value = vec![b'v'; size];
        let ours = || {
            let (directory, store, partition) = fresh("ours", config(Durability::Sync));
            let time = timed(|| {
                for _ in 0..count {
                    partition.append(RecordRef::new(None, Some(&value))).unwrap();
                }
            });
            drop((store, partition));
            fs::remove_dir_all(directory).unwrap();
            time
        };
        let raw = || {
            let directory = directory("raw");
            let file = File::create(directory.join("raw")).unwrap();
            file.sync_all().unwrap();
            let time = timed(|| {
                preallocate(&file, 0);
                for index in 0..count {
                    file.write_all_at(&value, index * size as u64).unwrap();
                    file.sync_data().unwrap();
                }
            });
            fs::remove_dir_all(directory).unwrap();
            time
        };
        compare(&format!("synced append, 1 thread, {size} B / write+fdatasync"), "sync", count, ours, raw);
    }
}

const THREADS: u64 = 8;

fn sync_eight() {
    let each = 150u64;
    for size in [100, 1024] {
        let value = vec![b'v'; size];
        let ours = || {
            let (directory, store, partition) = fresh("ours", config(Durability::Sync));
            let time = timed(|| {
                std::thread::scope(|scope| {
                    for _ in 0..THREADS {
                        scope.spawn(|| {
                            for _ in 0..each {
                                partition.append(RecordRef::new(None, Some(&value))).unwrap();
                            }
                        });
                    }
                });
            });
            drop((store, partition));
            fs::remove_dir_all(directory).unwrap();
            time
        };
        let raw = || {
            let directory = directory("raw");
            let shared = Arc::new(RawGroup::new(File::create(directory.join("raw")).unwrap()));
            shared.file.sync_all().unwrap();
            let time = timed(|| {
                preallocate(&shared.file, 0);
                std::thread::scope(|scope| {
                    for _ in 0..THREADS {
                        scope.spawn(|| {
                            for _ in 0..each {
                                shared.append(&value);
                            }
                        });
                    }
                });
            });
            fs::remove_dir_all(directory).unwrap();
            time
        };
        compare(&format!("synced append, 8 threads, {size} B / shared fdatasync"), "sync", each * THREADS, ours, raw);
    }
}

/// The batches of the log's files, mapped by hand.
fn raw_map(directory: &Path) -> memmap2::Mmap {
    let file = File::open(directory.join("store/t-0/00000000000000000000.log")).unwrap();
    map(&file)
}

fn scan() {
    for size in [100, 1024] {
        let value = vec![b'v'; size];
        let records: Vec<RecordRef<'_>> = (0..100).map(|_| RecordRef::new(None, Some(&value))).collect();
        let batches = 100_000_000 / (size * 100);
        let (directory, store, partition) = fresh("scan", config(Durability::Os));
        for _ in 0..batches {
            partition.append_batch(&records).unwrap();
        }
        drop(partition);
        store.close().unwrap();
        let store = store_at(&directory);
        let partition = store.topic("t").unwrap().partition(0).unwrap();
        let count = batches as u64 * 100;
        let options = topiclog::ReadOptions::new().verify(Verify::Always);
        let views = || {
            timed(|| {
                let mut reader = partition.reader(0, &options).unwrap();
                let (mut seen, mut bytes) = (0, 0);
                while let Some(batch) = reader.next_batch().unwrap() {
                    for record in batch.records() {
                        seen += 1;
                        bytes += record.unwrap().value().unwrap().len();
                    }
                }
                assert_eq!((seen, bytes), (count, count as usize * size));
            })
        };
        let owned = || {
            timed(|| {
                let reader = partition.reader(0, &options).unwrap();
                let (mut seen, mut bytes) = (0, 0);
                for record in reader {
                    seen += 1;
                    bytes += record.unwrap().value().unwrap().len();
                }
                assert_eq!((seen, bytes), (count, count as usize * size));
            })
        };
        let mapped = raw_map(&directory);
        let raw = || timed(|| assert_eq!(raw_scan(&mapped), count));
        let first = views();
        println!("first scan, batches of 100 x {size} B: {:.1} ns a record", first.as_secs_f64() * 1e9 / count as f64);
        compare(&format!("second scan, borrowed views, 100 x {size} B / map loop"), "-", count, views, raw);
        compare(&format!("second scan, owned records, 100 x {size} B / map loop"), "-", count, owned, raw);
        drop(partition);
        store.close().unwrap();
        fs::remove_dir_all(directory).unwrap();
    }
}

/// A hand-written loop over the map: the CRC of each batch, the lengths of each record.
fn raw_scan(mapped: &[u8]) -> u64 {
    let (mut at, mut count, mut bytes) = (0, 0, 0u64);
    while at + 61 <= mapped.len() {
        let length = u32::from_be_bytes(mapped[at + 8..at + 12].try_into().unwrap()) as usize;
        let batch = &mapped[at..at + 12 + length];
        let crc = u32::from_be_bytes(batch[17..21].try_into().unwrap());
        assert_eq!(crc_fast::crc32_iscsi(&batch[21..]), crc);
        let mut place = 61;
        while place < batch.len() {
            let length = varint(batch, &mut place);
            let end = place + length as usize;
            place += 1;
            varint(batch, &mut place);
            varint(batch, &mut place);
            let key = varint(batch, &mut place);
            place += key.max(0) as usize;
            let value = varint(batch, &mut place);
            bytes += value.max(0) as u64;
            place = end;
            count += 1;
        }
        at += 12 + length;
    }
    assert!(bytes > 0);
    count
}

/// A log of about 1 GiB, written one by one.
fn big_log(name: &str, durability: Durability, bytes: u64) -> (PathBuf, u64) {
    let value = vec![b'v'; 100];
    let config = config(durability).segment_bytes(i32::MAX as u32).segment_index_bytes(64 << 20);
    let (directory, store, partition) = fresh(name, config);
    let options = topiclog::AppendOptions::new().durability(Durability::Os);
    let mut count = 0;
    while partition.stats().bytes < bytes {
        for _ in 0..10_000 {
            partition.append_batch_with(&[RecordRef::new(None, Some(&value))], &options).unwrap();
            count += 1;
        }
    }
    drop(partition);
    store.close().unwrap();
    (directory, count)
}

fn random() {
    let (directory, count) = big_log("random", Durability::Os, 1 << 30);
    let store = store_at(&directory);
    let partition = store.topic("t").unwrap().partition(0).unwrap();
    let mapped = raw_map(&directory);
    let mut positions = Vec::new();
    let mut at = 0;
    while at + 61 <= mapped.len() {
        positions.push(at as u32);
        at += 12 + u32::from_be_bytes(mapped[at + 8..at + 12].try_into().unwrap()) as usize;
    }
    assert_eq!(positions.len() as u64, count);
    for record in partition.read_from(0) {
        record.unwrap();
    }
    let reads = 200_000u64;
    let mut seed = 1u64;
    let mut next = move || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 20) % count
    };
    let targets: Vec<u64> = (0..reads).map(|_| next()).collect();
    let (mut our_p50s, mut raw_p50s) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        raw_p50s.push(p50(&targets, |target| {
            let at = positions[target as usize] as usize;
            let batch = BatchView::parse(&mapped[at..]).unwrap();
            let mut decompressor = Decompressor::default();
            let record = batch.records(&mut decompressor).unwrap().next().unwrap().unwrap();
            assert_eq!(record.value().unwrap().len(), 100);
        }));
        our_p50s.push(p50(&targets, |target| {
            let record = partition.record(target as i64).unwrap().unwrap();
            assert_eq!(record.value().unwrap().len(), 100);
        }));
    }
    let (ours, raw) = (median(our_p50s), median(raw_p50s));
    println!(
        "random read p50, 1 GiB written one by one / map read with CRC: ours {:.0} ns, raw {:.0} ns, {:.2} times; index {} bytes",
        ours.as_secs_f64() * 1e9,
        raw.as_secs_f64() * 1e9,
        ours.as_secs_f64() / raw.as_secs_f64(),
        partition.stats().index_memory_bytes
    );
    drop(partition);
    store.close().unwrap();
    fs::remove_dir_all(directory).unwrap();
}

/// Median of single calls, in groups of 8 so that the clock itself does not show.
fn p50(targets: &[u64], mut call: impl FnMut(u64)) -> Duration {
    let times = targets.chunks_exact(8).map(|group| timed(|| group.iter().for_each(|&target| call(target))) / 8);
    median(times.collect())
}

fn reopen_clean() {
    let (directory, _) = big_log("reopen", Durability::Os, 1 << 30);
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let mut store = None;
        times.push(timed(|| {
            let opened = store_at(&directory);
            let partition = opened.topic("t").unwrap().partition(0).unwrap();
            assert!(partition.record(0).unwrap().is_some());
            store = Some(opened);
        }));
        store.unwrap().close().unwrap();
    }
    println!("reopen of 1 GiB to the first record, clean: {:.3} ms", median(times).as_secs_f64() * 1e3);
    fs::remove_dir_all(directory).unwrap();
}

fn reopen_kill() {
    for durability in [Durability::Sync, Durability::Os] {
        let level = if durability == Durability::Os { "os" } else { "sync" };
        let (directory, _) = big_log("reopen", durability, 1 << 30);
        let log = directory.join("store/t-0/00000000000000000000.log");
        let (mut our_times, mut raw_times, mut above) = (Vec::new(), Vec::new(), 0);
        for _ in 0..ROUNDS {
            // A writer that dies: 40 MiB behind the floor, the process's handles dropped without a close.
            let store = store_at(&directory);
            let partition = store.topic("t").unwrap().partition(0).unwrap();
            let before = partition.stats().bytes;
            let value = vec![b'v'; 100];
            let records: Vec<RecordRef<'_>> = (0..100).map(|_| RecordRef::new(None, Some(&value))).collect();
            while partition.stats().bytes < before + (40 << 20) {
                let options = topiclog::AppendOptions::new().durability(Durability::Os);
                partition.append_batch_with(&records, &options).unwrap();
            }
            let end = partition.stats().bytes;
            drop((store, partition));
            let store_report = timed_open(&directory, &mut our_times);
            above = store_report;
            raw_times.push(raw_recovery(&log, end - above, end));
        }
        let (ours, raw) = (median(our_times), median(raw_times));
        println!(
            "reopen after a kill, {level}, {} MiB above the floor: ours {:.1} ms, scan + copy + fdatasync {:.1} ms, {:.2} times",
            above >> 20,
            ours.as_secs_f64() * 1e3,
            raw.as_secs_f64() * 1e3,
            ours.as_secs_f64() / raw.as_secs_f64()
        );
        fs::remove_dir_all(directory).unwrap();
    }
}

fn timed_open(directory: &Path, times: &mut Vec<Duration>) -> u64 {
    let mut store = None;
    times.push(timed(|| {
        let opened = store_at(directory);
        let partition = opened.topic("t").unwrap().partition(0).unwrap();
        assert!(partition.record(0).unwrap().is_some());
        store = Some(opened);
    }));
    let store = store.unwrap();
    assert!(store.recovery_report().is_unclean());
    let scanned = store.recovery_report().partitions[0].scanned_bytes;
    store.close().unwrap();
    scanned
}

fn idle_partitions() {
    let before = resident_bytes();
    let directory = directory("idle");
    let store = store_at(&directory);
    store.create_topic("t", TopicConfig::default().partitions(1000)).unwrap();
    for partition in store.topic("t").unwrap().partitions() {
        partition.append(RecordRef::new(Some(b"k"), Some(b"v"))).unwrap();
    }
    let memory = resident_bytes().saturating_sub(before);
    println!("1,000 idle partitions: {} KiB of memory each, {} open files", memory / 1000 / 1024, store.open_files());
    store.close().unwrap();
    let mut disk = 0;
    for partition in fs::read_dir(directory.join("store")).unwrap() {
        let path = partition.unwrap().path();
        if path.is_dir() {
            use std::os::unix::fs::MetadataExt;
            disk += fs::metadata(&path).unwrap().blocks() * 512;
            disk +=
                fs::read_dir(path).unwrap().map(|file| file.unwrap().metadata().unwrap().blocks() * 512).sum::<u64>();
        }
    }
    println!("1,000 idle partitions: {} KiB of disk each", disk / 1000 / 1024);
    fs::remove_dir_all(directory).unwrap();
}

fn resident_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/statm").unwrap();
    status.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 4096
}
