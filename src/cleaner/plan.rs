//! Which part of a log is to be compacted, and which segments become one. PURE: no clock, no I/O.
//!
//! The rules are Kafka's (`LogCleanerManager.cleanableOffsets`, `Cleaner.groupSegmentsBySize`).

use crate::partition::settings::CompactionSettings;
use crate::planted::{Bug, is};

/// One segment as the plan sees it, oldest first; the last one is active.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) base: i64,
    /// One past the last offset that could be in it.
    pub(crate) next_base: i64,
    pub(crate) bytes: u64,
    /// Most entries that its offset index can have when it is copied.
    pub(crate) index_entries: u64,
    /// Whether it is sealed, and so durable: nothing else is compacted.
    pub(crate) is_sealed: bool,
    /// Largest timestamp, -1 if there is none.
    pub(crate) max_timestamp: i64,
    /// Largest timestamp of the first batch, -1 if there is none.
    pub(crate) first_timestamp: i64,
}

/// The part of a log that one round of compaction is about.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Range {
    /// Records below this offset were compacted before.
    pub(crate) first_dirty: i64,
    /// The base offset of the first segment that is left alone.
    pub(crate) first_uncleanable: i64,
    /// The share of bytes that are worth a look.
    pub(crate) dirty_ratio: f64,
    /// A record has waited as long as `max.compaction.lag.ms` allows, or a tombstone's time is over.
    pub(crate) is_overdue: bool,
}

/// The range to compact, or `None` if there is nothing to do now. Only records in sealed, and so durable, segments and
/// below `stable_end` (in no open transaction) may supersede others.
pub(crate) fn range(
    pieces: &[Piece],
    settings: &CompactionSettings,
    clean_end: i64,
    stable_end: i64,
    next_horizon_ms: i64,
    now_ms: i64,
) -> Option<Range> {
    let (first, last) = (pieces.first()?, pieces.last()?);
    // A clean end outside of the log says nothing about it.
    let first_dirty = if clean_end < first.base || clean_end > last.next_base { first.base } else { clean_end };
    let lags = |piece: &Piece| {
        settings.min_compaction_lag_ms > 0
            && piece.next_base > first_dirty
            && piece.max_timestamp > now_ms.saturating_sub(settings.min_compaction_lag_ms)
    };
    let closed = if is(Bug::ActiveSegmentCounted) { pieces } else { pieces.split_last()?.1 };
    let cleanable = closed.iter().take_while(|piece| {
        (piece.is_sealed || is(Bug::ActiveSegmentCounted)) && piece.next_base <= stable_end && !lags(piece)
    });
    let first_uncleanable = cleanable.last()?.next_base;
    let clean_bytes: u64 = closed.iter().filter(|piece| piece.base < first_dirty).map(|piece| piece.bytes).sum();
    let dirty = closed.iter().filter(|piece| piece.base < first_uncleanable && piece.next_base > first_dirty);
    let dirty_bytes: u64 = dirty.clone().map(|piece| piece.bytes).sum();
    if first_dirty >= first_uncleanable || dirty_bytes == 0 {
        // Nothing is superseded, but something may go for its age.
        let range = Range { first_dirty: first_uncleanable, first_uncleanable, dirty_ratio: 0.0, is_overdue: true };
        return (next_horizon_ms <= now_ms).then_some(range);
    }
    let clean_bytes = clean_bytes.min(u64::MAX - dirty_bytes);
    let dirty_ratio = dirty_bytes as f64 / (clean_bytes + dirty_bytes) as f64;
    let earliest = dirty.map(|piece| piece.first_timestamp).filter(|&first| first > 0).min();
    let is_overdue = next_horizon_ms <= now_ms
        || earliest.is_some_and(|first| first < now_ms.saturating_sub(settings.max_compaction_lag_ms));
    let is_due = is_overdue || dirty_ratio > settings.min_cleanable_dirty_ratio;
    is_due.then_some(Range { first_dirty, first_uncleanable, dirty_ratio, is_overdue })
}

/// A copy may become larger than its sources: a horizon makes timestamps longer, and codecs have levels. A group leaves room
/// for that below the 2^31-1 bytes of a segment.
const GROUP_BYTES_MAX: u64 = (1 << 31) - (256 << 20);

/// How large one segment may become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentRoom {
    pub(crate) bytes: u64,
    /// Entries of either index that fit `segment.index.bytes`.
    pub(crate) index_entries: u64,
}

/// Neighbours that become one segment each: as many as fit `segment.bytes`, the indexes, and the range of a segment's offsets.
pub(crate) fn groups(pieces: &[Piece], end: i64, room: SegmentRoom) -> Vec<Vec<i64>> {
    let mut groups: Vec<Vec<i64>> = Vec::new();
    let segment_bytes = room.bytes.min(GROUP_BYTES_MAX);
    let (mut bytes, mut index_entries, mut group_base) = (0_u64, 0_u64, 0_i64);
    for piece in pieces.iter().filter(|piece| piece.base < end) {
        let fits = bytes.saturating_add(piece.bytes) <= segment_bytes
            && index_entries.saturating_add(piece.index_entries) <= room.index_entries
            && (piece.next_base - 1).saturating_sub(group_base) <= i64::from(i32::MAX);
        match groups.last_mut() {
            Some(group) if fits => group.push(piece.base),
            _ => {
                groups.push(vec![piece.base]);
                (bytes, index_entries, group_base) = (0, 0, piece.base);
            }
        }
        bytes = bytes.saturating_add(piece.bytes);
        index_entries = index_entries.saturating_add(piece.index_entries);
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: CompactionSettings = CompactionSettings {
        min_cleanable_dirty_ratio: 0.5,
        min_compaction_lag_ms: 0,
        max_compaction_lag_ms: i64::MAX,
        delete_retention_ms: 0,
        tombstone_hold_max_ms: 0,
        expire_after_ms: -1,
    };

    /// Segments of ten offsets and 100 bytes each; the last one is active. Timestamps are offsets.
    fn log(count: i64) -> Vec<Piece> {
        let piece = |index: i64| Piece {
            base: index * 10,
            next_base: index * 10 + 10,
            bytes: 100,
            index_entries: 4,
            is_sealed: index + 1 < count,
            max_timestamp: index * 10 + 9,
            first_timestamp: index * 10 + 1,
        };
        (0..count).map(piece).collect()
    }

    fn check(settings: &CompactionSettings, clean_end: i64, stable_end: i64, expected: Option<(i64, i64)>) {
        let found = range(&log(4), settings, clean_end, stable_end, i64::MAX, 1000);
        assert_eq!(
            found.map(|range| (range.first_dirty, range.first_uncleanable)),
            expected,
            "{clean_end} {stable_end}"
        );
    }

    #[test]
    fn the_active_segment_is_never_compacted() {
        check(&SETTINGS, 0, 40, Some((0, 30)));
    }

    #[test]
    fn a_segment_that_is_not_stable_as_a_whole_is_left_alone() {
        check(&SETTINGS, 0, 29, Some((0, 20)));
        check(&SETTINGS, 0, 9, None);
    }

    #[test]
    fn enough_has_to_be_dirty() {
        check(&SETTINGS, 10, 40, Some((10, 30)));
        check(&SETTINGS, 20, 40, None);
        check(&CompactionSettings { min_cleanable_dirty_ratio: 0.3, ..SETTINGS }, 20, 40, Some((20, 30)));
    }

    #[test]
    fn what_waited_too_long_is_compacted_whatever_the_ratio() {
        check(&CompactionSettings { max_compaction_lag_ms: 900, ..SETTINGS }, 20, 40, Some((20, 30)));
        check(&CompactionSettings { max_compaction_lag_ms: 979, ..SETTINGS }, 20, 40, None);
    }

    #[test]
    fn young_records_stay_as_they_are() {
        check(&CompactionSettings { min_compaction_lag_ms: 985, ..SETTINGS }, 0, 40, Some((0, 10)));
        check(&CompactionSettings { min_compaction_lag_ms: 1000, ..SETTINGS }, 0, 40, None);
    }

    #[test]
    fn a_clean_end_outside_of_the_log_is_not_believed() {
        check(&SETTINGS, 4000, 40, Some((0, 30)));
        check(&SETTINGS, 30, 40, None);
    }

    #[test]
    fn a_tombstone_whose_time_is_over_is_reason_enough() {
        let found = |next_horizon_ms| {
            let range = range(&log(4), &SETTINGS, 30, 40, next_horizon_ms, 1000);
            range.map(|range| (range.first_dirty, range.first_uncleanable))
        };
        assert_eq!(found(1001), None);
        assert_eq!(found(1000), Some((30, 30)));
        let beside_new_ones = range(&log(4), &SETTINGS, 20, 40, 1000, 1000);
        assert_eq!(beside_new_ones.map(|range| range.first_dirty), Some(20));
    }

    #[test]
    fn nothing_closed_is_nothing_to_do() {
        assert_eq!(range(&log(1), &SETTINGS, 0, 40, 0, 1000), None);
        assert_eq!(range(&[], &SETTINGS, 0, 40, 0, 1000), None);
    }

    #[test]
    fn neighbours_join_while_they_fit() {
        let check = |end: i64, bytes: u64, expected: &[Vec<i64>]| {
            assert_eq!(groups(&log(4), end, SegmentRoom { bytes, index_entries: 100 }), expected, "{end} {bytes}");
        };
        check(30, 250, &[vec![0, 10], vec![20]]);
        check(30, 1000, &[vec![0, 10, 20]]);
        check(30, 50, &[vec![0], vec![10], vec![20]]);
        check(0, 50, &[]);
    }

    #[test]
    fn neighbours_join_while_their_indexes_fit() {
        let check = |index_entries: u64, expected: &[Vec<i64>]| {
            assert_eq!(groups(&log(4), 30, SegmentRoom { bytes: 1000, index_entries }), expected, "{index_entries}");
        };
        check(12, &[vec![0, 10, 20]]);
        check(11, &[vec![0, 10], vec![20]]);
        check(3, &[vec![0], vec![10], vec![20]]);
    }

    #[test]
    fn a_group_stays_within_the_range_of_offsets() {
        let mut pieces = log(3);
        pieces[1].next_base = i64::from(i32::MAX) + 2;
        pieces[2].base = pieces[1].next_base;
        assert_eq!(groups(&pieces, 20, SegmentRoom { bytes: 1000, index_entries: 100 }), [vec![0], vec![10]]);
        pieces[1].next_base = i64::from(i32::MAX) + 1;
        assert_eq!(groups(&pieces, 20, SegmentRoom { bytes: 1000, index_entries: 100 }), [vec![0, 10]]);
    }
}
