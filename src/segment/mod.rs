//! One segment: a base offset, a log file, its indexes and, once it will not change any more, its seal.
//!
//! It does not know that there are other segments, nor who writes or reads. The writer lock of the partition is what
//! makes [`Segment::append`] single-threaded; everything else may be called from any thread at any time.
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::panic, clippy::expect_used))]

pub(crate) mod append_table;
mod batch_checker;
pub(crate) mod batch_error;
pub(crate) mod compose;
pub(crate) mod cursor;
pub(crate) mod file_pool;
pub(crate) mod log_file;
pub(crate) mod log_reads;
pub(crate) mod name;
pub(crate) mod offset_index;
pub(crate) mod rebuild;
pub(crate) mod recover;
pub(crate) mod seal;
pub(crate) mod time_index;
pub(crate) mod txn_index;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use crate::error::{Error, Result};
use crate::ids::Uuid;
use crate::io::{OpenMode, Vfs, read_full_at, read_small};
use crate::planted::{Bug, is};
use crate::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, AtomicU64, Ordering};
use crate::sync::{Mutex, OwnLines, RwLock};

use self::batch_checker::{BatchChecker, Damage};
use self::file_pool::FilePool;
use self::log_file::{CutBack, LogFile, ReadPath};
use self::name::{Suffix, file_name};
use self::offset_index::OffsetIndex;
use self::seal::{Seal, SealBuilder, SealFacts, SideFile};
use self::time_index::TimeIndex;

/// How much of a log is read between two looks at what else is due. A multiple of what is read at once.
const BETWEEN_BYTES: u64 = 8 << 20;

/// Where a segment is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum State {
    /// Appends go here.
    Active = 0,
    /// Rolled: it will not grow any more, but has no seal yet.
    Closed = 1,
    /// Synced and sealed.
    Sealed = 2,
}

/// What is known of a segment before it is opened.
#[derive(Clone, Debug)]
pub(crate) struct SegmentFacts {
    pub(crate) base_offset: i64,
    pub(crate) state: State,
    /// Published bytes.
    pub(crate) bytes: u64,
    pub(crate) next_offset: i64,
    pub(crate) batches: u64,
    /// Largest timestamp, -1 if there is none; `None` if it must be looked up in the batches.
    pub(crate) max_timestamp: Option<i64>,
    /// Offsets may have gaps (the segment was compacted by a broker) and the epochs of its batches are not ours.
    pub(crate) is_foreign: bool,
    /// Checksum of the whole log, of a sealed segment.
    pub(crate) crc32: Option<u32>,
    /// Checksum of the offset index file, where one is known.
    pub(crate) index: Option<FileCheck>,
    /// Checksum of the time index file, where one is known.
    pub(crate) time_index: Option<FileCheck>,
}

/// Checksums of both index files as they were written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct IndexChecks {
    pub(crate) offsets: FileCheck,
    pub(crate) times: FileCheck,
}

/// Length and checksum of a small file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FileCheck {
    pub(crate) bytes: u64,
    pub(crate) crc32: u32,
}

impl FileCheck {
    pub(crate) fn of(bytes: &[u8]) -> Self {
        Self { bytes: bytes.len() as u64, crc32: crc32fast::hash(bytes) }
    }

    /// Of a file that may be of any length, and so is never held as a whole.
    pub(crate) fn of_file(vfs: &dyn Vfs, path: &Path) -> io::Result<Self> {
        let file = vfs.open(path, OpenMode::Read)?;
        let mut crc = crc32fast::Hasher::new();
        let mut buffer = vec![0; usize::try_from(file.len()?.clamp(1, 1 << 20)).unwrap_or(1 << 20)];
        let mut bytes = 0;
        loop {
            let read = read_full_at(&*file, &mut buffer, bytes)?;
            if read == 0 {
                return Ok(Self { bytes, crc32: crc.finalize() });
            }
            crc.update(buffer.get(..read).unwrap_or_default());
            bytes += read as u64;
        }
    }
}

/// How a segment is read and indexed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SegmentOptions {
    pub(crate) read_path: ReadPath,
    /// Kafka's `index.interval.bytes`.
    pub(crate) index_interval_bytes: u64,
}

/// A batch about to be appended, as far as the segment needs to know it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BatchFacts {
    pub(crate) last_offset: i64,
    pub(crate) max_timestamp: i64,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Segment {
    base_offset: i64,
    directory: PathBuf,
    pool: Arc<FilePool>,
    log: LogFile,
    state: AtomicU8,
    tail: OwnLines<Tail>,
    is_foreign: bool,
    index_interval_bytes: u64,
    offsets: OwnLines<OffsetIndex>,
    /// Entries that were in the file when the segment was opened, loaded at the first look-up that needs them.
    stored_index: RwLock<Option<Bytes>>,
    /// How many those are.
    stored_entries: AtomicU64,
    index_check: Option<FileCheck>,
    /// Whether the stored entries are those of a file that a checksum vouches for, or were made from the batch headers.
    has_checked_entries: AtomicBool,
    /// The stored entries end below this position; recovery makes everything from here on anew.
    stored_index_end: u64,
    /// `None` until it is needed, where no checksum vouches for the file.
    times: OwnLines<Mutex<Option<TimeIndex>>>,
    times_check: Mutex<Option<FileCheck>>,
    /// Whether the index files are what this process wrote, or what a checksum vouches for.
    indexes_written: AtomicBool,
    crc32: Mutex<Option<u32>>,
    seal: OnceLock<Arc<Seal>>,
    /// Sealing met damage: the segment stays without a seal, so that reads go on comparing each batch with its CRC.
    is_damaged: AtomicBool,
    /// How often an index turned out wrong or missing and was made anew.
    rebuilt: AtomicU64,
}

/// What each append changes.
#[derive(Debug)]
struct Tail {
    /// One past the last offset; the base offset of an empty segment.
    next_offset: AtomicI64,
    batches: AtomicU64,
    /// Largest timestamp so far (-1 none) and last offset of its batch; for an unknown one `i64::MIN`.
    max_timestamp: AtomicI64,
    max_timestamp_offset: AtomicI64,
    max_timestamp_at_first: AtomicI64,
    /// Bytes since the last index entry (Kafka's sparse rule). Only the writer touches it.
    since_entry: AtomicU64,
}

const UNKNOWN: i64 = i64::MIN;

impl Segment {
    /// Names a segment whose file is there; nothing is read.
    pub(crate) fn open(
        pool: &Arc<FilePool>,
        directory: &Path,
        facts: &SegmentFacts,
        options: SegmentOptions,
        mode: OpenMode,
    ) -> Self {
        let file = pool.file(directory.join(file_name(facts.base_offset, Suffix::Log)), mode);
        let is_empty = facts.bytes == 0;
        let max_timestamp = if is_empty { -1 } else { facts.max_timestamp.unwrap_or(UNKNOWN) };
        Self {
            base_offset: facts.base_offset,
            directory: directory.to_owned(),
            pool: Arc::clone(pool),
            log: LogFile::new(file, facts.bytes, options.read_path),
            state: AtomicU8::new(facts.state as u8),
            tail: OwnLines(Tail {
                next_offset: AtomicI64::new(facts.next_offset),
                batches: AtomicU64::new(facts.batches),
                max_timestamp: AtomicI64::new(max_timestamp),
                max_timestamp_offset: AtomicI64::new(UNKNOWN),
                max_timestamp_at_first: AtomicI64::new(UNKNOWN),
                since_entry: AtomicU64::new(0),
            }),
            is_foreign: facts.is_foreign,
            index_interval_bytes: options.index_interval_bytes,
            offsets: OwnLines(OffsetIndex::new()),
            stored_index: RwLock::new(is_empty.then(Bytes::new)),
            stored_entries: AtomicU64::new(0),
            index_check: facts.index,
            has_checked_entries: AtomicBool::new(is_empty),
            stored_index_end: facts.bytes,
            times: OwnLines(Mutex::new(is_empty.then(TimeIndex::default))),
            times_check: Mutex::new(facts.time_index),
            indexes_written: AtomicBool::new(false),
            crc32: Mutex::new(facts.crc32),
            seal: OnceLock::new(),
            is_damaged: AtomicBool::new(false),
            rebuilt: AtomicU64::new(0),
        }
    }

    /// Creates the file of a new, empty segment. Its directory entry is not yet synced.
    pub(crate) fn create(
        pool: &Arc<FilePool>,
        directory: &Path,
        base_offset: i64,
        options: SegmentOptions,
    ) -> Result<Self> {
        let facts = SegmentFacts {
            base_offset,
            state: State::Active,
            bytes: 0,
            next_offset: base_offset,
            batches: 0,
            max_timestamp: Some(-1),
            is_foreign: false,
            crc32: None,
            index: None,
            time_index: None,
        };
        let segment = Self::open(pool, directory, &facts, options, OpenMode::CreateNew);
        segment.log.file().create().map_err(|error| Error::io("create", segment.log.path(), error))?;
        Ok(segment)
    }

    pub(crate) fn base_offset(&self) -> i64 {
        self.base_offset
    }

    pub(crate) fn log(&self) -> &LogFile {
        &self.log
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.log.published()
    }

    pub(crate) fn next_offset(&self) -> i64 {
        self.tail.next_offset.load(Ordering::Acquire)
    }

    pub(crate) fn batches(&self) -> u64 {
        self.tail.batches.load(Ordering::Relaxed)
    }

    pub(crate) fn is_foreign(&self) -> bool {
        self.is_foreign
    }

    pub(crate) fn state(&self) -> State {
        match self.state.load(Ordering::Acquire) {
            0 => State::Active,
            1 => State::Closed,
            _ => State::Sealed,
        }
    }

    pub(crate) fn set_state(&self, state: State) {
        self.state.store(state as u8, Ordering::Release);
    }

    pub(crate) fn is_damaged(&self) -> bool {
        self.is_damaged.load(Ordering::Acquire)
    }

    pub(crate) fn rebuilt(&self) -> u64 {
        self.rebuilt.load(Ordering::Relaxed)
    }

    pub(crate) fn crc32(&self) -> Option<u32> {
        *self.crc32.lock()
    }

    /// The largest timestamp, -1 if there is none, `None` if it is not known without reading.
    pub(crate) fn known_max_timestamp(&self) -> Option<i64> {
        Some(self.tail.max_timestamp.load(Ordering::Acquire)).filter(|&timestamp| timestamp != UNKNOWN)
    }

    /// Bytes of memory that this segment holds besides maps.
    pub(crate) fn memory_bytes(&self) -> usize {
        let stored = self.stored_index.read().as_ref().map_or(0, Bytes::len);
        let times = self.times.lock().as_ref().map_or(0, |times| times.entries().len() * 16);
        size_of::<Self>() + self.offsets.memory_bytes() + stored + times
    }

    pub(crate) fn file_path(&self, suffix: Suffix) -> PathBuf {
        self.directory.join(file_name(self.base_offset, suffix))
    }

    /// Writes one whole batch, in the way that is best if nobody waits for a sync or in the one where an error is told at
    /// once, and publishes it. Only one thread may be here at a time.
    #[inline]
    pub(crate) fn append(
        &self,
        batch: &[u8],
        facts: BatchFacts,
        in_window: bool,
    ) -> std::result::Result<(), (io::Error, CutBack)> {
        let position = self.log.published();
        self.log.write(batch, in_window)?;
        self.index_batch(position, batch.len() as u64, facts);
        self.tail.next_offset.store(facts.last_offset + 1, Ordering::Release);
        self.log.publish(batch.len() as u64);
        Ok(())
    }

    /// Kafka's sparse rule: an entry once more than the interval was written since the last one.
    #[inline]
    fn index_batch(&self, position: u64, bytes: u64, facts: BatchFacts) {
        let relative_offset = (facts.last_offset - self.base_offset) as u32;
        let known = self.tail.max_timestamp.load(Ordering::Relaxed);
        if facts.max_timestamp > known && known != UNKNOWN {
            self.tail.max_timestamp_offset.store(facts.last_offset, Ordering::Relaxed);
            self.tail.max_timestamp.store(facts.max_timestamp, Ordering::Release);
        }
        if position == 0 {
            self.tail.max_timestamp_at_first.store(facts.max_timestamp, Ordering::Relaxed);
        }
        let since_entry = self.tail.since_entry.load(Ordering::Relaxed);
        if since_entry > self.index_interval_bytes {
            let relative_offset = relative_offset + u32::from(is(Bug::IndexOffByOne));
            self.offsets.push(offset_index::Entry { relative_offset, position: position as u32 });
            self.add_time_entry();
            self.tail.since_entry.store(bytes, Ordering::Relaxed);
        } else {
            self.tail.since_entry.store(since_entry + bytes, Ordering::Relaxed);
        }
        self.tail.batches.store(self.tail.batches.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    /// Puts the running maximum into the time index, if there is one in memory.
    fn add_time_entry(&self) {
        if let Some(times) = self.times.lock().as_mut() {
            self.observe_maximum(times);
            times.add_entry();
        }
    }

    fn observe_maximum(&self, times: &mut TimeIndex) {
        let timestamp = self.tail.max_timestamp.load(Ordering::Acquire);
        let offset = self.tail.max_timestamp_offset.load(Ordering::Acquire);
        if timestamp >= 0 && offset >= self.base_offset {
            times.observe(timestamp, (offset - self.base_offset) as u32);
        }
    }

    /// Largest timestamp of the first batch, for rolling by time; `None` if the segment is empty or it has none.
    pub(crate) fn first_batch_timestamp(&self) -> Result<Option<i64>> {
        if self.bytes() == 0 {
            return Ok(None);
        }
        let known = self.tail.max_timestamp_at_first.load(Ordering::Relaxed);
        if known != UNKNOWN {
            return Ok((known >= 0).then_some(known));
        }
        let first = self.first_header()?.map_or(-1, |header| header.max_timestamp);
        self.tail.max_timestamp_at_first.store(first, Ordering::Relaxed);
        Ok((first >= 0).then_some(first))
    }

    /// Before the first append after an open: how many entries the file has by its length, without reading it. A file that does
    /// not hold is made anew before it is used, of about as many.
    pub(crate) fn count_stored_entries(&self) {
        if self.stored_index.read().is_some() {
            return;
        }
        let file = self.pool.vfs().open(&self.file_path(Suffix::Index), OpenMode::Read);
        let entries = match file.and_then(|file| file.len()) {
            Ok(bytes) => bytes / offset_index::ENTRY_BYTES as u64,
            // To be made anew: an entry stands for more bytes than the interval, and for one batch at least.
            Err(_) => self.batches().min(self.bytes() / self.index_interval_bytes.max(1)),
        };
        self.stored_entries.store(entries, Ordering::Relaxed);
    }

    /// Whether an index has no room for another entry (Kafka's `segment.index.bytes`; one time entry is reserved).
    pub(crate) fn index_is_full(&self, segment_index_bytes: u64) -> bool {
        let recent = self.offsets.recent_len() as u64;
        let entries = recent + self.stored_entries.load(Ordering::Relaxed);
        entries >= segment_index_bytes / offset_index::ENTRY_BYTES as u64
            || entries + 1 >= segment_index_bytes / time_index::ENTRY_BYTES as u64
    }

    /// The seal of a sealed segment, loaded at its first use and compared with the manifest's checksum; made anew if its
    /// file is missing or damaged and the log still is what the manifest says.
    pub(crate) fn seal(&self) -> Result<Option<Arc<Seal>>> {
        if self.state() != State::Sealed {
            return Ok(None);
        }
        if let Some(seal) = self.seal.get() {
            return Ok(Some(Arc::clone(seal)));
        }
        let seal = self.load_seal()?;
        Ok(Some(Arc::clone(self.seal.get_or_init(|| Arc::new(seal)))))
    }

    fn load_seal(&self) -> Result<Seal> {
        let path = self.file_path(Suffix::Seal);
        let read = read_small(&**self.pool.vfs(), &path, Seal::FILE_BYTES_MAX);
        let loaded = match read {
            Ok(bytes) => Seal::decode(&bytes).ok(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) if error.kind() == io::ErrorKind::InvalidData => None,
            Err(error) => return Err(Error::io("read", &path, error)),
        };
        let crc32 = self.crc32();
        let fits = |seal: &Seal| {
            seal.base_offset == self.base_offset
                && seal.bytes == self.bytes()
                && crc32.is_none_or(|crc| crc == seal.crc32)
        };
        if let Some(seal) = loaded.filter(fits) {
            return Ok(seal);
        }
        let Some(expected) = crc32 else {
            return Err(Error::corrupt(&path, 0, "the seal is missing or damaged, and no other checksum is known"));
        };
        let seal = self.compute_seal(Uuid::from_bytes([0; 16]), &mut || {})?;
        if seal.crc32 != expected {
            return Err(Error::corrupt(
                self.log.path(),
                0,
                "the log does not match the manifest, and its seal is missing or damaged",
            ));
        }
        self.rebuilt.fetch_add(1, Ordering::Relaxed);
        Ok(seal)
    }

    /// Reads the whole log once, checks its batches and adds up its checksums. From then on the seal speaks for the
    /// batches, so that it must not be made of damaged ones. Calls `between` after every few MiB.
    pub(crate) fn compute_seal(&self, store_id: Uuid, between: &mut dyn FnMut()) -> Result<Seal> {
        let mut builder = SealBuilder::default();
        let bytes = self.bytes();
        let mut batches = Some(BatchChecker::new(bytes));
        let mut position = 0;
        let mut buffer = vec![0; usize::try_from(bytes.min(1 << 20)).unwrap_or(1 << 20)];
        while position < bytes {
            let length = buffer.len().min(usize::try_from(bytes - position).unwrap_or(usize::MAX));
            let part = buffer.get_mut(..length).unwrap_or_default();
            let read = self.log.file().with(|file| crate::io::read_exact_at(file, part, position));
            read.map_err(|error| Error::io("read", self.log.path(), error))?;
            builder.update(part);
            match batches.as_mut().map_or(Ok(()), |batches| batches.update(part)) {
                Ok(()) => {}
                // A broker's entries of the old formats cannot be walked.
                Err(damage) if self.is_foreign && damage.is_unsupported => batches = None,
                Err(damage) => return Err(self.damaged(&damage)),
            }
            position += length as u64;
            if position % BETWEEN_BYTES == 0 {
                between();
            }
        }
        if let Some(Err(damage)) = batches.map(BatchChecker::finish) {
            return Err(self.damaged(&damage));
        }
        let facts = SealFacts {
            store_id,
            base_offset: self.base_offset,
            batches: self.batches(),
            next_offset: self.next_offset(),
            max_timestamp: self.known_max_timestamp().unwrap_or(-1),
        };
        Ok(builder.finish(facts, self.side_files()?))
    }

    fn damaged(&self, damage: &Damage) -> Error {
        self.is_damaged.store(true, Ordering::Release);
        let offsets = Some((self.base_offset.into(), self.next_offset().into()));
        Error::Corrupt {
            path: self.log.path().to_owned(),
            position: damage.position,
            offsets,
            what: damage.what.clone(),
        }
    }

    fn side_files(&self) -> Result<Vec<SideFile>> {
        let mut side_files = Vec::new();
        for suffix in [Suffix::Index, Suffix::TimeIndex, Suffix::TxnIndex] {
            let path = self.file_path(suffix);
            match FileCheck::of_file(&**self.pool.vfs(), &path) {
                Ok(FileCheck { bytes, crc32 }) => {
                    side_files.push(SideFile { suffix: suffix.as_str().to_owned(), bytes, crc32 });
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(Error::io("read", &path, error)),
            }
        }
        Ok(side_files)
    }

    /// The seal becomes what reads are checked against.
    pub(crate) fn adopt_seal(&self, seal: Seal) {
        *self.crc32.lock() = Some(seal.crc32);
        if self.seal.set(Arc::new(seal)).is_ok() {
            // A new map comes with the marks that a sealed file needs.
            self.log.forget_map();
        }
        self.set_state(State::Sealed);
    }
}
