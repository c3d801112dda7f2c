//! Copies a group of segments into one, without what need not stay.
//!
//! What happens to a batch and to a record is decided by pure functions of its bytes and [`Rules`]; the rest writes.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use super::offset_map::OffsetMap;
use super::{CompactionCounts, Hold, Now, batch_error, limits};
use crate::error::{Error, Result};
use crate::partition::manifest::{EntryState, SegmentEntry};
use crate::partition::reader::marker_of;
use crate::partition::swap::{Compacted, cleaned_name};
use crate::partition::{Log, SegmentSet};
use crate::planted::{Bug, is};
use crate::record::{self, BatchHeader, ControlRecord, RecordView, RecordsIter, SharedBytes};
use crate::segment::compose::NewSegment;
use crate::segment::cursor::{Cursor, Verify};
use crate::segment::txn_index::AbortedTxn;
use crate::segment::{BatchFacts, Segment};

/// What decides about records during one round; it does not change while segments are copied.
#[derive(Debug)]
pub(crate) struct Rules {
    pub(crate) map: OffsetMap,
    /// The map knows all keys from here on,
    pub(crate) first_dirty: i64,
    /// and below this offset.
    pub(crate) end: i64,
    /// No lower than it was when the map was made.
    pub(crate) log_start: i64,
    /// It was the key index that said which records are to be in the map.
    pub(crate) is_by_index: bool,
    pub(crate) first_uncleanable: i64,
    pub(crate) now: Now,
    pub(crate) delete_retention_ms: i64,
    pub(crate) hold: Hold,
}

/// What the copying has passed so far; it goes on from group to group.
#[derive(Clone, Debug)]
pub(crate) struct Passed {
    /// Producers of aborted, and of committed, transactions whose data was seen and whose marker was not.
    aborted: HashSet<i64>,
    committed: HashSet<i64>,
    /// A tombstone had to stay: those behind it stay as well, so that they go in order.
    keeps_tombstones: bool,
    /// A record whose key the map should have known and did not: the key index was wrong.
    unknown_key: Option<i64>,
    /// Past the highest tombstone that was dropped.
    pub(crate) tombstone_floor: i64,
    /// As it was when this group was begun.
    floor_before: i64,
    /// The earliest moment at which something that stayed may go for its age.
    pub(crate) next_horizon_ms: Option<i64>,
    /// The first tombstone that would have gone but for its readers.
    pub(crate) held_tombstone: Option<i64>,
}

impl Passed {
    /// Something stays until then at least; what is over already waits for something else that was noted.
    fn note_horizon(&mut self, at_ms: i64, now_ms: i64) {
        if at_ms > now_ms {
            self.next_horizon_ms = Some(self.next_horizon_ms.map_or(at_ms, |next| next.min(at_ms)));
        }
    }

    pub(crate) fn new(tombstone_floor: i64) -> Self {
        Self {
            aborted: HashSet::new(),
            committed: HashSet::new(),
            keeps_tombstones: false,
            unknown_key: None,
            tombstone_floor,
            floor_before: tombstone_floor,
            next_horizon_ms: None,
            held_tombstone: None,
        }
    }
}

/// What becomes of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// Its records are looked at one by one. `discardable`: once nobody needs the marker, it goes.
    Look { discardable: bool },
    /// Its records go, all of them.
    DropRecords,
}

impl Rules {
    /// Kafka's rules for batches (`Cleaner.shouldDiscardBatch`), with what they remember.
    fn fate(&self, header: &BatchHeader, marker: Option<ControlRecord>, is_aborted: bool, passed: &mut Passed) -> Fate {
        if !header.is_control() {
            if is_aborted {
                passed.aborted.insert(header.producer_id);
                return Fate::DropRecords;
            }
            if header.is_transactional() {
                passed.committed.insert(header.producer_id);
            }
            return Fate::Look { discardable: false };
        }
        let discardable = match marker {
            // The transaction's data is gone since an earlier round.
            Some(ControlRecord::Abort { .. }) => !passed.aborted.remove(&header.producer_id),
            Some(ControlRecord::Commit { .. }) => !passed.committed.remove(&header.producer_id),
            Some(_) => false,
            None => header.records_count == 0,
        };
        if discardable && header.delete_horizon_ms().is_some_and(|horizon| horizon <= self.now.ms) {
            return Fate::DropRecords;
        }
        Fate::Look { discardable }
    }

    /// Kafka's rules for records (`Cleaner.shouldRetainRecord`), and the hold of readers on tombstones.
    fn keeps(
        &self,
        header: &BatchHeader,
        record: &RecordView<'_>,
        passed: &mut Passed,
        counts: &mut CompactionCounts,
    ) -> bool {
        if header.is_control() || record.offset() >= self.end {
            return true;
        }
        let Some(key) = record.key() else { return false };
        let newest = self.map.get(key);
        if self.is_unknown(record.offset(), newest) {
            passed.unknown_key.get_or_insert(record.offset());
            return true;
        }
        if newest.is_some_and(|newest| record.offset() < newest) != is(Bug::OlderRecordWins) {
            return false;
        }
        if !record.is_tombstone() {
            return true;
        }
        // Nothing could tell readers that it went.
        if passed.floor_before == i64::MAX {
            return true;
        }
        let horizon = header.delete_horizon_ms();
        let is_over = horizon.is_some_and(|horizon| self.now.ms >= horizon) || is(Bug::TombstoneDroppedEarly);
        let held_until = horizon.and_then(|horizon| self.held_until(record, horizon));
        if !is_over || passed.keeps_tombstones || held_until.is_some() {
            if is_over && !passed.keeps_tombstones {
                passed.held_tombstone = Some(record.offset());
            }
            passed.keeps_tombstones = true;
            if let Some(until) = held_until {
                passed.note_horizon(until, self.now.ms);
            }
            return true;
        }
        // One below the floor that an adoption has set raises it as well: who began since the last group was exchanged had the floor
        // as it was then, and has to be told.
        let floor = record.offset().max(passed.floor_before) + 1;
        passed.tombstone_floor = passed.tombstone_floor.max(floor);
        counts.tombstones_dropped += 1;
        false
    }

    /// Whether the key index has left out a record that is the newest of its key. Below the log start it knows nothing.
    fn is_unknown(&self, offset: i64, newest: Option<i64>) -> bool {
        self.is_by_index
            && offset >= self.first_dirty.max(self.log_start)
            && newest.is_none_or(|newest| newest < offset)
    }

    /// Until when a batch with something that waits for its time is kept: it says so itself, or is seen first now. A clock that is
    /// not trusted has no say, as what is written is never put right: a later round gives the batch its time.
    fn horizon(&self, header: &BatchHeader, passed: &mut Passed) -> Option<i64> {
        let has = header.delete_horizon_ms();
        let (horizon, next_ms) = match (has, self.now.distrusted_until_ms) {
            (Some(horizon), _) => (has, horizon),
            (None, Some(until_ms)) => (None, until_ms),
            (None, None) => {
                let horizon = self.now.ms.saturating_add(self.delete_retention_ms);
                // With a retention of nothing it goes in the very next round.
                (Some(horizon), horizon.max(self.now.ms.saturating_add(1)))
            }
        };
        passed.note_horizon(next_ms, self.now.ms);
        horizon
    }

    /// Until when a reader holds a tombstone that compaction first saw `delete.retention.ms` before its horizon.
    fn held_until(&self, tombstone: &RecordView<'_>, horizon_ms: i64) -> Option<i64> {
        let first_seen = horizon_ms.saturating_sub(self.delete_retention_ms);
        let until = first_seen.saturating_add(self.hold.max_ms);
        let is_held = tombstone.offset() >= self.hold.from_offset && self.now.ms < until && !is(Bug::HoldIgnored);
        is_held.then_some(until)
    }
}

/// What copying one batch came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Copied {
    /// So many bytes were read.
    Batch(u64),
    /// There are no more.
    All,
    /// The copy would be larger than a segment may be: horizons take room, and a codec's default level may be less than
    /// that of the producer (KAFKA-20036). As many of the sources, at least one, are to be copied by themselves.
    Outgrown(usize),
    /// The key index did not know the key of the record at this offset.
    Unknown(i64),
}

/// A group that is being copied.
#[derive(Debug)]
pub(crate) struct GroupCopy {
    /// What was passed before the first of its batches.
    pub(crate) passed_before: Passed,
    /// How large the copy may become.
    bytes_max: u64,
    log: Arc<Log>,
    set: Arc<SegmentSet>,
    sources: Vec<Arc<Segment>>,
    /// Where the segment behind the group begins.
    next_base: i64,
    source: usize,
    cursor: Option<Cursor>,
    out: NewSegment,
    /// Aborted transactions whose markers stay.
    aborted: Vec<AbortedTxn>,
    counts: CompactionCounts,
    /// Whether the copy differs from what it was made of.
    is_changed: bool,
    /// A batch made anew, before it is written.
    batch: Vec<u8>,
    kept: Vec<bool>,
}

impl GroupCopy {
    pub(crate) fn begin(
        log: &Arc<Log>,
        set: Arc<SegmentSet>,
        sources: Vec<Arc<Segment>>,
        next_base: i64,
        (bytes_max, interval): (u64, u64),
        passed: &mut Passed,
    ) -> Result<Self> {
        passed.floor_before = passed.tombstone_floor;
        let base = sources.first().map_or(0, |first| first.base_offset());
        let out = NewSegment::create(&log.env.vfs, &log.directory, base, cleaned_name, interval)?;
        let bytes_before = sources.iter().map(|segment| segment.bytes()).sum();
        let counts = CompactionCounts { segments_before: sources.len(), bytes_before, ..CompactionCounts::default() };
        Ok(Self {
            passed_before: passed.clone(),
            bytes_max,
            log: Arc::clone(log),
            set,
            is_changed: sources.len() > 1,
            sources,
            next_base,
            source: 0,
            cursor: None,
            out,
            aborted: Vec::new(),
            counts,
            batch: Vec::new(),
            kept: Vec::new(),
        })
    }

    /// Copies one batch.
    pub(crate) fn copy_a_batch(&mut self, rules: &Rules, passed: &mut Passed) -> Result<Copied> {
        let Some(segment) = self.sources.get(self.source).cloned() else { return Ok(Copied::All) };
        let cursor = match &mut self.cursor {
            Some(cursor) => cursor,
            None => {
                let cursor = Cursor::at_start(&segment, self.set.epochs.clone(), Verify::Always)?;
                self.cursor.insert(cursor)
            }
        };
        let Some(found) = cursor.next()? else {
            (self.source, self.cursor) = (self.source + 1, None);
            return Ok(Copied::Batch(0));
        };
        let (header, bytes) = (found.header, cursor.bytes(&found));
        let has_room = self.copy(&segment, found.position, &header, &bytes, rules, passed)?;
        if let Some(offset) = passed.unknown_key {
            return Ok(Copied::Unknown(offset));
        }
        if has_room {
            return Ok(Copied::Batch(header.size_bytes() as u64));
        }
        if self.sources.len() == 1 {
            return Err(Error::unsupported(format!(
                "the segment at offset {} would exceed {} bytes when compacted, so that it stays as it is",
                segment.base_offset(),
                self.bytes_max
            )));
        }
        Ok(Copied::Outgrown(self.source.max(1)))
    }

    /// Adds a batch to the copy; false, and nothing is added, if the copy would become too large.
    fn put(&mut self, batch: &[u8], header: &BatchHeader) -> Result<bool> {
        if self.out.bytes() + batch.len() as u64 > self.bytes_max {
            return Ok(false);
        }
        self.out.append(batch, facts(header)).map(|()| true)
    }

    /// Copies what stays of a batch; false if there is no room for it.
    fn copy(
        &mut self,
        segment: &Segment,
        position: u64,
        header: &BatchHeader,
        bytes: &SharedBytes,
        rules: &Rules,
        passed: &mut Passed,
    ) -> Result<bool> {
        let failed = |error: record::BatchError| batch_error(segment, position, header, &error);
        self.counts.records_before += u64::try_from(header.records_count).unwrap_or(0);
        let marker = marker_of(header, bytes);
        let fate = rules.fate(header, marker, self.set.is_aborted(header)?, passed);
        if fate == (Fate::Look { discardable: false }) && matches!(marker, Some(ControlRecord::Abort { .. })) {
            let ended = self.set.aborted.ended_at(&self.set.segments, header.producer_id, header.last_offset())?;
            self.aborted.extend(ended);
        }
        let (discardable, records_stay) = match fate {
            Fate::Look { discardable } => (discardable, true),
            Fate::DropRecords => (false, false),
        };
        self.kept.clear();
        let mut has_tombstone = false;
        // Of a batch whose records all go nothing is decoded, however large it would become.
        let body = match records_stay.then(|| record::decode_shared(header, bytes, &limits())).transpose() {
            Err(record::BatchError::DecompressedTooLarge { .. }) => {
                // Its records cannot be looked at within the bound of memory. They stay, and so do the tombstones behind
                // them: one of those may be what removes a key in here.
                passed.keeps_tombstones = true;
                self.counts.records_after += u64::try_from(header.records_count).unwrap_or(0);
                return self.put(bytes, header);
            }
            body => body.map_err(failed)?,
        };
        if let Some(body) = &body {
            for view in RecordsIter::new(header, body) {
                let view = view.map_err(failed)?;
                let keeps = rules.keeps(header, &view, passed, &mut self.counts);
                has_tombstone |= keeps && view.is_tombstone() && !header.is_control();
                self.kept.push(keeps);
            }
        }
        let kept = self.kept.iter().filter(|&&keeps| keeps).count();
        self.counts.records_after += kept as u64;
        if kept == 0 && !self.must_stay(header, rules) {
            self.is_changed = true;
            return Ok(true);
        }
        let waits = has_tombstone || (discardable && kept > 0);
        let horizon = if waits { rules.horizon(header, passed) } else { header.delete_horizon_ms() };
        if kept == usize::try_from(header.records_count).unwrap_or(0) && horizon == header.delete_horizon_ms() {
            return self.put(bytes, header);
        }
        self.is_changed = true;
        let mut batch = std::mem::take(&mut self.batch);
        batch.clear();
        let views = body.as_deref().map(|body| RecordsIter::new(header, body)).into_iter().flatten();
        // Every record was read without an error just now.
        let views = views.zip(self.kept.iter().copied()).filter(|(_, keeps)| *keeps).filter_map(|(view, _)| view.ok());
        record::rewrite_batch(&mut batch, header, horizon, views).map_err(failed)?;
        let header = BatchHeader::decode(&batch).map_err(failed)?;
        let put = self.put(&batch, &header);
        self.batch = batch;
        put
    }

    /// Base offsets of the first so many sources, and of the others.
    pub(crate) fn split(&self, at: usize) -> (Vec<i64>, Vec<i64>) {
        let bases: Vec<i64> = self.sources.iter().map(|source| source.base_offset()).collect();
        let (first, rest) = bases.split_at(at.min(bases.len()));
        (first.to_vec(), rest.to_vec())
    }

    /// A batch whose header stays though its records went: the last of its producer, or the last of the round, which
    /// says where the log ended.
    fn must_stay(&self, header: &BatchHeader, rules: &Rules) -> bool {
        header.next_offset() == rules.first_uncleanable
            || (header.producer_id >= 0 && self.log.producers.lock().is_last_batch(header))
    }

    /// Lets the copy take the place of what it was made of, unless it is the same. `None` if that is no longer all there:
    /// then nothing was changed. Its log counts as written when the last of its sources was: where records have no timestamps,
    /// that is what a broker's retention goes by.
    pub(crate) fn finish(
        self,
        log: &Arc<Log>,
        tombstone_floor: i64,
        written_ms: &BTreeMap<i64, i64>,
    ) -> Result<Option<CompactionCounts>> {
        let mut counts = self.counts;
        counts.segments_after = 1;
        counts.bytes_after = self.out.bytes();
        if !self.is_changed {
            return Ok(Some(counts));
        }
        let base = self.sources.first().map_or(0, |first| first.base_offset());
        let closed_ms = self.closed_ms();
        let has_txn_index = self.sources.iter().any(|source| source.is_foreign()) || !self.aborted.is_empty();
        let aborted = has_txn_index.then_some(self.aborted.as_slice());
        let written_ms = self.sources.last().and_then(|last| written_ms.get(&last.base_offset())).copied();
        let composed = self.out.finish(log.env.store_id, self.next_base, aborted, written_ms)?;
        let entry = SegmentEntry {
            state: EntryState::Sealed,
            bytes: composed.bytes,
            next: self.next_base,
            batches: composed.batches,
            max_timestamp: Some(composed.max_timestamp),
            crc32: Some(composed.crc32),
            time_index: Some(composed.time_index),
            txn_index: composed.txn_index,
            synced: true,
            foreign: true,
            closed_ms,
            ..SegmentEntry::empty(base, None)
        };
        let replaces = self.sources.iter().map(|source| source.base_offset()).collect();
        let aborted = self.aborted;
        let replaced = log.replace_segments(Compacted { replaces, entry, aborted, tombstone_floor })?;
        Ok(replaced.map(|_| counts))
    }

    fn closed_ms(&self) -> Option<i64> {
        self.log.closed_ms(self.sources.last()?.base_offset())
    }
}

fn facts(header: &BatchHeader) -> BatchFacts {
    BatchFacts { last_offset: header.last_offset(), max_timestamp: header.max_timestamp }
}
