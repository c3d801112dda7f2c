//! What the kernel does: no space, no descriptors, files that get shorter under a map.

use std::fs;
use std::path::Path;
use std::process::Command;

use topiclog::{Durability, Error, Partition, ReadPath, Record, Store, TopicConfig, Upkeep};

use crate::processes::{child, said, skip, tell};

struct Mounted<'a>(&'a Path);

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("-l").arg(self.0).status());
    }
}

fn holds(partition: &Partition, count: usize) {
    for (number, record) in partition.read_from(0).enumerate() {
        let record = record.unwrap();
        assert_eq!(record.value().unwrap(), vec![number as u8; 8000], "{number}");
    }
    assert_eq!(partition.end().get(), count as i64);
}

#[test]
fn a_full_disk_stops_appends_and_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"]).arg(directory.path()).output();
    if !mounted.is_ok_and(|output| output.status.success()) {
        return skip("a full disk", "mounting a tmpfs needs root");
    }
    let _mounted = Mounted(directory.path());
    let (root, ballast) = (directory.path().join("store"), directory.path().join("ballast"));
    fs::write(&ballast, vec![1; 300 << 10]).unwrap();
    for durability in [Durability::Sync, Durability::Os] {
        let store = Store::builder().upkeep(Upkeep::Manual).open(&root).unwrap();
        let config = TopicConfig::default().durability(durability).segment_bytes(100_000).preallocate_bytes(0);
        let topic = store.create_topic("t", config).unwrap();
        let partition = topic.partition(0).unwrap();
        let mut count = 0;
        let append = |count: usize| partition.append(Record::of_value(vec![count as u8; 8000]));
        let error = loop {
            match append(count) {
                Ok(_) => count += 1,
                Err(error) => break error,
            }
        };
        assert!(matches!(error, Error::NoSpace { .. }), "{error}");
        assert!(count > 40, "{count}");
        assert!(matches!(append(count), Err(Error::NoSpace { .. })));
        holds(&partition, count);
        fs::remove_file(&ballast).unwrap();
        for _ in 0..5 {
            append(count).unwrap();
            count += 1;
        }
        drop((store, topic, partition));
        let store = Store::builder().upkeep(Upkeep::Manual).open(&root).unwrap();
        holds(&store.topic("t").unwrap().partition(0).unwrap(), count);
        store.close().unwrap();
        drop(store);
        fs::remove_dir_all(&root).unwrap();
        fs::write(&ballast, vec![1; 300 << 10]).unwrap();
    }
}

/// In a child with few descriptors.
pub(crate) fn use_many_partitions(root: &Path) {
    let builder = || Store::builder().upkeep(Upkeep::Manual).open_files_max(16);
    let store = builder().open(root).unwrap();
    let config = TopicConfig::default().partitions(200).durability(Durability::Os).preallocate_bytes(0);
    let topic = store.create_topic("t", config).unwrap();
    for round in 0..3 {
        for partition in topic.partitions() {
            partition.append(Record::of_value(format!("{round}"))).unwrap();
        }
    }
    let read = |topic: &topiclog::Topic| {
        topic.partitions().map(|partition| partition.read_from(0).map(Result::unwrap).count()).sum::<usize>()
    };
    assert_eq!(read(&topic), 600);
    store.close().unwrap();
    drop((store, topic));
    let store = builder().open(root).unwrap();
    tell(&format!("read {}", read(&store.topic("t").unwrap())));
}

#[test]
fn many_partitions_live_with_few_descriptors() {
    let directory = tempfile::tempdir().unwrap();
    let inner = child("descriptors", directory.path());
    let mut limited = Command::new("sh");
    limited.args(["-c", "ulimit -n 40; exec \"$0\" \"$@\""]).arg(inner.get_program()).args(inner.get_args());
    limited.envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
    assert_eq!(said(limited, "read"), ["600"]);
}

/// In a child, as a map has no other way to complain than a signal: the file gets shorter after its first part was read.
pub(crate) fn shorten_and_read(root: &Path, reads: ReadPath) {
    let store = Store::builder().upkeep(Upkeep::Manual).reads(reads).open(root).unwrap();
    let partition = store.topic("t").unwrap().partition(0).unwrap();
    assert!(partition.record(0).unwrap().is_some());
    let log = root.join("t-0/00000000000000000000.log");
    fs::OpenOptions::new().write(true).open(log).unwrap().set_len(8192).unwrap();
    let last = 100; // Still in the first segment, far behind what is left of it.
    tell(&format!("code {}", partition.record(last).map_or_else(|error| error.code(), |_| "ok")));
    let again = partition.record(last).map_or_else(|error| error.code(), |_| "ok");
    tell(&format!("code {again}"));
}

#[test]
fn a_file_that_got_shorter_is_an_error_at_its_first_read() {
    for (role, expected) in [("shorten mapped", &["corrupt", "io"][..]), ("shorten positional", &["corrupt"])] {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::builder().upkeep(Upkeep::Manual).open(directory.path()).unwrap();
        let config = TopicConfig::default().durability(Durability::Os).segment_bytes(1 << 20).preallocate_bytes(0);
        let partition = store.create_topic("t", config).unwrap().partition(0).unwrap();
        for number in 0..190 {
            partition.append(Record::of_value(vec![number; 8000])).unwrap();
        }
        store.close().unwrap();
        drop((store, partition));
        let codes = said(child(role, directory.path()), "code");
        tell!("{role}: {codes:?}");
        assert!(codes.len() == 2 && codes.iter().all(|code| expected.contains(&code.as_str())), "{role}: {codes:?}");
    }
}
