//! Consumers whose topics go, come again or are damaged, and whose writes fail: what is there is read on, and nothing is skipped.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use topiclog::client::{Connect, ConsumerBuilder, OffsetAndMetadata, Records, Reset};
use topiclog::clock::ManualClock;
use topiclog::group::Groups;
use topiclog::io::{FaultVfs, MemoryVfs};
use topiclog::testing::{Failure, TestStore};
use topiclog::{Consumer, Error, Record, Store, TopicConfig, TopicName, TopicPartition, Upkeep};

use crate::support::broker::{self, BrokerLog, kv};

const INTERVAL_MS: u32 = 900;

struct Place {
    disk: FaultVfs,
    store: Store,
    clock: Arc<ManualClock>,
}

impl Place {
    fn new() -> Self {
        let (disk, clock) = (FaultVfs::new(), Arc::new(ManualClock::new(1_700_000_000_000)));
        let builder = Store::builder().vfs(Arc::new(disk.clone())).clock(Arc::clone(&clock) as _);
        let store = builder.upkeep(Upkeep::Manual).open("/s").unwrap();
        Self { disk, store, clock }
    }

    fn topic(&self, name: &str, partitions: u32) {
        self.store.create_topic(name, TopicConfig::default().partitions(partitions)).unwrap();
    }

    /// A topic with so many records in each partition.
    fn filled(&self, name: &str, partitions: u32, records: usize) {
        self.topic(name, partitions);
        self.fill(name, records);
    }

    fn fill(&self, name: &str, records: usize) {
        for partition in self.store.topic(name).unwrap().partitions() {
            (0..records).for_each(|n| drop(partition.append(Record::of_value(format!("{n}"))).unwrap()));
        }
    }

    fn remade(&self, name: &str, partitions: u32, records: usize) {
        self.store.delete_topic(name).unwrap();
        self.filled(name, partitions, records);
    }

    fn builder(&self) -> ConsumerBuilder<'_> {
        builder(&self.store)
    }
}

fn builder(at: &dyn Connect) -> ConsumerBuilder<'_> {
    let builder = Consumer::builder(at).group("g").reset(Reset::Earliest);
    builder.max_poll_interval_ms(u64::from(INTERVAL_MS))
}

fn poll(consumer: &mut Consumer) -> Records {
    consumer.poll(Duration::ZERO).unwrap()
}

/// Polls a few times, whatever comes of it, and says how many records each topic had.
fn poll_on(consumer: &mut Consumer) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for records in (0..8).filter_map(|_| consumer.poll(Duration::ZERO).ok()) {
        records.into_iter().for_each(|of| *counts.entry(of.partition.topic.to_string()).or_default() += 1);
    }
    counts
}

fn counts<const N: usize>(expected: [(&str, usize); N]) -> BTreeMap<String, usize> {
    expected.into_iter().map(|(topic, count)| (topic.to_owned(), count)).collect()
}

fn id(topic: &str, partition: u32) -> TopicPartition {
    TopicPartition::new(TopicName::new(topic).unwrap(), partition)
}

/// The leader's answer was taken and its assignment could not be kept: it once waited for another answer for ever.
#[test]
fn a_member_whose_assignment_could_not_be_written_joins_again() {
    for failure in [Failure::Append, Failure::Sync] {
        let at = TestStore::new().unwrap();
        at.store().create_topic("t", TopicConfig::default()).unwrap().append(Record::of_value("x")).unwrap();
        // The topic of the offsets is there by now.
        Groups::open(&at.store()).unwrap().commit("other", &[(id("t", 0), OffsetAndMetadata::new(0))]).unwrap();
        let mut member = builder(&at).topic("t").open().unwrap();
        at.fail_next(failure);
        assert!(member.poll(Duration::ZERO).is_err());
        if matches!(failure, Failure::Append) {
            assert_eq!(poll_on(&mut member), counts([("t", 1)]));
        } else {
            // The log is poisoned, and every poll says so.
            assert!((0..3).all(|_| member.poll(Duration::ZERO).is_err()));
        }
    }
}

/// The position in the old topic was once committed for the new one, and its first records were skipped.
#[test]
fn no_offset_of_a_topic_is_committed_for_another_of_its_name() {
    for commits_with_poll in [true, false] {
        let place = Place::new();
        place.filled("t", 1, 10);
        let builder = place.builder().topic("t");
        let mut member = if commits_with_poll { builder.commit_with_poll() } else { builder }.open().unwrap();
        assert_eq!(poll(&mut member).len(), 10);
        place.remade("t", 1, 20);
        if !commits_with_poll {
            member.commit().unwrap();
            let one = [(id("t", 0), OffsetAndMetadata::new(10))];
            let refused = member.commit_offsets(&one.into());
            assert!(matches!(refused, Err(Error::PositionLost { .. })), "{refused:?}");
        }
        assert_eq!(poll_on(&mut member), counts([("t", 20)]), "all of the new one");
        member.commit().unwrap();
        let committed = member.committed(&id("t", 0)).unwrap().unwrap();
        assert_eq!(committed.offset().get(), 20);
    }
}

/// Once the commit of the next poll failed for ever, and the poll with it.
#[test]
fn a_deleted_topic_of_a_pattern_keeps_nobody_from_the_others() {
    let place = Place::new();
    place.filled("orders-eu", 1, 3);
    place.filled("orders-us", 1, 3);
    let mut member = place.builder().pattern("orders-.*").commit_with_poll().open().unwrap();
    assert_eq!(poll_on(&mut member), counts([("orders-eu", 3), ("orders-us", 3)]));
    place.fill("orders-eu", 1);
    place.fill("orders-us", 1);
    assert_eq!(poll(&mut member).len(), 2);
    place.store.delete_topic("orders-eu").unwrap();
    place.fill("orders-us", 2);
    assert_eq!(poll_on(&mut member), counts([("orders-us", 2)]));
    assert_eq!(member.committed(&id("orders-us", 0)).unwrap().unwrap().offset().get(), 6);
    assert_eq!(member.assignment(), [id("orders-us", 0)]);
}

#[test]
fn a_topic_that_comes_again_with_fewer_or_more_partitions_is_read_on() {
    for partitions in [2, 4, 6] {
        let place = Place::new();
        place.filled("t", 4, 3);
        let mut member = place.builder().topic("t").open().unwrap();
        assert_eq!(poll_on(&mut member), counts([("t", 12)]));
        place.remade("t", partitions, 5);
        assert_eq!(poll_on(&mut member), counts([("t", 5 * partitions as usize)]), "{partitions}");
        assert_eq!(member.assignment().len(), partitions as usize);
    }
}

/// The others were once assigned to a member that never heard of them.
#[test]
fn what_is_assigned_beside_a_topic_that_is_gone_is_read() {
    // Cooperative members come to an assignment in two rounds.
    for (assignor, rounds) in [("range", 1), ("cooperative-sticky", 2)] {
        let place = Place::new();
        place.topic("a", 2);
        place.topic("b", 2);
        let open = || place.builder().pattern(".").assignors([assignor]).open().unwrap();
        let (mut first, mut second) = (open(), open());
        for _ in 0..rounds {
            poll(&mut first);
            poll(&mut second);
        }
        // The first leads, and has assigned something of both topics to the second, which does not know yet.
        poll(&mut first);
        assert_eq!((first.assignment().len(), second.assignment().len()), (2, 0), "{assignor}");
        place.store.delete_topic("b").unwrap();
        for _ in 0..6 {
            poll(&mut second);
            poll(&mut first);
        }
        assert_eq!((first.assignment().len(), second.assignment().len()), (1, 1), "{assignor}");
        place.fill("a", 3);
        assert_eq!((poll(&mut first).len(), poll(&mut second).len()), (3, 3), "{assignor}");
    }
}

/// A partition without a position once kept its consumer from polling at all: it was taken for dead, and heard of nothing.
#[test]
fn a_partition_that_gets_no_position_keeps_nobody_from_the_others() {
    let place = Place::new();
    place.filled("a", 1, 3);
    place.filled("b", 1, 3);
    Groups::open(&place.store).unwrap().commit("g", &[(id("a", 0), OffsetAndMetadata::new(0))]).unwrap();
    let mut member = place.builder().pattern(".").reset(Reset::Error).open().unwrap();
    let refused = member.poll(Duration::ZERO);
    assert!(matches!(refused, Err(Error::Invalid { .. })), "{refused:?}");
    assert_eq!(poll(&mut member).len(), 3, "those of a");
    assert!(member.poll(Duration::ZERO).is_err(), "it is not forgotten");
    for _ in 0..10 {
        place.clock.advance_ms(INTERVAL_MS / 2);
        place.fill("a", 1);
        member.poll(Duration::ZERO).ok();
    }
    member.commit().unwrap();
    place.store.delete_topic("b").unwrap();
    place.fill("a", 2);
    assert_eq!(poll_on(&mut member), counts([("a", 2)]));
    assert!(member.poll(Duration::ZERO).is_ok(), "there is nothing left to complain of");
}

#[test]
fn a_damaged_partition_keeps_nobody_from_the_others() {
    let place = Place::new();
    place.filled("t", 3, 1);
    let mut member = place.builder().topic("t").open().unwrap();
    assert_eq!(poll(&mut member).len(), 3);
    place.fill("t", 1);
    let path = "/s/t-1/00000000000000000000.log";
    let image = place.disk.image();
    let bytes = image.read(path).unwrap();
    let end = place.store.topic("t").unwrap().partition(1).unwrap().stats().bytes;
    place.disk.patch(path, end - 1, &[bytes[end as usize - 1] ^ 1]).unwrap();
    let (mut read, mut errors) = (0, 0);
    for _ in 0..6 {
        match member.poll(Duration::ZERO) {
            Ok(records) => read += records.len(),
            Err(Error::Corrupt { .. }) => {
                errors += 1;
                place.fill("t", 1);
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert!(errors >= 2 && read >= 2 + 2 * (errors - 1), "{read} records beside {errors} errors");
}

#[test]
fn a_busy_consumer_is_not_stalled_however_old_its_records_are() {
    let place = Place::new();
    place.filled("t", 1, 100);
    place.clock.advance_ms(600_000);
    let mut consumer = place.builder().topic("t").records_max(10).max_poll_interval_ms(10_000_000).open().unwrap();
    let stalled = |consumer: &mut Consumer| consumer.lag(&id("t", 0)).unwrap().stalled_for_ms;
    for _ in 0..5 {
        place.clock.advance_ms(60_000);
        assert_eq!(poll(&mut consumer).len(), 10);
        assert_eq!(stalled(&mut consumer), 0);
    }
    place.clock.advance_ms(7000);
    assert_eq!(stalled(&mut consumer), 7000, "it has not polled since");
}

#[test]
fn a_member_lives_for_the_whole_interval_after_each_poll() {
    let place = Place::new();
    place.filled("t", 1, 1);
    let mut member = place.builder().topic("t").open().unwrap();
    assert_eq!(poll(&mut member).len(), 1);
    // A poll that tells the group nothing: the last word was just now.
    place.clock.advance_ms(INTERVAL_MS / 3 - 1);
    poll(&mut member);
    place.clock.advance_ms(INTERVAL_MS - 1);
    Groups::open(&place.store).unwrap().tick().unwrap();
    member.commit().unwrap();
}

/// The member that waits once found out only when its own next word to the group was due.
#[test]
fn a_member_that_is_overdue_is_out_at_the_next_poll_of_another() {
    let place = Place::new();
    place.filled("t", 2, 1);
    let open = || place.builder().topic("t").open().unwrap();
    let (mut hangs, mut polls) = (open(), open());
    for _ in 0..4 {
        poll(&mut hangs);
        poll(&mut polls);
    }
    assert_eq!(polls.assignment().len(), 1);
    // It has just spoken when the other's time is over.
    let session_ms = INTERVAL_MS + INTERVAL_MS / 3;
    for ms in [INTERVAL_MS - 1, INTERVAL_MS / 3] {
        place.clock.advance_ms(ms);
        poll(&mut polls);
    }
    assert_eq!(polls.assignment().len(), 1);
    place.clock.advance_ms(session_ms - (INTERVAL_MS - 1) - INTERVAL_MS / 3);
    for _ in 0..4 {
        poll(&mut polls);
    }
    assert_eq!(polls.assignment().len(), 2);
}

/// Kafka's consumer commits what is behind a marker as well: a wait for the log end came to no end otherwise.
#[test]
fn a_consumer_passes_the_markers_at_the_end_of_a_log() {
    let log = BrokerLog::new(0).in_txn(0, 5, &[kv("a", "1"), kv("b", "2")]).commit(2, 5);
    let bench = broker::Bench::adopt(&log, TopicConfig::default());
    let mut consumer = Consumer::join(&bench.store, "g", ["t"]).unwrap();
    assert_eq!(consumer.poll(Duration::ZERO).unwrap().len(), 2);
    assert_eq!(consumer.position(&id("t", 0)).unwrap(), bench.partition().end());
    assert_eq!(consumer.lag_in_all().unwrap(), topiclog::client::Lag::default());
    consumer.commit().unwrap();
    assert_eq!(consumer.committed(&id("t", 0)).unwrap().unwrap().offset().get(), 3);
}

/// Its position behind a marker once had the epoch of the last record, which had never come so far: the group was taken for one that
/// a log cut short had lost, and began anew.
#[test]
fn a_group_resumes_behind_a_marker_of_a_later_epoch() {
    let log = BrokerLog::new(0).in_txn(0, 5, &[kv("a", "1"), kv("b", "2")]).led(2).abort(2, 5, 0);
    for log in [log.clone(), BrokerLog::new(0).in_txn(0, 5, &[kv("a", "1"), kv("b", "2")]).led(2).commit(2, 5)] {
        let vfs = Arc::new(MemoryVfs::new());
        log.write(&*vfs);
        broker::put(&*vfs, Path::new("/data/t-0/leader-epoch-checkpoint"), b"0\n2\n0 0\n2 2\n");
        let bench = broker::Bench::adopt_written(vfs, TopicConfig::default(), |builder| builder);
        let join = |reset| Consumer::builder(&bench.store).group("g").topic("t").reset(reset).open().unwrap();
        let mut consumer = join(Reset::Earliest);
        drop(poll(&mut consumer));
        consumer.commit().unwrap();
        let positions = consumer.positions();
        assert_eq!(positions.get(&id("t", 0)).unwrap().next_offset(), bench.partition().end());
        bench.store.wait_readable(&positions, Duration::ZERO).unwrap();
        drop(Consumer::builder(&bench.store).start_at(&positions).open().unwrap());
        consumer.close().unwrap();
        let mut again = join(Reset::Error);
        assert_eq!(poll(&mut again).len(), 0, "{log:?}");
        bench.store.topic("t").unwrap().append(Record::keyed("c", "3")).unwrap();
        assert_eq!(poll(&mut again).first().unwrap().record.value(), Some(&b"3"[..]));
    }
}

/// Nothing comes of it any more, and nobody said so.
#[test]
fn who_has_read_a_poisoned_log_to_its_end_is_told() {
    use topiclog::io::{Fault, FaultPlan, OpKind, SyncFailure, errno};

    let place = Place::new();
    place.filled("t", 1, 3);
    let mut consumer = Consumer::join(&place.store, "g", ["t"]).unwrap();
    assert_eq!(poll(&mut consumer).len(), 3);
    assert_eq!(poll(&mut consumer).len(), 0);
    place.fill("t", 1);
    let failure = Fault::Sync(errno::EIO, SyncFailure::LostAtDrop);
    place.disk.inject(FaultPlan::new(failure).on(OpKind::SyncData).in_class("log"));
    place.store.topic("t").unwrap().append(Record::of_value("lost")).unwrap_err();
    assert_eq!(poll(&mut consumer).len(), 1, "what there is comes first");
    for timeout in [Duration::ZERO, Duration::from_secs(3600)] {
        let told = consumer.poll(timeout);
        assert!(matches!(told, Err(Error::Poisoned { .. })), "{told:?}");
    }
}

/// What it had handed out before it lost the partition was once committed over what another had done since.
#[cfg(feature = "async")]
#[test]
fn a_stream_whose_callback_fails_does_not_move_a_group_back() {
    use std::task::{Context, Poll, Waker};

    use futures_core::Stream;
    use topiclog::client::Rebalance;

    let place = Place::new();
    place.filled("t", 2, 10);
    let refuse = |_: &mut Consumer, what: &Rebalance| match what {
        Rebalance::Revoked(_) => Err(Error::Closed { what: "the table of the caller".to_owned() }),
        _ => Ok(()),
    };
    let consumer = place.builder().topic("t").on_rebalance(refuse).open().unwrap();
    let mut stream = std::pin::pin!(consumer.into_stream());
    let mut handed_out = 0;
    let mut next = || match stream.as_mut().poll_next(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(Some(Ok(_))) => handed_out += 1,
        Poll::Ready(Some(Err(error))) => assert!(matches!(error, Error::Closed { .. }), "{error}"),
        _ => {}
    };
    (0..25).for_each(|_| next());
    let mut other = place.builder().topic("t").open().unwrap();
    let mut others = 0;
    for _ in 0..8 {
        others += poll(&mut other).len();
        next();
    }
    assert_eq!(other.assignment().len(), 1);
    let shared = other.assignment().remove(0);
    place.fill("t", 10);
    others += poll(&mut other).len();
    assert_eq!(others, 20);
    other.commit().unwrap();
    other.close().unwrap();
    // It has the partition again, and was handed nothing of it since.
    (0..8).for_each(|_| next());
    assert!(handed_out >= 20);
    stream.commit().unwrap();
    let committed = Groups::open(&place.store).unwrap().committed("g", &shared).unwrap().unwrap();
    assert_eq!(committed.offset, 20);
}

/// What it had handed out before it lost the partition was once committed over what another had done since.
#[cfg(feature = "async")]
#[test]
fn a_stream_does_not_move_a_group_back() {
    use std::task::{Context, Poll, Waker};

    use futures_core::Stream;

    let place = Place::new();
    place.filled("t", 1, 10);
    let mut stream = std::pin::pin!(place.builder().topic("t").open().unwrap().into_stream());
    let mut next = || stream.as_mut().poll_next(&mut Context::from_waker(Waker::noop()));
    (0..10).for_each(|_| assert!(matches!(next(), Poll::Ready(Some(Ok(_))))));
    Groups::open(&place.store).unwrap().remove_members("g").unwrap();
    place.fill("t", 10);
    let mut other = place.builder().topic("t").open().unwrap();
    assert_eq!(poll(&mut other).len(), 20);
    other.commit().unwrap();
    other.close().unwrap();
    (0..3).for_each(|_| assert!(next().is_pending()));
    stream.commit().unwrap();
    let committed = Groups::open(&place.store).unwrap().committed("g", &id("t", 0)).unwrap().unwrap();
    assert_eq!(committed.offset, 20);
}

#[test]
fn what_is_delivered_again_is_of_topics_that_are_there() {
    let at = TestStore::new().unwrap();
    for name in ["gone", "again", "t"] {
        let topic = at.store().create_topic(name, TopicConfig::default()).unwrap();
        (0..5).for_each(|_| drop(topic.append(Record::of_value("x")).unwrap()));
    }
    let mut member = builder(&at).topic("gone").topic("again").topic("t").open().unwrap();
    assert_eq!(poll(&mut member).len(), 15);
    member.commit().unwrap();
    member.close().unwrap();
    at.store().delete_topic("gone").unwrap();
    at.store().delete_topic("again").unwrap();
    at.store().create_topic("again", TopicConfig::default()).unwrap().append(Record::of_value("y")).unwrap();
    assert_eq!(at.redeliver("g", 2).unwrap(), 2);
}
