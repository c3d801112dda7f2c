//! Groups and their readers beside the raw limit of the same work: how soon an append is seen, what a consumer costs over a
//! scan, what a commit costs over an append, and how long many groups take to open.
//!
//! `cargo bench --all-features --bench groups [-- NAME..]` runs all, or those whose name contains a word given.
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::disallowed_methods, reason = "a bench prints and times")]

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use topiclog::client::OffsetAndMetadata;
use topiclog::group::{CommitOptions, Groups};
use topiclog::{
    AppendOptions, CleanupPolicy, Consumer, Durability, Producer, ReadLevel, ReadOptions, Record, Store, Topic,
    TopicConfig, TopicPartition, Upkeep,
};

#[allow(dead_code, reason = "each bench uses a part of it")]
mod support;

use support::{ROUNDS, directory, median, resident_anonymous_bytes};

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    let benches: [(&str, fn()); 6] = [
        ("tail_spin", tail_spinning),
        ("tail_sleep", tail_sleeping),
        ("consume", consume),
        ("commit", commit),
        ("open", open_many),
        ("producer", produce),
    ];
    for (name, bench) in benches {
        if words.is_empty() || words.iter().any(|word| name.contains(word.as_str())) {
            bench();
        }
    }
}

fn open(directory: &Path) -> Store {
    Store::builder().upkeep(Upkeep::Manual).open(directory.join("store")).unwrap()
}

fn topic(store: &Store, name: &str) -> Topic {
    store.create_topic(name, TopicConfig::default().durability(Durability::Os)).unwrap()
}

/// Appends seen by a tail, one at a time.
const SEEN: usize = 20_000;
const SEEN_ASLEEP: usize = 4_000;

/// When each append began, and how many were seen.
struct Shared {
    base: Instant,
    seen: AtomicU64,
}

impl Shared {
    fn now(&self) -> u64 {
        self.base.elapsed().as_nanos() as u64
    }

    /// Until the other side has seen so many.
    fn wait_seen(&self, count: u64) {
        while self.seen.load(Ordering::Acquire) < count {
            std::hint::spin_loop();
        }
    }
}

/// Times from the begin of an append, which `put` does, to the moment that `next` has returned it: `put` gets the time that is to
/// be found, `next` returns it.
fn seen_after(
    count: usize,
    rest: Duration,
    mut put: impl FnMut(u64),
    mut next: impl FnMut() -> u64 + Send,
) -> Vec<Duration> {
    let shared = Shared { base: Instant::now(), seen: AtomicU64::new(0) };
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| {
            let mut times = Vec::with_capacity(count);
            for number in 1..=count as u64 {
                let began = next();
                times.push(Duration::from_nanos(shared.now() - began));
                shared.seen.store(number, Ordering::Release);
            }
            times
        });
        for number in 0..count as u64 {
            shared.wait_seen(number);
            // The reader is to be where it waits.
            let until = Instant::now() + rest;
            while Instant::now() < until {
                std::hint::spin_loop();
            }
            put(shared.now());
        }
        reading.join().unwrap()
    })
}

fn p50(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

/// A record of 100 B whose first bytes are a time.
fn stamped(time: u64) -> [u8; 100] {
    let mut value = [b'v'; 100];
    value[..8].copy_from_slice(&time.to_be_bytes());
    value
}

fn stamp(value: &[u8]) -> u64 {
    u64::from_be_bytes(value[..8].try_into().unwrap())
}

fn tail(wait: Duration, rest: Duration, count: usize) -> Duration {
    let directory = directory("tail");
    let store = open(&directory);
    let topic = topic(&store, "t");
    let mut consumer = Consumer::join(&store, "g", ["t"]).unwrap();
    consumer.poll(Duration::ZERO).unwrap();
    let next = move || loop {
        if let Some(one) = consumer.poll(wait).unwrap().first() {
            return stamp(one.record.value().unwrap());
        }
    };
    let put = |time| drop(topic.append(Record::of_value(stamped(time).to_vec())).unwrap());
    let found = p50(seen_after(count, rest, put, next));
    store.close().unwrap();
    fs::remove_dir_all(directory).unwrap();
    found
}

/// The same bytes by `write(2)`, published by an atomic, and read from a map by one who spins.
fn raw_spinning() -> Duration {
    let directory = directory("raw_tail");
    let file = File::options().read(true).write(true).create(true).truncate(true).open(directory.join("f")).unwrap();
    file.set_len(SEEN as u64 * 128).unwrap();
    let map = support::map(&file);
    let end = AtomicU64::new(0);
    let (mut at, mut position) = (0_usize, 0_u64);
    let next = || {
        while end.load(Ordering::Acquire) <= at as u64 {
            std::hint::spin_loop();
        }
        let time = stamp(&map[at..at + 100]);
        at += 128;
        time
    };
    let put = |time| {
        file.write_all_at(&stamped(time), position).unwrap();
        position += 128;
        end.store(position, Ordering::Release);
    };
    let found = p50(seen_after(SEEN, Duration::ZERO, put, next));
    fs::remove_dir_all(directory).unwrap();
    found
}

/// A thread that waits for a condition, and one that meets it.
fn raw_sleeping() -> Duration {
    let (last, changed) = (Mutex::new(0), Condvar::new());
    let mut seen = 0;
    let next = || {
        let mut time = last.lock().unwrap();
        while *time == seen {
            time = changed.wait(time).unwrap();
        }
        seen = *time;
        seen
    };
    let put = |time| {
        *last.lock().unwrap() = time;
        changed.notify_all();
    };
    p50(seen_after(SEEN_ASLEEP, Duration::from_micros(100), put, next))
}

fn tail_spinning() {
    let (mut ours, mut raws) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        ours.push(tail(Duration::ZERO, Duration::ZERO, SEEN));
        raws.push(raw_spinning());
    }
    let (ours, raw) = (median(ours), median(raws));
    let times = ours.as_secs_f64() / raw.as_secs_f64();
    println!("append to seen, spinning: p50 ours {ours:?}, write and map read {raw:?}, {times:.2} times");
}

/// Most of it is what the machine takes to wake a processor, as the condition variable shows. A virtual one whose idle processors
/// halt at once takes tens of microseconds; where its kernel lets them look around first (`guest_halt_poll_ns` of `haltpoll`,
/// 200,000 unless somebody changed it), a few. So it is measured once more with processors that are asked not to halt, as far
/// as whoever runs this may ask.
fn tail_sleeping() {
    sleeping("as the machine is");
    if let Ok(mut latency) = File::options().write(true).open("/dev/cpu_dma_latency") {
        // In microseconds, as long as the file is open.
        latency.write_all(&0_i32.to_ne_bytes()).unwrap();
        sleeping("with processors that do not halt");
    }
}

fn sleeping(how: &str) {
    let (mut ours, mut raws) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        ours.push(tail(Duration::from_secs(3600), Duration::from_micros(100), SEEN_ASLEEP));
        raws.push(raw_sleeping());
    }
    let (ours, raw) = (median(ours), median(raws));
    let times = ours.as_secs_f64() / raw.as_secs_f64();
    println!("append to seen, sleeping, {how}: p50 ours {ours:?}, a condition variable {raw:?}, {times:.2} times");
}

/// A second pass over a million records of 100 B: owned records of a reader, and of a member that commits at `Os` after each 1,000.
fn consume() {
    const RECORDS: usize = 1_000_000;
    let directory = directory("consume");
    let store = open(&directory);
    let topic = topic(&store, "t");
    let batch: Vec<Record> = (0..100).map(|_| Record::of_value(vec![b'v'; 100])).collect();
    for _ in 0..RECORDS / 100 {
        topic.partition(0).unwrap().append_batch(&batch).unwrap();
    }
    let scan = || {
        let start = Instant::now();
        let mut bytes = 0;
        for record in topic.partition(0).unwrap().reader(0, &ReadOptions::new()).unwrap() {
            bytes += record.unwrap().value().map_or(0, <[u8]>::len);
        }
        assert_eq!(bytes, RECORDS * 100);
        start.elapsed()
    };
    scan();
    let (mut ours, mut scans) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let builder = Consumer::builder(&store).group(&format!("g{round}")).topic("t").records_max(1000);
        let builder = builder.reset(topiclog::client::Reset::Earliest).commit_durability(Durability::Os);
        let mut consumer = builder.open().unwrap();
        let start = Instant::now();
        let (mut bytes, mut count) = (0, 0);
        while count < RECORDS {
            let records = consumer.poll(Duration::ZERO).unwrap();
            count += records.len();
            bytes += records.iter().map(|one| one.record.value().map_or(0, <[u8]>::len)).sum::<usize>();
            consumer.commit().unwrap();
        }
        ours.push(start.elapsed());
        assert_eq!(bytes, RECORDS * 100);
        scans.push(scan());
    }
    let (ours, scan) = (median(ours), median(scans));
    let per = |time: Duration| time.as_nanos() as f64 / RECORDS as f64;
    println!(
        "consume with a commit each 1,000: {:.1} ns a record, scan of owned records {:.1} ns, {:.2} of the scan",
        per(ours),
        per(scan),
        scan.as_secs_f64() / ours.as_secs_f64(),
    );
    store.close().unwrap();
    fs::remove_dir_all(directory).unwrap();
}

/// Records of 100 B sent one by one, the answers dropped, until all are stored; and the same as batches made by hand.
fn produce() {
    const RECORDS: usize = 300_000;
    let directory = directory("produce");
    let store = open(&directory);
    let topic = topic(&store, "t");
    let partition = topic.partition(0).unwrap();
    // As many as a producer puts into a batch.
    let in_batch = (16 << 10) / 164;
    let (mut ours, mut raws) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let producer = Producer::builder(&store).open().unwrap();
        let start = Instant::now();
        for _ in 0..RECORDS {
            drop(producer.send("t", Record::of_value(vec![b'v'; 100])).unwrap());
        }
        producer.close(Duration::MAX).unwrap();
        ours.push(start.elapsed());
        let start = Instant::now();
        let mut batch = Vec::new();
        for _ in 0..RECORDS {
            batch.push(Record::of_value(vec![b'v'; 100]));
            if batch.len() == in_batch {
                partition.append_batch(&batch).unwrap();
                batch.clear();
            }
        }
        raws.push(start.elapsed());
    }
    let (ours, raw) = (median(ours), median(raws));
    let per = |time: Duration| time.as_nanos() as f64 / RECORDS as f64;
    println!(
        "produce at Os, one by one: {:.0} ns a record, batches made by hand {:.0} ns, {:.2} times",
        per(ours),
        per(raw),
        ours.as_secs_f64() / raw.as_secs_f64(),
    );
    store.close().unwrap();
    fs::remove_dir_all(directory).unwrap();
}

/// Commits beside appends of the same bytes to a compacted topic.
fn commit() {
    const COUNT: usize = 20_000;
    for durability in [Durability::Os, Durability::Sync] {
        let count = if durability == Durability::Os { COUNT } else { COUNT / 50 };
        let directory = directory("commit");
        let store = open(&directory);
        topic(&store, "t");
        let groups = Groups::open(&store).unwrap();
        let place = store.topic("t").unwrap().partition(0).unwrap().id().clone();
        // Of the durability that `__consumer_offsets` has, so that both are synced behind as much.
        let config = TopicConfig::default().cleanup_policy(CleanupPolicy::Compact);
        let beside = store.create_topic("c", config).unwrap();
        let options = CommitOptions::new().durability(durability);
        let append = AppendOptions::new().durability(durability);
        let commit = |offset: i64| {
            groups.commit_all(&[("g", &[(place.clone(), OffsetAndMetadata::new(offset))])], &options).unwrap();
        };
        commit(0);
        let number = groups.partition_of("g").unwrap();
        let offsets = store.topic("__consumer_offsets").unwrap().partition(number).unwrap();
        let latest = ReadOptions::new().level(ReadLevel::Latest);
        let record = offsets.reader(0, &latest).unwrap().next().unwrap().unwrap();
        let (key, value) = (record.key().unwrap().to_vec(), record.value().unwrap().to_vec());
        let (mut ours, mut raws) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let start = Instant::now();
            (0..count as i64).for_each(commit);
            ours.push(start.elapsed());
            let start = Instant::now();
            for _ in 0..count {
                beside.append_with(Record::keyed(key.clone(), value.clone()), &append).unwrap();
            }
            raws.push(start.elapsed());
        }
        let (ours, raw) = (median(ours), median(raws));
        println!(
            "commit at {durability:?}: {:.2} us, an append of its bytes {:.2} us, {:.2} times",
            ours.as_secs_f64() * 1e6 / count as f64,
            raw.as_secs_f64() * 1e6 / count as f64,
            ours.as_secs_f64() / raw.as_secs_f64(),
        );
        store.close().unwrap();
        fs::remove_dir_all(directory).unwrap();
    }
}

/// 10,000 groups with offsets in 16 partitions each, from a store that was closed in order.
fn open_many() {
    const GROUPS: usize = 10_000;
    let directory = directory("open_many");
    let store = open(&directory);
    let topic = store.create_topic("orders", TopicConfig::default().partitions(16)).unwrap();
    let places: Vec<TopicPartition> = topic.partitions().map(|partition| partition.id().clone()).collect();
    let groups = Groups::open(&store).unwrap();
    let options = CommitOptions::new().durability(Durability::Os);
    for number in 0..GROUPS {
        let offsets: Vec<_> =
            places.iter().map(|place| (place.clone(), OffsetAndMetadata::new(number as i64))).collect();
        groups.commit_all(&[(&format!("group-{number:05}"), &offsets)], &options).unwrap();
    }
    store.close().unwrap();
    drop((groups, topic, store));
    let (mut times, mut memory) = (Vec::new(), 0);
    for _ in 0..ROUNDS {
        let before = resident_anonymous_bytes();
        let start = Instant::now();
        let store = open(&directory);
        let groups = Groups::open(&store).unwrap();
        assert_eq!(groups.list().unwrap().len(), GROUPS);
        times.push(start.elapsed());
        memory = memory.max(resident_anonymous_bytes().saturating_sub(before));
        assert_eq!(groups.offsets("group-00007").unwrap().len(), 16);
        store.close().unwrap();
    }
    let time = median(times);
    println!("open 10,000 groups x 16 partitions: {:.0} ms, {} MiB", time.as_secs_f64() * 1e3, memory >> 20);
    fs::remove_dir_all(directory).unwrap();
}
