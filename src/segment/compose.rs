//! Writes a whole new segment beside those in use: its log, its indexes and its seal, in one pass over the batches.
//!
//! It knows bytes, offsets and times of batches, not why they are kept. Nothing reads the files before they are renamed.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::name::Suffix;
use super::seal::{SealBuilder, SealFacts, SideFile};
use super::time_index::TimeIndex;
use super::txn_index::{self, AbortedTxn};
use super::{BatchFacts, FileCheck, offset_index, time_index};
use crate::clock::Timestamp;
use crate::error::{Error, Result};
use crate::ids::Uuid;
use crate::io::{OpenMode, Vfs, VfsFile, write_all_at};

const BUFFER_BYTES: usize = 1 << 20;

/// A segment that is being written; see the module.
#[derive(Debug)]
pub(crate) struct NewSegment {
    vfs: Arc<dyn Vfs>,
    directory: PathBuf,
    base_offset: i64,
    name: fn(i64, Suffix) -> String,
    index_interval_bytes: u64,
    file: Arc<dyn VfsFile>,
    path: PathBuf,
    /// What is not written yet.
    buffer: Vec<u8>,
    written: u64,
    seal: SealBuilder,
    offsets: Vec<offset_index::Entry>,
    times: TimeIndex,
    since_entry: u64,
    batches: u64,
    max_timestamp: i64,
    is_finished: bool,
}

/// What was written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Composed {
    pub(crate) bytes: u64,
    pub(crate) batches: u64,
    pub(crate) max_timestamp: i64,
    pub(crate) crc32: u32,
    pub(crate) time_index: FileCheck,
    pub(crate) txn_index: Option<FileCheck>,
}

impl NewSegment {
    /// Begins a segment; `name` gives its files their names while it is being made.
    pub(crate) fn create(
        vfs: &Arc<dyn Vfs>,
        directory: &Path,
        base_offset: i64,
        name: fn(i64, Suffix) -> String,
        index_interval_bytes: u64,
    ) -> Result<Self> {
        let path = directory.join(name(base_offset, Suffix::Log));
        let file = create(&**vfs, &path)?;
        Ok(Self {
            vfs: Arc::clone(vfs),
            directory: directory.to_owned(),
            base_offset,
            name,
            index_interval_bytes,
            file,
            path,
            buffer: Vec::with_capacity(BUFFER_BYTES),
            written: 0,
            seal: SealBuilder::default(),
            offsets: Vec::new(),
            times: TimeIndex::default(),
            since_entry: 0,
            batches: 0,
            max_timestamp: -1,
            is_finished: false,
        })
    }

    /// Bytes of the log so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.written + self.buffer.len() as u64
    }

    /// Adds a whole batch. By the rules of an append, so that the indexes are what they would be.
    pub(crate) fn append(&mut self, batch: &[u8], facts: BatchFacts) -> Result<()> {
        let position = self.bytes();
        if position + batch.len() as u64 > i32::MAX as u64 {
            let path = self.path.display();
            return Err(Error::unsupported(format!(
                "{path} would become larger than 2^31-1 bytes, so that it stays as it was"
            )));
        }
        let relative_offset = u32::try_from(facts.last_offset - self.base_offset)
            .map_err(|_| Error::corrupt(&self.path, position, "an offset is beyond the segment's range"))?;
        self.times.observe(facts.max_timestamp, relative_offset);
        self.max_timestamp = self.max_timestamp.max(facts.max_timestamp);
        if self.since_entry > self.index_interval_bytes {
            let position = u32::try_from(position).unwrap_or(u32::MAX);
            self.offsets.push(offset_index::Entry { relative_offset, position });
            self.times.add_entry();
            self.since_entry = 0;
        }
        self.since_entry += batch.len() as u64;
        self.batches += 1;
        if self.buffer.len() + batch.len() > BUFFER_BYTES {
            self.write_buffer()?;
        }
        self.buffer.extend_from_slice(batch);
        Ok(())
    }

    fn write_buffer(&mut self) -> Result<()> {
        self.seal.update(&self.buffer);
        write_all_at(&*self.file, &self.buffer, self.written)
            .map_err(|(_, error)| Error::io("write", &self.path, error))?;
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    /// Writes the rest, the indexes and the seal, and syncs all of them and the directory. `aborted` becomes the index of
    /// aborted transactions, if there is to be one.
    pub(crate) fn finish(
        mut self,
        store_id: Uuid,
        next_offset: i64,
        aborted: Option<&[AbortedTxn]>,
        modified_ms: Option<Timestamp>,
    ) -> Result<Composed> {
        self.write_buffer()?;
        if let Some(modified_ms) = modified_ms {
            // A hint for brokers, and no reason to give a segment up: some file systems keep no times.
            self.file.set_modified(modified_ms).ok();
        }
        self.file.sync_all().map_err(|error| Error::io("sync", &self.path, error))?;
        self.times.add_entry();
        let times = time_index::encode(self.times.entries());
        let mut side_files = vec![
            self.write_side_file(Suffix::Index, &offset_index::encode(self.offsets.iter().copied()))?,
            self.write_side_file(Suffix::TimeIndex, &times)?,
        ];
        let aborted = aborted.map(txn_index::encode);
        if let Some(aborted) = &aborted {
            side_files.push(self.write_side_file(Suffix::TxnIndex, aborted)?);
        }
        let facts = SealFacts {
            store_id,
            base_offset: self.base_offset,
            batches: self.batches,
            next_offset,
            max_timestamp: self.max_timestamp,
        };
        let seal = std::mem::take(&mut self.seal).finish(facts, side_files);
        self.write_side_file(Suffix::Seal, &seal.encode())?;
        self.vfs.sync_dir(&self.directory).map_err(|error| Error::io("sync directory", &self.directory, error))?;
        self.is_finished = true;
        Ok(Composed {
            bytes: self.written,
            batches: self.batches,
            max_timestamp: self.max_timestamp,
            crc32: seal.crc32,
            time_index: FileCheck::of(&times),
            txn_index: aborted.as_deref().map(FileCheck::of),
        })
    }

    fn write_side_file(&self, suffix: Suffix, bytes: &[u8]) -> Result<SideFile> {
        let path = self.directory.join((self.name)(self.base_offset, suffix));
        let file = create(&*self.vfs, &path)?;
        write_all_at(&*file, bytes, 0).map_err(|(_, error)| Error::io("write", &path, error))?;
        file.sync_all().map_err(|error| Error::io("sync", &path, error))?;
        Ok(SideFile { suffix: suffix.as_str().to_owned(), bytes: bytes.len() as u64, crc32: crc32fast::hash(bytes) })
    }
}

impl Drop for NewSegment {
    /// What was given up takes no room, as far as it can be removed. The next open sweeps the rest.
    fn drop(&mut self) {
        if !self.is_finished {
            for suffix in [Suffix::Log, Suffix::Index, Suffix::TimeIndex, Suffix::TxnIndex, Suffix::Seal] {
                self.vfs.remove_file(&self.directory.join((self.name)(self.base_offset, suffix))).ok();
            }
        }
    }
}

/// A file without anything in it, whatever an interrupted attempt left under its name.
fn create(vfs: &dyn Vfs, path: &Path) -> Result<Arc<dyn VfsFile>> {
    let file = vfs.open(path, OpenMode::Create).map_err(|error| Error::io("create", path, error))?;
    file.set_len(0).map_err(|error| Error::io("cut", path, error))?;
    Ok(file)
}
