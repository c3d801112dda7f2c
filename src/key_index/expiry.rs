//! When a key expires. PURE: no clock, no I/O.

use crate::record::StoredRecord;

/// A header with this name says when its record expires: 8 bytes, big-endian, milliseconds since 1970-01-01 UTC.
pub const EXPIRES_AT_HEADER: &str = "tl-expires-at";

/// When a record expires: as its header says, else so long after its timestamp; `None` if it lives for ever. A tombstone
/// never does: it is gone already. Nor does anything in a topic without expiry (`expire_after_ms` below 0).
pub(crate) fn expires_at(record: &StoredRecord, expire_after_ms: i64) -> Option<i64> {
    if expire_after_ms < 0 || record.is_tombstone() {
        return None;
    }
    let header =
        record.headers().into_iter().filter(|header| header.name_bytes() == EXPIRES_AT_HEADER.as_bytes()).last();
    let stated = header.and_then(|header| header.value()?.try_into().ok()).map(i64::from_be_bytes);
    // A record without a time is as old as time itself, and that is no reason to drop it.
    let by_age = || (record.timestamp_ms() >= 0).then(|| record.timestamp_ms().saturating_add(expire_after_ms));
    stated.or_else(by_age).filter(|&at| at != i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{BatchBuilder, BatchSpec, BatchView, DecodeLimits, Record, decode_body, stored_records};

    fn check(record: Record, expire_after_ms: i64, expected: Option<i64>) {
        let mut builder = BatchBuilder::new(BatchSpec::new(0));
        builder.push(record).unwrap();
        let batch = builder.finish().unwrap();
        let header = *BatchView::parse(&batch).unwrap().header();
        let body = decode_body(&header, &batch, &DecodeLimits::default()).unwrap();
        let stored = stored_records(&header, &body).next().unwrap().unwrap();
        assert_eq!(expires_at(&stored, expire_after_ms), expected, "{stored:?}");
    }

    #[test]
    fn the_header_wins_over_the_age() {
        let record = || Record::keyed("k", "v").timestamp_ms(1000);
        let at = |ms: i64| record().header(EXPIRES_AT_HEADER, ms.to_be_bytes().to_vec());
        check(record(), 50, Some(1050));
        check(record(), i64::MAX, None);
        check(record(), -1, None);
        check(at(7), 50, Some(7));
        check(at(7), -1, None);
        check(at(7).header(EXPIRES_AT_HEADER, 9_i64.to_be_bytes().to_vec()), 50, Some(9));
        check(record().header(EXPIRES_AT_HEADER, "soon"), 50, Some(1050));
        check(Record::keyed("k", "v").timestamp_ms(-1), 50, None);
        check(Record::tombstone("k").timestamp_ms(1000), 50, None);
    }
}
