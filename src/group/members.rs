//! What members of groups ask of an open store: to join, to be assigned, to stay, to go, and to commit.

use std::sync::Arc;

use bytes::Bytes;

use super::commit::{CommitOptions, check_group};
use super::coordinator::{GroupCoordinator, GroupState, JoinRequest, Refusal, Replies};
use super::membership::{
    Answer, GroupDescription, IN_PROCESS, LiveGroup, LiveState, OTHERS_AT_ONCE, may_live, take_back,
};
use super::offset_store::Groups;
use super::protocol::Subscription;
use super::schema::{GroupMetadataValue, Key, MemberMetadata, partition_for_group};
use super::shards::RECORD_BYTES;
use super::wire::{STRING_BYTES_MAX, SchemaError};
use crate::client::{GroupMetadata, OffsetAndMetadata};
use crate::error::{Error, Result};
use crate::ids::TopicPartition;
use crate::partition::sync_window::Awaited;
use crate::partition::writer::Placed;
use crate::record::RecordRef;
use crate::store::brokers_topics::OFFSETS_TOPIC;
use crate::sync::MutexGuard;

/// Most bytes of what a member says when it joins: its names, and what it tells the leader. Kafka bounds a request as a whole.
const JOIN_BYTES_MAX: usize = 1 << 20;
/// Most members of a group (Kafka's `group.max.size`). A static member that is one already comes back whatever it says.
const MEMBERS_MAX: usize = 1000;

impl Groups {
    /// A member wants to be in, again or for the first time. One that has no id yet and is given none gets a new one. The answer
    /// comes when the members that the group waits for have joined, or their time is over.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an empty name of the group, a name of more than 32,767 bytes, be it of the group, of the member or
    /// of an assignor, no assignor, more than 1 MiB of names and data, a group of 1,000 members, or one whose record this member
    /// would make larger than `max.message.bytes` of `__consumer_offsets`;
    /// [`Error::Unsupported`] if a broker keeps the group in the newer protocol; [`Error::ReadOnly`]; those of reading the
    /// group. A refusal by the rules of the protocol is the answer.
    pub fn join(&self, group: &str, mut join: JoinRequest) -> Result<Answer> {
        if join.protocols.is_empty() {
            return Err(Error::invalid("assignors of a member", "must have at least one"));
        }
        if join.member_id.is_empty() && join.new_member_id.is_empty() {
            let name = join.group_instance_id.as_deref().unwrap_or(&join.client_id);
            join.new_member_id = format!("{name}-{}", self.store().new_id()?);
        }
        check_said(&join)?;
        let is_of_this_process = join.client_host == IN_PROCESS;
        let bytes_max = self.record_bytes_max(group)?;
        self.step(group, |state, now_ms, bell| {
            // Who is gone counts no more.
            let mut replies = state.coordinator_mut().tick(now_ms);
            if is_of_this_process {
                // Where consumers share the process of the group, nobody serves those that an earlier broker had.
                replies.extend(state.coordinator_mut().forget_unheard(now_ms, |host| host != IN_PROCESS));
            }
            let coordinator = state.coordinator_mut();
            let comes_back = join.group_instance_id.as_ref().is_some_and(|instance| coordinator.has_instance(instance));
            let is_new = join.member_id.is_empty() && !comes_back;
            if is_new && coordinator.members().count() >= MEMBERS_MAX {
                let limit = format!("must be at most {MEMBERS_MAX}: let others leave first");
                return (Err(Error::invalid("members of a group", limit)), replies);
            }
            let bytes = coordinator.bytes_with(&join, is_new);
            if bytes > bytes_max {
                return (Err(too_large(group, bytes, bytes_max)), replies);
            }
            let (request, answer) = state.request(bell, &self.store().clock());
            replies.extend(state.coordinator_mut().join(now_ms, request, join));
            (Ok(answer), replies)
        })?
    }

    /// How many bytes the record of a group may have.
    fn record_bytes_max(&self, group: &str) -> Result<usize> {
        check_group(group)?;
        let shards = self.writable_shards()?;
        let shard = shards.at(partition_for_group(group, shards.count))?;
        Ok(shard.record_bytes_max().saturating_sub(RECORD_BYTES + Key::Group { group }.encode().len()))
    }

    /// A member asks for its assignment; the leader brings those of all.
    ///
    /// Durable when the answer is given: the assignment, as `__consumer_offsets` says.
    ///
    /// # Errors
    /// As [`join`](Self::join).
    pub fn sync(&self, member: &GroupMetadata, assignments: Vec<(String, Bytes)>) -> Result<Answer> {
        let GroupMetadata { group, generation, member_id, group_instance_id } = member;
        let instance = group_instance_id.as_deref();
        let bytes_max = self.record_bytes_max(group)?;
        self.step(group, |state, now_ms, bell| {
            let bytes = state.coordinator_mut().bytes_assigned(member_id, &assignments);
            if bytes > bytes_max {
                return (Err(too_large(group, bytes, bytes_max)), Replies::new());
            }
            let (request, answer) = state.request(bell, &self.store().clock());
            let replies = state.coordinator_mut().sync(now_ms, request, member_id, instance, *generation, assignments);
            (Ok(answer), replies)
        })?
    }

    /// A member is alive. The inner result is the protocol's: whether it may go on.
    ///
    /// # Errors
    /// As [`join`](Self::join).
    pub fn heartbeat(&self, member: &GroupMetadata) -> Result<Result<(), Refusal>> {
        let GroupMetadata { group, generation, member_id, group_instance_id } = member;
        let instance = group_instance_id.as_deref();
        self.step(group, |state, now_ms, _| state.coordinator_mut().heartbeat(now_ms, member_id, instance, *generation))
    }

    /// A member goes. The inner result is the protocol's: whether it was there.
    ///
    /// # Errors
    /// As [`join`](Self::join).
    pub fn leave(&self, group: &str, member_id: &str) -> Result<Result<(), Refusal>> {
        self.step(group, |state, now_ms, _| state.coordinator_mut().leave(now_ms, member_id))
    }

    /// Takes all members out of a group, as an administrator does (Kafka's `removeMembersFromConsumerGroup`): what they had is
    /// lost to them, and those that still poll join again. Returns how many there were.
    ///
    /// # Errors
    /// As [`join`](Self::join).
    pub fn remove_members(&self, group: &str) -> Result<usize> {
        self.step(group, |state, now_ms, _| {
            let members: Vec<String> = state.coordinator_mut().members().map(str::to_owned).collect();
            let mut replies = Replies::new();
            for member in &members {
                replies.extend(state.coordinator_mut().leave(now_ms, member).1);
            }
            (members.len(), replies)
        })
    }

    /// Lets time pass for every group that has had members since the store was opened: who was not heard of goes, and rebalances
    /// that waited long enough go on. Consumers of this process do it while they poll; a broker calls it.
    ///
    /// # Errors
    /// As [`join`](Self::join); the first, after all groups were looked at.
    pub fn tick(&self) -> Result<()> {
        let names: Vec<String> = self.shared.live.lock().by_name.keys().cloned().collect();
        self.tick_all(names)
    }

    /// Lets time pass for these groups. What all of them keep is appended before any of it is waited for, so that one sync of a
    /// partition serves all groups that are in it.
    pub(super) fn tick_all(&self, names: Vec<String>) -> Result<()> {
        let (mut first, mut begun) = (Ok(()), Vec::new());
        for name in names {
            match self.begin(&name, |state, now_ms, _| ((), state.coordinator_mut().tick(now_ms))) {
                Ok(step) => begun.push((name, step)),
                Err(error) => first = first.and(Err(error)),
            }
        }
        for (name, step) in begun {
            let ended = self.end(&name, step);
            first = first.and(ended);
        }
        first
    }

    pub(crate) fn tick_group(&self, group: &str) -> Result<()> {
        self.step(group, |state, now_ms, _| ((), state.coordinator_mut().tick(now_ms)))
    }

    /// Commits offsets as a member, as one batch: all of them hold, or none. Nothing that a later generation commits stands
    /// before it.
    ///
    /// Durable when this returns: what the options say.
    ///
    /// # Errors
    /// [`Error::Fenced`] if it is not a member, or of another generation: its partitions may be another's by now. Those of
    /// [`commit`](Self::commit).
    pub fn commit_as(
        &self,
        member: &GroupMetadata,
        offsets: &[(TopicPartition, OffsetAndMetadata)],
        options: &CommitOptions,
    ) -> Result<()> {
        self.commit_batch(&[(&member.group, offsets)], options, Some(member))
    }

    /// Where a group stands and who is in it; `None` for one that nobody knows. Members that cannot be there any more are not
    /// shown: of an earlier process that had the store open, or silent for longer than their session.
    ///
    /// # Errors
    /// As [`list`](Self::list).
    pub fn describe(&self, group: &str) -> Result<Option<GroupDescription>> {
        let now_ms = self.store().clock().now_ms();
        let live = self.shared.live.lock().by_name.get(group).cloned();
        if let Some(live) = live {
            let (departed, state) = (live.departed(), live.state.lock());
            if let Some(coordinator) = &state.coordinator {
                let monotonic_ms = self.monotonic_ms();
                let is_there = |member: &MemberMetadata| {
                    !departed.contains(&member.member_id) && !coordinator.is_overdue(monotonic_ms, &member.member_id)
                };
                let record = coordinator.snapshot(now_ms);
                return Ok(Some(GroupDescription::of_present(coordinator.state(), record, is_there)));
            }
        }
        let metadata = self.read(group, |table| {
            table.group(group).map(|group| (group.metadata.clone(), group.is_of_newer_protocol))
        })?;
        let of_table = |(metadata, is_of_newer_protocol): (Option<GroupMetadataValue>, bool)| {
            let metadata = metadata.unwrap_or_default();
            let is_empty = metadata.members.is_empty() && !is_of_newer_protocol;
            let state = if is_empty { GroupState::Empty } else { GroupState::Stable };
            GroupDescription::of_present(state, metadata, may_live)
        };
        Ok(metadata.flatten().map(of_table))
    }

    /// A group before it is asked for what its members may refuse: who is gone is taken out, those that were dropped and those
    /// whose session is over.
    pub(super) fn let_go(&self, group: &str) -> Result<Arc<LiveGroup>> {
        let live = self.live(group);
        if live.is_due(|| self.monotonic_ms()) {
            self.tick_group(group)?;
        }
        Ok(live)
    }

    /// Whether a step of a group that has members by its record may take one out: also of one that was not looked at since the
    /// store was opened.
    pub(super) fn may_let_go(&self, group: &str) -> bool {
        let live = self.shared.live.lock().by_name.get(group).cloned();
        live.is_none_or(|live| live.is_due(|| self.monotonic_ms()) || live.state.lock().coordinator.is_none())
    }

    /// Refuses to take from members what they use: one of these topics, or the group if there are none. As long as the lock is
    /// held nobody joins.
    pub(super) fn lock_unused<'a>(
        &self,
        live: &'a LiveGroup,
        group: &str,
        topics: Option<&[TopicPartition]>,
    ) -> Result<MutexGuard<'a, LiveState>> {
        let state = live.state.lock();
        let Some(coordinator) = &state.coordinator else { return Ok(state) };
        let reads = |told: &[u8], place: &TopicPartition| {
            let said = Subscription::from_bytes(told);
            said.is_none_or(|said| said.topics.iter().any(|topic| topic == place.topic.as_str()))
        };
        for member in coordinator.snapshot(0).members {
            let is_used = topics.is_none_or(|topics| topics.iter().any(|place| reads(&member.subscription, place)));
            if is_used {
                let limit = format!("{group:?} is used by its member {:?}: let it leave first", member.member_id);
                return Err(Error::invalid("group", limit));
            }
        }
        Ok(state)
    }

    /// The members of a group in this process; made at the first use.
    pub(crate) fn live(&self, group: &str) -> Arc<LiveGroup> {
        self.shared.live.lock().get_or_make(group, || self.monotonic_ms())
    }

    /// Locks a group, with its coordinator read in.
    fn lock_live<'a>(&self, live: &'a LiveGroup, group: &str) -> Result<MutexGuard<'a, LiveState>> {
        let mut state = live.state.lock();
        if state.coordinator.is_none() {
            let read = |table: &super::offsets::GroupTable| {
                table.group(group).map(|found| (found.metadata.clone(), found.is_of_newer_protocol))
            };
            let (metadata, is_of_newer_protocol) = self.read(group, read)?.flatten().unwrap_or_default();
            if is_of_newer_protocol {
                let what = format!("to join {group:?}, a group of the newer protocol, whose members a broker keeps");
                return Err(Error::unsupported(what));
            }
            let now_ms = self.monotonic_ms();
            let coordinator = match &metadata {
                Some(metadata) => GroupCoordinator::restore(now_ms, metadata, may_live),
                None => GroupCoordinator::default(),
            };
            // What is in the log has the revision 0.
            state.kept_revision = 0;
            state.coordinator = Some(coordinator);
            self.note_members(group, &mut state);
        }
        Ok(state)
    }

    /// Notes whether the group has members, if that has changed: before anything is appended that they decided.
    fn note_members(&self, group: &str, state: &mut LiveState) {
        let has_members = state.has_members();
        if state.is_noted != has_members {
            self.shared.in_use.note(group, has_members);
            state.is_noted = has_members;
        }
    }

    fn monotonic_ms(&self) -> u64 {
        u64::try_from(self.store().clock().monotonic().as_millis()).unwrap_or(u64::MAX)
    }

    /// One step of a group: decide, keep what was decided, wait until it is kept, answer.
    fn step<T>(
        &self,
        group: &str,
        decide: impl FnOnce(&mut LiveState, u64, &Arc<crate::clock::notify::Bell>) -> (T, Replies),
    ) -> Result<T> {
        let step = self.begin(group, decide)?;
        let ended = self.end(group, step);
        for _ in 0..OTHERS_AT_ONCE {
            let due = self.shared.live.lock().look_at_next(self.monotonic_ms());
            // Of what fails there nothing is lost: who was taken out is out, and the next step of that group keeps it.
            if let Some(name) = due {
                self.tick_all(vec![name]).ok();
            }
        }
        ended
    }

    /// The first half of a step: what is decided is in the log, and not yet waited for.
    fn begin<T>(
        &self,
        group: &str,
        decide: impl FnOnce(&mut LiveState, u64, &Arc<crate::clock::notify::Bell>) -> (T, Replies),
    ) -> Result<Step<T>> {
        check_group(group)?;
        self.writable_shards()?;
        let live = self.live(group);
        let bell = self.store().bell();
        let mut state = self.lock_live(&live, group)?;
        let now_ms = self.monotonic_ms();
        let before = state.coordinator_mut().stage();
        let mut replies = Replies::new();
        for member in live.take_departed() {
            replies.extend(state.coordinator_mut().leave(now_ms, &member).1);
        }
        let (value, more) = decide(&mut state, now_ms, &bell);
        replies.extend(more);
        self.note_members(group, &mut state);
        let kept = self.keep(group, &mut state);
        let has_changed = state.coordinator_mut().stage() != before;
        drop(state);
        Ok(Step { live, value, replies, kept, has_changed, now_ms })
    }

    /// The other half: waits until it is kept, and answers.
    fn end<T>(&self, group: &str, step: Step<T>) -> Result<T> {
        let Step { live, value, mut replies, kept, has_changed, now_ms } = step;
        let kept = kept.and_then(|placed| match placed {
            Some((placed, awaited)) => self.await_kept(group, &placed, awaited),
            None => Ok(()),
        });
        if kept.is_err() {
            take_back(&mut replies);
            replies.extend(live.state.lock().coordinator_mut().begin_again(now_ms));
        }
        if has_changed || !replies.is_empty() || kept.is_err() {
            live.deliver(replies);
            live.changed();
            self.store().bell().ring();
        }
        drop(live);
        self.forget_unused(group);
        kept.map(|()| value)
    }

    /// Forgets a group without members that nobody holds on to: everything about it is in the log.
    pub(super) fn forget_unused(&self, group: &str) {
        self.shared.live.lock().forget_unused(group);
    }

    /// Appends what is new in a group that is to be kept.
    fn keep(&self, group: &str, state: &mut LiveState) -> Result<Option<(Placed, Awaited)>> {
        let revision = state.coordinator_mut().revision();
        if revision == state.kept_revision {
            return Ok(None);
        }
        let Some(record) = state.coordinator_mut().record(self.store().clock().now_ms()) else { return Ok(None) };
        let unreadable = |error: SchemaError| Error::invalid("record of a group", error.to_string());
        let (key, value) = (Key::Group { group }.encode(), record.encode().map_err(unreadable)?);
        // Nothing goes into the log that the next open could not read.
        let record = GroupMetadataValue::decode(&value).map_err(unreadable)?;
        let shards = self.writable_shards()?;
        let shard = shards.at(partition_for_group(group, shards.count))?;
        let mut of_shard = shard.state.lock();
        let table = of_shard.loaded(&shard.partition)?;
        let (placed, awaited) =
            shard.append(&[RecordRef::new(Some(&key), Some(&value))], &CommitOptions::default(), None)?;
        table.describe(placed.offset, group, record);
        state.kept_revision = revision;
        Ok(Some((placed, awaited)))
    }

    fn await_kept(&self, group: &str, placed: &Placed, awaited: Awaited) -> Result<()> {
        let shards = self.writable_shards()?;
        let shard = shards.at(partition_for_group(group, shards.count))?;
        shard.partition.log.acknowledge(awaited, placed)
    }

    /// Holds a group in the state in which a member may commit, until the commit is appended.
    pub(super) fn lock_for_commit<'a>(
        &self,
        live: &'a LiveGroup,
        member: &GroupMetadata,
    ) -> Result<MutexGuard<'a, LiveState>> {
        let mut state = self.lock_live(live, &member.group)?;
        let instance = member.group_instance_id.as_deref();
        let coordinator = state.coordinator_mut();
        let checked = coordinator.check_commit(self.monotonic_ms(), &member.member_id, instance, member.generation);
        match checked {
            Ok(()) => Ok(state),
            Err(refusal) => Err(fenced(member, refusal)),
        }
    }
}

#[cfg(test)]
impl Groups {
    /// Joins a group that nobody is in.
    pub(super) fn only_member_of(&self, group: &str) -> GroupMetadata {
        let request = JoinRequest {
            member_id: String::new(),
            new_member_id: "m-1".into(),
            protocol_type: "consumer".into(),
            client_id: "billing".into(),
            client_host: "10.0.0.7".into(),
            group_instance_id: None,
            session_timeout_ms: 45_000,
            rebalance_timeout_ms: 60_000,
            protocols: vec![("range".into(), "t".into())],
        };
        let answer = self.join(group, request).unwrap();
        let Some(super::Reply::Joined(Ok(joined))) = answer.take() else { panic!("it waits for nobody") };
        let member = GroupMetadata::new(group, joined.generation, &joined.member_id, None);
        self.sync(&member, vec![("m-1".into(), "all".into())]).unwrap();
        member
    }
}

fn too_large(group: &str, bytes: usize, bytes_max: usize) -> Error {
    let limit = format!(
        "of {group:?} may come to {bytes} bytes and must have at most {bytes_max}: raise max.message.bytes of \
         {OFFSETS_TOPIC}, or let fewer members join, or with fewer topics each"
    );
    Error::invalid("record of a group", limit)
}

/// A step that is in the log.
struct Step<T> {
    live: Arc<LiveGroup>,
    value: T,
    replies: Replies,
    kept: Result<Option<(Placed, Awaited)>>,
    has_changed: bool,
    now_ms: u64,
}

/// What a member says goes into the group's record, where each name has a length of 16 bits.
fn check_said(join: &JoinRequest) -> Result<()> {
    let mut names = vec![
        ("member id", join.member_id.as_str()),
        // Where none was given it is the static name, or what the client calls itself, and 37 bytes more.
        ("new member id", &join.new_member_id),
        ("protocol type", &join.protocol_type),
        ("client id", &join.client_id),
        ("client host", &join.client_host),
    ];
    names.extend(join.group_instance_id.iter().map(|name| ("group.instance.id", name.as_str())));
    names.extend(join.protocols.iter().map(|(name, _)| ("name of an assignor", name.as_str())));
    if let Some((field, _)) = names.iter().find(|(_, name)| name.len() > STRING_BYTES_MAX) {
        return Err(Error::invalid(*field, format!("must have at most {STRING_BYTES_MAX} bytes")));
    }
    let said = names.iter().map(|(_, name)| name.len()).chain(join.protocols.iter().map(|(_, told)| told.len()));
    if said.sum::<usize>() > JOIN_BYTES_MAX {
        let limit = format!("must have at most {JOIN_BYTES_MAX} bytes of names and data");
        return Err(Error::invalid("what a member says", limit));
    }
    Ok(())
}

/// What a refusal is to a caller of this crate.
pub(crate) fn fenced(member: &GroupMetadata, refusal: Refusal) -> Error {
    let GroupMetadata { group, generation, member_id, .. } = member;
    let why = match refusal {
        Refusal::UnknownMember => "it was taken for dead, or has left",
        Refusal::IllegalGeneration => "that generation is over",
        Refusal::RebalanceInProgress => "a rebalance goes on, and it has no partitions yet",
        Refusal::FencedInstance => "another has taken its static name",
        Refusal::InconsistentProtocol => "the group has no assignor that it knows",
    };
    Error::Fenced { who: format!("member {member_id:?} of {group:?} in generation {generation}: {why}") }
}
