//! What Kafka's cleaner once got wrong, one test for each: pitfalls 39 to 52, with the numbers of Kafka's tracker.
//!
//! Two of them have no like here, and something else is tested in their place. There is one directory, so that no second
//! one can hold another checkpoint (KAFKA-8362): in its place stands that Kafka's `cleaner-offset-checkpoint` is not
//! believed at all. There is no replication, so that the high watermark is the log end (KAFKA-13194): in its place stands
//! that only what is sealed, and so durable, is compacted.

use std::path::Path;
use std::sync::Arc;

use topiclog::io::{MemoryVfs, Vfs};
use topiclog::record::{BatchSpec, BatchView};
use topiclog::{CleanupPolicy, Error, Isolation, Record, TimestampType};

use crate::support::broker::{Bench, BrokerLog, Pair, T0, config, fold, get, gone, kv, path, put};
use crate::support::upkeep::without_key_index;

const BOTH: [Isolation; 2] = [Isolation::Uncommitted, Isolation::Committed];

/// Both kinds of readers see these offsets.
fn check_offsets(bench: &Bench, expected: &[i64]) {
    for isolation in BOTH {
        assert_eq!(bench.offsets(isolation), expected, "{isolation:?}");
    }
}

/// Base offsets and record counts of the batches below an offset.
fn check_batches(bench: &Bench, end: i64, expected: &[(i64, i32)]) {
    let batches = bench.batches_below(end);
    let found: Vec<_> = batches.iter().map(|batch| (batch.header.base_offset, batch.header.records_count)).collect();
    assert_eq!(found, expected);
}

/// 39 (KAFKA-5316, 6834, 4019).
#[test]
fn a_batch_may_be_larger_than_any_buffer_and_grow_beyond_what_an_append_may_be() {
    let value = "v".repeat(3 << 20);
    let log = BrokerLog::new(0).batch(0, &[kv("a", "1"), kv("b", &value), gone("c")]).batch(3, &[kv("a", "2")]);
    let mut bench = Bench::adopt(&log, config().batch_bytes_max(1000).segment_bytes(8 << 20));
    bench.settle();
    check_offsets(&bench, &[1, 2, 3]);
    let large = bench.batch_at(0).unwrap();
    assert!(large.header.delete_horizon_ms().is_some() && large.bytes.len() > 3 << 20);
    bench.check_sound();

    // Only a tombstone: the horizon alone makes the batch longer.
    let log = BrokerLog::new(0).batch(0, &[gone("c")]);
    let before_bytes = BatchView::parse(&written(&log)).unwrap().bytes().len();
    let bench = Bench::adopt(&log, config().batch_bytes_max(u32::try_from(before_bytes).unwrap()));
    bench.settle();
    assert!(bench.batch_at(0).unwrap().bytes.len() > before_bytes);
}

/// The first log file of a directory.
fn written(log: &BrokerLog) -> Vec<u8> {
    let vfs = MemoryVfs::new();
    log.write(&vfs);
    get(&vfs, &path(0, "log"))
}

/// 39 (KAFKA-6854).
#[test]
fn where_everything_was_dropped_the_log_is_not_at_its_end() {
    let value = "v".repeat(100_000);
    let mut log = BrokerLog::new(0);
    for offset in 0..40 {
        log = log.batch(offset, &[kv("a", &value)]);
    }
    let mut bench = Bench::adopt(&log.batch(40, &[kv("b", "1")]), config().segment_bytes(8 << 20));
    bench.settle();
    check_offsets(&bench, &[39, 40]);
    bench.check_sound();
}

/// 40 (KAFKA-20036): the horizons make the sum larger than its parts.
#[test]
fn joined_segments_never_outgrow_what_a_segment_may_be() {
    const SEGMENT_BYTES: usize = 4000;
    let mut log = BrokerLog::new(0);
    for offset in 0..56 {
        log = if offset == 28 { log.roll(28) } else { log };
        log = log.batch(offset, &[gone(&format!("k{offset}"))]);
    }
    let bytes = |bench: &Bench| -> Vec<usize> {
        bench.bases().iter().map(|&base| get(&*bench.vfs, &path(base, "log")).len()).collect()
    };
    let mut bench = Bench::adopt(&log, config().segment_bytes(SEGMENT_BYTES as u32));
    let before = bytes(&bench);
    assert!(before.iter().sum::<usize>() <= SEGMENT_BYTES, "as they are, they fit: {before:?}");
    bench.settle();
    let after = bytes(&bench);
    assert!(after.iter().sum::<usize>() > SEGMENT_BYTES, "with horizons they do not: {after:?}");
    assert!(after.iter().all(|&bytes| bytes <= SEGMENT_BYTES), "{after:?}");
    check_offsets(&bench, &(0..56).collect::<Vec<_>>());
    bench.check_sound();
    bench.clock.advance_ms(1000);
    assert_eq!(bench.another_round().tombstones_dropped, 56, "what was copied twice is counted once");
    bench.check_sound();
}

/// 41 (KAFKA-2235, 3587, 3894, 13727).
#[test]
fn a_full_map_stops_within_a_segment_and_everything_beyond_stays_until_its_turn() {
    let keys: Vec<String> = (0..120).map(|n| format!("key {n}")).collect();
    let mut log = BrokerLog::new(0);
    let mut offset = 0;
    for round in 0..3 {
        for (n, key) in keys.iter().enumerate() {
            if n % 40 == 7 {
                log = log.in_txn(offset, 9, &[kv(key, "aborted")]);
            } else {
                log = log.batch(offset, &[kv(key, &format!("{round}"))]);
            }
            offset += 1;
            // The marker lies far behind its data, in the part that has to wait.
            if n % 40 == 36 {
                log = log.abort(offset, 9, offset - 30);
                offset += 1;
            }
        }
        if round == 1 {
            log = log.roll(offset);
        }
    }
    let bench = Bench::adopt_with(&log, config(), |builder| builder.compaction_memory_bytes(3000));
    let table = fold(&bench.rows(Isolation::Committed));
    let mut ends = Vec::new();
    while !bench.store.tick().unwrap().is_idle() {
        let clean_end = bench.partition().clean_end().get();
        if ends.last() != Some(&clean_end) {
            ends.push(clean_end);
        }
        let rows = bench.rows(Isolation::Committed);
        assert!(rows.iter().all(|row| row.2.as_deref() != Some(b"aborted")), "an aborted record came back");
        assert_eq!(fold(&rows), table);
        let beyond = rows.iter().filter(|row| row.0 >= clean_end).count();
        let all_beyond = (clean_end..offset).filter(|at| is_plain(*at)).count();
        assert_eq!(beyond, all_beyond, "nothing beyond {clean_end} was looked at");
    }
    assert!(ends.len() > 3 && ends.is_sorted(), "{ends:?}");
    assert_eq!(bench.rows(Isolation::Uncommitted), bench.rows(Isolation::Committed));
    assert_eq!(bench.rows(Isolation::Committed).len(), 117, "one of each key that was ever committed");

    fn is_plain(offset: i64) -> bool {
        let within = offset % 123 % 41;
        within != 7 && within != 37
    }
}

/// 42 (KAFKA-8764, 9826, 12889).
#[test]
fn gaps_empty_segments_and_empty_ranges_come_to_rest() {
    let log = BrokerLog::new(0)
        .batch(10, &[kv("a", "1")])
        .roll(100)
        .roll(200)
        .batch(i64::from(i32::MAX), &[kv("a", "2")])
        .roll(5_000_000_000)
        .roll(5_000_000_001)
        .batch(5_000_000_050, &[kv("b", "1")])
        .roll(5_000_001_000);
    let mut bench = Bench::adopt(&log, config());
    assert_eq!(bench.settle().compactions, 1);
    check_offsets(&bench, &[i64::from(i32::MAX), 5_000_000_050]);
    assert_eq!(bench.partition().clean_end().get(), 5_000_001_000);
    assert_eq!(bench.settle().compactions, 0, "nothing is worth another round");
    bench.check_sound();
    bench.another_round();
    check_offsets(&bench, &[i64::from(i32::MAX), 5_000_000_050]);
    bench.check_sound();

    // Nothing at all, but for the place where it goes on.
    let mut bench = Bench::adopt(&BrokerLog::new(0).roll(70).roll(90), config());
    assert_eq!(bench.settle().compactions, 0);
    assert_eq!(bench.partition().end().get(), 90);
    bench.check_sound();
}

/// 43 (KAFKA-4529, 8522): what counts is the horizon in the batch, not a time of the record or of the file.
#[test]
fn a_tombstone_goes_neither_early_nor_never() {
    let log = BrokerLog::new(0).batch(0, &[kv("a", "1")]).batch(1, &[gone("a")]).batch(2, &[kv("b", "1")]);
    let mut bench = Bench::adopt(&log, config().delete_retention_ms(1000));
    // The record is older than the retention by far.
    bench.settle();
    check_offsets(&bench, &[1, 2]);
    for advance in [999, 0] {
        bench.clock.advance_ms(advance);
        bench.another_round();
        check_offsets(&bench, &[1, 2]);
    }
    bench.check_sound();
    // Rounds on the way did not renew it.
    bench.clock.advance_ms(1);
    assert_eq!(bench.another_round().tombstones_dropped, 1);
    check_offsets(&bench, &[2]);
    // Since the adoption it stood at the log end, 3: nobody knows what the broker had dropped. One that goes raises it.
    assert_eq!(bench.partition().tombstone_floor().get(), 4);
    bench.check_sound();
}

/// 44 (KAFKA-14055, 5196, 8351).
#[test]
fn markers_are_no_keyed_records_and_outlive_their_data_across_segments() {
    // A record has the key that every commit marker has, and one that every abort marker has.
    let commit_key: Pair<'_> = (Some(&[0, 0, 0, 1]), Some(b"mine"));
    let abort_key: Pair<'_> = (Some(&[0, 0, 0, 0]), None);
    let log = BrokerLog::new(0)
        .in_txn(0, 1, &[kv("a", "1")])
        .in_txn(1, 2, &[kv("a", "never")])
        .roll(2)
        .in_txn(2, 3, &[kv("b", "1")])
        .roll(3)
        .commit(3, 1)
        .abort(4, 2, 1)
        .roll(5)
        .commit(5, 3)
        .batch(6, &[commit_key, abort_key])
        .batch(8, &[kv("z", "1")]);
    for segment_bytes in [100, 20_000] {
        let mut bench = Bench::adopt(&log, config().segment_bytes(segment_bytes.max(256)).delete_retention_ms(0));
        let table = fold(&bench.rows(Isolation::Committed));
        bench.settle();
        // The batch at 1 is the last of its producer: its header stays.
        check_batches(&bench, 9, &[(0, 1), (1, 0), (2, 1), (3, 1), (4, 1), (5, 1), (6, 2), (8, 1)]);
        check_offsets(&bench, &[0, 2, 6, 7, 8]);
        assert_eq!(bench.aborts(), [4]);
        assert_eq!(fold(&bench.rows(Isolation::Committed)), table);
        bench.check_sound();
        for _ in 0..3 {
            bench.clock.advance_ms(1000);
            bench.another_round();
        }
        // As long as a header stays, so does the marker.
        let kept = [(0, 1), (1, 0), (2, 1), (3, 1), (4, 1), (5, 1), (6, 1), (8, 1)];
        check_batches(&bench, 9, &kept);
        assert_eq!(bench.aborts(), [4]);
        bench.check_sound();
    }
}

/// 45 (KAFKA-5490, 8335, 7467, 7385).
#[test]
fn the_last_batch_of_each_producer_is_found_by_offset_and_keeps_its_header() {
    let of = |base: i64, epoch: i16, sequence: i32| BatchSpec {
        producer: Some((7, epoch, sequence)),
        ..BatchSpec::new(base)
    };
    let log = BrokerLog::new(0)
        .batch_as(&of(0, 0, 5), &[kv("a", "1"), kv("b", "1")])
        // After a new epoch the sequence begins anew: the higher one is the older one.
        .batch_as(&of(2, 1, 0), &[kv("a", "2"), kv("b", "2")])
        // A producer of which there is but a marker.
        .commit(4, 8)
        .batch(5, &[kv("a", "3"), kv("b", "3")])
        .batch(7, &[kv("z", "1")]);
    let mut bench = Bench::adopt(&log, config().delete_retention_ms(0));
    bench.settle();
    check_batches(&bench, 8, &[(2, 0), (4, 1), (5, 2), (7, 1)]);
    let kept = bench.batch_at(2).unwrap();
    assert_eq!((kept.bytes.len(), kept.header.next_offset(), kept.header.last_sequence()), (61, 4, 1));
    assert_eq!((kept.header.producer_id, kept.header.producer_epoch, kept.header.base_timestamp), (7, 1, -1));
    bench.check_sound();
    // The marker without data is emptied in its time, and its header says what the producer's epoch is.
    bench.another_round();
    bench.clock.advance_ms(1);
    bench.another_round();
    check_batches(&bench, 8, &[(2, 0), (4, 0), (5, 2), (7, 1)]);
    assert!(bench.batch_at(4).unwrap().header.is_control());
    bench.check_sound();
    bench.another_round();
    check_batches(&bench, 8, &[(2, 0), (4, 0), (5, 2), (7, 1)]);
    check_offsets(&bench, &[5, 6, 7]);
    bench.check_sound();
}

/// 45 (KAFKA-7385): where only headers are left, they say how far the log reached.
#[test]
fn a_segment_of_headers_alone_is_read_through() {
    let of = |base: i64, id: i64| BatchSpec { producer: Some((id, 0, 0)), ..BatchSpec::new(base) };
    let log = BrokerLog::new(0)
        .batch_as(&of(0, 1), &[kv("a", "1")])
        .batch_as(&of(1, 2), &[kv("a", "2")])
        .roll(2)
        .batch(2, &[kv("a", "3"), kv("b", "1")]);
    let mut bench = Bench::adopt(&log, config().segment_bytes(256));
    bench.settle();
    check_batches(&bench, 4, &[(0, 0), (1, 0), (2, 2)]);
    check_offsets(&bench, &[2, 3]);
    assert_eq!(bench.partition().read(0, 1 << 20, 1).unwrap().next_offset.get(), 3);
    assert!(bench.partition().record(0).unwrap().is_none());
    bench.check_sound();
}

/// 46 (KAFKA-17076).
#[test]
fn the_last_batch_of_a_round_says_where_the_log_ended() {
    let nothing: Pair<'_> = (None, Some(b"no key"));
    let log = BrokerLog::new(0).batch(0, &[kv("a", "1")]).batch(1, &[nothing, nothing, nothing]);
    let mut bench = Bench::adopt(&log, config());
    bench.settle();
    check_batches(&bench, 4, &[(0, 1), (1, 0)]);
    assert_eq!(bench.batch_at(1).unwrap().header.next_offset(), 4);
    check_offsets(&bench, &[0]);
    bench.check_sound();
    // Once there is more behind it, it goes.
    bench.another_round();
    check_batches(&bench, 4, &[(0, 1)]);
    bench.check_sound();
}

/// 47 (KAFKA-13194).
#[test]
fn nothing_is_compacted_from_the_segment_of_an_open_transaction_on() {
    let log = BrokerLog::new(0)
        .batch(0, &[kv("a", "1")])
        .batch(1, &[kv("a", "2")])
        .roll(2)
        .batch(2, &[kv("a", "3")])
        .in_txn(3, 5, &[kv("a", "open")])
        .batch(4, &[kv("a", "4")])
        .roll(5)
        .batch(5, &[kv("a", "5")]);
    let mut bench = Bench::adopt(&log, config());
    bench.settle();
    // That at 1 is superseded by what may be compacted, those from 2 on are not touched and supersede nothing.
    check_batches(&bench, 6, &[(1, 1), (2, 1), (3, 1), (4, 1), (5, 1)]);
    assert_eq!(bench.partition().clean_end().get(), 2);
    assert_eq!(bench.partition().last_stable_offset().get(), 3);
    assert_eq!(bench.offsets(Isolation::Committed), [1, 2]);
    bench.check_sound();
}

/// 47: what was closed and is not yet sealed may be lost in a power cut, and so it may not supersede anything, however
/// overdue that is. The key index, which would have all of it synced, is not there.
#[test]
fn nothing_is_superseded_by_what_is_not_durable() {
    let log = BrokerLog::new(0).batch(0, &[kv("a", "1")]);
    let config = config().segment_bytes(256).max_compaction_lag_ms(1);
    let mut bench = Bench::adopt_with(&log, config, |builder| builder.key_index_memory_bytes(0));
    for n in 0..20 {
        bench.partition().append(Record::keyed("a", format!("{n}-{}", "v".repeat(150)))).unwrap();
    }
    bench.clock.advance_ms(1000);
    let mut clean_ends = Vec::new();
    while !bench.store.tick().unwrap().is_idle() {
        let clean_end = bench.partition().clean_end().get();
        let names = bench.file_names();
        for base in bench.bases().into_iter().filter(|&base| base < clean_end) {
            assert!(names.contains(&format!("{base:020}.seal")), "{base} is not sealed and below {clean_end}");
        }
        let first = bench.offsets(Isolation::Uncommitted)[0];
        assert!(first < clean_end.max(1), "{first} {clean_end}");
        clean_ends.push(clean_end);
    }
    clean_ends.dedup();
    assert!(clean_ends.len() > 10, "it went on segment by segment: {clean_ends:?}");
    bench.check_sound();
}

/// 48 (KAFKA-1641, 3330, 8724, 9133, 7400, 6266).
#[test]
fn a_clean_end_that_the_log_no_longer_has_is_put_right() {
    let bench = Bench::adopt(&BrokerLog::new(0).batch(0, &[kv("a", "1")]), config().segment_bytes(256));
    let append = |count: i32| {
        for n in 0..count {
            let value = format!("{n}-{}", "v".repeat(150));
            bench.partition().append(Record::keyed(format!("k{}", n % 3), value)).unwrap();
        }
    };
    append(10);
    bench.settle();
    let clean_end = bench.partition().clean_end();
    append(10);
    bench.partition().delete_records(bench.partition().end()).unwrap();
    assert!(bench.partition().start() > clean_end);
    append(10);
    let table = fold(&bench.rows(Isolation::Uncommitted));
    bench.settle();
    assert!(bench.partition().clean_end() > bench.partition().start());
    assert_eq!(fold(&bench.rows(Isolation::Uncommitted)), table);
    let closed = bench.partition().clean_end().get();
    assert!(bench.offsets(Isolation::Uncommitted).iter().filter(|&&offset| offset < closed).count() <= 3);
    let mut bench = bench;
    bench.check_sound();
}

/// 48 (KAFKA-8362).
#[test]
fn the_brokers_clean_ends_are_not_believed() {
    for checkpoint in ["0\n1\nt 0 2\n", "0\n1\nt 0 999999\n", "0\n1\nt 0 -5\n", ""] {
        let log = BrokerLog::new(0).batch(0, &[kv("a", "1")]).batch(1, &[kv("a", "2")]).batch(2, &[kv("b", "1")]);
        let vfs = Arc::new(MemoryVfs::new());
        log.write(&*vfs);
        put(&*vfs, Path::new("/data/cleaner-offset-checkpoint"), checkpoint.as_bytes());
        let mut bench = Bench::adopt_written(vfs, config(), |builder| builder);
        bench.settle();
        check_offsets(&bench, &[1, 2]);
        bench.check_sound();
    }
}

/// 49 (KAFKA-2118, 6324, 12520): what a broker's crash leaves of an exchange is one of the two states, as for the broker.
#[test]
fn an_exchange_that_a_broker_did_not_finish_is_finished_or_undone() {
    let old = BrokerLog::new(0)
        .batch(0, &[kv("a", "1"), kv("b", "1")])
        .roll(2)
        .batch(2, &[kv("a", "2")])
        .roll(3)
        .batch(3, &[kv("c", "1")]);
    let swap = written(&BrokerLog::new(0).batch(1, &[kv("b", "1")]).batch(2, &[kv("a", "2")]));
    let check = |change: &dyn Fn(&MemoryVfs), expected: &[i64]| {
        let vfs = Arc::new(MemoryVfs::new());
        old.write(&*vfs);
        change(&vfs);
        let mut bench = Bench::adopt_written(vfs, config().min_cleanable_dirty_ratio(1.0), |builder| builder);
        check_offsets(&bench, expected);
        bench.check_sound();
        // And from there on it is compacted like any other.
        let table = fold(&bench.rows(Isolation::Committed));
        bench.store.alter_topic("t", config()).unwrap();
        bench.settle();
        assert_eq!(fold(&bench.rows(Isolation::Committed)), table);
        check_offsets(&bench, &[1, 2, 3]);
        bench.check_sound();
    };
    let (before, after) = ([0, 1, 2, 3], [1, 2, 3]);
    check(&|_| {}, &before);
    check(&|vfs| put(vfs, &path(0, "log.cleaned"), &swap), &before);
    check(&|vfs| put(vfs, &path(0, "log.cleaned"), &swap[..swap.len() / 2]), &before);
    // One of two new segments has its name already: neither counts.
    check(
        &|vfs| {
            put(vfs, &path(0, "log.cleaned"), &swap);
            put(vfs, &path(2, "log.swap"), &swap);
        },
        &before,
    );
    check(&|vfs| put(vfs, &path(0, "log.swap"), &swap), &after);
    check(
        &|vfs| {
            put(vfs, &path(0, "log.swap"), &swap);
            put(vfs, &path(0, "index.swap"), &[]);
            vfs.rename(&path(2, "log"), &path(2, "log.deleted")).unwrap();
        },
        &after,
    );
    check(
        &|vfs| {
            put(vfs, &path(0, "log"), &swap);
            vfs.remove_file(&path(2, "log")).unwrap();
            put(vfs, &path(0, "timeindex.swap"), &[]);
            put(vfs, &path(2, "log.deleted"), b"old");
        },
        &after,
    );
}

/// 50 (KAFKA-7322, 12840).
#[test]
fn a_topic_that_is_no_longer_compacted_is_left_as_it_is_in_the_middle_of_a_round() {
    for steps in 1..12 {
        let mut log = BrokerLog::new(0);
        for offset in 0..30 {
            log = if offset % 6 == 5 { log.roll(offset) } else { log };
            log = log.batch(offset, &[kv(&format!("k{}", offset % 4), &"v".repeat(200))]);
        }
        let config = config().segment_bytes(2000);
        let mut bench = Bench::adopt_with(&log, config.clone(), |builder| builder.compaction_step_bytes(1000));
        let table = fold(&bench.rows(Isolation::Committed));
        for _ in 0..steps {
            bench.store.tick().unwrap();
        }
        let deletes = config.clone().cleanup_policy(CleanupPolicy::Delete).retention_ms(-1);
        bench.store.alter_topic("t", deletes).unwrap();
        let rows = bench.rows(Isolation::Committed);
        assert_eq!(bench.settle().compactions, 0);
        assert_eq!(bench.rows(Isolation::Committed), rows, "after {steps} steps");
        let unfinished: Vec<_> = bench.file_names().into_iter().filter(|name| name.ends_with(".cleaned")).collect();
        assert!(unfinished.is_empty(), "what was half made is not left behind: {unfinished:?}");
        bench.check_sound();
        bench.store.alter_topic("t", config).unwrap();
        bench.settle();
        assert_eq!(fold(&bench.rows(Isolation::Committed)), table);
        bench.check_sound();
    }
}

/// 51 (KAFKA-5431).
#[test]
fn no_file_of_a_compacted_segment_is_longer_than_what_is_in_it() {
    let mut log = BrokerLog::new(0);
    for offset in 0..200 {
        log = log.batch(offset, &[kv(&format!("k{}", offset % 50), &"v".repeat(100))]);
    }
    let mut bench = Bench::adopt(&log, config().preallocate_bytes(1 << 20).index_interval_bytes(500));
    bench.settle();
    let file = get(&*bench.vfs, &path(0, "log"));
    let whole: usize = bench.batches_below(200).iter().map(|batch| batch.bytes.len()).sum();
    assert_eq!(file.len(), whole);
    let (index, times) = (get(&*bench.vfs, &path(0, "index")), get(&*bench.vfs, &path(0, "timeindex")));
    assert!(!index.is_empty() && index.chunks(8).all(|entry| entry != [0; 8]));
    assert!(!times.is_empty() && times.chunks(12).all(|entry| entry != [0; 12]));
    bench.check_sound();
}

/// 52 (KAFKA-1755).
#[test]
fn a_record_without_a_key_is_refused_and_one_that_is_there_is_dropped() {
    let log = BrokerLog::new(0)
        .batch(0, &[(None, Some(b"no key")), kv("a", "1"), (None, None), (Some(b""), Some(b"an empty key is one"))])
        .batch(4, &[kv("b", "1")]);
    let mut bench = Bench::adopt(&log, config());
    assert_eq!(bench.offsets(Isolation::Uncommitted).len(), 5);
    let refused = bench.partition().append(Record::of_value("v")).unwrap_err();
    assert!(matches!(refused, Error::Invalid { .. }), "{refused:?}");
    bench.settle();
    check_offsets(&bench, &[1, 3, 4]);
    check_batches(&bench, 5, &[(0, 2), (4, 1)]);
    bench.check_sound();
}

/// Not in the list of pitfalls, but of the same kind (13.1, 11): under the log's own clock the deltas of records are
/// garbage by design, and all records have the time of the batch.
#[test]
fn records_under_the_logs_clock_keep_their_time() {
    let spec = |base| BatchSpec {
        timestamp_type: TimestampType::LogAppendTime,
        append_time_ms: T0 + 5000,
        ..BatchSpec::new(base)
    };
    let log = BrokerLog::new(0)
        .batch_as(&spec(0), &[kv("a", "1"), kv("b", "1"), gone("c")])
        .batch_as(&spec(3), &[kv("a", "2")]);
    let mut bench = Bench::adopt(&log, config());
    bench.settle();
    check_offsets(&bench, &[1, 2, 3]);
    let times: Vec<i64> = bench.partition().read_from(0).take(3).map(|row| row.unwrap().timestamp_ms()).collect();
    assert_eq!(times, [T0 + 5000; 3]);
    let header = bench.batch_at(0).unwrap().header;
    assert_eq!((header.timestamp_type(), header.max_timestamp), (TimestampType::LogAppendTime, T0 + 5000));
    bench.check_sound();
}

/// A batch that becomes larger in memory than compaction allows, of a transaction that was aborted: it goes, and nobody
/// decompresses it. It once ended the compaction of its partition.
#[cfg(feature = "zstd")]
#[test]
fn a_batch_of_an_aborted_transaction_goes_however_large_it_would_become() {
    use topiclog::record::Compression;

    let large = vec![0; 70 << 20];
    let spec = BatchSpec {
        producer: Some((7, 0, 0)),
        transactional: true,
        compression: Compression::Zstd,
        ..BatchSpec::new(0)
    };
    let log = BrokerLog::new(0)
        .batch_as(&spec, &[(Some(b"a"), Some(&large))])
        .abort(1, 7, 0)
        .batch(2, &[kv("a", "1"), kv("a", "2")])
        .roll(4)
        .batch(4, &[kv("b", "1")]);
    let bench = Bench::adopt(&log, config());
    assert!(bench.settle().compactions > 0);
    check_offsets(&bench, &[3, 4]);
    assert!(bench.store.topic("t").unwrap().upkeep_error().is_none());
}

#[test]
fn all_of_it_holds_where_there_is_no_key_index() {
    without_key_index(|| {
        a_batch_may_be_larger_than_any_buffer_and_grow_beyond_what_an_append_may_be();
        where_everything_was_dropped_the_log_is_not_at_its_end();
        joined_segments_never_outgrow_what_a_segment_may_be();
        a_full_map_stops_within_a_segment_and_everything_beyond_stays_until_its_turn();
        gaps_empty_segments_and_empty_ranges_come_to_rest();
        a_tombstone_goes_neither_early_nor_never();
        markers_are_no_keyed_records_and_outlive_their_data_across_segments();
        the_last_batch_of_each_producer_is_found_by_offset_and_keeps_its_header();
        a_segment_of_headers_alone_is_read_through();
        the_last_batch_of_a_round_says_where_the_log_ended();
        nothing_is_compacted_from_the_segment_of_an_open_transaction_on();
        nothing_is_superseded_by_what_is_not_durable();
        a_clean_end_that_the_log_no_longer_has_is_put_right();
        the_brokers_clean_ends_are_not_believed();
        an_exchange_that_a_broker_did_not_finish_is_finished_or_undone();
        a_topic_that_is_no_longer_compacted_is_left_as_it_is_in_the_middle_of_a_round();
        no_file_of_a_compacted_segment_is_longer_than_what_is_in_it();
        a_record_without_a_key_is_refused_and_one_that_is_there_is_dropped();
        records_under_the_logs_clock_keep_their_time();
        #[cfg(feature = "zstd")]
        a_batch_of_an_aborted_transaction_goes_however_large_it_would_become();
    });
}
