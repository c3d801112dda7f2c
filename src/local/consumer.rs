//! The consuming side of a store: as a member of a group, or of partitions that the caller chose.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::member::Member;
use super::slot::{Budget, Slot};
use crate::client::{
    Consume, ConsumerOptions, GroupMetadata, Lag, Listener, OffsetAndMetadata, OffsetSpec, Offsets, Polled, Records,
    TopicFilter,
};
use crate::clock::deadline::Deadline;
use crate::error::{Error, Result};
use crate::group::{CommitOptions, Groups};
use crate::ids::{Offset, TopicPartition};
use crate::position::{PartitionPosition, Position};
use crate::store::Store;
use crate::store::waits::more_can_come;

/// Waits are at least so long, so that a deadline that is due at this moment is not waited for in a circle.
const WAIT_MIN: Duration = Duration::from_millis(1);

/// Reads committed records of a store.
#[derive(Debug)]
pub(crate) struct LocalConsumer {
    store: Store,
    groups: Groups,
    options: ConsumerOptions,
    /// Who assigns, if it is the group.
    member: Option<Member>,
    /// What is read, in order of topic and partition.
    slots: Vec<Slot>,
    /// Where the next poll begins, so that no partition waits for the others to run dry.
    next_slot: usize,
    events: VecDeque<Polled>,
    seen_topics_version: u64,
    is_closed: bool,
}

impl LocalConsumer {
    pub(crate) fn open(store: &Store, options: ConsumerOptions) -> Result<Self> {
        if options.records_max == 0 || options.bytes_max == 0 {
            return Err(Error::invalid("limit of a poll", "must not be 0"));
        }
        if options.group.as_deref().is_some_and(str::is_empty) {
            return Err(Error::invalid("group", "must not be empty"));
        }
        if options.group_instance_id.as_deref().is_some_and(str::is_empty) {
            return Err(Error::config("group.instance.id", "must not be empty"));
        }
        Ok(Self {
            store: store.clone(),
            groups: Groups::open(store)?,
            options,
            member: None,
            slots: Vec::new(),
            next_slot: 0,
            events: VecDeque::new(),
            seen_topics_version: store.topics_version(),
            is_closed: false,
        })
    }

    fn check_open(&self) -> Result<()> {
        if self.is_closed {
            return Err(Error::Closed { what: "the consumer".to_owned() });
        }
        self.store.check_open()
    }

    fn new_slot(&self, id: &TopicPartition) -> Result<Slot> {
        let topic = self.store.topic(id.topic.as_str())?;
        Ok(Slot::new(topic.partition(id.partition)?, topic.id()))
    }

    fn slot_index(&self, id: &TopicPartition) -> Result<usize> {
        let found = self.slots.binary_search_by(|slot| slot.id().cmp(id));
        found.map_err(|_| Error::invalid("partition", format!("{id} is not read by this consumer")))
    }

    fn group(&self) -> Result<&str> {
        let none = || Error::config("group.id", "a consumer without a group commits nothing");
        self.options.group.as_deref().ok_or_else(none)
    }

    /// What has become of the assignment, if anything has.
    fn next_event(&mut self) -> Result<Option<Polled>> {
        self.notice_new_topics()?;
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(Some(event));
            }
            let Some(member) = &mut self.member else { return Ok(None) };
            // What was revoked could be committed until now.
            if self.slots.len() != member.owned().len() {
                self.slots.retain(|slot| member.owned().contains(slot.id()));
            }
            match member.step()? {
                Some(Polled::Assigned(partitions)) => {
                    let there = self.begin_to_read(partitions)?;
                    self.events.extend(Some(there).filter(|there| !there.is_empty()).map(Polled::Assigned));
                }
                Some(Polled::Lost(partitions)) => {
                    self.slots.retain(|slot| !partitions.contains(slot.id()));
                    return Ok(Some(Polled::Lost(partitions)));
                }
                event => return Ok(event),
            }
        }
    }

    /// Makes slots for what was assigned. Returns which of it is there: a topic may have been deleted since the leader looked,
    /// and the group assigns anew then.
    fn begin_to_read(&mut self, assigned: Vec<TopicPartition>) -> Result<Vec<TopicPartition>> {
        let (mut there, mut gone) = (Vec::with_capacity(assigned.len()), Vec::new());
        for id in assigned {
            match self.new_slot(&id) {
                Ok(slot) => {
                    self.slots.push(slot);
                    there.push(id);
                }
                Err(Error::UnknownTopic { .. }) => gone.push(id),
                Err(error) => return Err(error),
            }
        }
        self.slots.sort_unstable_by(|one, other| one.id().cmp(other.id()));
        self.let_go(&gone);
        Ok(there)
    }

    /// The member does not count these partitions as its own any more, so that it hears of them if it gets them again.
    fn let_go(&mut self, partitions: &[TopicPartition]) {
        if let Some(member) = &mut self.member {
            member.let_go(partitions);
        }
    }

    /// A topic that was deleted and made again is another one: a member loses its partitions and gets those of the new one, as
    /// far as it has them.
    fn notice_new_topics(&mut self) -> Result<()> {
        let version = self.store.topics_version();
        if version == self.seen_topics_version || self.member.is_none() {
            return Ok(());
        }
        let (mut lost, mut renewed) = (Vec::new(), Vec::new());
        for slot in &self.slots {
            match self.store.topic(slot.id().topic.as_str()) {
                Ok(topic) if topic.id() != slot.topic_id => lost.push(slot.id().clone()),
                // The group assigns anew without it.
                Ok(_) | Err(Error::UnknownTopic { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        if !lost.is_empty() {
            self.slots.retain(|slot| lost.binary_search(slot.id()).is_err());
            renewed = self.begin_to_read(lost.clone())?;
        }
        self.seen_topics_version = version;
        self.events.extend(Some(lost).filter(|lost| !lost.is_empty()).map(Polled::Lost));
        self.events.extend(Some(renewed).filter(|new| !new.is_empty()).map(Polled::Assigned));
        Ok(())
    }

    /// What is there now.
    fn take(&mut self) -> Result<Records> {
        let mut taken = Records::new();
        let mut budget = Budget { records: self.options.records_max, bytes: self.options.bytes_max };
        let count = self.slots.len();
        let first = if self.next_slot < count { self.next_slot } else { 0 };
        for nth in 0..count {
            let at = (first + nth) % count;
            if let Err(error) = self.slots[at].take(&mut taken, &mut budget, self.store.clock_ref()) {
                if !taken.is_empty() {
                    // What was taken of others is handed out first; this one fails again at the next poll.
                    self.next_slot = at;
                    return Ok(taken);
                }
                // And then the others have their turn before it fails again.
                self.next_slot = (at + 1) % count;
                return Err(self.explained(at, error));
            }
            self.next_slot = (at + 1) % count;
            if budget.is_spent() {
                break;
            }
        }
        if taken.is_empty() {
            self.check_more_can_come()?;
        }
        Ok(taken)
    }

    /// Nothing is ever appended to a poisoned log until the store is opened again: who has read what there is would wait in vain.
    fn check_more_can_come(&self) -> Result<()> {
        let mut read = self.slots.iter().filter(|slot| !slot.is_paused && slot.position().is_some());
        read.try_for_each(|slot| more_can_come(&slot.partition))
    }

    /// A reader of a deleted topic knows only that it is closed.
    fn explained(&self, at: usize, error: Error) -> Error {
        let slot = &self.slots[at];
        match (error, self.store.topic(slot.id().topic.as_str())) {
            (Error::Closed { .. }, Ok(topic)) if topic.id() != slot.topic_id => Error::topic_made_again(slot.id()),
            (error, _) => error,
        }
    }

    /// An offset to commit belongs to the topic that is read, and to no other of its name.
    fn of_topic_read(&self, id: &TopicPartition, offset: &OffsetAndMetadata) -> OffsetAndMetadata {
        match self.slot_index(id) {
            Ok(at) if offset.known_topic_id().is_none() => offset.clone().topic_id(self.slots[at].topic_id),
            _ => offset.clone(),
        }
    }

    /// Whether a position still means what it meant, in the partition as it is now.
    fn check_position(&self, id: &TopicPartition, at: &PartitionPosition) -> Result<Slot> {
        let slot = self.new_slot(id)?;
        if at.known_topic_id().is_some_and(|known| known != slot.topic_id) {
            return Err(Error::topic_made_again(id));
        }
        slot.partition.check_position(at)?;
        Ok(slot)
    }
}

impl Consume for LocalConsumer {
    fn subscribe(&mut self, topics: &TopicFilter) -> Result<()> {
        self.check_open()?;
        let member = Member::new(&self.groups, &self.options, topics)?;
        if let Some(mut before) = self.member.replace(member) {
            before.leave()?;
        }
        (self.slots, self.next_slot) = (Vec::new(), 0);
        self.events.clear();
        Ok(())
    }

    fn assign(&mut self, from: &Position) -> Result<()> {
        self.check_open()?;
        let now_ms = self.store.clock().now_ms();
        let mut slots = Vec::with_capacity(from.len());
        for (id, at) in from.iter() {
            let mut slot = self.check_position(id, at)?;
            slot.move_to(at, now_ms);
            slots.push(slot);
        }
        if let Some(mut before) = self.member.take() {
            before.leave()?;
        }
        (self.slots, self.next_slot) = (slots, 0);
        self.events.clear();
        Ok(())
    }

    fn poll(&mut self, timeout: Duration) -> Result<Polled> {
        self.check_open()?;
        let deadline = Deadline::after(self.store.clock_ref(), timeout);
        let mut listener = None;
        loop {
            if let Some(event) = self.next_event()? {
                return Ok(event);
            }
            let records = self.take()?;
            let left = if records.is_empty() { deadline.left(self.store.clock_ref()) } else { Duration::ZERO };
            if left.is_zero() || self.store.clock_ref().is_manual() {
                return Ok(Polled::Records(records));
            }
            match &mut listener {
                // What came before somebody listened was not heard: look again first.
                None => listener = Some(self.store.bell().listen()),
                Some(listener) => {
                    let quiet = self.member.as_ref().map_or(left, |member| member.quiet_for().max(WAIT_MIN));
                    listener.wait(left.min(quiet));
                }
            }
        }
    }

    fn seek(&mut self, to: &Position) -> Result<()> {
        self.check_open()?;
        let now_ms = self.store.clock().now_ms();
        let mut found = Vec::with_capacity(to.len());
        for (id, at) in to.iter() {
            let index = self.slot_index(id)?;
            found.push((index, self.check_position(id, at)?, at));
        }
        for (index, checked, at) in found {
            let slot = &mut self.slots[index];
            if slot.topic_id != checked.topic_id {
                let is_paused = slot.is_paused;
                *slot = checked;
                slot.is_paused = is_paused;
            }
            slot.move_to(at, now_ms);
        }
        Ok(())
    }

    fn pause(&mut self, partitions: &[TopicPartition]) -> Result<()> {
        let found = partitions.iter().map(|id| self.slot_index(id)).collect::<Result<Vec<_>>>()?;
        found.into_iter().for_each(|at| self.slots[at].is_paused = true);
        Ok(())
    }

    fn resume(&mut self, partitions: &[TopicPartition]) -> Result<()> {
        let found = partitions.iter().map(|id| self.slot_index(id)).collect::<Result<Vec<_>>>()?;
        found.into_iter().for_each(|at| self.slots[at].is_paused = false);
        Ok(())
    }

    fn position(&self) -> Position {
        self.slots.iter().filter_map(|slot| Some((slot.id().clone(), slot.position()?))).collect()
    }

    fn assignment(&self) -> Vec<TopicPartition> {
        self.slots.iter().map(|slot| slot.id().clone()).collect()
    }

    fn commit(&mut self, offsets: &Offsets) -> Result<()> {
        self.check_open()?;
        let group = self.group()?;
        let mut options = CommitOptions::new();
        if let Some(durability) = self.options.commit_durability {
            options = options.durability(durability);
        }
        let offsets: Vec<(TopicPartition, OffsetAndMetadata)> =
            offsets.iter().map(|(id, offset)| (id.clone(), self.of_topic_read(id, offset))).collect();
        let Some(member) = &self.member else {
            return self.groups.commit_all(&[(group, &offsets)], &options);
        };
        let not_in = || Error::Fenced { who: format!("a consumer of {group:?} that is no member of it now") };
        self.groups.commit_as(&member.metadata().ok_or_else(not_in)?, &offsets, &options)
    }

    fn committed(&mut self, partitions: &[TopicPartition]) -> Result<Offsets> {
        self.check_open()?;
        let group = self.group()?;
        let mut found = BTreeMap::new();
        for id in partitions {
            let Some(committed) = self.groups.committed(group, id)? else { continue };
            // What was committed for another topic of the same name says nothing about this one.
            let topic_id = self.store.topic(id.topic.as_str())?.id();
            if committed.topic_id.is_none_or(|of| of == topic_id) {
                let next = OffsetAndMetadata::new(committed.offset).metadata(&*committed.metadata);
                let next = committed.leader_epoch.map_or(next.clone(), |epoch| next.leader_epoch(epoch));
                found.insert(id.clone(), next);
            }
        }
        Ok(found)
    }

    fn offsets(&mut self, partitions: &[TopicPartition], which: OffsetSpec) -> Result<Position> {
        self.check_open()?;
        let find = |id: &TopicPartition| {
            let topic = self.store.topic(id.topic.as_str())?;
            let partition = topic.partition(id.partition)?;
            let offset = match which {
                OffsetSpec::Earliest => partition.start(),
                OffsetSpec::Latest => partition.last_stable_offset(),
                OffsetSpec::Timestamp(timestamp_ms) => {
                    let found = partition.offset_for_timestamp(timestamp_ms)?;
                    found.map_or(partition.last_stable_offset(), |found| found.offset)
                }
                OffsetSpec::TombstoneFloor => partition.tombstone_floor(),
            };
            Ok((id.clone(), PartitionPosition::new(offset).topic_id(topic.id())))
        };
        partitions.iter().map(find).collect()
    }

    fn lag(&mut self, partition: &TopicPartition, position: Offset) -> Result<Lag> {
        self.check_open()?;
        let moved_at_ms = self.slot_index(partition).map_or(-1, |at| self.slots[at].moved_at_ms);
        self.groups.lag_since(partition, position, moved_at_ms)
    }

    fn group_metadata(&self) -> Option<GroupMetadata> {
        self.member.as_ref().and_then(Member::metadata)
    }

    fn listen(&self) -> Listener {
        Listener::new(self.store.bell().listen())
    }

    fn close(&mut self, _timeout: Duration) -> Result<()> {
        if std::mem::replace(&mut self.is_closed, true) {
            return Ok(());
        }
        self.slots.clear();
        match self.member.take() {
            Some(mut member) => member.leave(),
            None => Ok(()),
        }
    }
}
