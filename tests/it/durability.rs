//! What the levels promise, and what happens when a write or a sync fails.

use std::path::Path;
use std::sync::Arc;

use topiclog::clock::ManualClock;
use topiclog::io::{Fault, FaultPlan, FaultVfs, OpKind, SyncFailure, Vfs, errno};
use topiclog::{
    AppendOptions, Durability, Error, Partition, ReadLevel, ReadOptions, Record, Store, StoreBuilder, TopicConfig,
    Upkeep,
};

fn machine() -> FaultVfs {
    let vfs = FaultVfs::new();
    vfs.create_dir(Path::new("/s")).unwrap();
    vfs.sync_everything();
    vfs
}

fn builder(vfs: &FaultVfs) -> StoreBuilder {
    Store::builder()
        .vfs(Arc::new(vfs.clone()))
        .clock(Arc::new(ManualClock::new(1_700_000_000_000)))
        .upkeep(Upkeep::Manual)
        .id_seed(3)
}

fn start(durability: Durability) -> (FaultVfs, Store, Partition) {
    let vfs = machine();
    let store = builder(&vfs).open("/s").unwrap();
    let topic = store.create_topic("t", TopicConfig::default().durability(durability)).unwrap();
    let partition = topic.partition(0).unwrap();
    (vfs, store, partition)
}

fn values(partition: &Partition, level: ReadLevel) -> Vec<String> {
    let reader = partition.reader(partition.start(), &ReadOptions::new().level(level)).unwrap();
    reader.map(|record| String::from_utf8(record.unwrap().value().unwrap().to_vec()).unwrap()).collect()
}

/// What a power cut leaves: only what is on the disk.
fn after_power_cut(vfs: &FaultVfs) -> Vec<String> {
    let machine = FaultVfs::from_image(&vfs.durable_image());
    let store = builder(&machine).open("/s").unwrap();
    values(&store.topic("t").unwrap().partition(0).unwrap(), ReadLevel::Latest)
}

#[test]
fn a_sync_append_survives_a_power_cut_and_an_os_append_does_not() {
    let (vfs, _store, partition) = start(Durability::Sync);
    partition.append(Record::of_value("one")).unwrap();
    let os = AppendOptions::new().durability(Durability::Os);
    partition.append_batch_with(&[Record::of_value("two")], &os).unwrap();
    assert_eq!((partition.durable_end().get(), partition.end().get()), (1, 2));
    assert_eq!(values(&partition, ReadLevel::Topic), ["one"]);
    assert_eq!(values(&partition, ReadLevel::Latest), ["one", "two"]);
    assert_eq!(after_power_cut(&vfs), ["one"]);
    // A later append at `Sync` makes everything before it durable too.
    partition.append(Record::of_value("three")).unwrap();
    assert_eq!(after_power_cut(&vfs), ["one", "two", "three"]);
}

#[test]
fn an_interval_is_kept_by_bytes_and_by_time() {
    let window = Durability::Interval { bytes: 4096, ms: 50 };
    let (vfs, store, partition) = start(window);
    partition.append(Record::of_value("small")).unwrap();
    assert_eq!(partition.durable_end().get(), 0);
    partition.append(Record::of_value(vec![b'x'; 4096])).unwrap();
    assert_eq!(partition.durable_end().get(), 2, "without upkeep the appender keeps the window");
    partition.append(Record::of_value("late")).unwrap();
    let clock = Arc::new(ManualClock::new(0));
    drop((store, partition));
    let store = builder(&vfs);
    vfs.kill();
    let store = store.clock(clock.clone()).open("/s").unwrap();
    let partition = store.topic("t").unwrap().partition(0).unwrap();
    partition.append(Record::of_value("later")).unwrap();
    clock.advance_ms(49);
    store.tick().unwrap();
    assert_eq!(partition.stats().unsynced_bytes > 0, partition.durable_end() < partition.end());
    clock.advance_ms(1);
    assert!(store.tick().unwrap().synced_bytes > 0);
    assert_eq!(partition.durable_end(), partition.end());
}

#[test]
fn after_a_failed_sync_the_partition_refuses_until_it_is_reopened() {
    for failure in [SyncFailure::LostAtDrop, SyncFailure::Reverted, SyncFailure::OpenHandles] {
        let (vfs, store, partition) = start(Durability::Sync);
        partition.append(Record::of_value("kept")).unwrap();
        vfs.inject(FaultPlan::new(Fault::Sync(errno::EIO, failure)).on(OpKind::SyncData).in_class("log"));
        let error = partition.append(Record::of_value("unknown")).unwrap_err();
        assert!(matches!(error, Error::OutcomeUnknown { offset, .. } if offset.get() == 1), "{error}");
        for _ in 0..2 {
            assert!(matches!(partition.append(Record::of_value("no")), Err(Error::Poisoned { .. })));
            assert!(matches!(partition.flush(), Err(Error::SyncFailed { durable_end, .. }) if durable_end.get() == 1));
        }
        assert_eq!(values(&partition, ReadLevel::Durable), ["kept"]);
        assert!(store.close().is_err());
        drop((store, partition));
        vfs.kill();
        vfs.drop_caches();
        let store = builder(&vfs).open("/s").unwrap();
        let partition = store.topic("t").unwrap().partition(0).unwrap();
        let found = values(&partition, ReadLevel::Latest);
        assert!(found == ["kept"] || found == ["kept", "unknown"], "{found:?}");
        partition.append(Record::of_value("again")).unwrap();
        assert_eq!(after_power_cut(&vfs).last().map(String::as_str), Some("again"));
    }
}

#[test]
fn a_full_disk_is_an_error_to_that_append_and_heals() {
    let (vfs, store, partition) = start(Durability::Sync);
    partition.append(Record::of_value("one")).unwrap();
    let used: u64 = vfs.image().files().map(|(_, bytes)| bytes).sum();
    vfs.set_bytes_max(Some(used + 100));
    for _ in 0..3 {
        let error = partition.append(Record::of_value(vec![b'x'; 5000])).unwrap_err();
        assert!(matches!(error, Error::NoSpace { .. }), "{error}");
    }
    assert_eq!(values(&partition, ReadLevel::Latest), ["one"]);
    vfs.set_bytes_max(None);
    assert_eq!(partition.append(Record::of_value("two")).unwrap().offset.get(), 1);
    store.close().unwrap();
    assert_eq!(after_power_cut(&vfs), ["one", "two"]);
}

#[test]
fn short_and_interrupted_writes_are_gone_on_with() {
    let (vfs, _store, partition) = start(Durability::Sync);
    partition.append(Record::of_value("one")).unwrap();
    vfs.inject(FaultPlan::new(Fault::Short(7)).on(OpKind::Write).in_class("log"));
    partition.append(Record::of_value("two")).unwrap();
    vfs.inject(FaultPlan::new(Fault::Error(errno::EINTR)).on(OpKind::Write).in_class("log"));
    partition.append(Record::of_value("three")).unwrap();
    assert_eq!(after_power_cut(&vfs), ["one", "two", "three"]);
    // A short write of nothing is an error and no loop.
    vfs.inject(FaultPlan::new(Fault::Short(0)).on(OpKind::Write).in_class("log").sticky());
    assert!(partition.append(Record::of_value("no")).is_err());
    vfs.clear_faults();
    assert_eq!(partition.append(Record::of_value("four")).unwrap().offset.get(), 3);
}

#[test]
fn appends_of_many_threads_take_turns_and_none_is_lost() {
    let store = Store::in_memory().unwrap();
    let config = TopicConfig::default().segment_bytes(3000).index_interval_bytes(64);
    let topic = store.create_topic("t", config).unwrap();
    let partition = topic.partition(0).unwrap();
    let (threads, each) = (8, 200);
    let acks: Vec<(i64, String)> = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..threads)
            .map(|thread| {
                let partition = &partition;
                scope.spawn(move || {
                    let append = |index| {
                        let value = format!("{thread}-{index}");
                        let placed = partition.append(Record::of_value(value.clone())).unwrap();
                        assert!(partition.durable_end() > placed.offset, "acknowledged before it was durable");
                        (placed.offset.get(), value)
                    };
                    (0..each).map(append).collect::<Vec<_>>()
                })
            })
            .collect();
        // A reader beside them sees a prefix at any time, in order and without a gap.
        while partition.end().get() < threads * each {
            for (expected, record) in (0..).zip(partition.read_from(0)) {
                assert_eq!(record.unwrap().offset().get(), expected);
            }
        }
        writers
            .into_iter()
            .flat_map(|writer| {
                let acks = writer.join().unwrap();
                assert!(acks.windows(2).all(|pair| pair[0].0 < pair[1].0), "one thread's appends are in its order");
                acks
            })
            .collect()
    });
    assert_eq!(partition.end().get(), threads * each);
    for (offset, value) in acks {
        assert_eq!(partition.record(offset).unwrap().unwrap().value(), Some(value.as_bytes()));
    }
}

#[test]
fn waiters_of_a_failed_sync_all_hear_of_it() {
    let (vfs, _store, partition) = start(Durability::Sync);
    partition.append(Record::of_value("kept")).unwrap();
    vfs.inject(FaultPlan::new(Fault::Sync(errno::EIO, SyncFailure::LostAtDrop)).on(OpKind::SyncData).in_class("log"));
    let errors: Vec<Error> = std::thread::scope(|scope| {
        let waiters: Vec<_> =
            (0..8).map(|_| scope.spawn(|| partition.append(Record::of_value("waits")).unwrap_err())).collect();
        waiters.into_iter().map(|waiter| waiter.join().unwrap()).collect()
    });
    let told = |error: &Error| matches!(error, Error::OutcomeUnknown { .. } | Error::Poisoned { .. });
    assert!(errors.iter().all(told), "{errors:?}");
    assert!(errors.iter().any(|error| matches!(error, Error::OutcomeUnknown { .. })));
}
