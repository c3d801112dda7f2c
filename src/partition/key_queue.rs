//! Hashes of the keys that were appended, for a key index that wants them.
//!
//! An append hashes its keys before it takes the writer and puts the hashes here once its bytes are published, with the place
//! of its batch: it never reads the log for an index. The hash is keyed, so that nobody can choose keys that collide. It knows nothing of what the
//! index does with them.

use std::hash::Hasher;

use siphasher::sip::SipHasher13;

use super::key_entry::KeyEntry;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

/// The file in which an index keeps what it has made of them.
pub(crate) const INDEX_NAME: &str = "topiclog.keys";

/// The secret of a hash.
pub(crate) type HashKey = [u8; 16];

/// The hash of a key under a secret.
#[inline]
pub(crate) fn hash(secret: &HashKey, key: &[u8]) -> u64 {
    let mut hasher = SipHasher13::new_with_key(secret);
    hasher.write(key);
    hasher.finish()
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct KeyQueue {
    is_wanted: AtomicBool,
    /// How many are waiting; changed with the state, read without it.
    waiting: AtomicUsize,
    /// The secret once more, so that an append need not take the lock for it.
    secret: [AtomicU64; 2],
    state: Mutex<State>,
}

/// So many, and whoever takes them is to be called.
const CALL_AT: usize = 1 << 14;
/// More than this and the gathering ends: whoever wants the keys reads the log again. They take 16 MiB.
const WAITING_MAX: usize = 1 << 20;

#[derive(Debug, Default)]
struct State {
    secret: HashKey,
    /// What the offsets of entries are relative to.
    base: i64,
    waiting: Vec<KeyEntry>,
    /// Offsets `[from, to)` of appends whose keys were hashed before the gathering began, or for another one: they have to
    /// be read in the log.
    unhashed: Vec<(i64, i64)>,
}

/// What was gathered.
#[derive(Debug, Default)]
pub(crate) struct Gathered {
    pub(crate) keys: Vec<KeyEntry>,
    /// Offsets `[from, to)` whose keys have to be read in the log.
    pub(crate) unhashed: Vec<(i64, i64)>,
}

/// More such appends than these, which are no neighbours, and the gathering ends.
const UNHASHED_MAX: usize = 1024;

impl KeyQueue {
    /// From here on keys are gathered, with offsets relative to a base. The partition's writer is held by whoever calls this, so that none is missed.
    pub(crate) fn start(&self, secret: HashKey, base: i64) {
        let mut state = self.state.lock();
        *state = State { secret, base, ..State::default() };
        let number = u128::from_le_bytes(secret);
        self.secret[0].store(number as u64, Ordering::Relaxed);
        self.secret[1].store((number >> 64) as u64, Ordering::Relaxed);
        self.waiting.store(0, Ordering::Relaxed);
        self.is_wanted.store(true, Ordering::Release);
    }

    /// Nobody wants them any more.
    pub(crate) fn stop(&self) {
        let mut state = self.state.lock();
        self.is_wanted.store(false, Ordering::Release);
        (state.waiting, state.unhashed) = (Vec::new(), Vec::new());
        self.waiting.store(0, Ordering::Relaxed);
    }

    /// The secret, if keys are wanted. One that is exchanged meanwhile may be half of either; [`push`](Self::push) sees that
    /// it is not the one that counts.
    #[inline]
    pub(crate) fn wanted(&self) -> Option<HashKey> {
        if !self.is_wanted.load(Ordering::Acquire) {
            return None;
        }
        let [low, high] = &self.secret;
        let number = u128::from(low.load(Ordering::Relaxed)) | u128::from(high.load(Ordering::Relaxed)) << 64;
        Some(number.to_le_bytes())
    }

    /// Whether keys are gathered.
    #[inline]
    pub(crate) fn is_wanted(&self) -> bool {
        self.is_wanted.load(Ordering::Acquire)
    }

    /// Adds what an append gathered under a secret; the first record has this offset, and the batch begins at this position
    /// of its segment. `None` stands for a record without a key, and for the secret if nothing was gathered. The partition's
    /// writer is held, so that the queue and the log end can be looked at together. If the gathering has begun since the keys
    /// were hashed, or with another secret, the offsets alone are noted; if too much waits, or the offset is too far from the
    /// base, the gathering ends here: whoever wants the keys finds this append in the log.
    ///
    /// True once so many wait that whoever takes them is to be called.
    pub(crate) fn push(
        &self,
        (first_offset, next_offset): (i64, i64),
        position: u64,
        secret: Option<&HashKey>,
        hashes: &[Option<u64>],
    ) -> bool {
        let mut state = self.state.lock();
        if !self.is_wanted() {
            return false;
        }
        let mut is_whole = true;
        if secret == Some(&state.secret) {
            for (offset, hash) in (first_offset..).zip(hashes) {
                let Some(hash) = hash else { continue };
                match KeyEntry::at(*hash, state.base, offset, position) {
                    Some(entry) => state.waiting.push(entry),
                    None => is_whole = false,
                }
            }
        } else {
            match state.unhashed.last_mut().filter(|last| last.1 == first_offset) {
                Some(last) => last.1 = next_offset,
                None => state.unhashed.push((first_offset, next_offset)),
            }
        }
        if !is_whole || state.waiting.len() > WAITING_MAX || state.unhashed.len() > UNHASHED_MAX {
            (state.waiting, state.unhashed) = (Vec::new(), Vec::new());
            self.is_wanted.store(false, Ordering::Release);
        }
        let waiting = state.waiting.len() + state.unhashed.len();
        let before = self.waiting.load(Ordering::Relaxed);
        // Behind the flag: who finds none waiting because the gathering has ended finds that out as well.
        self.waiting.store(waiting, Ordering::Release);
        before < CALL_AT && waiting >= CALL_AT
    }

    /// Takes what is waiting; `None` if the gathering has ended meanwhile.
    pub(crate) fn take(&self) -> Option<Gathered> {
        let mut state = self.state.lock();
        self.waiting.store(0, Ordering::Relaxed);
        let keys = std::mem::take(&mut state.waiting);
        let unhashed = std::mem::take(&mut state.unhashed);
        self.is_wanted().then_some(Gathered { keys, unhashed })
    }

    /// How many are waiting.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.waiting.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: HashKey = [7; 16];

    fn check(queue: &KeyQueue, keys: &[i64], unhashed: &[(i64, i64)]) {
        let taken = queue.take().expect("it is still gathered");
        let base = queue.state.lock().base;
        let offsets: Vec<i64> = taken.keys.iter().map(|entry| entry.relative_offset().cast_signed() + base).collect();
        assert_eq!((&offsets[..], &taken.unhashed[..]), (keys, unhashed));
        assert_eq!(queue.len(), 0);
    }

    /// Such an append once ended the gathering, and a look-up beside many appenders found no index for it.
    #[test]
    fn appends_that_were_hashed_before_the_gathering_began_are_noted_by_their_offsets() {
        let queue = KeyQueue::default();
        queue.push((0, 1), 0, None, &[]);
        queue.start(SECRET, 1);
        queue.push((1, 3), 0, None, &[]);
        queue.push((3, 4), 0, Some(&[8; 16]), &[Some(1)]);
        assert_eq!(queue.len(), 1, "they wait as well");
        queue.push((4, 6), 0, Some(&SECRET), &[Some(1), None]);
        queue.push((6, 7), 0, None, &[]);
        check(&queue, &[4], &[(1, 4), (6, 7)]);
        check(&queue, &[], &[]);
    }

    #[test]
    fn whoever_takes_them_is_called_once_for_each_time_that_many_wait() {
        let queue = KeyQueue::default();
        queue.start(SECRET, 0);
        let hashes = [Some(1); CALL_AT / 4];
        let call = || queue.push((0, 1), 0, Some(&SECRET), &hashes);
        for _ in 0..2 {
            assert_eq!([call(), call(), call(), call(), call()], [false, false, false, true, false]);
            queue.take().unwrap();
        }
    }

    #[test]
    fn too_many_of_them_end_it() {
        let queue = KeyQueue::default();
        queue.start(SECRET, 0);
        for nth in 0..=UNHASHED_MAX as i64 {
            assert!(queue.is_wanted());
            queue.push((nth * 2, nth * 2 + 1), 0, None, &[]);
            queue.push((nth * 2 + 1, nth * 2 + 2), 0, Some(&SECRET), &[None]);
        }
        assert!(queue.take().is_none() && queue.len() == 0);
    }
}
