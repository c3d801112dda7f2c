//! What the records of `__consumer_offsets` fold into: the committed offsets of each group. PURE.
//!
//! Records come in the order of their offsets, the last of a key wins. Commits of a transaction wait for its marker: a COMMIT
//! lets those through that nothing newer has overtaken, an ABORT drops them. A tombstone takes a committed offset away, and
//! what waits for a marker beside it. Expiry is Kafka's rule as a function of the time.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use super::commit::value;
use super::commit_again::Located;
use super::protocol::Subscription;
use super::schema::{GroupMetadataValue, Key, OffsetCommitValue};
use super::wire::{Decoded, SchemaError};
use crate::client::OffsetAndMetadata;
use crate::clock::Timestamp;
use crate::ids::{TopicName, TopicPartition, Uuid};

/// How far a group has come in a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CommittedOffset {
    /// The next offset to read.
    pub offset: i64,
    /// The leader epoch of the last record that was read; `None` if the committer did not say.
    pub leader_epoch: Option<i32>,
    /// What the committer wrote beside it.
    pub metadata: Arc<str>,
    /// When it was committed, in milliseconds since 1970-01-01 UTC.
    pub commit_timestamp_ms: Timestamp,
    /// When it ends, if an old client asked for that.
    pub expire_timestamp_ms: Option<Timestamp>,
    /// The topic it was committed for; `None` if the committer did not say. Another topic of the same name has another id.
    pub topic_id: Option<Uuid>,
    /// Where the record is in the partition of `__consumer_offsets`.
    pub(crate) record_offset: i64,
}

impl CommittedOffset {
    /// Takes in everything that a record says but its metadata.
    fn renew(&mut self, record_offset: i64, value: &OffsetCommitValue) {
        self.offset = value.offset;
        self.leader_epoch = (value.leader_epoch >= 0).then_some(value.leader_epoch);
        self.commit_timestamp_ms = value.commit_timestamp_ms;
        self.expire_timestamp_ms = (value.expire_timestamp_ms >= 0).then_some(value.expire_timestamp_ms);
        self.topic_id = value.topic_id;
        self.record_offset = record_offset;
    }
}

/// What is kept of a group in one partition.
#[derive(Debug)]
pub(crate) struct Progress {
    pub(crate) committed: CommittedOffset,
    /// What was found of the topic that this was committed for.
    located: Option<Located>,
}

impl Progress {
    /// What was found of the topic, if nothing has changed since, and this commit differs in no more than how far it goes.
    #[inline]
    pub(super) fn located_for(&self, topics_version: u64, offset: &OffsetAndMetadata) -> Option<&Located> {
        let is_same = |known| Some(known) == self.committed.topic_id;
        let is_again =
            is_same_note(&self.committed.metadata, offset.note()) && offset.known_topic_id().is_none_or(is_same);
        self.located.as_ref().filter(|located| is_again && located.topics_version == topics_version)
    }

    /// Takes in a commit that differs in no more than how far it goes. Whether it passes a tombstone that is kept for readers.
    #[inline]
    pub(super) fn go_on(&mut self, record_offset: i64, offset: &OffsetAndMetadata, now_ms: Timestamp) -> bool {
        let Self { committed, located } = self;
        let (Some(topic_id), Some(located)) = (committed.topic_id, located) else { return false };
        let before = committed.offset;
        committed.renew(record_offset, &value(offset, topic_id, now_ms));
        located.held_tombstone.is_passed(before..committed.offset)
    }
}

/// One group.
#[derive(Debug, Default)]
pub(crate) struct Group {
    pub(crate) offsets: BTreeMap<TopicPartition, Progress>,
    /// Of a classic group.
    pub(crate) metadata: Option<GroupMetadataValue>,
    /// Where the record is that says so.
    metadata_offset: i64,
    /// It is of the newer protocol, whose members are not looked at.
    pub(crate) is_of_newer_protocol: bool,
}

impl Group {
    /// Whether it is a classic group that has members, by its record.
    pub(crate) fn has_members(&self) -> bool {
        let has_members = self.metadata.as_ref().is_some_and(|metadata| !metadata.members.is_empty());
        has_members && !self.is_of_newer_protocol
    }

    /// Whether it is a classic group that once had members, or was made to have some, and has none.
    fn is_left(&self) -> bool {
        let is_empty = self.metadata.as_ref().is_some_and(|metadata| metadata.members.is_empty());
        is_empty && !self.is_of_newer_protocol
    }

    fn is_nothing(&self) -> bool {
        self.offsets.is_empty() && self.metadata.is_none() && !self.is_of_newer_protocol
    }
}

/// What a tombstone takes away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Removed {
    pub(crate) group: Arc<str>,
    /// What the group has committed there; `None` for what is kept of the group itself.
    pub(crate) place: Option<TopicPartition>,
}

/// A commit that waits for the marker of its transaction.
#[derive(Clone, Debug)]
struct Pending {
    group: Arc<str>,
    place: TopicPartition,
    committed: CommittedOffset,
}

/// All groups of one partition of `__consumer_offsets`.
#[derive(Debug, Default)]
pub(crate) struct GroupTable {
    groups: BTreeMap<Arc<str>, Group>,
    pending: BTreeMap<i64, Vec<Pending>>,
    /// Names that many groups share, kept once.
    topics: HashMap<String, TopicName>,
    empty_metadata: Option<Arc<str>>,
}

impl GroupTable {
    /// The groups, in order of their names.
    pub(crate) fn groups(&self) -> impl Iterator<Item = (&Arc<str>, &Group)> {
        self.groups.iter()
    }

    pub(crate) fn group(&self, name: &str) -> Option<&Group> {
        self.groups.get(name)
    }

    /// The next record. `producer` is the one whose transaction it is part of, if it is.
    pub(crate) fn apply(
        &mut self,
        record_offset: i64,
        producer: Option<i64>,
        key: &[u8],
        value: Option<&[u8]>,
    ) -> Decoded<()> {
        match (Key::decode(key)?, value) {
            (Key::OffsetCommit { group, topic, partition }, Some(value)) => {
                let value = OffsetCommitValue::decode(value)?;
                let place = self.place(topic, partition)?;
                self.commit(record_offset, producer, group, &place, &value);
            }
            (Key::OffsetCommit { group, topic, partition }, None) => {
                let place = self.place(topic, partition)?;
                self.forget(record_offset, group, &place);
            }
            (Key::Group { group }, Some(value)) => {
                self.describe(record_offset, group, GroupMetadataValue::decode(value)?);
            }
            (Key::Group { group }, None) => self.forget_group(record_offset, group),
            (Key::ConsumerGroup { group }, Some(_)) => self.entry(group).is_of_newer_protocol = true,
            (Key::ConsumerGroup { group }, None) => self.change(group, |group| group.is_of_newer_protocol = false),
            (Key::Other(_), _) => {}
        }
        Ok(())
    }

    /// Takes in what is kept of a classic group.
    pub(crate) fn describe(&mut self, record_offset: i64, group: &str, metadata: GroupMetadataValue) {
        let group = self.entry(group);
        (group.metadata, group.metadata_offset) = (Some(metadata), record_offset);
    }

    /// A tombstone at this offset holds. What stands behind it in the log stays.
    pub(crate) fn remove(&mut self, record_offset: i64, removed: &Removed) {
        match &removed.place {
            Some(place) => self.forget(record_offset, &removed.group, place),
            None => self.forget_group(record_offset, &removed.group),
        }
    }

    #[inline]
    pub(super) fn group_mut(&mut self, name: &str) -> Option<&mut Group> {
        self.groups.get_mut(name)
    }

    /// Notes what was found of the topic that a group has committed for.
    pub(super) fn note_located(&mut self, group: &str, place: &TopicPartition, topic_id: Uuid, located: &Located) {
        if let Some(found) = self.groups.get_mut(group).and_then(|group| group.offsets.get_mut(place))
            && found.committed.topic_id == Some(topic_id)
        {
            found.located = Some(located.clone());
        }
    }

    /// Takes a commit in. Returns the offset that it took the place of.
    pub(crate) fn commit(
        &mut self,
        record_offset: i64,
        producer: Option<i64>,
        group: &str,
        place: &TopicPartition,
        value: &OffsetCommitValue,
    ) -> Option<i64> {
        if producer.is_none()
            && let Some(group) = self.groups.get_mut(group)
            && let Some(Progress { committed: found, located }) = group.offsets.get_mut(place)
        {
            // Most often: a group comes further in a partition, and has nothing else to say than before.
            let before = found.offset;
            if found.record_offset <= record_offset && is_same_note(&found.metadata, &value.metadata) {
                if found.topic_id != value.topic_id {
                    *located = None;
                }
                found.renew(record_offset, value);
                return Some(before);
            }
        }
        let metadata = if value.metadata.is_empty() {
            Arc::clone(self.empty_metadata.get_or_insert_with(|| "".into()))
        } else {
            value.metadata.as_str().into()
        };
        let mut committed = CommittedOffset {
            offset: -1,
            leader_epoch: None,
            metadata,
            commit_timestamp_ms: -1,
            expire_timestamp_ms: None,
            topic_id: None,
            record_offset: -1,
        };
        committed.renew(record_offset, value);
        let Some(producer) = producer else { return self.settle(group, place, committed) };
        let group = self.name(group);
        self.pending.entry(producer).or_default().push(Pending { group, place: place.clone(), committed });
        None
    }

    /// A newer commit is not overtaken by an older one that comes in later.
    fn settle(&mut self, group: &str, place: &TopicPartition, committed: CommittedOffset) -> Option<i64> {
        let offsets = &mut self.entry(group).offsets;
        match offsets.get_mut(place) {
            Some(found) if found.committed.record_offset > committed.record_offset => Some(found.committed.offset),
            found => {
                let before = found.as_ref().map(|found| found.committed.offset);
                let new = Progress { committed, located: None };
                match found {
                    Some(found) => *found = new,
                    None => drop(offsets.insert(place.clone(), new)),
                }
                before
            }
        }
    }

    fn forget(&mut self, record_offset: i64, group: &str, place: &TopicPartition) {
        let is_older = |committed: &CommittedOffset| committed.record_offset < record_offset;
        for pending in self.pending.values_mut() {
            pending.retain(|one| *one.group != *group || one.place != *place || !is_older(&one.committed));
        }
        self.change(group, |group| {
            if group.offsets.get(place).is_some_and(|found| is_older(&found.committed)) {
                group.offsets.remove(place);
            }
        });
    }

    fn forget_group(&mut self, record_offset: i64, group: &str) {
        self.change(group, |group| {
            if group.metadata_offset < record_offset {
                group.metadata = None;
            }
        });
    }

    /// The marker of a producer's transaction, or what is known of it without one.
    pub(crate) fn end_transaction(&mut self, producer: i64, is_committed: bool) {
        for pending in self.pending.remove(&producer).unwrap_or_default() {
            if is_committed {
                self.settle(&pending.group, &pending.place, pending.committed);
            }
        }
    }

    /// Everything below this offset is decided. What was aborted has been dropped by then, so that the rest is committed: as
    /// it is where a marker went before its data.
    pub(crate) fn settle_below(&mut self, last_stable_offset: i64) {
        for (producer, waiting) in std::mem::take(&mut self.pending) {
            for pending in waiting {
                if pending.committed.record_offset < last_stable_offset {
                    self.settle(&pending.group, &pending.place, pending.committed);
                } else {
                    self.pending.entry(producer).or_default().push(pending);
                }
            }
        }
    }

    /// Everything whose time is over: offsets, and behind them each classic group that is left without members and offsets.
    /// `retention_ms` counts from the last commit, or from the time that the group became empty; a group with members loses
    /// only what none of them has subscribed to, one of the newer protocol nothing. What is being committed is not over.
    pub(crate) fn over<'a>(
        &'a self,
        now_ms: Timestamp,
        retention_ms: i64,
        in_flight: impl Iterator<Item = (&'a str, &'a TopicPartition)>,
    ) -> Vec<Removed> {
        let pending = self.pending.values().flatten().map(|pending| (&*pending.group, &pending.place));
        let mut waiting: HashMap<&str, HashSet<&TopicPartition>> = HashMap::new();
        for (group, place) in pending.chain(in_flight) {
            waiting.entry(group).or_default().insert(place);
        }
        let mut over = Vec::new();
        for (name, group) in &self.groups {
            let waiting = waiting.get(&**name);
            let Some(rule) = ExpiryRule::of(group) else { continue };
            let is_over = |(place, Progress { committed, .. }): &(&TopicPartition, &Progress)| {
                if waiting.is_some_and(|waiting| waiting.contains(place)) || rule.is_kept(place) {
                    return false;
                }
                match committed.expire_timestamp_ms {
                    Some(end) => now_ms >= end,
                    None => now_ms.saturating_sub(rule.base_ms(committed)) >= retention_ms,
                }
            };
            let before = over.len();
            let removed = |place: Option<&TopicPartition>| Removed { group: Arc::clone(name), place: place.cloned() };
            over.extend(group.offsets.iter().filter(is_over).map(|(place, _)| removed(Some(place))));
            if over.len() - before == group.offsets.len() && waiting.is_none() && group.is_left() {
                over.push(removed(None));
            }
        }
        over
    }

    fn place(&mut self, topic: &str, partition: i32) -> Decoded<TopicPartition> {
        let partition = u32::try_from(partition).map_err(|_| SchemaError::Malformed("a partition is negative"))?;
        if let Some(found) = self.topics.get(topic) {
            return Ok(TopicPartition::new(found.clone(), partition));
        }
        let name = TopicName::new(topic).map_err(|_| SchemaError::Malformed("a topic has no legal name"))?;
        self.topics.insert(topic.to_owned(), name.clone());
        Ok(TopicPartition::new(name, partition))
    }

    fn name(&self, group: &str) -> Arc<str> {
        self.groups.get_key_value(group).map_or_else(|| group.into(), |(name, _)| Arc::clone(name))
    }

    fn entry(&mut self, name: &str) -> &mut Group {
        if !self.groups.contains_key(name) {
            self.groups.insert(name.into(), Group::default());
        }
        self.groups.get_mut(name).expect("it was inserted if it was not there")
    }

    fn change(&mut self, name: &str, change: impl FnOnce(&mut Group)) {
        let Some(group) = self.groups.get_mut(name) else { return };
        change(group);
        if group.is_nothing() {
            self.groups.remove(name);
        }
    }
}

/// Most notes are empty, and nothing is where an empty `String` points to: a comparison of no bytes there takes some processors
/// longer than all else that a look at a group does.
fn is_same_note(one: &str, other: &str) -> bool {
    one.len() == other.len() && (one.is_empty() || one == other)
}

/// From when the retention of a group's offsets counts.
enum ExpiryRule {
    /// Empty since then; `None` where that is not known.
    Empty(Option<Timestamp>),
    /// Nobody joins, offsets are only committed.
    Standalone,
    /// Members have subscribed to these topics.
    Subscribed(BTreeSet<String>),
}

impl ExpiryRule {
    fn of(group: &Group) -> Option<Self> {
        if group.is_of_newer_protocol {
            return None;
        }
        let Some(metadata) = group.metadata.as_ref().filter(|metadata| !metadata.protocol_type.is_empty()) else {
            return Some(ExpiryRule::Standalone);
        };
        if metadata.members.is_empty() {
            let since = metadata.state_timestamp_ms;
            return Some(ExpiryRule::Empty((since >= 0).then_some(since)));
        }
        if metadata.protocol_type != "consumer" {
            return None;
        }
        let mut topics = BTreeSet::new();
        for member in &metadata.members {
            topics.extend(Subscription::decode(&member.subscription).ok()?.topics);
        }
        Some(ExpiryRule::Subscribed(topics))
    }

    fn is_kept(&self, place: &TopicPartition) -> bool {
        matches!(self, ExpiryRule::Subscribed(topics) if topics.contains(place.topic.as_str()))
    }

    fn base_ms(&self, committed: &CommittedOffset) -> Timestamp {
        match self {
            ExpiryRule::Empty(Some(since)) => *since,
            _ => committed.commit_timestamp_ms,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::schema::MemberMetadata;
    use super::*;

    fn key(group: &str, partition: i32) -> Vec<u8> {
        Key::OffsetCommit { group, topic: "t", partition }.encode()
    }

    fn value(offset: i64, commit_timestamp_ms: i64) -> OffsetCommitValue {
        OffsetCommitValue {
            offset,
            leader_epoch: -1,
            metadata: String::new(),
            commit_timestamp_ms,
            expire_timestamp_ms: -1,
            topic_id: None,
        }
    }

    fn t(partition: u32) -> TopicPartition {
        TopicPartition::new(TopicName::new("t").unwrap(), partition)
    }

    #[derive(Clone, Copy)]
    enum Step {
        Commit(&'static str, i32, i64),
        InTransaction(i64, &'static str, i32, i64),
        Delete(&'static str, i32),
        End(i64, bool),
    }
    use Step::*;

    /// Each step is a record at the next offset.
    fn fold(steps: &[Step]) -> GroupTable {
        let mut table = GroupTable::default();
        for (at, step) in (0..).zip(steps) {
            match *step {
                Commit(group, partition, offset) => {
                    table.apply(at, None, &key(group, partition), Some(&value(offset, 0).encode())).unwrap();
                }
                InTransaction(producer, group, partition, offset) => {
                    let bytes = value(offset, 0).encode();
                    table.apply(at, Some(producer), &key(group, partition), Some(&bytes)).unwrap();
                }
                Delete(group, partition) => table.apply(at, None, &key(group, partition), None).unwrap(),
                End(producer, is_committed) => table.end_transaction(producer, is_committed),
            }
        }
        table
    }

    fn shown(table: &GroupTable) -> Vec<(String, i32, i64)> {
        let all = table.groups().flat_map(|(name, group)| {
            group
                .offsets
                .iter()
                .map(|(place, found)| (name.to_string(), place.partition.get() as i32, found.committed.offset))
        });
        all.collect()
    }

    fn check(steps: &[Step], expected: &[(&str, i32, i64)]) {
        let expected: Vec<_> = expected.iter().map(|&(name, partition, at)| (name.to_owned(), partition, at)).collect();
        assert_eq!(shown(&fold(steps)), expected);
    }

    #[test]
    fn the_last_commit_wins_and_a_tombstone_takes_it_away() {
        check(&[Commit("g", 0, 5), Commit("g", 1, 7), Commit("g", 0, 6)], &[("g", 0, 6), ("g", 1, 7)]);
        check(&[Commit("g", 0, 9), Commit("g", 0, 3)], &[("g", 0, 3)]);
        check(&[Commit("g", 0, 5), Commit("h", 0, 1), Delete("g", 0)], &[("h", 0, 1)]);
        check(&[Commit("g", 0, 5), Delete("g", 0), Commit("g", 0, 2)], &[("g", 0, 2)]);
        check(&[Delete("g", 0)], &[]);
    }

    #[test]
    fn commits_of_a_transaction_wait_for_its_marker() {
        check(&[Commit("g", 0, 1), InTransaction(7, "g", 0, 5)], &[("g", 0, 1)]);
        check(&[Commit("g", 0, 1), InTransaction(7, "g", 0, 5), End(7, true)], &[("g", 0, 5)]);
        check(&[Commit("g", 0, 1), InTransaction(7, "g", 0, 5), End(7, false)], &[("g", 0, 1)]);
        check(&[InTransaction(7, "g", 0, 5), InTransaction(8, "g", 0, 6), End(8, true), End(7, false)], &[("g", 0, 6)]);
        check(&[InTransaction(7, "g", 0, 5), End(7, false), InTransaction(7, "g", 0, 6), End(7, true)], &[("g", 0, 6)]);
        check(&[InTransaction(7, "g", 0, 5), End(9, true)], &[]);
    }

    #[test]
    fn a_marker_lets_nothing_through_that_was_overtaken() {
        check(&[InTransaction(7, "g", 0, 5), Commit("g", 0, 9), End(7, true)], &[("g", 0, 9)]);
        check(&[InTransaction(7, "g", 0, 5), InTransaction(8, "g", 0, 6), End(8, true), End(7, true)], &[("g", 0, 6)]);
        check(&[InTransaction(7, "g", 0, 5), Delete("g", 0), End(7, true)], &[]);
        check(&[Delete("g", 0), InTransaction(7, "g", 0, 5), End(7, true)], &[("g", 0, 5)]);
    }

    #[test]
    fn what_is_stable_needs_no_marker() {
        let mut table = fold(&[InTransaction(7, "g", 0, 5), InTransaction(8, "g", 1, 6)]);
        table.settle_below(1);
        assert_eq!(shown(&table), [("g".to_owned(), 0, 5)]);
        table.end_transaction(8, true);
        assert_eq!(shown(&table), [("g".to_owned(), 0, 5), ("g".to_owned(), 1, 6)]);
    }

    #[test]
    fn a_group_is_there_as_long_as_anything_of_it() {
        let mut table = fold(&[Commit("g", 0, 5)]);
        let group_key = Key::Group { group: "g" }.encode();
        let newer_key = Key::ConsumerGroup { group: "g" }.encode();
        table.apply(1, None, &group_key, Some(&GroupMetadataValue::default().encode().unwrap())).unwrap();
        table.apply(2, None, &newer_key, Some(&[0, 0])).unwrap();
        for (key, is_there) in [(&key("g", 0), true), (&group_key, true), (&newer_key, false)] {
            table.apply(3, None, key, None).unwrap();
            assert_eq!(table.group("g").is_some(), is_there);
        }
    }

    /// A tombstone may wait for its sync while something newer is taken in.
    #[test]
    fn a_tombstone_leaves_what_stands_behind_it() {
        let mut table = fold(&[Commit("g", 0, 5), InTransaction(7, "g", 1, 6), Commit("g", 0, 7)]);
        table.describe(4, "g", GroupMetadataValue::default());
        let removed = |place| Removed { group: "g".into(), place };
        table.remove(1, &removed(Some(t(0))));
        table.remove(1, &removed(Some(t(1))));
        table.remove(3, &removed(None));
        table.end_transaction(7, true);
        assert_eq!(shown(&table), [("g".to_owned(), 0, 7), ("g".to_owned(), 1, 6)]);
        assert!(table.group("g").unwrap().metadata.is_some());
        for (offset, place) in [(5, Some(t(0))), (6, Some(t(1))), (7, None)] {
            table.remove(offset, &removed(place));
        }
        assert!(table.group("g").is_none());
    }

    const DAY: i64 = 86_400_000;

    fn over(table: &GroupTable, name: &str, now_ms: i64, retention_ms: i64) -> Vec<Option<TopicPartition>> {
        let all = table.over(now_ms, retention_ms, std::iter::empty()).into_iter();
        all.filter(|removed| *removed.group == *name).map(|removed| removed.place).collect()
    }

    /// Whether the one offset, committed at day 1, has expired on a day, with a retention of seven.
    fn is_expired(metadata: Option<GroupMetadataValue>, expire_timestamp_ms: i64, on_day: i64) -> bool {
        let mut table = GroupTable::default();
        let value = OffsetCommitValue { expire_timestamp_ms, ..value(3, DAY) };
        table.commit(0, None, "g", &t(0), &value);
        table.entry("g").metadata = metadata;
        over(&table, "g", on_day * DAY, 7 * DAY).contains(&Some(t(0)))
    }

    fn with_member(protocol_type: &str, topic: &str) -> Option<GroupMetadataValue> {
        let subscription = Subscription { topics: vec![topic.into()], ..Subscription::default() }.encode();
        let members = vec![MemberMetadata { subscription, ..MemberMetadata::default() }];
        Some(GroupMetadataValue { protocol_type: protocol_type.into(), members, ..GroupMetadataValue::default() })
    }

    #[test]
    fn offsets_expire_by_kafkas_rule() {
        let empty = |state_timestamp_ms| {
            let protocol_type = "consumer".into();
            Some(GroupMetadataValue { protocol_type, state_timestamp_ms, ..GroupMetadataValue::default() })
        };
        let check = |what: &str, metadata: Option<GroupMetadataValue>, end: i64, last_day_kept: Option<i64>| {
            for day in [1, 2, 3, 7, 8, 9, 10, 11, 100] {
                let expected = last_day_kept.is_some_and(|last| day > last);
                assert_eq!(is_expired(metadata.clone(), end, day), expected, "{what} on day {day}");
            }
        };
        check("a stand-alone consumer", None, -1, Some(7));
        check("a group that only commits", Some(GroupMetadataValue::default()), -1, Some(7));
        check("empty since day 3", empty(3 * DAY), -1, Some(9));
        check("empty since who knows when", empty(-1), -1, Some(7));
        check("subscribed", with_member("consumer", "t"), -1, None);
        check("subscribed to another topic", with_member("consumer", "u"), -1, Some(7));
        check("members of another protocol", with_member("connect", "u"), -1, None);
        check("an end of its own", None, 3 * DAY, Some(2));
    }

    #[test]
    fn an_offset_that_a_transaction_is_about_to_move_does_not_expire() {
        let mut table = fold(&[Commit("g", 0, 5), Commit("g", 1, 5), InTransaction(7, "g", 0, 6)]);
        let expired = |table: &GroupTable| {
            over(table, "g", 100 * DAY, DAY).iter().flatten().map(|place| place.partition.get()).collect::<Vec<_>>()
        };
        assert_eq!(expired(&table), [1]);
        table.end_transaction(7, false);
        assert_eq!(expired(&table), [0, 1]);
        table.entry("h").is_of_newer_protocol = true;
        table.commit(9, None, "h", &t(0), &value(1, 0));
        assert!(over(&table, "h", 100 * DAY, DAY).is_empty());
    }

    #[test]
    fn the_metadata_of_a_group_goes_last() {
        let mut table = fold(&[Commit("g", 0, 5)]);
        table.entry("g").metadata = Some(GroupMetadataValue::default());
        assert_eq!(over(&table, "g", 0, DAY), []);
        assert_eq!(over(&table, "g", DAY, DAY), [Some(t(0)), None]);
        let waits = [("g", &t(1))];
        let beside: Vec<_> = table.over(DAY, DAY, waits.into_iter()).into_iter().map(|removed| removed.place).collect();
        assert_eq!(beside, [Some(t(0))], "something of the group is being committed");
        table.forget(9, "g", &t(0));
        assert_eq!(over(&table, "g", 0, DAY), [None]);
        table.entry("g").metadata = with_member("consumer", "t");
        assert_eq!(over(&table, "g", 0, DAY), []);
    }
}
