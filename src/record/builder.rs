//! Records to batches: [`encode_batch`], and [`BatchBuilder`] as its convenient form.
//!
//! A batch is made in one pass over its records, at the end of a buffer that the caller has; the header is filled in
//! last and the checksum after it. Knows nothing of where the bytes go.

use bytes::Bytes;

use crate::clock::Timestamp;

use super::append::{AsRecord, RecordRef};
use super::batch::{
    self, BATCH_HEADER_BYTES, BatchError, BatchHeader, CONTROL, CRC_AT, DELETE_HORIZON, LOG_APPEND_TIME,
    OVERHEAD_BYTES, TRANSACTIONAL, TimestampType,
};
use super::body::RecordView;
use super::compress::{self, Compression};
use super::headers::HeadersRef;
use super::room::Room;
use super::short_form::ShortForm;
use super::varint;

/// What a batch is to be, apart from its records.
///
/// ```
/// use topiclog::record::{BatchSpec, Compression};
/// let spec = BatchSpec { leader_epoch: 7, compression: Compression::None, ..BatchSpec::new(100) };
/// assert_eq!(spec.base_offset, 100);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchSpec {
    /// The offset of the first record; the others follow one by one.
    pub base_offset: i64,
    /// The leader epoch, -1 if unknown.
    pub leader_epoch: i32,
    /// How the records are compressed.
    pub compression: Compression,
    /// The codec's level; `None` for its default. Only gzip and zstd have levels.
    pub compression_level: Option<i32>,
    /// Whose clock the timestamps are of.
    pub timestamp_type: TimestampType,
    /// The time of records that have none, and under [`TimestampType::LogAppendTime`] of all.
    pub append_time_ms: Timestamp,
    /// An idempotent producer: its id, its epoch and the sequence number of the first record.
    pub producer: Option<(i64, i16, i32)>,
    /// Whether the batch is part of the producer's transaction.
    pub transactional: bool,
}

impl BatchSpec {
    /// An uncompressed batch in epoch 0, without a producer and without a time (-1).
    pub fn new(base_offset: i64) -> Self {
        Self {
            base_offset,
            leader_epoch: 0,
            compression: Compression::None,
            compression_level: None,
            timestamp_type: TimestampType::CreateTime,
            append_time_ms: -1,
            producer: None,
            transactional: false,
        }
    }

    #[inline]
    fn check(&self) -> Result<(), BatchError> {
        let refuse = |what| Err(BatchError::Unencodable { what });
        if self.base_offset < 0 {
            return refuse("the offset is negative");
        }
        match self.producer {
            None if self.transactional => return refuse("a transaction needs a producer"),
            Some((id, epoch, sequence)) if id < 0 || epoch < 0 || sequence < 0 => {
                return refuse("the producer's id, epoch or sequence is negative");
            }
            _ => {}
        }
        if !self.compression.is_built_in() {
            return Err(BatchError::CodecNotBuiltIn(self.compression));
        }
        Ok(())
    }
}

/// What [`encode_batch`] made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchSummary {
    /// The size of the batch.
    pub bytes: usize,
    /// How many records it holds.
    pub records: u32,
    /// The timestamp of the first record.
    pub base_timestamp: Timestamp,
    /// The largest timestamp, or the append time.
    pub max_timestamp: Timestamp,
    /// Which record is the first to have the largest timestamp.
    pub offset_delta_of_max_timestamp: i32,
}

/// Appends one batch of these records to `out`. Apart from the growth of `out`, an uncompressed batch allocates nothing.
///
/// # Errors
/// [`BatchError::Unencodable`] if there are no records, a timestamp is below -1, the settings contradict each other or
/// the batch would exceed 2147483647 bytes; [`BatchError::CodecNotBuiltIn`]. `out` is then as long as before.
///
/// ```
/// use topiclog::record::{BatchSpec, BatchView, RecordRef, encode_batch};
/// let mut log = Vec::new();
/// let records = [RecordRef::new(Some(b"a"), Some(b"1")), RecordRef::new(Some(b"b"), Some(b"2"))];
/// let made = encode_batch(&mut log, &BatchSpec::new(40), records)?;
/// assert_eq!((made.bytes, made.records), (log.len(), 2));
/// assert_eq!(BatchView::parse(&log)?.header().next_offset(), 42);
/// # Ok::<(), topiclog::record::BatchError>(())
/// ```
#[inline]
pub fn encode_batch<I>(out: &mut Vec<u8>, spec: &BatchSpec, records: I) -> Result<BatchSummary, BatchError>
where
    I: IntoIterator<Item: AsRecord>,
{
    let start = out.len();
    let mut room = Room::behind(out);
    let made = encode_in(&mut room, spec, records, |_| Ok(()));
    room.cut(if made.is_ok() { usize::MAX } else { start });
    made
}

/// [`encode_batch`] over whatever is in `scratch`: the batch is as many bytes from its start on as the summary says. Whoever
/// hands in the same one again pays nothing to have it filled with zeros. `check` may refuse a record, by its time, its headers
/// and the lengths of its key and value: it is not asked again where all of these are those of the record before.
#[inline]
pub(crate) fn encode_batch_over<I>(
    scratch: &mut Vec<u8>,
    spec: &BatchSpec,
    records: I,
    check: impl FnMut(&RecordRef<'_>) -> Result<(), BatchError>,
) -> Result<BatchSummary, BatchError>
where
    I: IntoIterator<Item: AsRecord>,
{
    encode_in(&mut Room::over(scratch), spec, records, check)
}

#[inline(always)]
fn encode_in<I>(
    room: &mut Room<'_>,
    spec: &BatchSpec,
    records: I,
    mut check: impl FnMut(&RecordRef<'_>) -> Result<(), BatchError>,
) -> Result<BatchSummary, BatchError>
where
    I: IntoIterator<Item: AsRecord>,
{
    spec.check()?;
    let mut open = OpenBatch::begin(room);
    for record in records {
        open.push(room, &record, spec.append_time_ms, &mut check)?;
    }
    open.finish(room, spec)
}

/// A batch that is being made at the end of a buffer.
#[derive(Clone, Copy, Debug)]
struct OpenBatch {
    start: usize,
    records: i32,
    base_timestamp: Timestamp,
    max_timestamp: Timestamp,
    offset_delta_of_max_timestamp: i32,
    form: ShortForm,
    /// The time of the record whose form it became.
    form_timestamp: Option<Timestamp>,
}

impl OpenBatch {
    #[inline(always)]
    fn begin(room: &mut Room<'_>) -> Self {
        let start = begin(room);
        Self {
            start,
            records: 0,
            base_timestamp: 0,
            max_timestamp: Timestamp::MIN,
            offset_delta_of_max_timestamp: 0,
            form: ShortForm::default(),
            form_timestamp: None,
        }
    }

    #[inline(always)]
    fn push(
        &mut self,
        room: &mut Room<'_>,
        record: &impl AsRecord,
        append_time_ms: Timestamp,
        check: &mut impl FnMut(&RecordRef<'_>) -> Result<(), BatchError>,
    ) -> Result<(), BatchError> {
        let RecordRef { key, value, headers, timestamp, .. } = record.as_record();
        // Most often a record looks like the one before, and all that was found out of that one holds of it.
        if timestamp == self.form_timestamp && headers.is_none() && self.form.is_that_of(self.records, key, value) {
            write_short(room, &self.form, self.records, key, value)?;
            // Of a form there are not so many that this overflows.
            self.records = self.records.wrapping_add(1);
            return Ok(());
        }
        self.push_another(room, &record.as_record(), append_time_ms, check)
    }

    #[inline(never)]
    fn push_another(
        &mut self,
        room: &mut Room<'_>,
        record: &RecordRef<'_>,
        append_time_ms: Timestamp,
        check: &mut impl FnMut(&RecordRef<'_>) -> Result<(), BatchError>,
    ) -> Result<(), BatchError> {
        check(record)?;
        let timestamp = record.timestamp.unwrap_or(append_time_ms);
        if timestamp < -1 {
            return Err(BatchError::Unencodable { what: "a timestamp is below -1" });
        }
        if self.records == 0 {
            self.base_timestamp = timestamp;
        }
        // Both are at least -1, so that the difference is within an i64.
        let timestamp_delta = timestamp.wrapping_sub(self.base_timestamp);
        let next = self.records.checked_add(1).ok_or_else(too_large)?;
        write_record(room, &mut self.form, self.records, timestamp_delta, record)?;
        if record.headers.is_none() {
            self.form_timestamp = record.timestamp;
        }
        if timestamp > self.max_timestamp {
            self.max_timestamp = timestamp;
            self.offset_delta_of_max_timestamp = self.records;
        }
        self.records = next;
        Ok(())
    }

    #[inline(always)]
    fn finish(self, room: &mut Room<'_>, spec: &BatchSpec) -> Result<BatchSummary, BatchError> {
        let Some(last_offset_delta) = self.records.checked_sub(1).filter(|&delta| delta >= 0) else {
            return Err(BatchError::Unencodable { what: "there are no records" });
        };
        if spec.base_offset.checked_add(i64::from(self.records)).is_none() {
            return Err(BatchError::Unencodable { what: "the offset overflows" });
        }
        let mut attributes = u16::from(spec.compression.id());
        let (max_timestamp, offset_delta_of_max_timestamp) = match spec.timestamp_type {
            TimestampType::CreateTime => (self.max_timestamp, self.offset_delta_of_max_timestamp),
            TimestampType::LogAppendTime => {
                attributes |= LOG_APPEND_TIME;
                (spec.append_time_ms, 0)
            }
        };
        if spec.transactional {
            attributes |= TRANSACTIONAL;
        }
        let (producer_id, producer_epoch, base_sequence) = spec.producer.unwrap_or((-1, -1, -1));
        let header = BatchHeader {
            base_offset: spec.base_offset,
            batch_length: 0,
            leader_epoch: spec.leader_epoch,
            magic: 2,
            crc: 0,
            attributes,
            last_offset_delta,
            base_timestamp: self.base_timestamp,
            max_timestamp,
            producer_id,
            producer_epoch,
            base_sequence,
            records_count: self.records,
        };
        let bytes = seal(room, self.start, header, spec.compression_level)?;
        Ok(BatchSummary {
            bytes,
            records: self.records.cast_unsigned(),
            base_timestamp: self.base_timestamp,
            max_timestamp,
            offset_delta_of_max_timestamp,
        })
    }
}

/// Leaves room for a header. Returns where.
#[inline(always)]
fn begin(room: &mut Room<'_>) -> usize {
    let start = room.end();
    // What is in it does not matter: the header is written over all of it.
    room.next(BATCH_HEADER_BYTES);
    room.take(BATCH_HEADER_BYTES);
    start
}

/// Makes a batch of what was written at `start`: room for the header, and an uncompressed body up to the end.
/// Compresses the body as the header says, then writes the header with the right length and checksum.
#[inline(always)]
fn seal(room: &mut Room<'_>, start: usize, mut header: BatchHeader, level: Option<i32>) -> Result<usize, BatchError> {
    if header.compression() != Compression::None {
        let from = start.saturating_add(BATCH_HEADER_BYTES);
        room.with_vec(|out| compress_tail(out, from, header.compression(), level))?;
    }
    let batch = room.written(start);
    let bytes = batch.len();
    header.batch_length = i32::try_from(bytes.saturating_sub(OVERHEAD_BYTES)).map_err(|_| too_large())?;
    if let Some(room) = batch.first_chunk_mut::<BATCH_HEADER_BYTES>() {
        *room = header.encode();
    }
    let crc = batch::checksum(batch);
    if let Some(room) = batch.get_mut(CRC_AT..).and_then(|rest| rest.first_chunk_mut::<4>()) {
        *room = crc.to_be_bytes();
    }
    Ok(bytes)
}

#[inline(never)]
fn compress_tail(out: &mut Vec<u8>, from: usize, codec: Compression, level: Option<i32>) -> Result<(), BatchError> {
    let plain = out.split_off(from);
    compress::compress(codec, level, &plain, out)
}

#[cold]
#[inline(never)]
fn too_large() -> BatchError {
    BatchError::Unencodable { what: "the batch would exceed 2147483647 bytes" }
}

/// Appends one record of this form.
#[inline(always)]
fn write_short(
    room: &mut Room<'_>,
    form: &ShortForm,
    offset_delta: i32,
    key: Option<&[u8]>,
    value: Option<&[u8]>,
) -> Result<(), BatchError> {
    let written = form.write(room.next(form.room_bytes()), offset_delta, key, value);
    room.take(form.bytes());
    written.ok_or_else(too_large)
}

/// Appends one record in the form that `body.rs` reads. `form` is that of an earlier record, if it can be of use.
#[inline(always)]
fn write_record(
    room: &mut Room<'_>,
    form: &mut ShortForm,
    offset_delta: i32,
    timestamp_delta: i64,
    record: &impl AsRecord,
) -> Result<(), BatchError> {
    let RecordRef { key, value, headers, .. } = record.as_record();
    if headers.is_none() && form.become_that_of(offset_delta, timestamp_delta, key, value) {
        return write_short(room, form, offset_delta, key, value);
    }
    // Borrowed anew, so that the short way keeps what it needs of the record in registers.
    let record = record.as_record();
    room.with_vec(|out| write_any_record(out, offset_delta, timestamp_delta, &record))
}

#[inline(never)]
fn write_any_record(
    out: &mut Vec<u8>,
    offset_delta: i32,
    timestamp_delta: i64,
    record: &RecordRef<'_>,
) -> Result<(), BatchError> {
    let key = record.key.unwrap_or_default();
    let value = record.value.unwrap_or_default();
    let headers = record.headers.encoded();
    let headers_bytes = match headers {
        Some(bytes) => bytes.len(),
        None => headers_size(record.headers)?,
    };
    let key_length = record.key.map_or(-1, |key| key.len() as i64);
    let value_length = record.value.map_or(-1, |value| value.len() as i64);
    // Each part is at most isize::MAX, so that the sum of three and a few bytes is within a u64.
    let length = 1_u64
        .wrapping_add(varint::size_of(timestamp_delta) as u64)
        .wrapping_add(varint::size_of(i64::from(offset_delta)) as u64)
        .wrapping_add(varint::size_of(key_length) as u64)
        .wrapping_add(key.len() as u64)
        .wrapping_add(varint::size_of(value_length) as u64)
        .wrapping_add(value.len() as u64)
        .wrapping_add(headers_bytes as u64);
    let length = i32::try_from(length).map_err(|_| too_large())?;

    out.reserve((length as usize).wrapping_add(varint::VARINT_BYTES_MAX));
    varint::write(out, i64::from(length));
    out.push(0);
    varint::write(out, timestamp_delta);
    varint::write(out, i64::from(offset_delta));
    varint::write(out, key_length);
    out.extend_from_slice(key);
    varint::write(out, value_length);
    out.extend_from_slice(value);
    match headers {
        Some(&[none]) => out.push(none),
        Some(bytes) => out.extend_from_slice(bytes),
        None => write_headers(out, record.headers),
    }
    Ok(())
}

#[inline(never)]
fn headers_size(headers: HeadersRef<'_>) -> Result<usize, BatchError> {
    let mut bytes = varint::size_of(headers.len() as i64);
    for header in headers {
        let (name, value) = (header.name_bytes(), header.value());
        for part in [
            varint::size_of(name.len() as i64),
            name.len(),
            varint::size_of(value.map_or(-1, |value| value.len() as i64)),
            value.unwrap_or_default().len(),
        ] {
            bytes = bytes.checked_add(part).ok_or_else(too_large)?;
        }
    }
    if i32::try_from(bytes).is_err() { Err(too_large()) } else { Ok(bytes) }
}

#[inline(never)]
fn write_headers(out: &mut Vec<u8>, headers: HeadersRef<'_>) {
    varint::write(out, headers.len() as i64);
    for header in headers {
        varint::write(out, header.name_bytes().len() as i64);
        out.extend_from_slice(header.name_bytes());
        varint::write(out, header.value().map_or(-1, |value| value.len() as i64));
        out.extend_from_slice(header.value().unwrap_or_default());
    }
}

/// The sequence number `steps` after this one: they go on from 2147483647 to 0.
///
/// ```
/// use topiclog::record::next_sequence;
/// assert_eq!(next_sequence(i32::MAX, 1), 0);
/// assert_eq!(next_sequence(i32::MAX - 1, 3), 1);
/// ```
#[inline]
pub const fn next_sequence(sequence: i32, steps: i32) -> i32 {
    sequence.wrapping_add(steps) & i32::MAX
}

/// Writes another base offset into a batch. The checksum does not cover it. Does nothing to fewer than 8 bytes.
pub fn set_base_offset(batch: &mut [u8], base_offset: i64) {
    if let Some(field) = batch.first_chunk_mut::<8>() {
        *field = base_offset.to_be_bytes();
    }
}

/// Writes another leader epoch into a batch. The checksum does not cover it. Does nothing to fewer than 16 bytes.
pub fn set_leader_epoch(batch: &mut [u8], leader_epoch: i32) {
    if let Some(field) = batch.get_mut(12..16).and_then(|rest| rest.first_chunk_mut::<4>()) {
        *field = leader_epoch.to_be_bytes();
    }
}

/// Appends the batch that the cleaner leaves of another: `kept` are records of it, in order, with their offsets and
/// timestamps as read. Offsets, sequence, epoch, producer and flags stay those of `header`, whatever was removed.
///
/// The base timestamp becomes the horizon, or the first kept record's; without records -1, and then neither a codec nor
/// a horizon is noted. The largest timestamp is that of the kept records, except under LogAppendTime or without records.
pub(crate) fn rewrite_batch<'a, I>(
    out: &mut Vec<u8>,
    header: &BatchHeader,
    delete_horizon_ms: Option<Timestamp>,
    kept: I,
) -> Result<usize, BatchError>
where
    I: IntoIterator<Item = RecordView<'a>>,
{
    let mut room = Room::behind(out);
    let start = begin(&mut room);
    let mut next = *header;
    next.records_count = 0;
    next.attributes &= !DELETE_HORIZON;
    let mut form = ShortForm::default();
    let mut written = Ok(());
    let mut largest = Timestamp::MIN;
    for record in kept {
        let (offset, timestamp) = (record.offset(), record.timestamp_ms());
        if next.records_count == 0 {
            next.base_timestamp = delete_horizon_ms.unwrap_or(timestamp);
        }
        largest = largest.max(timestamp);
        let delta = i32::try_from(offset.wrapping_sub(header.base_offset));
        let delta = delta.map_err(|_| BatchError::Unencodable { what: "a record is beyond the batch" });
        let timestamp_delta = timestamp.wrapping_sub(next.base_timestamp);
        written = delta.and_then(|delta| write_record(&mut room, &mut form, delta, timestamp_delta, &record));
        if written.is_err() {
            break;
        }
        next.records_count = next.records_count.saturating_add(1);
    }
    if next.records_count == 0 {
        next.base_timestamp = -1;
        next.attributes &= !batch::CODEC_MASK;
    } else {
        if delete_horizon_ms.is_some() {
            next.attributes |= DELETE_HORIZON;
        }
        if header.timestamp_type() == TimestampType::CreateTime {
            next.max_timestamp = largest;
        }
    }
    let sealed = written.and_then(|()| seal(&mut room, start, next, None));
    room.cut(if sealed.is_ok() { usize::MAX } else { start });
    sealed
}

/// Appends a control batch of one record. Everything in it is as Kafka's coordinator writes it.
pub(super) fn encode_control(
    out: &mut Vec<u8>,
    header: BatchHeader,
    key: &[u8],
    value: &[u8],
) -> Result<usize, BatchError> {
    let mut room = Room::behind(out);
    let start = begin(&mut room);
    let header = BatchHeader { attributes: TRANSACTIONAL | CONTROL, ..header };
    let sealed = write_record(&mut room, &mut ShortForm::default(), 0, 0, &RecordRef::new(Some(key), Some(value)))
        .and_then(|()| seal(&mut room, start, header, None));
    room.cut(if sealed.is_ok() { usize::MAX } else { start });
    sealed
}

/// Gathers records into one batch.
///
/// ```
/// use topiclog::record::{BatchBuilder, BatchSpec, Header, Record};
/// let mut batch = BatchBuilder::new(BatchSpec { leader_epoch: 7, ..BatchSpec::new(100) });
/// batch.push(Record::keyed("k1", "hello").timestamp_ms(1_700_000_000_000))?;
/// batch.push(
///     Record::of_value("world")
///         .header("h", "x")
///         .with_header(Header::null("n"))
///         .timestamp_ms(1_700_000_000_005),
/// )?;
/// let bytes = batch.finish()?;
///
/// let expected: [u8; 94] = [
///     0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x64, 0x00, 0x00, 0x00, 0x52, 0x00, 0x00, 0x00, 0x07,
///     0x02, 0x5e, 0xcb, 0x70, 0xfc, 0x00, 0x00, 0x00, 0x00, 0x00, 0x01, 0x00, 0x00, 0x01, 0x8b, 0xcf,
///     0xe5, 0x68, 0x00, 0x00, 0x00, 0x01, 0x8b, 0xcf, 0xe5, 0x68, 0x05, 0xff, 0xff, 0xff, 0xff, 0xff,
///     0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x00, 0x00, 0x00, 0x02, 0x1a, 0x00, 0x00,
///     0x00, 0x04, 0x6b, 0x31, 0x0a, 0x68, 0x65, 0x6c, 0x6c, 0x6f, 0x00, 0x24, 0x00, 0x0a, 0x02, 0x01,
///     0x0a, 0x77, 0x6f, 0x72, 0x6c, 0x64, 0x04, 0x02, 0x68, 0x02, 0x78, 0x02, 0x6e, 0x01,
/// ];
/// assert_eq!(bytes, expected[..]);
/// # Ok::<(), topiclog::record::BatchError>(())
/// ```
#[derive(Debug)]
pub struct BatchBuilder {
    spec: BatchSpec,
    /// Room for the header, then the uncompressed records.
    out: Vec<u8>,
    open: OpenBatch,
}

impl BatchBuilder {
    /// A batch without records.
    pub fn new(spec: BatchSpec) -> Self {
        let mut out = Vec::new();
        let mut room = Room::behind(&mut out);
        let open = OpenBatch::begin(&mut room);
        room.cut(usize::MAX);
        Self { spec, out, open }
    }

    /// Adds a record.
    ///
    /// # Errors
    /// As [`encode_batch`]; the builder is then as it was before.
    pub fn push(&mut self, record: impl AsRecord) -> Result<(), BatchError> {
        let before = self.out.len();
        let open = self.open;
        let mut room = Room::behind(&mut self.out);
        let mut pushed = self.open.push(&mut room, &record, self.spec.append_time_ms, &mut |_| Ok(()));
        if pushed.is_ok() && i32::try_from(room.end()).is_err() {
            pushed = Err(too_large());
        }
        room.cut(if pushed.is_ok() { usize::MAX } else { before });
        if pushed.is_err() {
            self.open = open;
        }
        pushed
    }

    /// How many records there are.
    pub fn records(&self) -> u32 {
        self.open.records.cast_unsigned()
    }

    /// The size of the batch as it is now, before compression.
    pub fn size_bytes(&self) -> usize {
        self.out.len()
    }

    /// The batch.
    ///
    /// # Errors
    /// As [`encode_batch`].
    pub fn finish(mut self) -> Result<Bytes, BatchError> {
        self.spec.check()?;
        let mut room = Room::behind(&mut self.out);
        self.open.finish(&mut room, &self.spec)?;
        room.cut(usize::MAX);
        Ok(Bytes::from(self.out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{BatchView, Decompressor, RecordsIter};

    const T0: i64 = 1_700_000_000_000;

    fn hex(text: &str) -> Vec<u8> {
        (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
    }

    /// Rewrites a batch, keeping the records whose offsets are named.
    fn rewritten(batch: &[u8], horizon: Option<i64>, kept: &[i64]) -> Vec<u8> {
        let view = BatchView::parse(batch).unwrap();
        let mut out = b"before".to_vec();
        let records = RecordsIter::new(view.header(), view.body()).map(Result::unwrap);
        let records = records.filter(|record| kept.contains(&record.offset()));
        let size = rewrite_batch(&mut out, view.header(), horizon, records).unwrap();
        assert_eq!(size, out.len() - 6);
        out.split_off(6)
    }

    #[test]
    fn cleaned_batches_are_as_kafka_leaves_them() {
        let transactional = hex(concat!(
            "00000000000000c80000004c00000007028fb0250c0010000000020000018bcfe568640000018bcfe5686600000000000010920003",
            "0000000a00000003100000000261023100100002020262023200100004040261023300"
        ));
        let head_removed = hex(concat!(
            "00000000000000c8000000430000000702a9520b8a0010000000020000018bcfe568650000018bcfe5686600000000000010920003",
            "0000000a00000002100000020262023200100002040261023300"
        ));
        let tail_removed = hex(concat!(
            "00000000000000c8000000430000000702f96d91c90010000000020000018bcfe568640000018bcfe5686500000000000010920003",
            "0000000a00000002100000000261023100100002020262023200"
        ));
        let emptied = hex(concat!(
            "00000000000000c8000000310000000702cb77e39e001000000002ffffffffffffffff0000018bcfe5686600000000000010920003",
            "0000000a00000000"
        ));
        assert_eq!(rewritten(&transactional, None, &[201, 202]), head_removed);
        assert_eq!(rewritten(&transactional, None, &[200, 201]), tail_removed);
        assert_eq!(rewritten(&transactional, None, &[]), emptied);
        assert_eq!(rewritten(&transactional, Some(T0), &[]), emptied);
        assert_eq!(rewritten(&transactional, None, &[200, 201, 202]), transactional);
    }

    #[test]
    fn a_delete_horizon_is_as_kafka_sets_it() {
        let produced = hex(concat!(
            "000000000000012c000000390000000702ffcdafc50000000000000000018bcfe56be80000018bcfe56be8ffffffffffffffffffff",
            "ffffffff000000010e000000026b0100"
        ));
        let cleaned = hex(concat!(
            "000000000000012c0000003c0000000702bb2332e10040000000000000018bd50bcbd00000018bcfe56be8ffffffffffffffffffff",
            "ffffffff000000011400cfffb25200026b0100"
        ));
        let horizon = BatchView::parse(&cleaned).unwrap().header().delete_horizon_ms();
        assert_eq!(rewritten(&produced, horizon, &[300]), cleaned);
        assert_eq!(rewritten(&cleaned, horizon, &[300]), cleaned);
        assert_eq!(rewritten(&cleaned, None, &[300]), produced);
    }

    #[test]
    fn what_cannot_be_encoded_leaves_the_buffer_as_it_was() {
        let one = RecordRef::new(Some(b"k"), Some(b"v"));
        let plain = BatchSpec::new(0);
        let refused = [
            (plain, vec![]),
            (plain, vec![one, one.at_ms(-2)]),
            (BatchSpec { append_time_ms: -2, ..plain }, vec![one]),
            (BatchSpec { base_offset: -1, ..plain }, vec![one]),
            (BatchSpec { base_offset: i64::MAX, ..plain }, vec![one]),
            (BatchSpec { transactional: true, ..plain }, vec![one]),
            (BatchSpec { producer: Some((-1, 0, 0)), ..plain }, vec![one]),
            (BatchSpec { producer: Some((1, 0, -1)), ..plain }, vec![one]),
        ];
        for (spec, records) in refused {
            let mut out = b"before".to_vec();
            let error = encode_batch(&mut out, &spec, records).unwrap_err();
            assert!(matches!(error, BatchError::Unencodable { .. }), "{error:?}");
            assert_eq!(out, b"before");
        }
    }

    #[test]
    fn codecs_that_are_not_built_in_say_so() {
        for compression in Compression::ALL.into_iter().filter(|codec| !codec.is_built_in()) {
            let mut out = Vec::new();
            let spec = BatchSpec { compression, ..BatchSpec::new(0) };
            let error = encode_batch(&mut out, &spec, [RecordRef::default()]).unwrap_err();
            assert_eq!(error, BatchError::CodecNotBuiltIn(compression));
            assert!(error.is_unsupported() && out.is_empty());
        }
    }

    #[test]
    fn a_builder_is_unchanged_by_a_refused_record() {
        let mut builder = BatchBuilder::new(BatchSpec::new(0));
        assert!(builder.push(RecordRef::default().at_ms(-5)).is_err());
        assert_eq!((builder.records(), builder.size_bytes()), (0, BATCH_HEADER_BYTES));
        builder.push(RecordRef::new(None, Some(b"v")).at_ms(3)).unwrap();
        let batch = builder.finish().unwrap();
        let view = BatchView::parse(&batch).unwrap();
        let mut decompressor = Decompressor::default();
        let times: Vec<_> =
            view.records(&mut decompressor).unwrap().map(|record| record.unwrap().timestamp_ms()).collect();
        assert_eq!(times, [3]);
    }

    #[test]
    fn the_summary_names_the_first_of_the_largest_times() {
        let times = [5, 9, 9, 2];
        let records = times.map(|time| RecordRef::new(None, None).at_ms(time));
        let mut out = Vec::new();
        let made = encode_batch(&mut out, &BatchSpec::new(0), records).unwrap();
        assert_eq!((made.base_timestamp, made.max_timestamp, made.offset_delta_of_max_timestamp), (5, 9, 1));
        let spec = BatchSpec { timestamp_type: TimestampType::LogAppendTime, append_time_ms: 50, ..BatchSpec::new(0) };
        let made = encode_batch(&mut out, &spec, records).unwrap();
        assert_eq!((made.base_timestamp, made.max_timestamp, made.offset_delta_of_max_timestamp), (5, 50, 0));
    }

    #[test]
    fn a_record_that_differs_in_anything_is_checked_wherever_it_stands() {
        let header = [crate::record::Header::new("h", "x")];
        let plain = RecordRef::new(Some(b"key"), Some(b"value"));
        let others = [
            RecordRef { key: None, ..plain },
            RecordRef { key: Some(b""), ..plain },
            RecordRef { key: Some(b"longer"), ..plain },
            RecordRef { value: None, ..plain },
            RecordRef { value: Some(b""), ..plain },
            RecordRef { timestamp: Some(0), ..plain },
            RecordRef { timestamp: Some(50), ..plain },
            RecordRef { headers: (&header[..]).into(), ..plain },
        ];
        let mut out = Vec::new();
        for other in others {
            let is_other = |record: &RecordRef<'_>| format!("{record:?}") == format!("{other:?}");
            for at in 0..5_usize {
                let mut records = [plain; 5];
                records[at] = other;
                let mut asked = Vec::new();
                let spec = BatchSpec { append_time_ms: 50, ..BatchSpec::new(0) };
                let check = |record: &RecordRef<'_>| {
                    asked.push(is_other(record));
                    Ok(())
                };
                encode_batch_over(&mut out, &spec, records, check).unwrap();
                assert_eq!(asked.iter().filter(|is_other| **is_other).count(), 1, "{other:?} at {at}");
                assert!(asked.len() <= 3, "those that look like the one before are not checked again: {asked:?}");
                let refuse = |record: &RecordRef<'_>| {
                    let what = "a record is refused";
                    if is_other(record) { Err(BatchError::Unencodable { what }) } else { Ok(()) }
                };
                assert!(encode_batch_over(&mut out, &spec, records, refuse).is_err(), "{other:?} at {at}");
            }
        }
    }

    /// What both ways of writing a record make of it, in a batch where others stand before it.
    fn check_both_ways(
        room: &mut Room<'_>,
        form: &mut ShortForm,
        offset_delta: i32,
        delta: i64,
        record: &RecordRef<'_>,
    ) {
        let (mut long, from) = (Vec::new(), room.end());
        write_any_record(&mut long, offset_delta, delta, record).unwrap();
        write_record(room, form, offset_delta, delta, record).unwrap();
        assert_eq!(room.written(from), long, "{offset_delta} {delta} {record:?}");
    }

    #[test]
    fn the_form_of_a_record_does_not_show_in_what_is_written() {
        let bytes = vec![7; 8300];
        let part = |length: i64| usize::try_from(length).ok().map(|length| &bytes[..length]);
        let header = [crate::record::Header::new("h", "x")];
        let (mut out, mut form, mut shorts) = (b"before".to_vec(), ShortForm::default(), 0);
        let mut room = Room::behind(&mut out);
        for offset_delta in [0, 1, 63, 64, 65, 8191, 8192, 8193, i32::MAX, -1] {
            for delta in [0, 0, -1, 63, 64, -64, -65, 8191, 8192, -8192, -8193, i64::MAX] {
                for (key, value) in
                    [(-1, -1), (0, 0), (5, 100), (5, 100), (63, 63), (64, 64), (1, 8100), (1, 8192), (-1, 8250)]
                {
                    let record = RecordRef { key: part(key), value: part(value), ..RecordRef::default() };
                    check_both_ways(&mut room, &mut form, offset_delta, delta, &record);
                    shorts += usize::from(form.bytes() > 0);
                }
                let record = RecordRef { headers: (&header[..]).into(), ..RecordRef::default() };
                check_both_ways(&mut room, &mut form, offset_delta, delta, &record);
            }
        }
        assert!(shorts > 200, "only {shorts} were short");
    }
}
