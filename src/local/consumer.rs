//! A consumer: polls the partitions of some topics, in order per partition, and commits how far its group has come.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::clock::Timestamp;
use crate::error::{Error, Result};
use crate::group::{CommitOptions, Groups, Lag, NewOffset};
use crate::ids::{Offset, TopicPartition, Uuid};
use crate::partition::{Durability, Isolation, Partition, ReadOptions, Reader};
use crate::record::StoredRecord;
use crate::store::Store;

/// Most records of one poll (Kafka's `max.poll.records`).
const RECORDS_MAX: usize = 500;
/// Most bytes of keys and values of one poll (Kafka's `fetch.max.bytes`).
const BYTES_MAX: usize = 50 << 20;

/// Where to begin if nothing was committed, or if what was committed is no longer in the log (Kafka's `auto.offset.reset`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reset {
    /// At the log start.
    Earliest,
    /// At the end of what can be read.
    Latest,
    /// Nowhere: it is an error, and the caller decides.
    #[default]
    Error,
}

/// A record with the partition that it is of.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ConsumedRecord {
    /// The partition.
    pub partition: TopicPartition,
    /// The record.
    pub record: StoredRecord,
}

/// How a consumer is to read. Made by [`Consumer::builder`].
#[derive(Clone, Debug)]
pub struct ConsumerBuilder {
    store: Store,
    group: Option<String>,
    topics: Vec<String>,
    partitions: Vec<TopicPartition>,
    reset: Reset,
    records_max: usize,
    bytes_max: usize,
    durability: Option<Durability>,
}

impl ConsumerBuilder {
    /// Begins where this group has come to, and commits in its name.
    #[doc(alias = "group.id")]
    #[must_use]
    pub fn group(mut self, group: &str) -> Self {
        self.group = Some(group.to_owned());
        self
    }

    /// Reads every partition of a topic.
    #[must_use]
    pub fn topic(mut self, topic: &str) -> Self {
        self.topics.push(topic.to_owned());
        self
    }

    /// Reads one partition.
    #[must_use]
    pub fn partition(mut self, partition: TopicPartition) -> Self {
        self.partitions.push(partition);
        self
    }

    /// Where to begin without a committed offset. By default that is an error.
    #[doc(alias = "auto.offset.reset")]
    #[must_use]
    pub fn reset(mut self, reset: Reset) -> Self {
        self.reset = reset;
        self
    }

    /// Most records of one poll; 500 by default.
    #[doc(alias = "max.poll.records")]
    #[must_use]
    pub fn records_max(mut self, records: usize) -> Self {
        self.records_max = records;
        self
    }

    /// Once a poll has so many bytes of keys and values it takes no further record; 50 MiB by default. One record is always
    /// taken.
    #[doc(alias = "fetch.max.bytes")]
    #[must_use]
    pub fn bytes_max(mut self, bytes: usize) -> Self {
        self.bytes_max = bytes;
        self
    }

    /// The durability of commits; by default that of `__consumer_offsets`, which is `Sync` where this library made it.
    #[must_use]
    pub fn commit_durability(mut self, durability: Durability) -> Self {
        self.durability = Some(durability);
        self
    }

    /// Looks up where to begin.
    ///
    /// # Errors
    /// [`Error::UnknownTopic`]; [`Error::Invalid`] if there is nothing to read, a limit is 0, or the group has no name; with
    /// [`Reset::Error`], [`Error::Invalid`] where nothing was committed and [`Error::OffsetOutOfRange`] where the log no longer
    /// has it; those of reading the offsets.
    pub fn open(self) -> Result<Consumer> {
        if self.records_max == 0 || self.bytes_max == 0 {
            return Err(Error::invalid("limit of a poll", "must not be 0"));
        }
        if self.group.as_deref().is_some_and(str::is_empty) {
            return Err(Error::invalid("group", "must not be empty"));
        }
        let mut found: BTreeMap<TopicPartition, (Partition, Uuid)> = BTreeMap::new();
        for topic in &self.topics {
            let topic = self.store.topic(topic)?;
            found.extend(topic.partitions().map(|one| (one.id().clone(), (one.clone(), topic.id()))));
        }
        for id in &self.partitions {
            let topic = self.store.topic(id.topic.as_str())?;
            found.insert(id.clone(), (topic.partition(id.partition)?, topic.id()));
        }
        if found.is_empty() {
            return Err(Error::invalid("consumer", "must have a topic or a partition to read"));
        }
        let groups = Groups::open(&self.store)?;
        let mut slots = Vec::with_capacity(found.len());
        for (id, (partition, topic_id)) in found {
            let committed = match &self.group {
                Some(group) => groups.committed(group, &id)?,
                None => None,
            };
            // What was committed for another topic of the same name says nothing about this one.
            let committed = committed.filter(|found| found.topic_id.is_none_or(|of| of == topic_id));
            let is_in_log = |offset: i64| offset >= partition.start().get() && offset <= partition.end().get();
            let position = match committed.as_ref().map(|found| found.offset) {
                Some(offset) if is_in_log(offset) => offset,
                outside => match self.reset {
                    Reset::Earliest => partition.start().get(),
                    Reset::Latest => partition.last_stable_offset().get(),
                    Reset::Error => return Err(no_position(&partition, self.group.as_deref(), outside)),
                },
            };
            slots.push(Slot::new(partition, position, committed.map(|found| found.offset)));
        }
        Ok(Consumer { options: self, groups, slots, next_slot: 0 })
    }
}

fn no_position(partition: &Partition, group: Option<&str>, outside: Option<i64>) -> Error {
    match outside {
        Some(asked) => Error::OffsetOutOfRange {
            partition: partition.id().clone(),
            asked: asked.into(),
            start: partition.start(),
            end: partition.end(),
        },
        None => Error::invalid(
            format!("position in {}", partition.id()),
            format!("{} has committed none: choose a reset, or commit one", group.unwrap_or("nobody")),
        ),
    }
}

/// One partition that is read.
#[derive(Debug)]
struct Slot {
    partition: Partition,
    /// The next offset to hand out.
    position: i64,
    /// Leader epoch of the record handed out last.
    leader_epoch: Option<i32>,
    committed: Option<i64>,
    is_paused: bool,
    reader: Option<Reader>,
}

impl Slot {
    fn new(partition: Partition, position: i64, committed: Option<i64>) -> Self {
        Self { partition, position, leader_epoch: None, committed, is_paused: false, reader: None }
    }

    fn move_to(&mut self, offset: i64) {
        (self.position, self.leader_epoch, self.reader) = (offset, None, None);
    }

    fn reader(&mut self) -> Result<&mut Reader> {
        match &mut self.reader {
            Some(reader) => Ok(reader),
            none => {
                let options = ReadOptions::new().isolation(Isolation::Committed);
                Ok(none.insert(self.partition.reader(self.position, &options)?))
            }
        }
    }
}

/// Reads partitions in order, each at its own pace, as a group or on nobody's behalf. It sees committed records only.
///
/// It is assigned what it reads: two consumers of one group that read the same partition both get every record. What was
/// polled and not committed is read again by the next consumer of the group. Dropping one commits nothing.
///
/// ```
/// use std::time::Duration;
/// use topiclog::local::{Consumer, Reset};
/// use topiclog::{Record, Store, TopicConfig};
/// let store = Store::in_memory()?;
/// let orders = store.create_topic("orders", TopicConfig::default())?;
/// orders.append(Record::of_value("placed"))?;
/// let open = || Consumer::builder(&store).group("billing").topic("orders").reset(Reset::Earliest).open();
/// let mut billing = open()?;
/// assert_eq!(billing.poll(Duration::ZERO)?.len(), 1);
/// billing.commit()?;
/// assert!(open()?.poll(Duration::ZERO)?.is_empty(), "the group has come past it");
/// # store.close()?;
/// # Ok::<(), topiclog::Error>(())
/// ```
#[derive(Debug)]
pub struct Consumer {
    options: ConsumerBuilder,
    groups: Groups,
    slots: Vec<Slot>,
    /// Where the next poll begins, so that no partition waits for the others to run dry.
    next_slot: usize,
}

impl Consumer {
    /// A consumer of this store.
    pub fn builder(store: &Store) -> ConsumerBuilder {
        ConsumerBuilder {
            store: store.clone(),
            group: None,
            topics: Vec::new(),
            partitions: Vec::new(),
            reset: Reset::default(),
            records_max: RECORDS_MAX,
            bytes_max: BYTES_MAX,
            durability: None,
        }
    }

    /// The partitions that are read, in order.
    pub fn assignment(&self) -> impl Iterator<Item = &TopicPartition> {
        self.slots.iter().map(|slot| slot.partition.id())
    }

    /// The next records, at least one, or none if none came within `timeout`. Those of one partition are in order. With a clock
    /// that is moved by hand this never waits.
    ///
    /// # Errors
    /// [`Error::OffsetOutOfRange`] if the log start has passed the position and the reset is [`Reset::Error`];
    /// [`Error::Corrupt`], [`Error::Unsupported`]; [`Error::Closed`], at once, if the store is closed or a topic deleted. No
    /// record is passed by then.
    pub fn poll(&mut self, timeout: Duration) -> Result<Vec<ConsumedRecord>> {
        let clock = self.options.store.clock();
        let bell = self.options.store.bell();
        let end = clock.monotonic().saturating_add(timeout);
        let mut listener = None;
        loop {
            let records = self.take()?;
            let left = end.saturating_sub(clock.monotonic());
            if !records.is_empty() || left.is_zero() || clock.is_manual() {
                return Ok(records);
            }
            match &mut listener {
                // What came before somebody listened was not heard: look again first.
                None => listener = Some(bell.listen()),
                Some(listener) => listener.wait(left),
            }
        }
    }

    /// What is there now.
    fn take(&mut self) -> Result<Vec<ConsumedRecord>> {
        let mut taken = Vec::new();
        let mut bytes_left = self.options.bytes_max;
        let count = self.slots.len();
        let first = self.next_slot;
        for nth in 0..count {
            let at = (first + nth) % count;
            if let Err(error) = self.take_from(at, &mut taken, &mut bytes_left) {
                // What was taken of others is handed out first; the reader fails again at the next poll.
                return if taken.is_empty() { Err(error) } else { Ok(taken) };
            }
            self.next_slot = (at + 1) % count;
            if taken.len() >= self.options.records_max || bytes_left == 0 {
                break;
            }
        }
        Ok(taken)
    }

    fn take_from(&mut self, at: usize, taken: &mut Vec<ConsumedRecord>, bytes_left: &mut usize) -> Result<()> {
        let (reset, records_max) = (self.options.reset, self.options.records_max);
        let slot = &mut self.slots[at];
        if slot.is_paused {
            return Ok(());
        }
        while taken.len() < records_max && *bytes_left > 0 {
            let next = match slot.reader() {
                Ok(reader) => reader.next().transpose(),
                Err(error) => Err(error),
            };
            match next {
                Ok(None) => return Ok(()),
                Ok(Some(record)) => {
                    slot.position = record.offset().get() + 1;
                    slot.leader_epoch = Some(record.leader_epoch()).filter(|&epoch| epoch >= 0);
                    let bytes = record.key().map_or(0, <[u8]>::len) + record.value().map_or(0, <[u8]>::len);
                    *bytes_left = bytes_left.saturating_sub(bytes);
                    taken.push(ConsumedRecord { partition: slot.partition.id().clone(), record });
                }
                Err(Error::OffsetOutOfRange { .. }) if reset != Reset::Error => {
                    let to = match reset {
                        Reset::Latest => slot.partition.last_stable_offset(),
                        _ => slot.partition.start(),
                    };
                    slot.move_to(to.get());
                }
                Err(error) => {
                    // A failed reader goes on failing; the next poll asks the log anew.
                    slot.reader = None;
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Commits everything that was polled, as one batch. What has not moved since the last commit is left out.
    ///
    /// Durable when this returns: the offsets, as [`ConsumerBuilder::commit_durability`] says.
    ///
    /// # Errors
    /// [`Error::Config`] without a group; those of [`Groups::commit`].
    pub fn commit(&mut self) -> Result<()> {
        let moved = self.slots.iter().filter(|slot| slot.committed != Some(slot.position));
        let offsets: Vec<(TopicPartition, NewOffset)> = moved
            .map(|slot| {
                let next = NewOffset::new(slot.position);
                let next = match slot.leader_epoch {
                    Some(epoch) => next.leader_epoch(epoch),
                    None => next,
                };
                (slot.partition.id().clone(), next)
            })
            .collect();
        if offsets.is_empty() { Ok(()) } else { self.commit_offsets(&offsets) }
    }

    /// Commits these offsets, as one batch, of whichever partitions.
    ///
    /// # Errors
    /// As [`commit`](Self::commit).
    pub fn commit_offsets(&mut self, offsets: &[(TopicPartition, NewOffset)]) -> Result<()> {
        let group = self.group()?.to_owned();
        let mut options = CommitOptions::new();
        if let Some(durability) = self.options.durability {
            options = options.durability(durability);
        }
        self.groups.commit_all(&[(&group, offsets)], &options)?;
        for (id, offset) in offsets {
            if let Ok(slot) = self.slot(id) {
                slot.committed = Some(offset.offset().get());
            }
        }
        Ok(())
    }

    fn group(&self) -> Result<&str> {
        let none = || Error::config("group.id", "a consumer without a group commits nothing");
        self.options.group.as_deref().ok_or_else(none)
    }

    fn slot(&mut self, id: &TopicPartition) -> Result<&mut Slot> {
        let found = self.slots.iter_mut().find(|slot| slot.partition.id() == id);
        found.ok_or_else(|| Error::invalid("partition", format!("{id} is not read by this consumer")))
    }

    /// The next offset to be polled from a partition.
    ///
    /// # Errors
    /// [`Error::Invalid`] if this consumer does not read it.
    pub fn position(&mut self, partition: &TopicPartition) -> Result<Offset> {
        self.slot(partition).map(|slot| slot.position.into())
    }

    /// Reads on at this offset.
    ///
    /// # Errors
    /// [`Error::OffsetOutOfRange`] if the log does not reach there; [`Error::Invalid`] if this consumer does not read the
    /// partition. It then stays where it is.
    pub fn seek(&mut self, partition: &TopicPartition, offset: impl Into<Offset>) -> Result<()> {
        let offset = offset.into();
        let slot = self.slot(partition)?;
        if offset < slot.partition.start() || offset > slot.partition.end() {
            return Err(no_position(&slot.partition, None, Some(offset.get())));
        }
        slot.move_to(offset.get());
        Ok(())
    }

    /// Reads every partition again from its log start.
    pub fn seek_to_beginning(&mut self) {
        self.slots.iter_mut().for_each(|slot| slot.move_to(slot.partition.start().get()));
    }

    /// Passes over everything that can be read now, in every partition.
    pub fn seek_to_end(&mut self) {
        self.slots.iter_mut().for_each(|slot| slot.move_to(slot.partition.last_stable_offset().get()));
    }

    /// Reads every partition on at the first record that is at least as new as this, in milliseconds since 1970-01-01 UTC; at
    /// the end where there is none.
    ///
    /// # Errors
    /// Those of [`Partition::offset_for_timestamp`]; no partition has moved then.
    pub fn seek_to_time(&mut self, timestamp_ms: Timestamp) -> Result<()> {
        let find = |slot: &Slot| {
            let found = slot.partition.offset_for_timestamp(timestamp_ms)?;
            Ok(found.map_or(slot.partition.last_stable_offset(), |found| found.offset))
        };
        let found = self.slots.iter().map(find).collect::<Result<Vec<Offset>>>()?;
        self.slots.iter_mut().zip(found).for_each(|(slot, to)| slot.move_to(to.get()));
        Ok(())
    }

    /// Leaves a partition out of polls until [`resume`](Self::resume).
    ///
    /// # Errors
    /// [`Error::Invalid`] if this consumer does not read it.
    pub fn pause(&mut self, partition: &TopicPartition) -> Result<()> {
        self.slot(partition).map(|slot| slot.is_paused = true)
    }

    /// Takes a paused partition up again, where it was left.
    ///
    /// # Errors
    /// [`Error::Invalid`] if this consumer does not read it.
    pub fn resume(&mut self, partition: &TopicPartition) -> Result<()> {
        self.slot(partition).map(|slot| slot.is_paused = false)
    }

    /// How far this consumer is behind what can be read now, in a partition.
    ///
    /// # Errors
    /// [`Error::Invalid`] if this consumer does not read it; those of a read.
    pub fn lag(&mut self, partition: &TopicPartition) -> Result<Lag> {
        let position = self.position(partition)?;
        self.groups.lag(partition, position)
    }
}
