//! What users append: [`Record`], its borrowed form [`RecordRef`], and [`Header`].
//!
//! Knows nothing of offsets or batches: a record becomes part of a log only in a batch.

use std::borrow::Cow;

use bytes::Bytes;

use crate::clock::Timestamp;
use crate::ids::PartitionId;

use super::headers::HeadersRef;

/// A record header: a name, and bytes or null. Names may repeat and their order is kept.
///
/// ```
/// use topiclog::record::Header;
/// let header = Header::new("trace", "a1");
/// assert_eq!((header.name().as_ref(), header.value()), ("trace", Some(&b"a1"[..])));
/// assert_eq!(Header::null("flag").value(), None);
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Header {
    name: Bytes,
    value: Option<Bytes>,
}

impl Header {
    /// A header with a value.
    pub fn new(name: impl Into<String>, value: impl Into<Bytes>) -> Self {
        Self { name: Bytes::from(name.into()), value: Some(value.into()) }
    }

    /// A header whose value is null.
    pub fn null(name: impl Into<String>) -> Self {
        Self { name: Bytes::from(name.into()), value: None }
    }

    /// A header as it was read: the name may be any bytes. Kafka's clients expect UTF-8.
    pub fn from_bytes(name: impl Into<Bytes>, value: Option<Bytes>) -> Self {
        Self { name: name.into(), value }
    }

    /// The name; bytes that are not UTF-8 are shown as replacement characters.
    pub fn name(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.name)
    }

    /// The name as it is stored.
    pub fn name_bytes(&self) -> &[u8] {
        &self.name
    }

    /// The value, `None` if it is null.
    pub fn value(&self) -> Option<&[u8]> {
        self.value.as_deref()
    }
}

/// A record to append: a key and a value, either of which may be null, headers, and wishes about time and place.
///
/// ```
/// use topiclog::record::Record;
/// let record = Record::keyed("order-1", "paid").header("by", "till-3").timestamp_ms(1_700_000_000_000);
/// assert_eq!(record.key(), Some(&b"order-1"[..]));
/// assert!(Record::tombstone("order-1").value().is_none());
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Record {
    key: Option<Bytes>,
    value: Option<Bytes>,
    headers: Vec<Header>,
    timestamp: Option<Timestamp>,
    partition: Option<PartitionId>,
    partition_key: Option<Bytes>,
}

impl Record {
    /// A record of any shape.
    pub fn new(key: Option<Bytes>, value: Option<Bytes>) -> Self {
        Self { key, value, ..Self::default() }
    }

    /// A record with a key and a value.
    pub fn keyed(key: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        Self::new(Some(key.into()), Some(value.into()))
    }

    /// A record with a null key.
    pub fn of_value(value: impl Into<Bytes>) -> Self {
        Self::new(None, Some(value.into()))
    }

    /// A record with a null value: in a compacted topic it removes the key.
    pub fn tombstone(key: impl Into<Bytes>) -> Self {
        Self::new(Some(key.into()), None)
    }

    /// Adds a header after those that are there.
    #[must_use]
    pub fn header(self, name: impl Into<String>, value: impl Into<Bytes>) -> Self {
        self.with_header(Header::new(name, value))
    }

    /// Adds a header after those that are there.
    #[must_use]
    pub fn with_header(mut self, header: Header) -> Self {
        self.headers.push(header);
        self
    }

    /// Sets the time, in milliseconds since 1970-01-01 UTC. Without it, the record gets the time of its append.
    #[must_use]
    pub fn timestamp_ms(mut self, timestamp: Timestamp) -> Self {
        self.timestamp = Some(timestamp);
        self
    }

    /// Names the partition. Without it, the key decides.
    #[must_use]
    pub fn to_partition(mut self, partition: impl Into<PartitionId>) -> Self {
        self.partition = Some(partition.into());
        self
    }

    /// Lets these bytes choose the partition instead of the key. They are not stored.
    #[must_use]
    pub fn partition_key(mut self, key: impl Into<Bytes>) -> Self {
        self.partition_key = Some(key.into());
        self
    }

    /// The key, `None` if it is null.
    pub fn key(&self) -> Option<&[u8]> {
        self.key.as_deref()
    }

    /// The value, `None` if it is null.
    pub fn value(&self) -> Option<&[u8]> {
        self.value.as_deref()
    }

    /// The key as shared bytes, `None` if it is null.
    pub fn key_bytes(&self) -> Option<&Bytes> {
        self.key.as_ref()
    }

    /// The value as shared bytes, `None` if it is null.
    pub fn value_bytes(&self) -> Option<&Bytes> {
        self.value.as_ref()
    }

    /// The headers, in order.
    pub fn headers(&self) -> &[Header] {
        &self.headers
    }

    /// The time that was set.
    pub fn timestamp(&self) -> Option<Timestamp> {
        self.timestamp
    }

    /// The partition that was named.
    pub fn partition(&self) -> Option<PartitionId> {
        self.partition
    }

    /// The bytes that choose the partition: those given, else the key.
    pub fn partitioning_key(&self) -> Option<&[u8]> {
        self.partition_key.as_deref().or(self.key())
    }
}

/// A record to append, borrowed: what the encoder reads, so that nothing has to be copied to be appended.
///
/// ```
/// use topiclog::record::RecordRef;
/// let record = RecordRef::new(Some(b"key"), Some(b"value")).at_ms(1_700_000_000_000);
/// assert_eq!(record.timestamp, Some(1_700_000_000_000));
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct RecordRef<'a> {
    /// The key, `None` if it is null.
    pub key: Option<&'a [u8]>,
    /// The value, `None` if it is null.
    pub value: Option<&'a [u8]>,
    /// The headers, in order.
    pub headers: HeadersRef<'a>,
    /// The time; `None` for the time of the append.
    pub timestamp: Option<Timestamp>,
    /// The partition; `None` to let the key decide.
    pub partition: Option<PartitionId>,
    /// What chooses the partition instead of the key.
    pub partition_key: Option<&'a [u8]>,
}

impl<'a> RecordRef<'a> {
    /// A record without headers and without wishes.
    #[inline]
    pub fn new(key: Option<&'a [u8]>, value: Option<&'a [u8]>) -> Self {
        Self { key, value, ..Self::default() }
    }

    /// The same with this time, in milliseconds since 1970-01-01 UTC.
    #[inline]
    #[must_use]
    pub fn at_ms(mut self, timestamp: Timestamp) -> Self {
        self.timestamp = Some(timestamp);
        self
    }

    /// The same with these headers.
    #[inline]
    #[must_use]
    pub fn with_headers(mut self, headers: impl Into<HeadersRef<'a>>) -> Self {
        self.headers = headers.into();
        self
    }

    /// The bytes that choose the partition: those given, else the key.
    pub fn partitioning_key(&self) -> Option<&'a [u8]> {
        self.partition_key.or(self.key)
    }
}

/// Anything that can be appended: a [`Record`], a [`RecordRef`], or a [`StoredRecord`](super::StoredRecord) that is
/// copied to another place, and references to them.
pub trait AsRecord {
    /// The record, borrowed.
    fn as_record(&self) -> RecordRef<'_>;
}

impl<T: AsRecord + ?Sized> AsRecord for &T {
    #[inline(always)]
    fn as_record(&self) -> RecordRef<'_> {
        (**self).as_record()
    }
}

impl AsRecord for RecordRef<'_> {
    #[inline(always)]
    fn as_record(&self) -> RecordRef<'_> {
        *self
    }
}

impl AsRecord for Record {
    #[inline(always)]
    fn as_record(&self) -> RecordRef<'_> {
        RecordRef {
            key: self.key.as_deref(),
            value: self.value.as_deref(),
            headers: HeadersRef::from(self.headers.as_slice()),
            timestamp: self.timestamp,
            partition: self.partition,
            partition_key: self.partition_key.as_deref(),
        }
    }
}
