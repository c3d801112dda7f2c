//! The key index: the newest record of each key, at once.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use topiclog::clock::ManualClock;
use topiclog::io::{MemoryVfs, OpenMode, Vfs};
use topiclog::{CleanupPolicy, Durability, Error, Record, Store, StoreBuilder, Topic, TopicConfig, Upkeep};

use crate::support::simulate::Random;

fn builder(vfs: &MemoryVfs) -> StoreBuilder {
    let clock = Arc::new(ManualClock::new(1_700_000_000_000));
    Store::builder().vfs(Arc::new(vfs.clone())).clock(clock).upkeep(Upkeep::Manual)
}

fn config() -> TopicConfig {
    TopicConfig::default()
        .cleanup_policy(CleanupPolicy::Compact)
        .durability(Durability::Os)
        .segment_bytes(1000)
        .min_cleanable_dirty_ratio(0.0)
        .delete_retention_ms(0)
}

fn read(vfs: &MemoryVfs, path: &str) -> Vec<u8> {
    let file = vfs.open(Path::new(path), OpenMode::Read).unwrap();
    let mut bytes = vec![0; file.len().unwrap() as usize];
    assert_eq!(file.read_at(&mut bytes, 0).unwrap(), bytes.len());
    bytes
}

fn write(vfs: &MemoryVfs, path: &str, bytes: &[u8]) {
    let file = vfs.open(Path::new(path), OpenMode::Write).unwrap();
    assert_eq!(file.write_at(bytes, 0).unwrap(), bytes.len());
}

fn text(bytes: Option<&[u8]>) -> String {
    String::from_utf8(bytes.unwrap().to_vec()).unwrap()
}

/// What `get` answers for each key, and what `latest` lists, must both be the table.
fn check(topic: &Topic, table: &BTreeMap<String, String>, keys: usize) {
    for key in (0..keys).map(|key| format!("k{key}")) {
        let found = topic.get(&key).unwrap().map(|record| text(record.value()));
        assert_eq!(found.as_ref(), table.get(&key), "{key}");
        assert_eq!(topic.contains(&key).unwrap(), table.contains_key(&key));
    }
    let mut listed = BTreeMap::new();
    for partition in topic.partitions() {
        let latest = topic.latest(partition.id().partition).unwrap();
        assert_eq!(latest.position(), partition.end());
        for record in latest {
            let record = record.unwrap();
            let before = listed.insert(text(record.key()), text(record.value()));
            assert_eq!(before, None, "a key came twice");
        }
    }
    assert_eq!(&listed, table);
}

#[test]
fn a_key_leads_to_its_newest_record_through_everything_that_may_happen() {
    let seed = std::env::var("TOPICLOG_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    let mut looked = 0;
    for run in 0..60 {
        let mut random = Random(seed + run);
        let vfs = MemoryVfs::new();
        let mut store = builder(&vfs).open("/s").unwrap();
        let partitions = 1 + random.below(2) as u32;
        let mut topic = store.create_topic("t", config().partitions(partitions)).unwrap();
        let mut table = BTreeMap::new();
        let keys = 1 + random.below(40);
        for step in 0..60 {
            match random.below(12) {
                0 => while !store.tick().unwrap().is_idle() {},
                1 => drop(store.tick().unwrap()),
                2 => {
                    drop(topic);
                    store.close().unwrap();
                    store = builder(&vfs).open("/s").unwrap();
                    topic = store.topic("t").unwrap();
                }
                3 => {
                    // Without a close: the file of the index is older than the log.
                    drop((topic, store));
                    store = builder(&vfs).open("/s").unwrap();
                    topic = store.topic("t").unwrap();
                }
                4 => {
                    looked += 1;
                    check(&topic, &table, keys);
                }
                _ => {
                    for n in 0..1 + random.below(10) {
                        let key = format!("k{}", random.below(keys));
                        if random.below(4) == 0 {
                            topic.append(Record::tombstone(key.clone())).unwrap();
                            table.remove(&key);
                        } else {
                            let value = format!("{run} {step} {n}");
                            topic.append(Record::keyed(key.clone(), value.clone())).unwrap();
                            table.insert(key, value);
                        }
                    }
                }
            }
        }
        check(&topic, &table, keys);
    }
    tell!("TOPICLOG_SEED={seed} key index against a map: 60 runs, {looked} looks in between");
    assert!(looked > 100);
}

#[test]
fn the_first_use_after_a_close_reads_a_file_and_not_the_log() {
    let vfs = MemoryVfs::new();
    let store = builder(&vfs).open("/s").unwrap();
    let topic = store.create_topic("t", config()).unwrap();
    for n in 0..100 {
        topic.append(Record::keyed(format!("k{}", n % 10), format!("{n}"))).unwrap();
    }
    assert_eq!(topic.key_index_stats(0).unwrap(), None, "nobody has asked yet");
    topic.get("k1").unwrap();
    drop(topic);
    store.close().unwrap();
    let file = read(&vfs, "/s/t-0/topiclog.keys");
    assert_eq!(file.len(), 84 + 10 * 16 + 4);
    let topic = builder(&vfs).open("/s").unwrap().topic("t").unwrap();
    assert_eq!(text(topic.get("k7").unwrap().unwrap().value()), "97");
    let stats = topic.key_index_stats(0).unwrap().unwrap();
    assert_eq!((stats.entries, stats.waiting), (10, 0));
    assert!(stats.memory_bytes < 2000, "{stats:?}");
}

#[test]
fn an_index_that_would_take_too_much_memory_is_given_up() {
    let vfs = MemoryVfs::new();
    let store = builder(&vfs).key_index_memory_bytes(4096).open("/s").unwrap();
    let topic = store.create_topic("t", config()).unwrap();
    for n in 0..100 {
        topic.append(Record::keyed(format!("k{n}"), "v")).unwrap();
    }
    assert!(topic.contains("k5").unwrap());
    for n in 100..1000 {
        topic.append(Record::keyed(format!("k{n}"), "v")).unwrap();
    }
    let refused = topic.get("k5").unwrap_err();
    assert!(matches!(refused, Error::Unsupported { .. }) && refused.to_string().contains("key_index_memory_bytes"));
    assert!(matches!(topic.latest(0), Err(Error::Unsupported { .. })));
    while !store.tick().unwrap().is_idle() {}
    assert_eq!(topic.partition(0).unwrap().end().get(), 1000, "everything else goes on");
    store.close().unwrap();
}

#[test]
fn a_listing_stays_at_its_position_while_the_log_goes_on() {
    let vfs = MemoryVfs::new();
    let store = builder(&vfs).open("/s").unwrap();
    let topic = store.create_topic("t", config()).unwrap();
    for n in 0..50 {
        topic.append(Record::keyed(format!("k{}", n % 5), format!("old {n}"))).unwrap();
    }
    let latest = topic.latest(0).unwrap();
    for n in 0..50 {
        topic.append(Record::keyed(format!("k{}", n % 5), format!("new {n}"))).unwrap();
    }
    while !store.tick().unwrap().is_idle() {}
    let values: Vec<String> = latest.map(|record| text(record.unwrap().value())).collect();
    assert_eq!(values, ["old 45", "old 46", "old 47", "old 48", "old 49"]);
    let values: Vec<String> = topic.latest(0).unwrap().map(|record| text(record.unwrap().value())).collect();
    assert_eq!(values, ["new 45", "new 46", "new 47", "new 48", "new 49"]);
}

#[test]
fn a_file_of_another_log_or_of_a_log_that_was_cut_is_not_believed() {
    let vfs = MemoryVfs::new();
    let store = builder(&vfs).open("/s").unwrap();
    let topic = store.create_topic("t", config()).unwrap();
    topic.append(Record::keyed("a", "1")).unwrap();
    topic.get("a").unwrap();
    drop(topic);
    store.close().unwrap();
    let path = "/s/t-0/topiclog.keys";
    let old = read(&vfs, path);
    for at in [0, 20, 40, 50, 60, 70, old.len() - 3] {
        let mut bad = old.clone();
        bad[at] ^= 0x10;
        write(&vfs, path, &bad);
        let store = builder(&vfs).open("/s").unwrap();
        assert!(store.topic("t").unwrap().contains("a").unwrap(), "byte {at}");
        store.close().unwrap();
    }
}

#[test]
fn a_key_expires_by_its_age_or_its_header_and_ends_in_a_tombstone() {
    let clock = Arc::new(ManualClock::new(1000));
    let vfs = MemoryVfs::new();
    let store = builder(&vfs).clock(Arc::clone(&clock) as _).open("/s").unwrap();
    let topic = store.create_topic("t", config().expire_after_ms(100)).unwrap();
    let partition = topic.partition(0).unwrap();
    topic.append(Record::keyed("by age", "v")).unwrap();
    topic.append(Record::keyed("kept alive", "v")).unwrap();
    let stated = Record::keyed("by header", "v").header(topiclog::EXPIRES_AT_HEADER, 1500_i64.to_be_bytes().to_vec());
    topic.append(stated).unwrap();
    let live = || topic.latest(0).unwrap().map(|record| text(record.unwrap().key())).collect::<Vec<_>>();
    let settle = || {
        let mut expired = 0;
        for _ in 0..100 {
            let step = store.tick().unwrap();
            expired += step.expired_keys;
            if step.is_idle() {
                return expired;
            }
        }
        panic!("upkeep never comes to rest");
    };
    assert_eq!(settle(), 0);
    clock.advance_ms(99);
    topic.append(Record::keyed("kept alive", "w")).unwrap();
    assert_eq!(settle(), 0);
    clock.advance_ms(1);
    assert!(!topic.contains("by age").unwrap(), "at once, before anybody did upkeep");
    assert_eq!(live(), ["by header", "kept alive"]);
    assert_eq!((settle(), partition.end().get()), (1, 5));
    let last = partition.record(4).unwrap().unwrap();
    assert_eq!((text(last.key()), last.is_tombstone()), ("by age".to_owned(), true));
    clock.advance_ms(400);
    assert_eq!(settle(), 2);
    assert_eq!(live(), Vec::<String>::new());
    topic.append(Record::keyed("by age", "again")).unwrap();
    assert_eq!((settle(), live()), (0, vec!["by age".to_owned()]));
}

#[test]
fn an_index_that_was_outrun_reads_the_log_again() {
    let store = builder(&MemoryVfs::new()).open("/s").unwrap();
    let topic = store.create_topic("t", config().segment_bytes(1 << 30)).unwrap();
    let partition = topic.partition(0).unwrap();
    partition.append(Record::keyed("first", "v")).unwrap();
    assert!(topic.contains("first").unwrap(), "in use from here on");
    let batch: Vec<Record> = (0..100).map(|n| Record::keyed(format!("{n}"), "v")).collect();
    // Past the topic, and without upkeep: nobody takes over what is queued.
    for _ in 0..10_600 {
        partition.append_batch_with(&batch, &topiclog::AppendOptions::new()).unwrap();
    }
    partition.append(Record::keyed("last", "v")).unwrap();
    for key in ["first", "7", "99", "last"] {
        assert!(topic.contains(key).unwrap(), "{key}");
    }
    assert_eq!(topic.latest(0).unwrap().count(), 102);
    let stats = topic.key_index_stats(0).unwrap().unwrap();
    assert_eq!((stats.entries, stats.waiting), (102, 0));
}

/// The file once held the keys below the open transaction alone, without those that a record behind it had superseded: a
/// crash that took that record away would have left a file without the key.
#[test]
fn no_file_is_written_while_a_transaction_is_open() {
    use crate::support::broker::{Bench, BrokerLog, kv};

    let log = BrokerLog::new(0).batch(0, &[kv("a", "1")]).in_txn(1, 7, &[kv("b", "open")]);
    let bench = Bench::adopt(&log, config());
    let topic = bench.store.topic("t").unwrap();
    assert_eq!(text(topic.get("a").unwrap().unwrap().value()), "1");
    topic.append(Record::keyed("a", "2")).unwrap();
    assert_eq!(text(topic.get("a").unwrap().unwrap().value()), "2");
    assert!(bench.partition().last_stable_offset() < bench.partition().end());
    drop(topic);
    bench.store.close().unwrap();
    let listed = bench.vfs.list(Path::new("/data/t-0")).unwrap();
    assert!(listed.iter().all(|entry| entry.name != "topiclog.keys"), "{listed:?}");
}

#[test]
fn appends_of_other_threads_are_found_however_they_meet_the_making_of_the_index_and_its_file() {
    for round in 0..30 {
        let vfs = MemoryVfs::new();
        let store = builder(&vfs).open("/s").unwrap();
        let topic = store.create_topic("t", config()).unwrap();
        (0..200).for_each(|n| {
            topic.append(Record::keyed(format!("old {n}"), "v")).unwrap();
        });
        // Each thread counts what was acknowledged, some of it while the index is made, some while the store closes.
        let acknowledged: Vec<u32> = std::thread::scope(|scope| {
            let append = |thread: u32| {
                let topic = topic.clone();
                move || {
                    (0..400).take_while(|n| topic.append(Record::keyed(format!("{thread} {n}"), "v")).is_ok()).count()
                        as u32
                }
            };
            let threads: Vec<_> = (0..2).map(|thread| scope.spawn(append(thread))).collect();
            assert!(topic.contains("old 7").unwrap(), "round {round}");
            store.close().unwrap();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let topic = builder(&vfs).open("/s").unwrap().topic("t").unwrap();
        for (thread, count) in acknowledged.iter().enumerate() {
            for n in 0..*count {
                assert!(topic.contains(format!("{thread} {n}")).unwrap(), "round {round}: {thread} {n} of {count}");
            }
        }
    }
}
