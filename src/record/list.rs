//! [`RecordList`]: many stored records, with what those of one batch have in common held once.
//!
//! A vector of [`StoredRecord`]s counts the owners of a batch up and down for each of its records, which takes as long as
//! decoding them.

use std::fmt;
use std::iter::FusedIterator;

use super::batch::BatchHeader;
use super::body::{RecordPlace, RecordView};
use super::stored::{SharedBytes, StoredBatch, StoredRecord, StoredRef};

/// Stored records in the order in which they were read, borrowed one by one or taken as [`StoredRecord`]s.
///
/// ```
/// use topiclog::{Record, RecordList, Store, TopicConfig};
/// let store = Store::in_memory()?;
/// let orders = store.create_topic("orders", TopicConfig::default())?;
/// for value in ["placed", "paid"] {
///     orders.append(Record::of_value(value))?;
/// }
/// let list: RecordList = orders.partition(0)?.read_from(0).collect::<topiclog::Result<_>>()?;
/// assert_eq!(list.len(), 2);
/// assert_eq!(list.last().unwrap().value(), Some(&b"paid"[..]));
/// assert!(list.iter().map(|record| record.offset().get()).eq(0..2));
/// # store.close()?;
/// # Ok::<(), topiclog::Error>(())
/// ```
#[derive(Clone, Default)]
pub struct RecordList {
    batches: Vec<Part>,
    places: Vec<RecordPlace>,
}

/// A batch, and where its records end.
#[derive(Clone, Debug)]
struct Part {
    batch: StoredBatch,
    end: usize,
}

impl RecordList {
    /// No records.
    pub fn new() -> Self {
        Self::default()
    }

    /// No records, and room for so many.
    pub fn with_capacity(records: usize) -> Self {
        Self { batches: Vec::new(), places: Vec::with_capacity(records) }
    }

    /// How many records there are.
    #[inline]
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether there is none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Adds a record.
    pub fn push(&mut self, record: StoredRecord) {
        if !self.batches.last().is_some_and(|last| last.batch.is(&record.batch)) {
            self.batches.push(Part { batch: record.batch, end: self.places.len() });
        }
        self.places.push(record.place);
        self.end_last();
    }

    /// Adds records of one batch as they are found, until there are so many in the list, or nothing more is found.
    #[inline(always)]
    pub(crate) fn extend_of<'a>(
        &mut self,
        (body, header): (&SharedBytes, &BatchHeader),
        len_max: usize,
        mut next: impl FnMut() -> Option<RecordView<'a>>,
    ) {
        let before = self.places.len();
        let is_new = !self.batches.last().is_some_and(|last| last.batch.has_body(body));
        if is_new {
            self.batches.push(Part { batch: StoredBatch::taking(body.clone(), header), end: before });
        }
        while self.places.len() < len_max
            && let Some(view) = next()
        {
            self.places.push(view.place());
        }
        self.end_last();
        if is_new && self.places.len() == before {
            self.batches.pop();
        }
    }

    fn end_last(&mut self) {
        if let Some(last) = self.batches.last_mut() {
            last.end = self.places.len();
        }
    }

    /// The record at an index.
    pub fn get(&self, index: usize) -> Option<StoredRef<'_>> {
        let place = self.places.get(index)?;
        let part = self.batches.get(self.batches.partition_point(|part| part.end <= index))?;
        Some(StoredRef { batch: &part.batch, place })
    }

    /// The first record.
    pub fn first(&self) -> Option<StoredRef<'_>> {
        self.get(0)
    }

    /// The last record.
    pub fn last(&self) -> Option<StoredRef<'_>> {
        self.get(self.len().checked_sub(1)?)
    }

    /// All records, borrowed.
    #[inline]
    pub fn iter(&self) -> RecordListIter<'_> {
        RecordListIter { batches: self.batches.iter(), part: None, at: 0, places: self.places.iter() }
    }
}

impl fmt::Debug for RecordList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self).finish()
    }
}

impl Extend<StoredRecord> for RecordList {
    fn extend<I: IntoIterator<Item = StoredRecord>>(&mut self, records: I) {
        records.into_iter().for_each(|record| self.push(record));
    }
}

impl FromIterator<StoredRecord> for RecordList {
    fn from_iter<I: IntoIterator<Item = StoredRecord>>(records: I) -> Self {
        let mut list = Self::new();
        list.extend(records);
        list
    }
}

/// Walks a [`RecordList`].
#[derive(Clone, Debug)]
pub struct RecordListIter<'a> {
    batches: std::slice::Iter<'a, Part>,
    /// The batch that the records are of now.
    part: Option<&'a Part>,
    /// How many records were handed out.
    at: usize,
    places: std::slice::Iter<'a, RecordPlace>,
}

impl<'a> Iterator for RecordListIter<'a> {
    type Item = StoredRef<'a>;

    #[inline]
    fn next(&mut self) -> Option<StoredRef<'a>> {
        let place = self.places.next()?;
        while self.part.is_none_or(|part| part.end <= self.at) {
            self.part = Some(self.batches.next()?);
        }
        self.at = self.at.wrapping_add(1);
        Some(StoredRef { batch: &self.part?.batch, place })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.places.size_hint()
    }
}

impl ExactSizeIterator for RecordListIter<'_> {}
impl FusedIterator for RecordListIter<'_> {}

impl<'a> IntoIterator for &'a RecordList {
    type Item = StoredRef<'a>;
    type IntoIter = RecordListIter<'a>;

    fn into_iter(self) -> RecordListIter<'a> {
        self.iter()
    }
}

/// Hands out the records of a [`RecordList`].
#[derive(Debug)]
pub struct RecordListIntoIter {
    batches: std::vec::IntoIter<Part>,
    part: Option<Part>,
    at: usize,
    places: std::vec::IntoIter<RecordPlace>,
}

impl Iterator for RecordListIntoIter {
    type Item = StoredRecord;

    #[inline]
    fn next(&mut self) -> Option<StoredRecord> {
        let place = self.places.next()?;
        while self.part.as_ref().is_none_or(|part| part.end <= self.at) {
            self.part = Some(self.batches.next()?);
        }
        self.at = self.at.wrapping_add(1);
        Some(StoredRecord { batch: self.part.as_ref()?.batch.clone(), place })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.places.size_hint()
    }
}

impl ExactSizeIterator for RecordListIntoIter {}
impl FusedIterator for RecordListIntoIter {}

impl IntoIterator for RecordList {
    type Item = StoredRecord;
    type IntoIter = RecordListIntoIter;

    fn into_iter(self) -> RecordListIntoIter {
        RecordListIntoIter { batches: self.batches.into_iter(), part: None, at: 0, places: self.places.into_iter() }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::record::{
        BatchBuilder, BatchSpec, BatchView, DecodeLimits, Record, RecordsState, decode_body, stored_records,
    };

    /// A batch of so many records, each with its offset as value.
    fn batch(base_offset: i64, records: i64) -> (BatchHeader, Bytes) {
        let mut builder = BatchBuilder::new(BatchSpec { leader_epoch: 3, ..BatchSpec::new(base_offset) });
        for offset in base_offset..base_offset + records {
            builder.push(Record::of_value(offset.to_string())).unwrap();
        }
        let batch = builder.finish().unwrap();
        let header = *BatchView::parse(&batch).unwrap().header();
        (header, decode_body(&header, &batch, &DecodeLimits::default()).unwrap())
    }

    fn check(list: &RecordList, expected: &[i64]) {
        let borrowed = |record: StoredRef<'_>| {
            assert_eq!(record.value(), Some(record.offset().to_string().as_bytes()));
            assert_eq!(record.leader_epoch(), 3);
            record.offset().get()
        };
        assert_eq!(list.iter().map(borrowed).collect::<Vec<_>>(), expected);
        assert_eq!((0..list.len()).map(|at| borrowed(list.get(at).unwrap())).collect::<Vec<_>>(), expected);
        assert_eq!(list.clone().into_iter().map(|record| borrowed(record.borrowed())).collect::<Vec<_>>(), expected);
        assert_eq!(list.first().map(borrowed), expected.first().copied());
        assert_eq!(list.last().map(borrowed), expected.last().copied());
        assert!(list.get(expected.len()).is_none());
        assert_eq!((list.iter().len(), list.is_empty()), (expected.len(), expected.is_empty()));
    }

    #[test]
    fn records_come_out_as_they_went_in_each_with_its_batch() {
        check(&RecordList::new(), &[]);
        let (one, two) = (batch(0, 3), batch(10, 2));
        let records = |of: &(BatchHeader, Bytes)| stored_records(&of.0, &of.1).map(Result::unwrap).collect::<Vec<_>>();
        let list: RecordList = records(&one).into_iter().chain(records(&two)).collect();
        check(&list, &[0, 1, 2, 10, 11]);
        assert_eq!(list.batches.len(), 2);
    }

    #[test]
    fn what_is_taken_of_one_batch_holds_it_once() {
        let mut list = RecordList::with_capacity(4);
        let mut expected = Vec::new();
        for (base, count, len_max) in [(0, 3, 2), (10, 2, 2), (20, 4, 5), (30, 1, 9)] {
            let (header, body) = batch(base, count);
            let body = SharedBytes::from(body);
            let mut at = RecordsState::new(&header);
            list.extend_of((&body, &header), len_max, || at.next_short(&body));
            let room = len_max as i64 - expected.len() as i64;
            expected.extend((base..base + count).take(room.max(0) as usize));
            check(&list, &expected);
            // The next of the same batch, put together by itself.
            if let Some(view) = at.next_short(&body) {
                list.push(StoredRecord::new(&body, &header, view.place()));
                expected.push(view.offset());
                check(&list, &expected);
            }
        }
        assert_eq!(expected, [0, 1, 2, 10, 20, 21, 30]);
        assert_eq!(list.batches.len(), 4);
        // A batch of which nothing is taken is not held.
        let (header, body) = batch(40, 1);
        list.extend_of((&SharedBytes::from(body), &header), 99, || None);
        assert_eq!(list.batches.len(), 4);
    }
}
