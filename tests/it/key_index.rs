//! The key index: the newest record of each key, at once.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use topiclog::clock::ManualClock;
use topiclog::io::{FaultVfs, MemoryVfs, OpKind, OpenMode, Vfs};
use topiclog::{
    AppendOptions, CleanupPolicy, Durability, Error, Record, Store, StoreBuilder, TickReport, Topic, TopicConfig,
    Upkeep,
};

use crate::support::simulate::{Random, seed};

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
    let seed = seed("key index against a map", 1);
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
    tell!("key index against a map: 60 runs, {looked} looks in between");
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

/// A store that was closed with one key, and the path of the file that its index left.
fn closed_with_one_key() -> (MemoryVfs, &'static str) {
    let vfs = MemoryVfs::new();
    let store = builder(&vfs).open("/s").unwrap();
    let topic = store.create_topic("t", config()).unwrap();
    topic.append(Record::keyed("a", "1")).unwrap();
    topic.get("a").unwrap();
    drop(topic);
    store.close().unwrap();
    (vfs, "/s/t-0/topiclog.keys")
}

#[test]
fn a_file_of_another_log_or_of_a_log_that_was_cut_is_not_believed() {
    let (vfs, path) = closed_with_one_key();
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
    let settle = || crate::support::upkeep::settle(&store).expired_keys;
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

/// More keys than the queue of an index holds, in batches of `BATCH` records.
const MANY: usize = 300_000;
const BATCH: usize = 1000;

/// Appends many records of so many keys, the newest of each last, to an index in use that nobody does upkeep for.
fn fall_behind(topic: &Topic, keys: usize) {
    topic.append(Record::keyed("first", "v")).unwrap();
    assert!(topic.contains("first").unwrap(), "in use from here on");
    append_many(topic, keys);
}

fn append_many(topic: &Topic, keys: usize) {
    let records: Vec<Record> = (0..MANY).map(|n| Record::keyed(format!("k{}", n % keys), format!("{n}"))).collect();
    for batch in records.chunks(BATCH) {
        topic.append_all(batch, &AppendOptions::new()).unwrap();
    }
    let stats = topic.key_index_stats(0).unwrap().unwrap();
    assert!((200_000..MANY - BATCH).contains(&stats.waiting), "{stats:?}: the rest is in the log alone");
}

/// Such an index was once made anew from the whole log.
#[test]
fn an_index_that_fell_behind_is_led_on_by_the_next_look_up_or_by_upkeep_in_steps() {
    for keys in [20, 100, MANY] {
        for looks_up in [true, false] {
            let store = builder(&MemoryVfs::new()).compaction_step_bytes(100_000).open("/s").unwrap();
            let topic = store.create_topic("t", config().segment_bytes(1 << 30).batch_bytes_max(1 << 20)).unwrap();
            fall_behind(&topic, keys);
            let mut ticks = 0;
            loop {
                let report = if looks_up { TickReport::default() } else { store.tick().unwrap() };
                if report.is_idle() {
                    break;
                }
                ticks += usize::from(report.key_index_read_bytes > 0);
                assert!(report.key_index_read_bytes < 150_000, "{report:?}");
            }
            assert!(looks_up || ticks > 1, "{ticks}");
            for key in ["k0".to_owned(), "k7".to_owned(), format!("k{}", keys - 1)] {
                let nth: usize = key[1..].parse().unwrap();
                let newest = MANY - keys + nth;
                assert_eq!(text(topic.get(&key).unwrap().unwrap().value()), newest.to_string(), "{key} of {keys}");
            }
            assert!(topic.contains("first").unwrap());
            let stats = || topic.key_index_stats(0).unwrap().unwrap();
            while stats().waiting > 0 {
                store.tick().unwrap();
            }
            assert_eq!(stats().entries, keys + 1);
        }
    }
}

#[test]
fn a_topic_whose_index_fell_behind_is_compacted_to_the_newest_of_each_key() {
    let store = builder(&MemoryVfs::new()).open("/s").unwrap();
    let topic = store.create_topic("t", config().segment_bytes(1 << 20).batch_bytes_max(1 << 20)).unwrap();
    fall_behind(&topic, 50);
    while !store.tick().unwrap().is_idle() {}
    assert!(topic.upkeep_stats().compactions > 0);
    let table = (0..50).map(|key| (format!("k{key}"), (MANY - 50 + key).to_string()));
    check(&topic, &table.chain([("first".to_owned(), "v".to_owned())]).collect(), 60);
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
            // Many, so that some have hashed their keys and wait for the writer when the index begins to be made.
            let threads: Vec<_> = (0..8).map(|thread| scope.spawn(append(thread))).collect();
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

/// Its checksums made anew, as whoever writes a file makes them.
fn sealed(mut file: Vec<u8>) -> Vec<u8> {
    let crc = crc32fast::hash(&file[..80]);
    file[80..84].copy_from_slice(&crc.to_be_bytes());
    let end = file.len() - 4;
    let crc = crc32fast::hash(&file[..end]);
    file[end..].copy_from_slice(&crc.to_be_bytes());
    file
}

/// A file without any entry would hide the key: where it is believed, the key is not found.
#[test]
fn a_sealed_file_of_another_store_position_or_epoch_is_not_believed() {
    let (vfs, path) = closed_with_one_key();
    let mut empty = read(&vfs, path)[..84].to_vec();
    empty[64..72].copy_from_slice(&0_u64.to_be_bytes());
    empty.extend([0; 4]);
    let check = |change: &dyn Fn(&mut Vec<u8>), is_believed: bool, what: &str| {
        let mut file = empty.clone();
        change(&mut file);
        vfs.remove_file(Path::new(path)).unwrap();
        let created = vfs.open(Path::new(path), OpenMode::CreateNew).unwrap();
        created.write_at(&sealed(file), 0).unwrap();
        let store = builder(&vfs).open("/s").unwrap();
        assert_eq!(store.topic("t").unwrap().contains("a").unwrap(), !is_believed, "{what}");
        store.close().unwrap();
    };
    check(&|file| file[32] ^= 1, false, "another store");
    check(&|file| file[48..56].copy_from_slice(&2_i64.to_be_bytes()), false, "a position behind the end");
    check(&|file| file[48..56].copy_from_slice(&(-1_i64).to_be_bytes()), false, "a position before the start");
    check(&|file| file[56..60].copy_from_slice(&77_i32.to_be_bytes()), false, "another epoch");
    check(&|file| file[8..10].copy_from_slice(&1_u16.to_be_bytes()), false, "the version before");
    check(&|file| file[60..64].copy_from_slice(&1_u32.to_be_bytes()), false, "a check that is not there");
    check(&|_| {}, true, "the right head: so the checks above are what kept the others out");
}

/// What lay behind an open transaction when the index was made was never in it.
#[test]
fn records_behind_an_open_transaction_are_found_and_its_own_are_not() {
    use crate::support::broker::{Bench, BrokerLog, kv};

    let log = BrokerLog::new(0)
        .batch(0, &[kv("a", "1"), kv("b", "1")])
        .in_txn(2, 7, &[kv("b", "open")])
        .batch(3, &[kv("a", "2"), kv("c", "1")])
        .in_txn(5, 8, &[kv("c", "aborted")])
        .abort(6, 8, 5)
        .in_txn(7, 9, &[kv("d", "committed")])
        .commit(8, 9);
    let bench = Bench::adopt(&log, config());
    let topic = bench.store.topic("t").unwrap();
    assert_eq!(bench.partition().last_stable_offset().get(), 2);
    for (key, value) in [("a", "2"), ("b", "1"), ("c", "1"), ("d", "committed")] {
        assert_eq!(text(topic.get(key).unwrap().unwrap().value()), value, "{key}");
    }
    let listed: Vec<i64> = topic.latest(0).unwrap().map(|record| record.unwrap().offset().get()).collect();
    assert_eq!(listed, [1, 3, 4, 7]);
    let counts = topic.count_keys(0).unwrap();
    let records = [counts.live, counts.tombstones, counts.dead, counts.undecided].map(|count| count.records);
    assert_eq!((records, counts.position.get()), ([4, 0, 2, 1], 9));
}

/// Below the log start everything counts as decided, and the rest of the batch was read again at each step, for ever.
#[test]
fn an_open_transaction_into_which_the_log_start_is_raised_lets_upkeep_come_to_rest() {
    use crate::support::broker::{Bench, BrokerLog, kv};

    let log = BrokerLog::new(0)
        .batch(0, &[kv("a", "1")])
        .in_txn(1, 7, &[kv("b", "open"), kv("c", "open"), kv("d", "open")])
        .batch(4, &[kv("e", "1")]);
    let bench = Bench::adopt(&log, config());
    let topic = bench.store.topic("t").unwrap();
    assert!(topic.contains("e").unwrap());
    bench.partition().delete_records(2).unwrap();
    assert!((0..100).any(|_| bench.store.tick().unwrap().is_idle()));
    for (key, is_there) in [("a", false), ("c", false), ("d", false), ("e", true)] {
        assert_eq!(topic.contains(key).unwrap(), is_there, "{key}");
    }
}

#[test]
fn a_log_whose_records_lie_too_far_apart_has_no_index_until_the_first_are_gone() {
    use crate::support::broker::{Bench, BrokerLog, kv};

    let far = 1 << 40;
    for base in [0, 1] {
        let log = BrokerLog::new(base).batch(base, &[kv("a", "1")]).roll(far).batch(far, &[kv("b", "1")]);
        let bench = Bench::adopt(&log, config());
        let topic = bench.store.topic("t").unwrap();
        // 40 bits hold what lies one less apart.
        let found = topic.contains("b");
        assert_eq!(found.as_ref().ok(), (base == 1).then_some(&true), "{found:?}");
        if let Err(error) = found {
            assert!(matches!(error, Error::Unsupported { .. }) && error.to_string().contains("2^40"), "{error}");
        }
        bench.partition().delete_records(far).unwrap();
        drop(topic);
        bench.store.close().unwrap();
        let store = builder(&bench.vfs).open("/data").unwrap();
        let topic = store.topic("t").unwrap();
        assert!(topic.contains("b").unwrap() && !topic.contains("a").unwrap());
    }
}

/// The index was made with a larger limit than its records were read with: such a key was in it and answered `Invalid`.
#[cfg(feature = "zstd")]
#[test]
fn a_batch_that_becomes_large_in_memory_is_found_by_its_keys() {
    use topiclog::AppendOptions;
    use topiclog::record::Compression;

    let store = builder(&MemoryVfs::new()).open("/s").unwrap();
    let topic = store.create_topic("t", config()).unwrap();
    let large = vec![0; 10 << 20];
    let batch: Vec<Record> = ["a", "b"].iter().map(|key| Record::keyed(*key, large.clone())).collect();
    let options = AppendOptions::new().compression(Compression::Zstd);
    topic.append_all(&batch, &options).unwrap();
    assert_eq!(topic.get("b").unwrap().unwrap().value().unwrap().len(), 10 << 20);
    topic.append(Record::keyed("a", "small")).unwrap();
    assert_eq!(text(topic.get("a").unwrap().unwrap().value()), "small");
    assert_eq!(topic.latest(0).unwrap().map(Result::unwrap).count(), 2);
    let stats = topic.key_index_stats(0).unwrap().unwrap();
    assert_eq!((stats.entries, stats.waiting), (2, 0), "the older record of the key was compared, and went");
}

/// A look-up takes an offset from the table and then the segments: a compaction in between took the record away.
#[test]
fn a_key_is_never_missed_while_compaction_exchanges_what_it_is_in() {
    use std::sync::atomic::{AtomicBool, Ordering};

    let store = builder(&MemoryVfs::new()).open("/s").unwrap();
    let topic = store.create_topic("t", config().segment_bytes(300)).unwrap();
    let keys: Vec<String> = (0..4).map(|n| format!("k{n}")).collect();
    let append = |n: usize| topic.append(Record::keyed(keys[n % keys.len()].clone(), format!("{n}"))).unwrap();
    for n in 0..keys.len() {
        append(n);
    }
    topic.get("k0").unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 0..30_000 {
                append(n);
                store.tick().unwrap();
            }
            stop.store(true, Ordering::Release);
        });
        // More threads than cores: now and then one is put aside at the wrong moment, and much is compacted meanwhile.
        let look = || {
            let mut looked = 0;
            while !stop.load(Ordering::Acquire) {
                for key in &keys {
                    assert!(topic.get(key).unwrap().is_some(), "{key} was missed at look {looked}");
                    looked += 1;
                }
            }
            looked
        };
        let threads: Vec<_> = (0..6).map(|_| scope.spawn(look)).collect();
        let mut listed = 0;
        while !stop.load(Ordering::Acquire) {
            let names: Vec<String> = topic.latest(0).unwrap().map(|record| text(record.unwrap().key())).collect();
            assert_eq!(names.len(), keys.len(), "{names:?} at listing {listed}");
            listed += 1;
        }
        let looked: usize = threads.into_iter().map(|thread| thread.join().unwrap()).sum();
        tell!("{looked} looks and {listed} listings beside compaction");
    });
}

/// The entry of a deleted key once stayed until the store was reopened.
#[test]
fn a_key_whose_tombstone_was_dropped_gives_up_its_entry() {
    let clock = Arc::new(ManualClock::new(1_700_000_000_000));
    let store = builder(&MemoryVfs::new()).clock(Arc::clone(&clock) as _).open("/s").unwrap();
    let topic = store.create_topic("t", config()).unwrap();
    for n in 0..60 {
        topic.append(Record::keyed(format!("k{n}"), "v")).unwrap();
    }
    assert!(topic.contains("k7").unwrap());
    for n in 0..50 {
        topic.append(Record::tombstone(format!("k{n}"))).unwrap();
    }
    let entries = || topic.key_index_stats(0).unwrap().unwrap().entries;
    // Each round of appends closes a segment, and time passes for the tombstones in it.
    for _ in 0..4 {
        for n in 0..20 {
            topic.append(Record::keyed(format!("filler {n}"), "v".repeat(40))).unwrap();
        }
        while !store.tick().unwrap().is_idle() {}
        clock.advance_ms(1000);
    }
    let stats = topic.partition(0).unwrap().stats();
    assert_eq!((stats.tombstones_dropped, entries()), (50, 10 + 20));
    assert!(!topic.contains("k7").unwrap() && topic.contains("k55").unwrap());
}

#[test]
fn counts_are_those_of_a_walk_through_the_log() {
    let seed = seed("counts against a walk", 1);
    for run in 0..20 {
        let mut random = Random(seed + run);
        let store = builder(&MemoryVfs::new()).open("/s").unwrap();
        let topic = store.create_topic("t", config()).unwrap();
        let partition = topic.partition(0).unwrap();
        for _ in 0..200 {
            let key = format!("k{}", random.below(30));
            match random.below(8) {
                0 => assert!(topic.append(Record::tombstone(key)).is_ok()),
                1 => assert!(store.tick().is_ok()),
                _ => assert!(topic.append(Record::keyed(key, "v".repeat(random.below(20)))).is_ok()),
            }
            if random.below(60) == 0 {
                partition.delete_records(random.below(partition.end().get() as usize + 1) as i64).unwrap();
            }
        }
        let counts = topic.count_keys(0).unwrap();
        let mut newest = BTreeMap::new();
        let (mut records, mut bytes) = (0, 0);
        for record in partition.read_from(partition.start()) {
            let record = record.unwrap();
            // One byte for each of these: length, attributes, two deltas, two lengths, no headers.
            let size = 7 + record.key().unwrap().len() as u64 + record.value().map_or(0, <[u8]>::len) as u64;
            (records, bytes) = (records + 1, bytes + size);
            newest.insert(record.key().unwrap().to_vec(), (record.is_tombstone(), size));
        }
        let sum = |wanted: bool| {
            let of = newest.values().filter(|(is_tombstone, _)| *is_tombstone == wanted);
            of.fold((0, 0), |(records, bytes), (_, size)| (records + 1, bytes + size))
        };
        let pair = |count: topiclog::RecordCount| (count.records, count.bytes);
        let (live, tombstones) = (sum(false), sum(true));
        assert_eq!((pair(counts.live), pair(counts.tombstones)), (live, tombstones), "seed {}", seed + run);
        let dead = (records - live.0 - tombstones.0, bytes - live.1 - tombstones.1);
        assert_eq!(pair(counts.dead), dead, "seed {}", seed + run);
        assert_eq!((counts.position, counts.start), (partition.end(), partition.start()));
        assert_eq!(topic.key_index_stats(0).unwrap().unwrap().counts, Some(counts));
    }
    tell!("counts against a walk: 20 runs");
}

#[test]
fn no_key_ends_by_a_clock_that_jumped_and_a_changed_setting_counts_at_once() {
    let clock = Arc::new(ManualClock::new(1_700_000_000_000));
    let store = builder(&MemoryVfs::new()).clock(Arc::clone(&clock) as _).open("/s").unwrap();
    let topic = store.create_topic("t", config().expire_after_ms(50_000_000)).unwrap();
    let end = || topic.partition(0).unwrap().end().get();
    let settle = || while !store.tick().unwrap().is_idle() {};
    topic.append(Record::keyed("a", "v")).unwrap();
    settle();
    clock.jump_to_ms(1_700_000_000_000 + 100_000_000);
    settle();
    assert_eq!(end(), 1, "the wall clock alone went on");
    clock.advance_ms(3_600_000);
    settle();
    assert_eq!((end(), topic.contains("a").unwrap()), (2, false), "an hour later it is believed");
    topic.append(Record::keyed("b", "v")).unwrap();
    clock.advance_ms(1000);
    settle();
    assert!(topic.contains("b").unwrap());
    store.alter_topic("t", config().expire_after_ms(500)).unwrap();
    assert!(!topic.contains("b").unwrap());
    settle();
    assert_eq!(end(), 4);
}

#[test]
fn a_large_batch_of_few_keys_is_taken_by_the_newest_of_each() {
    let store = builder(&MemoryVfs::new()).open("/s").unwrap();
    let topic = store.create_topic("t", config().segment_bytes(1 << 20)).unwrap();
    let batch: Vec<Record> = (0..5000).map(|n| Record::keyed(format!("k{}", n % 3), format!("{n}"))).collect();
    topic.partition(0).unwrap().append_batch(&batch).unwrap();
    assert_eq!(text(topic.get("k0").unwrap().unwrap().value()), "4998");
    let stats = topic.key_index_stats(0).unwrap().unwrap();
    assert_eq!((stats.entries, stats.waiting), (3, 0), "nothing was left to be compared");
}

#[test]
fn upkeep_says_what_it_did_to_each_topic() {
    let clock = Arc::new(ManualClock::new(1_700_000_000_000));
    let store = builder(&MemoryVfs::new()).clock(Arc::clone(&clock) as _).open("/s").unwrap();
    let keyed = store.create_topic("keyed", config().expire_after_ms(1000)).unwrap();
    let plain = store.create_topic("plain", TopicConfig::default().segment_bytes(1000).retention_bytes(2000)).unwrap();
    for n in 0..100 {
        keyed.append(Record::keyed(format!("k{}", n % 4), "v".repeat(20))).unwrap();
        plain.append(Record::of_value("v".repeat(20))).unwrap();
    }
    assert!(keyed.contains("k1").unwrap());
    while !store.tick().unwrap().is_idle() {}
    let of_keyed = keyed.upkeep_stats();
    assert!(of_keyed.compactions > 0 && of_keyed.sealed_segments > 0, "{of_keyed:?}");
    assert_eq!(of_keyed.records_compacted, keyed.partition(0).unwrap().stats().records_compacted);
    assert!(
        of_keyed.compaction_read_bytes > of_keyed.compaction_written_bytes && of_keyed.compaction_written_bytes > 0
    );
    assert_eq!((of_keyed.deleted_segments, of_keyed.failures), (0, 0));
    let of_plain = plain.upkeep_stats();
    assert!(of_plain.deleted_segments > 0 && of_plain.deleted_bytes >= of_plain.deleted_segments * 900, "{of_plain:?}");
    assert_eq!((of_plain.compactions, of_plain.expired_keys), (0, 0));
    clock.advance_ms(2000);
    while !store.tick().unwrap().is_idle() {}
    assert_eq!(keyed.upkeep_stats().expired_keys, 4);
    assert!(keyed.upkeep_error().is_none());
}

/// Positions are hints: whatever they are, the answers are right.
#[test]
fn positions_that_lead_astray_cost_no_answer() {
    let vfs = MemoryVfs::new();
    let path = "/s/t-0/topiclog.keys";
    let store = builder(&vfs).open("/s").unwrap();
    let topic = store.create_topic("t", config()).unwrap();
    for n in 0..60 {
        topic.append(Record::keyed(format!("k{}", n % 30), format!("{n}"))).unwrap();
    }
    topic.get("k1").unwrap();
    while !store.tick().unwrap().is_idle() {}
    drop(topic);
    store.close().unwrap();
    let good = read(&vfs, path);
    let checks = u32::from_be_bytes(good[60..64].try_into().unwrap()) as usize;
    assert!(checks > 0, "something was compacted, and its positions are vouched for");
    let (first, end) = (84 + checks * 12, good.len() - 4);
    let changes: [&dyn Fn(u32) -> u32; 6] =
        [&|at| at + 1, &|_| 0, &|at| at ^ 0xff, &|_| 61, &|_| u32::MAX, &|_| i32::MAX as u32];
    for (nth, change) in changes.into_iter().enumerate() {
        let mut file = good.clone();
        for entry in file[first..end].chunks_exact_mut(16) {
            let at = change(u32::from_be_bytes(entry[12..].try_into().unwrap()));
            entry[12..].copy_from_slice(&at.to_be_bytes());
        }
        write(&vfs, path, &sealed(file));
        let store = builder(&vfs).open("/s").unwrap();
        let topic = store.topic("t").unwrap();
        for _ in 0..2 {
            for n in 30..60 {
                let found = topic.get(format!("k{}", n % 30)).unwrap().unwrap();
                assert_eq!(text(found.value()), format!("{n}"), "change {nth}");
            }
        }
        assert_eq!(topic.latest(0).unwrap().map(Result::unwrap).count(), 30);
        store.close().unwrap();
    }
}

#[test]
fn places_outlive_a_restart_where_the_segment_is_the_same_and_are_read_anew_where_it_is_not() {
    let vfs = MemoryVfs::new();
    let path = "/s/t-0/topiclog.keys";
    let store = builder(&vfs).open("/s").unwrap();
    let topic = store.create_topic("t", config()).unwrap();
    topic.append(Record::keyed("k0", "first")).unwrap();
    topic.get("k0").unwrap();
    for n in 0..100 {
        topic.append(Record::keyed(format!("k{}", n % 30), format!("{n}"))).unwrap();
    }
    let unread = |topic: &Topic| topic.key_index_stats(0).unwrap().unwrap().unread_segments;
    while !store.tick().unwrap().is_idle() {}
    assert!(topic.upkeep_stats().compactions > 0 && unread(&topic) == 0);
    drop(topic);
    store.close().unwrap();

    let store = builder(&vfs).open("/s").unwrap();
    let topic = store.topic("t").unwrap();
    assert!(topic.contains("k3").unwrap());
    assert_eq!(unread(&topic), 0, "the file vouches for what is there");
    drop(topic);
    store.close().unwrap();

    let mut file = read(&vfs, path);
    file[92] ^= 1;
    write(&vfs, path, &sealed(file));
    let store = builder(&vfs).open("/s").unwrap();
    let topic = store.topic("t").unwrap();
    assert!(topic.contains("k3").unwrap());
    assert_eq!(unread(&topic), 1, "the check of one segment does not fit");
    while !store.tick().unwrap().is_idle() {}
    let stats = topic.key_index_stats(0).unwrap().unwrap();
    assert_eq!((stats.unread_segments, stats.entries), (0, 30));
    assert!((0..30).all(|n| topic.contains(format!("k{n}")).unwrap()));
    store.close().unwrap();
}

/// A crash while the file was replaced once left this for ever.
#[test]
fn a_file_that_was_being_written_is_removed_by_the_next_open() {
    let (vfs, _) = closed_with_one_key();
    let left = Path::new("/s/t-0/topiclog.keys.tmp");
    vfs.open(left, OpenMode::CreateNew).unwrap();
    drop(builder(&vfs).open("/s").unwrap());
    assert!(vfs.open(left, OpenMode::Read).is_err());
}

/// An appender once took over what had waited for too long, and read the records of keys that came again and again.
#[test]
fn an_append_reads_nothing_of_the_log_for_the_index_however_many_keys_wait() {
    use OpKind::{Map, MapTail, Populate, Read, ReadTail};
    for keys in [20, MANY] {
        let vfs = FaultVfs::new();
        let store = Store::builder().vfs(Arc::new(vfs.clone())).upkeep(Upkeep::Manual).open("/s").unwrap();
        let topic = store.create_topic("t", config().segment_bytes(1 << 20).batch_bytes_max(1 << 20)).unwrap();
        topic.append(Record::keyed("first", "v")).unwrap();
        assert!(topic.contains("first").unwrap());
        let reads = || {
            let calls = |op| vfs.sites_seen().get(&(op, "log".to_owned())).map_or(0, |site| site.calls);
            [Read, ReadTail, Map, MapTail, Populate].map(calls).iter().sum::<u64>()
        };
        let before = reads();
        append_many(&topic, keys);
        for n in 0..1000 {
            topic.append(Record::keyed(format!("k{}", n % keys), "last")).unwrap();
        }
        assert_eq!(reads(), before, "{keys} keys");
        assert_eq!(text(topic.get("k7").unwrap().unwrap().value()), "last");
        assert!(reads() > before, "a look-up reads");
    }
}
