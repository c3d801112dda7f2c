//! Membership of one consumer in a group of its store, a step at a time.
//!
//! ```text
//! Unjoined --join--> Joining --answer--> Syncing --answer--> Stable
//!    ^                  ^                                      |
//!    |                  +------- told to join again -----------+   (who shares all it has first gives it up)
//!    +--- taken for dead: what it had is lost -----------------+
//! ```
//!
//! Nothing here waits: a step that has to wait for others says so by doing nothing, and is tried again.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use regex_lite::Regex;

use crate::client::{ConsumerOptions, GroupMetadata, Polled, TopicFilter};
use crate::error::{Error, Result};
use crate::group::members::fenced;
use crate::group::membership::{IN_PROCESS, LiveGroup};
use crate::group::{Answer, Assignment, Assignor, Groups, JoinRequest, Joined, Refusal, Reply, Subscription};
use crate::ids::{TopicName, TopicPartition};
use crate::store::Store;

/// What a member wants to read.
#[derive(Debug)]
enum Filter {
    Names(Vec<TopicName>),
    Pattern(Regex),
}

#[derive(Debug)]
enum Stage {
    Unjoined,
    Joining(Answer),
    Syncing(Answer),
    Stable,
}

/// See the module.
pub(super) struct Member {
    groups: Groups,
    live: Arc<LiveGroup>,
    group: String,
    instance: Option<String>,
    client_id: String,
    assignors: Vec<Assignor>,
    poll_interval_ms: u64,
    filter: Filter,
    stage: Stage,
    member_id: String,
    /// The id that it gets if it has none: known before the answer, so that it can be taken out whenever it goes.
    asked_id: String,
    generation: i32,
    is_leader: bool,
    /// What it reads, by its last assignment.
    owned: BTreeSet<TopicPartition>,
    /// Another has taken its static name: it does not join again.
    is_fenced: bool,
    /// Something asks for another assignment.
    must_join: bool,
    /// Partitions of all topics that the group reads, as the leader saw them when it assigned.
    assigned_by: BTreeMap<String, u32>,
    /// What it told the group to read.
    told_topics: Vec<String>,
    seen_topics_version: Option<u64>,
    seen_live_version: u64,
    heard_at: Duration,
    events: VecDeque<Polled>,
}

impl std::fmt::Debug for Member {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut debug = f.debug_struct("Member");
        debug.field("group", &self.group).field("member_id", &self.member_id).field("generation", &self.generation);
        debug.field("stage", &self.stage).field("owned", &self.owned).finish_non_exhaustive()
    }
}

fn store(member: &Member) -> &Store {
    member.groups.store()
}

impl Member {
    pub(super) fn new(groups: &Groups, options: &ConsumerOptions, topics: &TopicFilter) -> Result<Self> {
        let none = || Error::config("group.id", "a subscription joins a group, and this consumer has none");
        let group = options.group.clone().ok_or_else(none)?;
        let assignor = |name: &String| {
            let unknown = || Error::config("partition.assignment.strategy", format!("{name:?} is not known"));
            Assignor::by_name(name).ok_or_else(unknown)
        };
        let assignors = options.assignors.iter().map(assignor).collect::<Result<Vec<_>>>()?;
        if assignors.is_empty() {
            return Err(Error::config("partition.assignment.strategy", "must name at least one assignor"));
        }
        if options.max_poll_interval_ms == 0 {
            return Err(Error::config("max.poll.interval.ms", "must not be 0"));
        }
        let filter = match topics {
            TopicFilter::Names(names) => {
                names.iter().try_for_each(|name| groups.store().topic(name.as_str()).map(drop))?;
                Filter::Names(names.clone())
            }
            TopicFilter::Pattern(pattern) => {
                let whole = Regex::new(&format!("^(?:{pattern})$"));
                Filter::Pattern(whole.map_err(|error| Error::invalid("pattern of topics", error.to_string()))?)
            }
        };
        let live = groups.live(&group);
        Ok(Self {
            groups: groups.clone(),
            seen_live_version: live.version(),
            live,
            group,
            instance: options.group_instance_id.clone(),
            client_id: options.client_id.clone(),
            assignors,
            poll_interval_ms: options.max_poll_interval_ms,
            filter,
            stage: Stage::Unjoined,
            member_id: String::new(),
            asked_id: String::new(),
            generation: -1,
            is_leader: false,
            owned: BTreeSet::new(),
            is_fenced: false,
            must_join: false,
            assigned_by: BTreeMap::new(),
            told_topics: Vec::new(),
            seen_topics_version: None,
            heard_at: Duration::ZERO,
            events: VecDeque::new(),
        })
    }

    /// As whom it stands; `None` before it has an assignment.
    pub(super) fn metadata(&self) -> Option<GroupMetadata> {
        (self.generation >= 0 && !self.member_id.is_empty()).then(|| self.standing())
    }

    fn standing(&self) -> GroupMetadata {
        GroupMetadata::new(&self.group, self.generation, &self.member_id, self.instance.as_deref())
    }

    /// What is its own by the last assignment.
    pub(super) fn owned(&self) -> &BTreeSet<TopicPartition> {
        &self.owned
    }

    /// It has nothing of these, whatever it was assigned.
    pub(super) fn let_go(&mut self, partitions: &[TopicPartition]) {
        self.owned.retain(|id| !partitions.contains(id));
    }

    /// Whether it keeps what it has while the group joins again: if all its assignors allow it.
    fn is_cooperative(&self) -> bool {
        self.assignors.iter().all(|&assignor| assignor == Assignor::CooperativeSticky)
    }

    /// How long nothing happens by itself from now on: until then only a ring of the store's bell brings news.
    pub(super) fn quiet_for(&self) -> Duration {
        self.quiet_after(store(self).clock_ref().monotonic())
    }

    fn quiet_after(&self, now: Duration) -> Duration {
        let beat = (self.heard_at + self.heartbeat_interval()).saturating_sub(now);
        let deadline = self.live.next_deadline_ms().map(Duration::from_millis);
        deadline.map_or(beat, |deadline| beat.min(deadline.saturating_sub(now)))
    }

    fn heartbeat_interval(&self) -> Duration {
        Duration::from_millis((self.poll_interval_ms / 3).max(1))
    }

    /// Does what can be done without waiting. Returns what has become of the assignment, one thing at a time.
    pub(super) fn step(&mut self) -> Result<Option<Polled>> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(Some(event));
            }
            if self.is_fenced {
                return Err(fenced(&self.standing(), Refusal::FencedInstance));
            }
            let has_moved = match &self.stage {
                Stage::Unjoined => self.join()?,
                Stage::Joining(answer) => match answer.take() {
                    Some(Reply::Joined(joined)) => self.joined(joined)?,
                    _ => self.wait_for_others()?,
                },
                Stage::Syncing(answer) => match answer.take() {
                    Some(Reply::Synced(assigned)) => self.synced(assigned)?,
                    _ => self.wait_for_others()?,
                },
                Stage::Stable => self.stay()?,
            };
            if !has_moved && self.events.is_empty() {
                return Ok(None);
            }
        }
    }

    /// The topics to read, as they are now.
    fn topics(&self) -> Result<Vec<String>> {
        match &self.filter {
            Filter::Names(names) => {
                for name in names {
                    // A topic that is gone is not to look like one without news.
                    store(self).topic(name.as_str())?;
                }
                Ok(names.iter().map(ToString::to_string).collect())
            }
            Filter::Pattern(pattern) => {
                let names = store(self).topics().into_iter().map(|name| name.to_string());
                Ok(names.filter(|name| !name.starts_with("__") && pattern.is_match(name)).collect())
            }
        }
    }

    fn join(&mut self) -> Result<bool> {
        let version = store(self).topics_version();
        self.told_topics = self.topics()?;
        self.seen_topics_version = Some(version);
        let mut owned: BTreeMap<String, Vec<i32>> = BTreeMap::new();
        for place in &self.owned {
            let partition = i32::try_from(place.partition.get()).unwrap_or(i32::MAX);
            owned.entry(place.topic.to_string()).or_default().push(partition);
        }
        let told = Subscription {
            topics: self.told_topics.clone(),
            owned,
            generation: self.generation,
            ..Subscription::default()
        };
        let told: bytes::Bytes = told.encode().into();
        if self.member_id.is_empty() {
            let name = self.instance.as_deref().unwrap_or(&self.client_id);
            self.asked_id = format!("{name}-{}", store(self).new_id()?);
        }
        let request = JoinRequest {
            member_id: self.member_id.clone(),
            new_member_id: self.asked_id.clone(),
            protocol_type: "consumer".to_owned(),
            client_id: self.client_id.clone(),
            client_host: IN_PROCESS.to_owned(),
            group_instance_id: self.instance.clone(),
            // A poll tells the group that it is alive only once in a third of the interval.
            session_timeout_ms: self.poll_interval_ms.saturating_add(self.poll_interval_ms.div_ceil(3)),
            rebalance_timeout_ms: self.poll_interval_ms,
            protocols: self.assignors.iter().map(|one| (one.name().to_owned(), told.clone())).collect(),
        };
        self.seen_live_version = self.live.version();
        self.stage = Stage::Joining(self.groups.join(&self.group, request)?);
        self.must_join = false;
        self.heard_at = store(self).clock_ref().monotonic();
        Ok(true)
    }

    /// Time passes for those that are waited for.
    fn wait_for_others(&mut self) -> Result<bool> {
        if self.quiet_for().is_zero() || self.live.version() != self.seen_live_version {
            self.seen_live_version = self.live.version();
            self.heard_at = store(self).clock_ref().monotonic();
            self.groups.tick_group(&self.group)?;
            return Ok(self.live.version() != self.seen_live_version);
        }
        Ok(false)
    }

    fn joined(&mut self, joined: std::result::Result<Joined, Refusal>) -> Result<bool> {
        let joined = match joined {
            Ok(joined) => joined,
            Err(refusal) => return self.refused(refusal),
        };
        // If anything fails from here on it joins again: its answer is taken, and there will be no other.
        self.stage = Stage::Unjoined;
        self.is_leader = joined.leader == joined.member_id;
        (self.member_id, self.generation) = (joined.member_id.clone(), joined.generation);
        let assignments = if self.is_leader { self.assign(&joined)? } else { Vec::new() };
        self.seen_live_version = self.live.version();
        let answer = self.groups.sync(&self.standing(), assignments)?;
        self.stage = Stage::Syncing(answer);
        Ok(true)
    }

    /// As the leader: what each member is to read.
    fn assign(&mut self, joined: &Joined) -> Result<Vec<(String, bytes::Bytes)>> {
        let members: BTreeMap<String, Subscription> = joined
            .members
            .iter()
            .map(|(id, told)| (id.clone(), Subscription::from_bytes(told).unwrap_or_default()))
            .collect();
        self.assigned_by = self.partitions_of(members.values().flat_map(|member| &member.topics));
        let unknown = || Error::unsupported(format!("the assignor {:?}, which the group chose", joined.protocol));
        let assignor = Assignor::by_name(&joined.protocol).ok_or_else(unknown)?;
        let assigned = assignor.assign(&members, &self.assigned_by);
        Ok(assigned.into_iter().map(|(id, assignment)| (id, assignment.encode().into())).collect())
    }

    fn partitions_of<'a>(&self, topics: impl Iterator<Item = &'a String>) -> BTreeMap<String, u32> {
        let count = |name: &String| Some((name.clone(), store(self).topic(name).ok()?.partition_count()));
        topics.collect::<BTreeSet<_>>().into_iter().filter_map(count).collect()
    }

    fn synced(&mut self, assigned: std::result::Result<bytes::Bytes, Refusal>) -> Result<bool> {
        let bytes = match assigned {
            Ok(bytes) => bytes,
            Err(refusal) => return self.refused(refusal),
        };
        let assignment = Assignment::from_bytes(&bytes).unwrap_or_default();
        let mut new = BTreeSet::new();
        for (topic, partitions) in assignment.partitions {
            let Ok(topic) = TopicName::new(&topic) else { continue };
            let numbers = partitions.into_iter().filter_map(|number| u32::try_from(number).ok());
            new.extend(numbers.map(|number| TopicPartition::new(topic.clone(), number)));
        }
        self.stage = Stage::Stable;
        self.heard_at = store(self).clock_ref().monotonic();
        let revoked: Vec<_> = self.owned.difference(&new).cloned().collect();
        let added: Vec<_> = new.difference(&self.owned).cloned().collect();
        // What goes to another is free only once this member has joined again without it.
        self.must_join = !revoked.is_empty();
        self.owned = new;
        self.events.extend(Some(revoked).filter(|gone| !gone.is_empty()).map(Polled::Revoked));
        self.events.extend(Some(added).filter(|new| !new.is_empty()).map(Polled::Assigned));
        Ok(true)
    }

    /// The protocol says no: what then.
    fn refused(&mut self, refusal: Refusal) -> Result<bool> {
        match refusal {
            Refusal::RebalanceInProgress | Refusal::IllegalGeneration => self.stage = Stage::Unjoined,
            Refusal::UnknownMember => self.lose(),
            Refusal::FencedInstance => {
                let named = self.standing();
                self.lose();
                self.is_fenced = true;
                return Err(fenced(&named, refusal));
            }
            Refusal::InconsistentProtocol => {
                self.stage = Stage::Unjoined;
                let why = format!("the members of {:?} and this one have no assignor in common", self.group);
                return Err(Error::config("partition.assignment.strategy", why));
            }
        }
        Ok(true)
    }

    /// It is a member no longer, and what it had may be another's.
    fn lose(&mut self) {
        self.member_id.clear();
        self.asked_id.clear();
        (self.generation, self.is_leader, self.stage, self.must_join) = (-1, false, Stage::Unjoined, false);
        let lost: Vec<_> = std::mem::take(&mut self.owned).into_iter().collect();
        self.events.extend(Some(lost).filter(|lost| !lost.is_empty()).map(Polled::Lost));
    }

    /// Stays in the group, and notices what asks for another assignment.
    fn stay(&mut self) -> Result<bool> {
        let now = store(self).clock_ref().monotonic();
        let version = self.live.version();
        // It has to say that it is there, or a deadline of others is over, and nobody else may be there to notice.
        let is_due = self.quiet_after(now).is_zero();
        if version != self.seen_live_version || is_due {
            self.seen_live_version = version;
            self.heard_at = now;
            match self.groups.heartbeat(&self.standing())? {
                Ok(()) => {}
                Err(Refusal::RebalanceInProgress) => self.must_join = true,
                Err(Refusal::IllegalGeneration) => {
                    // The group went on without it.
                    self.lose();
                    return Ok(true);
                }
                Err(refusal) => return self.refused(refusal),
            }
        }
        self.notice_topics()?;
        if !self.must_join {
            return Ok(false);
        }
        self.stage = Stage::Unjoined;
        if !self.is_cooperative() && !self.owned.is_empty() {
            let revoked = std::mem::take(&mut self.owned).into_iter().collect();
            self.events.push_back(Polled::Revoked(revoked));
        }
        Ok(true)
    }

    /// Other topics may be there now, or other partitions.
    fn notice_topics(&mut self) -> Result<()> {
        let version = store(self).topics_version();
        if self.seen_topics_version == Some(version) {
            return Ok(());
        }
        let topics = self.topics()?;
        self.seen_topics_version = Some(version);
        let is_outdated = self.is_leader && self.partitions_of(self.assigned_by.keys()) != self.assigned_by;
        self.must_join |= topics != self.told_topics || is_outdated;
        Ok(())
    }

    /// Leaves the group, so that what it had goes to others at once. A static member stays: it is to come back.
    pub(super) fn leave(&mut self) -> Result<()> {
        match self.take_id() {
            Some(member_id) => self.groups.leave(&self.group, &member_id).map(drop),
            None => Ok(()),
        }
    }

    /// Under which id the group knows it, if it is to leave.
    fn take_id(&mut self) -> Option<String> {
        let (known, asked) = (std::mem::take(&mut self.member_id), std::mem::take(&mut self.asked_id));
        let id = if known.is_empty() { asked } else { known };
        (self.instance.is_none() && !id.is_empty()).then_some(id)
    }
}

impl Drop for Member {
    /// Leaves without writing: others notice at their next step.
    fn drop(&mut self) {
        if let Some(member_id) = self.take_id() {
            self.live.depart(member_id);
            store(self).bell().ring();
        }
    }
}
