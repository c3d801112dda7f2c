//! What a partition takes from its topic's configuration.

use super::Durability;
use crate::record::{Compression, TimestampType};

/// The settings of one log; plain data, replaced as a whole when the topic is altered.
#[derive(Clone, Debug, PartialEq, Eq)]
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
    pub(crate) compression_level: Option<i32>,
    /// Compacted topics refuse records without a key.
    pub(crate) needs_key: bool,
}

impl LogSettings {
    /// The cap on unsynced bytes, where there is one.
    pub(crate) fn unsynced_cap(&self) -> Option<u64> {
        (self.durability != Durability::Os).then_some(self.max_unsynced_bytes)
    }
}
