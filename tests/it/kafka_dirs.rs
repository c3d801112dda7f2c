//! Directories by a real Kafka, read in place: what a right reader sees, line for line.
#![cfg_attr(
    not(all(feature = "gzip", feature = "snappy", feature = "lz4", feature = "zstd")),
    allow(dead_code, unused_imports, reason = "some directories need all codecs")
)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use topiclog::{Isolation, Partition, ReadLevel, ReadOptions, Store, Upkeep};

#[path = "../../examples/support/jsonl.rs"]
#[allow(dead_code, reason = "the tools use the rest")]
mod jsonl;

pub(crate) fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/kafka")
}

/// What the partition shows, as the expected files spell it.
pub(crate) fn lines(partition: &Partition, isolation: Isolation) -> Vec<String> {
    let end = if isolation == Isolation::Committed { partition.last_stable_offset() } else { partition.end() };
    let mut lines = vec![format!("{{\"start\":{},\"end\":{end}}}", partition.start())];
    let options = ReadOptions::new().level(ReadLevel::Latest).isolation(isolation);
    let reader = partition.reader(partition.start(), &options).unwrap();
    lines.extend(reader.map(|record| jsonl::record_line(&record.unwrap(), false)));
    lines
}

fn time_lines(partition: &Partition, expected: &[&str]) -> Vec<String> {
    let times = expected.iter().filter_map(|line| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        line.get("time").map(|time| time.as_i64().unwrap())
    });
    let mut lines: Vec<String> = times
        .map(|time| {
            let found = partition.offset_for_timestamp(time).unwrap();
            jsonl::time_line(time, found.map(|found| (found.offset.get(), found.timestamp_ms)))
        })
        .collect();
    let found = partition.max_timestamp().unwrap();
    lines.push(jsonl::max_timestamp_line(found.map(|found| (found.offset.get(), found.timestamp_ms))));
    lines
}

pub(crate) fn check_lines(what: &str, found: &[String], expected: &str) {
    let expected: Vec<&str> = expected.lines().collect();
    for (number, (found, expected)) in found.iter().zip(&expected).enumerate() {
        let json = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap();
        assert!(found == expected || json(found) == json(expected), "{what} line {number}:\n{found}\n{expected}");
    }
    assert_eq!(found.len(), expected.len(), "{what}: number of lines");
}

/// Compares every partition that has an expected file; returns how many files were compared.
pub(crate) fn check_store(store: &Store, expected: &Path) -> usize {
    let mut compared = 0;
    for entry in fs::read_dir(expected).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().strip_suffix(".jsonl").unwrap().to_owned();
        let text = fs::read_to_string(&path).unwrap();
        if name == "groups" {
            continue;
        }
        let (id, form) = match (name.strip_suffix(".read_committed"), name.strip_suffix(".times")) {
            (Some(id), _) => (id, "committed"),
            (_, Some(id)) => (id, "times"),
            _ => (name.as_str(), "uncommitted"),
        };
        let (topic, number) = id.rsplit_once('-').unwrap();
        let partition = store.topic(topic).unwrap().partition(number.parse::<u32>().unwrap()).unwrap();
        let found = match form {
            "committed" => lines(&partition, Isolation::Committed),
            "times" => time_lines(&partition, &text.lines().collect::<Vec<_>>()),
            _ => lines(&partition, Isolation::Uncommitted),
        };
        check_lines(&name, &found, &text);
        compared += 1;
    }
    assert!(compared >= 25, "{compared} files were compared");
    compared
}

pub(crate) fn tree(root: &Path) -> BTreeMap<PathBuf, (Vec<u8>, std::time::SystemTime)> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![root.to_owned()];
    while let Some(directory) = waiting.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                waiting.push(path);
            } else {
                let modified = fs::metadata(&path).unwrap().modified().unwrap();
                found.insert(path.clone(), (fs::read(&path).unwrap(), modified));
            }
        }
    }
    found
}

pub(crate) fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() { copy_tree(&path, &target) } else { assert!(fs::copy(&path, &target).is_ok()) }
    }
}

#[cfg(all(feature = "gzip", feature = "snappy", feature = "lz4", feature = "zstd"))]
#[test]
fn every_partition_shows_what_kafka_shows_and_nothing_changes() {
    for state in ["clean", "killed"] {
        let root = fixtures().join(state);
        let before = tree(&root);
        let store = Store::builder().read_only(true).upkeep(Upkeep::Manual).open(&root).unwrap();
        let compared = check_store(&store, &fixtures().join(format!("{state}.expected")));
        tell!("kafka {state}: {compared} files compared");
        assert!(compared >= 45, "{compared}");
        store.close().unwrap();
        assert!(before == tree(&root), "{state}: reading changed the directory");
    }
}

pub(crate) fn copy_of(state: &str) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join(state);
    copy_tree(&fixtures().join(state), &root);
    (directory, root)
}

#[cfg(all(feature = "gzip", feature = "snappy", feature = "lz4", feature = "zstd"))]
#[test]
fn adopted_directories_show_the_same_and_go_on() {
    use topiclog::{AdoptOptions, Error, Record, verify};
    for state in ["clean", "killed"] {
        let (_guard, root) = copy_of(state);
        let expected = fixtures().join(format!("{state}.expected"));
        let before = tree(&root);
        assert!(matches!(Store::open(&root), Err(Error::NeedsAdopt { .. })));
        let careful = AdoptOptions::new();
        let refused = Store::adopt(&root, &careful.clone());
        assert_eq!(refused.is_err(), state == "killed", "{refused:?}");
        if state == "killed" {
            let dry = Store::adopt(&root, &careful.clone().broker_is_gone(true).dry_run(true)).unwrap();
            assert!(dry.partitions.len() > 20);
            // Lock files are all that came of it so far.
            let logs = |tree: &BTreeMap<PathBuf, (Vec<u8>, std::time::SystemTime)>| {
                tree.iter()
                    .filter(|(path, _)| path.parent() != Some(&root))
                    .map(|(p, f)| (p.clone(), f.0.clone()))
                    .collect::<Vec<_>>()
            };
            assert!(logs(&before) == logs(&tree(&root)));
            Store::adopt(&root, &careful.broker_is_gone(true)).unwrap();
        }
        let store = Store::builder().upkeep(Upkeep::Manual).open(&root).unwrap();
        assert!(!store.recovery_report().is_unclean(), "{:?}", store.recovery_report());
        check_store(&store, &expected);
        for name in store.topics() {
            for partition in store.topic(name.as_str()).unwrap().partitions() {
                let end = partition.end();
                let placed = partition.append(Record::keyed("k", "after")).unwrap();
                assert_eq!(placed.offset, end);
                assert_eq!(partition.record(end).unwrap().unwrap().value(), Some(&b"after"[..]));
            }
        }
        store.close().unwrap();
        let report = verify(&root).unwrap();
        assert_eq!(report.damages().collect::<Vec<_>>(), Vec::<&topiclog::Finding>::new());
        let store = Store::builder().upkeep(Upkeep::Manual).open(&root).unwrap();
        assert!(!store.recovery_report().is_unclean(), "{:?}", store.recovery_report());
        store.close().unwrap();
    }
}

/// The last segment of a broker may hold nothing but space that was taken ahead, or a torn first batch. The file stayed as
/// it was and became the active segment, which then looked as if another program had written to it: no open succeeded.
#[test]
fn an_adoption_leaves_nothing_in_an_empty_last_segment() {
    use topiclog::{AdoptOptions, Record};
    let torn = [&240_i64.to_be_bytes()[..], &[1; 32]].concat();
    for rest in [vec![0; 100_000], torn.clone()] {
        let (_guard, root) = copy_of("clean");
        let log = root.join("codec.none-0/00000000000000000240.log");
        fs::write(&log, &rest).unwrap();
        Store::adopt(&root, &AdoptOptions::new().broker_is_gone(true).cut_torn_tails(true)).unwrap();
        let store = Store::builder().upkeep(Upkeep::Manual).open(&root).unwrap();
        let partition = store.topic("codec.none").unwrap().partition(0).unwrap();
        assert_eq!(partition.end().get(), 240);
        assert_eq!(partition.append(Record::of_value("after")).unwrap().offset.get(), 240);
        let kept = fs::read_dir(root.join("codec.none-0/quarantine")).map_or(0, Iterator::count);
        assert_eq!(kept, if rest == torn { 2 } else { 0 });
    }
}

#[test]
fn no_fixture_is_damaged_and_a_flipped_bit_is_found() {
    use topiclog::verify;
    for state in ["clean", "killed"] {
        let report = verify(fixtures().join(state)).unwrap();
        assert_eq!(report.damages().collect::<Vec<_>>(), Vec::<&topiclog::Finding>::new());
        assert!(report.records > 1800, "{report:?}");
    }
    let (_guard, root) = copy_of("clean");
    let log = root.join("rolled-0/00000000000000000000.log");
    let mut bytes = fs::read(&log).unwrap();
    bytes[70] ^= 4;
    fs::write(&log, bytes).unwrap();
    assert!(verify(&root).unwrap().damages().next().is_some());
}
