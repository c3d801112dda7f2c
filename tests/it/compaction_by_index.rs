//! Compaction that has the key index say which records are the newest.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use topiclog::clock::ManualClock;
use topiclog::io::{FaultVfs, MemoryVfs, Vfs};
use topiclog::{CleanupPolicy, Durability, Partition, Record, Store, StoreBuilder, TopicConfig, Upkeep, UpkeepEvent};

use crate::support::broker::{self, BrokerLog, kv};
use crate::support::upkeep::settle;

fn builder(vfs: Arc<dyn Vfs>) -> StoreBuilder {
    let clock = Arc::new(ManualClock::new(1_700_000_000_000));
    Store::builder().vfs(vfs).clock(clock).upkeep(Upkeep::Manual)
}

fn compacted() -> TopicConfig {
    TopicConfig::default()
        .cleanup_policy(CleanupPolicy::Compact)
        .durability(Durability::Os)
        .segment_bytes(2000)
        .preallocate_bytes(0)
        .min_cleanable_dirty_ratio(0.0)
}

fn fill(partition: &Partition, keys: usize, records: usize) {
    for n in 0..records {
        partition.append(Record::keyed(format!("k{}", n % keys), format!("v{n}"))).unwrap();
    }
}

fn fold(partition: &Partition) -> BTreeMap<String, String> {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let mut table = BTreeMap::new();
    for record in partition.read_from(partition.start()) {
        let record = record.unwrap();
        table.insert(text(record.key().unwrap()), text(record.value().unwrap()));
    }
    table
}

/// What one round did: bytes of its sources, bytes that it read, records that went.
#[derive(Clone, Copy, Debug)]
struct Round {
    source_bytes: u64,
    read_bytes: u64,
    gone: u64,
}

/// Compacts records of some keys and returns what it took; the table is the same before and after.
fn compact(change: impl FnOnce(StoreBuilder) -> StoreBuilder, keys: usize, records: usize) -> Round {
    compact_what(change, |_, partition| fill(partition, keys, records))
}

fn compact_what(change: impl FnOnce(StoreBuilder) -> StoreBuilder, append: impl FnOnce(&Store, &Partition)) -> Round {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let ear = Arc::clone(&heard);
    let builder = builder(Arc::new(MemoryVfs::new())).on_upkeep(move |event| ear.lock().unwrap().push(event.clone()));
    let store = change(builder).open("/s").unwrap();
    let partition = store.create_topic("t", compacted()).unwrap().partition(0).unwrap();
    append(&store, &partition);
    let before = fold(&partition);
    settle(&store);
    assert_eq!(fold(&partition), before);
    let mut round = Round { source_bytes: 0, read_bytes: 0, gone: 0 };
    for event in heard.lock().unwrap().iter() {
        match event {
            UpkeepEvent::CompactionBegun { bytes, .. } => round.source_bytes += bytes,
            UpkeepEvent::CompactionFinished { read_bytes, counts, .. } => {
                round.read_bytes += read_bytes;
                round.gone += counts.records_before - counts.records_after;
            }
            _ => {}
        }
    }
    round
}

/// Those that find a bug that is planted.
#[cfg(topiclog_planted)]
pub(crate) fn all() {
    what_supersedes_is_durable_before_anything_goes();
    records_behind_an_open_transaction_supersede_nothing();
}

#[test]
fn the_dirty_part_is_read_once_and_the_newest_records_beside_it() {
    let by_index = compact(|builder| builder, 10, 1000);
    let by_log = compact(|builder| builder.key_index_memory_bytes(0), 10, 1000);
    assert_eq!(by_index.source_bytes, by_log.source_bytes);
    assert_eq!(by_log.read_bytes, 2 * by_log.source_bytes);
    let newest_bytes = by_index.read_bytes - by_index.source_bytes;
    assert!((10 * 70..10 * 90).contains(&newest_bytes), "ten records: {newest_bytes} bytes");
}

#[test]
fn what_the_active_segment_supersedes_goes_as_well() {
    // All keys are in the active segment once more.
    let by_index = compact(|builder| builder, 10, 1000);
    let by_log = compact(|builder| builder.key_index_memory_bytes(0), 10, 1000);
    assert!((1..=10).contains(&(by_index.gone - by_log.gone)), "{by_index:?} {by_log:?}");
}

#[test]
fn more_newest_records_than_there_are_dirty_ones_are_not_looked_up() {
    // A new key each time: the active segment has some that the dirty part has not.
    let round = compact(|builder| builder, 1000, 1000);
    assert_eq!((round.read_bytes, round.gone), (2 * round.source_bytes, 0));
}

/// What supersedes ten small records may take any number of bytes to read.
#[test]
fn newest_records_in_large_batches_cost_no_more_than_two_passes_over_the_dirty_part() {
    let large = 20_000;
    let round = compact_what(
        |builder| builder,
        |store, partition| {
            fill(partition, 10, 40);
            // All of them in the active segment.
            store.alter_topic("t", compacted().segment_bytes(10 << 20)).unwrap();
            for n in 0..10 {
                partition.append(Record::keyed(format!("k{n}"), "v".repeat(large))).unwrap();
            }
        },
    );
    assert!(round.source_bytes > 0 && round.read_bytes < 4 * round.source_bytes + 100 + large as u64, "{round:?}");
}

#[test]
fn keys_without_room_in_memory_are_compacted_in_rounds_over_the_log() {
    let all = compact(|builder| builder, 300, 3000);
    // For the places of all keys there is room in the half of the first, for their bytes in none of both.
    for bytes in [2 * 300 * 16, 4096] {
        let some = compact(|builder| builder.compaction_memory_bytes(bytes), 300, 3000);
        assert!(some.read_bytes > all.read_bytes, "{bytes}: {some:?} {all:?}");
        assert!(some.gone > all.gone / 2, "{bytes}: {some:?} {all:?}");
    }
}

#[test]
fn what_supersedes_is_durable_before_anything_goes() {
    let disk = FaultVfs::new();
    let store = builder(Arc::new(disk.clone())).open("/s").unwrap();
    let partition = store.create_topic("t", compacted()).unwrap().partition(0).unwrap();
    fill(&partition, 10, 200);
    let before = fold(&partition);
    assert!(partition.durable_end() < partition.end());
    settle(&store);
    assert!(fold(&partition) == before && partition.read_from(0).count() < 50);
    let end = partition.end();
    disk.kill();
    drop((partition, store));
    let store = builder(Arc::new(FaultVfs::from_image(&disk.durable_image()))).open("/s").unwrap();
    let partition = store.topic("t").unwrap().partition(0).unwrap();
    let keys = |table: BTreeMap<String, String>| table.into_keys().collect::<Vec<_>>();
    assert_eq!(keys(fold(&partition)), keys(before.clone()), "no key is lost");
    assert_eq!((partition.end(), fold(&partition)), (end, before));
}

#[test]
fn records_behind_an_open_transaction_supersede_nothing() {
    let log = BrokerLog::new(0)
        .batch(0, &[kv("a", "1")])
        .batch(1, &[kv("b", "1")])
        .batch(2, &[kv("b", "2")])
        .roll(3)
        .in_txn(3, 5, &[kv("c", "open")])
        .batch(4, &[kv("a", "2")]);
    let bench = broker::Bench::adopt(&log, broker::config());
    bench.store.topic("t").unwrap().get("a").unwrap().unwrap();
    bench.settle();
    assert_eq!(bench.offsets(topiclog::Isolation::Uncommitted), [0, 2, 3, 4]);
    assert_eq!(bench.offsets(topiclog::Isolation::Committed), [0, 2], "a reader of committed data still finds a");
}

#[test]
fn records_that_are_younger_than_the_lag_supersede_nothing() {
    let store = builder(Arc::new(MemoryVfs::new())).open("/s").unwrap();
    let topic = store.create_topic("t", compacted().segment_bytes(300).min_compaction_lag_ms(1000)).unwrap();
    let now = store.clock().now_ms();
    for (n, age) in [5000, 5000, 0, 0].into_iter().enumerate() {
        topic.append(Record::keyed("k", format!("{n}{}", "v".repeat(200))).timestamp_ms(now - age)).unwrap();
    }
    topic.get("k").unwrap().unwrap();
    settle(&store);
    let partition = topic.partition(0).unwrap();
    let left: Vec<i64> = partition.read_from(0).map(|record| record.unwrap().offset().get()).collect();
    assert_eq!(left, [1, 2, 3], "the second is the newest of those that are old enough");
}

/// The index forgets what lies below the log start; the segment there still has it, and once that was taken for an index that is
/// wrong.
#[test]
fn records_below_the_log_start_are_not_missed_in_the_index() {
    let store = builder(Arc::new(MemoryVfs::new())).open("/s").unwrap();
    let topic = store.create_topic("t", compacted().min_cleanable_dirty_ratio(1.0)).unwrap();
    let partition = topic.partition(0).unwrap();
    fill(&partition, 1000, 50);
    fill(&partition, 10, 100);
    settle(&store);
    partition.delete_records(10).unwrap();
    store.alter_topic("t", compacted()).unwrap();
    settle(&store);
    assert_eq!((partition.start().get(), fold(&partition).len()), (10, 50));
    assert!(partition.clean_end().get() > 50);
}
