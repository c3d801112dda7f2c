//! The consumer that was given its partitions, on a store in memory and on one on the disk.

use std::sync::Arc;
use std::time::{Duration, Instant};

use topiclog::client::{ConsumerBuilder, Offsets, Records, Reset};
use topiclog::clock::ManualClock;
use topiclog::group::Groups;
use topiclog::io::MemoryVfs;
use topiclog::{Consumer, Durability, Error, Record, Store, TopicConfig, TopicName, TopicPartition, Upkeep};

fn store() -> (Store, Arc<ManualClock>) {
    let clock = Arc::new(ManualClock::new(0));
    let builder = Store::builder().vfs(Arc::new(MemoryVfs::new())).clock(Arc::clone(&clock) as Arc<_>);
    (builder.upkeep(Upkeep::Manual).open("/s").unwrap(), clock)
}

/// A topic of these partitions, with so many records in each, whose values are their offsets and times their offsets + 1000.
fn fill(store: &Store, topic: &str, partitions: u32, records: i64) -> Vec<TopicPartition> {
    let topic = store.ensure_topic(topic, TopicConfig::default().partitions(partitions)).unwrap();
    for partition in topic.partitions() {
        for offset in 0..records {
            partition.append(Record::of_value(offset.to_string()).timestamp_ms(1000 + offset)).unwrap();
        }
    }
    topic.partitions().map(|partition| partition.id().clone()).collect()
}

fn places(records: &Records) -> Vec<(u32, i64)> {
    records.iter().map(|one| (one.partition.partition.get(), one.record.offset().get())).collect()
}

fn all(consumer: &mut Consumer) -> Vec<(u32, i64)> {
    let mut found = Vec::new();
    loop {
        let records = consumer.poll(Duration::ZERO).unwrap();
        if records.is_empty() {
            return found;
        }
        found.extend(places(&records));
    }
}

/// Reads every partition of a topic in a group's name, without being a member of it.
fn of_group<'a>(store: &'a Store, group: &str, topic: &str) -> ConsumerBuilder<'a> {
    let name = TopicName::new(topic).unwrap();
    let count = store.topic(topic).map_or(1, |topic| topic.partition_count());
    let builder = Consumer::builder(store).group(group).reset(Reset::Earliest);
    (0..count).fold(builder, |builder, number| builder.partition(TopicPartition::new(name.clone(), number)))
}

#[test]
fn every_partition_is_read_in_order_and_none_waits_for_another_to_run_dry() {
    let (store, _) = store();
    fill(&store, "t", 3, 20);
    let mut consumer = of_group(&store, "g", "t").records_max(7).open().unwrap();
    let first: Vec<_> = (0..3).flat_map(|_| places(&consumer.poll(Duration::ZERO).unwrap())).collect();
    let mut of_each = [0; 3];
    first.iter().for_each(|(partition, _)| of_each[*partition as usize] += 1);
    assert_eq!(of_each, [7, 7, 7]);
    let rest = all(&mut consumer);
    for partition in 0..3 {
        let seen = first.iter().chain(&rest).filter(|place| place.0 == partition).map(|place| place.1);
        assert_eq!(seen.collect::<Vec<_>>(), (0..20).collect::<Vec<_>>());
    }
}

#[test]
fn a_poll_keeps_to_its_bytes_and_takes_at_least_one_record() {
    let (store, _) = store();
    fill(&store, "t", 1, 5);
    for (bytes, expected) in [(1, 1), (2, 2), (4, 4), (100, 5)] {
        let mut consumer = of_group(&store, "g", "t").bytes_max(bytes).open().unwrap();
        assert_eq!(consumer.poll(Duration::ZERO).unwrap().len(), expected, "{bytes} bytes");
    }
    assert!(matches!(of_group(&store, "g", "t").bytes_max(0).open(), Err(Error::Invalid { .. })));
}

#[test]
fn groups_do_not_move_each_other() {
    let (store, _) = store();
    let partition = &fill(&store, "t", 1, 10)[0];
    let mut first = of_group(&store, "first", "t").records_max(4).open().unwrap();
    let mut second = of_group(&store, "second", "t").open().unwrap();
    assert_eq!(first.poll(Duration::ZERO).unwrap().len(), 4);
    first.commit().unwrap();
    assert_eq!(all(&mut second).len(), 10);
    second.commit().unwrap();
    assert_eq!((first.lag(partition).unwrap().records, second.lag(partition).unwrap().records), (6, 0));
    let again = places(&of_group(&store, "first", "t").open().unwrap().poll(Duration::ZERO).unwrap());
    assert_eq!(again, (4..10).map(|offset| (0, offset)).collect::<Vec<_>>());
    assert!(matches!(Consumer::builder(&store).topic("t").open(), Err(Error::Invalid { .. })), "nobody's position");
    let mut nobody = Consumer::builder(&store).topic("t").reset(Reset::Latest).open().unwrap();
    assert!(nobody.poll(Duration::ZERO).unwrap().is_empty());
    assert!(matches!(nobody.commit_offsets(&Offsets::new()), Err(Error::Config { .. })));
}

#[test]
fn what_was_polled_and_not_committed_comes_again() {
    let (store, _) = store();
    fill(&store, "t", 2, 3);
    assert_eq!(all(&mut of_group(&store, "g", "t").open().unwrap()).len(), 6);
    let mut consumer = of_group(&store, "g", "t").open().unwrap();
    assert_eq!(all(&mut consumer).len(), 6);
    consumer.commit().unwrap();
    consumer.commit().unwrap();
    let groups = Groups::open(&store).unwrap();
    let number = groups.partition_of("g").unwrap();
    let offsets = store.topic("__consumer_offsets").unwrap().partition(number).unwrap();
    assert_eq!(offsets.end().get(), 2, "what has not moved is not committed again");
    assert!(all(&mut of_group(&store, "g", "t").open().unwrap()).is_empty());
}

#[test]
fn a_consumer_goes_where_it_is_sent_and_nowhere_else() {
    let (store, _) = store();
    let partitions = fill(&store, "t", 2, 10);
    let mut consumer = of_group(&store, "g", "t").open().unwrap();
    let check = |consumer: &mut Consumer, expected: [i64; 2]| {
        let found = all(consumer);
        for (number, from) in (0..).zip(expected) {
            let seen: Vec<i64> = found.iter().filter(|place| place.0 == number).map(|place| place.1).collect();
            assert_eq!(seen, (from..10).collect::<Vec<_>>(), "partition {number}");
        }
    };
    check(&mut consumer, [0, 0]);
    consumer.seek(&partitions[1], 8).unwrap();
    check(&mut consumer, [10, 8]);
    consumer.seek_to_beginning().unwrap();
    check(&mut consumer, [0, 0]);
    consumer.seek_to_time(1004).unwrap();
    check(&mut consumer, [4, 4]);
    consumer.seek_to_time(9999).unwrap();
    check(&mut consumer, [10, 10]);
    consumer.seek_to_beginning().unwrap();
    consumer.seek_to_end().unwrap();
    check(&mut consumer, [10, 10]);
    for outside in [-1, 11] {
        assert!(matches!(consumer.seek(&partitions[0], outside), Err(Error::OffsetOutOfRange { .. })));
    }
    assert_eq!(consumer.position(&partitions[0]).unwrap().get(), 10, "it stays where it is");
    consumer.seek_to_beginning().unwrap();
    consumer.pause(&partitions[0]).unwrap();
    check(&mut consumer, [10, 0]);
    consumer.resume(&partitions[0]).unwrap();
    check(&mut consumer, [0, 10]);
    let other = TopicPartition::new(partitions[0].topic.clone(), 7);
    assert!(matches!(consumer.seek(&other, 0), Err(Error::Invalid { .. })));
    assert!(matches!(of_group(&store, "g", "none").open(), Err(Error::UnknownTopic { .. })));
}

#[test]
fn a_position_below_the_log_start_is_an_error_or_what_the_policy_says() {
    for (reset, expected) in [(Reset::Earliest, Some(5)), (Reset::Latest, None)] {
        let (store, _) = store();
        fill(&store, "t", 1, 10);
        let partition = store.topic("t").unwrap().partition(0_u32).unwrap();
        let mut consumer = of_group(&store, "g", "t").records_max(2).open().unwrap();
        consumer.poll(Duration::ZERO).unwrap();
        consumer.commit().unwrap();
        let mut running = of_group(&store, "g", "t").reset(reset).open().unwrap();
        let mut strict = of_group(&store, "g", "t").reset(Reset::Error).open().unwrap();
        partition.delete_records(5).unwrap();
        let first = running.poll(Duration::ZERO).unwrap().first().map(|one| one.record.offset().get());
        assert_eq!(first, expected, "{reset:?} while it runs");
        for _ in 0..2 {
            assert!(matches!(strict.poll(Duration::ZERO), Err(Error::OffsetOutOfRange { .. })), "and again");
        }
        let opened = of_group(&store, "g", "t").reset(reset).open().unwrap().poll(Duration::ZERO).unwrap();
        assert_eq!(opened.first().map(|one| one.record.offset().get()), expected, "{reset:?} at open");
        let refused = of_group(&store, "g", "t").reset(Reset::Error).open();
        assert!(matches!(refused, Err(Error::OffsetOutOfRange { .. })), "{refused:?}");
    }
}

/// The old offset would be in range, and would pass over the first records of another topic.
#[test]
fn what_was_committed_for_a_topic_says_nothing_about_the_next_of_its_name() {
    let (store, _) = store();
    fill(&store, "t", 1, 5);
    let mut consumer = of_group(&store, "g", "t").open().unwrap();
    all(&mut consumer);
    consumer.commit().unwrap();
    store.delete_topic("t").unwrap();
    assert!(matches!(consumer.poll(Duration::ZERO), Err(Error::Closed { .. })));
    fill(&store, "t", 1, 9);
    assert!(matches!(consumer.poll(Duration::ZERO), Err(Error::PositionLost { .. })));
    assert_eq!(all(&mut of_group(&store, "g", "t").open().unwrap()).len(), 9);
    assert!(matches!(of_group(&store, "g", "t").reset(Reset::Error).open(), Err(Error::Invalid { .. })));
}

#[test]
fn a_poll_waits_for_an_append_and_ends_at_close_and_deletion() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::builder().upkeep(Upkeep::Manual).open(directory.path().join("s")).unwrap();
    for durability in [Durability::Os, Durability::Sync] {
        let name = format!("{durability:?}");
        let topic = store.create_topic(&name, TopicConfig::default().durability(durability)).unwrap();
        let mut consumer = of_group(&store, "g", &name).open().unwrap();
        let hour = Duration::from_secs(3600);
        std::thread::scope(|scope| {
            let polled = scope.spawn(move || consumer.poll(hour).map(|records| (records.len(), consumer)));
            topic.append(Record::of_value("news")).unwrap();
            let (count, mut consumer) = polled.join().unwrap().unwrap();
            assert_eq!(count, 1);
            let began = Instant::now();
            assert!(consumer.poll(Duration::from_millis(30)).unwrap().is_empty());
            assert!(began.elapsed() >= Duration::from_millis(30));
            let polled = scope.spawn(move || consumer.poll(hour));
            match durability {
                Durability::Os => store.delete_topic(&name).unwrap(),
                _ => store.close().unwrap(),
            }
            assert!(matches!(polled.join().unwrap(), Err(Error::Closed { .. })));
        });
    }
}

#[test]
fn with_a_clock_that_is_moved_by_hand_a_poll_does_not_wait() {
    let (store, _clock) = store();
    fill(&store, "t", 1, 0);
    assert!(of_group(&store, "g", "t").open().unwrap().poll(Duration::from_secs(3600)).unwrap().is_empty());
}
