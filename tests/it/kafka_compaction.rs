//! What a real broker wrote, taken over and compacted: the same tables come of it, and Kafka's own dump tool finds
//! nothing to mind.
#![cfg(all(feature = "gzip", feature = "snappy", feature = "lz4", feature = "zstd"))]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use topiclog::clock::ManualClock;
use topiclog::{
    AdoptOptions, CleanupPolicy, Compression, Durability, Isolation, Partition, ReadLevel, ReadOptions, Record, Store,
    StoredRecord, TimestampType, TopicConfig, Upkeep, verify,
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

/// What was in a partition, and what may be left of it.
struct Before {
    partition: Partition,
    uncommitted: Rows,
    committed: Rows,
}

impl Before {
    fn of(partition: &Partition) -> Self {
        let [uncommitted, committed] = [Isolation::Uncommitted, Isolation::Committed].map(|i| rows(partition, i));
        Self { partition: partition.clone(), uncommitted, committed }
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
        let after = Self::of(&self.partition);
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

fn partitions(store: &Store) -> Vec<Partition> {
    let topics = store.topics().into_iter().map(|name| store.topic(name.as_str()).unwrap());
    topics.flat_map(|topic| topic.partitions().cloned().collect::<Vec<_>>()).collect()
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
    // At once, before the tombstones are over, when they are, and once more.
    for (number, advance) in [0, 86_399_999, 1, 86_400_000].into_iter().enumerate() {
        clock.advance_ms(advance);
        if number > 0 {
            before.iter_mut().for_each(Before::fill);
        }
        rounds += settle(&store).compactions;
        before.iter().for_each(|before| before.check(&format!("round {number}")));
        counts.push(count(&before));
        store.close().unwrap();
        let report = verify(root).unwrap();
        assert_eq!(report.damages().count(), 0, "{report:?}");
        store = open(root, &clock);
        assert!(!store.recovery_report().is_unclean());
        let repairs: Vec<_> = store.recovery_report().repairs().collect();
        assert!(repairs.is_empty(), "{repairs:?}");
        for (before, partition) in before.iter_mut().zip(partitions(&store)) {
            before.partition = partition;
            before.check("opened again");
        }
    }
    for (before, end) in before.iter().zip(ends) {
        assert_eq!(before.partition.end().get(), end.get() + 6, "{}", before.partition.id());
    }
    store.close().unwrap();
    tell!(
        "compacted kafka {state}: {} partitions, {rounds} rounds; records (tombstones among them) {counts:?}",
        before.len()
    );
    assert!(rounds >= 80, "{rounds}");
    let [first, settled, held, over, last] = counts[..] else { panic!("{counts:?}") };
    assert!(settled.0 < first.0 * 2 / 3 && settled.1 > 20, "{counts:?}");
    assert!(held.1 == settled.1 && over.1 < held.1 && last.1 <= over.1, "{counts:?}");
}

#[test]
fn what_a_broker_wrote_folds_to_the_same_tables_after_compaction() {
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
        for partition in partitions(&store) {
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
