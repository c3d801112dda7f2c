//! Where the newest records of all keys are at one position, as the key index knows it: what it tells compaction.
//!
//! These are names of candidates, and no proof of anything: whoever is told reads the records.

use std::sync::Arc;

use super::SegmentSet;
use super::key_entry::NO_POSITION;

/// See the module.
#[derive(Debug)]
pub(crate) struct NewestRecords {
    /// The log end offset at which they were the newest. Everything below it was decided.
    pub(crate) end: i64,
    /// Segments with all of them.
    pub(crate) set: Arc<SegmentSet>,
    /// Rising by offset. One key may have several, one key in a long time none.
    pub(crate) places: Vec<RecordPlace>,
}

impl NewestRecords {
    /// Bytes of memory that the places take.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.places.capacity() * size_of::<RecordPlace>()
    }

    /// Of the places from an index on, the first at or above an offset.
    pub(crate) fn first_from(&self, index: usize, offset: i64) -> usize {
        let behind = self.places.get(index..).unwrap_or_default();
        index + behind.iter().take_while(|place| place.offset < offset).count()
    }
}

/// An offset, and where its batch begins in its segment, if that is known: a hint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct RecordPlace {
    pub(crate) offset: i64,
    position: u32,
}

impl RecordPlace {
    pub(crate) fn new(offset: i64, position: Option<u32>) -> Self {
        Self { offset, position: position.unwrap_or(NO_POSITION) }
    }

    pub(crate) fn position(self) -> Option<u64> {
        Some(self.position).filter(|&position| position != NO_POSITION).map(u64::from)
    }
}
