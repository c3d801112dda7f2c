#![no_main]
//! Any bytes as a compressed body: no panic, and never more than the budget.

use bytes::Bytes;
use topiclog::record::{BatchHeader, BatchSpec, DecodeLimits, RecordRef, decode_body, encode_batch};

const BUDGET: usize = 1 << 20;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((&codec, body)) = bytes.split_first() else { return };
    let mut batch = Vec::new();
    encode_batch(&mut batch, &BatchSpec::new(0), [RecordRef::new(None, None)]).unwrap();
    batch.truncate(61);
    batch[22] = codec % 5;
    batch.extend_from_slice(body);
    let length = (batch.len() - 12) as i32;
    batch[8..12].copy_from_slice(&length.to_be_bytes());
    let Ok(header) = BatchHeader::decode(&batch) else { return };
    if let Ok(body) = decode_body(&header, &Bytes::from(batch), &DecodeLimits { decompressed_bytes_max: BUDGET }) {
        assert!(body.len() <= BUDGET.max(bytes.len()));
    }
});
