//! Segments of the record formats 0 and 1, with the indexes that a broker from before 0.11 left beside them.

use std::path::Path;
use std::sync::Arc;

use topiclog::io::MemoryVfs;
use topiclog::record::BatchHeader;
use topiclog::{Error, Partition, Severity, Store, Upkeep, VerifyReport, verify_on};

use crate::support::broker::{Bench, BrokerLog, T0, config, get, kv, path, put};

/// An entry of 300 bytes and more. It has a time in format 1.
fn entry(magic: u8, offset: i64) -> Vec<u8> {
    let value = [b'v'; 300];
    let mut covered = vec![magic, 0];
    if magic == 1 {
        covered.extend((T0 + offset).to_be_bytes());
    }
    covered.extend((-1_i32).to_be_bytes());
    covered.extend((value.len() as i32).to_be_bytes());
    covered.extend(value);
    let mut entry = offset.to_be_bytes().to_vec();
    entry.extend((covered.len() as i32 + 4).to_be_bytes());
    entry.extend(crc32fast::hash(&covered).to_be_bytes());
    entry.extend(covered);
    entry
}

fn entries(magic: u8) -> Vec<u8> {
    (0..40).flat_map(|offset| entry(magic, offset)).collect()
}

/// The indexes of a log, with an entry for every fourth batch or entry.
fn indexes(log: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let (mut index, mut timeindex) = (Vec::new(), Vec::new());
    let (mut position, mut nth) = (0, 0);
    while position < log.len() {
        let size = 12 + u32::from_be_bytes(log[position + 8..position + 12].try_into().unwrap()) as usize;
        let last = BatchHeader::decode(&log[position..]).map_or_else(
            |_| i64::from_be_bytes(log[position..position + 8].try_into().unwrap()),
            |header| header.last_offset(),
        );
        if nth % 4 == 3 {
            index.extend([last as u32, position as u32].map(u32::to_be_bytes).concat());
            if log[position + 16] > 0 {
                timeindex.extend((T0 + last).to_be_bytes());
                timeindex.extend((last as u32).to_be_bytes());
            }
        }
        (position, nth) = (position + size, nth + 1);
    }
    (index, timeindex)
}

/// A segment that begins with 40 entries of an old format, and one behind it that does not. In the first there may be batches as
/// well, from after the broker was upgraded.
fn directory(magic: u8, is_mixed: bool) -> MemoryVfs {
    let (a, b) = (kv("a", "1"), kv("b", "2"));
    let mut log = BrokerLog::new(0).raw(&entries(magic));
    if is_mixed {
        log = (40..48).step_by(2).fold(log, |log, base| log.batch(base, &[a, b]));
    }
    let vfs = MemoryVfs::new();
    log.roll(50).batch(50, &[a]).batch(51, &[b, a]).roll(53).write(&vfs);
    for base in [0, 50] {
        let (index, timeindex) = indexes(&get(&vfs, &path(base, "log")));
        put(&vfs, &path(base, "index"), &index);
        put(&vfs, &path(base, "timeindex"), &timeindex);
    }
    vfs
}

fn cases() -> impl Iterator<Item = (u8, bool)> {
    [(0, false), (1, false), (0, true), (1, true)].into_iter()
}

fn read_only(vfs: &MemoryVfs) -> Partition {
    let builder = Store::builder().vfs(Arc::new(vfs.clone())).upkeep(Upkeep::Manual).read_only(true);
    builder.open("/data").unwrap().topic("t").unwrap().partition(0).unwrap()
}

fn adopted(vfs: &MemoryVfs) -> Bench {
    Bench::adopt_written(Arc::new(vfs.clone()), config(), |builder| builder)
}

fn verified(vfs: &MemoryVfs) -> VerifyReport {
    verify_on(vfs, Path::new("/data")).unwrap()
}

/// Their index entries led to no batch that the check was shown.
#[test]
fn a_segment_of_an_old_format_with_its_indexes_is_not_damaged() {
    for (magic, is_mixed) in cases() {
        let vfs = directory(magic, is_mixed);
        let check = |vfs: &MemoryVfs| {
            let report = verified(vfs);
            assert_eq!(report.damages().count(), 0, "format {magic}, mixed {is_mixed}: {report:?}");
            let is_told = |what: &str| report.findings.iter().any(|finding| finding.what.contains(what));
            assert!(is_told("entries of the formats 0 and 1"), "{report:?}");
            assert_eq!(report.batches, 40 + if is_mixed { 4 } else { 0 } + 2);
        };
        check(&vfs);
        let bench = adopted(&vfs);
        bench.store.close().unwrap();
        check(&bench.vfs);
    }
}

#[test]
fn a_wrong_index_of_a_segment_of_an_old_format_is_damaged() {
    for (magic, is_mixed) in cases() {
        let vfs = directory(magic, is_mixed);
        let mut index = get(&vfs, &path(0, "index"));
        index[15] ^= 1;
        put(&vfs, &path(0, "index"), &index);
        let report = verified(&vfs);
        let damaged: Vec<_> = report.findings.iter().filter(|found| found.severity == Severity::Damage).collect();
        assert!(damaged.iter().all(|found| found.path == path(0, "index")) && !damaged.is_empty(), "{report:?}");
    }
}

/// Taken over, they once counted as records without a time, and a later record was the answer.
#[test]
fn a_look_up_by_time_never_passes_over_a_segment_of_an_old_format_that_may_hold_the_answer() {
    for (magic, is_mixed) in cases() {
        let vfs = directory(magic, is_mixed);
        let check = |partition: &Partition, time: i64, expected: Option<i64>| {
            let what = format!("format {magic}, mixed {is_mixed}, time {time}");
            match (partition.offset_for_timestamp(T0 + time), expected) {
                (Err(Error::Unsupported { .. }), None) => {}
                (found, Some(offset)) => assert_eq!(found.unwrap().unwrap().offset.get(), offset, "{what}"),
                (found, None) => panic!("{what}: {found:?}"),
            }
        };
        // Nothing vouches for what a broker's directory says of times.
        let partition = read_only(&vfs);
        [0, 39, 52].into_iter().for_each(|time| check(&partition, time, None));
        assert!(matches!(partition.max_timestamp(), Err(Error::Unsupported { .. })));

        let bench = adopted(&vfs);
        let partition = bench.partition();
        // Entries of format 0 have no times, so that none of them is an answer.
        let has_times = magic == 1 || is_mixed;
        check(&partition, 0, (!has_times).then_some(50));
        check(&partition, 39, (!has_times).then_some(50));
        [(48, 50), (50, 50), (52, 52)].into_iter().for_each(|(time, offset)| check(&partition, time, Some(offset)));
        assert_eq!(partition.max_timestamp().unwrap().unwrap().offset.get(), 52);
    }
}
