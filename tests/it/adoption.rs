//! What an adoption takes over, and what it refuses to.

use std::fs;
use std::path::Path;

use topiclog::record::BatchView;
use topiclog::{AdoptOptions, PartitionPosition, Record, Store, Upkeep};

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
            let known = epochs.iter().chain([&(newest, adopted.end.get())]);
            for &(epoch, offset) in known {
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
