//! Hashes of keys and the offsets they lead to. PURE: it never looks at a record.
//!
//! Several offsets may stand under one hash: those of two keys that collide, and those of one key that nobody has compared
//! yet. Whoever looks a key up reads the records and compares the key bytes.
//!
//! It is made of [shelves](super::shelf), which the low bits of a hash choose between. There is one for every 2048 entries:
//! with each 2048 more, the next one in turn is divided (linear hashing), and in between a shelf grows by a sixth. So no
//! insertion moves more than a few thousand entries, and an entry takes 19 to 23 bytes at every size from a thousand on.

use crate::partition::key_entry::{KeyEntry, NO_POSITION};

use super::shelf::Shelf;

/// Entries of a shelf on average: one that is still to be divided in this turn has up to twice as many.
const SHELF_ENTRIES: usize = 2048;
/// The choice of a shelf looks at no more bits than these.
const SHELVES_MAX: usize = 1 << 24;

/// See the module.
#[derive(Debug)]
pub(crate) struct Table {
    shelves: Vec<Shelf>,
    base: i64,
    len: usize,
    /// Of all shelves together.
    places: usize,
}

/// The offset lies too far from the table's base: the index has to be made anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OutOfRange;

/// Where a hash leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) offset: i64,
    /// Where the batch begins in its segment, if somebody noted it.
    pub(crate) position: Option<u32>,
}

impl Table {
    /// An empty table for offsets from `base` on.
    pub(crate) fn new(base: i64) -> Self {
        Self::with_room(base, 0)
    }

    /// One with room for so many entries.
    pub(crate) fn with_room(base: i64, len: usize) -> Self {
        let count = (len / SHELF_ENTRIES).clamp(1, SHELVES_MAX).next_power_of_two();
        let shelves: Vec<Shelf> = (0..count).map(|_| Shelf::with_room(len / count)).collect();
        let places = shelves.iter().map(Shelf::places).sum();
        Self { shelves, base, len: 0, places }
    }

    /// Of the shelves that there are, the one of a hash: by as many bits as number them all, or one less where that shelf
    /// is not there yet.
    #[inline]
    fn shelf_of(&self, hash: u64) -> usize {
        let mask = self.shelves.len().next_power_of_two() - 1;
        let at = hash as usize & mask;
        if at < self.shelves.len() { at } else { at & (mask >> 1) }
    }

    /// What offsets are relative to.
    pub(crate) fn base(&self) -> i64 {
        self.base
    }

    /// The entry of an offset under a hash.
    pub(crate) fn entry(&self, hash: u64, offset: i64, position: u64) -> Result<KeyEntry, OutOfRange> {
        KeyEntry::at(hash, self.base, offset, position).ok_or(OutOfRange)
    }

    /// Adds an entry. Returns how many others stand under its hash.
    pub(crate) fn insert(&mut self, entry: KeyEntry) -> usize {
        let at = self.shelf_of(entry.hash());
        let Some(shelf) = self.shelves.get_mut(at) else { return 0 };
        let before = shelf.places();
        let is_new = shelf.insert(entry);
        let others = shelf.run(least(entry.hash())).len() - 1;
        self.places = self.places + shelf.places() - before;
        self.len += usize::from(is_new);
        if self.must_divide(self.len) {
            self.divide();
        }
        others
    }

    fn must_divide(&self, len: usize) -> bool {
        len > self.shelves.len() * SHELF_ENTRIES && self.shelves.len() < SHELVES_MAX
    }

    /// Divides the shelf whose turn it is: the next bit of the hash says who moves into the new one.
    fn divide(&mut self) {
        let count = self.shelves.len();
        let bit = (count + 1).next_power_of_two() / 2;
        let Some(old) = self.shelves.get_mut(count - bit) else { return };
        let before = old.places();
        let goes = |entry: &KeyEntry| entry.hash() as usize & bit != 0;
        let going: Vec<KeyEntry> = old.iter().filter(goes).collect();
        old.keep(|entry| !goes(&entry));
        let new = Shelf::of_sorted(going.iter().copied(), going.len());
        self.places = self.places + old.places() + new.places() - before;
        self.shelves.push(new);
    }

    /// The places under a hash, newest first.
    pub(crate) fn places_of(&self, hash: u64) -> Vec<Place> {
        self.run(hash).iter().rev().map(|&entry| self.place(entry)).collect()
    }

    /// The newest place under a hash, and whether it is the only one.
    #[inline]
    pub(crate) fn newest(&self, hash: u64) -> Option<(Place, bool)> {
        let run = self.run(hash);
        run.last().map(|&entry| (self.place(entry), run.len() == 1))
    }

    #[inline]
    fn run(&self, hash: u64) -> &[KeyEntry] {
        self.shelves.get(self.shelf_of(hash)).map_or(&[], |shelf| shelf.run(least(hash)))
    }

    /// Notes where the batch of a record begins. False if the record has no entry.
    pub(crate) fn set_position(&mut self, hash: u64, offset: i64, position: u64) -> bool {
        let Ok(entry) = self.entry(hash, offset, position) else { return false };
        let at = self.shelf_of(entry.hash());
        let found = self.shelves.get_mut(at).and_then(|shelf| shelf.get_mut(entry));
        found.map(|found| *found = entry).is_some()
    }

    /// Forgets the positions of the records that a call names.
    pub(crate) fn forget_positions(&mut self, mut is_void: impl FnMut(i64) -> bool) {
        let base = self.base;
        for entry in self.shelves.iter_mut().flat_map(Shelf::iter_mut) {
            if is_void(base.wrapping_add(entry.relative_offset().cast_signed())) {
                *entry = entry.with_position(NO_POSITION);
            }
        }
    }

    /// Takes one offset away.
    pub(crate) fn remove(&mut self, hash: u64, offset: i64) {
        let Ok(entry) = self.entry(hash, offset, 0) else { return };
        let at = self.shelf_of(entry.hash());
        let Some(shelf) = self.shelves.get_mut(at) else { return };
        let before = shelf.places();
        self.len -= usize::from(shelf.remove(entry));
        self.places = self.places + shelf.places() - before;
    }

    /// Keeps the entries whose offset and position a call wants.
    pub(crate) fn keep(&mut self, mut wanted: impl FnMut(i64, Option<u32>) -> bool) {
        let base = self.base;
        let mut is_wanted =
            |entry: KeyEntry| wanted(base.wrapping_add(entry.relative_offset().cast_signed()), entry.position());
        for shelf in &mut self.shelves {
            if !shelf.iter().all(&mut is_wanted) {
                shelf.keep(&mut is_wanted);
            }
        }
        self.len = self.shelves.iter().map(Shelf::len).sum();
        self.places = self.shelves.iter().map(Shelf::places).sum();
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Every entry, in the order of its shelf.
    pub(crate) fn entries(&self) -> impl Iterator<Item = KeyEntry> + '_ {
        self.shelves.iter().flat_map(Shelf::iter)
    }

    /// Every hash with its place, in no order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, Place)> + '_ {
        self.entries().map(|entry| (entry.hash(), self.place(entry)))
    }

    /// Bytes of memory that it takes.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.places * size_of::<KeyEntry>() + self.shelves.capacity() * size_of::<Shelf>()
    }

    /// Bytes that one more entry under a hash makes it take, or a little less where a shelf is divided.
    #[inline]
    pub(crate) fn growth_bytes(&self, hash: u64) -> usize {
        let Some(shelf) = self.shelves.get(self.shelf_of(hash)) else { return 0 };
        (shelf.places_with_one_more() - shelf.places()) * size_of::<KeyEntry>()
    }

    #[inline]
    fn place(&self, entry: KeyEntry) -> Place {
        Place { offset: self.offset_of(entry), position: entry.position() }
    }

    #[inline]
    pub(crate) fn offset_of(&self, entry: KeyEntry) -> i64 {
        self.base.wrapping_add(entry.relative_offset().cast_signed())
    }
}

/// The least entry that there can be of a hash.
#[inline]
fn least(hash: u64) -> KeyEntry {
    KeyEntry::new(hash, 0, 0).unwrap_or(KeyEntry::EMPTY)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn insert(table: &mut Table, hash: u64, offset: i64) -> Result<usize, OutOfRange> {
        let entry = table.entry(hash, offset, 7)?;
        Ok(table.insert(entry))
    }

    fn check(inserted: &[(u64, i64)], hash: u64, expected: &[i64]) {
        let mut table = Table::new(100);
        for (hash, offset) in inserted {
            insert(&mut table, *hash, *offset).unwrap();
        }
        let offsets: Vec<i64> = table.places_of(hash).iter().map(|place| place.offset).collect();
        assert_eq!(offsets, expected, "{inserted:?}");
        let newest = table.newest(hash).map(|(place, is_only)| (place.offset, is_only));
        assert_eq!(newest, expected.first().map(|first| (*first, expected.len() == 1)));
    }

    /// Whether an offset stands under a hash.
    fn holds(table: &Table, hash: u64, offset: i64) -> bool {
        table.places_of(hash).iter().any(|place| place.offset == offset)
    }

    fn spread(n: usize) -> u64 {
        (n as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)
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
        assert_eq!(insert(&mut table, 1, 99), Err(OutOfRange));
        assert_eq!(insert(&mut table, 1, 100 + (1 << 40)), Err(OutOfRange));
        assert_eq!(insert(&mut table, 1, i64::MAX), Err(OutOfRange));
        assert_eq!(insert(&mut table, 1, 100), Ok(0));
        assert_eq!(insert(&mut table, 1, 101), Ok(1));
        assert_eq!(insert(&mut table, 1, 102), Ok(2));
        assert_eq!(insert(&mut table, 1, 102), Ok(2), "it is there already");
    }

    #[test]
    fn what_is_taken_away_is_gone_and_nothing_else() {
        let mut table = Table::new(0);
        for offset in 0..10_000 {
            insert(&mut table, spread(offset as usize % 5000), offset).unwrap();
        }
        for offset in 0..5000 {
            table.remove(spread(offset as usize), offset);
        }
        table.remove(3, 5000);
        assert_eq!((table.len(), table.iter().count()), (5000, 5000));
        for key in 0..5000 {
            assert_eq!(table.places_of(spread(key)), [Place { offset: key as i64 + 5000, position: Some(7) }]);
        }
    }

    #[test]
    fn a_position_is_noted_and_forgotten_without_a_change_of_anything_else() {
        let mut table = Table::new(50);
        (0..3000).for_each(|n| assert_eq!(insert(&mut table, spread(n), 50 + n as i64), Ok(0)));
        assert!(table.set_position(spread(5), 55, 4000) && !table.set_position(spread(5), 56, 4000));
        assert!(!table.set_position(spread(5), 0, 4000), "below the base");
        assert_eq!(table.newest(spread(5)), Some((Place { offset: 55, position: Some(4000) }, true)));
        table.forget_positions(|offset| offset < 1000);
        let unknown = table.iter().filter(|(_, place)| place.position.is_none()).count();
        assert_eq!((unknown, table.len()), (950, 3000));
        assert!(holds(&table, spread(5), 55) && !holds(&table, spread(5), 56));
    }

    #[test]
    fn an_entry_takes_24_bytes_at_most_at_every_size() {
        let mut table = Table::new(0);
        let mut most = 0.0_f64;
        for n in 0..300_000 {
            let before = table.memory_bytes();
            let growth = table.growth_bytes(spread(n));
            insert(&mut table, spread(n), n as i64).unwrap();
            let grown = table.memory_bytes().saturating_sub(before);
            assert!(grown <= growth + (64 << 10), "{grown} instead of {growth} at {n}");
            if n >= 1000 {
                most = most.max(table.memory_bytes() as f64 / table.len() as f64);
            }
        }
        assert!(most <= 24.0, "{most}");
        assert_eq!(table.iter().count(), 300_000);
        for n in 0..290_000 {
            table.remove(spread(n), n as i64);
        }
        assert!(table.memory_bytes() < 10_000 * 48, "{} bytes for {}", table.memory_bytes(), table.len());
        assert!((290_000..300_000).all(|n| holds(&table, spread(n), n as i64)));
    }

    #[test]
    fn room_that_is_asked_for_is_about_what_is_needed() {
        for count in [0, 1, 1000, 5000, 100_000] {
            let mut table = Table::with_room(0, count);
            let room = table.memory_bytes();
            (0..count).for_each(|n| assert_eq!(insert(&mut table, spread(n), n as i64), Ok(0)));
            assert!(table.memory_bytes() <= room + room / 4 + 2000, "{count}: {room} {}", table.memory_bytes());
            assert_eq!(table.len(), count);
        }
    }
}
