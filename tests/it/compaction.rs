//! Compaction and retention: what stays, what goes, and when.

use std::collections::BTreeMap;
use std::sync::Arc;

use topiclog::client::OffsetAndMetadata;
use topiclog::clock::ManualClock;
use topiclog::group::Groups;
use topiclog::io::{Fault, FaultPlan, FaultVfs, MemoryVfs, Vfs, errno};
use topiclog::{
    CleanupPolicy, Durability, Error, Offset, Partition, ReadLevel, ReadOptions, Record, Repair, Store, StoreBuilder,
    TickReport, TopicConfig, TopicPartition, Upkeep,
};

use crate::support::broker;
use crate::support::upkeep::{has_key_index, settle, with_or_without_key_index, without_key_index};

const T0: i64 = 1_700_000_000_000;

/// A store in memory whose time stands still.
struct Bench {
    store: Store,
    clock: Arc<ManualClock>,
    vfs: Arc<MemoryVfs>,
}

impl Bench {
    fn new() -> Self {
        let (vfs, clock) = (Arc::new(MemoryVfs::new()), Arc::new(ManualClock::new(T0)));
        let store = builder(&vfs, &clock).open("/data").unwrap();
        Self { store, clock, vfs }
    }

    fn reopen(&mut self) {
        self.store.close().unwrap();
        self.store = builder(&self.vfs, &self.clock).open("/data").unwrap();
    }

    fn partition(&self, name: &str) -> Partition {
        self.store.topic(name).unwrap().partition(0).unwrap()
    }

    /// Ticks until there is nothing to do.
    fn settle(&self) -> TickReport {
        settle(&self.store)
    }
}

fn builder(vfs: &Arc<MemoryVfs>, clock: &Arc<ManualClock>) -> StoreBuilder {
    let builder = Store::builder().vfs(Arc::clone(vfs) as _).clock(Arc::clone(clock) as _);
    with_or_without_key_index(builder.upkeep(Upkeep::Manual))
}

fn compacted() -> TopicConfig {
    TopicConfig::default().cleanup_policy(CleanupPolicy::Compact).durability(Durability::Os).segment_bytes(400)
}

/// All records: offset, key, value.
type Rows = Vec<(i64, String, Option<String>)>;

fn rows(partition: &Partition) -> Rows {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let row = |record: topiclog::Result<topiclog::StoredRecord>| {
        let record = record.unwrap();
        (record.offset().get(), text(record.key().unwrap()), record.value().map(text))
    };
    partition.read_from(partition.start()).map(row).collect()
}

/// The last value of each key: what a table made of the log holds.
fn fold(rows: &Rows) -> BTreeMap<String, String> {
    let mut table = BTreeMap::new();
    for (_, key, value) in rows {
        match value {
            Some(value) => table.insert(key.clone(), value.clone()),
            None => table.remove(key),
        };
    }
    table
}

#[test]
fn compaction_keeps_the_latest_record_of_each_key_at_its_offset() {
    let bench = Bench::new();
    let topic = bench.store.create_topic("t", compacted()).unwrap();
    for n in 0..1000 {
        topic.append(Record::keyed(format!("k{}", n % 10), format!("v{n}"))).unwrap();
    }
    let partition = bench.partition("t");
    let before = rows(&partition);
    assert_eq!(bench.settle().compactions, 1);
    let after = rows(&partition);
    assert_eq!(fold(&before), fold(&after));
    let (clean, active) = after.split_at(after.partition_point(|row| row.0 < partition.clean_end().get()));
    // The index knows what the active segment supersedes.
    let is_superseded = |row: &(i64, String, Option<String>)| active.iter().any(|newer| newer.1 == row.1);
    let superseded = clean.iter().filter(|row| is_superseded(row)).count();
    assert!(active.len() < 10 && !active.is_empty(), "{}", active.len());
    if has_key_index() {
        assert_eq!((clean.len() + active.len(), superseded), (10, 0), "one record of each key");
    } else {
        assert_eq!((clean.len(), superseded), (10, active.len()), "one record of each key below the clean end");
    }
    assert!(after.iter().all(|row| before.contains(row)), "no offset and no record changed");
    assert_eq!(partition.end().get(), 1000);
}

#[test]
fn a_compacted_log_opens_again_clean_and_compacts_on() {
    let mut bench = Bench::new();
    bench.store.create_topic("t", compacted()).unwrap();
    for round in 0..4 {
        for n in 0..300 {
            let record = Record::keyed(format!("k{}", n % 7), format!("v{round}-{n}"));
            bench.store.topic("t").unwrap().append(record).unwrap();
        }
        let before = rows(&bench.partition("t"));
        bench.settle();
        assert_eq!(fold(&rows(&bench.partition("t"))), fold(&before));
        bench.reopen();
        assert!(!bench.store.recovery_report().is_unclean());
        assert_eq!(bench.store.recovery_report().repairs().count(), 0, "{:?}", bench.store.recovery_report());
        assert_eq!(fold(&rows(&bench.partition("t"))), fold(&before));
        let report = topiclog::verify_on(&*bench.vfs, std::path::Path::new("/data")).unwrap();
        assert_eq!(report.damages().count(), 0, "{report:?}");
    }
}

#[test]
fn a_tombstone_stays_for_its_time_and_then_goes() {
    let bench = Bench::new();
    let topic =
        bench.store.create_topic("t", compacted().delete_retention_ms(1000).min_cleanable_dirty_ratio(0.0)).unwrap();
    let partition = bench.partition("t");
    topic.append(Record::keyed("a", "1")).unwrap();
    topic.append(Record::tombstone("a")).unwrap();
    let mut filler = 0;
    let mut fill = || {
        for _ in 0..20 {
            topic.append(Record::keyed("filler", format!("{filler}"))).unwrap();
            filler += 1;
        }
    };
    fill();
    bench.settle();
    let of_a = || rows(&partition).into_iter().filter(|row| row.1 == "a").collect::<Rows>();
    assert_eq!(of_a(), [(1, "a".to_owned(), None)], "the tombstone alone is left");
    assert_eq!(partition.tombstone_floor().get(), 0);
    bench.clock.advance_ms(999);
    fill();
    bench.settle();
    assert_eq!(of_a().len(), 1);
    bench.clock.advance_ms(1);
    fill();
    bench.settle();
    assert_eq!(of_a(), []);
    assert_eq!(partition.tombstone_floor().get(), 2);
}

#[test]
fn a_reader_goes_on_while_the_segments_below_it_are_exchanged() {
    let bench = Bench::new();
    let topic = bench.store.create_topic("t", compacted()).unwrap();
    for n in 0..500 {
        topic.append(Record::keyed(format!("k{}", n % 5), format!("v{n}"))).unwrap();
    }
    let partition = bench.partition("t");
    let whole = rows(&partition);
    let mut readers: Vec<_> = (0..5).map(|_| partition.read_from(0)).collect();
    let mut seen: Vec<Vec<i64>> = vec![Vec::new(); 5];
    for (nth, reader) in readers.iter_mut().enumerate() {
        seen[nth].extend(reader.take(nth * 100).map(|record| record.unwrap().offset().get()));
    }
    bench.settle();
    for (reader, seen) in readers.iter_mut().zip(&mut seen) {
        seen.extend(reader.map(|record| record.unwrap().offset().get()));
        assert!(seen.is_sorted() && seen.windows(2).all(|pair| pair[0] < pair[1]));
        // Old segments that it holds are read to their end; behind them everything that is left is seen.
        let left = rows(&partition);
        let last = left.last().unwrap().0;
        assert_eq!(seen.last(), Some(&last));
        for (offset, key, _) in &left {
            let newest = whole.iter().rfind(|row| row.1 == *key).unwrap().0;
            assert!(seen.contains(&newest) || *offset < newest, "{key}");
        }
    }
}

#[test]
fn more_keys_than_memory_take_more_rounds() {
    let (vfs, clock) = (Arc::new(MemoryVfs::new()), Arc::new(ManualClock::new(T0)));
    let store = builder(&vfs, &clock).compaction_memory_bytes(2048).open("/data").unwrap();
    let bench = Bench { store, clock, vfs };
    let config = compacted().min_cleanable_dirty_ratio(0.0).segment_bytes(2000);
    let topic = bench.store.create_topic("t", config).unwrap();
    for n in 0..2000 {
        topic.append(Record::keyed(format!("key {}", n * 7919 % 500), format!("v{n}"))).unwrap();
    }
    let before = rows(&bench.partition("t"));
    assert!(bench.settle().compactions > 3);
    let after = rows(&bench.partition("t"));
    assert_eq!(fold(&before), fold(&after));
    let closed: Rows = after.iter().filter(|row| row.0 < bench.partition("t").clean_end().get()).cloned().collect();
    assert!(closed.len() < 520, "{}", closed.len());
}

#[test]
fn retention_by_age_takes_what_is_older_and_leaves_a_record_one_millisecond_younger() {
    const WEEK: u32 = 7 * 86_400_000;
    let bench = Bench::new();
    let config = TopicConfig::default().retention_ms(WEEK.into()).segment_bytes(256).durability(Durability::Os);
    let topic = bench.store.create_topic("t", config).unwrap();
    for n in 0..10_i64 {
        topic.append(Record::keyed("k", vec![b'v'; 150]).timestamp_ms(T0 - 9 + n)).unwrap();
    }
    let partition = bench.partition("t");
    bench.clock.advance_ms(WEEK - 9);
    bench.settle();
    assert_eq!(partition.start().get(), 0, "exactly a week is not older than a week");
    bench.clock.advance_ms(5);
    bench.settle();
    assert_eq!(partition.start().get(), 5, "the record of five milliseconds later stays");
    let refused = partition.read(4, 1000, 10).unwrap_err();
    assert!(matches!(refused, Error::OffsetOutOfRange { start, .. } if start.get() == 5), "{refused}");
    bench.clock.advance_ms(1000);
    bench.settle();
    assert_eq!((partition.start().get(), partition.end().get()), (10, 10), "an idle topic becomes empty");
    topic.append(Record::keyed("k", "v")).unwrap();
    assert_eq!(partition.end().get(), 11);
}

#[test]
fn retention_by_size_leaves_no_less_than_was_asked_for() {
    let mut bench = Bench::new();
    let config = TopicConfig::default().retention_bytes(1000).segment_bytes(256).durability(Durability::Os);
    let topic = bench.store.create_topic("t", config).unwrap();
    for _ in 0..20 {
        topic.append(Record::keyed("k", vec![b'v'; 150])).unwrap();
    }
    bench.settle();
    let partition = bench.partition("t");
    let stats = partition.stats();
    assert!((1000..1256).contains(&stats.bytes), "{stats:?}");
    let start = partition.start();
    drop((partition, topic));
    bench.reopen();
    assert_eq!(bench.partition("t").start(), start);
    assert_eq!(rows(&bench.partition("t")).first().unwrap().0, start.get());
}

#[test]
fn records_deleted_by_request_are_gone_at_once_and_for_good() {
    let mut bench = Bench::new();
    let topic = bench.store.create_topic("t", TopicConfig::default().segment_bytes(400)).unwrap();
    for n in 0..50 {
        topic.append(Record::keyed("k", format!("{n}"))).unwrap();
    }
    let partition = bench.partition("t");
    let segments = partition.stats().segments;
    assert!(matches!(partition.delete_records(51), Err(Error::OffsetOutOfRange { .. })));
    assert_eq!(partition.delete_records(33).unwrap().get(), 33);
    assert_eq!(partition.delete_records(3).unwrap().get(), 33, "it never goes back");
    assert!(partition.stats().segments < segments);
    drop((partition, topic));
    bench.reopen();
    assert_eq!(bench.partition("t").start().get(), 33);
    assert_eq!(rows(&bench.partition("t")).len(), 17);
}

/// It once stayed for good, as it had been the active one when the log start passed it.
#[test]
fn a_segment_that_was_active_when_all_of_it_was_deleted_goes_once_it_is_closed() {
    let bench = Bench::new();
    let topic = bench.store.create_topic("t", TopicConfig::default().segment_bytes(400)).unwrap();
    let full = vec![b'v'; 300];
    let append = |count: usize| (0..count).for_each(|_| drop(topic.append(Record::keyed("k", full.clone())).unwrap()));
    append(1);
    let partition = bench.partition("t");
    partition.delete_records(partition.end()).unwrap();
    assert_eq!((bench.settle().deleted_segments, partition.stats().segments), (0, 1), "it is the active one");
    append(10);
    let segments = partition.stats().segments;
    assert_eq!(bench.settle().deleted_segments, 1);
    assert_eq!(partition.stats().segments, segments - 1);
    assert_eq!(rows(&partition).len(), 10);
}

#[test]
fn an_idle_segment_is_closed_when_its_age_asks_for_it() {
    let bench = Bench::new();
    let topic =
        bench.store.create_topic("t", compacted().max_compaction_lag_ms(60_000).segment_bytes(1 << 20)).unwrap();
    for n in 0..10 {
        topic.append(Record::keyed("k", format!("{n}"))).unwrap();
    }
    bench.settle();
    bench.clock.advance_ms(60_000);
    assert_eq!(bench.settle().rolled_segments, 0);
    bench.clock.advance_ms(1);
    let done = bench.settle();
    assert_eq!((done.rolled_segments, done.compactions), (1, 1));
    assert_eq!(rows(&bench.partition("t")), [(9, "k".to_owned(), Some("9".to_owned()))]);
}

#[test]
fn a_jump_of_the_clock_does_not_delete_everything() {
    let bench = Bench::new();
    let config = TopicConfig::default().retention_ms(86_400_000).segment_bytes(256).durability(Durability::Os);
    let topic = bench.store.create_topic("t", config).unwrap();
    for _ in 0..10 {
        topic.append(Record::keyed("k", vec![b'v'; 150])).unwrap();
    }
    bench.settle();
    bench.clock.jump_to_ms(T0 + 10 * 365 * 86_400_000);
    bench.settle();
    assert_eq!(bench.partition("t").start().get(), 1, "one segment at a time");
}

/// A topic with a tombstone whose time is over, all of it closed.
fn with_a_tombstone(bench: &Bench, hold_max_ms: i64) -> Partition {
    let config =
        compacted().delete_retention_ms(1000).tombstone_hold_max_ms(hold_max_ms).min_cleanable_dirty_ratio(0.0);
    let topic = bench.store.create_topic("t", config).unwrap();
    topic.append(Record::keyed("a", "1")).unwrap();
    topic.append(Record::tombstone("a")).unwrap();
    for n in 0..20 {
        topic.append(Record::keyed("filler", format!("{n}"))).unwrap();
    }
    bench.settle();
    bench.partition("t")
}

#[test]
fn a_tombstone_goes_although_nothing_is_appended_any_more() {
    let bench = Bench::new();
    let partition = with_a_tombstone(&bench, 0);
    bench.clock.advance_ms(1000);
    assert_eq!(bench.settle().tombstones_dropped, 1);
    assert_eq!(partition.tombstone_floor().get(), 2);
    assert!(rows(&partition).iter().all(|row| row.1 != "a"));
}

#[test]
fn a_tombstone_waits_for_a_reader_that_has_not_come_to_it() {
    let mut bench = Bench::new();
    let id = with_a_tombstone(&bench, 1_000_000).id().clone();
    bench.store.hold_tombstones("slow", &[(id.clone(), Offset::new(1))]).unwrap();
    bench.store.hold_tombstones("fast", &[(id.clone(), Offset::new(20))]).unwrap();
    bench.clock.advance_ms(5000);
    bench.settle();
    bench.reopen();
    assert_eq!(bench.store.holds().len(), 2, "holds are kept");
    bench.settle();
    assert_eq!(bench.partition("t").tombstone_floor().get(), 0);
    bench.store.hold_tombstones("slow", &[(id, Offset::new(2))]).unwrap();
    assert_eq!(bench.settle().tombstones_dropped, 1, "it moved past the tombstone");
}

#[test]
fn no_reader_holds_a_tombstone_for_ever() {
    let bench = Bench::new();
    let id = with_a_tombstone(&bench, 60_000).id().clone();
    bench.store.hold_tombstones("dead", &[(id, Offset::new(0))]).unwrap();
    bench.clock.advance_ms(59_999);
    assert_eq!(bench.settle().tombstones_dropped, 0);
    bench.clock.advance_ms(1);
    assert_eq!(bench.settle().tombstones_dropped, 1);
}

#[test]
fn a_reader_that_may_have_missed_a_delete_is_told_so() {
    let bench = Bench::new();
    let partition = with_a_tombstone(&bench, 0);
    let began = partition.tombstone_floor();
    let options = ReadOptions::new().level(ReadLevel::Latest).state_since(began);
    let mut early = partition.reader(0, &options).unwrap();
    assert!(early.next().unwrap().is_ok(), "nothing is missing yet");
    bench.clock.advance_ms(1000);
    bench.settle();
    let resumed = partition.reader(1, &options).unwrap().next().unwrap();
    assert!(matches!(resumed, Err(Error::SnapshotRequired { tombstone_floor, .. }) if tombstone_floor.get() == 2));
    assert!(partition.reader(2, &options).unwrap().next().unwrap().is_ok(), "it had read the tombstone");
    let anew = ReadOptions::new().level(ReadLevel::Latest).state_since(partition.tombstone_floor());
    assert!(partition.reader(0, &anew).unwrap().all(|record| record.is_ok()), "without state there is nothing to miss");
    let stateless = ReadOptions::new().level(ReadLevel::Latest);
    assert!(partition.reader(0, &stateless).unwrap().all(|record| record.is_ok()));
}

/// The floor of a log that was adopted is its end, above all tombstones that are there.
#[test]
fn a_reader_that_has_begun_since_an_adoption_is_told_as_well() {
    let log = broker::BrokerLog::new(0)
        .batch(0, &[broker::kv("a", "1"), broker::kv("b", "1")])
        .roll(2)
        .batch(2, &[broker::gone("a")]);
    let bench = broker::Bench::adopt(&log, broker::config());
    let partition = bench.partition();
    let read = |from: i64, began: Offset| -> topiclog::Result<Vec<i64>> {
        let options = ReadOptions::new().level(ReadLevel::Latest).state_since(began);
        partition.reader(from, &options)?.map(|record| Ok(record?.offset().get())).collect()
    };
    let began = partition.tombstone_floor();
    bench.settle();
    assert_eq!((began.get(), read(0, began).unwrap()), (3, vec![1, 2]));
    bench.clock.advance_ms(1000);
    assert_eq!(bench.settle().tombstones_dropped, 1);
    assert!(matches!(read(1, began), Err(Error::SnapshotRequired { .. })), "it had \"a\" before it was deleted");
    assert_eq!(read(0, partition.tombstone_floor()).unwrap(), [1]);
}

/// What a hold that failed has written must not come back behind a release that did not.
#[test]
fn a_hold_that_could_not_be_written_is_released_for_good() {
    let mut came_back = 0;
    for call in 1..20 {
        let disk = FaultVfs::new();
        let open = |disk: &FaultVfs| {
            let clock = Arc::new(ManualClock::new(T0));
            Store::builder().vfs(Arc::new(disk.clone())).clock(clock).upkeep(Upkeep::Manual).open("/s").unwrap()
        };
        let store = open(&disk);
        let topic = store.create_topic("t", compacted()).unwrap();
        let all = [(topic.partition(0).unwrap().id().clone(), Offset::new(0))];
        disk.sync_everything();
        disk.inject(FaultPlan::new(Fault::Error(errno::EIO)).at_call(call));
        let held = store.hold_tombstones("reader", &all);
        disk.clear_faults();
        assert_eq!(store.holds().len(), usize::from(held.is_ok()), "call {call}");
        let left = open(&FaultVfs::from_image(&disk.image())).holds().len();
        came_back += usize::from(held.is_err() && left == 1);
        store.release_tombstones("reader").unwrap();
        for image in [disk.image(), disk.durable_image()] {
            assert_eq!(open(&FaultVfs::from_image(&image)).holds(), [], "call {call}: {held:?}");
        }
    }
    assert!(came_back > 0, "no failed call left anything behind");
}

/// Once it was passed over in silence, and with it all holds, or those of the newest change.
#[test]
fn a_damaged_file_of_holds_is_told_of() {
    let check = |slots: &[u64], is_there: bool, with_groups: bool, expected: &[i64]| {
        let mut bench = Bench::new();
        let id = with_a_tombstone(&bench, 1_000_000).id().clone();
        for from in [0, 1] {
            bench.store.hold_tombstones("reader", &[(id.clone(), Offset::new(from))]).unwrap();
        }
        if with_groups {
            Groups::open(&bench.store).unwrap().commit("g", &[(id, OffsetAndMetadata::new(1))]).unwrap();
        }
        bench.store.close().unwrap();
        for slot in slots {
            let path = std::path::PathBuf::from(format!("/data/topiclog.holds.{slot}"));
            if is_there {
                broker::put(&*bench.vfs, &path, b"rot");
            } else {
                bench.vfs.remove_file(&path).unwrap();
            }
        }
        bench.reopen();
        let told = &bench.store.recovery_report().store;
        let told = told.iter().filter(|repair| matches!(repair, Repair::HoldsDamaged { .. })).count();
        let held = bench.store.holds().into_iter();
        let of_groups = held.clone().filter(|(name, ..)| name == "topiclog-groups").count();
        assert_eq!((told, of_groups > 0), (slots.len(), with_groups), "{slots:?}");
        let held: Vec<i64> = held.filter(|(name, ..)| name == "reader").map(|(_, _, at)| at.get()).collect();
        assert_eq!(held, expected, "{slots:?}");
    };
    check(&[], true, false, &[1]);
    check(&[1], true, false, &[1]);
    check(&[0], true, false, &[0]);
    check(&[1], false, false, &[1]);
    check(&[0, 1], true, false, &[]);
    check(&[0, 1], true, true, &[]);
}

#[test]
fn a_deleted_topic_takes_what_was_held_of_it_along() {
    let bench = Bench::new();
    let id = with_a_tombstone(&bench, 0).id().clone();
    bench.store.hold_tombstones("reader", &[(id.clone(), Offset::new(0))]).unwrap();
    for name in ["", "topiclog-groups", "topiclog-"] {
        let refused = bench.store.hold_tombstones(name, &[]);
        assert!(matches!(refused, Err(Error::Invalid { .. })), "{name}: {refused:?}");
        assert!(matches!(bench.store.release_tombstones(name), Err(Error::Invalid { .. })), "{name}");
    }
    bench.store.delete_topic("t").unwrap();
    assert!(bench.store.holds().is_empty());
    let refused = bench.store.hold_tombstones("reader", &[(id, Offset::new(0))]);
    assert!(matches!(refused, Err(Error::UnknownTopic { .. })));
}

#[test]
fn a_round_that_retention_overtakes_counts_for_nothing() {
    let (vfs, clock) = (Arc::new(MemoryVfs::new()), Arc::new(ManualClock::new(T0)));
    let store = builder(&vfs, &clock).compaction_step_bytes(1).open("/data").unwrap();
    let bench = Bench { store, clock, vfs };
    let config = compacted().min_cleanable_dirty_ratio(0.0).delete_retention_ms(0).segment_bytes(300);
    let topic = bench.store.create_topic("t", config.clone()).unwrap();
    let partition = bench.partition("t");
    let append = |key: &str, count: i32| {
        (0..count).for_each(|n| {
            topic.append(Record::keyed(key.to_owned(), format!("{n}"))).unwrap();
        });
    };
    append("filler", 8);
    append("k", 1);
    append("other", 8);
    topic.append(Record::tombstone("k")).unwrap();
    append("last", 20);
    // Small segments that become one group.
    bench.store.alter_topic("t", config.segment_bytes(100_000)).unwrap();
    let bytes = partition.stats().bytes;
    let (mut read, mut overtaken) = (0, false);
    for _ in 0..500 {
        let step = bench.store.tick().unwrap();
        read += step.compacted_bytes;
        // The keys were noted, and half of the copy is made.
        if read > bytes * 3 / 2 && !overtaken {
            let segments = partition.stats().segments;
            partition.delete_records(6).unwrap();
            assert!(partition.stats().segments < segments);
            overtaken = true;
        }
    }
    assert!(overtaken);
    bench.clock.advance_ms(10);
    bench.settle();
    bench.clock.advance_ms(10);
    bench.settle();
    assert!(rows(&partition).iter().all(|row| row.1 != "k" || row.2.is_none()), "{:?}", rows(&partition));
}

#[test]
fn a_log_start_is_never_ahead_of_what_a_crash_leaves() {
    let disk = FaultVfs::new();
    let open =
        |disk: &FaultVfs| Store::builder().vfs(Arc::new(disk.clone())).upkeep(Upkeep::Manual).open("/s").unwrap();
    let store = open(&disk);
    let topic = store.create_topic("t", TopicConfig::default().durability(Durability::Os)).unwrap();
    (0..5).for_each(|n| {
        topic.append(Record::keyed("k", format!("{n}"))).unwrap();
    });
    assert_eq!(topic.partition(0).unwrap().delete_records(5).unwrap().get(), 5);
    let after_power_cut = FaultVfs::from_image(&disk.durable_image());
    let store = open(&after_power_cut);
    let topic = store.topic("t").unwrap();
    let partition = topic.partition(0).unwrap();
    assert_eq!((partition.start().get(), partition.end().get()), (5, 5));
    assert_eq!(topic.append(Record::keyed("k", "new")).unwrap().offset.get(), 5);
    assert_eq!(rows(&partition).len(), 1);
}

#[test]
fn a_hold_that_is_released_while_a_round_runs_is_not_forgotten() {
    let (vfs, clock) = (Arc::new(MemoryVfs::new()), Arc::new(ManualClock::new(T0)));
    let store = builder(&vfs, &clock).compaction_step_bytes(1).open("/data").unwrap();
    let bench = Bench { store, clock, vfs };
    let partition = with_a_tombstone(&bench, 1_000_000);
    bench.store.hold_tombstones("slow", &[(partition.id().clone(), Offset::new(0))]).unwrap();
    bench.clock.advance_ms(5000);
    // The round has passed the tombstone, and kept it, when the reader lets go.
    for _ in 0..8 {
        bench.store.tick().unwrap();
    }
    bench.store.release_tombstones("slow").unwrap();
    bench.settle();
    assert_eq!(partition.tombstone_floor().get(), 2);
}

/// Each move of any hold once let every partition with a tombstone be copied anew.
#[test]
fn a_reader_that_moves_costs_no_round_until_it_has_passed_a_tombstone() {
    let mut bench = Bench::new();
    let id = with_a_tombstone(&bench, 1_000_000).id().clone();
    let other = bench.store.create_topic("other", compacted()).unwrap().partition(0).unwrap().id().clone();
    let check = |bench: &Bench, held: &TopicPartition, from: i64, rounds: usize| {
        bench.store.hold_tombstones("reader", &[(held.clone(), Offset::new(from))]).unwrap();
        assert_eq!(bench.settle().compactions, rounds, "{held} from {from}");
    };
    check(&bench, &id, 0, 0);
    check(&bench, &other, 0, 0);
    bench.clock.advance_ms(5000);
    check(&bench, &id, 0, 1);
    check(&bench, &id, 1, 0);
    bench.store.hold_tombstones("elsewhere", &[(other.clone(), Offset::new(0))]).unwrap();
    assert_eq!(bench.settle().compactions, 0);
    assert_eq!(bench.partition("t").tombstone_floor().get(), 0);
    // It passes the tombstone, and the store is closed before upkeep runs.
    bench.store.hold_tombstones("reader", &[(id, Offset::new(2))]).unwrap();
    bench.reopen();
    let settled = bench.settle();
    assert_eq!((settled.compactions, settled.tombstones_dropped), (1, 1));
}

#[test]
fn a_hold_that_is_set_while_a_round_runs_counts_for_what_has_not_taken_effect() {
    let (mut held, mut gone) = (0, 0);
    for steps in 0..40 {
        let (vfs, clock) = (Arc::new(MemoryVfs::new()), Arc::new(ManualClock::new(T0)));
        let store = builder(&vfs, &clock).compaction_step_bytes(1).open("/data").unwrap();
        let bench = Bench { store, clock, vfs };
        let partition = with_a_tombstone(&bench, 1_000_000);
        bench.clock.advance_ms(5000);
        for _ in 0..steps {
            bench.store.tick().unwrap();
        }
        let floor = partition.tombstone_floor();
        bench.store.hold_tombstones("late", &[(partition.id().clone(), Offset::new(0))]).unwrap();
        bench.settle();
        assert_eq!(partition.tombstone_floor(), floor, "set after {steps} steps");
        let is_there = rows(&partition).iter().any(|row| row.1 == "a");
        assert_eq!(is_there, floor.get() == 0, "set after {steps} steps");
        held += usize::from(is_there);
        gone += usize::from(!is_there);
    }
    assert!(held > 2 && gone > 2, "{held} held, {gone} gone");
}

#[test]
fn a_read_only_store_shows_the_log_as_of_its_open_whatever_the_writer_exchanges() {
    let directory = tempfile::tempdir().unwrap();
    let clock = Arc::new(ManualClock::new(T0));
    let open = |read_only: bool| {
        let builder = Store::builder().clock(Arc::clone(&clock) as _).upkeep(Upkeep::Manual).read_only(read_only);
        builder.open(directory.path().join("s")).unwrap()
    };
    let store = open(false);
    let config = compacted().cleanup_policy(CleanupPolicy::CompactAndDelete).min_cleanable_dirty_ratio(0.0);
    let topic = store.create_topic("t", config.retention_ms(1000)).unwrap();
    for n in 0..100 {
        topic.append(Record::keyed(format!("k{}", n % 5), format!("{n}"))).unwrap();
    }
    let before = rows(&topic.partition(0).unwrap());
    let beside = open(true);
    while !store.tick().unwrap().is_idle() {}
    assert!(rows(&topic.partition(0).unwrap()).len() < 20);
    let partition = beside.topic("t").unwrap().partition(0).unwrap();
    assert_eq!(rows(&partition), before);
    clock.advance_ms(2000);
    while !store.tick().unwrap().is_idle() {}
    assert_eq!(topic.partition(0).unwrap().start().get(), 100);
    assert_eq!(rows(&partition), before);
    let late = open(true);
    assert_eq!(rows(&late.topic("t").unwrap().partition(0).unwrap()), []);
    store.close().unwrap();
}

#[test]
fn all_of_it_holds_where_there_is_no_key_index() {
    without_key_index(all);
}

pub(crate) fn all() {
    compaction_keeps_the_latest_record_of_each_key_at_its_offset();
    a_compacted_log_opens_again_clean_and_compacts_on();
    a_tombstone_stays_for_its_time_and_then_goes();
    a_reader_goes_on_while_the_segments_below_it_are_exchanged();
    more_keys_than_memory_take_more_rounds();
    retention_by_age_takes_what_is_older_and_leaves_a_record_one_millisecond_younger();
    retention_by_size_leaves_no_less_than_was_asked_for();
    records_deleted_by_request_are_gone_at_once_and_for_good();
    an_idle_segment_is_closed_when_its_age_asks_for_it();
    a_jump_of_the_clock_does_not_delete_everything();
    a_tombstone_goes_although_nothing_is_appended_any_more();
    a_tombstone_waits_for_a_reader_that_has_not_come_to_it();
    no_reader_holds_a_tombstone_for_ever();
    a_reader_that_may_have_missed_a_delete_is_told_so();
    a_deleted_topic_takes_what_was_held_of_it_along();
    a_round_that_retention_overtakes_counts_for_nothing();
    a_log_start_is_never_ahead_of_what_a_crash_leaves();
    a_hold_that_is_released_while_a_round_runs_is_not_forgotten();
    a_hold_that_is_set_while_a_round_runs_counts_for_what_has_not_taken_effect();
    a_reader_that_moves_costs_no_round_until_it_has_passed_a_tombstone();
    a_hold_that_could_not_be_written_is_released_for_good();
    a_read_only_store_shows_the_log_as_of_its_open_whatever_the_writer_exchanges();
}

/// Kafka's cleaner sets the time of a file so, and a broker's retention falls back to it where records have no timestamps.
#[test]
fn a_compacted_log_counts_as_written_when_the_last_of_its_sources_was() {
    use std::time::{Duration, UNIX_EPOCH};
    let directory = tempfile::tempdir().unwrap();
    let clock = Arc::new(ManualClock::new(T0));
    let open =
        || Store::builder().clock(Arc::clone(&clock) as _).upkeep(Upkeep::Manual).open(directory.path()).unwrap();
    let logs = || {
        let mut logs: Vec<(String, u64)> = std::fs::read_dir(directory.path().join("t-0"))
            .unwrap()
            .map(Result::unwrap)
            .filter(|entry| entry.path().extension().is_some_and(|extension| extension == "log"))
            .map(|entry| {
                let modified = entry.metadata().unwrap().modified().unwrap().duration_since(UNIX_EPOCH).unwrap();
                (entry.file_name().into_string().unwrap(), modified.as_secs())
            })
            .collect();
        logs.sort();
        logs
    };
    let store = open();
    let topic = store.create_topic("t", compacted().segment_bytes(1000).preallocate_bytes(0)).unwrap();
    for n in 0..60 {
        topic.append(Record::keyed(format!("k{}", n % 3), "v".repeat(60))).unwrap();
    }
    drop(topic);
    store.close().unwrap();
    let before = logs();
    assert!(before.len() > 5);
    for (nth, (name, _)) in before.iter().enumerate() {
        let file = std::fs::File::options().write(true).open(directory.path().join("t-0").join(name)).unwrap();
        file.set_modified(UNIX_EPOCH + Duration::from_secs(1_000_000 + nth as u64)).unwrap();
    }
    let store = open();
    // So that some are joined.
    store.alter_topic("t", compacted().segment_bytes(3500)).unwrap();
    settle(&store);
    assert_eq!(store.topic("t").unwrap().upkeep_stats().compactions, 1);
    let after = logs();
    assert!(after.len() < before.len(), "{after:?}");
    for (at, (name, modified)) in after.iter().enumerate().take(after.len() - 1) {
        let next = &after[at + 1].0;
        let last_source = before.iter().rposition(|(source, _)| source < next).unwrap();
        assert_eq!(*modified, 1_000_000 + last_source as u64, "{name}");
    }
    store.close().unwrap();
}
