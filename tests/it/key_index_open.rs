//! The key index after an open: made by upkeep, in steps, whatever comes in between.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use topiclog::clock::ManualClock;
use topiclog::io::{CrashProfile, Fault, FaultPlan, FaultVfs, MemoryVfs, OpKind, OpenMode, Vfs, errno};
use topiclog::{
    CleanupPolicy, Durability, Error, Record, Store, StoreBuilder, Topic, TopicConfig, Upkeep, UpkeepEvent,
};

use crate::support::layered::{Layered, WatchedReads};
use crate::support::simulate::{Random, seed};
use crate::support::upkeep::settle;

const KEYS: &str = "/s/t-0/topiclog.keys";
const STEP: u64 = 1000;

fn builder(vfs: Arc<dyn Vfs>) -> StoreBuilder {
    let clock = Arc::new(ManualClock::new(1_700_000_000_000));
    Store::builder().vfs(vfs).clock(clock).upkeep(Upkeep::Manual).compaction_step_bytes(STEP).id_seed(7)
}

/// A topic that is never compacted: what upkeep reads is read for the index.
fn plain() -> TopicConfig {
    TopicConfig::default().durability(Durability::Os).segment_bytes(5000).preallocate_bytes(0)
}

fn compacted() -> TopicConfig {
    plain()
        .segment_bytes(1000)
        .cleanup_policy(CleanupPolicy::Compact)
        .min_cleanable_dirty_ratio(0.0)
        .delete_retention_ms(0)
}

type Table = BTreeMap<String, String>;

fn put(topic: &Topic, table: &mut Table, key: String, value: Option<String>) {
    match value {
        Some(value) => {
            topic.append(Record::keyed(key.clone(), value.clone())).unwrap();
            table.insert(key, value);
        }
        None => {
            topic.append(Record::tombstone(key.clone())).unwrap();
            table.remove(&key);
        }
    }
}

/// Puts 100 values under 50 keys.
fn fill(topic: &Topic) -> Table {
    let mut table = Table::new();
    for n in 0..100 {
        put(topic, &mut table, format!("k{}", n * 7 % 50), Some(format!("v{n}-{}", "x".repeat(50))));
    }
    table
}

fn check(topic: &Topic, table: &Table, keys: usize) {
    for key in (0..keys).map(|n| format!("k{n}")) {
        let found = topic.get(&key).unwrap().map(|record| String::from_utf8(record.value().unwrap().to_vec()).unwrap());
        assert_eq!(found.as_ref(), table.get(&key), "{key}");
    }
    let latest = topic.latest(0).unwrap();
    assert_eq!(latest.map(Result::unwrap).count(), table.len());
}

fn is_made(topic: &Topic) -> bool {
    topic.key_index_stats(0).unwrap().is_some()
}

/// Ticks until the index is there; returns how many bytes each step read.
fn tick_until_made(store: &Store, topic: &Topic) -> Vec<u64> {
    let mut steps = Vec::new();
    for _ in 0..10_000 {
        if is_made(topic) {
            return steps;
        }
        steps.push(store.tick().unwrap().key_index_read_bytes);
    }
    panic!("it is never made");
}

fn file_bytes(vfs: &dyn Vfs, path: &str) -> Option<u64> {
    vfs.open(Path::new(path), OpenMode::Read).ok()?.len().ok()
}

/// A store that was closed with its index in use, and what it holds.
fn closed(vfs: &Arc<dyn Vfs>, config: TopicConfig) -> Table {
    let store = builder(Arc::clone(vfs)).open("/s").unwrap();
    let topic = store.create_topic("t", config).unwrap();
    let table = fill(&topic);
    topic.get("k0").unwrap();
    store.close().unwrap();
    assert!(file_bytes(&**vfs, KEYS).is_some());
    table
}

fn memory() -> Arc<dyn Vfs> {
    Arc::new(MemoryVfs::new())
}

#[test]
fn it_is_made_of_its_file_and_of_what_came_since_by_bounded_steps_alone() {
    let disk = FaultVfs::new();
    let vfs: Arc<dyn Vfs> = Arc::new(disk.clone());
    let mut table = closed(&vfs, plain());
    let store = builder(Arc::clone(&vfs)).open("/s").unwrap();
    let topic = store.topic("t").unwrap();
    for n in 0..100 {
        put(&topic, &mut table, format!("k{}", n % 60), (n % 5 > 0).then(|| format!("w{n}")));
    }
    let steps = tick_until_made(&store, &topic);
    assert!(steps.iter().all(|&bytes| bytes <= STEP + 200), "no more than a batch above the bound: {steps:?}");
    let file = 16 * 50;
    let log = topic.partition(0).unwrap().stats().bytes;
    let sum: u64 = steps.iter().sum();
    assert!(sum > file && sum < file + log / 2, "{sum}: the file and what is behind it, of a log of {log}");
    assert!(steps.len() > 5);
    let stats = topic.key_index_stats(0).unwrap().unwrap();
    assert!(stats.entries >= 60);
    let before = disk.calls();
    topic.get("k1").unwrap();
    assert!(disk.calls() - before < 5, "a look-up reads a record and no more");
    check(&topic, &table, 60);
    settle(&store);
    assert_eq!(topic.key_index_stats(0).unwrap().unwrap().waiting, 0);
    store.close().unwrap();
}

#[test]
fn without_a_file_the_log_of_a_table_is_read_and_that_of_others_is_not() {
    let vfs = memory();
    // Without memory for it there is no index, and so no file of it.
    let store = builder(Arc::clone(&vfs)).key_index_memory_bytes(0).open("/s").unwrap();
    let table = fill(&store.create_topic("t", compacted()).unwrap());
    fill(&store.create_topic("plain", plain()).unwrap());
    fill(&store.create_topic("__theirs", compacted()).unwrap());
    settle(&store);
    for name in ["t", "plain", "__theirs"] {
        assert!(!is_made(&store.topic(name).unwrap()), "{name}");
    }
    store.close().unwrap();
    let store = builder(Arc::clone(&vfs)).open("/s").unwrap();
    settle(&store);
    let topic = store.topic("t").unwrap();
    assert_eq!(topic.key_index_stats(0).unwrap().unwrap().entries, 50);
    check(&topic, &table, 50);
    assert!(!is_made(&store.topic("plain").unwrap()) && !is_made(&store.topic("__theirs").unwrap()));
    store.close().unwrap();
    let store = builder(Arc::clone(&vfs)).key_index_memory_bytes(0).open("/s").unwrap();
    settle(&store);
    assert!(!is_made(&store.topic("t").unwrap()), "there is no memory for any");
    store.close().unwrap();
}

#[test]
fn keys_that_are_to_expire_wait_for_the_steps_of_the_making() {
    let (vfs, clock) = (memory(), Arc::new(ManualClock::new(1_700_000_000_000)));
    let store = builder(vfs).clock(Arc::clone(&clock) as _).open("/s").unwrap();
    let topic = store.create_topic("t", compacted().expire_after_ms(1000)).unwrap();
    fill(&topic);
    clock.advance_ms(2000);
    let (mut steps, mut expired) = (0, 0);
    for _ in 0..1000 {
        if expired > 0 {
            break;
        }
        let step = store.tick().unwrap();
        assert!(step.key_index_read_bytes <= STEP + 200, "{step:?}");
        steps += u64::from(step.key_index_read_bytes > 0);
        expired += step.expired_keys;
    }
    assert!(steps > 5, "{steps}");
    settle(&store);
    check(&topic, &Table::new(), 50);
}

/// What is wrong with a file, and whether anything of it is used.
#[test]
fn a_file_that_is_damaged_or_missing_is_made_good_by_the_log() {
    let vfs = memory();
    let table = closed(&vfs, plain());
    let file = vfs.open(Path::new(KEYS), OpenMode::Write).unwrap();
    let mut good = vec![0; file.len().unwrap() as usize];
    file.read_at(&mut good, 0).unwrap();
    let log = builder(Arc::clone(&vfs)).open("/s").unwrap().topic("t").unwrap().partition(0).unwrap().stats().bytes;
    let check_file = |what: &str, bytes: Option<&[u8]>, is_used: bool| {
        vfs.remove_file(Path::new(KEYS)).ok();
        if let Some(bytes) = bytes {
            let file = vfs.open(Path::new(KEYS), OpenMode::CreateNew).unwrap();
            assert_eq!(file.write_at(bytes, 0).unwrap(), bytes.len());
        }
        let store = builder(Arc::clone(&vfs)).open("/s").unwrap();
        let topic = store.topic("t").unwrap();
        if bytes.is_some() {
            let read: u64 = tick_until_made(&store, &topic).iter().sum();
            assert_eq!(read < log, is_used, "{what}: {read} bytes of a log of {log}");
        }
        check(&topic, &table, 50);
        assert!(topic.upkeep_error().is_none(), "{what}");
    };
    check_file("as it was", Some(&good), true);
    for at in (0..good.len()).step_by(3).chain(good.len() - 4..good.len()) {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        check_file(&format!("byte {at} is another"), Some(&bad), false);
    }
    for bytes in [1, 83, 84, 100, good.len() / 2, good.len() - 1] {
        check_file(&format!("cut to {bytes}"), Some(&good[..bytes]), false);
    }
    check_file("longer", Some(&[&good[..], &[0; 16]].concat()), false);
    check_file("missing", None, false);
}

#[test]
fn a_look_up_during_the_making_finishes_it_and_is_right() {
    for steps in 0..14 {
        let vfs = memory();
        let mut table = closed(&vfs, plain());
        let store = builder(Arc::clone(&vfs)).open("/s").unwrap();
        let topic = store.topic("t").unwrap();
        for n in 0..60 {
            put(&topic, &mut table, format!("k{n}"), (n % 3 > 0).then(|| "after the close".to_owned()));
        }
        for _ in 0..steps {
            store.tick().unwrap();
        }
        check(&topic, &table, 60);
        assert!(is_made(&topic));
        store.close().unwrap();
    }
}

/// What may come between two steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Between {
    Append,
    Delete,
    Close,
    Crash,
    /// The disk as a power cut leaves it, with all that was synced.
    PowerCut,
    LookUp,
}

#[test]
fn it_is_right_whatever_comes_between_its_steps() {
    let seed = seed("making in steps", 1);
    let (mut made_by_steps, mut cut_short, mut exchanged) = (0, 0, 0);
    for run in 0..120 {
        let mut random = Random(seed + run);
        let mut disk = FaultVfs::new();
        let open = |disk: &FaultVfs| builder(Arc::new(disk.clone())).open("/s").unwrap();
        let mut store = open(&disk);
        let mut topic = store.create_topic("t", compacted().durability(Durability::Sync)).unwrap();
        let mut table = fill(&topic);
        if random.below(4) > 0 {
            topic.get("k0").unwrap();
        }
        store.close().unwrap();
        store = open(&disk);
        topic = store.topic("t").unwrap();
        for _ in 0..60 {
            let was_made = is_made(&topic);
            exchanged += store.tick().unwrap().compactions;
            made_by_steps += u32::from(!was_made && is_made(&topic));
            let between = match random.below(24) {
                0..8 => Between::Append,
                8 => Between::Delete,
                9 => Between::Close,
                10 => Between::Crash,
                11 => Between::PowerCut,
                12 => Between::LookUp,
                _ => continue,
            };
            cut_short += u32::from(!is_made(&topic) && between != Between::LookUp);
            match between {
                Between::Append => {
                    let key = format!("k{}", random.below(60));
                    let value = (random.below(4) > 0).then(|| format!("v{}", random.below(1000)));
                    put(&topic, &mut table, key, value);
                }
                Between::Delete => {
                    let partition = topic.partition(0).unwrap();
                    let start = partition.start().get();
                    partition.delete_records(start + random.below(5) as i64).unwrap();
                    table.clear();
                    for record in partition.read_from(partition.start()).map(Result::unwrap) {
                        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
                        let key = text(record.key().unwrap());
                        match record.value() {
                            Some(value) => table.insert(key, text(value)),
                            None => table.remove(&key),
                        };
                    }
                }
                Between::Close => store.close().unwrap(),
                Between::Crash => disk.kill(),
                Between::PowerCut => disk = FaultVfs::from_image(&disk.durable_image()),
                Between::LookUp => check(&topic, &table, 60),
            }
            if matches!(between, Between::Close | Between::Crash | Between::PowerCut) {
                drop((topic, store));
                store = open(&disk);
                topic = store.topic("t").unwrap();
            }
        }
        settle(&store);
        assert!(is_made(&topic), "seed {}", seed + run);
        check(&topic, &table, 60);
        let stats = topic.key_index_stats(0).unwrap().unwrap();
        assert_eq!((stats.waiting, stats.unread_segments), (0, 0), "seed {}", seed + run);
        store.close().unwrap();
    }
    tell!("making in steps: {made_by_steps} made, {cut_short} cut short, {exchanged} compactions");
    assert!(made_by_steps > 100 && cut_short > 100 && exchanged > 50);
}

/// A crash at each operation of a close that replaces the file: the next open makes the index of the old or the new one.
#[test]
fn a_crash_while_the_file_is_replaced_costs_no_key() {
    let disk = FaultVfs::new();
    let mut table = closed(&(Arc::new(disk.clone()) as Arc<dyn Vfs>), plain().durability(Durability::Sync));
    disk.sync_everything();
    let store = builder(Arc::new(disk.clone())).open("/s").unwrap();
    let topic = store.topic("t").unwrap();
    for n in 0..50 {
        put(&topic, &mut table, format!("k{}", n % 60), (n % 3 > 0).then(|| format!("w{n}")));
    }
    topic.get("k0").unwrap();
    drop((topic, store));
    disk.kill();
    let image = disk.image();
    let close = |stop: Option<u64>| {
        let disk = FaultVfs::from_image(&image);
        let store = builder(Arc::new(disk.clone())).open("/s").unwrap();
        store.topic("t").unwrap().get("k0").unwrap();
        let begun = disk.operations();
        if let Some(stop) = stop {
            disk.stop_after(begun + stop);
        }
        store.close().ok();
        (disk.operations() - begun, disk)
    };
    let mut states = 0;
    for stop in 0..=close(None).0 {
        for state in close(Some(stop)).1.crash_states(&CrashProfile::ordered()) {
            let store = builder(Arc::new(FaultVfs::from_image(&state.image))).open("/s").unwrap();
            let topic = store.topic("t").unwrap();
            tick_until_made(&store, &topic);
            check(&topic, &table, 60);
            states += 1;
        }
    }
    tell!("crashes while a key file is replaced: {states} disks");
    assert!(states > 20);
}

#[test]
fn an_index_that_has_no_room_is_given_up_if_it_was_in_use_and_put_off_if_it_was_not() {
    let open = |vfs: &Arc<dyn Vfs>, bytes: usize| {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let ear = Arc::clone(&heard);
        let builder = builder(Arc::clone(vfs)).key_index_memory_bytes(bytes);
        let store = builder.on_upkeep(move |event| {
            if matches!(event, UpkeepEvent::KeyIndexDropped { .. } | UpkeepEvent::KeyIndexMade { .. }) {
                ear.lock().unwrap().push(format!("{event:?}").split(' ').next().unwrap().to_owned());
            }
        });
        (store.open("/s").unwrap(), heard)
    };
    let many = |vfs: &Arc<dyn Vfs>, is_used: bool| {
        let store = builder(Arc::clone(vfs)).open("/s").unwrap();
        let topic = store.create_topic("t", compacted()).unwrap();
        (0..1000).for_each(|n| drop(topic.append(Record::keyed(format!("k{n}"), "v")).unwrap()));
        if is_used {
            topic.get("k0").unwrap();
        }
        store.close().unwrap();
    };

    let vfs = memory();
    many(&vfs, true);
    let (store, heard) = open(&vfs, 5000);
    settle(&store);
    assert_eq!(*heard.lock().unwrap(), ["KeyIndexDropped"]);
    let topic = store.topic("t").unwrap();
    assert!(matches!(topic.get("k1"), Err(Error::Unsupported { .. })));
    assert!(topic.upkeep_error().is_none(), "it is no failure of upkeep");
    store.close().unwrap();

    let vfs = memory();
    many(&vfs, false);
    let (store, heard) = open(&vfs, 30_000);
    settle(&store);
    let topic = store.topic("t").unwrap();
    assert!(!is_made(&topic), "it would take more than half");
    assert!(topic.contains("k1").unwrap(), "who asks gets all of it");
    settle(&store);
    assert_eq!(*heard.lock().unwrap(), ["KeyIndexMade"]);
    store.close().unwrap();
}

/// There is room for one, and it is begun again and again.
#[test]
fn what_was_counted_for_an_index_that_is_not_made_is_given_back() {
    let disk = FaultVfs::new();
    let vfs: Arc<dyn Vfs> = Arc::new(disk.clone());
    let table = closed(&vfs, plain());
    for (class, call) in [("keys", 2), ("log", 1)] {
        let positional = builder(Arc::clone(&vfs)).reads(topiclog::ReadPath::Positional);
        let store = positional.key_index_memory_bytes(3000).open("/s").unwrap();
        let topic = store.topic("t").unwrap();
        for n in 0..20 {
            put(&topic, &mut table.clone(), "k1".to_owned(), Some(format!("more{n}")));
            // Behind the head of the file, and behind all of it.
            disk.inject(
                FaultPlan::new(Fault::Error(errno::EIO)).on(OpKind::Read).in_class(class).at_call(call).sticky(),
            );
            assert!(topic.get("k2").is_err(), "{class}");
            disk.clear_faults();
        }
        assert_eq!(topic.get("k2").unwrap().is_some(), table.contains_key("k2"), "{class}");
        drop(topic);
        // Without a close, so that the file stays as it is.
        drop(store);
        disk.kill();
    }
}

#[test]
fn what_fails_is_told_once_and_the_next_look_up_tries_again() {
    let disk = FaultVfs::new();
    let vfs: Arc<dyn Vfs> = Arc::new(disk.clone());
    let table = closed(&vfs, plain());
    let store = builder(Arc::clone(&vfs)).reads(topiclog::ReadPath::Positional).open("/s").unwrap();
    let topic = store.topic("t").unwrap();
    disk.inject(FaultPlan::new(Fault::Error(errno::EIO)).on(OpKind::Read).in_class("keys").sticky());
    let failed = (0..20).filter(|_| store.tick().is_err()).count();
    assert_eq!(failed, 1);
    assert!(topic.upkeep_error().unwrap().to_string().contains("topiclog.keys"));
    assert!(topic.get("k1").is_err());
    disk.clear_faults();
    check(&topic, &table, 50);
    store.close().unwrap();
}

/// What is done in another thread at the next read, before that returns.
type Hook = Arc<Mutex<Option<Box<dyn FnOnce() + Send>>>>;

/// A file system in memory without maps, whose next read can be caught.
fn caught(hook: &Hook) -> Arc<dyn Vfs> {
    let hook = Arc::clone(hook);
    let at_read = move |_| {
        let hook = hook.lock().unwrap().take();
        if let Some(hook) = hook {
            let (done, wait) = mpsc::channel();
            let thread = std::thread::spawn(move || {
                hook();
                done.send(()).unwrap();
            });
            wait.recv_timeout(Duration::from_secs(60)).expect("an append waits for the making of the index");
            thread.join().unwrap();
        }
    };
    Arc::new(Layered(MemoryVfs::new(), WatchedReads(Arc::new(at_read))))
}

#[test]
fn no_append_waits_while_upkeep_reads_for_the_index() {
    let hook = Hook::default();
    let vfs: Arc<dyn Vfs> = caught(&hook);
    let mut table = closed(&vfs, plain());
    let store = builder(Arc::clone(&vfs)).open("/s").unwrap();
    let topic = store.topic("t").unwrap();
    for n in 0..60 {
        put(&topic, &mut table, format!("k{n}"), Some("after the close".to_owned()));
    }
    let mut caught = 0;
    for _ in 0..1000 {
        if is_made(&topic) {
            break;
        }
        let (other, key) = (topic.clone(), format!("k{}", caught % 60));
        *hook.lock().unwrap() = Some(Box::new(move || drop(other.append(Record::keyed(key, "meanwhile")).unwrap())));
        store.tick().unwrap();
        if hook.lock().unwrap().take().is_none() {
            table.insert(format!("k{}", caught % 60), "meanwhile".to_owned());
            caught += 1;
        }
    }
    assert!(caught > 5 && is_made(&topic), "{caught}");
    check(&topic, &table, 60);
    store.close().unwrap();
}

/// An index of such a log cannot be made; upkeep once failed for one that nobody had asked for.
#[cfg(feature = "zstd")]
#[test]
fn a_batch_that_cannot_be_indexed_is_told_to_whoever_asks_and_is_no_failure_of_upkeep() {
    let vfs = memory();
    let store = builder(Arc::clone(&vfs)).open("/s").unwrap();
    let config = compacted().segment_bytes(1 << 20).batch_bytes_max(1 << 20).compression(topiclog::Compression::Zstd);
    let topic = store.create_topic("t", config).unwrap();
    topic.append(Record::keyed("large", vec![0; 65 << 20])).unwrap();
    store.close().unwrap();
    let store = builder(Arc::clone(&vfs)).open("/s").unwrap();
    settle(&store);
    let topic = store.topic("t").unwrap();
    assert!(topic.upkeep_error().is_none() && !is_made(&topic));
    assert!(matches!(topic.get("large"), Err(Error::Invalid { .. })));
    store.close().unwrap();
}
