//! Holds: named readers, and how far each has come, so that tombstones wait for them.
//!
//! JSON in the checksummed frame of [`crate::io::frame`], in two slots (`topiclog.holds.{0,1}`), like the manifests. A hold
//! names the next offset that its reader will look at, per partition; a tombstone at or above it stays, for at most
//! `topiclog.tombstone.hold.max.ms`. It does not know who the readers are.

use std::any::Any;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Store, StoreInner};
use crate::error::{Error, Result};
use crate::ids::{Offset, TopicName, TopicPartition};
use crate::io::Vfs;
use crate::io::replace::TwoSlots;
use crate::partition::Partition;
use crate::partition::repair::Repair;
use crate::sync::atomic::Ordering;

const NAME: &str = "topiclog.holds";
const KIND: u16 = 3;
const VERSION: u16 = 1;
const PAYLOAD_BYTES_MAX: usize = 16 << 20;
/// Most holds of a store.
const HOLDS_MAX: usize = 10_000;
const NAME_BYTES_MAX: usize = 255;

/// What is kept on the disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Payload {
    holds: Vec<Entry>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    topic: TopicName,
    partition: u32,
    position: i64,
}

/// All holds, and the generation of the file that has them.
#[derive(Debug, Default)]
pub(super) struct Holds {
    generation: u64,
    by_name: BTreeMap<String, BTreeMap<TopicPartition, i64>>,
    /// A write failed: the next open may find what it was to change, so that no change is there already.
    is_unsure: bool,
}

fn slots(root: &Path) -> TwoSlots<'_> {
    TwoSlots { directory: root, name: NAME, kind: KIND, version: VERSION, payload_bytes_max: PAYLOAD_BYTES_MAX }
}

impl Holds {
    /// Reads the newest good copy, and says which are damaged. Without one, nobody holds anything: a reader that then misses a
    /// tombstone is told so by the tombstone floor.
    pub(super) fn read(vfs: &dyn Vfs, root: &Path) -> Result<(Self, Vec<Repair>)> {
        let mut read = slots(root).read(vfs)?;
        if let Some((found, max)) = read.newer {
            return Err(Error::unsupported(format!(
                "the holds in {} have version {found}, this version of topiclog reads up to {max}",
                root.display()
            )));
        }
        // The first generation stands alone; each later one has the one before it beside it.
        let is_alone = read.newest.as_ref().is_none_or(|slot| slot.generation == 1);
        read.damaged.extend(read.missing.into_iter().filter(|_| !is_alone).map(|path| (path, "missing".to_owned())));
        let damaged = |(path, reason)| Repair::HoldsDamaged { path, reason };
        let damaged = read.damaged.into_iter().map(damaged).collect();
        let Some(slot) = read.newest else { return Ok((Self::default(), damaged)) };
        let path = root.join(slots(root).slot_name(slot.generation));
        let payload: Payload =
            serde_json::from_slice(&slot.payload).map_err(|error| Error::corrupt(&path, 32, error.to_string()))?;
        let mut holds = Self { generation: slot.generation, ..Self::default() };
        for entry in payload.holds {
            let id = TopicPartition::new(entry.topic, entry.partition);
            holds.by_name.entry(entry.name).or_default().insert(id, entry.position);
        }
        Ok((holds, damaged))
    }

    /// What said so may be lost: there are groups that commit to this partition.
    pub(super) fn assume_groups(&mut self, offsets: TopicPartition) {
        self.by_name.insert(GROUPS.to_owned(), BTreeMap::from([(offsets, i64::MAX)]));
    }

    /// Whether groups commit in this store.
    pub(super) fn has_groups(&self) -> bool {
        self.by_name.contains_key(GROUPS)
    }

    /// The lowest position that anybody holds in a partition; `i64::MAX` if nobody does.
    pub(super) fn lowest(&self, partition: &TopicPartition) -> i64 {
        self.by_name.values().filter_map(|held| held.get(partition)).min().copied().unwrap_or(i64::MAX)
    }

    fn write(
        &mut self,
        vfs: &dyn Vfs,
        root: &Path,
        by_name: BTreeMap<String, BTreeMap<TopicPartition, i64>>,
    ) -> Result<()> {
        let entry = |name: &String, (id, position): (&TopicPartition, &i64)| Entry {
            name: name.clone(),
            topic: id.topic.clone(),
            partition: id.partition.get(),
            position: *position,
        };
        let holds = by_name.iter().flat_map(|(name, held)| held.iter().map(move |one| entry(name, one))).collect();
        let payload =
            serde_json::to_vec(&Payload { holds }).expect("holds have string keys only, so JSON can hold them");
        let generation = self.generation + 1;
        self.is_unsure = true;
        slots(root).write(vfs, generation, &payload, true)?;
        (self.generation, self.by_name, self.is_unsure) = (generation, by_name, false);
        Ok(())
    }
}

impl Store {
    /// Sets, or moves, the hold of a named reader: it has read everything below these offsets. Tombstones at or above them
    /// stay until it moves on, for at most `topiclog.tombstone.hold.max.ms` after compaction first saw them. Replaces what the name
    /// held before; no offsets release it.
    ///
    /// Durable when this returns: the hold.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an empty or too long name, one that begins with `topiclog-`, which is for the library's own, or too many
    /// holds; [`Error::UnknownTopic`]; [`Error::ReadOnly`],
    /// [`Error::Closed`]; an error of the disk, and then the hold is as before.
    ///
    /// ```
    /// use topiclog::{CleanupPolicy, Offset, Store, TopicConfig};
    /// let store = Store::in_memory()?;
    /// let users = store.create_topic("users", TopicConfig::default().cleanup_policy(CleanupPolicy::Compact))?;
    /// let partition = users.partition(0)?;
    /// store.hold_tombstones("billing", &[(partition.id().clone(), Offset::new(0))])?;
    /// assert_eq!(store.holds().len(), 1);
    /// store.release_tombstones("billing")?;
    /// assert!(store.holds().is_empty());
    /// # store.close()?;
    /// # Ok::<(), topiclog::Error>(())
    /// ```
    pub fn hold_tombstones(&self, name: &str, read_up_to: &[(TopicPartition, Offset)]) -> Result<()> {
        self.inner.check_writable("hold tombstones")?;
        check_name(name)?;
        for (id, _) in read_up_to {
            self.topic(id.topic.as_str())?.partition(id.partition)?;
        }
        let mut held: BTreeMap<TopicPartition, i64> = BTreeMap::new();
        held.extend(read_up_to.iter().map(|(id, offset)| (id.clone(), offset.get())));
        self.inner.change_holds(|by_name| {
            if held.is_empty() {
                by_name.remove(name);
            } else {
                by_name.insert(name.to_owned(), held);
            }
        })
    }

    /// Takes the hold of a name away. A name that holds nothing is no error.
    ///
    /// Durable when this returns.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a name of the library's own: that of groups goes with the topic of their offsets.
    /// [`Error::ReadOnly`], [`Error::Closed`]; an error of the disk.
    pub fn release_tombstones(&self, name: &str) -> Result<()> {
        self.inner.check_writable("release tombstones")?;
        check_name(name)?;
        self.inner.change_holds(|by_name| {
            by_name.remove(name);
        })
    }

    /// Who holds tombstones, and from which offset on.
    pub fn holds(&self) -> Vec<(String, TopicPartition, Offset)> {
        let holds = self.inner.holds.lock();
        let all = holds.by_name.iter().flat_map(|(name, held)| held.iter().map(move |(id, at)| (name, id, at)));
        all.map(|(name, id, at)| (name.clone(), id.clone(), Offset::new(*at))).collect()
    }
}

fn check_name(name: &str) -> Result<()> {
    if name.is_empty() || name.len() > NAME_BYTES_MAX {
        return Err(Error::invalid("name of a hold", format!("must have 1 to {NAME_BYTES_MAX} bytes")));
    }
    if name.starts_with(OWN) {
        return Err(Error::invalid(
            "name of a hold",
            format!("must not begin with {OWN}: {name:?} is the library's own"),
        ));
    }
    Ok(())
}

/// What a layer above keeps with an open store, one for all handles: it knows readers of its own, and where they are.
pub(crate) trait Readers: Any + Send + Sync {
    /// The lowest position that one of them has in a partition; `i64::MAX` if none reads it.
    fn lowest(&self, partition: &TopicPartition) -> i64;
}

/// The name that says that groups commit in this store: until they were read after an open, each may be anywhere. It holds
/// nothing itself, and goes with the topic of the offsets.
const GROUPS: &str = "topiclog-groups";
/// What names of that kind begin with.
const OWN: &str = "topiclog-";

impl Store {
    /// What the layer above keeps with this store; made at the first call.
    pub(crate) fn readers<R: Readers>(&self, make: impl FnOnce() -> R) -> Arc<R> {
        let readers = Arc::clone(self.inner.readers.get_or_init(|| Arc::new(make())));
        let readers: Arc<dyn Any + Send + Sync> = readers;
        readers.downcast().expect("one layer above keeps one kind of readers")
    }

    /// Whether tombstones wait for groups.
    pub(crate) fn holds_for_groups(&self) -> bool {
        self.inner.has_groups()
    }

    /// From now on, also after the next open, tombstones wait for the groups whose offsets are in this topic. Durable when this
    /// returns.
    pub(crate) fn hold_for_groups(&self, offsets: &Partition) -> Result<()> {
        if self.inner.has_groups() {
            return Ok(());
        }
        self.inner.check_writable("hold tombstones")?;
        let held = BTreeMap::from([(offsets.id().clone(), i64::MAX)]);
        self.inner.change_holds(|by_name| drop(by_name.insert(GROUPS.to_owned(), held)))
    }

    /// It is known now where all readers are.
    pub(crate) fn note_all_readers_moved(&self) {
        self.inner.note_readers_moved();
    }

    /// Readers have moved past a tombstone that is kept for readers.
    pub(crate) fn readers_moved(&self, partition: &Partition) {
        partition.log.note_readers_moved();
        self.inner.signal.wake();
    }
}

impl StoreInner {
    /// The lowest position that anybody may have in a partition.
    pub(super) fn lowest_reader(&self, partition: &TopicPartition) -> i64 {
        let held = self.holds.lock().lowest(partition);
        match self.readers.get() {
            Some(readers) => held.min(readers.lowest(partition)),
            None if self.has_groups() => 0,
            None => held,
        }
    }

    fn has_groups(&self) -> bool {
        self.holds_for_groups.load(Ordering::Acquire)
    }

    fn change_holds(&self, change: impl FnOnce(&mut BTreeMap<String, BTreeMap<TopicPartition, i64>>)) -> Result<()> {
        let mut holds = self.holds.lock();
        let mut by_name = holds.by_name.clone();
        change(&mut by_name);
        if by_name == holds.by_name && !holds.is_unsure {
            return Ok(());
        }
        if by_name.values().map(BTreeMap::len).sum::<usize>() > HOLDS_MAX {
            return Err(Error::invalid("holds", format!("a store has at most {HOLDS_MAX}")));
        }
        (self.env.before_first_write)()?;
        holds.write(&*self.env.vfs, &self.root, by_name)?;
        self.holds_for_groups.store(holds.has_groups(), Ordering::Release);
        // Whoever waited for a reader is looked at again.
        self.note_readers_moved();
        self.signal.wake();
        Ok(())
    }

    /// Any reader may have moved, in any partition.
    fn note_readers_moved(&self) {
        for topic in self.topics.read().values() {
            topic.partitions.values().for_each(|partition| partition.log.note_readers_moved());
        }
    }

    /// A topic is gone, and with it what was held of it: one of the same name begins anew.
    pub(super) fn forget_holds(&self, topic: &TopicName) -> Result<()> {
        self.change_holds(|by_name| {
            for held in by_name.values_mut() {
                held.retain(|id, _| id.topic != *topic);
            }
            by_name.retain(|_, held| !held.is_empty());
        })
    }
}
