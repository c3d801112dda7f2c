//! Walks the batches of one segment, checking each before it is believed.

use std::sync::Arc;

use super::log_reads::{Chunk, Mapped};
use super::recover::{HELD_BATCH_BYTES_MAX, check_in_pieces};
use super::seal::Seal;
use super::{Segment, State};
use crate::error::{Error, Result};
use crate::planted::{Bug, is};
use crate::record::{BatchError, BatchHeader, BatchView, SharedBytes};

/// When the bytes of a batch are compared with its CRC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verify {
    /// At the first read of a mapping; at every read of what was appended since the mapping was made, and every positional one.
    #[default]
    Once,
    /// At every read.
    Always,
    /// Never: lengths and offsets are checked, contents are not.
    Trusted,
}

/// The leader epochs of a partition: `(epoch, first offset)`, both rising.
pub(crate) type Epochs = Arc<[(i32, i64)]>;

/// The epoch that an offset belongs to.
pub(crate) fn epoch_of(epochs: &[(i32, i64)], offset: i64) -> Option<i32> {
    let after = epochs.partition_point(|&(_, start)| start <= offset);
    after.checked_sub(1).and_then(|last| epochs.get(last)).map(|&(epoch, _)| epoch)
}

/// What the next batch must look like.
#[derive(Clone, Copy, Debug)]
enum Expect {
    /// It begins exactly here: the log has no gaps.
    Base(i64),
    /// It begins here or later: a broker's compaction may have left a gap.
    AtLeast(i64),
    /// It ends exactly here: an index entry said so.
    Last(i64),
}

/// A checked batch: its bytes are `chunk bytes [start, end)`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BatchAt {
    pub(crate) position: u64,
    pub(crate) header: BatchHeader,
    start: usize,
    end: usize,
}

/// Where the search for a batch begins.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Start {
    /// It is here, as somebody noted.
    Noted(u64),
    /// Here or behind: an index entry has this last offset for this position.
    Entry(i64, u64),
}

/// Walks batches from a position to the published end of one segment.
#[derive(Debug)]
pub(crate) struct Cursor {
    segment: Arc<Segment>,
    seal: Option<Arc<Seal>>,
    epochs: Option<Epochs>,
    verify: Verify,
    chunk: Chunk,
    position: u64,
    expect: Expect,
}

const HEADER_BYTES: u64 = 61;
/// No more than this is walked while a map is held, and no longer batch compared with its checksum: others wait meanwhile, if
/// they want to exchange the map.
const IN_MAP_BYTES_MAX: u64 = 256 << 10;

/// So much of a record comes before its value, most often.
const FIRST_RECORD_BYTES: usize = 32;

/// Whether a batch is to be compared with its CRC before it is believed.
#[inline]
fn must_check(verify: Verify, mapped: Option<&Mapped>, position: u64, is_sealed: bool) -> bool {
    if is(Bug::ReadSkipsCrc) {
        return false;
    }
    match (verify, mapped) {
        (Verify::Always, _) | (Verify::Once, None) => true,
        (Verify::Trusted, _) => false,
        // The checksum of a sealed block implies the CRC of its batches.
        (Verify::Once, Some(_)) if is_sealed => false,
        (Verify::Once, Some(mapped)) => position >= mapped.verified_to(),
    }
}

/// Compares a batch with its CRC, and notes in the map that it comes from that this was done.
fn check(mapped: Option<&Mapped>, position: u64, batch: &[u8]) -> std::result::Result<(), BatchError> {
    let note = || {
        if let Some(mapped) = mapped {
            mapped.note_verified(position, position + batch.len() as u64);
        }
    };
    if is(Bug::MarkedBeforeCheck) {
        note();
    }
    BatchView::parse(batch)?;
    note();
    Ok(())
}

impl Cursor {
    /// At the first batch of the segment.
    pub(crate) fn at_start(segment: &Arc<Segment>, epochs: Option<Epochs>, verify: Verify) -> Result<Self> {
        Self::at(segment, epochs, verify, 0, None)
    }

    /// At the batch that holds an offset, or the first behind it.
    pub(crate) fn seek(segment: &Arc<Segment>, epochs: Option<Epochs>, verify: Verify, offset: i64) -> Result<Self> {
        let hint = segment.hint(offset)?;
        Self::seek_from(segment, epochs, verify, (offset, hint))
    }

    /// [`seek`](Self::seek) with what [`Segment::hint`] said.
    pub(crate) fn seek_from(
        segment: &Arc<Segment>,
        epochs: Option<Epochs>,
        verify: Verify,
        (offset, hint): (i64, Option<(i64, u64)>),
    ) -> Result<Self> {
        if let Some((entry_offset, position)) = hint {
            let mut cursor = Self::at(segment, epochs.clone(), verify, position, Some(entry_offset))?;
            if cursor.hint_holds(offset) {
                cursor.skip_to(offset)?;
                return Ok(cursor);
            }
            segment.distrust_index()?;
        }
        let mut cursor = Self::at_start(segment, epochs, verify)?;
        cursor.skip_to(offset)?;
        Ok(cursor)
    }

    fn at(
        segment: &Arc<Segment>,
        epochs: Option<Epochs>,
        verify: Verify,
        position: u64,
        last: Option<i64>,
    ) -> Result<Self> {
        let seal = segment.seal()?;
        let expect = match last {
            Some(last) if !segment.is_foreign() => Expect::Last(last),
            _ if segment.is_foreign() => Expect::AtLeast(segment.base_offset()),
            _ => Expect::Base(segment.base_offset()),
        };
        let chunk = segment.log().chunk(position, HEADER_BYTES, seal.as_deref())?;
        Ok(Self { segment: Arc::clone(segment), seal, epochs, verify, chunk, position, expect })
    }

    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// Whether an index entry led to a batch that it can have meant.
    fn hint_holds(&mut self, target: i64) -> bool {
        if is(Bug::IndexTrusted) {
            return true;
        }
        match self.peek() {
            Ok(Some(found)) => {
                found.header.base_offset <= target
                    && (!self.segment.is_foreign() || BatchView::parse(self.slice(&found)).is_ok())
            }
            Ok(None) | Err(_) => false,
        }
    }

    /// Steps over the batches that end below an offset. Their contents are not looked at; their order is. Where the offset
    /// seems to lie in a gap, only the batch before the gap says that it does not reach that far: that one is checked.
    pub(crate) fn skip_to(&mut self, offset: i64) -> Result<()> {
        let mut last: Option<BatchAt> = None;
        let mut next = self.peek()?;
        while let Some(found) = next.filter(|found| found.header.last_offset() < offset) {
            self.step_over(&found);
            last = Some(found);
            next = self.peek()?;
        }
        match last {
            Some(last) if self.segment.is_foreign() && next.is_none_or(|next| next.header.base_offset > offset) => {
                (self.position, self.expect) = (last.position, Expect::AtLeast(last.header.base_offset));
                self.next().map(drop)
            }
            _ => Ok(()),
        }
    }

    /// The next batch, checked as this cursor's [`Verify`] asks. `None` at the published end. After an error the cursor
    /// stands where it stood.
    pub(crate) fn next(&mut self) -> Result<Option<BatchAt>> {
        let Some(found) = self.peek()? else { return Ok(None) };
        self.take(&found)?;
        Ok(Some(found))
    }

    /// Checks the batch that [`peek`](Self::peek) found and steps over it.
    pub(crate) fn take(&mut self, found: &BatchAt) -> Result<()> {
        let mapped = self.chunk.mapped.as_deref();
        if must_check(self.verify, mapped, found.position, self.seal.is_some()) {
            check(mapped, found.position, self.slice(found)).map_err(|error| self.error(&error))?;
        }
        self.step_over(found);
        Ok(())
    }

    /// The bytes of a batch that was found last.
    #[inline]
    pub(crate) fn slice(&self, found: &BatchAt) -> &[u8] {
        self.chunk.bytes.get(found.start..found.end).unwrap_or_default()
    }

    /// The same bytes, shared.
    #[inline]
    pub(crate) fn bytes(&self, found: &BatchAt) -> SharedBytes {
        SharedBytes::of(&self.chunk.bytes, found.start..found.end)
    }

    #[inline]
    fn step_over(&mut self, found: &BatchAt) {
        self.position += (found.end - found.start) as u64;
        let next = found.header.next_offset();
        self.expect = if self.segment.is_foreign() { Expect::AtLeast(next) } else { Expect::Base(next) };
    }

    /// Reads the header at the position and makes the whole batch available.
    #[inline]
    pub(crate) fn peek(&mut self) -> Result<Option<BatchAt>> {
        let published = self.segment.log().published();
        if self.position >= published {
            return Ok(None);
        }
        if self.position + HEADER_BYTES > self.chunk.end() || self.position < self.chunk.start {
            self.refill(HEADER_BYTES)?;
        }
        let header = {
            let at = (self.position - self.chunk.start) as usize;
            let bytes = self.chunk.bytes.get(at..).unwrap_or_default();
            BatchHeader::decode(bytes).map_err(|error| self.error(&error))?
        };
        let size = header.size_bytes() as u64;
        if self.position + size > published {
            return Err(self.corrupt("the batch is longer than the log"));
        }
        if self.position + size > self.chunk.end() {
            self.check_large(&header)?;
            self.refill(size)?;
        } else if let Some(mapped) = &self.chunk.mapped {
            self.segment.log().prepare(mapped, self.position, self.position + size, self.seal.as_deref())?;
        }
        self.check_place(&header)?;
        let start = (self.position - self.chunk.start) as usize;
        Ok(Some(BatchAt { position: self.position, header, start, end: start + size as usize }))
    }

    /// Before memory is taken for a very large batch: its length is not covered by its CRC, which says first whether there is
    /// such a batch at all. A map takes no memory.
    #[cold]
    fn check_large(&self, header: &BatchHeader) -> Result<()> {
        let log = self.segment.log();
        let size = header.size_bytes() as u64;
        if size <= HELD_BATCH_BYTES_MAX || log.mapped(self.position + size, self.seal.is_some()).is_some() {
            return Ok(());
        }
        let checked = log.file().with(|file| check_in_pieces(file, self.position, header));
        let checked = checked.map_err(|error| Error::io("read", log.path(), error))?;
        checked.map_err(|why| self.corrupt(why))
    }

    #[cold]
    fn refill(&mut self, needed: u64) -> Result<()> {
        self.chunk = self.segment.log().chunk(self.position, needed, self.seal.as_deref())?;
        if self.position + needed > self.chunk.end() {
            let at = (self.position - self.chunk.start) as usize;
            return Err(match BatchHeader::decode(self.chunk.bytes.get(at..).unwrap_or_default()) {
                // An entry of an old format may be shorter than a header of this one.
                Err(error) if error.is_unsupported() => self.error(&error),
                _ => self.corrupt("the log ends inside a batch"),
            });
        }
        Ok(())
    }

    /// Offset and epoch are outside the batch's CRC: the log's order vouches for the one, the epoch list for the other.
    #[inline]
    fn check_place(&self, header: &BatchHeader) -> Result<()> {
        let fits = match self.expect {
            Expect::Base(base) => header.base_offset == base,
            Expect::AtLeast(base) => header.base_offset >= base,
            Expect::Last(last) => header.last_offset() == last,
        };
        if !fits && !is(Bug::OrderUnchecked) {
            return Err(self.corrupt(format!("offset {} is out of order ({:?})", header.base_offset, self.expect)));
        }
        if !self.segment.has_epoch_of(self.epochs.as_ref(), header) {
            return Err(self.corrupt(format!("leader epoch {} does not belong to this offset", header.leader_epoch)));
        }
        Ok(())
    }

    fn corrupt(&self, what: impl Into<String>) -> Error {
        let first = match self.expect {
            Expect::Base(base) | Expect::AtLeast(base) => base,
            Expect::Last(last) => last,
        };
        Error::Corrupt {
            path: self.segment.log().path().to_owned(),
            position: self.position,
            offsets: Some((first.into(), self.segment.next_offset().max(first).into())),
            what: what.into(),
        }
    }

    fn error(&self, error: &BatchError) -> Error {
        if error.is_unsupported() {
            let path = self.segment.log().path().display();
            return Error::unsupported(format!("{error} ({path}, position {})", self.position));
        }
        self.corrupt(error.to_string())
    }
}

impl Segment {
    /// The batch at a position that somebody noted, if it holds an offset; checked as a cursor would check it. `None` whatever
    /// is wrong: the position is a hint, and a cursor that searches for the offset meets the error.
    #[inline]
    pub(crate) fn batch_at(
        &self,
        epochs: Option<&Epochs>,
        verify: Verify,
        position: u64,
        offset: i64,
    ) -> Option<(BatchHeader, SharedBytes)> {
        let log = self.log();
        let seal = match self.state() {
            State::Sealed => self.seal.get().cloned().or_else(|| self.seal().ok()?),
            State::Active | State::Closed => None,
        };
        let seal = seal.as_deref();
        let mut chunk = log.small_chunk(position, HEADER_BYTES, seal).ok()?;
        let mut at = usize::try_from(position.checked_sub(chunk.start)?).ok()?;
        let header = self.header_of(epochs, chunk.bytes.get(at..)?, offset)?;
        let size = header.size_bytes();
        let end = position + size as u64;
        if end > chunk.end() && end > log.published() {
            return None;
        }
        match &chunk.mapped {
            // The cursor looks first whether it may be that long.
            _ if end > chunk.end() && size as u64 > HELD_BATCH_BYTES_MAX => return None,
            _ if end > chunk.end() => {
                chunk = log.small_chunk(position, size as u64, seal).ok()?;
                at = usize::try_from(position.checked_sub(chunk.start)?).ok()?;
            }
            Some(mapped) => log.prepare(mapped, position, end, seal).ok()?,
            None => {}
        }
        let mapped = chunk.mapped.as_deref();
        if must_check(verify, mapped, position, seal.is_some()) {
            check(mapped, position, chunk.bytes.get(at..at + size)?).ok()?;
        }
        Some((header, SharedBytes::taking(chunk.bytes, at..at + size)))
    }

    /// The batch that holds an offset and where it begins, found in a map that is there, and checked as a cursor would check it.
    /// Shares nothing but the bytes, as the look-up of one record is over soon. `None` wherever something is not as it is most
    /// often: then others have to look.
    #[inline]
    pub(crate) fn batch_in_map(
        &self,
        epochs: Option<&Epochs>,
        verify: Verify,
        (offset, start): (i64, Start),
    ) -> Option<(u64, BatchHeader, SharedBytes)> {
        let (began, mut last) = match start {
            Start::Noted(position) => (position, None),
            Start::Entry(..) if self.is_foreign() => return None,
            Start::Entry(last, position) => (position, Some(last)),
        };
        if self.log().is_read_positionally() {
            return None;
        }
        let is_sealed = self.state() == State::Sealed;
        self.log().look(|mapped| {
            let (mut position, mut base) = (began, None);
            loop {
                let bytes = mapped.bytes().get(usize::try_from(position).ok()?..)?;
                let near_end = position + (bytes.len() as u64).min(HEADER_BYTES + FIRST_RECORD_BYTES as u64);
                if !mapped.is_prepared(position, near_end, is_sealed) {
                    return None;
                }
                // The records are asked of the memory together with the header: where neither is in a cache they come at once then.
                std::hint::black_box(bytes.get(HEADER_BYTES as usize + FIRST_RECORD_BYTES - 1).copied());
                let header = BatchHeader::decode(bytes).ok()?;
                // The entry is the offset that its batch ends at; what follows begins where the one before it ended.
                let is_in_order = last.take().is_none_or(|last| header.last_offset() == last)
                    && base.is_none_or(|base| header.base_offset == base);
                if !is_in_order || header.base_offset > offset || !self.has_epoch_of(epochs, &header) {
                    return None;
                }
                let batch = bytes.get(..header.size_bytes())?;
                let end = position + batch.len() as u64;
                if header.last_offset() < offset {
                    if matches!(start, Start::Noted(_)) || end - began > IN_MAP_BYTES_MAX {
                        return None;
                    }
                    (position, base) = (end, Some(header.next_offset()));
                    continue;
                }
                if !mapped.is_prepared(position, end, is_sealed) {
                    return None;
                }
                if must_check(verify, Some(mapped), position, is_sealed) {
                    if batch.len() as u64 > IN_MAP_BYTES_MAX {
                        return None;
                    }
                    check(Some(mapped), position, batch).ok()?;
                }
                let start = usize::try_from(position).ok()?;
                return Some((position, header, SharedBytes::of(mapped.bytes(), start..start + batch.len())));
            }
        })
    }

    /// Whether a batch is of the epoch that its offset has. The epochs of foreign batches are not those of the partition.
    #[inline]
    fn has_epoch_of(&self, epochs: Option<&Epochs>, header: &BatchHeader) -> bool {
        epochs
            .filter(|_| !self.is_foreign() && !is(Bug::EpochUnchecked))
            .is_none_or(|epochs| epoch_of(epochs, header.base_offset) == Some(header.leader_epoch))
    }

    /// The header at the start of some bytes, if it is that of a batch that holds an offset, and of the epoch of that offset.
    #[inline]
    pub(crate) fn header_of(&self, epochs: Option<&Epochs>, bytes: &[u8], offset: i64) -> Option<BatchHeader> {
        let header = BatchHeader::decode(bytes).ok()?;
        let holds = (header.base_offset..=header.last_offset()).contains(&offset) && self.has_epoch_of(epochs, &header);
        holds.then_some(header)
    }

    /// The header of the first batch.
    pub(crate) fn first_header(self: &Segment) -> Result<Option<BatchHeader>> {
        if self.bytes() == 0 {
            return Ok(None);
        }
        let seal = self.seal()?;
        let chunk = self.log().chunk(0, HEADER_BYTES, seal.as_deref())?;
        match BatchHeader::decode(&chunk.bytes) {
            Ok(header) => Ok(Some(header)),
            Err(error) if error.is_unsupported() => Err(Error::unsupported(error.to_string())),
            Err(error) => Err(Error::corrupt(self.log().path(), 0, error.to_string())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::io::{Fault, FaultPlan, FaultVfs, OpKind, errno};
    use crate::partition::{Durability, Partition};
    use crate::record::{DecodeLimits, Record};
    use crate::store::{Store, Upkeep};
    use crate::topic::TopicConfig;

    #[test]
    fn an_offset_has_the_epoch_that_began_at_or_before_it() {
        let epochs = [(0, 0), (2, 100), (5, 101)];
        let check = |offset, epoch| assert_eq!(epoch_of(&epochs, offset), epoch, "{offset}");
        check(-1, None);
        check(0, Some(0));
        check(99, Some(0));
        check(100, Some(2));
        check(101, Some(5));
        check(i64::MAX, Some(5));
        assert_eq!(epoch_of(&[], 7), None);
        assert_eq!(epoch_of(&[(3, 10)], 9), None, "before the first that is known");
    }

    /// Values of 10,000 bytes in one segment, so many of them, and the topic's store. With an interval of 600,000 bytes the first
    /// entry of its index is that of record 60.
    fn large_records(vfs: &FaultVfs, count: usize) -> (Store, Partition) {
        let store = Store::builder().vfs(Arc::new(vfs.clone())).upkeep(Upkeep::Manual).open("/s").unwrap();
        let config = TopicConfig::default().durability(Durability::Os).index_interval_bytes(600_000);
        let partition = store.create_topic("t", config).unwrap().partition(0).unwrap();
        (0..count).for_each(|_| drop(partition.append(Record::of_value(vec![7; 10_000])).unwrap()));
        (store, partition)
    }

    #[test]
    fn a_map_is_not_held_for_a_long_walk() {
        let (_store, partition) = large_records(&FaultVfs::new(), 120);
        let log = &partition.log;
        let set = log.snapshot();
        let position = |offset| {
            let found = log.record_near(&set, offset, None, (Verify::Once, &DecodeLimits::default())).unwrap().unwrap();
            assert_eq!(found.record.offset().get(), offset);
            found.position
        };
        // This maps the segment.
        position(119);
        let mut ways = [0, 0];
        for offset in 60..120 {
            let (last, began) = set.segments[0].hint(offset).unwrap().unwrap();
            assert_eq!(last, 60);
            let found = set.segments[0].batch_in_map(None, Verify::Once, (offset, Start::Entry(last, began)));
            let is_near = position(offset) - began <= IN_MAP_BYTES_MAX;
            assert_eq!(found.map(|found| found.1.base_offset), is_near.then_some(offset));
            ways[usize::from(is_near)] += 1;
        }
        assert!(ways[0] > 10 && ways[1] > 10, "{ways:?}");
    }

    /// It was asked for by the search in the map, and again by the one without.
    #[test]
    fn an_index_that_cannot_be_read_is_asked_for_once() {
        let vfs = FaultVfs::new();
        large_records(&vfs, 70).0.close().unwrap();
        let store = Store::builder().vfs(Arc::new(vfs.clone())).upkeep(Upkeep::Manual).open("/s").unwrap();
        let partition = store.topic("t").unwrap().partition(0).unwrap();
        let asked = || vfs.sites_seen().get(&(OpKind::Open, "index".to_owned())).map_or(0, |site| site.calls);
        let before = asked();
        vfs.inject(FaultPlan::new(Fault::Error(errno::EIO)).on(OpKind::Open).in_class("index").sticky());
        assert!(matches!(partition.record(65), Err(Error::Io { .. })));
        assert_eq!(asked() - before, 1);
        vfs.clear_faults();
        assert!(partition.record(65).unwrap().is_some());
    }
}
