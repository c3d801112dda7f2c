//! What a group refuses, what it lets go, and what is kept of it: members of a broker and of this process.

use std::sync::Arc;
use std::time::Duration;

use topiclog::client::{ConsumerBuilder, GroupMetadata, OffsetAndMetadata, Reset};
use topiclog::clock::ManualClock;
use topiclog::group::{CommitOptions, GroupState, Groups, JoinRequest, Joined, Reply};
use topiclog::io::FaultVfs;
use topiclog::{Consumer, Error, Record, Store, TopicConfig, TopicPartition, Upkeep};

const INTERVAL_MS: u64 = 1000;

struct Place {
    vfs: FaultVfs,
    store: Store,
    clock: Arc<ManualClock>,
    groups: Groups,
}

impl Place {
    /// A topic `t` of four partitions.
    fn new() -> Self {
        let place = Self::open(FaultVfs::new(), Arc::new(ManualClock::new(0)));
        place.store.create_topic("t", TopicConfig::default().partitions(4)).unwrap();
        place
    }

    fn open(vfs: FaultVfs, clock: Arc<ManualClock>) -> Self {
        let builder = Store::builder().vfs(Arc::new(vfs.clone())).clock(Arc::clone(&clock) as Arc<_>);
        let store = builder.upkeep(Upkeep::Manual).open("/s").unwrap();
        let groups = Groups::open(&store).unwrap();
        Self { vfs, store, clock, groups }
    }

    /// As after a kill: nothing is closed.
    fn reopen(self) -> Self {
        let vfs = FaultVfs::from_image(&self.vfs.image());
        Self::open(vfs, self.clock)
    }

    fn builder(&self) -> ConsumerBuilder<'_> {
        let builder = Consumer::builder(&self.store).group("g").topic("t").reset(Reset::Earliest);
        builder.max_poll_interval_ms(INTERVAL_MS)
    }

    fn partition(&self, number: u32) -> TopicPartition {
        self.store.topic("t").unwrap().partition(number).unwrap().id().clone()
    }

    /// Where the record of a group, and each commit of it, goes: how many batches are there.
    fn batches(&self, group: &str) -> usize {
        let number = self.groups.partition_of(group).unwrap();
        let partition = self.store.topic("__consumer_offsets").unwrap().partition(number).unwrap();
        let mut reader = partition.reader(partition.start(), &topiclog::ReadOptions::new()).unwrap();
        std::iter::from_fn(|| reader.next_batch().unwrap().map(drop)).count()
    }

    /// Joins as a client of a broker does, and brings the assignment of a group that has no other member.
    fn broker_member(&self, group: &str, join: JoinRequest) -> GroupMetadata {
        let instance = join.group_instance_id.clone();
        let joined = joined(&self.groups, group, join);
        let member = GroupMetadata::new(group, joined.generation, &joined.member_id, instance.as_deref());
        let all = joined.members.iter().map(|(id, _)| (id.clone(), "all".into())).collect();
        self.groups.sync(&member, all).unwrap();
        member
    }
}

fn join() -> JoinRequest {
    JoinRequest {
        member_id: String::new(),
        new_member_id: String::new(),
        protocol_type: "consumer".into(),
        client_id: "c".into(),
        client_host: "10.0.0.7".into(),
        group_instance_id: None,
        session_timeout_ms: INTERVAL_MS,
        rebalance_timeout_ms: INTERVAL_MS,
        protocols: vec![("range".into(), "".into())],
    }
}

fn joined(groups: &Groups, group: &str, join: JoinRequest) -> Joined {
    match groups.join(group, join).unwrap().take() {
        Some(Reply::Joined(Ok(joined))) => joined,
        other => panic!("{other:?}"),
    }
}

fn poll(consumer: &mut Consumer) -> usize {
    consumer.poll(Duration::ZERO).unwrap().len()
}

/// Polls all in turn until nothing moves any more.
fn settle(members: &mut [&mut Consumer]) {
    for _ in 0..6 {
        for member in members.iter_mut() {
            poll(member);
        }
    }
}

#[test]
fn a_name_that_the_record_cannot_hold_is_refused_before_anything_is_written() {
    let place = Place::new();
    place.groups.commit("g", &[(place.partition(0), OffsetAndMetadata::new(1))]).unwrap();
    let before = place.batches("g");
    let long = "é".repeat(20_000);
    let almost = "x".repeat(32_750);
    for (request, expected) in [
        (JoinRequest { protocols: vec![(long.clone(), "".into())], ..join() }, "name of an assignor"),
        (JoinRequest { group_instance_id: Some(almost.clone()), ..join() }, "new member id"),
        (JoinRequest { client_id: almost, ..join() }, "new member id"),
        (JoinRequest { client_host: long.clone(), ..join() }, "client host"),
        (JoinRequest { protocol_type: long.clone(), ..join() }, "protocol type"),
        (JoinRequest { member_id: long.clone(), ..join() }, "member id"),
    ] {
        let refused = place.groups.join("g", request);
        let Err(Error::Invalid { field, limit }) = refused else { panic!("{expected}: {refused:?}") };
        assert_eq!((&*field, limit.contains("32767")), (expected, true), "{limit}");
    }
    assert!(matches!(place.groups.join(&long, join()), Err(Error::Invalid { .. })));
    assert_eq!(place.batches("g"), before, "nothing was appended");

    let longest = "x".repeat(32_767);
    let fits = JoinRequest {
        protocols: vec![(longest.clone(), "".into())],
        client_host: longest.clone(),
        new_member_id: longest.clone(),
        group_instance_id: Some(longest.clone()),
        ..join()
    };
    place.broker_member("g", fits);
    let place = place.reopen();
    let described = place.groups.describe("g").unwrap().unwrap();
    assert_eq!((described.members[0].member_id.as_str(), described.protocol.as_ref()), (&*longest, Some(&longest)));
}

/// A member of this process that has committed.
fn consumer_of_g(place: &Place) -> Consumer {
    for partition in place.store.topic("t").unwrap().partitions() {
        partition.append(Record::of_value("x")).unwrap();
    }
    let mut consumer = place.builder().open().unwrap();
    assert_eq!(poll(&mut consumer), 4);
    consumer.commit().unwrap();
    consumer
}

#[test]
fn offsets_of_a_group_whose_members_died_with_their_process_expire() {
    for is_killed in [true, false] {
        let place = Place::new();
        let consumer = consumer_of_g(&place);
        if is_killed {
            std::mem::forget(consumer);
        } else {
            drop(consumer);
            place.store.close().unwrap();
        }
        let place = place.reopen();
        let described = place.groups.describe("g").unwrap().unwrap();
        assert_eq!((described.state, described.members.len()), (GroupState::Empty, 0), "nobody of them can live");
        assert_eq!(place.groups.expire(5000).unwrap(), 0, "it is empty from now on");
        place.clock.advance_ms(4999);
        assert_eq!(place.groups.expire(5000).unwrap(), 0);
        place.clock.advance_ms(1);
        assert_eq!(place.groups.expire(5000).unwrap(), 4);
        assert!(place.groups.list().unwrap().is_empty());
    }
}

#[test]
fn offsets_of_a_group_whose_members_were_dropped_expire() {
    let place = Place::new();
    drop(consumer_of_g(&place));
    let described = place.groups.describe("g").unwrap().unwrap();
    assert_eq!((described.state, described.members.len()), (GroupState::Empty, 0));
    assert_eq!(place.groups.expire(5000).unwrap(), 0, "it is empty from now on");
    place.clock.advance_ms(5000);
    assert_eq!(place.groups.expire(5000).unwrap(), 4);
    assert!(place.groups.list().unwrap().is_empty());
}

#[test]
fn members_that_may_come_back_keep_their_offsets_until_their_session_is_over() {
    let place = Place::new();
    let mut consumer = place.builder().group_instance_id("i").open().unwrap();
    poll(&mut consumer);
    consumer.close().unwrap();
    let of_broker = place.broker_member("of a broker", join());
    let one = [(place.partition(0), OffsetAndMetadata::new(0))];
    place.groups.commit_as(&of_broker, &one, &CommitOptions::new()).unwrap();
    let place = place.reopen();
    place.clock.advance_ms(100_000);
    let members = |group| place.groups.describe(group).unwrap().unwrap().members.len();
    for _ in 0..2 {
        assert_eq!(place.groups.expire(5000).unwrap(), 0);
        assert_eq!((members("g"), members("of a broker")), (1, 1), "a session begins anew with the open");
        place.clock.advance_ms(INTERVAL_MS as u32 / 2);
    }
    // The session of a consumer is an interval and a third.
    place.clock.advance_ms(INTERVAL_MS as u32 / 2);
    assert_eq!((members("g"), members("of a broker")), (0, 0));
    assert_eq!(place.groups.expire(5000).unwrap(), 0);
    place.clock.advance_ms(5000);
    assert_eq!(place.groups.expire(5000).unwrap(), 1);
    assert!(place.groups.list().unwrap().is_empty());
}

#[test]
fn a_group_that_is_found_with_fewer_members_is_kept_so() {
    let place = Place::new();
    std::mem::forget(consumer_of_g(&place));
    let place = place.reopen();
    let before = place.batches("g");
    assert!(place.groups.leave("g", "nobody").unwrap().is_err());
    assert_eq!(place.batches("g"), before + 1);
    assert!(place.groups.leave("g", "nobody").unwrap().is_err());
    assert_eq!(place.batches("g"), before + 1, "once is enough");
}

#[test]
fn a_group_whose_members_are_gone_takes_commits_and_deletions_of_anybody() {
    let one = |place: &Place| [(place.partition(0), OffsetAndMetadata::new(1))];
    let check = |what: fn(&Groups, &TopicPartition)| {
        let place = Place::new();
        drop(consumer_of_g(&place));
        what(&place.groups, &place.partition(0));

        // The same once its session is over.
        let place = Place::new();
        let mut silent = consumer_of_g(&place);
        assert!(matches!(place.groups.commit("g", &one(&place)), Err(Error::Fenced { .. })));
        assert!(matches!(place.groups.delete("g"), Err(Error::Invalid { .. })));
        place.clock.advance_ms(2 * INTERVAL_MS as u32);
        what(&place.groups, &place.partition(0));
        let late = silent.commit_offsets(&one(&place).into());
        assert!(matches!(late, Err(Error::Fenced { .. })), "{late:?}");
    };
    check(|groups, at| groups.commit("g", &[(at.clone(), OffsetAndMetadata::new(1))]).unwrap());
    check(|groups, at| {
        let two = [(at.clone(), OffsetAndMetadata::new(1))];
        let number = groups.partition_of("g").unwrap();
        let mut others = (0..).map(|number| format!("g{number}"));
        let other = others.find(|name| groups.partition_of(name).unwrap() == number).unwrap();
        groups.commit_all(&[("g", &two), (&other, &two)], &CommitOptions::new()).unwrap();
    });
    check(|groups, _| groups.delete("g").unwrap());
    check(|groups, at| groups.delete_offsets("g", std::slice::from_ref(at)).unwrap());
}

#[test]
fn what_expires_of_many_groups_is_one_batch_of_each_partition() {
    let place = Place::new();
    let groups: Vec<String> = (0..200).map(|number| format!("retired-{number}")).collect();
    for group in &groups {
        place.groups.commit(group, &[(place.partition(0), OffsetAndMetadata::new(1))]).unwrap();
    }
    let of_all = |place: &Place| -> usize {
        let mut partitions: Vec<(u32, usize)> =
            groups.iter().map(|group| (place.groups.partition_of(group).unwrap(), place.batches(group))).collect();
        partitions.sort_unstable();
        partitions.dedup();
        partitions.iter().map(|(_, batches)| batches).sum()
    };
    let before = of_all(&place);
    place.clock.advance_ms(1000);
    assert_eq!(place.groups.expire(1000).unwrap(), 200);
    assert_eq!(of_all(&place), before + 4);
    let place = place.reopen();
    assert!(place.groups.list().unwrap().is_empty());

    // Where one batch may not have them all there are more.
    let offsets = place.store.topic("__consumer_offsets").unwrap().config();
    place.store.alter_topic("__consumer_offsets", offsets.batch_bytes_max(500)).unwrap();
    for group in &groups {
        place.groups.commit(group, &[(place.partition(0), OffsetAndMetadata::new(1))]).unwrap();
    }
    place.clock.advance_ms(1000);
    assert_eq!(place.groups.expire(1000).unwrap(), 200);
    assert!(place.reopen().groups.list().unwrap().is_empty());
}

fn is_static(place: &Place, name: &str) -> Consumer {
    place.builder().group_instance_id(name).open().unwrap()
}

fn stand(members: &[&Consumer]) -> Vec<(i32, Vec<TopicPartition>)> {
    members.iter().map(|member| (member.group_metadata().unwrap().generation, member.assignment())).collect()
}

#[test]
fn whichever_static_member_starts_again_there_is_no_rebalance() {
    let place = Place::new();
    let (mut a, mut b) = (is_static(&place, "a"), is_static(&place, "b"));
    settle(&mut [&mut a, &mut b]);
    let before = stand(&[&a, &b]);
    assert_eq!((before[0].1.len(), before[1].1.len()), (2, 2));
    for _ in 0..2 {
        drop(a);
        a = is_static(&place, "a");
        settle(&mut [&mut a, &mut b]);
        assert_eq!(stand(&[&a, &b]), before);
        b.close().unwrap();
        b = is_static(&place, "b");
        settle(&mut [&mut a, &mut b]);
        assert_eq!(stand(&[&a, &b]), before);
    }
    drop((a, b));
    let (mut a, mut b) = (is_static(&place, "a"), is_static(&place, "b"));
    settle(&mut [&mut b, &mut a]);
    assert_eq!(stand(&[&a, &b]), before);
}

#[test]
fn static_members_come_back_without_a_rebalance_after_their_process_died_or_closed_the_store() {
    for is_killed in [true, false] {
        let mut place = Place::new();
        let (mut a, mut b) = (is_static(&place, "a"), is_static(&place, "b"));
        settle(&mut [&mut a, &mut b]);
        let before = stand(&[&a, &b]);
        for _ in 0..2 {
            if is_killed {
                std::mem::forget((a, b));
            } else {
                a.close().unwrap();
                b.close().unwrap();
                place.store.close().unwrap();
            }
            place = place.reopen();
            (a, b) = (is_static(&place, "a"), is_static(&place, "b"));
            settle(&mut [&mut b, &mut a]);
            assert_eq!(stand(&[&a, &b]), before);
        }
    }
}

#[test]
fn a_static_member_that_comes_back_to_read_something_else_is_assigned_anew() {
    let place = Place::new();
    place.store.create_topic("u", TopicConfig::default()).unwrap();
    let (mut a, mut b) = (is_static(&place, "a"), is_static(&place, "b"));
    settle(&mut [&mut a, &mut b]);
    let before = stand(&[&a, &b]);
    drop(b);
    let mut b = place.builder().topic("u").group_instance_id("b").open().unwrap();
    settle(&mut [&mut a, &mut b]);
    assert!(b.assignment().iter().any(|id| id.topic.as_str() == "u"));
    assert!(stand(&[&a, &b])[0].0 > before[0].0);

    // So is one with which another assignor would be chosen.
    let place = Place::new();
    let open = |assignors: &[&str]| {
        place.builder().assignors(assignors.iter().copied()).group_instance_id("a").open().unwrap()
    };
    let mut a = open(&["range", "roundrobin"]);
    settle(&mut [&mut a]);
    drop(a);
    let mut a = open(&["range", "cooperative-sticky"]);
    settle(&mut [&mut a]);
    assert_eq!(stand(&[&a])[0].0, 1, "range it is still");
    drop(a);
    let mut a = open(&["roundrobin", "range"]);
    settle(&mut [&mut a]);
    assert_eq!(stand(&[&a])[0].0, 2);
    assert_eq!(place.groups.describe("g").unwrap().unwrap().protocol.as_deref(), Some("roundrobin"));
}

#[test]
fn static_members_count_as_well_but_for_one_that_comes_back() {
    let place = Place::new();
    let named = |number: u32| JoinRequest { group_instance_id: Some(format!("i-{number}")), ..join() };
    for number in 0..1000 {
        place.groups.join("g", named(number)).unwrap();
    }
    let refused = place.groups.join("g", named(1000));
    assert!(matches!(refused, Err(Error::Invalid { .. })), "{refused:?}");
    place.groups.join("g", named(500)).unwrap();
    // Who is gone does not count.
    place.clock.advance_ms(INTERVAL_MS as u32);
    place.groups.join("h", join()).unwrap();
    place.groups.remove_members("g").unwrap();
    place.groups.join("g", named(1000)).unwrap();
}

#[test]
fn a_member_or_an_assignment_that_makes_the_record_of_the_group_too_large_is_refused() {
    let place = Place::new();
    place.groups.commit("g", &[(place.partition(0), OffsetAndMetadata::new(0))]).unwrap();
    let limited = |bytes| {
        let config = place.store.topic("__consumer_offsets").unwrap().config();
        place.store.alter_topic("__consumer_offsets", config.batch_bytes_max(bytes)).unwrap();
    };
    limited(10_000);
    let long = || JoinRequest { protocols: vec![("range".into(), "x".repeat(2000).into())], ..join() };
    let first = joined(&place.groups, "g", long());
    let member = GroupMetadata::new("g", first.generation, &first.member_id, None);
    let before = place.batches("g");
    let assigned = |bytes: usize| vec![(first.member_id.clone(), "x".repeat(bytes).into())];
    for _ in 0..2 {
        let refused = place.groups.sync(&member, assigned(9000));
        let Err(Error::Invalid { limit, .. }) = refused else { panic!("{refused:?}") };
        assert!(limit.contains("max.message.bytes"), "{limit}");
    }
    assert_eq!(place.batches("g"), before, "nothing was appended");
    place.groups.sync(&member, assigned(3000)).unwrap();
    place.groups.join("g", JoinRequest { new_member_id: "second".into(), ..long() }).unwrap();
    let third = || place.groups.join("g", JoinRequest { new_member_id: "third".into(), ..long() });
    let refused = third();
    let Err(Error::Invalid { field, limit }) = refused else { panic!("{refused:?}") };
    assert_eq!(field, "record of a group");
    assert!(limit.contains("max.message.bytes"), "{limit}");
    let again = JoinRequest { member_id: first.member_id.clone(), ..long() };
    place
        .groups
        .join("g", JoinRequest { protocols: vec![("range".into(), "x".repeat(4000).into())], ..again })
        .unwrap();
    limited(20_000);
    third().unwrap();
    assert_eq!(place.groups.remove_members("g").unwrap(), 3);
}

/// It once came back without an answer at the first append anywhere.
#[test]
fn a_wait_for_an_answer_is_not_ended_by_what_others_append() {
    let store = Store::builder().vfs(Arc::new(FaultVfs::new())).upkeep(Upkeep::Manual).open("/s").unwrap();
    let topic = store.create_topic("t", TopicConfig::default()).unwrap();
    let groups = Groups::open(&store).unwrap();
    let member = |id: &str| JoinRequest { new_member_id: id.to_owned(), rebalance_timeout_ms: 60_000, ..join() };
    let first = groups.join("g", member("first")).unwrap();
    assert!(matches!(first.wait(Duration::ZERO), Some(Reply::Joined(Ok(_)))));
    // The second waits for the first to join again.
    let second = groups.join("g", member("second")).unwrap();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| second.wait(Duration::from_secs(60)));
        for _ in 0..100 {
            topic.append(Record::of_value("x")).unwrap();
        }
        assert!(!waiting.is_finished());
        let again = JoinRequest { member_id: "first".to_owned(), ..member("") };
        groups.join("g", again).unwrap();
        assert!(matches!(waiting.join().unwrap(), Some(Reply::Joined(Ok(_)))));
    });
    assert!(second.wait(Duration::from_millis(1)).is_none(), "an answer is given once");
}
