//! How the `.log` file of one segment is read: through maps, of what was published when they were made and of the tail
//! behind, or positionally.
//!
//! Nobody reads beyond the published end. What is handed out of a map shares it; what was checked of one is noted in it.

use std::io;
use std::sync::Arc;

use bytes::Bytes;

use super::log_file::{LogFile, ReadPath};
use super::seal::Seal;
use crate::error::{Error, Result};
use crate::io::{VfsMap, VfsTail, read_exact_at};
use crate::planted::{Bug, is};
use crate::sync::atomic::{AtomicU64, Ordering};

/// A map is renewed when this much was published behind its end; until then what lies there is read through a map of the tail.
const MAP_STEP_BYTES: u64 = 1 << 20;
/// So much of the file is mapped for that, whether it is there already or not.
const TAIL_BYTES: u64 = 2 * MAP_STEP_BYTES;
/// What one positional read of a scan brings.
const POSITIONAL_READ_BYTES: u64 = 256 << 10;
/// What a positional read of one batch brings.
const SMALL_READ_BYTES: u64 = 4 << 10;
/// What a scan reads in at once before it touches it.
const POPULATE_BYTES: u64 = 4 << 20;

/// What is mapped for reading.
#[derive(Debug, Default)]
pub(super) struct Maps {
    /// The newest map, of a prefix of what is published.
    newest: Option<Arc<Mapped>>,
    /// From the end of that map on.
    tail: Tail,
}

impl Maps {
    fn covered(&self) -> u64 {
        self.newest.as_ref().map_or(0, |mapped| mapped.bytes().len() as u64)
    }

    /// Whether another map is to be made, of all that is published, for somebody who reads up to `end`.
    fn is_due(&self, end: u64, published: u64, sealed: bool) -> bool {
        end <= published && (sealed || self.newest.is_none() || published - self.covered() >= MAP_STEP_BYTES)
    }
}

/// What is published behind the newest map, and what will be.
#[derive(Clone, Debug, Default)]
enum Tail {
    /// Nobody has asked for it.
    #[default]
    Unmapped,
    /// From this position on. Each part of it counts as read positionally: it is checked each time.
    Mapped(Arc<dyn VfsTail>, u64),
    /// This file gets none.
    Never,
}

impl Tail {
    /// The way to read what lies there, if it lies in the tail.
    fn way_to(&self, position: u64, end: u64) -> Option<Way> {
        match self {
            Self::Mapped(tail, start) if position >= *start && end <= start + TAIL_BYTES => {
                Some(Way::Tail(Arc::clone(tail), start + TAIL_BYTES))
            }
            _ => None,
        }
    }
}

/// How to read at a position.
enum Way {
    Map(Arc<Mapped>),
    /// It ends at this position.
    Tail(Arc<dyn VfsTail>, u64),
    Positional,
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
    /// Blocks that were read in apart from what lies before them.
    read_in: Blocks,
    /// Blocks that were compared with their checksum in the seal. Not the same: who began to read before the file was sealed
    /// shares this map, and compares with the batches' own.
    sealed: Blocks,
}

/// One bit for each block of a map.
#[derive(Debug)]
struct Blocks(Box<[AtomicU64]>);

impl Blocks {
    fn none_of(bytes: u64) -> Self {
        Self((0..bytes.div_ceil(Seal::BLOCK_BYTES).div_ceil(64)).map(|_| AtomicU64::new(0)).collect())
    }

    fn has(&self, block: u64) -> bool {
        let word = self.0.get((block / 64) as usize);
        word.is_some_and(|word| word.load(Ordering::Acquire) & (1 << (block % 64)) != 0)
    }

    #[inline]
    fn have(&self, position: u64, end: u64) -> bool {
        (position / Seal::BLOCK_BYTES..end.div_ceil(Seal::BLOCK_BYTES)).all(|block| self.has(block))
    }

    fn mark(&self, block: u64) {
        if let Some(word) = self.0.get((block / 64) as usize) {
            word.fetch_or(1 << (block % 64), Ordering::AcqRel);
        }
    }
}

impl Mapped {
    #[inline]
    pub(crate) fn bytes(&self) -> &Arc<Bytes> {
        &self.bytes
    }

    /// Whether [`LogFile::prepare`] has nothing to do.
    #[inline]
    pub(crate) fn is_prepared(&self, position: u64, end: u64, is_sealed: bool) -> bool {
        if is_sealed {
            return self.sealed.have(position, end);
        }
        end <= self.populated_to.load(Ordering::Acquire) || self.read_in.have(position, end)
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
    /// A map that covers `[0, end)`, if there is or can be one.
    #[inline]
    pub(crate) fn mapped(&self, end: u64, sealed: bool) -> Option<Arc<Mapped>> {
        self.mapped_already(end).or_else(|| self.renew_map(end, sealed))
    }

    /// A map that covers `[0, end)`, if there is one. All that it covers is published.
    #[inline]
    fn mapped_already(&self, end: u64) -> Option<Arc<Mapped>> {
        self.maps.read().newest.as_ref().filter(|mapped| mapped.bytes().len() as u64 >= end).map(Arc::clone)
    }

    fn renew_map(&self, end: u64, sealed: bool) -> Option<Arc<Mapped>> {
        if self.is_read_positionally() {
            return None;
        }
        let published = self.published();
        let mut maps = self.maps.write();
        // Asked once more under the lock that forgets the maps: none is made behind that.
        if self.distrusts_maps.load(Ordering::Acquire) {
            return None;
        }
        if maps.covered() >= end {
            return maps.newest.clone();
        }
        if !maps.is_due(end, published, sealed) {
            return None;
        }
        // A map that fails (no memory, too many maps) is no error: the caller reads positionally.
        let map = self.file.with(|file| file.map(published)).ok()??;
        let mapped = Arc::new(Mapped {
            bytes: Arc::new(map.bytes().clone()),
            map,
            verified_to: AtomicU64::new(0),
            populated_to: AtomicU64::new(0),
            read_in: Blocks::none_of(published),
            sealed: Blocks::none_of(published),
        });
        maps.newest = Some(Arc::clone(&mapped));
        if matches!(maps.tail, Tail::Mapped(..)) {
            maps.tail = Tail::Unmapped;
        }
        Some(mapped)
    }

    #[cold]
    fn map_tail(&self) -> Tail {
        let mut maps = self.maps.write();
        if matches!(maps.tail, Tail::Unmapped) && !self.is_read_positionally() {
            let start = maps.covered();
            let mapped = self.file.with(|file| file.map_tail(start, TAIL_BYTES));
            maps.tail = match mapped {
                Ok(Some(tail)) => Tail::Mapped(tail.into(), start),
                _ => Tail::Never,
            };
        }
        maps.tail.clone()
    }

    /// This tail cannot be read. Nobody tries with another one of this file.
    #[cold]
    fn give_up(&self, failed: &Arc<dyn VfsTail>) {
        let mut maps = self.maps.write();
        if matches!(&maps.tail, Tail::Mapped(tail, _) if Arc::ptr_eq(tail, failed)) {
            maps.tail = Tail::Never;
        }
    }

    /// From here on every read is positional and checked.
    pub(crate) fn read_positionally(&self) {
        self.distrusts_maps.store(true, Ordering::Release);
        self.forget_map();
    }

    /// Whether maps are asked for nothing, by whoever opened the store or after a failed sync.
    #[inline]
    pub(crate) fn is_read_positionally(&self) -> bool {
        self.read_path == ReadPath::Positional || self.distrusts_maps.load(Ordering::Acquire)
    }

    /// Drops the maps; slices that were handed out keep their pages.
    pub(crate) fn forget_map(&self) {
        *self.maps.write() = Maps::default();
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
        let (way, published) = self.way(position, needed, seal.is_some());
        let end = position.saturating_add(needed).min(published);
        if let Way::Map(mapped) = way {
            self.prepare(&mapped, position, end, seal)?;
            return Ok(Chunk { start: 0, bytes: Arc::clone(mapped.bytes()), mapped: Some(mapped) });
        }
        let wanted = wanted.min(published.saturating_sub(position));
        if wanted == 0 {
            return Ok(Chunk { start: position, bytes: Arc::new(Bytes::new()), mapped: None });
        }
        if let Way::Tail(tail, tail_end) = way {
            match tail.bytes(position, tail_end.min(position + wanted)) {
                Ok(bytes) => return Ok(Chunk { start: position, bytes: Arc::new(bytes), mapped: None }),
                // It is given up. The positional read says what is wrong, if something is.
                Err(_) => self.give_up(&tail),
            }
        }
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

    /// How to read at a position, and how far what can be read so is published.
    #[inline]
    fn way(&self, position: u64, needed: u64, sealed: bool) -> (Way, u64) {
        if self.is_read_positionally() {
            return (Way::Positional, self.published());
        }
        let end = position.saturating_add(needed);
        {
            let maps = self.maps.read();
            // Without a look at how far the log has come, which would take that from the processor that appends.
            if let Some(newest) = maps.newest.as_ref().filter(|_| end <= maps.covered()) {
                return (Way::Map(Arc::clone(newest)), maps.covered());
            }
            let published = self.published();
            if !maps.is_due(end.min(published), published, sealed) && !matches!(maps.tail, Tail::Unmapped) {
                return (maps.tail.way_to(position, end.min(published)).unwrap_or(Way::Positional), published);
            }
        }
        self.new_way(position, end, sealed)
    }

    #[cold]
    fn new_way(&self, position: u64, end: u64, sealed: bool) -> (Way, u64) {
        let published = self.published();
        let end = end.min(published);
        if position >= published {
            return (Way::Positional, published);
        }
        if let Some(mapped) = self.mapped(end, sealed) {
            return (Way::Map(mapped), published);
        }
        let tail = if sealed { Tail::Never } else { self.map_tail() };
        (tail.way_to(position, end).unwrap_or(Way::Positional), published)
    }

    /// Lets a call look into the newest map, while nobody exchanges it: it must not wait for anything.
    #[inline]
    pub(crate) fn look<R>(&self, call: impl FnOnce(&Mapped) -> Option<R>) -> Option<R> {
        self.maps.read().newest.as_deref().and_then(call)
    }

    /// Reads in, and where the segment is sealed compares with its checksums, what is touched for the first time.
    #[inline]
    pub(crate) fn prepare(&self, mapped: &Mapped, position: u64, end: u64, seal: Option<&Seal>) -> Result<()> {
        match seal {
            _ if mapped.is_prepared(position, end, seal.is_some()) => Ok(()),
            Some(seal) => self.check_blocks(mapped, position, end, seal),
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
        self.populate_blocks(mapped, position, end)
    }

    fn populate_blocks(&self, mapped: &Mapped, position: u64, end: u64) -> Result<()> {
        let (first, last) = (position / Seal::BLOCK_BYTES, end.div_ceil(Seal::BLOCK_BYTES));
        let end = (last * Seal::BLOCK_BYTES).min(mapped.bytes().len() as u64);
        self.populate(mapped, first * Seal::BLOCK_BYTES, end)?;
        (first..last).for_each(|block| mapped.read_in.mark(block));
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
            if !mapped.sealed.has(block) {
                let start = block * Seal::BLOCK_BYTES;
                let block_end = (start + Seal::BLOCK_BYTES).min(length);
                if block_end > mapped.populated_to.load(Ordering::Acquire) && !mapped.read_in.has(block) {
                    self.populate_blocks(mapped, start, end.min(start + POPULATE_BYTES))?;
                }
                let bytes = mapped.bytes().get(start as usize..block_end as usize).unwrap_or_default();
                if is(Bug::MarkedBeforeCheck) {
                    mapped.sealed.mark(block);
                }
                seal.check(self.path(), start, bytes)?;
                mapped.sealed.mark(block);
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

#[cfg(test)]
mod tests {
    use super::*;

    use crate::io::{Fault, FaultPlan, FaultVfs, OpKind, errno};
    use crate::segment::log_file::tests::{append, calls, log};

    /// A log of 3000 bytes, mapped, with so much behind them.
    fn log_with_a_tail(bytes: &[u8]) -> (FaultVfs, LogFile) {
        let (vfs, log) = log(ReadPath::Mapped);
        append(&log, &[b'm'; 3000], false);
        assert!(log.chunk(0, 1, None).unwrap().mapped.is_some());
        append(&log, bytes, false);
        (vfs, log)
    }

    fn read(log: &LogFile, position: u64) -> Vec<u8> {
        let chunk = log.small_chunk(position, 3, None).unwrap();
        assert!(chunk.mapped.is_none(), "it is to be checked");
        chunk.bytes[(position - chunk.start) as usize..][..3].to_vec()
    }

    #[test]
    fn what_was_published_since_the_map_is_read_through_one_of_the_tail() {
        let (vfs, log) = log_with_a_tail(b"abc");
        for nth in 0..10 {
            assert_eq!(read(&log, 3000 + 3 * nth), b"abc");
            append(&log, b"abc", false);
        }
        assert_eq!([OpKind::MapTail, OpKind::ReadTail, OpKind::Read].map(|op| calls(&vfs, op)), [1, 10, 0]);
        append(&log, &vec![b'd'; MAP_STEP_BYTES as usize], false);
        assert!(log.chunk(3000, 3, None).unwrap().mapped.is_some(), "there is enough for another map");
        append(&log, b"abc", false);
        assert_eq!(read(&log, log.published() - 3), b"abc");
        assert_eq!([OpKind::MapTail, OpKind::ReadTail, OpKind::Read].map(|op| calls(&vfs, op)), [2, 11, 0]);
    }

    #[test]
    fn a_tail_that_fails_is_given_up_and_read_positionally() {
        for op in [OpKind::MapTail, OpKind::ReadTail] {
            let (vfs, log) = log_with_a_tail(b"abcdef");
            vfs.inject(FaultPlan::new(Fault::Error(errno::EIO)).on(op));
            assert_eq!([read(&log, 3000), read(&log, 3003)], [b"abc", b"def"], "{op:?}");
            assert_eq!((vfs.faults_hit(), calls(&vfs, op), calls(&vfs, OpKind::Read)), (1, 1, 2), "{op:?}");
        }
    }

    /// Its pages may not be what was written.
    #[test]
    fn no_tail_is_read_behind_a_failed_sync() {
        let (vfs, log) = log_with_a_tail(b"abcdef");
        assert_eq!(read(&log, 3000), b"abc");
        log.read_positionally();
        assert_eq!(read(&log, 3003), b"def");
        assert_eq!([OpKind::MapTail, OpKind::ReadTail, OpKind::Read].map(|op| calls(&vfs, op)), [1, 1, 1]);
    }

    /// A map that was refused leaves a tail at the begin of the file, which may be longer.
    #[test]
    fn what_lies_beyond_the_tail_is_read_positionally() {
        let (vfs, log) = log(ReadPath::Mapped);
        append(&log, &vec![b'a'; TAIL_BYTES as usize - 2], false);
        append(&log, b"abcdef", false);
        vfs.inject(FaultPlan::new(Fault::Error(errno::ENOMEM)).on(OpKind::Map).sticky());
        assert_eq!(read(&log, TAIL_BYTES - 3), b"aab");
        assert_eq!(read(&log, TAIL_BYTES - 2), b"abc");
        assert_eq!(read(&log, TAIL_BYTES + 1), b"def");
    }
}
