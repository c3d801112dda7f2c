//! The key index in a file (`topiclog.keys` in the partition), so that its first use need not read the whole log.
//!
//! ```text
//!  0 magic "tlkeys\0\0" 8 | 8 version u16 = 2 | 10 reserved 6 | 16 secret of the hash 16 | 32 store id 16
//! 48 position i64 | 56 leader epoch at it i32 | 60 count of checks u32 | 64 count of entries u64 | 72 base offset i64
//! 80 crc32 of bytes 0..80 u32
//! 84 checks of 12 bytes: base offset of a compacted segment i64, crc32 of its log u32
//!    entries of 16 bytes, as in memory (two u64): hash 56 bits, offset less the base 40 bits, position of its batch u32
//!    crc32 of everything before it, u32
//! ```
//! All integers are big-endian. It is a hint like every index: what it leads to is read and compared. What it must not do is
//! miss a key, so that it counts only if its checksum holds and the log below `position` is the one it was made of: the
//! leader epoch there tells, as an open that cuts a log begins a new one. The positions in compacted segments count only
//! where a check fits the segment that is there now. A file of another version is made anew.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::io::replace::{Put, replace_file_in_parts};
use crate::io::{OpenMode, VfsFile, read_exact_at};
use crate::partition::Log;
use crate::partition::key_entry::KeyEntry;
use crate::partition::key_queue::{HashKey, INDEX_NAME};
use crate::segment::cursor::epoch_of;

use super::making::ReadBudget;
use super::places::Check;
use super::table::Table;

const MAGIC: &[u8; 8] = b"tlkeys\0\0";
const VERSION: u16 = 2;
const HEAD_BYTES: usize = 84;
const CHECK_BYTES: usize = 12;
const ENTRY_BYTES: usize = 16;
const CRC_BYTES: usize = 4;
/// So much of a file is read at once: a multiple of its entries.
const CHUNK_BYTES: usize = 1 << 20;
/// What an entry may come to in memory, for the check before the file is read.
const MEMORY_BYTES: u64 = 24;
/// What a table of few entries takes besides.
const SMALL_TABLE_BYTES: usize = 1024;

/// What a file holds.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) secret: HashKey,
    pub(crate) table: Table,
    /// Everything below this offset is in the table.
    pub(crate) position: i64,
    /// Compacted segments in which the positions of the entries hold.
    pub(crate) checks: Vec<Check>,
}

/// What is written at the head of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Head {
    secret: HashKey,
    store_id: [u8; 16],
    position: i64,
    epoch: i32,
    count: u64,
    /// What the offsets of entries are relative to.
    base: i64,
}

pub(crate) fn new_secret() -> Result<HashKey> {
    let mut secret = HashKey::default();
    getrandom::fill(&mut secret).map_err(|error| Error::unsupported(format!("no random numbers: {error}")))?;
    Ok(secret)
}

/// Writes a file in parts of a bounded size: beside the table there may be no room for all of it.
fn write_parts(
    head: &Head,
    checks: &[Check],
    entries: impl Iterator<Item = KeyEntry>,
    put: &mut Put<'_>,
) -> Result<()> {
    let mut bytes = Vec::new();
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&VERSION.to_be_bytes());
    bytes.extend_from_slice(&[0; 6]);
    bytes.extend_from_slice(&head.secret);
    bytes.extend_from_slice(&head.store_id);
    bytes.extend_from_slice(&head.position.to_be_bytes());
    bytes.extend_from_slice(&head.epoch.to_be_bytes());
    bytes.extend_from_slice(&u32::try_from(checks.len()).unwrap_or(u32::MAX).to_be_bytes());
    bytes.extend_from_slice(&head.count.to_be_bytes());
    bytes.extend_from_slice(&head.base.to_be_bytes());
    bytes.extend_from_slice(&crc32fast::hash(&bytes).to_be_bytes());
    for (base, crc32) in checks {
        bytes.extend_from_slice(&base.to_be_bytes());
        bytes.extend_from_slice(&crc32.to_be_bytes());
    }
    let mut crc = crc32fast::Hasher::new();
    for entry in entries {
        if bytes.len() >= CHUNK_BYTES {
            crc.update(&bytes);
            put(&bytes)?;
            bytes.clear();
        }
        let (high, low) = entry.words();
        bytes.extend_from_slice(&high.to_be_bytes());
        bytes.extend_from_slice(&low.to_be_bytes());
    }
    crc.update(&bytes);
    bytes.extend_from_slice(&crc.finalize().to_be_bytes());
    put(&bytes)
}

impl Head {
    /// The head of a file with so many bytes, and its count of checks; `None` if anything about it does not hold.
    fn decode(head: &[u8; HEAD_BYTES], file_bytes: u64) -> Option<(Self, usize)> {
        let word = |at: usize| -> Option<[u8; 8]> { head.get(at..at + 8)?.try_into().ok() };
        let half = |at: usize| -> Option<[u8; 4]> { head.get(at..at + 4)?.try_into().ok() };
        if head.get(..8)? != MAGIC
            || head.get(8..10)? != VERSION.to_be_bytes()
            || head.get(10..16)? != [0; 6]
            || half(80)? != crc32fast::hash(head.get(..80)?).to_be_bytes()
        {
            return None;
        }
        let checks = u32::from_be_bytes(half(60)?);
        let head = Self {
            secret: head.get(16..32)?.try_into().ok()?,
            store_id: head.get(32..48)?.try_into().ok()?,
            position: i64::from_be_bytes(word(48)?),
            epoch: i32::from_be_bytes(half(56)?),
            count: u64::from_be_bytes(word(64)?),
            base: i64::from_be_bytes(word(72)?),
        };
        let around = (HEAD_BYTES + CRC_BYTES) as u64 + u64::from(checks) * CHECK_BYTES as u64;
        let expected = head.count.checked_mul(ENTRY_BYTES as u64)?.checked_add(around)?;
        Some((head, usize::try_from(checks).ok()?)).filter(|_| expected == file_bytes)
    }
}

fn decode_check(chunk: &[u8]) -> Option<Check> {
    let (base, crc32) = chunk.split_first_chunk::<8>()?;
    Some((i64::from_be_bytes(*base), u32::from_be_bytes(crc32.try_into().ok()?)))
}

fn decode_entry(chunk: &[u8]) -> Option<KeyEntry> {
    let (high, low) = chunk.split_first_chunk::<8>()?;
    let (high, low) = (u64::from_be_bytes(*high), u64::from_be_bytes(low.try_into().ok()?));
    Some(KeyEntry::from_words(high, low)).filter(|entry| !entry.is_empty())
}

/// The leader epoch of the last record below a position.
fn epoch_below(log: &Log, position: i64) -> i32 {
    log.snapshot().epochs.as_ref().and_then(|epochs| epoch_of(epochs, position - 1)).unwrap_or(-1)
}

/// Replaces the file. Everything below the position is in the table.
pub(crate) fn write(log: &Log, secret: &HashKey, table: &Table, position: i64, checks: &[Check]) -> Result<()> {
    let below = || table.entries().filter(|entry| table.offset_of(*entry) < position);
    let head = Head {
        secret: *secret,
        store_id: *log.env.store_id.as_bytes(),
        position,
        epoch: epoch_below(log, position),
        count: below().count() as u64,
        base: table.base(),
    };
    replace_file_in_parts(&*log.env.vfs, &log.directory, INDEX_NAME, true, |put| {
        write_parts(&head, checks, below(), put)
    })
}

/// Whether there is a file, whatever it holds.
pub(crate) fn exists(log: &Log) -> Result<bool> {
    let path = log.directory.join(INDEX_NAME);
    match log.env.vfs.open(&path, OpenMode::Read) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::io("open", &path, error)),
    }
}

/// A file that is being read, some of it at a time. Nothing of it counts before all of it was read and summed.
pub(crate) struct Loader {
    path: PathBuf,
    file: Arc<dyn VfsFile>,
    /// Where the next entry stands, and where the last one ends.
    at: u64,
    end: u64,
    crc: crc32fast::Hasher,
    head: Head,
    checks: Vec<Check>,
    table: Table,
    /// What the table may come to: for so much there was room.
    memory_bytes_max: usize,
}

/// What a step of reading a file came to.
pub(crate) enum Load {
    /// There is more of it.
    More,
    /// It holds.
    Whole(Loaded),
    /// It does not hold.
    Void,
}

impl Loader {
    /// Begins with the file, if there is one that may hold. `fits` is asked before anything is allocated for its entries.
    pub(crate) fn begin(log: &Log, fits: impl FnOnce(usize) -> bool) -> Result<Option<Self>> {
        let path = log.directory.join(INDEX_NAME);
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => Ok(None),
            _ => Err(Error::io("read", &path, error)),
        };
        let open = || {
            let file = log.env.vfs.open(&path, OpenMode::Read)?;
            let (mut head, bytes) = ([0; HEAD_BYTES], file.len()?);
            read_exact_at(&*file, &mut head, 0).map(|()| (file, head, bytes))
        };
        let (file, head_bytes, bytes) = match open() {
            Ok(opened) => opened,
            Err(error) => return failed(error),
        };
        let Some((head, checks_count)) = Head::decode(&head_bytes, bytes) else { return Ok(None) };
        // The checks are there twice while they are read.
        let memory = head.count.saturating_mul(MEMORY_BYTES).saturating_add(checks_count as u64 * MEMORY_BYTES);
        let memory = usize::try_from(memory).unwrap_or(usize::MAX);
        if !is_of(&head, log) || !fits(memory) {
            return Ok(None);
        }
        let mut checks = vec![0; checks_count * CHECK_BYTES];
        if let Err(error) = read_exact_at(&*file, &mut checks, HEAD_BYTES as u64) {
            return failed(error);
        }
        let mut crc = crc32fast::Hasher::new();
        crc.update(&head_bytes);
        crc.update(&checks);
        let at = (HEAD_BYTES + checks.len()) as u64;
        let table = Table::with_room(head.base, usize::try_from(head.count).unwrap_or(0));
        let checks = checks.chunks_exact(CHECK_BYTES).filter_map(decode_check).collect();
        let (end, memory_bytes_max) = (bytes - CRC_BYTES as u64, memory.saturating_add(SMALL_TABLE_BYTES));
        Ok(Some(Self { path, file, at, end, crc, head, checks, table, memory_bytes_max }))
    }

    /// Bytes of memory that it takes.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.table.memory_bytes()
    }

    /// Reads on as long as the budget lasts.
    pub(crate) fn step(&mut self, log: &Log, budget: &mut ReadBudget) -> Result<Load> {
        let mut chunk = Vec::new();
        while self.at < self.end {
            if budget.is_spent() {
                return Ok(Load::More);
            }
            let most = (CHUNK_BYTES as u64).min(budget.left()).next_multiple_of(ENTRY_BYTES as u64);
            chunk.resize(usize::try_from(most.min(self.end - self.at)).unwrap_or(CHUNK_BYTES), 0);
            if !self.read(&mut chunk, self.at)? || !fill(&mut self.table, &self.head, &chunk) {
                return Ok(Load::Void);
            }
            // Hashes of keys are spread over the whole table; others may crowd a part of it.
            if self.table.memory_bytes() > self.memory_bytes_max {
                return Ok(Load::Void);
            }
            self.crc.update(&chunk);
            self.at += chunk.len() as u64;
            budget.take(chunk.len() as u64);
        }
        let mut crc = [0; CRC_BYTES];
        let holds = self.read(&mut crc, self.end)? && crc == self.crc.clone().finalize().to_be_bytes();
        // The log may have gone on from there meanwhile.
        if !holds || !is_of(&self.head, log) {
            return Ok(Load::Void);
        }
        let (secret, position) = (self.head.secret, self.head.position);
        let table = std::mem::replace(&mut self.table, Table::new(0));
        Ok(Load::Whole(Loaded { secret, table, position, checks: std::mem::take(&mut self.checks) }))
    }

    /// False if the file ends before.
    fn read(&self, buffer: &mut [u8], position: u64) -> Result<bool> {
        match read_exact_at(&*self.file, buffer, position) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            Err(error) => Err(Error::io("read", &self.path, error)),
        }
    }
}

impl std::fmt::Debug for Loader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Loader").field("at", &self.at).field("end", &self.end).finish_non_exhaustive()
    }
}

/// Whether a file was made of this log, as it still is below the file's position.
fn is_of(head: &Head, log: &Log) -> bool {
    head.store_id == *log.env.store_id.as_bytes()
        && (log.log_start()..=log.last_stable_offset()).contains(&head.position)
        && head.epoch == epoch_below(log, head.position)
}

/// Puts entries of a file into a table; false if one of them is none, or lies at or behind the position.
fn fill(table: &mut Table, head: &Head, entries: &[u8]) -> bool {
    for chunk in entries.chunks_exact(ENTRY_BYTES) {
        let entry = decode_entry(chunk);
        let offset = |entry: KeyEntry| head.base.checked_add(entry.relative_offset().cast_signed());
        let below = |entry: &KeyEntry| offset(*entry).is_some_and(|offset| offset < head.position);
        let Some(entry) = entry.filter(below) else { return false };
        // Two keys under one hash are no news here: they were compared before the file was written.
        table.insert(entry);
    }
    true
}

/// A file, taken apart as a whole.
#[cfg(any(test, fuzzing))]
#[derive(Clone, Debug, PartialEq, Eq)]
struct File {
    head: Head,
    checks: Vec<Check>,
    entries: Vec<KeyEntry>,
}

#[cfg(any(test, fuzzing))]
fn encode(head: &Head, checks: &[Check], entries: impl Iterator<Item = KeyEntry>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let put = &mut |part: &[u8]| {
        bytes.extend_from_slice(part);
        Ok(())
    };
    assert!(write_parts(head, checks, entries, put).is_ok());
    bytes
}

/// Reads a file; `None` if anything about it does not hold.
#[cfg(any(test, fuzzing))]
fn decode(bytes: &[u8]) -> Option<File> {
    let (body, crc) = bytes.split_last_chunk::<CRC_BYTES>()?;
    let (head_bytes, rest) = body.split_first_chunk::<HEAD_BYTES>()?;
    let (head, checks_count) = Head::decode(head_bytes, bytes.len() as u64)?;
    if *crc != crc32fast::hash(body).to_be_bytes() {
        return None;
    }
    let (checks, entries) = rest.split_at_checked(checks_count.checked_mul(CHECK_BYTES)?)?;
    let checks: Option<Vec<Check>> = checks.chunks_exact(CHECK_BYTES).map(decode_check).collect();
    let entries: Option<Vec<KeyEntry>> = entries.chunks_exact(ENTRY_BYTES).map(decode_entry).collect();
    Some(File { head, checks: checks?, entries: entries? })
}

/// For the fuzz target: reads any bytes, and then the same bytes with checksums that hold, so that what lies behind them is
/// met as well. What is read is written back the same.
#[cfg(fuzzing)]
pub(crate) fn fuzz(bytes: &[u8]) {
    assert!(decode(bytes).is_none_or(|file| encode(&file.head, &file.checks, file.entries.into_iter()) == bytes));
    let mut mended = bytes.to_vec();
    let Some(end) = mended.len().checked_sub(4).filter(|&end| end >= HEAD_BYTES) else { return };
    mended[..8].copy_from_slice(MAGIC);
    mended[8..10].copy_from_slice(&VERSION.to_be_bytes());
    let crc = crc32fast::hash(&mended[..80]);
    mended[80..84].copy_from_slice(&crc.to_be_bytes());
    let crc = crc32fast::hash(&mended[..end]);
    mended[end..].copy_from_slice(&crc.to_be_bytes());
    if let Some(file) = decode(&mended) {
        assert_eq!(encode(&file.head, &file.checks, file.entries.iter().copied()), mended);
        let entries = &mended[end - file.entries.len() * ENTRY_BYTES..end];
        fill(&mut Table::new(file.head.base), &file.head, entries);
    }
}

#[cfg(fuzzing)]
pub(crate) use any::fuzz_loader;

/// Any bytes as the file of a log, for the fuzz target and for the tests.
#[cfg(any(test, fuzzing))]
#[allow(clippy::unwrap_used, reason = "a failed promise ends the run")]
mod any {
    use std::collections::BTreeMap;

    use super::*;

    /// What is to come of a file when it is read in steps: how much at once, how much memory there is, and whether it loses its
    /// end meanwhile.
    #[derive(Clone, Copy, Debug)]
    struct Reading {
        step_bytes: u64,
        memory_bytes: usize,
        /// So many of its bytes are left after the first step, if it needs more of them.
        left_bytes: Option<u64>,
    }

    /// What reading the file of a log, as the loader does it, came to.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(super) enum Came {
        /// No file that counts, or no room for it.
        ToNothing,
        /// So many entries.
        To(usize),
    }

    /// Puts bytes where the file of a log is.
    pub(super) fn put_file(log: &Log, file: &[u8]) -> Arc<dyn VfsFile> {
        let opened = log.env.vfs.open(&log.directory.join(INDEX_NAME), OpenMode::Create).unwrap();
        opened.set_len(0).unwrap();
        opened.write_at(file, 0).unwrap();
        opened
    }

    /// Puts bytes where the file of a log is and has the loader read them. It has to come to what [`decode`] makes of them and this log,
    /// within the memory that it asked for.
    fn check_loader(log: &Log, file: &[u8], reading: Reading) -> Came {
        let is_own = |head: &Head| {
            let log_range = log.log_start()..=log.last_stable_offset();
            head.store_id == *log.env.store_id.as_bytes()
                && log_range.contains(&head.position)
                && head.epoch == epoch_below(log, head.position)
        };
        let expected = decode(file).filter(|found| is_own(&found.head)).and_then(|found| {
            let offset = |entry: &KeyEntry| i128::from(found.head.base) + i128::from(entry.relative_offset());
            let are_below = found.entries.iter().all(|entry| offset(entry) < i128::from(found.head.position));
            // The last of those of one record counts.
            let record = |entry: &KeyEntry| ((entry.words().0, entry.words().1 >> 32), *entry);
            let entries: BTreeMap<_, _> = found.entries.iter().map(record).collect();
            are_below.then_some((found.head, found.checks, entries))
        });
        let opened = put_file(log, file);
        let mut asked = None;
        let fits = |bytes: usize| {
            asked = Some(bytes);
            bytes <= reading.memory_bytes
        };
        let begun = Loader::begin(log, fits).unwrap();
        // An entry has 16 bytes in the file, and a check 12.
        assert!(asked.is_none_or(|asked| asked <= 2 * file.len()), "asked for {asked:?} for {} bytes", file.len());
        let Some(mut loader) = begun else {
            assert!(expected.is_none() || asked.is_some_and(|asked| asked > reading.memory_bytes), "{expected:?}");
            return Came::ToNothing;
        };
        let asked = asked.unwrap();
        assert!(asked <= reading.memory_bytes, "there was no room for {asked} bytes");
        let mut is_cut = false;
        for _ in 0..=file.len() / ENTRY_BYTES {
            let before = loader.at;
            let mut budget = ReadBudget::of(reading.step_bytes);
            let load = loader.step(log, &mut budget).unwrap();
            assert!(budget.read() < reading.step_bytes + ENTRY_BYTES as u64, "{budget:?}");
            assert!(loader.memory_bytes() <= asked + SMALL_TABLE_BYTES, "{} for {asked}", loader.memory_bytes());
            match load {
                Load::More => assert!(loader.at > before, "a step that reads nothing"),
                Load::Void => {
                    assert!(expected.is_none() || is_cut, "{expected:?}");
                    return Came::ToNothing;
                }
                Load::Whole(loaded) => {
                    let (head, checks, entries) = expected.expect("what is whole holds");
                    assert!(!is_cut, "the end of the file is gone");
                    assert_eq!((loaded.secret, loaded.position), (head.secret, head.position));
                    assert_eq!(
                        (loaded.checks, loaded.table.base(), loaded.table.len()),
                        (checks, head.base, entries.len())
                    );
                    let mut found: Vec<(u64, u64)> = loaded.table.entries().map(KeyEntry::words).collect();
                    found.sort_unstable();
                    assert!(found.into_iter().eq(entries.values().map(|entry| entry.words())));
                    return Came::To(loaded.table.len());
                }
            }
            if let Some(left) = reading.left_bytes.filter(|_| !is_cut) {
                opened.set_len(left.min(file.len() as u64 - 1)).unwrap();
                is_cut = true;
            }
        }
        panic!("it never ends");
    }

    /// Any bytes as the file of a log, and how it is read. The first of them say what of the rest is made to fit: with nothing of it
    /// hardly anything gets behind the head.
    pub(super) fn check_any(log: &Log, bytes: &[u8]) -> Came {
        let Some((&[fits, step, room, left], rest)) = bytes.split_first_chunk::<4>() else { return Came::ToNothing };
        let mut file = rest.to_vec();
        if fits & 1 == 0 {
            fit(log, &mut file, fits);
        }
        let step_bytes = 1 + u64::from(step) * 5;
        let memory_bytes = if room < 128 { usize::MAX } else { usize::from(room - 128) * 32 };
        let left_bytes = (left >= 192).then(|| u64::from(left - 192) * 16);
        check_loader(log, &file, Reading { step_bytes, memory_bytes, left_bytes })
    }

    /// Makes a file of this log out of any bytes, but for what flags except from that.
    fn fit(log: &Log, file: &mut Vec<u8>, flags: u8) {
        file.resize(file.len().max(HEAD_BYTES + CRC_BYTES), 0);
        let body = file.len() - HEAD_BYTES - CRC_BYTES;
        let checks = usize::from(file[63] & 7).min(body / CHECK_BYTES);
        let count = (body - checks * CHECK_BYTES) / ENTRY_BYTES;
        let entries = HEAD_BYTES + checks * CHECK_BYTES;
        file.truncate(entries + count * ENTRY_BYTES);
        file[..8].copy_from_slice(MAGIC);
        file[8..10].copy_from_slice(&VERSION.to_be_bytes());
        file[10..16].fill(0);
        file[60..64].copy_from_slice(&(checks as u32).to_be_bytes());
        let beside = if flags & 64 == 0 { 0 } else { u64::from(file[71]) };
        file[64..72].copy_from_slice(&(count as u64 + beside).to_be_bytes());
        if flags & 2 == 0 {
            file[32..48].copy_from_slice(log.env.store_id.as_bytes());
        }
        if flags & 4 == 0 {
            let (start, end) = (log.log_start(), log.last_stable_offset());
            let position = start + i64::from(file[55]) % (end - start + 1);
            file[48..56].copy_from_slice(&position.to_be_bytes());
        }
        let position = i64::from_be_bytes(file[48..56].try_into().unwrap());
        if flags & 8 == 0 {
            file[56..60].copy_from_slice(&epoch_below(log, position.max(0)).to_be_bytes());
        }
        if flags & 16 == 0 {
            // A little below the position, or just not.
            file[72..80].copy_from_slice(&(position.max(i64::MIN + 200) - 200).to_be_bytes());
            for entry in file[entries..].chunks_exact_mut(ENTRY_BYTES) {
                let offset = u32::from(entry[11]) % if flags & 32 == 0 { 200 } else { 256 };
                entry[7] = 0;
                entry[8..12].copy_from_slice(&offset.to_be_bytes());
            }
        }
        let crc = crc32fast::hash(&file[..80]);
        file[80..84].copy_from_slice(&crc.to_be_bytes());
        let crc = crc32fast::hash(file) ^ u32::from(flags >> 7);
        file.extend_from_slice(&crc.to_be_bytes());
    }

    /// For the fuzz target: any bytes as the file of this log.
    #[cfg(fuzzing)]
    pub(crate) fn fuzz_loader(log: &Log, bytes: &[u8]) {
        check_any(log, bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::any::{Came, check_any, put_file};
    use super::*;

    #[test]
    fn whatever_stands_in_the_file_of_a_log_is_read_whole_or_not_at_all() {
        let seed = std::env::var("TOPICLOG_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1_u64);
        let store = crate::Store::in_memory().unwrap();
        let topic = store.create_topic("t", crate::TopicConfig::default()).unwrap();
        (0..100).for_each(|_| drop(topic.append(crate::Record::of_value("v")).unwrap()));
        let partition = topic.partition(0).unwrap();
        let mut state = seed;
        let mut random = || {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            mixed ^ mixed >> 29
        };
        let (mut to_nothing, mut entries) = (0, 0);
        for run in 0..3000 {
            // Few of the flags, so that much of it fits.
            let mut bytes = vec![(random() & random() & random()) as u8];
            let len = 3 + random() as usize % (1 << (3 + run % 9));
            bytes.extend((0..len).map(|_| random() as u8));
            let came = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| check_any(&partition.log, &bytes)));
            match came {
                Ok(Came::ToNothing) => to_nothing += 1,
                Ok(Came::To(count)) => entries += count,
                Err(_) => panic!("TOPICLOG_SEED={seed} run {run}: {bytes:?}"),
            }
        }
        assert!(to_nothing > 500 && entries > 5000, "TOPICLOG_SEED={seed}: {to_nothing} to nothing, {entries} entries");
    }

    #[test]
    fn a_file_whose_entries_crowd_a_part_of_the_table_takes_no_more_memory_than_there_was_for_it() {
        let store = crate::Store::in_memory().unwrap();
        let topic = store.create_topic("t", crate::TopicConfig::default()).unwrap();
        topic.append(crate::Record::keyed("k", "v")).unwrap();
        let log = &topic.partition(0).unwrap().log;
        let head = |count| {
            let (store_id, epoch) = (*log.env.store_id.as_bytes(), epoch_below(log, 1));
            Head { secret: [7; 16], store_id, position: 1, epoch, count, base: 0 }
        };
        let check = |hash: &dyn Fn(u64) -> u64, came: Came| {
            let entries = (0..300_000).map(|n| KeyEntry::new(hash(n), 0, 0).unwrap());
            let file = encode(&head(300_000), &[], entries);
            put_file(log, &file);
            let mut loader = Loader::begin(log, |_| true).unwrap().unwrap();
            let (mut most, mut found) = (0, None);
            while found.is_none() {
                let load = loader.step(log, &mut ReadBudget::of(100_000)).unwrap();
                most = most.max(loader.memory_bytes());
                found = match load {
                    Load::More => None,
                    Load::Whole(loaded) => Some(Came::To(loaded.table.len())),
                    Load::Void => Some(Came::ToNothing),
                };
            }
            assert_eq!(found, Some(came));
            assert!(most < 300_000 * 24 + 400_000, "{most}");
        };
        let spread = |n: u64| n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 8;
        check(&spread, Came::To(300_000));
        // The low bits choose the part, the others the place in it.
        check(&|n| spread(n) & !0xff_ffff, Came::ToNothing);
    }

    fn head(count: u64) -> Head {
        Head { secret: [7; 16], store_id: [3; 16], position: 90, epoch: 4, count, base: 5 }
    }

    #[test]
    fn a_file_is_read_back_and_no_change_of_it_is_believed() {
        let entries = vec![KeyEntry::new(5, 10, 70).unwrap(), KeyEntry::new(u64::MAX >> 8, 80, 900).unwrap()];
        let checks = vec![(0, 0xdead_beef), (40, 1)];
        let bytes = encode(&head(2), &checks, entries.iter().copied());
        assert_eq!(decode(&bytes), Some(File { head: head(2), checks, entries }));
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 1;
            assert_eq!(decode(&bad), None, "byte {at}");
            assert_eq!(decode(&bytes[..at]), None, "cut at {at}");
        }
    }

    #[test]
    fn a_large_file_is_written_in_parts_of_a_bounded_size() {
        let entries = || (0..200_000).map(|n| KeyEntry::new(n, 0, 0).unwrap());
        let (mut whole, mut largest) = (Vec::new(), 0);
        let put = &mut |part: &[u8]| {
            largest = largest.max(part.len());
            whole.extend_from_slice(part);
            Ok(())
        };
        write_parts(&head(200_000), &[], entries(), put).unwrap();
        assert!(largest <= CHUNK_BYTES + HEAD_BYTES + ENTRY_BYTES, "{largest}");
        assert_eq!(decode(&whole).unwrap().entries.len(), 200_000);
    }

    #[test]
    fn a_place_without_a_record_is_no_entry() {
        assert_eq!(decode(&encode(&head(1), &[], [KeyEntry::EMPTY].into_iter())), None);
    }

    #[test]
    fn an_entry_behind_the_position_makes_the_file_worthless() {
        let check = |relative: u64, is_good: bool| {
            let file = encode(&head(1), &[], [KeyEntry::new(5, relative, 70).unwrap()].into_iter());
            let mut table = Table::new(5);
            assert_eq!(fill(&mut table, &head(1), &file[HEAD_BYTES..HEAD_BYTES + ENTRY_BYTES]), is_good, "{relative}");
            assert_eq!(table.len(), usize::from(is_good));
        };
        check(0, true);
        check(84, true);
        check(85, false);
        check((1 << 40) - 1, false);
    }
}
