//! Compacted topics beside the raw limit, or the peer, of the same work: compaction beside a cleaner made by hand, `get` beside
//! redb's, appends with the key index beside appends without it, and what a compaction costs the appends beside it.
//!
//! `cargo bench --all-features --bench keyed [-- NAME..]` runs all, or those whose name contains a word given.
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::disallowed_methods, reason = "a bench prints and times")]

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use redb::{ReadableDatabase, TableDefinition};
use topiclog::record::RecordRef;
use topiclog::{CleanupPolicy, Compression, Durability, ReadOptions, Store, Topic, TopicConfig, Upkeep};

#[allow(dead_code, reason = "each bench uses a part of it")]
mod support;

use support::{ROUNDS, directory, median, resident_anonymous_bytes, varint};

const KEYS: usize = 100_000;
const RECORDS: usize = 1_000_000;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    let benches: [(&str, fn()); 6] = [
        ("batches", in_large_batches),
        ("compact", compact),
        ("get", get),
        ("own_write", get_own_write),
        ("append", append),
        ("append_p99", append_beside_compaction),
    ];
    for (name, bench) in benches {
        if words.is_empty() || words.iter().any(|word| name.contains(word.as_str())) {
            bench();
        }
    }
}

fn config() -> TopicConfig {
    TopicConfig::default()
        .cleanup_policy(CleanupPolicy::Compact)
        .durability(Durability::Os)
        .segment_ms(i64::MAX)
        .segment_bytes(64 << 20)
        .min_cleanable_dirty_ratio(0.0)
}

fn open(directory: &Path) -> Store {
    Store::builder().upkeep(Upkeep::Manual).open(directory.join("store")).unwrap()
}

fn key(number: usize) -> [u8; 8] {
    // Spread, so that neighbours in the log are no neighbours by key.
    (number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()
}

/// Records of 100 B over the keys, in batches of 100.
fn fill(topic: &Topic, records: usize, keys: usize) {
    let value = [b'v'; 92];
    let mut at = 0;
    while at < records {
        let names: Vec<[u8; 8]> = (at..at + 100).map(|number| key(number * 7919 % keys)).collect();
        let batch: Vec<RecordRef<'_>> =
            names.iter().map(|name| RecordRef::new(Some(&name[..]), Some(&value[..]))).collect();
        topic.partition(0).unwrap().append_batch(&batch).unwrap();
        at += 100;
    }
}

/// Ticks until the closed segments are sealed, but none is compacted yet.
fn settle(store: &Store) {
    while !store.tick().unwrap().is_idle() {}
}

fn compact() {
    // By the key index, and without one.
    for (how, index_bytes) in [("by the key index", 256 << 20), ("by a pass over the log", 0)] {
        compact_by(how, index_bytes);
    }
}

fn compact_by(how: &str, index_bytes: usize) {
    let (mut ours, mut raws, mut memory) = (Vec::new(), Vec::new(), 0);
    let (mut makings, mut index_memory) = (Vec::new(), 0);
    for _ in 0..ROUNDS {
        let directory = directory("compact");
        let builder = Store::builder().upkeep(Upkeep::Manual).key_index_memory_bytes(index_bytes);
        let store = builder.open(directory.join("store")).unwrap();
        // Sealed, but too clean to be compacted.
        let topic = store.create_topic("t", config().min_cleanable_dirty_ratio(1.0)).unwrap();
        fill(&topic, RECORDS, KEYS);
        if index_bytes > 0 {
            // Once for the life of a log; from then on appends keep it up to date.
            let start = Instant::now();
            topic.get(key(1)).unwrap().unwrap();
            makings.push(start.elapsed());
        }
        // All of it closed, so that both have the same to do.
        store.alter_topic("t", config().min_cleanable_dirty_ratio(1.0).segment_bytes(1 << 20)).unwrap();
        topic.append(RecordRef::new(Some(b"behind"), Some(b"v"))).unwrap();
        settle(&store);
        raws.push(raw_cleaner(&directory.join("store/t-0"), &directory.join("raw")));
        store.alter_topic("t", config()).unwrap();
        let before = resident_anonymous_bytes();
        let start = Instant::now();
        let mut most = 0;
        loop {
            let step = store.tick().unwrap();
            most = most.max(resident_anonymous_bytes().saturating_sub(before));
            if step.is_idle() {
                break;
            }
        }
        ours.push(start.elapsed());
        memory = memory.max(most);
        if let Some(stats) = topic.key_index_stats(0).unwrap() {
            index_memory = stats.memory_bytes;
        }
        store.close().unwrap();
        fs::remove_dir_all(directory).unwrap();
    }
    let (ours, raw) = (median(ours), median(raws));
    println!(
        "compact 1,000,000 x 100 B over 100,000 keys, {how}: ours {:.0} ms, raw cleaner {:.0} ms, {:.2} times, {} MiB of added memory",
        ours.as_secs_f64() * 1e3,
        raw.as_secs_f64() * 1e3,
        ours.as_secs_f64() / raw.as_secs_f64(),
        memory >> 20,
    );
    if !makings.is_empty() {
        println!(
            "  the index had been made of the log before, in {:.0} ms, and takes {} MiB",
            median(makings).as_secs_f64() * 1e3,
            index_memory >> 20
        );
    }
}

/// Sees the offset, the key and the bytes of each record.
type Visit<'a> = &'a mut dyn FnMut(u64, &[u8], &[u8]);

/// The least that a cleaner does: a pass over the closed segments with their CRCs that notes the newest offset of each key, a
/// copy of the batches with what survives, an fsync.
fn raw_cleaner(partition: &Path, copy: &Path) -> Duration {
    let mut logs: Vec<PathBuf> = fs::read_dir(partition)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "log"))
        .collect();
    logs.sort();
    logs.pop();
    let start = Instant::now();
    let mut newest: HashMap<Vec<u8>, u64> = HashMap::new();
    let each = |bytes: &[u8], visit: Visit<'_>| {
        let mut at = 0;
        while at + 61 <= bytes.len() {
            let length = 12 + u32::from_be_bytes(bytes[at + 8..at + 12].try_into().unwrap()) as usize;
            let batch = &bytes[at..at + length];
            assert_eq!(crc_fast::crc32_iscsi(&batch[21..]), u32::from_be_bytes(batch[17..21].try_into().unwrap()));
            let base = u64::from_be_bytes(batch[..8].try_into().unwrap());
            let (mut place, mut offset) = (61, base);
            while place < batch.len() {
                let begin = place;
                let size = varint(batch, &mut place) as usize;
                let end = place + size;
                place += 1;
                varint(batch, &mut place);
                varint(batch, &mut place);
                let key = varint(batch, &mut place) as usize;
                visit(offset, &batch[place..place + key], &batch[begin..end]);
                (place, offset) = (end, offset + 1);
            }
            at += length;
        }
    };
    for log in &logs {
        let bytes = fs::read(log).unwrap();
        each(&bytes, &mut |offset, key, _| match newest.get_mut(key) {
            Some(known) => *known = offset,
            None => drop(newest.insert(key.to_vec(), offset)),
        });
    }
    let mut out = std::io::BufWriter::with_capacity(1 << 20, File::create(copy).unwrap());
    for log in &logs {
        let bytes = fs::read(log).unwrap();
        each(&bytes, &mut |offset, key, record| {
            if newest[key] == offset {
                out.write_all(record).unwrap();
            }
        });
    }
    out.into_inner().unwrap().sync_all().unwrap();
    start.elapsed()
}

fn get() {
    const MANY: usize = 1_000_000;
    let directory = directory("get");
    let store = open(&directory);
    let topic = store.create_topic("t", config().segment_bytes(1 << 30)).unwrap();
    // One by one, as upserts come.
    let value = [b'v'; 92];
    for number in 0..MANY {
        topic.append(RecordRef::new(Some(&key(number * 7919 % MANY)[..]), Some(&value[..]))).unwrap();
    }
    let table: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("t");
    let database = redb::Database::builder().set_cache_size(1 << 30).create(directory.join("redb")).unwrap();
    let write = database.begin_write().unwrap();
    {
        let mut open = write.open_table(table).unwrap();
        for number in 0..MANY {
            open.insert(&key(number)[..], &[b'v'; 92][..]).unwrap();
        }
    }
    write.commit().unwrap();
    let start = Instant::now();
    topic.get(key(1)).unwrap().unwrap();
    println!("key index of 1,000,000 keys made by reading the log: {:.0} ms", start.elapsed().as_secs_f64() * 1e3);
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let numbers: Vec<usize> = (0..20_000).map(|n| (n * 104_729 + round * 15_485_863) % MANY).collect();
        let read = database.begin_read().unwrap();
        let open = read.open_table(table).unwrap();
        theirs.push(median(each(&numbers, |number| {
            assert_eq!(open.get(&key(number)[..]).unwrap().unwrap().value().len(), 92);
        })));
        ours.push(median(each(&numbers, |number| {
            assert_eq!(topic.get(key(number)).unwrap().unwrap().value().unwrap().len(), 92);
        })));
    }
    let (ours, theirs) = (median(ours), median(theirs));
    let stats = topic.key_index_stats(0).unwrap().unwrap();
    println!(
        "get(key) p50 of 1,000,000 keys: ours {} ns, redb {} ns, {:.2} times; {:.1} bytes of memory a key",
        ours.as_nanos(),
        theirs.as_nanos(),
        ours.as_secs_f64() / theirs.as_secs_f64(),
        stats.memory_bytes as f64 / stats.entries as f64,
    );
    drop(topic);
    store.close().unwrap();
    let store = open(&directory);
    let start = Instant::now();
    store.topic("t").unwrap().get(key(1)).unwrap().unwrap();
    println!("the same index from its file: {:.0} ms", start.elapsed().as_secs_f64() * 1e3);
    drop((store, database));
    fs::remove_dir_all(directory).unwrap();
}

/// An append and at once a `get` of its key, as a service does that reads its own writes; beside the same with redb, where a
/// commit that is not durable takes the place of the append.
fn get_own_write() {
    const MANY: usize = 20_000;
    let directory = directory("own");
    let store = open(&directory);
    let topic = store.create_topic("t", config().segment_bytes(1 << 30)).unwrap();
    let table: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("t");
    let database = redb::Database::create(directory.join("redb")).unwrap();
    let value = [b'v'; 92];
    let numbers: Vec<usize> = (0..MANY).collect();
    let ours = median(each(&numbers, |number| {
        topic.append(RecordRef::new(Some(&key(number)[..]), Some(&value[..]))).unwrap();
        assert_eq!(topic.get(key(number)).unwrap().unwrap().value().unwrap().len(), 92);
    }));
    let theirs = median(each(&numbers, |number| {
        let mut write = database.begin_write().unwrap();
        write.set_durability(redb::Durability::None).unwrap();
        write.open_table(table).unwrap().insert(&key(number)[..], &value[..]).unwrap();
        write.commit().unwrap();
        let open = database.begin_read().unwrap().open_table(table).unwrap();
        assert_eq!(open.get(&key(number)[..]).unwrap().unwrap().value().len(), 92);
    }));
    println!(
        "append and get of its key, p50: ours {} ns, redb {} ns, {:.2} times",
        ours.as_nanos(),
        theirs.as_nanos(),
        ours.as_secs_f64() / theirs.as_secs_f64()
    );
    drop((topic, store, database));
    fs::remove_dir_all(directory).unwrap();
}

/// Keys that come in batches of 1,000: how long a listing of the newest records takes, and upkeep of the index behind appends,
/// beside a scan of owned records.
fn in_large_batches() {
    const BATCH: usize = 1000;
    for compression in [Compression::None, Compression::Lz4] {
        let directory = directory("batches");
        let store = open(&directory);
        let topic = store.create_topic("t", config().compression(compression)).unwrap();
        let fill = |records: usize| {
            let numbers: Vec<usize> = (0..records).collect();
            for numbers in numbers.chunks(BATCH) {
                let names: Vec<[u8; 8]> = numbers.iter().map(|number| key(number % KEYS)).collect();
                let value = [b'v'; 92];
                let batch: Vec<RecordRef<'_>> =
                    names.iter().map(|name| RecordRef::new(Some(&name[..]), Some(&value[..]))).collect();
                topic.partition(0).unwrap().append_batch(&batch).unwrap();
            }
        };
        fill(KEYS);
        assert_eq!(topic.latest(0).unwrap().count(), KEYS);
        let partition = topic.partition(0).unwrap();
        let (mut lists, mut scans, mut follows) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let start = Instant::now();
            let newest: Vec<_> = topic.latest(0).unwrap().map(Result::unwrap).collect();
            lists.push(start.elapsed());
            let from = partition.end().get() - KEYS as i64;
            let start = Instant::now();
            let all: Vec<_> = partition.reader(from, &ReadOptions::new()).unwrap().map(Result::unwrap).collect();
            scans.push(start.elapsed());
            assert_eq!(newest.len(), all.len());
            fill(KEYS);
            let start = Instant::now();
            while topic.key_index_stats(0).unwrap().is_some_and(|stats| stats.waiting > 0) {
                store.tick().unwrap();
            }
            follows.push(start.elapsed());
        }
        let each = |times: Vec<Duration>| median(times).as_secs_f64() * 1e9 / KEYS as f64;
        println!(
            "batches of {BATCH}, {compression:?}: a listing {:.0} ns a record, upkeep of the index {:.0} ns, a scan {:.0} ns",
            each(lists),
            each(follows),
            each(scans),
        );
        store.close().unwrap();
        fs::remove_dir_all(directory).unwrap();
    }
}

fn each(numbers: &[usize], mut call: impl FnMut(usize)) -> Vec<Duration> {
    let time = |number: &usize| {
        let start = Instant::now();
        call(*number);
        start.elapsed()
    };
    numbers.iter().map(time).collect()
}

/// Appends one by one, with the index in use and with no memory for it.
fn append() {
    const EACH: usize = 300_000;
    let value = [b'v'; 92];
    let run = |with_index: bool| {
        let directory = directory("append");
        let index_bytes = if with_index { 256 << 20 } else { 0 };
        let store = Store::builder().key_index_memory_bytes(index_bytes).open(directory.join("store")).unwrap();
        let topic = store.create_topic("t", config().segment_bytes(1 << 30).min_cleanable_dirty_ratio(1.0)).unwrap();
        fill(&topic, KEYS, KEYS);
        if with_index {
            topic.get(key(1)).unwrap().unwrap();
        }
        let start = Instant::now();
        for number in 0..EACH {
            topic.append(RecordRef::new(Some(&key(number * 31 % KEYS)[..]), Some(&value[..]))).unwrap();
        }
        let time = start.elapsed();
        drop(topic);
        drop(store);
        fs::remove_dir_all(directory).unwrap();
        time
    };
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        without.push(run(false));
        with.push(run(true));
    }
    let (with, without) = (median(with), median(without));
    let each = |time: Duration| time.as_secs_f64() * 1e9 / EACH as f64;
    println!(
        "append one by one, 100 B, 100,000 keys: with the index {:.0} ns, without {:.0} ns, {:.2} of the rate",
        each(with),
        each(without),
        without.as_secs_f64() / with.as_secs_f64()
    );
}

/// The slowest appends, one by one, alone and while another thread compacts.
fn append_beside_compaction() {
    let value = [b'v'; 92];
    let run = |compacting: bool| {
        let directory = directory("beside");
        let store = open(&directory);
        let ratio = if compacting { 0.0 } else { 1.0 };
        let topic = store.create_topic("t", config().min_cleanable_dirty_ratio(1.0)).unwrap();
        fill(&topic, RECORDS, KEYS);
        settle(&store);
        store.alter_topic("t", config().min_cleanable_dirty_ratio(ratio)).unwrap();
        let (stop, counts, mut times) = (AtomicBool::new(false), AtomicBool::new(!compacting), Vec::new());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // Appends count between the first step that compacts and the end of the round.
                while !stop.load(Ordering::Acquire) {
                    let step = store.tick().unwrap();
                    if compacting {
                        counts.store(step.compacted_bytes > 0 && step.compactions == 0, Ordering::Release);
                        if step.compactions > 0 {
                            stop.store(true, Ordering::Release);
                        }
                    }
                }
            });
            let start = Instant::now();
            for number in 0.. {
                if stop.load(Ordering::Acquire) || start.elapsed() > Duration::from_millis(400) {
                    break;
                }
                let before = Instant::now();
                topic.append(RecordRef::new(Some(&key(number % KEYS)[..]), Some(&value[..]))).unwrap();
                if counts.load(Ordering::Acquire) {
                    times.push(before.elapsed());
                }
            }
            stop.store(true, Ordering::Release);
        });
        assert!(times.len() > 5000, "only {} appends count", times.len());
        drop(topic);
        drop(store);
        fs::remove_dir_all(directory).unwrap();
        times.sort_unstable();
        times[times.len() * 99 / 100]
    };
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        without.push(run(false));
        with.push(run(true));
    }
    let (with, without) = (median(with), median(without));
    println!(
        "append one by one, p99: while a compaction runs {} ns, without {} ns, {:.2} times",
        with.as_nanos(),
        without.as_nanos(),
        with.as_secs_f64() / without.as_secs_f64()
    );
}
