//! What the index tells compaction: where the newest records of all keys are.

use super::feed::Taken;
use super::making::ReadBudget;
use super::{KeyIndex, State};
use crate::error::Error;
use crate::io::replace::remove_if_there;
use crate::partition::key_queue::INDEX_NAME;
use crate::partition::newest_records::{NewestRecords, RecordPlace};

impl KeyIndex {
    /// The newest records at or above an offset. `None` if the index is not made or is behind, has more than `most` of them, or
    /// knows records that a reader of committed data does not see yet: those may supersede nothing.
    pub(crate) fn newest_records(&self, from: i64, most: usize) -> Option<NewestRecords> {
        let mut state = self.state.lock();
        let State::Ready(ready) = &mut *state else { return None };
        if self.log.is_closed() || self.is_behind(ready) {
            return None;
        }
        let (end, set) = match self.take_over(ready, &mut ReadBudget::unlimited()) {
            Ok(Taken::All(end, set)) => (end, set),
            Ok(Taken::NoRoom) => {
                self.give_up(&mut state);
                return None;
            }
            // It is made anew by whoever uses it next, and that one meets what was wrong.
            Ok(Taken::Outrun | Taken::Some) | Err(_) => return None,
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
    /// from the log. Returns the error for whoever looks after the store.
    pub(crate) fn distrust(&self, offset: i64) -> Error {
        let mut state = self.state.lock();
        // One that is being made anew may be made of the same file.
        if matches!(*state, State::Ready(_) | State::Making(_)) {
            self.log.key_queue.stop();
            self.forget(&mut state);
        }
        let path = self.log.directory.join(INDEX_NAME);
        let what = match remove_if_there(&*self.log.env.vfs, &path) {
            Ok(_) => "nothing is lost: it is made anew from the log".to_owned(),
            // It would be made anew of the same file, and met again.
            Err(error) => format!("nothing is lost, but remove the file: {error}"),
        };
        let what = format!("the key index did not know the key of the record at offset {offset}; {what}");
        Error::corrupt(&path, 0, what)
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
