//! Where the log ends: the scan from the floor on, and what it says of each segment. Changes nothing on the disk.

use std::path::Path;

use super::floor::Floor;
use super::listing::Listing;
use super::manifest::{EntryState, Manifest, SegmentEntry};
use super::open::Opening;
use super::repair::{PartitionReport, Repair};
use crate::error::{Error, Result};
use crate::io::OpenMode;
use crate::planted::{Bug, is};
use crate::segment::name::{Suffix, file_name};
use crate::segment::recover::{Scan, ScanRules, Stop, proof_of_rot, scan};

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
pub(super) struct Scanned {
    pub(super) base: i64,
    pub(super) floor_offset: i64,
    pub(super) floor_position: u64,
    pub(super) floor_batches: u64,
    pub(super) floor_timestamp: i64,
    pub(super) scan: Scan,
}

/// Where the log ends.
#[derive(Debug)]
pub(super) struct End {
    /// Index of the segment that is active from now on.
    pub(super) index: usize,
    pub(super) scanned: Vec<Scanned>,
    /// Base offsets of the segments behind a torn one.
    pub(super) behind: Vec<i64>,
    pub(super) next_offset: i64,
}

impl End {
    fn new(index: usize, scanned: Vec<Scanned>, behind: Vec<i64>) -> Option<Self> {
        let next_offset = scanned.last()?.scan.next_offset;
        Some(Self { index, scanned, behind, next_offset })
    }

    /// Changes the manifest to say what was found.
    pub(super) fn apply_to(&self, manifest: &mut Manifest) {
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
            (entry.index, entry.time_index) = (None, None);
            entry.synced = true;
            entry.state = if at == last { EntryState::Active } else { EntryState::Closed };
            if at == last {
                entry.synced = false;
            }
        }
    }
}

impl Opening<'_> {
    /// Scans from the floor on, closed segments first.
    pub(super) fn find_end(
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

    pub(super) fn no_segment(&self) -> Error {
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
}

/// The newest manifest is damaged and the one before it holds: a segment that only the damaged one listed is known by
/// its file. It was begun when the last listed one was full.
pub(super) fn extend_by_unlisted(manifest: &mut Manifest, listing: &Listing) {
    let Some(last) = manifest.segments.last_mut() else { return };
    let (base, cap) = (last.base, last.max_unsynced_bytes);
    let Some((&next, _)) = listing.logs.range(base + 1..).next() else { return };
    last.state = EntryState::Closed;
    last.next = next;
    last.synced = false;
    last.bytes = listing.logs.get(&base).copied().unwrap_or(0);
    manifest.segments.push(SegmentEntry::empty(next, cap));
}
