//! What an adoption takes over, and what it refuses to.
#![cfg(all(feature = "gzip", feature = "snappy", feature = "lz4", feature = "zstd"))]

use std::fs;
use std::path::{Path, PathBuf};

use topiclog::record::BatchView;
use topiclog::{AdoptOptions, Error, PartitionPosition, Record, Repair, Store, TopicConfig, Upkeep};

use crate::kafka_dirs::copy_of;

const STATES: [&str; 2] = ["clean", "killed"];

fn gone() -> AdoptOptions {
    AdoptOptions::new().broker_is_gone(true)
}

fn open(root: &Path) -> Store {
    Store::builder().upkeep(Upkeep::Manual).open(root).unwrap()
}

/// The leader epochs in Kafka's checkpoint, with their first offsets.
fn epochs_of(directory: &Path) -> Vec<(i32, i64)> {
    let text = fs::read_to_string(directory.join("leader-epoch-checkpoint")).unwrap();
    let entries = text.lines().skip(2).map(|line| line.split_once(' ').unwrap());
    entries.map(|(epoch, start)| (epoch.parse().unwrap(), start.parse().unwrap())).collect()
}

/// The highest leader epoch of the batches in a directory.
fn highest_epoch(directory: &Path) -> i32 {
    let mut highest = -1;
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let bytes =
            if path.extension().is_some_and(|suffix| suffix == "log") { fs::read(path).unwrap() } else { continue };
        let mut rest = &bytes[..];
        while let Ok(view) = BatchView::parse(rest) {
            highest = highest.max(view.header().leader_epoch);
            rest = &rest[view.bytes().len()..];
        }
    }
    highest
}

/// An epoch that began at the log end, as each start of a broker leaves one, was thrown away: appends got an epoch that Kafka
/// had used, and a position of it was taken for lost.
#[test]
fn appends_after_an_adoption_have_an_epoch_above_all_that_were_seen() {
    for state in STATES {
        let (_guard, root) = copy_of(state);
        let dry = Store::adopt(&root, &gone().dry_run(true)).unwrap();
        assert!(dry.partitions.len() >= 25);
        let seen: Vec<_> = (dry.partitions.iter())
            .map(|adopted| {
                let directory = root.join(adopted.partition.directory_name());
                (epochs_of(&directory), highest_epoch(&directory))
            })
            .collect();
        let report = Store::adopt(&root, &gone()).unwrap();
        assert_eq!(report.partitions, dry.partitions);
        let store = open(&root);
        for (adopted, (epochs, highest)) in report.partitions.iter().zip(seen) {
            let id = &adopted.partition;
            let partition = store.topic(id.topic.as_str()).unwrap().partition(id.partition).unwrap();
            let newest = epochs.last().unwrap().0.max(highest);
            for (epoch, offset) in epochs.into_iter().chain([(newest, adopted.end.get())]) {
                let at = PartitionPosition::new(offset).leader_epoch(epoch);
                assert!(partition.check_position(&at).is_ok(), "{id}: {epoch} at {offset}");
            }
            let placed = partition.append(Record::keyed("k", "v")).unwrap();
            assert_eq!((placed.leader_epoch, placed.offset), (adopted.leader_epoch, adopted.end), "{id}");
            assert_eq!(adopted.leader_epoch, newest + 1, "{id}");
            assert_eq!(partition.record(placed.offset).unwrap().unwrap().leader_epoch(), newest + 1);
        }
        store.close().unwrap();
    }
}

const CHECKPOINTS: [&str; 4] = [
    "recovery-point-offset-checkpoint",
    "replication-offset-checkpoint",
    "log-start-offset-checkpoint",
    "cleaner-offset-checkpoint",
];

/// The entries of a checkpoint, in order.
fn entries_of(root: &Path, name: &str) -> Vec<String> {
    let text = fs::read_to_string(root.join(name)).unwrap();
    let mut entries: Vec<String> = text.lines().skip(2).map(str::to_owned).collect();
    entries.sort();
    entries
}

fn add_entry(root: &Path, name: &str, entry: &str) {
    let mut entries = entries_of(root, name);
    entries.push(entry.to_owned());
    fs::write(root.join(name), format!("0\n{}\n{}\n", entries.len(), entries.join("\n"))).unwrap();
}

/// A broker makes a topic; all its records are gone by age, so that only the name of its log says where offsets go on.
fn broker_makes(root: &Path, name: &str) -> Vec<PathBuf> {
    let directory = root.join(name);
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join("partition.metadata"), "version: 0\ntopic_id: w_P_uABI0SryN7wEjRWeJg").unwrap();
    fs::write(directory.join("leader-epoch-checkpoint"), "0\n1\n0 5000\n").unwrap();
    for suffix in ["log", "index", "timeindex"] {
        fs::write(directory.join(format!("{:020}.{suffix}", 5000)), "").unwrap();
    }
    CHECKPOINTS.iter().for_each(|checkpoint| add_entry(root, checkpoint, &format!("{} 5000", name.replace("-0", " 0"))));
    let mut files: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// The directory was removed as one of ours that never took effect, since no record was in it; and a close wrote checkpoints
/// without it, under a marker that vouched for it.
#[test]
fn a_broker_s_partition_that_came_after_the_adoption_is_left_alone() {
    for has_marker in [true, false] {
        let (_guard, root) = copy_of("clean");
        Store::adopt(&root, &gone()).unwrap();
        open(&root).close().unwrap();
        let marker = root.join(".kafka_cleanshutdown");
        assert!(marker.exists());
        let files = broker_makes(&root, "later-0");
        if !has_marker {
            fs::remove_file(&marker).unwrap();
        }
        let store = open(&root);
        let is_told = |repair: &Repair| matches!(repair, Repair::Stranger { path } if path.ends_with("later-0"));
        assert!(store.recovery_report().store.iter().any(is_told));
        let refused = store.create_topic("later", TopicConfig::default()).unwrap_err();
        assert!(matches!(refused, Error::NeedsAdopt { .. }), "{refused}");
        let end = store.topic("large").unwrap().append(Record::of_value("v")).unwrap().next_offset;
        store.close().unwrap();
        assert!(files.iter().all(|file| file.exists()));
        for name in &CHECKPOINTS[..3] {
            assert!(entries_of(&root, name).contains(&"later 0 5000".to_owned()), "{name}");
        }
        assert!(entries_of(&root, CHECKPOINTS[0]).contains(&format!("large 0 {end}")));
        assert_eq!(marker.exists(), has_marker, "it says something of that partition too");
    }
}

/// What is no longer there has no entry: a log that is made anew would begin at the log start of the old one.
#[test]
fn a_deleted_topic_leaves_no_entry_in_a_checkpoint() {
    let (_guard, root) = copy_of("clean");
    Store::adopt(&root, &gone()).unwrap();
    broker_makes(&root, "later-0");
    let store = open(&root);
    store.delete_topic("records_deleted").unwrap();
    store.close().unwrap();
    for name in &CHECKPOINTS[..3] {
        let entries = entries_of(&root, name);
        assert!(!entries.iter().any(|entry| entry.starts_with("records_deleted")), "{entries:?}");
    }
}
