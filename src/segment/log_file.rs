//! The `.log` file of one segment: writes at a tracked position, reads of what was published.
//!
//! The file's length is never taken for the log's end: it may be preallocated, and a failed write may have left bytes.
//! The published position is where the last whole batch ends whose write completed; nobody reads beyond it, nobody
//! writes below it.

use std::io;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::file_pool::PooledFile;
use super::seal::Seal;
use crate::error::{Error, Result};
use crate::io::{VfsMap, read_exact_at, write_all_at};
use crate::planted::{Bug, is};
use crate::sync::RwLock;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// How bytes are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[non_exhaustive]
pub enum ReadPath {
    /// Through maps of published bytes, handed out without a copy. A page that cannot be read after it was checked
    /// kills the process with SIGBUS.
    #[default]
    Mapped,
    /// Each read copies and checks; a sector that cannot be read is an error.
    Positional,
}

/// A map is renewed when this much was published behind its end; until then the tail is read positionally.
const MAP_STEP_BYTES: u64 = 1 << 20;
/// What one positional read of a scan brings.
const POSITIONAL_READ_BYTES: u64 = 256 << 10;
/// What a positional read of one batch brings.
const SMALL_READ_BYTES: u64 = 4 << 10;
/// What a scan reads in at once before it touches it.
const POPULATE_BYTES: u64 = 4 << 20;

/// The file of one segment's batches.
#[derive(Debug)]
pub(crate) struct LogFile {
    file: Arc<PooledFile>,
    /// End of the last whole batch whose write completed. Only grows. Stored with `Release` after the write.
    published: AtomicU64,
    /// The newest map, of a prefix of what is published.
    map: RwLock<Option<Arc<Mapped>>>,
    read_path: ReadPath,
    /// Set after a failed sync: mapped pages may no longer be what was written.
    distrusts_maps: AtomicBool,
}

/// A map and what of it was checked.
#[derive(Debug)]
pub(crate) struct Mapped {
    map: Box<dyn VfsMap>,
    /// All of the map; what is handed out shares this.
    bytes: Arc<Bytes>,
    /// Unsealed files: everything below was checked batch by batch in this mapping.
    verified_to: AtomicU64,
    /// Everything below was read in, so that touching it for the first time cannot fail.
    populated_to: AtomicU64,
    /// One bit per block: of a sealed file, that it was compared with its checksum; of another, that it was read in apart
    /// from what lies before it. A file that is sealed gets a new map.
    blocks: Box<[AtomicU64]>,
}

impl Mapped {
    #[inline]
    pub(crate) fn bytes(&self) -> &Arc<Bytes> {
        &self.bytes
    }

    pub(crate) fn verified_to(&self) -> u64 {
        self.verified_to.load(Ordering::Acquire)
    }

    /// Notes that `[from, to)` was checked. Counts only if it joins what was checked before.
    pub(crate) fn note_verified(&self, from: u64, to: u64) {
        if from <= self.verified_to.load(Ordering::Acquire) {
            self.verified_to.fetch_max(to, Ordering::AcqRel);
        }
    }

    fn block_is_marked(&self, block: u64) -> bool {
        let word = self.blocks.get((block / 64) as usize);
        word.is_some_and(|word| word.load(Ordering::Acquire) & (1 << (block % 64)) != 0)
    }

    #[inline]
    fn blocks_are_marked(&self, position: u64, end: u64) -> bool {
        (position / Seal::BLOCK_BYTES..end.div_ceil(Seal::BLOCK_BYTES)).all(|block| self.block_is_marked(block))
    }

    fn mark_block(&self, block: u64) {
        if let Some(word) = self.blocks.get((block / 64) as usize) {
            word.fetch_or(1 << (block % 64), Ordering::AcqRel);
        }
    }
}

/// Published bytes from a position on.
#[derive(Clone, Debug)]
pub(crate) struct Chunk {
    /// Position of the first byte.
    pub(crate) start: u64,
    /// The bytes; of a map, all of it.
    pub(crate) bytes: Arc<Bytes>,
    /// The map that they come from; `None` after a positional read.
    pub(crate) mapped: Option<Arc<Mapped>>,
}

impl Chunk {
    pub(crate) fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }
}

impl LogFile {
    pub(crate) fn new(file: Arc<PooledFile>, published: u64, read_path: ReadPath) -> Self {
        Self {
            file,
            published: AtomicU64::new(published),
            map: RwLock::new(None),
            read_path,
            distrusts_maps: AtomicBool::new(false),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        self.file.path()
    }

    pub(crate) fn file(&self) -> &Arc<PooledFile> {
        &self.file
    }

    #[inline]
    pub(crate) fn published(&self) -> u64 {
        self.published.load(Ordering::Acquire)
    }

    /// Writes whole batches behind the published position, without publishing them. On an error nothing of them counts;
    /// the second value says whether what was written in part was cut off again.
    #[inline]
    pub(crate) fn write(&self, bytes: &[u8]) -> std::result::Result<(), (io::Error, CutBack)> {
        let position = self.published.load(Ordering::Relaxed);
        let written = self.file.write_with(|file| {
            write_all_at(file, bytes, position).map_err(|(done, error)| {
                // Even a failed write may have left bytes: the file is cut in any case.
                let stays = is(Bug::FailedAppendStays);
                let cut = if stays || file.set_len(position).is_ok() { CutBack::Done } else { CutBack::Failed };
                let cut = if done == 0 && cut == CutBack::Failed { CutBack::NothingWritten } else { cut };
                (error, cut)
            })
        });
        match written {
            Ok(outcome) => outcome,
            Err(error) => Err((error, CutBack::NothingWritten)),
        }
    }

    /// Publishes what [`write`](Self::write) wrote.
    #[inline]
    pub(crate) fn publish(&self, bytes: u64) {
        // Only the writer changes it, so that a load and a store are enough.
        self.published.store(self.published.load(Ordering::Relaxed) + bytes, Ordering::Release);
    }

    /// A map that covers `[0, end)`, if there is or can be one.
    #[inline]
    pub(crate) fn mapped(&self, end: u64, sealed: bool) -> Option<Arc<Mapped>> {
        if let Some(mapped) = self.map.read().as_ref()
            && mapped.bytes().len() as u64 >= end
        {
            return Some(Arc::clone(mapped));
        }
        self.renew_map(end, sealed)
    }

    fn renew_map(&self, end: u64, sealed: bool) -> Option<Arc<Mapped>> {
        if self.read_path == ReadPath::Positional || self.distrusts_maps.load(Ordering::Acquire) {
            return None;
        }
        let published = self.published();
        let mut slot = self.map.write();
        let covered = slot.as_ref().map_or(0, |mapped| mapped.bytes().len() as u64);
        if covered >= end {
            return slot.clone();
        }
        let is_first = slot.is_none();
        if end > published || !(sealed || is_first || published - covered >= MAP_STEP_BYTES) {
            return None;
        }
        // A map that fails (no memory, too many maps) is no error: the caller reads positionally.
        let map = self.file.with(|file| file.map(published)).ok()??;
        let blocks = published.div_ceil(Seal::BLOCK_BYTES).div_ceil(64);
        let mapped = Arc::new(Mapped {
            bytes: Arc::new(map.bytes().clone()),
            map,
            verified_to: AtomicU64::new(0),
            populated_to: AtomicU64::new(0),
            blocks: (0..blocks).map(|_| AtomicU64::new(0)).collect(),
        });
        *slot = Some(Arc::clone(&mapped));
        Some(mapped)
    }

    /// From here on every read is positional and checked.
    pub(crate) fn read_positionally(&self) {
        self.distrusts_maps.store(true, Ordering::Release);
        self.forget_map();
    }

    /// Drops the map; slices that were handed out keep their pages.
    pub(crate) fn forget_map(&self) {
        *self.map.write() = None;
    }

    /// Published bytes at a position: the map if it reaches that far, else a positional read of at least `needed` bytes
    /// (or up to the published end).
    pub(crate) fn chunk(&self, position: u64, needed: u64, seal: Option<&Seal>) -> Result<Chunk> {
        self.chunk_with(position, needed.max(POSITIONAL_READ_BYTES), needed, seal)
    }

    /// [`chunk`](Self::chunk) for one batch: a positional read brings little more than what is needed.
    pub(crate) fn small_chunk(&self, position: u64, needed: u64, seal: Option<&Seal>) -> Result<Chunk> {
        self.chunk_with(position, needed.max(SMALL_READ_BYTES), needed, seal)
    }

    fn chunk_with(&self, position: u64, wanted: u64, needed: u64, seal: Option<&Seal>) -> Result<Chunk> {
        let published = self.published();
        let end = position.saturating_add(needed).min(published);
        if let Some(mapped) = self.mapped(end, seal.is_some()) {
            self.prepare(&mapped, position, end, seal)?;
            return Ok(Chunk { start: 0, bytes: Arc::clone(mapped.bytes()), mapped: Some(mapped) });
        }
        let wanted = wanted.min(published.saturating_sub(position));
        let (start, wanted) = match seal {
            Some(_) => Seal::whole_blocks(position, wanted, published),
            None => (position, wanted),
        };
        let bytes = match self.read_positional(start, wanted) {
            // What lies ahead cannot be read, or is gone after a failed sync: that is no reason to hide what was asked for.
            Err(_) if seal.is_none() && needed < wanted => self.read_positional(start, end - start)?,
            read => read?,
        };
        if let Some(seal) = seal {
            seal.check(self.path(), start, &bytes)?;
        }
        Ok(Chunk { start, bytes: Arc::new(bytes.into()), mapped: None })
    }

    /// Reads in, and where the segment is sealed compares with its checksums, what is touched for the first time.
    #[inline]
    pub(crate) fn prepare(&self, mapped: &Mapped, position: u64, end: u64, seal: Option<&Seal>) -> Result<()> {
        match seal {
            Some(seal) => self.check_blocks(mapped, position, end, seal),
            None if end <= mapped.populated_to.load(Ordering::Acquire) => Ok(()),
            None if mapped.blocks_are_marked(position, end) => Ok(()),
            None => self.populate_ahead(mapped, position, end),
        }
    }

    #[cold]
    fn populate_ahead(&self, mapped: &Mapped, position: u64, end: u64) -> Result<()> {
        let populated = mapped.populated_to.load(Ordering::Acquire);
        let length = mapped.bytes().len() as u64;
        if position <= populated {
            let end = end.max(populated + POPULATE_BYTES).min(length);
            self.populate(mapped, populated, end)?;
            mapped.populated_to.fetch_max(end, Ordering::AcqRel);
            return Ok(());
        }
        // Read at random: whole blocks, so that not every read asks the kernel.
        let (first, last) = (position / Seal::BLOCK_BYTES, end.div_ceil(Seal::BLOCK_BYTES));
        self.populate(mapped, first * Seal::BLOCK_BYTES, (last * Seal::BLOCK_BYTES).min(length))?;
        (first..last).for_each(|block| mapped.mark_block(block));
        Ok(())
    }

    fn populate(&self, mapped: &Mapped, start: u64, end: u64) -> Result<()> {
        let failed = |error| Error::io("read", self.path(), error);
        if !mapped.map.populate(start, end - start).map_err(failed)? {
            // The platform cannot tell: reading the range once turns a bad sector into an error.
            self.read_positional(start, end - start)?;
        }
        Ok(())
    }

    fn check_blocks(&self, mapped: &Mapped, position: u64, end: u64, seal: &Seal) -> Result<()> {
        let length = mapped.bytes().len() as u64;
        let mut block = position / Seal::BLOCK_BYTES;
        while block * Seal::BLOCK_BYTES < end {
            if !mapped.block_is_marked(block) {
                let start = block * Seal::BLOCK_BYTES;
                let block_end = (start + Seal::BLOCK_BYTES).min(length);
                if start >= mapped.populated_to.load(Ordering::Acquire) {
                    let ahead = (start + POPULATE_BYTES).min(end.max(block_end)).min(length);
                    self.populate(mapped, start, ahead)?;
                    mapped.populated_to.store(ahead, Ordering::Release);
                }
                let bytes = mapped.bytes().get(start as usize..block_end as usize).unwrap_or_default();
                if is(Bug::MarkedBeforeCheck) {
                    mapped.mark_block(block);
                }
                seal.check(self.path(), start, bytes)?;
                mapped.mark_block(block);
            }
            block += 1;
        }
        Ok(())
    }

    /// Reads exactly `[position, position + bytes)`, which the caller has found to lie below the published end. One
    /// failed read is tried again.
    fn read_positional(&self, position: u64, bytes: u64) -> Result<Vec<u8>> {
        let length = usize::try_from(bytes).map_err(|_| Error::invalid("read length", "must fit the address space"))?;
        let mut buffer = vec![0; length];
        let mut read = || self.file.with(|file| read_exact_at(file, &mut buffer, position));
        match read().or_else(|_| read()) {
            Ok(()) => Ok(buffer),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(Error::corrupt(self.path(), position, "the file ends before the log does"))
            }
            Err(error) => Err(Error::io("read", self.path(), error)),
        }
    }
}

/// What became of the bytes of a failed write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CutBack {
    /// They were cut off: the append will never appear.
    Done,
    /// Nothing was written, so there was nothing to cut.
    NothingWritten,
    /// They may be in the file, and cutting them off failed as well.
    Failed,
}
