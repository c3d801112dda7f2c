//! Lag: exact in records that still exist, whatever compaction, retention and transactions have left.

use std::sync::Arc;
use std::time::Duration;

use topiclog::client::{Lag, OffsetAndMetadata, Reset};
use topiclog::clock::ManualClock;
use topiclog::group::Groups;
use topiclog::{
    CleanupPolicy, Consumer, Isolation, Partition, ReadLevel, ReadOptions, Record, Store, TopicConfig, Upkeep,
};

use crate::support::simulate::{Random, seed};

const T0: i64 = 1_700_000_000_000;

struct Place {
    store: Store,
    clock: Arc<ManualClock>,
    partition: Partition,
    groups: Groups,
}

fn place(config: TopicConfig) -> Place {
    let clock = Arc::new(ManualClock::new(T0));
    let builder = Store::builder().vfs(Arc::new(topiclog::io::MemoryVfs::new())).clock(Arc::clone(&clock) as _);
    let store = builder.upkeep(Upkeep::Manual).open("/s").unwrap();
    let partition = store.create_topic("t", config).unwrap().partition(0).unwrap();
    let groups = Groups::open(&store).unwrap();
    Place { store, clock, partition, groups }
}

/// What is counted by reading record for record, from each position there could be. Returns the offsets that are left.
fn check_every_position(place: &Place, now_ms: i64) -> Vec<i64> {
    let options = ReadOptions::new().level(ReadLevel::Latest).isolation(Isolation::Committed);
    let reader = place.partition.reader(place.partition.start(), &options).unwrap();
    let all: Vec<(i64, i64)> =
        reader.map(|record| record.unwrap()).map(|record| (record.offset().get(), record.timestamp_ms())).collect();
    let end = place.partition.last_stable_offset().get();
    for position in 0..=end + 1 {
        let lag = place.groups.lag(place.partition.id(), position).unwrap();
        let left: Vec<_> = all.iter().filter(|(offset, _)| *offset >= position).collect();
        let from = position.max(place.partition.start().get());
        assert_eq!((lag.records, lag.offsets), (left.len() as u64, (end - from).max(0) as u64), "at {position}");
        let age = left.first().map_or(0, |(_, time)| now_ms - time);
        assert_eq!(lag.time_ms, age as u64, "at {position}");
        assert_eq!(lag.bytes > 0, !left.is_empty(), "at {position}: {lag:?}");
        assert!(lag.bytes <= place.partition.stats().bytes);
    }
    all.into_iter().map(|(offset, _)| offset).collect()
}

#[test]
fn lag_is_exact_after_compaction_and_deletion_of_records() {
    let first = seed("lag", 1);
    for seed in first..first + 5 {
        let mut random = Random(seed);
        let config = TopicConfig::default().cleanup_policy(CleanupPolicy::CompactAndDelete).segment_bytes(700);
        let place = place(config.min_cleanable_dirty_ratio(0.0).delete_retention_ms(0));
        let mut appended = 0;
        for _ in 0..60 {
            let record = |random: &mut Random| {
                let key = format!("k{}", random.below(6));
                if random.below(5) == 0 { Record::tombstone(key) } else { Record::keyed(key, "value") }
            };
            let records: Vec<Record> = (0..=random.below(4)).map(|_| record(&mut random)).collect();
            appended += records.len();
            place.partition.append_batch(&records).unwrap();
            place.clock.advance_ms(random.below(1000) as u32);
        }
        let before = check_every_position(&place, now(&place));
        assert_eq!(before.len(), appended);
        for _ in 0..200 {
            place.clock.advance_ms(1000);
            place.store.tick().unwrap();
        }
        let left = check_every_position(&place, now(&place));
        assert!(left.len() < appended / 2, "{} of {appended} are left", left.len());
        let middle = left[left.len() / 2];
        place.partition.delete_records(middle).unwrap();
        assert_eq!(check_every_position(&place, now(&place)), left[left.len() / 2..]);
    }
}

fn now(place: &Place) -> i64 {
    use topiclog::clock::Clock as _;
    place.clock.now_ms()
}

#[test]
fn a_group_and_a_consumer_know_how_far_they_are_behind_and_for_how_long_they_stand() {
    let place = place(TopicConfig::default());
    let id = place.partition.id().clone();
    let commit = |offset: i64| {
        place.groups.commit("g", &[(id.clone(), OffsetAndMetadata::new(offset))]).unwrap();
    };
    let of_group = || {
        let lags = place.groups.lag_of("g").unwrap();
        assert_eq!(lags.len(), 1);
        lags[0].1
    };
    commit(0);
    assert_eq!(of_group(), Lag::default(), "there is nothing to read");
    place.clock.advance_ms(10_000);
    place.partition.append(Record::of_value("a")).unwrap();
    place.clock.advance_ms(300);
    let lag = of_group();
    assert_eq!((lag.records, lag.time_ms, lag.stalled_for_ms), (1, 300, 300), "it could not move before");
    place.partition.append(Record::of_value("b")).unwrap();
    place.clock.advance_ms(200);
    commit(1);
    place.clock.advance_ms(50);
    let lag = of_group();
    assert_eq!((lag.records, lag.time_ms, lag.stalled_for_ms), (1, 250, 50), "it moved, and is behind");

    let mut consumer = Consumer::builder(&place.store).topic("t").reset(Reset::Earliest).records_max(1).open().unwrap();
    consumer.poll(Duration::ZERO).unwrap();
    assert_eq!(consumer.lag(&id).unwrap().records, 1);
    assert_eq!(consumer.lag_in_all().unwrap(), consumer.lag(&id).unwrap());
    consumer.poll(Duration::ZERO).unwrap();
    assert_eq!(consumer.lag_in_all().unwrap(), Lag::default());
}

#[test]
fn partitions_are_summed_and_of_times_the_longest_counts() {
    let one = |records, time_ms| {
        let mut lag = Lag::default();
        (lag.records, lag.offsets, lag.bytes) = (records, 2 * records, 100 * records);
        (lag.time_ms, lag.stalled_for_ms) = (time_ms, time_ms / 2);
        lag
    };
    assert_eq!(one(1, 70).and(one(2, 30)), one(3, 70));
}
