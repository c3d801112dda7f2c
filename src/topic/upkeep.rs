//! What a topic asks of its partitions as time goes by: rolls of idle segments, retention, compaction.
//!
//! Each function does one bounded step for one partition, at a time that it is given. Which partition has its turn is the
//! store's business.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use crate::cleaner::{self, Cleaning, Now};
use crate::error::Result;
use crate::key_index::KeyIndex;
use crate::partition::Log;
use crate::partition::newest_records::RecordPlace;
use crate::partition::swap::Removed;
use crate::retention::{self, Piece, RetentionRule};
use crate::segment::{Segment, State};

/// An active segment is rolled for its age only if nothing was appended for this long: a bulk load of old records would
/// leave a segment at each step otherwise.
const IDLE_BEFORE_ROLL_MS: u64 = 10_000;

/// Closes an active segment that is idle, and whose first record is older than the settings allow it to be in there; where that
/// has no time, or one in the future, since the last append. Returns its offsets.
pub(crate) fn roll_if_idle(log: &Log, now_ms: i64) -> Result<Option<Range<i64>>> {
    let settings = log.settings();
    let set = log.snapshot();
    let Some(active) = set.segments.last().filter(|active| active.bytes() > 0) else { return Ok(None) };
    if settings.segment_ms == i64::MAX || log.idle_ms() < IDLE_BEFORE_ROLL_MS {
        return Ok(None);
    }
    let first = active.first_batch_timestamp()?.filter(|&first| first <= now_ms);
    let since = first.unwrap_or_else(|| log.last_arrival_ms(now_ms));
    if now_ms.saturating_sub(since) <= settings.segment_ms {
        return Ok(None);
    }
    log.roll_now()
}

/// What retention did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Retained {
    pub(crate) removed: Removed,
    pub(crate) rule: RetentionRule,
    /// From the log start before to the log start now.
    pub(crate) offsets: Range<i64>,
    /// The active segment, if it was closed for this.
    pub(crate) rolled: Option<Range<i64>>,
}

/// Deletes what is too old or too much: at most so many segments for their age. And what the log start left behind when it was
/// raised, as it was in the active segment then, or a broker's.
pub(crate) fn retain(log: &Log, now_ms: i64, by_age_max: usize) -> Result<Retained> {
    let settings = log.settings();
    let retention = settings.retention;
    let mut retained = Retained::default();
    if retention.deletes && (retention.retention_ms >= 0 || retention.retention_bytes >= 0) {
        let pieces = pieces(log, retention.retention_ms >= 0, now_ms)?;
        let cut = retention::plan(&pieces, &retention, now_ms, log.end_offset(), by_age_max);
        if let Some(log_start) = cut.log_start {
            if cut.takes_active {
                retained.rolled = log.with_room(|| log.roll_now())?;
            }
            let before = log.log_start();
            retained.removed = log.raise_log_start(log_start)?;
            (retained.rule, retained.offsets) = (cut.rule, before..log.log_start());
        }
    }
    if retained.removed == Removed::default() && log.has_segments_below_start() {
        let start = log.log_start();
        retained.removed = log.raise_log_start(start)?;
        (retained.rule, retained.offsets) = (RetentionRule::LogStart, start..start);
    }
    Ok(retained)
}

fn pieces(log: &Log, with_times: bool, now_ms: i64) -> Result<Vec<Piece>> {
    let set = log.snapshot();
    let ends = set.segments.iter().skip(1).map(|segment| segment.base_offset()).chain([log.end_offset()]);
    let arrived_by = if with_times { log.arrived_by(now_ms) } else { BTreeMap::new() };
    let piece = |(segment, next_base): (&Arc<Segment>, i64)| {
        let max_timestamp = if with_times { segment.timestamp_bound()? } else { -1 };
        let arrived_by_ms = arrived_by.get(&segment.base_offset()).copied();
        Ok(Piece { next_base, bytes: segment.bytes(), max_timestamp, arrived_by_ms })
    };
    set.segments.iter().zip(ends).map(piece).collect()
}

/// How dirty a compacted partition is, if it is to be compacted now; more than 1 if it is overdue.
pub(crate) fn dirtiness(log: &Log, now_ms: i64) -> Result<Option<f64>> {
    let settings = log.settings();
    if !settings.needs_key {
        return Ok(None);
    }
    let range = cleaner::find_range(log, &settings, now_ms)?;
    // What is closed is sealed first: a round that takes it along as well is worth more.
    let is_behind = log.snapshot().segments.iter().any(|segment| segment.state() == State::Closed);
    let range = range.filter(|range| range.is_overdue || !is_behind);
    Ok(range.map(|range| if range.is_overdue { 1.0 + range.dirty_ratio } else { range.dirty_ratio }))
}

/// Begins a compaction of a partition, if it still is to be compacted: by its key index, if one is given that is made and
/// names fewer records than there are in the dirty part, and leaves half of the memory for their keys.
pub(crate) fn begin_cleaning(
    log: &Arc<Log>,
    index: Option<&KeyIndex>,
    now: Now,
    memory_bytes_max: usize,
) -> Result<Option<Cleaning>> {
    let settings = log.settings();
    let Some(range) = cleaner::find_range(log, &settings, now.ms)? else { return Ok(None) };
    let dirty = usize::try_from(range.first_uncleanable.saturating_sub(range.first_dirty)).unwrap_or(0);
    let most = dirty.min(memory_bytes_max / 2 / size_of::<RecordPlace>());
    // What is younger than the lag is to supersede nothing, and the index does not tell it from the rest.
    let goes_by_index = most > 0 && settings.compaction.min_compaction_lag_ms == 0;
    let newest = index.filter(|_| goes_by_index).and_then(|index| index.newest_records(range.first_dirty, most));
    Ok(Some(Cleaning::new(log, range, now, memory_bytes_max, newest)))
}
