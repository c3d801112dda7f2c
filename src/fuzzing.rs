//! Doors for the fuzz targets, which see private parts only under `--cfg fuzzing`. Each takes any bytes and must return.
#![allow(missing_docs, clippy::unwrap_used, reason = "not part of the library; a failed promise ends the run")]

use std::path::Path;
use std::sync::Arc;

use crate::ids::{TopicName, TopicPartition, Uuid};
use crate::io::{MemoryVfs, OpenMode, Vfs, frame};
use crate::partition::floor::Floor;
use crate::partition::kafka_state::{Producers, decode_epochs};
use crate::partition::manifest::Manifest;
use crate::segment::recover::{ScanRules, proof_of_rot, scan};
use crate::segment::seal::Seal;
use crate::segment::{offset_index, time_index, txn_index};
use crate::store::checkpoints;

/// Scans a log file; a good part must scan as good once more.
pub fn recover(bytes: &[u8]) {
    let vfs = MemoryVfs::new();
    let file = vfs.open(Path::new("/log"), OpenMode::CreateNew).unwrap();
    file.write_at(bytes, 0).unwrap();
    for is_foreign in [false, true] {
        let rules = ScanRules { position: 0, next_offset: 0, base_offset: 0, is_foreign, epochs: None };
        let first = scan(&*file, &rules, |_, _, _| {}).unwrap();
        assert!(first.position <= bytes.len() as u64);
        proof_of_rot(&*file, &first, 64).unwrap();
        let copy = vfs.open(Path::new("/copy"), OpenMode::Create).unwrap();
        copy.set_len(0).unwrap();
        copy.write_at(&bytes[..first.position as usize], 0).unwrap();
        let second = scan(&*copy, &rules, |_, _, _| {}).unwrap();
        assert_eq!((second.position, second.next_offset), (first.position, first.next_offset));
    }
}

/// Looks offsets up in any bytes; in sorted ones the answer is that of a scan.
pub fn indexes(bytes: &[u8]) {
    let (target, bytes) = bytes.split_first_chunk::<4>().map_or((0, bytes), |(t, rest)| (u32::from_be_bytes(*t), rest));
    let shared = bytes::Bytes::copy_from_slice(bytes);
    offset_index::lookup_stored(&shared, target);
    let rising: Vec<_> = offset_index::rising_entries(bytes).collect();
    let sorted = bytes::Bytes::from(offset_index::encode(rising.iter().copied()));
    let expected = rising.iter().copied().rfind(|entry| entry.relative_offset <= target);
    assert_eq!(offset_index::lookup_stored(&sorted, target), expected);
    let times = time_index::TimeIndex::from_entries(time_index::entries(bytes).collect());
    times.lookup(i64::from(target));
    if let Ok(entries) = txn_index::decode(bytes, 0) {
        assert_eq!(txn_index::encode(&entries), bytes[..entries.len() * txn_index::ENTRY_BYTES]);
    }
}

/// Every small file of ours and of Kafka's.
pub fn manifests(bytes: &[u8]) {
    frame::decode(bytes, 2, 1, 1 << 20).ok();
    if let Ok(manifest) = Manifest::decode(bytes) {
        assert_eq!(Manifest::decode(&manifest.encode()), Ok(manifest));
    }
    if let Some(floor) = Floor::decode(bytes) {
        assert_eq!(Floor::decode(&floor.encode()), Some(floor));
    }
    if let Ok(seal) = Seal::decode(bytes) {
        assert_eq!(Seal::decode(&seal.encode()), Ok(seal));
    }
    Producers::decode_snapshot(bytes).ok();
    if let Ok(text) = std::str::from_utf8(bytes) {
        decode_epochs(text).ok();
        if let Ok(offsets) = checkpoints::decode(text) {
            assert_eq!(checkpoints::decode(&checkpoints::encode(&offsets)), Ok(offsets));
        }
    }
}

/// Names: what is accepted is one path part, and is read back.
pub fn names(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(name) = TopicName::new(text) {
        let id = TopicPartition::new(name, 7);
        let directory = id.directory_name();
        assert_eq!(Path::new(&directory).components().count(), 1);
        assert_eq!(TopicPartition::from_directory_name(&directory), Some(id));
    }
    if let Some(id) = TopicPartition::from_directory_name(text) {
        assert_eq!(id.directory_name(), text);
    }
    Uuid::parse(text).ok();
    crate::segment::name::parse(text);
    if let Some((key, value)) = text.split_once('=') {
        crate::TopicConfig::default().set(key, value).ok();
    }
}

/// A store with any bytes in one of its files: it opens, or says why not, and what it shows was appended.
pub fn damaged_store(bytes: &[u8]) {
    let Some((&[which, at_high, at_low], damage)) = bytes.split_first_chunk::<3>() else { return };
    let vfs = MemoryVfs::new();
    let open = || {
        crate::Store::builder()
            .vfs(Arc::new(vfs.clone()))
            .clock(Arc::new(crate::clock::ManualClock::new(0)))
            .upkeep(crate::Upkeep::Manual)
            .id_seed(1)
            .open("/s")
    };
    let store = open().unwrap();
    let config = crate::TopicConfig::default().segment_bytes(400).index_interval_bytes(50);
    let topic = store.create_topic("t", config).unwrap();
    for index in 0..12_u8 {
        topic.append(crate::Record::keyed(vec![index], vec![index; 20])).unwrap();
    }
    if which & 128 == 0 {
        store.close().unwrap();
    }
    drop((store, topic));
    let directory = Path::new("/s/t-0");
    let mut names: Vec<String> = vfs.list(directory).unwrap().into_iter().map(|entry| entry.name).collect();
    names.sort();
    let path = directory.join(&names[usize::from(which & 127) % names.len()]);
    let file = vfs.open(&path, OpenMode::Write).unwrap();
    let position = u64::from(at_high) << 8 | u64::from(at_low);
    file.write_at(damage, position % (file.len().unwrap() + 1)).unwrap();
    drop(file);
    let Ok(store) = open() else { return };
    let Ok(partition) = store.topic("t").and_then(|topic| topic.partition(0)) else { return };
    for record in partition.read_from(partition.start()) {
        let Ok(record) = record else { return };
        let key = record.key().unwrap()[0];
        assert_eq!((record.offset().get(), record.value()), (i64::from(key), Some(&[key; 20][..])));
    }
}

thread_local! {
    /// A log for the file of a key index to be of; nothing is appended to it any more.
    static KEYED: crate::Partition = {
        let store = crate::Store::builder().vfs(Arc::new(MemoryVfs::new())).upkeep(crate::Upkeep::Manual).id_seed(1);
        let topic = store.open("/s").and_then(|store| store.create_topic("t", crate::TopicConfig::default())).unwrap();
        (0..100_u8).for_each(|index| drop(topic.append(crate::Record::keyed(vec![index], "v")).unwrap()));
        topic.partition(0).unwrap()
    };
}

/// Loads the file of a key index, as a whole and in steps.
pub fn keys(bytes: &[u8]) {
    crate::key_index::snapshot::fuzz(bytes);
    KEYED.with(|partition| crate::key_index::snapshot::fuzz_loader(&partition.log, bytes));
}

/// Records of `__consumer_offsets`: what is read is written as what reads the same, and any of them fold.
pub fn groups(bytes: &[u8]) {
    crate::group::fuzz(bytes);
}
