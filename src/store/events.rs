//! What upkeep tells a listener, and how it is told.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use crate::cleaner::CompactionCounts;
use crate::error::Error;
use crate::ids::{Offset, TopicPartition};
use crate::retention::RetentionRule;
use crate::sync::RwLock;

/// Something that upkeep did, or that went wrong while it did. Offsets `[from, to)` begin at the first and end before the
/// second. See [`StoreBuilder::on_upkeep`](super::StoreBuilder::on_upkeep).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum UpkeepEvent {
    /// The active segment was closed for its age: nothing was appended for a while, or retention takes all of it. Segments that
    /// an append closes are not told of.
    #[non_exhaustive]
    SegmentRolled {
        /// Where.
        partition: TopicPartition,
        /// Its first offset.
        from: Offset,
        /// The first offset of the segment that is active now.
        to: Offset,
    },
    /// A closed segment got its seal: it is synced, was read once and checked, and never changes from here on.
    #[non_exhaustive]
    SegmentSealed {
        /// Where.
        partition: TopicPartition,
        /// Its first offset.
        from: Offset,
        /// One past its last offset.
        to: Offset,
        /// Bytes of its log.
        bytes: u64,
    },
    /// Retention removed segments.
    #[non_exhaustive]
    SegmentsDeleted {
        /// Where.
        partition: TopicPartition,
        /// Which setting asked for it; for the most of it, if both did.
        rule: RetentionRule,
        /// The log start before.
        from: Offset,
        /// The log start now.
        to: Offset,
        /// How many.
        segments: usize,
        /// Bytes of record batches in them.
        bytes: u64,
    },
    /// The log start is another than at the last step: retention moved it, or
    /// [`delete_records`](crate::Partition::delete_records) did since.
    #[non_exhaustive]
    LogStartMoved {
        /// Where.
        partition: TopicPartition,
        /// The log start at the last step.
        from: Offset,
        /// The log start now.
        to: Offset,
    },
    /// A round of compaction begins. It ends with [`CompactionFinished`](Self::CompactionFinished) or
    /// [`CompactionStopped`](Self::CompactionStopped), unless the store is closed before.
    #[non_exhaustive]
    CompactionBegun {
        /// Where.
        partition: TopicPartition,
        /// Below this offset compaction has been.
        from: Offset,
        /// Records from this offset on stay as they are in this round.
        to: Offset,
        /// Bytes of record batches in the segments from the log start up to there. All are read to be copied; before that
        /// the key index, or those that were not compacted yet, are read for their keys.
        bytes: u64,
    },
    /// A round of compaction has come so far.
    #[non_exhaustive]
    CompactionProgressed {
        /// Where.
        partition: TopicPartition,
        /// Bytes that the round has read.
        read_bytes: u64,
        /// What it has exchanged.
        counts: CompactionCounts,
    },
    /// A round of compaction came to its end.
    #[non_exhaustive]
    CompactionFinished {
        /// Where.
        partition: TopicPartition,
        /// Below this offset compaction has been. Less than the `to` of its begin if keys did not fit into
        /// [`compaction_memory_bytes`](super::StoreBuilder::compaction_memory_bytes); another round follows then.
        clean_end: Offset,
        /// Bytes that the round has read.
        read_bytes: u64,
        /// What it did.
        counts: CompactionCounts,
    },
    /// A round of compaction ends here: it failed, its key index was wrong, or the topic is no longer to be compacted. What it has
    /// exchanged holds.
    #[non_exhaustive]
    CompactionStopped {
        /// Where.
        partition: TopicPartition,
        /// What it has exchanged.
        counts: CompactionCounts,
    },
    /// Compaction dropped tombstones whose time was over.
    #[non_exhaustive]
    TombstonesDropped {
        /// Where.
        partition: TopicPartition,
        /// How many.
        tombstones: u64,
        /// Past the highest tombstone that was ever dropped; see
        /// [`tombstone_floor`](crate::Partition::tombstone_floor).
        floor: Offset,
    },
    /// Keys have expired and got a tombstone.
    #[non_exhaustive]
    KeysExpired {
        /// Where.
        partition: TopicPartition,
        /// How many.
        keys: usize,
    },
    /// A key index was made, by upkeep or by the first look-up since the last step.
    #[non_exhaustive]
    KeyIndexMade {
        /// Where.
        partition: TopicPartition,
        /// Its entries.
        entries: usize,
        /// Bytes of memory, as counted in
        /// [`key_index_memory_bytes`](super::StoreBuilder::key_index_memory_bytes).
        memory_bytes: usize,
    },
    /// A key index was given up since the last step, because it would have taken more than
    /// [`key_index_memory_bytes`](super::StoreBuilder::key_index_memory_bytes). Look-ups answer
    /// [`Error::Unsupported`] until the store is reopened.
    #[non_exhaustive]
    KeyIndexDropped {
        /// Where.
        partition: TopicPartition,
    },
    /// A step of upkeep failed for a partition; the others had theirs. Most are tried again at the next step.
    #[non_exhaustive]
    Failed {
        /// Where.
        partition: TopicPartition,
        /// What went wrong; the same that [`Store::tick`](super::Store::tick) returns if it is the first of the step.
        error: Arc<Error>,
    },
}

impl UpkeepEvent {
    /// The partition that it is about.
    pub fn partition(&self) -> &TopicPartition {
        match self {
            Self::SegmentRolled { partition, .. }
            | Self::SegmentSealed { partition, .. }
            | Self::SegmentsDeleted { partition, .. }
            | Self::LogStartMoved { partition, .. }
            | Self::CompactionBegun { partition, .. }
            | Self::CompactionProgressed { partition, .. }
            | Self::CompactionFinished { partition, .. }
            | Self::CompactionStopped { partition, .. }
            | Self::TombstonesDropped { partition, .. }
            | Self::KeysExpired { partition, .. }
            | Self::KeyIndexMade { partition, .. }
            | Self::KeyIndexDropped { partition }
            | Self::Failed { partition, .. } => partition,
        }
    }
}

/// What a listener is.
pub(crate) type Listener = Arc<dyn Fn(&UpkeepEvent) + Send + Sync>;

/// Who is told; nobody any more once the store is closed, so that a listener that holds the store does not keep it alive.
pub(super) struct Audience(RwLock<Option<Listener>>);

impl Audience {
    pub(super) fn new(listener: Option<Listener>) -> Self {
        Self(RwLock::new(listener))
    }

    /// Whether anybody listens.
    pub(super) fn is_there(&self) -> bool {
        self.0.read().is_some()
    }

    pub(super) fn leave(&self) {
        let listener = self.0.write().take();
        // Behind the lock: what a listener holds may be dropped with it.
        drop(listener);
    }

    /// Tells what has happened. Whoever calls this holds no lock. A listener that panics is told the rest all the same; the
    /// first panic is returned as an error.
    pub(super) fn tell(&self, events: impl IntoIterator<Item = UpkeepEvent>) -> Result<(), Error> {
        let listener = self.0.read().clone();
        let Some(listener) = listener else { return Ok(()) };
        let mut outcome = Ok(());
        for event in events {
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| listener(&event)))
                && outcome.is_ok()
            {
                outcome = Err(Error::invalid("on_upkeep", format!("the listener panicked: {}", message(&*panic))));
            }
        }
        outcome
    }
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("without words")
}
