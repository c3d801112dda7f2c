//! The 61-byte batch header, and the batch as a whole: [`peek`], [`BatchHeader`], [`BatchView`].
//!
//! Knows nothing of records: the bytes after the header are a body, see `body.rs`.
//!
//! ```text
//!   0 baseOffset            i64   not in the checksum: the leader stamps it at append
//!   8 batchLength           i32   bytes after this field, at least 49
//!  12 partitionLeaderEpoch  i32   not in the checksum
//!  16 magic                 i8    2
//!  17 crc                   u32   CRC-32C of byte 21 to the end
//!  21 attributes            i16   bits 0-2 codec, 3 LogAppendTime, 4 transactional, 5 control, 6 delete horizon
//!  23 lastOffsetDelta       i32   kept when the cleaner removes records
//!  27 baseTimestamp         i64   what the records' deltas are added to; with bit 6 the delete horizon
//!  35 maxTimestamp          i64   largest timestamp; with bit 3 the timestamp of every record
//!  43 producerId            i64   -1 none
//!  51 producerEpoch         i16   -1 none
//!  53 baseSequence          i32   sequence of baseOffset; meaningless without a producer
//!  57 recordsCount          i32   records present now
//!  61 records                     one after the other, or one compressed block of them
//!
//! 0000  00 00 00 00 00 00 00 64 00 00 00 52 00 00 00 07   offset 100, 82 bytes follow, epoch 7
//! 0010  02 5e cb 70 fc 00 00 00 00 00 01 00 00 01 8b cf   magic 2, checksum, attributes 0, delta 1
//! 0020  e5 68 00 00 00 01 8b cf e5 68 05 ff ff ff ff ff   from 1700000000000 to ..005, no producer
//! 0030  ff ff ff ff ff ff ff ff ff 00 00 00 02 ..         two records
//! ```

use std::fmt;

use crate::clock::Timestamp;
use crate::planted::{Bug, is};

use super::body::RecordsIter;
use super::compress::Compression;
use super::decode::Decompressor;

/// The size of a batch without its records.
pub const BATCH_HEADER_BYTES: usize = 61;

/// How many bytes [`peek`] needs.
pub const PEEK_BYTES: usize = 17;

/// The bytes of offset and length, which the length does not count.
pub(super) const OVERHEAD_BYTES: usize = 12;
/// The smallest length that Kafka takes for an entry of any format.
const LENGTH_MIN_ANY: i32 = 14;
/// The smallest length of a batch: the header alone.
const LENGTH_MIN: i32 = 49;
/// Where the checksummed part begins.
pub(crate) const CRC_FROM: usize = 21;
/// Where the checksum is.
pub(super) const CRC_AT: usize = 17;
/// The least that a record takes: a length, attributes, two deltas, two null lengths and no headers.
const RECORD_BYTES_MIN: usize = 7;

pub(super) const CODEC_MASK: u16 = 0x07;
pub(super) const LOG_APPEND_TIME: u16 = 0x08;
pub(super) const TRANSACTIONAL: u16 = 0x10;
pub(super) const CONTROL: u16 = 0x20;
pub(super) const DELETE_HORIZON: u16 = 0x40;
const KNOWN_ATTRIBUTES: u16 = 0x7f;

/// What is wrong with the bytes of a batch, or with records that should become one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BatchError {
    /// There are fewer bytes than the batch says it has.
    #[error("the batch needs {needed} bytes and {available} are there")]
    Truncated {
        /// How many bytes, as far as is known.
        needed: usize,
        /// How many there are.
        available: usize,
    },
    /// A field has an impossible value.
    #[error("at byte {at}: {what}")]
    Malformed {
        /// Where: from the start of the batch for its header, from the start of the uncompressed body for a record.
        at: usize,
        /// What is wrong.
        what: &'static str,
    },
    /// The checksum does not hold.
    #[error("the checksum is {computed:08x}, and {stored:08x} is stored")]
    Crc {
        /// The checksum in the header.
        stored: u32,
        /// The checksum of the bytes.
        computed: u32,
    },
    /// The entry is of another format: 0 and 1 are Kafka's before version 0.11.
    #[error("unsupported record format {0}: only format 2 (since Kafka 0.11) can be read")]
    Magic(i8),
    /// Attribute bits are set that have no meaning yet.
    #[error("unsupported batch attributes {0:#06x}")]
    Attributes(u16),
    /// The codec is not compiled in.
    #[error("compression {0} is not built in: enable the feature \"{0}\"")]
    CodecNotBuiltIn(Compression),
    /// There is no such codec.
    #[error("codec {0} does not exist")]
    CodecInvalid(u8),
    /// The body does not decompress.
    #[error("{codec} body: {why}")]
    Decompress {
        /// The codec.
        codec: Compression,
        /// What the codec said.
        why: Box<str>,
    },
    /// The body decompresses to more than the reader allows.
    #[error("the body decompresses to more than {limit} bytes")]
    DecompressedTooLarge {
        /// The limit.
        limit: usize,
    },
    /// A batch was to be made that cannot be.
    #[error("the batch cannot be made: {what}")]
    Unencodable {
        /// Which rule the records or the settings break.
        what: &'static str,
    },
}

impl BatchError {
    /// Whether the bytes may be right, but this build or this format cannot read them. Everything else is damage, or,
    /// for [`BatchError::DecompressedTooLarge`], a limit.
    ///
    /// ```
    /// use topiclog::record::BatchError;
    /// assert!(BatchError::Magic(1).is_unsupported());
    /// assert!(!BatchError::Crc { stored: 1, computed: 2 }.is_unsupported());
    /// ```
    pub fn is_unsupported(&self) -> bool {
        // A negative magic is no format of any version.
        match self {
            BatchError::Magic(magic) => *magic >= 0,
            BatchError::Attributes(_) | BatchError::CodecNotBuiltIn(_) => true,
            _ => false,
        }
    }

    #[cold]
    #[inline(never)]
    pub(super) fn malformed(at: usize, what: &'static str) -> Self {
        BatchError::Malformed { at, what }
    }
}

/// Whose clock a batch's timestamps are of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum TimestampType {
    /// Each record has the time that its producer gave it.
    #[default]
    CreateTime,
    /// All records have the time at which the batch was appended.
    LogAppendTime,
}

impl fmt::Display for TimestampType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TimestampType::CreateTime => "CreateTime",
            TimestampType::LogAppendTime => "LogAppendTime",
        })
    }
}

/// What the first 17 bytes say of an entry of any format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peek {
    /// The offset: of the first record, or in formats 0 and 1 of the last.
    pub base_offset: i64,
    /// The size of the whole entry.
    pub size_bytes: usize,
    /// The leader epoch; in formats 0 and 1 there is a checksum in this place.
    pub leader_epoch: i32,
    /// The format.
    pub magic: i8,
}

/// Reads what is in the same place in every format, without judging the format.
///
/// # Errors
/// [`BatchError::Truncated`] below 17 bytes, [`BatchError::Malformed`] if the length is one that no format has.
///
/// ```
/// use topiclog::record::{BatchBuilder, BatchSpec, Record, peek};
/// let mut batch = BatchBuilder::new(BatchSpec::new(100));
/// batch.push(Record::of_value("x"))?;
/// let batch = batch.finish()?;
/// let seen = peek(&batch)?;
/// assert_eq!((seen.base_offset, seen.size_bytes, seen.magic), (100, batch.len(), 2));
/// # Ok::<(), topiclog::record::BatchError>(())
/// ```
#[inline]
pub fn peek(bytes: &[u8]) -> Result<Peek, BatchError> {
    let Some(first) = bytes.first_chunk::<PEEK_BYTES>() else {
        return Err(BatchError::Truncated { needed: PEEK_BYTES, available: bytes.len() });
    };
    let length = i32::from_be_bytes(part(first, 8));
    if length < LENGTH_MIN_ANY {
        return Err(BatchError::malformed(8, "the length is less than any batch has"));
    }
    Ok(Peek {
        base_offset: i64::from_be_bytes(part(first, 0)),
        size_bytes: (length.cast_unsigned() as usize).wrapping_add(OVERHEAD_BYTES),
        leader_epoch: i32::from_be_bytes(part(first, 12)),
        magic: i8::from_be_bytes(part(first, 16)),
    })
}

/// `N` bytes of a fixed header. With constant arguments the bounds check is decided by the compiler; a position outside
/// would give zeros, and no caller has one.
#[inline(always)]
fn part<const H: usize, const N: usize>(header: &[u8; H], at: usize) -> [u8; N] {
    match header.get(at..).and_then(|rest| rest.first_chunk::<N>()) {
        Some(bytes) => *bytes,
        None => [0; N],
    }
}

/// The header of a batch, decoded. One that came from [`BatchHeader::decode`] satisfies the checks named there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchHeader {
    /// The offset that the records' deltas are added to; at least 0.
    pub base_offset: i64,
    /// Bytes after the length field; at least 49.
    pub batch_length: i32,
    /// The epoch of the leader that appended, -1 if unknown.
    pub leader_epoch: i32,
    /// The format, 2.
    pub magic: i8,
    /// CRC-32C of everything from the attributes on.
    pub crc: u32,
    /// The attribute bits, see [`compression`](Self::compression) and the methods after it.
    pub attributes: u16,
    /// The last offset of the batch as produced, less the base offset; at least 0.
    pub last_offset_delta: i32,
    /// What the records' timestamp deltas are added to, or the delete horizon.
    pub base_timestamp: Timestamp,
    /// The largest timestamp, or that of every record.
    pub max_timestamp: Timestamp,
    /// The producer, -1 if none.
    pub producer_id: i64,
    /// The producer's epoch, -1 if none.
    pub producer_epoch: i16,
    /// The sequence number of the base offset. Without a producer it means nothing and may have any value.
    pub base_sequence: i32,
    /// How many records there are now; at most `last_offset_delta + 1`.
    pub records_count: i32,
}

impl BatchHeader {
    /// Decodes a header and checks all that it alone can tell: the length, format 2, no unknown attribute, a codec that
    /// exists, offsets that neither are negative nor overflow, and a count that the offsets and the size allow. Does
    /// not look at the checksum or at how many bytes follow.
    ///
    /// # Errors
    /// The first check that does not hold.
    #[inline(always)]
    pub fn decode(bytes: &[u8]) -> Result<Self, BatchError> {
        let Some(raw) = bytes.first_chunk::<BATCH_HEADER_BYTES>() else {
            // A short entry of an old format should be named as such.
            return Err(match peek(bytes) {
                Ok(seen) if seen.magic != 2 => BatchError::Magic(seen.magic),
                Err(error @ BatchError::Malformed { .. }) => error,
                _ => BatchError::Truncated { needed: BATCH_HEADER_BYTES, available: bytes.len() },
            });
        };
        let header = Self {
            base_offset: i64::from_be_bytes(part(raw, 0)),
            batch_length: i32::from_be_bytes(part(raw, 8)),
            leader_epoch: i32::from_be_bytes(part(raw, 12)),
            magic: i8::from_be_bytes(part(raw, 16)),
            crc: u32::from_be_bytes(part(raw, CRC_AT)),
            attributes: u16::from_be_bytes(part(raw, CRC_FROM)),
            last_offset_delta: i32::from_be_bytes(part(raw, 23)),
            base_timestamp: i64::from_be_bytes(part(raw, 27)),
            max_timestamp: i64::from_be_bytes(part(raw, 35)),
            producer_id: i64::from_be_bytes(part(raw, 43)),
            producer_epoch: i16::from_be_bytes(part(raw, 51)),
            base_sequence: i32::from_be_bytes(part(raw, 53)),
            records_count: i32::from_be_bytes(part(raw, 57)),
        };
        header.check()?;
        Ok(header)
    }

    #[inline(always)]
    fn check(&self) -> Result<(), BatchError> {
        if self.magic != 2 {
            return Err(BatchError::Magic(self.magic));
        }
        if self.batch_length < LENGTH_MIN {
            return Err(BatchError::malformed(8, "the length is less than the header has"));
        }
        if self.attributes & !KNOWN_ATTRIBUTES != 0 {
            return Err(BatchError::Attributes(self.attributes));
        }
        if self.attributes & CODEC_MASK > 4 {
            return Err(BatchError::CodecInvalid((self.attributes & CODEC_MASK) as u8));
        }
        if self.base_offset < 0 {
            return Err(BatchError::malformed(0, "the offset is negative"));
        }
        if self.last_offset_delta < 0 {
            return Err(BatchError::malformed(23, "the last offset delta is negative"));
        }
        let span = i64::from(self.last_offset_delta).wrapping_add(1);
        if self.base_offset.checked_add(span).is_none() {
            return Err(BatchError::malformed(0, "the offset overflows"));
        }
        let count = i64::from(self.records_count);
        if count < 0 || count > span {
            return Err(BatchError::malformed(57, "the number of records does not fit the offsets"));
        }
        let body_bytes = self.size_bytes().wrapping_sub(BATCH_HEADER_BYTES);
        let uncompressed = self.attributes & CODEC_MASK == 0;
        if uncompressed && self.records_count.cast_unsigned() as usize > body_bytes / RECORD_BYTES_MIN {
            return Err(BatchError::malformed(57, "more records than the batch has room for"));
        }
        Ok(())
    }

    /// The 61 bytes, with the checksum that is set.
    pub(super) fn encode(&self) -> [u8; BATCH_HEADER_BYTES] {
        let mut bytes = [0; BATCH_HEADER_BYTES];
        put(&mut bytes, 0, self.base_offset.to_be_bytes());
        put(&mut bytes, 8, self.batch_length.to_be_bytes());
        put(&mut bytes, 12, self.leader_epoch.to_be_bytes());
        put(&mut bytes, 16, self.magic.to_be_bytes());
        put(&mut bytes, CRC_AT, self.crc.to_be_bytes());
        put(&mut bytes, CRC_FROM, self.attributes.to_be_bytes());
        put(&mut bytes, 23, self.last_offset_delta.to_be_bytes());
        put(&mut bytes, 27, self.base_timestamp.to_be_bytes());
        put(&mut bytes, 35, self.max_timestamp.to_be_bytes());
        put(&mut bytes, 43, self.producer_id.to_be_bytes());
        put(&mut bytes, 51, self.producer_epoch.to_be_bytes());
        put(&mut bytes, 53, self.base_sequence.to_be_bytes());
        put(&mut bytes, 57, self.records_count.to_be_bytes());
        bytes
    }

    /// The size of the whole batch.
    #[inline]
    pub fn size_bytes(&self) -> usize {
        (self.batch_length.cast_unsigned() as usize).wrapping_add(OVERHEAD_BYTES)
    }

    /// The last offset of the batch as produced: what it occupies, even if the cleaner removed records since.
    #[inline]
    pub fn last_offset(&self) -> i64 {
        self.base_offset.wrapping_add(i64::from(self.last_offset_delta))
    }

    /// The first offset after the batch.
    #[inline]
    pub fn next_offset(&self) -> i64 {
        self.last_offset().wrapping_add(1)
    }

    /// How the body is compressed.
    #[inline]
    pub fn compression(&self) -> Compression {
        // Decoding refused the ids that do not exist.
        Compression::from_id((self.attributes & CODEC_MASK) as u8).unwrap_or_default()
    }

    /// Whose clock the timestamps are of.
    #[inline]
    pub fn timestamp_type(&self) -> TimestampType {
        if self.attributes & LOG_APPEND_TIME == 0 { TimestampType::CreateTime } else { TimestampType::LogAppendTime }
    }

    /// Whether the batch belongs to a transaction. Markers do, too.
    #[inline]
    pub fn is_transactional(&self) -> bool {
        self.attributes & TRANSACTIONAL != 0
    }

    /// Whether this is a control batch: it takes an offset, and consumers do not see it.
    #[inline]
    pub fn is_control(&self) -> bool {
        self.attributes & CONTROL != 0
    }

    /// From when on the cleaner may drop the batch's tombstones or marker, if it has set that.
    #[inline]
    pub fn delete_horizon_ms(&self) -> Option<Timestamp> {
        (self.attributes & DELETE_HORIZON != 0).then_some(self.base_timestamp)
    }

    /// The sequence number of the last offset, -1 if there is none. Sequence numbers go on from 2147483647 to 0.
    #[inline]
    pub fn last_sequence(&self) -> i32 {
        if self.producer_id < 0 || self.base_sequence < 0 {
            return -1;
        }
        super::builder::next_sequence(self.base_sequence, self.last_offset_delta)
    }
}

/// Writes into a fixed header; the twin of [`part`].
#[inline(always)]
fn put<const H: usize, const N: usize>(header: &mut [u8; H], at: usize, bytes: [u8; N]) {
    if let Some(slot) = header.get_mut(at..).and_then(|rest| rest.first_chunk_mut::<N>()) {
        *slot = bytes;
    }
}

/// A whole batch whose header, size and checksum hold.
///
/// ```
/// use topiclog::record::{BatchBuilder, BatchSpec, BatchView, Decompressor, Record};
/// let mut batch = BatchBuilder::new(BatchSpec::new(7));
/// batch.push(Record::keyed("k", "v"))?;
/// let bytes = batch.finish()?;
///
/// let view = BatchView::parse(&bytes)?;
/// let mut decompressor = Decompressor::default();
/// for record in view.records(&mut decompressor)? {
///     let record = record?;
///     assert_eq!((record.offset(), record.value()), (7, Some(&b"v"[..])));
/// }
/// # Ok::<(), topiclog::record::BatchError>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct BatchView<'a> {
    /// `header.size_bytes() == bytes.len()`.
    header: BatchHeader,
    bytes: &'a [u8],
}

impl<'a> BatchView<'a> {
    /// Checks the batch at the start of `bytes`; what follows it is left alone.
    ///
    /// # Errors
    /// What [`BatchHeader::decode`] finds, [`BatchError::Truncated`] if the batch does not end within `bytes`, and
    /// [`BatchError::Crc`].
    #[inline]
    pub fn parse(bytes: &'a [u8]) -> Result<Self, BatchError> {
        let view = Self::parse_trusted(bytes)?;
        let computed = checksum(view.bytes);
        if computed != view.header.crc {
            return Err(BatchError::Crc { stored: view.header.crc, computed });
        }
        Ok(view)
    }

    /// The same without the checksum, for bytes that were checked before.
    #[inline]
    pub(crate) fn parse_trusted(bytes: &'a [u8]) -> Result<Self, BatchError> {
        let header = BatchHeader::decode(bytes)?;
        match bytes.get(..header.size_bytes()) {
            Some(bytes) => Ok(Self { header, bytes }),
            None => Err(BatchError::Truncated { needed: header.size_bytes(), available: bytes.len() }),
        }
    }

    /// The header.
    #[inline]
    pub fn header(&self) -> &BatchHeader {
        &self.header
    }

    /// The batch, without what followed it.
    #[inline]
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// What follows the header: the records, compressed if the header says so.
    #[inline]
    pub fn body(&self) -> &'a [u8] {
        self.bytes.get(BATCH_HEADER_BYTES..).unwrap_or_default()
    }

    /// Walks the records. A compressed body is decompressed into `decompressor`, which can be used again afterwards.
    ///
    /// # Errors
    /// If the body cannot be decompressed.
    #[inline]
    pub fn records<'b>(&self, decompressor: &'b mut Decompressor) -> Result<RecordsIter<'b>, BatchError>
    where
        'a: 'b,
    {
        Ok(RecordsIter::new(&self.header, decompressor.body(self)?))
    }
}

/// The checksum of a whole batch: CRC-32C from the attributes to the end.
#[inline]
pub(super) fn checksum(batch: &[u8]) -> u32 {
    let from = if is(Bug::CrcRangeWrong) { CRC_FROM + 2 } else { CRC_FROM };
    crc_fast::crc32_iscsi(batch.get(from..).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{BatchSpec, RecordRef, encode_batch};

    fn batch() -> Vec<u8> {
        let mut out = Vec::new();
        encode_batch(&mut out, &BatchSpec::new(100), [RecordRef::new(Some(b"k"), Some(b"v"))]).unwrap();
        out
    }

    fn with(at: usize, bytes: &[u8]) -> Result<BatchHeader, BatchError> {
        let mut batch = batch();
        batch[at..at + bytes.len()].copy_from_slice(bytes);
        BatchHeader::decode(&batch)
    }

    #[test]
    fn a_header_is_what_was_encoded() {
        let batch = batch();
        let header = BatchHeader::decode(&batch).unwrap();
        assert_eq!(header.encode()[..], batch[..BATCH_HEADER_BYTES]);
    }

    #[test]
    fn impossible_headers_are_refused() {
        let malformed = |at, bytes: &[u8]| {
            let refused = with(at, bytes).unwrap_err();
            assert!(matches!(refused, BatchError::Malformed { .. }), "{refused:?}");
            assert!(!refused.is_unsupported());
        };
        malformed(0, &(-1_i64).to_be_bytes());
        malformed(0, &i64::MAX.to_be_bytes());
        malformed(8, &48_i32.to_be_bytes());
        malformed(8, &(-1_i32).to_be_bytes());
        malformed(8, &i32::MIN.to_be_bytes());
        malformed(23, &(-1_i32).to_be_bytes());
        malformed(57, &(-1_i32).to_be_bytes());
        malformed(57, &2_i32.to_be_bytes());
        // Room for one record only, whatever the offsets say.
        let mut many = batch();
        many[23..27].copy_from_slice(&9_i32.to_be_bytes());
        many[57..61].copy_from_slice(&3_i32.to_be_bytes());
        assert!(matches!(BatchHeader::decode(&many), Err(BatchError::Malformed { at: 57, .. })));
        assert_eq!(with(0, &(i64::MAX - 1).to_be_bytes()).unwrap().next_offset(), i64::MAX);
    }

    #[test]
    fn what_another_version_may_know_is_unsupported() {
        for (at, bytes, expected) in [
            (16, &[0_u8][..], BatchError::Magic(0)),
            (16, &[1], BatchError::Magic(1)),
            (16, &[3], BatchError::Magic(3)),
            (21, &[0x00, 0x80], BatchError::Attributes(0x80)),
            (21, &[0x80, 0x00], BatchError::Attributes(0x8000)),
        ] {
            let refused = with(at, bytes).unwrap_err();
            assert_eq!(refused, expected);
            assert!(refused.is_unsupported());
        }
        assert_eq!(with(21, &[0, 5]).unwrap_err(), BatchError::CodecInvalid(5));
        assert!(!with(16, &[0xff]).unwrap_err().is_unsupported());
        let text = with(16, &[0]).unwrap_err().to_string();
        assert!(text.contains("unsupported record format 0"), "{text}");
    }

    #[test]
    fn short_input_is_truncated_until_more_is_known() {
        let batch = batch();
        assert_eq!(BatchHeader::decode(&[]), Err(BatchError::Truncated { needed: 61, available: 0 }));
        assert_eq!(peek(&batch[..16]), Err(BatchError::Truncated { needed: 17, available: 16 }));
        let available = batch.len() - 1;
        let refused = BatchView::parse(&batch[..available]).unwrap_err();
        assert_eq!(refused, BatchError::Truncated { needed: batch.len(), available });
        // Zeros, as preallocated space has, are no batch.
        assert!(matches!(peek(&[0; 17]), Err(BatchError::Malformed { at: 8, .. })));
        assert!(matches!(BatchView::parse(&[0; 100]), Err(BatchError::Magic(0))));
    }

    #[test]
    fn sequences_wrap() {
        let mut header = BatchHeader::decode(&batch()).unwrap();
        assert_eq!(header.last_sequence(), -1);
        header.producer_id = 1;
        header.base_sequence = i32::MAX - 1;
        header.last_offset_delta = 3;
        assert_eq!(header.last_sequence(), 1);
    }
}
