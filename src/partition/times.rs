//! Look-ups by time. Control records and records of aborted transactions count, as they do for Kafka.

use std::sync::Arc;

use super::{Log, Partition, SegmentSet};
use crate::clock::Timestamp;
use crate::error::{Error, Result};
use crate::ids::Offset;
use crate::record::{self, BatchError, BatchHeader, DecodeLimits, RecordsIter, SharedBytes};
use crate::segment::Segment;
use crate::segment::cursor::{Cursor, Verify};

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
    /// record, which no reader is shown; reading from its offset is right all the same. `None` if there is none.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if a batch on the way is damaged, [`Error::Unsupported`] for a codec that is not built in.
    pub fn offset_for_timestamp(&self, timestamp_ms: Timestamp) -> Result<Option<TimestampedOffset>> {
        self.log.check_open()?;
        let set = self.log.snapshot();
        for (index, segment) in set.segments.iter().enumerate() {
            let end = set.segments.get(index + 1).map_or(i64::MAX, |next| next.base_offset());
            if end <= self.log.log_start() {
                continue;
            }
            if segment.max_timestamp()?.is_none_or(|(maximum, _)| maximum < timestamp_ms) {
                continue;
            }
            if let Some(found) = find_in_segment(&self.log, &set, segment, timestamp_ms)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// The first of the records with the largest timestamp (Kafka's max-timestamp query). `None` if the partition is
    /// empty or its records have no timestamps.
    ///
    /// # Errors
    /// As [`offset_for_timestamp`](Self::offset_for_timestamp).
    pub fn max_timestamp(&self) -> Result<Option<TimestampedOffset>> {
        self.log.check_open()?;
        let set = self.log.snapshot();
        let mut best: Option<(Timestamp, &Arc<Segment>, i64)> = None;
        for (index, segment) in set.segments.iter().enumerate() {
            let end = set.segments.get(index + 1).map_or(i64::MAX, |next| next.base_offset());
            if end <= self.log.log_start() {
                continue;
            }
            if let Some((timestamp, batch_end)) = segment.max_timestamp()?
                && best.is_none_or(|(most, ..)| timestamp > most)
            {
                best = Some((timestamp, segment, batch_end));
            }
        }
        let Some((timestamp, segment, batch_end)) = best else { return Ok(None) };
        let mut cursor = Cursor::seek(segment, set.epochs.clone(), Verify::Always, batch_end)?;
        let Some(found) = cursor.next()? else { return Ok(None) };
        let hit = first_at_least(&self.log, segment, &found.header, &cursor.bytes(&found), timestamp, i64::MIN)?;
        // Compaction may have left no more than the header of that batch: then all the others are asked.
        if hit.is_some() { Ok(hit) } else { max_of_records(&self.log, &set) }
    }
}

fn max_of_records(log: &Log, set: &SegmentSet) -> Result<Option<TimestampedOffset>> {
    let mut best: Option<(&Arc<Segment>, BatchHeader, SharedBytes)> = None;
    for segment in &set.segments {
        let mut cursor = Cursor::at_start(segment, set.epochs.clone(), Verify::Always)?;
        while let Some(found) = cursor.next()? {
            let header = found.header;
            let most = best.as_ref().map_or(-1, |(_, best, _)| best.max_timestamp);
            if header.records_count > 0 && header.last_offset() >= log.log_start() && header.max_timestamp > most {
                best = Some((segment, header, cursor.bytes(&found)));
            }
        }
    }
    let Some((segment, header, bytes)) = best else { return Ok(None) };
    first_at_least(log, segment, &header, &bytes, header.max_timestamp, i64::MIN)
}

fn find_in_segment(
    log: &Log,
    set: &SegmentSet,
    segment: &Arc<Segment>,
    timestamp_ms: Timestamp,
) -> Result<Option<TimestampedOffset>> {
    let from = segment.with_times(|times| times.lookup(timestamp_ms))?;
    let start = (segment.base_offset() + i64::from(from)).max(log.log_start());
    let mut cursor = Cursor::seek(segment, set.epochs.clone(), log.env.verify, start)?;
    while let Some(found) = cursor.next()? {
        if found.header.max_timestamp < timestamp_ms || found.header.last_offset() < start {
            continue;
        }
        let bytes = cursor.bytes(&found);
        if let Some(hit) = first_at_least(log, segment, &found.header, &bytes, timestamp_ms, log.log_start())? {
            return Ok(Some(hit));
        }
    }
    Ok(None)
}

/// The first record of a batch with at least this timestamp and offset.
fn first_at_least(
    log: &Log,
    segment: &Segment,
    header: &BatchHeader,
    batch: &SharedBytes,
    timestamp_ms: Timestamp,
    offset: i64,
) -> Result<Option<TimestampedOffset>> {
    let failed = |error: BatchError| {
        if error.is_unsupported() {
            return Error::unsupported(format!("{error} ({}, offset {})", log.id, header.base_offset));
        }
        if let BatchError::DecompressedTooLarge { .. } = error {
            return Error::invalid(
                "batch",
                format!("{error} (offset {}), too large for a look-up by time", header.base_offset),
            );
        }
        Error::Corrupt {
            path: segment.log().path().to_owned(),
            position: 0,
            offsets: Some((header.base_offset.into(), header.next_offset().into())),
            what: error.to_string(),
        }
    };
    let body = record::decode_shared(header, batch, &DecodeLimits::default()).map_err(failed)?;
    for record in RecordsIter::new(header, &body) {
        let record = record.map_err(failed)?;
        if record.timestamp_ms() >= timestamp_ms && record.offset() >= offset {
            return Ok(Some(TimestampedOffset { offset: record.offset().into(), timestamp_ms: record.timestamp_ms() }));
        }
    }
    Ok(None)
}
