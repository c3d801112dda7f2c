//! One partition: an ordered log made of segments, with one writer and any number of readers.
//!
//! It knows its directory, its manifest and its segments. It does not know topics, keys or groups: records come in as
//! encoded batches and go out as they were stored.

pub(crate) mod aborted;
mod append_checks;
pub(crate) mod append_options;
pub(crate) mod floor;
pub(crate) mod foreign;
pub(crate) mod held_tombstone;
pub(crate) mod hints;
pub(crate) mod kafka_state;
pub(crate) mod key_entry;
pub(crate) mod key_queue;
pub(crate) mod listing;
mod log_end;
pub(crate) mod manifest;
pub(crate) mod newest_records;
pub(crate) mod open;
pub(crate) mod peek;
mod positions;
pub(crate) mod quarantine;
pub(crate) mod reader;
pub(crate) mod repair;
mod sealing;
pub(crate) mod settings;
mod space_ahead;
pub(crate) mod swap;
pub(crate) mod sync;
pub(crate) mod sync_window;
mod tail_repair;
pub(crate) mod times;
mod transactions;
pub(crate) mod upkeep;
pub(crate) mod writer;

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use crate::clock::Clock;
use crate::clock::notify::Bell;
use crate::error::{Error, Result, copy_io_error};
use crate::ids::{Offset, TopicPartition, Uuid};
use crate::io::Vfs;
use crate::planted::{Bug, is};
use crate::record::BatchHeader;
use crate::segment::cursor::{Epochs, Verify};
use crate::segment::file_pool::FilePool;
use crate::segment::log_file::ReadPath;
use crate::segment::{Segment, State};
use crate::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use crate::sync::{Mutex, OwnLines, RwLock};

pub use self::reader::{Batch, Fetched, Isolation, ReadLevel, ReadOptions, Reader};
pub use self::sync::Durability;
pub use self::times::TimestampedOffset;

use self::aborted::Aborted;
use self::held_tombstone::HeldTombstone;
use self::kafka_state::Producers;
use self::settings::LogSettings;
use self::sync::GroupCommit;
use self::writer::Writer;

/// What a partition needs of the store around it.
#[derive(Clone)]
pub(crate) struct Env {
    pub(crate) vfs: Arc<dyn Vfs>,
    pub(crate) pool: Arc<FilePool>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) store_id: Uuid,
    pub(crate) read_path: ReadPath,
    pub(crate) verify: Verify,
    pub(crate) read_only: bool,
    /// Done once, durably, before the first byte is written after an open: Kafka's clean marker goes.
    pub(crate) before_first_write: Arc<dyn Fn() -> Result<()> + Send + Sync>,
    /// Called when the disk has no room for a change that frees some. True if that made some.
    pub(crate) make_room: Arc<dyn Fn() -> bool + Send + Sync>,
    /// Wakes upkeep if it would else sleep longer than so many milliseconds; 0 wakes it in any case.
    pub(crate) wake_upkeep: Arc<dyn Fn(u64) + Send + Sync>,
    /// Whether somebody runs upkeep; without it an appender keeps the windows of `Interval` by itself.
    pub(crate) has_upkeep: bool,
    /// Rung when an end moves, and when no more will come.
    pub(crate) bell: Arc<Bell>,
}

impl Env {
    fn monotonic_ms(&self) -> u64 {
        u64::try_from(self.clock.monotonic().as_millis()).unwrap_or(u64::MAX)
    }
}

impl std::fmt::Debug for Env {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Env").field("vfs", &self.vfs).field("store_id", &self.store_id).finish_non_exhaustive()
    }
}

/// The segments as a reader sees them: immutable, replaced as a whole.
#[derive(Clone, Debug)]
pub(crate) struct SegmentSet {
    /// Rising by base offset; never empty; the last one is active.
    pub(crate) segments: Vec<Arc<Segment>>,
    /// Leader epochs of what we wrote; `None` where a broker's are not known to be complete.
    pub(crate) epochs: Option<Epochs>,
    pub(crate) aborted: Aborted,
    /// How often compaction has put a segment in the place of others since the open.
    pub(crate) replacements: u64,
}

impl SegmentSet {
    /// Index of the segment that holds an offset: the last that begins at or below it.
    #[inline]
    pub(crate) fn index_of(&self, offset: i64) -> usize {
        self.segments.partition_point(|segment| segment.base_offset() <= offset).saturating_sub(1)
    }

    /// Whether a batch belongs to an aborted transaction.
    ///
    /// # Errors
    /// [`Error::Io`]: in a broker's directory the first question may have to read all batches.
    pub(crate) fn is_aborted(&self, header: &BatchHeader) -> Result<bool> {
        self.aborted.has(&self.segments, header)
    }
}

/// The log of one partition; see the module.
#[derive(Debug)]
pub(crate) struct Log {
    pub(crate) id: TopicPartition,
    pub(crate) directory: PathBuf,
    pub(crate) env: Env,
    pub(crate) settings: OwnLines<RwLock<Arc<LogSettings>>>,
    /// Whether they say `Sync`, and what they say of the age of keys: copies, for look-ups of single records.
    is_sync: AtomicBool,
    pub(crate) expire_after_ms: AtomicI64,
    writer: OwnLines<Mutex<Writer>>,
    set: RwLock<Arc<SegmentSet>>,
    log_start: AtomicI64,
    /// The log start as upkeep saw it last.
    seen_log_start: AtomicI64,
    /// Next offset to assign. Stored with `Release` after the bytes were published.
    end_offset: OwnLines<AtomicI64>,
    /// Everything below is durable; a copy of what the group commit knows, for readers.
    durable_end: AtomicI64,
    /// First offset of the oldest open transaction, `i64::MAX` if there is none.
    first_unstable: AtomicI64,
    group: GroupCommit,
    /// Bytes written since the open, and how many of them a sync covered.
    written_bytes: OwnLines<AtomicU64>,
    synced_bytes: AtomicU64,
    /// The shortest time that anything appended since the last sync may wait for one, and when that is over by the monotonic
    /// clock; both `u64::MAX` if nothing asks for one.
    window_ms: AtomicU64,
    sync_due_ms: AtomicU64,
    last_append_ms: AtomicU64,
    /// Bytes written as upkeep saw them last.
    seen_bytes: AtomicU64,
    floor: Mutex<FloorState>,
    poisoned: AtomicBool,
    poison: Mutex<Option<String>>,
    closed: AtomicBool,
    /// Generation of the newest manifest.
    generation: AtomicU64,
    pub(crate) producers: Mutex<Producers>,
    trusted_reads: AtomicU64,
    /// Keys that were appended, if an index wants them.
    pub(crate) key_queue: OwnLines<key_queue::KeyQueue>,
    /// Below this offset compaction has been.
    clean_end: AtomicI64,
    /// Past the highest tombstone that compaction dropped.
    tombstone_floor: AtomicI64,
    /// When compaction has something to drop although nothing was appended; `i64::MAX` for never.
    next_horizon_ms: AtomicI64,
    /// The first tombstone whose time is over and that stays for its readers alone.
    pub(crate) held_tombstone: HeldTombstone,
    /// Nobody has asked since where readers are, as far as that tombstone is concerned.
    readers_moved: AtomicBool,
    /// Compaction failed: until the next open this log is left as it is.
    pub(crate) is_left_dirty: AtomicBool,
    /// Its key index was found to be wrong: until the next open it is compacted without one.
    pub(crate) compacts_without_index: AtomicBool,
    /// What compaction took away since the open.
    records_compacted: AtomicU64,
    tombstones_dropped: AtomicU64,
    /// Segments that are out of the log and may still be read.
    retired: Mutex<Vec<swap::Retired>>,
    retired_count: AtomicU64,
}

/// The newest floor entry and what it covers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FloorState {
    pub(crate) sequence: u64,
    pub(crate) base: i64,
    pub(crate) position: u64,
    pub(crate) written_at_ms: u64,
}

/// A running floor moves when so much was synced above it.
const FLOOR_STEP_BYTES: u64 = 64 << 20;
const FLOOR_STEP_MS: u64 = 5_000;
/// Preallocated space goes back after so long without an append.
const TRIM_AFTER_MS: u64 = 60_000;

impl Log {
    pub(crate) fn snapshot(&self) -> Arc<SegmentSet> {
        Arc::clone(&self.set.read())
    }

    #[inline]
    pub(crate) fn end_offset(&self) -> i64 {
        self.end_offset.load(Ordering::Acquire)
    }

    #[inline]
    pub(crate) fn durable_end(&self) -> i64 {
        self.durable_end.load(Ordering::Acquire)
    }

    #[inline]
    pub(crate) fn log_start(&self) -> i64 {
        self.log_start.load(Ordering::Acquire)
    }

    /// From where to where the log start has moved since the last call, or since the open.
    pub(crate) fn take_log_start_move(&self) -> Option<Range<i64>> {
        let now = self.log_start();
        let before = self.seen_log_start.fetch_max(now, Ordering::AcqRel);
        (before < now).then_some(before..now)
    }

    /// Below this offset compaction has been.
    pub(crate) fn clean_end(&self) -> i64 {
        self.clean_end.load(Ordering::Acquire)
    }

    /// When compaction has something to drop although nothing was appended.
    pub(crate) fn next_horizon_ms(&self) -> i64 {
        self.next_horizon_ms.load(Ordering::Acquire)
    }

    /// Readers may have moved past what is kept for them.
    pub(crate) fn note_readers_moved(&self) {
        self.readers_moved.store(true, Ordering::Release);
    }

    /// If readers have moved, and all of them are past the tombstone that is kept for them, a round is due. `lowest` says where
    /// they are.
    pub(crate) fn look_at_readers(&self, lowest: impl FnOnce() -> i64) {
        let held = self.held_tombstone.offset();
        if held != i64::MAX && self.readers_moved.swap(false, Ordering::AcqRel) && lowest() > held {
            self.next_horizon_ms.store(i64::MIN, Ordering::Release);
        }
    }

    /// Counts what a compaction took away.
    pub(crate) fn count_compacted(&self, records: u64, tombstones: u64) {
        self.records_compacted.fetch_add(records, Ordering::Relaxed);
        self.tombstones_dropped.fetch_add(tombstones, Ordering::Relaxed);
    }

    /// Past the highest tombstone that compaction dropped.
    pub(crate) fn tombstone_floor(&self) -> i64 {
        self.tombstone_floor.load(Ordering::Acquire)
    }

    pub(crate) fn last_stable_offset(&self) -> i64 {
        self.first_unstable.load(Ordering::Acquire).max(self.log_start()).min(self.end_offset())
    }

    pub(crate) fn settings(&self) -> Arc<LogSettings> {
        Arc::clone(&self.settings.read())
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    pub(crate) fn check_open(&self) -> Result<()> {
        if self.is_closed() { Err(Error::Closed { what: format!("partition {}", self.id) }) } else { Ok(()) }
    }

    /// From here on the writer refuses everything, and reads above the durable end no longer trust mapped pages.
    pub(crate) fn poison(&self, why: impl Into<String>) {
        self.poison.lock().get_or_insert_with(|| why.into());
        self.poisoned.store(true, Ordering::Release);
        self.env.bell.ring();
        for segment in &self.snapshot().segments {
            if segment.state() != State::Sealed {
                segment.log().read_positionally();
            }
        }
    }

    pub(crate) fn poison_error(&self) -> Option<Error> {
        if !self.poisoned.load(Ordering::Acquire) {
            return None;
        }
        let why = self.poison.lock().clone().unwrap_or_else(|| "a failure".into());
        Some(Error::Poisoned { partition: self.id.clone(), why })
    }

    /// Bytes that no sync covered yet.
    pub(crate) fn unsynced_bytes(&self) -> u64 {
        self.written_bytes.load(Ordering::Acquire).saturating_sub(self.synced_bytes.load(Ordering::Acquire))
    }

    /// Time since upkeep saw that something was appended; since the open, if nothing was.
    pub(crate) fn idle_ms(&self) -> u64 {
        let written = self.written_bytes.load(Ordering::Acquire);
        if written == 0 {
            return u64::MAX;
        }
        if written != self.seen_bytes.load(Ordering::Acquire) {
            return 0;
        }
        self.monotonic_ms().saturating_sub(self.last_append_ms.load(Ordering::Relaxed))
    }

    /// When something was appended last, where the wall clock says this now: no earlier than the open, or the begin of the active
    /// segment. How long ago that was is told by the other clock, so that no jump of this one matters.
    pub(crate) fn last_arrival_ms(&self, now_ms: i64) -> i64 {
        let active_ms = self.active_ms(&self.writer.lock());
        now_ms.saturating_sub(i64::try_from(self.idle_ms()).unwrap_or(i64::MAX).min(active_ms))
    }

    /// How long ago the active segment was begun, or opened.
    fn active_ms(&self, writer: &Writer) -> i64 {
        i64::try_from(self.monotonic_ms().saturating_sub(writer.active_since_ms)).unwrap_or(i64::MAX)
    }

    fn monotonic_ms(&self) -> u64 {
        self.env.monotonic_ms()
    }

    /// Makes everything that was published before this call durable, sharing the sync with whoever else waits.
    pub(crate) fn sync_to(&self, end: i64) -> std::io::Result<()> {
        self.group.wait_for(end, || self.sync_published()).inspect_err(|error| self.poison(format!("sync: {error}")))
    }

    /// One sync of all files with published bytes that are not synced. Called by one thread at a time.
    fn sync_published(&self) -> std::io::Result<i64> {
        let window_ms = self.window_ms.swap(u64::MAX, Ordering::SeqCst);
        self.sync_due_ms.store(u64::MAX, Ordering::SeqCst);
        let written = self.written_bytes.load(Ordering::SeqCst);
        let end = self.end_offset();
        // Read after the end: whatever lies below it is in one of these files, or in one synced at its roll.
        let set = self.snapshot();
        let mut floor = None;
        // Sealed ones were synced before; of the others any may wait, also one before a file that was not written yet.
        let unsealed = set.segments.iter().rposition(|segment| segment.state() == State::Sealed);
        let unsealed = set.segments.iter().skip(unsealed.map_or(0, |index| index + 1));
        for segment in unsealed.filter(|segment| segment.log().file().is_unsynced()) {
            let position = segment.bytes();
            if is(Bug::FloorBeforeData) {
                self.move_floor(segment.base_offset(), position, self.monotonic_ms());
            }
            let synced = if is(Bug::NoSyncBeforeAck) { Ok(()) } else { segment.log().file().sync_data() };
            if !is(Bug::SyncErrorIgnored) {
                synced?;
            }
            floor = Some((segment.base_offset(), position));
        }
        self.synced_bytes.fetch_max(written, Ordering::AcqRel);
        self.durable_end.fetch_max(end, Ordering::AcqRel);
        self.env.bell.ring();
        if let Some((base, position)) = floor {
            self.move_floor(base, position, self.monotonic_ms());
        }
        // Who appended meanwhile may have found the window that was there before.
        if self.unsynced_bytes() > 0 && window_ms != u64::MAX {
            self.note_window(window_ms);
        }
        Ok(end)
    }

    /// Moves the running floor if it lies far enough behind. A floor that cannot be written only costs a longer
    /// recovery, so a failure is left to the next try.
    fn move_floor(&self, base: i64, position: u64, now_ms: u64) {
        if self.settings().durability == Durability::Os {
            return;
        }
        let mut state = self.floor.lock();
        let ahead = if base == state.base { position.saturating_sub(state.position) } else { position };
        let due =
            ahead >= FLOOR_STEP_BYTES || (ahead > 0 && now_ms.saturating_sub(state.written_at_ms) >= FLOOR_STEP_MS);
        if due && base >= state.base {
            // The floor names a batch boundary, and the next offset there: both from one segment, read together.
            let snapshot = self.snapshot();
            let Some(segment) = snapshot.segments.last().filter(|segment| segment.base_offset() == base) else {
                return;
            };
            let Some(next_offset) = self.offset_at(segment, position) else { return };
            if let Err(error) = self.write_floor(&mut state, floor::Kind::Running, base, position, next_offset) {
                drop(error); // Stated above: the next sync tries again.
            }
            state.written_at_ms = now_ms;
        }
    }

    /// The offset of the first record at or behind a batch boundary.
    fn offset_at(&self, segment: &Arc<Segment>, position: u64) -> Option<i64> {
        let next = segment.next_offset();
        let end = self.end_offset();
        // The writer stores next offset, bytes and end offset in this order; read in it, equal values belong together.
        if next == end && segment.bytes() == position {
            return Some(next);
        }
        let chunk = segment.log().chunk(position, 61, None).ok()?;
        let at = usize::try_from(position.checked_sub(chunk.start)?).ok()?;
        crate::record::peek(chunk.bytes.get(at..)?).ok().map(|peek| peek.base_offset)
    }

    pub(crate) fn write_floor(
        &self,
        state: &mut FloorState,
        kind: floor::Kind,
        base: i64,
        position: u64,
        end_offset: i64,
    ) -> Result<()> {
        let set = self.snapshot();
        let active = set.segments.last();
        // Both may already count a batch behind the position: too much is harmless, as it is below the log end then.
        let max_timestamp = active.and_then(|segment| segment.known_max_timestamp()).unwrap_or(i64::MIN);
        let batches = active.map_or(0, |segment| u32::try_from(segment.batches()).unwrap_or(u32::MAX));
        let generation = self.generation.load(Ordering::Acquire);
        let sequence = state.sequence + 1;
        let entry = floor::Floor { kind, generation, sequence, base, position, end_offset, max_timestamp, batches };
        floor::write(&*self.env.vfs, &self.directory, &entry)?;
        (state.sequence, state.base, state.position) = (sequence, base, position);
        Ok(())
    }

    /// Makes everything appended so far durable.
    pub(crate) fn flush(&self) -> Result<Offset> {
        self.check_open()?;
        let end = self.end_offset();
        match self.sync_to(end) {
            Ok(()) => Ok(self.durable_end().into()),
            Err(source) => Err(self.sync_failed(&source)),
        }
    }

    pub(crate) fn sync_failed(&self, source: &std::io::Error) -> Error {
        Error::SyncFailed {
            partition: self.id.clone(),
            durable_end: self.durable_end().into(),
            end: self.end_offset().into(),
            source: copy_io_error(source),
        }
    }

    /// The one way to change the set of segments that readers see.
    pub(crate) fn swap(&self, set: SegmentSet) {
        *self.set.write() = Arc::new(set);
    }
}

/// One ordered log of a topic.
///
/// Cheap to clone. Reads take no lock that a writer holds; appends of one partition take turns.
///
/// ```
/// use topiclog::{Record, Store, TopicConfig};
/// let store = Store::in_memory()?;
/// let topic = store.create_topic("orders", TopicConfig::default())?;
/// let partition = topic.partition(0)?;
/// let placed = partition.append(Record::keyed("order-7", "placed"))?;
/// let fetched = partition.read(placed.offset, 1 << 20, 10)?;
/// assert_eq!(fetched.records[0].value(), Some(&b"placed"[..]));
/// # store.close()?;
/// # Ok::<(), topiclog::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Partition {
    pub(crate) log: Arc<Log>,
}

impl Partition {
    pub(crate) fn new(log: Arc<Log>) -> Self {
        Self { log }
    }

    /// The topic and the number of this partition.
    pub fn id(&self) -> &TopicPartition {
        &self.log.id
    }

    /// The first offset that can be read (Kafka's log start offset, `earliest`).
    pub fn start(&self) -> Offset {
        self.log.log_start().into()
    }

    /// The next offset to be assigned (Kafka's log end offset, `latest`). Never blocks.
    pub fn end(&self) -> Offset {
        self.log.end_offset().into()
    }

    /// Everything below this offset would survive a power cut. Never blocks.
    pub fn durable_end(&self) -> Offset {
        self.log.durable_end().into()
    }

    /// Records below this offset belong to no open transaction (Kafka's last stable offset).
    pub fn last_stable_offset(&self) -> Offset {
        self.log.last_stable_offset().into()
    }

    /// Makes everything appended so far durable; returns the durable end that was reached.
    ///
    /// # Errors
    /// [`Error::SyncFailed`] names the offsets that may be lost. The partition then refuses to write until the store is
    /// reopened.
    pub fn flush(&self) -> Result<Offset> {
        self.log.flush()
    }

    /// Raises the log start: records below this offset are gone, at once for readers, and from the disk as soon as a whole
    /// segment lies below it (Kafka's `DeleteRecords`). A start that is not higher changes nothing. Returns the log start.
    ///
    /// Durable when this returns: the new log start.
    ///
    /// # Errors
    /// [`Error::OffsetOutOfRange`] beyond the log end; [`Error::ReadOnly`], [`Error::Closed`], [`Error::Poisoned`]; an error
    /// of the disk, and then the old log start holds, or the log is poisoned until the store is reopened.
    ///
    /// ```
    /// use topiclog::{Record, Store, TopicConfig};
    /// let store = Store::in_memory()?;
    /// let partition = store.create_topic("t", TopicConfig::default())?.partition(0)?;
    /// for value in ["a", "b", "c"] {
    ///     partition.append(Record::of_value(value))?;
    /// }
    /// assert_eq!(partition.delete_records(2)?.get(), 2);
    /// assert!(partition.read(1, 1 << 20, 10).is_err());
    /// assert_eq!(partition.read(2, 1 << 20, 10)?.records.len(), 1);
    /// # store.close()?;
    /// # Ok::<(), topiclog::Error>(())
    /// ```
    pub fn delete_records(&self, before: impl Into<Offset>) -> Result<Offset> {
        let before = before.into();
        if before.get() > self.log.end_offset() {
            return Err(Error::OffsetOutOfRange {
                partition: self.log.id.clone(),
                asked: before,
                start: self.start(),
                end: self.end(),
            });
        }
        self.log.raise_log_start(before.get())?;
        Ok(self.start())
    }

    /// Below this offset compaction has been (Kafka's `cleaner-offset-checkpoint`); 0 if it never was.
    pub fn clean_end(&self) -> Offset {
        self.log.clean_end().into()
    }

    /// Past the highest tombstone that compaction dropped. Whoever kept state from a position below it may have missed a
    /// delete. After an [adoption](crate::Store::adopt) it is the log end, and a compaction that drops tombstones from before that
    /// raises it by one for each group of segments, so that it may lie above the log end.
    pub fn tombstone_floor(&self) -> Offset {
        self.log.tombstone_floor().into()
    }

    /// What this partition holds on the disk and in memory.
    pub fn stats(&self) -> PartitionStats {
        let set = self.log.snapshot();
        PartitionStats {
            segments: set.segments.len(),
            bytes: set.segments.iter().map(|segment| segment.bytes()).sum(),
            batches: set.segments.iter().map(|segment| segment.batches()).sum(),
            unsynced_bytes: self.log.unsynced_bytes(),
            index_memory_bytes: set.segments.iter().map(|segment| segment.memory_bytes()).sum(),
            indexes_rebuilt: set.segments.iter().map(|segment| segment.rebuilt()).sum(),
            trusted_reads: self.log.trusted_reads.load(Ordering::Relaxed),
            records_compacted: self.log.records_compacted.load(Ordering::Relaxed),
            tombstones_dropped: self.log.tombstones_dropped.load(Ordering::Relaxed),
        }
    }
}

/// Counts of one partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PartitionStats {
    /// Segments, the active one included.
    pub segments: usize,
    /// Bytes of record batches.
    pub bytes: u64,
    /// Record batches.
    pub batches: u64,
    /// Bytes written and not yet synced.
    pub unsynced_bytes: u64,
    /// Bytes of memory for the indexes, besides maps.
    pub index_memory_bytes: usize,
    /// Indexes that were found missing or wrong, and made anew, since the open.
    pub indexes_rebuilt: u64,
    /// Readers that were opened with [`Verify::Trusted`].
    pub trusted_reads: u64,
    /// Records that compaction took away since the open, tombstones among them.
    pub records_compacted: u64,
    /// Tombstones that compaction dropped since the open because their time was over.
    pub tombstones_dropped: u64,
}
