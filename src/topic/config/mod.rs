//! The configuration of a topic: plain data with Kafka's names and defaults, kept in the store's manifest.

mod names;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::partition::Durability;
use crate::partition::settings::{CompactionSettings, LogSettings, RetentionSettings};
use crate::record::{Compression, TimestampType};

/// Most partitions that a topic may have.
pub(crate) const PARTITIONS_MAX: u32 = 1024;
/// Smallest segment: one small batch must fit.
const SEGMENT_BYTES_MIN: u32 = 256;

/// What may be removed from a topic, and why (Kafka's `cleanup.policy`). A compacted topic refuses records without a key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum CleanupPolicy {
    /// Old segments, by retention.
    #[default]
    #[serde(rename = "delete")]
    Delete,
    /// Records that a newer one with the same key supersedes.
    #[serde(rename = "compact")]
    Compact,
    /// Both.
    #[serde(rename = "compact,delete")]
    CompactAndDelete,
}

/// Settings of a topic. Made with [`TopicConfig::default`] and changed by its methods, or by Kafka's names with
/// [`set`](TopicConfig::set). Kept with the topic; [`Topic::config`](crate::Topic::config) shows what holds.
///
/// Defaults are Kafka's, except that nothing is ever deleted by a default, and that an offset index entry comes each
/// KiB.
///
/// ```
/// use topiclog::{Durability, TopicConfig};
/// let config = TopicConfig::default().partitions(4).durability(Durability::INTERVAL).segment_bytes(64 << 20);
/// assert_eq!(config.get("segment.bytes").as_deref(), Some("67108864"));
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TopicConfig {
    partitions: u32,
    durability: Durability,
    segment_bytes: u32,
    segment_ms: i64,
    segment_index_bytes: u32,
    index_interval_bytes: u32,
    batch_bytes_max: u32,
    max_unsynced_bytes: u64,
    preallocate_bytes: u32,
    timestamp_type: TimestampType,
    timestamp_before_max_ms: i64,
    timestamp_after_max_ms: i64,
    compression: Compression,
    /// One level for whichever codec: how stores had it once. Read and never written.
    #[serde(default, skip_serializing)]
    compression_level: Option<i32>,
    #[serde(default = "default_gzip_level")]
    gzip_level: i32,
    #[serde(default = "default_zstd_level")]
    zstd_level: i32,
    cleanup_policy: CleanupPolicy,
    #[serde(default = "unlimited")]
    retention_ms: i64,
    #[serde(default = "unlimited")]
    retention_bytes: i64,
    #[serde(default = "default_dirty_ratio")]
    min_cleanable_dirty_ratio: f64,
    #[serde(default)]
    min_compaction_lag_ms: i64,
    #[serde(default = "forever")]
    max_compaction_lag_ms: i64,
    #[serde(default = "one_day")]
    delete_retention_ms: i64,
    #[serde(default = "seven_days")]
    tombstone_hold_max_ms: i64,
    #[serde(default = "unlimited")]
    expire_after_ms: i64,
}

const fn unlimited() -> i64 {
    -1
}

const fn default_dirty_ratio() -> f64 {
    0.5
}

const fn default_gzip_level() -> i32 {
    -1
}

const fn default_zstd_level() -> i32 {
    3
}

const fn forever() -> i64 {
    i64::MAX
}

const fn one_day() -> i64 {
    86_400_000
}

const fn seven_days() -> i64 {
    604_800_000
}

impl Default for TopicConfig {
    fn default() -> Self {
        Self {
            partitions: 1,
            durability: Durability::Sync,
            segment_bytes: 1 << 30,
            segment_ms: 604_800_000,
            segment_index_bytes: 10 << 20,
            index_interval_bytes: 1024,
            batch_bytes_max: 1_048_588,
            max_unsynced_bytes: 8 << 20,
            preallocate_bytes: 4 << 20,
            timestamp_type: TimestampType::CreateTime,
            timestamp_before_max_ms: i64::MAX,
            timestamp_after_max_ms: i64::MAX,
            compression: Compression::None,
            compression_level: None,
            gzip_level: default_gzip_level(),
            zstd_level: default_zstd_level(),
            cleanup_policy: CleanupPolicy::Delete,
            retention_ms: unlimited(),
            retention_bytes: unlimited(),
            min_cleanable_dirty_ratio: default_dirty_ratio(),
            min_compaction_lag_ms: 0,
            max_compaction_lag_ms: forever(),
            delete_retention_ms: one_day(),
            tombstone_hold_max_ms: seven_days(),
            expire_after_ms: unlimited(),
        }
    }
}

macro_rules! setters {
    ($($(#[$doc:meta])* $($alias:literal)? $name:ident: $type:ty;)*) => {
        $(
            $(#[$doc])*
            $(#[doc(alias = $alias)])?
            #[must_use]
            pub fn $name(mut self, $name: $type) -> Self {
                self.$name = $name;
                self
            }
        )*
    };
}

impl TopicConfig {
    setters! {
        /// Number of partitions, 1 to 1,024. Cannot be changed later: keys would move.
        partitions: u32;
        /// What an append promises when it returns, unless it says otherwise.
        "topiclog.durability" durability: Durability;
        /// A segment that would grow beyond this is closed and a new one begun.
        "segment.bytes" segment_bytes: u32;
        /// A segment whose first batch is older than this is closed at the next append, in milliseconds.
        "segment.ms" segment_ms: i64;
        /// Largest size of each of the two index files of a segment.
        "segment.index.bytes" segment_index_bytes: u32;
        /// An index entry is made once more than this was appended since the last one.
        "index.interval.bytes" index_interval_bytes: u32;
        /// Largest batch that may be appended, in bytes as stored. Reads have no such limit.
        "max.message.bytes" batch_bytes_max: u32;
        /// On `Sync` and `Interval` topics, at most so many bytes wait for a sync.
        "topiclog.max.unsynced.bytes" max_unsynced_bytes: u64;
        /// Zeroed space taken ahead: by `Sync` appends in one step, by others as much as was appended, up to this; 0 takes
        /// none.
        "topiclog.preallocate.bytes" preallocate_bytes: u32;
        /// Whose time a record carries: its own, or that of the append.
        "message.timestamp.type" timestamp_type: TimestampType;
        /// How far behind the clock a record's time may be, in milliseconds.
        "message.timestamp.before.max.ms" timestamp_before_max_ms: i64;
        /// How far ahead of the clock a record's time may be, in milliseconds.
        "message.timestamp.after.max.ms" timestamp_after_max_ms: i64;
        /// The codec of appended batches.
        "compression.type" compression: Compression;
        /// The level of gzip: 1 to 9, or -1 for its default.
        "compression.gzip.level" gzip_level: i32;
        /// The level of zstd: -131072 to 22; 3 by default.
        "compression.zstd.level" zstd_level: i32;
        /// What may be removed.
        "cleanup.policy" cleanup_policy: CleanupPolicy;
        /// Segments whose newest record is older than this go, in milliseconds; -1 keeps them. Needs a policy with `delete`.
        "retention.ms" retention_ms: i64;
        /// The oldest segments go while the partition has more bytes than this without them; -1 keeps them. Needs a policy
        /// with `delete`.
        "retention.bytes" retention_bytes: i64;
        /// A partition is compacted once more than this share of its closed segments has not been, 0 to 1.
        "min.cleanable.dirty.ratio" min_cleanable_dirty_ratio: f64;
        /// Segments with a record younger than this are not compacted, in milliseconds.
        "min.compaction.lag.ms" min_compaction_lag_ms: i64;
        /// A superseded record older than this is compacted whatever the ratio, in milliseconds.
        "max.compaction.lag.ms" max_compaction_lag_ms: i64;
        /// A tombstone goes this long after compaction first saw it, in milliseconds, unless a reader holds it.
        "delete.retention.ms" delete_retention_ms: i64;
        /// A reader holds a tombstone for at most this long after compaction first saw it, in milliseconds.
        "topiclog.tombstone.hold.max.ms" tombstone_hold_max_ms: i64;
        /// A key whose newest record is older than this gets a tombstone, in milliseconds; -1 lets keys live. A header
        /// [`tl-expires-at`](crate::EXPIRES_AT_HEADER) of the record wins; 9223372036854775807 leaves it to these headers.
        /// Needs a compacted topic.
        "topiclog.expire.after.ms" expire_after_ms: i64;
    }

    /// Whose time records carry.
    pub(crate) fn kind_of_times(&self) -> TimestampType {
        self.timestamp_type
    }

    /// Number of partitions.
    pub fn partition_count(&self) -> u32 {
        self.partitions
    }

    /// Checks every value, and what they promise each other.
    pub(crate) fn check(&self) -> Result<()> {
        let at_least = |key: &str, value: i64, least: i64| {
            if value < least { Err(Error::config(key, format!("must be at least {least}"))) } else { Ok(()) }
        };
        if !(1..=PARTITIONS_MAX).contains(&self.partitions) {
            return Err(Error::config("partitions", format!("must be 1 to {PARTITIONS_MAX}")));
        }
        at_least("segment.bytes", self.segment_bytes.into(), SEGMENT_BYTES_MIN.into())?;
        if self.segment_bytes > i32::MAX as u32 {
            return Err(Error::config("segment.bytes", "must be at most 2147483647"));
        }
        at_least("segment.ms", self.segment_ms, 1)?;
        at_least("retention.ms", self.retention_ms, -1)?;
        at_least("retention.bytes", self.retention_bytes, -1)?;
        at_least("delete.retention.ms", self.delete_retention_ms, 0)?;
        at_least("min.compaction.lag.ms", self.min_compaction_lag_ms, 0)?;
        at_least("max.compaction.lag.ms", self.max_compaction_lag_ms, 1)?;
        at_least("topiclog.tombstone.hold.max.ms", self.tombstone_hold_max_ms, 0)?;
        at_least("topiclog.expire.after.ms", self.expire_after_ms, -1)?;
        if !(0.0..=1.0).contains(&self.min_cleanable_dirty_ratio) {
            return Err(Error::config("min.cleanable.dirty.ratio", "must be from 0 to 1"));
        }
        if self.min_compaction_lag_ms > self.max_compaction_lag_ms {
            return Err(Error::config("min.compaction.lag.ms", "must not exceed max.compaction.lag.ms"));
        }
        if self.expire_after_ms >= 0 && self.cleanup_policy == CleanupPolicy::Delete {
            return Err(Error::config("topiclog.expire.after.ms", "needs a cleanup.policy with compact: keys expire"));
        }
        at_least("segment.index.bytes", self.segment_index_bytes.into(), 24)?;
        at_least("max.message.bytes", self.batch_bytes_max.into(), 61)?;
        at_least("message.timestamp.before.max.ms", self.timestamp_before_max_ms, 0)?;
        at_least("message.timestamp.after.max.ms", self.timestamp_after_max_ms, 0)?;
        if u64::from(self.batch_bytes_max) > self.max_unsynced_bytes {
            let why = "must be at least max.message.bytes, as a batch is synced whole";
            return Err(Error::config("topiclog.max.unsynced.bytes", why));
        }
        if let Durability::Interval { bytes, ms } = self.durability
            && (bytes < 4096 || ms == 0)
        {
            return Err(Error::config("topiclog.durability", "an interval has at least 4096 bytes and 1 ms"));
        }
        if !is_gzip_level(self.gzip_level) {
            return Err(Error::config("compression.gzip.level", "must be -1 or 1 to 9"));
        }
        if !is_zstd_level(self.zstd_level) {
            return Err(Error::config("compression.zstd.level", "must be -131072 to 22"));
        }
        Ok(())
    }

    /// Refuses a codec that appends could not use. Not part of [`check`](Self::check): what such a topic holds can be opened
    /// without it.
    pub(crate) fn check_codec(&self) -> Result<()> {
        if !self.compression.is_built_in() {
            return Err(Error::config(
                "compression.type",
                format!("{} is not built in; enable the cargo feature of that name", self.compression),
            ));
        }
        Ok(())
    }

    /// Gives the level that an older store kept to the codec it was for. One that the codec does not have never worked.
    pub(crate) fn settle_level(&mut self) {
        match (self.compression_level.take(), self.compression) {
            (Some(level), Compression::Gzip) if is_gzip_level(level) => self.gzip_level = level,
            (Some(level), Compression::Zstd) if is_zstd_level(level) => self.zstd_level = level,
            _ => {}
        }
    }

    pub(crate) fn log_settings(&self) -> LogSettings {
        LogSettings {
            durability: self.durability,
            segment_bytes: self.segment_bytes.into(),
            // A compacted topic's records are not to wait in the active segment for longer than they may lag.
            segment_ms: match self.cleanup_policy {
                CleanupPolicy::Delete => self.segment_ms,
                _ => self.segment_ms.min(self.max_compaction_lag_ms),
            },
            segment_index_bytes: self.segment_index_bytes.into(),
            index_interval_bytes: self.index_interval_bytes.into(),
            batch_bytes_max: u64::from(self.batch_bytes_max).min(self.segment_bytes.into()),
            max_unsynced_bytes: self.max_unsynced_bytes,
            preallocate_bytes: self.preallocate_bytes.into(),
            timestamp_type: self.timestamp_type,
            timestamp_before_max_ms: self.timestamp_before_max_ms,
            timestamp_after_max_ms: self.timestamp_after_max_ms,
            compression: self.compression,
            gzip_level: self.gzip_level,
            zstd_level: self.zstd_level,
            needs_key: self.cleanup_policy != CleanupPolicy::Delete,
            retention: RetentionSettings {
                deletes: self.cleanup_policy != CleanupPolicy::Compact,
                retention_ms: self.retention_ms,
                retention_bytes: self.retention_bytes,
            },
            compaction: CompactionSettings {
                min_cleanable_dirty_ratio: self.min_cleanable_dirty_ratio,
                min_compaction_lag_ms: self.min_compaction_lag_ms,
                max_compaction_lag_ms: self.max_compaction_lag_ms,
                delete_retention_ms: self.delete_retention_ms,
                tombstone_hold_max_ms: self.tombstone_hold_max_ms,
                expire_after_ms: self.expire_after_ms,
            },
        }
    }

    pub(crate) fn expiry_ms(&self) -> i64 {
        self.expire_after_ms
    }

    pub(crate) fn durability_level(&self) -> Durability {
        self.durability
    }
}

fn is_gzip_level(level: i32) -> bool {
    level == -1 || (1..=9).contains(&level)
}

fn is_zstd_level(level: i32) -> bool {
    (-131_072..=22).contains(&level)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Stores once kept one level for whichever codec a topic had.
    #[test]
    fn a_level_that_an_older_store_kept_goes_to_its_codec() {
        let read = |codec: &str, level: &str| {
            let text = serde_json::to_string(&TopicConfig::default()).unwrap();
            let text = text.replacen("\"compression\":\"none\"", &format!("\"compression\":\"{codec}\""), 1);
            let text =
                text.replacen("\"gzip_level\":-1,\"zstd_level\":3", &format!("\"compression_level\":{level}"), 1);
            let mut config: TopicConfig = serde_json::from_str(&text).unwrap();
            config.settle_level();
            assert!(config.check().is_ok());
            (config.gzip_level, config.zstd_level)
        };
        assert_eq!(read("gzip", "4"), (4, 3));
        assert_eq!(read("zstd", "-7"), (-1, -7));
        for (codec, level) in [("lz4", "4"), ("gzip", "99"), ("zstd", "500"), ("none", "1"), ("gzip", "null")] {
            assert_eq!(read(codec, level), (-1, 3), "{codec} {level}");
        }
    }

    #[test]
    fn a_partition_takes_batches_that_fit_its_segments() {
        let settings = TopicConfig::default().segment_bytes(1000).log_settings();
        assert_eq!((settings.segment_bytes, settings.batch_bytes_max), (1000, 1000));
        assert_eq!(TopicConfig::default().log_settings().batch_bytes_max, 1_048_588);
        let cap = |durability| TopicConfig::default().durability(durability).log_settings().unsynced_cap();
        assert_eq!((cap(Durability::Os), cap(Durability::Sync)), (None, Some(8 << 20)));
        assert_eq!(cap(Durability::INTERVAL), Some(8 << 20));
    }

    #[test]
    fn a_configuration_is_kept_whole_and_a_newer_one_is_refused() {
        let config = TopicConfig::default().partitions(7).durability(Durability::Interval { bytes: 4096, ms: 3 });
        let text = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<TopicConfig>(&text).unwrap(), config);
        let newer = text.replacen('{', "{\"tiering\":true,", 1);
        assert!(serde_json::from_str::<TopicConfig>(&newer).is_err());
        let older = text.replacen("\"partitions\":7,", "", 1);
        assert!(serde_json::from_str::<TopicConfig>(&older).is_err(), "nothing is made up");
    }
}
