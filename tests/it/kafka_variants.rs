//! The same Kafka directories with files lost, emptied, torn and left over: the same records all the same.
#![cfg(all(feature = "gzip", feature = "snappy", feature = "lz4", feature = "zstd"))]

use std::fs;
use std::path::{Path, PathBuf};

use topiclog::{AdoptOptions, Error, Repair, Store, Upkeep};

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
