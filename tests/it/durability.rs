//! What the levels promise, and what happens when a write or a sync fails.

use std::path::Path;
use std::sync::Arc;

use topiclog::clock::ManualClock;
use topiclog::io::{Fault, FaultPlan, FaultVfs, OpKind, SyncFailure, Vfs, errno};
use topiclog::{
    AppendOptions, Durability, Error, Partition, ReadLevel, ReadOptions, Record, Store, StoreBuilder, TopicConfig,
    Upkeep,
};

use crate::support::simulate::profile;

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

/// The level of an append is kept whatever the level of its topic, by its time as well as by its bytes.
#[test]
fn an_append_is_synced_within_the_time_of_its_own_level() {
    let check = |of_topic: Durability, of_append: Durability, after_ms: Option<i64>| {
        let clock = Arc::new(ManualClock::new(0));
        let store = builder(&machine()).clock(clock.clone()).open("/s").unwrap();
        let topic = store.create_topic("t", TopicConfig::default().durability(of_topic)).unwrap();
        let partition = topic.partition(0).unwrap();
        let put = |level| {
            let options = AppendOptions::new().durability(level);
            partition.append_batch_with(&[Record::of_value("v")], &options).unwrap();
        };
        // What came before does not make it wait longer, nor shorter.
        clock.advance_ms(100_000);
        put(Durability::Sync);
        clock.advance_ms(1);
        put(of_append);
        let synced_after = (0..200).find(|_| {
            store.tick().unwrap();
            let is_synced = partition.durable_end() == partition.end();
            clock.advance_ms(1);
            is_synced
        });
        assert_eq!(synced_after, after_ms, "{of_append:?} to a topic of {of_topic:?}");
        // The shorter of two counts for both.
        put(Durability::Interval { bytes: 1 << 20, ms: 90 });
        clock.advance_ms(20);
        put(Durability::Interval { bytes: 1 << 20, ms: 7 });
        clock.advance_ms(6);
        store.tick().unwrap();
        let early = partition.durable_end() == partition.end();
        clock.advance_ms(1);
        store.tick().unwrap();
        assert_eq!((early, partition.durable_end()), (false, partition.end()));
    };
    let five = Durability::Interval { bytes: 4096, ms: 5 };
    check(Durability::Os, five, Some(5));
    check(Durability::Sync, five, Some(5));
    check(Durability::INTERVAL, five, Some(5));
    check(five, Durability::INTERVAL, Some(50));
    check(Durability::Sync, Durability::Os, Some(50));
    check(five, Durability::Os, Some(50));
    check(Durability::Os, Durability::Os, None);
}

#[test]
fn the_thread_syncs_behind_appends_of_a_level_of_their_own() {
    let store = Store::builder().vfs(Arc::new(machine())).open("/s").unwrap();
    for of_topic in [Durability::Os, Durability::Sync] {
        let name = format!("{of_topic:?}");
        let topic = store.create_topic(&name, TopicConfig::default().durability(of_topic)).unwrap();
        let options = AppendOptions::new().durability(Durability::Interval { bytes: 4096, ms: 5 });
        for _ in 0..3 {
            let placed = topic.append_with(Record::of_value("v"), &options).unwrap();
            store.wait_durable(&placed.position(), std::time::Duration::from_secs(60)).unwrap();
        }
    }
    store.close().unwrap();
}

#[test]
fn what_was_appended_before_the_level_was_raised_is_synced_too() {
    let clock = Arc::new(ManualClock::new(0));
    let store = builder(&machine()).clock(clock.clone()).open("/s").unwrap();
    let topic = store.create_topic("t", TopicConfig::default().durability(Durability::Os)).unwrap();
    topic.append(Record::of_value("v")).unwrap();
    store.alter_topic("t", TopicConfig::default().durability(Durability::INTERVAL)).unwrap();
    clock.advance_ms(50);
    assert!(store.tick().unwrap().synced_bytes > 0);
}

/// Its descriptor is wanted for another file, so it is synced first; nobody waits for that sync.
#[test]
fn a_sync_that_fails_before_a_file_is_closed_stops_its_writer() {
    let vfs = machine();
    let store = builder(&vfs).open_files_max(4).open("/s").unwrap();
    let config = TopicConfig::default().durability(Durability::Os).partitions(12).preallocate_bytes(0);
    let topic = store.create_topic("t", config).unwrap();
    let first = topic.partition(0).unwrap();
    first.append(Record::of_value("written")).unwrap();
    vfs.inject(FaultPlan::new(Fault::Sync(errno::EIO, SyncFailure::LostAtDrop)).on(OpKind::SyncData).in_class("log"));
    for number in 1..12 {
        topic.partition(number).unwrap().append(Record::of_value("others")).unwrap();
    }
    assert_eq!(vfs.faults_hit(), 1);
    for _ in 0..2 {
        let refused = first.append(Record::of_value("no")).unwrap_err();
        assert!(matches!(refused, Error::Poisoned { .. }), "{refused}");
    }
    assert_eq!(first.end().get(), 1);
    assert!(matches!(first.flush(), Err(Error::SyncFailed { .. })));
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
        let refused = store.close().unwrap_err();
        assert!(matches!(refused, Error::SyncFailed { durable_end, .. } if durable_end.get() == 1), "{refused}");
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

/// The length of the log's file, and where its last record ends: in the byte that counts its headers, which are none.
fn space(vfs: &FaultVfs) -> (usize, usize) {
    let log = vfs.image().read("/s/t-0/00000000000000000000.log").unwrap();
    (log.len(), log.iter().rposition(|byte| *byte != 0).unwrap() + 2)
}

#[test]
fn who_appends_much_gets_space_ahead_and_who_is_quiet_none() {
    for durability in [Durability::Os, Durability::Interval { bytes: 1 << 20, ms: 50 }] {
        let (vfs, store, partition) = start(durability);
        let append = || partition.append(Record::of_value(vec![b'x'; 900])).unwrap();
        append();
        let (file, end) = space(&vfs);
        assert_eq!(file, end, "{durability:?}");
        for nth in 0..3000 {
            append();
            if nth % 100 != 0 {
                continue;
            }
            let (file, end) = space(&vfs);
            assert!(file <= end * 2 + 1000, "{durability:?}: {file} bytes for {end}");
        }
        let (file, end) = space(&vfs);
        assert!(file > end, "{durability:?}: nothing was taken ahead");
        // Windows are written, and few positional writes are left.
        let calls = |op| vfs.sites_seen().get(&(op, "log".to_owned())).map_or(0, |site| site.calls);
        assert!(calls(OpKind::WindowWrite) > 2900 && calls(OpKind::Write) < 100, "{durability:?}");
        assert_eq!(values(&partition, ReadLevel::Latest).len(), 3001);
        store.close().unwrap();
        assert_eq!(after_power_cut(&vfs).len(), 3001);
    }
}

#[test]
fn a_sync_append_is_never_copied_into_a_window() {
    let (vfs, _store, partition) = start(Durability::Sync);
    for _ in 0..100 {
        partition.append(Record::of_value(vec![b'x'; 900])).unwrap();
    }
    assert!(vfs.sites_seen().keys().all(|(op, _)| !matches!(op, OpKind::Window | OpKind::WindowWrite)));
}

/// Asking a disk that is nearly full for space with each append would cost more than the space brings.
#[test]
fn a_disk_without_room_ahead_is_not_asked_at_each_append() {
    let (vfs, _store, partition) = start(Durability::Os);
    vfs.inject(FaultPlan::new(Fault::Error(errno::ENOSPC)).on(OpKind::Allocate).sticky());
    for _ in 0..1000 {
        partition.append(Record::of_value(vec![b'x'; 900])).unwrap();
    }
    assert!((1..30).contains(&vfs.faults_hit()), "asked {} times", vfs.faults_hit());
    assert_eq!(values(&partition, ReadLevel::Latest).len(), 1000);
}

/// What frees space must not need space that is not there.
#[test]
fn on_a_full_disk_the_reserve_lets_records_and_topics_be_deleted() {
    type Delete = fn(&Store, &Partition) -> topiclog::Result<()>;
    let deletes: [(&str, Delete); 3] = [
        ("records", |_, partition| partition.delete_records(150).map(drop)),
        ("old segments", |store, _| store.tick().map(drop)),
        ("the topic", |store, _| store.delete_topic("t")),
    ];
    for (what, delete) in deletes {
        for reserve_bytes in [0, 64 << 10] {
            let vfs = machine();
            let store = builder(&vfs).reserve_bytes(reserve_bytes).open("/s").unwrap();
            let config = TopicConfig::default().segment_bytes(1000).preallocate_bytes(0);
            let topic = store.create_topic("t", config.clone()).unwrap();
            let other = store.create_topic("other", TopicConfig::default()).unwrap();
            let partition = topic.partition(0).unwrap();
            for _ in 0..200 {
                partition.append(Record::of_value("0123456789")).unwrap();
            }
            while !store.tick().unwrap().is_idle() {}
            store.alter_topic("t", config.retention_bytes(2000)).unwrap();
            let used: u64 = vfs.image().files().map(|(_, bytes)| bytes).sum();
            vfs.set_bytes_max(Some(used));
            let done = delete(&store, &partition);
            if reserve_bytes == 0 {
                assert!(matches!(done, Err(Error::NoSpace { .. })), "{what}: {done:?}");
                continue;
            }
            done.unwrap_or_else(|error| panic!("{what}: {error}"));
            assert_eq!(store.topic("t").is_err(), what == "the topic");
            assert!(store.topic("t").is_err() || partition.start().get() > 100, "{what}");
            // There is room again, and upkeep puts some of it aside.
            other.append(Record::of_value("more")).unwrap();
            vfs.set_bytes_max(None);
            store.tick().unwrap();
            assert_eq!(vfs.image().read("/s/topiclog.reserve").map(|bytes| bytes.len()), Some(64 << 10), "{what}");
            store.close().unwrap();
        }
    }
}

/// The new name of a segment that goes may take a block of its directory; the partition was once lost over that.
#[test]
fn a_directory_without_room_for_a_name_gets_it_from_the_reserve() {
    let vfs = machine();
    let store = builder(&vfs).reserve_bytes(64 << 10).open("/s").unwrap();
    let topic = store.create_topic("t", TopicConfig::default().segment_bytes(1000)).unwrap();
    let partition = topic.partition(0).unwrap();
    for _ in 0..200 {
        partition.append(Record::of_value("0123456789")).unwrap();
    }
    vfs.inject(FaultPlan::new(Fault::Error(errno::ENOSPC)).on(OpKind::Rename).in_class("log"));
    partition.delete_records(150).unwrap();
    assert_eq!((vfs.faults_hit(), partition.start().get()), (1, 150));
    assert_eq!(vfs.image().read("/s/topiclog.reserve").map(|bytes| bytes.len()), Some(0));
    partition.append(Record::of_value("more")).unwrap();
    store.close().unwrap();
}

#[test]
fn on_a_full_disk_the_active_segment_is_closed_to_be_deleted() {
    let (vfs, clock) = (machine(), Arc::new(ManualClock::new(1_700_000_000_000)));
    let store = builder(&vfs).clock(Arc::clone(&clock) as _).reserve_bytes(64 << 10).open("/s").unwrap();
    let config = TopicConfig::default().retention_ms(1000).preallocate_bytes(0);
    let partition = store.create_topic("t", config).unwrap().partition(0).unwrap();
    for _ in 0..200 {
        partition.append(Record::of_value("0123456789")).unwrap();
    }
    let used: u64 = vfs.image().files().map(|(_, bytes)| bytes).sum();
    vfs.set_bytes_max(Some(used));
    clock.advance_ms(5000);
    store.tick().unwrap();
    assert_eq!((partition.start().get(), partition.end().get()), (200, 200));
}

/// A flush once passed over a closed segment that nobody had synced, as the new one had nothing to be synced.
#[test]
fn a_flush_syncs_a_segment_that_was_closed_before_it() {
    let (vfs, clock) = (machine(), Arc::new(ManualClock::new(1_700_000_000_000)));
    let store = builder(&vfs).clock(Arc::clone(&clock) as _).open("/s").unwrap();
    let config = TopicConfig::default().durability(Durability::Os).segment_ms(1000);
    let partition = store.create_topic("t", config).unwrap().partition(0).unwrap();
    partition.append(Record::of_value("one")).unwrap();
    let mut rolled = 0;
    while rolled == 0 {
        clock.advance_ms(6000);
        rolled += store.tick().unwrap().rolled_segments;
    }
    assert_eq!(partition.flush().unwrap().get(), 1);
    assert_eq!(after_power_cut(&vfs), ["one"]);
}

/// The cut of a file at its roll is not synced. A power cut may undo it, and the seal was then made of a longer file, which
/// the next open took for damage.
#[test]
fn a_closed_file_that_got_its_space_back_is_cut_again_before_it_is_sealed() {
    let (vfs, store, _) = start(Durability::Sync);
    let topic = store.create_topic("u", TopicConfig::default().segment_bytes(1000)).unwrap();
    for _ in 0..30 {
        topic.append(Record::of_value("0123456789")).unwrap();
    }
    let log = vfs.open(Path::new("/s/u-0/00000000000000000000.log"), topiclog::io::OpenMode::Write).unwrap();
    log.set_len(log.len().unwrap() + 5000).unwrap();
    while store.tick().unwrap().sealed_segments == 0 {}
    store.close().unwrap();
    let store = builder(&vfs).open("/s").unwrap();
    let partition = store.topic("u").unwrap().partition(0).unwrap();
    assert_eq!(values(&partition, ReadLevel::Latest).len(), 30);
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

/// All of them in turn, for those who plant bugs.
#[cfg(topiclog_planted)]
pub(crate) fn all() {
    a_sync_append_survives_a_power_cut_and_an_os_append_does_not();
    an_interval_is_kept_by_bytes_and_by_time();
    after_a_failed_sync_the_partition_refuses_until_it_is_reopened();
    a_full_disk_is_an_error_to_that_append_and_heals();
    short_and_interrupted_writes_are_gone_on_with();
    appends_of_many_threads_take_turns_and_none_is_lost();
    waiters_of_a_failed_sync_all_hear_of_it();
}

/// A broker trusts the logs of a root with this marker without a look.
#[test]
fn the_marker_of_a_clean_shutdown_is_the_last_thing_that_a_close_writes() {
    const MARKER: &str = "/s/.kafka_cleanshutdown";
    const TOPICS: [&str; 2] = ["a", "b"];
    let written = || {
        let vfs = machine();
        let store = builder(&vfs).open("/s").unwrap();
        for name in TOPICS {
            let topic = store.create_topic(name, TopicConfig::default().durability(Durability::Os)).unwrap();
            (0..3).for_each(|_| drop(topic.append(Record::of_value("value")).unwrap()));
        }
        (vfs, store)
    };
    let (vfs, store) = written();
    let begun = vfs.operations();
    store.close().unwrap();
    let (ended, closed) = (vfs.operations(), vfs.image());
    assert!(closed.read(MARKER).is_some());
    let ends = closed.read("/s/recovery-point-offset-checkpoint").unwrap();
    assert_eq!(String::from_utf8(ends).unwrap(), "0\n2\na 0 3\nb 0 3\n");
    // All that a broker looks at: logs, indexes, checkpoints, epochs and snapshots.
    let is_a_brokers = |path: &&str| !path.contains("/topiclog.");
    let files: Vec<&str> = closed.files().map(|(path, _)| path).filter(is_a_brokers).collect();
    for name in ["log-start-offset-checkpoint", "replication-offset-checkpoint", "leader-epoch-checkpoint", ".log"] {
        assert!(files.iter().any(|path| path.ends_with(name)), "{name} is not among {files:?}");
    }
    let (mut with, mut without) = (0, 0);
    for stop in begun..=ended {
        let (vfs, store) = written();
        vfs.stop_after(stop);
        assert_eq!(store.close().is_ok(), stop == ended);
        for state in vfs.crash_states(&profile(stop)) {
            if state.image.read(MARKER).is_none() {
                without += 1;
                continue;
            }
            with += 1;
            for path in &files {
                assert!(state.image.read(path) == closed.read(path), "{path}, {state}");
            }
        }
    }
    assert!(with > 0 && without > 50, "{with} with the marker, {without} without");

    let (vfs, store) = written();
    vfs.inject(FaultPlan::new(Fault::Error(errno::EIO)).on(OpKind::SyncData).in_class("log").sticky());
    assert!(store.close().is_err());
    assert!(vfs.image().read(MARKER).is_none(), "a log could not be closed");
}
