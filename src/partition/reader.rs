//! Reads of one partition: by offset, batch by batch or record by record, without a lock that a writer holds.

use std::path::Path;
use std::sync::Arc;

use super::{Log, Partition, SegmentSet};
use crate::error::{Error, Result};
use crate::ids::Offset;
use crate::planted::{Bug, is};
use crate::record::{
    self, BatchError, BatchHeader, ControlRecord, DecodeLimits, RecordList, RecordPlace, RecordView, RecordsIter,
    RecordsState, SharedBytes, StoredRecord,
};
use crate::segment::Segment;
use crate::segment::batch_error::batch_error;
use crate::segment::cursor::{BatchAt, Cursor, Start, Verify};
use crate::sync::atomic::Ordering;

/// How far a reader sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReadLevel {
    /// As the topic: `Durable` where it is `Sync`, else `Latest`.
    #[default]
    Topic,
    /// Up to the durable end: what is shown survives a power cut.
    Durable,
    /// Up to the log end: what is shown may be taken back by a power cut.
    Latest,
}

/// Whether records of open and aborted transactions are shown (Kafka's `isolation.level`). Control records never are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Isolation {
    /// All data records.
    #[default]
    Uncommitted,
    /// Up to the last stable offset, without records of aborted transactions.
    Committed,
}

/// How to read.
///
/// ```
/// use topiclog::{Isolation, ReadLevel, ReadOptions, Verify};
/// let options = ReadOptions::new().level(ReadLevel::Latest).isolation(Isolation::Committed).verify(Verify::Always);
/// # let _ = options;
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct ReadOptions {
    level: ReadLevel,
    isolation: Isolation,
    verify: Option<Verify>,
    limits: DecodeLimits,
    state_since: Option<i64>,
    shows_control: bool,
}

impl ReadOptions {
    /// As the topic and the store say.
    pub fn new() -> Self {
        Self::default()
    }

    /// How far to see.
    #[must_use]
    pub fn level(mut self, level: ReadLevel) -> Self {
        self.level = level;
        self
    }

    /// Whether uncommitted and aborted records are shown.
    #[must_use]
    pub fn isolation(mut self, isolation: Isolation) -> Self {
        self.isolation = isolation;
        self
    }

    /// When batches are compared with their checksums.
    #[must_use]
    pub fn verify(mut self, verify: Verify) -> Self {
        self.verify = Some(verify);
        self
    }

    /// The reader keeps state that it made from this partition, and began it when the
    /// [tombstone floor](Partition::tombstone_floor) was this. If compaction has dropped a tombstone that it had not come to,
    /// it gets [`Error::SnapshotRequired`] instead of a copy that keeps a deleted key.
    ///
    /// A reader that begins without state takes the floor as it is then, keeps it with its state, and gives it here each time
    /// it resumes.
    #[must_use]
    pub fn state_since(mut self, tombstone_floor: Offset) -> Self {
        self.state_since = Some(tombstone_floor.get());
        self
    }

    /// Control batches are shown as well, for whoever keeps track of transactions itself.
    #[must_use]
    pub(crate) fn with_control(mut self) -> Self {
        self.shows_control = true;
        self
    }

    /// How large a batch may become when it is decompressed.
    #[must_use]
    pub fn limits(mut self, limits: DecodeLimits) -> Self {
        self.limits = limits;
        self
    }
}

/// What one [`Partition::read`] brought.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Fetched {
    /// The records, in order.
    pub records: Vec<StoredRecord>,
    /// Where to read on.
    pub next_offset: Offset,
    /// The bound of this read: one past the last offset that could be seen.
    pub end: Offset,
}

/// Walks one partition in order. As an iterator it yields owned records; [`next_batch`](Reader::next_batch) yields
/// whole batches whose records are borrowed.
///
/// It ends at its bound as that is when it gets there; asked again after more was appended, it goes on. After an error
/// it keeps returning that error: nothing is ever skipped.
#[derive(Debug)]
pub struct Reader {
    log: Arc<Log>,
    options: ReadOptions,
    verify: Verify,
    next_offset: i64,
    place: Option<Place>,
    current: Option<Current>,
    failed: Option<Error>,
}

#[derive(Debug)]
struct Place {
    set: Arc<SegmentSet>,
    index: usize,
    cursor: Cursor,
}

/// The batch whose records the iterator hands out.
#[derive(Debug)]
struct Current {
    batch: Batch,
    /// Where in the body the next record begins, so that an owned iterator can borrow it anew for each record.
    at: RecordsState,
    /// The record that [`Reader::find_next`] found.
    found: Option<RecordPlace>,
}

/// A record, and where in its segment the batch begins that it is in.
#[derive(Debug)]
pub(crate) struct FoundRecord {
    pub(crate) record: StoredRecord,
    pub(crate) position: u64,
}

/// A whole batch, decompressed if need be.
#[derive(Clone, Debug)]
pub struct Batch {
    header: BatchHeader,
    /// Where it begins in its segment.
    pub(crate) position: u64,
    body: SharedBytes,
    /// At the first record that the reader has not passed.
    start: RecordsState,
}

impl Batch {
    /// The batch header as stored.
    pub fn header(&self) -> &BatchHeader {
        &self.header
    }

    /// Offset of the first record that the batch could hold.
    pub fn base_offset(&self) -> Offset {
        self.header.base_offset.into()
    }

    /// One past the last offset of the batch.
    pub fn next_offset(&self) -> Offset {
        self.header.next_offset().into()
    }

    /// The records from the reader's offset on, borrowed from the batch.
    pub fn records(&self) -> RecordsIter<'_> {
        RecordsIter::at(self.start, &self.body)
    }

    /// The same records, owned: each shares the bytes of the batch.
    pub fn stored_records(&self) -> impl Iterator<Item = std::result::Result<StoredRecord, BatchError>> {
        self.records().map(|view| view.map(|view| self.stored(&view)))
    }

    /// One of its records, owned.
    pub(crate) fn stored(&self, view: &RecordView<'_>) -> StoredRecord {
        StoredRecord::new(&self.body, &self.header, view.place())
    }
}

impl Partition {
    /// Reads from an offset on: whole batches while they fit `bytes_max`, at least one, and at most `records_max`
    /// records. Nothing is skipped: read on at [`Fetched::next_offset`].
    ///
    /// # Errors
    /// [`Error::OffsetOutOfRange`] carries the valid range. [`Error::Corrupt`] if what is stored there is damaged,
    /// [`Error::Unsupported`] for a codec that is not built in.
    pub fn read(&self, offset: impl Into<Offset>, bytes_max: usize, records_max: usize) -> Result<Fetched> {
        self.read_with(offset, bytes_max, records_max, &ReadOptions::default())
    }

    /// [`read`](Self::read) with options.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn read_with(
        &self,
        offset: impl Into<Offset>,
        bytes_max: usize,
        records_max: usize,
        options: &ReadOptions,
    ) -> Result<Fetched> {
        let mut reader = self.reader(offset, options)?;
        let mut fetched = Fetched {
            records: Vec::new(),
            next_offset: reader.next_offset.into(),
            end: reader.log.bound(options).into(),
        };
        let mut bytes_left = bytes_max;
        while fetched.records.len() < records_max {
            let Some((found, header)) = reader.peek_batch()? else { break };
            let size = header.size_bytes();
            if size > bytes_left && !fetched.records.is_empty() {
                break;
            }
            let Some(batch) = reader.take_batch(&found, header)? else {
                fetched.next_offset = reader.next_offset.into();
                continue;
            };
            let mut whole = true;
            if is(Bug::CountPreallocates) {
                fetched.records.reserve(usize::try_from(header.records_count).unwrap_or_default());
            }
            for stored in batch.stored_records() {
                let stored = stored.map_err(|error| reader.batch_error(&header, &error))?;
                if fetched.records.len() == records_max {
                    whole = false;
                    fetched.next_offset = stored.offset();
                    break;
                }
                fetched.records.push(stored);
            }
            if whole {
                fetched.next_offset = batch.next_offset();
            }
            bytes_left = bytes_left.saturating_sub(size);
        }
        Ok(fetched)
    }

    /// The record at an offset; `None` if none is stored there (a compaction gap, a control record).
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn record(&self, offset: impl Into<Offset>) -> Result<Option<StoredRecord>> {
        // Straight to the batch, without a reader around it: this is the call of those who read at random.
        let offset = offset.into().get();
        let options = ReadOptions::default();
        let log = &self.log;
        log.check_open()?;
        if offset < log.log_start() || offset > log.end_offset() {
            return Err(log.out_of_range(offset, &options));
        }
        if offset >= log.bound(&options) {
            return Ok(None);
        }
        log.record_in(&log.snapshot(), offset)
    }

    /// Iterates from an offset to the bound.
    ///
    /// # Errors
    /// The iterator yields them: [`Error::OffsetOutOfRange`] first of all, [`Error::Corrupt`], [`Error::Unsupported`];
    /// after an error it yields nothing else.
    pub fn read_from(&self, offset: impl Into<Offset>) -> Reader {
        let offset = offset.into();
        let options = ReadOptions::default();
        self.reader(offset, &options).unwrap_or_else(|error| {
            let mut reader = Reader::new(Arc::clone(&self.log), offset.get(), options);
            reader.failed = Some(error);
            reader
        })
    }

    /// A reader that begins at an offset.
    ///
    /// # Errors
    /// [`Error::OffsetOutOfRange`] if the offset lies below the log start or above the log end; [`Error::Closed`].
    pub fn reader(&self, offset: impl Into<Offset>, options: &ReadOptions) -> Result<Reader> {
        let offset = offset.into().get();
        self.log.check_open()?;
        let (start, end) = (self.log.log_start(), self.log.end_offset());
        if offset < start || offset > end {
            return Err(self.log.out_of_range(offset, options));
        }
        if options.verify == Some(Verify::Trusted) {
            self.log.trusted_reads.fetch_add(1, Ordering::Relaxed);
        }
        Ok(Reader::new(Arc::clone(&self.log), offset, *options))
    }
}

/// A batch, and where it stands.
#[derive(Debug)]
pub(crate) struct FoundBatch<'a> {
    pub(crate) segment: &'a Arc<Segment>,
    pub(crate) position: u64,
    pub(crate) header: BatchHeader,
    pub(crate) batch: SharedBytes,
}

impl SegmentSet {
    /// The batch that holds an offset, or the first one behind it in its segment; with a hint where it may begin.
    #[inline]
    pub(crate) fn batch_near(&self, offset: i64, hint: Option<u64>, verify: Verify) -> Result<Option<FoundBatch<'_>>> {
        let Some(segment) = self.segments.get(self.index_of(offset)) else { return Ok(None) };
        // Asked for once: where nothing is mapped the entry is needed all the same.
        let mut entry = if hint.is_some() { None } else { segment.hint(offset)? };
        let start = hint.map(Start::Noted).or(entry.map(|(last, position)| Start::Entry(last, position)));
        if let Some(start) = start
            && let Some((position, header, batch)) = segment.batch_in_map(self.epochs.as_ref(), verify, (offset, start))
        {
            return Ok(Some(FoundBatch { segment, position, header, batch }));
        }
        if let Some(position) = hint {
            if let Some((header, batch)) = segment.batch_at(self.epochs.as_ref(), verify, position, offset) {
                return Ok(Some(FoundBatch { segment, position, header, batch }));
            }
            entry = segment.hint(offset)?;
        }
        let mut cursor = Cursor::seek_from(segment, self.epochs.clone(), verify, (offset, entry))?;
        let found = cursor.next()?;
        Ok(found.map(|found| {
            let (position, header) = (found.position, found.header);
            FoundBatch { segment, position, header, batch: cursor.bytes(&found) }
        }))
    }
}

impl Log {
    /// The record at an offset as a set of segments has it; `None` if none is stored there, or below the log start.
    pub(crate) fn record_in(&self, set: &SegmentSet, offset: i64) -> Result<Option<StoredRecord>> {
        let limits = DecodeLimits::default();
        let found = self.record_near(set, offset, None, (self.env.verify, &limits))?;
        Ok(found.map(|found| found.record))
    }

    /// [`record_in`](Self::record_in), with a hint where its batch may begin, and a say in when the batch is compared with its
    /// checksum and how large it may become.
    #[inline]
    pub(crate) fn record_near(
        &self,
        set: &SegmentSet,
        offset: i64,
        hint: Option<u32>,
        (verify, limits): (Verify, &DecodeLimits),
    ) -> Result<Option<FoundRecord>> {
        if offset < self.log_start() {
            return Ok(None);
        }
        let Some(FoundBatch { segment, position, header, batch }) =
            set.batch_near(offset, hint.map(u64::from), verify)?
        else {
            return Ok(None);
        };
        let record = record_of(&header, batch, offset, limits);
        let record = record.map_err(|error| failed_batch(Some(segment), position, &header, &error))?;
        Ok(record.map(|record| FoundRecord { record, position }))
    }

    /// [`record_near`](Self::record_near) for offsets that rise from call to call: a batch that holds several of them is read,
    /// decompressed and walked through once. It stays in `batch`, which is what the record is borrowed from.
    pub(crate) fn record_further_on<'b>(
        &self,
        set: &SegmentSet,
        batch: &'b mut Option<Batch>,
        (offset, hint): (i64, Option<u32>),
        (verify, limits): (Verify, &DecodeLimits),
    ) -> Result<Option<(&'b Batch, RecordView<'b>)>> {
        if offset < self.log_start() {
            return Ok(None);
        }
        let segment = || set.segments.get(set.index_of(offset));
        let holds = |batch: &Batch| (batch.header.base_offset..batch.header.next_offset()).contains(&offset);
        if !batch.as_ref().is_some_and(holds) {
            *batch = None;
            let Some(found) = set.batch_near(offset, hint.map(u64::from), verify)? else { return Ok(None) };
            let FoundBatch { position, header, batch: bytes, .. } = found;
            if header.base_offset > offset || header.is_control() {
                return Ok(None);
            }
            let body = record::decode_taking(&header, bytes, limits);
            let body = body.map_err(|error| failed_batch(segment(), position, &header, &error))?;
            *batch = Some(Batch { header, position, body, start: RecordsState::new(&header) });
        }
        let Some(batch) = batch else { return Ok(None) };
        let found = batch.start.skip_to(offset, &batch.body).and_then(|()| batch.start.find(offset, &batch.body));
        let found = found.map_err(|error| failed_batch(segment(), batch.position, &batch.header, &error))?;
        Ok(found.map(|view| (&*batch, view)))
    }

    /// The record at an offset, if the newest segments have it in a map that is there, in a batch that begins where somebody noted
    /// who has seen so many replacements of segments. `None` wherever something is not as it is most often.
    #[inline]
    pub(crate) fn record_in_map(
        &self,
        offset: i64,
        (position, replacements): (u32, u64),
        limits: &DecodeLimits,
    ) -> Option<StoredRecord> {
        if offset < self.log_start() {
            return None;
        }
        let (header, batch) = {
            let set = self.set.read();
            let segment = set.segments.get(set.index_of(offset)).filter(|_| set.replacements == replacements)?;
            let place = (offset, Start::Noted(position.into()));
            let (_, header, batch) = segment.batch_in_map(set.epochs.as_ref(), self.env.verify, place)?;
            (header, batch)
        };
        record_of(&header, batch, offset, limits).ok()?
    }

    /// One past the last offset that a reader may see.
    #[inline]
    pub(crate) fn bound(&self, options: &ReadOptions) -> i64 {
        let durable = match options.level {
            ReadLevel::Topic => !self.env.read_only && self.is_sync.load(Ordering::Acquire),
            ReadLevel::Durable => true,
            ReadLevel::Latest => false,
        };
        let end = if durable { self.durable_end().min(self.end_offset()) } else { self.end_offset() };
        match options.isolation {
            Isolation::Uncommitted => end,
            Isolation::Committed => end.min(self.last_stable_offset()),
        }
    }

    fn out_of_range(&self, asked: i64, options: &ReadOptions) -> Error {
        Error::OffsetOutOfRange {
            partition: self.id.clone(),
            asked: asked.into(),
            start: self.log_start().into(),
            end: self.bound(options).into(),
        }
    }
}

impl Reader {
    /// A reader from an offset that is known to be in the log.
    pub(crate) fn begin(log: &Arc<Log>, offset: i64, options: ReadOptions) -> Self {
        Self::new(Arc::clone(log), offset, options)
    }

    fn new(log: Arc<Log>, next_offset: i64, options: ReadOptions) -> Self {
        let verify = options.verify.unwrap_or(log.env.verify);
        Self { log, options, verify, next_offset, place: None, current: None, failed: None }
    }

    /// The next offset that this reader will look at.
    pub fn position(&self) -> Offset {
        match &self.current {
            Some(current) => current.at.next_offset().into(),
            None => self.next_offset.into(),
        }
    }

    /// The next batch with records to show. `None` at the bound; asked again later, it goes on.
    ///
    /// # Errors
    /// [`Error::Corrupt`], [`Error::Unsupported`], [`Error::OffsetOutOfRange`] if the log start has passed this reader,
    /// [`Error::Closed`]. The reader keeps failing.
    pub fn next_batch(&mut self) -> Result<Option<Batch>> {
        if let Some(error) = &self.failed {
            return Err(error.duplicate());
        }
        let result = self.advance();
        if let Err(error) = &result {
            self.failed = Some(error.duplicate());
        }
        result
    }

    fn advance(&mut self) -> Result<Option<Batch>> {
        loop {
            let Some((found, header)) = self.peek_batch()? else { return Ok(None) };
            if let Some(batch) = self.take_batch(&found, header)? {
                return Ok(Some(batch));
            }
        }
    }

    /// The batch that comes next, below the bound, unread.
    fn peek_batch(&mut self) -> Result<Option<(BatchAt, BatchHeader)>> {
        loop {
            self.log.check_open()?;
            self.check_tombstones()?;
            let bound = self.log.bound(&self.options);
            if self.next_offset >= bound {
                return Ok(None);
            }
            if self.place.is_none() {
                self.find_place()?;
            }
            let Some(place) = &mut self.place else { return Ok(None) };
            match place.cursor.peek()? {
                Some(found) if found.header.base_offset >= bound => return Ok(None),
                Some(found) => return Ok(Some((found, found.header))),
                None => {
                    if !self.enter_next_segment()? {
                        return Ok(None);
                    }
                }
            }
        }
    }

    /// Whether a tombstone was dropped that the state of this reader needs.
    #[inline]
    fn check_tombstones(&self) -> Result<()> {
        match self.options.state_since {
            Some(began) if self.log.tombstone_floor() > self.next_offset.max(began) => Err(Error::SnapshotRequired {
                partition: self.log.id.clone(),
                position: self.next_offset.into(),
                tombstone_floor: self.log.tombstone_floor().into(),
            }),
            _ => Ok(()),
        }
    }

    fn find_place(&mut self) -> Result<()> {
        if self.next_offset < self.log.log_start() {
            return Err(self.log.out_of_range(self.next_offset, &self.options));
        }
        let set = self.log.snapshot();
        let index = set.index_of(self.next_offset);
        let Some(segment) = set.segments.get(index) else { return Ok(()) };
        let cursor = Cursor::seek(segment, set.epochs.clone(), self.verify, self.next_offset)?;
        self.place = Some(Place { set, index, cursor });
        // Again, with the segments in hand: these may be the ones without the tombstone.
        self.check_tombstones()
    }

    /// Goes on at the segment behind the one that ended; false if there is none yet.
    fn enter_next_segment(&mut self) -> Result<bool> {
        // What the next segment begins with may have been dropped from the end of this one.
        self.check_tombstones()?;
        let Some(place) = &mut self.place else { return Ok(false) };
        if place.index + 1 >= place.set.segments.len() {
            let set = self.log.snapshot();
            let ended = place.set.segments.get(place.index);
            let at = set.segments.iter().position(|segment| ended.is_some_and(|ended| Arc::ptr_eq(ended, segment)));
            let Some(at) = at else {
                // What ended here was compacted meanwhile, maybe together with what came behind it, or deleted.
                self.place = None;
                return Ok(true);
            };
            (place.set, place.index) = (set, at);
        }
        let Some(next) = place.set.segments.get(place.index + 1) else { return Ok(false) };
        let (ended_at, next_base) = (self.next_offset, next.base_offset());
        if next_base > ended_at {
            let ended = place.set.segments.get(place.index);
            // Only compaction leaves gaps; in any other segment a missing end is damage.
            if !ended.is_some_and(|segment| segment.is_foreign()) {
                return Err(missing(ended, ended_at, next_base));
            }
            self.next_offset = next_base;
        }
        place.index += 1;
        place.cursor = Cursor::at_start(next, place.set.epochs.clone(), self.verify)?;
        Ok(true)
    }

    /// Checks and takes the batch that [`peek_batch`](Self::peek_batch) found; `None` if it shows nothing.
    fn take_batch(&mut self, found: &BatchAt, header: BatchHeader) -> Result<Option<Batch>> {
        let Some(place) = &mut self.place else { return Ok(None) };
        // Asked before the batch is taken: after an error it is there still.
        let is_hidden = self.options.isolation == Isolation::Committed && place.set.is_aborted(&header)?;
        place.cursor.take(found)?;
        let from_offset = self.next_offset;
        if header.last_offset() < from_offset {
            return Ok(None);
        }
        if header.is_control() && !self.options.shows_control {
            self.next_offset = header.next_offset();
            return Ok(None);
        }
        if is_hidden {
            self.next_offset = header.next_offset();
            return Ok(None);
        }
        let Some(place) = &self.place else { return Ok(None) };
        let body = record::decode_shared(&header, &place.cursor.bytes(found), &self.options.limits)
            .map_err(|error| self.batch_error(&header, &error))?;
        self.next_offset = header.next_offset();
        if header.records_count == 0 {
            return Ok(None);
        }
        let mut start = RecordsState::new(&header);
        if let Err(error) = start.skip_to(from_offset, &body) {
            return Err(self.batch_error(&header, &error));
        }
        if start.is_at_end() {
            return Ok(None);
        }
        Ok(Some(Batch { header, position: found.position, body, start }))
    }

    fn batch_error(&self, header: &BatchHeader, error: &BatchError) -> Error {
        let place = self.place.as_ref();
        let segment = place.and_then(|place| place.set.segments.get(place.index));
        let position = place.map_or(0, |place| place.cursor.position().saturating_sub(header.size_bytes() as u64));
        failed_batch(segment, position, header, error)
    }
}

/// The record at an offset, out of the batch that was found for it.
#[inline]
fn record_of(
    header: &BatchHeader,
    batch: SharedBytes,
    offset: i64,
    limits: &DecodeLimits,
) -> std::result::Result<Option<StoredRecord>, BatchError> {
    if header.base_offset > offset || header.is_control() {
        return Ok(None);
    }
    let body = record::decode_taking(header, batch, limits)?;
    let place = RecordsState::new(header).find(offset, &body)?.map(|view| view.place());
    Ok(place.map(|place| StoredRecord::taking(body, header, place)))
}

/// What is wrong with a batch that is to be read.
fn failed_batch(segment: Option<&Arc<Segment>>, position: u64, header: &BatchHeader, error: &BatchError) -> Error {
    let path = segment.map_or(Path::new(""), |segment| segment.log().path());
    batch_error(path, position, header, error, "read it with larger ReadOptions::limits")
}

fn missing(segment: Option<&Arc<Segment>>, from: i64, to: i64) -> Error {
    Error::Corrupt {
        path: segment.map(|segment| segment.log().path().to_owned()).unwrap_or_default(),
        position: segment.map_or(0, |segment| segment.bytes()),
        offsets: Some((from.into(), to.into())),
        what: "records are missing between this segment and the next".into(),
    }
}

impl Iterator for Reader {
    type Item = Result<StoredRecord>;

    // The record is put together at one place, out of numbers: were it handed up by a call, it would be copied from one
    // place in memory to the next, which takes longer than everything else.
    #[inline(always)]
    fn next(&mut self) -> Option<Self::Item> {
        let short = match &mut self.current {
            Some(Current { batch, at, .. }) => at.next_short(&batch.body).map(|view| view.place()),
            None => None,
        };
        let place = match short {
            Some(place) => place,
            None => match self.find_next() {
                Next::Record => self.current.as_ref().and_then(|current| current.found)?,
                Next::End => return None,
                Next::Failed => return Some(Err(self.failed.as_ref()?.duplicate())),
            },
        };
        let Current { batch, .. } = self.current.as_ref()?;
        Some(Ok(StoredRecord::new(&batch.body, &batch.header, place)))
    }
}

impl Reader {
    /// Adds what is at hand of the batch that is being handed out, until there are so many records, and until the keys and values
    /// of those added have so many bytes. Returns how many these have. What the iterator would do, without an owner for each.
    pub(crate) fn take_at_hand(&mut self, records: &mut RecordList, len_max: usize, bytes_max: usize) -> usize {
        let Some(Current { batch, at, .. }) = &mut self.current else { return 0 };
        let mut bytes = 0_usize;
        records.extend_of((&batch.body, &batch.header), len_max, || {
            let view = if bytes < bytes_max { at.next_short(&batch.body) } else { None };
            bytes = bytes.saturating_add(view.map_or(0, |view| view.key_and_value_bytes()));
            view
        });
        bytes
    }
}

/// What [`Reader::find_next`] came to.
enum Next {
    /// `current.found` says where the record is.
    Record,
    /// The bound.
    End,
    /// `failed` says why.
    Failed,
}

impl Reader {
    /// Finds the next record, of whatever form and in whatever batch.
    #[inline(never)]
    fn find_next(&mut self) -> Next {
        loop {
            if let Some(Current { batch, at, found }) = &mut self.current {
                match at.next_view(&batch.body) {
                    Some(Ok(view)) => {
                        *found = Some(view.place());
                        return Next::Record;
                    }
                    Some(Err(error)) => {
                        let header = batch.header;
                        self.current = None;
                        self.failed = Some(self.batch_error(&header, &error));
                        return Next::Failed;
                    }
                    None => self.current = None,
                }
            }
            match self.next_batch() {
                Ok(Some(batch)) => self.current = Some(Current { at: batch.start, batch, found: None }),
                Ok(None) => return Next::End,
                Err(_) => return Next::Failed,
            }
        }
    }
}

/// Reads the marker of a control batch; `None` if the cleaner emptied it or its type is unknown.
pub(crate) fn marker_of(header: &BatchHeader, batch: &[u8]) -> Option<ControlRecord> {
    if !header.is_control() || header.records_count == 0 {
        return None;
    }
    let body = batch.get(record::BATCH_HEADER_BYTES..)?;
    let record = RecordsIter::new(header, body).next()?.ok()?;
    ControlRecord::parse(&record).ok()
}
