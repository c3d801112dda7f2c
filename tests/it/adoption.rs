//! What an adoption takes over, and what it refuses to.
#![cfg(all(feature = "gzip", feature = "snappy", feature = "lz4", feature = "zstd"))]

use std::fs;
use std::path::{Path, PathBuf};

use topiclog::client::OffsetAndMetadata;
use topiclog::group::Groups;
use topiclog::record::BatchView;
use topiclog::{AdoptOptions, Error, Finding, PartitionPosition, Record, Repair, Store, TopicConfig, Upkeep, verify};

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
    CHECKPOINTS
        .iter()
        .for_each(|checkpoint| add_entry(root, checkpoint, &format!("{} 5000", name.replace("-0", " 0"))));
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

/// A copy of what a broker left after it stopped in order, without a part of it: an adoption names the offsets that are missing,
/// so does `verify`, and a reader is not shown the partition as if it were whole. So it is without the marker.
fn check_missing(id: &str, change: impl Fn(&Path), to: i64) {
    let (topic, number) = id.rsplit_once('-').unwrap();
    let (_guard, root) = copy_of("clean");
    change(&root);
    for has_marker in [true, false] {
        if !has_marker {
            fs::remove_file(root.join(".kafka_cleanshutdown")).unwrap();
        }
        let is_meant = |error: &Error| match error {
            Error::Corrupt { path, offsets: Some((from, until)), .. } => {
                path.starts_with(root.join(id)) && from < until && until.get() == to
            }
            _ => false,
        };
        for dry_run in [true, false] {
            let refused = Store::adopt(&root, &gone().dry_run(dry_run)).unwrap_err();
            assert!(is_meant(&refused), "{id}: {refused:?}");
        }
        let report = verify(&root).unwrap();
        let is_told = |finding: &Finding| finding.path.starts_with(root.join(id)) && finding.offset.is_some();
        assert!(report.damages().any(is_told), "{id}: {report:?}");
        let reader = Store::builder().read_only(true).upkeep(Upkeep::Manual).open(&root).unwrap();
        let found = reader.topic(topic).unwrap().partition(number.parse::<u32>().unwrap());
        assert!(found.is_err_and(|error| is_meant(&error)), "{id}");
        let is_listed = |repair: &Repair| matches!(repair, Repair::Unreadable { path, .. } if path.ends_with(id));
        assert!(reader.recovery_report().store.iter().any(is_listed), "{id}");
    }
}

fn remove_files(directory: &Path, is_meant: impl Fn(&str) -> bool) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if is_meant(path.file_name().unwrap().to_str().unwrap()) {
            fs::remove_file(path).unwrap();
        }
    }
}

#[test]
fn a_log_that_ends_below_what_was_flushed_is_not_taken_over() {
    check_missing("compacted-0", |root| remove_files(&root.join("compacted-0"), |name| name.contains("171.")), 172);
    check_missing("compacted-0", |root| remove_files(&root.join("compacted-0"), |name| name.ends_with(".log")), 172);
    let cut_at_a_batch = |root: &Path| {
        let log = root.join("codec.none-0/00000000000000000000.log");
        let bytes = fs::read(&log).unwrap();
        let first = BatchView::parse(&bytes).unwrap().bytes().len();
        assert!(first < bytes.len());
        fs::write(&log, &bytes[..first]).unwrap();
    };
    check_missing("codec.none-0", cut_at_a_batch, 240);
    check_missing("large-0", |root| add_entry(root, CHECKPOINTS[2], "large 0 10"), 10);
}

/// Its offsets lie between two segments, and only its index says that it was there.
#[test]
fn a_segment_whose_index_is_all_that_is_left_is_missed() {
    let (_guard, root) = copy_of("clean");
    let log = root.join("rolled-0/00000000000000000072.log");
    fs::remove_file(&log).unwrap();
    let refused = Store::adopt(&root, &gone()).unwrap_err();
    let is_meant = |error: &Error| matches!(error, Error::Corrupt { offsets: Some((from, to)), .. } if from.get() == 72 && to.get() == 76);
    assert!(is_meant(&refused), "{refused:?}");
    assert!(verify(&root).unwrap().damages().any(|finding| finding.offset == Some(72.into())));
    // A name that says that it was deleted on purpose is no damage.
    fs::write(log.with_extension("log.deleted"), "").unwrap();
    let report = Store::adopt(&root, &gone()).unwrap();
    let repairs = report.partitions.iter().flat_map(|partition| &partition.repairs);
    assert!(repairs.filter(|repair| matches!(repair, Repair::Stranger { .. })).count() >= 2);
}

/// What Kafka leaves in good order is taken over: no entry, an entry of 0, a log whose records are all gone, an index without a
/// log before the first segment; and a recovery point below the end is told of.
#[test]
fn a_directory_that_proves_nothing_is_taken_over() {
    let (_guard, root) = copy_of("clean");
    broker_makes(&root, "later-0");
    let entries: Vec<String> = (entries_of(&root, CHECKPOINTS[0]).into_iter())
        .filter(|entry| !entry.starts_with("codec.lz4 "))
        .map(|entry| match entry.as_str() {
            "codec.none 0 240" => "codec.none 0 0".to_owned(),
            "large 0 3" => "large 0 2".to_owned(),
            _ => entry,
        })
        .collect();
    fs::write(root.join(CHECKPOINTS[0]), format!("0\n{}\n{}\n", entries.len(), entries.join("\n"))).unwrap();
    remove_files(&root.join("rolled-0"), |name| name == "00000000000000000000.log");
    let looked = verify(&root).unwrap();
    assert_eq!(looked.damages().collect::<Vec<_>>(), Vec::<&Finding>::new());
    let odd = |finding: &&Finding| finding.path.ends_with("large-0");
    assert_eq!(looked.findings.iter().filter(odd).count(), 1);
    let report = Store::adopt(&root, &AdoptOptions::new()).unwrap();
    let of = |topic: &str| report.partitions.iter().find(|adopted| adopted.partition.topic.as_str() == topic).unwrap();
    assert!(matches!(of("large").repairs[..], [Repair::CheckpointDiffers { .. }]), "{:?}", of("large"));
    assert!(matches!(of("rolled").repairs[..], [Repair::Stranger { .. }, Repair::Stranger { .. }]));
    assert_eq!((of("later").start.get(), of("later").end.get()), (5000, 5000));
    let placed = open(&root).topic("later").unwrap().append(Record::of_value("v")).unwrap();
    assert_eq!(placed.offset.get(), 5000);
}

fn topic_id_of(directory: &Path) -> String {
    let text = fs::read_to_string(directory.join("partition.metadata")).unwrap();
    text.lines().find_map(|line| line.strip_prefix("topic_id: ")).unwrap().to_owned()
}

/// The first partition once gave its id, or a new one, to all others.
#[test]
fn a_topic_keeps_the_id_that_any_of_its_partitions_has() {
    let (_guard, root) = copy_of("clean");
    let directory = |number: u32| root.join(format!("partitioned-{number}"));
    let topic_id = topic_id_of(&directory(1));
    fs::remove_file(directory(0).join("partition.metadata")).unwrap();
    Store::adopt(&root, &gone()).unwrap();
    assert!((0..6).all(|number| topic_id_of(&directory(number)) == topic_id));
    assert_eq!(open(&root).topic("partitioned").unwrap().id().to_string(), topic_id);
}

#[test]
fn partitions_of_two_topics_are_not_taken_for_one() {
    let (_guard, root) = copy_of("clean");
    let metadata = root.join("partitioned-4/partition.metadata");
    fs::write(&metadata, "version: 0\ntopic_id: w_P_uABI0SryN7wEjRWeJg").unwrap();
    let refused = Store::adopt(&root, &gone()).unwrap_err();
    assert!(matches!(&refused, Error::Corrupt { path, .. } if *path == metadata), "{refused}");
    assert!(verify(&root).unwrap().damages().any(|finding| finding.path == metadata));
    let reader = Store::builder().read_only(true).upkeep(Upkeep::Manual).open(&root).unwrap();
    let topic = reader.topic("partitioned").unwrap();
    assert!(matches!(topic.partition(4), Err(Error::Corrupt { .. })));
    assert_eq!(topic.partitions().count(), 5);
    assert_eq!(topic.id().to_string(), topic_id_of(&root.join("partitioned-0")));
}

/// A broker has some partitions of a topic, and only whoever calls knows how many there are.
#[test]
fn a_topic_has_as_many_partitions_as_the_caller_says() {
    for (said, expected) in [(None, 6), (Some(3), 6), (Some(12), 12)] {
        let (_guard, root) = copy_of("clean");
        let options =
            said.map_or(gone(), |count| gone().config("partitioned", TopicConfig::default().partitions(count)));
        Store::adopt(&root, &options).unwrap();
        let topic = open(&root).topic("partitioned").unwrap();
        assert_eq!((topic.partition_count(), topic.partitions().count()), (expected, 6));
        assert!(matches!(topic.partition(7), Err(Error::UnknownTopic { .. })));
    }
}

/// Both once got the default, and kept all that was ever written to them.
#[test]
fn a_broker_s_own_topics_are_compacted_unless_the_caller_says_otherwise() {
    let (_guard, root) = copy_of("clean");
    Store::adopt(&root, &gone().config("__transaction_state", TopicConfig::default())).unwrap();
    let store = open(&root);
    let offsets = store.topic("__consumer_offsets").unwrap();
    let own = Store::in_memory().unwrap();
    let place = own.create_topic("t", TopicConfig::default()).unwrap().partition(0).unwrap().id().clone();
    Groups::open(&own).unwrap().commit("g", &[(place, OffsetAndMetadata::new(0))]).unwrap();
    let made = own.topic("__consumer_offsets").unwrap().config();
    assert_eq!((offsets.partition_count(), offsets.config()), (2, made.partitions(2)));
    assert_eq!(store.topic("__transaction_state").unwrap().config(), TopicConfig::default().partitions(2));
    while !store.tick().unwrap().is_idle() {}
    let compacted: u64 = offsets.partitions().map(|partition| partition.stats().records_compacted).sum();
    assert!(compacted > 0);
    assert!(!Groups::open(&store).unwrap().list().unwrap().is_empty());
}

/// It was told of as a copy of a manifest of ours.
#[test]
fn a_checkpoint_that_is_none_is_told_of_and_costs_no_record() {
    for name in ["log-start-offset-checkpoint", "codec.none-0/leader-epoch-checkpoint"] {
        let (_guard, root) = copy_of("clean");
        let count = |store: &Store| store.topic("codec.none").unwrap().partition(0).unwrap().read_from(0).count();
        let read = |root: &Path| Store::builder().read_only(true).upkeep(Upkeep::Manual).open(root).unwrap();
        let before = count(&read(&root));
        fs::write(root.join(name), "rot").unwrap();
        let store = read(&root);
        let report = store.recovery_report();
        let repairs = report.store.iter().chain(report.partitions.iter().flat_map(|partition| &partition.repairs));
        let told: Vec<_> = repairs.filter(|repair| matches!(repair, Repair::CheckpointIgnored { .. })).collect();
        assert!(matches!(told[..], [Repair::CheckpointIgnored { path, .. }] if *path == root.join(name)), "{told:?}");
        assert_eq!(count(&store), before);
    }
}
