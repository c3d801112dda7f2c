//! Where in their segments batches are known to be, although compaction exchanges segments.
//!
//! A segment that is not compacted never changes below its end, so that a position in it holds for ever. Where a compacted one
//! takes the place of others, the positions of its records are forgotten at once, and it is read, some of it at each step
//! of upkeep: what is found gets its position, and what is not found is gone and gives up its entry. Until then a record
//! without a position is found by the offset index. A position is a hint all the same: what it leads to is checked.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Weak};

use super::table::Table;
use super::{KeyIndex, LIMITS, State};
use crate::partition::{ReadLevel, ReadOptions, Reader, SegmentSet, key_queue};
use crate::segment::Segment;

/// What vouches for the positions in a compacted segment after a restart: its base offset and the checksum of its log.
pub(crate) type Check = (i64, u32);

/// Records of a compacted segment that one step of upkeep reads.
const RECORDS_A_STEP: usize = 1 << 14;

/// See the module.
#[derive(Debug)]
pub(super) struct Places {
    /// Positions hold in sets in which segments were exchanged so often.
    replacements: Option<u64>,
    /// Compacted segments that were looked at: their positions hold, or are forgotten.
    known: Vec<(i64, Weak<Segment>)>,
    /// Ranges of offsets whose records lost their positions.
    lost: VecDeque<Range<i64>>,
    /// What of the first of these ranges was read.
    read_to: i64,
    /// Entries below this offset are gone.
    log_start: i64,
}

fn compacted(set: &SegmentSet) -> impl Iterator<Item = &Arc<Segment>> {
    set.segments.iter().filter(|segment| segment.is_foreign())
}

impl Places {
    /// For a table that is filled from the log as this set has it.
    pub(super) fn of_log(set: &SegmentSet) -> Self {
        let known = compacted(set).map(|segment| (segment.base_offset(), Arc::downgrade(segment))).collect();
        Self { replacements: None, known, lost: VecDeque::new(), read_to: i64::MIN, log_start: i64::MIN }
    }

    /// For a table from a file that vouches for the positions in some segments.
    pub(super) fn of_file(set: &SegmentSet, checks: &[Check]) -> Self {
        let mut places = Self::of_log(set);
        let vouched =
            |segment: &Segment| segment.crc32().is_some_and(|crc32| checks.contains(&(segment.base_offset(), crc32)));
        places.known.retain(|(_, known)| known.upgrade().is_some_and(|segment| vouched(&segment)));
        places
    }

    /// Whether positions hold in this set.
    #[inline]
    pub(super) fn hold(&self, set: &SegmentSet) -> bool {
        self.hold_for(set.replacements)
    }

    /// For how many replacements they hold.
    #[inline]
    pub(super) fn replacements(&self) -> Option<u64> {
        self.replacements
    }

    pub(super) fn hold_for(&self, replacements: u64) -> bool {
        self.replacements == Some(replacements)
    }

    /// Forgets what holds no longer in this set, which is the newest.
    pub(super) fn follow(&mut self, table: &mut Table, set: &SegmentSet, log_start: i64) {
        if log_start > self.log_start {
            table.keep(|offset, _| offset >= log_start);
            self.log_start = log_start;
        }
        if self.hold(set) {
            return;
        }
        let is_known = |segment: &&Arc<Segment>| {
            let same = |(_, known): &(i64, Weak<Segment>)| std::ptr::eq(known.as_ptr(), Arc::as_ptr(segment));
            self.known.iter().any(same)
        };
        let range = |segment: &Arc<Segment>| segment.base_offset()..segment.next_offset();
        let new: Vec<Range<i64>> = compacted(set).filter(|segment| !is_known(segment)).map(range).collect();
        self.known = compacted(set).map(|segment| (segment.base_offset(), Arc::downgrade(segment))).collect();
        self.replacements = Some(set.replacements);
        if new.is_empty() {
            return;
        }
        table.forget_positions(|offset| {
            let after = new.partition_point(|range| range.start <= offset);
            after > 0 && new.get(after - 1).is_some_and(|range| range.contains(&offset))
        });
        // What was being read may be among what was exchanged: it is read anew.
        self.lost.extend(new);
        self.read_to = i64::MIN;
    }

    /// Compacted segments that are still to be read.
    pub(super) fn lost(&self) -> usize {
        self.lost.len()
    }

    fn begins_with(&self, lost: &Lost) -> bool {
        self.lost.front().is_some_and(|first| *first == (lost.start..lost.end))
    }

    fn next_range(&mut self) {
        self.lost.pop_front();
        self.read_to = i64::MIN;
    }

    /// Base offsets and checksums of the compacted segments whose positions all hold.
    pub(super) fn checks(&self) -> Vec<Check> {
        let check = |(base, segment): &(i64, Weak<Segment>)| {
            let segment = segment.upgrade()?;
            let is_lost = self.lost.iter().any(|lost| lost.start < segment.next_offset() && lost.end > *base);
            segment.crc32().filter(|_| !is_lost).map(|crc32| (*base, crc32))
        };
        self.known.iter().filter_map(check).collect()
    }
}

impl KeyIndex {
    /// Reads some of what compaction has made. Returns how many records it looked at.
    pub(super) fn learn_places(&self) -> usize {
        let Some(lost) = self.next_lost() else { return 0 };
        let start = lost.from.max(self.log.log_start());
        let options = ReadOptions::new().level(ReadLevel::Latest).limits(LIMITS);
        let mut reader = Reader::begin(&self.log, start, options);
        let mut looked_at = 0;
        loop {
            // No lock is held while something is read.
            let read = reader.next_batch();
            let mut state = self.state.lock();
            let State::Ready(ready) = &mut *state else { return looked_at };
            // If segments were exchanged meanwhile, the next step follows that, and begins the range anew.
            let is_same = self.log.snapshot().replacements == lost.replacements;
            if !is_same || !ready.places.hold_for(lost.replacements) || !ready.places.begins_with(&lost) {
                return looked_at.max(1);
            }
            match read {
                Ok(Some(batch)) if batch.header().base_offset < lost.end => {
                    for view in batch.records() {
                        let Ok(view) = view else {
                            ready.places.next_range();
                            return looked_at.max(1);
                        };
                        let Some(key) = view.key() else { continue };
                        ready.table.set_position(key_queue::hash(&lost.secret, key), view.offset(), batch.position);
                        looked_at += 1;
                    }
                    ready.places.read_to = batch.next_offset().get();
                    if looked_at >= RECORDS_A_STEP {
                        return looked_at;
                    }
                }
                Ok(_) => {
                    ready.places.next_range();
                    let range = lost.start..lost.end;
                    ready.table.keep(|offset, position| position.is_some() || !range.contains(&offset));
                    // Less than before is never too much.
                    self.count(ready, 0);
                    return looked_at.max(1);
                }
                // The log start has passed by, or something is damaged: whoever looks for a record there gets the error.
                // Positions stay unknown, and nothing is taken for gone.
                Err(_) => {
                    ready.places.next_range();
                    return looked_at.max(1);
                }
            }
        }
    }

    /// What is to be read next, once the index has followed what was exchanged.
    fn next_lost(&self) -> Option<Lost> {
        let mut state = self.state.try_lock()?;
        let State::Ready(ready) = &mut *state else { return None };
        let set = self.log.snapshot();
        ready.places.follow(&mut ready.table, &set, self.log.log_start());
        let (secret, replacements) = (ready.secret, set.replacements);
        let &Range { start, end } = ready.places.lost.front()?;
        Some(Lost { secret, from: start.max(ready.places.read_to), start, end, replacements })
    }
}

/// A range of offsets that is being read.
struct Lost {
    secret: key_queue::HashKey,
    /// What lies below was read.
    from: i64,
    start: i64,
    end: i64,
    replacements: u64,
}
