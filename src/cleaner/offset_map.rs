//! The newest offset of each key in the dirty part of a log, within a bound of memory.
//!
//! Keys are kept as bytes: that two keys have the same hash proves nothing.

use hashbrown::HashTable;
use std::hash::{BuildHasher, RandomState};

use crate::planted::{Bug, is};

/// See the module.
#[derive(Debug)]
pub(crate) struct OffsetMap {
    table: HashTable<Entry>,
    keys: Vec<u8>,
    hasher: RandomState,
    memory_bytes_max: usize,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    offset: i64,
    key_at: u32,
    key_bytes: u32,
}

/// The table grows at seven eighths, and by doubling; a control byte stands beside each entry.
const ENTRY_BYTES: usize = 2 * (size_of::<Entry>() + 1) * 8 / 7;

impl OffsetMap {
    pub(crate) fn new(memory_bytes_max: usize) -> Self {
        Self { table: HashTable::new(), keys: Vec::new(), hasher: RandomState::new(), memory_bytes_max }
    }

    /// Notes the newest offset of a key; offsets come in rising order. False if there is no room for another key; `must`
    /// takes the room nevertheless.
    pub(crate) fn put(&mut self, key: &[u8], offset: i64, must: bool) -> bool {
        let hash = self.hasher.hash_one(key);
        let keys = &self.keys;
        if let Some(entry) = self.table.find_mut(hash, |entry| is(Bug::KeyHashTrusted) || key_of(keys, entry) == key) {
            entry.offset = offset;
            return true;
        }
        let (Ok(key_at), Ok(key_bytes)) = (u32::try_from(self.keys.len()), u32::try_from(key.len())) else {
            return false;
        };
        if !must && self.memory_needed(key.len()) > self.memory_bytes_max {
            return false;
        }
        self.keys.extend_from_slice(key);
        let (keys, hasher) = (&self.keys, &self.hasher);
        self.table
            .insert_unique(hash, Entry { offset, key_at, key_bytes }, |entry| hasher.hash_one(key_of(keys, entry)));
        true
    }

    /// The newest offset of a key, if it is in the dirty part.
    pub(crate) fn get(&self, key: &[u8]) -> Option<i64> {
        let entry = self
            .table
            .find(self.hasher.hash_one(key), |entry| is(Bug::KeyHashTrusted) || key_of(&self.keys, entry) == key);
        entry.map(|entry| entry.offset)
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.table.len()
    }

    /// What one more key may take at most: the growth of both is by doubling.
    fn memory_needed(&self, key_bytes: usize) -> usize {
        let keys = self.keys.len() + key_bytes;
        let keys = if keys > self.keys.capacity() { keys.max(self.keys.capacity() * 2) } else { self.keys.capacity() };
        keys + (self.table.len() + 1) * ENTRY_BYTES
    }
}

fn key_of<'a>(keys: &'a [u8], entry: &Entry) -> &'a [u8] {
    let at = entry.key_at as usize;
    keys.get(at..at + entry.key_bytes as usize).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_offset_of_each_key_is_found() {
        let mut map = OffsetMap::new(1 << 20);
        for offset in 0..1000_i64 {
            assert!(map.put(format!("key {}", offset % 7).as_bytes(), offset, false));
        }
        assert_eq!(map.len(), 7);
        assert_eq!(map.get(b"key 0"), Some(994));
        assert_eq!(map.get(b"key 6"), Some(993));
        assert_eq!(map.get(b"key"), None);
        assert!(map.put(b"", 1000, false));
        assert_eq!(map.get(b""), Some(1000));
    }

    #[test]
    fn it_takes_no_more_than_its_memory_and_still_knows_what_it_has() {
        let mut map = OffsetMap::new(4096);
        let fits = (0..10_000_i64).take_while(|offset| map.put(&offset.to_be_bytes(), *offset, false)).count();
        assert!((20..200).contains(&fits), "{fits}");
        assert!(map.keys.capacity() + map.table.capacity() * (size_of::<Entry>() + 1) <= 4096);
        assert!(map.put(&0_i64.to_be_bytes(), 70_000, false), "a known key always fits");
        assert_eq!(map.get(&0_i64.to_be_bytes()), Some(70_000));
    }

    #[test]
    fn what_must_be_noted_is() {
        let mut map = OffsetMap::new(0);
        assert!(!map.put(&[7; 1000], 1, false));
        assert!(map.put(&[7; 1000], 1, true));
        assert_eq!(map.get(&[7; 1000]), Some(1));
    }
}
