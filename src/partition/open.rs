//! Opens a partition: finishes what its manifest committed, finds the end of the log, repairs what a crash left.
//!
//! The order is that of a recovery that may itself be interrupted anywhere: every step can be repeated, and the last one,
//! a new manifest generation and a clean floor, is what makes the result hold.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::floor::{self, Floor, Kind};
use super::kafka_state::{self, Producers};
use super::manifest::{self, EntryState, Manifest, SegmentEntry};
use super::quarantine;
use super::repair::{PartitionReport, Repair};
use super::settings::LogSettings;
use super::swap;
use super::sync::GroupCommit;
use super::writer::{Reserve, Writer};
use super::{Env, FloorState, Log, SegmentSet};
use crate::error::{Error, Result};
use crate::ids::{TopicPartition, Uuid};
use crate::io::{EntryKind, OpenMode, Vfs, read_exact_at, read_small, write_all_at};
use crate::planted::{Bug, is};
use crate::segment::name::{self, Suffix, file_name};
use crate::segment::recover::{Scan, ScanRules, Stop, proof_of_rot, scan};
use crate::segment::txn_index::{self, AbortedTxn};
use crate::segment::{Segment, SegmentOptions, State};
use crate::sync::atomic::{AtomicBool, AtomicI64, AtomicU64};
use crate::sync::{Mutex, RwLock};

/// How often a read-only open looks at a partition that changes under it.
const LOOKS_BESIDE_A_WRITER: usize = 4;

/// A small file of Kafka's is never larger than this.
const SMALL_FILE_BYTES_MAX: u64 = 64 << 20;

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
    pub(crate) hints: super::foreign::Hints,
}

/// What is in the directory.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    /// Length of each `.log` file by base offset.
    pub(crate) logs: BTreeMap<i64, u64>,
    /// Length of each `.snapshot` file by offset.
    pub(crate) snapshots: BTreeMap<i64, u64>,
    pub(crate) side_files: Vec<(i64, Suffix)>,
    /// When each `.log` file was last written to, by base offset.
    pub(crate) written_ms: BTreeMap<i64, i64>,
    /// New logs that do not have their final name yet, by base offset, with their length.
    in_transit: BTreeMap<i64, (String, u64)>,
    temporary: Vec<String>,
    strangers: Vec<String>,
}

impl Listing {
    /// Names that neither Kafka nor this library gives.
    pub(crate) fn strangers(&self) -> &[String] {
        &self.strangers
    }

    /// Base offsets of logs in whose place there is something that is no regular file.
    pub(crate) fn no_files(&self) -> impl Iterator<Item = i64> {
        self.strangers
            .iter()
            .filter_map(|name| name::parse(name))
            .filter(|(_, suffix)| *suffix == Suffix::Log)
            .map(|(base, _)| base)
    }

    /// Whether the new log of a segment waits for its final name.
    pub(crate) fn is_in_transit(&self, base: i64) -> bool {
        self.in_transit.contains_key(&base)
    }
}

pub(crate) fn list(vfs: &dyn Vfs, directory: &Path) -> Result<Listing> {
    let mut listing = Listing::default();
    let entries = vfs.list(directory).map_err(|error| Error::io("list", directory, error))?;
    for entry in entries {
        match (name::parse(&entry.name), entry.kind) {
            (Some((base, Suffix::Log)), EntryKind::File) => {
                listing.logs.insert(base, entry.bytes);
                listing.written_ms.insert(base, entry.modified_ms);
            }
            (Some((base, Suffix::Snapshot)), EntryKind::File) => {
                listing.snapshots.insert(base, entry.bytes);
            }
            (Some((base, suffix)), EntryKind::File) => listing.side_files.push((base, suffix)),
            _ if swap::transit_base(&entry.name).is_some() && entry.kind == EntryKind::File => {
                let base = swap::transit_base(&entry.name).unwrap_or_default();
                if swap::is_trash(&entry.name) {
                    listing.temporary.push(entry.name.clone());
                }
                listing.in_transit.insert(base, (entry.name, entry.bytes));
            }
            _ if is_ours_in_transit(&entry.name) && entry.kind == EntryKind::File => listing.temporary.push(entry.name),
            _ if is_known(&entry.name) => {}
            _ => listing.strangers.push(entry.name),
        }
    }
    Ok(listing)
}

/// Files that an interrupted replacement of ours leaves.
fn is_ours_in_transit(name: &str) -> bool {
    if swap::is_trash(name) {
        return true;
    }
    let Some(target) = name.strip_suffix(".tmp") else { return false };
    target.starts_with(manifest::NAME) || name::parse(target).is_some() || target == kafka_state::EPOCHS_NAME
}

fn is_known(name: &str) -> bool {
    name.starts_with("topiclog.")
        || matches!(name, kafka_state::EPOCHS_NAME | "partition.metadata" | quarantine::DIRECTORY)
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
                let failed = |error| Error::io("sync directory", &self.directory, error);
                self.env.vfs.sync_dir(&self.directory).map_err(failed)?;
            }
            return Ok((self.assemble(manifest, generation, Some(floor), &listing, false)?, report));
        }
        self.refuse_foreign_growth(floor.as_ref(), generation, &manifest, &listing)?;
        report.unclean = true;
        self.sweep(&listing, &manifest, &mut report)?;
        let found = self.find_end(&mut manifest, floor.as_ref(), is_fallback, &listing, &mut report)?;
        report.end = found.last.next_offset.into();
        if self.env.read_only {
            self.note_what_a_writer_would_do(&found, &mut report);
            found.apply_to(&mut manifest);
            return Ok((self.assemble(manifest, generation, floor, &listing, false)?, report));
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
        Ok((self.assemble(manifest, generation, Some(floor), &listing, true)?, report))
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

    /// Scans from the floor on, closed segments first.
    fn find_end(
        &self,
        manifest: &mut Manifest,
        floor: Option<&Floor>,
        is_fallback: bool,
        listing: &Listing,
        report: &mut PartitionReport,
    ) -> Result<End> {
        let mut scanned = Vec::new();
        let count = manifest.segments.len();
        let segments = manifest.segments.clone();
        for (index, entry) in segments.iter().enumerate() {
            let is_last = index + 1 == count;
            if entry.state == EntryState::Sealed || (entry.state == EntryState::Closed && entry.synced) {
                continue;
            }
            let found = self.scan_segment(manifest, entry, floor, is_fallback, report)?;
            if scanned.is_empty() {
                report.floor = found.floor_offset.into();
            }
            let is_whole = is_last || (found.scan.position == entry.bytes && found.scan.next_offset == entry.next);
            let stop = found.scan.stop.clone();
            scanned.push(found);
            if let Stop::Unsupported(what) = &stop {
                let path = self.directory.join(file_name(entry.base, Suffix::Log));
                return Err(Error::unsupported(format!("{what} ({})", path.display())));
            }
            if !is_whole || (matches!(stop, Stop::Bad(_)) && !is_last) {
                // A segment in the middle that is torn: only an `Os` topic leaves one. Everything behind it goes. On any
                // other, nothing is written behind a segment before it was synced.
                let has_data_behind = listing.logs.range(entry.base + 1..).any(|(_, &bytes)| bytes > 0);
                if entry.max_unsynced_bytes.is_some()
                    && has_data_behind
                    && let Some(torn) = scanned.last()
                {
                    return Err(self.torn_before_others(torn));
                }
                let behind = segments.iter().skip(index + 1).map(|entry| entry.base).collect();
                return End::new(index, scanned, behind).ok_or_else(|| self.no_segment());
            }
        }
        End::new(count - 1, scanned, Vec::new()).ok_or_else(|| self.no_segment())
    }

    fn torn_before_others(&self, torn: &Scanned) -> Error {
        let why = match &torn.scan.stop {
            Stop::Bad(why) | Stop::Unsupported(why) => why.as_str(),
            Stop::End | Stop::Zeros => "the file ends early",
        };
        Error::Corrupt {
            path: self.directory.join(file_name(torn.base, Suffix::Log)),
            position: torn.scan.position,
            offsets: Some((torn.scan.next_offset.into(), i64::MAX.into())),
            what: format!("{why}; records in a later segment prove that this had been synced"),
        }
    }

    fn no_segment(&self) -> Error {
        Error::corrupt(&self.directory, 0, "the manifest lists no active segment")
    }

    fn scan_segment(
        &self,
        manifest: &mut Manifest,
        entry: &SegmentEntry,
        floor: Option<&Floor>,
        is_fallback: bool,
        report: &mut PartitionReport,
    ) -> Result<Scanned> {
        let path = self.directory.join(file_name(entry.base, Suffix::Log));
        let failed = |error| Error::io("read", &path, error);
        let file = self.env.vfs.open(&path, OpenMode::Read).map_err(|error| Error::io("open", &path, error))?;
        let floor = floor.filter(|floor| floor.base == entry.base && floor.end_offset >= entry.base);
        let stated = match floor {
            Some(floor) => Stated {
                position: floor.position,
                next_offset: floor.end_offset,
                max_timestamp: floor.max_timestamp,
                batches: floor.batches.into(),
            },
            None => Stated { position: 0, next_offset: entry.base, max_timestamp: -1, batches: 0 },
        };
        // What the manifest says of an active segment was synced before the manifest was written.
        let stated = if entry.state == EntryState::Active && entry.bytes > stated.position {
            Stated {
                position: entry.bytes,
                next_offset: entry.next,
                max_timestamp: entry.max_timestamp.unwrap_or(i64::MIN),
                batches: entry.batches,
            }
        } else {
            stated
        };
        let is_short = || file.len().is_ok_and(|bytes| bytes < stated.position);
        let stated = if is(Bug::FloorIgnored) || (is(Bug::CutBelowFloor) && is_short()) {
            Stated { position: 0, next_offset: entry.base, max_timestamp: -1, batches: 0 }
        } else {
            stated
        };
        let Stated { position, next_offset, .. } = stated;
        let known_epochs = manifest.epochs.clone();
        let rules = ScanRules {
            position,
            next_offset,
            base_offset: entry.base,
            is_foreign: entry.foreign,
            // An older manifest may not know the newest epochs: then the batches tell.
            epochs: (!entry.foreign && !is_fallback).then_some(known_epochs.as_slice()),
        };
        let mut scan_once = || {
            scan(&*file, &rules, |_, header, _| {
                if is_fallback && !entry.foreign && header.leader_epoch > manifest.epoch() {
                    manifest.epochs.retain(|&(_, start)| start < header.base_offset);
                    manifest.epochs.push((header.leader_epoch, header.base_offset));
                }
            })
        };
        let mut scan = scan_once().map_err(failed)?;
        // Beside a writer the scan may end in a batch that is half written, or that reaches beyond the length that the file
        // had when the scan began. What is damaged stays where it is; where that place turns whole, somebody is writing.
        if self.env.read_only && matches!(scan.stop, Stop::Bad(_)) {
            let again = scan_once().map_err(failed)?;
            if again.position > scan.position && matches!(again.stop, Stop::Bad(_)) {
                scan = Scan { stop: Stop::End, ..again };
            } else {
                scan = again;
            }
        }
        report.scanned_bytes += scan.position - position;
        if let (Stop::Bad(reason), Some(cap)) = (&scan.stop, entry.max_unsynced_bytes)
            && let Some(proof) = proof_of_rot(&*file, &scan, cap).map_err(failed)?
        {
            self.rot(&path, &scan, reason, proof, report)?;
        }
        Ok(Scanned {
            base: entry.base,
            floor_offset: next_offset,
            floor_position: position,
            floor_batches: stated.batches,
            floor_timestamp: stated.max_timestamp,
            scan,
        })
    }

    fn rot(&self, path: &Path, scan: &Scan, reason: &str, proof: u64, report: &mut PartitionReport) -> Result<()> {
        let what = format!(
            "{reason}; a whole batch at position {proof} proves that this had been synced: it is damage, not a torn write"
        );
        if self.env.read_only {
            report.repairs.push(Repair::Rot { path: path.to_owned(), position: scan.position, reason: what });
            return Ok(());
        }
        Err(Error::Corrupt {
            path: path.to_owned(),
            position: scan.position,
            offsets: Some((scan.next_offset.into(), i64::MAX.into())),
            what,
        })
    }

    fn note_what_a_writer_would_do(&self, found: &End, report: &mut PartitionReport) {
        for scanned in &found.scanned {
            if let Stop::Bad(reason) = &scanned.scan.stop {
                report.repairs.push(self.tail_cut(scanned, reason));
            }
        }
        for base in &found.behind {
            report
                .repairs
                .push(Repair::SegmentQuarantined { path: self.directory.join(file_name(*base, Suffix::Log)) });
        }
    }

    fn tail_cut(&self, scanned: &Scanned, reason: &str) -> Repair {
        Repair::TailCut {
            path: self.directory.join(file_name(scanned.base, Suffix::Log)),
            position: scanned.scan.position,
            bytes: scanned.scan.file_bytes - scanned.scan.position,
            next_offset: scanned.scan.next_offset.into(),
            reason: reason.to_owned(),
        }
    }

    /// Puts the bad tail into quarantine, writes the good one again and syncs it.
    fn repair(&self, manifest: &mut Manifest, found: &End, report: &mut PartitionReport) -> Result<()> {
        for scanned in &found.scanned {
            let mut move_damaged = false;
            if let Stop::Bad(reason) = &scanned.scan.stop {
                let bytes = scanned.scan.file_bytes - scanned.scan.position;
                move_damaged = bytes > quarantine::COPY_BYTES_MAX;
                if !move_damaged && !is(Bug::QuarantineSkipped) {
                    quarantine::copy_tail(
                        &*self.env.vfs,
                        &self.directory,
                        scanned.base,
                        scanned.scan.position,
                        scanned.scan.file_bytes,
                        scanned.scan.next_offset,
                        reason,
                    )?;
                }
                report.repairs.push(self.tail_cut(scanned, reason));
            }
            self.write_tail_again(scanned, move_damaged, report)?;
        }
        found.apply_to(manifest);
        // They move once the manifest says so: until then the old state holds, and it needs them where they are.
        manifest.removing = found.behind.clone();
        Ok(())
    }

    /// The bytes above the floor may be in the page cache and not on the disk, with the error reported to a process that
    /// is gone. Merely syncing them might succeed without writing them: they are written again.
    fn write_tail_again(&self, scanned: &Scanned, move_damaged: bool, report: &mut PartitionReport) -> Result<()> {
        let path = self.directory.join(file_name(scanned.base, Suffix::Log));
        let (from, to) = (scanned.floor_position, scanned.scan.position);
        if self.may_rewrite_in_place && !move_damaged {
            let file = self.env.vfs.open(&path, OpenMode::Write).map_err(|error| Error::io("open", &path, error))?;
            if !is(Bug::TailNotRewritten) {
                copy_range(&*file, &*file, from, to, &path)?;
            }
            file.set_len(to).map_err(|error| Error::io("cut", &path, error))?;
            if is(Bug::TailNotSynced) {
                return Ok(());
            }
            file.sync_all().map_err(|error| Error::io("sync", &path, error))?;
        } else {
            self.replace_by_copy(scanned, &path, move_damaged)?;
        }
        if to > from {
            report.repairs.push(Repair::TailRewritten { path, position: from, bytes: to - from });
        }
        if is(Bug::StaleIndexKept) {
            return Ok(());
        }
        // The indexes of the file's last state do not cover what was written since.
        for suffix in [Suffix::Index, Suffix::TimeIndex, Suffix::Seal] {
            let path = self.directory.join(file_name(scanned.base, suffix));
            match self.env.vfs.remove_file(&path) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(Error::io("remove", &path, error)),
            }
        }
        Ok(())
    }

    /// Builds the good part as a new file and puts it in the old one's place; old maps keep the old file.
    fn replace_by_copy(&self, scanned: &Scanned, path: &Path, keep_damaged: bool) -> Result<()> {
        let vfs = &*self.env.vfs;
        let cleaned = self.directory.join(format!("{}.cleaned", file_name(scanned.base, Suffix::Log)));
        let source = vfs.open(path, OpenMode::Read).map_err(|error| Error::io("open", path, error))?;
        let target = vfs.open(&cleaned, OpenMode::Create).map_err(|error| Error::io("create", &cleaned, error))?;
        target.set_len(0).map_err(|error| Error::io("cut", &cleaned, error))?;
        copy_range(&*source, &*target, 0, scanned.scan.position, &cleaned)?;
        target.sync_all().map_err(|error| Error::io("sync", &cleaned, error))?;
        if keep_damaged {
            quarantine::ensure(vfs, &self.directory)?;
            let name = format!("{:020}-{}-whole.bin", scanned.base, scanned.scan.position);
            let kept = self.directory.join(quarantine::DIRECTORY).join(name);
            vfs.rename(path, &kept).map_err(|error| Error::io("rename", &kept, error))?;
            let parent = self.directory.join(quarantine::DIRECTORY);
            vfs.sync_dir(&parent).map_err(|error| Error::io("sync", &parent, error))?;
        }
        vfs.rename(&cleaned, path).map_err(|error| Error::io("rename", path, error))?;
        vfs.sync_dir(&self.directory).map_err(|error| Error::io("sync", &self.directory, error))
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
        let end = found.last.next_offset;
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
        manifest: Manifest,
        generation: u64,
        floor: Option<Floor>,
        listing: &Listing,
        was_repaired: bool,
    ) -> Result<Log> {
        let has_foreign = manifest.segments.iter().any(|entry| entry.foreign);
        let aborted = if has_foreign { self.load_aborted(&manifest, listing)? } else { Vec::new() };
        let end = manifest.active().map_or(0, |entry| entry.next);
        let producers = self.load_producers(listing, end);
        let transit = manifest.pending.as_ref().and_then(|pending| pending.by);
        let transit = transit.and_then(|by| Some((by, listing.in_transit.get(&by)?.0.clone())));
        let directory = self.directory.clone();
        let log = self.build(manifest, generation, floor, aborted, producers)?;
        if let Some((by, name)) = transit
            && let Some(segment) = log.snapshot().segments.iter().find(|segment| segment.base_offset() == by)
        {
            segment.log().file().is_at(directory.join(name));
        }
        log.writer.lock().must_close = was_repaired;
        Ok(log)
    }

    /// Aborted transactions of the segments that a broker wrote.
    fn load_aborted(&self, manifest: &Manifest, listing: &Listing) -> Result<Vec<AbortedTxn>> {
        let mut aborted = Vec::new();
        for entry in manifest.segments.iter().filter(|entry| entry.foreign) {
            if !listing.side_files.contains(&(entry.base, Suffix::TxnIndex)) {
                continue;
            }
            let path = self.directory.join(file_name(entry.base, Suffix::TxnIndex));
            let bytes = read_small(&*self.env.vfs, &path, SMALL_FILE_BYTES_MAX)
                .map_err(|error| Error::io("read", &path, error))?;
            let entries = txn_index::decode(&bytes, entry.base).map_err(|why| Error::corrupt(&path, 0, why))?;
            aborted.extend(entries);
        }
        aborted.sort_by_key(|txn| txn.last_offset);
        Ok(aborted)
    }

    /// Producer state from the newest snapshot that can be read, at or below the end. A store of ours changes it only by
    /// taking a broker's directory over, and writes it at every roll and close.
    fn load_producers(&self, listing: &Listing, end: i64) -> Producers {
        for (&offset, &bytes) in listing.snapshots.range(..=end).rev() {
            if bytes == Producers::EMPTY_SNAPSHOT_BYTES as u64 {
                return Producers::default();
            }
            let path = self.directory.join(file_name(offset, Suffix::Snapshot));
            let read = read_small(&*self.env.vfs, &path, SMALL_FILE_BYTES_MAX).ok();
            if let Some(producers) = read.and_then(|bytes| Producers::decode_snapshot(&bytes).ok()) {
                return producers;
            }
        }
        Producers::default()
    }

    pub(crate) fn build(
        self,
        manifest: Manifest,
        generation: u64,
        floor: Option<Floor>,
        aborted: Vec<AbortedTxn>,
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
        let now_ms = self.env.clock.now_ms();
        let epochs = Some(manifest.epochs.clone().into());
        let set = SegmentSet { segments, epochs, aborted: aborted.into(), replacements: 0 };
        let log_start = manifest.log_start;
        let (clean_end, tombstone_floor) = (manifest.clean_end, manifest.tombstone_floor);
        let next_horizon_ms = manifest.next_horizon_ms.unwrap_or(i64::MAX);
        let settings = Arc::new(self.settings);
        Ok(Log {
            id: self.id.clone(),
            directory: self.directory,
            env: self.env.clone(),
            settings: RwLock::new(Arc::clone(&settings)),
            writer: Mutex::new(Writer {
                settings: Arc::clone(&settings),
                manifest,
                active,
                is_ready: false,
                must_close: false,
                reserve: Reserve::default(),
                active_since_ms: now_ms,
                has_pending: false,
            }),
            set: RwLock::new(Arc::new(set)),
            log_start: AtomicI64::new(log_start),
            end_offset: AtomicI64::new(end),
            durable_end: AtomicI64::new(end),
            first_unstable: AtomicI64::new(first_unstable),
            group: GroupCommit::new(end),
            written_bytes: AtomicU64::new(0),
            synced_bytes: AtomicU64::new(0),
            last_sync_ms: AtomicU64::new(0),
            last_append_ms: AtomicU64::new(0),
            seen_bytes: AtomicU64::new(0),
            floor: Mutex::new(floor_state),
            poisoned: AtomicBool::new(false),
            poison: Mutex::new(None),
            closed: AtomicBool::new(false),
            generation: AtomicU64::new(generation),
            producers: Mutex::new(producers),
            trusted_reads: AtomicU64::new(0),
            key_queue: super::key_queue::KeyQueue::default(),
            clean_end: AtomicI64::new(clean_end),
            tombstone_floor: AtomicI64::new(tombstone_floor),
            next_horizon_ms: AtomicI64::new(next_horizon_ms),
            readers_moved: AtomicBool::new(false),
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

/// What is known of the synced part of a segment.
#[derive(Clone, Copy, Debug)]
struct Stated {
    position: u64,
    next_offset: i64,
    max_timestamp: i64,
    batches: u64,
}

/// One scanned segment.
#[derive(Debug)]
struct Scanned {
    base: i64,
    floor_offset: i64,
    floor_position: u64,
    floor_batches: u64,
    floor_timestamp: i64,
    scan: Scan,
}

/// Where the log ends.
#[derive(Debug)]
struct End {
    /// Index of the segment that is active from now on.
    index: usize,
    scanned: Vec<Scanned>,
    /// Base offsets of the segments behind a torn one.
    behind: Vec<i64>,
    last: EndPlace,
}

#[derive(Clone, Copy, Debug)]
struct EndPlace {
    next_offset: i64,
}

impl End {
    fn new(index: usize, scanned: Vec<Scanned>, behind: Vec<i64>) -> Option<Self> {
        let last = EndPlace { next_offset: scanned.last()?.scan.next_offset };
        Some(Self { index, scanned, behind, last })
    }

    /// Changes the manifest to say what was found.
    fn apply_to(&self, manifest: &mut Manifest) {
        manifest.segments.truncate(self.index + 1);
        let last = manifest.segments.len().saturating_sub(1);
        for scanned in &self.scanned {
            let Some(at) = manifest.segments.iter().position(|entry| entry.base == scanned.base) else { continue };
            let Some(entry) = manifest.segments.get_mut(at) else { continue };
            entry.bytes = scanned.scan.position;
            entry.next = scanned.scan.next_offset;
            entry.batches = scanned.floor_batches + scanned.scan.batches;
            // The floor carries the largest timestamp below it; where it is not known, the headers are asked later.
            entry.max_timestamp =
                (scanned.floor_timestamp != i64::MIN).then(|| scanned.floor_timestamp.max(scanned.scan.max_timestamp));
            entry.time_index = None;
            entry.synced = true;
            entry.state = if at == last { EntryState::Active } else { EntryState::Closed };
            if at == last {
                entry.synced = false;
            }
        }
    }
}

/// The newest manifest is damaged and the one before it holds: a segment that only the damaged one listed is known by
/// its file. It was begun when the last listed one was full.
fn extend_by_unlisted(manifest: &mut Manifest, listing: &Listing) {
    let Some(last) = manifest.segments.last_mut() else { return };
    let (base, cap) = (last.base, last.max_unsynced_bytes);
    let Some((&next, _)) = listing.logs.range(base + 1..).next() else { return };
    last.state = EntryState::Closed;
    last.next = next;
    last.synced = false;
    last.bytes = listing.logs.get(&base).copied().unwrap_or(0);
    manifest.segments.push(SegmentEntry::empty(next, cap));
}

fn copy_range(
    source: &dyn crate::io::VfsFile,
    target: &dyn crate::io::VfsFile,
    from: u64,
    to: u64,
    path: &Path,
) -> Result<()> {
    let mut buffer = vec![0; usize::try_from((to - from).min(256 << 10)).unwrap_or(256 << 10)];
    let mut at = from;
    while at < to {
        let length = buffer.len().min(usize::try_from(to - at).unwrap_or(usize::MAX));
        let part = buffer.get_mut(..length).unwrap_or_default();
        read_exact_at(source, part, at).map_err(|error| Error::io("read", path, error))?;
        write_all_at(target, part, at).map_err(|(_, error)| Error::io("write", path, error))?;
        at += length as u64;
    }
    Ok(())
}

/// Creates the files of a new, empty partition in a directory that exists; durable when this returns, but for the
/// directory's own entry.
pub(crate) fn create(
    env: &Env,
    id: &TopicPartition,
    directory: &Path,
    topic_id: Uuid,
    settings: &LogSettings,
) -> Result<()> {
    let vfs = &*env.vfs;
    let manifest = Manifest::empty(env.store_id, topic_id, id.partition.get(), settings.unsynced_cap());
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
    manifest::slots(directory).write(vfs, 1, &manifest.encode(), true)?;
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
