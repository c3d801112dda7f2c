//! Hashes of the keys that were appended, for a key index that wants them.
//!
//! An append hashes its keys before it takes the writer and puts the hashes here once its bytes are published, with the place
//! of its batch: it never reads the log for an index. The hash is keyed, so that nobody can choose keys that collide. It
//! knows nothing of what the index does with them.

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
/// With more waiting than this no more are gathered until they are taken: whoever wants them reads the log from there on. They
/// take 4 MiB.
const WAITING_MAX: usize = 1 << 18;

#[derive(Debug)]
struct State {
    secret: HashKey,
    /// What the offsets of entries are relative to.
    base: i64,
    waiting: Vec<KeyEntry>,
    waiting_max: usize,
    /// From this offset on nothing was gathered.
    unread_from: Option<i64>,
}

impl Default for State {
    fn default() -> Self {
        Self { secret: HashKey::default(), base: 0, waiting: Vec::new(), waiting_max: WAITING_MAX, unread_from: None }
    }
}

impl State {
    fn clear(&mut self) {
        (self.waiting, self.unread_from) = (Vec::new(), None);
    }

    fn len(&self) -> usize {
        self.waiting.len() + usize::from(self.unread_from.is_some())
    }
}

/// What was gathered.
#[derive(Debug, Default)]
pub(crate) struct Gathered {
    pub(crate) keys: Vec<KeyEntry>,
    /// The keys of what was appended from this offset on, which lies above all that were gathered, have to be read in the log.
    pub(crate) unread_from: Option<i64>,
}

impl KeyQueue {
    /// From here on keys are gathered, with offsets relative to a base. The partition's writer is held by whoever calls this,
    /// so that none is missed.
    pub(crate) fn start(&self, secret: HashKey, base: i64) {
        let mut state = self.state.lock();
        state.clear();
        (state.secret, state.base) = (secret, base);
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
        state.clear();
        self.waiting.store(0, Ordering::Relaxed);
    }

    /// Puts back what was taken from an offset on, without its hashes: it is to be read in the log, with all that follows it.
    pub(crate) fn leave(&self, from: i64) {
        let mut state = self.state.lock();
        if self.is_wanted() {
            // What was gathered since then lies behind it.
            state.clear();
            state.unread_from = Some(from);
            self.waiting.store(state.len(), Ordering::Release);
        }
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
    /// were hashed, or with another secret, or if too many wait, the offset alone is noted, and no more is gathered until all is
    /// taken. If the offset is too far from the base, the gathering ends here: whoever wants the keys reads all of the log.
    ///
    /// True once whoever takes them is to be called.
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
        let before = state.len();
        let was_whole = state.unread_from.is_none();
        let mut is_near = true;
        let has_room = state.waiting.len() + hashes.len() <= state.waiting_max;
        if was_whole && has_room && secret == Some(&state.secret) {
            // In this order: none is counted behind the last one, which may have the last offset that there is.
            for (hash, offset) in hashes.iter().zip(first_offset..) {
                let Some(hash) = hash else { continue };
                match KeyEntry::at(*hash, state.base, offset, position) {
                    Some(entry) => state.waiting.push(entry),
                    None => is_near = false,
                }
            }
        } else {
            state.unread_from.get_or_insert(first_offset);
            is_near = KeyEntry::at(0, state.base, next_offset, position).is_some();
        }
        if !is_near {
            state.clear();
            self.is_wanted.store(false, Ordering::Release);
        }
        let waiting = state.len();
        // Behind the flag: who finds none waiting because the gathering has ended finds that out as well.
        self.waiting.store(waiting, Ordering::Release);
        before < CALL_AT && waiting >= CALL_AT || was_whole && state.unread_from.is_some()
    }

    /// Takes what is waiting; `None` if the gathering has ended meanwhile.
    pub(crate) fn take(&self) -> Option<Gathered> {
        let mut state = self.state.lock();
        self.waiting.store(0, Ordering::Relaxed);
        let gathered = Gathered { keys: std::mem::take(&mut state.waiting), unread_from: state.unread_from.take() };
        self.is_wanted().then_some(gathered)
    }

    /// Whether some of what was appended has to be read in the log.
    pub(crate) fn is_behind(&self) -> bool {
        self.state.lock().unread_from.is_some()
    }

    /// Gives it room for so many.
    #[cfg(test)]
    pub(crate) fn set_waiting_max(&self, waiting_max: usize) {
        self.state.lock().waiting_max = waiting_max;
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

    fn check(queue: &KeyQueue, keys: &[i64], unread_from: Option<i64>) {
        let taken = queue.take().expect("it is still gathered");
        let base = queue.state.lock().base;
        let offsets: Vec<i64> = taken.keys.iter().map(|entry| entry.relative_offset().cast_signed() + base).collect();
        assert_eq!((&offsets[..], taken.unread_from), (keys, unread_from));
        assert_eq!(queue.len(), 0);
    }

    /// Such an append once ended the gathering, and a look-up beside many appenders found no index for it.
    #[test]
    fn from_an_append_on_that_was_hashed_before_the_gathering_began_the_log_is_to_be_read() {
        let queue = KeyQueue::default();
        queue.push((0, 1), 0, None, &[]);
        queue.start(SECRET, 1);
        queue.push((1, 2), 0, Some(&SECRET), &[Some(1)]);
        assert!(queue.push((2, 4), 0, None, &[]), "whoever takes them is called at once");
        assert!(queue.is_behind() && queue.len() == 2, "it waits as well");
        queue.push((4, 5), 0, Some(&[8; 16]), &[Some(1)]);
        queue.push((5, 7), 0, Some(&SECRET), &[Some(1), None]);
        check(&queue, &[1], Some(2));
        queue.push((7, 9), 0, Some(&SECRET), &[None, Some(1)]);
        check(&queue, &[8], None);
        check(&queue, &[], None);
    }

    #[test]
    fn the_last_offset_that_there_is_can_be_gathered() {
        let queue = KeyQueue::default();
        let last = i64::MAX - 1;
        queue.start(SECRET, last - 2);
        queue.push((last - 2, last), 0, Some(&SECRET), &[Some(1), Some(2)]);
        queue.push((last, last + 1), 0, Some(&SECRET), &[Some(1)]);
        check(&queue, &[last - 2, last - 1, last], None);
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
    fn no_more_are_gathered_than_there_is_room_for_until_they_are_taken() {
        let queue = KeyQueue::default();
        queue.start(SECRET, 0);
        let batch = [Some(1); 1000];
        let push = |nth: i64| queue.push((nth * 1000, nth * 1000 + 1000), 0, Some(&SECRET), &batch);
        (0..300).for_each(|nth| assert_eq!(push(nth), [16, 262].contains(&nth), "{nth}"));
        let gathered = WAITING_MAX as i64 / 1000 * 1000;
        assert_eq!(queue.len(), gathered as usize + 1);
        assert!(queue.state.lock().waiting.capacity() <= WAITING_MAX);
        check(&queue, &(0..gathered).collect::<Vec<_>>(), Some(gathered));
        push(300);
        check(&queue, &(300_000..301_000).collect::<Vec<_>>(), None);
    }

    #[test]
    fn what_is_put_back_is_to_be_read_with_all_that_follows() {
        let queue = KeyQueue::default();
        queue.start(SECRET, 0);
        queue.push((0, 2), 0, Some(&SECRET), &[Some(1), Some(2)]);
        queue.take().unwrap();
        queue.push((2, 3), 0, Some(&SECRET), &[Some(1)]);
        queue.leave(1);
        queue.push((3, 4), 0, Some(&SECRET), &[Some(1)]);
        check(&queue, &[], Some(1));
        queue.stop();
        queue.leave(1);
        assert!(queue.take().is_none() && !queue.is_behind(), "it has ended");
    }

    #[test]
    fn an_offset_too_far_from_the_base_ends_it() {
        let far = 1 << crate::partition::key_entry::OFFSET_BITS;
        for unread in [false, true] {
            let queue = KeyQueue::default();
            queue.start(SECRET, 0);
            queue.push((0, 1), 0, (!unread).then_some(&SECRET), &[Some(1)]);
            assert!(queue.is_wanted() && queue.len() == 1);
            queue.push((far, far + 1), 0, Some(&SECRET), &[Some(1)]);
            assert!(!queue.is_wanted() && queue.len() == 0 && queue.take().is_none());
        }
    }
}
