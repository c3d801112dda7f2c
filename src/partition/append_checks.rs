//! What a record must keep to, to be appended. PURE. Reads have no such limits.

use super::settings::LogSettings;
use crate::clock::Timestamp;
use crate::error::{Error, Result};
use crate::record::{RecordRef, TimestampType};

/// Largest key of an appended record.
const KEY_BYTES_MAX: usize = 64 << 10;
/// Most headers of an appended record.
const HEADERS_MAX: usize = 1024;

#[inline]
pub(super) fn check_record(
    record: &RecordRef<'_>,
    settings: &LogSettings,
    now_ms: Timestamp,
    has_key_of_the_log: bool,
) -> Result<()> {
    if settings.needs_key && record.key.is_none() {
        return Err(Error::invalid("record key", "must not be null on a compacted topic"));
    }
    if !has_key_of_the_log && record.key.is_some_and(|key| key.len() > KEY_BYTES_MAX) {
        return Err(Error::invalid("record key", format!("has more than {KEY_BYTES_MAX} bytes")));
    }
    if record.headers.len() > HEADERS_MAX {
        return Err(Error::invalid("record headers", format!("are more than {HEADERS_MAX}")));
    }
    match record.timestamp {
        Some(timestamp) => check_timestamp(timestamp, settings, now_ms),
        None => Ok(()),
    }
}

fn check_timestamp(timestamp: Timestamp, settings: &LogSettings, now_ms: Timestamp) -> Result<()> {
    if timestamp < -1 {
        return Err(Error::invalid("record timestamp", "must be -1 (none) or at least 0"));
    }
    if settings.timestamp_type == TimestampType::CreateTime && timestamp != -1 {
        if now_ms.saturating_sub(timestamp) > settings.timestamp_before_max_ms {
            return Err(Error::invalid("record timestamp", "is older than message.timestamp.before.max.ms allows"));
        }
        if timestamp.saturating_sub(now_ms) > settings.timestamp_after_max_ms {
            return Err(Error::invalid(
                "record timestamp",
                "is further in the future than message.timestamp.after.max.ms allows",
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::record::{AsRecord, Record};

    fn settings() -> LogSettings {
        crate::topic::TopicConfig::default().log_settings()
    }

    fn check(record: &Record, settings: &LogSettings) -> bool {
        let record: RecordRef<'_> = record.as_record();
        check_record(&record, settings, 1_000_000, false).is_ok()
    }

    #[test]
    fn keys_and_headers_have_limits() {
        let key = |bytes: usize| Record::keyed(vec![b'k'; bytes], "v");
        assert!(check(&key(KEY_BYTES_MAX), &settings()) && !check(&key(KEY_BYTES_MAX + 1), &settings()));
        let headers = |count: usize| (0..count).fold(Record::of_value("v"), |record, _| record.header("h", "x"));
        assert!(check(&headers(HEADERS_MAX), &settings()) && !check(&headers(HEADERS_MAX + 1), &settings()));
        let compacted = LogSettings { needs_key: true, ..settings() };
        assert!(check(&key(0), &compacted) && !check(&Record::of_value("v"), &compacted));
    }

    #[test]
    fn times_are_held_against_the_clock_unless_it_stamps_them() {
        let at = |timestamp: i64| Record::of_value("v").timestamp_ms(timestamp);
        let narrow = LogSettings { timestamp_before_max_ms: 100, timestamp_after_max_ms: 10, ..settings() };
        for (timestamp, is_good) in
            [(1_000_000, true), (999_900, true), (999_899, false), (1_000_010, true), (1_000_011, false), (-1, true)]
        {
            assert_eq!(check(&at(timestamp), &narrow), is_good, "{timestamp}");
        }
        assert!(!check(&at(-2), &settings()) && !check(&at(i64::MIN), &settings()));
        assert!(check(&at(0), &settings()) && check(&at(i64::MAX), &settings()));
        let stamped = LogSettings { timestamp_type: TimestampType::LogAppendTime, ..narrow };
        assert!(check(&at(5), &stamped), "the time of the record is not used");
    }
}
