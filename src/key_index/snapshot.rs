//! The key index in a file (`topiclog.keys` in the partition), so that its first use need not read the whole log.
//!
//! ```text
//!  0 magic "tlkeys\0\0" 8 | 8 version u16 = 1 | 10 reserved 6 | 16 secret of the hash 16 | 32 store id 16
//! 48 position i64 | 56 leader epoch at it i32 | 60 reserved u32 | 64 count u64 | 72 crc32 of bytes 0..72 u32
//! 76 entries of 16 bytes: hash u64 (56 bits), offset i64
//!    crc32 of everything before it, u32
//! ```
//! All integers are big-endian. It is a hint like every index: what it leads to is read and compared. What it must not do is
//! miss a key, so that it counts only if its checksum holds and the log below `position` is the one it was made of: the
//! leader epoch there tells, as an open that cuts a log begins a new one.

use std::io;

use crate::error::{Error, Result};
use crate::io::read_small;
use crate::io::replace::replace_file;
use crate::partition::Log;
use crate::partition::key_queue::{HashKey, INDEX_NAME};
use crate::segment::cursor::epoch_of;

use super::table::Table;

const MAGIC: &[u8; 8] = b"tlkeys\0\0";
const VERSION: u16 = 1;
const HEAD_BYTES: usize = 76;
const ENTRY_BYTES: usize = 16;
/// What an entry may come to in memory, for the check before the file is read.
const MEMORY_BYTES: u64 = 30;

/// What a file holds.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) secret: HashKey,
    pub(crate) table: Table,
    /// Everything below this offset is in the table.
    pub(crate) position: i64,
}

/// What is written at the head of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Head {
    secret: HashKey,
    store_id: [u8; 16],
    position: i64,
    epoch: i32,
    count: u64,
}

pub(crate) fn new_secret() -> Result<HashKey> {
    let mut secret = HashKey::default();
    getrandom::fill(&mut secret).map_err(|error| Error::unsupported(format!("no random numbers: {error}")))?;
    Ok(secret)
}

fn encode(head: &Head, entries: impl Iterator<Item = (u64, i64)>) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&VERSION.to_be_bytes());
    bytes.extend_from_slice(&[0; 6]);
    bytes.extend_from_slice(&head.secret);
    bytes.extend_from_slice(&head.store_id);
    bytes.extend_from_slice(&head.position.to_be_bytes());
    bytes.extend_from_slice(&head.epoch.to_be_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&head.count.to_be_bytes());
    bytes.extend_from_slice(&crc32fast::hash(&bytes).to_be_bytes());
    for (hash, offset) in entries {
        bytes.extend_from_slice(&hash.to_be_bytes());
        bytes.extend_from_slice(&offset.to_be_bytes());
    }
    bytes.extend_from_slice(&crc32fast::hash(&bytes).to_be_bytes());
    bytes
}

/// Reads a file; `None` if anything about it does not hold.
fn decode(bytes: &[u8]) -> Option<(Head, Vec<(u64, i64)>)> {
    let (body, crc) = bytes.split_last_chunk::<4>()?;
    let head = body.get(..HEAD_BYTES)?;
    let word = |at: usize| -> Option<[u8; 8]> { head.get(at..at + 8)?.try_into().ok() };
    let half = |at: usize| -> Option<[u8; 4]> { head.get(at..at + 4)?.try_into().ok() };
    if head.get(..8)? != MAGIC
        || head.get(8..10)? != VERSION.to_be_bytes()
        || head.get(10..16)? != [0; 6]
        || head.get(60..64)? != [0; 4]
        || half(72)? != crc32fast::hash(head.get(..72)?).to_be_bytes()
        || *crc != crc32fast::hash(body).to_be_bytes()
    {
        return None;
    }
    let head = Head {
        secret: head.get(16..32)?.try_into().ok()?,
        store_id: head.get(32..48)?.try_into().ok()?,
        position: i64::from_be_bytes(word(48)?),
        epoch: i32::from_be_bytes(half(56)?),
        count: u64::from_be_bytes(word(64)?),
    };
    let entries = body.get(HEAD_BYTES..)?;
    if entries.len() % ENTRY_BYTES != 0 || (entries.len() / ENTRY_BYTES) as u64 != head.count {
        return None;
    }
    let entry = |chunk: &[u8]| {
        let (hash, offset) = chunk.split_first_chunk::<8>()?;
        Some((u64::from_be_bytes(*hash), i64::from_be_bytes(offset.try_into().ok()?)))
    };
    let entries: Option<Vec<(u64, i64)>> = entries.chunks_exact(ENTRY_BYTES).map(entry).collect();
    Some((head, entries?))
}

/// The leader epoch of the last record below a position.
fn epoch_below(log: &Log, position: i64) -> i32 {
    log.snapshot().epochs.as_ref().and_then(|epochs| epoch_of(epochs, position - 1)).unwrap_or(-1)
}

/// Replaces the file. Everything below the position is in the table.
pub(crate) fn write(log: &Log, secret: &HashKey, table: &Table, position: i64) -> Result<()> {
    let below = || table.iter().filter(|(_, offset)| *offset < position);
    let head = Head {
        secret: *secret,
        store_id: *log.env.store_id.as_bytes(),
        position,
        epoch: epoch_below(log, position),
        count: below().count() as u64,
    };
    replace_file(&*log.env.vfs, &log.directory, INDEX_NAME, &encode(&head, below()), true)
}

/// Reads the file, if there is one that holds. `fits` is asked before anything is allocated for it.
pub(crate) fn read(log: &Log, fits: impl FnOnce(usize) -> bool) -> Result<Option<Loaded>> {
    let path = log.directory.join(INDEX_NAME);
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::InvalidData => Ok(None),
        _ => Err(Error::io("read", &path, error)),
    };
    let file = match log.env.vfs.open(&path, crate::io::OpenMode::Read) {
        Ok(file) => file,
        Err(error) => return failed(error),
    };
    let bytes = match file.len() {
        Ok(bytes) => bytes,
        Err(error) => return failed(error),
    };
    drop(file);
    let memory = (bytes / ENTRY_BYTES as u64).saturating_mul(MEMORY_BYTES);
    if !fits(usize::try_from(memory).unwrap_or(usize::MAX)) {
        return Ok(None);
    }
    let bytes = match read_small(&*log.env.vfs, &path, bytes) {
        Ok(bytes) => bytes,
        Err(error) => return failed(error),
    };
    let Some((head, entries)) = decode(&bytes) else { return Ok(None) };
    let holds = head.store_id == *log.env.store_id.as_bytes()
        && (log.log_start()..=log.last_stable_offset()).contains(&head.position)
        && head.epoch == epoch_below(log, head.position);
    if !holds {
        return Ok(None);
    }
    let base = entries.iter().map(|(_, offset)| *offset).min().unwrap_or(head.position).max(0);
    let mut table = Table::new(base);
    for (hash, offset) in entries {
        // Two keys under one hash are no news here: they were compared before the file was written.
        if offset >= head.position || table.insert(hash, offset).is_err() {
            return Ok(None);
        }
    }
    Ok(Some(Loaded { secret: head.secret, table, position: head.position }))
}

/// For the fuzz target: reads any bytes, and then the same bytes with checksums that hold, so that what lies behind them is
/// met as well. What is read is written back the same.
#[cfg(fuzzing)]
pub(crate) fn fuzz(bytes: &[u8]) {
    assert!(decode(bytes).is_none_or(|(head, entries)| encode(&head, entries.into_iter()) == bytes));
    let mut mended = bytes.to_vec();
    let Some(end) = mended.len().checked_sub(4).filter(|&end| end >= HEAD_BYTES) else { return };
    mended[..8].copy_from_slice(MAGIC);
    mended[8..10].copy_from_slice(&VERSION.to_be_bytes());
    let crc = crc32fast::hash(&mended[..72]);
    mended[72..76].copy_from_slice(&crc.to_be_bytes());
    let crc = crc32fast::hash(&mended[..end]);
    mended[end..].copy_from_slice(&crc.to_be_bytes());
    if let Some((head, entries)) = decode(&mended) {
        assert_eq!(encode(&head, entries.iter().copied()), mended);
        let mut table = Table::new(entries.iter().map(|(_, offset)| *offset).min().unwrap_or(0).max(0));
        for (hash, offset) in entries {
            table.insert(hash, offset).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_back_and_no_change_of_it_is_believed() {
        let head = Head { secret: [7; 16], store_id: [3; 16], position: 90, epoch: 4, count: 2 };
        let entries = vec![(5, 10), (u64::MAX >> 8, 80)];
        let bytes = encode(&head, entries.iter().copied());
        assert_eq!(decode(&bytes), Some((head, entries)));
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 1;
            assert_eq!(decode(&bad), None, "byte {at}");
            assert_eq!(decode(&bytes[..at]), None, "cut at {at}");
        }
    }
}
