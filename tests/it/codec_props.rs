//! Properties of batches: what was written is read again, and what was not written is refused without a panic.

use bytes::Bytes;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use topiclog::record::{
    AsRecord, BatchBuilder, BatchError, BatchHeader, BatchSpec, BatchView, Compression, ControlRecord, DecodeLimits,
    Decompressor, Header, LegacyEntry, Record, RecordsIter, StoredRecord, TimestampType, decode_body, encode_batch,
    peek, set_base_offset, set_leader_epoch, stored_records,
};

use crate::support::simulate::seed;

/// A seed that every failure shows, and that `TOPICLOG_SEED` sets.
fn config() -> ProptestConfig {
    let seed = seed("codecs", std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0));
    ProptestConfig { cases: 256, rng_seed: RngSeed::Fixed(seed), failure_persistence: None, ..Default::default() }
}

fn blob() -> impl Strategy<Value = Bytes> {
    prop_oneof![
        8 => vec(any::<u8>(), 0..40),
        1 => vec(any::<u8>(), 60..70),
        1 => (any::<u8>(), 8_000..9_000_usize).prop_map(|(byte, length)| vec![byte; length]),
    ]
    .prop_map(Bytes::from)
}

fn header() -> impl Strategy<Value = Header> {
    (".{0,6}", option::of(blob())).prop_map(|(name, value)| Header::from_bytes(name, value))
}

fn timestamp() -> impl Strategy<Value = i64> {
    prop_oneof![Just(-1), Just(i64::MAX), 0..i64::MAX, 1_700_000_000_000_i64..1_700_000_100_000]
}

fn record() -> impl Strategy<Value = Record> {
    (option::of(blob()), option::of(blob()), vec(header(), 0..4), option::of(timestamp())).prop_map(
        |(key, value, headers, timestamp)| {
            let mut record = Record::new(key, value);
            for header in headers {
                record = record.with_header(header);
            }
            match timestamp {
                Some(timestamp) => record.timestamp_ms(timestamp),
                None => record,
            }
        },
    )
}

fn spec() -> impl Strategy<Value = BatchSpec> {
    let producer = (0..i64::MAX, 0..i16::MAX, 0..=i32::MAX);
    let built_in: Vec<_> = Compression::ALL.into_iter().filter(|codec| codec.is_built_in()).collect();
    let flags = (any::<bool>(), any::<bool>());
    (0..i64::MAX - 1000, -1..i32::MAX, prop::sample::select(built_in), timestamp(), option::of(producer), flags)
        .prop_map(|(base_offset, leader_epoch, compression, append_time_ms, producer, (append_time, transactional))| {
            BatchSpec {
                base_offset,
                leader_epoch,
                compression,
                compression_level: None,
                timestamp_type: if append_time { TimestampType::LogAppendTime } else { TimestampType::CreateTime },
                append_time_ms,
                producer,
                transactional: transactional && producer.is_some(),
            }
        })
}

fn encoded(spec: &BatchSpec, records: &[Record]) -> Bytes {
    let mut out = b"before".to_vec();
    let made = encode_batch(&mut out, spec, records.iter().map(AsRecord::as_record)).unwrap();
    assert_eq!(out.len(), 6 + made.bytes);
    assert_eq!(made.records as usize, records.len());
    Bytes::from(out).slice(6..)
}

fn decoded(batch: &Bytes) -> Result<(BatchHeader, Vec<StoredRecord>), BatchError> {
    let header = *BatchView::parse(batch)?.header();
    let body = decode_body(&header, batch, &DecodeLimits::default())?;
    Ok((header, stored_records(&header, &body).collect::<Result<_, _>>()?))
}

/// Whatever the bytes are, reading them ends with a value or an error.
fn read_everything(bytes: &[u8]) {
    let _seen = peek(bytes);
    let _entry = LegacyEntry::parse(bytes);
    let _view = BatchView::parse(bytes).map(|view| view.records(&mut Decompressor::default()).map(Iterator::count));
    if let Ok(header) = BatchHeader::decode(bytes) {
        let body = Bytes::copy_from_slice(bytes);
        let limits = DecodeLimits { decompressed_bytes_max: 1 << 16 };
        if let Ok(body) = decode_body(&header, &body, &limits) {
            assert!(header.compression() == Compression::None || body.len() <= 1 << 16);
            walk(&header, &body);
        }
    }
}

fn walk(header: &BatchHeader, body: &[u8]) {
    let mut records = RecordsIter::new(header, body);
    let mut given = 0;
    while let Some(record) = records.next() {
        let Ok(record) = record else {
            assert!(records.next().is_none(), "nothing follows an error");
            return;
        };
        given += 1;
        assert!((header.base_offset..=header.last_offset()).contains(&record.offset()));
        assert_eq!(record.headers().iter().count(), record.headers().len());
        let _told = (record.key(), record.value(), ControlRecord::parse(&record));
        assert!(record.headers().iter().all(|header| header.name().len() >= header.name().chars().count()));
    }
    assert_eq!(given, header.records_count);
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn what_was_written_is_read(spec in spec(), records in vec(record(), 1..20)) {
        let batch = encoded(&spec, &records);
        let (header, read) = decoded(&batch).unwrap();
        prop_assert_eq!(read.len(), records.len());
        prop_assert_eq!((header.base_offset, header.leader_epoch), (spec.base_offset, spec.leader_epoch));
        prop_assert_eq!((header.compression(), header.timestamp_type()), (spec.compression, spec.timestamp_type));
        prop_assert_eq!(header.is_transactional(), spec.transactional);
        let producer = spec.producer.unwrap_or((-1, -1, -1));
        prop_assert_eq!((header.producer_id, header.producer_epoch, header.base_sequence), producer);
        prop_assert_eq!(header.next_offset(), spec.base_offset + records.len() as i64);
        let mut largest = -1;
        for ((delta, read), record) in (0..).zip(&read).zip(&records) {
            prop_assert_eq!(read.offset().get(), spec.base_offset + delta);
            prop_assert_eq!((read.key(), read.value()), (record.key(), record.value()));
            let headers: Vec<_> = read.headers().iter().map(|header| header.to_header()).collect();
            prop_assert_eq!(&headers[..], record.headers());
            let timestamp = match spec.timestamp_type {
                TimestampType::CreateTime => record.timestamp().unwrap_or(spec.append_time_ms),
                TimestampType::LogAppendTime => spec.append_time_ms,
            };
            prop_assert_eq!(read.timestamp_ms(), timestamp);
            largest = largest.max(timestamp);
        }
        prop_assert_eq!(header.max_timestamp, largest);

        // The builder makes the same bytes, and so do the records that were read, if their times are their own.
        let mut again = BatchBuilder::new(spec);
        let mut copied = BatchBuilder::new(spec);
        for (record, read) in records.iter().zip(&read) {
            again.push(record).unwrap();
            copied.push(read).unwrap();
        }
        prop_assert_eq!(again.finish().unwrap(), &batch);
        if spec.timestamp_type == TimestampType::CreateTime {
            prop_assert_eq!(copied.finish().unwrap(), &batch);
        }
    }

    #[test]
    fn offset_and_epoch_can_be_stamped(spec in spec(), records in vec(record(), 1..4), epoch in 0..i32::MAX) {
        let batch = encoded(&spec, &records);
        let mut stamped = batch.to_vec();
        set_base_offset(&mut stamped, 77);
        set_leader_epoch(&mut stamped, epoch);
        let expected = encoded(&BatchSpec { base_offset: 77, leader_epoch: epoch, ..spec }, &records);
        prop_assert_eq!(stamped, expected);
    }

    #[test]
    fn every_prefix_is_truncated_and_every_suffix_ignored(spec in spec(), records in vec(record(), 1..3)) {
        let batch = encoded(&spec, &records);
        for length in 0..batch.len() {
            let refused = BatchView::parse(&batch[..length]).unwrap_err();
            let truncated = matches!(refused, BatchError::Truncated { available, .. } if available == length);
            prop_assert!(truncated, "{:?}", refused);
        }
        let mut longer = batch.to_vec();
        longer.extend_from_slice(b"what follows");
        let view = BatchView::parse(&longer).unwrap();
        prop_assert_eq!(view.bytes(), &batch[..]);
    }

    #[test]
    fn random_bytes_do_no_harm(bytes in vec(any::<u8>(), 0..300)) {
        read_everything(&bytes);
    }

    #[test]
    fn random_bodies_do_no_harm(
        body in vec(any::<u8>(), 0..200), count in 0..4_i32, codec in 0..5_u8, start in any::<bool>()
    ) {
        // With a header whose checks hold, so that the body is reached.
        let starts: [&[u8]; 5] = [
            &[],
            &[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255],
            b"\x82SNAPPY\0\0\0\0\x01\0\0\0\x01\0\0",
            &[4, 0x22, 0x4d, 0x18, 0x60, 0x40, 0x82],
            &[0x28, 0xb5, 0x2f, 0xfd, 0, 0x58],
        ];
        let mut bytes = encoded(&BatchSpec::new(5), &[Record::of_value("x")])[..61].to_vec();
        if start {
            bytes.extend_from_slice(starts[usize::from(codec)]);
        }
        bytes.extend_from_slice(&body);
        let length = bytes.len() as u32 - 12;
        bytes[8..12].copy_from_slice(&length.to_be_bytes());
        bytes[22] = codec;
        bytes[23..27].copy_from_slice(&3_i32.to_be_bytes());
        bytes[57..61].copy_from_slice(&count.to_be_bytes());
        let crc = crc_fast::crc32_iscsi(&bytes[21..]);
        bytes[17..21].copy_from_slice(&crc.to_be_bytes());
        read_everything(&bytes);
    }

    #[test]
    fn changed_bodies_do_no_harm(
        spec in spec(), records in vec(record(), 1..4), changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)
    ) {
        let mut bytes = encoded(&spec, &records).to_vec();
        for (index, byte) in changes {
            let at = index.index(bytes.len());
            bytes[at] = byte;
        }
        let crc = crc_fast::crc32_iscsi(&bytes[21..]);
        bytes[17..21].copy_from_slice(&crc.to_be_bytes());
        read_everything(&bytes);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..config() })]

    #[test]
    fn every_flipped_bit_is_noticed_but_in_the_first_17_bytes(spec in spec(), records in vec(record(), 1..3)) {
        let batch = encoded(&spec, &records);
        let mut flipped = batch.to_vec();
        // Long batches would take long, and what matters is in their beginning.
        for bit in 0..8 * batch.len().min(400) {
            flipped[bit / 8] ^= 1 << (bit % 8);
            let outcome = BatchView::parse(&flipped);
            match bit / 8 {
                // Offset and epoch are stamped later, so that any is possible, but the offset's sign or an overflow.
                0..8 | 12..16 => prop_assert!(bit / 8 < 1 || outcome.is_ok()),
                8..12 => prop_assert!(outcome.is_err(), "the length at bit {bit}"),
                16 => prop_assert!(matches!(outcome, Err(BatchError::Magic(_)))),
                _ => prop_assert!(outcome.is_err(), "bit {bit}"),
            }
            flipped[bit / 8] ^= 1 << (bit % 8);
        }
        prop_assert_eq!(flipped, batch);
    }
}
