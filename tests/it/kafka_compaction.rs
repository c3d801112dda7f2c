//! What a real broker wrote, taken over and compacted: the same tables come of it, whoever asks for a key gets what is
//! committed, and Kafka's own dump tool finds nothing to mind.
#![cfg(all(feature = "gzip", feature = "snappy", feature = "lz4", feature = "zstd"))]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use topiclog::clock::ManualClock;
use topiclog::{
    AdoptOptions, CleanupPolicy, Compression, Durability, Isolation, Partition, ReadLevel, ReadOptions, Record,
    RecordRef, Store, StoredRecord, TimestampType, Topic, TopicConfig, Upkeep, verify,
};

use crate::interop::{check_dump, files, has_dump_tool, skip};
use crate::kafka_dirs::copy_of;
use crate::support::simulate::Random;
use crate::support::upkeep::settle;

/// After everything that the broker wrote.
const NOW: i64 = 1_796_000_000_000;
const SEGMENT_BYTES: u32 = 4000;

fn config() -> TopicConfig {
    TopicConfig::default()
        .cleanup_policy(CleanupPolicy::Compact)
        .durability(Durability::Os)
        .segment_bytes(SEGMENT_BYTES)
        .min_cleanable_dirty_ratio(0.0)
}

fn open(root: &Path, clock: &Arc<ManualClock>) -> Store {
    Store::builder().clock(Arc::clone(clock) as _).upkeep(Upkeep::Manual).open(root).unwrap()
}

/// All that can be seen of a record, by its offset.
type Rows = BTreeMap<i64, (Option<Vec<u8>>, Option<Vec<u8>>, i64, i32, Vec<(String, Option<Vec<u8>>)>)>;

fn row(record: &StoredRecord) -> (i64, <Rows as IntoIterator>::Item) {
    let owned = |bytes: Option<&[u8]>| bytes.map(<[u8]>::to_vec);
    let headers = record.headers().iter().map(|header| (header.name().into_owned(), owned(header.value()))).collect();
    let parts = (owned(record.key()), owned(record.value()), record.timestamp_ms(), record.leader_epoch(), headers);
    (record.offset().get(), (record.offset().get(), parts))
}

fn rows(partition: &Partition, isolation: Isolation) -> Rows {
    let options = ReadOptions::new().level(ReadLevel::Latest).isolation(isolation);
    let reader = partition.reader(partition.start(), &options).unwrap();
    reader.map(|record| row(&record.unwrap()).1).collect()
}

/// The newest record of each key, a tombstone as well.
fn newest<'a>(rows: impl Iterator<Item = Of<'a>>) -> BTreeMap<&'a [u8], Of<'a>> {
    rows.filter_map(|row| Some((row.1.0.as_deref()?, row))).collect()
}

type Of<'a> = <&'a Rows as IntoIterator>::Item;

fn fold(rows: &Rows) -> BTreeMap<&[u8], &[u8]> {
    let mut table = BTreeMap::new();
    for (key, value, ..) in rows.values() {
        match (key.as_deref(), value.as_deref()) {
            (Some(key), Some(value)) => drop(table.insert(key, value)),
            (Some(key), None) => drop(table.remove(key)),
            (None, _) => {}
        }
    }
    table
}

/// Offsets of records in transactions that nobody has ended.
fn undecided(partition: &Partition) -> BTreeSet<i64> {
    let options = ReadOptions::new().level(ReadLevel::Latest).isolation(Isolation::Uncommitted);
    let mut reader = partition.reader(partition.last_stable_offset(), &options).unwrap();
    let mut offsets = BTreeSet::new();
    while let Some(batch) = reader.next_batch().unwrap() {
        if batch.header().is_transactional() {
            offsets.extend(batch.base_offset().get()..batch.next_offset().get());
        }
    }
    offsets
}

/// How many keys were asked for, and of how many a wrong record lay nearest at hand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Asked {
    keys: usize,
    /// Kafka's partitioner leads to them as well.
    routed: usize,
    /// An aborted transaction wrote them last.
    aborted_last: usize,
    /// A transaction that is open wrote them last.
    undecided_last: usize,
    /// Their newest record is a tombstone.
    deleted: usize,
}

impl std::ops::Add for Asked {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            keys: self.keys + other.keys,
            routed: self.routed + other.routed,
            aborted_last: self.aborted_last + other.aborted_last,
            undecided_last: self.undecided_last + other.undecided_last,
            deleted: self.deleted + other.deleted,
        }
    }
}

/// What was in a partition, and what may be left of it.
struct Before {
    topic: Topic,
    partition: Partition,
    uncommitted: Rows,
    committed: Rows,
    undecided: BTreeSet<i64>,
}

impl Before {
    fn of((topic, partition): &(Topic, Partition)) -> Self {
        let [uncommitted, committed] = [Isolation::Uncommitted, Isolation::Committed].map(|i| rows(partition, i));
        let (topic, partition, undecided) = (topic.clone(), partition.clone(), undecided(partition));
        Self { topic, partition, uncommitted, committed, undecided }
    }

    /// Records that a transaction did not take back and that are in none that is open, also those behind an open one.
    fn decided(&self) -> impl Iterator<Item = Of<'_>> {
        let stable = self.partition.last_stable_offset().get();
        let is_decided = move |offset: &i64| {
            if *offset < stable { self.committed.contains_key(offset) } else { !self.undecided.contains(offset) }
        };
        self.uncommitted.iter().filter(move |(offset, _)| is_decided(offset))
    }

    /// Asks for every key that was ever written, and for all at once.
    fn check_answers(&self, what: &str) -> Asked {
        let (id, number) = (self.partition.id(), self.partition.id().partition);
        let (table, written) = (newest(self.decided()), newest(self.uncommitted.iter()));
        let live = |of: &Of<'_>| of.1.1.is_some();
        let mut asked = Asked::default();
        for (key, last) in &written {
            let expected = table.get(key).copied().filter(live).map(|(offset, row)| (*offset, row.clone()));
            let check = |found: Option<StoredRecord>, how: &str| {
                let found = found.map(|record| row(&record).1);
                let key = String::from_utf8_lossy(key);
                assert!(found == expected, "{id} {what}: {how} {key:?} found {found:?}, not {expected:?}");
            };
            check(self.topic.get_in(number, key).unwrap(), "get_in");
            asked.keys += 1;
            if self.topic.partition_for(RecordRef::new(Some(key), None)) == number {
                check(self.topic.get(key).unwrap(), "get");
                assert_eq!(self.topic.contains(key).unwrap(), expected.is_some(), "{id} {what}: contains {key:?}");
                asked.routed += 1;
            }
            let is_decided = table.get(key).is_some_and(|newest| newest.0 == last.0);
            let is_undecided = self.undecided.contains(last.0);
            asked.aborted_last += usize::from(!is_decided && !is_undecided);
            asked.undecided_last += usize::from(is_undecided);
            asked.deleted += usize::from(table.get(key).is_some_and(|newest| !live(newest)));
        }
        let latest = self.topic.latest(number).unwrap();
        assert_eq!(latest.position(), self.partition.end(), "{id} {what}");
        let listed: Vec<_> = latest.map(|record| row(&record.unwrap()).1).collect();
        let expected: Rows = table.into_values().filter(live).map(|(offset, row)| (*offset, row.clone())).collect();
        assert!(listed.into_iter().eq(expected), "{id} {what}: the listing is another table");
        asked
    }

    /// Appends what makes another round worth while.
    fn fill(&mut self) {
        let mut random = Random(3);
        let value: Vec<u8> = (0..SEGMENT_BYTES * 6 / 10).map(|_| random.below(256) as u8).collect();
        for _ in 0..2 {
            let placed = self.partition.append(Record::keyed("filler", value.clone())).unwrap();
            let stored = rows(&self.partition, Isolation::Uncommitted).remove(&placed.offset.get()).unwrap();
            self.uncommitted.insert(placed.offset.get(), stored.clone());
            if self.partition.last_stable_offset() > placed.offset {
                self.committed.insert(placed.offset.get(), stored);
            }
        }
    }

    fn check(&self, what: &str) {
        let id = self.partition.id();
        let after = Self::of(&(self.topic.clone(), self.partition.clone()));
        for (kind, before, after) in
            [("uncommitted", &self.uncommitted, &after.uncommitted), ("committed", &self.committed, &after.committed)]
        {
            let same = after.iter().all(|(offset, row)| before.get(offset) == Some(row));
            assert!(same, "{id} {kind} {what}: a record is not what it was at its offset");
        }
        assert!(fold(&after.committed) == fold(&self.committed), "{id} {what}: another table");
        assert_eq!(after.partition.start(), self.partition.start(), "{id} {what}");
        let clean_end = self.partition.clean_end().get();
        let clean: Vec<_> = after.uncommitted.range(..clean_end).map(|(_, row)| row.0.as_deref()).collect();
        assert!(!clean.contains(&None), "{id} {what}: a record without a key was kept");
        let mut keys = clean.clone();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), clean.len(), "{id} {what}: a superseded or an aborted record was kept");
    }
}

/// Records seen, by a tombstone or not.
fn count(partitions: &[Before]) -> (usize, usize) {
    let all = partitions.iter().map(|before| rows(&before.partition, Isolation::Uncommitted));
    let all: Vec<_> = all.flat_map(BTreeMap::into_values).collect();
    (all.len(), all.iter().filter(|row| row.0.is_some() && row.1.is_none()).count())
}

fn partitions(store: &Store) -> Vec<(Topic, Partition)> {
    let topics = store.topics().into_iter().map(|name| store.topic(name.as_str()).unwrap());
    let with_topic = |topic: Topic| topic.partitions().map(|found| (topic.clone(), found.clone())).collect::<Vec<_>>();
    topics.flat_map(with_topic).collect()
}

/// Asks every partition for all of its keys.
fn ask(partitions: &[Before], what: &str) -> Asked {
    partitions.iter().map(|before| before.check_answers(what)).fold(Asked::default(), |all, asked| all + asked)
}

/// Takes a fixture over as if every topic in it were compacted, and compacts it through the time of its tombstones.
fn check_fixture(state: &str, root: &Path) {
    let clock = Arc::new(ManualClock::new(NOW));
    let names: Vec<String> = {
        let reader = Store::builder().read_only(true).upkeep(Upkeep::Manual).open(root).unwrap();
        reader.topics().into_iter().map(|name| name.as_str().to_owned()).collect()
    };
    let options = AdoptOptions::new().broker_is_gone(true);
    let options = names.iter().fold(options, |options, name| options.config(name.clone(), config()));
    Store::adopt(root, &options).unwrap();
    let mut store = open(root, &clock);
    let mut before: Vec<Before> = partitions(&store).iter().map(Before::of).collect();
    let ends: Vec<_> = before.iter().map(|before| before.partition.end()).collect();
    let mut counts = vec![count(&before)];
    let mut rounds = 0;
    let adopted = ask(&before, "taken over");
    // At once, before the tombstones are over, when they are, and once more.
    for (number, advance) in [0, 86_399_999, 1, 86_400_000].into_iter().enumerate() {
        clock.advance_ms(advance);
        if number > 0 {
            before.iter_mut().for_each(Before::fill);
        }
        let asked = ask(&before, &format!("before round {number}"));
        rounds += settle(&store).compactions;
        before.iter().for_each(|before| before.check(&format!("round {number}")));
        assert_eq!(ask(&before, &format!("after round {number}")), asked);
        counts.push(count(&before));
        store.close().unwrap();
        let report = verify(root).unwrap();
        assert_eq!(report.damages().count(), 0, "{report:?}");
        store = open(root, &clock);
        assert!(!store.recovery_report().is_unclean());
        let repairs: Vec<_> = store.recovery_report().repairs().collect();
        assert!(repairs.is_empty(), "{repairs:?}");
        for (before, (topic, partition)) in before.iter_mut().zip(partitions(&store)) {
            (before.topic, before.partition) = (topic, partition);
            before.check("opened again");
        }
        assert_eq!(ask(&before, "opened again"), asked);
    }
    for (before, end) in before.iter().zip(ends) {
        assert_eq!(before.partition.end().get(), end.get() + 6, "{}", before.partition.id());
    }
    store.close().unwrap();
    tell!(
        "compacted kafka {state}: {} partitions, {rounds} rounds; records (tombstones among them) {counts:?}; {adopted:?}",
        before.len()
    );
    assert!(rounds >= 80, "{rounds}");
    assert!(adopted.aborted_last >= 16 && adopted.deleted >= 20 && adopted.routed >= 500, "{adopted:?}");
    assert_eq!(adopted.undecided_last > 0, state == "killed", "{adopted:?}");
    let [first, settled, held, over, last] = counts[..] else { panic!("{counts:?}") };
    assert!(settled.0 < first.0 * 2 / 3 && settled.1 > 20, "{counts:?}");
    assert!(held.1 == settled.1 && over.1 < held.1 && last.1 <= over.1, "{counts:?}");
}

#[test]
fn what_a_broker_wrote_folds_to_the_same_tables_after_compaction_and_answers_by_key() {
    for state in ["clean", "killed"] {
        let (_guard, root) = copy_of(state);
        check_fixture(state, &root);
    }
}

/// Topics of every codec and both kinds of time, with tombstones, some rounds apart.
fn write_compacted(root: &Path) {
    let clock = Arc::new(ManualClock::new(NOW));
    let store = open(root, &clock);
    let mut random = Random(5);
    for codec in Compression::ALL {
        for time in [TimestampType::CreateTime, TimestampType::LogAppendTime] {
            let config =
                config().segment_bytes(16_000).index_interval_bytes(300).compression(codec).timestamp_type(time);
            store.create_topic(&format!("{codec}.{time}"), config).unwrap();
        }
    }
    for _ in 0..3 {
        for (_, partition) in partitions(&store) {
            for _ in 0..150 {
                let records: Vec<Record> = (0..1 + random.below(12))
                    .map(|_| {
                        let key = format!("key-{}", random.below(400));
                        let value = format!("value-{}-", random.below(1 << 30)).repeat(random.below(12));
                        let value = (random.below(8) > 0).then(|| value.into());
                        let record = Record::new(Some(key.into()), value).timestamp_ms(NOW - random.below(5000) as i64);
                        if random.below(4) == 0 { record.header("h", "x") } else { record }
                    })
                    .collect();
                partition.append_batch(&records).unwrap();
            }
        }
        let before: Vec<Before> = partitions(&store).iter().map(Before::of).collect();
        assert!(settle(&store).compactions >= 10);
        before.iter().for_each(|before| before.check("written here"));
        ask(&before, "written here");
        clock.advance_ms(86_400_000);
    }
    store.close().unwrap();
}

#[test]
fn kafkas_dump_tool_minds_nothing_that_was_compacted() {
    if !has_dump_tool() {
        return skip("kafkas_dump_tool_minds_nothing_that_was_compacted", "run tests/interop/install.sh first");
    }
    let directory = tempfile::tempdir().unwrap();
    let written = directory.path().join("written");
    write_compacted(&written);
    check_dumped("written here", &written, 1000);
    for state in ["clean", "killed"] {
        let (_guard, root) = copy_of(state);
        check_fixture(state, &root);
        check_dumped(state, &root, 150);
    }
}

/// The tool sees as many batches as there are, and every one of them is right.
fn check_dumped(what: &str, root: &Path, least: usize) {
    let report = verify(root).unwrap();
    let batches = check_dump(root);
    tell!("dump tool, compacted, {what}: {batches} batches in {} files", files(root).len());
    assert_eq!(batches as u64, report.batches, "{what}");
    assert!(batches >= least, "{what}: {batches}");
}
