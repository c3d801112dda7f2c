//! Others as the judge: Kafka's own dump tool, and the batches of `kafka-python`.
//!
//! `tests/interop/install.sh` brings both. Without them the tests say `SKIP`; with `TOPICLOG_REQUIRE_INTEROP` set, a skip
//! fails.
#![cfg(all(feature = "gzip", feature = "snappy", feature = "lz4", feature = "zstd"))]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use topiclog::record::{BatchBuilder, BatchSpec, BatchView, Decompressor};
use topiclog::{AdoptOptions, Compression, Record, Store, TimestampType, Upkeep};

use crate::kafka_dirs::{copy_tree, fixtures};
use crate::tools::{run, text, tool};

pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/interop")
}

pub(crate) fn skip(name: &str, reason: &str) {
    assert!(std::env::var_os("TOPICLOG_REQUIRE_INTEROP").is_none(), "{name} may not be skipped: {reason}");
    tell!("SKIP {name}: {reason}");
}

/// A record as a line that `load` takes: bytes in hex, and no timestamp in order.
fn line(index: usize) -> String {
    let hex = |text: String| text.bytes().map(|byte| format!("{byte:02x}")).collect::<String>();
    let key = (!index.is_multiple_of(5)).then(|| hex(format!("key-{}", index % 37)));
    let value = (!index.is_multiple_of(13)).then(|| hex(format!("value-{index}-").repeat(index % 9)));
    let headers =
        if index.is_multiple_of(4) { serde_json::json!([["h", "78"], ["n", null]]) } else { serde_json::json!([]) };
    let timestamp = 1_700_000_000_000 + (index as i64 * 7919) % 5000;
    serde_json::json!({ "timestamp": timestamp, "key": key, "value": value, "headers": headers }).to_string()
}

/// A store with every codec, both timestamp types, many small segments and dense indexes, closed in order. `load` writes it.
fn load_store(load: &Path, directory: &Path) {
    let lines: String = (0..1500).map(|index| line(index) + "\n").collect();
    for codec in Compression::ALL {
        for time in [TimestampType::CreateTime, TimestampType::LogAppendTime] {
            let (topic, batch) = (format!("{codec}.{time}"), 1 + codec.id() * 3);
            let options = format!(
                "--compression {codec} --batch {batch} --durability os --segment-bytes 6000 --index-interval-bytes 200 \
                 --config message.timestamp.type={time}"
            );
            let words: Vec<&str> =
                [directory.to_str().unwrap(), &topic].into_iter().chain(options.split(' ')).collect();
            assert_eq!(text(&run(load, &words, &lines)), "1500 records\n", "{topic}");
        }
    }
}

/// Every file that Kafka's dump tool reads.
pub(crate) fn files(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for partition in fs::read_dir(root).unwrap() {
        let partition = partition.unwrap().path();
        if !partition.is_dir() {
            continue;
        }
        for file in fs::read_dir(partition).unwrap() {
            let path = file.unwrap().path();
            let suffix = path.extension().and_then(|suffix| suffix.to_str()).unwrap_or_default();
            if ["log", "index", "timeindex", "txnindex", "snapshot"].contains(&suffix) {
                found.push(path.to_str().unwrap().to_owned());
            }
        }
    }
    found.sort();
    found
}

/// Runs Kafka's tool over all files at once and looks for anything that it minds.
pub(crate) fn check_dump(root: &Path) -> usize {
    let files = files(root);
    let libs = format!("{}/*", self::root().join("kafka-libs").display());
    let output = Command::new("java")
        .args(["-cp", &libs, "org.apache.kafka.tools.DumpLogSegments", "--deep-iteration", "--files", &files.join(",")])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{text}\n{errors}");
    let mut batches = 0;
    for line in text.lines().chain(errors.lines()) {
        let minds = [
            "Mismatch",
            "invalid bytes",
            "isvalid: false",
            "orrupt",
            "Exception",
            "Out of order",
            "out of order",
            "not found",
        ];
        assert!(!minds.iter().any(|word| line.contains(word)), "{line}");
        // Of a batch of which compaction left the header, the largest time stays in the header and in the time index, as
        // in Kafka's own cleaner; the tool asks the records, and there are none. Any other difference has another time.
        let differs = line.contains("Index timestamp: ") && !line.contains("log timestamp: -1");
        assert!(!differs, "{line}\n{errors}");
        batches += usize::from(line.contains("isvalid: true"));
    }
    batches
}

pub(crate) fn has_dump_tool() -> bool {
    root().join("kafka-libs/ready").exists() && Command::new("java").arg("-version").output().is_ok()
}

#[test]
fn kafkas_dump_tool_minds_nothing() {
    if !has_dump_tool() {
        return skip("kafkas_dump_tool_minds_nothing", "run tests/interop/install.sh first");
    }
    let Some(load) = tool("load") else { return };
    let directory = tempfile::tempdir().unwrap();
    let loaded = directory.path().join("loaded");
    load_store(&load, &loaded);
    let (batches, files_of_loaded) = (check_dump(&loaded), files(&loaded));
    tell!("dump tool, written by load: {batches} batches in {} files", files_of_loaded.len());
    let logs = files_of_loaded.iter().filter(|path| path.ends_with(".log")).count();
    assert!(batches > 3000 && logs > 100, "{batches} batches in {logs} segments");

    let adopted = directory.path().join("adopted");
    copy_tree(&fixtures().join("clean"), &adopted);
    Store::adopt(&adopted, &AdoptOptions::new()).unwrap();
    let store = Store::builder().upkeep(Upkeep::Manual).open(&adopted).unwrap();
    for name in store.topics() {
        for partition in store.topic(name.as_str()).unwrap().partitions() {
            partition.append(Record::keyed("k", "v")).unwrap();
        }
    }
    store.close().unwrap();
    let batches = check_dump(&adopted);
    tell!("dump tool, adopted: {batches} batches in {} files", files(&adopted).len());
    assert!(batches > 400, "{batches}");
}

#[test]
fn kafka_python_reads_our_batches_and_we_read_its() {
    let python = root().join("venv/bin/python");
    if !root().join("venv/ready").exists() {
        return skip("kafka_python_reads_our_batches_and_we_read_its", "run tests/interop/install.sh first");
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop/read_batches.py");
    let directory = tempfile::tempdir().unwrap();
    let mut expected = Vec::new();
    let mut paths = Vec::new();
    for codec in Compression::ALL {
        let mut batch = BatchBuilder::new(BatchSpec { compression: codec, ..BatchSpec::new(0) });
        for index in 0..60_i64 {
            let key = (index % 5 != 0).then(|| format!("key-{index}"));
            let value = (index % 7 != 0).then(|| "v".repeat(index as usize * 3));
            let record = Record::new(key.clone().map(Into::into), value.clone().map(Into::into));
            batch.push(record.timestamp_ms(1_700_000_000_000 + index).header("h", "x")).unwrap();
            let hex = |text: Option<String>| {
                text.map(|text| text.bytes().map(|byte| format!("{byte:02x}")).collect::<String>())
            };
            expected.push(serde_json::json!([
                index,
                1_700_000_000_000_i64 + index,
                hex(key),
                hex(value),
                [["h", "78"]]
            ]));
        }
        let path = directory.path().join(format!("{codec}.ours"));
        fs::write(&path, batch.finish().unwrap()).unwrap();
        paths.push(path);
    }
    let output = Command::new(&python).arg(&script).arg("read").args(&paths).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let seen: Vec<serde_json::Value> =
        String::from_utf8(output.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(seen == expected, "kafka-python sees other records than were written");

    let output = Command::new(&python).arg(&script).arg("write").arg(directory.path()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for codec in Compression::ALL {
        let batch = fs::read(directory.path().join(format!("{codec}.batch"))).unwrap();
        let view = BatchView::parse(&batch).unwrap();
        assert_eq!(view.header().compression(), codec);
        let mut decompressor = Decompressor::default();
        let hex = |bytes: Option<&[u8]>| {
            bytes.map(|bytes| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
        };
        let seen: Vec<serde_json::Value> = view
            .records(&mut decompressor)
            .unwrap()
            .map(|record| {
                let record = record.unwrap();
                let headers: Vec<_> = record
                    .headers()
                    .iter()
                    .map(|header| serde_json::json!([header.name(), hex(header.value())]))
                    .collect();
                serde_json::json!([
                    record.offset(),
                    record.timestamp_ms(),
                    hex(record.key()),
                    hex(record.value()),
                    headers
                ])
            })
            .collect();
        let expected = fs::read_to_string(directory.path().join(format!("{codec}.jsonl"))).unwrap();
        let expected: Vec<serde_json::Value> =
            expected.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert!(seen == expected, "{codec}: we see other records than kafka-python wrote");
    }
}
