//! The crate as a user meets it: append, read, reopen, limits, errors.

use std::sync::Arc;

use topiclog::client::{Connect, ProducerOptions, SendOptions};
use topiclog::clock::ManualClock;
use topiclog::io::MemoryVfs;
use topiclog::{
    AppendOptions, Compression, Durability, Error, Offset, ReadPath, Record, Store, StoreBuilder, Topic, TopicConfig,
    Upkeep,
};

fn builder(vfs: &MemoryVfs) -> StoreBuilder {
    Store::builder()
        .vfs(Arc::new(vfs.clone()))
        .clock(Arc::new(ManualClock::new(1_700_000_000_000)))
        .upkeep(Upkeep::Manual)
        .id_seed(7)
}

fn fill(topic: &Topic, from: usize, to: usize) {
    for index in from..to {
        let record = Record::keyed(format!("key-{index}"), format!("value-{index}")).header("n", index.to_string());
        topic.append(record).unwrap();
    }
}

/// All records of all partitions hold what [`fill`] wrote, in order, without a gap.
fn check_filled(topic: &Topic, count: usize) {
    let mut seen = 0;
    for partition in topic.partitions() {
        let mut expected = 0;
        for record in partition.read_from(partition.start()) {
            let record = record.unwrap();
            assert_eq!(record.offset(), Offset::new(expected));
            let key = String::from_utf8(record.key().unwrap().to_vec()).unwrap();
            let index = key.strip_prefix("key-").unwrap();
            assert_eq!(record.value(), Some(format!("value-{index}").as_bytes()));
            assert_eq!(record.headers().len(), 1);
            (seen, expected) = (seen + 1, expected + 1);
        }
        assert_eq!(partition.end(), Offset::new(expected));
    }
    assert_eq!(seen, count);
}

fn small(durability: Durability) -> TopicConfig {
    TopicConfig::default().partitions(3).segment_bytes(2000).index_interval_bytes(100).durability(durability)
}

#[test]
fn what_was_appended_is_there_after_a_close_and_after_a_kill() {
    for durability in [Durability::Os, Durability::INTERVAL, Durability::Sync] {
        let vfs = MemoryVfs::new();
        let store = builder(&vfs).open("/s").unwrap();
        let topic = store.create_topic("t", small(durability)).unwrap();
        fill(&topic, 0, 200);
        check_filled(&topic, 200);
        store.close().unwrap();
        assert!(matches!(topic.append(Record::of_value("x")), Err(Error::Closed { .. })));

        let store = builder(&vfs).open("/s").unwrap();
        assert!(!store.recovery_report().is_unclean(), "{:?}", store.recovery_report());
        let topic = store.topic("t").unwrap();
        check_filled(&topic, 200);
        fill(&topic, 200, 300);
        check_filled(&topic, 300);
        drop((store, topic));

        let store = builder(&vfs).open("/s").unwrap();
        assert!(store.recovery_report().is_unclean());
        let topic = store.topic("t").unwrap();
        check_filled(&topic, 300);
        fill(&topic, 300, 310);
        while !store.tick().unwrap().is_idle() {}
        check_filled(&topic, 310);
        store.close().unwrap();

        let read_only = builder(&vfs).read_only(true).open("/s").unwrap();
        check_filled(&read_only.topic("t").unwrap(), 310);
    }
}

#[test]
fn the_same_on_a_real_disk_through_maps_and_positionally() {
    for reads in [ReadPath::Mapped, ReadPath::Positional] {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("a/b");
        let open = || Store::builder().reads(reads).open(&root).unwrap();
        let store = open();
        let topic = store.create_topic("t", small(Durability::Sync)).unwrap();
        fill(&topic, 0, 100);
        check_filled(&topic, 100);
        drop((store, topic));
        let store = open();
        let topic = store.topic("t").unwrap();
        check_filled(&topic, 100);
        fill(&topic, 100, 200);
        store.close().unwrap();
        let store = open();
        check_filled(&store.topic("t").unwrap(), 200);
    }
}

#[test]
fn a_read_finds_every_offset_with_every_budget() {
    let store = Store::in_memory().unwrap();
    let topic = store.create_topic("t", small(Durability::Os).partitions(1)).unwrap();
    let partition = topic.partition(0).unwrap();
    for batch in 0..60usize {
        let records: Vec<Record> =
            (0..=batch % 7).map(|index| Record::of_value(vec![b'x'; batch * 3 + index])).collect();
        let options = AppendOptions::new().compression(if cfg!(feature = "lz4") && batch % 3 == 0 {
            Compression::Lz4
        } else {
            Compression::None
        });
        partition.append_batch_with(&records, &options).unwrap();
    }
    let all: Vec<_> = partition.read_from(0).map(Result::unwrap).collect();
    for budget in [0, 1, 100, 333, 5000, 1 << 20] {
        for records_max in [1, 3, 1000] {
            let mut offset = Offset::ZERO;
            let mut seen = Vec::new();
            while offset < partition.end() {
                let fetched = partition.read(offset, budget, records_max).unwrap();
                assert!(fetched.next_offset > offset, "no progress at {offset}");
                assert!(fetched.records.len() <= records_max);
                offset = fetched.next_offset;
                seen.extend(fetched.records);
            }
            assert_eq!(seen.len(), all.len(), "budget {budget}, {records_max} records");
            assert!(seen.iter().zip(&all).all(|(a, b)| a.offset() == b.offset() && a.value() == b.value()));
        }
    }
    for offset in 0..partition.end().get() {
        assert_eq!(partition.record(offset).unwrap().unwrap().offset(), Offset::new(offset));
        assert_eq!(partition.read_from(offset).count() as i64, partition.end().get() - offset);
    }
    for offset in [-1, partition.end().get() + 1] {
        let error = partition.read(offset, 1, 1).unwrap_err();
        assert!(
            matches!(error, Error::OffsetOutOfRange { start, end, .. } if start.get() == 0 && end == partition.end())
        );
    }
}

#[test]
fn an_append_that_expects_an_end_is_refused_once_something_came_before_it() {
    let store = Store::in_memory().unwrap();
    let topic = store.create_topic("t", TopicConfig::default()).unwrap();
    let partition = topic.partition(0).unwrap();
    let if_at = |offset: i64| AppendOptions::new().expected_offset(offset);
    let producer = store.produce(ProducerOptions::new()).unwrap();
    let send = |offset: i64| {
        producer.send(partition.id(), vec![Record::of_value("v")], &SendOptions::new().expected_offset(offset))
    };
    let check = |refused: topiclog::Result<topiclog::RecordMetadata>, asked: i64, ends: i64| match refused {
        Err(Error::Conflict { partition: of, expected, end }) => {
            assert_eq!((&of, expected.get(), end.get()), (partition.id(), asked, ends));
        }
        other => panic!("{other:?}"),
    };
    topic.append_with(Record::of_value("v"), &if_at(0)).unwrap();
    check(topic.append_with(Record::of_value("v"), &if_at(0)), 0, 1);
    check(partition.append_batch_with(&[Record::of_value("v")], &if_at(2)), 2, 1);
    check(send(0), 0, 1);
    send(1).unwrap();
    assert_eq!(partition.end().get(), 2, "what was refused is not there");
}
