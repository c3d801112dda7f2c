//! What upkeep promises beside its work: how long a step takes, how much it reads, and that one partition, or a wrong clock, holds
//! up no other.

use std::sync::Arc;
use std::time::{Duration, Instant};

use topiclog::clock::ManualClock;
use topiclog::io::{FaultVfs, MemoryVfs, Vfs};
use topiclog::{
    AppendOptions, CleanupPolicy, Durability, Error, Offset, Record, Store, StoreBuilder, Topic, TopicConfig, Upkeep,
};

use crate::support::broker::{self, BrokerLog, kv};
use crate::support::upkeep::settle;

const T0: i64 = 1_700_000_000_000;
/// Ten years: so far a clock is off.
const FAR_MS: i64 = 10 * 365 * 86_400_000;
/// So long a clock that jumped is distrusted.
const DISTRUST_MS: u32 = 3_600_000;

struct Bench {
    disk: FaultVfs,
    clock: Arc<ManualClock>,
    store: Store,
}

impl Bench {
    fn with(change: impl FnOnce(StoreBuilder) -> StoreBuilder) -> Self {
        Self::on(FaultVfs::new(), change)
    }

    fn on(disk: FaultVfs, change: impl FnOnce(StoreBuilder) -> StoreBuilder) -> Self {
        Self::at(T0, disk, change)
    }

    fn at(now_ms: i64, disk: FaultVfs, change: impl FnOnce(StoreBuilder) -> StoreBuilder) -> Self {
        let clock = Arc::new(ManualClock::new(now_ms));
        let vfs: Arc<dyn Vfs> = Arc::new(disk.clone());
        let builder = Store::builder().vfs(vfs).clock(Arc::clone(&clock) as _).upkeep(Upkeep::Manual);
        let store = change(builder).open("/s").unwrap();
        Self { disk, clock, store }
    }

    fn new() -> Self {
        Self::with(|builder| builder)
    }

    /// Opens the store anew, by a clock that says this.
    fn reopen_at(self, now_ms: i64) -> Self {
        self.store.close().unwrap();
        Self::at(now_ms, self.disk, |builder| builder)
    }

    #[track_caller]
    fn check_start(&self, expected: i64) {
        settle(&self.store);
        assert_eq!(self.store.topic("t").unwrap().partition(0).unwrap().start().get(), expected);
    }

    /// How many tombstones there are once nothing is left to do.
    #[track_caller]
    fn check_tombstones(&self, expected: usize, why: &str) {
        settle(&self.store);
        let records = self.store.topic("t").unwrap().partition(0).unwrap().read_from(0);
        let found = records.map(Result::unwrap).filter(|record| record.is_tombstone()).count();
        assert_eq!(found, expected, "{why}");
    }
}

/// Appends ten records, two of which fill a segment of 400 bytes.
fn fill(topic: &Topic, timestamp_ms: Option<i64>) {
    for n in 0..10 {
        let record = Record::keyed(format!("k{n}"), "v".repeat(100));
        topic.append(timestamp_ms.iter().fold(record, |record, &timestamp| record.timestamp_ms(timestamp))).unwrap();
    }
}

fn small_segments() -> TopicConfig {
    TopicConfig::default().durability(Durability::Os).segment_bytes(400)
}

fn compacted() -> TopicConfig {
    TopicConfig::default()
        .cleanup_policy(CleanupPolicy::Compact)
        .durability(Durability::Os)
        .min_cleanable_dirty_ratio(0.0)
        .delete_retention_ms(0)
}

#[test]
fn a_batch_in_which_a_key_comes_again_and_again_is_read_once() {
    let bench = Bench::new();
    let topic = bench.store.create_topic("t", compacted()).unwrap();
    // Made before the append, so that the index hears of the keys as they come.
    assert!(topic.get("k0").unwrap().is_none());
    let batch: Vec<Record> = (0..30_000).map(|n| Record::keyed(format!("k{}", n % 3), format!("{n}"))).collect();
    topic.append_all(&batch, &AppendOptions::new()).unwrap();
    let begun = Instant::now();
    assert_eq!(topic.get("k0").unwrap().unwrap().value(), Some(&b"29997"[..]));
    // A walk through the batch for each time that a key comes takes much longer.
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    let stats = topic.key_index_stats(0).unwrap().unwrap();
    assert_eq!((stats.entries, stats.waiting), (3, 0), "nothing was left to be compared");
}

#[test]
fn the_keys_that_expire_in_one_step_are_ended_by_one_batch_and_one_sync() {
    let bench = Bench::new();
    let config = compacted().durability(Durability::Sync).expire_after_ms(1000);
    let topic = bench.store.create_topic("t", config).unwrap();
    let batch: Vec<Record> = (0..500).map(|n| Record::keyed(format!("k{n}"), "v")).collect();
    topic.append_all(&batch, &AppendOptions::new()).unwrap();
    settle(&bench.store);
    bench.clock.advance_ms(900);
    topic.append(Record::keyed("k7", "newer")).unwrap();
    bench.clock.advance_ms(101);
    let before = bench.disk.operations();
    let ended = settle(&bench.store).expired_keys;
    let operations = bench.disk.operations() - before;
    assert_eq!(ended, 499);
    assert!(operations < 20, "{operations} writes and syncs for 499 keys");
    assert_eq!(topic.get("k7").unwrap().unwrap().value(), Some(&b"newer"[..]), "the newer record lives on");
    let partition = topic.partition(0).unwrap();
    let ends: Vec<_> = partition.read_from(501).map(Result::unwrap).collect();
    assert!(ends.len() == 499 && ends.iter().all(|record| record.is_tombstone() && record.key() != Some(b"k7")));
}

#[test]
fn a_pass_of_expiry_that_the_setting_interrupts_keeps_no_files() {
    let bench = Bench::new();
    let config = || compacted().segment_bytes(20_000);
    let topic = bench.store.create_topic("t", config().expire_after_ms(1000)).unwrap();
    // More keys than one step looks at.
    for nth in 0..10 {
        let batch: Vec<Record> = (0..500).map(|n| Record::keyed(format!("k{nth}-{n}"), "v")).collect();
        topic.append_all(&batch, &AppendOptions::new()).unwrap();
    }
    settle(&bench.store);
    bench.clock.advance_ms(1001);
    let ended = bench.store.tick().unwrap().expired_keys;
    assert!((1..5000).contains(&ended), "a pass has begun: {ended}");
    bench.store.alter_topic("t", config()).unwrap();
    let partition = topic.partition(0).unwrap();
    partition.delete_records(partition.end()).unwrap();
    for _ in 0..3 {
        bench.store.tick().unwrap();
    }
    let image = bench.disk.image();
    let kept: Vec<_> = image.files().filter(|(path, _)| path.ends_with(".deleted")).collect();
    assert!(kept.is_empty(), "{kept:?}");
}

#[test]
fn keys_behind_a_record_that_cannot_be_read_expire_and_it_is_told_of_once() {
    let bench = Bench::new();
    let topic = bench.store.create_topic("t", compacted().expire_after_ms(1000)).unwrap();
    for n in 0..10 {
        topic.append(Record::keyed(format!("k{n}"), format!("value-{n}"))).unwrap();
    }
    settle(&bench.store);
    // The index has a file, so that it need not be made of the log that is damaged.
    assert!(topic.contains("k0").unwrap());
    bench.store.close().unwrap();
    let path = "/s/t-0/00000000000000000000.log";
    let bytes = bench.disk.image().read(path).unwrap();
    let at = bytes.windows(7).position(|window| window == b"value-4").unwrap();
    let mut image = bench.disk.image();
    image.patch(path, at as u64, b"X").unwrap();
    let bench = Bench::on(FaultVfs::from_image(&image), |builder| builder);
    let topic = bench.store.topic("t").unwrap();
    bench.clock.advance_ms(1001);
    let mut errors = Vec::new();
    for _ in 0..50 {
        errors.extend(bench.store.tick().err());
        bench.clock.advance_ms(1000);
    }
    assert!(matches!(errors[..], [Error::Corrupt { .. }]), "{errors:?}");
    let ends: Vec<_> = topic.partition(0).unwrap().read_from(10).map(Result::unwrap).collect();
    let keys: Vec<_> = ends.iter().map(|record| record.key().unwrap()[1] - b'0').collect();
    assert_eq!(keys, [0, 1, 2, 3, 5, 6, 7, 8, 9]);
}

/// A broker takes longer keys than we do, and one of them once kept its neighbours from ending.
#[test]
fn keys_of_a_broker_that_are_too_long_to_be_appended_expire_all_the_same() {
    let long = "k".repeat(70_000);
    let log = BrokerLog::new(0).batch(0, &[kv("a", "1")]).batch(1, &[kv(&long, "2")]).batch(2, &[kv("b", "3")]);
    let bench = broker::Bench::adopt(&log, compacted().expire_after_ms(1000));
    bench.settle();
    let ended: Vec<_> = bench.partition().read_from(3).map(|record| record.unwrap().key().unwrap().len()).collect();
    assert_eq!(ended, [1, 70_000, 1]);
}

#[test]
fn where_the_memory_is_too_small_for_the_index_expiry_says_so_once() {
    let bench = Bench::with(|builder| builder.key_index_memory_bytes(200));
    let topic = bench.store.create_topic("t", compacted().expire_after_ms(1000)).unwrap();
    for n in 0..100 {
        topic.append(Record::keyed(format!("k{n}"), "v")).unwrap();
    }
    let mut errors = Vec::new();
    for _ in 0..50 {
        errors.extend(bench.store.tick().err());
        bench.clock.advance_ms(1000);
    }
    assert!(matches!(errors[..], [Error::Unsupported { .. }]), "{errors:?}");
}

#[test]
fn compaction_reads_no_faster_than_it_may_whatever_wakes_upkeep() {
    const RATE: u64 = 256 << 10;
    const STEP: u64 = 64 << 10;
    let builder = Store::builder().vfs(Arc::new(MemoryVfs::new())).key_index_memory_bytes(0);
    let store = builder.compaction_step_bytes(STEP).compaction_bytes_per_second(RATE).open("/s").unwrap();
    let begun = Instant::now();
    // Its window wakes the thread a hundred times a second.
    let often = Durability::Interval { bytes: 1 << 20, ms: 20 };
    store.create_topic("often", TopicConfig::default().durability(often)).unwrap();
    let topic = store.create_topic("t", compacted().segment_bytes(100_000)).unwrap();
    for n in 0..2000 {
        topic.append(Record::keyed(format!("k{n}"), "v".repeat(2000))).unwrap();
    }
    std::thread::sleep(Duration::from_millis(1500));
    let read = topic.upkeep_stats().compaction_read_bytes;
    let allowed = (begun.elapsed().as_secs_f64() * RATE as f64) as u64 + 2 * STEP;
    assert!(read > 0 && read <= allowed, "{read} bytes were read where {allowed} are allowed");
}

#[test]
fn after_a_jump_of_the_clock_a_log_is_bounded_by_its_size_all_the_same() {
    let bench = Bench::new();
    let config = TopicConfig::default().durability(Durability::Os).segment_bytes(400).retention_bytes(1000);
    let topic = bench.store.create_topic("t", config.retention_ms(86_400_000)).unwrap();
    let append = || (0..40).for_each(|_| drop(topic.append(Record::of_value("v".repeat(100))).unwrap()));
    bench.store.tick().unwrap();
    bench.clock.jump_to_ms(T0 + 100 * 86_400_000);
    append();
    bench.store.tick().unwrap();
    let start = topic.partition(0).unwrap().start().get();
    assert!(start > 25, "the log starts at {start}");
}

#[test]
fn an_idle_segment_without_a_time_or_with_one_in_the_future_goes_by_its_last_append() {
    for timestamp in [T0 + 100 * 365 * 86_400_000, -1] {
        let bench = Bench::new();
        let config = || TopicConfig::default().durability(Durability::Os);
        let rolled = bench.store.create_topic("rolled", config().segment_ms(60_000)).unwrap();
        let gone = bench.store.create_topic("gone", config().retention_ms(60_000)).unwrap();
        for topic in [&rolled, &gone] {
            topic.append(Record::of_value("v").timestamp_ms(timestamp)).unwrap();
        }
        bench.clock.advance_ms(50_000);
        settle(&bench.store);
        for topic in [&rolled, &gone] {
            topic.append(Record::of_value("v").timestamp_ms(timestamp)).unwrap();
        }
        settle(&bench.store);
        bench.clock.advance_ms(60_000);
        assert_eq!(settle(&bench.store).rolled_segments, 0);
        bench.clock.advance_ms(1);
        assert_eq!(settle(&bench.store).rolled_segments, 1, "{timestamp}");
        assert_eq!(gone.partition(0).unwrap().start().get(), 2, "{timestamp}");
    }
}

#[test]
fn an_idle_segment_begun_by_a_clock_in_the_future_goes_by_its_last_append() {
    for is_reopened in [false, true] {
        let mut bench = Bench::at(T0 + FAR_MS, FaultVfs::new(), |builder| builder);
        let config = || TopicConfig::default().durability(Durability::Os);
        for (name, config) in [("rolled", config().segment_ms(60_000)), ("t", config().retention_ms(60_000))] {
            bench.store.create_topic(name, config).unwrap().append(Record::of_value("v")).unwrap();
        }
        settle(&bench.store);
        if is_reopened {
            bench = bench.reopen_at(T0 + FAR_MS);
            settle(&bench.store);
        }
        bench.clock.jump_to_ms(T0);
        bench.check_start(0);
        bench.clock.advance_ms(60_000);
        assert_eq!(settle(&bench.store).rolled_segments, 0);
        bench.check_start(0);
        bench.clock.advance_ms(1);
        assert_eq!(settle(&bench.store).rolled_segments, 1, "reopened: {is_reopened}");
        bench.check_start(1);
    }
}

#[test]
fn segments_closed_by_a_clock_in_the_future_go_with_those_behind_them() {
    let bench = Bench::at(T0 + FAR_MS, FaultVfs::new(), |builder| builder);
    fill(&bench.store.create_topic("t", small_segments().retention_ms(60_000)).unwrap(), None);
    let bench = bench.reopen_at(T0);
    fill(&bench.store.topic("t").unwrap(), None);
    bench.check_start(0);
    bench.clock.advance_ms(60_000);
    bench.check_start(0);
    bench.clock.advance_ms(1);
    bench.check_start(20);
}

#[test]
fn segments_closed_by_a_clock_that_was_behind_take_no_older_ones_with_them() {
    let bench = Bench::new();
    let topic = bench.store.create_topic("t", small_segments().retention_ms(60_000)).unwrap();
    for now_ms in [T0, T0 - FAR_MS, T0] {
        bench.clock.jump_to_ms(now_ms);
        fill(&topic, Some(T0));
    }
    let bench = bench.reopen_at(T0);
    bench.check_start(0);
}

#[test]
fn records_without_a_time_wait_for_no_clock_that_was_in_the_future_to_be_compacted() {
    let bench = Bench::at(T0 + FAR_MS, FaultVfs::new(), |builder| builder);
    let config = compacted().segment_bytes(400).min_compaction_lag_ms(60_000);
    fill(&bench.store.create_topic("t", config).unwrap(), Some(-1));
    let bench = bench.reopen_at(T0);
    fill(&bench.store.topic("t").unwrap(), Some(-1));
    assert_eq!(settle(&bench.store).compactions, 0);
    bench.clock.advance_ms(59_999);
    assert_eq!(settle(&bench.store).compactions, 0, "what is younger than the lag stays");
    bench.clock.advance_ms(1);
    assert_eq!(settle(&bench.store).compactions, 1);
}

/// Kafka's cleaner would wait for that time to come.
#[test]
fn a_time_in_the_future_keeps_no_record_from_being_compacted() {
    let check = |config: TopicConfig| {
        let bench = Bench::new();
        let topic = bench.store.create_topic("t", config.segment_bytes(400)).unwrap();
        fill(&topic, Some(T0 + FAR_MS));
        bench.clock.advance_ms(59_999);
        assert_eq!(settle(&bench.store).compactions, 0);
        bench.clock.advance_ms(2);
        assert_eq!(settle(&bench.store).compactions, 1);
    };
    check(compacted().min_compaction_lag_ms(60_000));
    check(compacted().min_cleanable_dirty_ratio(1.0).max_compaction_lag_ms(60_000));
}

#[test]
fn a_topic_that_is_to_be_compacted_is_not_idle_while_another_one_is_compacted() {
    let bench = Bench::with(|builder| builder.compaction_step_bytes(1).key_index_memory_bytes(0));
    let fill = |name: &str| {
        let topic = bench.store.create_topic(name, compacted().segment_bytes(400)).unwrap();
        (0..40).for_each(|n| drop(topic.append(Record::keyed(format!("k{}", n % 3), "v".repeat(100))).unwrap()));
        topic
    };
    let first = fill("first");
    while bench.store.tick().unwrap().compacted_bytes == 0 {}
    let second = fill("second");
    for _ in 0..1000 {
        if bench.store.tick_topic("second").unwrap().is_idle() {
            break;
        }
    }
    assert_eq!(second.upkeep_stats().compactions, 1);
    assert_eq!(first.upkeep_stats().compactions, 1, "one at a time");
    assert!(bench.store.tick_topic("second").unwrap().is_idle());
}

#[test]
fn names_of_holds_that_are_the_stores_own_are_refused_and_a_name_that_holds_nothing_is_not_kept() {
    let bench = Bench::new();
    let topic = bench.store.create_topic("t", compacted()).unwrap();
    let all = [(topic.partition(0).unwrap().id().clone(), Offset::new(0))];
    for refused in [
        bench.store.hold_tombstones("topiclog-groups", &all),
        bench.store.hold_tombstones("topiclog-anything", &[]),
        bench.store.release_tombstones("topiclog-groups"),
    ] {
        assert!(matches!(refused, Err(Error::Invalid { .. })), "{refused:?}");
    }
    bench.store.hold_tombstones("reader", &all).unwrap();
    bench.store.hold_tombstones("reader", &[]).unwrap();
    assert!(bench.store.holds().is_empty());
    let before = bench.disk.operations();
    for n in 0..10 {
        bench.store.hold_tombstones(&format!("reader-{n}"), &[]).unwrap();
    }
    assert_eq!(bench.disk.operations(), before, "nothing is written for what holds nothing");
}

#[test]
fn no_tombstone_goes_by_a_clock_that_jumped() {
    let bench = Bench::new();
    let config = compacted().segment_bytes(400).delete_retention_ms(60_000);
    let topic = bench.store.create_topic("t", config).unwrap();
    topic.append(Record::tombstone("gone")).unwrap();
    fill(&topic, None);
    settle(&bench.store);
    bench.clock.jump_to_ms(T0 + FAR_MS);
    settle(&bench.store);
    fill(&topic, None);
    bench.check_tombstones(1, "its time is not over");
    bench.clock.advance_ms(60_001);
    bench.check_tombstones(0, "its time is over by the clock as it was before");
}

/// Two tombstones that compaction sees first after the clock has jumped.
fn tombstones_seen_after_a_jump_to(now_ms: i64) -> Bench {
    let bench = Bench::new();
    let topic = bench.store.create_topic("t", compacted().segment_bytes(400).delete_retention_ms(60_000)).unwrap();
    settle(&bench.store);
    bench.clock.jump_to_ms(now_ms);
    for key in ["first", "second"] {
        topic.append(Record::tombstone(key)).unwrap();
        fill(&topic, None);
    }
    assert!(settle(&bench.store).compactions > 0);
    bench
}

/// That they go when they have waited for so long after this, and no earlier.
#[track_caller]
fn check_they_wait(bench: &Bench) {
    bench.check_tombstones(2, "their time begins");
    bench.clock.advance_ms(59_999);
    bench.check_tombstones(2, "their time is not over");
    bench.clock.advance_ms(1);
    bench.check_tombstones(0, "their time is over");
}

#[test]
fn the_time_of_a_tombstone_begins_once_the_clock_is_trusted_again() {
    for (jump_ms, is_mended) in [(FAR_MS, true), (FAR_MS, false), (-FAR_MS, true), (-FAR_MS, false)] {
        println!("a jump by {jump_ms}, mended: {is_mended}");
        let bench = tombstones_seen_after_a_jump_to(T0 + jump_ms);
        if is_mended {
            bench.clock.jump_to_ms(T0);
        }
        bench.check_tombstones(2, "nobody knows what time it is");
        bench.clock.advance_ms(DISTRUST_MS + 1);
        check_they_wait(&bench);
    }
}

#[test]
fn tombstones_that_wait_for_the_clock_to_be_trusted_are_not_forgotten_by_an_open() {
    let bench = tombstones_seen_after_a_jump_to(T0 + FAR_MS).reopen_at(T0);
    bench.check_tombstones(2, "their time has not begun");
    bench.clock.advance_ms(DISTRUST_MS + 1);
    check_they_wait(&bench);
}

#[test]
fn many_keys_that_expire_one_after_the_other_are_not_all_looked_at_for_each() {
    let bench = Bench::new();
    let topic = bench.store.create_topic("t", compacted().expire_after_ms(100_000)).unwrap();
    for nth in 0..50 {
        let record = |n: i64| Record::keyed(format!("k{n}"), "v").timestamp_ms(T0 + n);
        let batch: Vec<Record> = (nth * 100..nth * 100 + 100).map(record).collect();
        topic.append_all(&batch, &AppendOptions::new()).unwrap();
    }
    settle(&bench.store);
    bench.clock.advance_ms(100_000);
    let (mut looked_at, mut ended) = (0, 0);
    for _ in 0..300 {
        let step = bench.store.tick().unwrap();
        (looked_at, ended) = (looked_at + step.keys_looked_at, ended + step.expired_keys);
        bench.clock.advance_ms(10);
    }
    assert!(looked_at < 50_000, "{looked_at} records were looked at in three seconds");
    assert!(ended > 1900, "{ended} keys were ended, each a second late at most");
}

#[test]
fn entries_below_a_log_start_that_was_raised_since_the_file_was_written_are_not_counted() {
    let bench = Bench::new();
    let topic = bench.store.create_topic("t", compacted()).unwrap();
    (0..20).for_each(|n| drop(topic.append(Record::keyed(format!("k{n}"), "v")).unwrap()));
    assert!(topic.contains("k0").unwrap());
    bench.store.close().unwrap();
    let bench = Bench::on(bench.disk, |builder| builder);
    let topic = bench.store.topic("t").unwrap();
    topic.partition(0).unwrap().delete_records(10).unwrap();
    assert!(topic.contains("k15").unwrap() && !topic.contains("k5").unwrap());
    let stats = topic.key_index_stats(0).unwrap().unwrap();
    assert_eq!((stats.entries, stats.waiting), (10, 0));
}
