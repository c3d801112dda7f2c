//! The key index of one partition: from a key to its newest record.
//!
//! A table in memory leads from the hash of a key to offsets; the record there is read and its key compared, so that no
//! hash is ever trusted. Appends put their hashes into a queue ([`crate::partition::key_queue`]) and read nothing; whoever
//! uses the index takes them over. Offsets of one key that a newer one supersedes are taken out of the table by upkeep, or
//! by an appender once too many wait. The table is kept in a file at close and caught up from the log; it is made at its
//! first use. It knows partitions. It does not know topics, nor what a value means.

pub(crate) mod expiry;
pub(crate) mod snapshot;
pub(crate) mod table;

use std::collections::VecDeque;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::partition::key_queue::{self, HashKey};
use crate::partition::{Isolation, Log, ReadLevel, ReadOptions, Reader, SegmentSet};
use crate::record::{DecodeLimits, RecordRef, StoredRecord};
use crate::segment::cursor::Verify;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicUsize, Ordering};

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
    expiry: Mutex<Expiry>,
}

/// What is known of when keys expire.
#[derive(Debug)]
struct Expiry {
    /// Records below this offset were looked at.
    seen: i64,
    /// Nothing that was looked at expires before this.
    next_ms: i64,
    /// The newest records that are still to be looked at, in a pass over all of them.
    pass: Option<Latest>,
    /// The setting that all of this was found under.
    expire_after_ms: i64,
}

#[derive(Debug, Default)]
enum State {
    /// Nobody has asked yet.
    #[default]
    Unused,
    Ready(Ready),
    /// It would have taken more memory than there is. Until the store is reopened nobody tries again.
    TooLarge,
}

#[derive(Debug)]
struct Ready {
    secret: HashKey,
    table: Table,
    /// Hashes with more than one offset, each once per offset that came to an older one.
    unresolved: VecDeque<u64>,
    /// Bytes counted in the budget.
    counted: usize,
    /// Position of the file, -1 if there is none.
    saved: i64,
}

/// How often a use of the index begins anew because appends were ahead of it.
const TRIES: usize = 4;

/// What became of what appends have queued.
enum Taken {
    /// The table is whole up to this offset.
    All(i64),
    /// There is no room for all of it.
    NoRoom,
    /// The queue has ended before: the log has to be read.
    Outrun,
}

/// What became of an attempt to make the index.
enum Made {
    Ready(Ready),
    NoRoom,
    Outrun,
}

/// What the key index of one partition holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeyIndexStats {
    /// Entries: one for each key whose newest record is in the log, tombstones included, and one more for each that waits.
    pub entries: usize,
    /// Appends whose key was not yet compared with that of an older record. While this is 0, entries are exact.
    pub waiting: usize,
    /// Bytes of memory, as counted in `key_index_memory_bytes`.
    pub memory_bytes: usize,
}

/// Bytes that an entry of the queue takes at most, here and where appends put it.
const QUEUED_BYTES: usize = 16;
/// More than these and an appender helps.
const QUEUED_MAX: usize = 1 << 16;
/// More offsets than these that wait for a comparison, and an appender makes some.
const UNRESOLVED_MAX: usize = 1 << 20;
/// No more offsets than these wait under one hash.
const CHAIN_MAX: usize = 4;
/// How many comparisons one step of upkeep makes.
const STEP: usize = 4096;

impl KeyIndex {
    pub(crate) fn new(log: Arc<Log>, budget: Arc<Budget>) -> Self {
        let expiry = Mutex::new(Expiry { seen: 0, next_ms: i64::MIN, pass: None, expire_after_ms: -1 });
        Self { log, budget, state: Mutex::new(State::Unused), expiry }
    }

    /// The newest record of a key, `None` if there is none or it is a tombstone.
    pub(crate) fn get(&self, key: &[u8]) -> Result<Option<StoredRecord>> {
        self.log.check_open()?;
        let mut state = self.state.lock();
        let ready = self.ready(&mut state)?;
        let hash = key_queue::hash(&ready.secret, key);
        let Some((newest, is_only)) = ready.table.newest(hash) else { return Ok(None) };
        let others = if is_only { Vec::new() } else { ready.table.offsets(hash) };
        let set = self.log.snapshot();
        drop(state);
        for offset in [newest].into_iter().chain(others.into_iter().skip(1)) {
            if let Some(record) = self.log.record_in(&set, offset)?
                && record.key() == Some(key)
            {
                return Ok(Some(record).filter(|record| !record.is_tombstone() && !self.log.has_expired(record)));
            }
        }
        Ok(None)
    }

    /// The newest record of every key, at one position.
    pub(crate) fn latest(&self) -> Result<Latest> {
        self.log.check_open()?;
        let mut state = self.state.lock();
        let ready = self.ready(&mut state)?;
        // Taken over once more together with the log end, so that exactly what lies below it is in the table.
        let taken = self.take_over(ready)?;
        let counted = ready.counted;
        let position = match taken {
            Taken::All(end) => end,
            Taken::NoRoom => {
                *state = self.give_up(counted);
                return Err(self.too_large());
            }
            Taken::Outrun => {
                let what = "a listing while more is appended than the key index can follow; ask again";
                return Err(Error::unsupported(format!("{}: {what}", self.log.id)));
            }
        };
        let State::Ready(ready) = &mut *state else { return Err(self.too_large()) };
        let set = self.log.snapshot();
        self.resolve(ready, usize::MAX)?;
        let mut offsets: Vec<i64> = ready.table.iter().map(|(_, offset)| offset).collect();
        drop(state);
        offsets.sort_unstable();
        Ok(Latest {
            log: Arc::clone(&self.log),
            set,
            offsets: offsets.into_iter(),
            position,
            with_expired: false,
            failed: None,
        })
    }

    /// Ends keys that have expired with a tombstone, some at a time. Returns how many, and how many records it looked at.
    pub(crate) fn expire(&self, expire_after_ms: i64, now_ms: i64) -> Result<(usize, usize)> {
        if expire_after_ms < 0 || self.log.env.read_only || self.log.is_closed() {
            return Ok((0, 0));
        }
        let Some(mut expiry) = self.expiry.try_lock() else { return Ok((0, 0)) };
        if expiry.expire_after_ms != expire_after_ms {
            *expiry = Expiry { seen: 0, next_ms: i64::MIN, pass: None, expire_after_ms };
        }
        let (mut ended, mut looked_at) = (0, 0);
        if expiry.pass.is_none() {
            looked_at = self.look_at_new(&mut expiry, expire_after_ms, now_ms)?;
            if now_ms < expiry.next_ms {
                return Ok((0, looked_at));
            }
            let mut pass = self.latest()?;
            pass.with_expired = true;
            (expiry.seen, expiry.next_ms, expiry.pass) = (pass.position, i64::MAX, Some(pass));
        }
        for _ in 0..STEP {
            let record = match expiry.pass.as_mut().and_then(Latest::next) {
                Some(Ok(record)) => record,
                // The next step begins anew: a pass that failed would go on failing, and hold its segments.
                Some(Err(error)) => {
                    (expiry.pass, expiry.next_ms) = (None, i64::MIN);
                    return Err(error);
                }
                None => {
                    expiry.pass = None;
                    break;
                }
            };
            looked_at += 1;
            match expiry::expires_at(&record, expire_after_ms) {
                Some(at) if at <= now_ms => {
                    if self.end_key(&record)? {
                        ended += 1;
                    } else {
                        // Something was appended meanwhile: the next pass looks again.
                        expiry.next_ms = i64::MIN;
                    }
                }
                Some(at) => expiry.next_ms = expiry.next_ms.min(at),
                None => {}
            }
        }
        Ok((ended, looked_at))
    }

    /// Looks at some of what is new in the log: when does the first of it expire?
    fn look_at_new(&self, expiry: &mut Expiry, expire_after_ms: i64, now_ms: i64) -> Result<usize> {
        if now_ms >= expiry.next_ms {
            return Ok(0);
        }
        let from = expiry.seen.max(self.log.log_start());
        let options = ReadOptions::new().level(ReadLevel::Latest);
        let mut looked_at = 0;
        for record in Reader::begin(&self.log, from, options).take(STEP) {
            let record = record?;
            looked_at += 1;
            expiry.seen = record.offset().get() + 1;
            if let Some(at) = expiry::expires_at(&record, expire_after_ms) {
                expiry.next_ms = expiry.next_ms.min(at);
            }
        }
        Ok(looked_at)
    }

    /// Appends a tombstone for a key, unless the key has a newer record or gets one right now: then that one wins.
    fn end_key(&self, record: &StoredRecord) -> Result<bool> {
        let Some(key) = record.key() else { return Ok(true) };
        let end = self.log.end_offset();
        let newest = {
            let mut state = self.state.lock();
            let ready = self.ready(&mut state)?;
            let hash = key_queue::hash(&ready.secret, key);
            ready.table.offsets(hash)
        };
        let set = self.log.snapshot();
        for offset in newest.into_iter().take_while(|&offset| offset > record.offset().get()) {
            if self.log.record_in(&set, offset)?.is_some_and(|newer| newer.key() == Some(key)) {
                return Ok(true);
            }
        }
        match self.log.append_at(end, &RecordRef::new(Some(key), None)) {
            Ok(_) => Ok(true),
            Err(Error::Invalid { .. }) if self.log.end_offset() != end => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Takes over what was appended and compares some of what waits for it. Returns how much was done.
    pub(crate) fn upkeep(&self) -> Result<usize> {
        let Some(mut state) = self.state.try_lock() else { return Ok(0) };
        if !matches!(*state, State::Ready(_)) || self.log.is_closed() {
            return Ok(0);
        }
        let ready = self.ready(&mut state)?;
        self.resolve(ready, STEP)
    }

    /// Lets an appender help once too much waits: it empties the queue, and compares some once very many wait for that.
    #[inline]
    pub(crate) fn relieve(&self) -> Result<()> {
        if self.log.key_queue.len() < QUEUED_MAX {
            return Ok(());
        }
        self.relieve_now()
    }

    #[cold]
    fn relieve_now(&self) -> Result<()> {
        let Some(mut state) = self.state.try_lock() else { return Ok(()) };
        if !matches!(*state, State::Ready(_)) {
            return Ok(());
        }
        let ready = self.ready(&mut state)?;
        let waiting = ready.unresolved.len();
        if waiting > UNRESOLVED_MAX { self.resolve(ready, waiting / 2).map(drop) } else { Ok(()) }
    }

    /// What it holds; `None` if it is not in use.
    pub(crate) fn stats(&self) -> Option<KeyIndexStats> {
        match &*self.state.lock() {
            State::Ready(ready) => Some(KeyIndexStats {
                entries: ready.table.len(),
                waiting: ready.unresolved.len() + self.log.key_queue.len(),
                memory_bytes: ready.counted,
            }),
            State::Unused | State::TooLarge => None,
        }
    }

    /// Writes the table beside the log, so that the next use need not read the log again. Makes no index for that.
    pub(crate) fn write_snapshot(&self) -> Result<()> {
        let mut state = self.state.lock();
        let State::Ready(ready) = &mut *state else { return Ok(()) };
        if self.log.env.read_only || self.has_been_outrun() {
            return Ok(());
        }
        let Taken::All(end) = self.take_over(ready)? else { return Ok(()) };
        // With a transaction open the table knows records behind it, and has let older ones of their keys go. A crash that
        // takes the records away would leave a file without those keys.
        if ready.saved == end || self.log.last_stable_offset() < end {
            return Ok(());
        }
        self.resolve(ready, usize::MAX)?;
        snapshot::write(&self.log, &ready.secret, &ready.table, end)?;
        ready.saved = end;
        Ok(())
    }

    fn ready<'a>(&self, state: &'a mut State) -> Result<&'a mut Ready> {
        for _ in 0..TRIES {
            if let State::Ready(ready) = state {
                let taken = match self.has_been_outrun() {
                    true => Taken::Outrun,
                    false if self.log.key_queue.len() == 0 => break,
                    false => self.take_over(ready)?,
                };
                let counted = ready.counted;
                match taken {
                    Taken::All(_) => break,
                    Taken::NoRoom => *state = self.give_up(counted),
                    // The log itself tells the rest.
                    Taken::Outrun => {
                        self.budget.exchange(counted, 0);
                        *state = State::Unused;
                    }
                }
            }
            if matches!(state, State::Unused) {
                match self.make()? {
                    Made::Ready(ready) => *state = State::Ready(ready),
                    Made::NoRoom => *state = self.give_up(0),
                    Made::Outrun => continue,
                }
            }
            break;
        }
        match state {
            State::Ready(ready) => Ok(ready),
            State::TooLarge => Err(self.too_large()),
            State::Unused => {
                let what = "a key index while more is appended than it can follow; ask again";
                Err(Error::unsupported(format!("{}: {what}", self.log.id)))
            }
        }
    }

    /// Whether more was appended than anybody took over, so that the queue has ended.
    fn has_been_outrun(&self) -> bool {
        !self.log.env.read_only && !self.log.key_queue.is_wanted()
    }

    fn too_large(&self) -> Error {
        Error::unsupported(format!(
            "the key index of {} would take more memory than key_index_memory_bytes allows",
            self.log.id
        ))
    }

    fn give_up(&self, counted: usize) -> State {
        self.log.key_queue.stop();
        self.budget.exchange(counted, 0);
        State::TooLarge
    }

    /// Loads the file, if it holds, and reads what was appended since; otherwise reads the whole log.
    fn make(&self) -> Result<Made> {
        let loaded = snapshot::read(&self.log, |bytes| self.budget.taken() + bytes <= self.budget.bytes_max)?;
        let (secret, table, from, saved) = match loaded {
            Some(loaded) => (loaded.secret, loaded.table, loaded.position, loaded.position),
            None => (snapshot::new_secret()?, Table::new(self.log.log_start()), self.log.log_start(), -1),
        };
        let mut ready = Ready { secret, table, unresolved: VecDeque::new(), counted: 0, saved };
        let end = self.log.start_key_queue(secret);
        let filled = self.fill(&mut ready, from, end);
        if let Ok(Taken::All(_)) = filled {
            return Ok(Made::Ready(ready));
        }
        self.log.key_queue.stop();
        self.budget.exchange(ready.counted, 0);
        Ok(if matches!(filled?, Taken::Outrun) { Made::Outrun } else { Made::NoRoom })
    }

    fn fill(&self, ready: &mut Ready, from: i64, end: i64) -> Result<Taken> {
        if !self.count(ready, 0) || !self.read_on(ready, from, end)? {
            return Ok(Taken::NoRoom);
        }
        self.take_over(ready)
    }

    /// Reads what committed records there are from an offset on. Those of open transactions come in once they are decided.
    fn read_on(&self, ready: &mut Ready, from: i64, end: i64) -> Result<bool> {
        let limits = DecodeLimits { decompressed_bytes_max: 64 << 20 };
        let options = ReadOptions::new().level(ReadLevel::Latest).isolation(Isolation::Committed).limits(limits);
        let mut reader = Reader::begin(&self.log, from.max(self.log.log_start()), options);
        while let Some(batch) = reader.next_batch()? {
            if batch.base_offset().get() >= end {
                break;
            }
            for view in batch.records() {
                let view = view.map_err(|error| Error::corrupt(&self.log.directory, 0, error.to_string()))?;
                let Some(key) = view.key() else { continue };
                let hash = key_queue::hash(&ready.secret, key);
                if !self.insert(ready, hash, view.offset())? {
                    return Ok(false);
                }
            }
            // A key that comes again and again must not fill the table.
            if ready.unresolved.len() >= QUEUED_MAX {
                self.resolve(ready, usize::MAX)?;
            }
        }
        Ok(true)
    }

    /// Moves what appends have queued into the table. What was taken and finds no place there is in the log alone, so that
    /// the queue then ends.
    fn take_over(&self, ready: &mut Ready) -> Result<Taken> {
        let (appended, end) = self.log.take_key_queue();
        let Some(appended) = appended else { return Ok(Taken::Outrun) };
        let put = self.put(ready, &appended);
        if !matches!(put, Ok(true)) {
            self.log.key_queue.stop();
        }
        Ok(if put? { Taken::All(end) } else { Taken::NoRoom })
    }

    fn put(&self, ready: &mut Ready, appended: &[key_queue::Appended]) -> Result<bool> {
        if !self.count(ready, appended.len()) {
            return Ok(false);
        }
        for one in appended {
            if !self.insert(ready, one.hash, one.offset)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn insert(&self, ready: &mut Ready, hash: u64, offset: i64) -> Result<bool> {
        if ready.table.memory_bytes_with(1) > ready.table.memory_bytes() && !self.count(ready, 1) {
            return Ok(false);
        }
        match ready.table.insert(hash, offset) {
            // Looked at once for however many come to it meanwhile.
            Ok(1) => ready.unresolved.push_back(hash),
            // A key that is written again and again: what stands under its hash is walked by every look-up and insertion.
            Ok(others) if others >= CHAIN_MAX => self.resolve_hash(ready, &self.log.snapshot(), hash)?,
            Ok(_) => {}
            Err(table::OutOfRange) => return Ok(false),
        }
        Ok(true)
    }

    /// Counts the memory that it takes with so many more entries; false if that is too much.
    fn count(&self, ready: &mut Ready, more: usize) -> bool {
        let waiting = ready.unresolved.capacity().max(ready.unresolved.len() + more);
        let wants = ready.table.memory_bytes_with(more) + waiting * QUEUED_BYTES;
        if !self.budget.exchange(ready.counted, wants) {
            return false;
        }
        ready.counted = wants;
        true
    }

    /// Compares the keys of offsets that stand under one hash; of one key only the newest stays. Returns how many hashes
    /// were looked at.
    fn resolve(&self, ready: &mut Ready, most: usize) -> Result<usize> {
        let set = self.log.snapshot();
        let mut done = 0;
        while done < most {
            let Some(hash) = ready.unresolved.pop_front() else { break };
            done += 1;
            if let Err(error) = self.resolve_hash(ready, &set, hash) {
                ready.unresolved.push_front(hash);
                return Err(error);
            }
        }
        if done > 0 && ready.unresolved.is_empty() {
            ready.unresolved.shrink_to_fit();
        }
        Ok(done)
    }

    fn resolve_hash(&self, ready: &mut Ready, set: &SegmentSet, hash: u64) -> Result<()> {
        let mut keys: Vec<StoredRecord> = Vec::new();
        for offset in ready.table.offsets(hash) {
            // Without a look at the checksum: a damaged key is taken for another one, and stays.
            match self.log.record_checked(set, offset, Verify::Trusted)? {
                Some(record) if keys.iter().all(|newer| newer.key() != record.key()) => keys.push(record),
                // Superseded, or gone with the log start or by compaction.
                _ => ready.table.remove(hash, offset),
            }
        }
        Ok(())
    }
}

impl Drop for KeyIndex {
    fn drop(&mut self) {
        if let State::Ready(ready) = &*self.state.lock() {
            self.budget.exchange(ready.counted, 0);
        }
    }
}

/// The newest record of each key of one partition as they were at one position, in the order of their offsets; tombstones
/// and what has expired are left out. Made by [`Topic::latest`](crate::Topic::latest).
///
/// Segments that compaction exchanges meanwhile are kept until this is dropped.
#[derive(Debug)]
pub struct Latest {
    log: Arc<Log>,
    set: Arc<SegmentSet>,
    offsets: std::vec::IntoIter<i64>,
    position: i64,
    /// For upkeep, which is to end what has expired.
    with_expired: bool,
    failed: Option<Error>,
}

impl Log {
    fn has_expired(&self, record: &StoredRecord) -> bool {
        let expire_after_ms = self.settings.read().compaction.expire_after_ms;
        expire_after_ms >= 0
            && expiry::expires_at(record, expire_after_ms).is_some_and(|at| at <= self.env.clock.now_ms())
    }
}

impl Latest {
    /// The log end offset at which these records are the newest: a reader that goes on from here misses nothing.
    pub fn position(&self) -> crate::ids::Offset {
        self.position.into()
    }
}

impl Iterator for Latest {
    type Item = Result<StoredRecord>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(error) = &self.failed {
            return Some(Err(error.duplicate()));
        }
        for offset in self.offsets.by_ref() {
            match self.log.record_in(&self.set, offset) {
                Ok(Some(record)) if !record.is_tombstone() && (self.with_expired || !self.log.has_expired(&record)) => {
                    return Some(Ok(record));
                }
                // A tombstone, expired, or below the log start.
                Ok(_) => {}
                Err(error) => {
                    self.failed = Some(error.duplicate());
                    return Some(Err(error));
                }
            }
        }
        None
    }
}
