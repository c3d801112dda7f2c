//! How far behind a position is.

use crate::clock::Timestamp;
use crate::error::Result;
use crate::partition::{Isolation, Partition, ReadLevel, ReadOptions};
use crate::record::DecodeLimits;

/// How far a group is behind in a partition, as a reader of committed records sees it. Computed when it is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Lag {
    /// Records that still exist beyond the position: no gaps of compaction, no markers, nothing aborted.
    pub records: u64,
    /// Offsets between the position, or the log start if that is higher, and the end of what can be read.
    pub offsets: u64,
    /// Bytes of the batches, as stored, that hold these records.
    pub bytes: u64,
    /// How old the next unread record is, in milliseconds; 0 if there is none.
    pub time_ms: u64,
}

/// Reads the batches beyond a position.
pub(super) fn lag(partition: &Partition, position: i64, now_ms: Timestamp) -> Result<Lag> {
    let from = position.max(partition.start().get());
    let end = partition.last_stable_offset().get();
    if from >= end {
        return Ok(Lag::default());
    }
    let limits = DecodeLimits { decompressed_bytes_max: 1 << 30 };
    let options = ReadOptions::new().level(ReadLevel::Latest).isolation(Isolation::Committed).limits(limits);
    let mut reader = partition.reader(from, &options)?;
    let mut lag = Lag { offsets: end.abs_diff(from), ..Lag::default() };
    let mut next_ms = None;
    while let Some(batch) = reader.next_batch()? {
        let header = batch.header();
        let records = if header.base_offset >= from {
            u64::try_from(header.records_count).unwrap_or(0)
        } else {
            batch.records().count() as u64
        };
        if next_ms.is_none()
            && let Some(Ok(record)) = batch.records().next()
        {
            next_ms = Some(record.timestamp_ms());
        }
        lag.records += records;
        lag.bytes += header.size_bytes() as u64;
    }
    let age = next_ms.filter(|&next| next >= 0).map_or(0, |next| now_ms.saturating_sub(next));
    lag.time_ms = u64::try_from(age).unwrap_or(0);
    Ok(lag)
}
