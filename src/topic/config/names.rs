//! The settings of a topic by Kafka's names, as text.

use super::{CleanupPolicy, TopicConfig};
use crate::error::{Error, Result};
use crate::partition::Durability;
use crate::record::{Compression, TimestampType};

/// Kafka's default for LZ4, and the only level of the encoder here.
const LZ4_LEVEL: i32 = 9;

impl TopicConfig {
    /// The settings by Kafka's names, in a fixed order. Names that begin with `topiclog.` are ours alone.
    pub fn entries(&self) -> Vec<(&'static str, String)> {
        let policy = match self.cleanup_policy {
            CleanupPolicy::Delete => "delete",
            CleanupPolicy::Compact => "compact",
            CleanupPolicy::CompactAndDelete => "compact,delete",
        };
        let codec =
            if self.compression == Compression::None { "producer".into() } else { self.compression.to_string() };
        vec![
            ("cleanup.policy", policy.to_owned()),
            ("compression.gzip.level", self.gzip_level.to_string()),
            ("compression.lz4.level", LZ4_LEVEL.to_string()),
            ("compression.type", codec),
            ("compression.zstd.level", self.zstd_level.to_string()),
            ("delete.retention.ms", self.delete_retention_ms.to_string()),
            ("index.interval.bytes", self.index_interval_bytes.to_string()),
            ("max.compaction.lag.ms", self.max_compaction_lag_ms.to_string()),
            ("max.message.bytes", self.batch_bytes_max.to_string()),
            ("message.timestamp.after.max.ms", self.timestamp_after_max_ms.to_string()),
            ("message.timestamp.before.max.ms", self.timestamp_before_max_ms.to_string()),
            ("message.timestamp.type", self.timestamp_type.to_string()),
            ("min.cleanable.dirty.ratio", self.min_cleanable_dirty_ratio.to_string()),
            ("min.compaction.lag.ms", self.min_compaction_lag_ms.to_string()),
            ("preallocate", "false".to_owned()),
            ("retention.bytes", self.retention_bytes.to_string()),
            ("retention.ms", self.retention_ms.to_string()),
            ("segment.bytes", self.segment_bytes.to_string()),
            ("segment.index.bytes", self.segment_index_bytes.to_string()),
            ("segment.ms", self.segment_ms.to_string()),
            ("topiclog.durability", durability_text(self.durability)),
            ("topiclog.expire.after.ms", self.expire_after_ms.to_string()),
            ("topiclog.max.unsynced.bytes", self.max_unsynced_bytes.to_string()),
            ("topiclog.preallocate.bytes", self.preallocate_bytes.to_string()),
            ("topiclog.tombstone.hold.max.ms", self.tombstone_hold_max_ms.to_string()),
        ]
    }

    /// One setting by Kafka's name; `None` if there is no such setting.
    pub fn get(&self, key: &str) -> Option<String> {
        self.entries().into_iter().find(|(name, _)| *name == key).map(|(_, value)| value)
    }

    /// Changes one setting by Kafka's name, for tools and configuration files.
    ///
    /// # Errors
    /// [`Error::Config`] for an unknown name or an impossible value, and for a value that this version cannot honour:
    /// nothing is accepted and then ignored.
    ///
    /// ```
    /// use topiclog::TopicConfig;
    /// let mut config = TopicConfig::default();
    /// config.set("message.timestamp.type", "LogAppendTime")?;
    /// assert!(config.set("segment.bites", "1").is_err());
    /// # Ok::<(), topiclog::Error>(())
    /// ```
    pub fn set(&mut self, key: &str, value: &str) -> Result<()> {
        match key {
            "cleanup.policy" => {
                let mut parts: Vec<&str> = value.split(',').map(str::trim).collect();
                parts.sort_unstable();
                self.cleanup_policy = match parts.as_slice() {
                    ["delete"] => CleanupPolicy::Delete,
                    ["compact"] => CleanupPolicy::Compact,
                    ["compact", "delete"] => CleanupPolicy::CompactAndDelete,
                    _ => return Err(Error::config(key, "must be delete, compact, or both with a comma")),
                };
            }
            "compression.type" => {
                self.compression = match value {
                    "producer" | "uncompressed" | "none" => Compression::None,
                    other => other.parse().map_err(|_| Error::config(key, "must be a codec that Kafka knows"))?,
                };
            }
            "compression.gzip.level" => self.gzip_level = number(key, value)?,
            "compression.lz4.level" if number::<i32>(key, value)? == LZ4_LEVEL => {}
            "compression.lz4.level" => {
                return Err(Error::config(key, format!("must be {LZ4_LEVEL}: the LZ4 encoder has one level")));
            }
            "compression.zstd.level" => self.zstd_level = number(key, value)?,
            "index.interval.bytes" => self.index_interval_bytes = number(key, value)?,
            "max.message.bytes" => self.batch_bytes_max = number(key, value)?,
            "message.timestamp.after.max.ms" => self.timestamp_after_max_ms = number(key, value)?,
            "message.timestamp.before.max.ms" => self.timestamp_before_max_ms = number(key, value)?,
            "message.timestamp.type" => {
                self.timestamp_type = match value {
                    "CreateTime" => TimestampType::CreateTime,
                    "LogAppendTime" => TimestampType::LogAppendTime,
                    _ => return Err(Error::config(key, "must be CreateTime or LogAppendTime")),
                };
            }
            "preallocate" if value == "false" => {}
            "preallocate" => {
                return Err(Error::config(key, "must be false: space is taken as topiclog.preallocate.bytes says"));
            }
            "delete.retention.ms" => self.delete_retention_ms = number(key, value)?,
            "max.compaction.lag.ms" => self.max_compaction_lag_ms = number(key, value)?,
            "min.cleanable.dirty.ratio" => self.min_cleanable_dirty_ratio = number(key, value)?,
            "min.compaction.lag.ms" => self.min_compaction_lag_ms = number(key, value)?,
            "retention.bytes" => self.retention_bytes = number(key, value)?,
            "retention.ms" => self.retention_ms = number(key, value)?,
            "topiclog.expire.after.ms" => self.expire_after_ms = number(key, value)?,
            "topiclog.tombstone.hold.max.ms" => self.tombstone_hold_max_ms = number(key, value)?,
            "segment.bytes" => self.segment_bytes = number(key, value)?,
            "segment.index.bytes" => self.segment_index_bytes = number(key, value)?,
            "segment.ms" => self.segment_ms = number(key, value)?,
            "topiclog.durability" => self.durability = parse_durability(key, value)?,
            "topiclog.max.unsynced.bytes" => self.max_unsynced_bytes = number(key, value)?,
            "topiclog.preallocate.bytes" => self.preallocate_bytes = number(key, value)?,
            _ => return Err(Error::config(key, "is not a setting of a topic")),
        }
        Ok(())
    }
}

fn number<T: std::str::FromStr>(key: &str, value: &str) -> Result<T> {
    value.trim().parse().map_err(|_| Error::config(key, "must be a number in the setting's range"))
}

fn durability_text(durability: Durability) -> String {
    match durability {
        Durability::Os => "os".into(),
        Durability::Interval { bytes, ms } => format!("interval:{bytes}:{ms}"),
        Durability::Sync => "sync".into(),
    }
}

fn parse_durability(key: &str, value: &str) -> Result<Durability> {
    let why = "must be os, interval, interval:<bytes>:<ms> or sync";
    match value.split(':').collect::<Vec<_>>().as_slice() {
        ["os"] => Ok(Durability::Os),
        ["interval"] => Ok(Durability::INTERVAL),
        ["interval", bytes, ms] => Ok(Durability::Interval { bytes: number(key, bytes)?, ms: number(key, ms)? }),
        ["sync"] => Ok(Durability::Sync),
        _ => Err(Error::config(key, why)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_refused(key: &str, value: &str) {
        let mut config = TopicConfig::default();
        let refused = config.set(key, value).and_then(|()| config.check());
        assert!(matches!(refused, Err(Error::Config { .. })), "{key}={value}: {refused:?}");
    }

    #[test]
    fn every_setting_is_set_from_what_it_prints() {
        let mut config = TopicConfig::default();
        for (key, value) in TopicConfig::default().entries() {
            config.set(key, &value).unwrap();
        }
        assert_eq!(config, TopicConfig::default());
        config.set("topiclog.durability", "interval:8192:5").unwrap();
        assert_eq!(config.get("topiclog.durability").as_deref(), Some("interval:8192:5"));
    }

    #[test]
    fn impossible_values_are_refused_by_name() {
        for (key, value) in [
            ("segment.bytes", "0"),
            ("segment.bytes", "2147483648"),
            ("segment.bytes", "many"),
            ("segment.ms", "0"),
            ("max.message.bytes", "60"),
            ("max.message.bytes", "8388609"),
            ("cleanup.policy", "keep"),
            ("retention.ms", "-2"),
            ("min.cleanable.dirty.ratio", "1.5"),
            ("min.cleanable.dirty.ratio", "NaN"),
            ("max.compaction.lag.ms", "0"),
            ("topiclog.expire.after.ms", "1000"),
            ("preallocate", "true"),
            ("message.timestamp.type", "NoTime"),
            ("topiclog.durability", "interval:1:1"),
            ("topiclog.durability", "never"),
            ("no.such.setting", "1"),
        ] {
            check_refused(key, value);
        }
        assert!(TopicConfig::default().partitions(0).check().is_err());
        assert!(TopicConfig::default().partitions(1025).check().is_err());
    }

    /// The setting is taken, shown as it was given, and the whole still holds together.
    fn check_good(key: &str, values: &[&str]) {
        for value in values {
            let mut config = TopicConfig::default();
            config
                .set(key, value)
                .and_then(|()| config.check())
                .unwrap_or_else(|error| panic!("{key}={value}: {error}"));
            assert_eq!(config.get(key).as_deref(), Some(*value), "{key}");
        }
    }

    fn check_bad(key: &str, values: &[&str]) {
        values.iter().for_each(|value| check_refused(key, value));
    }

    #[test]
    fn sizes_have_limits() {
        check_good("segment.bytes", &["256", "1073741824", "2147483647"]);
        check_bad("segment.bytes", &["255", "-1", "2147483648", "4294967296", "", "1g", "1.5"]);
        check_good("segment.index.bytes", &["24", "10485760"]);
        check_bad("segment.index.bytes", &["23", "-24", "4294967296"]);
        check_good("index.interval.bytes", &["0", "1", "4096"]);
        check_bad("index.interval.bytes", &["-1", "4294967296", "often"]);
        check_good("max.message.bytes", &["61", "1048588", "8388608"]);
        check_bad("max.message.bytes", &["0", "60", "-61", "4294967296"]);
        check_good("topiclog.preallocate.bytes", &["0", "4194304"]);
        check_bad("topiclog.preallocate.bytes", &["-1", "4294967296"]);
    }

    #[test]
    fn times_have_limits() {
        check_good("segment.ms", &["1", "604800000", "9223372036854775807"]);
        check_bad("segment.ms", &["0", "-1", "9223372036854775808", "a week"]);
        for key in ["message.timestamp.before.max.ms", "message.timestamp.after.max.ms"] {
            check_good(key, &["0", "3600000", "9223372036854775807"]);
            check_bad(key, &["-1", "9223372036854775808", "soon"]);
        }
        check_good("message.timestamp.type", &["CreateTime", "LogAppendTime"]);
        check_bad("message.timestamp.type", &["createtime", "", "0"]);
    }

    #[test]
    fn a_batch_must_fit_what_may_be_unsynced() {
        check_bad("topiclog.max.unsynced.bytes", &["0", "1048587", "-1"]);
        check_good("topiclog.max.unsynced.bytes", &["1048588", "18446744073709551615"]);
        let both = TopicConfig::default().batch_bytes_max(16 << 20).max_unsynced_bytes(16 << 20);
        assert!(both.check().is_ok());
        assert!(both.max_unsynced_bytes((16 << 20) - 1).check().is_err());
    }

    #[test]
    fn durability_is_written_as_it_is_read() {
        check_good("topiclog.durability", &["os", "sync", "interval:4096:1", "interval:1048576:50"]);
        let bad = ["", "Sync", "interval:4095:50", "interval:4096:0", "interval:4096", "interval:a:b", "sync:1"];
        check_bad("topiclog.durability", &bad);
        let mut config = TopicConfig::default();
        config.set("topiclog.durability", "interval").unwrap();
        assert_eq!(config.durability_level(), Durability::INTERVAL);
    }

    #[test]
    fn what_may_be_removed_is_said_in_any_order() {
        check_good("cleanup.policy", &["delete", "compact", "compact,delete"]);
        check_bad("cleanup.policy", &["", "compact,", "delete,delete", "compact delete", "DELETE"]);
        for (value, needs_key) in [("delete", false), ("compact", true), ("delete, compact", true)] {
            let mut config = TopicConfig::default();
            config.set("cleanup.policy", value).unwrap();
            assert_eq!(config.log_settings().needs_key, needs_key, "{value}");
        }
    }

    #[test]
    fn codecs_are_kafkas_and_their_levels_go_with_them() {
        for codec in Compression::ALL.into_iter().filter(|codec| *codec != Compression::None) {
            let mut config = TopicConfig::default();
            config.set("compression.type", codec.name()).unwrap();
            assert!(config.check().is_ok(), "{codec}");
            assert_eq!(config.check_codec().is_ok(), codec.is_built_in(), "{codec}");
            assert_eq!(config.get("compression.type").as_deref(), Some(codec.name()));
        }
        for none in ["none", "uncompressed", "producer"] {
            let mut config = TopicConfig::default();
            config.set("compression.type", none).unwrap();
            assert_eq!(config.get("compression.type").as_deref(), Some("producer"));
        }
        check_bad("compression.type", &["", "brotli", "GZIP"]);
        check_good("compression.zstd.level", &["-131072", "-1", "0", "1", "3", "22"]);
        check_bad("compression.zstd.level", &["high", "", "2147483648", "-131073", "23", "500"]);
        check_good("compression.gzip.level", &["-1", "1", "9"]);
        check_bad("compression.gzip.level", &["-2", "0", "10", "99", "best"]);
        check_good("compression.lz4.level", &["9"]);
        check_bad("compression.lz4.level", &["1", "17", "-1", ""]);
        let mut config = TopicConfig::default().compression(Compression::Zstd);
        config.set("compression.zstd.level", "7").unwrap();
        config.set("compression.gzip.level", "2").unwrap();
        let level = |config: &TopicConfig| config.log_settings().level_of(config.compression);
        assert_eq!(level(&config), Some(7));
        assert_eq!(level(&config.clone().compression(Compression::Gzip)), Some(2));
        assert_eq!(level(&config.compression(Compression::Lz4)), None);
    }

    #[test]
    fn what_this_version_does_not_do_is_refused_and_not_ignored() {
        check_good("preallocate", &["false"]);
        check_bad("preallocate", &["true", ""]);
        for key in ["retention.ms", "retention.bytes"] {
            check_good(key, &["-1", "0", "604800000"]);
            check_bad(key, &["-2", "x"]);
        }
        check_bad("min.insync.replicas", &["1"]);
        check_bad("Segment.bytes", &["1024"]);
        check_bad("", &[""]);
        assert_eq!(TopicConfig::default().get("flush.ms"), None);
    }

    #[test]
    fn a_refused_value_changes_nothing() {
        let mut config = TopicConfig::default().segment_bytes(5000);
        for (key, value) in [("segment.bytes", "x"), ("cleanup.policy", "x"), ("topiclog.durability", "x")] {
            assert!(config.set(key, value).is_err());
        }
        assert_eq!(config, TopicConfig::default().segment_bytes(5000));
    }
}
