//! Finds where the good part of a log file ends, and whether what follows is torn or rotten.
//!
//! Works on a file and nothing else: no map is made, nothing is written, nothing is decompressed. A batch that a client
//! stored inside a value cannot mislead it: looking ahead only ever *classifies*, by distance.

use std::collections::BTreeSet;
use std::io;

use super::cursor::epoch_of;
use crate::io::{VfsFile, read_exact_at, read_full_at};
use crate::planted::{Bug, is};
use crate::record::{self, BatchError, BatchHeader, BatchView, LegacyEntry};

const WINDOW_BYTES: usize = 256 << 10;
/// A batch above this is checked in pieces and not held in memory.
pub(super) const HELD_BATCH_BYTES_MAX: u64 = 32 << 20;
const HEADER_BYTES: usize = 61;

/// Where a scan begins, and what it expects to find.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ScanRules<'a> {
    pub(crate) position: u64,
    pub(crate) next_offset: i64,
    pub(crate) base_offset: i64,
    /// Offsets may have gaps, and entries of the old record formats may occur: a broker wrote this.
    pub(crate) is_foreign: bool,
    /// The partition's leader epochs; `None` if they are not known to be complete.
    pub(crate) epochs: Option<&'a [(i32, i64)]>,
}

/// Why a scan stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// At the end of the file.
    End,
    /// Only zeros follow: preallocated space.
    Zeros,
    /// What follows is no batch that belongs here.
    Bad(String),
    /// A whole, undamaged batch follows that this version cannot read.
    Unsupported(String),
}

/// The good part of a file.
#[derive(Clone, Debug)]
pub(crate) struct Scan {
    /// End of the last good batch.
    pub(crate) position: u64,
    pub(crate) next_offset: i64,
    pub(crate) batches: u64,
    pub(crate) file_bytes: u64,
    /// Largest timestamp in the scanned part, -1 if there is none.
    pub(crate) max_timestamp: i64,
    pub(crate) stop: Stop,
}

/// A file read through a window.
struct Window<'a> {
    file: &'a dyn VfsFile,
    file_bytes: u64,
    start: u64,
    buffer: Vec<u8>,
}

impl Window<'_> {
    /// At least `needed` bytes from a position, or all up to the file's end.
    fn at(&mut self, position: u64, needed: usize) -> io::Result<&[u8]> {
        let end = self.start + self.buffer.len() as u64;
        let wanted_end = position.saturating_add(needed as u64).min(self.file_bytes);
        if position < self.start || wanted_end > end {
            let length = (self.file_bytes.saturating_sub(position)).min(needed.max(WINDOW_BYTES) as u64);
            self.buffer.resize(length as usize, 0);
            self.start = position;
            let read = read_full_at(self.file, &mut self.buffer, position)?;
            self.buffer.truncate(read);
        }
        Ok(self.buffer.get((position - self.start) as usize..).unwrap_or_default())
    }
}

/// Who looks at what a scan comes by.
pub(crate) trait Visit {
    /// A good batch: its position, its header, and its bytes unless it is very large.
    fn batch(&mut self, position: u64, header: &BatchHeader, bytes: Option<&[u8]>);

    /// A good entry of an old format.
    fn legacy(&mut self, position: u64, entry: &LegacyEntry);
}

/// Who has no use for entries of the old formats.
struct Batches<F>(F);

impl<F: FnMut(u64, &BatchHeader, Option<&[u8]>)> Visit for Batches<F> {
    fn batch(&mut self, position: u64, header: &BatchHeader, bytes: Option<&[u8]>) {
        (self.0)(position, header, bytes);
    }

    fn legacy(&mut self, _: u64, _: &LegacyEntry) {}
}

/// Checks batch after batch. `visit` sees each good one: its position, its header, and its bytes unless it is very large.
pub(crate) fn scan(
    file: &dyn VfsFile,
    rules: &ScanRules<'_>,
    visit: impl FnMut(u64, &BatchHeader, Option<&[u8]>),
) -> io::Result<Scan> {
    scan_all(file, rules, &mut Batches(visit))
}

/// [`scan`] for who wants to see entries of the old formats as well.
pub(crate) fn scan_all(file: &dyn VfsFile, rules: &ScanRules<'_>, visit: &mut impl Visit) -> io::Result<Scan> {
    let file_bytes = file.len()?;
    let mut window = Window { file, file_bytes, start: rules.position, buffer: Vec::new() };
    let mut scan = Scan {
        position: rules.position,
        next_offset: rules.next_offset,
        batches: 0,
        file_bytes,
        max_timestamp: -1,
        stop: Stop::End,
    };
    while scan.position < file_bytes {
        match step(&mut window, rules, &mut scan, visit)? {
            None => {}
            Some(stop) => {
                scan.stop = stop;
                break;
            }
        }
    }
    if scan.position < file_bytes && matches!(scan.stop, Stop::Bad(_)) && only_zeros(file, scan.position, file_bytes)? {
        scan.stop = Stop::Zeros;
    }
    Ok(scan)
}

fn step(
    window: &mut Window<'_>,
    rules: &ScanRules<'_>,
    scan: &mut Scan,
    visit: &mut impl Visit,
) -> io::Result<Option<Stop>> {
    let position = scan.position;
    let left = window.file_bytes - position;
    let head = window.at(position, HEADER_BYTES)?;
    match record::peek(head) {
        Ok(peek) if peek.magic < 2 && rules.is_foreign => {
            return step_legacy(window, scan, (peek.size_bytes, left), visit);
        }
        Ok(_) => {}
        // Zeros of preallocated space end up here.
        Err(error) => return Ok(Some(Stop::Bad(error.to_string()))),
    }
    let header = match BatchHeader::decode(head) {
        Ok(header) => header,
        Err(error) if error.is_unsupported() => return unsupported(window, position, left, &error).map(Some),
        Err(error) => return Ok(Some(Stop::Bad(error.to_string()))),
    };
    let size = header.size_bytes() as u64;
    if size > left {
        return Ok(Some(Stop::Bad(format!("the batch has {size} bytes, {left} are left in the file"))));
    }
    if let Some(why) = misplaced(&header, rules, scan.next_offset) {
        return Ok(Some(Stop::Bad(why)));
    }
    if size <= HELD_BATCH_BYTES_MAX {
        let bytes = window.at(position, size as usize)?;
        let Some(bytes) = bytes.get(..size as usize) else {
            return Ok(Some(Stop::Bad("the file ends inside a batch".into())));
        };
        if let Err(error) = BatchView::parse(bytes)
            && !is(Bug::ScanSkipsCrc)
        {
            return Ok(Some(Stop::Bad(error.to_string())));
        }
        visit.batch(position, &header, Some(bytes));
    } else {
        if let Err(why) = check_in_pieces(window.file, position, &header)? {
            return Ok(Some(Stop::Bad(why)));
        }
        visit.batch(position, &header, None);
    }
    scan.position += size;
    scan.next_offset = header.next_offset();
    scan.batches += 1;
    scan.max_timestamp = scan.max_timestamp.max(header.max_timestamp);
    Ok(None)
}

fn misplaced(header: &BatchHeader, rules: &ScanRules<'_>, next_offset: i64) -> Option<String> {
    let in_order = if rules.is_foreign { header.base_offset >= next_offset } else { header.base_offset == next_offset };
    if !in_order && !is(Bug::OrderUnchecked) {
        return Some(format!("offset {} where {next_offset} was expected", header.base_offset));
    }
    if header.last_offset().saturating_sub(rules.base_offset) > i64::from(i32::MAX) {
        return Some(format!("offset {} is beyond the segment's range", header.last_offset()));
    }
    let epoch = rules.epochs.map(|epochs| epoch_of(epochs, header.base_offset));
    if epoch.is_some_and(|epoch| epoch != Some(header.leader_epoch)) && !is(Bug::EpochUnchecked) {
        return Some(format!("leader epoch {} does not belong to offset {}", header.leader_epoch, header.base_offset));
    }
    None
}

/// An unknown attribute or codec in a batch whose CRC holds is no damage, and nothing that may be cut off.
fn unsupported(window: &mut Window<'_>, position: u64, left: u64, error: &BatchError) -> io::Result<Stop> {
    let head = window.at(position, HEADER_BYTES)?;
    let size = record::peek(head).map_or(0, |peek| peek.size_bytes as u64);
    let holds = !is(Bug::UnsupportedIsTorn) && size > 0 && size <= left.min(HELD_BATCH_BYTES_MAX) && {
        let bytes = window.at(position, size as usize)?;
        bytes.get(..size as usize).is_some_and(record::crc_holds)
    };
    Ok(if holds { Stop::Unsupported(error.to_string()) } else { Stop::Bad(error.to_string()) })
}

fn step_legacy(
    window: &mut Window<'_>,
    scan: &mut Scan,
    (size, left): (usize, u64),
    visit: &mut impl Visit,
) -> io::Result<Option<Stop>> {
    if size as u64 > left.min(HELD_BATCH_BYTES_MAX) {
        return Ok(Some(Stop::Bad("an entry of an old record format is longer than the file".into())));
    }
    let bytes = window.at(scan.position, size)?;
    match LegacyEntry::parse(bytes) {
        Ok(entry) if entry.offset >= scan.next_offset => {
            visit.legacy(scan.position, &entry);
            scan.position += size as u64;
            scan.next_offset = entry.offset.saturating_add(1);
            scan.batches += 1;
            scan.max_timestamp = scan.max_timestamp.max(entry.timestamp_ms);
            Ok(None)
        }
        Ok(entry) => Ok(Some(Stop::Bad(format!("offset {} where {} was expected", entry.offset, scan.next_offset)))),
        Err(error) => Ok(Some(Stop::Bad(error.to_string()))),
    }
}

/// Compares a batch with its CRC without holding it. Its length may be anything: nothing vouches for it before.
pub(super) fn check_in_pieces(
    file: &dyn VfsFile,
    position: u64,
    header: &BatchHeader,
) -> io::Result<Result<(), String>> {
    let mut crc = record::Crc32c::new();
    let end = position + header.size_bytes() as u64;
    let mut at = position + record::CRC_FROM as u64;
    let mut buffer = vec![0; WINDOW_BYTES];
    while at < end {
        let length = (end - at).min(WINDOW_BYTES as u64) as usize;
        let part = buffer.get_mut(..length).unwrap_or_default();
        read_exact_at(file, part, at)?;
        crc.update(part);
        at += length as u64;
    }
    Ok(if crc.finish() == header.crc { Ok(()) } else { Err("the CRC does not match".into()) })
}

fn only_zeros(file: &dyn VfsFile, mut position: u64, end: u64) -> io::Result<bool> {
    let mut buffer = vec![0; usize::try_from(end - position).unwrap_or(WINDOW_BYTES).min(WINDOW_BYTES)];
    while position < end {
        let length = (end - position).min(buffer.len() as u64) as usize;
        let part = buffer.get_mut(..length).unwrap_or_default();
        let read = read_full_at(file, part, position)?;
        if read == 0 {
            break;
        }
        if part.get(..read).unwrap_or_default().iter().any(|&byte| byte != 0) {
            return Ok(false);
        }
        position += read as u64;
    }
    Ok(true)
}

/// So many batches may be open at once while a proof is looked for; of more, those that end first stay. Headers that overlap can be
/// a few bytes apart, so that no batch of less than 2 MiB can be crowded out by what is stored in it.
const OPEN_CANDIDATES_MAX: usize = 1 << 19;

/// Looks behind the end of the good part for a batch that proves that the damage had been synced: a whole one, with a
/// higher offset, that ends more than `max_unsynced_bytes` behind the damage. The writer could not have got so far if
/// what is damaged had not been on the disk. Returns its position.
///
/// What looks like a header may be one that a client stored in a value, or half a million of them that each claim to reach far:
/// every byte is read and summed once, whatever they claim.
pub(crate) fn proof_of_rot(file: &dyn VfsFile, scan: &Scan, max_unsynced_bytes: u64) -> io::Result<Option<u64>> {
    let beyond = scan.position.saturating_add(max_unsynced_bytes);
    if scan.file_bytes <= beyond {
        return Ok(None);
    }
    let mut window = Window { file, file_bytes: scan.file_bytes, start: scan.position, buffer: Vec::new() };
    let mut sums = Sums { crc: record::Crc32c::new(), position: scan.position + 1, open: BTreeSet::new() };
    // A batch has at most `max_unsynced_bytes`, so one that ends behind `beyond` begins behind the damage.
    let mut position = scan.position + 1;
    while position < scan.file_bytes {
        let bytes = window.at(position, HEADER_BYTES)?;
        if bytes.is_empty() {
            break;
        }
        for (at, head) in bytes.windows(HEADER_BYTES).enumerate() {
            let candidate = position + at as u64;
            let Some(header) = may_prove(head, candidate, scan, max_unsynced_bytes) else { continue };
            if let Some(proof) = sums.advance(bytes, position, candidate + record::CRC_FROM as u64) {
                return Ok(Some(proof));
            }
            sums.open(candidate, &header);
        }
        let looked_at = bytes.len().saturating_sub(HEADER_BYTES - 1);
        let is_rest = position + bytes.len() as u64 >= scan.file_bytes;
        let next = if is_rest { scan.file_bytes } else { position + looked_at.max(1) as u64 };
        if let Some(proof) = sums.advance(bytes, position, next) {
            return Ok(Some(proof));
        }
        position = next;
    }
    Ok(None)
}

/// The checksum of all bytes from a place on, and the batches that seem to have begun and not ended before its end.
struct Sums {
    crc: record::Crc32c,
    position: u64,
    /// End, begin, checksum of all before what its CRC covers, and its CRC.
    open: BTreeSet<(u64, u64, u32, u32)>,
}

impl Sums {
    /// Takes note of a batch whose covered bytes begin where the sum ends.
    fn open(&mut self, position: u64, header: &BatchHeader) {
        let end = position + header.size_bytes() as u64;
        self.open.insert((end, position, self.crc.finish(), header.crc));
        if self.open.len() > OPEN_CANDIDATES_MAX {
            self.open.pop_last();
        }
    }

    /// Adds the bytes up to `end`, which `bytes` holds from `start` on. Returns the position of a batch that ended whole.
    fn advance(&mut self, bytes: &[u8], start: u64, end: u64) -> Option<u64> {
        loop {
            let next = self.open.first().map_or(end, |open| open.0.min(end)).max(self.position);
            let part = (self.position.saturating_sub(start) as usize)..(next.saturating_sub(start) as usize);
            self.crc.update(bytes.get(part).unwrap_or_default());
            self.position = next;
            let (batch_end, position, before, crc) = *self.open.first().filter(|open| open.0 <= next)?;
            self.open.pop_first();
            let covered = batch_end - position - record::CRC_FROM as u64;
            if record::crc32c_behind(before, self.crc.finish(), covered) == crc {
                return Some(position);
            }
        }
    }
}

/// Cheap tests before a checksum is computed.
fn may_prove(head: &[u8], position: u64, scan: &Scan, max_unsynced_bytes: u64) -> Option<BatchHeader> {
    if head.get(16) != Some(&2) {
        return None;
    }
    let header = BatchHeader::decode(head).ok()?;
    let size = header.size_bytes() as u64;
    let end = position + size;
    let may = header.base_offset > scan.next_offset
        && header.base_offset - scan.next_offset < i64::from(i32::MAX)
        && size <= max_unsynced_bytes
        && end > scan.position.saturating_add(max_unsynced_bytes)
        && end <= scan.file_bytes;
    may.then_some(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::io::{MemoryVfs, OpenMode, Vfs, write_all_at};
    use crate::record::{BatchBuilder, BatchSpec, Record};
    use std::sync::Arc;

    /// A batch of `count` records in an epoch.
    fn batch(base_offset: i64, count: usize, epoch: i32) -> Vec<u8> {
        let mut spec = BatchSpec::new(base_offset);
        spec.leader_epoch = epoch;
        let mut builder = BatchBuilder::new(spec);
        for nth in 0..count as i64 {
            builder.push(Record::of_value("some value").timestamp_ms(100 + base_offset + nth)).unwrap();
        }
        builder.finish().unwrap().to_vec()
    }

    fn file_of(bytes: &[u8]) -> Arc<dyn VfsFile> {
        let file = MemoryVfs::new().open("/log".as_ref(), OpenMode::Create).unwrap();
        write_all_at(&*file, bytes, 0).unwrap();
        file
    }

    fn rules<'a>() -> ScanRules<'a> {
        let epochs = Some(&[(0, 0), (2, 7)][..]);
        ScanRules { position: 0, next_offset: 0, base_offset: 0, is_foreign: false, epochs }
    }

    /// Two good batches, of epoch 0 up to offset 7.
    fn good() -> Vec<u8> {
        [batch(0, 3, 0), batch(3, 4, 0)].concat()
    }

    /// Where a scan of the good batches and more ends, and why.
    fn check(more: &[u8], end: (u64, i64), is_expected: impl Fn(&Stop) -> bool) {
        let file = file_of(&[good(), more.to_vec()].concat());
        let mut seen = Vec::new();
        let scan = scan(&*file, &rules(), |position, header, bytes| {
            seen.push((position, header.base_offset, bytes.map(<[u8]>::len)));
        });
        let scan = scan.unwrap();
        assert_eq!((scan.position, scan.next_offset), end, "{:?}", scan.stop);
        assert!(is_expected(&scan.stop), "{:?}", scan.stop);
        assert_eq!(seen.len() as u64, scan.batches);
        let first = batch(0, 3, 0).len();
        assert_eq!(seen[..2], [(0, 0, Some(first)), (first as u64, 3, Some(good().len() - first))]);
    }

    fn bad(why: &str) -> impl Fn(&Stop) -> bool {
        move |stop| matches!(stop, Stop::Bad(reason) if reason.contains(why))
    }

    #[test]
    fn a_scan_ends_where_the_file_does_or_where_only_zeros_follow() {
        let end = good().len() as u64;
        check(&[], (end, 7), |stop| *stop == Stop::End);
        check(&[0; 5], (end, 7), |stop| *stop == Stop::Zeros);
        check(&[0; 70_000], (end, 7), |stop| *stop == Stop::Zeros);
        let next = batch(7, 2, 2);
        check(&next, (end + next.len() as u64, 9), |stop| *stop == Stop::End);
        check(&[next.clone(), vec![0; 100]].concat(), (end + next.len() as u64, 9), |stop| *stop == Stop::Zeros);
    }

    #[test]
    fn a_scan_stops_at_what_does_not_belong_there() {
        let end = good().len() as u64;
        let next = batch(7, 2, 2);
        // The offset begins with zeros: a part of those alone is space that was taken ahead.
        for cut in 8..next.len() {
            check(&next[..cut], (end, 7), bad(""));
        }
        check(&batch(8, 1, 2), (end, 7), bad("offset 8 where 7"));
        check(&batch(3, 4, 0), (end, 7), bad("offset 3 where 7"));
        check(&batch(7, 1, 0), (end, 7), bad("leader epoch 0"));
        check(&batch(7, 1, 3), (end, 7), bad("leader epoch 3"));
        let mut rotten = next;
        let last = rotten.len() - 1;
        rotten[last] ^= 1;
        check(&rotten, (end, 7), bad("checksum"));
    }

    #[test]
    fn a_batch_of_a_later_format_is_told_apart_from_rot() {
        let end = good().len() as u64;
        let mut later = batch(7, 1, 2);
        later[21] = 0x40;
        check(&later, (end, 7), bad(""));
        let crc = crate::record::crc32c(&later[21..]).to_be_bytes();
        later[17..21].copy_from_slice(&crc);
        check(&later, (end, 7), |stop| matches!(stop, Stop::Unsupported(_)));
    }

    #[test]
    fn a_foreign_segment_may_have_gaps_and_no_step_back() {
        let file = file_of(&[batch(5, 1, 9), batch(20, 2, 3)].concat());
        let rules = ScanRules { is_foreign: true, epochs: None, ..rules() };
        let found = scan(&*file, &rules, |_, _, _| {}).unwrap();
        assert_eq!((found.stop, found.next_offset, found.batches, found.max_timestamp), (Stop::End, 22, 2, 121));
        let file = file_of(&[batch(5, 1, 9), batch(4, 1, 9)].concat());
        let found = scan(&*file, &rules, |_, _, _| {}).unwrap();
        assert_eq!((found.next_offset, matches!(found.stop, Stop::Bad(_))), (6, true));
    }

    #[test]
    fn a_scan_from_the_floor_does_not_look_below_it() {
        let mut bytes = good();
        bytes[30] ^= 0xff;
        let first = batch(0, 3, 0).len() as u64;
        let rules = ScanRules { position: first, next_offset: 3, ..rules() };
        let found = scan(&*file_of(&bytes), &rules, |_, _, _| {}).unwrap();
        assert_eq!((found.stop, found.position, found.next_offset), (Stop::End, bytes.len() as u64, 7));
        assert_eq!(found.batches, 1, "the ones below are not counted");
    }

    /// A later batch proves that the damage had been synced only if it ends further behind it than anything unsynced can
    /// lie; a batch that a client stored in a value is judged by the same distance.
    #[test]
    fn damage_is_rot_if_the_writer_could_not_have_got_so_far() {
        let prove = |behind: &[u8], cap: u64| {
            let bytes = [good(), vec![0xee; 50], behind.to_vec()].concat();
            let file = file_of(&bytes);
            let found = scan(&*file, &rules(), |_, _, _| {}).unwrap();
            assert!(matches!(found.stop, Stop::Bad(_)));
            proof_of_rot(&*file, &found, cap).unwrap()
        };
        let later = batch(9, 2, 2);
        let (at, end) = (good().len() as u64 + 50, 50 + later.len() as u64);
        assert_eq!(prove(&later, end - 1), Some(at));
        assert_eq!(prove(&later, end), None, "it may be a torn write as well");
        let cap = later.len() as u64;
        assert_eq!(prove(&later, cap - 1), None, "the writer lets no batch be longer than that");
        assert_eq!(prove(&batch(3, 2, 0), cap), None, "an older batch proves nothing");
        assert_eq!(prove(&batch(7, 2, 2), cap), None, "nor does the one that belongs there");
        let mut damaged = later.clone();
        damaged[70] ^= 1;
        assert_eq!(prove(&damaged, cap), None, "nor one that does not hold");
        assert_eq!(prove(&[damaged, later].concat(), cap), Some(at + end - 50), "the next one does");
        assert_eq!(prove(&[], 10), None);
    }

    /// A file that counts what is read of it.
    #[derive(Debug)]
    struct Counted(Arc<dyn VfsFile>, std::sync::atomic::AtomicU64);

    impl VfsFile for Counted {
        fn read_at(&self, buffer: &mut [u8], position: u64) -> io::Result<usize> {
            let read = self.0.read_at(buffer, position)?;
            self.1.fetch_add(read as u64, std::sync::atomic::Ordering::Relaxed);
            Ok(read)
        }
        fn write_at(&self, bytes: &[u8], position: u64) -> io::Result<usize> {
            self.0.write_at(bytes, position)
        }
        fn len(&self) -> io::Result<u64> {
            self.0.len()
        }
        fn set_len(&self, bytes: u64) -> io::Result<()> {
            self.0.set_len(bytes)
        }
        fn sync_data(&self) -> io::Result<()> {
            self.0.sync_data()
        }
        fn sync_all(&self) -> io::Result<()> {
            self.0.sync_all()
        }
        fn allocate(&self, position: u64, bytes: u64) -> io::Result<()> {
            self.0.allocate(position, bytes)
        }
        fn map(&self, bytes: u64) -> io::Result<Option<Box<dyn crate::io::VfsMap>>> {
            self.0.map(bytes)
        }
        fn set_modified(&self, modified_ms: i64) -> io::Result<()> {
            self.0.set_modified(modified_ms)
        }
    }

    /// What a client stores is not to decide how long a recovery takes: headers that each claim most of the file are compared
    /// with their checksums, and no byte is read more often than a few times. The batch that proves is found among them.
    #[test]
    fn headers_in_values_do_not_make_the_search_for_a_proof_long() {
        let cap = 2 << 20;
        let mut fake = batch(100, 1, 2)[..HEADER_BYTES].to_vec();
        fake[8..12].copy_from_slice(&(1_900_000_u32).to_be_bytes());
        let fakes = fake.repeat(40_000);
        for (behind, is_proof) in [(vec![], false), (batch(50_000, 3, 2), true)] {
            let bytes = [good(), vec![0xee; 50], fakes.clone(), behind, vec![0; 2_000_000]].concat();
            let counted = Counted(file_of(&bytes), 0.into());
            let found = scan(&counted, &rules(), |_, _, _| {}).unwrap();
            counted.1.store(0, std::sync::atomic::Ordering::Relaxed);
            let proof = proof_of_rot(&counted, &found, cap).unwrap();
            let expected = good().len() + 50 + fakes.len();
            assert_eq!(proof, is_proof.then_some(expected as u64));
            let read = counted.1.into_inner();
            assert!(read <= 2 * bytes.len() as u64, "{read} bytes were read of {}", bytes.len());
        }
    }

    #[test]
    fn of_too_many_open_batches_those_that_end_first_stay() {
        let header = BatchHeader::decode(&batch(9, 1, 2)).unwrap();
        let mut sums = Sums { crc: record::Crc32c::new(), position: 0, open: BTreeSet::new() };
        (0..OPEN_CANDIDATES_MAX as u64 + 10).rev().for_each(|position| sums.open(position, &header));
        assert_eq!(sums.open.len(), OPEN_CANDIDATES_MAX);
        assert_eq!(sums.open.first().map(|open| open.1), Some(0));
    }

    /// What is found is what a search finds that sums each candidate for itself.
    #[test]
    fn a_proof_is_found_wherever_there_is_one() {
        let mut seed = 5_u64;
        let mut below = |end: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % end
        };
        let mut counts = [0; 2];
        for _ in 0..2000 {
            let mut bytes = [good(), vec![0xee; 1 + below(40) as usize]].concat();
            for _ in 0..below(6) {
                let mut next = batch(7 + below(30) as i64, 1 + below(5) as usize, 2);
                match below(4) {
                    0 => next[70] ^= 1,
                    1 => next.truncate(61 + below(20) as usize),
                    2 => next[11] = next[11].wrapping_add(below(200) as u8),
                    _ => {}
                }
                bytes.extend_from_slice(&next);
            }
            let cap = 100 + below(400);
            let file = file_of(&bytes);
            let found = scan(&*file, &rules(), |_, _, _| {}).unwrap();
            let slow = (found.position as usize + 1..bytes.len()).any(|at| {
                let head = bytes.get(at..at + HEADER_BYTES);
                head.and_then(|head| may_prove(head, at as u64, &found, cap)).is_some_and(|header| {
                    crate::record::crc32c(&bytes[at + record::CRC_FROM..at + header.size_bytes()]) == header.crc
                })
            });
            let proof = proof_of_rot(&*file, &found, cap).unwrap();
            assert_eq!(proof.is_some(), slow, "{:?}", found.stop);
            counts[usize::from(slow)] += 1;
        }
        assert!(counts.iter().all(|&count| count > 200), "{counts:?}");
    }
}
