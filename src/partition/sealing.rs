//! Seals of closed segments: synced, checked, summed, and named by the manifest. From then on a segment never changes.

use std::io;
use std::path::Path;
use std::sync::Arc;

use super::Log;
use super::manifest::EntryState;
use super::writer::Writer;
use crate::error::{Error, Result, copy_io_error};
use crate::io::replace::replace_file;
use crate::segment::name::{Suffix, file_name};
use crate::segment::seal::Seal;
use crate::segment::{Segment, State};

impl Log {
    /// Seals what is closed; returns what kept the first of them from it if that was damage.
    pub(super) fn seal_closed(&self, writer: &mut Writer) -> Result<Option<Error>> {
        let mut damage = None;
        while let Some(segment) = self.oldest_closed() {
            match self.compute_seal(&segment, &mut || {}) {
                Ok(seal) => self.commit_seal(writer, &segment, seal)?,
                Err(error) if segment.is_damaged() => drop(damage.get_or_insert(error)),
                Err(error) => return Err(error),
            }
        }
        Ok(damage)
    }

    /// The oldest segment that waits for its seal. A damaged one is told of once and gets none.
    pub(super) fn oldest_closed(&self) -> Option<Arc<Segment>> {
        let set = self.snapshot();
        set.segments.iter().find(|segment| segment.state() == State::Closed && !segment.is_damaged()).cloned()
    }

    /// Syncs a closed segment, checks it and adds up its checksums. Reads the whole file, so the writer is not held.
    pub(super) fn compute_seal(&self, segment: &Arc<Segment>, between: &mut dyn FnMut()) -> Result<Seal> {
        // The cut at the roll may not have come to the disk.
        segment.log().trim()?;
        segment.log().file().sync_data().map_err(|source| {
            self.group.note(Err(copy_io_error(&source)));
            self.poison(format!("sync: {source}"));
            self.sync_failed(&source)
        })?;
        // Where the batches are damaged, the seal is what says so.
        let renewed = segment.renew_indexes();
        for suffix in [Suffix::Index, Suffix::TimeIndex] {
            sync_file(self, &segment.file_path(suffix))?;
        }
        let seal = segment.compute_seal(self.env.store_id, between)?;
        renewed.map(|()| seal)
    }

    /// Writes the seal, then the manifest that says so: from then on the segment never changes.
    pub(super) fn commit_seal(&self, writer: &mut Writer, segment: &Segment, seal: Seal) -> Result<()> {
        let name = file_name(segment.base_offset(), Suffix::Seal);
        replace_file(&*self.env.vfs, &self.directory, &name, &seal.encode(), true)?;
        let mut manifest = writer.manifest.clone();
        let entry = manifest.segments.iter_mut().find(|entry| entry.base == segment.base_offset());
        if let Some(entry) = entry {
            (entry.state, entry.crc32, entry.synced) = (EntryState::Sealed, Some(seal.crc32), true);
        }
        self.commit_manifest(writer, manifest)?;
        segment.adopt_seal(seal);
        Ok(())
    }
}

fn sync_file(log: &Log, path: &Path) -> Result<()> {
    match log.env.vfs.open(path, crate::io::OpenMode::Write) {
        Ok(file) => file.sync_data().map_err(|error| Error::io("sync", path, error)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Error::io("open", path, error)),
    }
}
