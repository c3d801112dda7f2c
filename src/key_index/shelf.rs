//! A sorted array with gaps: one of the parts that a [`Table`](super::table::Table) is made of. PURE.
//!
//! The entries rise by hash and offset. A hash says where its entries would stand if all were spread evenly; they stand there
//! or behind, with no gap in between. So a search begins at that place, meets smaller hashes only, and ends at the first
//! that is not: a few neighbours in memory at 86 of 100 places taken, whether it finds something or not.

use crate::partition::key_entry::KeyEntry;

/// Its places are so many hundredths full at most, and after it has grown or shrunk.
const FULL: usize = 86;
const FRESH: usize = 75;
/// Below this it is made smaller.
const SPARSE: usize = 45;
const HOMES_MIN: usize = 8;

/// See the module.
#[derive(Debug)]
pub(crate) struct Shelf {
    /// Places that hashes lead to, and some behind them for what is pushed beyond the end.
    places: Box<[KeyEntry]>,
    homes: usize,
    len: usize,
}

/// Places behind the homes.
fn tail(homes: usize) -> usize {
    (homes / 16 + 8).min(48)
}

fn homes_for(len: usize, hundredths: usize) -> usize {
    (len * 100 / hundredths + 1).max(HOMES_MIN)
}

/// Where the entries of a hash stand if nothing pushes them: by bits that the choice of the shelf does not look at.
#[inline]
fn home(hash: u64, homes: usize) -> usize {
    (((hash >> 24) * homes as u64) >> 32) as usize
}

impl Shelf {
    /// One with room for so many entries.
    pub(crate) fn with_room(len: usize) -> Self {
        let homes = homes_for(len, FRESH);
        Self::of_homes(homes, tail(homes))
    }

    fn of_homes(homes: usize, tail: usize) -> Self {
        Self { places: vec![KeyEntry::EMPTY; homes + tail].into(), homes, len: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn places(&self) -> usize {
        self.places.len()
    }

    /// Places that there will be after one more entry, if none has to be pushed beyond the end.
    #[inline]
    pub(crate) fn places_with_one_more(&self) -> usize {
        if (self.len + 1) * 100 <= self.homes * FULL {
            return self.places.len();
        }
        let homes = homes_for(self.len + 1, FRESH);
        (homes + tail(homes)).max(self.places.len())
    }

    /// The first place whose entry is not before this one; the number of places if there is none.
    #[inline]
    fn find(&self, entry: KeyEntry) -> usize {
        let from = home(entry.hash(), self.homes);
        let behind = self.places.get(from..).unwrap_or_default();
        from + behind.iter().position(|there| !there.is_before(entry)).unwrap_or(behind.len())
    }

    /// The entries of a hash, oldest first. `first` is the least that there can be of it.
    #[inline]
    pub(crate) fn run(&self, first: KeyEntry) -> &[KeyEntry] {
        let from = self.find(first);
        let behind = self.places.get(from..).unwrap_or_default();
        let of_hash = |there: &&KeyEntry| there.hash() == first.hash() && !there.is_empty();
        behind.get(..behind.iter().take_while(of_hash).count()).unwrap_or_default()
    }

    /// Adds an entry, or takes over its position if its record is there already; false in that case.
    pub(crate) fn insert(&mut self, entry: KeyEntry) -> bool {
        let at = self.find(entry);
        if let Some(there) = self.places.get_mut(at).filter(|there| there.is_same_record(entry) && !there.is_empty()) {
            *there = entry;
            return false;
        }
        let is_full = (self.len + 1) * 100 > self.homes * FULL;
        if is_full || !self.put(entry, at) {
            let entries: Vec<KeyEntry> = self.iter().collect();
            let at = entries.partition_point(|there| there.is_before(entry));
            let (before, behind) = entries.split_at(at);
            let all = before.iter().copied().chain([entry]).chain(behind.iter().copied());
            *self = Self::of_sorted(all, entries.len() + 1);
        }
        true
    }

    /// Puts an entry where [`find`](Self::find) says and moves those behind it on; false if there is no gap behind it.
    fn put(&mut self, entry: KeyEntry, at: usize) -> bool {
        let behind = self.places.get(at..).unwrap_or_default();
        let Some(gap) = behind.iter().position(|there| there.is_empty()) else { return false };
        self.places.copy_within(at..at + gap, at + 1);
        if let Some(place) = self.places.get_mut(at) {
            *place = entry;
        }
        self.len += 1;
        true
    }

    /// A shelf of entries that rise.
    pub(crate) fn of_sorted(entries: impl Iterator<Item = KeyEntry> + Clone, len: usize) -> Self {
        let homes = homes_for(len, FRESH);
        let mut tail = tail(homes);
        loop {
            let mut made = Self::of_homes(homes, tail);
            if made.lay(entries.clone()) {
                return made;
            }
            // Too many at its end, which hashes that are spread do not do. At the latest there is room for all of them there.
            tail *= 2;
        }
    }

    fn lay(&mut self, entries: impl Iterator<Item = KeyEntry>) -> bool {
        let mut next = 0;
        for entry in entries {
            let at = home(entry.hash(), self.homes).max(next);
            let Some(place) = self.places.get_mut(at) else { return false };
            *place = entry;
            next = at + 1;
            self.len += 1;
        }
        true
    }

    /// The entry of the same record.
    #[inline]
    pub(crate) fn get_mut(&mut self, entry: KeyEntry) -> Option<&mut KeyEntry> {
        let at = self.find(entry);
        self.places.get_mut(at).filter(|there| there.is_same_record(entry) && !there.is_empty())
    }

    /// Takes the entry of the same record away, and closes the gap. False if there is none.
    pub(crate) fn remove(&mut self, entry: KeyEntry) -> bool {
        let mut at = self.find(entry);
        if !self.places.get(at).is_some_and(|there| there.is_same_record(entry) && !there.is_empty()) {
            return false;
        }
        while let Some(&next) = self.places.get(at + 1).filter(|next| !next.is_empty())
            && home(next.hash(), self.homes) <= at
            && let Some(place) = self.places.get_mut(at)
        {
            *place = next;
            at += 1;
        }
        if let Some(place) = self.places.get_mut(at) {
            *place = KeyEntry::EMPTY;
        }
        self.len -= 1;
        if self.homes > HOMES_MIN * 2 && self.len * 100 < self.homes * SPARSE {
            self.keep(|_| true);
        }
        true
    }

    /// Keeps the entries that a call wants, in a shelf of their size.
    pub(crate) fn keep(&mut self, mut wanted: impl FnMut(KeyEntry) -> bool) {
        let kept: Vec<KeyEntry> = self.iter().filter(|&entry| wanted(entry)).collect();
        *self = Self::of_sorted(kept.iter().copied(), kept.len());
    }

    /// All entries, rising.
    pub(crate) fn iter(&self) -> impl Iterator<Item = KeyEntry> + '_ {
        self.places.iter().copied().filter(|entry| !entry.is_empty())
    }

    /// All entries, whose positions may be changed and nothing else.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut KeyEntry> {
        self.places.iter_mut().filter(|entry| !entry.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// Everything that holds of a shelf, whatever was done to it.
    fn check_order(shelf: &Shelf) {
        let mut last: Option<KeyEntry> = None;
        for (at, entry) in shelf.places.iter().enumerate().filter(|(_, entry)| !entry.is_empty()) {
            let from = home(entry.hash(), shelf.homes);
            assert!(from <= at, "{entry:?} stands before its place");
            assert!(shelf.places[from..at].iter().all(|there| !there.is_empty()), "a gap before {entry:?}");
            assert!(last.is_none_or(|last| last.is_before(*entry)), "{entry:?} is out of order");
            last = Some(*entry);
        }
        assert_eq!(shelf.iter().count(), shelf.len());
    }

    /// Entries under hashes that are `spread` or all crowd at one end, put in and taken out at random, against a set.
    fn check(hash_of: impl Fn(u64) -> u64, steps: u64) {
        let (mut shelf, mut set) = (Shelf::with_room(0), BTreeSet::new());
        let mut seed = 7_u64;
        for step in 0..steps {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let entry = KeyEntry::new(hash_of(seed >> 54), (seed >> 33) % 3, (step % 1000) as u32).unwrap();
            let record = (entry.hash(), entry.relative_offset());
            let grows = (step / 400) % 2 == 0;
            if (seed >> 20) % 4 < if grows { 3 } else { 1 } {
                assert_eq!(shelf.insert(entry), set.insert(record), "step {step}");
                assert_eq!(shelf.get_mut(entry).map(|there| there.position()), Some(entry.position()));
            } else {
                assert_eq!(shelf.remove(entry), set.remove(&record), "step {step}");
            }
            if step % 16 == 0 {
                check_order(&shelf);
            }
            let run = shelf.run(KeyEntry::new(entry.hash(), 0, 0).unwrap());
            let there = run.iter().map(|entry| entry.relative_offset());
            let wanted = set.range((record.0, 0)..=(record.0, u64::MAX)).map(|(_, offset)| *offset);
            assert!(there.eq(wanted), "step {step}");
        }
        let all = shelf.iter().map(|entry| (entry.hash(), entry.relative_offset()));
        assert!(all.eq(set.iter().copied()));
    }

    #[test]
    fn it_holds_what_a_set_holds_however_the_hashes_lie() {
        check(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15), 8000);
        check(|n| (1 << 56) - 1 - n, 4000);
        check(|n| n << 20, 4000);
        check(|n| n % 2, 2000);
    }

    #[test]
    fn what_is_not_wanted_goes() {
        let mut shelf = Shelf::with_room(0);
        for n in 0..1000_u64 {
            shelf.insert(KeyEntry::new(n.wrapping_mul(0x9e37_79b9_7f4a_7c15), n, 0).unwrap());
        }
        let before = shelf.places();
        shelf.keep(|entry| entry.relative_offset() < 10);
        check_order(&shelf);
        assert_eq!(shelf.len(), 10);
        assert!(shelf.places() * 10 < before, "{before} {}", shelf.places());
    }
}
