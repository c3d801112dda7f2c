//! Keys of offsets that stand under one hash are compared; of one key only the newest stays.
//!
//! Where batches are small and in a map, keys are seen where they are ([`Peek`]). All others are read for many hashes together,
//! in the order of their offsets, so that a batch with many keys is read, decompressed and walked once for all of them.

use std::cmp::Reverse;
use std::ops::Range;

use super::table::{Place, Table};
use super::{KeyIndex, LIMITS, Ready};
use crate::error::{Error, Result};
use crate::partition::SegmentSet;
use crate::partition::peek::Peek;
use crate::record::StoredRecord;
use crate::segment::cursor::Verify;

/// So many hashes are looked at together.
const TOGETHER: usize = 1 << 14;
/// Keys that are held at once take no more bytes.
const KEY_BYTES_MAX: usize = 8 << 20;
/// Without a look at the checksum: a damaged key is taken for another one, and stays.
const VERIFY: Verify = Verify::Trusted;

/// What a comparison came to.
#[derive(Debug, Default)]
pub(super) struct Compared {
    /// Hashes of which not all keys could be read.
    failed: Vec<u64>,
    first_error: Option<Error>,
}

/// A record whose key is wanted: its place, and the number of its hash.
type Wanted = (Place, usize);

/// Keys of many records, in bytes that are held for all of them.
#[derive(Debug, Default)]
struct Keys {
    bytes: Vec<u8>,
    read: Vec<Read>,
    first_error: Option<Error>,
}

#[derive(Debug)]
struct Read {
    nth: usize,
    offset: i64,
    found: Found,
}

#[derive(Debug)]
enum Found {
    /// Where among the bytes it is.
    Key(Range<usize>),
    /// There is no such record any more.
    Gone,
    Failed,
}

impl KeyIndex {
    /// Compares the keys of hashes that wait for it, at most so many. Returns how many were looked at. Where that fails the hash
    /// goes on waiting, and the others have their turn all the same.
    pub(super) fn resolve(&self, ready: &mut Ready, set: &SegmentSet, most: usize) -> Result<usize> {
        let (done, failed) = self.resolve_some(ready, set, most);
        failed.map_or(Ok(done), Err)
    }

    /// [`resolve`](Self::resolve), with what was done beside the first failure.
    pub(super) fn resolve_some(&self, ready: &mut Ready, set: &SegmentSet, most: usize) -> (usize, Option<Error>) {
        let (mut done, mut first_error) = (0, None);
        let mut left = most.min(ready.unresolved.len());
        while left > 0 {
            let hashes: Vec<u64> = ready.unresolved.drain(..left.min(TOGETHER)).collect();
            left -= hashes.len();
            let compared = self.compare(ready, set, &hashes);
            done += hashes.len() - compared.failed.len();
            ready.unresolved.extend(compared.failed);
            first_error = first_error.or(compared.first_error);
        }
        if done > 0 && ready.unresolved.is_empty() {
            ready.unresolved.shrink_to_fit();
            // Less than before is never too much.
            self.count(ready, 0);
        }
        (done, first_error)
    }

    /// Compares the keys of some hashes. The set is no older than what was taken over last: what is not found in it is gone, and
    /// what took its place is in the table, or in the queue.
    pub(super) fn compare(&self, ready: &mut Ready, set: &SegmentSet, hashes: &[u64]) -> Compared {
        let places_hold = ready.places.hold(set);
        let mut peek = Peek::into(set);
        let (mut wanted, mut unseen): (Vec<Wanted>, Vec<u64>) = (Vec::new(), Vec::new());
        for &hash in hashes {
            let mut places = ready.table.places_of(hash);
            if places_hold && self.compare_seen(ready, &mut peek, hash, &places) {
                continue;
            }
            if !places_hold {
                places.iter_mut().for_each(|place| place.position = None);
            }
            wanted.extend(places.into_iter().map(|place| (place, unseen.len())));
            unseen.push(hash);
        }
        let mut compared = Compared::default();
        if !unseen.is_empty() {
            self.compare_read(ready, set, (&unseen, wanted), &mut compared);
        }
        compared
    }

    /// [`compare`](Self::compare) of one hash, where all its records can be seen at once. False if nothing was done.
    fn compare_seen(&self, ready: &mut Ready, peek: &mut Peek<'_>, hash: u64, places: &[Place]) -> bool {
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

    /// [`compare`](Self::compare) of hashes whose records have to be read.
    fn compare_read(
        &self,
        ready: &mut Ready,
        set: &SegmentSet,
        (hashes, mut wanted): (&[u64], Vec<Wanted>),
        compared: &mut Compared,
    ) {
        wanted.sort_unstable_by_key(|(place, _)| place.offset);
        let Some(mut keys) = self.read_keys(set, &wanted) else {
            if let &[hash] = hashes {
                if let Err(error) = self.compare_alone(ready, set, hash, &wanted) {
                    compared.failed.push(hash);
                    compared.first_error.get_or_insert(error);
                }
                return;
            }
            let middle = hashes.len() / 2;
            let (first, second) = hashes.split_at(middle);
            let (of_first, of_second): (Vec<Wanted>, Vec<Wanted>) =
                wanted.into_iter().partition(|(_, nth)| *nth < middle);
            self.compare_read(ready, set, (first, of_first), compared);
            let of_second = of_second.into_iter().map(|(place, nth)| (place, nth - middle)).collect();
            return self.compare_read(ready, set, (second, of_second), compared);
        };
        keys.read.sort_unstable_by_key(|read| (read.nth, Reverse(read.offset)));
        for reads in keys.read.chunk_by(|one, next| one.nth == next.nth) {
            let Some(&hash) = reads.first().and_then(|first| hashes.get(first.nth)) else { continue };
            if reads.iter().any(|read| matches!(read.found, Found::Failed)) {
                compared.failed.push(hash);
            }
            keep_newest(&mut ready.table, hash, reads, &keys.bytes);
        }
        compared.first_error = compared.first_error.take().or(keys.first_error);
    }

    /// The keys of records, in the order of their offsets. `None` if they are too large to be held together.
    fn read_keys(&self, set: &SegmentSet, wanted: &[Wanted]) -> Option<Keys> {
        let mut keys = Keys::default();
        let mut batch = None;
        for &(Place { offset, position }, nth) in wanted {
            let found = match self.log.record_further_on(set, &mut batch, (offset, position), (VERIFY, &LIMITS)) {
                Ok(found) => match found.and_then(|(_, view)| view.key()) {
                    Some(key) => {
                        let from = keys.bytes.len();
                        if key.len() > KEY_BYTES_MAX - from {
                            return None;
                        }
                        keys.bytes.extend_from_slice(key);
                        Found::Key(from..keys.bytes.len())
                    }
                    None => Found::Gone,
                },
                Err(error) => {
                    keys.first_error.get_or_insert(error);
                    Found::Failed
                }
            };
            keys.read.push(Read { nth, offset, found });
        }
        Some(keys)
    }

    /// [`compare`](Self::compare) of one hash, however large its keys are. Its records come in the order of their offsets.
    fn compare_alone(&self, ready: &mut Ready, set: &SegmentSet, hash: u64, wanted: &[Wanted]) -> Result<()> {
        let mut keys: Vec<StoredRecord> = Vec::new();
        let mut first_error = None;
        // The newest first.
        for &(Place { offset, position }, _) in wanted.iter().rev() {
            match self.log.record_near(set, offset, position, (VERIFY, &LIMITS)) {
                Ok(Some(found)) if keys.iter().all(|newer| newer.key() != found.record.key()) => {
                    keys.push(found.record)
                }
                Ok(_) => ready.table.remove(hash, offset),
                Err(error) => first_error = first_error.or(Some(error)),
            }
        }
        first_error.map_or(Ok(()), Err)
    }
}

/// Takes out what is superseded, or gone with the log start or by compaction. The newest comes first. What could not be read stays,
/// and takes nothing's place.
fn keep_newest(table: &mut Table, hash: u64, reads: &[Read], bytes: &[u8]) {
    let mut newer: Vec<&[u8]> = Vec::new();
    for read in reads {
        let key = match &read.found {
            Found::Key(range) => bytes.get(range.clone()),
            Found::Gone => None,
            Found::Failed => continue,
        };
        match key {
            Some(key) if !newer.contains(&key) => newer.push(key),
            _ => table.remove(hash, read.offset),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::io::{Fault, FaultPlan, FaultVfs, OpKind, OpenMode, Vfs as _, errno};
    use crate::key_index::{Budget, State};
    use crate::partition::append_options::AppendOptions;
    use crate::partition::key_queue;
    use crate::record::{Compression, Record};
    use crate::segment;
    use crate::segment::log_file::ReadPath;
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
        assert_eq!(index.compare_seen(ready, &mut peek, hash, &places), is_seen, "{what}");
        if !is_seen {
            assert!(index.compare(ready, &set, &[hash]).first_error.is_none());
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

    const KEYS: usize = 80;

    /// A log of some keys, twice each, in batches of so many records, that is read positionally; of each key the older record is
    /// still in the table.
    fn check_many(
        config: TopicConfig,
        key_bytes: usize,
        batch: usize,
        check: impl FnOnce(&KeyIndex, &mut Ready, &FaultVfs),
    ) {
        let vfs = FaultVfs::new();
        let builder = Store::builder().vfs(Arc::new(vfs.clone())).reads(ReadPath::Positional);
        let store = builder.upkeep(Upkeep::Manual).open("/s").unwrap();
        let config = config.cleanup_policy(CleanupPolicy::Compact).batch_bytes_max(8 << 20);
        let topic = store.create_topic("t", config).unwrap();
        assert!(!topic.contains("none").unwrap(), "in use from here on");
        for _ in 0..2 {
            let record = |n: usize| {
                let key = [vec![b'k'; key_bytes - 2], format!("{n:02}").into_bytes()].concat();
                Record::keyed(key, "v")
            };
            let records: Vec<Record> = (0..KEYS).map(record).collect();
            records.chunks(batch).for_each(|batch| drop(topic.append_all(batch, &AppendOptions::new()).unwrap()));
        }
        let index = topic.index(0).unwrap();
        let mut state = index.state.lock();
        let ready = index.ready(&mut state).unwrap();
        assert_eq!((ready.table.len(), ready.unresolved.len()), (2 * KEYS, KEYS));
        check(index, ready, &vfs);
    }

    fn offsets(ready: &Ready) -> Vec<i64> {
        let mut offsets: Vec<i64> = ready.table.iter().map(|(_, place)| place.offset).collect();
        offsets.sort_unstable();
        offsets
    }

    /// The second time that each key comes.
    const NEWEST: Range<i64> = KEYS as i64..2 * KEYS as i64;

    /// How often the log is read until all keys are compared.
    fn reads(config: TopicConfig, key_bytes: usize, batch: usize) -> u64 {
        let mut reads = 0;
        check_many(config, key_bytes, batch, |index, ready, vfs| {
            let calls = || vfs.sites_seen().get(&(OpKind::Read, "log".to_owned())).map_or(0, |site| site.calls);
            let before = calls();
            index.resolve(ready, &index.log.snapshot(), usize::MAX).unwrap();
            assert_eq!((offsets(ready), ready.unresolved.len()), (NEWEST.collect(), 0));
            reads = calls() - before;
        });
        reads
    }

    #[test]
    fn a_batch_with_many_keys_is_read_once_for_all_of_them() {
        let of_one = reads(TopicConfig::default(), 4, 80);
        assert!(of_one <= 8, "{of_one}");
        let of_each = reads(TopicConfig::default(), 4, 1);
        assert!(of_each >= 160, "{of_each}");
        #[cfg(feature = "lz4")]
        assert_eq!(reads(TopicConfig::default().compression(Compression::Lz4), 4, 80), of_one);
    }

    /// 9.6 MB of keys, of which 8 MiB are held.
    #[test]
    fn keys_that_are_too_large_to_be_held_together_are_compared_in_parts() {
        assert!(reads(TopicConfig::default(), 60_000, 20) > 0);
    }

    /// The older one stayed, as they came in the order of their offsets.
    #[test]
    fn of_a_hash_that_is_compared_alone_the_newest_stays_too() {
        check_many(TopicConfig::default(), 4, 20, |index, ready, _| {
            let set = index.log.snapshot();
            for hash in ready.unresolved.clone() {
                let rising = ready.table.places_of(hash).into_iter().rev().map(|place| (place, 0));
                index.compare_alone(ready, &set, hash, &rising.collect::<Vec<_>>()).unwrap();
            }
            assert_eq!(offsets(ready), NEWEST.collect::<Vec<_>>());
        });
    }

    #[test]
    fn a_key_that_cannot_be_read_waits_and_the_others_have_their_turn() {
        check_many(TopicConfig::default(), 4, 20, |index, ready, vfs| {
            let set = index.log.snapshot();
            // By the place that was noted, by the index, and from the segment's start, twice each.
            for call in 1..=8 {
                vfs.inject(FaultPlan::new(Fault::Error(errno::EIO)).on(OpKind::Read).in_class("log").at_call(call));
            }
            let (done, failed) = index.resolve_some(ready, &set, usize::MAX);
            assert_eq!(vfs.faults_hit(), 8);
            assert_eq!((done, ready.unresolved.len(), ready.table.len()), (KEYS - 1, 1, KEYS + 1));
            assert!(failed.is_some_and(|error| error.to_string().contains("os error 5")));
            index.resolve(ready, &set, usize::MAX).unwrap();
            assert_eq!((offsets(ready), ready.unresolved.len()), (NEWEST.collect(), 0));
        });
    }

    /// Those behind it in its batch were once taken for gone, and older records of their keys for the newest.
    #[test]
    fn a_record_that_is_malformed_takes_no_other_with_it() {
        check_many(TopicConfig::default(), 4, 80, |index, ready, vfs| {
            let set = index.log.snapshot();
            let log = set.segments[0].log();
            let bytes_of_batch = log.published() / 2;
            let file = vfs.open(log.path(), OpenMode::Write).unwrap();
            // The length of some record in the second batch.
            file.write_at(&[0xff; 4], bytes_of_batch + bytes_of_batch / 2).unwrap();
            let (done, failed) = index.resolve_some(ready, &set, usize::MAX);
            assert!(done > 0 && done < KEYS && failed.is_some_and(|error| matches!(error, Error::Corrupt { .. })));
            let stay = offsets(ready);
            let mut newest = NEWEST;
            assert!(newest.all(|offset| stay.contains(&offset)));
            assert_eq!(stay.len(), 2 * KEYS - done);
        });
    }
}
