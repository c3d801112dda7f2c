//! The keys of the newest records, read where the key index says that these are.
//!
//! A place is a hint, and that a record is the newest is one as well: what counts are the key bytes that are read there, in a
//! batch whose CRC holds.

use std::sync::Arc;

use super::offset_map::OffsetMap;
use super::{batch_error, limits};
use crate::error::Result;
use crate::partition::newest_records::{NewestRecords, RecordPlace};
use crate::record::{self, BatchHeader, RecordsIter, SharedBytes};
use crate::segment::Segment;
use crate::segment::cursor::{Cursor, Verify};

/// See the module.
#[derive(Debug)]
pub(super) struct NewestKeys {
    records: NewestRecords,
    /// Of the places, the next one to be read.
    at: usize,
}

/// What reading one batch came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Noted {
    /// So many bytes were read.
    Batch(u64),
    /// All of them are in the map.
    All,
    /// The map has no room for another key.
    NoRoom,
}

impl NewestKeys {
    pub(super) fn new(records: NewestRecords) -> Self {
        Self { records, at: 0 }
    }

    /// The log end offset at which they were the newest.
    pub(super) fn end(&self) -> i64 {
        self.records.end
    }

    /// Notes the keys of the next records that lie in one batch.
    pub(super) fn note_a_batch(&mut self, map: &mut OffsetMap) -> Result<Noted> {
        let Some(&place) = self.records.places.get(self.at) else { return Ok(Noted::All) };
        let set = &self.records.set;
        let Some(segment) = set.segments.get(set.index_of(place.offset)) else { return Ok(Noted::All) };
        let Some((position, header, bytes)) = self.batch_of(segment, place)? else {
            self.at += 1;
            return Ok(Noted::Batch(0));
        };
        let read_bytes = header.size_bytes() as u64;
        if header.is_control() || set.is_aborted(&header) || header.base_offset > place.offset {
            self.at += 1;
            return Ok(Noted::Batch(read_bytes));
        }
        let failed = |error: record::BatchError| batch_error(segment, position, &header, &error);
        let body = record::decode_shared(&header, &bytes, &limits()).map_err(failed)?;
        for view in RecordsIter::new(&header, &body) {
            let view = view.map_err(failed)?;
            // What is gone from the batch has left its place behind.
            self.at = self.records.first_from(self.at, view.offset());
            match self.records.places.get(self.at) {
                Some(next) if next.offset == view.offset() => {
                    if let Some(key) = view.key()
                        && !map.put(key, view.offset(), false)
                    {
                        return Ok(Noted::NoRoom);
                    }
                }
                Some(next) if next.offset <= header.last_offset() => {}
                Some(_) | None => break,
            }
        }
        self.at = self.records.first_from(self.at, header.next_offset());
        Ok(Noted::Batch(read_bytes))
    }

    fn batch_of(&self, segment: &Arc<Segment>, place: RecordPlace) -> Result<Option<(u64, BatchHeader, SharedBytes)>> {
        let epochs = &self.records.set.epochs;
        let hinted = place.position().and_then(|position| {
            let (header, bytes) = segment.batch_at(epochs.as_ref(), Verify::Always, position, place.offset)?;
            Some((position, header, bytes))
        });
        if hinted.is_some() {
            return Ok(hinted);
        }
        let mut cursor = Cursor::seek(segment, epochs.clone(), Verify::Always, place.offset)?;
        let found = cursor.next()?;
        Ok(found.map(|found| (found.position, found.header, cursor.bytes(&found))))
    }
}
