//! What a crash left behind the last whole batch: into quarantine, and the good tail is written again.

use std::io;
use std::path::Path;

use super::log_end::{End, Scanned};
use super::manifest::Manifest;
use super::open::Opening;
use super::quarantine;
use super::repair::{PartitionReport, Repair};
use crate::error::{Error, Result};
use crate::io::{OpenMode, VfsFile, read_exact_at, write_all_at};
use crate::planted::{Bug, is};
use crate::segment::name::{Suffix, file_name};
use crate::segment::recover::Stop;

/// How much is copied at once.
const COPY_BYTES: u64 = 256 << 10;
/// How much the disk is given to write at once; a multiple of [`COPY_BYTES`].
const SYNC_BYTES: u64 = 1 << 20;

impl Opening<'_> {
    pub(super) fn note_what_a_writer_would_do(&self, found: &End, report: &mut PartitionReport) {
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
    pub(super) fn repair(&self, manifest: &mut Manifest, found: &End, report: &mut PartitionReport) -> Result<()> {
        for scanned in &found.scanned {
            if let Stop::Bad(reason) = &scanned.scan.stop {
                if !is(Bug::QuarantineSkipped) {
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
            self.write_tail_again(scanned, report)?;
        }
        found.apply_to(manifest);
        // They move once the manifest says so: until then the old state holds, and it needs them where they are.
        manifest.removing = found.behind.clone();
        Ok(())
    }

    /// The bytes above the floor may be in the page cache and not on the disk, with the error reported to a process that
    /// is gone. Merely syncing them might succeed without writing them: they are written again.
    fn write_tail_again(&self, scanned: &Scanned, report: &mut PartitionReport) -> Result<()> {
        let path = self.directory.join(file_name(scanned.base, Suffix::Log));
        let (from, to) = (scanned.floor_position, scanned.scan.position);
        if self.may_rewrite_in_place {
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
            self.replace_by_copy(scanned, &path)?;
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

    /// Builds the good part as a new file and puts it in the old one's place; old maps keep the old file. At every moment a
    /// file has the log's name, so that it can all be done again.
    fn replace_by_copy(&self, scanned: &Scanned, path: &Path) -> Result<()> {
        let vfs = &*self.env.vfs;
        let cleaned = self.directory.join(format!("{}.cleaned", file_name(scanned.base, Suffix::Log)));
        let source = vfs.open(path, OpenMode::Read).map_err(|error| Error::io("open", path, error))?;
        let target = vfs.open(&cleaned, OpenMode::Create).map_err(|error| Error::io("create", &cleaned, error))?;
        target.set_len(0).map_err(|error| Error::io("cut", &cleaned, error))?;
        copy_range(&*source, &*target, 0, scanned.scan.position, &cleaned)?;
        target.sync_all().map_err(|error| Error::io("sync", &cleaned, error))?;
        vfs.rename(&cleaned, path).map_err(|error| Error::io("rename", path, error))?;
        vfs.sync_dir(&self.directory).map_err(|error| Error::io("sync", &self.directory, error))
    }
}

/// Copies a range, and has the disk write what is copied while the rest is: the sync that follows then waits for little.
fn copy_range(source: &dyn VfsFile, target: &dyn VfsFile, from: u64, to: u64, path: &Path) -> Result<()> {
    let mut buffer = vec![0; usize::try_from((to - from).min(COPY_BYTES)).unwrap_or(0)];
    let (mut at, mut begun) = (from, from);
    while at < to {
        // Pieces end where pages do, so that no page is written twice.
        let length = (COPY_BYTES - at % COPY_BYTES).min(to - at);
        let part = buffer.get_mut(..usize::try_from(length).unwrap_or(0)).unwrap_or_default();
        read_exact_at(source, part, at).map_err(|error| Error::io("read", path, error))?;
        write_all_at(target, part, at).map_err(|(_, error)| Error::io("write", path, error))?;
        at += length;
        if at % SYNC_BYTES == 0 {
            target.begin_sync(begun, at - begun);
            begun = at;
        }
    }
    Ok(())
}
