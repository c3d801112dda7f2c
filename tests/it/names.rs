//! Bad input: names that would leave the directory, strangers in it, newer versions. A typed error, and nothing lost.

use std::fs;
use std::path::Path;

use topiclog::{Error, Record, Repair, Severity, Store, TopicConfig, Upkeep, verify};

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

/// Rewrites the text of a manifest, and makes its checksums hold again.
fn rewrite_manifest(path: &Path, from: &str, to: &str) {
    let framed = fs::read(path).unwrap();
    let payload = String::from_utf8(framed[32..framed.len() - 4].to_vec()).unwrap();
    assert!(payload.contains(from), "{payload}");
    let payload = payload.replace(from, to);
    let mut rewritten = framed[..20].to_vec();
    rewritten.extend((payload.len() as u32).to_be_bytes());
    rewritten.extend([0; 4]);
    rewritten.extend(crc32fast::hash(&rewritten).to_be_bytes());
    rewritten.extend(payload.as_bytes());
    rewritten.extend(crc32fast::hash(&rewritten).to_be_bytes());
    fs::write(path, rewritten).unwrap();
}

/// One such topic once kept the whole store from being opened.
#[cfg(not(feature = "zstd"))]
#[test]
fn a_topic_whose_codec_is_not_built_in_keeps_nobody_from_opening_the_store() {
    let directory = tempfile::tempdir().unwrap();
    filled(directory.path());
    for slot in ["topiclog.manifest.0", "topiclog.manifest.1"] {
        let path = directory.path().join(slot);
        let has_topic = fs::read(&path).unwrap().windows(6).any(|bytes| bytes == b"\"none\"");
        if has_topic {
            rewrite_manifest(&path, "\"compression\":\"none\"", "\"compression\":\"zstd\"");
        }
    }
    assert_eq!(verify(directory.path()).unwrap().damages().count(), 0);
    let store = open(directory.path()).unwrap();
    let topic = store.topic("t").unwrap();
    assert_eq!(topic.partition(0).unwrap().record(0).unwrap().unwrap().value(), Some(&b"v"[..]));
    let refused = topic.append(Record::of_value("w")).unwrap_err();
    assert!(matches!(refused, Error::Unsupported { .. }), "{refused}");
    assert!(matches!(store.create_topic("u", topic.config()), Err(Error::Config { .. })));
    assert!(matches!(store.alter_topic("t", topic.config()), Err(Error::Config { .. })));
    store.close().unwrap();
}

/// Of an older store, one level was kept for whichever codec a topic had.
#[test]
fn a_store_that_kept_one_level_for_all_codecs_is_read() {
    let directory = tempfile::tempdir().unwrap();
    filled(directory.path());
    let path = directory.path().join("topiclog.manifest.0");
    rewrite_manifest(&path, "\"gzip_level\":-1,\"zstd_level\":3", "\"compression_level\":null");
    let store = open(directory.path()).unwrap();
    assert_eq!(store.topic("t").unwrap().config(), TopicConfig::default());
    store.close().unwrap();
}

/// A manifest of the store that is missing, empty or damaged: what the files show can still be read.
#[test]
fn a_store_without_its_manifest_is_read_and_called_damaged() {
    let check = |lose: &dyn Fn(&Path)| {
        let directory = tempfile::tempdir().unwrap();
        filled(directory.path());
        for slot in ["topiclog.manifest.0", "topiclog.manifest.1"] {
            lose(&directory.path().join(slot));
        }
        let store = Store::builder().read_only(true).upkeep(Upkeep::Manual).open(directory.path()).unwrap();
        let topic = store.topic("t").unwrap();
        let record = topic.partition(0).unwrap().record(0).unwrap().unwrap();
        assert_eq!(record.value(), Some(&b"v"[..]));
        store.close().unwrap();
        assert!(verify(directory.path()).unwrap().damages().count() > 0);
        assert!(open(directory.path()).is_err());
    };
    check(&|path| fs::remove_file(path).unwrap());
    check(&|path| fs::write(path, b"").unwrap());
    check(&|path| fs::write(path, b"something else").unwrap());
}

#[cfg(unix)]
#[test]
fn what_is_no_regular_file_in_the_place_of_a_log_is_damage() {
    let check = |is_ours: bool, put: &dyn Fn(&Path)| {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("s");
        filled(&root);
        let log = root.join("t-0/00000000000000000000.log");
        fs::rename(&log, directory.path().join("elsewhere")).unwrap();
        put(&log);
        if !is_ours {
            for name in
                ["topiclog.manifest.0", "topiclog.manifest.1", "t-0/topiclog.partition.0", "t-0/topiclog.partition.1"]
            {
                fs::remove_file(root.join(name)).unwrap();
            }
        }
        assert!(verify(&root).unwrap().damages().any(|finding| finding.path == log));
        let store = Store::builder().read_only(true).upkeep(Upkeep::Manual).open(&root).unwrap();
        let refused = store.topic("t").unwrap().partition(0).unwrap_err();
        assert!(matches!(&refused, Error::Corrupt { path, .. } if *path == log), "{refused}");
    };
    for is_ours in [true, false] {
        check(is_ours, &|log| fs::create_dir(log).unwrap());
        check(is_ours, &|log| std::os::unix::fs::symlink("../../elsewhere", log).unwrap());
        check(is_ours, &|log| assert!(std::process::Command::new("mkfifo").arg(log).status().unwrap().success()));
    }
}

#[cfg(unix)]
#[test]
fn a_link_that_is_named_like_a_partition_is_noticed() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("s");
    filled(&root);
    std::os::unix::fs::symlink("t-0", root.join("other-0")).unwrap();
    let report = verify(&root).unwrap();
    assert_eq!(report.damages().count(), 0);
    let noticed = |finding: &topiclog::Finding| finding.path == root.join("other-0");
    assert!(report.findings.iter().any(|finding| noticed(finding) && finding.severity == Severity::Notice));
}
