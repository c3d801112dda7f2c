//! The key index of one partition: from a key to its newest record.
//!
//! A table in memory leads from the hash of a key to offsets, and to where their batches are; the record there is read and
//! its key compared, so that no hash and no place is ever trusted. Appends put their hashes into a queue
//! ([`crate::partition::key_queue`]) and do nothing else for it; whoever uses the index takes them over ([`feed`]), and reads in
//! the log what the queue had no room for. Offsets of one key that a newer one supersedes are taken out of the table by upkeep,
//! or by whoever uses it once too many wait. The table is kept
//! in a file at close and caught up from the log: by upkeep, or by its first use ([`making`]). It tells compaction which
//! records are the newest ([`newest_records`]). It knows partitions. It does not know topics, nor what a value means.

mod compare;
mod counts;
mod expiring;
pub(crate) mod expiry;
mod feed;
mod latest;
pub(crate) mod making;
mod newest_records;
mod places;
mod shelf;
pub(crate) mod snapshot;
pub(crate) mod table;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::ids::TopicPartition;
use crate::partition::Log;
use crate::partition::key_queue::{self, HashKey};
use crate::record::{DecodeLimits, StoredRecord};
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

pub use self::counts::{KeyCounts, RecordCount};
pub use self::latest::Latest;

use self::expiring::Expiry;
use self::feed::Taken;
use self::making::{Making, ReadBudget};
use self::places::Places;
use self::table::Table;

/// Memory that the indexes of a store may take together.
#[derive(Debug)]
pub(crate) struct Budget {
    bytes_max: usize,
    taken: AtomicUsize,
}

impl Budget {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self { bytes_max, taken: AtomicUsize::new(0) }
    }

    /// Bytes that are taken now.
    pub(crate) fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }

    /// Exchanges what one index has taken; false, and nothing changes, if it is too much.
    fn exchange(&self, had: usize, wants: usize) -> bool {
        let change = |taken: usize| {
            let next = taken.saturating_sub(had).saturating_add(wants);
            (wants <= had || next <= self.bytes_max).then_some(next)
        };
        self.taken.fetch_update(Ordering::AcqRel, Ordering::Acquire, change).is_ok()
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct KeyIndex {
    log: Arc<Log>,
    budget: Arc<Budget>,
    state: Mutex<State>,
    /// Upkeep is to make it.
    is_expected: AtomicBool,
    /// Upkeep could not make it: that is left to look-ups.
    is_left: AtomicBool,
    expiry: Mutex<Expiry>,
    /// The failure of upkeep that was told of last.
    told: Mutex<Option<String>>,
    notices: Mutex<Notices>,
}

/// What has become of an index since somebody asked last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Notices {
    /// It was made: its entries, and the bytes of memory that they take.
    pub(crate) made: Option<(usize, usize)>,
    /// It would have taken too much memory.
    pub(crate) given_up: bool,
}

/// What a step of upkeep came to.
#[derive(Debug, Default)]
pub(crate) struct Looked {
    /// Records that it looked at.
    pub(crate) at: usize,
    /// Keys that it ended.
    pub(crate) ended: usize,
    /// What failed; the rest was done all the same.
    pub(crate) failed: Option<Error>,
}

#[derive(Debug, Default)]
enum State {
    /// Nobody has asked yet.
    #[default]
    Unused,
    Making(Box<Making>),
    Ready(Box<Ready>),
    /// It would have taken more memory than there is. Until the store is reopened nobody tries again.
    TooLarge,
}

impl State {
    /// Bytes that are counted in the budget for it.
    fn counted(&self) -> usize {
        match self {
            State::Ready(ready) => ready.counted,
            State::Making(making) => making.counted(),
            State::Unused | State::TooLarge => 0,
        }
    }
}

#[derive(Debug)]
struct Ready {
    secret: HashKey,
    table: Table,
    /// Hashes with more than one offset, each once per offset that came to an older one.
    unresolved: VecDeque<u64>,
    /// Those under which many have come to stand: what is there is walked by every look-up and insertion.
    crowded: Vec<u64>,
    /// Upkeep could not read what it is behind by: that is left to look-ups until then, by the monotonic clock.
    left_until: Option<Duration>,
    /// Where batches are known to be.
    places: Places,
    /// The first record that was left out because its transaction was not decided.
    undecided_from: Option<i64>,
    /// Bytes counted in the budget.
    counted: usize,
    /// Position of the file, -1 if there is none.
    saved: i64,
    /// What the last count came to.
    counts: Option<KeyCounts>,
}

/// What the key index of one partition holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeyIndexStats {
    /// Entries: one for each key whose newest record is in the log, tombstones included, and one more for each that waits.
    pub entries: usize,
    /// Appends whose key was not yet compared with that of an older record; those that have to be read in the log count as one or two.
    /// While this is 0, entries are exact.
    pub waiting: usize,
    /// Bytes of memory, as counted in `key_index_memory_bytes`.
    pub memory_bytes: usize,
    /// Segments made by compaction that upkeep has still to read for the places of their records. Until then look-ups in them
    /// take longer, and deleted keys keep their entries.
    pub unread_segments: usize,
    /// What [`Topic::count_keys`](crate::Topic::count_keys) found last; it is exact for its position.
    pub counts: Option<KeyCounts>,
}

/// How often a use of the index begins anew because something was ahead of it.
const TRIES: usize = 4;
/// How often one look-up begins anew because segments were exchanged under it.
const LOOKS: usize = 100;
/// Once more offsets than these wait for a comparison, whoever takes others over makes some.
const UNRESOLVED_MAX: usize = 1 << 20;
/// The same where the log is read: so many, and all are made.
const READ_UNRESOLVED_MAX: usize = 1 << 16;
/// So long upkeep leaves to look-ups what it could not read.
const AGAIN_AFTER: Duration = Duration::from_secs(10);
/// A close reads on in the log by no more than this for an index that is behind; what it compares comes on top.
const CLOSE_READ_BYTES: u64 = 64 << 20;
/// How many records one step of upkeep looks at, to compare keys and to end them.
const STEP: usize = 4096;
/// What a batch may become in memory when it is decompressed, at every read that is made for the index.
const LIMITS: DecodeLimits = DecodeLimits { decompressed_bytes_max: 64 << 20 };

impl KeyIndex {
    pub(crate) fn new(log: Arc<Log>, budget: Arc<Budget>) -> Self {
        Self {
            log,
            budget,
            state: Mutex::new(State::Unused),
            is_expected: AtomicBool::new(false),
            is_left: AtomicBool::new(false),
            expiry: Mutex::new(Expiry::default()),
            told: Mutex::default(),
            notices: Mutex::default(),
        }
    }

    pub(crate) fn partition(&self) -> &TopicPartition {
        &self.log.id
    }

    /// Lets go of what it knows, to be made anew.
    fn forget(&self, state: &mut State) {
        self.budget.exchange(state.counted(), 0);
        *state = State::Unused;
        self.expect_use();
    }

    /// What has become of it since the last call.
    pub(crate) fn take_notices(&self) -> Notices {
        std::mem::take(&mut self.notices.lock())
    }

    /// The newest record of a key, `None` if there is none or it is a tombstone.
    pub(crate) fn get(&self, key: &[u8]) -> Result<Option<StoredRecord>> {
        self.log.check_open()?;
        if let Some(found) = self.get_at_once(key) {
            return Ok(found);
        }
        for _ in 0..LOOKS {
            let mut state = self.state.lock();
            // Before the table is asked: if this is still the set afterwards, both belong together. Behind the lock, so that
            // it is not old by then.
            let set = self.log.snapshot();
            let ready = self.ready(&mut state)?;
            let hash = key_queue::hash(&ready.secret, key);
            let Some((newest, is_only)) = ready.table.newest(hash) else { return Ok(None) };
            let others = if is_only { Vec::new() } else { ready.table.places_of(hash) };
            let places_hold = ready.places.hold(&set);
            drop(state);
            let mut places = [newest].into_iter().chain(others.into_iter().skip(1));
            loop {
                let Some(place) = places.next() else { return Ok(None) };
                let hint = place.position.filter(|_| places_hold);
                let how = (self.log.env.verify, &LIMITS);
                let Some(found) = self.log.record_near(&set, place.offset, hint, how)? else {
                    // It lies in a segment that the set does not have yet, or was superseded and compacted away since the
                    // table was asked; or it is gone, with nothing in its place.
                    if Arc::ptr_eq(&set, &self.log.snapshot()) {
                        continue;
                    }
                    break;
                };
                if found.record.key() != Some(key) {
                    continue;
                }
                if hint.map(u64::from) != Some(found.position) {
                    self.note_place(hash, place.offset, found.position, set.replacements);
                }
                return Ok(self.live(found.record));
            }
        }
        let what = "a look-up while segments are exchanged at every try; ask again";
        Err(Error::Timeout { what: format!("{}: {what}", self.log.id) })
    }

    /// The answer where everything is as it is most often: nothing waits to be taken over, one record alone has the hash, and it is
    /// in a map. Shares nothing that others count references of but that map.
    #[inline]
    fn get_at_once(&self, key: &[u8]) -> Option<Option<StoredRecord>> {
        let state = self.state.lock();
        let State::Ready(ready) = &*state else { return None };
        if !self.is_up_to_date(ready) {
            return None;
        }
        let Some((newest, is_only)) = ready.table.newest(key_queue::hash(&ready.secret, key)) else {
            return Some(None);
        };
        let position = newest.position.filter(|_| is_only)?;
        let replacements = ready.places.replacements()?;
        drop(state);
        // What is found there is the answer, whatever was appended or compacted since the table was asked. What is not may have
        // been compacted away.
        let record = self.log.record_in_map(newest.offset, (position, replacements), &LIMITS)?;
        (record.key() == Some(key)).then(|| self.live(record))
    }

    fn live(&self, record: StoredRecord) -> Option<StoredRecord> {
        let is_live = !record.is_tombstone() && !self.log.has_expired(&record);
        is_live.then_some(record)
    }

    /// Notes where a batch was found, unless segments were exchanged meanwhile.
    #[cold]
    fn note_place(&self, hash: u64, offset: i64, position: u64, replacements: u64) {
        // A hint that is not noted is found again: nobody waits for it.
        let Some(mut state) = self.state.try_lock() else { return };
        if let State::Ready(ready) = &mut *state
            && ready.places.hold_for(replacements)
        {
            ready.table.set_position(hash, offset, position);
        }
    }

    /// Takes over what was appended, as long as the budget lasts for what has to be read for that, compares some of what waits for
    /// it, and learns where compaction has put records. A failure that comes again at each step is told once.
    pub(crate) fn upkeep(&self, budget: &mut ReadBudget) -> Looked {
        let mut looked = self.compare_some(budget);
        looked.at += self.learn_places();
        if let Some(text) = looked.failed.as_ref().map(ToString::to_string) {
            let mut told = self.told.lock();
            if told.as_ref() == Some(&text) {
                looked.failed = None;
            }
            *told = Some(text);
        }
        looked
    }

    fn compare_some(&self, budget: &mut ReadBudget) -> Looked {
        let (nothing, more) = (Looked::default(), Looked { at: 1, ..Looked::default() });
        let Some(mut state) = self.state.try_lock() else { return nothing };
        let State::Ready(ready) = &mut *state else { return nothing };
        if self.log.is_closed() {
            return nothing;
        }
        if self.has_been_outrun() {
            // Made anew, in steps.
            self.forget(&mut state);
            return more;
        }
        let is_left = ready.left_until.is_some_and(|until| self.log.env.clock.monotonic() < until);
        if self.is_behind(ready) && (is_left || budget.is_spent()) {
            return nothing;
        }
        let taken = (!self.is_up_to_date(ready)).then(|| self.take_over(ready, budget));
        let set = match taken {
            None => self.log.snapshot(),
            Some(Ok(Taken::All(_, set))) => set,
            Some(Ok(Taken::Some | Taken::Outrun)) => return more,
            Some(Ok(Taken::NoRoom)) => {
                self.give_up(&mut state);
                return nothing;
            }
            Some(Err(error)) => {
                ready.left_until = Some(self.log.env.clock.monotonic() + AGAIN_AFTER);
                return Looked { failed: Some(error), ..nothing };
            }
        };
        let (at, failed) = self.resolve_some(ready, &set, STEP);
        if ready.unresolved.is_empty() {
            // What could not be read was, and would be told of anew.
            *self.told.lock() = None;
        }
        Looked { at, failed, ..nothing }
    }

    /// What it holds; `None` if it is not in use.
    pub(crate) fn stats(&self) -> Option<KeyIndexStats> {
        match &*self.state.lock() {
            State::Ready(ready) => Some(KeyIndexStats {
                entries: ready.table.len(),
                waiting: ready.unresolved.len()
                    + self.log.key_queue.len()
                    + usize::from(self.decided_from(ready).is_some()),
                memory_bytes: ready.counted,
                unread_segments: ready.places.lost(),
                counts: ready.counts,
            }),
            State::Unused | State::Making(_) | State::TooLarge => None,
        }
    }

    /// Writes the table beside the log, so that the next use need not read the log again. Makes no index for that, and leaves it to
    /// the next use where much is to be read.
    pub(crate) fn write_snapshot(&self) -> Result<()> {
        let mut state = self.state.lock();
        let State::Ready(ready) = &mut *state else { return Ok(()) };
        if self.log.env.read_only || self.has_been_outrun() {
            return Ok(());
        }
        let Taken::All(end, set) = self.take_over(ready, &mut ReadBudget::of(CLOSE_READ_BYTES))? else { return Ok(()) };
        // With a transaction open the table knows records behind it, and has let older ones of their keys go. A crash that
        // takes the records away would leave a file without those keys.
        if ready.saved == end || self.log.last_stable_offset() < end {
            return Ok(());
        }
        self.resolve(ready, &set, usize::MAX)?;
        ready.places.follow(&mut ready.table, &set, self.log.log_start());
        snapshot::write(&self.log, &ready.secret, &ready.table, end, &ready.places.checks())?;
        ready.saved = end;
        Ok(())
    }
}

impl Drop for KeyIndex {
    fn drop(&mut self) {
        self.budget.exchange(self.state.lock().counted(), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::FaultVfs;
    use crate::record::Record;
    use crate::store::{Store, Upkeep};
    use crate::topic::{CleanupPolicy, Topic, TopicConfig};

    fn index(topic: &Topic) -> &KeyIndex {
        topic.index(0).unwrap()
    }

    fn upkeep(topic: &Topic) {
        index(topic).upkeep(&mut ReadBudget::unlimited());
    }

    /// What is found of a key at once, after something was done to a topic in which "a" has the offsets 0 and 2 and "d" was deleted,
    /// in a segment each: `None` if that needs another look. And what is found then.
    fn check(act: impl FnOnce(&Store, &Topic), key: &str, at_once: Option<Option<i64>>, then: Option<i64>) {
        // The simulated disk can be mapped.
        let store = Store::builder().vfs(Arc::new(FaultVfs::new())).upkeep(Upkeep::Manual).open("/s").unwrap();
        let config = TopicConfig::default()
            .cleanup_policy(CleanupPolicy::Compact)
            .segment_bytes(256)
            .min_cleanable_dirty_ratio(0.0);
        let topic = store.create_topic("t", config).unwrap();
        ["a", "b", "a"].iter().for_each(|key| drop(topic.append(Record::keyed(*key, vec![b'v'; 100])).unwrap()));
        topic.append(Record::tombstone("d")).unwrap();
        // Makes the index and the maps; then upkeep takes the older offset out.
        assert_eq!(topic.get("a").unwrap().unwrap().offset().get(), 2);
        upkeep(&topic);
        act(&store, &topic);
        let index = index(&topic);
        let offset = |found: Option<StoredRecord>| found.map(|record| record.offset().get());
        assert_eq!(index.get_at_once(key.as_bytes()).map(offset), at_once);
        assert_eq!(offset(index.get(key.as_bytes()).unwrap()), then);
        store.close().unwrap();
    }

    #[test]
    fn most_look_ups_are_answered_at_once() {
        check(|_, _| {}, "a", Some(Some(2)), Some(2));
        check(|_, _| {}, "d", Some(None), None);
        check(|_, _| {}, "nothing", Some(None), None);
    }

    #[test]
    fn what_was_appended_since_is_taken_over_first() {
        check(|_, topic| drop(topic.append(Record::keyed("a", "new")).unwrap()), "a", None, Some(4));
        check(|_, topic| drop(topic.append(Record::keyed("b", "new")).unwrap()), "a", None, Some(2));
        check(|_, topic| drop(topic.append(Record::tombstone("a")).unwrap()), "a", None, None);
    }

    #[test]
    fn of_two_keys_with_one_hash_both_are_looked_at() {
        let collide = |_: &Store, topic: &Topic| {
            let mut state = index(topic).state.lock();
            let State::Ready(ready) = &mut *state else { panic!("it was used") };
            let hash = key_queue::hash(&ready.secret, b"a");
            let entry = ready.table.entry(hash, 1, 0).unwrap();
            ready.table.insert(entry);
        };
        check(collide, "a", None, Some(2));
    }

    #[test]
    fn a_place_from_before_a_compaction_is_not_used() {
        let compact = |store: &Store, topic: &Topic| {
            topic.append(Record::keyed("c", vec![b'v'; 100])).unwrap();
            upkeep(topic);
            while index(topic).log.snapshot().replacements == 0 {
                assert!(!store.tick().unwrap().is_idle(), "it is to be compacted");
            }
        };
        check(compact, "a", None, Some(2));
    }
}
