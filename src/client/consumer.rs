//! A consumer: polls the partitions that it has, in order per partition, and commits how far its group has come.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::consumer_builder::{ConsumerBuilder, Reset};
use super::{Connect, Consume, GroupMetadata, Lag, Listener, OffsetAndMetadata, OffsetSpec, Offsets, Polled, Records};
use crate::clock::deadline::Deadline;
use crate::clock::{Clock, Timestamp};
use crate::error::{Error, Result};
use crate::ids::{Offset, TopicPartition};
use crate::position::{PartitionPosition, Position};

/// What has become of the partitions of a member.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Rebalance {
    /// These are its own from now on. Each has its position already: what the group committed, or what the reset says.
    Assigned(Vec<TopicPartition>),
    /// These go to others. What was processed of them can still be committed, now.
    Revoked(Vec<TopicPartition>),
    /// These may be another's already: this member was taken for dead, or a topic was made again. Nothing of them can be
    /// committed.
    Lost(Vec<TopicPartition>),
}

/// What is called when that happens, within a poll.
pub(super) type OnRebalance = Box<dyn FnMut(&mut Consumer, &Rebalance) -> Result<()> + Send>;

/// A position that the reset chose, because there was none or it was no longer good.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ResetPosition {
    /// The partition.
    pub partition: TopicPartition,
    /// What was committed or read before; `None` if there was nothing.
    pub before: Option<Offset>,
    /// Where it reads on.
    pub now: Offset,
}

/// Reads partitions in order, each at its own pace, as a member of a group, with a group's name, or on nobody's behalf. It sees
/// committed records only.
///
/// A consumer that names a group and topics joins the group at its first poll: the partitions of these topics are shared among
/// the members. One that is given partitions reads these, whoever else does; with a group it begins where the group has come to
/// and commits in its name, which a group refuses while it has members. What was polled and not committed is read again by
/// whoever has the partition next. A member has to poll: one that has not for
/// [`max_poll_interval_ms`](ConsumerBuilder::max_poll_interval_ms) is taken for dead. Dropping one commits nothing, leaves the
/// group, and neither waits nor writes.
///
/// ```
/// use std::time::Duration;
/// use topiclog::client::Reset;
/// use topiclog::{Consumer, Record, Store, TopicConfig};
/// let store = Store::in_memory()?;
/// let orders = store.create_topic("orders", TopicConfig::default())?;
/// orders.append(Record::of_value("placed"))?;
/// let open = || Consumer::builder(&store).group("billing").topic("orders").reset(Reset::Earliest).open();
/// let mut billing = open()?;
/// assert_eq!(billing.poll(Duration::ZERO)?.len(), 1);
/// billing.commit()?;
/// drop(billing);
/// assert!(open()?.poll(Duration::ZERO)?.is_empty(), "the group has come past it");
/// # store.close()?;
/// # Ok::<(), topiclog::Error>(())
/// ```
pub struct Consumer {
    inner: Box<dyn Consume>,
    clock: Arc<dyn Clock>,
    has_group: bool,
    reset: Reset,
    commits_with_poll: bool,
    /// Away while it is called.
    on_rebalance: Option<OnRebalance>,
    is_in_callback: bool,
    /// Assigned, and without a position yet.
    unplaced: Vec<TopicPartition>,
    /// The caller was told that some of these can get none, and polls on.
    is_told_of_unplaced: bool,
    /// What was revoked or lost, if somebody asks for it: a stream does.
    given_up: Option<BTreeSet<TopicPartition>>,
    /// What is committed, as far as this consumer knows.
    committed: BTreeMap<TopicPartition, Offset>,
    resets: Vec<ResetPosition>,
}

impl fmt::Debug for Consumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Consumer");
        debug.field("member", &self.inner.group_metadata()).field("position", &self.inner.position().to_string());
        debug.finish_non_exhaustive()
    }
}

impl Consumer {
    /// Says how a consumer is to read.
    pub fn builder(at: &dyn Connect) -> ConsumerBuilder<'_> {
        ConsumerBuilder::new(at)
    }

    /// Joins a group with these topics; see [`builder`](Self::builder) for everything that can be said besides. Where nothing was
    /// committed it begins at the log start.
    ///
    /// # Errors
    /// As [`ConsumerBuilder::open`].
    ///
    /// ```
    /// use std::time::Duration;
    /// use topiclog::{Consumer, Record, Store, TopicConfig};
    /// let store = Store::in_memory()?;
    /// store.create_topic("orders", TopicConfig::default())?.append(Record::of_value("placed"))?;
    /// let mut billing = Consumer::join(&store, "billing", ["orders"])?;
    /// assert_eq!(billing.poll(Duration::ZERO)?.len(), 1);
    /// billing.commit()?;
    /// # store.close()?;
    /// # Ok::<(), topiclog::Error>(())
    /// ```
    pub fn join<T: AsRef<str>>(at: &dyn Connect, group: &str, topics: impl IntoIterator<Item = T>) -> Result<Self> {
        let builder = Self::builder(at).group(group).reset(Reset::Earliest);
        topics.into_iter().fold(builder, |builder, topic| builder.topic(topic.as_ref())).open()
    }

    pub(super) fn of(
        inner: Box<dyn Consume>,
        clock: Arc<dyn Clock>,
        has_group: bool,
        reset: Reset,
        commits_with_poll: bool,
        on_rebalance: Option<OnRebalance>,
    ) -> Self {
        Self {
            inner,
            clock,
            has_group,
            reset,
            commits_with_poll,
            on_rebalance,
            is_in_callback: false,
            unplaced: Vec::new(),
            is_told_of_unplaced: false,
            given_up: None,
            committed: BTreeMap::new(),
            resets: Vec::new(),
        }
    }

    pub(super) fn inner(&mut self) -> &mut dyn Consume {
        &mut *self.inner
    }

    /// The partitions that are read, in order. Of a member empty before its first poll.
    pub fn assignment(&self) -> Vec<TopicPartition> {
        self.inner.assignment()
    }

    /// The next records, at least one, or none if none came within `timeout`. Those of one partition are in order. With a clock
    /// that is moved by hand this never waits. A member joins, is assigned partitions and gives them up within its polls.
    ///
    /// # Errors
    /// With [`Reset::Error`], [`Error::Invalid`] where nothing was committed, and [`Error::OffsetOutOfRange`] or
    /// [`Error::PositionLost`] where the log no longer has it: [`seek`](Self::seek) helps. [`Error::PositionLost`] with every reset
    /// for a partition that was given to this consumer, if its topic was made again. [`Error::Corrupt`], [`Error::Unsupported`]: other
    /// partitions have their turn at the next poll. [`Error::Poisoned`] where nothing is left to read of a log that takes no more.
    /// [`Error::Fenced`] if another has taken this static name; [`Error::UnknownTopic`] or
    /// [`Error::Closed`], at once, if a topic was deleted or the store closed; what a rebalance callback returned. No record is
    /// passed by then, and the next poll goes on.
    pub fn poll(&mut self, timeout: Duration) -> Result<Records> {
        if self.is_in_callback {
            return Err(Error::invalid("poll", "must not be called by a rebalance callback"));
        }
        if self.commits_with_poll {
            match self.commit() {
                // The poll below finds out what was lost, and says so.
                Ok(()) | Err(Error::Fenced { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let deadline = Deadline::after(&*self.clock, timeout);
        loop {
            let placed = if self.unplaced.is_empty() { Ok(()) } else { self.place() };
            // Told once, a partition that gets no position keeps nobody from the others, nor from staying a member.
            if placed.is_err() && !std::mem::replace(&mut self.is_told_of_unplaced, true) {
                return placed.map(|()| Records::new());
            }
            let wait = if placed.is_ok() { deadline.left(&*self.clock) } else { Duration::ZERO };
            let polled = self.inner.poll(wait);
            match polled {
                Ok(Polled::Records(records)) if records.is_empty() => return placed.map(|()| records),
                Ok(Polled::Records(records)) => return Ok(records),
                Ok(Polled::Assigned(partitions)) => self.unplaced.extend(partitions),
                Ok(Polled::Revoked(partitions)) => {
                    let told = self.call_back(&Rebalance::Revoked(partitions.clone()));
                    self.forget(&partitions);
                    told?;
                }
                Ok(Polled::Lost(partitions)) => {
                    self.forget(&partitions);
                    self.call_back(&Rebalance::Lost(partitions))?;
                }
                Err(Error::OffsetOutOfRange { partition, .. }) if self.reset != Reset::Error => {
                    self.reset_to(std::slice::from_ref(&partition))?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn forget(&mut self, partitions: &[TopicPartition]) {
        if let Some(given_up) = &mut self.given_up {
            given_up.extend(partitions.iter().cloned());
        }
        self.committed.retain(|id, _| !partitions.contains(id));
        self.unplaced.retain(|id| !partitions.contains(id));
    }

    /// What was revoked or lost since the last call; the first one makes it being noted.
    #[cfg(feature = "async")]
    pub(super) fn take_given_up(&mut self) -> BTreeSet<TopicPartition> {
        self.given_up.replace(BTreeSet::new()).unwrap_or_default()
    }

    fn call_back(&mut self, what: &Rebalance) -> Result<()> {
        let Some(mut on_rebalance) = self.on_rebalance.take() else { return Ok(()) };
        self.is_in_callback = true;
        let called = on_rebalance(self, what);
        self.is_in_callback = false;
        self.on_rebalance = Some(on_rebalance);
        called
    }

    /// Gives new partitions their positions. One whose topic is gone gets none, until the group takes it away.
    fn place(&mut self) -> Result<()> {
        let assigned = self.inner.assignment();
        self.unplaced.retain(|id| assigned.binary_search(id).is_ok());
        let known = self.inner.position();
        let (mut without, mut placed) = (Vec::new(), std::mem::take(&mut self.unplaced));
        loop {
            let waiting: Vec<_> = placed.iter().filter(|id| known.get(id).is_none()).cloned().collect();
            match self.begin_at_committed(&waiting) {
                Ok(()) => break,
                Err(Error::UnknownTopic { name }) if placed.iter().any(|id| is_of(id, &name)) => {
                    without.extend(placed.iter().filter(|id| is_of(id, &name)).cloned());
                    placed.retain(|id| !is_of(id, &name));
                }
                Err(error) => {
                    placed.append(&mut without);
                    self.unplaced = placed;
                    return Err(error);
                }
            }
        }
        self.unplaced = without;
        self.is_told_of_unplaced = false;
        if placed.is_empty() { Ok(()) } else { self.call_back(&Rebalance::Assigned(placed)) }
    }

    /// Begins where the group has come to, or where the reset says.
    pub(super) fn begin_at_committed(&mut self, partitions: &[TopicPartition]) -> Result<()> {
        let committed = if self.has_group { self.inner.committed(partitions)? } else { Offsets::new() };
        let mut without = Vec::new();
        for id in partitions {
            let Some(offset) = committed.get(id) else {
                if self.reset == Reset::Error {
                    let limit = "nothing was committed: seek, choose a reset, or commit one";
                    return Err(Error::invalid(format!("position in {id}"), limit));
                }
                without.push(id.clone());
                continue;
            };
            let at = PartitionPosition::new(offset.offset()).leader_epoch(offset.known_leader_epoch().unwrap_or(-1));
            self.committed.insert(id.clone(), offset.offset());
            match self.inner.seek(&Position::of(id.clone(), at)) {
                Err(Error::OffsetOutOfRange { .. } | Error::PositionLost { .. }) if self.reset != Reset::Error => {
                    without.push(id.clone());
                }
                sought => sought?,
            }
        }
        self.reset_to(&without)
    }

    fn reset_to(&mut self, partitions: &[TopicPartition]) -> Result<()> {
        if partitions.is_empty() {
            return Ok(());
        }
        let spec = if self.reset == Reset::Latest { OffsetSpec::Latest } else { OffsetSpec::Earliest };
        let before = self.inner.position();
        let to = self.inner.offsets(partitions, spec)?;
        self.inner.seek(&to)?;
        for (id, at) in to.iter() {
            let known = before.get(id).map(PartitionPosition::next_offset).or_else(|| self.committed.get(id).copied());
            self.resets.push(ResetPosition { partition: id.clone(), before: known, now: at.next_offset() });
        }
        Ok(())
    }

    /// Positions that the reset chose since this was asked last, in order.
    pub fn take_resets(&mut self) -> Vec<ResetPosition> {
        std::mem::take(&mut self.resets)
    }

    /// Commits everything that was polled, as one batch. What has not moved since the last commit is left out, and so is a
    /// partition whose topic was deleted, or made again, since it was read.
    ///
    /// Durable when this returns: the offsets, as [`ConsumerBuilder::commit_durability`] says.
    ///
    /// # Errors
    /// [`Error::Config`] without a group; [`Error::Fenced`] if this consumer is no longer a member of the generation in which it
    /// got its partitions, or the group has members and it is none; those of an append.
    pub fn commit(&mut self) -> Result<()> {
        let offset = |at: &PartitionPosition| {
            let next = OffsetAndMetadata::new(at.next_offset());
            let next = at.known_topic_id().map_or(next.clone(), |topic_id| next.topic_id(topic_id));
            at.known_leader_epoch().map_or(next.clone(), |epoch| next.leader_epoch(epoch))
        };
        let position = self.inner.position();
        let moved = position.iter().filter(|(id, at)| self.committed.get(id) != Some(&at.next_offset()));
        let mut offsets: Offsets = moved.map(|(id, at)| (id.clone(), offset(at))).collect();
        while !offsets.is_empty() {
            let count = offsets.len();
            match self.commit_offsets(&offsets) {
                Err(Error::PositionLost { partition, .. }) if offsets.remove(&partition).is_some() => {}
                Err(Error::UnknownTopic { name }) => {
                    offsets.retain(|id, _| !is_of(id, &name));
                    if offsets.len() == count {
                        return Err(Error::UnknownTopic { name });
                    }
                }
                committed => return committed,
            }
        }
        Ok(())
    }

    /// Commits these offsets, as one batch, of whichever partitions.
    ///
    /// # Errors
    /// As [`commit`](Self::commit); [`Error::UnknownTopic`], and [`Error::PositionLost`] for a topic that was made again since this
    /// consumer read it. Nothing is committed then.
    pub fn commit_offsets(&mut self, offsets: &Offsets) -> Result<()> {
        self.inner.commit(offsets)?;
        self.committed.extend(offsets.iter().map(|(id, offset)| (id.clone(), offset.offset())));
        Ok(())
    }

    /// What the group has committed for a partition.
    ///
    /// # Errors
    /// [`Error::Config`] without a group; those of reading the offsets.
    pub fn committed(&mut self, partition: &TopicPartition) -> Result<Option<OffsetAndMetadata>> {
        Ok(self.inner.committed(std::slice::from_ref(partition))?.remove(partition))
    }

    /// The next offset to be polled from a partition.
    ///
    /// # Errors
    /// [`Error::Invalid`] if this consumer does not read it.
    pub fn position(&self, partition: &TopicPartition) -> Result<Offset> {
        let found = self.inner.position().get(partition).map(PartitionPosition::next_offset);
        found.ok_or_else(|| not_read(partition))
    }

    /// The next offsets to be polled, of all partitions: what to store with state that was made of everything before.
    pub fn positions(&self) -> Position {
        self.inner.position()
    }

    /// Reads on at this offset.
    ///
    /// # Errors
    /// [`Error::OffsetOutOfRange`] if the log does not reach there; [`Error::Invalid`] if this consumer does not read the
    /// partition. It then stays where it is.
    pub fn seek(&mut self, partition: &TopicPartition, offset: impl Into<Offset>) -> Result<()> {
        self.seek_to(&Position::of(partition.clone(), PartitionPosition::new(offset)))
    }

    /// Reads on at a position that was stored, or that a write returned.
    ///
    /// # Errors
    /// [`Error::PositionLost`] if the topic was made again or the log was cut since the position was taken; as
    /// [`seek`](Self::seek). Nothing has moved then.
    pub fn seek_to(&mut self, position: &Position) -> Result<()> {
        self.inner.seek(position)
    }

    /// Reads every partition again from its log start.
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub fn seek_to_beginning(&mut self) -> Result<()> {
        self.seek_all(OffsetSpec::Earliest)
    }

    /// Passes over everything that can be read now, in every partition.
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub fn seek_to_end(&mut self) -> Result<()> {
        self.seek_all(OffsetSpec::Latest)
    }

    /// Reads every partition on at the first record that is at least as new as this, in milliseconds since 1970-01-01 UTC; at
    /// the end where there is none.
    ///
    /// # Errors
    /// Those of [`Partition::offset_for_timestamp`](crate::Partition::offset_for_timestamp); no partition has moved then.
    pub fn seek_to_time(&mut self, timestamp_ms: Timestamp) -> Result<()> {
        self.seek_all(OffsetSpec::Timestamp(timestamp_ms))
    }

    fn seek_all(&mut self, which: OffsetSpec) -> Result<()> {
        let to = self.inner.offsets(&self.inner.assignment(), which)?;
        self.inner.seek(&to)
    }

    /// Leaves a partition out of polls until [`resume`](Self::resume).
    ///
    /// # Errors
    /// [`Error::Invalid`] if this consumer does not read it.
    pub fn pause(&mut self, partition: &TopicPartition) -> Result<()> {
        self.inner.pause(std::slice::from_ref(partition))
    }

    /// Takes a paused partition up again, where it was left.
    ///
    /// # Errors
    /// [`Error::Invalid`] if this consumer does not read it.
    pub fn resume(&mut self, partition: &TopicPartition) -> Result<()> {
        self.inner.resume(std::slice::from_ref(partition))
    }

    /// How far this consumer is behind what can be read now, in a partition, by what it has polled. What its group has committed
    /// is [`Groups::lag_of`](crate::group::Groups::lag_of).
    ///
    /// # Errors
    /// [`Error::Invalid`] if this consumer does not read it; those of a read.
    pub fn lag(&mut self, partition: &TopicPartition) -> Result<Lag> {
        let position = self.position(partition)?;
        self.inner.lag(partition, position)
    }

    /// [`lag`](Self::lag) of all its partitions together.
    ///
    /// # Errors
    /// Those of a read.
    pub fn lag_in_all(&mut self) -> Result<Lag> {
        let mut sum = Lag::default();
        for (id, at) in self.inner.position().iter() {
            sum = sum.and(self.inner.lag(id, at.next_offset())?);
        }
        Ok(sum)
    }

    /// As whom this consumer stands in its group; `None` while it is not a member.
    pub fn group_metadata(&self) -> Option<GroupMetadata> {
        self.inner.group_metadata()
    }

    /// Begins to listen for what a poll may find.
    pub fn listen(&self) -> Listener {
        self.inner.listen()
    }

    /// Commits what was polled if it commits with its polls, and leaves the group, so that others have its partitions at once.
    /// A member with a static name stays in the group: it is to come back.
    ///
    /// # Errors
    /// As [`commit`](Self::commit). It has left all the same.
    pub fn close(mut self) -> Result<()> {
        let committed = match self.commits_with_poll.then(|| self.commit()) {
            // What it had is another's: there is nothing left to commit.
            None | Some(Err(Error::Fenced { .. })) => Ok(()),
            Some(committed) => committed,
        };
        let left = self.inner.close(Duration::ZERO);
        committed.and(left)
    }
}

fn is_of(id: &TopicPartition, topic: &str) -> bool {
    // A partition that its topic does not have is called by both.
    id.topic.as_str() == topic || id.to_string() == topic
}

fn not_read(partition: &TopicPartition) -> Error {
    Error::invalid("partition", format!("{partition} is not read by this consumer"))
}
