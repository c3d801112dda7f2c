//! The coordinator against a model: random members that join, go, fall silent and come back.

use std::collections::{BTreeMap, BTreeSet};

use topiclog::group::{
    Assignment, Assignor, GroupCoordinator, GroupState, JoinRequest, Refusal, Replies, Reply, Subscription,
};

use crate::support::simulate::{Random, seed};

const SESSION_MS: u64 = 100;
const REBALANCE_MS: u64 = 300;

fn join(member_id: &str, new_member_id: &str, instance: Option<&str>, told: &Subscription) -> JoinRequest {
    let protocols = [Assignor::CooperativeSticky, Assignor::Range];
    JoinRequest {
        member_id: member_id.to_owned(),
        new_member_id: new_member_id.to_owned(),
        protocol_type: "consumer".to_owned(),
        client_id: "test".to_owned(),
        client_host: "here".to_owned(),
        group_instance_id: instance.map(str::to_owned),
        session_timeout_ms: SESSION_MS,
        rebalance_timeout_ms: REBALANCE_MS,
        protocols: protocols.map(|assignor| (assignor.name().to_owned(), told.encode().into())).to_vec(),
    }
}

/// What a client knows.
#[derive(Debug, Default)]
struct Client {
    member_id: String,
    generation: i32,
    owned: BTreeSet<(String, i32)>,
    waits_for: Option<u64>,
    is_silent: bool,
    wants_join: bool,
}

struct World {
    group: GroupCoordinator,
    clients: BTreeMap<usize, Client>,
    now_ms: u64,
    next_request: u64,
    /// Assignments that a leader is about to bring.
    answered: BTreeSet<u64>,
    /// What each generation gave to whom.
    given: BTreeMap<i32, BTreeMap<(String, i32), String>>,
    log: Vec<String>,
}

const PARTITIONS: u32 = 7;

impl World {
    fn new() -> Self {
        Self {
            group: GroupCoordinator::default(),
            clients: BTreeMap::new(),
            now_ms: 0,
            next_request: 0,
            answered: BTreeSet::new(),
            given: BTreeMap::new(),
            log: Vec::new(),
        }
    }

    fn request(&mut self) -> u64 {
        self.next_request += 1;
        self.next_request
    }

    fn told(client: &Client) -> Subscription {
        let mut owned: BTreeMap<String, Vec<i32>> = BTreeMap::new();
        client.owned.iter().for_each(|(topic, one)| owned.entry(topic.clone()).or_default().push(*one));
        Subscription { topics: vec!["t".into()], owned, generation: client.generation, ..Subscription::default() }
    }

    fn join(&mut self, number: usize) {
        let request = self.request();
        let client = self.clients.entry(number).or_default();
        let fresh = format!("m{number}-{request}");
        let asked = join(&client.member_id, &fresh, None, &Self::told(client));
        (client.waits_for, client.wants_join) = (Some(request), false);
        let replies = self.group.join(self.now_ms, request, asked);
        self.take(replies);
    }

    /// Hands answers to the clients that wait for them; no request is answered twice.
    fn take(&mut self, replies: Replies) {
        for (request, reply) in replies {
            assert!(self.answered.insert(request), "{request} is answered twice: {:?}", self.log);
            let Some((&number, _)) = self.clients.iter().find(|(_, client)| client.waits_for == Some(request)) else {
                continue;
            };
            let client = self.clients.get_mut(&number).unwrap();
            client.waits_for = None;
            match reply {
                Reply::Joined(Ok(joined)) => {
                    (client.member_id, client.generation) = (joined.member_id.clone(), joined.generation);
                    let assignments = self.assignments(&joined.members);
                    let request = self.request();
                    let client = self.clients.get_mut(&number).unwrap();
                    client.waits_for = Some(request);
                    let (id, generation) = (client.member_id.clone(), client.generation);
                    let replies = self.group.sync(self.now_ms, request, &id, None, generation, assignments);
                    self.take(replies);
                }
                Reply::Synced(Ok(bytes)) => {
                    let assignment = Assignment::from_bytes(&bytes).unwrap_or_default();
                    let all = assignment.partitions.into_iter();
                    let client = self.clients.get_mut(&number).unwrap();
                    let had = std::mem::take(&mut client.owned);
                    client.owned =
                        all.flat_map(|(topic, of)| of.into_iter().map(move |one| (topic.clone(), one))).collect();
                    // What is to be let go was let go: the others may have it.
                    client.wants_join = had.iter().any(|place| !client.owned.contains(place));
                    let given = self.given.entry(client.generation).or_default();
                    for place in &client.owned {
                        let other = given.insert(place.clone(), client.member_id.clone());
                        let is_free = other.is_none_or(|other| other == client.member_id);
                        assert!(is_free, "{place:?} has two owners in generation {}", client.generation);
                    }
                }
                Reply::Joined(Err(refusal)) | Reply::Synced(Err(refusal)) => {
                    if refusal == Refusal::UnknownMember {
                        (client.member_id, client.owned) = (String::new(), BTreeSet::new());
                    }
                    client.wants_join = true;
                }
                other => panic!("{other:?}"),
            }
        }
    }

    fn assignments(&self, members: &[(String, bytes::Bytes)]) -> Vec<(String, bytes::Bytes)> {
        let said = members.iter().map(|(id, told)| (id.clone(), Subscription::from_bytes(told).unwrap())).collect();
        let assigned = Assignor::CooperativeSticky.assign(&said, &[("t".to_owned(), PARTITIONS)].into());
        assigned.into_iter().map(|(id, assignment)| (id, assignment.encode().into())).collect()
    }

    fn heartbeat(&mut self, number: usize) {
        let Some(client) = self.clients.get(&number).filter(|client| client.waits_for.is_none()) else { return };
        if client.member_id.is_empty() {
            return;
        }
        let (id, generation) = (client.member_id.clone(), client.generation);
        let (heard, replies) = self.group.heartbeat(self.now_ms, &id, None, generation);
        let commit = self.group.check_commit(self.now_ms, &id, None, generation);
        if heard.is_ok() && self.group.state() == GroupState::Stable {
            assert_eq!(commit, Ok(()));
        }
        assert!(
            self.group.check_commit(self.now_ms, &id, None, generation - 1).is_err(),
            "an earlier generation commits"
        );
        let client = self.clients.get_mut(&number).unwrap();
        match heard {
            Ok(()) => {}
            Err(Refusal::UnknownMember) => {
                *client = Client { wants_join: true, ..Client::default() };
            }
            Err(_) => client.wants_join = true,
        }
        self.take(replies);
    }

    fn tick(&mut self, by_ms: u64) {
        self.now_ms += by_ms;
        let replies = self.group.tick(self.now_ms);
        self.take(replies);
    }

    /// Everybody who is left does what a client does until nothing moves.
    fn settle(&mut self) {
        let silent: Vec<usize> =
            self.clients.iter().filter(|(_, one)| one.is_silent).map(|(number, _)| *number).collect();
        silent.iter().for_each(|number| drop(self.clients.remove(number)));
        for _ in 0..200 {
            let numbers: Vec<usize> = self.clients.keys().copied().collect();
            for number in numbers {
                self.heartbeat(number);
                if self.clients[&number].wants_join && self.clients[&number].waits_for.is_none() {
                    self.join(number);
                }
            }
            self.tick(SESSION_MS / 4);
        }
        let owned: Vec<_> = self.clients.values().flat_map(|client| client.owned.iter()).collect();
        let distinct: BTreeSet<_> = owned.iter().collect();
        assert_eq!(owned.len(), distinct.len(), "one partition, one owner: {:?}", self.clients);
        match self.clients.len() {
            0 => assert_eq!(self.group.state(), GroupState::Empty, "{:?}", self.log),
            count => {
                assert_eq!(self.group.state(), GroupState::Stable, "{:?} {:?}", self.clients, self.log);
                assert_eq!(owned.len(), PARTITIONS as usize, "all are owned: {:?}", self.clients);
                assert_eq!(self.group.members().count(), count);
                let most = self.clients.values().map(|client| client.owned.len()).max().unwrap_or(0);
                let least = self.clients.values().map(|client| client.owned.len()).min().unwrap_or(0);
                assert!(most - least <= 1, "balanced: {:?}", self.clients);
            }
        }
    }
}

#[test]
fn whatever_members_do_each_partition_has_one_owner_in_a_generation() {
    let mut random = Random(seed("group coordinator", 1));
    let mut generations = 0;
    for _ in 0..300 {
        let mut world = World::new();
        for _ in 0..60 {
            let number = random.below(6);
            let what = random.below(8);
            world.log.push(format!("{} {number} {what}", world.now_ms));
            let client = world.clients.get(&number);
            let is_silent = client.is_some_and(|client| client.is_silent);
            let waits = client.is_some_and(|client| client.waits_for.is_some());
            match what {
                0 | 1 if !waits && !is_silent => world.join(number),
                2 | 3 if !is_silent => world.heartbeat(number),
                4 => {
                    if let Some(client) = world.clients.get_mut(&number) {
                        client.is_silent = true;
                    }
                }
                5 => {
                    if let Some(client) = world.clients.remove(&number)
                        && !client.member_id.is_empty()
                    {
                        let (_, replies) = world.group.leave(world.now_ms, &client.member_id);
                        world.take(replies);
                    }
                }
                _ => world.tick(random.below(120) as u64),
            }
        }
        world.settle();
        generations += world.group.generation();
    }
    tell!("group coordinator: {generations} generations");
    assert!(generations > 1000, "{generations}");
}

/// The only member of a group, in generation 1.
fn alone(instance: Option<&str>) -> GroupCoordinator {
    let mut group = GroupCoordinator::default();
    let told = Subscription { topics: vec!["t".into()], ..Subscription::default() };
    group.join(0, 1, join("", "a", instance, &told));
    group.sync(0, 2, "a", None, 1, vec![("a".into(), "all".into())]);
    assert_eq!(group.state(), GroupState::Stable);
    group
}

#[test]
fn a_static_member_comes_back_without_a_rebalance_and_fences_what_it_was() {
    let told = Subscription { topics: vec!["t".into()], ..Subscription::default() };
    let mut group = alone(Some("i"));
    let replies = group.join(50, 3, join("", "b", Some("i"), &told));
    let [(3, Reply::Joined(Ok(joined)))] = &replies[..] else { panic!("{replies:?}") };
    assert_eq!((joined.generation, joined.member_id.as_str()), (1, "b"));
    assert_eq!(group.sync(50, 4, "b", None, 1, Vec::new()), [(4, Reply::Synced(Ok("all".into())))]);
    assert_eq!(group.check_commit(50, "a", None, 1), Err(Refusal::UnknownMember));
    assert_eq!(group.check_commit(50, "b", None, 1), Ok(()));
    let fenced = Err(Refusal::FencedInstance);
    assert_eq!(group.heartbeat(50, "a", Some("i"), 1).0, fenced, "so that it does not take its name back");
    assert_eq!(group.check_commit(50, "a", Some("i"), 1), fenced);
    let replies = group.join(50, 5, join("a", "", Some("i"), &told));
    assert_eq!(replies, [(5, Reply::Joined(Err(Refusal::FencedInstance)))]);
}

#[test]
fn who_is_not_heard_of_goes_and_commits_no_more() {
    let mut group = alone(None);
    assert_eq!(group.heartbeat(SESSION_MS - 1, "a", None, 1).0, Ok(()));
    assert_eq!(group.next_deadline_ms(), Some(2 * SESSION_MS - 1));
    assert_eq!(group.check_commit(2 * SESSION_MS - 2, "a", None, 1), Ok(()));
    assert_eq!(group.check_commit(2 * SESSION_MS - 1, "a", None, 1), Err(Refusal::UnknownMember), "before any tick");
    group.tick(2 * SESSION_MS - 1);
    assert_eq!((group.state(), group.generation()), (GroupState::Empty, 2));
    assert_eq!(group.next_deadline_ms(), None);
}

#[test]
fn a_rebalance_does_not_wait_for_ever() {
    let told = Subscription { topics: vec!["t".into()], ..Subscription::default() };
    let mut group = alone(None);
    assert!(group.join(10, 3, join("", "b", None, &told)).is_empty(), "it waits for a");
    assert_eq!(group.heartbeat(20, "a", None, 1).0, Err(Refusal::RebalanceInProgress));
    assert_eq!(group.check_commit(20, "a", None, 1), Ok(()), "what it processed is to be known");
    let replies = group.tick(20 + SESSION_MS);
    let [(3, Reply::Joined(Ok(joined)))] = &replies[..] else { panic!("{replies:?}") };
    assert_eq!((joined.generation, joined.leader.as_str(), joined.members.len()), (2, "b", 1));
    assert_eq!(
        group.check_commit(20 + SESSION_MS, "b", None, 2),
        Err(Refusal::RebalanceInProgress),
        "not yet assigned"
    );
    let other = JoinRequest { protocols: vec![("other".into(), "".into())], ..join("", "c", None, &told) };
    let replies = group.join(130, 4, other);
    assert_eq!(replies, [(4, Reply::Joined(Err(Refusal::InconsistentProtocol)))]);
}

fn told() -> Subscription {
    Subscription { topics: vec!["t".into()], ..Subscription::default() }
}

/// Two members in generation 2, `a` first and so the leader.
fn two(instance: Option<&str>) -> GroupCoordinator {
    let mut group = alone(None);
    assert!(group.join(0, 3, join("", "b", instance, &told())).is_empty());
    let replies = group.join(0, 4, join("a", "", None, &told()));
    assert_eq!(replies.len(), 2, "{replies:?}");
    group.sync(0, 5, "b", instance, 2, Vec::new());
    group.sync(0, 6, "a", None, 2, vec![("a".into(), "one".into()), ("b".into(), "other".into())]);
    assert_eq!((group.state(), group.generation()), (GroupState::Stable, 2));
    group
}

#[test]
fn a_static_member_that_is_away_during_a_rebalance_stays_until_its_session_is_over() {
    let mut group = two(Some("i"));
    group.heartbeat(SESSION_MS - 1, "b", Some("i"), 2).0.unwrap();
    group.heartbeat(SESSION_MS - 1, "a", None, 2).0.unwrap();
    // The leader asks for another assignment, and b does not come in time.
    assert!(group.join(SESSION_MS, 7, join("a", "", None, &told())).is_empty(), "it waits for b");
    let replies = group.tick(2 * SESSION_MS - 2);
    assert!(replies.is_empty(), "{replies:?}");
    let replies = group.tick(2 * SESSION_MS - 1);
    let [(7, Reply::Joined(Ok(joined)))] = &replies[..] else { panic!("{replies:?}") };
    assert_eq!(
        (joined.generation, joined.members.len()),
        (3, 1),
        "its session was over before the rebalance had to end"
    );

    // With a session that is longer than the rebalance it is a member still, and keeps its name.
    let mut group = two(None);
    let long = JoinRequest { session_timeout_ms: 10_000, ..join("", "c", Some("i"), &told()) };
    group.join(0, 7, long.clone());
    group.join(0, 8, join("a", "", None, &told()));
    group.join(0, 9, join("b", "", None, &told()));
    group.sync(0, 10, "a", None, 3, Vec::new());
    assert_eq!((group.state(), group.generation()), (GroupState::Stable, 3));
    for (request, member) in [(11, "a"), (12, "b")] {
        assert!(group.join(1, request, join(member, "", None, &told())).is_empty());
    }
    let replies = group.tick(10_000 - 1);
    let joined: Vec<_> = replies.iter().filter(|(_, reply)| matches!(reply, Reply::Joined(Ok(_)))).collect();
    let [(11, Reply::Joined(Ok(leader))), _] = &joined[..] else { panic!("{replies:?}") };
    let names: Vec<&str> = leader.members.iter().map(|(id, ..)| id.as_str()).collect();
    assert_eq!((leader.generation, names), (4, vec!["a", "b", "c"]), "it is given partitions to come back to");
}

#[test]
fn who_asks_once_more_disturbs_nobody_unless_it_leads_or_has_something_new_to_say() {
    let check = |request: JoinRequest, is_answered: bool| {
        let mut group = two(None);
        let replies = group.join(1, 7, request.clone());
        assert_eq!(!replies.is_empty(), is_answered, "{request:?}: {replies:?}");
        assert_eq!(group.state() == GroupState::Stable, is_answered, "{request:?}");
    };
    check(join("b", "", None, &told()), true);
    check(join("a", "", None, &told()), false);
    let more = Subscription { topics: vec!["t".into(), "u".into()], ..Subscription::default() };
    check(join("b", "", None, &more), false);
}

#[test]
fn all_members_are_of_one_protocol_type() {
    let mut group = two(None);
    let other = JoinRequest { protocol_type: "connect".into(), ..join("", "c", None, &told()) };
    assert_eq!(group.join(1, 7, other.clone()), [(7, Reply::Joined(Err(Refusal::InconsistentProtocol)))]);
    let mut group = GroupCoordinator::default();
    assert_eq!(group.join(1, 1, other).len(), 1, "the first says which");
}
