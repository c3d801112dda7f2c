#![no_main]
//! Any bytes as a batch: no panic, and what decodes is the same when it is encoded again.

use topiclog::record::{BatchSpec, BatchView, Decompressor, RecordView, TimestampType, encode_batch, peek};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    peek(bytes).ok();
    let Some(fixed) = with_right_crc(bytes) else { return };
    let Ok(view) = BatchView::parse(&fixed) else { return };
    let mut decompressor = Decompressor::default();
    let Ok(records) = view.records(&mut decompressor) else { return };
    let Ok(records) = records.collect::<Result<Vec<_>, _>>() else { return };
    let header = *view.header();
    if records.is_empty() || header.timestamp_type() == TimestampType::LogAppendTime {
        return;
    }
    if records.iter().any(|record| record.timestamp_ms() < -1) {
        return;
    }
    let mut out = Vec::new();
    let spec = BatchSpec { leader_epoch: header.leader_epoch, ..BatchSpec::new(0) };
    encode_batch(&mut out, &spec, records.iter().map(topiclog::AsRecord::as_record)).unwrap();
    let again = BatchView::parse(&out).unwrap();
    let mut decompressor = Decompressor::default();
    let again: Vec<_> = again.records(&mut decompressor).unwrap().map(Result::unwrap).collect();
    assert_eq!(again.len(), records.len());
    for (one, other) in again.iter().zip(&records) {
        assert_eq!((one.key(), one.value(), one.timestamp_ms()), (other.key(), other.value(), other.timestamp_ms()));
        let headers = |of: &RecordView<'_>| -> Vec<_> {
            of.headers().iter().map(|header| (header.name_bytes().to_vec(), header.value().map(<[u8]>::to_vec))).collect()
        };
        assert_eq!(headers(one), headers(other));
    }
});

/// Gives the batch the length and the CRC that its bytes have, so that the fuzzer gets past them.
fn with_right_crc(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut batch = bytes.to_vec();
    let length = i32::try_from(bytes.len().checked_sub(12)?).ok()?;
    batch.get_mut(8..12)?.copy_from_slice(&length.to_be_bytes());
    *batch.get_mut(16)? = 2;
    let crc = match BatchView::parse(&batch) {
        Err(topiclog::record::BatchError::Crc { computed, .. }) => computed,
        _ => return Some(batch),
    };
    batch.get_mut(17..21)?.copy_from_slice(&crc.to_be_bytes());
    Some(batch)
}
