//! Look-ups by time. Control records and records of aborted transactions count, as they do for Kafka.

use std::sync::Arc;

use super::{Log, Partition, ReadOptions, SegmentSet};
use crate::clock::Timestamp;
use crate::error::Result;
use crate::ids::Offset;
use crate::record::{self, BatchError, BatchHeader, DecodeLimits, RecordsIter, SharedBytes};
use crate::segment::Segment;
use crate::segment::batch_error::batch_error;
use crate::segment::cursor::{Cursor, Verify};

/// What a batch may become in memory when it is decompressed to be looked through.
const LIMITS: DecodeLimits = DecodeLimits { decompressed_bytes_max: 64 << 20 };

/// An offset found by time, with the timestamp of the record there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TimestampedOffset {
    /// The record's offset.
    pub offset: Offset,
    /// The record's timestamp, in milliseconds since 1970.
    pub timestamp_ms: Timestamp,
}

impl Partition {
    /// The first record whose timestamp is at least `timestamp_ms` (Kafka's offsets-for-times). It may be a control
    /// record, which no reader is shown; reading from its offset is right all the same. `None` if there is none that a reader
    /// of the topic's level may see: on a `Sync` topic what waits for its sync is not found yet.
    ///
    /// # Errors
    /// [`Corrupt`](crate::Error::Corrupt) if a batch on the way is damaged; the first look-up in a segment without a seal checks
    /// all of its batches. [`Unsupported`](crate::Error::Unsupported) for a codec that is not built in, and where a record of the
    /// old formats 0 and 1 may be the answer.
    pub fn offset_for_timestamp(&self, timestamp_ms: Timestamp) -> Result<Option<TimestampedOffset>> {
        self.log.check_open()?;
        let set = self.log.snapshot();
        let (log_start, bound) = (self.log.log_start(), self.log.bound(&ReadOptions::new()));
        for (index, segment) in set.segments.iter().enumerate() {
            let end = set.segments.get(index + 1).map_or(i64::MAX, |next| next.base_offset());
            if end <= log_start {
                continue;
            }
            let latest = segment.timestamp_bound()?;
            if latest < 0 || latest < timestamp_ms {
                continue;
            }
            if let Some(found) = find_in_segment(&self.log, &set, segment, timestamp_ms, log_start)? {
                // What follows lies behind it.
                return Ok(Some(found).filter(|found| found.offset.get() < bound));
            }
        }
        Ok(None)
    }

    /// The first of the records with the largest timestamp (Kafka's max-timestamp query), also if it waits for its sync. `None` if
    /// the partition is empty or its records have no timestamps.
    ///
    /// # Errors
    /// As [`offset_for_timestamp`](Self::offset_for_timestamp).
    pub fn max_timestamp(&self) -> Result<Option<TimestampedOffset>> {
        self.log.check_open()?;
        let set = self.log.snapshot();
        let log_start = self.log.log_start();
        let mut best: Option<(Timestamp, &Arc<Segment>, i64)> = None;
        for (index, segment) in set.segments.iter().enumerate().rev() {
            let end = set.segments.get(index + 1).map_or(i64::MAX, |next| next.base_offset());
            if end <= log_start {
                break;
            }
            // Not read where what is known of it rules it out.
            if best.is_some_and(|(most, ..)| segment.known_max_timestamp().is_some_and(|known| known < most)) {
                continue;
            }
            if let Some((timestamp, batch_end)) = segment.max_timestamp()?
                && best.is_none_or(|(most, ..)| timestamp >= most)
            {
                best = Some((timestamp, segment, batch_end));
            }
        }
        let Some((timestamp, segment, batch_end)) = best else { return Ok(None) };
        let mut cursor = Cursor::seek(segment, set.epochs.clone(), Verify::Always, batch_end)?;
        let Some(found) = cursor.next()? else { return Ok(None) };
        let batch = cursor.bytes(&found);
        let hit = first_at_least((segment, found.position), &found.header, &batch, timestamp, log_start)?;
        // Compaction may have left no more than the header of that batch, or the record lies below the log start: then all the
        // others are asked.
        if hit.is_some() { Ok(hit) } else { max_of_records(&set, log_start) }
    }
}

fn max_of_records(set: &SegmentSet, log_start: i64) -> Result<Option<TimestampedOffset>> {
    let mut best: Option<TimestampedOffset> = None;
    for segment in &set.segments {
        let mut cursor = Cursor::at_start(segment, set.epochs.clone(), Verify::Always)?;
        while let Some(found) = cursor.next()? {
            let (header, batch) = (found.header, cursor.bytes(&found));
            let more = best.as_ref().map_or(0, |best| best.timestamp_ms.saturating_add(1));
            if header.records_count == 0 || header.last_offset() < log_start || header.max_timestamp < more {
                continue;
            }
            each_record((segment, found.position), &header, &batch, |record| {
                if record.offset.get() >= log_start
                    && record.timestamp_ms >= 0
                    && best.is_none_or(|best| record.timestamp_ms > best.timestamp_ms)
                {
                    best = Some(record);
                }
                false
            })?;
        }
    }
    Ok(best)
}

fn find_in_segment(
    log: &Log,
    set: &SegmentSet,
    segment: &Arc<Segment>,
    timestamp_ms: Timestamp,
    log_start: i64,
) -> Result<Option<TimestampedOffset>> {
    let from = segment.with_times(|times| times.lookup(timestamp_ms))?;
    let start = (segment.base_offset() + i64::from(from)).max(log_start);
    let mut cursor = Cursor::seek(segment, set.epochs.clone(), log.env.verify, start)?;
    while let Some(found) = cursor.next()? {
        if found.header.max_timestamp < timestamp_ms || found.header.last_offset() < start {
            continue;
        }
        let bytes = cursor.bytes(&found);
        if let Some(hit) = first_at_least((segment, found.position), &found.header, &bytes, timestamp_ms, log_start)? {
            return Ok(Some(hit));
        }
    }
    Ok(None)
}

/// The first record of a batch, which stands in a segment at a position, with at least this timestamp and offset.
fn first_at_least(
    at: (&Segment, u64),
    header: &BatchHeader,
    batch: &SharedBytes,
    timestamp_ms: Timestamp,
    offset: i64,
) -> Result<Option<TimestampedOffset>> {
    let mut first = None;
    each_record(at, header, batch, |record| {
        let is_it = record.timestamp_ms >= timestamp_ms && record.offset.get() >= offset;
        first = Some(record).filter(|_| is_it);
        is_it
    })?;
    Ok(first)
}

/// Shows each record of a batch, until that was enough.
fn each_record(
    (segment, position): (&Segment, u64),
    header: &BatchHeader,
    batch: &SharedBytes,
    mut is_enough: impl FnMut(TimestampedOffset) -> bool,
) -> Result<()> {
    let failed = |error: BatchError| {
        batch_error(segment.log().path(), position, header, &error, "it is too large for a look-up by time")
    };
    let body = record::decode_shared(header, batch, &LIMITS).map_err(failed)?;
    for record in RecordsIter::new(header, &body) {
        let record = record.map_err(failed)?;
        if is_enough(TimestampedOffset { offset: record.offset().into(), timestamp_ms: record.timestamp_ms() }) {
            break;
        }
    }
    Ok(())
}
