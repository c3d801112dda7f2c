//! A group as it is kept, in Kafka's record, and as it is taken up again.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::{GroupCoordinator, JoinRequest, Member, Replies, State};
use crate::clock::Timestamp;
use crate::group::schema::{GroupMetadataValue, MemberMetadata};

/// What a group's record has besides names: version, generation, time, lengths.
const GROUP_BYTES: usize = 32;
/// What a member has there besides names and data: lengths and time-outs.
const MEMBER_BYTES: usize = 24;

impl GroupCoordinator {
    /// Changes with each outcome that is to be kept: an assignment, an empty group, a static member under a new id.
    pub(crate) fn revision(&self) -> u64 {
        self.revision
    }

    /// The group as it is kept, in Kafka's record; `None` while a rebalance goes on.
    pub(crate) fn record(&self, now_ms: Timestamp) -> Option<GroupMetadataValue> {
        matches!(self.state, State::Empty | State::Stable).then(|| self.snapshot(now_ms))
    }

    /// The group as it is, also in the midst of a rebalance.
    pub(crate) fn snapshot(&self, now_ms: Timestamp) -> GroupMetadataValue {
        let some = |text: &String| Some(text.clone()).filter(|text| !text.is_empty() && !self.members.is_empty());
        let millis = |ms: u64| i32::try_from(ms).unwrap_or(i32::MAX);
        let member = |(id, member): (&String, &Member)| {
            let told = member.protocols.iter().find(|(name, _)| *name == self.protocol);
            MemberMetadata {
                member_id: id.clone(),
                group_instance_id: member.instance.clone(),
                client_id: member.client_id.clone(),
                client_host: member.client_host.clone(),
                rebalance_timeout_ms: millis(member.rebalance_timeout_ms),
                session_timeout_ms: millis(member.session_timeout_ms),
                subscription: told.map(|(_, bytes)| bytes.to_vec()).unwrap_or_default(),
                assignment: member.assignment.to_vec(),
            }
        };
        GroupMetadataValue {
            protocol_type: self.protocol_type.clone(),
            generation: self.generation,
            protocol: some(&self.protocol),
            leader: some(&self.leader),
            state_timestamp_ms: now_ms,
            members: self.members.iter().map(member).collect(),
        }
    }

    /// How many bytes the record may come to have once this member is in. For one that is new what each member says counts
    /// twice, since what it is assigned may name all of it again. One that is in already is not to lose its place to a guess.
    pub(crate) fn bytes_with(&self, join: &JoinRequest, is_new: bool) -> usize {
        let told = |protocols: &[(String, Bytes)]| protocols.iter().map(|(_, told)| told.len()).max().unwrap_or(0);
        let names = |names: [&str; 3], instance: &Option<String>| {
            MEMBER_BYTES + names.map(str::len).iter().sum::<usize>() + instance.as_ref().map_or(0, String::len)
        };
        let id = if join.member_id.is_empty() { &join.new_member_id } else { &join.member_id };
        let was = join.group_instance_id.as_ref().and_then(|instance| self.instances.get(instance));
        let others = self.members.iter().filter(|(other, _)| *other != id && Some(*other) != was);
        let of_other = |(id, member): (&String, &Member)| {
            let told = told(&member.protocols);
            let names = names([id, &member.client_id, &member.client_host], &member.instance);
            names + told + if is_new { told.max(member.assignment.len()) } else { 0 }
        };
        let of_new = names([id, &join.client_id, &join.client_host], &join.group_instance_id)
            + told(&join.protocols) * (1 + usize::from(is_new));
        let leader = self.members.keys().map(String::len).max().unwrap_or(0).max(id.len());
        let protocol = join.protocols.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        GROUP_BYTES + join.protocol_type.len() + protocol + leader + of_new + others.map(of_other).sum::<usize>()
    }

    /// How many bytes the record has with what a leader assigns; 0 if it is not its turn to assign.
    pub(crate) fn bytes_assigned(&self, member_id: &str, assignments: &[(String, Bytes)]) -> usize {
        if self.leader != member_id || !matches!(self.state, State::Completing { .. }) {
            return 0;
        }
        let unassigned = self.snapshot(0).encode().map_or(0, |record| record.len());
        let of_members = assignments.iter().filter(|(id, _)| self.members.contains_key(id));
        unassigned + of_members.map(|(_, bytes)| bytes.len()).sum::<usize>()
    }

    /// A group as it was kept. Its members have a whole session to be heard of; those that cannot be alive are left out, and
    /// that is then to be kept too: the revision is not 0.
    pub(crate) fn restore(
        now_ms: u64,
        record: &GroupMetadataValue,
        may_live: impl Fn(&MemberMetadata) -> bool,
    ) -> Self {
        let protocol = record.protocol.clone().unwrap_or_default();
        let millis = |ms: i32| u64::try_from(ms).unwrap_or(0);
        let member = |kept: &MemberMetadata| {
            let member = Member {
                client_id: kept.client_id.clone(),
                client_host: kept.client_host.clone(),
                instance: kept.group_instance_id.clone(),
                session_timeout_ms: millis(kept.session_timeout_ms),
                // Version 0 has none: Kafka then takes that of the session.
                rebalance_timeout_ms: millis(kept.rebalance_timeout_ms.max(kept.session_timeout_ms)),
                protocols: vec![(protocol.clone(), kept.subscription.clone().into())],
                assignment: kept.assignment.clone().into(),
                deadline_ms: now_ms.saturating_add(millis(kept.session_timeout_ms)),
                waiting_join: None,
                waiting_sync: None,
                is_unheard: true,
            };
            (kept.member_id.clone(), member)
        };
        let living = || record.members.iter().filter(|kept| may_live(kept));
        let members: BTreeMap<String, Member> = living().map(member).collect();
        let instance = |kept: &MemberMetadata| Some((kept.group_instance_id.clone()?, kept.member_id.clone()));
        let instances = living().filter_map(instance).collect();
        let has_fewer = members.len() < record.members.len();
        let mut group = Self {
            state: if members.is_empty() { State::Empty } else { State::Stable },
            generation: record.generation.max(0),
            protocol_type: record.protocol_type.clone(),
            protocol,
            leader: record.leader.clone().unwrap_or_default(),
            members,
            instances,
            revision: has_fewer.into(),
        };
        if has_fewer && !group.members.is_empty() {
            // What the missing had is nobody's: those that are left have to join again.
            let replies = group.begin_again(now_ms);
            debug_assert!(replies.is_empty(), "nobody waits for a group that was just read");
        }
        group
    }

    /// Takes members out that an earlier process kept, that have not been heard of since, and of which this is true.
    pub(crate) fn forget_unheard(&mut self, now_ms: u64, is_gone: impl Fn(&str) -> bool) -> Replies {
        let gone = self.members.iter().filter(|(_, member)| member.is_unheard && is_gone(&member.client_host));
        let gone: Vec<String> = gone.map(|(id, _)| id.clone()).collect();
        let mut replies = Vec::new();
        gone.iter().for_each(|id| self.forget(id, &mut replies));
        if !gone.is_empty() {
            self.prepare(now_ms, &mut replies);
            self.complete_join(now_ms, &mut replies);
        }
        replies
    }
}
