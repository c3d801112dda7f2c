//! A listing of the newest records, as they were at one position.

use std::sync::Arc;

use super::feed::Taken;
use super::making::ReadBudget;
use super::{KeyIndex, LIMITS, State, TRIES, expiry};
use crate::error::{Error, Result};
use crate::partition::{Batch, Log, SegmentSet};
use crate::record::StoredRecord;
use crate::sync::atomic::Ordering;

impl KeyIndex {
    /// The newest record of every key, at one position.
    pub(crate) fn latest(&self) -> Result<Latest> {
        self.list(true)
    }

    /// [`latest`](Self::latest) where something may be damaged: a key that could not be compared comes with older records as
    /// well.
    pub(super) fn latest_in_part(&self) -> Result<Latest> {
        self.list(false)
    }

    fn list(&self, is_whole: bool) -> Result<Latest> {
        self.log.check_open()?;
        let newest = self.newest(is_whole)?;
        Ok(Latest {
            log: Arc::clone(&self.log),
            set: newest.set,
            offsets: newest.offsets.into_iter(),
            batch: None,
            position: newest.position,
            with_expired: false,
            failed: None,
        })
    }

    /// The offsets of the newest records, rising, and the segments they are in; with `is_whole` each key once, or an error.
    pub(super) fn newest(&self, is_whole: bool) -> Result<Newest> {
        let mut state = self.state.lock();
        for _ in 0..TRIES {
            let ready = self.ready(&mut state)?;
            // Taken over once more together with the log end and the segments, so that exactly what lies below it is in the
            // table, and all of it in the segments.
            let (position, set) = match self.take_over(ready, &mut ReadBudget::unlimited())? {
                Taken::All(end, set) => (end, set),
                Taken::NoRoom => {
                    self.give_up(&mut state);
                    return Err(self.too_large());
                }
                Taken::Outrun | Taken::Some => continue,
            };
            let State::Ready(ready) = &mut *state else { return Err(self.too_large()) };
            let resolved = self.resolve(ready, &set, usize::MAX);
            if is_whole {
                resolved?;
            }
            let undecided_from = ready.undecided_from;
            let mut offsets: Vec<i64> = ready.table.iter().map(|(_, place)| place.offset).collect();
            drop(state);
            offsets.sort_unstable();
            return Ok(Newest { position, set, offsets, undecided_from });
        }
        let what = "a listing while its log changes at every try to read it; ask again";
        Err(Error::Timeout { what: format!("{}: {what}", self.log.id) })
    }
}

/// See [`KeyIndex::newest`].
pub(super) struct Newest {
    pub(super) position: i64,
    pub(super) set: Arc<SegmentSet>,
    pub(super) offsets: Vec<i64>,
    pub(super) undecided_from: Option<i64>,
}

/// The newest record of each key of one partition as they were at one position, in the order of their offsets; tombstones
/// and what has expired are left out. Made by [`Topic::latest`](crate::Topic::latest).
///
/// Segments that compaction exchanges meanwhile are kept until this is dropped.
#[derive(Debug)]
pub struct Latest {
    log: Arc<Log>,
    set: Arc<SegmentSet>,
    offsets: std::vec::IntoIter<i64>,
    /// What the last record was in.
    batch: Option<Batch>,
    pub(super) position: i64,
    /// For upkeep, which is to end what has expired.
    pub(super) with_expired: bool,
    failed: Option<Error>,
}

impl Log {
    pub(super) fn has_expired(&self, record: &StoredRecord) -> bool {
        let expire_after_ms = self.expire_after_ms.load(Ordering::Acquire);
        expire_after_ms >= 0
            && expiry::expires_at(record, expire_after_ms).is_some_and(|at| at <= self.env.clock.now_ms())
    }
}

impl Latest {
    /// The log end offset at which these records are the newest: a reader that goes on from here misses nothing.
    pub fn position(&self) -> crate::ids::Offset {
        self.position.into()
    }
}

impl Latest {
    /// How many records are still to be looked at.
    pub(super) fn keys_left(&self) -> usize {
        self.offsets.len()
    }

    /// Whether it keeps the files of segments that are gone.
    pub(super) fn keeps_files(&self) -> bool {
        let now = self.log.snapshot();
        let first = |set: &SegmentSet| set.segments.first().map(|segment| segment.base_offset());
        now.replacements != self.set.replacements || first(&now) != first(&self.set)
    }

    /// Goes on behind a record that could not be read.
    pub(super) fn pass_by(&mut self) {
        self.failed = None;
    }
}

impl Iterator for Latest {
    type Item = Result<StoredRecord>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(error) = &self.failed {
            return Some(Err(error.duplicate()));
        }
        for offset in self.offsets.by_ref() {
            let how = (self.log.env.verify, &LIMITS);
            let found = self.log.record_further_on(&self.set, &mut self.batch, (offset, None), how);
            match found.map(|found| found.map(|(batch, view)| batch.stored(&view))) {
                Ok(Some(record)) if !record.is_tombstone() && (self.with_expired || !self.log.has_expired(&record)) => {
                    return Some(Ok(record));
                }
                // A tombstone, expired, or below the log start.
                Ok(_) => {}
                Err(error) => {
                    self.failed = Some(error.duplicate());
                    return Some(Err(error));
                }
            }
        }
        None
    }
}
