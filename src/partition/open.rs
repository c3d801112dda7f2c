//! Opens a partition: finishes what its manifest committed, finds the end of the log, repairs what a crash left.
//!
//! The order is that of a recovery that may itself be interrupted anywhere: every step can be repeated, and the last one,
//! a new manifest generation and a clean floor, is what makes the result hold.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::aborted::Aborted;
use super::floor::{self, Floor, Kind};
use super::held_tombstone::HeldTombstone;
use super::kafka_state::{self, Producers};
use super::listing::{Listing, list};
use super::log_end::{End, extend_by_unlisted};
use super::manifest::{self, EntryState, Manifest};
use super::quarantine;
use super::repair::{PartitionReport, Repair};
use super::settings::LogSettings;
use super::space_ahead::SpaceAhead;
use super::swap;
use super::sync::GroupCommit;
use super::writer::Writer;
use super::{Durability, Env, FloorState, Log, SegmentSet};
use crate::error::{Error, Result};
use crate::ids::{TopicPartition, Uuid};
use crate::io::replace::remove_if_there;
use crate::io::{OpenMode, Vfs, write_all_at};
use crate::planted::{Bug, is};
use crate::segment::name::{Suffix, file_name};
use crate::segment::{Segment, SegmentOptions, State};
use crate::sync::atomic::{AtomicBool, AtomicI64, AtomicU64};
use crate::sync::{Mutex, OwnLines, RwLock};

/// How often a read-only open looks at a partition that changes under it.
const LOOKS_BESIDE_A_WRITER: usize = 4;

/// A small file of Kafka's is never larger than this.
pub(super) const SMALL_FILE_BYTES_MAX: u64 = 64 << 20;

/// What identifies a partition, and how it is to be opened.
#[derive(Clone)]
pub(crate) struct Opening<'a> {
    pub(crate) env: &'a Env,
    pub(crate) id: &'a TopicPartition,
    pub(crate) directory: PathBuf,
    pub(crate) topic_id: Uuid,
    pub(crate) settings: LogSettings,
    /// Whether no other process may have the files mapped, so that a tail can be written again where it stands.
    pub(crate) may_rewrite_in_place: bool,
    /// Whether the ids come from a manifest of the store. Where it is lost, nothing vouches for them, and those in the
    /// partition's own manifest hold.
    pub(crate) ids_are_known: bool,
    /// What a broker's checkpoints say, for a directory without a manifest.
    pub(crate) hints: super::hints::Hints,
}

impl Opening<'_> {
    /// Opens the partition; in a writable store it is repaired first.
    ///
    /// Beside a live writer a read-only open may meet a set of segments that is being exchanged. It then looks again, and
    /// holds the files that it found open, as their names may be gone or mean other files by the time they are read.
    pub(crate) fn open(self) -> Result<(Log, PartitionReport)> {
        if !self.env.read_only {
            return self.open_once();
        }
        for _ in 0..LOOKS_BESIDE_A_WRITER {
            let generation = self.generation();
            let opened = self.clone().open_once().and_then(|(log, report)| {
                hold_open(&log)?;
                Ok((log, report))
            });
            if generation == self.generation() {
                return opened;
            }
        }
        self.open_once()
    }

    /// Generation of the newest manifest, if one can be read.
    fn generation(&self) -> Option<u64> {
        let read = manifest::slots(&self.directory).read(&*self.env.vfs).ok()?;
        read.newest.map(|slot| slot.generation)
    }

    fn open_once(self) -> Result<(Log, PartitionReport)> {
        let mut report = self.empty_report();
        let Some((generation, mut manifest)) = self.newest_manifest(&mut report)? else {
            return self.without_manifest();
        };
        let was_pending = self.finish_pending(&mut manifest)?;
        let mut listing = list(&*self.env.vfs, &self.directory)?;
        self.see_through_pending(&manifest, &mut listing);
        // A manifest that still names them is replaced below, before a new segment can take such a name.
        let was_removing = !manifest.removing.is_empty() || was_pending;
        self.finish_removing(&mut manifest, &mut listing, &mut report)?;
        let floor = floor::read(&*self.env.vfs, &self.directory)?;
        let is_fallback = report.repairs.iter().any(|repair| matches!(repair, Repair::ManifestSlotDamaged { .. }))
            || floor.is_some_and(|floor| floor.generation > generation);
        if is_fallback {
            extend_by_unlisted(&mut manifest, &listing);
        }
        self.compare(&manifest, &listing, &mut report)?;
        self.note_strangers(&listing, &mut report);
        if let Some(floor) =
            floor.filter(|floor| !was_removing && self.is_clean(floor, generation, &manifest, &listing))
        {
            (report.floor, report.end) = (floor.end_offset.into(), floor.end_offset.into());
            if !self.env.read_only && !listing.temporary.is_empty() {
                self.sweep(&listing, &manifest, &mut report)?;
                self.sync_directory()?;
            }
            self.sweep_snapshots(&listing, &manifest, floor.end_offset, &mut report)?;
            let log = self.assemble(manifest, generation, Some(floor), (&listing, &mut report), false)?;
            return Ok((log, report));
        }
        self.refuse_foreign_growth(floor.as_ref(), generation, &manifest, &listing)?;
        report.unclean = true;
        self.sweep(&listing, &manifest, &mut report)?;
        let found = self.find_end(&mut manifest, floor.as_ref(), is_fallback, &listing, &mut report)?;
        report.end = found.next_offset.into();
        if self.env.read_only {
            self.note_what_a_writer_would_do(&found, &mut report);
            found.apply_to(&mut manifest);
            let log = self.assemble(manifest, generation, floor, (&listing, &mut report), false)?;
            return Ok((log, report));
        }
        if is(Bug::CleanBeforeRepairs) {
            let mut early = manifest.clone();
            found.apply_to(&mut early);
            early.removing = found.behind.clone();
            self.commit(&mut early, generation, floor, &found)?;
        }
        self.repair(&mut manifest, &found, &mut report)?;
        let (mut generation, mut floor) = self.commit(&mut manifest, generation, floor, &found)?;
        if !manifest.removing.is_empty() {
            let mut listing = list(&*self.env.vfs, &self.directory)?;
            self.finish_removing(&mut manifest, &mut listing, &mut report)?;
            (generation, floor) = self.commit(&mut manifest, generation, Some(floor), &found)?;
        }
        let listing = list(&*self.env.vfs, &self.directory)?;
        self.sweep_snapshots(&listing, &manifest, found.next_offset, &mut report)?;
        let log = self.assemble(manifest, generation, Some(floor), (&listing, &mut report), true)?;
        Ok((log, report))
    }

    fn empty_report(&self) -> PartitionReport {
        PartitionReport {
            partition: self.id.clone(),
            unclean: false,
            floor: 0.into(),
            end: 0.into(),
            scanned_bytes: 0,
            repairs: Vec::new(),
        }
    }

    fn newest_manifest(&self, report: &mut PartitionReport) -> Result<Option<(u64, Manifest)>> {
        let slots = manifest::slots(&self.directory);
        let read = slots.read(&*self.env.vfs)?;
        if let Some((found, max)) = read.newer {
            return Err(Error::unsupported(format!(
                "the partition manifest in {} has version {found}, this version of topiclog reads up to {max}",
                self.directory.display()
            )));
        }
        let Some(slot) = read.newest else { return Ok(None) };
        for (path, reason) in read.damaged {
            report.repairs.push(Repair::ManifestSlotDamaged { path, reason });
        }
        // The first generation stands alone; each later one has the one before it beside it.
        for path in read.missing.into_iter().filter(|_| slot.generation > 1) {
            report.repairs.push(Repair::ManifestSlotDamaged { path, reason: "missing".into() });
        }
        let generation = slot.generation;
        let path = self.directory.join(slots.slot_name(generation));
        let manifest = Manifest::decode(&slot.payload).map_err(|why| Error::corrupt(&path, 32, why))?;
        let has_ids = manifest.store_id == self.env.store_id && manifest.topic_id == self.topic_id;
        let belongs = (has_ids || !self.ids_are_known) && manifest.partition == self.id.partition.get();
        if !belongs {
            return Err(Error::corrupt(
                &path,
                32,
                "this manifest belongs to another store, topic or partition: files of two copies were mixed; restore the \
                 whole directory from one copy, or open read-only to save the other partitions",
            ));
        }
        Ok(Some((generation, manifest)))
    }

    fn without_manifest(self) -> Result<(Log, PartitionReport)> {
        if self.env.read_only {
            return super::foreign::open(self);
        }
        let path = self.directory.join(format!("{}.0", manifest::NAME));
        Err(Error::corrupt(&path, 0, "no copy of the partition manifest can be read; open read-only to save the data"))
    }

    /// Goes on exchanging or deleting segments, where a crash interrupted it. True if there was something to go on with.
    fn finish_pending(&self, manifest: &mut Manifest) -> Result<bool> {
        if self.env.read_only {
            return Ok(false);
        }
        let Some(pending) = manifest.pending.take() else { return Ok(false) };
        let by = pending.by.and_then(|by| manifest.segments.iter().find(|entry| entry.base == by));
        swap::finish(&*self.env.vfs, &self.directory, &pending, by.map(|entry| entry.bytes))?;
        Ok(true)
    }

    /// A read-only open renames nothing: the directory is listed as if the change had been carried out.
    fn see_through_pending(&self, manifest: &Manifest, listing: &mut Listing) {
        let Some(pending) = &manifest.pending else { return };
        for base in &pending.replace {
            if pending.by != Some(*base) {
                listing.logs.remove(base);
            }
        }
        if let Some((by, bytes)) = pending.by.and_then(|by| Some((by, listing.in_transit.get(&by)?.1))) {
            listing.logs.insert(by, bytes);
        }
    }

    /// Goes on moving segments into quarantine, where a crash interrupted it.
    fn finish_removing(
        &self,
        manifest: &mut Manifest,
        listing: &mut Listing,
        report: &mut PartitionReport,
    ) -> Result<()> {
        for base in std::mem::take(&mut manifest.removing) {
            let was_there = listing.logs.remove(&base).is_some();
            if self.env.read_only {
                continue;
            }
            // Even without its log: an interrupted move may have left its indexes, and is not durable before this is done.
            quarantine::move_segment(&*self.env.vfs, &self.directory, base)?;
            if was_there {
                let path = self.directory.join(file_name(base, Suffix::Log));
                report.repairs.push(Repair::SegmentQuarantined { path });
            }
        }
        Ok(())
    }

    /// Compares the directory with the manifest: what is listed must be there, at its length; what is there with data
    /// must be listed.
    fn compare(&self, manifest: &Manifest, listing: &Listing, report: &mut PartitionReport) -> Result<()> {
        for entry in &manifest.segments {
            let path = self.directory.join(file_name(entry.base, Suffix::Log));
            let missing = |position: u64, what: &str| Error::Corrupt {
                path: path.clone(),
                position,
                offsets: Some((entry.base.into(), entry.next.max(entry.base).into())),
                what: what.to_owned(),
            };
            let Some(&bytes) = listing.logs.get(&entry.base) else {
                return Err(missing(
                    0,
                    "the segment's file is missing; restore the directory from a copy, or open read-only to save the other \
                     partitions",
                ));
            };
            if entry.state == EntryState::Sealed && bytes != entry.bytes {
                return Err(missing(
                    bytes.min(entry.bytes),
                    "the sealed segment does not have the length it was sealed with",
                ));
            }
            if entry.state == EntryState::Closed && entry.synced && bytes < entry.bytes {
                return Err(missing(bytes, "the closed segment is shorter than when it was closed"));
            }
        }
        for (&base, &bytes) in &listing.logs {
            if manifest.segments.iter().any(|entry| entry.base == base) {
                continue;
            }
            let path = self.directory.join(file_name(base, Suffix::Log));
            if bytes > 0 {
                return Err(Error::NeedsAdopt { path, why: "the manifest does not list this segment".into() });
            }
            report.repairs.push(Repair::Swept { path });
        }
        Ok(())
    }

    fn note_strangers(&self, listing: &Listing, report: &mut PartitionReport) {
        let strangers = listing.strangers.iter().map(|name| Repair::Stranger { path: self.directory.join(name) });
        report.repairs.extend(strangers);
    }

    fn is_clean(&self, floor: &Floor, generation: u64, manifest: &Manifest, listing: &Listing) -> bool {
        let Some(active) = manifest.active() else { return false };
        floor.kind == Kind::Clean
            && floor.generation == generation
            && floor.base == active.base
            && floor.position == active.bytes
            && floor.end_offset == active.next
            && listing.logs.get(&active.base) == Some(&floor.position)
            && manifest.segments.iter().all(|entry| entry.state != EntryState::Closed || entry.synced)
            && manifest.segments.len() == listing.logs.len()
    }

    /// A file that grew, or shrank, although the clean flag stands was written by another program.
    fn refuse_foreign_growth(
        &self,
        floor: Option<&Floor>,
        generation: u64,
        manifest: &Manifest,
        listing: &Listing,
    ) -> Result<()> {
        // After a roll without a sync the floor still lies in the segment before. What is sealed has been compared already,
        // and may have become shorter by compaction.
        let is_sealed = |base: i64| {
            let entry = manifest.segments.iter().find(|entry| entry.base == base);
            entry.is_none_or(|entry| entry.state == EntryState::Sealed)
        };
        if let Some(floor) = floor.filter(|floor| !is_sealed(floor.base))
            && let Some(&bytes) = listing.logs.get(&floor.base).filter(|&&bytes| bytes < floor.position)
            && !is(Bug::CutBelowFloor)
        {
            return Err(Error::Corrupt {
                path: self.directory.join(file_name(floor.base, Suffix::Log)),
                position: bytes,
                offsets: Some((floor.base.into(), floor.end_offset.into())),
                what: "the segment is shorter than what was synced of it".into(),
            });
        }
        let Some(active) = manifest.active() else { return Ok(()) };
        let Some(&bytes) = listing.logs.get(&active.base) else { return Ok(()) };
        let path = self.directory.join(file_name(active.base, Suffix::Log));
        let synced =
            floor.filter(|floor| floor.base == active.base).map_or(0, |floor| floor.position).max(active.bytes);
        if bytes < synced && !is(Bug::CutBelowFloor) {
            return Err(Error::Corrupt {
                path,
                position: bytes,
                offsets: Some((active.base.into(), active.next.into())),
                what: "the active segment is shorter than what was synced".into(),
            });
        }
        let is_clean =
            |floor: &&Floor| floor.kind == Kind::Clean && floor.generation == generation && floor.base == active.base;
        if floor.filter(is_clean).is_some_and(|floor| bytes > floor.position) {
            let why = "the active segment grew although this store was closed: another program wrote to it";
            return Err(Error::NeedsAdopt { path, why: why.into() });
        }
        Ok(())
    }

    /// Removes what never took effect: temporary files of ours, and an empty segment that no manifest lists.
    fn sweep(&self, listing: &Listing, manifest: &Manifest, report: &mut PartitionReport) -> Result<()> {
        for name in &listing.temporary {
            report.repairs.push(Repair::Swept { path: self.directory.join(name) });
        }
        if self.env.read_only {
            return Ok(());
        }
        let unlisted = |base: &i64| manifest.segments.iter().all(|entry| entry.base != *base);
        let empty = listing.logs.keys().filter(|base| unlisted(base)).map(|&base| file_name(base, Suffix::Log));
        for name in listing.temporary.iter().cloned().chain(empty) {
            let path = self.directory.join(name);
            self.env.vfs.remove_file(&path).map_err(|error| Error::io("remove", &path, error))?;
        }
        Ok(())
    }

    /// Removes snapshots that a crash, or an earlier version, left behind.
    fn sweep_snapshots(
        &self,
        listing: &Listing,
        manifest: &Manifest,
        end: i64,
        report: &mut PartitionReport,
    ) -> Result<()> {
        let strays = listing.stray_snapshots(manifest, end);
        if self.env.read_only || strays.is_empty() {
            return Ok(());
        }
        for offset in strays {
            let path = self.directory.join(file_name(offset, Suffix::Snapshot));
            remove_if_there(&*self.env.vfs, &path)?;
            report.repairs.push(Repair::Swept { path });
        }
        self.sync_directory()
    }

    fn sync_directory(&self) -> Result<()> {
        let failed = |error| Error::io("sync directory", &self.directory, error);
        self.env.vfs.sync_dir(&self.directory).map_err(failed)
    }

    /// The last step of recovery: a new generation with a new leader epoch, then a floor that says "clean".
    fn commit(
        &self,
        manifest: &mut Manifest,
        generation: u64,
        floor: Option<Floor>,
        found: &End,
    ) -> Result<(u64, Floor)> {
        let vfs = &*self.env.vfs;
        vfs.sync_dir(&self.directory).map_err(|error| Error::io("sync", &self.directory, error))?;
        let end = found.next_offset;
        manifest.begin_epoch(end);
        let generation = generation + 1;
        manifest::slots(&self.directory).write(vfs, generation, &manifest.encode(), true)?;
        let active = manifest.active().ok_or_else(|| self.no_segment())?;
        let floor = Floor {
            kind: Kind::Clean,
            generation,
            sequence: floor.map_or(0, |floor| floor.sequence) + 1,
            base: active.base,
            position: active.bytes,
            end_offset: active.next,
            max_timestamp: active.max_timestamp.unwrap_or(i64::MIN),
            batches: u32::try_from(active.batches).unwrap_or(u32::MAX),
        };
        floor::write(vfs, &self.directory, &floor)?;
        Ok((generation, floor))
    }

    /// Builds the log from a manifest that holds.
    pub(crate) fn assemble(
        self,
        mut manifest: Manifest,
        generation: u64,
        floor: Option<Floor>,
        (listing, report): (&Listing, &mut PartitionReport),
        was_repaired: bool,
    ) -> Result<Log> {
        let transactions = self.load_transactions(&mut manifest, listing, report)?;
        let transit = manifest.pending.as_ref().and_then(|pending| pending.by);
        let transit = transit.and_then(|by| Some((by, listing.in_transit.get(&by)?.0.clone())));
        let directory = self.directory.clone();
        let aborted = Aborted::known(transactions.aborted);
        let log = self.build(manifest, generation, floor, aborted, transactions.producers)?;
        if let Some((by, name)) = transit
            && let Some(segment) = log.snapshot().segments.iter().find(|segment| segment.base_offset() == by)
        {
            segment.log().file().is_at(directory.join(name));
        }
        log.writer.lock().must_close = was_repaired || transactions.is_manifest_changed;
        Ok(log)
    }

    pub(crate) fn build(
        self,
        manifest: Manifest,
        generation: u64,
        floor: Option<Floor>,
        aborted: Aborted,
        producers: Producers,
    ) -> Result<Log> {
        let options =
            SegmentOptions { read_path: self.env.read_path, index_interval_bytes: self.settings.index_interval_bytes };
        let mode = if self.env.read_only { OpenMode::Read } else { OpenMode::Write };
        let segments: Vec<Arc<Segment>> = manifest
            .segments
            .iter()
            .map(|entry| {
                // The files of sealed segments never change, so they are opened for reading only.
                let mode = if State::from(entry.state) == State::Sealed { OpenMode::Read } else { mode };
                Arc::new(Segment::open(&self.env.pool, &self.directory, &entry.facts(), options, mode))
            })
            .collect();
        let active = segments.last().cloned().ok_or_else(|| self.no_segment())?;
        let end = active.next_offset();
        if manifest.log_start > end {
            return Err(Error::Corrupt {
                path: active.log().path().to_owned(),
                position: active.bytes(),
                offsets: Some((end.into(), manifest.log_start.into())),
                what: "the log ends before it starts: records that were synced are missing; restore the directory"
                    .into(),
            });
        }
        let floor_state = FloorState {
            sequence: floor.map_or(0, |floor| floor.sequence),
            base: floor.map_or(0, |floor| floor.base),
            position: floor.map_or(0, |floor| floor.position),
            written_at_ms: 0,
        };
        let first_unstable = producers.first_unstable().unwrap_or(i64::MAX);
        let active_since_ms = self.env.monotonic_ms();
        let epochs = Some(manifest.epochs.clone().into());
        let set = SegmentSet { segments, epochs, aborted, replacements: 0 };
        let log_start = manifest.log_start;
        let (clean_end, tombstone_floor) = (manifest.clean_end, manifest.tombstone_floor);
        let next_horizon_ms = manifest.next_horizon_ms.unwrap_or(i64::MAX);
        let held_tombstone = HeldTombstone::new(manifest.held_tombstone);
        let settings = Arc::new(self.settings);
        Ok(Log {
            id: self.id.clone(),
            directory: self.directory,
            env: self.env.clone(),
            settings: OwnLines(RwLock::new(Arc::clone(&settings))),
            is_sync: AtomicBool::new(settings.durability == Durability::Sync),
            expire_after_ms: AtomicI64::new(settings.compaction.expire_after_ms),
            writer: OwnLines(Mutex::new(Writer {
                settings: Arc::clone(&settings),
                manifest,
                active,
                is_ready: false,
                must_close: false,
                space_ahead: SpaceAhead::default(),
                active_since_ms,
                has_pending: false,
            })),
            set: RwLock::new(Arc::new(set)),
            log_start: AtomicI64::new(log_start),
            seen_log_start: AtomicI64::new(log_start),
            end_offset: OwnLines(AtomicI64::new(end)),
            durable_end: AtomicI64::new(end),
            first_unstable: AtomicI64::new(first_unstable),
            group: GroupCommit::new(end),
            written_bytes: OwnLines(AtomicU64::new(0)),
            synced_bytes: AtomicU64::new(0),
            window_ms: AtomicU64::new(u64::MAX),
            sync_due_ms: AtomicU64::new(u64::MAX),
            last_append_ms: AtomicU64::new(0),
            seen_bytes: AtomicU64::new(0),
            floor: Mutex::new(floor_state),
            poisoned: AtomicBool::new(false),
            poison: Mutex::new(None),
            closed: AtomicBool::new(false),
            generation: AtomicU64::new(generation),
            producers: Mutex::new(producers),
            trusted_reads: AtomicU64::new(0),
            key_queue: OwnLines::default(),
            clean_end: AtomicI64::new(clean_end),
            tombstone_floor: AtomicI64::new(tombstone_floor),
            next_horizon_ms: AtomicI64::new(next_horizon_ms),
            held_tombstone,
            readers_moved: AtomicBool::new(true),
            is_left_dirty: AtomicBool::new(false),
            compacts_without_index: AtomicBool::new(false),
            records_compacted: AtomicU64::new(0),
            tombstones_dropped: AtomicU64::new(0),
            retired: Mutex::new(Vec::new()),
            retired_count: AtomicU64::new(0),
        })
    }
}

/// Opens the files of a read-only log while there is room for them; the others are opened when they are read.
fn hold_open(log: &Log) -> Result<()> {
    for segment in &log.snapshot().segments {
        if log.env.pool.is_full() {
            break;
        }
        segment.log().file().with(|_| Ok(())).map_err(|error| Error::io("open", segment.log().path(), error))?;
    }
    Ok(())
}

/// Creates the files of a new, empty partition in a directory that exists; durable when this returns, but for the
/// directory's own entry. The manifest comes first: by it an interrupted creation is known for ours.
pub(crate) fn create(
    env: &Env,
    id: &TopicPartition,
    directory: &Path,
    topic_id: Uuid,
    settings: &LogSettings,
) -> Result<()> {
    let vfs = &*env.vfs;
    let manifest = Manifest::empty(env.store_id, topic_id, id.partition.get(), settings.unsynced_cap());
    manifest::slots(directory).write(vfs, 1, &manifest.encode(), true)?;
    write_new(vfs, &directory.join("partition.metadata"), kafka_metadata(topic_id).as_bytes())?;
    let epochs = kafka_state::encode_epochs(&manifest.epochs);
    write_new(vfs, &directory.join(kafka_state::EPOCHS_NAME), epochs.as_bytes())?;
    let log = directory.join(file_name(0, Suffix::Log));
    vfs.open(&log, OpenMode::Create).map_err(|error| Error::io("create", &log, error))?;
    // A broker takes a missing index for damage, even that of an empty segment.
    for suffix in [Suffix::Index, Suffix::TimeIndex] {
        let path = directory.join(file_name(0, suffix));
        vfs.open(&path, OpenMode::Create).map_err(|error| Error::io("create", &path, error))?;
    }
    let floor = Floor {
        kind: Kind::Clean,
        generation: 1,
        sequence: 1,
        base: 0,
        position: 0,
        end_offset: 0,
        max_timestamp: -1,
        batches: 0,
    };
    floor::write(vfs, directory, &floor)?;
    vfs.sync_dir(directory).map_err(|error| Error::io("sync", directory, error))
}

/// Kafka's `partition.metadata`: two lines, no line feed at the end.
pub(crate) fn kafka_metadata(topic_id: Uuid) -> String {
    format!("version: 0\ntopic_id: {topic_id}")
}

fn write_new(vfs: &dyn Vfs, path: &Path, bytes: &[u8]) -> Result<()> {
    let file = vfs.open(path, OpenMode::Create).map_err(|error| Error::io("create", path, error))?;
    write_all_at(&*file, bytes, 0).map_err(|(_, error)| Error::io("write", path, error))?;
    file.set_len(bytes.len() as u64).map_err(|error| Error::io("cut", path, error))?;
    file.sync_all().map_err(|error| Error::io("sync", path, error))
}
