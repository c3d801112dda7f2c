//! Appends, rolls, and what happens when they fail.
//!
//! Everything here runs under the writer lock of the partition. What an append promises: on an error it will never
//! appear, except after [`Error::OutcomeUnknown`]; bytes are published only after they were written whole.

use std::io;
use std::sync::Arc;

use super::append_checks::check_record;
use super::append_options::{AppendOptions, AppendSpec};
use super::floor::Kind;
use super::kafka_state;
use super::key_queue::{self, Gathered, HashKey};
use super::listing::list;
use super::manifest::{self, EntryState, Manifest, SegmentEntry};
use super::settings::LogSettings;
use super::space_ahead::SpaceAhead;
use super::sync_window::{Awaited, SyncWindow};
use super::{Durability, Log, SegmentSet};
use crate::clock::Timestamp;
use crate::error::{Error, Result, copy_io_error};
use crate::ids::{Offset, PartitionId, TopicName, TopicPartition, Uuid};
use crate::io::replace::{TwoSlots, remove_if_there, replace_file};
use crate::planted::{Bug, is};
use crate::position::{PartitionPosition, Position};
use crate::record::{self, AsRecord, BatchError, BatchSpec, BatchSummary, RecordRef, TimestampType};
use crate::segment::log_file::CutBack;
use crate::segment::name::{Suffix, file_name};
use crate::segment::{BatchFacts, Segment, SegmentOptions, State};
use crate::sync::MutexGuard;
use crate::sync::atomic::Ordering;

/// Where an append went.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RecordMetadata {
    /// The topic.
    pub topic: TopicName,
    /// The topic's identity, which tells it from an earlier one of the same name.
    pub topic_id: Uuid,
    /// The partition.
    pub partition: PartitionId,
    /// Offset of the first record of the append.
    pub offset: Offset,
    /// One past the offset of the last record.
    pub next_offset: Offset,
    /// Leader epoch under which it was written.
    pub leader_epoch: i32,
    /// Timestamp of the first record; under `LogAppendTime` the time of the append.
    pub timestamp_ms: Timestamp,
}

impl RecordMetadata {
    /// The position behind what was appended: what a reader has read once it has come there.
    pub fn position(&self) -> Position {
        let at = PartitionPosition::new(self.next_offset).leader_epoch(self.leader_epoch).topic_id(self.topic_id);
        Position::of(TopicPartition::new(self.topic.clone(), self.partition), at)
    }
}

/// Where an append went in its log: what [`RecordMetadata`] is made of.
#[derive(Debug)]
pub(crate) struct Placed {
    pub(crate) topic_id: Uuid,
    pub(crate) offset: i64,
    pub(crate) next_offset: i64,
    pub(crate) leader_epoch: i32,
    pub(crate) timestamp_ms: Timestamp,
}

/// What the writer alone knows.
#[derive(Debug)]
pub(crate) struct Writer {
    /// A copy of the log's settings, so that an append need not ask for them twice.
    pub(crate) settings: Arc<LogSettings>,
    pub(crate) manifest: Manifest,
    pub(crate) active: Arc<Segment>,
    /// False until the clean flag was withdrawn, durably, before the first write after the open.
    pub(crate) is_ready: bool,
    /// A repair left files to be written at close, even if nothing is appended.
    pub(crate) must_close: bool,
    /// What says how much space is taken ahead.
    pub(crate) space_ahead: SpaceAhead,
    /// When the active segment was made, or opened, by the clock that does not jump.
    pub(crate) active_since_ms: u64,
    /// The newest manifest on the disk names a change that was carried out since.
    pub(crate) has_pending: bool,
}

/// Poisons the log if the thread panics while it holds the writer.
pub(super) struct PanicGuard<'a>(pub(super) &'a Log);

impl Drop for PanicGuard<'_> {
    fn drop(&mut self) {
        if crate::sync::thread::panicking() {
            self.0.poison("a panic while appending");
        }
    }
}

impl Log {
    /// Encodes records as one batch and appends it.
    pub(crate) fn append_records<R: AsRecord>(&self, records: &[R], options: &AppendSpec) -> Result<RecordMetadata> {
        let (placed, awaited) = self.append_unacknowledged(records, options)?;
        self.acknowledge(awaited, &placed)?;
        Ok(RecordMetadata {
            topic: self.id.topic.clone(),
            topic_id: placed.topic_id,
            partition: self.id.partition,
            offset: placed.offset.into(),
            next_offset: placed.next_offset.into(),
            leader_epoch: placed.leader_epoch,
            timestamp_ms: placed.timestamp_ms,
        })
    }

    /// [`append_records`](Self::append_records) for a caller that holds a lock, and waits for the level with
    /// [`acknowledge`](Self::acknowledge) when it has let go of it.
    pub(crate) fn append_unacknowledged<R: AsRecord>(
        &self,
        records: &[R],
        options: &AppendSpec,
    ) -> Result<(Placed, Awaited)> {
        let now_ms = options.now_ms.unwrap_or_else(|| self.env.clock.now_ms());
        with_buffer(|buffer| {
            let summary = self.encode(buffer, records, options, now_ms)?;
            let batch = buffer.get_mut(..summary.bytes).unwrap_or_default();
            match self.key_queue.wanted() {
                None => self.append_encoded(batch, &summary, options, now_ms, (None, &[])),
                // Hashed before the writer is taken.
                Some(secret) => with_hashes(&secret, records, |hashes| {
                    self.append_encoded(batch, &summary, options, now_ms, (Some(&secret), hashes))
                }),
            }
        })
    }

    /// Makes one batch of records, each of which is checked on the way: to walk through many twice takes longer than the checks.
    #[inline]
    fn encode<R: AsRecord>(
        &self,
        buffer: &mut Vec<u8>,
        records: &[R],
        options: &AppendSpec,
        now_ms: Timestamp,
    ) -> Result<BatchSummary> {
        let settings = self.settings.read();
        let compression = options.compression.unwrap_or(settings.compression);
        let spec = BatchSpec {
            compression,
            compression_level: settings.level_of(compression),
            timestamp_type: settings.timestamp_type,
            append_time_ms: now_ms,
            ..BatchSpec::new(0)
        };
        let mut refused = None;
        let check = |record: &RecordRef<'_>| {
            check_record(record, &settings, now_ms, options.has_keys_of_the_log).map_err(|error| {
                refused = Some(error);
                BatchError::Unencodable { what: "a record is refused" }
            })
        };
        let encoded = record::encode_batch_over(buffer, &spec, records, check);
        refused.map_or_else(|| encoded.map_err(|error| encode_error(&error)), Err)
    }

    /// Appends records with keys that are in the log already as one batch, if the log still ends at this offset; otherwise the
    /// error is [`Error::Conflict`].
    pub(crate) fn append_at(&self, end: i64, records: &[RecordRef<'_>]) -> Result<RecordMetadata> {
        let spec = AppendSpec { expected_offset: Some(end), has_keys_of_the_log: true, ..AppendSpec::default() };
        self.append_records(records, &spec)
    }

    /// Begins to gather the keys that are appended, with offsets relative to a base. Returns the log end at which this holds.
    pub(crate) fn start_key_queue(&self, secret: HashKey, base: i64) -> i64 {
        let _writer = self.writer.lock();
        if !self.env.read_only {
            self.key_queue.start(secret, base);
        }
        self.end_offset()
    }

    /// What was gathered up to the log end, that end and the segments with everything below it; `None` if the gathering has
    /// ended.
    pub(crate) fn take_key_queue(&self) -> Option<TakenKeys> {
        let _writer = self.writer.lock();
        let gathered = if self.env.read_only { Gathered::default() } else { self.key_queue.take()? };
        Some(TakenKeys { gathered, end: self.end_offset(), set: self.snapshot() })
    }

    fn append_encoded(
        &self,
        batch: &mut [u8],
        summary: &BatchSummary,
        options: &AppendSpec,
        now_ms: Timestamp,
        (secret, hashes): (Option<&HashKey>, &[Option<u64>]),
    ) -> Result<(Placed, Awaited)> {
        let mut writer = self.lock_writer()?;
        let _guard = PanicGuard(self);
        if batch.len() as u64 > writer.settings.batch_bytes_max {
            let (has, allowed) = (batch.len(), writer.settings.batch_bytes_max);
            return Err(Error::invalid("batch", format!("has {has} bytes, max.message.bytes allows {allowed}")));
        }
        let durability = options.durability.unwrap_or(writer.settings.durability);
        let base = self.end_offset.load(Ordering::Relaxed);
        if let Some(expected) = options.expected_offset
            && expected != base
        {
            return Err(Error::Conflict { partition: self.id.clone(), expected: expected.into(), end: base.into() });
        }
        let last = base.checked_add(i64::from(summary.records) - 1).filter(|&last| last < i64::MAX);
        let last = last.ok_or_else(|| Error::invalid("offset", "must stay below 2^63-1"))?;
        self.make_ready(&mut writer)?;
        if writer.promised_cap() != writer.settings.unsynced_cap() {
            self.promise_cap(&mut writer, now_ms)?;
        }
        if let Some(due) = self.is_due(&writer, batch.len() as u64, last, summary.max_timestamp)? {
            self.roll_when_due(&mut writer, due, now_ms)?;
        }
        self.keep_cap(&writer.settings, batch.len() as u64)?;
        writer.take_space_ahead(batch.len() as u64, durability);
        record::set_base_offset(batch, base);
        record::set_leader_epoch(batch, writer.manifest.epoch());
        let facts = BatchFacts { last_offset: last, max_timestamp: summary.max_timestamp };
        let position = writer.active.bytes();
        if let Err((error, cut)) = writer.active.append(batch, facts, durability != Durability::Sync) {
            return Err(self.append_failed(&mut writer, error, cut, base));
        }
        // Only the writer changes it, so that a load and a store are enough.
        let written_bytes = self.written_bytes.load(Ordering::Relaxed) + batch.len() as u64;
        self.written_bytes.store(written_bytes, Ordering::Release);
        self.end_offset.store(last + 1, Ordering::Release);
        self.env.bell.ring();
        let keys_wait = self.key_queue.is_wanted()
            && self.key_queue.push((base, last + 1), position, secret, hashes)
            && self.env.has_upkeep;
        let window = SyncWindow::behind(durability, &writer.settings);
        if let Some(window) = window
            && window.ms < self.window_ms.load(Ordering::Relaxed)
        {
            self.note_window(window.ms);
        }
        let timestamp_ms = match writer.settings.timestamp_type {
            TimestampType::LogAppendTime => now_ms,
            TimestampType::CreateTime => summary.base_timestamp,
        };
        let placed = Placed {
            topic_id: writer.manifest.topic_id,
            offset: base,
            next_offset: last + 1,
            leader_epoch: writer.manifest.epoch(),
            timestamp_ms,
        };
        Ok((placed, Awaited { window_bytes: window.map(|window| window.bytes), keys_wait }))
    }

    pub(super) fn lock_writer(&self) -> Result<MutexGuard<'_, Writer>> {
        if self.env.read_only {
            return Err(Error::ReadOnly { what: format!("append to {}", self.id) });
        }
        let writer = self.writer.lock();
        self.check_open()?;
        match self.poison_error() {
            Some(error) => Err(error),
            None => Ok(writer),
        }
    }

    /// Withdraws the clean flag, durably, before the first write after an open.
    pub(super) fn make_ready(&self, writer: &mut Writer) -> Result<()> {
        if writer.is_ready {
            return Ok(());
        }
        (self.env.before_first_write)()?;
        let mut floor = self.floor.lock();
        let active = &writer.active;
        active.count_stored_entries();
        if is(Bug::CleanFlagStands) {
            writer.is_ready = true;
            return Ok(());
        }
        self.write_floor(&mut floor, Kind::Running, active.base_offset(), active.bytes(), active.next_offset())?;
        writer.is_ready = true;
        Ok(())
    }

    #[cold]
    fn append_failed(&self, writer: &mut Writer, error: io::Error, cut: CutBack, base: i64) -> Error {
        if let Some(source) = writer.active.log().file().failed_sync() {
            // When its descriptor was to be given to another file. Nothing was written since.
            self.group.note(Err(copy_io_error(&source)));
            self.poison(format!("sync: {source}"));
            return self.poison_error().unwrap_or_else(|| self.sync_failed(&source));
        }
        if cut == CutBack::Failed && is(Bug::OffsetReused) {
            return Error::OutcomeUnknown { partition: self.id.clone(), offset: base.into(), source: error };
        }
        if cut == CutBack::Failed {
            self.poison(format!("a failed append could not be cut back: {error}"));
            return Error::OutcomeUnknown { partition: self.id.clone(), offset: base.into(), source: error };
        }
        Error::io("write", writer.active.log().path(), error)
    }

    /// Kafka's conditions for a new segment.
    #[inline]
    fn is_due(&self, writer: &Writer, bytes: u64, last_offset: i64, max_timestamp: Timestamp) -> Result<Option<Due>> {
        let (active, settings) = (&writer.active, &writer.settings);
        let size = active.bytes();
        if size == 0 {
            return Ok(None);
        }
        if size.saturating_add(bytes) > i32::MAX as u64
            || last_offset - active.base_offset() > i64::from(i32::MAX)
            || active.index_is_full(settings.segment_index_bytes)
        {
            return Ok(Some(Due::Exhausted));
        }
        if size.saturating_add(bytes) > settings.segment_bytes {
            return Ok(Some(Due::Full));
        }
        if settings.segment_ms == i64::MAX {
            return Ok(None);
        }
        let waited = match active.first_batch_timestamp()? {
            Some(first) => max_timestamp.saturating_sub(first),
            None => self.active_ms(writer),
        };
        Ok((waited > settings.segment_ms).then_some(Due::Full))
    }

    #[cold]
    fn roll_when_due(&self, writer: &mut Writer, due: Due, now_ms: Timestamp) -> Result<()> {
        let settings = Arc::clone(&writer.settings);
        let size = writer.active.bytes();
        match self.roll(writer, &settings, now_ms) {
            // Without a descriptor the log goes on in the old file for a while; but not if a manifest that closes it may
            // have been written.
            Err(Error::TooManyFiles { .. })
                if due == Due::Full
                    && size < settings.segment_bytes.saturating_mul(2)
                    && (!self.poisoned.load(Ordering::Acquire) || is(Bug::RollPutOffWhenCommitted)) =>
            {
                Ok(())
            }
            result => result,
        }
    }

    /// Closes the active segment and begins a new one at the log end. The new file is written only after a manifest
    /// that lists it is durable.
    pub(crate) fn roll(&self, writer: &mut Writer, settings: &LogSettings, now_ms: Timestamp) -> Result<()> {
        let end = self.end_offset();
        let old = Arc::clone(&writer.active);
        // What was promised of the old segment holds for it to its end, whatever was altered since.
        let is_bounded = settings.durability != Durability::Os || writer.promised_cap().is_some();
        if is_bounded && !is(Bug::NoSyncAtRoll) {
            self.sync_to(end).map_err(|source| self.sync_failed(&source))?;
        }
        let synced = self.durable_end() >= end || is(Bug::NoSyncAtRoll);
        let indexes = match old.write_indexes(false) {
            // A damaged batch costs no append: the seal will tell of it, and until then every look-up that needs it.
            Err(Error::Corrupt { .. }) => None,
            written => Some(written?),
        };
        old.log().trim()?;

        self.write_snapshot(end)?;
        let new = self.create_segment(end, settings)?;
        let mut manifest = writer.manifest.clone();
        if let Some(entry) = manifest.segments.last_mut() {
            *entry = SegmentEntry {
                state: EntryState::Closed,
                bytes: old.bytes(),
                next: end,
                batches: old.batches(),
                max_timestamp: old.known_max_timestamp(),
                index: None,
                time_index: indexes.map(|indexes| indexes.times),
                synced,
                closed_ms: Some(now_ms),
                ..entry.clone()
            };
        }
        manifest.segments.push(SegmentEntry::empty(end, settings.unsynced_cap()));
        self.commit_manifest(writer, manifest)?;

        old.set_state(State::Closed);
        let mut set = (*self.snapshot()).clone();
        set.segments.push(Arc::clone(&new));
        self.swap(set);
        writer.active = new;
        (writer.space_ahead, writer.active_since_ms) = (SpaceAhead::default(), self.monotonic_ms());
        Ok(())
    }

    /// Creates the file of a new segment and makes its directory entry durable.
    fn create_segment(&self, base_offset: i64, settings: &LogSettings) -> Result<Arc<Segment>> {
        let options =
            SegmentOptions { read_path: self.env.read_path, index_interval_bytes: settings.index_interval_bytes };
        let segment = match Segment::create(&self.env.pool, &self.directory, base_offset, options) {
            // Left over from a roll that failed before its manifest was written: empty, and in no manifest.
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::AlreadyExists => {
                let path = self.directory.join(file_name(base_offset, Suffix::Log));
                self.env.vfs.remove_file(&path).map_err(|error| Error::io("remove", &path, error))?;
                Segment::create(&self.env.pool, &self.directory, base_offset, options)?
            }
            other => other?,
        };
        self.sync_directory()?;
        Ok(Arc::new(segment))
    }

    pub(crate) fn sync_directory(&self) -> Result<()> {
        if is(Bug::NoDirectorySync) {
            return Ok(());
        }
        self.env.vfs.sync_dir(&self.directory).map_err(|error| Error::io("sync", &self.directory, error))
    }

    /// Replaces the manifest: the commit point. If it fails, either the old one still holds and nothing happened, or
    /// it cannot be told and the log is poisoned.
    pub(crate) fn commit_manifest(&self, writer: &mut Writer, manifest: Manifest) -> Result<()> {
        let generation = self.generation.load(Ordering::Acquire) + 1;
        let vfs = &*self.env.vfs;
        let slots = manifest::slots(&self.directory);
        if let Err(error) = slots.write(vfs, generation, &manifest.encode(), true) {
            if slot_may_hold(vfs, &slots, generation) {
                self.poison(format!("the manifest could not be replaced: {error}"));
            }
            return Err(error);
        }
        writer.has_pending = manifest.pending.is_some();
        writer.manifest = manifest;
        self.generation.store(generation, Ordering::Release);
        Ok(())
    }

    /// Syncs, writes what Kafka and a quick open need, and states that nothing follows. Later calls get `Closed`.
    ///
    /// Durable when this returns: everything.
    pub(crate) fn close(&self) -> Result<()> {
        let mut writer = self.writer.lock();
        if self.closed.swap(true, Ordering::AcqRel) || self.env.read_only {
            return Ok(());
        }
        let _guard = PanicGuard(self);
        if let Some(error) = self.poison_error() {
            return Err(self.group.failure().map_or(error, |source| self.sync_failed(&source)));
        }
        if !writer.is_ready && !writer.must_close {
            return Ok(());
        }
        self.make_ready(&mut writer)?;
        self.sync_to(self.end_offset()).map_err(|source| self.sync_failed(&source))?;
        let mut damage = self.seal_closed(&mut writer)?;
        let active = Arc::clone(&writer.active);
        active.log().trim()?;
        active.log().file().sync_data().map_err(|source| self.sync_failed(&source))?;
        let indexes = match active.write_indexes(true) {
            Err(error @ Error::Corrupt { .. }) => {
                damage.get_or_insert(error);
                None
            }
            written => Some(written?),
        };
        self.write_snapshot(self.end_offset())?;
        // That of the close before, now that this one is durable.
        self.remove_stray_snapshots(&writer.manifest)?;
        self.write_epochs(&writer.manifest)?;
        self.sync_directory()?;
        let mut manifest = writer.manifest.clone();
        // Damaged ones, which were synced all the same when they were to be sealed: nothing behind them is ever cut.
        for entry in manifest.segments.iter_mut().filter(|entry| entry.state == EntryState::Closed) {
            entry.synced = true;
        }
        if let Some(entry) = manifest.segments.last_mut() {
            entry.bytes = active.bytes();
            entry.next = active.next_offset();
            entry.batches = active.batches();
            entry.max_timestamp = active.known_max_timestamp();
            entry.index = indexes.map(|indexes| indexes.offsets);
            entry.time_index = indexes.map(|indexes| indexes.times);
        }
        self.commit_manifest(&mut writer, manifest)?;
        let mut floor = self.floor.lock();
        self.write_floor(&mut floor, Kind::Clean, active.base_offset(), active.bytes(), active.next_offset())?;
        // What is still read stays; the next open sweeps it.
        self.remove_retired()?;
        damage.map_or(Ok(()), Err)
    }

    /// The topic was deleted: nothing is written any more, and every call gets `Closed`.
    pub(crate) fn abandon(&self) {
        let _writer = self.writer.lock();
        self.closed.store(true, Ordering::Release);
        self.env.bell.ring();
    }

    /// Whether Kafka's log-start checkpoint has to name this partition.
    pub(crate) fn starts_inside_a_segment(&self) -> bool {
        self.snapshot().segments.first().is_some_and(|first| self.log_start() > first.base_offset())
    }

    /// Producer state before an offset, for Kafka. Synced: it may be the only one that is left once older ones went with
    /// their segments.
    fn write_snapshot(&self, offset: i64) -> Result<()> {
        let bytes = self.producers.lock().encode_snapshot();
        let name = file_name(offset, Suffix::Snapshot);
        replace_file(&*self.env.vfs, &self.directory, &name, &bytes, true)?;
        Ok(())
    }

    fn remove_stray_snapshots(&self, manifest: &Manifest) -> Result<()> {
        let listing = list(&*self.env.vfs, &self.directory)?;
        for offset in listing.stray_snapshots(manifest, self.end_offset()) {
            remove_if_there(&*self.env.vfs, &self.directory.join(file_name(offset, Suffix::Snapshot)))?;
        }
        Ok(())
    }

    /// The leader epochs, for Kafka.
    pub(crate) fn write_epochs(&self, manifest: &Manifest) -> Result<()> {
        let text = kafka_state::encode_epochs(&manifest.epochs);
        let name = kafka_state::EPOCHS_NAME;
        replace_file(&*self.env.vfs, &self.directory, name, text.as_bytes(), true)
    }

    /// New settings, for every append that takes the writer from now on.
    pub(crate) fn set_settings(&self, settings: LogSettings) {
        let settings = Arc::new(settings);
        let mut writer = self.writer.lock();
        writer.settings = Arc::clone(&settings);
        // What was appended when nobody was to sync behind it.
        let window = SyncWindow::of_os(&settings).filter(|_| self.unsynced_bytes() > 0);
        self.is_sync.store(settings.durability == Durability::Sync, Ordering::Release);
        self.expire_after_ms.store(settings.compaction.expire_after_ms, Ordering::Release);
        *self.settings.write() = settings;
        drop(writer);
        if let Some(window) = window {
            self.note_window(window.ms);
        }
    }
}

/// Why a new segment is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    /// The segment has its size or age; a little more does no harm.
    Full,
    /// Its formats hold no more.
    Exhausted,
}

/// Keys that were taken over together with the log end.
#[derive(Debug)]
pub(crate) struct TakenKeys {
    pub(crate) gathered: Gathered,
    /// All keys below this offset were gathered, but for those that have to be read.
    pub(crate) end: i64,
    /// Read under the same lock, so that no segment was exchanged in between.
    pub(crate) set: Arc<SegmentSet>,
}

fn encode_error(error: &record::BatchError) -> Error {
    if error.is_unsupported() {
        Error::unsupported(error.to_string())
    } else {
        Error::invalid("batch", error.to_string())
    }
}

/// Whether a slot holds this generation, or cannot be read.
fn slot_may_hold(vfs: &dyn crate::io::Vfs, slots: &TwoSlots<'_>, generation: u64) -> bool {
    slots.read(vfs).map_or(true, |read| read.newest.is_some_and(|slot| slot.generation >= generation))
}

/// Runs a call with the thread's encoding buffer and whatever is in it; a buffer that grew large is not kept.
fn with_buffer<R>(call: impl FnOnce(&mut Vec<u8>) -> R) -> R {
    const KEPT_BYTES: usize = 2 << 20;
    thread_local! {
        static BUFFER: std::cell::Cell<Vec<u8>> = const { std::cell::Cell::new(Vec::new()) };
    }
    let mut buffer = BUFFER.take();
    let result = call(&mut buffer);
    if buffer.capacity() <= KEPT_BYTES {
        BUFFER.set(buffer);
    }
    result
}

/// Runs a call with the hashes of the records' keys.
fn with_hashes<A: AsRecord, R>(secret: &HashKey, records: &[A], call: impl FnOnce(&[Option<u64>]) -> R) -> R {
    thread_local! {
        static HASHES: std::cell::Cell<Vec<Option<u64>>> = const { std::cell::Cell::new(Vec::new()) };
    }
    let mut hashes = HASHES.take();
    hashes.clear();
    hashes.extend(records.iter().map(|record| record.as_record().key.map(|key| key_queue::hash(secret, key))));
    let result = call(&hashes);
    HASHES.set(hashes);
    result
}

impl super::Partition {
    /// Appends one record as a batch of its own, at the durability of the topic.
    ///
    /// Durable when this returns: what the topic's [`Durability`] says.
    ///
    /// # Errors
    /// After any error but [`Error::OutcomeUnknown`] the record will never appear. [`Error::Invalid`] if it breaks a
    /// limit, [`Error::NoSpace`] while the disk is full, [`Error::Poisoned`] after an earlier failure,
    /// [`Error::Closed`], [`Error::ReadOnly`].
    pub fn append(&self, record: impl AsRecord) -> Result<RecordMetadata> {
        self.log.append_records(&[record], &AppendSpec::default())
    }

    /// Appends many records as one batch: all of them are there, or none.
    ///
    /// # Errors
    /// As [`append`](Self::append); an empty batch is [`Error::Invalid`].
    pub fn append_batch<R: AsRecord>(&self, records: &[R]) -> Result<RecordMetadata> {
        self.log.append_records(records, &AppendSpec::default())
    }

    /// Appends many records as one batch, with a durability or compression of its own.
    ///
    /// # Errors
    /// As [`append`](Self::append); a codec that is not built in is [`Error::Unsupported`].
    pub fn append_batch_with<R: AsRecord>(&self, records: &[R], options: &AppendOptions) -> Result<RecordMetadata> {
        self.log.append_records(records, &options.spec())
    }
}
