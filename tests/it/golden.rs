//! Bytes that Apache Kafka wrote, decoded field by field and, where Kafka's bytes are determined, made again.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use topiclog::record::{
    BatchBuilder, BatchError, BatchHeader, BatchSpec, BatchView, Compression, ControlRecord, DecodeLimits,
    Decompressor, EndMarker, Header, LegacyEntry, Record, StoredRecord, TimestampType, decode_body, encode_end_marker,
    peek, stored_records,
};

const T0: i64 = 1_700_000_000_000;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

thread_local! {
    /// The names of the examples that this thread has asked for.
    static ASKED: RefCell<BTreeSet<String>> = const { RefCell::new(BTreeSet::new()) };
}

/// All examples, as hex by name.
pub(crate) fn examples() -> BTreeMap<String, String> {
    let text = std::fs::read_to_string(fixtures().join("vectors/kafka_examples.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// The names of the examples that this thread has asked for since the last time; none is left.
pub(crate) fn take_asked() -> BTreeSet<String> {
    ASKED.take()
}

/// The example whose name begins so.
pub(crate) fn example(name: &str) -> Bytes {
    let examples = examples();
    let (name, hex) = examples.iter().find(|(key, _)| key.starts_with(name)).unwrap();
    ASKED.with_borrow_mut(|asked| asked.insert(name.clone()));
    let digits = hex.as_bytes().chunks(2);
    digits.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

/// Owned and borrowed reading must agree; returns what was read.
fn read(batch: &Bytes) -> (BatchHeader, Vec<StoredRecord>) {
    let view = BatchView::parse(batch).unwrap();
    let header = *view.header();
    assert_eq!(header.size_bytes(), batch.len());
    assert_eq!(view.bytes(), &batch[..]);
    let seen = peek(batch).unwrap();
    assert_eq!((seen.base_offset, seen.size_bytes), (header.base_offset, header.size_bytes()));
    assert_eq!((seen.leader_epoch, seen.magic), (header.leader_epoch, header.magic));
    let body = decode_body(&header, batch, &DecodeLimits::default()).unwrap();
    let owned: Vec<StoredRecord> = stored_records(&header, &body).map(Result::unwrap).collect();
    let mut decompressor = Decompressor::default();
    let borrowed: Vec<_> = view.records(&mut decompressor).unwrap().map(Result::unwrap).collect();
    assert_eq!(owned.len(), borrowed.len());
    for (owned, borrowed) in owned.iter().zip(&borrowed) {
        assert_eq!(owned.offset().get(), borrowed.offset());
        assert_eq!(owned.timestamp_ms(), borrowed.timestamp_ms());
        assert_eq!(owned.leader_epoch(), header.leader_epoch);
        assert_eq!((owned.key(), owned.value()), (borrowed.key(), borrowed.value()));
        assert_eq!((owned.key_bytes().as_deref(), owned.value_bytes().as_deref()), (owned.key(), owned.value()));
        assert!(owned.headers().iter().eq(borrowed.headers().iter()));
    }
    (header, owned)
}

/// Offset, time, key and value.
type Row<'a> = (i64, i64, Option<&'a [u8]>, Option<&'a [u8]>);

fn rows(records: &[StoredRecord]) -> Vec<Row<'_>> {
    records.iter().map(|r| (r.offset().get(), r.timestamp_ms(), r.key(), r.value())).collect()
}

fn bytes(text: &str) -> Option<&[u8]> {
    Some(text.as_bytes())
}

#[test]
pub(crate) fn a_plain_batch() {
    let batch = example("A plain");
    let (header, records) = read(&batch);
    let expected = BatchHeader {
        base_offset: 100,
        batch_length: 82,
        leader_epoch: 7,
        magic: 2,
        crc: 0x5ecb_70fc,
        attributes: 0,
        last_offset_delta: 1,
        base_timestamp: T0,
        max_timestamp: T0 + 5,
        producer_id: -1,
        producer_epoch: -1,
        base_sequence: -1,
        records_count: 2,
    };
    assert_eq!(header, expected);
    assert_eq!((header.last_offset(), header.next_offset(), header.last_sequence()), (101, 102, -1));
    assert_eq!((header.compression(), header.timestamp_type()), (Compression::None, TimestampType::CreateTime));
    assert!(!header.is_control() && !header.is_transactional() && header.delete_horizon_ms().is_none());
    assert_eq!(rows(&records), [(100, T0, bytes("k1"), bytes("hello")), (101, T0 + 5, None, bytes("world"))]);
    assert!(records[0].headers().is_empty());
    let headers: Vec<_> = records[1].headers().iter().map(|h| (h.name().into_owned(), h.value())).collect();
    assert_eq!(headers, [("h".to_owned(), bytes("x")), ("n".to_owned(), None)]);

    let mut again = BatchBuilder::new(BatchSpec { leader_epoch: 7, ..BatchSpec::new(100) });
    again.push(Record::keyed("k1", "hello").timestamp_ms(T0)).unwrap();
    let second = Record::of_value("world").header("h", "x").with_header(Header::null("n"));
    again.push(second.timestamp_ms(T0 + 5)).unwrap();
    assert_eq!(again.finish().unwrap(), batch);
}

/// The producer of the transactional examples.
fn transactional(base_offset: i64) -> BatchSpec {
    let producer = Some((4242, 3, 10));
    BatchSpec { leader_epoch: 7, producer, transactional: true, ..BatchSpec::new(base_offset) }
}

#[test]
pub(crate) fn b_transactional_batch() {
    let batch = example("B txn");
    let (header, records) = read(&batch);
    assert!(header.is_transactional() && !header.is_control());
    assert_eq!((header.producer_id, header.producer_epoch, header.base_sequence), (4242, 3, 10));
    assert_eq!((header.last_sequence(), header.next_offset()), (12, 203));
    let expected = [
        (200, T0 + 100, bytes("a"), bytes("1")),
        (201, T0 + 101, bytes("b"), bytes("2")),
        (202, T0 + 102, bytes("a"), bytes("3")),
    ];
    assert_eq!(rows(&records), expected);

    let mut again = BatchBuilder::new(transactional(200));
    for record in &records {
        again.push(record).unwrap();
    }
    assert_eq!(again.finish().unwrap(), batch);
}

#[test]
pub(crate) fn c_and_d_markers() {
    for (name, commit) in [("C commit", true), ("D abort", false)] {
        let batch = example(name);
        let (header, records) = read(&batch);
        assert!(header.is_control() && header.is_transactional());
        assert_eq!((header.base_offset, header.last_offset_delta, header.base_sequence), (203, 0, -1));
        assert_eq!(records.len(), 1);
        let mut decompressor = Decompressor::default();
        let view = BatchView::parse(&batch).unwrap().records(&mut decompressor).unwrap().next().unwrap().unwrap();
        let expected = match commit {
            true => ControlRecord::Commit { coordinator_epoch: 5 },
            false => ControlRecord::Abort { coordinator_epoch: 5 },
        };
        assert_eq!(ControlRecord::parse(&view), Ok(expected));

        let marker = EndMarker {
            base_offset: 203,
            leader_epoch: 7,
            timestamp_ms: T0 + 200,
            producer_id: 4242,
            producer_epoch: 3,
            commit,
            coordinator_epoch: 5,
        };
        let mut again = Vec::new();
        encode_end_marker(&mut again, &marker).unwrap();
        assert_eq!(again, batch);
    }
}

#[test]
pub(crate) fn e_and_g_cleaned_batches() {
    let (header, records) = read(&example("E compacted"));
    assert_eq!((header.base_offset, header.last_offset(), header.records_count), (200, 202, 2));
    assert_eq!((header.base_timestamp, header.last_sequence()), (T0 + 101, 12));
    let expected = [(201, T0 + 101, bytes("b"), bytes("2")), (202, T0 + 102, bytes("a"), bytes("3"))];
    assert_eq!(rows(&records), expected);

    let (header, records) = read(&example("E2 compacted"));
    assert_eq!((header.next_offset(), header.last_sequence(), header.max_timestamp), (203, 12, T0 + 101));
    let expected = [(200, T0 + 100, bytes("a"), bytes("1")), (201, T0 + 101, bytes("b"), bytes("2"))];
    assert_eq!(rows(&records), expected);

    let (header, records) = read(&example("G empty"));
    assert_eq!((header.size_bytes(), header.records_count, header.next_offset()), (61, 0, 203));
    assert_eq!((header.base_timestamp, header.max_timestamp), (-1, T0 + 102));
    assert!(records.is_empty());
}

#[test]
pub(crate) fn f_tombstones() {
    let batch = example("F0 tombstone");
    let (header, records) = read(&batch);
    assert_eq!(rows(&records), [(300, T0 + 1000, bytes("k"), None)]);
    assert!(records[0].is_tombstone());
    assert_eq!(header.delete_horizon_ms(), None);
    let mut again = BatchBuilder::new(BatchSpec { leader_epoch: 7, ..BatchSpec::new(300) });
    again.push(Record::tombstone("k").timestamp_ms(T0 + 1000)).unwrap();
    assert_eq!(again.finish().unwrap(), batch);

    // With a horizon the deltas count from it, and the record's own time comes out the same.
    let (header, records) = read(&example("F1 tombstone"));
    assert_eq!(header.delete_horizon_ms(), Some(header.base_timestamp));
    assert_eq!(rows(&records), [(300, T0 + 1000, bytes("k"), None)]);
}

#[test]
pub(crate) fn z_the_same_records_in_every_codec() {
    for (name, codec) in [
        ("Z compressed gzip", Compression::Gzip),
        ("Z compressed snappy", Compression::Snappy),
        ("Z compressed lz4", Compression::Lz4),
        ("Z compressed zstd", Compression::Zstd),
    ] {
        let batch = example(name);
        let header = *BatchView::parse(&batch).unwrap().header();
        assert_eq!(header.compression(), codec);
        if !codec.is_built_in() {
            let refused = decode_body(&header, &batch, &DecodeLimits::default()).unwrap_err();
            assert_eq!(refused, BatchError::CodecNotBuiltIn(codec));
            assert!(refused.is_unsupported());
            continue;
        }
        let (_, records) = read(&batch);
        assert_eq!(records.len(), 8);
        for (index, record) in (0..8_i64).zip(&records) {
            assert_eq!((record.offset().get(), record.timestamp_ms()), (400 + index, T0 + index));
            assert_eq!(record.key(), bytes(&format!("key-{}", index % 4)));
            assert_eq!(record.value(), bytes(&format!("value-{index}-{}", "abcdefgh".repeat(8))));
        }
        let limits = DecodeLimits { decompressed_bytes_max: 688 };
        assert_eq!(decode_body(&header, &batch, &limits).unwrap().len(), 688);
        let limits = DecodeLimits { decompressed_bytes_max: 687 };
        let refused = decode_body(&header, &batch, &limits).unwrap_err();
        assert_eq!(refused, BatchError::DecompressedTooLarge { limit: 687 });
    }
}

#[test]
pub(crate) fn legacy_entries_are_stepped_over_and_refused() {
    for (name, magic, size_bytes, timestamp_ms) in [("legacy v0", 0, 28, -1), ("legacy v1", 1, 36, 1_700_000_000_000)] {
        let mut bytes = example(name).to_vec();
        assert_eq!(LegacyEntry::parse(&bytes), Ok(LegacyEntry { offset: 5, size_bytes, magic, timestamp_ms }));
        assert_eq!(BatchView::parse(&bytes).unwrap_err(), BatchError::Magic(magic));
        // Long enough for a header of format 2, it is still none.
        bytes.extend_from_slice(&[0; 64]);
        assert_eq!(BatchView::parse(&bytes).unwrap_err(), BatchError::Magic(magic));
        assert!(LegacyEntry::parse(&bytes[..size_bytes - 1]).is_err());
        bytes[size_bytes - 1] ^= 1;
        assert!(matches!(LegacyEntry::parse(&bytes), Err(BatchError::Crc { .. })));
    }
}

/// The segment files of every partition of a fixture directory, by partition and base offset.
fn segments(directory: &Path) -> BTreeMap<String, Vec<Bytes>> {
    let mut partitions: BTreeMap<String, Vec<Bytes>> = BTreeMap::new();
    let mut folders: Vec<_> = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.sort();
    for folder in folders.into_iter().filter(|path| path.is_dir()) {
        let mut files: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        let logs = files.iter().filter(|path| path.extension().is_some_and(|extension| extension == "log"));
        let name = folder.file_name().unwrap().to_str().unwrap().to_owned();
        partitions.insert(name, logs.map(|path| Bytes::from(std::fs::read(path).unwrap())).collect());
    }
    partitions
}

/// As the expectations write bytes: hex, or a checksum and a length.
fn shown(bytes: Option<&[u8]>) -> serde_json::Value {
    match bytes {
        None => serde_json::Value::Null,
        Some(bytes) if bytes.len() > 96 => {
            format!("crc32c:{:08x}:{}", crc_fast::crc32_iscsi(bytes), bytes.len()).into()
        }
        Some(bytes) => bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>().into(),
    }
}

fn as_expected(record: &StoredRecord) -> serde_json::Value {
    let headers: Vec<_> =
        record.headers().iter().map(|header| serde_json::json!([header.name(), shown(header.value())])).collect();
    serde_json::json!({
        "offset": record.offset().get(),
        "timestamp": record.timestamp_ms(),
        "timestamp_type": record.timestamp_type().to_string(),
        "leader_epoch": record.leader_epoch(),
        "key": shown(record.key()),
        "value": shown(record.value()),
        "headers": headers,
    })
}

#[test]
fn every_record_of_the_broker_directories() {
    let (mut files, mut batches, mut compared) = (0, 0, 0);
    for state in ["clean", "killed"] {
        for (partition, logs) in segments(&fixtures().join("kafka").join(state)) {
            let file = fixtures().join(format!("kafka/{state}.expected/{partition}.jsonl"));
            let text = std::fs::read_to_string(&file).unwrap();
            let mut lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
            let start = lines.next().unwrap()["start"].as_i64().unwrap();
            for mut log in logs {
                files += 1;
                while !log.is_empty() {
                    let view = BatchView::parse(&log).unwrap();
                    let header = *view.header();
                    let batch = log.split_to(header.size_bytes());
                    batches += 1;
                    if !header.compression().is_built_in() {
                        let refused = decode_body(&header, &batch, &DecodeLimits::default()).unwrap_err();
                        assert!(refused.is_unsupported());
                        for _ in 0..header.records_count {
                            lines.next();
                        }
                        continue;
                    }
                    let (header, records) = read(&batch);
                    if header.is_control() {
                        continue;
                    }
                    for record in records.iter().filter(|record| record.offset().get() >= start) {
                        assert_eq!(as_expected(record), lines.next().unwrap(), "{state} {partition}");
                        compared += 1;
                    }
                }
            }
            assert_eq!(lines.next(), None, "{state} {partition}");
        }
    }
    tell!("golden files of brokers: {files} segments, {batches} batches, {compared} records, 0 failures");
    assert!(files >= 40, "{files} segments");
    assert_eq!(batches, 933);
    if Compression::ALL.iter().all(|codec| codec.is_built_in()) {
        assert_eq!(compared, 4136);
    }
}
