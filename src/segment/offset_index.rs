//! The offset index (`.index`): where in the log to start looking for an offset.
//!
//! ```text
//! entry, 8 bytes big-endian:  relativeOffset int32 | position int32      (Kafka: OffsetIndex)
//! ```
//! The batch that starts at `position` ends at offset `base + relativeOffset`. An entry is a hint and nothing more:
//! whoever follows it compares it with the batch that it leads to. Entries added since the file was loaded live in
//! memory; searching does not take a lock.

use bytes::Bytes;

use super::append_table::AppendTable;

/// Bytes of one entry on disk.
pub(crate) const ENTRY_BYTES: usize = 8;

/// The most bytes that an index of a log can have: no two entries lead to the same batch.
pub(crate) fn bytes_max(log_bytes: u64) -> u64 {
    (log_bytes / SHORTEST_BATCH_BYTES + 1).saturating_mul(ENTRY_BYTES as u64)
}

/// Nothing in a log is shorter: an entry of the oldest format without key and value.
pub(crate) const SHORTEST_BATCH_BYTES: u64 = 26;

/// An entry: the batch at `position` ends at `base + relative_offset`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) relative_offset: u32,
    pub(crate) position: u32,
}

impl Entry {
    fn pack(self) -> u64 {
        u64::from(self.relative_offset) << 32 | u64::from(self.position)
    }

    fn unpack(packed: u64) -> Self {
        Self { relative_offset: (packed >> 32) as u32, position: packed as u32 }
    }
}

/// Encodes entries as the file holds them.
pub(crate) fn encode(entries: impl Iterator<Item = Entry>) -> Vec<u8> {
    entries.flat_map(|entry| entry.pack().to_be_bytes()).collect()
}

/// The entries of a file that rise strictly from its start: what follows the first that does not is no entry (zeros of
/// a preallocated file, or damage).
pub(crate) fn rising_entries(bytes: &[u8]) -> impl Iterator<Item = Entry> + '_ {
    let mut last: Option<Entry> = None;
    entries(bytes).take_while(move |entry| {
        let rises =
            last.is_none_or(|last| entry.relative_offset > last.relative_offset && entry.position > last.position);
        last = Some(*entry);
        rises && entry.position > 0
    })
}

/// All entries of a file, as they are.
pub(crate) fn entries(bytes: &[u8]) -> impl Iterator<Item = Entry> + '_ {
    bytes.chunks_exact(ENTRY_BYTES).filter_map(|chunk| chunk.try_into().ok().map(u64::from_be_bytes)).map(Entry::unpack)
}

/// Two sources of entries behind one search: a file's bytes, or the table in memory.
trait Entries {
    fn len(&self) -> usize;
    fn at(&self, index: usize) -> Entry;
}

struct FileEntries<'a>(&'a [u8]);

impl Entries for FileEntries<'_> {
    fn len(&self) -> usize {
        self.0.len() / ENTRY_BYTES
    }

    #[inline]
    fn at(&self, index: usize) -> Entry {
        let start = index * ENTRY_BYTES;
        let entry = self.0.get(start..start + ENTRY_BYTES).and_then(|bytes| bytes.try_into().ok());
        Entry::unpack(entry.map_or(0, u64::from_be_bytes))
    }
}

impl Entries for AppendTable {
    fn len(&self) -> usize {
        AppendTable::len(self)
    }

    #[inline]
    fn at(&self, index: usize) -> Entry {
        Entry::unpack(self.get(index))
    }
}

/// The last entry whose offset is at most `target`: interpolation guesses, doubling steps bracket the answer, halving
/// finds it. Offsets are nearly even in a log, so the bracket is small. Ends on any bytes, sorted or not.
fn search(entries: &impl Entries, target: u32) -> Option<Entry> {
    let last = entries.len().checked_sub(1)?;
    let first_entry = entries.at(0);
    if first_entry.relative_offset > target {
        return None;
    }
    let last_entry = entries.at(last);
    if last_entry.relative_offset <= target {
        return Some(last_entry);
    }
    let (mut low, mut high) = bracket(entries, target, last, guess(first_entry, last_entry, last, target));
    let mut found = entries.at(low);
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        let entry = entries.at(middle);
        if entry.relative_offset <= target {
            (low, found) = (middle, entry);
        } else {
            high = middle;
        }
    }
    Some(found)
}

fn guess(first: Entry, last: Entry, last_index: usize, target: u32) -> usize {
    let ahead = u64::from(target - first.relative_offset);
    let span = u64::from(last.relative_offset.saturating_sub(first.relative_offset)).max(1);
    // Below 2^32 times below 2^28 entries: no overflow.
    let estimate = ahead.min(span) * last_index as u64 / span;
    (estimate as usize).min(last_index)
}

/// Steps away from a guess, each step twice as long, until `at(low) <= target < at(high)`.
fn bracket(entries: &impl Entries, target: u32, last: usize, guess: usize) -> (usize, usize) {
    let mut step = 1;
    if entries.at(guess).relative_offset <= target {
        let mut low = guess;
        loop {
            let high = (low + step).min(last);
            if high == last || entries.at(high).relative_offset > target {
                return (low, high.max(low + 1));
            }
            low = high;
            step *= 2;
        }
    }
    let mut high = guess;
    loop {
        let low = high.saturating_sub(step);
        if low == 0 || entries.at(low).relative_offset <= target {
            return (low, high.max(low + 1));
        }
        high = low;
        step *= 2;
    }
}

/// The entries of one segment: those of its file, then those added since.
#[derive(Debug)]
pub(crate) struct OffsetIndex {
    recent: AppendTable,
}

impl OffsetIndex {
    pub(crate) fn new() -> Self {
        Self { recent: AppendTable::new() }
    }

    pub(crate) fn push(&self, entry: Entry) -> bool {
        self.recent.push(entry.pack())
    }

    /// Entries added in memory.
    pub(crate) fn recent_len(&self) -> usize {
        self.recent.len()
    }

    pub(crate) fn recent(&self) -> impl Iterator<Item = Entry> + '_ {
        (0..self.recent.len()).map(|index| Entry::unpack(self.recent.get(index)))
    }

    /// The best entry of those in memory; `None` if the target lies before them.
    #[inline]
    pub(crate) fn lookup_recent(&self, target: u32) -> Option<Entry> {
        search(&self.recent, target)
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        self.recent.memory_bytes()
    }
}

/// The best entry of a file's bytes.
pub(crate) fn lookup_stored(bytes: &Bytes, target: u32) -> Option<Entry> {
    search(&FileEntries(bytes), target)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(offsets: &[u32], target: u32) {
        let entries: Vec<Entry> =
            offsets.iter().map(|&offset| Entry { relative_offset: offset, position: offset + 1 }).collect();
        let slow = entries.iter().copied().rfind(|entry| entry.relative_offset <= target);
        let bytes = Bytes::from(encode(entries.iter().copied()));
        assert_eq!(lookup_stored(&bytes, target), slow, "{target} in {offsets:?}");
        let index = OffsetIndex::new();
        entries.iter().for_each(|&entry| assert!(index.push(entry)));
        assert_eq!(index.lookup_recent(target), slow);
    }

    #[test]
    fn a_search_finds_what_a_scan_finds() {
        let mut seed = 0x9e37_79b9_u64;
        let mut next = move |below: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % below
        };
        for round in 0..300u64 {
            let mut offsets: Vec<u32> = (0..next(200)).map(|_| next(1 << (1 + round % 30)) as u32).collect();
            offsets.sort_unstable();
            offsets.dedup();
            let targets: Vec<u32> =
                offsets.iter().flat_map(|&offset| [offset.saturating_sub(1), offset, offset + 1]).collect();
            for target in targets.into_iter().chain([0, u32::MAX]) {
                check(&offsets, target);
            }
        }
    }

    #[test]
    fn the_bytes_are_kafkas() {
        let entries = [Entry { relative_offset: 50, position: 4200 }, Entry { relative_offset: 130, position: 8500 }];
        let bytes = encode(entries.into_iter());
        assert_eq!(bytes, [0, 0, 0, 0x32, 0, 0, 0x10, 0x68, 0, 0, 0, 0x82, 0, 0, 0x21, 0x34]);
        assert_eq!(super::entries(&bytes).collect::<Vec<_>>(), entries);
    }

    #[test]
    fn zeros_behind_the_entries_are_not_entries() {
        let mut bytes = encode([Entry { relative_offset: 4, position: 4384 }].into_iter());
        bytes.extend([0; 80]);
        assert_eq!(rising_entries(&bytes).count(), 1);
    }

    #[test]
    fn the_last_entry_at_or_below_is_found_at_the_edges() {
        check(&[], 5);
        check(&[7], 6);
        check(&[7], 7);
        check(&[0, u32::MAX - 1], u32::MAX - 2);
        check(&[0, u32::MAX - 1], u32::MAX);
        check(&[0, 1, 2, 3, u32::MAX - 1], 3);
        check(&[0, 1_000_000, 1_000_001, 1_000_002], 999_999);
    }

    /// A damaged file may hold anything; a search in it ends, and finds nothing that is not in it.
    #[test]
    fn a_search_in_any_bytes_ends() {
        let mut seed = 7_u64;
        for _ in 0..2000 {
            let bytes: Vec<u8> = (0..8 * (seed % 23) as usize + seed as usize % 3)
                .map(|_| {
                    seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    (seed >> 60) as u8
                })
                .collect();
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(3);
            let all: Vec<Entry> = entries(&bytes).collect();
            for target in [0, 1, 0x0101_0101, u32::MAX] {
                let found = lookup_stored(&Bytes::from(bytes.clone()), target);
                assert!(found.is_none_or(|found| all.contains(&found) && found.relative_offset <= target));
            }
        }
    }

    #[test]
    fn entries_are_taken_up_to_the_first_that_does_not_rise() {
        let entry = |relative_offset, position| Entry { relative_offset, position };
        let count = |entries: &[Entry]| rising_entries(&encode(entries.iter().copied())).count();
        assert_eq!(count(&[entry(1, 10), entry(2, 20), entry(3, 30)]), 3);
        assert_eq!(count(&[entry(1, 10), entry(1, 20), entry(3, 30)]), 1, "the same offset");
        assert_eq!(count(&[entry(1, 10), entry(2, 10), entry(3, 30)]), 1, "the same position");
        assert_eq!(count(&[entry(5, 10), entry(2, 20)]), 1, "an offset that falls");
        assert_eq!(count(&[entry(1, 0), entry(2, 20)]), 0, "no entry leads to the first batch");
        assert_eq!(entries(&[0; 15]).count(), 1, "a part of an entry is none");
    }

    #[test]
    fn what_was_added_last_is_kept_in_order() {
        let index = OffsetIndex::new();
        assert_eq!((index.lookup_recent(u32::MAX), index.recent_len(), index.memory_bytes()), (None, 0, 0));
        let added: Vec<Entry> =
            (0..200).map(|n| Entry { relative_offset: n * 3, position: u32::MAX - 200 + n }).collect();
        added.iter().for_each(|entry| assert!(index.push(*entry)));
        assert_eq!(index.recent().collect::<Vec<_>>(), added);
        assert!(index.memory_bytes() >= 200 * 8);
    }
}
