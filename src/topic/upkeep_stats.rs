//! What upkeep did to a topic since the store was opened.

use crate::error::Error;
use crate::sync::Mutex;

/// Counts of what upkeep did to one topic since the store was opened, by [`Store::tick`](crate::Store::tick) or the thread.
/// They only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct UpkeepStats {
    /// Closed segments that got their seal.
    pub sealed_segments: u64,
    /// Idle active segments that were closed for their age.
    pub rolled_segments: u64,
    /// Segments that retention removed.
    pub deleted_segments: u64,
    /// Bytes of record batches in those.
    pub deleted_bytes: u64,
    /// Compactions of a partition that came to their end.
    pub compactions: u64,
    /// Bytes that compaction read; what it reads for its keys and copies counts twice.
    pub compaction_read_bytes: u64,
    /// Bytes of the segments that it made, in the place of others or found the same as those.
    pub compaction_written_bytes: u64,
    /// Records that compaction took away, tombstones among them.
    pub records_compacted: u64,
    /// Tombstones that it took away because their time was over.
    pub tombstones_dropped: u64,
    /// Keys that have expired and got a tombstone.
    pub expired_keys: u64,
    /// Steps that failed; [`Topic::upkeep_error`](crate::Topic::upkeep_error) has the last error.
    pub failures: u64,
}

/// Where a topic keeps them.
#[derive(Debug, Default)]
pub(crate) struct UpkeepLog {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    stats: UpkeepStats,
    last_error: Option<Error>,
}

impl UpkeepLog {
    /// Changes the counts.
    pub(crate) fn note(&self, change: impl FnOnce(&mut UpkeepStats)) {
        change(&mut self.state.lock().stats);
    }

    /// Keeps the error of a step that failed.
    pub(crate) fn note_failure(&self, error: &Error) {
        let mut state = self.state.lock();
        state.stats.failures += 1;
        state.last_error = Some(error.duplicate());
    }

    pub(crate) fn stats(&self) -> UpkeepStats {
        self.state.lock().stats
    }

    pub(crate) fn last_error(&self) -> Option<Error> {
        self.state.lock().last_error.as_ref().map(Error::duplicate)
    }
}
