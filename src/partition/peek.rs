//! Keys of many records, one after the other, through maps that are held meanwhile.
//!
//! Each look-up of a record takes a map and hands out bytes that share it, which costs more than the look itself. Whoever
//! only compares keys borrows them here. It knows of maps, and of batches with few records, alone: what is in no such is `None`,
//! and is looked up otherwise.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::SegmentSet;
use crate::record::{BATCH_HEADER_BYTES, BatchHeader, Compression, RecordsState};
use crate::segment::Segment;
use crate::segment::log_reads::Mapped;
use crate::segment::seal::Seal;

/// A batch with more records than these is not walked for each of them.
pub(crate) const FEW_RECORDS: i32 = 16;

/// See the module.
#[derive(Debug)]
pub(crate) struct Peek<'a> {
    set: &'a SegmentSet,
    /// One for each segment that was looked into, by its place in the set.
    held: BTreeMap<usize, Held>,
}

#[derive(Debug)]
struct Held {
    mapped: Arc<Mapped>,
    seal: Option<Arc<Seal>>,
}

impl<'a> Peek<'a> {
    pub(crate) fn into(set: &'a SegmentSet) -> Self {
        Self { set, held: BTreeMap::new() }
    }

    /// The keys of some records, without a look at checksums. Each is told by its offset and by the position of its batch, the
    /// newest first. `None` if they cannot all be seen here.
    pub(crate) fn keys(&mut self, places: &[(i64, u64)]) -> Option<Vec<&[u8]>> {
        // From the newest on, so that no map is exchanged for one of the same segment that reaches less far.
        for &place in places {
            self.hold(place)?;
        }
        places.iter().map(|&place| self.key(place)).collect()
    }

    /// Sees to it that the batch at a place can be read.
    fn hold(&mut self, (offset, position): (i64, u64)) -> Option<()> {
        let at = self.set.index_of(offset);
        let segment = self.set.segments.get(at)?;
        let log = segment.log();
        if log.is_read_positionally() {
            return None;
        }
        let header_end = position.checked_add(BATCH_HEADER_BYTES as u64)?;
        let covers = |held: &Held, end: u64| end <= held.mapped.bytes().len() as u64;
        if !self.held.get(&at).is_some_and(|held| covers(held, header_end)) {
            let seal = segment.seal().ok()?;
            self.held.insert(at, Held { mapped: log.mapped(header_end, seal.is_some())?, seal });
        }
        let held = self.held.get(&at)?;
        log.prepare(&held.mapped, position, header_end, held.seal.as_deref()).ok()?;
        // What is not read here is not read in either.
        let header = self.batch(segment, held, (offset, position))?.0;
        let end = position.checked_add(header.size_bytes() as u64).filter(|end| covers(held, *end))?;
        log.prepare(&held.mapped, position, end, held.seal.as_deref()).ok()
    }

    /// The key of a record whose batch [`hold`](Self::hold) has made ready.
    fn key(&self, (offset, position): (i64, u64)) -> Option<&[u8]> {
        let at = self.set.index_of(offset);
        let (segment, held) = (self.set.segments.get(at)?, self.held.get(&at)?);
        let (header, batch) = self.batch(segment, held, (offset, position))?;
        let body = batch.get(BATCH_HEADER_BYTES..header.size_bytes())?;
        RecordsState::new(&header).find(offset, body).ok()??.key()
    }

    /// The header of the batch at a place, and the bytes from there on, if it holds the offset and its records can be seen as
    /// they are.
    #[inline]
    fn batch<'h>(
        &self,
        segment: &Segment,
        held: &'h Held,
        (offset, position): (i64, u64),
    ) -> Option<(BatchHeader, &'h [u8])> {
        let batch = held.mapped.bytes().get(usize::try_from(position).ok()?..)?;
        let header = segment.header_of(self.set.epochs.as_ref(), batch, offset)?;
        let is_plain = !header.is_control() && header.compression() == Compression::None;
        let is_plain = is_plain && header.records_count <= FEW_RECORDS;
        is_plain.then_some((header, batch))
    }
}
