//! Hashes of keys and the offsets they lead to. PURE: it never looks at a record.
//!
//! Several offsets may stand under one hash: those of two keys that collide, and those of one key that nobody has compared
//! yet. Whoever looks a key up reads the records and compares the key bytes.
//!
//! An entry takes 12 bytes (56 bits of the hash, 40 of the offset relative to a base), and one byte of the table beside it;
//! the table doubles at seven eighths. That is 15 to 30 bytes a key, 20 on average.

use hashbrown::HashTable;

const OFFSET_BITS: u32 = 40;
const OFFSET_MASK: u128 = (1 << OFFSET_BITS) - 1;
const HASH_BITS: u32 = 56;
const HASH_MASK: u64 = (1 << HASH_BITS) - 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry([u32; 3]);

impl Entry {
    fn new(hash: u64, relative_offset: u64) -> Self {
        let packed = u128::from(hash & HASH_MASK) << OFFSET_BITS | u128::from(relative_offset);
        Self([(packed >> 64) as u32, (packed >> 32) as u32, packed as u32])
    }

    fn packed(self) -> u128 {
        u128::from(self.0[0]) << 64 | u128::from(self.0[1]) << 32 | u128::from(self.0[2])
    }

    fn hash(self) -> u64 {
        (self.packed() >> OFFSET_BITS) as u64 & HASH_MASK
    }

    fn relative_offset(self) -> u64 {
        (self.packed() & OFFSET_MASK) as u64
    }
}

/// The table takes its place from the low bits of a hash and its tag from the highest ones.
fn spread(hash: u64) -> u64 {
    let hash = hash & HASH_MASK;
    hash | hash << HASH_BITS
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Table {
    entries: HashTable<Entry>,
    base: i64,
}

/// The offset lies too far from the table's base: the index has to be made anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OutOfRange;

impl Table {
    /// An empty table for offsets from `base` on.
    pub(crate) fn new(base: i64) -> Self {
        Self { entries: HashTable::new(), base }
    }

    /// Adds an offset under a hash. Returns how many others stand there.
    pub(crate) fn insert(&mut self, hash: u64, offset: i64) -> Result<usize, OutOfRange> {
        let relative = u64::try_from(offset.wrapping_sub(self.base)).map_err(|_| OutOfRange)?;
        if u128::from(relative) > OFFSET_MASK || offset < self.base {
            return Err(OutOfRange);
        }
        let entry = Entry::new(hash, relative);
        let wanted = hash & HASH_MASK;
        let mut others = 0;
        let mut is_there = false;
        for found in self.entries.iter_hash(spread(hash)).filter(|found| found.hash() == wanted) {
            is_there |= *found == entry;
            others += usize::from(*found != entry);
        }
        if !is_there {
            self.entries.insert_unique(spread(hash), entry, |entry| spread(entry.hash()));
        }
        Ok(others)
    }

    /// The offsets under a hash, newest first.
    pub(crate) fn offsets(&self, hash: u64) -> Vec<i64> {
        let wanted = hash & HASH_MASK;
        let found = self.entries.iter_hash(spread(hash)).filter(|entry| entry.hash() == wanted);
        let mut offsets: Vec<i64> = found.map(|entry| self.offset_of(*entry)).collect();
        offsets.sort_unstable_by(|a, b| b.cmp(a));
        offsets
    }

    /// The newest offset under a hash, and whether it is the only one.
    #[inline]
    pub(crate) fn newest(&self, hash: u64) -> Option<(i64, bool)> {
        let wanted = hash & HASH_MASK;
        let mut found = self.entries.iter_hash(spread(hash)).filter(|entry| entry.hash() == wanted);
        let first = self.offset_of(*found.next()?);
        let rest = found.map(|entry| self.offset_of(*entry)).max();
        Some((rest.map_or(first, |rest| rest.max(first)), rest.is_none()))
    }

    /// Takes one offset away.
    pub(crate) fn remove(&mut self, hash: u64, offset: i64) {
        let wanted = Entry::new(hash, offset.wrapping_sub(self.base).cast_unsigned());
        if let Ok(found) = self.entries.find_entry(spread(hash), |entry| *entry == wanted) {
            found.remove();
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Every hash with its offset, in no order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, i64)> + '_ {
        self.entries.iter().map(|entry| (entry.hash(), self.offset_of(*entry)))
    }

    /// Bytes of memory that it takes.
    pub(crate) fn memory_bytes(&self) -> usize {
        // The capacity is seven eighths of the places.
        self.entries.capacity().div_ceil(7) * 8 * (size_of::<Entry>() + 1)
    }

    /// Bytes that it will take with more entries.
    pub(crate) fn memory_bytes_with(&self, more: usize) -> usize {
        let needed = self.entries.len() + more;
        if needed <= self.entries.capacity() {
            return self.memory_bytes();
        }
        (needed * 8 / 7 + 1).next_power_of_two().max(8) * (size_of::<Entry>() + 1)
    }

    fn offset_of(&self, entry: Entry) -> i64 {
        self.base.wrapping_add(entry.relative_offset().cast_signed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(inserted: &[(u64, i64)], hash: u64, expected: &[i64]) {
        let mut table = Table::new(100);
        for (hash, offset) in inserted {
            table.insert(*hash, *offset).unwrap();
        }
        assert_eq!(table.offsets(hash), expected, "{inserted:?}");
        assert_eq!(table.newest(hash), expected.first().map(|first| (*first, expected.len() == 1)));
    }

    #[test]
    fn offsets_are_found_by_their_hash_newest_first() {
        check(&[], 7, &[]);
        check(&[(7, 100)], 7, &[100]);
        check(&[(7, 100), (8, 101), (7, 105), (7, 103)], 7, &[105, 103, 100]);
        check(&[(7, 100), (7, 100)], 7, &[100]);
        check(&[(u64::MAX, 100 + (1 << 40) - 1)], u64::MAX, &[100 + (1 << 40) - 1]);
    }

    #[test]
    fn an_offset_that_does_not_fit_is_refused() {
        let mut table = Table::new(100);
        assert_eq!(table.insert(1, 99), Err(OutOfRange));
        assert_eq!(table.insert(1, 100 + (1 << 40)), Err(OutOfRange));
        assert_eq!(table.insert(1, i64::MAX), Err(OutOfRange));
        assert_eq!(table.insert(1, 100), Ok(0));
        assert_eq!(table.insert(1, 101), Ok(1));
        assert_eq!(table.insert(1, 102), Ok(2));
        assert_eq!(table.insert(1, 102), Ok(2), "it is there already");
    }

    #[test]
    fn what_is_taken_away_is_gone_and_nothing_else() {
        let mut table = Table::new(0);
        for offset in 0..1000 {
            table.insert(offset as u64 % 10, offset).unwrap();
        }
        for offset in 0..990 {
            table.remove(offset as u64 % 10, offset);
        }
        table.remove(3, 5000);
        assert_eq!(table.len(), 10);
        assert_eq!(table.offsets(3), [993]);
    }

    #[test]
    fn an_entry_takes_thirty_bytes_at_most() {
        let mut table = Table::new(0);
        for offset in 0..100_000_i64 {
            let hash = (offset as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let room = table.memory_bytes_with(1);
            table.insert(hash, offset).unwrap();
            assert!(table.memory_bytes() <= room, "{offset}");
            let each = table.memory_bytes() / table.len();
            assert!(offset < 1000 || (14..=30).contains(&each), "{each} at {offset}");
        }
        assert_eq!(table.iter().count(), 100_000);
    }
}
