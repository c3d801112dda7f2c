//! What every place does: [`run`] is one test of an implementation of [`Connect`], each check a function of its own below it.
//! The same checks run on a store on disk and in memory, so that a service that keeps to the seam runs on both.
#![allow(clippy::unwrap_used, reason = "a suite is test code: a failed check ends the test")]

use std::collections::BTreeSet;
use std::time::Duration;

use crate::client::{
    Connect, ConsumedRecord, ConsumedRef, Consumer, ConsumerOptions, OffsetAndMetadata, OffsetSpec, Offsets, Polled,
    Producer, ProducerOptions, Records, Reset, SendOptions, TopicFilter, TransactionResult,
};
use crate::error::Error;
use crate::ids::{TopicName, TopicPartition};
use crate::position::{PartitionPosition, Position};
use crate::record::Record;
use crate::topic::TopicConfig;

/// How long a check waits for what another side does, in steps.
const STEP: Duration = Duration::from_millis(20);
const STEPS_MAX: usize = 500;

type Check = fn(&dyn Connect, &str);

/// Runs every check, each with topics and groups whose names begin with the name of the check. Places that are kept may be used
/// again if `prefix` is another each time.
///
/// # Panics
/// If the place does not do what [`Connect`] and its sides ask for.
///
/// ```
/// topiclog::testing::client_suite::run(&topiclog::Store::in_memory()?, "first");
/// # Ok::<(), topiclog::Error>(())
/// ```
pub fn run(at: &dyn Connect, prefix: &str) {
    let checks: &[(&str, Check)] = &[
        ("topics", topics_are_created_and_described),
        ("send", what_is_sent_is_polled_in_order),
        ("producer", what_a_producer_took_is_stored_in_order),
        ("groups", groups_do_not_move_each_other),
        ("members", members_share_partitions_and_take_over),
        ("fenced", who_has_left_commits_no_more),
        ("pattern", a_pattern_takes_topics_that_come_later),
        ("seek", a_reader_goes_where_it_is_sent),
        ("pause", paused_partitions_wait),
        ("reset", a_reset_is_never_silent),
        ("notes", notes_are_kept_with_offsets),
        ("lost", a_position_of_another_topic_is_refused),
        ("listen", a_listener_hears_of_appends),
        ("close", a_closed_consumer_says_so),
        ("extras", what_a_place_does_not_have_is_refused),
    ];
    for (name, check) in checks {
        check(at, &format!("{prefix}-{name}"));
    }
}

fn topic(at: &dyn Connect, name: &str, partitions: u32) -> TopicName {
    let name = TopicName::new(name).unwrap();
    at.create_topic(&name, &TopicConfig::default().partitions(partitions)).unwrap();
    name
}

fn send(at: &dyn Connect, topic: &TopicName, partition: u32, values: &[&str]) -> Position {
    let producer = at.produce(ProducerOptions::new()).unwrap();
    let records = values.iter().map(|value| Record::of_value(value.to_string())).collect();
    let to = TopicPartition::new(topic.clone(), partition);
    let placed = producer.send(&to, records, &SendOptions::new()).unwrap();
    producer.flush(Duration::from_secs(10)).unwrap();
    placed.position()
}

fn values(records: &Records) -> Vec<String> {
    let text = |one: ConsumedRef<'_>| String::from_utf8_lossy(one.record.value().unwrap_or_default()).into_owned();
    records.iter().map(text).collect()
}

/// Polls until so many records were seen, and once more: there must be no other.
fn poll(consumer: &mut Consumer, count: usize) -> Vec<String> {
    let mut found = Vec::new();
    for _ in 0..STEPS_MAX {
        let wait = if found.len() < count { STEP } else { Duration::ZERO };
        let records = consumer.poll(wait).unwrap();
        if records.is_empty() && found.len() >= count {
            break;
        }
        found.extend(values(&records));
    }
    found
}

fn reader<'a>(at: &'a dyn Connect, topic: &TopicName) -> crate::client::ConsumerBuilder<'a> {
    Consumer::builder(at).topic(topic.as_str()).reset(Reset::Earliest)
}

fn topics_are_created_and_described(at: &dyn Connect, name: &str) {
    let unknown = TopicName::new(name).unwrap();
    assert!(matches!(at.describe_topic(&unknown), Err(Error::UnknownTopic { .. })));
    let topic = topic(at, name, 3);
    assert_eq!(at.describe_topic(&topic).unwrap().partitions, 3);
    assert!(at.topics().unwrap().contains(&topic));
    let again = at.create_topic(&topic, &TopicConfig::default());
    assert!(matches!(again, Err(Error::TopicExists { .. })), "{again:?}");
    let opened = Consumer::builder(at).group(name).topic(&format!("{name}-none")).open();
    assert!(matches!(opened, Err(Error::UnknownTopic { .. })), "{opened:?}");
}

fn what_is_sent_is_polled_in_order(at: &dyn Connect, name: &str) {
    let topic = topic(at, name, 2);
    let first = send(at, &topic, 1, &["a", "b"]);
    let second = send(at, &topic, 1, &["c"]);
    assert!(second.covers(&first) && !first.covers(&second));
    let to = TopicPartition::new(topic.clone(), 0);
    let record = Record::keyed("k", "d").header("h", "1").timestamp_ms(1234);
    at.produce(ProducerOptions::new()).unwrap().send(&to, vec![record], &SendOptions::new()).unwrap();
    let mut consumer = reader(at, &topic).open().unwrap();
    let mut found = Vec::new();
    for _ in 0..STEPS_MAX {
        found.extend(consumer.poll(STEP).unwrap());
        if found.len() >= 4 {
            break;
        }
    }
    let of = |number: u32| -> Vec<&ConsumedRecord> {
        found.iter().filter(|one| one.partition.partition.get() == number).collect()
    };
    assert_eq!(of(1).iter().map(|one| one.record.offset().get()).collect::<Vec<_>>(), [0, 1, 2]);
    let whole = &of(0)[0].record;
    assert_eq!((whole.key(), whole.value(), whole.timestamp_ms()), (Some(&b"k"[..]), Some(&b"d"[..]), 1234));
    assert_eq!(whole.headers().into_iter().count(), 1);
    assert!(consumer.positions().covers(&second));
}

fn what_a_producer_took_is_stored_in_order(at: &dyn Connect, name: &str) {
    let topic = topic(at, name, 2);
    let producer = Producer::builder(at).batch_bytes(300).open().unwrap();
    let send = |number: u32| {
        let record = Record::keyed(format!("{}", number % 5), format!("{number}"));
        producer.send(topic.as_str(), record).unwrap()
    };
    let sent: Vec<_> = (0..30).map(send).collect();
    producer.flush(Duration::from_secs(60)).unwrap();
    let mut last = std::collections::BTreeMap::new();
    for delivery in sent {
        let placed = delivery.wait().unwrap();
        let before = last.insert(placed.partition, placed.offset);
        assert!(before.is_none_or(|before| before < placed.offset), "{before:?} and then {:?}", placed.offset);
    }
    assert!(last.values().map(|offset| offset.get() + 1).sum::<i64>() >= 30);
    let refused = producer.send(&format!("{name}-not-there"), Record::of_value("x")).map(drop);
    assert!(matches!(refused, Err(Error::UnknownTopic { .. })), "{refused:?}");
    producer.close(Duration::from_secs(60)).unwrap();
    let closed = producer.send(topic.as_str(), Record::of_value("x")).map(drop);
    assert!(matches!(closed, Err(Error::Closed { .. })), "{closed:?}");
}

fn groups_do_not_move_each_other(at: &dyn Connect, name: &str) {
    let topic = topic(at, name, 1);
    send(at, &topic, 0, &["a", "b", "c"]);
    let open = |group: &str| reader(at, &topic).group(&format!("{name}-{group}")).open().unwrap();
    let mut first = open("first");
    assert_eq!(poll(&mut first, 3), ["a", "b", "c"]);
    first.commit().unwrap();
    first.close().unwrap();
    assert_eq!(poll(&mut open("second"), 3), ["a", "b", "c"]);
    assert_eq!(poll(&mut open("second"), 3), ["a", "b", "c"], "nothing was committed");
    send(at, &topic, 0, &["d"]);
    assert_eq!(poll(&mut open("first"), 1), ["d"]);
}

fn members_share_partitions_and_take_over(at: &dyn Connect, name: &str) {
    let topic = topic(at, name, 4);
    let open = || reader(at, &topic).group(name).open().unwrap();
    let (mut first, mut second) = (open(), open());
    let is_shared = (0..STEPS_MAX).any(|_| {
        first.poll(STEP).unwrap();
        second.poll(STEP).unwrap();
        first.assignment().len() == 2 && second.assignment().len() == 2
    });
    assert!(is_shared, "{first:?} {second:?}");
    let all: BTreeSet<_> = first.assignment().into_iter().chain(second.assignment()).collect();
    assert_eq!(all.len(), 4, "no partition has two owners");
    (0..4).for_each(|partition| drop(send(at, &topic, partition, &["x"])));
    assert_eq!((poll(&mut first, 2).len(), poll(&mut second, 2).len()), (2, 2));
    first.commit().unwrap();
    // What the second has not committed comes again, to the first.
    second.close().unwrap();
    assert_eq!(poll(&mut first, 2).len(), 2);
    assert_eq!(first.assignment().len(), 4);
}

fn who_has_left_commits_no_more(at: &dyn Connect, name: &str) {
    let topic = topic(at, name, 1);
    send(at, &topic, 0, &["a"]);
    let options = ConsumerOptions { group: Some(name.to_owned()), ..ConsumerOptions::default() };
    let mut member = at.consume(options.clone()).unwrap();
    let offsets: Offsets = [(TopicPartition::new(topic.clone(), 0), OffsetAndMetadata::new(1))].into();
    member.subscribe(&TopicFilter::Names(vec![topic.clone()])).unwrap();
    assert!(matches!(member.commit(&offsets), Err(Error::Fenced { .. })), "it has not joined yet");
    let joined = (0..STEPS_MAX).any(|_| matches!(member.poll(STEP).unwrap(), Polled::Assigned(_)));
    assert!(joined && member.group_metadata().is_some());
    member.commit(&offsets).unwrap();
    // Another who only reads is not let in while there are members.
    let mut other = at.consume(options).unwrap();
    let start = other.offsets(&[TopicPartition::new(topic, 0)], OffsetSpec::Earliest).unwrap();
    other.assign(&start).unwrap();
    assert!(matches!(other.commit(&offsets), Err(Error::Fenced { .. })));
    member.close(Duration::from_secs(5)).unwrap();
    other.commit(&offsets).unwrap();
    let mut nobody = at.consume(ConsumerOptions::default()).unwrap();
    assert!(matches!(nobody.commit(&offsets), Err(Error::Config { .. })));
}

fn a_pattern_takes_topics_that_come_later(at: &dyn Connect, name: &str) {
    topic(at, &format!("{name}-1"), 1);
    let builder = Consumer::builder(at).group(name).pattern(&format!("{name}-[0-9]+"));
    let mut member = builder.reset(Reset::Earliest).open().unwrap();
    member.poll(STEP).unwrap();
    let later = topic(at, &format!("{name}-2"), 1);
    topic(at, &format!("{name}-x"), 1);
    send(at, &later, 0, &["a"]);
    assert_eq!(poll(&mut member, 1), ["a"]);
    assert_eq!(member.assignment().len(), 2);
}

fn a_reader_goes_where_it_is_sent(at: &dyn Connect, name: &str) {
    let topic = topic(at, name, 1);
    let to = TopicPartition::new(topic.clone(), 0);
    let records = (0..5).map(|n| Record::of_value(n.to_string()).timestamp_ms(1000 + n)).collect();
    at.produce(ProducerOptions::new()).unwrap().send(&to, records, &SendOptions::new()).unwrap();
    let mut consumer = reader(at, &topic).open().unwrap();
    assert_eq!(poll(&mut consumer, 5).len(), 5);
    consumer.seek(&to, 3).unwrap();
    assert_eq!(poll(&mut consumer, 2), ["3", "4"]);
    consumer.seek_to_time(1002).unwrap();
    assert_eq!(poll(&mut consumer, 3), ["2", "3", "4"]);
    consumer.seek_to_beginning().unwrap();
    assert_eq!(consumer.position(&to).unwrap().get(), 0);
    consumer.seek_to_end().unwrap();
    assert_eq!(poll(&mut consumer, 0), [""; 0]);
    assert!(matches!(consumer.seek(&to, 99), Err(Error::OffsetOutOfRange { .. })));
    let other = TopicPartition::new(topic, 7);
    assert!(matches!(consumer.seek(&other, 0), Err(Error::Invalid { .. } | Error::UnknownTopic { .. })));
    assert_eq!(consumer.position(&to).unwrap().get(), 5, "it stays where it is");
}

fn paused_partitions_wait(at: &dyn Connect, name: &str) {
    let topic = topic(at, name, 2);
    let mut consumer = reader(at, &topic).open().unwrap();
    consumer.pause(&TopicPartition::new(topic.clone(), 0)).unwrap();
    send(at, &topic, 0, &["a"]);
    send(at, &topic, 1, &["b"]);
    assert_eq!(poll(&mut consumer, 1), ["b"]);
    consumer.resume(&TopicPartition::new(topic, 0)).unwrap();
    assert_eq!(poll(&mut consumer, 1), ["a"]);
}

fn a_reset_is_never_silent(at: &dyn Connect, name: &str) {
    let topic = topic(at, name, 1);
    send(at, &topic, 0, &["a", "b"]);
    let strict = reader(at, &topic).reset(Reset::Error).open();
    assert!(matches!(strict, Err(Error::Invalid { .. })), "{strict:?}");
    for (reset, expected) in [(Reset::Earliest, 0), (Reset::Latest, 2)] {
        let mut member = reader(at, &topic).group(name).reset(reset).open().unwrap();
        poll(&mut member, 2 - expected);
        let resets = member.take_resets();
        assert_eq!(resets.iter().map(|reset| reset.now.get()).collect::<Vec<_>>(), [expected as i64]);
    }
}

fn notes_are_kept_with_offsets(at: &dyn Connect, name: &str) {
    let topic = topic(at, name, 1);
    send(at, &topic, 0, &["a"]);
    let to = TopicPartition::new(topic.clone(), 0);
    let mut consumer = Consumer::builder(at).group(name).partition(to.clone()).reset(Reset::Latest).open().unwrap();
    assert_eq!(consumer.committed(&to).unwrap(), None);
    let offset = OffsetAndMetadata::new(1).leader_epoch(0).metadata("batch 9");
    consumer.commit_offsets(&[(to.clone(), offset.clone())].into()).unwrap();
    assert_eq!(consumer.committed(&to).unwrap(), Some(offset));
}

fn a_position_of_another_topic_is_refused(at: &dyn Connect, name: &str) {
    let topic = topic(at, name, 1);
    let placed = send(at, &topic, 0, &["a"]);
    let mut consumer = Consumer::builder(at).start_at(&placed).open().unwrap();
    assert_eq!(poll(&mut consumer, 0), [""; 0]);
    let to = TopicPartition::new(topic, 0);
    let known = placed.get(&to).unwrap();
    if known.known_topic_id().is_some() {
        let other = PartitionPosition::new(0).topic_id(crate::Uuid::from_bytes([7; 16]));
        let refused = consumer.seek_to(&Position::of(to.clone(), other));
        assert!(matches!(refused, Err(Error::PositionLost { .. })), "{refused:?}");
    }
    consumer.seek_to(&Position::of(to, PartitionPosition::new(0))).unwrap();
    assert_eq!(poll(&mut consumer, 1), ["a"]);
}

fn a_listener_hears_of_appends(at: &dyn Connect, name: &str) {
    let topic = topic(at, name, 1);
    let mut consumer = reader(at, &topic).open().unwrap();
    let mut listener = consumer.listen();
    send(at, &topic, 0, &["a"]);
    // Would otherwise take an hour.
    listener.wait(Duration::from_secs(3600));
    assert_eq!(poll(&mut consumer, 1), ["a"]);
}

fn a_closed_consumer_says_so(at: &dyn Connect, name: &str) {
    let topic = topic(at, name, 1);
    let mut consumer = at.consume(ConsumerOptions::default()).unwrap();
    let start = consumer.offsets(&[TopicPartition::new(topic, 0)], OffsetSpec::Latest).unwrap();
    consumer.assign(&start).unwrap();
    assert!(matches!(consumer.poll(Duration::ZERO), Ok(Polled::Records(records)) if records.is_empty()));
    for _ in 0..2 {
        consumer.close(Duration::from_secs(5)).unwrap();
    }
    assert!(matches!(consumer.poll(Duration::ZERO), Err(Error::Closed { .. })));
}

fn what_a_place_does_not_have_is_refused(at: &dyn Connect, name: &str) {
    let config = TopicConfig::default().cleanup_policy(crate::CleanupPolicy::Compact);
    let topic = TopicName::new(name).unwrap();
    at.create_topic(&topic, &config).unwrap();
    let to = TopicPartition::new(topic, 0);
    let producer = at.produce(ProducerOptions::new()).unwrap();
    producer.send(&to, vec![Record::keyed("k", "1"), Record::keyed("k", "2")], &SendOptions::new()).unwrap();
    let has = at.capabilities();
    let refused = |result: crate::Result<()>| matches!(result, Err(Error::Unsupported { .. }));
    match at.latest(&to, b"k") {
        Ok(found) if has.latest => assert_eq!(found.unwrap().value(), Some(&b"2"[..])),
        other => assert!(!has.latest && refused(other.map(drop))),
    }
    let mut consumer = at.consume(ConsumerOptions::default()).unwrap();
    match consumer.lag(&to, 1.into()) {
        Ok(lag) if has.lag => assert_eq!(lag.records, 1),
        other => assert!(!has.lag && refused(other.map(drop))),
    }
    match consumer.offsets(std::slice::from_ref(&to), OffsetSpec::TombstoneFloor) {
        Ok(floor) if has.tombstone_floor => assert_eq!(floor.get(&to).unwrap().next_offset().get(), 0),
        other => assert!(!has.tombstone_floor && refused(other.map(drop))),
    }
    if !has.transactions {
        assert!(refused(producer.begin_transaction()));
        assert!(refused(producer.end_transaction(TransactionResult::Abort)));
        let named = at.produce(ProducerOptions::new().transactional_id("t"));
        assert!(refused(named.map(drop)));
    }
}
