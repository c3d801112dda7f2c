//! How far behind a position is.

use crate::client::Lag;
use crate::clock::Timestamp;
use crate::error::Result;
use crate::partition::{Isolation, Partition, ReadLevel, ReadOptions};
use crate::record::DecodeLimits;

/// Reads the batches beyond a position, which has not moved since `moved_at_ms`; -1 if that is not known.
pub(super) fn lag(partition: &Partition, position: i64, moved_at_ms: Timestamp, now_ms: Timestamp) -> Result<Lag> {
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
    if lag.records > 0 {
        // It could not move on before there was something.
        let since_ms = moved_at_ms.max(next_ms.unwrap_or(-1));
        let stalled_ms = if since_ms < 0 { 0 } else { now_ms.saturating_sub(since_ms) };
        lag.stalled_for_ms = u64::try_from(stalled_ms).unwrap_or(0);
    }
    Ok(lag)
}
