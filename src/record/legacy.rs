//! Entries of Kafka's formats 0 and 1, from before version 0.11: recognised, checked and stepped over, never read.
//!
//! ```text
//!  0 offset       i64   of the message, or of the last one within a compressed wrapper
//!  8 messageSize  i32   bytes after this field, at least 14 in format 0 and 22 in format 1
//! 12 crc          u32   CRC-32 (not CRC-32C) of the magic to the end
//! 16 magic        i8    0 or 1
//! 17 attributes   i8, in format 1 a timestamp i64, then key and value with i32 lengths
//!
//! 00 00 00 00 00 00 00 05 00 00 00 10 1f ec d7 0a 00 00 00 00 00 01 6b 00 00 00 01 76    offset 5, "k", "v"
//! ```

use super::batch::{BatchError, Peek, peek};
use crate::clock::Timestamp;

/// Where the checksum is, and where what it covers begins.
const CRC_AT: usize = 12;
const CRC_FROM: usize = 16;
/// In format 1.
const TIMESTAMP_AT: usize = 18;

/// An entry of format 0 or 1. Its records cannot be read: [`BatchError::Magic`] says so.
///
/// ```
/// use topiclog::record::{BatchView, LegacyEntry};
/// let bytes = b"\0\0\0\0\0\0\0\x05\0\0\0\x10\x1f\xec\xd7\x0a\0\0\0\0\0\x01k\0\0\0\x01v";
/// let entry = LegacyEntry::parse(bytes)?;
/// assert_eq!((entry.offset, entry.size_bytes, entry.magic), (5, 28, 0));
/// let refused = BatchView::parse(bytes).unwrap_err();
/// assert!(refused.is_unsupported());
/// # Ok::<(), topiclog::record::BatchError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LegacyEntry {
    /// The offset of the message; of a compressed wrapper that of the last message in it.
    pub offset: i64,
    /// The size of the whole entry.
    pub size_bytes: usize,
    /// 0 or 1.
    pub magic: i8,
    /// The timestamp of the message, and of a compressed wrapper the largest in it, in milliseconds since 1970; -1 in format 0,
    /// which has none.
    pub timestamp_ms: Timestamp,
}

impl LegacyEntry {
    /// Checks size and checksum of the entry at the start of `bytes`.
    ///
    /// # Errors
    /// [`BatchError::Magic`] if the format is neither 0 nor 1, [`BatchError::Truncated`], [`BatchError::Malformed`] and
    /// [`BatchError::Crc`].
    pub fn parse(bytes: &[u8]) -> Result<Self, BatchError> {
        let Peek { base_offset, size_bytes, magic, .. } = peek(bytes)?;
        // What is before the key's length, and two lengths.
        let size_min = match magic {
            0 => 26,
            1 => 34,
            _ => return Err(BatchError::Magic(magic)),
        };
        if size_bytes < size_min {
            return Err(BatchError::malformed(8, "the length is less than a message of this format has"));
        }
        if base_offset < 0 {
            return Err(BatchError::malformed(0, "the offset is negative"));
        }
        let Some(entry) = bytes.get(..size_bytes) else {
            return Err(BatchError::Truncated { needed: size_bytes, available: bytes.len() });
        };
        let stored = entry.get(CRC_AT..).and_then(|rest| rest.first_chunk::<4>()).copied().unwrap_or_default();
        let stored = u32::from_be_bytes(stored);
        let computed = crc32fast::hash(entry.get(CRC_FROM..).unwrap_or_default());
        if stored != computed {
            return Err(BatchError::Crc { stored, computed });
        }
        let timestamp = entry.get(TIMESTAMP_AT..).and_then(|rest| rest.first_chunk::<8>()).filter(|_| magic == 1);
        let timestamp_ms = timestamp.map_or(-1, |timestamp| i64::from_be_bytes(*timestamp));
        Ok(Self { offset: base_offset, size_bytes, magic, timestamp_ms })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An entry of a format with this much behind the magic, its checksum made right.
    fn entry(magic: i8, offset: i64, behind: usize) -> Vec<u8> {
        let mut bytes = offset.to_be_bytes().to_vec();
        bytes.extend_from_slice(&(5 + behind as i32).to_be_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.push(magic.cast_unsigned());
        bytes.extend((0..behind).map(|at| at as u8));
        let crc = crc32fast::hash(&bytes[CRC_FROM..]);
        bytes[CRC_AT..CRC_FROM].copy_from_slice(&crc.to_be_bytes());
        bytes
    }

    #[test]
    fn both_formats_are_known_by_size_and_checksum() {
        for (magic, least) in [(0, 9), (1, 17)] {
            for behind in [least, least + 1, 300] {
                let bytes = entry(magic, 7, behind);
                let parsed = LegacyEntry::parse(&[bytes.clone(), vec![9; 40]].concat());
                // What is behind the magic counts up; the timestamp begins behind the attributes.
                let timestamp_ms = if magic == 1 { 0x0102_0304_0506_0708 } else { -1 };
                assert_eq!(parsed, Ok(LegacyEntry { offset: 7, size_bytes: bytes.len(), magic, timestamp_ms }));
            }
            let short = LegacyEntry::parse(&entry(magic, 7, least - 1));
            assert!(matches!(short, Err(BatchError::Malformed { at: 8, .. })), "{magic}: {short:?}");
        }
    }

    #[test]
    fn every_flipped_bit_behind_the_offset_is_noticed() {
        let good = entry(1, 7, 30);
        for bit in 64..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(LegacyEntry::parse(&bad).is_err(), "bit {bit}");
        }
        for bytes in 0..good.len() {
            let cut = LegacyEntry::parse(&good[..bytes]);
            assert!(matches!(cut, Err(BatchError::Truncated { .. })), "{bytes}: {cut:?}");
        }
    }

    #[test]
    fn other_formats_and_negative_offsets_are_refused() {
        for magic in [2, 3, -1] {
            assert_eq!(LegacyEntry::parse(&entry(magic, 7, 80)), Err(BatchError::Magic(magic)));
        }
        let negative = LegacyEntry::parse(&entry(0, -1, 20));
        assert!(matches!(negative, Err(BatchError::Malformed { at: 0, .. })), "{negative:?}");
    }
}
