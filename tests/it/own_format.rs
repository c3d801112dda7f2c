//! Directories that this format's first version wrote are read for ever.
//!
//! `TOPICLOG_WRITE_GOLDEN=1 cargo test --test it own_format` writes a directory anew, for a new format version only.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use topiclog::clock::ManualClock;
use topiclog::{Durability, Record, Store, TopicConfig, Upkeep, verify};

use crate::kafka_dirs::{copy_tree, tree};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/topiclog-1")
}

fn record(index: i64) -> Record {
    Record::new((index % 5 != 0).then(|| format!("key-{index}").into()), Some(format!("value-{index}").into()))
        .timestamp_ms(1_700_000_000_000 + index * 10)
        .header("n", index.to_string())
}

/// Two partitions with sealed segments and an active one, closed in order.
fn write(root: &Path) {
    let clock = Arc::new(ManualClock::new(1_700_000_000_000));
    let store = Store::builder().clock(clock).upkeep(Upkeep::Manual).id_seed(1).open(root).unwrap();
    let config = TopicConfig::default()
        .partitions(2)
        .durability(Durability::INTERVAL)
        .segment_bytes(1500)
        .index_interval_bytes(200);
    let topic = store.create_topic("golden", config).unwrap();
    for index in 0..40 {
        topic.append(record(index).to_partition((index % 2) as u32)).unwrap();
    }
    store.close().unwrap();
}

fn check(store: &Store) {
    let topic = store.topic("golden").unwrap();
    for partition in topic.partitions() {
        let number = i64::from(partition.id().partition.get());
        assert_eq!((partition.start().get(), partition.end().get()), (0, 20));
        assert_eq!(partition.read_from(0).count(), 20);
        for (nth, stored) in (0..).zip(partition.read_from(0)) {
            let (stored, expected) = (stored.unwrap(), record(nth * 2 + number));
            assert_eq!((stored.key(), stored.value()), (expected.key(), expected.value()));
            assert_eq!(Some(stored.timestamp_ms()), expected.timestamp());
        }
        let found = partition.offset_for_timestamp(1_700_000_000_100).unwrap().unwrap();
        assert_eq!(found.offset.get(), 5);
    }
}

#[test]
fn the_first_format_is_read_and_written_on() {
    if std::env::var_os("TOPICLOG_WRITE_GOLDEN").is_some() {
        std::fs::remove_dir_all(golden()).ok();
        write(&golden());
    }
    let before = tree(&golden());
    tell!("golden files of the first format: {}", before.len());
    assert!(before.len() >= 20, "{} files", before.len());
    let store = Store::builder().read_only(true).upkeep(Upkeep::Manual).open(golden()).unwrap();
    check(&store);
    drop(store);
    assert_eq!(verify(golden()).unwrap().damages().count(), 0);
    assert!(before == tree(&golden()));

    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("copy");
    copy_tree(&golden(), &root);
    let store = Store::builder().upkeep(Upkeep::Manual).open(&root).unwrap();
    assert!(!store.recovery_report().is_unclean(), "{:?}", store.recovery_report());
    check(&store);
    let placed = store.topic("golden").unwrap().append(record(40).to_partition(0)).unwrap();
    assert_eq!(placed.offset.get(), 20);
    store.close().unwrap();
}
