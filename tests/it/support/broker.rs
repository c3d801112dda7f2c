//! Log directories as a broker lays them out, made batch by batch, then taken over and compacted.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use topiclog::clock::ManualClock;
use topiclog::io::{MemoryVfs, OpenMode, Vfs};
use topiclog::record::{BatchHeader, BatchSpec, BatchView, EndMarker, encode_batch, encode_end_marker};
use topiclog::{
    AdoptOptions, CleanupPolicy, Durability, Isolation, Partition, ReadLevel, ReadOptions, Record, RecordRef, Store,
    StoreBuilder, TickReport, TopicConfig, Upkeep,
};

use super::simulate::Random;

pub(crate) const T0: i64 = 1_700_000_000_000;
const ROOT: &str = "/data";
const DIRECTORY: &str = "/data/t-0";

/// Key and value.
pub(crate) type Pair<'a> = (Option<&'a [u8]>, Option<&'a [u8]>);

/// A record with a key and a value.
pub(crate) fn kv<'a>(key: &'a str, value: &'a str) -> Pair<'a> {
    (Some(key.as_bytes()), Some(value.as_bytes()))
}

/// A record that deletes a key.
pub(crate) fn gone(key: &str) -> Pair<'_> {
    (Some(key.as_bytes()), None)
}

/// The segments of one partition. Records are a millisecond apart: that at offset n is of the time T0 + n, unless another time
/// is said.
#[derive(Clone, Debug, Default)]
pub(crate) struct BrokerLog {
    segments: Vec<BrokerSegment>,
    leader_epoch: i32,
    time_ms: Option<i64>,
}

#[derive(Clone, Debug)]
struct BrokerSegment {
    base: i64,
    log: Vec<u8>,
    txn_index: Vec<u8>,
}

impl BrokerLog {
    /// An empty log whose first segment begins at an offset.
    pub(crate) fn new(base: i64) -> Self {
        Self::default().roll(base)
    }

    /// The next segment.
    pub(crate) fn roll(mut self, base: i64) -> Self {
        self.segments.push(BrokerSegment { base, log: Vec::new(), txn_index: Vec::new() });
        self
    }

    /// What comes next is of this leader epoch.
    #[cfg_attr(not(feature = "testing"), allow(dead_code, reason = "asked for by tests of that feature"))]
    pub(crate) fn led(mut self, leader_epoch: i32) -> Self {
        self.leader_epoch = leader_epoch;
        self
    }

    /// The records of batches that come next are all of this time.
    #[cfg_attr(not(feature = "testing"), allow(dead_code, reason = "asked for by tests of that feature"))]
    pub(crate) fn at_ms(mut self, time_ms: i64) -> Self {
        self.time_ms = Some(time_ms);
        self
    }

    fn last(&mut self) -> &mut BrokerSegment {
        self.segments.last_mut().unwrap()
    }

    /// Whatever bytes stand next.
    pub(crate) fn raw(mut self, bytes: &[u8]) -> Self {
        self.last().log.extend_from_slice(bytes);
        self
    }

    /// A batch without a producer.
    pub(crate) fn batch(self, base: i64, records: &[Pair<'_>]) -> Self {
        self.batch_as(&BatchSpec::new(base), records)
    }

    /// A batch of a transaction, whose sequence numbers are offsets.
    pub(crate) fn in_txn(self, base: i64, producer: i64, records: &[Pair<'_>]) -> Self {
        let producer = Some((producer, 0, i32::try_from(base).unwrap()));
        self.batch_as(&BatchSpec { producer, transactional: true, ..BatchSpec::new(base) }, records)
    }

    pub(crate) fn batch_as(mut self, spec: &BatchSpec, records: &[Pair<'_>]) -> Self {
        let stated = self.time_ms;
        let spec = &BatchSpec { leader_epoch: self.leader_epoch, ..*spec };
        let records = records.iter().zip(spec.base_offset..).map(|(&(key, value), offset)| {
            let time = stated.unwrap_or_else(|| T0 + offset);
            RecordRef::new(key, value).at_ms(time)
        });
        encode_batch(&mut self.last().log, spec, records).unwrap();
        self
    }

    pub(crate) fn commit(self, offset: i64, producer: i64) -> Self {
        self.end(offset, producer, true)
    }

    /// The marker, and its entry in the index of the segment; the transaction began at `first`.
    pub(crate) fn abort(mut self, offset: i64, producer: i64, first: i64) -> Self {
        let entry = [producer, first, offset, offset + 1].map(i64::to_be_bytes);
        self.last().txn_index.extend_from_slice(&[0, 0]);
        self.last().txn_index.extend(entry.iter().flatten());
        self.end(offset, producer, false)
    }

    fn end(mut self, base_offset: i64, producer_id: i64, commit: bool) -> Self {
        let marker = EndMarker {
            base_offset,
            leader_epoch: self.leader_epoch,
            timestamp_ms: T0 + base_offset,
            producer_id,
            producer_epoch: 0,
            commit,
            coordinator_epoch: 0,
        };
        encode_end_marker(&mut self.last().log, &marker).unwrap();
        self
    }

    /// Writes the directory. An index file is not needed: one that is missing is made anew.
    pub(crate) fn write(&self, vfs: &dyn Vfs) {
        self.write_to(vfs, ROOT);
    }

    /// The same below another root.
    pub(crate) fn write_to(&self, vfs: &dyn Vfs, root: &str) {
        let (root, directory) = (Path::new(root), Path::new(root).join("t-0"));
        for directory in [root, &directory] {
            vfs.create_dir(directory).ok();
        }
        for segment in &self.segments {
            put(vfs, &directory.join(file_name(segment.base, "log")), &segment.log);
            if !segment.txn_index.is_empty() {
                put(vfs, &directory.join(file_name(segment.base, "txnindex")), &segment.txn_index);
            }
        }
    }
}

fn file_name(base: i64, suffix: &str) -> String {
    format!("{base:020}.{suffix}")
}

/// A file of the partition.
pub(crate) fn path(base: i64, suffix: &str) -> PathBuf {
    Path::new(DIRECTORY).join(file_name(base, suffix))
}

pub(crate) fn put(vfs: &dyn Vfs, path: &Path, bytes: &[u8]) {
    let file = vfs.open(path, OpenMode::Create).unwrap();
    file.set_len(0).unwrap();
    assert_eq!(file.write_at(bytes, 0).unwrap(), bytes.len());
}

pub(crate) fn get(vfs: &dyn Vfs, path: &Path) -> Vec<u8> {
    let file = vfs.open(path, OpenMode::Read).unwrap();
    let mut bytes = vec![0; usize::try_from(file.len().unwrap()).unwrap()];
    let mut read = 0;
    while read < bytes.len() {
        read += file.read_at(&mut bytes[read..], read as u64).unwrap();
    }
    bytes
}

/// A batch as it lies in its file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stored {
    pub(crate) header: BatchHeader,
    pub(crate) bytes: Vec<u8>,
}

/// Offset, key and value of a record.
pub(crate) type Row = (i64, Option<Vec<u8>>, Option<Vec<u8>>);

/// A table made of a log: the last value of each key.
pub(crate) fn fold(rows: &[Row]) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut table = BTreeMap::new();
    for (_, key, value) in rows {
        match (key, value) {
            (Some(key), Some(value)) => drop(table.insert(key.clone(), value.clone())),
            (Some(key), None) => drop(table.remove(key)),
            (None, _) => {}
        }
    }
    table
}

/// What a compacted topic of these tests is unless it says otherwise: everything is worth a round.
pub(crate) fn config() -> TopicConfig {
    TopicConfig::default()
        .cleanup_policy(CleanupPolicy::Compact)
        .durability(Durability::Os)
        .preallocate_bytes(0)
        .segment_bytes(20_000)
        .delete_retention_ms(1000)
        .min_cleanable_dirty_ratio(0.0)
}

/// Takes over what lies below a root, of which the topic gets a configuration, and opens it.
pub(crate) fn take_over(builder: &StoreBuilder, root: &str, config: TopicConfig) -> Store {
    builder.adopt(root, &AdoptOptions::new().broker_is_gone(true).config("t", config)).unwrap();
    builder.clone().open(root).unwrap()
}

/// A directory that was taken over, in memory, under a clock that stands still.
pub(crate) struct Bench {
    pub(crate) vfs: Arc<MemoryVfs>,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) store: Store,
    builder: StoreBuilder,
}

impl Bench {
    pub(crate) fn adopt(log: &BrokerLog, config: TopicConfig) -> Self {
        Self::adopt_with(log, config, |builder| builder)
    }

    pub(crate) fn adopt_with(
        log: &BrokerLog,
        config: TopicConfig,
        change: impl Fn(StoreBuilder) -> StoreBuilder,
    ) -> Self {
        let vfs = Arc::new(MemoryVfs::new());
        log.write(&*vfs);
        Self::adopt_written(vfs, config, change)
    }

    /// Takes over what was written to the file system before.
    pub(crate) fn adopt_written(
        vfs: Arc<MemoryVfs>,
        config: TopicConfig,
        change: impl Fn(StoreBuilder) -> StoreBuilder,
    ) -> Self {
        let clock = Arc::new(ManualClock::new(T0 + 100_000));
        let builder = Store::builder().vfs(Arc::clone(&vfs) as _).clock(Arc::clone(&clock) as _);
        let builder = change(super::upkeep::with_or_without_key_index(builder.upkeep(Upkeep::Manual)));
        let store = take_over(&builder, ROOT, config);
        Self { vfs, clock, store, builder }
    }

    pub(crate) fn partition(&self) -> Partition {
        self.store.topic("t").unwrap().partition(0).unwrap()
    }

    /// Ticks until there is nothing to do.
    pub(crate) fn settle(&self) -> TickReport {
        super::upkeep::settle(&self.store)
    }

    /// Appends what makes another round worth while, and has it done.
    pub(crate) fn another_round(&self) -> TickReport {
        let bytes = self.store.topic("t").unwrap().config().get("segment.bytes").unwrap();
        let mut random = Random(7);
        // No codec makes it smaller.
        let value: Vec<u8> = (0..bytes.parse::<usize>().unwrap() * 6 / 10).map(|_| random.below(256) as u8).collect();
        for _ in 0..2 {
            self.partition().append(Record::keyed("filler", value.clone())).unwrap();
        }
        let done = self.settle();
        assert!(done.compactions > 0, "a filled segment is worth a round");
        done
    }

    pub(crate) fn rows(&self, isolation: Isolation) -> Vec<Row> {
        let partition = self.partition();
        let options = ReadOptions::new().level(ReadLevel::Latest).isolation(isolation);
        let reader = partition.reader(partition.start(), &options).unwrap();
        let owned = |bytes: Option<&[u8]>| bytes.map(<[u8]>::to_vec);
        let rows = reader.map(|record| {
            let record = record.unwrap();
            (record.offset().get(), owned(record.key()), owned(record.value()))
        });
        // What makes rounds worth while is no part of the story.
        rows.filter(|(_, key, _)| key.as_deref() != Some(b"filler")).collect()
    }

    /// The offsets of the records that a reader sees.
    pub(crate) fn offsets(&self, isolation: Isolation) -> Vec<i64> {
        self.rows(isolation).into_iter().map(|row| row.0).collect()
    }

    pub(crate) fn file_names(&self) -> Vec<String> {
        self.vfs.list(Path::new(DIRECTORY)).unwrap().into_iter().map(|entry| entry.name).collect()
    }

    /// Base offsets of the segments.
    pub(crate) fn bases(&self) -> Vec<i64> {
        let mut bases: Vec<i64> =
            (self.file_names().iter()).filter_map(|name| name.strip_suffix(".log")?.parse().ok()).collect();
        bases.sort_unstable();
        bases
    }

    /// All batches of the log files that begin below an offset.
    pub(crate) fn batches_below(&self, end: i64) -> Vec<Stored> {
        let mut found = Vec::new();
        for base in self.bases() {
            let file = get(&*self.vfs, &path(base, "log"));
            let mut rest = &file[..];
            while !rest.is_empty() {
                let view = BatchView::parse(rest).unwrap();
                let bytes = view.bytes().to_vec();
                rest = &rest[bytes.len()..];
                found.push(Stored { header: *view.header(), bytes });
            }
        }
        found.retain(|batch| batch.header.base_offset < end);
        found
    }

    /// The batch that begins at an offset, if there is one.
    pub(crate) fn batch_at(&self, base: i64) -> Option<Stored> {
        self.batches_below(i64::MAX).into_iter().find(|batch| batch.header.base_offset == base)
    }

    /// Offsets of the abort markers that the transaction indexes list.
    pub(crate) fn aborts(&self) -> Vec<i64> {
        let names = self.file_names();
        let bases = self.bases().into_iter().filter(|base| names.contains(&format!("{base:020}.txnindex")));
        let entries = bases.flat_map(|base| {
            let bytes = get(&*self.vfs, &path(base, "txnindex"));
            assert_eq!(bytes.len() % 34, 0);
            bytes.chunks(34).map(|entry| i64::from_be_bytes(entry[18..26].try_into().unwrap())).collect::<Vec<_>>()
        });
        entries.collect()
    }

    /// Nothing is damaged, nothing is left over, and after the next open everything is as it is now.
    pub(crate) fn check_sound(&mut self) {
        let seen = |bench: &Self| {
            let partition = bench.partition();
            let rows = [Isolation::Uncommitted, Isolation::Committed].map(|isolation| bench.rows(isolation));
            (rows, partition.start(), partition.end(), partition.last_stable_offset(), partition.clean_end())
        };
        let before = seen(self);
        self.store.close().unwrap();
        let report = topiclog::verify_on(&*self.vfs, Path::new(ROOT)).unwrap();
        assert_eq!(report.damages().count(), 0, "{report:?}");
        let unfinished = |name: &String| name.ends_with(".cleaned") || name.ends_with(".swap");
        assert!(!self.file_names().iter().any(unfinished), "{:?}", self.file_names());
        self.store = self.builder.clone().open(ROOT).unwrap();
        let report = self.store.recovery_report();
        assert!(!report.is_unclean() && report.repairs().count() == 0, "{report:?}");
        assert!(seen(self) == before, "the log is another one after it was opened again");
    }
}
