//! Which prefix of a log may go, by size and by age. PURE: no clock, no I/O.
//!
//! The rules are Kafka's (`UnifiedLog.deleteOldSegments`), with two changes: a record counts as no younger than the moment
//! by which it had arrived, so that a timestamp in the future pins nothing; and after the clock has jumped, only
//! one segment at a time goes by age.

use crate::partition::settings::RetentionSettings;

/// One segment as retention sees it, oldest first; the last one is active.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    /// One past the last offset that could be in it: the base offset of the next segment, or the log end.
    pub(crate) next_base: i64,
    pub(crate) bytes: u64,
    /// Largest timestamp, -1 if there is none.
    pub(crate) max_timestamp: i64,
    /// None of its records arrived later, if that is known.
    pub(crate) arrived_by_ms: Option<i64>,
}

/// Which setting of a topic made retention remove segments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum RetentionRule {
    /// `retention.bytes`.
    #[default]
    Size,
    /// `retention.ms`.
    Age,
    /// The log start, which had come to lie behind them.
    LogStart,
}

/// What is to go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cut {
    /// The new log start; everything below it goes.
    pub(crate) log_start: Option<i64>,
    /// The active segment goes as well, so that a new one has to be begun first.
    pub(crate) takes_active: bool,
    /// Which rule asks for it; if both do, the one that asks for more.
    pub(crate) rule: RetentionRule,
}

/// Applies size, then age. Nothing at or above `bound` (the high watermark) goes, and at most `by_age_max` segments by age.
pub(crate) fn plan(pieces: &[Piece], settings: &RetentionSettings, now_ms: i64, bound: i64, by_age_max: usize) -> Cut {
    if !settings.deletes {
        return Cut::default();
    }
    // The last segment stays if it is empty; one that compaction emptied goes with its neighbours.
    let last = pieces.len().saturating_sub(1);
    let may_go = |(at, piece): &(usize, &Piece)| piece.next_base <= bound && (piece.bytes > 0 || *at < last);
    let allowed = pieces.iter().enumerate().take_while(may_go).count();
    let candidates = pieces.get(..allowed).unwrap_or_default();
    let by_size = by_size(pieces, candidates, settings.retention_bytes);
    let by_age = by_age(candidates, settings.retention_ms, now_ms).min(by_age_max);
    let (count, rule) = if by_age > by_size { (by_age, RetentionRule::Age) } else { (by_size, RetentionRule::Size) };
    let Some(last) = count.checked_sub(1).and_then(|last| pieces.get(last)) else { return Cut::default() };
    Cut { log_start: Some(last.next_base), takes_active: count == pieces.len(), rule }
}

/// The log never falls below `retention_bytes`.
fn by_size(pieces: &[Piece], candidates: &[Piece], retention_bytes: i64) -> usize {
    let Ok(limit) = u64::try_from(retention_bytes) else { return 0 };
    let total: u64 = pieces.iter().map(|piece| piece.bytes).sum();
    let mut excess = total.saturating_sub(limit);
    let goes = candidates.iter().take_while(|piece| {
        let fits = piece.bytes <= excess;
        excess = excess.saturating_sub(piece.bytes);
        fits
    });
    goes.count()
}

fn by_age(candidates: &[Piece], retention_ms: i64, now_ms: i64) -> usize {
    if retention_ms < 0 {
        return 0;
    }
    let is_old = |piece: &&Piece| {
        let newest = piece.arrived_by_ms.map_or(piece.max_timestamp, |arrived| piece.max_timestamp.min(arrived));
        // Without any timestamp, the moment of arrival is all there is.
        let newest = if piece.max_timestamp < 0 { piece.arrived_by_ms.unwrap_or(now_ms) } else { newest };
        piece.bytes == 0 || now_ms.saturating_sub(newest) > retention_ms
    };
    candidates.iter().take_while(is_old).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: RetentionSettings = RetentionSettings { deletes: true, retention_ms: 1000, retention_bytes: -1 };

    fn pieces(of: &[(u64, i64, Option<i64>)]) -> Vec<Piece> {
        let piece = |(index, &(bytes, max_timestamp, arrived_by_ms)): (usize, &(u64, i64, Option<i64>))| Piece {
            next_base: (index as i64 + 1) * 10,
            bytes,
            max_timestamp,
            arrived_by_ms,
        };
        of.iter().enumerate().map(piece).collect()
    }

    fn check(pieces: &[Piece], settings: RetentionSettings, now_ms: i64, expected: (Option<i64>, bool)) {
        let cut = plan(pieces, &settings, now_ms, i64::MAX, usize::MAX);
        assert_eq!((cut.log_start, cut.takes_active), expected, "{pieces:?} {settings:?} at {now_ms}");
    }

    #[test]
    fn a_segment_goes_once_its_newest_record_is_older_than_allowed() {
        let log = pieces(&[(5, 100, None), (5, 200, None), (5, 300, None)]);
        check(&log, ALL, 1100, (None, false));
        check(&log, ALL, 1101, (Some(10), false));
        check(&log, ALL, 1201, (Some(20), false));
        check(&log, ALL, 1301, (Some(30), true));
    }

    #[test]
    fn an_older_segment_behind_a_younger_one_waits() {
        check(&pieces(&[(5, 900, None), (5, 100, None)]), ALL, 1500, (None, false));
    }

    #[test]
    fn a_time_in_the_future_counts_as_the_time_of_arrival() {
        let log = pieces(&[(5, i64::MAX, Some(100)), (5, 100, None)]);
        check(&log, ALL, 1101, (Some(20), true));
    }

    #[test]
    fn records_without_a_time_go_by_their_arrival() {
        check(&pieces(&[(5, -1, Some(100)), (5, 2000, None)]), ALL, 1101, (Some(10), false));
        check(&pieces(&[(5, -1, None), (5, 2000, None)]), ALL, 1_000_000, (None, false));
    }

    #[test]
    fn a_log_never_falls_below_its_size() {
        let log = pieces(&[(10, 0, None), (10, 0, None), (10, 0, None)]);
        let sized = |retention_bytes| RetentionSettings { deletes: true, retention_ms: -1, retention_bytes };
        check(&log, sized(30), 0, (None, false));
        check(&log, sized(21), 0, (None, false));
        check(&log, sized(20), 0, (Some(10), false));
        check(&log, sized(5), 0, (Some(20), false));
        check(&log, sized(0), 0, (Some(30), true));
    }

    #[test]
    fn the_rule_that_asks_for_more_is_named() {
        let log = pieces(&[(10, 0, None), (10, 0, None), (10, 5000, None)]);
        let check = |retention_ms: i64, retention_bytes: i64, expected: (Option<i64>, RetentionRule)| {
            let settings = RetentionSettings { deletes: true, retention_ms, retention_bytes };
            let cut = plan(&log, &settings, 2000, i64::MAX, usize::MAX);
            assert_eq!((cut.log_start, cut.rule), expected, "{settings:?}");
        };
        check(1000, 20, (Some(20), RetentionRule::Age));
        check(1000, 10, (Some(20), RetentionRule::Size));
        check(1000, 0, (Some(30), RetentionRule::Size));
        check(-1, 20, (Some(10), RetentionRule::Size));
        check(1000, -1, (Some(20), RetentionRule::Age));
    }

    #[test]
    fn nothing_at_or_above_the_bound_goes() {
        let log = pieces(&[(5, 0, None), (5, 0, None)]);
        assert_eq!(plan(&log, &ALL, 5000, 19, usize::MAX).log_start, Some(10));
        assert_eq!(plan(&log, &ALL, 5000, 9, usize::MAX).log_start, None);
    }

    #[test]
    fn an_empty_segment_is_no_candidate() {
        check(&pieces(&[(0, -1, None)]), ALL, 1 << 40, (None, false));
    }

    #[test]
    fn after_a_jump_of_the_clock_one_segment_goes_at_a_time_by_age_and_any_number_by_size() {
        let log = pieces(&[(5, 0, None), (5, 0, None), (5, 0, None)]);
        let cut = |settings: &RetentionSettings, by_age_max: usize| {
            let cut = plan(&log, settings, 1 << 40, i64::MAX, by_age_max);
            (cut.log_start, cut.rule)
        };
        assert_eq!(cut(&ALL, 1), (Some(10), RetentionRule::Age));
        assert_eq!(cut(&ALL, 0), (None, RetentionRule::Size));
        let both = RetentionSettings { retention_bytes: 5, ..ALL };
        assert_eq!(cut(&both, 1), (Some(20), RetentionRule::Size));
        assert_eq!(cut(&both, 0), (Some(20), RetentionRule::Size));
    }

    #[test]
    fn a_policy_without_delete_keeps_everything() {
        check(
            &pieces(&[(5, 0, None), (5, 0, None)]),
            RetentionSettings { deletes: false, ..ALL },
            1 << 40,
            (None, false),
        );
    }
}
