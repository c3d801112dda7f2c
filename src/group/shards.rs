//! The partitions of `__consumer_offsets`, and what was read of each. All handles of one store share them.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::commit::{CommitOptions, record};
use super::load::load;
use super::membership::LiveGroup;
use super::offsets::GroupTable;
use super::schema::OffsetCommitValue;
use crate::error::{Error, Result};
use crate::ids::{TopicPartition, Uuid};
use crate::partition::Partition;
use crate::partition::append_options::AppendSpec;
use crate::partition::writer::RecordMetadata;
use crate::record::Record;
use crate::store::holds::{OFFSETS_TOPIC, Readers};
use crate::sync::Mutex;
use crate::topic::Topic;

/// What all handles of a store share. Holds partitions and no handle of the store, which holds it.
#[derive(Default)]
pub(super) struct Shared {
    pub(super) shards: Mutex<Known>,
    /// Groups that had members since the store was opened.
    pub(super) live: Mutex<BTreeMap<String, Arc<LiveGroup>>>,
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
        let shards = match &*self.shards.lock() {
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
            Some(held.map(|committed| committed.offset).min().unwrap_or(i64::MAX))
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
    /// Appends commits, and notes that they wait for their sync.
    pub(super) fn append_commits(
        &self,
        commits: &[(&str, TopicPartition, OffsetCommitValue)],
        options: &CommitOptions,
    ) -> Result<RecordMetadata> {
        let records: Vec<Record> = commits.iter().map(|(group, place, value)| record(group, place, value)).collect();
        let mut state = self.state.lock();
        state.loaded(&self.partition)?;
        let placed = self.append(&records, options)?;
        let new = (placed.offset.get()..).zip(commits);
        state.in_flight.extend(new.map(|(offset, (group, place, _))| (offset, (*group).to_owned(), place.clone())));
        Ok(placed)
    }

    pub(super) fn append(&self, records: &[Record], options: &CommitOptions) -> Result<RecordMetadata> {
        let spec = AppendSpec { durability: options.durability, is_acknowledged_later: true, ..AppendSpec::default() };
        self.partition.log.append_records(records, &spec)
    }
}
