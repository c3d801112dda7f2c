//! Schedules of readers that wait, of groups that commit, and of producers; how they are run says
//! the [crate](crate).

use std::sync::{Arc, Mutex};
use std::time::Duration;

use shuttle::rand::{Rng as _, thread_rng};
use shuttle::thread;
use topiclog::client::{OffsetAndMetadata, Reset};
use topiclog::clock::{Clock, ManualClock, Timestamp};
use topiclog::group::{CommitOptions, Groups};
use topiclog::io::FaultVfs;
use topiclog::{
    CleanupPolicy, Consumer, Durability, Error, PartitionPosition, Position, Producer, ReadLevel, Record, Store,
    TopicConfig, TopicPartition, Upkeep,
};

use crate::{explore, log_of, machine, open, open_with, text};

const HOUR: Duration = Duration::from_secs(3600);

/// On it waits are waited for, and never run out: whoever is not woken waits for ever, which is a failure of the schedule.
#[derive(Debug)]
struct StandingClock;

impl Clock for StandingClock {
    fn now_ms(&self) -> Timestamp {
        1_700_000_000_000
    }

    fn monotonic(&self) -> Duration {
        Duration::ZERO
    }
}

fn open_to_wait(vfs: &FaultVfs) -> Store {
    let builder = Store::builder().vfs(Arc::new(vfs.clone())).clock(Arc::new(StandingClock));
    builder.upkeep(Upkeep::Manual).id_seed(3).open("/s").unwrap()
}

#[test]
fn a_tail_is_woken_by_every_append_and_sees_all_of_them_in_order() {
    explore("append x tail reader", &["in one poll", "in several polls", "as a member"], |tally| {
        const EACH: usize = 2;
        let vfs = machine();
        let store = open_to_wait(&vfs);
        // Of one an append is news when it is written, of the other when it is synced.
        let durability = if thread_rng().gen_bool(0.5) { Durability::Os } else { Durability::Sync };
        let config = TopicConfig::default().partitions(2).segment_bytes(256).durability(durability);
        store.create_topic("t", config).unwrap();
        let is_member = thread_rng().gen_bool(0.5);
        let builder = Consumer::builder(&store).topic("t").reset(Reset::Earliest);
        let mut consumer = if is_member { builder.group("g") } else { builder }.open().unwrap();
        let writers: Vec<_> = (0..2_u32)
            .map(|number| {
                let partition = store.topic("t").unwrap().partition(number).unwrap();
                thread::spawn(move || {
                    for index in 0..EACH {
                        partition.append(Record::of_value(format!("{number}-{index} {:.<60}", ""))).unwrap();
                    }
                })
            })
            .collect();
        let reader = thread::spawn(move || {
            let (mut seen, mut polls) = ([Vec::new(), Vec::new()], 0);
            while seen.iter().map(Vec::len).sum::<usize>() < 2 * EACH {
                polls += 1;
                for one in &consumer.poll(HOUR).unwrap() {
                    seen[one.partition.partition.get() as usize].push(text(one.record.value()));
                }
            }
            (seen, polls)
        });
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        let (seen, polls) = reader.join().unwrap();
        for (number, of_partition) in seen.iter().enumerate() {
            let expected: Vec<String> = (0..EACH).map(|index| format!("{number}-{index} {:.<60}", "")).collect();
            assert_eq!(*of_partition, expected);
        }
        tally.count(if polls == 1 { "in one poll" } else { "in several polls" });
        if is_member {
            tally.count("as a member");
        }
        store.close().unwrap();
    });
}

#[test]
fn whoever_waits_is_told_at_once_when_the_store_closes_or_the_topic_goes() {
    explore("waiters x close", &["closed", "deleted", "had come to it"], |tally| {
        let vfs = machine();
        let store = open_to_wait(&vfs);
        let partition = store.create_topic("t", TopicConfig::default()).unwrap().partition(0).unwrap();
        let groups = Groups::open(&store).unwrap();
        let at = |offset: i64| Position::of(partition.id().clone(), PartitionPosition::new(offset));
        let mut consumer =
            Consumer::builder(&store).partition(partition.id().clone()).reset(Reset::Earliest).open().unwrap();
        let appends = thread_rng().gen_bool(0.3);
        let waits: [Box<dyn FnOnce() -> topiclog::Result<()> + Send>; 3] = [
            Box::new({
                let (store, one) = (store.clone(), at(1));
                move || store.wait_durable(&one, HOUR)
            }),
            Box::new({
                let (groups, one) = (groups.clone(), at(1));
                move || groups.wait_for("g", &one, HOUR)
            }),
            Box::new(move || {
                loop {
                    if !consumer.poll(HOUR)?.is_empty() {
                        return Ok(());
                    }
                }
            }),
        ];
        let waiters: Vec<_> = waits.into_iter().map(thread::spawn).collect();
        let deletes = thread_rng().gen_bool(0.5);
        let ending = {
            let (store, partition) = (store.clone(), partition.clone());
            thread::spawn(move || {
                if appends {
                    partition.append(Record::of_value("one")).unwrap();
                }
                if deletes { store.delete_topic("t") } else { store.close() }.unwrap();
            })
        };
        ending.join().unwrap();
        for (number, waiter) in waiters.into_iter().enumerate() {
            match waiter.join().unwrap() {
                // Nobody commits for the group.
                Ok(()) => {
                    assert!(appends && number != 1);
                    tally.count("had come to it");
                }
                Err(Error::Closed { .. }) => tally.count("closed"),
                Err(Error::UnknownTopic { .. }) => {
                    assert!(deletes);
                    tally.count("deleted");
                }
                Err(error) => panic!("waiter {number}: {error}"),
            }
        }
        if deletes {
            store.close().unwrap();
        }
    });
}

#[test]
fn a_commit_beside_compaction_is_neither_lost_nor_taken_back() {
    let reached = ["compacted meanwhile", "nothing compacted", "a deletion won", "a commit won"];
    explore("commit x compaction", &reached, |tally| {
        const LAST: i64 = 3;
        let vfs = machine();
        let clock = Arc::new(ManualClock::new(1_700_000_000_000));
        let store = open_with(&vfs, &clock, Upkeep::Manual);
        let place = store.create_topic("t", TopicConfig::default()).unwrap().partition(0).unwrap().id().clone();
        // A segment holds two commits, so that there is something to compact at any time.
        let config = TopicConfig::default().cleanup_policy(CleanupPolicy::Compact).segment_bytes(256);
        store.create_topic("__consumer_offsets", config.min_cleanable_dirty_ratio(0.0)).unwrap();
        let groups = Groups::open(&store).unwrap();
        let commit = |groups: &Groups, group: &str, place: &TopicPartition, offset: i64, durability: Durability| {
            let options = CommitOptions::new().durability(durability);
            groups.commit_all(&[(group, &[(place.clone(), OffsetAndMetadata::new(offset))])], &options).unwrap();
        };
        for offset in 0..3 {
            commit(&groups, "g", &place, 0, Durability::Os);
            commit(&groups, "h", &place, offset, Durability::Os);
        }
        let committed = Arc::new(Mutex::new(0));
        let committer = {
            let (groups, place, committed) = (groups.clone(), place.clone(), Arc::clone(&committed));
            thread::spawn(move || {
                for offset in 1..=LAST {
                    commit(&groups, "g", &place, offset, Durability::Sync);
                    *committed.lock().unwrap() = offset;
                }
            })
        };
        let changer = {
            let (groups, place) = (groups.clone(), place.clone());
            thread::spawn(move || groups.delete_offsets("h", &[place]).unwrap())
        };
        let again = thread_rng().gen_bool(0.5);
        let rival = again.then(|| {
            let (groups, place) = (groups.clone(), place.clone());
            thread::spawn(move || commit(&groups, "h", &place, 7, Durability::Sync))
        });
        let upkeep = {
            let (store, clock) = (store.clone(), Arc::clone(&clock));
            thread::spawn(move || {
                let mut compacted = 0;
                for _ in 0..6 {
                    clock.advance_ms(20_000);
                    compacted += store.tick().unwrap().compactions;
                }
                compacted
            })
        };
        let reader = {
            let (groups, place, committed) = (groups.clone(), place.clone(), Arc::clone(&committed));
            thread::spawn(move || {
                for _ in 0..3 {
                    let known = *committed.lock().unwrap();
                    let found = groups.committed("g", &place).unwrap().map(|found| found.offset);
                    assert!(found >= Some(known), "{found:?} although {known} was acknowledged");
                }
            })
        };
        committer.join().unwrap();
        changer.join().unwrap();
        if let Some(rival) = rival {
            rival.join().unwrap();
        }
        reader.join().unwrap();
        tally.count(if upkeep.join().unwrap() > 0 { "compacted meanwhile" } else { "nothing compacted" });
        let of = |groups: &Groups, group| groups.committed(group, &place).unwrap().map(|found| found.offset);
        let last = (of(&groups, "g"), of(&groups, "h"));
        assert_eq!(last.0, Some(LAST));
        assert!(last.1.is_none() || (again && last.1 == Some(7)), "{last:?}");
        tally.count(if last.1.is_some() { "a commit won" } else { "a deletion won" });
        // Everything was asked for at `Sync`: a power cut changes nothing.
        let after = open(&FaultVfs::from_image(&vfs.durable_image()));
        let after = Groups::open(&after).unwrap();
        assert_eq!((of(&after, "g"), of(&after, "h")), last, "after a power cut");
        store.close().unwrap();
    });
}

#[test]
fn a_producer_answers_each_record_whoever_sends_it() {
    let reached = ["all stored", "some given up", "none stored", "by the thread", "by hand", "there was no room"];
    explore("producer x wait x flush x close", &reached, |tally| {
        let vfs = machine();
        let store = open_to_wait(&vfs);
        let partition = store.create_topic("t", TopicConfig::default()).unwrap().partition(0).unwrap();
        let (is_by_hand, is_small) = (thread_rng().gen_bool(0.3), thread_rng().gen_bool(0.3));
        // On this clock nothing ever has lingered: what is sent is full, or somebody asked for it.
        let builder = Producer::builder(&store).batch_bytes(140).buffer_bytes(if is_small { 140 } else { 10_000 });
        let producer = Arc::new(if is_by_hand { builder.by_hand() } else { builder }.open().unwrap());
        let senders: Vec<_> = (0..2)
            .map(|number| {
                let producer = Arc::clone(&producer);
                thread::spawn(move || {
                    let send = |index: usize| {
                        let value = format!("{number}-{index}");
                        producer.send("t", Record::of_value(value.clone())).map(|delivery| (value, delivery))
                    };
                    let sent: Vec<_> = (0..2).map_while(|index| send(index).ok()).collect();
                    sent.into_iter().map(|(value, delivery)| (value, delivery.wait())).collect::<Vec<_>>()
                })
            })
            .collect();
        let flusher = {
            let producer = Arc::clone(&producer);
            thread::spawn(move || producer.flush(HOUR).unwrap())
        };
        let is_closed = thread_rng().gen_bool(0.5);
        let ending = {
            let producer = Arc::clone(&producer);
            thread::spawn(move || if is_closed { producer.close(HOUR).unwrap() } else { drop(producer) })
        };
        let answers: Vec<_> = senders.into_iter().flat_map(|sender| sender.join().unwrap()).collect();
        flusher.join().unwrap();
        ending.join().unwrap();
        let log = log_of(&partition, ReadLevel::Latest);
        let mut stored = 0;
        for (value, answer) in &answers {
            match answer {
                Ok(placed) => {
                    stored += 1;
                    assert_eq!(log.get(placed.offset.get() as usize), Some(&(placed.offset.get(), value.clone())));
                }
                Err(Error::Closed { .. }) => assert!(log.iter().all(|(_, other)| other != value), "{value}"),
                Err(error) => panic!("{value}: {error}"),
            }
        }
        assert_eq!(log.len(), stored, "nothing else, and nothing twice: {log:?}");
        assert_eq!(producer.stats().waiting_bytes, 0);
        drop(producer);
        tally.count(if is_by_hand { "by hand" } else { "by the thread" });
        if is_small {
            tally.count("there was no room");
        }
        tally.count(match stored {
            4 => "all stored",
            0 => "none stored",
            _ => "some given up",
        });
        store.close().unwrap();
    });
}
