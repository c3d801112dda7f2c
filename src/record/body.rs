//! The records of a batch: [`RecordsIter`] over an uncompressed body, and [`RecordView`].
//!
//! Knows the header only as decoded by `batch.rs`.
//!
//! ```text
//! varint   length           bytes of the record after this field
//! i8       attributes       0
//! varlong  timestampDelta   plus baseTimestamp; without meaning under LogAppendTime
//! varint   offsetDelta      plus baseOffset
//! varint   keyLength        -1 null (any negative is read so), then the key
//! varint   valueLength      -1 null (any negative is read so), then the value
//! varint   headersCount     then for each: varint length and name, varint length (-1 null) and value
//!
//! 1a 00 00 00 04 6b 31 0a 68 65 6c 6c 6f 00            13 bytes, deltas 0, key "k1", value "hello", no headers
//! 24 00 0a 02 01 0a 77 6f 72 6c 64 04 02 68 02 78 02 6e 01
//!                                                      18 bytes, deltas 5 and 1, null key, "world", h=x, n=null
//! ```

use std::iter::FusedIterator;

use crate::clock::Timestamp;

use super::append::{AsRecord, RecordRef};
use super::batch::{BatchError, BatchHeader, TimestampType};
use super::headers::{HeadersRef, skip_headers};
use super::varint::{self, unzigzag};

/// Where a record's parts are in its body.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parts {
    pub(super) key_at: u32,
    /// -1 if the key is null.
    pub(super) key_length: i32,
    pub(super) value_at: u32,
    /// -1 if the value is null.
    pub(super) value_length: i32,
    /// From the number of headers on.
    pub(super) headers_at: u32,
    pub(super) headers_end: u32,
}

impl Parts {
    #[inline(always)]
    pub(super) fn key<'a>(&self, body: &'a [u8]) -> Option<&'a [u8]> {
        nullable(body, self.key_at, self.key_length)
    }

    #[inline(always)]
    pub(super) fn value<'a>(&self, body: &'a [u8]) -> Option<&'a [u8]> {
        nullable(body, self.value_at, self.value_length)
    }

    #[inline(always)]
    pub(super) fn headers<'a>(&self, body: &'a [u8]) -> HeadersRef<'a> {
        let bytes = body.get(self.headers_at as usize..self.headers_end as usize);
        HeadersRef::encoded_in_record(bytes.unwrap_or_default())
    }
}

impl Parts {
    /// Length of key and value together.
    #[inline(always)]
    pub(super) fn key_and_value_bytes(&self) -> usize {
        let length = |length: i32| usize::try_from(length).unwrap_or(0);
        length(self.key_length).saturating_add(length(self.value_length))
    }
}

#[inline(always)]
fn nullable(body: &[u8], at: u32, length: i32) -> Option<&[u8]> {
    let length = usize::try_from(length).ok()?;
    body.get(at as usize..)?.get(..length)
}

/// One record, borrowed from its body.
#[derive(Clone, Copy, Debug)]
pub struct RecordView<'a> {
    pub(super) body: &'a [u8],
    pub(super) parts: Parts,
    pub(super) offset: i64,
    pub(super) timestamp: Timestamp,
}

/// All of a [`RecordView`] but the body.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RecordPlace {
    pub(super) parts: Parts,
    pub(super) offset: i64,
    pub(super) timestamp: Timestamp,
}

impl<'a> RecordView<'a> {
    #[inline(always)]
    pub(crate) fn place(&self) -> RecordPlace {
        RecordPlace { parts: self.parts, offset: self.offset, timestamp: self.timestamp }
    }

    /// Length of key and value together.
    #[inline(always)]
    pub(crate) fn key_and_value_bytes(&self) -> usize {
        self.parts.key_and_value_bytes()
    }

    /// The record's offset.
    #[inline]
    pub fn offset(&self) -> i64 {
        self.offset
    }

    /// The record's time, in milliseconds since 1970-01-01 UTC.
    #[inline]
    pub fn timestamp_ms(&self) -> Timestamp {
        self.timestamp
    }

    /// The key, `None` if it is null.
    #[inline]
    pub fn key(&self) -> Option<&'a [u8]> {
        self.parts.key(self.body)
    }

    /// The value, `None` if it is null.
    #[inline]
    pub fn value(&self) -> Option<&'a [u8]> {
        self.parts.value(self.body)
    }

    /// Whether the value is null.
    #[inline]
    pub fn is_tombstone(&self) -> bool {
        self.parts.value_length < 0
    }

    /// The headers, in order.
    #[inline]
    pub fn headers(&self) -> HeadersRef<'a> {
        self.parts.headers(self.body)
    }
}

impl AsRecord for RecordView<'_> {
    #[inline]
    fn as_record(&self) -> RecordRef<'_> {
        RecordRef {
            key: self.key(),
            value: self.value(),
            headers: self.headers(),
            timestamp: Some(self.timestamp),
            partition: None,
            partition_key: None,
        }
    }
}

/// Walks the records of an uncompressed body and checks it on the way: every length, offsets that rise within the
/// batch, the number of records, and no byte left over. After an error it ends.
///
/// It never gives out a part of a record that does not hold, but the records before it were given out by then.
#[derive(Clone, Debug)]
pub struct RecordsIter<'a> {
    body: &'a [u8],
    state: RecordsState,
}

/// Where a walk stands, without the body that it walks: for whoever owns the body and hands out records of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RecordsState {
    /// Where the next record begins; the body's length once the walk is over.
    at: usize,
    /// Records still to come.
    left: u32,
    base_offset: i64,
    last_offset_delta: i32,
    /// The delta of the record before, -1 at first.
    previous_delta: i32,
    base_timestamp: Timestamp,
    /// The timestamp of all records under LogAppendTime.
    append_time: Option<Timestamp>,
}

impl RecordsState {
    /// At the first record of a body that belongs to this header.
    #[inline]
    pub(crate) fn new(header: &BatchHeader) -> Self {
        let append_time = match header.timestamp_type() {
            TimestampType::CreateTime => None,
            TimestampType::LogAppendTime => Some(header.max_timestamp),
        };
        Self {
            at: 0,
            left: u32::try_from(header.records_count).unwrap_or(0),
            base_offset: header.base_offset,
            last_offset_delta: header.last_offset_delta,
            previous_delta: -1,
            base_timestamp: header.base_timestamp,
            append_time,
        }
    }

    /// The offset after that of the record given out last.
    #[inline]
    pub(crate) fn next_offset(&self) -> i64 {
        self.base_offset.wrapping_add(i64::from(self.previous_delta)).wrapping_add(1)
    }

    /// The next record of the body.
    #[inline(always)]
    pub(crate) fn next_view<'a>(&mut self, body: &'a [u8]) -> Option<Result<RecordView<'a>, BatchError>> {
        if self.left == 0 {
            return if self.at == body.len() { None } else { Some(Err(self.left_over(body))) };
        }
        let decoded = self.decode(body);
        if decoded.is_err() {
            self.left = 0;
            self.at = body.len();
        }
        Some(decoded)
    }

    /// The next record if it has the short form that most have, else `None` and nothing changes.
    ///
    /// Apart from [`next_view`](Self::next_view) so that its result stays in registers: where both forms meet it is put
    /// into memory, and read back in other pieces than it was written in, which the processor does slowly.
    #[inline(always)]
    pub(crate) fn next_short<'a>(&mut self, body: &'a [u8]) -> Option<RecordView<'a>> {
        if self.left == 0 {
            return None;
        }
        let found = read_short_form(body, self.at)?;
        if self.is_out_of_order(&found) {
            return None;
        }
        Some(self.accept(body, &found))
    }

    #[inline(always)]
    fn decode<'a>(&mut self, body: &'a [u8]) -> Result<RecordView<'a>, BatchError> {
        let Some(found) = read_short_form(body, self.at).or_else(|| read_any_form(body, self.at)) else {
            return Err(self.cut());
        };
        if self.is_out_of_order(&found) {
            return Err(BatchError::malformed(self.at, "the offset delta does not rise, or is beyond the batch"));
        }
        Ok(self.accept(body, &found))
    }

    #[inline(always)]
    fn is_out_of_order(&self, found: &Found) -> bool {
        found.offset_delta <= self.previous_delta || found.offset_delta > self.last_offset_delta
    }

    #[inline(always)]
    fn accept<'a>(&mut self, body: &'a [u8], found: &Found) -> RecordView<'a> {
        self.at = found.parts.headers_end as usize;
        self.left = self.left.wrapping_sub(1);
        self.previous_delta = found.offset_delta;
        RecordView {
            body,
            parts: found.parts,
            offset: self.base_offset.wrapping_add(i64::from(found.offset_delta)),
            // Under LogAppendTime the deltas are what the producer wrote, and a delete horizon may be far from them, so
            // that the sum is made as Kafka makes it.
            timestamp: match self.append_time {
                Some(append_time) => append_time,
                None => self.base_timestamp.wrapping_add(found.timestamp_delta),
            },
        }
    }

    #[cold]
    #[inline(never)]
    fn cut(&self) -> BatchError {
        BatchError::malformed(self.at, "a length is no number, or does not fit the record")
    }

    #[cold]
    #[inline(never)]
    fn left_over(&mut self, body: &[u8]) -> BatchError {
        let at = std::mem::replace(&mut self.at, body.len());
        BatchError::malformed(at, "bytes are left over after the last record")
    }
}

impl RecordsState {
    /// Moves to the first record with at least this offset; after an error it stands before what is wrong, and meets it again.
    pub(crate) fn skip_to(&mut self, offset: i64, body: &[u8]) -> Result<(), BatchError> {
        while self.left > 0 && self.next_offset() < offset {
            let before = (self.at, self.left, self.previous_delta);
            let passed = match self.next_short(body) {
                Some(view) => Ok(view.offset()),
                None => match self.next_view(body) {
                    Some(view) => view.map(|view| view.offset()),
                    None => break,
                },
            };
            if !matches!(passed, Ok(passed) if passed < offset) {
                (self.at, self.left, self.previous_delta) = before;
                return passed.map(drop);
            }
        }
        Ok(())
    }

    /// The record at an offset, if the rest of the body has one.
    #[inline]
    pub(crate) fn find<'a>(mut self, offset: i64, body: &'a [u8]) -> Result<Option<RecordView<'a>>, BatchError> {
        self.skip_to(offset, body)?;
        Ok(self.next_view(body).transpose()?.filter(|view| view.offset() == offset))
    }

    /// Whether there are no records left.
    pub(crate) fn is_at_end(&self) -> bool {
        self.left == 0
    }
}

impl<'a> RecordsIter<'a> {
    /// Goes on where a walk of this body stood.
    #[inline]
    pub(crate) fn at(state: RecordsState, body: &'a [u8]) -> Self {
        Self { body, state }
    }

    /// Bytes of the body that were walked.
    pub(crate) fn walked_bytes(&self) -> usize {
        self.state.at
    }

    /// Walks a body that belongs to this header.
    #[inline]
    pub fn new(header: &BatchHeader, body: &'a [u8]) -> Self {
        Self { body, state: RecordsState::new(header) }
    }
}

impl<'a> Iterator for RecordsIter<'a> {
    type Item = Result<RecordView<'a>, BatchError>;

    #[inline(always)]
    fn next(&mut self) -> Option<Self::Item> {
        self.state.next_view(self.body)
    }
}

impl FusedIterator for RecordsIter<'_> {}

/// A record as it stands in its body.
struct Found {
    parts: Parts,
    timestamp_delta: i64,
    offset_delta: i32,
}

/// Reads the record at `at` if everything before its key is in 8 bytes, as it is in most: a length, timestamp delta and
/// offset delta of at most two bytes each, and a key length of one. `None` says only that it has another form.
///
/// The numbers are taken from one word in a register, which is what makes this several times as fast as the other.
#[inline(always)]
fn read_short_form(body: &[u8], at: usize) -> Option<Found> {
    let mut word = u64::from_le_bytes(*body.get(at..)?.first_chunk::<8>()?);
    let mut taken = 0_usize;
    let length = take_short(&mut word, &mut taken)?;
    // A negative length is for the other form to refuse. The shift comes as early as it can: the next record waits for
    // it.
    if length & 1 != 0 {
        return None;
    }
    let end = at.wrapping_add(taken).wrapping_add((length >> 1) as usize);
    // Attributes of a record have no meaning yet.
    word >>= 8;
    taken = taken.wrapping_add(1);
    let timestamp_delta = i64::from(unzigzag(take_short(&mut word, &mut taken)?));
    let offset_delta = unzigzag(take_short(&mut word, &mut taken)?);
    let key_length = (word & 0xff) as u32;
    if key_length >= 0x80 {
        return None;
    }
    let key_length = unzigzag(key_length).max(-1);
    let key_at = at.wrapping_add(taken).wrapping_add(1);
    let mut at = key_at.wrapping_add(key_length.max(0) as usize);
    let value_length = varint::read_i32(body, &mut at)?.max(-1);
    let value_at = at;
    let headers_at = at.wrapping_add(value_length.max(0) as usize);
    // Positions only grow, so that arriving at the end means that every part was within the record.
    if headers_at.wrapping_add(1) != end || *body.get(headers_at)? != 0 {
        return None;
    }
    Some(Found {
        parts: Parts {
            key_at: key_at as u32,
            key_length,
            value_at: value_at as u32,
            value_length,
            headers_at: headers_at as u32,
            headers_end: end as u32,
        },
        timestamp_delta,
        offset_delta,
    })
}

/// Takes a number of one or two bytes off the low end of the word, still zigzag-mapped.
#[inline(always)]
fn take_short(word: &mut u64, taken: &mut usize) -> Option<u32> {
    let low = *word as u32;
    if low & 0x80 == 0 {
        *word >>= 8;
        *taken = taken.wrapping_add(1);
        return Some(low & 0x7f);
    }
    if low & 0x8000 == 0 {
        *word >>= 16;
        *taken = taken.wrapping_add(2);
        return Some((low & 0x7f) | (low >> 1 & 0x3f80));
    }
    None
}

/// Reads the record at `at` in any form. `None` if a part of it does not hold.
#[inline(never)]
fn read_any_form(body: &[u8], at: usize) -> Option<Found> {
    let mut at = at;
    let length = usize::try_from(varint::read_i32(body, &mut at)?).ok()?;
    let end = at.checked_add(length)?;
    let record = body.get(..end)?;
    // Attributes of a record have no meaning yet.
    at = at.wrapping_add(1);
    let timestamp_delta = varint::read_i64(record, &mut at)?;
    let offset_delta = varint::read_i32(record, &mut at)?;
    let key_length = varint::read_i32(record, &mut at)?.max(-1);
    let key_at = at;
    at = at.checked_add(key_length.max(0) as usize)?;
    let value_length = varint::read_i32(record, &mut at)?.max(-1);
    let value_at = at;
    let headers_at = at.checked_add(value_length.max(0) as usize)?;
    at = headers_at;
    let headers = varint::read_i32(record, &mut at)?;
    at = skip_headers(record, at, headers)?;
    if at != end {
        return None;
    }
    Some(Found {
        parts: Parts {
            key_at: u32::try_from(key_at).ok()?,
            key_length,
            value_at: u32::try_from(value_at).ok()?,
            value_length,
            headers_at: u32::try_from(headers_at).ok()?,
            headers_end: u32::try_from(end).ok()?,
        },
        timestamp_delta,
        offset_delta,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{BatchSpec, encode_batch};

    /// Two records: `k1` and `hello`; null and `world` with the headers `h`=`x` and `n`=null.
    const BODY: &[u8] = b"\x1a\0\0\0\x04k1\x0ahello\0\x24\0\x0a\x02\x01\x0aworld\x04\x02h\x02x\x02n\x01";

    fn header(records: i32) -> BatchHeader {
        let mut out = Vec::new();
        encode_batch(&mut out, &BatchSpec::new(100), vec![RecordRef::default(); records as usize]).unwrap();
        BatchHeader::decode(&out).unwrap()
    }

    /// How many records are given out before the error, and the error.
    fn refused(records: i32, body: &[u8]) -> (usize, BatchError) {
        let header = header(records);
        let mut walk = RecordsIter::new(&header, body);
        let given = walk.by_ref().take_while(Result::is_ok).count();
        let error = RecordsIter::new(&header, body).nth(given).unwrap().unwrap_err();
        assert!(walk.next().is_none(), "nothing follows an error");
        (given, error)
    }

    #[test]
    fn both_forms_read_the_same() {
        let short = read_short_form(BODY, 0).unwrap();
        let any = read_any_form(BODY, 0).unwrap();
        assert_eq!((short.parts.key(BODY), short.parts.value(BODY)), (Some(&b"k1"[..]), Some(&b"hello"[..])));
        assert_eq!((any.parts.key(BODY), any.parts.value(BODY)), (Some(&b"k1"[..]), Some(&b"hello"[..])));
        assert_eq!(short.parts.headers_end, any.parts.headers_end);
        // Headers are for the other form.
        assert!(read_short_form(BODY, 14).is_none());
        assert!(read_any_form(BODY, 14).is_some());
    }

    #[test]
    fn any_negative_length_is_null_but_for_header_names() {
        // Key length -3, value length -2.
        let body = [0x0c, 0, 0, 0, 0x05, 0x03, 0];
        let record = RecordsIter::new(&header(1), &body).next().unwrap().unwrap();
        assert_eq!((record.key(), record.value()), (None, None));
        // One header with a name of length -1.
        let (given, error) = refused(1, &[0x10, 0, 0, 0, 0x01, 0x01, 0x02, 0x01, 0x01]);
        assert_eq!(given, 0);
        assert!(matches!(error, BatchError::Malformed { at: 0, .. }), "{error:?}");
    }

    #[test]
    fn a_record_is_found_by_its_offset_and_no_other_in_its_place() {
        let header = BatchHeader { last_offset_delta: 4, ..header(2) };
        let mut body = BODY.to_vec();
        // The second record is that of offset 104.
        body[17] = 8;
        let find = |offset, body| RecordsState::new(&header).find(offset, body);
        let check = |offset, value: Option<&[u8]>| {
            let found = find(offset, &body).unwrap();
            assert_eq!(found.map(|view| (view.offset(), view.value())), value.map(|value| (offset, Some(value))));
        };
        check(100, Some(b"hello"));
        check(104, Some(b"world"));
        [99, 101, 103, 105].into_iter().for_each(|offset| check(offset, None));
        assert!(find(100, &body[..20]).is_ok() && find(104, &body[..20]).is_err());
    }

    #[test]
    fn every_byte_that_matters_is_checked() {
        assert_eq!(RecordsIter::new(&header(2), BODY).filter(Result::is_ok).count(), 2);
        // Position, new byte, records given out before the refusal.
        for (at, byte, given) in [
            (0, 0x1b, 0),  // a negative record length
            (0, 0x18, 0),  // a record shorter than its parts
            (0, 0x1c, 0),  // a record longer than its parts
            (3, 0x01, 0),  // an offset delta below 0
            (3, 0x04, 0),  // an offset delta beyond the batch
            (17, 0x00, 1), // an offset delta that does not rise
            (4, 0x7e, 0),  // a key beyond the record
            (7, 0x7e, 0),  // a value beyond the record
            (13, 0x02, 0), // a header too many
            (25, 0x03, 1), // a negative number of headers
            (25, 0x06, 1), // a header more than there is
            (25, 0x02, 1), // a header fewer than there is
            (30, 0x04, 1), // a header name beyond the record
        ] {
            let mut body = BODY.to_vec();
            body[at] = byte;
            let (before, error) = refused(2, &body);
            assert_eq!(before, given, "byte {at}");
            assert!(matches!(error, BatchError::Malformed { .. }), "{error:?}");
        }
    }

    #[test]
    fn counts_and_ends_must_agree() {
        // Fewer and more records than the header says, and a body cut anywhere.
        assert_eq!(refused(1, BODY).0, 1);
        assert_eq!(refused(3, BODY).0, 2);
        for length in 0..BODY.len() {
            let whole = usize::from(length >= 14);
            assert_eq!(refused(2, &BODY[..length]).0, whole, "{length}");
        }
        let empty = BatchHeader { records_count: 0, ..header(2) };
        assert!(RecordsIter::new(&empty, &[]).next().is_none());
        assert!(RecordsIter::new(&empty, &[0]).next().unwrap().is_err());
    }

    #[test]
    fn header_counts_are_held_against_the_bytes() {
        // 2^30 headers in a record of a few bytes: refused at once, not after that many steps.
        let body = [0x16, 0, 0, 0, 0x01, 0x01, 0x80, 0x80, 0x80, 0x80, 0x08, 0];
        assert_eq!(refused(1, &body).0, 0);
    }

    #[test]
    fn long_numbers_are_read() {
        // The length and the key length in five bytes each.
        let mut body = vec![0x9a, 0x80, 0x80, 0x80, 0x00, 0, 0, 0, 0x82, 0x80, 0x80, 0x80, 0x00];
        body.extend_from_slice(b"k\x04vw\0");
        let record = RecordsIter::new(&header(1), &body).next().unwrap().unwrap();
        assert_eq!((record.key(), record.value()), (Some(&b"k"[..]), Some(&b"vw"[..])));
    }
}
