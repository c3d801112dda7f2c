//! Doors for the fuzz targets, which see private parts only under `--cfg fuzzing`. Each takes any bytes and must return.
#![allow(missing_docs, clippy::unwrap_used, reason = "not part of the library; a failed promise ends the run")]

use std::path::Path;
use std::sync::Arc;

use crate::ids::{TopicName, TopicPartition, Uuid};
use crate::io::{MemoryVfs, OpenMode, Vfs, frame};
use crate::partition::floor::Floor;
use crate::partition::kafka_state::{Producers, decode_epochs, encode_epochs};
use crate::partition::manifest::Manifest;
use crate::record::{self, BATCH_HEADER_BYTES, BatchHeader};
use crate::segment::recover::{ScanRules, proof_of_rot, scan};
use crate::segment::seal::Seal;
use crate::segment::{offset_index, time_index, txn_index};
use crate::store::{catalog, checkpoints};

/// Scans a log file; a good part must scan as good once more. The first bytes say whether the rest is taken as it is or made
/// into batches whose checksums hold, which of those bytes is damaged then, and how far a proof has to reach.
pub fn recover(bytes: &[u8]) {
    let Some((&[how, place, reach], bytes)) = bytes.split_first_chunk::<3>() else { return };
    let mut log = if how & 1 == 0 { bytes.to_vec() } else { as_batches(how, bytes) };
    if how & 8 != 0 && !log.is_empty() {
        let at = usize::from(place) * log.len() / 256;
        log[at] ^= 0x10;
    }
    let vfs = MemoryVfs::new();
    let file = vfs.open(Path::new("/log"), OpenMode::CreateNew).unwrap();
    file.write_at(&log, 0).unwrap();
    for is_foreign in [false, true] {
        let rules = ScanRules { position: 0, next_offset: 0, base_offset: 0, is_foreign, epochs: None };
        let first = scan(&*file, &rules, |position, header, seen| {
            let size = header.size_bytes();
            let whole = log.get(position as usize..position as usize + size).unwrap();
            assert!(seen == Some(whole) && record::crc_holds(whole));
        });
        let first = first.unwrap();
        assert!(first.position <= log.len() as u64);
        let cap = u64::from(reach) * 16;
        if let Some(proof) = proof_of_rot(&*file, &first, cap).unwrap() {
            let found = log.get(proof as usize..).unwrap();
            let header = BatchHeader::decode(found).unwrap();
            assert!(record::crc_holds(&found[..header.size_bytes()]));
            assert!(proof > first.position && proof + header.size_bytes() as u64 > first.position + cap);
        }
        let copy = vfs.open(Path::new("/copy"), OpenMode::Create).unwrap();
        copy.set_len(0).unwrap();
        copy.write_at(&log[..first.position as usize], 0).unwrap();
        let second = scan(&*copy, &rules, |_, _, _| {}).unwrap();
        assert_eq!(
            (second.position, second.next_offset, second.batches),
            (first.position, first.next_offset, first.batches)
        );
    }
}

/// Gives bytes the lengths and checksums of batches one behind the other, so that the fuzzer gets past them; where `how` says so
/// also offsets that follow each other, and attributes that are known.
fn as_batches(how: u8, bytes: &[u8]) -> Vec<u8> {
    let (mut log, mut at, mut next) = (bytes.to_vec(), 0, 0_i64);
    while let Some(batch) = log.get_mut(at..).filter(|left| left.len() >= BATCH_HEADER_BYTES) {
        let size = BATCH_HEADER_BYTES + usize::from(batch[11]) % (batch.len() - BATCH_HEADER_BYTES + 1);
        let batch = &mut batch[..size];
        batch[8..12].copy_from_slice(&(size as u32 - 12).to_be_bytes());
        batch[16] = 2;
        if how & 2 != 0 {
            batch[..8].copy_from_slice(&next.to_be_bytes());
            let count = i32::from(batch[26] % 8);
            batch[23..27].copy_from_slice(&count.to_be_bytes());
            next += i64::from(count) + 1;
        }
        if how & 4 != 0 {
            batch[21] = 0;
            batch[22] &= 0x38;
            batch[57..60].fill(0);
            batch[60] %= 2;
        }
        let crc = record::crc32c(&batch[record::CRC_FROM..]);
        batch[17..21].copy_from_slice(&crc.to_be_bytes());
        at += size;
    }
    log
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

/// Every small file of ours and of Kafka's. The first byte says which of them the rest is given the checksums of, if any.
pub fn manifests(bytes: &[u8]) {
    let Some((&how, bytes)) = bytes.split_first() else { return };
    let mut file = bytes.to_vec();
    match how % 5 {
        1 => drop(fix_frame(&mut file)),
        2 => drop(fix_floor(&mut file)),
        3 => drop(fix_seal(&mut file)),
        4 => drop(fix_snapshot(&mut file)),
        _ => {}
    }
    let bytes = &file[..];
    let field = |at: usize| bytes.get(at..at + 2).map_or(0, |field| u16::from_be_bytes([field[0], field[1]]));
    if let Ok(frame) = frame::decode(bytes, field(8), 2, 1 << 20) {
        assert_eq!(frame::encode(field(8), frame.version, frame.generation, frame.payload), bytes);
        check_manifest(frame.payload);
        check_catalog(bytes);
    }
    check_manifest(bytes);
    if let Some(floor) = Floor::decode(bytes) {
        assert_eq!(Floor::decode(&floor.encode()), Some(floor));
        assert_eq!(floor.encode()[..], bytes[..64]);
    }
    if let Ok(seal) = Seal::decode(bytes) {
        assert_eq!(Seal::decode(&seal.encode()), Ok(seal));
    }
    if let Ok(producers) = Producers::decode_snapshot(bytes) {
        assert_eq!(Producers::decode_snapshot(&producers.encode_snapshot()), Ok(producers));
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        if let Ok(epochs) = decode_epochs(text) {
            assert_eq!(decode_epochs(&encode_epochs(&epochs)), Ok(epochs));
        }
        if let Ok(offsets) = checkpoints::decode(text) {
            assert_eq!(checkpoints::decode(&checkpoints::encode(&offsets)), Ok(offsets));
        }
    }
}

fn check_manifest(payload: &[u8]) {
    if let Ok(manifest) = Manifest::decode(payload) {
        assert_eq!(Manifest::decode(&manifest.encode()), Ok(manifest));
    }
}

/// The store's manifest, in both of its places.
fn check_catalog(bytes: &[u8]) {
    let vfs = MemoryVfs::new();
    let root = Path::new("/");
    for name in ["/topiclog.manifest.0", "/topiclog.manifest.1"] {
        vfs.open(Path::new(name), OpenMode::Create).unwrap().write_at(bytes, 0).unwrap();
    }
    let Ok(read) = catalog::read(&vfs, root) else { return };
    let Some((generation, found)) = read.newest.filter(|(generation, _)| *generation < u64::MAX) else { return };
    catalog::write(&vfs, root, generation + 1, &found).unwrap();
    assert_eq!(catalog::read(&vfs, root).unwrap().newest, Some((generation + 1, found)));
}

/// The magic, the lengths and the checksums of a frame; versions and kinds that occur.
fn fix_frame(file: &mut [u8]) -> Option<()> {
    let payload_bytes = u32::try_from(file.len().checked_sub(frame::OVERHEAD_BYTES)?).ok()?;
    file[..8].copy_from_slice(b"topiclog");
    let (kind, version) = (file[9] % 4, file[11] % 4);
    file[8..12].copy_from_slice(&[0, kind, 0, version]);
    file[20..24].copy_from_slice(&payload_bytes.to_be_bytes());
    file[24..28].fill(0);
    let crc = crc32fast::hash(&file[..28]);
    file[28..32].copy_from_slice(&crc.to_be_bytes());
    fix_end(file)
}

/// The checksum over all of a file that is its last field.
fn fix_end(file: &mut [u8]) -> Option<()> {
    let (body, crc) = file.split_last_chunk_mut::<4>()?;
    *crc = crc32fast::hash(body).to_be_bytes();
    Some(())
}

fn fix_floor(file: &mut [u8]) -> Option<()> {
    let entry = file.get_mut(..64)?;
    let kind = entry[7] % 4;
    entry[..8].copy_from_slice(&[b't', b'l', b'f', b'l', 0, 1, 0, kind]);
    fix_end(entry)
}

/// Counts that the file may have room for, besides the checksums.
fn fix_seal(file: &mut [u8]) -> Option<()> {
    let head = file.get_mut(..88)?;
    head[..12].copy_from_slice(b"tlseal\0\0\0\x01\0\x10");
    let (blocks, side_files) = (head[79] % 6, head[83] % 4);
    head[40..48].copy_from_slice(&(u64::from(blocks) * Seal::BLOCK_BYTES).to_be_bytes());
    head[76..84].copy_from_slice(&[0, 0, 0, blocks, 0, 0, 0, side_files]);
    fix_end(head)?;
    fix_end(file)
}

fn fix_snapshot(file: &mut [u8]) -> Option<()> {
    let count = u32::try_from(file.len().checked_sub(10)? / 46).ok()?;
    file[..2].copy_from_slice(&[0, 1]);
    file[6..10].copy_from_slice(&count.to_be_bytes());
    let crc = record::crc32c(&file[6..]);
    file[2..6].copy_from_slice(&crc.to_be_bytes());
    Some(())
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
