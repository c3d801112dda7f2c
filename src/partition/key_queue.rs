//! Hashes of the keys that were appended, for a key index that wants them.
//!
//! An append hashes its keys before it takes the writer and puts the hashes here once its bytes are published, with the place
//! of its batch: it never reads the log for an index. The hash is keyed, so that nobody can choose keys that collide. It knows nothing of what the
//! index does with them.

use std::hash::Hasher;

use siphasher::sip::SipHasher13;

use super::key_entry::KeyEntry;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

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
    state: Mutex<State>,
}

/// More than this and the gathering ends: whoever wants the keys reads the log again. They take 16 MiB.
const WAITING_MAX: usize = 1 << 20;

#[derive(Debug, Default)]
struct State {
    secret: HashKey,
    /// What the offsets of entries are relative to.
    base: i64,
    waiting: Vec<KeyEntry>,
}

impl KeyQueue {
    /// From here on keys are gathered, with offsets relative to a base. The partition's writer is held by whoever calls this, so that none is missed.
    pub(crate) fn start(&self, secret: HashKey, base: i64) {
        let mut state = self.state.lock();
        (state.secret, state.base, state.waiting) = (secret, base, Vec::new());
        self.waiting.store(0, Ordering::Relaxed);
        self.is_wanted.store(true, Ordering::Release);
    }

    /// Nobody wants them any more.
    pub(crate) fn stop(&self) {
        let mut state = self.state.lock();
        self.is_wanted.store(false, Ordering::Release);
        state.waiting = Vec::new();
        self.waiting.store(0, Ordering::Relaxed);
    }

    /// The secret, if keys are wanted.
    #[inline]
    pub(crate) fn wanted(&self) -> Option<HashKey> {
        if !self.is_wanted.load(Ordering::Acquire) {
            return None;
        }
        Some(self.state.lock().secret)
    }

    /// Whether keys are gathered.
    #[inline]
    pub(crate) fn is_wanted(&self) -> bool {
        self.is_wanted.load(Ordering::Acquire)
    }

    /// Adds what an append gathered under a secret; the first record has this offset, and the batch begins at this position
    /// of its segment. `None` stands for a record without a
    /// key, and for the secret if nothing was gathered. The partition's writer is held, so that the queue and the log end can
    /// be looked at together. If the gathering has begun since the keys were hashed, or with another secret, or if the offset
    /// is too far from the base, it ends here: whoever wants the keys finds this append in the log.
    pub(crate) fn push(&self, first_offset: i64, position: u64, secret: Option<&HashKey>, hashes: &[Option<u64>]) {
        let mut state = self.state.lock();
        if !self.is_wanted() {
            return;
        }
        let mut is_whole = secret == Some(&state.secret);
        for (offset, hash) in (first_offset..).zip(hashes) {
            let Some(hash) = hash else { continue };
            match KeyEntry::at(*hash, state.base, offset, position) {
                Some(entry) => state.waiting.push(entry),
                None => is_whole = false,
            }
        }
        if !is_whole || state.waiting.len() > WAITING_MAX {
            state.waiting = Vec::new();
            self.is_wanted.store(false, Ordering::Release);
        }
        self.waiting.store(state.waiting.len(), Ordering::Relaxed);
    }

    /// Takes what is waiting; `None` if the gathering has ended meanwhile.
    pub(crate) fn take(&self) -> Option<Vec<KeyEntry>> {
        let mut state = self.state.lock();
        self.waiting.store(0, Ordering::Relaxed);
        let waiting = std::mem::take(&mut state.waiting);
        self.is_wanted().then_some(waiting)
    }

    /// How many are waiting.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }
}
