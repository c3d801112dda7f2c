//! Compaction against a model: random scripts, and after each step what is read is compared with the list of all that was
//! appended and with the table that comes of it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use topiclog::clock::ManualClock;
use topiclog::io::{MemoryVfs, Vfs};
use topiclog::{
    AppendOptions, CleanupPolicy, Compression, Durability, Partition, ReadLevel, ReadOptions, Record, Store,
    StoreBuilder, TopicConfig, Upkeep,
};

use crate::support::simulate::{Random, seed};

const RUNS: u64 = 2000;
const OPS: usize = 40;
const T0: i64 = 1_700_000_000_000;
const ROOT: &str = "/m";

/// What was appended at an offset. Times rise with offsets.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Row {
    key: Vec<u8>,
    value: Option<Vec<u8>>,
    timestamp: i64,
}

/// What of the configuration the rules are about.
#[derive(Clone, Copy, Debug)]
struct Lags {
    min: i64,
    max: i64,
    delete_retention: i64,
    ratio: f64,
}

/// What all runs together came to, so that a test that tests nothing is noticed.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    steps: u64,
    appended: u64,
    rounds: u64,
    superseded_gone: u64,
    tombstones_gone: u64,
    kept_for_their_youth: u64,
    overdue_checked: u64,
    deleted: u64,
    reopened: u64,
}

struct Run {
    name: String,
    random: Random,
    vfs: Arc<MemoryVfs>,
    clock: Arc<ManualClock>,
    builder: StoreBuilder,
    store: Store,
    partition: Partition,
    now: i64,
    segment_bytes: u32,
    lags: Lags,
    /// Each round is over within the step that begins it, so that it is known what time and what settings it had.
    whole_rounds: bool,
    rows: Vec<Row>,
    start: i64,
    /// Offsets that were there after the last step.
    present: BTreeSet<i64>,
    /// The delete horizons that tombstones were seen with.
    horizons: BTreeMap<i64, i64>,
    tally: Tally,
}

impl Run {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let (vfs, clock) = (Arc::new(MemoryVfs::new()), Arc::new(ManualClock::new(T0)));
        let whole_rounds = random.below(3) > 0;
        let step_bytes = if whole_rounds { 1 << 30 } else { 1 + random.below(1500) as u64 };
        let memory_bytes = [1 << 20, 4000, 400, 0][random.below(4)];
        let builder = Store::builder().vfs(Arc::clone(&vfs) as _).clock(Arc::clone(&clock) as _);
        let builder = builder.upkeep(Upkeep::Manual).id_seed(seed);
        let builder = builder.compaction_step_bytes(step_bytes).compaction_memory_bytes(memory_bytes);
        let store = builder.clone().open(ROOT).unwrap();
        let segment_bytes = [600, 1000, 2000][random.below(3)];
        let lags = Lags { min: 0, max: i64::MAX, delete_retention: 1000, ratio: 0.0 };
        let partition = store.create_topic("t", config(segment_bytes, lags)).unwrap().partition(0).unwrap();
        Self {
            name: format!("TOPICLOG_SEED={seed}"),
            random,
            vfs,
            clock,
            builder,
            store,
            partition,
            now: T0,
            segment_bytes,
            lags,
            whole_rounds,
            rows: Vec::new(),
            start: 0,
            present: BTreeSet::new(),
            horizons: BTreeMap::new(),
            tally: Tally::default(),
        }
    }

    fn run(mut self) -> Tally {
        for _ in 0..1 + self.random.below(OPS) {
            self.step();
        }
        self.settle();
        // In the end all tombstones of old have their time and their turn.
        self.alter_to(Lags { min: 0, max: i64::MAX, delete_retention: 1000, ratio: 0.0 });
        for by in [1, 60_000, 60_000] {
            self.clock.advance_ms(by);
            self.now += i64::from(by);
            (0..10).for_each(|_| self.append(2));
            self.settle();
        }
        self.reopen();
        self.settle();
        let report = topiclog::verify_on(&*self.vfs, Path::new(ROOT)).unwrap();
        assert_eq!(report.damages().count(), 0, "{}: {report:?}", self.name);
        self.store.close().unwrap();
        self.tally
    }

    fn step(&mut self) {
        self.tally.steps += 1;
        match self.random.below(24) {
            0..4 => self.append(1),
            4..9 => {
                let count = 1 + self.random.below(4);
                self.append(count);
            }
            9..13 => (0..8).for_each(|_| self.append(2)),
            13..16 => drop(self.tick()),
            16..18 => self.settle(),
            18..21 => {
                let by = [1, 99, 999, 1000, 10_000, 60_001][self.random.below(6)];
                self.clock.advance_ms(by);
                self.now += i64::from(by);
            }
            21 => self.delete_records(),
            22 => self.reopen(),
            _ => self.alter(),
        }
    }

    fn append(&mut self, count: usize) {
        let first = self.rows.len();
        let rows = (first..first + count).map(|number| {
            // Keys come and go, so that some end with a tombstone.
            let key = format!("k{}", number / 20 + self.random.below(6)).into_bytes();
            let length = self.random.below(60);
            let value = (self.random.below(4) > 0).then(|| format!("{number} {}", "v".repeat(length)).into_bytes());
            Row { key, value, timestamp: self.now }
        });
        self.rows.extend(rows.collect::<Vec<_>>());
        let records: Vec<Record> = (self.rows[first..].iter())
            .map(|row| Record::new(Some(row.key.clone().into()), row.value.clone().map(Into::into)))
            .collect();
        let codecs: Vec<_> = Compression::ALL.into_iter().filter(|codec| codec.is_built_in()).collect();
        let options = AppendOptions::new().compression(codecs[self.random.below(codecs.len())]);
        let placed = self.partition.append_batch_with(&records, &options).unwrap();
        assert_eq!(placed.offset.get(), first as i64, "{}", self.name);
        self.present.extend(first as i64..self.rows.len() as i64);
        self.tally.appended += count as u64;
    }

    /// One step of upkeep; whether there was something to do.
    fn tick(&mut self) -> bool {
        let step = self.store.tick().unwrap();
        self.tally.rounds += step.compactions as u64;
        self.check();
        !step.is_idle()
    }

    fn settle(&mut self) {
        let mut ticks = 0;
        while self.tick() {
            ticks += 1;
            assert!(ticks < 20_000, "{}: upkeep never comes to rest", self.name);
        }
        self.check_nothing_is_overdue();
    }

    fn delete_records(&mut self) {
        let end = self.rows.len() as i64;
        let to = self.start + self.random.below(usize::try_from(end - self.start).unwrap() / 2 + 1) as i64;
        self.partition.delete_records(to).unwrap();
        self.start = to;
        self.present.retain(|&offset| offset >= to);
        self.tally.deleted += 1;
        self.check();
    }

    fn reopen(&mut self) {
        self.store.close().unwrap();
        self.store = self.builder.clone().open(ROOT).unwrap();
        let report = self.store.recovery_report();
        assert!(!report.is_unclean() && report.repairs().count() == 0, "{}: {report:?}", self.name);
        self.partition = self.store.topic("t").unwrap().partition(0).unwrap();
        let before = self.present.clone();
        self.check();
        assert_eq!(self.present, before, "{}: another log after it was opened again", self.name);
        self.tally.reopened += 1;
    }

    fn alter(&mut self) {
        let min = [0, 0, 500, 5000][self.random.below(4)];
        let max = [i64::MAX, 5000, 20_000][self.random.below(3)];
        let delete_retention = [0, 1, 1000, 30_000][self.random.below(4)];
        let ratio = [0.0, 0.0, 0.3, 0.7, 1.0][self.random.below(5)];
        self.alter_to(Lags { min, max, delete_retention, ratio });
    }

    fn alter_to(&mut self, lags: Lags) {
        self.lags = lags;
        self.store.alter_topic("t", config(self.segment_bytes, self.lags)).unwrap();
    }

    fn check(&mut self) {
        let name = &self.name;
        assert_eq!(self.partition.start().get(), self.start, "{name}");
        assert_eq!(self.partition.end().get(), self.rows.len() as i64, "{name}");
        let (seen, horizons) = self.read();
        // The table that comes of it is the one that came of all that was appended.
        let newest = newest(&self.rows, self.start);
        for (key, offset) in &newest {
            let is_tombstone = self.rows[*offset as usize].value.is_none();
            assert!(is_tombstone || seen.contains(offset), "{name}: {key:?} at {offset} is lost");
        }
        for &offset in &seen {
            assert!(self.present.contains(&offset), "{name}: {offset} came back");
        }
        for &offset in self.present.difference(&seen) {
            let row = &self.rows[offset as usize];
            let is_superseded = newest[&row.key[..]] > offset;
            // A tombstone whose time is over was compacted before, so that its age does not matter any more.
            if self.whole_rounds && is_superseded && row.value.is_some() {
                let youngest = self.now.saturating_sub(self.lags.min);
                assert!(self.lags.min == 0 || row.timestamp <= youngest, "{name}: {offset} went too young");
            }
            if is_superseded {
                self.tally.superseded_gone += 1;
                continue;
            }
            let horizon = self.horizons.get(&offset);
            assert!(horizon.is_some_and(|&horizon| self.now >= horizon), "{name}: {offset} went before {horizon:?}");
            assert!(self.partition.tombstone_floor().get() > offset, "{name}: nothing says that {offset} went");
            self.tally.tombstones_gone += 1;
        }
        for (&offset, &horizon) in &horizons {
            match self.horizons.get(&offset) {
                Some(&before) => assert_eq!(horizon, before, "{name}: the horizon of {offset} changed"),
                None if self.whole_rounds => {
                    assert_eq!(horizon, self.now + self.lags.delete_retention, "{name}: the horizon of {offset}");
                }
                None => assert!(horizon >= self.rows[offset as usize].timestamp, "{name}: the horizon of {offset}"),
            }
        }
        if self.lags.min > 0 {
            let is_young = |offset: &&i64| self.rows[**offset as usize].timestamp > self.now - self.lags.min;
            let superseded = |offset: &&i64| newest[&self.rows[**offset as usize].key[..]] > **offset;
            self.tally.kept_for_their_youth += seen.iter().filter(is_young).filter(superseded).count() as u64;
        }
        self.horizons.extend(horizons);
        self.present = seen;
    }

    /// The offsets that are there, each with what was appended, and the horizons of tombstones.
    fn read(&self) -> (BTreeSet<i64>, BTreeMap<i64, i64>) {
        let (mut seen, mut horizons) = (BTreeSet::new(), BTreeMap::new());
        let options = ReadOptions::new().level(ReadLevel::Latest);
        let mut reader = self.partition.reader(self.start, &options).unwrap();
        while let Some(batch) = reader.next_batch().unwrap() {
            for view in batch.records() {
                let view = view.unwrap();
                let row = &self.rows[view.offset() as usize];
                let same = view.key() == Some(&row.key[..])
                    && view.value() == row.value.as_deref()
                    && view.timestamp_ms() == row.timestamp;
                assert!(same, "{}: another record at {}", self.name, view.offset());
                assert!(seen.insert(view.offset()), "{}: {} twice", self.name, view.offset());
                if let (true, Some(horizon)) = (view.is_tombstone(), batch.header().delete_horizon_ms()) {
                    horizons.insert(view.offset(), horizon);
                }
            }
        }
        (seen, horizons)
    }

    /// In a closed segment nothing is left that a record older than `max.compaction.lag.ms` supersedes, unless younger
    /// records of that one's segment hold it back.
    fn check_nothing_is_overdue(&mut self) {
        if self.lags.max == i64::MAX {
            return;
        }
        let names = self.vfs.list(Path::new("/m/t-0")).unwrap();
        let mut bases: Vec<i64> =
            names.iter().filter_map(|entry| entry.name.strip_suffix(".log")?.parse().ok()).collect();
        bases.sort_unstable();
        let mut overdue: BTreeMap<&[u8], i64> = BTreeMap::new();
        for pair in bases.windows(2) {
            let (first, next) = (pair[0].max(self.start) as usize, pair[1].max(self.start) as usize);
            let Some(last) = next.checked_sub(1).filter(|last| *last >= first) else { continue };
            if self.lags.min > 0 && self.rows[last].timestamp > self.now - self.lags.min {
                break;
            }
            let old = (first..next).filter(|&at| self.rows[at].timestamp < self.now - self.lags.max);
            overdue.extend(old.map(|at| (&self.rows[at].key[..], at as i64)));
        }
        for offset in &self.present {
            if let Some(newer) = overdue.get(&self.rows[*offset as usize].key[..]) {
                assert!(newer <= offset, "{}: {offset} is still there beside {newer}", self.name);
                self.tally.overdue_checked += 1;
            }
        }
    }
}

/// The newest offset of each key from the log start on.
fn newest(rows: &[Row], start: i64) -> BTreeMap<&[u8], i64> {
    let from = usize::try_from(start).unwrap();
    rows.iter().enumerate().skip(from).map(|(offset, row)| (&row.key[..], offset as i64)).collect()
}

fn config(segment_bytes: u32, lags: Lags) -> TopicConfig {
    TopicConfig::default()
        .cleanup_policy(CleanupPolicy::Compact)
        .durability(Durability::Os)
        .preallocate_bytes(0)
        .segment_bytes(segment_bytes)
        .index_interval_bytes(200)
        .min_compaction_lag_ms(lags.min)
        .max_compaction_lag_ms(lags.max)
        .delete_retention_ms(lags.delete_retention)
        .min_cleanable_dirty_ratio(lags.ratio)
}

impl Tally {
    fn add(&mut self, more: Tally) {
        self.steps += more.steps;
        self.appended += more.appended;
        self.rounds += more.rounds;
        self.superseded_gone += more.superseded_gone;
        self.tombstones_gone += more.tombstones_gone;
        self.kept_for_their_youth += more.kept_for_their_youth;
        self.overdue_checked += more.overdue_checked;
        self.deleted += more.deleted;
        self.reopened += more.reopened;
    }
}

#[test]
fn a_compacted_log_is_what_the_model_says_after_every_step() {
    let seed = seed("compaction model", 1);
    let began = std::time::Instant::now();
    let mut tally = Tally::default();
    for run in 0..RUNS {
        tally.add(Run::new(seed.wrapping_add(run)).run());
    }
    let seconds = began.elapsed().as_secs_f32();
    tell!("compaction model: {RUNS} runs, {seconds:.1} s, {tally:?}");
    assert!(tally.rounds > RUNS && tally.superseded_gone > 20 * RUNS, "{tally:?}");
    assert!(tally.tombstones_gone > RUNS / 4 && tally.kept_for_their_youth > RUNS, "{tally:?}");
    assert!(tally.overdue_checked > RUNS && tally.deleted > RUNS / 4 && tally.reopened > RUNS, "{tally:?}");
}
