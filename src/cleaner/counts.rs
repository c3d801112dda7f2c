//! What a compaction did, in numbers.

/// What a round of compaction exchanged, so far or as a whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CompactionCounts {
    /// Segments that were replaced, or found to need no change.
    pub segments_before: usize,
    /// Segments that are in their place.
    pub segments_after: usize,
    /// Bytes of record batches before.
    pub bytes_before: u64,
    /// Bytes of record batches after.
    pub bytes_after: u64,
    /// Records before, tombstones among them.
    pub records_before: u64,
    /// Records after.
    pub records_after: u64,
    /// Tombstones that went because their time was over; they are part of the difference as well.
    pub tombstones_dropped: u64,
}

impl CompactionCounts {
    pub(super) fn add(&mut self, more: Self) {
        self.segments_before += more.segments_before;
        self.segments_after += more.segments_after;
        self.bytes_before += more.bytes_before;
        self.bytes_after += more.bytes_after;
        self.records_before += more.records_before;
        self.records_after += more.records_after;
        self.tombstones_dropped += more.tombstones_dropped;
    }
}
