//! How much of a partition is the newest record of its key, and how much is not: counted, not estimated.

use super::{KeyIndex, LIMITS, State};
use crate::error::Result;
use crate::ids::Offset;
use crate::record::{self, BatchError, BatchHeader, RecordsIter};
use crate::segment::batch_error::batch_error;
use crate::segment::cursor::Cursor;

/// Records, and the bytes that they take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RecordCount {
    /// How many.
    pub records: u64,
    /// Their bytes in the body of a batch, uncompressed: key, value, headers and the numbers before them.
    pub bytes: u64,
}

/// The records of a partition by what they are to its key, at one position. Made by
/// [`Topic::count_keys`](crate::Topic::count_keys).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeyCounts {
    /// These counts are exact for the log as it was when it ended at this offset, and began at [`start`](Self::start).
    pub position: Offset,
    /// The log start at that time.
    pub start: Offset,
    /// Newest records of their keys that are no tombstones. Those that have expired are among them until a tombstone ends them.
    pub live: RecordCount,
    /// Newest records of their keys that are tombstones.
    pub tombstones: RecordCount,
    /// Records that a newer one of their key supersedes, those of aborted transactions, and those without a key.
    pub dead: RecordCount,
    /// Records of transactions that are open: nobody can say yet what they are.
    pub undecided: RecordCount,
}

impl RecordCount {
    fn add(&mut self, bytes: u64) {
        self.records += 1;
        self.bytes += bytes;
    }
}

impl KeyIndex {
    /// Reads the partition once, as it is now, and counts. Appends, reads and compaction go on meanwhile.
    pub(crate) fn count_keys(&self) -> Result<KeyCounts> {
        self.log.check_open()?;
        let newest = self.newest(true)?;
        let start = self.log.log_start();
        let mut counts = KeyCounts { position: newest.position.into(), start: start.into(), ..KeyCounts::default() };
        let mut offsets = newest.offsets.iter().copied().peekable();
        for segment in &newest.set.segments {
            if segment.base_offset() >= newest.position {
                break;
            }
            let mut cursor = Cursor::seek(segment, newest.set.epochs.clone(), self.log.env.verify, start)?;
            while let Some(found) = cursor.next()? {
                let header = found.header;
                if header.base_offset >= newest.position {
                    break;
                }
                if header.is_control() {
                    continue;
                }
                let failed = |error: BatchError| {
                    let too_large = "it is too large for the key index";
                    batch_error(segment.log().path(), found.position, &header, &error, too_large)
                };
                let body = record::decode_shared(&header, &cursor.bytes(&found), &LIMITS).map_err(failed)?;
                let is_aborted = newest.set.is_aborted(&header)?;
                let is_undecided = !is_aborted && self.is_undecided(&header, newest.undecided_from);
                let mut views = RecordsIter::new(&header, &body);
                let mut walked = 0;
                while let Some(view) = views.next().transpose().map_err(failed)? {
                    let bytes = (views.walked_bytes() - walked) as u64;
                    walked = views.walked_bytes();
                    if view.offset() < start {
                        continue;
                    }
                    while offsets.next_if(|&offset| offset < view.offset()).is_some() {}
                    let is_newest = offsets.peek() == Some(&view.offset());
                    let count = match (is_undecided, is_newest, view.is_tombstone()) {
                        (true, ..) => &mut counts.undecided,
                        (_, true, true) => &mut counts.tombstones,
                        (_, true, false) => &mut counts.live,
                        (_, false, _) => &mut counts.dead,
                    };
                    count.add(bytes);
                }
            }
        }
        if let State::Ready(ready) = &mut *self.state.lock() {
            ready.counts = Some(counts);
        }
        Ok(counts)
    }

    fn is_undecided(&self, header: &BatchHeader, undecided_from: Option<i64>) -> bool {
        undecided_from.is_some_and(|from| header.base_offset >= from) && self.log.producers.lock().is_undecided(header)
    }
}
