//! Schedules: small programs of a few threads, each run in thousands of the orders that their steps can take.
//!
//! `RUSTC_WORKSPACE_WRAPPER=$PWD/.ci/rustc-shuttle cargo test --all-features --test schedules` runs them. Between any two
//! steps, that is at each lock and each atomic access of the crate and of the simulated disk below it, `shuttle` decides
//! which thread goes on; threads that all wait for each other are a failure. A failure prints its schedule; with that in
//! `TOPICLOG_SCHEDULE` the scenario that met it runs once more, in that order alone.
//!
//! What a scenario keeps for itself is in plain `std` types: they are no steps, so that looking on does not add orders.
#![cfg(topiclog_shuttle)]
#![allow(clippy::disallowed_methods, reason = "how long a scenario takes is no part of it")]
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test stops at the first surprise and says why")]

#[macro_use]
mod tell;

mod client_schedules;

use std::collections::BTreeMap;
use std::panic::Location;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use shuttle::rand::{Rng as _, thread_rng};
use shuttle::scheduler::{PctScheduler, RandomScheduler, ReplayScheduler, Scheduler};
use shuttle::{Config, Runner, thread};
use topiclog::clock::ManualClock;
use topiclog::io::{Fault, FaultPlan, FaultVfs, OpKind, SyncFailure, Vfs, errno};
use topiclog::{
    AppendOptions, Durability, Error, Partition, ReadLevel, ReadOptions, Reader, Record, Store, TopicConfig, Upkeep,
};

const SEED: u64 = 14;
/// Each step is given to any thread with equal chance.
const RANDOM: usize = 4_000;
/// Threads run by rank, and few changes of rank are put anywhere: finds what needs one thread to fall far behind.
const RANKED: usize = 1_000;
const RANK_CHANGES: usize = 3;
/// Each scenario has to see so many.
const SCHEDULES_MIN: usize = 5_000;

/// What schedules came to, counted over all of them.
#[derive(Clone, Default)]
pub(crate) struct Tally(Arc<Mutex<BTreeMap<&'static str, usize>>>);

impl Tally {
    pub(crate) fn count(&self, what: &'static str) {
        *self.0.lock().unwrap().entry(what).or_default() += 1;
    }

    fn of(&self, what: &str) -> usize {
        self.0.lock().unwrap().get(what).copied().unwrap_or(0)
    }
}

/// Runs a scenario under all its schedules and says how many there were. It must have come to all that is listed.
#[track_caller]
pub(crate) fn explore(name: &str, reached: &[&str], scenario: fn(&Tally)) {
    fn run(scheduler: impl Scheduler + 'static, scenario: impl Fn() + Send + Sync + 'static) {
        let mut config = Config::new();
        // The crate is called on these stacks; what it puts there is more than their usual size.
        config.stack_size = 512 << 10;
        // Says that orderings weaker than sequential consistency are not looked at; `src/sync.rs` says so as well.
        config.silence_warnings = true;
        Runner::new(scheduler, config).run(scenario);
    }
    let started = Instant::now();
    let (tally, done) = (Tally::default(), Arc::new(AtomicUsize::new(0)));
    let counted = {
        let (tally, done) = (tally.clone(), Arc::clone(&done));
        move || {
            scenario(&tally);
            done.fetch_add(1, Ordering::Relaxed);
        }
    };
    if let Ok(schedule) = std::env::var("TOPICLOG_SCHEDULE") {
        run(ReplayScheduler::new_from_encoded(&schedule), counted);
        tell!("schedules of {name}: the given one passed ({})", Location::caller());
        return;
    }
    run(RandomScheduler::new_from_seed(SEED, RANDOM), counted.clone());
    run(PctScheduler::new_from_seed(SEED, RANK_CHANGES, RANKED), counted);
    let done = done.load(Ordering::Relaxed);
    let seconds = started.elapsed().as_secs_f64();
    tell!("schedules of {name}: {done} ({RANDOM} random, {RANKED} ranked, seed {SEED}), {seconds:.1} s");
    tell!("schedules of {name}: came to {:?}", tally.0.lock().unwrap());
    assert!(done >= SCHEDULES_MIN, "only {done} schedules");
    for what in reached {
        assert!(tally.of(what) >= 50, "{what} happened {} times", tally.of(what));
    }
}

/// Time as the order of events; a tick is not a step.
#[derive(Clone, Default)]
struct Ticks(Arc<AtomicUsize>);

impl Ticks {
    fn now(&self) -> usize {
        self.0.fetch_add(1, Ordering::Relaxed)
    }
}

pub(crate) fn machine() -> FaultVfs {
    let vfs = FaultVfs::new();
    vfs.create_dir(Path::new("/s")).unwrap();
    vfs.sync_everything();
    vfs
}

pub(crate) fn open_with(vfs: &FaultVfs, clock: &Arc<ManualClock>, upkeep: Upkeep) -> Store {
    let builder = Store::builder().vfs(Arc::new(vfs.clone())).clock(clock.clone()).upkeep(upkeep).id_seed(3);
    builder.open("/s").unwrap()
}

pub(crate) fn open(vfs: &FaultVfs) -> Store {
    open_with(vfs, &Arc::new(ManualClock::new(1_700_000_000_000)), Upkeep::Manual)
}

pub(crate) fn text(value: Option<&[u8]>) -> String {
    String::from_utf8(value.unwrap().to_vec()).unwrap()
}

/// Reads on to the bound of the reader.
fn rest_of(reader: &mut Reader) -> Vec<(i64, String)> {
    reader
        .map(|record| {
            let record = record.unwrap();
            (record.offset().get(), text(record.value()))
        })
        .collect()
}

pub(crate) fn log_of(partition: &Partition, level: ReadLevel) -> Vec<(i64, String)> {
    rest_of(&mut partition.reader(partition.start(), &ReadOptions::new().level(level)).unwrap())
}

/// An append that was acknowledged.
struct Acked {
    called: usize,
    returned: usize,
    offset: i64,
    values: Vec<String>,
    durable: bool,
}

/// A read of everything up to a bound.
struct Seen {
    called: usize,
    returned: usize,
    level: ReadLevel,
    /// The end that was told before.
    end: i64,
    records: Vec<(i64, String)>,
}

#[test]
fn appends_that_roll_are_linearizable() {
    let reached = ["rolled while another appended", "three segments", "a read in between", "a tail in between"];
    explore("append x append x roll", &reached, |tally| {
        let vfs = machine();
        let store = open(&vfs);
        let config = TopicConfig::default().segment_bytes(256).index_interval_bytes(64);
        let partition = store.create_topic("t", config).unwrap().partition(0).unwrap();
        let ticks = Ticks::default();
        let writers: Vec<_> = [Durability::Sync, Durability::Os, Durability::Sync]
            .into_iter()
            .enumerate()
            .map(|(writer, durability)| {
                let (partition, ticks) = (partition.clone(), ticks.clone());
                thread::spawn(move || {
                    let options = AppendOptions::new().durability(durability);
                    let append = |index: usize| {
                        // Batches of one and of two records.
                        let values: Vec<String> =
                            (0..=index).map(|record| format!("{writer}-{index}-{record} {:.<30}", "")).collect();
                        let records: Vec<Record> = values.iter().map(|value| Record::of_value(value.clone())).collect();
                        let segments = partition.stats().segments;
                        let called = ticks.now();
                        let placed = partition.append_batch_with(&records, &options).unwrap();
                        let returned = ticks.now();
                        let durable = durability == Durability::Sync;
                        let durable_end = partition.durable_end();
                        assert!(!durable || durable_end >= placed.next_offset, "acknowledged before it was durable");
                        assert_eq!(placed.next_offset.get() - placed.offset.get(), values.len() as i64);
                        let rolled = partition.stats().segments > segments;
                        (Acked { called, returned, offset: placed.offset.get(), values, durable }, rolled)
                    };
                    (0..2).map(append).collect::<Vec<_>>()
                })
            })
            .collect();
        let reader = {
            let (partition, ticks) = (partition.clone(), ticks.clone());
            thread::spawn(move || {
                let mut seen = Vec::new();
                // One that stays at the end and reads on, and new ones beside it.
                let mut tail = partition.reader(0, &ReadOptions::new().level(ReadLevel::Latest)).unwrap();
                let mut tail_has = Vec::new();
                for level in [ReadLevel::Durable, ReadLevel::Latest] {
                    let called = ticks.now();
                    let end = if level == ReadLevel::Durable { partition.durable_end() } else { partition.end() };
                    let records = log_of(&partition, level);
                    seen.push(Seen { called, returned: ticks.now(), level, end: end.get(), records });
                    let called = ticks.now();
                    let end = partition.end().get();
                    tail_has.extend(rest_of(&mut tail));
                    seen.push(Seen {
                        called,
                        returned: ticks.now(),
                        level: ReadLevel::Latest,
                        end,
                        records: tail_has.clone(),
                    });
                    let durable_end = partition.durable_end();
                    assert!(durable_end <= partition.end(), "durable beyond the end");
                }
                seen
            })
        };
        let acked: Vec<(Acked, bool)> = writers.into_iter().flat_map(|writer| writer.join().unwrap()).collect();
        let seen = reader.join().unwrap();
        let log = log_of(&partition, ReadLevel::Latest);
        check_history(&acked.iter().map(|(acked, _)| acked).collect::<Vec<_>>(), &seen, &log);
        let overlaps =
            |one: &Acked| acked.iter().any(|(other, _)| other.called < one.returned && one.called < other.called);
        if acked.iter().any(|(one, rolled)| *rolled && overlaps(one)) {
            tally.count("rolled while another appended");
        }
        if partition.stats().segments > 2 {
            tally.count("three segments");
        }
        let in_between = |read: &Seen| (1..log.len()).contains(&read.records.len());
        if seen.iter().any(|read| read.level == ReadLevel::Durable && in_between(read)) {
            tally.count("a read in between");
        }
        if in_between(&seen[1]) {
            tally.count("a tail in between");
        }
        // What was promised to survive a power cut does.
        let after = open(&FaultVfs::from_image(&vfs.durable_image()));
        let after = log_of(&after.topic("t").unwrap().partition(0).unwrap(), ReadLevel::Latest);
        assert!(log.starts_with(&after), "{after:?} is no beginning of {log:?}");
        let promised = acked.iter().filter(|(one, _)| one.durable).map(|(one, _)| one.offset + one.values.len() as i64);
        assert!(promised.max() <= Some(after.len() as i64), "only {after:?} is left");
        store.close().unwrap();
    });
}

/// The log is one order of all appends that agrees with time, and every read saw a beginning of it.
fn check_history(acked: &[&Acked], seen: &[Seen], log: &[(i64, String)]) {
    let offsets: Vec<i64> = log.iter().map(|(offset, _)| *offset).collect();
    assert_eq!(offsets, (0..log.len() as i64).collect::<Vec<_>>(), "offsets without gaps, each once");
    assert_eq!(log.len(), acked.iter().map(|acked| acked.values.len()).sum::<usize>(), "as many as were appended");
    for one in acked {
        let there = log[one.offset as usize..].iter().take(one.values.len()).map(|(_, value)| value);
        assert!(there.eq(&one.values), "{:?} at {} in {log:?}", one.values, one.offset);
        for other in acked {
            assert!(one.returned > other.called || one.offset < other.offset, "{:?} < {:?}", other.values, one.values);
        }
    }
    for read in seen {
        assert!(log.starts_with(&read.records), "{:?} is no beginning of {log:?}", read.records);
        let end = read.records.len() as i64;
        assert!(end >= read.end, "{end} records were read of {} that were there", read.end);
        for one in acked {
            let must_be_seen = read.level == ReadLevel::Latest || one.durable;
            assert!(one.returned > read.called || !must_be_seen || one.offset < end, "{:?} was not seen", one.values);
            assert!(one.called < read.returned || one.offset >= end, "{:?} was seen too early", one.values);
        }
        for later in seen {
            let same = later.level == read.level;
            assert!(!same || later.called < read.returned || later.records.len() >= read.records.len(), "went back");
        }
    }
}

#[test]
fn a_failed_sync_reaches_all_who_wait_for_it() {
    let reached =
        ["one unknown", "several unknown", "one acknowledged", "some refused", "a flush failed", "no failure"];
    explore("group-commit waiters x sync error", &reached, |tally| {
        let vfs = machine();
        let store = open(&vfs);
        let partition =
            store.create_topic("t", TopicConfig::default().preallocate_bytes(4096)).unwrap().partition(0).unwrap();
        partition.append(Record::of_value("<first>")).unwrap();
        let failures = [SyncFailure::LostAtDrop, SyncFailure::Reverted, SyncFailure::OpenHandles];
        let failure = failures[thread_rng().gen_range(0..failures.len())];
        let call = thread_rng().gen_range(1..=6);
        vfs.inject(FaultPlan::new(Fault::Sync(errno::EIO, failure)).on(OpKind::SyncData).in_class("log").at_call(call));
        let ticks = Ticks::default();
        let writers: Vec<_> = (0..3)
            .map(|writer| {
                let (partition, ticks) = (partition.clone(), ticks.clone());
                thread::spawn(move || {
                    let mut outcomes = Vec::new();
                    for index in 0..2 {
                        let value = format!("<{writer}-{index}>");
                        let called = ticks.now();
                        let outcome = partition.append(Record::of_value(value.clone()));
                        outcomes.push((called, ticks.now(), value, outcome));
                    }
                    outcomes
                })
            })
            .collect();
        let flusher = {
            let partition = partition.clone();
            thread::spawn(move || {
                let end = partition.end();
                partition.flush().map(|durable_end| assert!(durable_end >= end, "flushed less than there was"))
            })
        };
        let outcomes: Vec<_> = writers.into_iter().flat_map(|writer| writer.join().unwrap()).collect();
        let flushed = flusher.join().unwrap();

        let name = "/s/t-0/00000000000000000000.log";
        let holds = |bytes: &[u8], value: &str| bytes.windows(value.len()).any(|part| part == value.as_bytes());
        let visible = vfs.image().read(name).unwrap();
        let on_disk = vfs.durable_image().read(name).unwrap();
        let has_failed = vfs.faults_hit() > 0;
        vfs.clear_faults();
        let first_error = outcomes.iter().filter(|outcome| outcome.3.is_err()).map(|outcome| outcome.1).min();
        let (mut acknowledged, mut unknown, mut refused) = (0, 0, 0);
        for (called, _, value, outcome) in &outcomes {
            match outcome {
                Ok(placed) => {
                    acknowledged += 1;
                    assert!(placed.offset < partition.durable_end(), "{value} is above the durable end");
                    assert!(holds(&on_disk, value), "{value} was acknowledged and is not on the disk");
                    assert!(first_error.is_none_or(|error| error > *called), "{value} was taken after the failure");
                }
                Err(Error::OutcomeUnknown { offset, source, .. }) => {
                    unknown += 1;
                    assert!(*offset >= partition.durable_end(), "{value} is durable and was called unknown");
                    assert_eq!(source.raw_os_error(), Some(errno::EIO));
                }
                Err(Error::Poisoned { .. }) => {
                    refused += 1;
                    assert!(!holds(&visible, value) && !holds(&on_disk, value), "{value} was refused and is there");
                }
                Err(error) => panic!("{value}: {error}"),
            }
        }
        assert_eq!(partition.end().get(), 1 + acknowledged + unknown, "neither more nor less than was written");
        let again = partition.append(Record::of_value("<again>"));
        if has_failed {
            assert!(unknown > 0 || flushed.is_err(), "nobody heard of the failure");
            assert!(matches!(again, Err(Error::Poisoned { .. })), "{again:?}");
            assert!(matches!(partition.flush(), Err(Error::SyncFailed { .. })));
            assert!(store.close().is_err());
        } else {
            assert!(unknown == 0 && refused == 0 && flushed.is_ok());
            again.unwrap();
            tally.count("no failure");
        }
        match flushed {
            Ok(()) => {}
            Err(Error::SyncFailed { durable_end, end, .. }) => {
                assert!(durable_end < end);
                tally.count("a flush failed");
            }
            Err(error) => panic!("flush: {error}"),
        }
        match unknown {
            0 => {}
            1 => tally.count("one unknown"),
            _ => tally.count("several unknown"),
        }
        if acknowledged > 0 && has_failed {
            tally.count("one acknowledged");
        }
        if refused > 0 {
            tally.count("some refused");
        }
    });
}

#[test]
fn an_append_beside_a_close_is_there_or_was_refused() {
    let reached = ["some refused", "none refused", "all refused", "by the thread", "by hand", "something was sealed"];
    explore("close x append x upkeep", &reached, |tally| {
        let vfs = machine();
        let clock = Arc::new(ManualClock::new(1_700_000_000_000));
        let has_thread = thread_rng().gen_bool(0.5);
        let store = open_with(&vfs, &clock, if has_thread { Upkeep::Thread } else { Upkeep::Manual });
        let partition =
            store.create_topic("t", TopicConfig::default().segment_bytes(256)).unwrap().partition(0).unwrap();
        // More than a segment holds, so that one waits to be sealed.
        let first = (0..3).map(|index| format!("first-{index}"));
        for value in first.clone() {
            partition.append(Record::of_value(value)).unwrap();
        }
        let writers: Vec<_> = [Durability::Sync, Durability::Os]
            .into_iter()
            .map(|durability| {
                let partition = partition.clone();
                thread::spawn(move || {
                    let options = AppendOptions::new().durability(durability);
                    let append = |index| {
                        let value = format!("{durability:?}-{index}");
                        let outcome = partition.append_batch_with(&[Record::of_value(value.clone())], &options);
                        (value, outcome)
                    };
                    (0..2).map(append).collect::<Vec<_>>()
                })
            })
            .collect();
        let upkeep = (!has_thread).then(|| {
            let (store, clock) = (store.clone(), clock.clone());
            thread::spawn(move || {
                // Long enough for every window, the recovery floor and unused space.
                clock.advance_ms(120_000);
                match store.tick() {
                    Ok(report) => report.sealed_segments > 0,
                    Err(Error::Closed { .. }) => false,
                    Err(error) => panic!("tick: {error}"),
                }
            })
        });
        let closer = {
            let (store, vfs, clock) = (store.clone(), vfs.clone(), clock.clone());
            thread::spawn(move || {
                store.close().unwrap();
                let disk = vfs.durable_image();
                // Whoever is still on its way out of the old store must leave the new one alone.
                let store = open_with(&vfs, &clock, Upkeep::Manual);
                assert!(!store.recovery_report().is_unclean(), "{:?}", store.recovery_report());
                let partition = store.topic("t").unwrap().partition(0).unwrap();
                let log = log_of(&partition, ReadLevel::Latest);
                partition.append(Record::of_value("after")).unwrap();
                store.close().unwrap();
                (log, disk)
            })
        };
        let (log, disk) = closer.join().unwrap();
        let outcomes: Vec<_> = writers.into_iter().flat_map(|writer| writer.join().unwrap()).collect();
        let has_sealed = upkeep.is_some_and(|upkeep| upkeep.join().unwrap());
        let mut acknowledged = 0;
        for (value, outcome) in &outcomes {
            match outcome {
                Ok(placed) => {
                    acknowledged += 1;
                    let there = log.get(placed.offset.get() as usize);
                    assert!(there.is_some_and(|(_, other)| other == value), "{value} is not in {log:?}");
                }
                Err(Error::Closed { .. }) => {
                    assert!(log.iter().all(|(_, other)| other != value), "{value} was refused and is there");
                }
                Err(error) => panic!("{value}: {error}"),
            }
        }
        assert!(first.eq(log.iter().take(3).map(|(_, value)| value.clone())), "{log:?}");
        assert_eq!(log.len(), 3 + acknowledged, "nothing but what was acknowledged: {log:?}");
        assert!(matches!(partition.append(Record::of_value("late")), Err(Error::Closed { .. })));
        assert!(matches!(partition.reader(0, &ReadOptions::new()), Err(Error::Closed { .. })));
        // What the first close left would have survived a power cut, and so did the second.
        for (disk, more) in [(disk, 0), (vfs.durable_image(), 1)] {
            let store = open(&FaultVfs::from_image(&disk));
            assert!(!store.recovery_report().is_unclean(), "{:?}", store.recovery_report());
            let again = log_of(&store.topic("t").unwrap().partition(0).unwrap(), ReadLevel::Latest);
            assert_eq!(again.len(), log.len() + more);
            assert!(again.starts_with(&log), "{again:?}");
        }
        tally.count(if has_thread { "by the thread" } else { "by hand" });
        tally.count(match acknowledged {
            0 => "all refused",
            4 => "none refused",
            _ => "some refused",
        });
        if has_sealed {
            tally.count("something was sealed");
        }
    });
}

/// Where the batches lie that two readers are the first to read.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Place {
    Active,
    Closed,
    /// Sealed while they are read.
    Closing,
    Sealed,
    /// Sealed, and opened anew: its seal is not in memory yet.
    Reopened,
}

#[test]
fn two_first_readers_of_a_batch_both_check_it() {
    let reached = [
        "healthy Active",
        "healthy Sealed",
        "healthy Reopened",
        "damaged Active",
        "damaged Sealed",
        "damaged Reopened",
    ];
    explore("two first readers", &reached, |tally| {
        const RECORDS: usize = 3;
        let place = [Place::Active, Place::Closed, Place::Closing, Place::Sealed, Place::Reopened]
            [thread_rng().gen_range(0..5)];
        let vfs = machine();
        let mut store = open(&vfs);
        // All batches are in one segment; another batch does not fit.
        let config = TopicConfig::default().segment_bytes(300).index_interval_bytes(64);
        let topic = store.create_topic("t", config).unwrap();
        let value = |offset: usize| format!("<record {offset}>");
        for offset in 0..RECORDS {
            topic.append(Record::of_value(value(offset))).unwrap();
        }
        if place != Place::Active {
            topic.append(Record::of_value("<of the next segment, and too long to be put into the first>")).unwrap();
        }
        let mut partition = topic.partition(0).unwrap();
        assert_eq!(partition.stats().segments, if place == Place::Active { 1 } else { 2 });
        if matches!(place, Place::Sealed | Place::Reopened) {
            assert_eq!(store.tick().unwrap().sealed_segments, 1);
        }
        if place == Place::Reopened {
            store.close().unwrap();
            drop((store, topic, partition));
            store = open(&vfs);
            partition = store.topic("t").unwrap().partition(0).unwrap();
        }
        let damaged = thread_rng().gen_bool(0.6).then(|| thread_rng().gen_range(0..RECORDS));
        if let Some(damaged) = damaged {
            let name = "/s/t-0/00000000000000000000.log";
            let (bytes, value) = (vfs.image().read(name).unwrap(), value(damaged));
            let at = bytes.windows(value.len()).position(|part| part == value.as_bytes()).unwrap();
            vfs.patch(name, at as u64, b"?").unwrap();
        }
        // A checksum of a whole sealed block stands for all of its batches.
        let is_sealed = matches!(place, Place::Sealed | Place::Reopened);
        let readers: Vec<_> = (0..2)
            .map(|_| {
                let partition = partition.clone();
                let from = thread_rng().gen_range(0..RECORDS);
                let at_random = thread_rng().gen_bool(0.3);
                thread::spawn(move || {
                    let mut outcomes = Vec::new();
                    if at_random {
                        outcomes
                            .push((from, partition.record(from as i64).map(|record| text(record.unwrap().value()))));
                    } else {
                        for record in partition.read_from(from as i64).take(RECORDS - from) {
                            let record = record.map(|record| text(record.value()));
                            let has_failed = record.is_err();
                            outcomes.push((from + outcomes.len(), record));
                            if has_failed {
                                break;
                            }
                        }
                    }
                    (at_random, from, outcomes)
                })
            })
            .collect();
        let sealer = (place == Place::Closing).then(|| {
            let store = store.clone();
            thread::spawn(move || store.tick().map(|report| report.sealed_segments))
        });
        for reader in readers {
            let (at_random, from, outcomes) = reader.join().unwrap();
            let mut has_failed = false;
            for (offset, outcome) in &outcomes {
                match outcome {
                    Ok(read) => {
                        assert_eq!(*read, value(*offset), "{place:?}, damaged {damaged:?}");
                        assert!(!is_sealed || damaged.is_none(), "the block of {offset} is damaged");
                    }
                    Err(Error::Corrupt { .. }) => {
                        assert!(damaged == Some(*offset) || (is_sealed && damaged.is_some()), "{place:?}: {outcome:?}");
                        has_failed = true;
                    }
                    Err(error) => panic!("{place:?}, {offset}: {error}"),
                }
            }
            let meets = damaged.is_some_and(|damaged| damaged == from || (damaged > from && !at_random));
            assert_eq!(
                has_failed,
                meets || (is_sealed && damaged.is_some()),
                "{place:?}, damaged {damaged:?}, from {from}"
            );
            assert!(has_failed || outcomes.len() == if at_random { 1 } else { RECORDS - from });
        }
        match sealer.map(|sealer| sealer.join().unwrap()) {
            None => {}
            Some(Ok(sealed)) => assert!(sealed == 1 && damaged.is_none(), "a seal speaks for a damaged batch"),
            Some(Err(Error::Corrupt { .. })) => assert!(damaged.is_some()),
            Some(Err(error)) => panic!("tick: {error}"),
        }
        tally.count(match (place, damaged) {
            (Place::Active, None) => "healthy Active",
            (Place::Closing, None) => "healthy Closing",
            (Place::Closed, None) => "healthy Closed",
            (Place::Sealed, None) => "healthy Sealed",
            (Place::Reopened, None) => "healthy Reopened",
            (Place::Active, Some(_)) => "damaged Active",
            (Place::Closing, Some(_)) => "damaged Closing",
            (Place::Closed, Some(_)) => "damaged Closed",
            (Place::Sealed, Some(_)) => "damaged Sealed",
            (Place::Reopened, Some(_)) => "damaged Reopened",
        });
    });
}
