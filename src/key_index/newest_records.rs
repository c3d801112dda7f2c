//! What the index tells compaction: where the newest records of all keys are.

use super::feed::Taken;
use super::{KeyIndex, State, snapshot};
use crate::error::{Error, Result};
use crate::partition::key_queue::INDEX_NAME;
use crate::partition::newest_records::{NewestRecords, RecordPlace};

impl KeyIndex {
    /// The newest records at or above an offset. `None` if the index is not made, has more than `most` of them, or knows
    /// records that a reader of committed data does not see yet: those may supersede nothing.
    pub(crate) fn newest_records(&self, from: i64, most: usize) -> Option<NewestRecords> {
        let mut state = self.state.lock();
        let State::Ready(ready) = &mut *state else { return None };
        if self.log.is_closed() || self.has_been_outrun() {
            return None;
        }
        let taken = self.take_over(ready);
        let counted = ready.counted;
        let (end, set) = match taken {
            Ok(Taken::All(end, set)) => (end, set),
            Ok(Taken::NoRoom) => {
                *state = self.give_up(counted);
                return None;
            }
            // It is made anew by whoever uses it next, and that one meets what was wrong.
            Ok(Taken::Outrun) | Err(_) => return None,
        };
        if self.log.last_stable_offset() < end {
            return None;
        }
        let places_hold = ready.places.hold(&set);
        let places = || ready.table.iter().map(|(_, place)| place).filter(|place| place.offset >= from);
        let count = places().count();
        if count > most {
            return None;
        }
        let mut found = Vec::with_capacity(count);
        found.extend(places().map(|place| RecordPlace::new(place.offset, place.position.filter(|_| places_hold))));
        drop(state);
        found.sort_unstable();
        Some(NewestRecords { end, set, places: found })
    }

    /// Forgets everything, its file as well, because compaction has met a record whose key is not in here; upkeep makes it anew
    /// from the log. The error is for whoever looks after the store.
    pub(crate) fn distrust(&self, offset: i64) -> Result<()> {
        let mut state = self.state.lock();
        // One that is being made anew may be made of the same file.
        let counted = match &*state {
            State::Ready(ready) => Some(ready.counted),
            State::Making(making) => Some(making.counted()),
            State::Unused | State::TooLarge => None,
        };
        if let Some(counted) = counted {
            self.log.key_queue.stop();
            self.budget.exchange(counted, 0);
            *state = State::Unused;
        }
        self.expect_use();
        snapshot::remove(&self.log)?;
        let what = format!(
            "the key index did not know the key of the record at offset {offset}; nothing is lost: it is made anew from the log"
        );
        Err(Error::corrupt(&self.log.directory.join(INDEX_NAME), 0, what))
    }

    /// Loses what it knows of a key, which only a bug or a fault of the memory would.
    #[cfg(test)]
    pub(crate) fn lose(&self, key: &[u8]) {
        let mut state = self.state.lock();
        let ready = self.ready(&mut state).unwrap();
        let hash = crate::partition::key_queue::hash(&ready.secret, key);
        ready.table.places_of(hash).into_iter().for_each(|place| ready.table.remove(hash, place.offset));
    }
}
