//! The partitions of `__consumer_offsets`, and what was read of each. All handles of one store share them.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::{Arc, OnceLock, Weak};

use super::commit::{Commit, CommitOptions, key};
use super::commit_again::{CommitRecords, Located};
use super::load::load;
use super::membership::LiveGroups;
use super::offsets::{GroupTable, Removed};
use super::schema::Key;
use crate::clock::Timestamp;
use crate::error::{Error, Result};
use crate::ids::{TopicPartition, Uuid};
use crate::partition::Partition;
use crate::partition::append_options::AppendSpec;
use crate::partition::sync_window::Awaited;
use crate::partition::writer::Placed;
use crate::record::{AsRecord, Record};
use crate::store::brokers_topics::OFFSETS_TOPIC;
use crate::store::holds::Readers;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use crate::topic::Topic;

/// More than the header of a batch takes.
const BATCH_BYTES: usize = 64;
/// More than a record takes besides its key and value: lengths, deltas and attributes.
pub(super) const RECORD_BYTES: usize = 32;

/// What all handles of a store share. Holds partitions and no handle of the store, which holds it.
#[derive(Default)]
pub(super) struct Shared {
    pub(super) shards: Mutex<Seen>,
    /// What was found first, as long as it is there. Most often that is for good, and then nobody needs the lock.
    pub(super) first: OnceLock<Weak<Shards>>,
    /// A version of the store's topics at which it was.
    pub(super) first_version: AtomicU64,
    pub(super) live: Mutex<LiveGroups>,
    pub(super) in_use: InUse,
}

/// Groups that have members, as far as this process knows: they take commits of their members only.
///
/// A commit of nobody looks here under the lock of the partition that it is appended to, and a group is noted before anything
/// that its members decided is appended there. So no such commit stands behind the begin of a generation.
#[derive(Default)]
pub(super) struct InUse {
    /// How many there are. Most often none, which is seen without a lock.
    count: AtomicUsize,
    names: Mutex<BTreeSet<String>>,
}

impl InUse {
    pub(super) fn has(&self, group: &str) -> bool {
        self.count.load(Ordering::Acquire) > 0 && self.names.lock().contains(group)
    }

    pub(super) fn note(&self, group: &str, has_members: bool) {
        let mut names = self.names.lock();
        if has_members {
            names.insert(group.to_owned());
        } else {
            names.remove(group);
        }
        self.count.store(names.len(), Ordering::Release);
    }
}

/// What was found of `__consumer_offsets` when it was looked at last.
#[derive(Default)]
pub(super) struct Seen {
    /// The store's topics, as they were before that look.
    pub(super) topics_version: u64,
    pub(super) known: Known,
}

/// What is known of `__consumer_offsets`.
#[derive(Default)]
pub(super) enum Known {
    /// Nobody has looked yet: any group may be anywhere.
    #[default]
    Nothing,
    /// There is no such topic.
    NoTopic,
    Topic(Arc<Shards>),
}

/// The partitions of `__consumer_offsets`.
pub(super) struct Shards {
    pub(super) topic_id: Uuid,
    pub(super) count: u32,
    pub(super) by_number: BTreeMap<u32, Shard>,
    /// Those that a read-only open could not read, and why.
    pub(super) unreadable: BTreeMap<u32, Error>,
}

/// One partition, and what was read of it.
pub(super) struct Shard {
    pub(super) partition: Partition,
    pub(super) state: Mutex<ShardState>,
}

#[derive(Default)]
pub(super) struct ShardState {
    /// `None` until it is used for the first time.
    pub(super) table: Option<GroupTable>,
    /// Commits that are in the log and wait for their sync: the offset of the record, the group and the partition.
    pub(super) in_flight: Vec<(i64, String, TopicPartition)>,
    pub(super) records: CommitRecords,
}

impl ShardState {
    pub(super) fn loaded(&mut self, partition: &Partition) -> Result<&mut GroupTable> {
        match &mut self.table {
            Some(table) => Ok(table),
            unread => Ok(unread.insert(load(partition)?)),
        }
    }
}

impl Readers for Shared {
    /// Of groups that cannot be read nobody knows where they are.
    fn lowest(&self, partition: &TopicPartition) -> i64 {
        let shards = match &self.shards.lock().known {
            Known::Nothing => return 0,
            Known::NoTopic => return i64::MAX,
            Known::Topic(shards) => Arc::clone(shards),
        };
        if !shards.unreadable.is_empty() {
            return 0;
        }
        let lowest = |shard: &Shard| {
            let mut state = shard.state.lock();
            let table = state.loaded(&shard.partition).ok()?;
            let held = table.groups().filter_map(|(_, group)| group.offsets.get(partition));
            Some(held.map(|found| found.committed.offset).min().unwrap_or(i64::MAX))
        };
        shards.by_number.values().map(|shard| lowest(shard).unwrap_or(0)).min().unwrap_or(i64::MAX)
    }
}

impl Shards {
    pub(super) fn new(topic: &Topic) -> Self {
        let shard = |partition: &Partition| {
            let state = Mutex::new(ShardState::default());
            Shard { partition: partition.clone(), state }
        };
        let (mut by_number, mut unreadable) = (BTreeMap::new(), BTreeMap::new());
        let count = topic.partition_count();
        for number in 0..count {
            match topic.partition(number) {
                Ok(partition) => drop(by_number.insert(number, shard(&partition))),
                // A broker of a larger cluster has some of them only.
                Err(Error::UnknownTopic { .. }) => {}
                Err(error) => drop(unreadable.insert(number, error)),
            }
        }
        Self { topic_id: topic.id(), count, by_number, unreadable }
    }

    pub(super) fn at(&self, number: u32) -> Result<&Shard> {
        let unknown = || match self.unreadable.get(&number) {
            Some(error) => error.duplicate(),
            None => Error::UnknownTopic { name: format!("{OFFSETS_TOPIC}-{number}") },
        };
        self.by_number.get(&number).ok_or_else(unknown)
    }
}

impl Shard {
    /// Appends commits, if they are allowed when nothing else can be appended any more. Those that wait for their sync are noted as
    /// in flight, the others hold at once.
    pub(super) fn append_commits(
        &self,
        commits: &[Commit<'_>],
        options: &CommitOptions,
        allowed: impl FnOnce() -> Result<()>,
    ) -> Result<Appended> {
        let now_ms = commits.first().map(|commit| commit.value.commit_timestamp_ms);
        let mut state = self.state.lock();
        allowed()?;
        state.loaded(&self.partition)?;
        let (placed, awaited) = self.append(commits, options, now_ms)?;
        if awaited.is_sync() {
            let new = commits.iter().zip(placed.offset..);
            state.in_flight.extend(new.map(|(one, offset)| (offset, one.group.to_owned(), one.place().clone())));
            return Ok(Appended::InFlight(placed, awaited));
        }
        let table = state.loaded(&self.partition)?;
        let each = commits.iter().zip(placed.offset..);
        let passed = each.filter_map(|(commit, offset)| settled(table, offset, commit)).collect();
        Ok(Appended::Settled(placed, awaited, passed))
    }

    /// Lets those of these commits hold that were not deleted while they waited. Returns the partitions in which a group passed
    /// what compaction has looked at.
    pub(super) fn settle(&self, placed: &Placed, commits: &[Commit<'_>]) -> Result<Vec<Partition>> {
        let mut state = self.state.lock();
        let mut in_flight = std::mem::take(&mut state.in_flight);
        let table = state.loaded(&self.partition)?;
        let mut passed = Vec::new();
        for (commit, record_offset) in commits.iter().zip(placed.offset..) {
            // Else a tombstone stands behind it in the log.
            if let Some(at) = in_flight.iter().position(|(offset, ..)| *offset == record_offset) {
                in_flight.swap_remove(at);
                passed.extend(settled(table, record_offset, commit));
            }
        }
        state.in_flight = in_flight;
        Ok(passed)
    }

    /// Forgets commits whose sync failed.
    pub(super) fn give_up(&self, placed: &Placed) {
        let range = placed.offset..placed.next_offset;
        self.state.lock().in_flight.retain(|(offset, ..)| !range.contains(offset));
    }

    /// Appends the tombstones of what `pick` names of the groups, and of the commits that wait for their sync: in one batch, or
    /// in as many as it takes if they may be split.
    pub(super) fn append_removed(
        &self,
        may_split: bool,
        pick: impl FnOnce(&GroupTable, &[(i64, String, TopicPartition)]) -> Result<Vec<Removed>>,
    ) -> Result<Removal> {
        let mut state = self.state.lock();
        state.loaded(&self.partition)?;
        let ShardState { table: Some(table), in_flight, .. } = &mut *state else { return Ok(Removal::default()) };
        let mut removed = pick(table, in_flight)?;
        let mut removal = Removal::default();
        if removed.is_empty() {
            // Of commits whose sync failed nobody knows whether they are there.
            return self.partition.log.poison_error().map_or(Ok(removal), Err);
        }
        let bytes_max = if may_split { self.record_bytes_max() } else { usize::MAX };
        while !removed.is_empty() {
            let (mut records, mut bytes) = (Vec::new(), 0_usize);
            for one in &removed {
                let tombstone = Record::tombstone(tombstone_key(one));
                bytes = bytes.saturating_add(tombstone.key().map_or(0, <[u8]>::len) + RECORD_BYTES);
                if bytes > bytes_max && !records.is_empty() {
                    break;
                }
                records.push(tombstone);
            }
            let rest = removed.split_off(records.len());
            let batch = std::mem::replace(&mut removed, rest);
            match self.append(&records, &CommitOptions::default(), None) {
                Ok((placed, awaited)) => {
                    if !in_flight.is_empty() {
                        // They stand before their tombstones, and are not to hold once they are synced.
                        let gone: HashSet<(&str, &TopicPartition)> =
                            batch.iter().filter_map(|one| Some((&*one.group, one.place.as_ref()?))).collect();
                        in_flight.retain(|(_, group, place)| !gone.contains(&(group.as_str(), place)));
                    }
                    removal.appended.push((placed, awaited, batch));
                }
                Err(error) => {
                    removal.failed = Some(error);
                    break;
                }
            }
        }
        Ok(removal)
    }

    /// Waits for the sync of tombstones, without the lock, and then lets them hold. Returns the partitions whose committed offsets
    /// went.
    pub(super) fn settle_removed(&self, removal: Removal) -> Result<Vec<TopicPartition>> {
        let mut places = Vec::new();
        for (placed, awaited, removed) in removal.appended {
            self.partition.log.acknowledge(awaited, &placed)?;
            let mut state = self.state.lock();
            let table = state.loaded(&self.partition)?;
            for (one, offset) in removed.into_iter().zip(placed.offset..) {
                table.remove(offset, &one);
                places.extend(one.place);
            }
        }
        removal.failed.map_or(Ok(places), Err)
    }

    /// How many bytes the records of one batch may have here.
    pub(super) fn record_bytes_max(&self) -> usize {
        let batch_bytes_max = usize::try_from(self.partition.log.settings().batch_bytes_max).unwrap_or(usize::MAX);
        batch_bytes_max.saturating_sub(BATCH_BYTES)
    }

    pub(super) fn append<R: AsRecord>(
        &self,
        records: &[R],
        options: &CommitOptions,
        now_ms: Option<Timestamp>,
    ) -> Result<(Placed, Awaited)> {
        let spec = AppendSpec { durability: options.durability, now_ms, ..AppendSpec::default() };
        self.partition.log.append_unacknowledged(records, &spec)
    }
}

fn tombstone_key(removed: &Removed) -> Vec<u8> {
    match &removed.place {
        Some(place) => key(&removed.group, place).encode(),
        None => Key::Group { group: &removed.group }.encode(),
    }
}

/// Tombstones that are in the log, and do not hold yet.
#[derive(Debug, Default)]
pub(super) struct Removal {
    appended: Vec<(Placed, Awaited, Vec<Removed>)>,
    /// Why the others are not.
    failed: Option<Error>,
}

/// What became of appended commits.
#[derive(Debug)]
pub(super) enum Appended {
    /// They wait for their sync.
    InFlight(Placed, Awaited),
    /// They hold. In these partitions a group passed a tombstone that is kept for readers.
    Settled(Placed, Awaited, Vec<Partition>),
}

/// Lets a commit hold. Tells its partition if the group has passed a tombstone that may wait for it alone there.
fn settled(table: &mut GroupTable, record_offset: i64, commit: &Commit<'_>) -> Option<Partition> {
    let before = table.commit(record_offset, None, commit.group, commit.place(), &commit.value);
    let held_tombstone = &commit.partition.log.held_tombstone;
    if let Some(topic_id) = commit.value.topic_id {
        let located = Located { topics_version: commit.topics_version, held_tombstone: held_tombstone.clone() };
        table.note_located(commit.group, commit.place(), topic_id, &located);
    }
    held_tombstone.is_passed(before?..commit.value.offset).then(|| commit.partition.clone())
}
