//! Into the key index: from the log, and from what appends have queued.

use std::sync::Arc;

use hashbrown::HashTable;

use super::making::{Made, ReadBudget};
use super::table::Place;
use super::{KeyIndex, LIMITS, READ_UNRESOLVED_MAX, Ready, State, TRIES, UNRESOLVED_MAX};
use crate::error::{Error, Result};
use crate::partition::key_entry::KeyEntry;
use crate::partition::peek::Peek;
use crate::partition::{Batch, ReadLevel, ReadOptions, Reader, SegmentSet, key_queue};
use crate::record::{BatchError, StoredRecord};
use crate::segment::batch_error::batch_error;
use crate::segment::cursor::Verify;

/// What became of what appends have queued.
pub(super) enum Taken {
    /// The table is whole up to this offset, and this set of segments holds all of it.
    All(i64, Arc<SegmentSet>),
    /// There is no room for all of it.
    NoRoom,
    /// The queue has ended before: the log has to be read.
    Outrun,
    /// As much was read as may be; the rest waits in the queue.
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
/// No more offsets than these wait under one hash.
const CHAIN_MAX: usize = 4;
/// Of a batch with more records than these only the newest of each key is taken: a key that comes again and again would be
/// compared again and again, each time by a walk through the batch. Where the hashes of one that was just appended show such a
/// key, the batch is read once instead.
const BATCH_RECORDS: i32 = 16;
/// So many of its keys are held at once.
const KEYS_AT_ONCE: usize = 1 << 14;

impl KeyIndex {
    /// The index with everything that was appended before this call; made, if nobody has asked yet.
    pub(super) fn ready<'a>(&self, state: &'a mut State) -> Result<&'a mut Ready> {
        for _ in 0..TRIES {
            if let State::Ready(ready) = state {
                if self.is_up_to_date(ready) {
                    break;
                }
                match self.take_over(ready, &mut ReadBudget::unlimited())? {
                    Taken::All(..) | Taken::Some => break,
                    Taken::NoRoom => self.give_up(state),
                    // The log itself tells the rest.
                    Taken::Outrun => self.forget(state),
                }
            }
            if matches!(state, State::Unused | State::Making(_))
                && matches!(self.make(state, &mut ReadBudget::unlimited(), true)?, Made::Outrun)
            {
                continue;
            }
            break;
        }
        match state {
            State::Ready(ready) => Ok(ready),
            State::TooLarge => Err(self.too_large()),
            State::Unused | State::Making(_) => {
                let what = "a key index while more is appended than it can follow; ask again";
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

    /// Whether some of the log has to be read for what was appended or decided since.
    pub(super) fn is_behind(&self, ready: &Ready) -> bool {
        self.decided_from(ready).is_some() || self.log.key_queue.is_behind()
    }

    /// Where the first transaction begins that was left out and is decided by now.
    #[inline]
    fn decided_from(&self, ready: &Ready) -> Option<i64> {
        ready.undecided_from.filter(|&from| self.log.last_stable_offset() > from)
    }

    /// Whether more was appended than anybody took over, so that the queue has ended.
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
                ready.undecided_from.get_or_insert(header.base_offset);
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
        // A key that comes again and again must not fill the table.
        if ready.unresolved.len() >= READ_UNRESOLVED_MAX {
            self.resolve(ready, set, usize::MAX)?;
        }
        Ok(true)
    }

    fn take_batch(&self, ready: &mut Ready, batch: &Batch, set: &SegmentSet) -> Result<bool> {
        let failed = |error: BatchError| {
            let segment = set.segments.get(set.index_of(batch.header().base_offset));
            let path = segment.map_or(self.log.directory.as_path(), |segment| segment.log().path());
            batch_error(path, batch.position, batch.header(), &error, "it is too large for the key index")
        };
        let mut peek = Peek::into(set);
        if batch.header().records_count <= BATCH_RECORDS {
            for view in batch.records() {
                let view = view.map_err(failed)?;
                let Some(key) = view.key() else { continue };
                let hash = key_queue::hash(&ready.secret, key);
                if !self.insert_at(ready, hash, (view.offset(), batch.position), &mut peek)? {
                    return Ok(false);
                }
            }
            return Ok(true);
        }
        let mut newest: HashTable<(u64, &[u8], i64)> = HashTable::new();
        let mut put = |ready: &mut Ready, newest: &mut HashTable<(u64, &[u8], i64)>| -> Result<bool> {
            for (hash, _, offset) in newest.drain() {
                if !self.insert_at(ready, hash, (offset, batch.position), &mut peek)? {
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

    /// Moves what appends have queued into the table, and reads what they did not, and what transactions that are decided by now
    /// had kept out of it, as long as the budget lasts. What was taken and finds no place there is in the log alone, so that the
    /// queue then ends. Keys are compared in the set that belongs to what was taken: in a newer one a record may be missing whose
    /// successor is still in the queue.
    pub(super) fn take_over(&self, ready: &mut Ready, budget: &mut ReadBudget) -> Result<Taken> {
        let Some(taken) = self.log.take_key_queue() else { return Ok(Taken::Outrun) };
        let read = match self.put(ready, &taken.gathered.keys, &taken.set) {
            Ok(true) => self.read_unread(ready, (taken.gathered.unread_from, taken.end), &taken.set, budget),
            Ok(false) => Ok(SomeRead::NoRoom),
            Err(error) => Err(error),
        };
        let waiting = ready.unresolved.len();
        if waiting > UNRESOLVED_MAX {
            // Without upkeep nobody else would. What cannot be read goes on waiting.
            self.resolve_some(ready, &taken.set, waiting / 2);
        }
        match read {
            Ok(SomeRead::All) => Ok(Taken::All(taken.end, taken.set)),
            Ok(SomeRead::UpTo(next)) => {
                self.log.key_queue.leave(next);
                Ok(Taken::Some)
            }
            Ok(SomeRead::NoRoom) => {
                self.log.key_queue.stop();
                Ok(Taken::NoRoom)
            }
            Err(error) => {
                self.log.key_queue.stop();
                Err(error)
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

    /// What one append brought is one run of entries with the same place.
    fn put(&self, ready: &mut Ready, appended: &[KeyEntry], set: &SegmentSet) -> Result<bool> {
        let mut peek = Peek::into(set);
        for run in appended.chunk_by(|one, next| one.position() == next.position()) {
            if !self.put_run(ready, run, &mut peek)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn put_run(&self, ready: &mut Ready, run: &[KeyEntry], peek: &mut Peek<'_>) -> Result<bool> {
        if run.len() > BATCH_RECORDS as usize
            && let [first, .., last] = run
            && has_one_twice(run)
        {
            let offset = |entry: &KeyEntry| ready.table.base() + entry.relative_offset().cast_signed();
            let range = (offset(first), offset(last) + 1);
            let read = self.read_some(ready, range, Some(peek.set()), &mut ReadBudget::unlimited());
            return read.map(|read| read != SomeRead::NoRoom);
        }
        for &entry in run {
            if !self.insert(ready, entry, peek)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn insert_at(
        &self,
        ready: &mut Ready,
        hash: u64,
        (offset, position): (i64, u64),
        peek: &mut Peek<'_>,
    ) -> Result<bool> {
        match ready.table.entry(hash, offset, position) {
            Ok(entry) => self.insert(ready, entry, peek),
            Err(super::table::OutOfRange) => Ok(false),
        }
    }

    #[inline]
    fn insert(&self, ready: &mut Ready, entry: KeyEntry, peek: &mut Peek<'_>) -> Result<bool> {
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
            others if others >= CHAIN_MAX => self.resolve_hash(ready, peek, entry.hash())?,
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

    /// Compares the keys of offsets that stand under one hash; of one key only the newest stays. Returns how many hashes
    /// were looked at. Where that fails the hash goes on waiting, and the others have their turn all the same.
    pub(super) fn resolve(&self, ready: &mut Ready, set: &SegmentSet, most: usize) -> Result<usize> {
        let (done, failed) = self.resolve_some(ready, set, most);
        failed.map_or(Ok(done), Err)
    }

    /// [`resolve`](Self::resolve), with what was done beside the first failure.
    pub(super) fn resolve_some(&self, ready: &mut Ready, set: &SegmentSet, most: usize) -> (usize, Option<Error>) {
        let (mut done, mut first_error) = (0, None);
        let mut peek = Peek::into(set);
        for _ in 0..most.min(ready.unresolved.len()) {
            let Some(hash) = ready.unresolved.pop_front() else { break };
            match self.resolve_hash(ready, &mut peek, hash) {
                Ok(()) => done += 1,
                Err(error) => {
                    ready.unresolved.push_back(hash);
                    first_error.get_or_insert(error);
                }
            }
        }
        if done > 0 && ready.unresolved.is_empty() {
            ready.unresolved.shrink_to_fit();
            // Less than before is never too much.
            self.count(ready, 0);
        }
        (done, first_error)
    }

    /// The set is no older than what was taken over last: what is not found in it is gone, and what took its place is in the
    /// table, or in the queue.
    fn resolve_hash(&self, ready: &mut Ready, peek: &mut Peek<'_>, hash: u64) -> Result<()> {
        let set = peek.set();
        let places_hold = ready.places.hold(set);
        let places = ready.table.places_of(hash);
        if places_hold && self.resolve_seen(ready, peek, hash, &places) {
            return Ok(());
        }
        let mut keys: Vec<StoredRecord> = Vec::new();
        for Place { offset, position } in places {
            let hint = position.filter(|_| places_hold);
            // Without a look at the checksum: a damaged key is taken for another one, and stays.
            let found = self.log.record_near(set, offset, hint, (Verify::Trusted, &LIMITS))?;
            match found.map(|found| found.record) {
                Some(record) if keys.iter().all(|newer| newer.key() != record.key()) => keys.push(record),
                // Superseded, or gone with the log start or by compaction.
                _ => ready.table.remove(hash, offset),
            }
        }
        Ok(())
    }

    /// [`resolve_hash`](Self::resolve_hash) where all records can be seen at once. False if nothing was done.
    fn resolve_seen(&self, ready: &mut Ready, peek: &mut Peek<'_>, hash: u64, places: &[Place]) -> bool {
        let start = self.log.log_start();
        let place = |place: &Place| Some((place.offset, u64::from(place.position.filter(|_| place.offset >= start)?)));
        let Some(seen) = places.iter().map(place).collect::<Option<Vec<_>>>() else { return false };
        let Some(keys) = peek.keys(&seen) else { return false };
        for (nth, (key, place)) in keys.iter().zip(places).enumerate() {
            if keys.iter().take(nth).any(|newer| newer == key) {
                ready.table.remove(hash, place.offset);
            }
        }
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
    use super::*;
    use crate::io::FaultVfs;
    use crate::key_index::Budget;
    use crate::partition::append_options::AppendOptions;
    use crate::record::{Compression, Record};
    use crate::segment;
    use crate::store::{Store, Upkeep};
    use crate::topic::{CleanupPolicy, Topic, TopicConfig};

    /// How a log of "a", "b" and "a" comes to be.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Shape {
        /// A batch each, in one segment.
        Batches,
        /// One batch.
        Batch,
        /// One batch that has to be decompressed.
        #[cfg_attr(not(feature = "lz4"), allow(dead_code, reason = "nothing can be compressed"))]
        Compressed,
        /// A segment each.
        Rolled,
        /// A segment each, the first two with a seal.
        Sealed,
        /// As `Batches`; then the log begins behind the first.
        StartRaised,
    }

    fn topic(store: &Store, shape: Shape) -> Topic {
        let config = TopicConfig::default().cleanup_policy(CleanupPolicy::Compact);
        let config = match shape {
            Shape::Rolled | Shape::Sealed => config.segment_bytes(256),
            #[cfg(feature = "lz4")]
            Shape::Compressed => config.compression(Compression::Lz4),
            _ => config,
        };
        let topic = store.create_topic("t", config).unwrap();
        let records = ["a", "b", "a"].map(|key| Record::keyed(key, vec![b'v'; 100]));
        if matches!(shape, Shape::Batch | Shape::Compressed) {
            topic.partition(0).unwrap().append_batch_with(&records, &AppendOptions::new()).unwrap();
        } else {
            records.into_iter().for_each(|record| drop(topic.append(record).unwrap()));
        }
        topic
    }

    /// What a shape is to be about, so that no row checks another one in its place.
    fn check_shape(log: &crate::partition::Log, shape: Shape) {
        let segments = log.snapshot().segments.clone();
        let sealed = segments.iter().filter(|segment| segment.state() == segment::State::Sealed).count();
        let batches: u64 = segments.iter().map(|segment| segment.batches()).sum();
        let first = segments[0].first_header().unwrap().unwrap();
        let is_compressed = first.compression() != Compression::None;
        let expected = match shape {
            Shape::Batches | Shape::StartRaised => (1, 0, 3, false),
            Shape::Batch => (1, 0, 1, false),
            Shape::Compressed => (1, 0, 1, true),
            Shape::Rolled => (3, 0, 3, false),
            Shape::Sealed => (3, 2, 3, false),
        };
        assert_eq!((segments.len(), sealed, batches, is_compressed), expected, "{shape:?}");
    }

    /// The offsets that stay under the hash of "a", with those of other records put there as well. Whether their batches' places
    /// are known decides, beside the shape, whether the keys are compared as they are seen.
    fn check(shape: Shape, others: &[i64], know_places: bool, (is_seen, stay): (bool, &[i64])) {
        let what = format!("{shape:?}, {others:?}, {know_places}");
        // The simulated disk can be mapped.
        let store = Store::builder().vfs(Arc::new(FaultVfs::new())).upkeep(Upkeep::Manual).open("/s").unwrap();
        let partition = topic(&store, shape).partition(0).unwrap();
        let log = Arc::clone(&partition.log);
        if shape == Shape::Sealed {
            while log.upkeep(&mut || {}).unwrap().sealed.is_some() {}
        }
        check_shape(&log, shape);
        let index = KeyIndex::new(Arc::clone(&log), Arc::new(Budget::new(1 << 20)));
        assert_eq!(index.get(b"a").unwrap().unwrap().offset().get(), 2);

        let mut state = index.state.lock();
        let State::Ready(ready) = &mut *state else { panic!("it was used") };
        let set = log.snapshot();
        let position =
            |offset| log.record_near(&set, offset, None, (Verify::Always, &LIMITS)).unwrap().unwrap().position;
        let all: Vec<(i64, u64)> = [2, 1, 0].map(|offset| (offset, position(offset))).to_vec();
        let hash = key_queue::hash(&ready.secret, b"a");
        for &offset in others {
            let position = if know_places { position(offset) } else { u64::MAX };
            let entry = ready.table.entry(hash, offset, position).unwrap();
            ready.table.insert(entry);
        }
        if shape == Shape::StartRaised {
            partition.delete_records(1).unwrap();
        }
        let mut peek = Peek::into(&set);
        let keys: Option<Vec<&[u8]>> = (shape != Shape::Compressed).then(|| vec![b"a".as_slice(), b"b", b"a"]);
        assert_eq!(peek.keys(&all), keys, "{what}");
        assert!(peek.keys(&[(0, 1)]).is_none() && peek.keys(&[(0, 1 << 40)]).is_none(), "no batch begins there");
        assert!(ready.places.hold(&set));
        let places = ready.table.places_of(hash);
        assert_eq!(index.resolve_seen(ready, &mut peek, hash, &places), is_seen, "{what}");
        if !is_seen {
            index.resolve_hash(ready, &mut peek, hash).unwrap();
        }
        let left: Vec<i64> = ready.table.places_of(hash).iter().map(|place| place.offset).collect();
        assert_eq!(left, stay, "{what}");
        drop(state);
        assert_eq!(index.get(b"a").unwrap().unwrap().offset().get(), 2);
    }

    #[test]
    fn of_one_key_the_newest_stays_and_of_two_that_collide_both() {
        for know_places in [true, false] {
            for shape in [Shape::Batches, Shape::Batch, Shape::Rolled, Shape::Sealed] {
                check(shape, &[0], know_places, (know_places, &[2]));
                check(shape, &[1], know_places, (know_places, &[2, 1]));
                check(shape, &[1, 0], know_places, (know_places, &[2, 1]));
            }
        }
    }

    #[cfg(feature = "lz4")]
    #[test]
    fn keys_that_are_compressed_are_compared_too() {
        for know_places in [true, false] {
            check(Shape::Compressed, &[0], know_places, (false, &[2]));
            check(Shape::Compressed, &[1, 0], know_places, (false, &[2, 1]));
        }
    }

    #[test]
    fn what_lies_before_the_log_start_stays_nowhere() {
        for know_places in [true, false] {
            check(Shape::StartRaised, &[0], know_places, (false, &[2]));
            check(Shape::StartRaised, &[1], know_places, (false, &[2, 1]));
            check(Shape::StartRaised, &[1, 0], know_places, (false, &[2, 1]));
        }
    }

    /// What an index does that has room for three keys in its queue, read in steps of a few batches, beside a table that is kept
    /// in a map. Returns how often it was behind, and how often upkeep had to leave some of the log to its next step.
    fn check_behind(seed: u64) -> (usize, usize) {
        let mut state = seed;
        let mut below = |end: usize| {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            (state >> 33) as usize % end
        };
        let store = Store::builder().vfs(Arc::new(FaultVfs::new())).upkeep(Upkeep::Manual).open("/s").unwrap();
        let config = TopicConfig::default().cleanup_policy(CleanupPolicy::Compact).min_cleanable_dirty_ratio(0.0);
        let topic = store.create_topic("t", config.segment_bytes(2000).delete_retention_ms(0)).unwrap();
        let index = topic.index(0).unwrap();
        index.log.key_queue.set_waiting_max(3);
        let mut table = std::collections::BTreeMap::new();
        let (mut behind, mut left) = (0, 0);
        for step in 0..200 {
            let what = format!("seed {seed}, step {step}");
            match below(10) {
                0..6 => {
                    // Of more than sixteen records only the newest of each key are taken.
                    let count = [1, 1, 3, 20][below(4)];
                    let records: Vec<Record> = (0..count)
                        .map(|nth| {
                            let (key, value) = (format!("k{}", below(5)), format!("{step} {nth}"));
                            let is_tombstone = below(4) == 0;
                            table.insert(key.clone(), (!is_tombstone).then(|| value.clone()));
                            if is_tombstone { Record::tombstone(key) } else { Record::keyed(key, value) }
                        })
                        .collect();
                    topic.append_all(&records, &AppendOptions::new()).unwrap();
                }
                6 | 7 => {
                    let key = format!("k{}", below(6));
                    behind += usize::from(index.log.key_queue.is_behind());
                    let found = topic.get(&key).unwrap().map(|record| record.value().unwrap().to_vec());
                    let expected = table.get(&key).cloned().flatten().map(String::into_bytes);
                    assert_eq!(found, expected, "{what}: {key}");
                }
                8 => {
                    index.upkeep(&mut ReadBudget::of(300));
                    left += usize::from(index.log.key_queue.is_behind());
                }
                _ if below(3) == 0 => assert!(store.tick().is_ok(), "{what}"),
                _ => {
                    let record = |record: crate::error::Result<StoredRecord>| {
                        let record = record.unwrap();
                        let text = |bytes: Option<&[u8]>| String::from_utf8(bytes.unwrap().to_vec()).unwrap();
                        (text(record.key()), text(record.value()))
                    };
                    let listed: std::collections::BTreeMap<_, _> = topic.latest(0).unwrap().map(record).collect();
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
            Err(_) => (0..150).collect(),
        };
        let seen: Vec<(usize, usize)> = seeds.into_iter().map(check_behind).collect();
        let (behind, left) = seen.iter().fold((0, 0), |sum, seen| (sum.0 + seen.0, sum.1 + seen.1));
        assert!(behind > 0 && left > 0, "{behind} and {left} tell nothing");
    }
}
