//! Control records: the markers that end a transaction.
//!
//! A marker is a batch of one record with the control and transactional bits. It takes an offset like any record, and
//! consumers never see it. What it means for readers is decided above.
//!
//! ```text
//! key    i16 version 0, i16 type        0 ABORT, 1 COMMIT; others occur in Kafka's metadata log
//! value  i16 version 0, i32 coordinatorEpoch
//!
//! COMMIT by coordinator epoch 5:   key 00 00 00 01   value 00 00 00 00 00 05
//! ```
//!
//! Newer versions may be longer; what is known of them is their beginning.

use crate::clock::Timestamp;

use super::batch::{BatchError, BatchHeader};
use super::body::RecordView;
use super::builder::encode_control;

const ABORT: i16 = 0;
const COMMIT: i16 = 1;

/// What a control record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ControlRecord {
    /// The producer's transaction ended without effect.
    Abort {
        /// The epoch of the transaction coordinator.
        coordinator_epoch: i32,
    },
    /// The producer's transaction took effect.
    Commit {
        /// The epoch of the transaction coordinator.
        coordinator_epoch: i32,
    },
    /// Something else, to be skipped.
    Other(i16),
}

impl ControlRecord {
    /// Reads the record of a control batch.
    ///
    /// # Errors
    /// [`BatchError::Malformed`] if the key or the value is too short, or a version negative.
    pub fn parse(record: &RecordView<'_>) -> Result<Self, BatchError> {
        Self::parse_parts(record.key(), record.value())
    }

    fn parse_parts(key: Option<&[u8]>, value: Option<&[u8]>) -> Result<Self, BatchError> {
        let &[v0, v1, t0, t1] = key
            .and_then(|key| key.first_chunk())
            .ok_or_else(|| BatchError::malformed(0, "the key of a control record is shorter than 4 bytes"))?;
        if i16::from_be_bytes([v0, v1]) < 0 {
            return Err(BatchError::malformed(0, "the version of a control record's key is negative"));
        }
        let kind = i16::from_be_bytes([t0, t1]);
        if kind != ABORT && kind != COMMIT {
            return Ok(ControlRecord::Other(kind));
        }
        let &[v0, v1, e0, e1, e2, e3] = value
            .and_then(|value| value.first_chunk())
            .ok_or_else(|| BatchError::malformed(0, "the value of a marker is shorter than 6 bytes"))?;
        if i16::from_be_bytes([v0, v1]) < 0 {
            return Err(BatchError::malformed(0, "the version of a marker's value is negative"));
        }
        let coordinator_epoch = i32::from_be_bytes([e0, e1, e2, e3]);
        Ok(if kind == COMMIT {
            ControlRecord::Commit { coordinator_epoch }
        } else {
            ControlRecord::Abort { coordinator_epoch }
        })
    }
}

/// A marker to write: the end of a producer's transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndMarker {
    /// The offset that the marker takes.
    pub base_offset: i64,
    /// The leader epoch, -1 if unknown.
    pub leader_epoch: i32,
    /// When the transaction ended.
    pub timestamp_ms: Timestamp,
    /// The producer.
    pub producer_id: i64,
    /// Its epoch.
    pub producer_epoch: i16,
    /// Whether the transaction took effect.
    pub commit: bool,
    /// The epoch of the transaction coordinator.
    pub coordinator_epoch: i32,
}

/// Appends the batch of a marker to `out`, 78 bytes, and returns how many.
///
/// # Errors
/// [`BatchError::Unencodable`] if the offset, the timestamp or the producer is negative.
///
/// ```
/// use topiclog::record::{BatchView, ControlRecord, Decompressor, EndMarker, encode_end_marker};
/// let marker = EndMarker {
///     base_offset: 203,
///     leader_epoch: 7,
///     timestamp_ms: 1_700_000_000_200,
///     producer_id: 4242,
///     producer_epoch: 3,
///     commit: true,
///     coordinator_epoch: 5,
/// };
/// let mut log = Vec::new();
/// assert_eq!(encode_end_marker(&mut log, &marker)?, 78);
/// let mut decompressor = Decompressor::default();
/// for record in BatchView::parse(&log)?.records(&mut decompressor)? {
///     assert_eq!(ControlRecord::parse(&record?)?, ControlRecord::Commit { coordinator_epoch: 5 });
/// }
/// # Ok::<(), topiclog::record::BatchError>(())
/// ```
pub fn encode_end_marker(out: &mut Vec<u8>, marker: &EndMarker) -> Result<usize, BatchError> {
    if marker.base_offset < 0 || marker.base_offset == i64::MAX {
        return Err(BatchError::Unencodable { what: "the offset is negative or overflows" });
    }
    if marker.timestamp_ms < 0 || marker.producer_id < 0 || marker.producer_epoch < 0 {
        return Err(BatchError::Unencodable { what: "a marker needs a time and a producer" });
    }
    let [t0, t1] = if marker.commit { COMMIT } else { ABORT }.to_be_bytes();
    let [e0, e1, e2, e3] = marker.coordinator_epoch.to_be_bytes();
    let header = BatchHeader {
        base_offset: marker.base_offset,
        batch_length: 0,
        leader_epoch: marker.leader_epoch,
        magic: 2,
        crc: 0,
        attributes: 0,
        last_offset_delta: 0,
        base_timestamp: marker.timestamp_ms,
        max_timestamp: marker.timestamp_ms,
        producer_id: marker.producer_id,
        producer_epoch: marker.producer_epoch,
        base_sequence: -1,
        records_count: 1,
    };
    encode_control(out, header, &[0, 0, t0, t1], &[0, 0, e0, e1, e2, e3])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newer_and_longer_forms_are_read_by_their_beginning() {
        let key = [0, 1, 0, 1, 9, 9];
        let value = [0, 3, 0, 0, 0, 5, 7, 7];
        let parsed = ControlRecord::parse_parts(Some(&key), Some(&value));
        assert_eq!(parsed, Ok(ControlRecord::Commit { coordinator_epoch: 5 }));
    }

    #[test]
    fn unknown_types_need_no_value() {
        assert_eq!(ControlRecord::parse_parts(Some(&[0, 0, 0, 2]), None), Ok(ControlRecord::Other(2)));
        assert_eq!(ControlRecord::parse_parts(Some(&[0, 0, 0xff, 0xff]), None), Ok(ControlRecord::Other(-1)));
    }

    #[test]
    fn short_or_negative_forms_are_refused() {
        type Part = Option<&'static [u8]>;
        let value: &[u8] = &[0, 0, 0, 0, 0, 5];
        let refused: [(Part, Part); 6] = [
            (None, Some(value)),
            (Some(&[0, 0, 0]), Some(value)),
            (Some(&[0xff, 0xff, 0, 1]), Some(value)),
            (Some(&[0, 0, 0, 1]), None),
            (Some(&[0, 0, 0, 1]), Some(&[0, 0, 0, 0, 0])),
            (Some(&[0, 0, 0, 0]), Some(&[0x80, 0, 0, 0, 0, 5])),
        ];
        for (key, value) in refused {
            let parsed = ControlRecord::parse_parts(key, value);
            assert!(matches!(parsed, Err(BatchError::Malformed { .. })), "{parsed:?}");
        }
    }

    fn marker() -> EndMarker {
        EndMarker {
            base_offset: 3,
            leader_epoch: 0,
            timestamp_ms: 5,
            producer_id: 7,
            producer_epoch: 1,
            commit: false,
            coordinator_epoch: 9,
        }
    }

    #[test]
    fn an_abort_and_a_commit_are_told_apart() {
        for commit in [false, true] {
            let mut log = Vec::new();
            encode_end_marker(&mut log, &EndMarker { commit, ..marker() }).unwrap();
            let view = super::super::BatchView::parse(&log).unwrap();
            let header = view.header();
            assert!(header.is_control() && header.is_transactional());
            assert_eq!((header.base_offset, header.producer_id, header.records_count), (3, 7, 1));
            let mut decompressor = super::super::Decompressor::default();
            let record = view.records(&mut decompressor).unwrap().next().unwrap().unwrap();
            let expected = match commit {
                true => ControlRecord::Commit { coordinator_epoch: 9 },
                false => ControlRecord::Abort { coordinator_epoch: 9 },
            };
            assert_eq!(ControlRecord::parse(&record), Ok(expected));
        }
    }

    #[test]
    fn a_marker_needs_an_offset_a_time_and_a_producer() {
        for bad in [
            EndMarker { base_offset: -1, ..marker() },
            EndMarker { base_offset: i64::MAX, ..marker() },
            EndMarker { timestamp_ms: -1, ..marker() },
            EndMarker { producer_id: -1, ..marker() },
            EndMarker { producer_epoch: -1, ..marker() },
        ] {
            let mut log = vec![1, 2, 3];
            assert!(matches!(encode_end_marker(&mut log, &bad), Err(BatchError::Unencodable { .. })), "{bad:?}");
            assert_eq!(log, [1, 2, 3], "nothing was appended");
        }
    }
}
