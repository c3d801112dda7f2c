//! The indexes of a segment as hints: loaded when needed, made anew from the batch headers when they are wrong.

use std::io;
use std::sync::Arc;

use bytes::Bytes;

use super::cursor::{Cursor, Epochs, Verify};
use super::name::Suffix;
use super::time_index::TimeIndex;
use super::{FileCheck, IndexChecks, Segment, UNKNOWN, offset_index, time_index};
use crate::error::{Error, Result};
use crate::io::{OpenMode, read_full_at, read_small, write_all_at};
use crate::sync::atomic::Ordering;

/// What a walk over the batch headers of a segment brings.
#[derive(Debug, Default)]
struct Walk {
    offsets: Vec<offset_index::Entry>,
    times: TimeIndex,
}

impl Segment {
    /// The index entry to start from for an offset: the offset it names, and a position. `None`: start at the beginning.
    #[inline]
    pub(crate) fn hint(self: &Arc<Self>, offset: i64) -> Result<Option<(i64, u64)>> {
        if offset <= self.base_offset {
            return Ok(None);
        }
        let target = u32::try_from(offset - self.base_offset).unwrap_or(u32::MAX);
        let entry = match self.offsets.lookup_recent(target) {
            Some(entry) => Some(entry),
            None => self.lookup_stored(target)?,
        };
        Ok(entry.map(|entry| (self.offset_of(entry.relative_offset), u64::from(entry.position))))
    }

    fn lookup_stored(self: &Arc<Self>, target: u32) -> Result<Option<offset_index::Entry>> {
        if let Some(stored) = self.stored_index.read().as_ref() {
            return Ok(offset_index::lookup_stored(stored, target));
        }
        self.load_offset_index()?;
        Ok(self.stored_index.read().as_ref().and_then(|stored| offset_index::lookup_stored(stored, target)))
    }

    /// Loads the stored entries, as far as they lie in what was published when the segment was opened; makes them anew
    /// from the batch headers if there is no file, or if it is not one.
    fn load_offset_index(self: &Arc<Self>) -> Result<()> {
        let path = self.file_path(Suffix::Index);
        match self.read_index_file(&path) {
            Ok(bytes) => {
                let is_as_written = self.index_check == Some(FileCheck::of(&bytes));
                let good = offset_index::rising_entries(&bytes)
                    .take_while(|entry| u64::from(entry.position) < self.stored_index_end)
                    .count();
                self.store_entries(bytes.slice(..good * offset_index::ENTRY_BYTES));
                self.has_checked_entries.store(is_as_written, Ordering::Release);
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.distrust_index(),
            Err(error) => Err(Error::io("read", &path, error)),
        }
    }

    /// The file of a sealed segment never changes; any other is read, as it may be written again. What is longer than the
    /// log lets it be has no entries there: a broker takes zeroed space ahead.
    fn read_index_file(&self, path: &std::path::Path) -> io::Result<Bytes> {
        let file = self.pool.vfs().open(path, OpenMode::Read)?;
        let length = file.len()?.min(offset_index::bytes_max(self.stored_index_end));
        let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
        let read = read_full_at(&*file, &mut bytes, 0)?;
        bytes.truncate(read);
        Ok(bytes.into())
    }

    /// The file of the offset index is missing or led astray: its entries are made anew from the batch headers.
    pub(crate) fn distrust_index(self: &Arc<Self>) -> Result<()> {
        self.rebuilt.fetch_add(1, Ordering::Relaxed);
        // Whoever follows an entry compares it with the batch that it leads to: a damaged one is to cost no other.
        let walk = self.walk(self.stored_index_end, Verify::Trusted)?;
        self.store_entries(Bytes::from(offset_index::encode(walk.offsets.into_iter())));
        self.has_checked_entries.store(true, Ordering::Release);
        Ok(())
    }

    fn store_entries(&self, entries: Bytes) {
        self.stored_entries.store((entries.len() / offset_index::ENTRY_BYTES) as u64, Ordering::Relaxed);
        *self.stored_index.write() = Some(entries);
    }

    /// Takes the maximum of the entries over, unless what was appended since the file was written is greater.
    fn take_over_maximum(&self, times: &TimeIndex) {
        let known_offset = self.tail.max_timestamp_offset.load(Ordering::Acquire);
        let known = self.tail.max_timestamp.load(Ordering::Acquire);
        let maximum = times.maximum();
        let timestamp = maximum.map_or(-1, |maximum| maximum.timestamp);
        if known != UNKNOWN && known > timestamp {
            return;
        }
        let offset = maximum.map_or(UNKNOWN, |maximum| self.offset_of(maximum.relative_offset));
        let (order, failed) = (Ordering::AcqRel, Ordering::Acquire);
        let took = self.tail.max_timestamp_offset.compare_exchange(known_offset, offset, order, failed);
        if took.is_ok() {
            // If this fails, an append has stored a greater one meanwhile, and its offset before it.
            self.tail.max_timestamp.compare_exchange(known, timestamp, order, failed).ok();
        }
    }

    fn walk(self: &Arc<Self>, end: u64, verify: Verify) -> Result<Walk> {
        let mut walk = Walk::default();
        let mut cursor = Cursor::at_start(self, None::<Epochs>, verify)?;
        let mut since_entry = 0;
        while cursor.position() < end {
            let Some(found) = cursor.next()? else { break };
            let relative = u32::try_from(found.header.last_offset() - self.base_offset)
                .map_err(|_| Error::corrupt(self.log().path(), found.position, "offset beyond the segment's range"))?;
            walk.times.observe(found.header.max_timestamp, relative);
            if since_entry > self.index_interval_bytes {
                let position = u32::try_from(found.position).unwrap_or(u32::MAX);
                walk.offsets.push(offset_index::Entry { relative_offset: relative, position });
                walk.times.add_entry();
                since_entry = 0;
            }
            since_entry += found.header.size_bytes() as u64;
        }
        Ok(walk)
    }

    /// Runs a call on the time index. It is loaded if a checksum vouches for its file, else made from the headers, each of
    /// which is compared with its CRC: a batch that says it is older than it is would be passed over by every look-up.
    pub(crate) fn with_times<R>(self: &Arc<Self>, call: impl FnOnce(&TimeIndex) -> R) -> Result<R> {
        if self.times.lock().is_none() {
            let loaded = match self.load_time_index() {
                Some(times) => times,
                None => {
                    self.rebuilt.fetch_add(1, Ordering::Relaxed);
                    self.walk(u64::MAX, Verify::Once)?.times
                }
            };
            let mut times = self.times.lock();
            if times.is_none() {
                self.take_over_maximum(&loaded);
                *times = Some(loaded);
            }
        }
        let mut times = self.times.lock();
        let times = times.get_or_insert_default();
        self.observe_maximum(times);
        Ok(call(times))
    }

    fn load_time_index(&self) -> Option<TimeIndex> {
        let check = match *self.times_check.lock() {
            Some(check) => check,
            None => {
                let seal = self.seal().ok()??;
                let side = seal.side_files.iter().find(|side| side.suffix == Suffix::TimeIndex.as_str())?;
                FileCheck { bytes: side.bytes, crc32: side.crc32 }
            }
        };
        let bytes_max = check.bytes.min(time_index::bytes_max(self.bytes()));
        let bytes = read_small(&**self.pool.vfs(), &self.file_path(Suffix::TimeIndex), bytes_max).ok()?;
        let is_trusted = crate::planted::is(crate::planted::Bug::TimeIndexTrusted);
        if self.is_foreign
            || (FileCheck::of(&bytes) != check && !is_trusted)
            || bytes.len() % time_index::ENTRY_BYTES != 0
        {
            return None;
        }
        Some(TimeIndex::from_entries(time_index::entries(&bytes).collect()))
    }

    /// The largest timestamp and the last offset of the first batch that holds it; read from the headers if need be.
    pub(crate) fn max_timestamp(self: &Arc<Self>) -> Result<Option<(i64, i64)>> {
        let offset = self.tail.max_timestamp_offset.load(Ordering::Acquire);
        if let Some(timestamp) = self.known_max_timestamp() {
            if timestamp < 0 {
                return Ok(None);
            }
            if offset != UNKNOWN {
                return Ok(Some((timestamp, offset)));
            }
        }
        self.with_times(|times| {
            times.maximum().map(|maximum| (maximum.timestamp, self.offset_of(maximum.relative_offset)))
        })
    }

    /// No timestamp of the segment is larger; -1 if there is none. Of a segment that cannot be read it is what was noted when it
    /// was written.
    pub(crate) fn timestamp_bound(self: &Arc<Self>) -> Result<i64> {
        match (self.max_timestamp(), self.known_max_timestamp()) {
            (Ok(maximum), _) => Ok(maximum.map_or(-1, |(timestamp, _)| timestamp)),
            (Err(_), Some(known)) => Ok(known),
            (Err(error), None) => Err(error),
        }
    }

    /// The offset that an index entry names. Neither the entry nor the name of a broker's file keeps it below 2^63.
    fn offset_of(&self, relative_offset: u32) -> i64 {
        self.base_offset.saturating_add(i64::from(relative_offset))
    }

    /// Writes both index files as they must be for a segment that stops growing: all entries, and the final maximum in
    /// the time index. With `sync`, durable when this returns.
    ///
    /// Our own look-ups compare an offset entry with its batch, a broker does not: those of a file that nothing vouches for
    /// are made anew, not copied.
    pub(crate) fn write_indexes(self: &Arc<Self>, sync: bool) -> Result<IndexChecks> {
        self.with_times(|_| ())?;
        let times = {
            let mut times = self.times.lock();
            let times = times.get_or_insert_default();
            self.observe_maximum(times);
            times.add_entry();
            time_index::encode(times.entries())
        };
        if self.stored_index.read().is_none() {
            self.load_offset_index()?;
        }
        if !self.has_checked_entries.load(Ordering::Acquire) {
            self.distrust_index()?;
        }
        let mut offsets = self.stored_index.read().as_ref().map(|bytes| bytes.to_vec()).unwrap_or_default();
        offsets.extend_from_slice(&offset_index::encode(self.offsets.recent()));
        self.write_small(Suffix::Index, &offsets, sync)?;
        self.write_small(Suffix::TimeIndex, &times, sync)?;
        let checks = IndexChecks { offsets: FileCheck::of(&offsets), times: FileCheck::of(&times) };
        *self.times_check.lock() = Some(checks.times);
        self.indexes_written.store(true, Ordering::Release);
        Ok(checks)
    }

    /// Before a segment is sealed: index files that an earlier process left, unsynced maybe, are made anew.
    pub(crate) fn renew_indexes(self: &Arc<Self>) -> Result<()> {
        if self.indexes_written.load(Ordering::Acquire) {
            return Ok(());
        }
        self.distrust_index()?;
        self.write_indexes(false).map(drop)
    }

    /// Index files are derived: written in place, without a rename. A crash in between leaves a file that no checksum
    /// vouches for, and that is then made anew.
    fn write_small(&self, suffix: Suffix, bytes: &[u8], sync: bool) -> Result<()> {
        let path = self.file_path(suffix);
        let vfs = self.pool.vfs();
        let file = vfs.open(&path, OpenMode::Create).map_err(|error| Error::io("create", &path, error))?;
        write_all_at(&*file, bytes, 0).map_err(|(_, error)| Error::io("write", &path, error))?;
        file.set_len(bytes.len() as u64).map_err(|error| Error::io("cut", &path, error))?;
        if sync {
            file.sync_data().map_err(|error| Error::io("sync", &path, error))?;
        }
        Ok(())
    }
}
