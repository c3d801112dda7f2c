//! Consumers as members of a group: who reads what, what is committed by whom, and what happens to those that go.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use topiclog::client::{ConsumerBuilder, OffsetAndMetadata, Rebalance, Records, Reset};
use topiclog::clock::ManualClock;
use topiclog::group::{GroupState, Groups, JoinRequest};
use topiclog::io::FaultVfs;
use topiclog::{Consumer, Durability, Error, Record, Store, TopicConfig, TopicPartition, Upkeep};

use crate::support::simulate::{Random, seed};

const INTERVAL_MS: u64 = 1000;

struct Place {
    vfs: FaultVfs,
    store: Store,
    clock: Arc<ManualClock>,
}

impl Place {
    fn new() -> Self {
        let (vfs, clock) = (FaultVfs::new(), Arc::new(ManualClock::new(0)));
        let store = open(&vfs, &clock);
        Self { vfs, store, clock }
    }

    /// As after a kill: nothing is closed.
    fn reopen(self) -> Self {
        let Self { vfs, clock, .. } = self;
        let vfs = FaultVfs::from_image(&vfs.image());
        let store = open(&vfs, &clock);
        Self { vfs, store, clock }
    }

    fn topic(&self, name: &str, partitions: u32) {
        self.store.create_topic(name, TopicConfig::default().partitions(partitions)).unwrap();
    }

    fn fill(&self, name: &str, records: i64) {
        for partition in self.store.topic(name).unwrap().partitions() {
            (0..records).for_each(|_| drop(partition.append(Record::of_value("x")).unwrap()));
        }
    }

    fn builder(&self) -> ConsumerBuilder<'_> {
        let builder = Consumer::builder(&self.store).group("g").reset(Reset::Earliest);
        builder.max_poll_interval_ms(INTERVAL_MS)
    }

    fn member(&self, topic: &str, assignor: &str) -> Consumer {
        self.builder().topic(topic).assignors([assignor]).open().unwrap()
    }

    fn groups(&self) -> Groups {
        Groups::open(&self.store).unwrap()
    }
}

fn open(vfs: &FaultVfs, clock: &Arc<ManualClock>) -> Store {
    let builder = Store::builder().vfs(Arc::new(vfs.clone())).clock(Arc::clone(clock) as Arc<_>);
    builder.upkeep(Upkeep::Manual).open("/s").unwrap()
}

fn poll(consumer: &mut Consumer) -> Records {
    consumer.poll(Duration::ZERO).unwrap()
}

/// Polls all in turn until nothing moves any more. Returns how many records each has got.
fn settle(members: &mut [&mut Consumer]) -> Vec<usize> {
    let mut counts = vec![0; members.len()];
    for _ in 0..6 {
        for (count, member) in counts.iter_mut().zip(members.iter_mut()) {
            *count += poll(member).len();
        }
    }
    counts
}

fn numbers(consumer: &Consumer) -> Vec<u32> {
    consumer.assignment().iter().map(|id| id.partition.get()).collect()
}

#[test]
fn members_share_the_partitions_and_each_record_goes_to_one_of_them() {
    for (assignor, expected) in [
        ("range", [vec![0, 1], vec![2, 3]]),
        ("roundrobin", [vec![0, 2], vec![1, 3]]),
        ("cooperative-sticky", [vec![0, 1], vec![2, 3]]),
    ] {
        let place = Place::new();
        place.topic("t", 4);
        place.fill("t", 5);
        let mut first = place.member("t", assignor);
        assert_eq!(poll(&mut first).len(), 20, "alone it has all");
        first.commit().unwrap();
        let mut second = place.member("t", assignor);
        assert_eq!(settle(&mut [&mut first, &mut second]), [0, 0], "what is committed is not read again");
        let mut shared = [numbers(&first), numbers(&second)];
        shared.sort();
        assert_eq!(shared, expected, "{assignor}");
        place.fill("t", 3);
        assert_eq!(settle(&mut [&mut first, &mut second]), [6, 6]);
        let described = place.groups().describe("g").unwrap().unwrap();
        assert_eq!((described.state, described.members.len()), (GroupState::Stable, 2));
        assert_eq!(described.protocol.as_deref(), Some(assignor));
    }
}

#[test]
fn who_goes_leaves_its_partitions_to_the_others_at_once() {
    let place = Place::new();
    place.topic("t", 2);
    place.fill("t", 4);
    let (mut first, mut second) = (place.member("t", "range"), place.member("t", "range"));
    settle(&mut [&mut first, &mut second]);
    first.commit().unwrap();
    second.close().unwrap();
    // What the second had polled was not committed.
    assert_eq!(settle(&mut [&mut first]), [4]);
    assert_eq!(numbers(&first), [0, 1]);
    let mut third = place.member("t", "range");
    settle(&mut [&mut first, &mut third]);
    assert_eq!((numbers(&first).len(), numbers(&third).len()), (1, 1));
    drop(third);
    settle(&mut [&mut first]);
    assert_eq!(numbers(&first), [0, 1], "dropped is gone as well");
}

#[test]
fn a_member_that_does_not_poll_loses_its_partitions_and_its_commits_are_fenced() {
    let place = Place::new();
    place.topic("t", 2);
    place.fill("t", 4);
    let seen = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&seen);
    let builder = place.builder().topic("t").on_rebalance(move |_, what| {
        told.lock().unwrap().push(what.clone());
        Ok(())
    });
    let mut slow = builder.open().unwrap();
    let mut other = place.member("t", "range");
    settle(&mut [&mut slow, &mut other]);
    assert_eq!((numbers(&slow).len(), numbers(&other).len()), (1, 1));
    other.commit().unwrap();
    seen.lock().unwrap().clear();
    // An interval, and the third of one in which polls need not tell the group anything.
    for _ in 0..5 {
        place.clock.advance_ms(INTERVAL_MS as u32 / 3);
        poll(&mut other);
    }
    settle(&mut [&mut other]);
    assert_eq!(numbers(&other), [0, 1]);
    let refused = slow.commit();
    assert!(matches!(refused, Err(Error::Fenced { .. })), "{refused:?}");
    other.commit().unwrap();
    let lost = slow.assignment();
    settle(&mut [&mut slow, &mut other]);
    assert_eq!(seen.lock().unwrap()[0], Rebalance::Lost(lost));
    assert_eq!((numbers(&slow).len(), numbers(&other).len()), (1, 1), "it is a member again");
    let committed: i64 = place.groups().offsets("g").unwrap().iter().map(|(_, at)| at.offset).sum();
    assert_eq!(committed, 8, "nothing went back");
}

#[test]
fn what_was_processed_is_committed_before_its_partitions_go() {
    for (assignor, kept) in [("range", false), ("cooperative-sticky", true)] {
        let place = Place::new();
        place.topic("t", 2);
        place.fill("t", 3);
        let seen = Arc::new(Mutex::new(Vec::new()));
        let told = Arc::clone(&seen);
        let builder = place.builder().topic("t").assignors([assignor]).on_rebalance(move |consumer, what| {
            assert!(matches!(consumer.poll(Duration::ZERO), Err(Error::Invalid { .. })), "no poll within a poll");
            told.lock().unwrap().push(what.clone());
            if let Rebalance::Revoked(_) = what { consumer.commit() } else { Ok(()) }
        });
        let mut first = builder.open().unwrap();
        assert_eq!(poll(&mut first).len(), 6);
        let mut second = place.member("t", assignor);
        assert_eq!(settle(&mut [&mut first, &mut second]), [0, 0], "{assignor}: nothing is read twice");
        let seen = seen.lock().unwrap();
        let all: Vec<TopicPartition> = match &seen[0] {
            Rebalance::Assigned(all) => all.clone(),
            other => panic!("{other:?}"),
        };
        let revoked: Vec<_> = seen.iter().filter(|what| matches!(what, Rebalance::Revoked(_))).collect();
        let expected = if kept { all[1..].to_vec() } else { all };
        assert_eq!(revoked, [&Rebalance::Revoked(expected)], "{assignor}");
    }
}

#[test]
fn a_member_that_commits_with_its_polls_commits_what_was_before_them() {
    let place = Place::new();
    place.topic("t", 1);
    place.fill("t", 5);
    let mut member = place.builder().topic("t").records_max(2).commit_with_poll().open().unwrap();
    let committed = || place.groups().offsets("g").unwrap().first().map(|(_, at)| at.offset);
    for expected in [None, Some(2), Some(4)] {
        poll(&mut member);
        assert_eq!(committed(), expected);
    }
    member.close().unwrap();
    assert_eq!(committed(), Some(5));
    let refused = Consumer::builder(&place.store).topic("t").reset(Reset::Earliest).commit_with_poll().open();
    assert!(matches!(refused, Err(Error::Config { .. })));
}

#[test]
fn a_pattern_takes_topics_that_come_and_lets_go_those_that_go() {
    let place = Place::new();
    place.topic("orders-eu", 1);
    place.topic("other", 1);
    let mut member = place.builder().pattern("orders-.*").open().unwrap();
    poll(&mut member);
    let topics =
        |member: &Consumer| -> Vec<String> { member.assignment().iter().map(|id| id.topic.to_string()).collect() };
    assert_eq!(topics(&member), ["orders-eu"]);
    place.topic("orders-us", 1);
    place.topic("my-orders-us", 1);
    place.fill("orders-us", 2);
    assert_eq!(settle(&mut [&mut member]), [2]);
    assert_eq!(topics(&member), ["orders-eu", "orders-us"]);
    place.store.delete_topic("orders-eu").unwrap();
    settle(&mut [&mut member]);
    assert_eq!(topics(&member), ["orders-us"]);
    // Its own offsets are in a topic as well, which no pattern means.
    let mut all = Consumer::builder(&place.store).group("all").pattern(".*").reset(Reset::Latest).open().unwrap();
    poll(&mut all);
    assert!(topics(&all).iter().all(|topic| !topic.starts_with("__")) && topics(&all).len() == 3);
    assert!(matches!(place.builder().pattern("(").open(), Err(Error::Invalid { .. })));
    assert!(matches!(place.builder().topic("t").pattern("t").open(), Err(Error::Config { .. })));
}

#[test]
fn a_topic_that_goes_is_told_and_one_that_comes_again_is_another() {
    let place = Place::new();
    place.topic("t", 1);
    place.topic("u", 1);
    place.fill("t", 5);
    let mut member = place.builder().topic("t").topic("u").open().unwrap();
    assert_eq!(poll(&mut member).len(), 5);
    member.commit().unwrap();
    place.store.delete_topic("t").unwrap();
    for _ in 0..2 {
        let refused = member.poll(Duration::ZERO);
        assert!(matches!(refused, Err(Error::UnknownTopic { .. })), "{refused:?}");
    }
    place.topic("t", 1);
    place.fill("t", 7);
    assert_eq!(settle(&mut [&mut member]), [7], "the old offset says nothing about the new topic");
    let resets = member.take_resets();
    assert_eq!(resets.last().unwrap().now.get(), 0);
}

#[test]
fn a_static_member_comes_back_to_what_it_had_without_a_rebalance() {
    let place = Place::new();
    place.topic("t", 4);
    let open = |name| place.builder().topic("t").group_instance_id(name).open().unwrap();
    let (mut first, mut second) = (open("a"), open("b"));
    settle(&mut [&mut first, &mut second]);
    let (had, generation) = (numbers(&second), second.group_metadata().unwrap().generation);
    second.close().unwrap();
    settle(&mut [&mut first]);
    assert_eq!(numbers(&first).len(), 2, "its partitions wait for it");
    let mut again = open("b");
    settle(&mut [&mut first, &mut again]);
    assert_eq!((numbers(&again), again.group_metadata().unwrap().generation), (had, generation));
    let mut usurper = open("b");
    settle(&mut [&mut first, &mut usurper]);
    let one = [(usurper.assignment()[0].clone(), OffsetAndMetadata::new(0))];
    assert!(matches!(again.commit_offsets(&one.into()), Err(Error::Fenced { .. })));
    for _ in 0..2 {
        // It does not take its name back.
        assert!(matches!(again.poll(Duration::ZERO), Err(Error::Fenced { .. })));
    }
    // Once its session is over, what it had goes to others.
    drop(usurper);
    drop(again);
    for _ in 0..5 {
        place.clock.advance_ms(INTERVAL_MS as u32 / 3);
        poll(&mut first);
    }
    settle(&mut [&mut first]);
    assert_eq!(numbers(&first).len(), 4);
}

#[test]
fn a_group_with_members_takes_commits_and_deletions_of_nobody_else() {
    let place = Place::new();
    place.topic("t", 1);
    place.topic("u", 1);
    place.fill("t", 3);
    place.fill("u", 3);
    let groups = place.groups();
    let at = |topic: &str| place.store.topic(topic).unwrap().partition(0_u32).unwrap().id().clone();
    groups.commit("g", &[(at("u"), OffsetAndMetadata::new(1))]).unwrap();
    let mut member = place.member("t", "range");
    poll(&mut member);
    let one = [(at("t"), OffsetAndMetadata::new(1))];
    assert!(matches!(groups.commit("g", &one), Err(Error::Fenced { .. })));
    let mut reader =
        Consumer::builder(&place.store).group("g").partition(at("t")).reset(Reset::Earliest).open().unwrap();
    poll(&mut reader);
    assert!(matches!(reader.commit(), Err(Error::Fenced { .. })));
    assert!(matches!(groups.delete("g"), Err(Error::Invalid { .. })));
    assert!(matches!(groups.delete_offsets("g", &[at("t")]), Err(Error::Invalid { .. })));
    groups.delete_offsets("g", &[at("u")]).unwrap();
    member.close().unwrap();
    groups.commit("g", &one).unwrap();
    assert_eq!(groups.describe("g").unwrap().unwrap().state, GroupState::Empty);
    groups.delete("g").unwrap();
    assert_eq!(groups.offsets("g").unwrap(), []);
}

#[test]
fn a_group_has_at_most_a_thousand_members() {
    let place = Place::new();
    let groups = place.groups();
    let join = || JoinRequest {
        member_id: String::new(),
        new_member_id: String::new(),
        protocol_type: "consumer".into(),
        client_id: "c".into(),
        client_host: "h".into(),
        group_instance_id: None,
        session_timeout_ms: 1000,
        rebalance_timeout_ms: 1000,
        protocols: vec![("range".into(), "".into())],
    };
    (0..1000).for_each(|_| drop(groups.join("g", join()).unwrap()));
    assert!(matches!(groups.join("g", join()), Err(Error::Invalid { .. })));
    groups.join("other", join()).unwrap();
    assert_eq!(groups.remove_members("g").unwrap(), 1000);
    groups.join("g", join()).unwrap();
}

/// Nobody of the killed process can come back, and a member is not to wait for them.
#[test]
fn after_a_kill_a_member_has_its_partitions_at_once_in_a_later_generation() {
    let place = Place::new();
    place.topic("t", 2);
    place.fill("t", 2);
    let (mut first, mut second) = (place.member("t", "range"), place.member("t", "range"));
    settle(&mut [&mut first, &mut second]);
    first.commit().unwrap();
    let before = first.group_metadata().unwrap();
    std::mem::forget((first, second));
    let place = place.reopen();
    let described = place.groups().describe("g").unwrap().unwrap();
    assert_eq!((described.members.len(), described.generation), (0, before.generation), "they died with it");
    let mut third = place.member("t", "range");
    assert_eq!(poll(&mut third).len(), 2, "what was not committed");
    assert!(third.group_metadata().unwrap().generation > before.generation);
    let late = place.groups().commit_as(
        &before,
        &[(third.assignment()[0].clone(), OffsetAndMetadata::new(0))],
        &topiclog::group::CommitOptions::new(),
    );
    assert!(matches!(late, Err(Error::Fenced { .. })), "{late:?}");
}

#[test]
fn a_group_is_kept_in_kafkas_record_and_a_member_told_where_it_may_begin() {
    let place = Place::new();
    place.topic("t", 1);
    let mut member = place.builder().topic("t").client_id("billing").open().unwrap();
    poll(&mut member);
    let groups = place.groups();
    let number = groups.partition_of("g").unwrap();
    let offsets = place.store.topic("__consumer_offsets").unwrap().partition(number).unwrap();
    let record = offsets.read_from(0).map(Result::unwrap).last().unwrap();
    // Kafka's GroupMetadataKey version 2, and value version 3.
    assert_eq!(record.key(), Some(&[0, 2, 0, 1, b'g'][..]));
    let value = record.value().unwrap();
    assert!(value.starts_with(b"\0\x03\0\x08consumer\0\0\0\x01\0\x05range\0"), "{value:?}");
    let id = &member.group_metadata().unwrap().member_id;
    assert!(id.starts_with("billing-") && value.windows(id.len()).any(|window| window == id.as_bytes()));
    // With nothing committed and no reset it is an error until somebody says where.
    let mut strict = place.builder().topic("t").group("h").reset(Reset::Error).open().unwrap();
    for _ in 0..2 {
        assert!(matches!(strict.poll(Duration::ZERO), Err(Error::Invalid { .. })));
    }
    place.fill("t", 3);
    let at = strict.assignment()[0].clone();
    strict.seek(&at, 1).unwrap();
    assert_eq!(poll(&mut strict).len(), 2);
}

#[test]
fn members_in_threads_share_everything_and_a_poll_hears_of_a_rebalance() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::builder().upkeep(Upkeep::Manual).open(directory.path().join("s")).unwrap();
    let config = TopicConfig::default().partitions(4).durability(Durability::Os);
    let topic = store.create_topic("t", config).unwrap();
    let total = 400;
    let seen = Mutex::new(BTreeSet::new());
    let read = || {
        let mut member = Consumer::builder(&store).group("g").topic("t").reset(Reset::Earliest).open().unwrap();
        loop {
            for one in member.poll(Duration::from_secs(20)).unwrap() {
                if one.record.value() == Some(b"x") {
                    seen.lock().unwrap().insert((one.partition.partition.get(), one.record.offset().get()));
                }
            }
            match member.commit() {
                // A rebalance came between: what was polled comes again, to whoever has it next.
                Ok(()) | Err(Error::Fenced { .. }) => {}
                Err(error) => panic!("{error}"),
            }
            if seen.lock().unwrap().len() >= total {
                // Wakes the others.
                topic.append(Record::of_value("end")).unwrap();
                return member.close().unwrap();
            }
        }
    };
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..3).map(|_| scope.spawn(read)).collect();
        for number in 0..total {
            let record = Record::of_value("x").to_partition(u32::try_from(number % 4).unwrap());
            topic.append(record).unwrap();
        }
        readers.into_iter().for_each(|reader| reader.join().unwrap());
    });
    let all: BTreeSet<_> = (0..4).flat_map(|partition| (0..100).map(move |offset| (partition, offset))).collect();
    assert_eq!(*seen.lock().unwrap(), all);
}

/// Random members that poll, commit, stall, go and come, appends, and kills of the process.
#[test]
fn no_committed_offset_goes_back_or_past_what_was_delivered() {
    let first = seed("members", 1);
    for seed in first..first + 40 {
        check_random(seed);
    }
}

fn check_random(seed: u64) {
    let mut random = Random(seed);
    let mut place = Place::new();
    place.topic("t", 3);
    let mut members: Vec<Consumer> = Vec::new();
    let mut delivered: BTreeMap<TopicPartition, i64> = BTreeMap::new();
    let mut committed: BTreeMap<TopicPartition, i64> = BTreeMap::new();
    let assignors = [["range"], ["cooperative-sticky"], ["roundrobin"]][random.below(3)];
    for _ in 0..120 {
        match random.below(12) {
            0 if members.len() < 4 => {
                let builder = place.builder().topic("t").assignors(assignors).records_max(1 + random.below(4));
                members.push(builder.open().unwrap());
            }
            1 if !members.is_empty() => {
                let gone = members.swap_remove(random.below(members.len()));
                if random.below(2) == 0 { gone.close().unwrap() } else { drop(gone) }
            }
            2 => place.clock.advance_ms(random.below(INTERVAL_MS as usize) as u32),
            3 => place.fill("t", 1 + random.below(3) as i64),
            4 if random.below(6) == 0 => {
                members.drain(..).for_each(std::mem::forget);
                place = place.reopen();
            }
            5 | 6 if !members.is_empty() => {
                let member = random.below(members.len());
                match members[member].commit() {
                    Ok(()) | Err(Error::Fenced { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            _ if !members.is_empty() => {
                let member = random.below(members.len());
                for one in poll(&mut members[member]) {
                    let next = one.record.offset().get() + 1;
                    let seen = delivered.entry(one.partition).or_default();
                    *seen = next.max(*seen);
                }
            }
            _ => {}
        }
        for (id, at) in place.groups().offsets("g").unwrap() {
            let before = committed.insert(id.clone(), at.offset).unwrap_or(0);
            assert!(before <= at.offset, "{id} went back from {before} to {}", at.offset);
            let seen = delivered.get(&id).copied().unwrap_or(0);
            assert!(at.offset <= seen, "{id} committed {} and delivered {seen}", at.offset);
        }
        check_owners(&members);
    }
    // In the end somebody reads everything.
    members.clear();
    let mut last = place.member("t", assignors[0]);
    place.clock.advance_ms(INTERVAL_MS as u32);
    settle(&mut [&mut last]);
    for _ in 0..40 {
        for one in poll(&mut last) {
            let seen = delivered.entry(one.partition).or_default();
            *seen = (one.record.offset().get() + 1).max(*seen);
        }
    }
    last.commit().unwrap();
    for partition in place.store.topic("t").unwrap().partitions() {
        let end = partition.end().get();
        assert_eq!(last.position(partition.id()).unwrap().get(), end, "{}", partition.id());
    }
}

/// Of those that stand in the same generation no two have one partition.
fn check_owners(members: &[Consumer]) {
    let mut owners = BTreeMap::new();
    for member in members {
        let Some(standing) = member.group_metadata() else { continue };
        for id in member.assignment() {
            let other = owners.insert((standing.generation, id.clone()), standing.member_id.clone());
            assert!(other.is_none(), "{id} has two owners in generation {}", standing.generation);
        }
    }
}
