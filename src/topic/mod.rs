//! A topic: a name, a configuration and its partitions; routing of records to partitions.
//!
//! It does not know which other topics there are, nor where they live.

pub(crate) mod config;
pub(crate) mod partitioner;
pub(crate) mod upkeep;
pub(crate) mod upkeep_stats;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::ids::{PartitionId, TopicName, Uuid};
use crate::key_index::{Budget, KeyCounts, KeyIndex, KeyIndexStats, Latest};
use crate::partition::Partition;
use crate::partition::append_options::AppendOptions;
use crate::partition::writer::RecordMetadata;
use crate::record::{AsRecord, RecordRef, StoredRecord};
use crate::sync::RwLock;
use crate::sync::atomic::AtomicUsize;

pub use config::{CleanupPolicy, TopicConfig};
pub use partitioner::murmur2;
pub use upkeep_stats::UpkeepStats;

use partitioner::{Sticky, partition_for_key};
use upkeep_stats::UpkeepLog;

/// What keeps the store's locks alive as long as a handle of it does.
pub(crate) trait KeepAlive: Send + Sync {}

/// A topic of an open store. Cheap to clone; every clone is the same topic.
///
/// ```
/// use topiclog::{Record, Store, TopicConfig};
/// let store = Store::in_memory()?;
/// let orders = store.create_topic("orders", TopicConfig::default().partitions(4))?;
/// let placed = orders.append(Record::keyed("order-7", "placed"))?;
/// let again = orders.append(Record::keyed("order-7", "paid"))?;
/// assert_eq!(placed.partition, again.partition, "one key, one partition, one order");
/// # store.close()?;
/// # Ok::<(), topiclog::Error>(())
/// ```
#[derive(Clone)]
pub struct Topic {
    inner: Arc<TopicInner>,
    // Held, never looked at: the store's locks live as long as somebody can still write.
    _keep: Arc<dyn KeepAlive>,
}

pub(crate) struct TopicInner {
    pub(crate) name: TopicName,
    pub(crate) id: Uuid,
    pub(crate) config: RwLock<Arc<TopicConfig>>,
    /// As in the configuration, where no alteration changes it.
    partition_count: u32,
    /// By number; a broker's directory may hold only some of them.
    pub(crate) partitions: BTreeMap<u32, Partition>,
    /// Partitions that a read-only open could not open, and why.
    unreadable: BTreeMap<u32, Error>,
    sticky: Sticky,
    /// By partition, like the logs; each is made by upkeep or at its first use.
    indexes: BTreeMap<u32, KeyIndex>,
    /// Which of them upkeep looks at first.
    pub(crate) index_turn: AtomicUsize,
    /// What upkeep did.
    pub(crate) upkept: UpkeepLog,
}

impl TopicInner {
    pub(crate) fn new(
        name: TopicName,
        id: Uuid,
        config: TopicConfig,
        partitions: BTreeMap<u32, Partition>,
        budget: &Arc<Budget>,
    ) -> Self {
        let partition_count = config.partition_count();
        let config = RwLock::new(Arc::new(config));
        let index = |(number, partition): (&u32, &Partition)| {
            (*number, KeyIndex::new(Arc::clone(&partition.log), Arc::clone(budget)))
        };
        let indexes = partitions.iter().map(index).collect();
        let (unreadable, sticky, upkept) = (BTreeMap::new(), Sticky::new(), UpkeepLog::default());
        let index_turn = AtomicUsize::new(0);
        let topic =
            Self { name, id, config, partition_count, partitions, unreadable, sticky, indexes, index_turn, upkept };
        topic.expect_index_of_table();
        topic
    }

    /// A table has its key indexes made by upkeep: look-ups and compaction are to find them there.
    pub(crate) fn expect_index_of_table(&self) {
        if self.config.read().log_settings().needs_key {
            self.indexes().for_each(KeyIndex::expect_use);
        }
    }

    /// The key indexes of the partitions that are here.
    pub(crate) fn indexes(&self) -> impl Iterator<Item = &KeyIndex> {
        self.indexes.values()
    }

    /// The key index of one partition.
    pub(crate) fn index_of(&self, partition: u32) -> Option<&KeyIndex> {
        self.indexes.get(&partition)
    }

    /// It was there before: whoever has used its key indexes will use them again.
    pub(crate) fn that_was_there(self) -> Self {
        self.indexes().for_each(KeyIndex::expect_use);
        self
    }

    /// Notes partitions that could not be opened: asking for one gives its error.
    pub(crate) fn with_unreadable(mut self, unreadable: BTreeMap<u32, Error>) -> Self {
        self.unreadable = unreadable;
        self
    }
}

impl fmt::Debug for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Topic").field("name", &self.inner.name).field("id", &self.inner.id).finish_non_exhaustive()
    }
}

impl Topic {
    pub(crate) fn new(inner: Arc<TopicInner>, keep: Arc<dyn KeepAlive>) -> Self {
        Self { inner, _keep: keep }
    }

    /// The topic's name.
    pub fn name(&self) -> &TopicName {
        &self.inner.name
    }

    /// The topic's identity, as in Kafka's `partition.metadata`.
    pub fn id(&self) -> Uuid {
        self.inner.id
    }

    /// The configuration that holds now.
    pub fn config(&self) -> TopicConfig {
        (**self.inner.config.read()).clone()
    }

    /// How many partitions there are, counted from 0; a broker's directory need not hold all of them.
    pub fn partition_count(&self) -> u32 {
        self.inner.partition_count
    }

    /// The partitions that are here, by number.
    pub fn partitions(&self) -> impl Iterator<Item = &Partition> {
        self.inner.partitions.values()
    }

    /// One partition.
    ///
    /// # Errors
    /// [`Error::UnknownTopic`] if there is no such partition here. In a store that is open read-only, the error that kept
    /// this partition from being opened.
    pub fn partition(&self, partition: impl Into<PartitionId>) -> Result<Partition> {
        self.at(partition.into().get()).cloned()
    }

    fn at(&self, partition: u32) -> Result<&Partition> {
        if let Some(found) = self.inner.partitions.get(&partition) {
            return Ok(found);
        }
        match self.inner.unreadable.get(&partition) {
            Some(error) => Err(error.duplicate()),
            None => Err(Error::UnknownTopic { name: format!("{}-{partition}", self.inner.name) }),
        }
    }

    /// Where a record goes: to the partition it names; by its partition key or else its key, with Kafka's murmur2; with
    /// neither, on one partition until 16 KiB went there, then on the next.
    pub fn partition_for(&self, record: impl AsRecord) -> PartitionId {
        self.route(&record.as_record()).into()
    }

    #[inline]
    fn route(&self, record: &RecordRef<'_>) -> u32 {
        let count = self.inner.partitions.len() as u32;
        match (record.partition, record.partitioning_key()) {
            (Some(partition), _) => partition.get(),
            // Of a broker's directory with one of many partitions, the others' keys have no place here.
            _ if count == 1 && self.partition_count() == 1 => self.inner.partitions.keys().next().copied().unwrap_or(0),
            (None, Some(key)) => partition_for_key(key, self.partition_count()),
            (None, None) => {
                let bytes = record.value.map_or(0, <[u8]>::len);
                let nth = self.inner.sticky.next(bytes, count) as usize;
                self.inner.partitions.keys().nth(nth).copied().unwrap_or(0)
            }
        }
    }

    /// Appends one record to the partition it belongs to, at the durability of the topic.
    ///
    /// Durable when this returns: what the topic's [`Durability`](crate::Durability) says; by default the record
    /// survives a power cut.
    ///
    /// # Errors
    /// After any error but [`Error::OutcomeUnknown`] the record will never appear. [`Error::Invalid`] if it breaks a
    /// limit, [`Error::UnknownTopic`] if it names a partition that is not here, [`Error::NoSpace`] while the disk is
    /// full, [`Error::Poisoned`] after an earlier failure, [`Error::Closed`], [`Error::ReadOnly`].
    pub fn append(&self, record: impl AsRecord) -> Result<RecordMetadata> {
        self.append_with(record, &AppendOptions::default())
    }

    /// [`append`](Self::append) with a durability or codec of its own.
    ///
    /// # Errors
    /// As [`append`](Self::append).
    pub fn append_with(&self, record: impl AsRecord, options: &AppendOptions) -> Result<RecordMetadata> {
        let record = record.as_record();
        let partition = self.route(&record);
        self.at(partition)?.log.append_records(&[record], &options.spec())
    }

    /// The newest record of a key, `None` if there is none or it is a tombstone. Answered by the partition that Kafka's
    /// partitioner gives the key; a record that was sent elsewhere is found by [`get_in`](Self::get_in).
    ///
    /// The first call makes the key index: it is loaded from its file, or the partition is read once. Upkeep does that for a
    /// compacted topic, in steps, so that a call need not. From then on it is kept up to date: a get sees every append that returned
    /// before it, and reads for that what was appended while upkeep could not follow. Records of aborted and open transactions are no answer.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the index would take more than
    /// [`key_index_memory_bytes`](crate::StoreBuilder::key_index_memory_bytes), or for a codec that is not built in;
    /// [`Error::Timeout`] while others append or compact faster than the answer can be found; [`Error::Corrupt`],
    /// [`Error::Closed`].
    ///
    /// ```
    /// use topiclog::{CleanupPolicy, Record, Store, TopicConfig};
    /// let store = Store::in_memory()?;
    /// let users = store.create_topic("users", TopicConfig::default().cleanup_policy(CleanupPolicy::Compact))?;
    /// users.append(Record::keyed("42", "Ada"))?;
    /// users.append(Record::keyed("42", "Grace"))?;
    /// assert_eq!(users.get("42")?.unwrap().value(), Some(&b"Grace"[..]));
    /// users.append(Record::tombstone("42"))?;
    /// assert!(users.get("42")?.is_none());
    /// # store.close()?;
    /// # Ok::<(), topiclog::Error>(())
    /// ```
    pub fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<StoredRecord>> {
        let key = key.as_ref();
        self.get_in(self.route(&RecordRef::new(Some(key), None)), key)
    }

    /// [`get`](Self::get) from one partition.
    ///
    /// # Errors
    /// As [`get`](Self::get); [`Error::UnknownTopic`] if there is no such partition here.
    pub fn get_in(&self, partition: impl Into<PartitionId>, key: impl AsRef<[u8]>) -> Result<Option<StoredRecord>> {
        self.index(partition.into().get())?.get(key.as_ref())
    }

    /// Whether a key has a newest record that is no tombstone.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub fn contains(&self, key: impl AsRef<[u8]>) -> Result<bool> {
        self.get(key).map(|found| found.is_some())
    }

    /// The newest record of each key of a partition, at one position, in the order of their offsets. Tombstones are left
    /// out. Takes 8 bytes of memory a key while it lasts.
    ///
    /// # Errors
    /// As [`get_in`](Self::get_in).
    ///
    /// ```
    /// use topiclog::{CleanupPolicy, Record, Store, TopicConfig};
    /// let store = Store::in_memory()?;
    /// let users = store.create_topic("users", TopicConfig::default().cleanup_policy(CleanupPolicy::Compact))?;
    /// for (key, value) in [("1", "Ada"), ("2", "Grace"), ("1", "Ada L.")] {
    ///     users.append(Record::keyed(key, value))?;
    /// }
    /// let latest = users.latest(0)?;
    /// assert_eq!(latest.position().get(), 3);
    /// let offsets: Vec<i64> = latest.map(|record| Ok(record?.offset().get())).collect::<topiclog::Result<_>>()?;
    /// assert_eq!(offsets, [1, 2]);
    /// # store.close()?;
    /// # Ok::<(), topiclog::Error>(())
    /// ```
    pub fn latest(&self, partition: impl Into<PartitionId>) -> Result<Latest> {
        self.index(partition.into().get())?.latest()
    }

    /// What the key index of a partition holds; `None` if it was not made yet.
    ///
    /// # Errors
    /// [`Error::UnknownTopic`] if there is no such partition here.
    pub fn key_index_stats(&self, partition: impl Into<PartitionId>) -> Result<Option<KeyIndexStats>> {
        Ok(self.index(partition.into().get())?.stats())
    }

    /// Counts the records of a partition by what they are to its keys: newest, tombstone, or dead. The counts are exact for one
    /// position, whatever is appended or compacted meanwhile. Reads the partition once; takes 8 bytes of memory a key while it
    /// lasts. [`KeyIndexStats::counts`] repeats what the last call found.
    ///
    /// # Errors
    /// As [`get_in`](Self::get_in).
    ///
    /// ```
    /// use topiclog::{CleanupPolicy, Record, Store, TopicConfig};
    /// let store = Store::in_memory()?;
    /// let users = store.create_topic("users", TopicConfig::default().cleanup_policy(CleanupPolicy::Compact))?;
    /// for record in [Record::keyed("1", "Ada"), Record::keyed("2", "Grace"), Record::keyed("1", "Ada L."), Record::tombstone("2")] {
    ///     users.append(record)?;
    /// }
    /// let counts = users.count_keys(0)?;
    /// assert_eq!(counts.position.get(), 4);
    /// assert_eq!((counts.live.records, counts.tombstones.records, counts.dead.records), (1, 1, 2));
    /// # store.close()?;
    /// # Ok::<(), topiclog::Error>(())
    /// ```
    pub fn count_keys(&self, partition: impl Into<PartitionId>) -> Result<KeyCounts> {
        self.index(partition.into().get())?.count_keys()
    }

    pub(crate) fn index(&self, partition: u32) -> Result<&KeyIndex> {
        if let Some(found) = self.inner.index_of(partition) {
            return Ok(found);
        }
        self.at(partition)?;
        Err(Error::UnknownTopic { name: format!("{}-{partition}", self.inner.name) })
    }

    /// Appends many records: those of one partition as one batch each, in the order given. Returns where each batch
    /// went, by partition. A batch is there whole or not at all; the batches of different partitions are not tied to
    /// each other.
    ///
    /// # Errors
    /// As [`append`](Self::append), from the first partition that fails; batches of partitions with lower numbers are
    /// in the log by then.
    pub fn append_all<R: AsRecord>(&self, records: &[R], options: &AppendOptions) -> Result<Vec<RecordMetadata>> {
        let mut by_partition: BTreeMap<u32, Vec<RecordRef<'_>>> = BTreeMap::new();
        for record in records {
            let record = record.as_record();
            by_partition.entry(self.route(&record)).or_default().push(record);
        }
        for &partition in by_partition.keys() {
            self.at(partition)?;
        }
        let append = |(partition, records): (u32, Vec<RecordRef<'_>>)| {
            self.at(partition)?.log.append_records(&records, &options.spec())
        };
        by_partition.into_iter().map(append).collect()
    }

    /// What upkeep did to this topic since the store was opened: compaction, retention, expiry. Never blocks for long.
    ///
    /// ```
    /// use topiclog::{CleanupPolicy, Record, Store, TopicConfig};
    /// let store = Store::in_memory()?;
    /// let config = TopicConfig::default().cleanup_policy(CleanupPolicy::Compact).segment_bytes(256);
    /// let users = store.create_topic("users", config)?;
    /// for _ in 0..3 {
    ///     // A segment each; the last one is active and left alone.
    ///     users.append(Record::keyed("1", "v".repeat(150)))?;
    /// }
    /// while !store.tick()?.is_idle() {}
    /// // The one in the active segment supersedes both that are not.
    /// assert_eq!(users.upkeep_stats().records_compacted, 2);
    /// # store.close()?;
    /// # Ok::<(), topiclog::Error>(())
    /// ```
    pub fn upkeep_stats(&self) -> UpkeepStats {
        self.inner.upkept.stats()
    }

    /// The error of the last step of upkeep that failed for this topic since the store was opened, if one did. Most are tried
    /// again at the next step; a partition whose compaction failed for anything but want of room is not compacted until the
    /// store is reopened.
    pub fn upkeep_error(&self) -> Option<Error> {
        self.inner.upkept.last_error()
    }

    /// Makes everything appended so far durable, in every partition.
    ///
    /// # Errors
    /// [`Error::SyncFailed`] from the first partition whose sync fails; the others are synced all the same.
    pub fn flush(&self) -> Result<()> {
        let results: Vec<_> = self.inner.partitions.values().map(Partition::flush).collect();
        results.into_iter().try_for_each(|result| result.map(drop))
    }
}
