//! The offset store: commits are batches in a group's partition of `__consumer_offsets`, what they fold into is cached.
//!
//! The append is the commit point. It happens under the lock of the partition's groups, so that what is checked before it
//! still holds; the sync that its level asks for is awaited without the lock, and then the cached offsets move. Commits that
//! are awaited at the same time settle in the order of their records.

use std::fmt;
use std::sync::{Arc, Weak};

use super::commit::{CommitOptions, GROUP_BYTES_MAX, check_group};
use super::lag::lag;
use super::offsets::{CommittedOffset, GroupTable, Removed};
use super::schema::partition_for_group;
use super::shards::{Known, Removal, Seen, Shard, Shards, Shared};
use crate::client::{Lag, OffsetAndMetadata};
use crate::clock::Timestamp;
use crate::error::{Error, Result};
use crate::ids::{Offset, TopicPartition};
use crate::store::Store;
use crate::store::brokers_topics::{OFFSETS_TOPIC, config_of};
use crate::store::waits::more_can_come;
use crate::sync::atomic::Ordering;
use crate::topic::Topic;

/// Partitions of `__consumer_offsets` where we create it. Kafka makes 50; any number is read.
const PARTITIONS: u32 = 4;

/// The groups of a store. Cheap to clone; all handles of one store share what was read.
///
/// ```
/// use topiclog::client::OffsetAndMetadata;
/// use topiclog::group::Groups;
/// use topiclog::{Record, Store, TopicConfig};
/// let store = Store::in_memory()?;
/// let orders = store.create_topic("orders", TopicConfig::default())?.partition(0)?;
/// orders.append(Record::of_value("placed"))?;
/// let groups = Groups::open(&store)?;
/// assert_eq!(groups.committed("billing", orders.id())?, None);
/// groups.commit("billing", &[(orders.id().clone(), OffsetAndMetadata::new(1))])?;
/// assert_eq!(groups.committed("billing", orders.id())?.map(|found| found.offset), Some(1));
/// # store.close()?;
/// # Ok::<(), topiclog::Error>(())
/// ```
#[derive(Clone)]
pub struct Groups {
    store: Store,
    pub(super) shared: Arc<Shared>,
}

impl fmt::Debug for Groups {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Groups").field("store", &self.store).finish_non_exhaustive()
    }
}

impl Groups {
    /// The groups of an open store. Reads nothing yet: each partition of `__consumer_offsets` is read at its first use. From
    /// now on tombstones wait for groups that have not come to them.
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub fn open(store: &Store) -> Result<Self> {
        let groups = Self { store: store.clone(), shared: store.readers(Shared::default) };
        groups.shards()?;
        Ok(groups)
    }

    /// The store.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The names of all groups, in order: those with committed offsets, and those that a member made or an administrator.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if a newer version wrote one of the records, [`Error::Corrupt`] if one is damaged; those of a
    /// read; [`Error::Closed`].
    pub fn list(&self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        self.each_table(|table| names.extend(table.groups().map(|(name, _)| name.to_string())))?;
        names.sort_unstable();
        names.dedup();
        Ok(names)
    }

    /// Everything that a group has committed, in order of topic and partition; empty for a group that nobody knows.
    ///
    /// # Errors
    /// As [`list`](Self::list).
    pub fn offsets(&self, group: &str) -> Result<Vec<(TopicPartition, CommittedOffset)>> {
        let of = |table: &GroupTable| {
            let group = table.group(group);
            let offsets = group.into_iter().flat_map(|group| group.offsets.iter());
            offsets.map(|(place, found)| (place.clone(), found.committed.clone())).collect::<Vec<_>>()
        };
        Ok(self.read(group, of)?.unwrap_or_default())
    }

    /// What a group has committed for one partition.
    ///
    /// # Errors
    /// As [`list`](Self::list).
    pub fn committed(&self, group: &str, partition: &TopicPartition) -> Result<Option<CommittedOffset>> {
        let of = |table: &GroupTable| {
            let found = table.group(group).and_then(|group| group.offsets.get(partition));
            found.map(|found| found.committed.clone())
        };
        Ok(self.read(group, of)?.flatten())
    }

    /// Commits offsets of a group, as one batch: all of them hold, or none. `__consumer_offsets` is created if there is none.
    /// It is for readers that are assigned their partitions, and for administrators: a group with members takes commits of its
    /// members only ([`commit_as`](Self::commit_as)). Members that an earlier process left behind do not count until one of
    /// them is heard of.
    ///
    /// Durable when this returns: the commit survives a power cut, unless `__consumer_offsets` was configured for less.
    ///
    /// # Errors
    /// [`Error::Invalid`] for no offsets, a negative one, an empty or too long name, or metadata of more than 4,096 bytes;
    /// [`Error::UnknownTopic`] if a partition does not exist; [`Error::Fenced`] while the group has members; those of an append.
    /// The offsets are then as before, except after
    /// [`Error::OutcomeUnknown`].
    pub fn commit(&self, group: &str, offsets: &[(TopicPartition, OffsetAndMetadata)]) -> Result<()> {
        self.commit_all(&[(group, offsets)], &CommitOptions::default())
    }

    /// [`commit`](Self::commit) with a durability of its own, for one or many groups. One batch holds them all, so they must
    /// share a partition of `__consumer_offsets`; [`partition_of`](Self::partition_of) tells which one a group has.
    ///
    /// Durable when this returns: what the options say.
    ///
    /// # Errors
    /// As [`commit`](Self::commit); [`Error::Invalid`] if the groups do not share a partition.
    pub fn commit_all(
        &self,
        groups: &[(&str, &[(TopicPartition, OffsetAndMetadata)])],
        options: &CommitOptions,
    ) -> Result<()> {
        self.commit_batch(groups, options, None)
    }

    /// Takes committed offsets of a group away. Those that are not there are passed over. The group itself is gone once it has
    /// neither offsets nor members.
    ///
    /// Durable when this returns, as [`commit`](Self::commit).
    ///
    /// # Errors
    /// As [`commit`](Self::commit); [`Error::Invalid`] for a topic that a member of the group reads.
    pub fn delete_offsets(&self, group: &str, partitions: &[TopicPartition]) -> Result<()> {
        self.remove(group, Some(partitions), |table, in_flight| {
            let committed = table.group(group).map(|found| &found.offsets);
            let is_there = |place: &&TopicPartition| {
                committed.is_some_and(|committed| committed.contains_key(place)) || in_flight.contains(place)
            };
            (partitions.iter().filter(is_there).cloned().collect(), false)
        })
    }

    /// Takes a group away, with all its offsets. One that is not there is no error.
    ///
    /// Durable when this returns, as [`commit`](Self::commit).
    ///
    /// # Errors
    /// As [`commit`](Self::commit); [`Error::Invalid`] while the group has members; [`Error::Unsupported`] for a group of the
    /// newer protocol, whose members a broker keeps: its offsets alone can be taken away
    /// ([`delete_offsets`](Self::delete_offsets)).
    pub fn delete(&self, group: &str) -> Result<()> {
        self.remove(group, None, |table, in_flight| {
            let committed = table.group(group).into_iter().flat_map(|found| found.offsets.keys());
            let mut places: Vec<TopicPartition> = committed.chain(in_flight).cloned().collect();
            places.sort_unstable();
            places.dedup();
            (places, true)
        })
    }

    /// Takes away every committed offset whose time is over, by Kafka's rule (`offsets.retention.minutes`), and then each
    /// classic group that is left without members and offsets. Nothing does this by itself. Returns how many offsets went.
    ///
    /// The retention counts from the commit; of an empty group from the time that it became empty. A group with members loses
    /// only offsets of topics that none of them has subscribed to. Who is gone is no member: one that was dropped, one that was
    /// silent for longer than its session, one of an earlier process that had the store open. Where this call is the first to
    /// notice, the group becomes empty now, and a later call takes its offsets.
    ///
    /// Durable when this returns, as [`commit`](Self::commit). All that goes of one partition of `__consumer_offsets` is synced
    /// at once.
    ///
    /// # Errors
    /// As [`commit`](Self::commit); [`Error::Invalid`] for a negative retention.
    #[doc(alias = "offsets.retention.minutes")]
    pub fn expire(&self, retention_ms: i64) -> Result<usize> {
        if retention_ms < 0 {
            return Err(Error::invalid("retention_ms", "must not be negative"));
        }
        let Some(shards) = self.shards()? else { return Ok(0) };
        if let Some(error) = shards.unreadable.values().next() {
            return Err(error.duplicate());
        }
        self.let_all_go(&shards)?;
        let now_ms = self.store.clock().now_ms();
        let mut expired = 0;
        for shard in shards.by_number.values() {
            let removal = shard.append_removed(true, |table, in_flight| {
                let in_flight = in_flight.iter().map(|(_, group, place)| (group.as_str(), place));
                Ok(table.over(now_ms, retention_ms, in_flight))
            })?;
            expired += self.settle_removed(shard, removal)?;
        }
        Ok(expired)
    }

    /// Takes out, of all groups that have members by their records, those who are gone.
    fn let_all_go(&self, shards: &Shards) -> Result<()> {
        let mut names: Vec<String> = Vec::new();
        for (&number, shard) in &shards.by_number {
            let mut state = shard.state.lock();
            for (name, group) in state.loaded(&shard.partition)?.groups() {
                // Where only some partitions of a broker are, a group may be in another than its members would be kept in.
                let is_in_place = partition_for_group(name, shards.count) == number && !name.is_empty();
                if group.has_members() && is_in_place {
                    names.push(name.to_string());
                }
            }
        }
        names.retain(|name| self.may_let_go(name));
        self.tick_all(names)
    }

    /// Appends the tombstones of what `what` names: offsets, and whether the group's metadata goes too. Refused while members of
    /// the group read one of these topics, or while it has any if there are none.
    fn remove(
        &self,
        group: &str,
        topics: Option<&[TopicPartition]>,
        what: impl FnOnce(&GroupTable, &[TopicPartition]) -> (Vec<TopicPartition>, bool),
    ) -> Result<()> {
        // An empty name is one that Kafka takes as well: it can be taken away, though not committed to.
        if group.len() > GROUP_BYTES_MAX {
            return check_group(group);
        }
        let Some(shards) = self.shards()? else { return Ok(()) };
        let shard = shards.at(partition_for_group(group, shards.count))?;
        let live = self.let_go(group)?;
        let pick = |table: &GroupTable, in_flight: &[(i64, String, TopicPartition)]| {
            let of_group = in_flight.iter().filter(|(_, name, _)| name == group);
            let in_flight: Vec<TopicPartition> = of_group.map(|(.., place)| place.clone()).collect();
            let (places, takes_group) = what(table, &in_flight);
            let found = table.group(group);
            if takes_group && found.is_some_and(|found| found.is_of_newer_protocol) {
                let what = format!("to delete {group:?}, a group of the newer protocol, whose members a broker keeps");
                return Err(Error::unsupported(what));
            }
            let name: Arc<str> = group.into();
            let has_metadata = found.is_some_and(|found| takes_group && found.metadata.is_some());
            let places = places.into_iter().map(Some).chain(has_metadata.then_some(None));
            Ok(places.map(|place| Removed { group: Arc::clone(&name), place }).collect())
        };
        let appended = self.lock_unused(&live, group, topics).and_then(|_locked| shard.append_removed(false, pick));
        drop(live);
        self.forget_unused(group);
        self.settle_removed(shard, appended?).map(drop)
    }

    /// Lets tombstones hold, and tells who waits for what went. Returns how many offsets there were.
    fn settle_removed(&self, shard: &Shard, removal: Removal) -> Result<usize> {
        let places = shard.settle_removed(removal)?;
        for place in &places {
            if let Ok(partition) =
                self.store.topic(place.topic.as_str()).and_then(|topic| topic.partition(place.partition))
            {
                self.store.readers_moved(&partition);
            }
        }
        Ok(places.len())
    }

    /// How far a position is behind in a partition.
    ///
    /// # Errors
    /// [`Error::UnknownTopic`] if the partition does not exist; those of a read.
    ///
    /// ```
    /// use topiclog::group::Groups;
    /// use topiclog::{Record, Store, TopicConfig};
    /// let store = Store::in_memory()?;
    /// let orders = store.create_topic("orders", TopicConfig::default())?.partition(0)?;
    /// orders.append_batch(&[Record::of_value("a"), Record::of_value("b"), Record::of_value("c")])?;
    /// let lag = Groups::open(&store)?.lag(orders.id(), 1)?;
    /// assert_eq!((lag.records, lag.offsets), (2, 2));
    /// # store.close()?;
    /// # Ok::<(), topiclog::Error>(())
    /// ```
    pub fn lag(&self, partition: &TopicPartition, position: impl Into<Offset>) -> Result<Lag> {
        self.lag_since(partition, position.into(), -1)
    }

    /// [`lag`](Self::lag) of a position that has not moved since then.
    pub(crate) fn lag_since(
        &self,
        partition: &TopicPartition,
        position: Offset,
        moved_at_ms: Timestamp,
    ) -> Result<Lag> {
        let partition = self.store.topic(partition.topic.as_str())?.partition(partition.partition)?;
        lag(&partition, position.get(), moved_at_ms, self.store.clock().now_ms())
    }

    /// How far a group is behind, by what it has committed, in each partition; [`Lag::and`] sums them up. Partitions of topics
    /// that are no longer there are left out; where the topic was made again, everything in it is still to be read.
    ///
    /// # Errors
    /// As [`list`](Self::list); those of a read.
    ///
    /// ```
    /// use topiclog::client::{Lag, OffsetAndMetadata};
    /// use topiclog::group::Groups;
    /// use topiclog::{Record, Store, TopicConfig};
    /// let store = Store::in_memory()?;
    /// let orders = store.create_topic("orders", TopicConfig::default())?.partition(0)?;
    /// orders.append_batch(&[Record::of_value("a"), Record::of_value("b"), Record::of_value("c")])?;
    /// let groups = Groups::open(&store)?;
    /// groups.commit("billing", &[(orders.id().clone(), OffsetAndMetadata::new(1))])?;
    /// let of_each = groups.lag_of("billing")?;
    /// let in_all = of_each.iter().fold(Lag::default(), |sum, (_, lag)| sum.and(*lag));
    /// assert_eq!(in_all.records, 2);
    /// # store.close()?;
    /// # Ok::<(), topiclog::Error>(())
    /// ```
    pub fn lag_of(&self, group: &str) -> Result<Vec<(TopicPartition, Lag)>> {
        let mut found = Vec::new();
        for (id, committed) in self.offsets(group)? {
            let topic = match self.store.topic(id.topic.as_str()) {
                Err(Error::UnknownTopic { .. }) => continue,
                topic => topic?,
            };
            let is_of_this = committed.topic_id.is_none_or(|of| of == topic.id());
            let position = if is_of_this { committed.offset } else { 0 };
            match self.lag_since(&id, position.into(), committed.commit_timestamp_ms) {
                Err(Error::UnknownTopic { .. }) => {}
                lag => found.push((id, lag?)),
            }
        }
        Ok(found)
    }

    /// The partition of `__consumer_offsets` that has a group's offsets; where there is no such topic yet, the one that it
    /// will have.
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub fn partition_of(&self, group: &str) -> Result<u32> {
        Ok(partition_for_group(group, self.shards()?.map_or(PARTITIONS, |shards| shards.count)))
    }

    /// Whether the group may commit again, as far as the log of its commits is concerned.
    pub(super) fn check_commits_can_come(&self, group: &str) -> Result<()> {
        let Some(shards) = self.shards()? else { return Ok(()) };
        more_can_come(&shards.at(partition_for_group(group, shards.count))?.partition)
    }

    /// Reads the group's table. `None` if there are no groups at all. Where only some partitions of a broker are, their number
    /// is not known for sure: a group that is not where it should be is looked for in all of them.
    pub(super) fn read<T>(&self, group: &str, of: impl Fn(&GroupTable) -> T) -> Result<Option<T>> {
        let Some(shards) = self.shards()? else { return Ok(None) };
        let number = partition_for_group(group, shards.count);
        if let Some(error) = shards.unreadable.get(&number) {
            return Err(error.duplicate());
        }
        let expected = shards.by_number.get(&number);
        for shard in expected.into_iter().chain(shards.by_number.values()) {
            let mut state = shard.state.lock();
            let table = state.loaded(&shard.partition)?;
            if table.group(group).is_some() {
                return Ok(Some(of(table)));
            }
        }
        Ok(None)
    }

    fn each_table(&self, mut visit: impl FnMut(&GroupTable)) -> Result<()> {
        let Some(shards) = self.shards()? else { return Ok(()) };
        if let Some(error) = shards.unreadable.values().next() {
            return Err(error.duplicate());
        }
        for shard in shards.by_number.values() {
            visit(shard.state.lock().loaded(&shard.partition)?);
        }
        Ok(())
    }

    /// The partitions as they are now: of a topic that was deleted and made again nothing is remembered.
    pub(super) fn shards(&self) -> Result<Option<Arc<Shards>>> {
        self.store.check_open()?;
        // Noted before the look, so that a change during it is looked at again.
        let topics_version = self.store.topics_version();
        if self.shared.first_version.load(Ordering::Acquire) == topics_version
            && let Some(first) = self.shared.first.get().and_then(Weak::upgrade)
        {
            return Ok(Some(first));
        }
        {
            let seen = self.shared.shards.lock();
            if let (true, Known::Topic(shards)) = (seen.topics_version == topics_version, &seen.known) {
                return Ok(Some(Arc::clone(shards)));
            }
        }
        let topic = match self.store.topic(OFFSETS_TOPIC) {
            Ok(topic) => topic,
            Err(Error::UnknownTopic { .. }) => {
                self.know(&mut self.shared.shards.lock(), Seen { topics_version, known: Known::NoTopic });
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        Ok(Some(self.shards_of(topics_version, &topic)))
    }

    fn shards_of(&self, topics_version: u64, topic: &Topic) -> Arc<Shards> {
        let mut seen = self.shared.shards.lock();
        let shards = match &seen.known {
            Known::Topic(known) if known.topic_id == topic.id() => Arc::clone(known),
            _ => Arc::new(Shards::new(topic)),
        };
        self.know(&mut seen, Seen { topics_version, known: Known::Topic(Arc::clone(&shards)) });
        shards
    }

    fn know(&self, seen: &mut Seen, now: Seen) {
        if let Known::Topic(shards) = &now.known
            && std::ptr::eq(self.shared.first.get_or_init(|| Arc::downgrade(shards)).as_ptr(), Arc::as_ptr(shards))
        {
            self.shared.first_version.store(now.topics_version, Ordering::Release);
        }
        let before = std::mem::replace(seen, now);
        // As long as nothing was known, everything was kept for groups.
        if matches!(before.known, Known::Nothing) {
            self.store.note_all_readers_moved();
        }
    }

    pub(super) fn writable_shards(&self) -> Result<Arc<Shards>> {
        if let Some(shards) = self.shards()? {
            return Ok(shards);
        }
        let topics_version = self.store.topics_version();
        let config = config_of(OFFSETS_TOPIC).partitions(PARTITIONS);
        Ok(self.shards_of(topics_version, &self.store.ensure_topic(OFFSETS_TOPIC, config)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::client::{Consumer, GroupMetadata};
    use crate::group::commit::{Commit, value};
    use crate::group::load::load;
    use crate::group::shards::Appended;
    use crate::ids::Uuid;
    use crate::store::holds::Readers as _;

    use crate::clock::ManualClock;
    use crate::io::{MemoryVfs, OpenMode, Vfs as _};
    use crate::store::builder::Upkeep;
    use crate::topic::TopicConfig;

    /// A group that has committed 5 of one partition at time 0, and the clock.
    fn committed_five(vfs: &MemoryVfs) -> (Groups, TopicPartition, Arc<ManualClock>) {
        let clock = Arc::new(ManualClock::new(0));
        let builder = Store::builder().vfs(Arc::new(vfs.clone())).clock(Arc::clone(&clock) as _);
        let store = builder.upkeep(Upkeep::Manual).open("/s").unwrap();
        let place = store.create_topic("t", TopicConfig::default()).unwrap().partition(0).unwrap().id().clone();
        let groups = Groups::open(&store).unwrap();
        groups.commit("g", &[(place.clone(), OffsetAndMetadata::new(5))]).unwrap();
        (groups, place, clock)
    }

    /// Commits 10, and does something else while the commit waits for its sync. What the cache says then, and the log.
    fn check(beside: impl FnOnce(&Groups, &TopicPartition), expected: Option<i64>) {
        let (groups, place, clock) = committed_five(&MemoryVfs::new());
        clock.advance_ms(10_000);
        let shards = groups.writable_shards().unwrap();
        let shard = shards.at(partition_for_group("g", shards.count)).unwrap();
        let value = value(&OffsetAndMetadata::new(10), Uuid::from_bytes([0; 16]), 10_000);
        let partition = groups.store.topic("t").unwrap().partition(0).unwrap();
        let commits = [Commit::new("g", (0, partition), value)];
        let appended = shard.append_commits(&commits, &CommitOptions::default(), || Ok(()));
        let Appended::InFlight(placed, awaited) = appended.unwrap() else {
            panic!("a commit waits for its sync");
        };
        beside(&groups, &place);
        shard.partition.log.acknowledge(awaited, &placed).unwrap();
        shard.settle(&placed, &commits).unwrap();
        let found = |committed: Option<CommittedOffset>| committed.map(|found| found.offset);
        assert_eq!(found(groups.committed("g", &place).unwrap()), expected, "the cache");
        let read_again = load(&shard.partition).unwrap();
        let in_log = read_again.group("g").and_then(|group| group.offsets.get(&place));
        let in_log = in_log.map(|found| found.committed.clone());
        assert_eq!(found(in_log), expected, "the log");
        assert!(shard.state.lock().in_flight.is_empty());
    }

    /// The tombstone was once written behind the new commit, for the old one's age: an acknowledged commit was gone.
    #[test]
    fn an_offset_does_not_expire_while_a_newer_one_waits_for_its_sync() {
        check(|groups, _| assert_eq!(groups.expire(1000).unwrap(), 0), Some(10));
    }

    /// The cache once showed what the log had deleted.
    #[test]
    fn an_offset_that_is_deleted_while_it_waits_for_its_sync_stays_deleted() {
        check(|groups, place| groups.delete_offsets("g", std::slice::from_ref(place)).unwrap(), None);
        check(|groups, _| groups.delete("g").unwrap(), None);
    }

    /// Who joins meanwhile would else commit first, and lose that to somebody who is no member.
    #[test]
    fn what_nobody_deletes_is_held_until_it_is_in_the_log() {
        let (groups, place, _) = committed_five(&MemoryVfs::new());
        let shards = groups.writable_shards().unwrap();
        let shard = shards.at(partition_for_group("g", shards.count)).unwrap();
        let check = |what: &(dyn Fn() + Sync)| {
            let held = shard.state.lock();
            std::thread::scope(|scope| {
                scope.spawn(what);
                let is_held = || {
                    let live = groups.shared.live.lock().by_name.get("g").cloned();
                    live.is_some_and(|live| live.state.try_lock().is_none())
                };
                let is_seen = (0..100_000_000).any(|_| {
                    std::thread::yield_now();
                    is_held()
                });
                drop(held);
                assert!(is_seen);
            });
        };
        check(&|| groups.delete_offsets("g", std::slice::from_ref(&place)).unwrap());
        check(&|| groups.delete("g").unwrap());
        assert_eq!(groups.shared.live.lock().by_name.len(), 0);
    }

    #[test]
    fn a_commit_of_nobody_is_refused_if_somebody_joins_before_it_is_in_the_log() {
        let (groups, place, _) = committed_five(&MemoryVfs::new());
        let shards = groups.writable_shards().unwrap();
        let held = shards.at(partition_for_group("g", shards.count)).unwrap().state.lock();
        let has_begun = std::sync::atomic::AtomicBool::new(false);
        let commit = || {
            has_begun.store(true, Ordering::Release);
            groups.commit("g", &[(place.clone(), OffsetAndMetadata::new(6))])
        };
        std::thread::scope(|scope| {
            let committing = scope.spawn(commit);
            while !has_begun.load(Ordering::Acquire) {
                std::thread::yield_now();
            }
            // Until it waits for the lock.
            (0..100_000).for_each(|_| std::thread::yield_now());
            groups.shared.in_use.note("g", true);
            drop(held);
            assert!(matches!(committing.join().unwrap(), Err(Error::Fenced { .. })));
        });
        assert_eq!(groups.committed("g", &place).unwrap().map(|found| found.offset), Some(5));
        groups.shared.in_use.note("g", false);
        commit().unwrap();
    }

    /// A member that a broker has is heard of again by what it commits.
    #[test]
    fn a_member_of_an_earlier_process_counts_once_it_is_heard_of() {
        let vfs = MemoryVfs::new();
        let (groups, place, clock) = committed_five(&vfs);
        let member = groups.only_member_of("g");
        groups.store.close().unwrap();

        let builder = Store::builder().vfs(Arc::new(vfs)).clock(clock);
        let groups = Groups::open(&builder.upkeep(Upkeep::Manual).open("/s").unwrap()).unwrap();
        let commit = |offset| groups.commit("g", &[(place.clone(), OffsetAndMetadata::new(offset))]);
        commit(6).unwrap();
        groups.commit_as(&member, &[(place.clone(), OffsetAndMetadata::new(7))], &CommitOptions::default()).unwrap();
        assert!(matches!(commit(8), Err(Error::Fenced { .. })));
        groups.leave("g", &member.member_id).unwrap().unwrap();
        commit(9).unwrap();
    }

    /// It holds the files of the topic open, and everything that was read of it.
    #[test]
    fn what_was_known_of_a_deleted_topic_is_let_go() {
        let (groups, place, _) = committed_five(&MemoryVfs::new());
        let known = || groups.shared.first.get().and_then(Weak::upgrade);
        let is_quick = || groups.shared.first_version.load(Ordering::Acquire) == groups.store.topics_version();
        groups.list().unwrap();
        assert!(known().is_some() && is_quick());
        groups.store.create_topic("another", TopicConfig::default()).unwrap();
        assert!(!is_quick(), "it may be another by now");
        groups.list().unwrap();
        assert!(is_quick());
        groups.store.delete_topic(OFFSETS_TOPIC).unwrap();
        assert_eq!(groups.committed("g", &place).unwrap(), None);
        assert!(known().is_none());
        groups.commit("g", &[(place.clone(), OffsetAndMetadata::new(6))]).unwrap();
        assert_eq!(groups.committed("g", &place).unwrap().map(|found| found.offset), Some(6));
    }

    /// Nobody has to call for it: the next use of any group lets go.
    #[test]
    fn groups_under_ever_new_names_do_not_pile_up_in_memory() {
        let (groups, place, _) = committed_five(&MemoryVfs::new());
        let live = || groups.shared.live.lock().by_name.len();
        for number in 0..50 {
            // Dropped before it has joined.
            drop(Consumer::join(groups.store(), &format!("unused-{number}"), ["t"]).unwrap());
            assert!(live() < 5, "{}", live());
        }
        for number in 0..50 {
            let mut consumer = Consumer::join(groups.store(), &format!("used-{number}"), ["t"]).unwrap();
            consumer.poll(std::time::Duration::ZERO).unwrap();
            drop(consumer);
            assert!(live() < 5, "{}", live());
        }
        for number in 0..50 {
            groups.commit(&format!("assigned-{number}"), &[(place.clone(), OffsetAndMetadata::new(6))]).unwrap();
        }
        assert!(live() < 5, "{}", live());
        let members = |number| groups.describe(&format!("used-{number}")).unwrap().map(|found| found.members.len());
        assert!((0..40).all(|number| members(number) == Some(0)));
    }

    /// What was once in use is in the log; in memory nothing is left of it.
    #[test]
    fn a_group_that_nobody_is_in_takes_no_memory() {
        let (groups, place, _) = committed_five(&MemoryVfs::new());
        let live = || groups.shared.live.lock().by_name.len();
        let offsets = [(place, OffsetAndMetadata::new(6))];
        let member = GroupMetadata::new("nobody", 3, "m", None);
        assert!(groups.commit_as(&member, &offsets, &CommitOptions::default()).is_err());
        assert!(groups.heartbeat(&member).unwrap().is_err());
        assert_eq!(live(), 0);
        let mut consumer = Consumer::join(groups.store(), "g", ["t"]).unwrap();
        consumer.poll(std::time::Duration::ZERO).unwrap();
        assert_eq!(live(), 1);
        drop(consumer);
        groups.tick().unwrap();
        assert_eq!(live(), 0);
        assert_eq!(groups.describe("g").unwrap().map(|found| found.members.len()), Some(0));
    }

    #[test]
    fn nothing_is_let_go_before_anybody_has_looked_where_groups_are() {
        let (groups, place, _) = committed_five(&MemoryVfs::new());
        assert_eq!(Shared::default().lowest(&place), 0);
        assert_eq!(groups.shared.lowest(&place), 5);
    }

    /// How far they have come is not known, so nothing may be taken from under them.
    #[test]
    fn groups_that_cannot_be_read_hold_every_tombstone() {
        let vfs = MemoryVfs::new();
        let (groups, place, _) = committed_five(&vfs);
        let number = groups.partition_of("g").unwrap();
        groups.store.close().unwrap();
        let log = format!("/s/{OFFSETS_TOPIC}-{number}/00000000000000000000.log");
        // Shorter than what was synced.
        vfs.open(log.as_ref(), OpenMode::Write).unwrap().set_len(10).unwrap();
        let builder = Store::builder().vfs(Arc::new(vfs)).read_only(true);
        let groups = Groups::open(&builder.upkeep(Upkeep::Manual).open("/s").unwrap()).unwrap();
        assert!(groups.committed("g", &place).is_err());
        assert_eq!(groups.shared.lowest(&place), 0);
    }
}
