//! The seal (`<base>.seal`): checksums over a segment that will not change any more.
//!
//! Kafka's batch CRC leaves 17 header bytes uncovered, among them the offset and the leader epoch. The seal covers every
//! byte, in blocks of 64 KiB so that a random read checks one block and not a gigabyte.
//!
//! ```text
//!  0 magic "tlseal\0\0"  8 | 8 version u16 = 1 | 10 block shift u16 = 16 | 12 reserved u32
//! 16 store id 16 | 32 base offset i64 | 40 bytes u64 | 48 batches u64 | 56 next offset i64 | 64 max timestamp i64
//! 72 crc32 of the whole log u32 | 76 block count u32 | 80 side file count u32 | 84 crc32 of bytes 0..84 u32
//! 88 crc32 of each block, u32 each
//!    side files: suffix length u8, suffix, bytes u64, crc32 u32
//!    crc32 of everything before it, u32
//! ```
//! All integers are big-endian. The checksum is CRC-32 (IEEE) by `crc32fast`: the file is ours, not Kafka's.

use std::path::Path;

use crate::error::{Error, Result};
use crate::ids::Uuid;

const MAGIC: &[u8; 8] = b"tlseal\0\0";
const VERSION: u16 = 1;
const BLOCK_SHIFT: u16 = 16;
const FIXED_BYTES: usize = 88;
/// Side files are a handful; more than this is not a seal.
const SIDE_FILES_MAX: u32 = 16;

/// Checksums over one sealed segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seal {
    pub(crate) store_id: Uuid,
    pub(crate) base_offset: i64,
    pub(crate) bytes: u64,
    pub(crate) batches: u64,
    pub(crate) next_offset: i64,
    pub(crate) max_timestamp: i64,
    pub(crate) crc32: u32,
    blocks: Box<[u32]>,
    pub(crate) side_files: Vec<SideFile>,
}

/// The length and checksum of an index that belongs to the segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SideFile {
    pub(crate) suffix: String,
    pub(crate) bytes: u64,
    pub(crate) crc32: u32,
}

/// Adds up the checksums while the bytes pass by.
#[derive(Debug, Default)]
pub(crate) struct SealBuilder {
    whole: crc32fast::Hasher,
    block: crc32fast::Hasher,
    in_block: u64,
    bytes: u64,
    blocks: Vec<u32>,
}

impl SealBuilder {
    pub(crate) fn update(&mut self, mut bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        while !bytes.is_empty() {
            let room = (Seal::BLOCK_BYTES - self.in_block) as usize;
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.block.update(now);
            self.in_block += now.len() as u64;
            if self.in_block == Seal::BLOCK_BYTES {
                self.end_block();
            }
            bytes = later;
        }
    }

    fn end_block(&mut self) {
        let block = std::mem::take(&mut self.block);
        self.whole.combine(&block);
        self.blocks.push(block.finalize());
        self.in_block = 0;
    }

    /// The checksum of everything that passed by.
    pub(crate) fn crc32(&self) -> u32 {
        let mut whole = self.whole.clone();
        whole.combine(&self.block);
        whole.finalize()
    }

    pub(crate) fn finish(mut self, facts: SealFacts, side_files: Vec<SideFile>) -> Seal {
        if self.in_block > 0 {
            self.end_block();
        }
        Seal {
            store_id: facts.store_id,
            base_offset: facts.base_offset,
            bytes: self.bytes,
            batches: facts.batches,
            next_offset: facts.next_offset,
            max_timestamp: facts.max_timestamp,
            crc32: self.whole.finalize(),
            blocks: self.blocks.into(),
            side_files,
        }
    }
}

/// What a seal says besides checksums.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SealFacts {
    pub(crate) store_id: Uuid,
    pub(crate) base_offset: i64,
    pub(crate) batches: u64,
    pub(crate) next_offset: i64,
    pub(crate) max_timestamp: i64,
}

impl Seal {
    /// Bytes that one checksum covers.
    pub(crate) const BLOCK_BYTES: u64 = 1 << BLOCK_SHIFT;

    /// The largest seal of a log of 2^31 bytes, so that a damaged length is refused before it is read.
    pub(crate) const FILE_BYTES_MAX: u64 = 256 << 10;

    /// Widens a range to whole blocks, within the file.
    pub(crate) fn whole_blocks(position: u64, bytes: u64, length: u64) -> (u64, u64) {
        let start = position - position % Self::BLOCK_BYTES;
        let end = (position + bytes).div_ceil(Self::BLOCK_BYTES) * Self::BLOCK_BYTES;
        (start, end.min(length).saturating_sub(start))
    }

    /// Compares whole blocks, read from `start` (a block boundary), with their checksums.
    pub(crate) fn check(&self, path: &Path, start: u64, bytes: &[u8]) -> Result<()> {
        for (index, block) in bytes.chunks(Self::BLOCK_BYTES as usize).enumerate() {
            let at = start / Self::BLOCK_BYTES + index as u64;
            let expected = usize::try_from(at).ok().and_then(|at| self.blocks.get(at));
            if expected != Some(&crc32fast::hash(block)) && !crate::planted::is(crate::planted::Bug::SealUnchecked) {
                let position = at * Self::BLOCK_BYTES;
                return Err(Error::Corrupt {
                    path: path.to_owned(),
                    position,
                    offsets: Some((self.base_offset.into(), self.next_offset.into())),
                    what: "the block does not match the checksum in the seal".into(),
                });
            }
        }
        Ok(())
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(FIXED_BYTES + self.blocks.len() * 4 + 64);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&VERSION.to_be_bytes());
        out.extend_from_slice(&BLOCK_SHIFT.to_be_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(self.store_id.as_bytes());
        out.extend_from_slice(&self.base_offset.to_be_bytes());
        out.extend_from_slice(&self.bytes.to_be_bytes());
        out.extend_from_slice(&self.batches.to_be_bytes());
        out.extend_from_slice(&self.next_offset.to_be_bytes());
        out.extend_from_slice(&self.max_timestamp.to_be_bytes());
        out.extend_from_slice(&self.crc32.to_be_bytes());
        out.extend_from_slice(&(self.blocks.len() as u32).to_be_bytes());
        out.extend_from_slice(&(self.side_files.len() as u32).to_be_bytes());
        out.extend_from_slice(&crc32fast::hash(&out).to_be_bytes());
        self.blocks.iter().for_each(|block| out.extend_from_slice(&block.to_be_bytes()));
        for side in &self.side_files {
            out.push(side.suffix.len() as u8);
            out.extend_from_slice(side.suffix.as_bytes());
            out.extend_from_slice(&side.bytes.to_be_bytes());
            out.extend_from_slice(&side.crc32.to_be_bytes());
        }
        out.extend_from_slice(&crc32fast::hash(&out).to_be_bytes());
        out
    }

    /// Reads a seal back. The text says what is wrong with it.
    pub(crate) fn decode(bytes: &[u8]) -> std::result::Result<Self, &'static str> {
        let mut fixed = Fields(bytes.get(..FIXED_BYTES).ok_or("shorter than a seal")?);
        if fixed.take::<8>()? != MAGIC {
            return Err("not a seal");
        }
        let version = u16::from_be_bytes(*fixed.take()?);
        let shift = u16::from_be_bytes(*fixed.take()?);
        fixed.take::<4>()?;
        let head = bytes.get(..FIXED_BYTES - 4).ok_or("shorter than a seal")?;
        let head_crc = bytes.get(FIXED_BYTES - 4..FIXED_BYTES).and_then(|crc| crc.try_into().ok());
        if head_crc.map(u32::from_be_bytes) != Some(crc32fast::hash(head)) {
            return Err("the header of the seal is damaged");
        }
        if version != VERSION || shift != BLOCK_SHIFT {
            return Err("a seal of another version");
        }
        let store_id = Uuid::from_bytes(*fixed.take()?);
        let base_offset = i64::from_be_bytes(*fixed.take()?);
        let log_bytes = u64::from_be_bytes(*fixed.take()?);
        let batches = u64::from_be_bytes(*fixed.take()?);
        let next_offset = i64::from_be_bytes(*fixed.take()?);
        let max_timestamp = i64::from_be_bytes(*fixed.take()?);
        let crc32 = u32::from_be_bytes(*fixed.take()?);
        let block_count = u32::from_be_bytes(*fixed.take()?);
        let side_count = u32::from_be_bytes(*fixed.take()?);
        if u64::from(block_count) != log_bytes.div_ceil(Self::BLOCK_BYTES) || side_count > SIDE_FILES_MAX {
            return Err("the counts of the seal contradict each other");
        }
        let (body, crc) = bytes.split_last_chunk::<4>().ok_or("shorter than a seal")?;
        if u32::from_be_bytes(*crc) != crc32fast::hash(body) {
            return Err("the seal is damaged");
        }
        let mut rest = Fields(body.get(FIXED_BYTES..).ok_or("shorter than a seal")?);
        if rest.0.len() < block_count as usize * 4 {
            return Err("the seal is shorter than its counts say");
        }
        let mut blocks = Vec::with_capacity(block_count as usize);
        for _ in 0..block_count {
            blocks.push(u32::from_be_bytes(*rest.take()?));
        }
        let mut side_files = Vec::new();
        for _ in 0..side_count {
            let [length] = *rest.take::<1>()?;
            let suffix = rest.slice(usize::from(length))?;
            let suffix = std::str::from_utf8(suffix).map_err(|_| "a side file of the seal has no name")?.to_owned();
            let bytes = u64::from_be_bytes(*rest.take()?);
            side_files.push(SideFile { suffix, bytes, crc32: u32::from_be_bytes(*rest.take()?) });
        }
        if !rest.0.is_empty() {
            return Err("bytes follow the seal");
        }
        let blocks = blocks.into();
        Ok(Self {
            store_id,
            base_offset,
            bytes: log_bytes,
            batches,
            next_offset,
            max_timestamp,
            crc32,
            blocks,
            side_files,
        })
    }
}

struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take<const N: usize>(&mut self) -> std::result::Result<&'a [u8; N], &'static str> {
        let (now, later) = self.0.split_first_chunk::<N>().ok_or("the seal ends early")?;
        self.0 = later;
        Ok(now)
    }

    fn slice(&mut self, length: usize) -> std::result::Result<&'a [u8], &'static str> {
        let (now, later) = self.0.split_at_checked(length).ok_or("the seal ends early")?;
        self.0 = later;
        Ok(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(bytes: usize) -> (Vec<u8>, Seal) {
        let log: Vec<u8> = (0..bytes).map(|at| (at * 7 % 251) as u8).collect();
        let mut builder = SealBuilder::default();
        log.chunks(1000).for_each(|chunk| builder.update(chunk));
        let facts = SealFacts {
            store_id: Uuid::from_bytes([7; 16]),
            base_offset: 5,
            batches: 3,
            next_offset: 9,
            max_timestamp: 11,
        };
        let side = SideFile { suffix: "txnindex".into(), bytes: 34, crc32: 1 };
        (log, builder.finish(facts, vec![side]))
    }

    #[test]
    fn a_seal_is_read_back_and_finds_every_changed_block() {
        for bytes in [0, 1, 65_535, 65_536, 65_537, 200_000] {
            let (mut log, seal) = sample(bytes);
            assert_eq!(Seal::decode(&seal.encode()).as_ref(), Ok(&seal));
            assert_eq!(seal.crc32, crc32fast::hash(&log));
            assert!(seal.check(Path::new("log"), 0, &log).is_ok());
            if let Some(last) = log.last_mut() {
                *last ^= 1;
                assert!(seal.check(Path::new("log"), 0, &log).is_err());
            }
        }
    }

    #[test]
    fn no_damaged_seal_is_believed() {
        let (_, seal) = sample(70_000);
        let good = seal.encode();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            assert!(Seal::decode(&bad).is_err(), "byte {at}");
            assert!(Seal::decode(&good[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn ranges_are_widened_to_whole_blocks_within_the_file() {
        let check = |range: (u64, u64), length, expected| {
            assert_eq!(Seal::whole_blocks(range.0, range.1, length), expected, "{range:?} of {length}");
        };
        check((0, 1), 200_000, (0, 65_536));
        check((65_535, 1), 200_000, (0, 65_536));
        check((65_535, 2), 200_000, (0, 131_072));
        check((65_536, 65_536), 200_000, (65_536, 65_536));
        check((199_999, 1), 200_000, (196_608, 3_392));
        check((0, 200_000), 200_000, (0, 200_000));
    }

    #[test]
    fn blocks_are_checked_from_the_middle_and_none_is_made_up() {
        let (log, seal) = sample(150_000);
        let check = |start: u64, bytes: &[u8]| seal.check(Path::new("log"), start, bytes);
        assert!(check(65_536, &log[65_536..]).is_ok());
        assert!(check(131_072, &log[131_072..]).is_ok());
        assert!(check(65_536, &log[..65_536]).is_err(), "another block");
        assert!(check(131_072, &log[131_072..149_999]).is_err(), "a byte short");
        let beyond = check(196_608, b"more");
        assert!(matches!(beyond, Err(Error::Corrupt { position: 196_608, .. })), "{beyond:?}");
    }

    #[test]
    fn a_seal_with_right_checksums_and_wrong_counts_is_refused() {
        let good = sample(70_000).1.encode();
        let with = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            let head_crc = crc32fast::hash(&bytes[..84]).to_be_bytes();
            bytes[84..88].copy_from_slice(&head_crc);
            let end = bytes.len() - 4;
            let crc = crc32fast::hash(&bytes[..end]).to_be_bytes();
            bytes[end..].copy_from_slice(&crc);
            Seal::decode(&bytes).map(|seal| seal.batches)
        };
        assert_eq!(with(55, 3), Ok(3), "the number of batches, as it is");
        assert!(with(9, 2).is_err(), "another version");
        assert!(with(11, 17).is_err(), "another block size");
        assert!(with(79, 1).is_err(), "fewer blocks than the bytes need");
        assert!(with(83, 17).is_err(), "too many side files");
        assert!(with(83, 2).is_err(), "a side file that is not there");
        assert!(with(83, 0).is_err(), "a side file that is not counted");
    }

    #[test]
    fn the_checksum_so_far_is_that_of_what_passed_by() {
        let mut builder = SealBuilder::default();
        let log: Vec<u8> = (0..100_000_u32).map(|at| (at % 251) as u8).collect();
        assert_eq!(builder.crc32(), crc32fast::hash(b""));
        for (nth, part) in log.chunks(33_333).enumerate() {
            builder.update(part);
            assert_eq!(builder.crc32(), crc32fast::hash(&log[..(33_333 * (nth + 1)).min(100_000)]));
        }
    }
}
