//! What a broker's checkpoints, and what lies beside its logs, say of a log; and what of it proves that a part is missing.
//!
//! Checkpoints are hints: they are compared with the log and never obeyed blindly. Nothing here reads or writes.

use std::collections::BTreeMap;

use super::listing::Listing;
use crate::segment::name::{Suffix, file_name};

/// What the checkpoints say of one partition.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Hints {
    /// From `log-start-offset-checkpoint`.
    pub(crate) log_start: Option<i64>,
    /// From `recovery-point-offset-checkpoint`: everything below it was flushed, and under the marker it is the log end. A log
    /// that was never flushed has no entry, or 0.
    pub(crate) recovery_point: Option<i64>,
    /// Whether `.kafka_cleanshutdown` stood in the root.
    pub(crate) was_clean: bool,
}

/// Offsets that were there once, and why that is certain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Missing {
    /// From here on.
    pub(crate) from: i64,
    /// To here.
    pub(crate) to: i64,
    pub(crate) what: String,
}

impl Hints {
    /// What is missing of a log that ends at this offset.
    pub(crate) fn missing(&self, end: i64) -> Option<Missing> {
        let flushed = self.recovery_point.filter(|&flushed| flushed > end);
        let start = self.log_start.filter(|&start| start > end);
        let (to, proof) = match (flushed, start) {
            (Some(flushed), _) => {
                (flushed, format!("recovery-point-offset-checkpoint says that all below offset {flushed} was flushed"))
            }
            (None, Some(start)) => {
                (start, format!("log-start-offset-checkpoint says that it starts at offset {start}"))
            }
            (None, None) => return None,
        };
        let what = format!(
            "the log ends at offset {end}, and {proof}: restore the whole directory from a copy, or, if what is missing is to be \
             given up, take the partition out of that file"
        );
        Some(Missing { from: end, to, what })
    }

    /// What is odd, and no proof of anything: a log that was closed in order has more than was flushed of it.
    pub(crate) fn surplus(&self, end: i64) -> Option<String> {
        let flushed = self.recovery_point.filter(|&flushed| self.was_clean && 0 < flushed && flushed < end)?;
        Some(format!("the log ends at offset {end}, and recovery-point-offset-checkpoint says {flushed}"))
    }
}

/// An index file whose log is not there. Kafka removes one when it loads the partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Orphan {
    pub(crate) base: i64,
    pub(crate) suffix: Suffix,
    /// The offsets that its log had, if nothing else has them.
    pub(crate) missing: Option<Missing>,
}

/// Finds the orphans of a directory. `ends` has the next offset of each log that was scanned to its end, by base offset: where
/// the log before an orphan ends at or below it and the next one begins above it, a segment is gone. Not if it went on purpose,
/// as the name of its log says.
pub(crate) fn orphans(listing: &Listing, ends: &BTreeMap<i64, i64>) -> Vec<Orphan> {
    let of_log = |suffix| matches!(suffix, Suffix::Index | Suffix::TimeIndex | Suffix::TxnIndex);
    let alone = listing.side_files.iter().filter(|(base, suffix)| of_log(*suffix) && !listing.logs.contains_key(base));
    let found = alone.map(|&(base, suffix)| {
        let before = listing.logs.range(..base).next_back().and_then(|(before, _)| ends.get(before));
        let next = listing.logs.range(base..).next();
        let missing = match (before, next) {
            (Some(&from), Some((&to, _))) if from <= base && !was_deleted(listing, base) => {
                let log = file_name(base, Suffix::Log);
                let what = format!(
                    "its index is there and {log} is not, nor is any record from offset {from} to {to}: restore the log from a \
                     copy, or, if what is missing is to be given up, remove the index"
                );
                Some(Missing { from, to, what })
            }
            _ => None,
        };
        Orphan { base, suffix, missing }
    });
    found.collect()
}

fn was_deleted(listing: &Listing, base: i64) -> bool {
    let log = file_name(base, Suffix::Log);
    listing.temporary.iter().any(|name| name.starts_with(&log) && name.ends_with(".deleted"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hints(recovery_point: impl Into<Option<i64>>, log_start: impl Into<Option<i64>>) -> Hints {
        Hints { log_start: log_start.into(), recovery_point: recovery_point.into(), was_clean: true }
    }

    #[test]
    fn a_log_that_ends_below_what_was_flushed_or_where_it_starts_has_lost_something() {
        let check = |hints: Hints, end, expected| {
            for was_clean in [true, false] {
                let found = Hints { was_clean, ..hints }.missing(end).map(|missing| (missing.from, missing.to));
                assert_eq!(found, expected, "{hints:?} {end}");
            }
        };
        check(hints(172, None), 171, Some((171, 172)));
        check(hints(172, None), 0, Some((0, 172)));
        check(hints(172, 180), 100, Some((100, 172)));
        check(hints(None, 180), 100, Some((100, 180)));
        check(hints(172, 53), 172, None);
        check(hints(0, None), 172, None);
        check(hints(None, None), 172, None);
        check(hints(100, 172), 172, None);
    }

    #[test]
    fn more_than_was_flushed_is_odd_only_where_a_broker_stopped_in_order() {
        assert!(hints(171, None).surplus(172).is_some());
        assert!(Hints { was_clean: false, ..hints(171, None) }.surplus(172).is_none());
        for quiet in [hints(172, None), hints(0, None), hints(None, None)] {
            assert!(quiet.surplus(172).is_none());
        }
    }

    /// Logs at 0, 50 and 90, the first of which ends at 40, and an index at 45.
    fn beside(change: impl FnOnce(&mut Listing, &mut BTreeMap<i64, i64>)) -> Vec<Option<(i64, i64)>> {
        let mut listing = Listing::default();
        listing.logs.extend([(0, 9), (50, 9), (90, 0)]);
        listing.side_files.extend([(0, Suffix::Index), (45, Suffix::Index), (50, Suffix::TimeIndex)]);
        let mut ends = BTreeMap::from([(0, 40), (50, 90), (90, 90)]);
        change(&mut listing, &mut ends);
        let found = orphans(&listing, &ends).into_iter();
        found.map(|orphan| orphan.missing.map(|missing| (missing.from, missing.to))).collect()
    }

    #[test]
    fn an_index_in_a_gap_proves_that_its_log_is_gone() {
        assert_eq!(beside(|_, _| {}), [Some((40, 50))]);
        assert_eq!(beside(|_, ends| ends.extend([(0, 45)])), [Some((45, 50))]);
        // The records are in the log before it, as compaction leaves them.
        assert_eq!(beside(|_, ends| ends.extend([(0, 46)])), [None]);
        // How far that log goes is not known.
        assert_eq!(beside(|_, ends| ends.retain(|&base, _| base > 0)), [None]);
        assert_eq!(
            beside(|listing, _| listing.temporary.push(format!("{}.deleted", file_name(45, Suffix::Log)))),
            [None]
        );
        // Before the first and behind the last log nothing is proved.
        assert_eq!(beside(|listing, _| listing.logs.retain(|&base, _| base > 0)), [None, None]);
        assert_eq!(beside(|listing, _| listing.logs.retain(|&base, _| base < 45)), [None, None]);
        // A seal and a snapshot are no index.
        assert_eq!(beside(|listing, _| listing.side_files.push((46, Suffix::Seal))), [Some((40, 50))]);
    }
}
