//! A partition directory without a manifest: Kafka's own, or ours after both copies of the manifest were lost.
//!
//! It can be looked at, never written: nothing vouches for its files, so every batch is checked at its first read. The
//! same look, with every batch checked, is what taking such a directory over begins with.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::aborted::Aborted;
use super::hints::{self, Missing};
use super::kafka_state::{self, Producers};
use super::listing::{Listing, list};
use super::manifest::{EntryState, Manifest, SegmentEntry};
use super::open::Opening;
use super::reader::marker_of;
use super::repair::{PartitionReport, Repair};
use super::{Log, SegmentSet};
use crate::error::{Error, Result};
use crate::io::{EntryKind, OpenMode, Vfs, VfsFile, read_full_at, read_small};
use crate::record::{BatchHeader, BatchView};
use crate::segment::name::{self, Suffix, file_name};
use crate::segment::offset_index;
use crate::segment::recover::{Scan, ScanRules, Stop, scan};
use crate::segment::txn_index::{self, AbortedTxn};

const INDEX_BYTES_MAX: u64 = 64 << 20;
const SWAP: &str = ".swap";
const CLEANED: &str = ".cleaned";

/// What was found in such a directory.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) entries: Vec<SegmentEntry>,
    pub(crate) log_start: i64,
    pub(crate) end: i64,
    pub(crate) epochs: Vec<(i32, i64)>,
    pub(crate) aborted: Vec<AbortedTxn>,
    /// Whether there may be more of them than these, as only the batches tell.
    batches_tell_more: bool,
    pub(crate) producers: Producers,
    pub(crate) repairs: Vec<Repair>,
    /// What of the last segment is no batch.
    pub(crate) torn: Option<(Scan, String)>,
    /// Highest leader epoch of the scanned batches and of the manifest before, -1 if there is none.
    pub(crate) highest_epoch: i32,
    /// An exchange of segments that was interrupted, and through which this was seen.
    pub(crate) exchange: Exchange,
    /// When each log was last written to, by base offset.
    pub(crate) written_ms: BTreeMap<i64, i64>,
}

impl Found {
    /// The first leader epoch above all that the checkpoint and the batches have; `None` if there can be none.
    pub(crate) fn next_epoch(&self) -> Option<i32> {
        let newest = self.epochs.last().map_or(-1, |&(epoch, _)| epoch);
        newest.max(self.highest_epoch).checked_add(1)
    }
}

/// An exchange of segments that a broker, or a store without its manifest, was interrupted in. Which files are the log is
/// said by their names alone, as Kafka's loader has it.
#[derive(Debug, Default)]
pub(crate) struct Exchange {
    /// Output that was not complete, in the order in which it has to go: as long as a `.cleaned` file is there, no `.swap`
    /// file at or above its base offset counts.
    pub(crate) unfinished: Vec<String>,
    /// Files of complete output, by the names that end in `.swap`.
    pub(crate) finished: Vec<String>,
    /// Length of each log among them, by base offset.
    logs: BTreeMap<i64, u64>,
    /// What they replace: files whose number is at least the first and below the second.
    replaced: (i64, i64),
}

impl Exchange {
    /// Finds out what a directory shows. Every complete log is scanned, as it says only by its batches how far it goes.
    pub(crate) fn find(vfs: &dyn Vfs, directory: &Path) -> Result<Self> {
        let listed = vfs.list(directory).map_err(|error| Error::io("list", directory, error))?;
        let swap = |name: &str| name.strip_suffix(SWAP).and_then(number);
        let cleaned = |name: &str| name.strip_suffix(CLEANED).and_then(number);
        let unfinished = listed.iter().filter_map(|entry| cleaned(&entry.name)).min().unwrap_or(i64::MAX);
        let mut found = Self { replaced: (i64::MAX, i64::MIN), ..Self::default() };
        for entry in &listed {
            match swap(&entry.name) {
                Some(base) if base >= unfinished => found.unfinished.push(entry.name.clone()),
                Some(base) => {
                    found.finished.push(entry.name.clone());
                    if entry.name == swap_name(base, Suffix::Log) {
                        let next = scan_swap(vfs, &directory.join(&entry.name), entry.kind, base)?;
                        found.logs.insert(base, entry.bytes);
                        found.replaced = (found.replaced.0.min(base), found.replaced.1.max(next));
                    }
                }
                None => {}
            }
        }
        found.unfinished.extend(listed.into_iter().map(|entry| entry.name).filter(|name| name.ends_with(CLEANED)));
        Ok(found)
    }

    /// Whether a file of this name goes, as the complete output stands for it.
    pub(crate) fn replaces(&self, name: &str) -> bool {
        !name.ends_with(SWAP) && !name.ends_with(CLEANED) && number(name).is_some_and(|number| self.covers(number))
    }

    fn covers(&self, number: i64) -> bool {
        self.replaced.0 <= number && number < self.replaced.1
    }

    /// Whether the log of this base offset still has its name of the exchange.
    pub(crate) fn has_log(&self, base: i64) -> bool {
        self.logs.contains_key(&base)
    }

    /// The name that a file has now.
    pub(crate) fn name(&self, base: i64, suffix: Suffix) -> String {
        let swap = swap_name(base, suffix);
        if self.finished.contains(&swap) { swap } else { file_name(base, suffix) }
    }

    /// Lists the directory as if the exchange had been carried out.
    pub(crate) fn see_through(&self, listing: &mut Listing) {
        listing.logs.retain(|&base, _| !self.covers(base));
        listing.snapshots.retain(|&offset, _| !self.covers(offset));
        listing.side_files.retain(|&(base, _)| !self.covers(base) && !self.has_log(base));
        listing.logs.extend(self.logs.iter().map(|(&base, &bytes)| (base, bytes)));
        for (base, suffix) in self.finished.iter().filter_map(|name| name::parse(name.strip_suffix(SWAP)?)) {
            if !matches!(suffix, Suffix::Log | Suffix::Snapshot) {
                listing.side_files.push((base, suffix));
            }
        }
    }
}

/// The number that a file's name begins with.
fn number(name: &str) -> Option<i64> {
    name.split('.').next()?.parse().ok()
}

fn swap_name(base: i64, suffix: Suffix) -> String {
    format!("{}{SWAP}", file_name(base, suffix))
}

/// The next offset of a complete output, which must be whole: it was synced before it got its name.
fn scan_swap(vfs: &dyn Vfs, path: &Path, kind: EntryKind, base: i64) -> Result<i64> {
    if kind != EntryKind::File {
        return Err(Error::corrupt(path, 0, NO_FILE));
    }
    let file = vfs.open(path, OpenMode::Read).map_err(|error| Error::io("open", path, error))?;
    let rules = ScanRules { position: 0, next_offset: base, base_offset: base, is_foreign: true, epochs: None };
    let found = scan(&*file, &rules, |_, _, _| {}).map_err(|error| Error::io("read", path, error))?;
    match found.stop {
        Stop::End => Ok(found.next_offset),
        Stop::Zeros => Err(Error::corrupt(path, found.position, "zeros follow the last batch")),
        Stop::Bad(why) => Err(Error::corrupt(path, found.position, why)),
        Stop::Unsupported(what) => Err(Error::unsupported(format!("{what} ({})", path.display()))),
    }
}

/// What a link, a pipe or a directory in the place of a log is told of.
pub(crate) const NO_FILE: &str = "this is no regular file, and it is not followed";

/// Opens it for reading.
pub(crate) fn open(opening: Opening<'_>) -> Result<(Log, PartitionReport)> {
    let found = look(&opening, false)?;
    let directory = opening.directory.clone();
    let report = PartitionReport {
        partition: opening.id.clone(),
        unclean: !opening.hints.was_clean,
        floor: found.log_start.into(),
        end: found.end.into(),
        scanned_bytes: 0,
        repairs: found.repairs,
    };
    let manifest = Manifest {
        store_id: opening.env.store_id,
        topic_id: opening.topic_id,
        partition: opening.id.partition.get(),
        log_start: found.log_start,
        epochs: if found.epochs.is_empty() { vec![(0, 0)] } else { found.epochs },
        segments: found.entries,
        removing: Vec::new(),
        clean_end: 0,
        tombstone_floor: 0,
        next_horizon_ms: None,
        held_tombstone: None,
        producers: None,
        pending: None,
    };
    // A look at a directory does not read all of it; who asks for the aborted transactions does.
    let aborted =
        if found.batches_tell_more { Aborted::told_in_part(found.aborted) } else { Aborted::known(found.aborted) };
    let log = opening.build(manifest, 0, None, aborted, found.producers)?;
    let set = (*log.snapshot()).clone();
    for segment in &set.segments {
        let base = segment.base_offset();
        if found.exchange.has_log(base) {
            segment.log().file().is_at(directory.join(found.exchange.name(base, Suffix::Log)));
        }
    }
    log.swap(SegmentSet { epochs: None, ..set });
    Ok((log, report))
}

/// Looks at a directory. With `every_batch`, all batches are checked; otherwise only what is needed to find the end.
pub(crate) fn look(opening: &Opening<'_>, every_batch: bool) -> Result<Found> {
    let vfs = &*opening.env.vfs;
    let mut listing = list(vfs, &opening.directory)?;
    if let Some(base) = listing.no_files().next() {
        return Err(Error::corrupt(&opening.directory.join(file_name(base, Suffix::Log)), 0, NO_FILE));
    }
    let exchange = Exchange::find(vfs, &opening.directory)?;
    exchange.see_through(&mut listing);
    let bases: Vec<i64> = listing.logs.keys().copied().collect();
    let mut found = Found {
        entries: Vec::new(),
        log_start: 0,
        end: 0,
        epochs: Vec::new(),
        aborted: Vec::new(),
        batches_tell_more: false,
        producers: Producers::default(),
        repairs: Vec::new(),
        torn: None,
        highest_epoch: -1,
        exchange,
        written_ms: std::mem::take(&mut listing.written_ms),
    };
    let mut scans: BTreeMap<i64, Scan> = BTreeMap::new();
    for (index, &base) in bases.iter().enumerate() {
        let next_base = bases.get(index + 1).copied();
        let bytes = listing.logs.get(&base).copied().unwrap_or(0);
        let mut entry = SegmentEntry { foreign: true, synced: true, ..SegmentEntry::empty(base, None) };
        entry.max_timestamp = None;
        if let (Some(next), false) = (next_base, every_batch) {
            (entry.state, entry.bytes, entry.next) = (EntryState::Closed, bytes, next);
        } else {
            let scan = scan_file(opening, &mut found, base, bytes, every_batch)?;
            entry.state = if next_base.is_some() { EntryState::Closed } else { EntryState::Active };
            (entry.bytes, entry.next, entry.batches) = (scan.position, scan.next_offset, scan.batches);
            if every_batch {
                entry.max_timestamp = Some(scan.max_timestamp);
            }
            scans.insert(base, scan);
        }
        if entry.bytes > i32::MAX as u64 {
            let path = opening.directory.join(file_name(base, Suffix::Log));
            return Err(Error::corrupt(&path, i32::MAX as u64, "a log file has at most 2^31-1 bytes"));
        }
        found.entries.push(entry);
    }
    judge_ends(opening, &mut found, &scans, &bases)?;
    judge_missing(opening, &mut found, &listing, &scans)?;
    if found.entries.is_empty() {
        if !every_batch {
            return Err(Error::corrupt(&opening.directory, 0, "there is no log in this directory of a partition"));
        }
        found.entries.push(SegmentEntry { foreign: true, ..SegmentEntry::empty(0, None) });
    }
    let first = found.entries.first().map_or(0, |entry| entry.base);
    found.log_start = opening.hints.log_start.unwrap_or(0).max(first);
    read_epochs(opening, &mut found)?;
    read_transactions(opening, &listing, every_batch, &mut found)?;
    Ok(found)
}

/// A stop before the end of a file is a torn tail in the last segment, and damage in any other.
fn judge_ends(opening: &Opening<'_>, found: &mut Found, scans: &BTreeMap<i64, Scan>, bases: &[i64]) -> Result<()> {
    for (index, &base) in bases.iter().enumerate() {
        let Some(scan) = scans.get(&base) else { continue };
        let path = opening.directory.join(found.exchange.name(base, Suffix::Log));
        let next_base = bases.get(index + 1).copied();
        let reason = match &scan.stop {
            Stop::End | Stop::Zeros if next_base.is_none() => continue,
            Stop::End if next_base.is_some_and(|next| scan.next_offset <= next) => continue,
            Stop::End => "offsets overlap those of the next segment".to_owned(),
            Stop::Zeros => "zeros follow the last batch".to_owned(),
            Stop::Unsupported(what) => return Err(Error::unsupported(format!("{what} ({})", path.display()))),
            Stop::Bad(reason) => reason.clone(),
        };
        if next_base.is_some() {
            return Err(Error::Corrupt {
                path,
                position: scan.position,
                offsets: Some((scan.next_offset.into(), next_base.unwrap_or(scan.next_offset).into())),
                what: reason,
            });
        }
        found.repairs.push(Repair::TailCut {
            path,
            position: scan.position,
            bytes: scan.file_bytes - scan.position,
            next_offset: scan.next_offset.into(),
            reason: reason.clone(),
        });
        found.torn = Some((scan.clone(), reason));
    }
    // Offsets go on at the next segment's base, as the broker left them.
    let nexts: Vec<i64> = found.entries.iter().skip(1).map(|entry| entry.base).collect();
    for (entry, next) in found.entries.iter_mut().zip(nexts) {
        entry.next = next;
    }
    Ok(())
}

/// A log that lost a part is no log to go on with: its offsets would be given again. What proves nothing is told of.
fn judge_missing(
    opening: &Opening<'_>,
    found: &mut Found,
    listing: &Listing,
    scans: &BTreeMap<i64, Scan>,
) -> Result<()> {
    let refuse = |path: PathBuf, position, Missing { from, to, what }| {
        Err(Error::Corrupt { path, position, offsets: Some((from.into(), to.into())), what })
    };
    let last = found.entries.last().map(|last| (last.next, last.base, last.bytes));
    found.end = last.map_or(0, |(end, ..)| end);
    if let Some(missing) = opening.hints.missing(found.end) {
        let directory = &opening.directory;
        let path = last.map_or_else(|| directory.clone(), |(_, base, _)| directory.join(file_name(base, Suffix::Log)));
        return refuse(path, last.map_or(0, |(.., bytes)| bytes), missing);
    }
    if let Some(reason) = opening.hints.surplus(found.end) {
        found.repairs.push(Repair::CheckpointDiffers { path: opening.directory.clone(), reason });
    }
    let ends = scans.iter().map(|(&base, scan)| (base, scan.next_offset)).collect();
    for orphan in hints::orphans(listing, &ends) {
        let path = opening.directory.join(file_name(orphan.base, orphan.suffix));
        match orphan.missing {
            Some(missing) => return refuse(path, 0, missing),
            None => found.repairs.push(Repair::Stranger { path }),
        }
    }
    Ok(())
}

fn scan_file(opening: &Opening<'_>, found: &mut Found, base: i64, bytes: u64, every_batch: bool) -> Result<Scan> {
    let path = opening.directory.join(found.exchange.name(base, Suffix::Log));
    let file = opening.env.vfs.open(&path, OpenMode::Read).map_err(|error| Error::io("open", &path, error))?;
    // An index beside the log of an exchange may be the one of the log before.
    let may_hint = !every_batch && !found.exchange.has_log(base);
    let hint = if may_hint { last_hint(opening, &*file, base, bytes) } else { None };
    let (position, next_offset) = hint.unwrap_or((0, base));
    let rules = ScanRules { position, next_offset, base_offset: base, is_foreign: true, epochs: None };
    let highest_epoch = &mut found.highest_epoch;
    let visit = |_, header: &BatchHeader, _: Option<&[u8]>| *highest_epoch = header.leader_epoch.max(*highest_epoch);
    scan(&*file, &rules, visit).map_err(|error| Error::io("read", &path, error))
}

/// The last index entry that leads to a whole batch: from there on the end of the segment is found by scanning.
fn last_hint(opening: &Opening<'_>, file: &dyn VfsFile, base: i64, bytes: u64) -> Option<(u64, i64)> {
    let path = opening.directory.join(file_name(base, Suffix::Index));
    let index = opening.env.vfs.open(&path, OpenMode::Read).ok()?;
    let length = index.len().ok()?.min(offset_index::bytes_max(bytes)).min(INDEX_BYTES_MAX);
    let mut entries = vec![0; usize::try_from(length).ok()?];
    let read = read_full_at(&*index, &mut entries, 0).ok()?;
    let index = entries.get(..read)?;
    let entry = offset_index::rising_entries(index).filter(|entry| u64::from(entry.position) < bytes).last()?;
    let position = u64::from(entry.position);
    let length = usize::try_from((bytes - position).min(4 << 20)).ok()?;
    let mut buffer = vec![0; length];
    let read = read_full_at(file, &mut buffer, position).ok()?;
    let batch = BatchView::parse(buffer.get(..read)?).ok()?;
    let header = batch.header();
    let last = base.saturating_add(i64::from(entry.relative_offset));
    let fits = header.base_offset > base && header.base_offset <= last;
    fits.then_some((position, header.base_offset))
}

fn read_epochs(opening: &Opening<'_>, found: &mut Found) -> Result<()> {
    let path = opening.directory.join(kafka_state::EPOCHS_NAME);
    let text = match read_small(&*opening.env.vfs, &path, INDEX_BYTES_MAX) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::io("read", &path, error)),
    };
    match kafka_state::decode_epochs(&text) {
        // An epoch that began without a batch shares its start with the next one.
        Ok(epochs) => {
            for entry in epochs {
                while found.epochs.last().is_some_and(|last| last.1 >= entry.1) {
                    found.epochs.pop();
                }
                if entry.0 >= 0 && entry.1 >= 0 {
                    found.epochs.push(entry);
                }
            }
        }
        Err(reason) => found.repairs.push(Repair::CheckpointIgnored { path, reason }),
    }
    Ok(())
}

/// Producer state at the end: the newest good snapshot, then a replay of what follows it. Aborted transactions: those of
/// the index files, and those that a replay finds. A segment without an index file has none, or lost it: where there were
/// producers, the batches have to be asked. With `every_batch` they are asked at once, and alone.
fn read_transactions(opening: &Opening<'_>, listing: &Listing, every_batch: bool, found: &mut Found) -> Result<()> {
    let vfs = &*opening.env.vfs;
    let mut start = found.entries.first().map_or(0, |entry| entry.base);
    for &offset in listing.snapshots.keys().rev().filter(|&&offset| offset <= found.end) {
        let path = opening.directory.join(file_name(offset, Suffix::Snapshot));
        let reason = match read_small(vfs, &path, INDEX_BYTES_MAX) {
            Ok(read) => match Producers::decode_snapshot(&read) {
                Ok(producers) => {
                    (found.producers, start) = (producers, offset);
                    break;
                }
                Err(reason) => reason.to_owned(),
            },
            Err(error) if error.kind() == std::io::ErrorKind::InvalidData => error.to_string(),
            Err(error) => return Err(Error::io("read", &path, error)),
        };
        found.repairs.push(Repair::SideFileRebuilt { path, reason });
    }
    if listing.snapshots.is_empty() && opening.hints.was_clean {
        start = found.end;
    }
    let mut aborted: Vec<AbortedTxn> = Vec::new();
    let mut indexed = BTreeSet::new();
    for &(base, suffix) in &listing.side_files {
        if suffix == Suffix::TxnIndex && listing.logs.contains_key(&base) {
            let path = opening.directory.join(found.exchange.name(base, Suffix::TxnIndex));
            let bytes_max = txn_index::bytes_max(listing.logs.get(&base).copied().unwrap_or(0));
            if let Some(entries) = read_txn_index(vfs, &path, (base, bytes_max), &mut found.repairs)? {
                aborted.extend(entries);
                indexed.insert(base);
            }
        }
    }
    let mut producers = std::mem::take(&mut found.producers);
    aborted.extend(replay(opening, found, start, &mut producers)?.0);
    found.producers = producers;
    let had_producers = listing.snapshots.values().any(|&bytes| bytes > Producers::EMPTY_SNAPSHOT_BYTES as u64)
        || listing.side_files.iter().any(|(_, suffix)| *suffix == Suffix::TxnIndex)
        || (listing.snapshots.is_empty() && found.end > 0);
    found.batches_tell_more = had_producers && !listing.logs.keys().all(|base| indexed.contains(base));
    if every_batch {
        let (replayed, is_whole) = replay(opening, found, i64::MIN, &mut Producers::default())?;
        // The batches have checksums and the index files have none. Behind a damaged batch the files are all there is.
        if is_whole {
            aborted.clear();
        }
        aborted.extend(replayed);
        found.batches_tell_more = false;
    }
    // One marker, one transaction; the index comes first where it is there still.
    aborted.sort_by_key(|txn| txn.last_offset);
    aborted.dedup_by_key(|txn| txn.last_offset);
    found.aborted = aborted;
    Ok(())
}

/// The entries of one index file; `None` if it is not one.
fn read_txn_index(
    vfs: &dyn Vfs,
    path: &Path,
    (base, bytes_max): (i64, u64),
    repairs: &mut Vec<Repair>,
) -> Result<Option<Vec<AbortedTxn>>> {
    let reason = match read_small(vfs, path, bytes_max) {
        Ok(bytes) => match txn_index::decode(&bytes, base) {
            Ok(entries) => return Ok(Some(entries)),
            Err(reason) => reason,
        },
        Err(error) if error.kind() == std::io::ErrorKind::InvalidData => error.to_string(),
        Err(error) => return Err(Error::io("read", path, error)),
    };
    repairs.push(Repair::SideFileRebuilt { path: path.to_owned(), reason });
    Ok(None)
}

/// Aborted transactions whose marker lies at or behind an offset, and whether all batches up to the last segment's tail were
/// good.
fn replay(
    opening: &Opening<'_>,
    found: &Found,
    start: i64,
    producers: &mut Producers,
) -> Result<(Vec<AbortedTxn>, bool)> {
    let (mut aborted, mut is_whole) = (Vec::new(), true);
    for entry in found.entries.iter().filter(|entry| entry.next > start) {
        let path = opening.directory.join(found.exchange.name(entry.base, Suffix::Log));
        let file = match opening.env.vfs.open(&path, OpenMode::Read) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(Error::io("open", &path, error)),
        };
        let scan = replay_file(&*file, entry.base, start, producers, &mut aborted);
        is_whole &= scan.map_err(|error| Error::io("read", &path, error))?.position >= entry.bytes;
    }
    Ok((aborted, is_whole))
}

/// Takes note of the producers in one log from an offset on, and of the transactions whose abort marker is in it.
pub(super) fn replay_file(
    file: &dyn VfsFile,
    base: i64,
    start: i64,
    producers: &mut Producers,
    aborted: &mut Vec<AbortedTxn>,
) -> std::io::Result<Scan> {
    let rules = ScanRules { position: 0, next_offset: base, base_offset: base, is_foreign: true, epochs: None };
    scan(file, &rules, |_, header, bytes| {
        if header.base_offset < start || header.producer_id < 0 {
            return;
        }
        let marker = bytes.and_then(|bytes| marker_of(header, bytes));
        aborted.extend(producers.replay(header, marker));
    })
}
