//! What is done to a store, and how the oracle follows it.

use std::path::Path;
use std::sync::Arc;

use topiclog::clock::ManualClock;
use topiclog::io::{FaultVfs, Image, LockKind, Vfs, VfsLock};
use topiclog::{
    AppendOptions, Durability, Error, Partition, ReadLevel, ReadOptions, Record, Store, TopicConfig, Upkeep,
};

use super::oracle::{Claim, LogModel, Model, Presence, Rec, TopicModel};

pub(crate) const ROOT: &str = "/s";
const T0: i64 = 1_700_000_000_000;

/// One step of a script.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Op {
    Small,
    Large,
    Batch,
    /// A small append at another level than the topic's.
    Other,
    Flush,
    Reopen,
    Kill,
    Create,
    Delete,
    Alter,
    Tick,
    /// Reads everything, here and in a read-only store beside.
    Read,
    /// A kill, and a reader that is there when the store is opened again: nothing may be repaired in place under it. Not
    /// one of the alphabet.
    KillWatched,
}

pub(crate) const ALPHABET: [Op; 12] = [
    Op::Small,
    Op::Large,
    Op::Batch,
    Op::Other,
    Op::Flush,
    Op::Reopen,
    Op::Kill,
    Op::Create,
    Op::Delete,
    Op::Alter,
    Op::Tick,
    Op::Read,
];

/// Which topic the script runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flavour {
    Sync,
    Os,
    Interval,
}

impl Flavour {
    pub(crate) const ALL: [Flavour; 3] = [Flavour::Sync, Flavour::Os, Flavour::Interval];

    fn level(self) -> Durability {
        match self {
            Flavour::Sync => Durability::Sync,
            Flavour::Os => Durability::Os,
            Flavour::Interval => Durability::Interval { bytes: 4096, ms: 50 },
        }
    }

    fn config(self) -> TopicConfig {
        TopicConfig::default()
            .durability(self.level())
            .segment_bytes(2048)
            .index_interval_bytes(if self == Flavour::Os { 1 } else { 100 })
            .batch_bytes_max(2048)
            .max_unsynced_bytes(2048)
            .preallocate_bytes(1024)
    }
}

/// Runs a script on a simulated disk and follows it with the oracle.
pub(crate) struct Runner {
    pub(crate) disk: FaultVfs,
    pub(crate) model: Model,
    pub(crate) store: Option<Store>,
    pub(crate) problems: Vec<String>,
    clock: Arc<ManualClock>,
    flavour: Flavour,
    counter: u64,
    /// A sync failed: until the next open the cache may show less than was acknowledged.
    pub(crate) is_lossy: bool,
}

pub(crate) fn open(disk: &FaultVfs, clock: &Arc<ManualClock>, read_only: bool) -> topiclog::Result<Store> {
    let clock: Arc<ManualClock> = Arc::clone(clock);
    let builder = Store::builder().vfs(Arc::new(disk.clone())).clock(clock).upkeep(Upkeep::Manual).id_seed(7);
    builder.open_files_max(4).read_only(read_only).open(ROOT)
}

pub(crate) fn hold_follow(disk: &FaultVfs) -> Option<Box<dyn VfsLock>> {
    disk.lock(&Path::new(ROOT).join("topiclog.follow"), LockKind::Shared).ok()
}

/// All records, with offsets, as one partition shows them.
pub(crate) fn read_all(partition: &Partition, level: ReadLevel) -> topiclog::Result<Vec<(i64, Rec)>> {
    let fetched = partition.read_with(0, usize::MAX, usize::MAX, &ReadOptions::new().level(level))?;
    let own = |bytes: Option<&[u8]>| bytes.unwrap_or_default().to_vec();
    let record = |stored: &topiclog::StoredRecord| Rec {
        key: own(stored.key()),
        value: own(stored.value()),
        timestamp: stored.timestamp_ms(),
    };
    Ok(fetched.records.iter().map(|stored| (stored.offset().get(), record(stored))).collect())
}

/// What a store shows of the topics that can be read.
fn everything(store: &Store) -> Vec<(String, Vec<(i64, Rec)>)> {
    let read = |name: &str| read_all(&store.topic(name)?.partition(0)?, ReadLevel::Latest);
    let names = store.topics().into_iter().map(|name| name.to_string());
    names.filter_map(|name| read(&name).ok().map(|records| (name, records))).collect()
}

impl Runner {
    /// On a disk that holds nothing but what the image has.
    pub(crate) fn new(image: &Image, model: &Model, flavour: Flavour, counter: u64) -> Self {
        let disk = FaultVfs::from_image(image);
        let clock = Arc::new(ManualClock::new(T0));
        Self { disk, model: model.clone(), store: None, problems: Vec::new(), clock, flavour, counter, is_lossy: false }
    }

    pub(crate) fn counter(&self) -> u64 {
        self.counter
    }

    pub(crate) fn apply(&mut self, op: Op) {
        self.counter += 1;
        if self.store.is_none() {
            self.reopen();
        }
        match op {
            Op::Small => self.append(1, 20, None),
            Op::Large => self.append(1, 1300, None),
            Op::Batch => self.append(3, 60, None),
            Op::Other => {
                let level = if self.flavour == Flavour::Sync { Durability::Os } else { Durability::Sync };
                self.append(1, 20, Some(level));
            }
            Op::Flush => self.flush(),
            Op::Reopen => self.close_and_reopen(),
            Op::Kill => {
                self.disk.kill();
                self.store = None;
                let held = self.counter.is_multiple_of(2).then(|| hold_follow(&self.disk));
                self.reopen();
                drop(held);
            }
            Op::KillWatched => self.kill_watched(),
            Op::Create => self.create("u"),
            Op::Delete => self.delete("u"),
            Op::Alter => self.alter(),
            Op::Tick => {
                self.clock.advance_ms(6000);
                let Some(store) = &self.store else { return };
                self.is_lossy |= store.tick().is_err();
            }
            Op::Read => self.read(),
        }
        self.note_durable();
    }

    fn kill_watched(&mut self) {
        self.disk.kill();
        self.store = None;
        let watcher = open(&self.disk, &self.clock, true).ok();
        let shown = watcher.as_ref().map(everything).unwrap_or_default();
        self.reopen();
        for (name, before) in shown {
            let Some(watcher) = &watcher else { return };
            let Ok(partition) = watcher.topic(&name).and_then(|topic| topic.partition(0)) else { continue };
            if read_all(&partition, ReadLevel::Latest).is_ok_and(|now| now != before) {
                self.problems.push(format!("{name}: what a reader sees was changed under it"));
            }
        }
    }

    fn partition(&self, name: &str) -> Option<Partition> {
        self.store.as_ref()?.topic(name).ok()?.partition(0).ok()
    }

    fn append(&mut self, count: usize, bytes: usize, level: Option<Durability>) {
        let second = self.counter.is_multiple_of(2) && self.partition("u").is_some();
        let name = if second { "u" } else { "t" };
        let Some(partition) = self.partition(name) else { return };
        let records: Vec<Rec> = (0..count as u64)
            .map(|index| {
                let number = self.counter * 10 + index;
                let mut value = format!("{number}-").into_bytes();
                let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
                while value.len() < bytes {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    value.push((state >> 56) as u8);
                }
                let timestamp = T0 + (number * 7919 % 1000) as i64;
                Rec { key: format!("k{}", number % 5).into_bytes(), value, timestamp }
            })
            .collect();
        let batch: Vec<Record> = records
            .iter()
            .map(|rec| Record::keyed(rec.key.clone(), rec.value.clone()).timestamp_ms(rec.timestamp))
            .collect();
        let options = level.map_or(AppendOptions::new(), |level| AppendOptions::new().durability(level));
        let result = partition.append_batch_with(&batch, &options);
        let of_topic =
            self.store.as_ref().and_then(|store| store.topic(name).ok()?.config().get("topiclog.durability"));
        let is_sync = level.map_or(of_topic.as_deref() == Some("sync"), |level| level == Durability::Sync);
        let Some(topic) = self.model.topics.get_mut(name) else { return };
        match result {
            Ok(metadata) => {
                if metadata.offset.get() != topic.log.end() {
                    self.problems.push(format!("appended at {}, expected {}", metadata.offset, topic.log.end()));
                }
                topic.log.push(records, if is_sync { Claim::Synced } else { Claim::Acked });
            }
            Err(Error::OutcomeUnknown { offset, .. }) => {
                if offset.get() != topic.log.end() {
                    self.problems.push(format!("unknown at {offset}, expected {}", topic.log.end()));
                }
                topic.log.push(records, Claim::Maybe);
                self.is_lossy = true;
                self.check_poisoned(&partition);
            }
            Err(Error::SyncFailed { .. }) => {
                self.is_lossy = true;
                self.check_poisoned(&partition);
            }
            Err(_) => {}
        }
    }

    /// After a failed sync the writer refuses everything.
    fn check_poisoned(&mut self, partition: &Partition) {
        let result = partition.append(Record::of_value("after a failure"));
        if !matches!(result, Err(Error::Poisoned { .. })) {
            self.problems.push(format!("a poisoned partition answered {result:?}"));
        }
    }

    fn flush(&mut self) {
        for name in ["t", "u"] {
            let Some(partition) = self.partition(name) else { continue };
            match partition.flush() {
                Ok(end) => {
                    if let Some(topic) = self.model.topics.get_mut(name) {
                        topic.log.synced_to(end.get());
                    }
                }
                Err(_) => {
                    self.is_lossy = true;
                    self.check_poisoned(&partition);
                }
            }
        }
    }

    fn note_durable(&mut self) {
        let Some(store) = &self.store else { return };
        for (name, topic) in &mut self.model.topics {
            let Ok(handle) = store.topic(name) else { continue };
            let end = handle.partition(0).map_or(0, |partition| partition.durable_end().get());
            topic.log.synced_to(end);
        }
    }

    fn close_and_reopen(&mut self) {
        if let Some(store) = self.store.take() {
            match store.close() {
                Ok(()) => {
                    let known = self.model.topics.values_mut().filter(|topic| topic.presence == Presence::Sure);
                    known.for_each(|topic| topic.log.synced_to(i64::MAX));
                }
                Err(_) => self.is_lossy = true,
            }
        }
        self.reopen();
    }

    /// Opens and compares; what is found is what holds from then on.
    pub(crate) fn reopen(&mut self) {
        self.store = None;
        let store = match open(&self.disk, &self.clock, false) {
            Ok(store) => store,
            Err(error) => {
                // A sync that fails while the log is recovered may lose what was in the page cache alone.
                self.is_lossy |= matches!(error, Error::Io { op: "sync", .. });
                return;
            }
        };
        let survives = if self.is_lossy { Claim::Synced } else { Claim::Acked };
        let mut settled = settle(&store, &self.model, survives);
        if settled.is_err() && self.disk.faults_hit() > 0 {
            // A fault may hit this very look; what is there has to be right once it is over.
            settled = settle(&store, &self.model, survives).or_else(|_| {
                self.disk.clear_faults();
                settle(&store, &self.model, survives)
            });
        }
        match settled {
            Ok(model) => self.model = model,
            Err(problem) => self.problems.push(format!("after a reopen: {problem}")),
        }
        if self.model.topics.is_empty() && store.create_topic("t", self.flavour.config()).is_ok() {
            self.model.topics.insert("t".into(), TopicModel { presence: Presence::Sure, log: LogModel::default() });
        }
        self.is_lossy = false;
        self.store = Some(store);
    }

    fn create(&mut self, name: &str) {
        let Some(store) = &self.store else { return };
        let result = store.create_topic(name, self.flavour.config());
        let empty = |presence| TopicModel { presence, log: LogModel::default() };
        match result {
            Ok(_) => drop(self.model.topics.insert(name.into(), empty(Presence::Sure))),
            Err(Error::TopicExists { .. }) if self.model.topics.contains_key(name) => {}
            Err(_) => {
                let topic = self.model.topics.entry(name.into()).or_insert_with(|| empty(Presence::Maybe));
                if topic.presence == Presence::Maybe {
                    // Perhaps it was deleted before, and perhaps it was made anew now.
                    topic.log.doubt();
                }
            }
        }
    }

    fn delete(&mut self, name: &str) {
        let Some(store) = &self.store else { return };
        match store.delete_topic(name) {
            Ok(()) => drop(self.model.topics.remove(name)),
            Err(Error::UnknownTopic { .. }) => {}
            Err(_) => {
                if let Some(topic) = self.model.topics.get_mut(name) {
                    topic.presence = Presence::Maybe;
                }
            }
        }
    }

    fn alter(&mut self) {
        let Some(store) = &self.store else { return };
        let Ok(topic) = store.topic("t") else { return };
        let config = topic.config();
        let bytes = if config.get("segment.bytes").as_deref() == Some("2048") { 4096 } else { 2048 };
        let level = match (self.flavour, bytes) {
            (_, 2048) => self.flavour.level(),
            (Flavour::Os, _) => Durability::Sync,
            (Flavour::Sync | Flavour::Interval, _) => Durability::Os,
        };
        let config = config.segment_bytes(bytes).max_unsynced_bytes(bytes.into()).durability(level);
        store.alter_topic("t", config).ok();
    }

    fn read(&mut self) {
        let Some(store) = &self.store else { return };
        if !self.is_lossy {
            for (name, topic) in &self.model.topics {
                let Ok(handle) = store.topic(name) else { continue };
                let read = handle.partition(0).and_then(|partition| read_all(&partition, ReadLevel::Latest));
                if let Ok(found) = read
                    && let Err(problem) = topic.log.check(&found, Claim::Acked)
                {
                    self.problems.push(format!("{name} reads: {problem}"));
                }
            }
        }
        let before = self.disk.operations();
        let survives = if self.is_lossy { Claim::Synced } else { Claim::Acked };
        let look =
            || open(&self.disk, &self.clock, true).map(|beside| settle(&beside, &self.model, survives).map(drop));
        let mut beside = look();
        if !matches!(beside, Ok(Ok(()))) && self.disk.faults_hit() > 0 {
            // A fault may hit this very look; what is there has to be right once it is over.
            self.disk.clear_faults();
            beside = look();
        }
        if let Ok(Err(problem)) = beside {
            self.problems.push(format!("a reader beside: {problem}"));
        }
        if self.disk.operations() != before {
            self.problems.push("a read-only open changed the disk".into());
        }
    }
}

/// Compares a store that was just opened; returns what holds from now on.
pub(crate) fn settle(store: &Store, model: &Model, survives: Claim) -> Result<Model, String> {
    let mut settled = model.clone();
    let found: Vec<String> = store.topics().iter().map(ToString::to_string).collect();
    if let Some(name) = found.iter().find(|name| !model.topics.contains_key(*name)) {
        return Err(format!("topic {name} came from nowhere"));
    }
    for (name, topic) in &model.topics {
        if !found.contains(name) {
            if topic.presence == Presence::Sure {
                return Err(format!("topic {name} is gone"));
            }
            settled.topics.remove(name);
            continue;
        }
        let partition = store.topic(name).and_then(|topic| topic.partition(0)).map_err(|error| error.to_string())?;
        let records = read_all(&partition, ReadLevel::Latest).map_err(|error| format!("{name}: read: {error}"))?;
        topic.log.check(&records, survives).map_err(|problem| format!("{name}: {problem}"))?;
        if partition.end().get() != records.len() as i64 || partition.durable_end() != partition.end() {
            return Err(format!("{name}: end {}, durable {}", partition.end(), partition.durable_end()));
        }
        check_look_ups(&partition, &records).map_err(|problem| format!("{name}: {problem}"))?;
        if let Some(settling) = settled.topics.get_mut(name) {
            settling.log.settle(partition.end().get());
            settling.presence = Presence::Sure;
        }
    }
    Ok(settled)
}

/// By offset and by time: as a scan finds them.
fn check_look_ups(partition: &Partition, records: &[(i64, Rec)]) -> Result<(), String> {
    for (offset, record) in records {
        let found = partition.record(*offset).map_err(|error| error.to_string())?;
        if found.is_none_or(|found| found.value() != Some(&record.value[..])) {
            return Err(format!("the look-up of {offset} found something else"));
        }
        let found = partition.offset_for_timestamp(record.timestamp).map_err(|error| error.to_string())?;
        let expected = LogModel::by_time(records, record.timestamp);
        if found.map(|found| found.offset.get()) != expected {
            return Err(format!("time {}: found {found:?}, expected {expected:?}", record.timestamp));
        }
    }
    let most = records.iter().map(|(_, record)| record.timestamp).max();
    let found = partition.max_timestamp().map_err(|error| error.to_string())?;
    if found.map(|found| found.offset.get()) != most.and_then(|most| LogModel::by_time(records, most)) {
        return Err(format!("the largest time: found {found:?}"));
    }
    Ok(())
}
