//! A look at every byte of a directory that changes nothing: [`verify`].
//!
//! It takes no lock and repairs nothing. Of a store it checks all that its manifests promise; of a plain Kafka directory
//! all that Kafka's formats let one check.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use super::catalog::{self, Catalog};
use super::checkpoints::{self, TopicIds};
use super::open::partition_directories;
use crate::error::{Error, Result};
use crate::ids::{Offset, TopicPartition};
use crate::io::{DiskVfs, EntryKind, OpenMode, Vfs, VfsFile, read_exact_at, read_small};
use crate::partition::floor::{self, Floor, Kind};
use crate::partition::foreign::{Exchange, NO_FILE};
use crate::partition::hints::{self, Hints, Missing};
use crate::partition::kafka_state::{self, Producers};
use crate::partition::listing::{Listing, list};
use crate::partition::manifest::{self, EntryState, Manifest, SegmentEntry};
use crate::partition::quarantine;
use crate::record::{self, BatchError, BatchHeader, DecodeLimits, LegacyEntry, RecordsIter};
use crate::segment::name::{self, Suffix, file_name};
use crate::segment::recover::{Scan, ScanRules, Stop, Visit, proof_of_rot, scan_all};
use crate::segment::seal::{Seal, SealBuilder};
use crate::segment::{FileCheck, offset_index, time_index, txn_index};

/// What a batch may become in memory when its records are looked into: what readers allow by default.
const LIMITS: DecodeLimits = DecodeLimits { decompressed_bytes_max: 16 << 20 };

/// A longer file beside the logs is none of Kafka's.
const SMALL_FILE_BYTES_MAX: u64 = 64 << 20;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Severity {
    /// Bytes are not what was written, or something is missing.
    Damage,
    /// Worth knowing, and no damage: a torn tail that the next open cuts, a file of others, a codec that is not built in.
    Notice,
}

/// One thing that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// The file.
    pub path: PathBuf,
    /// The byte position in it, where there is one.
    pub position: Option<u64>,
    /// The offset from which on records are concerned, where known.
    pub offset: Option<Offset>,
    /// What is wrong.
    pub what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = if self.severity == Severity::Damage { "damage" } else { "notice" };
        write!(f, "{severity}: {}", self.path.display())?;
        if let Some(position) = self.position {
            write!(f, " at position {position}")?;
        }
        if let Some(offset) = self.offset {
            write!(f, ", offset {offset}")?;
        }
        write!(f, ": {}", self.what)
    }
}

/// What [`verify`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct VerifyReport {
    /// Everything, in the order in which it was found.
    pub findings: Vec<Finding>,
    /// Partitions that were looked at.
    pub partitions: usize,
    /// Segments that were looked at.
    pub segments: usize,
    /// Good batches, and entries of the old formats.
    pub batches: u64,
    /// Records in them, as their headers say.
    pub records: u64,
    /// Bytes of good batches.
    pub bytes: u64,
}

impl VerifyReport {
    /// The findings that are damage.
    pub fn damages(&self) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(|finding| finding.severity == Severity::Damage)
    }

    fn add(&mut self, severity: Severity, path: &Path, position: Option<u64>, what: impl Into<String>) {
        let what = what.into();
        self.findings.push(Finding { severity, path: path.to_owned(), position, offset: None, what });
    }

    fn damage(&mut self, path: &Path, position: Option<u64>, what: impl Into<String>) {
        self.add(Severity::Damage, path, position, what);
    }

    fn notice(&mut self, path: &Path, position: Option<u64>, what: impl Into<String>) {
        self.add(Severity::Notice, path, position, what);
    }
}

/// Checks a store, or a plain Kafka log directory, on the disk. Changes nothing and takes no lock: beside a live writer
/// the tail of an active segment may look torn, which is a notice.
///
/// # Errors
/// [`Error::Io`] if the directory cannot be read at all, [`Error::Unsupported`] if a newer version wrote it. What is
/// wrong *in* it is in the report.
///
/// ```
/// use topiclog::{Record, Store, TopicConfig, verify};
/// # let directory = tempfile::tempdir().unwrap();
/// # let path = directory.path().join("data");
/// let store = Store::open(&path)?;
/// store.create_topic("t", TopicConfig::default())?.append(Record::of_value("v"))?;
/// store.close()?;
/// let report = verify(&path)?;
/// assert_eq!((report.records, report.damages().count()), (1, 0));
/// # Ok::<(), topiclog::Error>(())
/// ```
pub fn verify(path: impl AsRef<Path>) -> Result<VerifyReport> {
    verify_on(&DiskVfs::new(), path.as_ref())
}

/// [`verify`] on another file system than the disk.
///
/// # Errors
/// As [`verify`].
pub fn verify_on(vfs: &dyn Vfs, root: &Path) -> Result<VerifyReport> {
    let mut report = VerifyReport::default();
    let listed = vfs.list(root).map_err(|error| Error::io("list", root, error))?;
    let (stated, _) = checkpoints::read_stated(vfs, root)?;
    for name in [checkpoints::RECOVERY_POINT, checkpoints::LOG_START, checkpoints::HIGH_WATERMARK, checkpoints::CLEANER]
    {
        if let Err(why) = checkpoints::read(vfs, root, name)? {
            report.damage(&root.join(name), None, why);
        }
    }
    let read = catalog::read(vfs, root)?;
    for (path, why) in &read.damaged {
        report.damage(path, None, why.clone());
    }
    let catalog = read.newest.map(|(_, catalog)| catalog);
    if catalog.is_none() && !read.damaged.is_empty() {
        report.damage(root, None, "neither copy of the store manifest can be read");
    }
    let mut is_told = catalog.is_some() || !read.damaged.is_empty();
    let mut expected: BTreeSet<TopicPartition> = BTreeSet::new();
    for entry in catalog.iter().flat_map(|catalog| &catalog.topics) {
        let ids = entry.partitions.iter().map(|&partition| TopicPartition::new(entry.name.clone(), partition));
        expected.extend(ids);
    }
    for entry in listed.iter().filter(|entry| entry.kind == EntryKind::Other) {
        if TopicPartition::from_directory_name(&entry.name).is_some() {
            report.notice(
                &root.join(&entry.name),
                None,
                "named like a partition, but no directory; it is not followed",
            );
        }
    }
    for entry in listed.iter().filter(|entry| entry.kind == EntryKind::Directory) {
        let path = root.join(&entry.name);
        match TopicPartition::from_directory_name(&entry.name) {
            Some(id) if id.topic.as_str() == "__cluster_metadata" => {}
            Some(id) => {
                let is_listed = expected.remove(&id);
                if catalog.is_some() && !is_listed {
                    report.notice(&path, None, "no topic of the store lists this partition");
                    continue;
                }
                report.partitions += 1;
                if !is_told && has_manifest(vfs, &path)? {
                    let what = "a partition here has a manifest of this library, and the store has none: it was lost, or an \
                                adoption was interrupted";
                    report.damage(root, None, what);
                    is_told = true;
                }
                let (hints, was_clean) = (stated.of(&id), stated.was_clean);
                let mut partition = PartitionCheck { vfs, directory: &path, report: &mut report, hints, was_clean };
                partition.run(catalog.as_ref(), &id)?;
            }
            None => report.notice(&path, None, "not a partition; left alone"),
        }
    }
    check_topic_ids(vfs, root, &partition_directories(&listed), catalog.as_ref(), &mut report);
    for id in expected {
        report.damage(&root.join(id.directory_name()), None, "the store lists this partition, but it is missing");
    }
    Ok(report)
}

/// Partitions of one topic have one topic id. A file of it that cannot be read is told of elsewhere.
fn check_topic_ids(
    vfs: &dyn Vfs,
    root: &Path,
    ids: &[TopicPartition],
    catalog: Option<&Catalog>,
    report: &mut VerifyReport,
) {
    let mut topic_ids = TopicIds::default();
    for id in ids.iter().filter(|id| catalog.is_none_or(|catalog| catalog.lists(id))) {
        let directory = root.join(id.directory_name());
        if let Ok(Some(topic_id)) = checkpoints::read_topic_id(vfs, &directory)
            && let Err(Error::Corrupt { path, what, .. }) = topic_ids.note(&id.topic, &directory, topic_id)
        {
            report.damage(&path, None, what);
        }
    }
}

fn has_manifest(vfs: &dyn Vfs, directory: &Path) -> Result<bool> {
    let listed = vfs.list(directory).map_err(|error| Error::io("list", directory, error))?;
    Ok(listed
        .iter()
        .any(|entry| entry.name.strip_prefix(manifest::NAME).is_some_and(|slot| matches!(slot, ".0" | ".1"))))
}

struct PartitionCheck<'a> {
    vfs: &'a dyn Vfs,
    directory: &'a Path,
    report: &'a mut VerifyReport,
    hints: Hints,
    /// Whether the directory was left in order, so that nothing may be torn.
    was_clean: bool,
}

/// How one log file is to be looked at.
struct LogCheck<'a> {
    base: i64,
    manifest: Option<&'a Manifest>,
    entry: Option<&'a SegmentEntry>,
    /// Where the next segment begins; `None` for the last one.
    next_base: Option<i64>,
    floor: Option<Floor>,
    /// Where the files may have names of an interrupted exchange.
    exchange: Option<&'a Exchange>,
}

impl LogCheck<'_> {
    fn name(&self, suffix: Suffix) -> String {
        self.exchange.map_or_else(|| file_name(self.base, suffix), |exchange| exchange.name(self.base, suffix))
    }
}

impl PartitionCheck<'_> {
    fn run(&mut self, catalog: Option<&Catalog>, id: &TopicPartition) -> Result<()> {
        let mut listing = list(self.vfs, self.directory)?;
        self.small_files(&listing)?;
        let Some(catalog) = catalog else {
            self.foreign(&mut listing)?;
            return Ok(());
        };
        let slots = manifest::slots(self.directory);
        let read = slots.read(self.vfs)?;
        if let Some((found, max)) = read.newer {
            let path = self.directory.display();
            return Err(Error::unsupported(format!("the manifest in {path} has version {found}, known is {max}")));
        }
        for (path, why) in &read.damaged {
            self.report.damage(path, None, why.clone());
        }
        let Some(slot) = read.newest else {
            self.report.damage(self.directory, None, "no copy of the partition manifest can be read");
            self.foreign(&mut listing)?;
            return Ok(());
        };
        for path in read.missing.iter().filter(|_| slot.generation > 1) {
            self.report.damage(path, None, "this copy of the manifest is missing");
        }
        let path = self.directory.join(slots.slot_name(slot.generation));
        match Manifest::decode(&slot.payload) {
            Ok(manifest) => {
                let topic = catalog.topics.iter().find(|entry| entry.name == id.topic);
                if manifest.store_id != catalog.store_id
                    || topic.is_some_and(|topic| topic.topic_id != manifest.topic_id)
                {
                    self.report.damage(&path, None, "it belongs to another store or topic");
                }
                self.ours(&manifest, slot.generation, &listing)
            }
            Err(why) => {
                self.report.damage(&path, None, why);
                Ok(())
            }
        }
    }

    fn foreign(&mut self, listing: &mut Listing) -> Result<()> {
        let exchange = match Exchange::find(self.vfs, self.directory) {
            Ok(exchange) => exchange,
            Err(Error::Corrupt { path, position, what, .. }) => {
                self.report.damage(&path, Some(position), what);
                Exchange::default()
            }
            Err(error) => return Err(error),
        };
        let of_log = exchange.finished.iter().find(|name| name.ends_with(".log.swap"));
        if let Some(name) = of_log.or(exchange.finished.first()) {
            let what = "an exchange of segments was interrupted: this file stands for those that it replaces";
            self.report.notice(&self.directory.join(name), None, what);
        }
        exchange.see_through(listing);
        let bases: Vec<i64> = listing.logs.keys().copied().collect();
        let mut ends = BTreeMap::new();
        for (index, &base) in bases.iter().enumerate() {
            let next_base = bases.get(index + 1).copied();
            let exchange = Some(&exchange);
            let found = self.log(&LogCheck { base, manifest: None, entry: None, next_base, floor: None, exchange })?;
            if !matches!(found.stop, Stop::Unsupported(_)) {
                ends.insert(base, found.next_offset);
            }
        }
        self.missing(listing, &ends);
        Ok(())
    }

    /// What a broker's checkpoints and index files prove to be missing, by where each log ends.
    fn missing(&mut self, listing: &Listing, ends: &BTreeMap<i64, i64>) {
        let last = listing.logs.keys().next_back();
        let end = last.map_or(Some(0), |last| ends.get(last).copied());
        if let Some(missing) = end.and_then(|end| self.hints.missing(end)) {
            self.missing_from(self.directory, missing);
        }
        if let Some(what) = end.and_then(|end| self.hints.surplus(end)) {
            self.report.notice(self.directory, None, what);
        }
        for orphan in hints::orphans(listing, ends) {
            let path = self.directory.join(file_name(orphan.base, orphan.suffix));
            match orphan.missing {
                Some(missing) => self.missing_from(&path, missing),
                None => self.report.notice(&path, None, "an index without a log"),
            }
        }
    }

    fn missing_from(&mut self, path: &Path, missing: Missing) {
        let (severity, offset) = (Severity::Damage, Some(missing.from.into()));
        self.report.findings.push(Finding {
            severity,
            path: path.to_owned(),
            position: None,
            offset,
            what: missing.what,
        });
    }

    fn ours(&mut self, manifest: &Manifest, generation: u64, listing: &Listing) -> Result<()> {
        let floor = floor::read(self.vfs, self.directory)?;
        let is_clean = floor.is_some_and(|floor| floor.kind == Kind::Clean && floor.generation == generation);
        self.was_clean = is_clean;
        if floor.is_none() {
            self.report.damage(&self.directory.join(floor::NAME), None, "no entry of the recovery floor can be read");
        }
        let in_transit = manifest.pending.as_ref().map_or(&[][..], |pending| pending.replace.as_slice());
        if let Some(base) = in_transit.iter().find(|base| listing.is_in_transit(**base)) {
            let path = self.directory.join(file_name(*base, Suffix::Log));
            self.report.notice(&path, None, "an exchange of segments was interrupted; the next open goes on with it");
        }
        for (index, entry) in manifest.segments.iter().enumerate() {
            let path = self.directory.join(file_name(entry.base, Suffix::Log));
            if in_transit.contains(&entry.base) && listing.is_in_transit(entry.base) {
                continue;
            }
            let Some(&bytes) = listing.logs.get(&entry.base) else {
                self.report.damage(&path, None, "the manifest lists this segment, but it is missing");
                continue;
            };
            let must_be = match entry.state {
                EntryState::Sealed => Some(entry.bytes),
                EntryState::Active if is_clean => Some(entry.bytes),
                _ => None,
            };
            if must_be.is_some_and(|must_be| must_be != bytes) {
                self.report.damage(&path, None, format!("{bytes} bytes long, the manifest says {}", entry.bytes));
            }
            let next_base = manifest.segments.get(index + 1).map(|next| next.base);
            let (base, manifest, entry) = (entry.base, Some(manifest), Some(entry));
            self.log(&LogCheck { base, manifest, entry, next_base, floor, exchange: None })?;
        }
        for (&base, &bytes) in &listing.logs {
            if bytes > 0 && manifest.segments.iter().all(|entry| entry.base != base) && !in_transit.contains(&base) {
                let path = self.directory.join(file_name(base, Suffix::Log));
                self.report.damage(&path, None, "records in a segment that the manifest does not list");
            }
        }
        Ok(())
    }

    /// Every batch of one file, and its indexes beside it.
    fn log(&mut self, check: &LogCheck<'_>) -> Result<Scan> {
        let path = self.directory.join(check.name(Suffix::Log));
        let file = self.vfs.open(&path, OpenMode::Read).map_err(|error| Error::io("open", &path, error))?;
        self.report.segments += 1;
        let is_foreign = check.entry.is_none_or(|entry| entry.foreign);
        let rules = ScanRules {
            position: 0,
            next_offset: check.base,
            base_offset: check.base,
            is_foreign,
            epochs: check.manifest.filter(|_| !is_foreign).map(|manifest| manifest.epochs.as_slice()),
        };
        let is_settled = match check.entry.map(|entry| entry.state) {
            Some(EntryState::Sealed) => true,
            // Not synced: after a crash they are made anew before the segment is sealed.
            Some(EntryState::Closed) => false,
            Some(EntryState::Active) | None => check.next_base.is_some() || self.was_clean,
        };
        let log_bytes = file.len().map_err(|error| Error::io("read", &path, error))?;
        let indexes = self.indexes(check, is_settled.then_some(log_bytes))?;
        let mut seen = Seen { base: check.base, batches: 0, counted: 0, indexes, records: RecordsCheck::default() };
        let found = scan_all(&*file, &rules, &mut seen).map_err(|error| Error::io("read", &path, error))?;
        self.report.batches += seen.batches;
        self.report.records += seen.counted;
        self.report.bytes += found.position;
        for (position, what, severity) in seen.records.findings {
            self.report.add(severity, &path, Some(position), what);
        }
        self.judge_stop(check, &path, &*file, &found)?;
        let whole = matches!(found.stop, Stop::End | Stop::Zeros);
        for (suffix, what) in seen.indexes.finish(whole && is_settled) {
            let path = self.directory.join(check.name(suffix));
            self.report.damage(&path, None, what);
        }
        self.seal(check, &path, &*file, &found)?;
        Ok(found)
    }

    fn judge_stop(&mut self, check: &LogCheck<'_>, path: &Path, file: &dyn VfsFile, found: &Scan) -> Result<()> {
        let mut damage = |what: String| {
            self.report.findings.push(Finding {
                severity: Severity::Damage,
                path: path.to_owned(),
                position: Some(found.position),
                offset: Some(found.next_offset.into()),
                what,
            });
        };
        if let Some(entry) = check.entry.filter(|entry| entry.state != EntryState::Active) {
            if found.position < entry.bytes || (!entry.foreign && found.next_offset != entry.next) {
                let why = stop_text(&found.stop);
                damage(format!(
                    "{why}; the manifest has batches up to position {}, offset {}",
                    entry.bytes, entry.next
                ));
            }
            return Ok(());
        }
        let floor = check.floor.filter(|floor| floor.base == check.base);
        if let Some(floor) = floor.filter(|floor| found.position < floor.position) {
            let why = stop_text(&found.stop);
            damage(format!("{why}; everything below position {} had been synced", floor.position));
            return Ok(());
        }
        match &found.stop {
            Stop::End => {}
            Stop::Zeros if !self.was_clean => {}
            Stop::Zeros => damage("zeros follow the last batch, although the directory was left in order".into()),
            Stop::Unsupported(what) => self.report.notice(path, Some(found.position), what.clone()),
            Stop::Bad(why) if check.next_base.is_some() || self.was_clean => damage(why.clone()),
            Stop::Bad(why) => {
                let cap = check.entry.and_then(|entry| entry.max_unsynced_bytes);
                let proof = match cap {
                    Some(cap) => proof_of_rot(file, found, cap).map_err(|error| Error::io("read", path, error))?,
                    None => None,
                };
                match proof {
                    Some(at) => damage(format!("{why}; a whole batch at position {at} proves that it had been synced")),
                    None => {
                        let what = format!("torn tail, which the next open for writing cuts: {why}");
                        self.report.notice(path, Some(found.position), what);
                    }
                }
            }
        }
        if let Some(next) = check.next_base.filter(|&next| found.next_offset > next) {
            self.report.damage(
                path,
                Some(found.position),
                format!("offsets overlap the next segment's, which begins at {next}"),
            );
        }
        Ok(())
    }

    /// Compares a sealed segment with its checksums.
    fn seal(&mut self, check: &LogCheck<'_>, path: &Path, file: &dyn VfsFile, found: &Scan) -> Result<()> {
        let Some(entry) = check.entry.filter(|entry| entry.state == EntryState::Sealed) else { return Ok(()) };
        let mut builder = SealBuilder::default();
        let mut buffer = vec![0; 1 << 20];
        let mut position = 0;
        while position < found.file_bytes {
            let length = buffer.len().min(usize::try_from(found.file_bytes - position).unwrap_or(usize::MAX));
            let part = buffer.get_mut(..length).unwrap_or_default();
            read_exact_at(file, part, position).map_err(|error| Error::io("read", path, error))?;
            builder.update(part);
            position += length as u64;
        }
        let crc32 = builder.crc32();
        if entry.crc32 != Some(crc32) {
            self.report.damage(path, None, "the whole does not match the checksum in the manifest");
        }
        let seal_path = self.directory.join(file_name(check.base, Suffix::Seal));
        let decoded = match read_small(self.vfs, &seal_path, Seal::FILE_BYTES_MAX) {
            Ok(bytes) => Seal::decode(&bytes).map_err(str::to_owned),
            Err(error) => Err(error.to_string()),
        };
        let seal = match decoded {
            Ok(seal) => seal,
            Err(why) => {
                self.report.damage(&seal_path, None, why);
                return Ok(());
            }
        };
        if seal.base_offset != check.base || entry.crc32 != Some(seal.crc32) {
            self.report.damage(&seal_path, None, "the seal is not the one that the manifest means");
        }
        for side in &seal.side_files {
            let Some(suffix) = Suffix::ALL.into_iter().find(|suffix| suffix.as_str() == side.suffix) else { continue };
            let path = self.directory.join(file_name(check.base, suffix));
            // That of aborted transactions may have been made anew since; the manifest knows it.
            let listed = entry.txn_index.filter(|_| suffix == Suffix::TxnIndex);
            let expected = listed.unwrap_or(FileCheck { bytes: side.bytes, crc32: side.crc32 });
            match FileCheck::of_file(self.vfs, &path) {
                Ok(found) if found == expected => {}
                Ok(_) => self.report.damage(&path, None, "it does not match its checksum"),
                Err(error) => self.report.damage(&path, None, error.to_string()),
            }
        }
        Ok(())
    }

    /// The index files of a segment, by the length of its log. Of one that was not left in order, which has none here,
    /// nothing is expected: they are made anew.
    fn indexes(&mut self, check: &LogCheck<'_>, settled_bytes: Option<u64>) -> Result<IndexCheck> {
        let Some(log_bytes) = settled_bytes else { return Ok(IndexCheck::default()) };
        let path = |suffix| self.directory.join(check.name(suffix));
        let (offsets, times) = (path(Suffix::Index), path(Suffix::TimeIndex));
        let offsets = self.read_small(&offsets, offset_index::bytes_max(log_bytes))?;
        let times = self.read_small(&times, time_index::bytes_max(log_bytes))?;
        let is_exact = check.entry.is_some_and(|entry| !entry.foreign);
        Ok(IndexCheck::new(offsets.as_deref(), times.as_deref(), is_exact))
    }

    /// Reads a file that others may have removed meanwhile. One that is too long is a finding.
    fn read_small(&mut self, path: &Path, bytes_max: u64) -> Result<Option<Vec<u8>>> {
        match read_small(self.vfs, path, bytes_max) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                self.report.damage(path, None, error.to_string());
                Ok(None)
            }
            Err(error) => Err(Error::io("read", path, error)),
        }
    }

    /// Files whose contents can be judged by themselves.
    fn small_files(&mut self, listing: &Listing) -> Result<()> {
        for &offset in listing.snapshots.keys() {
            let path = self.directory.join(file_name(offset, Suffix::Snapshot));
            let Some(bytes) = self.read_small(&path, SMALL_FILE_BYTES_MAX)? else { continue };
            if let Err(why) = Producers::decode_snapshot(&bytes) {
                self.report.damage(&path, None, why);
            }
        }
        for &(base, _) in listing.side_files.iter().filter(|(_, suffix)| *suffix == Suffix::TxnIndex) {
            let path = self.directory.join(file_name(base, Suffix::TxnIndex));
            let Some(bytes) = self.read_small(&path, SMALL_FILE_BYTES_MAX)? else { continue };
            if let Err(why) = txn_index::decode(&bytes, base) {
                self.report.damage(&path, None, why);
            } else if bytes.len() % txn_index::ENTRY_BYTES != 0 {
                self.report.damage(&path, None, "the last entry is cut short");
            }
        }
        let path = self.directory.join(kafka_state::EPOCHS_NAME);
        match read_small(self.vfs, &path, SMALL_FILE_BYTES_MAX) {
            Ok(bytes) => {
                let text = String::from_utf8_lossy(&bytes).into_owned();
                if let Err(why) = kafka_state::decode_epochs(&text) {
                    self.report.damage(&path, None, why);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::io("read", &path, error)),
        }
        if let Err(error) = checkpoints::read_topic_id(self.vfs, self.directory) {
            self.report.damage(&self.directory.join("partition.metadata"), None, error.to_string());
        }
        let no_files: Vec<String> = listing.no_files().map(|base| file_name(base, Suffix::Log)).collect();
        for name in &no_files {
            self.report.damage(&self.directory.join(name), None, NO_FILE);
        }
        for name in listing.strangers().iter().filter(|name| !no_files.contains(name)) {
            let is_swap = name.strip_suffix(".swap").and_then(name::parse).is_some();
            let what =
                if is_swap { "part of an exchange of segments" } else { "not a file of Kafka or of this library" };
            self.report.notice(&self.directory.join(name), None, what);
        }
        let quarantined = self.directory.join(quarantine::DIRECTORY);
        match self.vfs.list(&quarantined) {
            Ok(kept) if !kept.is_empty() => {
                self.report.notice(&quarantined, None, format!("{} files that a recovery cut off", kept.len()));
            }
            _ => {}
        }
        Ok(())
    }
}

fn stop_text(stop: &Stop) -> &str {
    match stop {
        Stop::End => "the file ends",
        Stop::Zeros => "only zeros follow",
        Stop::Bad(why) | Stop::Unsupported(why) => why,
    }
}

/// What the scan of one log is for.
struct Seen {
    base: i64,
    batches: u64,
    /// Records, as the headers say.
    counted: u64,
    indexes: IndexCheck,
    records: RecordsCheck,
}

impl Visit for Seen {
    fn batch(&mut self, position: u64, header: &BatchHeader, bytes: Option<&[u8]>) {
        self.batches += 1;
        self.counted += u64::from(header.records_count.unsigned_abs());
        let span = Span { first: header.base_offset, last: header.last_offset(), max_timestamp: header.max_timestamp };
        self.indexes.batch(position, span, self.base);
        self.records.batch(position, header, bytes);
    }

    fn legacy(&mut self, position: u64, entry: &LegacyEntry) {
        self.batches += 1;
        let span = Span { first: entry.offset, last: entry.offset, max_timestamp: entry.timestamp_ms };
        self.indexes.batch(position, span, self.base);
        self.records.legacy(position);
    }
}

/// Looks into the records of each batch.
#[derive(Default)]
struct RecordsCheck {
    findings: Vec<(u64, String, Severity)>,
    /// What batches were passed over for, so that it is told once.
    passed_over: BTreeSet<PassedOver>,
}

/// Why the records of a batch are not looked into. Its checksum held.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum PassedOver {
    OldFormat,
    Codec,
    Long,
    Large,
}

impl RecordsCheck {
    fn legacy(&mut self, position: u64) {
        self.pass_over(position, PassedOver::OldFormat, "entries of the formats 0 and 1");
    }

    /// The first of its kind in a log is told of.
    fn pass_over(&mut self, position: u64, kind: PassedOver, why: impl fmt::Display) {
        if self.passed_over.insert(kind) {
            self.findings.push((position, format!("records not looked into: {why}"), Severity::Notice));
        }
    }

    fn batch(&mut self, position: u64, header: &BatchHeader, bytes: Option<&[u8]>) {
        let Some(bytes) = bytes else {
            return self.pass_over(position, PassedOver::Long, "a batch that is too long to be held in memory");
        };
        let body = match record::decode_slice(header, bytes, &LIMITS) {
            Ok(body) => body,
            Err(error) if error.is_unsupported() => return self.pass_over(position, PassedOver::Codec, error),
            Err(error @ BatchError::DecompressedTooLarge { .. }) => {
                return self.pass_over(position, PassedOver::Large, error);
            }
            Err(error) => return self.findings.push((position, error.to_string(), Severity::Damage)),
        };
        if let Some(error) = RecordsIter::new(header, &body).find_map(std::result::Result::err) {
            self.findings.push((position, error.to_string(), Severity::Damage));
        }
    }
}

/// What of a batch the indexes speak of. Of an entry of an old format the first offset is not known.
#[derive(Clone, Copy)]
struct Span {
    first: i64,
    last: i64,
    max_timestamp: i64,
}

/// Walks the entries of both indexes beside the batches that they speak of.
#[derive(Default)]
struct IndexCheck {
    offsets: Vec<offset_index::Entry>,
    times: Vec<time_index::Entry>,
    next_offset_entry: usize,
    next_time_entry: usize,
    running_maximum: i64,
    is_exact: bool,
    findings: Vec<(Suffix, String)>,
}

/// One wrong index says the same thing many times.
const FINDINGS_PER_INDEX_MAX: usize = 3;

impl IndexCheck {
    fn new(offsets: Option<&[u8]>, times: Option<&[u8]>, is_exact: bool) -> Self {
        let mut check = Self { running_maximum: -1, is_exact, ..Self::default() };
        if offsets.is_some_and(|bytes| bytes.len() % offset_index::ENTRY_BYTES != 0) {
            check.note(Suffix::Index, "the last entry is cut short".into());
        }
        if times.is_some_and(|bytes| bytes.len() % time_index::ENTRY_BYTES != 0) {
            check.note(Suffix::TimeIndex, "the last entry is cut short".into());
        }
        check.offsets = offsets.map(|bytes| offset_index::entries(bytes).collect()).unwrap_or_default();
        check.times = times.map(|bytes| time_index::entries(bytes).collect()).unwrap_or_default();
        let rises = |pair: &[offset_index::Entry]| matches!(pair, [a, b] if a.relative_offset < b.relative_offset && a.position < b.position);
        if !check.offsets.windows(2).all(rises) {
            check.note(Suffix::Index, "the entries do not rise".into());
            check.offsets.clear();
        }
        let rises = |pair: &[time_index::Entry]| matches!(pair, [a, b] if a.timestamp < b.timestamp && a.relative_offset <= b.relative_offset);
        if !check.times.windows(2).all(rises) {
            check.note(Suffix::TimeIndex, "the entries do not rise".into());
            check.times.clear();
        }
        check
    }

    fn note(&mut self, suffix: Suffix, what: String) {
        if self.findings.iter().filter(|(of, _)| *of == suffix).count() < FINDINGS_PER_INDEX_MAX {
            self.findings.push((suffix, what));
        }
    }

    fn batch(&mut self, position: u64, span: Span, base: i64) {
        while let Some(&entry) = self.offsets.get(self.next_offset_entry) {
            let at = u64::from(entry.position);
            if at > position {
                break;
            }
            self.next_offset_entry += 1;
            let offset = base.saturating_add(i64::from(entry.relative_offset));
            let fits = if self.is_exact { offset == span.last } else { offset >= span.first };
            if at < position || !fits {
                self.note(
                    Suffix::Index,
                    format!("the entry for offset {offset} does not lead to a batch that ends there"),
                );
            }
        }
        // Every record with a greater timestamp than an entry's lies behind the entry's offset.
        while let Some(&entry) = self.times.get(self.next_time_entry) {
            let offset = base.saturating_add(i64::from(entry.relative_offset));
            if offset >= span.last {
                break;
            }
            self.next_time_entry += 1;
            if self.running_maximum > entry.timestamp {
                self.note(Suffix::TimeIndex, format!("a record before offset {offset} is later than its entry says"));
            }
        }
        self.running_maximum = self.running_maximum.max(span.max_timestamp);
    }

    fn finish(mut self, is_whole: bool) -> Vec<(Suffix, String)> {
        if !is_whole {
            return self.findings;
        }
        if self.next_offset_entry < self.offsets.len() {
            self.note(Suffix::Index, "an entry lies behind the last batch".into());
        }
        let last = self.times.last().copied();
        if last.is_some_and(|last| last.timestamp < self.running_maximum) {
            self.note(Suffix::TimeIndex, "the last entry is not the largest timestamp of the segment".into());
        }
        self.findings
    }
}
