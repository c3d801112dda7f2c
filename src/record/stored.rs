//! [`StoredRecord`]: a record that was read, owning its bytes.
//!
//! It holds one counted pointer, to the bytes that its batch's uncompressed body is in, and ranges into them: a
//! [`Bytes`] for each part would cost more than all of the decoding. [`StoredRef`] borrows it.

use std::fmt;
use std::iter::FusedIterator;
use std::ops::{Deref, Range};
use std::sync::Arc;

use bytes::Bytes;

use crate::clock::Timestamp;
use crate::ids::Offset;

use super::append::{AsRecord, RecordRef};
use super::batch::{BatchError, BatchHeader, TimestampType};
use super::body::{RecordPlace, RecordsIter};
use super::headers::HeadersRef;

/// A part of bytes that many records share, a whole mapping for example.
///
/// `Bytes` is all of this too, but sharing one more of it costs a call through a pointer and a copy of four words for
/// each record; this costs the counter alone.
#[derive(Clone, Debug)]
pub(crate) struct SharedBytes {
    all: Arc<Bytes>,
    start: usize,
    end: usize,
}

impl SharedBytes {
    /// A part of these bytes; what lies outside of them is left out.
    #[inline]
    pub(crate) fn of(all: &Arc<Bytes>, range: Range<usize>) -> Self {
        let end = range.end.min(all.len());
        Self { all: Arc::clone(all), start: range.start.min(end), end }
    }

    /// [`of`](Self::of), for bytes that need not be shared once more.
    #[inline]
    pub(crate) fn taking(all: Arc<Bytes>, range: Range<usize>) -> Self {
        let end = range.end.min(all.len());
        Self { all, start: range.start.min(end), end }
    }

    /// [`slice`](Self::slice), for a part that is not needed as a whole any more.
    #[inline]
    pub(crate) fn into_slice(self, range: Range<usize>) -> Self {
        let end = self.start.saturating_add(range.end).min(self.end);
        Self { start: self.start.saturating_add(range.start).min(end), end, all: self.all }
    }

    /// A part of this part; what lies outside of it is left out.
    #[inline]
    pub(crate) fn slice(&self, range: Range<usize>) -> Self {
        let end = self.start.saturating_add(range.end).min(self.end);
        Self { all: Arc::clone(&self.all), start: self.start.saturating_add(range.start).min(end), end }
    }
}

impl From<Bytes> for SharedBytes {
    fn from(bytes: Bytes) -> Self {
        let end = bytes.len();
        Self { all: Arc::new(bytes), start: 0, end }
    }
}

impl Deref for SharedBytes {
    type Target = [u8];

    #[inline(always)]
    fn deref(&self) -> &[u8] {
        self.all.get(self.start..self.end).unwrap_or_default()
    }
}

/// What the records of a batch have in common: the body that they are in, and what the header says of each of them.
#[derive(Clone, Debug)]
pub(super) struct StoredBatch {
    all: Arc<Bytes>,
    /// Where in `all` the body begins.
    body_at: usize,
    leader_epoch: i32,
    timestamp_type: TimestampType,
}

impl StoredBatch {
    #[inline(always)]
    pub(super) fn taking(body: SharedBytes, header: &BatchHeader) -> Self {
        Self {
            all: body.all,
            body_at: body.start,
            leader_epoch: header.leader_epoch,
            timestamp_type: header.timestamp_type(),
        }
    }

    #[inline(always)]
    fn body(&self) -> &[u8] {
        self.all.get(self.body_at..).unwrap_or_default()
    }

    /// Whether this is the batch with that body.
    #[inline]
    pub(super) fn has_body(&self, body: &SharedBytes) -> bool {
        self.body_at == body.start && Arc::ptr_eq(&self.all, &body.all)
    }

    /// Whether both are the same batch.
    #[inline]
    pub(super) fn is(&self, other: &Self) -> bool {
        self.body_at == other.body_at && Arc::ptr_eq(&self.all, &other.all)
    }
}

/// A record of a log. Cloning it copies no bytes; as long as it lives, so does the body of its batch.
#[derive(Clone)]
pub struct StoredRecord {
    pub(super) batch: StoredBatch,
    pub(super) place: RecordPlace,
}

impl StoredRecord {
    /// Takes a record over. `place` must be that of one of the records in `body`.
    #[inline(always)]
    pub(crate) fn new(body: &SharedBytes, header: &BatchHeader, place: RecordPlace) -> Self {
        Self::taking(body.clone(), header, place)
    }

    /// [`new`](Self::new), for a body that nobody else needs.
    #[inline(always)]
    pub(crate) fn taking(body: SharedBytes, header: &BatchHeader, place: RecordPlace) -> Self {
        Self { batch: StoredBatch::taking(body, header), place }
    }

    /// Length of key and value together.
    #[inline]
    pub(crate) fn key_and_value_bytes(&self) -> usize {
        self.place.parts.key_and_value_bytes()
    }

    /// The record, borrowed.
    #[inline(always)]
    pub fn borrowed(&self) -> StoredRef<'_> {
        StoredRef { batch: &self.batch, place: &self.place }
    }

    /// The record's offset.
    #[inline]
    pub fn offset(&self) -> Offset {
        self.borrowed().offset()
    }

    /// The record's time, in milliseconds since 1970-01-01 UTC, -1 if it has none.
    #[inline]
    pub fn timestamp_ms(&self) -> Timestamp {
        self.borrowed().timestamp_ms()
    }

    /// Whose clock the time is of.
    pub fn timestamp_type(&self) -> TimestampType {
        self.borrowed().timestamp_type()
    }

    /// The epoch of the leader that appended it, -1 if unknown.
    pub fn leader_epoch(&self) -> i32 {
        self.borrowed().leader_epoch()
    }

    /// The key, `None` if it is null.
    #[inline]
    pub fn key(&self) -> Option<&[u8]> {
        self.borrowed().key()
    }

    /// The value, `None` if it is null.
    #[inline]
    pub fn value(&self) -> Option<&[u8]> {
        self.borrowed().value()
    }

    /// The key as shared bytes, `None` if it is null.
    pub fn key_bytes(&self) -> Option<Bytes> {
        self.borrowed().key_bytes()
    }

    /// The value as shared bytes, `None` if it is null.
    pub fn value_bytes(&self) -> Option<Bytes> {
        self.borrowed().value_bytes()
    }

    /// The headers, in order.
    pub fn headers(&self) -> HeadersRef<'_> {
        self.borrowed().headers()
    }

    /// Whether the value is null: in a compacted topic, whether it removes the key.
    pub fn is_tombstone(&self) -> bool {
        self.borrowed().is_tombstone()
    }
}

/// A [`StoredRecord`], borrowed: from one, or from what holds many. As small as two pointers.
///
/// ```
/// use topiclog::{Record, Store, StoredRecord, TopicConfig};
/// let store = Store::in_memory()?;
/// let orders = store.create_topic("orders", TopicConfig::default())?;
/// orders.append(Record::keyed("42", "placed"))?;
/// let owned: StoredRecord = orders.partition(0)?.record(0)?.expect("it is there");
/// let borrowed = owned.borrowed();
/// assert_eq!(borrowed.key(), Some(&b"42"[..]));
/// assert_eq!(borrowed.to_stored().value_bytes(), owned.value_bytes());
/// # store.close()?;
/// # Ok::<(), topiclog::Error>(())
/// ```
#[derive(Clone, Copy)]
pub struct StoredRef<'a> {
    pub(super) batch: &'a StoredBatch,
    pub(super) place: &'a RecordPlace,
}

impl<'a> StoredRef<'a> {
    /// The record's offset.
    #[inline]
    pub fn offset(self) -> Offset {
        Offset::new(self.place.offset)
    }

    /// The record's time, in milliseconds since 1970-01-01 UTC, -1 if it has none.
    #[inline]
    pub fn timestamp_ms(self) -> Timestamp {
        self.place.timestamp
    }

    /// Whose clock the time is of.
    pub fn timestamp_type(self) -> TimestampType {
        self.batch.timestamp_type
    }

    /// The epoch of the leader that appended it, -1 if unknown.
    pub fn leader_epoch(self) -> i32 {
        self.batch.leader_epoch
    }

    /// The key, `None` if it is null.
    #[inline]
    pub fn key(self) -> Option<&'a [u8]> {
        self.place.parts.key(self.batch.body())
    }

    /// The value, `None` if it is null.
    #[inline]
    pub fn value(self) -> Option<&'a [u8]> {
        self.place.parts.value(self.batch.body())
    }

    /// The key as shared bytes, `None` if it is null.
    pub fn key_bytes(self) -> Option<Bytes> {
        self.key().map(|key| self.batch.all.slice_ref(key))
    }

    /// The value as shared bytes, `None` if it is null.
    pub fn value_bytes(self) -> Option<Bytes> {
        self.value().map(|value| self.batch.all.slice_ref(value))
    }

    /// The headers, in order.
    pub fn headers(self) -> HeadersRef<'a> {
        self.place.parts.headers(self.batch.body())
    }

    /// Whether the value is null: in a compacted topic, whether it removes the key.
    pub fn is_tombstone(self) -> bool {
        self.place.parts.value_length < 0
    }

    /// The record as one that owns its bytes, which are shared and not copied.
    #[inline]
    pub fn to_stored(self) -> StoredRecord {
        StoredRecord { batch: self.batch.clone(), place: *self.place }
    }
}

impl fmt::Debug for StoredRecord {
    /// As [`StoredRef`] does.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.borrowed().show("StoredRecord", f)
    }
}

impl fmt::Debug for StoredRef<'_> {
    /// Shows where the record is and how large, not what is in it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.show("StoredRef", f)
    }
}

impl StoredRef<'_> {
    fn show(self, name: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct(name)
            .field("offset", &self.place.offset)
            .field("timestamp", &self.place.timestamp)
            .field("key_bytes", &self.key().map(<[u8]>::len))
            .field("value_bytes", &self.value().map(<[u8]>::len))
            .field("headers", &self.headers().len())
            .finish_non_exhaustive()
    }
}

impl<'a> StoredRef<'a> {
    #[inline]
    fn to_append(self) -> RecordRef<'a> {
        RecordRef {
            key: self.key(),
            value: self.value(),
            headers: self.headers(),
            timestamp: Some(self.timestamp_ms()),
            partition: None,
            partition_key: None,
        }
    }
}

impl AsRecord for StoredRecord {
    #[inline]
    fn as_record(&self) -> RecordRef<'_> {
        self.borrowed().to_append()
    }
}

impl AsRecord for StoredRef<'_> {
    #[inline]
    fn as_record(&self) -> RecordRef<'_> {
        self.to_append()
    }
}

/// The records of an uncompressed body, each owning its bytes; see [`decode_body`](super::decode_body) for the body.
///
/// ```
/// use topiclog::record::{BatchBuilder, BatchSpec, BatchView, DecodeLimits, Record, decode_body, stored_records};
/// let mut batch = BatchBuilder::new(BatchSpec::new(7));
/// batch.push(Record::keyed("k", "v"))?;
/// let bytes = batch.finish()?;
///
/// let header = *BatchView::parse(&bytes)?.header();
/// let body = decode_body(&header, &bytes, &DecodeLimits::default())?;
/// let records = stored_records(&header, &body).collect::<Result<Vec<_>, _>>()?;
/// assert_eq!(records[0].offset().get(), 7);
/// assert_eq!(records[0].value_bytes().unwrap(), "v");
/// # Ok::<(), topiclog::record::BatchError>(())
/// ```
pub fn stored_records<'a>(header: &'a BatchHeader, body: &'a Bytes) -> StoredRecords<'a> {
    StoredRecords { header, body: body.clone().into(), views: RecordsIter::new(header, body) }
}

/// Walks records that own their bytes, see [`stored_records`].
#[derive(Clone, Debug)]
pub struct StoredRecords<'a> {
    header: &'a BatchHeader,
    body: SharedBytes,
    views: RecordsIter<'a>,
}

impl Iterator for StoredRecords<'_> {
    type Item = Result<StoredRecord, BatchError>;

    #[inline(always)]
    fn next(&mut self) -> Option<Self::Item> {
        let view = self.views.next()?;
        Some(view.map(|view| StoredRecord::new(&self.body, self.header, view.place())))
    }
}

impl FusedIterator for StoredRecords<'_> {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{BatchBuilder, BatchSpec, BatchView, DecodeLimits, Record, decode_body};

    #[test]
    fn a_record_is_one_pointer_and_ranges() {
        assert!(size_of::<StoredRecord>() <= 64, "{}", size_of::<StoredRecord>());
        assert!(size_of::<BatchError>() <= 32, "{}", size_of::<BatchError>());
    }

    #[test]
    fn parts_share_the_batch_and_outlive_the_record() {
        let mut builder = BatchBuilder::new(BatchSpec { leader_epoch: 4, append_time_ms: 9, ..BatchSpec::new(7) });
        builder.push(Record::keyed("key", "value").header("h", "x")).unwrap();
        builder.push(Record::keyed("", "")).unwrap();
        let batch = builder.finish().unwrap();
        let header = *BatchView::parse(&batch).unwrap().header();
        let body = decode_body(&header, &batch, &DecodeLimits::default()).unwrap();
        let records: Vec<_> = stored_records(&header, &body).map(Result::unwrap).collect();
        let value = records[0].value_bytes().unwrap();
        assert_eq!((records[0].leader_epoch(), records[0].timestamp_ms()), (4, 9));
        assert!(batch.as_ptr_range().contains(&value.as_ptr()), "no copy was made");
        assert_eq!((records[1].key_bytes(), records[1].value_bytes()), (Some(Bytes::new()), Some(Bytes::new())));
        let shown = format!("{:?}", records[0]);
        assert!(!shown.contains("value\"") && shown.contains("offset: 7"), "{shown}");
        drop((records, body, batch));
        assert_eq!(value, "value");
    }
}
