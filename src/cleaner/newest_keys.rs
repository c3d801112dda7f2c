//! The keys of the newest records, read where the key index says that these are.
//!
//! A place is a hint, and that a record is the newest is one as well: what counts are the key bytes that are read there, in a
//! batch whose CRC holds.

use super::offset_map::OffsetMap;
use super::{batch_error, limits};
use crate::error::Result;
use crate::partition::newest_records::NewestRecords;
use crate::partition::reader::FoundBatch;
use crate::record::{self, RecordsIter};
use crate::segment::cursor::Verify;

/// See the module.
#[derive(Debug)]
pub(super) struct NewestKeys {
    records: NewestRecords,
    /// Of the places, the next one to be read.
    at: usize,
    read_bytes: u64,
    read_bytes_max: u64,
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
    /// To be read while that costs no more than so many bytes.
    pub(super) fn new(records: NewestRecords, read_bytes_max: u64) -> Self {
        Self { records, at: 0, read_bytes: 0, read_bytes_max }
    }

    /// The log end offset at which they were the newest.
    pub(super) fn end(&self) -> i64 {
        self.records.end
    }

    /// Whether more was read than they are worth.
    pub(super) fn is_too_much(&self) -> bool {
        self.read_bytes > self.read_bytes_max
    }

    /// Notes the keys of the next records that lie in one batch.
    pub(super) fn note_a_batch(&mut self, map: &mut OffsetMap) -> Result<Noted> {
        let Some(&place) = self.records.places.get(self.at) else { return Ok(Noted::All) };
        let set = &self.records.set;
        let found = set.batch_near(place.offset, place.position(), Verify::Always)?;
        let Some(FoundBatch { segment, position, header, batch }) = found else {
            self.at += 1;
            return Ok(Noted::Batch(0));
        };
        let read_bytes = header.size_bytes() as u64;
        self.read_bytes += read_bytes;
        if header.is_control() || set.is_aborted(&header)? || header.base_offset > place.offset {
            self.at += 1;
            return Ok(Noted::Batch(read_bytes));
        }
        let failed = |error: record::BatchError| batch_error(segment, position, &header, &error);
        let body = record::decode_shared(&header, &batch, &limits()).map_err(failed)?;
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
}
