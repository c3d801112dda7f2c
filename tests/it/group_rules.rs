//! What a group refuses, what it lets go, and what is kept of it: members of a broker and of this process.

use std::sync::Arc;

use topiclog::client::{GroupMetadata, OffsetAndMetadata};
use topiclog::clock::ManualClock;
use topiclog::group::{Groups, JoinRequest, Joined, Reply};
use topiclog::io::FaultVfs;
use topiclog::{Error, Store, TopicConfig, TopicPartition, Upkeep};

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
