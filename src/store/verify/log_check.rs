//! The check of one log: its batches and their records, the indexes beside them, and the seal over all.
//!
//! It knows what the manifest and the floor promise of this log; nothing of the other logs but where the next begins.

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;

use super::partition_check::PartitionCheck;
use super::{Finding, Severity};
use crate::error::{Error, Result};
use crate::io::{OpenMode, VfsFile, read_exact_at, read_small};
use crate::partition::floor::Floor;
use crate::partition::foreign::Exchange;
use crate::partition::manifest::{EntryState, Manifest, SegmentEntry};
use crate::record::{self, BatchError, BatchHeader, DecodeLimits, LegacyEntry, RecordsIter};
use crate::segment::name::{Suffix, file_name};
use crate::segment::recover::{Scan, ScanRules, Stop, Visit, proof_of_rot, scan_all};
use crate::segment::seal::{Seal, SealBuilder};
use crate::segment::{FileCheck, offset_index, time_index};

/// What a batch may become in memory when its records are looked into: what readers allow by default.
const LIMITS: DecodeLimits = DecodeLimits { decompressed_bytes_max: 16 << 20 };

/// How one log file is to be looked at.
pub(super) struct LogCheck<'a> {
    pub(super) base: i64,
    pub(super) manifest: Option<&'a Manifest>,
    pub(super) entry: Option<&'a SegmentEntry>,
    /// Where the next segment begins; `None` for the last one.
    pub(super) next_base: Option<i64>,
    pub(super) floor: Option<Floor>,
    /// Where the files may have names of an interrupted exchange.
    pub(super) exchange: Option<&'a Exchange>,
}

impl LogCheck<'_> {
    fn name(&self, suffix: Suffix) -> String {
        self.exchange.map_or_else(|| file_name(self.base, suffix), |exchange| exchange.name(self.base, suffix))
    }
}

impl PartitionCheck<'_> {
    /// Every batch of one file, and its indexes beside it.
    pub(super) fn log(&mut self, check: &LogCheck<'_>) -> Result<Scan> {
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
