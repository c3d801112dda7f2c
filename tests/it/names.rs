//! Bad input: names that would leave the directory, strangers in it, newer versions. A typed error, and nothing lost.

use std::fs;
use std::path::Path;

use topiclog::{Error, Record, Repair, Store, TopicConfig, Upkeep};

fn open(root: &Path) -> topiclog::Result<Store> {
    Store::builder().upkeep(Upkeep::Manual).open(root)
}

fn filled(root: &Path) {
    let store = open(root).unwrap();
    store.create_topic("t", TopicConfig::default()).unwrap().append(Record::of_value("v")).unwrap();
    store.close().unwrap();
}

#[test]
fn no_name_leaves_the_directory() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("inside");
    let store = open(&root).unwrap();
    let long = "a".repeat(250);
    for name in ["", ".", "..", "../x", "a/b", "/abs", "a b", "ä", "a\0b", "x.swap/..", &long] {
        let error = store.create_topic(name, TopicConfig::default()).unwrap_err();
        assert!(matches!(error, Error::Invalid { .. }), "{name:?}: {error}");
        assert!(matches!(store.topic(name), Err(Error::Invalid { .. })));
        assert!(matches!(store.delete_topic(name), Err(Error::Invalid { .. })));
    }
    let longest = "a".repeat(249);
    for name in ["a-0", "a.b-delete", "__x", &longest] {
        store.create_topic(name, TopicConfig::default()).unwrap().append(Record::of_value("v")).unwrap();
    }
    store.close().unwrap();
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    assert_eq!(open(&root).unwrap().topics().len(), 4);
}

#[test]
fn strangers_stop_no_open_and_are_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("s");
    filled(&root);
    fs::create_dir(root.join("lost+found")).unwrap();
    fs::create_dir(root.join("other-0")).unwrap();
    fs::write(root.join("other-0/00000000000000000000.log"), b"somebody's").unwrap();
    fs::write(root.join("notes.txt"), b"mine").unwrap();
    fs::write(root.join("t-0/notes.txt"), b"mine").unwrap();
    let made = std::process::Command::new("mkfifo").arg(root.join("t-0/00000000000000000099.index")).status();
    let has_pipe = made.is_ok_and(|status| status.success());
    let store = open(&root).unwrap();
    let partition = store.topic("t").unwrap().partition(0).unwrap();
    assert_eq!(partition.record(0).unwrap().unwrap().value(), Some(&b"v"[..]));
    let report = store.recovery_report();
    let strangers = report.store.iter().chain(&report.partitions[0].repairs);
    assert!(strangers.filter(|repair| matches!(repair, Repair::Stranger { .. })).count() >= 2 + usize::from(has_pipe));
    store.close().unwrap();
    for left in ["lost+found", "other-0/00000000000000000000.log", "notes.txt", "t-0/notes.txt"] {
        assert!(root.join(left).exists(), "{left}");
    }
}

#[cfg(unix)]
#[test]
fn a_link_in_the_place_of_a_log_is_not_followed() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("s");
    filled(&root);
    let log = root.join("t-0/00000000000000000000.log");
    let elsewhere = directory.path().join("elsewhere");
    fs::rename(&log, &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &log).unwrap();
    let before = fs::read(&elsewhere).unwrap();
    assert!(matches!(open(&root), Err(Error::Corrupt { .. } | Error::Io { .. })));
    assert_eq!(fs::read(&elsewhere).unwrap(), before);
}

#[test]
fn a_manifest_of_a_newer_version_is_refused_and_kept() {
    let directory = tempfile::tempdir().unwrap();
    filled(directory.path());
    for (name, at) in [("topiclog.manifest.0", 10), ("t-0/topiclog.partition.0", 10)] {
        let path = directory.path().join(name);
        let good = fs::read(&path).unwrap();
        let mut newer = good.clone();
        newer[at + 1] = 9;
        let crc = crc32fast::hash(&newer[..28]).to_be_bytes();
        newer[28..32].copy_from_slice(&crc);
        let end = newer.len() - 4;
        let crc = crc32fast::hash(&newer[..end]).to_be_bytes();
        newer[end..].copy_from_slice(&crc);
        fs::write(&path, &newer).unwrap();
        let error = open(directory.path()).unwrap_err();
        assert!(matches!(&error, Error::Unsupported { what } if what.contains('9')), "{name}: {error}");
        assert_eq!(fs::read(&path).unwrap(), newer);
        fs::write(&path, &good).unwrap();
    }
    open(directory.path()).unwrap().close().unwrap();
}

#[test]
fn a_half_copied_store_names_what_is_missing() {
    let directory = tempfile::tempdir().unwrap();
    filled(directory.path());
    fs::remove_dir_all(directory.path().join("t-0")).unwrap();
    let error = open(directory.path()).unwrap_err();
    assert!(matches!(&error, Error::Corrupt { path, .. } if path.starts_with(directory.path().join("t-0"))), "{error}");
}

#[test]
fn the_manual_says_what_to_do_about_every_error() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let source = fs::read_to_string(root.join("src/error.rs")).unwrap();
    let manual = fs::read_to_string(root.join("src/manual/recovery.md")).unwrap();
    let code = source.split("pub fn code").nth(1).unwrap();
    let variants: Vec<&str> = code
        .lines()
        .take_while(|line| !line.contains("pub(crate) fn"))
        .filter_map(|line| line.trim().strip_prefix("Error::")?.split_once(" {").map(|(name, _)| name))
        .collect();
    assert!(variants.len() >= 18, "{variants:?}");
    for variant in variants {
        assert!(manual.contains(&format!("`{variant}`")), "the manual has no row for {variant}");
    }
}
