//! The one way to take segments out of a log: one manifest generation says so, then files are renamed and removed.
//!
//! The manifest names what goes and, after compaction, what takes its place. Everything behind that commit point can be
//! repeated, and an open after a crash does ([`finish`]). File names are Kafka's (`.cleaned`, `.swap`, `.deleted`), so that
//! a broker that finds such a directory comes to one of the two states as well.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Log;
use super::aborted::Aborted;
use super::manifest::{EntryState, Pending, SegmentEntry};
use super::writer::{PanicGuard, Writer};
use crate::error::{Error, Result};
use crate::io::replace::remove_if_there;
use crate::io::{OpenMode, Vfs};
use crate::planted::{Bug, is};
use crate::segment::name::{self, Suffix, file_name};
use crate::segment::txn_index::AbortedTxn;
use crate::segment::{Segment, SegmentOptions, State};
use crate::sync::MutexGuard;
use crate::sync::atomic::Ordering;

/// Files of a segment that go with it. The producer snapshot of the first one stays with what replaces it.
const GOING: [Suffix; 5] = [Suffix::Log, Suffix::Index, Suffix::TimeIndex, Suffix::TxnIndex, Suffix::Seal];

/// The name under which a new file of a segment is written.
pub(crate) fn cleaned_name(base: i64, suffix: Suffix) -> String {
    format!("{}.cleaned", file_name(base, suffix))
}

fn swap_name(base: i64, suffix: Suffix) -> String {
    format!("{}.swap", file_name(base, suffix))
}

/// A segment that compaction made. Its files are there under their `.cleaned` names, synced, and so is the directory.
#[derive(Debug)]
pub(crate) struct Compacted {
    /// Base offsets of the segments that it replaces; neighbours, the first one's is its own.
    pub(crate) replaces: Vec<i64>,
    pub(crate) entry: SegmentEntry,
    /// Aborted transactions whose markers are in it.
    pub(crate) aborted: Vec<AbortedTxn>,
    /// Past the highest tombstone that was dropped up to here: known at the latest when they are gone.
    pub(crate) tombstone_floor: i64,
}

/// What one change of the set of segments did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Removed {
    pub(crate) segments: usize,
    pub(crate) bytes: u64,
}

/// A segment that is out of the log and may still be read.
#[derive(Debug)]
pub(crate) struct Retired {
    segment: Arc<Segment>,
    path: PathBuf,
}

impl Log {
    /// Takes the writer for a change of the manifest: the log is open, and its clean flag is withdrawn.
    fn lock_for_change(&self) -> Result<MutexGuard<'_, Writer>> {
        let mut writer = self.lock_writer()?;
        self.make_ready(&mut writer)?;
        Ok(writer)
    }

    /// Makes sure that no earlier change is still being carried out on the disk, before new `.cleaned` files are written.
    pub(crate) fn begin_compaction(&self) -> Result<()> {
        let mut writer = self.lock_for_change()?;
        let _guard = PanicGuard(self);
        if writer.has_pending {
            let manifest = writer.manifest.clone();
            self.commit_manifest(&mut writer, manifest)?;
        }
        Ok(())
    }

    /// Puts a compacted segment in the place of those it was made of. `None` if they are no longer all there, and then it is
    /// removed.
    ///
    /// Durable when this returns: the new set of segments.
    pub(crate) fn replace_segments(&self, compacted: Compacted) -> Result<Option<Removed>> {
        let mut writer = self.lock_for_change()?;
        let _guard = PanicGuard(self);
        let bases = &compacted.replaces;
        let mut manifest = writer.manifest.clone();
        let at = manifest.segments.iter().position(|entry| Some(&entry.base) == bases.first()).unwrap_or_default();
        let listed = manifest.segments.get(at..at + bases.len()).unwrap_or_default();
        if listed.iter().map(|entry| entry.base).ne(bases.iter().copied()) {
            for suffix in GOING {
                remove_if_there(&*self.env.vfs, &self.directory.join(cleaned_name(compacted.entry.base, suffix)))?;
            }
            return Ok(None);
        }
        if is(Bug::SourcesGoBeforeTheSwap) {
            let pending = Pending { replace: bases.clone(), by: Some(compacted.entry.base) };
            finish(&*self.env.vfs, &self.directory, &pending, None)?;
        }
        manifest.segments.splice(at..at + bases.len(), [compacted.entry.clone()]);
        manifest.pending = Some(Pending { replace: bases.clone(), by: Some(compacted.entry.base) });
        manifest.tombstone_floor = manifest.tombstone_floor.max(compacted.tombstone_floor);
        self.commit_manifest(&mut writer, manifest)?;
        self.tombstone_floor.store(writer.manifest.tombstone_floor, Ordering::Release);
        let removed = self.carry_out(&mut writer, Some(&compacted));
        removed.map(Some).inspect_err(|error| self.poison(format!("segments could not be exchanged: {error}")))
    }

    /// Says how far compaction has been, which tombstones it dropped, when it has more of them to drop, and which it would have
    /// dropped but for their readers.
    pub(crate) fn note_compacted(
        &self,
        clean_end: i64,
        tombstone_floor: i64,
        next_horizon_ms: Option<i64>,
        held_tombstone: Option<i64>,
    ) -> Result<()> {
        let mut writer = self.lock_for_change()?;
        let _guard = PanicGuard(self);
        let mut manifest = writer.manifest.clone();
        manifest.clean_end = manifest.clean_end.max(clean_end);
        manifest.tombstone_floor = manifest.tombstone_floor.max(tombstone_floor);
        (manifest.next_horizon_ms, manifest.held_tombstone) = (next_horizon_ms, held_tombstone);
        if manifest != writer.manifest {
            self.commit_manifest(&mut writer, manifest)?;
        }
        self.clean_end.store(writer.manifest.clean_end, Ordering::Release);
        self.next_horizon_ms.store(next_horizon_ms.unwrap_or(i64::MAX), Ordering::Release);
        self.held_tombstone.set(held_tombstone);
        // They may have moved after the round looked.
        self.note_readers_moved();
        self.tombstone_floor.store(writer.manifest.tombstone_floor, Ordering::Release);
        Ok(())
    }

    /// Whether a segment lies below the log start as a whole.
    pub(crate) fn has_segments_below_start(&self) -> bool {
        self.snapshot().segments.get(1).is_some_and(|second| second.base_offset() <= self.log_start())
    }

    /// Raises the log start, and deletes the segments that lie below it as a whole. Never lowers it; the active segment
    /// stays.
    ///
    /// Durable when this returns: the new log start.
    pub(crate) fn raise_log_start(&self, to: i64) -> Result<Removed> {
        self.with_room(|| self.try_to_raise_log_start(to))
    }

    /// Runs a step of what makes room on the disk, and once more with the reserve if the disk is too full for it.
    pub(crate) fn with_room<R>(&self, step: impl Fn() -> Result<R>) -> Result<R> {
        match step() {
            Err(Error::NoSpace { .. }) if (self.env.make_room)() => step(),
            result => result,
        }
    }

    fn try_to_raise_log_start(&self, to: i64) -> Result<Removed> {
        // A log that a crash left shorter than its start would give out offsets that nobody can read.
        let unsealed = self.snapshot().segments.iter().find(|segment| segment.state() != State::Sealed).cloned();
        let sealed_end = unsealed.map_or(i64::MAX, |segment| segment.base_offset());
        if to > sealed_end.max(self.durable_end()) {
            self.sync_to(to).map_err(|source| self.sync_failed(&source))?;
        }
        let mut writer = self.lock_for_change()?;
        let _guard = PanicGuard(self);
        self.raise_log_start_locked(&mut writer, to)
    }

    fn raise_log_start_locked(&self, writer: &mut Writer, to: i64) -> Result<Removed> {
        let mut manifest = writer.manifest.clone();
        manifest.log_start = manifest.log_start.max(to);
        let going = manifest
            .segments
            .windows(2)
            .take_while(|pair| matches!(pair, [_, next] if next.base <= manifest.log_start));
        let going = going.count();
        if going == 0 && manifest.log_start == writer.manifest.log_start {
            return Ok(Removed::default());
        }
        // A change before this one was carried out whole, so that its mention may go.
        manifest.pending = None;
        if going > 0 {
            let replace = manifest.segments.drain(..going).map(|entry| entry.base).collect();
            manifest.pending = Some(Pending { replace, by: None });
        }
        let log_start = manifest.log_start;
        self.commit_manifest(writer, manifest)?;
        // Before the segments vanish, so that a reader that misses one knows why.
        self.log_start.store(log_start, Ordering::Release);
        if going == 0 {
            return Ok(Removed::default());
        }
        self.carry_out(writer, None).inspect_err(|error| self.poison(format!("segments could not be removed: {error}")))
    }

    /// When a segment was closed, if that is known.
    pub(crate) fn closed_ms(&self, base: i64) -> Option<i64> {
        self.writer.lock().manifest.segments.iter().find(|entry| entry.base == base)?.closed_ms
    }

    /// No record of these segments, by base offset, arrived later than at this time, which is none after now: when they were
    /// closed, where that is known; of the active one, when something was appended last. One that was closed by a clock in the
    /// future was closed no later than those behind it. Only such a one goes by them: a clock that was behind when one segment
    /// was closed would make all older ones look old otherwise.
    pub(crate) fn arrived_by(&self, now_ms: i64) -> BTreeMap<i64, i64> {
        let mut by_ms = self.last_arrival_ms(now_ms);
        let writer = self.writer.lock();
        let arrived = |entry: &SegmentEntry| {
            if entry.state != EntryState::Active {
                by_ms = Some(entry.closed_ms?).filter(|&closed| closed <= now_ms).unwrap_or(by_ms);
            }
            Some((entry.base, by_ms))
        };
        writer.manifest.segments.iter().rev().filter_map(arrived).collect()
    }

    /// Closes the active segment whatever its size, unless it is empty. Returns its offsets.
    pub(crate) fn roll_now(&self) -> Result<Option<Range<i64>>> {
        let mut writer = self.lock_for_change()?;
        let _guard = PanicGuard(self);
        if writer.active.bytes() == 0 {
            return Ok(None);
        }
        let settings = Arc::clone(&writer.settings);
        let from = writer.active.base_offset();
        self.roll(&mut writer, &settings, self.env.clock.now_ms())?;
        Ok(Some(from..writer.active.base_offset()))
    }

    /// Renames and removes files as the manifest says, and shows readers the new set.
    fn carry_out(&self, writer: &mut Writer, compacted: Option<&Compacted>) -> Result<Removed> {
        let Some(pending) = writer.manifest.pending.clone() else { return Ok(Removed::default()) };
        let vfs = &*self.env.vfs;
        if let Some(by) = pending.by {
            to_swap(vfs, &self.directory, by)?;
        }
        let mut set = (*self.snapshot()).clone();
        let (gone, kept): (Vec<_>, Vec<_>) =
            set.segments.into_iter().partition(|segment| pending.replace.contains(&segment.base_offset()));
        let removed = Removed { segments: gone.len(), bytes: gone.iter().map(|segment| segment.bytes()).sum() };
        for segment in &gone {
            self.retire(segment, pending.by)?;
        }
        set.segments = kept;
        if let Some(compacted) = compacted {
            set.replacements += 1;
            from_swap(vfs, &self.directory, compacted.entry.base)?;
            let options = SegmentOptions {
                read_path: self.env.read_path,
                index_interval_bytes: writer.settings.index_interval_bytes,
            };
            let facts = compacted.entry.facts();
            let new = Segment::open(&self.env.pool, &self.directory, &facts, options, OpenMode::Read);
            let at = set.segments.partition_point(|segment| segment.base_offset() < new.base_offset());
            set.segments.insert(at, Arc::new(new));
            let (from, to) = (compacted.entry.base, compacted.entry.next);
            let all = set.aborted.all(&set.segments)?.iter();
            let others = all.filter(|txn| !(from..to).contains(&txn.last_offset));
            set.aborted = Aborted::known(others.chain(&compacted.aborted).copied().collect());
        }
        self.sync_directory()?;
        self.swap(set);
        // On the disk it stands until the next generation, and repeating it changes nothing.
        writer.manifest.pending = None;
        Ok(removed)
    }

    /// Gives the log of a segment that is out another name, for whoever still reads it; its other files go at once.
    fn retire(&self, segment: &Arc<Segment>, by: Option<i64>) -> Result<()> {
        let base = segment.base_offset();
        let nth = self.retired_count.fetch_add(1, Ordering::Relaxed);
        let path = self.directory.join(format!("{}.{nth}.deleted", file_name(base, Suffix::Log)));
        let file = segment.log().file();
        // The longer name may take another block of the directory.
        self.with_room(|| file.move_to(path.clone()).map_err(|error| Error::io("rename", file.path(), error)))?;
        self.retired.lock().push(Retired { segment: Arc::clone(segment), path });
        let others = [Suffix::Index, Suffix::TimeIndex, Suffix::TxnIndex, Suffix::Seal];
        for suffix in others.into_iter().chain((by != Some(base)).then_some(Suffix::Snapshot)) {
            remove_if_there(&*self.env.vfs, &self.directory.join(file_name(base, suffix)))?;
        }
        Ok(())
    }

    /// Removes the files of segments that nobody reads any more. Returns how many are still read.
    pub(crate) fn remove_retired(&self) -> Result<usize> {
        let mut retired = self.retired.lock();
        let mut kept = Vec::new();
        let mut failed = None;
        for one in retired.drain(..) {
            // Only this list holds it: no reader has it in a set, and none can get it.
            if Arc::strong_count(&one.segment) == 1 {
                match remove_if_there(&*self.env.vfs, &one.path) {
                    Ok(_) => continue,
                    Err(error) => failed = Some(error),
                }
            }
            kept.push(one);
        }
        *retired = kept;
        failed.map_or(Ok(retired.len()), Err)
    }
}

fn rename_if_there(vfs: &dyn Vfs, from: &Path, to: &Path) -> Result<()> {
    match vfs.rename(from, to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io("rename", from, error)),
        _ => Ok(()),
    }
}

fn sync_dir(vfs: &dyn Vfs, directory: &Path) -> Result<()> {
    vfs.sync_dir(directory).map_err(|error| Error::io("sync directory", directory, error))
}

/// From `.cleaned` to `.swap`: what has this name holds.
fn to_swap(vfs: &dyn Vfs, directory: &Path, base: i64) -> Result<()> {
    for suffix in GOING {
        let (from, to) = (directory.join(cleaned_name(base, suffix)), directory.join(swap_name(base, suffix)));
        rename_if_there(vfs, &from, &to)?;
    }
    sync_dir(vfs, directory)
}

/// From `.swap` to the final name.
fn from_swap(vfs: &dyn Vfs, directory: &Path, base: i64) -> Result<()> {
    for suffix in GOING {
        let (from, to) = (directory.join(swap_name(base, suffix)), directory.join(file_name(base, suffix)));
        rename_if_there(vfs, &from, &to)?;
    }
    Ok(())
}

/// Carries a change out that a crash interrupted. Can be repeated in any state that it leaves behind. Nothing goes unless
/// what takes its place is there, with the length that the manifest says.
pub(crate) fn finish(vfs: &dyn Vfs, directory: &Path, pending: &Pending, new_bytes: Option<u64>) -> Result<()> {
    if let (Some(by), Some(new_bytes)) = (pending.by, new_bytes) {
        let names = [cleaned_name(by, Suffix::Log), swap_name(by, Suffix::Log), file_name(by, Suffix::Log)];
        let listed = vfs.list(directory).map_err(|error| Error::io("list", directory, error))?;
        let newest = names.iter().find_map(|name| listed.iter().find(|entry| entry.name == *name));
        if newest.is_none_or(|entry| entry.bytes != new_bytes) {
            let path = directory.join(file_name(by, Suffix::Log));
            return Err(Error::corrupt(
                &path,
                0,
                "the segment that compaction made is missing, or not as long as it was",
            ));
        }
    }
    if let Some(by) = pending.by {
        to_swap(vfs, directory, by)?;
    }
    let listed = vfs.list(directory).map_err(|error| Error::io("list", directory, error))?;
    let names: BTreeSet<String> = listed.into_iter().map(|entry| entry.name).collect();
    for &base in &pending.replace {
        for suffix in GOING.into_iter().chain((pending.by != Some(base)).then_some(Suffix::Snapshot)) {
            // Without a `.swap` beside it, the file that has the name is the new one already.
            let is_old = pending.by != Some(base) || names.contains(&swap_name(base, suffix));
            let name = file_name(base, suffix);
            if is_old && names.contains(&name) {
                remove_if_there(vfs, &directory.join(name))?;
            }
        }
    }
    if let Some(by) = pending.by {
        from_swap(vfs, directory, by)?;
    }
    sync_dir(vfs, directory)
}

/// The base offset of a log that has not got its final name yet.
pub(crate) fn transit_base(name: &str) -> Option<i64> {
    let name = name.strip_suffix(".cleaned").or_else(|| name.strip_suffix(".swap"))?;
    name::parse(name).filter(|(_, suffix)| *suffix == Suffix::Log).map(|(base, _)| base)
}

/// Whether a file serves nobody once no change is being carried out.
pub(crate) fn is_trash(name: &str) -> bool {
    let of_segment = |name: &str| name::parse(name).is_some();
    if let Some(name) = name.strip_suffix(".deleted") {
        let numbered = name.rsplit_once('.').filter(|(_, nth)| nth.bytes().all(|byte| byte.is_ascii_digit()));
        return of_segment(name) || numbered.is_some_and(|(name, _)| of_segment(name));
    }
    name.strip_suffix(".cleaned").is_some_and(of_segment)
}
