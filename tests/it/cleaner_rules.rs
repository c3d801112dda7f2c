//! Kafka's rules of what a compaction keeps, at their edges: how transactions and tombstones go, and that what cannot be
//! compacted stays as it is.

use topiclog::record::{BatchSpec, BatchView};
use topiclog::{Compression, Durability, Error, Isolation, Record, TimestampType};

use crate::golden::example;
use crate::support::broker::{Bench, BrokerLog, T0, config, fold, get, gone, kv, path, put};
use crate::support::upkeep::{has_key_index, without_key_index};

/// Base offsets, record counts and horizons of the batches below an offset.
fn check_batches(bench: &Bench, end: i64, expected: &[(i64, i32, Option<i64>)]) {
    let batches = bench.batches_below(end);
    let found: Vec<_> = batches
        .iter()
        .map(|batch| (batch.header.base_offset, batch.header.records_count, batch.header.delete_horizon_ms()))
        .collect();
    assert_eq!(found, expected);
}

fn check_bytes(bench: &Bench, base: i64, expected: &[u8]) {
    assert_eq!(bench.batch_at(base).map(|batch| batch.bytes), Some(expected.to_vec()), "the batch at {base}");
}

/// When the first round was.
const FIRST: i64 = T0 + 100_000;

#[test]
fn an_aborted_transaction_goes_in_three_passes() {
    let log = BrokerLog::new(0)
        .in_txn(0, 1, &[kv("a", "never"), gone("z")])
        .abort(2, 1, 0)
        .in_txn(3, 1, &[kv("z", "1")])
        .commit(4, 1)
        .batch(5, &[kv("y", "1")]);
    let mut bench = Bench::adopt(&log, config());
    let rest = [(3, 1, None), (4, 1, None), (5, 1, None)];
    // First the data: the marker stays, and so does what says that the transaction was aborted.
    bench.settle();
    check_batches(&bench, 6, &[&[(2, 1, None)], &rest[..]].concat());
    assert_eq!(bench.aborts(), [2]);
    bench.check_sound();
    // Then the marker is found without data, and has its time.
    bench.clock.advance_ms(500);
    bench.another_round();
    let horizon = FIRST + 500 + 1000;
    check_batches(&bench, 6, &[&[(2, 1, Some(horizon))], &rest[..]].concat());
    assert!(bench.aborts().is_empty());
    bench.check_sound();
    let marker = bench.batch_at(2).unwrap().bytes;
    bench.clock.advance_ms(999);
    bench.another_round();
    check_bytes(&bench, 2, &marker);
    // And when that is over, it goes.
    bench.clock.advance_ms(1);
    bench.another_round();
    check_batches(&bench, 6, &rest);
    assert_eq!(bench.offsets(Isolation::Committed), [3, 5]);
    bench.check_sound();
}

#[test]
fn a_commit_marker_goes_two_passes_after_the_last_of_its_data() {
    let log = BrokerLog::new(0)
        .in_txn(0, 1, &[kv("a", "1")])
        .commit(1, 1)
        .in_txn(2, 1, &[kv("b", "1")])
        .commit(3, 1)
        .batch(4, &[kv("a", "2"), kv("y", "1")]);
    let mut bench = Bench::adopt(&log, config());
    let rest = [(2, 1, None), (3, 1, None), (4, 2, None)];
    bench.settle();
    check_batches(&bench, 6, &[&[(1, 1, None)], &rest[..]].concat());
    bench.another_round();
    check_batches(&bench, 6, &[&[(1, 1, Some(FIRST + 1000))], &rest[..]].concat());
    bench.clock.advance_ms(1000);
    bench.another_round();
    // The second marker stays: its data does.
    check_batches(&bench, 6, &rest);
    bench.check_sound();
}

#[test]
fn an_aborted_record_neither_supersedes_nor_deletes() {
    let log = BrokerLog::new(0)
        .batch(0, &[kv("a", "1"), kv("b", "1"), kv("c", "1")])
        .in_txn(3, 1, &[kv("a", "never"), gone("b")])
        // Of the same producer, and no part of the transaction.
        .in_txn(5, 2, &[kv("c", "2")])
        .abort(6, 1, 3)
        .commit(7, 2)
        .roll(8)
        .in_txn(8, 1, &[kv("d", "1")])
        .commit(9, 1);
    for segment_bytes in [256, 20_000] {
        let mut bench = Bench::adopt(&log, config().segment_bytes(segment_bytes).delete_retention_ms(0));
        let table = fold(&bench.rows(Isolation::Committed));
        for _ in 0..4 {
            bench.settle();
            assert_eq!(bench.offsets(Isolation::Uncommitted), [0, 1, 5, 8]);
            assert_eq!(fold(&bench.rows(Isolation::Committed)), table);
            bench.check_sound();
            bench.clock.advance_ms(1);
            bench.another_round();
        }
    }
}

#[test]
fn a_tombstone_gets_the_horizon_that_kafka_gives_it_byte_for_byte() {
    let (produced, cleaned) = (example("F0 tombstone"), example("F1 tombstone"));
    let log = BrokerLog::new(300).raw(&produced).batch(301, &[kv("y", "1")]);
    let mut bench = Bench::adopt(&log, config().delete_retention_ms(86_400_000));
    bench.clock.jump_to_ms(T0 + 2000);
    bench.settle();
    check_bytes(&bench, 300, &cleaned);
    bench.check_sound();
    bench.clock.advance_ms(86_399_999);
    bench.another_round();
    check_bytes(&bench, 300, &cleaned);
    bench.clock.advance_ms(1);
    bench.another_round();
    assert!(bench.batch_at(300).is_none());
    // Since the adoption it stood at the log end, 302: nobody knows what the broker had dropped. One that goes raises it.
    assert_eq!(bench.partition().tombstone_floor().get(), 303);
    bench.check_sound();
}

#[test]
fn cleaned_batches_are_kafkas_byte_for_byte() {
    let (produced, marker) = (example("B txn"), example("C commit"));
    let log = BrokerLog::new(200).raw(&produced).raw(&marker);
    let mut bench = Bench::adopt(&log.clone().batch(204, &[kv("y", "1")]), config());
    bench.settle();
    check_bytes(&bench, 200, &example("E compacted"));
    check_bytes(&bench, 203, &marker);
    bench.check_sound();
    // Everything in it is superseded, and it is the last that its producer sent.
    let mut bench = Bench::adopt(&log.batch(204, &[kv("a", "9"), kv("b", "9")]), config());
    bench.settle();
    check_bytes(&bench, 200, &example("G empty"));
    bench.check_sound();
    bench.another_round();
    check_bytes(&bench, 200, &example("G empty"));
}

#[test]
fn a_horizon_that_was_set_stays_whatever_happens_to_its_batch() {
    // Set by a broker, under another retention.
    let cleaned = example("F1 tombstone");
    let log = BrokerLog::new(300).raw(&cleaned).batch(301, &[kv("y", "1")]);
    let mut bench = Bench::adopt(&log, config().delete_retention_ms(1));
    bench.settle();
    check_bytes(&bench, 300, &cleaned);
    bench.check_sound();

    let log = BrokerLog::new(0).batch(0, &[gone("a"), kv("b", "1"), kv("c", "1")]).batch(3, &[kv("y", "1")]);
    let mut bench = Bench::adopt(&log, config());
    bench.settle();
    check_batches(&bench, 3, &[(0, 3, Some(FIRST + 1000))]);
    bench.partition().append(Record::keyed("b", "2")).unwrap();
    bench.clock.advance_ms(700);
    bench.another_round();
    check_batches(&bench, 3, &[(0, 2, Some(FIRST + 1000))]);
    // The tombstone went; the others are as they were, and their times as well.
    bench.clock.advance_ms(300);
    bench.another_round();
    check_batches(&bench, 3, &[(0, 1, Some(FIRST + 1000))]);
    let last = bench.partition().record(2).unwrap().unwrap();
    assert_eq!((last.key(), last.timestamp_ms()), (Some(&b"c"[..]), T0 + 2));
    bench.check_sound();
}

#[test]
fn a_round_has_one_time_however_long_it_takes() {
    let mut log = BrokerLog::new(0);
    for offset in 0..20 {
        log = log.batch(offset, &[gone(&format!("k{offset}"))]);
    }
    let bench = Bench::adopt_with(&log, config(), |builder| builder.compaction_step_bytes(100));
    let mut steps = 0;
    while bench.store.tick().unwrap().compactions == 0 {
        bench.clock.advance_ms(100);
        steps += 1;
    }
    assert!(steps >= 20, "{steps}");
    let expected: Vec<_> = (0..20).map(|offset| (offset, 1, Some(FIRST + 1000))).collect();
    check_batches(&bench, 20, &expected);
}

#[test]
fn entries_of_the_old_formats_are_left_alone_and_named_once() {
    for name in ["legacy v0", "legacy v1"] {
        for lagging in [false, true] {
            let log = BrokerLog::new(0)
                .raw(&example(name))
                .roll(6)
                .batch(6, &[kv("a", "1")])
                .roll(7)
                .batch(7, &[kv("a", "2")]);
            let mut config = config();
            if lagging {
                config = config.max_compaction_lag_ms(50_000).min_compaction_lag_ms(1);
            }
            let bench = Bench::adopt(&log, config.clone());
            let other = bench.store.create_topic("u", config.segment_bytes(300)).unwrap();
            for n in 0..10 {
                other.append(Record::keyed("k", format!("{n}-{}", "v".repeat(200)))).unwrap();
            }
            bench.clock.advance_ms(50_001);
            let mut errors = Vec::new();
            for _ in 0..50 {
                errors.extend(bench.store.tick().err());
            }
            assert_eq!(errors.len(), 1, "{name}: {errors:?}");
            assert!(matches!(errors[0], Error::Unsupported { .. }), "{name}: {errors:?}");
            assert!(bench.store.tick().unwrap().is_idle());
            // It is there as it was, and goes on.
            assert_eq!(get(&*bench.vfs, &path(0, "log")), example(name));
            let partition = bench.partition();
            assert!(matches!(partition.read(0, 1000, 10), Err(Error::Unsupported { .. })));
            partition.append(Record::keyed("b", "1")).unwrap();
            let read: Vec<_> = partition.read_from(6).map(|record| record.unwrap().offset().get()).collect();
            assert_eq!(read, [6, 7, 8]);
            // Other partitions have their turn.
            assert_eq!(
                other.partition(0).unwrap().read_from(0).count(),
                if has_key_index() && !lagging { 1 } else { 2 }
            );
        }
    }
}

#[test]
fn a_damaged_batch_stops_the_compaction_of_its_partition_and_costs_no_other_record() {
    let log = BrokerLog::new(0).batch(0, &[kv("a", "1")]).batch(1, &[kv("b", "1")]).batch(2, &[kv("a", "2")]);
    let bench = Bench::adopt(&log, config());
    let before = get(&*bench.vfs, &path(0, "log"));
    let mut damaged = before.clone();
    let at = before.len() - 3;
    damaged[at] ^= 1;
    put(&*bench.vfs, &path(0, "log"), &damaged);
    let refused = bench.store.tick().unwrap_err();
    assert!(matches!(refused, Error::Corrupt { .. }), "{refused}");
    assert!(bench.store.tick().unwrap().is_idle(), "it is said once");
    assert_eq!(get(&*bench.vfs, &path(0, "log")), damaged);
    assert!(!bench.file_names().iter().any(|name| name.ends_with(".cleaned")));
    bench.partition().append(Record::keyed("c", "1")).unwrap();
    assert_eq!(bench.partition().read_from(3).count(), 1);
}

#[test]
fn a_record_without_a_time_is_as_young_as_its_segment() {
    let bench = Bench::adopt(&BrokerLog::new(0), config().segment_bytes(300).min_compaction_lag_ms(1000));
    for n in 0..3 {
        let record = Record::keyed("a", format!("{n}-{}", "v".repeat(200)));
        bench.partition().append(record.timestamp_ms(-1)).unwrap();
    }
    bench.settle();
    bench.clock.advance_ms(999);
    bench.settle();
    assert_eq!(bench.offsets(Isolation::Uncommitted), [0, 1, 2]);
    bench.clock.advance_ms(1);
    bench.settle();
    assert_eq!(bench.offsets(Isolation::Uncommitted), [1, 2]);
}

#[test]
fn a_record_is_compacted_when_it_is_as_old_as_the_lag_and_not_a_millisecond_earlier() {
    let bench = Bench::adopt(&BrokerLog::new(0), config().segment_bytes(300).min_compaction_lag_ms(1000));
    for n in 0..3 {
        let record = Record::keyed("a", format!("{n}-{}", "v".repeat(200)));
        bench.partition().append(record.timestamp_ms(FIRST + n)).unwrap();
        bench.clock.advance_ms(1);
    }
    bench.clock.advance_ms(997);
    bench.settle();
    assert_eq!(bench.offsets(Isolation::Uncommitted), [0, 1, 2], "the second one supersedes the first a moment later");
    bench.clock.advance_ms(1);
    bench.settle();
    assert_eq!(bench.offsets(Isolation::Uncommitted), [1, 2]);
}

#[test]
fn segments_that_were_deleted_during_a_round_do_not_come_back() {
    for steps in 1..12 {
        let mut log = BrokerLog::new(0);
        for offset in 0..30 {
            log = if offset % 6 == 5 { log.roll(offset) } else { log };
            log = log.batch(offset, &[kv(&format!("k{}", offset % 4), &"v".repeat(200))]);
        }
        let mut bench =
            Bench::adopt_with(&log, config().segment_bytes(4000), |builder| builder.compaction_step_bytes(1000));
        for _ in 0..steps {
            bench.store.tick().unwrap();
        }
        bench.partition().delete_records(13).unwrap();
        let table = fold(&bench.rows(Isolation::Committed));
        bench.settle();
        assert_eq!(bench.partition().start().get(), 13);
        assert_eq!(fold(&bench.rows(Isolation::Committed)), table, "after {steps} steps");
        bench.check_sound();
    }
}

/// Every codec that is built in: what is compressed is still read, with the same records, after it was made anew.
#[test]
fn batches_of_every_codec_are_compacted() {
    for codec in Compression::ALL.into_iter().filter(|codec| codec.is_built_in()) {
        let mut bench = Bench::adopt(&BrokerLog::new(0), config().compression(codec).durability(Durability::Sync));
        for round in 0..20 {
            let records: Vec<_> = (0..20)
                .map(|n| Record::keyed(format!("k{}", (n * round) % 31), format!("{round}-{n}").repeat(20)))
                .collect();
            bench.partition().append_batch(&records).unwrap();
        }
        let before = bench.rows(Isolation::Uncommitted);
        bench.another_round();
        let after = bench.rows(Isolation::Uncommitted);
        assert!(after.len() < 60 && after.iter().all(|row| before.contains(row)), "{codec}");
        assert_eq!(fold(&after), fold(&before), "{codec}");
        for batch in bench.batches_below(400) {
            let view = BatchView::parse(&batch.bytes).unwrap();
            assert!(view.header().compression() == codec || view.header().records_count == 0);
        }
        bench.check_sound();
    }
}

#[test]
fn a_header_that_was_left_is_no_answer_to_a_question_of_time() {
    let spec = BatchSpec {
        producer: Some((1, 0, 0)),
        timestamp_type: TimestampType::LogAppendTime,
        append_time_ms: T0 + 50_000,
        ..BatchSpec::new(0)
    };
    let log = BrokerLog::new(0).batch_as(&spec, &[kv("a", "1")]).batch(1, &[kv("a", "2"), kv("b", "1")]);
    let mut bench = Bench::adopt(&log, config());
    let found = |bench: &Bench| bench.partition().max_timestamp().unwrap().map(|at| (at.offset.get(), at.timestamp_ms));
    assert_eq!(found(&bench), Some((0, T0 + 50_000)));
    bench.settle();
    assert_eq!(bench.batch_at(0).unwrap().header.max_timestamp, T0 + 50_000);
    assert_eq!(found(&bench), Some((2, T0 + 2)));
    assert!(bench.partition().offset_for_timestamp(T0 + 3).unwrap().is_none());
    bench.check_sound();
    assert_eq!(found(&bench), Some((2, T0 + 2)));
}

/// A round that went on without a segment of which the neighbour was deleted called it clean, and once the tombstone had
/// gone, so had its work.
#[test]
fn a_deleted_key_stays_deleted_though_segments_went_during_the_round() {
    let large = "v".repeat(250);
    let log = BrokerLog::new(0)
        .batch(0, &[kv("x", "1")])
        .roll(10)
        .batch(10, &[kv("a", "1")])
        .roll(20)
        .batch(20, &[gone("a"), kv("y", &large)])
        .roll(30)
        .batch(30, &[kv("z", &large)]);
    for steps in 0..15 {
        let mut bench =
            Bench::adopt_with(&log, config().segment_bytes(350), |builder| builder.compaction_step_bytes(1));
        for _ in 0..steps {
            bench.store.tick().unwrap();
        }
        bench.partition().delete_records(10).unwrap();
        for _ in 0..3 {
            bench.settle();
            let offsets = bench.offsets(Isolation::Uncommitted);
            assert!(!offsets.contains(&10), "{offsets:?} after {steps} steps");
            bench.check_sound();
            bench.clock.advance_ms(1000);
            bench.another_round();
        }
        assert_eq!(bench.offsets(Isolation::Uncommitted), [21, 30], "after {steps} steps");
    }
}

#[test]
fn all_of_it_holds_where_there_is_no_key_index() {
    without_key_index(|| {
        an_aborted_transaction_goes_in_three_passes();
        a_commit_marker_goes_two_passes_after_the_last_of_its_data();
        an_aborted_record_neither_supersedes_nor_deletes();
        a_tombstone_gets_the_horizon_that_kafka_gives_it_byte_for_byte();
        cleaned_batches_are_kafkas_byte_for_byte();
        a_horizon_that_was_set_stays_whatever_happens_to_its_batch();
        a_round_has_one_time_however_long_it_takes();
        entries_of_the_old_formats_are_left_alone_and_named_once();
        a_damaged_batch_stops_the_compaction_of_its_partition_and_costs_no_other_record();
        a_record_without_a_time_is_as_young_as_its_segment();
        a_record_is_compacted_when_it_is_as_old_as_the_lag_and_not_a_millisecond_earlier();
        segments_that_were_deleted_during_a_round_do_not_come_back();
        batches_of_every_codec_are_compacted();
        a_header_that_was_left_is_no_answer_to_a_question_of_time();
        a_deleted_key_stays_deleted_though_segments_went_during_the_round();
    });
}
