//! What one poll brought.

use crate::ids::TopicPartition;
use crate::record::{RecordList, RecordListIntoIter, RecordListIter, StoredRecord, StoredRef};

/// A record with the partition that it is of.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ConsumedRecord {
    /// The partition.
    pub partition: TopicPartition,
    /// The record.
    pub record: StoredRecord,
}

impl ConsumedRecord {
    /// A record of a partition.
    pub fn new(partition: TopicPartition, record: StoredRecord) -> Self {
        Self { partition, record }
    }
}

/// [`ConsumedRecord`], borrowed from what a poll brought.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct ConsumedRef<'a> {
    /// The partition.
    pub partition: &'a TopicPartition,
    /// The record.
    pub record: StoredRef<'a>,
}

/// What one poll brought: the records of some partitions, those of each in order.
///
/// ```
/// use std::time::Duration;
/// use topiclog::{Consumer, Record, Store, TopicConfig};
/// let store = Store::in_memory()?;
/// let orders = store.create_topic("orders", TopicConfig::default())?;
/// orders.append(Record::of_value("placed"))?;
/// let mut billing = Consumer::join(&store, "billing", ["orders"])?;
/// let records = billing.poll(Duration::ZERO)?;
/// for one in &records {
///     assert_eq!((one.partition.to_string(), one.record.value()), ("orders-0".to_owned(), Some(&b"placed"[..])));
/// }
/// for (partition, of_partition) in records.by_partition() {
///     assert_eq!((partition.partition.get(), of_partition.len()), (0, 1));
/// }
/// # drop(billing);
/// # store.close()?;
/// # Ok::<(), topiclog::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Records {
    /// None of them is empty.
    groups: Vec<(TopicPartition, RecordList)>,
    count: usize,
}

impl Records {
    /// No records.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds records of a partition behind those that are there.
    pub fn push(&mut self, partition: &TopicPartition, records: RecordList) {
        if !records.is_empty() {
            self.count += records.len();
            self.groups.push((partition.clone(), records));
        }
    }

    /// How many records there are.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The records of each partition.
    pub fn by_partition(&self) -> impl Iterator<Item = (&TopicPartition, &RecordList)> {
        self.groups.iter().map(|(partition, records)| (partition, records))
    }

    /// The first record.
    pub fn first(&self) -> Option<ConsumedRef<'_>> {
        self.iter().next()
    }

    /// All records.
    pub fn iter(&self) -> Iter<'_> {
        Iter { groups: self.groups.iter(), now: None }
    }
}

/// All records, borrowed.
#[derive(Clone, Debug)]
pub struct Iter<'a> {
    groups: std::slice::Iter<'a, (TopicPartition, RecordList)>,
    now: Option<(&'a TopicPartition, RecordListIter<'a>)>,
}

impl<'a> Iterator for Iter<'a> {
    type Item = ConsumedRef<'a>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some((partition, records)) = &mut self.now
                && let Some(record) = records.next()
            {
                return Some(ConsumedRef { partition, record });
            }
            let (partition, records) = self.groups.next()?;
            self.now = Some((partition, records.iter()));
        }
    }
}

impl<'a> IntoIterator for &'a Records {
    type Item = ConsumedRef<'a>;
    type IntoIter = Iter<'a>;

    fn into_iter(self) -> Iter<'a> {
        self.iter()
    }
}

/// All records, owned.
#[derive(Debug)]
pub struct IntoIter {
    groups: std::vec::IntoIter<(TopicPartition, RecordList)>,
    now: Option<(TopicPartition, RecordListIntoIter)>,
}

impl Iterator for IntoIter {
    type Item = ConsumedRecord;

    #[inline]
    fn next(&mut self) -> Option<ConsumedRecord> {
        loop {
            if let Some((partition, records)) = &mut self.now
                && let Some(record) = records.next()
            {
                return Some(ConsumedRecord::new(partition.clone(), record));
            }
            let (partition, records) = self.groups.next()?;
            self.now = Some((partition, records.into_iter()));
        }
    }
}

impl IntoIterator for Records {
    type Item = ConsumedRecord;
    type IntoIter = IntoIter;

    fn into_iter(self) -> IntoIter {
        IntoIter { groups: self.groups.into_iter(), now: None }
    }
}
