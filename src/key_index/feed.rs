//! Into the key index: from the log, and from what appends have queued.

use std::sync::Arc;

use hashbrown::HashTable;

use super::making::ReadBudget;
use super::{KeyIndex, LIMITS, READ_UNRESOLVED_MAX, Ready, State, TRIES, UNRESOLVED_MAX};
use crate::error::{Error, Result};
use crate::partition::key_entry::KeyEntry;
use crate::partition::peek::FEW_RECORDS;
use crate::partition::{Batch, ReadLevel, ReadOptions, Reader, SegmentSet, key_queue};
use crate::record::BatchError;
use crate::segment::batch_error::batch_error;

/// What became of what appends have queued.
pub(super) enum Taken {
    /// The table is whole up to this offset, and this set of segments holds all of it.
    All(i64, Arc<SegmentSet>),
    /// There is no room for all of it.
    NoRoom,
    /// The queue has ended before: the log has to be read from its begin.
    Outrun,
    /// As much was read as may be, or the log changed under what was being read; the rest waits in the queue.
    Some,
}

/// How far some of the log was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SomeRead {
    All,
    /// There is more from this offset on.
    UpTo(i64),
    /// There is no memory for it.
    NoRoom,
}

/// Bytes that a hash takes which waits for a comparison.
const WAITING_BYTES: usize = 8;
/// More offsets than these under one hash, and it is crowded.
const CHAIN_MAX: usize = 4;
/// So many crowded hashes, and their keys are compared.
const CROWDED_MAX: usize = 256;
/// So many of its keys are held at once.
const KEYS_AT_ONCE: usize = 1 << 14;

impl KeyIndex {
    /// The index with everything that was appended before this call; made, if nobody has asked yet.
    pub(super) fn ready<'a>(&self, state: &'a mut State) -> Result<&'a mut Ready> {
        let mut is_whole = false;
        for _ in 0..TRIES {
            if let State::Ready(ready) = state {
                if self.is_up_to_date(ready) {
                    is_whole = true;
                    break;
                }
                match self.take_over(ready, &mut ReadBudget::unlimited())? {
                    Taken::All(..) => {
                        is_whole = true;
                        break;
                    }
                    Taken::Some => continue,
                    Taken::NoRoom => self.give_up(state),
                    // The log itself tells the rest.
                    Taken::Outrun => self.forget(state),
                }
            }
            self.make(state, &mut ReadBudget::unlimited(), true)?;
        }
        match state {
            State::Ready(ready) if is_whole => Ok(ready),
            State::TooLarge => Err(self.too_large()),
            State::Ready(_) | State::Unused | State::Making(_) => {
                let what = "a key index while its log changes at every try to read it; ask again";
                Err(Error::Timeout { what: format!("{}: {what}", self.log.id) })
            }
        }
    }

    /// Whether nothing was appended or decided since it took something over.
    #[inline]
    pub(super) fn is_up_to_date(&self, ready: &Ready) -> bool {
        // In this order: nothing waits in a queue that has ended either, and the question is whether it had when it was looked at.
        self.decided_from(ready).is_none() && self.log.key_queue.len() == 0 && !self.has_been_outrun()
    }

    /// Whether the log has to be read for what was appended or decided since: some of it, or from its begin.
    pub(super) fn is_behind(&self, ready: &Ready) -> bool {
        self.decided_from(ready).is_some() || self.log.key_queue.is_behind() || self.has_been_outrun()
    }

    /// Where the first transaction begins that was left out and is decided by now.
    #[inline]
    pub(super) fn decided_from(&self, ready: &Ready) -> Option<i64> {
        ready.undecided_from.filter(|&from| self.log.last_stable_offset() > from)
    }

    /// Whether the queue has ended, so that the log has to be read: an offset did not fit it, or what was taken over found no place.
    pub(super) fn has_been_outrun(&self) -> bool {
        !self.log.env.read_only && !self.log.key_queue.is_wanted()
    }

    pub(super) fn too_large(&self) -> Error {
        Error::unsupported(format!(
            "the key index of {} would take more memory than key_index_memory_bytes allows, or spans more than 2^40 offsets",
            self.log.id
        ))
    }

    /// There is no memory for it.
    pub(super) fn give_up(&self, state: &mut State) {
        self.log.key_queue.stop();
        self.budget.exchange(state.counted(), 0);
        self.notices.lock().given_up = true;
        *state = State::TooLarge;
    }

    /// Reads what records there are between two offsets, as long as the budget lasts, but those of aborted transactions. Those of
    /// open ones come in once they are decided: they are read again then, with all that follows them. What is not decided is noted
    /// beside what was so before. Keys are compared in a set that is given, or in the newest.
    pub(super) fn read_some(
        &self,
        ready: &mut Ready,
        (from, end): (i64, i64),
        set: Option<&SegmentSet>,
        budget: &mut ReadBudget,
    ) -> Result<SomeRead> {
        let options = ReadOptions::new().level(ReadLevel::Latest).limits(LIMITS);
        let mut reader = Reader::begin(&self.log, from.max(self.log.log_start()), options);
        while let Some(batch) = reader.next_batch()? {
            let header = batch.header();
            if header.base_offset >= end {
                break;
            }
            budget.take(header.size_bytes() as u64);
            if !self.take_decided_batch(ready, &batch, set)? {
                return Ok(SomeRead::NoRoom);
            }
            if budget.is_spent() {
                return Ok(SomeRead::UpTo(batch.next_offset().get()));
            }
        }
        Ok(SomeRead::All)
    }

    fn take_decided_batch(&self, ready: &mut Ready, batch: &Batch, set: Option<&SegmentSet>) -> Result<bool> {
        let header = batch.header();
        if header.is_transactional() {
            // In this order: a transaction that ends in between is in the set.
            if self.log.producers.lock().is_undecided(header) {
                // Below the log start everything counts as decided.
                let from = header.base_offset.max(self.log.log_start());
                ready.undecided_from.get_or_insert(from);
                return Ok(true);
            }
            if self.log.snapshot().is_aborted(header)? {
                return Ok(true);
            }
        }
        // Asked for after the batch was read, so that it is in there.
        let newest = self.log.snapshot();
        let set = set.unwrap_or(&newest);
        if !self.take_batch(ready, batch, set)? {
            return Ok(false);
        }
        // A key that comes again and again must not fill the table. What cannot be read goes on waiting.
        if ready.unresolved.len() >= READ_UNRESOLVED_MAX {
            self.resolve_some(ready, set, usize::MAX);
        }
        Ok(true)
    }

    fn take_batch(&self, ready: &mut Ready, batch: &Batch, set: &SegmentSet) -> Result<bool> {
        let failed = |error: BatchError| {
            let segment = set.segments.get(set.index_of(batch.header().base_offset));
            let path = segment.map_or(self.log.directory.as_path(), |segment| segment.log().path());
            batch_error(path, batch.position, batch.header(), &error, "it is too large for the key index")
        };
        if batch.header().records_count <= FEW_RECORDS {
            for view in batch.records() {
                let view = view.map_err(failed)?;
                let Some(key) = view.key() else { continue };
                let hash = key_queue::hash(&ready.secret, key);
                if !self.insert_at(ready, hash, (view.offset(), batch.position), set)? {
                    return Ok(false);
                }
            }
            return Ok(true);
        }
        // Of one with many records only the newest of each key is taken: a key that comes again and again would be compared again and
        // again, each time by a walk through the batch. Where the hashes of one that was just appended show such a key, the batch is
        // read once instead.
        let mut newest: HashTable<(u64, &[u8], i64)> = HashTable::new();
        let put = |ready: &mut Ready, newest: &mut HashTable<(u64, &[u8], i64)>| -> Result<bool> {
            for (hash, _, offset) in newest.drain() {
                if !self.insert_at(ready, hash, (offset, batch.position), set)? {
                    return Ok(false);
                }
            }
            Ok(true)
        };
        for view in batch.records() {
            let view = view.map_err(failed)?;
            let Some(key) = view.key() else { continue };
            let hash = key_queue::hash(&ready.secret, key);
            match newest.find_mut(hash, |found| found.1 == key) {
                Some(found) => found.2 = view.offset(),
                None => {
                    newest.insert_unique(hash, (hash, key, view.offset()), |found| found.0);
                    if newest.len() >= KEYS_AT_ONCE && !put(ready, &mut newest)? {
                        return Ok(false);
                    }
                }
            }
        }
        put(ready, &mut newest)
    }

    /// Moves what appends have queued into the table, and reads what they did not, and what transactions that are decided by
    /// now had kept out of it, as long as the budget lasts. What could not be read is left in the queue, to be taken once
    /// more. What finds no place there is in the log alone, so that the queue then ends. Keys are compared in the set that
    /// belongs to what was taken: in a newer one a record may be missing whose successor is still in the queue.
    pub(super) fn take_over(&self, ready: &mut Ready, budget: &mut ReadBudget) -> Result<Taken> {
        let Some(taken) = self.log.take_key_queue() else { return Ok(Taken::Outrun) };
        let first = taken.gathered.keys.first().map(|entry| ready.table.offset_of(*entry));
        let undecided_from = ready.undecided_from;
        let read = match self.put(ready, &taken.gathered.keys, &taken.set, budget) {
            Ok(SomeRead::All) => self.read_unread(ready, (taken.gathered.unread_from, taken.end), &taken.set, budget),
            put => put,
        };
        let waiting = ready.unresolved.len();
        if waiting > UNRESOLVED_MAX {
            // Without upkeep nobody else would. What cannot be read goes on waiting.
            self.resolve_some(ready, &taken.set, waiting - UNRESOLVED_MAX);
        }
        match read {
            Ok(SomeRead::All) => {
                ready.left_until = None;
                // A record that went before it was read may have been superseded by one that is in the queue by now.
                let is_same = self.log.snapshot().replacements == taken.set.replacements;
                Ok(if is_same { Taken::All(taken.end, taken.set) } else { Taken::Some })
            }
            Ok(SomeRead::UpTo(next)) => {
                self.log.key_queue.leave(next);
                Ok(Taken::Some)
            }
            Ok(SomeRead::NoRoom) => {
                self.log.key_queue.stop();
                Ok(Taken::NoRoom)
            }
            Err(error) => {
                // All of it is to be taken once more: what is in the table already is no other entry then.
                ready.undecided_from = ready.undecided_from.into_iter().chain(undecided_from).min();
                if let Some(first) = first.into_iter().chain(taken.gathered.unread_from).min() {
                    self.log.key_queue.leave(first);
                }
                match error {
                    // The log start has passed by.
                    Error::OffsetOutOfRange { .. } => Ok(Taken::Some),
                    error => Err(error),
                }
            }
        }
    }

    /// Reads what is in the log alone: what was appended while nothing was gathered, and what follows a transaction that was
    /// decided since.
    fn read_unread(
        &self,
        ready: &mut Ready,
        (unread_from, end): (Option<i64>, i64),
        set: &SegmentSet,
        budget: &mut ReadBudget,
    ) -> Result<SomeRead> {
        let Some(from) = self.decided_from(ready).into_iter().chain(unread_from).min() else {
            return Ok(SomeRead::All);
        };
        // What is not decided from there on is noted anew.
        ready.undecided_from = ready.undecided_from.filter(|&before| before < from);
        self.read_some(ready, (from, end), Some(set), budget)
    }

    /// Puts entries into the table, as long as the budget lasts for what has to be read for that. What one append brought is, most
    /// often, one run of entries with the same place.
    fn put(
        &self,
        ready: &mut Ready,
        appended: &[KeyEntry],
        set: &SegmentSet,
        budget: &mut ReadBudget,
    ) -> Result<SomeRead> {
        for run in appended.chunk_by(|one, next| one.position() == next.position()) {
            if run.len() > FEW_RECORDS as usize
                && let [first, .., last] = run
                && has_one_twice(run)
            {
                let range = (ready.table.offset_of(*first), ready.table.offset_of(*last) + 1);
                if budget.is_spent() {
                    return Ok(SomeRead::UpTo(range.0));
                }
                // Where each batch begins a segment, many have the same place.
                match self.read_some(ready, range, Some(set), budget)? {
                    SomeRead::UpTo(next) if next < range.1 => return Ok(SomeRead::UpTo(next)),
                    SomeRead::NoRoom => return Ok(SomeRead::NoRoom),
                    SomeRead::UpTo(_) | SomeRead::All => continue,
                }
            }
            for &entry in run {
                if !self.insert(ready, entry, set)? {
                    return Ok(SomeRead::NoRoom);
                }
            }
        }
        Ok(SomeRead::All)
    }

    fn insert_at(
        &self,
        ready: &mut Ready,
        hash: u64,
        (offset, position): (i64, u64),
        set: &SegmentSet,
    ) -> Result<bool> {
        match ready.table.entry(hash, offset, position) {
            Ok(entry) => self.insert(ready, entry, set),
            Err(super::table::OutOfRange) => Ok(false),
        }
    }

    #[inline]
    fn insert(&self, ready: &mut Ready, entry: KeyEntry, set: &SegmentSet) -> Result<bool> {
        let growth = ready.table.growth_bytes(entry.hash());
        if growth > 0 && !self.count(ready, growth) {
            return Ok(false);
        }
        let before = ready.table.memory_bytes();
        let others = ready.table.insert(entry);
        if ready.table.memory_bytes() != before && !self.count(ready, 0) {
            return Ok(false);
        }
        match others {
            // Looked at once for however many come to it meanwhile.
            1 => {
                if ready.unresolved.len() == ready.unresolved.capacity() {
                    let more = ready.unresolved.len().max(64);
                    if !self.count(ready, more * WAITING_BYTES) {
                        return Ok(false);
                    }
                    ready.unresolved.reserve_exact(more);
                }
                ready.unresolved.push_back(entry.hash());
            }
            // A key that is written again and again: what stands under its hash is walked by every look-up and insertion.
            others if others >= CHAIN_MAX => {
                ready.crowded.push(entry.hash());
                if ready.crowded.len() >= CROWDED_MAX {
                    let mut crowded = std::mem::take(&mut ready.crowded);
                    crowded.sort_unstable();
                    crowded.dedup();
                    // What cannot be read goes on waiting.
                    self.compare(ready, set, &crowded);
                }
            }
            _ => {}
        }
        Ok(true)
    }

    /// Counts the memory that it takes, and so many bytes more; false if that is too much.
    pub(super) fn count(&self, ready: &mut Ready, more_bytes: usize) -> bool {
        let wants = ready.table.memory_bytes() + ready.unresolved.capacity() * WAITING_BYTES + more_bytes;
        if !self.budget.exchange(ready.counted, wants) {
            return false;
        }
        ready.counted = wants;
        true
    }
}

/// Whether one hash comes more than once.
fn has_one_twice(entries: &[KeyEntry]) -> bool {
    let mut hashes: Vec<u64> = entries.iter().map(|entry| entry.hash()).collect();
    hashes.sort_unstable();
    !hashes.is_sorted_by(|one, next| one < next)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::clock::ManualClock;
    use crate::io::{Fault, FaultPlan, FaultVfs, OpKind, errno};
    use crate::partition::Durability;
    use crate::partition::append_options::AppendOptions;
    use crate::record::Record;
    use crate::segment::log_file::ReadPath;
    use crate::store::{Store, Upkeep};
    use crate::topic::{CleanupPolicy, Topic, TopicConfig};

    /// What an index does that is read in steps of a few batches, and in most runs has room for three keys in its queue, beside a
    /// list of all that was appended. Returns how often it was behind, and how often upkeep had to leave some of the log to its
    /// next step.
    fn check_behind(seed: u64) -> (usize, usize) {
        let mut state = seed;
        let mut below = |end: usize| {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            (state >> 33) as usize % end
        };
        let vfs = FaultVfs::new();
        let open = || {
            let builder = Store::builder().vfs(Arc::new(vfs.clone())).upkeep(Upkeep::Manual);
            builder.compaction_step_bytes(400).open("/s").unwrap()
        };
        let room = |topic: &Topic| {
            if !seed.is_multiple_of(4) {
                topic.index(0).unwrap().log.key_queue.set_waiting_max(3);
            }
        };
        let mut store = open();
        let config = TopicConfig::default().cleanup_policy(CleanupPolicy::Compact).min_cleanable_dirty_ratio(0.0);
        let config = config.segment_bytes(if seed.is_multiple_of(2) { 2000 } else { 20_000 }).delete_retention_ms(0);
        #[cfg(feature = "lz4")]
        let config = if seed.is_multiple_of(3) { config.compression(crate::record::Compression::Lz4) } else { config };
        let mut topic = store.create_topic("t", config).unwrap();
        room(&topic);
        let keys = if seed.is_multiple_of(5) { 40 } else { 5 };
        let mut rows: Vec<(String, Option<String>)> = Vec::new();
        let (mut behind, mut left) = (0, 0);
        for step in 0..200 {
            let what = format!("seed {seed}, step {step}");
            let index = topic.index(0).unwrap();
            let partition = topic.partition(0).unwrap();
            let start = partition.start().get() as usize;
            let table: BTreeMap<String, Option<String>> = rows.iter().skip(start).cloned().collect();
            match below(14) {
                0..6 => {
                    // Batches of more than sixteen records are taken, and compared, in ways of their own.
                    let count = [1, 1, 3, 20, 60][below(5)];
                    let mut record = |nth: usize| {
                        let (key, value) = (format!("k{}", below(keys)), format!("{step} {nth}"));
                        let value = (below(4) > 0).then_some(value);
                        rows.push((key.clone(), value.clone()));
                        value.map_or_else(|| Record::tombstone(key.clone()), |value| Record::keyed(key.clone(), value))
                    };
                    let records: Vec<Record> = (0..count).map(&mut record).collect();
                    topic.append_all(&records, &AppendOptions::new()).unwrap();
                }
                6 | 7 => {
                    let key = format!("k{}", below(keys + 1));
                    behind += usize::from(index.log.key_queue.is_behind());
                    let found = topic.get(&key).unwrap().map(|record| record.value().unwrap().to_vec());
                    assert_eq!(found, table.get(&key).cloned().flatten().map(String::into_bytes), "{what}: {key}");
                }
                8 => {
                    index.upkeep(&mut ReadBudget::of(300));
                    left += usize::from(index.log.key_queue.is_behind());
                }
                9 => assert!(store.tick().is_ok(), "{what}"),
                10 => {
                    let to = start + below(rows.len() - start + 1) * below(3) / 2;
                    partition.delete_records(to.min(rows.len()) as i64).unwrap();
                }
                11 if below(3) == 0 => {
                    if below(2) == 0 {
                        store.close().unwrap()
                    } else {
                        vfs.kill()
                    }
                    drop((topic, store));
                    store = open();
                    topic = store.topic("t").unwrap();
                    room(&topic);
                }
                12 if below(3) == 0 => {
                    let comes_to_rest = (0..10_000).any(|_| store.tick().unwrap().is_idle());
                    assert!(comes_to_rest, "{what}");
                    let stats = topic.key_index_stats(0).unwrap();
                    assert!(stats.is_none_or(|stats| stats.waiting == 0), "{what}: {stats:?}");
                }
                _ => {
                    let text = |bytes: Option<&[u8]>| String::from_utf8(bytes.unwrap().to_vec()).unwrap();
                    let listed = topic.latest(0).unwrap().map(|record| record.unwrap());
                    let listed: BTreeMap<_, _> =
                        listed.map(|record| (text(record.key()), text(record.value()))).collect();
                    let live = table.iter().filter_map(|(key, value)| Some((key.clone(), value.clone()?)));
                    assert_eq!(listed, live.collect(), "{what}");
                }
            }
        }
        (behind, left)
    }

    #[test]
    fn an_index_that_falls_behind_again_and_again_misses_nothing() {
        let seeds = match std::env::var("TOPICLOG_SEED") {
            Ok(seed) => vec![seed.parse().unwrap()],
            Err(_) => (0..300).collect(),
        };
        let seen: Vec<(usize, usize)> = seeds.into_iter().map(check_behind).collect();
        let (behind, left) = seen.iter().fold((0, 0), |sum, seen| (sum.0 + seen.0, sum.1 + seen.1));
        assert!(behind > 0 && left > 0, "{behind} and {left} tell nothing");
    }

    /// A store with a topic whose index is in use, has room for five keys, and takes steps of so many bytes.
    fn small(vfs: &FaultVfs, name: &str, step_bytes: u64) -> (Store, Topic, Arc<ManualClock>) {
        let clock = Arc::new(ManualClock::new(i64::from(u32::MAX)));
        let builder = Store::builder().vfs(Arc::new(vfs.clone())).clock(Arc::clone(&clock) as _);
        let builder = builder.upkeep(Upkeep::Manual).reads(ReadPath::Positional);
        let store = builder.compaction_step_bytes(step_bytes).open("/s").unwrap();
        let config = TopicConfig::default().cleanup_policy(CleanupPolicy::Compact).min_cleanable_dirty_ratio(0.0);
        let topic = store.create_topic(name, config.durability(Durability::Os).segment_bytes(2000)).unwrap();
        topic.index(0).unwrap().log.key_queue.set_waiting_max(5);
        assert!(!topic.contains("none").unwrap());
        (store, topic, clock)
    }

    fn append(topic: &Topic, records: usize) {
        (0..records).for_each(|n| drop(topic.append(Record::keyed(format!("k{}", n % 7), "v")).unwrap()));
    }

    #[test]
    fn a_key_that_is_there_all_the_time_is_found_by_every_thread_all_the_time() {
        for round in 0..4 {
            let (store, topic, _) = small(&FaultVfs::new(), "t", 2000);
            append(&topic, 7);
            let (left, wrong) = (AtomicUsize::new(2), AtomicUsize::new(0));
            std::thread::scope(|scope| {
                for _ in 0..2 {
                    scope.spawn(|| {
                        append(&topic, 1500);
                        left.fetch_sub(1, Ordering::Relaxed);
                    });
                }
                scope.spawn(|| {
                    while left.load(Ordering::Relaxed) > 0 {
                        assert!(store.tick().is_ok());
                    }
                });
                for n in 0.. {
                    let is_there = topic.contains(format!("k{}", n % 7)).unwrap();
                    let are_listed = n % 50 > 0 || topic.latest(0).unwrap().count() == 7;
                    wrong.fetch_add(usize::from(!is_there || !are_listed), Ordering::Relaxed);
                    if left.load(Ordering::Relaxed) == 0 {
                        break;
                    }
                }
            });
            assert_eq!(wrong.into_inner(), 0, "round {round}");
        }
    }

    /// It was made anew from the whole log then.
    #[test]
    fn what_cannot_be_read_is_left_for_a_while_and_the_table_stays() {
        let vfs = FaultVfs::new();
        let (store, topic, clock) = small(&vfs, "t", 1 << 20);
        append(&topic, 4);
        assert!(topic.contains("k0").unwrap());
        append(&topic, 20);
        vfs.inject(FaultPlan::new(Fault::Error(errno::EIO)).on(OpKind::Read).in_class("log").sticky());
        assert!(topic.get("k1").is_err());
        assert!(store.tick().is_err(), "it is told");
        let hits = vfs.faults_hit();
        assert!((0..5).all(|_| store.tick().unwrap().is_idle()), "and not told, nor tried, again and again");
        assert_eq!(vfs.faults_hit(), hits);
        clock.advance_ms(10_000);
        assert!(store.tick().unwrap().is_idle() && vfs.faults_hit() > hits, "it is tried again, and not told");
        assert_eq!(topic.key_index_stats(0).unwrap().map(|stats| stats.entries), Some(4 + 5));
        let waiting = || topic.key_index_stats(0).unwrap().map(|stats| stats.waiting);
        let rests = || (0..100).any(|_| store.tick().unwrap().is_idle());
        vfs.clear_faults();
        assert!(rests() && waiting() > Some(0), "it is left to look-ups");
        clock.advance_ms(10_000);
        assert!(rests() && waiting() == Some(0));

        append(&topic, 20);
        vfs.inject(FaultPlan::new(Fault::Error(errno::EIO)).on(OpKind::Read).in_class("log").sticky());
        assert!(store.tick().is_err());
        vfs.clear_faults();
        assert_eq!(topic.get("k1").unwrap().map(|record| record.offset().get()), Some(39));
        append(&topic, 20);
        assert!(rests() && waiting() == Some(0), "a look-up has read it: upkeep goes on at once");
    }

    #[test]
    fn hashes_are_taken_over_where_nothing_may_be_read_and_repeated_keys_wait() {
        let (_store, topic, _) = small(&FaultVfs::new(), "t", 300);
        let index = topic.index(0).unwrap();
        index.log.key_queue.set_waiting_max(1000);
        let step = |bytes: u64| {
            index.upkeep(&mut ReadBudget::of(bytes));
            let stats = topic.key_index_stats(0).unwrap().unwrap();
            (stats.entries, index.log.key_queue.is_behind())
        };
        append(&topic, 3);
        assert_eq!(step(0), (3, false));
        // Of more than sixteen records with a key twice the batch is read.
        let records: Vec<Record> = (0..20).map(|n| Record::keyed(format!("k{}", n % 7), "v")).collect();
        topic.append_all(&records, &AppendOptions::new()).unwrap();
        assert_eq!(step(0), (3, true));
        assert_eq!(step(0), (3, true));
        assert_eq!(step(1 << 20), (7, false));
    }

    #[test]
    fn compaction_is_told_nothing_by_an_index_that_is_behind() {
        let (_store, topic, _) = small(&FaultVfs::new(), "t", 300);
        let index = topic.index(0).unwrap();
        let told = || index.newest_records(0, usize::MAX).map(|newest| newest.places.len());
        append(&topic, 7);
        assert!(index.log.key_queue.is_behind());
        assert_eq!(told(), None);
        assert!(topic.contains("k0").unwrap());
        assert_eq!(told(), Some(7));
        append(&topic, 3);
        assert_eq!((index.log.key_queue.is_behind(), told()), (false, Some(10)));
    }

    /// Each began a segment, and so had the same place in it: a step read them all.
    #[test]
    fn batches_of_repeated_keys_that_begin_segments_are_read_within_the_budget() {
        let (_store, topic, _) = small(&FaultVfs::new(), "t", 300);
        let index = topic.index(0).unwrap();
        index.log.key_queue.set_waiting_max(1000);
        let records: Vec<Record> = (0..20).map(|n| Record::keyed(format!("k{}", n % 7), vec![b'v'; 60])).collect();
        (0..10).for_each(|_| drop(topic.append_all(&records, &AppendOptions::new()).unwrap()));
        assert_eq!(topic.partition(0).unwrap().stats().segments, 10, "one each");
        let mut budget = ReadBudget::of(2000);
        index.upkeep(&mut budget);
        assert!(index.log.key_queue.is_behind() && budget.read() < 4000, "{budget:?}");
    }

    /// The turns of topics and those of their indexes went up together, and only some of the indexes ever were the first.
    #[test]
    fn each_index_of_each_topic_is_the_first_at_times() {
        let vfs = FaultVfs::new();
        let store = Store::builder()
            .vfs(Arc::new(vfs.clone()))
            .upkeep(Upkeep::Manual)
            .compaction_step_bytes(100)
            .open("/s")
            .unwrap();
        let config =
            TopicConfig::default().cleanup_policy(CleanupPolicy::Compact).durability(Durability::Os).partitions(2);
        let topics = ["a", "b"].map(|name| store.create_topic(name, config.clone()).unwrap());
        let indexes: Vec<&KeyIndex> =
            topics.iter().flat_map(|topic| [topic.index(0).unwrap(), topic.index(1).unwrap()]).collect();
        for index in &indexes {
            index.log.key_queue.set_waiting_max(0);
            assert!(index.get(b"none").unwrap().is_none());
        }
        let mut firsts = [0; 4];
        for _ in 0..40 {
            for topic in &topics {
                for partition in topic.partitions() {
                    partition.append(Record::keyed("k", "v")).unwrap();
                }
            }
            let behind = || indexes.iter().map(|index| index.log.key_queue.is_behind()).collect::<Vec<_>>();
            assert_eq!(behind(), [true; 4]);
            // Enough for one.
            store.tick().unwrap();
            let first = behind().iter().position(|is_behind| !is_behind).unwrap();
            firsts[first] += 1;
            indexes.iter().for_each(|index| drop(index.get(b"k").unwrap()));
        }
        assert!(firsts.iter().all(|count| *count > 0), "{firsts:?}");
    }

    /// The first one by name once had all that may be read at a step.
    #[test]
    fn an_index_that_is_never_led_to_its_end_leaves_others_their_turn() {
        let vfs = FaultVfs::new();
        let (store, busy, _) = small(&vfs, "a", 300);
        let quiet = store.create_topic("b", TopicConfig::default().cleanup_policy(CleanupPolicy::Compact)).unwrap();
        let index = quiet.index(0).unwrap();
        index.log.key_queue.set_waiting_max(5);
        assert!(!quiet.contains("none").unwrap());
        append(&quiet, 40);
        for _ in 0..100 {
            append(&busy, 20);
            store.tick().unwrap();
        }
        assert!(busy.index(0).unwrap().log.key_queue.is_behind(), "the test is about that");
        assert!(!index.log.key_queue.is_behind());
    }

    /// Each of its steps looked whether a key had a newer record, and had the index catch up for that, whatever it took.
    #[test]
    fn a_pass_of_expiry_waits_for_an_index_that_is_behind_unless_it_keeps_files_that_are_gone() {
        let (_store, topic, _) = small(&FaultVfs::new(), "t", 300);
        let index = topic.index(0).unwrap();
        let records: Vec<Record> = (0..20_000).map(|n| Record::keyed(format!("{n}"), "v").timestamp_ms(1)).collect();
        records.chunks(100).for_each(|batch| drop(topic.append_all(batch, &AppendOptions::new()).unwrap()));
        assert!(topic.contains("7").unwrap());
        let now_ms = i64::from(u32::MAX);
        let expire = || index.expire(0, now_ms).ended;
        while expire() == 0 {}
        append(&topic, 20);
        assert_eq!((expire(), index.log.key_queue.is_behind()), (0, true));
        let has_pass = || !format!("{:?}", index.expiry.lock()).contains("pass: None");
        assert!(has_pass());
        assert!(topic.contains("k1").unwrap());
        assert!(expire() > 0 && has_pass());
        append(&topic, 20);
        topic.partition(0).unwrap().delete_records(1000).unwrap();
        assert_eq!((expire(), index.log.key_queue.is_behind(), has_pass()), (0, true, false));
        assert!(topic.contains("k1").unwrap());
        assert!(expire() > 0, "another one begins at once");
    }
}
