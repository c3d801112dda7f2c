//! Compaction of one partition: the newest record of each key stays, in bounded memory and bounded steps.
//!
//! Kafka's algorithm and Kafka's rules (`LogCleaner`): the newest offset of each key goes into a bounded map, then the segments
//! are copied, group by group, without the records that a newer one supersedes. Offsets never change. What is promised: a
//! record is dropped only if the key *bytes* of a newer one, which is stable and durable, were found equal; appends and reads
//! go on meanwhile; a group takes effect as a whole or not at all.
//!
//! What Kafka lacks: it is the key index that says which records are the newest, so that the map is made of those alone
//! ([`newest_keys`]) and the dirty part is read once, by the copy. As the index knows the active segment as well, records that one
//! of that supersedes go too. The index is derived, and what is wrong in it must cost an
//! answer, never a record: each key is read at the place it names, once, and each record of the dirty part has to find its own
//! key in the map. One that does not ends the round ([`Step::unknown_key`]). Where there is no index, no memory for all of its
//! keys, an open transaction or a `min.compaction.lag.ms`, a first pass over the dirty part makes the map, as in Kafka, and only
//! records of that part supersede others.
//!
//! It knows partitions and segments. It does not know topics, nor who keeps tombstones: it is given a bound.

mod counts;
mod newest_keys;
pub(crate) mod offset_map;
pub(crate) mod plan;
pub(crate) mod rewrite;

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::partition::newest_records::NewestRecords;
use crate::partition::settings::LogSettings;
use crate::partition::{Log, SegmentSet, listing};
use crate::planted::{Bug, is};
use crate::record::{self, DecodeLimits, RecordsIter};
use crate::segment::batch_error;
use crate::segment::cursor::{Cursor, Verify};
use crate::segment::time_index;
use crate::segment::{Segment, State};

pub use self::counts::CompactionCounts;

use self::newest_keys::{NewestKeys, Noted};
use self::offset_map::OffsetMap;
use self::rewrite::{Copied, GroupCopy, Passed, Rules};

/// What keeps tombstones: readers that have not come so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hold {
    /// Tombstones at or above this offset are still to be read by somebody.
    pub(crate) from_offset: i64,
    /// But none is held for longer than this after compaction first saw it.
    pub(crate) max_ms: i64,
}

/// What time it is for a round, however long it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Now {
    /// No later than it is.
    pub(crate) ms: i64,
    /// The clock has jumped, and is not trusted before this: nothing begins to wait by it.
    pub(crate) distrusted_until_ms: Option<i64>,
}

/// One round over one partition, in steps.
#[derive(Debug)]
pub(crate) struct Cleaning {
    log: Arc<Log>,
    range: plan::Range,
    /// Everything that is copied, oldest first.
    sources: Vec<Arc<Segment>>,
    set: Arc<SegmentSet>,
    settings: Arc<LogSettings>,
    rules: Rules,
    passed: Passed,
    phase: Phase,
    memory_bytes_max: usize,
    unknown_key: Option<i64>,
    counts: CompactionCounts,
    read_bytes: u64,
    /// What was one segment stays one as long as positions in it can be told.
    single_bytes_max: u64,
    /// When the logs of segments were last written to, by base offset.
    written_ms: BTreeMap<i64, i64>,
}

#[derive(Debug)]
enum Phase {
    /// Notes the keys of the records that the index names.
    Look(NewestKeys),
    /// Notes the keys of the dirty part.
    Map {
        source: usize,
        cursor: Option<Box<Cursor>>,
    },
    /// Copies group by group; the next ones are at the end.
    Copy {
        waiting: Vec<Vec<i64>>,
        group: Option<Box<GroupCopy>>,
    },
    Done,
}

/// What one step came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) read_bytes: u64,
    pub(crate) is_done: bool,
    /// It ended early: the key index did not know the key of the record at this offset. Nothing is lost, and nothing is
    /// called clean; the index has to be made anew.
    pub(crate) unknown_key: Option<i64>,
}

/// What is worth compacting in a partition now, if anything.
pub(crate) fn find_range(log: &Log, settings: &LogSettings, now_ms: i64) -> Result<Option<plan::Range>> {
    let set = log.snapshot();
    let pieces = pieces(log, &set, settings, now_ms)?;
    // What is sealed was synced, so that only open transactions are left to mind.
    Ok(plan::range(
        &pieces,
        &settings.compaction,
        log.clean_end(),
        log.last_stable_offset(),
        log.next_horizon_ms(),
        now_ms,
    ))
}

fn pieces(log: &Log, set: &SegmentSet, settings: &LogSettings, now_ms: i64) -> Result<Vec<plan::Piece>> {
    let has_min_lag = settings.compaction.min_compaction_lag_ms > 0;
    let has_max_lag = settings.compaction.max_compaction_lag_ms < i64::MAX;
    let arrived_by = if has_min_lag || has_max_lag { log.arrived_by(now_ms) } else { BTreeMap::new() };
    let ends = set.segments.iter().skip(1).map(|segment| segment.base_offset()).chain([log.end_offset()]);
    let piece = |(segment, next_base): (&Arc<Segment>, i64)| {
        // Nothing is younger than its arrival, whatever its time says; without a time it is as young as it may be.
        let arrived = arrived_by.get(&segment.base_offset()).copied();
        // Looked up only where the settings ask, as it may mean to read headers.
        let max_timestamp = match has_min_lag.then(|| segment.timestamp_bound()).transpose()? {
            Some(timestamp) if timestamp >= 0 => arrived.map_or(timestamp, |arrived| timestamp.min(arrived)),
            _ => arrived.unwrap_or(-1),
        };
        let first_timestamp = match has_max_lag.then(|| segment.first_batch_timestamp()).transpose()?.flatten() {
            Some(timestamp) if (1..=now_ms).contains(&timestamp) => timestamp,
            _ => arrived.unwrap_or(-1),
        };
        Ok(plan::Piece {
            base: segment.base_offset(),
            next_base,
            bytes: segment.bytes(),
            index_entries: index_entries(segment, settings.index_interval_bytes),
            is_sealed: segment.state() == State::Sealed,
            max_timestamp,
            first_timestamp,
        })
    };
    set.segments.iter().zip(ends).map(piece).collect()
}

/// An entry stands for more bytes than the interval, and for one batch at least.
fn index_entries(segment: &Segment, interval_bytes: u64) -> u64 {
    segment.batches().min(segment.bytes() / interval_bytes.max(1))
}

impl Cleaning {
    /// Begins a round, by what the key index knows if it is given. Nothing is written before the first step. It holds all tombstones
    /// until it is [told](Self::hold_from) where readers are.
    pub(crate) fn new(
        log: &Arc<Log>,
        range: plan::Range,
        now: Now,
        memory_bytes_max: usize,
        newest: Option<NewestRecords>,
    ) -> Self {
        let settings = log.settings();
        let hold = Hold { from_offset: i64::MIN, max_ms: settings.compaction.tombstone_hold_max_ms };
        // Whatever supersedes something is in the segments that the index knew.
        let set = newest.as_ref().map_or_else(|| log.snapshot(), |newest| Arc::clone(&newest.set));
        let is_source = |segment: &&Arc<Segment>| segment.base_offset() < range.first_uncleanable;
        let sources: Vec<Arc<Segment>> = set.segments.iter().filter(is_source).cloned().collect();
        let keys_bytes_max =
            memory_bytes_max - newest.as_ref().map_or(0, NewestRecords::memory_bytes).min(memory_bytes_max);
        let is_by_index = newest.is_some();
        // What a pass over the dirty part would read, and its copy.
        let dirty_bytes: u64 = sources.iter().skip(set.index_of(range.first_dirty)).map(|source| source.bytes()).sum();
        let newest = newest.map(|newest| NewestKeys::new(newest, dirty_bytes.saturating_mul(2)));
        let mut begun = Self {
            log: Arc::clone(log),
            range,
            sources,
            set,
            rules: Rules {
                map: OffsetMap::new(keys_bytes_max),
                first_dirty: range.first_dirty,
                end: range.first_uncleanable,
                log_start: log.log_start(),
                is_by_index,
                first_uncleanable: range.first_uncleanable,
                now,
                delete_retention_ms: settings.compaction.delete_retention_ms,
                hold,
            },
            passed: Passed::new(log.tombstone_floor()),
            phase: newest.map_or(Phase::Done, Phase::Look),
            settings,
            memory_bytes_max,
            unknown_key: None,
            counts: CompactionCounts::default(),
            read_bytes: 0,
            single_bytes_max: i32::MAX as u64,
            written_ms: BTreeMap::new(),
        };
        if !is_by_index {
            begun.begin_map();
        }
        begun
    }

    /// Which part of the log it is about.
    pub(crate) fn range(&self) -> &plan::Range {
        &self.range
    }

    /// Bytes of record batches in what is copied.
    pub(crate) fn source_bytes(&self) -> u64 {
        self.sources.iter().map(|source| source.bytes()).sum()
    }

    /// Bytes that were read so far.
    pub(crate) fn read_bytes(&self) -> u64 {
        self.read_bytes
    }

    /// Readers have moved: from here on tombstones at or above this offset are held. If more are held than before, and the copy
    /// that is being made has left out one of them, it is made anew.
    pub(crate) fn hold_from(&mut self, offset: i64) {
        let before = std::mem::replace(&mut self.rules.hold.from_offset, offset);
        let Phase::Copy { waiting, group } = &mut self.phase else { return };
        let floor = self.passed.tombstone_floor;
        let has_dropped = |copy: &mut Box<GroupCopy>| floor > offset.max(copy.passed_before.tombstone_floor);
        if offset < before
            && let Some(copy) = group.take_if(has_dropped)
        {
            waiting.push(copy.split(usize::MAX).0);
            self.passed = copy.passed_before;
        }
    }

    pub(crate) fn counts(&self) -> CompactionCounts {
        self.counts
    }

    /// Goes on until about so many bytes were read, or the round is over.
    pub(crate) fn step(&mut self, budget_bytes: u64) -> Result<Step> {
        let mut read_bytes = 0;
        while read_bytes < budget_bytes && !matches!(self.phase, Phase::Done) {
            read_bytes += match self.phase {
                Phase::Look(_) => self.look_at_a_batch()?,
                Phase::Map { .. } => self.map_a_batch()?,
                Phase::Copy { .. } => self.copy_a_batch()?,
                Phase::Done => 0,
            };
        }
        self.read_bytes += read_bytes;
        Ok(Step { read_bytes, is_done: matches!(self.phase, Phase::Done), unknown_key: self.unknown_key })
    }

    fn look_at_a_batch(&mut self) -> Result<u64> {
        let Phase::Look(newest) = &mut self.phase else { return Ok(0) };
        // Small records that were superseded in large batches: to read those costs more than the pass and a copy do.
        if newest.is_too_much() {
            self.begin_map();
            return Ok(0);
        }
        match newest.note_a_batch(&mut self.rules.map) {
            Ok(Noted::Batch(read_bytes)) => Ok(read_bytes),
            Ok(Noted::All) => {
                // What supersedes has to outlast a crash before what it supersedes goes.
                if self.log.durable_end() < newest.end() && !is(Bug::SupersededByUnsynced) {
                    self.log.flush()?;
                }
                self.begin_copy()
            }
            // What cannot be read there may be of no concern to this round; where it is, the map meets it.
            Ok(Noted::NoRoom) | Err(_) => {
                self.begin_map();
                Ok(0)
            }
        }
    }

    /// Without the index: the map is made by a pass over the dirty part.
    fn begin_map(&mut self) {
        self.rules.map = OffsetMap::new(self.memory_bytes_max);
        self.rules.is_by_index = false;
        self.rules.end = self.range.first_dirty;
        self.phase = Phase::Map { source: self.set.index_of(self.range.first_dirty), cursor: None };
    }

    fn map_a_batch(&mut self) -> Result<u64> {
        let Phase::Map { source, cursor } = &mut self.phase else { return Ok(0) };
        let Some(segment) = self.sources.get(*source) else {
            self.rules.end = self.range.first_uncleanable;
            return self.begin_copy();
        };
        let walk = match cursor {
            Some(cursor) => cursor,
            None => {
                let from = self.range.first_dirty.max(segment.base_offset());
                let seek = Cursor::seek(segment, self.set.epochs.clone(), Verify::Always, from)?;
                cursor.insert(Box::new(seek))
            }
        };
        let Some(found) = walk.next()? else {
            (*source, *cursor) = (*source + 1, None);
            return Ok(0);
        };
        let header = found.header;
        let bytes = header.size_bytes() as u64;
        if header.is_control() || header.records_count == 0 || self.set.is_aborted(&header)? {
            return Ok(bytes);
        }
        let failed = |error: record::BatchError| batch_error(segment, found.position, &header, &error);
        let body = match record::decode_shared(&header, &walk.bytes(&found), &limits()) {
            // It will be copied as it is, and supersedes nothing.
            Err(record::BatchError::DecompressedTooLarge { .. }) => return Ok(bytes),
            body => body.map_err(failed)?,
        };
        // The first batch is taken whole, so that every round gets on.
        let must = header.base_offset <= self.range.first_dirty;
        for view in RecordsIter::new(&header, &body) {
            let view = view.map_err(failed)?;
            let Some(key) = view.key().filter(|_| view.offset() >= self.range.first_dirty) else { continue };
            if !self.rules.map.put(key, view.offset(), must) {
                // The rest waits for the next round. What the map knows of this batch is true all the same.
                self.rules.end = header.base_offset;
                return self.begin_copy().map(|_| bytes);
            }
        }
        Ok(bytes)
    }

    fn begin_copy(&mut self) -> Result<u64> {
        self.log.begin_compaction()?;
        self.written_ms = listing::list(&*self.log.env.vfs, &self.log.directory)?.written_ms;
        let next_bases = self.sources.iter().skip(1).map(|next| next.base_offset());
        let next_bases = next_bases.chain([self.range.first_uncleanable]);
        let pieces: Vec<plan::Piece> = (self.sources.iter().zip(next_bases))
            .map(|(segment, next_base)| plan::Piece {
                base: segment.base_offset(),
                next_base,
                bytes: segment.bytes(),
                index_entries: index_entries(segment, self.settings.index_interval_bytes),
                is_sealed: true,
                max_timestamp: -1,
                first_timestamp: -1,
            })
            .collect();
        let room = plan::SegmentRoom {
            bytes: self.settings.segment_bytes,
            // One entry of the time index is kept back for the end.
            index_entries: (self.settings.segment_index_bytes / time_index::ENTRY_BYTES as u64).saturating_sub(1),
        };
        let mut waiting = plan::groups(&pieces, self.rules.end, room);
        waiting.reverse();
        self.phase = Phase::Copy { waiting, group: None };
        Ok(0)
    }

    fn copy_a_batch(&mut self) -> Result<u64> {
        let Phase::Copy { waiting, group } = &mut self.phase else { return Ok(0) };
        if let Some(mut copy) = group.take() {
            return match copy.copy_a_batch(&self.rules, &mut self.passed)? {
                Copied::Batch(read_bytes) => {
                    *group = Some(copy);
                    Ok(read_bytes)
                }
                Copied::All => {
                    match copy.finish(&self.log, self.passed.tombstone_floor, &self.written_ms)? {
                        Some(counts) => {
                            let gone = counts.records_before - counts.records_after;
                            self.log.count_compacted(gone, counts.tombstones_dropped);
                            self.counts.add(counts);
                        }
                        // Segments were deleted meanwhile, and what was left of the group still has superseded records.
                        // Nothing is called clean: a later round would drop the tombstones of those that stayed.
                        None => self.phase = Phase::Done,
                    }
                    Ok(0)
                }
                Copied::Unknown(offset) => {
                    self.unknown_key = Some(offset);
                    self.phase = Phase::Done;
                    Ok(0)
                }
                Copied::Outgrown(fit) => {
                    let (first, rest) = copy.split(fit);
                    waiting.extend([rest, first]);
                    self.passed = copy.passed_before;
                    Ok(0)
                }
            };
        }
        let Some(bases) = waiting.pop() else {
            self.finish_round()?;
            return Ok(0);
        };
        let begun = self.begin_group(&bases)?;
        if let Phase::Copy { group, .. } = &mut self.phase {
            *group = Some(Box::new(begun));
        }
        Ok(0)
    }

    fn begin_group(&mut self, bases: &[i64]) -> Result<GroupCopy> {
        let is_source = |segment: &&Arc<Segment>| bases.contains(&segment.base_offset());
        let sources: Vec<Arc<Segment>> = self.sources.iter().filter(is_source).cloned().collect();
        let last = bases.last().copied().unwrap_or_default();
        let next_base = self.sources.iter().map(|segment| segment.base_offset()).find(|&base| base > last);
        let next_base = next_base.unwrap_or(self.range.first_uncleanable);
        // What is joined is to fit.
        let bytes_max = if sources.len() > 1 { self.settings.segment_bytes } else { self.single_bytes_max };
        let interval = self.settings.index_interval_bytes;
        GroupCopy::begin(&self.log, Arc::clone(&self.set), sources, next_base, (bytes_max, interval), &mut self.passed)
    }

    fn finish_round(&mut self) -> Result<()> {
        let Passed { tombstone_floor, next_horizon_ms, held_tombstone, .. } = self.passed;
        self.log.note_compacted(self.rules.end, tombstone_floor, next_horizon_ms, held_tombstone)?;
        self.phase = Phase::Done;
        Ok(())
    }
}

/// What one batch may become in memory. One that would become larger is copied as it is.
fn limits() -> DecodeLimits {
    DecodeLimits { decompressed_bytes_max: 64 << 20 }
}

/// What is wrong with a batch that is to be compacted.
fn batch_error(segment: &Segment, position: u64, header: &record::BatchHeader, error: &record::BatchError) -> Error {
    batch_error::batch_error(segment.log().path(), position, header, error, "it cannot be compacted")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::partition::newest_records::RecordPlace;
    use crate::partition::{Durability, Partition};
    use crate::record::Record;
    use crate::store::Store;
    use crate::topic::upkeep::begin_cleaning;
    use crate::topic::{CleanupPolicy, TopicConfig};

    /// Tombstones of one segment that get their horizon in this round: their batches become longer.
    fn growing() -> (Store, Partition, Cleaning) {
        let store = Store::in_memory().unwrap();
        let config = TopicConfig::default()
            .cleanup_policy(CleanupPolicy::Compact)
            .durability(Durability::Os)
            .segment_bytes(1000)
            .min_cleanable_dirty_ratio(0.0)
            .delete_retention_ms(1 << 40);
        let topic = store.create_topic("t", config).unwrap();
        let now = store.clock().now_ms();
        // Fourteen or so fill the first segment.
        (0..17).for_each(|n| drop(topic.append(Record::tombstone(format!("k{n}")).timestamp_ms(now)).unwrap()));
        let partition = topic.partition(0).unwrap();
        partition.log.upkeep(&mut || {}).unwrap();
        let now = Now { ms: now, distrusted_until_ms: None };
        let cleaning = begin_cleaning(&partition.log, None, now, 1 << 20).unwrap().unwrap();
        (store, partition, cleaning)
    }

    /// What an index would say of a log of 17 keys, but for one record.
    fn newest_but(partition: &Partition, offset: i64) -> NewestRecords {
        let places = (0..17).filter(|&known| known != offset).map(|known| RecordPlace::new(known, None)).collect();
        NewestRecords { end: 17, set: partition.log.snapshot(), places }
    }

    #[test]
    fn a_key_that_the_index_does_not_know_ends_the_round_and_nothing_is_clean() {
        for lost in [0, 3, 7] {
            let (_store, partition, cleaning) = growing();
            let newest = Some(newest_but(&partition, lost));
            let mut cleaning = Cleaning::new(&partition.log, *cleaning.range(), cleaning.rules.now, 1 << 20, newest);
            let done = cleaning.step(u64::MAX).unwrap();
            assert_eq!((done.is_done, done.unknown_key), (true, Some(lost)));
            drop(cleaning);
            assert_eq!(partition.clean_end().get(), 0);
            assert_eq!(partition.read_from(0).map(Result::unwrap).count(), 17);
        }
        // One that is not in the dirty part is of no concern.
        let (_store, partition, cleaning) = growing();
        let newest = Some(newest_but(&partition, 16));
        let mut cleaning = Cleaning::new(&partition.log, *cleaning.range(), cleaning.rules.now, 1 << 20, newest);
        let done = cleaning.step(u64::MAX).unwrap();
        assert_eq!((done.is_done, done.unknown_key), (true, None));
    }

    #[test]
    fn a_segment_by_itself_may_become_as_large_as_positions_go_and_stays_as_it_is_beyond() {
        let (_store, partition, mut cleaning) = growing();
        let before = partition.stats();
        let first = cleaning.sources[0].bytes();
        assert_eq!((cleaning.sources.len(), cleaning.single_bytes_max), (1, (1 << 31) - 1));
        cleaning.single_bytes_max = first;
        let error = cleaning.step(u64::MAX).unwrap_err();
        let what = format!("the segment at offset 0 would exceed {first} bytes when compacted");
        assert!(error.to_string().contains(&what), "{error}");
        drop(cleaning);
        assert_eq!((partition.stats(), partition.clean_end().get()), (before.clone(), 0));
        let listed = partition.log.env.vfs.list(&partition.log.directory).unwrap();
        assert!(listed.iter().all(|entry| !entry.name.ends_with(".cleaned")), "{listed:?}");
        assert_eq!(partition.read_from(0).map(Result::unwrap).count(), 17);

        // With room for it, the same round comes to its end.
        let (_store, partition, mut cleaning) = growing();
        assert!(cleaning.step(u64::MAX).unwrap().is_done);
        let grown = partition.log.snapshot().segments[0].bytes();
        assert!(grown > first, "{grown}, it was {first}");
        let (_store, partition, mut cleaning) = growing();
        cleaning.single_bytes_max = grown;
        assert!(cleaning.step(u64::MAX).unwrap().is_done, "the limit itself is allowed");
        assert_eq!(partition.clean_end().get(), partition.log.snapshot().segments[1].base_offset());
    }
}
