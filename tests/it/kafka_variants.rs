//! The same Kafka directories with files lost, emptied, torn and left over: the same records all the same.
#![cfg(all(feature = "gzip", feature = "snappy", feature = "lz4", feature = "zstd"))]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use topiclog::clock::{Clock, ManualClock, SystemClock};
use topiclog::{AdoptOptions, CleanupPolicy, Error, ReadOptions, Record, Repair, Store, TopicConfig, Upkeep, verify};

use crate::kafka_dirs::{check_store, copy_of, fixtures};

const STATES: [&str; 2] = ["clean", "killed"];

fn partitions(root: &Path) -> Vec<PathBuf> {
    let mut found: Vec<_> =
        fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()).collect();
    found.sort();
    assert!(found.len() >= 20);
    found
}

fn files(directory: &Path, suffix: &str) -> Vec<PathBuf> {
    let listed = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<_> = listed.filter(|path| path.to_str().unwrap().ends_with(suffix)).collect();
    found.sort();
    found
}

fn open(root: &Path) -> Store {
    Store::builder().read_only(true).upkeep(Upkeep::Manual).open(root).unwrap()
}

/// Runs a change on the files of every partition, and expects to see the same.
fn check_changed(change: impl Fn(&Path)) {
    for state in STATES {
        let (_guard, root) = copy_of(state);
        partitions(&root).iter().for_each(|directory| change(directory));
        check_store(&open(&root), &fixtures().join(format!("{state}.expected")));
    }
}

#[test]
fn lost_side_files_are_made_up_for() {
    for suffix in [".index", ".timeindex", ".snapshot", "leader-epoch-checkpoint", "partition.metadata"] {
        check_changed(|directory| files(directory, suffix).iter().for_each(|path| fs::remove_file(path).unwrap()));
    }
}

/// Without it, records of aborted transactions below the newest snapshot once read as committed.
#[test]
fn a_lost_transaction_index_is_made_up_for() {
    check_changed(|directory| files(directory, ".txnindex").iter().for_each(|path| fs::remove_file(path).unwrap()));
}

#[test]
fn empty_and_preallocated_index_files_mislead_nobody() {
    for bytes in [0, 40, 4096] {
        check_changed(|directory| {
            for path in files(directory, ".index").into_iter().chain(files(directory, ".timeindex")) {
                fs::write(path, vec![0; bytes]).unwrap();
            }
        });
    }
    check_changed(|directory| {
        for path in files(directory, ".index").into_iter().chain(files(directory, ".timeindex")) {
            let mut bytes = fs::read(&path).unwrap();
            bytes.resize(bytes.len() + 1200, 0);
            fs::write(&path, bytes).unwrap();
        }
    });
}

#[test]
fn a_torn_tail_or_zeros_behind_the_log_hide_nothing() {
    for tail in [vec![0; 5000], vec![0x5a; 700], vec![0; 61]] {
        check_changed(|directory| {
            let path = files(directory, ".log").pop().unwrap();
            let bytes = fs::read(&path).unwrap();
            fs::write(&path, [&bytes[..], &tail].concat()).unwrap();
        });
    }
    // The beginning of a batch that was never written whole.
    check_changed(|directory| {
        let logs = files(directory, ".log");
        let (first, last) = (logs.first().unwrap(), logs.last().unwrap());
        let torn = fs::read(first).unwrap().get(..90).map(<[u8]>::to_vec).unwrap_or_default();
        let bytes = fs::read(last).unwrap();
        fs::write(last, [bytes, torn].concat()).unwrap();
    });
}

#[test]
fn left_overs_of_a_compaction_are_no_data() {
    check_changed(|directory| {
        fs::write(directory.join("00000000000000000000.log.deleted"), b"old").unwrap();
        fs::write(directory.join("00000000000000000001.log.cleaned"), b"unfinished").unwrap();
        fs::write(directory.join("leader-epoch-checkpoint.tmp"), b"0\n").unwrap();
    });
}

#[test]
fn a_torn_tail_is_cut_only_with_consent_and_kept() {
    let (_guard, root) = copy_of("killed");
    let log = files(&root.join("codec.none-0"), ".log").pop().unwrap();
    let bytes = fs::read(&log).unwrap();
    fs::write(&log, &bytes[..bytes.len() - 1]).unwrap();
    let gone = AdoptOptions::new().broker_is_gone(true);
    let refused = Store::adopt(&root, &gone).unwrap_err();
    assert!(matches!(refused, Error::NeedsAdopt { .. }), "{refused}");
    let report = Store::adopt(&root, &gone.cut_torn_tails(true)).unwrap();
    let cut = report.partitions.iter().flat_map(|partition| &partition.repairs);
    assert_eq!(cut.filter(|repair| matches!(repair, Repair::TailCut { .. })).count(), 1);
    assert_eq!(files(&root.join("codec.none-0/quarantine"), ".bin").len(), 1);
    let store = Store::builder().upkeep(Upkeep::Manual).open(&root).unwrap();
    let partition = store.topic("codec.none").unwrap().partition(0).unwrap();
    let count = partition.read_from(0).filter(|record| record.is_ok()).count() as i64;
    assert_eq!(count, partition.end().get());
    store.close().unwrap();
}

#[test]
fn damage_before_the_last_segment_stops_an_adoption() {
    let (_guard, root) = copy_of("clean");
    let log = files(&root.join("rolled-0"), ".log").remove(0);
    let mut bytes = fs::read(&log).unwrap();
    bytes[65] ^= 1;
    fs::write(&log, &bytes).unwrap();
    let refused = Store::adopt(&root, &AdoptOptions::new()).unwrap_err();
    assert!(matches!(&refused, Error::Corrupt { path, .. } if *path == log), "{refused}");
    assert!(matches!(Store::open(&root), Err(Error::NeedsAdopt { .. })));
    // The other partitions can be read, and this one says what is wrong.
    let store = open(&root);
    assert!(store.topic("large").unwrap().partition(0).unwrap().read_from(0).all(|record| record.is_ok()));
    let rolled = store.topic("rolled").unwrap().partition(0).unwrap();
    assert!(rolled.read_from(0).any(|record| matches!(record, Err(Error::Corrupt { .. }))));
}

#[test]
fn a_store_that_a_broker_wrote_to_is_adopted_anew() {
    let (_guard, root) = copy_of("clean");
    Store::adopt(&root, &AdoptOptions::new()).unwrap();
    let store = Store::builder().upkeep(Upkeep::Manual).open(&root).unwrap();
    let topic = store.topic("large").unwrap();
    let placed = topic.append(topiclog::Record::keyed("k", "ours")).unwrap();
    store.close().unwrap();
    // A broker appends a batch of its own behind ours.
    let log = files(&root.join("large-0"), ".log").pop().unwrap();
    let mut batch = topiclog::record::BatchBuilder::new(topiclog::record::BatchSpec {
        leader_epoch: placed.leader_epoch + 1,
        ..topiclog::record::BatchSpec::new(placed.next_offset.get())
    });
    batch.push(topiclog::Record::keyed("k", "the broker's").timestamp_ms(1_700_000_000_000)).unwrap();
    let bytes = fs::read(&log).unwrap();
    fs::write(&log, [bytes, batch.finish().unwrap().to_vec()].concat()).unwrap();

    assert!(matches!(Store::open(&root), Err(Error::NeedsAdopt { .. })));
    Store::adopt(&root, &AdoptOptions::new()).unwrap();
    let store = Store::builder().upkeep(Upkeep::Manual).open(&root).unwrap();
    let partition = store.topic("large").unwrap().partition(0).unwrap();
    let last = partition.record(placed.next_offset).unwrap().unwrap();
    assert_eq!(last.value(), Some(&b"the broker's"[..]));
    let next = partition.append(topiclog::Record::keyed("k", "ours again")).unwrap();
    assert!(next.leader_epoch > last.leader_epoch());
    store.close().unwrap();
}

/// Puts all segments but the last together in one, as compaction does, and leaves it under its names of the exchange.
fn merge_into_swap(directory: &Path) {
    let logs = files(directory, ".log");
    let Some((_, closed)) = logs.split_last().filter(|(_, closed)| !closed.is_empty()) else { return };
    let merged: Vec<u8> = closed.iter().flat_map(|path| fs::read(path).unwrap()).collect();
    fs::write(closed[0].with_extension("log.swap"), merged).unwrap();
    fs::write(closed[0].with_extension("index.swap"), b"").unwrap();
    fs::write(closed[0].with_extension("timeindex.swap"), b"").unwrap();
    let aborted: Vec<u8> =
        closed.iter().filter_map(|path| fs::read(path.with_extension("txnindex")).ok()).flatten().collect();
    if !aborted.is_empty() {
        fs::write(closed[0].with_extension("txnindex.swap"), aborted).unwrap();
    }
}

/// All segments but the last, with their index files.
fn remove_closed(directory: &Path, suffixes: &[&str]) {
    let logs = files(directory, ".log");
    for log in logs.iter().rev().skip(1) {
        suffixes.iter().for_each(|suffix| fs::remove_file(log.with_extension(suffix)).unwrap_or_default());
    }
}

/// What is opened read-only, verified and adopted in this state shows the same records as before the exchange.
fn check_exchange(change: impl Fn(&Path)) {
    check_changed(&change);
    for state in STATES {
        let (_guard, root) = copy_of(state);
        let before = verify(&root).unwrap();
        assert_eq!(before.damages().count(), 0);
        partitions(&root).iter().for_each(|directory| change(directory));
        let report = verify(&root).unwrap();
        assert_eq!(report.damages().collect::<Vec<_>>(), Vec::<&topiclog::Finding>::new());
        assert_eq!((report.batches, report.records), (before.batches, before.records));
        let named = report.findings.iter().any(|finding| finding.what.contains("exchange of segments"));
        assert!(named, "an interrupted exchange is named");
        let adopt = AdoptOptions::new().broker_is_gone(true);
        let looked = Store::adopt(&root, &adopt.clone().dry_run(true)).unwrap();
        assert_eq!(Store::adopt(&root, &adopt).unwrap().partitions, looked.partitions);
        check_store(&open(&root), &fixtures().join(format!("{state}.expected")));
    }
}

/// A log whose only file was its `.swap` was passed over once: the partition showed fewer records and called itself whole.
#[test]
fn an_exchange_of_segments_that_a_broker_was_interrupted_in_is_seen_through() {
    // Nothing of the old state is gone yet.
    check_exchange(merge_into_swap);
    // The old logs are gone, and their indexes are not.
    check_exchange(|directory| {
        merge_into_swap(directory);
        remove_closed(directory, &["log"]);
    });
    check_exchange(|directory| {
        merge_into_swap(directory);
        remove_closed(directory, &["log", "index", "timeindex", "txnindex", "log.deleted"]);
    });
    // The log has its final name, and its indexes do not have theirs.
    check_exchange(|directory| {
        merge_into_swap(directory);
        remove_closed(directory, &["index", "timeindex", "txnindex", "log"]);
        for swap in files(directory, ".log.swap") {
            fs::rename(&swap, swap.with_extension("")).unwrap();
        }
    });
}

#[test]
fn an_exchange_that_was_not_complete_is_not_seen() {
    for name in ["00000000000000000000.log.cleaned", "00000000000000000000.index.cleaned"] {
        check_changed(|directory| {
            if let Some(first) = files(directory, ".log").first().filter(|_| files(directory, ".log").len() > 1) {
                fs::write(first.with_extension("log.swap"), b"not all of it").unwrap();
                fs::write(directory.join(name), b"").unwrap();
            }
        });
    }
}

#[test]
fn a_complete_segment_that_is_damaged_is_told_of() {
    let (_guard, root) = copy_of("clean");
    let log = files(&root.join("compacted-0"), ".log").remove(0);
    let swap = log.with_extension("log.swap");
    let mut bytes = fs::read(&log).unwrap();
    bytes[65] ^= 1;
    fs::write(&swap, bytes).unwrap();
    fs::remove_file(&log).unwrap();
    let refused = open(&root).topic("compacted").unwrap().partition(0).unwrap_err();
    assert!(matches!(&refused, Error::Corrupt { path, .. } if *path == swap), "{refused}");
    assert!(verify(&root).unwrap().damages().any(|finding| finding.path == swap));
    assert!(Store::adopt(&root, &AdoptOptions::new()).is_err());
}

fn remove_store_manifests(root: &Path) {
    for slot in ["topiclog.manifest.0", "topiclog.manifest.1"] {
        fs::remove_file(root.join(slot)).unwrap_or_default();
    }
}

/// Partition manifests without one of the store: a reader once took them for files of two copies.
#[test]
fn an_adoption_that_was_interrupted_before_its_commit_is_read_and_repeated() {
    for state in STATES {
        let (_guard, root) = copy_of(state);
        let adopt = AdoptOptions::new().broker_is_gone(true);
        Store::adopt(&root, &adopt).unwrap();
        remove_store_manifests(&root);
        let expected = fixtures().join(format!("{state}.expected"));
        check_store(&open(&root), &expected);
        assert!(verify(&root).unwrap().damages().any(|finding| finding.path == root), "it is no whole store");
        assert!(matches!(Store::open(&root), Err(Error::NeedsAdopt { .. })));
        Store::adopt(&root, &adopt).unwrap();
        check_store(&open(&root), &expected);
        Store::builder().upkeep(Upkeep::Manual).open(&root).unwrap().close().unwrap();
    }
}

#[test]
fn a_broker_that_went_on_after_an_interrupted_adoption_is_read_too() {
    let (_guard, root) = copy_of("clean");
    Store::adopt(&root, &AdoptOptions::new()).unwrap();
    remove_store_manifests(&root);
    let log = files(&root.join("large-0"), ".log").pop().unwrap();
    let base: i64 = log.file_stem().unwrap().to_str().unwrap().parse().unwrap();
    let mut batch = topiclog::record::BatchBuilder::new(topiclog::record::BatchSpec {
        leader_epoch: 1000,
        ..topiclog::record::BatchSpec::new(base)
    });
    batch.push(Record::keyed("k", "the broker's").timestamp_ms(1_700_000_000_000)).unwrap();
    fs::write(&log, batch.finish().unwrap()).unwrap();
    let partition = open(&root).topic("large").unwrap().partition(0).unwrap();
    assert_eq!(partition.record(base).unwrap().unwrap().value(), Some(&b"the broker's"[..]));
}

/// Adopts, writes, and adopts anew as after a broker that wrote: what the topic was configured to be stays.
#[test]
fn what_a_topic_was_configured_to_be_outlives_another_adoption() {
    let (_guard, root) = copy_of("clean");
    let compact = TopicConfig::default().cleanup_policy(CleanupPolicy::Compact).segment_bytes(5000);
    let first = AdoptOptions::new().config("compacted", compact).config("large", TopicConfig::default());
    Store::adopt(&root, &first).unwrap();
    let store = Store::builder().upkeep(Upkeep::Manual).open(&root).unwrap();
    let config = store.topic("compacted").unwrap().config();
    let floor = |store: &Store, topic: &str| {
        let partition = store.topic(topic).unwrap().partition(0).unwrap();
        (partition.tombstone_floor(), partition.end())
    };
    let (dropped_to, end) = floor(&store, "compacted");
    assert_eq!(dropped_to, end, "what the broker dropped of it is not known");
    assert_eq!(floor(&store, "large").0.get(), 0);
    let stale = ReadOptions::new().state_since(0.into());
    let partition = store.topic("compacted").unwrap().partition(0).unwrap();
    let mut reader = partition.reader(partition.start(), &stale).unwrap();
    assert!(matches!(reader.next().unwrap(), Err(Error::SnapshotRequired { .. })));
    drop((reader, partition));
    store.close().unwrap();

    Store::adopt(&root, &AdoptOptions::new()).unwrap();
    let store = Store::builder().upkeep(Upkeep::Manual).open(&root).unwrap();
    assert_eq!(store.topic("compacted").unwrap().config(), config);
    store.close().unwrap();
    // Without a configuration, and after one that says otherwise, the floor does not fall.
    Store::adopt(&root, &AdoptOptions::new().config("compacted", TopicConfig::default())).unwrap();
    let store = Store::builder().upkeep(Upkeep::Manual).open(&root).unwrap();
    assert_eq!(store.topic("compacted").unwrap().config(), TopicConfig::default());
    assert_eq!(floor(&store, "compacted").0, end);
    store.close().unwrap();
}

#[test]
fn timestamps_of_the_future_do_not_keep_adopted_segments_for_ever() {
    let (_guard, root) = copy_of("clean");
    // The clock of this machine stands years after the file's times and before those of its records.
    let log = files(&root.join("large-0"), ".log").remove(0);
    let now_ms = SystemClock.now_ms();
    let mut batch = topiclog::record::BatchBuilder::new(topiclog::record::BatchSpec::new(0));
    batch.push(Record::keyed("k", "v").timestamp_ms(now_ms + 100 * 365 * 86_400_000)).unwrap();
    for path in fs::read_dir(root.join("large-0")).unwrap() {
        fs::remove_file(path.unwrap().path()).unwrap();
    }
    fs::write(&log, batch.finish().unwrap()).unwrap();
    // The broker flushed all of it.
    let flushed = root.join("recovery-point-offset-checkpoint");
    let text = fs::read_to_string(&flushed).unwrap();
    fs::write(&flushed, text.replace("large 0 3", "large 0 1")).unwrap();
    let week = TopicConfig::default().retention_ms(7 * 86_400_000);
    Store::adopt(&root, &AdoptOptions::new().config("large", week)).unwrap();
    let clock = Arc::new(ManualClock::new(now_ms));
    let store = Store::builder().upkeep(Upkeep::Manual).clock(clock.clone()).open(&root).unwrap();
    let partition = store.topic("large").unwrap().partition(0).unwrap();
    store.tick_topic("large").unwrap();
    assert_eq!(partition.start().get(), 0);
    clock.advance_ms(8 * 86_400_000);
    store.tick_topic("large").unwrap();
    assert_eq!(partition.start().get(), 1);
    store.close().unwrap();
}

/// The one partition that was there once got the records of all keys.
#[test]
fn a_key_goes_to_no_other_partition_because_its_own_is_not_here() {
    let (_guard, root) = copy_of("clean");
    for directory in partitions(&root).iter().filter(|directory| !directory.ends_with("partitioned-3")) {
        fs::remove_dir_all(directory).unwrap();
    }
    Store::adopt(&root, &AdoptOptions::new()).unwrap();
    let store = Store::builder().upkeep(Upkeep::Manual).open(&root).unwrap();
    let topic = store.topic("partitioned").unwrap();
    assert_eq!((topic.partition_count(), topic.partitions().count()), (4, 1));
    let expected = |key: &str| (topiclog::murmur2(key.as_bytes()) & 0x7fff_ffff) % 4;
    for key in ["a", "b", "c", "d", "e", "f", "g", "h"] {
        match topic.append(Record::keyed(key, "v")) {
            Ok(placed) => assert_eq!((placed.partition.get(), expected(key)), (3, 3)),
            Err(error) => assert!(matches!(error, Error::UnknownTopic { .. }) && expected(key) != 3, "{key}: {error}"),
        }
    }
    assert_eq!(topic.append(Record::of_value("no key")).unwrap().partition.get(), 3);
    store.close().unwrap();
}
