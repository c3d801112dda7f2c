//! Membership of one classic consumer group, as Kafka's coordinator decides it. PURE.
//!
//! Each step takes the time and one request, and says which requests are answered and how. A join or a sync may be answered
//! later, by a step for another member or by [`GroupCoordinator::tick`]; a request is named by a number that the caller chose.
//! No clock, no I/O, no randomness: member ids are given by the caller.
//!
//! ```text
//! Empty --join--> Preparing --all joined, or time--> Completing --sync of the leader--> Stable
//!   ^                 ^ |                                |                                 |
//!   |                 | +--nobody joined--> Empty        +--a member leaves or is late-----+
//!   +--last member leaves--                              +--> Preparing <--join, leave, late member
//! ```
//!
//! A generation begins when a rebalance ends. Its members have what its leader assigned, and nothing before it said so. What
//! a member of an earlier generation asks for is refused: commits above all.

mod kept;
mod requests;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::protocol::Subscription;

pub use requests::{JoinRequest, Joined, Refusal, Replies, Reply, RequestId};

/// Where a group stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum GroupState {
    /// No members.
    Empty,
    /// Waits for members to join.
    PreparingRebalance,
    /// Waits for the leader's assignment.
    CompletingRebalance,
    /// Everybody has an assignment.
    Stable,
}

#[derive(Debug)]
struct Member {
    client_id: String,
    client_host: String,
    instance: Option<String>,
    session_timeout_ms: u64,
    rebalance_timeout_ms: u64,
    protocols: Vec<(String, Bytes)>,
    assignment: Bytes,
    /// When it is taken for dead, unless it is heard of.
    deadline_ms: u64,
    waiting_join: Option<RequestId>,
    waiting_sync: Option<RequestId>,
    /// It was kept by an earlier process, and has not been heard of since.
    is_unheard: bool,
}

impl Member {
    fn hear(&mut self, now_ms: u64) {
        (self.deadline_ms, self.is_unheard) = (now_ms.saturating_add(self.session_timeout_ms), false);
    }
}

/// One group. See the module.
///
/// ```
/// use topiclog::group::{GroupCoordinator, JoinRequest, Reply};
/// let mut group = GroupCoordinator::default();
/// let join = JoinRequest {
///     member_id: String::new(),
///     new_member_id: "m-1".into(),
///     protocol_type: "consumer".into(),
///     client_id: "billing".into(),
///     client_host: "127.0.0.1".into(),
///     group_instance_id: None,
///     session_timeout_ms: 45_000,
///     rebalance_timeout_ms: 60_000,
///     protocols: vec![("range".into(), "orders".into())],
/// };
/// let replies = group.join(0, 1, join);
/// let [(1, Reply::Joined(Ok(joined)))] = &replies[..] else { panic!("the only member waits for nobody") };
/// let replies = group.sync(0, 2, "m-1", None, joined.generation, vec![("m-1".into(), "all".into())]);
/// assert_eq!(replies, [(2, Reply::Synced(Ok("all".into())))]);
/// assert!(group.check_commit(1, "m-1", None, joined.generation).is_ok());
/// assert!(group.check_commit(1, "m-1", None, joined.generation - 1).is_err());
/// ```
#[derive(Debug, Default)]
pub struct GroupCoordinator {
    state: State,
    generation: i32,
    protocol_type: String,
    protocol: String,
    leader: String,
    /// By member id; the order of ids decides nothing that matters but who leads.
    members: BTreeMap<String, Member>,
    /// Static names, and who has them.
    instances: BTreeMap<String, String>,
    /// How often there was something new to be kept: see [`record`](Self::record).
    revision: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Empty,
    /// Until then members may join.
    Preparing {
        deadline_ms: u64,
    },
    /// Until then the leader may assign.
    Completing {
        deadline_ms: u64,
    },
    Stable,
}

impl GroupCoordinator {
    /// Where the group stands.
    pub fn state(&self) -> GroupState {
        match self.state {
            State::Empty => GroupState::Empty,
            State::Preparing { .. } => GroupState::PreparingRebalance,
            State::Completing { .. } => GroupState::CompletingRebalance,
            State::Stable => GroupState::Stable,
        }
    }

    /// The generation: how many rebalances have ended.
    pub fn generation(&self) -> i32 {
        self.generation
    }

    /// The ids of all members, in order.
    pub fn members(&self) -> impl Iterator<Item = &str> {
        self.members.keys().map(String::as_str)
    }

    /// What a member was assigned in the generation that holds now; `None` before the group is stable.
    pub fn assignment(&self, member_id: &str) -> Option<&Bytes> {
        let member = self.members.get(member_id)?;
        (self.state == State::Stable).then_some(&member.assignment)
    }

    /// When [`tick`](Self::tick) has something to do, in milliseconds of the caller's clock; `None` for never.
    pub fn next_deadline_ms(&self) -> Option<u64> {
        let of_state = match self.state {
            State::Preparing { deadline_ms } | State::Completing { deadline_ms } => Some(deadline_ms),
            State::Empty | State::Stable => None,
        };
        let waits = self.members.values().filter(|member| !self.is_waiting(member));
        waits.map(|member| member.deadline_ms).chain(of_state).min()
    }

    /// A member wants to be in, again or for the first time.
    pub fn join(&mut self, now_ms: u64, request: RequestId, join: JoinRequest) -> Replies {
        let mut replies = self.tick(now_ms);
        match self.try_join(now_ms, request, join, &mut replies) {
            Ok(()) => self.complete_join(now_ms, &mut replies),
            Err(refusal) => replies.push((request, Reply::Joined(Err(refusal)))),
        }
        replies
    }

    fn try_join(
        &mut self,
        now_ms: u64,
        request: RequestId,
        join: JoinRequest,
        replies: &mut Replies,
    ) -> Result<(), Refusal> {
        if !self.knows_a_protocol_of(&join) {
            return Err(Refusal::InconsistentProtocol);
        }
        let holder = join.group_instance_id.as_ref().and_then(|instance| self.instances.get(instance)).cloned();
        let id = match (join.member_id.is_empty(), holder) {
            // A static member that comes back takes the place of the one it was.
            (true, Some(holder)) => {
                self.replace(&holder, &join.new_member_id, replies);
                join.new_member_id.clone()
            }
            (true, None) => join.new_member_id.clone(),
            (false, Some(holder)) if holder != join.member_id => return Err(Refusal::FencedInstance),
            (false, _) if !self.members.contains_key(&join.member_id) => return Err(Refusal::UnknownMember),
            (false, _) => join.member_id.clone(),
        };
        let known = self.members.get(&id);
        let comes_back = join.group_instance_id.is_some() && join.member_id.is_empty();
        let says_the_same = known.is_some_and(|known| match comes_back {
            true => self.asks_for_the_same(&known.protocols, &join.protocols),
            false => known.protocols == join.protocols,
        });
        let assignment = known.map(|known| known.assignment.clone()).unwrap_or_default();
        if let Some(instance) = &join.group_instance_id {
            self.instances.insert(instance.clone(), id.clone());
        }
        let earlier = known.and_then(|known| known.waiting_join);
        if self.members.is_empty() {
            self.protocol_type = join.protocol_type;
        }
        let member = Member {
            client_id: join.client_id,
            client_host: join.client_host,
            instance: join.group_instance_id,
            session_timeout_ms: join.session_timeout_ms,
            rebalance_timeout_ms: join.rebalance_timeout_ms,
            protocols: join.protocols,
            assignment,
            deadline_ms: now_ms.saturating_add(join.session_timeout_ms),
            waiting_join: Some(request),
            waiting_sync: None,
            is_unheard: false,
        };
        if let Some(earlier) = earlier {
            replies.push((earlier, Reply::Joined(Err(Refusal::RebalanceInProgress))));
        }
        if let Some(replaced) = self.members.insert(id.clone(), member)
            && let Some(sync) = replaced.waiting_sync
        {
            replies.push((sync, Reply::Synced(Err(Refusal::RebalanceInProgress))));
        }
        // Who asks once more for what it was told already does not disturb the others. A leader that joins again has seen
        // something that asks for another assignment; one that comes back has not, as long as the same assignor is chosen.
        let keeps_generation = says_the_same
            && match self.state {
                State::Stable if comes_back => self.vote() == self.protocol,
                State::Stable => self.leader != id,
                State::Completing { .. } => !comes_back,
                State::Empty | State::Preparing { .. } => false,
            };
        if keeps_generation {
            let joined = self.joined(&id);
            if let Some(member) = self.members.get_mut(&id) {
                member.waiting_join = None;
            }
            self.revision += u64::from(comes_back);
            replies.push((request, Reply::Joined(Ok(joined))));
        } else {
            self.prepare(now_ms, replies);
        }
        Ok(())
    }

    /// Whether a static member that comes back is to read what it read. What else it says is of its process, not of what it
    /// wants: what it owns, in which generation, and what its assignor remembers.
    fn asks_for_the_same(&self, before: &[(String, Bytes)], now: &[(String, Bytes)]) -> bool {
        let told = |of: &[(String, Bytes)]| {
            let found = of.iter().find(|(name, _)| *name == self.protocol);
            found.map(|(_, told)| told.clone())
        };
        let topics = |told: &Bytes| {
            let said = Subscription::from_bytes(told).filter(|_| self.protocol_type == "consumer");
            said.map(|said| said.topics.into_iter().collect::<BTreeSet<_>>())
        };
        match (told(before), told(now)) {
            (Some(before), Some(now)) => {
                before == now || topics(&before).is_some_and(|asked| topics(&now) == Some(asked))
            }
            _ => false,
        }
    }

    fn knows_a_protocol_of(&self, join: &JoinRequest) -> bool {
        let others = || self.members.iter().filter(|(id, _)| **id != join.member_id).map(|(_, member)| member);
        if self.protocol_type != join.protocol_type && others().next().is_some() {
            return false;
        }
        join.protocols
            .iter()
            .any(|(name, _)| others().all(|other| other.protocols.iter().any(|(known, _)| known == name)))
    }

    fn replace(&mut self, old: &str, new: &str, replies: &mut Replies) {
        let Some(mut member) = self.members.remove(old) else { return };
        let (join, sync) = (member.waiting_join.take(), member.waiting_sync.take());
        replies.extend(join.map(|request| (request, Reply::Joined(Err(Refusal::FencedInstance)))));
        replies.extend(sync.map(|request| (request, Reply::Synced(Err(Refusal::FencedInstance)))));
        if self.leader == old {
            self.leader = new.to_owned();
        }
        self.members.insert(new.to_owned(), member);
    }

    /// A rebalance begins, unless one waits for members already. Who waits for an assignment has to join again.
    fn prepare(&mut self, now_ms: u64, replies: &mut Replies) {
        if let State::Preparing { .. } = self.state {
            return;
        }
        for member in self.members.values_mut() {
            if let Some(request) = member.waiting_sync.take() {
                replies.push((request, Reply::Synced(Err(Refusal::RebalanceInProgress))));
                // It was heard of just now, as it were: it waited for us.
                member.deadline_ms = now_ms.saturating_add(member.session_timeout_ms);
            }
        }
        let longest = self.members.values().map(|member| member.rebalance_timeout_ms).max().unwrap_or(0);
        self.state = State::Preparing { deadline_ms: now_ms.saturating_add(longest) };
    }

    /// Ends the wait for members if all have joined.
    fn complete_join(&mut self, now_ms: u64, replies: &mut Replies) {
        let State::Preparing { deadline_ms } = self.state else { return };
        let is_over = now_ms >= deadline_ms;
        if !is_over && self.members.values().any(|member| member.waiting_join.is_none()) {
            return;
        }
        // A static member may come back until its session is over; the others had their time.
        let is_late = |member: &Member| member.waiting_join.is_none() && member.instance.is_none();
        let late: Vec<String> =
            self.members.iter().filter(|(_, member)| is_late(member)).map(|(id, _)| id.clone()).collect();
        for id in late {
            self.forget(&id, replies);
        }
        let longest = self.members.values().map(|member| member.rebalance_timeout_ms).max().unwrap_or(0);
        let mut joined = self.members.iter().filter(|(_, member)| member.waiting_join.is_some());
        let Some(first) = joined.next().map(|(id, _)| id.clone()) else {
            if self.members.is_empty() {
                // A generation that ends without members counts too, so that none of it is mistaken for a later one.
                self.begin_generation();
                self.state = State::Empty;
                self.revision += 1;
            } else {
                self.state = State::Preparing { deadline_ms: now_ms.saturating_add(longest.max(1)) };
            }
            return;
        };
        self.begin_generation();
        self.protocol = self.vote();
        if self.members.get(&self.leader).is_none_or(|leader| leader.waiting_join.is_none()) {
            self.leader = first;
        }
        self.state = State::Completing { deadline_ms: now_ms.saturating_add(longest) };
        let ids: Vec<String> = self.members.keys().cloned().collect();
        for id in ids {
            let joined = self.joined(&id);
            let Some(member) = self.members.get_mut(&id) else { continue };
            member.assignment = Bytes::new();
            if let Some(request) = member.waiting_join.take() {
                member.deadline_ms = now_ms.saturating_add(member.session_timeout_ms);
                replies.push((request, Reply::Joined(Ok(joined))));
            }
        }
    }

    fn begin_generation(&mut self) {
        self.generation = self.generation.checked_add(1).unwrap_or(1);
    }

    /// Of the assignors that all know, the one that most like best.
    fn vote(&self) -> String {
        let mut votes: BTreeMap<&str, usize> = BTreeMap::new();
        let is_known =
            |name: &str| self.members.values().all(|one| one.protocols.iter().any(|(known, _)| known == name));
        for member in self.members.values() {
            if let Some((name, _)) = member.protocols.iter().find(|(name, _)| is_known(name)) {
                *votes.entry(name).or_default() += 1;
            }
        }
        votes.into_iter().max_by_key(|&(_, count)| count).map(|(name, _)| name.to_owned()).unwrap_or_default()
    }

    fn joined(&self, id: &str) -> Joined {
        let told = |member: &Member| {
            let of = member.protocols.iter().find(|(name, _)| *name == self.protocol);
            of.map(|(_, bytes)| bytes.clone()).unwrap_or_default()
        };
        let members = match self.leader == id {
            true => self.members.iter().map(|(id, member)| (id.clone(), told(member))).collect(),
            false => Vec::new(),
        };
        Joined {
            generation: self.generation,
            protocol: self.protocol.clone(),
            leader: self.leader.clone(),
            member_id: id.to_owned(),
            members,
        }
    }

    /// A member asks for its assignment; the leader brings everybody's.
    pub fn sync(
        &mut self,
        now_ms: u64,
        request: RequestId,
        member_id: &str,
        group_instance_id: Option<&str>,
        generation: i32,
        assignments: Vec<(String, Bytes)>,
    ) -> Replies {
        let mut replies = self.tick(now_ms);
        let checked = self.check(member_id, group_instance_id, generation).and(match self.state {
            State::Preparing { .. } | State::Empty => Err(Refusal::RebalanceInProgress),
            State::Completing { .. } | State::Stable => Ok(()),
        });
        if let Err(refusal) = checked {
            replies.push((request, Reply::Synced(Err(refusal))));
            return replies;
        }
        let is_stable = self.state == State::Stable;
        let is_leader = self.leader == member_id;
        if let Some(member) = self.members.get_mut(member_id) {
            member.hear(now_ms);
            if is_stable {
                replies.push((request, Reply::Synced(Ok(member.assignment.clone()))));
                return replies;
            }
            if let Some(earlier) = member.waiting_sync.replace(request) {
                replies.push((earlier, Reply::Synced(Err(Refusal::RebalanceInProgress))));
            }
        }
        if is_leader {
            for (id, assignment) in assignments {
                if let Some(member) = self.members.get_mut(&id) {
                    member.assignment = assignment;
                }
            }
            self.state = State::Stable;
            self.revision += 1;
            for member in self.members.values_mut() {
                if let Some(request) = member.waiting_sync.take() {
                    member.deadline_ms = now_ms.saturating_add(member.session_timeout_ms);
                    replies.push((request, Reply::Synced(Ok(member.assignment.clone()))));
                }
            }
        }
        replies
    }

    /// A member is alive.
    ///
    /// # Errors
    /// [`Refusal::RebalanceInProgress`] if it has to join again; the others if it is no longer a member.
    pub fn heartbeat(
        &mut self,
        now_ms: u64,
        member_id: &str,
        group_instance_id: Option<&str>,
        generation: i32,
    ) -> (Result<(), Refusal>, Replies) {
        let replies = self.tick(now_ms);
        let heard = self.check(member_id, group_instance_id, generation).and_then(|()| {
            if let Some(member) = self.members.get_mut(member_id) {
                member.hear(now_ms);
            }
            match self.state {
                State::Preparing { .. } => Err(Refusal::RebalanceInProgress),
                _ => Ok(()),
            }
        });
        (heard, replies)
    }

    /// What was decided could not be kept: everybody has to join again, so that nobody acts on it.
    pub(crate) fn begin_again(&mut self, now_ms: u64) -> Replies {
        let mut replies = Vec::new();
        if !self.members.is_empty() {
            self.prepare(now_ms, &mut replies);
        }
        replies
    }

    /// Changes whenever members may have to do something.
    pub(crate) fn stage(&self) -> (GroupState, i32, u64, usize) {
        (self.state(), self.generation, self.revision, self.members.len())
    }

    /// A member goes.
    ///
    /// # Errors
    /// [`Refusal::UnknownMember`] if it is not there.
    pub fn leave(&mut self, now_ms: u64, member_id: &str) -> (Result<(), Refusal>, Replies) {
        let mut replies = self.tick(now_ms);
        if !self.members.contains_key(member_id) {
            return (Err(Refusal::UnknownMember), replies);
        }
        self.forget(member_id, &mut replies);
        self.prepare(now_ms, &mut replies);
        self.complete_join(now_ms, &mut replies);
        (Ok(()), replies)
    }

    /// Whether a member of this generation may commit. While the group waits for members to join again it may: what it
    /// processed is to be known to whoever gets its partitions.
    ///
    /// # Errors
    /// [`Refusal::UnknownMember`], [`Refusal::IllegalGeneration`]: its partitions may belong to another by now.
    /// [`Refusal::RebalanceInProgress`] between a join and its assignment: it has no partitions yet.
    pub fn check_commit(
        &self,
        now_ms: u64,
        member_id: &str,
        group_instance_id: Option<&str>,
        generation: i32,
    ) -> Result<(), Refusal> {
        self.check(member_id, group_instance_id, generation)?;
        if self.is_overdue(now_ms, member_id) {
            return Err(Refusal::UnknownMember);
        }
        match self.state {
            State::Completing { .. } => Err(Refusal::RebalanceInProgress),
            _ => Ok(()),
        }
    }

    /// Lets time pass: members that were not heard of go, and rebalances that waited long enough go on without the late.
    pub fn tick(&mut self, now_ms: u64) -> Replies {
        let mut replies = Vec::new();
        let late: Vec<String> =
            self.members.iter().filter(|(_, member)| self.is_late(member, now_ms)).map(|(id, _)| id.clone()).collect();
        for id in &late {
            self.forget(id, &mut replies);
        }
        let has_unassigned = match self.state {
            State::Completing { deadline_ms } => now_ms >= deadline_ms,
            _ => false,
        };
        if has_unassigned {
            // The leader did not assign, or others did not ask: who did not ask goes.
            let silent = self.members.iter().filter(|(_, member)| member.waiting_sync.is_none());
            let silent: Vec<String> = silent.map(|(id, _)| id.clone()).collect();
            silent.iter().for_each(|id| self.forget(id, &mut replies));
        }
        if !late.is_empty() || has_unassigned {
            self.prepare(now_ms, &mut replies);
        }
        self.complete_join(now_ms, &mut replies);
        replies
    }

    /// Whether a static name is taken: who comes back under it is nobody new.
    pub(crate) fn has_instance(&self, instance: &str) -> bool {
        self.instances.contains_key(instance)
    }

    /// Whether a member was not heard of for so long that the next step takes it out.
    pub(crate) fn is_overdue(&self, now_ms: u64, member_id: &str) -> bool {
        self.members.get(member_id).is_some_and(|member| self.is_late(member, now_ms))
    }

    /// Whoever waits for an answer is alive.
    fn is_waiting(&self, member: &Member) -> bool {
        member.waiting_join.is_some() || member.waiting_sync.is_some()
    }

    fn is_late(&self, member: &Member, now_ms: u64) -> bool {
        !self.is_waiting(member) && now_ms >= member.deadline_ms
    }

    fn check(&self, member_id: &str, group_instance_id: Option<&str>, generation: i32) -> Result<(), Refusal> {
        let holder = group_instance_id.and_then(|instance| self.instances.get(instance));
        if holder.is_some_and(|holder| holder != member_id) {
            return Err(Refusal::FencedInstance);
        }
        if !self.members.contains_key(member_id) {
            return Err(Refusal::UnknownMember);
        }
        if generation != self.generation { Err(Refusal::IllegalGeneration) } else { Ok(()) }
    }

    fn forget(&mut self, id: &str, replies: &mut Replies) {
        let Some(member) = self.members.remove(id) else { return };
        if let Some(instance) = &member.instance
            && self.instances.get(instance).is_some_and(|holder| holder == id)
        {
            self.instances.remove(instance);
        }
        let refused = Refusal::UnknownMember;
        replies.extend(member.waiting_join.map(|request| (request, Reply::Joined(Err(refused)))));
        replies.extend(member.waiting_sync.map(|request| (request, Reply::Synced(Err(refused)))));
    }
}
