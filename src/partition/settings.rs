//! What a partition takes from its topic's configuration.

use super::Durability;
use crate::record::{Compression, TimestampType};

/// The settings of one log; plain data, replaced as a whole when the topic is altered.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct LogSettings {
    pub(crate) durability: Durability,
    pub(crate) segment_bytes: u64,
    pub(crate) segment_ms: i64,
    pub(crate) segment_index_bytes: u64,
    pub(crate) index_interval_bytes: u64,
    pub(crate) batch_bytes_max: u64,
    pub(crate) max_unsynced_bytes: u64,
    pub(crate) preallocate_bytes: u64,
    pub(crate) timestamp_type: TimestampType,
    pub(crate) timestamp_before_max_ms: i64,
    pub(crate) timestamp_after_max_ms: i64,
    pub(crate) compression: Compression,
    pub(crate) gzip_level: i32,
    pub(crate) zstd_level: i32,
    /// Compacted topics refuse records without a key.
    pub(crate) needs_key: bool,
    pub(crate) retention: RetentionSettings,
    pub(crate) compaction: CompactionSettings,
}

/// Which old segments may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RetentionSettings {
    /// Whether the policy contains `delete`; without it only the log start removes segments.
    pub(crate) deletes: bool,
    /// -1 keeps them.
    pub(crate) retention_ms: i64,
    /// -1 keeps them.
    pub(crate) retention_bytes: i64,
}

/// When records that a newer one supersedes go. Of use where `needs_key` holds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct CompactionSettings {
    pub(crate) min_cleanable_dirty_ratio: f64,
    pub(crate) min_compaction_lag_ms: i64,
    pub(crate) max_compaction_lag_ms: i64,
    pub(crate) delete_retention_ms: i64,
    pub(crate) tombstone_hold_max_ms: i64,
    /// -1 lets keys live.
    pub(crate) expire_after_ms: i64,
}

impl LogSettings {
    /// The level of a codec, where it has one.
    pub(crate) fn level_of(&self, codec: Compression) -> Option<i32> {
        match codec {
            Compression::Gzip => Some(self.gzip_level),
            Compression::Zstd => Some(self.zstd_level),
            _ => None,
        }
    }

    /// The cap on unsynced bytes, where there is one.
    pub(crate) fn unsynced_cap(&self) -> Option<u64> {
        (self.durability != Durability::Os).then_some(self.max_unsynced_bytes)
    }
}
