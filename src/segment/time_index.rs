//! The time index (`.timeindex`): from which offset on to look for a timestamp.
//!
//! ```text
//! entry, 12 bytes big-endian:  timestamp int64 | relativeOffset int32    (Kafka: TimeIndex)
//! ```
//! Every record with a greater timestamp than an entry's lies behind the entry's offset. An entry that says otherwise
//! would hide records, and no batch can refute it, so a file is used only if its checksum is known and right; otherwise
//! the entries are made anew from the batch headers.

use super::offset_index;

/// Bytes of one entry on disk.
pub(crate) const ENTRY_BYTES: usize = 12;

/// The most bytes that an index of a log can have: an entry for each of the offset index, and one when the log is closed.
pub(crate) fn bytes_max(log_bytes: u64) -> u64 {
    (log_bytes / offset_index::SHORTEST_BATCH_BYTES + 2).saturating_mul(ENTRY_BYTES as u64)
}

/// An entry: the largest timestamp so far, and the last offset of the batch that holds it, relative to the base offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) timestamp: i64,
    pub(crate) relative_offset: u32,
}

/// Encodes entries as the file holds them.
pub(crate) fn encode(entries: &[Entry]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(entries.len() * ENTRY_BYTES);
    for entry in entries {
        bytes.extend_from_slice(&entry.timestamp.to_be_bytes());
        bytes.extend_from_slice(&entry.relative_offset.to_be_bytes());
    }
    bytes
}

/// All entries of a file, as they are.
pub(crate) fn entries(bytes: &[u8]) -> impl Iterator<Item = Entry> + '_ {
    bytes.chunks_exact(ENTRY_BYTES).filter_map(|chunk| {
        let (timestamp, offset) = chunk.split_first_chunk::<8>()?;
        Some(Entry {
            timestamp: i64::from_be_bytes(*timestamp),
            relative_offset: u32::from_be_bytes(offset.try_into().ok()?),
        })
    })
}

/// The running maximum of a segment and the entries that follow from it (Kafka's sparse rule).
#[derive(Clone, Debug, Default)]
pub(crate) struct TimeIndex {
    entries: Vec<Entry>,
    /// The largest timestamp so far and the last offset of the earliest batch that holds it.
    maximum: Option<Entry>,
}

impl TimeIndex {
    /// An index of these entries; the last is the segment's maximum.
    pub(crate) fn from_entries(entries: Vec<Entry>) -> Self {
        let maximum = entries.last().copied();
        Self { entries, maximum }
    }

    /// Takes note of a batch.
    #[inline]
    pub(crate) fn observe(&mut self, max_timestamp: i64, last_relative_offset: u32) {
        if max_timestamp >= 0 && self.maximum.is_none_or(|maximum| max_timestamp > maximum.timestamp) {
            self.maximum = Some(Entry { timestamp: max_timestamp, relative_offset: last_relative_offset });
        }
    }

    /// Adds the running maximum as an entry, if it is greater than the last one.
    pub(crate) fn add_entry(&mut self) {
        if let Some(maximum) = self.maximum
            && self.entries.last().is_none_or(|last| {
                maximum.timestamp > last.timestamp && maximum.relative_offset >= last.relative_offset
            })
        {
            self.entries.push(maximum);
        }
    }

    pub(crate) fn maximum(&self) -> Option<Entry> {
        self.maximum
    }

    pub(crate) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The relative offset from which on a timestamp of at least `timestamp` may be found.
    pub(crate) fn lookup(&self, timestamp: i64) -> u32 {
        let after = self.entries.partition_point(|entry| entry.timestamp <= timestamp);
        match after.checked_sub(1).and_then(|last| self.entries.get(last)) {
            // A record with exactly the entry's timestamp may lie before the end of the entry's batch, and so may an
            // equal one in an earlier batch: only what is strictly smaller may be skipped.
            Some(entry) if entry.timestamp < timestamp => entry.relative_offset,
            Some(_) => {
                let before = self.entries.partition_point(|entry| entry.timestamp < timestamp);
                before.checked_sub(1).and_then(|last| self.entries.get(last)).map_or(0, |entry| entry.relative_offset)
            }
            None => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T0: i64 = 1_700_000_000_000;

    #[test]
    fn the_bytes_are_kafkas() {
        let entries =
            [Entry { timestamp: T0 + 5, relative_offset: 50 }, Entry { timestamp: T0 + 90, relative_offset: 130 }];
        let hex: String = encode(&entries).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "0000018bcfe56805000000320000018bcfe5685a00000082");
        assert_eq!(super::entries(&encode(&entries)).collect::<Vec<_>>(), entries);
    }

    #[test]
    fn the_earliest_batch_of_a_maximum_counts() {
        let mut index = TimeIndex::default();
        for (timestamp, offset) in [(5, 0), (9, 1), (9, 2), (-1, 3), (7, 4)] {
            index.observe(timestamp, offset);
        }
        index.add_entry();
        index.add_entry();
        assert_eq!(index.entries(), [Entry { timestamp: 9, relative_offset: 1 }]);
    }

    #[test]
    fn a_lookup_never_skips_a_record_with_the_timestamp() {
        let index = TimeIndex::from_entries(vec![
            Entry { timestamp: 10, relative_offset: 4 },
            Entry { timestamp: 20, relative_offset: 9 },
        ]);
        for (timestamp, expected) in [(5, 0), (10, 0), (11, 4), (20, 4), (21, 9)] {
            assert_eq!(index.lookup(timestamp), expected, "{timestamp}");
        }
    }

    #[test]
    fn an_index_without_entries_says_look_everywhere() {
        let index = TimeIndex::default();
        assert_eq!((index.lookup(i64::MIN), index.lookup(0), index.lookup(i64::MAX)), (0, 0, 0));
        assert_eq!(index.maximum(), None);
    }

    #[test]
    fn batches_without_a_time_make_no_entry() {
        let mut index = TimeIndex::default();
        index.observe(-1, 4);
        index.add_entry();
        assert!(index.entries().is_empty());
        index.observe(0, 5);
        index.add_entry();
        assert_eq!(index.entries(), [Entry { timestamp: 0, relative_offset: 5 }]);
    }

    #[test]
    fn the_last_entry_of_a_file_is_its_maximum() {
        let mut index = TimeIndex::from_entries(vec![Entry { timestamp: 7, relative_offset: 3 }]);
        index.observe(6, 9);
        index.add_entry();
        assert_eq!(index.entries().len(), 1, "an earlier time changes nothing");
        index.observe(8, 11);
        index.add_entry();
        assert_eq!(index.maximum(), Some(Entry { timestamp: 8, relative_offset: 11 }));
        assert_eq!(index.entries().len(), 2);
    }

    /// The batches of a log and an index over them, at any interval: no look-up starts behind the first record that has
    /// the time.
    #[test]
    fn no_lookup_starts_too_late() {
        let mut seed = 1_u64;
        let mut below = |end: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % end
        };
        for _ in 0..300 {
            let (mut index, mut batches, mut offset) = (TimeIndex::default(), Vec::new(), 0);
            for _ in 0..below(40) {
                let (first, last) = (offset, offset + below(4) as u32);
                let most = below(30) as i64 - 1;
                offset = last + 1;
                index.observe(most, last);
                if below(3) == 0 {
                    index.add_entry();
                }
                batches.push((first, last, most));
            }
            for time in 0..30 {
                let found = index.lookup(time);
                let first = batches.iter().find(|(.., most)| *most >= time);
                assert!(first.is_none_or(|(_, last, _)| found <= *last), "{time}: from {found} in {batches:?}");
            }
        }
    }

    #[test]
    fn a_part_of_an_entry_is_none() {
        let bytes = encode(&[Entry { timestamp: 1, relative_offset: 2 }, Entry { timestamp: 3, relative_offset: 4 }]);
        assert_eq!(super::entries(&bytes[..23]).count(), 1);
        assert_eq!(super::entries(&bytes[..11]).count(), 0);
    }
}
