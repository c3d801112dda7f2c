//! Topics: created, listed, altered, deleted, routed to.

use std::sync::Arc;

use topiclog::io::MemoryVfs;
use topiclog::{AppendOptions, CleanupPolicy, Error, Record, Store, StoreBuilder, TopicConfig, Upkeep, murmur2};

fn builder(vfs: &MemoryVfs) -> StoreBuilder {
    Store::builder().vfs(Arc::new(vfs.clone())).upkeep(Upkeep::Manual)
}

#[test]
fn topics_and_their_configurations_are_kept() {
    let vfs = MemoryVfs::new();
    let store = builder(&vfs).open("/s").unwrap();
    let config = TopicConfig::default().partitions(3).segment_bytes(5000);
    let id = store.create_topic("b", config.clone()).unwrap().id();
    store.create_topic("a.b_c-d", TopicConfig::default()).unwrap();
    assert!(matches!(store.create_topic("b", TopicConfig::default()), Err(Error::TopicExists { .. })));
    assert_eq!(store.ensure_topic("b", TopicConfig::default()).unwrap().config(), config);
    let altered = config.segment_bytes(9000);
    store.alter_topic("b", altered.clone()).unwrap();
    assert!(matches!(store.alter_topic("b", altered.clone().partitions(4)), Err(Error::Config { .. })));
    assert!(matches!(store.alter_topic("c", altered.clone()), Err(Error::UnknownTopic { .. })));
    store.close().unwrap();

    let store = builder(&vfs).open("/s").unwrap();
    let names: Vec<String> = store.topics().iter().map(ToString::to_string).collect();
    assert_eq!(names, ["a.b_c-d", "b"]);
    let topic = store.topic("b").unwrap();
    assert_eq!((topic.id(), topic.config(), topic.partition_count()), (id, altered, 3));
    assert!(matches!(topic.partition(3), Err(Error::UnknownTopic { .. })));
}

#[test]
fn a_deleted_topic_is_gone_and_its_name_can_be_used_again() {
    let vfs = MemoryVfs::new();
    let store = builder(&vfs).open("/s").unwrap();
    let topic = store.create_topic("t", TopicConfig::default().partitions(2)).unwrap();
    topic.append(Record::keyed("k", "old")).unwrap();
    let held = topic.partition(topic.partition_for(Record::keyed("k", ""))).unwrap().record(0).unwrap().unwrap();
    store.delete_topic("t").unwrap();
    assert!(matches!(topic.append(Record::keyed("k", "no")), Err(Error::Closed { .. })));
    assert!(matches!(store.topic("t"), Err(Error::UnknownTopic { .. })));
    assert_eq!(held.value(), Some(&b"old"[..]), "bytes that were handed out stay");
    let again = store.create_topic("t", TopicConfig::default()).unwrap();
    assert_ne!(again.id(), topic.id());
    assert_eq!(again.partition(0).unwrap().end().get(), 0);
    store.close().unwrap();
    let store = builder(&vfs).open("/s").unwrap();
    assert_eq!(store.topics().len(), 1);
}

#[test]
fn records_go_where_kafkas_partitioner_sends_them() {
    let store = Store::in_memory().unwrap();
    let topic = store.create_topic("t", TopicConfig::default().partitions(6)).unwrap();
    for key in ["a", "abc", "foobar", "orders", "user-1234567"] {
        let expected = (murmur2(key.as_bytes()) & 0x7fff_ffff) % 6;
        assert_eq!(topic.append(Record::keyed(key, "v")).unwrap().partition.get(), expected);
        let by_field = Record::of_value("v").partition_key(key);
        let placed = topic.append(&by_field).unwrap();
        assert_eq!(placed.partition.get(), expected);
        let stored = topic.partition(placed.partition).unwrap().record(placed.offset).unwrap().unwrap();
        assert_eq!(stored.key(), None, "a partition key is not stored");
    }
    assert_eq!(topic.append(Record::keyed("a", "v").to_partition(5)).unwrap().partition.get(), 5);
    assert!(matches!(topic.append(Record::of_value("v").to_partition(6)), Err(Error::UnknownTopic { .. })));
    let many: Vec<Record> = (0..100).map(|index| Record::keyed(format!("k{index}"), "v")).collect();
    let placed = topic.append_all(&many, &AppendOptions::new()).unwrap();
    assert_eq!(placed.len(), 6);
    assert_eq!(placed.iter().map(|placed| placed.next_offset.get() - placed.offset.get()).sum::<i64>(), 100);
}

#[test]
fn what_breaks_a_limit_is_refused_before_a_byte_is_written() {
    let store = Store::in_memory().unwrap();
    let config = TopicConfig::default().batch_bytes_max(1000).cleanup_policy(CleanupPolicy::Compact);
    let topic = store.create_topic("t", config).unwrap();
    let refused = |record: Record| {
        let error = topic.append(record).unwrap_err();
        assert!(matches!(error, Error::Invalid { .. }), "{error}");
    };
    refused(Record::of_value("a compacted topic needs a key"));
    refused(Record::keyed("k", vec![0; 2000]));
    refused(Record::keyed(vec![0; (64 << 10) + 1], "v"));
    refused(Record::keyed("k", "v").timestamp_ms(-2));
    refused((0..1025).fold(Record::keyed("k", "v"), |record, _| record.header("h", "")));
    let none: [Record; 0] = [];
    assert!(matches!(topic.partition(0).unwrap().append_batch(&none), Err(Error::Invalid { .. })));
    assert_eq!(topic.partition(0).unwrap().stats().bytes, 0);
    topic.append(Record::keyed("k", "v")).unwrap();
}

#[test]
fn the_number_of_topics_is_bounded() {
    let store =
        Store::builder().vfs(Arc::new(MemoryVfs::new())).upkeep(Upkeep::Manual).topics_max(2).open("/").unwrap();
    store.create_topic("a", TopicConfig::default()).unwrap();
    store.create_topic("b", TopicConfig::default()).unwrap();
    assert!(matches!(store.create_topic("c", TopicConfig::default()), Err(Error::Invalid { .. })));
}

#[test]
fn many_partitions_share_few_open_files() {
    let directory = tempfile::tempdir().unwrap();
    let open = || Store::builder().open_files_max(16).upkeep(Upkeep::Manual).open(directory.path()).unwrap();
    let store = open();
    let config = TopicConfig::default().partitions(100).durability(topiclog::Durability::Os);
    let topic = store.create_topic("t", config).unwrap();
    for round in 0..3_i64 {
        for partition in topic.partitions() {
            assert_eq!(partition.append(Record::of_value("v")).unwrap().offset.get(), round);
            assert!(store.open_files() <= 17, "{} open files", store.open_files());
        }
    }
    store.close().unwrap();
    let store = open();
    for partition in store.topic("t").unwrap().partitions() {
        assert_eq!(partition.read_from(0).count(), 3);
    }
    store.close().unwrap();
}

#[test]
fn opening_and_closing_again_leaves_the_directory_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::builder().upkeep(Upkeep::Manual).open(directory.path()).unwrap();
    let topic = store.create_topic("t", TopicConfig::default()).unwrap();
    topic.append(Record::of_value("v")).unwrap();
    store.close().unwrap();
    let before = crate::kafka_dirs::tree(directory.path());
    for _ in 0..20 {
        let store = Store::builder().upkeep(Upkeep::Manual).open(directory.path()).unwrap();
        assert!(!store.recovery_report().is_unclean());
        store.close().unwrap();
    }
    assert!(before == crate::kafka_dirs::tree(directory.path()));
}

#[cfg(all(feature = "gzip", feature = "zstd"))]
#[test]
fn an_append_in_another_codec_takes_the_level_of_that_codec() {
    let store = Store::in_memory().unwrap();
    let config = TopicConfig::default().compression(topiclog::Compression::Zstd).zstd_level(-100);
    let topic = store.create_topic("t", config).unwrap();
    for codec in [topiclog::Compression::Gzip, topiclog::Compression::Zstd] {
        topic.append_with(Record::of_value(vec![7; 1000]), &AppendOptions::new().compression(codec)).unwrap();
    }
}

#[test]
fn a_store_that_is_not_to_be_made_is_not_there_and_nothing_is_written() {
    let directory = tempfile::tempdir().unwrap();
    let (none, some) = (directory.path().join("none"), directory.path().join("some"));
    let builder = Store::builder().create(false).upkeep(Upkeep::Manual);
    std::fs::create_dir(&some).unwrap();
    for path in [&none, &some] {
        let refused = builder.clone().open(path);
        assert!(matches!(&refused, Err(Error::NoStore { path: of }) if of == path), "{refused:?}");
    }
    assert!(!none.exists());
    assert_eq!(std::fs::read_dir(&some).unwrap().count(), 0);
    Store::builder().upkeep(Upkeep::Manual).open(&some).unwrap().close().unwrap();
    builder.open(&some).unwrap().close().unwrap();
}
