//! Takes a Kafka log directory over for writing, with all that Kafka knew of it: [`Store::adopt`].
//!
//! Every batch is checked first. Then each segment is sealed and a new, empty one begun at the log end, under a leader
//! epoch above all that the directory has seen. The store manifest comes last and is the commit point: a crash before it
//! leaves a plain Kafka directory.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::brokers_topics::config_of;
use super::builder::StoreBuilder;
use super::catalog::{self, Catalog, TopicEntry};
use super::checkpoints::{self, TopicIds};
use super::open::{make_env, new_id, opening, partition_directories, read_hints, take_locks};
use super::reserve::Reserve;
use super::{RecoveryReport, Signal, Store};
use crate::error::{Error, Result};
use crate::ids::{Offset, TopicName, TopicPartition};
use crate::io::replace::replace_file;
use crate::io::{EntryKind, OpenMode, Vfs};
use crate::partition::floor::{self, Floor, Kind};
use crate::partition::foreign::{Exchange, Found, look};
use crate::partition::hints::Hints;
use crate::partition::kafka_state;
use crate::partition::manifest::{self, EntryState, Manifest, SegmentEntry};
use crate::partition::open::{Opening, kafka_metadata};
use crate::partition::repair::Repair;
use crate::partition::{Env, quarantine};
use crate::segment::name::{Suffix, file_name};
use crate::segment::{FileCheck, Segment, SegmentOptions, State, txn_index};
use crate::sync::atomic::AtomicBool;
use crate::topic::TopicConfig;

/// How a directory is taken over.
///
/// ```
/// use topiclog::{AdoptOptions, TopicConfig};
/// let options = AdoptOptions::new().dry_run(true).config("orders", TopicConfig::default());
/// # let _ = options;
/// ```
#[derive(Clone, Debug, Default)]
pub struct AdoptOptions {
    dry_run: bool,
    broker_is_gone: bool,
    cut_torn_tails: bool,
    configs: BTreeMap<String, TopicConfig>,
}

impl AdoptOptions {
    /// The careful way: the broker shut down in order, and nothing is cut.
    pub fn new() -> Self {
        Self::default()
    }

    /// Checks and reports, and writes nothing.
    #[must_use]
    pub fn dry_run(mut self, dry_run: bool) -> Self {
        self.dry_run = dry_run;
        self
    }

    /// The broker did not shut down in order, and it is known to be gone.
    #[must_use]
    pub fn broker_is_gone(mut self, gone: bool) -> Self {
        self.broker_is_gone = gone;
        self
    }

    /// What follows the last whole batch of a partition may be cut off and put into quarantine.
    #[must_use]
    pub fn cut_torn_tails(mut self, cut: bool) -> Self {
        self.cut_torn_tails = cut;
        self
    }

    /// The configuration of a topic. Others keep the one that the store has for them, where the directory was one before,
    /// and get [`TopicConfig::default`] otherwise; but `__consumer_offsets` and `__transaction_state` are compacted, in segments
    /// of 100 MiB.
    ///
    /// A broker may hold some partitions of a topic and others not, and its directory does not say how many there are. It is
    /// the number of the configuration, and at least one more than the highest that is here: of a topic with 12 partitions, of
    /// which 0 and 3 are here, a configuration has to say 12. Otherwise it has 4, and records with a key go to other partitions
    /// than the broker's. Those for a partition that is not here are refused.
    #[must_use]
    pub fn config(mut self, topic: impl Into<String>, config: TopicConfig) -> Self {
        self.configs.insert(topic.into(), config);
        self
    }
}

/// What was, or would be, taken over.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct AdoptReport {
    /// Each partition.
    pub partitions: Vec<AdoptedPartition>,
    /// What was left alone, and what of Kafka's small files could not be read.
    pub notes: Vec<Repair>,
}

/// One partition that was, or would be, taken over.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct AdoptedPartition {
    /// The partition.
    pub partition: TopicPartition,
    /// Segments of the broker.
    pub segments: usize,
    /// Record batches.
    pub batches: u64,
    /// Log start offset.
    pub start: Offset,
    /// Log end offset: where appends go on.
    pub end: Offset,
    /// Leader epoch of appends from now on: above every one in Kafka's `leader-epoch-checkpoint` and in the batches.
    pub leader_epoch: i32,
    /// First offset of the oldest transaction that is still open.
    pub open_transaction: Option<Offset>,
    /// Aborted transactions.
    pub aborted_transactions: usize,
    /// What is, or would be, changed.
    pub repairs: Vec<Repair>,
}

impl Store {
    /// Takes a Kafka log directory over, so that [`Store::open`] can write to it. Producer state, aborted transactions,
    /// log starts and leader epochs are kept; nothing is deleted but left-overs of an interrupted compaction.
    ///
    /// Durable when this returns.
    ///
    /// # Errors
    /// [`Error::NeedsAdopt`] says which consent is missing: the broker did not shut down in order, or a tail is torn.
    /// [`Error::Corrupt`] if a batch before the last segment's tail is damaged, or something proves that records are missing:
    /// the log ends below its recovery point or its start, or an index lies in a gap of it; [`Error::Locked`] while a broker
    /// runs.
    /// No record is changed then; lock files, and an interrupted compaction that was ended as Kafka ends it, may remain.
    pub fn adopt(root: impl Into<PathBuf>, options: &AdoptOptions) -> Result<AdoptReport> {
        StoreBuilder::default().adopt(root, options)
    }
}

impl StoreBuilder {
    /// [`Store::adopt`] with other components.
    ///
    /// # Errors
    /// As [`Store::adopt`].
    pub fn adopt(&self, root: impl Into<PathBuf>, options: &AdoptOptions) -> Result<AdoptReport> {
        Adoption::new(self, root.into(), options)?.run()
    }
}

struct Adoption<'a> {
    options: &'a AdoptOptions,
    root: PathBuf,
    vfs: Arc<dyn Vfs>,
    env: Env,
    generation: u64,
    catalog: Catalog,
    _locks: Vec<Box<dyn crate::io::VfsLock>>,
}

impl<'a> Adoption<'a> {
    fn new(builder: &'a StoreBuilder, root: PathBuf, options: &'a AdoptOptions) -> Result<Self> {
        let vfs = Arc::clone(&builder.vfs);
        let read = catalog::read(&*vfs, &root)?;
        let locks = if options.dry_run { Vec::new() } else { take_locks(builder, &*vfs, &root)?.held };
        let (generation, catalog) = match read.newest {
            Some(newest) => newest,
            None => {
                let store_id = new_id(builder.id_seed, 0)?;
                (0, Catalog { store_id, topics: Vec::new(), deleting: Vec::new() })
            }
        };
        let wrote = Arc::new(AtomicBool::new(false));
        let reserve = Arc::new(Reserve::new(&builder.vfs, &root, 0));
        let env = make_env(builder, &root, catalog.store_id, (&Arc::new(Signal::default()), &wrote, &reserve), true);
        Ok(Self { options, root, vfs, env, generation, catalog, _locks: locks })
    }

    fn run(mut self) -> Result<AdoptReport> {
        let listed = self.vfs.list(&self.root).map_err(|error| Error::io("list", &self.root, error))?;
        let mut hints_report = RecoveryReport::default();
        let stated = read_hints(&*self.vfs, &self.root, &mut hints_report)?;
        if !stated.was_clean && !self.options.broker_is_gone {
            return Err(Error::NeedsAdopt {
                path: self.root.clone(),
                why: "there is no .kafka_cleanshutdown: a broker is running, or it crashed; if it is known to be gone, say \
                      so with `broker_is_gone`"
                    .into(),
            });
        }
        let ids: Vec<TopicPartition> =
            partition_directories(&listed).into_iter().filter(|id| id.topic.as_str() != "__cluster_metadata").collect();
        let mut report = AdoptReport { partitions: Vec::new(), notes: hints_report.store };
        for entry in listed.iter().filter(|entry| entry.kind == EntryKind::Directory) {
            if !ids.iter().any(|id| id.directory_name() == entry.name) {
                report.notes.push(Repair::Stranger { path: self.root.join(&entry.name) });
            }
        }
        let topics = self.topics(&ids)?;
        // Everything is looked at before anything is written.
        let mut looked = Vec::new();
        for entry in &topics {
            for &partition in &entry.partitions {
                let id = TopicPartition::new(entry.name.clone(), partition);
                if !self.options.dry_run {
                    self.finish_swaps(&id)?;
                }
                let found = self.look(&id, entry, stated.of(&id))?;
                report.partitions.push(describe(&id, &found, self.next_epoch(&id, &found)?));
                looked.push((id, entry.clone(), found));
            }
        }
        if self.options.dry_run {
            return Ok(report);
        }
        checkpoints::remove_clean_shutdown(&*self.vfs, &self.root)?;
        for (id, entry, found) in looked {
            self.take_over(&id, &entry, found)?;
        }
        self.catalog.topics = topics;
        catalog::write(&*self.vfs, &self.root, self.generation + 1, &self.catalog)?;
        Ok(report)
    }

    /// The topics as the directories show them, with the ids that Kafka gave them.
    fn topics(&self, ids: &[TopicPartition]) -> Result<Vec<TopicEntry>> {
        let (mut by_name, mut topic_ids): (BTreeMap<TopicName, Vec<u32>>, _) = (BTreeMap::new(), TopicIds::default());
        for id in ids {
            by_name.entry(id.topic.clone()).or_default().push(id.partition.get());
            let directory = self.root.join(id.directory_name());
            if let Some(topic_id) = checkpoints::read_topic_id(&*self.vfs, &directory)? {
                topic_ids.note(&id.topic, &directory, topic_id)?;
            }
        }
        let mut topics = Vec::new();
        for (count, (name, partitions)) in by_name.into_iter().enumerate() {
            let topic_id = match topic_ids.of(&name) {
                Some(id) => id,
                None => new_id(None, count as u64)?,
            };
            let most = partitions.iter().max().map_or(1, |most| most.saturating_add(1));
            let known = self.catalog.topics.iter().find(|entry| entry.name == name && entry.topic_id == topic_id);
            let config = match (self.options.configs.get(name.as_str()), known) {
                (Some(config), _) => {
                    config.check_codec()?;
                    config.clone()
                }
                (None, Some(known)) => known.config.clone(),
                (None, None) => config_of(name.as_str()),
            };
            let count = most.max(config.partition_count());
            let config = config.partitions(count);
            config.check()?;
            topics.push(TopicEntry { name, topic_id, partitions, config });
        }
        Ok(topics)
    }

    fn opening<'b>(&'b self, id: &'b TopicPartition, entry: &TopicEntry, hints: Hints) -> Opening<'b> {
        let directory = self.root.join(id.directory_name());
        Opening { hints, ..opening(&self.env, id, directory, entry.topic_id, &entry.config) }
    }

    fn look(&self, id: &TopicPartition, entry: &TopicEntry, hints: Hints) -> Result<Found> {
        let mut found = look(&self.opening(id, entry, hints), true)?;
        let before = self.manifest_before(&self.root.join(id.directory_name()), id, entry)?;
        found.highest_epoch = found.highest_epoch.max(before.map_or(-1, |before| before.epoch()));
        if let Some((scan, reason)) = &found.torn
            && !self.options.cut_torn_tails
            && !self.options.dry_run
        {
            return Err(Error::NeedsAdopt {
                path: self.root.join(id.directory_name()),
                why: format!(
                    "what follows offset {} is no whole batch ({reason}); if it may be cut off, say so with \
                     `cut_torn_tails`",
                    scan.next_offset
                ),
            });
        }
        Ok(found)
    }

    /// Writes seals, the new active segment and the manifest of one partition. Until the store manifest lists it, none of
    /// it matters.
    fn take_over(&self, id: &TopicPartition, topic: &TopicEntry, mut found: Found) -> Result<()> {
        let directory = self.root.join(id.directory_name());
        let vfs = &*self.vfs;
        let before = self.manifest_before(&directory, id, topic)?;
        for entry in &mut found.entries {
            let listed = before.iter().flat_map(|before| &before.segments).find(|old| old.base == entry.base);
            let known = listed.and_then(|old| old.closed_ms);
            entry.closed_ms = known.or_else(|| self.closed_ms(entry, found.written_ms.get(&entry.base).copied()));
        }
        self.cut(&directory, &found)?;
        // An empty last segment at the log end becomes the active one; otherwise a new one does.
        if found.entries.last().is_some_and(|last| last.bytes == 0 && last.base == found.end) {
            found.entries.pop();
        }
        for index in 0..found.entries.len() {
            let next = found.entries.get(index + 1).map_or(found.end, |next| next.base);
            let Some(entry) = found.entries.get_mut(index) else { continue };
            entry.next = next;
            self.seal(&directory, topic, entry, &found.aborted)?;
        }
        let settings = topic.config.log_settings();
        let log = directory.join(file_name(found.end, Suffix::Log));
        let file = vfs.open(&log, OpenMode::Create).map_err(|error| Error::io("create", &log, error))?;
        // The broker's may hold space that was taken ahead, or a torn first batch, which is in quarantine by now.
        file.set_len(0).map_err(|error| Error::io("cut", &log, error))?;
        file.sync_all().map_err(|error| Error::io("sync", &log, error))?;
        for suffix in [Suffix::Index, Suffix::TimeIndex] {
            let path = directory.join(file_name(found.end, suffix));
            let file = vfs.open(&path, OpenMode::Create).map_err(|error| Error::io("create", &path, error))?;
            file.set_len(0).map_err(|error| Error::io("cut", &path, error))?;
        }
        let snapshot = found.producers.encode_snapshot();
        let mut segments = found.entries.clone();
        segments.push(SegmentEntry::empty(found.end, settings.unsynced_cap()));
        let mut manifest = Manifest {
            store_id: self.catalog.store_id,
            topic_id: topic.topic_id,
            partition: id.partition.get(),
            log_start: found.log_start,
            epochs: found.epochs.clone(),
            segments,
            removing: Vec::new(),
            clean_end: 0,
            // Which tombstones the broker dropped is not known: a reader with state of this partition has to begin anew.
            tombstone_floor: if settings.needs_key { found.end } else { 0 }
                .max(before.map_or(0, |before| before.tombstone_floor)),
            next_horizon_ms: None,
            held_tombstone: None,
            producers: Some(FileCheck::of(&snapshot)),
            pending: None,
        };
        // An epoch that begins at the end has no batch: the new one takes its place, and stands above it all the same.
        manifest.epochs.retain(|&(_, start)| start < found.end);
        manifest.epochs.push((self.next_epoch(id, &found)?, found.end));
        replace_file(vfs, &directory, &file_name(found.end, Suffix::Snapshot), &snapshot, true)?;
        let epochs = kafka_state::encode_epochs(&manifest.epochs);
        replace_file(vfs, &directory, kafka_state::EPOCHS_NAME, epochs.as_bytes(), true)?;
        replace_file(vfs, &directory, "partition.metadata", kafka_metadata(topic.topic_id).as_bytes(), true)?;
        self.commit_partition(&directory, &manifest, found.end)
    }

    /// The leader epoch of what is appended from now on.
    fn next_epoch(&self, id: &TopicPartition, found: &Found) -> Result<i32> {
        let path = self.root.join(id.directory_name()).join(kafka_state::EPOCHS_NAME);
        let what = "leader epoch 2147483647 is used, and there is none above it for what is appended";
        found.next_epoch().ok_or_else(|| Error::corrupt(&path, 0, what))
    }

    /// What this library said of the partition before a broker wrote to it.
    fn manifest_before(&self, directory: &Path, id: &TopicPartition, topic: &TopicEntry) -> Result<Option<Manifest>> {
        let newest = manifest::slots(directory).read(&*self.vfs)?.newest;
        let before = newest.and_then(|slot| Manifest::decode(&slot.payload).ok());
        Ok(before.filter(|before| before.topic_id == topic.topic_id && before.partition == id.partition.get()))
    }

    /// No record arrived after the file was last written to, whatever its timestamp says: where the timestamps lie in the
    /// future, or there are none, retention goes by that.
    fn closed_ms(&self, entry: &SegmentEntry, written_ms: Option<i64>) -> Option<i64> {
        let now_ms = self.env.clock.now_ms();
        let is_past = entry.max_timestamp.is_some_and(|newest| (0..=now_ms).contains(&newest));
        if is_past { None } else { written_ms.map(|written| written.min(now_ms)) }
    }

    fn commit_partition(&self, directory: &Path, manifest: &Manifest, end: i64) -> Result<()> {
        let vfs = &*self.vfs;
        let slots = manifest::slots(directory);
        let generation = slots.read(vfs)?.newest.map_or(0, |slot| slot.generation) + 1;
        let sequence = floor::read(vfs, directory)?.map_or(0, |floor| floor.sequence) + 1;
        slots.write(vfs, generation, &manifest.encode(), true)?;
        let floor = Floor {
            kind: Kind::Clean,
            generation,
            sequence,
            base: end,
            position: 0,
            end_offset: end,
            max_timestamp: -1,
            batches: 0,
        };
        floor::write(vfs, directory, &floor)?;
        vfs.sync_dir(directory).map_err(|error| Error::io("sync directory", directory, error))
    }

    fn cut(&self, directory: &Path, found: &Found) -> Result<()> {
        let (Some((scan, reason)), Some(last)) = (&found.torn, found.entries.last()) else { return Ok(()) };
        let vfs = &*self.vfs;
        quarantine::copy_tail(vfs, directory, last.base, scan.position, scan.file_bytes, scan.next_offset, reason)
    }

    /// Trims a segment to its last batch, gives it whole indexes, syncs and seals it.
    fn seal(
        &self,
        directory: &Path,
        topic: &TopicEntry,
        entry: &mut SegmentEntry,
        aborted: &[txn_index::AbortedTxn],
    ) -> Result<()> {
        let vfs = &*self.vfs;
        let path = directory.join(file_name(entry.base, Suffix::Log));
        let file = vfs.open(&path, OpenMode::Write).map_err(|error| Error::io("open", &path, error))?;
        file.set_len(entry.bytes).map_err(|error| Error::io("cut", &path, error))?;
        file.sync_all().map_err(|error| Error::io("sync", &path, error))?;
        entry.state = EntryState::Sealed;
        let options = SegmentOptions {
            read_path: crate::segment::log_file::ReadPath::Positional,
            index_interval_bytes: topic.config.log_settings().index_interval_bytes,
        };
        let facts = crate::segment::SegmentFacts { state: State::Closed, ..entry.facts() };
        let segment = Arc::new(Segment::open(&self.env.pool, directory, &facts, options, OpenMode::Read));
        // Where entries of the old formats are, their headers cannot be walked; the indexes stay as the broker left them.
        let written = segment.distrust_index().and_then(|()| segment.write_indexes(true));
        written
            .map(drop)
            .or_else(|error| if matches!(error, Error::Unsupported { .. }) { Ok(()) } else { Err(error) })?;
        entry.txn_index = self.write_txn_index(directory, entry, aborted)?;
        let seal = segment.compute_seal(self.catalog.store_id, &mut || {})?;
        entry.crc32 = Some(seal.crc32);
        replace_file(vfs, directory, &file_name(entry.base, Suffix::Seal), &seal.encode(), true)
    }

    /// Aborted transactions whose marker lies in this segment; a file that says the same stays as it is, and without any
    /// there needs to be none.
    fn write_txn_index(
        &self,
        directory: &Path,
        entry: &SegmentEntry,
        aborted: &[txn_index::AbortedTxn],
    ) -> Result<Option<FileCheck>> {
        let here: Vec<_> =
            aborted.iter().copied().filter(|txn| (entry.base..entry.next).contains(&txn.last_offset)).collect();
        let name = file_name(entry.base, Suffix::TxnIndex);
        let path = directory.join(&name);
        let bytes = txn_index::encode(&here);
        let old = match crate::io::read_small(&*self.vfs, &path, 64 << 20) {
            Ok(old) => Some(old),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(Error::io("read", &path, error)),
        };
        if old.is_none() && bytes.is_empty() {
            return Ok(None);
        }
        if old.as_deref() != Some(&bytes) {
            replace_file(&*self.vfs, directory, &name, &bytes, true)?;
        }
        Ok(Some(FileCheck::of(&bytes)))
    }

    /// Ends an interrupted compaction as Kafka's loader does: unfinished output goes, finished output takes the place of
    /// what it replaces, if it scans whole. Each step is durable before the next one: what stands for more than it would
    /// alone goes last, or comes last.
    fn finish_swaps(&self, id: &TopicPartition) -> Result<()> {
        let vfs = &*self.vfs;
        let directory = self.root.join(id.directory_name());
        let sync = || vfs.sync_dir(&directory).map_err(|error| Error::io("sync directory", &directory, error));
        let remove_all = |names: &mut dyn Iterator<Item = &String>| {
            let mut removed = false;
            for name in names {
                let path = directory.join(name);
                vfs.remove_file(&path).map_err(|error| Error::io("remove", &path, error))?;
                removed = true;
            }
            if removed { sync() } else { Ok(()) }
        };
        let exchange = Exchange::find(vfs, &directory)?;
        // As long as one that is not complete is there, those that only look complete count for nothing.
        let (swaps, cleaned): (Vec<_>, Vec<_>) = exchange.unfinished.iter().partition(|name| name.ends_with(".swap"));
        remove_all(&mut swaps.into_iter())?;
        remove_all(&mut cleaned.into_iter())?;
        if exchange.finished.is_empty() {
            return Ok(());
        }
        let listed = vfs.list(&directory).map_err(|error| Error::io("list", &directory, error))?;
        // Until they are gone, it is the name of the output that says so.
        remove_all(&mut listed.iter().map(|entry| &entry.name).filter(|name| exchange.replaces(name)))?;
        for name in &exchange.finished {
            let (from, to) = (directory.join(name), directory.join(name.trim_end_matches(".swap")));
            vfs.rename(&from, &to).map_err(|error| Error::io("rename", &from, error))?;
        }
        sync()
    }
}

fn describe(id: &TopicPartition, found: &Found, leader_epoch: i32) -> AdoptedPartition {
    AdoptedPartition {
        partition: id.clone(),
        segments: found.entries.len(),
        batches: found.entries.iter().map(|entry| entry.batches).sum(),
        start: found.log_start.into(),
        end: found.end.into(),
        leader_epoch,
        open_transaction: found.producers.first_unstable().map(Offset::new),
        aborted_transactions: found.aborted.len(),
        repairs: found.repairs.clone(),
    }
}
