//! What a listener hears of upkeep.

use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use topiclog::clock::ManualClock;
use topiclog::io::{Fault, FaultPlan, FaultVfs, MemoryVfs, OpKind, OpenMode, Vfs, errno};
use topiclog::{
    CleanupPolicy, CompactionCounts, Durability, Error, Record, RetentionRule, Store, StoreBuilder, TopicConfig,
    Upkeep, UpkeepEvent,
};

use crate::support::upkeep::settle;

const T0: i64 = 1_700_000_000_000;

/// What was heard since the last look.
#[derive(Clone, Default)]
struct Ear(Arc<Mutex<Vec<UpkeepEvent>>>);

impl Ear {
    fn take(&self) -> Vec<UpkeepEvent> {
        std::mem::take(&mut self.0.lock().unwrap())
    }

    fn hear(&self, builder: StoreBuilder) -> StoreBuilder {
        let ear = self.clone();
        builder.on_upkeep(move |event| ear.0.lock().unwrap().push(event.clone()))
    }
}

struct Bench {
    store: Store,
    clock: Arc<ManualClock>,
    ear: Ear,
}

fn manual(vfs: Arc<dyn Vfs>) -> StoreBuilder {
    Store::builder().vfs(vfs).clock(Arc::new(ManualClock::new(T0))).upkeep(Upkeep::Manual)
}

impl Bench {
    fn with(change: impl FnOnce(StoreBuilder) -> StoreBuilder) -> Self {
        let (clock, ear) = (Arc::new(ManualClock::new(T0)), Ear::default());
        let builder = manual(Arc::new(MemoryVfs::new())).clock(Arc::clone(&clock) as _);
        let store = change(ear.hear(builder)).open("/s").unwrap();
        Self { store, clock, ear }
    }

    fn new() -> Self {
        Self::with(|builder| builder)
    }

    fn settle(&self) -> Vec<UpkeepEvent> {
        settle(&self.store);
        self.ear.take()
    }
}

fn plain() -> TopicConfig {
    TopicConfig::default().durability(Durability::Os).segment_bytes(400)
}

fn compacted() -> TopicConfig {
    plain().cleanup_policy(CleanupPolicy::Compact).min_cleanable_dirty_ratio(0.0).delete_retention_ms(0)
}

fn at(ms: i64, key: &str) -> Record {
    Record::keyed(key.to_owned(), "v".repeat(100)).timestamp_ms(ms)
}

/// The names of what was heard, in order, each once in a row.
fn names(events: &[UpkeepEvent]) -> Vec<String> {
    let name = |event: &UpkeepEvent| format!("{event:?}").split([' ', '{']).next().unwrap().to_owned();
    let mut names: Vec<String> = events.iter().map(name).collect();
    names.dedup();
    names
}

#[test]
fn seals_rolls_and_deletions_by_age_are_heard_with_their_offsets() {
    let bench = Bench::new();
    let topic = bench.store.create_topic("t", plain().retention_ms(5000).segment_ms(60_000)).unwrap();
    // Two records fill a segment.
    for n in 0..5 {
        topic.append(at(T0, &format!("k{n}"))).unwrap();
    }
    let sealed: Vec<(i64, i64, bool)> = (bench.settle().iter())
        .map(|event| match event {
            UpkeepEvent::SegmentSealed { partition, from, to, bytes, .. } => {
                assert_eq!(partition.to_string(), "t-0");
                (from.get(), to.get(), *bytes > 0)
            }
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(sealed, [(0, 2, true), (2, 4, true)]);
    bench.clock.advance_ms(5001);
    bench.store.tick().unwrap();
    let heard = bench.ear.take();
    assert_eq!(names(&heard), ["SegmentRolled", "SegmentsDeleted", "LogStartMoved"]);
    let UpkeepEvent::SegmentRolled { from, to, .. } = &heard[0] else { panic!() };
    assert_eq!((from.get(), to.get()), (4, 5), "retention takes the active segment as well");
    let UpkeepEvent::SegmentsDeleted { rule, from, to, segments, bytes, .. } = &heard[1] else { panic!() };
    assert_eq!((*rule, from.get(), to.get(), *segments), (RetentionRule::Age, 0, 5, 3));
    assert!(*bytes > 500);
    let UpkeepEvent::LogStartMoved { from, to, .. } = &heard[2] else { panic!() };
    assert_eq!((from.get(), to.get()), (0, 5));
    assert_eq!(heard[1].partition().to_string(), "t-0");
    assert!(bench.settle().is_empty(), "and nothing is told twice");
}

#[test]
fn an_idle_segment_that_is_closed_for_its_age_is_heard() {
    let bench = Bench::new();
    let topic = bench.store.create_topic("t", plain().segment_ms(60_000)).unwrap();
    topic.append(at(T0, "k")).unwrap();
    bench.store.tick().unwrap();
    assert!(bench.ear.take().is_empty());
    bench.clock.advance_ms(60_001);
    let heard = bench.settle();
    assert_eq!(names(&heard), ["SegmentRolled", "SegmentSealed"]);
    let UpkeepEvent::SegmentRolled { from, to, .. } = &heard[0] else { panic!() };
    assert_eq!((from.get(), to.get()), (0, 1));
}

#[test]
fn deletions_by_size_say_so_and_a_log_start_that_was_moved_by_hand_is_heard_at_the_next_step() {
    let bench = Bench::new();
    let topic = bench.store.create_topic("t", plain().retention_bytes(700)).unwrap();
    for n in 0..7 {
        topic.append(at(T0, &format!("k{n}"))).unwrap();
    }
    let heard = bench.settle();
    let deleted: Vec<_> = (heard.iter())
        .filter_map(|event| match event {
            UpkeepEvent::SegmentsDeleted { rule, from, to, segments, .. } => {
                Some((*rule, from.get(), to.get(), *segments))
            }
            _ => None,
        })
        .collect();
    assert_eq!(deleted, [(RetentionRule::Size, 0, 2, 1)]);
    topic.partition(0).unwrap().delete_records(5).unwrap();
    let heard = bench.settle();
    let [UpkeepEvent::LogStartMoved { from, to, .. }] = &heard[..] else { panic!("{heard:?}") };
    assert_eq!((from.get(), to.get()), (2, 5));
}

#[test]
fn a_round_of_compaction_is_heard_from_its_begin_to_its_end() {
    let bench = Bench::with(|builder| builder.compaction_step_bytes(1).key_index_memory_bytes(0));
    let topic = bench.store.create_topic("t", compacted()).unwrap();
    for n in 0..40 {
        topic.append(at(T0, &format!("k{}", n % 3))).unwrap();
    }
    let report = settle(&bench.store);
    let heard = bench.ear.take();
    assert_eq!(names(&heard), ["SegmentSealed", "CompactionBegun", "CompactionProgressed", "CompactionFinished"]);
    let heard = &heard[report.sealed_segments..];
    let UpkeepEvent::CompactionBegun { from, to, bytes, .. } = &heard[0] else { panic!() };
    assert_eq!((from.get(), to.get()), (0, 38));
    let (mut read, mut before, mut steps) = (0, CompactionCounts::default(), 0);
    for event in &heard[1..heard.len() - 1] {
        let UpkeepEvent::CompactionProgressed { read_bytes, counts, .. } = event else { panic!("{event:?}") };
        assert!(*read_bytes >= read && counts.records_before >= before.records_before);
        (read, before, steps) = (*read_bytes, *counts, steps + 1);
    }
    assert!(steps > 20, "one a step");
    let Some(UpkeepEvent::CompactionFinished { clean_end, read_bytes, counts, .. }) = heard.last() else { panic!() };
    assert_eq!((clean_end.get(), *read_bytes), (38, report.compacted_bytes));
    assert_eq!(
        (*read_bytes, counts.bytes_before),
        (2 * bytes, *bytes),
        "everything was read for its keys and then copied"
    );
    assert_eq!((counts.records_before, counts.records_after, counts.tombstones_dropped), (38, 3, 0));
    // Two of them are more than a segment may hold, so that none are joined.
    assert_eq!((counts.segments_before, counts.segments_after), (19, 19));
    assert_eq!(counts.bytes_after, topic.partition(0).unwrap().stats().bytes - 344);
    let stats = topic.upkeep_stats();
    assert_eq!((stats.records_compacted, stats.compaction_read_bytes), (35, *read_bytes));
}

#[test]
fn a_round_that_ends_early_is_heard_to_stop() {
    let bench = Bench::with(|builder| builder.compaction_step_bytes(1).key_index_memory_bytes(0));
    let topic = bench.store.create_topic("t", compacted()).unwrap();
    for n in 0..40 {
        topic.append(at(T0, &format!("k{}", n % 3))).unwrap();
    }
    while !names(&bench.ear.take()).contains(&"CompactionProgressed".to_owned()) {
        bench.store.tick().unwrap();
    }
    bench.store.alter_topic("t", plain()).unwrap();
    assert_eq!(names(&bench.settle()), ["CompactionStopped"]);
}

#[test]
fn dropped_tombstones_and_expired_keys_are_heard() {
    let bench = Bench::new();
    let topic = bench.store.create_topic("t", compacted().expire_after_ms(1000)).unwrap();
    topic.append(at(T0, "a")).unwrap();
    topic.append(at(T0, "b")).unwrap();
    bench.settle();
    bench.clock.advance_ms(1000);
    let heard = bench.settle();
    let keys: usize =
        heard.iter().map(|event| if let UpkeepEvent::KeysExpired { keys, .. } = event { *keys } else { 0 }).sum();
    assert_eq!(keys, 2);
    let now = T0 + 1000;
    for n in 0..10 {
        topic.append(at(now, &format!("filler{}", n % 2))).unwrap();
    }
    let mut heard = bench.settle();
    bench.clock.advance_ms(10);
    heard.extend(bench.settle());
    let dropped: Vec<(u64, i64)> = (heard.iter())
        .filter_map(|event| match event {
            UpkeepEvent::TombstonesDropped { tombstones, floor, .. } => Some((*tombstones, floor.get())),
            _ => None,
        })
        .collect();
    assert_eq!(dropped, [(2, 4)]);
    assert_eq!(topic.partition(0).unwrap().tombstone_floor().get(), 4);
}

#[test]
fn an_index_that_is_made_and_one_that_is_given_up_are_heard() {
    let bench = Bench::with(|builder| builder.key_index_memory_bytes(4096));
    let topic = bench.store.create_topic("t", compacted().segment_bytes(1 << 20)).unwrap();
    for n in 0..100 {
        topic.append(Record::keyed(format!("k{n}"), "v")).unwrap();
    }
    topic.get("k5").unwrap();
    let heard = bench.settle();
    let [UpkeepEvent::KeyIndexMade { entries, memory_bytes, .. }] = &heard[..] else { panic!("{heard:?}") };
    assert_eq!(*entries, 100);
    assert!((1600..=4096).contains(memory_bytes), "{memory_bytes}");
    for n in 100..1000 {
        topic.append(Record::keyed(format!("k{n}"), "v")).unwrap();
    }
    topic.get("k5").unwrap_err();
    let heard = bench.settle();
    let [UpkeepEvent::KeyIndexDropped { partition, .. }] = &heard[..] else { panic!("{heard:?}") };
    assert_eq!(partition.to_string(), "t-0");
}

/// What a listener hears of a partition whose seal cannot be written, and what the caller gets.
#[test]
fn the_error_of_a_partition_is_heard_with_its_name_and_the_others_have_their_step() {
    let (disk, ear) = (FaultVfs::new(), Ear::default());
    let store = ear.hear(manual(Arc::new(disk.clone()))).open("/s").unwrap();
    for name in ["a", "b"] {
        let topic = store.create_topic(name, plain()).unwrap();
        for n in 0..3 {
            topic.append(at(T0, &format!("k{n}"))).unwrap();
        }
    }
    disk.inject(FaultPlan::new(Fault::Error(errno::EIO)).on(OpKind::Read).in_class("log"));
    let returned = store.tick().unwrap_err();
    let heard = ear.take();
    assert_eq!(names(&heard), ["Failed", "SegmentSealed"]);
    let UpkeepEvent::Failed { partition, error, .. } = &heard[0] else { panic!() };
    assert_eq!((partition.to_string(), error.to_string()), ("a-0".to_owned(), returned.to_string()));
    assert_eq!(heard[1].partition().to_string(), "b-0");
    assert_eq!(store.topic("a").unwrap().upkeep_error().unwrap().to_string(), returned.to_string());
    disk.clear_faults();
    settle(&store);
    assert_eq!(names(&ear.take()), ["SegmentSealed"], "it is tried again");
}

#[test]
fn a_round_of_compaction_that_fails_is_heard_to_stop_and_why() {
    let (disk, ear) = (FaultVfs::new(), Ear::default());
    let store = ear.hear(manual(Arc::new(disk.clone()))).open("/s").unwrap();
    let topic = store.create_topic("t", compacted()).unwrap();
    for n in 0..40 {
        topic.append(at(T0, &format!("k{}", n % 3))).unwrap();
    }
    while store.tick().unwrap().compacted_bytes == 0 {
        // The last step is that of the compaction as a whole: so it is let in just before.
        if store.topic("t").unwrap().upkeep_stats().sealed_segments == 18 {
            disk.inject(FaultPlan::new(Fault::Error(errno::EIO)).on(OpKind::Write).in_class("cleaned").sticky());
            break;
        }
    }
    ear.take();
    let returned = store.tick().unwrap_err();
    let heard = ear.take();
    assert_eq!(names(&heard), ["SegmentSealed", "CompactionBegun", "CompactionStopped", "Failed"]);
    let UpkeepEvent::Failed { error, .. } = &heard[3] else { panic!() };
    assert_eq!(error.to_string(), returned.to_string());
    // It is not tried again; a new topic of that name is another one.
    disk.clear_faults();
    settle(&store);
    assert!(names(&ear.take()).iter().all(|name| name != "CompactionBegun"));
    store.delete_topic("t").unwrap();
    let topic = store.create_topic("t", compacted()).unwrap();
    for n in 0..40 {
        topic.append(at(T0, &format!("k{}", n % 3))).unwrap();
    }
    settle(&store);
    assert!(names(&ear.take()).iter().any(|name| name == "CompactionFinished"));
}

/// Runs something that must end, on a thread of its own.
fn in_time(what: impl FnOnce() + Send + 'static) {
    let (done, wait) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        what();
        done.send(()).unwrap();
    });
    match wait.recv_timeout(Duration::from_secs(60)) {
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("it hangs"),
        _ => thread.join().unwrap(),
    }
}

/// Everything that a user may do, done from within a listener.
fn use_everything(store: &Store, event: &UpkeepEvent) {
    let name = event.partition().topic.to_string();
    let topic = store.topic(&name).unwrap();
    topic.append(Record::keyed("from the listener", "v")).unwrap();
    topic.get("from the listener").unwrap().unwrap();
    topic.latest(0).unwrap().for_each(|record| drop(record.unwrap()));
    topic.count_keys(0).unwrap();
    topic.key_index_stats(0).unwrap();
    topic.upkeep_stats();
    let partition = topic.partition(0).unwrap();
    partition.stats();
    partition.flush().unwrap();
    partition.read_from(partition.start()).for_each(|record| drop(record.unwrap()));
    partition.delete_records(partition.start()).unwrap();
    store.alter_topic(&name, topic.config()).unwrap();
    store.ensure_topic("other", plain()).unwrap();
    store.delete_topic("other").unwrap();
    store.take_upkeep_error();
    store.tick_topic(&name).unwrap();
}

#[test]
fn a_listener_that_calls_back_into_the_store_waits_for_nobody() {
    in_time(|| {
        let handle: Arc<OnceLock<Store>> = Arc::default();
        let (cell, calls) = (Arc::clone(&handle), Arc::new(Mutex::new(Vec::new())));
        let heard = Arc::clone(&calls);
        let store = manual(Arc::new(MemoryVfs::new())).compaction_step_bytes(500).on_upkeep(move |event| {
            let count = {
                let mut heard = heard.lock().unwrap();
                heard.push(event.clone());
                heard.len()
            };
            // Else each call would make work for another one.
            if count < 60 {
                use_everything(cell.get().unwrap(), event);
            }
        });
        let store = store.open("/s").unwrap();
        handle.set(store.clone()).unwrap();
        let topic = store.create_topic("t", compacted().expire_after_ms(1 << 40)).unwrap();
        for n in 0..60 {
            topic.append(at(T0, &format!("k{}", n % 3))).unwrap();
        }
        settle(&store);
        let names = names(&calls.lock().unwrap());
        for name in ["SegmentSealed", "CompactionBegun", "CompactionProgressed", "CompactionFinished", "KeyIndexMade"] {
            assert!(names.iter().any(|heard| heard == name), "{name} in {names:?}");
        }
        store.close().unwrap();
    });
}

/// With the thread of the store, over which the test has no hold: what it hears comes through a channel.
fn threaded(hear: impl Fn(&UpkeepEvent) + Send + Sync + 'static) -> (Store, Receiver<String>) {
    let (send, receive) = mpsc::channel();
    let send = Mutex::new(send);
    let builder = Store::builder().vfs(Arc::new(MemoryVfs::new())).on_upkeep(move |event| {
        send.lock().unwrap().send(names(std::slice::from_ref(event)).remove(0)).ok();
        hear(event);
    });
    (builder.open("/s").unwrap(), receive)
}

fn fill(store: &Store) {
    let topic = store.ensure_topic("t", plain()).unwrap();
    for n in 0..3 {
        topic.append(at(T0, &format!("k{n}"))).unwrap();
    }
}

#[test]
fn the_thread_of_the_store_tells_and_the_listener_may_close_the_store() {
    in_time(|| {
        let handle: Arc<OnceLock<Store>> = Arc::default();
        let cell = Arc::clone(&handle);
        let (store, heard) = threaded(move |_| cell.wait().close().unwrap());
        handle.set(store.clone()).unwrap();
        fill(&store);
        assert_eq!(heard.recv_timeout(Duration::from_secs(50)).unwrap(), "SegmentSealed");
        while store.topic("t").is_ok() {
            std::thread::yield_now();
        }
        assert!(matches!(store.tick(), Err(Error::Closed { .. })));
    });
}

#[test]
fn a_listener_that_panics_poisons_nothing_and_is_told_of() {
    in_time(|| {
        let (store, heard) = threaded(|_| panic!("on purpose"));
        for _ in 0..3 {
            fill(&store);
            assert_eq!(heard.recv_timeout(Duration::from_secs(50)).unwrap(), "SegmentSealed");
        }
        let error = loop {
            if let Some(error) = store.take_upkeep_error() {
                break error;
            }
            std::thread::yield_now();
        };
        assert!(error.to_string().contains("the listener panicked: on purpose"), "{error}");
        assert_eq!(store.topic("t").unwrap().partition(0).unwrap().end().get(), 9);
        store.close().ok();
    });
}

/// The marker for brokers once stayed away because of it, although everything had been closed.
#[test]
fn what_upkeep_met_earlier_is_told_by_close_and_leaves_nothing_unclean() {
    in_time(|| {
        let vfs = Arc::new(MemoryVfs::new());
        let (send, heard) = mpsc::channel();
        let send = Mutex::new(send);
        let builder = Store::builder().vfs(Arc::clone(&vfs) as Arc<dyn Vfs>).on_upkeep(move |_| {
            send.lock().unwrap().send(()).ok();
            panic!("on purpose")
        });
        let store = builder.open("/s").unwrap();
        fill(&store);
        heard.recv_timeout(Duration::from_secs(50)).unwrap();
        let told = store.close().unwrap_err();
        assert!(told.to_string().contains("the listener panicked"), "{told}");
        assert!(vfs.open("/s/.kafka_cleanshutdown".as_ref(), OpenMode::Read).is_ok());
    });
}

#[test]
fn a_listener_is_let_go_of_by_close() {
    let witness = Arc::new(());
    let held = Arc::clone(&witness);
    let store = manual(Arc::new(MemoryVfs::new()))
        .on_upkeep(move |_| {
            let _ = &held;
        })
        .open("/s")
        .unwrap();
    assert_eq!(Arc::strong_count(&witness), 2);
    store.close().unwrap();
    assert_eq!(Arc::strong_count(&witness), 1);
}
