//! The recovery floor (`topiclog.floor`): what is known to be synced, so that recovery need not look below it.
//!
//! Two pages of 4 KiB, written in turn and synced each time, so that a torn write costs only itself. One entry of 64
//! bytes at the start of each:
//!
//! ```text
//!  0 magic "tlfl" 4 | 4 version u16 = 1 | 6 kind u16 (1 running, 2 clean) | 8 manifest generation u64 | 16 sequence u64
//! 24 segment base i64 | 32 position u64 | 40 end offset i64 | 48 max timestamp i64 | 56 batches u32 | 60 crc32 u32
//! ```
//! All integers are big-endian. *Running*: everything below `position` of that segment, and every earlier segment that
//! the manifest calls synced, is on the disk. *Clean*: besides, nothing was written behind it since.

use std::io;
use std::path::Path;

use crate::error::{Error, Result};
use crate::io::{OpenMode, Vfs, read_full_at, write_all_at};

pub(crate) const NAME: &str = "topiclog.floor";
const MAGIC: &[u8; 4] = b"tlfl";
const VERSION: u16 = 1;
const ENTRY_BYTES: usize = 64;
const PAGE_BYTES: u64 = 4096;

/// What a floor entry promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A writer is, or was, at work behind the position.
    Running,
    /// Nothing was written behind the position since it was stated.
    Clean,
}

/// One entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Floor {
    pub(crate) kind: Kind,
    /// Generation of the manifest that it belongs to.
    pub(crate) generation: u64,
    /// Rises with each entry.
    pub(crate) sequence: u64,
    pub(crate) base: i64,
    pub(crate) position: u64,
    pub(crate) end_offset: i64,
    /// Largest timestamp below the position, -1 for none; `i64::MIN` if unknown.
    pub(crate) max_timestamp: i64,
    /// Batches of the segment below the position.
    pub(crate) batches: u32,
}

impl Floor {
    pub(crate) fn encode(&self) -> [u8; ENTRY_BYTES] {
        let mut bytes = Vec::with_capacity(ENTRY_BYTES);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_be_bytes());
        bytes.extend_from_slice(&(if self.kind == Kind::Clean { 2_u16 } else { 1 }).to_be_bytes());
        bytes.extend_from_slice(&self.generation.to_be_bytes());
        bytes.extend_from_slice(&self.sequence.to_be_bytes());
        bytes.extend_from_slice(&self.base.to_be_bytes());
        bytes.extend_from_slice(&self.position.to_be_bytes());
        bytes.extend_from_slice(&self.end_offset.to_be_bytes());
        bytes.extend_from_slice(&self.max_timestamp.to_be_bytes());
        bytes.extend_from_slice(&self.batches.to_be_bytes());
        bytes.extend_from_slice(&crc32fast::hash(&bytes).to_be_bytes());
        let mut entry = [0; ENTRY_BYTES];
        entry.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
        entry
    }

    /// `None` for anything that is not a whole, undamaged entry of a version that is known.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let entry: &[u8; ENTRY_BYTES] = bytes.first_chunk()?;
        let (body, crc) = entry.split_last_chunk::<4>()?;
        if u32::from_be_bytes(*crc) != crc32fast::hash(body) || body.get(..4)? != MAGIC {
            return None;
        }
        let u16_at = |at: usize| Some(u16::from_be_bytes(body.get(at..at + 2)?.try_into().ok()?));
        let u64_at = |at: usize| Some(u64::from_be_bytes(body.get(at..at + 8)?.try_into().ok()?));
        if u16_at(4)? != VERSION {
            return None;
        }
        let kind = match u16_at(6)? {
            1 => Kind::Running,
            2 => Kind::Clean,
            _ => return None,
        };
        Some(Self {
            kind,
            generation: u64_at(8)?,
            sequence: u64_at(16)?,
            base: u64_at(24)?.cast_signed(),
            position: u64_at(32)?,
            end_offset: u64_at(40)?.cast_signed(),
            max_timestamp: u64_at(48)?.cast_signed(),
            batches: u32::from_be_bytes(body.get(56..60)?.try_into().ok()?),
        })
    }
}

/// The newest good entry; a damaged one can only lower the floor. No file, or none that is good: `None`.
pub(crate) fn read(vfs: &dyn Vfs, directory: &Path) -> Result<Option<Floor>> {
    let path = directory.join(NAME);
    let failed = |error| Error::io("read", &path, error);
    let file = match vfs.open(&path, OpenMode::Read) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mut newest: Option<Floor> = None;
    for slot in 0..2 {
        let mut bytes = [0; ENTRY_BYTES];
        let read = read_full_at(&*file, &mut bytes, slot * PAGE_BYTES).map_err(failed)?;
        if let Some(floor) = Floor::decode(bytes.get(..read).unwrap_or_default())
            && newest.is_none_or(|newest| floor.sequence > newest.sequence)
        {
            newest = Some(floor);
        }
    }
    Ok(newest)
}

/// Writes an entry into its slot and syncs it: durable when this returns. The directory entry of a new file is the
/// caller's to sync.
pub(crate) fn write(vfs: &dyn Vfs, directory: &Path, floor: &Floor) -> Result<()> {
    let path = directory.join(NAME);
    let file = vfs.open(&path, OpenMode::Create).map_err(|error| Error::io("open", &path, error))?;
    write_all_at(&*file, &floor.encode(), floor.sequence % 2 * PAGE_BYTES)
        .map_err(|(_, error)| Error::io("write", &path, error))?;
    file.sync_data().map_err(|error| Error::io("sync", &path, error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::MemoryVfs;

    fn floor(sequence: u64) -> Floor {
        Floor {
            kind: Kind::Clean,
            generation: 4,
            sequence,
            base: 7,
            position: 99,
            end_offset: 12,
            max_timestamp: -1,
            batches: 3,
        }
    }

    #[test]
    fn every_damaged_entry_is_refused() {
        let bytes = floor(1).encode();
        assert_eq!(Floor::decode(&bytes), Some(floor(1)));
        for at in 0..ENTRY_BYTES {
            let mut bad = bytes;
            bad[at] ^= 4;
            assert_eq!(Floor::decode(&bad), None, "byte {at}");
            assert_eq!(Floor::decode(&bytes[..at]), None, "cut at {at}");
        }
    }

    #[test]
    fn the_newest_entry_counts_and_a_torn_one_falls_back_to_the_other() {
        let vfs = MemoryVfs::new();
        let root = Path::new("");
        assert_eq!(read(&vfs, root).unwrap(), None);
        write(&vfs, root, &floor(1)).unwrap();
        write(&vfs, root, &floor(2)).unwrap();
        assert_eq!(read(&vfs, root).unwrap(), Some(floor(2)));
        let file = vfs.open(&root.join(NAME), OpenMode::Write).unwrap();
        file.write_at(&[9], 20).unwrap();
        assert_eq!(read(&vfs, root).unwrap(), Some(floor(1)));
    }

    #[test]
    fn the_highest_sequence_counts_wherever_it_lies() {
        for order in [[3, 4], [4, 3], [8, 7], [7, 8]] {
            let vfs = MemoryVfs::new();
            let root = Path::new("");
            order.iter().for_each(|&sequence| write(&vfs, root, &floor(sequence)).unwrap());
            let newest = order.into_iter().max().unwrap();
            assert_eq!(read(&vfs, root).unwrap(), Some(floor(newest)), "{order:?}");
        }
    }

    #[test]
    fn entries_lie_on_pages_of_their_own_in_turn() {
        let vfs = MemoryVfs::new();
        let root = Path::new("");
        write(&vfs, root, &floor(2)).unwrap();
        let file = vfs.open(&root.join(NAME), OpenMode::Read).unwrap();
        assert_eq!(file.len().unwrap(), ENTRY_BYTES as u64);
        write(&vfs, root, &floor(3)).unwrap();
        assert_eq!(file.len().unwrap(), PAGE_BYTES + ENTRY_BYTES as u64);
        let mut first = [0; ENTRY_BYTES];
        read_full_at(&*file, &mut first, 0).unwrap();
        assert_eq!(Floor::decode(&first), Some(floor(2)), "the other page is left alone");
    }

    #[test]
    fn a_kind_or_version_that_is_not_known_is_no_entry() {
        let with = |at: usize, byte: u8| {
            let mut bytes = floor(1).encode();
            bytes[at] = byte;
            let crc = crc32fast::hash(&bytes[..60]).to_be_bytes();
            bytes[60..].copy_from_slice(&crc);
            Floor::decode(&bytes)
        };
        assert_eq!(with(7, 1), Some(Floor { kind: Kind::Running, ..floor(1) }));
        for (at, byte) in [(7, 0), (7, 3), (5, 2), (4, 1), (0, b'x')] {
            assert_eq!(with(at, byte), None, "byte {at} is {byte}");
        }
    }
}
